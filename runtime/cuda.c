/* The CUDA driver by dlopen: no CUDA header, no CUDA library at build time. The functions are
 * listed once in cuda.def; this file looks them up and wraps them so that every failure becomes one
 * line of text and the caller's current context is left as it was.
 *
 * The context used is the caller's current one if there is one, else the device's primary context,
 * the one that the CUDA runtime and the frameworks built on it use.
 */
#include "runtime/runtime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* the table of functions ----------------------------------------------------------------------- */

typedef struct Driver {
#define FN(ret, name, args) ret(*name) args;
#define FN2 FN
#define FNOPT FN
#include "runtime/cuda.def"
#undef FN
#undef FN2
#undef FNOPT
} Driver;

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100 };
enum { API_VERSION = 12000 }; /* the ABI asked of cuGetProcAddress */
enum {
    ATTR_CLOCK_KHZ = 13,
    ATTR_MEMORY_CLOCK_KHZ = 36,
    ATTR_MEMORY_BUS_BITS = 37,
    ATTR_MULTIPROCESSORS = 16,
    ATTR_CC_MAJOR = 75,
    ATTR_CC_MINOR = 76,
    FUNC_MAX_DYNAMIC_SHARED = 8,
    POOL_RELEASE_THRESHOLD = 4,
    JIT_INFO_LOG = 3,
    JIT_INFO_LOG_SIZE = 4,
    JIT_ERROR_LOG = 5,
    JIT_ERROR_LOG_SIZE = 6,
    JIT_LOG_VERBOSE = 12,
    JIT_INPUT_PTX = 1,
    STREAM_NON_BLOCKING = 1,
    EVENT_DISABLE_TIMING = 2,
    CAPTURE_NONE = 0,
    CAPTURE_ACTIVE = 1,
    CAPTURE_MODE_RELAXED = 2,
    CAPTURE_INVALIDATED = 901
};

/* CUmemPoolProps. */
typedef struct PoolProps {
    int alloc_type; /* 1 = pinned to the device */
    int handle_types;
    int location_type; /* 1 = device */
    int location_id;
    void *security;
    unsigned char reserved[64];
} PoolProps;

struct Cuda {
    void *library;
    Driver d;
    int device;
    void *ctx;
    bool primary; /* ctx is the device's primary context, retained */
    void *pool;   /* stream-ordered memory; NULL when the driver has none */
    char name[256];
    int cc, driver_version, multiprocessors;
};

struct CudaModule {
    void *handle;
};

typedef int GetProcAddress(const char *name, void **fn, int version, uint64_t flags, int *status);

typedef struct Lookup {
    CudaLookup *symbol;
    void *library;
    GetProcAddress *get;
} Lookup;

static void *look_up(const Lookup *l, const char *name, bool v2) {
    void *fn = NULL;
    int status = 0;
    if (l->get && l->get(name, &fn, API_VERSION, 0, &status) == SUCCESS && fn)
        return fn;
    char plain[64];
    snprintf(plain, sizeof plain, "%s%s", name, v2 ? "_v2" : "");
    return l->symbol(l->library, plain);
}

/* Fills the table; the name of a missing function, or NULL. */
static const char *load_functions(CudaLookup *symbol, void *library, Driver *d) {
    Lookup l = {symbol, library, NULL};
    *(void **)&l.get = symbol(library, "cuGetProcAddress_v2");
#define LOAD(name, v2, optional)                 \
    *(void **)&d->name = look_up(&l, #name, v2); \
    if (!d->name && !(optional))                 \
        return #name;
#define FN(ret, name, args) LOAD(name, false, false)
#define FN2(ret, name, args) LOAD(name, true, false)
#define FNOPT(ret, name, args) LOAD(name, false, true)
#include "runtime/cuda.def"
#undef FN
#undef FN2
#undef FNOPT
#undef LOAD
    return NULL;
}

/* opening -------------------------------------------------------------------------------------- */

static bool fail(const Cuda *cuda, CudaError *e, const char *call, int error) {
    const char *name = NULL, *text = NULL;
    cuda->d.cuGetErrorName(error, &name);
    cuda->d.cuGetErrorString(error, &text);
    snprintf(e->text, sizeof e->text, "%s: %s (%s)", call, text ? text : "unknown error",
             name ? name : "no name");
    e->no_memory = error == OUT_OF_MEMORY;
    return false;
}

static bool open_context(Cuda *cuda, int device, CudaError *e) {
    Driver *d = &cuda->d;
    int count = 0, error;
    if ((error = d->cuInit(0)) || (error = d->cuDeviceGetCount(&count)))
        return fail(cuda, e, "the GPU driver does not start", error);
    if (device < 0 || device >= count) {
        snprintf(e->text, sizeof e->text, count ? "there is no GPU %d, only %d" : "there is no GPU",
                 device, count);
        return false;
    }
    d->cuDriverGetVersion(&cuda->driver_version);
    if (d->cuCtxGetCurrent(&cuda->ctx) == SUCCESS && cuda->ctx) {
        if ((error = d->cuCtxGetDevice(&cuda->device)))
            return fail(cuda, e, "cuCtxGetDevice", error);
    } else {
        if ((error = d->cuDeviceGet(&cuda->device, device)))
            return fail(cuda, e, "cuDeviceGet", error);
        if ((error = d->cuDevicePrimaryCtxRetain(&cuda->ctx, cuda->device)))
            return fail(cuda, e, "cuDevicePrimaryCtxRetain", error);
        cuda->primary = true;
    }
    int major = 0, minor = 0;
    d->cuDeviceGetName(cuda->name, sizeof cuda->name, cuda->device);
    d->cuDeviceGetAttribute(&major, ATTR_CC_MAJOR, cuda->device);
    d->cuDeviceGetAttribute(&minor, ATTR_CC_MINOR, cuda->device);
    d->cuDeviceGetAttribute(&cuda->multiprocessors, ATTR_MULTIPROCESSORS, cuda->device);
    cuda->cc = 10 * major + minor;
    return true;
}

static void open_pool(Cuda *cuda) {
    Driver *d = &cuda->d;
    if (!d->cuMemPoolCreate || !d->cuMemPoolDestroy || !d->cuMemPoolSetAttribute ||
        !d->cuMemAllocFromPoolAsync || !d->cuMemFreeAsync)
        return;
    PoolProps props = {.alloc_type = 1, .location_type = 1, .location_id = cuda->device};
    if (d->cuMemPoolCreate(&cuda->pool, &props) != SUCCESS) {
        cuda->pool = NULL;
        return;
    }
    uint64_t keep = UINT64_MAX; /* workspaces come back launch after launch */
    d->cuMemPoolSetAttribute(cuda->pool, POOL_RELEASE_THRESHOLD, &keep);
}

static void *open_library(char *why, size_t why_size) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        snprintf(why, why_size, "no GPU driver: %s", dlerror());
    return library;
}

Cuda *cuda_open_with(CudaLookup *symbol, void *library, int device, char *why, size_t why_size) {
    Cuda *cuda = calloc(1, sizeof *cuda);
    if (!cuda) {
        snprintf(why, why_size, "out of memory");
        return NULL;
    }
    CudaError e = {.text = ""};
    const char *missing = load_functions(symbol, library, &cuda->d);
    if (missing)
        snprintf(why, why_size, "the GPU driver is too old: it has no %s", missing);
    else if (!open_context(cuda, device, &e))
        snprintf(why, why_size, "%s", e.text);
    else {
        open_pool(cuda);
        return cuda;
    }
    cuda_close(cuda);
    return NULL;
}

Cuda *cuda_open(int device, char *why, size_t why_size) {
    void *library = open_library(why, why_size);
    if (!library)
        return NULL;
    Cuda *cuda = cuda_open_with(dlsym, library, device, why, why_size);
    if (cuda)
        cuda->library = library;
    else
        dlclose(library);
    return cuda;
}

void cuda_close(Cuda *cuda) {
    if (!cuda)
        return;
    if (cuda->pool)
        cuda->d.cuMemPoolDestroy(cuda->pool);
    if (cuda->primary)
        cuda->d.cuDevicePrimaryCtxRelease(cuda->device);
    if (cuda->library)
        dlclose(cuda->library);
    free(cuda);
}

const char *cuda_device_name(const Cuda *cuda) {
    return cuda->name;
}
int cuda_compute_capability(const Cuda *cuda) {
    return cuda->cc;
}
int cuda_driver_version(const Cuda *cuda) {
    return cuda->driver_version;
}
int cuda_multiprocessors(const Cuda *cuda) {
    return cuda->multiprocessors;
}

static double attribute(const Cuda *cuda, int which) {
    int value = 0;
    return cuda->d.cuDeviceGetAttribute(&value, which, cuda->device) == SUCCESS ? value : 0;
}

double cuda_bandwidth(const Cuda *cuda) {
    /* Two transfers a clock. */
    return 2e3 * attribute(cuda, ATTR_MEMORY_CLOCK_KHZ) * attribute(cuda, ATTR_MEMORY_BUS_BITS) / 8;
}

double cuda_matrix_rate(const Cuda *cuda) {
    /* Operations a clock and multiprocessor, dense, 2-byte operands, f32 sums. */
    double per_clock = cuda->cc >= 100  ? 8192
                       : cuda->cc == 90 ? 4096
                       : cuda->cc == 80 ? 2048
                                        : 1024;
    return 1e3 * attribute(cuda, ATTR_CLOCK_KHZ) * cuda->multiprocessors * per_clock;
}

int cuda_probe_version(void) {
    char why[256];
    void *library = open_library(why, sizeof why);
    if (!library)
        return 0;
    int (*get)(int *) = NULL;
    int version = 0;
    *(void **)&get = dlsym(library, "cuDriverGetVersion");
    if (!get || get(&version) != SUCCESS)
        version = 0;
    dlclose(library);
    return version;
}

/* memory --------------------------------------------------------------------------------------- */

/* Evaluates `call` with the context current; `what` names it in the error. */
#define WITH_CONTEXT(cuda, e, what, call)                         \
    do {                                                          \
        void *popped_;                                            \
        int error_ = (cuda)->d.cuCtxPushCurrent((cuda)->ctx);     \
        if (error_)                                               \
            return fail((cuda), (e), "cuCtxPushCurrent", error_); \
        error_ = (call);                                          \
        (cuda)->d.cuCtxPopCurrent(&popped_);                      \
        return error_ ? fail((cuda), (e), (what), error_) : true; \
    } while (0)

bool cuda_alloc(Cuda *cuda, size_t bytes, uint64_t *ptr, CudaError *e) {
    *ptr = 0;
    WITH_CONTEXT(cuda, e, "allocating GPU memory", cuda->d.cuMemAlloc(ptr, bytes ? bytes : 16));
}

static bool free_memory(Cuda *cuda, uint64_t ptr, CudaError *e) {
    WITH_CONTEXT(cuda, e, "cuMemFree", cuda->d.cuMemFree(ptr));
}

void cuda_free(Cuda *cuda, uint64_t ptr) {
    CudaError e;
    if (ptr)
        free_memory(cuda, ptr, &e);
}

bool cuda_alloc_async(Cuda *cuda, size_t bytes, void *stream, uint64_t *ptr, CudaError *e) {
    *ptr = 0;
    if (!cuda->pool) {
        snprintf(e->text, sizeof e->text,
                 "this GPU driver has no stream-ordered memory: "
                 "give the launch a workspace");
        e->no_memory = false;
        return false;
    }
    WITH_CONTEXT(cuda, e, "allocating the GPU workspace",
                 cuda->d.cuMemAllocFromPoolAsync(ptr, bytes, cuda->pool, stream));
}

bool cuda_free_async(Cuda *cuda, uint64_t ptr, void *stream, CudaError *e) {
    WITH_CONTEXT(cuda, e, "cuMemFreeAsync", cuda->d.cuMemFreeAsync(ptr, stream));
}

bool cuda_upload(Cuda *cuda, uint64_t dst, const void *src, size_t bytes, CudaError *e) {
    if (!bytes)
        return true;
    WITH_CONTEXT(cuda, e, "copying to the GPU", cuda->d.cuMemcpyHtoD(dst, src, bytes));
}

bool cuda_download(Cuda *cuda, void *dst, uint64_t src, size_t bytes, CudaError *e) {
    if (!bytes)
        return true;
    WITH_CONTEXT(cuda, e, "copying from the GPU", cuda->d.cuMemcpyDtoH(dst, src, bytes));
}

bool cuda_fill(Cuda *cuda, uint64_t dst, unsigned char byte, size_t bytes, CudaError *e) {
    if (!bytes)
        return true;
    WITH_CONTEXT(cuda, e, "filling GPU memory", cuda->d.cuMemsetD8(dst, byte, bytes));
}

bool cuda_zero_async(Cuda *cuda, uint64_t dst, size_t bytes, void *stream, CudaError *e) {
    if (!bytes)
        return true;
    WITH_CONTEXT(cuda, e, "filling GPU memory", cuda->d.cuMemsetD8Async(dst, 0, bytes, stream));
}

bool cuda_copy_async(Cuda *cuda, uint64_t dst, uint64_t src, size_t bytes, void *stream,
                     CudaError *e) {
    if (!bytes)
        return true;
    WITH_CONTEXT(cuda, e, "copying on the GPU",
                 cuda->d.cuMemcpyDtoDAsync(dst, src, bytes, stream));
}

static int trim(Cuda *cuda) {
    int error = cuda->d.cuCtxSynchronize();
    if (!error && cuda->pool && cuda->d.cuMemPoolTrimTo)
        error = cuda->d.cuMemPoolTrimTo(cuda->pool, 0);
    return error;
}

bool cuda_trim(Cuda *cuda, CudaError *e) {
    WITH_CONTEXT(cuda, e, "giving GPU memory back", trim(cuda));
}

bool cuda_free_memory(Cuda *cuda, size_t *bytes, CudaError *e) {
    size_t all;
    WITH_CONTEXT(cuda, e, "cuMemGetInfo", cuda->d.cuMemGetInfo(bytes, &all));
}

bool cuda_synchronize(Cuda *cuda, CudaError *e) {
    WITH_CONTEXT(cuda, e, "the kernels failed", cuda->d.cuCtxSynchronize());
}

/* time ----------------------------------------------------------------------------------------- */

static int time_between(Cuda *cuda, bool (*run)(void *user), void *user, bool *ran, float *ms) {
    Driver *d = &cuda->d;
    void *start = NULL, *end = NULL;
    int error = d->cuEventCreate(&start, 0);
    if (!error)
        error = d->cuEventCreate(&end, 0);
    if (!error)
        error = d->cuEventRecord(start, NULL);
    if (!error)
        *ran = run(user);
    if (!error && *ran && !(error = d->cuEventRecord(end, NULL)) &&
        !(error = d->cuEventSynchronize(end)))
        error = d->cuEventElapsedTime(ms, start, end);
    if (start)
        d->cuEventDestroy(start);
    if (end)
        d->cuEventDestroy(end);
    return error;
}

static bool timed(Cuda *cuda, bool (*run)(void *user), void *user, bool *ran, float *ms,
                  CudaError *e) {
    WITH_CONTEXT(cuda, e, "timing kernels", time_between(cuda, run, user, ran, ms));
}

bool cuda_time(Cuda *cuda, bool (*run)(void *user), void *user, double *seconds, CudaError *e) {
    float ms = 0;
    bool ran = false;
    e->text[0] = '\0';
    if (!timed(cuda, run, user, &ran, &ms, e) || !ran)
        return false;
    *seconds = ms * 1e-3;
    return true;
}

/* streams -------------------------------------------------------------------------------------- */

/* A capture under way in this thread must not forbid it. */
static int stream_create(Cuda *cuda, void **stream) {
    Driver *d = &cuda->d;
    int least = 0, greatest = 0, mode = CAPTURE_MODE_RELAXED;
    int error = d->cuCtxGetStreamPriorityRange(&least, &greatest);
    if (error || (error = d->cuThreadExchangeStreamCaptureMode(&mode)))
        return error;
    int above = least - 1; /* the greatest priority is the least number */
    error = d->cuStreamCreateWithPriority(stream, STREAM_NON_BLOCKING,
                                          above > greatest ? above : greatest);
    int back = d->cuThreadExchangeStreamCaptureMode(&mode);
    return error ? error : back;
}

bool cuda_stream_open(Cuda *cuda, void **stream, CudaError *e) {
    *stream = NULL;
    WITH_CONTEXT(cuda, e, "cuStreamCreate", stream_create(cuda, stream));
}

static bool stream_destroy(Cuda *cuda, void *stream, CudaError *e) {
    WITH_CONTEXT(cuda, e, "cuStreamDestroy", cuda->d.cuStreamDestroy(stream));
}

void cuda_stream_close(Cuda *cuda, void *stream) {
    CudaError e;
    stream_destroy(cuda, stream, &e);
}

static int stream_capture(Cuda *cuda, void *stream, uint64_t *capture) {
    int status = CAPTURE_NONE;
    *capture = 0;
    int error = cuda->d.cuStreamGetCaptureInfo(stream, &status, capture, NULL, NULL, NULL);
    *capture = status == CAPTURE_ACTIVE ? *capture + 1 : 0;
    if (!error && status != CAPTURE_NONE && status != CAPTURE_ACTIVE)
        error = CAPTURE_INVALIDATED;
    return error;
}

bool cuda_stream_capture(Cuda *cuda, void *stream, uint64_t *capture, CudaError *e) {
    WITH_CONTEXT(cuda, e, "cuStreamGetCaptureInfo", stream_capture(cuda, stream, capture));
}

bool cuda_event_open(Cuda *cuda, void **event, CudaError *e) {
    *event = NULL;
    WITH_CONTEXT(cuda, e, "cuEventCreate", cuda->d.cuEventCreate(event, EVENT_DISABLE_TIMING));
}

static bool event_destroy(Cuda *cuda, void *event, CudaError *e) {
    WITH_CONTEXT(cuda, e, "cuEventDestroy", cuda->d.cuEventDestroy(event));
}

void cuda_event_close(Cuda *cuda, void *event) {
    CudaError e;
    event_destroy(cuda, event, &e);
}

static int wait_for(Cuda *cuda, void *event, void *first, void *then) {
    int error = cuda->d.cuEventRecord(event, first);
    return error ? error : cuda->d.cuStreamWaitEvent(then, event, 0);
}

bool cuda_wait(Cuda *cuda, void *event, void *first, void *then, CudaError *e) {
    WITH_CONTEXT(cuda, e, "ordering two streams", wait_for(cuda, event, first, then));
}

/* code ----------------------------------------------------------------------------------------- */

static bool module_load(Cuda *cuda, const void *image, void **handle, CudaError *e) {
    WITH_CONTEXT(cuda, e, "loading GPU code", cuda->d.cuModuleLoadData(handle, image));
}

CudaModule *cuda_module_load(Cuda *cuda, const void *cubin, CudaError *e) {
    CudaModule *m = calloc(1, sizeof *m);
    if (!m) {
        snprintf(e->text, sizeof e->text, "out of memory");
        e->no_memory = true;
        return NULL;
    }
    if (!module_load(cuda, cubin, &m->handle, e)) {
        free(m);
        return NULL;
    }
    return m;
}

static bool module_unload(Cuda *cuda, CudaModule *m, CudaError *e) {
    WITH_CONTEXT(cuda, e, "cuModuleUnload", cuda->d.cuModuleUnload(m->handle));
}

void cuda_module_free(Cuda *cuda, CudaModule *m) {
    CudaError e;
    if (!m)
        return;
    module_unload(cuda, m, &e);
    free(m);
}

static int get_function(Cuda *cuda, CudaModule *m, const char *symbol, int smem_bytes, void **fn) {
    int error = cuda->d.cuModuleGetFunction(fn, m->handle, symbol);
    if (!error && smem_bytes > 48 * 1024)
        error = cuda->d.cuFuncSetAttribute(*fn, FUNC_MAX_DYNAMIC_SHARED, smem_bytes);
    return error;
}

static bool function_of(Cuda *cuda, CudaModule *m, const char *symbol, int smem_bytes, void **fn,
                        CudaError *e) {
    WITH_CONTEXT(cuda, e, symbol, get_function(cuda, m, symbol, smem_bytes, fn));
}

void *cuda_function(Cuda *cuda, CudaModule *m, const char *symbol, int smem_bytes, CudaError *e) {
    void *fn = NULL;
    return function_of(cuda, m, symbol, smem_bytes, &fn, e) ? fn : NULL;
}

bool cuda_launch(Cuda *cuda, void *function, int64_t blocks, int threads, int smem_bytes,
                 void *stream, const int64_t *frame, int fields, CudaError *e) {
    (void)fields; /* the driver knows the parameter's size */
    if (blocks == 0)
        return true;
    void *params[] = {(void *)(uintptr_t)frame};
    WITH_CONTEXT(cuda, e, "launching a kernel",
                 cuda->d.cuLaunchKernel(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1,
                                        (unsigned)smem_bytes, stream, params, NULL));
}

enum { LOG_BYTES = 16384 };

static int link_ptx(Cuda *cuda, const char *ptx, void **cubin, size_t *len, char *info,
                    char *errors) {
    Driver *d = &cuda->d;
    int option[] = {JIT_INFO_LOG, JIT_INFO_LOG_SIZE, JIT_ERROR_LOG, JIT_ERROR_LOG_SIZE,
                    JIT_LOG_VERBOSE};
    void *value[] = {info, (void *)(uintptr_t)LOG_BYTES, errors, (void *)(uintptr_t)LOG_BYTES,
                     (void *)(uintptr_t)1};
    void *state = NULL, *image = NULL;
    size_t size = 0;
    int error = d->cuLinkCreate(5, option, value, &state);
    if (error)
        return error;
    error = d->cuLinkAddData(state, JIT_INPUT_PTX, (void *)(uintptr_t)ptx, strlen(ptx) + 1, "gdrc",
                             0, NULL, NULL);
    if (!error)
        error = d->cuLinkComplete(state, &image, &size);
    if (!error) {
        *cubin = malloc(size);
        if (*cubin) {
            memcpy(*cubin, image, size); /* it dies with the linker's state */
            *len = size;
        } else {
            error = OUT_OF_MEMORY;
        }
    }
    d->cuLinkDestroy(state);
    return error;
}

static bool link_with_context(Cuda *cuda, const char *ptx, void **cubin, size_t *len, char *info,
                              char *errors, CudaError *e) {
    WITH_CONTEXT(cuda, e, "compiling PTX", link_ptx(cuda, ptx, cubin, len, info, errors));
}

bool cuda_link(Cuda *cuda, const char *ptx, void **cubin, size_t *len, char **log, CudaError *e) {
    *cubin = NULL;
    *log = NULL;
    char *info = calloc(2, LOG_BYTES + 1);
    if (!info) {
        snprintf(e->text, sizeof e->text, "out of memory");
        e->no_memory = true;
        return false;
    }
    char *errors = info + LOG_BYTES + 1;
    bool ok = link_with_context(cuda, ptx, cubin, len, info, errors, e);
    if (!ok && errors[0]) {
        size_t used = strlen(e->text);
        errors[strcspn(errors, "\n")] = '\0';
        snprintf(e->text + used, sizeof e->text - used, ": %s", errors);
    }
    *log = info; /* the errors that follow it in memory are not part of the text */
    return ok;
}
