/* The fp64 meaning of every operation, plainly: the oracle of every pass.
 *
 * A kernel runs step by step: a step is one token at recurrence level, else one chunk. Every value
 * is a dense array over its axes, evaluated in order into memory of its own; prev and cumsum keep
 * one token's row from step to step.
 *
 * A gradient kernel goes forwards with what `next` needs, keeping the state and the memories at every
 * chunk's start, then backwards with everything. */
#include "ir/eval.h"

#include <math.h>
#include <string.h>

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
    case OP_less: return isnan(a) || isnan(b) ? NAN : a < b;
    case OP_abs: return fabs(a);
    case OP_cos: return cos(a);
    case OP_sin: return sin(a);
    case OP_const: case OP_in: case OP_sum: case OP_turn: case OP_prev: case OP_cumsum: case OP_decay:
    case OP_read: case OP_update: case OP_rewind: case OP_reread: case OP_coread: case OP_codecay:
    case OP_coupdate: case OP_decay_a: case OP_out: case OP_weave: case OP_scores: case OP_carry:
    case OP_tail: case OP_total: case OP_solve: case OP_contract: case OP_rename: case OP_state:
    case OP_next: case OP_after: case OP_cumsum_back: case OP_slot: case OP_scores_x:
    case OP_scores_y: case OP_scores_a: case OP_carry_a: case OP_tail_a: case OP_total_a:
    case OP_costate: case OP_conext: case OP_count: break;
    }
    BUG("operation %d is not elementwise", (int)op);
}

/* walking named axes --------------------------------------------------------------------------- */

int64_t eval_step(const Kernel *k, Shape s, int axis) {
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
        w.a[at] = eval_step(k, a, over.axis[i]);
        w.b[at] = eval_step(k, b, over.axis[i]);
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

/* Sum over one axis, of one operand (sum) or of the product of two (contract); over C only the tokens
 * that are there. */
static void eval_reduced(Eval *e, const Inst *in, double *out) {
    const Kernel *k = e->k;
    Shape a = arg_shape(e, in, 0), b = in->nargs == 2 ? arg_shape(e, in, 1) : shape_scalar();
    Walk w = walk_open(k, in->shape, a, b);
    walk_sum(&w, arg_value(e, in, 0), eval_step(k, a, in->axis),
             in->nargs == 2 ? arg_value(e, in, 1) : NULL, eval_step(k, b, in->axis),
             in->axis == AXIS_C ? e->tokens : axis_size(k, in->axis), out);
}

/* Rows of an even number of channels, each read by its neighbour. */
static void eval_turn(Eval *e, const Inst *in, double *out) {
    const double *a = arg_value(e, in, 0);
    int64_t n = axis_size(e->k, in->axis), rows = shape_elements(e->k, in->shape) / n;
    int64_t by_channel = eval_step(e->k, arg_shape(e, in, 0), in->axis);
    int64_t by_row = eval_step(e->k, arg_shape(e, in, 0), AXIS_C);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) {
            double x = a[r * by_row + (i ^ 1) * by_channel];
            *out++ = i % 2 ? x : -x;
        }
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

/* after, cumsum_back: the tokens that are there, last one first. */
static void eval_time_back(Eval *e, const Inst *in, double *memory, double *out) {
    const double *a = arg_value(e, in, 0);
    int64_t n = shape_elements(e->k, shape_without(in->shape, AXIS_C));
    int64_t a_step = shape_has(arg_shape(e, in, 0), AXIS_C) ? n : 0;
    memset(out, 0, (size_t)(axis_size(e->k, AXIS_C) * n) * sizeof *out);
    for (int64_t r = e->tokens - 1; r >= 0; r--)
        for (int64_t i = 0; i < n; i++) {
            double x = a[r * a_step + i];
            out[r * n + i] = in->op == OP_after ? memory[i] : memory[i] + x;
            memory[i] = in->op == OP_after ? x : memory[i] + x;
        }
}

/* outputs -------------------------------------------------------------------------------------- */

/* The value may lack axes of the output. A param's output is a sum over all steps. */
static void eval_out(Eval *e, const Inst *in) {
    const Kernel *k = e->k;
    const Port *p = &k->out.at[in->index];
    bool by_rows = p->shape.rank && p->shape.axis[0] >= AXIS_user;
    Shape a = arg_shape(e, in, 0);
    Shape row = by_rows ? shape_without(p->shape, p->shape.axis[0]) : p->shape;
    int64_t n = shape_elements(k, row), token = shape_elements(k, p->shape);
    double *out = e->args->out[in->index] + (by_rows ? in->row * n : 0);
    if (!p->is_param)
        out += e->first * token;
    Walk w = walk_open(k, row, a, a);
    for (int64_t r = 0; r < (p->is_param ? 1 : e->tokens); r++, out += token) {
        const double *from = arg_value(e, in, 0) + r * eval_step(k, a, AXIS_C);
        for (int64_t i = 0; i < w.size[1]; i++)
            for (int64_t j = 0; j < w.size[2]; j++) {
                double x = from[i * w.a[1] + j * w.a[2]];
                double *to = &out[i * w.size[2] + j];
                *to = p->is_param ? *to + x : x;
            }
    }
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
                int64_t by_row = row.rank ? eval_step(k, a, row.axis[0]) : 0;
                int64_t at = t * eval_step(k, a, AXIS_C) + i * by_row;
                *out++ = t < e->tokens ? arg_value(e, in, s)[at] : in->num;
            }
}

static void eval_slot(Eval *e, const Inst *in, double *out) {
    const Kernel *k = e->k;
    Shape a = arg_shape(e, in, 0);
    int64_t n = shape_elements(k, shape_without(in->shape, AXIS_C)), C = axis_size(k, AXIS_C);
    int64_t step = eval_step(k, a, in->axis);
    CHECK(step == n); /* R and U lead, as C does */
    memset(out, 0, (size_t)(C * n) * sizeof *out);
    for (int64_t t = 0; t < e->tokens; t++)
        memcpy(out + t * n, arg_value(e, in, 0) + (t * e->slots + in->place) * step,
               (size_t)n * sizeof *out);
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
            w.a[3 - in->shape.rank + i] = eval_step(k, a, in->index);
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

static void eval_inst(Eval *e, int v) {
    const Inst *in = inst_at(e->k, v);
    double *out = e->value[v];
    switch (in->op) {
    case OP_const: out[0] = in->num; break;
    case OP_in: eval_in(e, in, out); break;
    case OP_sum: case OP_contract: eval_reduced(e, in, out); break;
    case OP_turn: eval_turn(e, in, out); break;
    case OP_prev: case OP_cumsum: eval_time(e, in, e->memory[v], out); break;
    case OP_after: case OP_cumsum_back: eval_time_back(e, in, e->memory[v], out); break;
    case OP_decay: case OP_read: case OP_update: case OP_rewind: case OP_reread: case OP_coread:
    case OP_codecay: case OP_coupdate: case OP_decay_a:
        eval_state(e, in, out);
        break;
    case OP_out: eval_out(e, in); break;
    case OP_weave: eval_weave(e, in, out); break;
    case OP_slot: eval_slot(e, in, out); break;
    case OP_scores: case OP_carry: case OP_tail: case OP_total: case OP_scores_x: case OP_scores_y:
    case OP_scores_a: case OP_carry_a: case OP_tail_a: case OP_total_a:
        eval_lattice(e, in, out);
        break;
    case OP_solve: eval_solve(e, in, out); break;
    case OP_rename: eval_rename(e, in, out); break;
    case OP_state: memcpy(out, e->state, state_bytes(e->k)); break;
    case OP_next: memcpy(e->next, arg_value(e, in, 0), state_bytes(e->k)); break;
    case OP_costate: memcpy(out, e->costate, state_bytes(e->k)); break;
    case OP_conext: memcpy(e->conext, arg_value(e, in, 0), state_bytes(e->k)); break;
    case OP_neg: case OP_add: case OP_sub: case OP_mul: case OP_div: case OP_pow: case OP_min:
    case OP_max: case OP_exp: case OP_log: case OP_sqrt: case OP_rsqrt: case OP_sigmoid:
    case OP_softplus: case OP_tanh: case OP_silu: case OP_relu: case OP_less: case OP_abs:
    case OP_cos: case OP_sin: eval_pure(e, in, out); break;
    case OP_count: BUG("no such operation");
    }
}

/* Without a state from the caller it starts at zero and nobody gets it back. */
static Eval eval_open(const Kernel *k, Arena *scratch, const EvalArgs *args) {
    Eval e = {.k = k, .args = args, .state = args->state, .costate = args->costate};
    int64_t nk = axis_size(k, AXIS_K), nv = axis_size(k, AXIS_V), state = nk * nv;
    if (!e.state)
        e.state = NEW_ARRAY(scratch, double, state + 1);
    if (!e.costate)
        e.costate = NEW_ARRAY(scratch, double, state + 1);
    e.next = NEW_ARRAY(scratch, double, state + 1);
    e.conext = NEW_ARRAY(scratch, double, state + 1);
    e.run = NEW_ARRAY(scratch, double, (nk > nv ? nk : nv) + 1);
    e.value = NEW_ARRAY(scratch, double *, k->inst.count + 1);
    e.place = NEW_ARRAY(scratch, double *, k->inst.count + 1);
    e.place[0] = NEW_ARRAY(scratch, double, state + 1);
    e.memory = NEW_ARRAY(scratch, double *, k->inst.count + 1);
    e.slots = k->level == LEVEL_recurrence ? 1 : axis_size(k, AXIS_R) / axis_size(k, AXIS_C);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *in = inst_at(k, v);
        e.value[v] = NEW_ARRAY(scratch, double, shape_elements(k, in->shape));
        if (in->op == OP_decay || in->op == OP_update)
            e.place[++e.events] = NEW_ARRAY(scratch, double, state + 1);
        if (op_info[in->op].class == CLASS_TIME)
            e.memory[v] = NEW_ARRAY(scratch, double, shape_elements(k, in->shape));
    }
    return e;
}

static void go_to(Eval *e, int64_t first, int64_t step) {
    e->first = first;
    e->tokens = e->args->T - first < step ? e->args->T - first : step;
}

/* One array with the state and what prev and cumsum remember. */
static double *snapshot(const Eval *e, Arena *scratch, bool load, double *from) {
    const Kernel *k = e->k;
    int64_t n = (int64_t)(state_bytes(k) / sizeof(double)), total = n;
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_prev || inst_at(k, v)->op == OP_cumsum)
            total += shape_elements(k, inst_at(k, v)->shape);
    double *all = load ? from : NEW_ARRAY(scratch, double, total + 1), *at = all;
    for (int v = -1; v < k->inst.count; v++) {
        if (v >= 0 && inst_at(k, v)->op != OP_prev && inst_at(k, v)->op != OP_cumsum)
            continue;
        double *mine = v < 0 ? e->state : e->memory[v];
        int64_t count = v < 0 ? n : shape_elements(k, inst_at(k, v)->shape);
        memcpy(load ? mine : at, load ? at : mine, (size_t)count * sizeof *at);
        at += count;
    }
    return all;
}

/* What the forward sweep of a gradient kernel evaluates: all that the state and the memories need. */
static bool *forward_part(const Kernel *k, Arena *scratch) {
    bool *mark = NEW_ARRAY(scratch, bool, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_next || inst_at(k, v)->op == OP_prev ||
            inst_at(k, v)->op == OP_cumsum || inst_at(k, v)->op == OP_decay ||
            inst_at(k, v)->op == OP_update) {
            value_mark(k, v, mark);
        }
    return mark;
}

static void eval_gradient(Eval *e, Arena *scratch) {
    const Kernel *k = e->k;
    bool tokens = k->level == LEVEL_recurrence; /* one by one, S and D in place */
    int64_t step = tokens ? 1 : axis_size(k, AXIS_C), chunks = (e->args->T + step - 1) / step;
    bool *forward = forward_part(k, scratch);
    double **start = NEW_ARRAY(scratch, double *, chunks + 1);
    for (int o = 0; o < k->out.count; o++)
        if (k->out.at[o].is_param)
            memset(e->args->out[o], 0,
                   (size_t)shape_elements(k, k->out.at[o].shape) * sizeof(double));
    for (int64_t c = 0; c < chunks; c++) {
        go_to(e, c * step, step);
        start[c] = snapshot(e, scratch, false, NULL);
        for (int v = 0; v < k->inst.count; v++)
            if (forward[v])
                eval_inst(e, v);
        if (!tokens)
            memcpy(e->state, e->next, state_bytes(k));
    }
    start[chunks] = snapshot(e, scratch, false, NULL);
    e->backwards = true;
    for (int64_t c = chunks - 1; c >= 0; c--) {
        go_to(e, c * step, step);
        snapshot(e, scratch, true, start[c]);
        e->events = 0;
        memcpy(e->place[0], e->state, state_bytes(k));
        for (int v = 0; v < k->inst.count; v++)
            eval_inst(e, v);
        if (!tokens)
            memcpy(e->costate, e->conext, state_bytes(k));
    }
    snapshot(e, scratch, true, start[chunks]);
}

void kernel_eval(const Kernel *k, Arena *scratch, const EvalArgs *args) {
    const char *why = kernel_verify(k);
    if (why)
        BUG("%s cannot be evaluated: %s", k->name, why);
    Eval e = eval_open(k, scratch, args);
    if (kernel_is_gradient(k)) {
        eval_gradient(&e, scratch);
        return;
    }
    int64_t step = k->level != LEVEL_recurrence ? axis_size(k, AXIS_C) : 1;
    bool gives_next = false;
    for (int v = 0; v < k->inst.count; v++)
        gives_next |= inst_at(k, v)->op == OP_next;
    for (int64_t first = 0; first < args->T; first += step) {
        go_to(&e, first, step);
        for (int v = 0; v < k->inst.count; v++)
            eval_inst(&e, v);
        if (gives_next)
            memcpy(e.state, e.next, state_bytes(k));
    }
}
