/* A GPU driver that does nothing but note what it is asked, and fails where it is told to. For unit
 * tests of the runtime; no GPU is needed. */
#ifndef TESTS_CUDA_STUB_H
#define TESTS_CUDA_STUB_H

#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAUNCHES_MAX = 1024, FIELDS_MAX = 128, STREAMS_MAX = 8, OOM = 2, LAUNCH_FAILED = 719 };

/* How much of each stream's work is known to have ended before what comes next on one of them. */
typedef struct StubClock {
    int done[STREAMS_MAX]; /* the number of the last launch */
} StubClock;

/* What was queued: a kernel; or filling, copying memory (no kernel's name). */
typedef struct StubLaunch {
    int number;      /* from 1, of all there ever were */
    int lane;        /* number of its stream */
    StubClock after; /* what it waits for */
    unsigned grid, block, shared;
    void *stream;
    int64_t frame[FIELDS_MAX];
    const char *name;
    uint64_t dst, src, bytes;
} StubLaunch;

static struct Stub {
    int devices, cc_major, current_depth, fail_call, link_calls, pool_allocs, pool_frees, allocs;
    int fields; /* of a launch's frame */
    size_t pool_bytes;
    const char *fail_name, *missing, *log;
    bool no_pool;
    int launches;
    StubLaunch launch[LAUNCHES_MAX];
    int attributes;
    void *lane[STREAMS_MAX]; /* streams in the order they were first seen in */
    StubClock clock[STREAMS_MAX];
    uint64_t capture[STREAMS_MAX]; /* number of the capture that a stream is in; 0: none */
    int lanes, numbers;
    int streams, events; /* that are there */
} stub;

/* Every call goes through here: the named one fails. */
static int outcome(const char *name) {
    return stub.fail_name && !strcmp(name, stub.fail_name) ? stub.fail_call : 0;
}

static int lane_of(void *stream) {
    int i = 0;
    while (i < stub.lanes && stub.lane[i] != stream)
        i++;
    assert_true(i < STREAMS_MAX);
    if (i == stub.lanes)
        stub.lane[stub.lanes++] = stream;
    return i;
}

/* The next launch's place; the last one is used again and again. */
static StubLaunch *note(void *stream) {
    int i = stub.launches < LAUNCHES_MAX - 1 ? stub.launches++ : LAUNCHES_MAX - 1;
    int lane = lane_of(stream);
    stub.launch[i] = (StubLaunch){
        .number = ++stub.numbers, .stream = stream, .lane = lane, .after = stub.clock[lane]};
    stub.clock[lane].done[lane] = stub.numbers;
    return &stub.launch[i];
}

/* Whether launch `first` has ended when `then` begins. */
static inline bool ends_before(const StubLaunch *first, const StubLaunch *then) {
    return then->after.done[first->lane] >= first->number;
}

static int s_cuInit(unsigned f) {
    (void)f;
    return outcome("cuInit");
}
static int s_cuDriverGetVersion(int *v) {
    *v = 13000;
    return 0;
}
static int s_cuGetErrorString(int e, const char **t) {
    (void)e;
    *t = "stub failure";
    return 0;
}
static int s_cuGetErrorName(int e, const char **t) {
    *t = e == OOM ? "OOM" : "STUB";
    return 0;
}
static int s_cuDeviceGetCount(int *n) {
    *n = stub.devices;
    return 0;
}
static int s_cuDeviceGet(int *d, int i) {
    *d = i;
    return 0;
}
static int s_cuDeviceGetName(char *n, int len, int d) {
    (void)d;
    strncpy(n, "Stub GPU", (size_t)len);
    return 0;
}
static int s_cuDeviceGetAttribute(int *v, int a, int d) {
    (void)d;
    *v = a == 75 ? stub.cc_major : a == 16 ? 132 : 0;
    return 0;
}
static int s_cuDevicePrimaryCtxRetain(void **c, int d) {
    (void)d;
    *c = &stub;
    return 0;
}
static int s_cuDevicePrimaryCtxRelease(int d) {
    (void)d;
    return 0;
}
static int s_cuCtxGetCurrent(void **c) {
    *c = NULL;
    return 0;
}
static int s_cuCtxPushCurrent(void *c) {
    (void)c;
    __atomic_add_fetch(&stub.current_depth, 1, __ATOMIC_RELAXED);
    return outcome("cuCtxPushCurrent");
}
static int s_cuCtxPopCurrent(void **c) {
    *c = &stub;
    __atomic_add_fetch(&stub.current_depth, -1, __ATOMIC_RELAXED);
    return 0;
}
static int s_cuCtxGetDevice(int *d) {
    *d = 0;
    return 0;
}
static int s_cuCtxSynchronize(void) {
    return outcome("cuCtxSynchronize");
}
static int s_cuMemAlloc(uint64_t *p, size_t n) {
    int error = outcome("cuMemAlloc");
    if (error)
        return error;
    stub.allocs++;
    *p = (uint64_t)(uintptr_t)aligned_alloc(256, (n + 255) / 256 * 256);
    return 0;
}
static int s_cuMemFree(uint64_t p) {
    stub.allocs--;
    free((void *)(uintptr_t)p);
    return 0;
}
static int s_cuMemcpyHtoD(uint64_t d, const void *s, size_t n) {
    memcpy((void *)(uintptr_t)d, s, n);
    return 0;
}
static int s_cuMemcpyDtoH(void *d, uint64_t s, size_t n) {
    memcpy(d, (void *)(uintptr_t)s, n);
    return 0;
}
static int s_cuMemsetD8(uint64_t d, unsigned char b, size_t n) {
    memset((void *)(uintptr_t)d, b, n);
    return 0;
}
static int s_cuMemsetD8Async(uint64_t d, unsigned char b, size_t n, void *stream) {
    assert_int_equal(b, 0);
    StubLaunch *l = note(stream);
    l->dst = d;
    l->bytes = n;
    return outcome("cuMemsetD8Async");
}
static int s_cuMemcpyDtoDAsync(uint64_t d, uint64_t s, size_t n, void *stream) {
    StubLaunch *l = note(stream);
    l->dst = d;
    l->src = s;
    l->bytes = n;
    return outcome("cuMemcpyDtoDAsync");
}
static int s_cuMemGetInfo(size_t *left, size_t *all) {
    *left = *all = (size_t)1 << 36;
    return outcome("cuMemGetInfo");
}
static int s_cuModuleLoadData(void **m, const void *image) {
    assert_string_equal(image, "stub cubin");
    *m = &stub;
    return outcome("cuModuleLoadData");
}
static int s_cuModuleUnload(void *m) {
    (void)m;
    return 0;
}
static int s_cuModuleGetFunction(void **f, void *m, const char *name) {
    static char names[16][64];
    static unsigned count;
    (void)m;
    *f = strncpy(names[count++ % 16], name, 63); /* a function is its name */
    return outcome("cuModuleGetFunction");
}
static int s_cuFuncSetAttribute(void *f, int a, int v) {
    (void)f;
    assert_int_equal(a, 8);
    assert_true(v > 48 * 1024);
    stub.attributes++;
    return 0;
}
static int s_cuFuncGetAttribute(int *v, int a, void *f) {
    (void)a;
    (void)f;
    *v = 0;
    return 0;
}
static int s_cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                            unsigned by, unsigned bz, unsigned smem, void *stream, void **params,
                            void **extra) {
    assert_int_equal(gy * gz * by * bz, 1);
    assert_null(extra);
    StubLaunch *l = note(stream);
    l->grid = gx;
    l->block = bx;
    l->shared = smem;
    l->name = f;
    memcpy(l->frame, params[0], (size_t)stub.fields * sizeof(int64_t));
    return outcome("cuLaunchKernel");
}
static _Thread_local char *info_log; /* kernels are assembled in threads of their own */
static int s_cuLinkCreate(unsigned n, int *option, void **value, void **state) {
    for (unsigned i = 0; i < n; i++)
        if (option[i] == 3)
            info_log = value[i];
    *state = &stub;
    return 0;
}
static int s_cuLinkAddData(void *state, int type, void *data, size_t size, const char *name,
                           unsigned n, int *option, void **value) {
    (void)state;
    (void)name;
    (void)n;
    (void)option;
    (void)value;
    assert_int_equal(type, 1);
    assert_int_equal(strlen(data) + 1, size);
    const char *entry = strstr(data, ".visible .entry"); /* one kernel at a time */
    assert_non_null(entry);
    assert_null(strstr(entry + 1, ".visible .entry"));
    if (stub.log)
        strcpy(info_log, stub.log);
    return outcome("cuLinkAddData");
}
static int s_cuLinkComplete(void *state, void **cubin, size_t *size) {
    static char image[] = "stub cubin";
    (void)state;
    __atomic_add_fetch(&stub.link_calls, 1, __ATOMIC_RELAXED);
    *cubin = image;
    *size = sizeof image;
    return 0;
}
static int s_cuLinkDestroy(void *state) {
    (void)state;
    return 0;
}
static int s_cuEventCreate(void **e, unsigned f) {
    (void)f;
    *e = calloc(1, sizeof(StubClock));
    stub.events++;
    return outcome("cuEventCreate");
}
static int s_cuEventDestroy(void *e) {
    stub.events--;
    free(e);
    return 0;
}
static int s_cuEventRecord(void *e, void *s) {
    *(StubClock *)e = stub.clock[lane_of(s)];
    return outcome("cuEventRecord");
}
static int s_cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return 0;
}
static int s_cuStreamCreateWithPriority(void **s, unsigned flags, int priority) {
    assert_true(flags == 1 && priority == -1); /* waits for no other stream */
    *s = malloc(1);
    stub.streams++;
    return outcome("cuStreamCreateWithPriority");
}
static int s_cuStreamDestroy(void *s) {
    stub.streams--;
    free(s);
    return 0;
}
static int s_cuStreamWaitEvent(void *s, void *e, unsigned flags) {
    assert_int_equal(flags, 0);
    int to = lane_of(s);
    for (int i = 0; i < STREAMS_MAX; i++)
        if (stub.clock[to].done[i] < ((StubClock *)e)->done[i])
            stub.clock[to].done[i] = ((StubClock *)e)->done[i];
    return outcome("cuStreamWaitEvent");
}
static int s_cuStreamGetCaptureInfo(void *s, int *status, uint64_t *id, void **graph,
                                    const void **nodes, size_t *count) {
    assert_true(!graph && !nodes && !count);
    *id = stub.capture[lane_of(s)];
    *status = *id > 0;
    return outcome("cuStreamGetCaptureInfo");
}
static int s_cuThreadExchangeStreamCaptureMode(int *mode) {
    static int now;
    int was = now;
    now = *mode;
    *mode = was;
    return 0;
}
static int s_cuEventSynchronize(void *e) {
    (void)e;
    return 0;
}
static int s_cuEventElapsedTime(float *ms, void *a, void *b) {
    (void)a;
    (void)b;
    *ms = 2;
    return 0;
}
static int s_cuMemPoolCreate(void **p, const void *props) {
    (void)props;
    *p = &stub;
    return 0;
}
static int s_cuMemPoolDestroy(void *p) {
    (void)p;
    return 0;
}
static int s_cuMemPoolTrimTo(void *p, size_t keep) {
    (void)p;
    (void)keep;
    return 0;
}
static int s_cuMemPoolSetAttribute(void *p, int a, void *v) {
    (void)p;
    (void)a;
    (void)v;
    return 0;
}
static int s_cuMemAllocFromPoolAsync(uint64_t *p, size_t n, void *pool, void *stream) {
    (void)pool;
    (void)stream;
    stub.pool_bytes = n;
    stub.pool_allocs++;
    *p = 0x100000;
    return outcome("cuMemAllocFromPoolAsync");
}
static int s_cuMemFreeAsync(uint64_t p, void *stream) {
    (void)stream;
    assert_int_equal(p, 0x100000);
    stub.pool_frees++;
    return 0;
}

/* As dlsym, over the functions above; names with _v2 where the real driver has them so. */
static void *symbol(void *library, const char *name) {
    (void)library;
    if (stub.missing && !strcmp(name, stub.missing))
        return NULL;
    if (stub.no_pool && strstr(name, "Pool"))
        return NULL;
#define FN(ret, fn, args)      \
    if (!strcmp(name, #fn)) {  \
        ret(*f) args = s_##fn; \
        return *(void **)&f;   \
    }
#define FN2(ret, fn, args)          \
    if (!strcmp(name, #fn "_v2")) { \
        ret(*f) args = s_##fn;      \
        return *(void **)&f;        \
    }
#define FNOPT FN
#include "runtime/cuda.def"
#undef FN
#undef FN2
#undef FNOPT
    return NULL;
}

/* a context on the stub ------------------------------------------------------------------------ */

static char logged[1024];

static void on_log(void *user, gdr_severity severity, const char *message) {
    (void)user;
    assert_int_equal(severity, GDR_WARNING);
    strncpy(logged, message, sizeof logged - 1);
}

static gdr_context *open_stub(const char *cache) {
    gdr_context *ctx;
    char why[512] = "";
    gdr_context_options o = {.size = sizeof o, .cache_dir = cache, .log = on_log};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    ctx->cuda = cuda_open_with(symbol, NULL, 0, why, sizeof why);
    assert_string_equal(why, "");
    return ctx;
}

static int fresh(void **state) {
    (void)state;
    stub = (struct Stub){.devices = 1, .cc_major = 9};
    logged[0] = '\0';
    return 0;
}

#endif
