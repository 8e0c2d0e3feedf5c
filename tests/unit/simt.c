/* The interpreter of GPU kernels: its numbers are the hardware's, and what is wrong on a GPU is an
 * error here: races, early reads of copies, divergence, accesses out of bounds. Each test builds a
 * small kernel of 64 threads, right and then with one thing missing. */
#include "tests/simt/simt.h"
#include "codegen/nvptx/nvptx.h"
#include "tests/simt/number.h"
#include "tests/unit/ir_test.h"

enum { THREADS = 64, SHARED = 4 * THREADS };

typedef struct Bench {
    World *w;
    Cg *cg;
    Val tid;
    _Alignas(16) int32_t in[THREADS]; /* 100, 101, ... */
    int32_t out[THREADS];
} Bench;

static Bench *bench_open(void) {
    static const CgOptions opt = {.target = "sm_80", .algo = ALGO_recurrent, .opt_level = 2};
    World *w = world_open();
    Bench *b = NEW(&w->arena, Bench);
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "test"));
    const char *why = NULL;
    b->w = w;
    b->cg = cg_open(&w->arena, k, &opt, &why);
    assert_non_null(b->cg);
    nv_kernel_open(b->cg, "test", THREADS, 1);
    b->tid = nv_tid(b->cg);
    for (int i = 0; i < THREADS; i++)
        b->in[i] = 100 + i;
    return b;
}

/* NULL, or what was wrong. */
static const char *bench_run(Bench *b) {
    const char *why = NULL;
    nv_kernel_close(b->cg);
    Simt *s = simt_open(&b->w->arena, b->cg->mod, "test", &why);
    if (!s)
        fail_msg("%s", why);
    simt_memory(s, b->out, sizeof b->out, true);
    simt_memory(s, b->in, sizeof b->in, false);
    int64_t frame[FRAME_PORTS] = {0};
    frame[FRAME_WS] = (int64_t)(intptr_t)b->out;
    frame[FRAME_S0] = (int64_t)(intptr_t)b->in;
    return simt_launch(s, frame, FRAME_PORTS, 1, THREADS, SHARED, &why) ? NULL : why;
}

static void bench_close(Bench *b) {
    World *w = b->w;
    cg_close(b->cg);
    world_close(w);
}

static void expect(Bench *b, const char *part) {
    const char *why = bench_run(b);
    if (!why)
        fail_msg("nothing was found wrong, want: %s", part);
    if (!strstr(why, part))
        fail_msg("%s\nwant: %s", why, part);
    bench_close(b);
}

static void expect_results(Bench *b, int (*of)(int)) {
    const char *why = bench_run(b);
    if (why)
        fail_msg("%s", why);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(b->out[i], of(i));
    bench_close(b);
}

static Val place(Bench *b, Val base, Val i) {
    return cg_gep8(b->cg, base, cg_mul(b->cg, i, cg_int(b->cg, 4)));
}

static Val shared_at(Bench *b, Val i) {
    return place(b, nv_shared(b->cg, 0), i);
}

static void put_out(Bench *b, Val x) {
    cg_store(b->cg, x, place(b, nv_global(b->cg, FRAME_WS), b->tid), 4);
}

/* shared memory -------------------------------------------------------------------------------- */

typedef enum { SYNC_none, SYNC_warp, SYNC_block } Sync;

static void sync(Bench *b, Sync s) {
    if (s == SYNC_warp)
        nv_warp_sync(b->cg);
    if (s == SYNC_block)
        nv_barrier(b->cg);
}

/* Which of two threads comes second, and is told, depends on the order in which they run. */
static const char race[] = ", no barrier since";

/* Thread i reads what thread i ^ partner wrote, which then writes again. */
static Bench *exchange(int partner, Sync before_read, Sync before_write) {
    Bench *b = bench_open();
    Cg *cg = b->cg;
    Val other = cg_xor(cg, b->tid, cg_int(cg, partner));
    cg_store(cg, b->tid, shared_at(b, b->tid), 4);
    sync(b, before_read);
    Val x = cg_load(cg, cg->i32, shared_at(b, other), 4);
    sync(b, before_write);
    cg_store(cg, cg_int(cg, -1), shared_at(b, b->tid), 4);
    put_out(b, x);
    return b;
}

static int neighbour(int i) {
    return i ^ 1;
}
static int far(int i) {
    return i ^ 32;
}
static int same(int i) {
    return i;
}

static void test_races(void **state) {
    (void)state;
    expect_results(exchange(0, SYNC_none, SYNC_none), same);
    expect_results(exchange(1, SYNC_warp, SYNC_warp), neighbour);
    expect_results(exchange(32, SYNC_block, SYNC_block), far);
    expect(exchange(1, SYNC_none, SYNC_block), race);
    expect(exchange(1, SYNC_warp, SYNC_none), race);
    expect(exchange(32, SYNC_warp, SYNC_block), race);
    expect(exchange(32, SYNC_block, SYNC_warp), race);
}

static Bench *write_one_place(Val (*what)(Bench *)) {
    Bench *b = bench_open();
    Cg *cg = b->cg;
    Val warp = cg_shr(cg, b->tid, 5);
    cg_store(cg, what(b), shared_at(b, warp), 4);
    nv_barrier(cg);
    put_out(b, cg_load(cg, cg->i32, shared_at(b, warp), 4));
    return b;
}

static Val own_number(Bench *b) {
    return b->tid;
}
static Val warp_number(Bench *b) {
    return cg_shr(b->cg, b->tid, 5);
}
static int warp_of(int i) {
    return i / 32;
}

static void test_writes_of_many(void **state) {
    (void)state;
    expect_results(write_one_place(warp_number), warp_of);
    expect(write_one_place(own_number), "was written by thread");
}

static Bench *copied(bool commit, bool wait, bool barrier, int partner) {
    Bench *b = bench_open();
    Cg *cg = b->cg;
    Val four = cg_mul(cg, b->tid, cg_int(cg, 4));
    If some = cg_if(cg, cg_cmp(cg, LLVMIntULT, b->tid, cg_int(cg, THREADS / 4)));
    nv_copy_async(cg, shared_at(b, four), place(b, nv_global(cg, FRAME_S0), four), cg_int(cg, 16));
    cg_end_if(cg, &some);
    if (commit)
        nv_copy_commit(cg);
    if (wait)
        nv_copy_wait(cg, 0);
    if (barrier)
        nv_barrier(cg);
    put_out(b, cg_load(cg, cg->i32, shared_at(b, cg_xor(cg, b->tid, cg_int(cg, partner))), 4));
    return b;
}

static int copied_far(int i) {
    return 100 + (i ^ 32);
}

static void test_copies(void **state) {
    (void)state;
    expect_results(copied(true, true, true, 32), copied_far);
    expect(copied(true, false, true, 32), "a copy is under way");
    expect(copied(false, true, true, 32), "a copy is under way");
    expect(copied(true, true, false, 32), race);
}

/* bounds --------------------------------------------------------------------------------------- */

static void test_bounds(void **state) {
    (void)state;
    Bench *b = bench_open();
    cg_store(b->cg, b->tid, shared_at(b, cg_add(b->cg, b->tid, cg_int(b->cg, 1))), 4);
    expect(b, "at shared 256 of 256");
    b = bench_open();
    put_out(b, cg_load(b->cg, b->cg->i32, nv_global(b->cg, FRAME_S), 4));
    expect(b, "outside of all memory");
    b = bench_open();
    Val end = place(b, nv_global(b->cg, FRAME_S0), cg_int(b->cg, THREADS - 1));
    put_out(b, cg_load(b->cg, b->cg->i64, end, 4));
    expect(b, "8 bytes at");
    b = bench_open();
    cg_store(b->cg, b->tid, nv_global(b->cg, FRAME_S0), 4);
    expect(b, "only read");
    b = bench_open();
    Val odd = cg_gep8(b->cg, nv_shared(b->cg, 0), cg_int(b->cg, 2));
    put_out(b, cg_load(b->cg, b->cg->i32, odd, 4));
    expect(b, "not a multiple of 4");
}

/* threads together ----------------------------------------------------------------------------- */

static Bench *branch(void (*inside)(Cg *), int below) {
    Bench *b = bench_open();
    If some = cg_if(b->cg, cg_cmp(b->cg, LLVMIntULT, b->tid, cg_int(b->cg, below)));
    inside(b->cg);
    cg_end_if(b->cg, &some);
    put_out(b, b->tid);
    return b;
}

static void test_divergence(void **state) {
    (void)state;
    expect_results(branch(nv_warp_sync, 32), same);
    expect_results(branch(nv_barrier, THREADS), same);
    expect(branch(nv_warp_sync, 5), "a part of the warp");
    expect(branch(nv_barrier, 5), "a part of the warp");
    expect(branch(nv_barrier, 32), "waits for ever");
}

static int exchanged(int i) {
    return (i ^ 5) + 1000 * (i / 32 * 32 + 7);
}

static void test_shuffles(void **state) {
    (void)state;
    Bench *b = bench_open();
    Cg *cg = b->cg;
    Val seventh = nv_shuffle_from(cg, b->tid, cg_int(cg, 7));
    put_out(b, cg_add(cg, nv_shuffle_xor(cg, b->tid, 5), cg_mul(cg, seventh, cg_int(cg, 1000))));
    expect_results(b, exchanged);
}

static int odd_lanes(int i) {
    (void)i;
    return (int)0xaaaaaaaau;
}

static void test_ballot(void **state) {
    (void)state;
    Bench *b = bench_open();
    Cg *cg = b->cg;
    Val odd = cg_cmp(cg, LLVMIntNE, cg_and(cg, b->tid, cg_int(cg, 1)), cg_int(cg, 0));
    put_out(b, nv_ballot(cg, odd));
    expect_results(b, odd_lanes);
}

/* numbers -------------------------------------------------------------------------------------- */

static void test_halves(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float x = float_of_f16(h), next = h < 0x7bff ? float_of_f16(h + 1) : 65536;
        uint32_t even = h + (h & 1);
        assert_true(x < next && float_of_f16(h | 0x8000) == -x);
        assert_int_equal(f16_of_float(x), h);
        assert_int_equal(f16_of_float(-x), h | 0x8000);
        assert_int_equal(f16_of_float((x + next) / 2), even);
        assert_int_equal(f16_of_float(nextafterf((x + next) / 2, 0)), h);
        assert_int_equal(f16_of_float(nextafterf((x + next) / 2, INFINITY)), h + 1);
    }
    assert_true(float_of_f16(1) == 0x1p-24f && float_of_f16(0x3c00) == 1);
    assert_true(isinf(float_of_f16(0x7c00)) && isnan(float_of_f16(0x7e00)));
    assert_true(isnan(float_of_f16(f16_of_float(NAN))) && f16_of_float(INFINITY) == 0x7c00);
}

static void test_brains(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x7f80; h++) {
        float x = float_of_bf16(h), half = float_of_bits(h << 16 | 0x8000);
        assert_int_equal(bf16_of_float(x), h);
        assert_int_equal(bf16_of_float(half), h + (h & 1));
        assert_int_equal(bf16_of_float(nextafterf(half, 0)), h);
        assert_int_equal(bf16_of_float(-nextafterf(half, INFINITY)), (h + 1) | 0x8000);
    }
    assert_true(isnan(float_of_bf16(bf16_of_float(NAN))));
    assert_true(float_of_tf32(tf32_of_float(1 + 0x1p-11f)) == 1 + 0x1p-10f);
    assert_true(float_of_tf32(tf32_of_float(1 + 0x1.8p-12f)) == 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_races),      cmocka_unit_test(test_writes_of_many),
        cmocka_unit_test(test_copies),     cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_divergence), cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_ballot),     cmocka_unit_test(test_halves),
        cmocka_unit_test(test_brains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
