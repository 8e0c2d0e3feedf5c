/* Which values get a tile, and where.
 *
 * Results of matrix operations, sums and running sums have tiles, and so have the operands of
 * matrix operations. What is elementwise in between is recomputed where it is used, unless it is
 * dear and used twice. A contraction whose only user is elementwise becomes part of that user's
 * computation: X = c - E S is one pass, with c - (...) applied to the accumulators.
 */
#include "codegen/host/host.h"

enum { MAX_TERMS = 64 }; /* contractions that fusion looks at; a kernel has two or three an out */

static bool elementwise(const Inst *i) {
    return op_info[i->op].class == CLASS_PURE;
}

int64_t host_capacity(const Host *h, int axis) {
    if (axis > AXIS_U)
        return axis_size(h, axis);
    return h->k->level == LEVEL_recurrence ? 1 : axis_size(h, axis);
}

/* An odd number of cache lines from row to row, so that a column does not fall on one cache set. */
static int64_t leading(const Host *h, int64_t cols) {
    int64_t ld = host_round(cols, h->lanes);
    return ld >= 64 && ld / 16 % 2 == 0 ? host_round(ld, 16) + 16 : ld;
}

void host_place(Host *h, Tile *t, Shape shape) {
    t->there = true;
    t->row = t->col = AXIS_none;
    t->anchor = -1;
    if (shape.rank == 2)
        t->row = shape.axis[0], t->col = shape.axis[1];
    else if (shape.rank == 1 && shape.axis[0] <= AXIS_U)
        t->row = shape.axis[0];
    else if (shape.rank == 1)
        t->col = shape.axis[0];
    if (t->history && t->row < 0)
        t->row = AXIS_C;
    t->ld = t->col >= 0 ? leading(h, host_capacity(h, t->col)) : 1;
    int64_t rows = t->row >= 0 ? host_round(host_capacity(h, t->row), BLOCK) + BLOCK : 1;
    if (h->k->level == LEVEL_recurrence)
        rows = t->history ? 2 : t->row >= 0 ? host_capacity(h, t->row) : 1;
    t->offset = host_alloc(h, (rows + t->history) * t->ld + h->lanes);
    if (t->row >= 0 && t->col >= 0 && t->col <= AXIS_U)
        VEC_PUSH(h->cg->arena, &h->clear, ((Clear){t->offset, 4 * rows * t->ld}));
}

/* which values --------------------------------------------------------------------------------- */

/* Roughly the instructions of evaluating v at one element, down to values with tiles. */
static int64_t cost(const Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    if (h->tile[v].there || i->op == OP_const)
        return 1;
    int64_t sum = i->op == OP_in ? 2 : 1;
    switch ((int)i->op) {
    case OP_div:
    case OP_sqrt:
    case OP_rsqrt: sum = 6; break;
    case OP_exp:
    case OP_log:
    case OP_sigmoid:
    case OP_softplus:
    case OP_tanh:
    case OP_silu:
    case OP_cos:
    case OP_sin:
    case OP_pow: sum = 20; break;
    default: break;
    }
    for (int j = 0; j < i->nargs; j++)
        sum += cost(h, i->arg[j]);
    return sum < 1000 ? sum : 1000;
}

/* Whether the elementwise expression v has a contraction in it; known of its operands. */
static bool find_contraction(const Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    bool found = i->op == OP_contract;
    for (int j = 0; elementwise(i) && j < i->nargs; j++)
        found = found || h->tile[i->arg[j]].contracts;
    return found;
}

/* Whether every leaf of the elementwise expression v is a tile or a number. */
static bool from_tiles(const Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    if (h->tile[v].there || i->op == OP_const)
        return true;
    for (int j = 0; elementwise(i) && j < i->nargs; j++)
        if (!from_tiles(h, i->arg[j]))
            return false;
    return elementwise(i);
}

static bool on_two_lattice_axes(const Host *h, int v) {
    return shape_lattice(inst_at(h->k, v)->shape).rank == 2;
}

static void want(Host *h, int v) {
    if (v >= 0 && inst_at(h->k, v)->op != OP_const)
        h->tile[v].there = true;
}

static bool always_tile(const Host *h, const Inst *i) {
    if (i->op == OP_weave) /* with one slot, rows can be read where they are */
        return h->slots > 1 || i->shape.rank == 1;
    if (i->op == OP_slot)
        return h->slots > 1;
    if (i->op == OP_sum || i->op == OP_turn || i->op == OP_cumsum || i->op == OP_cumsum_back ||
        i->op == OP_after || i->op == OP_read || i->op == OP_reread || i->op == OP_coread ||
        i->op == OP_decay_a)
        return true;
    return op_info[i->op].class == CLASS_CHUNK && op_gives_value(i->op);
}

/* Tiles that an instruction's operands need. */
static void want_operands(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    OpClass class = op_info[i->op].class;
    for (int j = 0; j < i->nargs; j++) {
        int a = i->arg[j];
        if (a < 0)
            continue;
        if (i->op == OP_prev)
            h->tile[a].there = h->tile[a].history = true;
        else if (i->op == OP_after)
            h->tile[a].there = true;
        else if (i->op == OP_contract || i->op == OP_rename)
            h->tile[a].there = true;
        else if ((class == CLASS_CHUNK && i->op != OP_weave) || class == CLASS_STATE)
            want(h, i->op == OP_out && !h->tile[a].contracts ? -1 : a);
        else if (!elementwise(i) && h->tile[a].contracts)
            want(h, a);
    }
}

static void choose_tiles(Host *h) {
    const Kernel *k = h->k;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        h->tile[v].anchor = -1;
        h->tile[v].contracts = find_contraction(h, v);
        h->tile[v].constant = op_gives_value(i->op) && value_is_constant(k, v);
        if (always_tile(h, i))
            h->tile[v].there = true;
        if (i->op == OP_cumsum)
            h->tile[v].history = true;
        want_operands(h, v);
    }
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        h->tile[v].constant &= !h->tile[v].history;
        for (int j = 0; j < i->nargs; j++)
            h->tile[v].constant &= i->arg[j] < 0 || h->tile[i->arg[j]].constant;
    }
    for (int v = 0; v < k->inst.count; v++) {
        Tile *t = &h->tile[v];
        if (!elementwise(inst_at(k, v)) || t->there)
            continue;
        bool dear = cost(h, v) >= 10 && (h->uses[v] > 1 || t->constant);
        t->there = dear || (h->uses[v] > 1 && h->tile[v].contracts);
    }
}

/* One operand of contraction v has the rows, the other the columns of the result. */
bool host_is_product(const Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    Shape a = inst_at(h->k, i->arg[0])->shape, b = inst_at(h->k, i->arg[1])->shape, out = i->shape;
    if (out.rank == 1)
        return out.axis[0] > AXIS_U && shape_has(a, out.axis[0]) != shape_has(b, out.axis[0]);
    bool straight = shape_has(a, out.axis[0]) && !shape_has(a, out.axis[1]);
    bool swapped = shape_has(b, out.axis[0]) && !shape_has(b, out.axis[1]);
    return out.rank == 2 && straight != swapped &&
           (straight ? shape_has(b, out.axis[1]) && !shape_has(b, out.axis[0])
                     : shape_has(a, out.axis[1]) && !shape_has(a, out.axis[0]));
}

/* contractions as parts of elementwise values -------------------------------------------------- */

/* Contractions that may join `root`'s computation: used once, same axes, elementwise in between. */
static int candidates(const Host *h, int root, int v, int *found) {
    const Inst *i = inst_at(h->k, v);
    bool single = v == root || (h->uses[v] == 1 && !(elementwise(i) && h->tile[v].there));
    if (!single || !shape_equal(i->shape, inst_at(h->k, root)->shape))
        return 0;
    if (i->op == OP_contract) {
        found[0] = v;
        return host_is_product(h, v);
    }
    int n = 0;
    for (int j = 0; elementwise(i) && j < i->nargs; j++)
        n += candidates(h, root, i->arg[j], found + n);
    return n;
}

static bool is_sum(const Inst *i) {
    return i->op == OP_add || i->op == OP_sub || i->op == OP_neg;
}

/* Whether v is a candidate or a sum whose terms are; then all of them are in `term`. */
static int sum_terms(const Host *h, int root, int v, int *term) {
    const Inst *i = inst_at(h->k, v);
    int found[MAX_TERMS];
    if (i->op == OP_contract)
        return candidates(h, root, v, term);
    int n = 0;
    for (int j = 0; is_sum(i) && (v == root || !h->tile[v].there) && j < i->nargs; j++)
        n += candidates(h, root, i->arg[j], found) ? sum_terms(h, root, i->arg[j], term + n) : 0;
    return n;
}

/* The highest sum in root's expression that contractions are terms of, looking along the first
 * operand that has any. */
static int fused_terms(const Host *h, int root, int *term) {
    int v = root, found[MAX_TERMS];
    while (elementwise(inst_at(h->k, v))) {
        const Inst *i = inst_at(h->k, v);
        int n = sum_terms(h, root, v, term);
        if (n)
            return n;
        int next = -1;
        for (int j = 0; j < i->nargs && next < 0; j++)
            if (candidates(h, root, i->arg[j], found))
                next = i->arg[j];
        if (next < 0)
            return 0;
        v = next;
    }
    return sum_terms(h, root, v, term);
}

/* Subexpressions of a fused value without contractions: those that read tensors become tiles, as
 * micro-kernels run past the last row. */
static void settle_rest(Host *h, int root, int v) {
    const Inst *i = inst_at(h->k, v);
    if (h->tile[v].anchor == root || i->op == OP_const)
        return;
    if (v != root && !h->tile[v].contracts) {
        if (!from_tiles(h, v))
            want(h, v);
        return;
    }
    if (v != root && h->tile[v].there)
        return;
    for (int j = 0; j < i->nargs; j++)
        settle_rest(h, root, i->arg[j]);
}

static void fuse_contractions(Host *h) {
    int term[MAX_TERMS], contractions = 0;
    for (int v = 0; v < h->k->inst.count; v++)
        contractions += inst_at(h->k, v)->op == OP_contract;
    if (contractions > MAX_TERMS)
        return;
    for (int root = h->k->inst.count - 1; root >= 0; root--) {
        const Inst *i = inst_at(h->k, root);
        if (!elementwise(i) || !h->tile[root].there || !h->tile[root].contracts)
            continue;
        int n = fused_terms(h, root, term);
        for (int j = 0; j < n; j++) {
            h->tile[term[j]].anchor = root;
            h->tile[term[j]].there = false;
        }
        if (n)
            settle_rest(h, root, root);
    }
}

/* places --------------------------------------------------------------------------------------- */

/* An elementwise value on two lattice axes lies as its operands do, and is zero where a factor is:
 * column < mul * row + add. */
static void place_lattice(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    Tile *t = &h->tile[v];
    bool first = true;
    for (int j = 0; j < i->nargs; j++) {
        const Tile *a = &h->tile[i->arg[j]];
        if (!on_two_lattice_axes(h, i->arg[j]))
            continue;
        if (first)
            t->row = a->row, t->col = a->col;
        first = false;
        if (a->lower && a->row == t->row && (i->op == OP_neg || i->op == OP_mul))
            t->lower = true, t->mul = a->mul, t->add = a->add;
    }
}

static void place_weave(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    Tile *t = &h->tile[v];
    for (int s = 0; s < i->nargs; s++) {
        const Tile *a = &h->tile[i->arg[s]];
        if (!a->lower || a->mul != h->slots) {
            t->lower = false;
            return;
        }
        /* Row t*slots+s: column < slots * t + add = row - s + add. */
        t->add = s == 0 || a->add - s > t->add ? a->add - s : t->add;
        t->lower = true, t->mul = 1;
    }
}

/* The zeros of a product of matrices that both have some. */
static void place_product(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    Tile *t = &h->tile[v];
    for (int j = 0; j < 2; j++) {
        const Tile *a = &h->tile[i->arg[j]], *b = &h->tile[i->arg[1 - j]];
        if (a->lower && b->lower && b->mul == 1 && a->row == t->row && a->col == i->axis &&
            b->row == i->axis && b->col == t->col) {
            t->lower = true, t->mul = a->mul, t->add = a->add + b->add - 1;
            return;
        }
    }
}

static void place_value(Host *h, int v) {
    const Inst *i = inst_at(h->k, v);
    Tile *t = &h->tile[v];
    const Tile *a = i->nargs > 0 && i->arg[0] >= 0 ? &h->tile[i->arg[0]] : NULL;
    if (i->op == OP_rename) {
        bool constant = t->constant;
        *t = *a;
        t->constant = constant, t->done = false, t->history = false, t->anchor = -1;
        t->offset += a->history ? 4 * a->ld : 0;
        t->row = a->row == i->index ? i->axis : a->row;
        t->col = a->col == i->index ? i->axis : a->col;
        return;
    }
    if (i->op == OP_state || i->op == OP_costate) {
        *t = i->op == OP_state ? h->state : h->costate;
        return;
    }
    int anchor = t->anchor;
    if (t->there)
        host_place(h, t, i->shape);
    t->anchor = anchor;
    if (i->op == OP_solve)
        t->row = AXIS_U, t->col = AXIS_R;
    if (i->op == OP_scores) {
        t->lower = true;
        t->mul = t->row == AXIS_C ? h->slots : 1;
        t->add = t->row == AXIS_C ? i->place : 0;
    } else if (i->op == OP_solve) {
        t->lower = true, t->mul = 1, t->add = 1;
    } else if (i->op == OP_weave && on_two_lattice_axes(h, v)) {
        place_weave(h, v);
    } else if (i->op == OP_contract && t->there && on_two_lattice_axes(h, v)) {
        place_product(h, v);
    } else if (elementwise(i) && on_two_lattice_axes(h, v)) {
        place_lattice(h, v);
    }
}

/* The next state takes the place of the old one when nothing but its own elements needs that. */
static void place_next(Host *h) {
    const Kernel *k = h->k;
    for (int v = 0; v < k->inst.count; v++) {
        if (inst_at(k, v)->op != OP_next)
            continue;
        int x = inst_at(k, v)->arg[0];
        if (h->uses[x] != 1 || !elementwise(inst_at(k, x)))
            continue;
        bool whole = false;
        for (int u = 0; u < k->inst.count; u++)
            for (int j = 0; h->tile[u].anchor == x && j < 2; j++)
                whole |= inst_at(k, inst_at(k, u)->arg[j])->op == OP_state;
        if (!whole && h->tile[x].row == h->state.row && h->tile[x].col == h->state.col)
            h->tile[x].offset = h->state.offset, h->tile[x].ld = h->state.ld;
    }
}

/* Places beside the values': sums of params' gradients, and rows that come from the chunk behind. */
static void place_gradient(Host *h) {
    const Kernel *k = h->k;
    h->total = NEW_ARRAY(h->cg->arena, Tile, k->inst.count);
    h->ahead = NEW_ARRAY(h->cg->arena, Tile, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_out && k->out.at[i->index].is_param) {
            Shape s = k->out.at[i->index].shape;
            host_place(h, &h->total[v],
                       s.rank && s.axis[0] >= AXIS_user ? shape_without(s, s.axis[0]) : s);
        }
        else if (i->op == OP_after || i->op == OP_cumsum_back)
            host_place(h, &h->ahead[v], shape_features(i->shape));
    }
}

bool host_plan(Host *h, const char **why) {
    const Kernel *k = h->k;
    h->tile = NEW_ARRAY(h->cg->arena, Tile, k->inst.count);
    h->uses = NEW_ARRAY(h->cg->arena, int, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->shape.rank > 2) {
            *why = "a value with three axes (a matrix for every token) has no host code";
            return false;
        }
        if (i->op == OP_sum && on_two_lattice_axes(h, i->arg[0])) {
            *why = "a sum over a matrix of the lattice has no host code";
            return false;
        }
        for (int j = 0; j < i->nargs; j++)
            if (i->arg[j] >= 0)
                h->uses[i->arg[j]]++;
    }
    const Shape state = shape_of(2, (int[]){AXIS_K, AXIS_V});
    host_place(h, &h->state, state);
    h->state.done = true;
    host_plan_turned(h);
    if (h->gradient) {
        host_place(h, &h->costate, state);
        h->costate.done = true;
    }
    choose_tiles(h);
    fuse_contractions(h);
    for (int v = 0; v < k->inst.count; v++)
        place_value(h, v);
    place_next(h);
    place_gradient(h);
    h->segment = k->level == LEVEL_recurrence ? 1 : (int)axis_size(h, AXIS_C);
    if (h->gradient && k->level == LEVEL_recurrence)
        host_plan_segments(h);
    return true;
}
