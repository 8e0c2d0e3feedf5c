/* The meaning of a spec: the syntax tree evaluated token by token in fp64.
 *
 * Nothing here knows of lowering, chunks or rank-1 updates; it is the yardstick of all of them. A
 * matrix other than the state is never formed: `add_product` adds c M X to Y for a tree M and dense
 * X by walking M, so a token costs O(K V). Dense matrices are row-major, inner loops contiguous.
 *
 * Values live on a stack of blocks that is emptied before every statement; lets, the state and what
 * prev and cumsum remember have storage of their own.
 */
#include "frontend/frontend.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 1 << 15 }; /* doubles */

typedef struct Block {
    double *at;
    size_t used, size;
} Block;

typedef struct Memory { double *at; } Memory;

typedef struct Run {
    Arena *arena;
    const Variant *v;
    Bound *b;
    const EvalArgs *args;
    int64_t t;
    double **let;           /* by slot */
    double *state, *spare;  /* [K, V] each */
    VEC(Block) block;
    int top;                /* block in use */
    VEC(Memory) memory;     /* of prev and cumsum in order of evaluation */
    int remembered;         /* so many have been met in this token */
} Run;

static double *push(Run *r, size_t n) {
    while (r->top < r->block.count && r->block.at[r->top].size - r->block.at[r->top].used < n)
        r->top++;
    if (r->top == r->block.count) {
        size_t size = n > BLOCK ? n : BLOCK;
        VEC_PUSH(r->arena, &r->block, ((Block){NEW_ARRAY(r->arena, double, size), 0, size}));
    }
    Block *b = &r->block.at[r->top];
    double *p = b->at + b->used;
    b->used += n;
    return p;
}

static double *push_zero(Run *r, size_t n) {
    double *p = push(r, n);
    memset(p, 0, n * sizeof *p);
    return p;
}

static void empty_stack(Run *r) {
    for (int i = 0; i <= r->top && i < r->block.count; i++)
        r->block.at[i].used = 0;
    r->top = 0;
}

/* Shaped like the state or its transpose. */
static bool is_rectangular(const Expr *e) {
    return e->type.kind == TYPE_matrix && e->type.dim[0] != e->type.dim[1];
}

/* matrices ------------------------------------------------------------------------------------- */

static const double *vector(Run *r, const Expr *e);
static double scalar(Run *r, const Expr *e) { return *vector(r, e); }

typedef struct Dense { const double *at; size_t rows, cols; } Dense;

static void axpy(double c, const double *x, size_t n, double *y) {
    for (size_t i = 0; i < n; i++)
        y[i] += c * x[i];
}

/* y += c S x, or c S' x. */
static void add_state_product(Run *r, bool transposed, double c, Dense x, double *y) {
    size_t K = (size_t)bound_size(r->b, r->v->state->dim[0]);
    size_t V = (size_t)bound_size(r->b, r->v->state->dim[1]);
    for (size_t i = 0; i < K; i++) {
        const double *row = r->state + i * V;
        if (transposed && x.cols == 1) {
            axpy(c * x.at[i], row, V, y);
            continue;
        }
        for (size_t j = 0; j < V; j++) {
            if (transposed)
                axpy(c * row[j], x.at + i * x.cols, x.cols, y + j * x.cols);
            else
                axpy(c * row[j], x.at + j * x.cols, x.cols, y + i * x.cols);
        }
    }
}

/* y += c p (q'x) */
static void add_outer_product(Run *r, const double *p, size_t np, const double *q, double c, Dense x,
                              double *y) {
    double *z = push_zero(r, x.cols);
    for (size_t i = 0; i < x.rows; i++)
        axpy(q[i], x.at + i * x.cols, x.cols, z);
    for (size_t i = 0; i < np; i++)
        axpy(c * p[i], z, x.cols, y + i * x.cols);
}

/* The number of rows of e, or of e', when it is multiplied with something of `inner` rows. */
static size_t rows_of(const Run *r, const Expr *e, bool transposed, size_t inner) {
    return e->type.kind == TYPE_identity ? inner : (size_t)bound_size(r->b, e->type.dim[transposed]);
}

static void add_product(Run *r, const Expr *e, bool transposed, double c, Dense x, double *y);

static void add_matrix_product(Run *r, const Expr *e, bool transposed, double c, Dense x,
                               double *y) {
    const Expr *a = e->arg[0], *b = e->arg[1];
    if (!type_is_matrix(a->type) && !type_is_matrix(b->type) && a->type.kind == TYPE_column) { /* a b' */
        const double *p = vector(r, transposed ? b : a), *q = vector(r, transposed ? a : b);
        add_outer_product(r, p, bound_elements(r->b, (transposed ? b : a)->type), q, c, x, y);
    } else if (!type_is_matrix(a->type) || !type_is_matrix(b->type)) {
        double s = scalar(r, type_is_matrix(a->type) ? b : a);
        add_product(r, type_is_matrix(a->type) ? a : b, transposed, c * s, x, y);
    } else {
        const Expr *inner = transposed ? a : b, *outer = transposed ? b : a;
        size_t rows = rows_of(r, inner, transposed, x.rows);
        double *between = push_zero(r, rows * x.cols);
        add_product(r, inner, transposed, 1, x, between);
        add_product(r, outer, transposed, c, (Dense){between, rows, x.cols}, y);
    }
}

/* y += c e x, or c e' x. */
static void add_product(Run *r, const Expr *e, bool transposed, double c, Dense x, double *y) {
    switch (e->kind) {
    case EXPR_name:
        if (!e->decl)
            axpy(c, x.at, x.rows * x.cols, y);
        else if (expr_is_state(e))
            add_state_product(r, transposed, c, x, y);
        else
            add_product(r, e->decl->value, transposed, c, x, y);
        return;
    case EXPR_neg: add_product(r, e->arg[0], transposed, -c, x, y); return;
    case EXPR_transpose: add_product(r, e->arg[0], !transposed, c, x, y); return;
    case EXPR_add:
    case EXPR_sub:
        add_product(r, e->arg[0], transposed, c, x, y);
        add_product(r, e->arg[1], transposed, e->kind == EXPR_sub ? -c : c, x, y);
        return;
    case EXPR_mul:
    case EXPR_emul: add_matrix_product(r, e, transposed, c, x, y); return;
    case EXPR_div:
    case EXPR_ediv:
        add_product(r, e->arg[0], transposed, c / scalar(r, e->arg[1]), x, y);
        return;
    case EXPR_call: {
        CHECK(e->fn == FN_diag);
        const double *d = vector(r, e->arg[0]);
        for (size_t i = 0; i < x.rows; i++)
            axpy(c * d[i], x.at + i * x.cols, x.cols, y + i * x.cols);
        return;
    }
    default: BUG("not a matrix");
    }
}

static void add_dense(Run *r, const Expr *e, bool transposed, double c, double *y);

/* The dense value of e or e'; the state itself is not copied. */
static Dense dense(Run *r, const Expr *e, bool transposed) {
    size_t rows = (size_t)bound_size(r->b, e->type.dim[transposed]);
    size_t cols = (size_t)bound_size(r->b, e->type.dim[!transposed]);
    if (expr_is_state(e) && !transposed)
        return (Dense){r->state, rows, cols};
    double *y = push_zero(r, rows * cols);
    add_dense(r, e, transposed, 1, y);
    return (Dense){y, rows, cols};
}

/* y += c x' for x of `rows` x `cols` */
static void add_transposed(double c, const double *x, size_t rows, size_t cols, double *y) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            y[j * rows + i] += c * x[i * cols + j];
}

/* A product shaped like the state: one operand is rectangular too, or both are vectors. */
static void add_dense_product(Run *r, const Expr *e, bool transposed, double c, double *y) {
    const Expr *a = e->arg[0], *b = e->arg[1];
    if (!type_is_matrix(a->type) && !type_is_matrix(b->type)) {
        const double *p = vector(r, transposed ? b : a), *q = vector(r, transposed ? a : b);
        size_t rows = bound_elements(r->b, (transposed ? b : a)->type);
        size_t cols = bound_elements(r->b, (transposed ? a : b)->type);
        for (size_t i = 0; i < rows; i++)
            axpy(c * p[i], q, cols, y + i * cols);
    } else if (!type_is_matrix(a->type) || !type_is_matrix(b->type)) {
        double s = scalar(r, type_is_matrix(a->type) ? b : a);
        add_dense(r, type_is_matrix(a->type) ? a : b, transposed, c * s, y);
    } else if (is_rectangular(transposed ? a : b)) { /* square * X, or square' * X' */
        const Expr *square = transposed ? b : a;
        add_product(r, square, transposed, c, dense(r, transposed ? a : b, transposed), y);
    } else { /* X * square = (square' * X')' */
        const Expr *square = transposed ? a : b;
        Dense x = dense(r, transposed ? b : a, !transposed);
        double *z = push_zero(r, x.rows * x.cols);
        add_product(r, square, !transposed, c, x, z);
        add_transposed(1, z, x.rows, x.cols, y);
    }
}

/* y += c e, or c e', for e shaped like the state or its transpose. */
static void add_dense(Run *r, const Expr *e, bool transposed, double c, double *y) {
    switch (e->kind) {
    case EXPR_name:
        if (!expr_is_state(e))
            add_dense(r, e->decl->value, transposed, c, y);
        else if (transposed)
            add_transposed(c, r->state, (size_t)bound_size(r->b, e->type.dim[0]),
                           (size_t)bound_size(r->b, e->type.dim[1]), y);
        else
            axpy(c, r->state, bound_elements(r->b, e->type), y);
        return;
    case EXPR_neg: add_dense(r, e->arg[0], transposed, -c, y); return;
    case EXPR_transpose: add_dense(r, e->arg[0], !transposed, c, y); return;
    case EXPR_add:
    case EXPR_sub:
        add_dense(r, e->arg[0], transposed, c, y);
        add_dense(r, e->arg[1], transposed, e->kind == EXPR_sub ? -c : c, y);
        return;
    case EXPR_mul:
    case EXPR_emul: add_dense_product(r, e, transposed, c, y); return;
    case EXPR_div:
    case EXPR_ediv: add_dense(r, e->arg[0], transposed, c / scalar(r, e->arg[1]), y); return;
    default: BUG("not a matrix");
    }
}

/* scalars and vectors -------------------------------------------------------------------------- */

static const double *port(const Run *r, const Decl *decl) {
    const double *p = r->args->in[decl->port];
    return decl->kind == DECL_param ? p : p + (size_t)r->t * bound_elements(r->b, decl->type);
}

static const double *name(Run *r, const Expr *e) {
    return e->decl->kind == DECL_let ? r->let[e->decl->slot] : port(r, e->decl);
}

static double operate(ExprKind kind, double x, double y) {
    switch (kind) {
    case EXPR_add: return x + y;
    case EXPR_sub: return x - y;
    case EXPR_mul:
    case EXPR_emul: return x * y;
    case EXPR_div:
    case EXPR_ediv: return x / y;
    case EXPR_pow:
    case EXPR_epow: return pow(x, y);
    default: BUG("not an operator");
    }
}

/* Elementwise, scalars broadcast: an operator, or a function of two arguments. */
static const double *binary(Run *r, const Expr *e) {
    const double *x = vector(r, e->arg[0]), *y = vector(r, e->arg[1]);
    size_t n = bound_elements(r->b, e->type);
    size_t dx = e->arg[0]->type.kind != TYPE_scalar, dy = e->arg[1]->type.kind != TYPE_scalar;
    double *out = push(r, n);
    for (size_t i = 0; i < n; i++)
        out[i] = e->kind == EXPR_call ? fn_apply(e->fn, x[i * dx], y[i * dy])
                                      : operate(e->kind, x[i * dx], y[i * dy]);
    return out;
}

static double dot(const double *x, const double *y, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += x[i] * y[i];
    return s;
}

static double *one(Run *r, double x) {
    double *p = push(r, 1);
    *p = x;
    return p;
}

static const double *product(Run *r, const Expr *e) {
    const Expr *a = e->arg[0], *b = e->arg[1];
    if (type_is_matrix(a->type) || type_is_matrix(b->type)) { /* M x, or x' M = (M' x)' */
        bool left = type_is_matrix(b->type);
        const Expr *v = left ? a : b;
        double *y = push_zero(r, bound_elements(r->b, e->type));
        add_product(r, left ? b : a, left, 1, (Dense){vector(r, v), bound_elements(r->b, v->type), 1}, y);
        return y;
    }
    if (a->type.kind == TYPE_row && b->type.kind == TYPE_column) {
        const double *x = vector(r, a), *y = vector(r, b);
        return one(r, dot(x, y, bound_elements(r->b, a->type)));
    }
    return binary(r, e);
}

/* prev and cumsum: what they remember is found by the order of evaluation, which is the same at
 * every token. */
static const double *along_time(Run *r, const Expr *e) {
    const double *x = vector(r, e->arg[0]);
    size_t n = bound_elements(r->b, e->type);
    int at = r->remembered++;
    if (at == r->memory.count)
        VEC_PUSH(r->arena, &r->memory, ((Memory){NEW_ARRAY(r->arena, double, n)}));
    double *memory = r->memory.at[at].at, *out = push(r, n);
    for (size_t i = 0; i < n; i++) {
        out[i] = e->fn == FN_prev ? memory[i] : memory[i] + x[i];
        memory[i] = e->fn == FN_prev ? x[i] : out[i];
    }
    return out;
}

static const double *call(Run *r, const Expr *e) {
    if (fn_info[e->fn].class == FNCLASS_TIME)
        return along_time(r, e);
    if (fn_info[e->fn].class == FNCLASS_MAP && e->nargs == 2)
        return binary(r, e);
    const double *x = vector(r, e->arg[0]);
    size_t n = bound_elements(r->b, e->arg[0]->type);
    if (e->fn == FN_sum || e->fn == FN_dot) {
        double s = 0;
        const double *y = e->fn == FN_dot ? vector(r, e->arg[1]) : NULL;
        for (size_t i = 0; i < n; i++)
            s += y ? x[i] * y[i] : x[i];
        return one(r, s);
    }
    double *out = push(r, n);
    for (size_t i = 0; e->fn == FN_turn && i < n; i++)
        out[i] = i % 2 ? x[i - 1] : -x[i + 1];
    if (e->fn == FN_turn)
        return out;
    double norm = e->fn == FN_l2norm ? sqrt(dot(x, x, n) + 1e-6) : 1;
    for (size_t i = 0; i < n; i++)
        out[i] = e->fn == FN_l2norm ? x[i] / norm : fn_apply(e->fn, x[i], 0);
    return out;
}

static const double *element(Run *r, const Expr *e) {
    const Expr *base = e->arg[0];
    size_t row = (size_t)bound_number(r->b, e->arg[1]);
    if (base->type.kind == TYPE_table)
        return port(r, base->decl) + row * (size_t)bound_size(r->b, base->type.dim[1]);
    return vector(r, base) + row;
}

static const double *negated(Run *r, const Expr *e) {
    const double *x = vector(r, e->arg[0]);
    size_t n = bound_elements(r->b, e->type);
    double *out = push(r, n);
    for (size_t i = 0; i < n; i++)
        out[i] = -x[i];
    return out;
}

static const double *vector(Run *r, const Expr *e) {
    if (e->constant)
        return one(r, bound_number(r->b, e));
    switch (e->kind) {
    case EXPR_name: return name(r, e);
    case EXPR_index: return element(r, e);
    case EXPR_neg: return negated(r, e);
    case EXPR_transpose: return vector(r, e->arg[0]);
    case EXPR_mul: return product(r, e);
    case EXPR_call: return call(r, e);
    default: return binary(r, e);
    }
}

/* statements ----------------------------------------------------------------------------------- */

static void update(Run *r, const Stmt *s) {
    size_t n = bound_elements(r->b, r->v->state->type);
    memset(r->spare, 0, n * sizeof *r->spare);
    add_dense(r, s->value, false, 1, r->spare);
    double *next = r->spare;
    r->spare = r->state;
    r->state = next;
}

static void define(Run *r, const Decl *let) {
    if (let->constant) {
        r->b->value[let->slot] = bound_number(r->b, let->value);
    } else if (!type_is_matrix(let->value->type)) { /* matrices are evaluated where they are used */
        size_t n = bound_elements(r->b, let->type);
        if (!r->let[let->slot])
            r->let[let->slot] = NEW_ARRAY(r->arena, double, n);
        memcpy(r->let[let->slot], vector(r, let->value), n * sizeof(double));
    }
}

static void statement(Run *r, const Stmt *s) {
    empty_stack(r);
    if (s->kind == STMT_update) {
        update(r, s);
    } else if (s->kind == STMT_let) {
        define(r, s->decl.at[0]);
    } else if (s->kind == STMT_out) {
        const Decl *out = s->decl.at[0];
        size_t n = bound_elements(r->b, out->type);
        memcpy(r->args->out[out->port] + (size_t)r->t * n, vector(r, out->value),
               n * sizeof(double));
    } else if (s->kind == STMT_for) {
        int n = bound_size(r->b, s->target);
        for (int i = 0; i < n; i++) {
            r->b->value[s->decl.at[0]->slot] = i;
            for (int j = 0; j < s->body.count; j++)
                statement(r, s->body.at[j]);
        }
    }
}

bool reference_run(Arena *scratch, const SpecFile *f, const char *variant, const SpecBind *dims,
                   const EvalArgs *args, Diag *d) {
    CHECK(f->checked);
    const Variant *v = spec_variant(f, variant, d);
    Bound *b = v ? spec_bind(scratch, v, dims, d) : NULL;
    if (!b)
        return false;
    Run r = {.arena = scratch, .v = v, .b = b, .args = args};
    size_t n = bound_elements(r.b, v->state->type);
    r.let = NEW_ARRAY(scratch, double *, v->decl.count);
    r.state = NEW_ARRAY(scratch, double, n);
    r.spare = NEW_ARRAY(scratch, double, n);
    memcpy(r.state, args->state, n * sizeof *r.state);
    for (r.t = 0; r.t < args->T; r.t++) {
        r.remembered = 0;
        for (int i = 0; i < v->stmt.count; i++)
            statement(&r, v->stmt.at[i]);
    }
    memcpy(args->state, r.state, n * sizeof *r.state);
    return true;
}
