/* Building and rewriting kernels; the shape rules.
 *
 * A shape is a set of named axes kept in ascending axis number: C, R, U (the lattice axes), then K,
 * V (the feature axes), then the spec's other dims. `inst_shape` is the one place that knows what an
 * operation takes and what shape it gives: `emit` infers with it, the verifier compares with it. */
#include "ir/ir.h"

#include <limits.h>
#include <string.h>

#define R (1u << LEVEL_recurrence)
#define C (1u << LEVEL_chunk)
#define T (1u << LEVEL_tile)
#define V (-1)
const OpInfo op_info[OP_count] = {
#define OP(name, nargs, class, levels, doc) \
    [OP_##name] = {#name, nargs, CLASS_##class, levels, doc},
#include "ir/ops.def"
#undef OP
};
#undef R
#undef C
#undef T
#undef V

/* shapes --------------------------------------------------------------------------------------- */

Shape shape_scalar(void) {
    return (Shape){0};
}

Shape shape_of(int rank, const int *axis) {
    Shape s = {0};
    for (int i = 0; i < rank; i++)
        s = shape_with(s, axis[i]);
    return s;
}

bool shape_has(Shape s, int axis) {
    for (int i = 0; i < s.rank; i++)
        if (s.axis[i] == axis)
            return true;
    return false;
}

bool shape_equal(Shape a, Shape b) {
    if (a.rank != b.rank)
        return false;
    for (int i = 0; i < a.rank; i++)
        if (a.axis[i] != b.axis[i])
            return false;
    return true;
}

Shape shape_with(Shape s, int axis) {
    if (shape_has(s, axis))
        return s;
    if (s.rank == 3)
        BUG("a shape has at most 3 axes");
    int at = s.rank++;
    for (; at > 0 && s.axis[at - 1] > axis; at--)
        s.axis[at] = s.axis[at - 1];
    s.axis[at] = (int8_t)axis;
    return s;
}

Shape shape_union(Shape a, Shape b) {
    for (int i = 0; i < b.rank; i++)
        a = shape_with(a, b.axis[i]);
    return a;
}

Shape shape_without(Shape s, int axis) {
    Shape r = {0};
    for (int i = 0; i < s.rank; i++)
        if (s.axis[i] != axis)
            r.axis[r.rank++] = s.axis[i];
    return r;
}

int64_t shape_elements(const Kernel *k, Shape s) {
    int64_t n = 1;
    for (int i = 0; i < s.rank; i++)
        n *= k->axis.at[s.axis[i]].size;
    return n;
}

static int union_rank(Shape a, Shape b) {
    int n = a.rank;
    for (int i = 0; i < b.rank; i++)
        n += !shape_has(a, b.axis[i]);
    return n;
}

static bool shape_contains(Shape whole, Shape part) {
    return union_rank(whole, part) == whole.rank;
}

Shape shape_lattice(Shape s) {
    Shape r = {0};
    for (int i = 0; i < s.rank; i++)
        if (s.axis[i] <= AXIS_U)
            r.axis[r.rank++] = s.axis[i];
    return r;
}

Shape shape_features(Shape s) {
    Shape r = {0};
    for (int i = 0; i < s.rank; i++)
        if (s.axis[i] > AXIS_U)
            r.axis[r.rank++] = s.axis[i];
    return r;
}

/* Exactly this one lattice axis, whatever else. */
static bool on_lattice(Shape s, int axis) {
    Shape l = shape_lattice(s);
    return l.rank == 1 && l.axis[0] == axis;
}

/* kernels -------------------------------------------------------------------------------------- */

Kernel *kernel_new(Arena *arena, Interner *names, const char *name) {
    static const char *const fixed[AXIS_user] = {"C", "R", "U", "K", "V"};
    Kernel *k = NEW(arena, Kernel);
    k->arena = arena;
    k->names = names;
    k->name = name;
    for (int i = 0; i < AXIS_user; i++)
        VEC_PUSH(arena, &k->axis, ((Axis){intern_z(names, fixed[i]), 0}));
    return k;
}

Kernel *kernel_like(const Kernel *k) {
    Kernel *n = NEW(k->arena, Kernel);
    n->arena = k->arena;
    n->names = k->names;
    n->source = k->source;
    n->name = k->name;
    n->level = k->level;
    n->state_name = k->state_name;
    n->facts = k->facts;
    for (int i = 0; i < k->axis.count; i++)
        VEC_PUSH(n->arena, &n->axis, k->axis.at[i]);
    for (int i = 0; i < k->in.count; i++)
        VEC_PUSH(n->arena, &n->in, k->in.at[i]);
    for (int i = 0; i < k->out.count; i++)
        VEC_PUSH(n->arena, &n->out, k->out.at[i]);
    return n;
}

Kernel *kernel_clone(const Kernel *k) {
    Kernel *n = kernel_like(k);
    for (int v = 0; v < k->inst.count; v++)
        emit_copy(n, inst_at(k, v), inst_at(k, v)->arg);
    return n;
}

int kernel_axis(Kernel *k, const char *name, int size) {
    name = intern_z(k->names, name);
    for (int i = AXIS_K; i < k->axis.count; i++)
        if (k->axis.at[i].name == name) {
            if (k->axis.at[i].size == 0)
                k->axis.at[i].size = size;
            return i;
        }
    CHECK(k->axis.count < INT8_MAX);
    VEC_PUSH(k->arena, &k->axis, ((Axis){name, size}));
    return k->axis.count - 1;
}

int kernel_find_port(const Kernel *k, const char *name, bool output) {
    int n = output ? k->out.count : k->in.count;
    const Port *p = output ? k->out.at : k->in.at;
    for (int i = 0; i < n; i++)
        if (strcmp(p[i].name, name) == 0)
            return i;
    return -1;
}

/* what each operation takes and gives ---------------------------------------------------------- */

static const char *shape_in(const Kernel *k, const Inst *in, Shape *out) {
    if (in->index < 0 || in->index >= k->in.count)
        return "no such input";
    const Port *p = &k->in.at[in->index];
    Shape s = p->shape;
    if (in->row >= 0) {
        if (s.rank == 0)
            return "a row of an input without axes";
        int rows = s.axis[0]; /* ports are in memory order: the n of [n], [n,K], [n,V] */
        if (in->row >= k->axis.at[rows].size)
            return "row beyond the input's first axis";
        s = shape_without(s, rows);
    }
    if (k->level != LEVEL_recurrence && !p->is_param) {
        if (s.rank == 3)
            return "an input with too many axes";
        s = shape_with(s, AXIS_C);
    }
    *out = shape_union(shape_scalar(), s); /* sorted */
    return NULL;
}

static const char *shape_pure(Shape a, Shape b, Shape *out) {
    if (union_rank(a, b) > 3)
        return "operands have too many axes together";
    bool nested = shape_contains(a, b) || shape_contains(b, a);
    if (!nested && shape_features(a).rank && shape_features(b).rank)
        return "operands do not broadcast: neither has all axes of the other";
    *out = shape_union(a, b);
    return NULL;
}

/* Where the rows of x stand: axis R, else axis C; -1 when x cannot be a left operand. */
static int left_axis(Shape x) {
    Shape l = shape_lattice(x);
    if (l.rank == 0)
        return AXIS_C;
    return l.rank == 1 && l.axis[0] != AXIS_U ? l.axis[0] : -1;
}

static const char *shape_scores(const Inst *in, const Shape *arg, Shape *out) {
    int left = left_axis(arg[0]);
    if (left < 0)
        return "x must stand on axis C or R";
    if (!on_lattice(arg[1], AXIS_U))
        return "y must stand on axis U";
    bool decays = in->nargs == 3 && in->arg[2] >= 0;
    if (decays && !on_lattice(arg[2], AXIS_U))
        return "decays must stand on axis U";
    Shape x = shape_features(arg[0]), y = shape_features(arg[1]);
    if (union_rank(x, y) != 1)
        return "x and y must share one axis to sum over";
    if (decays && !shape_contains(shape_union(x, y), shape_features(arg[2])))
        return "decays have an axis that x and y lack";
    *out = shape_of(2, (int[]){left, AXIS_U});
    return NULL;
}

/* carry (x on C or R) and tail (y on U). */
static const char *shape_scaled(const Inst *in, const Shape *arg, Shape *out) {
    int left = in->op == OP_tail ? AXIS_U : left_axis(arg[0]);
    if (left < 0 || (in->op == OP_tail && !on_lattice(arg[0], AXIS_U)))
        return in->op == OP_tail ? "y must stand on axis U" : "x must stand on axis C or R";
    Shape s = shape_with(arg[0], left);
    if (in->nargs == 2 && in->arg[1] >= 0) {
        if (!on_lattice(arg[1], AXIS_U))
            return "decays must stand on axis U";
        if (union_rank(shape_features(s), shape_features(arg[1])) > 1)
            return "more than one feature axis";
        s = shape_union(s, shape_features(arg[1]));
    }
    *out = s;
    return NULL;
}

static const char *shape_weave(const Kernel *k, const Inst *in, Shape *out) {
    if (in->axis != AXIS_R && in->axis != AXIS_U)
        return "weaves onto axis R or U only";
    Shape s = shape_of(1, (int[]){in->axis});
    for (int i = 0; i < in->nargs; i++) {
        Shape a = inst_at(k, in->arg[i])->shape;
        Shape l = shape_lattice(a), f = shape_features(a);
        /* Rows over the unknowns, [C,U] -> [R,U], weave like rows over a feature axis. */
        if (in->axis == AXIS_R && l.rank == 2 && l.axis[0] == AXIS_C && l.axis[1] == AXIS_U) {
            l = shape_without(l, AXIS_U);
            f = shape_with(f, AXIS_U);
        }
        if (l.rank > 1 || (l.rank == 1 && l.axis[0] != AXIS_C))
            return "an operand stands on another axis than C";
        if (union_rank(s, f) > 2)
            return "more than one feature axis";
        s = shape_union(s, f);
    }
    *out = s;
    return NULL;
}

static const char *shape_reduced(const Inst *in, const Shape *arg, Shape *out) {
    for (int i = 0; i < in->nargs; i++)
        if (!shape_has(arg[i], in->axis))
            return "an operand lacks the axis";
    Shape s = shape_without(arg[0], in->axis);
    if (in->op == OP_contract) {
        Shape b = shape_without(arg[1], in->axis);
        if (union_rank(s, b) > 3)
            return "operands have too many axes together";
        s = shape_union(s, b);
    }
    *out = s;
    return NULL;
}

static const char *shape_rename(const Kernel *k, const Inst *in, Shape a, Shape *out) {
    if (!shape_has(a, in->index))
        return "the operand lacks the axis";
    if (in->axis < 0 || in->axis >= k->axis.count || shape_has(a, in->axis))
        return "the new axis is unknown or there already";
    if (k->axis.at[in->axis].size != k->axis.at[in->index].size)
        return "the axes differ in size";
    *out = shape_with(shape_without(a, in->index), in->axis);
    return NULL;
}

static const char *shape_time(const Kernel *k, Shape a, Shape *out) {
    if (shape_has(a, AXIS_R) || shape_has(a, AXIS_U))
        return "looks along tokens: axis C, not R or U";
    if (k->level != LEVEL_recurrence) {
        if (!shape_has(a, AXIS_C) && a.rank == 3)
            return "operand has too many axes";
        a = shape_with(a, AXIS_C); /* even a constant differs at a sequence's start */
    }
    *out = a;
    return NULL;
}

static const char *shape_out(const Kernel *k, const Inst *in, Shape a) {
    if (in->index < 0 || in->index >= k->out.count)
        return "no such output";
    if (!shape_equal(shape_without(a, AXIS_C), k->out.at[in->index].shape))
        return "the operand's axes are not the output's";
    return NULL;
}

static bool only_axis(Shape s, int axis) {
    return s.rank == 1 && s.axis[0] == axis;
}

static const char *shape_state_op(const Inst *in, const Shape *arg, Shape *out) {
    *out = shape_scalar();
    bool key = only_axis(arg[0], AXIS_K), value = only_axis(arg[0], AXIS_V);
    switch (in->op) {
    case OP_decay:
        return arg[0].rank == 0 || key || value ? NULL : "a decay has axis K, V or none";
    case OP_read:
        *out = shape_of(1, (int[]){key ? AXIS_V : AXIS_K});
        return key || value ? NULL : "a read takes a vector over K or V";
    default:
        value = only_axis(arg[1], AXIS_V);
        return (key || arg[0].rank == 0) && (value || arg[1].rank == 0)
                   ? NULL : "an update takes [K] and [V], or scalars in their place";
    }
}

static const char *shape_by_op(const Kernel *k, const Inst *in, const Shape *arg, Shape *out) {
    const Shape state = shape_of(2, (int[]){AXIS_K, AXIS_V});
    *out = shape_scalar();
    switch (in->op) {
    case OP_const: return NULL;
    case OP_in: return shape_in(k, in, out);
    case OP_sum: case OP_contract: return shape_reduced(in, arg, out);
    case OP_prev: case OP_cumsum: return shape_time(k, arg[0], out);
    case OP_decay: case OP_read: case OP_update: return shape_state_op(in, arg, out);
    case OP_out: return shape_out(k, in, arg[0]);
    case OP_weave: return shape_weave(k, in, out);
    case OP_scores: return shape_scores(in, arg, out);
    case OP_carry: case OP_tail: return shape_scaled(in, arg, out);
    case OP_total:
        *out = shape_features(arg[0]);
        return on_lattice(arg[0], AXIS_U) ? NULL : "decays must stand on axis U";
    case OP_solve:
        *out = arg[0];
        return shape_equal(arg[0], shape_of(2, (int[]){AXIS_R, AXIS_U})) ? NULL : "T has axes R, U";
    case OP_rename: return shape_rename(k, in, arg[0], out);
    case OP_state: *out = state; return NULL;
    case OP_next: return shape_equal(arg[0], state) ? NULL : "the next state has axes K, V";
    case OP_neg: case OP_add: case OP_sub: case OP_mul: case OP_div: case OP_pow: case OP_min:
    case OP_max: case OP_exp: case OP_log: case OP_sqrt: case OP_rsqrt: case OP_sigmoid:
    case OP_softplus: case OP_tanh: case OP_silu: case OP_relu: case OP_abs: case OP_cos:
    case OP_sin:
        *out = arg[0];
        return in->nargs == 2 ? shape_pure(arg[0], arg[1], out) : NULL;
    case OP_count: break;
    }
    return "unknown operation";
}

/* Fewest and most operands. */
static void arity(Op op, int *lo, int *hi) {
    *lo = *hi = op_info[op].nargs;
    if (op == OP_scores)
        *lo = 2, *hi = 3;
    else if (op == OP_carry || op == OP_tail)
        *lo = 1, *hi = 2;
    else if (op == OP_weave)
        *lo = 1, *hi = INT_MAX;
}

const char *inst_shape(const Kernel *k, const Inst *in, Shape *out) {
    if ((unsigned)in->op >= OP_count)
        return "unknown operation";
    if (!(op_info[in->op].levels >> k->level & 1))
        return "not legal at this level";
    int lo, hi;
    arity(in->op, &lo, &hi);
    if (in->nargs < lo || in->nargs > hi)
        return "wrong number of operands";
    Shape arg[3] = {0}; /* weave alone has more, and looks for itself */
    for (int i = 0; i < in->nargs; i++) {
        int v = in->arg[i];
        bool optional = op_info[in->op].nargs < 0 && in->op != OP_weave && i == hi - 1;
        if (v == -1 && optional)
            continue;
        if (v < 0 || v >= k->inst.count)
            return "an operand that is not there";
        if (!op_gives_value(inst_at(k, v)->op))
            return "an operand that gives no value";
        if (i < 3)
            arg[i] = inst_at(k, v)->shape;
    }
    return shape_by_op(k, in, arg, out);
}

/* emitting ------------------------------------------------------------------------------------- */

static int append(Kernel *k, Inst inst, const int *arg) {
    int *own = inst.nargs ? NEW_ARRAY(k->arena, int, inst.nargs) : NULL;
    for (int i = 0; i < inst.nargs; i++)
        own[i] = arg[i];
    inst.arg = own;
    VEC_PUSH(k->arena, &k->inst, inst);
    return k->inst.count - 1;
}

int emit(Kernel *k, Inst inst) {
    const char *why = inst_shape(k, &inst, &inst.shape);
    if (why)
        BUG("%s: %s: %s", k->name, (unsigned)inst.op < OP_count ? op_info[inst.op].name : "?", why);
    return append(k, inst, inst.arg);
}

int emit_copy(Kernel *k, const Inst *model, const int *arg) {
    return append(k, *model, arg);
}

int emit_const(Kernel *k, double x) {
    return emit(k, (Inst){.op = OP_const, .num = x});
}

int emit_in(Kernel *k, int port, int row, Span span) {
    return emit(k, (Inst){.op = OP_in, .index = port, .row = row, .span = span});
}

int emit1(Kernel *k, Op op, int a, Span span) {
    return emit(k, (Inst){.op = op, .nargs = 1, .arg = (int[]){a}, .span = span});
}

int emit2(Kernel *k, Op op, int a, int b, Span span) {
    return emit(k, (Inst){.op = op, .nargs = 2, .arg = (int[]){a, b}, .span = span});
}

int emit_sum(Kernel *k, int a, int axis, Span span) {
    return emit(k, (Inst){.op = OP_sum, .nargs = 1, .arg = (int[]){a}, .axis = axis, .span = span});
}

void emit_decay(Kernel *k, int a, Span span) {
    emit1(k, OP_decay, a, span);
}

int emit_read(Kernel *k, int a, Span span) {
    return emit1(k, OP_read, a, span);
}

void emit_update(Kernel *k, int p, int z, Span span) {
    emit2(k, OP_update, p, z, span);
}

void emit_out(Kernel *k, int port, int a, Span span) {
    emit(k, (Inst){.op = OP_out, .nargs = 1, .arg = (int[]){a}, .index = port, .span = span});
}

/* questions about values ----------------------------------------------------------------------- */

bool op_commutes(Op op) {
    return op == OP_add || op == OP_mul || op == OP_min || op == OP_max;
}

bool op_gives_value(Op op) {
    return op != OP_decay && op != OP_update && op != OP_out && op != OP_next;
}

void value_mark(const Kernel *k, int v, bool *mark) {
    mark[v] = true;
    for (; v >= 0; v--) {
        const Inst *in = inst_at(k, v);
        for (int i = 0; mark[v] && i < in->nargs; i++)
            if (in->arg[i] >= 0)
                mark[in->arg[i]] = true;
    }
}

bool value_is_constant(const Kernel *k, int v) {
    bool *mark = NEW_ARRAY(k->arena, bool, v + 1);
    value_mark(k, v, mark);
    for (int i = 0; i <= v; i++) {
        const Inst *in = inst_at(k, i);
        OpClass c = op_info[in->op].class;
        if (mark[i] && (c == CLASS_TIME || c == CLASS_STATE || c == CLASS_CHUNK ||
                        (in->op == OP_in && !k->in.at[in->index].is_param)))
            return false;
    }
    return true;
}
