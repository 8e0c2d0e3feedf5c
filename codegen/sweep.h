/* Sweeps: what acts on the state token by token, and in a gradient kernel on its cotangent D, gathered
 * so that one pass over the matrices does all operations, in their order, whose operands are known
 * before it starts. For a delta rule that is two passes forwards, {decay, read} and {update, read of
 * the output}, and two backwards. */
#ifndef GDR_CODEGEN_SWEEP_H
#define GDR_CODEGEN_SWEEP_H

#include "ir/ir.h"

typedef struct Sweep {
    bool back;             /* of the half of a token behind `rewind` */
    int *op, count;        /* instructions */
    bool state, costate;   /* the matrices it looks at */
    bool writes;           /* S forwards, D backwards */
    int *event, places;    /* backwards: the token's decays and updates up to the last place */
    bool *wanted;          /* by place: whether an operation looks at S there */
} Sweep;

/* The sweeps of one half of a token, of at most `most_ops` operations and `most_sums` that sum over K. */
Sweep *sweeps_of(Arena *arena, const Kernel *k, bool back, int most_ops, int most_sums, int *count);

/* decay, codecay; update, coupdate */
static inline bool op_decays(Op op) { return op == OP_decay || op == OP_codecay; }
static inline bool op_updates(Op op) { return op == OP_update || op == OP_coupdate; }
/* Looks at S as it was at a place in the token. */
static inline bool op_looks_back(Op op) { return op == OP_reread || op == OP_decay_a; }
/* Gives what is summed over K, whether or not over V too. */
static inline bool inst_sums_rows(const Inst *i) {
    return op_gives_value(i->op) && !shape_has(i->shape, AXIS_K);
}

#endif
