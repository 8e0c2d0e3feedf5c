/* Warpgroup products: that operand descriptors and k-steps find every element where nv_place puts it,
 * which entries a chunk kernel gets on which GPU, that they become one text and leave no memory
 * behind, and that the assembler neither spills nor serialises them. What the kernels compute, GPU
 * tests say. */
#include "codegen/nvptx/factor.h"
#include "passes/passes.h"
#include "tests/unit/nvptx_test.h"

static CgOptions options(const char *target, Algo algo) {
    return (CgOptions){.target = target, .algo = algo, .opt_level = 2};
}

/* layout --------------------------------------------------------------------------------------- */

/* Byte address of element (n, k) of a 16-deep B operand, as the instruction set defines the layouts:
 * eights of rows a stride apart, swizzled by address bits. */
static uint64_t operand_address(uint64_t descriptor, bool along_rows, int n, int k) {
    uint64_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    uint64_t stride = (descriptor >> 32 & 0x3fff) << 4;
    int log = 4 - (int)(descriptor >> 62), row = 16 << log, wide = row / 2;
    uint64_t at = along_rows ? start + (uint64_t)(n % wide * 2 + k % 8 * row) +
                                   (uint64_t)(n / wide) * leading + (uint64_t)(k / 8) * stride
                             : start + (uint64_t)(n % 8 * row + k * 2) + (uint64_t)(n / 8) * stride;
    return at ^ ((at >> 7 & ((1u << log) - 1)) << 4);
}

static uint64_t placed_address(Cg *cg, const Wgmma *m, int row, int column) {
    Val unit = nv_place(cg, m->rows, m->columns, cg_int(cg, row), cg_int(cg, column / 8));
    return LLVMConstIntGetZExtValue(unit) * 16 + (uint64_t)(column % 8) * 2;
}

/* The offsets that the product's text adds to the descriptor, one a k-step. */
static int steps_of(Cg *cg, const Wgmma *m, uint64_t *step) {
    int deep = m->along_rows ? m->rows : m->columns;
    Val acc[128], a[64];
    for (int i = 0; i < deep / 4; i++)
        a[i] = cg_int(cg, 0);
    nv_wgmma(cg, ELEM_f16, acc, a, m, false);
    Val call = LLVMGetOperand(acc[0], 0);
    size_t len;
    const char *at = LLVMGetInlineAsmAsmString(LLVMGetCalledValue(call), &len);
    int n = 0;
    while ((at = strstr(at, "add.s64 d, $"))) {
        at = strchr(at + 12, ',') + 1;
        step[n++] = strtoull(at, NULL, 10);
    }
    assert_int_equal(n, deep / 16);
    return n;
}

static void check_layout(Cg *cg, int rows, int columns, bool along_rows) {
    uint64_t step[16];
    Wgmma m = nv_wgmma_matrix(cg, LLVMConstNull(cg->ptr_shared), rows, columns, along_rows);
    assert_true(LLVMIsAConstantInt(m.descriptor));
    uint64_t descriptor = LLVMConstIntGetZExtValue(m.descriptor);
    int steps = steps_of(cg, &m, step), width = along_rows ? columns : rows;
    for (int s = 0; s < steps; s++)
        for (int n = 0; n < width; n++)
            for (int k = 0; k < 16; k++) {
                int row = along_rows ? 16 * s + k : n, column = along_rows ? n : 16 * s + k;
                uint64_t want = placed_address(cg, &m, row, column);
                uint64_t got = operand_address(descriptor + step[s], along_rows, n, k);
                if (got != want)
                    fail_msg("%d x %d %s: n %d, k %d: %d, want %d", rows, columns,
                             along_rows ? "along rows" : "along columns", n, 16 * s + k, (int)got,
                             (int)want);
            }
}

static void test_every_element_is_found(void **state) {
    (void)state;
    World *w = world_open();
    CgOptions opt = options("sm_90a", ALGO_recurrent);
    const char *why = NULL;
    Cg *cg = cg_open(&w->arena, parse(w, gdn2), &opt, &why);
    assert_non_null(cg);
    nv_kernel_open(cg, "layouts", 128, 1);
    for (int rows = 16; rows <= 64; rows *= 2) {
        for (int columns = 32; columns <= 256; columns += 32) {
            check_layout(cg, rows, columns, false);
            check_layout(cg, rows, columns, true);
        }
        check_layout(cg, rows, rows, false);
    }
    nv_kernel_close(cg);
    cg_close(cg);
    world_close(w);
}

/* entries -------------------------------------------------------------------------------------- */

static Kernel *tiles(World *w, int K, int V, int chunk) {
    Kernel *k = kernel_sized(w, gdn2, K, V);
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, chunk);
    passes_run_after(k, "normal", NULL, NULL);
    return k;
}

static CgModule *compile(World *w, const CgOptions *opt, int K, int V, int chunk) {
    return compile_kernel(w, tiles(w, K, V, chunk), opt);
}

static void test_schedules(void **state) {
    (void)state;
    static const struct {
        const char *target;
        int K, V, v_tile;
        bool no_wgmma;
        int tile[3];       /* of the chain entries, wide to narrow */
        bool wgmma;
    } row[] = {
        {"sm_90a", 128, 128, 0, false, {128, 64}, true},
        {"sm_90a", 128, 128, 0, true, {128}, false},
        {"sm_80", 128, 128, 0, false, {64}, false},   /* two stages of 128 do not fit */
        {"sm_90a", 64, 64, 0, false, {64}, true},
        {"sm_90a", 64, 100, 0, false, {128, 64}, true},
        {"sm_90a", 64, 20, 0, false, {64}, true},
        {"sm_90a", 64, 64, 32, false, {32}, false},
        {"sm_90a", 64, 128, 64, false, {64}, true},
    };
    World *w = world_open();
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        CgOptions opt = options(row[i].target, ALGO_chunk);
        opt.v_tile = row[i].v_tile;
        opt.no_wgmma = row[i].no_wgmma;
        CgModule *m = compile(w, &opt, row[i].K, row[i].V, 64);
        int n = 1;
        for (int t = 0; row[i].tile[t]; t++, n++) {
            CgEntry e = m->entry.at[n];
            assert_int_equal(e.kind, ENTRY_chain);
            assert_int_equal(e.v_tile, row[i].tile[t]);
            assert_int_equal(e.threads, 2 * e.v_tile);
        }
        assert_int_equal(m->entry.count, n);
        assert_int_equal(strstr(m->text, "wgmma.mma_async") != NULL, row[i].wgmma);
        assert_int_equal(strstr(m->text, "cp.async.bulk") != NULL, row[i].wgmma);
    }
    world_close(w);
}

static int occurrences(const char *text, const char *part) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)); at++)
        n++;
    return n;
}

/* Modules are translated apart: the text says once what they share, and it is the same every time. */
static void test_one_text(void **state) {
    (void)state;
    World *w = world_open();
    CgOptions opt = options("sm_90a", ALGO_chunk);
    CgModule *m = compile(w, &opt, 64, 128, 64), *again = compile(w, &opt, 64, 128, 64);
    assert_int_equal(m->entry.count, 3);
    assert_int_equal(strlen(m->text), m->text_len);
    assert_string_equal(m->text, again->text);
    static const char *const once[] = {".version ", ".target ", ".address_size ", ".extern .shared ",
                                       ".global .align 16 .b8 gdr_zeros["};
    for (size_t i = 0; i < sizeof once / sizeof once[0]; i++)
        assert_int_equal(occurrences(m->text, once[i]), 1);
    opt.want_llvm = true;
    CgModule *ir = compile(w, &opt, 64, 128, 64);
    assert_int_equal(ir->entry.count, 3);
    assert_int_equal(occurrences(ir->text, "target triple"), 1);
    for (int i = 0; i < 3; i++) {
        char line[128];
        assert_string_equal(ir->entry.at[i].symbol, m->entry.at[i].symbol);
        snprintf(line, sizeof line, "\n.visible .entry %s(", m->entry.at[i].symbol);
        assert_int_equal(occurrences(m->text, line), 1);
        snprintf(line, sizeof line, "\ndefine ptx_kernel void @%s(", m->entry.at[i].symbol);
        assert_int_equal(occurrences(ir->text, line), 1);
    }
    world_close(w);
}

/* Wherever memory runs out, every module that is open goes. */
static void test_memory_runs_out(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = tiles(w, 16, 128, 16);
    CgOptions opt = options("sm_90a", ALGO_chunk);
    assert_true(count_unwound(k, &opt, 0.125) > 20);
    world_close(w);
}

/* assembling ----------------------------------------------------------------------------------- */

static void test_assembles_as_meant(void **state) {
    (void)state;
    char *ptxas = need_ptxas();
    static const struct { int K, V, chunk; } size[] = {
        {128, 128, 64}, {64, 64, 64}, {96, 64, 64}, {256, 128, 32}, {60, 100, 16}, {32, 64, 32},
    };
    World *w = world_open();
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
        CgOptions opt = options("sm_90a", ALGO_chunk);
        CgModule *m = compile(w, &opt, size[i].K, size[i].V, size[i].chunk);
        const char *said = assembled(w, ptxas, m->text, "sm_90a");
        if (strstr(said, "C75") || strstr(said, "spilled to local memory in function 'gdn2_chain"))
            fail_msg("%s", said);
    }
    free(ptxas);
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_element_is_found),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_one_text),
        cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_assembles_as_meant),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
