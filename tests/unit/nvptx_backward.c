/* All entries of a GPU gradient on the interpreter, as a launch goes: factor, chain, reverse, grad and
 * sums, segment after segment, the last one first. Gradients of every input, of params and of initial
 * states against the reference, by the metric of docs/testing.
 *
 *   GDR_SPEC=NAME  this spec alone
 *   GDR_VERBOSE=1  the errors of everything that ran
 */
#include "tests/unit/grad_run.h"


/* running -------------------------------------------------------------------------------------- */

static int64_t tiles(const GradRun *r, EntryKind kind) {
    const CgEntry *e = grad_entry(r, kind);
    return r->c->N * r->c->H * ((r->c->V + e->v_tile - 1) / e->v_tile);
}

static void factor_and_chain(GradRun *r, const int64_t *frame) {
    int64_t slots = frame[frame_gradient(r->code, GRAD_SLOTS)];
    grad_launch(r, ENTRY_factor, frame, slots * r->c->H);
    grad_launch(r, ENTRY_chain, frame, tiles(r, ENTRY_chain));
}

/* The states at the segments' starts, forwards; then the segments, backwards, with costates handed on
 * from one to the one before it. */
static void run_segments(GradRun *r) {
    int count = (int)((r->slots + r->segment - 1) / r->segment);
    int64_t bytes = (int64_t)4 * r->c->H * (r->c->K + 1) * r->c->V; /* and units */
    void **state = NEW_ARRAY(&r->arena, void *, count + 1);
    for (int i = 0; i <= count; i++)
        state[i] = grad_memory(r, bytes, true);
    const Kernel *k = r->code;
    int64_t whole[GRAD_FRAME] = {0};
    grad_frame(r, whole, 0);
    grad_launch_scans(r, whole, false);
    for (int i = 0; i + 1 < count; i++) {
        int64_t frame[GRAD_FRAME] = {0};
        grad_frame(r, frame, i * r->segment);
        frame[frame_gradient(k, GRAD_STATE_IN)] = grad_address(state[i]);
        frame[frame_gradient(k, GRAD_STATE_OUT)] = grad_address(state[i + 1]);
        factor_and_chain(r, frame);
    }
    for (int i = count - 1; i >= 0; i--) {
        int64_t frame[GRAD_FRAME] = {0};
        grad_frame(r, frame, i * r->segment);
        frame[frame_gradient(k, GRAD_STATE_IN)] = grad_address(state[i]);
        frame[frame_gradient(k, GRAD_COSTATE_IN)] = grad_address(r->hand[i % 2]);
        frame[frame_gradient(k, GRAD_COSTATE_OUT)] = grad_address(r->hand[1 - i % 2]);
        factor_and_chain(r, frame);
        grad_launch(r, ENTRY_reverse, frame, tiles(r, ENTRY_reverse));
        grad_launch(r, ENTRY_grad, frame, r->blocks);
        grad_launch_scans(r, frame, true);
        grad_launch(r, ENTRY_sums, frame, 3);
    }
}

/* reference ------------------------------------------------------------------------------------ */

/* What head `head` of sequence n sees of input i, [T or 1, shape]. */
static double *input_of(GradRun *r, int i, int n, int head) {
    const Port *p = &r->code->in.at[i];
    int64_t size = shape_elements(r->code, p->shape), own = head * r->heads[i] / r->c->H;
    int64_t rows = p->is_param ? 1 : grad_length(r->c, n);
    int64_t first = p->is_param ? 0 : grad_first(r->c, n);
    double *x = NEW_ARRAY(&r->arena, double, rows * size + 1);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < size; j++)
            x[t * size + j] = grad_get(r->in[i], ((first + t) * r->heads[i] + own) * size + j, p->elem);
    return x;
}

typedef struct Wanted {
    double *input[MAX_PORTS];  /* [tokens or 1][heads of the input][size], summed as in memory */
    double *state;             /* [N][H][K][V] */
} Wanted;

static void add_gradient(GradRun *r, Wanted *w, int o, int n, int head, const double *d) {
    const Port *p = &r->code->out.at[o];
    int64_t size = shape_elements(r->code, p->shape), own = head * r->heads[o] / r->c->H;
    int64_t rows = p->is_param ? 1 : grad_length(r->c, n);
    int64_t first = p->is_param ? 0 : grad_first(r->c, n);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < size; j++)
            w->input[o][((first + t) * r->heads[o] + own) * size + j] += d[t * size + j];
}

static void reference(GradRun *r, Wanted *w, int n, int head) {
    const GradCase *c = r->c;
    const Kernel *k = r->token;
    int64_t nstate = (int64_t)c->K * c->V, at = ((int64_t)n * c->H + head) * nstate;
    const double *in[MAX_PORTS], *dout[MAX_PORTS];
    double *din[MAX_PORTS], *state = NEW_ARRAY(&r->arena, double, nstate);
    for (int i = 0; i < k->in.count; i++) {
        int64_t rows = k->in.at[i].is_param ? 1 : grad_length(c, n);
        in[i] = input_of(r, i, n, head);
        din[i] = NEW_ARRAY(&r->arena, double, rows * shape_elements(k, k->in.at[i].shape) + 1);
    }
    for (int o = 0; o < k->out.count; o++)
        dout[o] = input_of(r, k->in.count + o, n, head);
    for (int64_t j = 0; j < nstate; j++) {
        state[j] = ((const float *)r->s0)[at + j];
        w->state[at + j] = ((const float *)r->ds)[at + j];
    }
    ReferenceGrad args = {.T = grad_length(c, n), .in = in, .dout = dout, .din = din,
                          .state = state, .dstate = w->state + at};
    assert_true(reference_gradient(&r->arena, r->spec->file, NULL, &r->bind, &args, &r->spec->d));
    for (int o = 0; o < k->in.count; o++)
        add_gradient(r, w, o, n, head, din[o]);
}

/* comparing ------------------------------------------------------------------------------------ */

static int64_t rows_of(const GradRun *r, int o) {
    return (r->code->out.at[o].is_param ? 1 : r->tokens) * r->heads[o];
}

/* Gradients that are sums over channels may cancel; f32 ones lose what the matrix products' operands
 * do, f16, and nothing else. */
static double limit_of(const GradRun *r, int o) {
    bool vector = o < 0 || r->code->out.at[o].shape.rank > 0;
    bool param = o >= 0 && r->code->out.at[o].is_param;
    double exact = r->c->elem == ELEM_f32 ? .25 : 1;
    return exact * (vector && !param ? .008 : .02);
}

static void judge(GradRun *r, int o, const GradError *e) {
    const char *name = o < 0 ? "dS0" : r->code->out.at[o].name;
    if (getenv("GDR_VERBOSE"))
        print_message("%s: %s: %.2g\n", grad_described(r), name, grad_error(e));
    if (!(grad_error(e) <= limit_of(r, o)))
        fail_msg("%s: %s off by %g", grad_described(r), name, grad_error(e));
}

static void compare(GradRun *r) {
    const GradCase *c = r->c;
    const Kernel *k = r->code;
    Wanted w;
    for (int o = 0; o < k->out.count; o++)
        w.input[o] = NEW_ARRAY(&r->arena, double, rows_of(r, o) * shape_elements(k, k->out.at[o].shape) + 1);
    int64_t states = (int64_t)c->N * c->H * c->K * c->V;
    w.state = NEW_ARRAY(&r->arena, double, states);
    for (int n = 0; n < c->N; n++)
        for (int head = 0; head < c->H; head++)
            reference(r, &w, n, head);
    for (int o = 0; o < k->out.count; o++) {
        GradError e = {0};
        const Port *p = &k->out.at[o];
        const void *got = grad_summed(r, o) ? r->sum[o] : r->part[o];
        for (int64_t j = 0; j < rows_of(r, o) * shape_elements(k, p->shape); j++)
            grad_error_add(&e, w.input[o][j], grad_get(got, j, p->elem));
        judge(r, o, &e);
    }
    GradError e = {0};
    for (int64_t j = 0; j < states && c->start; j++)
        grad_error_add(&e, w.state[j], ((const float *)r->ds0)[j]);
    judge(r, -1, &e);
}

/* False when there is no such kernel. */
static bool run_case(const GradCase *c) {
    static GradBuild *const build[] = {nv_build_factor, nv_build_chain, nv_build_reverse,
                                       nv_build_grad};
    GradRun r;
    const char *why = NULL;
    if (!grad_open(&r, c))
        return false;
    why = grad_add_scans(&r, false);
    for (size_t i = 0; !why && i < sizeof build / sizeof build[0]; i++)
        why = grad_add(&r, build[i]);
    why = why ? why : grad_add_scans(&r, true);
    why = why ? why : grad_add(&r, nv_build_sums);
    if (!why) {
        grad_tensors(&r);
        run_segments(&r);
        compare(&r);
    } else if (getenv("GDR_VERBOSE")) {
        print_message("%s: %s\n", c->spec, why);
    }
    grad_close(&r);
    return !why;
}

/* cases ---------------------------------------------------------------------------------------- */

static const GradCase usual = {.K = 32, .V = 32, .rows = 32, .target = "sm_90a", .H = 2, .N = 1,
                               .T = 70, .start = true, .final = true};

static void test_specs(void **state) {
    (void)state;
    static const struct { int K, V, rows; } sizes[] = {
        {32, 32, 32}, {64, 64, 64}, {40, 24, 16}, {32, 100, 64}, {64, 32, 32},
    };
    char name[SPECS_MAX][SPEC_NAME];
    int done = 0, tried = 0;
    int count = spec_names(name);
    for (int i = 0; i < count; i++) {
        const char *spec = name[i];
        GradCase c = usual;
        c.spec = spec;
        c.elem = (Elem)(i % 3);
        c.target = i % 2 ? "sm_80" : "sm_90a";
        c.K = sizes[i % 5].K, c.V = sizes[i % 5].V, c.rows = sizes[i % 5].rows;
        c.segment = i % 4 == 3 ? 2 : 0;
        tried += grad_spec_wanted(spec);
        done += grad_spec_wanted(spec) && run_case(&c);
    }
    assert_true(done >= tried - 1);
}

static const char *const few[] = {"gdn2", "gated_deltanet", "gla", "rwkv7", "gated_deltaproduct", "comba_raw"};
enum { FEW = sizeof few / sizeof few[0] };

static void test_packed(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++) {
        GradCase c = usual;
        c.spec = few[f], c.N = 5, c.cu_width = f % 2 ? 4 : 8, c.elem = ELEM_bf16;
        c.segment = f % 3 ? 2 : 0, c.blocks = 3;
        memcpy(c.length, (int[]){5, 0, 70, 1, 32}, sizeof(int[5]));
        if (grad_spec_wanted(c.spec))
            assert_true(run_case(&c));
    }
}

static void test_gates(void **state) {
    (void)state;
    static const double gate[] = {-1e-6, -1, -20, 0};
    for (int f = 0; f < 3; f++)
        for (size_t n = 0; n < sizeof gate / sizeof gate[0]; n++) {
            GradCase c = usual;
            c.spec = few[f], c.gate = gate[n], c.resets = gate[n] == 0 ? .1 : 0, c.elem = ELEM_bf16;
            c.start = n % 2, c.final = n / 2 % 2;
            if (grad_spec_wanted(c.spec))
                assert_true(run_case(&c));
        }
}

/* Nothing bounds the updates: within a chunk the state grows by 2^25, and the costate the other way. With
 * vector decay and f32 inputs the keys' rounding grows as well, forwards as backwards (factor.h). */
static void test_growth(void **state) {
    (void)state;
    static const char *const free_updates[] = {"iplr", "dplr"};
    for (int i = 0; i < 3; i++) {
        GradCase c = usual;
        c.spec = free_updates[i % 2], c.growth = true, c.gate = -1e-7;
        c.rows = 64, c.T = 48, c.V = 48, c.elem = i < 2 ? ELEM_bf16 : ELEM_f32;
        c.target = i % 2 ? "sm_80" : "sm_90a";
        if (grad_spec_wanted(c.spec))
            assert_true(run_case(&c));
    }
}

/* The sizes that models have; longer segments than chunks, one block for all. */
static void test_large(void **state) {
    (void)state;
    for (int f = 0; f < 2; f++) {
        GradCase c = usual;
        c.spec = few[f], c.K = c.V = 128, c.rows = 64, c.T = 130, c.elem = ELEM_bf16, c.segment = 2;
        c.blocks = 1;
        if (grad_spec_wanted(c.spec))
            assert_true(run_case(&c));
    }
}

/* Heads that share inputs are summed as they are made: all of these, or some and the rest as parts. */
static void test_groups(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int K, V, rows, H, share, group;
        Elem e;
    } some[] = {
        {"gated_deltanet", 64, 64, 64, 2, 2, 2, ELEM_bf16}, {"mamba2", 64, 32, 64, 4, 4, 4, ELEM_bf16},
        {"gdn2", 32, 32, 32, 4, 4, 2, ELEM_f32},            {"mamba3_siso", 32, 32, 16, 2, 2, 2, ELEM_bf16},
    };
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        GradCase c = usual;
        c.spec = some[i].spec, c.K = some[i].K, c.V = some[i].V, c.rows = some[i].rows;
        c.H = some[i].H, c.share = some[i].share, c.group = some[i].group, c.elem = some[i].e;
        c.segment = 2, c.blocks = 3;
        if (grad_spec_wanted(c.spec))
            assert_true(run_case(&c));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
