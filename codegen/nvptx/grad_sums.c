/* The sums entry: gradients that several heads, or all chunks, share.
 *
 *     inputs  [B,T,heads,...] of parts [B,T,frame_out_heads,...], for the tokens of the segment: a thread
 *             takes one access of a row and goes over the groups of heads that share it. Nothing but
 *             memory's speed counts.
 *     params  [heads,...] of parts [slots,H,...], f32, behind the last segment (the one of slot 0): a
 *             block takes up to 32 elements of a head; its threads go over the slots side by side, then
 *             lanes add up, then warps.
 *
 * Every sum is taken in one order, whatever the number of blocks, so it is the same in every run.
 */
#include "codegen/nvptx/gradient.h"

enum { THREADS = 256, WARPS = THREADS / 32, PER_SM = 4 };

typedef struct Sums {
    Cg *cg;
    const Kernel *k;
    int chunk;               /* tokens of a slot */
    Val tid, lane, warp;
    Val block, blocks;       /* i64 */
    Val heads;               /* i64, of H */
    Val first_row, rows;     /* i64: the segment's tokens */
} Sums;

/* The first token row of chunk slot `slot` (i64) and of all behind it; rows of no sequence, in front and
 * behind, are none of theirs. */
static Val row_of_slot(Sums *s, Val slot) {
    Cg *cg = s->cg;
    int chunk = s->chunk;
    Val slots = cg_frame_field(cg, FRAME_SLOTS), zero = cg_int64(cg, 0), number;
    Val inside = cg_cmp(cg, LLVMIntSLT, slot, slots);
    Val last = cg_sub(cg, slots, cg_int64(cg, 1));
    Seq seq = seq_of_slot(cg, cg_select(cg, inside, slot, last), chunk, &number);
    Val token = cg_mul(cg, number, cg_int64(cg, chunk));
    Val early = cg_cmp(cg, LLVMIntSLT, number, zero);
    token = cg_select(cg, early, zero, token);
    token = cg_select(cg, cg_cmp(cg, LLVMIntSLT, token, seq.length), token, seq.length);
    return cg_add(cg, seq.begin, cg_select(cg, inside, token, seq.length));
}

static Val pointer(Cg *cg, int field, Val byte) {
    return cg_gep8(cg, nv_global(cg, field), byte);
}

/* inputs ------------------------------------------------------------------------------------------- */

/* sum[] += the accesses at p of heads 0, 1, ... of `group`, `size` bytes apart (i64), two at a time. */
static void add_heads(Sums *s, Elem e, Val p, int n, Val group, Val size, Var *sum) {
    Cg *cg = s->cg;
    Val x[GRAD_ACCESS / 2], y[GRAD_ACCESS / 2], zero = cg_float(cg, 0), one = cg_int64(cg, 1);
    Loop l = cg_for(cg, cg_int64(cg, 0), group, 2, false);
    Val second = cg_cmp(cg, LLVMIntSLT, cg_add(cg, l.i, one), group);
    Val next = cg_select(cg, second, cg_add(cg, l.i, one), l.i);
    grad_load(cg, e, cg_gep8(cg, p, cg_mul(cg, l.i, size)), n, x);
    grad_load(cg, e, cg_gep8(cg, p, cg_mul(cg, next, size)), n, y);
    for (int j = 0; j < n; j++) {
        Val both = cg_fadd(cg, x[j], cg_select(cg, second, y[j], zero));
        cg_set(cg, sum[j], cg_fadd(cg, cg_get(cg, sum[j]), both));
    }
    cg_end_for(cg, &l);
}

/* What the thread's access, number i (i64) of the segment's, adds up to; n elements. */
static void sum_heads(Sums *s, int o, int n, Val heads, Val i) {
    Cg *cg = s->cg;
    const Port *port = &s->k->out.at[o];
    int64_t elements = shape_elements(s->k, port->shape), width = elem_size(port->elem);
    Val size = cg_int64(cg, elements * width), accesses = cg_int64(cg, elements / n);
    Val group = cg_udiv(cg, cg_frame_field(cg, frame_out_heads(s->k, o)), heads);
    Val row = cg_add(cg, cg_mul(cg, s->first_row, heads), cg_udiv(cg, i, accesses));
    Val byte = cg_mul(cg, cg_urem(cg, i, accesses), cg_int64(cg, n * width));
    Val from = cg_add(cg, byte, cg_mul(cg, cg_mul(cg, row, group), size));
    Val p = pointer(cg, frame_out_ptr(s->k, o), from), x[GRAD_ACCESS / 2];
    Var sum[GRAD_ACCESS / 2];
    for (int j = 0; j < n; j++) {
        sum[j] = cg_var(cg, cg->f32, NULL);
        cg_set(cg, sum[j], cg_float(cg, 0));
    }
    add_heads(s, port->elem, p, n, group, size, sum);
    for (int j = 0; j < n; j++)
        x[j] = cg_get(cg, sum[j]);
    Val to = cg_add(cg, byte, cg_mul(cg, row, size));
    grad_store(cg, port->elem, pointer(cg, frame_sum(s->k, o), to), n, x);
}

static void sum_input(Sums *s, int o) {
    Cg *cg = s->cg;
    const Port *port = &s->k->out.at[o];
    int64_t elements = shape_elements(s->k, port->shape);
    int n = grad_group(elements, GRAD_ACCESS, port->elem);
    Val heads = cg_frame_field(cg, frame_sum_heads(s->k, o));
    Val all = cg_mul(cg, cg_mul(cg, s->rows, heads), cg_int64(cg, elements / n));
    Val first = cg_mul(cg, s->block, cg_int64(cg, THREADS));
    Loop l = cg_for(cg, cg_add(cg, first, cg_zext64(cg, s->tid)), all, 1, false);
    l.step = cg_mul(cg, s->blocks, cg_int64(cg, THREADS));
    sum_heads(s, o, n, heads, l.i);
    cg_end_for(cg, &l);
}

/* params ------------------------------------------------------------------------------------------- */

/* A block's threads at a param: lanes side by side along the elements, the rest along slots. */
typedef struct Place {
    int lanes;                /* along elements, a power of two */
    int64_t elements;         /* of the param */
    Val head, heads, group;   /* i64 */
    Val element, exists;      /* i64 this thread's, i1 */
} Place;

/* This thread's share: slots `lane / lanes + warp * (32 / lanes)` and so on. */
static Val sum_slots(Sums *s, int o, const Place *at) {
    Cg *cg = s->cg;
    int side = 32 / at->lanes, log = 0;
    while (1 << log < at->lanes)
        log++;
    Val slot = cg_add(cg, cg_mul(cg, s->warp, cg_int(cg, side)), cg_shr(cg, s->lane, log));
    Val slots = cg_frame_field(cg, FRAME_SLOTS);
    slots = cg_select(cg, at->exists, slots, cg_int64(cg, 0));
    Var sum = cg_var(cg, cg->f32, NULL);
    cg_set(cg, sum, cg_float(cg, 0));
    Loop l = cg_for(cg, cg_zext64(cg, slot), slots, (int64_t)WARPS * side, true);
    Loop h = cg_for(cg, cg_int64(cg, 0), at->group, 1, false);
    Val row = cg_add(cg, cg_mul(cg, l.i, s->heads), cg_mul(cg, at->head, at->group));
    row = cg_mul(cg, cg_add(cg, row, h.i), cg_int64(cg, at->elements));
    Val byte = cg_shl(cg, cg_add(cg, row, at->element), 2);
    Val x = cg_load(cg, cg->f32, pointer(cg, frame_out_ptr(s->k, o), byte), 4);
    cg_set(cg, sum, cg_fadd(cg, cg_get(cg, sum), x));
    cg_end_for(cg, &h);
    cg_end_for(cg, &l);
    return cg_get(cg, sum);
}

/* The block's sum, in the threads of warp 0; shared memory f32 [warps][32]. */
static Val join_threads(Sums *s, const Place *at, Val x) {
    Cg *cg = s->cg;
    for (int m = at->lanes; m < 32; m *= 2)
        x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, m));
    Val mine = cg_add(cg, cg_shl(cg, s->warp, 5), s->lane);
    cg_store(cg, x, cg_gep8(cg, nv_shared(cg, 0), cg_shl(cg, mine, 2)), 4);
    nv_barrier(cg);
    Val sum = NULL;
    for (int w = 0; w < WARPS; w++) {
        Val p = cg_gep8(cg, nv_shared(cg, 128 * (int64_t)w), cg_shl(cg, s->lane, 2));
        Val y = cg_load(cg, cg->f32, p, 4);
        sum = sum ? cg_fadd(cg, sum, y) : y;
    }
    nv_barrier(cg);
    return sum;
}

static void sum_param(Sums *s, int o) {
    Cg *cg = s->cg;
    Place at = {.lanes = 1, .elements = shape_elements(s->k, s->k->out.at[o].shape)};
    while (at.lanes < at.elements && at.lanes < 32)
        at.lanes *= 2;
    int64_t parts = (at.elements + at.lanes - 1) / at.lanes;
    at.heads = cg_frame_field(cg, frame_sum_heads(s->k, o));
    at.group = cg_udiv(cg, s->heads, at.heads);
    Loop l = cg_for(cg, s->block, cg_mul(cg, at.heads, cg_int64(cg, parts)), 1, false);
    l.step = s->blocks;
    at.head = cg_udiv(cg, l.i, cg_int64(cg, parts));
    Val in_part = cg_zext64(cg, cg_and(cg, s->lane, cg_int(cg, at.lanes - 1)));
    Val part = cg_urem(cg, l.i, cg_int64(cg, parts));
    at.element = cg_add(cg, cg_mul(cg, part, cg_int64(cg, at.lanes)), in_part);
    at.exists = cg_cmp(cg, LLVMIntSLT, at.element, cg_int64(cg, at.elements));
    Val sum = join_threads(s, &at, sum_slots(s, o, &at));
    Val writes = cg_cmp(cg, LLVMIntULT, s->tid, cg_int(cg, at.lanes));
    If one = cg_if(cg, cg_and(cg, writes, at.exists));
    Val element = cg_add(cg, cg_mul(cg, at.head, cg_int64(cg, at.elements)), at.element);
    cg_store(cg, sum, pointer(cg, frame_sum(s->k, o), cg_shl(cg, element, 2)), 4);
    cg_end_if(cg, &one);
    cg_end_for(cg, &l);
}

/* ---------------------------------------------------------------------------------------------- */

static void build(Sums *s) {
    Cg *cg = s->cg;
    s->tid = nv_tid(cg);
    s->lane = cg_and(cg, s->tid, cg_int(cg, 31));
    s->warp = nv_shuffle_from(cg, cg_shr(cg, s->tid, 5), cg_int(cg, 0));
    s->block = cg_zext64(cg, nv_block(cg));
    s->blocks = cg_zext64(cg, grad_blocks(cg));
    s->heads = cg_frame_field(cg, FRAME_H);
    Val slot = cg_frame_field(cg, frame_gradient(s->k, GRAD_SLOT));
    Val next = cg_add(cg, slot, cg_frame_field(cg, frame_gradient(s->k, GRAD_SLOTS)));
    s->first_row = row_of_slot(s, slot);
    s->rows = cg_sub(cg, row_of_slot(s, next), s->first_row);
    Val last = cg_cmp(cg, LLVMIntEQ, slot, cg_int64(cg, 0));
    for (int o = 0; o < s->k->out.count; o++) {
        bool param = s->k->out.at[o].is_param;
        Val wanted = cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, frame_sum(s->k, o)), cg_int64(cg, 0));
        If some = cg_if(cg, param ? cg_and(cg, wanted, last) : wanted);
        if (param)
            sum_param(s, o);
        else
            sum_input(s, o);
        cg_end_if(cg, &some);
    }
}

bool nv_build_sums(Cg *cg, CgModule *out, const char **why) {
    (void)why;
    Sums *s = NEW(cg->arena, Sums);
    *s = (Sums){.cg = cg, .k = cg->k, .chunk = out->chunk};
    Buf symbol;
    buf_init(&symbol, cg->arena);
    buf_printf(&symbol, "%s%s_sums", cg->opt->prefix ? cg->opt->prefix : "", cg->k->name);
    nv_kernel_open(cg, symbol.text, THREADS, PER_SM);
    build(s);
    nv_kernel_close(cg);
    VEC_PUSH(cg->arena, &out->entry,
             ((CgEntry){.kind = ENTRY_sums, .symbol = symbol.text, .threads = THREADS,
                        .smem_bytes = 4 * THREADS, .per_sm = PER_SM}));
    return true;
}
