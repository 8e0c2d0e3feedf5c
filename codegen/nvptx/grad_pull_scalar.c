/* The pull phase when all channels decay alike, or not at all.
 *
 * Then Lam(l,u) is a number and goes into dG: rows and keys are pulled by products of dG Lam with
 * keys and rows, blocks up to the diagonal. What decays get is made of H[l,u] = dG[l,u] (x_l .
 * p_u), without Lam, row by row of the lattice:
 *
 *     before[m+1] = before[m] a[m] + H[l,m]        da[m] += Lam(l,m) before[m]
 *
 * with before[0] = x_l . dW_l, what the state at the start gives. The chunk's end is one more row:
 * H is p_u . dKt_u, before[0] the sum of S dS'. For log a everything has its Lam, and these are
 * plain sums over u < m <= l: grad_pull_log.c. Nothing cancels, nothing is divided. */
#include "codegen/nvptx/grad_pull.h"

enum { RUN = PULL_RUN };

static int update_base(const Pull *p) { return p->sh_sum; }

int pull_scalar_bytes(const Pull *p) {
    int rows = p->s->rows;
    return p->decays ? (2 * rows + MAX_WARPS + p->s->warps * rows) * 4 : 0;
}

static const Family *family(const Pull *p, int f) {
    return &p->s->family[f];
}

/* dG ------------------------------------------------------------------------------------------- */

/* x times Lam with the block `distance` below the warp's own, 0 where not seen; in place. */
static void decay(Pull *p, int f, int distance, Var (*x)[4]) {
    Cg *cg = p->cg;
    for (int i = 0; i < RUN && distance == 0; i++)
        for (int h = 0; h < 2; h++) {
            Var v = x[i % 2][2 * h + i / 2];
            cg_set(cg, v, factor_own_score(&p->f, family(p, f), h, pull_column(p, i), cg_get(cg, v)));
        }
    if (distance > 0 && p->s->a >= 0)
        factor_decay_block(&p->f, family(p, f), distance, x);
}

static void put_block(Pull *p, int base, int f, Val pair, Var (*x)[4]) {
    Cg *cg = p->cg;
    Val a[4];
    for (int n = 0; n < 2; n++)
        for (int h = 0; h < 2; h++)
            a[2 * n + h] =
                nv_pack(cg, p->s->operand, cg_get(cg, x[n][2 * h]), cg_get(cg, x[n][2 * h + 1]));
    pull_put_block(p, base, f, pair, a);
}

void pull_scalar_dg(Pull *p, int f, Var (*acc)[2][4], Val unit[2]) {
    Cg *cg = p->cg;
    for (int d = 0; d < p->s->warps; d++) {
        If there = cg_if(cg, cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d)));
        Val pair = pull_pair(p, p->f.warp, cg_sub(cg, p->f.warp, cg_int(cg, d)));
        for (int i = 0; i < 8; i++) {
            Var v = acc[d][i / 4][i % 4];
            cg_set(cg, v, cg_fmul(cg, cg_get(cg, v), unit[i % 4 / 2]));
        }
        if (p->decays && !p->g->a_log)
            put_block(p, p->sh_raw, f, pair, acc[d]);
        decay(p, f, d, acc[d]);
        put_block(p, p->sh_dg, f, pair, acc[d]);
        cg_end_if(cg, &there);
    }
}

/* slabs ---------------------------------------------------------------------------------------- */

static Val key_place(Pull *p, Val block, int h) {
    Cg *cg = p->cg;
    Val unit = cg_add(cg, cg_shl(cg, block, 1), cg_int(cg, h));
    unit = cg_add(cg, cg_shl(cg, unit, 5), p->f.lane);
    return cg_gep8(cg, nv_shared(cg, p->sh_keys), cg_shl(cg, unit, 4));
}

/* To shared memory, where each warp also takes its own ones back: they would need the registers that the
 * products with the states run ahead in. */
static void put_rows(Pull *p) {
    Tile t;
    Packed packed;
    for (int h = 0; h < 2; h++)
        factor_keys(&p->f, h, t.x[h]);
    pull_pack(p, &packed, &t);
    pull_put_operand(p, 0, &packed);
    for (int h = 0; h < 2 && p->decays; h++)
        factor_store_unit(p->cg, key_place(p, p->f.warp, h), packed.pair[h]);
    for (int f = 0; f < p->s->families; f++) {
        for (int h = 0; h < 2; h++)
            factor_family_row(&p->f, f, h, t.x[h]);
        pull_pack(p, &packed, &t);
        pull_put_operand(p, 1 + f, &packed);
    }
}

static void get_rows(Pull *p, Packed *x, Packed *key) {
    for (int h = 0; h < 2; h++)
        factor_load_unit(p->cg, key_place(p, p->f.warp, h), key->pair[h]);
    for (int f = 0; f < p->s->families; f++)
        pull_get_back(p, 1 + f, &x[f]);
}

static void add_scores(Pull *p, Scalar *c, const Packed *x) {
    Cg *cg = p->cg;
    for (int d = 0; d < p->s->warps; d++) {
        Val there = cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d)), b[2][4];
        Val block = cg_select(cg, there, cg_sub(cg, p->f.warp, cg_int(cg, d)), cg_int(cg, 0));
        for (int n = 0; n < 2; n++)
            factor_load_unit(cg, key_place(p, block, n), b[n]);
        for (int f = 0; f < p->s->families; f++) {
            Packed left = x[f];
            factor_multiply_family(&p->f, c->score[f][d], left.pair, b);
        }
    }
}

static void add_dot(Pull *p, Var sum, const Packed *x, int h, const Val y[8]) {
    Cg *cg = p->cg;
    Val all = cg_get(cg, sum), two[2];
    for (int j = 0; j < 4; j++) {
        nv_unpack(cg, p->s->operand, x->pair[h][j], two);
        for (int i = 0; i < 2; i++)
            all = cg_fma(cg, two[i], y[2 * j + i], all);
    }
    cg_set(cg, sum, all);
}

/* What the decays take of rows and keys, of dW and dKt. */
static void add_products(Pull *p, Scalar *c, const Tile *dx, const Tile *dp) {
    Packed x[MAX_FAMILIES], key;
    get_rows(p, x, &key);
    add_scores(p, c, x);
    for (int h = 0; h < 2; h++) {
        for (int f = 0; f < p->s->families; f++)
            add_dot(p, c->start[f][h], &x[f], h, dx[f].x[h]);
        add_dot(p, c->end[h], &key, h, dp->x[h]);
    }
}

/* dW and dKt carried to the rows and in units of sigma. */
static void begin_slab(Pull *p, Scalar *c, Tile *dx, Tile *dp) {
    pull_state(p, dx, dp);
    if (p->decays)
        add_products(p, c, dx, dp);
    for (int f = 0; f < p->s->families; f++)
        pull_scale(p, &dx[f], c->carried[f]);
    pull_scale(p, dp, c->tail);
    if (p->decays && p->g->dd >= 0)
        cg_set(p->cg, c->dd, cg_fadd(p->cg, cg_get(p->cg, c->dd), pull_dd_part(p)));
}

/* dx of this warp's rows from updates of a block at or below its own. */
static void pull_rows(Pull *p, Val block, Tile *dx) {
    Val b[4][2], a[4], pair = pull_pair(p, p->f.warp, block);
    pull_get_operand(p, 0, block, b);
    for (int f = 0; f < p->s->families; f++) {
        pull_get_block(p, p->sh_dg, f, pair, false, a);
        pull_multiply(p, &dx[f], a, b);
    }
}

/* dp of this warp's updates from rows of a block at or above its own. */
static void pull_keys(Pull *p, Val block, Tile *dp) {
    Val b[4][2], a[4], pair = pull_pair(p, block, p->f.warp);
    for (int f = 0; f < p->s->families; f++) {
        pull_get_operand(p, 1 + f, block, b);
        pull_get_block(p, p->sh_dg, f, pair, true, a);
        pull_multiply(p, dp, a, b);
    }
}

/* The own block's rows, which every warp has, come first, together with what is before; the others by loops.
 * (Its updates likewise: no register is left.) */
static void pull_blocks(Pull *p, Tile *dx, Tile *dp) {
    Cg *cg = p->cg;
    int families = p->s->families;
    Val next = cg_add(cg, p->f.warp, cg_int(cg, 1));
    TileVar var[MAX_FAMILIES], of_keys;
    pull_keys(p, p->f.warp, dp);
    for (int f = 0; f < families; f++)
        var[f] = pull_var(p, &dx[f]);
    of_keys = pull_var(p, dp);
    Loop j = cg_for(cg, cg_int(cg, 0), next, 1, false);
    for (int f = 0; f < families; f++)
        pull_get(p, &dx[f], &var[f]);
    pull_rows(p, j.i, dx);
    for (int f = 0; f < families; f++)
        pull_set(p, &var[f], &dx[f]);
    cg_end_for(cg, &j);
    Loop i = cg_for(cg, next, cg_int(cg, p->s->warps), 1, false);
    pull_get(p, dp, &of_keys);
    pull_keys(p, i.i, dp);
    pull_set(p, &of_keys, dp);
    cg_end_for(cg, &i);
    for (int f = 0; f < families; f++)
        pull_get(p, &dx[f], &var[f]);
    pull_get(p, dp, &of_keys);
}

static void pull_slab(Pull *p, Scalar *c) {
    Cg *cg = p->cg;
    Tile dx[MAX_FAMILIES], dp;
    nv_copy_wait(cg, 1); /* the states may go on */
    factor_take_slab(&p->f, c->slab);
    put_rows(p);
    nv_copy_wait(cg, 1);
    nv_barrier(cg);
    begin_slab(p, c, dx, &dp);
    pull_blocks(p, dx, &dp);
    nv_barrier(cg);
    Val next = cg_add(cg, c->slab, cg_int(cg, 1));
    If more = cg_if(cg, cg_cmp(cg, LLVMIntSLT, next, cg_int(cg, p->s->kp / SLAB)));
    pull_copy_state(p, next);
    cg_end_if(cg, &more);
    pull_store_dx(p, c->slab, dx);
    pull_store_dp(p, c->slab, &dp);
}

/* decays --------------------------------------------------------------------------------------- */

/* The map before -> before * factor + sum that a run of columns makes. */
typedef struct Affine {
    Val factor, sum;
} Affine;

/* Decays of a lane's columns of a block (1 where it is not there), running
 * products, and the inclusive products over the lanes of a row by steps 1 and 2. */
typedef struct Columns {
    Val a[RUN], product[RUN + 1], scan[3];
} Columns;

void pull_scores(Pull *p, const Scalar *c, int f, int d, int h, const Val raw[4], Val there,
                 Val H[RUN]) {
    Cg *cg = p->cg;
    Val two[2], zero = cg_float(cg, 0);
    for (int n = 0; n < 2; n++) {
        nv_unpack(cg, p->s->operand, raw[2 * n + h], two);
        for (int i = 0; i < 2; i++) {
            H[2 * i + n] = cg_fmul(cg, two[i], cg_get(cg, c->score[f][d][n][2 * h + i]));
            H[2 * i + n] = cg_select(cg, there, H[2 * i + n], zero);
        }
    }
}

void pull_put_columns(Pull *p, Val (*sum)[RUN]) {
    Cg *cg = p->cg;
    int warps = p->s->warps;
    for (int d = 0; d < warps; d += 2) { /* lane g: column g % 4 of distance d + g / 4 */
        Val all[2 * RUN];
        memcpy(all, sum[d], sizeof all);
        Val x = pull_rows_sum(p, all);
        Val distance = cg_add(cg, cg_shr(cg, p->f.g, 2), cg_int(cg, d));
        Val block = cg_sub(cg, p->f.warp, distance);
        Val index = cg_add(cg, cg_shl(cg, p->f.t, 2), cg_and(cg, p->f.g, cg_int(cg, 3)));
        index = cg_add(cg, index, cg_shl(cg, block, 4));
        index = cg_add(cg, index, cg_mul(cg, p->f.warp, cg_int(cg, p->s->rows)));
        If there = cg_if(cg, cg_cmp(cg, LLVMIntULE, distance, p->f.warp));
        cg_store(cg, x, pull_f32(p, pull_column_base(p), index), 4);
        cg_end_if(cg, &there);
    }
}

static Val from_lane(Pull *p, Val x, int step) {
    return nv_shuffle_from(p->cg, x, cg_sub(p->cg, p->f.lane, cg_int(p->cg, step)));
}

static Val has_lane(Pull *p, int step) {
    return cg_cmp(p->cg, LLVMIntUGE, p->f.t, cg_int(p->cg, step));
}

static Columns block_columns(Pull *p, Val block, Val there) {
    Cg *cg = p->cg;
    Columns c;
    Val one = cg_float(cg, 1);
    c.product[0] = one;
    for (int i = 0; i < RUN; i++) {
        c.a[i] = factor_own_decay(&p->f, cg_add(cg, cg_shl(cg, block, 4), pull_column(p, i)));
        c.a[i] = there ? cg_select(cg, there, c.a[i], one) : c.a[i];
        c.product[i + 1] = cg_fmul(cg, c.product[i], c.a[i]);
    }
    c.scan[0] = c.product[RUN];
    for (int s = 0; s < 2; s++) {
        Val got = from_lane(p, c.scan[s], 1 << s);
        c.scan[s + 1] = cg_fmul(cg, c.scan[s], cg_select(cg, has_lane(p, 1 << s), got, one));
    }
    return c;
}

/* before[] of the lane's columns of one row; `carry` becomes that behind the block. */
static void run_block(Pull *p, const Columns *c, const Val H[RUN], Val *carry, Val before[RUN]) {
    Cg *cg = p->cg;
    Val zero = cg_float(cg, 0), one = cg_float(cg, 1), local[RUN + 1], sum, factor;
    local[0] = zero;
    for (int i = 0; i < RUN; i++)
        local[i + 1] = cg_fma(cg, local[i], c->a[i], H[i]);
    sum = local[RUN];
    for (int s = 0; s < 2; s++) {
        Val got = cg_select(cg, has_lane(p, 1 << s), from_lane(p, sum, 1 << s), zero);
        sum = cg_fma(cg, got, c->scan[s], sum);
    }
    factor = cg_select(cg, has_lane(p, 1), from_lane(p, c->scan[2], 1), one);
    Val start = cg_select(cg, has_lane(p, 1), from_lane(p, sum, 1), zero);
    start = cg_fma(cg, *carry, factor, start);
    for (int i = 0; i < RUN; i++)
        before[i] = cg_fma(cg, start, c->product[i], local[i]);
    Val last = cg_or(cg, p->f.lane, cg_int(cg, 3));
    Val behind = cg_fma(cg, *carry, c->scan[2], sum);
    *carry = nv_shuffle_from(cg, behind, last);
}

/* Family f's rows of this warp: column[distance][i] += Lam before, summed over the lane's rows. */
static void add_columns(Pull *p, Scalar *c, int f, const Columns *columns, Val (*sum)[RUN]) {
    Cg *cg = p->cg;
    Val carry[2];
    for (int h = 0; h < 2; h++) {
        carry[h] = cg_fmul(cg, pull_quad_sum(p, cg_get(cg, c->start[f][h])), p->dw_unit[f][h]);
    }
    for (int d = p->s->warps - 1; d >= 0; d--) {
        Val there = cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d)), zero = cg_float(cg, 0);
        Val block = cg_select(cg, there, cg_sub(cg, p->f.warp, cg_int(cg, d)), cg_int(cg, 0));
        Val raw[4], row_block = cg_select(cg, there, p->f.warp, cg_int(cg, 0));
        Var lam[2][4];
        pull_get_block(p, p->sh_raw, f, pull_pair(p, row_block, block), false, raw);
        for (int i = 0; i < 8; i++)
            lam[i / 4][i % 4] = cg_var(cg, cg->f32, cg_select(cg, there, cg_float(cg, 1), zero));
        If seen = cg_if(cg, there);
        decay(p, f, d, lam);
        cg_end_if(cg, &seen);
        for (int h = 0; h < 2; h++) {
            Val H[RUN], before[RUN];
            pull_scores(p, c, f, d, h, raw, there, H);
            run_block(p, &columns[d], H, &carry[h], before);
            for (int i = 0; i < RUN; i++)
                sum[d][i] = cg_fma(cg, cg_get(cg, lam[i % 2][2 * h + i / 2]), before[i], sum[d][i]);
        }
    }
}

static void rows_decays(Pull *p, Scalar *c) {
    Cg *cg = p->cg;
    int warps = p->s->warps;
    Columns columns[MAX_WARPS];
    Val sum[MAX_WARPS + 1][RUN];
    for (int d = 0; d < warps; d++) {
        Val there = cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d));
        Val block = cg_select(cg, there, cg_sub(cg, p->f.warp, cg_int(cg, d)), cg_int(cg, 0));
        columns[d] = block_columns(p, block, there);
    }
    for (int i = 0; i < (warps + 1) * RUN; i++)
        sum[i / RUN][i % RUN] = cg_float(cg, 0);
    for (int f = 0; f < p->s->families; f++)
        add_columns(p, c, f, columns, sum);
    pull_put_columns(p, sum);
}

/* The chunk's end as a row; every warp runs over all blocks and keeps its own. */
static void end_decays(Pull *p) {
    Cg *cg = p->cg;
    int warps = p->s->warps;
    Val carry = cg_float(cg, 0), mine[RUN] = {NULL};
    for (int w = 0; w < warps; w++)
        carry = cg_fadd(cg, carry, pull_load(p, pull_dd_base(p), cg_int(cg, w)));
    for (int w = 0; w < warps; w++) {
        Columns columns = block_columns(p, cg_int(cg, w), NULL);
        Val H[RUN], before[RUN], its = cg_cmp(cg, LLVMIntEQ, p->f.warp, cg_int(cg, w));
        for (int i = 0; i < RUN; i++)
            H[i] = pull_load(p, update_base(p), cg_add(cg, pull_column(p, i), cg_int(cg, 16 * w)));
        run_block(p, &columns, H, &carry, before);
        for (int i = 0; i < RUN; i++)
            mine[i] = w ? cg_select(cg, its, before[i], mine[i]) : before[i];
    }
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, p->f.g, cg_int(cg, 0)));
    for (int i = 0; i < RUN; i++) {
        Val row = cg_add(cg, pull_column(p, i), cg_shl(cg, p->f.warp, 4));
        Val x = cg_fmul(cg, mine[i], factor_tail_decay(&p->f, row));
        cg_store(cg, x, pull_f32(p, pull_end_base(p), row), 4);
    }
    cg_end_if(cg, &one);
}

static void put_parts(Pull *p, Scalar *c) {
    Cg *cg = p->cg;
    Val dd = cg_get(cg, c->dd);
    for (int lane = 1; lane < 32; lane *= 2)
        dd = cg_fadd(cg, dd, nv_shuffle_xor(cg, dd, lane));
    cg_store(cg, dd, pull_f32(p, pull_dd_base(p), p->f.warp), 4);
    for (int h = 0; h < 2; h++) {
        Val unit = p->g->a_log ? c->tail[h] : p->dkt_unit[h];
        Val x = cg_fmul(cg, pull_quad_sum(p, cg_get(cg, c->end[h])), unit);
        cg_store(cg, x, pull_f32(p, update_base(p), p->f.row[h]), 4);
    }
}

void pull_store_decay(Pull *p, Val row, Val x) {
    Cg *cg = p->cg;
    Val to = cg_gep8(cg, p->grad->scratch, cg_int64(cg, p->grad->scratch_da));
    cg_store(cg, cg_fmul(cg, x, p->sigma), cg_gep8(cg, to, cg_zext64(cg, cg_shl(cg, row, 2))), 4);
}

static void store_decays(Pull *p) {
    Cg *cg = p->cg;
    If row = cg_if(cg, cg_cmp(cg, LLVMIntULT, p->f.lane, cg_int(cg, BLOCK_ROWS)));
    Val m = cg_add(cg, cg_shl(cg, p->f.warp, 4), p->f.lane);
    Var sum = cg_var(cg, cg->f32, pull_load(p, pull_end_base(p), m));
    Loop w = cg_for(cg, p->f.warp, cg_int(cg, p->s->warps), 1, false);
    Val at = cg_add(cg, m, cg_mul(cg, w.i, cg_int(cg, p->s->rows)));
    cg_set(cg, sum, cg_fadd(cg, cg_get(cg, sum), pull_load(p, pull_column_base(p), at)));
    cg_end_for(cg, &w);
    pull_store_decay(p, m, cg_get(cg, sum));
    cg_end_if(cg, &row);
}

/* the chunk ------------------------------------------------------------------------------------ */

void pull_scalar_begin(Pull *p) {
    if (p->s->a < 0)
        return;
    for (int h = 0; h < 2; h++)
        value_begin(&p->f.at[h]);
    factor_decay_table(&p->f);
    nv_barrier(p->cg);
}

static void begin(Pull *p, Scalar *c) {
    Cg *cg = p->cg;
    const System *s = p->s;
    for (int h = 0; h < 2; h++) {
        c->tail[h] = p->dkt_unit[h];
        if (s->a >= 0)
            c->tail[h] = cg_fmul(cg, c->tail[h], factor_tail_decay(&p->f, p->f.row[h]));
        c->end[h] = cg_var(cg, cg->f32, cg_float(cg, 0));
        for (int f = 0; f < s->families; f++) {
            c->carried[f][h] = p->dw_unit[f][h];
            if (s->a >= 0)
                c->carried[f][h] =
                    cg_fmul(cg, c->carried[f][h], factor_carried_decay(&p->f, family(p, f), h));
            c->start[f][h] = cg_var(cg, cg->f32, cg_float(cg, 0));
        }
    }
    c->dd = cg_var(cg, cg->f32, cg_float(cg, 0));
    for (int f = 0; f < s->families && p->decays; f++)
        for (int d = 0; d < s->warps; d++)
            for (int i = 0; i < 8; i++)
                c->score[f][d][i / 4][i % 4] = cg_var(cg, cg->f32, cg_float(cg, 0));
}

void pull_scalar_chunk(Pull *p) {
    Cg *cg = p->cg;
    Scalar *c = NEW(cg->arena, Scalar);
    begin(p, c);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, p->s->kp / SLAB), 1, false);
    c->slab = slab.i;
    pull_slab(p, c);
    cg_end_for(cg, &slab);
    if (!p->decays)
        return;
    put_parts(p, c);
    if (p->g->a_log) {
        pull_log_decays(p, c);
        return;
    }
    rows_decays(p, c);
    nv_barrier(cg);
    end_decays(p);
    nv_barrier(cg);
    store_decays(p);
}
