/* The chain kernel in the making: the serial walk over a sequence's chunks, one block for 16 V
 * columns a warp. Private to codegen/nvptx.
 *
 * One program, two schedules. chain_gemm.c: every warp by itself, mma.sync with operands by ldmatrix.
 * chain_wgmma.c (sm_90a): warpgroups of 64 columns, wgmma with operands straight from the stage; its
 * fragments are the same, and so is everything but the products.
 *
 * Everything is transposed: a warp's 16 V columns are the rows of its matrix tiles, so that the
 * state S' [16 x K] stays in f32 accumulators, turns into A operands without leaving registers, and
 * no operand of the chain is ever written by the chain. With g = lane/4, t = lane%4 a lane holds
 *     S:       k = 8n + 2t + c,  V column g + 8h    as  state[n][2h + c]      n < kp / 8
 *     X, O, c: lattice row r = 8n + 2t + c          as  value[4n + 2h + c]    n < rows / 8
 * Values of tokens stand on every lattice row of their token.
 */
#ifndef GDR_CODEGEN_NVPTX_CHAIN_H
#define GDR_CODEGEN_NVPTX_CHAIN_H

#include "codegen/nvptx/factor.h"

enum { MAX_STAGED = 8, MAX_ROW_VALUES = 16, MAX_FRAGMENT = 32 };

/* An input with the V axis whose tokens of a chunk come through shared memory. */
typedef struct Staged {
    int value;        /* the OP_in */
    bool copied;      /* false: rows are not 16-byte aligned, read from global memory */
    int offset;       /* bytes into a stage: [chunk tokens][v_tile] elements, units swizzled */
    int elem_bytes;
} Staged;

typedef struct Chain {
    Cg *cg;
    const Kernel *k;
    const System *s;
    bool wgmma;                    /* which schedule */
    int v_tile, warps, threads;
    int stage_bytes, sh_bytes;     /* two stages; wgmma: and a barrier for each */
    Staged staged[MAX_STAGED];
    int nstaged;
    bool *planned;                 /* [value] looked at by chain_plan_values */
    int row_value[MAX_ROW_VALUES]; /* values with a token axis and no other: f32 [rows] in a stage */
    int nrow_values, row_value_offset;
    Var row_ahead[MAX_ROW_VALUES]; /* wgmma: of the next chunk, this thread's row */

    Val tid, lane, warp, g, t;
    Val head, heads, factor_head;
    Val v_first;                   /* i32 first V column of the block */
    Val v[2];                      /* i32 this lane's V columns */
    Val v_live[2];                 /* i1, NULL when V is a multiple of the tile */
    Seq seq;
    Pool pool;
    Var state[32][4];              /* wgmma with f16: divided by `unit` */
    Var unit[2];                   /* wgmma with f16: a power of two per V column */
    ValueAt at_v[2];               /* params with the V axis: at this lane's columns */

    /* the chunk being built */
    Val empty_column;              /* wgmma: some V column has no state yet */
    Val start;                     /* i64 first token in the sequence */
    Val stage;                     /* i32 byte offset of its stage */
    Val state_scale[2], x_scale[2];/* f16: powers of two per V column, else NULL */
    Val x_operand[MAX_FRAGMENT / 2];
    Val product[MAX_FAMILIES][MAX_FRAGMENT]; /* wgmma: products under way */
    Val next[128];                 /* wgmma: the next state under way */
    int total[MAX_FAMILIES];       /* wgmma: the value read + mixed, when nothing else uses the two */
    Val **memo;                    /* [value] -> fragment of rows / 2 elements */
} Chain;

static inline int chain_fragment(const Chain *c) { return c->s->rows / 2; }

/* chain_value.c */
bool chain_plan_values(Chain *c, const char **why);   /* staged, row_value */
void chain_rows(Chain *c, Val start, Val stage);      /* evaluate row values of a chunk into a stage */
/* The same in two halves, one before products are issued and one after; threads >= rows. */
void chain_rows_ahead(Chain *c, Val start);
void chain_rows_store(Chain *c, Val stage);
void chain_copy_inputs(Chain *c, Val start, Val stage);
/* x (i32), as far as LLVM knows another one in every chunk: what is computed from it stays in the loop,
 * where it takes no register while products run. */
Val chain_keep(Chain *c, Val x);
Val chain_tokens_left(Chain *c, Val start);           /* i32: of the chunk that begins there, or <= 0 */
const Val *chain_get(Chain *c, int v);
void chain_set(Chain *c, int v, const Val *x);

/* Before anything that waits for the state: what v needs of everything else. */
void chain_prefetch(Chain *c, int v);

/* chain_gemm.c, chain_wgmma.c: the steps of a chunk, in this order */
void chain_read_state(Chain *c);                      /* W_f S of every family, as values */
void chain_mix(Chain *c);                             /* M_f X */
void chain_advance(Chain *c);                         /* S = D S + P' X, after the outs */
void chain_wgmma_plan(Chain *c);
bool chain_wgmma_fits(const Chain *c);                /* registers */
void chain_wgmma_read_state(Chain *c);
void chain_wgmma_mix(Chain *c);
void chain_wgmma_advance(Chain *c);
Val chain_stage_pointer(Chain *c, int64_t offset);
Val chain_record_scale(Chain *c);                     /* System.has_scale: what M and P lack */
void chain_scale_rows(Chain *c, int family, Val *x);  /* a fragment times what W_f and M_f lack */
const Val *chain_x(Chain *c);                         /* X times what M's and P's columns lack */
void chain_decay(Chain *c, int n, Val d[2]);          /* of state columns 8n + 2t, +1; or NULLs */

/* chain_out.c */
void chain_store_out(Chain *c, int port, int v);

#endif
