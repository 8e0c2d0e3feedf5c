/* The factor kernel's score phases.
 *
 * Segmented products. For a pair of neighbouring m-row blocks (lo, hi) the scores of hi's rows with
 * lo's updates are (R . x)(C . p)' with R the decays from hi's start to the row and C those from
 * after the update to lo's end: every factor is a product of decays <= 1, so nothing overflows and
 * resets (decay 0) are exact. Doubling m: R of hi's rows gains lo's total, C of lo's updates gains
 * hi's. Levels m = 1, 2, 4 pair rows across lanes (total by shuffle), m = 8 pairs the two rows of a
 * lane, and 16-row blocks meet through shared memory.
 *
 * An mma of 16x8x16 holds two 8-row left tiles (two families, or one and nothing) against the 8
 * updates of the same half block; a level's operands are zeroed where the row is not in a hi block
 * or the update not in a lo block, and its results are picked where the pair is the level's own.
 */
#include "codegen/nvptx/factor.h"

/* Elementwise helpers over the 8 channels a lane holds. */
static void mul8(Cg *cg, Val out[8], const Val a[8], const Val b[8])
{
    for (int e = 0; e < 8; e++)
        out[e] = cg_fmul(cg, a[e], b[e]);
}

static void select8(Cg *cg, Val out[8], Val c, const Val a[8], const Val b[8])
{
    for (int e = 0; e < 8; e++)
        out[e] = cg_select(cg, c, a[e], b[e]);
}

static void splat8(Val out[8], Val x)
{
    for (int e = 0; e < 8; e++)
        out[e] = x;
}

/* Operand registers of one lane for a slab: pair j holds channels 2j, 2j+1. k-step s of the slab
 * uses pairs 2s (the fragment's low columns) and 2s+1 (its high columns): the channel order inside
 * a k-step is a permutation, the same for both operands, so sums do not change. */
void factor_pack(Cg *cg, Elem e, Val out[4], const Val x[8])
{
    for (int j = 0; j < 4; j++)
        out[j] = nv_pack(cg, e, x[2 * j], x[2 * j + 1]);
}

Val factor_shared_f32(Factor *f, int base, Val index)
{
    return cg_gep8(f->cg, nv_shared(f->cg, base), cg_shl(f->cg, index, 2));
}

/* 16-byte unit `unit` (8 channels) of row `row` of the key tile. Eight lanes that access together
 * hold four neighbouring units of two neighbouring rows; where the row stride is a multiple of 128
 * bytes, odd rows swap the halves of each group of 8 units so that the eight lie in different banks. */
Val factor_key_unit(Factor *f, Val row, Val unit)
{
    Cg *cg = f->cg;
    int units = f->s->kp / 8;
    if (units % 8 == 0)
        unit = cg_xor(cg, unit, cg_shl(cg, cg_and(cg, row, cg_int(cg, 1)), 2));
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, units)), unit);
    return cg_gep8(cg, nv_shared(cg, f->sh_p), cg_shl(cg, index, 4));
}

void factor_store_unit(Cg *cg, Val p, const Val unit[4])
{
    Val v = LLVMGetUndef(LLVMVectorType(cg->i32, 4));
    for (int j = 0; j < 4; j++)
        v = cg_insert(cg, v, unit[j], j);
    cg_store(cg, v, p, 16);
}

void factor_load_unit(Cg *cg, Val p, Val unit[4])
{
    Val v = cg_load(cg, LLVMVectorType(cg->i32, 4), p, 16);
    for (int j = 0; j < 4; j++)
        unit[j] = cg_extract(cg, v, j);
}

/* Lane-private stash of the left rows, already times R within the 16-row block. */
Val factor_stash_unit(Factor *f, int family, int h, Val slab)
{
    Cg *cg = f->cg;
    int threads = 32 * f->s->warps, slabs = f->s->kp / SLAB;
    Val tid = nv_tid(cg);
    Val index = cg_add(cg, cg_mul(cg, slab, cg_int(cg, threads)), tid);
    index = cg_add(cg, index, cg_int(cg, (family * 2 + h) * slabs * threads));
    return cg_gep8(cg, nv_shared(cg, f->sh_left), cg_shl(cg, index, 4));
}

/* One lane's decay products while walking the levels; [half][channel]. */
typedef struct Walk {
    Val prefix[2][8];  /* R exclusive: from the block's start up to, not including, the row's decay */
    Val suffix[2][8];  /* C: after the update to the block's end */
    Val total[2][8];   /* the whole block */
    Val own[2][8];     /* the row's own decay a */
} Walk;

static void walk_begin(Factor *f, Walk *w)
{
    Cg *cg = f->cg;
    Val one = cg_float(cg, 1);
    for (int h = 0; h < 2; h++) {
        factor_row(f, f->s->a, -1, h, 1, w->own[h]);
        splat8(w->prefix[h], one);
        splat8(w->suffix[h], one);
        for (int e = 0; e < 8; e++)
            w->total[h][e] = w->own[h][e];
    }
}

/* Merge blocks of m < 8 rows: partners differ in bit m of g, that is in lane bit 4m. */
static void walk_merge_lanes(Factor *f, Walk *w, int m)
{
    Cg *cg = f->cg;
    Val hi = cg_cmp(cg, LLVMIntNE, cg_and(cg, f->g, cg_int(cg, m)), cg_int(cg, 0));
    for (int h = 0; h < 2; h++)
        for (int e = 0; e < 8; e++) {
            Val other = nv_shuffle_xor(cg, w->total[h][e], 4 * m);
            Val p = cg_fmul(cg, w->prefix[h][e], other), c = cg_fmul(cg, w->suffix[h][e], other);
            w->prefix[h][e] = cg_select(cg, hi, p, w->prefix[h][e]);
            w->suffix[h][e] = cg_select(cg, hi, w->suffix[h][e], c);
            w->total[h][e] = cg_fmul(cg, w->total[h][e], other);
        }
}

static void walk_merge_halves(Factor *f, Walk *w)
{
    Cg *cg = f->cg;
    mul8(cg, w->prefix[1], w->prefix[1], w->total[0]);
    mul8(cg, w->suffix[0], w->suffix[0], w->total[1]);
    mul8(cg, w->total[0], w->total[0], w->total[1]);
    memcpy(w->total[1], w->total[0], sizeof w->total[1]);
}

/* x times the family's R at the walk's present level. */
static void scale_left(Factor *f, const Walk *w, const Family *fam, int h, const Val x[8], Val out[8])
{
    Val r[8];
    if (fam->inclusive)
        mul8(f->cg, r, w->prefix[h], w->own[h]);
    else
        memcpy(r, w->prefix[h], sizeof r);
    mul8(f->cg, out, x, r);
}

/* acc[pair] += (left tiles two by two) x (update tile), both k-steps of the slab.
 * left[i]: packed rows of the i-th left tile. */
static void multiply_tiles(Factor *f, Var (*acc)[4], Val (*left)[4], int tiles, const Val right[4])
{
    Cg *cg = f->cg;
    Val zero = cg_int(cg, 0);
    for (int pair = 0; 2 * pair < tiles; pair++) {
        Val c[4];
        for (int i = 0; i < 4; i++)
            c[i] = cg_get(cg, acc[pair][i]);
        for (int step = 0; step < 2; step++) {
            const Val *top = left[2 * pair];
            const Val *bottom = 2 * pair + 1 < tiles ? left[2 * pair + 1] : NULL;
            Val a[4] = {top[2 * step], bottom ? bottom[2 * step] : zero, top[2 * step + 1],
                        bottom ? bottom[2 * step + 1] : zero};
            nv_mma(cg, f->s->operand, c, a, &right[2 * step]);
        }
        for (int i = 0; i < 4; i++)
            cg_set(cg, acc[pair][i], c[i]);
    }
}

enum { MAX_PAIRS = (MAX_FAMILIES + 1) / 2 };

/* Accumulators of the diagonal block: level m = 1, 2, 4 per half; level 8. */
typedef struct Diagonal {
    Var lanes[3][2][MAX_PAIRS][4];
    Var halves[MAX_PAIRS][4];
    Var dot[MAX_FAMILIES][2];  /* inclusive families: x . p of the same position, this lane's part */
} Diagonal;

static void diagonal_begin(Factor *f, Diagonal *d)
{
    Cg *cg = f->cg;
    int pairs = (f->s->families + 1) / 2;
    Val zero = cg_float(cg, 0);
    for (int p = 0; p < pairs; p++)
        for (int i = 0; i < 4; i++) {
            for (int l = 0; l < 3; l++)
                for (int h = 0; h < 2; h++)
                    d->lanes[l][h][p][i] = cg_var(cg, cg->f32, zero);
            d->halves[p][i] = cg_var(cg, cg->f32, zero);
        }
    for (int i = 0; i < f->s->families; i++)
        for (int h = 0; h < 2; h++)
            d->dot[i][h] = cg_var(cg, cg->f32, zero);
}

static void diagonal_level_lanes(Factor *f, Diagonal *d, const Walk *w, int level,
                                 Val (*x)[2][8], Val (*p)[8])
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val hi = cg_cmp(cg, LLVMIntNE, cg_and(cg, f->g, cg_int(cg, 1 << level)), cg_int(cg, 0));
    Val zero[8];
    splat8(zero, cg_float(cg, 0));
    for (int h = 0; h < 2; h++) {
        Val left[MAX_FAMILIES][4], right[4], scaled[8];
        for (int i = 0; i < s->families; i++) {
            scale_left(f, w, &s->family[i], h, x[i][h], scaled);
            select8(cg, scaled, hi, scaled, zero);
            factor_pack(cg, s->operand, left[i], scaled);
        }
        mul8(cg, scaled, p[h], w->suffix[h]);
        select8(cg, scaled, hi, zero, scaled);
        factor_pack(cg, s->operand, right, scaled);
        multiply_tiles(f, d->lanes[level][h], left, s->families, right);
    }
}

static void diagonal_level_halves(Factor *f, Diagonal *d, const Walk *w, Val (*x)[2][8],
                                  Val (*p)[8])
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val left[MAX_FAMILIES][4], right[4], scaled[8];
    for (int i = 0; i < s->families; i++) {
        scale_left(f, w, &s->family[i], 1, x[i][1], scaled);
        factor_pack(cg, s->operand, left[i], scaled);
    }
    mul8(cg, scaled, p[0], w->suffix[0]);
    factor_pack(cg, s->operand, right, scaled);
    multiply_tiles(f, d->halves, left, s->families, right);
}

static void diagonal_dots(Factor *f, Diagonal *d, Val (*x)[2][8], Val (*p)[8])
{
    Cg *cg = f->cg;
    for (int i = 0; i < f->s->families; i++) {
        if (!f->s->family[i].inclusive)
            continue;
        for (int h = 0; h < 2; h++) {
            Val acc = cg_get(cg, d->dot[i][h]);
            for (int e = 0; e < 8; e++)
                acc = cg_fma(cg, x[i][h][e], p[h][e], acc);
            cg_set(cg, d->dot[i][h], acc);
        }
    }
}

/* After the levels: rows times their 16-row factors go to shared memory. */
static void stash_rows(Factor *f, const Walk *w, Val slab, Val (*x)[2][8], Val (*p)[8])
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t), packed[4], scaled[8];
    for (int h = 0; h < 2; h++) {
        mul8(cg, scaled, p[h], w->suffix[h]);
        factor_pack(cg, s->operand, packed, scaled);
        factor_store_unit(cg, factor_key_unit(f, f->row[h], unit), packed);
        for (int i = 0; i < s->families; i++) {
            scale_left(f, w, &s->family[i], h, x[i][h], scaled);
            factor_pack(cg, s->operand, packed, scaled);
            factor_store_unit(cg, factor_stash_unit(f, i, h, slab), packed);
        }
    }
    Val index = cg_add(cg, cg_mul(cg, f->warp, cg_int(cg, s->kp)), cg_shl(cg, unit, 3));
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, f->g, cg_int(cg, 0)));
    for (int e = 0; e < 8; e++)
        cg_store(cg, w->total[0][e],
                 factor_shared_f32(f, f->sh_total, cg_add(cg, index, cg_int(cg, e))), 4);
    cg_end_if(cg, &first);
}

/* Positions (g, 2t+c) of an 8x8 tile whose highest differing bit is `bit`, row above column. */
static Val level_mask(Factor *f, int bit, int c)
{
    Cg *cg = f->cg;
    Val column = cg_add(cg, cg_shl(cg, f->t, 1), cg_int(cg, c));
    Val differ = cg_shr(cg, cg_xor(cg, f->g, column), bit);
    Val above = cg_cmp(cg, LLVMIntUGT, f->g, column);
    return LLVMBuildAnd(cg->b, cg_cmp(cg, LLVMIntEQ, differ, cg_int(cg, 1)), above, "");
}

/* Sum over the four lanes of a row. */
static Val quad_sum(Cg *cg, Val x)
{
    x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, 1));
    return cg_fadd(cg, x, nv_shuffle_xor(cg, x, 2));
}

/* Level accumulators -> one value per position of the lower triangle, in f->diag. */
static void diagonal_finish(Factor *f, Diagonal *d)
{
    Cg *cg = f->cg;
    for (int i = 0; i < f->s->families; i++) {
        int pair = i / 2, at = 2 * (i % 2);
        for (int h = 0; h < 2; h++)
            for (int c = 0; c < 2; c++) {
                Val x = cg_float(cg, 0);
                for (int level = 0; level < 3; level++)
                    x = cg_select(cg, level_mask(f, level, c),
                                  cg_get(cg, d->lanes[level][h][pair][at + c]), x);
                if (f->s->family[i].inclusive) {
                    Val column = cg_add(cg, cg_shl(cg, f->t, 1), cg_int(cg, c));
                    Val same = cg_cmp(cg, LLVMIntEQ, f->g, column);
                    Val dot = quad_sum(cg, cg_get(cg, d->dot[i][h]));
                    x = cg_select(cg, same, dot, x);
                }
                f->diag[i][2 * h + c] = cg_var(cg, cg->f32, x);
            }
        for (int c = 0; c < 2; c++)
            f->diag[i][4 + c] = cg_var(cg, cg->f32, cg_get(cg, d->halves[pair][at + c]));
    }
}

/* One slab of 32 channels: evaluate rows and decays, add the diagonal block's scores, stash. */
static void rows_slab(Factor *f, Diagonal *d, Val slab)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val base = cg_add(cg, cg_shl(cg, slab, 5), cg_shl(cg, f->t, 3));
    for (int h = 0; h < 2; h++) {
        f->at[h].base_k = base;
        value_begin(&f->at[h]);
    }
    Walk w;
    Val x[MAX_FAMILIES][2][8], p[2][8];
    walk_begin(f, &w);
    for (int h = 0; h < 2; h++) {
        factor_row(f, s->p, -1, h, 0, p[h]);
        for (int i = 0; i < s->families; i++)
            factor_row(f, s->family[i].x, s->family[i].position, h, 0, x[i][h]);
    }
    diagonal_dots(f, d, x, p);
    for (int level = 0; level < 3; level++) {
        diagonal_level_lanes(f, d, &w, level, x, p);
        walk_merge_lanes(f, &w, 1 << level);
    }
    diagonal_level_halves(f, d, &w, x, p);
    walk_merge_halves(f, &w);
    stash_rows(f, &w, slab, x, p);
}

void factor_rows_pass(Factor *f)
{
    Cg *cg = f->cg;
    Diagonal d;
    diagonal_begin(f, &d);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, f->s->kp / SLAB), 1, false);
    rows_slab(f, &d, slab.i);
    cg_end_for(cg, &slab);
    diagonal_finish(f, &d);
}

/* B fragments of two 8-update tiles for both k-steps of a slab, from the key tile's block `block`:
 * b[n][pair] as factor_pack lays them out. */
void factor_load_keys(Factor *f, Val block, Val slab, Val b[2][4])
{
    Cg *cg = f->cg;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    for (int n = 0; n < 2; n++) {
        Val row = cg_add(cg, cg_add(cg, cg_shl(cg, block, 4), f->g), cg_int(cg, 8 * n));
        factor_load_unit(cg, factor_key_unit(f, row, unit), b[n]);
    }
}

/* Multiply a lane's packed rows by the decays of a whole 16-row block. */
static void scale_by_total(Factor *f, Val block, Val slab, Val (*left)[2][4])
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val index = cg_add(cg, cg_mul(cg, block, cg_int(cg, s->kp)),
                       cg_add(cg, cg_shl(cg, slab, 5), cg_shl(cg, f->t, 3)));
    Val p = factor_shared_f32(f, f->sh_total, index);
    Val lo = cg_load(cg, LLVMVectorType(cg->f32, 4), p, 16);
    Val hi = cg_load(cg, LLVMVectorType(cg->f32, 4), cg_gep8(cg, p, cg_int(cg, 16)), 16);
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < 4; j++) {
                Val x[2], total = j < 2 ? lo : hi;
                nv_unpack(cg, s->operand, left[i][h][j], x);
                for (int c = 0; c < 2; c++)
                    x[c] = cg_fmul(cg, x[c], cg_extract(cg, total, 2 * (j % 2) + c));
                left[i][h][j] = nv_pack(cg, s->operand, x[0], x[1]);
            }
}

/* acc[family][n] += rows of this warp's block x updates of `block`. */
void factor_multiply(Factor *f, Var (*acc)[2][4], Val (*left)[2][4], Val b[2][4])
{
    Cg *cg = f->cg;
    for (int i = 0; i < f->s->families; i++)
        for (int n = 0; n < 2; n++) {
            Val c[4];
            for (int j = 0; j < 4; j++)
                c[j] = cg_get(cg, acc[i][n][j]);
            for (int step = 0; step < 2; step++) {
                Val a[4] = {left[i][0][2 * step], left[i][1][2 * step], left[i][0][2 * step + 1],
                            left[i][1][2 * step + 1]};
                nv_mma(cg, f->s->operand, c, a, &b[n][2 * step]);
            }
            for (int j = 0; j < 4; j++)
                cg_set(cg, acc[i][n][j], c[j]);
        }
}

/* W_f rows of this slab, now carried to the chunk's start. */
static void store_carried(Factor *f, Val slab, Val (*left)[2][4])
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++) {
            Val p = factor_ws_unit(f, s->family[i].ws_w, s->kp, f->stored_row[i][h], unit);
            factor_store_unit(cg, p, left[i][h]);
        }
}

static void off_diagonal_slab(Factor *f, Val slab)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val left[MAX_FAMILIES][2][4];
    Var held[MAX_FAMILIES][2][4];
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++) {
            factor_load_unit(cg, factor_stash_unit(f, i, h, slab), left[i][h]);
            for (int j = 0; j < 4; j++)
                held[i][h][j] = cg_var(cg, cg->i32, left[i][h][j]);
        }
    for (int distance = 1; distance < s->warps; distance++) {
        If below = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)));
        Val block = cg_sub(cg, f->warp, cg_int(cg, distance)), b[2][4];
        for (int i = 0; i < s->families; i++)
            for (int h = 0; h < 2; h++)
                for (int j = 0; j < 4; j++)
                    left[i][h][j] = cg_get(cg, held[i][h][j]);
        factor_load_keys(f, block, slab, b);
        factor_multiply(f, f->off[distance - 1], left, b);
        scale_by_total(f, block, slab, left);
        for (int i = 0; i < s->families; i++)
            for (int h = 0; h < 2; h++)
                for (int j = 0; j < 4; j++)
                    cg_set(cg, held[i][h][j], left[i][h][j]);
        cg_end_if(cg, &below);
    }
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++)
            for (int j = 0; j < 4; j++)
                left[i][h][j] = cg_get(cg, held[i][h][j]);
    store_carried(f, slab, left);
}

void factor_off_diagonal(Factor *f)
{
    Cg *cg = f->cg;
    for (int d = 0; d + 1 < f->s->warps; d++)
        for (int i = 0; i < f->s->families; i++)
            for (int n = 0; n < 2; n++)
                for (int j = 0; j < 4; j++)
                    f->off[d][i][n][j] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, f->s->kp / SLAB), 1, false);
    off_diagonal_slab(f, slab.i);
    cg_end_for(cg, &slab);
}
