/* The chain's products by warpgroups: A from registers, B as it lies in the stage.
 *
 *     issue W_f S' of every family; meanwhile what X needs of the inputs, and S *= D
 *     wait for the erase family; X
 *     issue M_f X', on top of the outs' W_f S', then S' += X' P; meanwhile the outs
 *     wait for S
 *
 * f16 operands have 5 bits of exponent, and neither S nor X has a bound. So S is kept as S / unit, a
 * power of two per V column that changes only when the column leaves the range in which f16 is good,
 * and X is divided by the same unit on its way to an operand: products add up without another scale.
 * The unit is right as long as
 *     no element of S / unit is 2 or more                      (bit 14 of an f16 is set iff it is)
 *     some element of S / unit is 2^-11 or more, or S is 0     (bits 12-14 are not all clear)
 *     no element of X / unit is 2^15 or more
 * At the upper end sums have room; at the lower, f16's spacing of 2^-24 is a quarter of the rounding
 * of the column's largest. The first two are about the past alone. X, which holds the chunk's later
 * tokens too, moves the unit only when it must: when it does not fit, and when there is no state yet
 * and X is so small that the unit would cost bits.
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

static int state_elements(const Chain *c) { return c->s->kp / 2; }

/* planning ------------------------------------------------------------------------------------- */

static int uses_of(const Kernel *k, int v)
{
    int uses = 0;
    for (int u = 0; u < k->inst.count; u++)
        for (int j = 0; j < inst_at(k, u)->nargs; j++)
            uses += inst_at(k, u)->arg[j] == v;
    return uses;
}

static int find_total(const Kernel *k, const Family *f)
{
    if (uses_of(k, f->read) != 1 || uses_of(k, f->mixed) != 1)
        return -1;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_add && ((i->arg[0] == f->read && i->arg[1] == f->mixed) ||
                                (i->arg[0] == f->mixed && i->arg[1] == f->read)))
            return v;
    }
    return -1;
}

void chain_wgmma_plan(Chain *c)
{
    for (int f = c->s->erase; f < c->s->families; f++)
        c->total[f] = find_total(c->k, &c->s->family[f]);
    for (int h = 0; h < 2; h++)
        c->unit[h] = cg_var(c->cg, c->cg->f32, cg_float(c->cg, 1));
}

/* Registers while the reads are under way: the state, its operand, the reads. */
static int registers(const Chain *c)
{
    return c->s->kp / 2 + c->s->kp / 4 + c->s->families * chain_fragment(c);
}

/* Of 255; the rest is for X and addresses. */
bool chain_wgmma_fits(const Chain *c) { return registers(c) <= 224; }

/* Working on X's inputs before the reads are done takes what is loaded and what becomes of it. */
static bool room_ahead(const Chain *c)
{
    int words = chain_fragment(c);
    for (int i = 0; i < c->nstaged; i++)
        words += chain_fragment(c) * c->staged[i].elem_bytes / 4;
    return registers(c) + words <= 224;
}

static Wgmma matrix(Chain *c, int64_t offset, int columns, bool along_rows)
{
    return nv_wgmma_matrix(c->cg, chain_stage_pointer(c, offset), c->s->rows, columns, along_rows);
}

/* units ---------------------------------------------------------------------------------------- */

/* The factor first: of a product that is subtracted, LLVM negates the first, and that one is shared. */
static void scale_columns(Chain *c, Val *x, int count, const Val factor[2])
{
    for (int i = 0; factor[0] && i < count; i++)
        x[i] = cg_fmul(c->cg, factor[i / 2 % 2], x[i]);
}

/* Accumulators times `factor` (or as they are) -> operand, count / 2 registers. */
static void pack(Chain *c, const Val *x, int count, const Val factor[2], Val *operand)
{
    Cg *cg = c->cg;
    for (int i = 0; i < count; i += 2) {
        Val two[2] = {x[i], x[i + 1]}, f = factor[i / 2 % 2];
        for (int j = 0; f && j < 2; j++)
            two[j] = cg_fmul(cg, two[j], f);
        operand[i / 2] = nv_pack(cg, c->s->operand, two[0], two[1]);
    }
}

/* Combines x[first], x[first + step], ... pairwise, so that the depth is the logarithm. */
static Val reduce(Cg *cg, Val (*two)(Cg *, Val, Val), const Val *x, int first, int step, int count)
{
    if (first + step >= count)
        return x[first];
    Val a = reduce(cg, two, x, first, 2 * step, count);
    return two(cg, a, reduce(cg, two, x, first + step, 2 * step, count));
}

static Val smaller(Cg *cg, Val a, Val b)
{
    Val arg[2] = {a, b};
    return cg_intrinsic(cg, "llvm.minnum", (Ty[]){cg->f32}, 1, arg, 2);
}

/* Largest magnitude of V column half h in a fragment, over the four lanes that hold it. */
static Val column_most(Chain *c, const Val *x, int count, int h)
{
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

static Val unit_for(Cg *cg, Val most, double units)
{
    Val unit = nv_larger(cg, nv_power_below(cg, most), cg_float(cg, UNIT_LEAST / units));
    unit = smaller(cg, unit, cg_float(cg, UNIT_MOST / units));
    return cg_fmul(cg, unit, cg_float(cg, units));
}

static Val is_zero(Cg *cg, Val x)
{
    return LLVMBuildFCmp(cg->b, LLVMRealOEQ, x, cg_float(cg, 0), "");
}

static Val not_zero(Cg *cg, Val x)
{
    return cg_cmp(cg, LLVMIntNE, x, cg_int(cg, 0));
}

static Val any_lane(Cg *cg, Val condition)
{
    return not_zero(cg, nv_ballot(cg, condition));
}

static Val has_bits(Cg *cg, Val x, int bits)
{
    return not_zero(cg, cg_and(cg, x, cg_int(cg, bits)));
}

/* i1, the same in the whole warp: some column of the state's operand is out of range. Sets
 * empty_column: some column's operand is all zeros. */
static Val out_of_range(Chain *c, const Val *operand, int count)
{
    Cg *cg = c->cg;
    Val fine = cg_int(cg, 0x11111111), all[2], some = cg_int(cg, 0x11111111);
    for (int h = 0; h < 2; h++) {
        all[h] = reduce(cg, cg_or, operand, h, 2, count);
        Val least = LLVMBuildFCmp(cg->b, LLVMRealOLE, cg_get(cg, c->unit[h]),
                                  cg_float(cg, UNIT_LEAST), "");
        Val good = LLVMBuildOr(cg->b, has_bits(cg, all[h], LARGE_ENOUGH), least, "");
        Val lanes = nv_ballot(cg, good);     /* bit 4g + t: lane t of column g sees one */
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

static void set_all(Chain *c, const Var *to, const Val *x, int count)
{
    for (int i = 0; i < count; i++)
        cg_set(c->cg, to[i], x[i]);
}

static void get_state(Chain *c, Val *x)
{
    for (int i = 0; i < state_elements(c); i++)
        x[i] = cg_get(c->cg, c->state[i / 4][i % 4]);
}

static void set_state(Chain *c, const Val *x)
{
    for (int n = 0; n < c->s->kp / 8; n++)
        set_all(c, c->state[n], x + 4 * n, 4);
}

/* The state's operand, after giving columns that left the range another unit. */
static void state_operand(Chain *c, Val *operand)
{
    static const Val one[2];
    Cg *cg = c->cg;
    int count = state_elements(c);
    Val x[128] = {NULL};
    Var kept[64];
    get_state(c, x);
    pack(c, x, count, one, operand);
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
    scale_columns(c, x, count, old);
    scale_columns(c, x, count, inverse);
    set_state(c, x);
    pack(c, x, count, one, operand);
    set_all(c, kept, operand, count / 2);
    cg_end_if(cg, &seldom);
    for (int i = 0; i < count / 2; i++)
        operand[i] = cg_get(cg, kept[i]);
}

/* the steps of a chunk ------------------------------------------------------------------------- */

static void decay_state(Chain *c)
{
    Cg *cg = c->cg;
    for (int n = 0; n < c->s->kp / 8; n++) {
        Val d[2];
        chain_decay(c, n, d);
        for (int j = 0; d[0] && j < 4; j++)
            cg_set(cg, c->state[n][j], cg_fmul(cg, cg_get(cg, c->state[n][j]), d[j % 2]));
    }
}

void chain_wgmma_read_state(Chain *c)
{
    const System *s = c->s;
    Val operand[64];
    state_operand(c, operand);
    /* Nothing is under way, but the assembler forgets that where branches meet, and would wait for
     * all products before the decay touches the state. */
    get_state(c, c->next);
    nv_wgmma_wait(c->cg, 0, c->next, state_elements(c));
    set_state(c, c->next);
    for (int f = 0; f < s->families; f++) {
        Wgmma w = matrix(c, s->family[f].ws_w, s->kp, false);
        nv_wgmma(c->cg, s->operand, c->product[f], operand, &w, false);
    }
    decay_state(c);
}

/* A product that is done, as a value. */
static void set_product(Chain *c, int f, int v)
{
    Val x[MAX_FRAGMENT], unit[2];
    for (int h = 0; h < 2; h++)
        unit[h] = cg_get(c->cg, c->unit[h]);
    memcpy(x, c->product[f], sizeof x);
    scale_columns(c, x, chain_fragment(c), unit);
    chain_scale_rows(c, f, x);
    chain_set(c, v, x);
}

/* What turns X into its operand: M and P lack their record's scale. */
static void x_factor(Chain *c, Val factor[2])
{
    Cg *cg = c->cg;
    for (int h = 0; h < 2; h++) {
        factor[h] = nv_power_inverse(cg, cg_get(cg, c->unit[h]));
        if (c->s->has_scale)
            factor[h] = cg_fmul(cg, factor[h], chain_record_scale(c));
    }
}

/* i1 the same in the warp: some element of X's operand is 2^15 or more. */
static Val too_large(Chain *c)
{
    Cg *cg = c->cg;
    Ty pair = LLVMVectorType(cg->f16, 2);
    Val x[MAX_FRAGMENT / 2], no_sign = cg_int(cg, 0x7fff7fff);
    int count = chain_fragment(c) / 2;
    for (int i = 0; i < count; i++)
        x[i] = cg_and(cg, c->x_operand[i], no_sign);
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

/* Columns whose X does not fit their unit, or has no state beside it and is too small for it, get
 * another; state and products follow. */
static void fit_units(Chain *c, const Val *x)
{
    Cg *cg = c->cg;
    const System *s = c->s;
    Val ratio[2], state[128];
    get_state(c, state);
    for (int h = 0; h < 2; h++) {
        Val most = column_most(c, x, chain_fragment(c), h), old = cg_get(cg, c->unit[h]);
        if (s->has_scale)
            most = cg_fmul(cg, most, chain_record_scale(c));
        Val none = is_zero(cg, column_most(c, state, state_elements(c), h));
        Val small = LLVMBuildFCmp(cg->b, LLVMRealOLT, most, cg_fmul(cg, old, cg_float(cg, X_LEAST)), "");
        small = cg_and(cg, small, LLVMBuildNot(cg->b, is_zero(cg, most), ""));
        Val large = LLVMBuildFCmp(cg->b, LLVMRealOGE, most, cg_fmul(cg, old, cg_float(cg, 0x1p15)), "");
        Val wrong = cg_or(cg, large, cg_and(cg, none, small));
        Val unit = cg_select(cg, wrong, unit_for(cg, most, UNITS_OF_LARGEST_X), old);
        ratio[h] = cg_fmul(cg, old, nv_power_inverse(cg, unit));
        cg_set(cg, c->unit[h], unit);
    }
    scale_columns(c, state, state_elements(c), ratio);
    set_state(c, state);
    for (int f = s->erase; f < s->families; f++)
        if (c->total[f] >= 0)
            scale_columns(c, c->product[f], chain_fragment(c), ratio);
}

/* X's operand; the outs' reads are done, and still in the unit of before. */
static void x_operand(Chain *c)
{
    Cg *cg = c->cg;
    const System *s = c->s;
    int count = chain_fragment(c);
    Val factor[2];
    const Val *x = chain_x(c);
    Var kept[MAX_FRAGMENT / 2], product[MAX_FAMILIES][MAX_FRAGMENT];
    x_factor(c, factor);
    pack(c, x, count, factor, c->x_operand);
    for (int f = s->erase; f < s->families; f++) {
        nv_wgmma_wait(cg, 0, c->product[f], count);
        if (c->total[f] < 0)
            set_product(c, f, s->family[f].read);
    }
    for (int i = 0; i < count / 2; i++)
        kept[i] = cg_var(cg, cg->i32, c->x_operand[i]);
    for (int f = s->erase; f < s->families; f++)
        for (int i = 0; i < count; i++)
            product[f][i] = cg_var(cg, cg->f32, c->product[f][i]);
    If seldom = cg_if(cg, cg_or(cg, too_large(c), c->empty_column));
    fit_units(c, x);
    x_factor(c, factor);
    pack(c, x, count, factor, c->x_operand);
    set_all(c, kept, c->x_operand, count / 2);
    for (int f = s->erase; f < s->families; f++)
        set_all(c, product[f], c->product[f], count);
    cg_end_if(cg, &seldom);
    for (int i = 0; i < count / 2; i++)
        c->x_operand[i] = cg_get(cg, kept[i]);
    for (int f = s->erase; f < s->families; f++)
        for (int i = 0; i < count; i++)
            c->product[f][i] = cg_get(cg, product[f][i]);
}

void chain_wgmma_mix(Chain *c)
{
    Cg *cg = c->cg;
    const System *s = c->s;
    if (room_ahead(c))
        chain_prefetch(c, s->X);
    if (s->erase) {
        nv_wgmma_wait(cg, s->families - 1, c->product[0], chain_fragment(c));
        set_product(c, 0, s->family[0].read);
    }
    x_operand(c);
    for (int f = s->erase; f < s->families; f++) {
        Wgmma m = matrix(c, s->family[f].ws_m, s->rows, false);
        nv_wgmma(cg, s->operand, c->product[f], c->x_operand, &m, c->total[f] >= 0);
    }
    Wgmma p = matrix(c, s->ws_p, s->kp, true);
    get_state(c, c->next);
    nv_wgmma(cg, s->operand, c->next, c->x_operand, &p, true);
    for (int f = s->erase; f < s->families; f++) {
        nv_wgmma_wait(cg, 1, c->product[f], chain_fragment(c));
        set_product(c, f, c->total[f] >= 0 ? c->total[f] : s->family[f].mixed);
    }
}

void chain_wgmma_advance(Chain *c)
{
    nv_wgmma_wait(c->cg, 0, c->next, state_elements(c));
    set_state(c, c->next);
}
