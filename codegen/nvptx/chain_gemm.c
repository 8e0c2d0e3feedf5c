/* The chain kernel's matrix products, warp by warp.
 *
 *     (W_f S)'   = S' W_f'     A: state in registers    B: W_f rows (ldmatrix)
 *     (M_f X)'   = X' M_f'     A: X in registers        B: M_f rows
 *     (P' X)'    = X' P        A: X in registers        B: P columns (ldmatrix, transposed)
 *
 * The state and X have no bound, so each V column is divided by a power of two that puts its largest
 * magnitude near f16's, and the product multiplied back in f32. Elements down to 2^-28 of the largest
 * keep all of f16's bits, so how a token is rounded does not depend on the tokens after it.
 */
#include "codegen/nvptx/chain.h"

Val chain_stage_pointer(Chain *c, int64_t offset) {
    return cg_gep8(c->cg, nv_shared(c->cg, offset), c->stage);
}

static Val load_stage_f32(Chain *c, int64_t offset) {
    return cg_load(c->cg, c->cg->f32, chain_stage_pointer(c, offset), 4);
}

Val chain_record_scale(Chain *c) {
    return load_stage_f32(c, c->s->ws_scale);
}

/* x times one f32 a lattice row, at `offset` of the record. */
static void scale_by_rows(Chain *c, int64_t offset, Val *x) {
    Cg *cg = c->cg;
    for (int n = 0; n < c->s->rows / 8; n++) {
        Val p = cg_gep8(cg, chain_stage_pointer(c, offset + 32 * n), cg_shl(cg, c->t, 3));
        Val two = cg_load(cg, LLVMVectorType(cg->f32, 2), p, 8);
        for (int j = 0; j < 4; j++)
            x[4 * n + j] = cg_fmul(cg, x[4 * n + j], cg_extract(cg, two, j % 2));
    }
}

void chain_scale_rows(Chain *c, int family, Val *x) {
    if (c->s->family[family].scaled)
        scale_by_rows(c, c->s->family[family].ws_rows, x);
}

void chain_scale_keys(Chain *c, Val *x) {
    if (c->s->p_scaled && !c->s->erase)
        scale_by_rows(c, c->s->ws_keys, x);
    if (c->s->grows)
        scale_by_rows(c, c->s->ws_columns, x);
}

const Val *chain_x(Chain *c) {
    Val *x = NEW_ARRAY(c->cg->arena, Val, chain_fragment(c));
    memcpy(x, chain_get(c, c->s->X), (size_t)chain_fragment(c) * sizeof *x);
    chain_scale_keys(c, x);
    return x;
}

/* Address this lane gives to ldmatrix for 16-byte unit `unit` of row `row` in a workspace matrix. */
static Val unit_address(Chain *c, Matrix m, Val row, Val unit) {
    Cg *cg = c->cg;
    Val place = nv_place(cg, c->s->rows, m.columns, row, unit);
    return cg_gep8(cg, chain_stage_pointer(c, m.offset), cg_shl(cg, place, 4));
}

/* B fragments of columns n, n+1 (8 rows of the matrix each) at k-step `step`: b[0..1], b[2..3]. */
static void fragment_rows(Chain *c, Matrix m, int n, int step, Val b[4]) {
    Cg *cg = c->cg;
    Val row = cg_add(cg, cg_and(cg, c->lane, cg_int(cg, 7)),
                     cg_shl(cg, cg_shr(cg, c->lane, 4), 3));
    row = cg_add(cg, row, cg_int(cg, 8 * n));
    Val unit = cg_and(cg, cg_shr(cg, c->lane, 3), cg_int(cg, 1));
    unit = cg_add(cg, unit, cg_int(cg, 2 * step));
    nv_ldmatrix4(cg, unit_address(c, m, row, unit), false, b);
}

/* The same where the matrix has k along its rows: columns 8n.. and 8n+8.. of rows 16 step ... */
static void fragment_columns(Chain *c, Matrix m, int n, int step, Val b[4]) {
    Cg *cg = c->cg;
    Val row = cg_add(cg, cg_and(cg, c->lane, cg_int(cg, 15)), cg_int(cg, 16 * step));
    Val unit = cg_add(cg, cg_shr(cg, c->lane, 4), cg_int(cg, n));
    nv_ldmatrix4(cg, unit_address(c, m, row, unit), true, b);
}

void chain_multiply(Chain *c, Matrix m, int n, int step, const Val *operand, Val acc[8]) {
    Val b[4];
    (m.along_rows ? fragment_columns : fragment_rows)(c, m, n, step, b);
    nv_mma(c->cg, c->s->operand, acc, &operand[4 * step], b);
    nv_mma(c->cg, c->s->operand, acc + 4, &operand[4 * step], b + 2);
}

#define LARGEST_OPERAND 0x1p14
#define LEAST_COLUMN 0x1p-100 /* smaller columns are scaled as this one */

/* The scale of one V column from this lane's `count` elements x[0], x[stride], ... */
static Val column_scale(Chain *c, const Val *x, int count) {
    Cg *cg = c->cg;
    Val most = nv_magnitude(cg, x[0]);
    for (int i = 1; i < count; i++)
        most = nv_larger(cg, most, nv_magnitude(cg, x[i]));
    most = nv_larger(cg, most, nv_shuffle_xor(cg, most, 1));
    most = nv_larger(cg, most, nv_shuffle_xor(cg, most, 2));
    most = nv_larger(cg, most, cg_float(cg, LEAST_COLUMN));
    return cg_fmul(cg, nv_power_below(cg, most), cg_float(cg, 1 / LARGEST_OPERAND));
}

/* Elements of V column half h: x[4n + 2h + c]. */
static int gather_half(const Val *x, int count, int h, Val *out) {
    int n = 0;
    for (int i = 0; i < count; i += 4)
        for (int j = 0; j < 2; j++)
            out[n++] = x[i + 2 * h + j];
    return n;
}

void chain_operand(Chain *c, const Val *x, int count, Val *operand, Val scale[2]) {
    Cg *cg = c->cg;
    Val inverse[2], half[128];
    for (int h = 0; h < 2; h++) {
        int n = gather_half(x, count, h, half);
        scale[h] = column_scale(c, half, n);
        inverse[h] = nv_power_inverse(cg, scale[h]);
    }
    for (int i = 0; i < count; i += 2) {
        int h = i / 2 % 2;
        operand[i / 2] = nv_pack(cg, c->s->operand, cg_fmul(cg, x[i], inverse[h]),
                                 cg_fmul(cg, x[i + 1], inverse[h]));
    }
}

void chain_scale_fragment(Chain *c, Val *x, int count, const Val scale[2]) {
    for (int i = 0; i < count; i++)
        x[i] = cg_fmul(c->cg, x[i], scale[i / 2 % 2]);
}

void chain_read_state(Chain *c) {
    if (c->wgmma) {
        chain_wgmma_read_state(c);
        return;
    }
    Cg *cg = c->cg;
    const System *s = c->s;
    Val x[128], acc[MAX_FAMILIES][MAX_FRAGMENT];
    int rows = chain_fragment(c);
    chain_get_state(c, x);
    chain_operand(c, x, chain_state_elements(c), c->state_operand, c->state_scale);
    for (int f = 0; f < s->families; f++)
        for (int i = 0; i < rows; i++)
            acc[f][i] = cg_float(cg, 0);
    for (int step = 0; step < s->kp / 16; step++)
        for (int f = 0; f < s->families; f++)
            for (int n = 0; n < s->rows / 8; n += 2)
                chain_multiply(c, chain_w(c, f), n, step, c->state_operand, &acc[f][4 * n]);
    for (int f = 0; f < s->families; f++) {
        chain_scale_fragment(c, acc[f], rows, c->state_scale);
        chain_scale_rows(c, f, acc[f]);
        chain_set(c, s->family[f].read, acc[f]);
    }
}

/* X's operand registers and the factor that products with P and M still lack. */
static void prepare_x(Chain *c) {
    Cg *cg = c->cg;
    chain_operand(c, chain_x(c), chain_fragment(c), c->x_operand, c->x_scale);
    Val scale = c->s->has_scale ? chain_record_scale(c) : NULL;
    for (int h = 0; scale && h < 2; h++)
        c->x_scale[h] = cg_fmul(cg, c->x_scale[h], scale);
}

void chain_mix(Chain *c) {
    if (c->wgmma) {
        chain_wgmma_mix(c);
        return;
    }
    Cg *cg = c->cg;
    const System *s = c->s;
    prepare_x(c);
    for (int f = s->erase; f < s->families; f++) {
        Val acc[MAX_FRAGMENT];
        for (int i = 0; i < chain_fragment(c); i++)
            acc[i] = cg_float(cg, 0);
        for (int n = 0; n < s->rows / 8; n += 2) /* lower triangle: k-steps up to the rows' block */
            for (int step = 0; step <= n / 2; step++)
                chain_multiply(c, chain_m(c, f), n, step, c->x_operand, &acc[4 * n]);
        chain_scale_fragment(c, acc, chain_fragment(c), c->x_scale);
        chain_scale_rows(c, f, acc);
        chain_set(c, s->family[f].mixed, acc);
    }
}

/* Decay of this lane's state columns 8n + 2t, +1. */
void chain_decay(Chain *c, int n, Val d[2]) {
    Cg *cg = c->cg;
    const System *s = c->s;
    d[0] = d[1] = NULL;
    if (s->a < 0)
        return;
    if (!s->a_key) {
        d[0] = d[1] = load_stage_f32(c, s->ws_d);
        return;
    }
    Val p = cg_gep8(cg, chain_stage_pointer(c, s->ws_d + 32 * n), cg_shl(cg, c->t, 3));
    Val two = cg_load(cg, LLVMVectorType(cg->f32, 2), p, 8);
    d[0] = cg_extract(cg, two, 0);
    d[1] = cg_extract(cg, two, 1);
}

void chain_advance_state(Chain *c, int n, const Val acc[8]) {
    Cg *cg = c->cg;
    for (int i = 0; i < 8; i += 4) {
        Val d[2];
        chain_decay(c, n + i / 4, d);
        for (int j = 0; j < 4; j++) {
            Var v = c->state[n + i / 4][j];
            Val old = cg_get(cg, v);
            old = d[0] ? cg_fmul(cg, old, d[j % 2]) : old;
            cg_set(cg, v, cg_fadd(cg, old, acc[i + j]));
        }
    }
}

void chain_advance(Chain *c) {
    if (c->wgmma) {
        chain_wgmma_advance(c);
        return;
    }
    Cg *cg = c->cg;
    const System *s = c->s;
    for (int n = 0; n < s->kp / 8; n += 2) {
        Val acc[8];
        for (int i = 0; i < 8; i++)
            acc[i] = cg_float(cg, 0);
        for (int step = 0; step < s->rows / 16; step++)
            chain_multiply(c, chain_p(c), n, step, c->x_operand, acc);
        chain_scale_fragment(c, acc, 8, c->x_scale);
        chain_advance_state(c, n, acc);
    }
}
