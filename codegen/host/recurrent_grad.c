/* The gradient of the recurrence: a task walks its sequence (codegen/walk.h).
 *
 * A segment has as many tokens as have records in 3 MiB, so that they mostly stay in cache; the workspace has
 * one state a segment, which for K = V = 128 is 2 KiB a token and head, as much as four f32 vectors of the
 * inputs. A record is the state as it lies in scratch, then one row of every history and of every read.
 */
#include "codegen/host/host.h"
#include "codegen/walk.h"

enum { MOST_BYTES = 3 << 20 };

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
    h->segment = walk_segment(bytes, MOST_BYTES);
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

static void start(void *user, Val segment, bool save) {
    host_checkpoint(user, segment, save);
}

static void open_token(Host *h, Val token) {
    h->token0 = token;
    host_forget(h);
}

static void forwards(void *user, Val token, Val number) {
    Host *h = user;
    Val record = number ? record_of(h, number) : NULL;
    open_token(h, token);
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

static void backwards(void *user, Val token, Val number) {
    Host *h = user;
    const Kernel *k = h->k;
    Val record = record_of(h, number);
    open_token(h, token);
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

void host_recurrent_gradient_task(Host *h) {
    Cg *cg = h->cg;
    h->token0 = cg_int64(cg, 0);
    host_open_axes(h, cg_int64(cg, 1));
    host_clear_gradient(h);
    host_constants(h);
    walk_sequence(&(Walk){.cg = cg, .length = h->length, .segment = h->segment, .user = h,
                          .start = start, .forwards = forwards, .backwards = backwards});
    host_store_totals(h);
}
