/* Elementwise values of the chain, as fragments of the block's V columns and the chunk's rows.
 *
 * Leaves: state reads and products (set by chain_gemm.c); inputs with the V axis, whose rows of a
 * chunk are staged in shared memory and turned by ldmatrix on the way to registers; values of one
 * token (gates, norms), worked out by one thread a row when the chunk is staged; values of V alone.
 */
#include "codegen/nvptx/chain.h"

static bool per_token(Shape s) { return shape_has(s, AXIS_C) || shape_has(s, AXIS_R); }
static bool is_fragment(Shape s) { return per_token(s) && shape_has(s, AXIS_V); }

/* planning ------------------------------------------------------------------------------------- */

static bool is_leaf(const Chain *c, int v)
{
    for (int f = 0; f < c->s->families; f++)
        if (v == c->s->family[f].read || v == c->s->family[f].mixed)
            return true;
    return false;
}

static bool plan_input(Chain *c, int v, const char **why)
{
    for (int i = 0; i < c->nstaged; i++)
        if (c->staged[i].value == v)
            return true;
    if (c->nstaged == MAX_STAGED) {
        *why = "more value-side inputs than the GPU chain kernel stages";
        return false;
    }
    const Port *p = &c->k->in.at[inst_at(c->k, v)->index];
    int bytes = elem_size(p->elem);
    c->staged[c->nstaged++] = (Staged){.value = v, .elem_bytes = bytes,
                                       .copied = c->s->V * bytes % 16 == 0};
    return true;
}

static bool plan_value(Chain *c, int v, const char **why)
{
    const Inst *i = inst_at(c->k, v);
    if (c->planned[v] || is_leaf(c, v) || !per_token(i->shape))
        return true;
    c->planned[v] = true;
    if (!is_fragment(i->shape)) {
        for (int j = 0; j < c->nrow_values; j++)
            if (c->row_value[j] == v)
                return true;
        if (c->nrow_values == MAX_ROW_VALUES) {
            *why = "more per-token scalars than the GPU chain kernel holds";
            return false;
        }
        c->row_value[c->nrow_values++] = v;
        return true;
    }
    if (i->op == OP_in)
        return plan_input(c, v, why);
    if (i->op == OP_prev) {
        *why = "prev of a value-side input has no GPU chunk kernel: use the recurrent algorithm";
        return false;
    }
    CHECK(op_info[i->op].class == CLASS_PURE || i->op == OP_weave || i->op == OP_rename);
    for (int j = 0; j < i->nargs; j++)
        if (!plan_value(c, i->arg[j], why))
            return false;
    return true;
}

bool chain_plan_values(Chain *c, const char **why)
{
    c->planned = NEW_ARRAY(c->cg->arena, bool, c->k->inst.count);
    for (int f = c->s->erase; f < c->s->families && c->back; f++)
        if (!plan_value(c, c->gradient->family[f].left, why))
            return false;
    if (c->back)
        return true;
    if (!plan_value(c, c->s->X, why))
        return false;
    for (int v = 0; v < c->k->inst.count && !c->gradient; v++)
        if (inst_at(c->k, v)->op == OP_out && !plan_value(c, inst_at(c->k, v)->arg[0], why))
            return false;
    return true;
}

/* values of one token -------------------------------------------------------------------------- */

/* Sums are finished by one thread: a loop over the axis, 8 elements at a time. */
static bool sum_by_loop(ValueAt *at, int v, Val *out)
{
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

/* The row values of lattice row `row` (i32) in the chunk that begins at `start`. */
static void evaluate_row(Chain *c, Val start, Val row, Val *x)
{
    Cg *cg = c->cg;
    const System *s = c->s;
    Val token = s->slots > 1 ? cg_udiv(cg, row, cg_int(cg, s->slots)) : row;
    Val in_seq = cg_add(cg, start, cg_zext64(cg, token));
    Val live = cg_cmp(cg, LLVMIntSLT, in_seq, c->seq.length);
    in_seq = cg_select(cg, live, in_seq, cg_int64(cg, 0));
    ValueAt at = {.cg = cg, .token = cg_add(cg, c->seq.begin, in_seq), .valid = live,
                  .first = cg_cmp(cg, LLVMIntEQ, in_seq, cg_int64(cg, 0)), .begin = c->seq.begin,
                  .head = c->head, .heads = c->heads, .base_k = cg_int(cg, 0),
                  .base_v = cg_int(cg, 0), .n_k = 1, .n_v = 1, .lookup = sum_by_loop};
    value_begin(&at);
    for (int i = 0; i < c->nrow_values; i++) {
        CHECK(inst_at(c->k, c->row_value[i])->op != OP_weave);
        x[i] = value_get(&at, c->row_value[i])[0];
    }
}

static void store_row(Chain *c, Val stage, Val row, const Val *x)
{
    Cg *cg = c->cg;
    for (int i = 0; i < c->nrow_values; i++) {
        Val index = cg_add(cg, row, cg_int(cg, i * c->s->rows));
        Val p = cg_gep8(cg, nv_shared(cg, c->row_value_offset), stage);
        cg_store(cg, x[i], cg_gep8(cg, p, cg_shl(cg, index, 2)), 4);
    }
}

void chain_rows(Chain *c, Val start, Val stage)
{
    Cg *cg = c->cg;
    if (c->nrow_values == 0)
        return;
    Val x[MAX_ROW_VALUES];
    Loop row = cg_for(cg, c->tid, cg_int(cg, c->s->rows), c->threads, false);
    evaluate_row(c, start, row.i, x);
    store_row(c, stage, row.i, x);
    cg_end_for(cg, &row);
}

void chain_rows_ahead(Chain *c, Val start)
{
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

void chain_rows_store(Chain *c, Val stage)
{
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

/* staged inputs -------------------------------------------------------------------------------- */

static int tile_units(const Chain *c, const Staged *in)
{
    return c->v_tile * in->elem_bytes / 16;
}

/* Staged tiles are placed as workspace matrices are, 8 "elements" to a 16-byte unit. */
static Val staged_place(Chain *c, const Staged *in, Val token, Val unit)
{
    return nv_place(c->cg, c->s->chunk, 8 * tile_units(c, in), token, unit);
}

Val chain_tokens_left(Chain *c, Val start)
{
    Cg *cg = c->cg;
    Val left = cg_sub(cg, c->seq.length, start), most = cg_int64(cg, c->s->chunk);
    return cg_trunc32(cg, cg_select(cg, cg_cmp(cg, LLVMIntSLT, left, most), left, most));
}

Val chain_keep(Chain *c, Val x)
{
    return cg_asm(c->cg, LLVMTypeOf(x), "", "=r,0", true, &x, 1);
}

/* Where a staged input lies: its element (token `start`, V column 0) of this head, and the bytes from
 * token to token. 32-bit tokens times a 32-bit stride on a 64-bit base are one instruction. */
typedef struct Rows { Val base, stride; } Rows;

static Rows input_rows(Chain *c, const Staged *in, Val start)
{
    Cg *cg = c->cg;
    const Inst *i = inst_at(c->k, in->value);
    int64_t row_bytes = (int64_t)c->s->V * in->elem_bytes;
    int64_t port_bytes = shape_elements(c->k, c->k->in.at[i->index].shape) * in->elem_bytes;
    Val heads = cg_trunc32(cg, cg_frame_field(cg, frame_in_heads(c->k, i->index)));
    Val head = cg_udiv(cg, cg_mul(cg, c->head, heads), c->heads);
    Val stride = chain_keep(c, cg_mul(cg, heads, cg_int(cg, port_bytes)));
    Val byte = cg_mul(cg, cg_add(cg, c->seq.begin, start), cg_zext64(cg, stride));
    byte = cg_add(cg, byte, cg_mul(cg, cg_zext64(cg, head), cg_int64(cg, port_bytes)));
    if (i->row > 0)
        byte = cg_add(cg, byte, cg_int64(cg, i->row * row_bytes));
    Val base = cg_gep8(cg, nv_global(cg, frame_in_ptr(c->k, i->index)), byte);
    return (Rows){base, stride};
}

/* `token` (i32) counts from the rows' start. */
static Val input_row(Cg *cg, Rows rows, Val token)
{
    Val far = cg_mul(cg, cg_zext64(cg, token), cg_zext64(cg, rows.stride));
    return cg_gep8(cg, rows.base, far);
}

/* 16 bytes: unit `index` (i32) of the tile, tokens one after another; zeros where there is no such
 * token (`left` are left) or column. Without branches, so that products under way are not disturbed. */
static void copy_unit(Chain *c, const Staged *in, Rows rows, Val left, Val stage, Val index)
{
    Cg *cg = c->cg;
    int units = tile_units(c, in), all = c->s->chunk * units;
    Val token = cg_udiv(cg, index, cg_int(cg, units));
    Val unit = cg_urem(cg, index, cg_int(cg, units));
    Val live = cg_cmp(cg, LLVMIntSLT, token, left);
    Val column = cg_mul(cg, unit, cg_int(cg, 16 / in->elem_bytes));
    column = cg_add(cg, c->v_first, column);
    if (c->v_live[0]) {
        Val inside = cg_cmp(cg, LLVMIntSLT, column, cg_int(cg, c->s->V));
        live = cg_and(cg, live, inside);
        column = cg_select(cg, inside, column, cg_int(cg, 0));
    }
    Val src = input_row(cg, rows, cg_select(cg, live, token, cg_int(cg, 0)));
    src = cg_gep8(cg, src, cg_zext64(cg, cg_mul(cg, column, cg_int(cg, in->elem_bytes))));
    Val place = staged_place(c, in, token, unit);
    Val dst = cg_gep8(cg, nv_shared(cg, in->offset), cg_add(cg, stage, cg_shl(cg, place, 4)));
    Val bytes = cg_select(cg, live, cg_int(cg, 16), cg_int(cg, 0));
    if (all % c->threads == 0)
        nv_copy_async(cg, dst, src, bytes);
    else
        nv_copy_async_if(cg, cg_cmp(cg, LLVMIntSLT, index, cg_int(cg, all)), dst, src, bytes);
}

/* A chunk that begins past the sequence's end becomes zeros, and nothing is read from there. */
static void copy_input(Chain *c, const Staged *in, Val start, Val stage)
{
    Cg *cg = c->cg;
    Val left = chain_tokens_left(c, start), begun = cg_cmp(cg, LLVMIntSLT, start, c->seq.length);
    Rows rows = input_rows(c, in, cg_select(cg, begun, start, cg_int64(cg, 0)));
    for (int first = 0; first < c->s->chunk * tile_units(c, in); first += c->threads)
        copy_unit(c, in, rows, left, stage, cg_add(cg, c->tid, cg_int(cg, first)));
}

void chain_copy_inputs(Chain *c, Val start, Val stage)
{
    for (int i = 0; i < c->nstaged; i++)
        if (c->staged[i].copied)
            copy_input(c, &c->staged[i], start, stage);
}

/* Token of a lattice row; rows of no token take the chunk's last. */
static Val token_of_row(Chain *c, Val row)
{
    Cg *cg = c->cg;
    const System *s = c->s;
    Val token = s->slots > 1 ? cg_udiv(cg, row, cg_int(cg, s->slots)) : row;
    if (s->chunk * s->slots == s->rows)
        return token;
    Val last = cg_int(cg, s->chunk - 1);
    return cg_select(cg, cg_cmp(cg, LLVMIntSLT, token, last), token, last);
}

static Val staged_unit(Chain *c, const Staged *in, Val token, Val unit)
{
    Cg *cg = c->cg;
    Val place = staged_place(c, in, token, unit);
    return cg_gep8(cg, nv_shared(cg, in->offset), cg_add(cg, c->stage, cg_shl(cg, place, 4)));
}

/* Two-byte elements: 16 rows x 16 columns by one transposing ldmatrix. */
static void load_pairs(Chain *c, const Staged *in, Val *x)
{
    Cg *cg = c->cg;
    Elem e = c->k->in.at[inst_at(c->k, in->value)->index].elem;
    Val matrix = cg_shr(cg, c->lane, 3);
    Val unit = cg_add(cg, cg_shl(cg, c->warp, 1), cg_and(cg, matrix, cg_int(cg, 1)));
    for (int n = 0; n < c->s->rows / 8; n += 2) {
        Val row = cg_add(cg, cg_shl(cg, cg_shr(cg, matrix, 1), 3), cg_and(cg, c->lane, cg_int(cg, 7)));
        row = cg_add(cg, row, cg_int(cg, 8 * n));
        Val quad[4];
        nv_ldmatrix4(cg, staged_unit(c, in, token_of_row(c, row), unit), true, quad);
        for (int j = 0; j < 4; j++)
            nv_unpack(cg, e, quad[j], &x[4 * n + 2 * j]);
    }
}

static void load_floats(Chain *c, const Staged *in, Val *x)
{
    Cg *cg = c->cg;
    for (int i = 0; i < chain_fragment(c); i++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
        Val column = cg_sub(cg, c->v[i / 2 % 2], c->v_first);
        Val p = staged_unit(c, in, token_of_row(c, row), cg_shr(cg, column, 2));
        p = cg_gep8(cg, p, cg_shl(cg, cg_and(cg, column, cg_int(cg, 3)), 2));
        x[i] = cg_load(cg, cg->f32, p, 4);
    }
}

/* Rows that no 16-byte copy can take: element by element from global memory. */
static void load_global(Chain *c, const Staged *in, Val *x)
{
    Cg *cg = c->cg;
    Elem e = c->k->in.at[inst_at(c->k, in->value)->index].elem;
    Val left = chain_tokens_left(c, c->start);
    Rows rows = input_rows(c, in, c->start);
    for (int i = 0; i < chain_fragment(c); i++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
        Val token = token_of_row(c, row), v = c->v[i / 2 % 2];
        Val live = cg_cmp(cg, LLVMIntSLT, token, left);
        if (c->v_live[0]) {
            live = cg_and(cg, live, c->v_live[i / 2 % 2]);
            v = cg_select(cg, live, v, cg_int(cg, 0));
        }
        Val p = input_row(cg, rows, cg_select(cg, live, token, cg_int(cg, 0)));
        p = cg_gep8(cg, p, cg_zext64(cg, cg_mul(cg, v, cg_int(cg, in->elem_bytes))));
        Val loaded = cg_to_f32(cg, cg_load_invariant(cg, cg_elem_type(cg, e), p, in->elem_bytes));
        x[i] = cg_select(cg, live, loaded, cg_float(cg, 0));
    }
}

static void load_input(Chain *c, int v, Val *x)
{
    for (int i = 0; i < c->nstaged; i++) {
        const Staged *in = &c->staged[i];
        if (in->value != v)
            continue;
        (!in->copied ? load_global : in->elem_bytes == 2 ? load_pairs : load_floats)(c, in, x);
        return;
    }
    BUG("value %%%d is not staged", v);
}

/* fragments ------------------------------------------------------------------------------------ */

static void load_row_value(Chain *c, int v, Val *x)
{
    Cg *cg = c->cg;
    int i = 0;
    while (i < c->nrow_values && c->row_value[i] != v)
        i++;
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
static void load_constant(Chain *c, int v, Val *x)
{
    Val at[2] = {value_get(&c->at_v[0], v)[0], value_get(&c->at_v[1], v)[0]};
    for (int i = 0; i < chain_fragment(c); i++)
        x[i] = at[i / 2 % 2];
}

static void weave(Chain *c, const Inst *w, Val *x)
{
    Cg *cg = c->cg;
    const System *s = c->s;
    Val left = chain_tokens_left(c, c->start);
    bool all_rest = s->chunk * s->slots == s->rows;
    for (int a = 0; a < w->nargs; a++) {
        const Val *slot = chain_get(c, w->arg[a]);
        all_rest = all_rest && value_at_rest(c->k, w->arg[a]) == w->num;
        for (int i = 0; i < chain_fragment(c); i++) {
            Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
            Val here = a == 0 ? NULL : cg_cmp(cg, LLVMIntEQ, cg_urem(cg, row, cg_int(cg, s->slots)),
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

void chain_set(Chain *c, int v, const Val *x)
{
    Val *copy = NEW_ARRAY(c->cg->arena, Val, MAX_FRAGMENT);
    memcpy(copy, x, (size_t)chain_fragment(c) * sizeof *x);
    c->memo[v] = copy;
}

const Val *chain_get(Chain *c, int v)
{
    if (c->memo[v])
        return c->memo[v];
    const Inst *i = inst_at(c->k, v);
    Val x[MAX_FRAGMENT];
    if (!per_token(i->shape)) {
        load_constant(c, v, x);
    } else if (!is_fragment(i->shape)) {
        load_row_value(c, v, x);
    } else if (i->op == OP_in) {
        load_input(c, v, x);
    } else if (i->op == OP_weave) {
        weave(c, i, x);
    } else if (i->op == OP_rename) {
        return c->memo[v] = (Val *)chain_get(c, i->arg[0]);
    } else {
        CHECK(op_info[i->op].class == CLASS_PURE);
        const Val *a = chain_get(c, i->arg[0]), *b = i->nargs > 1 ? chain_get(c, i->arg[1]) : NULL;
        for (int j = 0; j < chain_fragment(c); j++)
            x[j] = cg_pointwise(c->cg, i->op, a[j], b ? b[j] : NULL);
    }
    chain_set(c, v, x);
    return c->memo[v];
}

static void prefetch(Chain *c, int v, const bool *waits, bool *done)
{
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

void chain_prefetch(Chain *c, int v)
{
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
