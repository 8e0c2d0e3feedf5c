/* How the factor kernel reads its rows' inputs: 8 channels of two rows a lane and slab, straight into
 * the registers that matrix operands are made of.
 *
 * Memory is far: the sums over a row's channels (l2norm), which come before everything else, load
 * several slabs before they use the first, and park what they loaded where the rows made from it will
 * go, or hold it in registers where these are enough; a slab's other inputs are copied to shared memory
 * while the slab before it is worked on. All of it is read by the lane that wrote it, so no barrier is
 * needed.
 */
#include "codegen/nvptx/factor.h"

static void set_slab(Factor *f, int h, Val slab) {
    Cg *cg = f->cg;
    f->at[h].base_k = cg_add(cg, cg_shl(cg, slab, 5), cg_shl(cg, f->t, 3));
    value_begin(&f->at[h]);
}

/* What v needs at its own token, down to what is read from memory. */
static void mark(Factor *f, int v, bool *needed) {
    scan_mark(f->k, f->s->scan, SCAN_ALL, v, needed);
}

/* Which values the keys, rows and decays need. */
static bool *needed_values(Factor *f) {
    const System *s = f->s;
    bool *needed = NEW_ARRAY(f->cg->arena, bool, f->k->inst.count);
    mark(f, s->p, needed);
    if (s->a >= 0)
        mark(f, s->a, needed);
    for (int i = 0; i < s->families; i++)
        mark(f, s->family[i].x, needed);
    return needed;
}

static bool in_memory(const Factor *f, int v) {
    return inst_at(f->k, v)->op == OP_in || scan_stored(f->s->scan, v);
}

/* Read from memory, channels of K. */
static bool is_key_input(const Factor *f, int v) {
    const Kernel *k = f->k;
    const Inst *i = inst_at(k, v);
    bool param = i->op == OP_in && k->in.at[i->index].is_param;
    return in_memory(f, v) && shape_has(i->shape, AXIS_K) && !param;
}

/* A sum that is ours to finish. */
static bool is_row_sum(const Factor *f, int v) {
    return inst_at(f->k, v)->op == OP_sum && !in_memory(f, v);
}

bool factor_lookup(ValueAt *at, int v, Val *out) {
    Factor *f = at->user;
    int h = at == &f->at[1];
    if (f->loaded[h][v]) {
        value_unpack(at, v, f->loaded[h][v], out);
        return true;
    }
    if (inst_at(f->k, v)->op != OP_sum || !f->sum[h][v].p)
        return false;
    out[0] = cg_get(f->cg, f->sum[h][v]);
    return true;
}

Val factor_no_sum(ValueAt *at, int v, int axis, Val partial) {
    (void)at;
    (void)axis;
    (void)partial;
    BUG("sum %%%d is used before it is finished", v);
}

/* copies ahead --------------------------------------------------------------------------------- */

static int sum_depth(const Factor *f, int v);

/* Inputs that the first row sums read. */
static bool *summed_inputs(Factor *f, const bool *needed) {
    const Kernel *k = f->k;
    bool *used = NEW_ARRAY(f->cg->arena, bool, k->inst.count);
    for (int v = 0; v < k->inst.count; v++)
        if (needed[v] && is_row_sum(f, v) && sum_depth(f, v) == 1)
            mark(f, v, used);
    return used;
}

/* Read from memory, one element a token. */
static bool is_scalar_input(const Factor *f, int v) {
    const Inst *i = inst_at(f->k, v);
    bool param = i->op == OP_in && f->k->in.at[i->index].is_param;
    return in_memory(f, v) && !param && !shape_has(i->shape, AXIS_K) && !shape_has(i->shape, AXIS_V);
}

void factor_hold_scalars(Factor *f) {
    bool *needed = needed_values(f);
    for (int v = 0; v < f->k->inst.count; v++)
        for (int h = 0; h < 2 && needed[v] && is_scalar_input(f, v); h++) {
            f->loaded[h][v] = NEW_ARRAY(f->cg->arena, Val, 1);
            value_load(&f->at[h], v, f->loaded[h][v]);
        }
}

/* How many of the parked inputs registers hold, all slabs of them, until the rows are made. Scalar decay has
 * some, as its scores come after the rows. */
static int inputs_held(const Factor *f) {
    enum { REGISTERS = 32, ACCESS = 4 };
    int slabs = f->s->kp / SLAB, most = REGISTERS / (2 * slabs * ACCESS);
    if (f->s->a_key || slabs > MAX_HELD_SLABS)
        return 0;
    return f->nparked < most ? f->nparked : most;
}

/* Inputs that come in 16-byte accesses only, whatever the lane. One access a slab and row can be
 * parked, as long as there are places. */
void factor_plan_stage(Factor *f) {
    ValueAt at = {.cg = f->cg, .n_k = 8, .n_v = 1, .scan = f->s->scan, .round = SCAN_ALL};
    bool *needed = needed_values(f), *summed = summed_inputs(f, needed);
    int places = 1 + f->s->families;
    for (int v = 0; v < f->k->inst.count; v++) {
        if (!needed[v] || !is_key_input(f, v) || value_access_bytes(&at, v) != 16 ||
            f->s->kp != f->s->K)
            continue;
        if (summed[v] && value_accesses(&at, v) == 1 && f->nparked < places)
            f->parked[f->nparked++] = v;
        else if (f->nstaged < MAX_STAGED_INPUTS)
            f->staged[f->nstaged++] = v;
    }
    f->nheld = inputs_held(f);
}

/* Where parked input number `i` has half h's 8 channels of a slab. */
static Val parking_place(Factor *f, int i, int h, Val slab) {
    Cg *cg = f->cg;
    if (i > 0)
        return factor_stash_unit(f, f->sh_left, i - 1, h, slab);
    return factor_key_unit(f, f->sh_p, f->row[h], cg_add(cg, cg_shl(cg, slab, 2), f->t));
}

/* Where the access to a slab's held input number `i` is kept; the slab is a constant. */
static Val *held(Factor *f, int i, int h, Val slab) {
    return &f->held[LLVMConstIntGetZExtValue(slab)][h][i];
}

static void park(Factor *f, int v, int h, Val slab, const Val *words) {
    for (int i = 0; i < f->nparked; i++)
        if (f->parked[i] == v && i < f->nheld)
            *held(f, i, h, slab) = words[0];
        else if (f->parked[i] == v)
            cg_store(f->cg, words[0], parking_place(f, i, h, slab), 16);
}

/* An access's four words, as far as LLVM knows others: what the sums made of them is made again, as it takes
 * twice the registers. */
static Val words_anew(Cg *cg, Val words) {
    for (int j = 0; j < 4; j++)
        words = cg_insert(cg, words, nv_anew(cg, cg_extract(cg, words, j)), j);
    return words;
}

static void take_parked(Factor *f, Val slab) {
    for (int i = 0; i < f->nparked; i++)
        for (int h = 0; h < 2; h++) {
            Val *loaded = f->loaded[h][f->parked[i]] = NEW_ARRAY(f->cg->arena, Val, 1);
            if (i < f->nheld) {
                loaded[0] = words_anew(f->cg, *held(f, i, h, slab));
                continue;
            }
            Val place = parking_place(f, i, h, slab);
            value_load_copy(&f->at[h], f->parked[i], &place, loaded);
        }
}

static int stage_accesses(const Factor *f) {
    ValueAt at = {.cg = f->cg, .n_k = 8, .n_v = 1, .scan = f->s->scan, .round = SCAN_ALL};
    int n = 0;
    for (int i = 0; i < f->nstaged; i++)
        n += 2 * value_accesses(&at, f->staged[i]);
    return n;
}

int factor_stage_bytes(const Factor *f) {
    return stage_accesses(f) * 32 * f->s->warps * 16;
}

/* This lane's copy of access number `n`. */
static Val stage_slot(Factor *f, int n) {
    Cg *cg = f->cg;
    int64_t base = f->sh_stage + (int64_t)n * 32 * f->s->warps * 16;
    return cg_gep8(cg, nv_shared(cg, base), cg_shl(cg, nv_tid(cg), 4));
}

enum { MAX_ACCESSES = 8 };

static void start_copies(Factor *f, Val slab) {
    Cg *cg = f->cg;
    int n = 0;
    for (int i = 0; i < f->nstaged; i++)
        for (int h = 0; h < 2; h++) {
            Val from[MAX_ACCESSES];
            set_slab(f, h, slab);
            value_addresses(&f->at[h], f->staged[i], from);
            for (int j = 0; j < value_accesses(&f->at[h], f->staged[i]); j++)
                nv_copy_async(cg, stage_slot(f, n++), from[j], cg_int(cg, 16));
        }
}

void factor_copy_ahead(Factor *f, Val slab) {
    start_copies(f, slab);
    nv_copy_commit(f->cg);
}

/* `always`: a group of copies is committed whether or not there is a next slab. */
static void take_slab(Factor *f, Val slab, bool always) {
    Cg *cg = f->cg;
    int n = 0;
    for (int i = 0; i < f->nstaged; i++)
        for (int h = 0; h < 2; h++) {
            int v = f->staged[i], accesses = value_accesses(&f->at[h], v);
            Val copy[MAX_ACCESSES];
            f->loaded[h][v] = NEW_ARRAY(cg->arena, Val, accesses);
            for (int j = 0; j < accesses; j++)
                copy[j] = stage_slot(f, n++);
            value_load_copy(&f->at[h], v, copy, f->loaded[h][v]);
        }
    take_parked(f, slab);
    Val next = cg_add(cg, slab, cg_int(cg, 1));
    If more = cg_if(cg, cg_cmp(cg, LLVMIntSLT, next, cg_int(cg, f->s->kp / SLAB)));
    start_copies(f, next);
    if (!always && f->nstaged > 0)
        nv_copy_commit(cg);
    cg_end_if(cg, &more);
    if (always)
        nv_copy_commit(cg);
    for (int h = 0; h < 2; h++)
        set_slab(f, h, slab);
}

void factor_enter_slab(Factor *f, Val slab) {
    if (f->nstaged > 0)
        nv_copy_wait(f->cg, 0);
    take_slab(f, slab, false);
}

void factor_take_slab(Factor *f, Val slab) {
    take_slab(f, slab, true);
}

/* row sums ------------------------------------------------------------------------------------- */

/* 1 + the deepest of our sums in the operand. */
static int sum_depth(const Factor *f, int v) {
    const Kernel *k = f->k;
    int *depth = NEW_ARRAY(k->arena, int, v + 1);
    for (int u = 0; u <= v; u++) {
        const Inst *i = inst_at(k, u);
        bool ends = i->op == OP_prev || in_memory(f, u);
        for (int j = 0; !ends && j < i->nargs; j++)
            if (i->arg[j] >= 0 && depth[i->arg[j]] > depth[u])
                depth[u] = depth[i->arg[j]];
        depth[u] += is_row_sum(f, u);
    }
    return depth[v];
}

enum { MAX_AHEAD = MAX_HELD_SLABS };

/* Slabs loaded before the first is used: a divisor of their number. */
static int slabs_ahead(int slabs) {
    int n = slabs < MAX_AHEAD ? slabs : MAX_AHEAD;
    while (slabs % n != 0)
        n--;
    return n;
}

typedef struct Reduction Reduction;
struct Reduction {
    bool *wanted;             /* sums of this depth */
    bool *input;              /* inputs they read */
    Var *part[2];
    Var most[MAX_FAMILIES + 1][2]; /* largest magnitude of scaled rows; the last of the keys */
    bool parks;
    void (*add)(Factor *f, Reduction *r, int h);
};

static void add_parts(Factor *f, Reduction *r, int h) {
    Cg *cg = f->cg;
    for (int v = 0; v < f->k->inst.count; v++) {
        if (!r->wanted[v])
            continue;
        Val x[8], sum = cg_get(cg, r->part[h][v]);
        value_get_padded(&f->at[h], inst_at(f->k, v)->arg[0], x);
        for (int e = 0; e < 8; e++)
            sum = cg_fadd(cg, sum, x[e]);
        cg_set(cg, r->part[h][v], sum);
    }
}

static void reduce_slabs(Factor *f, Reduction *r, Val first, int ahead) {
    Cg *cg = f->cg;
    int count = f->k->inst.count;
    Val **words[MAX_AHEAD][2];
    for (int i = 0; i < ahead; i++)
        for (int h = 0; h < 2; h++) {
            words[i][h] = NEW_ARRAY(cg->arena, Val *, count);
            set_slab(f, h, cg_add(cg, first, cg_int(cg, i)));
            for (int v = 0; v < count; v++) {
                if (!r->input[v])
                    continue;
                words[i][h][v] = NEW_ARRAY(cg->arena, Val, MAX_ACCESSES);
                value_load(&f->at[h], v, words[i][h][v]);
            }
        }
    for (int i = 0; i < ahead && r->parks; i++)
        for (int h = 0; h < 2; h++)
            for (int v = 0; v < count; v++)
                if (r->input[v])
                    park(f, v, h, cg_add(cg, first, cg_int(cg, i)), words[i][h][v]);
    for (int i = 0; i < ahead; i++)
        for (int h = 0; h < 2; h++) {
            set_slab(f, h, cg_add(cg, first, cg_int(cg, i)));
            for (int v = 0; v < count; v++)
                f->loaded[h][v] = r->input[v] ? words[i][h][v] : f->loaded[h][v];
            r->add(f, r, h);
        }
    for (int h = 0; h < 2; h++)
        for (int v = 0; v < count; v++)
            f->loaded[h][v] = r->input[v] ? NULL : f->loaded[h][v];
}

static void reduce_all_slabs(Factor *f, Reduction *r) {
    Cg *cg = f->cg;
    int slabs = f->s->kp / SLAB, ahead = slabs_ahead(slabs);
    if (ahead == slabs) {
        reduce_slabs(f, r, cg_int(cg, 0), ahead);
        return;
    }
    Loop slab = cg_for(cg, cg_int(cg, 0), cg_int(cg, slabs), ahead, false);
    reduce_slabs(f, r, slab.i, ahead);
    cg_end_for(cg, &slab);
}

/* Inputs among the used values that are worth loading ahead. */
static void mark_inputs(Factor *f, const bool *used, bool *input) {
    for (int v = 0; v < f->k->inst.count; v++)
        input[v] = used[v] && is_key_input(f, v) && value_accesses(&f->at[0], v) <= 2;
}

static void reduce_depth(Factor *f, const bool *needed, int depth) {
    Cg *cg = f->cg;
    const Kernel *k = f->k;
    int count = k->inst.count;
    Reduction r = {.wanted = NEW_ARRAY(cg->arena, bool, count), .add = add_parts,
                   .parks = depth == 1};
    bool *used = NEW_ARRAY(cg->arena, bool, count);
    r.input = NEW_ARRAY(cg->arena, bool, count);
    r.part[0] = NEW_ARRAY(cg->arena, Var, count);
    r.part[1] = NEW_ARRAY(cg->arena, Var, count);
    for (int v = 0; v < count; v++) {
        r.wanted[v] = needed[v] && is_row_sum(f, v) && sum_depth(f, v) == depth;
        if (!r.wanted[v])
            continue;
        mark(f, v, used);
        for (int h = 0; h < 2; h++)
            r.part[h][v] = cg_var(cg, cg->f32, cg_float(cg, 0));
    }
    mark_inputs(f, used, r.input);
    reduce_all_slabs(f, &r);
    for (int h = 0; h < 2; h++)
        for (int v = 0; v < count; v++) {
            if (!r.wanted[v])
                continue;
            Val x = cg_get(cg, r.part[h][v]);
            x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, 1));
            x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, 2));
            f->sum[h][v] = cg_var(cg, cg->f32, x);
        }
}

/* Sums over V are made ahead, but for a gradient's factors. */
bool factor_sums_fit(Factor *f, const char **why) {
    bool *needed = needed_values(f);
    for (int v = 0; v < f->k->inst.count; v++)
        if (needed[v] && is_row_sum(f, v) && inst_at(f->k, v)->axis != AXIS_K) {
            *why = "a key-side value depends on a sum over V, which has no GPU gradient";
            return false;
        }
    return true;
}

void factor_reduce(Factor *f) {
    const Kernel *k = f->k;
    bool *needed = needed_values(f);
    int deepest = 0;
    for (int v = 0; v < k->inst.count; v++) {
        if (!needed[v] || !is_row_sum(f, v))
            continue;
        CHECK(inst_at(k, v)->axis == AXIS_K);
        int d = sum_depth(f, v);
        deepest = d > deepest ? d : deepest;
    }
    for (int depth = 1; depth <= deepest; depth++)
        reduce_depth(f, needed, depth);
}

/* Where lattice row `row` of the system's sum number i (i32) is. */
static Val saved_sum(Factor *f, Val i, Val row) {
    Cg *cg = f->cg;
    Val at = cg_add(cg, row, cg_mul(cg, i, cg_int(cg, f->s->rows)));
    Val p = cg_gep8(cg, f->record, cg_zext64(cg, cg_shl(cg, at, 2)));
    return cg_gep8(cg, p, cg_int64(cg, f->s->ws_sums));
}

/* All four lanes of a row have them: two sums' two halves at a time, one a lane. */
void factor_save_sums(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    Val upper = cg_shr(cg, f->t, 1), h = cg_and(cg, f->t, cg_int(cg, 1));
    Val second = cg_cmp(cg, LLVMIntNE, upper, cg_int(cg, 0)), odd = cg_cmp(cg, LLVMIntNE, h, cg_int(cg, 0));
    for (int i = 0; i < s->sums; i += 2) {
        bool two = i + 1 < s->sums;
        Val x[2], first = cg_select(cg, odd, cg_get(cg, f->sum[1][s->sum[i]]),
                                    cg_get(cg, f->sum[0][s->sum[i]]));
        for (int j = 0; j < 2; j++)
            x[j] = cg_get(cg, f->sum[j][s->sum[two ? i + 1 : i]]);
        Val y = cg_select(cg, second, cg_select(cg, odd, x[1], x[0]), first);
        Val number = two ? cg_add(cg, upper, cg_int(cg, i)) : cg_int(cg, i);
        If mine = {0};
        if (!two)
            mine = cg_if(cg, cg_cmp(cg, LLVMIntEQ, upper, cg_int(cg, 0)));
        cg_store(cg, y, saved_sum(f, number, cg_add(cg, f->row[0], h)), 4);
        if (!two)
            cg_end_if(cg, &mine);
    }
}

void factor_load_sums(Factor *f) {
    Cg *cg = f->cg;
    for (int i = 0; i < f->s->sums; i++)
        for (int h = 0; h < 2; h++)
            {
            Val p = saved_sum(f, cg_int(cg, i), f->row[h]);
            f->sum[h][f->s->sum[i]] = cg_var(cg, cg->f32, cg_load(cg, cg->f32, p, 4));
        }
}

/* row scales ----------------------------------------------------------------------------------- */

static void see_row(Factor *f, Var most, int v, int position, int h) {
    Cg *cg = f->cg;
    Val x[8], m = cg_get(cg, most);
    factor_row(f, v, position, h, 0, x);
    for (int e = 0; e < 8; e++)
        m = nv_larger(cg, m, nv_magnitude(cg, x[e]));
    cg_set(cg, most, m);
}

static void see_rows(Factor *f, Reduction *r, int h) {
    const System *s = f->s;
    for (int i = 0; i < s->families; i++)
        if (s->family[i].unbounded)
            see_row(f, r->most[i][h], s->family[i].x, s->family[i].position, h);
    if (s->p_scaled)
        see_row(f, r->most[MAX_FAMILIES][h], s->p, -1, h);
}

/* Stored once a row. */
static void store_row_scale(Factor *f, Val scale, Val p) {
    Cg *cg = f->cg;
    If one = cg_if(cg, cg_cmp(cg, LLVMIntEQ, f->t, cg_int(cg, 0)));
    cg_store(cg, scale, p, 4);
    cg_end_if(cg, &one);
}

static void store_family_scale(Factor *f, int i, int h) {
    Cg *cg = f->cg;
    Val byte = cg_add(cg, cg_shl(cg, f->stored_row[i][h], 2),
                      cg_int(cg, (int)f->s->family[i].ws_rows));
    store_row_scale(f, f->row_scale[i][h], cg_gep8(cg, f->record, byte));
}

/* The power of two below a row's largest element, the same in the four lanes of the row. In a
 * gradient a row's cotangent goes through f16 times that scale, and a row of zeros has one too; what saves
 * for it must round alike. */
static Val row_scale(Factor *f, Var most) {
    Cg *cg = f->cg;
    Val x = cg_get(cg, most);
    x = nv_larger(cg, x, nv_shuffle_xor(cg, x, 1));
    x = nv_larger(cg, x, nv_shuffle_xor(cg, x, 2));
    return nv_power_below(cg, nv_larger(cg, x, cg_float(cg, f->s->trains ? 0x1p-14 : 0x1p-60)));
}

void factor_scale_rows(Factor *f) {
    Cg *cg = f->cg;
    const System *s = f->s;
    bool any = s->p_scaled, *used = NEW_ARRAY(cg->arena, bool, f->k->inst.count);
    for (int i = 0; i < s->families; i++) {
        any = any || s->family[i].unbounded;
        if (s->family[i].unbounded)
            mark(f, s->family[i].x, used);
    }
    if (!any)
        return;
    if (s->p_scaled)
        mark(f, s->p, used);
    Reduction r = {.input = NEW_ARRAY(cg->arena, bool, f->k->inst.count), .add = see_rows};
    mark_inputs(f, used, r.input);
    for (int i = 0; i <= MAX_FAMILIES; i++)
        for (int h = 0; h < 2; h++)
            r.most[i][h] = cg_var(cg, cg->f32, cg_float(cg, 0));
    reduce_all_slabs(f, &r);
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < s->families; i++) {
            if (!s->family[i].unbounded)
                continue;
            f->row_scale[i][h] = row_scale(f, r.most[i][h]);
            f->row_shrink[i][h] = nv_power_inverse(cg, f->row_scale[i][h]);
            if (!s->family[i].corrected)
                store_family_scale(f, i, h);
        }
        if (!s->p_scaled)
            continue;
        Val scale = row_scale(f, r.most[MAX_FAMILIES][h]);
        f->key_shrink[h] = nv_power_inverse(cg, scale);
        Val byte = cg_add(cg, cg_shl(cg, f->row[h], 2), cg_int(cg, (int)s->ws_keys));
        if (s->erase)
            store_row_scale(f, scale, factor_shared_f32(f, f->sh_keys, f->row[h]));
        if (!s->erase || s->trail)
            store_row_scale(f, scale, cg_gep8(cg, f->record, byte));
    }
}

static bool corrects(const Factor *f) { return f->s->erase && f->s->family[0].corrected; }

void factor_begin_correction(Factor *f) {
    Cg *cg = f->cg;
    for (int h = 0; corrects(f) && h < 2; h++) {
        f->exact[h] = cg_var(cg, cg->f32, cg_float(cg, 0));
        f->rounded[h] = cg_var(cg, cg->f32, cg_float(cg, 0));
    }
}

static Val add_dot(Cg *cg, Val sum, const Val *a, const Val *b, int n) {
    for (int e = 0; e < n; e++)
        sum = cg_fma(cg, a[e], b[e], sum);
    return sum;
}

void factor_see_correction(Factor *f, int h, const Val x[8], const Val p[8]) {
    Cg *cg = f->cg;
    if (!corrects(f))
        return;
    Val px[4], pp[4], rounded = cg_get(cg, f->rounded[h]), a[2], b[2];
    cg_set(cg, f->exact[h], add_dot(cg, cg_get(cg, f->exact[h]), x, p, 8));
    factor_pack(cg, f->s->operand, px, x);
    factor_pack(cg, f->s->operand, pp, p);
    for (int j = 0; j < 4; j++) {
        nv_unpack(cg, f->s->operand, px[j], a);
        nv_unpack(cg, f->s->operand, pp[j], b);
        rounded = add_dot(cg, rounded, a, b, 2);
    }
    cg_set(cg, f->rounded[h], rounded);
}

/* The factor exact / rounded where the two are close, as they are unless x . p cancels. */
void factor_end_correction(Factor *f) {
    Cg *cg = f->cg;
    for (int h = 0; corrects(f) && h < 2; h++) {
        Val dot[2] = {cg_get(cg, f->exact[h]), cg_get(cg, f->rounded[h])}, one = cg_float(cg, 1);
        for (int i = 0; i < 2; i++) {
            dot[i] = cg_fadd(cg, dot[i], nv_shuffle_xor(cg, dot[i], 1));
            dot[i] = cg_fadd(cg, dot[i], nv_shuffle_xor(cg, dot[i], 2));
        }
        Val ratio = cg_fdiv(cg, dot[0], dot[1]), off = nv_magnitude(cg, cg_fsub(cg, ratio, one));
        Val close = LLVMBuildFCmp(cg->b, LLVMRealOLT, off, cg_float(cg, 0x1p-10), "");
        ratio = cg_select(cg, close, ratio, one);
        Val scale = f->row_scale[0][h];
        f->row_scale[0][h] = scale ? cg_fmul(cg, scale, ratio) : ratio;
        store_family_scale(f, 0, h);
    }
}

static void shrink8(Cg *cg, Val x[8], Val shrink) {
    for (int e = 0; shrink && e < 8; e++)
        x[e] = cg_fmul(cg, x[e], shrink);
}

void factor_family_row(Factor *f, int i, int h, Val out[8]) {
    const Family *fam = &f->s->family[i];
    factor_row(f, fam->x, fam->position, h, 0, out);
    shrink8(f->cg, out, f->row_shrink[i][h]);
}

void factor_keys(Factor *f, int h, Val out[8]) {
    factor_row(f, f->s->p, -1, h, 0, out);
    shrink8(f->cg, out, f->key_shrink[h]);
}
