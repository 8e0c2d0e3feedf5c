/* The host's code of gradient kernels against the reference's gradient: every spec, element types,
 * head groups, packed and dense batches, chunks and dims that do not divide anything, resets, with and
 * without states. */
#include "tests/unit/host_run.h"

#include <glob.h>

/* Run.token is the gradient kernel; `from` the recurrence that it is of. */
typedef struct Grad {
    Run run;
    Kernel *from;
    SpecBind bind;
    SpecDim dim[2];
    Guarded dstate, dstate0, ws;
} Grad;

/* By c->algo of the chunk form or of the recurrence; false when the spec has no chunk form. */
static bool compile_gradient(Grad *g) {
    Run *r = &g->run;
    const Case *c = r->c;
    Spec *s = r->spec;
    g->dim[0] = (SpecDim){"K", c->K};
    g->dim[1] = (SpecDim){"V", c->V};
    g->bind = (SpecBind){g->dim, 2};
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &g->bind, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    g->from = kernel_clone(k);
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : c->elem;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = c->elem;
    passes_run(k, "normal", NULL);
    if (c->algo == ALGO_chunk) {
        if (!k->facts.chunkable)
            return false;
        kernel_set_chunk(k, c->rows);
        passes_run_after(k, "normal", "peel", NULL);
    }
    r->token = kernel_adjoint(k, ~0ull, ~0ull);
    if (c->algo == ALGO_chunk)
        passes_run_after(r->token, "collapse", NULL, NULL);
    const CgOptions opt = {.target = "host", .algo = c->algo, .io = c->elem,
                           .opt_level = c->opt_level};
    const char *why = NULL;
    char text[256];
    r->module = codegen_host(&s->arena, r->token, &opt, &why);
    if (!r->module)
        fail_msg("%s: %s", k->name, why);
    r->code = hostjit_load(r->module->object, r->module->object_len, text, sizeof text);
    if (!r->code)
        fail_msg("%s", text);
    return true;
}

static int64_t out_size(const Grad *g, int o) {
    const Port *p = &g->run.token->out.at[o];
    const Case *c = g->run.c;
    return shape_elements(g->run.token, p->shape) * c->H * (p->is_param ? c->N : g->run.tokens);
}

static void make_gradient_tensors(Grad *g) {
    Run *r = &g->run;
    const Case *c = r->c;
    make_tensors(r);
    for (int o = 0; o < r->token->out.count; o++) {
        guarded_free(&r->out[o]);
        r->out[o] = guarded_new((size_t)(out_size(g, o) * elem_size(r->token->out.at[o].elem)));
    }
    int64_t states = (int64_t)c->N * c->H * c->K * c->V;
    g->dstate = guarded_new((size_t)(4 * states));
    g->dstate0 = guarded_new((size_t)(4 * states));
    for (int64_t j = 0; j < states; j++)
        element_set(g->dstate.at, j, ELEM_f32, c->final ? 2 * random_unit(&r->seed) - 1 : 0);
    int64_t slots = frame_slots(c->length ? r->tokens : c->T, c->N, c->length, r->module->chunk);
    g->ws = guarded_new((size_t)(slots * c->H * r->module->ws_bytes_per_slot_head));
}

static void launch_gradient(Grad *g) {
    Run *r = &g->run;
    const Case *c = r->c;
    const Kernel *k = r->token;
    int64_t frame[FRAME_PORTS + 3 * MAX_PORTS + 2] = {0};
    frame[FRAME_T] = c->length ? r->tokens : c->T;
    frame[FRAME_N] = c->N;
    frame[FRAME_H] = c->H;
    frame[FRAME_CU] = c->length ? (int64_t)(intptr_t)r->cu.at : 0;
    frame[FRAME_CU_WIDTH] = c->cu_width;
    frame[FRAME_S0] = c->start ? (int64_t)(intptr_t)r->s0.at : 0;
    frame[FRAME_WS] = (int64_t)(intptr_t)g->ws.at;
    for (int i = 0; i < k->in.count; i++) {
        frame[frame_in_ptr(k, i)] = (int64_t)(intptr_t)r->in[i].at;
        frame[frame_in_heads(k, i)] = r->heads[i];
    }
    for (int o = 0; o < k->out.count; o++)
        frame[frame_out_ptr(k, o)] = (int64_t)(intptr_t)r->out[o].at;
    frame[frame_costate(k)] = c->final ? (int64_t)(intptr_t)g->dstate.at : 0;
    frame[frame_costate(k) + 1] = c->start ? (int64_t)(intptr_t)g->dstate0.at : 0;
    assert_int_equal(frame_fields(k), frame_sum(k, k->out.count));
    const CgEntry *e = &r->module->entry.at[0];
    HostEntry *f = hostjit_symbol(r->code, e->symbol);
    assert_non_null(f);
    Guarded scratch = guarded_new((size_t)((e->scratch_bytes + 63) / 64 * 64));
    f(frame, 0, 1, scratch.at);
    f(frame, 1, (int64_t)c->N * c->H, scratch.at);
    guarded_free(&scratch);
}

/* What head `head` of sequence n sees of input i, [T or 1, shape]. */
static double *input_of(Grad *g, Arena *a, int i, int n, int head) {
    Run *r = &g->run;
    const Port *p = &r->token->in.at[i];
    int64_t size = shape_elements(r->token, p->shape), own = head * r->heads[i] / r->c->H;
    int64_t rows = p->is_param ? 1 : length_of(r->c, n), first = p->is_param ? 0 : first_of(r->c, n);
    double *x = NEW_ARRAY(a, double, rows * size + 1);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < size; j++)
            x[t * size + j] = element_get(r->in[i].at, ((first + t) * r->heads[i] + own) * size + j,
                                          p->elem);
    return x;
}

static double compare_output(Grad *g, int o, int n, int head, const double *want) {
    Run *r = &g->run;
    const Port *p = &r->token->out.at[o];
    Error e = {0};
    int64_t size = shape_elements(r->token, p->shape), rows = p->is_param ? 1 : length_of(r->c, n);
    int64_t first = p->is_param ? n : first_of(r->c, n);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < size; j++) {
            int64_t at = ((first + t) * r->c->H + head) * size + j;
            add_error(&e, want[t * size + j], element_get(r->out[o].at, at, p->elem));
        }
    return error_ratio(&e);
}

/* The worst error of any gradient of one sequence and head. */
static double compare_gradient(Grad *g, int n, int head, const char **which) {
    Run *r = &g->run;
    const Case *c = r->c;
    const Kernel *k = g->from;
    int64_t T = length_of(c, n), nstate = (int64_t)c->K * c->V, at = ((int64_t)n * c->H + head) * nstate;
    Arena a;
    arena_init(&a, NULL);
    const double *in[MAX_PORTS], *dout[MAX_PORTS];
    double *din[MAX_PORTS], *state = NEW_ARRAY(&a, double, nstate), *dstate = NEW_ARRAY(&a, double, nstate);
    for (int i = 0; i < k->in.count; i++) {
        in[i] = input_of(g, &a, i, n, head);
        int64_t rows = k->in.at[i].is_param ? 1 : T;
        din[i] = NEW_ARRAY(&a, double, rows * shape_elements(k, k->in.at[i].shape) + 1);
    }
    for (int o = 0; o < k->out.count; o++)
        dout[o] = input_of(g, &a, k->in.count + o, n, head);
    for (int64_t j = 0; j < nstate; j++) {
        state[j] = element_get(r->s0.at, at + j, ELEM_f32);
        dstate[j] = element_get(g->dstate.at, at + j, ELEM_f32);
    }
    ReferenceGrad args = {.T = T, .in = in, .dout = dout, .din = din, .state = state,
                          .dstate = dstate};
    assert_true(reference_gradient(&a, r->spec->file, NULL, &g->bind, &args, &r->spec->d));
    double worst = 0;
    for (int o = 0; o < k->in.count; o++) {
        double e = compare_output(g, o, n, head, din[o]);
        if (e >= worst)
            worst = e, *which = r->token->out.at[o].name;
    }
    Error e = {0};
    for (int64_t j = 0; j < nstate && c->start; j++)
        add_error(&e, dstate[j], element_get(g->dstate0.at, at + j, ELEM_f32));
    if (error_ratio(&e) > worst)
        worst = error_ratio(&e), *which = "dS0";
    arena_free(&a);
    return worst;
}

static bool run_gradient(const Case *c) {
    static const double limit[] = {[ELEM_f32] = 3e-5, [ELEM_bf16] = 6e-3, [ELEM_f16] = 1e-3};
    Grad g = {.run = {.c = c, .seed = 12345}};
    char path[512];
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, c->spec ? c->spec : "");
    g.run.spec = c->text ? spec_open(c->text) : spec_load(path);
    if (g.run.spec->d.errors)
        fail_msg("%s", messages(g.run.spec));
    if (!compile_gradient(&g)) {
        spec_close(g.run.spec);
        return false;
    }
    make_gradient_tensors(&g);
    launch_gradient(&g);
    for (int n = 0; n < c->N; n++)
        for (int head = 0; head < c->H; head++) {
            const char *which = "";
            double e = compare_gradient(&g, n, head, &which);
            if (!(e <= limit[c->elem]))
                fail_msg("%s K=%d V=%d %s rows=%d, sequence %d of %d tokens, head %d: %s off by %g",
                         c->text ? c->text : c->spec, c->K, c->V, elem_name(c->elem), c->rows, n,
                         (int)length_of(c, n), head, which, e);
        }
    guarded_free(&g.dstate);
    guarded_free(&g.dstate0);
    guarded_free(&g.ws);
    close_run(&g.run);
    return true;
}

/* cases ---------------------------------------------------------------------------------------- */

static void test_specs(void **state) {
    (void)state;
    glob_t files;
    int done = 0;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        const char *name = strrchr(files.gl_pathv[i], '/') + 1;
        char spec[256];
        snprintf(spec, sizeof spec, "%.*s", (int)strlen(name) - 4, name);
        Case c = usual;
        c.spec = spec, c.T = 100, c.rows = 32;
        done += wanted(spec) && run_gradient(&c);
    }
    assert_true(done >= (getenv("GDR_SPEC") ? 1 : 20));
    globfree(&files);
}

/* A vector of one element has no length to normalise: gla and retnet do not. */
static void test_dims(void **state) {
    (void)state;
    static const struct { const char *spec; int K, V; } dims[] = {
        {"gla", 1, 1},        {"retnet", 1, 1},   {"gdn2", 7, 130}, {"gated_deltanet", 100, 17},
        {"deltanet", 33, 64}, {"rwkv7", 2, 5},    {"gla", 65, 40},  {"gated_deltaproduct", 12, 33},
    };
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        Case c = usual;
        c.spec = dims[d].spec, c.K = dims[d].K, c.V = dims[d].V, c.T = 40, c.H = 1, c.rows = 32;
        if (wanted(c.spec))
            assert_true(run_gradient(&c));
    }
}

static const char *const few[] = {"gdn2", "gated_deltanet", "gla"};
enum { FEW = sizeof few / sizeof few[0] };

static void test_chunks(void **state) {
    (void)state;
    static const int rows[] = {1, 2, 15, 17, 64, 96};
    for (size_t n = 0; n < sizeof rows / sizeof rows[0]; n++) {
        Case c = usual;
        c.spec = n % 2 ? "gdn2" : "gated_deltaproduct", c.rows = rows[n], c.T = 67, c.H = 1;
        if (wanted(c.spec))
            assert_true(run_gradient(&c));
    }
}

static void test_packed(void **state) {
    (void)state;
    static const int length[] = {5, 0, 64, 1, 31, 70};
    for (int f = 0; f < FAMILIES; f++) {
        Case c = usual;
        c.spec = families[f], c.N = 6, c.length = length, c.cu_width = f % 2 ? 4 : 8, c.rows = 32;
        if (wanted(c.spec))
            assert_true(run_gradient(&c));
    }
}

static void test_elements(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++)
        for (Elem e = ELEM_bf16; e <= ELEM_f16; e++) {
            Case c = usual;
            c.spec = few[f], c.elem = e, c.T = 70, c.rows = 32;
            if (wanted(c.spec))
                assert_true(run_gradient(&c));
        }
}

static void test_gates_and_states(void **state) {
    (void)state;
    static const double gate[] = {0, -1e-6, -1, -20, NAN};
    for (int f = 0; f < FEW; f++)
        for (size_t n = 0; n < sizeof gate / sizeof gate[0]; n++) {
            Case c = usual;
            c.spec = few[f], c.gate = gate[n], c.resets = isnan(gate[n]), c.T = 70, c.N = 2;
            c.start = n % 2, c.final = n / 2 % 2, c.rows = 32;
            if (wanted(c.spec))
                assert_true(run_gradient(&c));
        }
}

/* Memories along time, several updates with early reads, several outs, rows of tables, decays with a
 * true derivative. */
static void test_features(void **state) {
    (void)state;
    static const char *const body[] = {
        "S = exp(c) * S + p * v' + a * prev(p) * prev(v)'\n"
        "out o[V] = S' * (q .* cos(cumsum(p)) + B .* sin(cumsum(p)))\n out r = prev(a) * cumsum(c)",
        "let u = S' * p\n S = exp(c) * S - q * u' + p * v'\n S = S - kn[1] * (S' * kn[0])' * bn[1]\n"
        "out o[V] = u + S' * q\n out y[V] = tanh(S' * kn[0]) / (1 + a^2)",
        "S = x * S + p * v'\n out o[V] = S' * q",
        "S = diag(1 - sigmoid(p)) * S - x * q * (S' * q)' + p * v'\n out o[V] = S' * q\n out r[K] = A * p",
        "S = diag(exp(g) .* B) * S + A * p * (W[1] .* v)'\n out o[V] = S' * q\n out r = sum(p .* q) * A",
        "for j in n { S = exp(c * bn[j]) * S - kn[j] * (S' * kn[j])' * x }\n S = S + p * v'\n"
        "out o[V] = S' * q\n out r[K] = abs(p) + relu(q) .* min(p, q) - max(a, q) * x^1.5",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        char text[1000];
        snprintf(text, sizeof text,
                 "variant t { dim K = 3, V = 2, n = 2\n in p[K], q[K], v[V], w[V], a\n"
                 "in g[K] <= 0, c <= 0, x in [0, 1]\n in kn[n, K], bn[n] in [0, 1]\n param A, B[K], W[n, V]\n"
                 "state S[K, V]\n%s\n}", body[i]);
        Case c = usual;
        c.text = text, c.K = 20, c.V = 12, c.T = 45, c.rows = 16, c.N = 2;
        assert_true(run_gradient(&c));
    }
}

/* Token by token: every spec, and what has no chunk form; segments and their borders; sizes that leave
 * a part of a vector. */
static void test_recurrent(void **state) {
    (void)state;
    static const char *const body[] = {
        "S = diag(exp(g)) * S * diag(x * sigmoid(w)) - p * (S' * p)' + p * v'\n out o[K] = S * v",
        "let r = S' * q\n S = exp(c) * S + p * (v * rsqrt(1 + dot(r, r)))'\n out o[V] = S' * p + r",
        "let y = S * w\n S = S - (S * v) * v' * x + l2norm(p + y) * v'\n"
        "out o[V] = S' * (q + 0.1 * y)\n out r[K] = S * prev(w) + B * cumsum(a)",
        "for j in n { S = S * diag(sigmoid(W[j])) - kn[j] * (w .* (S' * kn[j]))' * bn[j] }\n"
        "S = S + p * v' * A\n out o[V] = S' * (q .* cos(cumsum(p)))\n out r = sum(S * v)",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        char text[1000];
        snprintf(text, sizeof text,
                 "variant t { dim K = 3, V = 2, n = 2\n in p[K], q[K], v[V], w[V], a\n"
                 "in g[K] <= 0, c <= 0, x in [0, 1]\n in kn[n, K], bn[n] in [0, 1]\n"
                 "param A, B[K], W[n, V]\n state S[K, V]\n%s\n}", body[i]);
        static const struct { int K, V; } dims[] = {{1, 1}, {7, 33}, {20, 12}, {5, 130}};
        Case c = usual;
        c.algo = ALGO_recurrent, c.text = text, c.T = 70, c.N = 2;
        c.K = dims[i].K, c.V = dims[i].V;
        assert_true(run_gradient(&c));
    }
}

static void test_recurrent_sequences(void **state) {
    (void)state;
    static const char *const spec[] = {"gated_oja", "mamba3_siso", "gdn2_raw"};
    static const int length[] = {5, 0, 64, 1, 31, 130};
    for (int i = 0; i < 3; i++) {
        Case c = usual;
        c.algo = ALGO_recurrent, c.spec = spec[i], c.K = 20, c.V = 24;
        c.N = 6, c.length = length, c.cu_width = i % 2 ? 4 : 8, c.resets = i == 2;
        if (!wanted(spec[i]))
            continue;
        assert_true(run_gradient(&c));
        c.N = 1, c.length = NULL, c.T = 64, c.elem = i % 2 ? ELEM_f16 : ELEM_bf16;
        c.start = c.final = false;
        assert_true(run_gradient(&c));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs),   cmocka_unit_test(test_features),
        cmocka_unit_test(test_dims),    cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_packed),  cmocka_unit_test(test_elements),
        cmocka_unit_test(test_gates_and_states), cmocka_unit_test(test_recurrent),
        cmocka_unit_test(test_recurrent_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
