/* What a user of the installed library writes: compile a spec from memory, run it, check a number.
 */
#include <gdr.h>
#include <math.h>
#include <stdio.h>

static const char spec[] = "variant sum {\n"
                           "    dim K = 16, V = 16\n"
                           "    in q[K], k[K], v[V]\n"
                           "    state S[K, V]\n"
                           "    S = S + k * v'\n"
                           "    out o[V] = S' * q\n"
                           "}\n";

enum { T = 5, D = 16 };

int main(void) {
    gdr_context_options options = {.size = sizeof options, .cache_dir = ""};
    gdr_context *ctx;
    gdr_kernel *kernel;
    if (gdr_context_create(&options, &ctx) != GDR_OK)
        return 1;
    if (gdr_compile_string(ctx, "sum.gdr", spec, sizeof spec - 1, NULL, &kernel) != GDR_OK) {
        fprintf(stderr, "%s\n", gdr_last_error(ctx));
        return 1;
    }
    static float q[T * D], k[T * D], v[T * D], o[T * D];
    for (int i = 0; i < T * D; i++) {
        q[i] = 1;
        k[i] = 1.0f / D;
        v[i] = 2;
    }
    const int64_t shape[4] = {1, T, 1, D};
    float *data[] = {q, k, v, o};
    const char *name[] = {"q", "k", "v", "o"};
    gdr_arg arg[4];
    for (int i = 0; i < 4; i++)
        arg[i] = (gdr_arg){name[i], {data[i], GDR_CPU, GDR_F32, 4, shape, NULL}};
    gdr_launch launch = {.size = sizeof launch, .args = arg, .nargs = 4};
    if (gdr_forward(kernel, &launch) != GDR_OK) {
        fprintf(stderr, "%s\n", gdr_last_error(ctx));
        return 1;
    }
    /* q'k = 1, so token t sums t + 1 values of 2. */
    int wrong = 0;
    for (int t = 0; t < T; t++)
        wrong += fabsf(o[t * D] - 2.0f * (float)(t + 1)) > 1e-4f;
    printf("%s: last output %g, %d wrong\n", gdr_version(), (double)o[(T - 1) * D], wrong);
    gdr_kernel_destroy(kernel);
    gdr_context_destroy(ctx);
    return wrong != 0;
}
