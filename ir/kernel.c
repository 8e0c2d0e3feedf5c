/* Building and rewriting kernels.
 *
 * A shape is a set of named axes kept in ascending axis number: C, R, U (the lattice axes), then K,
 * V (the feature axes), then the spec's other dims. */
#include "ir/ir.h"

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

int emit_turn(Kernel *k, int a, int axis, Span span) {
    return emit(k, (Inst){.op = OP_turn, .nargs = 1, .arg = (int[]){a}, .axis = axis, .span = span});
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
    return op == OP_add || op == OP_mul;
}

bool op_gives_value(Op op) {
    return op != OP_decay && op != OP_update && op != OP_out && op != OP_next &&
           op != OP_conext && op != OP_rewind && op != OP_codecay && op != OP_coupdate;
}

bool kernel_is_gradient(const Kernel *k) {
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_conext || inst_at(k, v)->op == OP_rewind)
            return true;
    return false;
}

bool *values_from_later(const Kernel *k) {
    bool *later = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *in = inst_at(k, v);
        later[v] = in->op == OP_costate || in->op == OP_after || in->op == OP_cumsum_back ||
                   in->op == OP_coread || in->op == OP_decay_a;
        for (int i = 0; i < in->nargs; i++)
            later[v] = later[v] || (in->arg[i] >= 0 && later[in->arg[i]]);
    }
    return later;
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

bool value_is_angle(const Kernel *k, int v) {
    bool used = false;
    for (int u = v + 1; u < k->inst.count; u++) {
        const Inst *in = inst_at(k, u);
        for (int i = 0; i < in->nargs; i++)
            if (in->arg[i] == v && in->op != OP_cos && in->op != OP_sin)
                return false;
            else
                used |= in->arg[i] == v;
    }
    return used;
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
