/* Values made ahead of the factor and chain kernels, because those cannot make them: each holds one
 * chunk, a few channels of a token, or single columns of V. Private to codegen/nvptx.
 *
 *     what a running sum over the sequence goes into
 *     a sum over channels wanted of an earlier token (under prev), by the chain, or over V by the factor
 *     a turn over V that the chain wants
 *
 * Gradient kernels make further ones, at every token of what the grad kernel has made there: values that
 * wait for later tokens (after, cumsum_back) begin with those that do not, which the grad kernel leaves
 * here; running sums from the sequence's end go on from them.
 *
 * They stand in the workspace behind the chunks' records (gradient kernels: at GRAD_AHEAD), f32, and are
 * read like an input of H heads:
 *     rows    of one value after another: [tokens][H][elements]
 *     carry   [stretches][H][carry_floats], running sums alone: what the sequence adds up to before a
 *             stretch of SCAN_TOKENS tokens
 *
 * Values whose making reads others from memory are made in a later round than those. A round is up to
 * three entries, in this order:
 *     sums    a warp = one stretch and head: the stretch's own sums              into the carry rows
 *     carry   a block = one sequence and head: the sums before each stretch      in their place
 *     rows    a warp = one stretch and head: the values, token by token          into the rows
 * A forward kernel that remembers something (past_list) has one more, behind all others:
 *     past    a warp = one sequence and head, at its last stretch: what the last token leaves   to FRAME_PAST
 * It alone writes there and the others alone read FRAME_PAST0, which may be the same memory.
 * Rounds behind the grad kernel go the other way: `before` is behind, and tokens come last one first.
 */
#ifndef GDR_CODEGEN_NVPTX_SCAN_H
#define GDR_CODEGEN_NVPTX_SCAN_H

#include "codegen/nvptx/nvptx.h"

enum { SCAN_LANES = 32, SCAN_ROUNDS_MAX = 4, SCAN_ALL = SCAN_ROUNDS_MAX };

typedef struct ScanValue {
    int value;         /* the instruction */
    int axis;          /* K, V, or -1: a scalar */
    int n;             /* elements that a lane holds */
    int round;         /* that makes it, from 0 */
    bool stored;       /* has rows; else a running sum that only others of the scan use */
    int64_t rows_at;   /* stored: bytes of a token and head before it, among all values */
    int carry_at;      /* running sums: floats of a carry row before it; it has 32 n of them */
} ScanValue;

struct Scan {
    int *of;           /* by value number: its ScanValue, or -1 */
    ScanValue *value;
    int count, rounds;
    int64_t token_bytes;    /* rows: of a token and head */
    int carry_floats;
    int grad_round;         /* values of earlier rounds are made before the factor kernel; those of this
                               round by the grad kernel, of later ones behind it, from the ends back */
    bool *late;             /* gradient kernels: by value, waits for gradients of later tokens; NULL:
                               none does, and there are no such rounds */
};

struct System;
struct Gradient;

/* What the kernels of a system need made ahead; no values: nothing. g: of a gradient kernel, else NULL. */
const Scan *scan_plan(const Kernel *k, const struct System *s, const struct Gradient *g);
/* What evaluating v at a token evaluates at that token: not what stands under prev or after, nor under
 * values that are read from memory when those of rounds before `round` are there. */
void scan_mark(const Kernel *k, const Scan *scan, int round, int v, bool *mark);

/* Whether it is a running sum, of either direction. */
bool scan_is_sum(const Kernel *k, const ScanValue *value);
/* Elements along an axis that a lane holds. */
int scan_lane_elements(const Kernel *k, int axis);
/* Whether v has rows; `scan` may be NULL. */
bool scan_stored(const Scan *scan, int v);
/* Where they begin: that of the first token and head. */
Val scan_rows(Cg *cg, const ScanValue *value);

/* Entries before the factor kernel, or with `back` those behind the grad kernel: how many, at most three
 * a round, and each of them. */
int scan_entries(const Kernel *k, const Scan *scan, bool back);
void scan_build(Cg *cg, const Scan *scan, bool back, int which, CgModule *out);
/* The entry behind all others of a forward kernel that remembers something. */
void scan_build_past(Cg *cg, const Scan *scan, CgModule *out);

/* scan.c, scan_carry.c among themselves -------------------------------------------------------- */

enum { CARRY_WARPS = 16 };  /* of a block */
/* a + b for running sums; of angles whole turns do not count. */
Val scan_add(Cg *cg, bool angle, Val a, Val b);
/* The carry row of a stretch (i64) and head (i32). */
Val scan_carry_row(Cg *cg, const Scan *scan, Val stretch, Val head);
/* A lane's n elements, f32, in accesses of up to 16 bytes. */
void scan_load_lane(Cg *cg, Val p, int n, Val *out);
void scan_store_lane(Cg *cg, Val p, int n, const Val *x);
/* The carry entry of a round; bytes of shared memory that it takes. */
int scan_build_carry(Cg *cg, const Scan *scan, int round);

#endif
