/* Gradients by kernels that `gdrc compile` made ahead of time: the object file serves the CPU, the PTX
 * beside it the first GPU, where there is one. The header plans the pass and queues its kernels: by itself it
 * makes all of the forward pass again; after one that saved what it works on, nothing.
 *
 *     aot_backward DIR      DIR holds the output of gdrc compile --passes fwd,bwd --save all
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

static gated_delta_f32_frame forward_frame(const int64_t in[TENSORS], int64_t outputs) {
    gated_delta_f32_frame f = {.T = T, .N = B, .H = H, .o = outputs};
    f.q = in[Q], f.k = in[KEY], f.v = in[VALUE], f.g = in[G], f.beta = in[BETA];
    f.q_heads = f.k_heads = f.v_heads = f.g_heads = f.beta_heads = H;
    return f;
}

/* The sum of outputs times their upstream gradients, by the forward kernel. */
static double weighted(const Problem *p, float *outputs, void *scratch) {
    int64_t in[TENSORS];
    for (int i = 0; i < TENSORS; i++)
        in[i] = address(p->data[i]);
    gated_delta_f32_frame f = forward_frame(in, address(outputs));
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

static int queue_any(Queue *q, const char *symbol, int64_t blocks, int threads, int shared, void *frame) {
    enum { MAX_DYNAMIC_SHARED = 8 };
    void *function, *param[] = {frame};
    q->launches++;
    if (!q->gpu)
        return 0;
    return q->gpu->module_function(&function, q->module, symbol) ||
           q->gpu->function_attribute(function, MAX_DYNAMIC_SHARED, shared) ||
           q->gpu->launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1,
                          (unsigned)shared, NULL, param, NULL);
}

static int queue_kernel(void *user, const char *symbol, int64_t blocks, int threads, int shared,
                        const Frame *f) {
    Frame copy = *f;
    return queue_any(user, symbol, blocks, threads, shared, &copy);
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

/* What was saved is where a backward pass begins, with reverse and grad; what other kernels saved is refused. */
static int count_saved(void) {
    const int64_t zero[TENSORS] = {0};
    gated_delta_f32_frame forward = forward_frame(zero, 0);
    gated_delta_f32_saved saved = gdr_f32_fwd_gated_delta_factor_sm_80_saved(&forward);
    Frame f = frame_of(zero, zero);
    Queue q = {.gpu = NULL};
    if (saved.bytes <= 0 || gdr_f32_fwd_gated_delta_factor_sm_80_prepare(&forward, 0) >= 0)
        return 0; /* there must be a place for it */
    saved.data = forward.saved = 1 << 20;
    gdr_f32_bwd_gated_delta_sm_80_plan plan =
        gdr_f32_bwd_gated_delta_sm_80_prepare_saved(&f, 132, 0, &saved);
    int ok = gdr_f32_fwd_gated_delta_factor_sm_80_prepare(&forward, 0) >= 0 && !plan.refused &&
             run(&f, &plan, &q) && q.launches == 2;
    saved.records++;
    plan = gdr_f32_bwd_gated_delta_sm_80_prepare_saved(&f, 132, 0, &saved);
    return ok && plan.refused && !run(&f, &plan, &q) && q.launches == 2;
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

/* What a launch needs besides tensors. No bytes, no memory. */
static int allocate(const Gpu *gpu, uint64_t *memory, int64_t bytes) {
    return bytes == 0 || (bytes > 0 && !gpu->mem_alloc(memory, (size_t)bytes));
}

/* A forward pass that saves all: factor, then the one chain kernel that there is. extra: its outputs, what is
 * saved and its workspace. */
static int forward_gpu(const Gpu *gpu, const char *dir, const int64_t in[TENSORS], int64_t outputs,
                       gated_delta_f32_saved *saved, uint64_t extra[3]) {
    Queue q = {.gpu = gpu};
    char *ptx = read_text(dir, "gated_delta_f32_fwd_sm_80.ptx");
    int ok = ptx && !gpu->module_load(&q.module, ptx) && allocate(gpu, &extra[0], outputs);
    gated_delta_f32_frame f = forward_frame(in, (int64_t)extra[0]);
    *saved = gdr_f32_fwd_gated_delta_factor_sm_80_saved(&f);
    ok = ok && allocate(gpu, &extra[1], saved->bytes);
    f.saved = saved->data = (int64_t)extra[1];
    ok = ok && allocate(gpu, &extra[2], gdr_f32_fwd_gated_delta_factor_sm_80_prepare(&f, 0));
    f.workspace = (int64_t)extra[2];
    ok = ok && gdr_f32_fwd_gated_delta_factor_sm_80_segment(&f, 0, 0) &&
         !queue_any(&q, "gdr_f32_fwd_gated_delta_factor",
                    gdr_f32_fwd_gated_delta_factor_sm_80_blocks(&f),
                    gdr_f32_fwd_gated_delta_factor_sm_80_threads,
                    gdr_f32_fwd_gated_delta_factor_sm_80_shared, &f) &&
         !queue_any(&q, "gdr_f32_fwd_gated_delta_chain_v64",
                    gdr_f32_fwd_gated_delta_chain_v64_sm_80_blocks(&f),
                    gdr_f32_fwd_gated_delta_chain_v64_sm_80_threads,
                    gdr_f32_fwd_gated_delta_chain_v64_sm_80_shared, &f);
    free(ptx);
    return ok;
}

static int backward_gpu(const Gpu *gpu, const char *dir, const Problem *p, const Gradients *d,
                        int saves) {
    uint64_t memory[TENSORS] = {0}, result[INPUTS] = {0}, workspace = 0, extra[3] = {0};
    int64_t in[TENSORS] = {0}, out[INPUTS] = {0};
    gated_delta_f32_saved saved = {0, 0, 0, 0};
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
    if (ok && saves)
        ok = forward_gpu(gpu, dir, in, (int64_t)(p->count[OUT] * sizeof(float)), &saved, extra);
    Frame f = frame_of(in, out);
    gdr_f32_bwd_gated_delta_sm_80_plan plan =
        gdr_f32_bwd_gated_delta_sm_80_prepare_saved(&f, 132, 3, &saved);
    ok = ok && allocate(gpu, &workspace, plan.bytes);
    f.workspace = (int64_t)workspace;
    ok = ok && run(&f, &plan, &q);
    for (int i = 0; i < INPUTS; i++)
        ok = ok && !gpu->download(d->data[i], result[i], p->count[i] * sizeof(float));
    for (int i = 0; i < TENSORS; i++)
        gpu->mem_free(memory[i]);
    for (int i = 0; i < INPUTS; i++)
        gpu->mem_free(result[i]);
    for (int i = 0; i < 3; i++)
        gpu->mem_free(extra[i]);
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

static int same_bits(const Problem *p, const Gradients *a, const Gradients *b) {
    int same = 1;
    for (int i = 0; i < INPUTS; i++)
        same &= !memcmp(a->data[i], b->data[i], p->count[i] * sizeof(float));
    return same;
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
    Gradients cpu, other, again;
    if (argc != 2) {
        fprintf(stderr, "usage: aot_backward DIR\n");
        return 2;
    }
    if (!problem_new(&p) || !gradients_new(&p, &cpu) || !gradients_new(&p, &other) ||
        !gradients_new(&p, &again))
        return 3;
    int ok = backward_cpu(&p, &cpu) && count_launches() && count_shared() && count_saved();
    if (ok) {
        double error = difference_error(&p, &cpu);
        printf("CPU: off a difference by %.1e\n", error);
        ok = error < 1e-2;
    }
    if (ok && gpu_open(&gpu)) {
        ok = backward_gpu(&gpu, argv[1], &p, &other, 0);
        double error = ok ? distance(&p, &cpu, &other) : 1;
        printf("GPU: relative distance from the CPU %.1e\n", error);
        ok = error < 1e-2 && backward_gpu(&gpu, argv[1], &p, &again, 1) && same_bits(&p, &other, &again);
        printf("GPU, after a forward pass that saved all: %s\n", ok ? "the same bits" : "other bits");
    } else if (ok) {
        printf("GPU: there is none\n");
    }
    problem_free(&p);
    gradients_free(&cpu);
    gradients_free(&other);
    gradients_free(&again);
    return !ok;
}
