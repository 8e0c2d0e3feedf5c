/* The factor kernel after the scores: the inverse of the unit lower triangular system, and the two
 * products that leave the serial chain only two GEMMs (M = Aq A, P = A' Kt).
 *
 * All matrices here are f32 in shared memory and multiply as tf32: A's entries can reach 1e6 for
 * erase gates up to 2 (not a contraction), beyond f16, while bf16's 8 bits lose what cancels between
 * neighbouring rows for correlated keys.
 */
#include "codegen/nvptx/factor.h"

/* Pointer to element (row, column) of an f32 matrix at byte offset `base`. */
static Val element(Factor *f, int base, Val row, Val column)
{
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, factor_g_stride(f->s))), column);
    return factor_shared_f32(f, base, index);
}

static int scores_base(const Factor *f, int family)
{
    return f->sh_g + family * f->s->rows * factor_g_stride(f->s) * 4;
}

static void store_pair(Cg *cg, Val p, Val lo, Val hi)
{
    Val v = LLVMGetUndef(LLVMVectorType(cg->f32, 2));
    v = cg_insert(cg, cg_insert(cg, v, lo, 0), hi, 1);
    cg_store(cg, v, p, 8);
}

/* Decays after this warp's block, and D. */
void factor_tail(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    Val unit = cg_add(cg, cg_shl(cg, slab.i, 2), f->t), channel = cg_shl(cg, unit, 3);
    Var after[8];
    for (int e = 0; e < 8; e++)
        after[e] = cg_var(cg, cg->f32, cg_float(cg, 1));
    Loop block = cg_for(cg, cg_add(cg, f->warp, cg_int(cg, 1)), cg_int(cg, s->warps), 1, false);
    Val index = cg_add(cg, cg_mul(cg, block.i, cg_int(cg, s->kp)), channel);
    for (int e = 0; e < 8; e++) {
        Val p = factor_shared_f32(f, f->sh_total, cg_add(cg, index, cg_int(cg, e)));
        cg_set(cg, after[e], cg_fmul(cg, cg_get(cg, after[e]), cg_load(cg, cg->f32, p, 4)));
    }
    cg_end_for(cg, &block);
    for (int h = 0; h < 2; h++) {
        Val p = factor_key_unit(f, f->row[h], unit), pair[4], x[2];
        factor_load_unit(cg, p, pair);
        for (int j = 0; j < 4; j++) {
            nv_unpack(cg, s->operand, pair[j], x);
            for (int c = 0; c < 2; c++)
                x[c] = cg_fmul(cg, x[c], cg_get(cg, after[2 * j + c]));
            pair[j] = nv_pack(cg, s->operand, x[0], x[1]);
        }
        factor_store_unit(cg, p, pair);
    }
    cg_end_for(cg, &slab);
    Loop c = cg_for(cg, nv_tid(cg), cg_int(cg, s->kp), 32 * s->warps, false);
    Val d = cg_float(cg, 1);
    for (int b = 0; b < s->warps; b++) {
        Val p = factor_shared_f32(f, f->sh_total, cg_add(cg, c.i, cg_int(cg, b * s->kp)));
        d = cg_fmul(cg, d, cg_load(cg, cg->f32, p, 4));
    }
    Val byte = cg_add(cg, cg_shl(cg, c.i, 2), cg_int(cg, (int)s->ws_d));
    cg_store(cg, d, cg_gep8(cg, f->record, byte), 4);
    cg_end_for(cg, &c);
}

/* Where a family's score pairs go: shared memory for later products, or M in the workspace. */
static void put_scores(Factor *f, int family, int h, Val column, Val lo, Val hi)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    if (s->erase) {
        store_pair(cg, element(f, scores_base(f, family), f->row[h], column), lo, hi);
        return;
    }
    Val p = factor_ws_pair(f, s->family[family].ws_m, s->rows, f->stored_row[family][h], column);
    cg_store(cg, nv_pack(cg, s->operand, lo, hi), p, 4);
}

void factor_store_scores(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val base = cg_shl(cg, f->warp, 4), zero = cg_float(cg, 0);
    Val column = cg_add(cg, base, cg_shl(cg, f->t, 1)), right = cg_add(cg, column, cg_int(cg, 8));
    for (int i = 0; i < s->families; i++) {
        Val d[6];
        for (int j = 0; j < 6; j++)
            d[j] = cg_get(cg, f->diag[i][j]);
        put_scores(f, i, 0, column, d[0], d[1]);
        put_scores(f, i, 0, right, zero, zero);
        put_scores(f, i, 1, column, d[4], d[5]);
        put_scores(f, i, 1, right, d[2], d[3]);
        for (int distance = 1; distance < s->warps; distance++) {
            If below = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)));
            for (int n = 0; n < 2; n++) {
                Val c[4], at = cg_sub(cg, column, cg_int(cg, 16 * distance - 8 * n));
                for (int j = 0; j < 4; j++)
                    c[j] = cg_get(cg, f->off[distance - 1][i][n][j]);
                put_scores(f, i, 0, at, c[0], c[1]);
                put_scores(f, i, 1, at, c[2], c[3]);
            }
            cg_end_if(cg, &below);
        }
    }
}

/* tf32 A fragment of the 16x8 tile at (row, column) of a matrix; transposed reads M[column][row]. */
static void fragment_a(Factor *f, int base, Val row, Val column, bool transposed, Val a[4])
{
    Cg *cg = f->cg;
    for (int i = 0; i < 4; i++) {
        Val r = cg_add(cg, cg_add(cg, row, f->g), cg_int(cg, i % 2 ? 8 : 0));
        Val c = cg_add(cg, cg_add(cg, column, f->t), cg_int(cg, i / 2 ? 4 : 0));
        Val p = transposed ? element(f, base, c, r) : element(f, base, r, c);
        a[i] = nv_tf32(cg, cg_load(cg, cg->f32, p, 4));
    }
}

/* acc[n] += X(xr, xc) Y(yr, yc), blocks of 16x16 in two matrices; n = 8-column half. */
static void multiply16(Factor *f, Val acc[2][4], int x, Val xr, Val xc, int y, Val yr, Val yc)
{
    Cg *cg = f->cg;
    for (int step = 0; step < 2; step++) {
        Val a[4], b[2], k = cg_int(cg, 8 * step);
        fragment_a(f, x, xr, cg_add(cg, xc, k), false, a);
        for (int n = 0; n < 2; n++) {
            for (int i = 0; i < 2; i++) {
                Val r = cg_add(cg, cg_add(cg, yr, k), cg_add(cg, f->t, cg_int(cg, 4 * i)));
                Val c = cg_add(cg, cg_add(cg, yc, f->g), cg_int(cg, 8 * n));
                b[i] = nv_tf32(cg, cg_load(cg, cg->f32, element(f, y, r, c), 4));
            }
            nv_mma_tf32(cg, acc[n], a, b);
        }
    }
}

static Val larger(Cg *cg, Val a, Val b)
{
    return cg_select(cg, LLVMBuildFCmp(cg->b, LLVMRealOGT, a, b, ""), a, b);
}

static void see(Factor *f, Val x)
{
    Ty t = f->cg->f32;
    x = cg_intrinsic(f->cg, "llvm.fabs", &t, 1, &x, 1);
    cg_set(f->cg, f->largest, larger(f->cg, cg_get(f->cg, f->largest), x));
}

static void zero16(Cg *cg, Val acc[2][4])
{
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            acc[n][i] = cg_float(cg, 0);
}

/* Store a 16x16 accumulator block, negated if it is one of A's. */
static void store16(Factor *f, int base, Val row, Val column, Val acc[2][4], bool negate)
{
    Cg *cg = f->cg;
    for (int n = 0; n < 2; n++) {
        Val c = cg_add(cg, cg_add(cg, column, cg_shl(cg, f->t, 1)), cg_int(cg, 8 * n)), x[4];
        for (int i = 0; i < 4; i++)
            x[i] = negate ? LLVMBuildFNeg(cg->b, acc[n][i], "") : acc[n][i];
        for (int i = 0; negate && i < 4; i++)
            see(f, x[i]);
        store_pair(cg, element(f, base, cg_add(cg, row, f->g), c), x[0], x[1]);
        row = cg_add(cg, row, cg_int(cg, 8));
        store_pair(cg, element(f, base, cg_add(cg, row, f->g), c), x[2], x[3]);
        row = cg_sub(cg, row, cg_int(cg, 8));
    }
}

/* A's diagonal 16x16 block by forward substitution, lane l%16 = column; blocks right of it are 0. */
static void invert_diagonal(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val base = cg_shl(cg, f->warp, 4), column = cg_and(cg, f->lane, cg_int(cg, 15)), a[16];
    for (int r = 0; r < 16; r++) {
        Val row = cg_add(cg, base, cg_int(cg, r)), four = NULL;
        Val same = cg_cmp(cg, LLVMIntEQ, column, cg_int(cg, r)), sum[2];
        sum[0] = cg_select(cg, same, cg_float(cg, 1), cg_float(cg, 0));
        sum[1] = cg_float(cg, 0);
        for (int u = 0; u < r; u++) {
            if (u % 4 == 0)
                four = cg_load(cg, LLVMVectorType(cg->f32, 4),
                               element(f, scores_base(f, 0), row, cg_add(cg, base, cg_int(cg, u))), 16);
            Val t = LLVMBuildFNeg(cg->b, cg_extract(cg, four, u % 4), "");
            sum[u % 2] = cg_fma(cg, t, a[u], sum[u % 2]);
        }
        a[r] = cg_fadd(cg, sum[0], sum[1]);
        see(f, a[r]);
    }
    Val upper = cg_cmp(cg, LLVMIntUGE, f->lane, cg_int(cg, 16));
    for (int r = 0; r < 8; r++) {
        Val row = cg_add(cg, base, cg_add(cg, cg_int(cg, r), cg_shl(cg, cg_shr(cg, f->lane, 4), 3)));
        cg_store(cg, cg_select(cg, upper, a[r + 8], a[r]),
                 element(f, f->sh_a, row, cg_add(cg, base, column)), 4);
    }
    Val zero[2][4];
    zero16(cg, zero);
    Loop block = cg_for(cg, cg_add(cg, f->warp, cg_int(cg, 1)), cg_int(cg, s->warps), 1, false);
    store16(f, f->sh_a, base, cg_shl(cg, block.i, 4), zero, false);
    cg_end_for(cg, &block);
}

/* Odd blocks: A[i][i-1] = -A[i][i] T[i][i-1] A[i-1][i-1], by warp i alone. */
static void merge_pairs(Factor *f)
{
    Cg *cg = f->cg;
    Val i = cg_shl(cg, f->warp, 4), j = cg_sub(cg, i, cg_int(cg, 16)), acc[2][4];
    If odd = cg_if(cg, cg_cmp(cg, LLVMIntEQ, cg_and(cg, f->warp, cg_int(cg, 1)), cg_int(cg, 1)));
    zero16(cg, acc);
    multiply16(f, acc, scores_base(f, 0), i, j, f->sh_a, j, j);
    nv_warp_sync(cg);
    store16(f, scores_base(f, 0), i, j, acc, false);
    nv_warp_sync(cg);
    zero16(cg, acc);
    multiply16(f, acc, f->sh_a, i, i, scores_base(f, 0), i, j);
    store16(f, f->sh_a, i, j, acc, true);
    cg_end_if(cg, &odd);
}

/* The lower left 32x32 of 64x64: warp w makes block (2 + w/2, w%2); blocks above A's diagonal are
 * zero, so the sums need no bounds. */
static void merge_halves(Factor *f)
{
    Cg *cg = f->cg;
    Val i = cg_add(cg, cg_int(cg, 32), cg_shl(cg, cg_shr(cg, f->warp, 1), 4));
    Val j = cg_shl(cg, cg_and(cg, f->warp, cg_int(cg, 1)), 4), acc[2][4];
    zero16(cg, acc);
    for (int m = 0; m < 32; m += 16)
        multiply16(f, acc, scores_base(f, 0), i, cg_int(cg, m), f->sh_a, cg_int(cg, m), j);
    nv_barrier(cg);
    store16(f, scores_base(f, 0), i, j, acc, false);
    nv_barrier(cg);
    zero16(cg, acc);
    for (int n = 32; n < 64; n += 16)
        multiply16(f, acc, f->sh_a, i, cg_int(cg, n), scores_base(f, 0), cg_int(cg, n), j);
    store16(f, f->sh_a, i, j, acc, true);
}

/* scale = the power of two at or below the largest |A|, at least 1. */
static void choose_scale(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val x = cg_get(cg, f->largest);
    for (int m = 1; m < 32; m *= 2)
        x = larger(cg, x, nv_shuffle_xor(cg, x, m));
    cg_store(cg, x, factor_shared_f32(f, f->sh_scale, f->warp), 4);
    nv_barrier(cg);
    for (int w = 0; w < s->warps; w++)
        x = larger(cg, x, cg_load(cg, cg->f32, factor_shared_f32(f, f->sh_scale, cg_int(cg, w)), 4));
    Val scale = nv_power_below(cg, larger(cg, x, cg_float(cg, 1)));
    f->shrink = nv_power_inverse(cg, scale);
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, nv_tid(cg), cg_int(cg, 0)));
    cg_store(cg, scale, cg_gep8(cg, f->record, cg_int(cg, (int)s->ws_scale)), 4);
    cg_end_if(cg, &one);
}

void factor_solve(Factor *f)
{
    Cg *cg = f->cg;
    f->largest = cg_var(cg, cg->f32, cg_float(cg, 1));
    invert_diagonal(f);
    if (f->s->warps >= 2) {
        nv_barrier(cg);
        merge_pairs(f);
    }
    if (f->s->warps >= 4) {
        nv_barrier(cg);
        merge_halves(f);
    }
    if (f->s->operand == ELEM_f16)
        choose_scale(f);
    else
        nv_barrier(cg);
}

static Val pack_shrunk(Factor *f, Val lo, Val hi)
{
    Cg *cg = f->cg;
    if (f->shrink) {
        lo = cg_fmul(cg, lo, f->shrink);
        hi = cg_fmul(cg, hi, f->shrink);
    }
    return nv_pack(cg, f->s->operand, lo, hi);
}

/* M_f: warp w makes block row w; blocks above the diagonal are zero. */
static void product_mix(Factor *f, int family)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val row = cg_shl(cg, f->warp, 4);
    Var acc[MAX_WARPS][2][4];
    for (int j = 0; j < s->warps; j++)
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++)
                acc[j][n][i] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop m = cg_for(cg, cg_int(cg, 0), cg_add(cg, row, cg_int(cg, 16)), 16, false);
    for (int j = 0; j < s->warps; j++) {
        If lower = cg_if(cg, cg_cmp(cg, LLVMIntUGE, m.i, cg_int(cg, 16 * j)));
        Val c[2][4];
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++)
                c[n][i] = cg_get(cg, acc[j][n][i]);
        multiply16(f, c, scores_base(f, family), row, m.i, f->sh_a, m.i, cg_int(cg, 16 * j));
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++)
                cg_set(cg, acc[j][n][i], c[n][i]);
        cg_end_if(cg, &lower);
    }
    cg_end_for(cg, &m);
    for (int j = 0; j < s->warps; j++)
        for (int n = 0; n < 2; n++)
            for (int h = 0; h < 2; h++) {
                Val column = cg_add(cg, cg_int(cg, 16 * j + 8 * n), cg_shl(cg, f->t, 1));
                Val pair = pack_shrunk(f, cg_get(cg, acc[j][n][2 * h]),
                                       cg_get(cg, acc[j][n][2 * h + 1]));
                cg_store(cg, pair,
                         factor_ws_pair(f, s->family[family].ws_m, s->rows, f->stored_row[family][h], column), 4);
            }
}

/* Zero blocks of M_f above the diagonal when M_f = Aq was stored block by block. */
static void zero_above(Factor *f, int family)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop c = cg_for(cg, cg_add(cg, cg_shl(cg, f->warp, 4), cg_int(cg, 16)), cg_int(cg, s->rows), 8,
                    false);
    for (int h = 0; h < 2; h++) {
        Val column = cg_add(cg, c.i, cg_shl(cg, f->t, 1));
        cg_store(cg, cg_int(cg, 0),
                 factor_ws_pair(f, s->family[family].ws_m, s->rows, f->stored_row[family][h], column), 4);
    }
    cg_end_for(cg, &c);
}

/* B fragments for 16 updates x 32 channels of Kt: b[step][n]. f16 and bf16 are exact in tf32. */
static void fragment_keys(Factor *f, int block, Val group, Val b[2][4][2])
{
    Cg *cg = f->cg;
    for (int step = 0; step < 2; step++)
        for (int n = 0; n < 4; n++)
            for (int i = 0; i < 2; i++) {
                Val row = cg_add(cg, f->t, cg_int(cg, 16 * block + 8 * step + 4 * i));
                Val unit = cg_add(cg, cg_shl(cg, group, 2), cg_int(cg, n));
                Val p = cg_gep8(cg, factor_key_unit(f, row, unit), cg_shl(cg, f->g, 1));
                Val x = cg_load(cg, cg_elem_type(cg, f->s->operand), p, 2);
                b[step][n][i] = LLVMBuildBitCast(cg->b, cg_to_f32(cg, x), cg->i32, "");
            }
}

/* P = A' Kt for 32 channels at a time, all rows. */
static void product_writes(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop group = cg_for(cg, f->warp, cg_int(cg, s->kp / 32), s->warps, false);
    Val acc[MAX_WARPS][4][4];
    for (int i = 0; i < s->warps; i++)
        for (int n = 0; n < 4; n++)
            for (int c = 0; c < 4; c++)
                acc[i][n][c] = cg_float(cg, 0);
    for (int j = 0; j < s->warps; j++) {
        Val b[2][4][2];
        fragment_keys(f, j, group.i, b);
        for (int i = 0; i <= j; i++)
            for (int step = 0; step < 2; step++) {
                Val a[4];
                fragment_a(f, f->sh_a, cg_int(cg, 16 * i), cg_int(cg, 16 * j + 8 * step), true, a);
                for (int n = 0; n < 4; n++)
                    nv_mma_tf32(cg, acc[i][n], a, b[step][n]);
            }
    }
    for (int i = 0; i < s->warps; i++)
        for (int n = 0; n < 4; n++)
            for (int h = 0; h < 2; h++) {
                Val row = cg_add(cg, f->g, cg_int(cg, 16 * i + 8 * h));
                Val channel = cg_add(cg, cg_shl(cg, group.i, 5),
                                     cg_add(cg, cg_int(cg, 8 * n), cg_shl(cg, f->t, 1)));
                Val pair = pack_shrunk(f, acc[i][n][2 * h], acc[i][n][2 * h + 1]);
                cg_store(cg, pair, factor_ws_pair(f, s->ws_p, s->kp, row, channel), 4);
            }
    cg_end_for(cg, &group);
}

/* P = Kt without an erase: this lane's rows as they are. */
static void copy_writes(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    Val unit = cg_add(cg, cg_shl(cg, slab.i, 2), f->t);
    for (int h = 0; h < 2; h++) {
        Val pair[4];
        factor_load_unit(cg, factor_key_unit(f, f->row[h], unit), pair);
        factor_store_unit(cg, factor_ws_unit(f, s->ws_p, s->kp, f->row[h], unit), pair);
    }
    cg_end_for(cg, &slab);
}

void factor_products(Factor *f)
{
    const System *s = f->s;
    for (int i = s->erase ? 1 : 0; i < s->families; i++) {
        if (s->erase)
            product_mix(f, i);
        else
            zero_above(f, i);
    }
    if (s->erase)
        product_writes(f);
    else
        copy_writes(f);
}
