/* The factor kernel's score phases when all channels decay alike, or not at all.
 *
 * Then Lam(l,u) is a number: scores are one product of unscaled rows and keys, times Lam, which is
 * again only products of decays <= 1: within a 16-row block a table of running products, between
 * blocks (from the block's start to the row) (whole blocks between) (after the update to its end).
 *
 * Shared memory at sh_row, f32:
 *   table [rows][ROW_TABLE]  column 0: decays of the block's rows before this row;
 *                            column 1+u: decays between the block's update u and this row
 *   own [rows], after [rows] a row's decay; decays after it in its block
 *   total [warps]            a block's decay
 */
#include "codegen/nvptx/factor.h"

static int own_base(const Factor *f) { return f->sh_row + f->s->rows * ROW_TABLE * 4; }
static int after_base(const Factor *f) { return own_base(f) + f->s->rows * 4; }
static int total_base(const Factor *f) { return after_base(f) + f->s->rows * 4; }

static Val load_f32(Factor *f, int base, Val index) {
    return cg_load(f->cg, f->cg->f32, factor_shared_f32(f, base, index), 4);
}

static Val table_at(Factor *f, Val row, Val column) {
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, ROW_TABLE)), column);
    return factor_shared_f32(f, f->sh_row, index);
}

/* The decays of the warp's block. */
static void own_decays(Factor *f, Val base, Val decay[BLOCK_ROWS]) {
    Cg *cg = f->cg;
    for (int l = 0; l < BLOCK_ROWS; l += 4) {
        Val at = factor_shared_f32(f, own_base(f), cg_add(cg, base, cg_int(cg, l)));
        Val four = cg_load(cg, LLVMVectorType(cg->f32, 4), at, 16);
        for (int i = 0; i < 4; i++)
            decay[l + i] = cg_extract(cg, four, i);
    }
}

/* Lane 0 walks from the block's start, lane 1+u from after update u. All decays are loaded before the first
 * product is stored: a load waits for no store then, and the walk for no load. */
void factor_decay_table(Factor *f) {
    Cg *cg = f->cg;
    for (int h = 0; h < 2; h++)
        cg_store(cg, factor_row_scalar(f, f->s->a, h, 1),
                 factor_shared_f32(f, own_base(f), f->row[h]), 4);
    nv_warp_sync(cg);
    Val base = cg_shl(cg, f->warp, 4), product = cg_float(cg, 1), decay[BLOCK_ROWS];
    If walker = cg_if(cg, cg_cmp(cg, LLVMIntSLE, f->lane, cg_int(cg, BLOCK_ROWS)));
    own_decays(f, base, decay);
    for (int l = 0; l < BLOCK_ROWS; l++) {
        Val row = cg_add(cg, base, cg_int(cg, l));
        Val passed = cg_cmp(cg, LLVMIntSGT, cg_int(cg, l + 1), f->lane);
        cg_store(cg, product, table_at(f, row, f->lane), 4);
        product = cg_select(cg, passed, cg_fmul(cg, product, decay[l]), product);
    }
    Val block = factor_shared_f32(f, total_base(f), f->warp);
    Val update = cg_add(cg, base, cg_sub(cg, f->lane, cg_int(cg, 1)));
    Val after = factor_shared_f32(f, after_base(f), update);
    Val is_first = cg_cmp(cg, LLVMIntEQ, f->lane, cg_int(cg, 0));
    cg_store(cg, product, cg_select(cg, is_first, block, after), 4);
    cg_end_if(cg, &walker);
}

/* What is left of x after rounding to `high`, rounded. */
static void pack_low(Factor *f, const Val x[8], const Val high[4], Val low[4]) {
    Cg *cg = f->cg;
    for (int j = 0; j < 4; j++) {
        Val back[2];
        nv_unpack(cg, f->s->operand, high[j], back);
        low[j] = nv_pack(cg, f->s->operand, cg_fsub(cg, x[2 * j], back[0]),
                         cg_fsub(cg, x[2 * j + 1], back[1]));
    }
}

/* Whether a family's rows are the keys: then nothing else is kept of them. */
static bool is_keys(const Factor *f, int family) {
    return family == 0 && f->s->key_multiple >= 0;
}

/* Keys and left rows as they are go to shared memory. */
static void rows_slab(Factor *f, Val slab) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    factor_enter_slab(f, slab);
    Val p[2][8], x[8], key[2][4], left[2][4], low[2][4];
    for (int h = 0; h < 2; h++) {
        factor_keys(f, h, p[h]);
        factor_pack(cg, s->operand, key[h], p[h]);
        factor_store_unit(cg, factor_key_unit(f, f->sh_p, f->row[h], unit), key[h]);
        if (!s->split)
            continue;
        pack_low(f, p[h], key[h], left[h]);
        factor_store_unit(cg, factor_key_unit(f, f->sh_low_p, f->row[h], unit), left[h]);
    }
    for (int i = is_keys(f, 0); i < s->families; i++) {
        for (int h = 0; h < 2; h++) {
            factor_family_row(f, i, h, x);
            factor_pack(cg, s->operand, left[h], x);
            if (s->split && i == 0)
                pack_low(f, x, left[h], low[h]);
        }
        factor_store_left(f, f->sh_left, i, slab, left);
        if (s->split && i == 0)
            factor_store_left(f, f->sh_low_left, 0, slab, low);
    }
}

void factor_scalar_rows_pass(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    int slabs = s->kp / SLAB;
    value_begin(&f->at[0]);
    value_begin(&f->at[1]);
    for (int h = 0; s->key_multiple >= 0 && h < 2; h++)
        f->multiple[h] = factor_row_scalar(f, s->key_multiple, h, 0);
    if (s->a >= 0)
        factor_decay_table(f);
    for (int i = 0; i < slabs && f->nheld > 0; i++)
        rows_slab(f, cg_int(cg, i));
    if (f->nheld > 0)
        return;
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, slabs), 1, false);
    rows_slab(f, slab.i);
    cg_end_for(cg, &slab);
}

/* Decay from the chunk's start up to where row half h of family i reads. */
Val factor_carried_decay(Factor *f, const Family *fam, int h) {
    Cg *cg = f->cg;
    Val x = cg_load(cg, cg->f32, table_at(f, f->row[h], cg_int(cg, 0)), 4);
    for (int b = 0; b + 1 < f->s->warps; b++) {
        Val before = cg_cmp(cg, LLVMIntSGT, f->warp, cg_int(cg, b));
        Val total = load_f32(f, total_base(f), cg_int(cg, b));
        x = cg_fmul(cg, x, cg_select(cg, before, total, cg_float(cg, 1)));
    }
    return fam->inclusive ? cg_fmul(cg, x, load_f32(f, own_base(f), f->row[h])) : x;
}

static void store_scaled(Factor *f, Val p, Val pair[4], Val scale) {
    Cg *cg = f->cg;
    Val both = scale ? nv_pack(cg, f->s->operand, scale, scale) : NULL;
    for (int j = 0; both && j < 4; j++)
        pair[j] = nv_mul_pair(cg, f->s->operand, pair[j], both);
    factor_store_unit(cg, p, pair);
}

static void blocks_slab(Factor *f, Val slab, Val (*scale)[2]) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val left[MAX_FAMILIES][2][4], low[2][4], low_key[2][4];
    for (int i = is_keys(f, 0); i < s->families; i++)
        factor_load_left(f, f->sh_left, i, slab, left[i]);
    if (s->split)
        factor_load_left(f, f->sh_low_left, 0, slab, low);
    for (int distance = 0; distance < s->warps; distance++) {
        Val exists = cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)), key[2][4];
        Val block = cg_sub(cg, f->warp, cg_int(cg, distance));
        block = cg_select(cg, exists, block, cg_int(cg, 0)); /* factor_scores.c says why */
        factor_load_keys(f, f->sh_p, block, slab, key);
        if (distance == 0 && is_keys(f, 0))
            memcpy(left[0], key, sizeof key); /* the lane's own rows, which it has as columns too */
        factor_multiply(f, f->block[distance], left, key);
        if (!s->split)
            continue;
        factor_load_keys(f, f->sh_low_p, block, slab, low_key);
        factor_multiply_family(f, f->block[distance][0], low, key);
        factor_multiply_family(f, f->block[distance][0], left[0], low_key);
    }
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++) {
            Val p = factor_ws_unit(f, s->family[i].ws_w, s->kp, f->stored_row[i][h], unit);
            store_scaled(f, p, left[i][h], scale[i][h]);
        }
}

static Val own_factor(Factor *f, const Family *fam, int h, Val lam) {
    return fam->inclusive ? cg_fmul(f->cg, lam, load_f32(f, own_base(f), f->row[h])) : lam;
}

/* Score of row half h with `column` of the warp's own block: x times Lam, 0 where not seen. */
Val factor_own_score(Factor *f, const Family *fam, int h, Val column, Val x) {
    Cg *cg = f->cg;
    Val row = cg_add(cg, cg_shl(cg, f->g, 1), cg_int(cg, h)), undecayed = x;
    if (f->s->a >= 0) {
        Val p = table_at(f, f->row[h], cg_add(cg, column, cg_int(cg, 1)));
        x = cg_fmul(cg, x, own_factor(f, fam, h, cg_load(cg, cg->f32, p, 4)));
    }
    if (fam->inclusive)
        x = cg_select(cg, cg_cmp(cg, LLVMIntEQ, row, column), undecayed, x);
    Val seen = cg_cmp(cg, fam->inclusive ? LLVMIntUGE : LLVMIntUGT, row, column);
    return cg_select(cg, seen, x, cg_float(cg, 0));
}

/* Column of accumulator [n][2h + c] in its block. */
static Val block_column(Factor *f, int n, int c) {
    return cg_add(f->cg, cg_shl(f->cg, f->t, 2), cg_int(f->cg, 2 * c + n));
}

/* Scores with the block `distance` before the warp's own, in place. */
void factor_decay_block(Factor *f, const Family *fam, int distance, Var (*acc)[4]) {
    Cg *cg = f->cg;
    Val block = cg_sub(cg, f->warp, cg_int(cg, distance)), row[2], between = cg_float(cg, 1);
    for (int m = 1; m < distance; m++)
        between = cg_fmul(cg, between,
                          load_f32(f, total_base(f), cg_sub(cg, f->warp, cg_int(cg, m))));
    for (int h = 0; h < 2; h++) {
        row[h] = cg_load(cg, cg->f32, table_at(f, f->row[h], cg_int(cg, 0)), 4);
        row[h] = cg_fmul(cg, own_factor(f, fam, h, row[h]), between);
    }
    for (int n = 0; n < 2; n++)
        for (int c = 0; c < 2; c++) {
            Val column = cg_add(cg, cg_shl(cg, block, 4), block_column(f, n, c));
            Val after = load_f32(f, after_base(f), column);
            for (int h = 0; h < 2; h++) {
                Val x = cg_fmul(cg, cg_get(cg, acc[n][2 * h + c]), cg_fmul(cg, row[h], after));
                cg_set(cg, acc[n][2 * h + c], x);
            }
        }
}

/* Products of rows and keys -> scores. */
static void finish_blocks(Factor *f, int i) {
    Cg *cg = f->cg;
    const System *s = f->s;
    const Family *fam = &s->family[i];
    for (int n = 0; n < 2; n++)
        for (int h = 0; h < 2; h++)
            for (int c = 0; c < 2; c++) {
                Var v = f->block[0][i][n][2 * h + c];
                cg_set(cg, v, factor_own_score(f, fam, h, block_column(f, n, c), cg_get(cg, v)));
            }
    for (int distance = 1; distance < s->warps && s->a >= 0; distance++) {
        If below = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)));
        factor_decay_block(f, fam, distance, f->block[distance][i]);
        cg_end_if(cg, &below);
    }
}

void factor_scalar_blocks(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val scale[MAX_FAMILIES][2];
    factor_begin_blocks(f, 0);
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++) {
            Val multiple = is_keys(f, i) ? f->multiple[h] : NULL;
            scale[i][h] = s->a >= 0 ? factor_carried_decay(f, &s->family[i], h) : NULL;
            if (multiple)
                scale[i][h] = scale[i][h] ? cg_fmul(cg, scale[i][h], multiple) : multiple;
        }
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    blocks_slab(f, slab.i, scale);
    cg_end_for(cg, &slab);
    for (int i = 0; i < s->families; i++)
        finish_blocks(f, i);
}

Val factor_own_decay(Factor *f, Val row) {
    return load_f32(f, own_base(f), row);
}

Val factor_tail_decay(Factor *f, Val row) {
    Cg *cg = f->cg;
    Val x = load_f32(f, after_base(f), row);
    for (int b = 1; b < f->s->warps; b++) {
        Val total = load_f32(f, total_base(f), cg_int(cg, b));
        Val after = cg_cmp(cg, LLVMIntSLT, f->warp, cg_int(cg, b));
        x = cg_fmul(cg, x, cg_select(cg, after, total, cg_float(cg, 1)));
    }
    return x;
}

Val factor_chunk_decay(Factor *f) {
    Cg *cg = f->cg;
    Val x = load_f32(f, total_base(f), cg_int(cg, 0));
    for (int b = 1; b < f->s->warps; b++)
        x = cg_fmul(cg, x, load_f32(f, total_base(f), cg_int(cg, b)));
    return x;
}

enum { MAX_TOGETHER = 4 };

/* A divisor of their number. */
static int slabs_together(int slabs) {
    int n = slabs < MAX_TOGETHER ? slabs : MAX_TOGETHER;
    while (slabs % n != 0)
        n--;
    return n;
}

/* The lane's keys in `count` slabs from `first` on: all are loaded before one is stored, as no load may pass a
 * store. */
static void scale_keys(Factor *f, Val first, int count, const Val scale[2]) {
    Cg *cg = f->cg;
    Val pair[MAX_TOGETHER][2][4], place[MAX_TOGETHER][2];
    for (int i = 0; i < count; i++)
        for (int h = 0; h < 2; h++) {
            Val unit = cg_add(cg, cg_shl(cg, cg_add(cg, first, cg_int(cg, i)), 2), f->t);
            place[i][h] = factor_key_unit(f, f->sh_p, f->row[h], unit);
            factor_load_unit(cg, place[i][h], pair[i][h]);
        }
    for (int i = 0; i < count; i++)
        for (int h = 0; h < 2; h++)
            store_scaled(f, place[i][h], pair[i][h], scale[h]);
}

void factor_scalar_tail(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    if (s->a < 0)
        return;
    Val all = factor_chunk_decay(f), scale[2];
    for (int h = 0; h < 2; h++)
        scale[h] = factor_tail_decay(f, f->row[h]);
    int together = slabs_together(s->kp / SLAB);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), together, false);
    scale_keys(f, slab.i, together, scale);
    cg_end_for(cg, &slab);
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, nv_tid(cg), cg_int(cg, 0)));
    cg_store(cg, all, cg_gep8(cg, f->record, cg_int(cg, (int)s->ws_d)), 4);
    cg_end_if(cg, &one);
}
