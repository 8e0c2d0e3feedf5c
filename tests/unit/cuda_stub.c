/* The GPU side of the runtime against a driver that only notes what it is asked (cuda_stub.h): which
 * calls are made, in which order and with what, and what becomes of every failure. */
#include "tests/unit/cuda_stub.h"

static const char spec[] = "variant s { dim K = 64, V = 96; in q[K], k[K], v[V]; in g <= 0\n"
                           "state S[K, V]\nS = exp(g) * S\nS = S + k * (v - S' * k)'\n"
                           "out o[V] = S' * q\n}\n";

static gdr_kernel *compile(gdr_context *ctx, gdr_algo algo) {
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o, .target = "cuda", .algo = algo, .dtype = GDR_BF16};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_OK);
    stub.fields = record_frame_fields(&k->rec);
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

/* A draft of T tokens: bf16 states [V,K] of a pool with gaps, a slot for every token. */
static gdr_status draft(gdr_kernel *k, int64_t stride, int64_t columns) {
    enum { T = 4 };
    static const int64_t narrow[] = {3, T, 2, 64}, wide[] = {3, T, 4, 96}, vector[] = {3};
    const int64_t pool[] = {7, 4, 96, 64}, strides[] = {stride, 96 * 64, 64, 1},
                  slots[] = {3, columns};
    void *p = (void *)(uintptr_t)0x1000; /* nobody looks at what is there */
    gdr_arg arg[] = {
        {"q", {p, GDR_CUDA, GDR_BF16, 4, narrow, NULL}},
        {"k", {p, GDR_CUDA, GDR_BF16, 4, narrow, NULL}},
        {"v", {p, GDR_CUDA, GDR_BF16, 4, wide, NULL}},
        {"g", {p, GDR_CUDA, GDR_BF16, 3, wide, NULL}},
        {"o", {p, GDR_CUDA, GDR_BF16, 4, wide, NULL}},
    };
    gdr_tensor S = {p, GDR_CUDA, GDR_BF16, 4, pool, strides};
    gdr_tensor slot = {(char *)p + 0x104, GDR_CUDA, GDR_I32, 2, slots, NULL};
    gdr_tensor accepted = {(char *)p + 0x204, GDR_CUDA, GDR_I32, 1, vector, NULL};
    gdr_launch l = {.size = sizeof l,
                    .args = arg,
                    .nargs = 5,
                    .S0 = &S,
                    .S = &S,
                    .S0_slots = &slot,
                    .S0_accepted = &accepted,
                    .S_slots = &slot};
    return gdr_forward(k, &l);
}

static void pools_are_named_by_device_memory(void **state) {
    (void)state;
    enum { DENSE = 4 * 96 * 64 };
    gdr_context *ctx = open_stub("");
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o,
                             .target = "cuda",
                             .algo = GDR_ALGO_RECURRENT,
                             .dtype = GDR_BF16,
                             .state_dtype = GDR_BF16,
                             .state_layout = GDR_LAYOUT_VK};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_OK);
    stub.fields = record_frame_fields(&k->rec);
    assert_int_equal(draft(k, DENSE + 24, 5), GDR_OK);
    const int64_t *f = stub.launch[0].frame;
    assert_int_equal(f[FRAME_S0], 0x1000);
    assert_int_equal(f[FRAME_S], 0x1000);
    assert_int_equal(f[FRAME_S0_STRIDE], 2 * (DENSE + 24));
    assert_int_equal(f[FRAME_S_STRIDE], 2 * (DENSE + 24));
    assert_int_equal(f[FRAME_S0_SLOTS], 0x1104);
    assert_int_equal(f[FRAME_S_SLOTS], 0x1104);
    assert_int_equal(f[FRAME_S0_COLUMNS], 5);
    assert_int_equal(f[FRAME_S_EACH], 5);
    assert_int_equal(f[FRAME_S0_POOL], 7);
    assert_int_equal(f[FRAME_S_POOL], 7);
    assert_int_equal(f[FRAME_S0_ACCEPTED], 0x1204);
    assert_int_equal(f[FRAME_S_ACCEPTED], 0);
    assert_int_equal(f[FRAME_INDEX_WIDTH], 4);
    assert_int_equal(f[FRAME_PAST0], 0);
    assert_int_equal(draft(k, DENSE + 3, 5), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "S0: stride 24579 is no multiple of 16 bytes"));
    assert_int_equal(draft(k, DENSE - 8, 5), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "S0: not dense: dimension 0 has stride 24568"));
    assert_int_equal(draft(k, DENSE, 3), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "S_slots: room for the states after 3 tokens"));
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
        cmocka_unit_test_setup(pools_are_named_by_device_memory, fresh),
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
