/* Between the phases of the grad kernel: what the outs read of the state, where gradients need it (an out
 * that is multiplied by a gate, or divided), made again from the chunk's record:
 *
 *     O_f = rows . (W_f S + scale M_f (keys . X))        [rows][vp], f32, to the scratch
 *
 * A warp makes 16 rows, 16 columns at a time, in tf32: it holds every f16 and, unlike that, their
 * products with keys and units. Few specs come here, so operands come straight from memory.
 *
 * A k-step's columns 2t and 2t+1 stand for the fragment's t and t+4: both operands agree, and a lane
 * loads pairs.
 */
#include "codegen/nvptx/gradient.h"

enum { STEP = 8, COLUMNS = 16 };

bool grad_read_plan(Grad *g, int *sh_bytes, const char **why) {
    (void)g;
    (void)why;
    *sh_bytes = 0;
    return true;
}

static Val record_at(Grad *g, int64_t base, Val byte) {
    Cg *cg = g->cg;
    return cg_gep8(cg, cg_gep8(cg, g->record, cg_int64(cg, base)), cg_zext64(cg, byte));
}

/* Pointer to an element of a record's f16 matrix. */
static Val element(Grad *g, int64_t base, int rows, int columns, Val row, Val column) {
    Cg *cg = g->cg;
    Val place = cg_shl(cg, nv_place(cg, rows, columns, row, cg_shr(cg, column, 3)), 4);
    Val in_unit = cg_shl(cg, cg_and(cg, column, cg_int(cg, 7)), 1);
    return record_at(g, base, cg_add(cg, place, in_unit));
}

static Val row_f32(Grad *g, int64_t base, Val row) {
    return cg_load(g->cg, g->cg->f32, record_at(g, base, cg_shl(g->cg, row, 2)), 4);
}

/* Lattice row g + 8h of this warp's. */
static Val warp_row(Grad *g, int h) {
    Cg *cg = g->cg;
    return cg_add(cg, cg_add(cg, cg_shl(cg, g->warp, 4), g->lane_g), cg_int(cg, 8 * h));
}

/* This lane's columns of k-step `step` (i32, in columns): 2t and 2t+1. */
static Val step_column(Grad *g, Val step) {
    return cg_add(g->cg, step, cg_shl(g->cg, g->lane_t, 1));
}

/* A fragment of the warp's rows; column c of it times keys[c], if they are there. */
static void load_rows(Grad *g, int64_t base, int columns, Val step, int64_t keys, Val a[4]) {
    Cg *cg = g->cg;
    Val column = step_column(g, step), key[2] = {NULL, NULL}, pair[2];
    if (keys >= 0)
        grad_load(cg, ELEM_f32, record_at(g, keys, cg_shl(cg, column, 2)), 2, key);
    for (int h = 0; h < 2; h++) {
        Val p = element(g, base, g->g->s.rows, columns, warp_row(g, h), column);
        grad_load(cg, ELEM_f16, p, 2, pair);
        for (int c = 0; c < 2; c++)
            a[h + 2 * c] = nv_tf32(cg, keys >= 0 ? cg_fmul(cg, pair[c], key[c]) : pair[c]);
    }
}

/* Where channel k of S stands: grad_state_channel. */
static Val state_channel(Cg *cg, Val k) {
    Val up = cg_shl(cg, cg_and(cg, k, cg_int(cg, 6)), 2);
    Val down = cg_and(cg, cg_shr(cg, k, 2), cg_int(cg, 6));
    return cg_or(cg, cg_and(cg, k, cg_int(cg, ~30)), cg_or(cg, up, down));
}

/* acc[n] += W_f S' for columns v .. v+15: S stands with k along its rows. */
static void read_state(Grad *g, int f, Val v, Var acc[2][4]) {
    Cg *cg = g->cg;
    const System *s = &g->g->s;
    Loop l = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->kp), STEP, true);
    Val a[4], b[2], c[4];
    load_rows(g, s->family[f].ws_w, s->kp, l.i, -1, a);
    for (int n = 0; n < 2; n++) {
        Val row = cg_add(cg, cg_add(cg, v, g->lane_g), cg_int(cg, 8 * n));
        Val channel = state_channel(cg, step_column(g, l.i));
        grad_load(cg, ELEM_f16, element(g, s->ws_s, s->vp, s->kp, row, channel), 2, b);
        for (int j = 0; j < 4; j++)
            c[j] = cg_get(cg, acc[n][j]);
        nv_mma_tf32(cg, c, a, (Val[]){nv_tf32(cg, b[0]), nv_tf32(cg, b[1])});
        for (int j = 0; j < 4; j++)
            cg_set(cg, acc[n][j], c[j]);
    }
    cg_end_for(cg, &l);
}

/* acc[n] += M_f (keys . X): X stands with k along its columns. */
static void mix_chunk(Grad *g, int f, Val v, Var acc[2][4]) {
    Cg *cg = g->cg;
    const System *s = &g->g->s;
    Loop l = cg_for(cg, cg_int(cg, 0), cg_int(cg, s->rows), STEP, true);
    Val a[4], b[2], c[4];
    int64_t factors = s->grows ? s->ws_columns : s->p_scaled && !s->erase ? s->ws_keys : -1;
    load_rows(g, s->family[f].ws_m, s->rows, l.i, factors, a);
    for (int n = 0; n < 2; n++) {
        Val column = cg_add(cg, cg_add(cg, v, g->lane_g), cg_int(cg, 8 * n));
        for (int j = 0; j < 2; j++) {
            Val row = cg_add(cg, step_column(g, l.i), cg_int(cg, j));
            grad_load(cg, ELEM_f16, element(g, s->ws_x, s->rows, s->vp, row, column), 1, &b[j]);
            b[j] = nv_tf32(cg, b[j]);
        }
        for (int j = 0; j < 4; j++)
            c[j] = cg_get(cg, acc[n][j]);
        nv_mma_tf32(cg, c, a, b);
        for (int j = 0; j < 4; j++)
            cg_set(cg, acc[n][j], c[j]);
    }
    cg_end_for(cg, &l);
}

static void clear(Cg *cg, Var acc[2][4]) {
    for (int i = 0; i < 8; i++) {
        acc[i / 4][i % 4] = cg_var(cg, cg->f32, NULL);
        cg_set(cg, acc[i / 4][i % 4], cg_float(cg, 0));
    }
}

/* Columns v .. v+15 of family f. */
static void read_columns(Grad *g, int f, Val v) {
    Cg *cg = g->cg;
    const System *s = &g->g->s;
    Var of_state[2][4], of_chunk[2][4];
    clear(cg, of_state);
    clear(cg, of_chunk);
    read_state(g, f, v, of_state);
    mix_chunk(g, f, v, of_chunk);
    Val scale = s->has_scale ? row_f32(g, s->ws_scale, cg_int(cg, 0)) : cg_float(cg, 1);
    for (int i = 0; i < 4; i++) {
        int n = i / 2, h = i % 2;
        Val column = cg_add(cg, step_column(g, v), cg_int(cg, 8 * n)), row = warp_row(g, h);
        Val unit_s[2], unit_x[2], out[2], factor = cg_float(cg, 1);
        grad_load(cg, ELEM_f32, record_at(g, s->ws_unit_s, cg_shl(cg, column, 2)), 2, unit_s);
        grad_load(cg, ELEM_f32, record_at(g, s->ws_unit_x, cg_shl(cg, column, 2)), 2, unit_x);
        if (s->family[f].scaled)
            factor = row_f32(g, s->family[f].ws_rows, row);
        for (int c = 0; c < 2; c++) {
            Val chunk = cg_fmul(cg, cg_get(cg, of_chunk[n][2 * h + c]), scale);
            out[c] = cg_fmul(cg, cg_get(cg, of_state[n][2 * h + c]), unit_s[c]);
            out[c] = cg_fmul(cg, factor, cg_fma(cg, chunk, unit_x[c], out[c]));
        }
        Val at = cg_add(cg, cg_mul(cg, row, cg_int(cg, s->vp)), column);
        Val p = cg_gep8(cg, g->scratch, cg_int64(cg, g->scratch_o[f]));
        grad_store(cg, ELEM_f32, cg_gep8(cg, p, cg_zext64(cg, cg_shl(cg, at, 2))), 2, out);
    }
}

void grad_read(Grad *g) {
    Cg *cg = g->cg;
    for (int f = 0; f < g->g->s.families; f++) {
        if (g->g->family[f].read < 0)
            continue;
        Loop l = cg_for(cg, cg_int(cg, 0), cg_int(cg, g->g->s.vp), COLUMNS, false);
        read_columns(g, f, l.i);
        cg_end_for(cg, &l);
    }
}
