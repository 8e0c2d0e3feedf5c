/* The chain kernel in the making: the serial walk over a sequence's chunks, one block for 16 V
 * columns a warp; and the reverse kernel of gradients (gradient.h), which is the same walk from the last
 * chunk to the first, with the state's cotangent in place of the state. Private to codegen/nvptx.
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

#include "codegen/nvptx/gradient.h"

enum { MAX_STAGED = 8, MAX_ROW_VALUES = 16, MAX_FRAGMENT = 32, MAX_EARLIER = 3 };

/* A value with the V axis that is read from memory: its tokens of a chunk come through shared memory, and
 * those before it that prev looks at. */
typedef struct Staged {
    int value;
    Elem elem;
    int earlier;      /* tokens before the chunk */
    bool copied;      /* false: rows are not 16-byte aligned, read from global memory */
    int offset;       /* bytes into a stage: [earlier + chunk tokens][v_tile] elements, units swizzled */
} Staged;

/* A value of single tokens, without the V axis, as rows of a chunk meet it: of their own token, or of one
 * so many tokens before. */
typedef struct RowValue {
    int value, earlier;
} RowValue;

/* A matrix of the record: its place there, its columns (rows: the lattice's), and whether products sum
 * along its rows, which makes it the transpose of itself. */
typedef struct Matrix {
    int64_t offset;
    int columns;
    bool along_rows;
} Matrix;

typedef struct Chain {
    Cg *cg;
    const Kernel *k;
    const System *s;               /* families: those whose products this kernel makes */
    const Gradient *gradient;      /* NULL: a forward kernel */
    bool back;                     /* reverse */
    bool wgmma;                    /* which schedule */
    int64_t copied;                /* the record's first bytes, which come into the stage */
    int v_tile, warps, threads;
    int stages;                    /* chunks that are in shared memory, or on their way to it */
    int stage_bytes, sh_bytes;     /* the stages; wgmma: and a barrier for each */
    Staged staged[MAX_STAGED];
    int nstaged;
    bool *planned;                 /* [earlier][value] looked at by chain_plan_values */
    int *recalled;                 /* [value] number of a prev with the V axis, whose value at the sequence's
                                      first token waits in shared memory: f32 [number][2][threads]; or -1 */
    int nrecalled, recall_offset;
    RowValue row_value[MAX_ROW_VALUES]; /* f32 [rows] in a stage */
    int nrow_values, row_value_offset;
    Var row_ahead[MAX_ROW_VALUES]; /* wgmma: of the next chunk asked for, this thread's row */

    Val tid, lane, warp, g, t;
    Val head, heads, factor_head;
    Val v_first;                   /* i32 first V column of the block */
    Val v[2];                      /* i32 this lane's V columns */
    Val v_live[2];                 /* i1, NULL when V is a multiple of the tile */
    Seq seq;
    Pool pool;
    Val first, count;              /* i64: the sequence's chunks first .. first + count - 1 are walked */
    Val chunks;                    /* i64: that it has */
    Val exists;                    /* i1, whether there is such a sequence */
    Val begin, end;                /* i64 slots that are walked: the segment's, or an interval's */
    Val own_record;                /* i64 which of the records of a head is that of the sequence's chunk 0; may
                                      lie before the first one */
    Val window;                    /* forward: i1, whether the segment is a window */
    Val interval, inner;           /* gradients, chain: i32 number of that interval in the batch; i1 that the
                                      segment did not begin with it */
    Var state[32][4];              /* wgmma with f16: divided by `unit` */
    Var unit[2];                   /* wgmma with f16: a power of two per V column */
    ValueAt at_v[2];               /* params with the V axis: at this lane's columns */
    Val past;                      /* from value_past */

    /* the chunk being built */
    Val empty_column;              /* wgmma: some V column has no state yet */
    Val start;                     /* i64 first token in the sequence */
    Val stage;                     /* i32 byte offset of its stage */
    Val record;                    /* with a trail: its record, in global memory */
    Val state_scale[2], x_scale[2];/* powers of two per V column */
    Val state_operand[64], x_operand[MAX_FRAGMENT / 2];
    Val left_operand[MAX_FAMILIES][MAX_FRAGMENT / 2]; /* reverse: dO_f times what W_f and M_f lack */
    Val left_scale[MAX_FAMILIES][2];
    Val product[MAX_FAMILIES][MAX_FRAGMENT]; /* wgmma: products under way */
    Val next[128];                 /* wgmma: the next state under way */
    int total[MAX_FAMILIES];       /* wgmma: the value read + mixed, when nothing else uses the two */
    int earlier;                   /* tokens before the rows' own that values are wanted of */
    Val **memo;                    /* [earlier][value] -> fragment of rows / 2 elements */
} Chain;

static inline int chain_fragment(const Chain *c) { return c->s->rows / 2; }
static inline int chain_state_elements(const Chain *c) { return c->s->kp / 2; }

/* W_f as it multiplies the state, M_f as it multiplies X, P as it makes the state; reverse: turned. */
static inline Matrix chain_w(const Chain *c, int f) {
    return (Matrix){c->s->family[f].ws_w, c->s->kp, c->back};
}
static inline Matrix chain_m(const Chain *c, int f) {
    return (Matrix){c->s->family[f].ws_m, c->s->rows, c->back};
}
static inline Matrix chain_p(const Chain *c) {
    return (Matrix){c->s->ws_p, c->s->kp, !c->back};
}

/* chain.c: a kernel that walks; c has k, cg, s, gradient, back and copied. */
bool chain_build(Chain *c, CgModule *out, const char **why);

/* For every element of this lane that exists of the state at `state`, element k, v of which is `place`
 * bytes (i64) behind it. */
void chain_each_element(Chain *c, Val state, Val (*place)(Cg *, Val k, Val v),
                        void (*visit)(Chain *, Val p, int n, int j));

/* chain_border.c: states in the midst of a sequence, in memory from `all` on: codegen.h at SEGMENT_STATE_IN */
Val chain_place_interval(Chain *c, Val n);            /* sets begin, end; n without the interval */
Val chain_state_in(Chain *c);                         /* address (i64) of what a sequence there goes on from */
Val chain_border_bytes(Chain *c);                     /* i64, of a sequence with all its heads */
void chain_take_over(Chain *c, Val all);
void chain_pass_on(Chain *c, Val all);
void chain_save_start(Chain *c, Val number);          /* forward: the state before this chunk (i64), where due */

/* chain_value.c */
bool chain_plan_values(Chain *c, const char **why);   /* staged, row_value */
void chain_sum_params(Chain *c);                      /* once at_v is there */
void chain_recall(Chain *c);                          /* likewise: what `recalled` names */
void chain_begin_values(Chain *c);                    /* of the next chunk: nothing is known */
void chain_rows(Chain *c, Val start, Val stage);      /* evaluate row values of a chunk into a stage */
/* The same in two halves, one before products are issued and one after; threads >= rows. */
void chain_rows_ahead(Chain *c, Val start);
void chain_rows_store(Chain *c, Val stage);
const Val *chain_get(Chain *c, int v);
void chain_set(Chain *c, int v, const Val *x);

/* Before anything that waits for the state: what v needs of everything else. */
void chain_prefetch(Chain *c, int v);

/* chain_stage.c */
int64_t chain_staged_bytes(const Chain *c, const Staged *in); /* of a stage */
void chain_copy_inputs(Chain *c, Val start, Val stage);
void chain_load_staged(Chain *c, int v, Val *x);      /* a fragment, of tokens c->earlier before the rows' */
Val chain_token_of_row(Chain *c, Val row);            /* rows of no token take the chunk's last */
/* x (i32), as far as LLVM knows another one in every chunk: what is computed from it stays in the loop,
 * where it takes no register while products run. */
Val chain_keep(Chain *c, Val x);
Val chain_tokens_left(Chain *c, Val start);           /* i32: of the chunk that begins there, or <= 0 */

/* chain_gemm.c, chain_wgmma.c: the steps of a chunk, in this order */
void chain_read_state(Chain *c);                      /* W_f S of every family, as values */
void chain_mix(Chain *c);                             /* M_f X */
void chain_advance(Chain *c);                         /* S = D S + P' X, after the outs */
void chain_wgmma_plan(Chain *c);
bool chain_wgmma_fits(const Chain *c);                /* registers */
void chain_wgmma_read_state(Chain *c);
void chain_wgmma_mix(Chain *c);
void chain_wgmma_advance(Chain *c);
/* acc (+)= operand times m, under way when this returns. */
void chain_wgmma(Chain *c, Matrix m, const Val *operand, Val *acc, bool accumulate);
void chain_wgmma_settle(Chain *c);                    /* after a branch: next becomes the state */
void chain_wgmma_decay(Chain *c);                     /* S *= D */

/* reverse.c, reverse_wgmma.c: the same of the costate */
void reverse_left(Chain *c, int f, Val *x);           /* dO_f on stored rows, times what W_f, M_f lack */
void reverse_read(Chain *c);                          /* operands of dS' and dO_f; P dS' + sum of M_f' dO_f */
void reverse_mix(Chain *c);                           /* dX, as a value */
void reverse_advance(Chain *c);                       /* dS = D dS' + sum of Q_f' dO_f - E' dX */
bool reverse_wgmma_fits(const Chain *c);
void reverse_wgmma_read(Chain *c);
void reverse_wgmma_mix(Chain *c);
void reverse_wgmma_advance(Chain *c);

/* chain_gemm.c: parts of the steps */
Val chain_stage_pointer(Chain *c, int64_t offset);
Val chain_record_scale(Chain *c);                     /* System.has_scale: what M and P lack */
void chain_scale_rows(Chain *c, int family, Val *x);  /* a fragment times what W_f and M_f lack */
void chain_scale_keys(Chain *c, Val *x);              /* times what M's and P's columns lack */
const Val *chain_x(Chain *c);                         /* X times the same */
void chain_decay(Chain *c, int n, Val d[2]);          /* of state columns 8n + 2t, +1; or NULLs */
/* Fragment of `count` accumulators -> A operands (count/2 registers), divided by powers of two by which
 * the columns' largest elements come near f16's: scale[]. */
void chain_operand(Chain *c, const Val *x, int count, Val *operand, Val scale[2]);
void chain_scale_fragment(Chain *c, Val *x, int count, const Val scale[2]);
/* acc (tiles n and n+1 of 8 columns) += k-step `step` of the operand times m. */
void chain_multiply(Chain *c, Matrix m, int n, int step, const Val *operand, Val acc[8]);
/* Columns 8n .. 8n + 15 of the state, decayed, plus acc. */
void chain_advance_state(Chain *c, int n, const Val acc[8]);

/* chain_unit.c: wgmma: powers of two that state and operands are divided by */
void chain_get_state(Chain *c, Val *x);
void chain_set_state(Chain *c, const Val *x);
void chain_units(Chain *c, Val unit[2]);
/* factor[]: NULL for 1. */
void chain_scale_columns(Chain *c, Val *x, int count, const Val factor[2]);
void chain_pack(Chain *c, const Val *x, int count, const Val factor[2], Val *operand);
void chain_state_operand(Chain *c);                   /* sets state_operand and empty_column */
Val chain_too_large(Chain *c, const Val *operand, int count);
/* Columns where x (which `scale` multiplies, or NULL) does not fit its unit, or has no state beside it and
 * is too small for it, get another; the state follows. ratio[]: old units over new ones. */
void chain_fit_units(Chain *c, const Val *x, Val scale, Val ratio[2]);
void chain_set_all(Chain *c, const Var *to, const Val *x, int count);

/* chain_save.c: into the present chunk's record */
/* A state's operand and its units, at `offset` and `units`. */
void chain_save_state(Chain *c, int64_t offset, int64_t units, const Val scale[2]);
/* A fragment. */
void chain_save_rows(Chain *c, const Val *x, int64_t offset, int64_t units);

/* chain_out.c */
void chain_store_out(Chain *c, int port, int v);

#endif
