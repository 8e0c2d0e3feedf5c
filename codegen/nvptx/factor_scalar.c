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

static Val load_f32(Factor *f, int base, Val index)
{
    return cg_load(f->cg, f->cg->f32, factor_shared_f32(f, base, index), 4);
}

static Val table_at(Factor *f, Val row, Val column)
{
    Cg *cg = f->cg;
    Val index = cg_add(cg, cg_mul(cg, row, cg_int(cg, ROW_TABLE)), column);
    return factor_shared_f32(f, f->sh_row, index);
}

/* Lane 0 walks from the block's start, lane 1+u from after update u. */
static void build_table(Factor *f)
{
    Cg *cg = f->cg;
    for (int h = 0; h < 2; h++)
        cg_store(cg, factor_row_scalar(f, f->s->a, h, 1),
                 factor_shared_f32(f, own_base(f), f->row[h]), 4);
    nv_warp_sync(cg);
    Val base = cg_shl(cg, f->warp, 4), product = cg_float(cg, 1);
    If walker = cg_if(cg, cg_cmp(cg, LLVMIntSLE, f->lane, cg_int(cg, 16)));
    for (int l = 0; l < 16; l++) {
        Val row = cg_add(cg, base, cg_int(cg, l));
        Val passed = cg_cmp(cg, LLVMIntSGT, cg_int(cg, l + 1), f->lane);
        cg_store(cg, product, table_at(f, row, f->lane), 4);
        Val next = cg_fmul(cg, product, load_f32(f, own_base(f), row));
        product = cg_select(cg, passed, next, product);
    }
    Val block = factor_shared_f32(f, total_base(f), f->warp);
    Val update = cg_add(cg, base, cg_sub(cg, f->lane, cg_int(cg, 1)));
    Val after = factor_shared_f32(f, after_base(f), update);
    Val is_first = cg_cmp(cg, LLVMIntEQ, f->lane, cg_int(cg, 0));
    cg_store(cg, product, cg_select(cg, is_first, block, after), 4);
    cg_end_if(cg, &walker);
}

/* Keys and left rows as they are go to shared memory. */
void factor_scalar_rows_pass(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    if (s->a >= 0)
        build_table(f);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    Val unit = cg_add(cg, cg_shl(cg, slab.i, 2), f->t);
    for (int h = 0; h < 2; h++) {
        f->at[h].base_k = cg_shl(cg, unit, 3);
        value_begin(&f->at[h]);
    }
    for (int h = 0; h < 2; h++) {
        Val x[8], packed[4];
        factor_row(f, s->p, -1, h, 0, x);
        factor_pack(cg, s->operand, packed, x);
        factor_store_unit(cg, factor_key_unit(f, f->row[h], unit), packed);
        for (int i = 0; i < s->families; i++) {
            factor_row(f, s->family[i].x, s->family[i].position, h, 0, x);
            factor_pack(cg, s->operand, packed, x);
            factor_store_unit(cg, factor_stash_unit(f, i, h, slab.i), packed);
        }
    }
    cg_end_for(cg, &slab);
}

/* Decay from the chunk's start up to where row half h of family i reads. */
static Val carried_decay(Factor *f, const Family *fam, int h)
{
    Cg *cg = f->cg;
    Val x = cg_load(cg, cg->f32, table_at(f, f->row[h], cg_int(cg, 0)), 4);
    for (int b = 0; b + 1 < f->s->warps; b++) {
        Val before = cg_cmp(cg, LLVMIntSGT, f->warp, cg_int(cg, b));
        Val total = load_f32(f, total_base(f), cg_int(cg, b));
        x = cg_fmul(cg, x, cg_select(cg, before, total, cg_float(cg, 1)));
    }
    return fam->inclusive ? cg_fmul(cg, x, load_f32(f, own_base(f), f->row[h])) : x;
}

static void store_scaled(Factor *f, Val p, Val pair[4], Val scale)
{
    Cg *cg = f->cg;
    for (int j = 0; scale && j < 4; j++) {
        Val x[2];
        nv_unpack(cg, f->s->operand, pair[j], x);
        pair[j] = nv_pack(cg, f->s->operand, cg_fmul(cg, x[0], scale), cg_fmul(cg, x[1], scale));
    }
    factor_store_unit(cg, p, pair);
}

typedef struct Blocks { Var acc[MAX_WARPS][MAX_FAMILIES][2][4]; } Blocks; /* by distance */

static void blocks_slab(Factor *f, Blocks *b, Val slab, Val (*scale)[2])
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Val left[MAX_FAMILIES][2][4];
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++)
            factor_load_unit(cg, factor_stash_unit(f, i, h, slab), left[i][h]);
    for (int distance = 0; distance < s->warps; distance++) {
        If below = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)));
        Val key[2][4];
        factor_load_keys(f, cg_sub(cg, f->warp, cg_int(cg, distance)), slab, key);
        factor_multiply(f, b->acc[distance], left, key);
        cg_end_if(cg, &below);
    }
    Val unit = cg_add(cg, cg_shl(cg, slab, 2), f->t);
    for (int i = 0; i < s->families; i++)
        for (int h = 0; h < 2; h++) {
            Val p = factor_ws_unit(f, s->family[i].ws_w, s->kp, f->stored_row[i][h], unit);
            store_scaled(f, p, left[i][h], scale[i][h]);
        }
}

/* Lam between row half h and column 8n + 2t + c of the warp's own block; 0 where not seen. */
static Val own_block_decay(Factor *f, const Family *fam, int h, int n, int c)
{
    Cg *cg = f->cg;
    Val column = cg_add(cg, cg_shl(cg, f->t, 1), cg_int(cg, 8 * n + c));
    Val row = cg_add(cg, f->g, cg_int(cg, 8 * h)), one = cg_float(cg, 1), lam = one;
    if (f->s->a >= 0) {
        lam = cg_load(cg, cg->f32, table_at(f, f->row[h], cg_add(cg, column, cg_int(cg, 1))), 4);
        if (fam->inclusive)
            lam = cg_fmul(cg, lam, load_f32(f, own_base(f), f->row[h]));
    }
    if (fam->inclusive)
        lam = cg_select(cg, cg_cmp(cg, LLVMIntEQ, row, column), one, lam);
    Val seen = cg_cmp(cg, fam->inclusive ? LLVMIntUGE : LLVMIntUGT, row, column);
    return cg_select(cg, seen, lam, cg_float(cg, 0));
}

/* Products of rows and keys -> scores: diag and off of Factor. */
static void finish_blocks(Factor *f, Blocks *b, int i)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    const Family *fam = &s->family[i];
    static const int at[6][3] = {{0, 0, 0}, {0, 0, 1}, {1, 1, 0}, {1, 1, 1}, {1, 0, 0}, {1, 0, 1}};
    for (int j = 0; j < 6; j++) { /* h, n, c */
        Val x = cg_get(cg, b->acc[0][i][at[j][1]][2 * at[j][0] + at[j][2]]);
        Val lam = own_block_decay(f, fam, at[j][0], at[j][1], at[j][2]);
        Val unseen = cg_cmp(cg, LLVMIntEQ, LLVMBuildBitCast(cg->b, lam, cg->i32, ""), cg_int(cg, 0));
        x = cg_select(cg, unseen, cg_float(cg, 0), cg_fmul(cg, x, lam));
        f->diag[i][j] = cg_var(cg, cg->f32, x);
    }
    Val row[2];
    for (int h = 0; s->a >= 0 && h < 2; h++) {
        row[h] = cg_load(cg, cg->f32, table_at(f, f->row[h], cg_int(cg, 0)), 4);
        if (fam->inclusive)
            row[h] = cg_fmul(cg, row[h], load_f32(f, own_base(f), f->row[h]));
    }
    for (int distance = 1; distance < s->warps; distance++) {
        If below = cg_if(cg, cg_cmp(cg, LLVMIntUGE, f->warp, cg_int(cg, distance)));
        Val block = cg_sub(cg, f->warp, cg_int(cg, distance));
        Val between = cg_float(cg, 1);
        for (int m = 1; s->a >= 0 && m < distance; m++)
            between = cg_fmul(cg, between,
                              load_f32(f, total_base(f), cg_sub(cg, f->warp, cg_int(cg, m))));
        for (int n = 0; n < 2; n++)
            for (int j = 0; j < 4; j++) {
                Val x = cg_get(cg, b->acc[distance][i][n][j]);
                if (s->a >= 0) {
                    Val column = cg_add(cg, cg_shl(cg, block, 4), cg_shl(cg, f->t, 1));
                    column = cg_add(cg, column, cg_int(cg, 8 * n + j % 2));
                    Val lam = cg_fmul(cg, row[j / 2], load_f32(f, after_base(f), column));
                    x = cg_fmul(cg, x, cg_fmul(cg, lam, between));
                }
                cg_set(cg, f->off[distance - 1][i][n][j], x);
            }
        cg_end_if(cg, &below);
    }
}

void factor_scalar_blocks(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    Blocks b;
    Val scale[MAX_FAMILIES][2], zero = cg_float(cg, 0);
    for (int i = 0; i < s->families; i++) {
        for (int d = 0; d < s->warps; d++)
            for (int n = 0; n < 2; n++)
                for (int j = 0; j < 4; j++) {
                    b.acc[d][i][n][j] = cg_var(cg, cg->f32, zero);
                    if (d > 0)
                        f->off[d - 1][i][n][j] = cg_var(cg, cg->f32, zero);
                }
        for (int h = 0; h < 2; h++)
            scale[i][h] = s->a >= 0 ? carried_decay(f, &s->family[i], h) : NULL;
    }
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    blocks_slab(f, &b, slab.i, scale);
    cg_end_for(cg, &slab);
    for (int i = 0; i < s->families; i++)
        finish_blocks(f, &b, i);
}

void factor_scalar_tail(Factor *f)
{
    Cg *cg = f->cg;
    const System *s = f->s;
    if (s->a < 0)
        return;
    Val later = cg_float(cg, 1), all = load_f32(f, total_base(f), cg_int(cg, 0));
    for (int b = 1; b < s->warps; b++) {
        Val total = load_f32(f, total_base(f), cg_int(cg, b));
        Val after = cg_cmp(cg, LLVMIntSLT, f->warp, cg_int(cg, b));
        later = cg_fmul(cg, later, cg_select(cg, after, total, cg_float(cg, 1)));
        all = cg_fmul(cg, all, total);
    }
    Val scale[2];
    for (int h = 0; h < 2; h++)
        scale[h] = cg_fmul(cg, later, load_f32(f, after_base(f), f->row[h]));
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp / SLAB), 1, false);
    for (int h = 0; h < 2; h++) {
        Val pair[4], p = factor_key_unit(f, f->row[h], cg_add(cg, cg_shl(cg, slab.i, 2), f->t));
        factor_load_unit(cg, p, pair);
        store_scaled(f, p, pair, scale[h]);
    }
    cg_end_for(cg, &slab);
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, nv_tid(cg), cg_int(cg, 0)));
    cg_store(cg, all, cg_gep8(cg, f->record, cg_int(cg, (int)s->ws_d)), 4);
    cg_end_if(cg, &one);
}
