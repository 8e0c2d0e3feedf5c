/* What the grad kernel will read before long, on its way from memory to the L2 cache: nothing waits for it,
 * and it takes no register and no shared memory.
 *
 *     in the pull phase   of this task: the states, and inputs that the tokens phase is the first to read
 *     before tokens       of the block's next task: inputs that it begins with, A, X and their units
 *
 * No more than is read, and not much earlier: what all blocks have asked for and not read yet lies in the
 * cache together, beside their scratch. Bulk requests for whole records, a task ahead, made the kernel
 * slower: part of a record nobody reads here, and all of it came too early. */
#include "codegen/nvptx/grad_token.h"

enum { PIECE = 64 }; /* bytes that one request brings */

/* LLVM selects it for these GPUs alone. */
static void ask(Cg *cg, Val p) {
    if (!cg->target->wgmma)
        return;
    cg_intrinsic(cg, "llvm.nvvm.prefetch.global.L2", NULL, 0, &p, 1);
}

void grad_ask_record(Grad *g, int64_t from, int64_t bytes) {
    Cg *cg = g->cg;
    Loop u = cg_for(cg, nv_tid(cg), cg_int(cg, (bytes + PIECE - 1) / PIECE), 32 * g->g->s.warps, false);
    Val at = cg_add(cg, cg_shl(cg, u.i, 6), cg_int(cg, from));
    ask(cg, cg_gep8(cg, g->record, cg_zext64(cg, at)));
    cg_end_for(cg, &u);
}

/* v's row at `at`, shared out to the four lanes t. */
static void ask_row(Grad *g, ValueAt *at, int v) {
    Cg *cg = g->cg;
    Shape s = inst_at(g->k, v)->shape;
    Val address[TOKEN_RUN];
    int axis = tokens_run_axis(s);
    if (axis < 0) {
        value_addresses(at, v, address);
        ask(cg, address[0]);
        return;
    }
    int size = g->k->axis.at[axis].size;
    int width = value_access_bytes(at, v) * value_accesses(at, v) / TOKEN_RUN, run = PIECE / width;
    for (int first = 0; first < size; first += 4 * run) {
        Val base = cg_add(cg, cg_mul(cg, g->lane_t, cg_int(cg, run)), cg_int(cg, first));
        if (first + 4 * run > size) { /* lanes behind the end ask for the row's last piece */
            Val last = cg_int(cg, (size - 1) / run * run), over = cg_cmp(cg, LLVMIntSGT, base, last);
            base = cg_select(cg, over, last, base);
        }
        at->base_k = at->base_v = base;
        value_addresses(at, v, address);
        ask(cg, address[0]);
    }
}

void grad_ask_inputs(Grad *g, const bool *wanted) {
    Cg *cg = g->cg;
    ValueAt at = {.cg = cg, .begin = g->seq.begin, .head = g->head, .heads = g->heads,
                  .n_k = TOKEN_RUN, .n_v = TOKEN_RUN, .scan = g->g->s.scan, .round = SCAN_ALL};
    value_ports(&at);
    for (int h = 0; h < 2; h++) {
        Val t = cg_add(cg, cg_shl(cg, g->warp, 4), cg_add(cg, g->lane_g, cg_int(cg, 8 * h)));
        Val in_seq = cg_add(cg, g->start, cg_zext64(cg, t));
        Val there = cg_cmp(cg, LLVMIntSLT, in_seq, g->seq.length);
        if (g->g->s.chunk < g->g->s.rows)
            there = cg_and(cg, there, cg_cmp(cg, LLVMIntSLT, t, cg_int(cg, g->g->s.chunk)));
        at.token = cg_add(cg, g->seq.begin, in_seq);
        If some = cg_if(cg, there);
        for (int v = 0; v < g->k->inst.count; v++)
            if (wanted[v])
                ask_row(g, &at, v);
        cg_end_if(cg, &some);
    }
}

/* Of the states the first slab is under way; the second one's columns lie between that one's. */
void grad_ask_rest(Grad *g) {
    const System *s = &g->g->s;
    const Kernel *k = g->k;
    if (s->kp > SLAB) {
        grad_ask_record(g, s->ws_s, (int64_t)s->vp * s->kp * 2);
        grad_ask_record(g, s->ws_ds, (int64_t)s->vp * s->kp * 2);
    }
    bool *wanted = NEW_ARRAY(g->cg->arena, bool, k->inst.count), any = false;
    for (int v = 0; v < k->inst.count && g->tokens; v++) {
        const Inst *i = inst_at(k, v);
        bool input = i->op == OP_in && !k->in.at[i->index].is_param && shape_has(i->shape, AXIS_V);
        bool left = false;
        for (int f = 0; f < s->families; f++)
            left = left || g->g->family[f].left == v;
        wanted[v] = input && !left && g->tokens->needed[v];
        any = any || wanted[v];
    }
    if (any)
        grad_ask_inputs(g, wanted);
}

/* Of rows and keys that are divided by scales of their own. */
static void ask_scales(Grad *g) {
    const System *s = &g->g->s;
    for (int f = 0; f < s->families; f++)
        if (s->family[f].unbounded)
            grad_ask_record(g, s->family[f].ws_rows, s->rows * 4);
    if (s->p_scaled)
        grad_ask_record(g, s->ws_keys, s->rows * 4);
}

void grad_ask_first(Grad *g) {
    const System *s = &g->g->s;
    ask_scales(g);
    if (s->erase)
        grad_ask_record(g, s->ws_a, (int64_t)s->rows * s->rows * 2);
    grad_ask_record(g, s->ws_x, (int64_t)s->rows * s->vp * 2);
    grad_ask_record(g, s->ws_unit_s, 4 * (int64_t)s->vp * 4);
    grad_ask_inputs(g, pull_first_inputs(g));
}
