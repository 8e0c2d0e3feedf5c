/* The public API on the CPU: what each wrong argument is answered with, and that right ones work
 * from several threads and in every state of memory. */
#include "tests/unit/api_test.h"

#include <pthread.h>

static const char spec[] = "variant s {\n dim K = 16, V = 8\n in q[K], k[K], v[V]\n in g <= 0\n"
                           " param scale\n state S[K, V]\n S = exp(g) * S\n"
                           " S = S + k * (scale * v)'\n out o[V] = S' * q\n}\n";

static gdr_kernel *compile(gdr_context *ctx, gdr_algo algo) {
    return compile_text(ctx, spec, (gdr_compile_options){.algo = algo});
}

/* A launch that is right; tests then break one thing of it. */
enum { Q, KEY, VALUE, G, SCALE, O, PORTS };
enum { B = 2, T = 5, H = 4 };
typedef struct Call {
    int64_t shape[PORTS][5], state_shape[4], cu_shape[1], cu[3];
    float data[PORTS][B * T * H * 16], S0[B * H * 16 * 8], S[B * H * 16 * 8];
    gdr_arg arg[PORTS + 1];
    gdr_tensor S0_tensor, S_tensor, cu_tensor;
    gdr_launch launch;
} Call;

static Call *call_new(void) {
    static const int64_t shape[PORTS][5] = {{B, T, 2, 16}, {B, T, 2, 16}, {B, T, H, 8},
                                            {B, T, H},     {H},           {B, T, H, 8}};
    static const int ndim[PORTS] = {4, 4, 4, 3, 1, 4};
    static const char *const name[PORTS] = {"q", "k", "v", "g", "scale", "o"};
    Call *c = calloc(1, sizeof *c);
    assert_non_null(c);
    memcpy(c->shape, shape, sizeof shape);
    for (int i = 0; i < PORTS; i++) {
        for (int j = 0; j < B * T * H * 16; j++)
            c->data[i][j] = i == G ? -0.1f : (float)((j * 7 + i) % 11) / 11;
        c->arg[i] = (gdr_arg){name[i], {c->data[i], GDR_CPU, GDR_F32, ndim[i], c->shape[i], NULL}};
    }
    memcpy(c->state_shape, (int64_t[]){B, H, 16, 8}, sizeof c->state_shape);
    c->S0_tensor = (gdr_tensor){c->S0, GDR_CPU, GDR_F32, 4, c->state_shape, NULL};
    c->S_tensor = (gdr_tensor){c->S, GDR_CPU, GDR_F32, 4, c->state_shape, NULL};
    c->cu_shape[0] = 3;
    c->cu_tensor = (gdr_tensor){c->cu, GDR_CPU, GDR_I64, 1, c->cu_shape, NULL};
    c->launch = (gdr_launch){.size = sizeof c->launch,
                             .args = c->arg,
                             .nargs = PORTS,
                             .S0 = &c->S0_tensor,
                             .S = &c->S_tensor};
    return c;
}

static void refused(gdr_kernel *k, Call *c, const char *text) {
    assert_refused(k->ctx, gdr_forward(k, &c->launch), GDR_EINPUT, text);
    free(c);
}

static void wrong_tensors_are_named(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    Call *c = call_new();
    assert_int_equal(gdr_forward(k, &c->launch), GDR_OK);
    free(c);
#define BROKEN(text, ...) \
    c = call_new();       \
    __VA_ARGS__;          \
    refused(k, c, text)
    BROKEN("o: missing output", c->launch.nargs = O);
    BROKEN("scale: missing parameter", c->arg[SCALE] = c->arg[O]; c->launch.nargs = O);
    BROKEN("zz: the variant s has no such tensor", c->arg[Q].name = "zz");
    BROKEN("k: given twice", c->arg[Q].name = "k");
    BROKEN("argument 1 has no name", c->arg[KEY].name = NULL);
    BROKEN("q: shape is [2,5,2,8], need [B,T,heads,16]", c->shape[Q][3] = 8);
    BROKEN("q: shape is [2,5,2], need", c->arg[Q].tensor.ndim = 3);
    BROKEN("v: B,T = 2,4 but q has 2,5", c->shape[VALUE][1] = 4);
    BROKEN("q: 3 heads do not divide the 4 of v", c->shape[Q][2] = 3);
    BROKEN("q: 0 heads do not divide", c->shape[Q][2] = 0);
    BROKEN("o: 2 heads, need 4", c->shape[O][2] = 2);
    BROKEN("q: data type is bf16, the kernel takes f32", c->arg[Q].tensor.dtype = GDR_BF16);
    BROKEN("q: unknown data type", c->arg[Q].tensor.dtype = (gdr_dtype)99);
    BROKEN("scale: data type is f16", c->arg[SCALE].tensor.dtype = GDR_F16);
    BROKEN("q: lies in GPU memory", c->arg[Q].tensor.device = GDR_CUDA);
    BROKEN("q: no data", c->arg[Q].tensor.data = NULL);
    BROKEN("is not a multiple of 4", c->arg[Q].tensor.data = (char *)c->data[Q] + 2);
    BROKEN("q: negative size", c->shape[Q][1] = -5);
    BROKEN("q: 9 dimensions", c->arg[Q].tensor.ndim = 9);
    BROKEN("overflows 64 bits", c->shape[Q][0] = INT64_MAX / 8; c->shape[Q][1] = 1 << 20);
    int64_t strides[] = {160, 32, 8, 1};
    BROKEN("q: not dense", c->arg[Q].tensor.strides = strides);
    BROKEN("S0: shape is [2,4,16,9], need [2,4,16,8]", c->state_shape[3] = 9);
    BROKEN("S: data type is bf16", c->S_tensor.dtype = GDR_BF16; c->launch.S0 = NULL);
    c = call_new();
    c->launch.size = 3;
    assert_int_equal(gdr_forward(k, &c->launch), GDR_EUSAGE);
    free(c);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* The same call with B = 1 and N = 2 packed sequences. */
static Call *packed_new(int64_t a, int64_t b, int64_t c) {
    Call *p = call_new();
    for (int i = 0; i < PORTS; i++)
        if (i != SCALE)
            p->shape[i][0] = 1;
    memcpy(p->cu, (int64_t[]){a, b, c}, sizeof p->cu);
    p->launch.cu_seqlens = &p->cu_tensor;
    return p;
}

static void wrong_offsets_are_refused(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    refused(k, packed_new(0, 3, 2), "cu_seqlens: decreases from 3 to 2 at entry 2");
    refused(k, packed_new(0, 3, 6), "cu_seqlens: ends at 6, the tensors have 5 tokens");
    refused(k, packed_new(-1, 3, 5), "cu_seqlens: begins with -1");
    Call *c = packed_new(0, 0, 5);
    c->cu_tensor.dtype = GDR_F32;
    refused(k, c, "cu_seqlens: data type is f32");
    c = packed_new(0, 0, 5);
    c->cu_shape[0] = 0;
    refused(k, c, "cu_seqlens: need a vector");
    c = packed_new(0, 0, 5);
    for (int i = 0; i < PORTS; i++)
        if (i != SCALE)
            c->shape[i][0] = 2;
    refused(k, c, "packed sequences need B = 1");
    c = packed_new(0, 0, 4);
    memset(c->data[O], 0x7f, sizeof c->data[O]);
    float untouched = c->data[O][4 * H * 8];
    assert_int_equal(gdr_forward(k, &c->launch), GDR_OK);
    assert_true(isfinite(c->data[O][0]) && c->data[O][0] != untouched);
    for (int i = 0; i < H * 8; i++) /* the fifth token belongs to no sequence */
        assert_memory_equal(&c->data[O][4 * H * 8 + i], &untouched, sizeof untouched);
    free(c);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void empty_batches_do_nothing(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    for (gdr_algo algo = GDR_ALGO_CHUNK; algo <= GDR_ALGO_RECURRENT; algo++) {
        gdr_kernel *k = compile(ctx, algo);
        Call *c = call_new();
        for (int i = 0; i < PORTS; i++)
            if (i != SCALE)
                c->shape[i][1] = 0; /* no tokens: the state stays */
        c->S0[7] = 3;
        assert_int_equal(gdr_forward(k, &c->launch), GDR_OK);
        assert_memory_equal(c->S, c->S0, sizeof c->S);
        c->launch.S0 = NULL;
        assert_int_equal(gdr_forward(k, &c->launch), GDR_OK);
        assert_true(c->S[7] == 0);
        for (int i = 0; i < PORTS; i++)
            if (i != SCALE)
                c->shape[i][0] = 0;
        c->state_shape[0] = 0;
        assert_int_equal(gdr_forward(k, &c->launch), GDR_OK);
        free(c);
        gdr_kernel_destroy(k);
    }
    gdr_context_destroy(ctx);
}

static void compile_options_are_checked(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = (gdr_kernel *)ctx;
    gdr_dim zero = {"K", 0}, unknown = {"N", 4}, huge = {"K", INT64_MAX};
    gdr_port_dtype no_port = {"zz", GDR_F32}, bad_param = {"scale", GDR_BF16};
    const struct {
        gdr_compile_options o;
        gdr_status status;
        const char *text;
    } c[] = {
        {{.size = 1}, GDR_EUSAGE, "size is 1"},
        {{.target = "sm_1"}, GDR_EUSAGE, "unknown target sm_1; known: host, cuda, sm_80"},
        {{.dtype = GDR_I32}, GDR_EUSAGE, "i32 is not a type"},
        {{.dtype = GDR_F64}, GDR_EUSAGE, "f64 is not a type"},
        {{.algo = (gdr_algo)7}, GDR_EUSAGE, "unknown algorithm"},
        {{.chunk_rows = 1000}, GDR_EUSAGE, "1 to 256 rows"},
        {{.opt_level = 9}, GDR_EUSAGE, "opt_level 9"},
        {{.variant = "t"}, GDR_ESPEC, "t"},
        {{.dims = &zero, .ndims = 1}, GDR_ESPEC, "K"},
        {{.dims = &huge, .ndims = 1}, GDR_ESPEC, "K"},
        {{.dims = &unknown, .ndims = 1}, GDR_ESPEC, "N"},
        {{.types = &no_port, .ntypes = 1}, GDR_EUSAGE, "no input called zz"},
        {{.types = &bad_param, .ntypes = 1}, GDR_EUSAGE, "scale cannot be bf16"},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        gdr_compile_options o = c[i].o;
        if (!o.size)
            o.size = sizeof o;
        gdr_status status = gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k);
        if (status != c[i].status || !strstr(gdr_last_error(ctx), c[i].text))
            fail_msg("%zu: status %d, %s", i, (int)status, gdr_last_error(ctx));
        assert_null(k);
    }
    assert_int_equal(gdr_compile_file(ctx, "/nowhere/x.gdr", NULL, &k), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "/nowhere/x.gdr: cannot be read: No such file"));
    gdr_context_destroy(ctx);
}

static int messages;

static void on_diag(void *user, const gdr_diagnostic *d) {
    assert_ptr_equal(user, &messages);
    assert_string_equal(d->file, "bad");
    if (d->severity == GDR_ERROR && !messages++) {
        assert_int_equal(d->line, 1);
        assert_true(d->column > 1 && d->end_column > d->column);
    }
}

static void spec_errors_reach_the_callback(void **state) {
    (void)state;
    gdr_context *ctx;
    gdr_kernel *k;
    const char *bad = "variant s { state S[K, V]; out o[V] = S' * q }";
    gdr_context_options o = {.size = sizeof o, .cache_dir = "", .diag = on_diag, .user = &messages};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    assert_int_equal(gdr_compile_string(ctx, "bad", bad, strlen(bad), NULL, &k), GDR_ESPEC);
    assert_true(messages > 0);
    assert_non_null(strstr(gdr_last_error(ctx), "bad:1:"));
    gdr_context_destroy(ctx);
}

static void no_chunk_form_is_a_limit(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k;
    const char *text = "variant s { dim K = 8, V = 8; in q[K], k[K], v[V], b[V]; state S[K, V]\n"
                       "let r = S' * k; S = S + k * (b .* (v - r))'; out o[V] = S' * q }";
    gdr_compile_options o = {.size = sizeof o, .algo = GDR_ALGO_CHUNK};
    assert_int_equal(gdr_compile_string(ctx, "s", text, strlen(text), &o, &k), GDR_ELIMIT);
    assert_non_null(strstr(gdr_last_error(ctx), "s:2:"));
    o.algo = GDR_ALGO_AUTO;
    assert_int_equal(gdr_compile_string(ctx, "s", text, strlen(text), &o, &k), GDR_OK);
    gdr_facts f;
    gdr_kernel_facts(k, &f);
    assert_int_equal(f.algo, GDR_ALGO_RECURRENT);
    assert_false(f.chunkable);
    assert_non_null(f.why_not);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void inspection_tells_all(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    gdr_port p;
    gdr_facts f;
    assert_int_equal(gdr_kernel_ports(k), PORTS);
    assert_int_equal(gdr_kernel_port(k, G, &p), GDR_OK);
    assert_string_equal(p.name, "g");
    assert_int_equal(p.ndim, 0);
    assert_true(p.hi == 0 && isinf(p.lo));
    assert_int_equal(gdr_kernel_port(k, O, &p), GDR_OK);
    assert_int_equal(p.kind, GDR_OUTPUT);
    assert_int_equal(p.shape[0], 8);
    assert_int_equal(gdr_kernel_port(k, SCALE, &p), GDR_OK);
    assert_int_equal(p.kind, GDR_PARAM);
    assert_int_equal(gdr_kernel_port(k, PORTS, &p), GDR_EUSAGE);
    gdr_kernel_facts(k, &f);
    assert_string_equal(f.target, "host");
    assert_int_equal(f.K, 16);
    assert_int_equal(f.V, 8);
    assert_true(f.chunk > 1);
    assert_non_null(gdr_kernel_symbol(k, 0));
    assert_null(gdr_kernel_symbol(k, 99));
    assert_non_null(strstr(gdr_kernel_manifest(k), "\"scratch_bytes\""));
    size_t bytes = 1;
    Call *c = call_new();
    for (int i = 0; i < PORTS; i++)
        c->arg[i].tensor.data = NULL;
    assert_int_equal(gdr_workspace_size(k, &c->launch, &bytes), GDR_OK);
    assert_int_equal(bytes, 0);
    free(c);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void statuses_have_texts(void **state) {
    (void)state;
    for (int s = GDR_OK; s < GDR_STATUS_COUNT; s++) {
        assert_true(strlen(gdr_strstatus((gdr_status)s)) > 4);
        assert_in_range(gdr_exit_status((gdr_status)s), 0, 3);
    }
    assert_string_equal(gdr_strstatus((gdr_status)1000), "unknown status");
    assert_non_null(strstr(gdr_version(), "LLVM 22"));
    gdr_context *ctx;
    gdr_context_options o = {.size = 1};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_EUSAGE);
    assert_null(ctx);
    gdr_context_destroy(NULL);
    gdr_kernel_destroy(NULL);
}

typedef struct Worker {
    gdr_context *ctx;
    gdr_kernel *shared;
    float o[B * T * H * 8];
    int ok;
} Worker;

static void *worker_main(void *arg) {
    Worker *w = arg;
    gdr_kernel *own = compile(w->ctx, GDR_ALGO_RECURRENT);
    w->ok = 1;
    for (int i = 0; i < 20 && w->ok; i++) {
        Call *c = call_new();
        w->ok = gdr_forward(i % 2 ? own : w->shared, &c->launch) == GDR_OK;
        memcpy(w->o, c->data[O], sizeof w->o);
        c->launch.nargs = 1; /* an error of this thread alone */
        w->ok &= gdr_forward(own, &c->launch) == GDR_EINPUT &&
                 strstr(gdr_last_error(w->ctx), "missing") != NULL;
        free(c);
    }
    gdr_kernel_destroy(own);
    return NULL;
}

static void threads_share_a_context(void **state) {
    (void)state;
    enum { THREADS = 4 };
    gdr_context *ctx = open_context(2);
    gdr_kernel *shared = compile(ctx, GDR_ALGO_RECURRENT);
    pthread_t thread[THREADS];
    Worker *w = calloc(THREADS, sizeof *w);
    for (int i = 0; i < THREADS; i++) {
        w[i].ctx = ctx;
        w[i].shared = shared;
        assert_int_equal(pthread_create(&thread[i], NULL, worker_main, &w[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    for (int i = 0; i < THREADS; i++) {
        assert_true(w[i].ok);
        assert_memory_equal(w[i].o, w[0].o, sizeof w[i].o);
    }
    free(w);
    gdr_kernel_destroy(shared);
    gdr_context_destroy(ctx);
}

static void memory_may_run_out_anywhere(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    CompileInput input = {.name = "s", .text = spec, .length = sizeof spec - 1};
    const char *const target[] = {"host", "sm_80"};
    for (int i = 0; i < 4; i++) {
        gdr_compile_options o = {.size = sizeof o,
                                 .opt_level = 1,
                                 .target = target[i / 2],
                                 .algo = i % 2 ? GDR_ALGO_CHUNK : GDR_ALGO_RECURRENT};
        CompileExtra extra = {.no_load = i >= 2};
        int failures = 0;
        for (int64_t n = 1; n < INT64_C(1) << 40; n += 1 + n / 4) {
            gdr_kernel *k;
            extra.fail_after = n;
            gdr_status status = compile_input(ctx, &input, &o, &extra, &k);
            if (status == GDR_OK) {
                gdr_kernel_destroy(k);
                break;
            }
            assert_int_equal(status, GDR_ENOMEM);
            assert_string_equal(gdr_last_error(ctx), "out of memory");
            assert_null(k);
            failures++;
        }
        assert_true(failures > 10);
    }
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_tensors_are_named),
        cmocka_unit_test(wrong_offsets_are_refused),
        cmocka_unit_test(empty_batches_do_nothing),
        cmocka_unit_test(compile_options_are_checked),
        cmocka_unit_test(spec_errors_reach_the_callback),
        cmocka_unit_test(no_chunk_form_is_a_limit),
        cmocka_unit_test(inspection_tells_all),
        cmocka_unit_test(statuses_have_texts),
        cmocka_unit_test(threads_share_a_context),
        cmocka_unit_test(memory_may_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
