/* Launches of what makes values ahead of the chunk kernels (codegen/nvptx/scan.h), over a driver that
 * only takes notes: which kernels, in which order, how many blocks, and how much workspace. */
#include "tests/unit/cuda_stub.h"

#include <string.h>

static const char spec[] = "variant s { dim K = 64, V = 32; in q[K], k[K], v[V]\n"
                           "let z = cumsum(k)\nstate S[K, V]\nS = S + z * v'\nout o[V] = S' * q\n}\n";

enum { HEADS = 4, T = 100, N = 3, BYTES = 4 };

static gdr_kernel *compile(gdr_context *ctx) {
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o, .target = "cuda", .algo = GDR_ALGO_CHUNK};
    if (gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k))
        fail_msg("%s", gdr_last_error(ctx));
    stub.fields = record_frame_fields(&k->rec);
    return k;
}

/* k has two heads, so the factor kernel has two as well; what is made ahead has all of them. */
static gdr_launch launch_of(gdr_arg arg[4], bool packed) {
    static const int64_t dense[2][4] = {{N, T, 2, 64}, {N, T, HEADS, 32}};
    static const int64_t flat[2][4] = {{1, T, 2, 64}, {1, T, HEADS, 32}}, offsets[] = {N + 1};
    static gdr_tensor cu;
    const int64_t(*shape)[4] = packed ? flat : dense;
    void *p = (void *)(uintptr_t)0x1000; /* nobody looks at what is there */
    static const char *const name[] = {"q", "k", "v", "o"};
    for (int i = 0; i < 4; i++)
        arg[i] = (gdr_arg){name[i], {p, GDR_CUDA, GDR_F32, 4, shape[i / 2], NULL}};
    cu = (gdr_tensor){p, GDR_CUDA, GDR_I32, 1, offsets, NULL};
    return (gdr_launch){.size = sizeof(gdr_launch),
                        .args = arg,
                        .nargs = 4,
                        .cu_seqlens = packed ? &cu : NULL};
}

static int64_t align(int64_t x) {
    return (x + 255) / 256 * 256;
}

static void expect(gdr_kernel *k, bool packed) {
    static const char *const part[] = {"_sums0", "_carry0", "_rows0", "_factor", "_chain"};
    gdr_arg arg[4];
    gdr_launch l = launch_of(arg, packed);
    const CgModule *m = &k->rec.module;
    int64_t tokens = packed ? T : N * T, C = m->chunk;
    int64_t slots = packed ? T / C + N : N * ((T + C - 1) / C);
    int64_t stretches = packed ? T / 32 + N : N * ((T + 31) / 32);
    const int64_t grid[] = {stretches * HEADS, N * HEADS, stretches * HEADS, slots * 2, -1};
    size_t bytes;
    stub.launches = 0;
    assert_int_equal(gdr_forward(k, &l), GDR_OK);
    assert_int_equal(stub.launches, 5);
    for (int i = 0; i < 5; i++) {
        assert_non_null(strstr(stub.launch[i].name, part[i]));
        if (grid[i] >= 0)
            assert_int_equal(stub.launch[i].grid, grid[i]);
    }
    assert_int_equal(m->scan_token_bytes, 64 * BYTES);
    assert_int_equal(m->scan_carry_bytes, 64 * BYTES);
    assert_int_equal(gdr_workspace_size(k, &l, &bytes), GDR_OK);
    assert_int_equal(bytes, align(align(slots * 2 * m->ws_bytes_per_slot_head) +
                                  align(tokens * HEADS * 64 * BYTES) + stretches * HEADS * 64 * BYTES));
}

static void kernels_ahead_come_first(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx);
    expect(k, false);
    expect(k, true);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Tokens, sequences and heads whose product no workspace can have. */
static void sizes_overflow(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx);
    gdr_arg arg[4];
    gdr_launch l = launch_of(arg, false);
    int64_t shape[4][4];
    size_t bytes;
    for (int i = 0; i < 4; i++) {
        memcpy(shape[i], arg[i].tensor.shape, sizeof shape[i]);
        shape[i][1] = INT64_C(1) << 44;
        arg[i].tensor.shape = shape[i];
    }
    assert_int_equal(gdr_workspace_size(k, &l, &bytes), GDR_OK);
    k->rec.module.scan_token_bytes = INT64_C(1) << 20;
    assert_int_equal(gdr_workspace_size(k, &l, &bytes), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "overflows 64 bits"));
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* What remembers comes last, a block for each sequence and head, and only where somebody asks for it. */
static void what_is_left_comes_last(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = compile(ctx);
    gdr_arg arg[4];
    gdr_launch l = launch_of(arg, true);
    gdr_tensor past = {(void *)(uintptr_t)0x1000, GDR_CUDA, GDR_F32, 3,
                       (int64_t[]){N, HEADS, 64}, NULL};
    assert_int_equal(k->rec.module.past, 64);
    l.past0 = &past;
    stub.launches = 0;
    assert_int_equal(gdr_forward(k, &l), GDR_OK);
    assert_int_equal(stub.launches, 5);
    l.past = &past;
    stub.launches = 0;
    assert_int_equal(gdr_forward(k, &l), GDR_OK);
    assert_int_equal(stub.launches, 6);
    assert_non_null(strstr(stub.launch[5].name, "_past"));
    assert_int_equal(stub.launch[5].grid, N * HEADS);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(kernels_ahead_come_first, fresh),
        cmocka_unit_test_setup(what_is_left_comes_last, fresh),
        cmocka_unit_test_setup(sizes_overflow, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
