/* Token by token: the step kernel, and the algorithm of every spec without a chunk form.
 *
 * A warp owns all K rows of a few columns of the state and walks the tokens with it in registers:
 *
 *      lane = row_group * column_groups + column_group
 *      a lane holds rows    base_k .. base_k + n_k - 1      (row_groups lanes side by side make K)
 *                   columns base_v .. base_v + 3
 *
 * S'x sums over a lane's rows, then over the row groups by shuffles; warps share nothing.
 * At K = 128 a lane holds 16 x 4 values in 16 loads of 16 bytes, all in flight at once, and a load
 * of a warp covers 64 contiguous bytes of 8 rows: one token costs little more than moving the state.
 *
 * Specs that sum over V what depends on the state or on earlier tokens (S x among them) need every
 * column of a token in one block: then a block owns all of V and warps add up in shared memory.
 *
 * Values of earlier tokens (prev, cumsum) are carried from token to token in registers.
 */
#include "codegen/nvptx/nvptx.h"

enum {
    WARP = 32,
    COLUMNS = 4,        /* of a lane: 16 bytes of f32 */
    MAX_ROWS = 16,      /* of a lane */
    MAX_GROUPS = 16,    /* of rows, in a warp */
    MAX_SIZE = 256,     /* of K and V */
    MAX_THREADS = 1024,
    BLOCK_WARPS = 4,    /* when the caller does not choose the V tile */
    SM_REGISTERS = 65536,
    LANE_REGISTERS = 160, /* 64 of state, the token's vectors, addresses */
    MAX_REGISTERS = 255
};

typedef struct Recurrent {
    Cg *cg;
    const Kernel *k;
    int K, V;
    int row_groups, column_groups;
    int n_k;              /* rows of a lane */
    int warps, v_tile;    /* of a block */
    bool whole;           /* a block owns all of V */
    bool past_k, past_v;  /* some lanes hold rows or columns that do not exist */
    Val lane, warp, row_group, column_group;
    Val tile;             /* which V tile the block owns */
    Seq seq;
    ValueAt at;
    Val s[MAX_ROWS][COLUMNS];       /* the state while a token is being built */
    Var state[MAX_ROWS][COLUMNS];   /* and between tokens */
    Var **carried;                  /* [value] elements of prev and cumsum from the token before */
} Recurrent;

/* plan ----------------------------------------------------------------------------------------- */

/* Whether v depends on the state or on earlier tokens. */
static bool depends_on_past(const Recurrent *r, int v)
{
    const Inst *i = inst_at(r->k, v);
    if (i->op == OP_read || i->op == OP_prev || i->op == OP_cumsum)
        return true;
    for (int a = 0; a < i->nargs; a++)
        if (depends_on_past(r, i->arg[a]))
            return true;
    return false;
}

static bool needs_all_columns(const Recurrent *r)
{
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (i->op == OP_read && shape_has(i->shape, AXIS_K))
            return true;
        if (i->op == OP_sum && i->axis == AXIS_V && depends_on_past(r, i->arg[0]))
            return true;
    }
    return false;
}

static int round_up(int x, int unit)
{
    return (x + unit - 1) / unit * unit;
}

static int lane_rows(int K, int row_groups)
{
    return round_up(round_up(K, row_groups) / row_groups, COLUMNS);
}

/* As few row groups as the registers allow, so that rows are read in long pieces; more when V is
 * too short to give every lane a column. */
static void choose_lanes(Recurrent *r)
{
    int g = 1;
    while (lane_rows(r->K, g) > MAX_ROWS)
        g *= 2;
    while (g < MAX_GROUPS / 2 && WARP / g * COLUMNS > r->V)
        g *= 2;
    r->row_groups = g;
    r->column_groups = WARP / g;
    r->n_k = lane_rows(r->K, g);
}

static bool plan(Recurrent *r, const char **why)
{
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
    choose_lanes(r);
    r->whole = needs_all_columns(r);
    int warp_columns = r->column_groups * COLUMNS;
    int all_warps = round_up(r->V, warp_columns) / warp_columns;
    int wanted = r->cg->opt->v_tile;
    int warps = wanted > 0 ? round_up(wanted, warp_columns) / warp_columns : BLOCK_WARPS;
    r->warps = r->whole || warps > all_warps ? all_warps : warps;
    if (r->warps * WARP > MAX_THREADS) {
        *why = "a V tile of the recurrent kernel needs more than 1024 threads";
        return false;
    }
    r->v_tile = r->warps * warp_columns;
    r->past_k = r->row_groups * r->n_k > r->K;
    r->past_v = r->V % r->v_tile != 0;
    return true;
}

/* Blocks an SM must have room for, which caps the registers of a lane. Vectors that live from token
 * to token take their own: carried ones, and constant ones that LLVM moves out of the loop. */
static int blocks_per_sm(const Recurrent *r)
{
    int registers = LANE_REGISTERS;
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (i->op == OP_prev || i->op == OP_cumsum || value_is_constant(r->k, v))
            registers += shape_has(i->shape, AXIS_K) ? r->n_k : i->shape.rank * COLUMNS;
    }
    if (registers > MAX_REGISTERS)
        registers = MAX_REGISTERS;
    int blocks = SM_REGISTERS / (registers * r->warps * WARP);
    return blocks > 0 ? blocks : 1;
}

static int shared_bytes(const Recurrent *r)
{
    return r->whole && r->warps > 1 ? r->warps * r->row_groups * r->n_k * 4 : 0;
}

/* sums across lanes and warps ------------------------------------------------------------------ */

/* Sum over the lanes whose numbers differ in the bits from `low` up to, not including, `high`. */
static Val add_lanes(Cg *cg, Val x, int low, int high)
{
    for (int mask = low; mask < high; mask *= 2)
        x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, mask));
    return x;
}

static Val sum_rows(Recurrent *r, Val x)
{
    return add_lanes(r->cg, x, r->column_groups, WARP);
}

/* Sums over the block's columns of n values that each lane holds a part of; `base` (i32) is where
 * they begin in a line of shared memory that each warp fills. All lanes get the sums. */
static void sum_columns(Recurrent *r, Val base, int n, Val *x)
{
    Cg *cg = r->cg;
    int line = r->row_groups * r->n_k * 4;
    Val at = cg_shl(cg, base, 2);
    for (int j = 0; j < n; j++)
        x[j] = add_lanes(cg, x[j], 1, r->column_groups);
    if (r->warps == 1)
        return;
    Val mine = cg_add(cg, cg_mul(cg, r->warp, cg_int(cg, line)), at);
    nv_barrier(cg); /* whoever still reads the sums before these */
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, r->column_group, cg_int(cg, 0)));
    for (int j = 0; j < n; j++)
        cg_store(cg, x[j], cg_gep8(cg, nv_shared(cg, 4 * j), mine), 4);
    cg_end_if(cg, &first);
    nv_barrier(cg);
    for (int j = 0; j < n; j++) {
        x[j] = cg_load(cg, cg->f32, cg_gep8(cg, nv_shared(cg, 4 * j), at), 4);
        for (int w = 1; w < r->warps; w++) {
            Val p = cg_gep8(cg, nv_shared(cg, (int64_t)w * line + 4 * j), at);
            x[j] = cg_fadd(cg, x[j], cg_load(cg, cg->f32, p, 4));
        }
    }
}

/* V spread over all lanes of the warp instead of its own columns. */
static Val sum_spread(ValueAt *at, int v, int axis, Val partial)
{
    (void)v;
    Recurrent *r = at->user;
    return axis == AXIS_K ? sum_rows(r, partial) : add_lanes(at->cg, partial, 1, WARP);
}

/* A sum over V of what depends on this token's inputs alone: every warp works it out for itself. */
static Val sum_alone(ValueAt *at, int v)
{
    Cg *cg = at->cg;
    Recurrent *r = at->user;
    ValueAt spread = *at;
    spread.memo = NULL;
    spread.lookup = NULL;
    spread.sum = sum_spread;
    spread.n_v = 1;
    while (WARP * spread.n_v < r->V)
        spread.n_v *= 2;
    spread.base_v = cg_mul(cg, r->lane, cg_int(cg, spread.n_v));
    spread.past_v = WARP * spread.n_v > r->V;
    value_begin(&spread);
    return value_get(&spread, v)[0];
}

static Val sum_values(ValueAt *at, int v, int axis, Val partial)
{
    Recurrent *r = at->user;
    if (axis == AXIS_K)
        return sum_rows(r, partial);
    if (!r->whole)
        return sum_alone(at, v);
    sum_columns(r, cg_int(at->cg, 0), 1, &partial);
    return partial;
}

/* earlier tokens ------------------------------------------------------------------------------- */

static bool is_carried(const Inst *i)
{
    return i->op == OP_prev || i->op == OP_cumsum;
}

/* What lasts from token to token is zero where the sequence starts. */
static void open_carried(Recurrent *r)
{
    r->carried = NEW_ARRAY(r->cg->arena, Var *, r->k->inst.count);
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!is_carried(inst_at(r->k, v)))
            continue;
        int n = value_count(&r->at, v);
        r->carried[v] = NEW_ARRAY(r->cg->arena, Var, n);
        for (int j = 0; j < n; j++)
            r->carried[v][j] = cg_var(r->cg, r->cg->f32, cg_float(r->cg, 0));
    }
}

static bool look_up(ValueAt *at, int v, Val *out)
{
    Recurrent *r = at->user;
    const Inst *i = inst_at(r->k, v);
    if (!is_carried(i))
        return false;
    const Val *now = i->op == OP_cumsum ? value_get(at, i->arg[0]) : NULL;
    int n = value_count(at, v);
    for (int j = 0; j < n; j++) {
        out[j] = cg_get(at->cg, r->carried[v][j]);
        if (now)
            out[j] = cg_fadd(at->cg, out[j], now[j]);
    }
    return true;
}

/* At the end of a token. All are read before any is replaced: prev(cumsum(x)) sees the old sum. */
static void close_carried(Recurrent *r)
{
    for (int v = 0; v < r->k->inst.count; v++)
        if (r->carried[v])
            value_get(&r->at, v);
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!r->carried[v])
            continue;
        const Inst *i = inst_at(r->k, v);
        const Val *x = value_get(&r->at, i->op == OP_prev ? i->arg[0] : v);
        for (int j = 0; j < value_count(&r->at, v); j++)
            cg_set(r->cg, r->carried[v][j], x[j]);
    }
}

/* groups of neighbouring elements -------------------------------------------------------------- */

/* Neighbouring warps read a state whole: fetching 256 bytes at a time keeps DRAM pages open. */
static void load_group(Cg *cg, Val p, int n, Val *out)
{
    static const char *const text[5] = {
        [1] = "ld.global.L2::256B.f32 $0, [$1];",
        [2] = "ld.global.L2::256B.v2.f32 {$0, $1}, [$2];",
        [4] = "ld.global.L2::256B.v4.f32 {$0, $1, $2, $3}, [$4];"};
    static const char *const operands[5] = {[1] = "=f,l", [2] = "=f,=f,l", [4] = "=f,=f,=f,=f,l"};
    Ty part[4] = {cg->f32, cg->f32, cg->f32, cg->f32};
    Ty t = n == 1 ? cg->f32 : LLVMStructTypeInContext(cg->ctx, part, (unsigned)n, false);
    Val x = cg_asm(cg, t, text[n], operands[n], true, &p, 1);
    for (int j = 0; j < n; j++)
        out[j] = n == 1 ? x : cg_extract(cg, x, j);
}

static void store_group(Cg *cg, Elem e, Val p, int n, const Val *x)
{
    Val item[COLUMNS];
    int width = elem_size(e), count = n;
    if (width == 2 && n > 1) {
        count = n / 2;
        for (int j = 0; j < count; j++)
            item[j] = nv_pack(cg, e, x[2 * j], x[2 * j + 1]);
    } else {
        for (int j = 0; j < n; j++)
            item[j] = cg_from_f32(cg, x[j], e);
    }
    Val all = item[0];
    if (count > 1) {
        all = LLVMGetPoison(LLVMVectorType(LLVMTypeOf(item[0]), (unsigned)count));
        for (int j = 0; j < count; j++)
            all = cg_insert(cg, all, item[j], j);
    }
    cg_store(cg, all, p, n * width);
}

/* state ---------------------------------------------------------------------------------------- */

/* Elements of one access to a row of the state: they exist or not together. */
static int state_group(const Recurrent *r)
{
    return r->V % 4 == 0 ? 4 : r->V % 2 == 0 ? 2 : 1;
}

/* i1 that row i and column group c exist, NULL for always. */
static Val state_exists(Recurrent *r, int i, int c)
{
    Val row = value_exists(&r->at, AXIS_K, i), column = value_exists(&r->at, AXIS_V, c);
    return !row ? column : !column ? row : cg_and(r->cg, row, column);
}

/* Address of this lane's first element in the [N,H,K,V] states at `field`. */
static Val state_address(Recurrent *r, int field)
{
    Cg *cg = r->cg;
    Val H = cg_frame_field(cg, FRAME_H);
    Val n = cg_add(cg, cg_mul(cg, cg_zext64(cg, r->seq.index), H), cg_zext64(cg, r->at.head));
    Val bytes = cg_mul(cg, n, cg_int64(cg, (int64_t)4 * r->K * r->V));
    Val row = cg_mul(cg, r->at.base_k, cg_int(cg, r->V));
    Val element = cg_add(cg, row, r->at.base_v);
    Val lane_bytes = cg_zext64(cg, cg_shl(cg, element, 2));
    return cg_gep8(cg, nv_global(cg, field), cg_add(cg, bytes, lane_bytes));
}

/* Places that do not exist read the sequence's first elements and hold 0. */
static void load_state(Recurrent *r)
{
    Cg *cg = r->cg;
    Val zero = cg_float(cg, 0), x[COLUMNS];
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < COLUMNS; c++)
            r->state[i][c] = cg_var(cg, cg->f32, zero);
    Val given = cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, FRAME_S0), cg_int64(cg, 0));
    If f = cg_if(cg, given);
    Val lane = state_address(r, FRAME_S0);
    for (int i = 0; i < r->n_k; i++) {
        for (int c = 0; c < COLUMNS; c += state_group(r)) {
            Val exists = state_exists(r, i, c);
            Val p = cg_gep8(cg, lane, cg_int64(cg, 4 * ((int64_t)i * r->V + c)));
            if (exists)
                p = cg_select(cg, exists, p, nv_global(cg, FRAME_S0));
            load_group(cg, p, state_group(r), x);
            for (int j = 0; j < state_group(r); j++)
                cg_set(cg, r->state[i][c + j],
                       exists ? cg_select(cg, exists, x[j], zero) : x[j]);
        }
    }
    cg_end_if(cg, &f);
}

static void store_state(Recurrent *r)
{
    Cg *cg = r->cg;
    Val x[COLUMNS];
    Val wanted = cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, FRAME_S), cg_int64(cg, 0));
    If f = cg_if(cg, wanted);
    Val lane = state_address(r, FRAME_S);
    for (int i = 0; i < r->n_k; i++) {
        for (int c = 0; c < COLUMNS; c += state_group(r)) {
            for (int j = 0; j < state_group(r); j++)
                x[j] = cg_get(cg, r->state[i][c + j]);
            Val exists = state_exists(r, i, c);
            If g = {0};
            if (exists)
                g = cg_if(cg, exists);
            store_group(cg, ELEM_f32, cg_gep8(cg, lane, cg_int64(cg, 4 * ((int64_t)i * r->V + c))),
                        state_group(r), x);
            if (exists)
                cg_end_if(cg, &g);
        }
    }
    cg_end_if(cg, &f);
}

/* operations on the state ---------------------------------------------------------------------- */

/* v along an axis of the state, a scalar repeated; 0 where there is no element. */
static void get_run(Recurrent *r, int v, int axis, Val *out)
{
    int n = axis == AXIS_K ? r->n_k : COLUMNS;
    if (inst_at(r->k, v)->shape.rank > 0) {
        value_get_padded(&r->at, v, out);
        return;
    }
    Val x = value_get(&r->at, v)[0];
    for (int j = 0; j < n; j++) {
        Val exists = value_exists(&r->at, axis, j);
        out[j] = exists ? cg_select(r->cg, exists, x, cg_float(r->cg, 0)) : x;
    }
}

static void build_decay(Recurrent *r, int a)
{
    Val x[MAX_ROWS];
    bool by_column = shape_has(inst_at(r->k, a)->shape, AXIS_V);
    get_run(r, a, by_column ? AXIS_V : AXIS_K, x);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < COLUMNS; c++)
            r->s[i][c] = cg_fmul(r->cg, r->s[i][c], x[by_column ? c : i]);
}

static void build_update(Recurrent *r, int p, int z)
{
    Val key[MAX_ROWS], value[COLUMNS];
    get_run(r, p, AXIS_K, key);
    get_run(r, z, AXIS_V, value);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < COLUMNS; c++)
            r->s[i][c] = cg_fma(r->cg, key[i], value[c], r->s[i][c]);
}

/* S'x or Sx at this point of the token; later uses find it among the values. */
static void build_read(Recurrent *r, int v, int a)
{
    Cg *cg = r->cg;
    bool by_row = shape_has(inst_at(r->k, a)->shape, AXIS_K); /* sums over rows, gives columns */
    int n = by_row ? COLUMNS : r->n_k, terms = by_row ? r->n_k : COLUMNS;
    Val x[MAX_ROWS], *sum = NEW_ARRAY(cg->arena, Val, n);
    get_run(r, a, by_row ? AXIS_K : AXIS_V, x);
    for (int j = 0; j < n; j++) {
        for (int t = 0; t < terms; t++) {
            Val s = by_row ? r->s[t][j] : r->s[j][t];
            sum[j] = t ? cg_fma(cg, s, x[t], sum[j]) : cg_fmul(cg, s, x[t]);
        }
        if (by_row)
            sum[j] = sum_rows(r, sum[j]);
    }
    if (!by_row)
        sum_columns(r, r->at.base_k, n, sum);
    r->at.memo[v] = sum;
}

/* outputs -------------------------------------------------------------------------------------- */

/* One lane of those that hold the same elements, in one block of those of the same head. */
static Val writes_output(Recurrent *r, int axis)
{
    Cg *cg = r->cg;
    Val zero = cg_int(cg, 0);
    if (axis == AXIS_V)
        return cg_cmp(cg, LLVMIntEQ, r->row_group, zero);
    Val other = cg_or(cg, r->tile, r->warp);
    other = cg_or(cg, other, axis == AXIS_K ? r->column_group : r->lane);
    return cg_cmp(cg, LLVMIntEQ, other, zero);
}

static void build_out(Recurrent *r, const Inst *i)
{
    Cg *cg = r->cg;
    const Port *port = &r->k->out.at[i->index];
    int axis = port->shape.rank ? port->shape.axis[0] : -1;
    int size = axis < 0 ? 1 : r->k->axis.at[axis].size, n = value_count(&r->at, i->arg[0]);
    int group = axis < 0 ? 1 : size % 4 == 0 ? 4 : size % 2 == 0 ? 2 : 1;
    const Val *x = value_get(&r->at, i->arg[0]);

    If writer = cg_if(cg, writes_output(r, axis));
    Val row = cg_mul(cg, r->at.token, cg_frame_field(cg, FRAME_H));
    row = cg_mul(cg, cg_add(cg, row, cg_zext64(cg, r->at.head)), cg_int64(cg, size));
    if (axis >= 0)
        row = cg_add(cg, row, cg_zext64(cg, axis == AXIS_K ? r->at.base_k : r->at.base_v));
    Val bytes = cg_mul(cg, row, cg_int64(cg, elem_size(port->elem)));
    Val p = cg_gep8(cg, nv_global(cg, frame_out_ptr(r->k, i->index)), bytes);
    for (int j = 0; j < n; j += group) {
        Val exists = axis < 0 ? NULL : value_exists(&r->at, axis, j);
        If g = {0};
        if (exists)
            g = cg_if(cg, exists);
        Val q = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * elem_size(port->elem)));
        store_group(cg, port->elem, q, group, x + j);
        if (exists)
            cg_end_if(cg, &g);
    }
    cg_end_if(cg, &writer);
}

/* the kernel ----------------------------------------------------------------------------------- */

static void build_token(Recurrent *r, Val t)
{
    Cg *cg = r->cg;
    r->at.token = cg_add(cg, r->seq.begin, t);
    value_begin(&r->at);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < COLUMNS; c++)
            r->s[i][c] = cg_get(cg, r->state[i][c]);
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (i->op == OP_decay)
            build_decay(r, i->arg[0]);
        else if (i->op == OP_read)
            build_read(r, v, i->arg[0]);
        else if (i->op == OP_update)
            build_update(r, i->arg[0], i->arg[1]);
        else if (i->op == OP_out)
            build_out(r, i);
    }
    close_carried(r);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < COLUMNS; c++)
            cg_set(cg, r->state[i][c], r->s[i][c]);
}

/* Who this thread is: block = (sequence * H + head) * tiles + tile. */
static void find_place(Recurrent *r)
{
    Cg *cg = r->cg;
    int tiles = round_up(r->V, r->v_tile) / r->v_tile;
    Val tid = nv_tid(cg), block = nv_block(cg);
    Val H = cg_trunc32(cg, cg_frame_field(cg, FRAME_H));
    Val of_head = cg_udiv(cg, block, cg_int(cg, tiles));
    r->tile = cg_urem(cg, block, cg_int(cg, tiles));
    r->lane = cg_and(cg, tid, cg_int(cg, WARP - 1));
    r->warp = cg_shr(cg, tid, 5);
    r->row_group = cg_udiv(cg, r->lane, cg_int(cg, r->column_groups));
    r->column_group = cg_urem(cg, r->lane, cg_int(cg, r->column_groups));
    r->seq = seq_of_index(cg, cg_udiv(cg, of_head, H), 0);

    Val group = cg_add(cg, cg_mul(cg, r->warp, cg_int(cg, r->column_groups)), r->column_group);
    Val first = cg_mul(cg, r->tile, cg_int(cg, r->v_tile));
    r->at = (ValueAt){
        .cg = cg,
        .head = cg_urem(cg, of_head, H),
        .heads = H,
        .base_k = cg_mul(cg, r->row_group, cg_int(cg, r->n_k)),
        .base_v = cg_add(cg, first, cg_mul(cg, group, cg_int(cg, COLUMNS))),
        .n_k = r->n_k,
        .n_v = COLUMNS,
        .past_k = r->past_k,
        .past_v = r->past_v,
        .lookup = look_up,
        .sum = sum_values,
        .user = r,
    };
    value_ports(&r->at);
}

bool nv_build_recurrent(Cg *cg, CgModule *out, const char **why)
{
    Recurrent *r = NEW(cg->arena, Recurrent);
    r->cg = cg;
    r->k = cg->k;
    if (!plan(r, why))
        return false;
    Buf symbol;
    buf_init(&symbol, cg->arena);
    buf_printf(&symbol, "%s_recurrent", cg->opt->prefix ? cg->opt->prefix : "gdr");
    int threads = r->warps * WARP;

    nv_kernel_open(cg, symbol.text, threads, blocks_per_sm(r));
    find_place(r);
    load_state(r);
    open_carried(r);
    Loop token = cg_for(cg, cg_int64(cg, 0), r->seq.length, 1, false);
    build_token(r, token.i);
    cg_end_for(cg, &token);
    store_state(r);
    nv_kernel_close(cg);

    CgEntry e = {.kind = ENTRY_recurrent, .symbol = symbol.text, .threads = threads,
                 .smem_bytes = shared_bytes(r), .v_tile = r->v_tile};
    VEC_PUSH(cg->arena, &out->entry, e);
    return true;
}
