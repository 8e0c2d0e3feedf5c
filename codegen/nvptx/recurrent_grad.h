/* The kernel of a recurrence's gradient while it is being built. Private to codegen/nvptx.
 *
 * A block owns a sequence and head, all of K and V. Vectors live in registers, RUN neighbouring elements
 * a thread; what a sweep over the matrices takes or gives crosses through shared memory. In a matrix,
 * warp w owns rows w, w + WARPS, ..., a lane four columns of every panel of 128; nobody else ever
 * touches them, so matrices need no barrier wherever they lie.
 */
#ifndef GDR_CODEGEN_NVPTX_RECURRENT_GRAD_H
#define GDR_CODEGEN_NVPTX_RECURRENT_GRAD_H

#include "codegen/nvptx/gradient.h"
#include "codegen/sweep.h"

enum {
    RG_LANES = 32,
    RG_WARPS = 8,
    RG_THREADS = RG_LANES * RG_WARPS,
    RG_RUN = 2,                          /* elements of a vector in a thread: 512 reach over any axis */
    RG_SIZE = 256,                       /* K and V at most */
    RG_COLUMNS = 4,                      /* of a lane in a panel */
    RG_PANEL = RG_LANES * RG_COLUMNS,
    RG_PANELS = RG_SIZE / RG_PANEL,
    RG_SUMS = 4                          /* results of a sweep that are summed over K */
};

/* f32 [K][ld], ld = V rounded up to RG_COLUMNS; columns past V are 0. */
typedef struct Matrix {
    bool shared;
    Val p;                /* its first byte */
} Matrix;

typedef struct RecurrentGrad {
    Cg *cg;
    const Kernel *k;
    int K, V, ld, panels;
    int segment;          /* tokens between two states in the workspace */
    Sweep *sweep[2];      /* of the two halves of a token */
    int sweeps[2];

    /* shared memory: bytes from its start */
    int *slot;            /* [value] a vector that a sweep takes or gives; -1: none */
    int sums, reds;       /* column sums [RG_SUMS][RG_WARPS][panels * RG_PANEL]; sums over the block */
    int state, costate;   /* the matrices, -1: in the scratch */
    int shared_bytes;

    /* memory: what a token's record and a segment's start hold behind the state */
    int64_t *kept;        /* [value] bytes into a record; -1: none */
    int64_t *start;       /* [value] bytes into a segment's start: memories; -1: none */
    int64_t record_bytes, start_bytes, scratch_bytes;
    int64_t state_at, costate_at; /* in the scratch, where they are not in shared memory */

    Val tid, lane, warp;
    Val scratch;          /* global byte pointer: this block's */
    Seq seq;
    ValueAt at;
    Matrix S, D, first;   /* S forwards, its cotangent, S where the token starts */
    Var **carried;        /* [value] of prev and cumsum: what the token before left */
    Var **later;          /* [value] of after and cumsum_back: what the token behind left */
    Val **memory;         /* [value] of prev and cumsum: that at the present token */
    Var **total;          /* [out] of params: the sum over the segment's tokens so far */
    bool *published;      /* [value] is in its slot */
} RecurrentGrad;

/* recurrent_grad_sweep.c: what shared memory sweeps need from byte `at` on, and where that ends; all that
 * acts on the state in one half of a token; results become values. */
int rg_plan_slots(RecurrentGrad *r, int at);
void rg_sweeps(RecurrentGrad *r, bool back);
/* Matrices, each thread its own elements: to another one; zeros; from or to f32 [K,V] of the caller's. */
void rg_copy(RecurrentGrad *r, const Matrix *to, const Matrix *from);
void rg_clear(RecurrentGrad *r, const Matrix *to);
void rg_load(RecurrentGrad *r, const Matrix *to, Val p);
void rg_store(RecurrentGrad *r, const Matrix *from, Val p);

/* recurrent_grad_value.c: the hooks of values; what is remembered from token to token, in either
 * direction; gradients out. */
bool rg_lookup(ValueAt *at, int v, Val *out);
Val rg_sum(ValueAt *at, int v, int axis, Val partial);
void rg_open_memories(RecurrentGrad *r);
void rg_close_forwards(RecurrentGrad *r);
void rg_close_backwards(RecurrentGrad *r);
void rg_outs(RecurrentGrad *r);
void rg_clear_totals(RecurrentGrad *r);
void rg_store_totals(RecurrentGrad *r, Val slot);

#endif
