/* Looking up the CUDA driver's functions. */
#include "gpu.h"

#include <dlfcn.h>

int gpu_open(Gpu *gpu) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    const struct {
        const char *name;
        void **to;
    } function[] = {
        {"cuInit", (void **)&gpu->init},
        {"cuDeviceGet", (void **)&gpu->device_get},
        {"cuDevicePrimaryCtxRetain", (void **)&gpu->primary_retain},
        {"cuCtxSetCurrent", (void **)&gpu->set_current},
        {"cuMemAlloc_v2", (void **)&gpu->mem_alloc},
        {"cuMemFree_v2", (void **)&gpu->mem_free},
        {"cuMemcpyHtoD_v2", (void **)&gpu->upload},
        {"cuMemcpyDtoH_v2", (void **)&gpu->download},
        {"cuStreamCreate", (void **)&gpu->stream_create},
        {"cuStreamSynchronize", (void **)&gpu->stream_synchronize},
        {"cuStreamDestroy_v2", (void **)&gpu->stream_destroy},
        {"cuModuleLoadData", (void **)&gpu->module_load},
        {"cuModuleGetFunction", (void **)&gpu->module_function},
        {"cuFuncSetAttribute", (void **)&gpu->function_attribute},
        {"cuLaunchKernel", (void **)&gpu->launch},
    };
    if (!library)
        return 0;
    for (size_t i = 0; i < sizeof function / sizeof *function; i++)
        if (!(*function[i].to = dlsym(library, function[i].name)))
            return 0;
    int device;
    void *context;
    return !gpu->init(0) && !gpu->device_get(&device, 0) &&
           !gpu->primary_retain(&context, device) && !gpu->set_current(context);
}
