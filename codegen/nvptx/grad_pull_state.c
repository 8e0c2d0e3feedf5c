/* The pull phase's products with the states, 32 channels at a time: dW_f = left_f S', dKt = Zt dS', and
 * the sum over V of S dS' that decays want.
 *
 * A slab of S or dS' lies in shared memory as [vq] rows of four 16-byte units, permuted so that the
 * eight rows of a matrix that ldmatrix reads, which are those of a lane's 8 consecutive columns of V,
 * meet no bank twice.
 */
#include "codegen/nvptx/grad_pull.h"

static Val state_unit(Pull *p, int which, Val v, Val unit) {
    Cg *cg = p->cg;
    Val turn = cg_and(cg, cg_shr(cg, v, 3), cg_int(cg, 3));
    Val at = cg_add(cg, cg_shl(cg, v, 2), cg_xor(cg, unit, turn));
    return cg_gep8(cg, nv_shared(cg, p->sh_state + which * p->vq * SLAB * 2), cg_shl(cg, at, 4));
}

/* Start copying a slab of both. Rows from vp on are zeros. */
void pull_copy_state(Pull *p, Val slab) {
    Cg *cg = p->cg;
    const System *s = p->s;
    int64_t base[2] = {s->ws_s, s->ws_ds};
    Loop u = cg_for(cg, nv_tid(cg), cg_int(cg, p->vq * 4), 32 * s->warps, false);
    Val v = cg_shr(cg, u.i, 2), unit = cg_and(cg, u.i, cg_int(cg, 3)), from = v, bytes = cg_int(cg, 16);
    if (p->vq > s->vp) {
        Val there = cg_cmp(cg, LLVMIntSLT, v, cg_int(cg, s->vp));
        from = cg_select(cg, there, v, cg_int(cg, 0));
        bytes = cg_select(cg, there, bytes, cg_int(cg, 0));
    }
    Val place = nv_place(cg, s->vp, s->kp, from, cg_add(cg, cg_shl(cg, slab, 2), unit));
    for (int i = 0; i < 2; i++) {
        Val at = cg_add(cg, cg_shl(cg, place, 4), cg_int(cg, (int)base[i]));
        nv_copy_async(cg, state_unit(p, i, v, unit), cg_gep8(cg, p->f.record, at), bytes);
    }
    cg_end_for(cg, &u);
    nv_copy_commit(cg);
}

/* B fragments of a k-step for the four units of the slab, which are the four tiles: see gradient.h. */
static void load_state(Pull *p, int which, Val slab, int step, Val b[4][2]) {
    Cg *cg = p->cg;
    Val r = cg_and(cg, p->f.lane, cg_int(cg, 7)), matrix = cg_shr(cg, p->f.lane, 3);
    Val v = cg_add(cg, cg_shl(cg, cg_shr(cg, r, 1), 3), cg_and(cg, r, cg_int(cg, 1)));
    v = cg_add(cg, v, cg_shl(cg, cg_and(cg, matrix, cg_int(cg, 1)), 1));
    v = cg_add(cg, cg_add(cg, v, cg_shl(cg, slab, 5)), cg_int(cg, 4 * step));
    for (int i = 0; i < 4; i += 2) {
        Val four[4], unit = cg_add(cg, cg_shr(cg, matrix, 1), cg_int(cg, i));
        nv_ldmatrix4(cg, state_unit(p, which, v, unit), true, four);
        memcpy(b[i], four, sizeof four);
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
            load_state(p, which, slab, step, b);
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

void pull_state(Pull *p, Tile *dw, Tile *dkt) {
    Cg *cg = p->cg;
    Products w;
    int families = p->s->families;
    for (int f = 0; f <= families; f++)
        for (int i = 0; i < 16; i++)
            w.acc[f][i / 4][i % 4] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, p->vq / SLAB), 1, false);
    multiply_slab(p, &w, slab.i);
    cg_end_for(cg, &slab);
    for (int f = 0; f <= families; f++) {
        bool wanted = f < families ? p->g->family[f].dw >= 0 : p->g->dkt >= 0;
        const Val *unit = f < families ? p->dw_unit[f] : p->dkt_unit;
        Tile *out = f < families ? &dw[f] : dkt;
        for (int h = 0; h < 2; h++)
            for (int e = 0; e < 8; e++) {
                Val x = cg_get(cg, w.acc[f][e / 2][2 * h + e % 2]);
                out->x[h][e] = wanted ? cg_fmul(cg, x, unit[h]) : cg_float(cg, 0);
            }
    }
}

/* Rows whose products are added up as f16 before they are as f32: a divisor of the lane's number. */
static int dd_rows(const Pull *p) {
    int rows = p->vq / (8 * p->s->warps), n = rows < 4 ? rows : 4;
    while (rows % n != 0)
        n--;
    return n;
}

/* sum[j] += S dS' times its unit, of row v. */
static void dd_row(Pull *p, Val v, Val sum[4]) {
    Cg *cg = p->cg;
    Val a[4], b[4], unit = pull_load(p, p->sh_unit + UNIT_sds * p->vq * 4, v);
    unit = nv_pack(cg, p->s->operand, unit, unit);
    factor_load_unit(cg, state_unit(p, 0, v, p->f.t), a);
    factor_load_unit(cg, state_unit(p, 1, v, p->f.t), b);
    for (int j = 0; j < 4; j++) {
        a[j] = nv_mul_pair(cg, p->s->operand, a[j], unit);
        sum[j] = sum[j] ? nv_fma_pair(cg, p->s->operand, a[j], b[j], sum[j])
                        : nv_mul_pair(cg, p->s->operand, a[j], b[j]);
    }
}

/* Lane (g, t): unit t of rows g + 8i; gets the sum of the unit's element g, over sigma. */
Val pull_dd(Pull *p, Val *channel) {
    Cg *cg = p->cg;
    Var sum[8];
    Val all[8];
    int rows = dd_rows(p), step = 8 * p->s->warps;
    for (int e = 0; e < 8; e++)
        sum[e] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Val first = cg_add(cg, cg_shl(cg, p->f.warp, 3), p->f.g);
    Loop v = cg_for(cg, first, cg_int(cg, p->vq), rows * step, false);
    Val part[4] = {NULL}, two[2];
    for (int i = 0; i < rows; i++)
        dd_row(p, cg_add(cg, v.i, cg_int(cg, i * step)), part);
    for (int j = 0; j < 4; j++) {
        nv_unpack(cg, p->s->operand, part[j], two);
        for (int c = 0; c < 2; c++)
            cg_set(cg, sum[2 * j + c], cg_fadd(cg, cg_get(cg, sum[2 * j + c]), two[c]));
    }
    cg_end_for(cg, &v);
    for (int e = 0; e < 8; e++)
        all[e] = cg_get(cg, sum[e]);
    Val pair = cg_shl(cg, cg_shr(cg, p->f.g, 1), 3), odd = cg_and(cg, p->f.g, cg_int(cg, 1));
    *channel = cg_add(cg, cg_add(cg, pair, odd), cg_shl(cg, p->f.t, 1));
    return cg_fmul(cg, pull_rows_sum(p, all), p->dd_unit);
}
