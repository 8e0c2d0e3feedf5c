/* The factor kernel after the scores: the inverse A of the unit lower triangular system I + T, and
 * the two products that leave the serial chain only two GEMMs (M = Aq A, P = A' Kt).
 *
 * T and A are f32 in shared memory, A made in place of T: 16x16 blocks on the diagonal by forward
 * substitution, then pairs, then halves by block products. For nearby keys A's rows cancel against
 * each other, so A keeps more than an operand's 11 bits: block products take both factors as sums of
 * two tf32 numbers, M and P take A / scale as a sum of two f16 numbers. A's entries reach
 * 135 for erase gates up to 1 and 1e6 up to 2 (I - k (b.k)' is not a contraction): scale, a power of
 * two, keeps what is made from A in f16's range. While A is moderate scale is 1 and no token's
 * rounding depends on a later token.
 */
#include "codegen/nvptx/factor.h"

/* Pointer to element (row, column) of an f32 matrix at byte offset `base`. */
static Val element(Factor *f, int base, Val row, Val column) {
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, factor_g_stride(f->s))), column);
    return factor_shared_f32(f, base, index);
}

/* The same for an operand-type matrix. */
static Val pair_element(Factor *f, int base, Val row, Val column) {
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, factor_pair_stride(f->s))), column);
    return cg_gep8(cg, nv_shared(cg, base), cg_shl(cg, index, 1));
}

static void store_words(Cg *cg, Val p, const Val *word, int count) {
    Val v = LLVMGetUndef(LLVMVectorType(cg->i32, (unsigned)count));
    for (int j = 0; j < count; j++)
        v = cg_insert(cg, v, word[j], j);
    cg_store(cg, v, p, 4 * count);
}

/* scores --------------------------------------------------------------------------------------- */

static Val words_of(Cg *cg, Val f32) { return LLVMBuildBitCast(cg->b, f32, cg->i32, ""); }

/* Scales of the keys of four neighbouring updates. */
static void key_scales(Factor *f, Val column, Val scale[4]) {
    Cg *cg = f->cg;
    Val v = cg_load(cg, LLVMVectorType(cg->f32, 4), factor_shared_f32(f, f->sh_keys, column), 16);
    for (int j = 0; j < 4; j++)
        scale[j] = cg_extract(cg, v, j);
}

/* Four neighbouring scores of row half h, from `column` on: T as it is; scores of out families for
 * M = Aq A divided by the rows' and keys' scales; where nothing is erased these are M. */
static void put_scores(Factor *f, int family, int h, Val column, Val x[4]) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val word[4], key[4] = {NULL};
    bool is_t = s->erase && family == 0;
    if (s->p_scaled && is_t)
        key_scales(f, column, key);
    for (int j = 0; j < 4; j++) {
        if (key[j])
            x[j] = cg_fmul(cg, x[j], key[j]);
        if (is_t && s->family[0].scaled)
            x[j] = cg_fmul(cg, x[j], f->row_scale[0][h]);
        if (is_t && s->key_multiple >= 0)
            x[j] = cg_fmul(cg, x[j], f->multiple[h]);
        word[j] = words_of(cg, x[j]);
    }
    if (is_t) {
        store_words(cg, element(f, f->sh_t, f->row[h], column), word, 4);
        return;
    }
    for (int j = 0; j < 2; j++)
        word[j] = nv_pack(cg, s->operand, x[2 * j], x[2 * j + 1]);
    Val p = s->erase ? pair_element(f, factor_matrix_base(f, family), f->row[h], column)
                     : factor_ws_pair(f, s->family[family].ws_m, s->rows,
                                      f->stored_row[family][h], column);
    store_words(cg, p, word, 2);
}

void factor_store_scores(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val base = cg_add(cg, cg_shl(cg, f->warp, 4), cg_shl(cg, f->t, 2));
    for (int i = 0; i < s->families; i++)
        for (int distance = 0; distance < s->warps; distance++) {
            If below = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)));
            for (int h = 0; h < 2; h++) {
                Val x[4]; /* column 4t + 2c + n */
                for (int j = 0; j < 4; j++)
                    x[j] = cg_get(cg, f->block[distance][i][j % 2][2 * h + j / 2]);
                put_scores(f, i, h, cg_sub(cg, base, cg_int(cg, 16 * distance)), x);
            }
            cg_end_if(cg, &below);
        }
}

/* inverse -------------------------------------------------------------------------------------- */

/* x = high + low, both tf32. */
static void split_tf32(Cg *cg, Val x, Val *high, Val *low) {
    *high = nv_tf32(cg, x);
    Val h = LLVMBuildBitCast(cg->b, *high, cg->f32, "");
    *low = words_of(cg, cg_fsub(cg, x, h)); /* its bits past tf32's are not read */
}

/* acc[n] += X(xr, xc) Y(yr, yc), 16x16 blocks of sh_t, to about 21 bits. */
static void multiply16(Factor *f, Val acc[2][4], Val xr, Val xc, Val yr, Val yc) {
    Cg *cg = f->cg;
    for (int step = 0; step < 2; step++) {
        Val a[2][4], b[2][2];
        for (int i = 0; i < 4; i++) {
            Val r = cg_add(cg, cg_add(cg, xr, f->g), cg_int(cg, i % 2 ? 8 : 0));
            Val c = cg_add(cg, cg_add(cg, xc, f->t), cg_int(cg, 8 * step + (i / 2 ? 4 : 0)));
            split_tf32(cg, cg_load(cg, cg->f32, element(f, f->sh_t, r, c), 4), &a[0][i], &a[1][i]);
        }
        for (int n = 0; n < 2; n++) {
            for (int i = 0; i < 2; i++) {
                Val r = cg_add(cg, cg_add(cg, yr, f->t), cg_int(cg, 8 * step + 4 * i));
                Val c = cg_add(cg, cg_add(cg, yc, f->g), cg_int(cg, 8 * n));
                Val y = cg_load(cg, cg->f32, element(f, f->sh_t, r, c), 4);
                split_tf32(cg, y, &b[0][i], &b[1][i]);
            }
            nv_mma_tf32(cg, acc[n], a[1], b[0]);
            nv_mma_tf32(cg, acc[n], a[0], b[1]);
            nv_mma_tf32(cg, acc[n], a[0], b[0]);
        }
    }
}

static void zero16(Cg *cg, Val acc[2][4]) {
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            acc[n][i] = cg_float(cg, 0);
}

/* Store a 16x16 accumulator block; a block of A is negated on the way. */
static void store16(Factor *f, Val row, Val column, Val acc[2][4], bool of_a) {
    Cg *cg = f->cg;
    for (int n = 0; n < 2; n++)
        for (int h = 0; h < 2; h++) {
            Val word[2], r = cg_add(cg, cg_add(cg, row, f->g), cg_int(cg, 8 * h));
            Val c = cg_add(cg, cg_add(cg, column, cg_shl(cg, f->t, 1)), cg_int(cg, 8 * n));
            for (int j = 0; j < 2; j++) {
                Val x = acc[n][2 * h + j];
                x = of_a ? LLVMBuildFNeg(cg->b, x, "") : x;
                word[j] = words_of(cg, x);
            }
            store_words(cg, element(f, f->sh_t, r, c), word, 2);
        }
}

/* A's diagonal 16x16 block by forward substitution, lane l%16 = column; blocks right of it are 0. */
static void invert_diagonal(Factor *f) {
    Cg *cg = f->cg;
    Val base = cg_shl(cg, f->warp, 4), column = cg_and(cg, f->lane, cg_int(cg, 15)), a[16];
    for (int r = 0; r < 16; r++) {
        Val row = cg_add(cg, base, cg_int(cg, r)), four = NULL;
        Val same = cg_cmp(cg, LLVMIntEQ, column, cg_int(cg, r)), sum[2];
        sum[0] = cg_select(cg, same, cg_float(cg, 1), cg_float(cg, 0));
        sum[1] = cg_float(cg, 0);
        for (int u = 0; u < r; u++) {
            if (u % 4 == 0)
                four = cg_load(cg, LLVMVectorType(cg->f32, 4),
                               element(f, f->sh_t, row, cg_add(cg, base, cg_int(cg, u))), 16);
            Val t = LLVMBuildFNeg(cg->b, cg_extract(cg, four, u % 4), "");
            sum[u % 2] = cg_fma(cg, t, a[u], sum[u % 2]);
        }
        a[r] = cg_fadd(cg, sum[0], sum[1]);
    }
    nv_warp_sync(cg);
    Val upper = cg_cmp(cg, LLVMIntUGE, f->lane, cg_int(cg, 16));
    Val first = cg_add(cg, base, cg_shl(cg, cg_shr(cg, f->lane, 4), 3));
    for (int r = 0; r < 8; r++)
        cg_store(cg, cg_select(cg, upper, a[r + 8], a[r]),
                 element(f, f->sh_t, cg_add(cg, first, cg_int(cg, r)), cg_add(cg, base, column)), 4);
    Val zero[2][4];
    zero16(cg, zero);
    Loop block = cg_for(cg, cg_add(cg, f->warp, cg_int(cg, 1)), cg_int(cg, f->s->warps), 1, false);
    store16(f, base, cg_shl(cg, block.i, 4), zero, false);
    cg_end_for(cg, &block);
}

/* Odd blocks: A[i][i-1] = -A[i][i] T[i][i-1] A[i-1][i-1], by warp i alone. */
static void merge_pairs(Factor *f) {
    Cg *cg = f->cg;
    Val i = cg_shl(cg, f->warp, 4), j = cg_sub(cg, i, cg_int(cg, 16)), acc[2][4];
    If odd = cg_if(cg, cg_cmp(cg, LLVMIntEQ, cg_and(cg, f->warp, cg_int(cg, 1)), cg_int(cg, 1)));
    zero16(cg, acc);
    multiply16(f, acc, i, j, j, j);
    nv_warp_sync(cg);
    store16(f, i, j, acc, false);
    nv_warp_sync(cg);
    zero16(cg, acc);
    multiply16(f, acc, i, i, i, j);
    nv_warp_sync(cg);
    store16(f, i, j, acc, true);
    cg_end_if(cg, &odd);
}

/* The lower left 32x32 of 64x64: warp w makes block (2 + w/2, w%2); blocks above A's diagonal are
 * zero, so the sums need no bounds. */
static void merge_halves(Factor *f) {
    Cg *cg = f->cg;
    Val i = cg_add(cg, cg_int(cg, 32), cg_shl(cg, cg_shr(cg, f->warp, 1), 4));
    Val j = cg_shl(cg, cg_and(cg, f->warp, cg_int(cg, 1)), 4), acc[2][4];
    zero16(cg, acc);
    for (int m = 0; m < 32; m += 16)
        multiply16(f, acc, i, cg_int(cg, m), cg_int(cg, m), j);
    nv_barrier(cg);
    store16(f, i, j, acc, false);
    nv_barrier(cg);
    zero16(cg, acc);
    for (int n = 32; n < 64; n += 16)
        multiply16(f, acc, i, cg_int(cg, n), cg_int(cg, n), j);
    nv_barrier(cg);
    store16(f, i, j, acc, true);
}

/* The largest of every thread's x. */
static Val block_largest(Factor *f, Val x) {
    Cg *cg = f->cg;
    for (int m = 1; m < 32; m *= 2)
        x = nv_larger(cg, x, nv_shuffle_xor(cg, x, m));
    cg_store(cg, x, factor_shared_f32(f, f->sh_scale, f->warp), 4);
    nv_barrier(cg);
    for (int w = 0; w < f->s->warps; w++)
        x = nv_larger(cg, x, cg_load(cg, cg->f32, factor_shared_f32(f, f->sh_scale, cg_int(cg, w)), 4));
    return x;
}

/* A power of two: A's elements may be twice that, and the sums of their products with scores fit f16. */
static double largest_scaled(const System *s) {
    double room = 65504 / (s->rows * s->scores), unit = 1;
    while (unit * 2 <= room && unit < 64)
        unit *= 2;
    return unit;
}

/* scale for a largest element `most` of A (times the keys' scales): 1 unless sums of its products
 * with scores might not fit, or keys are so small that f16's least numbers would cost bits. */
static void choose_scale(Factor *f, Val most) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val scale = cg_fmul(cg, nv_power_below(cg, most), cg_float(cg, 1 / largest_scaled(s)));
    Val fits = LLVMBuildFCmp(cg->b, LLVMRealOLE, scale, cg_float(cg, 1), "");
    if (s->p_scaled)
        fits = cg_and(cg, fits, LLVMBuildFCmp(cg->b, LLVMRealOGE, most, cg_float(cg, 0x1p-6), ""));
    scale = cg_select(cg, fits, cg_float(cg, 1), scale);
    f->shrink = nv_power_inverse(cg, scale);
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, nv_tid(cg), cg_int(cg, 0)));
    cg_store(cg, scale, cg_gep8(cg, f->record, cg_int(cg, (int)s->ws_scale)), 4);
    cg_end_if(cg, &one);
}

/* Columns of A that a thread turns: half a row, by turns so that the halves' reads share no bank. */
static Val scaled_column(Factor *f, int c) {
    Cg *cg = f->cg;
    int run = f->s->rows >= 32 ? 16 : 8;
    Val half = cg_and(cg, nv_tid(cg), cg_int(cg, 1));
    return cg_add(cg, cg_mul(cg, half, cg_int(cg, run)), cg_int(cg, c / run * 2 * run + c % run));
}

/* Largest element of column `column` of A times the keys' scales. */
static Val column_most(Factor *f, Val column) {
    Cg *cg = f->cg;
    Var most = cg_var(cg, cg->f32, cg_float(cg, 0x1p-100));
    Loop r = cg_for(cg, cg_int(cg, 0), cg_int(cg, f->s->rows), 1, false);
    Val key = cg_load(cg, cg->f32, factor_shared_f32(f, f->sh_keys, r.i), 4);
    Val x = nv_magnitude(cg, cg_load(cg, cg->f32, element(f, f->sh_t, r.i, column), 4));
    cg_set(cg, most, nv_larger(cg, cg_get(cg, most), cg_fmul(cg, x, key)));
    cg_end_for(cg, &r);
    return cg_get(cg, most);
}

static Val record_factor(Factor *f, int64_t base, Val index) {
    Cg *cg = f->cg;
    return cg_gep8(cg, f->record, cg_add(cg, cg_shl(cg, index, 2), cg_int(cg, (int)base)));
}

/* grows: A's elements span what the state grows by in a chunk. M and P, sums over A's rows, have factors for
 * its columns, in place of `scale`: in shared memory instead of the keys' scales, and in the record. */
static void choose_columns(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val column = nv_tid(cg), own = cg_cmp(cg, LLVMIntULT, column, cg_int(cg, s->rows));
    Var factor = cg_var(cg, cg->f32, cg_float(cg, 1));
    If look = cg_if(cg, own);
    Val power = nv_power_below(cg, column_most(f, column));
    cg_set(cg, factor, cg_fmul(cg, power, cg_float(cg, 1 / largest_scaled(s))));
    cg_end_if(cg, &look);
    nv_barrier(cg);
    If put = cg_if(cg, own);
    cg_store(cg, cg_get(cg, factor), factor_shared_f32(f, f->sh_keys, column), 4);
    cg_store(cg, cg_get(cg, factor), record_factor(f, s->ws_columns, column), 4);
    cg_end_if(cg, &put);
    nv_barrier(cg);
}

/* And A as the pull phase needs it, for Zt = A X, has factors for its rows. `most`: of this thread's half of
 * row `row`. Gives 1 / the factor. */
static Val choose_row(Factor *f, Val row, Val most) {
    Cg *cg = f->cg;
    most = nv_larger(cg, most, nv_shuffle_xor(cg, most, 1));
    Val power = nv_power_below(cg, nv_larger(cg, most, cg_float(cg, 0x1p-100)));
    cg_store(cg, power, record_factor(f, f->s->ws_a_rows, row), 4);
    return nv_power_inverse(cg, power);
}

/* What eight elements from `column` on are multiplied by. */
static void shrinks(Factor *f, Val column, Val out[8]) {
    Cg *cg = f->cg;
    for (int j = 0; j < 8; j++)
        out[j] = f->shrink;
    for (int q = 0; q < 8 && f->s->grows; q += 4) {
        key_scales(f, cg_add(cg, column, cg_int(cg, q)), out + q);
        for (int j = 0; j < 4; j++)
            out[q + j] = nv_power_inverse(cg, out[q + j]);
    }
}

/* A times the keys' scales over `scale`, as the sum of two f16. */
static void scale_inverse(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val row = cg_shr(cg, nv_tid(cg), 1), a[32], most = cg_float(cg, 0), key = NULL;
    if (s->p_scaled)
        key = cg_load(cg, cg->f32, factor_shared_f32(f, f->sh_keys, row), 4);
    for (int c = 0; c < s->rows / 2; c += 4) {
        Val p = element(f, f->sh_t, row, scaled_column(f, c));
        Val v = cg_load(cg, LLVMVectorType(cg->f32, 4), p, 16);
        for (int j = 0; j < 4; j++) {
            a[c + j] = cg_extract(cg, v, j);
            a[c + j] = key ? cg_fmul(cg, a[c + j], key) : a[c + j];
            most = nv_larger(cg, most, nv_magnitude(cg, a[c + j]));
        }
    }
    Val row_inverse = s->grows && s->trail ? choose_row(f, row, most) : NULL;
    if (s->grows)
        choose_columns(f);
    choose_scale(f, s->grows ? cg_float(cg, 1) : block_largest(f, most));
    for (int c = 0; c < s->rows / 2; c += 8) {
        Val column = scaled_column(f, c), pair[2][4], x[8], back[2], shrink[8];
        shrinks(f, column, shrink);
        for (int j = 0; j < 8; j++)
            x[j] = cg_fmul(cg, a[c + j], shrink[j]);
        for (int j = 0; j < 4; j++) {
            pair[0][j] = nv_pack(cg, s->operand, x[2 * j], x[2 * j + 1]);
            nv_unpack(cg, s->operand, pair[0][j], back);
            pair[1][j] = nv_pack(cg, s->operand, cg_fsub(cg, x[2 * j], back[0]),
                                 cg_fsub(cg, x[2 * j + 1], back[1]));
        }
        for (int part = 0; part < 2; part++)
            store_words(cg, pair_element(f, f->sh_a[part], row, column), pair[part], 4);
        for (int j = 0; j < 4 && row_inverse; j++)
            pair[0][j] = nv_pack(cg, s->operand, cg_fmul(cg, a[c + 2 * j], row_inverse),
                                 cg_fmul(cg, a[c + 2 * j + 1], row_inverse));
        if (s->trail)
            factor_store_unit(cg, factor_ws_unit(f, s->ws_a, s->rows, row, cg_shr(cg, column, 3)),
                              pair[0]);
    }
    nv_barrier(cg);
}

void factor_solve(Factor *f) {
    Cg *cg = f->cg;
    invert_diagonal(f);
    if (f->s->warps >= 2) {
        nv_barrier(cg);
        merge_pairs(f);
    }
    if (f->s->warps >= 4) {
        nv_barrier(cg);
        merge_halves(f);
    }
    nv_barrier(cg);
    scale_inverse(f);
}

/* products ------------------------------------------------------------------------------------- */

static Val lane_row(Factor *f) { return cg_and(f->cg, f->lane, cg_int(f->cg, 15)); }
static Val lane_half(Factor *f) { return cg_shl(f->cg, cg_shr(f->cg, f->lane, 4), 3); }

/* acc[n] += Aq(row, m) A(m, j), 16x16 blocks. */
static void mix16(Factor *f, Val acc[2][4], const Val q[4], int m, int j) {
    Cg *cg = f->cg;
    Val row = cg_add(cg, cg_int(cg, 16 * m), lane_row(f)), b[4];
    Val column = cg_add(cg, cg_int(cg, 16 * j), lane_half(f));
    for (int part = 1; part >= 0; part--) {
        nv_ldmatrix4(cg, pair_element(f, f->sh_a[part], row, column), true, b);
        nv_mma(cg, f->s->operand, acc[0], q, b);
        nv_mma(cg, f->s->operand, acc[1], q, b + 2);
    }
}

/* M_f of warp w's block row: block columns j <= w, the others zero. */
static void mix(Factor *f, int family, Val (*acc)[2][4]) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val row = cg_add(cg, cg_shl(cg, f->warp, 4), lane_row(f));
    Var held[MAX_WARPS][2][4];
    for (int j = 0; j < s->warps; j++)
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++)
                held[j][n][i] = cg_var(cg, cg->f32, cg_float(cg, 0));
    for (int m = 0; m < s->warps; m++) {
        If reached = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, m)));
        Val q[4], column = cg_add(cg, cg_int(cg, 16 * m), lane_half(f)), c[2][4];
        nv_ldmatrix4(cg, pair_element(f, factor_matrix_base(f, family), row, column), false, q);
        for (int j = 0; j <= m; j++) {
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++)
                    c[n][i] = cg_get(cg, held[j][n][i]);
            mix16(f, c, q, m, j);
            for (int n = 0; n < 2; n++)
                for (int i = 0; i < 4; i++)
                    cg_set(cg, held[j][n][i], c[n][i]);
        }
        cg_end_if(cg, &reached);
    }
    for (int j = 0; j < s->warps; j++)
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++)
                acc[j][n][i] = cg_get(cg, held[j][n][i]);
}

/* A' operand for rows 16i.. and updates 16j..: A lies by update, so the matrices are turned. */
static void turned_inverse(Factor *f, int part, int i, int j, Val a[4]) {
    Cg *cg = f->cg;
    Val matrix = cg_shr(cg, f->lane, 3);
    Val update = cg_add(cg, cg_and(cg, f->lane, cg_int(cg, 7)),
                        cg_shl(cg, cg_shr(cg, matrix, 1), 3));
    Val row = cg_shl(cg, cg_and(cg, matrix, cg_int(cg, 1)), 3);
    Val p = pair_element(f, f->sh_a[part], cg_add(cg, update, cg_int(cg, 16 * j)),
                         cg_add(cg, row, cg_int(cg, 16 * i)));
    nv_ldmatrix4(cg, p, true, a);
}

static void writes(Factor *f, Val group, Val (*acc)[4][4]) {
    Cg *cg = f->cg;
    for (int j = 0; j < f->s->warps; j++) {
        Val b[2][4], a[4];
        for (int n = 0; n < 2; n++) {
            Val unit = cg_add(cg, cg_add(cg, cg_shl(cg, group, 2), cg_int(cg, 2 * n)),
                              cg_shr(cg, f->lane, 4));
            Val row = cg_add(cg, cg_int(cg, 16 * j), lane_row(f));
            nv_ldmatrix4(cg, factor_key_unit(f, f->sh_p, row, unit), true, b[n]);
        }
        for (int i = 0; i <= j; i++)
            for (int part = 1; part >= 0; part--) {
                turned_inverse(f, part, i, j, a);
                for (int n = 0; n < 4; n++)
                    nv_mma(cg, f->s->operand, acc[i][n], a, b[n / 2] + 2 * (n % 2));
            }
    }
}

/* products to the workspace -------------------------------------------------------------------- */

/* Where M_f row 16 warp + g + 8h is kept. */
static Val mix_row(Factor *f, int family, int h) {
    Cg *cg = f->cg;
    Val row = cg_add(cg, cg_add(cg, cg_shl(cg, f->warp, 4), f->g), cg_int(cg, 8 * h));
    return factor_stored_row(f, family, row);
}

static void store_mix(Factor *f, int family) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val acc[MAX_WARPS][2][4];
    for (int j = 0; j < s->warps; j++)
        zero16(cg, acc[j]);
    mix(f, family, acc);
    for (int j = 0; j < s->warps; j++)
        for (int n = 0; n < 2; n++)
            for (int h = 0; h < 2; h++) {
                Val column = cg_add(cg, cg_int(cg, 16 * j + 8 * n), cg_shl(cg, f->t, 1));
                Val pair = nv_pack(cg, s->operand, acc[j][n][2 * h], acc[j][n][2 * h + 1]);
                cg_store(cg, pair, factor_ws_pair(f, s->family[family].ws_m, s->rows,
                                                  mix_row(f, family, h), column), 4);
            }
}

/* Zero blocks of M_f above the diagonal when M_f = Aq was stored block by block. */
static void zero_above(Factor *f, int family) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val first = cg_add(cg, cg_shl(cg, f->warp, 4), cg_int(cg, 16));
    Loop c = cg_for(cg, first, cg_int(cg, s->rows), 16, false);
    Val zero[2] = {cg_int(cg, 0), cg_int(cg, 0)}, column = cg_add(cg, c.i, cg_shl(cg, f->t, 2));
    for (int h = 0; h < 2; h++)
        store_words(cg, factor_ws_pair(f, s->family[family].ws_m, s->rows, f->stored_row[family][h],
                                       column), zero, 2);
    cg_end_for(cg, &c);
}

/* P = A' Kt for 32 channels at a time, all rows. */
static void store_writes(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop group = cg_for(cg, f->warp, cg_int(cg, s->kp / 32), s->warps, false);
    Val acc[MAX_WARPS][4][4];
    for (int i = 0; i < s->warps; i++)
        for (int n = 0; n < 4; n++)
            for (int c = 0; c < 4; c++)
                acc[i][n][c] = cg_float(cg, 0);
    writes(f, group.i, acc);
    for (int i = 0; i < s->warps; i++)
        for (int n = 0; n < 4; n++)
            for (int h = 0; h < 2; h++) {
                Val row = cg_add(cg, f->g, cg_int(cg, 16 * i + 8 * h));
                Val channel = cg_add(cg, cg_shl(cg, group.i, 5),
                                     cg_add(cg, cg_int(cg, 8 * n), cg_shl(cg, f->t, 1)));
                Val pair = nv_pack(cg, s->operand, acc[i][n][2 * h], acc[i][n][2 * h + 1]);
                cg_store(cg, pair, factor_ws_pair(f, s->ws_p, s->kp, row, channel), 4);
            }
    cg_end_for(cg, &group);
}

/* P = Kt without an erase: this lane's rows as they are. */
static void copy_writes(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    Val unit = cg_add(cg, cg_shl(cg, slab.i, 2), f->t);
    for (int h = 0; h < 2; h++) {
        Val pair[4];
        factor_load_unit(cg, factor_key_unit(f, f->sh_p, f->row[h], unit), pair);
        factor_store_unit(cg, factor_ws_unit(f, s->ws_p, s->kp, f->row[h], unit), pair);
    }
    cg_end_for(cg, &slab);
}

void factor_products(Factor *f) {
    const System *s = f->s;
    for (int i = s->erase ? 1 : 0; i < s->families; i++)
        (s->erase ? store_mix : zero_above)(f, i);
    (s->erase ? store_writes : copy_writes)(f);
}
