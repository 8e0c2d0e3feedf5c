/* Numbers for a variant: sizes of dims, consts, ranges, and all that depends on them: indices
 * within bounds, loops short enough to unroll. */
#include "frontend/frontend.h"

#include <math.h>
#include <string.h>

static double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

static double sigmoid(double x) {
    double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

double fn_apply(Function fn, double x, double y) {
    switch (fn) {
    case FN_exp: return exp(x);
    case FN_log: return log(x);
    case FN_sqrt: return sqrt(x);
    case FN_rsqrt: return 1 / sqrt(x);
    case FN_sigmoid: return sigmoid(x);
    case FN_softplus: return softplus(x);
    case FN_tanh: return tanh(x);
    case FN_silu: return x * sigmoid(x);
    case FN_relu: return isnan(x) || x > 0 ? x : 0;
    case FN_abs: return fabs(x);
    case FN_cos: return cos(x);
    case FN_sin: return sin(x);
    case FN_min: return isnan(x) || x < y ? x : y;
    case FN_max: return isnan(x) || x > y ? x : y;
    default: BUG("%s is not elementwise", fn_info[fn].name);
    }
}

int bound_size(const Bound *b, const Decl *dim) { return (int)b->value[dim->slot]; }

size_t bound_elements(const Bound *b, Type t) {
    size_t n = 1;
    for (int i = 0; i < 2 && t.dim[i]; i++)
        n *= (size_t)bound_size(b, t.dim[i]);
    return n;
}

double bound_number(const Bound *b, const Expr *e) {
    double x = e->nargs > 0 ? bound_number(b, e->arg[0]) : 0;
    double y = e->nargs > 1 ? bound_number(b, e->arg[1]) : 0;
    switch (e->kind) {
    case EXPR_number: return e->number;
    case EXPR_name: return b->value[e->decl->slot];
    case EXPR_neg: return -x;
    case EXPR_transpose: return x;
    case EXPR_add: return x + y;
    case EXPR_sub: return x - y;
    case EXPR_mul:
    case EXPR_emul: return x * y;
    case EXPR_div:
    case EXPR_ediv: return x / y;
    case EXPR_pow:
    case EXPR_epow: return pow(x, y);
    case EXPR_call: return fn_apply(e->fn, x, y);
    case EXPR_index:
    case EXPR_poison: break;
    }
    BUG("not a constant expression");
}

typedef struct Binder {
    Arena *arena;
    bool broken;        /* the variant has errors: look at dims, consts and ranges only */
    const Variant *v;
    const SpecBind *dims;
    Bound *b;
    Diag *d;
    int64_t unrolled;   /* loop iterations so far */
} Binder;

/* The caller's size of a dim, or NULL. */
static const SpecDim *override_of(const Binder *w, const Decl *dim) {
    for (int i = 0; w->dims && i < w->dims->count; i++)
        if (!strcmp(w->dims->dim[i].name, dim->name))
            return &w->dims->dim[i];
    return NULL;
}

static void check_overrides(Binder *w) {
    VEC(const char *) known = {0};
    for (int i = 0; i < w->v->decl.count; i++)
        if (w->v->decl.at[i]->kind == DECL_dim)
            VEC_PUSH(w->arena, &known, w->v->decl.at[i]->name);
    for (int i = 0; w->dims && i < w->dims->count; i++) {
        const char *name = w->dims->dim[i].name;
        bool found = false;
        for (int j = 0; j < known.count; j++)
            found |= !strcmp(known.at[j], name);
        if (found)
            continue;
        diag_error(w->d, w->v->name_span, "variant '%s' has no dim '%s'", w->v->name, name);
        const char *close = diag_closest(name, known.at, known.count);
        if (close)
            diag_help(w->d, "did you mean '%s'?", close);
    }
}

static void bind_dim(Binder *w, const Decl *dim) {
    if (dim->type.kind == TYPE_poison)
        return;
    const SpecDim *given = override_of(w, dim);
    double size = given ? (double)given->size : bound_number(w->b, dim->value);
    const Decl *state = w->v->state;
    bool axis = !state || dim == state->dim[0] || dim == state->dim[1];
    int most = axis ? DIM_MAX : EXPAND_MAX;
    if (!(size >= 1 && size <= most) || size != floor(size)) {
        diag_error(w->d, given ? dim->name_span : dim->value->span,
                   "dim %s = %g is not a whole number from 1 to %d", dim->name, size, most);
        if (given)
            diag_help(w->d, "the caller chose this size");
        if (!axis && size > most)
            diag_help(w->d, "%s is not an axis of the state: its vectors are expanded to scalars and "
                            "its loops unrolled", dim->name);
        size = 1;
    }
    w->b->value[dim->slot] = size;
}

static void bind_const(Binder *w, const Decl *decl) {
    if (decl->type.kind == TYPE_poison)
        return;
    double x = bound_number(w->b, decl->value);
    if (!isfinite(x))
        diag_error(w->d, decl->value->span, "const %s is not a finite number", decl->name);
    w->b->value[decl->slot] = x;
}

static void bind_ranges(Binder *w, const Decl *decl) {
    double *lo = &w->b->lo[decl->slot], *hi = &w->b->hi[decl->slot];
    *lo = -INFINITY;
    *hi = INFINITY;
    for (int i = 0; i < decl->range.count; i++) {
        const RangeClause *r = &decl->range.at[i];
        if ((r->lo && r->lo->type.kind == TYPE_poison) || (r->hi && r->hi->type.kind == TYPE_poison))
            continue;
        double a = r->lo ? bound_number(w->b, r->lo) : -INFINITY;
        double b = r->hi ? bound_number(w->b, r->hi) : INFINITY;
        if (isnan(a) || isnan(b)) {
            diag_error(w->d, r->span, "a bound of this range is not a number");
        } else if (a > b) {
            diag_error(w->d, r->span, "no value lies in [%g, %g]", a, b);
            diag_help(w->d, "the lower bound comes first: in [%g, %g]", b, a);
        } else if (a > *hi || b < *lo) {
            diag_error(w->d, r->span, "this range contradicts the one before");
            diag_note(w->d, decl->range.at[0].span, "'%s' is declared to lie in [%g, %g] here",
                      decl->name, *lo, *hi);
        } else {
            *lo = fmax(*lo, a);
            *hi = fmin(*hi, b);
        }
    }
}

static void check_turn(Binder *w, const Expr *e) {
    const Decl *dim = e->arg[0]->type.dim[0];
    int size = bound_size(w->b, dim);
    if (size % 2 == 0)
        return;
    diag_error(w->d, e->span, "turn takes an even number of elements, and %s = %d", dim->name, size);
    diag_help(w->d, "it turns neighbours, which come in pairs: x[0] and x[1], x[2] and x[3], ...");
}

/* What depends on sizes: turns, and indices under the current values of the loop variables. */
static void check_sizes(Binder *w, const Expr *e) {
    for (int i = 0; i < e->nargs; i++)
        check_sizes(w, e->arg[i]);
    if (e->kind == EXPR_call && e->fn == FN_turn)
        check_turn(w, e);
    if (e->kind != EXPR_index)
        return;
    const Decl *dim = e->arg[0]->type.dim[0];
    double at = bound_number(w->b, e->arg[1]);
    int size = bound_size(w->b, dim);
    if (at >= 0 && at < size && at == floor(at))
        return;
    diag_error(w->d, e->arg[1]->span, "index %g is not a whole number from 0 to %d", at, size - 1);
    diag_note(w->d, dim->span, "%s = %d", dim->name, size);
}

static bool needs_sizes(const Expr *e) {
    for (int i = 0; i < e->nargs; i++)
        if (needs_sizes(e->arg[i]))
            return true;
    return e->kind == EXPR_index || (e->kind == EXPR_call && e->fn == FN_turn);
}

static void bind_stmt(Binder *w, const Stmt *s);

static void bind_for(Binder *w, const Stmt *s) {
    int size = bound_size(w->b, s->target), errors = w->d->errors;
    w->unrolled += size;
    if (w->unrolled > UNROLL_MAX) {
        diag_error(w->d, s->name_span, "the loops of this variant run more than %d times a token",
                   UNROLL_MAX);
        return;
    }
    for (int i = 0; i < size && w->d->errors == errors; i++) {
        w->b->value[s->decl.at[0]->slot] = i;
        for (int j = 0; j < s->body.count; j++)
            bind_stmt(w, s->body.at[j]);
    }
}

static void bind_stmt(Binder *w, const Stmt *s) {
    bool declares = s->kind == STMT_dim || s->kind == STMT_const || s->kind == STMT_in ||
                    s->kind == STMT_param;
    if (w->broken && !declares)
        return;
    if (s->kind == STMT_for)
        bind_for(w, s);
    if (s->value && needs_sizes(s->value))
        check_sizes(w, s->value);
    for (int i = 0; i < s->decl.count && s->kind != STMT_for; i++) {
        const Decl *decl = s->decl.at[i];
        switch (decl->kind) {
        case DECL_dim: bind_dim(w, decl); break;
        case DECL_const: bind_const(w, decl); break;
        case DECL_in:
        case DECL_param: bind_ranges(w, decl); break;
        case DECL_let:
        case DECL_out:
            if (needs_sizes(decl->value))
                check_sizes(w, decl->value);
            if (decl->constant)
                w->b->value[decl->slot] = bound_number(w->b, decl->value);
            break;
        case DECL_state:
        case DECL_loop: break;
        }
    }
}

static Bound *bind_all(Binder *w) {
    int before = w->d->errors, n = w->v->decl.count;
    Bound *b = NEW(w->arena, Bound);
    b->variant = w->v;
    b->value = NEW_ARRAY(w->arena, double, n);
    b->lo = NEW_ARRAY(w->arena, double, n);
    b->hi = NEW_ARRAY(w->arena, double, n);
    w->b = b;
    check_overrides(w);
    for (int i = 0; i < w->v->stmt.count; i++)
        bind_stmt(w, w->v->stmt.at[i]);
    return w->d->errors > before ? NULL : b;
}

Bound *spec_bind(Arena *arena, const Variant *v, const SpecBind *dims, Diag *d) {
    return bind_all(&(Binder){.arena = arena, .v = v, .dims = dims, .d = d});
}

void spec_bind_declarations(Arena *arena, const Variant *v, Diag *d) {
    bind_all(&(Binder){.arena = arena, .v = v, .d = d, .broken = true});
}
