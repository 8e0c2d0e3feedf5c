/* codegen/nvptx: CUDA kernels for one block = one (chunk, head) [factor] or one (sequence, head,
 * V tile) [chain, recurrent].
 *
 *   nvptx.c      one instruction, one function: thread numbers, barriers, shuffles, cp.async,
 *                ldmatrix, mma; opening and closing a kernel
 *   wgmma.c      what Hopper adds: warpgroup products, bulk copies
 *   sequence.c   which sequence and which tokens a block works on (dense, packed)
 *   pool.c       which states it starts from and leaves
 *   value.c      evaluation on demand of elementwise values at one token and a run of channels
 *   scan*.c      values made ahead: running sums, and others that need more than a chunk or a thread has
 *   factor*.c    everything of a chunk that does not need the state
 *   chain*.c     the serial walk over chunks, state in registers
 *   reverse*.c   the same walk backwards, for gradients: gradient.h
 *   recurrent*.c token by token: the step kernel, and every spec without a chunk form
 *   recurrent_grad*.c  its gradient
 */
#ifndef GDR_CODEGEN_NVPTX_H
#define GDR_CODEGEN_NVPTX_H

#include "codegen/codegen.h"

/* nvptx.c -------------------------------------------------------------------------------------- */

/* Opens `void symbol(frame by value)` with a fixed block size; cg->fn and cg->frame are set. */
void nv_kernel_open(Cg *cg, const char *symbol, int threads, int min_blocks_per_sm);
void nv_kernel_close(Cg *cg); /* ret void */

Val nv_tid(Cg *cg);                       /* i32, 0..threads-1 */
Val nv_block(Cg *cg);                     /* i32, block number in the 1-D grid */
/* x (i32 or i64) as something new, as far as LLVM knows: what is made of it is not kept from before, in
 * registers, but made again. No instruction. */
Val nv_anew(Cg *cg, Val x);
void nv_barrier(Cg *cg);                  /* whole block */
void nv_warp_sync(Cg *cg);
Val nv_shuffle_xor(Cg *cg, Val x, int lane_mask);   /* f32 or i32, whole warp */
Val nv_shuffle_from(Cg *cg, Val x, Val lane);       /* value of lane `lane` (i32) */
/* Value of lane `lane`, but with the own lane's bits where `kept` has ones. */
Val nv_shuffle_beside(Cg *cg, Val x, int lane, int kept);
Val nv_ballot(Cg *cg, Val condition);               /* i32: bit per lane whose condition (i1) holds */
Val nv_shared(Cg *cg, int64_t byte_offset);         /* into dynamic shared memory (addrspace 3) */
Val nv_global(Cg *cg, int frame_field);             /* pointer field as addrspace(1) pointer */

/* 16 bytes global -> shared, asynchronously; only `bytes` (i32, 0 or 16) are read, the rest is zero. */
void nv_copy_async(Cg *cg, Val dst, Val src, Val bytes);
/* The 128 bytes at p, a multiple of that in global memory, may be anything from now on. */
void nv_discard_line(Cg *cg, Val p);
void nv_copy_commit(Cg *cg);
void nv_copy_wait(Cg *cg, int groups_in_flight);

/* Four 8x8 matrices of 2-byte elements from shared memory; lane l gives the address of row l%8 of
 * matrix l/8. out[j]: i32 pair of row lane/4, columns 2*(lane%4), +1 (of the transpose if `trans`). */
void nv_ldmatrix4(Cg *cg, Val p, bool trans, Val out[4]);
Val nv_movmatrix(Cg *cg, Val x);                    /* transpose an 8x8 of 2-byte elements across the warp */

/* acc[4] += A[16x16] B[16x8], f32 accumulators; e is bf16 or f16.
 * With g = lane/4, t = lane%4: a0,a2 rows g, a1,a3 rows g+8; a0,a1 columns 2t,2t+1; a2,a3 columns
 * 2t+8,2t+9; b0 rows(k) 2t,2t+1, b1 rows 2t+8,2t+9, column g; acc rows g (0,1), g+8 (2,3), columns 2t,2t+1. */
void nv_mma(Cg *cg, Elem e, Val acc[4], const Val a[4], const Val b[2]);
/* acc[4] += A[16x8] B[8x8], tf32: a0 (g,t) a1 (g+8,t) a2 (g,t+4) a3 (g+8,t+4); b0 (t,g) b1 (t+4,g).
 * Operands are i32 bit patterns from nv_tf32. */
void nv_mma_tf32(Cg *cg, Val acc[4], const Val a[4], const Val b[2]);
Val nv_tf32(Cg *cg, Val f32);                       /* round to nearest; i32 */

Val nv_pack(Cg *cg, Elem e, Val lo, Val hi);        /* two f32 -> i32 of two 2-byte elements */
void nv_unpack(Cg *cg, Elem e, Val pair, Val out[2]);
Val nv_mul_pair(Cg *cg, Elem e, Val a, Val b);      /* elementwise product of two pairs */
Val nv_larger(Cg *cg, Val a, Val b);                /* f32; the other one of a NaN */
Val nv_magnitude(Cg *cg, Val f32);

/* e^x for x <= 0: two instructions, relative error 2^-22 + |x| 2^-24. */
Val nv_exp_decay(Cg *cg, Val x);

/* The power of two at or below |x| (x finite; 2^-126 for smaller ones), and 1 over such a power. */
Val nv_power_below(Cg *cg, Val f32);
Val nv_power_inverse(Cg *cg, Val power);

/* wgmma.c, sm_90a only ------------------------------------------------------------------------- */

/* A matrix in shared memory, laid out by nv_place at a multiple of 1024 bytes, as the B operand of a
 * warpgroup's products: contracted along its columns (B = its transpose) or along its rows (B = it). */
typedef struct Wgmma {
    Val descriptor;            /* i64 */
    int rows, columns;         /* multiples of 16 */
    bool along_rows;
} Wgmma;
Wgmma nv_wgmma_matrix(Cg *cg, Val p, int rows, int columns, bool along_rows);
/* acc (+)= A B, committed as one group that runs on. Warp w of the warpgroup holds rows 16w .. 16w+15
 * of A and of the result: operands and accumulators are those of n/8 nv_mma side by side, acc[4i ..]
 * for columns 8i .. 8i+7 and a[4s ..] for k-step s. No accumulator and no operand may be used before
 * nv_wgmma_wait, except by another nv_wgmma (operands). */
void nv_wgmma(Cg *cg, Elem e, Val *acc, const Val *a, const Wgmma *b, bool accumulate);
/* Waits until at most this many groups of the warp's are under way; acc[] are then readable. */
void nv_wgmma_wait(Cg *cg, int groups_in_flight, Val *acc, int count);

/* x[] (f32) are computed here, not after the next wait where they may first be used. No instruction. */
void nv_work_out(Cg *cg, Val *x, int count);

/* A barrier (8 bytes of shared memory) that opens once per bulk copy. By one thread, before a block
 * barrier. */
void nv_arrival_init(Cg *cg, Val barrier);
/* Until copy number i (from 0) on this barrier has arrived; parity = i % 2 (i32). */
void nv_arrival_wait(Cg *cg, Val barrier, Val parity);
/* Where `condition` (i1), true in one thread at most: global -> shared, both 16-byte aligned, bytes a
 * multiple of 16. What it writes may be read by wgmma without a fence. */
void nv_copy_bulk_if(Cg *cg, Val condition, Val dst, Val src, int bytes, Val barrier);
/* nv_copy_async where `condition` (from sm_80 on). */
void nv_copy_async_if(Cg *cg, Val condition, Val dst, Val src, Val bytes);

/* sequence.c ----------------------------------------------------------------------------------- */

/* What a block needs to know of its sequence. Token numbers count rows of the [B*T, heads, ...]
 * tensors: token `begin + t` is the sequence's token t. */
typedef struct Seq {
    Val index;   /* i32 sequence number */
    Val begin;   /* i64 first token row */
    Val length;  /* i64 tokens */
    Val slot;    /* i64 first workspace slot */
} Seq;
/* The integer of 4 or 8 bytes (`width`, i64) at p, as i64. It is read as words: the low one, and the
 * one that ends it, which is the high word of 8 bytes or the low one again. */
Val nv_integer(Cg *cg, Val p, Val width);
/* Sequence `n` (i32). */
Seq seq_of_index(Cg *cg, Val n, int chunk);
/* The sequence that owns workspace slot `slot` (i64), and the chunk's number in it (i64);
 * packed: by bisection in cu. The chunk may lie past the sequence's end: check. */
Seq seq_of_slot(Cg *cg, Val slot, int chunk, Val *chunk_in_seq);
/* The slot (i64) that record `number` (i32) of a head is that of, in the segment at work. */
Val seq_slot_of_record(Cg *cg, Val number, int chunk);

/* pool.c --------------------------------------------------------------------------------------- */

/* Which states a block's sequence starts from and leaves behind: codegen.h at frame_in_ptr. Numbers are
 * i64, -1 for none; a sequence that is skipped has no tokens any more, and none of either. */
typedef struct Pool {
    Val first;   /* number of the state in S0 */
    Val last;    /* number in S of the state after `commit` tokens */
    Val commit;  /* i64 */
    Val each;    /* i64: states after each of so many tokens instead; 0: none */
} Pool;
Pool pool_of_sequence(Cg *cg, Seq *s);
/* The number in S0 that the sequence (i32) starts from, whether or not it is skipped for what S's indices
 * say; -1 for none. */
Val pool_first(Cg *cg, Val sequence);
/* The number in S of the state after token t (i64, from 0) with `each`. */
Val pool_after(Cg *cg, const Pool *p, const Seq *s, Val t);
/* State `number` of S0 or S (a frame field), of this head. */
Val pool_state(Cg *cg, int field, Val number, Val head);
/* Bytes from the start of a head's state to its element k, v (i32), as i64; and those from element to
 * element along K and along V. */
Val pool_element(Cg *cg, Val k, Val v);
int64_t pool_step(const Cg *cg, int axis);
/* One element of a state, in memory of its type. */
Val pool_get(Cg *cg, Val p);
void pool_put(Cg *cg, Val x, Val p);

/* value.c -------------------------------------------------------------------------------------- */

/* Where elementwise values are wanted: one token, one head, and a run of n consecutive elements
 * per axis that this thread holds. Values with axis C (or none) and K or V only. What is evaluated
 * is remembered until value_begin, so code built after must be dominated by code built before. */
typedef struct ValueAt ValueAt;
typedef struct Scan Scan; /* scan.h */
typedef struct ValuePort {
    Val base, stride; /* i64 bytes from token to token; NULL: there are none */
    Val heads;        /* i64; the stride is heads rows of: */
    int64_t bytes;
} ValuePort;
struct ValueAt {
    Cg *cg;
    Val token;            /* i64 token row; clamped by the caller to one that exists */
    Val origin;           /* i64 token row from which value_ports counts; NULL: 0 */
    Val offset;           /* i32 >= 0, token - origin, which saves multiplications; NULL: not at hand */
    Val valid;            /* i1: false = loads of per-token inputs give 0; NULL = always valid */
    Val zeros;            /* from value_zeros: read in place of rows that are not valid, which costs
                             one selection an address, not one an element; NULL = select elements */
    Val first;            /* i1: the token is its sequence's first (for prev) */
    Val begin;            /* i64 the sequence's first token row; wanted by prev of prev only */
    Val past;             /* from value_past: what prev gives at the first token; NULL: 0 */
    Val last, end;        /* likewise for after: i1 the sequence's last; i64 the row behind that */
    Val head;             /* i32 head number among FRAME_H heads (factor: among FRAME_HF) */
    Val heads;            /* i32 FRAME_H or FRAME_HF */
    Val base_k, base_v;   /* i32 first element held along K, V */
    int n_k, n_v;         /* elements held; base is a multiple of n */
    bool past_k, past_v;  /* base may lie past the axis' end although n divides its size */
    bool frugal;          /* strides of ports are made again wherever they are wanted, since they would take
                             registers as long as there are tokens */
    /* How this kernel obtains a value it keeps elsewhere: a reduction finished earlier, a state
     * read, a staged tile. Return true after filling out[]; false = evaluate from operands.
     * Not asked for values of earlier tokens (under prev). */
    bool (*lookup)(ValueAt *at, int v, Val *out);
    /* How OP_sum over `axis` completes across threads: partial is this thread's sum over its run. */
    Val (*sum)(ValueAt *at, int v, int axis, Val partial);
    void *user;
    const Scan *scan;     /* values made ahead: those of rounds before `round` are read from memory */
    int round;
    /* Filled by value.c. */
    Val **memo;           /* [value] -> its elements, filled on demand; value_begin clears it */
    ValueAt *before;      /* the same place one token earlier */
    ValueAt *after;       /* and one later */
    ValuePort *port;      /* [input], then by number of what is made ahead, from value_ports: this head's
                             address at the origin, bytes a token */
};
/* Compute the addresses that depend on the head alone; optional, once, where it dominates all use. */
void value_ports(ValueAt *at);
void value_begin(ValueAt *at);
/* What the sequence (i32) and head of so many remember of the tokens before it: a record of FRAME_PAST0, or
 * a null pointer where there is none; NULL where kernels remember nothing. Heads of the factor role have the
 * record of the first of theirs: where all that a value is made of is shared, so is what is remembered. */
Val value_past(Cg *cg, Val sequence, Val head, Val heads);
/* x[] becomes this thread's run of what prev or cumsum v looks back at, where the record has it and `where`
 * (i1; NULL: always) holds. */
void value_recall(ValueAt *at, int v, Val where, Val *x);
/* The place one token earlier (at->first: the same token). */
ValueAt *value_before(ValueAt *at);
/* Global memory full of zeros, as long as the longest row of an input or value. */
Val value_zeros(Cg *cg);
/* Number of elements this thread holds of a value: 1, n_k or n_v. */
int value_count(const ValueAt *at, int v);
/* The f32 elements of value v at `at`. Elements past the axis' size are loaded as 0, and expressions
 * of them are what they are: exp(0) = 1. */
const Val *value_get(ValueAt *at, int v);
/* As value_get with 0 for every element past the axis' size: what sums and products may take. */
void value_get_padded(ValueAt *at, int v, Val *out);
/* i1: element `base + j` exists; NULL when it always does. */
Val value_exists(ValueAt *at, int axis, int j);
/* Whether v is read from memory: an input, or made ahead. */
bool value_in_memory(const ValueAt *at, int v);
/* The two halves of reading such a value, for kernels that load ahead of use: value_load issues
 * value_accesses(v) loads, value_unpack makes their results elements. */
int value_accesses(const ValueAt *at, int v);
void value_load(ValueAt *at, int v, Val *loaded);
/* Where the accesses go, their size in bytes, and the same loads from copies of what is there. */
void value_addresses(ValueAt *at, int v, Val *address);
int value_access_bytes(const ValueAt *at, int v);
void value_load_copy(ValueAt *at, int v, const Val *copy, Val *loaded);
void value_unpack(ValueAt *at, int v, const Val *loaded, Val *out);
/* What v becomes when every per-token input is 0, or NaN where that is not plain to see. */
double value_at_rest(const Kernel *k, int v);

/* factor.c, chain.c, recurrent.c --------------------------------------------------------------- */

/* Each adds one entry to the module being built; false with *why when a limit is exceeded. */
bool nv_build_factor(Cg *cg, CgModule *out, const char **why);
bool nv_build_chain(Cg *cg, CgModule *out, const char **why);
bool nv_build_recurrent(Cg *cg, CgModule *out, const char **why);

#endif
