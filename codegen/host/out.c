/* What leaves a chunk: histories to the next one, outputs to the caller, and the gradients of params,
 * which are summed over the chunks first.
 */
#include "codegen/host/host.h"

/* histories and outputs ------------------------------------------------------------------------ */

void host_clear_history(Host *h) {
    for (int v = 0; v < h->k->inst.count; v++)
        if (h->tile[v].there && h->tile[v].history)
            host_fill_zero(h, host_at(h, h->tile[v].offset),
                           host_round(4 * h->tile[v].ld, 4 * h->lanes));
}

void host_need_histories(Host *h) {
    for (int v = 0; v < h->k->inst.count; v++)
        if (h->tile[v].there && h->tile[v].history)
            host_need(h, v);
}

void host_roll_history(Host *h) {
    Cg *cg = h->cg;
    for (int v = 0; v < h->k->inst.count; v++) {
        const Tile *t = &h->tile[v];
        if (!t->there || !t->history)
            continue;
        Val first = host_at(h, t->offset);
        Val last = host_element(h, first, h->count[AXIS_C], 4 * t->ld);
        if (t->col < 0)
            cg_store(cg, cg_load(cg, cg->f32, last, 4), first, 4);
        else
            host_copy(h, first, t->ld, last, t->ld, cg_int64(cg, 1), t->ld);
    }
}

typedef struct Out {
    const Inst *inst;
    Val p;
    Elem elem;
} Out;

static void store_output(At *at, void *user) {
    const Out *o = user;
    host_row_store(at, o->p, o->elem, host_value(at, o->inst->arg[0]));
}

/* The port's shape without its rows [n,...], and where this instruction's row begins. */
static Shape out_row(const Host *h, const Inst *i, int64_t *first) {
    Shape s = h->k->out.at[i->index].shape;
    bool by_rows = s.rank && s.axis[0] >= AXIS_user;
    s = by_rows ? shape_without(s, s.axis[0]) : s;
    *first = by_rows ? i->row * shape_elements(h->k, s) : 0;
    return s;
}

static Val out_base(Host *h, const Inst *i) {
    Cg *cg = h->cg;
    return LLVMBuildIntToPtr(cg->b, cg_frame_field(cg, frame_out_ptr(h->k, i->index)), cg->ptr, "");
}

/* Gradients may be left out: what is not wanted has no address. */
static If if_wanted(Host *h, const Inst *i) {
    Val p = cg_frame_field(h->cg, frame_out_ptr(h->k, i->index));
    return cg_if(h->cg, cg_cmp(h->cg, LLVMIntNE, p, cg_int64(h->cg, 0)));
}

/* Runs `body` for the columns of a tile without rows; token by token, at the token. */
static void over_columns(Host *h, const Tile *t, bool exact, HostBody *body, void *user) {
    bool token = h->k->level == LEVEL_recurrence;
    At at = host_at_row(h, token ? AXIS_C : AXIS_none, token ? cg_int64(h->cg, 0) : NULL);
    host_columns(&at, t->col, exact, body, user);
}

static void add_to_total(At *at, void *user) {
    Host *h = at->h;
    int v = *(int *)user;
    Val x = host_value(at, inst_at(h->k, v)->arg[0]), sum = host_load(at, &h->total[v], 0);
    x = at->col_axis >= 0 ? host_splat(h, x) : x;
    host_store(at, &h->total[v], 0, cg_fadd(h->cg, sum, x));
}

void host_out(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst_at(h->k, v);
    const Port *port = &h->k->out.at[i->index];
    int64_t first, elements = shape_elements(h->k, port->shape), size = elem_size(port->elem);
    Shape row = out_row(h, i, &first);
    host_need(h, i->arg[0]);
    if (port->is_param) {
        over_columns(h, &h->total[v], true, add_to_total, &v);
        return;
    }
    If wanted = {0};
    if (h->gradient)
        wanted = if_wanted(h, i);
    Val base = cg_gep8(cg, out_base(h, i), cg_int64(cg, first * size));
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_C], 1, false);
    Val token = cg_add(cg, cg_add(cg, h->row0, h->token0), l.i);
    Val index = cg_add(cg, cg_mul(cg, token, h->heads), h->head);
    Out o = {i, host_element(h, base, index, elements * size), port->elem};
    At at = host_at_row(h, AXIS_C, l.i);
    if (row.rank)
        host_hoist(&at, i->arg[0], row.axis[0]);
    host_columns(&at, row.rank ? row.axis[0] : AXIS_none, true, store_output, &o);
    cg_end_for(cg, &l);
    if (h->gradient)
        cg_end_if(cg, &wanted);
}

void host_clear_totals(Host *h) {
    for (int v = 0; v < h->k->inst.count; v++)
        if (h->total[v].there)
            host_fill_zero(h, host_at(h, h->total[v].offset),
                           host_round(4 * h->total[v].ld, 4 * h->lanes));
}

typedef struct Total {
    const Tile *tile;
    Val p;
} Total;

static void store_total(At *at, void *user) {
    const Total *t = user;
    host_row_store(at, t->p, ELEM_f32, host_load(at, t->tile, 0));
}

/* [sequence, head, ...], f32 */
void host_store_totals(Host *h) {
    for (int v = 0; v < h->k->inst.count; v++) {
        if (!h->total[v].there)
            continue;
        const Inst *i = inst_at(h->k, v);
        int64_t first, elements = shape_elements(h->k, h->k->out.at[i->index].shape);
        out_row(h, i, &first);
        If wanted = if_wanted(h, i);
        Val p = host_element(h, out_base(h, i), h->task, 4 * elements);
        Total t = {&h->total[v], cg_gep8(h->cg, p, cg_int64(h->cg, 4 * first))};
        over_columns(h, t.tile, true, store_total, &t);
        cg_end_if(h->cg, &wanted);
    }
}
