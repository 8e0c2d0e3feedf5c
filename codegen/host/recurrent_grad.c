/* The gradient of the recurrence: a task goes over its tokens forwards, then backwards segment by
 * segment.
 *
 *     for the segments, forwards     the state and the histories to the workspace; its tokens
 *     for the segments, backwards    state and histories back;
 *         for its tokens, forwards   the state, the histories and what was read of the state to the
 *                                    token's record in scratch; the token
 *         for its tokens, backwards  every gradient, from the record and the state's cotangent D
 *
 * Every token runs forwards twice and backwards once. States are made again and never divided out, so
 * decays of 0 are exact. A segment has 16 to 64 tokens: as many as have records in 3 MiB, so that
 * they mostly stay in cache; the workspace has one state a segment, which for K = V = 128 is
 * 2 KiB a token and head, as much as four f32 vectors of the inputs.
 *
 * A record is the state as it lies in scratch, then one row of every history and of every read.
 */
#include "codegen/host/host.h"

enum { MOST_TOKENS = 64, FEWEST_TOKENS = 16, MOST_BYTES = 3 << 20 };

/* Bytes in a record for value v: a history's row from the token before, or what a read gave. */
static int64_t row_bytes(const Host *h, int v) {
    const Tile *t = &h->tile[v];
    bool kept = t->there && (t->history || inst_at(h->k, v)->op == OP_read);
    return kept ? 4 * host_round(t->ld, h->lanes) : 0;
}

static int64_t state_bytes(const Host *h) {
    return 4 * axis_size(h, AXIS_K) * h->state.ld;
}

static int64_t record_bytes(const Host *h) {
    int64_t bytes = state_bytes(h);
    for (int v = 0; v < h->k->inst.count; v++)
        bytes += row_bytes(h, v);
    return bytes;
}

void host_plan_segments(Host *h) {
    int64_t bytes = record_bytes(h);
    h->segment = MOST_TOKENS;
    while (h->segment > FEWEST_TOKENS && h->segment * bytes > MOST_BYTES)
        h->segment /= 2;
    h->records = host_alloc(h, h->segment * bytes / 4);
}

/* records -------------------------------------------------------------------------------------- */

/* Rows of histories, or of reads, between their tiles and a record. */
static void move_rows(Host *h, Val record, bool reads, bool save) {
    int64_t at = state_bytes(h);
    for (int v = 0; v < h->k->inst.count; v++) {
        int64_t bytes = row_bytes(h, v);
        Tile *t = &h->tile[v];
        if (bytes && (inst_at(h->k, v)->op == OP_read) == reads) {
            Val row = cg_gep8(h->cg, record, cg_int64(h->cg, at)), mine = host_at(h, t->offset);
            host_copy(h, save ? row : mine, bytes / 4, save ? mine : row, bytes / 4,
                      cg_int64(h->cg, 1), bytes / 4);
            t->done |= reads;
        }
        at += bytes;
    }
}

static Val record_of(Host *h, Val token) {
    return host_element(h, host_at(h, h->records), token, record_bytes(h));
}

/* tokens --------------------------------------------------------------------------------------- */

static void open_token(Host *h, Val token) {
    h->token0 = token;
    host_forget(h);
}

/* The token forwards; with a record, that is filled. */
static void forwards(Host *h, Val record) {
    if (record) {
        int64_t ld = h->state.ld;
        host_copy(h, record, ld, host_at(h, h->state.offset), ld, h->count[AXIS_K], ld);
        move_rows(h, record, false, true);
    }
    host_sweeps(h, false);
    if (record)
        move_rows(h, record, true, true);
    host_need_histories(h);
    host_roll_history(h);
}

static void backwards(Host *h, Val record) {
    const Kernel *k = h->k;
    h->start = h->state;
    h->start.base = record;
    move_rows(h, record, false, false);
    move_rows(h, record, true, false);
    host_sweeps(h, true);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_out)
            host_out(h, v);
    for (int v = 0; v < k->inst.count; v++) /* what the token before this one takes from it */
        if (h->ahead[v].there)
            host_need(h, v);
}

/* segments ------------------------------------------------------------------------------------- */

static void all_forwards(Host *h, Val segments) {
    Cg *cg = h->cg;
    Val n = cg_int64(cg, h->segment);
    Loop s = cg_for(cg, cg_int64(cg, 0), segments, 1, false);
    host_checkpoint(h, s.i, true);
    Val first = cg_mul(cg, s.i, n);
    Loop t = cg_for(cg, first, host_min(h, cg_add(cg, first, n), h->length), 1, false);
    open_token(h, t.i);
    forwards(h, NULL);
    cg_end_for(cg, &t);
    cg_end_for(cg, &s);
}

static void all_backwards(Host *h, Val segments) {
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0), one = cg_int64(cg, 1), n = cg_int64(cg, h->segment);
    Loop l = cg_for(cg, zero, segments, 1, false);
    Val s = cg_sub(cg, cg_sub(cg, segments, one), l.i);
    host_checkpoint(h, s, false);
    Val first = cg_mul(cg, s, n), tokens = host_min(h, n, cg_sub(cg, h->length, first));
    Loop t = cg_for(cg, zero, tokens, 1, false);
    open_token(h, cg_add(cg, first, t.i));
    forwards(h, record_of(h, t.i));
    cg_end_for(cg, &t);
    t = cg_for(cg, zero, tokens, 1, false);
    Val back = cg_sub(cg, cg_sub(cg, tokens, one), t.i);
    open_token(h, cg_add(cg, first, back));
    backwards(h, record_of(h, back));
    cg_end_for(cg, &t);
    cg_end_for(cg, &l);
}

void host_recurrent_gradient_task(Host *h) {
    Cg *cg = h->cg;
    Val most = cg_add(cg, h->length, cg_int64(cg, h->segment - 1));
    Val segments = LLVMBuildSDiv(cg->b, most, cg_int64(cg, h->segment), "");
    h->token0 = cg_int64(cg, 0);
    host_open_axes(h, cg_int64(cg, 1));
    host_clear_gradient(h);
    host_constants(h);
    all_forwards(h, segments);
    all_backwards(h, segments);
    host_store_totals(h);
}
