/* Phase 2 of the grad kernel: the spec's own expressions backwards, token by token.
 *
 * Every gradient is an elementwise value with row sums, made on demand (value.c) of the inputs and of
 * cotangents that stand in memory, all of them on the lattice:
 *     rows x_f, keys, decays    in the block's scratch, from the pull phase
 *     dX                        f16 in units of V columns, in the chunk's record
 *     what the outs read        f32, in the scratch, from grad_read.c
 *     sums over a row           f32, in the record, of keys, rows and decays (norms)
 * What a token needs of memory is read first, so that it is under way at once.
 */
#include "codegen/nvptx/grad_token.h"

#include <stdio.h>

int tokens_run_axis(Shape s) {
    return shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
}

int tokens_count(const Tokens *x, Shape s) {
    int axis = tokens_run_axis(s);
    return axis == AXIS_K ? x->n_k : axis == AXIS_V ? x->n_v : 1;
}

/* cotangents in memory ----------------------------------------------------------------------------- */

/* Number of the family that is given at v, or -1. */
static int family_of(const Gradient *g, int v) {
    for (int f = 0; f < g->s.families; f++)
        if (g->family[f].root == v)
            return f;
    return -1;
}

/* Number of the family whose read is given at v, or -1. */
static int read_of(const Gradient *g, int v) {
    for (int f = 0; f < g->s.families; f++)
        if (g->family[f].read == v)
            return f;
    return -1;
}

/* Number of the record's sum that v is, or -1. */
static int sum_of(const Gradient *g, int v) {
    for (int i = 0; i < g->s.sums; i++)
        if (g->s.sum[i] == v)
            return i;
    return -1;
}

/* Whether v is among what the chunk's kernels leave for the tokens phase. */
bool tokens_in_memory(const Tokens *x, int v) {
    const Gradient *g = x->g->g;
    if (x->late)
        return false;
    return v == g->dX || v == g->p_root || v == g->a_root || family_of(g, v) >= 0 ||
           read_of(g, v) >= 0 || sum_of(g, v) >= 0;
}

/* The lattice row of this token's update `place`. */
static Val lattice_row(Tokens *x, int place) {
    Cg *cg = x->g->cg;
    int slots = x->g->g->s.slots;
    return slots == 1 ? x->t : cg_add(cg, cg_mul(cg, x->t, cg_int(cg, slots)), cg_int(cg, place));
}

/* This lane's first element of a padded row along K or V; lanes behind the last one take the first. */
static Val run_base(const Tokens *x, int axis) {
    Cg *cg = x->g->cg;
    int n = axis == AXIS_K ? x->n_k : x->n_v;
    int padded = axis == AXIS_K ? x->g->g->s.kp : x->g->g->s.vp;
    Val base = axis == AXIS_K ? x->at.base_k : x->at.base_v;
    if (x->lanes * n <= padded)
        return base;
    Val inside = cg_cmp(cg, LLVMIntSLT, base, cg_int(cg, padded));
    return cg_select(cg, inside, base, cg_int(cg, 0));
}

static void load_units(Tokens *x) {
    Cg *cg = x->g->cg;
    Val p = cg_gep8(cg, x->g->record, cg_int64(cg, x->g->g->s.ws_unit_dx));
    p = cg_gep8(cg, p, cg_zext64(cg, cg_shl(cg, run_base(x, AXIS_V), 2)));
    int group = grad_group(x->n_v, x->n_v, ELEM_f32);
    for (int j = 0; j < x->n_v; j += group)
        grad_load(cg, ELEM_f32, cg_gep8(cg, p, cg_int64(cg, 4 * j)), group, x->unit_dx + j);
}

static Elem row_elem(const Tokens *x, int v) {
    const Gradient *g = x->g->g;
    bool wide = read_of(g, v) >= 0 || tokens_run_axis(inst_at(x->g->k, v)->shape) < 0;
    return v == g->dX ? ELEM_f16 : wide ? ELEM_f32 : x->g->scratch_elem;
}

int tokens_row_bytes(const Tokens *x, int v) {
    return tokens_count(x, inst_at(x->g->k, v)->shape) * elem_size(row_elem(x, v));
}

/* This lane's columns of row `row` of dX. */
static Val dx_pointer(Tokens *x, Val row) {
    Cg *cg = x->g->cg;
    const System *s = &x->g->g->s;
    Val v = run_base(x, AXIS_V), eight = cg_int(cg, 7);
    Val place = cg_shl(cg, nv_place(cg, s->rows, s->vp, row, cg_shr(cg, v, 3)), 4);
    if (x->n_v < 8)
        place = cg_add(cg, place, cg_shl(cg, cg_and(cg, v, eight), 1));
    Val p = cg_gep8(cg, x->g->record, cg_int64(cg, s->ws_dx));
    return cg_gep8(cg, p, cg_zext64(cg, place));
}

/* Where this lane's elements of value v at this token's update `place` are. */
static Val row_pointer(Tokens *x, int v, int place) {
    const Grad *grad = x->g;
    const Gradient *g = grad->g;
    Cg *cg = grad->cg;
    int axis = tokens_run_axis(inst_at(grad->k, v)->shape), read = read_of(g, v);
    Val row = lattice_row(x, place), element = row;
    if (v == g->dX)
        return dx_pointer(x, row);
    if (sum_of(g, v) >= 0) {
        Val p = cg_gep8(cg, grad->record, cg_zext64(cg, cg_shl(cg, row, 2)));
        return cg_gep8(cg, p, cg_int64(cg, g->s.ws_sums + 4 * (int64_t)sum_of(g, v) * g->s.rows));
    }
    int64_t base = v == g->a_root   ? grad->scratch_da
                   : v == g->p_root ? grad->scratch_dp
                   : read >= 0      ? grad->scratch_o[read]
                                    : grad->scratch_dx[family_of(g, v)];
    if (axis >= 0) {
        element = cg_mul(cg, row, cg_int(cg, axis == AXIS_K ? g->s.kp : g->s.vp));
        element = cg_add(cg, element, run_base(x, axis));
    }
    Val p = cg_gep8(cg, grad->scratch, cg_int64(cg, base));
    element = cg_mul(cg, element, cg_int(cg, elem_size(row_elem(x, v))));
    return cg_gep8(cg, p, cg_zext64(cg, element));
}

void tokens_row_units(Tokens *x, int v, int place, int units, Val *address) {
    Val p = row_pointer(x, v, place);
    for (int u = 0; u < units; u++)
        address[u] = cg_gep8(x->g->cg, p, cg_int64(x->g->cg, 16 * u));
}

Val tokens_load_number(Tokens *x, int v, int place) {
    Val y;
    grad_load(x->g->cg, row_elem(x, v), row_pointer(x, v, place), 1, &y);
    return y;
}

/* Value v at this token's update `place`. */
static void load_cotangent(Tokens *x, int v, int place, Val *out) {
    Cg *cg = x->g->cg;
    Elem e = row_elem(x, v);
    int n = tokens_count(x, inst_at(x->g->k, v)->shape), width = elem_size(e);
    int group = grad_group(n, n, e);
    Val copy[TOKEN_RUN];
    out[0] = tokens_number_of(x, v, place);
    if (out[0])
        return;
    bool copied = tokens_copy_of(x, v, place, copy);
    Val p = copied ? NULL : row_pointer(x, v, place);
    for (int j = 0; j < n; j += group)
        grad_load(cg, e, copied ? copy[j * width / 16] : cg_gep8(cg, p, cg_int64(cg, j * width)),
                  group, out + j);
    for (int j = 0; j < n && v == x->g->g->dX; j++)
        out[j] = cg_fmul(cg, out[j], x->unit_dx[j]);
}

/* This lane's elements of an input's row, where it has been read or copied. */
static bool load_input(Tokens *x, int v, Val *out) {
    Val copy[TOKEN_RUN], loaded[TOKEN_RUN];
    out[0] = tokens_number_of(x, v, PLACE_INPUT);
    if (out[0])
        return true;
    if (!tokens_copy_of(x, v, PLACE_INPUT, copy))
        return false;
    value_load_copy(&x->at, v, copy, loaded);
    value_unpack(&x->at, v, loaded, out);
    return true;
}

/* The place within its token where a value with axis C is kept. */
int tokens_place(const Tokens *x, int v) {
    const Gradient *g = x->g->g;
    int f = family_of(g, v);
    if (read_of(g, v) >= 0)
        return g->s.slots - 1;
    return f >= 0 && g->s.family[f].position > 0 ? g->s.family[f].position : 0;
}

static void zeros(Cg *cg, int n, Val *out) {
    for (int j = 0; j < n; j++)
        out[j] = cg_float(cg, 0);
}

/* Value v of axis R or U at this token's update `place`. */
static void lattice_value(Tokens *x, int v, int place, Val *out) {
    Cg *cg = x->g->cg;
    const Kernel *k = x->g->k;
    const Inst *i = inst_at(k, v);
    int n = tokens_count(x, i->shape);
    if (x->g->g->zero[v]) {
        zeros(cg, n, out);
    } else if (tokens_in_memory(x, v)) {
        load_cotangent(x, v, place, out);
    } else if (i->op == OP_rename) {
        lattice_value(x, i->arg[0], place, out);
    } else if (i->op == OP_weave) {
        const Val *y = value_get(&x->at, i->arg[place]);
        for (int j = 0; j < n; j++)
            out[j] = y[value_count(&x->at, i->arg[place]) > 1 ? j : 0];
    } else {
        Val a[TOKEN_RUN], b[TOKEN_RUN];
        int na = tokens_count(x, inst_at(k, i->arg[0])->shape), nb = 1;
        lattice_value(x, i->arg[0], place, a);
        if (i->nargs > 1) {
            nb = tokens_count(x, inst_at(k, i->arg[1])->shape);
            lattice_value(x, i->arg[1], place, b);
        }
        for (int j = 0; j < n; j++)
            out[j] = cg_pointwise(cg, i->op, a[na > 1 ? j : 0],
                                  i->nargs > 1 ? b[nb > 1 ? j : 0] : NULL);
    }
}

static bool lookup(ValueAt *at, int v, Val *out) {
    Tokens *x = at->user;
    const Gradient *g = x->g->g;
    const Inst *i = inst_at(x->g->k, v);
    if (g->zero[v])
        zeros(at->cg, tokens_count(x, i->shape), out);
    else if (i->op == OP_in)
        return load_input(x, v, out);
    else if (x->late)
        return false;
    else if (i->op == OP_slot)
        lattice_value(x, i->arg[0], i->place, out);
    else if (tokens_in_memory(x, v))
        load_cotangent(x, v, tokens_place(x, v), out);
    else
        return false;
    return true;
}

static Val sum_lanes(ValueAt *at, int v, int axis, Val partial) {
    Tokens *x = at->user;
    (void)v;
    (void)axis;
    for (int m = x->lanes / 2; m > 0; m /= 2)
        partial = cg_fadd(at->cg, partial, nv_shuffle_xor(at->cg, partial, m));
    return partial;
}

/* what can be asked for ---------------------------------------------------------------------------- */

static const char *lattice_unsupported(const Tokens *x, int v) {
    const Gradient *g = x->g->g;
    const Inst *i = inst_at(x->g->k, v);
    if (g->zero[v] || tokens_in_memory(x, v) || x->on_lattice[v])
        return NULL;
    if (i->op == OP_rename)
        return lattice_unsupported(x, i->arg[0]);
    if (i->op != OP_weave && op_info[i->op].class != CLASS_PURE)
        return "a gradient is no sum of what the GPU's grad kernel computes";
    for (int j = 0; j < i->nargs; j++) {
        const char *why = i->op == OP_weave ? tokens_unsupported(x, i->arg[j])
                                            : lattice_unsupported(x, i->arg[j]);
        if (why)
            return why;
    }
    x->on_lattice[v] = true;
    return NULL;
}

bool tokens_is_dot(const Kernel *k, int v) {
    const Inst *i = inst_at(k, v);
    if (i->op != OP_contract || (i->axis != AXIS_K && i->axis != AXIS_V))
        return false;
    for (int j = 0; j < 2; j++) {
        Shape s = inst_at(k, i->arg[j])->shape;
        if (shape_features(s).rank != 1 || shape_has(s, AXIS_R) || shape_has(s, AXIS_U))
            return false;
    }
    return shape_features(i->shape).rank == 0 && shape_lattice(i->shape).rank < 2;
}

const char *tokens_unsupported(const Tokens *x, int v) {
    const Gradient *g = x->g->g;
    const Inst *i = inst_at(x->g->k, v);
    if (g->zero[v] || tokens_in_memory(x, v) || x->at_token[v])
        return NULL;
    if (x->late && scan_stored(g->s.scan, v))
        return NULL;
    if (i->op == OP_slot && !x->late)
        return lattice_unsupported(x, i->arg[0]);
    if (op_info[i->op].class == CLASS_CHUNK && !tokens_is_dot(x->g->k, v))
        return "a gradient is no sum of what the GPU's grad kernel computes";
    for (int j = 0; j < i->nargs; j++) {
        const char *why = tokens_unsupported(x, i->arg[j]);
        if (why)
            return why;
    }
    x->at_token[v] = true;
    return NULL;
}

/* plan ----------------------------------------------------------------------------------------- */

static int power_of_two(int x) {
    int p = 1;
    while (p < x)
        p *= 2;
    return p;
}

static int divided(int x, int by) { return (x + by - 1) / by; }

/* Runs are even: pairs of channels turn. */
static int run_of(int size, int lanes) {
    int n = power_of_two(divided(size, lanes));
    return n < 2 ? 2 : n;
}

bool tokens_gives(const Tokens *x, const Inst *out) {
    const bool *late = x->g->g->s.scan->late;
    return x->late == (late && late[out->arg[0]]);
}

/* Whether v is what the grad kernel leaves to the late one. */
static bool leaves(const Tokens *x, const ScanValue *made) {
    return !x->late && made->round == x->g->g->s.scan->grad_round;
}

/* Values that a token's gradients need at that token: not what stands behind those in memory. */
static void mark_needed(const Tokens *x, int v, bool *mark) {
    const Gradient *g = x->g->g;
    if (v < 0 || mark[v] || g->zero[v])
        return;
    const Inst *i = inst_at(x->g->k, v);
    bool elsewhere = i->op == OP_prev || i->op == OP_after || tokens_in_memory(x, v) ||
                     value_in_memory(&x->at, v);
    mark[v] = true;
    for (int j = 0; j < i->nargs && !elsewhere; j++)
        mark_needed(x, i->arg[j], mark);
}

static bool *needed_values(const Tokens *x) {
    const Kernel *k = x->g->k;
    bool *needed = NEW_ARRAY(x->g->cg->arena, bool, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        bool param = i->op == OP_out && k->out.at[i->index].is_param;
        if (x->over_tokens[v] || (i->op == OP_out && !param && tokens_gives(x, i)))
            for (int j = 0; j < i->nargs; j++)
                mark_needed(x, i->arg[j], needed);
    }
    const Scan *scan = x->g->g->s.scan;
    for (int j = 0; j < scan->count; j++)
        if (leaves(x, &scan->value[j]))
            mark_needed(x, scan->value[j].value, needed);
    return needed;
}

static bool plan(Grad *g, bool late, int *sh_bytes, const char **why) {
    const Kernel *k = g->k;
    const System *s = &g->g->s;
    Tokens *x = g->tokens = NEW(g->cg->arena, Tokens);
    x->g = g;
    x->late = late;
    x->at_token = NEW_ARRAY(g->cg->arena, bool, k->inst.count);
    x->on_lattice = NEW_ARRAY(g->cg->arena, bool, k->inst.count);
    x->lanes = power_of_two(divided(s->K > s->V ? s->K : s->V, TOKEN_RUN));
    x->n_k = run_of(s->K, x->lanes);
    x->n_v = run_of(s->V, x->lanes);
    CHECK(x->lanes <= 32 && x->n_k <= TOKEN_RUN && x->n_v <= TOKEN_RUN);
    x->at = (ValueAt){.cg = g->cg, .n_k = x->n_k, .n_v = x->n_v, .scan = s->scan};
    x->at.round = late ? s->scan->rounds : s->scan->grad_round;
    x->at.past_k = x->lanes * x->n_k > s->K;
    x->at.past_v = x->lanes * x->n_v > s->V;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op != OP_out || k->out.at[i->index].is_param || !tokens_gives(x, i))
            continue;
        *why = tokens_unsupported(x, i->arg[0]);
        if (*why)
            return false;
    }
    for (int j = 0; j < s->scan->count; j++) {
        const ScanValue *made = &s->scan->value[j];
        *why = leaves(x, made) ? tokens_unsupported(x, made->value) : NULL;
        if (*why)
            return false;
    }
    if (!tokens_plan_sums(x, sh_bytes, why))
        return false;
    x->needed = needed_values(x);
    tokens_plan_ahead(x, sh_bytes);
    return true;
}

bool grad_token_plan(Grad *g, int *sh_bytes, const char **why) {
    g->scratch_is_done = true;
    return plan(g, false, sh_bytes, why);
}

/* tokens --------------------------------------------------------------------------------------- */

static void read_ahead(Tokens *x) {
    const Kernel *k = x->g->k;
    for (int v = 0; v < k->inst.count; v++) {
        Op op = inst_at(k, v)->op;
        bool lattice = shape_has(inst_at(k, v)->shape, AXIS_R) ||
                       shape_has(inst_at(k, v)->shape, AXIS_U);
        if (x->needed[v] && !lattice &&
            (op == OP_slot || value_in_memory(&x->at, v) || tokens_in_memory(x, v)))
            value_get(&x->at, v);
    }
}

static void place_lane(Tokens *x) {
    Grad *g = x->g;
    Cg *cg = g->cg;
    x->lane = cg_and(cg, g->lane, cg_int(cg, x->lanes - 1));
    ValueAt at = x->at;
    x->at = (ValueAt){.cg = cg, .token = g->seq.begin, .begin = g->seq.begin,
                      .origin = cg_add(cg, g->seq.begin, g->start),
                      .end = cg_add(cg, g->seq.begin, g->seq.length),
                      .head = g->head, .heads = g->heads,
                      .base_k = cg_mul(cg, x->lane, cg_int(cg, x->n_k)),
                      .base_v = cg_mul(cg, x->lane, cg_int(cg, x->n_v)),
                      .n_k = at.n_k, .n_v = at.n_v, .past_k = at.past_k, .past_v = at.past_v,
                      .lookup = lookup, .sum = sum_lanes, .user = x,
                      .scan = at.scan, .round = at.round};
    value_ports(&x->at);
    tokens_place_rows(x);
    if (!x->late)
        load_units(x);
}

Val tokens_side(const Tokens *x) {
    int log = 0;
    while (1 << log < x->lanes)
        log++;
    return cg_shr(x->g->cg, x->g->lane, log);
}

void tokens_place_at(Tokens *x, Val t, Val left) {
    Grad *g = x->g;
    Cg *cg = g->cg;
    x->live = cg_cmp(cg, LLVMIntSLT, t, left);
    x->t = cg_select(cg, x->live, t, cg_sub(cg, left, cg_int(cg, 1)));
    Val in_seq = cg_add(cg, g->start, cg_zext64(cg, x->t));
    x->at.token = cg_add(cg, g->seq.begin, in_seq);
    x->at.offset = x->t;
    x->at.first = cg_cmp(cg, LLVMIntEQ, in_seq, cg_int64(cg, 0));
    Val next = cg_add(cg, in_seq, cg_int64(cg, 1));
    x->at.last = cg_cmp(cg, LLVMIntEQ, next, g->seq.length);
    value_begin(&x->at);
}

static void build_token(Tokens *x) {
    read_ahead(x);
    tokens_store(x);
    const Scan *scan = x->g->g->s.scan;
    for (int j = 0; j < scan->count; j++)
        if (leaves(x, &scan->value[j]))
            tokens_store_made(x, &scan->value[j]);
    tokens_add(x);
}

void grad_tokens(Grad *g) {
    Cg *cg = g->cg;
    const System *s = &g->g->s;
    Tokens *x = g->tokens;
    int at_once = 32 / x->lanes;
    grad_place_group(g);
    place_lane(x);
    tokens_open_sums(x);
    Val left = cg_sub(cg, g->seq.length, g->start), chunk = cg_int64(cg, s->chunk);
    left = cg_select(cg, cg_cmp(cg, LLVMIntSLT, left, chunk), left, chunk);
    left = cg_trunc32(cg, left);
    Val first = cg_mul(cg, g->warp, cg_int(cg, at_once));
    int64_t step = (int64_t)s->warps * at_once;
    tokens_begin_ahead(x, first, left, step);
    Loop l = cg_for(cg, first, left, step, false);
    tokens_enter(x, l.i, left, step);
    tokens_place_at(x, cg_add(cg, l.i, tokens_side(x)), left);
    build_token(x);
    cg_end_for(cg, &l);
    tokens_end_ahead(x);
    tokens_finish_sums(x);
}

static bool late_plan(Grad *g, int *sh_bytes, const char **why) {
    return plan(g, true, sh_bytes, why);
}

bool nv_build_late(Cg *cg, CgModule *out, const char **why) {
    const GradPhase phase = {late_plan, grad_tokens};
    return grad_build(cg, out, ENTRY_late, &phase, 1, why);
}
