/* A problem's tensors on the GPU: copies of them, launches, results back.
 *
 * What two passes have in common is there once: a set may share the tensors of another one that come
 * from the same host memory, as a backward pass shares the inputs of its forward pass. */
#include "driver/driver.h"

static gdr_status driver_error(Driver *d, const CudaError *e) {
    return ctx_fail(d->ctx, e->no_memory ? GDR_ENOMEM : GDR_EDRIVER, "%s", e->text);
}

static size_t bytes_of(const gdr_tensor *t) {
    int64_t n = tensor_elements(t->ndim, t->shape, gdr_dtype_size(t->dtype));
    return (size_t)n * gdr_dtype_size(t->dtype);
}

/* The tensor that launches read or write: a copy of host memory, or poison for results. */
static bool take(Driver *d, DeviceSet *s, const DeviceSet *shared, gdr_tensor *t, bool result,
                 CudaError *e) {
    Cuda *cuda = d->ctx->cuda;
    size_t bytes = bytes_of(t);
    int at = s->count;
    for (int i = 0; shared && !result && i < shared->count; i++)
        if (shared->host[i] == t->data) {
            t->device = GDR_CUDA;
            t->data = (void *)(uintptr_t)shared->memory[i];
            return true;
        }
    if (!cuda_alloc(cuda, bytes, &s->memory[at], e))
        return false;
    s->host[at] = t->data;
    s->count++;
    s->tensor_bytes += bytes;
    t->device = GDR_CUDA;
    t->data = (void *)(uintptr_t)s->memory[at];
    return result ? cuda_fill(cuda, s->memory[at], 0xff, bytes, e)
                  : cuda_upload(cuda, s->memory[at], s->host[at], bytes, e);
}

static bool take_all(Driver *d, const Problem *p, const DeviceSet *shared, DeviceSet *s,
                     CudaError *e) {
    for (int i = 0; i < s->launch.nargs; i++)
        if (!take(d, s, shared, &s->arg[i].tensor, i < problem_results(p), e))
            return false;
    for (int i = 0; i < PROBLEM_EXTRA; i++) {
        bool result = (i == EXTRA_S || i == EXTRA_past) && !p->in_place;
        if (s->extra[i].data && !take(d, s, shared, &s->extra[i], result, e))
            return false;
    }
    return true;
}

static gdr_status take_saved(Driver *d, const Problem *p, const Engine *e, DeviceSet *shared,
                             DeviceSet *s) {
    CudaError error;
    uint64_t ptr;
    if (p->grad || !e->save) {
        s->launch.saved = p->grad && shared ? shared->launch.saved : NULL;
        return GDR_OK;
    }
    gdr_status status = gdr_saved_size(e->kernel, &s->launch, &s->saved.bytes);
    if (status)
        return status;
    if (s->saved.bytes && !cuda_alloc(d->ctx->cuda, s->saved.bytes, &ptr, &error))
        return driver_error(d, &error);
    s->saved.data = s->saved.bytes ? (void *)(uintptr_t)ptr : NULL;
    s->launch.saved = &s->saved;
    return GDR_OK;
}

static gdr_status take_workspace(Driver *d, const Engine *e, DeviceSet *s) {
    CudaError error;
    size_t bytes, least;
    if (e->memory == MEMORY_pool)
        return GDR_OK;
    gdr_status status = gdr_workspace_size(e->kernel, &s->launch, &bytes);
    if (!status)
        status = gdr_workspace_least(e->kernel, &s->launch, &least);
    if (status || !bytes)
        return status;
    if (e->memory != MEMORY_default)
        bytes = e->memory == MEMORY_least ? least : least + (bytes - least) / 2;
    if (!cuda_alloc(d->ctx->cuda, bytes, &s->workspace, &error))
        return driver_error(d, &error);
    s->launch.workspace = (void *)(uintptr_t)s->workspace;
    s->launch.workspace_bytes = bytes;
    return GDR_OK;
}

gdr_status device_set_open(Driver *d, const Problem *p, const Engine *e, const Outcome *host,
                           DeviceSet *shared, DeviceSet *s, Arena *arena) {
    CudaError error;
    int most = problem_args(p) + PROBLEM_EXTRA;
    *s = (DeviceSet){
        .host = NEW_ARRAY(arena, const void *, most),
        .memory = NEW_ARRAY(arena, uint64_t, most),
        .arg = NEW_ARRAY(arena, gdr_arg, most),
    };
    s->launch = problem_launch(p, host, s->arg, s->extra);
    gdr_status status =
        take_all(d, p, shared, s, &error) ? GDR_OK : driver_error(d, &error);
    if (!status)
        status = take_saved(d, p, e, shared, s);
    if (!status)
        status = take_workspace(d, e, s);
    if (status)
        device_set_close(d, s);
    return status;
}

void device_set_close(Driver *d, DeviceSet *s) {
    Cuda *cuda = d->ctx->cuda;
    for (int i = 0; i < s->count; i++)
        cuda_free(cuda, s->memory[i]);
    cuda_free(cuda, s->workspace);
    cuda_free(cuda, (uint64_t)(uintptr_t)s->saved.data);
    *s = (DeviceSet){0};
}

gdr_status device_set_launch(const Problem *p, const Engine *e, const DeviceSet *s) {
    return p->grad ? gdr_backward(e->kernel, &s->launch) : gdr_forward(e->kernel, &s->launch);
}

static gdr_status bring_back(Driver *d, const Problem *p, const DeviceSet *s, Outcome *o) {
    Cuda *cuda = d->ctx->cuda;
    CudaError error;
    bool ok = cuda_synchronize(cuda, &error);
    for (int i = 0; ok && i < problem_results(p); i++)
        ok = cuda_download(cuda, o->out[i].data, (uint64_t)(uintptr_t)s->arg[i].tensor.data,
                           o->out[i].bytes, &error);
    const Tensor *state[2] = {&o->S, &o->past};
    for (int i = 0; ok && i < 2; i++)
        ok = !state[i]->data ||
             cuda_download(cuda, state[i]->data,
                           (uint64_t)(uintptr_t)s->extra[i ? EXTRA_past : EXTRA_S].data,
                           state[i]->bytes, &error);
    return ok ? GDR_OK : driver_error(d, &error);
}

gdr_status device_run(Driver *d, const Problem *p, const Engine *e, Arena *arena, Outcome *o) {
    DeviceSet s;
    gdr_status status = device_set_open(d, p, e, o, NULL, &s, arena);
    if (status)
        return status;
    status = device_set_launch(p, e, &s);
    if (!status)
        status = bring_back(d, p, &s, o);
    device_set_close(d, &s);
    return status;
}

gdr_status device_run_training(Driver *d, const Problem *p, const Engine *forward,
                               const Engine *backward, Arena *arena, Outcome *o) {
    Problem first = *p;
    DeviceSet fs, bs;
    first.grad = false;
    Outcome outputs = outcome_new(arena, &first, false);
    *o = outcome_new(arena, p, false);
    gdr_status status = device_set_open(d, &first, forward, &outputs, NULL, &fs, arena);
    if (status)
        return status;
    status = device_set_open(d, p, backward, o, &fs, &bs, arena);
    if (!status) {
        status = device_set_launch(&first, forward, &fs);
        if (!status)
            status = device_set_launch(p, backward, &bs);
        if (!status)
            status = bring_back(d, p, &bs, o);
        device_set_close(d, &bs);
    }
    device_set_close(d, &fs);
    return status;
}
