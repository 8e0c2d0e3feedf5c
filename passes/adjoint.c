/* adjoint: from a kernel to the kernel of its gradient.
 *
 * needs  a forward kernel, at chunk level after `collapse` or at recurrence level
 * gives  a gradient kernel (ir.h) of that level: the forward values, then, walking them backwards,
 *        the cotangent of every value that leads to an output; ports d<out> in, d<in> out
 *
 * Reverse mode over the table of operations, with four things that are not just the product rule:
 *
 *   state      At recurrence level S is no value: what acts on it forwards acts on its cotangent D
 *              backwards. With S as it was before each operation,
 *                  y = S' x     D += x dy'   dx = S dy        S += p z'   dp = D z   dz = D' p
 *                  S = a S      D = a D      da = sums of D S
 *   solve     Products with A = (I+T)^-1 are differentiated through the system and not through A: for
 *             Y = W X, W = B A, and with the unknowns Zt = A X,
 *                 dX += W' dY      dB += dY Zt'      dT -= (sum of these dX) Zt'
 *             so dX = M' dO + P dS reuses the forward's matrices, and neither dA nor its two products
 *             with A appear.
 *   decays    The cotangent of a decay a = exp(y) is kept as that of its logarithm, a da = dy: exact at
 *             a = 0, no division, no product that leaves one factor out. Decays that are no product of
 *             exponentials and sigmoids take the true derivative.
 *   shapes    A cotangent may lack axes of its value: it is the same along them. */
#include "passes/passes.h"

#include <math.h>

typedef struct Through { int solve, x, g; } Through; /* old values; cotangent of x by way of A x */

typedef struct Adjoint {
    const Kernel *old;
    Kernel *k;
    int *map;              /* old value -> its copy */
    int *d;                /* by old value: cotangent, -1 = none so far */
    int *dlog;             /* of its logarithm */
    int *dplain;           /* weaves of decays: cotangent for the operands without a dlog */
    VEC(Through) through;
    bool minus;            /* what the rule at work gives counts negatively */
    int place;             /* recurrence level: decays and updates before the one at work */
} Adjoint;

static const Span nowhere = {0, 0};

/* building ------------------------------------------------------------------------------------- */

static Shape shape(const Adjoint *a, int v) { return inst_at(a->k, v)->shape; }
static Shape old_shape(const Adjoint *a, int v) { return inst_at(a->old, v)->shape; }
static int mul(Adjoint *a, int x, int y) { return emit2(a->k, OP_mul, x, y, nowhere); }
static int add(Adjoint *a, int x, int y) { return emit2(a->k, OP_add, x, y, nowhere); }
static int sub(Adjoint *a, int x, int y) { return emit2(a->k, OP_sub, x, y, nowhere); }
static int neg(Adjoint *a, int x) { return emit1(a->k, OP_neg, x, nowhere); }
static int number(Adjoint *a, double x) { return emit_const(a->k, x); }
static int sum(Adjoint *a, int x, int axis) { return emit_sum(a->k, x, axis, nowhere); }

static int contract(Adjoint *a, int x, int y, int axis) {
    return emit(a->k, (Inst){.op = OP_contract, .nargs = 2, .arg = (int[]){x, y}, .axis = axis});
}

static bool is_const(const Adjoint *a, int v) { return inst_at(a->old, v)->op == OP_const; }

/* The operand of a negation, or -1. */
static int negated(const Adjoint *a, int g) {
    return g >= 0 && inst_at(a->k, g)->op == OP_neg ? inst_at(a->k, g)->arg[0] : -1;
}

/* have + g, or have - g; have may be absent. Signs go outwards, where they vanish in sums. */
static int total(Adjoint *a, int have, int g) {
    int x = negated(a, have);
    if (have < 0)
        return a->minus ? neg(a, g) : g;
    if (x >= 0)
        return a->minus ? neg(a, add(a, x, g)) : sub(a, g, x);
    return a->minus ? sub(a, have, g) : add(a, have, g);
}

static void accumulate(Adjoint *a, int *into, int v, int g) {
    if (!is_const(a, v))
        into[v] = total(a, into[v], g);
}

/* Rules are linear in the cotangent g that they start from: its sign is put aside for `total`. */
static int take_sign(Adjoint *a, int g) {
    int x = negated(a, g);
    a->minus = x >= 0;
    return a->minus ? x : g;
}

/* g, of a value of shape `full`, summed over the axes that `target` lacks. */
static int reduce(Adjoint *a, int g, Shape full, Shape target) {
    full = shape_union(full, shape(a, g));
    for (int i = 0; i < full.rank; i++) {
        int axis = full.axis[i];
        if (shape_has(target, axis))
            continue;
        CHECK(axis > AXIS_U || shape_has(shape(a, g), axis));
        g = shape_has(shape(a, g), axis) ? sum(a, g, axis)
                                         : mul(a, g, number(a, a->k->axis.at[axis].size));
    }
    return g;
}

/* sum of g x over all axes that `target` lacks: a matrix product where it is one. */
static int product_to(Adjoint *a, int g, int x, Shape target) {
    Shape all = shape_union(shape(a, g), shape(a, x)), both = shape_scalar();
    bool batched = false;
    for (int i = 0; i < all.rank; i++) {
        int axis = all.axis[i];
        bool in_g = shape_has(shape(a, g), axis), in_x = shape_has(shape(a, x), axis);
        if (in_g && in_x) {
            batched |= shape_has(target, axis);
            both = shape_has(target, axis) ? both : shape_with(both, axis);
        } else if (!shape_has(target, axis)) {
            g = in_g ? sum(a, g, axis) : g;
            x = in_x ? sum(a, x, axis) : x;
        }
    }
    if (both.rank == 1 && !batched && a->k->level != LEVEL_recurrence)
        return contract(a, g, x, both.axis[0]);
    int y = mul(a, g, x);
    for (int i = 0; i < both.rank; i++)
        y = sum(a, y, both.axis[i]);
    return y;
}

static void give(Adjoint *a, int v, int g, Shape full) {
    if (!is_const(a, v))
        accumulate(a, a->d, v, reduce(a, g, full, old_shape(a, v)));
}

static void give_product(Adjoint *a, int v, int g, int x) {
    if (!is_const(a, v))
        accumulate(a, a->d, v, product_to(a, g, x, old_shape(a, v)));
}

/* decays --------------------------------------------------------------------------------------- */

/* Made of exponentials and sigmoids by products: v dv leads to them without a division by v. */
static bool has_log(const Kernel *k, int v) {
    const Inst *i = inst_at(k, v);
    switch (i->op) {
    case OP_const: case OP_exp: case OP_sigmoid: return true;
    case OP_neg: case OP_sqrt: case OP_rsqrt: return has_log(k, i->arg[0]);
    case OP_mul: case OP_div: return has_log(k, i->arg[0]) && has_log(k, i->arg[1]);
    case OP_pow: return has_log(k, i->arg[0]) && inst_at(k, i->arg[1])->op == OP_const;
    case OP_weave:
        for (int s = 0; s < i->nargs; s++)
            if (!has_log(k, i->arg[s]))
                return false;
        return true;
    default: return false;
    }
}

/* The cotangent of the logarithm of v passes on to what v is made of. */
static void pass_log(Adjoint *a, int v, int l) {
    const Inst *i = inst_at(a->old, v);
    switch (i->op) {
    case OP_exp: give(a, i->arg[0], l, i->shape); break;
    case OP_sigmoid:
        give(a, i->arg[0], mul(a, l, emit1(a->k, OP_sigmoid, neg(a, a->map[i->arg[0]]), nowhere)),
             i->shape);
        break;
    case OP_neg: accumulate(a, a->dlog, i->arg[0], l); break;
    case OP_sqrt: accumulate(a, a->dlog, i->arg[0], mul(a, number(a, 0.5), l)); break;
    case OP_rsqrt: accumulate(a, a->dlog, i->arg[0], mul(a, number(a, -0.5), l)); break;
    case OP_pow:
        accumulate(a, a->dlog, i->arg[0], mul(a, number(a, inst_at(a->old, i->arg[1])->num), l));
        break;
    case OP_mul: case OP_div:
        for (int j = 0; j < 2; j++) {
            int x = reduce(a, l, i->shape, old_shape(a, i->arg[j]));
            accumulate(a, a->dlog, i->arg[j], j && i->op == OP_div ? neg(a, x) : x);
        }
        break;
    default: BUG("%s has no logarithm", op_info[i->op].name);
    }
}

/* The operation `op` gives its decays a cotangent, of the form that each of them wants. */
static void give_decay(Adjoint *a, int decay, Op op, int place, int nargs, const int *arg) {
    const Inst *i = inst_at(a->old, decay);
    bool any_log = false, any_plain = false;
    for (int s = 0; s < (i->op == OP_weave ? i->nargs : 1); s++) {
        int v = i->op == OP_weave ? i->arg[s] : decay;
        bool with_log = has_log(a->old, v);
        any_log |= with_log && !is_const(a, v);
        any_plain |= !with_log;
    }
    for (int of_log = 0; of_log < 2; of_log++) {
        if (of_log ? !any_log : !any_plain)
            continue;
        int g = emit(a->k, (Inst){.op = op, .nargs = nargs, .arg = (int *)arg, .place = place,
                                  .index = of_log});
        accumulate(a, of_log ? a->dlog : i->op == OP_weave ? a->dplain : a->d, decay, g);
    }
}

/* chunk operations ----------------------------------------------------------------------------- */

static void weave(Adjoint *a, int v) {
    const Inst *i = inst_at(a->old, v);
    int *const from[] = {a->d, a->dlog, a->dplain};
    for (int s = 0; s < i->nargs; s++) {
        bool with_log = has_log(a->old, i->arg[s]);
        for (int form = 0; form < 3; form++) {
            if (from[form][v] < 0 || is_const(a, i->arg[s]) || (form && with_log != (form == 1)))
                continue;
            int g = take_sign(a, from[form][v]);
            g = emit(a->k, (Inst){.op = OP_slot, .nargs = 1, .arg = (int[]){g},
                                      .axis = i->axis, .place = s});
            Shape full = shape_with(shape_without(i->shape, i->axis), AXIS_C);
            g = reduce(a, g, full, old_shape(a, i->arg[s]));
            accumulate(a, form == 1 ? a->dlog : a->d, i->arg[s], g);
        }
    }
}

static int decays_of(const Inst *i, int at) { return i->nargs > at ? i->arg[at] : -1; }

static void scores(Adjoint *a, const Inst *i, int g) {
    int x = a->map[i->arg[0]], y = a->map[i->arg[1]], decay = decays_of(i, 2);
    int by = decay < 0 ? -1 : a->map[decay], n = decay < 0 ? 2 : 3;
    int dx = emit(a->k, (Inst){.op = OP_scores_x, .nargs = n, .arg = (int[]){g, y, by},
                               .place = i->place});
    int dy = emit(a->k, (Inst){.op = OP_scores_y, .nargs = n, .arg = (int[]){g, x, by},
                               .place = i->place});
    give(a, i->arg[0], dx, shape(a, dx));
    give(a, i->arg[1], dy, shape(a, dy));
    if (decay >= 0)
        give_decay(a, decay, OP_scores_a, i->place, 4, (int[]){g, x, y, by});
}

/* carry and tail: the cotangent is scaled as the row was. */
static void scaled(Adjoint *a, const Inst *i, int g) {
    int decay = decays_of(i, 1), x = a->map[i->arg[0]];
    if (decay < 0) {
        give(a, i->arg[0], g, i->shape);
        return;
    }
    int by = a->map[decay];
    int dx = emit(a->k, (Inst){.op = i->op, .nargs = 2, .arg = (int[]){g, by}, .place = i->place});
    give(a, i->arg[0], dx, i->shape);
    Shape rows = shape_union(shape_lattice(i->shape), shape_features(old_shape(a, decay)));
    give_decay(a, decay, i->op == OP_carry ? OP_carry_a : OP_tail_a, i->place, 2,
               (int[]){product_to(a, g, x, rows), by});
}

static void rename_back(Adjoint *a, const Inst *i, int g) {
    if (shape_has(shape(a, g), i->axis))
        g = emit(a->k, (Inst){.op = OP_rename, .nargs = 1, .arg = (int[]){g}, .index = i->axis,
                              .axis = i->index});
    give(a, i->arg[0], g, shape(a, g));
}

/* Y = W X over R with W = A or W = B A: which operand is W, and A, B (-1: none). */
static bool through_solve(const Kernel *k, const Inst *i, int *w, int *A, int *B) {
    for (int j = 0; i->axis == AXIS_R && j < 2; j++) {
        const Inst *in = inst_at(k, i->arg[j]);
        *w = j;
        *A = i->arg[j];
        *B = -1;
        if (in->op == OP_solve)
            return true;
        for (int l = 0; in->op == OP_contract && in->axis == AXIS_U && l < 2; l++) {
            *A = in->arg[l];
            *B = in->arg[1 - l];
            if (inst_at(k, *A)->op == OP_solve)
                return true;
        }
    }
    return false;
}

static void contraction(Adjoint *a, const Inst *i, int g) {
    int w, A, B;
    if (!through_solve(a->old, i, &w, &A, &B)) {
        for (int j = 0; j < 2; j++)
            give_product(a, i->arg[j], g, a->map[i->arg[1 - j]]);
        return;
    }
    int x = i->arg[1 - w], dx = product_to(a, g, a->map[i->arg[w]], old_shape(a, x));
    if (B >= 0)
        give_product(a, B, g, contract(a, a->map[A], a->map[x], AXIS_R));
    accumulate(a, a->d, x, dx);
    for (int t = 0; t < a->through.count; t++) {
        Through *have = &a->through.at[t];
        if (have->solve == A && have->x == x) {
            have->g = total(a, have->g, dx);
            return;
        }
    }
    VEC_PUSH(a->k->arena, &a->through, ((Through){A, x, total(a, -1, dx)}));
}

static void solve(Adjoint *a, int v) {
    const Inst *i = inst_at(a->old, v);
    if (a->d[v] >= 0)
        BUG("%s: a solve is used outside of a product with the system's right-hand side",
            a->old->name);
    for (int t = 0; t < a->through.count; t++) {
        const Through *h = &a->through.at[t];
        if (h->solve != v)
            continue;
        int g = take_sign(a, h->g), z = contract(a, a->map[v], a->map[h->x], AXIS_R);
        a->minus = !a->minus;
        give(a, i->arg[0], product_to(a, g, z, i->shape), i->shape);
    }
}

/* the state token by token --------------------------------------------------------------------- */

/* Axis over which a matrix is summed with x, a value of the old kernel that lies along it. */
static int summed(const Adjoint *a, int x) {
    return shape_has(old_shape(a, x), AXIS_V) ? AXIS_V : AXIS_K;
}

static int coread(Adjoint *a, int x, int axis) {
    return emit(a->k, (Inst){.op = OP_coread, .nargs = 1, .arg = (int[]){x}, .axis = axis});
}

/* y = S' x of cotangent g: both of S, as it was, and of its cotangent. */
static void read_back(Adjoint *a, const Inst *i, int g) {
    int axis = summed(a, i->arg[0]), other = axis == AXIS_K ? AXIS_V : AXIS_K;
    int x = a->map[i->arg[0]], y = a->minus ? neg(a, g) : g;
    int dx = emit(a->k, (Inst){.op = OP_reread, .nargs = 1, .arg = (int[]){g}, .axis = other,
                               .place = a->place});
    give(a, i->arg[0], dx, shape(a, dx));
    emit2(a->k, OP_coupdate, axis == AXIS_K ? x : y, axis == AXIS_K ? y : x, nowhere);
}

/* A decay or an update, the last one that has not been undone. */
static void event_back(Adjoint *a, const Inst *i) {
    a->minus = false;
    a->place--;
    if (i->op == OP_update) {
        for (int j = 0; j < 2; j++) {
            int d = coread(a, a->map[i->arg[1 - j]], j ? AXIS_K : AXIS_V);
            give(a, i->arg[j], d, shape(a, d));
        }
        return;
    }
    int x = a->map[i->arg[0]];
    int d = emit(a->k, (Inst){.op = OP_decay_a, .nargs = 1, .arg = (int[]){x}, .place = a->place});
    give(a, i->arg[0], d, shape(a, d));
    emit1(a->k, OP_codecay, x, nowhere);
}

/* elementwise ---------------------------------------------------------------------------------- */

static int less(Adjoint *a, int x, int y) { return emit2(a->k, OP_less, x, y, nowhere); }
static int unary(Adjoint *a, Op op, int x) { return emit1(a->k, op, x, nowhere); }
static int complement(Adjoint *a, int x) { return sub(a, number(a, 1), x); }

/* f'(x) for y = f(x). At a kink: relu 0, abs 0. */
static int slope(Adjoint *a, Op op, int x, int y) {
    switch (op) {
    case OP_exp: return y;
    case OP_log: return emit2(a->k, OP_div, number(a, 1), x, nowhere);
    case OP_sqrt: return emit2(a->k, OP_div, number(a, 0.5), y, nowhere);
    case OP_rsqrt: return mul(a, number(a, -0.5), mul(a, y, mul(a, y, y)));
    case OP_sigmoid: return mul(a, y, unary(a, OP_sigmoid, neg(a, x))); /* 1 - y may be 0 in f32 */
    case OP_softplus: return unary(a, OP_sigmoid, x);
    case OP_tanh: return complement(a, mul(a, y, y));
    case OP_silu: {
        int s = unary(a, OP_sigmoid, x);
        return add(a, s, mul(a, y, complement(a, s)));
    }
    case OP_relu: return less(a, number(a, 0), x);
    case OP_abs: return sub(a, less(a, number(a, 0), x), less(a, x, number(a, 0)));
    case OP_cos: return neg(a, unary(a, OP_sin, x));
    case OP_sin: return unary(a, OP_cos, x);
    default: BUG("no derivative of %s", op_info[op].name);
    }
}

/* x^e. The exponent's share y log x is 0 at x = 0, as y is. */
static void power(Adjoint *a, int v, int g) {
    const Inst *i = inst_at(a->old, v);
    int x = a->map[i->arg[0]], e = a->map[i->arg[1]];
    int below = emit2(a->k, OP_pow, x, sub(a, e, number(a, 1)), nowhere);
    give_product(a, i->arg[0], g, mul(a, e, below));
    if (is_const(a, i->arg[1]))
        return;
    int positive = emit2(a->k, OP_max, x, number(a, 1e-37), nowhere);
    give_product(a, i->arg[1], g, mul(a, a->map[v], unary(a, OP_log, positive)));
}

static void binary(Adjoint *a, int v, int g) {
    const Inst *i = inst_at(a->old, v);
    int x = a->map[i->arg[0]], y = a->map[i->arg[1]];
    switch (i->op) {
    case OP_add:
    case OP_sub:
        give(a, i->arg[0], g, i->shape);
        give(a, i->arg[1], i->op == OP_sub ? neg(a, g) : g, i->shape);
        break;
    case OP_mul:
        if (i->arg[0] == i->arg[1]) { /* under a sum g is one number: no second product of vectors */
            give_product(a, i->arg[0], mul(a, number(a, 2), g), x);
            break;
        }
        give_product(a, i->arg[0], g, y);
        give_product(a, i->arg[1], g, x);
        break;
    case OP_div: {
        int inverse = emit2(a->k, OP_div, number(a, 1), y, nowhere);
        give_product(a, i->arg[0], g, inverse);
        if (!is_const(a, i->arg[1]))
            give_product(a, i->arg[1], g, neg(a, mul(a, a->map[v], inverse)));
        break;
    }
    case OP_min:
    case OP_max: { /* equal operands: the first one */
        int second = i->op == OP_min ? less(a, y, x) : less(a, x, y);
        give_product(a, i->arg[0], g, complement(a, second));
        give_product(a, i->arg[1], g, second);
        break;
    }
    case OP_pow: power(a, v, g); break;
    case OP_less: break;
    default: BUG("no derivative of %s", op_info[i->op].name);
    }
}

static void pure(Adjoint *a, int v, int g) {
    const Inst *i = inst_at(a->old, v);
    if (i->nargs == 2)
        binary(a, v, g);
    else if (i->op == OP_neg)
        give(a, i->arg[0], neg(a, g), i->shape);
    else
        give_product(a, i->arg[0], g, slope(a, i->op, a->map[i->arg[0]], a->map[v]));
}

/* walking -------------------------------------------------------------------------------------- */

static void back(Adjoint *a, int v) {
    const Inst *i = inst_at(a->old, v);
    int g = a->d[v];
    if (i->op == OP_decay || i->op == OP_update)
        event_back(a, i);
    if (i->op == OP_weave)
        weave(a, v);
    if (!op_gives_value(i->op) || i->op == OP_weave)
        return;
    if (a->dlog[v] >= 0)
        pass_log(a, v, take_sign(a, a->dlog[v]));
    if (i->op == OP_solve)
        solve(a, v);
    if (g < 0)
        return;
    g = take_sign(a, g);
    switch (i->op) {
    case OP_sum: give(a, i->arg[0], g, shape_without(i->shape, i->axis)); break;
    case OP_turn: /* a quarter turn is undone by turning back */
        give(a, i->arg[0], neg(a, emit_turn(a->k, g, i->axis, nowhere)), i->shape);
        break;
    case OP_prev: give(a, i->arg[0], unary(a, OP_after, g), i->shape); break;
    case OP_cumsum: give(a, i->arg[0], unary(a, OP_cumsum_back, g), i->shape); break;
    case OP_scores: scores(a, i, g); break;
    case OP_carry: case OP_tail: scaled(a, i, g); break;
    case OP_total:
        give_decay(a, i->arg[0], OP_total_a, 0, 2, (int[]){g, a->map[i->arg[0]]});
        break;
    case OP_contract: contraction(a, i, g); break;
    case OP_rename: rename_back(a, i, g); break;
    case OP_read: read_back(a, i, g); break;
    case OP_const: case OP_in: case OP_solve: case OP_state: break;
    default:
        CHECK(op_info[i->op].class == CLASS_PURE);
        pure(a, v, g);
    }
}

/* "d" and the name, with more d's where that is taken. */
static const char *gradient_name(Kernel *k, const char *name, bool output) {
    Buf b;
    buf_init(&b, k->arena);
    do {
        b.len = 0;
        buf_printf(&b, "d%s", name);
        name = intern_z(k->names, b.text);
    } while (kernel_find_port(k, name, output) >= 0);
    return name;
}

/* The forward values, with `next` and without the outs; then the cotangents that come from outside. */
static void begin(Adjoint *a, uint64_t outs) {
    const Kernel *old = a->old;
    for (int v = 0; v < old->inst.count; v++) {
        const Inst *i = inst_at(old, v);
        int *arg = NEW_ARRAY(a->k->arena, int, i->nargs + 1);
        for (int j = 0; j < i->nargs; j++)
            arg[j] = i->arg[j] < 0 ? -1 : a->map[i->arg[j]];
        a->d[v] = a->dlog[v] = a->dplain[v] = -1;
        a->map[v] = i->op == OP_out ? -1 : emit_copy(a->k, i, arg);
        a->place += i->op == OP_decay || i->op == OP_update;
    }
    bool tokens = old->level == LEVEL_recurrence;
    int costate = emit(a->k, (Inst){.op = tokens ? OP_rewind : OP_costate});
    for (int v = 0; v < old->inst.count; v++) {
        const Inst *i = inst_at(old, v);
        if (i->op == OP_next)
            accumulate(a, a->d, i->arg[0], costate);
        if (i->op != OP_out || !(outs >> i->index & 1))
            continue;
        Port p = old->out.at[i->index];
        p.name = gradient_name(a->k, p.name, false);
        VEC_PUSH(a->k->arena, &a->k->in, p);
        int g = emit_in(a->k, a->k->in.count - 1, -1, i->span);
        give(a, i->arg[0], g, shape(a, g));
    }
}

/* The gradient of one row of a port, or of all of it (row = -1). */
static int port_gradient(const Adjoint *a, int port, int row) {
    int g = -1;
    for (int v = 0; v < a->old->inst.count; v++) {
        const Inst *i = inst_at(a->old, v);
        if (i->op == OP_in && i->index == port && i->row == row && a->d[v] >= 0)
            g = g < 0 ? a->d[v] : emit2(a->k, OP_add, g, a->d[v], nowhere);
    }
    return g < 0 ? emit_const(a->k, 0) : g;
}

static void end(Adjoint *a, uint64_t ins) {
    for (int p = 0; p < a->old->in.count; p++) {
        if (!(ins >> p & 1))
            continue;
        Port port = a->old->in.at[p];
        port.name = gradient_name(a->k, port.name, true);
        port.lo = -INFINITY;
        port.hi = INFINITY;
        VEC_PUSH(a->k->arena, &a->k->out, port);
        bool by_rows = port.shape.rank && port.shape.axis[0] >= AXIS_user;
        int rows = by_rows ? a->k->axis.at[port.shape.axis[0]].size : 1;
        for (int r = 0; r < rows; r++)
            emit(a->k, (Inst){.op = OP_out, .nargs = 1, .index = a->k->out.count - 1, .row = r,
                              .arg = (int[]){port_gradient(a, p, by_rows ? r : -1)},
                              .span = port.span});
    }
    if (a->old->level == LEVEL_recurrence)
        return;
    int g = -1;
    for (int v = 0; v < a->old->inst.count; v++)
        if (inst_at(a->old, v)->op == OP_state && a->d[v] >= 0)
            g = total(a, g, a->d[v]);
    if (g < 0)
        g = mul(a, number(a, 0), emit(a->k, (Inst){.op = OP_costate}));
    emit1(a->k, OP_conext, g, nowhere);
}

Kernel *kernel_adjoint(const Kernel *forward, uint64_t outs, uint64_t ins) {
    CHECK(forward->level != LEVEL_tile && !kernel_is_gradient(forward));
    CHECK(forward->in.count <= 64 && forward->out.count <= 64);
    Arena *arena = forward->arena;
    int n = forward->inst.count + 1;
    Adjoint a = {.old = forward, .k = kernel_like(forward), .map = NEW_ARRAY(arena, int, n),
                 .d = NEW_ARRAY(arena, int, n), .dlog = NEW_ARRAY(arena, int, n),
                 .dplain = NEW_ARRAY(arena, int, n)};
    a.k->out.count = 0;
    Buf name;
    buf_init(&name, arena);
    buf_printf(&name, "%s_grad", forward->name);
    a.k->name = intern_z(forward->names, name.text);
    begin(&a, outs);
    for (int v = forward->inst.count - 1; v >= 0; v--)
        back(&a, v);
    a.minus = false;
    end(&a, ins);
    pass_collapse(a.k);
    return a.k;
}
