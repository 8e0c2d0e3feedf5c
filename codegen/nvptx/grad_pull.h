/* The pull phase of the grad kernel in the making: one chunk of one head, from S, dS', X and dX
 * back to the lattice's rows, keys and decays. Private to codegen/nvptx/grad_pull*.c.
 *
 *   unit     units of columns of V                                      grad_pull_unit.c
 *   copy     what these two read, under way from a task's start         grad_pull_copy.c
 *   left     Zt = A X; left rows; dG_f = left_f Zt', as operands        grad_pull_left.c
 *   state    a slab of 32 channels: dW_f = left_f S', dKt = Zt dS', dD  grad_pull_state.c
 *   key      vector decay: a slab's products with Lam backwards         grad_pull_key.c
 *   scalar   scalar or no decay                                         grad_pull_scalar.c
 *
 * A lane holds rows and channels as the factor kernel's do (factor.h): rows 2g + h of its warp's
 * block, channels 8t .. 8t+7 of a slab. Accumulators of products with 32 channels are asked for in
 * that layout too: operands stand so that column 2t + c of tile n is channel 8t + 2n + c.
 *
 * Numbers. Left rows are divided by powers of two, row by row, before they are rounded to f16, and
 * units of columns of V (gradient.h) are multiplied into them. dG is f16 in one unit a chunk,
 * sigma, a bound of its largest element over 2^14: what is 2^-28 as large still has all its bits.
 * Everything after is f32 divided by sigma. Families that are subtracted are so from their left
 * rows on. Rows divided by a scale (factor.h) have dG and dW times it, keys likewise: so products
 * of x and dx, p and dp are what they are. System.grows: left rows, dX above all, span as much as
 * the state grows by in the chunk, Zt's rows as much the other way, and dG the product of both,
 * more than f16 has. Then rows and keys take over, within f16's range, what makes left rows and
 * Zt's rows alike in size. */
#ifndef GDR_CODEGEN_NVPTX_GRAD_PULL_H
#define GDR_CODEGEN_NVPTX_GRAD_PULL_H

#include "codegen/nvptx/gradient.h"

/* Units of columns of V, each array divided by its largest: in f16 those of S, of X, S's times
 * dS's as two factors, sds and rest; in f32 X's times dS's, and dX's, which are as they are. */
enum { UNIT_s, UNIT_x, UNIT_sds, UNIT_rest, UNIT_xds, UNIT_dx, UNITS, UNITS_f16 = UNIT_xds };

/* A lane's 2 rows by 8 channels, f32, and as operand pairs. */
typedef struct Tile { Val x[2][8]; } Tile;
typedef struct Packed { Val pair[2][4]; } Packed;
typedef struct TileVar { Var x[2][8]; } TileVar;

typedef struct Pull {
    Grad *grad;
    Cg *cg;
    const Gradient *g;
    const System *s;
    Factor f;
    int vq;                  /* V padded to a multiple of 32 */
    int pairs;               /* pairs of 16-row blocks that have a place among the operands dG */
    bool decays;             /* their cotangent is wanted */
    /* shared memory, byte offsets */
    int sh_unit;             /* f16 [UNITS_f16][vq], f32 [UNITS - UNITS_f16][vq] */
    int sh_most;             /* f32 [2][warps] */
    int sh_left;             /* [families + 1][step][V slab][threads] 16-byte A fragments of the
                                lane's own: left rows for dW; Zt for dKt */
    int sh_state;            /* S, then dS: [vq][32 channels] f16 */
    int sh_zt;               /* f16 [rows][vq]; before it X and A as in the record; after it: */
    bool early;              /* there is room for the first slab's inputs beside Zt */
    int sh_exchange;         /* [families + 1][block][h][n][lane]: a slab's pairs of keys, rows */
    int sh_dg;               /* [family][pair][n][h][lane]: pairs of dG's accumulators */
    int sh_raw;              /* scalar decay, not of log a: likewise dG without the decays */
    int sh_keys;             /* scalar decay: [block][h][lane] 16-byte B fragments along K: keys */
    int sh_total;            /* f32 [block][32]: products of a block's decays, of this slab */
    int sh_sum;              /* f32: partial sums for decays */
    int sh_bytes;
    /* the present chunk */
    Val state_at[2];         /* where this lane's rows of ldmatrix begin in a slab's first k-step */
    Val most[UNITS];         /* what the units were divided by */
    Val scale;               /* of Zt: the record's, and what Zt was multiplied by */
    Val row_most[MAX_FAMILIES][2]; /* largest of a left row */
    Val zt_most[2];          /* of a row of Zt, times its unit */
    Val chunk_zt_most;
    Val rescale[MAX_FAMILIES][2];  /* scales of rows; NULL: 1 */
    Val key_scale[2];
    Val sigma, inverse;      /* and 1 / sigma */
    Val dw_unit[MAX_FAMILIES][2], dkt_unit[2], dd_unit; /* what accumulators lack, over sigma */
    /* vector decay: dG of the block with itself */
    Val own[MAX_FAMILIES][4];      /* A fragments, between pairs of rows */
    Val turned[MAX_FAMILIES][4];   /* of its transpose */
    Val below[MAX_FAMILIES];       /* dG of a pair's second row with its first update */
    Val same[MAX_FAMILIES][2];     /* inclusive: of a row with its own update */
} Pull;

static inline bool pull_erase(const Pull *p, int f) { return p->s->erase && f == 0; }

static inline int pull_unit_base(const Pull *p, int unit) {
    int wide = unit > UNITS_f16 ? unit - UNITS_f16 : 0;
    return p->sh_unit + (unit + wide) * p->vq * 2;
}

/* grad_pull.c */
Val pull_f32(Pull *p, int base, Val index);           /* pointer to f32 number `index` */
Val pull_load(Pull *p, int base, Val index);
Val pull_record_f32(Pull *p, int64_t base, Val index); /* of the record */
void pull_load8(Pull *p, int base, Val index, Val out[8]); /* index a multiple of 4 */
Val pull_quad_sum(Pull *p, Val x);                    /* over the four lanes of a row */
Val pull_quad_most(Pull *p, Val x);
void pull_pack(Pull *p, Packed *out, const Tile *x);
void pull_unpack(Pull *p, Tile *out, const Packed *x);
void pull_get(Pull *p, Tile *out, const TileVar *v);
void pull_set(Pull *p, const TileVar *v, const Tile *x);
void pull_scale(Pull *p, Tile *x, const Val factor[2]); /* row by row */
TileVar pull_var(Pull *p, const Tile *init);          /* NULL: zeros */
/* Sum over a block's rows: lane (g, t) gets that of channel 8t + g. */
Val pull_rows_sum(Pull *p, const Val x[8]);
Val pull_lane_channel(Pull *p);                       /* 8t + g */
/* B fragments of a block's rows, contracted over rows, for the four tiles of a slab. */
void pull_turn(Pull *p, const Packed *x, Val b[4][2]);
/* Keys (0) and rows (1 + family) of a slab in shared memory: put by their warp, got by any as B
 * fragments, got back by their warp as they were. */
void pull_put_operand(Pull *p, int operand, const Packed *x);
void pull_get_operand(Pull *p, int operand, Val block, Val b[4][2]);
void pull_get_back(Pull *p, int operand, Packed *x);
/* acc += A B */
void pull_multiply(Pull *p, Tile *acc, const Val a[4], Val b[4][2]);
/* A block of dG in shared memory, as A fragments of it or of its transpose. */
void pull_put_block(Pull *p, int base, int family, Val pair, const Val a[4]);
void pull_get_block(Pull *p, int base, int family, Val pair, bool turned, Val a[4]);
/* Cotangents of the slab to the scratch: a row; dx, over sigma, of every family; dp, likewise. */
void pull_store_row(Pull *p, int64_t base, int h, Val slab, const Val x[8]);
void pull_store_dx(Pull *p, Val slab, Tile *dx);
void pull_store_dp(Pull *p, Val slab, Tile *dp);

/* grad_pull_unit.c */
void pull_copy_units(Pull *p);   /* start copying */
void pull_make_units(Pull *p);   /* once they have arrived */

/* grad_pull_copy.c */
/* Start copying what pull_left reads, in two groups: X, A and units; left rows. A third follows. */
void pull_copy_left(Pull *p);
ValueAt pull_left_at(Pull *p, int h, Val slab);       /* half h's row at this lane's columns of a slab */
/* Whether a family's left rows are copied: those of dX, or an input's where a lane's columns are 16 bytes. */
bool pull_is_copied(Pull *p, int f);

/* grad_pull_left.c */
void pull_left(Pull *p);
int pull_a_base(const Pull *p);                       /* A's copy */
Val pull_first_column(Pull *p, Val slab);             /* of this lane's 8 */
Val pull_zt_unit(Pull *p, Val row, Val unit);
/* In the stash of A fragments, or for half `step` of a copied row. */
Val pull_stash_unit(Pull *p, int operand, int step, Val slab);
void pull_get_left(Pull *p, int operand, int step, Val slab, Val a[4]); /* families: Zt */
Val pull_pair(Pull *p, Val row_block, Val block);     /* number of a pair of blocks */

/* grad_pull_state.c */
void pull_state_begin(Pull *p);
void pull_copy_state(Pull *p, Val slab);              /* one group of copies */
void pull_state(Pull *p, Tile *dw, Tile *dkt);        /* without dw_unit and dkt_unit */
/* This warp's part of the slab's dD over sigma: of channel pull_dd_channel(p, i) in lanes where
 * *here (i1), 0 in others. */
void pull_dd(Pull *p, Val dd[4], Val *here);
Val pull_dd_channel(Pull *p, int i);
Val pull_dd_part(Pull *p); /* of all channels alike: this lane's part of their sum */

/* grad_pull_key.c, grad_pull_scalar.c */
int pull_key_bytes(const Pull *p);                    /* of sums */
void pull_key_chunk(Pull *p);
void pull_key_dg(Pull *p, int family, Var (*acc)[2][4], Val unit[2]);
int pull_scalar_bytes(const Pull *p);
/* Scalar decay: what the slabs leave for its cotangent. A lane's columns of a block are 4t .. 4t+3; of
 * accumulators [n][2h + c] that is 4t + 2c + n. */
enum { PULL_RUN = 4 };
typedef struct Scalar {
    Val slab;
    Val carried[MAX_FAMILIES][2], tail[2];    /* Lam(l, start), Lam(end, u), times the products' units */
    Var score[MAX_FAMILIES][MAX_WARPS][2][4]; /* x . p, by distance of the blocks */
    Var start[MAX_FAMILIES][2], end[2], dd;   /* this lane's part of x . dW, p . dKt, without units; S . dS' */
} Scalar;
static inline Val pull_column(Pull *p, int i) {
    return cg_add(p->cg, cg_shl(p->cg, p->f.t, 2), cg_int(p->cg, i));
}
/* Shared sums: at sh_sum f32 [rows] p . dKt; [rows] what the end gives, or for log a [warps] what the start
 * gives the warp's rows; [warps] S . dS'; [warp][rows] columns, added up over the warp's rows. */
static inline int pull_end_base(const Pull *p) { return p->sh_sum + p->s->rows * 4; }
static inline int pull_dd_base(const Pull *p) { return pull_end_base(p) + p->s->rows * 4; }
static inline int pull_column_base(const Pull *p) { return pull_dd_base(p) + MAX_WARPS * 4; }
/* H of half h's row with the lane's columns of the block at distance d, of whose dG `raw` are the fragments;
 * 0 where it is not `there`. */
void pull_scores(Pull *p, const Scalar *c, int f, int d, int h, const Val raw[4], Val there,
                 Val H[PULL_RUN]);
void pull_put_columns(Pull *p, Val (*sum)[PULL_RUN]);  /* [distance], of this lane's rows */
void pull_store_decay(Pull *p, Val row, Val x);        /* its cotangent over sigma */
void pull_log_decays(Pull *p, Scalar *c);              /* grad_pull_log.c */
void pull_scalar_begin(Pull *p);                      /* before dG: decays */
void pull_scalar_chunk(Pull *p);
void pull_scalar_dg(Pull *p, int family, Var (*acc)[2][4], Val unit[2]);

#endif
