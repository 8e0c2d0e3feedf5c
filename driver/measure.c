/* How far results are from the reference: root mean square of the difference over that of the
 * reference, for the whole tensor and for every head and sequence alone, since a global ratio hides
 * one bad head.
 *
 * Of a gradient by f16 operands two more things are known, and neither lets a bad head pass:
 *   size       Matrix operands are f16, good to 2^-11 of their column's largest: a state and what is added to
 *              it share a unit. What the initial state of a head that forgets all but e^-14 in a token gets
 *              is added to what the chunk's later tokens leave. So a head or sequence is taken to be no
 *              smaller than 2^-11 of its tensor. Wrong from end to end it still counts, unless its gradient
 *              is less than 2^-16 of the tensor's.
 *   condition  A gradient may be the small rest of large terms: the sum of all tokens' terms for a param,
 *              which is one number a head, or v'dO of a single token. The reference itself says so: with what a
 *              kernel rounds moved by as much (nearby.c) it is another number. Where that is a fraction of the
 *              difference it cannot say more of x. The fraction is an eighth: of 16-bit gradients 2^-6 of the
 *              terms at most, of f32 ones 2^-8, which a gradient that is wrong does not keep to.
 */
#include "driver/driver.h"

#include <math.h>
#include <string.h>

#define LEAST_PART 0x1p-11
#define MOVES 8.0

typedef struct Sums {
    double difference, reference, moved, count; /* moved: of a nearby reference, in the mean */
} Sums;

/* What is compared. */
typedef struct Pair {
    const Tensor *ref, *x;
    const Tensor *const *near; /* [NEARBY] or NULL */
} Pair;

static double number(const Tensor *t, int64_t at) {
    return scalar_get(t->dtype, t->data, at);
}

static double square(double x) {
    return x * x;
}

static void add(Sums *s, const Pair *p, int64_t at) {
    double ref = number(p->ref, at);
    s->difference += square(number(p->x, at) - ref);
    s->reference += square(ref);
    for (int i = 0; p->near && i < NEARBY; i++)
        s->moved += square(number(p->near[i], at) - ref) / NEARBY;
    s->count++;
}

static void add_sums(Sums *s, const Sums *more) {
    s->difference += more->difference;
    s->reference += more->reference;
    s->moved += more->moved;
    s->count += more->count;
}

/* With `least`: of a reference that is no smaller. */
static double ratio(const Sums *s, double least) {
    if (s->count == 0)
        return 0;
    double size = fmax(sqrt(s->reference / s->count), least);
    return sqrt(s->difference / s->count) / (size + 1e-8);
}

static bool moves(const Sums *s) {
    return s->difference <= MOVES * MOVES * s->moved;
}

/* The larger of `worst` and a part's ratio, which does not count where the reference moves as much. */
static double worse(double worst, const Sums *part, double least) {
    return moves(part) ? worst : fmax(worst, ratio(part, least));
}

void problem_sequence(const Problem *p, int64_t n, int64_t *begin, int64_t *length) {
    *begin = n * p->T;
    *length = p->T;
    if (p->cu.data) {
        *begin = (int64_t)scalar_get(p->cu.dtype, p->cu.data, n);
        *length = (int64_t)scalar_get(p->cu.dtype, p->cu.data, n + 1) - *begin;
    }
}

/* Elements of rows [begin, begin+rows) and one head of [rows, heads, elements] tensors. */
static Sums measure_block(const Pair *p, int64_t begin, int64_t rows, int64_t heads, int64_t head,
                          int64_t elements, Distance *d) {
    Sums s = {0};
    for (int64_t r = begin; r < begin + rows; r++)
        for (int64_t e = 0; e < elements; e++) {
            int64_t at = (r * heads + head) * elements + e;
            double want = number(p->ref, at), have = number(p->x, at);
            if (!isfinite(have) || !isfinite(want))
                d->finite = false;
            d->max_abs = fmax(d->max_abs, fabs(have - want));
            add(&s, p, at);
        }
    return s;
}

/* A per-token tensor, or with `state` one that has a row a sequence. */
typedef struct Layout {
    const Problem *p;
    bool state;
    int64_t heads, elements;
} Layout;

/* Heads first .. last - 1 of one sequence. */
static Sums measure_sequence(const Layout *l, const Pair *pair, int64_t n, int64_t first,
                             int64_t last, Distance *d) {
    Sums s = {0};
    int64_t begin = n, length = 1;
    if (!l->state)
        problem_sequence(l->p, n, &begin, &length);
    for (int64_t h = first; h < last; h++) {
        Sums head = measure_block(pair, begin, length, l->heads, h, l->elements, d);
        add_sums(&s, &head);
    }
    return s;
}

static Distance measure(const Problem *p, const Pair *pair, bool state) {
    Distance d = {.finite = true};
    Sums whole = {0};
    Layout l = {p, state, pair->ref->shape[state ? 1 : 2], 1};
    for (int i = state ? 2 : 3; i < pair->ref->ndim; i++)
        l.elements *= pair->ref->shape[i];
    for (int64_t n = 0; n < p->N; n++) {
        Sums sequence = measure_sequence(&l, pair, n, 0, l.heads, &d);
        add_sums(&whole, &sequence);
    }
    double least = pair->near && whole.count ? LEAST_PART * sqrt(whole.reference / whole.count) : 0;
    for (int64_t n = 0; n < p->N; n++) {
        Sums sequence = measure_sequence(&l, pair, n, 0, l.heads, &d);
        d.sequence = worse(d.sequence, &sequence, least);
    }
    for (int64_t h = 0; h < l.heads; h++) {
        Sums head = {0};
        for (int64_t n = 0; n < p->N; n++) {
            Sums s = measure_sequence(&l, pair, n, h, h + 1, &d);
            add_sums(&head, &s);
        }
        d.head = worse(d.head, &head, least);
    }
    d.whole = ratio(&whole, 0);
    d.moves = moves(&whole);
    return d;
}

Distance measure_out(const Problem *p, const Tensor *reference, const Tensor *const *near,
                     const Tensor *x) {
    return measure(p, &(Pair){reference, x, near}, false);
}

Distance measure_state(const Problem *p, const Tensor *reference, const Tensor *const *near,
                       const Tensor *x) {
    return measure(p, &(Pair){reference, x, near}, true);
}

Distance measure_param(const Tensor *ref, const Tensor *const *near, const Tensor *x) {
    Distance d = {.finite = true};
    Pair pair = {ref, x, near};
    Sums whole = {0};
    int64_t heads = ref->shape[0], elements = heads ? tensor_count(ref) / heads : 0;
    for (int64_t h = 0; h < heads; h++) {
        Sums head = measure_block(&pair, 0, 1, heads, h, elements, &d);
        add_sums(&whole, &head);
        d.head = worse(d.head, &head, 0);
    }
    d.whole = ratio(&whole, 0);
    d.moves = moves(&whole);
    return d;
}

bool distance_ok(const Distance *x, double threshold) {
    if (!x->finite)
        return false;
    return x->max_abs <= 1e-6 ||
           ((x->whole <= threshold || x->moves) && x->head <= 3 * threshold &&
            x->sequence <= 3 * threshold);
}

bool spare_rows_untouched(const Problem *p, const Tensor *out) {
    if (!p->cu.data)
        return true;
    int64_t last, length;
    problem_sequence(p, p->N - 1, &last, &length);
    int64_t rows = out->shape[0] * out->shape[1];
    size_t row = rows ? out->bytes / (size_t)rows : 0;
    const unsigned char *from = (const unsigned char *)out->data + (size_t)(last + length) * row;
    const unsigned char *end = (const unsigned char *)out->data + out->bytes;
    for (; from < end; from++)
        if (*from != 0xff)
            return false;
    return true;
}
