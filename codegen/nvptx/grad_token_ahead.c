/* Rows of tokens to come, on their way to shared memory while the present token is worked on.
 *
 *     stages    a ring in shared memory, a stage for each token that a lane has under way
 *     items     what a token's gradients read: cotangents in scratch and record, inputs' rows, and what
 *               heads before this one left of sums, where that costs no stage
 *
 * Every lane copies the 16-byte units that it will read itself, so no barrier is needed. A number a token
 * (a gate, a strength, the cotangent of a scalar decay) is no such unit: each lane reads one token's before the
 * first one is worked on, and a shuffle brings it. What is neither is read when it is wanted. */
#include "codegen/nvptx/grad_token.h"

enum { UNIT = 16, STAGES_MOST = 4, ITEMS_MOST = 24, UNITS_MOST = 4, NUMBERS_MOST = 16,
       WARP_LANES = 32 };

/* The rows of value v at a token's update, or what else grad_token.h calls a place. */
typedef struct Item {
    int v, place, unit, units; /* of a stage: the first of this lane's, and their number */
} Item;

/* A number a token: f32, that of the warp's token whose number is this lane's. */
typedef struct Number {
    int v, place;
    Val own;
} Number;

struct Ahead {
    int stages, units, threads, base; /* no stages: nothing is copied */
    Item item[ITEMS_MOST];
    int items;
    Number number[NUMBERS_MOST];
    int numbers;
    Tokens at;   /* as the present token's, at the one that is copied or read */
    Var which;   /* i32: the present token's stage */
    Val stage;   /* the same in this iteration */
    Var owner;   /* i32: the lane that has the present token's numbers */
    Val present; /* the same in this iteration */
};

/* plan ------------------------------------------------------------------------------------------- */

static void add_item(Ahead *a, int v, int place, int units) {
    if (a->items == ITEMS_MOST || units < 1 || units > UNITS_MOST)
        return;
    a->item[a->items++] = (Item){v, place, a->units, units};
    a->units += units;
}

static void add_number(Ahead *a, int v, int place) {
    if (a->numbers < NUMBERS_MOST)
        a->number[a->numbers++] = (Number){.v = v, .place = place};
}

static void add_input(Ahead *a, Tokens *x, int v) {
    const Kernel *k = x->g->k;
    const Inst *i = inst_at(k, v);
    if (k->in.at[i->index].is_param)
        return;
    if (tokens_run_axis(i->shape) < 0)
        add_number(a, v, PLACE_INPUT);
    else if (value_access_bytes(&x->at, v) == UNIT)
        add_item(a, v, PLACE_INPUT, value_accesses(&x->at, v));
}

static void add_cotangent(Ahead *a, Tokens *x, int v, int place) {
    int bytes = tokens_row_bytes(x, v);
    if (!tokens_in_memory(x, v))
        return;
    if (tokens_count(x, inst_at(x->g->k, v)->shape) == 1)
        add_number(a, v, place);
    else if (bytes % UNIT == 0)
        add_item(a, v, place, bytes / UNIT);
}

/* Under renamings and sums of cotangents. */
static void add_lattice(Ahead *a, Tokens *x, int v, int place) {
    const Inst *i = inst_at(x->g->k, v);
    if (x->g->g->zero[v])
        return;
    if (tokens_in_memory(x, v))
        add_cotangent(a, x, v, place);
    else if (i->op == OP_rename || op_info[i->op].class == CLASS_PURE)
        for (int j = 0; j < i->nargs; j++)
            add_lattice(a, x, i->arg[j], place);
}

static void add_items(Ahead *a, Tokens *x) {
    const Kernel *k = x->g->k;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (!x->needed[v] || x->g->g->zero[v])
            continue;
        if (i->op == OP_in)
            add_input(a, x, v);
        else if (i->op == OP_slot && !x->late)
            add_lattice(a, x, i->arg[0], i->place);
        else if (tokens_in_memory(x, v) && shape_has(i->shape, AXIS_C))
            add_cotangent(a, x, v, tokens_place(x, v));
    }
}

static int stage_bytes(const Ahead *a) { return a->units * a->threads * UNIT; }

/* As many stages as the phases before leave room for. */
static int stages_of(const Ahead *a, const Grad *g) {
    int stages = a->units ? (g->sh_bytes - a->base) / stage_bytes(a) : 0;
    return stages > STAGES_MOST ? STAGES_MOST : stages;
}

/* Only launches with heads that share inputs read these. */
static void add_sums(Ahead *a, Tokens *x) {
    const Kernel *k = x->g->k;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op != OP_out || k->out.at[i->index].is_param || !tokens_gives(x, i))
            continue;
        Ahead with = *a;
        add_item(&with, v, PLACE_SUM, tokens_sum_units(x, v));
        if (stages_of(&with, x->g) == a->stages)
            *a = with;
    }
}

/* Two stages at least where there are any. */
void tokens_plan_ahead(Tokens *x, int *sh_bytes) {
    Grad *g = x->g;
    Ahead *a = NEW(g->cg->arena, Ahead);
    *a = (Ahead){.threads = 32 * g->g->s.warps, .base = (*sh_bytes + UNIT - 1) / UNIT * UNIT};
    add_items(a, x);
    a->stages = stages_of(a, g);
    if (g->g->s.chunk > WARP_LANES * g->g->s.warps)
        a->numbers = 0;
    if (a->stages < 2)
        a->stages = a->items = 0;
    if (a->stages == 0 && a->numbers == 0)
        return;
    x->ahead = a;
    if (a->stages == 0)
        return;
    add_sums(a, x);
    *sh_bytes = a->base + a->stages * stage_bytes(a);
}

/* copies ----------------------------------------------------------------------------------------- */

static Val unit_place(const Ahead *a, Cg *cg, Val stage, int unit) {
    Val at = cg_add(cg, cg_mul(cg, stage, cg_int(cg, a->units)), cg_int(cg, unit));
    at = cg_add(cg, cg_mul(cg, at, cg_int(cg, a->threads)), nv_tid(cg));
    return cg_gep8(cg, nv_shared(cg, a->base), cg_shl(cg, at, 4));
}

static void copy_item(Ahead *a, const Item *item, Val stage) {
    Tokens *y = &a->at;
    Cg *cg = y->g->cg;
    Val from[UNITS_MOST], bytes[UNITS_MOST];
    for (int u = 0; u < item->units; u++)
        bytes[u] = cg_int(cg, UNIT);
    if (item->place == PLACE_SUM)
        tokens_sum_at(y, item->v, from, bytes);
    else if (item->place == PLACE_INPUT)
        value_addresses(&y->at, item->v, from);
    else
        tokens_row_units(y, item->v, item->place, item->units, from);
    for (int u = 0; u < item->units; u++)
        nv_copy_async(cg, unit_place(a, cg, stage, item->unit + u), from[u], bytes[u]);
}

/* The token that these lanes work on when the warp is at `first`, into a stage. */
static void copy_token(Ahead *a, Val first, Val left, Val stage) {
    Cg *cg = a->at.g->cg;
    bool sums = a->item[a->items - 1].place == PLACE_SUM; /* these are the last ones */
    tokens_place_at(&a->at, cg_add(cg, first, tokens_side(&a->at)), left);
    for (int i = 0; i < a->items; i++)
        if (a->item[i].place != PLACE_SUM)
            copy_item(a, &a->item[i], stage);
    If more = sums ? cg_if(cg, a->at.g->more) : (If){0};
    for (int i = 0; i < a->items; i++)
        if (a->item[i].place == PLACE_SUM)
            copy_item(a, &a->item[i], stage);
    if (sums)
        cg_end_if(cg, &more);
    nv_copy_commit(cg);
}

/* Lane l has the numbers of the warp's token l: at_once neighbours, then those that are `step` further. */
static void read_numbers(Ahead *a, Val first, Val left, int64_t step) {
    Tokens *y = &a->at;
    Cg *cg = y->g->cg;
    Val at_once = cg_int(cg, WARP_LANES / y->lanes), lane = y->g->lane;
    Val turn = cg_mul(cg, cg_udiv(cg, lane, at_once), cg_int(cg, step));
    tokens_place_at(y, cg_add(cg, first, cg_add(cg, turn, cg_urem(cg, lane, at_once))), left);
    for (int i = 0; i < a->numbers; i++) {
        Number *n = &a->number[i];
        n->own = n->place == PLACE_INPUT ? value_get(&y->at, n->v)[0]
                                         : tokens_load_number(y, n->v, n->place);
    }
    a->owner = cg_var(cg, cg->i32, tokens_side(y));
}

void tokens_begin_ahead(Tokens *x, Val first, Val left, int64_t step) {
    Ahead *a = x->ahead;
    Cg *cg = x->g->cg;
    if (!a)
        return;
    a->at = *x;
    a->at.at.memo = NULL;
    a->at.at.before = NULL;
    a->at.at.lookup = NULL;
    if (a->numbers > 0)
        read_numbers(a, first, left, step);
    if (a->stages == 0)
        return;
    a->which = cg_var(cg, cg->i32, cg_int(cg, 0));
    for (int s = 0; s < a->stages - 1; s++)
        copy_token(a, cg_add(cg, first, cg_int(cg, s * step)), left, cg_int(cg, s));
}

/* (stage + n) % stages for 0 <= n < stages. */
static Val stage_after(const Ahead *a, Cg *cg, Val stage, int n) {
    Val next = cg_add(cg, stage, cg_int(cg, n));
    Val over = cg_cmp(cg, LLVMIntUGE, next, cg_int(cg, a->stages));
    return cg_select(cg, over, cg_sub(cg, next, cg_int(cg, a->stages)), next);
}

void tokens_enter(Tokens *x, Val first, Val left, int64_t step) {
    Ahead *a = x->ahead;
    Cg *cg = x->g->cg;
    if (!a)
        return;
    if (a->numbers > 0)
        a->present = cg_get(cg, a->owner);
    if (a->numbers > 0)
        cg_set(cg, a->owner, cg_add(cg, a->present, cg_int(cg, WARP_LANES / x->lanes)));
    if (a->stages == 0)
        return;
    int far = a->stages - 1;
    a->stage = cg_get(cg, a->which);
    copy_token(a, cg_add(cg, first, cg_int(cg, far * step)), left, stage_after(a, cg, a->stage, far));
    nv_copy_wait(cg, far);
    cg_set(cg, a->which, stage_after(a, cg, a->stage, 1));
}

/* The shared memory is another phase's next. */
void tokens_end_ahead(Tokens *x) {
    if (x->ahead && x->ahead->stages > 0)
        nv_copy_wait(x->g->cg, 0);
}

Val tokens_number_of(Tokens *x, int v, int place) {
    const Ahead *a = x->ahead;
    for (int i = 0; a && i < a->numbers; i++)
        if (a->number[i].v == v && a->number[i].place == place)
            return nv_shuffle_from(x->g->cg, a->number[i].own, a->present);
    return NULL;
}

bool tokens_copy_of(Tokens *x, int v, int place, Val *copy) {
    const Ahead *a = x->ahead;
    for (int i = 0; a && i < a->items; i++) {
        const Item *item = &a->item[i];
        if (item->v != v || item->place != place)
            continue;
        for (int u = 0; u < item->units; u++)
            copy[u] = unit_place(a, x->g->cg, a->stage, item->unit + u);
        return true;
    }
    return false;
}
