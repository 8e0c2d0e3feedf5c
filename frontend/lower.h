/* Shared by lower.c (scalars, vectors, statements), algebra.c (matrices) and
 * assign.c (updates) only.
 *
 * A scalar or vector is a value of the kernel; whether it stands as a row or a column is its type's
 * matter. A vector over a dim that is not an axis of the state is an array of scalar values. A
 * matrix never becomes a value: it is kept as a sum of products, see algebra.c.
 */
#ifndef GDR_FRONTEND_LOWER_H
#define GDR_FRONTEND_LOWER_H

#include "frontend/frontend.h"

enum { NONE = -1 };

/* +-c p r'; c NONE = 1. */
typedef struct Outer {
    bool minus;
    int c, p, r;
    Span span;      /* where it is written */
} Outer;

/* diag + sum of outer products: a square matrix. */
enum { DIAG_one = -1, DIAG_zero = -2 };
typedef struct Factor {
    int diag;       /* DIAG_one, DIAG_zero or a value: scalar or vector */
    const Outer *low;
    int nlow;
    Span span;
} Factor;

/* A product of square matrices, as written from left to right. Empty = I. */
typedef struct Chain {
    const Factor *at;
    int count;
} Chain;

/* left * S * right */
typedef struct Term {
    Chain left, right;
    Span span;
} Term;

/* Square: `chain`. Else sum of terms and outer products p:[K] r:[V], transposed if `flip`. */
typedef struct Matrix {
    bool square, flip;
    Chain chain;
    const Term *term;
    int nterm;
    const Outer *low;
    int nlow;
} Matrix;

typedef struct Value {
    int v;              /* scalar, or vector over an axis of the state */
    const int *element; /* vector over another dim */
    const Matrix *m;
} Value;

/* What has been emitted, by content: equal values are the same value. */
typedef struct Known {
    int inst, next, version;
} Known;

enum { KNOWN_BUCKETS = 1024 };

typedef struct Lower {
    Arena *arena;
    const Variant *v;
    Bound *b;
    Kernel *k;
    Diag *d;
    Value *value;       /* of lets, by slot */
    int version;        /* counts changes of the state: reads are equal within one only */
    int bucket[KNOWN_BUCKETS];
    VEC(Known) known;
    Span at;            /* of the statement */
    VEC(int) atomic;    /* normalised vectors, not to be taken apart */
} Lower;

/* lower.c */
int lower_const(Lower *l, double x);
int lower1(Lower *l, Op op, int a, Span span);
int lower2(Lower *l, Op op, int a, int b, Span span);
int lower_sum(Lower *l, int a, Span span);
int lower_read(Lower *l, int a, Span span);
void lower_decay(Lower *l, int a, Span span);
void lower_update(Lower *l, int p, int z, Span span);
bool lower_is_scalar(const Lower *l, int v);

/* algebra.c */
const Matrix *matrix_identity(Lower *l);
const Matrix *matrix_state(Lower *l, Span span);
const Matrix *matrix_diag(Lower *l, int d, Span span);
/* p r' of two vectors over axes of the state; `square` when over the same one, `flip` when [V,K] */
const Matrix *matrix_outer(Lower *l, int p, int r, bool square, bool flip, Span span);
const Matrix *matrix_add(Lower *l, const Matrix *a, const Matrix *b, Span span);
const Matrix *matrix_scale(Lower *l, const Matrix *a, bool minus, int c, Span span);
/* a c with the scalar kept where it is written, so that (I - k k') c S decays before it reads */
const Matrix *matrix_scale_right(Lower *l, const Matrix *a, int c, Span span);
const Matrix *matrix_mul(Lower *l, const Matrix *a, const Matrix *b, Span span);
const Matrix *matrix_transpose(Lower *l, const Matrix *a);
int matrix_apply(Lower *l, const Matrix *a, bool transposed, int x, Span span);
Chain chain_part(Chain c, int from, int count);
Factor chain_flatten(Lower *l, Chain c, Span span);
int chain_common_prefix(Chain a, Chain b);
int chain_common_suffix(Chain a, Chain b);

bool matrix_too_many(Lower *l, int64_t n);

/* assign.c: S = a */
void matrix_assign(Lower *l, const Matrix *a, Span span);

#endif
