/* The cotangent of a scalar decay's logarithm: for row m of the lattice
 *
 *     sum over rows l that see m, the chunk's end among them, of  start[l] + sum over u < m of H[l,u]
 *
 * Rows of blocks below m's all see m, so theirs are added up before anything else, and one running sum over
 * columns is for all of them and for the end. The warp's own block, where rows see part of the columns, takes
 * a running sum for each row. (With decays of its own every row has another weight for every m:
 * grad_pull_scalar.c.) */
#include "codegen/nvptx/grad_pull.h"

enum { RUN = PULL_RUN };

/* Sums over rows, this lane's so far: of H by distance, at 0 of what the own block's columns get; and of what
 * the start gives. */
typedef struct Sums {
    Val column[MAX_WARPS + 1][RUN], start;
} Sums;

/* x of the lane `step` before this one, whose number is `number`; 0 where there is none. */
static Val earlier(Pull *p, Val x, int step, Val number) {
    Cg *cg = p->cg;
    Val got = nv_shuffle_from(cg, x, cg_sub(cg, p->f.lane, cg_int(cg, step)));
    Val has = cg_cmp(cg, LLVMIntUGE, number, cg_int(cg, step));
    return cg_select(cg, has, got, cg_float(cg, 0));
}

/* Sum over the lanes before this one, of `count` whose numbers follow each other. */
static Val sum_before(Pull *p, Val x, Val number, int count) {
    for (int step = 1; step < count; step *= 2)
        x = cg_fadd(p->cg, x, earlier(p, x, step, number));
    return earlier(p, x, 1, number);
}

/* Half h's row in its own block: every column that it sees gets what stands before it. */
static void add_own(Pull *p, const Family *fam, int h, Val start, const Val H[RUN], Val column[RUN]) {
    Cg *cg = p->cg;
    Val row = cg_add(cg, cg_shl(cg, p->f.g, 1), cg_int(cg, h)), before[RUN + 1];
    before[0] = cg_float(cg, 0);
    for (int i = 0; i < RUN; i++)
        before[i + 1] = i ? cg_fadd(cg, before[i], H[i]) : H[i];
    Val base = cg_fadd(cg, start, sum_before(p, before[RUN], p->f.t, 4));
    for (int i = 0; i < RUN; i++) {
        LLVMIntPredicate order = fam->inclusive ? LLVMIntUGE : LLVMIntUGT;
        Val seen = cg_cmp(cg, order, row, pull_column(p, i));
        Val x = i ? cg_fadd(cg, base, before[i]) : base;
        column[i] = cg_fadd(cg, column[i], cg_select(cg, seen, x, cg_float(cg, 0)));
    }
}

static void add_family(Pull *p, const Scalar *c, int f, Sums *s) {
    Cg *cg = p->cg;
    Val start[2], H[RUN];
    for (int h = 0; h < 2; h++) {
        start[h] = cg_fmul(cg, cg_get(cg, c->start[f][h]), c->carried[f][h]);
        s->start = cg_fadd(cg, s->start, start[h]);
    }
    for (int d = p->s->warps - 1; d >= 0; d--) {
        Val there = cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d)), none = cg_int(cg, 0), raw[4];
        Val block = cg_select(cg, there, cg_sub(cg, p->f.warp, cg_int(cg, d)), none);
        Val pair = pull_pair(p, cg_select(cg, there, p->f.warp, none), block);
        pull_get_block(p, p->sh_dg, f, pair, false, raw);
        for (int h = 0; h < 2; h++) {
            pull_scores(p, c, f, d, h, raw, there, H);
            if (d == 0)
                add_own(p, &p->s->family[f], h, pull_quad_sum(p, start[h]), H, s->column[0]);
            for (int i = 0; i < RUN && d > 0; i++) {
                start[h] = cg_fadd(cg, start[h], H[i]);
                s->column[d][i] = cg_fadd(cg, s->column[d][i], H[i]);
            }
        }
    }
}

static void put_sums(Pull *p, const Scalar *c) {
    Cg *cg = p->cg;
    Sums s = {.start = cg_float(cg, 0)};
    for (int d = 0; d <= p->s->warps; d++)
        for (int i = 0; i < RUN; i++)
            s.column[d][i] = cg_float(cg, 0);
    for (int f = 0; f < p->s->families; f++)
        add_family(p, c, f, &s);
    pull_put_columns(p, s.column);
    for (int lane = 1; lane < 32; lane *= 2)
        s.start = cg_fadd(cg, s.start, nv_shuffle_xor(cg, s.start, lane));
    cg_store(cg, s.start, pull_f32(p, pull_end_base(p), p->f.warp), 4);
}

static Val where(Pull *p, Val cond, Val x) {
    return cg_select(p->cg, cond, x, cg_float(p->cg, 0));
}

/* Warp w's sum of column m. */
static Val column_of(Pull *p, int w, Val m) {
    return pull_load(p, pull_column_base(p), cg_add(p->cg, m, cg_int(p->cg, w * p->s->rows)));
}

/* Column m of block b, in rows of blocks behind this warp's and at the chunk's end. */
static Val later_column(Pull *p, int b, Val m) {
    Cg *cg = p->cg;
    Val x = pull_load(p, p->sh_sum, m);
    for (int w = b + 1; w < p->s->warps; w++) {
        Val later = cg_cmp(cg, LLVMIntUGT, cg_int(cg, w), p->f.warp);
        x = cg_fadd(cg, x, where(p, later, column_of(p, w, m)));
    }
    return x;
}

/* Row 16 warp + lane % 16. */
static void store(Pull *p) {
    Cg *cg = p->cg;
    int warps = p->s->warps;
    Val number = cg_and(cg, p->f.lane, cg_int(cg, BLOCK_ROWS - 1)), start = cg_float(cg, 0);
    Val below = cg_float(cg, 0), own = cg_float(cg, 0), diagonal = cg_float(cg, 0);
    for (int w = 0; w < warps; w++)
        start = cg_fadd(cg, start, pull_load(p, pull_dd_base(p), cg_int(cg, w)));
    start = cg_fmul(cg, start, factor_chunk_decay(&p->f));
    for (int b = 0; b < warps; b++) {
        Val m = cg_add(cg, number, cg_int(cg, BLOCK_ROWS * b)), x = later_column(p, b, m);
        Val rows = pull_load(p, pull_end_base(p), cg_int(cg, b)), block = cg_int(cg, b);
        Val mine = cg_cmp(cg, LLVMIntEQ, p->f.warp, block);
        below = cg_fadd(cg, below, where(p, cg_cmp(cg, LLVMIntUGT, p->f.warp, block), x));
        own = cg_select(cg, mine, x, own);
        diagonal = cg_select(cg, mine, column_of(p, b, m), diagonal);
        start = cg_fadd(cg, start, where(p, cg_cmp(cg, LLVMIntULT, p->f.warp, block), rows));
    }
    for (int lane = 1; lane < BLOCK_ROWS; lane *= 2)
        below = cg_fadd(cg, below, nv_shuffle_xor(cg, below, lane));
    Val sum = cg_fadd(cg, cg_fadd(cg, start, below), sum_before(p, own, number, BLOCK_ROWS));
    If one = cg_if(cg, cg_cmp(cg, LLVMIntULT, p->f.lane, cg_int(cg, BLOCK_ROWS)));
    Val row = cg_add(cg, cg_shl(cg, p->f.warp, 4), p->f.lane);
    pull_store_decay(p, row, cg_fadd(cg, sum, diagonal));
    cg_end_if(cg, &one);
}

void pull_log_decays(Pull *p, Scalar *c) {
    put_sums(p, c);
    nv_barrier(p->cg);
    store(p);
}
