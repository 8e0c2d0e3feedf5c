/* `S = e` for a matrix e of algebra.c: the ordered list of reads, decays and updates.
 *
 * Updates are collected and applied together once the reads and the decay of a step are out; those
 * along one direction become one: k y' and k v' give k (y + v)'. The outer products of e that are
 * free of S join the last step.
 */
#include "frontend/lower.h"

typedef struct Assign {
    Lower *l;
    Span span;
    VEC(Outer) pending;     /* p:[K] gets c r, r:[V] */
} Assign;

/* updates -------------------------------------------------------------------------------------- */

static int times(Assign *a, int x, int y) {
    return x == NONE ? y : y == NONE ? x : lower2(a->l, OP_mul, x, y, a->span);
}

/* The sum of those that share p and c, from `first` on; they are marked done by p = NONE. Positive
 * ones first: v - y rather than -y + v. */
static int sum_alike(Assign *a, int first) {
    Outer model = a->pending.at[first];
    int sum = NONE;
    for (int sign = 0; sign < 2; sign++) {
        for (int i = first; i < a->pending.count; i++) {
            Outer *o = &a->pending.at[i];
            if (o->p != model.p || o->c != model.c || o->minus != (sign == 1))
                continue;
            if (sum == NONE)
                sum = o->minus ? lower1(a->l, OP_neg, o->r, a->span) : o->r;
            else
                sum = lower2(a->l, o->minus ? OP_sub : OP_add, sum, o->r, a->span);
            o->p = NONE;
        }
    }
    return times(a, model.c, sum);
}

static void flush(Assign *a) {
    VEC(Outer) update = {0};
    for (int i = 0; i < a->pending.count; i++) {
        int p = a->pending.at[i].p, z = NONE;
        if (p == NONE)
            continue;
        for (int j = i; j < a->pending.count; j++) {
            if (a->pending.at[j].p != p)
                continue;
            int part = sum_alike(a, j);
            z = z == NONE ? part : lower2(a->l, OP_add, z, part, a->span);
        }
        int same = 0;
        while (same < update.count && update.at[same].r != z)
            same++;
        if (same < update.count)
            update.at[same].p = lower2(a->l, OP_add, update.at[same].p, p, a->span);
        else
            VEC_PUSH(a->l->arena, &update, ((Outer){false, NONE, p, z, a->pending.at[i].span}));
    }
    for (int i = 0; i < update.count; i++)
        lower_update(a->l, update.at[i].p, update.at[i].r, update.at[i].span);
    a->pending.count = 0;
}

static void add_update(Assign *a, Outer o) {
    VEC_PUSH(a->l->arena, &a->pending, o);
}

static void decay(Assign *a, int diag, Span span) {
    if (diag == DIAG_zero)
        lower_decay(a->l, lower_const(a->l, 0), span);
    else if (diag != DIAG_one)
        lower_decay(a->l, diag, span);
}

/* one factor ----------------------------------------------------------------------------------- */

/* S = F S, or S = S F. */
static void apply_factor(Assign *a, Factor f, bool left) {
    VEC(Outer) update = {0};
    if (f.nlow || f.diag != DIAG_one)
        flush(a);
    for (int i = 0; i < f.nlow; i++) {
        Outer o = f.low[i];
        if (left)
            o.r = lower_read(a->l, o.r, o.span);
        else
            o.p = lower_read(a->l, o.p, o.span);
        VEC_PUSH(a->l->arena, &update, o);
    }
    decay(a, f.diag, f.span);
    for (int i = 0; i < update.count; i++)
        add_update(a, update.at[i]);
}

/* sums of terms -------------------------------------------------------------------------------- */

typedef struct Pair { Factor left, right; } Pair; /* left * S * right */

/* Updates of one term beyond diag * S * diag; reads see the state as it is now. */
static void read_pair(Assign *a, Pair t, Outer *out, int *count) {
    Lower *l = a->l;
    for (int i = 0; i < t.left.nlow; i++) {
        Outer o = t.left.low[i];
        int y = lower_read(l, o.r, o.span);
        for (int j = 0; j < t.right.nlow; j++) {
            Outer e = t.right.low[j];
            int s = lower_sum(l, lower2(l, OP_mul, y, e.p, a->span), a->span);
            out[(*count)++] = (Outer){o.minus != e.minus, times(a, times(a, o.c, e.c), s), o.p, e.r,
                                      o.span};
        }
        if (t.right.diag == DIAG_zero)
            continue;
        o.r = t.right.diag == DIAG_one ? y : times(a, t.right.diag, y);
        out[(*count)++] = o;
    }
    for (int j = 0; j < t.right.nlow && t.left.diag != DIAG_zero; j++) {
        Outer e = t.right.low[j];
        int y = lower_read(l, e.p, e.span);
        e.p = t.left.diag == DIAG_one ? y : times(a, t.left.diag, y);
        out[(*count)++] = e;
    }
}

static int diag_mul(Assign *a, int x, int y) {
    return x == DIAG_one ? y : y == DIAG_one ? x : lower2(a->l, OP_mul, x, y, a->span);
}

static int diag_sum(Assign *a, int x, int y) {
    if (x == DIAG_one)
        x = lower_const(a->l, 1);
    if (y == DIAG_one)
        y = lower_const(a->l, 1);
    return x == DIAG_zero ? y : lower2(a->l, OP_add, x, y, a->span);
}

static bool is_scalar(Assign *a, int diag) {
    return diag == DIAG_one || lower_is_scalar(a->l, diag);
}

/* sum_t diag(x_t) S diag(y_t) as one decay on either side. */
static bool decay_sum(Assign *a, const int *x, const int *y, int n) {
    bool same_x = true, same_y = true, scalar_x = true, scalar_y = true;
    for (int i = 0; i < n; i++) {
        same_x &= x[i] == x[0];
        same_y &= y[i] == y[0];
        scalar_x &= is_scalar(a, x[i]);
        scalar_y &= is_scalar(a, y[i]);
    }
    int sum = DIAG_zero;
    if (same_y || same_x) { /* one side is shared, the other one adds up */
        for (int i = 0; i < n; i++)
            sum = n == 1 ? (same_y ? x[i] : y[i]) : diag_sum(a, sum, same_y ? x[i] : y[i]);
        decay(a, same_y ? sum : x[0], a->span);
        decay(a, same_y ? y[0] : sum, a->span);
        return true;
    }
    if (!scalar_x && !scalar_y)
        return false;
    for (int i = 0; i < n; i++) /* scalars may stand on either side */
        sum = diag_sum(a, sum, diag_mul(a, x[i], y[i]));
    decay(a, sum, a->span);
    return true;
}

/* S = sum_t left_t S right_t, all reads from the state as it stands. */
static void apply_sum(Assign *a, const Term *term, int n) {
    Lower *l = a->l;
    Pair *pair = NEW_ARRAY(l->arena, Pair, n);
    int *x = NEW_ARRAY(l->arena, int, n), *y = NEW_ARRAY(l->arena, int, n);
    int diagonals = 0, updates = 0;
    int64_t most = 0;
    flush(a);
    for (int i = 0; i < n; i++) {
        pair[i].left = chain_flatten(l, term[i].left, a->span);
        pair[i].right = chain_flatten(l, term[i].right, a->span);
        most += (int64_t)(pair[i].left.nlow + 1) * (pair[i].right.nlow + 1);
        if (pair[i].left.diag == DIAG_zero || pair[i].right.diag == DIAG_zero)
            continue;
        x[diagonals] = pair[i].left.diag;
        y[diagonals++] = pair[i].right.diag;
    }
    if (matrix_too_many(l, most))
        return;
    Outer *update = NEW_ARRAY(l->arena, Outer, most);
    for (int i = 0; i < n; i++)
        read_pair(a, pair[i], update, &updates);
    if (!diagonals) {
        decay(a, DIAG_zero, a->span);
    } else if (!decay_sum(a, x, y, diagonals)) {
        diag_error(l->d, a->span, "these terms do not combine into one decay of the state");
        for (int i = 0; i < n && i < 2; i++)
            diag_note(l->d, term[i].span, "term %d is here", i + 1);
        diag_help(l->d, "diag(x) * S * diag(y) is one decay, and sums that share x or y are; other "
                        "sums are not of the form diag * S * diag");
    }
    for (int i = 0; i < updates; i++)
        add_update(a, update[i]);
}

void matrix_assign(Lower *l, const Matrix *m, Span span) {
    Assign a = {.l = l, .span = span};
    CHECK(!m->square && !m->flip);
    Term *rest = NEW_ARRAY(l->arena, Term, m->nterm);
    int left = 0, right = 0;
    for (int i = 0; i < m->nterm; i++) {
        rest[i] = m->term[i];
        int suffix = chain_common_suffix(rest[0].left, rest[i].left);
        int prefix = chain_common_prefix(rest[0].right, rest[i].right);
        left = !i || suffix < left ? suffix : left;
        right = !i || prefix < right ? prefix : right;
    }
    for (int i = 0; i < left; i++)
        apply_factor(&a, rest[0].left.at[rest[0].left.count - 1 - i], true);
    for (int i = 0; i < right; i++)
        apply_factor(&a, rest[0].right.at[i], false);
    for (int i = 0; i < m->nterm; i++) {
        rest[i].left.count -= left;
        rest[i].right = chain_part(rest[i].right, right, rest[i].right.count - right);
    }
    if (m->nterm != 1)
        apply_sum(&a, rest, m->nterm);
    for (int i = 0; i < m->nlow; i++)
        add_update(&a, m->low[i]);
    flush(&a);
}
