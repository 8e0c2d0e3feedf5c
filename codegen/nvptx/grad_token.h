/* The tokens phase of the grad kernel in the making, and the late kernel, which is one too: it goes over
 * tokens again for the gradients that wait for later tokens, and takes everything else from memory (scan.h).
 * Private to codegen/nvptx.
 *
 * A token is worked on by `lanes` neighbouring lanes (a power of two): lane l holds channels l n_k ..
 * of K and l n_v .. of V. The block takes warps * 32 / lanes tokens at a time.
 *
 *     grad_token.c      the plan, cotangents from scratch and record, the loop over tokens
 *     grad_token_ahead.c  rows of tokens to come, copied while others are worked on
 *     grad_token_out.c  rows of gradients to memory
 *     grad_token_sum.c  sums over the chunk's tokens: gradients of params
 */
#ifndef GDR_CODEGEN_NVPTX_GRAD_TOKEN_H
#define GDR_CODEGEN_NVPTX_GRAD_TOKEN_H

#include "codegen/nvptx/gradient.h"

enum { TOKEN_RUN = 8 }; /* channels of a lane, at most */

typedef struct Ahead Ahead;
typedef struct TokenRows TokenRows;

typedef struct Tokens {
    Grad *g;
    bool late;           /* the late kernel's */
    int lanes, n_k, n_v;
    ValueAt at;
    Val lane;            /* i32 among the token's */
    Val t;               /* i32 token in the chunk; where there is none left, the last one again */
    Val live;            /* i1: there is one */
    Val unit_dx[TOKEN_RUN];
    bool *at_token, *on_lattice; /* by value: found to be supported at a token, on the lattice */
    bool *needed;        /* by value: a token's gradients ask for it */
    Ahead *ahead;        /* NULL: every row is read when it is wanted */
    TokenRows *rows;     /* by value: where an output's rows are */
    bool *over_tokens;   /* by value: a sum over the chunk's tokens that a param's gradient needs */
    Var **sum;           /* by value: those sums' elements, this lane's tokens so far */
    int *sh_sum;         /* by value: f32 [warps][lanes * elements] in shared memory */
} Tokens;

/* Elements that a lane holds of a value with these axes. */
int tokens_count(const Tokens *x, Shape s);
int tokens_run_axis(Shape s); /* K, V or -1 */

/* Whether v is among what the chunk's kernels leave for the tokens phase: rows of the lattice, this
 * lane's part of one `bytes` long. */
bool tokens_in_memory(const Tokens *x, int v);
int tokens_row_bytes(const Tokens *x, int v);
/* Its place within the token where v has axis C; where `units` 16-byte units of such a row are. */
int tokens_place(const Tokens *x, int v);
void tokens_row_units(Tokens *x, int v, int place, int units, Val *address);
/* A row of one number, f32. */
Val tokens_load_number(Tokens *x, int v, int place);
/* Of the tokens that the warp works on at once, the number of these lanes' (i32). */
Val tokens_side(const Tokens *x);
/* x at token t (i32) of `left` that the chunk has; at the last one where there is none. */
void tokens_place_at(Tokens *x, Val t, Val left);

/* grad_token_ahead.c: all but the first do nothing where `ahead` is NULL. */
void tokens_plan_ahead(Tokens *x, int *sh_bytes);
void tokens_begin_ahead(Tokens *x, Val first, Val left, int64_t step); /* the first tokens' copies */
void tokens_enter(Tokens *x, Val first, Val left, int64_t step); /* the token at `first` has arrived */
void tokens_end_ahead(Tokens *x);
/* Whether this lane's part of v's row is a copy, and its units. Place: the update's, or one of these. */
enum { PLACE_INPUT = -1, PLACE_SUM = -2 }; /* an input's row; what heads before this one add to output v */
bool tokens_copy_of(Tokens *x, int v, int place, Val *copy);
/* The one number of v's row, f32, or NULL. */
Val tokens_number_of(Tokens *x, int v, int place);

/* Whether v is a product of two vectors that are no matrices of the chunk. */
bool tokens_is_dot(const Kernel *k, int v);
/* Whether output `out` is this kernel's. */
bool tokens_gives(const Tokens *x, const Inst *out);

/* grad_token_out.c */
void tokens_place_rows(Tokens *x);                   /* once, where it dominates all that follows */
void tokens_store(Tokens *x);                        /* this token's rows of all outputs */
/* 16-byte units of this lane's part of such a row, 0 where it does not come in these; their addresses,
 * and how many bytes of each are wanted (i32): none where the row is not a sum of several heads. */
int tokens_sum_units(const Tokens *x, int out);
void tokens_sum_at(Tokens *x, int out, Val *address, Val *bytes);
void tokens_store_made(Tokens *x, const ScanValue *made);
void tokens_store_param(Tokens *x, const Inst *out); /* of this chunk, by the warp that calls */

/* grad_token_sum.c */
bool tokens_plan_sums(Tokens *x, int *sh_bytes, const char **why);
void tokens_open_sums(Tokens *x);
void tokens_add(Tokens *x);            /* the present token */
void tokens_finish_sums(Tokens *x);    /* the params' gradients; has a block barrier where there are any */

/* What of v a token can be asked for: NULL, or why it cannot. */
const char *tokens_unsupported(const Tokens *x, int v);

#endif
