/* Cotangents of products of decays. With Lam(l,u) = a[u+1] .. a[p(l)-1], row by row:
 *
 *     scores_x   dx[l] += G[l,u] Lam(l,u) y[u]         u from p(l)-1 down, Lam as a running product
 *     scores_y   dy[u] += G[l,u] Lam(l,u) x[l]         likewise
 *     scores_a   da[m] += x[l] after[m] before[m]      after[m] = a[m+1] .. a[p(l)-1]
 *                before[m+1] = before[m] a[m] + G[l,m] y[m]
 *     carry_a    da[m] = first[m] behind[m]            first[m] = a[0] .. a[m-1]
 *                behind[m-1] = behind[m] a[m] + sum of w[l] with p(l) = m
 *     tail_a     da[m] = last[m] before[m]             last[m] = a[m+1] .. , before[m+1] = before[m] a[m] + w[m]
 *     total_a    da[m] = first[m] last[m] w
 *
 * and with `log` da[m] a[m]: nothing is divided, nothing cancels. With one decay a row, or none, G Lam is
 * a matrix, and scores_x, scores_y are plain products with it. */
#include "codegen/host/decay.h"

static const Inst *inst(const Host *h, int v) {
    return inst_at(h->k, v);
}

static int decays_of(const Inst *i) {
    return i->nargs > 2 ? i->arg[2] : -1;
}

static bool has_feature(const Host *h, int v) {
    return v >= 0 && shape_features(inst(h, v)->shape).rank > 0;
}

/* A value of a tile's columns: a vector where it has columns. */
static Ty lane_type(const At *col) {
    return col->col_axis >= 0 ? col->h->vec : col->h->cg->f32;
}

static Val spread(const At *col, Val x) {
    return col->col_axis >= 0 ? host_splat(col->h, x) : x;
}

static Val value(const At *col, int axis, Val row, int v) {
    At here = decay_at(col, axis, row);
    return spread(col, host_value(&here, v));
}

static Val number(const At *col, double x) {
    return spread(col, cg_float(col->h->cg, x));
}

static void put(const At *col, const Tile *t, Val row, Val x) {
    At here = decay_at(col, t->row, row);
    host_store(&here, t, 0, x);
}

static Val get(const At *col, const Tile *t, Val row) {
    At here = decay_at(col, t->row, row);
    return spread(col, host_load(&here, t, 0));
}

/* G[l,u] as a scalar. */
static Val element(Host *h, const Tile *g, Val l, Val u) {
    Val row = host_element(h, host_at(h, g->offset), l, 4 * g->ld);
    return cg_load(h->cg, h->cg->f32, host_element(h, row, u, 4), 4);
}

/* n-1-i */
static Val from_end(Host *h, Val n, Val i) {
    return cg_sub(h->cg, cg_sub(h->cg, n, cg_int64(h->cg, 1)), i);
}

static void zero_rows(const At *col, const Tile *t, Val rows) {
    Cg *cg = col->h->cg;
    Loop l = cg_for(cg, cg_int64(cg, 0), rows, 1, false);
    put(col, t, l.i, number(col, 0));
    cg_end_for(cg, &l);
}

/* scores_x, scores_y --------------------------------------------------------------------------- */

static void back_columns(At *col, void *user) {
    Host *h = col->h;
    Cg *cg = h->cg;
    int v = *(int *)user, a = decays_of(inst(h, v));
    const Inst *i = inst(h, v);
    const Tile *out = &h->tile[v], *g = &h->tile[i->arg[0]];
    bool to_x = i->op == OP_scores_x;
    if (!to_x)
        zero_rows(col, out, h->count[AXIS_U]);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[g->row], 1, false);
    Val p = decay_place_of(h, g, i->place, l.i);
    Val x = to_x ? NULL : value(col, g->row, l.i, i->arg[1]);
    Var w = cg_var(cg, lane_type(col), number(col, 1));
    Var sum = cg_var(cg, lane_type(col), number(col, 0));
    Loop d = cg_for(cg, cg_int64(cg, 0), p, 1, false);
    Val u = from_end(h, p, d.i);
    Val gw = cg_fmul(cg, spread(col, element(h, g, l.i, u)), cg_get(cg, w));
    if (to_x)
        cg_set(cg, sum, cg_fma(cg, gw, value(col, AXIS_U, u, i->arg[1]), cg_get(cg, sum)));
    else
        put(col, out, u, cg_fma(cg, gw, x, get(col, out, u)));
    if (a >= 0)
        cg_set(cg, w, cg_fmul(cg, cg_get(cg, w), value(col, AXIS_U, u, a)));
    cg_end_for(cg, &d);
    if (to_x)
        put(col, out, l.i, cg_get(cg, sum));
    cg_end_for(cg, &l);
}

typedef struct Mask {
    const Tile *g;
    Scale scale;
    Tile out;
} Mask;

static void mask_columns(At *at, void *user) {
    Mask *m = user;
    Val x = decay_scale_scores(at, host_load(at, m->g, 0), &m->scale);
    At to = *at;
    host_store(&to, &m->out, 0, x);
}

/* G Lam as a matrix [rows of G, U], zero where u is not seen. */
static Tile masked(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst(h, v);
    Mask m = {.g = &h->tile[i->arg[0]]};
    int a = decays_of(i);
    m.scale = (Scale){.out = m.g, .place = i->place, .decays = a >= 0};
    if (a >= 0)
        m.scale.products = decay_running_products(h, a);
    m.out = (Tile){.there = true, .row = m.g->row, .col = AXIS_U, .anchor = -1};
    m.out.ld = host_round(host_capacity(h, AXIS_U), h->lanes) + h->lanes;
    m.out.offset = host_alloc(h, (host_round(host_capacity(h, m.out.row), BLOCK) + BLOCK) * m.out.ld);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[m.out.row], 1, false);
    At row = host_at_row(h, m.out.row, l.i);
    host_columns(&row, AXIS_U, false, mask_columns, &m);
    cg_end_for(cg, &l);
    return m.out;
}

static void back_plain(Host *h, int v) {
    const Inst *i = inst(h, v);
    const Tile *out = &h->tile[v];
    bool to_x = i->op == OP_scores_x;
    Term term = {.a = masked(h, v)};
    int other = to_x ? AXIS_U : term.a.row;
    term.b = decay_matrix(h, i->arg[1], other, out->col);
    term.axis = other;
    Gemm g = {.out = *out,
              .row_lo = cg_int64(h->cg, 0),
              .rows = h->count[out->row],
              .cols = cg_int64(h->cg, host_round(axis_size(h, out->col), h->lanes)),
              .term = &term,
              .terms = 1};
    host_gemm(h, &g);
}

void host_scores_back(Host *h, int v) {
    const Inst *i = inst(h, v);
    if (has_feature(h, decays_of(i)) || h->tile[v].col < 0) {
        decay_run_columns(h, v, back_columns);
        return;
    }
    for (int j = 0; j < i->nargs; j++)
        if (i->arg[j] >= 0)
            host_need(h, i->arg[j]);
    back_plain(h, v);
}

/* cotangents of decays ------------------------------------------------------------------------- */

/* With `log`, every row times its decay. */
static void finish_log(const At *col, int v, int a) {
    Host *h = col->h;
    Cg *cg = h->cg;
    if (!inst(h, v)->index)
        return;
    Loop m = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_U], 1, false);
    const Tile *out = &h->tile[v];
    put(col, out, m.i, cg_fmul(cg, get(col, out, m.i), value(col, AXIS_U, m.i, a)));
    cg_end_for(cg, &m);
}

typedef struct ScoresA {
    int v;
    Tile after;  /* [private, feature]: x[l] a[m+1] .. a[p(l)-1] */
    Tile g;      /* G, or G x y' for scalar decays */
    bool dotted; /* the latter */
} ScoresA;

static void scores_a_columns(At *col, void *user) {
    ScoresA *s = user;
    Host *h = col->h;
    Cg *cg = h->cg;
    const Inst *i = inst(h, s->v);
    const Tile *out = &h->tile[s->v];
    int a = i->arg[3];
    Val zero = cg_int64(cg, 0);
    zero_rows(col, out, h->count[AXIS_U]);
    Loop l = cg_for(cg, zero, h->count[s->g.row], 1, false);
    Val p = decay_place_of(h, &s->g, i->place, l.i);
    Val x = s->dotted ? number(col, 1) : value(col, s->g.row, l.i, i->arg[1]);
    Var w = cg_var(cg, lane_type(col), x), before = cg_var(cg, lane_type(col), number(col, 0));
    Loop d = cg_for(cg, zero, p, 1, false);
    Val m = from_end(h, p, d.i);
    put(col, &s->after, m, cg_get(cg, w));
    cg_set(cg, w, cg_fmul(cg, cg_get(cg, w), value(col, AXIS_U, m, a)));
    cg_end_for(cg, &d);
    Loop u = cg_for(cg, zero, p, 1, false);
    Val so_far = cg_get(cg, before), c = spread(col, element(h, &s->g, l.i, u.i));
    put(col, out, u.i, cg_fma(cg, get(col, &s->after, u.i), so_far, get(col, out, u.i)));
    if (!s->dotted)
        c = cg_fmul(cg, c, value(col, AXIS_U, u.i, i->arg[2]));
    cg_set(cg, before, cg_fma(cg, so_far, value(col, AXIS_U, u.i, a), c));
    cg_end_for(cg, &u);
    cg_end_for(cg, &l);
    finish_log(col, s->v, a);
}

static Val times_cotangent(At *at, Val acc, void *user) {
    return cg_fmul(at->h->cg, acc, host_load(at, user, 0));
}

/* G[l,u] (x_l' y_u) */
static Tile dotted(Host *h, int v) {
    const Inst *i = inst(h, v);
    Tile *g = &h->tile[i->arg[0]];
    int f = shape_features(shape_union(shape_features(inst(h, i->arg[1])->shape),
                                       shape_features(inst(h, i->arg[2])->shape))).axis[0];
    Tile x = decay_matrix(h, i->arg[1], g->row, f), y = decay_matrix(h, i->arg[2], AXIS_U, f);
    Tile turned = {.there = true, .row = f, .col = AXIS_U, .anchor = -1};
    turned.ld = host_round(host_capacity(h, AXIS_U), h->lanes) + h->lanes;
    turned.offset = host_alloc(h, (host_round(host_capacity(h, f), h->lanes) + BLOCK) * turned.ld);
    host_transpose(h, &turned, &y, h->count[AXIS_U]);
    Tile out = {.there = true, .row = g->row, .col = AXIS_U, .anchor = -1, .ld = turned.ld};
    out.offset = host_alloc(h, (host_round(host_capacity(h, out.row), BLOCK) + BLOCK) * out.ld);
    Term term = {.a = x, .b = turned, .axis = f};
    Gemm gemm = {.out = out,
                 .row_lo = cg_int64(h->cg, 0),
                 .rows = h->count[out.row],
                 .cols = decay_round_up_lanes(h, h->count[AXIS_U]),
                 .term = &term,
                 .terms = 1,
                 .finish = times_cotangent,
                 .user = g};
    host_gemm(h, &gemm);
    return out;
}

void host_scores_a(Host *h, int v) {
    const Inst *i = inst(h, v);
    ScoresA s = {.v = v, .dotted = !has_feature(h, i->arg[3])};
    for (int j = 0; j < i->nargs; j++)
        host_need(h, i->arg[j]);
    s.g = s.dotted ? dotted(h, v) : h->tile[i->arg[0]];
    int col = h->tile[v].col;
    s.after = (Tile){.there = true, .row = AXIS_private, .col = col, .anchor = -1};
    s.after.ld = col >= 0 ? host_round(host_capacity(h, col), h->lanes) : 1;
    s.after.offset = host_alloc(h, (host_capacity(h, AXIS_U) + 1) * s.after.ld + h->lanes);
    At none = host_at_row(h, AXIS_none, NULL);
    if (col >= 0)
        host_columns(&none, col, false, scores_a_columns, &s);
    else
        scores_a_columns(&none, &s);
}

/* out[m] = a[0] .. a[m-1] */
static void store_first(const At *col, int v, int a) {
    Host *h = col->h;
    Cg *cg = h->cg;
    Var w = cg_var(cg, lane_type(col), number(col, 1));
    Loop m = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_U], 1, false);
    put(col, &h->tile[v], m.i, cg_get(cg, w));
    cg_set(cg, w, cg_fmul(cg, cg_get(cg, w), value(col, AXIS_U, m.i, a)));
    cg_end_for(cg, &m);
}

/* out[m] *= x */
static void scale_row(const At *col, int v, Val m, Val x) {
    const Tile *out = &col->h->tile[v];
    put(col, out, m, cg_fmul(col->h->cg, get(col, out, m), x));
}

/* out[m] *= a[m+1] .. a[last], times `w` where that is given */
static void scale_last(const At *col, int v, int a, Val w) {
    Host *h = col->h;
    Cg *cg = h->cg;
    Var run = cg_var(cg, lane_type(col), w ? w : number(col, 1));
    Loop d = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_U], 1, false);
    Val m = from_end(h, h->count[AXIS_U], d.i);
    scale_row(col, v, m, cg_get(cg, run));
    cg_set(cg, run, cg_fmul(cg, cg_get(cg, run), value(col, AXIS_U, m, a)));
    cg_end_for(cg, &d);
}

/* Rows from the last to the first. Before row l come the decays of [p(l), p(l+1)), the last row's up
 * to the chunk's end: those see only rows behind them. */
static void carry_a_columns(const At *col, int v, int w, int a) {
    Host *h = col->h;
    Cg *cg = h->cg;
    int rows = shape_has(inst(h, w)->shape, AXIS_R) ? AXIS_R : AXIS_C;
    const Tile on = {.row = rows};
    int place = inst(h, v)->place;
    store_first(col, v, a);
    Var behind = cg_var(cg, lane_type(col), number(col, 0));
    Var end = cg_var(cg, cg->i64, h->count[AXIS_U]);
    Val one = cg_int64(cg, 1);
    Loop d = cg_for(cg, cg_int64(cg, 0), cg_add(cg, h->count[rows], one), 1, false);
    Val l = from_end(h, h->count[rows], d.i); /* -1: the decays before all rows */
    Val p = host_max(h, decay_place_of(h, &on, place, l), cg_int64(cg, 0));
    p = cg_select(cg, cg_cmp(cg, LLVMIntSLT, l, cg_int64(cg, 0)), cg_int64(cg, 0), p);
    Val hi = cg_get(cg, end);
    Loop n = cg_for(cg, p, hi, 1, false);
    Val m = cg_sub(cg, cg_sub(cg, cg_add(cg, p, hi), one), n.i);
    Val so_far = cg_get(cg, behind);
    scale_row(col, v, m, so_far);
    cg_set(cg, behind, cg_fmul(cg, so_far, value(col, AXIS_U, m, a)));
    cg_end_for(cg, &n);
    If row = cg_if(cg, cg_cmp(cg, LLVMIntSGE, l, cg_int64(cg, 0)));
    cg_set(cg, behind, cg_fadd(cg, cg_get(cg, behind), value(col, rows, l, w)));
    cg_end_if(cg, &row);
    cg_set(cg, end, p);
    cg_end_for(cg, &d);
}

static void tail_a_columns(const At *col, int v, int w, int a) {
    Host *h = col->h;
    Cg *cg = h->cg;
    Var before = cg_var(cg, lane_type(col), number(col, 0));
    Loop m = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_U], 1, false);
    Val so_far = cg_get(cg, before);
    put(col, &h->tile[v], m.i, so_far);
    Val more = value(col, AXIS_U, m.i, w);
    cg_set(cg, before, cg_fma(cg, so_far, value(col, AXIS_U, m.i, a), more));
    cg_end_for(cg, &m);
    scale_last(col, v, a, NULL);
}

static void scaled_a_columns(At *col, void *user) {
    Host *h = col->h;
    int v = *(int *)user;
    const Inst *i = inst(h, v);
    int w = i->arg[0], a = i->arg[1];
    if (i->op == OP_carry_a) {
        carry_a_columns(col, v, w, a);
    } else if (i->op == OP_tail_a) {
        tail_a_columns(col, v, w, a);
    } else {
        store_first(col, v, a);
        scale_last(col, v, a, value(col, AXIS_none, NULL, w));
    }
    finish_log(col, v, a);
}

void host_scaled_a(Host *h, int v) {
    decay_run_columns(h, v, scaled_a_columns);
}
