/* States in the midst of a sequence: what a segment leaves to the next one, and what a forward pass saves for
 * a gradient's, also for intervals of a segment that are walked side by side. Exactly as the registers hold
 * them, so that whoever goes on computes the same bits as without the border: the warpgroups' schedule keeps
 * S / unit, and what its unit is depends on all chunks before. So the units lie behind the states, 1 from the
 * other schedule: a forward pass may have one and its gradient the other.
 *
 *     f32 [H][K][V] state, [H][V] its units
 */
#include "codegen/nvptx/chain.h"

static int64_t state_bytes(const Cg *cg) {
    return (int64_t)cg->k->axis.at[AXIS_K].size * cg->k->axis.at[AXIS_V].size * 4;
}

/* Bytes from a head's state to its element k, v. */
static Val element(Cg *cg, Val k, Val v) {
    int V = cg->k->axis.at[AXIS_V].size;
    return cg_zext64(cg, cg_shl(cg, cg_add(cg, cg_mul(cg, k, cg_int(cg, V)), v), 2));
}

static Val state_of_head(Chain *c, Val all) {
    Cg *cg = c->cg;
    return cg_gep8(cg, all, cg_mul(cg, cg_zext64(cg, c->head), cg_int64(cg, state_bytes(cg))));
}

/* The unit of this lane's V column h. */
static Val unit_of_column(Chain *c, Val all, int h) {
    Cg *cg = c->cg;
    Val row = cg_mul(cg, cg_zext64(cg, c->head), cg_int64(cg, c->s->V));
    Val at = cg_shl(cg, cg_add(cg, row, cg_zext64(cg, c->v[h])), 2);
    Val states = cg_mul(cg, cg_zext64(cg, c->heads), cg_int64(cg, state_bytes(cg)));
    return cg_gep8(cg, all, cg_add(cg, states, at));
}

static void load_element(Chain *c, Val p, int n, int j) {
    cg_set(c->cg, c->state[n][j], cg_load(c->cg, c->cg->f32, p, 4));
}

static void times_unit(Chain *c, int h, Val unit) {
    Cg *cg = c->cg;
    for (int n = 0; n < c->s->kp / 8; n++)
        for (int j = 2 * h; j < 2 * h + 2; j++)
            cg_set(cg, c->state[n][j], cg_fmul(cg, cg_get(cg, c->state[n][j]), unit));
}

static void store_element(Chain *c, Val p, int n, int j) {
    cg_store(c->cg, cg_get(c->cg, c->state[n][j]), p, 4);
}

static If if_column(Chain *c, int h, Val also) {
    Cg *cg = c->cg;
    Val live = c->v_live[h] ? c->v_live[h] : cg_cmp(cg, LLVMIntSGE, c->v[h], cg_int(cg, 0));
    return cg_if(cg, also ? cg_and(cg, live, also) : live);
}

void chain_take_over(Chain *c, Val all) {
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

void chain_pass_on(Chain *c, Val all) {
    Cg *cg = c->cg;
    chain_each_element(c, state_of_head(c, all), element, store_element);
    Val first = cg_cmp(cg, LLVMIntEQ, c->t, cg_int(cg, 0)); /* of the lanes that hold the column */
    for (int h = 0; h < 2; h++) {
        If there = if_column(c, h, first);
        cg_store(cg, c->wgmma ? cg_get(cg, c->unit[h]) : cg_float(cg, 1), unit_of_column(c, all, h), 4);
        cg_end_if(cg, &there);
    }
}

Val chain_border_bytes(Chain *c) {
    Cg *cg = c->cg;
    return cg_mul(cg, cg_zext64(cg, c->heads), cg_int64(cg, state_bytes(cg) + 4 * (int64_t)c->s->V));
}

/* Address (i64) of the saved state in front of slot `which * every`. */
static Val saved_state(Chain *c, Val which) {
    Cg *cg = c->cg;
    Val number = cg_sub(cg, which, cg_int64(cg, 1));
    Val at = cg_mul(cg, number, chain_border_bytes(c));
    return cg_add(cg, cg_frame_field(cg, FRAME_SAVED), at);
}

/* The segment's slots from one multiple of GRAD_SAVE_EVERY to the next; with 0 all of them. The first blocks have
 * the last interval: the L2 cache still holds factors of its chunks, and reverse begins with them. A launch has
 * less than 2^31 blocks, so slots are 32-bit numbers. */
Val chain_place_interval(Chain *c, Val n) {
    Cg *cg = c->cg;
    Val slots = cg_frame_field(cg, frame_segment(c->k, SEGMENT_SLOTS));
    c->begin = cg_frame_field(cg, frame_segment(c->k, SEGMENT_SLOT));
    c->end = cg_add(cg, c->begin, slots);
    if (c->back || !c->gradient)
        return n;
    Val zero = cg_int(cg, 0), one = cg_int(cg, 1), slot = cg_trunc32(cg, c->begin);
    Val every = cg_trunc32(cg, cg_frame_field(cg, frame_gradient(c->k, GRAD_SAVE_EVERY)));
    Val end = cg_trunc32(cg, c->end);
    end = cg_select(cg, cg_cmp(cg, LLVMIntSGT, end, slot), end, cg_add(cg, slot, one));
    every = cg_select(cg, cg_cmp(cg, LLVMIntSGT, every, zero), every, end);
    Val first = cg_udiv(cg, slot, every);
    Val last = cg_udiv(cg, cg_sub(cg, end, one), every);
    Val intervals = cg_add(cg, cg_sub(cg, last, first), one);
    Val which = cg_sub(cg, cg_sub(cg, intervals, one), cg_urem(cg, n, intervals));
    c->interval = cg_add(cg, first, which);
    c->inner = cg_cmp(cg, LLVMIntSGT, which, zero);
    Val here = cg_zext64(cg, cg_mul(cg, c->interval, every)), next = cg_add(cg, here, cg_zext64(cg, every));
    c->begin = cg_select(cg, c->inner, here, c->begin);
    c->end = cg_select(cg, cg_cmp(cg, LLVMIntSLT, next, c->end), next, c->end);
    return cg_udiv(cg, n, intervals);
}

Val chain_state_in(Chain *c) {
    Cg *cg = c->cg;
    Val passed = cg_frame_field(cg, frame_segment(c->k, SEGMENT_STATE_IN));
    if (!c->gradient)
        return passed;
    return cg_select(cg, c->inner, saved_state(c, cg_zext64(cg, c->interval)), passed);
}

void chain_save_start(Chain *c, Val number) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0), every = cg_int64(cg, cg->opt->save_every);
    Val saved = cg_frame_field(cg, FRAME_SAVED), slot = cg_add(cg, c->seq.slot, number);
    Val due = cg_cmp(cg, LLVMIntEQ, cg_urem(cg, slot, every), zero);
    due = cg_and(cg, due, cg_cmp(cg, LLVMIntSGT, number, zero));
    If there = cg_if(cg, cg_and(cg, due, cg_cmp(cg, LLVMIntNE, saved, zero)));
    Val at = saved_state(c, cg_udiv(cg, slot, every));
    Chain here = *c; /* there are no registers for addresses that wait for their time */
    here.head = chain_keep(c, c->head);
    here.t = chain_keep(c, c->t);
    for (int h = 0; h < 2; h++)
        here.v[h] = chain_keep(c, c->v[h]);
    chain_pass_on(&here, LLVMBuildIntToPtr(cg->b, at, cg->ptr_global, ""));
    cg_end_if(cg, &there);
}
