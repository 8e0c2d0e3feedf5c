/* Shared by the tests of NVIDIA kernels as text: Gated DeltaNet-2 as the front end writes it, and compiling,
 * assembling and running out of memory with any kernel. */
#ifndef GDR_TESTS_NVPTX_TEST_H
#define GDR_TESTS_NVPTX_TEST_H

#include "tests/unit/ir_test.h"

#include "codegen/nvptx/nvptx.h"
#include "runtime/runtime.h"

static const char gdn2[] =
    "kernel gdn2 recurrence {\n"
    "  axis C = 0, R = 0, U = 0, K = 128, V = 128\n"
    "  in q : bf16[K]\n"
    "  in k : bf16[K]\n"
    "  in v : bf16[V]\n"
    "  in g : bf16[K] <= 0\n"
    "  in b : bf16[K] in [0, 1]\n"
    "  in w : bf16[V]\n"
    "  out o : bf16[V]\n"
    "  state S\n"
    "  %0 = in q\n"
    "  %1 = mul %0, %0\n"
    "  %2 = sum %1 over K\n"
    "  %3 = const 1e-6\n"
    "  %4 = add %2, %3\n"
    "  %5 = rsqrt %4\n"
    "  %6 = mul %0, %5\n"
    "  %7 = in k\n"
    "  %8 = in g\n"
    "  %9 = exp %8\n"
    "  decay %9\n"
    "  %11 = in b\n"
    "  %12 = mul %7, %7\n"
    "  %13 = sum %12 over K\n"
    "  %14 = add %13, %3\n"
    "  %15 = rsqrt %14\n"
    "  %16 = mul %7, %15\n"
    "  %17 = mul %11, %16\n"
    "  %18 = read %17\n"
    "  %19 = in v\n"
    "  %20 = in w\n"
    "  %21 = mul %19, %20\n"
    "  %22 = sub %21, %18\n"
    "  update %16, %22\n"
    "  %24 = read %6\n"
    "  out o = %24\n"
    "}\n";

static inline Kernel *kernel_sized(World *w, const char *text, int K, int V) {
    Kernel *k = parse(w, text);
    k->axis.at[AXIS_K].size = K;
    k->axis.at[AXIS_V].size = V;
    return k;
}

static inline CgModule *compile_kernel(World *w, const Kernel *k, const CgOptions *opt) {
    const char *why = NULL;
    CgModule *m = codegen_nvptx(&w->arena, k, opt, &why);
    if (!m)
        fail_msg("%s: %s", k->name, why);
    return m;
}

/* Code again and again, with memory for one allocation, then for `more` of them more each time, until that is
 * enough; how often it was not. */
static inline int count_unwound(const Kernel *k, const CgOptions *opt, double more) {
    volatile int unwound = 0;
    for (volatile int64_t n = 1, done = 0; !done; n += (int64_t)((double)n * more) + 1) {
        Arena arena;
        jmp_buf oom;
        const char *why = NULL;
        arena_init(&arena, &oom);
        arena.fail_after = n;
        if (setjmp(oom))
            unwound++;
        else
            done = codegen_nvptx(&arena, k, opt, &why) != NULL;
        arena_free(&arena);
    }
    return unwound;
}

/* The assembler, for the caller to free; without one the test is skipped. */
static inline char *need_ptxas(void) {
    char *ptxas = ptxas_find();
    if (!ptxas)
        skip();
    return ptxas;
}

/* What ptxas says of code that it takes. */
static inline const char *assembled(World *w, const char *ptxas, const char *text,
                                    const char *target) {
    char why[256], *log = NULL;
    void *cubin = NULL;
    size_t len = 0;
    if (!ptxas_run(ptxas, text, target, &cubin, &len, &log, why, sizeof why))
        fail_msg("%s: %s", why, log ? log : "");
    const char *said = arena_strndup(&w->arena, log, strlen(log));
    free(cubin);
    free(log);
    return said;
}

#endif
