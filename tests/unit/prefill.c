/* Launches that go on where others ended, through the public API on the CPU: by chunks, token by token, and
 * from one to the other; the state, and what prev and cumsum remember. */
#include "tests/unit/decode_call.h"

static gdr_kernel *compile_rows(gdr_context *ctx, const char *spec, gdr_algo algo, int rows) {
    return compile_text(ctx, spec, (gdr_compile_options){.algo = algo, .chunk_rows = rows});
}

static void go_on_from(Call *b, const Call *a) {
    memcpy(b->S0, a->S, STATE_BYTES);
    memcpy(b->past0, a->past, sizeof a->past);
}

/* One launch, and two of which the second goes on where the first ended: the same bits. */
static void prefill_continues(gdr_context *ctx, const char *spec, gdr_algo algo, int64_t first,
                              int64_t T) {
    gdr_kernel *k = compile_rows(ctx, spec, algo, algo == GDR_ALGO_CHUNK ? 16 : 0);
    int p = past_of(k);
    Call *whole = call_new(1, T, 0, p), *a = call_new(1, first, 0, p),
         *b = call_new(1, T - first, first, p);
    run(k, ctx, whole);
    run(k, ctx, a);
    go_on_from(b, a);
    run(k, ctx, b);
    assert_memory_equal(output(whole, 0, 0), output(a, 0, 0), (size_t)first * OUT_BYTES);
    assert_memory_equal(output(whole, 0, first), output(b, 0, 0), (size_t)(T - first) * OUT_BYTES);
    assert_memory_equal(whole->S, b->S, STATE_BYTES);
    assert_memory_equal(whole->past, b->past, (size_t)(H * p) * 4);
    free(whole);
    free(a);
    free(b);
    gdr_kernel_destroy(k);
}

static void launches_continue_exactly(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    prefill_continues(ctx, delta, GDR_ALGO_RECURRENT, 7, 20);
    prefill_continues(ctx, past, GDR_ALGO_RECURRENT, 1, 20);
    prefill_continues(ctx, past, GDR_ALGO_RECURRENT, 13, 20);
    prefill_continues(ctx, delta, GDR_ALGO_CHUNK, 16, 25); /* chunks of 16 tokens, */
    for (int64_t first = 5; first <= 25; first += 5)       /* and of three updates a token, 5 */
        prefill_continues(ctx, past, GDR_ALGO_CHUNK, first, 29);
    gdr_context_destroy(ctx);
}

static void assert_near(const float *a, const float *b, int64_t n) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    assert_true(sqrt(difference) <= 2e-6 * sqrt(size));
}

/* From one algorithm to the other, in the midst of a chunk and at borders, and back: all that is told
 * from one token to the next is told, in the same places. */
static void algorithms_take_over_from_each_other(void **state) {
    (void)state;
    enum { T = 23 };
    static const int64_t first[] = {1, 4, 5, 12, 20, 22};
    gdr_context *ctx = open_context(2);
    gdr_kernel *k[2] = {compile_rows(ctx, past, GDR_ALGO_CHUNK, 16),
                        compile_rows(ctx, past, GDR_ALGO_RECURRENT, 0)};
    int p = past_of(k[0]);
    assert_int_equal(p, past_of(k[1]));
    Call *whole = call_new(1, T, 0, p);
    run(k[1], ctx, whole);
    for (size_t i = 0; i < 2 * sizeof first / sizeof *first; i++) {
        int64_t n = first[i / 2];
        Call *a = call_new(1, n, 0, p), *b = call_new(1, T - n, n, p);
        run(k[i % 2], ctx, a);
        go_on_from(b, a);
        run(k[1 - i % 2], ctx, b);
        assert_near(output(a, 0, 0), output(whole, 0, 0), n * H * V);
        assert_near(output(b, 0, 0), output(whole, 0, n), (T - n) * H * V);
        assert_near((float *)b->S, (float *)whole->S, H * STATE);
        assert_near(b->past, whole->past, H * p);
        free(a);
        free(b);
    }
    free(whole);
    gdr_kernel_destroy(k[0]);
    gdr_kernel_destroy(k[1]);
    gdr_context_destroy(ctx);
}

/* Packed sequences, one of them empty, one skipped, with records in a pool and in place: each as it is
 * alone; the empty one's record stays, bit for bit, and so does what no slot names. */
static void packed_prefill_remembers(void **state) {
    (void)state;
    enum { N = 4, POOL = 6, T = 20 };
    static const int64_t cu[N + 1] = {0, 7, 7, 12, T}, slot[N] = {4, 0, -1, 2};
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile_rows(ctx, past, GDR_ALGO_CHUNK, 16);
    int p = past_of(k);
    Call *c = call_new(1, T, 0, p);
    unsigned seed = 11;
    fill_pool(c, POOL);
    for (int64_t i = 0; i < POOL * H * p; i++)
        c->past0[i] = noise(&seed);
    c->past_shape[0][0] = POOL;
    float *pasts = malloc(sizeof c->past0);
    char *states = malloc(sizeof c->S0);
    memcpy(pasts, c->past0, sizeof c->past0);
    memcpy(states, c->S0, sizeof c->S0);
    in_place(c, slot, N);
    c->launch.past = &c->pasts[0];
    memcpy(c->cu, cu, sizeof cu);
    c->cu_shape[0] = N + 1;
    c->launch.cu_seqlens = &c->cu_tensor;
    c->index_shape[S0_SLOTS][0] = N;
    run(k, ctx, c);
    for (int n = 0; n < N; n++) {
        if (slot[n] < 0 || cu[n + 1] == cu[n])
            continue;
        Call *one = call_new(1, cu[n + 1] - cu[n], cu[n], p);
        memcpy(one->S0, state_of(states, slot[n]), STATE_BYTES);
        memcpy(one->past0, pasts + slot[n] * H * p, (size_t)(H * p) * 4);
        run(k, ctx, one);
        assert_memory_equal(output(c, 0, cu[n]), output(one, 0, 0),
                            (size_t)(cu[n + 1] - cu[n]) * OUT_BYTES);
        assert_memory_equal(state_of(c->S0, slot[n]), one->S, STATE_BYTES);
        assert_memory_equal(c->past0 + slot[n] * H * p, one->past, (size_t)(H * p) * 4);
        free(one);
    }
    for (int64_t i = 0; i < POOL; i++)
        if (i != 4 && i != 2)
            assert_memory_equal(c->past0 + i * H * p, pasts + i * H * p, (size_t)(H * p) * 4);
    free(c);
    free(pasts);
    free(states);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* No tokens at all: what was there is there, bit for bit. */
static void nothing_changes_without_tokens(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    for (gdr_algo algo = GDR_ALGO_CHUNK; algo <= GDR_ALGO_RECURRENT; algo++) {
        gdr_kernel *k = compile_rows(ctx, past, algo, 0);
        int p = past_of(k);
        Call *c = call_new(2, 0, 0, p);
        unsigned seed = 13;
        fill_pool(c, 2);
        for (int64_t i = 0; i < 2 * H * p; i++)
            c->past0[i] = noise(&seed);
        run(k, ctx, c);
        assert_memory_equal(c->S, c->S0, 2 * STATE_BYTES);
        assert_memory_equal(c->past, c->past0, (size_t)(2 * H * p) * 4);
        c->launch.past0 = NULL;
        run(k, ctx, c);
        for (int64_t i = 0; i < 2 * H * p; i++)
            assert_true(c->past[i] == 0);
        free(c);
        gdr_kernel_destroy(k);
    }
    gdr_context_destroy(ctx);
}

/* Values that vanish from the chunk form keep their places, as zeros; those that it holds to be equal are
 * told to both places. */
static void places_outlive_what_is_dropped(void **state) {
    (void)state;
    static const char spec[] =
        "variant idle {\n dim K = 20, V = 12\n in q[K], k[K], v[V]\n in g[K] <= 0\n"
        " state S[K, V]\n"
        " S = exp(-1) * S + prev(g + k) * (0 * prev(v))' + prev(q + 0 * k) * v' + prev(q) * v'\n"
        " out o[V] = S' * q\n}\n";
    enum { T = 9, P = V + K + K + K };
    gdr_context *ctx = open_context(2);
    gdr_kernel *k[2] = {compile_rows(ctx, spec, GDR_ALGO_CHUNK, 16),
                        compile_rows(ctx, spec, GDR_ALGO_RECURRENT, 0)};
    assert_int_equal(past_of(k[0]), P);
    assert_int_equal(past_of(k[1]), P);
    Call *c[2];
    for (int i = 0; i < 2; i++) {
        c[i] = call_new(1, T, 0, P);
        run(k[i], ctx, c[i]);
    }
    int zeros = 0;
    for (int64_t i = 0; i < H * P; i++) {
        if (c[0]->past[i] == 0 && c[1]->past[i] != 0)
            zeros++;
        else
            assert_true(fabsf(c[0]->past[i] - c[1]->past[i]) <= 1e-6f);
    }
    assert_int_equal(zeros, H * V); /* v, which meets 0 alone */
    for (int i = 0; i < 2; i++) {
        Call *next = call_new(1, 5, T, P);
        go_on_from(next, c[i]);
        run(k[1], ctx, next);
        free(c[i]);
        c[i] = next;
    }
    assert_near(output(c[0], 0, 0), output(c[1], 0, 0), 5 * H * V);
    for (int i = 0; i < 2; i++) {
        free(c[i]);
        gdr_kernel_destroy(k[i]);
    }
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launches_continue_exactly),
        cmocka_unit_test(algorithms_take_over_from_each_other),
        cmocka_unit_test(packed_prefill_remembers),
        cmocka_unit_test(nothing_changes_without_tokens),
        cmocka_unit_test(places_outlive_what_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
