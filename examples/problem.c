/* Inputs, and the plain loop that says what the kernels must give. */
#include "problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double uniform(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) / 16777216.0;
}

int problem_new(Problem *p) {
    const size_t width[TENSORS] = {K, K, V, 1, 1, V, 0};
    unsigned random = 1;
    memset(p, 0, sizeof *p);
    for (int i = 0; i < TENSORS; i++) {
        p->count[i] = i == STATE ? (size_t)B * H * K * V : (size_t)B * T * H * width[i];
        p->data[i] = malloc(p->count[i] * sizeof(float));
        if (!p->data[i])
            return 0;
        for (size_t j = 0; j < p->count[i]; j++) {
            double u = uniform(&random);
            p->data[i][j] =
                (float)(i == G      ? -0.2 * u
                        : i == BETA ? u
                        : i < VALUE ? (2 * u - 1) * sqrt(3.0 / K) /* about unit length */
                                    : 2 * u - 1);
        }
    }
    return 1;
}

void problem_free(Problem *p) {
    for (int i = 0; i < TENSORS; i++)
        free(p->data[i]);
}

static void one_token(const Problem *p, size_t row, double S[K][V], double o[V]) {
    const float *q = p->data[Q] + row * K, *k = p->data[KEY] + row * K;
    const float *v = p->data[VALUE] + row * V;
    double decay = exp(p->data[G][row]), beta = p->data[BETA][row];
    for (int j = 0; j < V; j++) {
        double read = 0;
        for (int i = 0; i < K; i++) {
            S[i][j] *= decay;
            read += S[i][j] * k[i];
        }
        o[j] = 0;
        for (int i = 0; i < K; i++) {
            S[i][j] += k[i] * beta * (v[j] - read);
            o[j] += S[i][j] * q[i];
        }
    }
}

double problem_error(const Problem *p) {
    double off = 0, all = 0;
    for (int sequence = 0; sequence < B * H; sequence++) {
        static double S[K][V], o[V];
        int b = sequence / H, h = sequence % H;
        memset(S, 0, sizeof S);
        for (int t = 0; t < T; t++) {
            size_t row = ((size_t)b * T + t) * H + h;
            one_token(p, row, S, o);
            for (int j = 0; j < V; j++) {
                double have = p->data[OUT][row * V + j];
                off += (have - o[j]) * (have - o[j]);
                all += o[j] * o[j];
            }
        }
        for (int i = 0; i < K * V; i++) {
            double have = p->data[STATE][(size_t)sequence * K * V + i], want = S[i / V][i % V];
            off += (have - want) * (have - want);
            all += want * want;
        }
    }
    return sqrt(off / all); /* NaN when any result is */
}
