/* Elementwise values at one row and one vector of columns, and the loops that fill tiles with them.
 *
 * A value is a scalar where it does not depend on the column and is spread over the lanes when it
 * meets a vector. Tiles hold f32; tensors of the caller are read element-aligned, and the last,
 * partial vector of a row under a mask.
 */
#include "codegen/host/host.h"
#include <string.h>

/* places --------------------------------------------------------------------------------------- */

static size_t memo_bytes(const Host *h) {
    return (size_t)h->k->inst.count * sizeof(Val);
}

At host_at_row(Host *h, int row_axis, Val row) {
    return (At){.h = h,
                .row_axis = row_axis,
                .col_axis = AXIS_none,
                .row = row,
                .memo = NEW_ARRAY(h->cg->arena, Val, h->k->inst.count + 1)};
}

At host_at_col(const At *at, int col_axis, Val col, Val mask) {
    At c = *at;
    c.col_axis = col_axis;
    c.col = col;
    c.mask = mask;
    c.memo = NEW_ARRAY(at->h->cg->arena, Val, at->h->k->inst.count + 1);
    memcpy(c.memo, at->memo, memo_bytes(at->h));
    return c;
}

static Val gather(Host *h, Val p, int64_t stride) {
    Cg *cg = h->cg;
    Val x = LLVMGetPoison(h->vec);
    for (int i = 0; i < h->lanes; i++)
        x = cg_insert(cg, x, cg_load(cg, cg->f32, cg_gep8(cg, p, cg_int64(cg, i * stride)), 4), i);
    return x;
}

/* Address of the tile's element here; *stride = bytes from lane to lane, 0 when it has no column
 * axis here. */
static Val locate(At *at, const Tile *t, int shift, int64_t *stride) {
    Host *h = at->h;
    int64_t first = 4 * t->ld * (shift + t->history);
    Val p = t->base ? cg_gep8(h->cg, t->base, cg_int64(h->cg, first)) : host_at(h, t->offset + first);
    const int axis[2] = {t->row, t->col};
    const int64_t step[2] = {4 * t->ld, 4};
    *stride = 0;
    for (int i = 0; i < 2; i++) {
        if (axis[i] == AXIS_none || (axis[i] == AXIS_C && h->k->level == LEVEL_recurrence))
            continue; /* token by token, the token is row 0 */
        if (axis[i] == at->col_axis) {
            p = host_element(h, p, at->col, step[i]);
            *stride = step[i];
        } else if (axis[i] == at->row_axis) {
            p = host_element(h, p, at->row, step[i]);
        } else {
            BUG("%s: a tile on axis %d is read on axes %d, %d", h->k->name, axis[i], at->row_axis,
                at->col_axis);
        }
    }
    return p;
}

Val host_load(At *at, const Tile *t, int shift) {
    int64_t stride;
    Val p = locate(at, t, shift, &stride);
    if (stride == 0)
        return cg_load(at->h->cg, at->h->cg->f32, p, 4);
    if (stride == 4)
        return cg_load(at->h->cg, at->h->vec, p, 4);
    return gather(at->h, p, stride);
}

void host_store(At *at, const Tile *t, int shift, Val x) {
    int64_t stride;
    Val p = locate(at, t, shift, &stride);
    CHECK(stride == 0 || stride == 4);
    cg_store(at->h->cg, stride ? host_splat(at->h, x) : x, p, 4);
}

/* tensors -------------------------------------------------------------------------------------- */

/* 16-bit elements travel as integers: masked access to them is then one instruction. */
static Ty memory_type(Host *h, Elem e) {
    return e == ELEM_bf16 || e == ELEM_f16 ? h->cg->i16 : cg_elem_type(h->cg, e);
}

static Val load_elements(Host *h, Val p, Elem e, bool vector, Val mask) {
    Cg *cg = h->cg;
    Ty t = memory_type(h, e), want = cg_elem_type(cg, e);
    if (!vector)
        return cg_to_f32(cg, LLVMBuildBitCast(cg->b, cg_load(cg, t, p, elem_size(e)), want, ""));
    Val x = host_load_masked(h, LLVMVectorType(t, (unsigned)h->lanes), p, mask);
    return cg_to_f32(cg, LLVMBuildBitCast(cg->b, x, LLVMVectorType(want, (unsigned)h->lanes), ""));
}

static Val in_row(const At *at, Val p, Elem e) {
    return at->col_axis >= 0 ? host_element(at->h, p, at->col, elem_size(e)) : p;
}

Val host_row_load(const At *at, Val p, Elem e) {
    return load_elements(at->h, in_row(at, p, e), e, at->col_axis >= 0, at->mask);
}

void host_row_store(const At *at, Val p, Elem e, Val x) {
    Host *h = at->h;
    Cg *cg = h->cg;
    Ty t = memory_type(h, e);
    bool vector = at->col_axis >= 0;
    p = in_row(at, p, e);
    x = cg_from_f32(cg, vector ? host_splat(h, x) : x, e);
    if (vector)
        host_store_masked(h, LLVMBuildBitCast(cg->b, x, LLVMVectorType(t, (unsigned)h->lanes), ""), p,
                          at->mask);
    else
        cg_store(cg, LLVMBuildBitCast(cg->b, x, t, ""), p, elem_size(e));
}

/* Input or parameter at this head and token; element (row of its first axis, column). */
static Val load_input(At *at, const Inst *i) {
    Host *h = at->h;
    Cg *cg = h->cg;
    const Port *port = &h->k->in.at[i->index];
    Elem e = port->is_param ? ELEM_f32 : port->elem;
    int size = elem_size(e);
    Val p = h->in_base[i->index];
    if (!port->is_param) {
        CHECK(at->row_axis == AXIS_C);
        Val token = cg_add(cg, h->token0, at->row);
        p = cg_gep8(cg, p, cg_mul(cg, token, h->in_stride[i->index]));
    }
    Shape features = shape_features(i->shape);
    int64_t row = i->row >= 0 ? i->row * shape_elements(h->k, features) : 0;
    p = cg_gep8(cg, p, cg_int64(cg, row * size));
    bool vector = false;
    for (int j = 0; j < features.rank; j++) {
        CHECK(features.rank == 1);
        vector = features.axis[j] == at->col_axis;
        CHECK(vector || features.axis[j] == at->row_axis);
        p = host_element(h, p, vector ? at->col : at->row, size);
    }
    return load_elements(h, p, e, vector, vector ? at->mask : NULL);
}

/* values --------------------------------------------------------------------------------------- */

static Val compute_pure(At *at, const Inst *i) {
    Host *h = at->h;
    Val a = host_value(at, i->arg[0]), b = i->nargs > 1 ? host_value(at, i->arg[1]) : NULL;
    if (b && LLVMTypeOf(a) != LLVMTypeOf(b)) {
        a = host_splat(h, a);
        b = host_splat(h, b);
    }
    return cg_pointwise(h->cg, i->op, a, b);
}

/* The place is a vector of columns of the axis, whose pairs lie in it whole. */
static Val compute_turn(At *at, const Inst *i) {
    Host *h = at->h;
    CHECK(at->col_axis == i->axis);
    Val lane[64], x = host_splat(h, host_value(at, i->arg[0]));
    for (int j = 0; j < h->lanes; j++)
        lane[j] = cg_int(h->cg, j ^ 1);
    Val from = LLVMConstVector(lane, (unsigned)h->lanes);
    Val turned = LLVMBuildShuffleVector(h->cg->b, x, LLVMGetPoison(h->vec), from, "");
    for (int j = 0; j < h->lanes; j++) /* which lanes change sign */
        lane[j] = LLVMConstInt(h->cg->i1, j % 2 == 0, false);
    Val negative = LLVMConstVector(lane, (unsigned)h->lanes);
    return cg_select(h->cg, negative, cg_pointwise(h->cg, OP_neg, turned, NULL), turned);
}

/* With one slot the rows of a weave are the tokens', and those of a slot are the lattice's. */
static int rows_of_operand(const Inst *i, int axis) {
    return i->op == OP_weave ? AXIS_C : i->op == OP_slot ? i->axis : axis;
}

/* The value by its operation, whether or not it has a tile. */
static Val compute(At *at, int v) {
    const Inst *i = inst_at(at->h->k, v);
    switch ((int)i->op) {
    case OP_const: return cg_float(at->h->cg, i->num);
    case OP_in: return load_input(at, i);
    case OP_prev: return host_load(at, &at->h->tile[i->arg[0]], -1);
    case OP_turn: return compute_turn(at, i);
    case OP_weave:
    case OP_slot: {
        int axis = at->row_axis;
        CHECK(at->h->slots == 1 && axis == (i->op == OP_weave ? i->axis : AXIS_C));
        at->row_axis = rows_of_operand(i, axis);
        Val x = host_value(at, i->arg[0]);
        at->row_axis = axis;
        return x;
    }
    default: return compute_pure(at, i);
    }
}

Val host_value(At *at, int v) {
    if (at->memo[v])
        return at->memo[v];
    const Tile *t = &at->h->tile[v];
    CHECK(!t->there || t->done);
    return at->memo[v] = t->there ? host_load(at, t, 0) : compute(at, v);
}

Val host_vector(At *at, int v) {
    return host_splat(at->h, host_value(at, v));
}

void host_need(Host *h, int v) {
    Tile *t = &h->tile[v];
    if (t->there) {
        if (!t->done)
            host_compute(h, v);
        t->done = true;
        return;
    }
    const Inst *i = inst_at(h->k, v);
    for (int j = 0; j < i->nargs; j++)
        if (i->arg[j] >= 0)
            host_need(h, i->arg[j]);
}

/* Whether v changes from column to column of axis `axis`. */
static bool varies(const Host *h, int v, int axis) {
    return shape_has(inst_at(h->k, v)->shape, axis);
}

void host_hoist(At *at, int v, int col_axis) {
    const Inst *i = inst_at(at->h->k, v);
    if (!varies(at->h, v, col_axis)) {
        host_value(at, v);
        return;
    }
    if (at->h->tile[v].there || i->op == OP_prev || at->memo[v])
        return;
    int axis = at->row_axis;
    at->row_axis = rows_of_operand(i, axis);
    for (int j = 0; j < i->nargs; j++)
        host_hoist(at, i->arg[j], col_axis);
    at->row_axis = axis;
}

/* loops ---------------------------------------------------------------------------------------- */

void host_columns(const At *at, int axis, bool exact, HostBody *body, void *user) {
    Host *h = at->h;
    Cg *cg = h->cg;
    Val zero = cg_int64(cg, 0);
    if (axis < 0) {
        At one = *at;
        body(&one, user);
        return;
    }
    if (axis <= AXIS_U) { /* as many as are in use now */
        Loop l = cg_for(cg, zero, h->count[axis], h->lanes, false);
        At c = host_at_col(at, axis, l.i, NULL);
        body(&c, user);
        cg_end_for(cg, &l);
        return;
    }
    int64_t size = axis_size(h, axis), rest = exact ? size % h->lanes : 0;
    int64_t whole = exact ? size - rest : host_round(size, h->lanes);
    if (whole) {
        Loop l = cg_for(cg, zero, cg_int64(cg, whole), h->lanes, false);
        At c = host_at_col(at, axis, l.i, NULL);
        body(&c, user);
        cg_end_for(cg, &l);
    }
    if (rest) {
        Val lane[64];
        for (int i = 0; i < h->lanes; i++)
            lane[i] = LLVMConstInt(cg->i1, i < rest, false);
        At c =
            host_at_col(at, axis, cg_int64(cg, whole), LLVMConstVector(lane, (unsigned)h->lanes));
        body(&c, user);
    }
}

/* Whether evaluating v here reads tensors of the caller along `axis`. */
static bool reads_tensors(const Host *h, int v, int axis) {
    const Inst *i = inst_at(h->k, v);
    if (i->op == OP_in)
        return varies(h, v, axis);
    for (int j = 0; j < i->nargs; j++)
        if (i->arg[j] >= 0 && !h->tile[i->arg[j]].there && i->op != OP_prev &&
            reads_tensors(h, i->arg[j], axis))
            return true;
    return false;
}

typedef struct Fill {
    const Tile *tile;
    int v;
    Val row, previous;
    bool angle; /* of a running sum: known up to whole turns */
} Fill;

static void store_column(At *at, void *user) {
    Fill *f = user;
    At to = *at;
    Val x = at->h->tile[f->v].there && &at->h->tile[f->v] == f->tile ? compute(at, f->v)
                                                                     : host_value(at, f->v);
    to.row_axis = f->tile->row;
    to.row = f->row;
    host_store(&to, f->tile, 0, x);
}

/* One row of `tile` from value v at `at`; the row goes to number `row`. */
static void store_row(At *at, const Tile *tile, int v, Val row) {
    Host *h = at->h;
    Fill f = {.tile = tile, .v = v, .row = row};
    bool own = &h->tile[v] == tile;
    if (tile->col < 0) {
        store_column(at, &f);
        return;
    }
    const Inst *i = inst_at(h->k, v);
    if (!own)
        host_hoist(at, v, tile->col);
    int axis = at->row_axis;
    if (own)
        at->row_axis = rows_of_operand(i, axis);
    for (int j = 0; own && i->op != OP_prev && j < i->nargs; j++)
        host_hoist(at, i->arg[j], tile->col);
    at->row_axis = axis;
    bool exact =
        own ? reads_tensors(h, v, tile->col) : !h->tile[v].there && reads_tensors(h, v, tile->col);
    host_columns(at, tile->col, exact, store_column, &f);
}

void host_fill_tile(Host *h, const Tile *t, int v) {
    Cg *cg = h->cg;
    if (t->row < 0 || (h->k->level == LEVEL_recurrence && t->row == AXIS_C)) {
        At at = host_at_row(h, AXIS_C, cg_int64(cg, 0));
        store_row(&at, t, v, cg_int64(cg, 0));
        return;
    }
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[t->row], 1, false);
    At at = host_at_row(h, t->row, l.i);
    store_row(&at, t, v, l.i);
    cg_end_for(cg, &l);
}

/* Row t*slots+s of the tile is operand s at token t. */
static void fill_weave(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst_at(h->k, v);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_C], 1, false);
    for (int s = 0; s < i->nargs; s++) {
        At at = host_at_row(h, AXIS_C, l.i);
        Val row = cg_add(cg, cg_mul(cg, l.i, cg_int64(cg, h->slots)), cg_int64(cg, s));
        store_row(&at, &h->tile[v], i->arg[s], row);
    }
    cg_end_for(cg, &l);
}

/* sums ----------------------------------------------------------------------------------------- */

typedef struct Sum {
    int v;
    Var total;
} Sum;

static void add_column(At *at, void *user) {
    Sum *s = user;
    Cg *cg = at->h->cg;
    Val x = host_vector(at, s->v);
    if (at->mask)
        x = cg_select(cg, at->mask, x, host_zero(at->h));
    cg_set(cg, s->total, cg_fadd(cg, cg_get(cg, s->total), x));
}

Val host_reduce(Host *h, Val x) {
    Val arg[2] = {cg_float(h->cg, -0.0), x};
    Val y = cg_intrinsic(h->cg, "llvm.vector.reduce.fadd", &h->vec, 1, arg, 2);
    LLVMSetFastMathFlags(y, LLVMFastMathAllowReassoc); /* a tree instead of a chain */
    return y;
}

/* Sum along the rows of the operand, columns of the tile side by side. */
static void sum_rows(At *at, void *user) {
    Host *h = at->h;
    Cg *cg = h->cg;
    int v = *(int *)user;
    const Inst *i = inst_at(h->k, v);
    bool vector = at->col_axis >= 0;
    Var total = cg_var(cg, vector ? h->vec : cg->f32, vector ? host_zero(h) : cg_float(cg, 0));
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[i->axis], 1, false);
    At row = host_at_row(h, i->axis, l.i);
    if (vector)
        row = host_at_col(&row, at->col_axis, at->col, at->mask);
    Val x = host_value(&row, i->arg[0]);
    cg_set(cg, total, cg_fadd(cg, cg_get(cg, total), vector ? host_splat(h, x) : x));
    cg_end_for(cg, &l);
    host_store(at, &h->tile[v], 0, cg_get(cg, total));
}

static void fill_sum(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst_at(h->k, v);
    const Tile *t = &h->tile[v];
    /* The axis that stays: a lattice axis or K goes row by row, its sums over vectors of columns. */
    int stays = t->row >= 0 ? t->row : t->col;
    if (i->axis <= AXIS_U || (stays == AXIS_V && i->axis == AXIS_K)) {
        At none = host_at_row(h, AXIS_none, NULL);
        if (t->col >= 0)
            host_columns(&none, t->col, reads_tensors(h, i->arg[0], t->col), sum_rows, &v);
        else
            sum_rows(&none, &v);
        return;
    }
    bool rows = stays >= 0 && h->k->level != LEVEL_recurrence;
    Loop l = {0};
    if (rows)
        l = cg_for(cg, cg_int64(cg, 0), h->count[stays], 1, false);
    At at = host_at_row(h, rows ? stays : AXIS_C, rows ? l.i : cg_int64(cg, 0));
    Sum s = {i->arg[0], cg_var(cg, h->vec, host_zero(h))};
    host_hoist(&at, i->arg[0], i->axis);
    host_columns(&at, i->axis, true, add_column, &s);
    host_store(&at, t, 0, host_reduce(h, cg_get(cg, s.total)));
    if (rows)
        cg_end_for(cg, &l);
}

static void add_previous(At *at, void *user) {
    const Fill *f = user;
    Val before = host_load(at, f->tile, -1), x = host_value(at, f->v);
    if (LLVMTypeOf(before) != LLVMTypeOf(x))
        x = host_splat(at->h, x);
    Val sum = cg_fadd(at->h->cg, before, x);
    host_store(at, f->tile, 0, f->angle ? cg_within_turn(at->h->cg, sum) : sum);
}

static void fill_cumsum(Host *h, int v) {
    Cg *cg = h->cg;
    int a = inst_at(h->k, v)->arg[0];
    Fill f = {.tile = &h->tile[v], .v = a, .angle = value_is_angle(h->k, v)};
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_C], 1, false);
    At at = host_at_row(h, AXIS_C, l.i);
    if (f.tile->col < 0) {
        add_previous(&at, &f);
    } else {
        host_hoist(&at, a, f.tile->col);
        host_columns(&at, f.tile->col, !h->tile[a].there && reads_tensors(h, a, f.tile->col),
                     add_previous, &f);
    }
    cg_end_for(cg, &l);
}

/* Row t of the tile is row t*slots+place of the operand. */
static void fill_slot(Host *h, int v) {
    Cg *cg = h->cg;
    const Inst *i = inst_at(h->k, v);
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_C], 1, false);
    Val row = cg_add(cg, cg_mul(cg, l.i, cg_int64(cg, h->slots)), cg_int64(cg, i->place));
    At at = host_at_row(h, i->axis, row);
    store_row(&at, &h->tile[v], i->arg[0], l.i);
    cg_end_for(cg, &l);
}

/* Columns of after and cumsum_back, from the last token to the first; `ahead` is of the chunk behind
 * this one, then of this one. */
static void from_behind(At *at, void *user) {
    Host *h = at->h;
    Cg *cg = h->cg;
    int v = *(int *)user;
    const Inst *i = inst_at(h->k, v);
    Var next = cg_var(cg, at->col_axis >= 0 ? h->vec : cg->f32, host_load(at, &h->ahead[v], 0));
    Loop l = cg_for(cg, cg_int64(cg, 0), h->count[AXIS_C], 1, false);
    Val last = cg_sub(cg, h->count[AXIS_C], cg_int64(cg, 1));
    At row = host_at_row(h, AXIS_C, cg_sub(cg, last, l.i));
    if (at->col_axis >= 0)
        row = host_at_col(&row, at->col_axis, at->col, at->mask);
    Val x = host_value(&row, i->arg[0]), before = cg_get(cg, next);
    x = at->col_axis >= 0 ? host_splat(h, x) : x;
    if (i->op == OP_cumsum_back)
        x = before = cg_fadd(cg, before, x);
    host_store(&row, &h->tile[v], 0, before);
    cg_set(cg, next, x);
    cg_end_for(cg, &l);
    host_store(at, &h->ahead[v], 0, cg_get(cg, next));
}

static void fill_from_behind(Host *h, int v) {
    At none = host_at_row(h, AXIS_none, NULL);
    int col = h->tile[v].col;
    if (col >= 0)
        host_columns(&none, col, reads_tensors(h, inst_at(h->k, v)->arg[0], col), from_behind, &v);
    else
        from_behind(&none, &v);
}

void host_fill(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    for (int j = 0; j < i->nargs; j++)
        host_need(h, i->arg[j]);
    if (i->op == OP_sum)
        fill_sum(h, v);
    else if (i->op == OP_cumsum)
        fill_cumsum(h, v);
    else if (i->op == OP_weave)
        fill_weave(h, v);
    else if (i->op == OP_slot)
        fill_slot(h, v);
    else if (i->op == OP_after || i->op == OP_cumsum_back)
        fill_from_behind(h, v);
    else
        host_fill_tile(h, &h->tile[v], v);
}
