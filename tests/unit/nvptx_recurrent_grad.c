/* The gradient of the recurrence on the GPU's interpreter: one launch of its kernel, one of the sums.
 * Gradients of every input, of params and of initial states against the fp64 reference.
 *
 *   GDR_SPEC=NAME  this spec alone
 *   GDR_VERBOSE=1  the errors of everything that ran
 */
#include "tests/unit/grad_run.h"


/* reference ------------------------------------------------------------------------------------ */

/* Tokens of sequence n in a tensor, or the one row of a param. */
static int64_t rows_in(const GradRun *r, const Port *p, int n) {
    return p->is_param ? 1 : grad_length(r->c, n);
}

/* Where the rows of sequence n and head of head `head` begin; from row to row. */
static int64_t row_at(const GradRun *r, const Port *p, int heads, int n, int head, int64_t t) {
    int64_t first = p->is_param ? 0 : grad_first(r->c, n);
    return ((first + t) * heads + head * heads / r->c->H) * shape_elements(r->code, p->shape);
}

static double *input_of(GradRun *r, int i, int n, int head) {
    const Port *p = &r->code->in.at[i];
    int64_t size = shape_elements(r->code, p->shape), rows = rows_in(r, p, n);
    double *x = NEW_ARRAY(&r->arena, double, rows * size + 1);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < size; j++)
            x[t * size + j] = grad_get(r->in[i], row_at(r, p, r->heads[i], n, head, t) + j, p->elem);
    return x;
}

/* Adds what sequence n and `head` give to gradients laid out as the tensors are; `state` is [K,V]. */
static void add_reference(GradRun *r, double **sum, double *state, int n, int head) {
    const Kernel *k = r->token;
    const double *in[MAX_PORTS], *dout[MAX_PORTS];
    double *din[MAX_PORTS], *S0 = NEW_ARRAY(&r->arena, double, (int64_t)r->c->K * r->c->V);
    int64_t nstate = (int64_t)r->c->K * r->c->V, at = ((int64_t)n * r->c->H + head) * nstate;
    for (int i = 0; i < k->in.count; i++) {
        int64_t size = shape_elements(k, k->in.at[i].shape);
        in[i] = input_of(r, i, n, head);
        din[i] = NEW_ARRAY(&r->arena, double, rows_in(r, &k->in.at[i], n) * size + 1);
    }
    for (int o = 0; o < k->out.count; o++)
        dout[o] = input_of(r, k->in.count + o, n, head);
    for (int64_t j = 0; j < nstate; j++) {
        S0[j] = ((const float *)r->s0)[at + j];
        state[j] = ((const float *)r->ds)[at + j];
    }
    ReferenceGrad args = {.T = grad_length(r->c, n), .in = in, .dout = dout, .din = din, .state = S0,
                          .dstate = state};
    assert_true(reference_gradient(&r->arena, r->spec->file, NULL, &r->bind, &args, &r->spec->d));
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t size = shape_elements(k, p->shape);
        for (int64_t t = 0; t < rows_in(r, p, n); t++)
            for (int64_t j = 0; j < size; j++)
                sum[i][row_at(r, p, r->heads[i], n, head, t) + j] += din[i][t * size + j];
    }
}

/* comparing ------------------------------------------------------------------------------------ */

/* Of single heads in bf16 and f16 every part is rounded before it is summed. */
static void judge(GradRun *r, const char *name, const GradError *e) {
    double limit = r->c->elem == ELEM_f32 ? 1e-5 : r->c->elem == ELEM_f16 ? 1e-3 : 6e-3;
    if (getenv("GDR_VERBOSE"))
        print_message("%s: %s: %.2g\n", grad_described(r), name, grad_error(e));
    if (!(grad_error(e) <= limit))
        fail_msg("%s: %s off by %g", grad_described(r), name, grad_error(e));
}

static void compare(GradRun *r) {
    const GradCase *c = r->c;
    const Kernel *k = r->code;
    int64_t nstate = (int64_t)c->K * c->V, size[MAX_PORTS];
    double *sum[MAX_PORTS], *state = NEW_ARRAY(&r->arena, double, nstate * c->N * c->H);
    for (int o = 0; o < k->out.count; o++) {
        const Port *p = &k->out.at[o];
        size[o] = shape_elements(k, p->shape) * r->heads[o] * (p->is_param ? 1 : r->tokens);
        sum[o] = NEW_ARRAY(&r->arena, double, size[o] + 1);
    }
    for (int n = 0; n < c->N; n++)
        for (int head = 0; head < c->H; head++)
            add_reference(r, sum, state + ((int64_t)n * c->H + head) * nstate, n, head);
    for (int o = 0; o < k->out.count; o++) {
        GradError e = {0};
        const void *got = grad_summed(r, o) ? r->sum[o] : r->part[o];
        for (int64_t j = 0; j < size[o] && grad_wanted(r, o); j++)
            grad_error_add(&e, sum[o][j], grad_get(got, j, k->out.at[o].elem));
        judge(r, k->out.at[o].name, &e);
    }
    GradError e = {0};
    for (int64_t j = 0; j < nstate * c->N * c->H && c->start; j++)
        grad_error_add(&e, state[j], ((const float *)r->ds0)[j]);
    judge(r, "dS0", &e);
}

static void run_case(const GradCase *given) {
    GradCase c = *given;
    GradRun r;
    c.by_token = true;
    assert_true(grad_open(&r, &c));
    const char *why = grad_add(&r, nv_build_recurrent_grad);
    why = why ? why : grad_add(&r, nv_build_sums);
    if (why)
        fail_msg("%s: %s", c.text ? c.text : c.spec, why);
    grad_tensors(&r);
    int64_t frame[GRAD_FRAME] = {0}, tasks = (int64_t)c.N * c.H;
    r.scratch = grad_memory(&r, tasks * grad_entry(&r, ENTRY_recurrent_grad)->scratch_bytes, true);
    grad_frame(&r, frame, 0);
    grad_launch(&r, ENTRY_recurrent_grad, frame, tasks);
    grad_launch(&r, ENTRY_sums, frame, 3);
    compare(&r);
    grad_close(&r);
}

/* cases ---------------------------------------------------------------------------------------- */

static const GradCase usual = {.K = 8, .V = 12, .target = "sm_90a", .H = 2, .N = 1, .T = 20,
                               .start = true, .final = true};

static void test_specs(void **state) {
    (void)state;
    static const struct { int K, V; } sizes[] = {{8, 12}, {16, 8}, {10, 6}, {6, 20}, {12, 34}};
    char name[SPECS_MAX][SPEC_NAME];
    int count = spec_names(name);
    for (int i = 0; i < count; i++) {
        const char *spec = name[i];
        GradCase c = usual;
        c.spec = spec;
        c.elem = (Elem)(i % 3);
        c.target = i % 2 ? "sm_80" : "sm_90a";
        c.K = sizes[i % 5].K, c.V = sizes[i % 5].V;
        if (grad_spec_wanted(spec))
            run_case(&c);
    }
}

/* Several segments; packed, with empty sequences and single tokens; without states; resets. */
static void test_sequences(void **state) {
    (void)state;
    static const char *const few[] = {"gated_oja", "mamba3_siso", "gdn2_raw"};
    for (size_t i = 0; i < sizeof few / sizeof few[0]; i++) {
        GradCase c = usual;
        c.spec = few[i];
        if (!grad_spec_wanted(few[i]))
            continue;
        c.T = 131;
        c.start = c.final = false;
        run_case(&c);
        c = (GradCase){.spec = few[i], .K = 8, .V = 6, .target = "sm_80", .H = 2, .N = 4,
                       .length = {67, 0, 1, 9}, .cu_width = i % 2 ? 4 : 8, .start = true, .final = true,
                       .resets = 0.2, .elem = ELEM_bf16};
        run_case(&c);
        c.elem = ELEM_f32;
        c.unwanted = 5;
        run_case(&c);
    }
}

/* Two panels of columns; matrices in shared memory and in the scratch. */
static void test_sizes(void **state) {
    (void)state;
    static const struct { int K, V; } sizes[] = {{4, 132}, {130, 3}, {64, 256}, {256, 250}, {1, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        GradCase c = usual;
        c.spec = "gated_oja";
        c.K = sizes[i].K, c.V = sizes[i].V;
        c.T = 3;
        c.H = 1;
        run_case(&c);
    }
}

/* What only a kernel without chunks can do. */
static void test_features(void **state) {
    (void)state;
    static const char *const body[] = {
        "let r = S' * q\n S = exp(c) * S + p * (v * rsqrt(1 + dot(r, r)))'\n out o[V] = S' * p + r",
        "let y = turn(S * w)\n S = exp(c) * S + A * (p + y) * v'\n out o[V] = S' * q * cumsum(a)",
        "for j in n { S = S * diag(sigmoid(W[j])) - kn[j] * (w .* (S' * kn[j]))' * bn[j] }\n"
        "S = S + p * v' * A\n out o[V] = S' * (q .* cos(cumsum(p)))\n out y[K] = S * prev(v)",
        "S = x * S + prev(p) * B[0] * v'\n out o[V] = silu(S' * q)\n out s = sum(S' * p)",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        char text[1000];
        snprintf(text, sizeof text,
                 "variant t { dim K = 4, V = 2, n = 2\n in p[K], q[K], v[V], w[V], a\n"
                 "in c <= 0, x in [0, 1]\n in kn[n, K], bn[n] in [0, 1]\n param A, B[n], W[n, V]\n"
                 "state S[K, V]\n%s\n}", body[i]);
        GradCase c = usual;
        c.text = text;
        run_case(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_sequences),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_features),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
