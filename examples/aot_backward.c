/* Gradients by kernels that `gdrc compile` made ahead of time: the object file serves the CPU, the PTX
 * beside it the first GPU, where there is one. The header plans the pass and queues its kernels.
 *
 *     aot_backward DIR      DIR holds the output of gdrc compile --passes fwd,bwd
 */
#include "gated_delta_f32.h"
#include "gpu.h"
#include "problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef gated_delta_f32_bwd_frame Frame;

enum { INPUTS = BETA + 1, TASKS = B * H };

/* The inputs, the gradient that comes from outside (in OUT's place), and what is computed. */
typedef struct Gradients {
    float *data[INPUTS];
} Gradients;

static Frame frame_of(const int64_t in[TENSORS], const int64_t out[INPUTS]) {
    Frame f = {.T = T, .N = B, .H = H};
    f.q = in[Q], f.k = in[KEY], f.v = in[VALUE], f.g = in[G], f.beta = in[BETA], f.do_ = in[OUT];
    f.q_heads = f.k_heads = f.v_heads = f.g_heads = f.beta_heads = f.do__heads = H;
    f.dq = out[Q], f.dk = out[KEY], f.dv = out[VALUE], f.dg = out[G], f.dbeta = out[BETA];
    return f;
}

static int64_t address(const void *p) {
    return (int64_t)(uintptr_t)p;
}

static int backward_cpu(const Problem *p, const Gradients *d) {
    int64_t in[TENSORS], out[INPUTS];
    for (int i = 0; i < TENSORS; i++)
        in[i] = address(p->data[i]);
    for (int i = 0; i < INPUTS; i++)
        out[i] = address(d->data[i]);
    Frame frame = frame_of(in, out);
    size_t bytes = (size_t)gdr_f32_bwd_gated_delta_prepare(&frame);
    void *workspace = aligned_alloc(64, (bytes + 63) / 64 * 64);
    void *scratch = aligned_alloc(64, (GDR_F32_BWD_GATED_DELTA_SCRATCH + 63) / 64 * 64);
    int ok = workspace && scratch;
    frame.workspace = address(workspace);
    if (ok)
        gdr_f32_bwd_gated_delta(&frame, 0, TASKS, scratch);
    free(workspace);
    free(scratch);
    return ok;
}

/* The sum of outputs times their upstream gradients, by the forward kernel. */
static double weighted(const Problem *p, float *outputs, void *scratch) {
    gated_delta_f32_frame f = {.T = T, .N = B, .H = H, .o = address(outputs)};
    f.q = address(p->data[Q]), f.k = address(p->data[KEY]), f.v = address(p->data[VALUE]);
    f.g = address(p->data[G]), f.beta = address(p->data[BETA]);
    f.q_heads = f.k_heads = f.v_heads = f.g_heads = f.beta_heads = H;
    gdr_f32_fwd_gated_delta(&f, 0, TASKS, scratch);
    double sum = 0;
    for (size_t i = 0; i < p->count[OUT]; i++)
        sum += (double)outputs[i] * p->data[OUT][i];
    return sum;
}

/* How far the gradients are from a difference along themselves, relative. */
static double difference_error(const Problem *p, const Gradients *d) {
    const float step = 1e-3f;
    float *outputs = malloc(p->count[OUT] * sizeof(float));
    void *scratch = aligned_alloc(64, (GDR_F32_FWD_GATED_DELTA_SCRATCH + 63) / 64 * 64);
    double square = 0, value[2] = {0, 0};
    for (int side = 0; side < 2 && outputs && scratch; side++) {
        for (int i = 0; i < INPUTS; i++)
            for (size_t j = 0; j < p->count[i]; j++)
                p->data[i][j] += (side ? -2 : 1) * step * d->data[i][j];
        value[side] = weighted(p, outputs, scratch);
    }
    for (int i = 0; i < INPUTS; i++)
        for (size_t j = 0; j < p->count[i]; j++) {
            p->data[i][j] += step * d->data[i][j];
            square += (double)d->data[i][j] * d->data[i][j];
        }
    free(outputs);
    free(scratch);
    return fabs((value[0] - value[1]) / (2 * (double)step) / square - 1);
}

/* GPU ------------------------------------------------------------------------------------------ */

typedef struct Queue {
    const Gpu *gpu; /* NULL: only counts */
    void *module;
    int launches;
} Queue;

static int queue_kernel(void *user, const char *symbol, int64_t blocks, int threads, int shared,
                        const Frame *f) {
    enum { MAX_DYNAMIC_SHARED = 8 };
    Queue *q = user;
    Frame copy = *f;
    void *function, *param[] = {&copy};
    q->launches++;
    if (!q->gpu)
        return 0;
    return q->gpu->module_function(&function, q->module, symbol) ||
           q->gpu->function_attribute(function, MAX_DYNAMIC_SHARED, shared) ||
           q->gpu->launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1,
                          (unsigned)shared, NULL, param, NULL);
}

/* Only packed sequences with params need zeros. */
static int queue_zeros(void *user, int64_t at, int64_t bytes) {
    (void)user, (void)at, (void)bytes;
    return 1;
}

/* At most three chunks at a time, of the four of each sequence: two pieces of two. */
static int run(Frame *f, gdr_f32_bwd_gated_delta_sm_80_plan *plan, Queue *q) {
    return !gdr_f32_bwd_gated_delta_sm_80_run(f, plan, queue_kernel, queue_zeros, q);
}

/* All heads share q and k: their gradients are added up as they are made where that leaves enough work for the
 * GPU, here one of a single multiprocessor; nothing is left to sum then. */
static int count_shared(void) {
    const int64_t zero[TENSORS] = {0}, some[INPUTS] = {1, 1, 1, 1, 1};
    Frame f = frame_of(zero, some);
    Queue small = {.gpu = NULL}, large = {.gpu = NULL};
    f.q_heads = f.k_heads = 1;
    gdr_f32_bwd_gated_delta_sm_80_plan one = gdr_f32_bwd_gated_delta_sm_80_prepare(&f, 1, 0);
    gdr_f32_bwd_gated_delta_sm_80_plan many = gdr_f32_bwd_gated_delta_sm_80_prepare(&f, 132, 0);
    return run(&f, &one, &small) && run(&f, &many, &large) && one.group == H && many.group == 1 &&
           small.launches == 4 && large.launches == 5 && one.bytes < many.bytes;
}

/* Two pieces of each sequence: factor and chain forwards for the first, then all four kernels backwards. */
static int count_launches(void) {
    const int64_t zero[TENSORS] = {0};
    Frame f = frame_of(zero, zero);
    Queue q = {.gpu = NULL};
    gdr_f32_bwd_gated_delta_sm_80_plan plan = gdr_f32_bwd_gated_delta_sm_80_prepare(&f, 132, 3);
    int sequence = 2 * (int)(plan.pieces - 1) + 4 * (int)plan.pieces;
    return run(&f, &plan, &q) && plan.pieces == 2 && q.launches == (int)plan.ranges * sequence;
}

static char *read_text(const char *dir, const char *name) {
    char path[4096], *text = NULL;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    long n = f && !fseek(f, 0, SEEK_END) ? ftell(f) : -1;
    if (n >= 0 && (text = calloc(1, (size_t)n + 1))) {
        rewind(f);
        if (fread(text, 1, (size_t)n, f) != (size_t)n) {
            free(text);
            text = NULL;
        }
    }
    if (f)
        fclose(f);
    return text;
}

static int backward_gpu(const Gpu *gpu, const char *dir, const Problem *p, const Gradients *d) {
    uint64_t memory[TENSORS] = {0}, result[INPUTS] = {0}, workspace = 0;
    int64_t in[TENSORS] = {0}, out[INPUTS] = {0};
    Queue q = {.gpu = gpu};
    char *ptx = read_text(dir, "gated_delta_f32_bwd_sm_80.ptx");
    int ok = ptx && !gpu->module_load(&q.module, ptx);
    for (int i = 0; i < TENSORS && ok; i++) {
        ok = !gpu->mem_alloc(&memory[i], p->count[i] * sizeof(float)) &&
             !gpu->upload(memory[i], p->data[i], p->count[i] * sizeof(float));
        in[i] = (int64_t)memory[i];
    }
    for (int i = 0; i < INPUTS && ok; i++) {
        ok = !gpu->mem_alloc(&result[i], p->count[i] * sizeof(float));
        out[i] = (int64_t)result[i];
    }
    Frame f = frame_of(in, out);
    gdr_f32_bwd_gated_delta_sm_80_plan plan = gdr_f32_bwd_gated_delta_sm_80_prepare(&f, 132, 3);
    ok = ok && !gpu->mem_alloc(&workspace, (size_t)plan.bytes);
    f.workspace = (int64_t)workspace;
    ok = ok && run(&f, &plan, &q);
    for (int i = 0; i < INPUTS; i++)
        ok = ok && !gpu->download(d->data[i], result[i], p->count[i] * sizeof(float));
    for (int i = 0; i < TENSORS; i++)
        gpu->mem_free(memory[i]);
    for (int i = 0; i < INPUTS; i++)
        gpu->mem_free(result[i]);
    gpu->mem_free(workspace);
    free(ptx);
    return ok;
}

/* The worst tensor's root-mean-square distance, relative. */
static double distance(const Problem *p, const Gradients *a, const Gradients *b) {
    double worst = 0;
    for (int i = 0; i < INPUTS; i++) {
        double off = 0, all = 0;
        for (size_t j = 0; j < p->count[i]; j++) {
            double want = a->data[i][j], have = b->data[i][j];
            off += (have - want) * (have - want);
            all += want * want;
        }
        worst = fmax(worst, sqrt(off / all));
    }
    return worst;
}

static int gradients_new(const Problem *p, Gradients *d) {
    int ok = 1;
    for (int i = 0; i < INPUTS; i++)
        ok &= (d->data[i] = calloc(p->count[i], sizeof(float))) != NULL;
    return ok;
}

static void gradients_free(Gradients *d) {
    for (int i = 0; i < INPUTS; i++)
        free(d->data[i]);
}

int main(int argc, char **argv) {
    Gpu gpu;
    Problem p;
    Gradients cpu, other;
    if (argc != 2) {
        fprintf(stderr, "usage: aot_backward DIR\n");
        return 2;
    }
    if (!problem_new(&p) || !gradients_new(&p, &cpu) || !gradients_new(&p, &other))
        return 3;
    int ok = backward_cpu(&p, &cpu) && count_launches() && count_shared();
    if (ok) {
        double error = difference_error(&p, &cpu);
        printf("CPU: off a difference by %.1e\n", error);
        ok = error < 1e-2;
    }
    if (ok && gpu_open(&gpu)) {
        ok = backward_gpu(&gpu, argv[1], &p, &other);
        double error = ok ? distance(&p, &cpu, &other) : 1;
        printf("GPU: relative distance from the CPU %.1e\n", error);
        ok = error < 1e-2;
    } else if (ok) {
        printf("GPU: there is none\n");
    }
    problem_free(&p);
    gradients_free(&cpu);
    gradients_free(&other);
    return !ok;
}
