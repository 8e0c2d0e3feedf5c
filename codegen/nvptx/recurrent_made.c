/* What is made of a token's inputs alone, by a warp for all of its block.
 *
 * Every lane of every warp wants the same few vectors of a token: gates, keys that are brought to
 * unit length, what is written. Worked out by each of them for its rows, they cost more than the
 * state does: at K = 128 a row's values are needed by the 32 lanes of a block that hold it. So warp
 * w works out token t + w of a batch of tokens, its rows and columns spread over all lanes, and
 * leaves them in shared memory, where a token takes them from. The first batch is made while the
 * state is on its way, inputs of the next are read while the tokens of one are worked on. There is
 * memory for two batches, so that warps meet once a batch.
 *
 * Made are all values that do not depend on the state or on earlier tokens (nor are numbers), of
 * those the ones that anything else uses.
 */
#include "codegen/nvptx/recurrent.h"

enum {
    MAX_BATCH = 4,          /* tokens */
    MAX_BATCHES = 32 << 10, /* bytes of both, where it can be helped */
    ACCESS = 4,             /* f32 elements of 16 bytes */
    LEAST_RUN = 2           /* of a lane: pairs of channels stay together */
};

/* plan ----------------------------------------------------------------------------------------- */

static int axis_of(const Recurrent *r, int v) {
    Shape s = inst_at(r->k, v)->shape;
    return shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
}

/* Elements of a lane when a warp has all that lanes of any warp ask for. */
static int spread_run(const Recurrent *r, int axis) {
    int lanes =
        axis == AXIS_K ? r->row_groups * r->n_k : (r->V + r->v_tile - 1) / r->v_tile * r->v_tile;
    int n = LEAST_RUN;
    while (WARP * n < lanes)
        n *= 2;
    return n;
}

static int bytes_of(const Recurrent *r, int v) {
    int axis = axis_of(r, v);
    return axis < 0 ? 4 : 4 * WARP * spread_run(r, axis);
}

/* Numbers are not made. */
void recurrent_made_mark(Recurrent *r) {
    const Kernel *k = r->k;
    bool *number = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    bool *made = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        OpClass c = op_info[i->op].class;
        bool may = c != CLASS_TIME && c != CLASS_STATE;
        number[v] = i->op != OP_in && may;
        for (int a = 0; a < i->nargs; a++) {
            may = may && (made[i->arg[a]] || number[i->arg[a]]);
            number[v] = number[v] && number[i->arg[a]];
        }
        made[v] = may && !number[v];
    }
    r->made = made;
}

bool recurrent_made_wants(const Recurrent *r, int v) {
    for (int u = v + 1; r->made[v] && u < r->k->inst.count; u++)
        for (int a = 0; a < inst_at(r->k, u)->nargs; a++)
            if (inst_at(r->k, u)->arg[a] == v && !r->made[u])
                return true;
    return false;
}

static bool is_token_input(const Recurrent *r, int v) {
    const Inst *i = inst_at(r->k, v);
    return i->op == OP_in && !r->k->in.at[i->index].is_param;
}

int recurrent_made_ahead(const Recurrent *r) {
    int sum = 0;
    for (int v = 0; v < r->k->inst.count; v++) {
        int axis = axis_of(r, v), n = axis < 0 ? 1 : spread_run(r, axis);
        if (is_token_input(r, v))
            sum += (n * elem_size(r->k->in.at[inst_at(r->k, v)->index].elem) + 3) / 4;
    }
    return sum;
}

/* Vectors first, each at a multiple of 16 bytes. */
bool recurrent_made_plan(Recurrent *r, int from, int registers) {
    const Kernel *k = r->k;
    r->crowded = recurrent_made_ahead(r) > registers;
    int bytes = 0;
    r->place = NEW_ARRAY(k->arena, int, k->inst.count);
    for (int scalars = 0; scalars < 2; scalars++)
        for (int v = 0; v < k->inst.count; v++) {
            if ((axis_of(r, v) < 0) != (scalars == 1))
                continue;
            bool wanted = recurrent_made_wants(r, v);
            r->place[v] = wanted ? bytes : -1;
            bytes += wanted ? bytes_of(r, v) : 0;
        }
    r->shared_from = (from + 15) / 16 * 16;
    r->token_bytes = (bytes + 15) / 16 * 16;
    r->batch = 1;
    while (2 * r->batch <= r->warps && 2 * r->batch <= MAX_BATCH &&
           4 * r->batch * r->token_bytes <= MAX_BATCHES)
        r->batch *= 2;
    return r->shared_from + 2 * r->batch * r->token_bytes <= r->cg->target->smem_limit;
}

/* making --------------------------------------------------------------------------------------- */

static Val sum_spread(ValueAt *at, int v, int axis, Val x) {
    (void)v;
    (void)axis;
    for (int mask = 1; mask < WARP; mask *= 2)
        x = cg_fadd(at->cg, x, nv_shuffle_xor(at->cg, x, mask));
    return x;
}

void recurrent_made_open(Recurrent *r) {
    r->maker = (ValueAt){
        .cg = r->cg,
        .head = r->at.head,
        .heads = r->at.heads,
        .n_k = spread_run(r, AXIS_K),
        .n_v = spread_run(r, AXIS_V),
        .frugal = true,
        .sum = sum_spread,
        .user = r,
    };
    r->maker.past_k = WARP * r->maker.n_k > r->K;
    r->maker.past_v = WARP * r->maker.n_v > r->V;
    if (!r->crowded)
        value_ports(&r->maker);
    r->ahead = NEW_ARRAY(r->cg->arena, Var *, r->k->inst.count);
}

/* Until it ends: the warp has token t of the batch from `first` on. Addresses are not kept; where
 * lanes are crowded not even those that the head alone decides. */
static If open_token(Recurrent *r, Val first, Val *t) {
    Cg *cg = r->cg;
    Val lane = nv_anew(cg, r->lane);
    *t = cg_add(cg, nv_anew(cg, first), cg_zext64(cg, r->warp));
    Val has = cg_cmp(cg, LLVMIntSLT, *t, r->seq.length);
    if (r->batch < r->warps)
        has = cg_and(cg, has, cg_cmp(cg, LLVMIntULT, r->warp, cg_int(cg, r->batch)));
    If has_token = cg_if(cg, has);
    if (r->crowded)
        r->maker.head = nv_anew(cg, r->at.head);
    r->maker.token = cg_add(cg, r->seq.begin, *t);
    r->maker.base_k = cg_mul(cg, lane, cg_int(cg, r->maker.n_k));
    r->maker.base_v = cg_mul(cg, lane, cg_int(cg, r->maker.n_v));
    value_begin(&r->maker);
    return has_token;
}

void recurrent_made_read(Recurrent *r, Val first) {
    Cg *cg = r->cg;
    Val t;
    bool opens = false;
    if (r->crowded)
        return;
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!is_token_input(r, v) || r->ahead[v])
            continue;
        opens = true;
        r->ahead[v] = NEW_ARRAY(cg->arena, Var, value_accesses(&r->maker, v));
    }
    If has_token = open_token(r, first, &t);
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!is_token_input(r, v))
            continue;
        int n = value_accesses(&r->maker, v);
        Val *x = NEW_ARRAY(cg->arena, Val, n);
        value_load(&r->maker, v, x);
        for (int j = 0; j < n; j++) {
            if (opens)
                r->ahead[v][j] = cg_var(cg, LLVMTypeOf(x[j]), NULL);
            cg_set(cg, r->ahead[v][j], x[j]);
        }
    }
    cg_end_if(cg, &has_token);
}

static Val memory_of(Recurrent *r, Val t) {
    Cg *cg = r->cg;
    Val slot = cg_and(cg, cg_trunc32(cg, t), cg_int(cg, 2 * r->batch - 1));
    return cg_gep8(cg, nv_shared(cg, r->shared_from), cg_mul(cg, slot, cg_int(cg, r->token_bytes)));
}

/* A lane's first element of v in the memory of a token. */
static Val address_of(Cg *cg, const ValueAt *at, Val memory, int place, int axis) {
    Val base = axis == AXIS_K ? at->base_k : at->base_v;
    Val p = cg_gep8(cg, memory, cg_int(cg, place));
    return axis < 0 ? p : cg_gep8(cg, p, cg_shl(cg, base, 2));
}

static void put_value(Recurrent *r, int v, Val memory) {
    int n = value_count(&r->maker, v), group = n < ACCESS ? n : ACCESS;
    const Val *x = value_get(&r->maker, v);
    Val p = address_of(r->cg, &r->maker, memory, r->place[v], axis_of(r, v));
    for (int j = 0; j < n; j += group)
        recurrent_store(r->cg, ELEM_f32, cg_gep8(r->cg, p, cg_int(r->cg, 4 * j)), group, x + j);
}

/* Vectors as they are made, then the scalars, which all lanes have, by one of them. */
static void put_values(Recurrent *r, Val memory) {
    Cg *cg = r->cg;
    for (int v = 0; v < r->k->inst.count; v++) {
        if (r->place[v] < 0)
            continue;
        value_get(&r->maker, v);
        if (axis_of(r, v) >= 0)
            put_value(r, v, memory);
    }
    If first = cg_if(cg, cg_cmp(cg, LLVMIntEQ, r->lane, cg_int(cg, 0)));
    for (int v = 0; v < r->k->inst.count; v++)
        if (r->place[v] >= 0 && axis_of(r, v) < 0)
            put_value(r, v, memory);
    cg_end_if(cg, &first);
}

static void take_inputs(Recurrent *r) {
    ValueAt *at = &r->maker;
    for (int v = 0; v < r->k->inst.count; v++) {
        if (!is_token_input(r, v))
            continue;
        int n = value_accesses(at, v);
        Val *x = NEW_ARRAY(r->cg->arena, Val, n);
        for (int j = 0; j < n; j++)
            x[j] = cg_get(r->cg, r->ahead[v][j]);
        at->memo[v] = NEW_ARRAY(r->cg->arena, Val, value_count(at, v));
        value_unpack(at, v, x, at->memo[v]);
    }
}

void recurrent_made_batch(Recurrent *r, Val first) {
    Cg *cg = r->cg;
    Val t;
    If has_token = open_token(r, first, &t);
    if (!r->crowded)
        take_inputs(r);
    put_values(r, memory_of(r, t));
    cg_end_if(cg, &has_token);
    nv_barrier(cg);
    recurrent_made_read(r, cg_add(cg, first, cg_int64(cg, r->batch)));
}

/* taking --------------------------------------------------------------------------------------- */

void recurrent_made_token(Recurrent *r, Val t) {
    r->memory = memory_of(r, t);
}

bool recurrent_made_get(Recurrent *r, int v, Val *out) {
    Cg *cg = r->cg;
    if (r->place[v] < 0)
        return false;
    int axis = axis_of(r, v), n = value_count(&r->at, v), group = n < ACCESS ? n : ACCESS;
    Val p = address_of(cg, &r->at, r->memory, r->place[v], axis);
    Ty t = group > 1 ? LLVMVectorType(cg->f32, (unsigned)group) : cg->f32;
    for (int j = 0; j < n; j += group) {
        Val x = cg_load(cg, t, cg_gep8(cg, p, cg_int(cg, 4 * j)), 4 * group);
        for (int m = 0; m < group; m++)
            out[j + m] = group > 1 ? cg_extract(cg, x, m) : x;
    }
    return true;
}
