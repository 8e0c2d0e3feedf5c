/* States in the midst of a sequence: what a segment of a gradient leaves to the next one, and what a forward
 * pass saves for that. Exactly as the registers hold them, so that whoever goes on computes the same bits
 * as without the border: the warpgroups' schedule keeps S / unit, and what its unit is depends on all
 * chunks before. So the units lie behind the states, 1 from the other schedule: a forward pass may have
 * one and its gradient the other.
 *
 *     f32 [H][K][V] state, [H][V] its units
 */
#include "codegen/nvptx/chain.h"

static int64_t state_bytes(const Cg *cg)
{
    return (int64_t)cg->k->axis.at[AXIS_K].size * cg->k->axis.at[AXIS_V].size * 4;
}

/* Bytes from a head's state to its element k, v. */
static Val element(Cg *cg, Val k, Val v)
{
    int V = cg->k->axis.at[AXIS_V].size;
    return cg_zext64(cg, cg_shl(cg, cg_add(cg, cg_mul(cg, k, cg_int(cg, V)), v), 2));
}

static Val state_of_head(Chain *c, Val all)
{
    Cg *cg = c->cg;
    return cg_gep8(cg, all, cg_mul(cg, cg_zext64(cg, c->head), cg_int64(cg, state_bytes(cg))));
}

/* The unit of this lane's V column h. */
static Val unit_of_column(Chain *c, Val all, int h)
{
    Cg *cg = c->cg;
    Val row = cg_mul(cg, cg_zext64(cg, c->head), cg_int64(cg, c->s->V));
    Val at = cg_shl(cg, cg_add(cg, row, cg_zext64(cg, c->v[h])), 2);
    Val states = cg_mul(cg, cg_zext64(cg, c->heads), cg_int64(cg, state_bytes(cg)));
    return cg_gep8(cg, all, cg_add(cg, states, at));
}

static void load_element(Chain *c, Val p, int n, int j)
{
    cg_set(c->cg, c->state[n][j], cg_load(c->cg, c->cg->f32, p, 4));
}

static void times_unit(Chain *c, int h, Val unit)
{
    Cg *cg = c->cg;
    for (int n = 0; n < c->s->kp / 8; n++)
        for (int j = 2 * h; j < 2 * h + 2; j++)
            cg_set(cg, c->state[n][j], cg_fmul(cg, cg_get(cg, c->state[n][j]), unit));
}

static void store_element(Chain *c, Val p, int n, int j)
{
    cg_store(c->cg, cg_get(c->cg, c->state[n][j]), p, 4);
}

static If if_column(Chain *c, int h, Val also)
{
    Cg *cg = c->cg;
    Val live = c->v_live[h] ? c->v_live[h] : cg_cmp(cg, LLVMIntSGE, c->v[h], cg_int(cg, 0));
    return cg_if(cg, also ? cg_and(cg, live, also) : live);
}

void chain_take_over(Chain *c, Val all)
{
    Cg *cg = c->cg;
    chain_each_element(c, state_of_head(c, all), element, load_element);
    for (int h = 0; h < 2; h++) {
        If there = if_column(c, h, NULL);
        Val unit = cg_load(cg, cg->f32, unit_of_column(c, all, h), 4);
        if (c->wgmma)
            cg_set(cg, c->unit[h], unit);
        else
            times_unit(c, h, unit);
        cg_end_if(cg, &there);
    }
}

void chain_pass_on(Chain *c, Val all)
{
    Cg *cg = c->cg;
    chain_each_element(c, state_of_head(c, all), element, store_element);
    Val first = cg_cmp(cg, LLVMIntEQ, c->t, cg_int(cg, 0)); /* of the lanes that hold the column */
    for (int h = 0; h < 2; h++) {
        If there = if_column(c, h, first);
        cg_store(cg, c->wgmma ? cg_get(cg, c->unit[h]) : cg_float(cg, 1), unit_of_column(c, all, h), 4);
        cg_end_if(cg, &there);
    }
}

void chain_save_start(Chain *c, Val number)
{
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0), every = cg_int64(cg, cg->opt->save_every);
    Val saved = cg_frame_field(cg, FRAME_SAVED), slot = cg_add(cg, c->seq.slot, number);
    Val due = cg_cmp(cg, LLVMIntEQ, cg_urem(cg, slot, every), zero);
    due = cg_and(cg, due, cg_cmp(cg, LLVMIntSGT, number, zero));
    If there = cg_if(cg, cg_and(cg, due, cg_cmp(cg, LLVMIntNE, saved, zero)));
    Val bytes = cg_int64(cg, state_bytes(cg) + 4 * (int64_t)c->s->V);
    Val which = cg_sub(cg, cg_udiv(cg, slot, every), cg_int64(cg, 1));
    Val at = cg_mul(cg, which, cg_mul(cg, cg_zext64(cg, c->heads), bytes));
    chain_pass_on(c, cg_gep8(cg, nv_global(cg, FRAME_SAVED), at));
    cg_end_if(cg, &there);
}
