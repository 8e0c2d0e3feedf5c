/* The state between the caller's memory and scratch, and what is remembered beside it: which state
 * a sequence starts from and which it leaves (codegen.h at frame_in_ptr), types and layouts.
 *
 *     [K,V] in memory    rows as they are, f32 in scratch
 *     [V,K]              rows of [V,K] in scratch, turned there
 */
#include "codegen/host/host.h"

static Val is_given(Host *h, int field) {
    return cg_cmp(h->cg, LLVMIntNE, cg_frame_field(h->cg, field), cg_int64(h->cg, 0));
}

static Val pointer(Host *h, int field) {
    return LLVMBuildIntToPtr(h->cg->b, cg_frame_field(h->cg, field), h->cg->ptr, "");
}

/* matrices ------------------------------------------------------------------------------------- */

/* A tile from or to a dense matrix of elements; whole rows, last columns masked. */
typedef struct Move {
    const Tile *tile;
    Val outside;
    Elem elem;
    bool in;
} Move;

static void move_columns(At *at, void *user) {
    const Move *m = user;
    Host *h = at->h;
    Val row = host_element(h, m->outside, at->row, axis_size(h, at->col_axis) * elem_size(m->elem));
    if (m->in)
        host_store(at, m->tile, 0, host_row_load(at, row, m->elem));
    else
        host_row_store(at, row, m->elem, host_load(at, m->tile, 0));
}

static void move_matrix(Host *h, const Tile *tile, Val outside, Elem elem, bool in) {
    Cg *cg = h->cg;
    Move m = {tile, outside, elem, in};
    Loop r = cg_for(cg, cg_int64(cg, 0), cg_int64(cg, axis_size(h, tile->row)), 1, false);
    At at = host_at_row(h, tile->row, r.i);
    host_columns(&at, tile->col, true, move_columns, &m);
    cg_end_for(cg, &r);
}

static Val matrix_of_task(Host *h, int field) {
    return host_element(h, pointer(h, field), h->task,
                        4 * axis_size(h, AXIS_K) * axis_size(h, AXIS_V));
}

static void clear_matrix(Host *h, const Tile *tile) {
    host_fill_zero(h, host_at(h, tile->offset), 4 * tile->ld * axis_size(h, AXIS_K));
}

void host_matrix_in(Host *h, const Tile *tile, int field) {
    If given = cg_if(h->cg, is_given(h, field));
    move_matrix(h, tile, matrix_of_task(h, field), ELEM_f32, true);
    cg_else(h->cg, &given);
    clear_matrix(h, tile);
    cg_end_if(h->cg, &given);
}

void host_matrix_out(Host *h, const Tile *tile, int field) {
    If wanted = cg_if(h->cg, is_given(h, field));
    move_matrix(h, tile, matrix_of_task(h, field), ELEM_f32, false);
    cg_end_if(h->cg, &wanted);
}

/* Turning writes whole vectors, so both need rows up to a multiple of the vector's length: those of
 * the state go on behind its tile. */
void host_plan_turned(Host *h) {
    if (!h->cg->opt->state_vk)
        return;
    int64_t V = host_round(axis_size(h, AXIS_V), h->lanes);
    host_alloc(h, h->lanes * h->state.ld);
    h->turned = (Tile){.there = true, .row = AXIS_V, .col = AXIS_K, .anchor = -1};
    h->turned.ld = host_round(axis_size(h, AXIS_K), h->lanes) + h->lanes;
    h->turned.offset = host_alloc(h, V * h->turned.ld);
}

static void move_state(Host *h, Val outside, bool in) {
    const CgOptions *opt = h->cg->opt;
    if (opt->state_vk && !in)
        host_transpose(h, &h->turned, &h->state, cg_int64(h->cg, axis_size(h, AXIS_K)));
    move_matrix(h, opt->state_vk ? &h->turned : &h->state, outside, opt->state, in);
    if (opt->state_vk && in)
        host_transpose(h, &h->state, &h->turned, cg_int64(h->cg, axis_size(h, AXIS_V)));
}

/* which states --------------------------------------------------------------------------------- */

/* x, or -1 where it is not below `size`. */
static Val within(Host *h, Val x, Val size) {
    return cg_select(h->cg, cg_cmp(h->cg, LLVMIntULT, x, size), x, cg_int64(h->cg, -1));
}

/* The state that row `n` of S0's indices names. */
static Val first_state(Host *h, Val n) {
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0), columns = cg_frame_field(cg, FRAME_S0_COLUMNS);
    Var number = cg_var(cg, cg->i64, n), column = cg_var(cg, cg->i64, zero);
    If indexed = cg_if(cg, is_given(h, FRAME_S0_SLOTS));
    If counted = cg_if(cg, is_given(h, FRAME_S0_ACCEPTED));
    Val accepted = host_integer(h, FRAME_S0_ACCEPTED, FRAME_INDEX_WIDTH, n);
    cg_set(cg, column, within(h, cg_sub(cg, accepted, cg_int64(cg, 1)), columns));
    cg_end_if(cg, &counted);
    Val c = cg_get(cg, column), none = cg_cmp(cg, LLVMIntSLT, c, zero);
    Val i = cg_add(cg, cg_mul(cg, n, columns), cg_select(cg, none, zero, c));
    Val x = host_integer(h, FRAME_S0_SLOTS, FRAME_INDEX_WIDTH, i);
    x = within(h, x, cg_frame_field(cg, FRAME_S0_POOL));
    cg_set(cg, number, cg_select(cg, none, cg_int64(cg, -1), x));
    cg_end_if(cg, &indexed);
    return cg_get(cg, number);
}

/* Number i of the states in S, or what S's indices say there. */
static Val named(Host *h, Val i, Val exists) {
    Cg *cg = h->cg;
    Var number = cg_var(cg, cg->i64, cg_select(cg, exists, i, cg_int64(cg, -1)));
    If indexed = cg_if(cg, cg_and(cg, exists, is_given(h, FRAME_S_SLOTS)));
    Val x = host_integer(h, FRAME_S_SLOTS, FRAME_INDEX_WIDTH, i);
    cg_set(cg, number, within(h, x, cg_frame_field(cg, FRAME_S_POOL)));
    cg_end_if(cg, &indexed);
    return cg_get(cg, number);
}

/* After how many tokens the state is the one to keep. */
static Val committed(Host *h, Val n) {
    Cg *cg = h->cg;
    Var commit = cg_var(cg, cg->i64, h->length);
    If counted = cg_if(cg, is_given(h, FRAME_S_ACCEPTED));
    Val x = host_integer(h, FRAME_S_ACCEPTED, FRAME_INDEX_WIDTH, n);
    cg_set(cg, commit, host_max(h, host_min(h, x, h->length), cg_int64(cg, 0)));
    cg_end_if(cg, &counted);
    return cg_get(cg, commit);
}

void host_open_states(Host *h, Val n) {
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0), none = cg_int64(cg, -1), each = cg_frame_field(cg, FRAME_S_EACH);
    Val final = cg_cmp(cg, LLVMIntEQ, each, zero), first = first_state(h, n);
    Val last = named(h, n, final);
    Val lost = cg_and(cg, final, cg_cmp(cg, LLVMIntSLT, last, zero));
    Val skip = cg_or(cg, lost, cg_cmp(cg, LLVMIntSLT, first, zero));
    h->sequence = n;
    h->commit = committed(h, n);
    h->first = cg_select(cg, skip, none, first);
    h->last = cg_select(cg, skip, none, last);
    h->length = cg_select(cg, skip, zero, h->length);
}

/* State `number` of S0 or S, of this head. */
static Val state_address(Host *h, int field, Val number) {
    Cg *cg = h->cg;
    int64_t bytes = axis_size(h, AXIS_K) * axis_size(h, AXIS_V) * elem_size(cg->opt->state);
    int stride_field = field == FRAME_S0 ? FRAME_S0_STRIDE : FRAME_S_STRIDE;
    Val dense = cg_mul(cg, h->heads, cg_int64(cg, bytes));
    Val stride = cg_select(cg, is_given(h, stride_field), cg_frame_field(cg, stride_field), dense);
    Val p = cg_gep8(cg, pointer(h, field), cg_mul(cg, number, stride));
    return host_element(h, p, h->head, bytes);
}

/* what is remembered --------------------------------------------------------------------------- */

/* One value between a record and its history's row of the token before. */
typedef struct Recall {
    const Tile *tile;
    Val outside;
    bool in;
} Recall;

static void recall_columns(At *at, void *user) {
    const Recall *m = user;
    if (m->in)
        host_store(at, m->tile, -1, host_row_load(at, m->outside, ELEM_f32));
    else
        host_row_store(at, m->outside, ELEM_f32, host_load(at, m->tile, -1));
}

static void recall(Host *h, const Tile *t, Val outside, bool in) {
    Recall m = {t, outside, in};
    At first = host_at_row(h, AXIS_C, cg_int64(h->cg, 0));
    CHECK(t->there && t->history);
    host_columns(&first, t->col, true, recall_columns, &m);
}

static void fill_outside(Host *h, Val p, int floats) {
    Cg *cg = h->cg;
    Loop l = cg_for(cg, cg_int64(cg, 0), cg_int64(cg, floats), 1, false);
    cg_store(cg, cg_float(cg, 0), host_element(h, p, l.i, 4), 4);
    cg_end_for(cg, &l);
}

static void move_past(Host *h, int field, Val number, bool in) {
    Cg *cg = h->cg;
    int count;
    const Past *past = past_list(h->k, &count);
    Val record = cg_add(cg, cg_mul(cg, number, h->heads), h->head);
    Val p = host_element(h, pointer(h, field), record, 4 * (int64_t)h->k->facts.past);
    for (int i = 0; i < count; i++) {
        Val outside = cg_gep8(cg, p, cg_int64(cg, 4 * (int64_t)past[i].at));
        if (past[i].value >= 0)
            recall(h, &h->tile[past[i].value], outside, in);
        else if (!in)
            fill_outside(h, outside, past[i].floats);
    }
}

static bool remembers(const Host *h) {
    return !h->gradient && h->k->facts.past > 0;
}

/* both ----------------------------------------------------------------------------------------- */

void host_start_state(Host *h) {
    Cg *cg = h->cg;
    Val numbered = cg_cmp(cg, LLVMIntSGE, h->first, cg_int64(cg, 0));
    If given = cg_if(cg, cg_and(cg, numbered, is_given(h, FRAME_S0)));
    move_state(h, state_address(h, FRAME_S0, h->first), true);
    cg_else(cg, &given);
    clear_matrix(h, &h->state);
    cg_end_if(cg, &given);
}

void host_start_past(Host *h) {
    Cg *cg = h->cg;
    host_clear_history(h);
    if (!remembers(h))
        return;
    Val numbered = cg_cmp(cg, LLVMIntSGE, h->first, cg_int64(cg, 0));
    If given = cg_if(cg, cg_and(cg, numbered, is_given(h, FRAME_PAST0)));
    move_past(h, FRAME_PAST0, h->first, true);
    cg_end_if(cg, &given);
}

static void leave_as(Host *h, Val number) {
    Cg *cg = h->cg;
    Val numbered = cg_cmp(cg, LLVMIntSGE, number, cg_int64(cg, 0));
    If wanted = cg_if(cg, cg_and(cg, numbered, is_given(h, FRAME_S)));
    move_state(h, state_address(h, FRAME_S, number), false);
    cg_end_if(cg, &wanted);
    if (!remembers(h))
        return;
    If past = cg_if(cg, cg_and(cg, numbered, is_given(h, FRAME_PAST)));
    move_past(h, FRAME_PAST, number, false);
    cg_end_if(cg, &past);
}

void host_leave_state(Host *h) {
    leave_as(h, h->last);
}

void host_leave_state_after(Host *h, Val t) {
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0), each = cg_frame_field(cg, FRAME_S_EACH);
    Var number = cg_var(cg, cg->i64, cg_int64(cg, -1));
    If many = cg_if(cg, cg_cmp(cg, LLVMIntNE, each, zero));
    Val before = cg_sub(cg, t, cg_int64(cg, 1)),
        i = cg_add(cg, cg_mul(cg, h->sequence, each), before);
    cg_set(cg, number, named(h, i, cg_cmp(cg, LLVMIntULT, before, each)));
    cg_else(cg, &many);
    Val now = cg_cmp(cg, LLVMIntEQ, t, h->commit);
    cg_set(cg, number, cg_select(cg, now, h->last, cg_int64(cg, -1)));
    cg_end_if(cg, &many);
    leave_as(h, cg_get(cg, number));
}
