/* The gradient of a kernel, derived by kernel_adjoint from its recurrence and from its chunk form where
 * there is one, over lengths around the chunk and gates from 0 to resets, with and without states,
 * for any subset of outputs.
 *
 *   specs    it equals the reference's gradient, which knows nothing of chunks, to 1e-9
 *   kernels  built by hand, and random ones: along a random direction it is the forward kernel's
 *            derivative by differences
 *   all      every later pass keeps what the gradient kernel means, and its text parses back
 *
 * GDR_SEED=n replays the random kernel printed as seed n. */
#include "frontend/frontend.h"
#include "tests/prop/recurrences.h"

#include <glob.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

enum { RANDOM_CASES = 200, REGIMES = 6 };

/* A spec with sizes for its dims. */
typedef struct Spec {
    Interner names;
    Diag d;
    SpecFile *file;
    const SpecBind *bind;
} Spec;

typedef struct Case {
    Arena *arena;
    const Kernel *forward; /* recurrence */
    Data at;               /* inputs, initial state */
    double **direction;    /* by input; the state last */
    double **upstream;     /* by output; the final state last */
    uint64_t outs;         /* outputs with an upstream gradient */
    bool stateless;        /* no initial state and no gradient of the final one */
    uint64_t seed;
    int64_t T;
} Case;

static int64_t in_size(const Kernel *k, int i, int64_t T) {
    return shape_elements(k, k->in.at[i].shape) * (k->in.at[i].is_param ? 1 : T);
}

static int64_t state_size(const Kernel *k) {
    return (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
}

static double *normal_numbers(Arena *a, Rng *r, int64_t n) {
    double *x = NEW_ARRAY(a, double, n + 1);
    for (int64_t i = 0; i < n; i++)
        x[i] = rng_normal(r);
    return x;
}

static Case case_new(Arena *a, const Kernel *forward, uint64_t seed, int64_t T, int regime) {
    Rng r = {seed ^ 0xadd};
    Case c = {.arena = a, .forward = forward, .seed = seed, .T = T};
    c.at = data_fill(a, forward, &r, T, regime);
    for (int i = 0; i < forward->in.count; i++) /* gates that are shut: a decay without a logarithm */
        for (int64_t j = 0; forward->in.at[i].lo == 0 && j < in_size(forward, i, T); j++)
            if (rng_below(&r, 6) == 0)
                ((double *)c.at.args.in[i])[j] = 0;
    c.direction = NEW_ARRAY(a, double *, forward->in.count + 1);
    c.upstream = NEW_ARRAY(a, double *, forward->out.count + 1);
    for (int i = 0; i < forward->in.count; i++)
        c.direction[i] = normal_numbers(a, &r, in_size(forward, i, T));
    for (int o = 0; o < forward->out.count; o++)
        c.upstream[o] = normal_numbers(a, &r, c.at.out_size[o]);
    c.direction[forward->in.count] = normal_numbers(a, &r, state_size(forward));
    c.upstream[forward->out.count] = normal_numbers(a, &r, state_size(forward));
    c.outs = forward->out.count > 1 && rng_below(&r, 2) ? rng_next(&r) : ~0ull;
    return c;
}

/* The sum of upstream gradients times outputs and final state, at inputs moved by h. */
static double moved(const Case *c, double h) {
    const Kernel *k = c->forward;
    const double **in = NEW_ARRAY(c->arena, const double *, k->in.count + 1);
    for (int i = 0; i < k->in.count; i++) {
        int64_t n = in_size(k, i, c->T);
        double *x = NEW_ARRAY(c->arena, double, n + 1);
        for (int64_t j = 0; j < n; j++)
            x[j] = c->at.args.in[i][j] + h * c->direction[i][j];
        in[i] = x;
    }
    EvalArgs args = c->at.args;
    args.in = in;
    for (int64_t j = 0; j < state_size(k); j++)
        args.state[j] = c->at.state0[j] + h * c->direction[k->in.count][j];
    kernel_eval(k, c->arena, &args);
    double sum = 0;
    for (int o = 0; o < k->out.count; o++)
        for (int64_t j = 0; j < c->at.out_size[o] && c->outs >> o & 1; j++)
            sum += c->upstream[o][j] * args.out[o][j];
    for (int64_t j = 0; j < state_size(k); j++)
        sum += c->upstream[k->out.count][j] * args.state[j];
    return sum;
}

/* Gradients by the gradient kernel: all outputs in order, then the initial state's. */
static double *gradients(const Case *c, const Kernel *grad, int64_t *count) {
    const Kernel *k = c->forward;
    const double **in = NEW_ARRAY(c->arena, const double *, grad->in.count + 1);
    int next = 0;
    for (int i = 0; i < k->in.count; i++)
        in[next++] = c->at.args.in[i];
    for (int o = 0; o < k->out.count; o++)
        if (c->outs >> o & 1)
            in[next++] = c->upstream[o];
    assert_int_equal(next, grad->in.count);
    int64_t total = state_size(k), at = 0;
    for (int i = 0; i < k->in.count; i++)
        total += in_size(k, i, c->T);
    double *all = NEW_ARRAY(c->arena, double, total + 1);
    double **out = NEW_ARRAY(c->arena, double *, k->in.count + 1);
    for (int i = 0; i < k->in.count; at += in_size(k, i++, c->T))
        out[i] = all + at;
    EvalArgs args = {.T = c->T, .in = in, .out = out, .costate = all + at};
    args.state = NEW_ARRAY(c->arena, double, state_size(k));
    memcpy(args.state, c->at.state0, (size_t)state_size(k) * sizeof(double));
    memcpy(all + at, c->upstream[k->out.count], (size_t)state_size(k) * sizeof(double));
    if (c->stateless) {
        args.state = args.costate = NULL;
        memset(all + at, 0, (size_t)state_size(k) * sizeof(double));
    }
    kernel_eval(grad, c->arena, &args);
    *count = total;
    return all;
}

static void fail_case(const Case *c, const Kernel *k, const char *pass, const char *what) {
    Buf text;
    buf_init(&text, c->arena);
    kernel_print(k, &text);
    fail_msg("after %s: %s (GDR_SEED=%llu T=%lld)\n%s", pass, what, (unsigned long long)c->seed,
             (long long)c->T, text.text);
}

static void check_direction(const Case *c, const Kernel *grad, const double *g) {
    const Kernel *k = c->forward;
    const double h = 1e-4;
    double want = (8 * (moved(c, h) - moved(c, -h)) - (moved(c, 2 * h) - moved(c, -2 * h))) / (12 * h);
    double got = 0, scale = fabs(moved(c, 0));
    for (int i = 0; i <= k->in.count; i++) {
        int64_t n = i < k->in.count ? in_size(k, i, c->T) : state_size(k);
        for (int64_t j = 0; j < n; j++, g++) {
            got += *g * c->direction[i][j];
            scale += fabs(*g * c->direction[i][j]);
        }
    }
    char what[96];
    snprintf(what, sizeof what, "derivative %.12g, by differences %.12g", got, want);
    if (!(fabs(want - got) <= 1e-7 * scale))
        fail_case(c, grad, "adjoint", what);
}

/* The same list as `gradients` gives, by the reference. */
static double *reference_gradients(const Case *c, Spec *s) {
    const Kernel *k = c->forward;
    int64_t total = state_size(k), at = 0;
    for (int i = 0; i < k->in.count; i++)
        total += in_size(k, i, c->T);
    double *all = NEW_ARRAY(c->arena, double, total + 1);
    double **din = NEW_ARRAY(c->arena, double *, k->in.count + 1);
    const double **dout = NEW_ARRAY(c->arena, const double *, k->out.count + 1);
    for (int i = 0; i < k->in.count; at += in_size(k, i++, c->T))
        din[i] = all + at;
    for (int o = 0; o < k->out.count; o++)
        dout[o] = c->outs >> o & 1 ? c->upstream[o] : NULL;
    ReferenceGrad args = {.T = c->T, .in = c->at.args.in, .dout = dout, .din = din};
    if (!c->stateless) {
        args.state = c->at.state0;
        args.dstate = all + at;
        memcpy(all + at, c->upstream[k->out.count], (size_t)state_size(k) * sizeof(double));
    }
    assert_true(reference_gradient(c->arena, s->file, k->name, s->bind, &args, &s->d));
    return all;
}

static void check_pass(const Case *c, const Kernel *grad, const char *pass, const double *want) {
    int64_t n;
    const double *got = gradients(c, grad, &n);
    double scale = 1e-12, worst = 0;
    for (int64_t i = 0; i < n; i++) {
        scale = fmax(scale, fabs(want[i]));
        worst = fmax(worst, fabs(want[i] - got[i]));
        if (!isfinite(want[i]) || !isfinite(got[i]))
            fail_case(c, grad, pass, "not finite");
    }
    if (!(worst <= 1e-9 * scale))
        fail_case(c, grad, pass, "another gradient");
}

static void check_text(const Case *c, const Kernel *grad, Interner *names, const char *pass) {
    Buf text, again;
    Diag d;
    buf_init(&text, c->arena);
    buf_init(&again, c->arena);
    kernel_print(grad, &text);
    const Source *source = source_from_text(c->arena, "grad.gir", text.text, text.len);
    diag_init(&d, c->arena, source);
    Kernel *k = kernel_parse(c->arena, names, source, &d);
    if (!k || kernel_verify(k))
        fail_case(c, grad, pass, k ? kernel_verify(k) : "does not parse back");
    kernel_print(k, &again);
    assert_string_equal(text.text, again.text);
}

/* The gradient of the recurrence itself: for every kernel, chunk form or not. */
static void check_tokens(const Case *c, Interner *names, const Kernel *token, const double *want) {
    Kernel *grad = kernel_adjoint(token, c->outs, ~0ull);
    const char *why = kernel_verify(grad);
    if (why)
        fail_case(c, grad, "adjoint of the recurrence", why);
    check_pass(c, grad, "adjoint of the recurrence", want);
    check_text(c, grad, names, "adjoint of the recurrence");
}

/* The gradient of the chunk form, and what the later passes make of it. */
static void check_chunks(const Case *c, Interner *names, Kernel *grad, const double *want) {
    const char *why = kernel_verify(grad);
    if (why)
        fail_case(c, grad, "adjoint", why);
    check_pass(c, grad, "adjoint", want);
    for (int p = pass_find("collapse"); p < pass_count; p++) {
        pass_info[p].run(grad);
        if ((why = kernel_verify(grad)))
            fail_case(c, grad, pass_info[p].name, why);
        check_pass(c, grad, pass_info[p].name, want);
        check_text(c, grad, names, pass_info[p].name);
    }
}

/* `spec` NULL: against differences. False when there is no chunk form. */
static bool check_kernel(Arena *a, Interner *names, const Kernel *original, Spec *spec, uint64_t seed,
                         int rows) {
    Kernel *forward = kernel_clone(original);
    pass_fold(forward);
    pass_normal(forward);
    const Kernel *token = seed % 2 ? kernel_clone(forward) : original;
    bool chunkable = forward->facts.chunkable;
    if (chunkable) {
        kernel_set_chunk(forward, rows);
        passes_run_after(forward, "normal", "collapse", NULL);
    }
    int64_t C = chunkable ? forward->axis.at[AXIS_C].size : rows;
    const int64_t T[] = {0, 1, C - 1, C, C + 1, 3 * C + 5};
    for (int t = 0; t < 6; t++) {
        int64_t n;
        Case c = case_new(a, original, seed, T[t], (int)(seed % REGIMES));
        Kernel *grad = kernel_adjoint(chunkable ? forward : token, c.outs, ~0ull);
        c.stateless = spec && rng_below(&(Rng){seed + (uint64_t)t}, 3) == 0;
        const double *want = spec ? reference_gradients(&c, spec) : gradients(&c, grad, &n);
        if (!spec)
            check_direction(&c, grad, want);
        check_tokens(&c, names, token, want);
        if (chunkable)
            check_chunks(&c, names, grad, want);
    }
    return chunkable;
}

static void test_named(void **state) {
    (void)state;
    for (int which = 0;; which++) {
        Arena a;
        Interner names;
        arena_init(&a, NULL);
        intern_init(&names, &a);
        Kernel *k = named_kernel(&a, &names, which, 4, 3);
        for (uint64_t regime = 0; k && regime < REGIMES; regime++)
            for (int rows = 1; rows <= 16; rows *= 4)
                assert_true(check_kernel(&a, &names, k, NULL, regime, rows));
        arena_free(&a);
        if (!k)
            return;
    }
}

static void test_random(void **state) {
    (void)state;
    const char *replay = getenv("GDR_SEED");
    uint64_t only = replay ? strtoull(replay, NULL, 10) : 0;
    for (uint64_t seed = only ? only : 1; seed <= (only ? only : RANDOM_CASES); seed++) {
        Arena a;
        Interner names;
        Rng r = {seed};
        arena_init(&a, NULL);
        intern_init(&names, &a);
        Kernel *k = random_kernel(&a, &names, &r);
        assert_true(check_kernel(&a, &names, k, NULL, seed, 1 + rng_below(&r, 12)));
        arena_free(&a);
    }
}

/* specs ---------------------------------------------------------------------------------------- */

static void spec_open(Spec *s, Arena *a, const Source *source) {
    assert_non_null(source);
    intern_init(&s->names, a);
    diag_init(&s->d, a, source);
    s->file = spec_parse(a, &s->names, source, &s->d);
    if (!spec_check(s->file, &s->d)) {
        Buf text;
        buf_init(&text, a);
        diag_print_text(&s->d, &text, false);
        fail_msg("%s", text.text);
    }
}

/* How many of its variants, in all regimes, have a chunk form. K is even, for those that turn pairs. */
static int check_spec(Source *(*load)(Arena *, const char *), const char *what, uint64_t seed) {
    int chunked = 0;
    for (uint64_t regime = 0; regime < REGIMES; regime++) {
        Arena a;
        Spec s;
        Rng r = {seed * REGIMES + regime};
        arena_init(&a, NULL);
        spec_open(&s, &a, load(&a, what));
        const SpecDim dim[] = {{"K", 2 + 2 * rng_below(&r, 4)}, {"V", 1 + rng_below(&r, 8)}};
        const SpecBind bind = {dim, 2};
        s.bind = &bind;
        for (int v = 0; v < s.file->variant.count; v++) {
            const char *name = s.file->variant.at[v]->name;
            Kernel *k = spec_lower(&a, &s.names, s.file, name, &bind, &s.d);
            assert_non_null(k);
            chunked += check_kernel(&a, &s.names, k, &s, regime + REGIMES * rng_next(&r),
                                    1 + rng_below(&r, 20));
        }
        arena_free(&a);
    }
    return chunked;
}

static void test_specs(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    int chunked = 0;
    for (size_t i = 0; i < files.gl_pathc; i++)
        chunked += check_spec(source_from_file, files.gl_pathv[i], i);
    assert_true(chunked >= 20 * REGIMES);
    globfree(&files);
}

static Source *from_text(Arena *a, const char *text) {
    return source_from_text(a, "test.gdr", text, strlen(text));
}

/* What the specs of the repository do not have: several outs, nonlinear ones, several updates with
 * early reads, memories along time, decays without a logarithm, elementwise functions in every place. */
static void test_features(void **state) {
    (void)state;
    static const char *const body[] = {
        "S = diag(exp(g)) * S + p * v'\n out o[V] = silu(S' * q) .* w + x * v\n out r[V] = S' * p",
        "let u = S' * p\n S = exp(c) * S - q * u' + p * v'\n S = S - kn[1] * (S' * kn[0])' * bn[1]\n"
        "out o[V] = u + S' * q\n out y[V] = tanh(S' * kn[0]) / (1 + a^2)",
        "S = exp(c) * S + p * v' + a * prev(p) * prev(v)'\n"
        "out o[V] = S' * (q .* cos(cumsum(p)) + B .* sin(cumsum(p)))",
        "S = x * S + p * v'\n out o[V] = S' * q",
        "S = diag(1 - sigmoid(p)) * S - x * q * (S' * q)' + p * v'\n out o[V] = S' * q",
        "S = diag(exp(g) .* B) * S + A * p * (W[1] .* v)'\n out o[V] = S' * q\n out r = sum(p .* q) * A",
        "S = A * (S - sigmoid(a) * l2norm(p) * (S' * l2norm(p))') + exp(B) * w'\n out o[V] = S' * q",
        "for j in n { S = exp(c * bn[j]) * S - kn[j] * (S' * kn[j])' * x }\n S = S + p * v'\n"
        "out o[V] = S' * q\n out r[K] = abs(p) + relu(q) .* min(p, q) - max(a, q) * x^1.5",
        "S = sqrt(sigmoid(a)) * S / exp(-c) + (p .^ 2) * (v .* w)'\n"
        "out o[V] = S' * softplus(q) * rsqrt(1 + dot(q, q)) + log(2 + v.^2)",
        "S = S + p * v'\n out o[V] = S' * q * sum(g)\n out r[K] = p * prev(x) + cumsum(a)",
        "let y = cumsum(a * p)\n S = exp(c) * S + (q .* cos(y) + turn(q) .* sin(y)) * v'\n"
        "out o[V] = S' * turn(prev(p)) * sum(turn(q))\n out r[K] = turn(turn(p)) .* turn(B)",
        "S = S - turn(p) * (S' * turn(l2norm(q)))' + p * turn(bn)[0] * v'\n out o[V] = S' * q",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        char text[1000];
        snprintf(text, sizeof text,
                 "variant t { dim K = 4, V = 2, n = 2\n in p[K], q[K], v[V], w[V], a\n"
                 "in g[K] <= 0, c <= 0, x in [0, 1]\n in kn[n, K], bn[n] in [0, 1]\n param A, B[K], W[n, V]\n"
                 "state S[K, V]\n%s\n}", body[i]);
        assert_int_equal(check_spec(from_text, text, 100 + i), REGIMES);
    }
}

/* What has no chunk form: decays and reads on the value side, reads that are scaled along V, summed,
 * turned or put through a function before they are written, keys, rows and decays made of reads. */
static void test_recurrent_only(void **state) {
    (void)state;
    static const char *const body[] = {
        "S = S * diag(exp(h)) + p * v'\n out o[V] = S' * q",
        "S = diag(exp(g)) * S * diag(x * sigmoid(w)) - p * (S' * p)' + p * v'\n out o[K] = S * v",
        "S = S + p * (v - w .* (S' * p))'\n out o[V] = S' * q\n out r = sum(S * w)",
        "S = exp(c) * S + p * tanh(v + S' * p)'\n out o[V] = silu(S' * q)",
        "let r = S' * q\n S = exp(c) * S + p * (v * rsqrt(1 + dot(r, r)))'\n out o[V] = S' * p + r",
        "let y = S * w\n S = S - (S * v) * v' * x + l2norm(p + y) * v'\n"
        "out o[V] = S' * (q + 0.1 * y)\n out r[K] = S * prev(w)",
        "let y = turn(S * w)\n S = exp(c) * S + A * (p + y) * v'\n"
        "out o[V] = S' * q * cumsum(a)",
        "for j in n { S = S * diag(sigmoid(W[j])) - kn[j] * (w .* (S' * kn[j]))' * bn[j] }\n"
        "S = S + p * v' * A\n out o[V] = S' * (q .* cos(cumsum(p)))\n out y[K] = S * cumsum(v)",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        char text[1000];
        snprintf(text, sizeof text,
                 "variant t { dim K = 4, V = 2, n = 2\n in p[K], q[K], v[V], w[V], a\n"
                 "in g[K] <= 0, h[V] <= 0, c <= 0, x in [0, 1]\n in kn[n, K], bn[n] in [0, 1]\n"
                 "param A, B[K], W[n, V]\n state S[K, V]\n%s\n}", body[i]);
        assert_int_equal(check_spec(from_text, text, 200 + i), 0);
    }
}

/* What only a kernel can say: decays and rows made of reads, a scalar for a constant vector. */
static void test_recurrent_built(void **state) {
    (void)state;
    for (uint64_t regime = 0; regime < REGIMES; regime++) {
        Arena a;
        Interner names;
        arena_init(&a, NULL);
        intern_init(&names, &a);
        Build b = build_new(&a, &names, "built", 3, 4);
        int p = build_in(&b, "p", "K"), w = build_in(&b, "w", "V"), x = build_in(&b, "x", "");
        int y = read_(&b, w); /* [K] */
        decay_(&b, emit1(b.k, OP_sigmoid, add_(&b, y, p), AT));
        update_(&b, x, w);
        int r = read_(&b, add_(&b, p, y));
        decay_(&b, emit1(b.k, OP_tanh, r, AT));
        int mean = emit_sum(b.k, mul_(&b, r, w), AXIS_V, AT);
        update_(&b, p, emit1(b.k, OP_tanh, mean, AT));
        update_(&b, emit_const(b.k, 0.5), x);
        decay_(&b, exp_(&b, emit1(b.k, OP_neg, mul_(&b, x, x), AT)));
        build_out(&b, "o", read_(&b, p));
        build_out(&b, "s", emit_sum(b.k, read_(&b, r), AXIS_K, AT));
        assert_false(check_kernel(&a, &names, b.k, NULL, regime, 5));
        arena_free(&a);
    }
}

/* Gradients of some inputs only are the same ones, and what they do not need is not there. */
static void test_some_inputs(void **state) {
    (void)state;
    Arena a;
    Spec s;
    int64_t n;
    arena_init(&a, NULL);
    spec_open(&s, &a, from_text(&a, "variant t { dim K = 3, V = 2\n in q[K], k[K], do[V], g <= 0\n"
                                    "param ddo\n state S[K, V]\n S = exp(g) * S + ddo * k * do'\n"
                                    "out o[V] = S' * q\n out r = sum(q) }"));
    Kernel *token = spec_lower(&a, &s.names, s.file, NULL, NULL, &s.d), *k = kernel_clone(token);
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, 4);
    passes_run_after(k, "normal", "collapse", NULL);
    Case c = case_new(&a, token, 5, 11, 2);
    c.outs = 1;
    Kernel *all = kernel_adjoint(k, c.outs, ~0ull), *some = kernel_adjoint(k, c.outs, 1 << 2 | 1 << 4);
    assert_null(kernel_verify(some));
    assert_int_equal(some->out.count, 2);
    assert_string_equal(some->out.at[0].name, "ddo");
    assert_string_equal(some->out.at[1].name, "dddo");
    assert_true(some->out.at[1].is_param && !some->out.at[0].is_param);
    assert_int_equal(some->in.count, 6);
    assert_string_equal(some->in.at[5].name, "dddo"); /* of o: do and ddo are taken */
    assert_true(some->inst.count < all->inst.count);
    const double *want = gradients(&c, all, &n);
    double dv[22], dparam, *out[] = {dv, &dparam};
    const double *in[6];
    for (int i = 0; i < 5; i++)
        in[i] = c.at.args.in[i];
    in[5] = c.upstream[0];
    double *costate = NEW_ARRAY(&a, double, 6), *S = NEW_ARRAY(&a, double, 6);
    memcpy(costate, c.upstream[2], 6 * sizeof(double));
    memcpy(S, c.at.state0, 6 * sizeof(double));
    EvalArgs args = {11, in, out, S, costate};
    kernel_eval(some, &a, &args);
    for (int i = 0; i < 22; i++)
        assert_true(fabs(dv[i] - want[2 * 33 + i]) <= 1e-12);
    assert_true(fabs(dparam - want[2 * 33 + 22 + 11]) <= 1e-12 * (1 + fabs(dparam)));
    arena_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_recurrent_only),
        cmocka_unit_test(test_recurrent_built),
        cmocka_unit_test(test_some_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
