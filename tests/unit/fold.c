/* Folding: what becomes of small kernels, what must stay, and that random kernels of both levels mean
 * the same afterwards, whatever their inputs. */
#include "ir_test.h"
#include "passes/passes.h"

typedef struct Case { const char *before, *after; } Case;

static const char header[] =
    "kernel t %s {\n  axis C = %d, R = %d, U = %d, K = 3, V = 2\n  in k : f32[K]\n  in v : f32[V]\n"
    "  in s : f32[]\n  in t : f32[]\n  out o : f32[]\n  out p : f32[K]\n  out r : f32[V]\n  state S\n"
    "%s}\n";

/* Outputs that a case does not give would be missing: the verifier is not asked here. */
static Kernel *make(World *w, int tokens, const char *body) {
    char text[2048];
    snprintf(text, sizeof text, header, tokens ? "chunk" : "recurrence", tokens, tokens, tokens, body);
    return parse(w, text);
}

static void check(int tokens, const Case *c, size_t n) {
    for (size_t i = 0; i < n; i++) {
        World *w = world_open();
        Kernel *k = make(w, tokens, c[i].before), *wanted = make(w, tokens, c[i].after);
        kernel_simplify(k);
        assert_string_equal(printed(w, k), printed(w, wanted));
        kernel_simplify(k);
        assert_string_equal(printed(w, k), printed(w, wanted));
        world_close(w);
    }
}

#define CHECK_CASES(tokens, list) check(tokens, list, sizeof(list) / sizeof *(list))

static void constants_are_computed(void **state) {
    (void)state;
    static const Case c[] = {
        {"%a = const 2\n %b = const 3\n %c = mul %a, %b\n %d = sub %c, %a\n out o = %d\n",
         "%a = const 4\n out o = %a\n"},
        {"%a = const 4\n %b = rsqrt %a\n %c = const -0.5\n %d = pow %a, %c\n %e = add %b, %d\n"
         " out o = %e\n", "%a = const 1\n out o = %a\n"},
        {"%a = const 1\n %z = const 0\n %b = div %a, %z\n out o = %b\n",
         "%a = const inf\n out o = %a\n"},
        {"%a = const -1\n %b = log %a\n out o = %b\n", "%a = const nan\n out o = %a\n"},
    };
    CHECK_CASES(0, c);
}

static void exact_identities(void **state) {
    (void)state;
    static const Case c[] = {
        {"%s = in s\n %1 = const 1\n %a = mul %s, %1\n %b = mul %1, %a\n %c = div %b, %1\n"
         " %d = pow %c, %1\n out o = %d\n", "%s = in s\n out o = %s\n"},
        {"%s = in s\n %0 = const 0\n %a = add %s, %0\n %b = add %0, %a\n %c = sub %b, %0\n"
         " out o = %c\n", "%s = in s\n out o = %s\n"},
        {"%s = in s\n %a = neg %s\n %b = neg %a\n %c = neg %b\n %d = neg %c\n out o = %d\n",
         "%s = in s\n out o = %s\n"},
        {"%s = in s\n %t = in t\n %n = neg %t\n %a = add %s, %n\n out o = %a\n",
         "%s = in s\n %t = in t\n %a = sub %s, %t\n out o = %a\n"},
        {"%s = in s\n %t = in t\n %n = neg %t\n %a = add %n, %s\n out o = %a\n",
         "%s = in s\n %t = in t\n %a = sub %s, %t\n out o = %a\n"},
        {"%s = in s\n %t = in t\n %n = neg %t\n %a = sub %s, %n\n out o = %a\n",
         "%s = in s\n %t = in t\n %a = add %s, %t\n out o = %a\n"},
        {"%s = in s\n %t = in t\n %n = neg %t\n %m = neg %s\n %a = mul %m, %n\n out o = %a\n",
         "%s = in s\n %t = in t\n %a = mul %s, %t\n out o = %a\n"},
        {"%s = in s\n %z = const 0\n %a = sub %z, %s\n out o = %a\n",
         "%s = in s\n %a = neg %s\n out o = %a\n"},
        {"%s = in s\n %m = const -1\n %a = mul %s, %m\n %b = div %a, %m\n out o = %b\n",
         "%s = in s\n out o = %s\n"},
        {"%s = in s\n %2 = const 2\n %a = pow %s, %2\n out o = %a\n",
         "%s = in s\n %a = mul %s, %s\n out o = %a\n"},
        {"%s = in s\n %m = const -1\n %a = pow %s, %m\n out o = %a\n",
         "%s = in s\n %1 = const 1\n %a = div %1, %s\n out o = %a\n"},
        {"%s = in s\n %1 = const 1\n %q = sqrt %s\n %a = div %1, %q\n out o = %a\n",
         "%s = in s\n %a = rsqrt %s\n out o = %a\n"},
        {"%s = in s\n %n = neg %s\n %a = abs %n\n %b = abs %a\n %c = relu %b\n %d = max %c, %c\n"
         " out o = %d\n", "%s = in s\n %a = abs %s\n out o = %a\n"},
        {"%s = in s\n %m = const -1\n %z = const 0\n %a = mul %m, %z\n %b = add %a, %s\n"
         " out o = %b\n", "%s = in s\n out o = %s\n"},
        {"%v = in v\n %a = turn %v over V\n %b = turn %a over V\n out r = %b\n",
         "%v = in v\n %n = neg %v\n out r = %n\n"},
    };
    CHECK_CASES(0, c);
}

/* x*0 is NaN for an infinite x; x-x and x/x likewise; a scalar is not a vector of the same number. */
static void what_must_stay(void **state) {
    (void)state;
    static const char *const body[] = {
        "%s = in s\n %z = const 0\n %a = mul %s, %z\n out o = %a\n",
        "%s = in s\n %a = sub %s, %s\n out o = %a\n",
        "%s = in s\n %a = div %s, %s\n out o = %a\n",
        "%s = in s\n %z = const 0\n %a = pow %s, %z\n out o = %a\n",
        "%s = in s\n %z = const 0\n %a = max %s, %z\n out o = %a\n",
        "%s = in s\n %a = sqrt %s\n %b = mul %a, %a\n out o = %b\n",
        "%s = in s\n %a = exp %s\n %b = log %a\n out o = %b\n",
        "%k = in k\n %z = const 0\n %a = mul %k, %z\n out p = %a\n",
        "%s = in s\n %a = turn %s over V\n %b = turn %a over V\n out r = %b\n", /* s is no vector */
        "%s = in s\n %t = in t\n %a = sub %s, %t\n %b = sub %t, %s\n %c = mul %a, %b\n out o = %c\n",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++)
        check(0, &(Case){body[i], body[i]}, 1);
}

static void equal_values_merge(void **state) {
    (void)state;
    static const Case c[] = {
        {"%s = in s\n %t = in t\n %s2 = in s\n %a = add %s, %t\n %b = add %t, %s2\n %c = mul %a, %b\n"
         " out o = %c\n", "%s = in s\n %t = in t\n %a = add %s, %t\n %c = mul %a, %a\n out o = %c\n"},
        {"%k = in k\n %a = exp %k\n %b = exp %k\n %c = sum %a over K\n %d = sum %b over K\n"
         " %e = div %c, %d\n out o = %e\n",
         "%k = in k\n %a = exp %k\n %c = sum %a over K\n %e = div %c, %c\n out o = %e\n"},
        {"%s = in s\n %a = prev %s\n %b = prev %s\n %c = cumsum %s\n %d = mul %a, %b\n"
         " %e = mul %d, %c\n out o = %e\n",
         "%s = in s\n %a = prev %s\n %c = cumsum %s\n %d = mul %a, %a\n %e = mul %c, %d\n"
         " out o = %e\n"},
    };
    check(0, c, 2);
    World *w = world_open();
    Kernel *k = make(w, 0, c[2].before);
    kernel_simplify(k);
    assert_int_equal(k->inst.count, 6); /* the order of a product's operands aside */
    world_close(w);
}

/* Values that differ in one field alone stay apart however full the table is. */
static void near_twins_do_not_merge(void **state) {
    (void)state;
    enum { ROWS = 300 };
    World *w = world_open();
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "t"));
    int n = kernel_axis(k, "n", ROWS), sum = -1;
    Port h = {.name = intern_z(&w->names, "h"), .shape = {1, {(int8_t)n}}, .lo = -INFINITY,
              .hi = INFINITY};
    VEC_PUSH(k->arena, &k->in, h);
    VEC_PUSH(k->arena, &k->out, ((Port){.name = intern_z(&w->names, "o")}));
    for (int i = 0; i < ROWS; i++) {
        int row = emit_in(k, 0, i, (Span){0, 0});
        sum = sum < 0 ? row : emit2(k, OP_add, sum, row, (Span){0, 0});
    }
    emit_out(k, 0, sum, (Span){0, 0});
    int count = k->inst.count;
    kernel_simplify(k);
    assert_int_equal(k->inst.count, count);
    world_close(w);

    w = world_open();
    Buf body;
    buf_init(&body, &w->arena);
    buf_puts(&body, "%k = in k\n %u = weave %k onto U\n %s0 = scores %k, %u place 1\n");
    for (int i = 1; i < ROWS; i++)
        buf_printf(&body, " %%g%d = scores %%k, %%u place %d\n %%s%d = add %%s%d, %%g%d\n", i, i + 1,
                   i, i - 1, i);
    buf_printf(&body, " %%q = contract %%s%d, %%u over U\n out p = %%q\n", ROWS - 1);
    char *text = NEW_ARRAY(&w->arena, char, body.len + sizeof header + 64);
    snprintf(text, body.len + sizeof header + 64, header, "chunk", 1, ROWS, ROWS, body.text);
    k = parse(w, text);
    count = k->inst.count;
    kernel_simplify(k);
    assert_int_equal(k->inst.count, count);
    world_close(w);
}

/* Two reads are one value until the state changes. */
static void reads_merge_between_changes(void **state) {
    (void)state;
    static const Case c[] = {
        {"%k = in k\n %a = read %k\n %b = read %k\n %c = add %a, %b\n out r = %c\n",
         "%k = in k\n %a = read %k\n %c = add %a, %a\n out r = %c\n"},
        {"%k = in k\n %s = in s\n %a = read %k\n decay %s\n %b = read %k\n %c = add %a, %b\n out r = %c\n",
         "%k = in k\n %s = in s\n %a = read %k\n decay %s\n %b = read %k\n %c = add %a, %b\n out r = %c\n"},
        {"%k = in k\n %v = in v\n %a = read %k\n update %k, %v\n %b = read %k\n %b2 = read %k\n"
         " %c = sub %a, %b\n %d = mul %c, %b2\n out r = %d\n",
         "%k = in k\n %v = in v\n %a = read %k\n update %k, %v\n %b = read %k\n"
         " %c = sub %a, %b\n %d = mul %b, %c\n out r = %d\n"},
        {"%k = in k\n %1 = const 1\n %a = read %k\n decay %1\n %b = read %k\n %c = add %a, %b\n"
         " out r = %c\n", "%k = in k\n %a = read %k\n %c = add %a, %a\n out r = %c\n"},
    };
    CHECK_CASES(0, c);
}

static void unused_values_go(void **state) {
    (void)state;
    static const Case recurrent[] = {
        {"%k = in k\n %v = in v\n %s = in s\n %d = exp %s\n %x = read %k\n decay %d\n update %k, %v\n"
         " out o = %s\n",
         "%k = in k\n %v = in v\n %s = in s\n %d = exp %s\n decay %d\n update %k, %v\n out o = %s\n"},
    };
    static const Case chunked[] = {
        {"%k = in k\n %s = in s\n %u = weave %k onto U\n %u2 = weave %k onto U\n"
         " %f = weave %k onto U fill 1\n %g = scores %k, %u, %f place 1\n"
         " %g2 = scores %k, %u2, %f place 1\n %g0 = scores %k, %u, none\n %q = contract %g, %u over U\n"
         " %q2 = contract %g2, %u over U\n %n = add %q, %q2\n out p = %n\n out o = %s\n"
         " %S = state\n %S2 = state\n %m = mul %S, %S2\n next %m\n",
         "%k = in k\n %s = in s\n %u = weave %k onto U\n %f = weave %k onto U fill 1\n"
         " %g = scores %k, %u, %f place 1\n %q = contract %g, %u over U\n %n = add %q, %q\n"
         " out p = %n\n out o = %s\n %S = state\n %m = mul %S, %S\n next %m\n"},
    };
    CHECK_CASES(0, recurrent);
    CHECK_CASES(4, chunked);
}

/* At tile level values differ by where they live, and algebra is over. */
static void tile_level_keeps_places(void **state) {
    (void)state;
    static const char body[] =
        "kernel t tile {\n  axis C = 2, R = 2, U = 2, K = 3, V = 2\n  in k : f32[K]\n"
        "  out p : f32[K]\n  state S\n  factor %0 = in k : [C,K]\n  factor keep bf16 %1 = in k : [C,K]\n"
        "  factor keep f16 %2 = in k : [C,K]\n  %3 = const 1\n  %4 = mul %0, %3 : [C,K]\n"
        "  %5 = mul %1, %4 : [C,K]\n  %6 = mul %2, %5 : [C,K]\n  chain out p = %6\n}\n";
    World *w = world_open();
    Kernel *k = parse(w, body);
    kernel_simplify(k);
    assert_string_equal(printed(w, k), body);
    world_close(w);
}

/* random kernels ------------------------------------------------------------------------------- */

enum { TOKENS = 7, PORTS = 6, OUTS = 2 };

typedef struct Run { double *in[PORTS], *out[OUTS], state[6]; } Run;

static Run run_new(World *w, const Kernel *k, uint64_t seed) {
    static const double special[] = {INFINITY, -INFINITY, NAN, 1e308, -1e-308, 0};
    Run r;
    Rng g = {seed};
    for (int i = 0; i < PORTS; i++) {
        r.in[i] = NEW_ARRAY(&w->arena, double, 9 * TOKENS);
        for (int j = 0; j < 9 * TOKENS; j++)
            r.in[i][j] = rng_below(&g, 40) ? rng_unit(&g) : special[rng_below(&g, 6)];
    }
    for (int i = 0; i < OUTS; i++)
        r.out[i] = NEW_ARRAY(&w->arena, double, 3 * TOKENS);
    for (int i = 0; i < 6; i++)
        r.state[i] = rng_unit(&g);
    EvalArgs args = {.T = TOKENS, .in = (const double *const *)r.in, .out = r.out, .state = r.state};
    kernel_eval(k, &w->arena, &args);
    return r;
}

/* Equal up to the rounding of x^2 as x*x. */
static bool close_enough(double a, double b) {
    return (isnan(a) && isnan(b)) || a == b || fabs(a - b) <= 1e-9 * (fabs(a) + fabs(b));
}

static void random_kernels_mean_the_same(void **state) {
    (void)state;
    int shrunk = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        World *w = world_open();
        Rng r = {seed};
        Kernel *k = random_kernel(w, &r, seed % 2 ? LEVEL_chunk : LEVEL_recurrence, 50);
        Kernel *folded = kernel_clone(k);
        kernel_simplify(folded);
        const char *why = kernel_verify(folded);
        if (why)
            fail_msg("seed %d: %s", (int)seed, why);
        const char *once = printed(w, folded);
        kernel_simplify(folded);
        assert_string_equal(once, printed(w, folded));
        shrunk += folded->inst.count < k->inst.count;
        Run a = run_new(w, k, seed), b = run_new(w, folded, seed);
        for (int i = 0; i < 3 * TOKENS; i++)
            for (int o = 0; o < OUTS; o++)
                if (!close_enough(a.out[o][i], b.out[o][i]))
                    fail_msg("seed %d: out %d[%d]: %g, %g\n%s\n%s", (int)seed, o, i, a.out[o][i],
                             b.out[o][i], printed(w, k), once);
        for (int i = 0; i < 6; i++)
            if (!close_enough(a.state[i], b.state[i]))
                fail_msg("seed %d: state[%d]: %g, %g\n%s\n%s", (int)seed, i, a.state[i], b.state[i],
                         printed(w, k), once);
        world_close(w);
    }
    assert_in_range(shrunk, 350, 400);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(constants_are_computed),
        cmocka_unit_test(exact_identities),
        cmocka_unit_test(what_must_stay),
        cmocka_unit_test(equal_values_merge),
        cmocka_unit_test(near_twins_do_not_merge),
        cmocka_unit_test(reads_merge_between_changes),
        cmocka_unit_test(unused_values_go),
        cmocka_unit_test(tile_level_keeps_places),
        cmocka_unit_test(random_kernels_mean_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
