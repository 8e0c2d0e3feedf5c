/* fold: constants are computed, exact identities applied, equal values merged, unused ones dropped.
 *
 * needs  any kernel, any level          gives  the same meaning for every input, NaN and infinities
 *                                               included (the sign of a zero may change)
 *     %1 = const 1   %2 = mul %0, %1   %3 = neg %2   %4 = neg %3        =>   %0
 *     %5 = add %0, %6   %7 = add %6, %0   %8 = sub %5, %7               =>   %5 once, %8 = sub %5, %5
 *
 * Instructions are put one by one into a fresh list; `put` returns an earlier value instead of
 * appending where it can. Reads are equal only while no decay or update lies between. At tile level
 * values have roles and places to live, so there only merging and dropping happen; decays by 1 stay
 * in gradient kernels, which count them. */
#include "passes/passes.h"

#include <math.h>
#include <string.h>

typedef struct Fold {
    Kernel *k;        /* with the list being made */
    int *table;       /* open addressing; value number + 1, 0 = free */
    unsigned mask;
    int epoch;        /* state changes so far */
    int *read_epoch;  /* by new value: when it was read */
    bool drops_decays; /* those by 1; not where places count them */
} Fold;

static int put(Fold *f, Inst in);

/* equal values --------------------------------------------------------------------------------- */

static uint64_t bits_of(double x) {
    uint64_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static unsigned hash_inst(const Inst *in) {
    uint64_t h = 0xcbf29ce484222325u ^ (uint64_t)in->op;
    const uint64_t field[] = {bits_of(in->num), (uint64_t)in->index, (uint64_t)in->row,
                              (uint64_t)in->axis, (uint64_t)in->place};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        h = (h ^ field[i]) * 0x100000001b3u;
    for (int i = 0; i < in->nargs; i++)
        h = (h ^ (uint64_t)in->arg[i]) * 0x100000001b3u;
    return (unsigned)(h ^ h >> 32);
}

static bool same_inst(const Inst *a, const Inst *b) {
    bool same = a->op == b->op && a->role == b->role && a->keep == b->keep && a->elem == b->elem &&
                a->nargs == b->nargs && bits_of(a->num) == bits_of(b->num) &&
                a->index == b->index && a->row == b->row && a->axis == b->axis &&
                a->place == b->place && shape_equal(a->shape, b->shape);
    for (int i = 0; same && i < a->nargs; i++)
        same = a->arg[i] == b->arg[i];
    return same;
}

static int append(Fold *f, const Inst *in) {
    int v = emit_copy(f->k, in, in->arg);
    f->read_epoch[v] = f->epoch;
    return v;
}

/* On S or its cotangent as they stand; reread says itself at which place it looks. */
static bool depends_on_state(Op op) {
    return op == OP_read || op == OP_coread || op == OP_decay_a;
}

/* The value equal to `in`, or a new one. */
static int find_or_append(Fold *f, const Inst *in) {
    unsigned at = hash_inst(in) & f->mask;
    for (; f->table[at]; at = (at + 1) & f->mask) {
        int v = f->table[at] - 1;
        if (same_inst(inst_at(f->k, v), in) &&
            (!depends_on_state(in->op) || f->read_epoch[v] == f->epoch))
            return v;
    }
    int v = append(f, in);
    f->table[at] = v + 1;
    return v;
}

/* identities ----------------------------------------------------------------------------------- */

static bool is_const(const Fold *f, int v, double x) {
    const Inst *in = inst_at(f->k, v);
    return in->op == OP_const && in->num == x;
}

/* The operand of a negation, or -1. */
static int negated(const Fold *f, int v) {
    const Inst *in = inst_at(f->k, v);
    return in->op == OP_neg ? in->arg[0] : -1;
}

static int put_const(Fold *f, double x) {
    return put(f, (Inst){.op = OP_const, .num = x});
}

/* The same result by another operation. */
static int put1(Fold *f, const Inst *in, Op op, int a) {
    return put(f, (Inst){.op = op, .shape = in->shape, .nargs = 1, .arg = (int[]){a},
                         .span = in->span});
}

static int put2(Fold *f, const Inst *in, Op op, int a, int b) {
    return put(f, (Inst){.op = op, .shape = in->shape, .nargs = 2, .arg = (int[]){a, b},
                         .span = in->span});
}

static int fold_constants(Fold *f, const Inst *in) {
    for (int i = 0; i < in->nargs; i++)
        if (inst_at(f->k, in->arg[i])->op != OP_const)
            return -1;
    double a = inst_at(f->k, in->arg[0])->num;
    return put_const(f, op_eval(in->op, a, inst_at(f->k, in->arg[in->nargs - 1])->num));
}

static int simplify_unary(Fold *f, const Inst *in) {
    int a = in->arg[0], n = negated(f, a);
    Op of = inst_at(f->k, a)->op;
    if (in->op == OP_neg)
        return n;
    if (in->op == OP_abs && n >= 0)
        return put1(f, in, OP_abs, n);
    if ((in->op == OP_abs && (of == OP_abs || of == OP_relu || of == OP_exp)) ||
        (in->op == OP_relu && (of == OP_relu || of == OP_abs || of == OP_exp || of == OP_sigmoid)))
        return a;
    return -1;
}

static int simplify_sum(Fold *f, const Inst *in, int a, int b) {
    int na = negated(f, a), nb = negated(f, b);
    if (in->op == OP_sub) {
        if (is_const(f, b, 0))
            return a;
        if (is_const(f, a, 0))
            return put1(f, in, OP_neg, b);
        return nb >= 0 ? put2(f, in, OP_add, a, nb) : -1;
    }
    if (is_const(f, a, 0) || is_const(f, b, 0))
        return is_const(f, a, 0) ? b : a;
    if (nb >= 0)
        return put2(f, in, OP_sub, a, nb);
    return na >= 0 ? put2(f, in, OP_sub, b, na) : -1;
}

static int simplify_product(Fold *f, const Inst *in, int a, int b) {
    int na = negated(f, a), nb = negated(f, b);
    if (in->op == OP_mul && is_const(f, a, 1))
        return b;
    if (is_const(f, b, 1))
        return a;
    if (in->op == OP_mul && is_const(f, a, -1))
        return put1(f, in, OP_neg, b);
    if (is_const(f, b, -1))
        return put1(f, in, OP_neg, a);
    if (na >= 0 && nb >= 0)
        return put2(f, in, in->op, na, nb);
    if (in->op == OP_div && is_const(f, a, 1) && inst_at(f->k, b)->op == OP_sqrt)
        return put1(f, in, OP_rsqrt, inst_at(f->k, b)->arg[0]);
    return -1;
}

static int simplify_power(Fold *f, const Inst *in, int a, int b) {
    if (is_const(f, b, 1))
        return a;
    if (is_const(f, b, 2))
        return put2(f, in, OP_mul, a, a);
    if (is_const(f, b, -1))
        return put2(f, in, OP_div, put_const(f, 1), a);
    return -1;
}

/* turn(turn(x)) = -x, unless x is repeated along the axis. */
static bool is_turned(const Fold *f, const Inst *in) {
    const Inst *a = inst_at(f->k, in->arg[0]);
    return a->op == OP_turn && shape_equal(inst_at(f->k, a->arg[0])->shape, in->shape);
}

/* Another value equal to this elementwise one, or -1. Constants are scalars, so what is left beside
 * one has the result's shape. */
static int simplify(Fold *f, const Inst *in) {
    int a = in->arg[0], b = in->arg[in->nargs - 1], v = fold_constants(f, in);
    if (v >= 0)
        return v;
    switch (in->op) {
    case OP_add: case OP_sub: v = simplify_sum(f, in, a, b); break;
    case OP_mul: case OP_div: v = simplify_product(f, in, a, b); break;
    case OP_pow: v = simplify_power(f, in, a, b); break;
    case OP_min: case OP_max: v = a == b ? a : -1; break;
    default: v = simplify_unary(f, in); break;
    }
    CHECK(v < 0 || shape_equal(inst_at(f->k, v)->shape, in->shape));
    return v;
}

/* the list ------------------------------------------------------------------------------------- */

/* Puts an instruction whose operands are new values; -1 when it has no effect and no value. */
static int put(Fold *f, Inst in) {
    bool free_form = f->k->level != LEVEL_tile;
    if (free_form && op_info[in.op].class == CLASS_PURE) {
        int v = simplify(f, &in);
        if (v >= 0)
            return v;
    }
    if (free_form && in.op == OP_turn && is_turned(f, &in))
        return put1(f, &in, OP_neg, inst_at(f->k, in.arg[0])->arg[0]);
    if (op_commutes(in.op) && in.arg[0] > in.arg[1]) {
        int swap = in.arg[0];
        in.arg[0] = in.arg[1];
        in.arg[1] = swap;
    }
    if (op_gives_value(in.op))
        return find_or_append(f, &in);
    if (f->drops_decays && in.op == OP_decay && is_const(f, in.arg[0], 1))
        return -1;
    f->epoch += in.op == OP_decay || in.op == OP_update || in.op == OP_codecay ||
                in.op == OP_coupdate;
    return append(f, &in);
}

static int *remapped(Arena *a, const Inst *in, const int *map) {
    int *arg = NEW_ARRAY(a, int, in->nargs + 1);
    for (int i = 0; i < in->nargs; i++)
        arg[i] = in->arg[i] < 0 ? in->arg[i] : map[in->arg[i]];
    return arg;
}

/* The kernel without values that no effect needs. */
static Kernel *drop_unused(const Kernel *k) {
    bool *used = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    int *map = NEW_ARRAY(k->arena, int, k->inst.count + 1);
    Kernel *new = kernel_like(k);
    for (int v = k->inst.count - 1; v >= 0; v--) {
        const Inst *in = inst_at(k, v);
        used[v] |= !op_gives_value(in->op);
        for (int i = 0; used[v] && i < in->nargs; i++)
            if (in->arg[i] >= 0)
                used[in->arg[i]] = true;
    }
    for (int v = 0; v < k->inst.count; v++)
        if (used[v])
            map[v] = emit_copy(new, inst_at(k, v), remapped(k->arena, inst_at(k, v), map));
    return new;
}

void kernel_simplify(Kernel *k) {
    Kernel *lean = drop_unused(k);
    int n = lean->inst.count;
    /* An instruction appends itself and at most two more: 1/a for a^-1. */
    int most = 3 * n + 1;
    Fold f = {.k = kernel_like(k), .mask = 15};
    f.drops_decays = k->level != LEVEL_tile && !kernel_is_gradient(k);
    while (f.mask < 2u * (unsigned)most)
        f.mask = 2 * f.mask + 1;
    f.table = NEW_ARRAY(k->arena, int, f.mask + 1);
    f.read_epoch = NEW_ARRAY(k->arena, int, most);
    int *map = NEW_ARRAY(k->arena, int, n + 1);
    for (int v = 0; v < n; v++) {
        Inst in = *inst_at(lean, v);
        in.arg = remapped(k->arena, &in, map);
        map[v] = put(&f, in);
        CHECK(f.k->inst.count < most);
    }
    k->inst.count = 0;
    Kernel *done = drop_unused(f.k);
    for (int v = 0; v < done->inst.count; v++)
        emit_copy(k, inst_at(done, v), inst_at(done, v)->arg);
}

void pass_fold(Kernel *k) {
    kernel_simplify(k);
}
