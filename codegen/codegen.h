/* codegen: from kernels to machine code through the LLVM C API. LLVM headers appear here and in
 * runtime/hostjit.c, nowhere else.
 *
 *   frame.c    the launch ABI: one flat record of 64-bit fields, the same on every target
 *   build.c    small builder layer: constants, loops, ifs, variables
 *   math.c     elementwise operations on float or <n x float>, per target
 *   llvm.c     contexts, target machines, optimisation, emission of PTX, assembly, objects
 *   sweep.c    what acts on the state token by token, gathered into passes over it
 *   walk.c     the order of a gradient token by token
 *   target.c   the table of targets
 *   host/      CPU: chunk and recurrent algorithms
 *   nvptx/     NVIDIA: factor, chain and recurrent kernels
 */
#ifndef GDR_CODEGEN_H
#define GDR_CODEGEN_H

#include "ir/ir.h"
#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>

/* frame.c -------------------------------------------------------------------------------------- */

/* The launch ABI. Every entry receives one Frame: int64 fields, pointers as integers.
 * Tensors are dense: inputs [B,T,heads,...], params [heads,...] f32, outputs [B,T,H,V].
 * States are [N,H,K,V] or [N,H,V,K], f32, bf16 or f16 (CgOptions). Dense batches: N = B sequences of T tokens. Packed: `cu` points to N+1
 * offsets (cu_width 4 or 8 bytes), B = 1 and T is the total number of tokens.
 * A tensor with fewer heads serves head h from its head h * heads / H. */
enum {
    FRAME_T,          /* tokens per sequence (dense) or in all (packed) */
    FRAME_N,          /* sequences */
    FRAME_H,          /* heads of the outputs and states: the widest input's */
    FRAME_HF,         /* heads of the factor role: least common multiple of those of the inputs it reads */
    FRAME_CU,         /* device pointer to cu_seqlens, or 0 */
    FRAME_CU_WIDTH,   /* 4 or 8 */
    FRAME_S0,         /* initial states, or 0 for zero */
    FRAME_S,          /* final states, or 0 when not wanted */
    FRAME_WS,         /* workspace */
    FRAME_SLOTS,      /* chunk slots in the workspace: see frame_slots */
    /* States in pools, see below; all 0: state number n is that of sequence n. */
    FRAME_S0_STRIDE,  /* bytes from a state (all heads) to the next; 0: they are dense */
    FRAME_S0_SLOTS,   /* indices [N] or [N,columns]: which state of S0 a sequence starts from, or 0 */
    FRAME_S0_COLUMNS,
    FRAME_S0_POOL,    /* states that S0 has, where there are indices */
    FRAME_S0_ACCEPTED,/* counts [N]: which column, counted from 1; or 0 for the first one */
    FRAME_S_STRIDE,
    FRAME_S_SLOTS,    /* indices [N] or, with FRAME_S_EACH, [N,each]: which state of S is written */
    FRAME_S_POOL,
    FRAME_S_ACCEPTED, /* counts [N]: S is the state after so many tokens; or 0 for all of them */
    FRAME_S_EACH,     /* recurrent: the states after each of the first so many tokens, not the last one */
    FRAME_INDEX_WIDTH,/* 4 or 8: bytes of all these indices and counts */
    FRAME_PAST0,      /* f32 [states,H,facts.past] beside S0 and S, addressed by the same numbers: what */
    FRAME_PAST,       /*   prev and cumsum remember (past_list); or 0 for zero, not wanted */
    FRAME_SAVED,      /* forward pass, chunk: with save_every where states go, or 0; with save_all where the
                         records are. See CgOptions */
    FRAME_PORTS       /* per input: pointer, heads; then per output: pointer */
};
/* A sequence starts from state number
 *     n,  or S0_SLOTS[n * S0_COLUMNS + c]       c = S0_ACCEPTED ? S0_ACCEPTED[n] - 1 : 0
 * and leaves state number
 *     n,  or S_SLOTS[n]                         the state after S_ACCEPTED[n] tokens, or after all
 *     n * S_EACH + t,  or S_SLOTS[n * S_EACH + t]   the states after token t, for all t < S_EACH
 * A sequence whose start, or whose S_SLOTS[n], is negative or not in the pool, or whose c is no column,
 * is skipped: no output of it is written and no state. Of S_EACH such a state alone is not written. No
 * two states that are written may have one number, nor one that is written and one that another sequence
 * starts from. A pool may be S0 and S at once: a sequence's state is read before it is written. */
int frame_in_ptr(const Kernel *k, int input);
int frame_in_heads(const Kernel *k, int input);
int frame_out_ptr(const Kernel *k, int output);
int frame_fields(const Kernel *k);

/* By chunks on a GPU a launch works on one segment of the chunk slots after another, so that workspace
 * need not have the records of all chunks. Forward kernels have these fields behind their outputs, gradient
 * kernels those before SEGMENT_SHARED, as the first ones of frame_gradient. A segment is
 *
 *     a range     slots SEGMENT_SLOT and so on, whosesoever they are. Slots follow each other by sequence,
 *                 so at most one sequence crosses either border
 *     a window    forward, dense batches: chunks SEGMENT_CHUNK and so on of every sequence, whose chains
 *                 then run side by side; all of them have these chunks, and cross
 *
 * Where a sequence crosses a border its state goes on through memory. Records lie in the order of slots, in
 * a window as if sequences had no other chunks. */
enum {
    SEGMENT_SLOT,      /* the first slot; a window: 0 */
    SEGMENT_SLOTS,     /* number of slots; a window: N * SEGMENT_CHUNKS */
    SEGMENT_STATE_IN,  /* f32 [H,K,V], and behind it [H,V] that belong to it (the scales by which a kernel
                          keeps it): state of the sequence that comes in from the segment before. A window:
                          one of these for each sequence */
    SEGMENT_STATE_OUT, /* where that of the sequence that goes on goes, or 0; a window: may be STATE_IN */
    SEGMENT_AHEAD,     /* values made ahead, see SCAN_TOKENS: of all tokens of the batch */
    SEGMENT_SHARED,
    SEGMENT_CHUNK = SEGMENT_SHARED, /* a window: its first chunk */
    SEGMENT_CHUNKS,                 /*   and its chunks of a sequence, or 0: a range */
    SEGMENT_FIELDS
};
int frame_segment(const Kernel *k, int field);

/* Gradient kernels (ir.h): two more fields after the outputs, pointers to the gradients of the final
 * states, or 0 for zero, and behind it to where those of the initial states go, or 0. A final state is
 * not given. Outputs are gradients for every head h of the H: of inputs [B,T,H,...], of params f32
 * [N,H,...]; whoever launches sums over heads that share one, and over sequences. An output's pointer
 * may be 0: not wanted. An input of 0 heads is one row that stands for all tokens and heads. */
int frame_costate(const Kernel *k);

/* Gradient kernels on a GPU go over the segments (codegen/nvptx/gradient.h) from the last one on.
 *
 * Heads that share an input. A block of the grad kernel takes GRAD_GROUP neighbouring heads of a chunk
 * one after another. An output of H / GRAD_GROUP heads (frame_out_heads) gets the sum over those of each
 * group, in the order of the heads, kept in the output's own type and memory from head to head; one of H
 * heads gets each head's own. GRAD_GROUP divides H and the number of heads that share any such input.
 *
 * Parts. What is still to be summed, over groups that share an input and over everything for params, has
 * the output's pointer above at its parts:
 *     of inputs  [B,T,frame_out_heads,...] of the output's type; memory is there for the rows of the
 *                segment's tokens alone, so the pointer itself may lie anywhere
 *     of params  f32 [slots,H,...], all slots of all segments; whoever launches has filled it with zeros
 *                where slots may have no chunk
 * The sums entry runs behind each segment's grad entry. It sums gradients of inputs for the segment's
 * tokens, and those of params over all FRAME_SLOTS slots in the segment that begins with slot 0. */
enum {
    GRAD_SLOT = SEGMENT_SLOT,
    GRAD_SLOTS = SEGMENT_SLOTS,
    GRAD_STATE_IN = SEGMENT_STATE_IN,
    GRAD_STATE_OUT = SEGMENT_STATE_OUT,
    GRAD_AHEAD = SEGMENT_AHEAD,
    GRAD_COSTATE_IN = SEGMENT_SHARED, /* as STATE_IN, backwards: of the sequence that goes on behind it */
    GRAD_COSTATE_OUT, /* of the one that came in */
    GRAD_SCRATCH,     /* scratch_bytes of the grad entry for each of its blocks */
    GRAD_SAVE_EVERY,  /* CgOptions.save_every of a forward pass whose states are at FRAME_SAVED: the chain may
                         start at each of them. 0: it may not */
    GRAD_GROUP,       /* heads that a block of the grad and late entries takes one after another, from 1 on */
    GRAD_FIELDS
};
int frame_gradient(const Kernel *k, int field);
int frame_out_heads(const Kernel *k, int output); /* of what its pointer points to: H, or H / GRAD_GROUP */
int frame_sum(const Kernel *k, int output); /* where the sum of its parts goes; 0: not summed */
int frame_sum_heads(const Kernel *k, int output); /* and its heads, those of the input it belongs to */

/* Chunk slots. Sequence n owns slots first(n), first(n)+1, ...: one a chunk.
 * Dense: first(n) = n * ceil(T/C). Packed: first(n) = cu[n]/C + n, which never overlaps since
 * floor(a/C) + ceil(l/C) <= floor((a+l)/C) + 1; so a kernel finds its sequence by bisection in cu
 * and no host ever reads it. Slots in all: N*ceil(T/C), or T/C + N. */
int64_t frame_slots(int64_t T, int64_t N, bool packed, int64_t C);

/* Values made ahead (codegen/nvptx/scan.h) take workspace from SEGMENT_AHEAD, a multiple of 256 bytes, on:
 * tokens*H*scan_token_bytes, with all tokens of the batch, and from the next such multiple on
 * stretches*H*scan_carry_bytes, stretches = frame_slots(T, N, packed, SCAN_TOKENS). */
enum { SCAN_TOKENS = 32 };

/* Whether factor-role instructions read input i (it then counts for FRAME_HF). */
bool frame_factor_reads(const Kernel *tile, int input);

/* what a compilation produces ------------------------------------------------------------------ */

typedef enum {
    ENTRY_scan,  /* values made ahead of the factor, see codegen/nvptx/scan.h */
    ENTRY_carry,
    ENTRY_factor,
    ENTRY_chain,
    ENTRY_past,  /* what a forward pass leaves at FRAME_PAST, where that is wanted */
    ENTRY_reverse, /* gradient kernels: these three too, see codegen/nvptx/gradient.h */
    ENTRY_grad,
    ENTRY_late,    /* gradients that wait for those of later tokens, behind the scans behind grad */
    ENTRY_sums,
    ENTRY_recurrent,
    ENTRY_recurrent_grad, /* gradient kernels at recurrence level: this and sums */
    ENTRY_host
} EntryKind;

/* One callable symbol and how to call it.
 * GPU: a 1-D grid, entries in the order of the list. scan: stretches*H blocks; carry: N*H blocks (values
 *      made ahead, see SCAN_TOKENS, once for all segments). Of a segment, factor: SEGMENT_SLOTS*HF blocks
 *      (head fastest); chain: min(N, SEGMENT_SLOTS)*H*vtiles blocks, or N*H*vtiles where there are no slots,
 *      vtiles = ceil(V / v_tile), V tile fastest, then head; recurrent: N*H*vtiles. Of several chain entries,
 *      widest tile first, a launch takes one, whichever fills the GPU better. The kernel's one parameter is
 *      the frame by value. reverse: as chain, a choice of its own; with GRAD_SAVE_EVERY the chain has as many for each interval
 *      between its multiples, interval before sequence: at least of as many sequences as can lie in one.
 *      grad, sums: any number of blocks, which share out the work; per_sm of them fit a multiprocessor.
 *      recurrent_grad: N*H blocks, head fastest, each with scratch_bytes of its own from GRAD_SCRATCH
 *      on; one segment of all slots, a slot for every `chunk` tokens of a sequence as in the chunk
 *      gradient.
 * Host: void f(const int64_t *frame, int64_t first, int64_t last, void *scratch) runs the tasks
 *      first..last-1, task = sequence * H + head; scratch is private to the calling thread. */
typedef struct CgEntry {
    EntryKind kind;
    const char *symbol;
    int threads, smem_bytes, v_tile;  /* GPU */
    int per_sm;                       /* GPU: grad, sums */
    int64_t scratch_bytes;            /* host: 64-byte aligned scratch a thread needs; GPU: a block */
} CgEntry;

typedef struct CgModule {
    const char *target;               /* "host", "sm_90a", ... */
    char *text;                       /* PTX, or LLVM IR with want_llvm (host: NULL without) */
    void *object;                     /* host: the object file */
    size_t text_len, object_len;
    VEC(CgEntry) entry;
    int64_t ws_bytes_per_slot_head;   /* GPU chunk: workspace bytes for one slot and factor head;
                                         host: of a gradient kernel, for one slot and head of H */
    uint64_t records;                 /* GPU chunk, gradient kernels and forward ones with save_all: says what
                                         is where in a record; kernels with the same number understand each
                                         other's. 0: others */
    int64_t scan_token_bytes;         /* GPU chunk: further workspace, for values made ahead: for a */
    int64_t scan_carry_bytes;         /*   token and head, for a stretch of SCAN_TOKENS and head */
    int chunk;                        /* tokens per chunk */
    int past;                         /* facts.past of a forward kernel */
} CgModule;

typedef enum { ALGO_chunk, ALGO_recurrent } Algo;

typedef struct CgOptions {
    const char *target;    /* "host", "sm_80", "sm_90a" */
    const char *cpu;       /* host: NULL = this machine's */
    const char *features;  /* host: NULL = this machine's */
    Algo algo;             /* chunk wants a tile-level kernel, recurrent a recurrence-level one */
    Elem io;               /* type of outputs */
    Elem state;            /* type of states in memory: f32, bf16 or f16; gradient kernels: f32 */
    bool state_vk;         /* states are [V,K] in memory, not [K,V]; not of gradient kernels */
    int v_tile;            /* GPU chain, recurrent: V columns a block owns; 0 = the target's choice */
    int opt_level;         /* 0..3 */
    int save_every;        /* GPU chain of a forward pass: the state at the start of every chunk whose slot
                              is a multiple of it, and not its sequence's first, goes to FRAME_SAVED, as number
                              slot / save_every - 1 of what GRAD_STATE_IN points to one of; 0: never */
    bool save_all;         /* GPU forward pass: records are what a gradient kernel's would be, with A and the
                              trail (codegen/nvptx/gradient.h), one a slot and head of H, HF = H; they lie from
                              FRAME_SAVED on, and FRAME_WS is for values made ahead alone. Whoever has them needs
                              no factor and no chain for gradients, if CgModule.records is the same */
    bool no_wgmma;         /* the schedule of older GPUs: what the other is compared with */
    bool want_llvm;        /* fill text with LLVM IR instead of PTX */
    bool sizes_only;       /* all that a CgModule says of the code, without the code: nothing is optimised or
                              translated, text is an entry's first words */
    const char *prefix;    /* symbol prefix */
} CgOptions;

/* target.c: NULL when the target is unknown. */
typedef struct Target {
    const char *name;      /* "host" or an sm_ name */
    bool gpu;
    const char *features;  /* LLVM target features */
    int smem_limit;        /* bytes of shared memory a block may use */
    bool wgmma;            /* warpgroup products and bulk copies */
} Target;
const Target *target_find(const char *name);
extern const Target target_list[];
extern const int target_count;

/* Compile. Errors of the environment or limits (a dim over 256 on the GPU, ...) return NULL and one
 * line in *why, allocated in `arena`. */
CgModule *codegen_host(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why);
CgModule *codegen_nvptx(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why);

/* build.c -------------------------------------------------------------------------------------- */

typedef LLVMValueRef Val;
typedef LLVMTypeRef Ty;

typedef struct Cg {
    Arena *arena;
    const Kernel *k;
    const CgOptions *opt;
    const Target *target;
    LLVMContextRef ctx;
    LLVMModuleRef mod;
    LLVMBuilderRef b;
    LLVMTargetMachineRef tm;
    Ty i1, i8, i16, i32, i64, f16, bf16, f32, f64, voidt;
    Ty ptr, ptr_global, ptr_shared; /* address spaces 0, 1, 3 */
    Val fn;                         /* the function being built */
    Val frame;                      /* pointer to its frame */
    Val tid;                        /* GPU: what stands for the thread's number; NULL: itself */
    char *triple, *cpu, *features;  /* what the target machine was made for; LLVM's strings */
    LLVMMemoryBufferRef text, object; /* what cg_translate made, until cg_take */
    char error[256];                /* the first error LLVM reported through its context */
} Cg;

/* llvm.c: a Cg ready to build into; disposed with cg_close. */
Cg *cg_open(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why);
void cg_close(Cg *cg);
/* Verify, then the pass pipeline; then text and, on the host, the object. Neither uses the arena or
 * writes anything but *cg, so Cgs may go through them at the same time. */
bool cg_optimize(Cg *cg, const char **why);
bool cg_translate(Cg *cg, const char **why);
void cg_take(Cg *cg, CgModule *out);                    /* what cg_translate made, into the arena */
bool cg_emit(Cg *cg, CgModule *out, const char **why);  /* cg_translate and cg_take */

Val cg_int(Cg *cg, int64_t x);       /* i32 */
Val cg_int64(Cg *cg, int64_t x);
Val cg_float(Cg *cg, double x);      /* f32 */
Val cg_splat(Cg *cg, Val x, int n);  /* <n x type of x> */
Val cg_add(Cg *cg, Val a, Val b);    /* integers of one type */
Val cg_sub(Cg *cg, Val a, Val b);
Val cg_mul(Cg *cg, Val a, Val b);
Val cg_udiv(Cg *cg, Val a, Val b);
Val cg_urem(Cg *cg, Val a, Val b);
Val cg_and(Cg *cg, Val a, Val b);
Val cg_or(Cg *cg, Val a, Val b);
Val cg_xor(Cg *cg, Val a, Val b);
Val cg_shl(Cg *cg, Val a, int n);
Val cg_shr(Cg *cg, Val a, int n);    /* logical */
Val cg_cmp(Cg *cg, LLVMIntPredicate p, Val a, Val b);
Val cg_select(Cg *cg, Val c, Val a, Val b);
Val cg_fadd(Cg *cg, Val a, Val b);   /* float or vector; contraction to fma allowed */
Val cg_fsub(Cg *cg, Val a, Val b);
Val cg_fmul(Cg *cg, Val a, Val b);
Val cg_fdiv(Cg *cg, Val a, Val b);
Val cg_fma(Cg *cg, Val a, Val b, Val c);
Val cg_zext64(Cg *cg, Val a);
Val cg_trunc32(Cg *cg, Val a);
Val cg_gep8(Cg *cg, Val p, Val bytes);             /* byte offset, keeps the address space */
Val cg_load(Cg *cg, Ty t, Val p, int align);
Val cg_load_invariant(Cg *cg, Ty t, Val p, int align); /* never written during the launch */
void cg_store(Cg *cg, Val x, Val p, int align);
Val cg_intrinsic(Cg *cg, const char *name, const Ty *overload, int noverload, Val *arg, int narg);
Val cg_asm(Cg *cg, Ty ret, const char *text, const char *constraints, bool side_effect, Val *arg, int narg);
Val cg_frame_field(Cg *cg, int field);             /* i64 */
Val cg_extract(Cg *cg, Val aggregate_or_vector, int i);
Val cg_insert(Cg *cg, Val vector, Val x, int i);

/* A mutable local: an alloca in the entry block, which SROA turns into SSA. */
typedef struct Var { Val p; Ty t; } Var;
Var cg_var(Cg *cg, Ty t, Val init); /* init may be NULL */
Val cg_get(Cg *cg, Var v);
void cg_set(Cg *cg, Var v, Val x);

/* for (i = lo; i < hi; i += step) with i, lo, hi of one integer type. The loop is never unrolled
 * by LLVM unless `unroll`. */
typedef struct Loop { LLVMBasicBlockRef head, exit; Var var; Val i, step; bool unroll; } Loop;
Loop cg_for(Cg *cg, Val lo, Val hi, int64_t step, bool unroll);
void cg_end_for(Cg *cg, Loop *l);
typedef struct If { LLVMBasicBlockRef otherwise, end; bool has_else; } If;
If cg_if(Cg *cg, Val cond);
void cg_else(Cg *cg, If *f);
void cg_end_if(Cg *cg, If *f);
LLVMBasicBlockRef cg_block(Cg *cg, const char *name);

/* math.c --------------------------------------------------------------------------------------- */

/* One elementwise operation; a, b are float or <n x float>, b is NULL for unary ones. */
Val cg_pointwise(Cg *cg, Op op, Val a, Val b);
/* An angle less whole turns, in [-pi, pi]: what a running sum of angles keeps, so that it stays exact. */
Val cg_within_turn(Cg *cg, Val x);
/* Memory type <-> f32, for one element or a vector of n. */
Ty cg_elem_type(Cg *cg, Elem e);
Val cg_to_f32(Cg *cg, Val x);
Val cg_from_f32(Cg *cg, Val x, Elem e);

#endif
