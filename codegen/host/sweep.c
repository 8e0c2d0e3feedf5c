/* Sweeps over the state and its cotangent D (codegen/sweep.h).
 *
 *     for a panel of columns                     columns are independent but for sums over V
 *         for k:  s = S[k, panel]   d = D[k, panel]
 *                 decay   s *= a                 read over K   y += s x_k       (registers)
 *                 update  s += p_k z             read over V   y_k += dot(s, x)
 *                 S[k, panel] = s   or   D[k, panel] = d
 *
 * Backwards S is the state where the token starts and is not written: each element runs again through
 * the token's decays and updates, which are elementwise, up to every place that is looked at.
 */
#include "codegen/host/host.h"
#include "codegen/sweep.h"

enum { MAX_SWEEP = 16, MAX_PANEL = 8 };

/* panels --------------------------------------------------------------------------------------- */

/* Registers of one panel: vectors of operands along V (in the memos), sums that results are. */
typedef struct Panel {
    Host *h;
    const Sweep *sweep;
    int vectors;
    Val mask;                       /* lanes that count in the last, partial vector; else NULL */
    At col[MAX_PANEL];              /* no row */
    Var sum[MAX_SWEEP][MAX_PANEL];
} Panel;

static bool along(const Host *h, int v, int axis) {
    return shape_has(inst_at(h->k, v)->shape, axis);
}

/* What varies along V or not at all is known before the loop over rows starts. */
static void open_operands(Panel *p, At *col, const Inst *i) {
    for (int j = 0; j < i->nargs; j++)
        if (!along(p->h, i->arg[j], AXIS_K))
            host_value(col, i->arg[j]);
}

static void open_panel(Panel *p, Val j) {
    Host *h = p->h;
    Cg *cg = h->cg;
    for (int n = 0; n < p->vectors; n++) {
        At none = host_at_row(h, AXIS_none, NULL);
        p->col[n] = host_at_col(&none, AXIS_V, cg_add(cg, j, cg_int64(cg, n * h->lanes)), NULL);
        for (int e = 0; e < p->sweep->places; e++)
            open_operands(p, &p->col[n], inst_at(h->k, p->sweep->event[e]));
        for (int o = 0; o < p->sweep->count; o++) {
            const Inst *i = inst_at(h->k, p->sweep->op[o]);
            open_operands(p, &p->col[n], i);
            if (inst_sums_rows(i))
                p->sum[o][n] = cg_var(cg, h->vec, host_zero(h));
        }
    }
}

static Val operand(Panel *p, At *key, int n, int v) {
    return host_vector(along(p->h, v, AXIS_K) ? key : &p->col[n], v);
}

/* A decay or an update of the elements in `m`. */
static void change(Panel *p, At *key, const Inst *i, Val *m) {
    Cg *cg = p->h->cg;
    for (int n = 0; n < p->vectors; n++) {
        Val x = operand(p, key, n, i->arg[0]);
        m[n] = op_decays(i->op) ? cg_fmul(cg, m[n], x)
                               : cg_fma(cg, x, operand(p, key, n, i->arg[1]), m[n]);
    }
}

static Val masked_sum(Panel *p, Val x) {
    if (p->mask)
        x = cg_select(p->h->cg, p->mask, x, host_zero(p->h));
    return host_reduce(p->h, x);
}

static void add_to(At *at, const Tile *t, Val x) {
    host_store(at, t, 0, cg_fadd(at->h->cg, host_load(at, t, 0), x));
}

/* Sums of m times an operand, or times d. */
static void look(Panel *p, int o, At *key, const Val *m, const Val *d) {
    Host *h = p->h;
    Cg *cg = h->cg;
    const Inst *i = inst_at(h->k, p->sweep->op[o]);
    Val row = host_zero(h);
    for (int n = 0; n < p->vectors; n++) {
        Val x = i->op == OP_decay_a ? d[n] : operand(p, key, n, i->arg[0]);
        if (inst_sums_rows(i))
            cg_set(cg, p->sum[o][n], cg_fma(cg, x, m[n], cg_get(cg, p->sum[o][n])));
        else
            row = cg_fma(cg, m[n], x, row);
    }
    if (!inst_sums_rows(i))
        add_to(key, &h->tile[p->sweep->op[o]], masked_sum(p, row));
}

static void move_row(Panel *p, At *key, const Tile *t, Val *m, bool store) {
    for (int n = 0; n < p->vectors; n++) {
        At at = host_at_col(key, AXIS_V, p->col[n].col, NULL);
        if (store)
            host_store(&at, t, 0, m[n]);
        else
            m[n] = host_load(&at, t, 0);
    }
}

/* Backwards: the row of S at every place that is wanted. */
static Val (*replay(Panel *p, At *key, Val *s))[MAX_PANEL] {
    const Sweep *w = p->sweep;
    Val(*at)[MAX_PANEL] = arena_alloc(p->h->cg->arena, (size_t)(w->places + 1) * sizeof *at);
    for (int e = 0; e <= w->places; e++) {
        if (e > 0)
            change(p, key, inst_at(p->h->k, w->event[e - 1]), s);
        for (int n = 0; n < p->vectors; n++)
            at[e][n] = s[n];
    }
    return at;
}

static void sweep_row(Panel *p, Val k) {
    Host *h = p->h;
    const Sweep *w = p->sweep;
    Val s[MAX_PANEL] = {0}, d[MAX_PANEL] = {0}, (*at)[MAX_PANEL] = NULL;
    At key = host_at_row(h, AXIS_K, k);
    if (w->state)
        move_row(p, &key, w->back ? &h->start : &h->state, s, false);
    if (w->costate)
        move_row(p, &key, &h->costate, d, false);
    if (w->back && w->state)
        at = replay(p, &key, s);
    for (int o = 0; o < w->count; o++) {
        const Inst *i = inst_at(h->k, w->op[o]);
        if (op_decays(i->op) || op_updates(i->op))
            change(p, &key, i, w->back ? d : s);
        else
            look(p, o, &key, op_looks_back(i->op) ? at[i->place] : w->back ? d : s, d);
    }
    if (w->writes)
        move_row(p, &key, w->back ? &h->costate : &h->state, w->back ? d : s, true);
}

static void close_panel(Panel *p) {
    Host *h = p->h;
    for (int o = 0; o < p->sweep->count; o++) {
        const Inst *i = inst_at(h->k, p->sweep->op[o]);
        Val all = host_zero(h);
        for (int n = 0; n < p->vectors && inst_sums_rows(i); n++) {
            Val x = cg_get(h->cg, p->sum[o][n]);
            if (i->shape.rank)
                host_store(&p->col[n], &h->tile[p->sweep->op[o]], 0, x);
            else
                all = cg_fadd(h->cg, all, x);
        }
        At none = host_at_row(h, AXIS_none, NULL);
        if (inst_sums_rows(i) && !i->shape.rank)
            add_to(&none, &h->tile[p->sweep->op[o]], masked_sum(p, all));
    }
}

static void sweep_panel(Host *h, const Sweep *s, Val j, int vectors, Val mask) {
    Cg *cg = h->cg;
    Panel *p = NEW(cg->arena, Panel);
    *p = (Panel){.h = h, .sweep = s, .vectors = vectors, .mask = mask};
    open_panel(p, j);
    Loop k = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_K], 1, false);
    sweep_row(p, k.i);
    cg_end_for(cg, &k);
    close_panel(p);
}

/* Columns in panels of as many vectors as registers hold for all that the sweep sums and reads. */
static void sweep_columns(Host *h, const Sweep *s) {
    Cg *cg = h->cg;
    int registers = h->lanes == 16 ? 28 : 14, vectors = MAX_PANEL, live = s->count + 1;
    for (int e = 0; s->back && e <= s->places; e++)
        live += s->wanted[e] + (e < s->places);
    int64_t size = axis_size(h, AXIS_V), whole = size / h->lanes;
    while (vectors > 1 && (vectors * live > registers || vectors > whole))
        vectors /= 2;
    int64_t step = (int64_t)vectors * h->lanes, end = whole * h->lanes;
    if (end / step) {
        Loop l = cg_for(cg, cg_int64(cg, 0), cg_int64(cg, end / step * step), step, false);
        sweep_panel(h, s, l.i, vectors, NULL);
        cg_end_for(cg, &l);
    }
    if (end % step) {
        Loop l = cg_for(cg, cg_int64(cg, end / step * step), cg_int64(cg, end), h->lanes, false);
        sweep_panel(h, s, l.i, 1, NULL);
        cg_end_for(cg, &l);
    }
    if (size % h->lanes) {
        Val lane[64];
        for (int i = 0; i < h->lanes; i++)
            lane[i] = LLVMConstInt(cg->i1, i < size % h->lanes, false);
        sweep_panel(h, s, cg_int64(cg, end), 1, LLVMConstVector(lane, (unsigned)h->lanes));
    }
}

/* all of a token -------------------------------------------------------------------------------- */

static void need_operands(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    for (int j = 0; j < i->nargs; j++)
        host_need(h, i->arg[j]);
}

static void run_sweep(Host *h, const Sweep *s) {
    for (int e = 0; e < s->places; e++)
        need_operands(h, s->event[e]);
    for (int o = 0; o < s->count; o++) {
        const Inst *i = inst_at(h->k, s->op[o]);
        const Tile *t = &h->tile[s->op[o]];
        need_operands(h, s->op[o]);
        if (op_gives_value(i->op) && !shape_has(i->shape, AXIS_V)) /* added to by every panel */
            host_fill_zero(h, host_at(h, t->offset), 4 * t->ld);
    }
    sweep_columns(h, s);
    for (int o = 0; o < s->count; o++)
        h->tile[s->op[o]].done = true;
}

void host_sweeps(Host *h, bool back) {
    int count;
    Sweep *s = sweeps_of(h->cg->arena, h->k, back, MAX_SWEEP, MAX_SWEEP, &count);
    for (int i = 0; i < count; i++)
        run_sweep(h, &s[i]);
}
