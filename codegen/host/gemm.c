/* Contractions over one axis, out[i,j] = sum_k a[i,k] b[k,j].
 *
 * The micro-kernel keeps mr rows x nv vectors of `out` in registers and walks k: one broadcast of
 * a per row, nv vectors of b. Panels of nv vectors are the outer loop, so a panel of b stays in the
 * first-level cache while all rows pass over it. Nothing is packed: b lies with j contiguous, a may
 * lie either way, and leading dimensions are odd numbers of cache lines.
 *
 *              b  k x (nv vectors)          triangular factors shorten the k range of every block,
 *            +-----+                        and blocks of `out` above the diagonal are skipped
 *     a mr x | acc |
 *            +-----+  -> finish(acc): elementwise operations on the way out
 */
#include "codegen/host/host.h"

/* transposition -------------------------------------------------------------------------------- */

/* log2(lanes) perfect shuffles: each moves the top bit of the lane to the row and back. */
void host_transpose_vectors(Host *h, Val *v) {
    Cg *cg = h->cg;
    int n = h->lanes, half = n / 2;
    Val low[64], high[64], next[64];
    for (int i = 0; i < n; i++) {
        int from = i / 2 + (i % 2 ? n : 0);
        low[i] = cg_int(cg, from);
        high[i] = cg_int(cg, from + half);
    }
    Val mask_low = LLVMConstVector(low, (unsigned)n);
    Val mask_high = LLVMConstVector(high, (unsigned)n);
    for (int round = 1; round < n; round *= 2) {
        for (int i = 0; i < half; i++) {
            next[2 * i] = LLVMBuildShuffleVector(cg->b, v[i], v[i + half], mask_low, "");
            next[2 * i + 1] = LLVMBuildShuffleVector(cg->b, v[i], v[i + half], mask_high, "");
        }
        for (int i = 0; i < n; i++)
            v[i] = next[i];
    }
}

void host_transpose(Host *h, const Tile *out, const Tile *in, Val rows) {
    Cg *cg = h->cg;
    Val from = host_at(h, in->offset), to = host_at(h, out->offset), block[64];
    Val cols = cg_int64(cg, host_round(host_capacity(h, in->col), h->lanes));
    Loop r = cg_for(cg, cg_int64(cg, 0), rows, h->lanes, false);
    Loop c = cg_for(cg, cg_int64(cg, 0), cols, h->lanes, false);
    Val p = host_element(h, host_element(h, from, r.i, 4 * in->ld), c.i, 4);
    Val q = host_element(h, host_element(h, to, c.i, 4 * out->ld), r.i, 4);
    for (int i = 0; i < h->lanes; i++)
        block[i] = cg_load(cg, h->vec, cg_gep8(cg, p, cg_int64(cg, 4 * in->ld * i)), 4);
    host_transpose_vectors(h, block);
    for (int i = 0; i < h->lanes; i++)
        cg_store(cg, block[i], cg_gep8(cg, q, cg_int64(cg, 4 * out->ld * i)), 4);
    cg_end_for(cg, &c);
    cg_end_for(cg, &r);
}

/* the micro-kernel ----------------------------------------------------------------------------- */

typedef struct Micro {
    Host *h;
    const Gemm *g;
    int rows, vectors;
    Val i, j; /* i64: the block's first row and column */
    Var acc[64];
} Micro;

/* Strides of the left operand from row to row of `out` and from k to k, in bytes. */
static void left_strides(const Gemm *g, const Term *t, int64_t *si, int64_t *sk) {
    *si = t->a.row == g->out.row && g->out.row >= 0 ? 4 * t->a.ld : t->a.col == g->out.row ? 4 : 0;
    *sk = t->a.row == t->axis ? 4 * t->a.ld : 4;
}

/* The k that matter for this block. */
static void depth(Micro *m, const Term *t, Val *lo, Val *hi) {
    Host *h = m->h;
    Cg *cg = h->cg;
    *lo = cg_int64(cg, 0);
    *hi = h->count[t->axis];
    if (t->a.lower && t->a.col == t->axis) { /* a[i,k]: k < mul * i + add, up to the last row */
        Val last = cg_add(cg, m->i, cg_int64(cg, m->rows - 1));
        Val end = cg_add(cg, cg_mul(cg, last, cg_int64(cg, t->a.mul)), cg_int64(cg, t->a.add));
        *hi = host_min(h, *hi, end);
    }
    if (t->a.lower && t->a.row == t->axis && t->a.mul == 1) /* a[k,i]: i < k + add */
        *lo = host_max(h, *lo, cg_add(cg, m->i, cg_int64(cg, 1 - t->a.add)));
    if (t->b.lower && t->b.row == t->axis && t->b.mul == 1) /* b[k,j]: j < k + add */
        *lo = host_max(h, *lo, cg_add(cg, m->j, cg_int64(cg, 1 - t->b.add)));
}

static void accumulate(Micro *m, const Term *t) {
    Host *h = m->h;
    Cg *cg = h->cg;
    int64_t si, sk;
    left_strides(m->g, t, &si, &sk);
    Val lo, hi;
    depth(m, t, &lo, &hi);
    Val left = host_at(h, t->a.offset), right = host_at(h, t->b.offset);
    if (si)
        left = host_element(h, left, m->i, si);
    right = host_element(h, right, m->j, 4);
    Loop k = cg_for(cg, lo, hi, 1, false);
    Val pa = host_element(h, left, k.i, sk), pb = host_element(h, right, k.i, 4 * t->b.ld);
    Val b[8];
    for (int v = 0; v < m->vectors; v++)
        b[v] = cg_load(cg, h->vec, cg_gep8(cg, pb, cg_int64(cg, 4 * h->lanes * v)), 4);
    for (int r = 0; r < m->rows; r++) {
        Val a = cg_load(cg, cg->f32, cg_gep8(cg, pa, cg_int64(cg, si * r)), 4);
        if (t->minus)
            a = LLVMBuildFNeg(cg->b, a, "");
        a = cg_splat(cg, a, h->lanes);
        for (int v = 0; v < m->vectors; v++) {
            Var acc = m->acc[r * m->vectors + v];
            cg_set(cg, acc, cg_fma(cg, a, b[v], cg_get(cg, acc)));
        }
    }
    cg_end_for(cg, &k);
}

static void finish(Micro *m) {
    Host *h = m->h;
    Cg *cg = h->cg;
    const Gemm *g = m->g;
    for (int r = 0; r < m->rows; r++) {
        At row = host_at_row(h, g->out.row, cg_add(cg, m->i, cg_int64(cg, r)));
        for (int v = 0; v < m->vectors; v++) {
            Val col = cg_add(cg, m->j, cg_int64(cg, h->lanes * v));
            At at = host_at_col(&row, g->out.col, col, NULL);
            Val x = cg_get(cg, m->acc[r * m->vectors + v]);
            host_store(&at, &g->out, 0, g->finish ? g->finish(&at, x, g->user) : x);
        }
    }
}

static void panel(Host *h, const Gemm *g, Val j, int vectors) {
    Cg *cg = h->cg;
    Micro m = {.h = h, .g = g, .rows = g->out.row < 0 ? 1 : h->mr, .vectors = vectors, .j = j};
    CHECK(m.rows * vectors <= 64 && vectors <= 8);
    Loop l = cg_for(cg, g->row_lo, g->rows, m.rows, false);
    m.i = l.i;
    If below = {0};
    if (g->out.lower) { /* the block's last row reaches its first column */
        Val last = cg_add(cg, m.i, cg_int64(cg, m.rows - 1));
        Val end = cg_add(cg, cg_mul(cg, last, cg_int64(cg, g->out.mul)), cg_int64(cg, g->out.add));
        below = cg_if(cg, cg_cmp(cg, LLVMIntSLT, j, end));
    }
    for (int n = 0; n < m.rows * vectors; n++)
        m.acc[n] = cg_var(cg, h->vec, host_zero(h));
    for (int n = 0; n < g->terms; n++)
        accumulate(&m, &g->term[n]);
    finish(&m);
    if (g->out.lower)
        cg_end_if(cg, &below);
    cg_end_for(cg, &l);
}

void host_gemm(Host *h, const Gemm *g) {
    Cg *cg = h->cg;
    int64_t width = (int64_t)h->lanes * h->nv;
    Val rest = cg_urem(cg, g->cols, cg_int64(cg, width)), whole = cg_sub(cg, g->cols, rest);
    if (!LLVMIsAConstantInt(whole) || LLVMConstIntGetSExtValue(whole) > 0) {
        Loop l = cg_for(cg, cg_int64(cg, 0), whole, width, false);
        panel(h, g, l.i, h->nv);
        cg_end_for(cg, &l);
    }
    if (!LLVMIsAConstantInt(rest) || LLVMConstIntGetSExtValue(rest) > 0) {
        Loop l = cg_for(cg, whole, g->cols, h->lanes, false);
        panel(h, g, l.i, 1);
        cg_end_for(cg, &l);
    }
}

/* contractions of the kernel ------------------------------------------------------------------- */

static bool tile_has(const Tile *t, int axis) {
    return axis >= 0 && (t->row == axis || t->col == axis);
}

static Term make_term(Host *h, const Tile *out, int v, bool minus) {
    const Inst *i = inst_at(h->k, v);
    Term t = {.axis = i->axis, .minus = minus};
    bool swap = tile_has(&h->tile[i->arg[0]], out->col);
    t.a = h->tile[i->arg[swap]];
    t.b = h->tile[i->arg[!swap]];
    t.a.offset += t.a.history ? 4 * t.a.ld : 0;
    t.b.offset += t.b.history ? 4 * t.b.ld : 0;
    if (t.b.row == i->axis)
        return t;
    Tile turned = {.there = true, .row = t.b.col, .col = t.b.row};
    turned.ld = host_round(host_capacity(h, turned.col), h->lanes) + h->lanes;
    int64_t rows = host_round(host_capacity(h, turned.row), h->lanes) + BLOCK;
    turned.offset = host_alloc(h, rows * turned.ld);
    host_transpose(h, &turned, &t.b, h->count[t.b.row]);
    t.b = turned;
    return t;
}

/* Any contraction, element by element: operands that share an axis besides the summed one, or a
 * result without columns. */
static void contract_elements(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst_at(h->k, v);
    const Tile *out = &h->tile[v];
    Val zero = cg_int64(cg, 0), one = cg_int64(cg, 1);
    Loop r = cg_for(cg, zero, out->row < 0 ? one : h->count[out->row], 1, false);
    Loop c = cg_for(cg, zero, out->col < 0 ? one : h->count[out->col], 1, false);
    Var sum = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop k = cg_for(cg, zero, h->count[i->axis], 1, false);
    Val x[2];
    for (int n = 0; n < 2; n++) {
        Tile t = h->tile[i->arg[n]];
        Val p = host_at(h, t.offset + (t.history ? 4 * t.ld : 0));
        const int axis[2] = {t.row, t.col};
        for (int d = 0; d < 2; d++) {
            if (axis[d] < 0)
                continue;
            Val index = axis[d] == i->axis ? k.i : axis[d] == out->row ? r.i : c.i;
            p = host_element(h, p, index, d ? 4 : 4 * t.ld);
        }
        x[n] = cg_load(cg, cg->f32, p, 4);
    }
    cg_set(cg, sum, cg_fma(cg, x[0], x[1], cg_get(cg, sum)));
    cg_end_for(cg, &k);
    Val p = host_at(h, out->offset + (out->history ? 4 * out->ld : 0));
    if (out->row >= 0)
        p = host_element(h, p, r.i, 4 * out->ld);
    if (out->col >= 0)
        p = host_element(h, p, c.i, 4);
    cg_store(cg, cg_get(cg, sum), p, 4);
    cg_end_for(cg, &c);
    cg_end_for(cg, &r);
}

/* Which contractions v is made of, with the signs they have in their sum. */
typedef struct Parts {
    int count, value[64];
    bool minus[64];
} Parts;

static void find_parts(const Host *h, int root, int v, bool minus, Parts *p) {
    const Inst *i = inst_at(h->k, v);
    if (i->op == OP_contract && (v == root || h->tile[v].anchor == root)) {
        CHECK(p->count < 64);
        p->value[p->count] = v;
        p->minus[p->count++] = minus;
        return;
    }
    if (op_info[i->op].class != CLASS_PURE || (v != root && h->tile[v].there))
        return;
    bool sum = i->op == OP_add || i->op == OP_sub || i->op == OP_neg;
    for (int j = 0; j < i->nargs; j++) {
        bool turn = i->op == OP_neg || (i->op == OP_sub && j == 1);
        find_parts(h, root, i->arg[j], sum ? minus != turn : false, p);
    }
}

typedef struct Finish {
    int root;
    const Parts *parts;
} Finish;

/* All parts are summed in the accumulator already: it stands for the first, the others are zeros
 * that vanish in the sum. */
static Val finish_value(At *at, Val acc, void *user) {
    const Finish *f = user;
    Cg *cg = at->h->cg;
    if (inst_at(at->h->k, f->root)->op == OP_contract)
        return acc;
    const Parts *p = f->parts;
    at->memo[p->value[0]] = p->minus[0] ? LLVMBuildFNeg(cg->b, acc, "") : acc;
    for (int n = 1; n < p->count; n++)
        at->memo[p->value[n]] = cg_splat(cg, cg_float(cg, p->minus[n] ? 0.0 : -0.0), at->h->lanes);
    const Inst *i = inst_at(at->h->k, f->root);
    Val a = host_vector(at, i->arg[0]), b = i->nargs > 1 ? host_vector(at, i->arg[1]) : NULL;
    return cg_pointwise(cg, i->op, a, b);
}

void host_contract(Host *h, int v) {
    Cg *cg = h->cg;
    const Tile *out = &h->tile[v];
    Parts parts = {0};
    find_parts(h, v, v, false, &parts);
    for (int j = 0; j < inst_at(h->k, v)->nargs; j++)
        host_need(h, inst_at(h->k, v)->arg[j]);
    if (parts.count == 1 && !host_is_product(h, parts.value[0])) {
        contract_elements(h, v);
        return;
    }
    Gemm g = {.out = *out, .row_lo = cg_int64(cg, 0), .terms = parts.count};
    g.term = NEW_ARRAY(cg->arena, Term, parts.count);
    for (int n = 0; n < parts.count; n++)
        g.term[n] = make_term(h, out, parts.value[n], parts.minus[n]);
    g.rows = out->row < 0 ? cg_int64(cg, 1) : h->count[out->row];
    if (out->col > AXIS_U)
        g.cols = cg_int64(cg, host_round(axis_size(h, out->col), h->lanes));
    else
        g.cols = cg_and(cg, cg_add(cg, h->count[out->col], cg_int64(cg, h->lanes - 1)),
                        cg_int64(cg, -h->lanes));
    Finish f = {v, &parts};
    g.finish = finish_value;
    g.user = &f;
    host_gemm(h, &g);
}
