/* The chunk system as the GPU kernels see it, and the state shared by the files of the factor
 * kernel. Private to codegen/nvptx.
 *
 * Lattice. Every left row and every update stands on a lattice of `rows` positions in time order:
 * token t's update s is position t*slots + s. The erase rows (X's equations) fill every position
 * and see the updates strictly before it (exclusive). An out read of place p > 0 stands on position
 * t*slots + p-1 and sees that update too (inclusive); with p = 0 on t*slots, exclusive. Positions
 * where a family has no row hold zeros. W_f and M_f keep an out family's rows on their token's last
 * position, so that the chain can add reads that stand at different ones. So one chunk is
 *     G[l,u] = sum_k x[l,k] Lam(l,u)[k] p[u,k]
 * for one or more families x, with Lam a product of decays over whole positions.
 *
 * Workspace: one record per (slot, factor head), at (slot * HF + head) * ws_bytes; all matrices are
 * on the lattice, in f16, placed by nv_place so that the chain copies a record to shared memory as it
 * lies and multiplies it there; each begins at a multiple of 1024 bytes:
 *     W_f   [rows][kp]   row family f carried to the chunk's start (E, Q)      f < families
 *     M_f   [rows][rows] per out family, divided by scale                    f >= erase
 *     P     [rows][kp], divided by scale
 *     D     [kp] f32 (key decay), or one f32 (scalar decay); not written without decay
 *     scale f32, a power of two
 *     rows  [rows] f32 per family that is scaled: what W_f's and M_f's rows lack
 *     keys  [rows] f32, nothing erased and keys scaled: what M's and P's columns are divided by, which
 *           the chain makes good in X; with a trail: also where something is erased
 *     columns [rows] f32, grows: what M's columns and P's rows are divided by instead of scale, which is
 *           1; made good in X, backwards in dX
 *
 * Numbers. Matrix operands are f16: 3 more bits than bf16 at the same speed, but a range of 2^-14 to
 * 2^16. Rows and keys that their declared ranges bound (normalised ones) fit as they are; others are
 * divided by the power of two below their largest element, row by row, so that no token's rounding
 * depends on another token. Where tokens reflect (b = 2) the state does not fade and an error in T, the
 * same from token to token if the keys are, grows with every token. With f32 inputs, which do not hide
 * it behind their own rounding: scalar decay takes rows and keys of T as sums of two f16; vector decay,
 * which forgets sooner, gives each erase row the factor that makes x . p of its token exact. scale keeps
 * M and P in range when A, or the keys, are large. Where nothing bounds the keys A may grow from token
 * to token; a gradient needs the small elements beside its diagonal too, so then (grows) A's columns and
 * rows have factors of their own. The chain keeps the state and X in units of its own.
 */
#ifndef GDR_CODEGEN_NVPTX_FACTOR_H
#define GDR_CODEGEN_NVPTX_FACTOR_H

#include "codegen/nvptx/scan.h"
#include <string.h>

enum { MAX_FAMILIES = 8, MAX_WARPS = 4, BLOCK_ROWS = 16, SLAB = 32, ROW_TABLE = 20,
       MAX_STAGED_INPUTS = 8, MAX_HELD_SLABS = 4, MAX_SUMS = 32 };

typedef struct Family {
    int x;            /* erase: the weave [R,K]; out read: a [C,K] value */
    int scores;       /* the OP_scores of this family, or -1 when nothing uses it */
    int carried;      /* value contracted with the state: W_f */
    int read;         /* that contraction, a chain value */
    int mix;          /* out read: M_f; -1 for the erase family */
    int mixed;        /* out read: contract(M_f, X), a chain value */
    bool inclusive;
    int position;     /* out read: lattice position within the token; erase: -1 (every one) */
    bool unbounded;   /* no declared range bounds its rows: divided by powers of two */
    bool corrected;   /* erase, vector decay, f32 inputs: what rounding does to x . p of a token is
                         made good */
    bool scaled;      /* either: the record has a factor for each row */
    int64_t ws_w, ws_m, ws_rows;
} Family;

typedef struct System {
    int a;            /* decays on the lattice, or -1 */
    bool a_key;       /* per key channel (else scalar) */
    int p;            /* updates' keys: a weave [U,K] */
    bool p_scaled;    /* as Family.scaled */
    bool has_scale;   /* the record's scale may differ from 1 */
    double scores;    /* bound of a score's magnitude after scaling */
    bool erase;       /* family[0] is the erase family */
    bool grows;       /* with `trains`: updates depend on the state and no range bounds their keys: A's columns,
                         with `trail` its rows too, have factors of their own */
    bool split;       /* erase, scalar or no decay, f32 inputs: T from rows and keys of twice the bits */
    int key_multiple; /* erase rows are this token scalar times the keys, or -1 */
    Family family[MAX_FAMILIES];
    int families;
    int X;            /* chain value contracted with P */
    int64_t ws_p, ws_d, ws_scale, ws_keys, ws_bytes;
    int64_t ws_copied;        /* the record's first bytes, which the chain copies */
    /* with `trail`: see gradient.h */
    int64_t ws_columns, ws_a_rows; /* grows */
    int64_t ws_reversed, ws_a, ws_s, ws_ds, ws_x, ws_dx, ws_unit_s, ws_unit_ds, ws_unit_x, ws_unit_dx;
    int64_t ws_sums;
    int sum[MAX_SUMS], sums;  /* the sums over K that rows, keys and decays are made of */
    bool trail;       /* records are those of gradient kernels: theirs, and forward ones' that save all */
    bool trains;      /* states are those of gradient kernels bit for bit: theirs, and forward ones' that save */
    int slots, chunk; /* updates a token, tokens a chunk */
    int rows, warps;  /* lattice rows padded to 16, 32 or 64; rows / 16 */
    int K, kp;        /* key channels; padded to a multiple of 32 */
    int V, vp;                /* value channels; padded to a multiple of 16 */
    Elem operand;     /* of matrix products: f16 */
    const Scan *scan; /* values made ahead */
} System;

/* Place, in 16-byte units, of unit `unit` (8 elements) of row `row` of a workspace matrix. Columns lie
 * in blocks of 64 (or 32, or 16, whichever divides their number), a block's rows one after another,
 * and units are permuted within a row by its number: the 128-, 64- and 32-byte swizzles of wgmma's
 * shared-memory operands, in which ldmatrix meets no bank conflict either. */
Val nv_place(Cg *cg, int rows, int columns, Val row, Val unit);
int nv_block_columns(int columns);

/* The value that v is by another name of its axis; the first value of this operation, or -1. */
int nv_strip(const Kernel *tile, int v);
int nv_find_op(const Kernel *tile, Op op);

/* Recognise the system in a tile-level kernel; false with *why when this target cannot run it. */
bool nv_system(Arena *arena, const Kernel *tile, System *s, const char **why);
/* Its steps, which nv_gradient (gradient.h) shares: what does not depend on families; how numbers are
 * scaled, when families, keys and decays are known; where everything lies in a record. */
bool nv_system_sizes(Arena *arena, const Kernel *tile, System *s, const char **why);
void nv_system_scales(const Kernel *tile, System *s);
void nv_system_place(System *s);
/* The system of a forward kernel that saves states, or all, from nv_system's. */
bool nv_system_keep(const Kernel *tile, System *s, bool all, const char **why);
/* Where the records begin, in global memory. */
Val nv_records(Cg *cg);
/* record.c: the sums and, with a trail, their place behind all others, once `scan` is there; false with *why.
 * CgModule.records. */
bool nv_record_sums(const Kernel *tile, System *s, const char **why);
uint64_t nv_record_number(const Kernel *tile, const System *s);

/* The factor kernel in the making. Lane l of warp w works on lattice rows 16w + 2g and 16w + 2g + 1
 * (g = l/4), at channels 8*(l%4) .. +7 of each slab of 32. Half h is the row 16w + 2g + h. In the
 * matrix products of a 16-row block with another, tile row g + 8h is block row 2g + h, and column g
 * of tile n is block column 2g + n; so accumulator [n][2h + c] is (2g + h, 4t + 2c + n). */
typedef struct Factor {
    Cg *cg;
    const Kernel *k;
    const System *s;
    Val lane, warp, g, t;
    Val record;               /* global byte pointer to this block's workspace record */
    Val row[2];               /* lattice row in the chunk, i32 */
    Val row_slot[2];          /* row % slots; NULL when slots == 1 */
    Val stored_row[MAX_FAMILIES][2]; /* the row that W_f and M_f keep it in */
    Val row_live[2];          /* i1: the row's token exists */
    ValueAt at[2];
    Val row_scale[MAX_FAMILIES][2], row_shrink[MAX_FAMILIES][2]; /* unbounded families: s and 1/s */
    Val multiple[2];          /* key_multiple of the rows */
    Var exact[2], rounded[2]; /* corrected: this lane's part of x . p, and of the rounded rows' */
    Val shrink;               /* 1 / the record's scale */
    Val key_shrink[2];        /* p_scaled: 1 over the keys' scales, which are in sh_keys */
    Val **loaded[2];          /* accesses of an input that are at hand, by value number, or NULL */
    int parked[MAX_FAMILIES + 1], nparked;  /* inputs that the row sums leave where keys and stash go, */
    int nheld;                /* or, the first of them, in registers: accesses by slab, half, number */
    Val held[MAX_HELD_SLABS][2][MAX_FAMILIES + 1];
    int staged[MAX_STAGED_INPUTS], nstaged; /* inputs whose next slab is copied ahead of use */
    Var *sum[2];              /* finished OP_sum values by value number; p == NULL if not finished */
    /* shared memory, byte offsets */
    int sh_p;                 /* [rows][kp] operand type, units permuted: factor_key_unit */
    int sh_left;              /* [families][2][slabs][threads] 16-byte lane-private stash */
    int sh_total;             /* [warps][kp] f32: product of a 16-row block's decays */
    int sh_total_pair;        /* [warps + 1][kp] the same in f16, the last row 1 */
    int sh_low_left, sh_low_p; /* split: what f16 leaves of the erase rows and keys, laid out alike */
    int sh_stage;             /* [staged][half][access][threads] 16-byte lane-private copies */
    int sh_t;                 /* in place of stash and copies: f32 [rows][g stride], T, then A; */
    int sh_a[2];              /* in place of A: A / scale as the sum of two f16 [rows][pair stride] */
    int sh_q;                 /* scores of out families: f16 [rows][pair stride] */
    int sh_keys;              /* p_scaled: [rows] f32 the keys' scales */
    int sh_scale;             /* [warps] f32 largest elements */
    int sh_row;               /* scalar decay: see factor_scalar.c */
    int sh_bytes;
    /* scores of this warp's rows, f32, by distance of the block of updates */
    Var block[MAX_WARPS][MAX_FAMILIES][2][4];
} Factor;
/* Row stride of the f32 matrices: 4 more than a multiple of 16 spreads a fragment's rows over banks. */
static inline int factor_g_stride(const System *s) { return s->rows + 4; }
static inline int factor_pair_stride(const System *s) { return s->rows + 8; }
int factor_matrix_base(const Factor *f, int family); /* scores in shared memory */
/* The row that W_f and M_f keep lattice row `row` of a family in. */
Val factor_stored_row(Factor *f, int family, Val row);

/* Pointer to 16-byte unit of a workspace matrix with kp or rows columns; or to a 2-element pair. */
Val factor_ws_unit(Factor *f, int64_t base, int columns, Val row, Val unit);
Val factor_ws_pair(Factor *f, int64_t base, int columns, Val row, Val column);

/* factor.c: the lattice rows of the chunk from token `start` of its sequence on. */
void factor_place_rows(Factor *f, Seq seq, Val start, Val head, Val heads);

/* factor_scores.c, vector decay; factor_scalar.c, scalar or no decay */
void factor_rows_pass(Factor *f);      /* decays, diagonal blocks, stash */
void factor_off_diagonal(Factor *f);   /* blocks below the diagonal; writes W_f */
void factor_begin_blocks(Factor *f, int first);
void factor_scalar_rows_pass(Factor *f);
void factor_scalar_blocks(Factor *f);
void factor_scalar_tail(Factor *f);
/* Scalar decay, in shared memory at sh_row. Lam: x times that of row half h with a column of the warp's
 * own block, 0 where not seen; of its scores with the block `distance` below, in place; from the chunk's
 * start to a row; from an update of the warp's block to the chunk's end. */
void factor_decay_table(Factor *f); /* a block barrier before the rest is used */
Val factor_own_score(Factor *f, const Family *fam, int h, Val column, Val x);
void factor_decay_block(Factor *f, const Family *fam, int distance, Var (*acc)[4]);
Val factor_carried_decay(Factor *f, const Family *fam, int h);
Val factor_tail_decay(Factor *f, Val row);
Val factor_chunk_decay(Factor *f);       /* from the start to the end */
Val factor_own_decay(Factor *f, Val row);

/* Unit `unit` (8 elements) of a row of a tile in shared memory with `units` of them, a multiple of 4. */
Val factor_unit(Cg *cg, int base, int units, Val row, Val unit);
Val factor_key_unit(Factor *f, int base, Val row, Val unit); /* 8 channels of a key tile */
void factor_store_unit(Cg *cg, Val p, const Val unit[4]);
void factor_load_unit(Cg *cg, Val p, Val unit[4]);
/* A slab's left rows [half][pair] lie in the stash as the two k-steps' A fragments, so that one load
 * brings a fragment's four registers in order. */
Val factor_stash_unit(Factor *f, int base, int family, int step, Val slab);
void factor_store_left(Factor *f, int base, int family, Val slab, Val (*left)[4]);
void factor_load_left(Factor *f, int base, int family, Val slab, Val (*left)[4]);
void factor_pack(Cg *cg, Elem e, Val out[4], const Val x[8]);
void factor_load_keys(Factor *f, int base, Val block, Val slab, Val b[2][4]);
void factor_multiply(Factor *f, Var (*acc)[2][4], Val (*left)[2][4], Val b[2][4]);
void factor_multiply_family(Factor *f, Var (*acc)[4], Val (*left)[4], Val b[2][4]);
/* factor_solve.c */
void factor_tail(Factor *f);           /* Kt in shared memory; D to the workspace */
void factor_store_scores(Factor *f);   /* accumulators -> sh_t, sh_q, or M_f */
void factor_solve(Factor *f);          /* A in place of T; A / scale */
void factor_products(Factor *f);       /* M_f, P to the workspace */

/* factor_input.c: reading the rows' inputs. */
bool factor_sums_fit(Factor *f, const char **why);
void factor_reduce(Factor *f);         /* row sums, finished before the rows pass */
void factor_save_sums(Factor *f);      /* to the record, and from there instead of factor_reduce */
void factor_load_sums(Factor *f);
void factor_scale_rows(Factor *f);                 /* scales of rows and keys that need them */
void factor_hold_scalars(Factor *f);       /* from now on in registers, not read again for every slab */
void factor_plan_stage(Factor *f);                 /* which inputs are parked or copied ahead */
int factor_stage_bytes(const Factor *f);
void factor_copy_ahead(Factor *f, Val slab);       /* start copying a slab's inputs */
/* Move to slab `slab`, a constant when inputs are held: wait for its copies, take them, start the next
 * slab's. */
void factor_enter_slab(Factor *f, Val slab);
/* The same when its copies are known to be there. One group of copies is committed, whether or not there is
 * a next slab. */
void factor_take_slab(Factor *f, Val slab);
bool factor_lookup(ValueAt *at, int v, Val *out);
Val factor_no_sum(ValueAt *at, int v, int axis, Val partial);

/* corrected: before, in and after the rows pass. */
void factor_begin_correction(Factor *f);
void factor_see_correction(Factor *f, int h, const Val x[8], const Val p[8]);
void factor_end_correction(Factor *f);

/* This lane's 8 channels of the present slab: rows of family i, keys, divided by their scales. */
void factor_family_row(Factor *f, int i, int h, Val out[8]);
void factor_keys(Factor *f, int h, Val out[8]);

/* Lattice elements of value v (a weave, or a [C,K] value placed at `position`) for half h, this
 * lane's 8 channels of the slab that at[h].base_k points to; `fill` where there is no row. */
void factor_row(Factor *f, int v, int position, int h, double fill, Val out[8]);
/* The same for a value without the K axis: one element. */
Val factor_row_scalar(Factor *f, int v, int h, double fill);
Val factor_shared_f32(Factor *f, int base, Val index); /* pointer to f32 number `index` */

#endif
