/* Sweeps of the recurrence's gradient: passes of a block over S and D.
 *
 *     operands to shared memory                                        barrier
 *     for the warp's rows k:   s = S[k, the lane's columns]   d = D[k, ...]
 *         decays and updates of s or d; backwards s runs again to every place that is looked at
 *         sums over columns: lanes add up, lane 0 leaves row k's      } in shared memory
 *     sums over rows: a lane's own columns, one line a warp           }
 *                                                                      barrier
 *     sums over rows: warps add up; every result into the registers of the threads that hold it
 */
#include "codegen/nvptx/recurrent_grad.h"

typedef Val Row[RG_PANELS * RG_COLUMNS]; /* a lane's elements of a matrix row, or of a vector over V */

typedef struct Pass {
    RecurrentGrad *r;
    const Sweep *w;
    int columns;          /* of a lane */
    Val column[RG_PANELS];/* i32, first of each panel */
    Val inside[RG_PANELS];/* i1, NULL: always */
    Row *side;            /* [value] operands along V, or the same for all, in registers */
    Val k;                /* i32 the row */
    Var (*sum)[RG_PANELS * RG_COLUMNS]; /* [operation] over rows */
} Pass;

static const Shape *shape(const RecurrentGrad *r, int v) {
    return &inst_at(r->k, v)->shape;
}

/* plan ----------------------------------------------------------------------------------------- */

static int take(int *at, int bytes) {
    int start = *at;
    *at += (bytes + 15) / 16 * 16;
    return start;
}

static void plan_slot(RecurrentGrad *r, int v, int *at) {
    if (r->slot[v] >= 0 || !shape(r, v)->rank)
        return;
    r->slot[v] = take(at, 4 * (shape_has(*shape(r, v), AXIS_K) ? r->K : r->panels * RG_PANEL));
}

int rg_plan_slots(RecurrentGrad *r, int at) {
    r->slot = NEW_ARRAY(r->cg->arena, int, r->k->inst.count);
    for (int v = 0; v < r->k->inst.count; v++)
        r->slot[v] = -1;
    for (int half = 0; half < 2; half++)
        for (int s = 0; s < r->sweeps[half]; s++)
            for (int o = 0; o < r->sweep[half][s].count; o++) {
                int v = r->sweep[half][s].op[o];
                const Inst *i = inst_at(r->k, v);
                for (int j = 0; j < i->nargs; j++)
                    plan_slot(r, i->arg[j], &at);
                if (op_gives_value(i->op) && !inst_sums_rows(i))
                    plan_slot(r, v, &at);
            }
    r->sums = take(&at, 4 * RG_SUMS * RG_WARPS * r->panels * RG_PANEL);
    r->reds = take(&at, 4 * (RG_SUMS + 1) * RG_WARPS);
    return at;
}

/* matrices ------------------------------------------------------------------------------------- */

static void open_columns(Pass *p) {
    Cg *cg = p->r->cg;
    for (int n = 0; n < p->r->panels; n++) {
        p->column[n] = cg_add(cg, cg_mul(cg, p->r->lane, cg_int(cg, RG_COLUMNS)),
                              cg_int(cg, n * RG_PANEL));
        bool all = p->r->ld >= (n + 1) * RG_PANEL;
        p->inside[n] = all ? NULL
                           : cg_cmp(cg, LLVMIntSLT, p->column[n], cg_int(cg, p->r->ld));
    }
    p->columns = p->r->panels * RG_COLUMNS;
}

static Pass pass_new(RecurrentGrad *r, const Sweep *w) {
    Pass p = {.r = r, .w = w};
    p.side = NEW_ARRAY(r->cg->arena, Row, r->k->inst.count);
    p.sum = arena_alloc(r->cg->arena, (size_t)(r->k->inst.count + 1) * sizeof *p.sum);
    open_columns(&p);
    return p;
}

/* Where the lane's columns of panel n are in row p->k. */
static Val element(Pass *p, const Matrix *m, int n) {
    Cg *cg = p->r->cg;
    Val index = cg_add(cg, cg_mul(cg, p->k, cg_int(cg, p->r->ld)), p->column[n]);
    Val bytes = cg_shl(cg, index, 2);
    return cg_gep8(cg, m->p, m->shared ? bytes : cg_zext64(cg, bytes));
}

/* Lanes without columns hold zeros. */
static void load_row(Pass *p, const Matrix *m, Val *out) {
    Cg *cg = p->r->cg;
    Ty vector = LLVMVectorType(cg->f32, RG_COLUMNS);
    for (int n = 0; n < p->r->panels; n++) {
        Var x = cg_var(cg, vector, LLVMConstNull(vector));
        If some = {0};
        if (p->inside[n])
            some = cg_if(cg, p->inside[n]);
        cg_set(cg, x, cg_load(cg, vector, element(p, m, n), 16));
        if (p->inside[n])
            cg_end_if(cg, &some);
        for (int c = 0; c < RG_COLUMNS; c++)
            out[n * RG_COLUMNS + c] = cg_extract(cg, cg_get(cg, x), c);
    }
}

static void store_row(Pass *p, const Matrix *m, const Val *x) {
    Cg *cg = p->r->cg;
    for (int n = 0; n < p->r->panels; n++) {
        If some = {0};
        if (p->inside[n])
            some = cg_if(cg, p->inside[n]);
        Val y = LLVMGetPoison(LLVMVectorType(cg->f32, RG_COLUMNS));
        for (int c = 0; c < RG_COLUMNS; c++)
            y = cg_insert(cg, y, x[n * RG_COLUMNS + c], c);
        cg_store(cg, y, element(p, m, n), 16);
        if (p->inside[n])
            cg_end_if(cg, &some);
    }
}

static Loop open_rows(Pass *p) {
    Cg *cg = p->r->cg;
    Loop l = cg_for(cg, p->r->warp, cg_int(cg, p->r->K), RG_WARPS, false);
    p->k = l.i;
    return l;
}

/* The caller's [K,V], element by element: column j (from 0) of the lane's; NULL where it always is. */
static Val outside(Pass *p, Val base, int j, Val *exists) {
    Cg *cg = p->r->cg;
    int n = j / RG_COLUMNS, V = p->r->V;
    Val column = cg_add(cg, p->column[n], cg_int(cg, j % RG_COLUMNS));
    *exists = V % RG_PANEL ? cg_cmp(cg, LLVMIntSLT, column, cg_int(cg, V)) : NULL;
    Val index = cg_add(cg, cg_mul(cg, p->k, cg_int(cg, V)), column);
    if (*exists)
        index = cg_select(cg, *exists, index, cg_int(cg, 0));
    return cg_gep8(cg, base, cg_zext64(cg, cg_shl(cg, index, 2)));
}

void rg_load(RecurrentGrad *r, const Matrix *to, Val base) {
    Cg *cg = r->cg;
    Pass p = pass_new(r, NULL);
    Loop l = open_rows(&p);
    Row x;
    for (int j = 0; j < p.columns; j++) {
        Val exists, at = outside(&p, base, j, &exists);
        x[j] = cg_load(cg, cg->f32, at, 4);
        if (exists)
            x[j] = cg_select(cg, exists, x[j], cg_float(cg, 0));
    }
    store_row(&p, to, x);
    cg_end_for(cg, &l);
}

void rg_store(RecurrentGrad *r, const Matrix *from, Val base) {
    Cg *cg = r->cg;
    Pass p = pass_new(r, NULL);
    Loop l = open_rows(&p);
    Row x;
    load_row(&p, from, x);
    for (int j = 0; j < p.columns; j++) {
        Val exists, at = outside(&p, base, j, &exists);
        If some = {0};
        if (exists)
            some = cg_if(cg, exists);
        cg_store(cg, x[j], at, 4);
        if (exists)
            cg_end_if(cg, &some);
    }
    cg_end_for(cg, &l);
}

void rg_copy(RecurrentGrad *r, const Matrix *to, const Matrix *from) {
    Pass p = pass_new(r, NULL);
    Loop l = open_rows(&p);
    Row x;
    load_row(&p, from, x);
    store_row(&p, to, x);
    cg_end_for(r->cg, &l);
}

void rg_clear(RecurrentGrad *r, const Matrix *to) {
    Pass p = pass_new(r, NULL);
    Loop l = open_rows(&p);
    Row x;
    for (int j = 0; j < p.columns; j++)
        x[j] = cg_float(r->cg, 0);
    store_row(&p, to, x);
    cg_end_for(r->cg, &l);
}

/* operands ------------------------------------------------------------------------------------- */

/* Vector v to its slot. */
static void publish(RecurrentGrad *r, int v) {
    Cg *cg = r->cg;
    Val x[RG_RUN];
    bool key = shape_has(*shape(r, v), AXIS_K);
    int size = key ? r->K : r->panels * RG_PANEL;
    Val base = key ? r->at.base_k : r->at.base_v;
    value_get_padded(&r->at, v, x);
    for (int j = 0; j < RG_RUN; j++) {
        Val index = cg_add(cg, base, cg_int(cg, j));
        If some = cg_if(cg, cg_cmp(cg, LLVMIntSLT, index, cg_int(cg, size)));
        cg_store(cg, x[j], cg_gep8(cg, nv_shared(cg, r->slot[v]), cg_shl(cg, index, 2)), 4);
        cg_end_if(cg, &some);
    }
    r->published[v] = true;
}

static void publish_operands(RecurrentGrad *r, const Inst *i) {
    for (int j = 0; j < i->nargs; j++) {
        int v = i->arg[j];
        if (!shape(r, v)->rank)
            value_get(&r->at, v); /* in every thread, before the rows' loop */
        else if (!r->published[v])
            publish(r, v);
    }
}

static void each_operation(Pass *p, void (*f)(Pass *, const Inst *)) {
    for (int e = 0; e < p->w->places; e++)
        f(p, inst_at(p->r->k, p->w->event[e]));
    for (int o = 0; o < p->w->count; o++)
        f(p, inst_at(p->r->k, p->w->op[o]));
}

static void publish_for(Pass *p, const Inst *i) {
    publish_operands(p->r, i);
}

/* What lies along V, or is the same everywhere, into registers. */
static void open_sides(Pass *p, const Inst *i) {
    Cg *cg = p->r->cg;
    for (int a = 0; a < i->nargs; a++) {
        int v = i->arg[a];
        if (shape_has(*shape(p->r, v), AXIS_K) || p->side[v][0])
            continue;
        for (int n = 0; n < p->r->panels; n++) {
            Val at = cg_gep8(cg, nv_shared(cg, p->r->slot[v] < 0 ? 0 : p->r->slot[v]),
                             cg_shl(cg, p->column[n], 2));
            bool vector = shape(p->r, v)->rank > 0;
            Val x = vector ? cg_load(cg, LLVMVectorType(cg->f32, RG_COLUMNS), at, 16) : NULL;
            for (int c = 0; c < RG_COLUMNS; c++)
                p->side[v][n * RG_COLUMNS + c] =
                    vector ? cg_extract(cg, x, c) : value_get(&p->r->at, v)[0];
        }
    }
}

/* Operand v at the row and the lane's column j. */
static Val operand(Pass *p, int v, int j) {
    Cg *cg = p->r->cg;
    if (!shape_has(*shape(p->r, v), AXIS_K))
        return p->side[v][j];
    return cg_load(cg, cg->f32,
                   cg_gep8(cg, nv_shared(cg, p->r->slot[v]), cg_shl(cg, p->k, 2)), 4);
}

/* a row ---------------------------------------------------------------------------------------- */

static void change(Pass *p, const Inst *i, Val *m) {
    Cg *cg = p->r->cg;
    bool key = shape_has(*shape(p->r, i->arg[0]), AXIS_K);
    Val x = key ? operand(p, i->arg[0], 0) : NULL;
    for (int j = 0; j < p->columns; j++) {
        Val y = key ? x : operand(p, i->arg[0], j);
        m[j] = op_decays(i->op) ? cg_fmul(cg, m[j], y)
                                : cg_fma(cg, y, operand(p, i->arg[1], j), m[j]);
    }
}

static Val add_lanes(Cg *cg, Val x) {
    for (int mask = 1; mask < RG_LANES; mask *= 2)
        x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, mask));
    return x;
}

/* Sums of m times an operand, or times d. */
static void look(Pass *p, int o, const Val *m, const Val *d) {
    Cg *cg = p->r->cg;
    int v = p->w->op[o];
    const Inst *i = inst_at(p->r->k, v);
    bool key = i->op != OP_decay_a && shape_has(*shape(p->r, i->arg[0]), AXIS_K);
    Val row = cg_float(cg, 0), x = key ? operand(p, i->arg[0], 0) : NULL;
    for (int j = 0; j < p->columns; j++) {
        Val y = i->op == OP_decay_a ? d[j] : key ? x : operand(p, i->arg[0], j);
        if (inst_sums_rows(i))
            cg_set(cg, p->sum[o][j], cg_fma(cg, y, m[j], cg_get(cg, p->sum[o][j])));
        else
            row = cg_fma(cg, y, m[j], row);
    }
    if (inst_sums_rows(i))
        return;
    row = add_lanes(cg, row);
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, p->r->lane, cg_int(cg, 0)));
    cg_store(cg, row, cg_gep8(cg, nv_shared(cg, p->r->slot[v]), cg_shl(cg, p->k, 2)), 4);
    cg_end_if(cg, &first);
}

static void sweep_row(Pass *p) {
    RecurrentGrad *r = p->r;
    const Sweep *w = p->w;
    Row s, d, *at = arena_alloc(r->cg->arena, (size_t)(w->places + 1) * sizeof *at);
    if (w->state)
        load_row(p, w->back ? &r->first : &r->S, s);
    if (w->costate)
        load_row(p, &r->D, d);
    for (int e = 0; w->back && w->state && e <= w->places; e++) {
        if (e > 0)
            change(p, inst_at(r->k, w->event[e - 1]), s);
        for (int j = 0; j < p->columns; j++)
            at[e][j] = s[j];
    }
    for (int o = 0; o < w->count; o++) {
        const Inst *i = inst_at(r->k, w->op[o]);
        if (op_decays(i->op) || op_updates(i->op))
            change(p, i, w->back ? d : s);
        else
            look(p, o, op_looks_back(i->op) ? at[i->place] : w->back ? d : s, d);
    }
    if (w->writes)
        store_row(p, w->back ? &r->D : &r->S, w->back ? d : s);
}

/* results -------------------------------------------------------------------------------------- */

/* Number n of the sums over rows: what this warp has. */
static void leave_sum(Pass *p, int o, int n) {
    Cg *cg = p->r->cg;
    int line = 4 * p->r->panels * RG_PANEL;
    Val warp = p->r->warp, all = cg_float(cg, 0);
    bool scalar = !shape(p->r, p->w->op[o])->rank;
    for (int j = 0; j < p->columns; j++) {
        Val x = cg_get(cg, p->sum[o][j]);
        Val at = cg_add(cg, cg_mul(cg, warp, cg_int(cg, line)),
                        cg_shl(cg, p->column[j / RG_COLUMNS], 2));
        int byte = p->r->sums + n * RG_WARPS * line + j % RG_COLUMNS * 4;
        if (scalar)
            all = cg_fadd(cg, all, x);
        else
            cg_store(cg, x, cg_gep8(cg, nv_shared(cg, byte), at), 4);
    }
    if (!scalar)
        return;
    all = add_lanes(cg, all);
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, p->r->lane, cg_int(cg, 0)));
    Val at = nv_shared(cg, p->r->reds + 4 * (n + 1) * RG_WARPS);
    cg_store(cg, all, cg_gep8(cg, at, cg_shl(cg, warp, 2)), 4);
    cg_end_if(cg, &first);
}

/* The sum of RG_WARPS floats, `step` bytes apart. */
static Val add_warps(Cg *cg, Val p, int step) {
    Val sum = cg_load(cg, cg->f32, p, 4);
    for (int w = 1; w < RG_WARPS; w++)
        sum = cg_fadd(cg, sum, cg_load(cg, cg->f32, cg_gep8(cg, p, cg_int64(cg, w * step)), 4));
    return sum;
}

/* The result of operation o into the registers of those who hold it. */
static void take_result(Pass *p, int o, int n) {
    RecurrentGrad *r = p->r;
    Cg *cg = r->cg;
    int v = p->w->op[o], line = 4 * r->panels * RG_PANEL;
    bool rows = inst_sums_rows(inst_at(r->k, v)), scalar = !shape(r, v)->rank;
    Val *x = NEW_ARRAY(cg->arena, Val, RG_RUN);
    for (int j = 0; j < (scalar ? 1 : RG_RUN); j++) {
        Val base = rows ? r->at.base_v : r->at.base_k, zero = cg_int(cg, 0);
        Val index = cg_add(cg, base, cg_int(cg, j));
        Val exists = cg_cmp(cg, LLVMIntSLT, index, cg_int(cg, rows ? r->V : r->K));
        Val byte = cg_shl(cg, cg_select(cg, exists, index, zero), 2);
        if (scalar)
            x[j] = add_warps(cg, nv_shared(cg, r->reds + 4 * (n + 1) * RG_WARPS), 4);
        else if (rows)
            x[j] = add_warps(cg, cg_gep8(cg, nv_shared(cg, r->sums + n * RG_WARPS * line), byte), line);
        else
            x[j] = cg_load(cg, cg->f32, cg_gep8(cg, nv_shared(cg, r->slot[v]), byte), 4);
        if (!scalar)
            x[j] = cg_select(cg, exists, x[j], cg_float(cg, 0));
    }
    r->at.memo[v] = x;
    r->published[v] = !rows;
}

static void run_sweep(RecurrentGrad *r, const Sweep *w) {
    Cg *cg = r->cg;
    Pass p = pass_new(r, w);
    each_operation(&p, publish_for);
    nv_barrier(cg);
    each_operation(&p, open_sides);
    for (int o = 0; o < w->count; o++)
        for (int j = 0; j < p.columns && inst_sums_rows(inst_at(r->k, w->op[o])); j++)
            p.sum[o][j] = cg_var(cg, cg->f32, cg_float(cg, 0));
    Loop l = open_rows(&p);
    sweep_row(&p);
    cg_end_for(cg, &l);
    for (int o = 0, n = 0; o < w->count; o++)
        if (inst_sums_rows(inst_at(r->k, w->op[o])))
            leave_sum(&p, o, n++);
    nv_barrier(cg);
    for (int o = 0, n = 0; o < w->count; o++)
        if (op_gives_value(inst_at(r->k, w->op[o])->op)) {
            take_result(&p, o, n);
            n += inst_sums_rows(inst_at(r->k, w->op[o]));
        }
}

void rg_sweeps(RecurrentGrad *r, bool back) {
    for (int s = 0; s < r->sweeps[back]; s++)
        run_sweep(r, &r->sweep[back][s]);
}
