/* Shared by the lexer, the grammar and the node constructors only. */
#ifndef GDR_FRONTEND_SYNTAX_H
#define GDR_FRONTEND_SYNTAX_H

#include "frontend/frontend.h"

enum {
    NEST_MAX = 200,       /* parentheses and brackets */
    EXPR_DEPTH_MAX = 1000 /* levels of a syntax tree: every later walk recurses that deep at most */
};

typedef struct Parser {
    SpecFile *file;
    Diag *diag;
    const char *begin, *cursor, *limit;
    int nest;               /* open parentheses and brackets: newlines inside do not end a line */
    int last;               /* token returned last */
    int braces;             /* blocks opened as the lexer counts them ... */
    VEC(Span) open;         /* ... and as the grammar does: fewer after an error in a header */
    bool header;            /* between `variant` and its brace */
    bool outside_reported;  /* "outside a variant" is said once */
    bool too_deep;
} Parser;

union SPEC_YYSTYPE;
int spec_lex(Parser *p, union SPEC_YYSTYPE *value, Span *span);

Expr *ast_number(Parser *p, Span span, double x);
Expr *ast_name(Parser *p, Span span, const char *name);
Expr *ast_unary(Parser *p, ExprKind kind, Span span, Span op, Expr *a);
Expr *ast_binary(Parser *p, ExprKind kind, Span op, Expr *a, Expr *b);
Expr *ast_call(Parser *p, Span name_span, const char *name);
void ast_call_add(Parser *p, Expr *call, Expr *arg);
Decl *ast_decl(Parser *p, DeclKind kind, Span span, const char *name);
void ast_decl_dim(Decl *decl, Span span, const char *name);
Stmt *ast_stmt(Parser *p, StmtKind kind, Span span);

#endif
