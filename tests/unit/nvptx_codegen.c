/* NVIDIA kernels as text: what the building blocks emit, how the recurrent kernel is cut into
 * blocks, how wide its loads are, what is refused, and (where ptxas is found) that every kernel
 * assembles, without spills at the sizes that matter. What the kernels compute, GPU tests say. */
#include "tests/unit/nvptx_test.h"

/* Reads and decays on the V side, outs of every shape, a sum over V of what was read. */
static const char oja[] =
    "kernel oja recurrence {\n"
    "  axis C = 0, R = 0, U = 0, K = 128, V = 128\n"
    "  in q : bf16[K]\n"
    "  in k : bf16[K]\n"
    "  in v : bf16[V]\n"
    "  in g : bf16[V] <= 0\n"
    "  out o : bf16[V]\n"
    "  out e : bf16[K]\n"
    "  out n : bf16[]\n"
    "  state S\n"
    "  %0 = in g\n"
    "  %1 = exp %0\n"
    "  decay %1\n"
    "  %3 = in v\n"
    "  %4 = read %3\n"
    "  %5 = in k\n"
    "  %6 = sub %5, %4\n"
    "  update %6, %3\n"
    "  %8 = in q\n"
    "  %9 = read %8\n"
    "  %10 = mul %9, %9\n"
    "  %11 = sum %10 over V\n"
    "  out o = %9\n"
    "  out e = %4\n"
    "  out n = %11\n"
    "}\n";

/* Earlier tokens, params, rows of inputs, scalars for vectors, a sum over V of inputs alone. */
static const char mixed[] =
    "kernel mixed recurrence {\n"
    "  axis C = 0, R = 0, U = 0, K = 128, V = 128, n = 2\n"
    "  in k : bf16[n,K]\n"
    "  in v : bf16[V]\n"
    "  in t : bf16[]\n"
    "  param A : f32[]\n"
    "  param dt : f32[K]\n"
    "  out o : bf16[V]\n"
    "  state S\n"
    "  %0 = in A\n"
    "  %1 = in dt\n"
    "  %2 = in t\n"
    "  %3 = add %1, %2\n"
    "  %4 = softplus %3\n"
    "  %5 = mul %4, %0\n"
    "  %6 = exp %5\n"
    "  decay %6\n"
    "  %8 = cumsum %2\n"
    "  %9 = prev %8\n"
    "  %10 = cos %9\n"
    "  %11 = in k row 0\n"
    "  %12 = mul %11, %10\n"
    "  %13 = prev %12\n"
    "  %14 = prev %13\n"
    "  %15 = in v\n"
    "  %16 = mul %15, %15\n"
    "  %17 = sum %16 over V\n"
    "  %18 = rsqrt %17\n"
    "  %19 = mul %15, %18\n"
    "  update %14, %19\n"
    "  %21 = const 0.5\n"
    "  update %21, %15\n"
    "  %23 = in k row 1\n"
    "  %24 = read %23\n"
    "  out o = %24\n"
    "}\n";

static void set_type(Kernel *k, Elem e) {
    for (int i = 0; i < k->in.count; i++)
        if (!k->in.at[i].is_param)
            k->in.at[i].elem = e;
    for (int o = 0; o < k->out.count; o++)
        k->out.at[o].elem = e;
}

static Kernel *kernel_of(World *w, const char *text, int K, int V, Elem e) {
    Kernel *k = kernel_sized(w, text, K, V);
    set_type(k, e);
    past_place(k);
    assert_null(kernel_verify(k));
    return k;
}

static CgOptions options(const char *target, int v_tile) {
    return (CgOptions){.target = target, .algo = ALGO_recurrent, .v_tile = v_tile, .opt_level = 2};
}

static CgModule *compile(World *w, const Kernel *k, const char *target, int v_tile) {
    CgOptions opt = options(target, v_tile);
    CgModule *m = compile_kernel(w, k, &opt);
    assert_int_equal(m->entry.count, 1);
    return m;
}

static void assert_has(const char *text, const char *part) {
    if (!strstr(text, part))
        fail_msg("no '%s' in:\n%s", part, text);
}

static void assert_lacks(const char *text, const char *part) {
    if (strstr(text, part))
        fail_msg("'%s' in:\n%s", part, text);
}

/* building blocks ------------------------------------------------------------------------------ */

static void build_blocks(Cg *cg) {
    Val zero = cg_int(cg, 0), f = cg_float(cg, 1.5);
    nv_kernel_open(cg, "blocks", 64, 2);
    Val global = nv_global(cg, FRAME_WS), tid = nv_tid(cg);
    Val offset = cg_shl(cg, tid, 4), shared = cg_gep8(cg, nv_shared(cg, 512), offset);
    nv_copy_async(cg, shared, global, cg_int(cg, 16));
    nv_copy_async(cg, shared, global, cg_and(cg, tid, cg_int(cg, 16)));
    nv_copy_commit(cg);
    nv_copy_wait(cg, 1);
    nv_barrier(cg);
    Val a[4], b[4], acc[4] = {f, f, f, f};
    nv_ldmatrix4(cg, shared, false, a);
    nv_ldmatrix4(cg, shared, true, b);
    b[0] = nv_movmatrix(cg, b[0]);
    nv_mma(cg, ELEM_bf16, acc, a, b);
    nv_mma(cg, ELEM_f16, acc, a, b);
    Val t[4] = {nv_tf32(cg, acc[0]), a[1], a[2], a[3]};
    nv_mma_tf32(cg, acc, t, b);
    acc[0] = nv_shuffle_xor(cg, acc[0], 4);
    acc[1] = nv_shuffle_from(cg, acc[1], cg_and(cg, tid, cg_int(cg, 3)));
    acc[2] = nv_shuffle_beside(cg, acc[2], 8, 3);
    Val pair[2], half[2];
    nv_unpack(cg, ELEM_bf16, nv_pack(cg, ELEM_bf16, acc[0], acc[1]), pair);
    nv_unpack(cg, ELEM_f16, nv_pack(cg, ELEM_f16, acc[2], acc[3]), half);
    Val votes = nv_ballot(cg, cg_cmp(cg, LLVMIntEQ, nv_block(cg), zero));
    nv_warp_sync(cg);
    Val *out[] = {&pair[0], &pair[1], &half[0], &half[1]};
    for (int i = 0; i < 4; i++)
        cg_store(cg, *out[i], cg_gep8(cg, global, cg_int(cg, 4 * i)), 4);
    cg_store(cg, votes, cg_gep8(cg, global, cg_int(cg, 16)), 4);
    nv_kernel_close(cg);
}

static char *emit_blocks(World *w, const char *target) {
    Kernel *k = kernel_of(w, gdn2, 128, 128, ELEM_bf16);
    CgOptions opt = options(target, 0);
    const char *why = NULL;
    Cg *cg = cg_open(&w->arena, k, &opt, &why);
    assert_non_null(cg);
    build_blocks(cg);
    CgModule m = {0};
    assert_true(cg_optimize(cg, &why));
    assert_true(cg_emit(cg, &m, &why));
    cg_close(cg);
    return m.text;
}

static void test_building_blocks(void **state) {
    (void)state;
    static const char *const part[] = {
        ".visible .entry blocks(", ".reqntid 64", ".minnctapersm 2",
        ".extern .shared .align 1024 .b8 shared[]",
        "cp.async.cg.shared.global", "cp.async.commit_group", "cp.async.wait_group \t1",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        "movmatrix.sync.aligned.m8n8.trans.b16",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rna.tf32.f32",
        "shfl.sync.bfly.b32", "shfl.sync.idx.b32", "8, 799, -1;", "vote.sync.ballot.b32", "bar.warp.sync",
        "cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32",
    };
    static const char *const target[] = {"sm_80", "sm_90a"};
    char frame[64]; /* the fixed fields, pointer and heads of six inputs, one output, the segment */
    snprintf(frame, sizeof frame, ".param .align 8 .b8 blocks_param_0[%d]", 8 * (FRAME_PORTS + 13 + SEGMENT_FIELDS));
    World *w = world_open();
    for (int t = 0; t < 2; t++) {
        char *text = emit_blocks(w, target[t]);
        assert_has(text, frame);
        for (size_t i = 0; i < sizeof part / sizeof part[0]; i++)
            assert_has(text, part[i]);
        assert_lacks(text, ".local");
    }
    world_close(w);
}

/* the recurrent kernel ------------------------------------------------------------------------- */

static void test_blocks_of_the_grid(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int K, V, v_tile;             /* wanted */
        int threads, tile, smem;      /* given */
    } row[] = {
        /* 4 warps of 16 columns; 5 vectors of 512 bytes a token, for 2 batches of 4 tokens */
        {gdn2, 128, 128, 0, 128, 64, 20480},
        {gdn2, 128, 128, 128, 256, 128, 20480},
        {gdn2, 128, 128, 1, 32, 16, 5120},     /* a warp is the least, and makes one token at a time */
        {gdn2, 128, 128, 999, 256, 128, 20480},
        {gdn2, 256, 256, 0, 128, 32, 20480},   /* 8 columns a warp; 2 tokens a batch */
        {gdn2, 64, 64, 0, 64, 64, 5120},       /* 32 columns a warp */
        {gdn2, 128, 20, 0, 64, 32, 9216},
        {gdn2, 1, 1, 0, 32, 16, 2560},
        {oja, 128, 128, 16, 256, 128, 8 * 128 * 4 + 16384}, /* a block owns all of V */
        {oja, 64, 16, 0, 32, 16, 2048},                     /* one warp has all of it anyway */
        {mixed, 128, 128, 0, 256, 128, 20608}, /* it remembers: one block a head, */
        {mixed, 128, 128, 32, 64, 128, 10304}, /* in turns of 32 columns */
    };
    World *w = world_open();
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        Kernel *k = kernel_of(w, row[i].text, row[i].K, row[i].V, ELEM_bf16);
        CgModule *m = compile(w, k, "sm_80", row[i].v_tile);
        CgEntry e = m->entry.at[0];
        assert_int_equal(e.kind, ENTRY_recurrent);
        assert_int_equal(e.threads, row[i].threads);
        assert_int_equal(e.v_tile, row[i].tile);
        assert_int_equal(e.smem_bytes, row[i].smem);
        assert_int_equal(m->chunk, 1);
        Buf line;
        buf_init(&line, &w->arena);
        buf_printf(&line, ".visible .entry %s(", e.symbol);
        assert_has(m->text, line.text);
        assert_has(m->text, "bar.sync");
    }
    world_close(w);
}

/* Rows of `size` elements are read in the widest pieces that always lie at their own multiples. */
static void test_width_of_loads(void **state) {
    (void)state;
    static const struct { int size; Elem e; const char *has, *lacks; } row[] = {
        {256, ELEM_bf16, "ld.global.nc.v4.b32", "ld.global.nc.b16"},
        {128, ELEM_bf16, "ld.global.nc.v2.b32", "ld.global.nc.b16"},
        {100, ELEM_bf16, "ld.global.nc.v2.b32", "ld.global.nc.v4"},
        {98, ELEM_bf16, "ld.global.nc.b32", "ld.global.nc.v"},
        {97, ELEM_f16, "ld.global.nc.b16", "ld.global.nc.v"},
        {128, ELEM_f32, "ld.global.nc.v4.b32", "ld.global.nc.b16"},
        {102, ELEM_f32, "ld.global.nc.v2.b32", "ld.global.nc.v4"},
        {101, ELEM_f32, "ld.global.nc.b32", "ld.global.nc.v"},
    };
    World *w = world_open();
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        CgModule *m = compile(w, kernel_of(w, gdn2, row[i].size, row[i].size, row[i].e), "sm_90a", 0);
        assert_has(m->text, row[i].has);
        assert_lacks(m->text, row[i].lacks);
    }
    world_close(w);
}

static void test_symbols_and_llvm(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = kernel_of(w, gdn2, 64, 64, ELEM_bf16);
    CgOptions opt = options("sm_90a", 0);
    opt.prefix = "my_";
    opt.want_llvm = true;
    CgModule *m = compile_kernel(w, k, &opt);
    assert_string_equal(m->entry.at[0].symbol, "my_gdn2_recurrent");
    assert_has(m->text, "define ptx_kernel void @my_gdn2_recurrent(ptr");
    world_close(w);
}

static void assert_refused(World *w, const Kernel *k, const char *part) {
    CgOptions opt = options("sm_90a", 0);
    const char *why = NULL;
    assert_null(codegen_nvptx(&w->arena, k, &opt, &why));
    assert_non_null(why);
    assert_has(why, part);
}

static void test_refusals(void **state) {
    (void)state;
    World *w = world_open();
    assert_refused(w, kernel_of(w, gdn2, 257, 128, ELEM_bf16), "256");
    assert_refused(w, kernel_of(w, gdn2, 128, 300, ELEM_bf16), "256");
    assert_refused(w, kernel_of(w, gdn2, 128, 128, ELEM_f64), "f32, bf16 and f16");
    assert_refused(w, parse(w, "kernel t recurrence {\n"
                               "  axis C = 0, R = 0, U = 0, K = 8, V = 8, n = 2\n"
                               "  in x : f32[n]\n"
                               "  out y : f32[n]\n"
                               "  %0 = in x\n"
                               "  out y = %0\n"
                               "}\n"), "outputs");
    world_close(w);
}

/* Memory that runs out unwinds to the caller from wherever it happens, and LLVM's goes with it. */
static void test_memory_runs_out(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = kernel_of(w, gdn2, 16, 16, ELEM_f32);
    CgOptions opt = options("sm_80", 0);
    assert_true(count_unwound(k, &opt, 0.5) > 5);
    world_close(w);
}

/* assembling ----------------------------------------------------------------------------------- */

static void test_assembles(void **state) {
    (void)state;
    char *ptxas = need_ptxas();
    static const char *const text[] = {gdn2, oja, mixed};
    static const struct { const char *target; int K, V; Elem e; } at[] = {
        {"sm_80", 128, 128, ELEM_bf16}, {"sm_90a", 60, 100, ELEM_f16}, {"sm_80", 7, 3, ELEM_f32},
        {"sm_90a", 256, 256, ELEM_f32},
    };
    World *w = world_open();
    for (size_t s = 0; s < sizeof text / sizeof text[0]; s++) {
        for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
            Kernel *k = kernel_of(w, text[s], at[i].K, at[i].V, at[i].e);
            assembled(w, ptxas, compile(w, k, at[i].target, 0)->text, at[i].target);
        }
    }
    assembled(w, ptxas, emit_blocks(w, "sm_80"), "sm_80");
    assembled(w, ptxas, emit_blocks(w, "sm_90a"), "sm_90a");
    free(ptxas);
    world_close(w);
}

static void test_no_spills(void **state) {
    (void)state;
    char *ptxas = need_ptxas();
    static const char *const target[] = {"sm_80", "sm_90a"};
    World *w = world_open();
    for (int t = 0; t < 2; t++) {
        for (int e = 0; e < 2; e++) {
            Kernel *k = kernel_of(w, gdn2, 128, 128, e ? ELEM_f32 : ELEM_bf16);
            const char *said = assembled(w, ptxas, compile(w, k, target[t], 0)->text, target[t]);
            assert_has(said, " 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads");
        }
    }
    free(ptxas);
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_building_blocks),  cmocka_unit_test(test_blocks_of_the_grid),
        cmocka_unit_test(test_width_of_loads),   cmocka_unit_test(test_symbols_and_llvm),
        cmocka_unit_test(test_refusals),         cmocka_unit_test(test_memory_runs_out),
        cmocka_unit_test(test_assembles),        cmocka_unit_test(test_no_spills),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
