/* Gradient kernels: a task goes over its chunks twice.
 *
 *     for the chunks, forwards      the state and the histories to the workspace; the next state
 *     for the chunks, backwards     state and histories back; every gradient, and what it needs;
 *                                   the cotangent of the state where the chunk starts over that of
 *                                   the state where it ends
 *
 * What a chunk's gradients need of the forward pass is computed again from its state. A chunk's record
 * in the workspace is the state, [K, V padded to vectors], then one row of every history. */
#include "codegen/host/host.h"

static int64_t state_row(const Host *h) {
    return host_round(axis_size(h, AXIS_V), h->lanes);
}

static int64_t history_row(const Host *h, const Tile *t) {
    return t->there && t->history ? host_round(t->ld, h->lanes) : 0;
}

int64_t host_checkpoint_bytes(const Host *h) {
    int64_t floats = axis_size(h, AXIS_K) * state_row(h);
    for (int v = 0; v < h->k->inst.count; v++)
        floats += history_row(h, &h->tile[v]);
    return 4 * floats;
}

static void move(Host *h, bool save, const Tile *t, Val record, int64_t ld, Val rows) {
    Val mine = host_at(h, t->offset);
    if (save)
        host_copy(h, record, ld, mine, t->ld, rows, ld);
    else
        host_copy(h, mine, t->ld, record, ld, rows, ld);
}

void host_checkpoint(Host *h, Val c, bool save) {
    Cg *cg = h->cg;
    Val slot = cg_add(cg, cg_mul(cg, cg_add(cg, h->slot0, c), h->heads), h->head);
    Val ws = LLVMBuildIntToPtr(cg->b, cg_frame_field(cg, FRAME_WS), cg->ptr, "");
    Val record = host_element(h, ws, slot, host_checkpoint_bytes(h));
    move(h, save, &h->state, record, state_row(h), cg_int64(cg, axis_size(h, AXIS_K)));
    int64_t at = 4 * axis_size(h, AXIS_K) * state_row(h);
    for (int v = 0; v < h->k->inst.count; v++) {
        int64_t row = history_row(h, &h->tile[v]);
        if (row)
            move(h, save, &h->tile[v], cg_gep8(cg, record, cg_int64(cg, at)), row, cg_int64(cg, 1));
        at += 4 * row;
    }
}

static void open_chunk(Host *h, Val c) {
    Cg *cg = h->cg;
    Val C = cg_int64(cg, axis_size(h, AXIS_C));
    h->token0 = cg_mul(cg, c, C);
    host_open_axes(h, host_min(h, cg_sub(cg, h->length, h->token0), C));
}

void host_forget(Host *h) {
    for (int v = 0; v < h->k->inst.count; v++)
        h->tile[v].done &= h->tile[v].constant;
    h->products.count = 0;
}

static int operand_of(const Host *h, Op op) {
    for (int v = 0; v < h->k->inst.count; v++)
        if (inst_at(h->k, v)->op == op)
            return inst_at(h->k, v)->arg[0];
    BUG("%s: no %s", h->k->name, op_info[op].name);
}

static void forwards(Host *h, Val chunks) {
    Cg *cg = h->cg;
    Loop l = cg_for(cg, cg_int64(cg, 0), chunks, 1, false);
    open_chunk(h, l.i);
    host_checkpoint(h, l.i, true);
    host_need_histories(h);
    host_advance(h, &h->state, operand_of(h, OP_next));
    host_roll_history(h);
    cg_end_for(cg, &l);
}

static void backwards(Host *h, Val chunks) {
    Cg *cg = h->cg;
    const Kernel *k = h->k;
    Loop l = cg_for(cg, cg_int64(cg, 0), chunks, 1, false);
    Val c = cg_sub(cg, cg_sub(cg, chunks, cg_int64(cg, 1)), l.i);
    open_chunk(h, c);
    host_checkpoint(h, c, false);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_out)
            host_out(h, v);
    for (int v = 0; v < k->inst.count; v++) /* what the chunk before this one takes from it */
        if (h->ahead[v].there)
            host_need(h, v);
    host_advance(h, &h->costate, operand_of(h, OP_conext));
    cg_end_for(cg, &l);
}

void host_clear_gradient(Host *h) {
    host_clear_history(h);
    host_clear_totals(h);
    for (int v = 0; v < h->k->inst.count; v++)
        if (h->ahead[v].there)
            host_fill_zero(h, host_at(h, h->ahead[v].offset),
                           host_round(4 * h->ahead[v].ld, 4 * h->lanes));
}

void host_gradient_task(Host *h) {
    Cg *cg = h->cg;
    Val C = cg_int64(cg, axis_size(h, AXIS_C));
    Val most = cg_add(cg, h->length, cg_int64(cg, axis_size(h, AXIS_C) - 1));
    Val chunks = LLVMBuildSDiv(cg->b, most, C, "");
    h->token0 = cg_int64(cg, 0);
    host_open_axes(h, h->token0);
    host_clear_gradient(h);
    host_constants(h);
    forwards(h, chunks);
    host_forget(h);
    backwards(h, chunks);
    host_store_totals(h);
}
