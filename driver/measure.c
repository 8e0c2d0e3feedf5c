/* How far results are from the reference: root mean square of the difference over that of the
 * reference, for the whole tensor and for every head and sequence alone, since a global ratio hides
 * one bad head. */
#include "driver/driver.h"

#include <math.h>
#include <string.h>

typedef struct Sums {
    double difference, reference, count;
} Sums;

static void add(Sums *s, double ref, double x) {
    s->difference += (x - ref) * (x - ref);
    s->reference += ref * ref;
    s->count++;
}

static void add_sums(Sums *s, const Sums *more) {
    s->difference += more->difference;
    s->reference += more->reference;
    s->count += more->count;
}

static double ratio(const Sums *s) {
    if (s->count == 0)
        return 0;
    return sqrt(s->difference / s->count) / (sqrt(s->reference / s->count) + 1e-8);
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
static Sums measure_block(const Tensor *ref, const Tensor *x, int64_t begin, int64_t rows,
                          int64_t heads, int64_t head, int64_t elements, Distance *d) {
    Sums s = {0};
    for (int64_t r = begin; r < begin + rows; r++)
        for (int64_t e = 0; e < elements; e++) {
            int64_t at = (r * heads + head) * elements + e;
            double want = scalar_get(ref->dtype, ref->data, at);
            double have = scalar_get(x->dtype, x->data, at);
            double off = fabs(have - want);
            if (!isfinite(have) || !isfinite(want))
                d->finite = false;
            if (off > d->max_abs)
                d->max_abs = off;
            add(&s, want, have);
        }
    return s;
}

/* `state`: one row a sequence; otherwise one row a token. */
static Distance measure(const Problem *p, const Tensor *ref, const Tensor *x, bool state) {
    Distance d = {.finite = true};
    Sums whole = {0};
    int64_t heads = ref->shape[state ? 1 : 2], elements = 1;
    for (int i = state ? 2 : 3; i < ref->ndim; i++)
        elements *= ref->shape[i];
    for (int64_t h = 0; h < heads; h++) {
        Sums head = {0};
        for (int64_t n = 0; n < p->N; n++) {
            int64_t begin = n, length = 1;
            if (!state)
                problem_sequence(p, n, &begin, &length);
            Sums s = measure_block(ref, x, begin, length, heads, h, elements, &d);
            add_sums(&head, &s);
        }
        add_sums(&whole, &head);
        d.head = fmax(d.head, ratio(&head));
    }
    for (int64_t n = 0; n < p->N; n++) {
        Sums sequence = {0};
        int64_t begin = n, length = 1;
        if (!state)
            problem_sequence(p, n, &begin, &length);
        for (int64_t h = 0; h < heads; h++) {
            Sums s = measure_block(ref, x, begin, length, heads, h, elements, &d);
            add_sums(&sequence, &s);
        }
        d.sequence = fmax(d.sequence, ratio(&sequence));
    }
    d.whole = ratio(&whole);
    return d;
}

Distance measure_out(const Problem *p, const Tensor *reference, const Tensor *x) {
    return measure(p, reference, x, false);
}

Distance measure_state(const Problem *p, const Tensor *reference, const Tensor *x) {
    return measure(p, reference, x, true);
}

Distance measure_param(const Tensor *ref, const Tensor *x) {
    Distance d = {.finite = true};
    Sums whole = {0};
    int64_t heads = ref->shape[0], elements = heads ? tensor_count(ref) / heads : 0;
    for (int64_t h = 0; h < heads; h++) {
        Sums head = measure_block(ref, x, 0, 1, heads, h, elements, &d);
        add_sums(&whole, &head);
        d.head = fmax(d.head, ratio(&head));
    }
    d.whole = ratio(&whole);
    return d;
}

bool distance_ok(const Distance *x, double threshold) {
    if (!x->finite)
        return false;
    return x->max_abs <= 1e-6 ||
           (x->whole <= threshold && x->head <= 3 * threshold && x->sequence <= 3 * threshold);
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
