/* Decoding steps of a problem: pools of states for gdrc bench, and what must hold of them, checked
 * for gdrc verify with the very kernel under test:
 *
 *     slots      states that no slot names stay as they are, a skipped sequence writes nothing, and
 *                the others do what they do without a pool
 *     tokens     several tokens at once are as many single steps: outputs, and the states after all
 *     accepted   the state to commit is the one after as many tokens as were accepted
 *     continued  a launch from where another one ended goes on as one launch would have
 *     handed on  and so does one by the other algorithm: chunks after steps, steps after chunks
 *
 * With f32 states bit for bit; with states that are rounded in between, and from one algorithm to the
 * other, within the usual threshold. Kernels by chunks: `slots`, `continued` where the first launch has
 * whole chunks, and `handed on`. A GPU's keep their state in units of their own and may differ in the
 * last bits.
 */
#include "driver/driver.h"

#include <math.h>
#include <string.h>

static int past_floats(const Problem *p) {
    Kernel *k = kernel_clone(p->k);
    passes_run(k, "normal", NULL);
    return k->facts.past;
}

/* pools ---------------------------------------------------------------------------------------- */

/* A permutation of the slots' numbers, the same for all calls. */
static Tensor scattered(Arena *arena, const char *name, int64_t n, int64_t slots) {
    Tensor t = tensor_new(arena, name, GDR_I32, 1, &n);
    int32_t *number = NEW_ARRAY(arena, int32_t, slots);
    uint64_t x = 88172645463325252;
    for (int64_t i = 0; i < slots; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        int64_t j = (int64_t)(x % (uint64_t)(i + 1));
        number[i] = number[j];
        number[j] = (int32_t)i;
    }
    memcpy(t.data, number, t.bytes);
    return t;
}

/* Of the state's numbers a few are enough: time does not depend on them. */
static void fill_pool(Tensor *t, int64_t one) {
    int64_t n = tensor_count(t);
    size_t size = gdr_dtype_size(t->dtype);
    for (int64_t i = 0; i < one && i < n; i++)
        scalar_put(t->dtype, t->data, i, 0.5 * sin((double)i));
    for (int64_t i = one; i < n; i += one)
        memcpy((char *)t->data + (size_t)i * size, t->data, (size_t)one * size);
}

void decode_pool(Arena *arena, Problem *p, int64_t slots) {
    int64_t K = p->k->axis.at[AXIS_K].size, V = p->k->axis.at[AXIS_V].size;
    bool vk = p->state_layout == GDR_LAYOUT_VK;
    slots = slots > p->N ? slots : p->N;
    p->S0 =
        tensor_new(arena, "S0", p->state_type, 4, (int64_t[]){slots, p->H, vk ? V : K, vk ? K : V});
    fill_pool(&p->S0, p->H * K * V);
    p->S0_slots = p->S_slots = scattered(arena, "S0_slots", p->N, slots);
    p->in_place = true;
    p->past = past_floats(p);
    if (p->past)
        p->past0 = tensor_new(arena, "past0", GDR_F32, 3, (int64_t[]){slots, p->H, p->past});
}

/* properties ----------------------------------------------------------------------------------- */

typedef struct Trial {
    Driver *d;
    Arena *arena;
    const Problem *p; /* dense, with S0 */
    Engine *e;
    int past;
    bool exact;
    double limit;      /* otherwise */
    gdr_status status; /* of the first run that failed */
} Trial;

static Outcome run(Trial *t, const Problem *p) {
    Outcome o = {0};
    if (t->status)
        return outcome_new(t->arena, p, false);
    t->status = engine_run(t->d, p, t->e, t->arena, &o);
    return o;
}

/* `count` parts of `a` from part `i` on and of `b` from part `j` on, where they have `parts` each.
 */
static bool same(const Trial *t, const Tensor *a, int64_t i, int64_t parts_a, const Tensor *b,
                 int64_t j, int64_t parts_b, int64_t count) {
    int64_t one = tensor_count(a) / parts_a, n = count * one;
    size_t size = gdr_dtype_size(a->dtype);
    const char *x = (const char *)a->data + (size_t)(i * one) * size;
    const char *y = (const char *)b->data + (size_t)(j * one) * size;
    double difference = 0, sum = 0;
    if (tensor_count(b) / parts_b != one)
        return false;
    if (t->exact)
        return !memcmp(x, y, (size_t)n * size);
    for (int64_t e = 0; e < n; e++) {
        double u = scalar_get(a->dtype, x, e), v = scalar_get(b->dtype, y, e);
        difference += (u - v) * (u - v);
        sum += v * v;
    }
    return sqrt(difference) <= t->limit * sqrt(sum) + 1e-6 * sqrt((double)n);
}

/* The problem's tokens from `from` on, `count` of each sequence. */
static Problem some_tokens(const Trial *t, int64_t from, int64_t count) {
    Problem p = *t->p;
    p.in = NEW_ARRAY(t->arena, Tensor, p.k->in.count + 1);
    p.T = count;
    for (int i = 0; i < p.k->in.count; i++) {
        const Tensor *whole = &t->p->in[i];
        Tensor *part = &p.in[i];
        *part = *whole;
        if (p.k->in.at[i].is_param)
            continue;
        int64_t shape[TENSOR_NDIM_MAX];
        memcpy(shape, whole->shape, sizeof shape);
        shape[1] = count;
        *part = tensor_new(t->arena, whole->name, whole->dtype, whole->ndim, shape);
        size_t row = whole->bytes / (size_t)(whole->shape[0] * whole->shape[1]);
        for (int64_t n = 0; n < p.N; n++)
            memcpy((char *)part->data + (size_t)(n * count) * row,
                   (char *)whole->data + (size_t)(n * t->p->T + from) * row, (size_t)count * row);
    }
    p.past = t->past;
    return p;
}

static Problem continued_from(Problem p, const Outcome *o) {
    p.S0 = o->S;
    p.past0 = o->past;
    return p;
}

static bool same_outputs(const Trial *t, const Problem *p, const Outcome *a, int64_t from,
                         const Problem *q, const Outcome *b, int64_t at, int64_t count) {
    bool ok = true;
    for (int i = 0; i < p->k->out.count; i++)
        for (int64_t n = 0; n < p->N; n++)
            ok = ok && same(t, &a->out[i], n * p->T + from, p->N * p->T, &b->out[i], n * q->T + at,
                            q->N * q->T, count);
    return ok;
}

static bool untouched(const Tensor *t, int64_t i, int64_t parts, int64_t count) {
    size_t one = t->bytes / (size_t)parts;
    const unsigned char *x = (const unsigned char *)t->data + (size_t)i * one;
    for (size_t j = 0; j < (size_t)count * one; j++)
        if (x[j] != 0xff)
            return false;
    return true;
}

/* A pool in place in which the second sequence is skipped. */
static bool check_slots(Trial *t) {
    int64_t P = t->p->N + 3;
    Problem plain = some_tokens(t, 0, t->p->T), p = plain;
    plain.past = 0;
    decode_pool(t->arena, &p, P);
    int32_t *slot = p.S0_slots.data;
    slot[1] = -1;
    size_t one = p.S0.bytes / (size_t)P;
    Tensor before = tensor_new(t->arena, "S0", p.S0.dtype, p.S0.ndim, p.S0.shape);
    memcpy(before.data, p.S0.data, before.bytes);
    bool *named = NEW_ARRAY(t->arena, bool, P), ok = true;
    for (int64_t n = 0; n < p.N; n++)
        if (slot[n] >= 0) {
            named[slot[n]] = true;
            memcpy((char *)p.S0.data + (size_t)slot[n] * one,
                   (char *)plain.S0.data + (size_t)n * one, one);
        }
    Outcome a = run(t, &plain), b = run(t, &p);
    for (int64_t n = 0; !t->status && n < p.N; n++)
        for (int i = 0; i < p.k->out.count; i++)
            ok = ok && (slot[n] < 0 ? untouched(&b.out[i], n, p.N, 1)
                                    : same(t, &a.out[i], n, p.N, &b.out[i], n, p.N, 1));
    for (int64_t n = 0; !t->status && n < p.N; n++)
        ok = ok && (slot[n] < 0 || same(t, &a.S, n, p.N, &b.S, slot[n], P, 1));
    for (int64_t i = 0; !t->status && i < P; i++)
        ok = ok && (named[i] || !memcmp((char *)b.S.data + (size_t)i * one,
                                        (char *)before.data + (size_t)i * one, one));
    return ok;
}

/* One by one: the outcome of every step. */
static Outcome *single_steps(Trial *t, int64_t T) {
    Outcome *o = NEW_ARRAY(t->arena, Outcome, T);
    for (int64_t i = 0; i < T; i++) {
        Problem one = some_tokens(t, i, 1);
        if (i > 0)
            one = continued_from(one, &o[i - 1]);
        o[i] = run(t, &one);
    }
    return o;
}

static bool check_tokens(Trial *t) {
    enum { T = 4 };
    Outcome *step = single_steps(t, T);
    Problem p = some_tokens(t, 0, T), one = some_tokens(t, 0, 1);
    p.each = T;
    Outcome all = run(t, &p);
    bool ok = true;
    for (int64_t i = 0; !t->status && i < T; i++) {
        ok = ok && same_outputs(t, &p, &all, i, &one, &step[i], 0, 1);
        for (int64_t n = 0; n < p.N; n++)
            ok = ok && same(t, &all.S, n * T + i, p.N * T, &step[i].S, n, p.N, 1) &&
                 (!t->past || same(t, &all.past, n * T + i, p.N * T, &step[i].past, n, p.N, 1));
    }
    return ok;
}

static bool check_accepted(Trial *t) {
    enum { T = 4 };
    Problem p = some_tokens(t, 0, T), each = p;
    each.each = T;
    p.S_accepted = tensor_new(t->arena, "S_accepted", GDR_I64, 1, &p.N);
    for (int64_t n = 0; n < p.N; n++)
        ((int64_t *)p.S_accepted.data)[n] = n % (T + 1);
    Outcome all = run(t, &each), some = run(t, &p);
    bool ok = !t->status && same_outputs(t, &p, &all, 0, &p, &some, 0, T);
    for (int64_t n = 0; ok && n < p.N; n++) {
        int64_t i = n % (T + 1) - 1;
        ok = i < 0 ? same(t, &some.S, n, p.N, &p.S0, n, p.N, 1)
                   : same(t, &some.S, n, p.N, &all.S, n * T + i, p.N * T, 1);
    }
    return ok || t->status;
}

static bool check_continued(Trial *t) {
    gdr_facts facts;
    gdr_kernel_facts(t->e->kernel, &facts);
    int64_t T = t->p->T, first = facts.algo == GDR_ALGO_CHUNK ? facts.chunk : 5;
    if (first >= T)
        return true;
    Problem whole = some_tokens(t, 0, T), a = some_tokens(t, 0, first),
            b = some_tokens(t, first, T - first);
    Outcome all = run(t, &whole), head = run(t, &a);
    b = continued_from(b, &head);
    Outcome tail = run(t, &b);
    return t->status || (same_outputs(t, &whole, &all, 0, &a, &head, 0, first) &&
                         same_outputs(t, &whole, &all, first, &b, &tail, 0, T - first) &&
                         same(t, &all.S, 0, 1, &tail.S, 0, 1, 1) &&
                         (!t->past || same(t, &all.past, 0, 1, &tail.past, 0, 1, 1)));
}

/* The first few tokens by one engine, in the midst of a chunk, and the rest by the other. */
static bool goes_on(Trial *t, Engine *first, Engine *then, const Outcome *all) {
    enum { FEW = 5 };
    Engine *own = t->e;
    int64_t T = t->p->T;
    Problem whole = some_tokens(t, 0, T), a = some_tokens(t, 0, FEW),
            b = some_tokens(t, FEW, T - FEW);
    t->e = first;
    Outcome head = run(t, &a);
    b = continued_from(b, &head);
    t->e = then;
    Outcome tail = run(t, &b);
    t->e = own;
    return t->status || (same_outputs(t, &whole, all, FEW, &b, &tail, 0, T - FEW) &&
                         same(t, &all->S, 0, 1, &tail.S, 0, 1, 1) &&
                         (!t->past || same(t, &all->past, 0, 1, &tail.past, 0, 1, 1)));
}

static bool check_handed_on(Trial *t) {
    Engine steps = *t->e;
    steps.method = METHOD_recurrent;
    gdr_status status = engine_open(t->d, t->p, &steps);
    if (status == GDR_ELIMIT) /* no such kernel of this spec */
        return true;
    if (status) {
        t->status = status;
        return false;
    }
    Problem whole = some_tokens(t, 0, t->p->T);
    Outcome all = run(t, &whole);
    bool ok = goes_on(t, t->e, &steps, &all) && goes_on(t, &steps, t->e, &all);
    engine_close(&steps);
    return ok;
}

gdr_status decode_check(Driver *d, Spec *s, const char *variant, const Case *c, Engine *e,
                        const char **broken) {
    static const struct {
        const char *name;
        bool (*check)(Trial *t);
        bool of_steps, of_chunks;
    } property[] = {
        {"slots of a pool", check_slots, true, true},
        {"several tokens at once", check_tokens, true, false},
        {"accepted tokens", check_accepted, true, false},
        {"continued launches", check_continued, true, true},
        {"chunks and steps in turn", check_handed_on, false, true},
    };
    gdr_facts facts;
    gdr_kernel_facts(e->kernel, &facts);
    Case dense = *c;
    dense.B = 6;
    dense.T = facts.algo == GDR_ALGO_CHUNK ? facts.chunk + 3 : 8;
    dense.S0 = true;
    *broken = NULL;
    for (size_t i = 0; i < sizeof property / sizeof *property; i++) {
        if (!(facts.algo == GDR_ALGO_CHUNK ? property[i].of_chunks : property[i].of_steps))
            continue;
        Arena arena;
        Problem p;
        arena_init(&arena, d->arena.oom);
        case_problem(d, &arena, s, variant, &dense, d->opt.seed, 0, NULL, &p);
        Trial t = {.d = d, .arena = &arena, .p = &p, .e = e};
        bool ok = p.k != NULL;
        t.status = ok ? GDR_OK : GDR_ESPEC;
        t.past = ok ? past_floats(&p) : 0;
        t.exact = p.state_type == GDR_F32 &&
                  (facts.algo == GDR_ALGO_RECURRENT || e->device == DEVICE_cpu);
        t.limit = 0.005;
        if (property[i].check == check_slots)
            t.exact = true; /* the same numbers in another place */
        if (property[i].check == check_handed_on) {
            t.exact = false;
            t.limit = e->device == DEVICE_cpu && c->type == GDR_F32 ? 1e-4 : 0.01;
        }
        ok = ok && property[i].check(&t);
        gdr_status status = t.status;
        arena_free(&arena);
        if (status)
            return status;
        if (!ok) {
            *broken = property[i].name;
            return GDR_OK;
        }
    }
    return GDR_OK;
}
