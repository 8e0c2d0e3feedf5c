/* The chain kernel in the making: the serial walk over a sequence's chunks, one block for 16 V
 * columns a warp. Private to codegen/nvptx.
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
    int v_tile, warps, threads;
    int stage_bytes, sh_bytes;     /* two stages */
    Staged staged[MAX_STAGED];
    int nstaged;
    int row_value[MAX_ROW_VALUES]; /* values with a token axis and no other: f32 [rows] in a stage */
    int nrow_values, row_value_offset;

    Val tid, lane, warp, g, t;
    Val head, heads, factor_head;
    Val v_first;                   /* i32 first V column of the block */
    Val v[2];                      /* i32 this lane's V columns */
    Val v_live[2];                 /* i1, NULL when V is a multiple of the tile */
    Seq seq;
    Var state[32][4];
    ValueAt at_v[2];               /* params with the V axis: at this lane's columns */

    /* the chunk being built */
    Val start;                     /* i64 first token in the sequence */
    Val stage;                     /* i32 byte offset of its stage */
    Val state_scale[2], x_scale[2];/* f16: powers of two per V column, else NULL */
    Val x_operand[MAX_FRAGMENT / 2];
    Val **memo;                    /* [value] -> fragment of rows / 2 elements */
} Chain;

static inline int chain_fragment(const Chain *c) { return c->s->rows / 2; }

/* chain_value.c */
bool chain_plan_values(Chain *c, const char **why);   /* staged, row_value */
void chain_rows(Chain *c, Val start, Val stage);      /* evaluate row values of a chunk into a stage */
void chain_copy_inputs(Chain *c, Val start, Val stage);
const Val *chain_get(Chain *c, int v);
void chain_set(Chain *c, int v, const Val *x);

/* chain_gemm.c */
void chain_read_state(Chain *c);                      /* W_f S of every family, as values */
void chain_mix(Chain *c);                             /* M_f X */
void chain_advance(Chain *c);                         /* S = D S + P' X */
void chain_store_out(Chain *c, int port, int v);

#endif
