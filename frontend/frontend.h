/* frontend: from the text of a spec to a recurrence.
 *
 *   lexer.re, parser.y  text -> syntax tree      ast.c        nodes
 *   check.c, type.c     names, shapes, linearity format.c     syntax tree -> canonical text
 *   bind.c              sizes, constants, ranges
 *   lower.c, algebra.c  syntax tree -> ordered list of decays, reads, updates, outs (ir.h)
 *   reference.c         the fp64 meaning of a spec, token by token, from the syntax tree alone
 *   reference_grad.c, tape.c  its gradient, likewise
 *
 * The order of calls: spec_parse, spec_check, then spec_lower or reference_run as often as wanted.
 */
#ifndef GDR_FRONTEND_H
#define GDR_FRONTEND_H

#include "base/base.h"
#include "ir/ir.h"

/* syntax tree ---------------------------------------------------------------------------------- */

typedef struct Expr Expr;
typedef struct Decl Decl;
typedef struct Stmt Stmt;

typedef enum {
    EXPR_poison,    /* stands for a mistake already reported */
    EXPR_number,
    EXPR_name,
    EXPR_index,     /* arg[0] [ arg[1] ] */
    EXPR_neg,
    EXPR_transpose,
    EXPR_add,
    EXPR_sub,
    EXPR_mul,       /* matrix or scalar product */
    EXPR_emul,      /* .* */
    EXPR_div,
    EXPR_ediv,      /* ./ */
    EXPR_pow,
    EXPR_epow,      /* .^ */
    EXPR_call
} ExprKind;

typedef enum {
#define FUNCTION(name, nargs, class, doc) FN_##name,
#include "frontend/functions.def"
#undef FUNCTION
    FN_count
} Function;

typedef enum { FNCLASS_MAP, FNCLASS_REDUCE, FNCLASS_NORM, FNCLASS_TIME, FNCLASS_DIAG } FnClass;
typedef struct FnInfo { const char *name; int nargs; FnClass class; const char *doc; } FnInfo;
extern const FnInfo fn_info[FN_count];
Function fn_find(const char *name); /* FN_count if there is none */

typedef enum {
    TYPE_poison,
    TYPE_scalar,
    TYPE_column,    /* dim[0] */
    TYPE_row,       /* dim[0] */
    TYPE_matrix,    /* dim[0] rows, dim[1] columns */
    TYPE_identity,  /* a multiple of I: square, its size follows from the place */
    TYPE_table      /* an input [n, K]: n vectors; only to be indexed */
} TypeKind;
typedef struct Type { TypeKind kind; const Decl *dim[2]; } Type;

struct Expr {
    ExprKind kind;
    Span span;
    Span op;            /* the operator or the function's name, for carets */
    bool parens;        /* written in parentheses; kept by the formatter */
    int depth;
    double number;
    const char *name;   /* name and call */
    Function fn;
    int nargs;
    Expr *arg[2];
    /* filled by spec_check */
    Type type;
    const Decl *decl;   /* name: what it refers to; NULL for I */
    bool constant;      /* of numbers, dims, consts and loop variables only */
    bool per_token;     /* depends on an input */
    bool state;         /* depends on the state */
    int weight;         /* nodes when the matrices named in it are written out */
};

typedef enum {
    DECL_dim, DECL_const, DECL_in, DECL_param, DECL_let, DECL_state, DECL_out, DECL_loop
} DeclKind;

typedef enum { RANGE_le, RANGE_ge, RANGE_in } RangeKind;
typedef struct RangeClause { RangeKind kind; Span span; Expr *lo, *hi; } RangeClause;

struct Decl {
    DeclKind kind;
    Span span;          /* of the name and its shape */
    Span name_span;
    const char *name;
    int ndims;          /* declared shape, as written ... */
    const char *dim_name[3];
    Span dim_span[3];
    VEC(RangeClause) range;
    Expr *value;        /* dim, const, let, out */
    /* filled by spec_check */
    Decl *dim[3];       /* ... and as resolved */
    Type type;
    int slot;           /* number within the variant, for tables of values */
    int port;           /* in, param, out: number among the kernel's inputs or outputs */
    bool constant, per_token, state; /* let: as its value */
    bool used;
    int weight;         /* let of a matrix: as its value */
};

typedef enum {
    STMT_dim, STMT_const, STMT_in, STMT_param, STMT_let, STMT_state, STMT_out, STMT_update, STMT_for
} StmtKind;

struct Stmt {
    StmtKind kind;
    Span span;
    VEC(Decl *) decl;   /* what it declares; for: the loop variable */
    const char *name;   /* update: the state; for: the dim */
    Span name_span;
    Expr *value;        /* update */
    uint32_t open;      /* for: offset behind the opening brace */
    VEC(Stmt *) body;   /* for */
    const Decl *target; /* update: the state; for: the dim. Filled by spec_check */
};

typedef struct Variant {
    const char *name;
    Span span, name_span, close; /* close: the brace at the end */
    uint32_t open;      /* offset behind the opening brace */
    VEC(Stmt *) stmt;
    /* filled by spec_check */
    VEC(Decl *) decl;   /* all of them by slot */
    const Decl *state;
    int nports;         /* inputs and params */
    int nouts;
} Variant;

typedef struct SpecFile {
    Arena *arena;
    Interner *names;
    const Source *source;
    VEC(Variant *) variant;
    VEC(Span) comment;  /* in order, without the line's end */
    bool syntax_ok;     /* no syntax error: may be checked and formatted */
    bool checked;       /* spec_check succeeded: may be lowered and run */
} SpecFile;

/* lexer.re, parser.y --------------------------------------------------------------------------- */

/* Never NULL. After a syntax error the tree holds what could be read and syntax_ok is false. */
SpecFile *spec_parse(Arena *arena, Interner *names, const Source *source, Diag *d);
/* The variant called `name`, or the only one when name is NULL; otherwise NULL and a message. */
const Variant *spec_variant(const SpecFile *f, const char *name, Diag *d);

/* check.c, type.c ------------------------------------------------------------------------------ */

/* Names, shapes, ranges, linearity in the state, with default sizes. One mistake, one message. */
bool spec_check(SpecFile *f, Diag *d);

/* format.c ------------------------------------------------------------------------------------- */

/* Canonical text: one statement a line, comments and order kept. Needs syntax_ok only. */
void spec_format(const SpecFile *f, Buf *out);

/* bind.c --------------------------------------------------------------------------------------- */

/* Sizes that replace the defaults of a variant's dims. */
typedef struct SpecDim { const char *name; int64_t size; } SpecDim;
typedef struct SpecBind { const SpecDim *dim; int count; } SpecBind;

enum {
    DIM_MAX = 4096,     /* of a dim of the state */
    EXPAND_MAX = 64,    /* of any other dim: its vectors are expanded, its loops unrolled */
    UNROLL_MAX = 1024   /* loop iterations a token, all loops together */
};

static inline bool type_is_matrix(Type t) {
    return t.kind == TYPE_matrix || t.kind == TYPE_identity;
}
static inline bool expr_is_state(const Expr *e) {
    return e->kind == EXPR_name && e->decl && e->decl->kind == DECL_state;
}

/* A variant with numbers for its dims and consts, by slot; loop variables are set while running. */
typedef struct Bound {
    const Variant *variant;
    double *value;
    double *lo, *hi;    /* declared ranges of ports, by slot; infinite where open */
} Bound;

/* NULL with a message when a size or constant is not usable. `dims` may be NULL. */
Bound *spec_bind(Arena *arena, const Variant *v, const SpecBind *dims, Diag *d);
/* Only the messages about dims, consts and ranges, of a variant that has other errors. */
void spec_bind_declarations(Arena *arena, const Variant *v, Diag *d);
int bound_size(const Bound *b, const Decl *dim);
size_t bound_elements(const Bound *b, Type t);
double bound_number(const Bound *b, const Expr *e); /* e->constant */
double fn_apply(Function fn, double x, double y);   /* FNCLASS_MAP */

/* lower.c, algebra.c --------------------------------------------------------------------------- */

/* A kernel at LEVEL_recurrence, or NULL with a message. `variant` NULL: the only one. `dims` may be
 * NULL. Ports are inputs and params in order of declaration; axes carry the names of the dims. */
Kernel *spec_lower(Arena *arena, Interner *names, SpecFile *f, const char *variant,
                   const SpecBind *dims, Diag *d);

/* reference.c ---------------------------------------------------------------------------------- */

/* What a spec means: one sequence and one head in fp64, token by token, straight from the syntax
 * tree. Arrays as in EvalArgs. False with a message when the dims cannot be bound. */
bool reference_run(Arena *scratch, const SpecFile *f, const char *variant, const SpecBind *dims,
                   const EvalArgs *args, Diag *d);

/* reference_grad.c ----------------------------------------------------------------------------- */

/* What rounding the operands and results of matrix products does: numbers are times 1 + by h, with an h of its
 * own in [-1, 1] for every token and element (reference_offset). 0: exact. */
typedef struct Roundings {
    double state; /* by so much, of the state as reads see it; the state itself goes on as it is */
    double back;  /* of what a product with the state gives back to a vector */
    uint64_t key;
} Roundings;
double reference_offset(uint64_t key, uint64_t index); /* uniform in [-1, 1] */

/* One sequence and one head. Arrays as in EvalArgs; `state` is the initial one (NULL: zero) and is not
 * changed. dout[o] is the gradient of output o, NULL for zero. din[i] receives that of input or param
 * i, of params summed over the tokens; NULL where it is not wanted. dstate is the gradient of the final
 * state, replaced by that of the initial one; NULL: zero, not given back. */
typedef struct ReferenceGrad {
    int64_t T;
    const double *const *in;
    const double *const *dout;
    double *const *din;
    const double *state;
    double *dstate;
    Roundings rounded;
} ReferenceGrad;

/* Reverse mode through the recurrence itself. False with a message when the dims cannot be bound. */
bool reference_gradient(Arena *scratch, const SpecFile *f, const char *variant, const SpecBind *dims,
                        const ReferenceGrad *args, Diag *d);

#endif
