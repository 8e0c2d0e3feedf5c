/* The gradient of what a spec means: reverse mode through the token recurrence, in fp64, straight from
 * the syntax tree. Like reference.c it knows nothing of lowering, chunks or passes, and is the yardstick
 * of all gradients.
 *
 * One token at a time is put on a tape (tape.h); tokens go backwards, each from the state and the
 * memories at its start. Those are kept at the start of every segment of about sqrt(T) tokens and made
 * again within one. Square matrices are never formed: `apply` puts M X on the tape for a tree M. So the
 * products that a kernel has for the state are on the tape as such, and can be rounded as a kernel's are. */
#include "frontend/tape.h"

#include <math.h>
#include <string.h>

/* Of one prev or cumsum, in order of evaluation, which is the same at every token. */
typedef struct Remembered {
    size_t n;
    double *x, *g;    /* what it holds now; the gradient of what it holds at the token's end */
    int first, last;  /* nodes: what it held at the token's start, and at its end */
} Remembered;

typedef struct Grad {
    Arena *arena;
    const Variant *v;
    Bound *b;
    const ReferenceGrad *args;
    Tape tape;
    int64_t t;
    int *node;       /* by slot, of this token: lets and ports; -1 = none yet */
    int *out;        /* by output */
    int first, state;/* nodes: the state at the token's start, and as it stands */
    double *S, *dS;  /* at the token's start; the gradient of it at the token's end */
    size_t nstate;
    VEC(Remembered) memory;
    int met;         /* so many of them in this token */
    uint32_t given_back; /* so many numbers, of this token's, have an offset */
} Grad;

static int vector(Grad *r, const Expr *e);

/* matrices ------------------------------------------------------------------------------------- */

static int scaled(Grad *r, ExprKind op, int x, int by) {
    return tape_operator(&r->tape, op == EXPR_ediv ? EXPR_div : op == EXPR_emul ? EXPR_mul : op, x, by);
}

double reference_offset(uint64_t key, uint64_t index) {
    uint64_t x = (key + 1) * 0x9e3779b97f4a7c15 + index * 0xd1342543de82ef95;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    return (double)((x ^ x >> 32) >> 11) * 0x1p-52 - 1;
}

/* A node like x of factors 1 + by h, whose offsets are those from `index` on. */
static int factors(Grad *r, int x, double by, uint64_t index) {
    Node like = *tape_at(&r->tape, x);
    int f = tape_leaf(&r->tape, NULL, like.rows, like.cols);
    for (size_t i = 0; i < tape_size(&r->tape, f); i++)
        tape_at(&r->tape, f)->x[i] = 1 + by * reference_offset(r->args->rounded.key, index + i);
    return f;
}

/* What a read sees of node x, if that is the state or what became of it in this token. */
static int as_read(Grad *r, int x) {
    double by = r->args->rounded.state;
    if (by == 0 || tape_size(&r->tape, x) != r->nstate)
        return x;
    return tape_operator(&r->tape, EXPR_mul, x, factors(r, x, by, (uint64_t)r->t * r->nstate));
}

/* Vector x as it goes into a product with the state. */
static int into_product(Grad *r, int x) {
    double by = r->args->rounded.back;
    if (by == 0)
        return x;
    uint64_t index = UINT64_C(1) << 63 | (uint64_t)r->t << 32 | r->given_back;
    r->given_back += (uint32_t)tape_size(&r->tape, x);
    return tape_back(&r->tape, x, factors(r, x, by, index));
}

/* e x, or e' x, for a tree e and a node x. */
static int apply(Grad *r, const Expr *e, bool transposed, int x) {
    Tape *t = &r->tape;
    const Expr *a = e->nargs > 0 ? e->arg[0] : NULL, *b = e->nargs > 1 ? e->arg[1] : NULL;
    switch (e->kind) {
    case EXPR_name:
        if (!e->decl)
            return x;
        if (!expr_is_state(e))
            return apply(r, e->decl->value, transposed, x);
        return tape_product(t, transposed, as_read(r, r->state), into_product(r, x));
    case EXPR_neg: return tape_operator(t, EXPR_neg, apply(r, a, transposed, x), -1);
    case EXPR_transpose: return apply(r, a, !transposed, x);
    case EXPR_add: case EXPR_sub: {
        int first = apply(r, a, transposed, x);
        return tape_operator(t, e->kind, first, apply(r, b, transposed, x));
    }
    case EXPR_mul: case EXPR_emul:
        if (type_is_matrix(a->type) && type_is_matrix(b->type))
            return apply(r, transposed ? b : a, transposed, apply(r, transposed ? a : b, transposed, x));
        if (type_is_matrix(a->type) || type_is_matrix(b->type)) {
            int y = apply(r, type_is_matrix(a->type) ? a : b, transposed, x);
            return scaled(r, EXPR_mul, y, vector(r, type_is_matrix(a->type) ? b : a));
        } else { /* p (q' x) */
            int p = into_product(r, vector(r, transposed ? b : a));
            int q = into_product(r, vector(r, transposed ? a : b));
            return tape_outer(t, p, tape_product(t, true, q, as_read(r, x)));
        }
    case EXPR_div: case EXPR_ediv:
        return scaled(r, EXPR_div, apply(r, a, transposed, x), vector(r, b));
    case EXPR_call: CHECK(e->fn == FN_diag); return tape_rows(t, vector(r, a), x);
    default: BUG("not a matrix");
    }
}

/* The value of e, shaped like the state or its transpose. */
static int dense(Grad *r, const Expr *e) {
    Tape *t = &r->tape;
    const Expr *a = e->nargs > 0 ? e->arg[0] : NULL, *b = e->nargs > 1 ? e->arg[1] : NULL;
    switch (e->kind) {
    case EXPR_name: return expr_is_state(e) ? r->state : dense(r, e->decl->value);
    case EXPR_neg: return tape_operator(t, EXPR_neg, dense(r, a), -1);
    case EXPR_transpose: return tape_transpose(t, dense(r, a));
    case EXPR_add: case EXPR_sub: {
        int first = dense(r, a);
        return tape_operator(t, e->kind, first, dense(r, b));
    }
    case EXPR_mul: case EXPR_emul:
        if (!type_is_matrix(a->type) && !type_is_matrix(b->type)) {
            int p = into_product(r, vector(r, a));
            return tape_outer(t, p, into_product(r, vector(r, b)));
        }
        if (!type_is_matrix(a->type) || !type_is_matrix(b->type)) {
            int y = dense(r, type_is_matrix(a->type) ? a : b);
            return scaled(r, EXPR_mul, y, vector(r, type_is_matrix(a->type) ? b : a));
        }
        if (b->type.kind == TYPE_matrix && b->type.dim[0] != b->type.dim[1])
            return apply(r, a, false, dense(r, b));
        return tape_transpose(t, apply(r, b, true, tape_transpose(t, dense(r, a))));
    case EXPR_div: case EXPR_ediv: return scaled(r, EXPR_div, dense(r, a), vector(r, b));
    default: BUG("not a matrix");
    }
}

/* scalars and vectors -------------------------------------------------------------------------- */

static int port(Grad *r, const Decl *d) {
    size_t n = bound_elements(r->b, d->type);
    const double *x = r->args->in[d->port] + (d->kind == DECL_param ? 0 : (size_t)r->t * n);
    if (r->node[d->slot] < 0)
        r->node[d->slot] = tape_leaf(&r->tape, x, n, 1);
    return r->node[d->slot];
}

static int along_time(Grad *r, const Expr *e) {
    int x = vector(r, e->arg[0]), at = r->met++;
    size_t n = tape_size(&r->tape, x);
    if (at == r->memory.count)
        VEC_PUSH(r->arena, &r->memory, ((Remembered){.n = n, .x = NEW_ARRAY(r->arena, double, n),
                                                     .g = NEW_ARRAY(r->arena, double, n)}));
    Remembered *m = &r->memory.at[at];
    m->first = tape_leaf(&r->tape, m->x, n, 1);
    m->last = e->fn == FN_prev ? x : tape_operator(&r->tape, EXPR_add, m->first, x);
    return e->fn == FN_prev ? m->first : m->last;
}

static int call(Grad *r, const Expr *e) {
    Tape *t = &r->tape;
    if (fn_info[e->fn].class == FNCLASS_TIME)
        return along_time(r, e);
    int x = vector(r, e->arg[0]), y = e->nargs > 1 ? vector(r, e->arg[1]) : -1;
    switch (e->fn) {
    case FN_sum: return tape_sum(t, x);
    case FN_dot: return tape_sum(t, tape_operator(t, EXPR_mul, x, y));
    case FN_l2norm: {
        int square = tape_sum(t, tape_operator(t, EXPR_mul, x, x));
        int more = tape_operator(t, EXPR_add, square, tape_number(t, 1e-6));
        return tape_operator(t, EXPR_div, x, tape_map(t, FN_sqrt, more, -1));
    }
    case FN_turn: return tape_turn(t, x);
    default: return tape_map(t, e->fn, x, y);
    }
}

static int product(Grad *r, const Expr *e) {
    const Expr *a = e->arg[0], *b = e->arg[1];
    if (type_is_matrix(a->type))
        return apply(r, a, false, vector(r, b));
    if (type_is_matrix(b->type)) /* x' M = (M' x)' */
        return apply(r, b, true, vector(r, a));
    int x = vector(r, a), y = vector(r, b);
    int z = tape_operator(&r->tape, EXPR_mul, x, y);
    return a->type.kind == TYPE_row && b->type.kind == TYPE_column ? tape_sum(&r->tape, z) : z;
}

static int element(Grad *r, const Expr *e) {
    const Expr *base = e->arg[0];
    size_t row = (size_t)bound_number(r->b, e->arg[1]);
    if (base->type.kind != TYPE_table)
        return tape_pick(&r->tape, vector(r, base), row, 1);
    size_t n = (size_t)bound_size(r->b, base->type.dim[1]);
    return tape_pick(&r->tape, port(r, base->decl), row * n, n);
}

static int vector(Grad *r, const Expr *e) {
    if (e->constant)
        return tape_number(&r->tape, bound_number(r->b, e));
    switch (e->kind) {
    case EXPR_name: return e->decl->kind == DECL_let ? r->node[e->decl->slot] : port(r, e->decl);
    case EXPR_index: return element(r, e);
    case EXPR_neg: return tape_operator(&r->tape, EXPR_neg, vector(r, e->arg[0]), -1);
    case EXPR_transpose: return vector(r, e->arg[0]);
    case EXPR_mul: return product(r, e);
    case EXPR_call: return call(r, e);
    default: {
        int x = vector(r, e->arg[0]);
        return tape_operator(&r->tape, e->kind, x, vector(r, e->arg[1]));
    }
    }
}

/* tokens --------------------------------------------------------------------------------------- */

static void statement(Grad *r, const Stmt *s) {
    if (s->kind == STMT_update) {
        r->state = dense(r, s->value);
    } else if (s->kind == STMT_let) {
        const Decl *let = s->decl.at[0];
        if (let->constant)
            r->b->value[let->slot] = bound_number(r->b, let->value);
        else if (!type_is_matrix(let->value->type)) /* matrices are evaluated where they are used */
            r->node[let->slot] = vector(r, let->value);
    } else if (s->kind == STMT_out) {
        r->out[s->decl.at[0]->port] = vector(r, s->decl.at[0]->value);
    } else if (s->kind == STMT_for) {
        int n = bound_size(r->b, s->target);
        for (int i = 0; i < n; i++) {
            r->b->value[s->decl.at[0]->slot] = i;
            for (int j = 0; j < s->body.count; j++)
                statement(r, s->body.at[j]);
        }
    }
}

/* Token t on the tape; the state and the memories move on. */
static void token(Grad *r, int64_t t) {
    tape_clear(&r->tape);
    r->t = t;
    r->met = 0;
    r->given_back = 0;
    for (int i = 0; i < r->v->decl.count; i++)
        r->node[i] = -1;
    r->first = r->state = tape_leaf(&r->tape, r->S, (size_t)bound_size(r->b, r->v->state->dim[0]),
                                    (size_t)bound_size(r->b, r->v->state->dim[1]));
    for (int i = 0; i < r->v->stmt.count; i++)
        statement(r, r->v->stmt.at[i]);
    memcpy(r->S, tape_at(&r->tape, r->state)->x, r->nstate * sizeof(double));
    for (int i = 0; i < r->memory.count; i++) {
        Remembered *m = &r->memory.at[i];
        memcpy(m->x, tape_at(&r->tape, m->last)->x, m->n * sizeof(double));
    }
}

static void add(double *y, const double *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* The token on the tape backwards: from the gradients at its end to those at its start. */
static void token_back(Grad *r) {
    Tape *t = &r->tape;
    add(tape_at(t, r->state)->g, r->dS, r->nstate);
    for (int i = 0; i < r->memory.count; i++)
        add(tape_at(t, r->memory.at[i].last)->g, r->memory.at[i].g, r->memory.at[i].n);
    for (int o = 0; o < r->v->nouts; o++) {
        size_t n = tape_size(t, r->out[o]);
        if (r->args->dout[o])
            add(tape_at(t, r->out[o])->g, r->args->dout[o] + (size_t)r->t * n, n);
    }
    tape_backward(t);
    memcpy(r->dS, tape_at(t, r->first)->g, r->nstate * sizeof(double));
    for (int i = 0; i < r->memory.count; i++) {
        Remembered *m = &r->memory.at[i];
        memcpy(m->g, tape_at(t, m->first)->g, m->n * sizeof(double));
    }
    for (int i = 0; i < r->v->decl.count; i++) {
        const Decl *d = r->v->decl.at[i];
        bool in = d->kind == DECL_in, param = d->kind == DECL_param;
        if (r->node[i] < 0 || !(in || param) || !r->args->din[d->port])
            continue;
        size_t n = tape_size(t, r->node[i]);
        add(r->args->din[d->port] + (in ? (size_t)r->t * n : 0), tape_at(t, r->node[i])->g, n);
    }
}

/* The state and the memories as one array. At the first token there are no memories yet: zero. */
static double *save(const Grad *r) {
    size_t n = r->nstate;
    for (int i = 0; i < r->memory.count; i++)
        n += r->memory.at[i].n;
    double *all = NEW_ARRAY(r->arena, double, n), *at = all + r->nstate;
    memcpy(all, r->S, r->nstate * sizeof *all);
    for (int i = 0; i < r->memory.count; at += r->memory.at[i++].n)
        memcpy(at, r->memory.at[i].x, r->memory.at[i].n * sizeof *at);
    return all;
}

static void load(Grad *r, int64_t t, const double *all) {
    const double *at = all + r->nstate;
    memcpy(r->S, all, r->nstate * sizeof *all);
    for (int i = 0; i < r->memory.count; i++) {
        Remembered *m = &r->memory.at[i];
        if (t == 0)
            memset(m->x, 0, m->n * sizeof *m->x);
        else
            memcpy(m->x, at, m->n * sizeof *at);
        at += m->n;
    }
}

static void backward(Grad *r, int64_t T) {
    int64_t length = (int64_t)ceil(sqrt((double)T)) + 1;
    double **segment = NEW_ARRAY(r->arena, double *, T / length + 1);
    double **within = NEW_ARRAY(r->arena, double *, length);
    for (int64_t t = 0; t < T; t++) {
        if (t % length == 0)
            segment[t / length] = save(r);
        token(r, t);
    }
    for (int64_t s = (T - 1) / length; s >= 0; s--) {
        int64_t lo = s * length, hi = lo + length < T ? lo + length : T;
        load(r, lo, segment[s]);
        for (int64_t t = lo; t < hi; t++) {
            within[t - lo] = save(r);
            token(r, t);
        }
        for (int64_t t = hi - 1; t >= lo; t--) {
            load(r, t, within[t - lo]);
            token(r, t);
            token_back(r);
        }
    }
}

bool reference_gradient(Arena *scratch, const SpecFile *f, const char *variant, const SpecBind *dims,
                        const ReferenceGrad *args, Diag *d) {
    CHECK(f->checked);
    const Variant *v = spec_variant(f, variant, d);
    Bound *b = v ? spec_bind(scratch, v, dims, d) : NULL;
    if (!b)
        return false;
    Grad r = {.arena = scratch, .v = v, .b = b, .args = args, .tape.arena = scratch};
    r.nstate = bound_elements(r.b, v->state->type);
    r.node = NEW_ARRAY(scratch, int, v->decl.count);
    r.out = NEW_ARRAY(scratch, int, v->nouts + 1);
    r.S = NEW_ARRAY(scratch, double, r.nstate);
    r.dS = NEW_ARRAY(scratch, double, r.nstate);
    if (args->state)
        memcpy(r.S, args->state, r.nstate * sizeof *r.S);
    if (args->dstate)
        memcpy(r.dS, args->dstate, r.nstate * sizeof *r.dS);
    for (int i = 0; i < v->decl.count; i++) {
        const Decl *p = v->decl.at[i];
        if ((p->kind != DECL_in && p->kind != DECL_param) || !args->din[p->port])
            continue;
        size_t rows = p->kind == DECL_param ? 1 : (size_t)args->T;
        memset(args->din[p->port], 0, rows * bound_elements(r.b, p->type) * sizeof(double));
    }
    if (args->T > 0)
        backward(&r, args->T);
    if (args->dstate)
        memcpy(args->dstate, r.dS, r.nstate * sizeof *r.dS);
    return true;
}
