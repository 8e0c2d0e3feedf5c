/* The kernels that make values ahead (scan.h): a warp walks a stretch of tokens, a lane holds a run of
 * every vector, so sums over channels are shuffles and running sums registers.
 *
 * Three ways to sum over time were weighed. A block that walks a whole sequence is one launch, but slow
 * where sequences are few and long: what a block can read in flight is a hundredth of the memory's rate.
 * Chunks that wait for those before them (look-back) are one launch too, but need blocks to start in
 * order and counters that somebody clears. Sums, their sums, then the values again from the inputs read
 * the summed inputs twice, and no kernel waits for a neighbour: it runs at the memory's rate for every
 * shape of batch, a value of any later token can be read like an input, and what only feeds another
 * value (a normaliser's running sum) never goes to memory.
 *
 * Every sum is taken in an order that the place in the sequence alone decides, and takes nothing that
 * comes later: results are the same bit for bit whatever stands behind or beside.
 */
#include "codegen/nvptx/scan.h"

#include <stdio.h>
#include <string.h>

enum {
    AHEAD = 8,             /* tokens read before the first is used, at most: */
    AHEAD_REGISTERS = 64,  /* what they bring goes into so many */
    WALKS_PER_SM = 16,
    REGION_ALIGN = 256
};
enum { PART_sums, PART_carry, PART_rows, PARTS, PART_past = PARTS };

/* places --------------------------------------------------------------------------------------- */

static Val align(Cg *cg, Val x) {
    return cg_and(cg, cg_add(cg, x, cg_int64(cg, REGION_ALIGN - 1)), cg_int64(cg, -REGION_ALIGN));
}

static Val region(Cg *cg) {
    return nv_global(cg, frame_segment(cg->k, SEGMENT_AHEAD));
}

/* Tokens of all sequences times heads. */
static Val token_heads(Cg *cg) {
    Val T = cg_frame_field(cg, FRAME_T);
    Val packed = cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, FRAME_CU), cg_int64(cg, 0));
    Val tokens = cg_select(cg, packed, T, cg_mul(cg, T, cg_frame_field(cg, FRAME_N)));
    return cg_mul(cg, tokens, cg_frame_field(cg, FRAME_H));
}

Val scan_rows(Cg *cg, const ScanValue *value) {
    Val before = cg_mul(cg, token_heads(cg), cg_int64(cg, value->rows_at));
    return cg_gep8(cg, region(cg), before);
}

Val scan_carry_row(Cg *cg, const Scan *scan, Val stretch, Val head) {
    Val rows = align(cg, cg_mul(cg, token_heads(cg), cg_int64(cg, scan->token_bytes)));
    Val at = cg_add(cg, cg_mul(cg, stretch, cg_frame_field(cg, FRAME_H)), cg_zext64(cg, head));
    Val bytes = cg_mul(cg, at, cg_int64(cg, 4 * (int64_t)scan->carry_floats));
    return cg_gep8(cg, region(cg), cg_add(cg, rows, bytes));
}

/* A lane's n elements ------------------------------------------------------------------------- */

static int access_of(int n) { return n < 4 ? n : 4; }

void scan_load_lane(Cg *cg, Val p, int n, Val *out) {
    int each = access_of(n);
    Ty t = each > 1 ? LLVMVectorType(cg->f32, (unsigned)each) : cg->f32;
    for (int j = 0; j < n; j += each) {
        Val x = cg_load(cg, t, cg_gep8(cg, p, cg_int64(cg, 4 * j)), 4 * each);
        for (int e = 0; e < each; e++)
            out[j + e] = each > 1 ? cg_extract(cg, x, e) : x;
    }
}

static void store_group(Cg *cg, Val p, int n, const Val *x) {
    Val all = n > 1 ? LLVMGetPoison(LLVMVectorType(cg->f32, (unsigned)n)) : x[0];
    for (int e = 0; n > 1 && e < n; e++)
        all = cg_insert(cg, all, x[e], e);
    cg_store(cg, all, p, 4 * n);
}

void scan_store_lane(Cg *cg, Val p, int n, const Val *x) {
    int each = access_of(n);
    for (int j = 0; j < n; j += each)
        store_group(cg, cg_gep8(cg, p, cg_int64(cg, 4 * j)), each, x + j);
}

Val scan_add(Cg *cg, bool angle, Val a, Val b) {
    Val sum = cg_fadd(cg, a, b);
    return angle ? cg_within_turn(cg, sum) : sum;
}

/* walking a stretch ---------------------------------------------------------------------------- */

typedef struct Walk {
    Cg *cg;
    const Kernel *k;
    const Scan *scan;
    int round, part;
    bool back;            /* last token first */
    bool ended;           /* running sums have the token at hand already */
    Val lane, stretch;
    Seq seq;
    Val last;             /* past: i64 number of the record that the sequence leaves, -1: none */
    Val start, count;     /* i64 first token in the sequence; i32 tokens */
    Val live;             /* i1: the token at hand exists */
    ValueAt at;
    bool *read;           /* by value: from memory, ahead of use */
    int ahead;            /* tokens read at a time */
    Val *loaded[AHEAD];   /* by token and value: accesses, count * MAX_ACCESSES */
    Val **here;           /* by value: those of the token at hand, or NULL */
    Var **running;        /* by value: a running sum's elements, NULL where it is none of ours */
} Walk;

enum { MAX_ACCESSES = 8 };

static bool ours(const Walk *w, const ScanValue *m, bool sums) {
    return m->round == w->round && (sums ? scan_is_sum(w->k, m) : m->stored);
}

static int operand(const Walk *w, int v) { return inst_at(w->k, v)->arg[0]; }

static bool look_up(ValueAt *at, int v, Val *out) {
    Walk *w = at->user;
    if (w->here[v]) {
        value_unpack(at, v, w->here[v], out);
        return true;
    }
    if (!w->running[v])
        return false;
    const Val *now = w->ended ? NULL : value_get(at, operand(w, v));
    for (int j = 0; j < value_count(at, v); j++) {
        out[j] = cg_get(w->cg, w->running[v][j]);
        if (now)
            out[j] = scan_add(w->cg, value_is_angle(w->k, v), out[j], now[j]);
    }
    return true;
}

static Val add_lanes(ValueAt *at, int v, int axis, Val partial) {
    (void)v;
    (void)axis;
    for (int mask = 1; mask < SCAN_LANES; mask *= 2)
        partial = cg_fadd(at->cg, partial, nv_shuffle_xor(at->cg, partial, mask));
    return partial;
}

/* What the values that the walk makes at a token need there. */
static bool *needed_values(Walk *w) {
    bool *needed = NEW_ARRAY(w->cg->arena, bool, w->k->inst.count), sums = w->part == PART_sums;
    int count = 0;
    const Past *past = w->part == PART_past ? past_list(w->k, &count) : NULL;
    for (int i = 0; i < count; i++)
        if (past[i].value >= 0)
            scan_mark(w->k, w->scan, w->round, past[i].value, needed);
    for (int i = 0; i < w->scan->count; i++) {
        const ScanValue *m = &w->scan->value[i];
        if (ours(w, m, sums))
            scan_mark(w->k, w->scan, w->round, sums ? operand(w, m->value) : m->value, needed);
    }
    return needed;
}

/* What the walk reads of every token, and the running sums that it needs. */
static void plan_walk(Walk *w) {
    const Kernel *k = w->k;
    int count = k->inst.count, bytes = 0;
    const bool *needed = needed_values(w);
    w->read = NEW_ARRAY(w->cg->arena, bool, count);
    w->running = NEW_ARRAY(w->cg->arena, Var *, count);
    for (int v = 0; v < count; v++) {
        const Inst *i = inst_at(k, v);
        bool param = i->op == OP_in && k->in.at[i->index].is_param;
        w->read[v] = needed[v] && !param && value_in_memory(&w->at, v);
        bool sum = i->op == OP_cumsum || i->op == OP_cumsum_back;
        if (needed[v] && sum && !value_in_memory(&w->at, v))
            w->running[v] = NEW_ARRAY(w->cg->arena, Var, value_count(&w->at, v));
    }
    for (int v = 0; v < count; v++)
        if (w->read[v])
            bytes += (value_accesses(&w->at, v) * value_access_bytes(&w->at, v) + 3) / 4 * 4;
    w->ahead = AHEAD;
    while (w->ahead > 1 && w->ahead * bytes > 4 * AHEAD_REGISTERS)
        w->ahead /= 2;
    for (int t = 0; t < w->ahead; t++)
        w->loaded[t] = NEW_ARRAY(w->cg->arena, Val, count * MAX_ACCESSES);
    w->here = NEW_ARRAY(w->cg->arena, Val *, count);
}

/* The block's stretch; past: the last one of its sequence. */
static void place_stretch(Walk *w, Val block) {
    Cg *cg = w->cg;
    Val number, tokens = cg_int64(cg, SCAN_TOKENS), zero = cg_int64(cg, 0);
    if (w->part != PART_past) {
        w->stretch = cg_zext64(cg, block);
        w->seq = seq_of_slot(cg, w->stretch, SCAN_TOKENS, &number);
        w->start = cg_mul(cg, number, tokens);
        return;
    }
    w->seq = seq_of_index(cg, block, SCAN_TOKENS);
    w->last = pool_of_sequence(cg, &w->seq).last;
    Val any = cg_cmp(cg, LLVMIntSGT, w->seq.length, zero);
    Val before = cg_sub(cg, w->seq.length, cg_int64(cg, 1));
    number = cg_select(cg, any, cg_udiv(cg, before, tokens), zero);
    w->stretch = cg_add(cg, w->seq.slot, number);
    w->start = cg_mul(cg, number, tokens);
}

static void place_walk(Walk *w) {
    Cg *cg = w->cg;
    const Kernel *k = w->k;
    Val heads = cg_trunc32(cg, cg_frame_field(cg, FRAME_H)), block = nv_block(cg);
    int size_k = k->axis.at[AXIS_K].size, size_v = k->axis.at[AXIS_V].size;
    int n_k = scan_lane_elements(k, AXIS_K), n_v = scan_lane_elements(k, AXIS_V);
    w->lane = nv_tid(cg);
    place_stretch(w, cg_udiv(cg, block, heads));
    w->at = (ValueAt){
        .cg = cg, .begin = w->seq.begin, .end = cg_add(cg, w->seq.begin, w->seq.length), .head = cg_urem(cg, block, heads), .heads = heads,
        .base_k = cg_mul(cg, w->lane, cg_int(cg, n_k)),
        .base_v = cg_mul(cg, w->lane, cg_int(cg, n_v)), .n_k = n_k, .n_v = n_v,
        .past_k = SCAN_LANES * n_k > size_k, .past_v = SCAN_LANES * n_v > size_v,
        .lookup = look_up, .sum = add_lanes, .user = w, .scan = w->scan, .round = w->round};
    w->at.past = value_past(cg, w->seq.index, w->at.head, heads);
}

/* Token `t` (i32) of the stretch in the walk's order; for those past its end, the sequence's last. */
static void go_to(Walk *w, Val t) {
    Cg *cg = w->cg;
    Val last = cg_sub(cg, w->seq.length, cg_int64(cg, 1));
    w->live = cg_cmp(cg, LLVMIntSLT, t, w->count);
    if (w->back)
        t = cg_sub(cg, cg_sub(cg, w->count, cg_int(cg, 1)), t);
    Val in_seq = cg_add(cg, w->start, cg_zext64(cg, t));
    in_seq = cg_select(cg, w->live, in_seq, last);
    w->at.token = cg_add(cg, w->seq.begin, in_seq);
    w->at.first = cg_cmp(cg, LLVMIntEQ, in_seq, cg_int64(cg, 0));
    w->at.last = cg_cmp(cg, LLVMIntEQ, in_seq, last);
    value_begin(&w->at);
}

static void read_token(Walk *w, Val t, Val *loaded) {
    go_to(w, t);
    for (int v = 0; v < w->k->inst.count; v++)
        if (w->read[v])
            value_load(&w->at, v, loaded + v * MAX_ACCESSES);
}

static void enter_token(Walk *w, Val t, Val *loaded) {
    go_to(w, t);
    for (int v = 0; v < w->k->inst.count; v++)
        w->here[v] = w->read[v] ? loaded + v * MAX_ACCESSES : NULL;
}

static void each_token(Walk *w, void (*visit)(Walk *w)) {
    Cg *cg = w->cg;
    Loop group = cg_for(cg, cg_int(cg, 0), w->count, w->ahead, false);
    for (int t = 0; t < w->ahead; t++)
        read_token(w, cg_add(cg, group.i, cg_int(cg, t)), w->loaded[t]);
    for (int t = 0; t < w->ahead; t++) {
        enter_token(w, cg_add(cg, group.i, cg_int(cg, t)), w->loaded[t]);
        visit(w);
    }
    cg_end_for(cg, &group);
}

/* sums ----------------------------------------------------------------------------------------- */

static Val lane_of(Walk *w, const ScanValue *m, Val row) {
    Cg *cg = w->cg;
    Val bytes = cg_mul(cg, w->lane, cg_int(cg, 4 * m->n));
    return cg_gep8(cg, cg_gep8(cg, row, cg_int64(cg, 4 * (int64_t)m->carry_at)),
                   cg_zext64(cg, bytes));
}

static void add_token(Walk *w) {
    Cg *cg = w->cg;
    for (int i = 0; i < w->scan->count; i++) {
        const ScanValue *m = &w->scan->value[i];
        if (!ours(w, m, true))
            continue;
        const Val *x = value_get(&w->at, operand(w, m->value));
        for (int j = 0; j < m->n; j++) {
            Var sum = w->running[m->value][j];
            Val now = cg_select(cg, w->live, x[j], cg_float(cg, 0));
            cg_set(cg, sum, scan_add(cg, value_is_angle(w->k, m->value), cg_get(cg, sum), now));
        }
    }
}

static void make_sums(Walk *w) {
    Cg *cg = w->cg;
    for (int i = 0; i < w->scan->count; i++) {
        const ScanValue *m = &w->scan->value[i];
        if (!ours(w, m, true))
            continue;
        w->running[m->value] = NEW_ARRAY(cg->arena, Var, m->n);
        for (int j = 0; j < m->n; j++)
            w->running[m->value][j] = cg_var(cg, cg->f32, cg_float(cg, 0));
    }
    each_token(w, add_token);
    Val row = scan_carry_row(cg, w->scan, w->stretch, w->at.head);
    for (int i = 0; i < w->scan->count; i++) {
        const ScanValue *m = &w->scan->value[i];
        Val *x = NEW_ARRAY(cg->arena, Val, m->n);
        for (int j = 0; ours(w, m, true) && j < m->n; j++)
            x[j] = cg_get(cg, w->running[m->value][j]);
        if (ours(w, m, true))
            scan_store_lane(cg, lane_of(w, m, row), m->n, x);
    }
}

/* rows ----------------------------------------------------------------------------------------- */

static void open_running(Walk *w) {
    Cg *cg = w->cg;
    Val row = scan_carry_row(cg, w->scan, w->stretch, w->at.head);
    for (int i = 0; i < w->scan->count; i++) {
        const ScanValue *m = &w->scan->value[i];
        if (!w->running[m->value])
            continue;
        Val *x = NEW_ARRAY(cg->arena, Val, m->n);
        scan_load_lane(cg, lane_of(w, m, row), m->n, x);
        for (int j = 0; j < m->n; j++)
            w->running[m->value][j] = cg_var(cg, cg->f32, x[j]);
    }
}

/* A scalar is the same in every lane. */
static void store_value(Walk *w, const ScanValue *m) {
    Cg *cg = w->cg;
    int64_t size = m->axis < 0 ? 1 : w->k->axis.at[m->axis].size;
    int group = size % 4 == 0 && m->n % 4 == 0 ? 4 : size % 2 == 0 && m->n % 2 == 0 ? 2 : 1;
    const Val *x = value_get(&w->at, m->value);
    Val row = cg_mul(cg, w->at.token, cg_frame_field(cg, FRAME_H));
    row = cg_mul(cg, cg_add(cg, row, cg_zext64(cg, w->at.head)), cg_int64(cg, 4 * size));
    Val p = cg_gep8(cg, scan_rows(cg, m), row);
    if (m->axis >= 0)
        p = cg_gep8(cg, p, cg_zext64(cg, cg_mul(cg, w->lane, cg_int(cg, 4 * m->n))));
    for (int j = 0; j < m->n; j += group) {
        Val exists = m->axis < 0 ? cg_cmp(cg, LLVMIntEQ, w->lane, cg_int(cg, 0))
                                 : value_exists(&w->at, m->axis, j);
        If stored = cg_if(cg, exists ? cg_and(cg, w->live, exists) : w->live);
        store_group(cg, cg_gep8(cg, p, cg_int64(cg, 4 * j)), group, x + j);
        cg_end_if(cg, &stored);
    }
}

/* Everything is made before a sum moves on, so that one which looks at another sees this token's. */
static void make_token(Walk *w) {
    Cg *cg = w->cg;
    for (int v = 0; v < w->k->inst.count; v++)
        if (w->running[v])
            value_get(&w->at, v);
    for (int i = 0; i < w->scan->count; i++)
        if (ours(w, &w->scan->value[i], false))
            store_value(w, &w->scan->value[i]);
    for (int v = 0; v < w->k->inst.count; v++)
        for (int j = 0; w->running[v] && j < value_count(&w->at, v); j++)
            cg_set(cg, w->running[v][j], value_get(&w->at, v)[j]);
}

static void count_tokens(Walk *w) {
    Cg *cg = w->cg;
    Val left = cg_sub(cg, w->seq.length, w->start), most = cg_int64(cg, SCAN_TOKENS);
    w->count = cg_trunc32(cg, cg_select(cg, cg_cmp(cg, LLVMIntSLT, left, most), left, most));
    value_ports(&w->at);
}

static void build_walk(Walk *w) {
    Cg *cg = w->cg;
    place_walk(w);
    plan_walk(w);
    If some = cg_if(cg, cg_cmp(cg, LLVMIntSLT, w->start, w->seq.length));
    count_tokens(w);
    if (w->part == PART_sums) {
        make_sums(w);
    } else {
        open_running(w);
        each_token(w, make_token);
    }
    cg_end_if(cg, &some);
}

/* what the sequence leaves --------------------------------------------------------------------- */

static void sum_token(Walk *w) {
    Cg *cg = w->cg;
    for (int v = 0; v < w->k->inst.count; v++)
        if (w->running[v])
            value_get(&w->at, v);
    for (int v = 0; v < w->k->inst.count; v++)
        for (int j = 0; w->running[v] && j < value_count(&w->at, v); j++) {
            Var sum = w->running[v][j];
            cg_set(cg, sum, cg_select(cg, w->live, value_get(&w->at, v)[j], cg_get(cg, sum)));
        }
}

/* Number `at` of the record's floats, or the one as many behind it as this lane's first channel is. */
static Val record_place(Walk *w, Val record, int at, int axis, int j) {
    Cg *cg = w->cg;
    Val p = cg_gep8(cg, record, cg_int64(cg, 4 * ((int64_t)at + j)));
    Val base = axis == AXIS_K ? w->at.base_k : w->at.base_v;
    return axis < 0 ? p : cg_gep8(cg, p, cg_shl(cg, cg_zext64(cg, base), 2));
}

static void leave_value(Walk *w, Val record, const Past *past) {
    Cg *cg = w->cg;
    Shape s = inst_at(w->k, past->value)->shape;
    int axis = shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
    const Val *x = value_get(&w->at, past->value);
    for (int j = 0; j < value_count(&w->at, past->value); j++) {
        Val exists = axis < 0 ? cg_cmp(cg, LLVMIntEQ, w->lane, cg_int(cg, 0))
                              : value_exists(&w->at, axis, j);
        If there = {0};
        if (exists)
            there = cg_if(cg, exists);
        cg_store(cg, x[j], record_place(w, record, past->at, axis, j), 4);
        if (exists)
            cg_end_if(cg, &there);
    }
}

/* `floats` of the record from number `at` on become those of another one, or 0 (NULL, or a null pointer). */
static void leave_floats(Walk *w, Val record, int at, int floats, Val from) {
    Cg *cg = w->cg;
    Loop l = cg_for(cg, w->lane, cg_int(cg, floats), SCAN_LANES, false);
    Val offset = cg_shl(cg, cg_zext64(cg, cg_add(cg, l.i, cg_int(cg, at))), 2);
    Var x = cg_var(cg, cg->f32, cg_float(cg, 0));
    if (from) {
        If given = cg_if(cg, LLVMBuildIsNotNull(cg->b, from, ""));
        cg_set(cg, x, cg_load(cg, cg->f32, cg_gep8(cg, from, offset), 4));
        cg_end_if(cg, &given);
    }
    cg_store(cg, cg_get(cg, x), cg_gep8(cg, record, offset), 4);
    cg_end_for(cg, &l);
}

/* The record may be the one that the sequence began with: all of it is read before any of it is written. */
static void leave_last(Walk *w, Val record) {
    Cg *cg = w->cg;
    int count;
    const Past *past = past_list(w->k, &count);
    bool sums = false;
    count_tokens(w);
    for (int v = 0; v < w->k->inst.count; v++)
        sums = sums || w->running[v];
    if (sums) {
        open_running(w);
        each_token(w, sum_token);
    }
    w->ended = true;
    memset(w->here, 0, (size_t)w->k->inst.count * sizeof *w->here);
    go_to(w, cg_sub(cg, w->count, cg_int(cg, 1)));
    for (int i = 0; i < count; i++)
        if (past[i].value >= 0)
            value_get(&w->at, past[i].value);
    nv_barrier(cg);
    for (int i = 0; i < count; i++)
        if (past[i].value >= 0)
            leave_value(w, record, &past[i]);
        else
            leave_floats(w, record, past[i].at, past[i].floats, NULL);
}

static void build_past(Walk *w) {
    Cg *cg = w->cg;
    Val zero = cg_int64(cg, 0);
    int size = w->k->facts.past;
    place_walk(w);
    plan_walk(w);
    Val given = cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, FRAME_PAST), zero);
    If wanted = cg_if(cg, cg_and(cg, given, cg_cmp(cg, LLVMIntSGE, w->last, zero)));
    Val number = cg_add(cg, cg_mul(cg, w->last, cg_frame_field(cg, FRAME_H)), cg_zext64(cg, w->at.head));
    Val record = cg_gep8(cg, nv_global(cg, FRAME_PAST), cg_mul(cg, number, cg_int64(cg, 4 * (int64_t)size)));
    If some = cg_if(cg, cg_cmp(cg, LLVMIntSGT, w->seq.length, zero));
    leave_last(w, record);
    cg_else(cg, &some);
    leave_floats(w, record, 0, size, w->at.past);
    cg_end_if(cg, &some);
    cg_end_if(cg, &wanted);
}

/* entries -------------------------------------------------------------------------------------- */

static bool has_part(const Kernel *k, const Scan *scan, int round, int part) {
    for (int i = 0; i < scan->count; i++) {
        const ScanValue *m = &scan->value[i];
        if (m->round == round && (part == PART_rows ? m->stored : scan_is_sum(k, m)))
            return true;
    }
    return false;
}

int scan_entries(const Kernel *k, const Scan *scan, bool back) {
    int n = 0, first = back ? scan->grad_round + 1 : 0;
    for (int i = PARTS * first; i < PARTS * (back ? scan->rounds : scan->grad_round); i++)
        n += has_part(k, scan, i / PARTS, i % PARTS);
    return n;
}

static const char *symbol_of(Cg *cg, const char *name, const char *number) {
    int size = (int)(strlen(cg->k->name) + strlen(cg->opt->prefix ? cg->opt->prefix : "") + 32);
    char *symbol = arena_alloc(cg->arena, (size_t)size);
    snprintf(symbol, (size_t)size, "%s%s_%s%s", cg->opt->prefix ? cg->opt->prefix : "", cg->k->name, name,
             number);
    return symbol;
}

void scan_build(Cg *cg, const Scan *scan, bool back, int which, CgModule *out) {
    static const char *const name[] = {"sums", "carry", "rows"};
    int i = back ? PARTS * (scan->grad_round + 1) : 0;
    for (int n = 0;; i++) {
        CHECK(i < PARTS * scan->rounds);
        if (has_part(cg->k, scan, i / PARTS, i % PARTS) && n++ == which)
            break;
    }
    int round = i / PARTS, part = i % PARTS;
    CgEntry e = {.kind = part == PART_carry ? ENTRY_carry : ENTRY_scan,
                 .threads = part == PART_carry ? CARRY_WARPS * SCAN_LANES : SCAN_LANES};
    char number[16];
    snprintf(number, sizeof number, "%d", round);
    e.symbol = symbol_of(cg, name[part], number);
    nv_kernel_open(cg, e.symbol, e.threads, part == PART_carry ? 1 : WALKS_PER_SM);
    if (part == PART_carry) {
        e.smem_bytes = scan_build_carry(cg, scan, round);
    } else {
        Walk *w = NEW(cg->arena, Walk);
        *w = (Walk){.cg = cg, .k = cg->k, .scan = scan, .round = round, .part = part,
                    .back = back};
        build_walk(w);
    }
    nv_kernel_close(cg);
    VEC_PUSH(cg->arena, &out->entry, e);
    out->scan_token_bytes = scan->token_bytes;
    out->scan_carry_bytes = 4 * (int64_t)scan->carry_floats;
}

void scan_build_past(Cg *cg, const Scan *scan, CgModule *out) {
    CgEntry e = {.kind = ENTRY_past, .threads = SCAN_LANES, .symbol = symbol_of(cg, "past", "")};
    Walk *w = NEW(cg->arena, Walk);
    *w = (Walk){.cg = cg, .k = cg->k, .scan = scan, .round = SCAN_ALL, .part = PART_past};
    nv_kernel_open(cg, e.symbol, e.threads, WALKS_PER_SM);
    build_past(w);
    nv_kernel_close(cg);
    VEC_PUSH(cg->arena, &out->entry, e);
}
