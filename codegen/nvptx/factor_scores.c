/* The factor kernel's score phases under vector decay.
 *
 * Segmented products. For a pair of neighbouring m-row blocks (lo, hi) the scores of hi's rows with
 * lo's updates are (R . x)(C . p)' with R the decays from hi's start to the row and C those from
 * after the update to lo's end: every factor is a product of decays <= 1, so nothing overflows and
 * resets (decay 0) are exact. Doubling m: R of hi's rows gains lo's total, C of lo's updates gains
 * hi's. A lane holds two neighbouring rows, so m = 1 is its own affair (a dot product in f32); at
 * m = 2, 4, 8 whole row pairs meet across lanes, with one factor F a pair and channel: R where the
 * pair is in a hi block, C where it is in a lo block; 16-row blocks meet through shared memory.
 *
 * Rows that see their own position (inclusive) are turned into exclusive ones by multiplying with
 * their own decay; what they see at their own position is undecayed and added as a dot product.
 *
 * Decays are products in f32; a row times its factor is a packed product of two f16 numbers, whose
 * rounding does not accumulate.
 */
#include "codegen/nvptx/factor.h"

/* The 8 channels a lane holds of a row, as operand pairs. */
typedef struct Run { Val pair[4]; } Run;

Val factor_shared_f32(Factor *f, int base, Val index) {
    return cg_gep8(f->cg, nv_shared(f->cg, base), cg_shl(f->cg, index, 2));
}

void factor_pack(Cg *cg, Elem e, Val out[4], const Val x[8]) {
    for (int j = 0; j < 4; j++)
        out[j] = nv_pack(cg, e, x[2 * j], x[2 * j + 1]);
}

static void mul8(Cg *cg, Val out[8], const Val a[8], const Val b[8]) {
    for (int e = 0; e < 8; e++)
        out[e] = cg_fmul(cg, a[e], b[e]);
}

static Run make_run(Factor *f, const Val x[8]) {
    Run r;
    factor_pack(f->cg, f->s->operand, r.pair, x);
    return r;
}

/* out = row times factor. */
static void scale(Factor *f, const Run *row, const Run *factor, Val out[4]) {
    for (int j = 0; j < 4; j++)
        out[j] = nv_mul_pair(f->cg, f->s->operand, row->pair[j], factor->pair[j]);
}

/* Run where `c` holds, 0 elsewhere. */
static Run keep_where(Factor *f, Val c, const Run *run) {
    Run r;
    for (int j = 0; j < 4; j++)
        r.pair[j] = cg_select(f->cg, c, run->pair[j], cg_int(f->cg, 0));
    return r;
}

/* shared memory -------------------------------------------------------------------------------- */

/* Units are permuted within groups of 8 (or 4) so that neither the access pattern of a lane's two
 * rows (eight lanes: rows r and r+2, four units each) nor ldmatrix (eight rows, one unit) meets two
 * units in one bank. */
Val factor_unit(Cg *cg, int base, int units, Val row, Val unit) {
    Val turn = cg_and(cg, cg_shr(cg, row, 1), cg_int(cg, 3));
    if (units % 8 == 0) {
        Val low = cg_and(cg, row, cg_int(cg, 1)), second = cg_and(cg, row, cg_int(cg, 2));
        Val third = cg_and(cg, row, cg_int(cg, 4));
        turn = cg_or(cg, low, cg_or(cg, cg_shl(cg, second, 1), cg_shr(cg, third, 1)));
    }
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, units)), cg_xor(cg, unit, turn));
    return cg_gep8(cg, nv_shared(cg, base), cg_shl(cg, index, 4));
}

Val factor_key_unit(Factor *f, int base, Val row, Val unit) {
    return factor_unit(f->cg, base, f->s->kp / 8, row, unit);
}

void factor_store_unit(Cg *cg, Val p, const Val unit[4]) {
    Val v = LLVMGetUndef(LLVMVectorType(cg->i32, 4));
    for (int j = 0; j < 4; j++)
        v = cg_insert(cg, v, unit[j], j);
    cg_store(cg, v, p, 16);
}

void factor_load_unit(Cg *cg, Val p, Val unit[4]) {
    Val v = cg_load(cg, LLVMVectorType(cg->i32, 4), p, 16);
    for (int j = 0; j < 4; j++)
        unit[j] = cg_extract(cg, v, j);
}

Val factor_stash_unit(Factor *f, int base, int family, int step, Val slab) {
    Cg *cg = f->cg;
    int threads = 32 * f->s->warps, slabs = f->s->kp / SLAB;
    Val index = cg_add(cg, cg_mul(cg, slab, cg_int(cg, threads)), nv_tid(cg));
    index = cg_add(cg, index, cg_int(cg, (family * 2 + step) * slabs * threads));
    return cg_gep8(cg, nv_shared(cg, base), cg_shl(cg, index, 4));
}

void factor_store_left(Factor *f, int base, int family, Val slab, Val (*left)[4]) {
    for (int step = 0; step < 2; step++) {
        Val a[4] = {left[0][2 * step], left[1][2 * step], left[0][2 * step + 1],
                    left[1][2 * step + 1]};
        factor_store_unit(f->cg, factor_stash_unit(f, base, family, step, slab), a);
    }
}

void factor_load_left(Factor *f, int base, int family, Val slab, Val (*left)[4]) {
    for (int step = 0; step < 2; step++) {
        Val a[4];
        factor_load_unit(f->cg, factor_stash_unit(f, base, family, step, slab), a);
        for (int j = 0; j < 4; j++)
            left[j % 2][2 * step + j / 2] = a[j];
    }
}

/* Product of a block's decays, 8 channels as operand pairs; block number `warps` holds ones. */
static Val total_unit(Factor *f, Val block, Val unit) {
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, block, cg_int(cg, f->s->kp / 8)), unit);
    return cg_gep8(cg, nv_shared(cg, f->sh_total_pair), cg_shl(cg, index, 4));
}

/* products ------------------------------------------------------------------------------------- */

/* acc[n] += rows of this warp's block x updates of a block; n = parity of the updates. */
void factor_multiply_family(Factor *f, Var (*acc)[4], Val (*left)[4], Val b[2][4]) {
    Cg *cg = f->cg;
    for (int n = 0; n < 2; n++) {
        Val c[4];
        for (int j = 0; j < 4; j++)
            c[j] = cg_get(cg, acc[n][j]);
        for (int step = 0; step < 2; step++) {
            Val a[4] = {left[0][2 * step], left[1][2 * step], left[0][2 * step + 1],
                        left[1][2 * step + 1]};
            nv_mma(cg, f->s->operand, c, a, &b[n][2 * step]);
        }
        for (int j = 0; j < 4; j++)
            cg_set(cg, acc[n][j], c[j]);
    }
}

void factor_multiply(Factor *f, Var (*acc)[2][4], Val (*left)[2][4], Val b[2][4]) {
    for (int i = 0; i < f->s->families; i++)
        factor_multiply_family(f, acc[i], left[i], b);
}

/* rows pass ------------------------------------------------------------------------------------ */

enum { LEVELS = 3 }; /* m = 2, 4, 8 */

typedef struct Rows {
    Run x[MAX_FAMILIES][2];  /* left rows, exclusive, times the decays of the pair before them */
    Run p[2];                /* keys, times the decays of the pair after them */
    Run F[LEVELS];           /* a pair's factor at each level but the first, where it is 1 */
    Run prefix, suffix;      /* of the pair in its 16-row block */
    Val total[8];            /* of the 16-row block */
} Rows;

typedef struct Diagonal {
    Var level[LEVELS][MAX_FAMILIES][2][4];
    Var below[MAX_FAMILIES];       /* the pair's second row with its first update */
    Var own[MAX_FAMILIES][2];      /* inclusive: a row with its own update */
} Diagonal;

static void diagonal_begin(Factor *f, Diagonal *d) {
    Cg *cg = f->cg;
    Val zero = cg_float(cg, 0);
    for (int i = 0; i < f->s->families; i++) {
        for (int l = 0; l < LEVELS; l++)
            for (int n = 0; n < 2; n++)
                for (int j = 0; j < 4; j++)
                    d->level[l][i][n][j] = cg_var(cg, cg->f32, zero);
        d->below[i] = cg_var(cg, cg->f32, zero);
        d->own[i][0] = cg_var(cg, cg->f32, zero);
        d->own[i][1] = cg_var(cg, cg->f32, zero);
    }
}

static void add_dot(Cg *cg, Var acc, const Val a[8], const Val b[8]) {
    Val sum = cg_get(cg, acc);
    for (int e = 0; e < 8; e++)
        sum = cg_fma(cg, a[e], b[e], sum);
    cg_set(cg, acc, sum);
}

/* bit b of the pair's number in its 16-row block, which is g. */
static Val pair_bit(Factor *f, int b) {
    Cg *cg = f->cg;
    return cg_cmp(cg, LLVMIntNE, cg_and(cg, f->g, cg_int(cg, 1 << b)), cg_int(cg, 0));
}

static Val same_bit(Factor *f, int a, int b) {
    return LLVMBuildNot(f->cg->b, LLVMBuildXor(f->cg->b, pair_bit(f, a), pair_bit(f, b), ""), "");
}

/* From the pair's decay to the decays around it. `other[b]`: the neighbouring block of 2^b pairs. */
static void walk(Factor *f, const Val pair[8], Rows *r) {
    Cg *cg = f->cg;
    Val one = cg_float(cg, 1), other[LEVELS][8], prefix[8], suffix[8], F[LEVELS][8];
    memcpy(r->total, pair, sizeof r->total);
    for (int b = 0; b < LEVELS; b++)
        for (int e = 0; e < 8; e++) {
            other[b][e] = nv_shuffle_xor(cg, r->total[e], 4 << b);
            r->total[e] = cg_fmul(cg, r->total[e], other[b][e]);
            Val before = cg_select(cg, pair_bit(f, b), other[b][e], one);
            Val after = cg_select(cg, pair_bit(f, b), one, other[b][e]);
            prefix[e] = b ? cg_fmul(cg, prefix[e], before) : before;
            suffix[e] = b ? cg_fmul(cg, suffix[e], after) : after;
        }
    for (int e = 0; e < 8; e++) {
        F[1][e] = cg_select(cg, same_bit(f, 1, 0), other[0][e], one);
        Val near = cg_select(cg, same_bit(f, 2, 0), other[0][e], one);
        F[2][e] = cg_fmul(cg, near, cg_select(cg, same_bit(f, 2, 1), other[1][e], one));
    }
    r->F[1] = make_run(f, F[1]);
    r->F[2] = make_run(f, F[2]);
    r->prefix = make_run(f, prefix);
    r->suffix = make_run(f, suffix);
}

/* Evaluate this slab's rows, keys and decays; the pair's own scores are added on the way. */
static void load_rows(Factor *f, Diagonal *d, Rows *r) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val own[2][8], pair[8], p[2][8], x[8];
    for (int h = 0; h < 2; h++) {
        factor_row(f, s->a, -1, h, 1, own[h]);
        factor_keys(f, h, p[h]);
    }
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++) {
            const Family *fam = &s->family[i];
            factor_family_row(f, i, h, x);
            if (s->erase && i == 0)
                factor_see_correction(f, h, x, p[h]);
            if (fam->inclusive) {
                add_dot(cg, d->own[i][h], x, p[h]);
                mul8(cg, x, x, own[h]);
            }
            if (h == 1) {
                add_dot(cg, d->below[i], x, p[0]);
                mul8(cg, x, x, own[0]);
            }
            r->x[i][h] = make_run(f, x);
        }
    mul8(cg, p[0], p[0], own[1]);
    r->p[0] = make_run(f, p[0]);
    r->p[1] = make_run(f, p[1]);
    mul8(cg, pair, own[0], own[1]);
    walk(f, pair, r);
}

/* A row as an operand of a level: times its factor (NULL = 1), 0 where `c` does not hold, which the
 * factor has already. */
static void place_run(Factor *f, const Run *row, Val c, const Run *factor, Val out[4]) {
    if (factor) {
        scale(f, row, factor, out);
        return;
    }
    Run kept = keep_where(f, c, row);
    memcpy(out, kept.pair, sizeof kept.pair);
}

static void multiply_level(Factor *f, Diagonal *d, int level, Rows *r) {
    Val hi = pair_bit(f, level), lo = LLVMBuildNot(f->cg->b, hi, "");
    Val left[MAX_FAMILIES][2][4], key[2][4];
    Run up = {{NULL}}, down = {{NULL}};
    if (level > 0) {
        up = keep_where(f, hi, &r->F[level]);
        down = keep_where(f, lo, &r->F[level]);
    }
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < f->s->families; i++)
            place_run(f, &r->x[i][h], hi, level > 0 ? &up : NULL, left[i][h]);
        place_run(f, &r->p[h], lo, level > 0 ? &down : NULL, key[h]);
    }
    factor_multiply(f, d->level[level], left, key);
}

/* After the levels: rows times their 16-row factors go to shared memory, and the block's decays. */
static void stash_rows(Factor *f, Rows *r, Val slab) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t), packed[4];
    for (int h = 0; h < 2; h++) {
        scale(f, &r->p[h], &r->suffix, packed);
        factor_store_unit(cg, factor_key_unit(f, f->sh_p, f->row[h], unit), packed);
    }
    for (int i = 0; i < s->families; i++) {
        Val left[2][4];
        for (int h = 0; h < 2; h++)
            scale(f, &r->x[i][h], &r->prefix, left[h]);
        factor_store_left(f, f->sh_left, i, slab, left);
    }
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, f->g, cg_int(cg, 0)));
    Val index = cg_add(cg, cg_mul(cg, f->warp, cg_int(cg, s->kp)), cg_shl(cg, unit, 3));
    for (int q = 0; q < 2; q++) {
        Val v = LLVMGetUndef(LLVMVectorType(cg->f32, 4));
        for (int j = 0; j < 4; j++)
            v = cg_insert(cg, v, r->total[4 * q + j], j);
        Val p = factor_shared_f32(f, f->sh_total, cg_add(cg, index, cg_int(cg, 4 * q)));
        cg_store(cg, v, p, 16);
    }
    factor_pack(cg, s->operand, packed, r->total);
    factor_store_unit(cg, total_unit(f, f->warp, unit), packed);
    cg_end_if(cg, &first);
}

/* Sum over the four lanes of a row. */
static Val quad_sum(Cg *cg, Val x) {
    x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, 1));
    return cg_fadd(cg, x, nv_shuffle_xor(cg, x, 2));
}

/* The score of row half h with the update of parity n in pair 2t + c. */
static Val diagonal_score(Factor *f, Diagonal *d, int i, int h, int n, int c, const Val own[2],
                          Val below) {
    Cg *cg = f->cg;
    Val column = cg_add(cg, cg_shl(cg, f->t, 1), cg_int(cg, c)), x = cg_float(cg, 0);
    Val differ = cg_xor(cg, f->g, column), above = cg_cmp(cg, LLVMIntUGT, f->g, column);
    for (int level = 0; level < LEVELS; level++) {
        Val mine = cg_cmp(cg, LLVMIntEQ, cg_shr(cg, differ, level), cg_int(cg, 1));
        x = cg_select(cg, cg_and(cg, mine, above), cg_get(cg, d->level[level][i][n][2 * h + c]), x);
    }
    Val in_pair = h == n ? own[h] : h == 1 ? below : NULL;
    if (in_pair)
        x = cg_select(cg, cg_cmp(cg, LLVMIntEQ, differ, cg_int(cg, 0)), in_pair, x);
    return x;
}

static void diagonal_finish(Factor *f, Diagonal *d) {
    Cg *cg = f->cg;
    for (int i = 0; i < f->s->families; i++) {
        Val own[2] = {NULL, NULL}, below = quad_sum(cg, cg_get(cg, d->below[i]));
        for (int h = 0; h < 2 && f->s->family[i].inclusive; h++)
            own[h] = quad_sum(cg, cg_get(cg, d->own[i][h]));
        for (int n = 0; n < 2; n++)
            for (int h = 0; h < 2; h++)
                for (int c = 0; c < 2; c++) {
                    Val x = diagonal_score(f, d, i, h, n, c, own, below);
                    f->block[0][i][n][2 * h + c] = cg_var(cg, cg->f32, x);
                }
    }
}

void factor_rows_pass(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Diagonal d;
    diagonal_begin(f, &d);
    factor_begin_correction(f);
    Val ones[4];
    for (int j = 0; j < 4; j++)
        ones[j] = nv_pack(cg, s->operand, cg_float(cg, 1), cg_float(cg, 1));
    Loop unit = cg_for(cg, nv_tid(cg), cg_int(cg, s->kp / 8), 32 * s->warps, false);
    factor_store_unit(cg, total_unit(f, cg_int(cg, s->warps), unit.i), ones);
    cg_end_for(cg, &unit);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    factor_enter_slab(f, slab.i);
    Rows r;
    load_rows(f, &d, &r);
    for (int level = 0; level < LEVELS; level++)
        multiply_level(f, &d, level, &r);
    stash_rows(f, &r, slab.i);
    cg_end_for(cg, &slab);
    diagonal_finish(f, &d);
    factor_end_correction(f);
}

/* blocks pass ---------------------------------------------------------------------------------- */

/* B fragments of a block's updates for both k-steps of a slab, even rows and odd rows. */
void factor_load_keys(Factor *f, int base, Val block, Val slab, Val b[2][4]) {
    Cg *cg = f->cg;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    for (int n = 0; n < 2; n++) {
        Val row = cg_add(cg, cg_add(cg, cg_shl(cg, block, 4), cg_shl(cg, f->g, 1)), cg_int(cg, n));
        factor_load_unit(cg, factor_key_unit(f, base, row, unit), b[n]);
    }
}

static void load_total_f32(Factor *f, Val block, Val unit, Val total[8]) {
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, block, cg_int(cg, f->s->kp)), cg_shl(cg, unit, 3));
    for (int q = 0; q < 2; q++) {
        Val p = factor_shared_f32(f, f->sh_total, cg_add(cg, index, cg_int(cg, 4 * q)));
        Val v = cg_load(cg, LLVMVectorType(cg->f32, 4), p, 16);
        for (int j = 0; j < 4; j++)
            total[4 * q + j] = cg_extract(cg, v, j);
    }
}

/* Multiply a lane's rows by the decays of block `block` where it exists. */
static void pass_block(Factor *f, Val exists, Val block, Val slab, Val (*left)[2][4]) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t), pair[4];
    Val which = cg_select(cg, exists, block, cg_int(cg, s->warps));
    factor_load_unit(cg, total_unit(f, which, unit), pair);
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < 4; j++)
                left[i][h][j] = nv_mul_pair(cg, s->operand, left[i][h][j], pair[j]);
}

/* A block that does not exist is multiplied all the same, as block 0, and nobody looks at the result:
 * branches around the products would cost more in moves of accumulators. */
static void blocks_slab(Factor *f, Val slab) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val left[MAX_FAMILIES][2][4], unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    for (int i = 0; i < s->families; i++)
        factor_load_left(f, f->sh_left, i, slab, left[i]);
    for (int distance = 1; distance < s->warps; distance++) {
        Val exists = cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance));
        Val block = cg_sub(cg, f->warp, cg_int(cg, distance)), b[2][4];
        factor_load_keys(f, f->sh_p, cg_select(cg, exists, block, cg_int(cg, 0)), slab, b);
        factor_multiply(f, f->block[distance], left, b);
        pass_block(f, exists, block, slab, left);
    }
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++)
            factor_store_unit(
                cg, factor_ws_unit(f, s->family[i].ws_w, s->kp, f->stored_row[i][h], unit), left[i][h]);
}

void factor_off_diagonal(Factor *f) {
    Cg *cg = f->cg;
    factor_begin_blocks(f, 1);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, f->s->kp / SLAB), 1, false);
    blocks_slab(f, slab.i);
    cg_end_for(cg, &slab);
}

void factor_begin_blocks(Factor *f, int first) {
    Cg *cg = f->cg;
    for (int d = first; d < f->s->warps; d++)
        for (int i = 0; i < f->s->families; i++)
            for (int n = 0; n < 2; n++)
                for (int j = 0; j < 4; j++)
                    f->block[d][i][n][j] = cg_var(cg, cg->f32, cg_float(cg, 0));
}

/* tail ----------------------------------------------------------------------------------------- */

/* Decays after this warp's block onto its keys; D to the workspace. */
void factor_tail(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    Val unit = cg_add(cg, cg_shl(cg, slab.i, 2), f->t), total[8], pair[4], packed[4];
    Var after[8];
    for (int e = 0; e < 8; e++)
        after[e] = cg_var(cg, cg->f32, cg_float(cg, 1));
    Loop block = cg_for(cg, cg_add(cg, f->warp, cg_int(cg, 1)), cg_int(cg, s->warps), 1, false);
    load_total_f32(f, block.i, unit, total);
    for (int e = 0; e < 8; e++)
        cg_set(cg, after[e], cg_fmul(cg, cg_get(cg, after[e]), total[e]));
    cg_end_for(cg, &block);
    for (int e = 0; e < 8; e++)
        total[e] = cg_get(cg, after[e]);
    factor_pack(cg, s->operand, packed, total);
    for (int h = 0; h < 2; h++) {
        Val p = factor_key_unit(f, f->sh_p, f->row[h], unit);
        factor_load_unit(cg, p, pair);
        for (int j = 0; j < 4; j++)
            pair[j] = nv_mul_pair(cg, s->operand, pair[j], packed[j]);
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
