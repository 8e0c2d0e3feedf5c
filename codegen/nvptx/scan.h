/* Values made ahead of the factor and chain kernels, because those cannot make them: each holds one
 * chunk, a few channels of a token, or single columns of V. Private to codegen/nvptx.
 *
 *     a running sum over the sequence, whoever wants it
 *     a sum over channels wanted of an earlier token (under prev), by the chain, or over V by the factor
 *     a turn over V that the chain wants
 *
 * They stand in the workspace behind the chunks' records, f32, and are read like an input of H heads:
 *     rows    of one value after another: [tokens][H][elements]
 *     carry   [stretches][H][carry_floats], running sums alone: what the sequence adds up to before a
 *             stretch of SCAN_TOKENS tokens
 *
 * Values whose making reads others from memory are made in a later round than those. A round is up to
 * three entries, in this order:
 *     sums    a warp = one stretch and head: the stretch's own sums              into the carry rows
 *     carry   a block = one sequence and head: the sums before each stretch      in their place
 *     rows    a warp = one stretch and head: the values, token by token          into the rows
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
    int64_t record_bytes;   /* of a slot and factor head, in front of all this */
    int64_t token_bytes;    /* rows: of a token and head */
    int carry_floats;
};

struct System;

/* What the kernels of a system need made ahead; no values: nothing. */
const Scan *scan_plan(const Kernel *k, const struct System *s);
/* What evaluating v at a token evaluates at that token: not what stands under prev, nor under values
 * that are read from memory when those of rounds before `round` are there. */
void scan_mark(const Kernel *k, const Scan *scan, int round, int v, bool *mark);

/* Elements along an axis that a lane holds. */
int scan_lane_elements(const Kernel *k, int axis);
/* Whether v has rows; `scan` may be NULL. */
bool scan_stored(const Scan *scan, int v);
/* Where they begin: that of the first token and head. */
Val scan_rows(Cg *cg, const Scan *scan, const ScanValue *value);

/* Entries: how many, at most three a round, and each of them. */
int scan_entries(const Kernel *k, const Scan *scan);
void scan_build(Cg *cg, const Scan *scan, int which, CgModule *out);

#endif
