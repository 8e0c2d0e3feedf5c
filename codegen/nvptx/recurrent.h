/* The recurrent kernel while it is being built: its plan, its thread, what its registers hold.
 * Private to codegen/nvptx.
 */
#ifndef GDR_CODEGEN_NVPTX_RECURRENT_H
#define GDR_CODEGEN_NVPTX_RECURRENT_H

#include "codegen/nvptx/nvptx.h"

enum {
    WARP = 32,
    COLUMNS = 4,   /* of a lane: 16 bytes of f32 */
    MAX_ROWS = 16  /* of a lane */
};

typedef struct Recurrent {
    Cg *cg;
    const Kernel *k;
    int K, V;
    int row_groups, column_groups;
    int n_k;              /* rows of a lane */
    int warps, v_tile;    /* of a block */
    bool whole;           /* a block owns all of V */
    bool past_k, past_v;  /* some lanes hold rows or columns that do not exist */
    Val lane, warp, row_group, column_group;
    Val tile;             /* which V tile the block owns */
    Seq seq;
    ValueAt at;
    Val s[MAX_ROWS][COLUMNS];       /* the state while a token is being built */
    Var state[MAX_ROWS][COLUMNS];   /* and between tokens */
    Var **carried;                  /* [value] elements of prev and cumsum from the token before */
    Var **ahead;                    /* [value] what the next token's inputs were read as */
} Recurrent;

/* recurrent.c: n neighbouring elements, n <= COLUMNS, at a multiple of their size. */
void recurrent_store(Cg *cg, Elem e, Val p, int n, const Val *x);

/* recurrent_token.c: what is carried from token to token, to be opened before the token loop; the
 * two hooks of values; one token, from its inputs to its outputs, on r->s. */
void recurrent_open_carried(Recurrent *r);
bool recurrent_lookup(ValueAt *at, int v, Val *out);
Val recurrent_sum(ValueAt *at, int v, int axis, Val partial);
void recurrent_token(Recurrent *r);

#endif
