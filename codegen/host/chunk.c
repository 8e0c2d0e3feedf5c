/* The chunk algorithm: a tile-level kernel, factor and chain roles together, one chunk after the
 * other, so that everything of a chunk stays in the first two cache levels.
 *
 *     what is remembered; constants
 *     for t = 0, C, 2C, ...
 *         n = tokens of this chunk; n * slots rows on the lattice
 *         every output, and what it needs; then the next state over the old one
 */
#include "codegen/host/host.h"

static bool has_parts(const Host *h, int v) {
    for (int u = 0; u < v; u++)
        if (h->tile[u].anchor == v)
            return true;
    return false;
}

void host_compute(Host *h, int v) {
    switch ((int)inst_at(h->k, v)->op) {
    case OP_contract: host_contract(h, v); break;
    case OP_scores: host_scores(h, v); break;
    case OP_carry: host_carry(h, v); break;
    case OP_tail: host_tail(h, v); break;
    case OP_total: host_total(h, v); break;
    case OP_solve: host_solve(h, v); break;
    case OP_rename: host_need(h, inst_at(h->k, v)->arg[0]); break;
    case OP_scores_x:
    case OP_scores_y: host_scores_back(h, v); break;
    case OP_scores_a: host_scores_a(h, v); break;
    case OP_carry_a:
    case OP_tail_a:
    case OP_total_a: host_scaled_a(h, v); break;
    case OP_state:
    case OP_costate: break;
    case OP_read:
    case OP_reread:
    case OP_coread:
    case OP_decay_a: BUG("%s: a read before its sweep", h->k->name);
    default:
        if (has_parts(h, v))
            host_contract(h, v);
        else
            host_fill(h, v);
    }
}

void host_open_axes(Host *h, Val tokens) {
    Cg *cg = h->cg;
    h->count[AXIS_C] = tokens;
    h->count[AXIS_R] = h->count[AXIS_U] = cg_mul(cg, tokens, cg_int64(cg, h->slots));
    h->count[AXIS_K] = cg_int64(cg, axis_size(h, AXIS_K));
    h->count[AXIS_V] = cg_int64(cg, axis_size(h, AXIS_V));
}

void host_constants(Host *h) {
    for (int v = 0; v < h->k->inst.count; v++)
        if (h->tile[v].there && h->tile[v].constant)
            host_need(h, v);
}

void host_advance(Host *h, const Tile *state, int v) {
    const Tile *t = &h->tile[v];
    host_need(h, v);
    if (t->offset == state->offset)
        return;
    CHECK(t->row == state->row && t->col == state->col);
    host_copy(h, host_at(h, state->offset), state->ld, host_at(h, t->offset), t->ld,
              h->count[AXIS_K], host_round(axis_size(h, AXIS_V), h->lanes));
}

void host_chunk_task(Host *h) {
    Cg *cg = h->cg;
    const Kernel *k = h->k;
    Val zero = cg_int64(cg, 0);
    h->token0 = zero;
    host_open_axes(h, zero);
    host_start_past(h);
    host_constants(h);
    Loop chunk = cg_for(cg, zero, h->length, axis_size(h, AXIS_C), false);
    h->token0 = chunk.i;
    host_open_axes(h,
                   host_min(h, cg_sub(cg, h->length, chunk.i), cg_int64(cg, axis_size(h, AXIS_C))));
    int next = -1;
    for (int v = 0; v < k->inst.count; v++) {
        if (inst_at(k, v)->op == OP_out)
            host_out(h, v);
        else if (inst_at(k, v)->op == OP_next)
            next = inst_at(k, v)->arg[0];
    }
    /* Running sums and values that only the next chunk looks back at. */
    host_need_histories(h);
    if (next >= 0)
        host_advance(h, &h->state, next);
    host_roll_history(h);
    cg_end_for(cg, &chunk);
}
