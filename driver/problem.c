/* One forward pass over tensors in memory, computed in any of the ways gdrc has: by the fp64
 * reference, or by a compiled kernel on the CPU or the GPU. Whatever the way, the tensors go
 * through the same checks of the library first. */
#include "driver/driver.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* descriptions --------------------------------------------------------------------------------- */

static gdr_tensor describe(const Tensor *t, gdr_device device, void *data) {
    return (gdr_tensor){
        .data = data, .device = device, .dtype = t->dtype, .ndim = t->ndim, .shape = t->shape};
}

/* A launch of host tensors. args has in.count + out.count entries, extra[3] takes cu, S0, S. */
static gdr_launch host_launch(const Problem *p, const Outcome *o, gdr_arg *args,
                              gdr_tensor *extra) {
    int n = 0;
    for (int i = 0; i < p->k->in.count; i++)
        args[n++] = (gdr_arg){p->k->in.at[i].name, describe(&p->in[i], GDR_CPU, p->in[i].data)};
    for (int i = 0; i < p->k->out.count; i++)
        args[n++] = (gdr_arg){p->k->out.at[i].name, describe(&o->out[i], GDR_CPU, o->out[i].data)};
    extra[0] = describe(&p->cu, GDR_CPU, p->cu.data);
    extra[1] = describe(&p->S0, GDR_CPU, p->S0.data);
    extra[2] = describe(&o->S, GDR_CPU, o->S.data);
    return (gdr_launch){
        .size = sizeof(gdr_launch),
        .args = args,
        .nargs = n,
        .cu_seqlens = p->cu.data ? &extra[0] : NULL,
        .S0 = p->S0.data ? &extra[1] : NULL,
        .S = &extra[2],
    };
}

/* The library's checks, without a compiled kernel. */
static gdr_status check_problem(Driver *d, const Problem *p, const Outcome *o, gdr_arg *args) {
    gdr_tensor extra[3];
    BoundLaunch b;
    gdr_kernel shell = {.ctx = d->ctx,
                        .rec = {.shell = p->k,
                                .target = "host",
                                .algo = ALGO_recurrent,
                                .inputs = p->k->in.count}};
    shell.rec.factor_reads = NEW_ARRAY(&d->arena, bool, p->k->in.count + 1);
    gdr_launch l = host_launch(p, o, args, extra);
    for (int i = 0; i < p->k->out.count; i++) /* the reference's are f64: not what is checked */
        args[p->k->in.count + i].tensor.dtype = dtype_of_elem(p->k->out.at[i].elem);
    extra[2].dtype = GDR_F32;
    gdr_status status = launch_bind(&shell, &l, false, &b);
    launch_free(&b);
    return status;
}

/* sizes ---------------------------------------------------------------------------------------- */

Outcome outcome_new(Arena *a, const Problem *p, bool reference) {
    const Kernel *k = p->k;
    Outcome o = {.out = NEW_ARRAY(a, Tensor, k->out.count)};
    for (int i = 0; i < k->out.count; i++) {
        const Port *port = &k->out.at[i];
        int64_t shape[TENSOR_NDIM_MAX] = {p->B, p->T, p->H};
        for (int j = 0; j < port->shape.rank; j++)
            shape[3 + j] = k->axis.at[port->shape.axis[j]].size;
        o.out[i] = tensor_new(a, port->name, reference ? GDR_F64 : dtype_of_elem(port->elem),
                              3 + port->shape.rank, shape);
        tensor_poison(&o.out[i]);
    }
    const int64_t state[4] = {p->N, p->H, k->axis.at[AXIS_K].size, k->axis.at[AXIS_V].size};
    o.S = tensor_new(a, "S", reference ? GDR_F64 : GDR_F32, 4, state);
    tensor_poison(&o.S);
    return o;
}

gdr_status problem_sizes(Driver *d, Problem *p) {
    (void)d;
    p->B = p->T = p->H = 0;
    bool first = true;
    for (int i = 0; i < p->k->in.count; i++) {
        const Tensor *t = &p->in[i];
        int lead = p->k->in.at[i].is_param ? 0 : 2;
        if (t->ndim > lead && t->shape[lead] > p->H)
            p->H = t->shape[lead];
        if (!p->k->in.at[i].is_param && first && t->ndim > 2) {
            p->B = t->shape[0];
            p->T = t->shape[1];
            first = false;
        }
    }
    p->N = p->cu.data ? (p->cu.ndim == 1 && p->cu.shape[0] > 0 ? p->cu.shape[0] - 1 : 0) : p->B;
    return GDR_OK;
}

/* the reference -------------------------------------------------------------------------------- */

typedef struct ReferenceJob {
    const Problem *p;
    Outcome *o;
    SpecBind bind;
    atomic_int_fast64_t next;
    atomic_bool no_memory, refused;
} ReferenceJob;

static void sequence_of(const Problem *p, int64_t n, int64_t *begin, int64_t *length) {
    if (p->cu.data) {
        *begin = (int64_t)scalar_get(p->cu.dtype, p->cu.data, n);
        *length = (int64_t)scalar_get(p->cu.dtype, p->cu.data, n + 1) - *begin;
    } else {
        *begin = n * p->T;
        *length = p->T;
    }
}

/* Rows begin .. begin+rows-1 of head h of a [.., heads, elements] tensor. */
static double *gather(Arena *a, const Tensor *t, int64_t begin, int64_t rows, int64_t heads,
                      int64_t head, int64_t elements) {
    double *x = NEW_ARRAY(a, double, rows *elements);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < elements; e++)
            x[r * elements + e] =
                scalar_get(t->dtype, t->data, ((begin + r) * heads + head) * elements + e);
    return x;
}

static void reference_task(ReferenceJob *job, Arena *a, int64_t n, int64_t h) {
    const Problem *p = job->p;
    const Kernel *k = p->k;
    int64_t begin, length;
    int64_t state = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
    sequence_of(p, n, &begin, &length);
    const double **in = NEW_ARRAY(a, const double *, k->in.count + 1);
    double **out = NEW_ARRAY(a, double *, k->out.count + 1);
    for (int i = 0; i < k->in.count; i++) {
        bool param = k->in.at[i].is_param;
        int64_t heads = p->in[i].shape[param ? 0 : 2];
        in[i] = gather(a, &p->in[i], param ? 0 : begin, param ? 1 : length, heads, h * heads / p->H,
                       shape_elements(k, k->in.at[i].shape));
    }
    for (int i = 0; i < k->out.count; i++)
        out[i] = NEW_ARRAY(a, double, length *shape_elements(k, k->out.at[i].shape));
    double *S = p->S0.data ? gather(a, &p->S0, n, 1, p->H, h, state) : NEW_ARRAY(a, double, state);
    EvalArgs args = {.T = length, .in = in, .out = out, .state = S};
    Diag diag;
    diag_init(&diag, a, p->spec->source);
    if (!reference_run(a, p->spec->file, p->variant, &job->bind, &args, &diag)) {
        atomic_store(&job->refused, true);
        return;
    }
    for (int i = 0; i < k->out.count; i++) {
        int64_t elements = shape_elements(k, k->out.at[i].shape);
        for (int64_t t = 0; t < length; t++)
            memcpy((double *)job->o->out[i].data + ((begin + t) * p->H + h) * elements,
                   out[i] + t * elements, (size_t)elements * sizeof(double));
    }
    memcpy((double *)job->o->S.data + (n * p->H + h) * state, S, (size_t)state * sizeof(double));
}

static void *reference_thread(void *user) {
    ReferenceJob *job = user;
    Arena arena;
    jmp_buf oom;
    arena_init(&arena, &oom);
    if (setjmp(oom)) {
        atomic_store(&job->no_memory, true);
    } else {
        for (;;) {
            int64_t i = atomic_fetch_add(&job->next, 1);
            if (i >= job->p->N * job->p->H)
                break;
            reference_task(job, &arena, i / job->p->H, i % job->p->H);
            arena_free(&arena);
        }
    }
    arena_free(&arena);
    return NULL;
}

static gdr_status run_reference(Driver *d, const Problem *p, Outcome *o) {
    ReferenceJob job = {.p = p, .o = o};
    SpecDim *dim = NEW_ARRAY(&d->arena, SpecDim, p->ndims + 1);
    for (int i = 0; i < p->ndims; i++)
        dim[i] = (SpecDim){intern_z(&p->spec->names, p->dims[i].name), p->dims[i].size};
    job.bind = (SpecBind){dim, p->ndims};
    enum { THREADS_MAX = 64 };
    pthread_t thread[THREADS_MAX];
    long n = d->opt.threads ? d->opt.threads : sysconf(_SC_NPROCESSORS_ONLN);
    int started = 0;
    while (started < n - 1 && started < THREADS_MAX &&
           !pthread_create(&thread[started], NULL, reference_thread, &job))
        started++;
    reference_thread(&job);
    for (int i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    if (atomic_load(&job.no_memory))
        return ctx_fail(d->ctx, GDR_ENOMEM, "out of memory");
    if (atomic_load(&job.refused))
        return ctx_fail(d->ctx, GDR_EINPUT, "%s: the sizes cannot be bound", p->spec->path);
    return GDR_OK;
}

/* the GPU -------------------------------------------------------------------------------------- */

static gdr_status driver_error(Driver *d, const CudaError *e) {
    return ctx_fail(d->ctx, e->no_memory ? GDR_ENOMEM : GDR_EDRIVER, "%s", e->text);
}

static bool to_device(Driver *d, const Tensor *t, bool copy, uint64_t *ptr, CudaError *e) {
    Cuda *cuda = d->ctx->cuda;
    if (!cuda_alloc(cuda, t->bytes, ptr, e))
        return false;
    return copy ? cuda_upload(cuda, *ptr, t->data, t->bytes, e)
                : cuda_fill(cuda, *ptr, 0xff, t->bytes, e);
}

static bool fill_set(Driver *d, const Problem *p, const Outcome *host, DeviceSet *s, CudaError *e) {
    int n = 0;
    for (int i = 0; i < p->k->in.count; i++) {
        if (!to_device(d, &p->in[i], true, &s->in[i], e))
            return false;
        s->arg[n++] = (gdr_arg){p->k->in.at[i].name,
                                describe(&p->in[i], GDR_CUDA, (void *)(uintptr_t)s->in[i])};
    }
    for (int i = 0; i < p->k->out.count; i++) {
        if (!to_device(d, &host->out[i], false, &s->out[i], e))
            return false;
        s->arg[n++] = (gdr_arg){p->k->out.at[i].name,
                                describe(&host->out[i], GDR_CUDA, (void *)(uintptr_t)s->out[i])};
    }
    if (p->cu.data && !to_device(d, &p->cu, true, &s->cu, e))
        return false;
    if (p->S0.data && !to_device(d, &p->S0, true, &s->S0, e))
        return false;
    if (!to_device(d, &host->S, false, &s->S, e))
        return false;
    s->cu_tensor = describe(&p->cu, GDR_CUDA, (void *)(uintptr_t)s->cu);
    s->S0_tensor = describe(&p->S0, GDR_CUDA, (void *)(uintptr_t)s->S0);
    s->S_tensor = describe(&host->S, GDR_CUDA, (void *)(uintptr_t)s->S);
    s->launch = (gdr_launch){.size = sizeof(gdr_launch),
                             .args = s->arg,
                             .nargs = n,
                             .cu_seqlens = s->cu ? &s->cu_tensor : NULL,
                             .S0 = s->S0 ? &s->S0_tensor : NULL,
                             .S = &s->S_tensor};
    return true;
}

gdr_status device_set_open(Driver *d, const Problem *p, const Engine *e, Outcome *host,
                           DeviceSet *s, Arena *arena) {
    CudaError error;
    *s = (DeviceSet){
        .in = NEW_ARRAY(arena, uint64_t, p->k->in.count + 1),
        .out = NEW_ARRAY(arena, uint64_t, p->k->out.count + 1),
        .arg = NEW_ARRAY(arena, gdr_arg, p->k->in.count + p->k->out.count),
    };
    if (!fill_set(d, p, host, s, &error)) {
        device_set_close(d, p, s);
        return driver_error(d, &error);
    }
    gdr_status status = gdr_workspace_size(e->kernel, &s->launch, &s->workspace_bytes);
    if (!status && s->workspace_bytes &&
        !cuda_alloc(d->ctx->cuda, s->workspace_bytes, &s->workspace, &error))
        status = driver_error(d, &error);
    if (status) {
        device_set_close(d, p, s);
        return status;
    }
    s->launch.workspace = (void *)(uintptr_t)s->workspace;
    s->launch.workspace_bytes = s->workspace_bytes;
    return GDR_OK;
}

void device_set_close(Driver *d, const Problem *p, DeviceSet *s) {
    Cuda *cuda = d->ctx->cuda;
    for (int i = 0; i < p->k->in.count; i++)
        cuda_free(cuda, s->in[i]);
    for (int i = 0; i < p->k->out.count; i++)
        cuda_free(cuda, s->out[i]);
    cuda_free(cuda, s->S0);
    cuda_free(cuda, s->S);
    cuda_free(cuda, s->cu);
    cuda_free(cuda, s->workspace);
}

static gdr_status run_cuda(Driver *d, const Problem *p, const Engine *e, Arena *arena, Outcome *o) {
    DeviceSet s;
    CudaError error;
    gdr_status status = device_set_open(d, p, e, o, &s, arena);
    if (status)
        return status;
    status = gdr_forward(e->kernel, &s.launch);
    bool ok = !status && cuda_synchronize(d->ctx->cuda, &error);
    for (int i = 0; ok && i < p->k->out.count; i++)
        ok = cuda_download(d->ctx->cuda, o->out[i].data, s.out[i], o->out[i].bytes, &error);
    ok = ok && cuda_download(d->ctx->cuda, o->S.data, s.S, o->S.bytes, &error);
    device_set_close(d, p, &s);
    return status ? status : ok ? GDR_OK : driver_error(d, &error);
}

/* engines -------------------------------------------------------------------------------------- */

gdr_compile_options problem_options(Driver *d, const Problem *p, const Engine *e) {
    const Kernel *k = p->k;
    gdr_port_dtype *types = NEW_ARRAY(&d->arena, gdr_port_dtype, k->in.count + 1);
    int ntypes = 0;
    gdr_dtype io = dtype_of_elem(k->out.at[0].elem);
    for (int i = 0; i < k->in.count; i++)
        if (!k->in.at[i].is_param && dtype_of_elem(k->in.at[i].elem) != io)
            types[ntypes++] = (gdr_port_dtype){k->in.at[i].name, dtype_of_elem(k->in.at[i].elem)};
    return (gdr_compile_options){
        .size = sizeof(gdr_compile_options),
        .variant = p->variant,
        .dims = p->dims,
        .ndims = p->ndims,
        .dtype = io,
        .types = types,
        .ntypes = ntypes,
        .target = e->device == DEVICE_cuda ? "cuda" : "host",
        .algo = e->method == METHOD_chunk       ? GDR_ALGO_CHUNK
                : e->method == METHOD_recurrent ? GDR_ALGO_RECURRENT
                                                : GDR_ALGO_AUTO,
        .chunk_rows = e->chunk,
        .opt_level = d->opt.opt_level,
    };
}

gdr_status engine_open(Driver *d, const Problem *p, Engine *e) {
    e->kernel = NULL;
    if (e->method == METHOD_reference)
        return GDR_OK;
    gdr_compile_options o = problem_options(d, p, e);
    CompileInput input = {.source = p->spec->source};
    CompileExtra extra = {.watch = driver_watch(d), .diag = print_diag_callback, .diag_user = d};
    return compile_input(d->ctx, &input, &o, &extra, &e->kernel);
}

void engine_close(Engine *e) {
    gdr_kernel_destroy(e->kernel);
    e->kernel = NULL;
}

gdr_status engine_run(Driver *d, const Problem *p, const Engine *e, Arena *arena, Outcome *out) {
    bool reference = e->method == METHOD_reference;
    *out = outcome_new(arena, p, reference);
    gdr_arg *args = NEW_ARRAY(arena, gdr_arg, p->k->in.count + p->k->out.count);
    gdr_status status = check_problem(d, p, out, args);
    if (status)
        return status;
    if (reference)
        return run_reference(d, p, out);
    if (e->device == DEVICE_cuda)
        return run_cuda(d, p, e, arena, out);
    return engine_relaunch(p, e, out);
}

gdr_status engine_relaunch(const Problem *p, const Engine *e, Outcome *out) {
    gdr_arg *args = calloc((size_t)(p->k->in.count + p->k->out.count), sizeof *args);
    if (!args)
        return ctx_fail(e->kernel->ctx, GDR_ENOMEM, "out of memory");
    gdr_tensor extra[3];
    gdr_launch l = host_launch(p, out, args, extra);
    gdr_status status = gdr_forward(e->kernel, &l);
    free(args);
    return status;
}
