/* Values of the recurrence's gradient: sums over the block, what is remembered from token to token, and
 * gradients on their way out. */
#include "codegen/nvptx/recurrent_grad.h"

/* hooks ---------------------------------------------------------------------------------------- */

/* The sum over the block of what each thread has. */
Val rg_sum(ValueAt *at, int v, int axis, Val partial) {
    (void)v, (void)axis;
    RecurrentGrad *r = at->user;
    Cg *cg = at->cg;
    for (int mask = 1; mask < RG_LANES; mask *= 2)
        partial = cg_fadd(cg, partial, nv_shuffle_xor(cg, partial, mask));
    nv_barrier(cg); /* whoever still reads the sum before this one */
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, r->lane, cg_int(cg, 0)));
    Val line = nv_shared(cg, r->reds);
    cg_store(cg, partial, cg_gep8(cg, line, cg_shl(cg, r->warp, 2)), 4);
    cg_end_if(cg, &first);
    nv_barrier(cg);
    Val sum = cg_load(cg, cg->f32, line, 4);
    for (int w = 1; w < RG_WARPS; w++)
        sum = cg_fadd(cg, sum, cg_load(cg, cg->f32, nv_shared(cg, r->reds + 4 * w), 4));
    return sum;
}

static bool is_memory(const Inst *i) {
    return i->op == OP_prev || i->op == OP_cumsum;
}

static bool is_later(const Inst *i) {
    return i->op == OP_after || i->op == OP_cumsum_back;
}

bool rg_lookup(ValueAt *at, int v, Val *out) {
    RecurrentGrad *r = at->user;
    Cg *cg = at->cg;
    const Inst *i = inst_at(r->k, v);
    if (!is_memory(i) && !is_later(i))
        return false;
    bool adds = i->op == OP_cumsum || i->op == OP_cumsum_back;
    const Val *now = adds ? value_get(at, i->arg[0]) : NULL;
    for (int j = 0; j < value_count(at, v); j++) {
        out[j] = is_memory(i) ? r->memory[v][j] : cg_get(cg, r->later[v][j]);
        if (now)
            out[j] = cg_fadd(cg, out[j], now[j]);
        if (i->op == OP_cumsum && value_is_angle(r->k, v))
            out[j] = cg_within_turn(cg, out[j]);
    }
    return true;
}

/* from token to token -------------------------------------------------------------------------- */

static Var *zeros(RecurrentGrad *r, int n) {
    Var *x = NEW_ARRAY(r->cg->arena, Var, n);
    for (int j = 0; j < n; j++)
        x[j] = cg_var(r->cg, r->cg->f32, cg_float(r->cg, 0));
    return x;
}

/* Elements a thread holds along `axis`, or of what has none. */
static int run_of(int axis) {
    return axis < 0 ? 1 : RG_RUN;
}

/* The axis of one row of output o, or -1. */
static int axis_of(const RecurrentGrad *r, int o) {
    Shape s = r->k->out.at[o].shape;
    if (s.rank && s.axis[0] >= AXIS_user)
        s = shape_without(s, s.axis[0]);
    return s.rank ? s.axis[0] : -1;
}

/* What lasts from token to token is zero at either end of the sequence. */
void rg_open_memories(RecurrentGrad *r) {
    int n = r->k->inst.count;
    r->carried = NEW_ARRAY(r->cg->arena, Var *, n);
    r->later = NEW_ARRAY(r->cg->arena, Var *, n);
    r->memory = NEW_ARRAY(r->cg->arena, Val *, n);
    r->total = NEW_ARRAY(r->cg->arena, Var *, n);
    for (int v = 0; v < n; v++) {
        const Inst *i = inst_at(r->k, v);
        if (is_memory(i))
            r->carried[v] = zeros(r, value_count(&r->at, v));
        if (is_later(i))
            r->later[v] = zeros(r, value_count(&r->at, v));
        if (i->op == OP_out && r->k->out.at[i->index].is_param)
            r->total[v] = zeros(r, run_of(axis_of(r, i->index)));
    }
}

/* All are read before any is replaced: prev(cumsum(x)) sees the old sum. `latest`: the operand is what
 * the next token sees, else the value. */
static void hand_on(RecurrentGrad *r, Var **to, Op latest) {
    for (int v = 0; v < r->k->inst.count; v++)
        if (to[v]) {
            value_get(&r->at, v);
            value_get(&r->at, inst_at(r->k, v)->arg[0]);
        }
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!to[v])
            continue;
        const Inst *i = inst_at(r->k, v);
        const Val *x = value_get(&r->at, i->op == latest ? i->arg[0] : v);
        bool repeated = i->op == latest && value_count(&r->at, i->arg[0]) == 1;
        for (int j = 0; j < value_count(&r->at, v); j++)
            cg_set(r->cg, to[v][j], x[repeated ? 0 : j]);
    }
}

void rg_close_forwards(RecurrentGrad *r) {
    hand_on(r, r->carried, OP_prev);
}

void rg_close_backwards(RecurrentGrad *r) {
    hand_on(r, r->later, OP_after);
}

/* out ------------------------------------------------------------------------------------------ */

/* i1: the thread holds element j of a run along `axis`; of what has none, whether it is the one. */
static Val holds(RecurrentGrad *r, int axis, int j) {
    Cg *cg = r->cg;
    if (axis < 0)
        return cg_cmp(cg, LLVMIntEQ, r->tid, cg_int(cg, 0));
    Val index = cg_add(cg, axis == AXIS_K ? r->at.base_k : r->at.base_v, cg_int(cg, j));
    return cg_cmp(cg, LLVMIntSLT, index, cg_int(cg, axis == AXIS_K ? r->K : r->V));
}

/* x, the thread's share of row `row` (i64) among rows of output v's port, if that is wanted. */
static void put_row(RecurrentGrad *r, int v, Val row, const Val *x) {
    Cg *cg = r->cg;
    const Inst *i = inst_at(r->k, v);
    const Port *port = &r->k->out.at[i->index];
    int axis = axis_of(r, i->index), n = run_of(axis), width = elem_size(port->elem);
    int64_t size = axis < 0 ? 1 : r->k->axis.at[axis].size;
    int64_t elements = shape_elements(r->k, port->shape);
    int group = axis < 0 ? 1 : grad_group(size, n, port->elem);
    Val pointer = cg_frame_field(cg, frame_out_ptr(r->k, i->index));
    If wanted = cg_if(cg, cg_cmp(cg, LLVMIntNE, pointer, cg_int64(cg, 0)));
    Val at = cg_add(cg, cg_mul(cg, row, cg_int64(cg, elements)), cg_int64(cg, i->row * size));
    if (axis >= 0)
        at = cg_add(cg, at, cg_zext64(cg, axis == AXIS_K ? r->at.base_k : r->at.base_v));
    Val p = cg_gep8(cg, nv_global(cg, frame_out_ptr(r->k, i->index)),
                    cg_mul(cg, at, cg_int64(cg, width)));
    for (int j = 0; j < n; j += group) {
        If mine = cg_if(cg, holds(r, axis, j));
        grad_store(cg, port->elem, cg_gep8(cg, p, cg_int64(cg, (int64_t)j * width)), group, x + j);
        cg_end_if(cg, &mine);
    }
    cg_end_if(cg, &wanted);
}

static Val row_of_head(RecurrentGrad *r, Val row) {
    Cg *cg = r->cg;
    return cg_add(cg, cg_mul(cg, row, cg_frame_field(cg, FRAME_H)), cg_zext64(cg, r->at.head));
}

/* A value may lack the output's axis. Params add up. */
void rg_outs(RecurrentGrad *r) {
    Cg *cg = r->cg;
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (i->op != OP_out)
            continue;
        Val x[RG_RUN];
        const Val *given = value_get(&r->at, i->arg[0]);
        for (int j = 0; j < RG_RUN; j++)
            x[j] = given[value_count(&r->at, i->arg[0]) > 1 ? j : 0];
        if (!r->total[v])
            put_row(r, v, row_of_head(r, r->at.token), x);
        for (int j = 0; r->total[v] && j < run_of(axis_of(r, i->index)); j++)
            cg_set(cg, r->total[v][j], cg_fadd(cg, cg_get(cg, r->total[v][j]), x[j]));
    }
}

void rg_clear_totals(RecurrentGrad *r) {
    for (int v = 0; v < r->k->inst.count; v++)
        for (int j = 0; r->total[v] && j < run_of(axis_of(r, inst_at(r->k, v)->index)); j++)
            cg_set(r->cg, r->total[v][j], cg_float(r->cg, 0));
}

void rg_store_totals(RecurrentGrad *r, Val slot) {
    for (int v = 0; v < r->k->inst.count; v++) {
        Val x[RG_RUN];
        if (!r->total[v])
            continue;
        for (int j = 0; j < run_of(axis_of(r, inst_at(r->k, v)->index)); j++)
            x[j] = cg_get(r->cg, r->total[v][j]);
        put_row(r, v, row_of_head(r, slot), x);
    }
}
