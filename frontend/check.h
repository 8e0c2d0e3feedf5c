/* Shared by check.c (names, declarations, statements) and type.c (expressions) only. */
#ifndef GDR_FRONTEND_CHECK_H
#define GDR_FRONTEND_CHECK_H

#include "frontend/frontend.h"

typedef struct Checker {
    Arena *arena;
    Interner *names;
    Diag *d;
    Variant *v;
    const Decl *axis[2];    /* of the state; NULL when it is missing or broken */
    VEC(Decl *) scope;      /* visible names, innermost last */
    int loops;              /* open loops */
} Checker;

/* The declaration a name refers to; after an error a poisoned one. */
Decl *check_name(Checker *c, const char *name, Span span);
bool check_is_axis(const Checker *c, const Decl *dim);

/* Types `e` and everything below it. */
void type_expr(Checker *c, Expr *e);
bool type_same(Type a, Type b);
/* "[K]", "[K]'" (a row), "[K, V]", "a scalar" */
const char *type_text(const Checker *c, Type t);
/* Notes where the names that gave `e` its shape were declared. */
void type_note_origin(Checker *c, const Expr *e);

#endif
