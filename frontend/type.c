/* Shapes and linearity of expressions.
 *
 * Vectors are columns unless transposed. Scalars broadcast. A matrix is made by the state, by
 * diag(x), I and outer products; matrices are added, multiplied, scaled and transposed, and nothing
 * else. A matrix expression is affine in the state: `state` is set where the state occurs, and a
 * product of two such factors is refused unless its value is a scalar or vector (an elementwise
 * function of reads, which a recurrence may have).
 *
 * A node whose operand is poisoned is poisoned without a message.
 */
#include "frontend/check.h"

#include <string.h>

enum { WEIGHT_MAX = 100000 };

static const Type scalar_type = {.kind = TYPE_scalar};
static const Type poison_type = {.kind = TYPE_poison};

static bool is_vector(Type t) { return t.kind == TYPE_column || t.kind == TYPE_row; }
static bool is_poison(Type t) { return t.kind == TYPE_poison; }

bool type_same(Type a, Type b) {
    return a.kind == b.kind && a.dim[0] == b.dim[0] && a.dim[1] == b.dim[1];
}

const char *type_text(const Checker *c, Type t) {
    Buf b;
    buf_init(&b, c->arena);
    switch (t.kind) {
    case TYPE_scalar: buf_puts(&b, "a scalar"); break;
    case TYPE_column: buf_printf(&b, "[%s]", t.dim[0]->name); break;
    case TYPE_row: buf_printf(&b, "[%s]'", t.dim[0]->name); break;
    case TYPE_matrix:
    case TYPE_table: buf_printf(&b, "[%s, %s]", t.dim[0]->name, t.dim[1]->name); break;
    case TYPE_identity: buf_puts(&b, "a multiple of I"); break;
    case TYPE_poison: buf_puts(&b, "?"); break;
    }
    return b.text;
}

/* The name in `e` that gave it its shape. */
static const Expr *origin(const Expr *e) {
    if (e->kind == EXPR_name)
        return e->decl && is_vector(e->type) + type_is_matrix(e->type) ? e : NULL;
    for (int i = 0; i < e->nargs && i < 2; i++) {
        const Expr *found = e->arg[i]->type.dim[0] ? origin(e->arg[i]) : NULL;
        if (found)
            return found;
    }
    return NULL;
}

static void note_name(Checker *c, const Expr *name) {
    if (name)
        diag_note(c->d, name->decl->span, "'%s' is %s", name->name, type_text(c, name->type));
}

void type_note_origin(Checker *c, const Expr *e) { note_name(c, origin(e)); }

static Type mismatch(Checker *c, const Expr *e, const char *what) {
    const Expr *a = e->arg[0], *b = e->arg[1];
    diag_error(c->d, e->op, "%s, here %s and %s", what, type_text(c, a->type),
               type_text(c, b->type));
    const Expr *from_a = origin(a), *from_b = origin(b);
    note_name(c, from_a);
    if (!from_a || !from_b || from_a->decl != from_b->decl)
        note_name(c, from_b);
    return poison_type;
}

/* A product of two expressions that both contain the state, or a function of a matrix. */
static Type not_linear(Checker *c, const Expr *e) {
    diag_error(c->d, e->span, "this is not linear in the state");
    diag_help(c->d, "an update is a sum of products in which %s occurs once each",
              c->v->state ? c->v->state->name : "the state");
    return poison_type;
}

static const char *op_text(ExprKind k) {
    switch (k) {
    case EXPR_add: return "+";
    case EXPR_sub: return "-";
    case EXPR_mul: return "*";
    case EXPR_emul: return ".*";
    case EXPR_div: return "/";
    case EXPR_ediv: return "./";
    case EXPR_pow: return "^";
    case EXPR_epow: return ".^";
    default: return "this function";
    }
}

/* Scalars and equal vectors. */
static Type type_elementwise(Checker *c, Expr *e) {
    Type a = e->arg[0]->type, b = e->arg[1]->type;
    if (a.kind == TYPE_scalar && (b.kind == TYPE_scalar || is_vector(b)))
        return b;
    if (is_vector(a) && (b.kind == TYPE_scalar || type_same(a, b)))
        return a;
    Buf what;
    buf_init(&what, c->arena);
    if (type_is_matrix(a) || type_is_matrix(b)) {
        if (e->arg[0]->state + e->arg[1]->state == 2 || e->kind == EXPR_pow ||
            e->kind == EXPR_epow)
            if (e->state)
                return not_linear(c, e);
        buf_printf(&what, "'%s' takes scalars and vectors", op_text(e->kind));
    } else if (a.dim[0] == b.dim[0]) {
        mismatch(c, e, "one operand is a row, the other a column");
        diag_help(c->d, "transpose one of them: x'");
        return poison_type;
    } else {
        buf_printf(&what, "'%s' needs equal shapes", op_text(e->kind));
    }
    return mismatch(c, e, what.text);
}

static Type type_sum(Checker *c, Expr *e) {
    Type a = e->arg[0]->type, b = e->arg[1]->type;
    if (!type_is_matrix(a) && !type_is_matrix(b))
        return type_elementwise(c, e);
    if (type_same(a, b))
        return a;
    if (a.kind == TYPE_identity && b.kind == TYPE_matrix && b.dim[0] == b.dim[1])
        return b;
    if (b.kind == TYPE_identity && a.kind == TYPE_matrix && a.dim[0] == a.dim[1])
        return a;
    Type t = mismatch(c, e, e->kind == EXPR_add ? "'+' needs equal shapes"
                                                : "'-' needs equal shapes");
    if (a.kind == TYPE_scalar || b.kind == TYPE_scalar)
        diag_help(c->d, "the identity matrix is written I");
    return t;
}

static Type outer_type(Checker *c, Expr *e) {
    const Decl *rows = e->arg[0]->type.dim[0], *cols = e->arg[1]->type.dim[0];
    if (c->axis[0] && (!check_is_axis(c, rows) || !check_is_axis(c, cols)))
        return mismatch(c, e, "an outer product needs vectors over the state's axes");
    return (Type){TYPE_matrix, {rows, cols}};
}

/* Product of two operands of which none is a scalar. */
static Type type_product(Checker *c, Expr *e) {
    Type a = e->arg[0]->type, b = e->arg[1]->type;
    if (a.kind == TYPE_column && b.kind == TYPE_row)
        return outer_type(c, e);
    if (is_vector(a) && a.kind == b.kind) {
        mismatch(c, e, "'*' is the matrix product");
        diag_help(c->d, "elementwise: x .* y    outer product: x * y'    dot product: x' * y");
        return poison_type;
    }
    if (a.kind == TYPE_identity)
        return b.kind == TYPE_row ? mismatch(c, e, "a matrix times a row vector") : b;
    if (b.kind == TYPE_identity)
        return a.kind == TYPE_column ? mismatch(c, e, "a column vector times a matrix") : a;
    if (a.kind == TYPE_column || b.kind == TYPE_row)
        return mismatch(c, e, "these shapes cannot be multiplied");
    const Decl *inner = a.dim[a.kind == TYPE_matrix];
    if (inner != b.dim[0]) {
        mismatch(c, e, "inner sizes of '*' differ");
        if (a.kind == TYPE_matrix && a.dim[0] == b.dim[0])
            diag_help(c->d, "transpose the matrix: S' * x");
        return poison_type;
    }
    if (a.kind == TYPE_row)
        return b.kind == TYPE_column ? scalar_type : (Type){TYPE_row, {b.dim[1], NULL}};
    if (b.kind == TYPE_column)
        return (Type){TYPE_column, {a.dim[0], NULL}};
    return (Type){TYPE_matrix, {a.dim[0], b.dim[1]}};
}

static Type type_mul(Checker *c, Expr *e) {
    Type a = e->arg[0]->type, b = e->arg[1]->type;
    Type t = a.kind == TYPE_scalar ? b : b.kind == TYPE_scalar ? a : type_product(c, e);
    if (type_is_matrix(t) && e->arg[0]->state && e->arg[1]->state)
        return not_linear(c, e);
    return t;
}

static Type type_emul(Checker *c, Expr *e) {
    Type a = e->arg[0]->type, b = e->arg[1]->type;
    if ((a.kind == TYPE_scalar && type_is_matrix(b)) || (b.kind == TYPE_scalar && type_is_matrix(a)))
        return type_mul(c, e);
    if (type_is_matrix(a) && type_is_matrix(b) && !(e->arg[0]->state && e->arg[1]->state)) {
        mismatch(c, e, "there is no elementwise product of matrices");
        diag_help(c->d, "scale rows by diag(x) * S, columns by S * diag(y)");
        return poison_type;
    }
    return type_elementwise(c, e);
}

static Type type_div(Checker *c, Expr *e) {
    Type a = e->arg[0]->type, b = e->arg[1]->type;
    if (b.kind == TYPE_scalar && type_is_matrix(a))
        return e->arg[0]->state && e->arg[1]->state ? not_linear(c, e) : a;
    if (e->kind == EXPR_div && is_vector(b) && !type_is_matrix(a)) {
        mismatch(c, e, "'/' divides by a scalar");
        diag_help(c->d, "elementwise division is './'");
        return poison_type;
    }
    return type_elementwise(c, e);
}

static Type type_transpose(Type t) {
    switch (t.kind) {
    case TYPE_column: t.kind = TYPE_row; break;
    case TYPE_row: t.kind = TYPE_column; break;
    case TYPE_matrix: return (Type){TYPE_matrix, {t.dim[1], t.dim[0]}};
    default: break;
    }
    return t;
}

static Type type_index(Checker *c, Expr *e) {
    const Expr *base = e->arg[0], *at = e->arg[1];
    if (is_poison(base->type) || is_poison(at->type))
        return poison_type;
    if (!at->constant || at->type.kind != TYPE_scalar) {
        diag_error(c->d, at->span, "an index is a number, a loop variable or made of these");
        return poison_type;
    }
    if (base->type.kind == TYPE_table)
        return (Type){TYPE_column, {base->type.dim[1], NULL}};
    if (is_vector(base->type) && !check_is_axis(c, base->type.dim[0]))
        return scalar_type;
    diag_error(c->d, e->span, "cannot index %s", type_text(c, base->type));
    type_note_origin(c, base);
    diag_help(c->d, "only the axes that are not the state's are indexed: x[j] of x[n] or x[n, K]");
    return poison_type;
}

static Type type_time(Checker *c, Expr *e) {
    const Expr *x = e->arg[0];
    if (x->state) {
        diag_error(c->d, e->span, "%s of a value that depends on the state", e->name);
        diag_help(c->d, "%s takes values made of inputs", e->name);
        return poison_type;
    }
    if (!x->per_token) {
        diag_error(c->d, e->span, "%s of a value that is the same at every token", e->name);
        return poison_type;
    }
    return x->type;
}

static Type type_vector_call(Checker *c, Expr *e) {
    const Expr *x = e->arg[0];
    for (int i = 0; i < e->nargs; i++) {
        if (is_vector(e->arg[i]->type))
            continue;
        diag_error(c->d, e->arg[i]->span, "%s takes a vector, here %s", e->name,
                   type_text(c, e->arg[i]->type));
        if (e->fn == FN_diag && e->arg[i]->type.kind == TYPE_scalar)
            diag_help(c->d, "a scalar decay is written x * S");
        return poison_type;
    }
    if (e->fn == FN_dot)
        return is_poison(type_elementwise(c, e)) ? poison_type : scalar_type;
    if (e->fn == FN_sum)
        return scalar_type;
    if (fn_info[e->fn].class == FNCLASS_NORM)
        return x->type;
    if (x->type.kind == TYPE_row || (c->axis[0] && !check_is_axis(c, x->type.dim[0]))) {
        diag_error(c->d, x->span, "diag takes a column vector over one of the state's axes, here %s",
                   type_text(c, x->type));
        type_note_origin(c, x);
        return poison_type;
    }
    return (Type){TYPE_matrix, {x->type.dim[0], x->type.dim[0]}};
}

static Type unknown_function(Checker *c, Expr *e) {
    const char *known[FN_count];
    for (int i = 0; i < FN_count; i++)
        known[i] = fn_info[i].name;
    diag_error(c->d, e->op, "unknown function '%s'", e->name);
    const char *close = diag_closest(e->name, known, FN_count);
    if (close)
        diag_help(c->d, "did you mean '%s'?", close);
    return poison_type;
}

static Type type_call(Checker *c, Expr *e) {
    if (e->fn == FN_count)
        return unknown_function(c, e);
    const FnInfo *fn = &fn_info[e->fn];
    if (e->nargs != fn->nargs) {
        diag_error(c->d, e->span, "%s takes %d argument%s, here %d", fn->name, fn->nargs,
                   fn->nargs > 1 ? "s" : "", e->nargs);
        return poison_type;
    }
    for (int i = 0; i < e->nargs; i++)
        if (is_poison(e->arg[i]->type))
            return poison_type;
    if (fn->class == FNCLASS_REDUCE || fn->class == FNCLASS_NORM || fn->class == FNCLASS_DIAG)
        return type_vector_call(c, e);
    for (int i = 0; i < e->nargs; i++) {
        if (!type_is_matrix(e->arg[i]->type))
            continue;
        if (e->state)
            return not_linear(c, e);
        diag_error(c->d, e->arg[i]->span, "%s takes scalars and vectors, here %s", e->name,
                   type_text(c, e->arg[i]->type));
        return poison_type;
    }
    if (fn->class == FNCLASS_TIME)
        return type_time(c, e);
    return e->nargs == 2 ? type_elementwise(c, e) : e->arg[0]->type;
}

static Type type_name(Checker *c, Expr *e) {
    if (!strcmp(e->name, "I"))
        return (Type){.kind = TYPE_identity};
    if (fn_find(e->name) != FN_count) {
        diag_error(c->d, e->span, "'%s' is a function: write %s(...)", e->name, e->name);
        return poison_type;
    }
    const Decl *decl = check_name(c, e->name, e->span);
    if (decl->kind == DECL_out) {
        diag_error(c->d, e->span, "'%s' is an output", e->name);
        diag_help(c->d, "to use its value again, name it first: let x = ..., out %s = x", e->name);
        return poison_type;
    }
    e->decl = decl;
    e->constant = decl->constant;
    e->per_token = decl->per_token;
    e->state = decl->state;
    e->weight += decl->weight;
    return decl->type;
}

/* A table may only be indexed. */
static void refuse_table(Checker *c, Expr *arg) {
    if (arg->type.kind != TYPE_table)
        return;
    diag_error(c->d, arg->span, "'%s' is %s: %s vectors, to be taken one at a time", arg->name,
               type_text(c, arg->type), arg->type.dim[0]->name);
    diag_help(c->d, "index it: for j in %s { ... %s[j] ... }", arg->type.dim[0]->name, arg->name);
    arg->type = poison_type;
}

static Type type_operator(Checker *c, Expr *e) {
    for (int i = 0; i < e->nargs; i++)
        if (is_poison(e->arg[i]->type))
            return poison_type;
    switch (e->kind) {
    case EXPR_neg: return e->arg[0]->type;
    case EXPR_transpose: return type_transpose(e->arg[0]->type);
    case EXPR_add:
    case EXPR_sub: return type_sum(c, e);
    case EXPR_mul: return type_mul(c, e);
    case EXPR_emul: return type_emul(c, e);
    case EXPR_div:
    case EXPR_ediv: return type_div(c, e);
    default: return type_elementwise(c, e);
    }
}

static void type_node(Checker *c, Expr *e) {
    e->constant = true;
    e->weight = 1;
    for (int i = 0; i < e->nargs && i < 2; i++) {
        const Expr *arg = e->arg[i];
        type_node(c, e->arg[i]);
        if (!(e->kind == EXPR_index && i == 0))
            refuse_table(c, e->arg[i]);
        e->constant &= arg->constant;
        e->per_token |= arg->per_token;
        e->state |= arg->state;
        if (e->weight <= WEIGHT_MAX)
            e->weight += arg->weight;
    }
    switch (e->kind) {
    case EXPR_poison: e->type = poison_type; break;
    case EXPR_number: e->type = scalar_type; break;
    case EXPR_name: e->type = type_name(c, e); break;
    case EXPR_index: e->type = type_index(c, e); break;
    case EXPR_call: e->type = type_call(c, e); break;
    default: e->type = type_operator(c, e); break;
    }
    if (e->type.kind != TYPE_scalar)
        e->constant = false;
}

void type_expr(Checker *c, Expr *e) {
    type_node(c, e);
    refuse_table(c, e);
    if (e->weight > WEIGHT_MAX && !is_poison(e->type)) {
        diag_error(c->d, e->span, "this expression is too large");
        diag_help(c->d, "the matrices named in it are multiplied out: update the state in steps");
        e->type = poison_type;
    }
}
