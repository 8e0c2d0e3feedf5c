/* What one CPU core can do: the sgemm of a BLAS library, if this machine has one. */
#include "driver/driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

typedef void Sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                   const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
enum { ROW_MAJOR = 101, NO_TRANS = 111, SIZE = 1024, ROUNDS = 5 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The library's own threads would not be one core's rate. */
static void use_one_thread(void *library) {
    static const char *const setter[] = {"openblas_set_num_threads", "bli_thread_set_num_threads",
                                         "MKL_Set_Num_Threads"};
    for (size_t i = 0; i < sizeof setter / sizeof *setter; i++) {
        void (*set)(int) = NULL;
        *(void **)&set = dlsym(library, setter[i]);
        if (set)
            set(1);
    }
}

static double best_rate(Sgemm *sgemm) {
    size_t n = (size_t)SIZE * SIZE;
    float *x = malloc(3 * n * sizeof *x);
    double best = 0;
    if (!x)
        return 0;
    for (size_t i = 0; i < 3 * n; i++)
        x[i] = (float)(i % 7) - 3;
    for (int round = 0; round < ROUNDS; round++) {
        double start = now();
        sgemm(ROW_MAJOR, NO_TRANS, NO_TRANS, SIZE, SIZE, SIZE, 1, x, SIZE, x + n, SIZE, 0,
              x + 2 * n, SIZE);
        double rate = 2.0 * SIZE * SIZE * SIZE / (now() - start);
        if (rate > best)
            best = rate;
    }
    free(x);
    return best;
}

double sgemm_measure(const char **name) {
    static const char *const library[] = {"libopenblas.so.0", "libblis.so.4", "libmkl_rt.so.2",
                                          "libblas.so.3"};
    for (size_t i = 0; i < sizeof library / sizeof *library; i++) {
        void *handle = dlopen(library[i], RTLD_NOW | RTLD_LOCAL);
        Sgemm *sgemm = NULL;
        if (handle)
            *(void **)&sgemm = dlsym(handle, "cblas_sgemm");
        if (!sgemm)
            continue;
        use_one_thread(handle);
        *name = library[i];
        return best_rate(sgemm); /* the library stays: its threads may not survive dlclose */
    }
    return 0;
}
