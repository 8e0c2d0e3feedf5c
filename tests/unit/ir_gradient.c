/* Gradient kernels in the IR: what comes from later in the sequence, outputs by rows and of params,
 * sums that leave padding out, cotangents along the lattice against their definition, and what the
 * verifier refuses. */
#include "tests/unit/ir_test.h"

#include <math.h>

enum { K = 2, V = 2 };

#define HEAD "kernel t chunk {\n axis C = 2, R = 2, U = 2, K = 2, V = 2, n = 2\n state S\n"
#define TAIL "%S = state\n next %S\n %D = costate\n conext %D\n}\n"

static void memories_from_later(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w, HEAD "in x : f32[]\n out a : f32[]\n out b : f32[]\n %x = in x\n"
                               "%a = after %x\n %b = cumsum_back %x\n out a = %a\n out b = %b\n" TAIL);
    double x[5] = {1, 2, 4, 8, 16}, a[5], b[5], S[4] = {1, 2, 3, 4}, D[4] = {5, 6, 7, 8};
    EvalArgs args = {5, (const double *[]){x}, (double *[]){a, b}, S, D};
    kernel_eval(k, &w->arena, &args);
    for (int t = 0; t < 5; t++) {
        assert_true(a[t] == (t < 4 ? x[t + 1] : 0));
        assert_true(b[t] == 32 - x[t]);
    }
    assert_true(S[3] == 4 && D[3] == 8);
    world_close(w);
}

/* Without the missing token of the last chunk, whose log is -inf. */
static void sums_over_time(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w, HEAD
        "in x : f32[]\n in y : f32[K]\n out param s : f32[]\n out param c : f32[K]\n"
        "%x = in x\n %l = log %x\n %s = sum %l over C\n out s = %s\n"
        "%y = in y\n %c = contract %l, %y over C\n out c = %c\n" TAIL);
    double x[3] = {1, exp(1), exp(2)}, y[6] = {1, 10, 2, 20, 3, 30}, s = 99, c[2] = {99, 99};
    EvalArgs args = {.T = 3, .in = (const double *[]){x, y}, .out = (double *[]){&s, c}};
    kernel_eval(k, &w->arena, &args);
    assert_true(fabs(s - 3) < 1e-12 && fabs(c[0] - 8) < 1e-12 && fabs(c[1] - 80) < 1e-12);
    world_close(w);
}

static void outputs_by_rows_and_repeated(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w, HEAD "in x : f32[]\n out r : f32[n,K]\n %x = in x\n %z = const 7\n"
                               "out r = %x\n out r row 1 = %z\n" TAIL);
    double x[3] = {1, 2, 3}, r[12];
    EvalArgs args = {.T = 3, .in = (const double *[]){x}, .out = (double *[]){r}};
    kernel_eval(k, &w->arena, &args);
    for (int i = 0; i < 12; i++)
        assert_true(r[i] == (i % 4 < 2 ? x[i / 4] : 7));
    world_close(w);
}

/* The cotangents along the lattice, two updates a token, three tokens in chunks of two. */
enum { SLOTS = 2, N = 4, PLACE = 1 };

/* prod of a[m][i] over lo < m < hi, without m = skip */
static double between(double a[][K], int lo, int hi, int skip, int i) {
    double p = 1;
    for (int m = lo + 1; m < hi; m++)
        p *= m == skip ? 1 : a[m][i];
    return p;
}

/* Of one chunk with `tokens` tokens, rows x[C], updates y, decays a, cotangent g of the scores. */
static void define(int tokens, double x[][K], double y[][K], double a[][K], double g[][N],
                   double dx[][K], double dy[][K], double da[][K], double dlog[][K]) {
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < K; i++)
            for (int u = 0; u < t * SLOTS + PLACE; u++) {
                int p = t * SLOTS + PLACE;
                dx[t][i] += g[t][u] * between(a, u, p, -1, i) * y[u][i];
                dy[u][i] += g[t][u] * between(a, u, p, -1, i) * x[t][i];
                for (int m = u + 1; m < p; m++) {
                    double c = g[t][u] * x[t][i] * y[u][i] * between(a, u, p, m, i);
                    da[m][i] += c;
                    dlog[m][i] += c * a[m][i];
                }
            }
}

#define LATTICE                                                                                    \
    "kernel t chunk {\n axis C = 2, R = 4, U = 4, K = 2, V = 2\n state S\n"                        \
    "in x : f32[K]\n in y0 : f32[K]\n in y1 : f32[K]\n in a0 : f32[K]\n in a1 : f32[K]\n"          \
    "in h : f32[K]\n out dx : f32[K]\n out dy0 : f32[K]\n out dy1 : f32[K]\n out da0 : f32[K]\n"   \
    "out da1 : f32[K]\n out dl0 : f32[K]\n out dl1 : f32[K]\n"                                     \
    "%x = in x\n %y0 = in y0\n %y1 = in y1\n %a0 = in a0\n %a1 = in a1\n %h = in h\n"              \
    "%y = weave %y0, %y1 onto U\n %a = weave %a0, %a1 onto U fill 1\n"                             \
    "%g = contract %h, %y over K\n"                                                                \
    "%dx = scores_x %g, %y, %a place 1\n %dy = scores_y %g, %x, %a place 1\n"                      \
    "%da = scores_a %g, %x, %y, %a place 1\n %dl = scores_a %g, %x, %y, %a place 1 log\n"          \
    "%s0 = slot %dy from U place 0\n %s1 = slot %dy from U place 1\n"                              \
    "%s2 = slot %da from U place 0\n %s3 = slot %da from U place 1\n"                              \
    "%s4 = slot %dl from U place 0\n %s5 = slot %dl from U place 1\n"                              \
    "out dx = %dx\n out dy0 = %s0\n out dy1 = %s1\n out da0 = %s2\n out da1 = %s3\n"               \
    "out dl0 = %s4\n out dl1 = %s5\n" TAIL

static void cotangents_of_scores(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w, LATTICE);
    Rng r = {3};
    double in[6][3][K], out[7][3][K];
    for (int p = 0; p < 6; p++)
        for (int j = 0; j < 3 * K; j++)
            in[p][j / K][j % K] = p == 4 && j % 3 == 0 ? 0 : rng_unit(&r); /* decays of 0 too */
    const double *from[6];
    double *to[7];
    for (int p = 0; p < 6; p++)
        from[p] = &in[p][0][0];
    for (int p = 0; p < 7; p++)
        to[p] = &out[p][0][0];
    EvalArgs args = {.T = 3, .in = from, .out = to};
    kernel_eval(k, &w->arena, &args);
    for (int first = 0; first < 3; first += 2) {
        int tokens = first ? 1 : 2;
        double x[2][K] = {0}, y[N][K] = {0}, a[N][K] = {0}, g[2][N] = {0};
        double dx[2][K] = {0}, dy[N][K] = {0}, da[N][K] = {0}, dl[N][K] = {0};
        for (int t = 0; t < tokens; t++)
            for (int i = 0; i < K; i++) {
                x[t][i] = in[0][first + t][i];
                for (int s = 0; s < SLOTS; s++) {
                    y[t * SLOTS + s][i] = in[1 + s][first + t][i];
                    a[t * SLOTS + s][i] = in[3 + s][first + t][i];
                }
            }
        for (int t = 0; t < tokens; t++)
            for (int u = 0; u < N; u++)
                for (int i = 0; i < K; i++)
                    g[t][u] += in[5][first + t][i] * y[u][i];
        define(tokens, x, y, a, g, dx, dy, da, dl);
        for (int t = 0; t < tokens; t++)
            for (int i = 0; i < K; i++) {
                assert_true(fabs(out[0][first + t][i] - dx[t][i]) < 1e-14);
                for (int s = 0; s < SLOTS; s++) {
                    assert_true(fabs(out[1 + s][first + t][i] - dy[t * SLOTS + s][i]) < 1e-14);
                    assert_true(fabs(out[3 + s][first + t][i] - da[t * SLOTS + s][i]) < 1e-14);
                    assert_true(fabs(out[5 + s][first + t][i] - dl[t * SLOTS + s][i]) < 1e-14);
                }
            }
    }
    world_close(w);
}

/* S = a S + p v', o = S' 1, by hand over two tokens of a 1 x 1 state: 1, 2+5 = 7, 21+7 = 28. */
#define TOKEN_HEAD \
    "kernel t recurrence {\n axis C = 0, R = 0, U = 0, K = 1, V = 1\n in a : f32[]\n in p : f32[K]\n" \
    "in v : f32[V]\n in do : f32[V]\n out da : f32[]\n out dp : f32[K]\n out param dv : f32[V]\n" \
    "state S\n %a = in a\n %p = in p\n %v = in v\n decay %a\n update %p, %v\n"
#define TOKEN_TAIL "out da = %a\n out dp = %p\n out dv = %v\n}\n"

static void a_token_in_two_halves(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w, TOKEN_HEAD
        "rewind\n %do = in do\n %one = const 1\n coupdate %one, %do\n"
        "%s = reread %do over V place 2 : [K]\n %dp = coread %v over V : [K]\n"
        "%dv = coread %p over K : [V]\n %da = decay_a %a place 0\n codecay %a\n %x = add %dp, %s\n"
        "out da = %da\n out dp = %x\n out dv = %dv\n}\n");
    assert_true(kernel_is_gradient(k));
    double a[2] = {2, 3}, p[2] = {1, 1}, v[2] = {5, 7}, o[2] = {10, 100};
    double da[2], dp[2], dv = 99, S = 1, D = 1;
    EvalArgs args = {2, (const double *[]){a, p, v, o}, (double *[]){da, dp, &dv}, &S, &D};
    kernel_eval(k, &w->arena, &args);
    assert_true(S == 28 && D == 626); /* 2 (10 + 3 (100 + 1)) */
    assert_true(da[1] == 7 * 101 && da[0] == 1 * 313);
    assert_true(dp[1] == 7 * 101 + 28 * 100 && dp[0] == 5 * 313 + 7 * 10);
    assert_true(dv == 101 + 313); /* of a param: of both tokens */
    world_close(w);
}

static void refused(void **state) {
    (void)state;
    static const struct { const char *text, *why; } bad[] = {
        {TOKEN_HEAD "codecay %a\n rewind\n" TOKEN_TAIL, "codecay: stands before `rewind`"},
        {TOKEN_HEAD "rewind\n decay %a\n" TOKEN_TAIL, "decay: stands behind `rewind`"},
        {TOKEN_HEAD "rewind\n %b = prev %a\n" TOKEN_TAIL, "prev: stands behind `rewind`"},
        {TOKEN_HEAD "rewind\n rewind\n" TOKEN_TAIL, "a second one"},
        {TOKEN_HEAD "codecay %a\n" TOKEN_TAIL, "belongs to a gradient kernel"},
        {TOKEN_HEAD "rewind\n %b = reread %p over K place 3 : [V]\n" TOKEN_TAIL,
         "a place that is not there"},
        {TOKEN_HEAD "rewind\n %b = coread %p over V : [K]\n" TOKEN_TAIL, "sums over K or V"},
        {HEAD "%D = costate\n %S = state\n next %S\n}\n", "belongs to a gradient kernel"},
        {HEAD "in x : f32[]\n out o : f32[K]\n %x = in x\n out o = %x\n %S = state\n next %S\n}\n",
         "the operand's axes are not the output's"},
        {HEAD "%D = costate\n next %D\n conext %D\n}\n", "comes later in the sequence"},
        {HEAD "in x : f32[]\n out o : f32[]\n %x = in x\n %a = after %x\n %p = prev %a\n out o = %p\n" TAIL,
         "comes later in the sequence"},
        {HEAD "out r : f32[n,K]\n %z = const 0\n out r = %z\n" TAIL, "output r is not given"},
        {HEAD "out r : f32[n,K]\n %z = const 0\n out r = %z\n out r = %z\n" TAIL, "given twice"},
        {HEAD "out r : f32[n,K]\n %z = const 0\n out r row 2 = %z\n" TAIL, "row beyond"},
        {HEAD "in x : f32[]\n out param p : f32[]\n %x = in x\n out p = %x\n" TAIL,
         "a param is the same for every token"},
        {HEAD "in x : f32[K]\n out o : f32[K]\n %x = in x\n %u = weave %x onto U\n"
         "%s = slot %u from U place 1\n out o = %s\n" TAIL, "a place that is not there"},
        {HEAD "%D = costate\n conext %D\n conext %D\n %S = state\n next %S\n}\n",
         "a second next costate"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        World *w = world_open();
        const char *why = kernel_verify(parse(w, bad[i].text));
        if (!why || !strstr(why, bad[i].why))
            fail_msg("'%s' instead of '%s':\n%s", why ? why : "nothing", bad[i].why, bad[i].text);
        world_close(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memories_from_later),
        cmocka_unit_test(sums_over_time),
        cmocka_unit_test(outputs_by_rows_and_repeated),
        cmocka_unit_test(cotangents_of_scores),
        cmocka_unit_test(a_token_in_two_halves),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
