/* What gradients keep of a walk: states and rows of V columns, into the record of the present
 * chunk.
 *
 * They lie there as f16 matrices placed by nv_place, so a lane's share must become whole 16-byte
 * units: operand of a state     a register is (V column g + 8h, k = 8n + 2t, +1): a unit is a
 * lane's of four n, by the order of channels that gradient.h gives S operand of rows        (V
 * column g + 8h, row 8n + 2t, +1): turned as an 8x8 tile it is (row 8n + g, V column 8h + 2t, +1),
 * and a unit again the four of a quad Four registers of a quad's four lanes then change places, and
 * a lane holds one unit of four; of a state it has them already. Nothing waits for the stores, and
 * nothing branches where every warp has columns.
 */
#include "codegen/nvptx/chain.h"

/* A lane's place: a forward pass, which makes outs as well, has no registers for all that is computed from it
 * once and for all chunks. */
static Val here(Chain *c, Val x) {
    return c->gradient ? x : chain_keep(c, x);
}

/* A lane's registers in[0..3] become register number t of its quad's lanes 0..3. */
static void turn_quad(Chain *c, const Val in[4], Val out[4]) {
    Cg *cg = c->cg;
    Val zero = cg_int(cg, 0), odd = cg_cmp(cg, LLVMIntNE, cg_and(cg, c->t, cg_int(cg, 1)), zero);
    Val high = cg_cmp(cg, LLVMIntNE, cg_and(cg, c->t, cg_int(cg, 2)), zero), pair[4];
    for (int i = 0; i < 4; i += 2) { /* registers i + t%2 of lanes t & 2, t | 1 */
        Val other = nv_shuffle_xor(cg, cg_select(cg, odd, in[i], in[i + 1]), 1);
        pair[i] = cg_select(cg, odd, other, in[i]);
        pair[i + 1] = cg_select(cg, odd, in[i + 1], other);
    }
    for (int i = 0; i < 2; i++) {
        Val other = nv_shuffle_xor(cg, cg_select(cg, high, pair[i], pair[2 + i]), 2);
        out[i] = cg_select(cg, high, other, pair[i]);
        out[2 + i] = cg_select(cg, high, pair[2 + i], other);
    }
}

/* Registers of V columns that do not exist become zeros. */
static Val column_or_zero(Chain *c, Val x, int h) {
    if (!c->v_live[h] || c->s->V == c->s->vp)
        return x;
    return cg_select(c->cg, c->v_live[h], x, cg_int(c->cg, 0));
}

/* i1 that this warp has columns of the record; NULL: all have. */
static Val warp_live(Chain *c) {
    Cg *cg = c->cg;
    if (c->s->vp % c->v_tile == 0)
        return NULL;
    Val first = cg_add(cg, c->v_first, cg_shl(cg, c->warp, 4));
    return cg_cmp(cg, LLVMIntSLT, first, cg_int(cg, c->s->vp));
}

/* Four words, or one. Four leave the L2 cache before all else: the grad kernel reads them when the walk
 * has ended, long after as much as the cache holds was written, while the factors still in there, of chunks yet
 * to come, are about to be read. */
static void store(Chain *c, const Val *word, int words, Val p) {
    Cg *cg = c->cg;
    Val arg[5];
    if (words == 1) {
        cg_store(cg, word[0], p, 4);
        return;
    }
    memcpy(arg, word, 4 * sizeof *arg);
    arg[4] = LLVMBuildPtrToInt(cg->b, p, cg->i64, "");
    cg_asm(cg, cg->voidt, "st.global.cs.v4.b32 [$4], {$0, $1, $2, $3};", "r,r,r,r,l,~{memory}", true, arg, 5);
}

static void save(Chain *c, const Val *word, int words, int64_t offset, Val byte) {
    Cg *cg = c->cg;
    Val live = warp_live(c);
    If there = {0};
    if (live)
        there = cg_if(cg, live);
    Val base = cg_gep8(cg, c->record, cg_int64(cg, offset));
    store(c, word, words, cg_gep8(cg, base, cg_zext64(cg, byte)));
    if (live)
        cg_end_if(cg, &there);
}

/* Unit `unit` of row `row` of a matrix with `rows` rows. */
static void save_unit(Chain *c, const Val word[4], int64_t offset, int rows, int columns, Val row,
                      Val unit) {
    Cg *cg = c->cg;
    save(c, word, 4, offset, cg_shl(cg, nv_place(cg, rows, columns, row, unit), 4));
}

/* Lanes t and t + 2 of a quad store the same. */
static void save_units(Chain *c, int64_t units, const Val scale[2]) {
    Cg *cg = c->cg;
    Val h = cg_and(cg, here(c, c->t), cg_int(cg, 1)), one = cg_float(cg, 1), x[2];
    for (int i = 0; i < 2; i++)
        x[i] = c->v_live[i] ? cg_select(cg, c->v_live[i], scale[i], one) : scale[i];
    Val second = cg_cmp(cg, LLVMIntNE, h, cg_int(cg, 0));
    Val v = cg_add(cg, cg_add(cg, c->v_first, cg_shl(cg, c->warp, 4)),
                   cg_add(cg, here(c, c->g), cg_shl(cg, h, 3)));
    Val unit = cg_select(cg, second, x[1], x[0]);
    save(c, &unit, 1, units, cg_shl(cg, v, 2));
}

void chain_save_state(Chain *c, int64_t offset, int64_t units, const Val scale[2]) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val v = cg_add(cg, cg_add(cg, c->v_first, cg_shl(cg, c->warp, 4)), here(c, c->g));
    Val t = here(c, c->t);
    for (int n = 0; n < s->kp / 8; n += 4)
        for (int h = 0; h < 2; h++) {
            Val word[4];
            for (int j = 0; j < 4; j++)
                word[j] = column_or_zero(c, c->state_operand[2 * (n + j) + h], h);
            save_unit(c, word, offset, s->vp, s->kp, cg_add(cg, v, cg_int(cg, 8 * h)),
                      cg_add(cg, t, cg_int(cg, n)));
        }
    save_units(c, units, scale);
}

void chain_save_rows(Chain *c, const Val *x, int64_t offset, int64_t units) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val operand[MAX_FRAGMENT / 2], scale[2];
    chain_operand(c, x, chain_fragment(c), operand, scale);
    Val warp_unit = cg_add(cg, cg_shr(cg, c->v_first, 3), cg_shl(cg, c->warp, 1));
    Val t = here(c, c->t), unit = cg_add(cg, warp_unit, cg_and(cg, t, cg_int(cg, 1)));
    Val row = cg_add(cg, here(c, c->g), cg_shl(cg, cg_shr(cg, t, 1), 3));
    for (int n = 0; n < s->rows / 8; n += 2) {
        Val in[4], word[4];
        for (int j = 0; j < 4; j++)
            in[j] = nv_movmatrix(cg, column_or_zero(c, operand[2 * n + j], j % 2));
        turn_quad(c, in, word);
        save_unit(c, word, offset, s->rows, s->vp, cg_add(cg, row, cg_int(cg, 8 * n)), unit);
    }
    save_units(c, units, scale);
}
