/* codegen/host: one function for the CPU that runs a range of tasks, task = (sequence, head).
 *
 *   host.c       the function around the algorithms: tasks, sequences, states in and out
 *   state.c      the state in and out: which one, its type and layout
 *   plan.c       which values get a tile in scratch, which are recomputed where they are used
 *   value.c      elementwise values at one row and a vector of columns; filling tiles
 *   out.c        outputs, histories
 *   gemm.c       contractions: register-blocked micro-kernels with an elementwise epilogue
 *   decay.c      scores, carry, tail, total: products of decays, never ratios
 *   decay_grad.c their cotangents
 *   chunk.c      the chunk algorithm: tile-level kernels, one loop over chunks
 *   gradient.c   gradient kernels: chunks forwards for the states, then backwards
 *   recurrent.c  the recurrence token by token
 *   sweep.c      what acts on the state, and on its cotangent: passes over the matrices
 *   recurrent_grad.c  gradient kernels of the recurrence: tokens in segments, forwards and backwards
 *
 * All work happens in f32 tiles in the thread's scratch. A tile is a matrix of rows of `ld` floats;
 * columns are padded to whole vectors and rows to whole micro-kernels, so kernels run over the edge
 * into padding and only tensors of the caller need masks. Padding holds anything; it never reaches
 * an element that counts. A chunk's rows past the sequence's end are not computed at all, which is
 * what null tokens would give.
 */
#ifndef GDR_CODEGEN_HOST_H
#define GDR_CODEGEN_HOST_H

#include "codegen/codegen.h"

/* Where a value lies in scratch. */
typedef struct Tile {
    bool there;         /* has a place; other values are recomputed where they are used */
    bool contracts;     /* elementwise in a contraction's result, or the contraction itself */
    bool done;          /* its code has been emitted */
    bool constant;      /* the same for every token: computed once a task */
    bool history;       /* one more row in front: the last token of the chunk before */
    int row, col;       /* axes; -1 = none. An axis alone on the lattice is the row */
    int64_t offset, ld; /* bytes into scratch; floats from row to row */
    bool lower;         /* zero unless column < mul * row + add */
    int64_t mul, add;
    Val base;   /* where it lies instead, when that is not known before the code runs; else NULL */
    int anchor; /* contract: the tile whose computation it is part of, or -1 */
} Tile;

typedef struct Clear {
    int64_t offset, bytes;
} Clear;
typedef struct Products {
    int decays;
    Tile tile;
} Products; /* scalar decays: see decay.c */

typedef struct Host {
    Cg *cg;
    const Kernel *k;
    int lanes;  /* floats in a vector */
    int mr, nv; /* micro-kernel: rows, vectors */
    Ty vec;
    int slots;  /* updates a token */
    Tile *tile; /* by value */
    int *uses;  /* by value */
    int64_t scratch_bytes;
    VEC(Clear) clear; /* regions that are zero when a task starts */

    Val scratch;              /* pointer */
    Val head, heads;          /* i64 */
    Val row0;                 /* i64: the sequence's first token row in the tensors */
    Val length;               /* i64: the sequence's tokens */
    Val token0;               /* i64: the chunk's first token in the sequence */
    Val count[AXIS_user];     /* i64: rows in use on each axis */
    Val *in_base, *in_stride; /* per input: pointer at this head; bytes from token to token */
    Tile state;
    Tile turned;              /* [V,K], where states have that layout in memory */
    Val sequence;             /* i64: its number */
    Val first, last, commit;  /* i64: numbers of its states in S0 and S, -1: none; of S after how many
                                 tokens: see state.c */
    VEC(Products) products;

    bool gradient;
    Tile costate;
    Tile *total; /* by instruction, for outs to params: their sum over the chunks */
    int segment; /* tokens between two states in the workspace: a chunk, or of the recurrence more */
    int64_t records; /* gradient of the recurrence: offset of the tokens' records; see there */
    Tile start;  /* the state where the token starts */
    Tile *ahead; /* by instruction: what after and cumsum_back take from the chunk behind this one */
    Val task;    /* i64: sequence * H + head */
    Val slot0;   /* i64: the sequence's first chunk slot in the workspace */
} Host;

enum { BLOCK = 16 };                        /* rows of a block of the lattice; row padding */
enum { AXIS_none = -1, AXIS_private = -2 }; /* private: rows of a helper matrix, on no axis */

/* host.c --------------------------------------------------------------------------------------- */

static inline int64_t axis_size(const Host *h, int axis) {
    return h->k->axis.at[axis].size;
}
int64_t host_alloc(Host *h, int64_t floats); /* -> byte offset */
int64_t host_round(int64_t x, int64_t to);
Val host_at(Host *h, int64_t offset);                         /* pointer into scratch */
Val host_element(Host *h, Val base, Val index, int64_t size); /* base + index * size bytes */
Val host_min(Host *h, Val a, Val b);                          /* signed i64 */
Val host_max(Host *h, Val a, Val b);
Val host_splat(Host *h, Val x); /* scalar float -> vector; vectors pass */
Val host_zero(Host *h);
/* out[rows x cols] = in, both matrices of floats in scratch, cols in whole vectors. */
void host_copy(Host *h, Val out, int64_t ld_out, Val in, int64_t ld_in, Val rows, int64_t cols);
void host_fill_zero(Host *h, Val p, int64_t bytes);
Val host_load_masked(Host *h, Ty t, Val p, Val mask);
void host_store_masked(Host *h, Val x, Val p, Val mask);

/* Entry i of the integers at a frame field, 4 or 8 bytes wide as another says, as i64. */
Val host_integer(Host *h, int field, int width_field, Val i);

/* state.c -------------------------------------------------------------------------------------- */

/* Which states sequence n has; one that is skipped has no tokens any more. */
void host_open_states(Host *h, Val n);
void host_plan_turned(Host *h);
/* The state and the histories where the sequence starts. */
void host_start_state(Host *h);
void host_start_past(Host *h);
/* To memory: the state at the end; that after t tokens of the recurrence, if it goes anywhere. */
void host_leave_state(Host *h);
void host_leave_state_after(Host *h, Val t);
/* A tile from the task's matrix of those f32 [N,H,K,V] at a field, or zero; and back, if wanted. */
void host_matrix_in(Host *h, const Tile *tile, int field);
void host_matrix_out(Host *h, const Tile *tile, int field);

/* plan.c --------------------------------------------------------------------------------------- */

/* Decides tiles for every value; false with *why when the kernel is beyond this target. */
bool host_plan(Host *h, const char **why);
/* Gives a tile its place: axes by the value's shape. */
void host_place(Host *h, Tile *t, Shape shape);
bool host_is_product(const Host *h, int v);
int64_t host_capacity(const Host *h, int axis); /* rows a tile on this axis can hold */

/* value.c -------------------------------------------------------------------------------------- */

/* A place: one row, and a vector of columns or none. */
typedef struct At {
    Host *h;
    int row_axis, col_axis; /* -1 = none */
    Val row, col;           /* i64 */
    Val mask;               /* lanes of the last, partial vector; NULL = all */
    Val *memo;              /* by value */
} At;

At host_at_row(Host *h, int row_axis, Val row);
/* The same place at columns col..; values computed for the row remain known. */
At host_at_col(const At *at, int col_axis, Val col, Val mask);
/* A scalar when the value has no column axis here, else a vector. */
Val host_value(At *at, int v);
Val host_vector(At *at, int v); /* always a vector */
/* Element or vector of a tile, `shift` rows on. */
Val host_load(At *at, const Tile *t, int shift);
void host_store(At *at, const Tile *t, int shift, Val x);
/* Emits what v needs so that host_value(v) can be called from here on. */
void host_need(Host *h, int v);
/* The tile of an elementwise value, a sum, a cumsum or a weave. */
void host_fill(Host *h, int v);
void host_fill_tile(Host *h, const Tile *t, int v); /* some tile, from a value on its axes */
/* Runs `body` for every vector of columns of a row; the last one is masked when `exact`. On
 * AXIS_none the row is one number. */
typedef void HostBody(At *at, void *user);
void host_columns(const At *at, int axis, bool exact, HostBody *body, void *user);
/* Evaluates what does not depend on the column, so that it is not repeated in the column loop. */
void host_hoist(At *at, int v, int col_axis);
/* The present columns of a row of the caller's that begins at p; a row without columns is one element. */
void host_row_store(const At *at, Val p, Elem e, Val x);
Val host_row_load(const At *at, Val p, Elem e); /* lanes that are not in at->mask are 0 */

/* out.c ---------------------------------------------------------------------------------------- */

/* Writes output v for the tokens of the chunk; adds it to the total of a param's gradient. */
void host_out(Host *h, int v);
/* Totals of params' gradients: zero, and out to the caller. */
void host_clear_totals(Host *h);
void host_store_totals(Host *h);
/* The last token of this chunk becomes the one before the next. */
void host_roll_history(Host *h);
void host_need_histories(Host *h); /* what the next chunk looks back at */
void host_clear_history(Host *h);

/* gemm.c --------------------------------------------------------------------------------------- */

/* A matrix operand that need not be a value's tile. */
typedef struct Term {
    Tile a, b;
    int axis;
    bool minus;
} Term;
typedef struct Gemm {
    Tile out;
    Val row_lo, rows; /* i64: which rows of `out`, rounded up to micro-kernels */
    Val cols;         /* i64: multiple of the vector length */
    Term *term;
    int terms;
    Val (*finish)(At *at, Val acc, void *user); /* may be NULL */
    void *user;
} Gemm;
void host_gemm(Host *h, const Gemm *g);
/* Value v, a contraction or an elementwise value with contractions in it. */
void host_contract(Host *h, int v);
/* out[c][r] = in[r][c] for all of `in`; both in whole vectors. */
void host_transpose(Host *h, const Tile *out, const Tile *in, Val rows);
Val host_reduce(Host *h, Val x); /* sum of a vector's lanes */
/* In place: lanes vectors of lanes floats. */
void host_transpose_vectors(Host *h, Val *v);

/* decay.c -------------------------------------------------------------------------------------- */

void host_scores(Host *h, int v); /* and every other scores with the same right side */
void host_carry(Host *h, int v);
void host_tail(Host *h, int v);
void host_total(Host *h, int v);
void host_solve(Host *h, int v);

/* decay_grad.c --------------------------------------------------------------------------------- */

void host_scores_back(Host *h, int v); /* scores_x, scores_y */
void host_scores_a(Host *h, int v);
void host_scaled_a(Host *h, int v);    /* carry_a, tail_a, total_a */

/* sweep.c -------------------------------------------------------------------------------------- */

/* All that acts on the state in one half of a token: before `rewind`, or behind it. */
void host_sweeps(Host *h, bool back);

/* chunk.c, recurrent.c ------------------------------------------------------------------------- */

/* Code for one task; the state is in h->state and stays there. */
void host_chunk_task(Host *h);
/* The tile of v replaces `state`, which nothing needs any more. */
void host_advance(Host *h, const Tile *state, int v);
/* Workspace bytes for a chunk; the task, with the state's cotangent in h->costate, which stays there. */
int64_t host_checkpoint_bytes(const Host *h);
void host_gradient_task(Host *h);
/* The state and the histories where segment `c` of the task starts, to the workspace or back. */
void host_checkpoint(Host *h, Val c, bool save);
/* Code emitted from here on runs in another loop: nothing of a chunk is there yet. */
void host_forget(Host *h);
/* What is zero where a gradient starts: histories, totals, what comes from later tokens. */
void host_clear_gradient(Host *h);
/* How long segments are, and room for their records. The task: as host_gradient_task. */
void host_plan_segments(Host *h);
void host_recurrent_gradient_task(Host *h);
void host_recurrent_task(Host *h);
/* Emits the tile of v, whatever it is. */
void host_compute(Host *h, int v);
void host_open_axes(Host *h, Val tokens); /* sets h->count */
void host_constants(Host *h);             /* tiles that are the same for every token */

#endif
