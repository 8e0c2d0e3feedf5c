/* Kernels that `gdrc compile` made ahead of time, called without the compiler: the object file is
 * linked in and serves the CPU; the PTX beside it serves the first GPU, where there is one.
 *
 *     aot_forward DIR      DIR holds the output of gdrc compile
 */
#include "gated_delta_f32.h"
#include "gpu.h"
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The frame of one launch over tensors at these addresses. */
static gated_delta_f32_frame frame_of(const int64_t address[TENSORS]) {
    return (gated_delta_f32_frame){
        .T = T,
        .N = B,
        .H = H,
        .S = address[STATE],
        .q = address[Q],
        .q_heads = H,
        .k = address[KEY],
        .k_heads = H,
        .v = address[VALUE],
        .v_heads = H,
        .g = address[G],
        .g_heads = H,
        .beta = address[BETA],
        .beta_heads = H,
        .o = address[OUT],
    };
}

static int forward_cpu(const Problem *p) {
    int64_t address[TENSORS];
    for (int i = 0; i < TENSORS; i++)
        address[i] = (int64_t)(uintptr_t)p->data[i];
    gated_delta_f32_frame frame = frame_of(address);
    void *scratch = aligned_alloc(64, (GDR_F32_FWD_GATED_DELTA_SCRATCH + 63) / 64 * 64);
    if (!scratch)
        return 0;
    /* All tasks on this thread; others may take ranges of their own, each with its own scratch. */
    gdr_f32_fwd_gated_delta(&frame, 0, (int64_t)B * H, scratch);
    free(scratch);
    return 1;
}

/* A launch by chunks on a GPU may have little workspace: then factor and chain are launched for one segment
 * of the chunks after another. This one has two chunks at a time; here they are only counted. */
static int count_chunks(void) {
    enum { PIECE = 2 };
    const int64_t zero[TENSORS] = {0};
    gated_delta_f32_frame f = frame_of(zero);
    int64_t all = gdr_f32_fwd_gated_delta_factor_sm_80_prepare(&f, 0), chunks = 0, state = 0;
    int64_t bytes = gdr_f32_fwd_gated_delta_factor_sm_80_prepare(&f, PIECE);
    f.workspace = 1 << 20;
    for (int64_t i = 0; gdr_f32_fwd_gated_delta_factor_sm_80_segment(&f, PIECE, i); i++) {
        if (f.slot != chunks || f.state_in != state ||
            gdr_f32_fwd_gated_delta_factor_sm_80_blocks(&f) != f.slot_count * H)
            return 0;
        chunks += f.slot_count;
        state = f.state_out;
    }
    return chunks == f.slots && bytes < all && f.ahead == f.workspace + bytes;
}

/* The text of DIR/name, NUL-terminated. */
static char *read_text(const char *dir, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    if (f && !fseek(f, 0, SEEK_END)) {
        long n = ftell(f);
        rewind(f);
        if (n >= 0 && (text = calloc(1, (size_t)n + 1)) &&
            fread(text, 1, (size_t)n, f) != (size_t)n) {
            free(text);
            text = NULL;
        }
    }
    if (f)
        fclose(f);
    return text;
}

static int launch(const Gpu *gpu, void *module, const char *symbol, int64_t blocks, int threads,
                  int shared, gated_delta_f32_frame *frame) {
    enum { MAX_DYNAMIC_SHARED = 8 };
    void *function, *param[] = {frame};
    return !gpu->module_function(&function, module, symbol) &&
           !gpu->function_attribute(function, MAX_DYNAMIC_SHARED, shared) &&
           !gpu->launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1, (unsigned)shared,
                        NULL, param, NULL);
}

/* The recurrent kernel needs no workspace, so it makes the shorter example. */
static int forward_gpu(const Gpu *gpu, const char *dir, const Problem *p) {
    uint64_t memory[TENSORS] = {0};
    int64_t address[TENSORS];
    void *module = NULL;
    char *ptx = read_text(dir, "gated_delta_f32_step_sm_80.ptx");
    int ok = ptx && !gpu->module_load(&module, ptx);
    for (int i = 0; i < TENSORS && ok; i++) {
        ok = !gpu->mem_alloc(&memory[i], p->count[i] * sizeof(float)) &&
             !gpu->upload(memory[i], p->data[i], p->count[i] * sizeof(float));
        address[i] = (int64_t)memory[i];
    }
    if (ok) {
        gated_delta_f32_frame frame = frame_of(address);
        ok = launch(gpu, module, "gdr_f32_step_gated_delta_recurrent",
                    gdr_f32_step_gated_delta_recurrent_sm_80_blocks(&frame),
                    gdr_f32_step_gated_delta_recurrent_sm_80_threads,
                    gdr_f32_step_gated_delta_recurrent_sm_80_shared, &frame);
    }
    ok = ok && !gpu->download(p->data[OUT], memory[OUT], p->count[OUT] * sizeof(float)) &&
         !gpu->download(p->data[STATE], memory[STATE], p->count[STATE] * sizeof(float));
    for (int i = 0; i < TENSORS; i++)
        gpu->mem_free(memory[i]);
    free(ptx);
    return ok;
}

int main(int argc, char **argv) {
    Gpu gpu;
    Problem p;
    double error = 1;
    if (argc != 2) {
        fprintf(stderr, "usage: aot_forward DIR\n");
        return 2;
    }
    if (!problem_new(&p))
        return 3;
    int ok = count_chunks() && forward_cpu(&p);
    if (ok) {
        error = problem_error(&p);
        printf("CPU: relative error %.1e\n", error);
        ok = error < 5e-3;
    }
    if (ok && gpu_open(&gpu)) {
        memset(p.data[OUT], 0xff, p.count[OUT] * sizeof(float));
        ok = forward_gpu(&gpu, argv[1], &p);
        error = ok ? problem_error(&p) : 1;
        printf("GPU: relative error %.1e\n", error);
        ok = error < 5e-3;
    } else if (ok) {
        printf("GPU: there is none\n");
    }
    problem_free(&p);
    return !ok;
}
