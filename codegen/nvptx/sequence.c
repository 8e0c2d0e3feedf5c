/* Which sequence and which tokens a block works on.
 *
 * Dense batches are arithmetic. Packed ones read the offsets `cu`, which only the device knows: a
 * block finds the sequence that owns its workspace slot by a search over first(n) = cu[n]/C + n,
 * which grows with n. Each warp searches 32 places at a time, a lane each, so up to 32 sequences
 * cost one read and up to 1024 two. All results are the same in every thread of the block.
 *
 * Offsets are clamped to 0 <= begin <= end <= T, so that no contents of `cu` make a kernel touch
 * memory outside its tensors.
 */
#include "codegen/nvptx/nvptx.h"

static Val min64(Cg *cg, Val a, Val b) {
    return cg_select(cg, cg_cmp(cg, LLVMIntSLT, a, b), a, b);
}

static Val max64(Cg *cg, Val a, Val b) {
    return cg_select(cg, cg_cmp(cg, LLVMIntSGT, a, b), a, b);
}

Val nv_integer(Cg *cg, Val p, Val width) {
    Val last = cg_gep8(cg, p, cg_sub(cg, width, cg_int64(cg, 4)));
    Val low = cg_load_invariant(cg, cg->i32, p, 4);
    Val high = cg_load_invariant(cg, cg->i32, last, 4);
    Val wide = cg_or(cg, cg_zext64(cg, low), cg_shl(cg, cg_zext64(cg, high), 32));
    Val is_wide = cg_cmp(cg, LLVMIntEQ, width, cg_int64(cg, 8));
    return cg_select(cg, is_wide, wide, LLVMBuildSExt(cg->b, low, cg->i64, ""));
}

/* cu[n], n i32. */
static Val load_offset(Cg *cg, Val n) {
    Val width = cg_frame_field(cg, FRAME_CU_WIDTH);
    Val at = cg_mul(cg, cg_zext64(cg, n), width);
    Val x = nv_integer(cg, cg_gep8(cg, nv_global(cg, FRAME_CU), at), width);
    return min64(cg, max64(cg, x, cg_int64(cg, 0)), cg_frame_field(cg, FRAME_T));
}

static Val is_packed(Cg *cg) {
    return cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, FRAME_CU), cg_int64(cg, 0));
}

/* ceil(T / C): chunk slots of a dense sequence. */
static Val dense_chunks(Cg *cg, int chunk) {
    Val T = cg_frame_field(cg, FRAME_T);
    Val up = cg_add(cg, T, cg_int64(cg, chunk - 1));
    return cg_udiv(cg, up, cg_int64(cg, chunk));
}

Val seq_slot_of_record(Cg *cg, Val number, int chunk) {
    Val range = cg_frame_field(cg, frame_segment(cg->k, SEGMENT_SLOT));
    range = cg_add(cg, cg_zext64(cg, number), range);
    if (kernel_is_gradient(cg->k))
        return range;
    Var slot = cg_var(cg, cg->i64, range);
    Val chunks = cg_trunc32(cg, cg_frame_field(cg, frame_segment(cg->k, SEGMENT_CHUNKS)));
    Val first = cg_frame_field(cg, frame_segment(cg->k, SEGMENT_CHUNK));
    If window = cg_if(cg, cg_cmp(cg, LLVMIntNE, chunks, cg_int(cg, 0)));
    Val n = cg_zext64(cg, cg_udiv(cg, number, chunks));
    Val of_sequence = cg_add(cg, first, cg_zext64(cg, cg_urem(cg, number, chunks)));
    cg_set(cg, slot, cg_add(cg, cg_mul(cg, n, dense_chunks(cg, chunk)), of_sequence));
    cg_end_if(cg, &window);
    return cg_get(cg, slot);
}

/* first(n) of a packed batch. */
static Val packed_first(Cg *cg, Val begin, Val n, int chunk) {
    return cg_add(cg, cg_udiv(cg, begin, cg_int64(cg, chunk)), cg_zext64(cg, n));
}

Seq seq_of_index(Cg *cg, Val n, int chunk) {
    Val zero = cg_int64(cg, 0), n64 = cg_zext64(cg, n);
    Var begin = cg_var(cg, cg->i64, NULL), length = cg_var(cg, cg->i64, NULL);
    Var slot = cg_var(cg, cg->i64, zero);
    If packed = cg_if(cg, is_packed(cg));
    {
        Val lo = load_offset(cg, n);
        Val hi = load_offset(cg, cg_add(cg, n, cg_int(cg, 1)));
        cg_set(cg, begin, lo);
        cg_set(cg, length, max64(cg, cg_sub(cg, hi, lo), zero));
        if (chunk > 0)
            cg_set(cg, slot, packed_first(cg, lo, n, chunk));
    }
    cg_else(cg, &packed);
    {
        Val T = cg_frame_field(cg, FRAME_T);
        cg_set(cg, begin, cg_mul(cg, n64, T));
        cg_set(cg, length, T);
        if (chunk > 0)
            cg_set(cg, slot, cg_mul(cg, n64, dense_chunks(cg, chunk)));
    }
    cg_end_if(cg, &packed);
    return (Seq){n, cg_get(cg, begin), cg_get(cg, length), cg_get(cg, slot)};
}

/* The last n in [0, N) with first(n) <= slot. Each round keeps one of 32 equal parts. */
static Val search_sequence(Cg *cg, Val slot, int chunk) {
    Val one = cg_int(cg, 1), lane = cg_and(cg, nv_tid(cg), cg_int(cg, 31));
    Var lo = cg_var(cg, cg->i32, cg_int(cg, 0));
    Var hi = cg_var(cg, cg->i32, cg_trunc32(cg, cg_frame_field(cg, FRAME_N)));
    LLVMBasicBlockRef head = cg_block(cg, "search"), body = cg_block(cg, "search.round");
    LLVMBasicBlockRef done = cg_block(cg, "search.done");

    LLVMBuildBr(cg->b, head);
    LLVMPositionBuilderAtEnd(cg->b, head);
    Val left = cg_sub(cg, cg_get(cg, hi), cg_get(cg, lo));
    LLVMBuildCondBr(cg->b, cg_cmp(cg, LLVMIntSGT, left, one), body, done);

    LLVMPositionBuilderAtEnd(cg->b, body);
    Val part = cg_shr(cg, cg_add(cg, left, cg_int(cg, 31)), 5);
    Val place = cg_add(cg, cg_get(cg, lo), cg_mul(cg, lane, part));
    Val inside = cg_cmp(cg, LLVMIntSLT, place, cg_get(cg, hi));
    Val safe = cg_select(cg, inside, place, cg_get(cg, lo));
    Val first = packed_first(cg, load_offset(cg, safe), safe, chunk);
    Val not_after = cg_and(cg, inside, cg_cmp(cg, LLVMIntSLE, first, slot));
    /* Lane 0 counts always: first(lo) <= slot holds from round to round. */
    Val votes = cg_or(cg, nv_ballot(cg, not_after), one);
    Ty overload = cg->i32;
    Val yes = cg_intrinsic(cg, "llvm.ctpop", &overload, 1, &votes, 1);
    Val next_lo = cg_add(cg, cg_get(cg, lo), cg_mul(cg, cg_sub(cg, yes, one), part));
    Val next_hi = cg_add(cg, next_lo, part);
    Val shorter = cg_cmp(cg, LLVMIntSLT, next_hi, cg_get(cg, hi));
    cg_set(cg, hi, cg_select(cg, shorter, next_hi, cg_get(cg, hi)));
    cg_set(cg, lo, next_lo);
    LLVMBuildBr(cg->b, head);

    LLVMPositionBuilderAtEnd(cg->b, done);
    return cg_get(cg, lo);
}

Seq seq_of_slot(Cg *cg, Val slot, int chunk, Val *chunk_in_seq) {
    Var n = cg_var(cg, cg->i32, NULL);
    If packed = cg_if(cg, is_packed(cg));
    cg_set(cg, n, search_sequence(cg, slot, chunk));
    cg_else(cg, &packed);
    {
        /* A launch has less than 2^31 blocks, so slots are 32-bit numbers. */
        Val chunks = cg_trunc32(cg, max64(cg, dense_chunks(cg, chunk), cg_int64(cg, 1)));
        cg_set(cg, n, cg_udiv(cg, cg_trunc32(cg, slot), chunks));
    }
    cg_end_if(cg, &packed);
    Seq s = seq_of_index(cg, cg_get(cg, n), chunk);
    /* Where the first sequence begins behind the first token, slots before it are nobody's. */
    Val past_end = cg_int64(cg, INT64_C(1) << 40), number = cg_sub(cg, slot, s.slot);
    *chunk_in_seq = cg_select(cg, cg_cmp(cg, LLVMIntSLT, number, cg_int64(cg, 0)), past_end, number);
    return s;
}
