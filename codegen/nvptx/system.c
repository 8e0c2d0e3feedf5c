/* Recognising the chunk system in a tile-level kernel: which values are its families, mixes, keys
 * and decays, where each lies in the workspace, and the sizes everything is padded to.
 *
 * The passes give every spec one form (ir/ir.h); here it is only read off:
 *     next    D*S + contract(P, X)            P = contract(solve T, Kt) or Kt
 *     reads   contract(W, S) [+ contract(M, X) for an out]     W = carry(x, a) or x
 *     M       contract(scores(x, p, a), solve T) or the scores
 */
#include "codegen/nvptx/factor.h"

#include <math.h>
#include <stdio.h>

/* Magnitude up to which rows and keys go through f16 as they are. */
#define F16_ROW_BOUND 8.0

static const char *fail(const char **why, const char *text) {
    *why = text;
    return text;
}

int nv_strip(const Kernel *k, int v) {
    while (inst_at(k, v)->op == OP_rename)
        v = inst_at(k, v)->arg[0];
    return v;
}

static bool is_lattice(int axis) {
    return axis == AXIS_R || axis == AXIS_U;
}

/* The other operand of a contraction with `v`, or -1. */
static int partner(const Inst *i, int v) {
    return i->arg[0] == v ? i->arg[1] : i->arg[1] == v ? i->arg[0] : -1;
}

int nv_find_op(const Kernel *k, Op op) {
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == op)
            return v;
    return -1;
}

/* The row value behind a contraction's left operand. */
static int uncarried(const Kernel *k, int w) {
    w = nv_strip(k, w);
    return inst_at(k, w)->op == OP_carry ? inst_at(k, w)->arg[0] : w;
}

static void find_reads(const Kernel *k, System *s, int state, int *reads, int *count) {
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op != OP_contract || i->axis != AXIS_K || partner(i, state) < 0)
            continue;
        int w = partner(i, state);
        if (shape_has(inst_at(k, w)->shape, AXIS_R)) {
            s->erase = true;
            s->family[0] = (Family){.x = uncarried(k, w), .carried = w, .read = v, .scores = -1,
                                    .mix = -1, .mixed = -1, .position = -1};
        } else {
            reads[(*count)++] = v;
        }
    }
}

/* The out family that contract(M, X) at v completes. */
static bool add_out(const Kernel *k, System *s, int v, int m, int state, const int *reads,
                    int count) {
    int scores = nv_strip(k, m);
    if (inst_at(k, scores)->op == OP_contract) {
        const Inst *i = inst_at(k, scores);
        int first = nv_strip(k, i->arg[0]);
        scores = inst_at(k, first)->op == OP_solve ? nv_strip(k, i->arg[1]) : first;
    }
    const Inst *sc = inst_at(k, scores);
    if (sc->op != OP_scores || s->families == MAX_FAMILIES)
        return false;
    for (int r = 0; r < count; r++) {
        int w = partner(inst_at(k, reads[r]), state);
        const Inst *carry = inst_at(k, nv_strip(k, w));
        if (uncarried(k, w) != sc->arg[0] || (carry->op == OP_carry && carry->place != sc->place))
            continue;
        s->family[s->families++] = (Family){
            .x = sc->arg[0], .scores = scores, .carried = w, .read = reads[r], .mix = m, .mixed = v,
            .inclusive = sc->place > 0, .position = sc->place > 0 ? sc->place - 1 : 0};
        return true;
    }
    return false;
}

/* The outs in the order of their scores, in which nv_gradient has them. */
static void sort_outs(System *s) {
    for (int f = s->erase + 1; f < s->families; f++) {
        Family moved = s->family[f];
        int at = f;
        for (; at > s->erase && s->family[at - 1].scores > moved.scores; at--)
            s->family[at] = s->family[at - 1];
        s->family[at] = moved;
    }
}

static bool find_families(const Kernel *k, System *s, const char **why) {
    int state = nv_find_op(k, OP_state), *reads = NEW_ARRAY(k->arena, int, k->inst.count), count = 0;
    if (state < 0)
        return !fail(why, "the kernel has no state");
    find_reads(k, s, state, reads, &count);
    s->families = s->erase;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op != OP_contract || !is_lattice(i->axis))
            continue;
        for (int j = 0; j < 2; j++) {
            Shape left = inst_at(k, i->arg[j])->shape, right = inst_at(k, i->arg[1 - j])->shape;
            if (!shape_has(right, AXIS_V))
                continue;
            s->X = i->arg[1 - j];
            if (shape_has(left, AXIS_C) && !add_out(k, s, v, i->arg[j], state, reads, count))
                return !fail(why, "more reads in the outs than the GPU kernels hold");
        }
    }
    if (s->erase)
        for (int v = 0; v < k->inst.count; v++)
            if (inst_at(k, v)->op == OP_solve)
                s->family[0].scores = nv_strip(k, inst_at(k, v)->arg[0]);
    int erase = s->erase ? s->family[0].scores : -1;
    if (erase >= 0 && inst_at(k, erase)->op != OP_scores)
        return !fail(why, "an update reads the state before earlier updates of its token, and the "
                          "GPU chunk kernels hold rows in time order");
    sort_outs(s);
    return true;
}

/* Keys and decays from any operation that names them. */
static bool find_keys(const Kernel *k, System *s, const char **why) {
    s->p = s->a = -1;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        int p = i->op == OP_scores ? i->arg[1] : i->op == OP_tail ? i->arg[0] : -1;
        int a = i->op == OP_scores ? i->arg[2] : i->op == OP_tail || i->op == OP_carry ? i->arg[1]
                : i->op == OP_total                                                    ? i->arg[0]
                                                                                       : -1;
        CHECK(p < 0 || s->p < 0 || p == s->p);
        CHECK(a < 0 || s->a < 0 || a == s->a);
        s->p = p >= 0 ? p : s->p;
        s->a = a >= 0 ? a : s->a;
    }
    /* Without outs and decay the keys appear only in P itself. */
    for (int v = 0; v < k->inst.count && s->p < 0; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_weave && i->axis == AXIS_U && shape_has(i->shape, AXIS_K))
            s->p = v;
    }
    s->a_key = s->a >= 0 && shape_has(inst_at(k, s->a)->shape, AXIS_K);
    return s->p >= 0 || !fail(why, "the update writes nothing");
}

static double magnitude(const Kernel *k, int v) {
    Range r = value_range(k, v);
    return fmax(fabs(r.lo), fabs(r.hi));
}

/* Whether a per-token input that v needs is f32: 16-bit ones are coarser than our rounding. */
static bool reads_f32(const Kernel *k, int v) {
    bool *needed = NEW_ARRAY(k->arena, bool, k->inst.count), found = false;
    value_mark(k, v, needed);
    for (int i = 0; i < k->inst.count; i++) {
        const Inst *in = inst_at(k, i);
        if (needed[i] && in->op == OP_in)
            found = found || (!k->in.at[in->index].is_param && k->in.at[in->index].elem == ELEM_f32);
    }
    return found;
}

/* Without vector decay the erase row of the delta rule, beta k, is a multiple of the key. */
static int find_multiple(const Kernel *k, const System *s) {
    if (!s->erase || s->a_key || s->slots > 1 || s->family[0].scaled || s->split)
        return -1;
    int key = inst_at(k, s->p)->arg[0];
    const Inst *x = inst_at(k, inst_at(k, s->family[0].x)->arg[0]);
    for (int j = 0; j < 2 && x->op == OP_mul; j++)
        if (x->arg[j] == key && !shape_has(inst_at(k, x->arg[1 - j])->shape, AXIS_K))
            return x->arg[1 - j];
    return -1;
}

void nv_system_scales(const Kernel *k, System *s) {
    double key = magnitude(k, s->p), row = 0;
    s->operand = ELEM_f16;
    s->p_scaled = !(key <= F16_ROW_BOUND);
    key = s->p_scaled ? 2 : key;
    for (int f = 0; f < s->families; f++) {
        double x = magnitude(k, s->family[f].x);
        Family *fam = &s->family[f];
        fam->unbounded = !(x <= F16_ROW_BOUND);
        bool exact = s->erase && f == 0 && reads_f32(k, fam->x);
        fam->corrected = exact && s->a_key;
        s->split = s->split || (exact && !s->a_key);
        fam->scaled = fam->unbounded || fam->corrected;
        row = fmax(row, fam->unbounded ? 2 : x);
    }
    s->scores = row * key * s->K;
    s->has_scale = s->erase;
    s->key_multiple = find_multiple(k, s);
}

int nv_block_columns(int columns) {
    return columns % 64 == 0 ? 64 : columns % 32 == 0 ? 32 : 16;
}

Val nv_place(Cg *cg, int rows, int columns, Val row, Val unit) {
    int width = nv_block_columns(columns) / 8, log = width == 8 ? 3 : width == 4 ? 2 : 1;
    Val in_row = columns == 8 * width ? unit : cg_and(cg, unit, cg_int(cg, width - 1));
    Val turned = cg_xor(cg, in_row, cg_and(cg, cg_shr(cg, row, 3 - log), cg_int(cg, width - 1)));
    Val place = cg_add(cg, cg_shl(cg, row, log), turned);
    if (columns == 8 * width)
        return place;
    Val block = cg_shr(cg, unit, log);
    return cg_add(cg, place, cg_mul(cg, block, cg_int(cg, rows * width)));
}

static int64_t take(int64_t *at, int64_t bytes) {
    int64_t here = *at;
    *at += (bytes + 1023) / 1024 * 1024;
    return here;
}

static void place_row_factors(System *s, int64_t *at, int first, int last) {
    for (int f = first; f < last; f++) {
        s->family[f].ws_rows = *at;
        *at += s->family[f].scaled ? s->rows * 4 : 0;
    }
}

/* What the chain takes: the erase rows and what writes the state; forwards all the rest of the record. */
static void place_writes(System *s, int64_t *at) {
    s->ws_p = take(at, (int64_t)s->rows * s->kp * 2);
    s->ws_d = *at;
    s->ws_scale = *at + (s->a_key ? s->kp * 4 : 16);
    *at = s->ws_scale + 16;
    place_row_factors(s, at, 0, s->trail ? s->erase : s->families);
    s->ws_keys = *at;
    *at += s->p_scaled && (!s->erase || s->trail) ? s->rows * 4 : 0;
    s->ws_columns = *at;
    *at += s->grows ? s->rows * 4 : 0;
}

static void place_outs(System *s, int64_t *at) {
    int64_t wide = (int64_t)s->rows * s->kp * 2, square = (int64_t)s->rows * s->rows * 2;
    for (int f = s->erase; f < s->families; f++)
        s->family[f].ws_w = take(at, wide);
    for (int f = s->erase; f < s->families; f++)
        s->family[f].ws_m = take(at, square);
}

static void place_trail(System *s, int64_t *at) {
    int64_t state = (int64_t)s->vp * s->kp * 2, rows = (int64_t)s->rows * s->vp * 2;
    s->ws_a = s->erase ? take(at, (int64_t)s->rows * s->rows * 2) : 0;
    s->ws_s = take(at, state);
    s->ws_ds = take(at, state);
    s->ws_x = take(at, rows);
    s->ws_dx = take(at, rows);
    int64_t *unit[] = {&s->ws_unit_s, &s->ws_unit_ds, &s->ws_unit_x, &s->ws_unit_dx};
    for (int i = 0; i < 4; i++) {
        *unit[i] = *at;
        *at += s->vp * 4;
    }
    s->ws_a_rows = *at;
    *at += s->grows ? s->rows * 4 : 0;
}

static int64_t round128(int64_t x) { return (x + 127) / 128 * 128; }

void nv_system_place(System *s) {
    int64_t at = 0;
    s->grows = s->trains && s->erase && s->p_scaled;
    for (int f = 0; f < s->erase; f++)
        s->family[f].ws_w = take(&at, (int64_t)s->rows * s->kp * 2);
    if (!s->trail) {
        place_outs(s, &at);
        place_writes(s, &at);
        s->ws_copied = s->ws_bytes = round128(at);
        return;
    }
    place_writes(s, &at);
    s->ws_copied = at = round128(at);
    at = (at + 1023) / 1024 * 1024;
    place_outs(s, &at);
    place_row_factors(s, &at, s->erase, s->families);
    s->ws_reversed = at = round128(at);
    at = (at + 1023) / 1024 * 1024;
    place_trail(s, &at);
    s->ws_bytes = (at + 1023) / 1024 * 1024;
}

bool nv_system_sizes(Arena *arena, const Kernel *k, System *s, const char **why) {
    *s = (System){.slots = k->facts.slots, .chunk = k->axis.at[AXIS_C].size,
                  .K = k->axis.at[AXIS_K].size, .V = k->axis.at[AXIS_V].size,
                  .trail = kernel_is_gradient(k), .trains = kernel_is_gradient(k)};
    CHECK(k->level == LEVEL_tile);
    int rows = s->slots * s->chunk;
    if (s->K > 256 || s->V > 256 || rows > 64) {
        char *text = arena_alloc(arena, 160);
        snprintf(text, 160, "GPU chunk kernels hold K and V up to 256 and chunks up to 64 updates; "
                            "here K = %d, V = %d, %d updates", s->K, s->V, rows);
        return !fail(why, text);
    }
    s->rows = rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
    s->warps = s->rows / BLOCK_ROWS;
    s->kp = (s->K + SLAB - 1) / SLAB * SLAB;
    s->vp = (s->V + 15) / 16 * 16;
    return true;
}

bool nv_system(Arena *arena, const Kernel *k, System *s, const char **why) {
    if (!nv_system_sizes(arena, k, s, why))
        return false;
    CHECK(nv_find_op(k, OP_next) >= 0 && !s->trail);
    if (!find_families(k, s, why) || !find_keys(k, s, why))
        return false;
    nv_system_scales(k, s);
    nv_system_place(s);
    s->scan = scan_plan(k, s, NULL);
    return s->scan->rounds <= SCAN_ROUNDS_MAX ||
           !fail(why, "running sums of running sums, more than four deep, have no GPU chunk kernel");
}

bool nv_system_keep(const Kernel *k, System *s, bool all, const char **why) {
    s->trail = all;
    s->trains = true;
    nv_system_scales(k, s);
    nv_system_place(s);
    s->scan = scan_plan(k, s, NULL);
    return nv_record_sums(k, s, why);
}

Val nv_records(Cg *cg) {
    return nv_global(cg, cg->opt->save_all ? FRAME_SAVED : FRAME_WS);
}
