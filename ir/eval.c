/* The fp64 meaning of every operation, plainly: the oracle of every pass.
 *
 * A kernel runs step by step: a step is one token at recurrence level, else one chunk. Every value
 * is a dense array over its axes, evaluated in order into memory of its own; prev and cumsum keep
 * one token's row from step to step. Products of decays are always taken factor by factor, so they
 * are exact for any decay, zero included. */
#include "ir/ir.h"

#include <math.h>
#include <string.h>

typedef struct Eval {
    const Kernel *k;
    const EvalArgs *args;
    double **value;   /* by instruction */
    double **memory;  /* prev: the token before; cumsum: the sum so far */
    double *state, *next;
    int64_t first;    /* token */
    int64_t tokens;   /* real ones in this step */
    int64_t slots;
} Eval;

/* elementwise ---------------------------------------------------------------------------------- */

static double sigmoid(double a) {
    if (a >= 0)
        return 1 / (1 + exp(-a));
    double e = exp(a);
    return isnan(a) ? a : e / (1 + e);
}

double op_eval(Op op, double a, double b) {
    switch (op) {
    case OP_neg: return -a;
    case OP_add: return a + b;
    case OP_sub: return a - b;
    case OP_mul: return a * b;
    case OP_div: return a / b;
    case OP_pow: return pow(a, b);
    case OP_min: return isnan(a) || a < b ? a : b;
    case OP_max: return isnan(a) || a > b ? a : b;
    case OP_exp: return exp(a);
    case OP_log: return log(a);
    case OP_sqrt: return sqrt(a);
    case OP_rsqrt: return 1 / sqrt(a);
    case OP_sigmoid: return sigmoid(a);
    case OP_softplus: return isnan(a) ? a : fmax(a, 0) + log1p(exp(-fabs(a)));
    case OP_tanh: return tanh(a);
    case OP_silu: return a * sigmoid(a);
    case OP_relu: return isnan(a) || a > 0 ? a : 0;
    case OP_abs: return fabs(a);
    case OP_cos: return cos(a);
    case OP_sin: return sin(a);
    case OP_const: case OP_in: case OP_sum: case OP_prev: case OP_cumsum: case OP_decay:
    case OP_read: case OP_update: case OP_out: case OP_weave: case OP_scores: case OP_carry:
    case OP_tail: case OP_total: case OP_solve: case OP_contract: case OP_rename: case OP_state:
    case OP_next: case OP_count: break;
    }
    BUG("operation %d is not elementwise", (int)op);
}

/* walking named axes --------------------------------------------------------------------------- */

static int64_t axis_size(const Kernel *k, int axis) {
    return k->axis.at[axis].size;
}

/* Elements from one index of `axis` to the next in a dense array of shape s; 0 when s lacks it. */
static int64_t step_of(const Kernel *k, Shape s, int axis) {
    int64_t step = 1;
    for (int i = s.rank - 1; i >= 0; i--) {
        if (s.axis[i] == axis)
            return step;
        step *= axis_size(k, s.axis[i]);
    }
    return 0;
}

/* Up to two operands read along the axes of a result: a triple loop with their steps. */
typedef struct Walk { int64_t size[3], a[3], b[3]; } Walk;

static Walk walk_open(const Kernel *k, Shape over, Shape a, Shape b) {
    Walk w = {.size = {1, 1, 1}};
    for (int i = 0; i < over.rank; i++) {
        int at = 3 - over.rank + i;
        w.size[at] = axis_size(k, over.axis[i]);
        w.a[at] = step_of(k, a, over.axis[i]);
        w.b[at] = step_of(k, b, over.axis[i]);
    }
    return w;
}

/* out[i] = sum over n of a * b, or of a alone when b is NULL. */
static void walk_sum(const Walk *w, const double *a, int64_t a_step, const double *b,
                     int64_t b_step, int64_t n, double *out) {
    for (int64_t i = 0; i < w->size[0]; i++)
        for (int64_t j = 0; j < w->size[1]; j++)
            for (int64_t l = 0; l < w->size[2]; l++) {
                const double *x = a + i * w->a[0] + j * w->a[1] + l * w->a[2];
                const double *y = b ? b + i * w->b[0] + j * w->b[1] + l * w->b[2] : NULL;
                double sum = 0;
                for (int64_t m = 0; m < n; m++)
                    sum += y ? x[m * a_step] * y[m * b_step] : x[m * a_step];
                *out++ = sum;
            }
}

static void walk_pure(const Walk *w, Op op, const double *a, const double *b, double *out) {
    for (int64_t i = 0; i < w->size[0]; i++)
        for (int64_t j = 0; j < w->size[1]; j++)
            for (int64_t l = 0; l < w->size[2]; l++)
                *out++ = op_eval(op, a[i * w->a[0] + j * w->a[1] + l * w->a[2]],
                                 b[i * w->b[0] + j * w->b[1] + l * w->b[2]]);
}

/* data, reductions, time ----------------------------------------------------------------------- */

static Shape arg_shape(const Eval *e, const Inst *in, int i) {
    return inst_at(e->k, in->arg[i])->shape;
}

static const double *arg_value(const Eval *e, const Inst *in, int i) {
    return e->value[in->arg[i]];
}

static void eval_in(Eval *e, const Inst *in, double *out) {
    const Port *p = &e->k->in.at[in->index];
    int64_t token = shape_elements(e->k, p->shape);
    int64_t n = shape_elements(e->k, shape_without(in->shape, AXIS_C));
    int64_t rows = shape_has(in->shape, AXIS_C) ? axis_size(e->k, AXIS_C) : 1;
    const double *from = e->args->in[in->index] + (in->row > 0 ? in->row * n : 0);
    if (!p->is_param)
        from += e->first * token;
    int64_t real = p->is_param || rows < e->tokens ? rows : e->tokens;
    memset(out, 0, (size_t)(rows * n) * sizeof *out);
    for (int64_t r = 0; r < real; r++)
        memcpy(out + r * n, from + r * token, (size_t)n * sizeof *out);
}

/* Sum over one axis, of one operand (sum) or of the product of two (contract). */
static void eval_reduced(Eval *e, const Inst *in, double *out) {
    const Kernel *k = e->k;
    Shape a = arg_shape(e, in, 0), b = in->nargs == 2 ? arg_shape(e, in, 1) : shape_scalar();
    Walk w = walk_open(k, in->shape, a, b);
    walk_sum(&w, arg_value(e, in, 0), step_of(k, a, in->axis),
             in->nargs == 2 ? arg_value(e, in, 1) : NULL, step_of(k, b, in->axis),
             axis_size(k, in->axis), out);
}

static void eval_time(Eval *e, const Inst *in, double *memory, double *out) {
    const double *a = arg_value(e, in, 0);
    int64_t n = shape_elements(e->k, shape_without(in->shape, AXIS_C));
    int64_t rows = shape_has(in->shape, AXIS_C) ? axis_size(e->k, AXIS_C) : 1;
    int64_t a_step = shape_has(arg_shape(e, in, 0), AXIS_C) ? n : 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) {
            double x = a[r * a_step + i];
            double *out_at = &out[r * n + i];
            if (in->op == OP_prev) {
                *out_at = memory[i];
                memory[i] = x;
            } else {
                *out_at = memory[i] += x;
            }
        }
}

/* the state token by token --------------------------------------------------------------------- */

static void eval_decay(Eval *e, const Inst *in) {
    const Kernel *k = e->k;
    const double *a = arg_value(e, in, 0);
    int64_t nk = axis_size(k, AXIS_K), nv = axis_size(k, AXIS_V);
    int64_t by_k = step_of(k, arg_shape(e, in, 0), AXIS_K);
    int64_t by_v = step_of(k, arg_shape(e, in, 0), AXIS_V);
    for (int64_t i = 0; i < nk; i++)
        for (int64_t j = 0; j < nv; j++)
            e->state[i * nv + j] *= a[i * by_k + j * by_v];
}

static void eval_read(Eval *e, const Inst *in, double *out) {
    const Kernel *k = e->k;
    Shape state = shape_of(2, (int[]){AXIS_K, AXIS_V}), a = arg_shape(e, in, 0);
    Walk w = walk_open(k, in->shape, state, a);
    walk_sum(&w, e->state, step_of(k, state, a.axis[0]), arg_value(e, in, 0), 1,
             axis_size(k, a.axis[0]), out);
}

static void eval_update(Eval *e, const Inst *in) {
    const double *p = arg_value(e, in, 0), *z = arg_value(e, in, 1);
    int64_t nk = axis_size(e->k, AXIS_K), nv = axis_size(e->k, AXIS_V);
    int64_t p_step = arg_shape(e, in, 0).rank, z_step = arg_shape(e, in, 1).rank; /* scalars: 0 */
    for (int64_t i = 0; i < nk; i++)
        for (int64_t j = 0; j < nv; j++)
            e->state[i * nv + j] += p[i * p_step] * z[j * z_step];
}

static void eval_out(Eval *e, const Inst *in) {
    Shape a = arg_shape(e, in, 0);
    int64_t n = shape_elements(e->k, e->k->out.at[in->index].shape);
    int64_t a_step = shape_has(a, AXIS_C) ? n : 0;
    double *out = e->args->out[in->index] + e->first * n;
    for (int64_t r = 0; r < e->tokens; r++)
        memcpy(out + r * n, arg_value(e, in, 0) + r * a_step, (size_t)n * sizeof *out);
}

/* the chunk system ----------------------------------------------------------------------------- */

static void eval_weave(Eval *e, const Inst *in, double *out) {
    const Kernel *k = e->k;
    Shape row = shape_without(in->shape, in->axis);
    int64_t n = shape_elements(k, row), tokens = axis_size(k, AXIS_C);
    for (int64_t t = 0; t < tokens; t++)
        for (int s = 0; s < in->nargs; s++)
            for (int64_t i = 0; i < n; i++) {
                Shape a = arg_shape(e, in, s);
                int64_t by_row = row.rank ? step_of(k, a, row.axis[0]) : 0;
                int64_t at = t * step_of(k, a, AXIS_C) + i * by_row;
                *out++ = t < e->tokens ? arg_value(e, in, s)[at] : in->num;
            }
}

/* An operand of the lattice operations as a matrix [rows, features]; absent decays are ones. */
typedef struct Rows { const double *at; int64_t step, feature; } Rows;

static Rows rows_of(const Eval *e, const Inst *in, int i, int lattice, int feature) {
    static const double one = 1;
    if (i >= in->nargs || in->arg[i] < 0)
        return (Rows){&one, 0, 0};
    Shape s = arg_shape(e, in, i);
    return (Rows){arg_value(e, in, i), step_of(e->k, s, lattice),
                  feature < 0 ? 0 : step_of(e->k, s, feature)};
}

static double row_at(Rows r, int64_t row, int64_t i) {
    return r.at[row * r.step + i * r.feature];
}

static int feature_of(Shape s) {
    Shape f = shape_features(s);
    return f.rank ? f.axis[0] : -1;
}

/* The updates that left row l sees are those before its place. */
static int64_t place_of(const Eval *e, const Inst *in, int left, int64_t l) {
    return left == AXIS_R ? l : l * e->slots + in->place;
}

static void eval_scores(Eval *e, const Inst *in, double *run, double *out) {
    int left = in->shape.axis[0];
    int feature = feature_of(shape_union(shape_features(arg_shape(e, in, 0)),
                                         shape_features(arg_shape(e, in, 1))));
    Rows x = rows_of(e, in, 0, left, feature), y = rows_of(e, in, 1, AXIS_U, feature);
    Rows a = rows_of(e, in, 2, AXIS_U, feature);
    int64_t n = axis_size(e->k, feature), nu = axis_size(e->k, AXIS_U);
    for (int64_t l = 0; l < axis_size(e->k, left); l++, out += nu) {
        memset(out, 0, (size_t)nu * sizeof *out);
        for (int64_t i = 0; i < n; i++)
            run[i] = row_at(x, l, i);
        for (int64_t u = place_of(e, in, left, l) - 1; u >= 0; u--)
            for (int64_t i = 0; i < n; i++) {
                out[u] += run[i] * row_at(y, u, i);
                run[i] *= row_at(a, u, i);
            }
    }
}

/* carry and tail: a row times the decays before its place, or after its update. */
static void eval_scaled(Eval *e, const Inst *in, double *out) {
    int lattice = in->shape.axis[0], feature = feature_of(in->shape);
    Rows x = rows_of(e, in, 0, lattice, feature), a = rows_of(e, in, 1, AXIS_U, feature);
    int64_t n = feature < 0 ? 1 : axis_size(e->k, feature), nu = axis_size(e->k, AXIS_U);
    for (int64_t l = 0; l < axis_size(e->k, lattice); l++) {
        int64_t lo = in->op == OP_tail ? l + 1 : 0;
        int64_t hi = in->op == OP_tail ? nu : place_of(e, in, lattice, l);
        for (int64_t i = 0; i < n; i++) {
            double product = 1;
            for (int64_t m = lo; m < hi; m++)
                product *= row_at(a, m, i);
            *out++ = row_at(x, l, i) * product;
        }
    }
}

static void eval_total(Eval *e, const Inst *in, double *out) {
    Rows a = rows_of(e, in, 0, AXIS_U, feature_of(in->shape));
    int64_t n = shape_elements(e->k, in->shape);
    for (int64_t i = 0; i < n; i++) {
        out[i] = 1;
        for (int64_t m = 0; m < axis_size(e->k, AXIS_U); m++)
            out[i] *= row_at(a, m, i);
    }
}

/* Column r of A = (I+T)^-1 by forward substitution; T[R,U] below the diagonal. Kept as [R,U]. */
static void eval_solve(Eval *e, const Inst *in, double *out) {
    const double *t = arg_value(e, in, 0);
    int64_t n = axis_size(e->k, AXIS_R);
    for (int64_t r = 0; r < n; r++) {
        double *column = out + r * n;
        for (int64_t u = 0; u < n; u++) {
            double x = u == r;
            for (int64_t m = r; m < u; m++)
                x -= t[u * n + m] * column[m];
            column[u] = x; /* 0 above the diagonal */
        }
    }
}

static void eval_rename(Eval *e, const Inst *in, double *out) {
    const Kernel *k = e->k;
    Shape a = arg_shape(e, in, 0);
    Walk w = walk_open(k, in->shape, a, shape_scalar());
    for (int i = 0; i < in->shape.rank; i++)
        if (in->shape.axis[i] == in->axis)
            w.a[3 - in->shape.rank + i] = step_of(k, a, in->index);
    walk_sum(&w, arg_value(e, in, 0), 0, NULL, 0, 1, out);
}

/* stepping ------------------------------------------------------------------------------------- */

static size_t state_bytes(const Kernel *k) {
    return (size_t)(axis_size(k, AXIS_K) * axis_size(k, AXIS_V)) * sizeof(double);
}

static void eval_pure(Eval *e, const Inst *in, double *out) {
    int last = in->nargs - 1;
    Walk w = walk_open(e->k, in->shape, arg_shape(e, in, 0), arg_shape(e, in, last));
    walk_pure(&w, in->op, arg_value(e, in, 0), arg_value(e, in, last), out);
}

static void eval_inst(Eval *e, int v, double *run) {
    const Inst *in = inst_at(e->k, v);
    double *out = e->value[v];
    switch (in->op) {
    case OP_const: out[0] = in->num; break;
    case OP_in: eval_in(e, in, out); break;
    case OP_sum: case OP_contract: eval_reduced(e, in, out); break;
    case OP_prev: case OP_cumsum: eval_time(e, in, e->memory[v], out); break;
    case OP_decay: eval_decay(e, in); break;
    case OP_read: eval_read(e, in, out); break;
    case OP_update: eval_update(e, in); break;
    case OP_out: eval_out(e, in); break;
    case OP_weave: eval_weave(e, in, out); break;
    case OP_scores: eval_scores(e, in, run, out); break;
    case OP_carry: case OP_tail: eval_scaled(e, in, out); break;
    case OP_total: eval_total(e, in, out); break;
    case OP_solve: eval_solve(e, in, out); break;
    case OP_rename: eval_rename(e, in, out); break;
    case OP_state: memcpy(out, e->state, state_bytes(e->k)); break;
    case OP_next: memcpy(e->next, arg_value(e, in, 0), state_bytes(e->k)); break;
    case OP_neg: case OP_add: case OP_sub: case OP_mul: case OP_div: case OP_pow: case OP_min:
    case OP_max: case OP_exp: case OP_log: case OP_sqrt: case OP_rsqrt: case OP_sigmoid:
    case OP_softplus: case OP_tanh: case OP_silu: case OP_relu: case OP_abs: case OP_cos:
    case OP_sin: eval_pure(e, in, out); break;
    case OP_count: BUG("no such operation");
    }
}

/* Without a state from the caller it starts at zero and nobody gets it back. */
static Eval eval_open(const Kernel *k, Arena *scratch, const EvalArgs *args) {
    Eval e = {.k = k, .args = args, .state = args->state};
    int64_t state = axis_size(k, AXIS_K) * axis_size(k, AXIS_V);
    if (!e.state)
        e.state = NEW_ARRAY(scratch, double, state + 1);
    e.next = NEW_ARRAY(scratch, double, state + 1);
    e.value = NEW_ARRAY(scratch, double *, k->inst.count + 1);
    e.memory = NEW_ARRAY(scratch, double *, k->inst.count + 1);
    e.slots = k->level == LEVEL_recurrence ? 1 : axis_size(k, AXIS_R) / axis_size(k, AXIS_C);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *in = inst_at(k, v);
        e.value[v] = NEW_ARRAY(scratch, double, shape_elements(k, in->shape));
        if (op_info[in->op].class == CLASS_TIME)
            e.memory[v] = NEW_ARRAY(scratch, double, shape_elements(k, in->shape));
    }
    return e;
}

void kernel_eval(const Kernel *k, Arena *scratch, const EvalArgs *args) {
    const char *why = kernel_verify(k);
    if (why)
        BUG("%s cannot be evaluated: %s", k->name, why);
    Eval e = eval_open(k, scratch, args);
    bool chunked = k->level != LEVEL_recurrence, gives_next = false;
    int64_t step = chunked ? axis_size(k, AXIS_C) : 1;
    int64_t features = axis_size(k, AXIS_K) > axis_size(k, AXIS_V) ? axis_size(k, AXIS_K)
                                                                   : axis_size(k, AXIS_V);
    double *run = NEW_ARRAY(scratch, double, features + 1);
    for (int v = 0; v < k->inst.count; v++)
        gives_next |= inst_at(k, v)->op == OP_next;
    for (e.first = 0; e.first < args->T; e.first += step) {
        e.tokens = args->T - e.first < step ? args->T - e.first : step;
        for (int v = 0; v < k->inst.count; v++)
            eval_inst(&e, v, run);
        if (gives_next)
            memcpy(e.state, e.next, state_bytes(k));
    }
}
