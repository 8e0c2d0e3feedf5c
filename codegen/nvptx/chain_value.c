/* Elementwise values of the chain, as fragments of the block's V columns and the chunk's rows.
 *
 * Leaves: state reads and products (set by chain_gemm.c); values in memory with the V axis (inputs, what
 * is made ahead), staged by chain_stage.c; values of one token (gates, norms), worked out by one thread a
 * row when the chunk is staged; values of V alone.
 *
 * Under prev a fragment is that of the tokens before the rows' own: c->earlier says how many. A staged
 * tile then begins that much earlier, and single tokens have a row of values for each distance.
 */
#include "codegen/nvptx/chain.h"

static bool per_token(Shape s) { return shape_has(s, AXIS_C) || shape_has(s, AXIS_R); }
static bool is_fragment(Shape s) { return per_token(s) && shape_has(s, AXIS_V); }

/* planning ------------------------------------------------------------------------------------- */

static bool is_leaf(const Chain *c, int v) {
    for (int f = 0; f < c->s->families; f++)
        if (v == c->s->family[f].read || v == c->s->family[f].mixed)
            return true;
    return false;
}

static bool in_memory(const Chain *c, int v) {
    return inst_at(c->k, v)->op == OP_in || scan_stored(c->s->scan, v);
}

static bool plan_staged(Chain *c, int v, int earlier, const char **why) {
    for (int i = 0; i < c->nstaged; i++)
        if (c->staged[i].value == v) {
            if (c->staged[i].earlier < earlier)
                c->staged[i].earlier = earlier;
            return true;
        }
    if (c->nstaged == MAX_STAGED) {
        *why = "more value-side inputs than the GPU chain kernel stages";
        return false;
    }
    const Inst *i = inst_at(c->k, v);
    Elem e = i->op == OP_in ? c->k->in.at[i->index].elem : ELEM_f32;
    c->staged[c->nstaged++] = (Staged){.value = v, .elem = e, .earlier = earlier,
                                       .copied = c->s->V * elem_size(e) % 16 == 0};
    return true;
}

static int find_row_value(const Chain *c, int v, int earlier) {
    int i = 0;
    while (i < c->nrow_values && (c->row_value[i].value != v || c->row_value[i].earlier != earlier))
        i++;
    return i;
}

static bool plan_row_value(Chain *c, int v, int earlier, const char **why) {
    if (find_row_value(c, v, earlier) < c->nrow_values)
        return true;
    bool *needed = NEW_ARRAY(c->cg->arena, bool, c->k->inst.count);
    value_mark(c->k, v, needed);
    for (int u = 0; u < v; u++)
        if (needed[u] && inst_at(c->k, u)->op == OP_contract) {
            *why = "a sum over value channels of what is read from the state has no GPU chunk kernel: "
                   "use the recurrent algorithm";
            return false;
        }
    if (c->nrow_values == MAX_ROW_VALUES) {
        *why = "more per-token scalars than the GPU chain kernel holds";
        return false;
    }
    c->row_value[c->nrow_values++] = (RowValue){v, earlier};
    return true;
}

static bool plan_value(Chain *c, int v, int earlier, const char **why) {
    const Inst *i = inst_at(c->k, v);
    bool *planned = &c->planned[earlier * c->k->inst.count + v];
    if (*planned || is_leaf(c, v) || !per_token(i->shape))
        return true;
    *planned = true;
    if (!is_fragment(i->shape))
        return plan_row_value(c, v, earlier, why);
    if (in_memory(c, v))
        return plan_staged(c, v, earlier, why);
    if (i->op == OP_turn) {
        *why = "turn over value channels of what is read from the state has no GPU chunk kernel: "
               "use the recurrent algorithm";
        return false;
    }
    if (i->op == OP_prev && earlier == MAX_EARLIER) {
        *why = "the GPU chain kernel looks at most three tokens back";
        return false;
    }
    bool simple = op_info[i->op].class == CLASS_PURE || i->op == OP_weave || i->op == OP_rename ||
                  i->op == OP_prev;
    if (!simple && c->back) {
        *why = "what an out's reads are multiplied by depends on the state: no GPU chunk gradient";
        return false;
    }
    CHECK(simple);
    for (int j = 0; j < i->nargs; j++)
        if (!plan_value(c, i->arg[j], earlier + (i->op == OP_prev), why))
            return false;
    return true;
}

static bool plan_values(Chain *c, const char **why) {
    for (int f = c->s->erase; f < c->s->families && c->back; f++)
        if (!plan_value(c, c->gradient->family[f].left, 0, why))
            return false;
    if (c->back)
        return true;
    if (!plan_value(c, c->s->X, 0, why))
        return false;
    for (int v = 0; v < c->k->inst.count && !c->gradient; v++)
        if (inst_at(c->k, v)->op == OP_out && !plan_value(c, inst_at(c->k, v)->arg[0], 0, why))
            return false;
    return true;
}

bool chain_plan_values(Chain *c, const char **why) {
    int count = c->k->inst.count;
    c->planned = NEW_ARRAY(c->cg->arena, bool, (MAX_EARLIER + 1) * count);
    c->recalled = NEW_ARRAY(c->cg->arena, int, count);
    if (!plan_values(c, why))
        return false;
    for (int v = 0; v < count; v++) {
        const Inst *i = inst_at(c->k, v);
        bool recalls = false;
        for (int earlier = 0; earlier <= MAX_EARLIER && !kernel_is_gradient(c->k); earlier++)
            recalls = recalls || c->planned[earlier * count + v];
        recalls = recalls && i->op == OP_prev && is_fragment(i->shape);
        c->recalled[v] = recalls ? c->nrecalled++ : -1;
    }
    return true;
}

/* values of one token -------------------------------------------------------------------------- */

/* A sum of params, finished by one thread: a loop over the axis, 8 elements at a time. */
static bool sum_by_loop(ValueAt *at, int v, Val *out) {
    const Inst *i = inst_at(at->cg->k, v);
    if (i->op != OP_sum)
        return false;
    Cg *cg = at->cg;
    ValueAt part = *at;
    part.memo = NULL;
    part.n_k = part.n_v = 8;
    part.past_k = part.past_v = false;
    Var acc = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop run = cg_for(cg, cg_int(cg, 0), cg_int(cg, cg->k->axis.at[i->axis].size), 8, false);
    part.base_k = part.base_v = run.i;
    value_begin(&part);
    Val x[8], sum = cg_get(cg, acc);
    value_get_padded(&part, i->arg[0], x);
    for (int e = 0; e < 8; e++)
        sum = cg_fadd(cg, sum, x[e]);
    cg_set(cg, acc, sum);
    cg_end_for(cg, &run);
    out[0] = cg_get(cg, acc);
    return true;
}

/* Sums of params are the same in every thread and chunk: once, before there are products under way. */
void chain_sum_params(Chain *c) {
    const Kernel *k = c->k;
    bool *needed = NEW_ARRAY(c->cg->arena, bool, k->inst.count);
    value_mark(k, c->s->X, needed);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_out)
            value_mark(k, v, needed);
    for (int v = 0; v < k->inst.count; v++)
        for (int h = 0; h < 2; h++)
            if (needed[v] && inst_at(k, v)->op == OP_sum && value_is_constant(k, v)) {
                c->at_v[h].lookup = sum_by_loop;
                value_get(&c->at_v[h], v);
            }
}

/* This thread's place for what prev v gives at its column h. */
static Val recall_place(Chain *c, int v, int h) {
    Cg *cg = c->cg;
    int64_t offset = c->recall_offset + (int64_t)(2 * c->recalled[v] + h) * c->threads * 4;
    return cg_gep8(cg, nv_shared(cg, offset), cg_shl(cg, c->tid, 2));
}

/* Before there are products under way, so that no branch stands among them; and not into registers, which
 * would be held from chunk to chunk for the sake of the first. */
void chain_recall(Chain *c) {
    Cg *cg = c->cg;
    c->past = value_past(cg, c->seq.index, c->head, c->heads);
    for (int v = 0; v < c->k->inst.count; v++)
        for (int h = 0; h < 2 && c->recalled[v] >= 0; h++) {
            Val x = cg_float(cg, 0);
            c->at_v[h].past = c->past;
            value_recall(&c->at_v[h], v, c->v_live[h], &x);
            cg_store(cg, x, recall_place(c, v, h), 4);
        }
}

static bool sum_of_params(ValueAt *at, int v, Val *out) {
    Chain *c = at->user;
    if (inst_at(c->k, v)->op != OP_sum || per_token(inst_at(c->k, v)->shape))
        return false;
    out[0] = value_get(&c->at_v[0], v)[0];
    return true;
}

/* The row values of lattice row `row` (i32) in the chunk that begins at `start`. */
static void evaluate_row(Chain *c, Val start, Val row, Val *x) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val token = s->slots > 1 ? cg_udiv(cg, row, cg_int(cg, s->slots)) : row;
    Val in_seq = cg_add(cg, start, cg_zext64(cg, token));
    Val live = cg_cmp(cg, LLVMIntSLT, in_seq, c->seq.length);
    in_seq = cg_select(cg, live, in_seq, cg_int64(cg, 0));
    ValueAt at = {.cg = cg, .token = cg_add(cg, c->seq.begin, in_seq), .valid = live,
                  .first = cg_cmp(cg, LLVMIntEQ, in_seq, cg_int64(cg, 0)), .begin = c->seq.begin,
                  .past = c->past,
                  .head = c->head, .heads = c->heads, .base_k = cg_int(cg, 0),
                  .base_v = cg_int(cg, 0), .n_k = 1, .n_v = 1, .lookup = sum_of_params, .user = c,
                  .scan = s->scan, .round = SCAN_ALL};
    value_begin(&at);
    for (int i = 0; i < c->nrow_values; i++) {
        ValueAt *there = &at;
        CHECK(inst_at(c->k, c->row_value[i].value)->op != OP_weave);
        for (int n = 0; n < c->row_value[i].earlier; n++)
            there = value_before(there);
        x[i] = value_get(there, c->row_value[i].value)[0];
    }
}

static void store_row(Chain *c, Val stage, Val row, const Val *x) {
    Cg *cg = c->cg;
    for (int i = 0; i < c->nrow_values; i++) {
        Val index = cg_add(cg, row, cg_int(cg, i * c->s->rows));
        Val p = cg_gep8(cg, nv_shared(cg, c->row_value_offset), stage);
        cg_store(cg, x[i], cg_gep8(cg, p, cg_shl(cg, index, 2)), 4);
    }
}

void chain_rows(Chain *c, Val start, Val stage) {
    Cg *cg = c->cg;
    if (c->nrow_values == 0)
        return;
    Val x[MAX_ROW_VALUES];
    Loop row = cg_for(cg, c->tid, cg_int(cg, c->s->rows), c->threads, false);
    evaluate_row(c, start, row.i, x);
    store_row(c, stage, row.i, x);
    cg_end_for(cg, &row);
}

void chain_rows_ahead(Chain *c, Val start) {
    Cg *cg = c->cg;
    if (c->nrow_values == 0)
        return;
    CHECK(c->threads >= c->s->rows);
    Val x[MAX_ROW_VALUES];
    for (int i = 0; i < c->nrow_values; i++)
        c->row_ahead[i] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Val begun = cg_cmp(cg, LLVMIntSLT, start, c->seq.length);
    Val mine = cg_cmp(cg, LLVMIntSLT, c->tid, cg_int(cg, c->s->rows));
    If row = cg_if(cg, cg_and(cg, begun, mine));
    evaluate_row(c, start, c->tid, x);
    for (int i = 0; i < c->nrow_values; i++)
        cg_set(cg, c->row_ahead[i], x[i]);
    cg_end_if(cg, &row);
}

void chain_rows_store(Chain *c, Val stage) {
    Cg *cg = c->cg;
    if (c->nrow_values == 0)
        return;
    Val x[MAX_ROW_VALUES];
    for (int i = 0; i < c->nrow_values; i++)
        x[i] = cg_get(cg, c->row_ahead[i]);
    If row = cg_if(cg, cg_cmp(cg, LLVMIntSLT, c->tid, cg_int(cg, c->s->rows)));
    store_row(c, stage, c->tid, x);
    cg_end_if(cg, &row);
}

/* fragments ------------------------------------------------------------------------------------ */

static void load_row_value(Chain *c, int v, Val *x) {
    Cg *cg = c->cg;
    int i = find_row_value(c, v, c->earlier);
    CHECK(i < c->nrow_values);
    for (int n = 0; n < c->s->rows / 8; n++) {
        int64_t offset = c->row_value_offset + (int64_t)(i * c->s->rows + 8 * n) * 4;
        Val p = cg_gep8(cg, nv_shared(cg, offset), cg_add(cg, c->stage, cg_shl(cg, c->t, 3)));
        Val two = cg_load(cg, LLVMVectorType(cg->f32, 2), p, 8);
        for (int j = 0; j < 4; j++)
            x[4 * n + j] = cg_extract(cg, two, j % 2);
    }
}

/* Values of V or of nothing: known for the block's whole life. */
static void load_constant(Chain *c, int v, Val *x) {
    Val at[2] = {value_get(&c->at_v[0], v)[0], value_get(&c->at_v[1], v)[0]};
    for (int i = 0; i < chain_fragment(c); i++)
        x[i] = at[i / 2 % 2];
}

static void weave(Chain *c, const Inst *w, Val *x) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val left = chain_tokens_left(c, c->start);
    bool all_rest = s->chunk * s->slots == s->rows;
    int step = s->slots % 2 == 0 ? 2 : 1; /* an even number of slots: even ones stand on even rows */
    for (int a = 0; a < w->nargs; a++) {
        const Val *slot = chain_get(c, w->arg[a]);
        all_rest = all_rest && value_at_rest(c->k, w->arg[a]) == w->num;
        for (int i = a % step; i < chain_fragment(c); i += step) {
            Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
            Val here = a < step ? NULL : cg_cmp(cg, LLVMIntEQ, cg_urem(cg, row, cg_int(cg, s->slots)),
                                                cg_int(cg, a));
            x[i] = here ? cg_select(cg, here, slot[i], x[i]) : slot[i];
        }
    }
    for (int i = 0; !all_rest && i < chain_fragment(c); i++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
        Val token = s->slots > 1 ? cg_udiv(cg, row, cg_int(cg, s->slots)) : row;
        Val live = cg_cmp(cg, LLVMIntSLT, token, left);
        if (s->chunk * s->slots < s->rows)
            live = cg_and(cg, live, cg_cmp(cg, LLVMIntSLT, token, cg_int(cg, s->chunk)));
        x[i] = cg_select(cg, live, x[i], cg_float(cg, w->num));
    }
}

static Val **remembered(Chain *c, int v) {
    return &c->memo[c->earlier * c->k->inst.count + v];
}

void chain_begin_values(Chain *c) {
    size_t count = (size_t)(MAX_EARLIER + 1) * (size_t)c->k->inst.count;
    if (!c->memo)
        c->memo = NEW_ARRAY(c->cg->arena, Val *, (int)count);
    memset(c->memo, 0, count * sizeof *c->memo);
}

void chain_set(Chain *c, int v, const Val *x) {
    Val *copy = NEW_ARRAY(c->cg->arena, Val, MAX_FRAGMENT);
    memcpy(copy, x, (size_t)chain_fragment(c) * sizeof *x);
    *remembered(c, v) = copy;
}

/* Of the tokens before; where there is none, what is remembered of them. */
static void load_before(Chain *c, int v, Val *x) {
    Cg *cg = c->cg;
    const Inst *i = inst_at(c->k, v);
    int earlier = c->earlier++;
    memcpy(x, chain_get(c, i->arg[0]), (size_t)chain_fragment(c) * sizeof *x);
    c->earlier = earlier;
    Val recalled[2] = {cg_float(cg, 0), cg_float(cg, 0)};
    for (int h = 0; h < 2 && c->recalled[v] >= 0; h++)
        recalled[h] = cg_load(cg, cg->f32, recall_place(c, v, h), 4);
    for (int j = 0; j < chain_fragment(c); j++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (j / 4) + j % 2));
        Val token = cg_add(cg, c->start, cg_zext64(cg, chain_token_of_row(c, row)));
        Val first = cg_cmp(cg, LLVMIntSLE, token, cg_int64(cg, earlier));
        x[j] = cg_select(cg, first, recalled[j / 2 % 2], x[j]);
    }
}

const Val *chain_get(Chain *c, int v) {
    if (*remembered(c, v))
        return *remembered(c, v);
    const Inst *i = inst_at(c->k, v);
    Val x[MAX_FRAGMENT];
    if (!per_token(i->shape)) {
        load_constant(c, v, x);
    } else if (!is_fragment(i->shape)) {
        load_row_value(c, v, x);
    } else if (in_memory(c, v)) {
        chain_load_staged(c, v, x);
    } else if (i->op == OP_prev) {
        load_before(c, v, x);
    } else if (i->op == OP_weave) {
        weave(c, i, x);
    } else if (i->op == OP_rename) {
        return *remembered(c, v) = (Val *)chain_get(c, i->arg[0]);
    } else {
        CHECK(op_info[i->op].class == CLASS_PURE);
        const Val *a = chain_get(c, i->arg[0]), *b = i->nargs > 1 ? chain_get(c, i->arg[1]) : NULL;
        for (int j = 0; j < chain_fragment(c); j++)
            x[j] = cg_pointwise(c->cg, i->op, a[j], b ? b[j] : NULL);
    }
    chain_set(c, v, x);
    return *remembered(c, v);
}

static void prefetch(Chain *c, int v, const bool *waits, bool *done) {
    if (done[v] || is_leaf(c, v))
        return;
    done[v] = true;
    if (!waits[v]) {
        Val x[MAX_FRAGMENT];
        memcpy(x, chain_get(c, v), (size_t)chain_fragment(c) * sizeof *x);
        if (is_fragment(inst_at(c->k, v)->shape))
            nv_work_out(c->cg, x, chain_fragment(c));
        chain_set(c, v, x);
        return;
    }
    for (int j = 0; j < inst_at(c->k, v)->nargs; j++)
        prefetch(c, inst_at(c->k, v)->arg[j], waits, done);
}

void chain_prefetch(Chain *c, int v) {
    const Kernel *k = c->k;
    bool *waits = NEW_ARRAY(c->cg->arena, bool, k->inst.count);
    bool *done = NEW_ARRAY(c->cg->arena, bool, k->inst.count);
    for (int u = 0; u < k->inst.count; u++) {
        waits[u] = is_leaf(c, u);
        for (int j = 0; j < inst_at(k, u)->nargs; j++)
            waits[u] = waits[u] || waits[inst_at(k, u)->arg[j]];
    }
    prefetch(c, v, waits, done);
}
