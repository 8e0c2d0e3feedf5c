/* What every operation takes and gives: shapes.
 *
 * `inst_shape` is the one place that knows: `emit` infers with it, the verifier compares with it. A
 * shape is a set of named axes: at most one feature axis K or V (or both) beside those of the lattice,
 * C, R, U. */
#include "ir/ir.h"

#include <limits.h>

static int union_rank(Shape a, Shape b) {
    int n = a.rank;
    for (int i = 0; i < b.rank; i++)
        n += !shape_has(a, b.axis[i]);
    return n;
}

static bool shape_contains(Shape whole, Shape part) {
    return union_rank(whole, part) == whole.rank;
}

/* Exactly this one lattice axis, whatever else. */
static bool on_lattice(Shape s, int axis) {
    Shape l = shape_lattice(s);
    return l.rank == 1 && l.axis[0] == axis;
}

static const char *shape_in(const Kernel *k, const Inst *in, Shape *out) {
    if (in->index < 0 || in->index >= k->in.count)
        return "no such input";
    const Port *p = &k->in.at[in->index];
    Shape s = p->shape;
    if (in->row >= 0) {
        if (s.rank == 0)
            return "a row of an input without axes";
        int rows = s.axis[0]; /* ports are in memory order: the n of [n], [n,K], [n,V] */
        if (in->row >= k->axis.at[rows].size)
            return "row beyond the input's first axis";
        s = shape_without(s, rows);
    }
    if (k->level != LEVEL_recurrence && !p->is_param) {
        if (s.rank == 3)
            return "an input with too many axes";
        s = shape_with(s, AXIS_C);
    }
    *out = shape_union(shape_scalar(), s); /* sorted */
    return NULL;
}

static const char *shape_pure(Shape a, Shape b, Shape *out) {
    if (union_rank(a, b) > 3)
        return "operands have too many axes together";
    bool nested = shape_contains(a, b) || shape_contains(b, a);
    if (!nested && shape_features(a).rank && shape_features(b).rank)
        return "operands do not broadcast: neither has all axes of the other";
    *out = shape_union(a, b);
    return NULL;
}

/* Where the rows of x stand: axis R, else axis C; -1 when x cannot be a left operand. */
static int left_axis(Shape x) {
    Shape l = shape_lattice(x);
    if (l.rank == 0)
        return AXIS_C;
    return l.rank == 1 && l.axis[0] != AXIS_U ? l.axis[0] : -1;
}

static const char *shape_scores(const Inst *in, const Shape *arg, Shape *out) {
    int left = left_axis(arg[0]);
    if (left < 0)
        return "x must stand on axis C or R";
    if (!on_lattice(arg[1], AXIS_U))
        return "y must stand on axis U";
    bool decays = in->nargs == 3 && in->arg[2] >= 0;
    if (decays && !on_lattice(arg[2], AXIS_U))
        return "decays must stand on axis U";
    Shape x = shape_features(arg[0]), y = shape_features(arg[1]);
    if (union_rank(x, y) != 1)
        return "x and y must share one axis to sum over";
    if (decays && !shape_contains(shape_union(x, y), shape_features(arg[2])))
        return "decays have an axis that x and y lack";
    *out = shape_of(2, (int[]){left, AXIS_U});
    return NULL;
}

/* carry (x on C or R) and tail (y on U). */
static const char *shape_scaled(const Inst *in, const Shape *arg, Shape *out) {
    int left = in->op == OP_tail ? AXIS_U : left_axis(arg[0]);
    if (left < 0 || (in->op == OP_tail && !on_lattice(arg[0], AXIS_U)))
        return in->op == OP_tail ? "y must stand on axis U" : "x must stand on axis C or R";
    Shape s = shape_with(arg[0], left);
    if (in->nargs == 2 && in->arg[1] >= 0) {
        if (!on_lattice(arg[1], AXIS_U))
            return "decays must stand on axis U";
        if (union_rank(shape_features(s), shape_features(arg[1])) > 1)
            return "more than one feature axis";
        s = shape_union(s, shape_features(arg[1]));
    }
    *out = s;
    return NULL;
}

/* The lattice axis of the rows of a cotangent G[l,u] of scores; -1 when it is none. */
static int cotangent_rows(Shape g) {
    bool whole = g.rank == 2 && g.axis[1] == AXIS_U;
    return whole && (g.axis[0] == AXIS_C || g.axis[0] == AXIS_R) ? g.axis[0] : -1;
}

/* Decays a of an operation over features f: on U, over f or none. */
static bool fits_decays(Shape a, Shape f) {
    return on_lattice(a, AXIS_U) && union_rank(f, shape_features(a)) <= 1;
}

/* scores_x(G, y, a) and scores_y(G, x, a). */
static const char *shape_scores_back(const Inst *in, const Shape *arg, Shape *out) {
    int left = cotangent_rows(arg[0]);
    if (left < 0)
        return "G has axes C or R, and U";
    bool to_x = in->op == OP_scores_x;
    if (to_x ? !on_lattice(arg[1], AXIS_U) : left_axis(arg[1]) != left)
        return to_x ? "y must stand on axis U" : "x must stand on the rows of G";
    Shape f = shape_features(arg[1]);
    bool decays = in->nargs == 3 && in->arg[2] >= 0;
    if (decays && !fits_decays(arg[2], f))
        return "decays stand on axis U and share the feature axis";
    if (decays)
        f = shape_union(f, shape_features(arg[2]));
    if (f.rank > 1)
        return "more than one feature axis";
    *out = shape_with(f, to_x ? left : AXIS_U);
    return NULL;
}

static const char *shape_scores_a(const Shape *arg, Shape *out) {
    int left = cotangent_rows(arg[0]);
    if (left < 0)
        return "G has axes C or R, and U";
    if (left_axis(arg[1]) != left || !on_lattice(arg[2], AXIS_U))
        return "x must stand on the rows of G, y on axis U";
    Shape f = shape_union(shape_features(arg[1]), shape_features(arg[2]));
    if (f.rank != 1 || !fits_decays(arg[3], f))
        return "x, y and decays share one feature axis";
    *out = arg[3];
    return NULL;
}

/* carry_a, tail_a, total_a: w on the rows that were scaled. */
static const char *shape_scaled_a(const Inst *in, const Shape *arg, Shape *out) {
    Shape l = shape_lattice(arg[0]), f = shape_features(arg[0]);
    bool stands = in->op == OP_carry_a  ? left_axis(arg[0]) >= 0
                  : in->op == OP_tail_a ? on_lattice(arg[0], AXIS_U)
                                        : l.rank == 0;
    if (!stands)
        return "w stands on another axis";
    if (!on_lattice(arg[1], AXIS_U) || !shape_contains(shape_features(arg[1]), f))
        return "decays stand on axis U and have w's feature axis";
    *out = arg[1];
    return NULL;
}

static const char *shape_slot(const Inst *in, Shape a, Shape *out) {
    Shape l = shape_lattice(a);
    bool on = in->axis == AXIS_R ? shape_has(l, AXIS_R) : in->axis == AXIS_U && on_lattice(a, AXIS_U);
    if (!on || shape_has(l, AXIS_C))
        return "takes rows on axis R or U";
    *out = shape_with(shape_without(a, in->axis), AXIS_C);
    return NULL;
}

static const char *shape_weave(const Kernel *k, const Inst *in, Shape *out) {
    if (in->axis != AXIS_R && in->axis != AXIS_U)
        return "weaves onto axis R or U only";
    Shape s = shape_of(1, (int[]){in->axis});
    for (int i = 0; i < in->nargs; i++) {
        Shape a = inst_at(k, in->arg[i])->shape;
        Shape l = shape_lattice(a), f = shape_features(a);
        /* Rows over the unknowns, [C,U] -> [R,U], weave like rows over a feature axis. */
        if (in->axis == AXIS_R && l.rank == 2 && l.axis[0] == AXIS_C && l.axis[1] == AXIS_U) {
            l = shape_without(l, AXIS_U);
            f = shape_with(f, AXIS_U);
        }
        if (l.rank > 1 || (l.rank == 1 && l.axis[0] != AXIS_C))
            return "an operand stands on another axis than C";
        if (union_rank(s, f) > 2)
            return "more than one feature axis";
        s = shape_union(s, f);
    }
    *out = s;
    return NULL;
}

static const char *shape_reduced(const Inst *in, const Shape *arg, Shape *out) {
    for (int i = 0; i < in->nargs; i++)
        if (!shape_has(arg[i], in->axis))
            return "an operand lacks the axis";
    Shape s = shape_without(arg[0], in->axis);
    if (in->op == OP_contract) {
        Shape b = shape_without(arg[1], in->axis);
        if (union_rank(s, b) > 3)
            return "operands have too many axes together";
        s = shape_union(s, b);
    }
    *out = s;
    return NULL;
}

static const char *shape_turn(const Kernel *k, const Inst *in, Shape a, Shape *out) {
    if (in->axis != AXIS_K && in->axis != AXIS_V)
        return "turns channels: axis K or V";
    if (k->axis.at[in->axis].size % 2)
        return "an odd number of channels has one without a neighbour";
    if (shape_features(shape_without(a, in->axis)).rank)
        return "the operand has another feature axis";
    if (shape_has(a, AXIS_R) || shape_has(a, AXIS_U))
        return "turns values of tokens: axis C, not R or U";
    *out = shape_with(a, in->axis);
    return NULL;
}

static const char *shape_rename(const Kernel *k, const Inst *in, Shape a, Shape *out) {
    if (!shape_has(a, in->index))
        return "the operand lacks the axis";
    if (in->axis < 0 || in->axis >= k->axis.count || shape_has(a, in->axis))
        return "the new axis is unknown or there already";
    if (k->axis.at[in->axis].size != k->axis.at[in->index].size)
        return "the axes differ in size";
    *out = shape_with(shape_without(a, in->index), in->axis);
    return NULL;
}

static const char *shape_time(const Kernel *k, Shape a, Shape *out) {
    if (shape_has(a, AXIS_R) || shape_has(a, AXIS_U))
        return "looks along tokens: axis C, not R or U";
    if (k->level != LEVEL_recurrence) {
        if (!shape_has(a, AXIS_C) && a.rank == 3)
            return "operand has too many axes";
        a = shape_with(a, AXIS_C); /* even a constant differs at a sequence's start */
    }
    *out = a;
    return NULL;
}

/* Only gradient kernels may repeat a value along axes that it lacks: the verifier's question. */
static const char *shape_out(const Kernel *k, const Inst *in, Shape a) {
    if (in->index < 0 || in->index >= k->out.count)
        return "no such output";
    const Port *p = &k->out.at[in->index];
    Shape s = p->shape;
    if (s.rank && s.axis[0] >= AXIS_user) { /* memory order: the n of [n], [n,K], [n,V] */
        if (in->row < 0 || in->row >= k->axis.at[s.axis[0]].size)
            return "row beyond the output's first axis";
        s = shape_without(s, s.axis[0]);
    }
    if (p->is_param && shape_has(a, AXIS_C))
        return "a param is the same for every token";
    return shape_contains(s, shape_without(a, AXIS_C)) ? NULL
                                                       : "the operand's axes are not the output's";
}

static bool only_axis(Shape s, int axis) {
    return s.rank == 1 && s.axis[0] == axis;
}

static const char *shape_state_op(const Inst *in, const Shape *arg, Shape *out) {
    *out = shape_scalar();
    bool key = only_axis(arg[0], AXIS_K), value = only_axis(arg[0], AXIS_V);
    switch (in->op) {
    case OP_rewind: return NULL;
    case OP_decay: case OP_codecay: case OP_decay_a:
        if (in->op == OP_decay_a)
            *out = arg[0];
        return arg[0].rank == 0 || key || value ? NULL : "a decay has axis K, V or none";
    case OP_reread: case OP_coread:
        *out = shape_of(1, (int[]){in->axis == AXIS_K ? AXIS_V : AXIS_K});
        return (in->axis == AXIS_K || in->axis == AXIS_V) &&
               (arg[0].rank == 0 || only_axis(arg[0], in->axis))
                   ? NULL : "sums over K or V, the operand's only axis if it has one";
    case OP_read:
        *out = shape_of(1, (int[]){key ? AXIS_V : AXIS_K});
        return key || value ? NULL : "a read takes a vector over K or V";
    default:
        value = only_axis(arg[1], AXIS_V);
        return (key || arg[0].rank == 0) && (value || arg[1].rank == 0)
                   ? NULL : "an update takes [K] and [V], or scalars in their place";
    }
}

static const char *shape_by_op(const Kernel *k, const Inst *in, const Shape *arg, Shape *out) {
    const Shape state = shape_of(2, (int[]){AXIS_K, AXIS_V});
    *out = shape_scalar();
    switch (in->op) {
    case OP_const: return NULL;
    case OP_in: return shape_in(k, in, out);
    case OP_sum: case OP_contract: return shape_reduced(in, arg, out);
    case OP_turn: return shape_turn(k, in, arg[0], out);
    case OP_prev: case OP_cumsum: case OP_after: case OP_cumsum_back:
        return shape_time(k, arg[0], out);
    case OP_decay: case OP_read: case OP_update: case OP_rewind: case OP_reread: case OP_coread:
    case OP_codecay: case OP_coupdate: case OP_decay_a:
        return shape_state_op(in, arg, out);
    case OP_out: return shape_out(k, in, arg[0]);
    case OP_weave: return shape_weave(k, in, out);
    case OP_scores: return shape_scores(in, arg, out);
    case OP_carry: case OP_tail: return shape_scaled(in, arg, out);
    case OP_total:
        *out = shape_features(arg[0]);
        return on_lattice(arg[0], AXIS_U) ? NULL : "decays must stand on axis U";
    case OP_solve:
        *out = arg[0];
        return shape_equal(arg[0], shape_of(2, (int[]){AXIS_R, AXIS_U})) ? NULL : "T has axes R, U";
    case OP_rename: return shape_rename(k, in, arg[0], out);
    case OP_slot: return shape_slot(in, arg[0], out);
    case OP_scores_x: case OP_scores_y: return shape_scores_back(in, arg, out);
    case OP_scores_a: return shape_scores_a(arg, out);
    case OP_carry_a: case OP_tail_a: case OP_total_a: return shape_scaled_a(in, arg, out);
    case OP_state: case OP_costate: *out = state; return NULL;
    case OP_next: case OP_conext: return shape_equal(arg[0], state) ? NULL : "the next state has axes K, V";
    case OP_neg: case OP_add: case OP_sub: case OP_mul: case OP_div: case OP_pow: case OP_min:
    case OP_max: case OP_exp: case OP_log: case OP_sqrt: case OP_rsqrt: case OP_sigmoid:
    case OP_softplus: case OP_tanh: case OP_silu: case OP_relu: case OP_less: case OP_abs:
    case OP_cos: case OP_sin:
        *out = arg[0];
        return in->nargs == 2 ? shape_pure(arg[0], arg[1], out) : NULL;
    case OP_count: break;
    }
    return "unknown operation";
}

/* Fewest and most operands. */
static void arity(Op op, int *lo, int *hi) {
    *lo = *hi = op_info[op].nargs;
    if (op == OP_scores || op == OP_scores_x || op == OP_scores_y)
        *lo = 2, *hi = 3;
    else if (op == OP_carry || op == OP_tail)
        *lo = 1, *hi = 2;
    else if (op == OP_weave)
        *lo = 1, *hi = INT_MAX;
}

const char *inst_shape(const Kernel *k, const Inst *in, Shape *out) {
    if ((unsigned)in->op >= OP_count)
        return "unknown operation";
    if (!(op_info[in->op].levels >> k->level & 1))
        return "not legal at this level";
    int lo, hi;
    arity(in->op, &lo, &hi);
    if (in->nargs < lo || in->nargs > hi)
        return "wrong number of operands";
    Shape arg[4] = {0}; /* weave alone has more, and looks for itself */
    for (int i = 0; i < in->nargs; i++) {
        int v = in->arg[i];
        bool optional = op_info[in->op].nargs < 0 && in->op != OP_weave && i == hi - 1;
        if (v == -1 && optional)
            continue;
        if (v < 0 || v >= k->inst.count)
            return "an operand that is not there";
        if (!op_gives_value(inst_at(k, v)->op))
            return "an operand that gives no value";
        if (i < 4)
            arg[i] = inst_at(k, v)->shape;
    }
    return shape_by_op(k, in, arg, out);
}
