/* The chain's staged values: those in memory with the V axis (inputs, what is made ahead). A chunk's
 * tokens, and those before it that prev looks at, are copied to shared memory while the chunk before is
 * worked on; from there they come as fragments of V columns and lattice rows.
 */
#include "codegen/nvptx/chain.h"

static int tile_units(const Chain *c, const Staged *in) {
    return c->v_tile * elem_size(in->elem) / 16;
}

int64_t chain_staged_bytes(const Chain *c, const Staged *in) {
    return (int64_t)(in->earlier + c->s->chunk) * c->v_tile * elem_size(in->elem);
}

/* Staged tiles are placed as workspace matrices are, 8 "elements" to a 16-byte unit. Token 0 is the
 * tile's first. */
static Val staged_place(Chain *c, const Staged *in, Val token, Val unit) {
    return nv_place(c->cg, in->earlier + c->s->chunk, 8 * tile_units(c, in), token, unit);
}

Val chain_tokens_left(Chain *c, Val start) {
    Cg *cg = c->cg;
    Val left = cg_sub(cg, c->seq.length, start), most = cg_int64(cg, c->s->chunk);
    return cg_trunc32(cg, cg_select(cg, cg_cmp(cg, LLVMIntSLT, left, most), left, most));
}

Val chain_keep(Chain *c, Val x) {
    return nv_anew(c->cg, x);
}

/* Where a staged value lies: its element (token `start`, V column 0) of this head, and the bytes from
 * token to token. 32-bit tokens times a 32-bit stride on a 64-bit base are one instruction. */
typedef struct Rows { Val base, stride; } Rows;

static Val made_rows(Chain *c, int v) {
    const Scan *scan = c->s->scan;
    return scan_rows(c->cg, &scan->value[scan->of[v]]);
}

static Rows staged_rows(Chain *c, const Staged *in, Val start) {
    Cg *cg = c->cg;
    const Inst *i = inst_at(c->k, in->value);
    bool input = i->op == OP_in;
    int64_t row_bytes = (int64_t)c->s->V * elem_size(in->elem), port_bytes = row_bytes;
    if (input)
        port_bytes = shape_elements(c->k, c->k->in.at[i->index].shape) * elem_size(in->elem);
    Val heads = input ? cg_trunc32(cg, cg_frame_field(cg, frame_in_heads(c->k, i->index))) : c->heads;
    Val head = cg_udiv(cg, cg_mul(cg, c->head, heads), c->heads);
    Val stride = chain_keep(c, cg_mul(cg, heads, cg_int(cg, port_bytes)));
    Val byte = cg_mul(cg, cg_add(cg, c->seq.begin, start), cg_zext64(cg, stride));
    byte = cg_add(cg, byte, cg_mul(cg, cg_zext64(cg, head), cg_int64(cg, port_bytes)));
    if (input && i->row > 0)
        byte = cg_add(cg, byte, cg_int64(cg, i->row * row_bytes));
    Val all = input ? nv_global(cg, frame_in_ptr(c->k, i->index)) : made_rows(c, in->value);
    return (Rows){cg_gep8(cg, all, byte), stride};
}

/* `token` (i32) counts from the rows' start; those before it are negative. */
static Val staged_row(Cg *cg, Rows rows, Val token) {
    Val far = cg_mul(cg, LLVMBuildSExt(cg->b, token, cg->i64, ""),
                     LLVMBuildSExt(cg->b, rows.stride, cg->i64, ""));
    return cg_gep8(cg, rows.base, far);
}

/* Which tokens (i32, counted from `start`) there are for the chunk that begins there: none when it begins
 * past the sequence's end, and up to `earlier` ones before it. */
typedef struct Window { Val first, end; } Window;

static Window window(Chain *c, int earlier, Val start) {
    Cg *cg = c->cg;
    Window w = {NULL, chain_tokens_left(c, start)};
    if (earlier == 0)
        return w;
    Val most = cg_int64(cg, earlier), begun = cg_cmp(cg, LLVMIntSLT, start, c->seq.length);
    Val before = cg_trunc32(cg, cg_select(cg, cg_cmp(cg, LLVMIntSLT, start, most), start, most));
    w.first = cg_sub(cg, cg_int(cg, 0), before);
    w.end = cg_select(cg, begun, w.end, w.first);
    return w;
}

static Val in_window(Cg *cg, Window w, Val token) {
    Val live = cg_cmp(cg, LLVMIntSLT, token, w.end);
    return w.first ? cg_and(cg, live, cg_cmp(cg, LLVMIntSGE, token, w.first)) : live;
}

/* 16 bytes: unit `index` (i32) of the tile, tokens one after another; zeros where there is no such
 * token (`left` are left) or column. Without branches, so that products under way are not disturbed. */
static void copy_unit(Chain *c, const Staged *in, Rows rows, Window tokens, Val stage, Val index) {
    Cg *cg = c->cg;
    int units = tile_units(c, in), all = (in->earlier + c->s->chunk) * units, bytes = elem_size(in->elem);
    Val place = cg_udiv(cg, index, cg_int(cg, units));
    Val unit = cg_urem(cg, index, cg_int(cg, units));
    Val token = in->earlier ? cg_sub(cg, place, cg_int(cg, in->earlier)) : place;
    Val live = in_window(cg, tokens, token);
    Val column = cg_mul(cg, unit, cg_int(cg, 16 / bytes));
    column = cg_add(cg, c->v_first, column);
    if (c->v_live[0]) {
        Val inside = cg_cmp(cg, LLVMIntSLT, column, cg_int(cg, c->s->V));
        live = cg_and(cg, live, inside);
        column = cg_select(cg, inside, column, cg_int(cg, 0));
    }
    Val src = staged_row(cg, rows, cg_select(cg, live, token, cg_int(cg, 0)));
    src = cg_gep8(cg, src, cg_zext64(cg, cg_mul(cg, column, cg_int(cg, bytes))));
    place = staged_place(c, in, place, unit);
    Val dst = cg_gep8(cg, nv_shared(cg, in->offset), cg_add(cg, stage, cg_shl(cg, place, 4)));
    Val copied = cg_select(cg, live, cg_int(cg, 16), cg_int(cg, 0));
    if (all % c->threads == 0)
        nv_copy_async(cg, dst, src, copied);
    else
        nv_copy_async_if(cg, cg_cmp(cg, LLVMIntSLT, index, cg_int(cg, all)), dst, src, copied);
}

/* A chunk that begins past the sequence's end becomes zeros, and nothing is read from there. */
static void copy_staged(Chain *c, const Staged *in, Val start, Val stage) {
    Cg *cg = c->cg;
    Val begun = cg_cmp(cg, LLVMIntSLT, start, c->seq.length);
    Rows rows = staged_rows(c, in, cg_select(cg, begun, start, cg_int64(cg, 0)));
    Window tokens = window(c, in->earlier, start);
    int all = (in->earlier + c->s->chunk) * tile_units(c, in);
    for (int first = 0; first < all; first += c->threads)
        copy_unit(c, in, rows, tokens, stage, cg_add(cg, c->tid, cg_int(cg, first)));
}

void chain_copy_inputs(Chain *c, Val start, Val stage) {
    for (int i = 0; i < c->nstaged; i++)
        if (c->staged[i].copied)
            copy_staged(c, &c->staged[i], start, stage);
}

/* Token of a lattice row; rows of no token take the chunk's last. */
Val chain_token_of_row(Chain *c, Val row) {
    Cg *cg = c->cg;
    const System *s = c->s;
    Val token = s->slots > 1 ? cg_udiv(cg, row, cg_int(cg, s->slots)) : row;
    if (s->chunk * s->slots == s->rows)
        return token;
    Val last = cg_int(cg, s->chunk - 1);
    return cg_select(cg, cg_cmp(cg, LLVMIntSLT, token, last), token, last);
}

/* Of the token that lattice row `row` wants. */
static Val staged_unit(Chain *c, const Staged *in, Val row, Val unit) {
    Cg *cg = c->cg;
    Val token = cg_add(cg, chain_token_of_row(c, row), cg_int(cg, in->earlier - c->earlier));
    Val place = staged_place(c, in, token, unit);
    return cg_gep8(cg, nv_shared(cg, in->offset), cg_add(cg, c->stage, cg_shl(cg, place, 4)));
}

/* Two-byte elements: 16 rows x 16 columns by one transposing ldmatrix. */
static void load_pairs(Chain *c, const Staged *in, Val *x) {
    Cg *cg = c->cg;
    Val matrix = cg_shr(cg, c->lane, 3);
    Val unit = cg_add(cg, cg_shl(cg, c->warp, 1), cg_and(cg, matrix, cg_int(cg, 1)));
    for (int n = 0; n < c->s->rows / 8; n += 2) {
        Val row = cg_add(cg, cg_shl(cg, cg_shr(cg, matrix, 1), 3), cg_and(cg, c->lane, cg_int(cg, 7)));
        row = cg_add(cg, row, cg_int(cg, 8 * n));
        Val quad[4];
        nv_ldmatrix4(cg, staged_unit(c, in, row, unit), true, quad);
        for (int j = 0; j < 4; j++)
            nv_unpack(cg, in->elem, quad[j], &x[4 * n + 2 * j]);
    }
}

static void load_floats(Chain *c, const Staged *in, Val *x) {
    Cg *cg = c->cg;
    for (int i = 0; i < chain_fragment(c); i++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
        Val column = cg_sub(cg, c->v[i / 2 % 2], c->v_first);
        Val p = staged_unit(c, in, row, cg_shr(cg, column, 2));
        p = cg_gep8(cg, p, cg_shl(cg, cg_and(cg, column, cg_int(cg, 3)), 2));
        x[i] = cg_load(cg, cg->f32, p, 4);
    }
}

/* Rows that no 16-byte copy can take: element by element from global memory. */
static void load_global(Chain *c, const Staged *in, Val *x) {
    Cg *cg = c->cg;
    int bytes = elem_size(in->elem);
    Window tokens = window(c, c->earlier, c->start);
    Rows rows = staged_rows(c, in, c->start);
    for (int i = 0; i < chain_fragment(c); i++) {
        Val row = cg_add(cg, cg_shl(cg, c->t, 1), cg_int(cg, 8 * (i / 4) + i % 2));
        Val token = cg_sub(cg, chain_token_of_row(c, row), cg_int(cg, c->earlier)), v = c->v[i / 2 % 2];
        Val live = in_window(cg, tokens, token);
        if (c->v_live[0]) {
            live = cg_and(cg, live, c->v_live[i / 2 % 2]);
            v = cg_select(cg, live, v, cg_int(cg, 0));
        }
        Val p = staged_row(cg, rows, cg_select(cg, live, token, cg_int(cg, 0)));
        p = cg_gep8(cg, p, cg_zext64(cg, cg_mul(cg, v, cg_int(cg, bytes))));
        Val loaded = cg_to_f32(cg, cg_load_invariant(cg, cg_elem_type(cg, in->elem), p, bytes));
        x[i] = cg_select(cg, live, loaded, cg_float(cg, 0));
    }
}

void chain_load_staged(Chain *c, int v, Val *x) {
    for (int i = 0; i < c->nstaged; i++) {
        const Staged *in = &c->staged[i];
        if (in->value != v)
            continue;
        (!in->copied ? load_global : elem_size(in->elem) == 2 ? load_pairs : load_floats)(c, in, x);
        return;
    }
    BUG("value %%%d is not staged", v);
}
