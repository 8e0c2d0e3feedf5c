/* Matrices, symbolically: real algebra on expressions linear in the state.
 *
 * A square matrix is a product of factors D + sum c p r'. A matrix shaped like the state is a sum
 *
 *     sum_t L_t S R_t  +  sum_i c_i p_i r_i'
 *
 * of terms with such products on both sides and outer products free of S. Products distribute over
 * sums; the order of factors is kept, since it decides which state a read sees. `S = e` becomes:
 * common innermost factors one after another, each as
 *
 *     (D + sum c p r') S:   y = S' r ...   S = D S   ...  S = S + p (c y)'
 *
 * and what is left of a sum of terms as one step with all its reads taken before. Reads inside p
 * and r have been emitted when the expression was built: they see the state before the statement.
 */
#include "frontend/lower.h"

enum { PARTS_MAX = 1000 };

/* small pieces --------------------------------------------------------------------------------- */

/* a * b where NONE is 1 */
static int times(Lower *l, int a, int b, Span span) {
    return a == NONE ? b : b == NONE ? a : lower2(l, OP_mul, a, b, span);
}

/* A diagonal times a diagonal or a vector; never both absent as vectors. */
static int diag_times(Lower *l, int a, int b, Span span) {
    if (a == DIAG_zero || b == DIAG_zero)
        return DIAG_zero;
    return a == DIAG_one ? b : b == DIAG_one ? a : lower2(l, OP_mul, a, b, span);
}

static int diag_add(Lower *l, int a, int b, Span span) {
    if (a == DIAG_zero || b == DIAG_zero)
        return a == DIAG_zero ? b : a;
    if (a == DIAG_one && b == DIAG_one)
        return lower_const(l, 2);
    if (a == DIAG_one || b == DIAG_one)
        return lower2(l, OP_add, lower_const(l, 1), a == DIAG_one ? b : a, span);
    return lower2(l, OP_add, a, b, span);
}

static int dot(Lower *l, int a, int b, Span span) {
    return lower_sum(l, lower2(l, OP_mul, a, b, span), span);
}

/* Adds +-c x to a sum; NONE is the empty sum. */
static int accumulate(Lower *l, int sum, bool minus, int x, Span span) {
    if (sum == NONE)
        return minus ? lower1(l, OP_neg, x, span) : x;
    return lower2(l, minus ? OP_sub : OP_add, sum, x, span);
}

static bool is_atomic(const Lower *l, int v) {
    for (int i = 0; i < l->atomic.count; i++)
        if (l->atomic.at[i] == v)
            return true;
    return false;
}

/* Moves signs and scalar factors of a vector into the outer product's coefficient, so that equal
 * directions are recognised: (beta*k) u' and k u' update along the same k. */
static int strip(Lower *l, int v, Outer *o, Span span) {
    for (;;) {
        const Inst *i = inst_at(l->k, v);
        if (i->op == OP_neg) {
            o->minus = !o->minus;
            v = i->arg[0];
        } else if (i->op == OP_mul && !is_atomic(l, v) &&
                   lower_is_scalar(l, i->arg[0]) != lower_is_scalar(l, i->arg[1])) {
            bool first = lower_is_scalar(l, i->arg[0]);
            int scalar = i->arg[!first];
            v = i->arg[first];
            o->c = times(l, o->c, scalar, span);
        } else {
            return v;
        }
    }
}

static Outer outer_scale(Lower *l, Outer o, bool minus, int c, Span span) {
    o.minus ^= minus;
    o.c = times(l, o.c, c, span);
    return o;
}

static Outer outer_swap(Outer o) { return (Outer){o.minus, o.c, o.r, o.p, o.span}; }

/* Sums and products grow when multiplied out, by powers at worst: past the limit a message is left
 * and the caller goes on with less. */
bool matrix_too_many(Lower *l, int64_t n) {
    if (n <= PARTS_MAX)
        return false;
    diag_error(l->d, l->at, "this update has more than %d products when multiplied out", PARTS_MAX);
    diag_help(l->d, "update the state in steps");
    return true;
}

/* factors -------------------------------------------------------------------------------------- */

static Factor factor_scale(Lower *l, Factor f, bool minus, int c, Span span) {
    Outer *low = NEW_ARRAY(l->arena, Outer, f.nlow);
    for (int i = 0; i < f.nlow; i++)
        low[i] = outer_scale(l, f.low[i], minus, c, span);
    int diag = diag_times(l, f.diag, c == NONE ? DIAG_one : c, span);
    if (minus && diag != DIAG_zero)
        diag = diag == DIAG_one ? lower_const(l, -1) : lower1(l, OP_neg, diag, span);
    return (Factor){diag, low, f.nlow, f.span.hi ? f.span : span};
}

static Factor factor_add(Lower *l, Factor a, Factor b, Span span) {
    if (matrix_too_many(l, a.nlow + b.nlow))
        return a;
    Outer *low = NEW_ARRAY(l->arena, Outer, a.nlow + b.nlow);
    for (int i = 0; i < a.nlow; i++)
        low[i] = a.low[i];
    for (int i = 0; i < b.nlow; i++)
        low[a.nlow + i] = b.low[i];
    return (Factor){diag_add(l, a.diag, b.diag, span), low, a.nlow + b.nlow, span};
}

/* (A + sum p r') (B + sum s t') = A B + sum p (B r)' + sum (A s) t' + sum p (r's) t' */
static Factor factor_mul(Lower *l, Factor a, Factor b, Span span) {
    if (matrix_too_many(l, (int64_t)a.nlow * b.nlow + a.nlow + b.nlow))
        return a;
    VEC(Outer) low = {0};
    for (int i = 0; i < a.nlow && b.diag != DIAG_zero; i++) {
        Outer o = a.low[i];
        o.r = diag_times(l, b.diag, o.r, span);
        VEC_PUSH(l->arena, &low, o);
    }
    for (int i = 0; i < b.nlow && a.diag != DIAG_zero; i++) {
        Outer o = b.low[i];
        o.p = diag_times(l, a.diag, o.p, span);
        VEC_PUSH(l->arena, &low, o);
    }
    for (int i = 0; i < a.nlow; i++) {
        for (int j = 0; j < b.nlow; j++) {
            Outer o = {a.low[i].minus != b.low[j].minus, NONE, a.low[i].p, b.low[j].r, span};
            o.c = times(l, a.low[i].c, b.low[j].c, span);
            o.c = times(l, o.c, dot(l, a.low[i].r, b.low[j].p, span), span);
            VEC_PUSH(l->arena, &low, o);
        }
    }
    return (Factor){diag_times(l, a.diag, b.diag, span), low.at, low.count, span};
}

static bool factor_equal(Factor a, Factor b) {
    if (a.diag != b.diag || a.nlow != b.nlow)
        return false;
    for (int i = 0; i < a.nlow; i++) {
        Outer x = a.low[i], y = b.low[i];
        if (x.minus != y.minus || x.c != y.c || x.p != y.p || x.r != y.r)
            return false;
    }
    return true;
}

/* chains --------------------------------------------------------------------------------------- */

static Chain chain_of(Lower *l, Factor f) {
    Factor *at = NEW(l->arena, Factor);
    *at = f;
    return (Chain){at, 1};
}

static Chain chain_concat(Lower *l, Chain a, Chain b) {
    if (!a.count || !b.count)
        return a.count ? a : b;
    if (matrix_too_many(l, a.count + b.count))
        return a;
    Factor *at = NEW_ARRAY(l->arena, Factor, a.count + b.count);
    for (int i = 0; i < a.count; i++)
        at[i] = a.at[i];
    for (int i = 0; i < b.count; i++)
        at[a.count + i] = b.at[i];
    return (Chain){at, a.count + b.count};
}

Chain chain_part(Chain c, int from, int count) {
    return (Chain){c.at ? c.at + from : NULL, count};
}

Factor chain_flatten(Lower *l, Chain c, Span span) {
    Factor f = {.diag = DIAG_one};
    for (int i = 0; i < c.count; i++)
        f = i ? factor_mul(l, f, c.at[i], span) : c.at[0];
    return f;
}

static Chain chain_transpose(Lower *l, Chain c) {
    Factor *at = NEW_ARRAY(l->arena, Factor, c.count);
    for (int i = 0; i < c.count; i++) {
        Factor f = c.at[c.count - 1 - i];
        Outer *low = NEW_ARRAY(l->arena, Outer, f.nlow);
        for (int j = 0; j < f.nlow; j++)
            low[j] = outer_swap(f.low[j]);
        at[i] = (Factor){f.diag, low, f.nlow, f.span};
    }
    return (Chain){at, c.count};
}

/* Scales the first factor. */
static Chain chain_scale(Lower *l, Chain c, bool minus, int x, Span span) {
    Factor first = c.count ? c.at[0] : (Factor){.diag = DIAG_one, .span = span};
    Chain head = chain_of(l, factor_scale(l, first, minus, x, span));
    return c.count ? chain_concat(l, head, chain_part(c, 1, c.count - 1)) : head;
}

int chain_common_prefix(Chain a, Chain b) {
    int n = 0;
    while (n < a.count && n < b.count && factor_equal(a.at[n], b.at[n]))
        n++;
    return n;
}

int chain_common_suffix(Chain a, Chain b) {
    int n = 0;
    while (n < a.count && n < b.count &&
           factor_equal(a.at[a.count - 1 - n], b.at[b.count - 1 - n]))
        n++;
    return n;
}

/* A X + B X = (A + B) X, and likewise from the other side; the rest is multiplied out. */
static Chain chain_add(Lower *l, Chain a, Chain b, Span span) {
    int suffix = chain_common_suffix(a, b);
    Chain tail = chain_part(a, a.count - suffix, suffix);
    a.count -= suffix;
    b.count -= suffix;
    int prefix = chain_common_prefix(a, b);
    Chain head = chain_part(a, 0, prefix);
    a = chain_part(a, prefix, a.count - prefix);
    b = chain_part(b, prefix, b.count - prefix);
    Factor sum = factor_add(l, chain_flatten(l, a, span), chain_flatten(l, b, span), span);
    return chain_concat(l, chain_concat(l, head, chain_of(l, sum)), tail);
}

/* The chain, or its transpose, times a vector. */
static int chain_apply(Lower *l, Chain c, bool transposed, int x, Span span) {
    for (int i = 0; i < c.count; i++) {
        Factor f = c.at[transposed ? i : c.count - 1 - i];
        int y = f.diag == DIAG_zero ? NONE : diag_times(l, f.diag, x, span);
        for (int j = 0; j < f.nlow; j++) {
            Outer o = transposed ? outer_swap(f.low[j]) : f.low[j];
            int c_dot = times(l, o.c, dot(l, o.r, x, span), span);
            y = accumulate(l, y, o.minus, lower2(l, OP_mul, c_dot, o.p, span), span);
        }
        CHECK(y != NONE);
        x = y;
    }
    return x;
}

/* matrices ------------------------------------------------------------------------------------- */

static Matrix *new_square(Lower *l, Chain c) {
    Matrix *m = NEW(l->arena, Matrix);
    m->square = true;
    m->chain = c;
    return m;
}

const Matrix *matrix_identity(Lower *l) { return new_square(l, (Chain){NULL, 0}); }

const Matrix *matrix_diag(Lower *l, int d, Span span) {
    return new_square(l, chain_of(l, (Factor){.diag = d, .span = span}));
}

const Matrix *matrix_state(Lower *l, Span span) {
    Matrix *m = NEW(l->arena, Matrix);
    Term *t = NEW(l->arena, Term);
    t->span = span;
    m->term = t;
    m->nterm = 1;
    return m;
}

const Matrix *matrix_outer(Lower *l, int p, int r, bool square, bool flip, Span span) {
    Outer *o = NEW(l->arena, Outer);
    o->c = NONE;
    o->span = span;
    o->p = strip(l, flip ? r : p, o, span);
    o->r = strip(l, flip ? p : r, o, span);
    if (square)
        return new_square(l, chain_of(l, (Factor){DIAG_zero, o, 1, span}));
    Matrix *m = NEW(l->arena, Matrix);
    m->flip = flip;
    m->low = o;
    m->nlow = 1;
    return m;
}

const Matrix *matrix_transpose(Lower *l, const Matrix *a) {
    if (a->square)
        return new_square(l, chain_transpose(l, a->chain));
    Matrix *m = NEW(l->arena, Matrix);
    *m = *a;
    m->flip = !a->flip;
    return m;
}

const Matrix *matrix_add(Lower *l, const Matrix *a, const Matrix *b, Span span) {
    if (a->square)
        return new_square(l, chain_add(l, a->chain, b->chain, span));
    CHECK(a->flip == b->flip);
    if (matrix_too_many(l, a->nlow + b->nlow) || matrix_too_many(l, a->nterm + b->nterm))
        return a;
    Matrix *m = NEW(l->arena, Matrix);
    Term *term = NEW_ARRAY(l->arena, Term, a->nterm + b->nterm);
    Outer *low = NEW_ARRAY(l->arena, Outer, a->nlow + b->nlow);
    m->flip = a->flip;
    m->nterm = a->nterm + b->nterm;
    m->nlow = a->nlow + b->nlow;
    for (int i = 0; i < m->nterm; i++)
        term[i] = i < a->nterm ? a->term[i] : b->term[i - a->nterm];
    for (int i = 0; i < m->nlow; i++)
        low[i] = i < a->nlow ? a->low[i] : b->low[i - a->nlow];
    m->term = term;
    m->low = low;
    return m;
}

const Matrix *matrix_scale_right(Lower *l, const Matrix *a, int c, Span span) {
    const Chain x = a->chain;
    bool mixed = x.count && x.at[x.count - 1].nlow && x.at[x.count - 1].diag != DIAG_zero;
    if (!a->square || !mixed)
        return matrix_scale(l, a, false, c, span);
    return new_square(l, chain_concat(l, x, chain_of(l, (Factor){.diag = c, .span = span})));
}

const Matrix *matrix_scale(Lower *l, const Matrix *a, bool minus, int c, Span span) {
    if (a->square)
        return new_square(l, chain_scale(l, a->chain, minus, c, span));
    Matrix *m = NEW(l->arena, Matrix);
    Term *term = NEW_ARRAY(l->arena, Term, a->nterm);
    Outer *low = NEW_ARRAY(l->arena, Outer, a->nlow);
    *m = *a;
    for (int i = 0; i < a->nterm; i++) {
        term[i] = a->term[i];
        if (c != NONE)
            term[i].span = span;
        /* The outermost factor takes the scalar: the inner ones may be shared with other terms. */
        if (term[i].left.count || !term[i].right.count)
            term[i].left = chain_scale(l, term[i].left, minus, c, span);
        else
            term[i].right = chain_transpose(
                l, chain_scale(l, chain_transpose(l, term[i].right), minus, c, span));
    }
    for (int i = 0; i < a->nlow; i++)
        low[i] = outer_scale(l, a->low[i], minus, c, span);
    m->term = term;
    m->low = low;
    return m;
}

/* chain * a, or a * chain, for a shaped like the state. */
static const Matrix *multiply_side(Lower *l, const Matrix *a, Chain c, bool left, Span span) {
    Matrix *m = NEW(l->arena, Matrix);
    Term *term = NEW_ARRAY(l->arena, Term, a->nterm);
    Outer *low = NEW_ARRAY(l->arena, Outer, a->nlow);
    *m = *a;
    for (int i = 0; i < a->nterm; i++) {
        term[i] = a->term[i];
        if (left)
            term[i].left = chain_concat(l, c, term[i].left);
        else
            term[i].right = chain_concat(l, term[i].right, c);
        term[i].span = span;
    }
    for (int i = 0; i < a->nlow; i++) {
        low[i] = a->low[i];
        if (left)
            low[i].p = strip(l, chain_apply(l, c, false, low[i].p, span), &low[i], span);
        else
            low[i].r = strip(l, chain_apply(l, c, true, low[i].r, span), &low[i], span);
    }
    m->term = term;
    m->low = low;
    return m;
}

/* [K,V] times [V,K], or the other way round: at least one is a sum of outer products alone. */
static const Matrix *multiply_to_square(Lower *l, const Matrix *a, const Matrix *b, Span span) {
    bool right = !b->nterm; /* (A v) r' for b = sum v r', else p (B'u)' for a = sum p u' */
    const Matrix *sum = right ? b : a;
    CHECK(!sum->nterm);
    Outer *low = NEW_ARRAY(l->arena, Outer, sum->nlow);
    for (int i = 0; i < sum->nlow; i++) {
        Outer o = sum->flip ? outer_swap(sum->low[i]) : sum->low[i];
        if (right)
            o.p = strip(l, matrix_apply(l, a, false, o.p, span), &o, span);
        else
            o.r = strip(l, matrix_apply(l, b, true, o.r, span), &o, span);
        low[i] = o;
    }
    return new_square(l, chain_of(l, (Factor){DIAG_zero, low, sum->nlow, span}));
}

const Matrix *matrix_mul(Lower *l, const Matrix *a, const Matrix *b, Span span) {
    if (a->square && b->square)
        return new_square(l, chain_concat(l, a->chain, b->chain));
    if (!a->square && !b->square)
        return multiply_to_square(l, a, b, span);
    const Matrix *rect = a->square ? b : a;
    Chain c = a->square ? a->chain : b->chain;
    bool left = a->square;
    if (rect->flip) { /* A B' = (B A')' */
        c = chain_transpose(l, c);
        left = !left;
    }
    return multiply_side(l, rect, c, left, span);
}

int matrix_apply(Lower *l, const Matrix *a, bool transposed, int x, Span span) {
    if (a->square)
        return chain_apply(l, a->chain, transposed, x, span);
    transposed ^= a->flip;
    int y = NONE;
    for (int i = 0; i < a->nterm; i++) {
        const Term *t = &a->term[i];
        int inner = chain_apply(l, transposed ? t->left : t->right, transposed, x, span);
        int read = lower_read(l, inner, span);
        y = accumulate(l, y, false,
                       chain_apply(l, transposed ? t->right : t->left, transposed, read, span),
                       span);
    }
    for (int i = 0; i < a->nlow; i++) {
        Outer o = transposed ? outer_swap(a->low[i]) : a->low[i];
        int c = times(l, o.c, dot(l, o.r, x, span), span);
        y = accumulate(l, y, o.minus, lower2(l, OP_mul, c, o.p, span), span);
    }
    CHECK(y != NONE);
    return y;
}
