/* Units of the warpgroups' schedule: powers of two, one a V column.
 *
 * f16 operands have 5 bits of exponent, and neither S nor X has a bound. So S is kept as S / unit,
 * a power of two per V column that changes only when the column leaves the range in which f16 is
 * good, and X is divided by the same unit on its way to an operand: products add up without another
 * scale. The unit is right as long as no element of S / unit is 2 or more                      (bit
 * 14 of an f16 is set iff it is) some element of S / unit is 2^-11 or more, or S is 0     (bits
 * 12-14 are not all clear) no element of X / unit is 2^15 or more At the upper end sums have room;
 * at the lower, f16's spacing of 2^-24 is a quarter of the rounding of the column's largest. The
 * first two are about the past alone. X, which holds the chunk's later tokens too, moves the unit
 * only when it must: when it does not fit, and when there is no state yet and X is so small that
 * the unit would cost bits. Backwards the same holds of dS, dO and dX.
 */
#include "codegen/nvptx/chain.h"

enum { TOO_LARGE = 0x40004000, LARGE_ENOUGH = 0x70007000 };

/* A new unit puts the largest element in [2^-4, 2^-3). */
#define UNITS_OF_LARGEST 16.0
/* X without a state: a largest element below this is moved up, to just below 2^14. */
#define X_LEAST 0x1p-10
#define UNITS_OF_LARGEST_X 0x1p-13
/* Columns below 2^-104 count as zero: their unit stays, so that nothing looks for a better one. */
#define UNIT_LEAST 0x1p-80
#define UNIT_MOST 0x1p120

void chain_units(Chain *c, Val unit[2]) {
    for (int h = 0; h < 2; h++)
        unit[h] = cg_get(c->cg, c->unit[h]);
}

/* The factor first: of a product that is subtracted, LLVM negates the first, and that one is
 * shared. */
void chain_scale_columns(Chain *c, Val *x, int count, const Val factor[2]) {
    for (int i = 0; factor[0] && i < count; i++)
        x[i] = cg_fmul(c->cg, factor[i / 2 % 2], x[i]);
}

/* Accumulators times `factor` (or as they are) -> operand, count / 2 registers. */
void chain_pack(Chain *c, const Val *x, int count, const Val factor[2], Val *operand) {
    Cg *cg = c->cg;
    for (int i = 0; i < count; i += 2) {
        Val two[2] = {x[i], x[i + 1]}, f = factor[i / 2 % 2];
        for (int j = 0; f && j < 2; j++)
            two[j] = cg_fmul(cg, two[j], f);
        operand[i / 2] = nv_pack(cg, c->s->operand, two[0], two[1]);
    }
}

/* Combines x[first], x[first + step], ... pairwise, so that the depth is the logarithm. */
static Val reduce(Cg *cg, Val (*two)(Cg *, Val, Val), const Val *x, int first, int step,
                  int count) {
    if (first + step >= count)
        return x[first];
    Val a = reduce(cg, two, x, first, 2 * step, count);
    return two(cg, a, reduce(cg, two, x, first + step, 2 * step, count));
}

static Val smaller(Cg *cg, Val a, Val b) {
    Val arg[2] = {a, b};
    return cg_intrinsic(cg, "llvm.minnum", (Ty[]){cg->f32}, 1, arg, 2);
}

/* Largest magnitude of V column half h in a fragment, over the four lanes that hold it. */
static Val column_most(Chain *c, const Val *x, int count, int h) {
    Cg *cg = c->cg;
    Val half[64];
    int n = 0;
    for (int i = 0; i < count; i++)
        if (i / 2 % 2 == h) {
            half[n++] = nv_magnitude(cg, x[i]);
        }
    Val most = reduce(cg, nv_larger, half, 0, 1, n);
    most = nv_larger(cg, most, nv_shuffle_xor(cg, most, 1));
    return nv_larger(cg, most, nv_shuffle_xor(cg, most, 2));
}

static Val unit_for(Cg *cg, Val most, double units) {
    Val unit = nv_larger(cg, nv_power_below(cg, most), cg_float(cg, UNIT_LEAST / units));
    unit = smaller(cg, unit, cg_float(cg, UNIT_MOST / units));
    return cg_fmul(cg, unit, cg_float(cg, units));
}

static Val is_zero(Cg *cg, Val x) {
    return LLVMBuildFCmp(cg->b, LLVMRealOEQ, x, cg_float(cg, 0), "");
}

static Val not_zero(Cg *cg, Val x) {
    return cg_cmp(cg, LLVMIntNE, x, cg_int(cg, 0));
}

static Val any_lane(Cg *cg, Val condition) {
    return not_zero(cg, nv_ballot(cg, condition));
}

static Val has_bits(Cg *cg, Val x, int bits) {
    return not_zero(cg, cg_and(cg, x, cg_int(cg, bits)));
}

/* i1, the same in the whole warp: some column of the state's operand is out of range. Sets
 * empty_column: some column's operand is all zeros. */
static Val out_of_range(Chain *c, const Val *operand, int count) {
    Cg *cg = c->cg;
    Val fine = cg_int(cg, 0x11111111), all[2], some = cg_int(cg, 0x11111111);
    for (int h = 0; h < 2; h++) {
        all[h] = reduce(cg, cg_or, operand, h, 2, count);
        Val least =
            LLVMBuildFCmp(cg->b, LLVMRealOLE, cg_get(cg, c->unit[h]), cg_float(cg, UNIT_LEAST), "");
        Val good = LLVMBuildOr(cg->b, has_bits(cg, all[h], LARGE_ENOUGH), least, "");
        Val lanes = nv_ballot(cg, good); /* bit 4g + t: lane t of column g sees one */
        lanes = cg_or(cg, lanes, cg_shr(cg, lanes, 1));
        fine = cg_and(cg, fine, cg_or(cg, lanes, cg_shr(cg, lanes, 2)));
        lanes = nv_ballot(cg, not_zero(cg, all[h]));
        lanes = cg_or(cg, lanes, cg_shr(cg, lanes, 1));
        some = cg_and(cg, some, cg_or(cg, lanes, cg_shr(cg, lanes, 2)));
    }
    c->empty_column = cg_cmp(cg, LLVMIntNE, some, cg_int(cg, 0x11111111));
    Val large = any_lane(cg, has_bits(cg, cg_or(cg, all[0], all[1]), TOO_LARGE));
    return LLVMBuildOr(cg->b, large, cg_cmp(cg, LLVMIntNE, fine, cg_int(cg, 0x11111111)), "");
}

void chain_set_all(Chain *c, const Var *to, const Val *x, int count) {
    for (int i = 0; i < count; i++)
        cg_set(c->cg, to[i], x[i]);
}

void chain_get_state(Chain *c, Val *x) {
    for (int i = 0; i < chain_state_elements(c); i++)
        x[i] = cg_get(c->cg, c->state[i / 4][i % 4]);
}

void chain_set_state(Chain *c, const Val *x) {
    for (int n = 0; n < c->s->kp / 8; n++)
        chain_set_all(c, c->state[n], x + 4 * n, 4);
}

/* The state's operand, after giving columns that left the range another unit. */
void chain_state_operand(Chain *c) {
    static const Val one[2];
    Cg *cg = c->cg;
    int count = chain_state_elements(c);
    Val x[128] = {NULL}, *operand = c->state_operand;
    Var kept[64];
    chain_get_state(c, x);
    chain_pack(c, x, count, one, operand);
    for (int i = 0; i < count / 2; i++)
        kept[i] = cg_var(cg, cg->i32, operand[i]);
    If seldom = cg_if(cg, out_of_range(c, operand, count / 2));
    Val old[2], inverse[2];
    for (int h = 0; h < 2; h++) {
        old[h] = cg_get(cg, c->unit[h]);
        Val most = column_most(c, x, count, h);
        Val unit = unit_for(cg, cg_fmul(cg, most, old[h]), UNITS_OF_LARGEST);
        unit = cg_select(cg, is_zero(cg, most), old[h], unit);
        inverse[h] = nv_power_inverse(cg, unit);
        cg_set(cg, c->unit[h], unit);
    }
    chain_scale_columns(c, x, count, old);
    chain_scale_columns(c, x, count, inverse);
    chain_set_state(c, x);
    chain_pack(c, x, count, one, operand);
    chain_set_all(c, kept, operand, count / 2);
    cg_end_if(cg, &seldom);
    for (int i = 0; i < count / 2; i++)
        operand[i] = cg_get(cg, kept[i]);
}

/* i1 the same in the warp: some element of an operand of `count` registers, a power of two of them,
 * is 2^15 or more. */
Val chain_too_large(Chain *c, const Val *operand, int count) {
    Cg *cg = c->cg;
    Ty pair = LLVMVectorType(cg->f16, 2);
    Val x[MAX_FRAGMENT / 2], no_sign = cg_int(cg, 0x7fff7fff);
    for (int i = 0; i < count; i++)
        x[i] = cg_and(cg, operand[i], no_sign);
    for (; count > 1; count /= 2)
        for (int i = 0; i < count / 2; i++) {
            Val arg[2] = {LLVMBuildBitCast(cg->b, x[2 * i], pair, ""),
                          LLVMBuildBitCast(cg->b, x[2 * i + 1], pair, "")};
            Val m = cg_intrinsic(cg, "llvm.maxnum", &pair, 1, arg, 2);
            x[i] = LLVMBuildBitCast(cg->b, m, cg->i32, "");
        }
    /* 2^15 is 0x7800; adding 0x0800 carries into the cleared sign. */
    return any_lane(cg, has_bits(cg, cg_add(cg, x[0], cg_int(cg, 0x08000800)), 0x80008000));
}

void chain_fit_units(Chain *c, const Val *x, Val scale, Val ratio[2]) {
    Cg *cg = c->cg;
    Val state[128];
    chain_get_state(c, state);
    for (int h = 0; h < 2; h++) {
        Val most = column_most(c, x, chain_fragment(c), h), old = cg_get(cg, c->unit[h]);
        if (scale)
            most = cg_fmul(cg, most, scale);
        Val none = is_zero(cg, column_most(c, state, chain_state_elements(c), h));
        Val small =
            LLVMBuildFCmp(cg->b, LLVMRealOLT, most, cg_fmul(cg, old, cg_float(cg, X_LEAST)), "");
        small = cg_and(cg, small, LLVMBuildNot(cg->b, is_zero(cg, most), ""));
        Val large =
            LLVMBuildFCmp(cg->b, LLVMRealOGE, most, cg_fmul(cg, old, cg_float(cg, 0x1p15)), "");
        Val wrong = cg_or(cg, large, cg_and(cg, none, small));
        Val unit = cg_select(cg, wrong, unit_for(cg, most, UNITS_OF_LARGEST_X), old);
        ratio[h] = cg_fmul(cg, old, nv_power_inverse(cg, unit));
        cg_set(cg, c->unit[h], unit);
    }
    chain_scale_columns(c, state, chain_state_elements(c), ratio);
    chain_set_state(c, state);
}
