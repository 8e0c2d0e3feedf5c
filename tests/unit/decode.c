/* Decoding through the public API on the CPU: pools and their slots, types and layouts of states,
 * several tokens a step, what was accepted of them; what is refused. */
#include "tests/unit/decode_call.h"

static gdr_kernel *compile(gdr_context *ctx, const char *spec, gdr_algo algo, gdr_dtype type,
                           gdr_layout layout) {
    return compile_text(ctx, spec, (gdr_compile_options){.algo = algo, .state_dtype = type,
                                                         .state_layout = layout});
}

static bool untouched(const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)p)[i] != 0xff)
            return false;
    return true;
}

/* pools ---------------------------------------------------------------------------------------- */

/* Of five slots three are named; the fourth sequence is skipped. */
static void slots_are_used_and_others_left(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    for (gdr_algo algo = GDR_ALGO_CHUNK; algo <= GDR_ALGO_RECURRENT; algo++) {
        gdr_kernel *k = compile(ctx, delta, algo, GDR_F32, GDR_LAYOUT_KV);
        static const int64_t slot[4] = {4, 0, -1, 2};
        Call *plain = call_new(4, 3, 0, 0), *pool = call_new(4, 3, 0, 0);
        fill_pool(pool, 5);
        for (int n = 0; n < 4; n++)
            if (slot[n] >= 0)
                memcpy(plain->S0 + n * STATE_BYTES, state_of(pool->S0, slot[n]), STATE_BYTES);
        char *before = malloc(sizeof pool->S0);
        memcpy(before, pool->S0, sizeof pool->S0);
        in_place(pool, slot, 4);
        run(k, ctx, plain);
        run(k, ctx, pool);
        for (int n = 0; n < 4; n++) {
            if (slot[n] < 0) {
                assert_true(untouched(output(pool, n, 0), 3 * OUT_BYTES));
                continue;
            }
            assert_memory_equal(output(pool, n, 0), output(plain, n, 0), 3 * OUT_BYTES);
            assert_memory_equal(state_of(pool->S0, slot[n]), state_of(plain->S, n), STATE_BYTES);
        }
        assert_memory_equal(state_of(pool->S0, 1), state_of(before, 1), STATE_BYTES);
        assert_memory_equal(state_of(pool->S0, 3), state_of(before, 3), STATE_BYTES);
        free(before);
        free(plain);
        free(pool);
        gdr_kernel_destroy(k);
    }
    gdr_context_destroy(ctx);
}

/* From one pool to another, with gaps between its states and 4-byte slots. */
static void pools_may_be_two_and_spaced(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile(ctx, delta, GDR_ALGO_RECURRENT, GDR_F32, GDR_LAYOUT_KV);
    enum { GAP = 40 };
    int64_t strides[4] = {H * STATE + GAP, STATE, V, 1};
    Call *plain = call_new(2, 1, 0, 0), *c = call_new(2, 1, 0, 0);
    fill_pool(c, 3);
    memcpy(plain->S0, state_of(c->S0, 2), STATE_BYTES);
    memcpy(plain->S0 + STATE_BYTES, state_of(c->S0, 2), STATE_BYTES);
    run(k, ctx, plain);
    c->state_shape[1][0] = 6;
    c->state[1].strides = strides;
    memcpy(c->index[S0_SLOTS], (int32_t[]){2, 2}, 8); /* two start from one state */
    memcpy(c->index[S_SLOTS], (int32_t[]){5, 1}, 8);
    c->indices[S0_SLOTS].dtype = c->indices[S_SLOTS].dtype = GDR_I32;
    c->launch.S0_slots = &c->indices[S0_SLOTS];
    c->launch.S_slots = &c->indices[S_SLOTS];
    run(k, ctx, c);
    for (int i = 0; i < 6; i++) {
        const float *at = (const float *)c->S + i * strides[0];
        assert_true(untouched(at + H * STATE, 4 * GAP));
        if (i == 5 || i == 1)
            assert_memory_equal(at, state_of(plain->S, i == 1), STATE_BYTES);
        else
            assert_true(untouched(at, STATE_BYTES));
    }
    free(plain);
    free(c);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* types and layouts ---------------------------------------------------------------------------- */

static double element(const void *S, gdr_dtype type, gdr_layout layout, int64_t i) {
    int64_t k = i / V % K, v = i % V;
    if (layout == GDR_LAYOUT_VK)
        i += v * K + k - (k * V + v);
    return scalar_get(type, S, i);
}

static void put_element(void *S, gdr_dtype type, gdr_layout layout, int64_t i, double x) {
    int64_t k = i / V % K, v = i % V;
    if (layout == GDR_LAYOUT_VK)
        i += v * K + k - (k * V + v);
    scalar_put(type, S, i, x);
}

/* The same states in every type and layout: what is stored is the f32 result, rounded. */
static void states_have_types_and_layouts(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    static const gdr_dtype types[] = {GDR_F32, GDR_BF16, GDR_F16};
    for (gdr_algo algo = GDR_ALGO_CHUNK; algo <= GDR_ALGO_RECURRENT; algo++) {
        gdr_kernel *plain = compile(ctx, delta, algo, GDR_F32, GDR_LAYOUT_KV);
        for (int t = 0; t < 6; t++) {
            gdr_dtype type = types[t % 3];
            gdr_layout layout = (gdr_layout)(t / 3);
            gdr_kernel *k = compile(ctx, delta, algo, type, layout);
            Call *a = call_new(2, 5, 0, 0), *b = call_new(2, 5, 0, 0);
            unsigned seed = 9;
            for (int i = 0; i < 2 * H * STATE; i++) {
                put_element(b->S0, type, layout, i, noise(&seed));
                ((float *)a->S0)[i] = (float)element(b->S0, type, layout, i);
            }
            for (int i = 0; i < 2; i++) {
                b->state[i].dtype = type;
                if (layout == GDR_LAYOUT_VK)
                    b->state_shape[i][2] = V, b->state_shape[i][3] = K;
            }
            run(plain, ctx, a);
            run(k, ctx, b);
            assert_memory_equal(a->data[4], b->data[4], 2 * 5 * OUT_BYTES);
            for (int i = 0; i < 2 * H * STATE; i++) {
                float want = ((float *)a->S)[i];
                char rounded[4];
                scalar_put(type, rounded, 0, want);
                assert_true(element(b->S, type, layout, i) == scalar_get(type, rounded, 0));
            }
            size_t bytes = 2 * H * STATE * gdr_dtype_size(type);
            assert_true(untouched(b->S + bytes, sizeof b->S - bytes));
            free(a);
            free(b);
            gdr_kernel_destroy(k);
        }
        gdr_kernel_destroy(plain);
    }
    gdr_context_destroy(ctx);
}

/* several tokens ------------------------------------------------------------------------------- */

/* One token after the other, states and what is remembered in place; outputs and the states after
 * every token. */
static void single_steps(gdr_kernel *k, gdr_context *ctx, int64_t T, Call *all, float *states,
                         float *pasts) {
    int p = past_of(k);
    float S[2 * H * STATE] = {0}, remembered[2 * H * PAST_MAX] = {0};
    for (int64_t t = 0; t < T; t++) {
        Call *c = call_new(2, 1, t, p);
        c->state[0].data = c->state[1].data = S;
        c->pasts[0].data = c->pasts[1].data = remembered;
        run(k, ctx, c);
        for (int64_t n = 0; n < 2; n++)
            memcpy(&all->data[4][(n * T + t) * H * V], output(c, n, 0), OUT_BYTES);
        memcpy(states + t * 2 * H * STATE, S, sizeof S);
        memcpy(pasts + t * 2 * H * p, remembered, (size_t)(2 * H * p) * 4);
        free(c);
    }
}

/* T tokens at once are T single steps, bit for bit, with the states after every token. */
static void tokens_at_once_are_single_steps(void **state) {
    (void)state;
    enum { T = 6 };
    gdr_context *ctx = open_context(2);
    const char *const spec[] = {delta, past};
    for (int s = 0; s < 2; s++) {
        gdr_kernel *k = compile(ctx, spec[s], GDR_ALGO_RECURRENT, GDR_F32, GDR_LAYOUT_KV);
        int p = past_of(k);
        assert_int_equal(p, s ? K + 1 + 2 * K + V : 0);
        Call *want = call_new(2, T, 0, p), *c = call_new(2, T, 0, p);
        float *S = malloc(sizeof c->S), *pasts = malloc(sizeof c->past);
        single_steps(k, ctx, T, want, S, pasts);
        memcpy(c->state_shape[1], (int64_t[]){2, T, H, K, V}, sizeof c->state_shape[1]);
        c->state[1].ndim = 5;
        memcpy(c->past_shape[1], (int64_t[]){2, T, H, p}, sizeof c->past_shape[1]);
        c->pasts[1].ndim = 4;
        run(k, ctx, c);
        assert_memory_equal(c->data[4], want->data[4], 2 * T * OUT_BYTES);
        for (int64_t n = 0; n < 2; n++)
            for (int64_t t = 0; t < T; t++) {
                assert_memory_equal(state_of(c->S, n * T + t), S + (t * 2 + n) * H * STATE,
                                    STATE_BYTES);
                assert_memory_equal(c->past + (n * T + t) * H * p, pasts + (t * 2 + n) * H * p,
                                    (size_t)(H * p) * 4);
            }
        free(want);
        free(c);
        free(S);
        free(pasts);
        gdr_kernel_destroy(k);
    }
    gdr_context_destroy(ctx);
}

/* The state to commit is the one after as many tokens as were accepted; none leaves it as it was.
 */
static void only_what_is_accepted_is_committed(void **state) {
    (void)state;
    enum { T = 4 };
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile(ctx, past, GDR_ALGO_RECURRENT, GDR_F32, GDR_LAYOUT_KV);
    int p = past_of(k);
    Call *want = call_new(2, T, 0, p);
    float *S = malloc(sizeof want->S), *pasts = malloc(sizeof want->past);
    single_steps(k, ctx, T, want, S, pasts);
    for (int64_t accepted = 0; accepted <= T; accepted++) {
        Call *c = call_new(2, T, 0, p);
        c->launch.S = &c->state[0];
        c->launch.past = &c->pasts[0];
        c->launch.S_accepted = &c->indices[S_ACCEPTED];
        c->index[S_ACCEPTED][0] = accepted;
        c->index[S_ACCEPTED][1] = T - accepted;
        run(k, ctx, c);
        assert_memory_equal(c->data[4], want->data[4], 2 * T * OUT_BYTES);
        for (int64_t n = 0; n < 2; n++) {
            int64_t t = c->index[S_ACCEPTED][n];
            static const char zero[STATE_BYTES];
            assert_memory_equal(state_of(c->S0, n),
                                t ? S + ((t - 1) * 2 + n) * H * STATE : (float *)zero, STATE_BYTES);
            assert_memory_equal(c->past0 + n * H * p,
                                t ? pasts + ((t - 1) * 2 + n) * H * p : (float *)zero,
                                (size_t)(H * p) * 4);
        }
        free(c);
    }
    free(want);
    free(S);
    free(pasts);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Speculative decoding: each launch leaves the states after its tokens in slots, the next one
 * starts from that of the last accepted token. It must give what single steps over the accepted
 * text give. */
static void drafts_go_on_from_accepted_tokens(void **state) {
    (void)state;
    enum { T = 3, POOL = 8, ROUNDS = 4 };
    static const int64_t row[2][T] = {{1, 6, 3}, {7, 2, 4}},
                         accept[ROUNDS][2] = {{2, 3}, {1, 1}, {3, 2}, {1, 3}};
    gdr_context *ctx = open_context(2);
    gdr_kernel *k = compile(ctx, past, GDR_ALGO_RECURRENT, GDR_F32, GDR_LAYOUT_KV);
    int p = past_of(k);
    float *pool = calloc(POOL, STATE_BYTES), *pasts = calloc(POOL, sizeof(float) * H * PAST_MAX);
    for (int n = 0; n < 2; n++) {
        int64_t from = 0;
        float *steps = calloc(2 * H * STATE, 4), *remembered = calloc(2 * H * PAST_MAX, 4);
        for (int round = 0; round < ROUNDS; round++) {
            Call *c = call_new(1, T, from, p);
            c->state[0].data = c->state[1].data = pool;
            c->pasts[0].data = c->pasts[1].data = pasts;
            for (int i = 0; i < 2; i++)
                c->state_shape[i][0] = c->past_shape[i][0] = POOL;
            memcpy(c->index[S0_SLOTS], row[n], sizeof row[n]);
            c->index_shape[S0_SLOTS][1] = T;
            c->indices[S0_SLOTS].ndim = 2;
            c->launch.S0_slots = c->launch.S_slots = &c->indices[S0_SLOTS];
            c->launch.S0_accepted = &c->indices[S0_ACCEPTED];
            c->index[S0_ACCEPTED][0] = round ? accept[round - 1][n] : 1; /* that slot is zero */
            run(k, ctx, c);
            for (int64_t t = 0; t < accept[round][n]; t++) {
                Call *one = call_new(1, 1, from + t, p);
                one->state[0].data = one->state[1].data = steps;
                one->pasts[0].data = one->pasts[1].data = remembered;
                run(k, ctx, one);
                assert_memory_equal(output(one, 0, 0), output(c, 0, t), OUT_BYTES);
                free(one);
            }
            from += accept[round][n];
            free(c);
        }
        free(steps);
        free(remembered);
    }
    free(pool);
    free(pasts);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* refusals ------------------------------------------------------------------------------------- */

static void refused(gdr_kernel *k, Call *c, const char *text) {
    assert_refused(k->ctx, gdr_forward(k, &c->launch), GDR_EINPUT, text);
    free(c);
}

static void wrong_slots_are_refused(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    gdr_kernel *step = compile(ctx, delta, GDR_ALGO_RECURRENT, GDR_BF16, GDR_LAYOUT_VK);
    gdr_kernel *chunk = compile(ctx, delta, GDR_ALGO_CHUNK, GDR_F32, GDR_LAYOUT_KV);
    gdr_kernel *k = compile(ctx, past, GDR_ALGO_RECURRENT, GDR_F32, GDR_LAYOUT_KV);
    gdr_kernel *by_chunks = compile(ctx, past, GDR_ALGO_CHUNK, GDR_F32, GDR_LAYOUT_KV);
    int p = past_of(k);
    Call *c;
    gdr_saved saved = {0};
    static const int64_t slot[2] = {0, 1};
#define BROKEN(kernel, size, text, ...) \
    c = call_new(2, 3, 0, size);        \
    in_place(c, slot, 2);               \
    __VA_ARGS__;                        \
    refused(kernel, c, text)
    BROKEN(chunk, 0, "S0_slots: slot 2 at entry 1, the pool has 2", c->index[S0_SLOTS][1] = 2);
    BROKEN(chunk, 0, "S_slots: entries 0 and 1 both write slot 1", c->index[S0_SLOTS][0] = 1);
    BROKEN(chunk, 0, "S_slots: sequence 1 writes state 0, from which sequence 0 starts",
           memcpy(c->index[S_SLOTS], (int64_t[]){1, 0}, 16); c->launch.S_slots = &c->indices[S_SLOTS]);
    BROKEN(chunk, 0, "S: sequence 1 writes state 1, from which sequence 0 starts",
           c->index[S0_SLOTS][0] = 1; c->launch.S_slots = NULL);
    BROKEN(k, p, "S_slots: entries 2 and 5 both write slot 0", c->launch.S_slots = &c->indices[S_SLOTS];
           c->indices[S_SLOTS].ndim = 2; c->index_shape[S_SLOTS][1] = 3;
           memcpy(c->index[S_SLOTS], (int64_t[]){-1, -1, 0, 1, -1, 0}, 48));
    BROKEN(k, p, "S0_accepted: 0 at entry 1, columns count from 1",
           c->launch.S0_accepted = &c->indices[S0_ACCEPTED]; c->index[S0_ACCEPTED][0] = 1;
           c->indices[S0_SLOTS].ndim = 2; c->index_shape[S0_SLOTS][1] = 1;
           c->launch.S_slots = NULL);
    BROKEN(chunk, 0, "S0_slots: data type is f32, need i32 or i64",
           c->indices[S0_SLOTS].dtype = GDR_F32);
    BROKEN(chunk, 0, "S0_slots: shape is [3], need [2] or [N,M]", c->index_shape[S0_SLOTS][0] = 3);
    BROKEN(chunk, 0, "S0_slots: needs S0", c->launch.S0 = NULL);
    BROKEN(chunk, 0, "S_slots: needs S", c->launch.S = NULL);
    BROKEN(chunk, 0, "S0_accepted: missing, S0_slots is [N,M]", c->indices[S0_SLOTS].ndim = 2;
           c->index_shape[S0_SLOTS][1] = 1);
    BROKEN(chunk, 0, "S0_accepted: needs S0_slots of [N,M]",
           c->launch.S0_accepted = &c->indices[S0_ACCEPTED]);
    BROKEN(chunk, 0, "S_accepted: states after single tokens are of the recurrent algorithm",
           c->launch.S_accepted = &c->indices[S_ACCEPTED]);
    BROKEN(by_chunks, p, "past0: what is saved is for a backward pass", c->launch.saved = &saved);
    BROKEN(step, 0, "S0: data type is f32, the kernel takes bf16", (void)0);
    BROKEN(step, 0, "S0: shape is [2,3,20,12], need [2,3,12,20]", c->state[0].dtype = GDR_BF16);
    BROKEN(k, p, "S_accepted: 4 at entry 1, where there are 3 tokens",
           c->launch.S_accepted = &c->indices[S_ACCEPTED];
           c->index[S_ACCEPTED][1] = 4);
    BROKEN(k, p, "S_accepted: data type is i32, but that of S_slots is i64",
           c->launch.S_accepted = &c->indices[S_ACCEPTED];
           c->indices[S_ACCEPTED].dtype = GDR_I32);
    BROKEN(k, p, "S_slots: room for the states after 2 tokens, there are 3",
           c->launch.S_slots = &c->indices[S_SLOTS];
           c->indices[S_SLOTS].ndim = 2; c->index_shape[S_SLOTS][1] = 2);
    BROKEN(k, p, "S: 5 dimensions", c->launch.S = &c->state[1]; c->state[1].ndim = 5;
           c->launch.S_slots = NULL; c->state[1].shape = NULL);
    BROKEN(k, p, "S_slots: S is [N,M,H,K,V]", c->launch.S = &c->state[1]; c->state[1].ndim = 5);
    BROKEN(k, p, "past: shape is [2,3,73], need [1,3,73]", c->state_shape[0][0] = 1;
           c->index[S0_SLOTS][1] = -1; c->past_shape[0][0] = 1);
    c = call_new(2, 3, 0, 0);
    c->launch.past0 = &c->pasts[0];
    c->state[0].dtype = c->state[1].dtype = GDR_BF16;
    c->state_shape[0][2] = c->state_shape[1][2] = V;
    c->state_shape[0][3] = c->state_shape[1][3] = K;
    refused(step, c, "past0: the variant delta remembers nothing");
    gdr_kernel_destroy(step);
    gdr_kernel_destroy(chunk);
    gdr_kernel_destroy(k);
    gdr_kernel_destroy(by_chunks);
    gdr_context_destroy(ctx);
}

static void wrong_state_options_are_refused(void **state) {
    (void)state;
    gdr_context *ctx = open_context(2);
    const struct {
        gdr_compile_options o;
        const char *text;
    } c[] = {
        {{.state_dtype = GDR_F64}, "f64 is not a type of states"},
        {{.state_layout = (gdr_layout)2}, "unknown layout 2 of states"},
        {{.pass = GDR_PASS_BACKWARD, .state_dtype = GDR_BF16}, "backward pass are f32 [K,V]"},
        {{.pass = GDR_PASS_BACKWARD, .state_layout = GDR_LAYOUT_VK}, "backward pass are f32 [K,V]"},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        gdr_compile_options o = c[i].o;
        gdr_kernel *k;
        o.size = sizeof o;
        assert_int_equal(gdr_compile_string(ctx, "s", delta, strlen(delta), &o, &k), GDR_EUSAGE);
        assert_non_null(strstr(gdr_last_error(ctx), c[i].text));
    }
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_are_used_and_others_left),
        cmocka_unit_test(pools_may_be_two_and_spaced),
        cmocka_unit_test(states_have_types_and_layouts),
        cmocka_unit_test(tokens_at_once_are_single_steps),
        cmocka_unit_test(only_what_is_accepted_is_committed),
        cmocka_unit_test(drafts_go_on_from_accepted_tokens),
        cmocka_unit_test(wrong_slots_are_refused),
        cmocka_unit_test(wrong_state_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
