/* The recurrent kernel while it is being built: its plan, its thread, what its registers hold.
 * Private to codegen/nvptx.
 */
#ifndef GDR_CODEGEN_NVPTX_RECURRENT_H
#define GDR_CODEGEN_NVPTX_RECURRENT_H

#include "codegen/nvptx/nvptx.h"

enum {
    WARP = 32,
    MAX_ROWS = 16,    /* of a lane */
    MAX_COLUMNS = 8,
    TILE = 64         /* state elements of a lane, its rows times its columns, at most */
};

typedef struct Recurrent {
    Cg *cg;
    const Kernel *k;
    int K, V;
    int row_groups, column_groups;
    int n_k, n_v;         /* rows and columns of a lane */
    int warps, v_tile;    /* of a block, at a time: */
    int turns;            /* tiles that it takes one after the other */
    bool whole;           /* a block has all of V at once, for sums over it */
    bool remembers;       /* a head is one block's: its columns share what is remembered */
    bool crowded;         /* no registers are left to read inputs ahead */
    bool past_k, past_v;  /* some lanes hold rows or columns that do not exist */
    Val lane, warp, row_group, column_group;
    Val tile;             /* which V tile the block owns */
    bool *made;           /* [value] whether inputs alone make it */
    int *place;           /* [value] where a token's shared memory has it; -1: it has not */
    int token_bytes;      /* of such memory, */
    int batch;            /* for so many tokens at a time, a power of two, twice, */
    int shared_from;      /* from this byte on */
    Seq seq;
    Pool pool;
    Val stores_each;      /* i1: states after every token are wanted; */
    Val stores_at;        /* i64: else, after so many; -1: none */
    ValueAt at;
    ValueAt maker;        /* likewise, spread over all lanes of a warp */
    Val memory;           /* shared memory of the token at work */
    Val s[MAX_ROWS][MAX_COLUMNS];     /* the state while a token is being built */
    Var state[MAX_ROWS][MAX_COLUMNS]; /* and between tokens */
    Var *word;                        /* and as it was read */
    Val **scattered;                  /* [value] what is read for outputs alone, a lane some columns */
    Var **carried;                    /* [value] elements of prev and cumsum from the token before */
    Var **ahead;                      /* [value] what inputs of the next batch were read as */
} Recurrent;

/* recurrent_state.c: the state and what is remembered beside it set out from where the sequence
 * starts, and arrive; after which tokens they are stored; and to where states after `t` (i64)
 * tokens go, if they go anywhere. */
void recurrent_load_state(Recurrent *r);
void recurrent_take_state(Recurrent *r);
void recurrent_open_stores(Recurrent *r);
void recurrent_store_state(Recurrent *r, Val t);
/* n neighbouring elements (16 bytes at most), at a multiple of their size. */
void recurrent_store(Cg *cg, Elem e, Val p, int n, const Val *x);
/* The largest power of two that divides both and whose elements fit an access. */
int recurrent_group(int size, int run, Elem e);

/* recurrent_made.c: what is made of a token's inputs alone, once for a block. Which values those
 * are (r->made), and which of them anything else uses; shared memory for these behind `from` bytes,
 * and whether a lane's `registers` hold their inputs ahead; false: there is not enough memory. */
void recurrent_made_mark(Recurrent *r);
bool recurrent_made_wants(const Recurrent *r, int v);
int recurrent_made_ahead(const Recurrent *r); /* registers of a lane that inputs read ahead take */
bool recurrent_made_plan(Recurrent *r, int from, int registers);
void recurrent_made_open(Recurrent *r);
/* The inputs of the batch of tokens from `t` (i64) on set out, if there are registers; they are
 * made into values, which the block has when this returns, and those of the next batch set out. */
void recurrent_made_read(Recurrent *r, Val t);
void recurrent_made_batch(Recurrent *r, Val t);
/* A lane's run of v at token t, to which recurrent_made_token has come; false if it is not made
 * so. */
void recurrent_made_token(Recurrent *r, Val t);
bool recurrent_made_get(Recurrent *r, int v, Val *out);

/* recurrent_token.c: what is carried from token to token, to be opened before the token loop; the
 * two hooks of values; one token, from its inputs to its outputs, on r->s. */
void recurrent_open_carried(Recurrent *r);
/* One lane of those that hold the same elements along `axis` (or -1), in one block of a head's. */
Val recurrent_writes(Recurrent *r, int axis);
bool recurrent_lookup(ValueAt *at, int v, Val *out);
Val recurrent_sum(ValueAt *at, int v, int axis, Val partial);
void recurrent_token(Recurrent *r);

#endif
