/* The pull phase under vector decay: factor_scores.c's segmented products, backwards.
 *
 * Top down. A row's dx starts as dW, carried over the blocks below it: times a block's decays,
 * plus that block's dG p^, and so on up to its own; then on into halves of the block: times the
 * decays of the lower half if it is in the upper, plus that level's dG p~; down to pairs. At every
 * level dx counts as if the row began at its segment's start. Likewise dp from dKt downwards.
 *
 * So before a segment is cut in halves, x~ dx of a row is the sum of all its pairs with updates
 * before the segment, and p~ dp of an update that of all with rows behind it. Those are what the
 * decays of the segment get: of the lower half, the whole of the upper half's rows; of the upper
 * half, the whole of the lower half's updates; the rest in the halves themselves. Every term is
 * added as what it is.
 *
 * Blocks: the decays of block M get every pair of a row above it and an update below it. Warp I
 * has the sum for every M below it on the way (`over`); the chunk's end is a row above all blocks
 * (`end`), its start an update below all, in dW and in dd. */
#include "codegen/nvptx/grad_pull.h"

enum { LEVELS = 3 }; /* halves of 8, 4 and 2 rows: bits 2, 1, 0 of a pair's number */

/* What a lane holds of a slab. */
typedef struct Lane {
    Val slab;
    Val own[2][8];             /* decays */
    Val other[LEVELS][4];      /* of the neighbouring segment of 2^b pairs, as operand pairs */
    Packed x[MAX_FAMILIES], p; /* rows and keys as they are */
    Packed pair_x[MAX_FAMILIES], pair_p; /* exclusive, carried to the pair's ends */
    Val mask[LEVELS];
    Val F[LEVELS][4]; /* from the pair's ends to the segment's, at a level; [0] is 1 */
    TileVar dx[MAX_FAMILIES], dp;
    Var da[8]; /* of the pair's decays alike */
} Lane;

static bool inclusive(const Pull *p, int f) {
    return p->s->family[f].inclusive;
}

/* sums ----------------------------------------------------------------------------------------- */

/* over [I][M], end [J], dd [warp]: 32 channels each. */
static int over_base(const Pull *p) {
    return p->sh_sum;
}
static int end_base(const Pull *p) {
    return over_base(p) + p->s->warps * p->s->warps * SLAB * 4;
}
static int dd_base(const Pull *p) {
    return end_base(p) + p->s->warps * SLAB * 4;
}
int pull_key_bytes(const Pull *p) {
    return p->decays ? (p->s->warps + 2) * p->s->warps * SLAB * 4 : 0;
}

static Val in_slab(Pull *p, Val row) {
    return cg_add(p->cg, cg_shl(p->cg, row, 5), pull_lane_channel(p));
}

/* dG ------------------------------------------------------------------------------------------- */

static void pack_block(Pull *p, Val x[2][4], Val a[4]) {
    for (int n = 0; n < 2; n++)
        for (int h = 0; h < 2; h++)
            a[2 * n + h] = nv_pack(p->cg, p->s->operand, x[n][2 * h], x[n][2 * h + 1]);
}

/* Element (row, column) of the pair's own 2x2 block, to the four lanes of the pair. */
static Val of_pair(Pull *p, Val x[2][4], int row, int column) {
    Cg *cg = p->cg;
    Val odd = cg_cmp(cg, LLVMIntNE, cg_and(cg, p->f.g, cg_int(cg, 1)), cg_int(cg, 0));
    Val mine = cg_select(cg, odd, x[column][2 * row + 1], x[column][2 * row]);
    Val lane = cg_add(cg, cg_shl(cg, p->f.g, 2), cg_shr(cg, p->f.g, 1));
    return nv_shuffle_from(cg, mine, lane);
}

static void own_block(Pull *p, int f, Val x[2][4]) {
    Cg *cg = p->cg;
    p->below[f] = of_pair(p, x, 1, 0);
    for (int h = 0; h < 2 && inclusive(p, f); h++)
        p->same[f][h] = of_pair(p, x, h, h);
    for (int c = 0; c < 2; c++) {
        Val pair = cg_add(cg, cg_shl(cg, p->f.t, 1), cg_int(cg, c));
        Val before = cg_cmp(cg, LLVMIntUGT, p->f.g, pair);
        for (int i = 0; i < 4; i++)
            x[i / 2][2 * (i % 2) + c] =
                cg_select(cg, before, x[i / 2][2 * (i % 2) + c], cg_float(cg, 0));
    }
    pack_block(p, x, p->own[f]);
    for (int i = 0; i < 4; i++)
        p->turned[f][i % 2 * 2 + i / 2] = nv_movmatrix(cg, p->own[f][i]);
}

void pull_key_dg(Pull *p, int f, Var (*acc)[2][4], Val unit[2]) {
    Cg *cg = p->cg;
    for (int d = 0; d < p->s->warps; d++) {
        Val x[2][4], a[4];
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++)
                x[n][i] = cg_fmul(cg, cg_get(cg, acc[d][n][i]), unit[i / 2]);
        if (d == 0) {
            own_block(p, f, x);
            continue;
        }
        If there = cg_if(cg, cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d)));
        Val pair = pull_pair(p, p->f.warp, cg_sub(cg, p->f.warp, cg_int(cg, d)));
        pack_block(p, x, a);
        pull_put_block(p, p->sh_dg, f, pair, a);
        cg_end_if(cg, &there);
    }
}

/* rows ----------------------------------------------------------------------------------------- */

static Val bit(Pull *p, int b) {
    Cg *cg = p->cg;
    return cg_cmp(cg, LLVMIntNE, cg_and(cg, p->f.g, cg_int(cg, 1 << b)), cg_int(cg, 0));
}

static Val same_bit(Pull *p, int a, int b) {
    return LLVMBuildNot(p->cg->b, LLVMBuildXor(p->cg->b, bit(p, a), bit(p, b), ""), "");
}

static void times(Pull *p, Packed *out, const Packed *x, const Val factor[4]) {
    for (int i = 0; i < 8; i++)
        out->pair[i / 4][i % 4] =
            nv_mul_pair(p->cg, p->s->operand, x->pair[i / 4][i % 4], factor[i % 4]);
}

static void mul8(Cg *cg, Val out[8], const Val a[8], const Val b[8]) {
    for (int e = 0; e < 8; e++)
        out[e] = cg_fmul(cg, a[e], b[e]);
}

/* The decays around the pair: before it in the block, after it, and of the block. */
static void walk(Pull *p, Lane *l, Val prefix[4], Val suffix[4], Val total[8]) {
    Cg *cg = p->cg;
    Elem e16 = p->s->operand;
    Val one = nv_pack(cg, e16, cg_float(cg, 1), cg_float(cg, 1)), other[8];
    mul8(cg, total, l->own[0], l->own[1]);
    for (int b = 0; b < LEVELS; b++) {
        for (int e = 0; e < 8; e++)
            other[e] = nv_shuffle_xor(cg, total[e], 4 << b);
        mul8(cg, total, total, other);
        factor_pack(cg, e16, l->other[b], other);
        for (int j = 0; j < 4; j++) {
            Val before = cg_select(cg, bit(p, b), l->other[b][j], one);
            Val after = cg_select(cg, bit(p, b), one, l->other[b][j]);
            prefix[j] = b ? nv_mul_pair(cg, e16, prefix[j], before) : before;
            suffix[j] = b ? nv_mul_pair(cg, e16, suffix[j], after) : after;
        }
    }
    for (int j = 0; j < 4; j++) {
        l->F[1][j] = cg_select(cg, same_bit(p, 1, 0), l->other[0][j], one);
        Val near = cg_select(cg, same_bit(p, 2, 0), l->other[0][j], one);
        Val far = cg_select(cg, same_bit(p, 2, 1), l->other[1][j], one);
        l->F[2][j] = nv_mul_pair(cg, e16, near, far);
    }
}

static void load_rows(Pull *p, Lane *l) {
    Cg *cg = p->cg;
    Tile t;
    for (int h = 0; h < 2; h++) {
        factor_row(&p->f, p->s->a, -1, h, 1, l->own[h]);
        factor_keys(&p->f, h, t.x[h]);
    }
    pull_pack(p, &l->p, &t);
    mul8(cg, t.x[0], t.x[0], l->own[1]);
    pull_pack(p, &l->pair_p, &t);
    for (int f = 0; f < p->s->families; f++) {
        for (int h = 0; h < 2; h++)
            factor_family_row(&p->f, f, h, t.x[h]);
        pull_pack(p, &l->x[f], &t);
        for (int h = 0; h < 2; h++) {
            if (inclusive(p, f))
                mul8(cg, t.x[h], t.x[h], l->own[h]);
            if (h == 1)
                mul8(cg, t.x[h], t.x[h], l->own[0]);
        }
        pull_pack(p, &l->pair_x[f], &t);
    }
}

/* Rows and keys carried to the block's ends, for the other warps, and the block's decays. */
static void exchange(Pull *p, Lane *l) {
    Cg *cg = p->cg;
    Val prefix[4], suffix[4], total[8];
    Packed carried;
    walk(p, l, prefix, suffix, total);
    times(p, &carried, &l->pair_p, suffix);
    pull_put_operand(p, 0, &carried);
    for (int f = 0; f < p->s->families; f++) {
        times(p, &carried, &l->pair_x[f], prefix);
        pull_put_operand(p, 1 + f, &carried);
    }
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, p->f.g, cg_int(cg, 0)));
    Val index = cg_add(cg, cg_shl(cg, p->f.warp, 5), cg_shl(cg, p->f.t, 3));
    for (int q = 0; q < 2; q++) {
        Val v = LLVMGetUndef(LLVMVectorType(cg->f32, 4));
        for (int j = 0; j < 4; j++)
            v = cg_insert(cg, v, total[4 * q + j], j);
        cg_store(cg, v, pull_f32(p, p->sh_total, cg_add(cg, index, cg_int(cg, 4 * q))), 16);
    }
    cg_end_if(cg, &first);
}

/* blocks --------------------------------------------------------------------------------------- */

static void block_total(Pull *p, Val block, Val total[8]) {
    Cg *cg = p->cg;
    pull_load8(p, p->sh_total, cg_add(cg, cg_shl(cg, block, 5), cg_shl(cg, p->f.t, 3)), total);
}

static void carry(Pull *p, Tile *x, const Val factor[8]) {
    for (int h = 0; h < 2; h++)
        mul8(p->cg, x->x[h], x->x[h], factor);
}

/* sum += packed x times y, over the two rows. */
static void add_products(Pull *p, Val sum[8], const Packed *x, const Tile *y) {
    Tile t;
    pull_unpack(p, &t, x);
    for (int h = 0; h < 2; h++)
        for (int e = 0; e < 8; e++)
            sum[e] = cg_fma(p->cg, t.x[h][e], y->x[h][e], sum[e]);
}

/* The same with keys or rows as they are in shared memory. */
static void add_carried(Pull *p, Val sum[8], int operand, const Tile *y) {
    Packed x;
    pull_get_back(p, operand, &x);
    add_products(p, sum, &x, y);
}

static void zero8(Cg *cg, Val x[8]) {
    for (int e = 0; e < 8; e++)
        x[e] = cg_float(cg, 0);
}

/* x times the decays of blocks lo .. hi-1, in the lane's channel. */
static Val carry_channel(Pull *p, Val x, Val lo, Val hi) {
    Cg *cg = p->cg;
    Var v = cg_var(cg, cg->f32, x);
    Loop m = cg_for(cg, lo, hi, 1, false);
    cg_set(cg, v, cg_fmul(cg, cg_get(cg, v), pull_load(p, p->sh_total, in_slab(p, m.i))));
    cg_end_for(cg, &m);
    return cg_get(cg, v);
}

/* The sum of x over the rows, carried over blocks lo .. hi-1, to row `row` of sums. */
static void put_sum(Pull *p, const Val x[8], Val lo, Val hi, int base, Val row) {
    Val sum = carry_channel(p, pull_rows_sum(p, x), lo, hi);
    cg_store(p->cg, sum, pull_f32(p, base, in_slab(p, row)), 4);
}

static void put_dd(Pull *p) {
    Cg *cg = p->cg;
    Val dd[4], here;
    pull_dd(p, dd, &here);
    If some = cg_if(cg, here);
    for (int i = 0; i < 4; i++) {
        Val at = cg_add(cg, cg_shl(cg, p->f.warp, 5), pull_dd_channel(p, i));
        cg_store(cg, dd[i], pull_f32(p, dd_base(p), at), 4);
    }
    cg_end_if(cg, &some);
}

/* dx from the blocks below, lowest first. */
static void pull_rows(Pull *p, Lane *l) {
    Cg *cg = p->cg;
    int families = p->s->families;
    Loop m = cg_for(cg, cg_int(cg, 0), p->f.warp, 1, false);
    Val total[8], b[4][2], a[4], sum[8], pair = pull_pair(p, p->f.warp, m.i);
    Tile dx[MAX_FAMILIES];
    block_total(p, m.i, total);
    zero8(cg, sum);
    for (int f = 0; f < families; f++) {
        pull_get(p, &dx[f], &l->dx[f]);
        carry(p, &dx[f], total);
        if (p->decays)
            add_carried(p, sum, 1 + f, &dx[f]);
    }
    if (p->decays) {
        Val row = cg_add(cg, cg_mul(cg, p->f.warp, cg_int(cg, p->s->warps)), m.i);
        put_sum(p, sum, cg_add(cg, m.i, cg_int(cg, 1)), p->f.warp, over_base(p), row);
    }
    pull_get_operand(p, 0, m.i, b);
    for (int f = 0; f < families; f++) {
        pull_get_block(p, p->sh_dg, f, pair, false, a);
        pull_multiply(p, &dx[f], a, b);
        pull_set(p, &l->dx[f], &dx[f]);
    }
    cg_end_for(cg, &m);
}

/* dp from the blocks above, highest first. */
static void pull_keys(Pull *p, Lane *l) {
    Cg *cg = p->cg;
    Val last = cg_int(cg, p->s->warps - 1);
    if (p->decays) {
        Val sum[8];
        Tile dp;
        zero8(cg, sum);
        pull_get(p, &dp, &l->dp);
        add_carried(p, sum, 0, &dp);
        put_sum(p, sum, cg_add(cg, p->f.warp, cg_int(cg, 1)), cg_int(cg, p->s->warps), end_base(p),
                p->f.warp);
    }
    Loop m = cg_for(cg, cg_int(cg, 0), cg_sub(cg, last, p->f.warp), 1, false);
    Val block = cg_sub(cg, last, m.i), pair = pull_pair(p, block, p->f.warp), total[8], b[4][2],
        a[4];
    Tile dp;
    pull_get(p, &dp, &l->dp);
    block_total(p, block, total);
    carry(p, &dp, total);
    for (int f = 0; f < p->s->families; f++) {
        pull_get_operand(p, 1 + f, block, b);
        pull_get_block(p, p->sh_dg, f, pair, true, a);
        pull_multiply(p, &dp, a, b);
    }
    pull_set(p, &l->dp, &dp);
    cg_end_for(cg, &m);
}

/* What the decays of this warp's block get of pairs with neither row nor update in it; `whole`: the
 * product of all decays, whose parts are no longer there. */
static void gather(Pull *p, Lane *l, Val whole) {
    Cg *cg = p->cg;
    int warps = p->s->warps;
    Val sum = cg_float(cg, 0), zero = sum;
    for (int w = 0; w < warps && p->g->dd >= 0; w++)
        sum = cg_fadd(cg, sum, pull_load(p, dd_base(p), in_slab(p, cg_int(cg, w))));
    sum = cg_fmul(cg, sum, whole);
    for (int w = 0; w < warps; w++) {
        Val above = cg_cmp(cg, LLVMIntUGT, cg_int(cg, w), p->f.warp);
        Val below = cg_cmp(cg, LLVMIntULT, cg_int(cg, w), p->f.warp);
        Val row = cg_add(cg, p->f.warp, cg_int(cg, w * warps));
        if (w > 0) {
            row = cg_select(cg, above, row, cg_int(cg, w * warps)); /* one that is there */
            Val x = pull_load(p, over_base(p), in_slab(p, row));
            sum = cg_fadd(cg, sum, cg_select(cg, above, x, zero));
        }
        if (w + 1 < warps) {
            Val x = pull_load(p, end_base(p), in_slab(p, cg_int(cg, w)));
            sum = cg_fadd(cg, sum, cg_select(cg, below, x, zero));
        }
    }
    for (int e = 0; e < 8; e++) {
        Val lane = cg_add(cg, p->f.t, cg_int(cg, 4 * e));
        l->da[e] = cg_var(cg, cg->f32, nv_shuffle_from(cg, sum, lane));
    }
}

/* levels --------------------------------------------------------------------------------------- */

/* sum += packed x times y, of a lane's rows; y is carried over `factor` first. */
static void carry_and_add(Pull *p, const TileVar *y, const Val factor[8], const Packed *x,
                          Val sum[8]) {
    Tile t;
    pull_get(p, &t, y);
    carry(p, &t, factor);
    pull_set(p, y, &t);
    if (p->decays)
        add_products(p, sum, x, &t);
}

/* Segments of 2^(b+1) pairs are cut: dx goes on over the lower half into the upper, dp the other
 * way, and each half's decays get the sum of the other's. */
static void cut(Pull *p, Lane *l, int b) {
    Cg *cg = p->cg;
    Val factor[8], sum[8];
    Var half[8];
    for (int j = 0; j < 4; j++)
        nv_unpack(cg, p->s->operand, l->other[b][j], factor + 2 * j);
    for (int e = 0; e < 8; e++)
        half[e] = cg_var(cg, cg->f32, NULL);
    zero8(cg, sum);
    If upper = cg_if(cg, bit(p, b));
    for (int f = 0; f < p->s->families; f++)
        carry_and_add(p, &l->dx[f], factor, &l->pair_x[f], sum);
    for (int e = 0; e < 8; e++)
        cg_set(cg, half[e], sum[e]);
    cg_else(cg, &upper);
    zero8(cg, sum);
    carry_and_add(p, &l->dp, factor, &l->pair_p, sum);
    for (int e = 0; e < 8; e++)
        cg_set(cg, half[e], sum[e]);
    cg_end_if(cg, &upper);
    for (int j = 0; j < 4 && b > 0; j++) /* rows and keys from the pair's ends to the half's */
        nv_unpack(cg, p->s->operand, l->F[b][j], factor + 2 * j);
    for (int e = 0; e < 8 && p->decays; e++) {
        Val all = cg_get(cg, half[e]);
        all = b > 0 ? cg_fmul(cg, all, factor[e]) : all;
        for (int i = 0; i < b; i++)
            all = cg_fadd(cg, all, nv_shuffle_xor(cg, all, 4 << i));
        cg_set(cg, l->da[e], cg_fadd(cg, cg_get(cg, l->da[e]), nv_shuffle_xor(cg, all, 4 << b)));
    }
}

/* Elements of dG between pairs whose numbers differ in bit b first. */
static Val level_mask(Pull *p, int b) {
    Cg *cg = p->cg;
    Val mask = cg_int(cg, 0);
    for (int c = 0; c < 2; c++) {
        Val pair = cg_add(cg, cg_shl(cg, p->f.t, 1), cg_int(cg, c));
        Val differ = cg_shr(cg, cg_xor(cg, p->f.g, pair), b);
        Val its = cg_cmp(cg, LLVMIntEQ, differ, cg_int(cg, 1));
        Val half = cg_int(cg, c ? 0xffff0000 : 0xffff);
        mask = cg_or(cg, mask, cg_select(cg, its, half, cg_int(cg, 0)));
    }
    return mask;
}

static void of_level(Pull *p, Val mask, const Val a[4], Val out[4]) {
    for (int i = 0; i < 4; i++)
        out[i] = cg_and(p->cg, a[i], mask);
}

/* x, as far as LLVM knows another one in every slab: what is made of it stays in the loop, where
 * it takes no register before it is used. */
static Val another(Pull *p, Val x) {
    return nv_anew(p->cg, x);
}

/* B fragments of rows or keys at a level. */
static void turn_level(Pull *p, Lane *l, int b, const Packed *x, Val turned[4][2]) {
    Packed at = *x;
    if (b > 0)
        times(p, &at, x, l->F[b]);
    pull_turn(p, &at, turned);
}

static void pull_level(Pull *p, Lane *l, int b) {
    int families = p->s->families;
    Val turned[4][2], a[4], mask;
    Tile t;
    cut(p, l, b);
    mask = another(p, l->mask[b]);
    turn_level(p, l, b, &l->pair_p, turned);
    for (int f = 0; f < families; f++) {
        of_level(p, mask, p->own[f], a);
        pull_get(p, &t, &l->dx[f]);
        pull_multiply(p, &t, a, turned);
        pull_set(p, &l->dx[f], &t);
    }
    pull_get(p, &t, &l->dp);
    for (int f = 0; f < families; f++) {
        turn_level(p, l, b, &l->pair_x[f], turned);
        of_level(p, mask, p->turned[f], a);
        pull_multiply(p, &t, a, turned);
    }
    pull_set(p, &l->dp, &t);
}

/* pairs ---------------------------------------------------------------------------------------- */

/* Decays of a pair: rows and updates with others outside, and inclusive rows with its first
 * update. */
static void pair_decays(Pull *p, Lane *l, const Tile *dx, const Tile *dp, Val da[2][8]) {
    Cg *cg = p->cg;
    Tile x, key, raw;
    pull_unpack(p, &key, &l->pair_p);
    for (int e = 0; e < 8; e++) {
        da[0][e] = cg_get(cg, l->da[e]);
        da[1][e] = cg_fma(cg, key.x[0][e], dp->x[0][e], da[0][e]);
    }
    pull_unpack(p, &key, &l->p);
    for (int f = 0; f < p->s->families; f++) {
        pull_unpack(p, &x, &l->pair_x[f]);
        pull_unpack(p, &raw, &l->x[f]);
        for (int e = 0; e < 8; e++) {
            da[0][e] = cg_fma(cg, x.x[1][e], dx[f].x[1][e], da[0][e]);
            if (!inclusive(p, f))
                continue;
            da[0][e] = cg_fma(cg, x.x[0][e], dx[f].x[0][e], da[0][e]);
            da[1][e] = cg_fma(cg, x.x[1][e], dx[f].x[1][e], da[1][e]);
            Val pair = cg_fmul(cg, cg_fmul(cg, raw.x[1][e], l->own[1][e]), key.x[0][e]);
            da[1][e] = cg_fma(cg, pair, p->below[f], da[1][e]);
        }
    }
}

/* From the pair's ends to the rows themselves. */
static void pull_pairs(Pull *p, Lane *l, Tile *dx, Tile *dp) {
    Cg *cg = p->cg;
    Tile x, key;
    pull_unpack(p, &key, &l->p);
    mul8(cg, dp->x[0], dp->x[0], l->own[1]);
    for (int f = 0; f < p->s->families; f++) {
        pull_unpack(p, &x, &l->x[f]);
        for (int e = 0; e < 8; e++) {
            Val seen = x.x[1][e], *d[2] = {&dx[f].x[0][e], &dx[f].x[1][e]};
            if (inclusive(p, f))
                seen = cg_fmul(cg, seen, l->own[1][e]);
            dp->x[0][e] = cg_fma(cg, seen, p->below[f], dp->x[0][e]);
            *d[1] = cg_fma(cg, *d[1], l->own[0][e], cg_fmul(cg, key.x[0][e], p->below[f]));
            for (int h = 0; h < 2 && inclusive(p, f); h++) {
                Val same = cg_fmul(cg, key.x[h][e], p->same[f][h]);
                *d[h] = cg_fma(cg, *d[h], l->own[h][e], same);
                dp->x[h][e] = cg_fma(cg, x.x[h][e], p->same[f][h], dp->x[h][e]);
            }
        }
    }
}

static void store_decays(Pull *p, Lane *l, Val da[2][8]) {
    Cg *cg = p->cg;
    for (int h = 0; h < 2; h++) {
        for (int e = 0; e < 8; e++) {
            da[h][e] = cg_fmul(cg, da[h][e], p->sigma);
            if (!p->g->a_log)
                da[h][e] = cg_fdiv(cg, da[h][e], l->own[h][e]);
        }
        pull_store_row(p, p->grad->scratch_da, h, l->slab, da[h]);
    }
}

static void finish(Pull *p, Lane *l) {
    Tile dx[MAX_FAMILIES], dp;
    Val da[2][8];
    for (int b = LEVELS - 1; b >= 0; b--)
        pull_level(p, l, b);
    for (int f = 0; f < p->s->families; f++)
        pull_get(p, &dx[f], &l->dx[f]);
    pull_get(p, &dp, &l->dp);
    if (p->decays) {
        pair_decays(p, l, dx, &dp, da);
        store_decays(p, l, da);
    }
    pull_pairs(p, l, dx, &dp);
    pull_store_dx(p, l->slab, dx);
    pull_store_dp(p, l->slab, &dp);
}

void pull_key_chunk(Pull *p) {
    Cg *cg = p->cg;
    const System *s = p->s;
    Lane *l = NEW(cg->arena, Lane);
    for (int b = 0; b < LEVELS; b++)
        l->mask[b] = level_mask(p, b);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    Tile dw[MAX_FAMILIES], dkt;
    l->slab = slab.i;
    nv_copy_wait(cg, 1); /* the states may go on */
    factor_take_slab(&p->f, slab.i);
    load_rows(p, l);
    exchange(p, l);
    nv_copy_wait(cg, 1);
    nv_barrier(cg);
    pull_state(p, dw, &dkt);
    for (int f = 0; f < s->families; f++) {
        pull_scale(p, &dw[f], p->dw_unit[f]);
        l->dx[f] = pull_var(p, &dw[f]);
    }
    pull_scale(p, &dkt, p->dkt_unit);
    l->dp = pull_var(p, &dkt);
    if (p->decays && p->g->dd >= 0)
        put_dd(p);
    pull_rows(p, l);
    pull_keys(p, l);
    Val whole = carry_channel(p, cg_float(cg, 1), cg_int(cg, 0), cg_int(cg, s->warps));
    nv_barrier(cg);
    Val next = cg_add(cg, slab.i, cg_int(cg, 1));
    If more = cg_if(cg, cg_cmp(cg, LLVMIntSLT, next, cg_int(cg, s->kp / SLAB)));
    pull_copy_state(p, next);
    cg_end_if(cg, &more);
    if (p->decays)
        gather(p, l, whole);
    finish(p, l);
    cg_end_for(cg, &slab);
}
