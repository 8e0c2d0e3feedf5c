/* The GPU side of the runtime against a driver made of functions in this file: which calls are
 * made, in which order and with what, and what becomes of every failure. No GPU is needed. */
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAUNCHES_MAX = 8, OOM = 2, LAUNCH_FAILED = 719 };
enum { FIELDS = FRAME_PORTS + 2 * 4 + 1 }; /* of the spec below: four inputs, one output */

static struct Stub {
    int devices, cc_major, current_depth, fail_call, link_calls, pool_allocs, pool_frees, allocs;
    const char *fail_name, *missing, *log;
    bool no_pool;
    int launches;
    struct {
        unsigned grid, block, shared;
        void *stream;
        int64_t frame[FIELDS];
        const char *name;
    } launch[LAUNCHES_MAX];
    int attributes;
} stub;

/* Every call goes through here: the named one fails. */
static int outcome(const char *name) {
    return stub.fail_name && !strcmp(name, stub.fail_name) ? stub.fail_call : 0;
}

static int s_cuInit(unsigned f) {
    (void)f;
    return outcome("cuInit");
}
static int s_cuDriverGetVersion(int *v) {
    *v = 13000;
    return 0;
}
static int s_cuGetErrorString(int e, const char **t) {
    (void)e;
    *t = "stub failure";
    return 0;
}
static int s_cuGetErrorName(int e, const char **t) {
    *t = e == OOM ? "OOM" : "STUB";
    return 0;
}
static int s_cuDeviceGetCount(int *n) {
    *n = stub.devices;
    return 0;
}
static int s_cuDeviceGet(int *d, int i) {
    *d = i;
    return 0;
}
static int s_cuDeviceGetName(char *n, int len, int d) {
    (void)d;
    strncpy(n, "Stub GPU", (size_t)len);
    return 0;
}
static int s_cuDeviceGetAttribute(int *v, int a, int d) {
    (void)d;
    *v = a == 75 ? stub.cc_major : a == 16 ? 132 : 0;
    return 0;
}
static int s_cuDevicePrimaryCtxRetain(void **c, int d) {
    (void)d;
    *c = &stub;
    return 0;
}
static int s_cuDevicePrimaryCtxRelease(int d) {
    (void)d;
    return 0;
}
static int s_cuCtxGetCurrent(void **c) {
    *c = NULL;
    return 0;
}
static int s_cuCtxPushCurrent(void *c) {
    (void)c;
    __atomic_add_fetch(&stub.current_depth, 1, __ATOMIC_RELAXED);
    return outcome("cuCtxPushCurrent");
}
static int s_cuCtxPopCurrent(void **c) {
    *c = &stub;
    __atomic_add_fetch(&stub.current_depth, -1, __ATOMIC_RELAXED);
    return 0;
}
static int s_cuCtxGetDevice(int *d) {
    *d = 0;
    return 0;
}
static int s_cuCtxSynchronize(void) {
    return outcome("cuCtxSynchronize");
}
static int s_cuMemAlloc(uint64_t *p, size_t n) {
    stub.allocs++;
    *p = (uint64_t)(uintptr_t)aligned_alloc(256, (n + 255) / 256 * 256);
    return outcome("cuMemAlloc");
}
static int s_cuMemFree(uint64_t p) {
    stub.allocs--;
    free((void *)(uintptr_t)p);
    return 0;
}
static int s_cuMemcpyHtoD(uint64_t d, const void *s, size_t n) {
    memcpy((void *)(uintptr_t)d, s, n);
    return 0;
}
static int s_cuMemcpyDtoH(void *d, uint64_t s, size_t n) {
    memcpy(d, (void *)(uintptr_t)s, n);
    return 0;
}
static int s_cuMemsetD8(uint64_t d, unsigned char b, size_t n) {
    memset((void *)(uintptr_t)d, b, n);
    return 0;
}
static int s_cuModuleLoadData(void **m, const void *image) {
    assert_string_equal(image, "stub cubin");
    *m = &stub;
    return outcome("cuModuleLoadData");
}
static int s_cuModuleUnload(void *m) {
    (void)m;
    return 0;
}
static int s_cuModuleGetFunction(void **f, void *m, const char *name) {
    static char names[16][64];
    static unsigned count;
    (void)m;
    *f = strncpy(names[count++ % 16], name, 63); /* a function is its name */
    return outcome("cuModuleGetFunction");
}
static int s_cuFuncSetAttribute(void *f, int a, int v) {
    (void)f;
    assert_int_equal(a, 8);
    assert_true(v > 48 * 1024);
    stub.attributes++;
    return 0;
}
static int s_cuFuncGetAttribute(int *v, int a, void *f) {
    (void)a;
    (void)f;
    *v = 0;
    return 0;
}
static int s_cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                            unsigned by, unsigned bz, unsigned smem, void *stream, void **params,
                            void **extra) {
    assert_int_equal(gy * gz * by * bz, 1);
    assert_null(extra);
    assert_true(stub.launches < LAUNCHES_MAX);
    int i = stub.launches++;
    stub.launch[i].grid = gx;
    stub.launch[i].block = bx;
    stub.launch[i].shared = smem;
    stub.launch[i].stream = stream;
    stub.launch[i].name = f;
    memcpy(stub.launch[i].frame, params[0], sizeof stub.launch[i].frame);
    return outcome("cuLaunchKernel");
}
static _Thread_local char *info_log; /* kernels are assembled in threads of their own */
static int s_cuLinkCreate(unsigned n, int *option, void **value, void **state) {
    for (unsigned i = 0; i < n; i++)
        if (option[i] == 3)
            info_log = value[i];
    *state = &stub;
    return 0;
}
static int s_cuLinkAddData(void *state, int type, void *data, size_t size, const char *name,
                           unsigned n, int *option, void **value) {
    (void)state;
    (void)name;
    (void)n;
    (void)option;
    (void)value;
    assert_int_equal(type, 1);
    assert_int_equal(strlen(data) + 1, size);
    const char *entry = strstr(data, ".visible .entry"); /* one kernel at a time */
    assert_non_null(entry);
    assert_null(strstr(entry + 1, ".visible .entry"));
    if (stub.log)
        strcpy(info_log, stub.log);
    return outcome("cuLinkAddData");
}
static int s_cuLinkComplete(void *state, void **cubin, size_t *size) {
    static char image[] = "stub cubin";
    (void)state;
    __atomic_add_fetch(&stub.link_calls, 1, __ATOMIC_RELAXED);
    *cubin = image;
    *size = sizeof image;
    return 0;
}
static int s_cuLinkDestroy(void *state) {
    (void)state;
    return 0;
}
static int s_cuEventCreate(void **e, unsigned f) {
    (void)f;
    *e = &stub;
    return 0;
}
static int s_cuEventDestroy(void *e) {
    (void)e;
    return 0;
}
static int s_cuEventRecord(void *e, void *s) {
    (void)e;
    (void)s;
    return 0;
}
static int s_cuEventSynchronize(void *e) {
    (void)e;
    return 0;
}
static int s_cuEventElapsedTime(float *ms, void *a, void *b) {
    (void)a;
    (void)b;
    *ms = 2;
    return 0;
}
static int s_cuMemPoolCreate(void **p, const void *props) {
    (void)props;
    *p = &stub;
    return 0;
}
static int s_cuMemPoolDestroy(void *p) {
    (void)p;
    return 0;
}
static int s_cuMemPoolSetAttribute(void *p, int a, void *v) {
    (void)p;
    (void)a;
    (void)v;
    return 0;
}
static int s_cuMemAllocFromPoolAsync(uint64_t *p, size_t n, void *pool, void *stream) {
    (void)n;
    (void)pool;
    (void)stream;
    stub.pool_allocs++;
    *p = 0x100000;
    return outcome("cuMemAllocFromPoolAsync");
}
static int s_cuMemFreeAsync(uint64_t p, void *stream) {
    (void)stream;
    assert_int_equal(p, 0x100000);
    stub.pool_frees++;
    return 0;
}

/* As dlsym, over the functions above; names with _v2 where the real driver has them so. */
static void *symbol(void *library, const char *name) {
    (void)library;
    if (stub.missing && !strcmp(name, stub.missing))
        return NULL;
    if (stub.no_pool && strstr(name, "Pool"))
        return NULL;
#define FN(ret, fn, args)      \
    if (!strcmp(name, #fn)) {  \
        ret(*f) args = s_##fn; \
        return *(void **)&f;   \
    }
#define FN2(ret, fn, args)          \
    if (!strcmp(name, #fn "_v2")) { \
        ret(*f) args = s_##fn;      \
        return *(void **)&f;        \
    }
#define FNOPT FN
#include "runtime/cuda.def"
#undef FN
#undef FN2
#undef FNOPT
    return NULL;
}

/* a context on the stub ------------------------------------------------------------------------ */

static char logged[1024];

static void on_log(void *user, gdr_severity severity, const char *message) {
    (void)user;
    assert_int_equal(severity, GDR_WARNING);
    strncpy(logged, message, sizeof logged - 1);
}

static gdr_context *open_stub(const char *cache) {
    gdr_context *ctx;
    char why[512] = "";
    gdr_context_options o = {.size = sizeof o, .cache_dir = cache, .log = on_log};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    ctx->cuda = cuda_open_with(symbol, NULL, 0, why, sizeof why);
    assert_string_equal(why, "");
    return ctx;
}

static const char spec[] = "variant s { dim K = 64, V = 96; in q[K], k[K], v[V]; in g <= 0\n"
                           "state S[K, V]\nS = exp(g) * S\nS = S + k * (v - S' * k)'\n"
                           "out o[V] = S' * q\n}\n";

static gdr_kernel *compile(gdr_context *ctx, gdr_algo algo) {
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o, .target = "cuda", .algo = algo, .dtype = GDR_BF16};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_OK);
    return k;
}

/* q, k with 2 heads, v, g, o with 4; B = 3, T = 100. */
static gdr_status forward(gdr_kernel *k, void *workspace, size_t bytes, void *stream) {
    static const int64_t narrow[] = {3, 100, 2, 64}, wide[] = {3, 100, 4, 96};
    static const int64_t state[] = {3, 4, 64, 96};
    void *p = (void *)(uintptr_t)0x1000;
    gdr_arg arg[] = {
        {"q", {p, GDR_CUDA, GDR_BF16, 4, narrow, NULL}},
        {"k", {p, GDR_CUDA, GDR_BF16, 4, narrow, NULL}},
        {"v", {p, GDR_CUDA, GDR_BF16, 4, wide, NULL}},
        {"g", {p, GDR_CUDA, GDR_BF16, 3, wide, NULL}},
        {"o", {p, GDR_CUDA, GDR_BF16, 4, wide, NULL}},
    };
    gdr_tensor S = {p, GDR_CUDA, GDR_F32, 4, state, NULL};
    gdr_launch l = {.size = sizeof l,
                    .args = arg,
                    .nargs = 5,
                    .S = &S,
                    .workspace = workspace,
                    .workspace_bytes = bytes,
                    .stream = stream};
    return gdr_forward(k, &l);
}

static int fresh(void **state) {
    (void)state;
    stub = (struct Stub){.devices = 1, .cc_major = 9};
    logged[0] = '\0';
    return 0;
}

/* tests ---------------------------------------------------------------------------------------- */

static void chunk_launches_factor_then_chain(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    gdr_facts facts;
    gdr_kernel_facts(k, &facts);
    assert_string_equal(facts.target, "sm_90a");
    assert_int_equal(forward(k, NULL, 0, &stub), GDR_OK);
    assert_int_equal(stub.launches, 2);
    int64_t slots = 3 * ((100 + facts.chunk - 1) / facts.chunk);
    /* The factor role reads q, k and g: g has 4 heads. */
    assert_int_equal(stub.launch[0].grid, slots * 4);
    assert_non_null(strstr(stub.launch[0].name, "factor"));
    assert_non_null(strstr(stub.launch[1].name, "chain"));
    assert_int_equal(stub.launch[1].grid % (3 * 4), 0);
    for (int i = 0; i < 2; i++) {
        const int64_t *f = stub.launch[i].frame;
        assert_ptr_equal(stub.launch[i].stream, &stub);
        assert_int_equal(f[FRAME_T], 100);
        assert_int_equal(f[FRAME_N], 3);
        assert_int_equal(f[FRAME_H], 4);
        assert_int_equal(f[FRAME_HF], 4);
        assert_int_equal(f[FRAME_SLOTS], slots);
        assert_int_equal(f[FRAME_WS], 0x100000);
        assert_int_equal(f[FRAME_S0], 0);
        assert_int_equal(f[FRAME_S], 0x1000);
        assert_int_equal(f[FRAME_PORTS + 1], 2);
    }
    assert_int_equal(stub.pool_allocs, 1);
    assert_int_equal(stub.pool_frees, 1);
    assert_int_equal(stub.current_depth, 0);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void recurrent_needs_no_workspace(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx, GDR_ALGO_RECURRENT);
    assert_int_equal(forward(k, NULL, 0, NULL), GDR_OK);
    assert_int_equal(stub.launches, 1);
    assert_int_equal(stub.pool_allocs, 0);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void callers_workspace_is_checked_and_used(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    void *ws = (void *)(uintptr_t)0x40000;
    assert_int_equal(forward(k, ws, 16, NULL), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "workspace has 16 bytes"));
    assert_int_equal(forward(k, (char *)ws + 8, (size_t)1 << 40, NULL), GDR_EINPUT);
    assert_int_equal(forward(k, ws, (size_t)1 << 40, NULL), GDR_OK);
    assert_int_equal(stub.launch[0].frame[FRAME_WS], 0x40000);
    assert_int_equal(stub.pool_allocs, 0);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void failures_have_a_status_and_a_text(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    stub.fail_name = "cuLaunchKernel";
    stub.fail_call = LAUNCH_FAILED;
    assert_int_equal(forward(k, NULL, 0, NULL), GDR_EDRIVER);
    assert_non_null(strstr(gdr_last_error(ctx), "stub failure"));
    assert_int_equal(stub.pool_frees, stub.pool_allocs); /* nothing is lost */
    stub.fail_name = "cuMemAllocFromPoolAsync";
    stub.fail_call = OOM;
    assert_int_equal(forward(k, NULL, 0, NULL), GDR_ENOMEM);
    gdr_kernel_destroy(k);
    k = NULL;
    gdr_compile_options o = {.size = sizeof o, .target = "cuda"};
    stub.fail_name = "cuModuleLoadData";
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_ENOMEM);
    assert_null(k);
    stub.fail_name = "cuCtxPushCurrent";
    stub.fail_call = LAUNCH_FAILED;
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_EDRIVER);
    stub.fail_name = NULL;
    gdr_context_destroy(ctx);
}

static void old_driver_without_pools_asks_for_a_workspace(void **state) {
    (void)state;
    stub.no_pool = true;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    assert_int_equal(forward(k, NULL, 0, NULL), GDR_EDRIVER);
    assert_non_null(strstr(gdr_last_error(ctx), "give the launch a workspace"));
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void opening_says_what_is_missing(void **state) {
    (void)state;
    char why[512];
    stub.missing = "cuLinkCreate_v2";
    assert_null(cuda_open_with(symbol, NULL, 0, why, sizeof why));
    assert_non_null(strstr(why, "no cuLinkCreate"));
    stub.missing = NULL;
    stub.devices = 0;
    assert_null(cuda_open_with(symbol, NULL, 0, why, sizeof why));
    assert_string_equal(why, "there is no GPU");
    stub.devices = 1;
    assert_null(cuda_open_with(symbol, NULL, 3, why, sizeof why));
    assert_string_equal(why, "there is no GPU 3, only 1");
    stub.fail_name = "cuInit";
    stub.fail_call = 34;
    assert_null(cuda_open_with(symbol, NULL, 0, why, sizeof why));
    assert_non_null(strstr(why, "stub failure"));
}

static void a_gpu_too_old_is_refused(void **state) {
    (void)state;
    gdr_kernel *k;
    stub.cc_major = 7;
    gdr_context *ctx = open_stub("");
    gdr_compile_options o = {.size = sizeof o, .target = "cuda"};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_ENODEV);
    o.target = "sm_90a";
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_ENODEV);
    assert_non_null(strstr(gdr_last_error(ctx), "Stub GPU (compute capability 7.0)"));
    gdr_context_destroy(ctx);
    assert_string_equal(target_for_gpu(90), "sm_90a");
    assert_string_equal(target_for_gpu(80), "sm_80");
    assert_string_equal(target_for_gpu(100), "sm_90");
    assert_null(target_for_gpu(75));
}

static void cubins_are_cached_and_slow_ones_say_so_each_time(void **state) {
    (void)state;
    char dir[] = "/tmp/gdr-stub-XXXXXX", command[64];
    int entries = 0;
    assert_non_null(mkdtemp(dir));
    stub.log = "ptxas info    : 0 bytes stack frame, 0 bytes spill stores, 24 bytes spill loads\n";
    for (int round = 0; round < 2; round++) {
        gdr_context *ctx = open_stub(dir);
        logged[0] = '\0';
        gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
        entries = k->rec.module.entry.count;
        assert_int_equal(k->from_cache, round);
        assert_non_null(strstr(logged, "24 bytes spill loads"));
        assert_int_equal(forward(k, NULL, 0, NULL), GDR_OK);
        gdr_kernel_destroy(k);
        gdr_context_destroy(ctx);
    }
    assert_int_equal(stub.link_calls, entries);
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

static void host_tensors_are_refused(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx, GDR_ALGO_CHUNK);
    static const int64_t shape[] = {1, 1, 1, 64};
    char x[128];
    gdr_arg arg[] = {{"q", {x, GDR_CPU, GDR_BF16, 4, shape, NULL}}};
    gdr_launch l = {.size = sizeof l, .args = arg, .nargs = 1};
    assert_int_equal(gdr_forward(k, &l), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "k: missing input"));
    const char *name[] = {"k", "v", "g", "o"};
    gdr_arg all[5] = {arg[0]};
    for (int i = 0; i < 4; i++)
        all[i + 1] = (gdr_arg){name[i], arg[0].tensor};
    l.args = all;
    l.nargs = 5;
    assert_int_equal(gdr_forward(k, &l), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "q: lies in CPU memory"));
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void kernels_are_cut_out_of_ptx(void **state) {
    (void)state;
#define SHARED ".version 8.8\n.extern .shared .b8 m[];\n"
#define KERNEL_A "\n.visible .entry a(\n)\n{\n{\n}\n\tret;\n}\n\t// .globl ab\n"
#define KERNEL_AB "\n.visible .entry ab(\n)\n{\n\tbra $L;\n}\n"
    static const char ptx[] = SHARED KERNEL_A KERNEL_AB;
    Arena arena;
    arena_init(&arena, NULL);
    assert_string_equal(ptx_only(&arena, ptx, "a"), SHARED KERNEL_A "\n");
    assert_string_equal(ptx_only(&arena, ptx, "ab"), SHARED KERNEL_AB "\n");
    assert_null(ptx_only(&arena, ptx, "b"));
    arena_free(&arena);
}

static void count_line(void *user, const char *line) {
    assert_true(line[0] != ' ');
    ++*(int *)user;
}

static void logs_are_scanned_for_slow_code(void **state) {
    (void)state;
    const struct {
        const char *log;
        int found;
    } c[] = {
        {"ptxas info    : Used 168 registers, used 1 barriers\n", 0},
        {"    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", 0},
        {"    8 bytes stack frame, 100 bytes spill stores, 0 bytes spill loads\n", 1},
        {"info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
         "serialized\nptxas info : fine\n",
         1},
        {"warning : C7508 setmaxnreg ignored", 1},
        {"a\n\n10 bytes spill stores\nC75 is no code\n", 1},
        {"", 0},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        int calls = 0;
        assert_int_equal(cubin_scan_log(c[i].log, count_line, &calls), c[i].found);
        assert_int_equal(calls, c[i].found);
    }
    assert_int_equal(cubin_scan_log(NULL, count_line, NULL), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(chunk_launches_factor_then_chain, fresh),
        cmocka_unit_test_setup(recurrent_needs_no_workspace, fresh),
        cmocka_unit_test_setup(callers_workspace_is_checked_and_used, fresh),
        cmocka_unit_test_setup(failures_have_a_status_and_a_text, fresh),
        cmocka_unit_test_setup(old_driver_without_pools_asks_for_a_workspace, fresh),
        cmocka_unit_test_setup(opening_says_what_is_missing, fresh),
        cmocka_unit_test_setup(a_gpu_too_old_is_refused, fresh),
        cmocka_unit_test_setup(cubins_are_cached_and_slow_ones_say_so_each_time, fresh),
        cmocka_unit_test_setup(host_tensors_are_refused, fresh),
        cmocka_unit_test(kernels_are_cut_out_of_ptx),
        cmocka_unit_test(logs_are_scanned_for_slow_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
