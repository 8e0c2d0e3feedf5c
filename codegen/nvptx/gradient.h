/* The gradient on the GPU: what its kernels share. Private to codegen/nvptx.
 *
 * A gradient kernel (passes/adjoint.c, docs/passes.md) becomes these entries, launched in this order for
 * one segment of chunk slots after another:
 *
 *     scan, carry                      values made ahead, once for all segments          scan*.c
 *     factor    (slot, head)           E, Qg, M, P, D and A, as forwards                 factor*.c
 *     chain     (sequence, head, tile) the states; keeps S at each chunk's start and X    chain*.c
 *     reverse   (sequence, head, tile) chunks backwards:                                  reverse*.c
 *                                          dX = P dS' + sum_f M_f' dO_f
 *                                          dS = D dS' + sum_f Qg_f' dO_f - E' dX
 *                                      keeps dS' (at each chunk's end) and dX
 *     grad      any number of blocks   everything else, a (slot, head) at a time, heads of a group in
 *                                      order: what they share is summed as they go         grad*.c
 *     scan, carry, late                gradients that wait for those of later tokens (after, cumsum_back):
 *                                      running sums from the sequences' ends, then the tokens phase
 *                                      again. One segment then is all there is    scan*.c, grad_token*.c
 *     sums      elements               over groups of heads that share an input; params: over chunks
 *                                                                                  grad_sums.c
 *
 * In the grad kernel a chunk has two phases, with the block's scratch (small enough to stay in the L2
 * cache) between them:
 *     pull      products with an axis V, then back through scores, carries, tail and total:
 *               cotangents of the lattice's rows x_f, keys p and decays a                  grad_pull*.c
 *     (read     what the outs read of the state, where gradients need it                  grad_read.c)
 *     tokens    the spec's own expressions, elementwise with row sums, token by token:
 *               gradients of inputs and params                                              grad_token*.c
 *
 * Record: one for each (slot of the segment, head of H), at ((slot - GRAD_SLOT) * H + head) * ws_bytes.
 * HF = H in gradient kernels. It begins with the matrices of factor.h (System.ws_*), in an order by which
 * the chain copies the first ws_copied bytes and reverse the first ws_reversed; then A and the trail:
 *     A     [rows][rows]  f16, divided by scale as M and P are; where keys are scaled row u is A's times key
 *                         scale u. Nothing erased: not there (A = I)
 *     S     [vp][kp]      f16, the state where the chunk starts, transposed, divided by unit_s[v]; channel k
 *                         stands where grad_state_channel says: so neither who saves accumulators of it
 *                         nor who multiplies by it has to move channels between lanes
 *     dS    [vp][kp]      f16, the cotangent of the state where the chunk ends, likewise by unit_ds[v]
 *     X     [rows][vp]    f16, divided by unit_x[v]
 *     dX    [rows][vp]    f16, divided by unit_dx[v]
 *     units [vp]          f32 each, powers of two
 *     a_rows [rows]       f32, System.grows: A's rows lack these, which stand in place of scale
 *     sums  [sums][rows]  f32, System.sum: row by row what keys, rows and decays are made of over channels
 *                         (norms), for which grad would read whole rows before it can begin
 * all placed by nv_place, all elements written (zeros past K, V and the last token), also where the
 * sequence has no such chunk's tokens; slots of no chunk are neither written nor read.
 *
 * A forward pass that saves all (CgOptions.save_all) has such records too, filled by its own factor and
 * chain, but for dS and dX. Gradients then begin with reverse.
 *
 * Segments. A launch works on the chunk slots GRAD_SLOT .. GRAD_SLOT + GRAD_SLOTS - 1. Slots follow each
 * other by sequence, so at most one sequence crosses either border; where one does, chain and reverse
 * pass its state and costate on through memory, f32 [H][K][V] at GRAD_STATE_IN and so on. Their blocks begin
 * with the sequence that owns GRAD_SLOT, and those past the last sequence do nothing; where there are slots
 * every sequence has one, so GRAD_SLOTS sequences are enough.
 *     chain      a sequence whose first chunk here is not its first starts from STATE_IN, not S0; one that
 *                goes on behind the segment leaves its state in STATE_OUT (a pointer may be 0: not wanted)
 *     reverse    a sequence that goes on behind the segment starts from COSTATE_IN, not dS; one whose first
 *                chunk here is not its first leaves its costate in COSTATE_OUT, else in dS0
 *
 * Intervals. Where a forward pass has saved states (GRAD_SAVE_EVERY, FRAME_SAVED) the chain need not walk a
 * segment from end to end: its blocks are (sequence, interval, head, tile), an interval being the segment's
 * slots from one multiple of SAVE_EVERY to the next, the first and the last one perhaps fewer. An interval is
 * to the chain what a segment is, but that a sequence which comes in from the interval before starts from the
 * state saved there: it was saved if the sequence has a chunk at that slot that is not its first, which is
 * when the chain looks for it. So nothing has to be known of where sequences lie, and as many sequences as
 * may have a slot in an interval are enough. STATE_OUT is 0 then.
 *
 * Chain and reverse read nothing that the other one writes: they may run at the same time.
 */
#ifndef GDR_CODEGEN_NVPTX_GRADIENT_H
#define GDR_CODEGEN_NVPTX_GRADIENT_H

#include "codegen/nvptx/factor.h"

/* What family f of the System contributes to gradients. Erase: its left is dX and y stands for T. */
typedef struct GradFamily {
    int left;             /* [C or R, V]: elementwise cotangent of (W_f S + M_f X); erase: dX */
    int dw;               /* contract(left, S) over V: what `carry` takes back; -1: none */
    int dg;               /* contract(left, Zt) over V: the scores' cotangent; -1: none */
    int root;             /* the value that stands for carry dw + scores_x dg: see zero */
    bool minus;           /* whether its terms are subtracted in the cotangents of keys and decays */
    int read, mixed;      /* out: contract(W_f, S), given together with contract(M_f, X), which counts
                             as 0; -1 where no gradient needs them */
} GradFamily;

typedef struct Gradient {
    System s;
    GradFamily family[MAX_FAMILIES];
    int X, dX;            /* [R,V] */
    int zt;               /* contract(A, X), [U,V]; X itself where nothing is erased */
    int dkt;              /* contract(dS', Zt) over V, [U,K]: what `tail` takes back; -1: none */
    int dd;               /* the cotangent of total: sum of S dS' over V (and K: scalar decay); -1: none */
    /* Sums that the pull phase computes as one. In the kernel they stand as terms of a tree of
     * additions: the sum is given at its first term, `root`, and the other terms count as 0. */
    int p_root;           /* [U,K]: the keys' cotangent: tail dkt and every family's +-scores_y; -1 */
    int a_root;           /* [U,K] or [U]: the decays': tail_a + total_a and every family's +-(carry_a +
                             scores_a); -1: no decay or nobody wants it */
    bool *zero;           /* by value: counts as 0 */
    bool a_log;           /* of log a; else of a: a vector's declared range then excludes 0, a scalar
                             may be 0 */
} Gradient;

/* Recognise the gradient system in a tile-level gradient kernel; false with *why when this target
 * cannot run it. s is filled as nv_system does. */
bool nv_gradient(Arena *arena, const Kernel *tile, Gradient *g, const char **why);

/* The forward system of any chunk kernel: a gradient kernel's, or a forward one's, which with
 * opt->save_all has records like those. */
bool nv_system_of(Arena *arena, const Kernel *tile, const CgOptions *opt, System *s, const char **why);

/* Frame fields of gradient kernels behind those of frame_costate (codegen.h): see frame_gradient. */

/* The grad kernel in the making. A block: 32 * s.warps threads, lane g/t and lattice rows as Factor. */
enum { GRAD_KEPT = 32 };      /* bytes of shared memory behind the phases' */
typedef struct Grad {
    Cg *cg;
    const Kernel *k;
    const Gradient *g;
    Val lane, warp, lane_g, lane_t;
    Val head, heads;          /* i32, of H */
    Val own;                  /* i32, from grad_place_group: the number of the head's group, and */
    Val more;                 /* i1: whether heads of it came before this one */
    Seq seq;
    Val start;                /* i64 first token of the chunk in its sequence */
    Val task;                 /* i32 */
    Val record;               /* global byte pointer: this chunk's record */
    Val scratch;              /* global byte pointer: this block's scratch */
    Elem scratch_elem;        /* of the next three: bf16 where all gradients are 16-bit, else f32 */
    int64_t scratch_dx[MAX_FAMILIES]; /* [rows][kp] by family, on lattice rows (out family: row
                                         t*slots + position); families of one root share the place */
    int64_t scratch_dp;       /* [rows][kp] */
    int64_t scratch_da;       /* [rows][kp], or f32 [rows] */
    int64_t scratch_o[MAX_FAMILIES];  /* [rows][vp] f32, of families with a read: a token's last row */
    int64_t scratch_bytes;
    bool scratch_is_done;     /* once the phases are over, nobody looks at it */
    int sh_bytes;             /* shared memory: the larger of the phases', and what is kept of the task */
    int sh_place;
    struct Tokens *tokens;    /* grad_token.h: the plan of phase 2 */
} Grad;

/* Of every 32 channels 8t + 2n + c stands at 8n + 2t + c (and the other way round). */
static inline int grad_state_channel(int k) { return (k & ~30) | (k & 6) << 2 | (k >> 2 & 6); }

/* grad.c: the kernel around its phases, a block barrier behind each. */
typedef struct GradPhase {
    bool (*plan)(Grad *g, int *sh_bytes, const char **why);
    void (*build)(Grad *g);
} GradPhase;
void grad_plan_scratch(Grad *g); /* what lies where in the scratch, and its size */
/* `kind`: grad, or late, which has no scratch. */
bool grad_build(Cg *cg, CgModule *out, EntryKind kind, const GradPhase *phase, int phases, const char **why);
Val grad_blocks(Cg *cg); /* i32, of the grid */
/* Not before it is wanted: what stands in no register is not spilled by the phases before. */
void grad_place_group(Grad *g);
/* i64: the task's chunk slot, taken back from shared memory; behind a block barrier. */
Val grad_slot(Grad *g);
/* One access of n neighbouring elements, 16 bytes at most, at a multiple of its size; values are f32. */
enum { GRAD_ACCESS = 16 };
void grad_load(Cg *cg, Elem e, Val p, int n, Val *out);
void grad_store(Cg *cg, Elem e, Val p, int n, const Val *x);
/* The most elements of an access that lies in a run, when runs of `run` elements lie in rows of `size`. */
int grad_group(int64_t size, int64_t run, Elem e);

/* grad_pull*.c: shared memory it needs (also says whether it fits); phase 1 of the present chunk, from
 * the record to the scratch. Rows of tokens that are not there may hold anything finite. */
bool grad_pull_plan(Grad *g, int *sh_bytes, const char **why);
void grad_pull(Grad *g);
/* grad_read.c: between the phases, where gradients need what the outs read of the state. */
bool grad_read_plan(Grad *g, int *sh_bytes, const char **why);
void grad_read(Grad *g);
/* grad_token*.c: phase 2. */
bool grad_token_plan(Grad *g, int *sh_bytes, const char **why);
void grad_tokens(Grad *g);

bool nv_build_reverse(Cg *cg, CgModule *out, const char **why);
bool nv_build_grad(Cg *cg, CgModule *out, const char **why);
bool nv_build_late(Cg *cg, CgModule *out, const char **why);
bool nv_build_sums(Cg *cg, CgModule *out, const char **why);
bool nv_build_recurrent_grad(Cg *cg, CgModule *out, const char **why);

#endif
