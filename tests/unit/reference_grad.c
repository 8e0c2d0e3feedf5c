/* The reference's gradient against central differences of the reference itself, element by element, on
 * tiny sizes: every spec, every function of the language, every way to write an update. */
#include "tests/unit/spec_test.h"

#include <glob.h>

static const SpecBind tiny = {(const SpecDim[]){{"K", 4}, {"V", 2}}, 2};

typedef struct Problem {
    Spec *s;
    const char *variant;
    const Kernel *k;  /* for the ports only */
    Data *x;
    double *state0;
    double *dout[MAX_PORTS], *dstate;
} Problem;

/* Upstream gradients times outputs and final state. */
static double value(Problem *p) {
    Data *x = p->x;
    memcpy(x->args.state, p->state0, (size_t)x->nstate * sizeof(double));
    assert_true(reference_run(&p->s->arena, p->s->file, p->variant, &tiny, &x->args, &p->s->d));
    double sum = 0;
    for (int o = 0; o < p->k->out.count; o++)
        for (int64_t i = 0; i < shape_elements(p->k, p->k->out.at[o].shape) * x->args.T; i++)
            sum += p->dout[o][i] * x->out[o][i];
    for (int64_t i = 0; i < x->nstate; i++)
        sum += p->dstate[i] * x->args.state[i];
    return sum;
}

static void check_element(Problem *p, double *element, double gradient, const char *name, int64_t i) {
    const double h = 2e-4, x = *element;
    double f[4];
    for (int j = 0; j < 4; j++) {
        *element = x + h * (double)(j < 2 ? j - 2 : j - 1);
        f[j] = value(p);
    }
    *element = x;
    double want = (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * h);
    if (!(fabs(want - gradient) <= 1e-8 * (1 + fabs(want) + fabs(f[0]))))
        fail_msg("%s: d%s[%lld] is %.12g, by differences %.12g\n%s", p->k->name, name, (long long)i,
                 gradient, want, p->s->file->source->text);
}

static void check_gradient(Spec *s, const char *variant, int64_t T, uint64_t seed) {
    Problem p = {.s = s, .variant = variant};
    p.k = s->d.errors ? NULL : spec_lower(&s->arena, &s->names, s->file, variant, &tiny, &s->d);
    if (!p.k)
        fail_msg("%s", messages(s));
    Data *x = p.x = data_new(&s->arena, p.k, T, seed);
    p.state0 = NEW_ARRAY(&s->arena, double, x->nstate);
    memcpy(p.state0, x->args.state, (size_t)x->nstate * sizeof(double));
    p.dstate = NEW_ARRAY(&s->arena, double, x->nstate);
    for (int64_t i = 0; i < x->nstate; i++)
        p.dstate[i] = 2 * random_unit(&seed) - 1;
    double *din[MAX_PORTS], *dstate = NEW_ARRAY(&s->arena, double, x->nstate);
    int64_t size[MAX_PORTS];
    for (int o = 0; o < p.k->out.count; o++) {
        int64_t n = shape_elements(p.k, p.k->out.at[o].shape) * T;
        p.dout[o] = NEW_ARRAY(&s->arena, double, n + 1);
        for (int64_t i = 0; i < n; i++)
            p.dout[o][i] = 2 * random_unit(&seed) - 1;
    }
    for (int i = 0; i < p.k->in.count; i++) {
        size[i] = shape_elements(p.k, p.k->in.at[i].shape) * (p.k->in.at[i].is_param ? 1 : T);
        din[i] = NEW_ARRAY(&s->arena, double, size[i] + 1);
    }
    memcpy(dstate, p.dstate, (size_t)x->nstate * sizeof(double));
    ReferenceGrad args = {.T = T, .in = x->in_const, .dout = (const double *const *)p.dout, .din = din,
                          .state = p.state0, .dstate = dstate};
    assert_true(reference_gradient(&s->arena, s->file, variant, &tiny, &args, &s->d));
    for (int i = 0; i < p.k->in.count; i++)
        for (int64_t j = 0; j < size[i]; j++)
            check_element(&p, &x->in[i][j], din[i][j], p.k->in.at[i].name, j);
    for (int64_t j = 0; j < x->nstate; j++)
        check_element(&p, &p.state0[j], dstate[j], "S", j);
}

static void every_spec(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    assert_true(files.gl_pathc >= 14);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        Spec *s = spec_load(files.gl_pathv[i]);
        for (int v = 0; v < s->file->variant.count; v++)
            for (int64_t T = 0; T <= 5; T += T ? 4 : 1)
                check_gradient(s, s->file->variant.at[v]->name, T, 7 + i);
        spec_close(s);
    }
    globfree(&files);
}

/* With p, q [K], v, w [V], scalars a, c in (0, 1), table kn[n, K], vector bn[n], params A, B[K]. */
static Spec *with_body(const char *body) {
    char text[1000];
    int n = snprintf(text, sizeof text,
                     "variant t { dim K = 4, V = 2, n = 2\n in p[K], q[K], v[V], w[V]\n"
                     "in a in [0.1, 0.9], c in [0.1, 0.9]\n in kn[n, K], bn[n]\n param A, B[K]\n"
                     "state S[K, V]\n%s\n}", body);
    assert_true(n < (int)sizeof text);
    return spec_open(text);
}

static void every_form(void **state) {
    (void)state;
    static const char *const body[] = {
        "S = a * S + p * v'\n out o[V] = S' * q",
        "S = (I - p * q') * diag(exp(-p.^2)) * S * a + p * (w .* v)' / (1 + c)\n out o[V] = S' * q",
        "S = S * diag(w) + (v * p')' - q * (S' * p)'\n out o[V] = S' * q\n out r = sum(p .* q)",
        "let M = a * I - p * p'\n S = M' * M * S\n out o[V] = (q' * S)'\n out t[K] = S * v",
        "S = S * (I - v * w')\n out o[V] = S' * q",
        "for j in n { S = S - bn[j] * kn[j] * (S' * kn[j])' }\n out o[V] = S' * q",
        "S = a * S + p * v' + prev(p) * prev(v)'\n out o[V] = S' * (q .* cos(cumsum(p)))",
        "S = S + l2norm(p) * prev(cumsum(v))'\n out o[V] = silu(S' * q) .* w + cumsum(v)",
        "S = a * S + turn(p) * turn(v)'\n out o[V] = turn(S' * turn(q + B)) * turn(bn)[1] + sum(turn(p))",
        "let x = exp(p) + log(2 + p.^2) + sqrt(1 + q.^2) + rsqrt(1 + p.^2) + sigmoid(q)\n"
        "S = S + x * v'\n out o[V] = S' * (softplus(p) + tanh(q) + silu(p) + sin(p) .* cos(q))",
        "S = S + relu(p) * v'\n out o[V] = S' * (abs(q) + min(p, q) + max(p, 0.1)) * dot(p, q)",
        "S = S + a^c * p * v' + a^3 * q * w'\n out o[V] = S' * (B ./ (1 + p.^2)) / (1 + A^2)",
        "S = -S\n S = S - p * v'\n S = c * S / a\n out o[V] = S' * p - w\n out r[V] = S' * q",
        "let u = S' * p\n S = a * S + p * (v - u)'\n out o[V] = u + S' * q",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        Spec *s = with_body(body[i]);
        check_gradient(s, NULL, 4, 11 + i);
        spec_close(s);
    }
}

/* What is not given counts as zero, what is not wanted is not touched; a bad size is a message. */
static void absent_arguments(void **state) {
    (void)state;
    Spec *s = with_body("S = a * S + p * v'\n out o[V] = S' * q\n out r = sum(p)");
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &tiny, &s->d);
    Data *x = data_new(&s->arena, k, 3, 5);
    double dr[3] = {1, 2, 3}, dp[12], *din[MAX_PORTS] = {dp};
    const double *dout[2] = {NULL, dr};
    ReferenceGrad args = {.T = 3, .in = x->in_const, .dout = dout, .din = din};
    assert_true(reference_gradient(&s->arena, s->file, NULL, &tiny, &args, &s->d));
    for (int i = 0; i < 12; i++)
        assert_true(dp[i] == i / 4 + 1);
    SpecBind bad = {(const SpecDim[]){{"K", -3}}, 1};
    assert_false(reference_gradient(&s->arena, s->file, NULL, &bad, &args, &s->d));
    assert_int_equal(s->d.errors, 1);
    spec_close(s);
}

/* One token, o = S' q: dq is (1 + back h) times the sum over V of S (1 + state h) do, dS0 = q do' likewise,
 * and S itself is not touched: dp = dS v is exact without `back`. */
static void products_are_rounded(void **state) {
    (void)state;
    enum { K = 4, V = 2, N = K * V };
    static const Roundings by[] = {{0, 0, 3}, {.01, 0, 3}, {.01, 0, 4}, {0, .01, 3}, {0, .01, 4}};
    double dq[5][K], dp[5][K], dS[5][N];
    Spec *s = with_body("S = a * S + p * v'\n out o[V] = S' * q");
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &tiny, &s->d);
    Data *x = data_new(&s->arena, k, 1, 5);
    const double dout[V] = {1, -.5}, *douts[] = {dout};
    for (int n = 0; n < 5; n++) {
        double *din[MAX_PORTS] = {dp[n], dq[n]};
        memset(dS[n], 0, sizeof dS[n]);
        ReferenceGrad args = {.T = 1, .in = x->in_const, .dout = douts, .din = din,
                              .state = x->args.state, .dstate = dS[n], .rounded = by[n]};
        assert_true(reference_gradient(&s->arena, s->file, NULL, &tiny, &args, &s->d));
    }
    double a = x->in[4][0];
    for (int i = 0; i < K; i++) {
        double terms = 0;
        for (int j = 0; j < V; j++)
            terms += fabs((a * x->args.state[i * V + j] + x->in[0][i] * x->in[2][j]) * dout[j]);
        for (int n = 1; n < 5; n++) {
            assert_true(dq[n][i] != dq[0][i] && fabs(dq[n][i] - dq[0][i]) <= .01 * terms);
            if (by[n].back > 0)
                assert_true(fabs(dq[n][i] - dq[0][i]) <= .01 * fabs(dq[0][i]) &&
                            fabs(dp[n][i] - dp[0][i]) <= .01 * fabs(dp[0][i]));
        }
        assert_true(dq[1][i] != dq[2][i] && dq[3][i] != dq[4][i]);
    }
    for (int i = 0; i < N; i++) {
        assert_true(dS[1][i] != dS[0][i] && fabs(dS[1][i] - dS[0][i]) <= .0101 * fabs(dS[0][i]));
        assert_true(dS[3][i] == dS[0][i]);
    }
    spec_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spec),
        cmocka_unit_test(every_form),
        cmocka_unit_test(absent_arguments),
        cmocka_unit_test(products_are_rounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
