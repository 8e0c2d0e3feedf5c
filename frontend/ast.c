/* Nodes of the syntax tree. Trees deeper than EXPR_DEPTH_MAX are cut off with a message, so that
 * every recursive walk is safe. */
#include "frontend/syntax.h"

#include <string.h>

const FnInfo fn_info[FN_count] = {
#define FUNCTION(name, nargs, class, doc) {#name, nargs, FNCLASS_##class, doc},
#include "frontend/functions.def"
#undef FUNCTION
};

Function fn_find(const char *name) {
    int i = 0;
    while (i < FN_count && strcmp(fn_info[i].name, name))
        i++;
    return (Function)i;
}

static Expr *new_expr(Parser *p, ExprKind kind, Span span) {
    Expr *e = NEW(p->file->arena, Expr);
    e->kind = kind;
    e->span = e->op = span;
    return e;
}

Expr *ast_number(Parser *p, Span span, double x) {
    Expr *e = new_expr(p, EXPR_number, span);
    e->number = x;
    return e;
}

Expr *ast_name(Parser *p, Span span, const char *name) {
    Expr *e = new_expr(p, EXPR_name, span);
    e->name = name;
    return e;
}

/* A child; one that is too deep is replaced. */
static void set_arg(Parser *p, Expr *e, int i, Expr *arg) {
    if (arg->depth >= EXPR_DEPTH_MAX) {
        if (!p->too_deep)
            diag_error(p->diag, arg->span, "this expression is too long: split it with let");
        p->too_deep = true;
        arg = new_expr(p, EXPR_poison, arg->span);
    }
    e->arg[i] = arg;
    if (e->depth <= arg->depth)
        e->depth = arg->depth + 1;
}

Expr *ast_unary(Parser *p, ExprKind kind, Span span, Span op, Expr *a) {
    Expr *e = new_expr(p, kind, span);
    e->op = op;
    e->nargs = 1;
    set_arg(p, e, 0, a);
    return e;
}

Expr *ast_binary(Parser *p, ExprKind kind, Span op, Expr *a, Expr *b) {
    Expr *e = new_expr(p, kind, span_join(a->span, b->span));
    e->op = op;
    e->nargs = 2;
    set_arg(p, e, 0, a);
    set_arg(p, e, 1, b);
    return e;
}

Expr *ast_call(Parser *p, Span name_span, const char *name) {
    Expr *e = new_expr(p, EXPR_call, name_span);
    e->name = name;
    e->fn = fn_find(name);
    return e;
}

/* Arguments beyond the second are counted for the message, not kept. */
void ast_call_add(Parser *p, Expr *call, Expr *arg) {
    if (call->nargs < 2)
        set_arg(p, call, call->nargs, arg);
    call->nargs++;
}

Decl *ast_decl(Parser *p, DeclKind kind, Span span, const char *name) {
    Decl *d = NEW(p->file->arena, Decl);
    d->kind = kind;
    d->span = d->name_span = span;
    d->name = name;
    return d;
}

void ast_decl_dim(Decl *decl, Span span, const char *name) {
    CHECK(decl->ndims < 3);
    decl->dim_name[decl->ndims] = name;
    decl->dim_span[decl->ndims++] = span;
}

Stmt *ast_stmt(Parser *p, StmtKind kind, Span span) {
    Stmt *s = NEW(p->file->arena, Stmt);
    s->kind = kind;
    s->span = span;
    return s;
}
