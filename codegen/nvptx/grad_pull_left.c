/* The pull phase before the slabs: what has an axis V and no axis K.
 *
 *     Zt       A X, in units of X and of its own; to all warps, and as A operand of dKt
 *     left     rows: their largest, which makes sigma; then as A operands of dW and of
 *     dG       left Zt', block by block, which the lattice's files take over
 *
 * The order of V within a k-step is free as long as both operands agree: a lane's 8 consecutive
 * columns of a row are fragments as they lie. */
#include "codegen/nvptx/grad_pull.h"

/* Left rows, Zt, and rows of it for dKt are rounded with their largest element between 2^12 and
 * 2^13. */
#define ROW_TOP 0x1p12
/* sigma: the bound of dG over it is between 2^14 and 2^15. */
#define DG_TOP 0x1p14
/* Where rows and keys have factors and the state may grow, from token to token and back: rows and keys are
 * between these two, by how large their left rows and Zt's rows are. See level_left. */
#define FACTOR_TOP 0x1p10
#define FACTOR_SPAN 0x1p-24

static int slabs(const Pull *p) {
    return p->vq / SLAB;
}

/* Slabs that a loop takes at once: what all of them read is under way before the first one's stores. */
static int slabs_at_once(const Pull *p) {
    return slabs(p) % 2 ? 1 : 2;
}

/* This lane's 8 columns of slab `slab`. */
Val pull_first_column(Pull *p, Val slab) {
    return cg_add(p->cg, cg_shl(p->cg, slab, 5), cg_shl(p->cg, p->f.t, 3));
}

/* 8 units from column v on, as pairs. */
static void load_unit_pairs(Pull *p, int which, Val v, Val pair[4]) {
    Cg *cg = p->cg;
    Val at = cg_gep8(cg, nv_shared(cg, pull_unit_base(p, which)), cg_shl(cg, v, 1));
    factor_load_unit(cg, at, pair);
}

static void times_units(Pull *p, Packed *x, const Val unit[4]) {
    for (int i = 0; i < 8; i++)
        x->pair[i / 4][i % 4] =
            nv_mul_pair(p->cg, p->s->operand, x->pair[i / 4][i % 4], unit[i % 4]);
}

Val pull_zt_unit(Pull *p, Val row, Val unit) {
    return factor_unit(p->cg, p->sh_zt, p->vq / 8, row, unit);
}

/* A fragments of a lane's two rows, in the stash that dW and dKt read. */
Val pull_stash_unit(Pull *p, int operand, int step, Val slab) {
    Cg *cg = p->cg;
    int threads = 32 * p->s->warps;
    Val index = cg_add(cg, cg_mul(cg, slab, cg_int(cg, threads)), nv_tid(cg));
    index = cg_add(cg, index, cg_int(cg, (operand * 2 + step) * slabs(p) * threads));
    return cg_gep8(cg, nv_shared(cg, p->sh_left), cg_shl(cg, index, 4));
}

static void fragments(const Packed *x, Val a[2][4]) {
    for (int step = 0; step < 2; step++)
        for (int i = 0; i < 4; i++)
            a[step][i] = x->pair[i % 2][2 * step + i / 2];
}

static void put_left(Pull *p, int operand, Val slab, const Packed *x) {
    Val a[2][4];
    fragments(x, a);
    for (int step = 0; step < 2; step++)
        factor_store_unit(p->cg, pull_stash_unit(p, operand, step, slab), a[step]);
}

void pull_get_left(Pull *p, int operand, int step, Val slab, Val a[4]) {
    factor_load_unit(p->cg, pull_stash_unit(p, operand, step, slab), a);
}

/* Zt ------------------------------------------------------------------------------------------- */

int pull_a_base(const Pull *p) {
    return p->sh_zt + p->s->rows * p->s->vp * 2;
}

static Val placed(Pull *p, int base, int columns, Val row, Val unit) {
    Cg *cg = p->cg;
    Val place = nv_place(cg, p->s->rows, columns, row, unit);
    return cg_gep8(cg, nv_shared(cg, base), cg_shl(cg, place, 4));
}

/* acc[i] of columns 8i + 2t + c. A is lower triangular: blocks up to the warp's own. */
static void multiply_zt(Pull *p, Var (*acc)[4]) {
    Cg *cg = p->cg;
    int tiles = p->s->vp / 8;
    Val r = cg_and(cg, p->f.lane, cg_int(cg, 7)), matrix = cg_shr(cg, p->f.lane, 3);
    Val odd = cg_and(cg, matrix, cg_int(cg, 1)), high = cg_shr(cg, matrix, 1), a[4], b[4];
    Loop j = cg_for(cg, cg_int(cg, 0), cg_add(cg, p->f.warp, cg_int(cg, 1)), 1, false);
    Val row = cg_add(cg, cg_add(cg, cg_shl(cg, p->f.warp, 4), cg_shl(cg, r, 1)), odd);
    Val unit = cg_add(cg, cg_shl(cg, j.i, 1), high);
    nv_ldmatrix4(cg, placed(p, pull_a_base(p), p->s->rows, row, unit), false, a);
    Val x_row = cg_add(cg, cg_add(cg, cg_shl(cg, j.i, 4), cg_shl(cg, odd, 3)), r);
    for (int i = 0; i < tiles; i += 2) {
        unit = cg_add(cg, high, cg_int(cg, i));
        nv_ldmatrix4(cg, placed(p, p->sh_zt, p->s->vp, x_row, unit), true, b);
        for (int n = 0; n < 2; n++) {
            Val c[4];
            for (int e = 0; e < 4; e++)
                c[e] = cg_get(cg, acc[i + n][e]);
            nv_mma(cg, p->s->operand, c, a, b + 2 * n);
            for (int e = 0; e < 4; e++)
                cg_set(cg, acc[i + n][e], c[e]);
        }
    }
    cg_end_for(cg, &j);
}

/* Columns from vp on are zero. */
static void clear_end(Pull *p) {
    Cg *cg = p->cg;
    for (int unit = p->s->vp / 8; unit < p->vq / 8; unit += 2) {
        Val zero[4] = {cg_int(cg, 0), cg_int(cg, 0), cg_int(cg, 0), cg_int(cg, 0)};
        Val half = cg_add(cg, cg_and(cg, p->f.t, cg_int(cg, 1)), cg_int(cg, unit));
        Val row = cg_add(cg, p->f.row[0], cg_shr(cg, p->f.t, 1));
        factor_store_unit(cg, pull_zt_unit(p, row, half), zero);
    }
}

/* The part of its chunk's largest that a row is, a power of two. */
static Val part_of(Pull *p, Val most, Val power) {
    Cg *cg = p->cg;
    most = nv_larger(cg, most, cg_float(cg, 0x1p-100));
    Val part = cg_fmul(cg, nv_power_below(cg, most), nv_power_inverse(cg, power));
    return nv_larger(cg, part, cg_float(cg, FACTOR_SPAN));
}

/* Where the state may grow dG = left Zt' spans the square of what either does, far more than f16's range.
 * So: the rows of Zt alike in size, and their keys by so much larger or smaller; most[h]: this lane's rows'. */
static void level_keys(Pull *p, const Val most[2], Val power, Val factor[2]) {
    Cg *cg = p->cg;
    p->scale = cg_fmul(cg, p->scale, cg_float(cg, 1 / FACTOR_TOP));
    for (int h = 0; h < 2; h++) {
        Val part = part_of(p, pull_quad_most(p, most[h]), power);
        factor[h] = cg_fmul(cg, factor[h], nv_power_inverse(cg, part));
        part = cg_fmul(cg, part, cg_float(cg, FACTOR_TOP));
        p->f.key_shrink[h] = cg_fmul(cg, p->f.key_shrink[h], part);
    }
}

/* What puts the chunk's largest element of Zt, which is as large as X's units and keys' scales
 * make it, to ROW_TOP, for either row; `own`: this lane's. A block barrier. */
static void level_zt(Pull *p, const Val own[2], Val factor[2]) {
    Cg *cg = p->cg;
    Val most = nv_larger(cg, own[0], own[1]);
    int base = p->sh_most + MAX_WARPS * 4;
    for (int lane = 1; lane < 32; lane *= 2)
        most = nv_larger(cg, most, nv_shuffle_xor(cg, most, lane));
    cg_store(cg, most, pull_f32(p, base, p->f.warp), 4);
    nv_barrier(cg);
    for (int w = 0; w < p->s->warps; w++)
        most = nv_larger(cg, most, pull_load(p, base, cg_int(cg, w)));
    most = nv_larger(cg, most, cg_float(cg, 0x1p-80));
    Val power = nv_power_below(cg, most);
    factor[0] = factor[1] = cg_fmul(cg, nv_power_inverse(cg, power), cg_float(cg, ROW_TOP));
    p->scale = cg_fmul(cg, p->scale, cg_fmul(cg, power, cg_float(cg, 1 / ROW_TOP)));
    p->chunk_zt_most = p->s->grows ? cg_float(cg, 2 * ROW_TOP) : cg_fmul(cg, most, factor[0]);
    if (p->s->grows)
        level_keys(p, own, power, factor);
    for (int h = 0; h < 2; h++)
        p->zt_most[h] = cg_fmul(cg, p->zt_most[h], factor[h]);
}

/* The largest elements, and in a row the largest in units of X's times dS's. */
static void see_zt(Pull *p, Val x, Val unit, Val *row, Val *most) {
    Val size = nv_magnitude(p->cg, x);
    *most = nv_larger(p->cg, *most, size);
    *row = nv_larger(p->cg, *row, cg_fmul(p->cg, size, unit));
}

static void solve_zt(Pull *p) {
    Cg *cg = p->cg;
    int tiles = p->s->vp / 8;
    Var acc[32][4];
    for (int i = 0; i < tiles; i++)
        for (int e = 0; e < 4; e++)
            acc[i][e] = cg_var(cg, cg->f32, cg_float(cg, 0));
    multiply_zt(p, acc);
    Val zero = cg_float(cg, 0), most[2] = {zero, zero}, row[2] = {zero, zero}, factor[2], a_row[2];
    for (int i = 0; i < tiles; i++) {
        Val v = cg_add(cg, cg_shl(cg, p->f.t, 1), cg_int(cg, 8 * i));
        Val at = pull_f32(p, pull_unit_base(p, UNIT_xds), v);
        Val unit = cg_load(cg, LLVMVectorType(cg->f32, 2), at, 8);
        for (int e = 0; e < 4; e++)
            see_zt(p, cg_get(cg, acc[i][e]), cg_extract(cg, unit, e % 2), &row[e / 2],
                   &most[e / 2]);
    }
    for (int h = 0; h < 2; h++)
        p->zt_most[h] = pull_quad_most(p, row[h]);
    for (int h = 0; h < 2 && p->s->grows; h++) {
        a_row[h] = pull_record_f32(p, p->s->ws_a_rows, p->f.row[h]);
        most[h] = cg_fmul(cg, most[h], a_row[h]);
        p->zt_most[h] = cg_fmul(cg, p->zt_most[h], a_row[h]);
    }
    level_zt(p, most, factor);
    for (int h = 0; h < 2 && p->s->grows; h++)
        factor[h] = cg_fmul(cg, factor[h], a_row[h]);
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < tiles; i++) {
            Val x[2];
            for (int c = 0; c < 2; c++)
                x[c] = cg_fmul(cg, cg_get(cg, acc[i][2 * h + c]), factor[h]);
            Val at = cg_gep8(cg, pull_zt_unit(p, p->f.row[h], cg_int(cg, i)), cg_shl(cg, p->f.t, 2));
            cg_store(cg, nv_pack(cg, p->s->operand, x[0], x[1]), at, 4);
        }
}

/* Unit `unit` of a row of X, times its key's scale. */
static void x_unit(Pull *p, int h, Val unit, Val out[8]) {
    Cg *cg = p->cg;
    Val pair[4];
    factor_load_unit(cg, pull_zt_unit(p, p->f.row[h], unit), pair);
    for (int j = 0; j < 4; j++)
        nv_unpack(cg, p->s->operand, pair[j], out + 2 * j);
    for (int e = 0; e < 8 && p->key_scale[h]; e++)
        out[e] = cg_fmul(cg, out[e], p->key_scale[h]);
}

/* Nothing erased: Zt = X. */
static void copy_zt(Pull *p) {
    Cg *cg = p->cg;
    int units = p->s->vp / 8;
    Val x[8], unit[8], pair[4], own[2], factor[2];
    for (int h = 0; h < 2; h++) {
        Var row = cg_var(cg, cg->f32, cg_float(cg, 0)), most = cg_var(cg, cg->f32, cg_float(cg, 0));
        Loop u = cg_for(cg, p->f.t, cg_int(cg, units), 4, false);
        Val m[2] = {cg_get(cg, row), cg_get(cg, most)};
        x_unit(p, h, u.i, x);
        pull_load8(p, pull_unit_base(p, UNIT_xds), cg_shl(cg, u.i, 3), unit);
        for (int e = 0; e < 8; e++)
            see_zt(p, x[e], unit[e], &m[0], &m[1]);
        cg_set(cg, row, m[0]);
        cg_set(cg, most, m[1]);
        cg_end_for(cg, &u);
        p->zt_most[h] = pull_quad_most(p, cg_get(cg, row));
        own[h] = cg_get(cg, most);
    }
    level_zt(p, own, factor);
    for (int h = 0; h < 2; h++) {
        Loop u = cg_for(cg, p->f.t, cg_int(cg, units), 4, false);
        x_unit(p, h, u.i, x);
        for (int e = 0; e < 8; e++)
            x[e] = cg_fmul(cg, x[e], factor[h]);
        factor_pack(cg, p->s->operand, pair, x);
        factor_store_unit(cg, pull_zt_unit(p, p->f.row[h], u.i), pair);
        cg_end_for(cg, &u);
    }
}

/* What a row is multiplied by before it is rounded. */
static Val row_factor(Pull *p, Val most) {
    Cg *cg = p->cg;
    most = nv_larger(cg, most, cg_float(cg, 0x1p-100));
    return cg_fmul(cg, nv_power_inverse(cg, nv_power_below(cg, most)), cg_float(cg, ROW_TOP));
}

/* This warp's rows of Zt, in units of X's times dS's, row by row. */
static void stash_zt(Pull *p) {
    Cg *cg = p->cg;
    int together = slabs_at_once(p);
    Loop l = cg_for(cg, cg_int(cg, 0), cg_int(cg, slabs(p)), together, false);
    Val slab[2], unit[2][8], factor[2] = {row_factor(p, p->zt_most[0]), row_factor(p, p->zt_most[1])};
    Packed packed[2];
    for (int i = 0; i < together; i++) {
        slab[i] = cg_add(cg, l.i, cg_int(cg, i));
        pull_load8(p, pull_unit_base(p, UNIT_xds), pull_first_column(p, slab[i]), unit[i]);
        Val at = cg_add(cg, cg_shl(cg, slab[i], 2), p->f.t);
        for (int h = 0; h < 2; h++)
            factor_load_unit(cg, pull_zt_unit(p, p->f.row[h], at), packed[i].pair[h]);
    }
    for (int i = 0; i < together; i++) {
        Tile z;
        pull_unpack(p, &z, &packed[i]);
        for (int e = 0; e < 16; e++)
            z.x[e / 8][e % 8] = cg_fmul(cg, z.x[e / 8][e % 8], unit[i][e % 8]);
        pull_scale(p, &z, factor);
        pull_pack(p, &packed[i], &z);
        put_left(p, p->s->families, slab[i], &packed[i]);
    }
    cg_end_for(cg, &l);
}

/* left rows ------------------------------------------------------------------------------------ */

static void dx_row(Pull *p, int h, Val slab, Val out[8]) {
    Cg *cg = p->cg;
    Val pair[4], factor[8];
    factor_load_unit(cg, pull_stash_unit(p, 0, h, slab), pair);
    pull_load8(p, pull_unit_base(p, UNIT_dx), pull_first_column(p, slab), factor);
    for (int j = 0; j < 4; j++)
        nv_unpack(cg, p->s->operand, pair[j], out + 2 * j);
    for (int e = 0; e < 8; e++)
        out[e] = cg_fmul(cg, out[e], factor[e]);
}

/* i1: whether half h is a row of family f's; NULL: it is, or its left row is zero without more ado. */
static Val has_left_row(Pull *p, int f, int h) {
    Cg *cg = p->cg;
    if (pull_erase(p, f))
        return NULL;
    Val here = value_at_rest(p->grad->k, p->g->family[f].left) == 0 ? NULL : p->f.row_live[h];
    if (p->s->slots == 1)
        return here;
    Val its = cg_cmp(cg, LLVMIntEQ, p->f.row_slot[h], cg_int(cg, p->s->family[f].position));
    return here ? cg_and(cg, here, its) : its;
}

/* Left row of half h at this lane's columns of a slab; zeros where the family has no row. A copy is gone
 * once the slab's fragments are put in its place. */
static void left_row(Pull *p, int f, int h, Val slab, Val out[8]) {
    Cg *cg = p->cg;
    if (pull_erase(p, f)) {
        dx_row(p, h, slab, out);
        return;
    }
    int v = p->g->family[f].left;
    ValueAt at = pull_left_at(p, h, slab);
    Val x[8], here = has_left_row(p, f, h), zero = cg_float(cg, 0);
    if (pull_is_copied(p, f)) {
        Val copy = pull_stash_unit(p, f, h, slab), loaded;
        value_load_copy(&at, v, &copy, &loaded);
        value_unpack(&at, v, &loaded, x);
    } else {
        value_get_padded(&at, v, x);
    }
    for (int e = 0; e < 8; e++) {
        out[e] = x[value_count(&at, v) > 1 ? e : 0];
        out[e] = here ? cg_select(cg, here, out[e], zero) : out[e];
    }
}

static Elem left_elem(const Pull *p, int f) {
    const Kernel *k = p->grad->k;
    return k->in.at[inst_at(k, p->g->family[f].left)->index].elem;
}

/* Whether a family's left rows can be measured as they were copied, two of 2 bytes at once. */
static bool measured_in_pairs(Pull *p, int f) {
    bool plain = !pull_erase(p, f) && pull_is_copied(p, f) && p->vq == p->s->V;
    return plain && elem_size(left_elem(p, f)) == 2;
}

/* The larger magnitudes of both: without its sign such an element is larger if its bits are. */
static Val larger_pair(Cg *cg, Val most, Val pair) {
    Ty t = LLVMVectorType(cg->i16, 2);
    Val arg[2] = {LLVMBuildBitCast(cg->b, most, t, ""),
                  LLVMBuildBitCast(cg->b, cg_and(cg, pair, cg_int(cg, 0x7fff7fff)), t, "")};
    return LLVMBuildBitCast(cg->b, cg_intrinsic(cg, "llvm.umax", &t, 1, arg, 2), cg->i32, "");
}

/* `most` (f32; i32 pairs): also of this slab. */
static Val measure_slab(Pull *p, int f, int h, Val slab, Val most) {
    Cg *cg = p->cg;
    if (measured_in_pairs(p, f)) {
        Val pair[4];
        factor_load_unit(cg, pull_stash_unit(p, f, h, slab), pair);
        for (int i = 0; i < 4; i++)
            most = larger_pair(cg, most, pair[i]);
        return most;
    }
    Val x[8];
    left_row(p, f, h, slab, x);
    for (int e = 0; e < 8; e++)
        most = nv_larger(cg, most, nv_magnitude(cg, x[e]));
    return most;
}

static Val measured(Pull *p, int f, int h, Val most) {
    Cg *cg = p->cg;
    if (!measured_in_pairs(p, f))
        return most;
    Val two[2], here = has_left_row(p, f, h);
    nv_unpack(cg, left_elem(p, f), most, two);
    most = nv_larger(cg, two[0], two[1]);
    return here ? cg_select(cg, here, most, cg_float(cg, 0)) : most;
}

/* The largest element of every left row, times the row's scale. */
static void measure_left(Pull *p) {
    Cg *cg = p->cg;
    int families = p->s->families;
    Var most[MAX_FAMILIES][2];
    for (int i = 0; i < 2 * families; i++)
        most[i / 2][i % 2] = measured_in_pairs(p, i / 2) ? cg_var(cg, cg->i32, cg_int(cg, 0))
                                                         : cg_var(cg, cg->f32, cg_float(cg, 0));
    int together = slabs_at_once(p);
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, slabs(p)), together, false);
    for (int i = 0; i < 2 * families * together; i++) {
        int f = i / 2 % families, h = i % 2;
        Val its = cg_add(cg, slab.i, cg_int(cg, i / (2 * families)));
        cg_set(cg, most[f][h], measure_slab(p, f, h, its, cg_get(cg, most[f][h])));
    }
    cg_end_for(cg, &slab);
    for (int f = 0; f < families; f++)
        for (int h = 0; h < 2; h++) {
            Val m = pull_quad_most(p, measured(p, f, h, cg_get(cg, most[f][h])));
            p->row_most[f][h] = p->rescale[f][h] ? cg_fmul(cg, m, p->rescale[f][h]) : m;
        }
}

/* sigma ---------------------------------------------------------------------------------------- */

/* The largest left element in the chunk. */
static Val largest_left(Pull *p) {
    Cg *cg = p->cg;
    Val most = cg_float(cg, 0);
    for (int i = 0; i < 2 * p->s->families; i++)
        most = nv_larger(cg, most, p->row_most[i / 2][i % 2]);
    for (int lane = 4; lane < 32; lane *= 2)
        most = nv_larger(cg, most, nv_shuffle_xor(cg, most, lane));
    cg_store(cg, most, pull_f32(p, p->sh_most, p->f.warp), 4);
    nv_barrier(cg);
    for (int w = 0; w < p->s->warps; w++)
        most = nv_larger(cg, most, pull_load(p, p->sh_most, cg_int(cg, w)));
    return most;
}

/* Left rows alike in size, and rows by so much larger or smaller. Where nothing bounds the updates the state
 * grows with the tokens, and Zt, while the costate and dX grow the other way. What dG lacks then stands in
 * rows and keys: dx = dG p and dp = dG' x get it back with them. Gives the largest left element. */
static Val level_left(Pull *p, Val most) {
    Cg *cg = p->cg;
    Val power = nv_power_below(cg, nv_larger(cg, most, cg_float(cg, 0x1p-100)));
    Val top = cg_fmul(cg, power, cg_float(cg, 2 / FACTOR_TOP));
    for (int f = 0; f < p->s->families; f++)
        for (int h = 0; h < 2; h++) {
            if (!p->rescale[f][h]) {
                top = most;
                continue;
            }
            Val part = part_of(p, p->row_most[f][h], power);
            part = cg_fmul(cg, part, cg_float(cg, FACTOR_TOP));
            Val inverse = nv_power_inverse(cg, part);
            p->f.row_shrink[f][h] = cg_fmul(cg, p->f.row_shrink[f][h], part);
            p->rescale[f][h] = cg_fmul(cg, p->rescale[f][h], inverse);
            p->row_most[f][h] = cg_fmul(cg, p->row_most[f][h], inverse);
        }
    return top;
}

/* The other products count too, but 2^-30 as much: they are f32, and only must not overflow. */
static void choose_sigma(Pull *p) {
    Cg *cg = p->cg;
    Val most = largest_left(p);
    most = p->s->grows ? level_left(p, most) : most;
    Val V = cg_float(cg, p->s->V), little = cg_float(cg, 0x1p-30);
    Val zt = cg_fmul(cg, cg_fmul(cg, p->chunk_zt_most, p->scale), V);
    Val bound = cg_fmul(cg, most, cg_fmul(cg, zt, p->most[UNIT_x]));
    Val other = cg_fmul(cg, most, p->most[UNIT_s]);
    other = nv_larger(cg, other, cg_fmul(cg, zt, p->most[UNIT_xds]));
    other = nv_larger(cg, other, p->most[UNIT_sds]);
    bound = nv_larger(cg, bound, cg_fmul(cg, other, little));
    bound = nv_larger(cg, bound, cg_float(cg, 0x1p-90));
    p->sigma = cg_fmul(cg, nv_power_below(cg, bound), cg_float(cg, 1 / DG_TOP));
    p->inverse = nv_power_inverse(cg, p->sigma);
}

/* What accumulators lack, over sigma: a row's power of two over ROW_TOP, and units. */
static Val lacks(Pull *p, Val most, Val unit) {
    Cg *cg = p->cg;
    most = nv_larger(cg, most, cg_float(cg, 0x1p-100));
    Val row = cg_fmul(cg, nv_power_below(cg, most), cg_float(cg, 1 / ROW_TOP));
    return cg_fmul(cg, cg_fmul(cg, row, p->inverse), unit);
}

static void make_units_of_products(Pull *p) {
    Cg *cg = p->cg;
    for (int h = 0; h < 2; h++) {
        for (int f = 0; f < p->s->families; f++) {
            Val unit = lacks(p, p->row_most[f][h], p->most[UNIT_s]);
            p->dw_unit[f][h] = p->g->family[f].minus ? LLVMBuildFNeg(cg->b, unit, "") : unit;
        }
        p->dkt_unit[h] = lacks(p, p->zt_most[h], cg_fmul(cg, p->most[UNIT_xds], p->scale));
    }
    p->dd_unit = cg_fmul(cg, p->most[UNIT_sds], p->inverse);
}

/* dG ------------------------------------------------------------------------------------------- */

Val pull_pair(Pull *p, Val row_block, Val block) {
    Cg *cg = p->cg;
    Val next = cg_add(cg, row_block, cg_int(cg, p->s->a_key ? -1 : 1));
    return cg_add(cg, cg_shr(cg, cg_mul(cg, row_block, next), 1), block);
}

/* What a slab of a family's left rows and of its dG is made of. */
typedef struct LeftSlab {
    Tile left;
    Val unit_s[4], unit_x[4];
    Val zt[MAX_WARPS][2][4]; /* by distance of the block and parity of its rows */
} LeftSlab;

/* Zt's rows of the blocks up to the warp's own. factor_scores.c says why blocks that are not there are read. */
static void load_zt(Pull *p, Val slab, LeftSlab *l) {
    Cg *cg = p->cg;
    for (int d = 0; d < p->s->warps; d++) {
        Val there = cg_cmp(cg, LLVMIntUGE, p->f.warp, cg_int(cg, d));
        Val below = cg_select(cg, there, cg_int(cg, d), p->f.warp);
        Val byte = cg_mul(cg, below, cg_int(cg, -BLOCK_ROWS * p->vq * 2));
        for (int n = 0; n < 2; n++) {
            Val own = pull_zt_unit(p, p->f.row[n], cg_add(cg, cg_shl(cg, slab, 2), p->f.t));
            factor_load_unit(cg, cg_gep8(cg, own, byte), l->zt[d][n]);
        }
    }
}

static void load_left(Pull *p, int f, Val slab, LeftSlab *l) {
    for (int h = 0; h < 2; h++)
        left_row(p, f, h, slab, l->left.x[h]);
    load_unit_pairs(p, UNIT_s, pull_first_column(p, slab), l->unit_s);
    load_unit_pairs(p, UNIT_x, pull_first_column(p, slab), l->unit_x);
    load_zt(p, slab, l);
}

/* acc += dG */
static void multiply_dg(Pull *p, Val a[2][4], LeftSlab *l, Var (*acc)[2][4]) {
    int blocks = 2 * p->s->warps;
    for (int i = 0; i < 2 * blocks; i++) { /* step by step: neighbours do not wait for each other */
        int step = i / blocks, d = i % blocks / 2, n = i % 2;
        Val c[4];
        for (int e = 0; e < 4; e++)
            c[e] = cg_get(p->cg, acc[d][n][e]);
        nv_mma(p->cg, p->s->operand, c, a[step], l->zt[d][n] + 2 * step);
        for (int e = 0; e < 4; e++)
            cg_set(p->cg, acc[d][n][e], c[e]);
    }
}

/* A slab of family f's left rows to the stash, and times Zt. */
static void left_slab(Pull *p, int f, Val slab, LeftSlab *l, Var (*acc)[2][4]) {
    Cg *cg = p->cg;
    Val a[2][4], factor[2];
    Packed rounded, packed;
    for (int h = 0; h < 2; h++) {
        factor[h] = row_factor(p, p->row_most[f][h]);
        if (p->rescale[f][h])
            factor[h] = cg_fmul(cg, factor[h], p->rescale[f][h]);
    }
    pull_scale(p, &l->left, factor);
    pull_pack(p, &rounded, &l->left);
    packed = rounded;
    times_units(p, &packed, l->unit_s);
    put_left(p, f, slab, &packed);
    packed = rounded;
    times_units(p, &packed, l->unit_x);
    fragments(&packed, a);
    multiply_dg(p, a, l, acc);
}

static void make_dg(Pull *p, int f) {
    Cg *cg = p->cg;
    Var acc[MAX_WARPS][2][4];
    Val unit[2];
    LeftSlab l[2];
    int together = slabs_at_once(p);
    for (int i = 0; i < 8 * p->s->warps; i++)
        acc[i / 8][i / 4 % 2][i % 4] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, slabs(p)), together, false);
    for (int i = 0; i < together; i++)
        load_left(p, f, cg_add(cg, slab.i, cg_int(cg, i)), &l[i]);
    for (int i = 0; i < together; i++)
        left_slab(p, f, cg_add(cg, slab.i, cg_int(cg, i)), &l[i], acc);
    cg_end_for(cg, &slab);
    for (int h = 0; h < 2; h++) {
        unit[h] = lacks(p, p->row_most[f][h], cg_fmul(cg, p->most[UNIT_x], p->scale));
        unit[h] = p->g->family[f].minus ? LLVMBuildFNeg(cg->b, unit[h], "") : unit[h];
    }
    (p->s->a_key ? pull_key_dg : pull_scalar_dg)(p, f, acc, unit);
}

void pull_left(Pull *p) {
    Cg *cg = p->cg;
    const System *s = p->s;
    p->scale = cg_float(cg, 1);
    if (s->erase)
        p->scale = cg_load(cg, cg->f32, cg_gep8(cg, p->f.record, cg_int(cg, (int)s->ws_scale)), 4);
    nv_copy_wait(cg, 2);
    pull_make_units(p);
    nv_barrier(cg);
    (s->erase ? solve_zt : copy_zt)(p);
    clear_end(p);
    if (p->early)
        factor_copy_ahead(&p->f, cg_int(cg, 0)); /* in place of A at most, which level_zt is done with */
    nv_barrier(cg);
    stash_zt(p);
    nv_copy_wait(cg, p->early ? 2 : 1);
    measure_left(p);
    choose_sigma(p);
    make_units_of_products(p);
    for (int f = 0; f < s->families; f++)
        make_dg(p, f);
}
