/* Sums over a chunk's tokens, and the gradients of params that are made of them.
 *
 * Each lane adds up the tokens that it sees, in order; then lanes that hold the same channels in a warp,
 * then warps, through shared memory: always in one order, so a gradient is the same in every run. One
 * warp goes on to the params' gradients, which are elementwise and sums over channels again.
 */
#include "codegen/nvptx/grad_token.h"

/* A sum over time whose terms are a token's own: what is left has no axis of the lattice. */
static bool sums_tokens(const Kernel *k, int v) {
    const Inst *i = inst_at(k, v);
    return (i->op == OP_sum || i->op == OP_contract) && i->axis == AXIS_C &&
           shape_lattice(i->shape).rank == 0 && i->shape.rank < 2;
}

/* The sums over tokens that v needs, v being the same for the whole chunk. */
static bool find_sums(Tokens *x, int v, const char **why) {
    const Kernel *k = x->g->k;
    const Inst *i = inst_at(k, v);
    if (x->over_tokens[v] || value_is_constant(k, v))
        return true;
    bool sums = sums_tokens(k, v), pure = op_info[i->op].class == CLASS_PURE;
    if (!sums && !pure && i->op != OP_sum && i->op != OP_turn && !tokens_is_dot(k, v)) {
        *why = "a param's gradient is no sum over tokens: use the CPU";
        return false;
    }
    for (int j = 0; j < i->nargs; j++) {
        if (sums)
            *why = tokens_unsupported(x, i->arg[j]);
        if (sums ? *why != NULL : !find_sums(x, i->arg[j], why))
            return false;
    }
    x->over_tokens[v] = sums;
    return true;
}

bool tokens_plan_sums(Tokens *x, int *sh_bytes, const char **why) {
    const Kernel *k = x->g->k;
    Arena *arena = x->g->cg->arena;
    x->over_tokens = NEW_ARRAY(arena, bool, k->inst.count);
    x->sum = NEW_ARRAY(arena, Var *, k->inst.count);
    x->sh_sum = NEW_ARRAY(arena, int, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        bool param = i->op == OP_out && k->out.at[i->index].is_param;
        if (param && tokens_gives(x, i) && !find_sums(x, i->arg[0], why))
            return false;
    }
    *sh_bytes = 0;
    for (int v = 0; v < k->inst.count; v++) {
        x->sh_sum[v] = *sh_bytes;
        if (x->over_tokens[v])
            *sh_bytes += 4 * x->g->g->s.warps * x->lanes * tokens_count(x, inst_at(k, v)->shape);
    }
    return true;
}

void tokens_open_sums(Tokens *x) {
    Cg *cg = x->g->cg;
    for (int v = 0; v < x->g->k->inst.count; v++) {
        if (!x->over_tokens[v])
            continue;
        int n = tokens_count(x, inst_at(x->g->k, v)->shape);
        x->sum[v] = NEW_ARRAY(cg->arena, Var, n);
        for (int j = 0; j < n; j++)
            x->sum[v][j] = cg_var(cg, cg->f32, NULL);
        for (int j = 0; j < n; j++)
            cg_set(cg, x->sum[v][j], cg_float(cg, 0));
    }
}

/* Element j of what v sums, at this token. */
static Val term(Tokens *x, const Inst *i, int j) {
    Val y = NULL;
    for (int a = 0; a < i->nargs; a++) {
        const Val *z = value_get(&x->at, i->arg[a]);
        Val e = z[value_count(&x->at, i->arg[a]) > 1 ? j : 0];
        y = y ? cg_fmul(x->g->cg, y, e) : e;
    }
    return y;
}

void tokens_add(Tokens *x) {
    Cg *cg = x->g->cg;
    for (int v = 0; v < x->g->k->inst.count; v++) {
        const Inst *i = inst_at(x->g->k, v);
        for (int j = 0; x->over_tokens[v] && j < tokens_count(x, i->shape); j++) {
            Val y = cg_select(cg, x->live, term(x, i, j), cg_float(cg, 0));
            cg_set(cg, x->sum[v][j], cg_fadd(cg, cg_get(cg, x->sum[v][j]), y));
        }
    }
}

/* This lane's first element of warp `warp`'s part of a sum. */
static Val part_of(Tokens *x, int v, Val warp) {
    Cg *cg = x->g->cg;
    int n = tokens_count(x, inst_at(x->g->k, v)->shape);
    Val element = cg_mul(cg, warp, cg_int(cg, x->lanes * n));
    element = cg_add(cg, element, cg_mul(cg, x->lane, cg_int(cg, n)));
    return cg_gep8(cg, nv_shared(cg, x->sh_sum[v]), cg_shl(cg, element, 2));
}

static void join_lanes(Tokens *x, int v) {
    Cg *cg = x->g->cg;
    Val first = cg_cmp(cg, LLVMIntULT, x->g->lane, cg_int(cg, x->lanes));
    for (int j = 0; j < tokens_count(x, inst_at(x->g->k, v)->shape); j++) {
        Val y = cg_get(cg, x->sum[v][j]);
        for (int m = x->lanes; m < 32; m *= 2)
            y = cg_fadd(cg, y, nv_shuffle_xor(cg, y, m));
        If write = cg_if(cg, first);
        cg_store(cg, y, cg_gep8(cg, part_of(x, v, x->g->warp), cg_int64(cg, 4 * j)), 4);
        cg_end_if(cg, &write);
    }
}

static bool lookup_sum(ValueAt *at, int v, Val *out) {
    Tokens *x = at->user;
    Cg *cg = at->cg;
    for (int j = 0; x->over_tokens[v] && j < tokens_count(x, inst_at(x->g->k, v)->shape); j++) {
        for (int w = 0; w < x->g->g->s.warps; w++) {
            Val p = cg_gep8(cg, part_of(x, v, cg_int(cg, w)), cg_int64(cg, 4 * j));
            Val y = cg_load(cg, cg->f32, p, 4);
            out[j] = w ? cg_fadd(cg, out[j], y) : y;
        }
    }
    return x->over_tokens[v];
}

static bool gives_params(const Tokens *x) {
    const Kernel *k = x->g->k;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_out && k->out.at[i->index].is_param && tokens_gives(x, i))
            return true;
    }
    return false;
}

void tokens_finish_sums(Tokens *x) {
    Cg *cg = x->g->cg;
    const Kernel *k = x->g->k;
    if (!gives_params(x))
        return;
    for (int v = 0; v < k->inst.count; v++)
        if (x->over_tokens[v])
            join_lanes(x, v);
    nv_barrier(cg);
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, x->g->warp, cg_int(cg, 0)));
    x->at.lookup = lookup_sum;
    value_begin(&x->at);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_out && k->out.at[i->index].is_param && tokens_gives(x, i))
            tokens_store_param(x, i);
    }
    cg_end_if(cg, &one);
}
