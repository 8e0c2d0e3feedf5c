/* Backward passes through the public API: right calls agree with differences of forward calls, any
 * subset of gradients gives the same bits, wrong arguments are named, memory may run out. */
#include "tests/unit/api_test.h"

static const char spec[] =
    "variant s {\n dim K = 16, V = 8\n in q[K], k[K], v[V]\n in g <= 0\n"
    " param scale\n state S[K, V]\n S = exp(g) * S\n"
    " S = S + k * (scale * v)'\n out o[V] = S' * q\n out r = sum(q) * scale\n}\n";

static gdr_kernel *compile(gdr_context *ctx, gdr_compile_options o) {
    return compile_text(ctx, spec, o);
}

static gdr_kernel *backward(gdr_context *ctx) {
    return compile(ctx, (gdr_compile_options){.pass = GDR_PASS_BACKWARD, .chunk_rows = 16});
}

/* A call with everything; tests leave things out or break one. */
enum { Q, KEY, VALUE, G, SCALE, DO, DR, DQ, DKEY, DVALUE, DG, DSCALE, PORTS };
enum { B = 2, T = 21, H = 4, STATE = 16 * 8 };
typedef struct Call {
    int64_t shape[PORTS][5], state_shape[4], cu_shape[1], cu[4];
    float data[PORTS][B * T * H * 16], S0[B * H * STATE], dS[B * H * STATE], dS0[B * H * STATE];
    gdr_arg arg[PORTS];
    gdr_tensor S0_tensor, dS_tensor, dS0_tensor, cu_tensor;
    gdr_launch launch;
} Call;

static float number(int tensor, int i) {
    return (float)((i * 7919 + tensor * 104729 + i / 13) % 211) / 211 - 0.5f;
}

static Call *call_new(void) {
    static const int64_t shape[PORTS][5] = {
        {B, T, 2, 16}, {B, T, 2, 16}, {B, T, H, 8},  {B, T, H},    {2},       {B, T, H, 8},
        {B, T, H},     {B, T, 2, 16}, {B, T, 2, 16}, {B, T, H, 8}, {B, T, H}, {2}};
    static const int ndim[PORTS] = {4, 4, 4, 3, 1, 4, 3, 4, 4, 4, 3, 1};
    static const char *const name[PORTS] = {"q",  "k",  "v",  "g",  "scale", "do",
                                            "dr", "dq", "dk", "dv", "dg",    "dscale"};
    Call *c = calloc(1, sizeof *c);
    assert_non_null(c);
    memcpy(c->shape, shape, sizeof shape);
    for (int i = 0; i < PORTS; i++) {
        for (int j = 0; j < B * T * H * 16; j++)
            c->data[i][j] = i == G ? number(i, j) - 0.5f : i >= DQ ? 77 : number(i, j);
        c->arg[i] = (gdr_arg){name[i], {c->data[i], GDR_CPU, GDR_F32, ndim[i], c->shape[i], NULL}};
    }
    for (int j = 0; j < B * H * STATE; j++) {
        c->S0[j] = number(90, j);
        c->dS[j] = number(91, j);
    }
    memcpy(c->state_shape, (int64_t[]){B, H, 16, 8}, sizeof c->state_shape);
    c->S0_tensor = (gdr_tensor){c->S0, GDR_CPU, GDR_F32, 4, c->state_shape, NULL};
    c->dS_tensor = (gdr_tensor){c->dS, GDR_CPU, GDR_F32, 4, c->state_shape, NULL};
    c->dS0_tensor = (gdr_tensor){c->dS0, GDR_CPU, GDR_F32, 4, c->state_shape, NULL};
    c->cu_tensor = (gdr_tensor){c->cu, GDR_CPU, GDR_I64, 1, c->cu_shape, NULL};
    c->launch = (gdr_launch){.size = sizeof c->launch,
                             .args = c->arg,
                             .nargs = PORTS,
                             .S0 = &c->S0_tensor,
                             .dS = &c->dS_tensor,
                             .dS0 = &c->dS0_tensor};
    return c;
}

static void leave_out(Call *c, int port) {
    int at = 0;
    while (at < c->launch.nargs && c->arg[at].tensor.shape != c->shape[port])
        at++;
    assert_true(at < c->launch.nargs);
    c->launch.nargs--;
    memmove(&c->arg[at], &c->arg[at + 1], (size_t)(c->launch.nargs - at) * sizeof *c->arg);
}

static void run(gdr_kernel *k, Call *c) {
    if (gdr_backward(k, &c->launch))
        fail_msg("%s", gdr_last_error(k->ctx));
}

/* differences ---------------------------------------------------------------------------------- */

/* Outputs and final state times their upstream gradients. */
static double weighted(gdr_kernel *forward, const Call *c) {
    static float o[B * T * H * 8], r[B * T * H], S[B * H * STATE];
    gdr_arg arg[SCALE + 3];
    memcpy(arg, c->arg, (SCALE + 1) * sizeof *arg);
    arg[SCALE + 1] = (gdr_arg){"o", c->arg[DO].tensor};
    arg[SCALE + 2] = (gdr_arg){"r", c->arg[DR].tensor};
    arg[SCALE + 1].tensor.data = o;
    arg[SCALE + 2].tensor.data = r;
    gdr_tensor S_tensor = c->S0_tensor;
    S_tensor.data = S;
    gdr_launch l = {
        .size = sizeof l, .args = arg, .nargs = SCALE + 3, .S0 = &c->S0_tensor, .S = &S_tensor};
    assert_int_equal(gdr_forward(forward, &l), GDR_OK);
    double sum = 0;
    for (int i = 0; i < B * T * H * 8; i++)
        sum += (double)o[i] * c->data[DO][i];
    for (int i = 0; i < B * T * H; i++)
        sum += (double)r[i] * c->data[DR][i];
    for (int i = 0; i < B * H * STATE; i++)
        sum += (double)S[i] * c->dS[i];
    return sum;
}

static void check_difference(gdr_kernel *forward, const Call *c, float *x, double gradient) {
    const float h = 1.0f / 64, before = *x;
    *x = before + h;
    double up = weighted(forward, c);
    *x = before - h;
    double want = (up - weighted(forward, c)) / (2 * (double)h);
    *x = before;
    assert_true(fabs(want - gradient) <= 2e-3 * (1 + fabs(want)));
}

static void check_gradients(gdr_algo algo) {
    gdr_context *ctx = open_context(2);
    const gdr_compile_options o = {.pass = GDR_PASS_BACKWARD, .chunk_rows = 16, .algo = algo};
    gdr_facts facts;
    gdr_kernel *k = compile(ctx, o), *forward = compile(ctx, (gdr_compile_options){.chunk_rows = 16});
    Call *c = call_new();
    gdr_kernel_facts(k, &facts);
    assert_int_equal(facts.algo, algo);
    run(k, c);
    static const int at[] = {0, 17, 300, 650};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        check_difference(forward, c, &c->data[Q][at[i]], c->data[DQ][at[i]]);
        check_difference(forward, c, &c->data[KEY][at[i]], c->data[DKEY][at[i]]);
        check_difference(forward, c, &c->data[VALUE][at[i]], c->data[DVALUE][at[i]]);
        check_difference(forward, c, &c->data[G][at[i] / 8], c->data[DG][at[i] / 8]);
        check_difference(forward, c, &c->S0[at[i]], c->dS0[at[i]]);
    }
    check_difference(forward, c, &c->data[SCALE][0], c->data[DSCALE][0]);
    check_difference(forward, c, &c->data[SCALE][1], c->data[DSCALE][1]);
    free(c);
    gdr_kernel_destroy(k);
    gdr_kernel_destroy(forward);
    gdr_context_destroy(ctx);
}

static void gradients_are_differences(void **state) {
    (void)state;
    check_gradients(GDR_ALGO_CHUNK);
    check_gradients(GDR_ALGO_RECURRENT);
}

/* subsets -------------------------------------------------------------------------------------- */

static void any_subset_may_be_asked_for(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = backward(ctx);
    Call *all = call_new();
    run(k, all);
    for (int out = DQ; out < PORTS; out++) {
        Call *c = call_new();
        for (int other = DQ; other < PORTS; other++)
            if (other != out)
                leave_out(c, other);
        c->launch.dS0 = NULL;
        run(k, c);
        for (int other = DQ; other < PORTS; other++)
            if (other == out)
                assert_memory_equal(c->data[other], all->data[other], sizeof c->data[other]);
            else
                assert_true(c->data[other][0] == 77);
        assert_true(c->dS0[0] == 0);
        free(c);
    }
    free(all);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* What is left out counts as zeros, and a kernel without it gives the same. */
static void any_subset_may_be_given(void **state) {
    (void)state;
    static const char *const given[] = {"r"}, *const wanted[] = {"scale", "q"};
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = backward(ctx);
    gdr_compile_options o = {.pass = GDR_PASS_BACKWARD,
                             .chunk_rows = 16,
                             .upstream = given,
                             .nupstream = 1,
                             .gradients = wanted,
                             .ngradients = 2};
    gdr_kernel *narrow = compile(ctx, o);
    Call *zero = call_new(), *absent = call_new(), *less = call_new();
    memset(zero->data[DO], 0, sizeof zero->data[DO]);
    memset(zero->dS, 0, sizeof zero->dS);
    run(k, zero);
    leave_out(absent, DO);
    absent->launch.dS = NULL;
    run(k, absent);
    for (int i = DO; i <= DG; i++)
        if (i != DR && i != DQ && i != DSCALE && i != G)
            leave_out(less, i);
    less->launch.dS = NULL;
    run(narrow, less);
    for (int out = DQ; out < PORTS; out++)
        for (int i = 0; i < B * T * H * 16; i++)
            assert_true(zero->data[out][i] == absent->data[out][i]);
    for (int i = 0; i < B * T * 2 * 16; i++)
        assert_true(zero->data[DQ][i] == less->data[DQ][i]);
    assert_true(zero->data[DSCALE][1] == less->data[DSCALE][1]);
    free(zero);
    free(absent);
    free(less);
    gdr_kernel_destroy(narrow);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Sequences of 5, 0 and 12 tokens; two rows in front and some behind belong to none. */
static Call *packed_new(void) {
    Call *c = call_new();
    for (int i = 0; i < PORTS; i++)
        if (i != SCALE && i != DSCALE)
            c->shape[i][0] = 1;
    memcpy(c->cu, (int64_t[]){2, 7, 7, 19}, sizeof c->cu);
    c->cu_shape[0] = 4;
    c->launch.cu_seqlens = &c->cu_tensor;
    c->launch.S0 = c->launch.dS = c->launch.dS0 = NULL;
    return c;
}

static void results_do_not_depend_on_threads(void **state) {
    (void)state;
    Call *first[2] = {NULL, NULL};
    for (int threads = 1; threads <= 4; threads++) {
        gdr_context *ctx = open_context(threads);
        gdr_kernel *k = backward(ctx);
        for (int packed = 0; packed < 2; packed++) {
            Call *c = packed ? packed_new() : call_new();
            run(k, c);
            if (!first[packed]) {
                first[packed] = c;
                continue;
            }
            for (int out = DQ; out < PORTS; out++)
                assert_memory_equal(c->data[out], first[packed]->data[out], sizeof c->data[out]);
            assert_memory_equal(c->dS0, first[packed]->dS0, sizeof c->dS0);
            free(c);
        }
        gdr_kernel_destroy(k);
        gdr_context_destroy(ctx);
    }
    for (int i = 0; i < 2 * 2 * 16; i++) /* rows before the first sequence, of a summed gradient */
        assert_true(first[1]->data[DQ][i] == 77);
    assert_true(first[1]->data[DQ][2 * 2 * 16] != 77);
    assert_true(first[1]->data[DQ][19 * 2 * 16] == 77);
    free(first[0]);
    free(first[1]);
}

static void empty_batches_have_no_gradients(void **state) {
    (void)state;
    gdr_context *ctx = open_context(1);
    gdr_kernel *k = backward(ctx);
    Call *c = call_new();
    for (int i = 0; i < PORTS; i++)
        if (i != SCALE && i != DSCALE)
            c->shape[i][1] = 0;
    run(k, c);
    assert_memory_equal(c->dS0, c->dS, sizeof c->dS); /* no tokens: straight through */
    assert_true(c->data[DSCALE][0] == 0 && c->data[DSCALE][1] == 0);
    free(c);
    c = packed_new();
    c->cu_shape[0] = 1; /* no sequence */
    run(k, c);
    assert_true(c->data[DSCALE][0] == 0 && c->data[DQ][0] == 77);
    free(c);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* refusals ------------------------------------------------------------------------------------- */

static void refused(gdr_kernel *k, Call *c, gdr_status want, const char *text) {
    assert_refused(k->ctx, gdr_backward(k, &c->launch), want, text);
    free(c);
}

static void wrong_arguments_are_named(void **state) {
    (void)state;
    gdr_context *ctx = open_context(1);
    gdr_kernel *k = backward(ctx), *forward = compile(ctx, (gdr_compile_options){0});
    Call *c;
#define BROKEN(text, ...) \
    c = call_new();       \
    __VA_ARGS__;          \
    refused(k, c, GDR_EINPUT, text)
    BROKEN("scale: missing parameter", leave_out(c, SCALE));
    BROKEN("dx: the backward pass of the variant s has no such tensor", c->arg[DQ].name = "dx");
    BROKEN("o: the backward pass of the variant s has no such tensor", c->arg[DO].name = "o");
    BROKEN("do: given twice", c->arg[DR].name = "do");
    BROKEN("do: B,T = 2,20 but q has 2,21", c->shape[DO][1] = 20);
    BROKEN("do: 2 heads, need 4", c->shape[DO][2] = 2);
    BROKEN("do: data type is bf16, the kernel takes f32", c->arg[DO].tensor.dtype = GDR_BF16);
    BROKEN("dq: 4 heads, need 2, those of q", c->shape[DQ][2] = 4);
    BROKEN("dq: shape is [2,21,2,8], need [B,T,heads,16]", c->shape[DQ][3] = 8);
    BROKEN("dscale: 4 heads, need 2, those of scale", c->shape[DSCALE][0] = 4);
    BROKEN("dscale: data type is f16", c->arg[DSCALE].tensor.dtype = GDR_F16);
    BROKEN("dk: no data", c->arg[DKEY].tensor.data = NULL);
    BROKEN("S: a backward pass does not give the final state", c->launch.S = &c->dS0_tensor);
    BROKEN("dS0: lies in GPU memory", c->dS0_tensor.device = GDR_CUDA);
    BROKEN("dS: data type is bf16", c->dS_tensor.dtype = GDR_BF16);
    int64_t small[4] = {B, H, 16, 4};
    BROKEN("dS: shape is [2,4,16,4], need [2,4,16,8]", c->dS_tensor.shape = small);
    refused(forward, call_new(), GDR_EUSAGE, "s was compiled for the forward pass");
    c = call_new();
    assert_int_equal(gdr_forward(k, &c->launch), GDR_EUSAGE);
    assert_non_null(strstr(gdr_last_error(ctx), "s was compiled for the backward pass"));
    free(c);
    gdr_kernel_destroy(forward);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void options_are_checked(void **state) {
    (void)state;
    static const char *const unknown[] = {"zz"};
    gdr_context *ctx = open_context(1);
    gdr_kernel *k;
    const gdr_pass back = GDR_PASS_BACKWARD;
    const struct {
        gdr_compile_options o;
        gdr_status status;
        const char *text;
    } c[] = {
        {{.pass = (gdr_pass)5}, GDR_EUSAGE, "unknown pass 5"},
        {{.upstream = unknown, .nupstream = 1}, GDR_EUSAGE, "a forward pass has no gradients"},
        {{.pass = back, .upstream = unknown, .nupstream = 1}, GDR_EUSAGE, "no output called zz"},
        {{.pass = back, .gradients = unknown, .ngradients = 1}, GDR_EUSAGE, "called zz"},
        {{.pass = back, .ngradients = -1}, GDR_EUSAGE, "a negative count"},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        gdr_compile_options o = c[i].o;
        o.size = sizeof o;
        gdr_status status = gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k);
        if (status != c[i].status || !strstr(gdr_last_error(ctx), c[i].text))
            fail_msg("%zu: status %d, %s", i, (int)status, gdr_last_error(ctx));
        assert_null(k);
    }
    CompileInput input = {.name = "s", .text = spec, .length = sizeof spec - 1};
    CompileExtra extra = {.no_load = true};
    gdr_compile_options o = {.size = sizeof o, .pass = back, .target = "sm_90a"};
    assert_int_equal(compile_input(ctx, &input, &o, &extra, &k), GDR_OK);
    static const EntryKind kind[] = {ENTRY_factor,  ENTRY_chain, ENTRY_reverse,
                                     ENTRY_reverse, ENTRY_grad,  ENTRY_sums};
    const CgModule *m = &k->rec.module;
    for (int i = 0, at = 0; i < m->entry.count; i++) { /* in this order, some kinds twice */
        while (at < 6 && m->entry.at[i].kind != kind[at])
            at++;
        assert_true(at < 6);
        assert_true(m->entry.at[i].kind < ENTRY_grad || m->entry.at[i].per_sm > 0);
    }
    gdr_kernel_destroy(k);
    o.save = GDR_SAVE_STATES;
    assert_int_equal(compile_input(ctx, &input, &o, &extra, &k), GDR_EUSAGE);
    assert_non_null(strstr(gdr_last_error(ctx), "a backward pass saves nothing"));
    gdr_context_destroy(ctx);
}

/* A spec without a chunk form gets the gradient of its recurrence, unless chunks are insisted on. */
static void no_chunk_form(void **state) {
    (void)state;
    static const char wide[] = "variant w {\n dim K = 4, V = 8\n in q[K], v[V], g[V] <= 0\n"
                               " state S[K, V]\n S = S * diag(exp(g)) + q * v'\n"
                               " out o[V] = S' * q\n}\n";
    gdr_context *ctx = open_context(1);
    gdr_kernel *k;
    gdr_facts facts;
    gdr_compile_options o = {.size = sizeof o, .pass = GDR_PASS_BACKWARD};
    assert_int_equal(gdr_compile_string(ctx, "w", wide, sizeof wide - 1, &o, &k), GDR_OK);
    gdr_kernel_facts(k, &facts);
    assert_int_equal(facts.algo, GDR_ALGO_RECURRENT);
    assert_int_equal(facts.chunk, 0);
    gdr_kernel_destroy(k);
    o.algo = GDR_ALGO_CHUNK;
    assert_int_equal(gdr_compile_string(ctx, "w", wide, sizeof wide - 1, &o, &k), GDR_ELIMIT);
    assert_non_null(strstr(gdr_last_error(ctx), "w has no chunk form"));
    gdr_context_destroy(ctx);
}

static void inspection_tells_gradients(void **state) {
    (void)state;
    static const gdr_port_kind kind[PORTS] = {
        GDR_INPUT,    GDR_INPUT,    GDR_INPUT,    GDR_INPUT,    GDR_PARAM,    GDR_UPSTREAM,
        GDR_UPSTREAM, GDR_GRADIENT, GDR_GRADIENT, GDR_GRADIENT, GDR_GRADIENT, GDR_PARAM_GRADIENT};
    gdr_context *ctx = open_context(1);
    gdr_kernel *k = backward(ctx);
    Call *c = call_new();
    gdr_port p;
    gdr_facts f;
    assert_int_equal(gdr_kernel_ports(k), PORTS);
    for (int i = 0; i < PORTS; i++) {
        assert_int_equal(gdr_kernel_port(k, i, &p), GDR_OK);
        assert_string_equal(p.name, c->arg[i].name);
        assert_int_equal(p.kind, kind[i]);
        if (kind[i] >= GDR_UPSTREAM)
            assert_string_equal(p.of, p.name + 1);
        else
            assert_null(p.of);
    }
    gdr_kernel_facts(k, &f);
    assert_string_equal(f.name, "s");
    assert_int_equal(f.pass, GDR_PASS_BACKWARD);
    assert_non_null(strstr(gdr_kernel_manifest(k), "\"gradient_of\": \"scale\""));
    free(c);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* memory --------------------------------------------------------------------------------------- */

static void workspace_may_be_the_callers(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = backward(ctx);
    Call *own = call_new(), *given = call_new(), *few = call_new(), *odd = call_new();
    size_t bytes;
    assert_int_equal(gdr_workspace_size(k, &given->launch, &bytes), GDR_OK);
    assert_true(bytes >= (size_t)B * H * 2 * STATE * sizeof(float)); /* two chunks' states */
    char *ws = aligned_alloc(64, bytes + 64);
    assert_non_null(ws);
    memset(ws, 0xff, bytes + 64);
    run(k, own);
    given->launch.workspace = ws;
    given->launch.workspace_bytes = bytes;
    run(k, given);
    for (int out = DQ; out < PORTS; out++)
        assert_memory_equal(own->data[out], given->data[out], sizeof own->data[out]);
    for (int i = 0; i < 64; i++)
        assert_int_equal((unsigned char)ws[bytes + (size_t)i], 0xff);
    few->launch.workspace = ws;
    few->launch.workspace_bytes = bytes - 1;
    refused(k, few, GDR_EINPUT, "the workspace has");
    odd->launch.workspace = ws + 4;
    odd->launch.workspace_bytes = bytes;
    refused(k, odd, GDR_EINPUT, "not aligned to 64 bytes");
    free(own);
    free(given);
    free(ws);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    gdr_context *ctx = open_context(1);
    CompileInput input = {.name = "s", .text = spec, .length = sizeof spec - 1};
    gdr_compile_options o = {.size = sizeof o, .opt_level = 1, .pass = GDR_PASS_BACKWARD};
    CompileExtra extra = {0};
    int failures = 0;
    for (int64_t n = 1; n < INT64_C(1) << 40; n += 1 + n / 3) {
        gdr_kernel *k;
        extra.fail_after = n;
        gdr_status status = compile_input(ctx, &input, &o, &extra, &k);
        if (status == GDR_OK) {
            gdr_kernel_destroy(k);
            break;
        }
        assert_int_equal(status, GDR_ENOMEM);
        assert_null(k);
        failures++;
    }
    assert_true(failures > 10);
#ifndef __SANITIZE_ADDRESS__ /* it ends the program where malloc gives NULL */
    gdr_kernel *k = backward(ctx);
    Call *c = call_new(); /* more tokens than there is memory for their states */
    for (int i = 0; i < PORTS; i++)
        if (i != SCALE && i != DSCALE)
            c->shape[i][1] = INT64_C(1) << 40;
    refused(k, c, GDR_ENOMEM, "bytes of workspace");
    gdr_kernel_destroy(k);
#endif
    gdr_context_destroy(ctx);
}

static void the_cache_knows_passes(void **state) {
    (void)state;
    char dir[] = "/tmp/gdr_grad_XXXXXX", command[64];
    assert_non_null(mkdtemp(dir));
    gdr_context *ctx;
    gdr_context_options o = {.size = sizeof o, .cache_dir = dir, .threads = 1};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    Call *first = call_new(), *again = call_new();
    gdr_facts f;
    for (int round = 0; round < 2; round++) {
        gdr_kernel *forward = compile(ctx, (gdr_compile_options){.chunk_rows = 16}),
                   *k = backward(ctx);
        gdr_kernel_facts(forward, &f);
        assert_true(f.from_cache == round && f.pass == GDR_PASS_FORWARD);
        gdr_kernel_facts(k, &f);
        assert_true(f.from_cache == round && f.pass == GDR_PASS_BACKWARD);
        run(k, round ? again : first);
        gdr_kernel_destroy(forward);
        gdr_kernel_destroy(k);
    }
    for (int out = DQ; out < PORTS; out++)
        assert_memory_equal(first->data[out], again->data[out], sizeof first->data[out]);
    free(first);
    free(again);
    gdr_context_destroy(ctx);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_differences),
        cmocka_unit_test(any_subset_may_be_asked_for),
        cmocka_unit_test(any_subset_may_be_given),
        cmocka_unit_test(results_do_not_depend_on_threads),
        cmocka_unit_test(empty_batches_have_no_gradients),
        cmocka_unit_test(wrong_arguments_are_named),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(no_chunk_form),
        cmocka_unit_test(inspection_tells_gradients),
        cmocka_unit_test(workspace_may_be_the_callers),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(the_cache_knows_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
