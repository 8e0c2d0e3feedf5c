/* What this core can do: single-precision matrix products by OpenBLAS on one thread, the measure
 * that CPU kernels are held against.
 *
 *     cc -O2 bench/sgemm.c -o sgemm -ldl && ./sgemm
 *
 * The library is loaded at run time (Debian: libopenblas0-pthread); exit status 77 without it. Each
 * line is the best of several runs of about 50 ms. The last line, a large square product, is the
 * figure to compare with. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, RUNS = 7 };

typedef void Sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a,
                   int lda, const float *b, int ldb, float beta, float *c, int ldc);
typedef void SetThreads(int n);
typedef char *Config(void);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *matrix(int rows, int cols) {
    size_t n = (size_t)rows * (size_t)cols;
    float *p = malloc(n * sizeof *p);
    if (!p) {
        fprintf(stderr, "sgemm: out of memory\n");
        exit(3);
    }
    for (size_t i = 0; i < n; i++)
        p[i] = (float)((i * 2654435761u >> 7 & 1023) / 1024.0 - 0.5);
    return p;
}

/* GFLOP/s of C += A B with A m x k, B k x n. */
static double measure(Sgemm *sgemm, int m, int n, int k) {
    float *a = matrix(m, k), *b = matrix(k, n), *c = matrix(m, n);
    double flop = 2.0 * m * n * k, best = 0;
    int repeat = (int)(5e9 / flop) + 1;
    for (int run = 0; run < RUNS; run++) {
        double start = now();
        for (int i = 0; i < repeat; i++)
            sgemm(ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, m, n, k, 1e-3f, a, k, b, n, 0.5f, c, n);
        double rate = flop * repeat / (now() - start) * 1e-9;
        if (rate > best)
            best = rate;
    }
    free(a);
    free(b);
    free(c);
    return best;
}

int main(void) {
    void *lib = dlopen("libopenblas.so.0", RTLD_NOW);
    Sgemm *sgemm = lib ? (Sgemm *)(uintptr_t)dlsym(lib, "cblas_sgemm") : NULL;
    SetThreads *set = lib ? (SetThreads *)(uintptr_t)dlsym(lib, "openblas_set_num_threads") : NULL;
    Config *core = lib ? (Config *)(uintptr_t)dlsym(lib, "openblas_get_corename") : NULL;
    if (!sgemm || !set) {
        fprintf(stderr, "sgemm: %s; install libopenblas0-pthread\n",
                lib ? "not an OpenBLAS" : dlerror());
        return 77;
    }
    set(1);
    printf("OpenBLAS, one thread, core type %s\n", core ? core() : "unknown");
    static const int size[][3] = {
        {64, 128, 128}, {128, 128, 64}, {512, 512, 512}, {2048, 2048, 2048}};
    for (size_t i = 0; i < sizeof size / sizeof size[0]; i++)
        printf("%4d x %4d x %4d  %7.1f GFLOP/s\n", size[i][0], size[i][1], size[i][2],
               measure(sgemm, size[i][0], size[i][1], size[i][2]));
    return 0;
}
