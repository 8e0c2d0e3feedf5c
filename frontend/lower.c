/* Syntax tree -> recurrence: scalars, vectors and statements. Loops are unrolled; vectors over dims
 * that are not axes of the state become scalars. Equal values are emitted once, which is also how
 * the algebra recognises equal factors and directions.
 */
#include "frontend/lower.h"

#include <math.h>

enum { INST_MAX = 50000 };

/* emitting ------------------------------------------------------------------------------------- */

bool lower_is_scalar(const Lower *l, int v) { return inst_at(l->k, v)->shape.rank == 0; }

static unsigned inst_hash(const Inst *i) {
    unsigned h = (unsigned)i->op;
    uint64_t num;
    _Static_assert(sizeof num == sizeof i->num, "double is 64 bits");
    __builtin_memcpy(&num, &i->num, sizeof num);
    h = h * 31 + (unsigned)(num ^ num >> 32);
    h = h * 31 + (unsigned)i->index;
    h = h * 31 + (unsigned)i->row;
    for (int j = 0; j < i->nargs; j++)
        h += 31 * (unsigned)i->arg[j]; /* blind to their order, since some operations are */
    return (h ^ h >> 10) % KNOWN_BUCKETS;
}

static bool inst_same(const Inst *a, const Inst *b) {
    if (a->op != b->op || __builtin_memcmp(&a->num, &b->num, sizeof a->num) ||
        a->index != b->index || a->row != b->row || a->axis != b->axis || a->nargs != b->nargs)
        return false;
    if (op_commutes(a->op) && a->arg[0] == b->arg[1] && a->arg[1] == b->arg[0])
        return true;
    for (int j = 0; j < a->nargs; j++)
        if (a->arg[j] != b->arg[j])
            return false;
    return true;
}

/* Emits, or finds what has been emitted. Reads are equal only while the state is the same. */
static int make(Lower *l, Inst inst) {
    int *bucket = &l->bucket[inst_hash(&inst)];
    for (int at = *bucket - 1; at >= 0; at = l->known.at[at].next) {
        const Known *known = &l->known.at[at];
        if (inst_same(inst_at(l->k, known->inst), &inst) &&
            (inst.op != OP_read || known->version == l->version))
            return known->inst;
    }
    int v = emit(l->k, inst);
    VEC_PUSH(l->arena, &l->known, ((Known){v, *bucket - 1, l->version}));
    *bucket = l->known.count;
    return v;
}

int lower_const(Lower *l, double x) { return make(l, (Inst){.op = OP_const, .num = x}); }

static bool is_const(const Lower *l, int v, double x) {
    const Inst *i = inst_at(l->k, v);
    return i->op == OP_const && i->num == x;
}

int lower1(Lower *l, Op op, int a, Span span) {
    const Inst *i = inst_at(l->k, a);
    if (op == OP_neg && i->op == OP_neg)
        return i->arg[0];
    if (op == OP_neg && i->op == OP_const)
        return lower_const(l, -i->num);
    return make(l, (Inst){.op = op, .nargs = 1, .arg = (int[]){a}, .span = span});
}

int lower2(Lower *l, Op op, int a, int b, Span span) {
    if (op == OP_mul && (is_const(l, a, 1) || is_const(l, b, 1)))
        return is_const(l, a, 1) ? b : a;
    if (op == OP_mul && (is_const(l, a, -1) || is_const(l, b, -1)))
        return lower1(l, OP_neg, is_const(l, a, -1) ? b : a, span);
    return make(l, (Inst){.op = op, .nargs = 2, .arg = (int[]){a, b}, .span = span});
}

int lower_sum(Lower *l, int a, Span span) {
    Shape s = inst_at(l->k, a)->shape;
    CHECK(s.rank == 1);
    return make(l, (Inst){.op = OP_sum, .nargs = 1, .arg = (int[]){a}, .axis = s.axis[0],
                          .span = span});
}

int lower_read(Lower *l, int a, Span span) { return lower1(l, OP_read, a, span); }

void lower_decay(Lower *l, int a, Span span) {
    emit_decay(l->k, a, span);
    l->version++;
}

void lower_update(Lower *l, int p, int z, Span span) {
    emit_update(l->k, p, z, span);
    l->version++;
}

/* scalars and vectors -------------------------------------------------------------------------- */

static Value value_of(int v) { return (Value){.v = v}; }

/* The number of elements of a vector that is expanded; 0 for everything else. */
static int expanded(const Lower *l, Type t) {
    const Decl *state = l->v->state;
    if ((t.kind != TYPE_column && t.kind != TYPE_row) || t.dim[0] == state->dim[0] ||
        t.dim[0] == state->dim[1])
        return 0;
    return bound_size(l->b, t.dim[0]);
}

static int element(Value v, int i) { return v.element ? v.element[i] : v.v; }

static Value map(Lower *l, Op op, Value a, const Value *b, Type t, Span span) {
    int n = expanded(l, t);
    int *out = n ? NEW_ARRAY(l->arena, int, n) : NULL;
    for (int i = 0; i < n; i++)
        out[i] = b ? lower2(l, op, element(a, i), element(*b, i), span)
                   : lower1(l, op, element(a, i), span);
    if (n)
        return (Value){.element = out};
    return value_of(b ? lower2(l, op, a.v, b->v, span) : lower1(l, op, a.v, span));
}

static int sum_of(Lower *l, Value a, Type t, Span span) {
    int n = expanded(l, t);
    if (!n)
        return lower_sum(l, a.v, span);
    int s = a.element[0];
    for (int i = 1; i < n; i++)
        s = lower2(l, OP_add, s, a.element[i], span);
    return s;
}

/* x / sqrt(sum(x.^2) + 1e-6) */
static Value normalised(Lower *l, Value x, Type t, Span span) {
    int s = sum_of(l, map(l, OP_mul, x, &x, t, span), t, span);
    s = lower2(l, OP_add, s, lower_const(l, 1e-6), span);
    Value r = value_of(lower1(l, OP_rsqrt, s, span));
    Value y = map(l, OP_mul, x, &r, t, span);
    if (!y.element)
        VEC_PUSH(l->arena, &l->atomic, y.v);
    return y;
}

static Value turned(Lower *l, Value x, Type t, Span span) {
    int n = expanded(l, t), axis = t.dim[0] == l->v->state->dim[0] ? AXIS_K : AXIS_V;
    if (!n)
        return value_of(make(l, (Inst){.op = OP_turn, .nargs = 1, .arg = (int[]){x.v}, .axis = axis,
                                       .span = span}));
    int *out = NEW_ARRAY(l->arena, int, n);
    for (int i = 0; i < n; i++)
        out[i] = i % 2 ? x.element[i - 1] : lower1(l, OP_neg, x.element[i + 1], span);
    return (Value){.element = out};
}

static Value power(Lower *l, const Expr *e, Value a, Value b) {
    const Expr *exponent = e->arg[1];
    double x = exponent->constant ? bound_number(l->b, exponent) : NAN;
    if (x == 1)
        return a;
    if (x == 2)
        return map(l, OP_mul, a, &a, e->type, e->span);
    if (x == 0.5 || x == -0.5)
        return map(l, x > 0 ? OP_sqrt : OP_rsqrt, a, NULL, e->type, e->span);
    return map(l, OP_pow, a, &b, e->type, e->span);
}

static Op op_of(Function fn) {
    switch (fn) {
    case FN_exp: return OP_exp;
    case FN_log: return OP_log;
    case FN_sqrt: return OP_sqrt;
    case FN_rsqrt: return OP_rsqrt;
    case FN_sigmoid: return OP_sigmoid;
    case FN_softplus: return OP_softplus;
    case FN_tanh: return OP_tanh;
    case FN_silu: return OP_silu;
    case FN_relu: return OP_relu;
    case FN_abs: return OP_abs;
    case FN_cos: return OP_cos;
    case FN_sin: return OP_sin;
    case FN_min: return OP_min;
    case FN_max: return OP_max;
    case FN_prev: return OP_prev;
    case FN_cumsum: return OP_cumsum;
    case FN_sum:
    case FN_dot:
    case FN_l2norm:
    case FN_turn:
    case FN_diag:
    case FN_count: break;
    }
    BUG("no single operation");
}

static Value lower_call(Lower *l, const Expr *e, Value a, Value b) {
    Type t = e->arg[0]->type;
    switch (e->fn) {
    case FN_sum: return value_of(sum_of(l, a, t, e->span));
    case FN_dot: return value_of(sum_of(l, map(l, OP_mul, a, &b, t, e->span), t, e->span));
    case FN_l2norm: return normalised(l, a, t, e->span);
    case FN_turn: return turned(l, a, t, e->span);
    case FN_diag: return (Value){.m = matrix_diag(l, a.v, e->span)};
    default: return map(l, op_of(e->fn), a, e->nargs == 2 ? &b : NULL, e->type, e->span);
    }
}

/* names ---------------------------------------------------------------------------------------- */

static Value lower_port(Lower *l, const Decl *decl, Span span) {
    int n = expanded(l, decl->type);
    if (!n)
        return value_of(make(l, (Inst){.op = OP_in, .index = decl->port, .row = -1, .span = span}));
    int *out = NEW_ARRAY(l->arena, int, n);
    for (int i = 0; i < n; i++)
        out[i] = make(l, (Inst){.op = OP_in, .index = decl->port, .row = i, .span = span});
    return (Value){.element = out};
}

static Value lower_name(Lower *l, const Expr *e) {
    if (!e->decl)
        return (Value){.m = matrix_identity(l)};
    switch (e->decl->kind) {
    case DECL_in:
    case DECL_param: return lower_port(l, e->decl, e->span);
    case DECL_let: return l->value[e->decl->slot];
    case DECL_state: return (Value){.m = matrix_state(l, e->span)};
    default: BUG("'%s' has no value", e->name);
    }
}

static Value lower_expr(Lower *l, const Expr *e);

static Value lower_index(Lower *l, const Expr *e) {
    int row = (int)bound_number(l->b, e->arg[1]);
    const Expr *base = e->arg[0];
    if (base->type.kind == TYPE_table)
        return value_of(make(l, (Inst){.op = OP_in, .index = base->decl->port, .row = row,
                                       .span = e->span}));
    return value_of(lower_expr(l, base).element[row]);
}

/* operators ------------------------------------------------------------------------------------ */

static bool is_vector(Type t) { return t.kind == TYPE_column || t.kind == TYPE_row; }

/* A product with a matrix, or one that makes a matrix. */
static Value multiply(Lower *l, const Expr *e, Value a, Value b) {
    Type x = e->arg[0]->type, y = e->arg[1]->type;
    if (a.m && b.m)
        return (Value){.m = matrix_mul(l, a.m, b.m, e->span)};
    if (a.m || b.m) {
        const Matrix *m = a.m ? a.m : b.m;
        int v = a.m ? b.v : a.v;
        if (!is_vector(a.m ? y : x))
            return (Value){.m = a.m ? matrix_scale_right(l, m, v, e->span)
                                    : matrix_scale(l, m, false, v, e->span)};
        return value_of(matrix_apply(l, m, b.m != NULL, v, e->span));
    }
    if (x.kind == TYPE_column && y.kind == TYPE_row) {
        bool square = x.dim[0] == y.dim[0], flip = !square && x.dim[0] != l->v->state->dim[0];
        return (Value){.m = matrix_outer(l, a.v, b.v, square, flip, e->span)};
    }
    Value product = map(l, OP_mul, a, &b, x.kind == TYPE_scalar ? y : x, e->span);
    if (x.kind == TYPE_row && y.kind == TYPE_column)
        return value_of(sum_of(l, product, x, e->span));
    return product;
}

static Value divide(Lower *l, const Expr *e, Value a, Value b) {
    if (!a.m)
        return map(l, OP_div, a, &b, e->type, e->span);
    int inverse = lower2(l, OP_div, lower_const(l, 1), b.v, e->span);
    return (Value){.m = matrix_scale(l, a.m, false, inverse, e->span)};
}

static Value add(Lower *l, const Expr *e, Value a, Value b) {
    bool minus = e->kind == EXPR_sub;
    if (!a.m)
        return map(l, minus ? OP_sub : OP_add, a, &b, e->type, e->span);
    const Matrix *right = minus ? matrix_scale(l, b.m, true, NONE, e->span) : b.m;
    return (Value){.m = matrix_add(l, a.m, right, e->span)};
}

static Value lower_expr(Lower *l, const Expr *e) {
    Value a = {0}, b = {0};
    if (e->constant)
        return value_of(lower_const(l, bound_number(l->b, e)));
    if (e->kind == EXPR_name)
        return lower_name(l, e);
    if (e->kind == EXPR_index)
        return lower_index(l, e);
    if (e->nargs > 0)
        a = lower_expr(l, e->arg[0]);
    if (e->nargs > 1)
        b = lower_expr(l, e->arg[1]);
    switch (e->kind) {
    case EXPR_neg:
        return a.m ? (Value){.m = matrix_scale(l, a.m, true, NONE, e->span)}
                   : map(l, OP_neg, a, NULL, e->type, e->span);
    case EXPR_transpose: return a.m ? (Value){.m = matrix_transpose(l, a.m)} : a;
    case EXPR_add:
    case EXPR_sub: return add(l, e, a, b);
    case EXPR_mul: return multiply(l, e, a, b);
    case EXPR_emul:
        return a.m || b.m ? multiply(l, e, a, b) : map(l, OP_mul, a, &b, e->type, e->span);
    case EXPR_div:
    case EXPR_ediv: return divide(l, e, a, b);
    case EXPR_pow:
    case EXPR_epow: return power(l, e, a, b);
    case EXPR_call: return lower_call(l, e, a, b);
    default: BUG("an expression that was not checked");
    }
}

/* statements ----------------------------------------------------------------------------------- */

static void lower_stmt(Lower *l, const Stmt *s);

static void lower_for(Lower *l, const Stmt *s) {
    int n = bound_size(l->b, s->target);
    for (int i = 0; i < n && l->k->inst.count < INST_MAX; i++) {
        l->b->value[s->decl.at[0]->slot] = i;
        for (int j = 0; j < s->body.count; j++)
            lower_stmt(l, s->body.at[j]);
    }
}

static void lower_stmt(Lower *l, const Stmt *s) {
    if (l->k->inst.count >= INST_MAX)
        return;
    l->at = s->span;
    if (s->kind == STMT_update) {
        const Matrix *m = lower_expr(l, s->value).m;
        matrix_assign(l, m, s->span);
    } else if (s->kind == STMT_for) {
        lower_for(l, s);
    } else if (s->kind == STMT_let && !s->decl.at[0]->constant) {
        l->value[s->decl.at[0]->slot] = lower_expr(l, s->decl.at[0]->value);
    } else if (s->kind == STMT_let) {
        l->b->value[s->decl.at[0]->slot] = bound_number(l->b, s->decl.at[0]->value);
    } else if (s->kind == STMT_out) {
        const Decl *out = s->decl.at[0];
        emit_out(l->k, out->port, lower_expr(l, out->value).v, s->span);
    }
}

static int axis_of(Lower *l, const Decl *dim) {
    const Decl *state = l->v->state;
    return dim == state->dim[0]   ? AXIS_K
           : dim == state->dim[1] ? AXIS_V
                                  : kernel_axis(l->k, dim->name, bound_size(l->b, dim));
}

static void add_ports(Lower *l) {
    for (int i = 0; i < l->v->decl.count; i++) {
        const Decl *decl = l->v->decl.at[i];
        if (decl->kind != DECL_in && decl->kind != DECL_param && decl->kind != DECL_out)
            continue;
        Shape shape = {.rank = (int8_t)decl->ndims}; /* ports keep the order of memory */
        for (int j = 0; j < decl->ndims; j++)
            shape.axis[j] = (int8_t)axis_of(l, decl->dim[j]);
        bool out = decl->kind == DECL_out;
        Port port = {.name = decl->name,
                     .shape = shape,
                     .is_param = decl->kind == DECL_param,
                     .lo = out ? -INFINITY : l->b->lo[i],
                     .hi = out ? INFINITY : l->b->hi[i],
                     .elem = ELEM_f32,
                     .span = decl->span};
        if (out)
            VEC_PUSH(l->k->arena, &l->k->out, port);
        else
            VEC_PUSH(l->k->arena, &l->k->in, port);
    }
}

Kernel *spec_lower(Arena *arena, Interner *names, SpecFile *f, const char *variant,
                   const SpecBind *dims, Diag *d) {
    CHECK(f->checked);
    int before = d->errors;
    const Variant *v = spec_variant(f, variant, d);
    Bound *b = v ? spec_bind(arena, v, dims, d) : NULL;
    if (!b)
        return NULL;
    Lower *l = NEW(arena, Lower);
    *l = (Lower){.arena = arena, .v = v, .b = b, .d = d, .k = kernel_new(arena, names, v->name)};
    l->value = NEW_ARRAY(arena, Value, v->decl.count);
    l->k->source = f->source;
    l->k->state_name = v->state->name;
    for (int i = 0; i < 2; i++)
        l->k->axis.at[AXIS_K + i] =
            (Axis){intern_z(names, v->state->dim[i]->name), bound_size(b, v->state->dim[i])};
    add_ports(l);
    for (int i = 0; i < v->stmt.count; i++)
        lower_stmt(l, v->stmt.at[i]);
    if (l->k->inst.count >= INST_MAX)
        diag_error(d, v->name_span, "this variant is too large: more than %d operations a token",
                   INST_MAX);
    return d->errors > before ? NULL : l->k;
}
