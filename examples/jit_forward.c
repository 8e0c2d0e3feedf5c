/* A spec compiled and run inside a program: on the first GPU where there is one, else on the CPU.
 *
 *     spec text -> gdr_compile_string -> gdr_forward on a stream -> results checked
 */
#include "gdr.h"
#include "gpu.h"
#include "problem.h"

#include <stdio.h>
#include <string.h>

static const char spec[] = "variant gated_delta {\n"
                           "    dim K = 64, V = 64\n"
                           "    in q[K], k[K], v[V]\n"
                           "    in g <= 0\n"
                           "    in beta in [0, 1]\n"
                           "    state S[K, V]\n"
                           "    S = exp(g) * S\n"
                           "    let r = S' * k\n"
                           "    S = S + k * (beta * (v - r))'\n"
                           "    out o[V] = S' * q\n"
                           "}\n";

static const char *const name[] = {"q", "k", "v", "g", "beta", "o"};

static void on_message(void *user, const gdr_diagnostic *d) {
    (void)user;
    fprintf(stderr, "%s:%d:%d: %s\n", d->file, d->line, d->column, d->message);
}

/* One forward pass over tensors that lie at `data`, on the device of the kernel. */
static gdr_status forward(gdr_kernel *kernel, gdr_device device, void *const data[TENSORS],
                          void *stream) {
    static const int64_t shape[TENSORS][4] = {
        {B, T, H, K}, {B, T, H, K}, {B, T, H, V}, {B, T, H}, {B, T, H}, {B, T, H, V}, {B, H, K, V},
    };
    static const int ndim[TENSORS] = {4, 4, 4, 3, 3, 4, 4};
    gdr_arg arg[OUT + 1];
    gdr_tensor tensor[TENSORS];
    for (int i = 0; i < TENSORS; i++)
        tensor[i] = (gdr_tensor){.data = data[i],
                                 .device = device,
                                 .dtype = GDR_F32,
                                 .ndim = ndim[i],
                                 .shape = shape[i]};
    for (int i = 0; i <= OUT; i++)
        arg[i] = (gdr_arg){name[i], tensor[i]};
    gdr_launch launch = {.size = sizeof launch,
                         .args = arg,
                         .nargs = OUT + 1,
                         .S = &tensor[STATE],
                         .stream = stream};
    return gdr_forward(kernel, &launch);
}

static gdr_status forward_gpu(const Gpu *gpu, gdr_kernel *kernel, const Problem *p) {
    uint64_t address[TENSORS] = {0};
    void *data[TENSORS], *stream = NULL;
    int failed = gpu->stream_create(&stream, 0);
    for (int i = 0; i < TENSORS && !failed; i++) {
        failed = gpu->mem_alloc(&address[i], p->count[i] * sizeof(float)) ||
                 gpu->upload(address[i], p->data[i], p->count[i] * sizeof(float));
        data[i] = (void *)(uintptr_t)address[i];
    }
    gdr_status status = failed ? GDR_EDRIVER : forward(kernel, GDR_CUDA, data, stream);
    if (!status && (gpu->stream_synchronize(stream) ||
                    gpu->download(p->data[OUT], address[OUT], p->count[OUT] * sizeof(float)) ||
                    gpu->download(p->data[STATE], address[STATE], p->count[STATE] * sizeof(float))))
        status = GDR_EDRIVER;
    for (int i = 0; i < TENSORS; i++)
        gpu->mem_free(address[i]);
    gpu->stream_destroy(stream);
    return status;
}

int main(void) {
    Gpu gpu;
    Problem p;
    gdr_context *ctx = NULL;
    gdr_kernel *kernel = NULL;
    int on_gpu = gpu_open(&gpu);
    gdr_context_options context_options = {.size = sizeof context_options, .diag = on_message};
    gdr_compile_options options = {.size = sizeof options, .target = on_gpu ? "cuda" : "host"};
    if (!problem_new(&p))
        return 3;
    gdr_status status = gdr_context_create(&context_options, &ctx);
    if (!status)
        status = gdr_compile_string(ctx, "gated_delta", spec, strlen(spec), &options, &kernel);
    if (!status) {
        void *data[TENSORS];
        for (int i = 0; i < TENSORS; i++)
            data[i] = p.data[i];
        status = on_gpu ? forward_gpu(&gpu, kernel, &p) : forward(kernel, GDR_CPU, data, NULL);
    }
    double error = 1;
    if (status) {
        fprintf(stderr, "%s: %s\n", gdr_strstatus(status), gdr_last_error(ctx));
    } else {
        gdr_facts facts;
        gdr_kernel_facts(kernel, &facts);
        error = problem_error(&p);
        printf("%s on %s: relative error %.1e\n", facts.name, facts.target, error);
    }
    gdr_kernel_destroy(kernel);
    gdr_context_destroy(ctx);
    problem_free(&p);
    return status ? gdr_exit_status(status) : !(error < 5e-3);
}
