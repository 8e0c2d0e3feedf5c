/* The factor kernel: one block = one chunk of one head, everything that does not need the state.
 *
 *   reduce    row sums (l2norm, ...) over channels                 registers
 *   rows      inputs -> keys, left rows, decays; diagonal scores   keys, stash in shared memory
 *   blocks    scores between 16-row blocks; W_f                    W_f to the workspace
 *   tail      Kt, D                                                D to the workspace
 *   solve     A = (I + T)^-1                                       f32 in shared memory
 *   products  M_f = Aq A, P = A' Kt                                to the workspace
 *
 * A lane loads 8 consecutive channels of two rows as they lie in memory and uses them directly as
 * matrix fragments: within a k-step the order of channels is free as long as both operands agree.
 */
#include "codegen/nvptx/gradient.h"

#include <stdio.h>

/* values of rows ------------------------------------------------------------------------------- */

/* 8 channels (or one element) of a token value for half h, `fill` where the row has no token. */
static void token_value(Factor *f, int v, int h, double fill, int n, Val *out) {
    Cg *cg = f->cg;
    ValueAt *at = &f->at[h];
    const Val *x = value_get(at, v);
    int count = value_count(at, v);
    bool live = value_at_rest(f->k, v) == fill;
    for (int e = 0; e < n; e++) {
        out[e] = x[count > 1 ? e : 0];
        if (!live)
            out[e] = cg_select(cg, f->row_live[h], out[e], cg_float(cg, fill));
        Val exists = n > 1 ? value_exists(at, AXIS_K, e) : NULL;
        if (exists)
            out[e] = cg_select(cg, exists, out[e], cg_float(cg, fill));
    }
}

static void lattice_value(Factor *f, int v, int position, int h, double fill, int n, Val *out) {
    Cg *cg = f->cg;
    const Inst *i = inst_at(f->k, v);
    bool weave = i->op == OP_weave;
    if (f->s->slots == 1) {
        token_value(f, weave ? i->arg[0] : v, h, fill, n, out);
        return;
    }
    for (int e = 0; e < n; e++)
        out[e] = cg_float(cg, fill);
    for (int s = 0; s < f->s->slots; s++) {
        bool other = f->s->slots % 2 == 0 && s % 2 != h; /* half h is an even or an odd row */
        if (other || (!weave && s != position))
            continue;
        Val x[8], here = cg_cmp(cg, LLVMIntEQ, f->row_slot[h], cg_int(cg, s));
        token_value(f, weave ? i->arg[s] : v, h, fill, n, x);
        for (int e = 0; e < n; e++)
            out[e] = cg_select(cg, here, x[e], out[e]);
    }
}

void factor_row(Factor *f, int v, int position, int h, double fill, Val out[8]) {
    lattice_value(f, v, position, h, fill, 8, out);
}

Val factor_row_scalar(Factor *f, int v, int h, double fill) {
    Val x;
    lattice_value(f, v, -1, h, fill, 1, &x);
    return x;
}

/* set-up --------------------------------------------------------------------------------------- */

Val factor_ws_unit(Factor *f, int64_t base, int columns, Val row, Val unit) {
    Cg *cg = f->cg;
    Val place = nv_place(cg, f->s->rows, columns, row, unit);
    return cg_gep8(cg, f->record, cg_add(cg, cg_shl(cg, place, 4), cg_int(cg, base)));
}

Val factor_ws_pair(Factor *f, int64_t base, int columns, Val row, Val column) {
    Cg *cg = f->cg;
    Val unit = factor_ws_unit(f, base, columns, row, cg_shr(cg, column, 3));
    return cg_gep8(cg, unit, cg_shl(cg, cg_and(cg, column, cg_int(cg, 7)), 1));
}

int factor_matrix_base(const Factor *f, int family) {
    const System *s = f->s;
    if (family == 0)
        return f->sh_t;
    return f->sh_q + (family - 1) * s->rows * factor_pair_stride(s) * 2;
}

static int larger_of(int a, int b) { return a > b ? a : b; }

static void plan_shared(Factor *f) {
    const System *s = f->s;
    int at = 0, threads = 32 * s->warps;
    int stash = s->families * 2 * (s->kp / SLAB) * threads * 16;
    f->sh_p = at;
    at += s->rows * s->kp * 2;
    f->sh_total = at;
    at += s->a_key ? s->warps * s->kp * 4 : 0;
    f->sh_total_pair = at;
    at += s->a_key ? (s->warps + 1) * s->kp * 2 : 0;
    f->sh_scale = at;
    at += MAX_WARPS * 4;
    f->sh_row = at;
    at += s->a >= 0 && !s->a_key ? s->rows * (ROW_TABLE + 2) * 4 + MAX_WARPS * 4 : 0;
    f->sh_keys = at;
    at += s->p_scaled ? s->rows * 4 : 0;
    f->sh_left = f->sh_t = at;
    f->sh_low_left = at + stash;
    f->sh_low_p = f->sh_low_left + (s->split ? 2 * (s->kp / SLAB) * threads * 16 : 0);
    f->sh_stage = f->sh_low_p + (s->split ? s->rows * s->kp * 2 : 0);
    int pairs = s->rows * factor_pair_stride(s) * 2;
    f->sh_a[0] = f->sh_t;
    f->sh_a[1] = f->sh_t + pairs;
    f->sh_q = f->sh_t + larger_of(2 * pairs, s->rows * factor_g_stride(s) * 4);
    int scores = s->erase ? factor_matrix_base(f, s->families) - at : 0;
    f->sh_bytes = larger_of(f->sh_stage + factor_stage_bytes(f), at + scores);
}

/* Blocks an SM is to hold. Vector decay wants its registers; scalar decay makes do with 128. */
static int blocks_per_sm(const Factor *f) {
    int threads = 32 * f->s->warps, registers = f->s->a_key ? 168 : 128;
    int by_registers = 65536 / (threads * registers);
    int by_memory = f->cg->target->smem_limit / (f->sh_bytes + 1024);
    int blocks = by_memory < by_registers ? by_memory : by_registers;
    return blocks > 0 ? blocks : 1;
}

/* Out rows are kept on their token's last lattice row: a rotation within the token (rows of no token
 * stay where they are). */
Val factor_stored_row(Factor *f, int family, Val row) {
    Cg *cg = f->cg;
    const System *s = f->s;
    if (s->slots == 1 || (s->erase && family == 0))
        return row;
    Val slots = cg_int(cg, s->slots), token = cg_udiv(cg, row, slots);
    Val turned = cg_add(cg, cg_urem(cg, row, slots),
                        cg_int(cg, s->slots - 1 - s->family[family].position));
    Val stored = cg_add(cg, cg_mul(cg, token, slots), cg_urem(cg, turned, slots));
    Val in_chunk = cg_cmp(cg, LLVMIntSLT, token, cg_int(cg, s->chunk));
    return cg_select(cg, in_chunk, stored, row);
}

void factor_place_rows(Factor *f, Seq seq, Val start, Val head, Val heads) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val past = value_past(cg, seq.index, head, heads);
    for (int h = 0; h < 2; h++) {
        Val row = cg_add(cg, cg_shl(cg, f->warp, 4), cg_shl(cg, f->g, 1));
        row = cg_add(cg, row, cg_int(cg, h));
        Val token = row;
        f->row[h] = row;
        if (s->slots > 1) {
            token = cg_udiv(cg, row, cg_int(cg, s->slots));
            f->row_slot[h] = cg_urem(cg, row, cg_int(cg, s->slots));
        }
        for (int i = 0; i < s->families; i++)
            f->stored_row[i][h] = factor_stored_row(f, i, row);
        Val in_seq = cg_add(cg, start, cg_zext64(cg, token));
        Val live = cg_cmp(cg, LLVMIntSLT, in_seq, seq.length);
        if (s->chunk * s->slots < s->rows)
            live = cg_and(cg, live, cg_cmp(cg, LLVMIntSLT, token, cg_int(cg, s->chunk)));
        f->row_live[h] = live;
        in_seq = cg_select(cg, live, in_seq, start);
        f->at[h] = (ValueAt){
            .cg = cg, .token = cg_add(cg, seq.begin, in_seq), .valid = live,
            .zeros = value_zeros(cg), .begin = seq.begin, .past = past,
            .first = cg_cmp(cg, LLVMIntEQ, in_seq, cg_int64(cg, 0)), .head = head, .heads = heads,
            .base_k = cg_int(cg, 0), .base_v = cg_int(cg, 0), .n_k = 8, .n_v = 1,
            .lookup = factor_lookup, .sum = factor_no_sum, .user = f, .scan = s->scan,
            .round = SCAN_ALL};
        if (s->kp > s->K)
            f->at[h].past_k = true;
        value_ports(&f->at[h]);
        f->sum[h] = NEW_ARRAY(cg->arena, Var, f->k->inst.count);
        f->loaded[h] = NEW_ARRAY(cg->arena, Val *, f->k->inst.count);
    }
}

static void build_body(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    factor_copy_ahead(f, cg_int(cg, 0));
    factor_reduce(f);
    if (s->trail)
        factor_save_sums(f);
    factor_scale_rows(f);
    (s->a_key ? factor_rows_pass : factor_scalar_rows_pass)(f);
    nv_barrier(cg);
    (s->a_key ? factor_off_diagonal : factor_scalar_blocks)(f);
    nv_barrier(cg);
    factor_store_scores(f);
    (s->a_key ? factor_tail : factor_scalar_tail)(f);
    nv_barrier(cg);
    if (s->erase)
        factor_solve(f);
    factor_products(f);
}

bool nv_build_factor(Cg *cg, CgModule *out, const char **why) {
    System s;
    if (!nv_system_of(cg->arena, cg->k, cg->opt, &s, why))
        return false;
    Factor *f = NEW(cg->arena, Factor);
    f->cg = cg;
    f->k = cg->k;
    f->s = &s;
    factor_plan_stage(f);
    if (!factor_sums_fit(f, why))
        return false;
    plan_shared(f);
    if (f->sh_bytes > cg->target->smem_limit) {
        *why = "the factor kernel needs more shared memory than this GPU has: use smaller chunks";
        return false;
    }
    char *symbol = arena_alloc(cg->arena, strlen(cg->k->name) + 64);
    snprintf(symbol, strlen(cg->k->name) + 64, "%s%s_factor", cg->opt->prefix ? cg->opt->prefix : "",
             cg->k->name);
    int threads = 32 * s.warps;
    nv_kernel_open(cg, symbol, threads, blocks_per_sm(f));

    Val tid = nv_tid(cg), heads = cg_trunc32(cg, cg_frame_field(cg, FRAME_HF));
    f->lane = cg_and(cg, tid, cg_int(cg, 31));
    f->warp = nv_shuffle_from(cg, cg_shr(cg, tid, 5), cg_int(cg, 0));
    f->g = cg_shr(cg, f->lane, 2);
    f->t = cg_and(cg, f->lane, cg_int(cg, 3));
    Val head = cg_urem(cg, nv_block(cg), heads), chunk;
    Val slot = seq_slot_of_record(cg, cg_udiv(cg, nv_block(cg), heads), s.chunk);
    Seq seq = seq_of_slot(cg, slot, s.chunk, &chunk);
    Val start = cg_mul(cg, chunk, cg_int64(cg, s.chunk));
    Val record = cg_mul(cg, cg_zext64(cg, nv_block(cg)), cg_int64(cg, s.ws_bytes));
    f->record = cg_gep8(cg, nv_records(cg), record);
    If some = cg_if(cg, cg_cmp(cg, LLVMIntSLT, start, seq.length));
    factor_place_rows(f, seq, start, head, heads);
    build_body(f);
    cg_end_if(cg, &some);
    nv_kernel_close(cg);
    out->ws_bytes_per_slot_head = s.ws_bytes;
    out->records = s.trail ? nv_record_number(cg->k, &s) : 0;
    out->chunk = s.chunk;
    VEC_PUSH(cg->arena, &out->entry,
             ((CgEntry){.kind = ENTRY_factor, .symbol = symbol, .threads = threads,
                        .smem_bytes = f->sh_bytes}));
    return true;
}
