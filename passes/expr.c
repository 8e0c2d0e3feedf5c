/* expr: values printed the way the spec writes them.
 *
 * Inputs by name, operators of the language (.* between vectors, * with a scalar), l2norm as such,
 * and the names that the spec's `let` gave: a value whose span is the whole right side of a
 * `let x =` statement is x. What has no name of its own is written out. */
#include "passes/passes.h"

#include <ctype.h>
#include <string.h>

/* names from the source ------------------------------------------------------------------------ */

static bool is_word(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

/* The x of `let x = <span>`, or NULL. */
static const char *let_of_span(const Kernel *k, Span span) {
    const Source *s = k->source;
    if (!s || span.hi <= span.lo || span.hi > s->len)
        return NULL;
    const char *text = s->text;
    size_t end = span.hi, at = span.lo;
    while (text[end] == ' ' || text[end] == '\t' || text[end] == ')')
        end++;
    if (!strchr("\n\r;#}", text[end])) /* NUL counts */
        return NULL;
    while (at > 0 && (text[at - 1] == ' ' || text[at - 1] == '('))
        at--;
    if (at == 0 || text[at - 1] != '=')
        return NULL;
    for (at--; at > 0 && text[at - 1] == ' ';)
        at--;
    size_t hi = at;
    while (at > 0 && is_word(text[at - 1]))
        at--;
    size_t lo = at;
    while (at > 0 && text[at - 1] == ' ')
        at--;
    if (lo == hi || at < 3 || strncmp(text + at - 3, "let", 3) || (at > 3 && is_word(text[at - 4])))
        return NULL;
    return arena_strndup(k->arena, text + lo, hi - lo);
}

/* The values that a span's let stands for: those that no other value of the same span is made of.
 * An unrolled loop has several, x[0], x[1], ... in order. */
static void name_roots(Names *n, const int *same, int count, const char *name, bool *mark) {
    const Kernel *k = n->k;
    int roots = 0, index = 0;
    bool *inner = NEW_ARRAY(k->arena, bool, count);
    for (int i = 0; i < count; i++) {
        memset(mark, 0, (size_t)(same[i] + 1) * sizeof *mark);
        value_mark(k, same[i], mark);
        for (int j = 0; j < i; j++)
            inner[j] = inner[j] || mark[same[j]];
    }
    for (int i = 0; i < count; i++)
        roots += !inner[i];
    for (int i = 0; i < count; i++) {
        if (inner[i])
            continue;
        Buf b;
        buf_init(&b, k->arena);
        buf_puts(&b, name);
        if (roots > 1)
            buf_printf(&b, "[%d]", index++);
        n->name[same[i]] = b.text;
    }
}

static bool may_have_name(const Inst *i) {
    return op_gives_value(i->op) && i->op != OP_in && i->op != OP_const && i->span.hi > i->span.lo;
}

Names names_new(const Kernel *k) {
    const int count = k->inst.count;
    Names n = {.k = k, .name = NEW_ARRAY(k->arena, const char *, count),
               .used = NEW_ARRAY(k->arena, bool, count)};
    bool *mark = NEW_ARRAY(k->arena, bool, count), *done = NEW_ARRAY(k->arena, bool, count);
    int *same = NEW_ARRAY(k->arena, int, count);
    for (int v = 0; v < count; v++) {
        const Span span = inst_at(k, v)->span;
        const char *name = done[v] || !may_have_name(inst_at(k, v)) ? NULL : let_of_span(k, span);
        if (!name)
            continue;
        int found = 0;
        for (int u = v; u < count; u++) {
            const Inst *i = inst_at(k, u);
            if (!may_have_name(i) || i->span.lo != span.lo || i->span.hi != span.hi)
                continue;
            same[found++] = u;
            done[u] = true;
        }
        name_roots(&n, same, found, name, mark);
    }
    return n;
}

/* expressions ---------------------------------------------------------------------------------- */

enum { PREC_add, PREC_mul, PREC_unary, PREC_atom };
enum { LONGEST = 200 }; /* values written out in one expression; the rest is "..." */

static void print(Names *n, int v, int outer, Buf *out);

static bool is_vector(const Kernel *k, int v) {
    return shape_features(inst_at(k, v)->shape).rank > 0;
}

/* x of x * rsqrt(sum(x * x) + 1e-6) or x / sqrt(sum(x * x) + 1e-6), else -1. */
static int normalized(const Kernel *k, int v) {
    const Inst *i = inst_at(k, v);
    if (i->op != OP_mul && i->op != OP_div)
        return -1;
    for (int side = 0; side < (i->op == OP_mul ? 2 : 1); side++) {
        int x = i->arg[side];
        const Inst *root = inst_at(k, i->arg[1 - side]);
        if (root->op != (i->op == OP_mul ? OP_rsqrt : OP_sqrt))
            continue;
        const Inst *plus = inst_at(k, root->arg[0]);
        for (int j = 0; plus->op == OP_add && j < 2; j++) {
            const Inst *sum = inst_at(k, plus->arg[j]), *eps = inst_at(k, plus->arg[1 - j]);
            if (sum->op != OP_sum || eps->op != OP_const || eps->num != 1e-6)
                continue;
            const Inst *square = inst_at(k, sum->arg[0]);
            bool times = square->op == OP_mul && square->arg[0] == x && square->arg[1] == x;
            bool power = square->op == OP_pow && square->arg[0] == x &&
                         inst_at(k, square->arg[1])->op == OP_const &&
                         inst_at(k, square->arg[1])->num == 2;
            if (times || power)
                return x;
        }
    }
    return -1;
}

static void print_call(Names *n, const Inst *i, const char *name, Buf *out) {
    buf_printf(out, "%s(", name);
    for (int j = 0; j < i->nargs; j++) {
        buf_puts(out, j ? ", " : "");
        print(n, i->arg[j], PREC_add, out);
    }
    buf_puts(out, ")");
}

static void print_infix(Names *n, const Inst *i, const char *op, int prec, int outer, Buf *out) {
    buf_puts(out, prec < outer ? "(" : "");
    print(n, i->arg[0], prec, out);
    buf_printf(out, "%s", op);
    print(n, i->arg[1], prec + 1, out);
    buf_puts(out, prec < outer ? ")" : "");
}

/* A sum over a shared axis as a product of matrices. A = (I + T)^-1 is stored by equation and read
 * by unknown, so its two axes change places. */
static void print_contract(Names *n, const Inst *i, int outer, Buf *out) {
    buf_puts(out, PREC_mul < outer ? "(" : "");
    for (int j = 0; j < 2; j++) {
        const Inst *a = inst_at(n->k, i->arg[j]);
        bool inner_last = a->shape.axis[a->shape.rank - 1] == i->axis;
        bool transposed = (j == 0) != inner_last;
        buf_puts(out, j ? " * " : "");
        print(n, i->arg[j], PREC_unary + (j > 0), out);
        buf_puts(out, transposed != (a->op == OP_solve) ? "'" : "");
    }
    buf_puts(out, PREC_mul < outer ? ")" : "");
}

/* Matrix operations by name, an absent decay left out: lower(e * p', a), from_start(q, a), ... */
static bool print_matrix(Names *n, const Inst *i, Buf *out) {
    int a = i->nargs > 0 ? i->arg[i->nargs - 1] : -1;
    switch (i->op) {
    case OP_scores:
        buf_puts(out, "lower(");
        print(n, i->arg[0], PREC_unary, out);
        buf_puts(out, " * ");
        print(n, i->arg[1], PREC_atom, out);
        buf_puts(out, "'");
        a = i->nargs == 3 ? a : -1;
        break;
    case OP_carry: case OP_tail:
        buf_puts(out, i->op == OP_carry ? "from_start(" : "to_end(");
        print(n, i->arg[0], PREC_add, out);
        a = i->nargs == 2 ? a : -1;
        break;
    case OP_total: buf_puts(out, "product("); print(n, a, PREC_add, out); a = -1; break;
    case OP_solve: buf_puts(out, "inverse(I + "); print(n, a, PREC_mul, out); a = -1; break;
    default: return false;
    }
    if (a >= 0) {
        buf_puts(out, ", ");
        print(n, a, PREC_add, out);
    }
    buf_puts(out, ")");
    return true;
}

/* A factor of rows of the state: diag(d) * S. */
static bool print_row_factor(Names *n, const Inst *i, int outer, Buf *out) {
    for (int j = 0; j < 2; j++) {
        Shape d = inst_at(n->k, i->arg[j])->shape, s = inst_at(n->k, i->arg[1 - j])->shape;
        bool rows = shape_features(d).rank == 1 && shape_has(d, AXIS_K) && shape_has(s, AXIS_V);
        if (!rows)
            continue;
        buf_puts(out, PREC_mul < outer ? "(diag(" : "diag(");
        print(n, i->arg[j], PREC_add, out);
        buf_puts(out, ") * ");
        print(n, i->arg[1 - j], PREC_unary, out);
        buf_puts(out, PREC_mul < outer ? ")" : "");
        return true;
    }
    return false;
}

static void print_inst(Names *n, int v, int outer, Buf *out) {
    const Kernel *k = n->k;
    const Inst *i = inst_at(k, v);
    bool vectors = i->nargs == 2 && is_vector(k, i->arg[0]) && is_vector(k, i->arg[1]);
    switch (i->op) {
    case OP_const:
        buf_number(out, i->num);
        break;
    case OP_in:
        buf_puts(out, k->in.at[i->index].name);
        if (i->row >= 0)
            buf_printf(out, "[%d]", i->row);
        break;
    case OP_neg:
        buf_puts(out, PREC_unary < outer ? "(-" : "-");
        print(n, i->arg[0], PREC_unary, out);
        buf_puts(out, PREC_unary < outer ? ")" : "");
        break;
    case OP_add: print_infix(n, i, " + ", PREC_add, outer, out); break;
    case OP_sub: print_infix(n, i, " - ", PREC_add, outer, out); break;
    case OP_mul:
        if (!vectors || !print_row_factor(n, i, outer, out))
            print_infix(n, i, vectors ? " .* " : " * ", PREC_mul, outer, out);
        break;
    case OP_div: print_infix(n, i, vectors ? " ./ " : " / ", PREC_mul, outer, out); break;
    case OP_pow: print_infix(n, i, "^", PREC_unary, outer, out); break;
    case OP_read:
        buf_printf(out, PREC_mul < outer ? "(%s%s" : "%s%s", k->state_name ? k->state_name : "S",
                   shape_has(i->shape, AXIS_K) ? " * " : "' * ");
        print(n, i->arg[0], PREC_unary, out);
        buf_puts(out, PREC_mul < outer ? ")" : "");
        break;
    case OP_contract: print_contract(n, i, outer, out); break;
    case OP_rename: print(n, i->arg[0], outer, out); break;
    case OP_weave: print_call(n, i, "rows", out); break;
    case OP_state: buf_puts(out, k->state_name ? k->state_name : "S"); break;
    default:
        if (!print_matrix(n, i, out))
            print_call(n, i, op_info[i->op].name, out);
        break;
    }
}

static void write_out(Names *n, int v, int outer, Buf *out) {
    int x = normalized(n->k, v);
    if (n->left-- <= 0) {
        buf_puts(out, "...");
    } else if (x < 0) {
        print_inst(n, v, outer, out);
    } else {
        buf_puts(out, "l2norm(");
        print(n, x, PREC_add, out);
        buf_puts(out, ")");
    }
}

static void print(Names *n, int v, int outer, Buf *out) {
    if (n->name[v]) {
        n->used[v] = true;
        buf_puts(out, n->name[v]);
    } else {
        write_out(n, v, outer, out);
    }
}

void names_define(Names *n, int v, Buf *out) {
    n->left = LONGEST;
    write_out(n, v, PREC_add, out);
}

void names_print(Names *n, int v, bool as_factor, Buf *out) {
    n->left = LONGEST;
    print(n, v, as_factor ? PREC_unary : PREC_add, out);
}
