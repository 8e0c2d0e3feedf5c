/* The chain kernel: one block = one sequence, one head, v_tile V columns; a loop over the
 * chunks of one segment (codegen.h), a gradient's also of an interval from one saved state to the next, and
 * reverse the same loop backwards.
 *
 *     copy chunk 0
 *     for each chunk:
 *         wait for its copy; barrier; start copying the next chunk into the other stage
 *         W_f S for every family; X; M_f X; outs; S = D S + P' X
 *
 * With a third stage "the next chunk" is everywhere the one after it.
 *
 * On Hopper the record comes as one bulk copy, and the next chunk's copies start while the first
 * products run. A stage holds the chunk's workspace record as the factor kernel wrote it, the V-side inputs'
 * tokens, and the values of single tokens. Warps share nothing but the stages.
 */
#include "codegen/nvptx/chain.h"

#include <stdio.h>

enum { BARRIER_BYTES = 8 };

static int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

static int divide_up(int x, int y) { return (x + y - 1) / y; }

/* Bytes of a stage for the present v_tile; assigns the offsets. */
static int64_t plan_stage(Chain *c) {
    int64_t at = c->copied;
    for (int i = 0; i < c->nstaged; i++) {
        if (!c->staged[i].copied)
            continue;
        at = round_up(at, 128);
        c->staged[i].offset = (int)at;
        at += chain_staged_bytes(c, &c->staged[i]);
    }
    at = round_up(at, 16);
    c->row_value_offset = (int)at;
    at += (int64_t)c->nrow_values * c->s->rows * 4;
    return round_up(at, 1024);
}

/* Shared memory: the stages, on Hopper a barrier for each, what is recalled. */
static int64_t shared_bytes(Chain *c, int stages) {
    c->stages = stages;
    c->recall_offset = stages * (c->stage_bytes + (c->wgmma ? BARRIER_BYTES : 0));
    return c->recall_offset + (int64_t)c->nrecalled * 2 * c->threads * 4;
}

/* Blocks a multiprocessor has the memory for. */
static int64_t blocks_in(const Chain *c, int64_t bytes) {
    enum { LIMIT_BESIDE = 1024 };
    return (c->cg->target->smem_limit + LIMIT_BESIDE) / (bytes + LIMIT_BESIDE);
}

/* Two stages; reverse, where that takes no other block's place, three: it walks from end to end while chains
 * beside it keep memory busy, and then a record may come later than a chunk takes. */
static bool fits(Chain *c, int v_tile) {
    c->v_tile = v_tile;
    int64_t stage = plan_stage(c), limit = c->cg->target->smem_limit;
    if (stage > limit)
        return false;
    c->stage_bytes = (int)stage;
    c->warps = v_tile / 16;
    c->threads = 32 * c->warps;
    int64_t two = shared_bytes(c, 2), three = shared_bytes(c, 3);
    bool more = c->back && c->wgmma && three <= limit && blocks_in(c, three) == blocks_in(c, two);
    int64_t all = more ? three : shared_bytes(c, 2);
    c->sh_bytes = (int)all;
    return all <= limit;
}

/* The widest V tile up to `widest` that fits: fewer blocks read each record. */
static bool choose_tile(Chain *c, int widest) {
    int unit = c->wgmma ? 64 : 16;
    for (int tiles = divide_up(c->s->V, widest);; tiles++) {
        int v_tile = (int)round_up(divide_up(c->s->V, tiles), unit);
        if (fits(c, v_tile))
            return true;
        if (v_tile == unit)
            return false;
    }
}

/* Warpgroups where the GPU has them and the wish (0: none) allows whole ones. */
static bool choose_schedule(Chain *c, int wish, const char **why) {
    enum { PRODUCT_REGISTERS = 96 }; /* beside the state, X and what outs are made of */
    if (c->s->families * chain_fragment(c) > PRODUCT_REGISTERS) {
        *why = "the outs read the state in more ways than the GPU chain kernel has registers for: use "
               "smaller chunks";
        return false;
    }
    const CgOptions *opt = c->cg->opt;
    int widest = wish > 0 ? (int)round_up(wish, 16) : 128;
    c->wgmma = c->cg->target->wgmma && !opt->no_wgmma && widest % 64 == 0 &&
               (c->back ? reverse_wgmma_fits : chain_wgmma_fits)(c);
    if (c->wgmma && choose_tile(c, widest))
        return true;
    c->wgmma = false;
    if (choose_tile(c, widest))
        return true;
    *why = "the chain kernel needs more shared memory than this GPU has: use smaller chunks";
    return false;
}

/* set-up --------------------------------------------------------------------------------------- */

/* The block's sequence is so many (i32) behind the one that owns the first slot that is walked, and may be
 * past the last one. */
static Seq block_sequence(Chain *c, Val n) {
    Cg *cg = c->cg;
    Val N = cg_trunc32(cg, cg_frame_field(cg, FRAME_N)), chunk;
    n = chain_place_interval(c, n);
    n = cg_add(cg, n, seq_of_slot(cg, c->begin, c->s->chunk, &chunk).index);
    c->exists = cg_cmp(cg, LLVMIntSLT, n, N);
    return seq_of_index(cg, cg_select(cg, c->exists, n, cg_sub(cg, N, cg_int(cg, 1))), c->s->chunk);
}

static void place_block(Chain *c) {
    Cg *cg = c->cg;
    int tiles = divide_up(c->s->V, c->v_tile);
    c->tid = nv_tid(cg);
    c->lane = cg_and(cg, c->tid, cg_int(cg, 31));
    c->warp = nv_shuffle_from(cg, cg_shr(cg, c->tid, 5), cg_int(cg, 0));
    c->g = cg_shr(cg, c->lane, 2);
    c->t = cg_and(cg, c->lane, cg_int(cg, 3));
    Val block = nv_block(cg);
    Val tile = cg_urem(cg, block, cg_int(cg, tiles));
    block = cg_udiv(cg, block, cg_int(cg, tiles));
    c->heads = cg_trunc32(cg, cg_frame_field(cg, FRAME_H));
    c->head = cg_urem(cg, block, c->heads);
    Val factor_heads = cg_trunc32(cg, cg_frame_field(cg, FRAME_HF));
    c->factor_head = cg_udiv(cg, cg_mul(cg, c->head, factor_heads), c->heads);
    c->seq = block_sequence(c, cg_udiv(cg, block, c->heads));
    c->pool = pool_of_sequence(cg, &c->seq);
    c->v_first = cg_mul(cg, tile, cg_int(cg, c->v_tile));
    for (int h = 0; h < 2; h++) {
        Val in_warp = cg_add(cg, c->g, cg_int(cg, 8 * h));
        c->v[h] = cg_add(cg, cg_add(cg, c->v_first, cg_shl(cg, c->warp, 4)), in_warp);
        if (tiles * c->v_tile > c->s->V)
            c->v_live[h] = cg_cmp(cg, LLVMIntSLT, c->v[h], cg_int(cg, c->s->V));
        Val v = c->v_live[h] ? cg_select(cg, c->v_live[h], c->v[h], cg_int(cg, 0)) : c->v[h];
        c->at_v[h] = (ValueAt){.cg = cg, .token = cg_int64(cg, 0), .head = c->head,
                               .heads = c->heads, .base_k = cg_int(cg, 0), .base_v = v,
                               .n_k = 1, .n_v = 1};
        value_begin(&c->at_v[h]);
    }
    chain_sum_params(c);
    chain_recall(c);
}

void chain_each_element(Chain *c, Val state, Val (*place)(Cg *, Val k, Val v),
                        void (*visit)(Chain *, Val p, int n, int j)) {
    Cg *cg = c->cg;
    const System *s = c->s;
    for (int n = 0; n < s->kp / 8; n++)
        for (int j = 0; j < 4; j++) {
            Val k = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * n + j % 2));
            Val live = c->v_live[j / 2];
            if (8 * n + 8 > s->K) {
                Val in = cg_cmp(cg, LLVMIntSLT, k, cg_int(cg, s->K));
                live = live ? cg_and(cg, live, in) : in;
            }
            If exists = {0};
            if (live)
                exists = cg_if(cg, live);
            visit(c, cg_gep8(cg, state, place(cg, k, c->v[j / 2])), n, j);
            if (live)
                cg_end_if(cg, &exists);
        }
}

static void load_element(Chain *c, Val p, int n, int j) {
    cg_set(c->cg, c->state[n][j], pool_get(c->cg, p));
}

static void store_element(Chain *c, Val p, int n, int j) {
    Cg *cg = c->cg;
    Val x = cg_get(cg, c->state[n][j]);
    if (c->wgmma)
        x = cg_fmul(cg, x, cg_get(cg, c->unit[j / 2]));
    pool_put(cg, x, p);
}

static Val field(Chain *c, int which) {
    int at = c->gradient ? frame_gradient(c->k, which) : frame_segment(c->k, which);
    return cg_frame_field(c->cg, at);
}

/* If `here`, the state that the sequence starts from or leaves, at frame field `own`; a gradient's are not in
 * pools. */
static void visit_own(Chain *c, Val here, int own, bool load) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0), number = cg_zext64(cg, c->seq.index);
    here = cg_and(cg, here, cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, own), zero));
    if (!c->gradient) {
        number = own == FRAME_S0 ? c->pool.first : c->pool.last;
        here = cg_and(cg, here, cg_cmp(cg, LLVMIntSGE, number, zero));
    }
    If there = cg_if(cg, here);
    Val state = pool_state(cg, own, number, c->head);
    chain_each_element(c, state, pool_element, load ? load_element : store_element);
    cg_end_if(cg, &there);
}

/* That state (own -1: none), or where the sequence crosses the border of what is walked the one passed on at
 * address `at` (i64; 0: none). */
static void visit_border(Chain *c, Val crosses, Val at, int own, bool load) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0);
    If there = cg_if(cg, cg_and(cg, crosses, cg_cmp(cg, LLVMIntNE, at, zero)));
    if (!c->gradient) {
        Val bytes = cg_mul(cg, cg_zext64(cg, c->seq.index), chain_border_bytes(c));
        at = cg_add(cg, at, cg_select(cg, c->window, bytes, zero));
    }
    (load ? chain_take_over : chain_pass_on)(c, LLVMBuildIntToPtr(cg->b, at, cg->ptr_global, ""));
    cg_end_if(cg, &there);
    if (own >= 0)
        visit_own(c, LLVMBuildNot(cg->b, crosses, ""), own, load);
}

static void load_state(Chain *c) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0);
    for (int n = 0; n < c->s->kp / 8; n++)
        for (int j = 0; j < 4; j++)
            c->state[n][j] = cg_var(cg, cg->f32, cg_float(cg, 0));
    if (!c->back) {
        Val before = cg_cmp(cg, LLVMIntSGT, c->first, zero);
        visit_border(c, before, chain_state_in(c), FRAME_S0, true);
    } else {
        Val behind = cg_cmp(cg, LLVMIntSLT, cg_add(cg, c->first, c->count), c->chunks);
        visit_border(c, behind, field(c, GRAD_COSTATE_IN), frame_costate(c->k), true);
    }
}

static void store_state(Chain *c) {
    Cg *cg = c->cg;
    if (!c->back) {
        Val behind = cg_cmp(cg, LLVMIntSLT, cg_add(cg, c->first, c->count), c->chunks);
        visit_border(c, behind, field(c, SEGMENT_STATE_OUT), c->gradient ? -1 : FRAME_S, false);
    } else {
        Val before = cg_cmp(cg, LLVMIntSGT, c->first, cg_int64(cg, 0));
        visit_border(c, before, field(c, GRAD_COSTATE_OUT), frame_costate(c->k) + 1, false);
    }
}

/* the loop ------------------------------------------------------------------------------------- */

static Val barrier(Chain *c, Val which) {
    int64_t base = (int64_t)c->stages * c->stage_bytes;
    return cg_gep8(c->cg, nv_shared(c->cg, base), cg_shl(c->cg, which, 3));
}

/* The record by all threads, 16 bytes at a time. */
static void copy_by_threads(Chain *c, Val src, Val stage) {
    Cg *cg = c->cg;
    int units = (int)(c->copied / 16);
    Val mine = cg_shl(cg, c->tid, 4);
    for (int first = 0; first < units; first += c->threads) {
        If inside = {0};
        bool partial = first + c->threads > units;
        if (partial)
            inside = cg_if(cg, cg_cmp(cg, LLVMIntSLT, c->tid, cg_int(cg, units - first)));
        Val at = cg_add(cg, mine, cg_int(cg, first * 16));
        Val dst = cg_gep8(cg, nv_shared(cg, 0), cg_add(cg, stage, at));
        nv_copy_async(cg, dst, cg_gep8(cg, src, at), cg_int(cg, 16));
        if (partial)
            cg_end_if(cg, &inside);
    }
}

/* Which stage (i32) the chunk that is walked as number i (i64) has. */
static Val stage_of(Chain *c, Val i) {
    return cg_urem(c->cg, cg_trunc32(c->cg, i), cg_int(c->cg, c->stages));
}

static Val stage_offset(Chain *c, Val which) {
    return cg_mul(c->cg, which, cg_int(c->cg, c->stage_bytes));
}

/* The sequence's chunk that is walked as number i (i64). */
static Val chunk_number(Chain *c, Val i) {
    Cg *cg = c->cg;
    Val at = c->back ? cg_sub(cg, cg_sub(cg, c->count, cg_int64(cg, 1)), i) : i;
    return cg_add(cg, c->first, at);
}

static Val chunk_start(Chain *c, Val i) {
    return cg_mul(c->cg, chunk_number(c, i), cg_int64(c->cg, c->s->chunk));
}

/* The same of a chunk that may not be walked: there are no tokens then. A forward kernel spares the
 * registers: where its sequence goes on behind the segment it reads tokens that nobody uses. */
static Val next_start(Chain *c, Val i) {
    Cg *cg = c->cg;
    if (!c->gradient)
        return chunk_start(c, i);
    Val walked = cg_cmp(cg, LLVMIntSLT, i, c->count);
    return cg_select(cg, walked, chunk_start(c, i), c->seq.length);
}

static Val record_of(Chain *c, Val i) {
    Cg *cg = c->cg;
    Val number = cg_add(cg, c->own_record, chunk_number(c, i));
    Val record = cg_add(cg, cg_mul(cg, number, cg_frame_field(cg, FRAME_HF)),
                        cg_zext64(cg, c->factor_head));
    return cg_gep8(cg, nv_records(cg), cg_mul(cg, record, cg_int64(cg, c->s->ws_bytes)));
}

/* Start copying the record of the chunk that is walked as number i (i64) into stage `which` (i32). On Hopper
 * there may be no such chunk, and nothing branches. */
static void copy_record(Chain *c, Val i, Val which) {
    Cg *cg = c->cg;
    Val stage = stage_offset(c, which), src = record_of(c, i);
    if (!c->wgmma) {
        copy_by_threads(c, src, stage);
        return;
    }
    Val one = cg_and(cg, cg_cmp(cg, LLVMIntEQ, c->tid, cg_int(cg, 0)),
                     cg_cmp(cg, LLVMIntSLT, i, c->count));
    nv_copy_bulk_if(cg, one, cg_gep8(cg, nv_shared(cg, 0), stage), src, (int)c->copied,
                    barrier(c, which));
}

/* The inputs of the same chunk. */
static void copy_inputs(Chain *c, Val i, Val which) {
    chain_copy_inputs(c, next_start(c, i), stage_offset(c, which));
    nv_copy_commit(c->cg);
}

static void write_outs(Chain *c) {
    const Kernel *k = c->k;
    for (int v = 0; v < k->inst.count && !c->gradient; v++)
        if (inst_at(k, v)->op == OP_out)
            chain_store_out(c, inst_at(k, v)->index, inst_at(k, v)->arg[0]);
}

/* Everything that `here`'s copies bring, for all threads. */
static void wait_for_copies(Chain *c, Val number, Val here) {
    Cg *cg = c->cg;
    if (c->wgmma) {
        Val round = cg_udiv(cg, cg_trunc32(cg, number), cg_int(cg, c->stages));
        nv_arrival_wait(cg, barrier(c, here), cg_and(cg, round, cg_int(cg, 1)));
    }
    nv_copy_wait(cg, c->stages - 2);
    nv_barrier(cg);
}

static void read_state(Chain *c) {
    (c->back ? reverse_read : chain_read_state)(c);
}

static void save_state(Chain *c) {
    const System *s = c->s;
    if (!s->trail)
        return;
    if (c->wgmma)
        chain_units(c, c->state_scale);
    chain_save_state(c, c->back ? s->ws_ds : s->ws_s, c->back ? s->ws_unit_ds : s->ws_unit_s,
                     c->state_scale);
}

static void mix(Chain *c) {
    (c->back ? reverse_mix : chain_mix)(c);
}

static void save_rows(Chain *c) {
    const System *s = c->s;
    if (c->back)
        chain_save_rows(c, chain_get(c, c->gradient->dX), s->ws_dx, s->ws_unit_dx);
    else if (s->trail)
        chain_save_rows(c, chain_get(c, s->X), s->ws_x, s->ws_unit_x);
}

static void advance(Chain *c) {
    (c->back ? reverse_advance : chain_advance)(c);
}

/* The next chunk's copies first, so that they have the longest time. */
static void chunk_by_warps(Chain *c, Val next, Val other) {
    Cg *cg = c->cg;
    If more = cg_if(cg, cg_cmp(cg, LLVMIntSLT, next, c->count));
    copy_record(c, next, other);
    copy_inputs(c, next, other);
    chain_rows(c, chunk_start(c, next), stage_offset(c, other));
    cg_end_if(cg, &more);
    read_state(c);
    save_state(c);
    mix(c);
    save_rows(c);
    write_outs(c);
    advance(c);
}

/* The next chunk's copies while the first products run; a gradient, which waits for memory more than for
 * products, asks for the record before them. */
static void chunk_by_warpgroups(Chain *c, Val next, Val other) {
    if (c->gradient)
        copy_record(c, next, other);
    chain_rows_ahead(c, next_start(c, next));
    read_state(c);
    if (!c->gradient)
        copy_record(c, next, other);
    copy_inputs(c, next, other);
    save_state(c);
    mix(c);
    save_rows(c);
    write_outs(c);
    chain_rows_store(c, stage_offset(c, other));
    advance(c);
}

/* What the loop expects to be under way: all stages but one are asked for. */
static void ask_for_first(Chain *c) {
    Cg *cg = c->cg;
    for (int n = 0; n < c->stages - 1; n++) {
        Val i = cg_int64(cg, n), which = cg_int(cg, n);
        copy_record(c, i, which);
        copy_inputs(c, i, which);
        If there = cg_if(cg, cg_cmp(cg, LLVMIntSLT, i, c->count));
        chain_rows(c, chunk_start(c, i), stage_offset(c, which));
        cg_end_if(cg, &there);
    }
}

static void walk_chunks(Chain *c) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0);
    If any = cg_if(cg, cg_cmp(cg, LLVMIntSGT, c->count, zero));
    ask_for_first(c);
    cg_end_if(cg, &any);
    Loop chunk = cg_for(cg, zero, c->count, 1, false);
    Val here = stage_of(c, chunk.i);
    if (cg->opt->save_every > 0 && !c->gradient)
        chain_save_start(c, chunk_number(c, chunk.i));
    wait_for_copies(c, chunk.i, here);
    c->stage = stage_offset(c, here);
    c->start = chunk_start(c, chunk.i);
    c->record = c->s->trail ? record_of(c, chunk.i) : NULL;
    chain_begin_values(c);
    Val next = cg_add(cg, chunk.i, cg_int64(cg, c->stages - 1)), other = stage_of(c, next);
    (c->wgmma ? chunk_by_warpgroups : chunk_by_warps)(c, next, other);
    cg_end_for(cg, &chunk);
    nv_copy_wait(cg, 0);
}

static void init_barriers(Chain *c) {
    Cg *cg = c->cg;
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, c->tid, cg_int(cg, 0)));
    for (int i = 0; i < c->stages; i++)
        nv_arrival_init(cg, barrier(c, cg_int(cg, i)));
    cg_end_if(cg, &one);
    nv_barrier(cg);
}

static Val between(Cg *cg, Val x, Val low, Val high) {
    x = cg_select(cg, cg_cmp(cg, LLVMIntSLT, x, low), low, x);
    return cg_select(cg, cg_cmp(cg, LLVMIntSGT, x, high), high, x);
}

/* A window has the same chunks of every sequence, and no others of it have records. */
static void place_window(Chain *c) {
    Cg *cg = c->cg;
    Val chunks = field(c, SEGMENT_CHUNKS), first = field(c, SEGMENT_CHUNK);
    c->window = cg_cmp(cg, LLVMIntNE, chunks, cg_int64(cg, 0));
    Val begin = cg_add(cg, c->seq.slot, first), end = cg_add(cg, begin, chunks);
    Val own = cg_sub(cg, cg_mul(cg, cg_zext64(cg, c->seq.index), chunks), first);
    c->begin = cg_select(cg, c->window, begin, c->begin);
    c->end = cg_select(cg, c->window, end, c->end);
    c->own_record = cg_select(cg, c->window, own, c->own_record);
}

/* Which chunks are walked. */
static void place_walk(Chain *c) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0);
    c->own_record = cg_sub(cg, c->seq.slot, field(c, SEGMENT_SLOT));
    if (!c->gradient)
        place_window(c);
    Val up = cg_add(cg, c->seq.length, cg_int64(cg, c->s->chunk - 1));
    c->chunks = cg_udiv(cg, up, cg_int64(cg, c->s->chunk));
    Val begin = cg_sub(cg, c->begin, c->seq.slot), end = cg_sub(cg, c->end, c->seq.slot);
    c->first = between(cg, begin, zero, c->chunks);
    c->count = cg_sub(cg, between(cg, end, zero, c->chunks), c->first);
}

/* A sequence none of whose chunks is walked here is left alone; one that has no chunks still hands its
 * state or costate on. */
static void build_block(Chain *c) {
    Cg *cg = c->cg;
    Val zero = cg_int64(cg, 0);
    place_block(c);
    place_walk(c);
    if (c->wgmma) {
        chain_wgmma_plan(c);
        init_barriers(c);
    }
    Val some = cg_cmp(cg, LLVMIntSGT, c->count, zero);
    some = cg_or(cg, some, cg_cmp(cg, LLVMIntEQ, c->chunks, zero));
    If here = cg_if(cg, cg_and(cg, c->exists, some));
    load_state(c);
    walk_chunks(c);
    store_state(c);
    cg_end_if(cg, &here);
}

bool chain_build(Chain *c, CgModule *out, const char **why) {
    Cg *cg = c->cg;
    if (!chain_plan_values(c, why) || !choose_schedule(c, cg->opt->v_tile, why))
        return false;
    char *symbol = arena_alloc(cg->arena, strlen(cg->k->name) + 64);
    snprintf(symbol, strlen(cg->k->name) + 64, "%s%s_%s_v%d", cg->opt->prefix ? cg->opt->prefix : "",
             cg->k->name, c->back ? "reverse" : "chain", c->v_tile);
    nv_kernel_open(cg, symbol, c->threads, 1);
    build_block(c);
    nv_kernel_close(cg);
    VEC_PUSH(cg->arena, &out->entry,
             ((CgEntry){.kind = c->back ? ENTRY_reverse : ENTRY_chain, .symbol = symbol,
                        .threads = c->threads, .smem_bytes = c->sh_bytes, .v_tile = c->v_tile}));
    return true;
}

bool nv_build_chain(Cg *cg, CgModule *out, const char **why) {
    Chain *c = NEW(cg->arena, Chain);
    Gradient *g = NEW(cg->arena, Gradient);
    if (kernel_is_gradient(cg->k)) {
        if (!nv_gradient(cg->arena, cg->k, g, why))
            return false;
        g->s.families = g->s.erase;
        c->gradient = g;
    } else if (!nv_system_of(cg->arena, cg->k, cg->opt, &g->s, why)) {
        return false;
    }
    c->cg = cg;
    c->k = cg->k;
    c->s = &g->s;
    c->copied = g->s.trail && !c->gradient ? g->s.ws_reversed : g->s.ws_copied;
    return chain_build(c, out, why);
}
