/* The little of the CUDA driver that the examples need, looked up at run time so that they build
 * and start without one. Programs that have the CUDA toolkit include its <cuda.h> instead. */
#ifndef EXAMPLE_GPU_H
#define EXAMPLE_GPU_H

#include <stddef.h>
#include <stdint.h>

typedef struct Gpu {
    int (*init)(unsigned);
    int (*device_get)(int *, int);
    int (*primary_retain)(void **, int);
    int (*set_current)(void *);
    int (*mem_alloc)(uint64_t *, size_t);
    int (*mem_free)(uint64_t);
    int (*upload)(uint64_t, const void *, size_t);
    int (*download)(void *, uint64_t, size_t);
    int (*stream_create)(void **, unsigned);
    int (*stream_synchronize)(void *);
    int (*stream_destroy)(void *);
    int (*module_load)(void **, const void *);
    int (*module_function)(void **, void *, const char *);
    int (*function_attribute)(void *, int, int);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                  void *, void **, void **);
} Gpu;

/* 1 with a current context on the first GPU; 0 where there is no driver or no GPU. */
int gpu_open(Gpu *gpu);

#endif
