/* The grammar of specs. A push parser: the loop in spec_parse owns it, so that running out of
 * memory in an action frees it. Recovery is by line: a mistake costs its statement, no more.
 */
%define api.pure full
%define api.push-pull push
%define api.prefix {spec_yy}
%define api.value.type union
%define api.token.prefix {TOK_}
%define api.location.type {Span}
%define parse.error custom
%define parse.lac full
%locations
%expect 0
%parse-param {Parser *p}

%code requires {
#include "frontend/syntax.h"
}

%code top {
#include "frontend/syntax.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define YYMAXDEPTH 4000
#define YYLLOC_DEFAULT(cur, rhs, n)                                                                \
    ((cur) = (n) ? (Span){YYRHSLOC(rhs, 1).lo, YYRHSLOC(rhs, n).hi}                                \
                 : (Span){YYRHSLOC(rhs, 0).hi, YYRHSLOC(rhs, 0).hi})
}

%code {
static void spec_yyerror(Span *span, Parser *p, const char *message);
static Stmt *begin_list(Parser *p, StmtKind kind, Decl *decl);
static void set_kind(Stmt *stmt, StmtKind kind, DeclKind decl, Span span);
static void add_range(Parser *p, Decl *decl, RangeKind kind, Span span, Expr *lo, Expr *hi);
}

%token VARIANT "'variant'" DIM "'dim'" CONST "'const'" IN "'in'" PARAM "'param'" LET "'let'"
%token STATE "'state'" OUT "'out'" FOR "'for'"
%token SEP "end of line" END 0 "end of file"
%token <const char *> IDENT "a name"
%token <double> NUMBER "a number"
%token LE "'<='" GE "'>='" OPEQ "an assignment with an operator"
%token EMUL "'.*'" EDIV "'./'" EPOW "'.^'"

%left '+' '-'
%left '*' EMUL '/' EDIV
%precedence NEG
%right '^' EPOW
%precedence '\'' '['

%type <Expr *> expr args
%type <Decl *> dim const port name axes axis
%type <Stmt *> stmt dims consts ports block
%type <Stmt *> lines

%%

file: items ;

items:
    %empty
  | items SEP
  | items variant
  | items error SEP                 { yyerrok; }
  ;

variant:
    VARIANT IDENT block {
        Variant *v = NEW(p->file->arena, Variant);
        v->name = $2;
        v->span = @$;
        v->name_span = @2;
        v->open = $3->open;
        v->close = (Span){@3.hi - 1, @3.hi};
        for (int i = 0; i < $3->body.count; i++)
            VEC_PUSH(p->file->arena, &v->stmt, $3->body.at[i]);
        VEC_PUSH(p->file->arena, &p->file->variant, v);
    }
  | VARIANT block                   { diag_error(p->diag, @1, "a variant needs a name"); }
  | VARIANT error block             { yyerrok; }
  ;

block:
    '{'                             { VEC_PUSH(p->file->arena, &p->open, @1); }
    lines '}'                       { p->open.count--; $$ = $3; $$->open = @1.hi; }
  ;

lines:
    %empty                          { $$ = ast_stmt(p, STMT_for, @$); }
  | lines SEP                       { $$ = $1; }
  | lines stmt SEP {
        $$ = $1;
        if ($2)
            VEC_PUSH(p->file->arena, &$$->body, $2);
    }
  | lines error SEP                 { $$ = $1; yyerrok; }
  ;

stmt:
    DIM dims                        { $$ = $2; set_kind($$, STMT_dim, DECL_dim, @$); }
  | CONST consts                    { $$ = $2; set_kind($$, STMT_const, DECL_const, @$); }
  | IN ports                        { $$ = $2; set_kind($$, STMT_in, DECL_in, @$); }
  | PARAM ports                     { $$ = $2; set_kind($$, STMT_param, DECL_param, @$); }
  | LET name '=' expr {
        if ($2->ndims) {
            diag_error(p->diag, $2->span, "a let takes no shape");
            diag_help(p->diag, "its shape follows from the expression: let %s = ...", $2->name);
        }
        $2->value = $4;
        $$ = begin_list(p, STMT_let, $2);
        set_kind($$, STMT_let, DECL_let, @$);
    }
  | STATE name                      { $$ = begin_list(p, STMT_state, $2);
                                      set_kind($$, STMT_state, DECL_state, @$); }
  | OUT name '=' expr {
        $2->value = $4;
        $$ = begin_list(p, STMT_out, $2);
        set_kind($$, STMT_out, DECL_out, @$);
    }
  | name '=' expr {
        if ($1->ndims) {
            diag_error(p->diag, $1->span, "one cannot assign to an element");
            diag_help(p->diag, "assign to the whole state: %s = ...", $1->name);
        }
        $$ = ast_stmt(p, STMT_update, @$);
        $$->name = $1->name;
        $$->name_span = $1->name_span;
        $$->value = $3;
    }
  | name OPEQ expr {
        char op = p->file->source->text[@2.lo];
        diag_error(p->diag, @2, "there is no '%c='", op);
        diag_help(p->diag, "write %s = %s %c ...", $1->name, $1->name, op);
        $$ = NULL;
    }
  | FOR IDENT IN IDENT block {
        $$ = $5;
        $$->span = @$;
        $$->name = $4;
        $$->name_span = @4;
        VEC_PUSH(p->file->arena, &$$->decl, ast_decl(p, DECL_loop, @2, $2));
    }
  | FOR IDENT IN NUMBER block {
        diag_error(p->diag, @4, "a loop runs over a dim");
        diag_help(p->diag, "declare one: dim n = ..., then: for %s in n { ... }", $2);
        $$ = NULL;
    }
  ;

name:
    IDENT                           { $$ = ast_decl(p, DECL_let, @1, $1); }
  | IDENT '[' axes ']' {
        $$ = $3;
        $$->name = $1;
        $$->name_span = @1;
        $$->span = @$;
    }
  ;

axes:
    axis
  | axes ',' axis {
        $$ = $1;
        if ($1->ndims == 3)
            diag_error(p->diag, @3, "too many axes");
        else if ($3->ndims)
            ast_decl_dim($1, @3, $3->dim_name[0]);
    }
  ;

axis:
    IDENT                           { $$ = ast_decl(p, DECL_let, @1, $1);
                                      ast_decl_dim($$, @1, $1); }
  | NUMBER {
        diag_error(p->diag, @1, "a shape names a dim");
        diag_help(p->diag, "declare it: dim K = %g, then use K", $1);
        $$ = ast_decl(p, DECL_let, @1, "");
    }
  ;

dims:
    dim                             { $$ = begin_list(p, STMT_dim, $1); }
  | dims ',' dim                    { $$ = $1; VEC_PUSH(p->file->arena, &$$->decl, $3); }
  ;

dim:
    IDENT '=' expr                  { $$ = ast_decl(p, DECL_dim, @1, $1); $$->value = $3; }
  | IDENT {
        diag_error(p->diag, @1, "dim '%s' needs a default size", $1);
        diag_help(p->diag, "write dim %s = 128; a caller may choose another", $1);
        $$ = ast_decl(p, DECL_dim, @1, $1);
        $$->value = ast_number(p, @1, 1);
    }
  ;

consts:
    const                           { $$ = begin_list(p, STMT_const, $1); }
  | consts ',' const                { $$ = $1; VEC_PUSH(p->file->arena, &$$->decl, $3); }
  ;

const:
    IDENT '=' expr                  { $$ = ast_decl(p, DECL_const, @1, $1); $$->value = $3; }
  ;

ports:
    port                            { $$ = begin_list(p, STMT_in, $1); }
  | ports ',' port                  { $$ = $1; VEC_PUSH(p->file->arena, &$$->decl, $3); }
  ;

port:
    name
  | port LE expr                    { $$ = $1; add_range(p, $1, RANGE_le, @$, NULL, $3); }
  | port GE expr                    { $$ = $1; add_range(p, $1, RANGE_ge, @$, $3, NULL); }
  | port IN '[' expr ',' expr ']'   { $$ = $1; add_range(p, $1, RANGE_in, @$, $4, $6); }
  | port '<' expr                   { $$ = $1; diag_error(p->diag, @2, "ranges are closed: write '<='"); }
  | port '>' expr                   { $$ = $1; diag_error(p->diag, @2, "ranges are closed: write '>='"); }
  | port '=' expr {
        $$ = $1;
        diag_error(p->diag, @2, "an input has no value of its own");
        diag_help(p->diag, "a compile-time number is: const %s = ...", $1->name);
    }
  ;

expr:
    NUMBER                          { $$ = ast_number(p, @$, $1); }
  | IDENT                           { $$ = ast_name(p, @$, $1); }
  | IDENT '(' args ')'              { $$ = $3; $$->name = $1; $$->op = @1; $$->span = @$;
                                      $$->fn = fn_find($1); }
  | IDENT '(' ')'                   { $$ = ast_call(p, @1, $1); $$->span = @$; }
  | '(' expr ')'                    { $$ = $2; $$->parens = true; $$->span = @$; }
  | '-' expr  %prec NEG             { $$ = ast_unary(p, EXPR_neg, @$, @1, $2); }
  | expr '\''                       { $$ = ast_unary(p, EXPR_transpose, @$, @2, $1); }
  | expr '[' expr ']'               { $$ = ast_binary(p, EXPR_index, @2, $1, $3); $$->span = @$; }
  | expr '+' expr                   { $$ = ast_binary(p, EXPR_add, @2, $1, $3); }
  | expr '-' expr                   { $$ = ast_binary(p, EXPR_sub, @2, $1, $3); }
  | expr '*' expr                   { $$ = ast_binary(p, EXPR_mul, @2, $1, $3); }
  | expr EMUL expr                  { $$ = ast_binary(p, EXPR_emul, @2, $1, $3); }
  | expr '/' expr                   { $$ = ast_binary(p, EXPR_div, @2, $1, $3); }
  | expr EDIV expr                  { $$ = ast_binary(p, EXPR_ediv, @2, $1, $3); }
  | expr '^' expr                   { $$ = ast_binary(p, EXPR_pow, @2, $1, $3); }
  | expr EPOW expr                  { $$ = ast_binary(p, EXPR_epow, @2, $1, $3); }
  ;

args:
    expr                            { $$ = ast_call(p, @1, ""); ast_call_add(p, $$, $1); }
  | args ',' expr                   { $$ = $1; ast_call_add(p, $$, $3); }
  ;

%%

static Stmt *begin_list(Parser *p, StmtKind kind, Decl *decl) {
    Stmt *stmt = ast_stmt(p, kind, decl->span);
    VEC_PUSH(p->file->arena, &stmt->decl, decl);
    return stmt;
}

static void set_kind(Stmt *stmt, StmtKind kind, DeclKind decl, Span span) {
    stmt->kind = kind;
    stmt->span = span;
    for (int i = 0; i < stmt->decl.count; i++)
        stmt->decl.at[i]->kind = decl;
}

static void add_range(Parser *p, Decl *decl, RangeKind kind, Span span, Expr *lo, Expr *hi) {
    /* The span of the range alone: from the end of the name, less the space between. */
    Span s = {decl->range.count ? decl->range.at[decl->range.count - 1].span.hi : decl->span.hi,
              span.hi};
    while (s.lo < s.hi && p->begin[s.lo] == ' ')
        s.lo++;
    RangeClause r = {kind, s, lo, hi};
    VEC_PUSH(p->file->arena, &decl->range, r);
}

static void spec_yyerror(Span *span, Parser *p, const char *message) {
    /* Syntax errors go through yyreport_syntax_error; what is left is a full parser stack. */
    (void)message;
    p->too_deep = true;
    diag_error(p->diag, *span, "this nests too deeply");
}

static bool has(const yysymbol_kind_t *set, int n, yysymbol_kind_t k) {
    for (int i = 0; i < n; i++)
        if (set[i] == k)
            return true;
    return false;
}

/* What could have followed, in few words; the empty string when that would not help. */
static void describe_expected(Buf *out, const yysymbol_kind_t *set, int n) {
    if (has(set, n, YYSYMBOL_IDENT) && has(set, n, YYSYMBOL_NUMBER)) {
        buf_puts(out, ", expected an expression");
        return;
    }
    if (has(set, n, YYSYMBOL_EMUL)) { /* an expression is complete: brackets matter, operators not */
        bool paren = false, bracket = false;
        for (int i = 0; i < n; i++) {
            paren |= !strcmp(yysymbol_name(set[i]), "')'");
            bracket |= !strcmp(yysymbol_name(set[i]), "']'");
        }
        buf_puts(out, paren     ? ", expected ')' or an operator"
                      : bracket ? ", expected ']' or an operator"
                                : ", expected an operator or the end of the line");
        return;
    }
    if (n > 5)
        return;
    for (int i = 0; i < n; i++)
        buf_printf(out, "%s%s", !i ? ", expected " : i + 1 < n ? ", " : " or ",
                   yysymbol_name(set[i]));
}

static bool is_statement(yysymbol_kind_t k) {
    return (k >= YYSYMBOL_DIM && k <= YYSYMBOL_FOR) || k == YYSYMBOL_IDENT;
}

/* True when the mistake is one that deserves its own words. */
static bool report_special(Parser *p, yysymbol_kind_t token, Span at) {
    if (token == YYSYMBOL_YYEOF && p->open.count) {
        diag_error(p->diag, at, "the file ends inside a block: '}' is missing");
        diag_note(p->diag, p->open.at[p->open.count - 1], "the block begins here");
        return true;
    }
    if (token == YYSYMBOL_VARIANT && p->open.count) {
        diag_error(p->diag, at, "a variant inside a block: is a '}' missing before it?");
        diag_note(p->diag, p->open.at[p->open.count - 1], "the block begins here");
        return true;
    }
    if (!p->open.count && is_statement(token) && !p->header) {
        if (!p->outside_reported) {
            diag_error(p->diag, at, "a statement outside a variant");
            diag_help(p->diag, "wrap the equations in: variant NAME { ... }");
        }
        p->outside_reported = true;
        return true;
    }
    return false;
}

static int yyreport_syntax_error(const yypcontext_t *context, Parser *p) {
    yysymbol_kind_t expected[YYNTOKENS];
    yysymbol_kind_t token = yypcontext_token(context);
    Span at = *yypcontext_location(context);
    if (token == YYSYMBOL_YYEMPTY || report_special(p, token, at))
        return 0;
    int n = yypcontext_expected_tokens(context, expected, YYNTOKENS);
    Buf what;
    buf_init(&what, p->file->arena);
    bool one_char = at.hi == at.lo + 1 && p->begin[at.lo] > ' ';
    if (token == YYSYMBOL_IDENT || token == YYSYMBOL_NUMBER || one_char)
        buf_printf(&what, "unexpected '%.*s'", (int)(at.hi - at.lo), p->begin + at.lo);
    else
        buf_printf(&what, "unexpected %s", yysymbol_name(token));
    describe_expected(&what, expected, n > 0 ? n : 0);
    diag_error(p->diag, at, "%s", what.text);
    return 0;
}

/* Feed the parser until it has seen the whole file. The parser's stacks are malloc'd, so running
 * out of arena memory passes through here to free them. */
static void run(Parser *p) {
    Arena *arena = p->file->arena;
    jmp_buf *outer = arena->oom, here;
    spec_yypstate *state = spec_yypstate_new();
    if (!state)
        arena_array(arena, SIZE_MAX, 2); /* runs out of memory by the arena's rules */
    arena->oom = &here;
    if (setjmp(here)) {
        arena->oom = outer;
        spec_yypstate_delete(state);
        arena_array(arena, SIZE_MAX, 2);
    }
    int status;
    do {
        SPEC_YYSTYPE value = {0};
        Span span = {0, 0};
        int token = spec_lex(p, &value, &span);
        p->header = token == '{' ? false : token == TOK_VARIANT ? true : p->header;
        status = spec_yypush_parse(state, token, &value, &span, p);
    } while (status == YYPUSH_MORE);
    arena->oom = outer;
    spec_yypstate_delete(state);
}

SpecFile *spec_parse(Arena *arena, Interner *names, const Source *source, Diag *d) {
    SpecFile *f = NEW(arena, SpecFile);
    f->arena = arena;
    f->names = names;
    f->source = source;
    Parser p = {.file = f, .diag = d, .begin = source->text, .cursor = source->text,
                .limit = source->text + source->len, .last = TOK_SEP};
    int before = d->errors;
    run(&p);
    if (d->errors == before && !f->variant.count) {
        diag_error(d, (Span){0, 0}, "there is no variant in this file");
        diag_help(d, "a spec is: variant NAME { dim ... in ... state ... out ... }");
    }
    f->syntax_ok = d->errors == before;
    return f;
}
