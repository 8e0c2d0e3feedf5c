/* Every pass preserves meaning: a kernel evaluates to the same outputs and final state before and
 * after each pass, for every spec, for recurrences built by hand and for random ones, over lengths
 * around the chunk and over gates from 0 to resets. GDR_SEED=n replays the random case printed as
 * seed n. */
#include "frontend/frontend.h"
#include "tests/prop/recurrences.h"

#include <glob.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

enum { RANDOM_CASES = 300, REGIMES = 6 };

static void fail_case(const Kernel *k, const char *pass, uint64_t seed, int64_t T, int regime,
                      const char *what) {
    Buf text;
    buf_init(&text, k->arena);
    kernel_print(k, &text);
    fail_msg("after %s: %s (GDR_SEED=%llu T=%lld regime=%d)\n%s", pass, what,
             (unsigned long long)seed, (long long)T, regime, text.text);
}

/* Relative to the largest value seen: both sides are fp64, sums differ in order only. */
static void compare(const Kernel *k, const char *pass, uint64_t seed, int64_t T, int regime,
                    const double *want, const double *got, int64_t n) {
    double scale = 1e-12, worst = 0;
    for (int64_t i = 0; i < n; i++)
        scale = fmax(scale, fabs(want[i]));
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(want[i]) || !isfinite(got[i]))
            fail_case(k, pass, seed, T, regime, "not finite");
        worst = fmax(worst, fabs(want[i] - got[i]));
    }
    char what[64];
    snprintf(what, sizeof what, "off by %g of %g", worst, scale);
    if (worst > 1e-9 * scale)
        fail_case(k, pass, seed, T, regime, what);
}

enum { LENGTHS = 6 };

/* The lengths around a chunk that tell: none, one, C-1, C, C+1, several chunks and a rest. */
static void lengths(const Kernel *original, int chunk_rows, int64_t T[LENGTHS]) {
    Kernel *k = kernel_clone(original);
    pass_normal(k);
    kernel_set_chunk(k, chunk_rows);
    int64_t C = k->axis.at[AXIS_C].size;
    const int64_t all[LENGTHS] = {0, 1, C - 1, C, C + 1, 3 * C + 5};
    memcpy(T, all, sizeof all);
}

/* Run every pass over a copy of `original`, comparing after each. Returns whether it got to tiles. */
static bool check_kernel(Arena *a, const Kernel *original, uint64_t seed, int chunk_rows) {
    Rng r = {seed ^ 0x5eed};
    Data data[LENGTHS];
    double *want[LENGTHS];
    int64_t T[LENGTHS], n;
    int regime = (int)(seed % REGIMES);
    lengths(original, chunk_rows, T);
    for (int c = 0; c < LENGTHS; c++) {
        data[c] = data_fill(a, original, &r, T[c], regime);
        want[c] = data_run(a, original, &data[c], &n);
    }
    Kernel *k = kernel_clone(original);
    for (int p = 0; p < pass_count; p++) {
        if (pass_info[p].from != pass_info[p].to && k->level == LEVEL_recurrence) {
            if (!k->facts.chunkable)
                return false;
            kernel_set_chunk(k, chunk_rows);
        }
        pass_info[p].run(k);
        const char *why = kernel_verify(k);
        if (why)
            fail_case(k, pass_info[p].name, seed, 0, regime, why);
        for (int c = 0; c < LENGTHS; c++) {
            double *got = data_run(a, k, &data[c], &n);
            compare(k, pass_info[p].name, seed, T[c], regime, want[c], got, n);
        }
    }
    return k->level == LEVEL_tile;
}

static uint64_t replay_seed(void) {
    const char *s = getenv("GDR_SEED");
    return s ? strtoull(s, NULL, 10) : 0;
}

static void test_named(void **state) {
    (void)state;
    for (int which = 0;; which++) {
        Arena a;
        Interner names;
        arena_init(&a, NULL);
        intern_init(&names, &a);
        Kernel *k = named_kernel(&a, &names, which, 6, 4);
        if (!k) {
            arena_free(&a);
            return;
        }
        for (uint64_t regime = 0; regime < REGIMES; regime++)
            for (int rows = 1; rows <= 16; rows *= 4)
                assert_true(check_kernel(&a, k, regime, rows));
        arena_free(&a);
    }
}

static void test_random(void **state) {
    (void)state;
    int tiles = 0, cases = 0;
    uint64_t only = replay_seed();
    for (uint64_t seed = only ? only : 1; seed <= (only ? only : RANDOM_CASES); seed++, cases++) {
        Arena a;
        Interner names;
        Rng r = {seed};
        arena_init(&a, NULL);
        intern_init(&names, &a);
        Kernel *k = random_kernel(&a, &names, &r);
        tiles += check_kernel(&a, k, seed, 1 + rng_below(&r, 12));
        arena_free(&a);
    }
    print_message("%d of %d random kernels reached the tile level\n", tiles, cases);
    assert_int_equal(tiles, cases);
}

static void check_spec(const char *path) {
    Arena a;
    Interner names;
    Diag d;
    arena_init(&a, NULL);
    intern_init(&names, &a);
    const Source *source = source_from_file(&a, path);
    assert_non_null(source);
    diag_init(&d, &a, source);
    SpecFile *f = spec_parse(&a, &names, source, &d);
    assert_true(spec_check(f, &d));
    const SpecDim dim[] = {{"K", 6}, {"V", 5}};
    const SpecBind bind = {dim, 2};
    for (int v = 0; v < f->variant.count; v++) {
        Kernel *k = spec_lower(&a, &names, f, f->variant.at[v]->name, &bind, &d);
        assert_non_null(k);
        for (uint64_t regime = 0; regime < REGIMES; regime++)
            check_kernel(&a, k, regime, 8);
    }
    arena_free(&a);
}

static void test_specs(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++)
        check_spec(files.gl_pathv[i]);
    globfree(&files);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_named),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
