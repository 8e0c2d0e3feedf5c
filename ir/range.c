/* Bounds of values, from declared ranges alone: what lets a code generator choose a matrix operand
 * type of more precision and less range. A bound holds for every input inside its declared range
 * (up to rounding); open sides are infinite.
 *
 * Interval arithmetic, with one relation that intervals cannot see: x * rsqrt(sum(x*x) + c) and
 * x / sqrt(sum(x*x) + c), c >= 0, lie in [-1, 1].
 */
#include "ir/ir.h"

#include <math.h>

static const Range everything = {-INFINITY, INFINITY};

static Range hull4(double a, double b, double c, double d) {
    Range r = {fmin(fmin(a, b), fmin(c, d)), fmax(fmax(a, b), fmax(c, d))};
    return isnan(a) || isnan(b) || isnan(c) || isnan(d) ? everything : r;
}

/* inf * 0 counts as 0: the infinite side is open, its values are finite. */
static double times(double a, double b) {
    return a == 0 || b == 0 ? 0 : a * b;
}

static Range product(Range a, Range b) {
    return hull4(times(a.lo, b.lo), times(a.lo, b.hi), times(a.hi, b.lo), times(a.hi, b.hi));
}

static Range increasing(Range a, double (*f)(double)) {
    return (Range){f(a.lo), f(a.hi)};
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }
static double relu(double x) { return fmax(x, 0); }

static Range absolute(Range a) {
    double m = fmax(fabs(a.lo), fabs(a.hi));
    return (Range){a.lo > 0 ? a.lo : a.hi < 0 ? -a.hi : 0, m};
}

/* v is sum(x*x) + c with a constant c >= 0. */
static bool is_square_norm(const Kernel *k, int v, int x) {
    const Inst *i = inst_at(k, v);
    if (i->op == OP_add) {
        for (int j = 0; j < 2; j++) {
            const Inst *c = inst_at(k, i->arg[j]);
            if (c->op == OP_const && c->num >= 0 && is_square_norm(k, i->arg[1 - j], x))
                return true;
        }
        return false;
    }
    if (i->op != OP_sum)
        return false;
    const Inst *square = inst_at(k, i->arg[0]);
    if (square->op == OP_pow) {
        const Inst *two = inst_at(k, square->arg[1]);
        return square->arg[0] == x && two->op == OP_const && two->num == 2;
    }
    return square->op == OP_mul && square->arg[0] == x && square->arg[1] == x;
}

static bool is_normalised(const Kernel *k, const Inst *i) {
    for (int j = 0; j < 2; j++) {
        const Inst *n = inst_at(k, i->arg[1 - j]);
        Op op = i->op == OP_mul ? OP_rsqrt : OP_sqrt;
        if ((i->op == OP_mul || j == 0) && n->op == op && is_square_norm(k, n->arg[0], i->arg[j]))
            return true;
    }
    return false;
}

static Range quotient(Range a, Range b) {
    if (b.lo <= 0 && b.hi >= 0)
        return everything;
    return product(a, (Range){1 / b.hi, 1 / b.lo});
}

static Range range_of(const Kernel *k, const Inst *i, Range a, Range b) {
    switch (i->op) {
    case OP_const: return (Range){i->num, i->num};
    case OP_in: return (Range){k->in.at[i->index].lo, k->in.at[i->index].hi};
    case OP_neg: return (Range){-a.hi, -a.lo};
    case OP_add: return (Range){a.lo + b.lo, a.hi + b.hi};
    case OP_sub: return (Range){a.lo - b.hi, a.hi - b.lo};
    case OP_mul:
        if (is_normalised(k, i))
            return (Range){-1, 1};
        return i->arg[0] == i->arg[1] ? product(absolute(a), absolute(a)) : product(a, b);
    case OP_div: return is_normalised(k, i) ? (Range){-1, 1} : quotient(a, b);
    case OP_min: return (Range){fmin(a.lo, b.lo), fmin(a.hi, b.hi)};
    case OP_max: return (Range){fmax(a.lo, b.lo), fmax(a.hi, b.hi)};
    case OP_exp: return increasing(a, exp);
    case OP_log: return a.lo >= 0 ? increasing(a, log) : everything;
    case OP_sqrt: return a.lo >= 0 ? increasing(a, sqrt) : everything;
    case OP_rsqrt: return a.lo > 0 ? (Range){1 / sqrt(a.hi), 1 / sqrt(a.lo)} : everything;
    case OP_sigmoid: return increasing(a, sigmoid);
    case OP_softplus: return increasing(a, softplus);
    case OP_tanh: return increasing(a, tanh);
    case OP_silu: return (Range){fmax(-0.2785, -fmax(0, -a.lo)), fmax(0, a.hi)};
    case OP_relu: return increasing(a, relu);
    case OP_abs: return absolute(a);
    case OP_cos:
    case OP_sin: return (Range){-1, 1};
    case OP_sum: {
        double n = k->axis.at[i->axis].size;
        return (Range){times(a.lo, n), times(a.hi, n)};
    }
    case OP_turn: return (Range){fmin(a.lo, -a.hi), fmax(a.hi, -a.lo)};
    case OP_less: return (Range){0, 1};
    case OP_prev: case OP_after: return (Range){fmin(a.lo, 0), fmax(a.hi, 0)};
    case OP_pow:
    case OP_cumsum:
    case OP_decay:
    case OP_read:
    case OP_update:
    case OP_rewind:
    case OP_reread:
    case OP_coread:
    case OP_codecay:
    case OP_coupdate:
    case OP_decay_a:
    case OP_out:
    case OP_weave:
    case OP_scores:
    case OP_carry:
    case OP_tail:
    case OP_total:
    case OP_solve:
    case OP_contract:
    case OP_rename:
    case OP_state:
    case OP_next:
    case OP_cumsum_back:
    case OP_slot:
    case OP_scores_x:
    case OP_scores_y:
    case OP_scores_a:
    case OP_carry_a:
    case OP_tail_a:
    case OP_total_a:
    case OP_costate:
    case OP_conext:
    case OP_count: break;
    }
    return everything;
}

/* Operands' ranges are in known[]. */
static Range range_from(const Kernel *k, const Inst *i, const Range *known) {
    Range a = everything, b = everything;
    if (i->op == OP_weave) {
        a = (Range){i->num, i->num};
        for (int j = 0; j < i->nargs; j++) {
            b = known[i->arg[j]];
            a = (Range){fmin(a.lo, b.lo), fmax(a.hi, b.hi)};
        }
        return a;
    }
    if (i->nargs > 0 && i->arg[0] >= 0)
        a = known[i->arg[0]];
    if (i->nargs > 1 && i->arg[1] >= 0)
        b = known[i->arg[1]];
    Range r = range_of(k, i, a, b);
    return isnan(r.lo) || isnan(r.hi) ? everything : r;
}

/* In order, not from v down: values that are used more than once are looked at once. */
Range value_range(const Kernel *k, int v) {
    Range *known = NEW_ARRAY(k->arena, Range, v + 1);
    for (int u = 0; u <= v; u++)
        known[u] = range_from(k, inst_at(k, u), known);
    return known[v];
}
