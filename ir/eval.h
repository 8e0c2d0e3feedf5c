/* Inside of the evaluator: eval.c steps and does what needs no lattice, eval_state.c what acts on the
 * state token by token, eval_lattice.c the products of decays along the lattice. */
#ifndef GDR_IR_EVAL_H
#define GDR_IR_EVAL_H

#include "ir/ir.h"

typedef struct Eval {
    const Kernel *k;
    const EvalArgs *args;
    double **value;   /* by instruction */
    double **memory;  /* prev: the token before; cumsum: the sum so far; after, cumsum_back likewise */
    double *state, *next;
    double *costate, *conext;
    double **place;   /* recurrence level, backwards: S after so many decays and updates of the token */
    int events;       /* how many of them there have been */
    bool backwards;   /* a gradient kernel's second time over the sequence */
    double *run;      /* scratch, one feature vector */
    int64_t first;    /* token */
    int64_t tokens;   /* real ones in this step */
    int64_t slots;
} Eval;

/* Elements from one index of `axis` to the next in a dense array of shape s; 0 when s lacks it. */
int64_t eval_step(const Kernel *k, Shape s, int axis);

static inline int64_t axis_size(const Kernel *k, int axis) {
    return k->axis.at[axis].size;
}
static inline Shape arg_shape(const Eval *e, const Inst *in, int i) {
    return inst_at(e->k, in->arg[i])->shape;
}
static inline const double *arg_value(const Eval *e, const Inst *in, int i) {
    return e->value[in->arg[i]];
}

/* The state token by token: what reads and changes S and its cotangent. */
void eval_state(Eval *e, const Inst *in, double *out);

/* scores, carry, tail, total and the operations for their cotangents */
void eval_lattice(Eval *e, const Inst *in, double *out);

#endif
