/* `gdrc fmt`: one statement a line, four spaces a block, one blank line at most between statements,
 * comments kept. Parentheses stay as written. A line beyond 100 columns is broken after its
 * top-level `+` and `-`. Comments at the end of neighbouring lines are aligned.
 *
 * Output goes through an array of lines, since alignment looks at several at once. A comment inside
 * a statement that spans lines moves in front of it.
 */
#include "frontend/frontend.h"

#include <string.h>

enum { INDENT = 4, WIDTH = 100 };

typedef struct Line {
    int indent;
    const char *text;       /* "" for a blank line */
    const char *comment;    /* at the end of the line, or NULL */
} Line;

typedef struct Formatter {
    Arena *arena;
    const SpecFile *f;
    int next_comment;
    uint32_t last;          /* offset up to which the source has been written */
    int indent;
    VEC(Line) line;
} Formatter;

/* expressions ---------------------------------------------------------------------------------- */

static const char *const op_text[] = {
    [EXPR_add] = " + ",  [EXPR_sub] = " - ",  [EXPR_mul] = " * ", [EXPR_emul] = " .* ",
    [EXPR_div] = " / ",  [EXPR_ediv] = " ./ ", [EXPR_pow] = "^",   [EXPR_epow] = ".^",
};

static void put_span(Formatter *w, Buf *b, Span s) {
    buf_put(b, w->f->source->text + s.lo, s.hi - s.lo);
}

static void put_expr(Formatter *w, Buf *b, const Expr *e);

static void put_args(Formatter *w, Buf *b, const Expr *e) {
    for (int i = 0; i < e->nargs && i < 2; i++) {
        if (i)
            buf_puts(b, ", ");
        put_expr(w, b, e->arg[i]);
    }
}

static void put_bare(Formatter *w, Buf *b, const Expr *e) {
    switch (e->kind) {
    case EXPR_poison: break;
    case EXPR_number: put_span(w, b, e->op); break; /* as it was written */
    case EXPR_name: buf_puts(b, e->name); break;
    case EXPR_neg:
        buf_puts(b, "-");
        put_expr(w, b, e->arg[0]);
        break;
    case EXPR_transpose:
        put_expr(w, b, e->arg[0]);
        buf_puts(b, "'");
        break;
    case EXPR_index:
        put_expr(w, b, e->arg[0]);
        buf_puts(b, "[");
        put_expr(w, b, e->arg[1]);
        buf_puts(b, "]");
        break;
    case EXPR_call:
        buf_puts(b, e->name);
        buf_puts(b, "(");
        put_args(w, b, e);
        buf_puts(b, ")");
        break;
    default:
        put_expr(w, b, e->arg[0]);
        buf_puts(b, op_text[e->kind]);
        put_expr(w, b, e->arg[1]);
    }
}

static void put_expr(Formatter *w, Buf *b, const Expr *e) {
    if (e->parens)
        buf_puts(b, "(");
    put_bare(w, b, e);
    if (e->parens)
        buf_puts(b, ")");
}

/* lines ---------------------------------------------------------------------------------------- */

static void put_line(Formatter *w, int indent, const char *text) {
    VEC_PUSH(w->arena, &w->line, ((Line){indent, text, NULL}));
}

static int newlines(const Formatter *w, uint32_t lo, uint32_t hi) {
    int n = 0;
    for (uint32_t i = lo; i < hi; i++)
        n += w->f->source->text[i] == '\n';
    return n;
}

/* A blank line where the source has at least one between the last thing written and `lo`, but not
 * at the start of a block or of the file. */
static void separate(Formatter *w, uint32_t lo) {
    const Line *last = w->line.count ? &w->line.at[w->line.count - 1] : NULL;
    size_t len = last ? strlen(last->text) : 0;
    bool opens = len && last->text[len - 1] == '{';
    if (last && len && !opens && newlines(w, w->last, lo) > 1)
        put_line(w, 0, "");
}

static const char *comment_text(const Formatter *w, Span s) {
    return arena_strndup(w->arena, w->f->source->text + s.lo, s.hi - s.lo);
}

/* Comments that begin before `limit`, each on a line of its own. */
static void put_comments(Formatter *w, uint32_t limit) {
    for (; w->next_comment < w->f->comment.count; w->next_comment++) {
        Span s = w->f->comment.at[w->next_comment];
        if (s.lo >= limit)
            return;
        separate(w, s.lo);
        put_line(w, w->indent, comment_text(w, s));
        w->last = s.hi;
    }
}

/* A comment on the line where the statement ends goes to the end of the last line written. */
static void end_comment(Formatter *w, uint32_t hi) {
    w->last = hi;
    if (w->next_comment >= w->f->comment.count)
        return;
    Span s = w->f->comment.at[w->next_comment];
    for (uint32_t i = hi; i < s.lo; i++)
        if (!strchr(" \t\r;", w->f->source->text[i]))
            return;
    if (s.lo < hi)
        return;
    w->line.at[w->line.count - 1].comment = comment_text(w, s);
    w->next_comment++;
    w->last = s.hi;
}

/* The head of a statement and an expression, broken after top-level + and - when too long. */
static void put_assignment(Formatter *w, Buf *head, const Expr *e) {
    Buf whole;
    buf_init(&whole, w->arena);
    buf_put(&whole, head->text, head->len);
    put_expr(w, &whole, e);
    if (w->indent + whole.len <= WIDTH || e->parens ||
        (e->kind != EXPR_add && e->kind != EXPR_sub)) {
        put_line(w, w->indent, whole.text);
        return;
    }
    VEC(const Expr *) sum = {0}; /* innermost last */
    while (!e->parens && (e->kind == EXPR_add || e->kind == EXPR_sub)) {
        VEC_PUSH(w->arena, &sum, e);
        e = e->arg[0];
    }
    put_expr(w, head, e);
    for (int i = sum.count - 1; i >= 0; i--) {
        buf_puts(head, sum.at[i]->kind == EXPR_add ? " +" : " -");
        put_line(w, w->indent + (i < sum.count - 1 ? INDENT : 0), head->text);
        buf_init(head, w->arena);
        put_expr(w, head, sum.at[i]->arg[1]);
    }
    put_line(w, w->indent + INDENT, head->text);
}

/* statements ----------------------------------------------------------------------------------- */

static void put_shape(Buf *b, const Decl *decl) {
    buf_puts(b, decl->name);
    for (int i = 0; i < decl->ndims; i++)
        buf_printf(b, "%s%s", i ? ", " : "[", decl->dim_name[i]);
    if (decl->ndims)
        buf_puts(b, "]");
}

static void put_decl(Formatter *w, Buf *b, const Decl *decl) {
    put_shape(b, decl);
    for (int i = 0; i < decl->range.count; i++) {
        const RangeClause *r = &decl->range.at[i];
        buf_puts(b, r->kind == RANGE_le ? " <= " : r->kind == RANGE_ge ? " >= " : " in [");
        put_expr(w, b, r->kind == RANGE_le ? r->hi : r->lo);
        if (r->kind == RANGE_in) {
            buf_puts(b, ", ");
            put_expr(w, b, r->hi);
            buf_puts(b, "]");
        }
    }
    if (decl->kind == DECL_dim || decl->kind == DECL_const) {
        buf_puts(b, " = ");
        put_expr(w, b, decl->value);
    }
}

/* dim, const, in, param: a list, continued on a new line after a comma when too long. */
static void put_list(Formatter *w, Buf *head, const Stmt *s) {
    for (int i = 0; i < s->decl.count; i++) {
        Buf item;
        buf_init(&item, w->arena);
        put_decl(w, &item, s->decl.at[i]);
        bool more = i + 1 < s->decl.count;
        if (i && w->indent + head->len + item.len + 2 > WIDTH) {
            put_line(w, w->indent, head->text);
            buf_init(head, w->arena);
            buf_puts(head, "    ");
        } else if (i) {
            buf_puts(head, " ");
        }
        buf_printf(head, "%s%s", item.text, more ? "," : "");
    }
    put_line(w, w->indent, head->text);
}

static void put_block(Formatter *w, Stmt *const *stmt, int count, uint32_t close);

static void put_stmt(Formatter *w, const Stmt *s) {
    static const char *const keyword[] = {
        [STMT_dim] = "dim ",   [STMT_const] = "const ", [STMT_in] = "in ",   [STMT_param] = "param ",
        [STMT_let] = "let ",   [STMT_state] = "state ", [STMT_out] = "out ", [STMT_update] = "",
        [STMT_for] = "for ",
    };
    Buf head;
    buf_init(&head, w->arena);
    buf_puts(&head, keyword[s->kind]);
    put_comments(w, s->kind == STMT_for ? s->name_span.lo : s->span.hi);
    separate(w, s->span.lo);
    switch (s->kind) {
    case STMT_dim:
    case STMT_const:
    case STMT_in:
    case STMT_param:
    case STMT_state: put_list(w, &head, s); break;
    case STMT_let:
    case STMT_out:
        put_shape(&head, s->decl.at[0]);
        buf_puts(&head, " = ");
        put_assignment(w, &head, s->decl.at[0]->value);
        break;
    case STMT_update:
        buf_printf(&head, "%s = ", s->name);
        put_assignment(w, &head, s->value);
        break;
    case STMT_for:
        buf_printf(&head, "%s in %s {", s->decl.at[0]->name, s->name);
        put_line(w, w->indent, head.text);
        end_comment(w, s->open);
        put_block(w, s->body.at, s->body.count, s->span.hi - 1);
        break;
    }
    end_comment(w, s->span.hi);
}

/* Statements, the comments after the last one, and the closing brace. */
static void put_block(Formatter *w, Stmt *const *stmt, int count, uint32_t close) {
    w->indent += INDENT;
    for (int i = 0; i < count; i++)
        put_stmt(w, stmt[i]);
    put_comments(w, close);
    w->indent -= INDENT;
    put_line(w, w->indent, "}");
}

static void put_variant(Formatter *w, const Variant *v) {
    Buf head;
    buf_init(&head, w->arena);
    put_comments(w, v->name_span.hi);
    separate(w, v->span.lo);
    buf_printf(&head, "variant %s {", v->name);
    put_line(w, 0, head.text);
    end_comment(w, v->open);
    put_block(w, v->stmt.at, v->stmt.count, v->close.lo);
    end_comment(w, v->span.hi);
}

/* output --------------------------------------------------------------------------------------- */

static size_t columns(const Line *l) {
    size_t n = (size_t)l->indent;
    for (const char *s = l->text; *s; s++)
        n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

/* Neighbouring lines of one block, both with a comment at the end. */
static bool aligned(const Line *a, const Line *b) {
    return a->comment && b->comment && a->indent == b->indent;
}

/* The column of the end comments of the run of aligned lines that begins at `first`. */
static size_t comment_column(const Formatter *w, int first) {
    size_t most = 0;
    for (int i = first;
         i < w->line.count && (i == first || aligned(&w->line.at[i - 1], &w->line.at[i])); i++) {
        size_t n = columns(&w->line.at[i]);
        most = n > most ? n : most;
    }
    return most + INDENT;
}

void spec_format(const SpecFile *f, Buf *out) {
    Formatter w = {.arena = out->arena, .f = f};
    size_t column = 0;
    for (int i = 0; i < f->variant.count; i++)
        put_variant(&w, f->variant.at[i]);
    put_comments(&w, UINT32_MAX);
    for (int i = 0; i < w.line.count; i++) {
        const Line *l = &w.line.at[i];
        if (l->comment && !(i && aligned(l - 1, l)))
            column = comment_column(&w, i);
        if (*l->text)
            buf_printf(out, "%*s%s", l->indent, "", l->text);
        if (l->comment)
            buf_printf(out, "%*s%s", (int)(column - columns(l)), "", l->comment);
        buf_puts(out, "\n");
    }
}
