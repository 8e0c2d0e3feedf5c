/* One token of the recurrent kernel: values, operations on the state in program order, outputs.
 *
 * Reads sum over a lane's own rows or columns first, then over the lanes that hold the others, then
 * (over columns only) over the warps of the block. After a sum every lane that needs it has it.
 */
#include "codegen/nvptx/recurrent.h"

/* sums across lanes and warps ------------------------------------------------------------------ */

/* Sum over the lanes whose numbers differ in the bits from `low` up to, not including, `high`. */
static Val add_lanes(Cg *cg, Val x, int low, int high) {
    for (int mask = low; mask < high; mask *= 2)
        x = cg_fadd(cg, x, nv_shuffle_xor(cg, x, mask));
    return x;
}

static Val sum_rows(Recurrent *r, Val x) {
    return add_lanes(r->cg, x, r->column_groups, WARP);
}

/* How many of a lane's n columns it keeps of a scattered sum over the rows; all in the end that
 * others have kept, if there are more row groups than columns. */
static int scattered_count(const Recurrent *r, int n) {
    return n > r->row_groups ? n / r->row_groups : 1;
}

/* The sums over all rows of n columns (a power of two), scattered: where two lanes add up what they
 * have, each keeps half of the columns, as long as there is more than one. The same additions as in
 * sum_rows, of which a lane does n rather than n log2(row groups). */
static void scatter_rows(Recurrent *r, int n, Val *x) {
    Cg *cg = r->cg;
    for (int mask = r->column_groups; mask < WARP; mask *= 2) {
        if (n == 1) {
            x[0] = add_lanes(cg, x[0], mask, 2 * mask);
            continue;
        }
        Val upper = cg_and(cg, r->lane, cg_int(cg, mask));
        upper = cg_cmp(cg, LLVMIntNE, upper, cg_int(cg, 0));
        n /= 2;
        for (int j = 0; j < n; j++) {
            Val give = cg_select(cg, upper, x[j], x[n + j]),
                keep = cg_select(cg, upper, x[n + j], x[j]);
            x[j] = cg_fadd(cg, keep, nv_shuffle_xor(cg, give, mask));
        }
    }
}

/* Which row group's lane has column j of n: the halves that it kept, the first by its lowest
 * bit. */
static int scattered_group(const Recurrent *r, int n, int j) {
    int group = 0;
    for (int bit = 1; bit < r->row_groups && n > 1; bit *= 2) {
        n /= 2;
        group += j & n ? bit : 0;
    }
    return group;
}

/* Every lane gets its columns back. */
static void gather_rows(Recurrent *r, int n, const Val *x, Val *all) {
    int count = scattered_count(r, n);
    for (int j = 0; j < n; j++)
        all[j] = r->row_groups == 1 ? x[j]
                                    : nv_shuffle_beside(r->cg, x[j % count],
                                                        scattered_group(r, n, j) * r->column_groups,
                                                        r->column_groups - 1);
}

/* The first of a lane's columns in a scattered sum (i32, from base_v), and whether no lane before
 * it has the same ones (i1). */
static Val scattered_column(Recurrent *r, int n, Val *first) {
    Cg *cg = r->cg;
    Val column = cg_int(cg, 0), zero = cg_int(cg, 0);
    int bit = 1;
    for (; bit < r->row_groups && n > 1; bit *= 2) {
        n /= 2;
        Val upper = cg_cmp(cg, LLVMIntNE, cg_and(cg, r->row_group, cg_int(cg, bit)), zero);
        column = cg_add(cg, column, cg_select(cg, upper, cg_int(cg, n), zero));
    }
    *first = cg_cmp(cg, LLVMIntULT, r->row_group, cg_int(cg, bit));
    return column;
}

/* Sums over the block's columns of n values that each lane holds a part of; `base` (i32) is where
 * they begin in a line of shared memory that each warp fills. All lanes get the sums. */
static void sum_columns(Recurrent *r, Val base, int n, Val *x) {
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

Val recurrent_sum(ValueAt *at, int v, int axis, Val partial) {
    Recurrent *r = at->user;
    if (axis == AXIS_K)
        return sum_rows(r, partial);
    (void)v;
    sum_columns(r, cg_int(at->cg, 0), 1, &partial);
    return partial;
}

/* earlier tokens ------------------------------------------------------------------------------- */

static bool is_carried(const Inst *i) {
    return i->op == OP_prev || i->op == OP_cumsum;
}

/* What lasts from token to token is zero where the sequence starts. */
void recurrent_open_carried(Recurrent *r) {
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

bool recurrent_lookup(ValueAt *at, int v, Val *out) {
    Recurrent *r = at->user;
    const Inst *i = inst_at(r->k, v);
    if (!is_carried(i))
        return recurrent_made_get(r, v, out);
    const Val *now = i->op == OP_cumsum ? value_get(at, i->arg[0]) : NULL;
    int n = value_count(at, v);
    for (int j = 0; j < n; j++) {
        out[j] = cg_get(at->cg, r->carried[v][j]);
        if (now)
            out[j] = cg_fadd(at->cg, out[j], now[j]);
        if (now && value_is_angle(r->k, v))
            out[j] = cg_within_turn(at->cg, out[j]);
    }
    return true;
}

/* At the end of a token. All are read before any is replaced: prev(cumsum(x)) sees the old sum. */
static void close_carried(Recurrent *r) {
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

/* operations on the state ---------------------------------------------------------------------- */

/* v along an axis of the state, a scalar repeated; 0 where there is no element. */
static void get_run(Recurrent *r, int v, int axis, Val *out) {
    int n = axis == AXIS_K ? r->n_k : r->n_v;
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

static void build_decay(Recurrent *r, int a) {
    Val x[MAX_ROWS];
    bool by_column = shape_has(inst_at(r->k, a)->shape, AXIS_V);
    get_run(r, a, by_column ? AXIS_V : AXIS_K, x);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < r->n_v; c++)
            r->s[i][c] = cg_fmul(r->cg, r->s[i][c], x[by_column ? c : i]);
}

static void build_update(Recurrent *r, int p, int z) {
    Val key[MAX_ROWS], value[MAX_COLUMNS];
    get_run(r, p, AXIS_K, key);
    get_run(r, z, AXIS_V, value);
    for (int i = 0; i < r->n_k; i++)
        for (int c = 0; c < r->n_v; c++)
            r->s[i][c] = cg_fma(r->cg, key[i], value[c], r->s[i][c]);
}

/* Whether outputs are all that a value is for. */
static bool is_output(const Recurrent *r, int v) {
    for (int u = v + 1; u < r->k->inst.count; u++)
        for (int a = 0; a < inst_at(r->k, u)->nargs; a++)
            if (inst_at(r->k, u)->arg[a] == v && inst_at(r->k, u)->op != OP_out)
                return false;
    return true;
}

/* S'x or Sx at this point of the token; later uses find it among the values. An output of sums over
 * rows is not brought together: the lanes that have them write them. */
static void build_read(Recurrent *r, int v, int a) {
    Cg *cg = r->cg;
    bool by_row = shape_has(inst_at(r->k, a)->shape, AXIS_K); /* sums over rows, gives columns */
    int n = by_row ? r->n_v : r->n_k, terms = by_row ? r->n_k : r->n_v;
    Val x[MAX_ROWS], *sum = NEW_ARRAY(cg->arena, Val, n);
    get_run(r, a, by_row ? AXIS_K : AXIS_V, x);
    for (int j = 0; j < n; j++) {
        for (int t = 0; t < terms; t++) {
            Val s = by_row ? r->s[t][j] : r->s[j][t];
            sum[j] = t ? cg_fma(cg, s, x[t], sum[j]) : cg_fmul(cg, s, x[t]);
        }
    }
    if (!by_row) {
        sum_columns(r, r->at.base_k, n, sum);
    } else {
        Val *all = NEW_ARRAY(cg->arena, Val, n);
        scatter_rows(r, n, sum);
        r->scattered[v] = is_output(r, v) ? sum : NULL;
        if (!r->scattered[v])
            gather_rows(r, n, sum, all);
        sum = all;
    }
    r->at.memo[v] = sum;
}

/* outputs -------------------------------------------------------------------------------------- */

Val recurrent_writes(Recurrent *r, int axis) {
    Cg *cg = r->cg;
    Val zero = cg_int(cg, 0);
    if (axis == AXIS_V)
        return cg_cmp(cg, LLVMIntEQ, r->row_group, zero);
    Val other = cg_or(cg, r->tile, r->warp);
    other = cg_or(cg, other, axis == AXIS_K ? r->column_group : r->lane);
    return cg_cmp(cg, LLVMIntEQ, other, zero);
}

/* The n elements from `first` (i32) on of an output, where they exist. */
static void write_out(Recurrent *r, const Inst *i, Val first, int n, const Val *x) {
    Cg *cg = r->cg;
    const Port *port = &r->k->out.at[i->index];
    int axis = port->shape.rank ? port->shape.axis[0] : -1, width = elem_size(port->elem);
    int size = axis < 0 ? 1 : r->k->axis.at[axis].size,
        group = recurrent_group(size, n, port->elem);
    Val row = cg_mul(cg, r->at.token, cg_frame_field(cg, FRAME_H));
    row = cg_mul(cg, cg_add(cg, row, cg_zext64(cg, r->at.head)), cg_int64(cg, size));
    Val bytes = cg_mul(cg, cg_add(cg, row, cg_zext64(cg, first)), cg_int64(cg, width));
    Val p = cg_gep8(cg, nv_global(cg, frame_out_ptr(r->k, i->index)), bytes);
    bool ragged = axis >= 0 && value_exists(&r->at, axis, 0);
    for (int j = 0; j < n; j += group) {
        If g = {0};
        if (ragged)
            g = cg_if(cg,
                      cg_cmp(cg, LLVMIntSLT, cg_add(cg, first, cg_int(cg, j)), cg_int(cg, size)));
        Val q = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * width));
        recurrent_store(cg, port->elem, q, group, x + j);
        if (ragged)
            cg_end_if(cg, &g);
    }
}

static void build_out(Recurrent *r, const Inst *i) {
    Cg *cg = r->cg;
    const Port *port = &r->k->out.at[i->index];
    int axis = port->shape.rank ? port->shape.axis[0] : -1, v = i->arg[0],
        n = value_count(&r->at, v);
    Val first = axis < 0 ? cg_int(cg, 0) : axis == AXIS_K ? r->at.base_k : r->at.base_v, writes;
    const Val *x = r->scattered[v];
    if (x) {
        first = cg_add(cg, first, scattered_column(r, n, &writes));
        n = scattered_count(r, n);
    } else {
        x = value_get(&r->at, v);
        writes = recurrent_writes(r, axis);
    }
    If writer = cg_if(cg, writes);
    write_out(r, i, nv_anew(cg, first), n, x);
    cg_end_if(cg, &writer);
}

/* the token ------------------------------------------------------------------------------------ */

/* What a read after an update takes from shared memory is taken after the update: the GPU's
 * assembler sets such loads out as early as its registers allow, and a little earlier. */
void recurrent_token(Recurrent *r) {
    bool updated = false;
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        if (i->op == OP_read && updated)
            nv_warp_sync(r->cg);
        updated = updated || i->op == OP_update;
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
}
