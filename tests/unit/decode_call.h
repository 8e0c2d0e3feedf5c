/* Shared by the tests of launches that start from what others left: two specs, launches of tokens of one
 * endless text, with states and what is remembered beside them, through the public API on the CPU. */
#ifndef GDR_TESTS_DECODE_CALL_H
#define GDR_TESTS_DECODE_CALL_H

#include "tests/unit/api_test.h"

static const char delta[] =
    "variant delta {\n dim K = 20, V = 12\n in q[K], k[K], v[V]\n in g[K] <= 0\n state S[K, V]\n"
    " S = diag(exp(g)) * S\n S = S + k * (v - S' * k)'\n out o[V] = S' * q\n}\n";

/* Remembers a running sum along K, a scalar one, and the last k, v and k before. */
static const char past[] =
    "variant past {\n dim K = 20, V = 12\n in q[K], k[K], v[V]\n in g[K] <= 0\n state S[K, V]\n"
    " let a = cumsum(g)\n let s = cumsum(sum(k))\n"
    " S = 0.5 * S + prev(k) * prev(v)' + prev(prev(k)) * v' + cos(a) .* k * (v * sin(s))'\n"
    " out o[V] = S' * q\n}\n";

enum { K = 20, V = 12, H = 3, STATE = K * V, PORTS = 5 };
enum { TOKENS_MAX = 32, STATES_MAX = 64, PAST_MAX = 96 };

/* One launch and memory for it. */
typedef struct Call {
    int64_t shape[PORTS][5], state_shape[2][5], past_shape[2][4], index_shape[4][2], cu_shape[1];
    float data[PORTS][TOKENS_MAX * H * K];
    char S0[STATES_MAX * H * STATE * 4], S[STATES_MAX * H * STATE * 4];
    float past0[STATES_MAX * H * PAST_MAX], past[STATES_MAX * H * PAST_MAX];
    int64_t index[4][STATES_MAX], cu[8];
    gdr_arg arg[PORTS];
    gdr_tensor state[2], pasts[2], indices[4], cu_tensor;
    gdr_launch launch;
} Call;
enum { S0_SLOTS, S0_ACCEPTED, S_SLOTS, S_ACCEPTED };

static float noise(unsigned *seed) {
    *seed = *seed * 1664525 + 1013904223;
    return (float)(*seed >> 8) / (1 << 24) - 0.5f;
}

/* B sequences of T tokens: those from `from` on of an endless text, the same for all calls. */
static Call *call_new(int64_t B, int64_t T, int64_t from, int past_size) {
    static const char *const name[PORTS] = {"q", "k", "v", "g", "o"};
    static const int size[PORTS] = {K, K, V, K, V};
    Call *c = calloc(1, sizeof *c);
    assert_non_null(c);
    assert_true(B * T <= TOKENS_MAX && past_size <= PAST_MAX);
    for (int i = 0; i < PORTS; i++) {
        memcpy(c->shape[i], (int64_t[]){B, T, H, size[i]}, 4 * sizeof(int64_t));
        c->arg[i] = (gdr_arg){name[i], {c->data[i], GDR_CPU, GDR_F32, 4, c->shape[i], NULL}};
        for (int64_t n = 0; n < B; n++)
            for (int64_t t = 0; t < T; t++) {
                unsigned seed = (unsigned)(7919 * (i + 1) + 104729 * n + 31 * (t + from));
                for (int64_t j = 0; j < H * size[i]; j++) {
                    float x = noise(&seed);
                    c->data[i][(n * T + t) * H * size[i] + j] = i == 3 ? -fabsf(x) : x;
                }
            }
    }
    memset(c->data[4], 0xff, sizeof c->data[4]);
    memset(c->S, 0xff, sizeof c->S);
    memset(c->past, 0xff, sizeof c->past);
    for (int i = 0; i < 2; i++) {
        memcpy(c->state_shape[i], (int64_t[]){B, H, K, V}, 4 * sizeof(int64_t));
        memcpy(c->past_shape[i], (int64_t[]){B, H, past_size}, 3 * sizeof(int64_t));
        c->state[i] = (gdr_tensor){i ? c->S : c->S0, GDR_CPU, GDR_F32, 4, c->state_shape[i], NULL};
        c->pasts[i] =
            (gdr_tensor){i ? c->past : c->past0, GDR_CPU, GDR_F32, 3, c->past_shape[i], NULL};
    }
    for (int i = 0; i < 4; i++) {
        c->index_shape[i][0] = B;
        c->indices[i] = (gdr_tensor){c->index[i], GDR_CPU, GDR_I64, 1, c->index_shape[i], NULL};
    }
    c->cu_tensor = (gdr_tensor){c->cu, GDR_CPU, GDR_I64, 1, c->cu_shape, NULL};
    c->launch = (gdr_launch){.size = sizeof c->launch,
                             .args = c->arg,
                             .nargs = PORTS,
                             .S0 = &c->state[0],
                             .S = &c->state[1]};
    if (past_size) {
        c->launch.past0 = &c->pasts[0];
        c->launch.past = &c->pasts[1];
    }
    return c;
}

static void fill_pool(Call *c, int64_t states) {
    unsigned seed = 5;
    for (int64_t i = 0; i < states * H * STATE; i++)
        ((float *)c->S0)[i] = noise(&seed);
    c->state_shape[0][0] = states;
}

/* S is the pool S0, updated in place through one index tensor. */
static void in_place(Call *c, const int64_t *slot, int64_t n) {
    c->launch.S = &c->state[0];
    c->launch.S0_slots = c->launch.S_slots = &c->indices[S0_SLOTS];
    memcpy(c->index[S0_SLOTS], slot, (size_t)n * sizeof *slot);
}

static void run(gdr_kernel *k, gdr_context *ctx, const Call *c) {
    if (gdr_forward(k, &c->launch))
        fail_msg("%s", gdr_last_error(ctx));
}

static int past_of(const gdr_kernel *k) {
    gdr_facts f;
    gdr_kernel_facts(k, &f);
    return f.past;
}

static const float *output(const Call *c, int64_t n, int64_t t) {
    return &c->data[4][(n * c->shape[4][1] + t) * H * V];
}

static const float *state_of(const void *S, int64_t i) {
    return (const float *)S + i * H * STATE;
}

enum { OUT_BYTES = H * V * 4, STATE_BYTES = H * STATE * 4 };

#endif
