/* The reference against recurrences written out by hand, and every function and operator against
 * its definition: it must not share a mistake with the compiler. */
#include "tests/unit/spec_test.h"

enum { T = 9, K = 5, V = 3 };

/* Inputs of a spec by name. */
static const double *input(const Data *x, const char *name) {
    int i = kernel_find_port(x->k, name, false);
    assert_true(i >= 0);
    return x->in[i];
}

static Data *run(Spec *s, const SpecBind *dims, int64_t tokens) {
    if (s->d.errors)
        fail_msg("%s", messages(s));
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, dims, &s->d);
    assert_non_null(k);
    return run_reference(s, NULL, dims, k, tokens, 5);
}

static const SpecBind dims = {(const SpecDim[]){{"K", K}, {"V", V}}, 2};

static double norm(const double *x) {
    double s = 1e-6;
    for (int i = 0; i < K; i++)
        s += x[i] * x[i];
    return sqrt(s);
}

static void close_to(double a, double b) {
    if (!(fabs(a - b) <= 1e-13 * (1 + fabs(b))))
        fail_msg("%.17g is not %.17g", a, b);
}

/* Gated DeltaNet-2, element by element. */
static void gdn2(void **state) {
    (void)state;
    Spec *s = spec_load(GDR_SPECS_DIR "/gdn2.gdr");
    Data *x = run(s, &dims, T), *start = data_new(&s->arena, x->k, T, 5);
    double S[K][V];
    memcpy(S, start->args.state, sizeof S);
    for (int t = 0; t < T; t++) {
        const double *q = input(x, "q") + t * K, *k = input(x, "k") + t * K;
        const double *g = input(x, "g") + t * K, *b = input(x, "b") + t * K;
        const double *v = input(x, "v") + t * V, *w = input(x, "w") + t * V;
        double nk = norm(k), nq = norm(q);
        for (int j = 0; j < V; j++) {
            double r = 0, o = 0;
            for (int i = 0; i < K; i++)
                S[i][j] *= exp(g[i]);
            for (int i = 0; i < K; i++)
                r += S[i][j] * b[i] * k[i] / nk;
            for (int i = 0; i < K; i++)
                S[i][j] += k[i] / nk * (w[j] * v[j] - r);
            for (int i = 0; i < K; i++)
                o += S[i][j] * q[i] / nq / sqrt(K);
            close_to(x->out[0][t * V + j], o);
        }
    }
    for (int i = 0; i < K * V; i++)
        close_to(x->args.state[i], (&S[0][0])[i]);
    spec_close(s);
}

/* RWKV-7: the removal key reads the state before its decay. */
static void rwkv7(void **state) {
    (void)state;
    Spec *s = spec_load(GDR_SPECS_DIR "/rwkv7.gdr");
    Data *x = run(s, &dims, T), *start = data_new(&s->arena, x->k, T, 5);
    double S[K][V], c[K];
    memcpy(S, start->args.state, sizeof S);
    for (int t = 0; t < T; t++) {
        const double *r = input(x, "r") + t * K, *k = input(x, "k") + t * K;
        const double *w = input(x, "w") + t * K, *a = input(x, "a") + t * K;
        const double *v = input(x, "v") + t * V, *kk = input(x, "k_k"), *ka = input(x, "k_a");
        for (int i = 0; i < K; i++)
            c[i] = k[i] * kk[i];
        double n = norm(c);
        for (int j = 0; j < V; j++) {
            double y = 0, o = 0;
            for (int i = 0; i < K; i++)
                y += c[i] / n * S[i][j];
            for (int i = 0; i < K; i++) {
                double decay = exp(-exp(-0.5) / (1 + exp(-w[i])));
                S[i][j] = decay * S[i][j] - a[i] * c[i] / n * y +
                          k[i] * (1 + (a[i] - 1) * ka[i]) * v[j];
                o += S[i][j] * r[i];
            }
            close_to(x->out[0][t * V + j], o);
        }
    }
    spec_close(s);
}

/* Gated DeltaProduct: n steps a token, in order. */
static void deltaproduct(void **state) {
    (void)state;
    enum { N = 3 };
    const SpecBind three = {(const SpecDim[]){{"V", V}, {"n", N}, {"K", K}}, 3};
    Spec *s = spec_load(GDR_SPECS_DIR "/gated_deltaproduct.gdr");
    Data *x = run(s, &three, T), *start = data_new(&s->arena, x->k, T, 5);
    double S[K][V];
    memcpy(S, start->args.state, sizeof S);
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < K * V; i++)
            (&S[0][0])[i] *= exp(input(x, "g")[t]);
        for (int step = 0; step < N; step++) {
            const double *k = input(x, "k") + (t * N + step) * K;
            const double *v = input(x, "v") + (t * N + step) * V;
            double beta = input(x, "beta")[t * N + step], n = norm(k);
            for (int j = 0; j < V; j++) {
                double r = 0;
                for (int i = 0; i < K; i++)
                    r += S[i][j] * k[i] / n;
                for (int i = 0; i < K; i++)
                    S[i][j] += beta * k[i] / n * (v[j] - r);
            }
        }
        const double *q = input(x, "q") + t * K;
        for (int j = 0; j < V; j++) {
            double o = 0;
            for (int i = 0; i < K; i++)
                o += S[i][j] * q[i] / norm(q) / sqrt(K);
            close_to(x->out[0][t * V + j], o);
        }
    }
    spec_close(s);
}

/* One expression in x and y (scalars per token), z[K]; evaluated at every token. */
static Data *expression(Spec **s, const char *e) {
    char text[500];
    snprintf(text, sizeof text, "variant t { dim K = 5, V = 3, n = 2; in x, y, z[K], p[n]\n"
             "state S[K, V]; S = S; out o = %s }", e);
    *s = spec_open(text);
    return run(*s, NULL, T);
}

static double sigma(double x) { return 1 / (1 + exp(-x)); }

static void functions(void **state) {
    (void)state;
    static const char *const e[] = {
        "exp(x)", "log(x + 2)", "sqrt(x + 2)", "rsqrt(x + 2)", "sigmoid(x)", "softplus(x)", "tanh(x)",
        "silu(x)", "relu(x)", "abs(x)", "cos(x)", "sin(x)", "min(x, y)", "max(x, y)",
        "x + y * x - y / 2", "-x^2", "2^-x", "(x + 2)^y", "x .* y ./ (y + 2)", "sum(z)", "dot(z, z)",
        "z' * z", "sum(l2norm(z))", "p[1] - p[0]", "sum(p .* p)", "sum(max(z, x))", "K - V^n", "x'",
        "sum(prev(z))", "cumsum(x)", "prev(cumsum(x) + prev(y))", "sum((3 * x + z') .* z')",
    };
    double sum = 0, before = 0;
    for (size_t i = 0; i < sizeof e / sizeof *e; i++) {
        Spec *s;
        Data *d = expression(&s, e[i]);
        for (int t = 0; t < T; t++) {
            double x = input(d, "x")[t], y = input(d, "y")[t], zs = 0, zz = 0, zmax = 0, last = 0;
            const double *z = input(d, "z") + t * K, *p = input(d, "p") + t * 2;
            for (int j = 0; j < K; j++) {
                zs += z[j];
                zz += z[j] * z[j];
                zmax += fmax(z[j], x);
                last += t ? z[j - K] : 0;
            }
            sum = t ? sum + x : x;
            const double want[] = {
                exp(x), log(x + 2), sqrt(x + 2), 1 / sqrt(x + 2), sigma(x), log(1 + exp(x)), tanh(x),
                x * sigma(x), x > 0 ? x : 0, fabs(x), cos(x), sin(x), fmin(x, y), fmax(x, y),
                x + y * x - y / 2, -(x * x), exp2(-x), pow(x + 2, y), x * y / (y + 2), zs, zz,
                zz, zs / sqrt(zz + 1e-6), p[1] - p[0], p[0] * p[0] + p[1] * p[1], zmax, 5 - 9, x,
                last, sum, t ? before : 0, 3 * x * zs + zz,
            };
            assert_int_equal(sizeof want / sizeof *want, sizeof e / sizeof *e);
            if (!(fabs(d->out[0][t] - want[i]) <= 1e-12 * (1 + fabs(want[i]))))
                fail_msg("%s at token %d is %.17g, not %.17g", e[i], t, d->out[0][t], want[i]);
            before = sum + (t ? input(d, "y")[t - 1] : 0);
        }
        spec_close(s);
    }
}

/* No overflow at either end, NaN goes through. */
static void extremes(void **state) {
    (void)state;
    static const double at[][3] = {
        {FN_sigmoid, 1000, 1},   {FN_sigmoid, -1000, 0}, {FN_softplus, 1000, 1000},
        {FN_softplus, -1000, 0}, {FN_silu, -1000, 0},    {FN_silu, 1000, 1000},
        {FN_relu, -3, 0},        {FN_exp, -1000, 0},
    };
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        assert_true(fn_apply((Function)at[i][0], at[i][1], 0) == at[i][2]);
    for (int i = 0; i < FN_count; i++) {
        if (fn_info[i].class != FNCLASS_MAP)
            continue;
        assert_true(isnan(fn_apply((Function)i, NAN, 1)));
        if (fn_info[i].nargs == 2)
            assert_true(isnan(fn_apply((Function)i, 1, NAN)));
    }
}

/* Tokens before t do not see token t; a sequence cut in two with the state handed over is the same. */
static void causality(void **state) {
    (void)state;
    Spec *s = spec_load(GDR_SPECS_DIR "/kda_raw.gdr");
    Data *whole = run(s, &dims, T), *part = data_new(&s->arena, whole->k, T, 5);
    part->args.T = 4;
    assert_true(reference_run(&s->arena, s->file, NULL, &dims, &part->args, &s->d));
    assert_memory_equal(whole->out[0], part->out[0], 4 * V * sizeof(double));
    const double *rest[MAX_PORTS];
    for (int i = 0; i < whole->k->in.count; i++) {
        const Port *p = &whole->k->in.at[i];
        rest[i] = part->in[i] + (p->is_param ? 0 : 4 * shape_elements(whole->k, p->shape));
    }
    double *out[] = {part->out[0] + 4 * V};
    EvalArgs tail = {.T = T - 4, .in = rest, .out = out, .state = part->args.state};
    assert_true(reference_run(&s->arena, s->file, NULL, &dims, &tail, &s->d));
    assert_memory_equal(whole->out[0], part->out[0], T * V * sizeof(double));
    assert_memory_equal(whole->args.state, part->args.state, K * V * sizeof(double));
    spec_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gdn2),      cmocka_unit_test(rwkv7),    cmocka_unit_test(deltaproduct),
        cmocka_unit_test(functions), cmocka_unit_test(extremes), cmocka_unit_test(causality),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
