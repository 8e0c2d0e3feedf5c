/* The grad kernel around its phases: blocks share out the segment's chunks and heads, one task after
 * another, each with a scratch of its own between the phases.
 *
 *     task    (slot of the segment, head of H), head fastest: neighbouring blocks read the same rows
 *     group   GRAD_GROUP tasks of a slot, one after the other in one block: heads that share inputs add
 *             up their gradients in the place where the sum is wanted (grad_token_out.c)
 *     phases  pull, then tokens; both within the block, so a block barrier lies between them
 *
 * A block writes its scratch again and again: nothing of it may be read as if it never changed.
 */
#include "codegen/nvptx/gradient.h"

#include <stdio.h>

enum {
    REGISTERS = 255,       /* of a thread: both phases hold many rows */
    SM_REGISTERS = 65536,
    SM_THREADS = 2048,
    L2_LINE = 128,         /* bytes */
    SCRATCH_UNIT = L2_LINE /* of the scratch's matrices */
};

Val grad_blocks(Cg *cg) {
    return cg_intrinsic(cg, "llvm.nvvm.read.ptx.sreg.nctaid.x", NULL, 0, NULL, 0);
}

/* memory --------------------------------------------------------------------------------------- */

/* An access as it is in memory: 2-byte elements come in pairs, as words. */
static Ty access_type(Cg *cg, Elem e, int n) {
    bool pairs = elem_size(e) == 2 && n > 1;
    Ty item = pairs ? cg->i32 : e == ELEM_bf16 ? cg->i16 : cg_elem_type(cg, e);
    int count = pairs ? n / 2 : n;
    return count > 1 ? LLVMVectorType(item, (unsigned)count) : item;
}

static Val item_of(Cg *cg, Val x, int j) {
    return LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind ? cg_extract(cg, x, j) : x;
}

void grad_load(Cg *cg, Elem e, Val p, int n, Val *out) {
    Val x = cg_load(cg, access_type(cg, e, n), p, n * elem_size(e));
    if (elem_size(e) == 2 && n > 1) {
        for (int j = 0; j < n / 2; j++)
            nv_unpack(cg, e, item_of(cg, x, j), out + 2 * j);
    } else if (e == ELEM_bf16) {
        Val bits = cg_shl(cg, LLVMBuildZExt(cg->b, x, cg->i32, ""), 16);
        out[0] = LLVMBuildBitCast(cg->b, bits, cg->f32, "");
    } else {
        for (int j = 0; j < n; j++)
            out[j] = cg_to_f32(cg, item_of(cg, x, j));
    }
}

void grad_store(Cg *cg, Elem e, Val p, int n, const Val *x) {
    Val item[GRAD_ACCESS / 4] = {NULL};
    bool pairs = elem_size(e) == 2 && n > 1;
    int count = pairs ? n / 2 : n;
    for (int j = 0; j < count; j++)
        item[j] = pairs ? nv_pack(cg, e, x[2 * j], x[2 * j + 1]) : cg_from_f32(cg, x[j], e);
    Val all = item[0];
    if (count > 1) {
        all = LLVMGetPoison(LLVMVectorType(LLVMTypeOf(item[0]), (unsigned)count));
        for (int j = 0; j < count; j++)
            all = cg_insert(cg, all, item[j], j);
    }
    cg_store(cg, all, p, n * elem_size(e));
}

static int64_t power_of_two_in(int64_t x) { return x & -x; }

int grad_group(int64_t size, int64_t run, Elem e) {
    int64_t width = elem_size(e), bytes = power_of_two_in(size * width);
    if (bytes > power_of_two_in(run * width))
        bytes = power_of_two_in(run * width);
    return (int)((bytes < GRAD_ACCESS ? bytes : GRAD_ACCESS) / width);
}

/* plan ----------------------------------------------------------------------------------------- */

/* The first family with the same root. */
static int same_root(const Gradient *g, int f) {
    int first = 0;
    while (g->family[first].root != g->family[f].root)
        first++;
    return first;
}

static int64_t take(int64_t *at, int64_t bytes) {
    int64_t here = *at;
    *at += (bytes + SCRATCH_UNIT - 1) / SCRATCH_UNIT * SCRATCH_UNIT;
    return here;
}

/* Gradients that are rounded to 16 bits come from rows that are: half the bytes through the caches. */
static Elem scratch_elem(const Kernel *k) {
    for (int o = 0; o < k->out.count; o++)
        if (!k->out.at[o].is_param && elem_size(k->out.at[o].elem) > 2)
            return ELEM_f32;
    return ELEM_bf16;
}

void grad_plan_scratch(Grad *g) {
    const System *s = &g->g->s;
    g->scratch_elem = scratch_elem(g->k);
    int64_t at = 0, wide = (int64_t)s->rows * s->kp * elem_size(g->scratch_elem);
    for (int f = 0; f < s->families; f++) {
        int first = same_root(g->g, f);
        g->scratch_dx[f] = first < f ? g->scratch_dx[first] : take(&at, wide);
    }
    for (int f = 0; f < s->families; f++)
        g->scratch_o[f] = take(&at, g->g->family[f].read >= 0 ? (int64_t)s->rows * s->vp * 4 : 0);
    g->scratch_dp = take(&at, g->g->p_root >= 0 ? wide : 0);
    g->scratch_da = take(&at, g->g->a_root < 0 ? 0 : s->a_key ? wide : s->rows * 4);
    g->scratch_bytes = at;
}

/* Blocks of `threads` that a multiprocessor holds. */
static int blocks_per_sm(const Cg *cg, int threads, int sh_bytes) {
    int blocks = SM_REGISTERS / (threads * (REGISTERS + 1));
    int by_memory = cg->target->smem_limit / (sh_bytes + 1024);
    blocks = by_memory < blocks ? by_memory : blocks;
    return blocks > 0 ? blocks : 1;
}

/* the kernel ----------------------------------------------------------------------------------- */

/* In every task anew, as far as LLVM knows: what is computed from the thread's number stays in the loop
 * over tasks, where it takes no register all the time. */
static void place_thread(Grad *g) {
    Cg *cg = g->cg;
    Val tid = nv_tid(cg);
    tid = cg->tid = nv_anew(cg, tid);
    g->lane = cg_and(cg, tid, cg_int(cg, 31));
    g->warp = nv_shuffle_from(cg, cg_shr(cg, tid, 5), cg_int(cg, 0));
    g->lane_g = cg_shr(cg, g->lane, 2);
    g->lane_t = cg_and(cg, g->lane, cg_int(cg, 3));
    Val scratch = cg_mul(cg, cg_zext64(cg, nv_block(cg)), cg_int64(cg, g->scratch_bytes));
    g->scratch = cg_gep8(cg, nv_global(cg, frame_gradient(g->k, GRAD_SCRATCH)), scratch);
}

static Val group_of(const Grad *g) {
    return cg_trunc32(g->cg, cg_frame_field(g->cg, frame_gradient(g->k, GRAD_GROUP)));
}

static Val slot_of(const Grad *g, Val task) {
    Cg *cg = g->cg;
    Val first = cg_frame_field(cg, frame_gradient(g->k, GRAD_SLOT));
    return cg_add(cg, cg_zext64(cg, cg_udiv(cg, task, g->heads)), first);
}

void grad_place_group(Grad *g) {
    Cg *cg = g->cg;
    Val group = group_of(g);
    g->own = cg_udiv(cg, g->head, group);
    g->more = cg_cmp(cg, LLVMIntNE, g->head, cg_mul(cg, g->own, group));
}

/* How far the block's next task is (i32): the group's next head, or the first one of its next group. Groups
 * are as many tasks everywhere, so the task's number says it. As far as LLVM knows groups are new each time:
 * what is made of them takes no register all the time. */
static Val step_behind(const Grad *g, Val task) {
    Cg *cg = g->cg;
    Val group = group_of(g), one = cg_int(cg, 1);
    group = nv_anew(cg, group);
    Val last = cg_cmp(cg, LLVMIntEQ, cg_urem(cg, cg_add(cg, task, one), group), cg_int(cg, 0));
    Val others = cg_mul(cg, grad_blocks(cg), group);
    Val behind = cg_sub(cg, cg_add(cg, others, one), group);
    return cg_select(cg, last, behind, one);
}

/* What the number of a task (i32) says by itself. Every task has a block of the factor kernel, so there are
 * less than 2^31; and a 64-bit division is a call, which costs registers in all of the kernel. */
static void place_head(Grad *g, Val task) {
    Cg *cg = g->cg;
    g->task = task;
    g->head = cg_urem(cg, task, g->heads);
    Val record = cg_mul(cg, cg_zext64(cg, task), cg_int64(cg, g->g->s.ws_bytes));
    g->record = cg_gep8(cg, nv_global(cg, FRAME_WS), record);
}

/* Task number `task`. Its slot may have no chunk: then it starts behind its sequence's end. */
static void place_task(Grad *g, Val task) {
    Cg *cg = g->cg;
    Val chunk;
    place_head(g, task);
    g->seq = seq_of_slot(cg, slot_of(g, task), g->g->s.chunk, &chunk);
    g->start = cg_mul(cg, chunk, cg_int64(cg, g->g->s.chunk));
}

/* Where the task is kept while the phases before the last one run, which need their registers: pairs of
 * i64 behind the phases' shared memory. */
static Val kept_pair(Grad *g, int pair) {
    return nv_shared(g->cg, g->sh_place + 16 * pair);
}

/* By one thread; a block barrier before it is taken back. */
static void keep_task(Grad *g) {
    Cg *cg = g->cg;
    Val x[] = {g->seq.begin, g->seq.length, g->start, cg_zext64(cg, g->task)};
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, nv_tid(cg), cg_int(cg, 0)));
    for (int pair = 0; pair < 2; pair++) {
        Val v = LLVMGetPoison(LLVMVectorType(cg->i64, 2));
        for (int i = 0; i < 2; i++)
            v = cg_insert(cg, v, x[2 * pair + i], i);
        cg_store(cg, v, kept_pair(g, pair), 16);
    }
    cg_end_if(cg, &one);
}

static void take_task_back(Grad *g) {
    Cg *cg = g->cg;
    Val x[4];
    for (int pair = 0; pair < 2; pair++) {
        Val v = cg_load(cg, LLVMVectorType(cg->i64, 2), kept_pair(g, pair), 16);
        for (int i = 0; i < 2; i++)
            x[2 * pair + i] = cg_extract(cg, v, i);
    }
    g->seq = (Seq){.begin = x[0], .length = x[1]};
    g->start = x[2];
    place_head(g, cg_trunc32(cg, x[3]));
}

/* Its number, behind a block barrier. */
static Val kept_task(Grad *g) {
    return cg_load(g->cg, g->cg->i32, cg_gep8(g->cg, kept_pair(g, 1), cg_int64(g->cg, 8)), 8);
}

Val grad_slot(Grad *g) {
    return slot_of(g, kept_task(g));
}

static bool plan(Grad *g, const GradPhase *phase, int phases, const char **why) {
    grad_plan_scratch(g);
    for (int i = 0; i < phases; i++) {
        int bytes = 0;
        if (!phase[i].plan(g, &bytes, why))
            return false;
        g->sh_bytes = bytes > g->sh_bytes ? bytes : g->sh_bytes;
    }
    g->sh_place = (g->sh_bytes + 15) / 16 * 16;
    g->sh_bytes = g->sh_place + GRAD_KEPT;
    if (g->sh_bytes > g->cg->target->smem_limit) {
        *why = "the grad kernel needs more shared memory than this GPU has: use smaller chunks";
        return false;
    }
    return true;
}

/* i1: whether the task's slot is a chunk of some sequence; one in front of all sequences is none. */
static Val has_chunk(const Grad *g) {
    Cg *cg = g->cg;
    Val behind = cg_cmp(cg, LLVMIntSGE, g->start, cg_int64(cg, 0));
    return cg_and(cg, behind, cg_cmp(cg, LLVMIntSLT, g->start, g->seq.length));
}

/* Nobody reads the task's scratch again: its lines need not leave the L2 cache for memory. A caller's workspace
 * may begin within a line, which is left alone then. */
static void drop_scratch(Grad *g) {
    Cg *cg = g->cg;
    Val begin = LLVMBuildPtrToInt(cg->b, g->scratch, cg->i64, "");
    Val skip = cg_and(cg, cg_sub(cg, cg_int64(cg, 0), begin), cg_int64(cg, L2_LINE - 1));
    Val from = cg_gep8(cg, g->scratch, skip);
    Val whole = cg_sub(cg, cg_int(cg, (int)(g->scratch_bytes - L2_LINE + 1)), cg_trunc32(cg, skip));
    int step = L2_LINE * 32 * g->g->s.warps;
    Loop l = cg_for(cg, cg_mul(cg, nv_tid(cg), cg_int(cg, L2_LINE)), whole, step, false);
    nv_discard_line(cg, cg_gep8(cg, from, cg_zext64(cg, l.i)));
    cg_end_for(cg, &l);
}

/* The loop over tasks. Between the first phase and the last one not even the task's number is in a register:
 * the loop goes on from what was kept of it. */
static void build(Grad *g, const GradPhase *phase, int phases) {
    Cg *cg = g->cg;
    Val slots = cg_frame_field(cg, frame_gradient(g->k, GRAD_SLOTS));
    g->heads = cg_trunc32(cg, cg_frame_field(cg, FRAME_H));
    Val tasks = cg_mul(cg, cg_trunc32(cg, slots), g->heads);
    Loop l = cg_for(cg, cg_mul(cg, nv_block(cg), group_of(g)), tasks, 1, false);
    place_thread(g);
    place_task(g, l.i);
    Var task = cg_var(cg, cg->i32, l.i);
    If some = cg_if(cg, has_chunk(g));
    keep_task(g);
    for (int i = 0; i < phases; i++) {
        if (i > 0 && i == phases - 1)
            take_task_back(g);
        phase[i].build(g);
        if (i > 0 && i == phases - 1)
            cg_set(cg, task, kept_task(g));
        nv_barrier(cg);
    }
    if (g->scratch_is_done)
        drop_scratch(g);
    cg_end_if(cg, &some);
    l.i = cg_get(cg, task);
    l.step = step_behind(g, l.i);
    cg_end_for(cg, &l);
    cg->tid = NULL;
}

bool grad_build(Cg *cg, CgModule *out, EntryKind kind, const GradPhase *phase, int phases,
                const char **why) {
    Gradient *gradient = NEW(cg->arena, Gradient);
    if (!nv_gradient(cg->arena, cg->k, gradient, why))
        return false;
    Grad *g = NEW(cg->arena, Grad);
    *g = (Grad){.cg = cg, .k = cg->k, .g = gradient};
    if (!plan(g, phase, phases, why))
        return false;
    Buf symbol;
    buf_init(&symbol, cg->arena);
    buf_printf(&symbol, "%s%s_%s", cg->opt->prefix ? cg->opt->prefix : "", cg->k->name,
               kind == ENTRY_late ? "late" : "grad");
    int threads = 32 * gradient->s.warps, per_sm = blocks_per_sm(cg, threads, g->sh_bytes);
    nv_kernel_open(cg, symbol.text, threads, per_sm);
    build(g, phase, phases);
    nv_kernel_close(cg);
    VEC_PUSH(cg->arena, &out->entry,
             ((CgEntry){.kind = kind, .symbol = symbol.text, .threads = threads,
                        .smem_bytes = g->sh_bytes, .per_sm = per_sm,
                        .scratch_bytes = kind == ENTRY_grad ? g->scratch_bytes : 0}));
    out->scan_token_bytes = gradient->s.scan->token_bytes;
    out->scan_carry_bytes = 4 * (int64_t)gradient->s.scan->carry_floats;
    return true;
}

bool nv_build_grad(Cg *cg, CgModule *out, const char **why) {
    const GradPhase phase[] = {{grad_pull_plan, grad_pull},
                               {grad_read_plan, grad_read},
                               {grad_token_plan, grad_tokens}};
    return grad_build(cg, out, ENTRY_grad, phase, 3, why);
}
