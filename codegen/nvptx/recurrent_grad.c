/* The gradient of a recurrence, for specs without a chunk form, or whose chunk gradient this target
 * cannot run: the kernel that passes/adjoint.c makes, token by token.
 *
 * A sequence and head is one block, which walks it (codegen/walk.h): gradients along K sum over all of V, and
 * nothing of that crosses blocks. S and D live in shared memory where both fit (K = V = 128 does), else in
 * the scratch. Params' gradients leave the kernel a segment at a time, to be added up by the sums entry.
 */
#include "codegen/nvptx/recurrent_grad.h"
#include "codegen/walk.h"

enum { MOST_BYTES = 4 << 20, MAX_OPS = 12 };

/* plan ----------------------------------------------------------------------------------------- */

static int64_t matrix_bytes(const RecurrentGrad *r) {
    return (int64_t)4 * r->K * r->ld;
}

static int64_t take(int64_t *at, int64_t bytes) {
    int64_t start = *at;
    *at += (bytes + 15) / 16 * 16;
    return start;
}

static bool is_memory(const Inst *i) {
    return i->op == OP_prev || i->op == OP_cumsum;
}

/* Every thread keeps what it holds of a vector, side by side: RG_THREADS floats an element of a run. */
static void plan_records(RecurrentGrad *r) {
    int n = r->k->inst.count;
    r->kept = NEW_ARRAY(r->cg->arena, int64_t, n);
    r->start = NEW_ARRAY(r->cg->arena, int64_t, n);
    r->record_bytes = r->start_bytes = matrix_bytes(r);
    for (int v = 0; v < n; v++) {
        const Inst *i = inst_at(r->k, v);
        int64_t bytes = 4 * RG_THREADS * (i->shape.rank ? RG_RUN : 1);
        r->start[v] = is_memory(i) ? take(&r->start_bytes, bytes) : -1;
        r->kept[v] = is_memory(i) || i->op == OP_read ? take(&r->record_bytes, bytes) : -1;
    }
    r->segment = walk_segment(r->record_bytes, MOST_BYTES);
    r->scratch_bytes = r->segment * r->record_bytes;
}

static void plan_matrices(RecurrentGrad *r, int limit) {
    int64_t bytes = matrix_bytes(r);
    r->state = r->costate = -1;
    if (r->shared_bytes + 2 * bytes <= limit) {
        r->state = r->shared_bytes;
        r->costate = r->state + (int)bytes;
        r->shared_bytes += 2 * (int)bytes;
        return;
    }
    r->state_at = take(&r->scratch_bytes, bytes);
    r->costate_at = take(&r->scratch_bytes, bytes);
}

static bool plan(RecurrentGrad *r, const char **why) {
    Cg *cg = r->cg;
    r->K = r->k->axis.at[AXIS_K].size;
    r->V = r->k->axis.at[AXIS_V].size;
    if (r->K > RG_SIZE || r->V > RG_SIZE) {
        *why = "K and V are at most 256 on this target";
        return false;
    }
    r->ld = (r->V + RG_COLUMNS - 1) / RG_COLUMNS * RG_COLUMNS;
    r->panels = (r->ld + RG_PANEL - 1) / RG_PANEL;
    for (int half = 0; half < 2; half++)
        r->sweep[half] = sweeps_of(cg->arena, r->k, half, MAX_OPS, RG_SUMS, &r->sweeps[half]);
    r->shared_bytes = rg_plan_slots(r, 0);
    if (r->shared_bytes > cg->target->smem_limit) {
        *why = "a token of the gradient has more vectors than shared memory holds";
        return false;
    }
    plan_records(r);
    plan_matrices(r, cg->target->smem_limit);
    return true;
}

/* place ---------------------------------------------------------------------------------------- */

/* Block = sequence * H + head; its scratch by that number. */
static void find_place(RecurrentGrad *r) {
    Cg *cg = r->cg;
    Val block = nv_block(cg), H = cg_trunc32(cg, cg_frame_field(cg, FRAME_H));
    r->tid = nv_tid(cg);
    r->lane = cg_and(cg, r->tid, cg_int(cg, RG_LANES - 1));
    r->warp = nv_shuffle_from(cg, cg_shr(cg, r->tid, 5), cg_int(cg, 0));
    r->seq = seq_of_index(cg, cg_udiv(cg, block, H), r->segment);
    Val scratch = nv_global(cg, frame_gradient(r->k, GRAD_SCRATCH));
    Val bytes = cg_mul(cg, cg_zext64(cg, block), cg_int64(cg, r->scratch_bytes));
    r->scratch = cg_gep8(cg, scratch, bytes);
    Val base = cg_mul(cg, r->tid, cg_int(cg, RG_RUN));
    r->at = (ValueAt){
        .cg = cg,
        .head = cg_urem(cg, block, H),
        .heads = H,
        .base_k = base,
        .base_v = base,
        .n_k = RG_RUN,
        .n_v = RG_RUN,
        .past_k = true,
        .past_v = true,
        .lookup = rg_lookup,
        .sum = rg_sum,
        .user = r,
    };
    value_ports(&r->at);
}

static Matrix working(RecurrentGrad *r, int shared, int64_t scratch) {
    Cg *cg = r->cg;
    if (shared >= 0)
        return (Matrix){true, nv_shared(cg, shared)};
    return (Matrix){false, cg_gep8(cg, r->scratch, cg_int64(cg, scratch))};
}

/* From the block's matrix among those that frame field `field` points to, or zero. */
static Val state_of_block(RecurrentGrad *r, int field) {
    Cg *cg = r->cg;
    Val number = cg_mul(cg, cg_zext64(cg, r->seq.index), cg_frame_field(cg, FRAME_H));
    number = cg_add(cg, number, cg_zext64(cg, r->at.head));
    return cg_gep8(cg, nv_global(cg, field), cg_mul(cg, number, cg_int64(cg, (int64_t)4 * r->K * r->V)));
}

static void matrix_in(RecurrentGrad *r, const Matrix *to, int field) {
    Cg *cg = r->cg;
    If given = cg_if(cg, cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, field), cg_int64(cg, 0)));
    rg_load(r, to, state_of_block(r, field));
    cg_else(cg, &given);
    rg_clear(r, to);
    cg_end_if(cg, &given);
}

static void matrix_out(RecurrentGrad *r, const Matrix *from, int field) {
    Cg *cg = r->cg;
    If wanted = cg_if(cg, cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, field), cg_int64(cg, 0)));
    rg_store(r, from, state_of_block(r, field));
    cg_end_if(cg, &wanted);
}

/* what is kept --------------------------------------------------------------------------------- */

/* Where this thread keeps element j of what lies at byte `at` of `p`. */
static Val own(RecurrentGrad *r, Val p, int64_t at, int j) {
    Cg *cg = r->cg;
    p = cg_gep8(cg, p, cg_int64(cg, at + (int64_t)4 * RG_THREADS * j));
    return cg_gep8(cg, p, cg_zext64(cg, cg_shl(cg, r->tid, 2)));
}

static void keep(RecurrentGrad *r, Val p, int64_t at, int n, const Val *x) {
    for (int j = 0; j < n; j++)
        cg_store(r->cg, x[j], own(r, p, at, j), 4);
}

static Val *recall(RecurrentGrad *r, Val p, int64_t at, int n) {
    Val *x = NEW_ARRAY(r->cg->arena, Val, n);
    for (int j = 0; j < n; j++)
        x[j] = cg_load(r->cg, r->cg->f32, own(r, p, at, j), 4);
    return x;
}

/* Where segment s starts: to the workspace, or back, with nothing in its sums yet. */
static void start(void *user, Val s, bool save) {
    RecurrentGrad *r = user;
    Cg *cg = r->cg;
    if (!save)
        rg_clear_totals(r);
    Val slot = cg_add(cg, r->seq.slot, s);
    slot = cg_add(cg, cg_mul(cg, slot, cg_frame_field(cg, FRAME_H)), cg_zext64(cg, r->at.head));
    Val p = cg_gep8(cg, nv_global(cg, FRAME_WS), cg_mul(cg, slot, cg_int64(cg, r->start_bytes)));
    Matrix there = {false, p};
    rg_copy(r, save ? &there : &r->S, save ? &r->S : &there);
    for (int v = 0; v < r->k->inst.count; v++) {
        int n = value_count(&r->at, v);
        if (r->start[v] < 0)
            continue;
        Val *x = save ? NEW_ARRAY(cg->arena, Val, n) : recall(r, p, r->start[v], n);
        for (int j = 0; j < n; j++)
            if (save)
                x[j] = cg_get(cg, r->carried[v][j]);
            else
                cg_set(cg, r->carried[v][j], x[j]);
        if (save)
            keep(r, p, r->start[v], n, x);
    }
}

static Val record_of(RecurrentGrad *r, Val token) {
    Cg *cg = r->cg;
    return cg_gep8(cg, r->scratch, cg_mul(cg, token, cg_int64(cg, r->record_bytes)));
}

/* tokens --------------------------------------------------------------------------------------- */

static void open_token(RecurrentGrad *r, Val t) {
    r->at.token = cg_add(r->cg, r->seq.begin, t);
    value_begin(&r->at);
    r->published = NEW_ARRAY(r->cg->arena, bool, r->k->inst.count);
    for (int v = 0; v < r->k->inst.count; v++)
        r->memory[v] = NULL;
}

static void forwards(void *user, Val t, Val number) {
    RecurrentGrad *r = user;
    Cg *cg = r->cg;
    Val record = number ? record_of(r, number) : NULL;
    open_token(r, t);
    for (int v = 0; v < r->k->inst.count; v++) {
        int n = value_count(&r->at, v);
        if (!is_memory(inst_at(r->k, v)))
            continue;
        r->memory[v] = NEW_ARRAY(cg->arena, Val, n);
        for (int j = 0; j < n; j++)
            r->memory[v][j] = cg_get(cg, r->carried[v][j]);
        if (record)
            keep(r, record, r->kept[v], n, r->memory[v]);
    }
    if (record)
        rg_copy(r, &(Matrix){false, record}, &r->S);
    rg_sweeps(r, false);
    for (int v = 0; v < r->k->inst.count && record; v++)
        if (inst_at(r->k, v)->op == OP_read)
            keep(r, record, r->kept[v], RG_RUN, value_get(&r->at, v));
    rg_close_forwards(r);
}

static void backwards(void *user, Val t, Val number) {
    RecurrentGrad *r = user;
    Val record = record_of(r, number);
    open_token(r, t);
    r->first = (Matrix){false, record};
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (is_memory(i))
            r->memory[v] = recall(r, record, r->kept[v], value_count(&r->at, v));
        else if (i->op == OP_read)
            r->at.memo[v] = recall(r, record, r->kept[v], RG_RUN);
    }
    rg_sweeps(r, true);
    rg_outs(r);
    rg_close_backwards(r);
}

static void end(void *user, Val s) {
    RecurrentGrad *r = user;
    rg_store_totals(r, cg_add(r->cg, r->seq.slot, s));
}

bool nv_build_recurrent_grad(Cg *cg, CgModule *out, const char **why) {
    RecurrentGrad *r = NEW(cg->arena, RecurrentGrad);
    r->cg = cg;
    r->k = cg->k;
    if (!plan(r, why))
        return false;
    Buf symbol;
    buf_init(&symbol, cg->arena);
    buf_printf(&symbol, "%s%s_recurrent_grad", cg->opt->prefix ? cg->opt->prefix : "", r->k->name);
    nv_kernel_open(cg, symbol.text, RG_THREADS, 1);
    find_place(r);
    r->S = working(r, r->state, r->state_at);
    r->D = working(r, r->costate, r->costate_at);
    rg_open_memories(r);
    matrix_in(r, &r->S, FRAME_S0);
    matrix_in(r, &r->D, frame_costate(r->k));
    walk_sequence(&(Walk){.cg = cg, .length = r->seq.length, .segment = r->segment, .user = r,
                          .start = start, .forwards = forwards, .backwards = backwards, .end = end});
    matrix_out(r, &r->D, frame_costate(r->k) + 1);
    nv_kernel_close(cg);

    CgEntry e = {.kind = ENTRY_recurrent_grad, .symbol = symbol.text, .threads = RG_THREADS,
                 .smem_bytes = r->shared_bytes, .scratch_bytes = r->scratch_bytes};
    VEC_PUSH(cg->arena, &out->entry, e);
    out->chunk = r->segment;
    out->ws_bytes_per_slot_head = r->start_bytes;
    return true;
}
