/* The state token by token: decay, read, update, and in a gradient kernel their like for the cotangent D.
 *
 * All of them are one loop over the elements (i, j) of a [K,V] matrix with vectors along either axis;
 * a step of 0 repeats a scalar. Backwards, S is kept as it stands after every decay and update of the
 * token, so that `reread` and `decay_a` find it. */
#include "ir/eval.h"

#include <string.h>

/* An operand: its value, and how far apart its elements are along K and V. */
typedef struct Side { const double *x; int64_t by_k, by_v; } Side;

static Side side(const Eval *e, const Inst *in, int arg) {
    Shape s = arg_shape(e, in, arg);
    return (Side){arg_value(e, in, arg), eval_step(e->k, s, AXIS_K), eval_step(e->k, s, AXIS_V)};
}

static double element(const Side *s, int64_t i, int64_t j) {
    return s->x[i * s->by_k + j * s->by_v];
}

static void decay(const Eval *e, const Inst *in, double *m) {
    Side a = side(e, in, 0);
    int64_t nk = axis_size(e->k, AXIS_K), nv = axis_size(e->k, AXIS_V);
    for (int64_t i = 0; i < nk; i++)
        for (int64_t j = 0; j < nv; j++)
            m[i * nv + j] *= element(&a, i, j);
}

static void update(const Eval *e, const Inst *in, double *m) {
    Side p = side(e, in, 0), z = side(e, in, 1);
    int64_t nk = axis_size(e->k, AXIS_K), nv = axis_size(e->k, AXIS_V);
    for (int64_t i = 0; i < nk; i++)
        for (int64_t j = 0; j < nv; j++)
            m[i * nv + j] += element(&p, i, j) * element(&z, i, j);
}

/* out, with the axes of shape `to`: the sum over the others of m times s. */
static void sum(const Eval *e, const double *m, Side s, Shape to, double *out) {
    int64_t nk = axis_size(e->k, AXIS_K), nv = axis_size(e->k, AXIS_V);
    int64_t by_k = eval_step(e->k, to, AXIS_K), by_v = eval_step(e->k, to, AXIS_V);
    memset(out, 0, (size_t)shape_elements(e->k, to) * sizeof *out);
    for (int64_t i = 0; i < nk; i++)
        for (int64_t j = 0; j < nv; j++)
            out[i * by_k + j * by_v] += m[i * nv + j] * element(&s, i, j);
}

/* A matrix seen as an operand. */
static Side matrix(const Eval *e, const double *m) {
    return (Side){m, axis_size(e->k, AXIS_V), 1};
}

static void keep_place(Eval *e) {
    int64_t n = axis_size(e->k, AXIS_K) * axis_size(e->k, AXIS_V);
    if (e->backwards)
        memcpy(e->place[++e->events], e->state, (size_t)n * sizeof *e->state);
}

void eval_state(Eval *e, const Inst *in, double *out) {
    switch ((int)in->op) {
    case OP_decay:
        decay(e, in, e->state);
        keep_place(e);
        break;
    case OP_update:
        update(e, in, e->state);
        keep_place(e);
        break;
    case OP_read: sum(e, e->state, side(e, in, 0), in->shape, out); break;
    case OP_rewind: break;
    case OP_reread: sum(e, e->place[in->place], side(e, in, 0), in->shape, out); break;
    case OP_coread: sum(e, e->costate, side(e, in, 0), in->shape, out); break;
    case OP_codecay: decay(e, in, e->costate); break;
    case OP_coupdate: update(e, in, e->costate); break;
    case OP_decay_a:
        sum(e, e->costate, matrix(e, e->place[in->place]), in->shape, out);
        break;
    default: BUG("%s does not act on the state", op_info[in->op].name);
    }
}
