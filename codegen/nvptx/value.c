/* Evaluation on demand: the elementwise part of a spec at one token, in a thread's registers.
 *
 * A thread holds a run of n consecutive elements of every vector: n_k along K and n_v along V, and
 * all of a scalar. value_get walks from the wanted value to the inputs; what it has met it keeps.
 *
 * Loads are as wide as the row length and the run allow. A row of s elements of w bytes starts at a
 * multiple of s*w bytes, a run at a multiple of n*w in it, so accesses of the largest power of two
 * up to 16 bytes that divides both are aligned, and lie wholly inside or outside the row.
 */
#include "codegen/nvptx/scan.h"

#include <math.h>
#include <string.h>

#define MAX_ACCESS 16 /* bytes of one load */

void value_begin(ValueAt *at) {
    int n = at->cg->k->inst.count;
    if (!at->memo)
        at->memo = NEW_ARRAY(at->cg->arena, Val *, n);
    else
        memset(at->memo, 0, (size_t)n * sizeof *at->memo);
    at->before = at->after = NULL;
}

static int run_axis(Shape s) {
    CHECK(!(shape_has(s, AXIS_K) && shape_has(s, AXIS_V)));
    CHECK(!shape_has(s, AXIS_R) && !shape_has(s, AXIS_U));
    return shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
}

static int run_length(const ValueAt *at, int axis) {
    return axis == AXIS_K ? at->n_k : axis == AXIS_V ? at->n_v : 1;
}

int value_count(const ValueAt *at, int v) {
    return run_length(at, run_axis(inst_at(at->cg->k, v)->shape));
}

static bool is_ragged(const ValueAt *at, int axis) {
    int size = at->cg->k->axis.at[axis].size;
    return (axis == AXIS_K ? at->past_k : at->past_v) || size % run_length(at, axis) != 0;
}

static Val run_base(const ValueAt *at, int axis) {
    return axis == AXIS_K ? at->base_k : at->base_v;
}

Val value_exists(ValueAt *at, int axis, int j) {
    if (!is_ragged(at, axis))
        return NULL;
    Cg *cg = at->cg;
    Val index = cg_add(cg, run_base(at, axis), cg_int(cg, j));
    return cg_cmp(cg, LLVMIntSLT, index, cg_int(cg, cg->k->axis.at[axis].size));
}

/* addresses ------------------------------------------------------------------------------------ */

/* The value made ahead that is read for v at this place, or NULL. */
static const ScanValue *made_ahead(const ValueAt *at, int v) {
    if (!at->scan || at->scan->of[v] < 0)
        return NULL;
    const ScanValue *made = &at->scan->value[at->scan->of[v]];
    return made->stored && made->round < at->round ? made : NULL;
}

bool value_in_memory(const ValueAt *at, int v) {
    return inst_at(at->cg->k, v)->op == OP_in || made_ahead(at, v);
}

static int port_width(const Port *p) {
    return p->is_param ? 4 : elem_size(p->elem);
}

/* Rows of `bytes` at `base`, for `heads` (i64) heads a token: head h of H reads head h * heads / H. */
static ValuePort head_rows(ValueAt *at, Val base, Val heads, int64_t bytes) {
    Cg *cg = at->cg;
    Val head = cg_udiv(cg, cg_mul(cg, at->head, cg_trunc32(cg, heads)), at->heads);
    Val offset = cg_mul(cg, cg_zext64(cg, head), cg_int64(cg, bytes));
    return (ValuePort){cg_gep8(cg, base, offset), cg_mul(cg, heads, cg_int64(cg, bytes)), heads, bytes};
}

/* Params have no tokens. */
static ValuePort port_address(ValueAt *at, int input) {
    Cg *cg = at->cg;
    const Port *p = &cg->k->in.at[input];
    Val heads = cg_frame_field(cg, frame_in_heads(cg->k, input));
    ValuePort r = head_rows(at, nv_global(cg, frame_in_ptr(cg->k, input)), heads,
                            shape_elements(cg->k, p->shape) * port_width(p));
    if (p->is_param)
        r.stride = NULL;
    return r;
}

/* Number of v's port: inputs come first. */
static int port_number(const ValueAt *at, int v) {
    const Kernel *k = at->cg->k;
    return made_ahead(at, v) ? k->in.count + at->scan->of[v] : inst_at(k, v)->index;
}

static ValuePort rows_of(ValueAt *at, int v) {
    Cg *cg = at->cg;
    const ScanValue *made = made_ahead(at, v);
    if (!made)
        return port_address(at, inst_at(cg->k, v)->index);
    int64_t elements = made->axis < 0 ? 1 : cg->k->axis.at[made->axis].size;
    return head_rows(at, scan_rows(cg, made), cg_frame_field(cg, FRAME_H), 4 * elements);
}

void value_ports(ValueAt *at) {
    const Kernel *k = at->cg->k;
    at->port = NEW_ARRAY(at->cg->arena, ValuePort, k->in.count + (at->scan ? at->scan->count : 0));
    for (int v = 0; v < k->inst.count; v++) {
        if (!value_in_memory(at, v) || at->port[port_number(at, v)].base)
            continue;
        ValuePort p = rows_of(at, v);
        if (p.stride && at->origin)
            p.base = cg_gep8(at->cg, p.base, cg_mul(at->cg, at->origin, p.stride));
        at->port[port_number(at, v)] = p;
    }
}

/* Tokens (i64) to this one from where the ports' addresses begin. */
static Val tokens_from_origin(const ValueAt *at) {
    if (!at->origin)
        return at->token;
    return at->offset ? cg_zext64(at->cg, at->offset) : cg_sub(at->cg, at->token, at->origin);
}

/* The row of this token and head that value v is read from. */
static Val row_address(ValueAt *at, int v, int64_t row_bytes) {
    Cg *cg = at->cg;
    const Inst *i = inst_at(cg->k, v);
    int port = port_number(at, v);
    bool placed = at->port && at->port[port].base;
    ValuePort a = placed ? at->port[port] : rows_of(at, v);
    Val p = a.base;
    if (a.stride && at->frugal)
        a.stride = cg_mul(cg, nv_anew(cg, a.heads), cg_int64(cg, a.bytes));
    if (a.stride)
        p = cg_gep8(cg, p, cg_mul(cg, placed ? tokens_from_origin(at) : at->token, a.stride));
    if (i->op == OP_in && i->row > 0)
        p = cg_gep8(cg, p, cg_int64(cg, i->row * row_bytes));
    if (a.stride && at->valid && at->zeros)
        p = cg_select(cg, at->valid, p, at->zeros);
    return p;
}

Val value_zeros(Cg *cg) {
    static const char name[] = "gdr_zeros";
    Val g = LLVMGetNamedGlobal(cg->mod, name);
    if (g)
        return g;
    int64_t longest = 4 * (int64_t)cg->k->axis.at[AXIS_K].size, values = cg->k->axis.at[AXIS_V].size;
    longest = 4 * values > longest ? 4 * values : longest;
    for (int i = 0; i < cg->k->in.count; i++) {
        int64_t bytes = shape_elements(cg->k, cg->k->in.at[i].shape) * 4;
        longest = bytes > longest ? bytes : longest;
    }
    Ty t = LLVMArrayType2(cg->i8, (uint64_t)longest + MAX_ACCESS);
    g = LLVMAddGlobalInAddressSpace(cg->mod, t, name, 1);
    LLVMSetInitializer(g, LLVMConstNull(t));
    LLVMSetAlignment(g, MAX_ACCESS);
    return g;
}

/* loads ---------------------------------------------------------------------------------------- */

static int64_t power_of_two_in(int64_t x) {
    return x & -x;
}

static int64_t min_int64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* How a thread's run of a value in memory is read: n elements in accesses of `group`. */
typedef struct Access { Elem e; int axis, n, group; int64_t size; } Access;

static bool is_param(const ValueAt *at, int v) {
    const Inst *i = inst_at(at->cg->k, v);
    return i->op == OP_in && at->cg->k->in.at[i->index].is_param;
}

static Access access_of(const ValueAt *at, int v) {
    const Inst *i = inst_at(at->cg->k, v);
    bool f32 = made_ahead(at, v) || is_param(at, v);
    Access a = {.e = f32 ? ELEM_f32 : at->cg->k->in.at[i->index].elem, .axis = run_axis(i->shape)};
    a.n = run_length(at, a.axis);
    a.size = a.axis < 0 ? 1 : at->cg->k->axis.at[a.axis].size;
    int64_t width = elem_size(a.e);
    int64_t bytes = min_int64(power_of_two_in(a.size * width), power_of_two_in(a.n * width));
    a.group = (int)(min_int64(bytes, MAX_ACCESS) / width);
    return a;
}

/* What one access brings: pairs of 2-byte elements come as words. */
static Ty access_type(Cg *cg, Access a) {
    bool pairs = elem_size(a.e) == 2 && a.group > 1;
    Ty item = pairs ? cg->i32 : a.e == ELEM_bf16 ? cg->i16 : cg_elem_type(cg, a.e);
    int count = pairs ? a.group / 2 : a.group;
    return count > 1 ? LLVMVectorType(item, (unsigned)count) : item;
}

static Val item_of(Cg *cg, Val x, int j) {
    return LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMVectorTypeKind ? cg_extract(cg, x, j) : x;
}

static void unpack_access(Cg *cg, Access a, Val x, Val *out) {
    if (elem_size(a.e) == 2 && a.group > 1) {
        for (int w = 0; w < a.group / 2; w++)
            nv_unpack(cg, a.e, item_of(cg, x, w), out + 2 * w);
    } else if (a.e == ELEM_bf16) {
        Val bits = cg_shl(cg, LLVMBuildZExt(cg->b, x, cg->i32, ""), 16);
        out[0] = LLVMBuildBitCast(cg->b, bits, cg->f32, "");
    } else {
        for (int j = 0; j < a.group; j++)
            out[j] = cg_to_f32(cg, item_of(cg, x, j));
    }
}

int value_accesses(const ValueAt *at, int v) {
    Access a = access_of(at, v);
    return a.n / a.group;
}

int value_access_bytes(const ValueAt *at, int v) {
    Access a = access_of(at, v);
    return a.group * elem_size(a.e);
}

/* The row's first elements stand in for ones that are not there. */
void value_addresses(ValueAt *at, int v, Val *address) {
    Cg *cg = at->cg;
    Access a = access_of(at, v);
    int width = elem_size(a.e);
    Val row = row_address(at, v, a.size * width), zero = cg_int(cg, 0);
    Val start = a.axis < 0 ? zero : run_base(at, a.axis);
    for (int j = 0; j < a.n; j += a.group) {
        Val exists = a.axis < 0 ? NULL : value_exists(at, a.axis, j);
        Val first = exists ? cg_select(cg, exists, cg_add(cg, start, cg_int(cg, j)), zero) : start;
        Val p = cg_gep8(cg, row, cg_zext64(cg, cg_mul(cg, first, cg_int(cg, width))));
        if (!exists) /* a constant distance, which the load takes as its offset */
            p = cg_gep8(cg, p, cg_int64(cg, (int64_t)j * width));
        address[j / a.group] = p;
    }
}

void value_load(ValueAt *at, int v, Val *loaded) {
    Access a = access_of(at, v);
    value_addresses(at, v, loaded);
    for (int j = 0; j < a.n / a.group; j++)
        loaded[j] = cg_load_invariant(at->cg, access_type(at->cg, a), loaded[j],
                                      a.group * elem_size(a.e));
}

void value_load_copy(ValueAt *at, int v, const Val *copy, Val *loaded) {
    Access a = access_of(at, v);
    for (int j = 0; j < a.n / a.group; j++)
        loaded[j] = cg_load(at->cg, access_type(at->cg, a), copy[j], a.group * elem_size(a.e));
}

void value_unpack(ValueAt *at, int v, const Val *loaded, Val *out) {
    Cg *cg = at->cg;
    Access a = access_of(at, v);
    Val valid = is_param(at, v) || at->zeros ? NULL : at->valid;
    Val zero = cg_float(cg, 0);
    for (int j = 0; j < a.n; j += a.group) {
        Val exists = a.axis < 0 ? NULL : value_exists(at, a.axis, j);
        unpack_access(cg, a, loaded[j / a.group], out + j);
        for (int m = j; m < j + a.group; m++) {
            if (exists)
                out[m] = cg_select(cg, exists, out[m], zero);
            if (valid)
                out[m] = cg_select(cg, valid, out[m], zero);
        }
    }
}

static void load_run(ValueAt *at, int v, Val *out) {
    Val *loaded = NEW_ARRAY(at->cg->arena, Val, value_accesses(at, v));
    value_load(at, v, loaded);
    value_unpack(at, v, loaded, out);
}

/* evaluation ----------------------------------------------------------------------------------- */

static void eval_pointwise(ValueAt *at, const Inst *i, int n, Val *out) {
    const Val *a = value_get(at, i->arg[0]), *b = NULL;
    int na = value_count(at, i->arg[0]), nb = 1;
    if (i->nargs > 1) {
        b = value_get(at, i->arg[1]);
        nb = value_count(at, i->arg[1]);
    }
    bool decay = i->op == OP_exp && value_range(at->cg->k, i->arg[0]).hi <= 0;
    for (int j = 0; j < n; j++)
        out[j] = decay ? nv_exp_decay(at->cg, a[na > 1 ? j : 0])
                       : cg_pointwise(at->cg, i->op, a[na > 1 ? j : 0], b ? b[nb > 1 ? j : 0] : NULL);
}

/* Pairwise: half the depth of dependent additions twice over, and the smaller error. */
static Val add_all(Cg *cg, Val *x, int n) {
    for (; n > 1; n = (n + 1) / 2) {
        for (int j = 0; j < n / 2; j++)
            x[j] = cg_fadd(cg, x[2 * j], x[2 * j + 1]);
        if (n % 2)
            x[n / 2] = x[n - 1];
    }
    return x[0];
}

static Val eval_sum(ValueAt *at, int v, const Inst *i) {
    int n = value_count(at, i->arg[0]);
    Val *part = NEW_ARRAY(at->cg->arena, Val, n);
    CHECK(run_axis(inst_at(at->cg->k, i->arg[0])->shape) == i->axis);
    value_get_padded(at, i->arg[0], part);
    return at->sum(at, v, i->axis, add_all(at->cg, part, n));
}

/* The product of two vectors, over channels. */
static Val eval_dot(ValueAt *at, int v, const Inst *i) {
    int n = run_length(at, i->axis);
    Val *a = NEW_ARRAY(at->cg->arena, Val, n), *b = NEW_ARRAY(at->cg->arena, Val, n);
    CHECK(value_count(at, i->arg[0]) == n && value_count(at, i->arg[1]) == n);
    value_get_padded(at, i->arg[0], a);
    value_get_padded(at, i->arg[1], b);
    for (int j = 0; j < n; j++)
        a[j] = cg_fmul(at->cg, a[j], b[j]);
    return at->sum(at, v, i->axis, add_all(at->cg, a, n));
}

/* Runs begin at even channels and are of even length: a pair lies in one thread. */
static void eval_turn(ValueAt *at, const Inst *i, int n, Val *out) {
    const Val *x = value_get(at, i->arg[0]);
    bool repeated = value_count(at, i->arg[0]) != n;
    CHECK(n % 2 == 0);
    for (int j = 0; j < n; j++) {
        Val y = x[repeated ? 0 : j ^ 1];
        out[j] = j % 2 ? y : cg_pointwise(at->cg, OP_neg, y, NULL);
    }
}

/* The place one token earlier. The first token stands in for the one before it, so that addresses
 * stay inside the sequence. */
ValueAt *value_before(ValueAt *at) {
    if (at->before)
        return at->before;
    Cg *cg = at->cg;
    ValueAt *b = NEW(cg->arena, ValueAt);
    *b = *at;
    Val earlier = cg_sub(cg, at->token, cg_int64(cg, 1));
    b->token = cg_select(cg, at->first, at->token, earlier);
    b->offset = NULL;
    b->first = at->begin ? cg_cmp(cg, LLVMIntEQ, b->token, at->begin) : NULL;
    b->lookup = NULL;
    b->memo = NULL;
    value_begin(b);
    at->before = b;
    return b;
}

static ValueAt *value_after(ValueAt *at) {
    if (at->after)
        return at->after;
    Cg *cg = at->cg;
    ValueAt *a = NEW(cg->arena, ValueAt);
    *a = *at;
    a->token = cg_select(cg, at->last, at->token, cg_add(cg, at->token, cg_int64(cg, 1)));
    a->offset = NULL;
    a->last = cg_cmp(cg, LLVMIntEQ, cg_add(cg, a->token, cg_int64(cg, 1)), at->end);
    a->first = cg_and(cg, at->first, at->last);
    a->lookup = NULL;
    a->memo = NULL;
    value_begin(a);
    at->after = a;
    return a;
}

static void eval_after(ValueAt *at, const Inst *i, int n, Val *out) {
    CHECK(at->last != NULL);
    const Val *x = value_get(value_after(at), i->arg[0]);
    for (int j = 0; j < n; j++)
        out[j] = cg_select(at->cg, at->last, cg_float(at->cg, 0), x[j]);
}

Val value_past(Cg *cg, Val sequence, Val head, Val heads) {
    if (kernel_is_gradient(cg->k) || !cg->k->facts.past)
        return NULL;
    Val H = cg_frame_field(cg, FRAME_H), number = pool_first(cg, sequence);
    Val mine = cg_udiv(cg, cg_mul(cg, head, cg_trunc32(cg, H)), heads);
    Val record = cg_add(cg, cg_mul(cg, number, H), cg_zext64(cg, mine));
    Val bytes = cg_mul(cg, record, cg_int64(cg, 4 * (int64_t)cg->k->facts.past));
    Val there = cg_cmp(cg, LLVMIntNE, cg_frame_field(cg, FRAME_PAST0), cg_int64(cg, 0));
    there = cg_and(cg, there, cg_cmp(cg, LLVMIntSGE, number, cg_int64(cg, 0)));
    return cg_select(cg, there, cg_gep8(cg, nv_global(cg, FRAME_PAST0), bytes),
                     LLVMConstNull(cg->ptr_global));
}

void value_recall(ValueAt *at, int v, Val where, Val *x) {
    Cg *cg = at->cg;
    const Inst *i = inst_at(cg->k, v);
    int axis = run_axis(i->shape), n = run_length(at, axis);
    if (!at->past)
        return;
    Var *known = NEW_ARRAY(cg->arena, Var, n);
    Val there = LLVMBuildIsNotNull(cg->b, at->past, "");
    for (int j = 0; j < n; j++)
        known[j] = cg_var(cg, cg->f32, x[j]);
    If given = cg_if(cg, where ? cg_and(cg, where, there) : there);
    for (int j = 0; j < n; j++) {
        Val exists = axis < 0 ? NULL : value_exists(at, axis, j), index = cg_int(cg, i->index);
        if (axis >= 0) {
            Val element = cg_add(cg, run_base(at, axis), cg_int(cg, j));
            index = cg_add(cg, index, exists ? cg_select(cg, exists, element, cg_int(cg, 0)) : element);
        }
        Val p = cg_gep8(cg, at->past, cg_shl(cg, cg_zext64(cg, index), 2));
        Val is = cg_load(cg, cg->f32, p, 4);
        cg_set(cg, known[j], exists ? cg_select(cg, exists, is, cg_float(cg, 0)) : is);
    }
    cg_end_if(cg, &given);
    for (int j = 0; j < n; j++)
        x[j] = cg_get(cg, known[j]);
}

/* Rows past the sequence's end may stand at its first token, but remember nothing. */
static void eval_prev(ValueAt *at, int v, const Inst *i, int n, Val *out) {
    CHECK(at->first != NULL);
    const Val *x = value_get(value_before(at), i->arg[0]);
    for (int j = 0; j < n; j++)
        out[j] = cg_select(at->cg, at->first, cg_float(at->cg, 0), x[j]);
    value_recall(at, v, at->valid ? cg_and(at->cg, at->first, at->valid) : at->first, out);
}

static void eval(ValueAt *at, int v, int n, Val *out) {
    const Inst *i = inst_at(at->cg->k, v);
    if (i->op == OP_const)
        out[0] = cg_float(at->cg, i->num);
    else if (value_in_memory(at, v))
        load_run(at, v, out);
    else if (i->op == OP_prev)
        eval_prev(at, v, i, n, out);
    else if (i->op == OP_after)
        eval_after(at, i, n, out);
    else if (i->op == OP_turn)
        eval_turn(at, i, n, out);
    else if (i->op == OP_sum)
        out[0] = eval_sum(at, v, i);
    else if (i->op == OP_contract)
        out[0] = eval_dot(at, v, i);
    else if (op_info[i->op].class == CLASS_PURE)
        eval_pointwise(at, i, n, out);
    else
        BUG("value %d (%s) is not elementwise", v, op_info[i->op].name);
}

const Val *value_get(ValueAt *at, int v) {
    if (at->memo[v])
        return at->memo[v];
    int n = value_count(at, v);
    Val *out = NEW_ARRAY(at->cg->arena, Val, n);
    if (!at->lookup || !at->lookup(at, v, out))
        eval(at, v, n, out);
    at->memo[v] = out;
    return out;
}

void value_get_padded(ValueAt *at, int v, Val *out) {
    const Val *x = value_get(at, v);
    int axis = run_axis(inst_at(at->cg->k, v)->shape), n = value_count(at, v);
    for (int j = 0; j < n; j++) {
        Val exists = axis < 0 ? NULL : value_exists(at, axis, j);
        out[j] = exists ? cg_select(at->cg, exists, x[j], cg_float(at->cg, 0)) : x[j];
    }
}

static double rest_of(const Kernel *k, const Inst *i, double a, double b) {
    if (i->op == OP_const)
        return i->num;
    if (i->op == OP_in)
        return k->in.at[i->index].is_param ? NAN : 0;
    if (i->op == OP_mul)
        return a == 0 || b == 0 ? 0 : a * b;
    if (i->op == OP_neg)
        return -a;
    if (i->op == OP_add || i->op == OP_sub)
        return i->op == OP_add ? a + b : a - b;
    if (i->op == OP_exp)
        return a == 0 ? 1 : NAN;
    if (i->op == OP_silu || i->op == OP_tanh || i->op == OP_relu || i->op == OP_sum ||
        i->op == OP_turn)
        return a == 0 ? 0 : NAN;
    return NAN;
}

double value_at_rest(const Kernel *k, int v) {
    double *rest = NEW_ARRAY(k->arena, double, v + 1);
    for (int u = 0; u <= v; u++) {
        const Inst *i = inst_at(k, u);
        double a = i->nargs > 0 && i->arg[0] >= 0 ? rest[i->arg[0]] : NAN;
        double b = i->nargs > 1 && i->arg[1] >= 0 ? rest[i->arg[1]] : NAN;
        rest[u] = rest_of(k, i, a, b);
    }
    return rest[v];
}
