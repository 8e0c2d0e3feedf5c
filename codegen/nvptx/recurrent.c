/* Token by token: the step kernel, and the algorithm of every spec without a chunk form.
 *
 * A warp owns all K rows of a few columns of the state and walks the tokens with it in registers:
 *
 *      lane = row_group * column_groups + column_group
 *      a lane holds rows    base_k .. base_k + n_k - 1      (row_groups lanes side by side make K)
 *                   columns base_v .. base_v + 3
 *
 * S'x sums over a lane's rows, then over the row groups by shuffles. At K = 128 a lane holds 16 x 4
 * values in 16 loads of 16 bytes, all in flight at once, and a load of a warp covers 64 contiguous
 * bytes of 8 rows: a token costs little more than moving the state.
 *
 * What a token's inputs alone make, its warps make together, once for all of the block, and tokens
 * take it from shared memory (recurrent_made.c). Another way was that every lane makes what it
 * needs for its own rows from inputs in registers, those of the next token read ahead: then warps
 * share nothing, but at K = V = 128 a token was 605 to 730 instructions a warp, of which 256 are
 * the state's, and took registers of a third block on each SM. Now it is 360 to 385.
 *
 * Every task has a block of its own: as many blocks as fit the GPU, each with the next task's state
 * on its way to shared memory, were slower (256 x 32 heads of gdn2 on an H100: 0.426 ms against
 * 0.379 with f32 states, 0.217 against 0.202 with bf16).
 *
 * Specs that sum over V what depends on the state or on earlier tokens (S x among them) need every
 * column of a token in one block: then a block owns all of V and warps add up in shared memory.
 *
 * Values of earlier tokens (prev, cumsum) are carried from token to token in registers, and beside
 * the state from launch to launch. Then one block has all of V, in turns when it is wide.
 */
#include "codegen/nvptx/recurrent.h"

enum {
    MAX_GROUPS = WARP, /* of rows, in a warp */
    IDLE_GROUPS = 8,   /* no more of them for the sake of idle lanes */
    ROW_UNIT = 4,      /* of a lane */
    MAX_SIZE = 256,    /* of K and V */
    MAX_THREADS = 1024,
    BLOCK_WARPS = 4,      /* when the caller does not choose the V tile */
    BASE_REGISTERS = 52,  /* of a lane: addresses, counters, sums on their way */
    LEAST_REGISTERS = 24, /* of these, without which a lane cannot do */
    RAGGED_REGISTERS = 8, /* where some rows do not exist */
    SPARE_REGISTERS = 16, /* what the count may be wrong by */
    MAX_REGISTERS = 255,
    QUARTERS = 4,            /* of an SM, each with its own registers: */
    QUARTER_REGISTERS = 512, /* times the lanes of a warp */
    BUSY_WARPS = 4,          /* of a quarter: their loads are what a quarter has under way */
    SM_REGISTERS = QUARTERS * QUARTER_REGISTERS
};

/* plan ----------------------------------------------------------------------------------------- */

/* Whether v depends on the state or on earlier tokens. */
static bool depends_on_past(const Recurrent *r, int v) {
    bool *needed = NEW_ARRAY(r->cg->arena, bool, r->k->inst.count);
    value_mark(r->k, v, needed);
    for (int u = 0; u <= v; u++) {
        Op op = inst_at(r->k, u)->op;
        if (needed[u] && (op == OP_read || op == OP_prev || op == OP_cumsum))
            return true;
    }
    return false;
}

static bool needs_all_columns(const Recurrent *r) {
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (i->op == OP_read && shape_has(i->shape, AXIS_K))
            return true;
        if (i->op == OP_sum && i->axis == AXIS_V && depends_on_past(r, i->arg[0]))
            return true;
    }
    return false;
}

static int round_up(int x, int unit) {
    return (x + unit - 1) / unit * unit;
}

static int lane_rows(int K, int row_groups) {
    return round_up(round_up(K, row_groups) / row_groups, ROW_UNIT);
}

static int lane_count(const Recurrent *r, int v) {
    Shape s = inst_at(r->k, v)->shape;
    return shape_has(s, AXIS_K) ? r->n_k : shape_has(s, AXIS_V) ? r->n_v : 1;
}

static bool is_carried(const Inst *i) {
    return i->op == OP_prev || i->op == OP_cumsum;
}

/* Adds the elements of v wherever the lane holds them: from where they are made, or taken from what
 * the block has made, to their last use; what the next token looks back at, to the end. */
static void add_live(const Recurrent *r, int v, int *live) {
    int count = r->k->inst.count, first = -1, last = -1;
    for (int u = v + 1; u < count; u++)
        for (int a = 0; a < inst_at(r->k, u)->nargs; a++) {
            if (inst_at(r->k, u)->arg[a] != v)
                continue;
            first = first < 0 ? u : first;
            last = inst_at(r->k, u)->op == OP_prev ? count : u > last ? u : last;
        }
    if (is_carried(inst_at(r->k, v)))
        last = count;
    for (int u = r->made[v] ? first : v; u >= 0 && u <= last; u++)
        live[u] += lane_count(r, v);
}

/* Registers that a lane needs: the state; what is carried from token to token; and the values of a
 * token where they are most. What the block makes once is taken where it is used, unless it is used
 * for more of the same. */
static int lane_registers(const Recurrent *r) {
    int sum = BASE_REGISTERS + r->n_k * r->n_v + (r->past_k ? RAGGED_REGISTERS : 0), most = 0;
    int *live = NEW_ARRAY(r->cg->arena, int, r->k->inst.count + 1);
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (is_carried(i))
            sum += lane_count(r, v);
        if (i->op != OP_const && op_gives_value(i->op) &&
            (!r->made[v] || recurrent_made_wants(r, v)))
            add_live(r, v, live);
    }
    for (int u = 0; u <= r->k->inst.count; u++)
        most = live[u] > most ? live[u] : most;
    return sum + most;
}

/* Whether u uses v in a token, rather than where the block makes what inputs alone make. */
static bool uses_in_token(const Recurrent *r, int u, int v) {
    const Inst *i = inst_at(r->k, u);
    for (int a = 0; a < i->nargs; a++)
        if (i->arg[a] == v && !r->made[u])
            return true;
    return false;
}

/* Adds the elements of v where a lane cannot but hold them: from where v comes to be, or is first
 * taken, to its last use; what the next token looks back at, to the end. An elementwise result
 * takes the place of an operand that is used up. */
static void add_held(const Recurrent *r, int v, int *held) {
    int count = r->k->inst.count, first = -1, end = 0;
    for (int u = v + 1; u < count; u++) {
        if (!uses_in_token(r, u, v))
            continue;
        Op op = inst_at(r->k, u)->op;
        bool replaces = op_gives_value(op) && op != OP_read;
        first = first < 0 ? u : first;
        end = op == OP_prev || end == count ? count : replaces ? u : u + 1;
    }
    int begin = r->made[v] ? first : v;
    for (int u = begin; u >= 0 && (u == begin || u < end); u++)
        held[u] += lane_count(r, v);
}

/* Registers that a lane cannot do without, where lane_registers has room for all that it may hold:
 * the state, what is carried, inputs of the next batch, and what a token holds where it is most. */
static int least_registers(const Recurrent *r) {
    int count = r->k->inst.count, sum = LEAST_REGISTERS + r->n_k * r->n_v, most = 0;
    int *held = NEW_ARRAY(r->cg->arena, int, count + 1);
    sum += (r->past_k ? RAGGED_REGISTERS : 0) + recurrent_made_ahead(r);
    for (int v = 0; v < count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (is_carried(i))
            sum += lane_count(r, v);
        else if (i->op != OP_const && op_gives_value(i->op))
            add_held(r, v, held);
    }
    for (int u = 0; u < count; u++)
        most = held[u] > most ? held[u] : most;
    return sum + most;
}

/* As few row groups as the registers allow, so that rows are read in long pieces; more when V is
 * too short to give every lane a column. False: they do not even fit with the most. */
static bool choose_groups(Recurrent *r, int n_v) {
    bool fits = false;
    r->n_v = n_v;
    for (int g = 1; g <= MAX_GROUPS && !fits; g *= 2) {
        int columns = WARP / g * n_v, warps = r->whole ? round_up(r->V, columns) / columns : 1;
        int most = warps * MAX_REGISTERS > SM_REGISTERS ? SM_REGISTERS / warps : MAX_REGISTERS;
        bool idle = g < IDLE_GROUPS && columns > r->V;
        r->row_groups = g;
        r->column_groups = WARP / g;
        r->n_k = lane_rows(r->K, g);
        r->past_k = g * r->n_k > r->K;
        fits = r->n_k * n_v <= TILE && lane_registers(r) <= most && !idle;
    }
    return fits;
}

/* Columns of a lane: 16 bytes of a row; where states lie column by column as many as rows. Fewer
 * where the vectors of a token take the registers; more where a block that owns all columns has too
 * many warps for the registers there are. */
static void choose_lanes(Recurrent *r) {
    int few = MAX_COLUMNS / 2;
    int n_v = r->cg->opt->state_vk || elem_size(r->cg->opt->state) == 2 ? MAX_COLUMNS : few;
    if (!choose_groups(r, n_v) && !choose_groups(r, MAX_COLUMNS + few - n_v))
        choose_groups(r, r->whole ? MAX_COLUMNS : few);
}

/* How many warps of all that V needs. Where something is remembered, all of a head's columns are
 * one block's, which takes them in turns when it has not the registers for all at once. */
static int choose_warps(const Recurrent *r, int warp_columns) {
    int all = round_up(r->V, warp_columns) / warp_columns, wanted = r->cg->opt->v_tile;
    int usual = r->remembers ? SM_REGISTERS / (MAX_REGISTERS + 1) : BLOCK_WARPS;
    int warps = wanted > 0 ? round_up(wanted, warp_columns) / warp_columns : usual;
    return r->whole || warps > all ? all : warps;
}

/* Blocks an SM shall have room for, which caps the registers of a lane: those that keep memory
 * busy, if a lane can do with what they leave it; more only where it has room for everything. Where
 * lanes are crowded, inputs arrive while values are made of them: there nothing less is certain. */
static int blocks_per_sm(const Recurrent *r) {
    int registers = lane_registers(r), least = r->crowded ? registers : least_registers(r);
    if (least < QUARTER_REGISTERS / BUSY_WARPS)
        least = QUARTER_REGISTERS / BUSY_WARPS;
    registers = registers < least ? registers : least;
    if (registers > MAX_REGISTERS)
        registers = MAX_REGISTERS;
    int blocks = QUARTERS * (QUARTER_REGISTERS / registers) / r->warps;
    return blocks > 0 ? blocks : 1;
}

/* Shared memory of sums over columns. */
static int sum_bytes(const Recurrent *r) {
    return r->whole && r->warps > 1 ? r->warps * r->row_groups * r->n_k * 4 : 0;
}

static bool plan(Recurrent *r, const char **why) {
    r->K = r->k->axis.at[AXIS_K].size;
    r->V = r->k->axis.at[AXIS_V].size;
    if (r->K > MAX_SIZE || r->V > MAX_SIZE) {
        *why = "K and V are at most 256 on this target";
        return false;
    }
    for (int o = 0; o < r->k->out.count; o++) {
        Shape s = r->k->out.at[o].shape;
        if (s.rank > 1 || (s.rank == 1 && s.axis[0] != AXIS_K && s.axis[0] != AXIS_V)) {
            *why = "outputs are scalars or vectors over K or V on this target";
            return false;
        }
    }
    r->scattered = NEW_ARRAY(r->cg->arena, Val *, r->k->inst.count);
    recurrent_made_mark(r);
    r->whole = needs_all_columns(r);
    r->remembers = r->k->facts.past > 0;
    choose_lanes(r);
    int warp_columns = r->column_groups * r->n_v;
    r->warps = choose_warps(r, warp_columns);
    CHECK(r->warps * WARP <= MAX_THREADS);
    r->v_tile = r->warps * warp_columns;
    r->turns = r->remembers ? round_up(r->V, r->v_tile) / r->v_tile : 1;
    r->past_v = r->V % r->v_tile != 0;
    if (!recurrent_made_plan(r, sum_bytes(r),
                             MAX_REGISTERS - SPARE_REGISTERS - lane_registers(r))) {
        *why = "a token's values do not fit in shared memory";
        return false;
    }
    return true;
}

/* the kernel ----------------------------------------------------------------------------------- */

static void build_token(Recurrent *r, Val t) {
    Cg *cg = r->cg;
    r->at.token = cg_add(cg, r->seq.begin, t);
    value_begin(&r->at);
    recurrent_made_token(r, t);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < r->n_v; c++)
            r->s[i][c] = cg_get(cg, r->state[i][c]);
    recurrent_token(r);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < r->n_v; c++)
            cg_set(cg, r->state[i][c], r->s[i][c]);
}

/* Who this thread is: block = (sequence * H + head) * tiles + tile. */
static void find_place(Recurrent *r) {
    Cg *cg = r->cg;
    int tiles = r->turns > 1 ? 1 : round_up(r->V, r->v_tile) / r->v_tile;
    Val tid = nv_tid(cg), block = nv_block(cg);
    Val H = cg_trunc32(cg, cg_frame_field(cg, FRAME_H));
    Val of_head = cg_udiv(cg, block, cg_int(cg, tiles));
    r->tile = cg_urem(cg, block, cg_int(cg, tiles));
    r->lane = cg_and(cg, tid, cg_int(cg, WARP - 1));
    r->warp = cg_shr(cg, tid, 5);
    r->row_group = cg_udiv(cg, r->lane, cg_int(cg, r->column_groups));
    r->column_group = cg_urem(cg, r->lane, cg_int(cg, r->column_groups));
    r->seq = seq_of_index(cg, cg_udiv(cg, of_head, H), 0);

    r->at = (ValueAt){
        .cg = cg,
        .head = cg_urem(cg, of_head, H),
        .heads = H,
        .base_k = cg_mul(cg, r->row_group, cg_int(cg, r->n_k)),
        .base_v = cg_int(cg, 0),
        .n_k = r->n_k,
        .n_v = r->n_v,
        .past_k = r->past_k,
        .past_v = r->past_v,
        .lookup = recurrent_lookup,
        .sum = recurrent_sum,
        .user = r,
    };
    recurrent_made_open(r);
}

/* No branch around a token: where two states meet, all of one would be moved. */
static void loop_tokens(Recurrent *r) {
    Cg *cg = r->cg;
    Val zero = cg_int64(cg, 0), one = cg_int64(cg, 1);
    recurrent_open_stores(r);
    recurrent_store_state(r, zero);
    Loop token = cg_for(cg, zero, r->seq.length, 1, false);
    build_token(r, token.i);
    Val next = cg_add(cg, token.i, one);
    recurrent_store_state(r, next);
    Val in_batch = cg_and(cg, cg_trunc32(cg, next), cg_int(cg, r->batch - 1));
    Val starts = cg_cmp(cg, LLVMIntEQ, in_batch, cg_int(cg, 0));
    Val goes_on = cg_cmp(cg, LLVMIntSLT, next, r->seq.length);
    If batch = cg_if(cg, cg_and(cg, goes_on, starts));
    recurrent_made_batch(r, next);
    cg_end_if(cg, &batch);
    cg_end_for(cg, &token);
}

/* The sequence from its first token to its last, for the columns of r->tile. The first inputs set
 * out before anything waits: for an index, which says where the state is, and for the state. */
static void walk_tokens(Recurrent *r) {
    Cg *cg = r->cg;
    Val group = cg_add(cg, cg_mul(cg, r->warp, cg_int(cg, r->column_groups)), r->column_group);
    Val tile = cg_mul(cg, r->tile, cg_int(cg, r->v_tile)), zero = cg_int64(cg, 0);
    r->at.base_v = cg_add(cg, tile, cg_mul(cg, group, cg_int(cg, r->n_v)));
    value_begin(&r->at);
    recurrent_made_read(r, zero);
    r->pool = pool_of_sequence(cg, &r->seq);
    recurrent_load_state(r);
    if (r->turns > 1)
        nv_barrier(cg); /* all are through with the turn before */
    recurrent_made_batch(r, zero);
    recurrent_take_state(r);
    loop_tokens(r);
}

bool nv_build_recurrent(Cg *cg, CgModule *out, const char **why) {
    Recurrent *r = NEW(cg->arena, Recurrent);
    r->cg = cg;
    r->k = cg->k;
    if (!plan(r, why))
        return false;
    Buf symbol;
    buf_init(&symbol, cg->arena);
    buf_printf(&symbol, "%s%s_recurrent", cg->opt->prefix ? cg->opt->prefix : "", r->k->name);
    int threads = r->warps * WARP;

    nv_kernel_open(cg, symbol.text, threads, blocks_per_sm(r));
    find_place(r);
    if (r->turns > 1) {
        Loop turn = cg_for(cg, cg_int(cg, 0), cg_int(cg, r->turns), 1, false);
        r->tile = turn.i;
        walk_tokens(r);
        cg_end_for(cg, &turn);
    } else {
        walk_tokens(r);
    }
    nv_kernel_close(cg);

    CgEntry e = {.kind = ENTRY_recurrent,
                 .symbol = symbol.text,
                 .threads = threads,
                 .smem_bytes = r->shared_from + 2 * r->batch * r->token_bytes,
                 .v_tile = r->turns * r->v_tile};
    VEC_PUSH(cg->arena, &out->entry, e);
    out->past = r->k->facts.past;
    return true;
}
