/* Products of decays: scores, carry, tail, total. A row l on axis R stands at p(l) = l, on axis C
 * at p(l) = l * slots + place; it sees the updates u < p(l), decayed by a[u+1] .. a[p(l)-1].
 *
 * Nothing is ever divided. With decays per channel the lattice is cut into blocks of 16 updates:
 *
 *      u:  0      B     B+16  rows with p(l) in (B, B+16]:
 *        +-----+----+          left of B   (x_l . a[B..p(l)-1]) (y_u . a[u+1..B-1])'   a product
 *        |gemm | \  |          from B on   w = y_u; dot(x_l, w); w *= a[p]; next row   in order
 *        +-----+----+
 *
 * The right factor y_u . a[u+1..B-1] is kept transposed and multiplied by a block's total as the
 * walk goes on. With one decay a row, x y' is a plain product, scaled by a matrix of running
 * products. Every factor is a product of decays; with decays <= 1 nothing overflows, and underflow
 * to zero is right.
 */
#include "codegen/host/decay.h"

static const Inst *inst(const Host *h, int v) {
    return inst_at(h->k, v);
}

static int arg_or_none(const Inst *i, int n) {
    return i->nargs > n ? i->arg[n] : -1;
}

static int feature_of(Shape s) {
    s = shape_features(s);
    return s.rank ? s.axis[0] : -1;
}

/* p(l) */
Val decay_place_of(Host *h, const Tile *t, int place, Val l) {
    Cg *cg = h->cg;
    if (t->row != AXIS_C)
        return l;
    return cg_add(cg, cg_mul(cg, l, cg_int64(cg, h->slots)), cg_int64(cg, place));
}

At decay_at(const At *col, int row_axis, Val row) {
    At a = host_at_row(col->h, row_axis, row);
    a.col_axis = col->col_axis;
    a.col = col->col;
    a.mask = col->mask;
    return a;
}

/* running products over the chunk -------------------------------------------------------------- */

/* One column vector (or a scalar) of a running product over the lattice. */
Var decay_open(Host *h, int a) {
    bool vector = feature_of(inst(h, a)->shape) >= 0;
    return cg_var(h->cg, vector ? h->vec : h->cg->f32,
                  vector ? cg_splat(h->cg, cg_float(h->cg, 1), h->lanes) : cg_float(h->cg, 1));
}

void decay_step(const At *col, Var w, int a, Val u) {
    Host *h = col->h;
    At here = decay_at(col, AXIS_U, u);
    Val x = host_value(&here, a), y = cg_get(h->cg, w);
    if (LLVMTypeOf(y) != LLVMTypeOf(x))
        x = host_splat(h, x);
    cg_set(h->cg, w, cg_fmul(h->cg, y, x));
}

/* out[row] = x[row] * w */
static void store_scaled(const At *col, const Tile *out, int x, Val row, Var w) {
    Host *h = col->h;
    At here = decay_at(col, out->row, row);
    Val a = host_value(&here, x), b = cg_get(h->cg, w);
    if (LLVMTypeOf(a) != LLVMTypeOf(b)) {
        a = host_splat(h, a);
        b = host_splat(h, b);
    }
    host_store(&here, out, 0, cg_fmul(h->cg, a, b));
}

static void carry_columns(At *col, void *user) {
    Host *h = col->h;
    Cg *cg = h->cg;
    int v = *(int *)user;
    const Inst *i = inst(h, v);
    const Tile *out = &h->tile[v];
    int steps = out->row == AXIS_C ? h->slots : 1, before = out->row == AXIS_C ? i->place : 0;
    Var w = decay_open(h, i->arg[1]);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[out->row], 1, false);
    for (int s = 0; s <= steps; s++) {
        if (s == before)
            store_scaled(col, out, i->arg[0], l.i, w);
        if (s < steps)
            decay_step(col, w, i->arg[1],
                         cg_add(cg, cg_mul(cg, l.i, cg_int64(cg, steps)), cg_int64(cg, s)));
    }
    cg_end_for(cg, &l);
}

static void tail_columns(At *col, void *user) {
    Host *h = col->h;
    Cg *cg = h->cg;
    int v = *(int *)user;
    const Inst *i = inst(h, v);
    Var w = decay_open(h, i->arg[1]);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_U], 1, false);
    Val u = cg_sub(cg, cg_sub(cg, h->count[AXIS_U], cg_int64(cg, 1)), l.i);
    store_scaled(col, &h->tile[v], i->arg[0], u, w);
    decay_step(col, w, i->arg[1], u);
    cg_end_for(cg, &l);
}

static void total_columns(At *col, void *user) {
    Host *h = col->h;
    Cg *cg = h->cg;
    int v = *(int *)user;
    Var w = decay_open(h, inst(h, v)->arg[0]);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_U], 1, false);
    decay_step(col, w, inst(h, v)->arg[0], l.i);
    cg_end_for(cg, &l);
    At here = decay_at(col, AXIS_none, NULL);
    host_store(&here, &h->tile[v], 0, cg_get(cg, w));
}

void decay_run_columns(Host *h, int v, HostBody *body) {
    const Inst *i = inst(h, v);
    for (int j = 0; j < i->nargs; j++)
        if (i->arg[j] >= 0)
            host_need(h, i->arg[j]);
    At none = host_at_row(h, AXIS_none, NULL);
    if (h->tile[v].col >= 0)
        host_columns(&none, h->tile[v].col, false, body, &v);
    else
        body(&none, &v);
}

static void copy_value(Host *h, int v, int from) {
    host_need(h, from);
    host_fill_tile(h, &h->tile[v], from);
}

void host_carry(Host *h, int v) {
    if (arg_or_none(inst(h, v), 1) < 0)
        copy_value(h, v, inst(h, v)->arg[0]);
    else
        decay_run_columns(h, v, carry_columns);
}

void host_tail(Host *h, int v) {
    if (arg_or_none(inst(h, v), 1) < 0)
        copy_value(h, v, inst(h, v)->arg[0]);
    else
        decay_run_columns(h, v, tail_columns);
}

void host_total(Host *h, int v) {
    decay_run_columns(h, v, total_columns);
}

/* scores with a scalar decay or none ----------------------------------------------------------- */

/* Value v as a matrix on the given axes, copied out when it lacks one of them. */
Tile decay_matrix(Host *h, int v, int row, int col) {
    const Tile *t = &h->tile[v];
    if (t->there && t->row == row && t->col == col && !t->history)
        return *t;
    Tile m = {.there = true, .row = row, .col = col, .anchor = -1};
    m.ld = host_round(host_capacity(h, col), h->lanes) + h->lanes;
    m.offset = host_alloc(h, (host_round(host_capacity(h, row), BLOCK) + BLOCK) * m.ld);
    host_fill_tile(h, &m, v);
    return m;
}

/* L[p,u] = a[u+1] .. a[p-1] for u < p, else 0; one for all scores with these decays. Row 0 and all
 * above the diagonal stay zero. */
Tile decay_running_products(Host *h, int a) {
    Cg *cg = h->cg;
    for (int i = 0; i < h->products.count; i++)
        if (h->products.at[i].decays == a)
            return h->products.at[i].tile;
    Tile m = {.there = true, .row = AXIS_private, .col = AXIS_U, .anchor = -1};
    m.ld = host_round(host_capacity(h, AXIS_U), h->lanes) + h->lanes;
    int64_t rows = host_capacity(h, AXIS_U) + 1;
    m.offset = host_alloc(h, rows * m.ld);
    VEC_PUSH(cg->arena, &h->clear, ((Clear){m.offset, 4 * rows * m.ld}));
    Val one = cg_int64(cg, 1), base = host_at(h, m.offset);
    Loop p = cg_for(cg, one, cg_add(cg, h->count[AXIS_U], one), 1, false);
    Val u = cg_sub(cg, p.i, one);
    At row = host_at_row(h, AXIS_U, u);
    Val decay = host_splat(h, host_value(&row, a));
    Val from = host_element(h, base, u, 4 * m.ld), to = host_element(h, base, p.i, 4 * m.ld);
    Loop c = cg_for(cg, cg_int64(cg, 0), p.i, h->lanes, false);
    Val x = cg_load(cg, h->vec, host_element(h, from, c.i, 4), 4);
    cg_store(cg, cg_fmul(cg, x, decay), host_element(h, to, c.i, 4), 4);
    cg_end_for(cg, &c);
    cg_store(cg, cg_float(cg, 1), host_element(h, to, u, 4), 4);
    cg_end_for(cg, &p);
    VEC_PUSH(cg->arena, &h->products, ((Products){a, m}));
    return m;
}

/* Keeps u < p(l), times the running product. */
Val decay_scale_scores(At *here, Val acc, void *user) {
    const Scale *s = user;
    Host *h = here->h;
    Cg *cg = h->cg;
    Val p = decay_place_of(h, s->out, s->place, here->row), lane[64];
    for (int i = 0; i < h->lanes; i++)
        lane[i] = cg_int(cg, i);
    Val u = cg_add(cg, cg_splat(cg, cg_trunc32(cg, here->col), h->lanes),
                   LLVMConstVector(lane, (unsigned)h->lanes));
    Val seen = cg_cmp(cg, LLVMIntSLT, u, cg_splat(cg, cg_trunc32(cg, p), h->lanes));
    if (s->decays) {
        /* Rows past the chunk's end read the last row: their scores are not used. */
        At row = *here;
        row.row_axis = AXIS_private; /* a place, not a row of a lattice axis */
        row.row = host_min(h, p, h->count[AXIS_U]);
        acc = cg_fmul(cg, acc, host_load(&row, &s->products, 0));
    }
    return cg_select(cg, seen, acc, host_zero(h));
}

Val decay_round_up_lanes(Host *h, Val n) {
    Cg *cg = h->cg;
    return cg_and(cg, cg_add(cg, n, cg_int64(cg, h->lanes - 1)), cg_int64(cg, -h->lanes));
}

static void scores_plain(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst(h, v);
    const Tile *out = &h->tile[v];
    int a = arg_or_none(i, 2);
    int f = feature_of(shape_union(shape_features(inst(h, i->arg[0])->shape),
                                   shape_features(inst(h, i->arg[1])->shape)));
    Tile x = decay_matrix(h, i->arg[0], out->row, f), y = decay_matrix(h, i->arg[1], AXIS_U, f);
    Tile turned = {.there = true, .row = f, .col = AXIS_U};
    turned.ld = host_round(host_capacity(h, AXIS_U), h->lanes) + h->lanes;
    turned.offset = host_alloc(h, (host_round(host_capacity(h, f), h->lanes) + BLOCK) * turned.ld);
    host_transpose(h, &turned, &y, h->count[AXIS_U]);
    Scale s = {.out = out, .place = i->place, .decays = a >= 0};
    if (s.decays)
        s.products = decay_running_products(h, a);
    Term term = {.a = x, .b = turned, .axis = f};
    Gemm g = {.out = *out,
              .row_lo = cg_int64(cg, 0),
              .rows = h->count[out->row],
              .cols = decay_round_up_lanes(h, h->count[AXIS_U]),
              .term = &term,
              .terms = 1,
              .finish = decay_scale_scores,
              .user = &s};
    host_gemm(h, &g);
}

/* scores with a decay per channel -------------------------------------------------------------- */

/* A group of scores with the same right side, walked block by block. */
typedef struct Blocks {
    Host *h;
    int *member, members;
    int y, a, feature;
    Tile prefix; /* row i: a[B] .. a[B+i-1], i = 0..16 */
    Tile turned; /* [feature, U]: y_u . a[u+1..B-1], u < B */
    Tile scaled; /* rows of x times the prefix */
    Val B, end;  /* i64: the block's first update; where it ends */
} Blocks;

static void prefix_columns(At *col, void *user) {
    Blocks *b = user;
    Host *h = b->h;
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0);
    Var w = decay_open(h, b->a);
    At row = decay_at(col, AXIS_private, zero);
    host_store(&row, &b->prefix, 0, cg_get(cg, w));
    Loop i = cg_for(cg, zero, cg_sub(cg, b->end, b->B), 1, false);
    decay_step(col, w, b->a, cg_add(cg, b->B, i.i));
    row = decay_at(col, AXIS_private, i.i);
    host_store(&row, &b->prefix, 1, cg_get(cg, w));
    cg_end_for(cg, &i);
}

/* First row with p(l) >= p. */
static Val row_at(Host *h, const Tile *out, int place, Val p) {
    Cg *cg = h->cg;
    if (out->row != AXIS_C)
        return p;
    Val l = cg_add(cg, p, cg_int64(cg, h->slots - 1 - place));
    return LLVMBuildSDiv(cg->b, l, cg_int64(cg, h->slots), ""); /* not negative: p >= 1 */
}

typedef struct Rows {
    Blocks *b;
    int v;
    Val l;
} Rows;

static void scale_columns(At *col, void *user) {
    Rows *r = user;
    Host *h = r->b->h;
    Cg *cg = h->cg;
    const Tile *out = &h->tile[r->v];
    const Inst *i = inst(h, r->v);
    At row = decay_at(col, out->row, r->l);
    At place = decay_at(col, AXIS_private, cg_sub(cg, decay_place_of(h, out, i->place, r->l), r->b->B));
    Val x = cg_fmul(cg, host_vector(&row, i->arg[0]), host_load(&place, &r->b->prefix, 0));
    host_store(&row, &r->b->scaled, 0, x);
}

/* The part left of the block, columns 0 .. B-1, of one scores value. */
static void scores_left(Blocks *b, int v) {
    Host *h = b->h;
    Cg *cg = h->cg;
    const Tile *out = &h->tile[v];
    int place = inst(h, v)->place;
    Val lo = row_at(h, out, place, cg_add(cg, b->B, cg_int64(cg, 1)));
    Val hi = row_at(h, out, place, cg_add(cg, b->B, cg_int64(cg, BLOCK + 1)));
    hi = host_min(h, hi, h->count[out->row]);
    b->scaled.row = out->row;
    Loop l = cg_for(cg, lo, hi, 1, false);
    Rows r = {b, v, l.i};
    At none = host_at_row(h, AXIS_none, NULL);
    host_columns(&none, b->feature, false, scale_columns, &r);
    cg_end_for(cg, &l);
    Term term = {.a = b->scaled, .b = b->turned, .axis = b->feature};
    Gemm g = {.out = *out, .row_lo = lo, .rows = hi, .cols = b->B, .term = &term, .terms = 1};
    g.out.lower = false;
    host_gemm(h, &g);
}

/* dot(x_l, w) for the row at place p, into column u; `first`: nothing there yet. */
static void add_dot(Blocks *b, int v, Val p, Val u, At *col, Var *w, int vectors, bool first) {
    Host *h = b->h;
    Cg *cg = h->cg;
    const Tile *out = &h->tile[v];
    const Inst *i = inst(h, v);
    Val l = p;
    If stands = {0};
    bool gaps = out->row == AXIS_C && h->slots > 1;
    if (out->row == AXIS_C) {
        Val n = cg_sub(cg, p, cg_int64(cg, i->place)), slots = cg_int64(cg, h->slots);
        l = LLVMBuildSDiv(cg->b, n, slots, "");
        if (gaps) /* not every place has a row */
            stands = cg_if(cg, cg_and(cg, cg_cmp(cg, LLVMIntSGE, n, cg_int64(cg, 0)),
                                      cg_cmp(cg, LLVMIntEQ, cg_mul(cg, l, slots), n)));
    }
    Val acc = host_zero(h);
    for (int n = 0; n < vectors; n++) {
        At here = decay_at(&col[n], out->row, l);
        Val x = host_vector(&here, i->arg[0]), y = cg_get(cg, w[n]);
        if (here.mask)
            acc = cg_fadd(cg, acc, cg_select(cg, here.mask, cg_fmul(cg, x, y), host_zero(h)));
        else
            acc = cg_fma(cg, x, y, acc);
    }
    Val q = host_element(h, host_element(h, host_at(h, out->offset), l, 4 * out->ld), u, 4);
    Val sum = host_reduce(h, acc);
    if (!first)
        sum = cg_fadd(cg, sum, cg_load(cg, cg->f32, q, 4));
    cg_store(cg, sum, q, 4);
    if (gaps)
        cg_end_if(cg, &stands);
}

/* Columns B .. of the rows of this block, `vectors` vectors of channels from `base` on. */
static void scores_inside(Blocks *b, Val base, int vectors, int tail, bool first) {
    Host *h = b->h;
    Cg *cg = h->cg;
    At col[8];
    Var w[8];
    Val one = cg_int64(cg, 1), lane[64];
    for (int i = 0; i < h->lanes; i++)
        lane[i] = LLVMConstInt(cg->i1, i < tail, false);
    for (int n = 0; n < vectors; n++) {
        col[n] = host_at_row(h, AXIS_none, NULL);
        col[n].col_axis = b->feature;
        col[n].col = cg_add(cg, base, cg_int64(cg, n * h->lanes));
        if (tail && n == vectors - 1)
            col[n].mask = LLVMConstVector(lane, (unsigned)h->lanes);
    }
    Loop u = cg_for(cg, b->B, b->end, 1, false);
    for (int n = 0; n < vectors; n++) {
        At here = decay_at(&col[n], AXIS_U, u.i);
        w[n] = cg_var(cg, h->vec, host_vector(&here, b->y));
    }
    Loop p = cg_for(cg, cg_add(cg, u.i, one), cg_add(cg, b->end, one), 1, false);
    for (int m = 0; m < b->members; m++)
        add_dot(b, b->member[m], p.i, u.i, col, w, vectors, first);
    for (int n = 0; n < vectors; n++)
        decay_step(&col[n], w[n], b->a, p.i);
    cg_end_for(cg, &p);
    cg_end_for(cg, &u);
}

/* All channels, as many vectors at a time as registers hold beside the rows. */
static void scores_diagonal(Blocks *b) {
    Host *h = b->h;
    Cg *cg = h->cg;
    int width = h->lanes == 16 ? 8 : 4;
    int64_t size = axis_size(h, b->feature), step = (int64_t)width * h->lanes;
    int tail = (int)(size % h->lanes);
    int64_t whole = size / step * step, rest = size - whole;
    if (whole) {
        scores_inside(b, cg_int64(cg, 0), width, 0, true);
        Loop l = cg_for(cg, cg_int64(cg, step), cg_int64(cg, whole), step, false);
        scores_inside(b, l.i, width, 0, false);
        cg_end_for(cg, &l);
    }
    if (rest)
        scores_inside(b, cg_int64(cg, whole), (int)(host_round(rest, h->lanes) / h->lanes), tail,
                      whole == 0);
}

/* One vector of channels of the block just passed joins the transposed right factor. */
static void join_columns(At *col, void *user) {
    Blocks *b = user;
    Host *h = b->h;
    Cg *cg = h->cg;
    Val v[BLOCK];
    Var w = decay_open(h, b->a);
    for (int i = BLOCK - 1; i >= 0; i--) {
        Val u = cg_add(cg, b->B, cg_int64(cg, i));
        At here = decay_at(col, AXIS_U, u);
        v[i] = cg_fmul(cg, host_vector(&here, b->y), cg_get(cg, w));
        decay_step(col, w, b->a, u);
    }
    Val to = host_element(h, host_at(h, b->turned.offset), col->col, 4 * b->turned.ld);
    to = host_element(h, to, b->B, 4);
    for (int part = 0; part < BLOCK; part += h->lanes) {
        host_transpose_vectors(h, v + part);
        for (int i = 0; i < h->lanes; i++)
            cg_store(cg, v[part + i], cg_gep8(cg, to, cg_int64(cg, 4 * (b->turned.ld * i + part))),
                     4);
    }
}

static void join_block(Blocks *b) {
    Host *h = b->h;
    Cg *cg = h->cg;
    Loop k = cg_for(cg, cg_int64(cg, 0), cg_int64(cg, axis_size(h, b->feature)), 1, false);
    Val total = host_element(h, host_at(h, b->prefix.offset + 4 * b->prefix.ld * BLOCK), k.i, 4);
    total = host_splat(h, cg_load(cg, cg->f32, total, 4));
    Val row = host_element(h, host_at(h, b->turned.offset), k.i, 4 * b->turned.ld);
    Loop u = cg_for(cg, cg_int64(cg, 0), b->B, h->lanes, false);
    Val p = host_element(h, row, u.i, 4);
    cg_store(cg, cg_fmul(cg, cg_load(cg, h->vec, p, 4), total), p, 4);
    cg_end_for(cg, &u);
    cg_end_for(cg, &k);
    At none = host_at_row(h, AXIS_none, NULL);
    host_columns(&none, b->feature, false, join_columns, b);
}

static Tile plain_tile(Host *h, int row, int col, int64_t rows) {
    Tile t = {.there = true, .row = row, .col = col, .anchor = -1};
    t.ld = host_round(host_capacity(h, col), h->lanes) + h->lanes;
    t.offset = host_alloc(h, rows * t.ld);
    return t;
}

static void scores_blocks(Blocks *b) {
    Host *h = b->h;
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0), block = cg_int64(cg, BLOCK), N = h->count[AXIS_U];
    int64_t rows = 0;
    for (int m = 0; m < b->members; m++) {
        int64_t n = host_capacity(h, h->tile[b->member[m]].row);
        rows = n > rows ? n : rows;
    }
    b->prefix = plain_tile(h, AXIS_private, b->feature, BLOCK + 1);
    b->scaled = plain_tile(h, AXIS_none, b->feature, host_round(rows, BLOCK) + BLOCK);
    b->turned =
        plain_tile(h, b->feature, AXIS_U, host_round(axis_size(h, b->feature), h->lanes) + BLOCK);
    Loop l = cg_for(cg, zero, N, BLOCK, false);
    b->B = l.i;
    b->end = host_min(h, cg_add(cg, b->B, block), N);
    At none = host_at_row(h, AXIS_none, NULL);
    host_columns(&none, b->feature, false, prefix_columns, b);
    If left = cg_if(cg, cg_cmp(cg, LLVMIntSGT, b->B, zero));
    for (int m = 0; m < b->members; m++)
        scores_left(b, b->member[m]);
    cg_end_if(cg, &left);
    scores_diagonal(b);
    If more = cg_if(cg, cg_cmp(cg, LLVMIntSLT, cg_add(cg, b->B, block), N));
    join_block(b);
    cg_end_if(cg, &more);
    cg_end_for(cg, &l);
}

/* v, and all other scores of the same right side whose left side needs none of them. */
static void find_group(Host *h, int v, Blocks *b) {
    const Kernel *k = h->k;
    b->member = NEW_ARRAY(h->cg->arena, int, k->inst.count);
    for (int u = v; u < k->inst.count; u++) {
        const Inst *i = inst(h, u);
        if (i->op != OP_scores || h->tile[u].done || arg_or_none(i, 2) != b->a || i->arg[1] != b->y)
            continue;
        bool *needs = NEW_ARRAY(h->cg->arena, bool, k->inst.count), free = true;
        value_mark(k, i->arg[0], needs);
        for (int m = 0; m < b->members; m++)
            free &= !needs[b->member[m]];
        if (free)
            b->member[b->members++] = u;
    }
}

void host_scores(Host *h, int v) {
    const Inst *i = inst(h, v);
    int a = arg_or_none(i, 2);
    if (a < 0 || feature_of(inst(h, a)->shape) < 0) {
        for (int j = 0; j < i->nargs; j++)
            if (i->arg[j] >= 0)
                host_need(h, i->arg[j]);
        scores_plain(h, v);
        return;
    }
    Blocks b = {.h = h, .y = i->arg[1], .a = a, .feature = feature_of(inst(h, a)->shape)};
    find_group(h, v, &b);
    host_need(h, b.y);
    host_need(h, b.a);
    for (int m = 0; m < b.members; m++) {
        host_need(h, inst(h, b.member[m])->arg[0]);
        h->tile[b.member[m]].done = true;
    }
    scores_blocks(&b);
}

/* the triangular solve ------------------------------------------------------------------------- */

/* A = (I + T)^-1 by forward substitution: row i is e_i - sum_j T[i,j] A[j,:]. Several vectors of
 * columns at once hide the latency of the chain over j. */
void host_solve(Host *h, int v) {
    Cg *cg = h->cg;
    int a = inst(h, v)->arg[0];
    const Tile *out = &h->tile[v];
    host_need(h, a);
    Tile t = decay_matrix(h, a, AXIS_R, AXIS_U);
    int vectors = 4;
    while (vectors > 1 && host_round(host_capacity(h, AXIS_U), vectors * h->lanes) > out->ld)
        vectors /= 2;
    Val from = host_at(h, t.offset), to = host_at(h, out->offset), zero = cg_int64(cg, 0);
    Loop i = cg_for(cg, zero, h->count[AXIS_U], 1, false);
    Val row = host_element(h, to, i.i, 4 * out->ld), coef = host_element(h, from, i.i, 4 * t.ld);
    Loop c = cg_for(cg, zero, cg_add(cg, i.i, cg_int64(cg, 1)), vectors * h->lanes, false);
    Var acc[4];
    for (int n = 0; n < vectors; n++)
        acc[n] = cg_var(cg, h->vec, host_zero(h));
    Loop j = cg_for(cg, c.i, i.i, 1, false);
    Val x = cg_load(cg, cg->f32, host_element(h, coef, j.i, 4), 4);
    x = host_splat(h, LLVMBuildFNeg(cg->b, x, ""));
    Val p = host_element(h, host_element(h, to, j.i, 4 * out->ld), c.i, 4);
    for (int n = 0; n < vectors; n++) {
        Val y = cg_load(cg, h->vec, cg_gep8(cg, p, cg_int64(cg, 4 * h->lanes * n)), 4);
        cg_set(cg, acc[n], cg_fma(cg, x, y, cg_get(cg, acc[n])));
    }
    cg_end_for(cg, &j);
    Val q = host_element(h, row, c.i, 4);
    for (int n = 0; n < vectors; n++)
        cg_store(cg, cg_get(cg, acc[n]), cg_gep8(cg, q, cg_int64(cg, 4 * h->lanes * n)), 4);
    cg_end_for(cg, &c);
    cg_store(cg, cg_float(cg, 1), host_element(h, row, i.i, 4), 4);
    cg_end_for(cg, &i);
}
