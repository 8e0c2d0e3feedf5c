/* Specs that are the same recurrence for certain inputs give the same outputs, final states and
 * gradients: by the reference, and by their chunk kernels after all passes.
 *
 *     gdn2, b = w = beta       kda                 kda, one decay for all channels    gated_deltanet
 *     gated_deltanet, g = 0    deltanet            gdn2, b = 0, w = 1                 gla */
#include "frontend/frontend.h"
#include "tests/prop/recurrences.h"

#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

enum { K = 5, V = 4, T = 23, ROWS = 8, MOST = 8 };

/* One spec on inputs that are found by name. */
typedef struct Run {
    const Kernel *k;
    const double *in[MOST];
    double *d[MOST];                 /* gradients of the inputs */
    double *o, *S, *dS0;
} Run;

typedef struct World {
    Arena a;
    Rng r;
    bool chunked;                    /* by kernels, else by the reference */
    const double *S0, *dS, *dout;    /* shared by all runs */
} World;

static double *array(World *w, int64_t n) { return NEW_ARRAY(&w->a, double, n); }

static double *numbers(World *w, int64_t n) {
    double *x = array(w, n);
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_normal(&w->r);
    return x;
}

/* `width` copies of each of the T numbers of x. */
static double *repeated(World *w, const double *x, int width) {
    double *y = array(w, T * width);
    for (int64_t i = 0; i < T * width; i++)
        y[i] = x[i / width];
    return y;
}

static double *constant(World *w, double x, int width) {
    double *y = array(w, T * width);
    for (int64_t i = 0; i < T * width; i++)
        y[i] = x;
    return y;
}

/* Sums of the T rows of x; added to y if that is given. */
static double *row_sums(World *w, const double *x, int width, const double *y) {
    double *sum = array(w, T);
    for (int64_t i = 0; i < T * width; i++)
        sum[i / width] += x[i];
    for (int64_t t = 0; t < T && y; t++)
        sum[t] += y[t];
    return sum;
}

static void run_reference(World *w, SpecFile *f, Diag *d, const SpecBind *bind, Run *run) {
    EvalArgs args = {T, run->in, &run->o, run->S, NULL};
    assert_true(reference_run(&w->a, f, NULL, bind, &args, d));
    ReferenceGrad grad = {.T = T, .in = run->in, .dout = &w->dout, .din = run->d, .state = w->S0,
                          .dstate = run->dS0};
    assert_true(reference_gradient(&w->a, f, NULL, bind, &grad, d));
}

static void run_kernels(World *w, Kernel *k, Run *run) {
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, ROWS);
    passes_run_after(k, "normal", "collapse", NULL);
    Kernel *grad = kernel_adjoint(k, 1, ~0ull);
    passes_run_after(k, "collapse", NULL, NULL);
    passes_run_after(grad, "collapse", NULL, NULL);
    EvalArgs args = {T, run->in, &run->o, run->S, NULL};
    kernel_eval(k, &w->a, &args);
    run->in[k->in.count] = w->dout;
    double *state = array(w, K * V);
    memcpy(state, w->S0, K * V * sizeof *state);
    EvalArgs back = {T, run->in, run->d, state, run->dS0};
    kernel_eval(grad, &w->a, &back);
}

static int find_input(const Run *run, const char *name) {
    int i = kernel_find_port(run->k, name, false);
    assert_in_range(i, 0, MOST - 2);
    return i;
}

/* `inputs` are the data of the ports in order of declaration. */
static Run *run_spec(World *w, const char *name, const double *const *inputs) {
    char path[512];
    Interner names;
    Diag d;
    snprintf(path, sizeof path, GDR_SPECS_DIR "/%s.gdr", name);
    const Source *source = source_from_file(&w->a, path);
    assert_non_null(source);
    intern_init(&names, &w->a);
    diag_init(&d, &w->a, source);
    SpecFile *f = spec_parse(&w->a, &names, source, &d);
    const SpecDim dim[] = {{"K", K}, {"V", V}};
    const SpecBind bind = {dim, 2};
    assert_true(spec_check(f, &d));
    Kernel *k = spec_lower(&w->a, &names, f, NULL, &bind, &d);
    Run *run = NEW(&w->a, Run);
    run->k = k;
    for (int i = 0; i < k->in.count; i++) {
        run->in[i] = inputs[i];
        run->d[i] = array(w, shape_elements(k, k->in.at[i].shape) * T);
    }
    run->o = array(w, T * V);
    run->S = array(w, K * V);
    run->dS0 = array(w, K * V);
    memcpy(run->S, w->S0, K * V * sizeof(double));
    memcpy(run->dS0, w->dS, K * V * sizeof(double));
    if (w->chunked)
        run_kernels(w, k, run);
    else
        run_reference(w, f, &d, &bind, run);
    return run;
}

static void same(const double *a, const double *b, int64_t n, const char *what) {
    double scale = 1e-3, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        scale = fmax(scale, fabs(a[i]));
        worst = fmax(worst, fabs(a[i] - b[i]));
        assert_true(isfinite(a[i]) && isfinite(b[i]));
    }
    if (!(worst <= 1e-11 * scale))
        fail_msg("%s differs by %g of %g", what, worst, scale);
}

static const double *gradient(const Run *run, const char *name) {
    return run->d[find_input(run, name)];
}

static void same_gradient(const Run *a, const Run *b, const char *name) {
    const Port *p = &a->k->in.at[find_input(a, name)];
    same(gradient(a, name), gradient(b, name), shape_elements(a->k, p->shape) * T, name);
}

static void same_values(const Run *a, const Run *b) {
    same(a->o, b->o, T * V, "o");
    same(a->S, b->S, K * V, "S");
    same(a->dS0, b->dS0, K * V, "the initial state's gradient");
    same_gradient(a, b, "v");
}

static World *world_open(bool chunked, int regime, double **q, double **k, double **v, double **g,
                   double **beta) {
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    arena_init(&w->a, NULL);
    w->r.s = 40 + (uint64_t)regime;
    w->chunked = chunked;
    w->S0 = numbers(w, K * V);
    w->dS = numbers(w, K * V);
    w->dout = numbers(w, T * V);
    *q = numbers(w, T * K);
    *k = numbers(w, T * K);
    *v = numbers(w, T * V);
    *g = array(w, T * K);
    *beta = array(w, T);
    for (int64_t i = 0; i < T * K; i++)
        (*g)[i] = log_decay(&w->r, regime);
    for (int64_t t = 0; t < T; t++)
        (*beta)[t] = rng_unit(&w->r);
    return w;
}

static void world_close(World *w) {
    arena_free(&w->a);
    free(w);
}

static void gdn2_is_kda(World *w, double *q, double *k, double *v, double *g, double *beta) {
    Run *two = run_spec(w, "gdn2", (const double *[]){q, k, v, g, repeated(w, beta, K),
                                                      repeated(w, beta, V)});
    Run *one = run_spec(w, "kda", (const double *[]){q, k, v, g, beta});
    same_values(two, one);
    same_gradient(two, one, "q");
    same_gradient(two, one, "k");
    same_gradient(two, one, "g");
    const double *dw = row_sums(w, gradient(two, "w"), V, NULL);
    same(row_sums(w, gradient(two, "b"), K, dw), gradient(one, "beta"), T, "beta");
}

static void kda_is_gated_deltanet(World *w, double *q, double *k, double *v, double *g, double *beta) {
    Run *kda = run_spec(w, "kda", (const double *[]){q, k, v, repeated(w, g, K), beta});
    Run *gdn = run_spec(w, "gated_deltanet", (const double *[]){q, k, v, g, beta});
    same_values(kda, gdn);
    same_gradient(kda, gdn, "q");
    same_gradient(kda, gdn, "k");
    same_gradient(kda, gdn, "beta");
    same(row_sums(w, gradient(kda, "g"), K, NULL), gradient(gdn, "g"), T, "g");
}

static void gated_deltanet_is_deltanet(World *w, double *q, double *k, double *v, double *g,
                                       double *beta) {
    (void)g;
    Run *gdn = run_spec(w, "gated_deltanet", (const double *[]){q, k, v, constant(w, 0, 1), beta});
    Run *delta = run_spec(w, "deltanet", (const double *[]){q, k, v, beta});
    same_values(gdn, delta);
    same_gradient(gdn, delta, "q");
    same_gradient(gdn, delta, "k");
    same_gradient(gdn, delta, "beta");
}

/* x / sqrt(x'x + 1e-6) of every row; with `d`, its gradient given that of the result. */
static double *normalised(World *w, const double *x, const double *d) {
    double *y = array(w, T * K);
    for (int64_t t = 0; t < T; t++) {
        double square = 1e-6, along = 0;
        for (int64_t i = t * K; i < (t + 1) * K; i++) {
            square += x[i] * x[i];
            along += d ? d[i] * x[i] : 0;
        }
        for (int64_t i = t * K; i < (t + 1) * K; i++)
            y[i] = ((d ? d[i] : x[i]) - along / square * x[i]) / sqrt(square);
    }
    return y;
}

static void gdn2_is_gla(World *w, double *q, double *k, double *v, double *g, double *beta) {
    (void)beta;
    Run *two = run_spec(w, "gdn2", (const double *[]){q, k, v, g, constant(w, 0, K),
                                                      constant(w, 1, V)});
    Run *gla = run_spec(w, "gla", (const double *[]){normalised(w, q, NULL), normalised(w, k, NULL),
                                                     v, g});
    same_values(two, gla);
    same_gradient(two, gla, "g");
    same(gradient(two, "q"), normalised(w, q, gradient(gla, "q")), T * K, "q");
    same(gradient(two, "k"), normalised(w, k, gradient(gla, "k")), T * K, "k");
}

static void everywhere(void (*identity)(World *, double *, double *, double *, double *, double *)) {
    for (int chunked = 0; chunked < 2; chunked++)
        for (int regime = 0; regime < 6; regime++) {
            double *q, *k, *v, *g, *beta;
            World *w = world_open(chunked, regime, &q, &k, &v, &g, &beta);
            identity(w, q, k, v, g, beta);
            world_close(w);
        }
}

#define TEST(identity) \
    static void test_##identity(void **state) { (void)state; everywhere(identity); }
TEST(gdn2_is_kda)
TEST(kda_is_gated_deltanet)
TEST(gated_deltanet_is_deltanet)
TEST(gdn2_is_gla)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gdn2_is_kda),
        cmocka_unit_test(test_kda_is_gated_deltanet),
        cmocka_unit_test(test_gated_deltanet_is_deltanet),
        cmocka_unit_test(test_gdn2_is_gla),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
