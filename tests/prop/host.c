/* Random recurrences as machine code of the host, both algorithms, against the fp64 evaluator: any
 * order of decays, reads, updates and outs, looks along time, lengths around the chunk, gates from
 * 0 to resets. GDR_SEED=n replays the case printed as seed n. */
#include "codegen/codegen.h"
#include "runtime/runtime.h"
#include "tests/prop/recurrences.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

enum { CASES = 120, REGIMES = 6, LENGTHS = 5 };

typedef struct Code {
    HostCode *code;
    HostEntry *entry;
    void *scratch;
} Code;

static void fail_case(const Kernel *k, uint64_t seed, const char *what) {
    Buf text;
    buf_init(&text, k->arena);
    kernel_print(k, &text);
    fail_msg("%s (GDR_SEED=%llu)\n%s", what, (unsigned long long)seed, text.text);
}

static Code compile(const Kernel *k, uint64_t seed, Algo algo) {
    const CgOptions opt = {.target = "host", .algo = algo, .opt_level = 1 + (int)(seed % 2)};
    const char *why = NULL;
    char text[256];
    CgModule *m = codegen_host(k->arena, k, &opt, &why);
    if (!m)
        fail_case(k, seed, why);
    Code c = {.code = hostjit_load(m->object, m->object_len, text, sizeof text)};
    if (!c.code)
        fail_case(k, seed, text);
    c.entry = hostjit_symbol(c.code, m->entry.at[0].symbol);
    assert_non_null(c.entry);
    size_t size = (size_t)(m->entry.at[0].scratch_bytes + 63) / 64 * 64;
    c.scratch = aligned_alloc(64, size);
    assert_non_null(c.scratch);
    memset(c.scratch, 0xff, size);
    return c;
}

static void close_code(Code *c) {
    hostjit_free(c->code);
    free(c->scratch);
}

/* fp64 data as f32 tensors; the data is rounded to what the tensors hold. */
static float *narrow(Arena *a, double *x, int64_t n) {
    float *y = NEW_ARRAY(a, float, n + 1);
    for (int64_t i = 0; i < n; i++)
        x[i] = y[i] = (float)x[i];
    return y;
}

static void check_values(const Kernel *k, uint64_t seed, const double *want, const float *got,
                         int64_t n, const char *name) {
    double scale = 1e-3, worst = 0;
    for (int64_t i = 0; i < n; i++)
        scale = fmax(scale, fabs(want[i]));
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(want[i]) || !isfinite(got[i]))
            fail_case(k, seed, "not finite");
        worst = fmax(worst, fabs(want[i] - got[i]));
    }
    char what[128];
    snprintf(what, sizeof what, "%s is off by %g of %g", name, worst, scale);
    if (worst > 1e-4 * scale)
        fail_case(k, seed, what);
}

static void check_run(Arena *a, const Kernel *token, const Kernel *k, Code *c, uint64_t seed,
                      Rng *r, int64_t T) {
    Data d = data_fill(a, token, r, T, (int)(seed % REGIMES));
    int64_t *frame = NEW_ARRAY(a, int64_t, frame_fields(k)), total;
    int64_t states = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
    float *s = NEW_ARRAY(a, float, states), *out[16];
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t n = shape_elements(k, p->shape) * (p->is_param ? 1 : T);
        double *x = (double *)(uintptr_t)d.args.in[i];
        frame[frame_in_ptr(k, i)] = (int64_t)(intptr_t)narrow(a, x, n);
        frame[frame_in_heads(k, i)] = 1;
    }
    assert_true(k->out.count <= 16);
    for (int o = 0; o < k->out.count; o++) {
        out[o] = NEW_ARRAY(a, float, d.out_size[o] + 1);
        frame[frame_out_ptr(k, o)] = (int64_t)(intptr_t)out[o];
    }
    frame[FRAME_T] = T;
    frame[FRAME_N] = frame[FRAME_H] = 1;
    frame[FRAME_S0] = (int64_t)(intptr_t)narrow(a, d.state0, states);
    frame[FRAME_S] = (int64_t)(intptr_t)s;
    c->entry(frame, 0, 1, c->scratch);
    const double *want = data_run(a, token, &d, &total);
    for (int o = 0; o < k->out.count; want += d.out_size[o++])
        check_values(k, seed, want, out[o], d.out_size[o], k->out.at[o].name);
    check_values(k, seed, want, s, states, "the state");
}

/* Returns whether there is a chunk form. */
static bool check_kernel(Arena *a, const Kernel *token, uint64_t seed, Rng *r) {
    Kernel *k = kernel_clone(token);
    passes_run(k, "lattice", NULL);
    bool chunkable = k->facts.chunkable;
    int64_t C = 4;
    for (Algo algo = ALGO_recurrent; algo == ALGO_recurrent || chunkable; algo = ALGO_chunk) {
        if (algo == ALGO_chunk) {
            kernel_set_chunk(k, 1 + rng_below(r, 40));
            C = k->axis.at[AXIS_C].size;
            passes_run_after(k, "lattice", NULL, NULL);
        }
        const Kernel *what = algo == ALGO_chunk ? k : token;
        Code c = compile(what, seed, algo);
        const int64_t T[LENGTHS] = {0, 1, C, C + 1, 2 * C + 5};
        for (int n = 0; n < LENGTHS; n++)
            check_run(a, token, what, &c, seed, r, T[n]);
        close_code(&c);
        if (algo == ALGO_chunk)
            break;
    }
    return chunkable;
}

static void test_random(void **state) {
    (void)state;
    const char *replay = getenv("GDR_SEED");
    uint64_t only = replay ? strtoull(replay, NULL, 10) : 0;
    int chunks = 0, cases = 0;
    for (uint64_t seed = only ? only : 1; seed <= (only ? only : CASES); seed++, cases++) {
        Arena a;
        Interner names;
        Rng r = {seed};
        arena_init(&a, NULL);
        intern_init(&names, &a);
        Kernel *k = random_kernel(&a, &names, &r);
        if (rng_below(&r, 2)) {
            /* Longer ones, as even as they were: turn takes pairs. */
            k->axis.at[AXIS_K].size += 2 * rng_below(&r, 18);
            k->axis.at[AXIS_V].size += 2 * rng_below(&r, 18);
        }
        chunks += check_kernel(&a, k, seed, &r);
        arena_free(&a);
    }
    assert_true(only || chunks > cases / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
