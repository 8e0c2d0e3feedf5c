/* The function around the host algorithms.
 *
 *     for task in first..last-1
 *         sequence = task / H, head = task % H
 *         tiles that start from zero, the state from S0 or zero
 *         chunk or recurrent algorithm over the sequence's tokens
 *         the state to S
 */
#include "codegen/host/host.h"
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

/* helpers -------------------------------------------------------------------------------------- */

int64_t host_round(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

int64_t host_alloc(Host *h, int64_t floats) {
    int64_t offset = h->scratch_bytes;
    h->scratch_bytes = host_round(offset + 4 * floats, 64);
    return offset;
}

Val host_at(Host *h, int64_t offset) {
    return cg_gep8(h->cg, h->scratch, cg_int64(h->cg, offset));
}

Val host_element(Host *h, Val base, Val index, int64_t size) {
    return cg_gep8(h->cg, base, cg_mul(h->cg, index, cg_int64(h->cg, size)));
}

Val host_min(Host *h, Val a, Val b) {
    return cg_select(h->cg, cg_cmp(h->cg, LLVMIntSLT, a, b), a, b);
}

Val host_max(Host *h, Val a, Val b) {
    return cg_select(h->cg, cg_cmp(h->cg, LLVMIntSGT, a, b), a, b);
}

Val host_splat(Host *h, Val x) {
    return LLVMTypeOf(x) == h->cg->f32 ? cg_splat(h->cg, x, h->lanes) : x;
}

Val host_zero(Host *h) {
    return LLVMConstNull(h->vec);
}

void host_copy(Host *h, Val out, int64_t ld_out, Val in, int64_t ld_in, Val rows, int64_t cols) {
    Cg *cg = h->cg;
    Loop r = cg_for(cg, cg_int64(cg, 0), rows, 1, false);
    Val to = host_element(h, out, r.i, 4 * ld_out), from = host_element(h, in, r.i, 4 * ld_in);
    Loop c = cg_for(cg, cg_int64(cg, 0), cg_int64(cg, cols), h->lanes, false);
    cg_store(cg, cg_load(cg, h->vec, host_element(h, from, c.i, 4), 4), host_element(h, to, c.i, 4),
             4);
    cg_end_for(cg, &c);
    cg_end_for(cg, &r);
}

void host_fill_zero(Host *h, Val p, int64_t bytes) {
    Cg *cg = h->cg;
    Loop l = cg_for(cg, cg_int64(cg, 0), cg_int64(cg, bytes), 4 * h->lanes, false);
    cg_store(cg, host_zero(h), cg_gep8(cg, p, l.i), 4);
    cg_end_for(cg, &l);
}

/* Element-aligned access to a caller's tensor; only lanes in `mask` are touched (NULL = all), the
 * others read as zero. */
Val host_load_masked(Host *h, Ty t, Val p, Val mask) {
    Cg *cg = h->cg;
    if (!mask)
        return cg_load(cg, t, p, 1);
    Ty overload[2] = {t, cg->ptr};
    Val arg[3] = {p, mask, LLVMConstNull(t)};
    return cg_intrinsic(cg, "llvm.masked.load", overload, 2, arg, 3);
}

void host_store_masked(Host *h, Val x, Val p, Val mask) {
    Cg *cg = h->cg;
    if (!mask) {
        cg_store(cg, x, p, 1);
        return;
    }
    Ty overload[2] = {LLVMTypeOf(x), cg->ptr};
    Val arg[3] = {x, p, mask};
    cg_intrinsic(cg, "llvm.masked.store", overload, 2, arg, 3);
}

/* sequences ------------------------------------------------------------------------------------ */

Val host_integer(Host *h, int field, int width_field, Val i) {
    Cg *cg = h->cg;
    Val at = LLVMBuildIntToPtr(cg->b, cg_frame_field(cg, field), cg->ptr, "");
    Var x = cg_var(cg, cg->i64, NULL);
    If wide = cg_if(cg, cg_cmp(cg, LLVMIntEQ, cg_frame_field(cg, width_field), cg_int64(cg, 8)));
    cg_set(cg, x, cg_load(cg, cg->i64, host_element(h, at, i, 8), 8));
    cg_else(cg, &wide);
    Val narrow = cg_load(cg, cg->i32, host_element(h, at, i, 4), 4);
    cg_set(cg, x, LLVMBuildSExt(cg->b, narrow, cg->i64, ""));
    cg_end_if(cg, &wide);
    return cg_get(cg, x);
}

static void open_sequence(Host *h, Val n) {
    Cg *cg = h->cg;
    Val T = cg_frame_field(cg, FRAME_T), cu = cg_frame_field(cg, FRAME_CU);
    Val C = cg_int64(cg, h->segment);
    Val chunks = LLVMBuildSDiv(cg->b, cg_add(cg, T, cg_sub(cg, C, cg_int64(cg, 1))), C, "");
    Var row0 = cg_var(cg, cg->i64, cg_mul(cg, n, T)), length = cg_var(cg, cg->i64, T);
    Var slot0 = cg_var(cg, cg->i64, cg_mul(cg, n, chunks)); /* frame_slots */
    If packed = cg_if(cg, cg_cmp(cg, LLVMIntNE, cu, cg_int64(cg, 0)));
    Val begin = host_integer(h, FRAME_CU, FRAME_CU_WIDTH, n);
    Val end = host_integer(h, FRAME_CU, FRAME_CU_WIDTH, cg_add(cg, n, cg_int64(cg, 1)));
    cg_set(cg, row0, begin);
    cg_set(cg, length, cg_sub(cg, end, begin));
    cg_set(cg, slot0, cg_add(cg, LLVMBuildSDiv(cg->b, begin, C, ""), n));
    cg_end_if(cg, &packed);
    h->row0 = cg_get(cg, row0);
    h->length = cg_get(cg, length);
    h->slot0 = cg_get(cg, slot0);
}

/* Where this head's elements of each input begin, and how far apart its tokens are. */
static void open_inputs(Host *h) {
    Cg *cg = h->cg;
    for (int i = 0; i < h->k->in.count; i++) {
        const Port *p = &h->k->in.at[i];
        Elem elem = p->is_param ? ELEM_f32 : p->elem;
        int64_t bytes = shape_elements(h->k, p->shape) * elem_size(elem);
        Val base = LLVMBuildIntToPtr(cg->b, cg_frame_field(cg, frame_in_ptr(h->k, i)), cg->ptr, "");
        Val heads = cg_frame_field(cg, frame_in_heads(h->k, i));
        Val own = LLVMBuildSDiv(cg->b, cg_mul(cg, h->head, heads), h->heads, "");
        h->in_stride[i] = cg_mul(cg, heads, cg_int64(cg, bytes));
        base = host_element(h, base, own, bytes);
        if (!p->is_param)
            base = cg_gep8(cg, base, cg_mul(cg, h->row0, h->in_stride[i]));
        h->in_base[i] = base;
    }
}

/* the function --------------------------------------------------------------------------------- */

static void build_task(Host *h, Val task, Algo algo) {
    Cg *cg = h->cg;
    h->heads = cg_frame_field(cg, FRAME_H);
    Val n = LLVMBuildSDiv(cg->b, task, h->heads, "");
    h->head = cg_sub(cg, task, cg_mul(cg, n, h->heads));
    h->task = task;
    open_sequence(h, n);
    host_open_states(h, n);
    open_inputs(h);
    /* What must be zero at the start is known once the rest has been emitted. */
    LLVMBasicBlockRef clear = cg_block(cg, "clear"), start = cg_block(cg, "start");
    LLVMBuildBr(cg->b, clear);
    LLVMPositionBuilderAtEnd(cg->b, start);

    host_start_state(h);
    if (h->gradient) {
        host_matrix_in(h, &h->costate, frame_costate(h->k));
        if (algo == ALGO_chunk)
            host_gradient_task(h);
        else
            host_recurrent_gradient_task(h);
        host_matrix_out(h, &h->costate, frame_costate(h->k) + 1);
    } else if (algo == ALGO_chunk) {
        host_chunk_task(h);
        host_leave_state(h);
    } else {
        host_recurrent_task(h);
    }

    LLVMBasicBlockRef end = LLVMGetInsertBlock(cg->b);
    LLVMPositionBuilderAtEnd(cg->b, clear);
    for (int i = 0; i < h->clear.count; i++)
        host_fill_zero(h, host_at(h, h->clear.at[i].offset), h->clear.at[i].bytes);
    LLVMBuildBr(cg->b, start);
    LLVMPositionBuilderAtEnd(cg->b, end);
}

static void string_attribute(Cg *cg, const char *name, const char *value) {
    LLVMAddAttributeAtIndex(cg->fn, LLVMAttributeFunctionIndex,
                            LLVMCreateStringAttribute(cg->ctx, name, (unsigned)strlen(name), value,
                                                      (unsigned)strlen(value)));
}

static void enum_attribute(Cg *cg, unsigned index, const char *name, uint64_t value) {
    unsigned kind = LLVMGetEnumAttributeKindForName(name, strlen(name));
    LLVMAddAttributeAtIndex(cg->fn, index, LLVMCreateEnumAttribute(cg->ctx, kind, value));
}

static void control_register(Cg *cg, const char *intrinsic, Var word) {
    cg_intrinsic(cg, intrinsic, NULL, 0, &word.p, 1);
}

/* Products of decays pass through denormals on their way to zero, and an x86 core may take a
 * hundred cycles over each. They count as zero while the function runs; the caller's mode comes
 * back after. */
static Var flush_denormals(Cg *cg) {
    enum { FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x40 };
    string_attribute(cg, "denormal-fp-math", "preserve-sign,preserve-sign");
    Var before = cg_var(cg, cg->i32, NULL), now = cg_var(cg, cg->i32, NULL);
    control_register(cg, "llvm.x86.sse.stmxcsr", before);
    cg_set(cg, now, cg_or(cg, cg_get(cg, before), cg_int(cg, FLUSH_TO_ZERO | DENORMALS_ARE_ZERO)));
    control_register(cg, "llvm.x86.sse.ldmxcsr", now);
    return before;
}

/* void symbol(const int64_t *frame, int64_t first, int64_t last, void *scratch) */
static void build_function(Host *h, const char *symbol, Algo algo) {
    Cg *cg = h->cg;
    Ty param[4] = {cg->ptr, cg->i64, cg->i64, cg->ptr};
    cg->fn = LLVMAddFunction(cg->mod, symbol, LLVMFunctionType(cg->voidt, param, 4, false));
    string_attribute(cg, "prefer-vector-width", "512");
    string_attribute(cg, "no-builtins", "");
    enum_attribute(cg, LLVMAttributeFunctionIndex, "nounwind", 0);
    enum_attribute(cg, 1, "noalias", 0);
    enum_attribute(cg, 1, "readonly", 0);
    enum_attribute(cg, 4, "noalias", 0);
    enum_attribute(cg, 4, "align", 64);
    LLVMPositionBuilderAtEnd(cg->b, cg_block(cg, "entry"));
    cg->frame = LLVMGetParam(cg->fn, 0);
    h->scratch = LLVMGetParam(cg->fn, 3);
    bool x86 = strncmp(cg->triple, "x86_64", 6) == 0;
    Var mode = {0};
    if (x86)
        mode = flush_denormals(cg);
    Loop task = cg_for(cg, LLVMGetParam(cg->fn, 1), LLVMGetParam(cg->fn, 2), 1, false);
    build_task(h, task.i, algo);
    cg_end_for(cg, &task);
    if (x86)
        control_register(cg, "llvm.x86.sse.ldmxcsr", mode);
    LLVMBuildRetVoid(cg->b);
}

/* Vector length and micro-kernel by the registers there are. A product of mr x nv accumulators must
 * cover the latency of fma and leave room for nv operands and one broadcast. */
static void choose_vectors(Host *h) {
    const Cg *cg = h->cg;
    h->nv = 2;
    if (strstr(cg->features, "+avx512f"))
        h->lanes = 16, h->mr = 8;
    else if (strstr(cg->features, "+avx2"))
        h->lanes = 8, h->mr = 4;
    else
        h->lanes = 4, h->mr = strncmp(cg->triple, "aarch64", 7) == 0 ? 8 : 4;
    h->vec = LLVMVectorType(cg->f32, (unsigned)h->lanes);
}

static bool build(Cg *cg, Algo algo, CgModule *out, const char **why) {
    const Kernel *k = cg->k;
    Host h = {.cg = cg, .k = k, .slots = 1, .gradient = kernel_is_gradient(k)};
    choose_vectors(&h);
    if (k->level != LEVEL_recurrence)
        h.slots = k->axis.at[AXIS_U].size / k->axis.at[AXIS_C].size;
    h.in_base = NEW_ARRAY(cg->arena, Val, k->in.count + 1);
    h.in_stride = NEW_ARRAY(cg->arena, Val, k->in.count + 1);
    if (!host_plan(&h, why))
        return false;
    char symbol[256];
    snprintf(symbol, sizeof symbol, "%s%s", cg->opt->prefix ? cg->opt->prefix : "", k->name);
    build_function(&h, symbol, algo);
    CgEntry entry = {.kind = ENTRY_host,
                     .symbol = arena_strndup(cg->arena, symbol, strlen(symbol)),
                     .scratch_bytes = h.scratch_bytes + 64};
    VEC_PUSH(cg->arena, &out->entry, entry);
    out->past = h.gradient ? 0 : k->facts.past;
    out->ws_bytes_per_slot_head = h.gradient ? host_checkpoint_bytes(&h) : 0;
    out->chunk = h.segment;
    return cg_optimize(cg, why) && cg_emit(cg, out, why);
}

CgModule *codegen_host(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why) {
    CHECK((opt->algo == ALGO_chunk) == (k->level == LEVEL_tile));
    Cg *volatile cg = cg_open(arena, k, opt, why);
    if (!cg)
        return NULL;
    /* LLVM's memory is not the arena's: catch exhaustion here, then pass it on. */
    jmp_buf here, *outer = arena->oom;
    if (setjmp(here)) {
        arena->oom = outer;
        cg_close(cg);
        longjmp(*outer, 1);
    }
    if (outer)
        arena->oom = &here;
    CgModule *out = NEW(arena, CgModule);
    bool ok = build(cg, opt->algo, out, why);
    arena->oom = outer;
    cg_close(cg);
    return ok ? out : NULL;
}
