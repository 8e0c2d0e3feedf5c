/* The command line: what each call takes, how values are read, what is refused; and the conversions
 * and measures that the command judges results with. */
#include "driver/driver.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const Command *call(const char *name) {
    for (int i = 0; i < command_count; i++)
        if (!strcmp(command_list[i].name, name))
            return &command_list[i];
    return NULL;
}

enum { ARGS_MAX = 8 };

static int parse(Driver *d, const char *command, const char *const *args) {
    char *argv[ARGS_MAX];
    int argc = 0;
    memset(d, 0, sizeof *d);
    while (argc < ARGS_MAX && args[argc]) {
        argv[argc] = (char *)(uintptr_t)args[argc];
        argc++;
    }
    return options_parse(d, call(command), argc, argv);
}

static void values_are_read(void **state) {
    (void)state;
    Driver d;
    const char *const run[] = {"a.gdr", "--in=x", "--out", "y", "--device", "cuda", "--dim", NULL};
    assert_int_equal(parse(&d, "run", run), EXIT_usage); /* --dim without a value */
    arena_free(&d.arena);
    const char *const good[] = {"--dim",   "K=64", "--dim=V=32", "--algo=recurrent",
                                "--chunk", "16",   "a.gdr",      "--dtype=bf16"};
    char *argv[8];
    memcpy(argv, good, sizeof argv);
    memset(&d, 0, sizeof d);
    assert_int_equal(options_parse(&d, call("run"), 8, argv), 0);
    assert_int_equal(d.opt.dim.count, 2);
    assert_string_equal(d.opt.dim.at[1].name, "V");
    assert_int_equal(d.opt.dim.at[1].size, 32);
    assert_int_equal(d.opt.method, METHOD_recurrent);
    assert_int_equal(d.opt.chunk, 16);
    assert_true(d.opt.has_dtype && d.opt.dtype == GDR_BF16);
    assert_string_equal(d.opt.file.at[0], "a.gdr");
    arena_free(&d.arena);
    const char *const bench[] = {"a", "--shape", "1,8192,96", "--shape=1,8192,64,16", NULL};
    assert_int_equal(parse(&d, "bench", bench), 0);
    assert_int_equal(d.opt.shape.at[0].key_heads, 96);
    assert_int_equal(d.opt.shape.at[1].key_heads, 16);
    arena_free(&d.arena);
    const char *const dashes[] = {"--", "--check", NULL};
    assert_int_equal(parse(&d, "check", dashes), 0);
    assert_string_equal(d.opt.file.at[0], "--check");
    arena_free(&d.arena);
    const char *const letter[] = {"-odir", "a", NULL};
    assert_int_equal(parse(&d, "compile", letter), 0);
    assert_string_equal(d.opt.dir, "dir");
    arena_free(&d.arena);
}

static void mistakes_are_usage_errors(void **state) {
    (void)state;
    const struct {
        const char *command;
        const char *args[4];
    } c[] = {
        {"check", {NULL}},
        {"run", {"a", "b", NULL}},
        {"check", {"a", "--nonsense", NULL}},
        {"check", {"a", "--device", "cpu", NULL}}, /* no option of this call */
        {"run", {"a", "--device=tpu", NULL}},
        {"run", {"a", "--device=", NULL}},
        {"run", {"a", "--dim", "K", NULL}},
        {"run", {"a", "--dim", "=4", NULL}},
        {"run", {"a", "--dim", "K=0", NULL}},
        {"run", {"a", "--dim", "K=4x", NULL}},
        {"run", {"a", "--dim", "K=99999999999999999999", NULL}},
        {"run", {"a", "--chunk", "0", NULL}},
        {"run", {"a", "--chunk", "257", NULL}},
        {"run", {"a", "--dtype", "f64", NULL}},
        {"run", {"a", "--no-cache=1", NULL}},
        {"run", {"a", "--dump-after", "nopass", NULL}},
        {"verify", {"a", "--seed", "-1", NULL}},
        {"bench", {"a", "--shape", "1,2", NULL}},
        {"bench", {"a", "--shape", "1,2,3,4,5", NULL}},
        {"bench", {"a", "--shape", "1,0,3", NULL}},
        {"bench", {"a", "--shape", "1,2,x", NULL}},
        {"fmt", {"a", "-x", NULL}},
        {"fmt", {"a", "--i", NULL}},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        Driver d;
        if (parse(&d, c[i].command, c[i].args) != EXIT_usage)
            fail_msg("case %zu of %s was taken", i, c[i].command);
        arena_free(&d.arena);
    }
}

static void every_call_has_help_with_an_example(void **state) {
    (void)state;
    for (int i = 0; i < command_count; i++) {
        Arena a;
        Buf text;
        arena_init(&a, NULL);
        buf_init(&text, &a);
        options_help(&command_list[i], &text);
        assert_non_null(strstr(text.text, "usage: gdrc "));
        assert_non_null(strstr(text.text, "\nexample: gdrc "));
        assert_non_null(strstr(text.text, "--help"));
        arena_free(&a);
    }
}

static void numbers_round_to_nearest_even(void **state) {
    (void)state;
    const struct {
        double x;
        uint16_t f16, bf16;
    } c[] = {
        {0, 0, 0},
        {-0.0, 0x8000, 0x8000},
        {1, 0x3c00, 0x3f80},
        {-2, 0xc000, 0xc000},
        {65504, 0x7bff, 0x4780},
        {65519.99, 0x7bff, 0x4780},
        {65520, 0x7c00, 0x4780},
        {INFINITY, 0x7c00, 0x7f80},
        {0x1p-24, 1, 0x3380},
        {0x1p-25, 0, 0x3300}, /* a tie goes to even */
        {0x1.8p-24, 2, 0x33c0},
        {0x1.ffcp-15, 0x0400, 0x3880}, /* rounds up into the first normal */
        {1 + 0x1p-11, 0x3c00, 0x3f80},
        {1 + 0x1.8p-10, 0x3c02, 0x3f80},
        {1 + 0x1p-8, 0x3c04, 0x3f80},
        {1 + 0x1.8p-7, 0x3c0c, 0x3f82},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        uint16_t h, b;
        scalar_put(GDR_F16, &h, 0, c[i].x);
        scalar_put(GDR_BF16, &b, 0, c[i].x);
        if (h != c[i].f16 || b != c[i].bf16)
            fail_msg("%g: f16 %#x, bf16 %#x", c[i].x, h, b);
    }
    for (unsigned bits = 0; bits < 0x10000; bits++) { /* every number comes back as itself */
        uint16_t in = (uint16_t)bits, out;
        for (gdr_dtype type = GDR_BF16; type <= GDR_F16; type++) {
            double x = scalar_get(type, &in, 0);
            if (isnan(x))
                continue;
            scalar_put(type, &out, 0, x);
            assert_int_equal(out, in);
        }
    }
}

static void distances_see_one_bad_head(void **state) {
    (void)state;
    enum { N = 2, T = 3, H = 4, V = 8 };
    static double ref[N * T * H * V], x[N * T * H * V];
    Tensor r = {.name = "o",
                .dtype = GDR_F64,
                .ndim = 4,
                .shape = {N, T, H, V},
                .data = ref,
                .bytes = sizeof ref};
    Tensor have = r;
    have.data = x;
    Problem p = {.B = N, .N = N, .T = T, .H = H};
    for (int i = 0; i < N * T * H * V; i++)
        x[i] = ref[i] = 1 + i % 3;
    Distance d = measure_out(&p, &r, NULL, &have);
    assert_true(d.finite && d.whole == 0 && distance_ok(&d, 0.005));
    x[(1 * T + 2) * H * V + 1 * V] += 0.3; /* sequence 1, token 2, head 1 */
    d = measure_out(&p, &r, NULL, &have);
    assert_true(d.head > 1.9 * d.whole && d.head < 2.1 * d.whole);
    assert_true(d.sequence > 1.3 * d.whole && d.sequence < 1.5 * d.whole);
    assert_false(distance_ok(&d, d.whole / 1.01));
    assert_true(distance_ok(&d, d.whole * 1.01));
    assert_false(
        distance_ok(&(Distance){.whole = 1e-3, .head = 0.02, .max_abs = 1, .finite = true}, 0.005));
    x[0] = NAN;
    d = measure_out(&p, &r, NULL, &have);
    assert_false(distance_ok(&d, 1e9));
    x[0] = ref[0] + 1e-7;
    x[(1 * T + 2) * H * V + 1 * V] = ref[(1 * T + 2) * H * V + 1 * V];
    d = measure_out(&p, &r, NULL, &have);
    assert_true(distance_ok(&d, 1e-12)); /* within 1e-6 at once */
}

/* Three heads of a gradient: 1, 1, and one that is `size` and off by `off`; nearby its reference moves by
 * `moved`. */
static bool small_head_passes(double size, double off, double moved) {
    enum { T = 4, H = 3, V = 5, COUNT = T * H * V };
    static double ref[COUNT], x[COUNT], near[NEARBY][COUNT];
    Tensor r = {.dtype = GDR_F64, .ndim = 4, .shape = {1, T, H, V}, .data = ref, .bytes = sizeof ref};
    Tensor have = r, beside[NEARBY];
    const Tensor *list[NEARBY];
    have.data = x;
    for (int n = 0; n < NEARBY; n++) {
        beside[n] = r;
        beside[n].data = near[n];
        list[n] = &beside[n];
    }
    for (int i = 0; i < COUNT; i++) {
        bool small = i / V % H == 2;
        ref[i] = small ? size : 1;
        x[i] = ref[i] + (small ? off : 0);
        for (int n = 0; n < NEARBY; n++)
            near[n][i] = ref[i] + (small ? moved : 0);
    }
    Problem p = {.B = 1, .N = 1, .T = T, .H = H};
    Distance d = measure_out(&p, &r, list, &have);
    return distance_ok(&d, 0.01);
}

static void gradients_are_no_better_than_their_reference(void **state) {
    (void)state;
    assert_false(small_head_passes(.01, .001, 0));
    assert_true(small_head_passes(.01, .001, .0002)); /* a rest of large terms */
    assert_false(small_head_passes(.01, .001, .0001));
    assert_false(small_head_passes(.01, .01, .001)); /* not there at all */
    assert_true(small_head_passes(1e-5, 1e-5, 0));   /* 3 * .01 * 2^-11 is 1.5e-5 */
    assert_false(small_head_passes(1e-5, 2e-5, 0));
    assert_false(small_head_passes(0, 1e-3, 0));
    assert_false(small_head_passes(1, NAN, 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_read),
        cmocka_unit_test(mistakes_are_usage_errors),
        cmocka_unit_test(every_call_has_help_with_an_example),
        cmocka_unit_test(numbers_round_to_nearest_even),
        cmocka_unit_test(distances_see_one_bad_head),
        cmocka_unit_test(gradients_are_no_better_than_their_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
