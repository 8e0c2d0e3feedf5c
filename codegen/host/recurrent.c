/* The recurrence token by token. State operations are gathered into sweeps: one pass over S does
 * all operations, in their order, whose operands are known before it starts. For a delta rule that
 * is two passes, {decay, read} and {update, read of the output}.
 *
 *     for a panel of columns of S             columns are independent but for reads by [V]
 *         for k:  s = S[k, panel]
 *                 decay   s *= a                read [K]   y += s x_k       (registers)
 *                 update  s += p_k z            read [V]   y_k += dot(s, x)
 *                 S[k, panel] = s
 */
#include "codegen/host/host.h"

enum { MAX_SWEEP = 16, MAX_PANEL = 8 };

typedef struct Sweep {
    int op[MAX_SWEEP], count;
    bool writes;
} Sweep;

static bool reads_keys(const Host *h, const Inst *i) {
    return shape_has(inst_at(h->k, i->arg[0])->shape, AXIS_K);
}

static bool is_sweep_op(Op op) {
    return op == OP_decay || op == OP_read || op == OP_update;
}

/* Whether state operation v can join the sweep: no operand needs a read of it. */
static bool joins(Host *h, const Sweep *s, int v) {
    const Inst *i = inst_at(h->k, v);
    if (s->count == MAX_SWEEP)
        return false;
    bool *needs = NEW_ARRAY(h->cg->arena, bool, h->k->inst.count);
    for (int j = 0; j < i->nargs; j++)
        value_mark(h->k, i->arg[j], needs);
    for (int n = 0; n < s->count; n++)
        if (needs[s->op[n]])
            return false;
    return true;
}

/* Registers of one panel: its part of the state, vectors of operands along V, sums of reads. */
typedef struct Panel {
    Host *h;
    const Sweep *sweep;
    int vectors;
    Val mask;                       /* lanes that count in the last, partial vector; else NULL */
    At col[MAX_PANEL];              /* no row */
    Val side[MAX_SWEEP][MAX_PANEL]; /* operand along V, or a scalar spread */
    Var sum[MAX_SWEEP][MAX_PANEL];
} Panel;

/* The operand of a state operation that lies along V, or -1. */
static int side_operand(const Host *h, const Inst *i) {
    if (i->op == OP_update)
        return i->arg[1];
    return shape_has(inst_at(h->k, i->arg[0])->shape, AXIS_V) ? i->arg[0] : -1;
}

static void open_panel(Panel *p, Val j) {
    Host *h = p->h;
    Cg *cg = h->cg;
    for (int n = 0; n < p->vectors; n++) {
        At none = host_at_row(h, AXIS_none, NULL);
        p->col[n] = host_at_col(&none, AXIS_V, cg_add(cg, j, cg_int64(cg, n * h->lanes)), NULL);
        for (int o = 0; o < p->sweep->count; o++) {
            const Inst *i = inst_at(h->k, p->sweep->op[o]);
            int side = side_operand(h, i);
            if (side >= 0)
                p->side[o][n] = host_vector(&p->col[n], side);
            else if (i->op == OP_read)
                p->sum[o][n] = cg_var(cg, h->vec, host_zero(h));
        }
    }
}

/* y[k] += s x over this panel. */
static void read_by_values(Panel *p, int o, At *key, const Val *s) {
    Host *h = p->h;
    Cg *cg = h->cg;
    Val sum = host_zero(h);
    for (int n = 0; n < p->vectors; n++)
        sum = cg_fma(cg, s[n], p->side[o][n], sum);
    if (p->mask)
        sum = cg_select(cg, p->mask, sum, host_zero(h));
    const Tile *t = &h->tile[p->sweep->op[o]];
    host_store(key, t, 0, cg_fadd(cg, host_load(key, t, 0), host_reduce(h, sum)));
}

static void sweep_row(Panel *p, Val k) {
    Host *h = p->h;
    Cg *cg = h->cg;
    Val s[MAX_PANEL];
    At key = host_at_row(h, AXIS_K, k);
    for (int n = 0; n < p->vectors; n++) {
        At at = host_at_col(&key, AXIS_V, p->col[n].col, NULL);
        s[n] = host_load(&at, &h->state, 0);
    }
    for (int o = 0; o < p->sweep->count; o++) {
        const Inst *i = inst_at(h->k, p->sweep->op[o]);
        int side = side_operand(h, i);
        if (i->op == OP_read && side >= 0) {
            read_by_values(p, o, &key, s);
            continue;
        }
        Val x = i->op == OP_update || side < 0 ? host_vector(&key, i->arg[0]) : NULL;
        for (int n = 0; n < p->vectors; n++) {
            if (i->op == OP_decay)
                s[n] = cg_fmul(cg, s[n], x ? x : p->side[o][n]);
            else if (i->op == OP_update)
                s[n] = cg_fma(cg, x, p->side[o][n], s[n]);
            else
                cg_set(cg, p->sum[o][n], cg_fma(cg, x, s[n], cg_get(cg, p->sum[o][n])));
        }
    }
    for (int n = 0; n < p->vectors && p->sweep->writes; n++) {
        At at = host_at_col(&key, AXIS_V, p->col[n].col, NULL);
        host_store(&at, &h->state, 0, s[n]);
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
    for (int o = 0; o < s->count; o++) {
        const Inst *i = inst_at(h->k, s->op[o]);
        for (int n = 0; n < vectors && i->op == OP_read && side_operand(h, i) < 0; n++)
            host_store(&p->col[n], &h->tile[s->op[o]], 0, cg_get(cg, p->sum[o][n]));
    }
}

/* Columns in panels of as many vectors as registers hold for all that the sweep sums and reads. */
static void sweep_columns(Host *h, const Sweep *s) {
    Cg *cg = h->cg;
    int registers = h->lanes == 16 ? 28 : 14, vectors = MAX_PANEL;
    int64_t size = axis_size(h, AXIS_V), whole = size / h->lanes;
    while (vectors > 1 && (vectors * (s->count + 1) > registers || vectors > whole))
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

static void run_sweep(Host *h, const Sweep *s) {
    for (int o = 0; o < s->count; o++) {
        const Inst *i = inst_at(h->k, s->op[o]);
        for (int j = 0; j < i->nargs; j++)
            host_need(h, i->arg[j]);
        if (i->op == OP_read && !reads_keys(h, i))
            host_fill_zero(h, host_at(h, h->tile[s->op[o]].offset), 4 * h->tile[s->op[o]].ld);
    }
    sweep_columns(h, s);
    for (int o = 0; o < s->count; o++)
        h->tile[s->op[o]].done = true;
}

static void run_token(Host *h) {
    const Kernel *k = h->k;
    Sweep s = {0};
    for (int v = 0; v < k->inst.count; v++) {
        Op op = inst_at(k, v)->op;
        if (!is_sweep_op(op))
            continue;
        if (!joins(h, &s, v)) {
            run_sweep(h, &s);
            s = (Sweep){0};
        }
        s.op[s.count++] = v;
        s.writes |= op != OP_read;
    }
    if (s.count)
        run_sweep(h, &s);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_out)
            host_out(h, v);
    for (int v = 0; v < k->inst.count; v++)
        if (h->tile[v].there && h->tile[v].history)
            host_need(h, v);
    host_roll_history(h);
}

void host_recurrent_task(Host *h) {
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0);
    h->token0 = zero;
    host_open_axes(h, cg_int64(cg, 1));
    host_clear_history(h);
    host_constants(h);
    Loop t = cg_for(cg, zero, h->length, 1, false);
    h->token0 = t.i;
    run_token(h);
    cg_end_for(cg, &t);
}
