/* GPU kernels run on this machine, instruction by instruction (tests/simt), for every spec: what
 * factor and chain, or the recurrent kernel, compute against the fp64 meaning of the spec, by the
 * metric of docs/testing. Nothing may be read that was not written, and no place outside of
 * tensors.
 *
 *   GDR_SEED=N     other random inputs (the seed is printed)
 *   GDR_SPEC=NAME  this spec alone
 *   GDR_VERBOSE=1  the errors of everything that ran
 */
#include "tests/unit/nvptx_run.h"


static bool wanted(const char *spec) {
    const char *only = getenv("GDR_SPEC");
    return !only || strcmp(only, spec) == 0;
}

/* launches ------------------------------------------------------------------------------------- */

/* The first few say the most. */
static const Launch launches[] = {
    {.H = 2, .N = 1, .T = 65, .start = true, .final = true, .gate = NAN},
    {.H = 2,
     .N = 4,
     .length = {15, 0, 65, 17},
     .cu_width = 8,
     .start = true,
     .final = true,
     .gate = NAN,
     .resets = .05},
    {.H = 2, .N = 2, .T = 1, .final = true, .gate = NAN},
    {.H = 2, .N = 1, .T = 130, .start = true, .final = true, .gate = NAN, .resets = .1},
    {.H = 3, .N = 3, .length = {0, 130, 1}, .cu_width = 4, .final = true, .gate = -.05},
    {.H = 1, .N = 1, .T = 63, .start = true, .gate = 0},
    {.H = 1, .N = 1, .T = 64, .final = true, .gate = -1e-6},
};
enum { LAUNCHES = sizeof launches / sizeof launches[0], FEW_LAUNCHES = 3 };

static const Elem elems[] = {ELEM_bf16, ELEM_f32, ELEM_f16};

static const struct { int K, V; } sizes[] = {{64, 64}, {32, 32}, {40, 24}, {64, 100}, {100, 64}};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static const char *const targets[] = {"sm_80", "sm_90a"};

/* Every spec with every type of inputs, each at one size and on one target, or at all on all. What
 * part of them there is code for. */
static double run_all(Algo algo) {
    bool all = getenv("GDR_ALL") != NULL;
    int ran = 0, tried = 0, n_launches = all || algo == ALGO_chunk ? LAUNCHES : FEW_LAUNCHES;
    char specs[SPECS_MAX][SPEC_NAME];
    int count = spec_names(specs);
    for (int i = 0; i < count; i++)
        for (int e = 0; e < 3; e++)
            for (int n = 0; n < SIZES; n++)
                for (int t = 0; t < 2; t++)
                    if (wanted(specs[i]) &&
                        (all || (n == (i + 2 * e) % SIZES && t == (i + e) % 2))) {
                        Build b = {specs[i], sizes[n].K, sizes[n].V, elems[e], algo, targets[t], NULL};
                        ran += run_build(&b, launches, n_launches);
                        tried++;
                    }
    return tried ? (double)ran / tried : 1;
}

static void test_chunks(void **state) {
    (void)state;
    assert_true(run_all(ALGO_chunk) > (getenv("GDR_SPEC") ? -1 : .7));
}

static void test_tokens(void **state) {
    (void)state;
    assert_true(run_all(ALGO_recurrent) == 1);
}

/* Wide tiles, which two warpgroups share; shorter chunks, since longer ones do not fit. */
static void test_large(void **state) {
    (void)state;
    static const Build build[] = {
        {"gdn2", 128, 128, ELEM_bf16, ALGO_chunk, "sm_90a", NULL},
        {"gated_deltanet", 128, 128, ELEM_bf16, ALGO_chunk, "sm_90a", NULL},
        {"kda", 128, 128, ELEM_f16, ALGO_chunk, "sm_80", NULL},
        {"gated_deltanet", 256, 64, ELEM_f32, ALGO_chunk, "sm_80", NULL},
        {"gdn2", 256, 40, ELEM_bf16, ALGO_chunk, "sm_90a", NULL},
    };
    for (size_t i = 0; i < sizeof build / sizeof build[0]; i++)
        if (wanted(build[i].spec))
            assert_true(run_build(&build[i], launches, 1));
}

/* Keys that are nearly one another make the chunk's system as far from the identity as it gets;
 * channels that forget at once beside such that never do leave no common scale. */
static void test_hard(void **state) {
    (void)state;
    static const char *const spec[] = {"deltanet",           "gated_deltanet", "kda",  "gdn2",
                                       "gated_deltaproduct", "comba",          "rwkv7"};
    static const Launch launch[] = {
        {.H = 2, .N = 1, .T = 130, .start = true, .final = true, .gate = NAN, .keys = .9},
        {.H = 2, .N = 1, .T = 65, .start = true, .final = true, .gate = -.01, .keys = .99},
        {.H = 2, .N = 1, .T = 65, .final = true, .gate = -.5, .keys = 1},
        {.H = 2, .N = 1, .T = 130, .start = true, .final = true, .steep = true, .keys = .5},
    };
    for (size_t i = 0; i < sizeof spec / sizeof spec[0]; i++) {
        Build b = {spec[i], 64, 64, elems[i % 3], ALGO_chunk, targets[i % 2], NULL};
        if (wanted(spec[i]))
            assert_true(run_build(&b, launch, 4));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_hard),
    };
    print_message("GDR_SEED=%llu\n", (unsigned long long)first_seed());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
