/* The pull phase's products with the states, 32 channels at a time: dW_f = left_f S', dKt = Zt
 * dS', and the sum over V of S dS' that decays want.
 *
 * A slab of S or dS' lies in shared memory as [vq] rows of four 16-byte units, permuted so that
 * the eight rows of a matrix that ldmatrix reads, which are those of a lane's 8 consecutive
 * columns of V, meet no bank twice. */
#include "codegen/nvptx/grad_pull.h"

static Val state_unit(Pull *p, int which, Val v, Val unit) {
    Cg *cg = p->cg;
    Val turn = cg_and(cg, cg_shr(cg, v, 3), cg_int(cg, 3));
    Val at = cg_add(cg, cg_shl(cg, v, 2), cg_xor(cg, unit, turn));
    return cg_gep8(cg, nv_shared(cg, p->sh_state + which * p->vq * SLAB * 2), cg_shl(cg, at, 4));
}

/* Start copying a slab of both. Rows from vp on are zeros. A pass of the block is a multiple of 8 rows, by which
 * units are permuted: passes are one place and a number apart. */
void pull_copy_state(Pull *p, Val slab) {
    Cg *cg = p->cg;
    const System *s = p->s;
    int rows = 8 * s->warps;
    int64_t base[2] = {s->ws_s, s->ws_ds}, row_bytes = 2 * nv_block_columns(s->kp);
    Val first = cg_shr(cg, nv_tid(cg), 2), unit = cg_and(cg, nv_tid(cg), cg_int(cg, 3));
    Val place = nv_place(cg, s->vp, s->kp, first, cg_add(cg, cg_shl(cg, slab, 2), unit));
    Val from = cg_gep8(cg, p->f.record, cg_zext64(cg, cg_shl(cg, place, 4)));
    for (int row = 0; row < p->vq; row += rows) {
        Val v = cg_add(cg, first, cg_int(cg, row)), bytes = cg_int(cg, 16);
        if (row + rows > s->vp)
            bytes = cg_select(cg, cg_cmp(cg, LLVMIntSLT, v, cg_int(cg, s->vp)), bytes, cg_int(cg, 0));
        for (int i = 0; i < 2; i++) {
            Val here = cg_gep8(cg, from, cg_int64(cg, base[i] + row * row_bytes));
            nv_copy_async(cg, state_unit(p, i, v, unit), here, bytes);
        }
    }
    nv_copy_commit(cg);
}

/* Rows of V of matrix m = 2 (unit % 2) + half: 8 (r / 2) + 4 step + 2 half + r % 2. */
void pull_state_begin(Pull *p) {
    Cg *cg = p->cg;
    Val r = cg_and(cg, p->f.lane, cg_int(cg, 7)), m = cg_shr(cg, p->f.lane, 3);
    Val turn = cg_shr(cg, r, 1), v = cg_add(cg, cg_shl(cg, turn, 3), cg_and(cg, r, cg_int(cg, 1)));
    v = cg_add(cg, v, cg_shl(cg, cg_and(cg, m, cg_int(cg, 1)), 1));
    for (int i = 0; i < 2; i++) {
        Val unit = cg_add(cg, cg_shr(cg, m, 1), cg_int(cg, 2 * i));
        p->state_at[i] = cg_shl(cg, cg_add(cg, cg_shl(cg, v, 2), cg_xor(cg, unit, turn)), 4);
    }
}

/* B fragments of k-step `step` (two a slab) for the four units of the channels, which are the four
 * tiles: see gradient.h. */
static void load_state(Pull *p, int which, Val slab, Val step, Val b[4][2]) {
    Cg *cg = p->cg;
    Val at = nv_shared(cg, p->sh_state + which * p->vq * SLAB * 2);
    at = cg_gep8(cg, at, cg_add(cg, cg_mul(cg, slab, cg_int(cg, SLAB * 64)), cg_shl(cg, step, 8)));
    for (int i = 0; i < 2; i++) {
        Val four[4];
        nv_ldmatrix4(cg, cg_gep8(cg, at, p->state_at[i]), true, four);
        memcpy(b[2 * i], four, sizeof four);
    }
}

typedef struct Products {
    Var acc[MAX_FAMILIES + 1][4][4]; /* the last: dKt */
} Products;

static void multiply_slab(Pull *p, Products *w, Val slab) {
    Cg *cg = p->cg;
    int families = p->s->families;
    for (int step = 0; step < 2; step++)
        for (int which = 0; which < 2; which++) {
            Val b[4][2], a[4], c[4];
            load_state(p, which, slab, cg_int(cg, step), b);
            for (int f = which ? families : 0; f < families + which; f++) {
                pull_get_left(p, f, step, slab, a);
                for (int i = 0; i < 4; i++) {
                    for (int e = 0; e < 4; e++)
                        c[e] = cg_get(cg, w->acc[f][i][e]);
                    nv_mma(cg, p->s->operand, c, a, b[i]);
                    for (int e = 0; e < 4; e++)
                        cg_set(cg, w->acc[f][i][e], c[e]);
                }
            }
        }
}

/* Slabs of V in a row, so that operands of the next one are on their way while this one's are multiplied: a
 * divisor of their number. Vector decay has no registers for that. */
static int slabs_together(const Pull *p) {
    int slabs = p->vq / SLAB, most = p->s->a_key ? 1 : 4, n = slabs < most ? slabs : most;
    while (slabs % n != 0)
        n--;
    return n;
}

void pull_state(Pull *p, Tile *dw, Tile *dkt) {
    Cg *cg = p->cg;
    Products w;
    int families = p->s->families;
    for (int f = 0; f <= families; f++)
        for (int i = 0; i < 16; i++)
            w.acc[f][i / 4][i % 4] = cg_var(cg, cg->f32, cg_float(cg, 0));
    int together = slabs_together(p);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, p->vq / SLAB), together, false);
    for (int i = 0; i < together; i++)
        multiply_slab(p, &w, cg_add(cg, slab.i, cg_int(cg, i)));
    cg_end_for(cg, &slab);
    for (int f = 0; f <= families; f++) {
        bool wanted = f < families ? p->g->family[f].dw >= 0 : p->g->dkt >= 0;
        Tile *out = f < families ? &dw[f] : dkt;
        for (int i = 0; i < 16; i++)
            out->x[i / 8][i % 8] = wanted ? cg_get(cg, w.acc[f][i % 8 / 2][i / 8 * 2 + i % 2])
                                          : cg_float(cg, 0);
    }
}

/* Fragments times their columns' units, of which a register has the pair [q]. */
static void unit_state(Pull *p, int which, Val v, Val x[4][2]) {
    Cg *cg = p->cg;
    Val at = cg_gep8(cg, nv_shared(cg, pull_unit_base(p, which)), cg_shl(cg, v, 1));
    Val unit = cg_load(cg, LLVMVectorType(cg->i32, 2), at, 8);
    for (int q = 0; q < 2; q++)
        for (int i = 0; i < 4; i++)
            x[i][q] = nv_mul_pair(cg, p->s->operand, x[i][q], cg_extract(cg, unit, q));
}

/* dD is the diagonal of S times dS', two tiles of S (units i, i + 1) as A operand with each of
 * these of dS. The warps share out the k-steps. Either operand takes about half of the units'
 * range. Units i and i + 2 have their diagonals in one place: with less than four accumulators they are
 * added up. */
static void dd_step(Pull *p, Val slab, Val step, int accs, Var (*acc)[4]) {
    Cg *cg = p->cg;
    Val s[4][2], ds[4][2];
    Val v = cg_add(cg, cg_shl(cg, p->f.t, 3), cg_add(cg, cg_shl(cg, slab, 5), cg_shl(cg, step, 2)));
    load_state(p, 0, slab, step, s);
    load_state(p, 1, slab, step, ds);
    unit_state(p, UNIT_sds, v, s);
    unit_state(p, UNIT_rest, v, ds);
    for (int i = 0; i < 4; i++) {
        Val a[4], c[4];
        for (int j = 0; j < 4; j++)
            a[j] = s[i / 2 * 2 + j % 2][j / 2];
        for (int e = 0; e < 4; e++)
            c[e] = cg_get(cg, acc[i % accs][e]);
        nv_mma(cg, p->s->operand, c, a, ds[i]);
        for (int e = 0; e < 4; e++)
            cg_set(cg, acc[i % accs][e], c[e]);
    }
}

/* This warp's steps; without a loop where all warps have as many and registers allow: see slabs_together. */
static void dd_steps(Pull *p, int accs, Var (*acc)[4]) {
    Cg *cg = p->cg;
    int steps = p->vq / 16, warps = p->s->warps;
    Val one = cg_int(cg, 1);
    for (int i = 0; i < 4 * accs; i++)
        acc[i / 4][i % 4] = cg_var(cg, cg->f32, cg_float(cg, 0));
    if (steps % warps || p->s->a_key) {
        Loop l = cg_for(cg, p->f.warp, cg_int(cg, steps), warps, false);
        dd_step(p, cg_shr(cg, l.i, 1), cg_and(cg, l.i, one), accs, acc);
        cg_end_for(cg, &l);
        return;
    }
    for (int i = 0; i < steps; i += warps) {
        Val slab = cg_add(cg, cg_shr(cg, p->f.warp, 1), cg_int(cg, i / 2));
        dd_step(p, slab, warps > 1 ? cg_and(cg, p->f.warp, one) : cg_int(cg, i % 2), accs, acc);
    }
}

/* Element (g, 2t + c) or (g + 8, 2t + c) of accumulator i, where g = 2t + c. */
static Val dd_diagonal(Pull *p, const Var *acc, int i, Val here) {
    Cg *cg = p->cg;
    int row = 2 * (i % 2);
    Val odd = cg_cmp(cg, LLVMIntNE, cg_and(cg, p->f.g, cg_int(cg, 1)), cg_int(cg, 0));
    Val x = cg_select(cg, odd, cg_get(cg, acc[row + 1]), cg_get(cg, acc[row]));
    return cg_select(cg, here, cg_fmul(cg, x, p->dd_unit), cg_float(cg, 0));
}

static Val dd_here(Pull *p) {
    return cg_cmp(p->cg, LLVMIntEQ, p->f.t, cg_shr(p->cg, p->f.g, 1));
}

void pull_dd(Pull *p, Val dd[4], Val *here) {
    Var acc[4][4];
    dd_steps(p, 4, acc);
    *here = dd_here(p);
    for (int i = 0; i < 4; i++)
        dd[i] = dd_diagonal(p, acc[i], i, *here);
}

Val pull_dd_part(Pull *p) {
    Var acc[2][4];
    dd_steps(p, 2, acc);
    Val here = dd_here(p);
    return cg_fadd(p->cg, dd_diagonal(p, acc[0], 0, here), dd_diagonal(p, acc[1], 1, here));
}

Val pull_dd_channel(Pull *p, int i) {
    Cg *cg = p->cg;
    Val pair = cg_shl(cg, cg_shr(cg, p->f.g, 1), 3), odd = cg_and(cg, p->f.g, cg_int(cg, 1));
    return cg_add(cg, cg_add(cg, pair, odd), cg_int(cg, 2 * i));
}
