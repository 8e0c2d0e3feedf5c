/* What must hold bit for bit, checked with the very kernels under test:
 *
 *     repeat     the same call twice gives the same bytes
 *     causality  tokens from t on do not change outputs before t
 *     place      a sequence's results do not depend on its place in the batch
 *     pack       packed sequences do not touch each other
 *     spare      rows past the last sequence are not written
 *     pieces     GPU: the least workspace gives the same bytes, and so does one between that and the usual
 *
 * Of gradients the same, but against time: tokens from t on do not see upstream gradients before t. On a
 * GPU also
 *
 *     saved      what the forward pass saved gives the same bytes: states, or all
 */
#include "driver/driver.h"

#include <string.h>

typedef struct Trial {
    Driver *d;
    Arena *arena;
    Spec *s;
    const char *variant;
    Engine *e;
    uint64_t seed;
} Trial;

static gdr_status run_case(const Trial *t, const Case *c, int rotate, const Change *change,
                           Problem *p, Outcome *o) {
    case_problem(t->d, t->arena, t->s, t->variant, c, t->seed, rotate, change, p);
    return p->k ? engine_run(t->d, p, t->e, t->arena, o) : GDR_ESPEC;
}

/* Bytes of one token (all heads) of an output. */
static size_t row_bytes(const Tensor *out) {
    int64_t rows = out->shape[0] * out->shape[1];
    return rows ? out->bytes / (size_t)rows : 0;
}

static bool same_rows(const Tensor *a, int64_t at, const Tensor *b, int64_t from, int64_t rows) {
    size_t row = row_bytes(a);
    return !memcmp((char *)a->data + (size_t)at * row, (char *)b->data + (size_t)from * row,
                   (size_t)rows * row);
}

/* Whether sequence n of `a` and m of `b` agree in their first `tokens` outputs, all and the state
 * when tokens < 0. */
static bool same_sequence(const Problem *pa, const Outcome *a, int64_t n, const Problem *pb,
                          const Outcome *b, int64_t m, int64_t tokens) {
    int64_t at, from, length, other;
    problem_sequence(pa, n, &at, &length);
    problem_sequence(pb, m, &from, &other);
    if (length != other)
        return false;
    for (int i = 0; i < problem_results(pa); i++)
        if (!problem_result(pa, i)->is_param &&
            !same_rows(&a->out[i], at, &b->out[i], from, tokens < 0 ? length : tokens))
            return false;
    size_t state = a->S.bytes / (size_t)pa->N;
    return tokens >= 0 || !memcmp((char *)a->S.data + (size_t)n * state,
                                  (char *)b->S.data + (size_t)m * state, state);
}

static gdr_status check_repeat(const Trial *t, const Case *c, bool *ok) {
    Problem p;
    Outcome a, b;
    gdr_status status = run_case(t, c, 0, NULL, &p, &a);
    if (!status)
        status = engine_run(t->d, &p, t->e, t->arena, &b);
    for (int64_t n = 0; !status && *ok && n < p.N; n++)
        *ok = same_sequence(&p, &a, n, &p, &b, n, -1);
    for (int i = 0; !status && *ok && i < problem_results(&p); i++)
        *ok = !memcmp(a.out[i].data, b.out[i].data, a.out[i].bytes); /* params as well */
    return status;
}

/* Gradients of tokens from t on do not see what comes from outside before t. On a GPU that holds bit by
 * bit for the chunks behind t's: its operands are f16, divided by powers of two that a chunk's tokens
 * have in common. */
static int64_t anticausal_from(const Trial *t, int64_t before) {
    gdr_facts facts;
    gdr_kernel_facts(t->e->kernel, &facts);
    if (t->e->device == DEVICE_cpu || !facts.chunk)
        return before;
    return (before + facts.chunk - 1) / facts.chunk * facts.chunk;
}

static gdr_status check_anticausality(const Trial *t, const Case *c, bool *ok) {
    static const int64_t before[] = {1, 17, 64, 100, 129};
    Problem pa, pb;
    Outcome a, b;
    gdr_status status = run_case(t, c, 0, NULL, &pa, &a);
    for (size_t i = 0; !status && *ok && i < sizeof before / sizeof *before; i++) {
        Change change = {.any = true, .from = before[i], .upstream = true};
        status = run_case(t, c, 0, &change, &pb, &b);
        int64_t from = anticausal_from(t, before[i]);
        for (int j = 0; !status && *ok && j < problem_results(&pa) && from < c->T; j++)
            *ok = problem_result(&pa, j)->is_param ||
                  same_rows(&a.out[j], from, &b.out[j], from, c->T - from);
    }
    return status;
}

static gdr_status check_causality(const Trial *t, const Case *c, bool *ok) {
    static const int64_t from[] = {0, 1, 17, 64, 100};
    Problem pa, pb;
    Outcome a, b;
    gdr_status status = run_case(t, c, 0, NULL, &pa, &a);
    for (size_t i = 0; !status && *ok && i < sizeof from / sizeof *from && from[i] < c->T; i++) {
        Change change = {.any = true, .from = from[i]};
        status = run_case(t, c, 0, &change, &pb, &b);
        *ok = !status && same_sequence(&pa, &a, 0, &pb, &b, 0, from[i]);
    }
    return status;
}

static gdr_status check_place(const Trial *t, const Case *c, bool *ok) {
    Problem pa, pb;
    Outcome a, b;
    gdr_status status = run_case(t, c, 0, NULL, &pa, &a);
    if (!status)
        status = run_case(t, c, 1, NULL, &pb, &b);
    for (int64_t n = 0; !status && *ok && n < pa.N; n++)
        *ok = same_sequence(&pa, &a, (n + 1) % pa.N, &pb, &b, n, -1);
    return status;
}

/* Sequence 4 is drawn anew; all others must stay. */
static gdr_status check_pack(const Trial *t, const Case *c, bool *ok) {
    Problem pa, pb;
    Outcome a, b;
    Change change = {.any = true, .sequence = 4};
    gdr_status status = run_case(t, c, 0, NULL, &pa, &a);
    if (!status)
        status = run_case(t, c, 0, &change, &pb, &b);
    for (int64_t n = 0; !status && *ok && n < pa.N; n++)
        if (n != change.sequence)
            *ok = same_sequence(&pa, &a, n, &pb, &b, n, -1);
    return status;
}

static gdr_status check_spare(const Trial *t, const Case *c, bool *ok) {
    Problem p;
    Outcome o;
    gdr_status status = run_case(t, c, 0, NULL, &p, &o);
    for (int i = 0; !status && *ok && i < problem_results(&p); i++)
        *ok = problem_result(&p, i)->is_param || spare_rows_untouched(&p, &o.out[i]);
    return status;
}

static bool same_outcome(const Problem *p, const Outcome *a, const Outcome *b) {
    bool same = !memcmp(a->S.data, b->S.data, a->S.bytes);
    for (int i = 0; same && i < problem_results(p); i++)
        same = !memcmp(a->out[i].data, b->out[i].data, a->out[i].bytes);
    return same;
}

static gdr_status check_pieces(const Trial *t, const Case *c, bool *ok) {
    Problem p;
    Outcome a, b;
    Engine little = *t->e;
    gdr_status status = run_case(t, c, 0, NULL, &p, &a);
    for (int i = 0; !status && *ok && i < 2; i++) {
        little.memory = i ? MEMORY_half : MEMORY_least;
        status = engine_run(t->d, &p, &little, t->arena, &b);
        *ok = !status && same_outcome(&p, &a, &b);
    }
    return status;
}

/* Enough tokens that there are saved states. */
static Case longer(const Case *c) {
    Case x = *c;
    x.B = 1;
    x.T = c->sequences ? 0 : 2600;
    for (int i = 0; i < c->sequences; i++)
        x.length[i] *= 10;
    return x;
}

/* With little memory the forward pass saves in pieces, and those of the backward pass begin where states were
 * saved; with enough for one piece the chain begins at all of them. */
static gdr_status check_saving(const Trial *t, const Case *c, gdr_save save, bool *ok) {
    Problem p, first;
    Outcome a, b;
    Case x = longer(c);
    Engine back = *t->e, forward = *t->e;
    forward.save = save;
    gdr_status status = run_case(t, &x, 0, NULL, &p, &a);
    if (status)
        return status;
    first = p;
    first.grad = false;
    status = engine_open(t->d, &first, &forward);
    if (status)
        return status;
    gdr_facts saves, uses;
    gdr_kernel_facts(forward.kernel, &saves);
    gdr_kernel_facts(back.kernel, &uses);
    for (int i = 0; !status && *ok && i < 2 && saves.chunk == uses.chunk; i++) { /* else no use for it */
        back.memory = forward.memory = i ? MEMORY_default : MEMORY_least;
        status = device_run_training(t->d, &p, &forward, &back, t->arena, &b);
        *ok = !status && same_outcome(&p, &a, &b);
    }
    engine_close(&forward);
    return status;
}

static gdr_status check_saved_states(const Trial *t, const Case *c, bool *ok) {
    return check_saving(t, c, GDR_SAVE_STATES, ok);
}

static gdr_status check_saved_all(const Trial *t, const Case *c, bool *ok) {
    return check_saving(t, c, GDR_SAVE_ALL, ok);
}

gdr_status property_check(Driver *d, Spec *s, const char *variant, const Case *c, Engine *e,
                          const char **broken) {
    static const struct {
        const char *name;
        gdr_status (*check)(const Trial *t, const Case *c, bool *ok);
        bool packed, forward, backward, cpu;
    } property[] = {
        {"repeat", check_repeat, false, true, true, true},
        {"causality", check_causality, false, true, false, true},
        {"anticausality", check_anticausality, false, false, true, true},
        {"place in the batch", check_place, false, true, true, true},
        {"place in the pack", check_place, true, true, true, true},
        {"neighbours in the pack", check_pack, true, true, true, true},
        {"spare rows", check_spare, true, true, true, true},
        {"pieces", check_pieces, false, true, true, false},
        {"pieces of a pack", check_pieces, true, true, true, false},
        {"saved states", check_saved_states, false, false, true, false},
        {"saved states of a pack", check_saved_states, true, false, true, false},
        {"all saved", check_saved_all, false, false, true, false},
    };
    Case dense = *c, pack = *c;
    dense.B = 3;
    dense.T = 130;
    dense.sequences = 0;
    dense.S0 = pack.S0 = true;
    pack.B = 1;
    pack.T = 0;
    pack.sequences = 7;
    pack.spare = 5;
    memcpy(pack.length, (int64_t[7]){5, 0, 64, 1, 70, 33, 17}, 7 * sizeof(int64_t));
    *broken = NULL;
    for (size_t i = 0; i < sizeof property / sizeof *property; i++) {
        Arena arena;
        bool ok = true;
        if (!(c->grad ? property[i].backward : property[i].forward) ||
            !(property[i].cpu || e->device == DEVICE_cuda))
            continue;
        arena_init(&arena, d->arena.oom);
        Trial t = {d, &arena, s, variant, e, d->opt.seed};
        gdr_status status = property[i].check(&t, property[i].packed ? &pack : &dense, &ok);
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
