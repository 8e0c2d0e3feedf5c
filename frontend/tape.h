/* tape: reverse mode over dense fp64 arrays, for the reference's gradient. Nodes are appended in order
 * of evaluation, each with its value x and its gradient g; tape_backward adds to the g of operands,
 * last node first. A vector is a matrix of one column. */
#ifndef GDR_FRONTEND_TAPE_H
#define GDR_FRONTEND_TAPE_H

#include "frontend/frontend.h"

typedef enum {
    NODE_leaf,
    NODE_map,       /* fn of a, or of a and b; scalars broadcast */
    NODE_operator,  /* op of a and b, likewise; op = EXPR_neg: of a */
    NODE_sum,       /* of all elements */
    NODE_product,   /* a b, or a' b */
    NODE_outer,     /* a b' of vectors */
    NODE_rows,      /* row i of b times a[i] */
    NODE_transpose,
    NODE_pick,      /* elements of a from `offset` on */
    NODE_turn,      /* -a[1], a[0], -a[3], a[2], ... */
    NODE_back       /* a, whose gradient is times b */
} NodeKind;

typedef struct Node {
    NodeKind kind;
    ExprKind op;
    Function fn;
    int a, b;
    bool transposed;
    size_t offset, rows, cols;
    double *x, *g;
} Node;

typedef struct TapeBlock { double *at; size_t used, size; } TapeBlock;

typedef struct Tape {
    Arena *arena;
    VEC(Node) node;
    VEC(TapeBlock) block;
    int top; /* block in use */
} Tape;

void tape_clear(Tape *t); /* keeps the memory */
/* Each returns its node. `x` is copied; NULL stands for zeros. */
int tape_leaf(Tape *t, const double *x, size_t rows, size_t cols);
int tape_number(Tape *t, double x);
int tape_map(Tape *t, Function fn, int a, int b); /* b = -1 for one operand */
int tape_operator(Tape *t, ExprKind op, int a, int b);
int tape_sum(Tape *t, int a);
int tape_product(Tape *t, bool transposed, int a, int b);
int tape_outer(Tape *t, int a, int b);
int tape_rows(Tape *t, int a, int b);
int tape_transpose(Tape *t, int a);
int tape_turn(Tape *t, int a);
int tape_back(Tape *t, int a, int b);
int tape_pick(Tape *t, int a, size_t offset, size_t n);
/* From the g that the caller has put into nodes. */
void tape_backward(Tape *t);

static inline Node *tape_at(Tape *t, int node) { return &t->node.at[node]; }
static inline size_t tape_size(const Tape *t, int node) {
    return t->node.at[node].rows * t->node.at[node].cols;
}

#endif
