/* One pass over tensors in memory, forward or backward, computed in any of the ways gdrc has: by
 * the fp64 reference, or by a compiled kernel on the CPU or the GPU. Whatever the way, the tensors
 * go through the same checks of the library first. */
#include "driver/driver.h"

#include <stdlib.h>
#include <string.h>

/* descriptions --------------------------------------------------------------------------------- */

static gdr_tensor describe(const Tensor *t, gdr_device device, void *data) {
    return (gdr_tensor){
        .data = data, .device = device, .dtype = t->dtype, .ndim = t->ndim, .shape = t->shape};
}

int problem_results(const Problem *p) {
    return p->grad ? p->k->in.count : p->k->out.count;
}

const Port *problem_result(const Problem *p, int i) {
    return p->grad ? &p->k->in.at[i] : &p->k->out.at[i];
}

const char *problem_result_name(const Problem *p, int i) {
    return p->grad ? p->dname[p->k->out.count + i] : p->k->out.at[i].name;
}

/* Entries that a launch's args may need. */
static int args_of(const Problem *p) {
    return 2 * p->k->in.count + p->k->out.count + 1;
}

enum { EXTRA = 4 }; /* cu, S0, S or dS0, dS */

/* A launch of host tensors. args has args_of entries, results first. */
static gdr_launch host_launch(const Problem *p, const Outcome *o, gdr_arg *args,
                              gdr_tensor extra[EXTRA]) {
    int n = 0;
    for (int i = 0; i < problem_results(p); i++)
        args[n++] =
            (gdr_arg){problem_result_name(p, i), describe(&o->out[i], GDR_CPU, o->out[i].data)};
    for (int i = 0; i < p->k->in.count; i++)
        args[n++] = (gdr_arg){p->k->in.at[i].name, describe(&p->in[i], GDR_CPU, p->in[i].data)};
    for (int i = 0; p->grad && i < p->k->out.count; i++)
        if (p->dout[i].data)
            args[n++] = (gdr_arg){p->dname[i], describe(&p->dout[i], GDR_CPU, p->dout[i].data)};
    extra[0] = describe(&p->cu, GDR_CPU, p->cu.data);
    extra[1] = describe(&p->S0, GDR_CPU, p->S0.data);
    extra[2] = describe(&o->S, GDR_CPU, o->S.data);
    extra[3] = describe(&p->dS, GDR_CPU, p->dS.data);
    return (gdr_launch){
        .size = sizeof(gdr_launch),
        .args = args,
        .nargs = n,
        .cu_seqlens = p->cu.data ? &extra[0] : NULL,
        .S0 = p->S0.data ? &extra[1] : NULL,
        .S = p->grad ? NULL : &extra[2],
        .dS = p->grad && p->dS.data ? &extra[3] : NULL,
        .dS0 = p->grad ? &extra[2] : NULL,
    };
}

/* What bind.c needs to know of the problem's kernel, without compiling it. */
static void describe_record(Driver *d, const Problem *p, Record *r) {
    Kernel *k = kernel_like(p->k);
    *r = (Record){.shell = k, .target = "host", .algo = ALGO_recurrent, .inputs = k->in.count};
    r->of = NEW_ARRAY(&d->arena, const char *, args_of(p));
    r->factor_reads = NEW_ARRAY(&d->arena, bool, args_of(p));
    if (!p->grad)
        return;
    r->pass = GDR_PASS_BACKWARD;
    k->out.count = 0;
    for (int i = 0; i < p->k->out.count; i++) {
        Port port = p->k->out.at[i];
        port.name = p->dname[i];
        VEC_PUSH(k->arena, &k->in, port);
    }
    for (int i = 0; i < r->inputs; i++) {
        Port port = p->k->in.at[i];
        r->of[k->in.count + i] = port.name;
        port.name = problem_result_name(p, i);
        VEC_PUSH(k->arena, &k->out, port);
    }
}

/* The library's checks, without a compiled kernel. */
static gdr_status check_problem(Driver *d, const Problem *p, const Outcome *o) {
    gdr_tensor extra[EXTRA];
    gdr_arg *args = NEW_ARRAY(&d->arena, gdr_arg, args_of(p));
    BoundLaunch b;
    gdr_kernel shell = {.ctx = d->ctx};
    describe_record(d, p, &shell.rec);
    gdr_launch l = host_launch(p, o, args, extra);
    for (int i = 0; i < problem_results(p); i++) /* the reference's are f64: not what is checked */
        args[i].tensor.dtype = dtype_of_elem(problem_result(p, i)->elem);
    extra[2].dtype = GDR_F32;
    gdr_status status = launch_bind(&shell, &l, BIND_launch, &b);
    launch_free(&b);
    return status;
}

/* sizes ---------------------------------------------------------------------------------------- */

Outcome outcome_new(Arena *a, const Problem *p, bool reference) {
    const Kernel *k = p->k;
    Outcome o = {.out = NEW_ARRAY(a, Tensor, problem_results(p) + 1)};
    for (int i = 0; i < problem_results(p); i++) {
        const Port *port = problem_result(p, i);
        int64_t shape[TENSOR_NDIM_MAX] = {p->B, p->T, p->H};
        int ndim = 3 + port->shape.rank;
        for (int j = 0; j < port->shape.rank; j++)
            shape[3 + j] = k->axis.at[port->shape.axis[j]].size;
        if (p->grad) {
            ndim = p->in[i].ndim;
            memcpy(shape, p->in[i].shape, sizeof shape);
        }
        o.out[i] = tensor_new(a, problem_result_name(p, i),
                              reference ? GDR_F64 : dtype_of_elem(port->elem), ndim, shape);
        tensor_poison(&o.out[i]);
    }
    const int64_t state[4] = {p->N, p->H, k->axis.at[AXIS_K].size, k->axis.at[AXIS_V].size};
    o.S = tensor_new(a, p->grad ? "dS0" : "S", reference ? GDR_F64 : GDR_F32, 4, state);
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
    const char **given = NEW_ARRAY(&d->arena, const char *, k->out.count + 1);
    int ngiven = 0;
    for (int i = 0; p->grad && i < k->out.count; i++)
        if (p->dout[i].data)
            given[ngiven++] = k->out.at[i].name;
    return (gdr_compile_options){
        .size = sizeof(gdr_compile_options),
        .pass = p->grad ? GDR_PASS_BACKWARD : GDR_PASS_FORWARD,
        .upstream = p->grad && e->only_given ? given : NULL,
        .nupstream = ngiven,
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
    gdr_status status = check_problem(d, p, out);
    if (status)
        return status;
    if (reference)
        return run_reference(d, p, out);
    if (e->device == DEVICE_cuda)
        return run_cuda(d, p, e, arena, out);
    return engine_relaunch(p, e, out);
}

gdr_status engine_relaunch(const Problem *p, const Engine *e, Outcome *out) {
    gdr_arg *args = calloc((size_t)args_of(p), sizeof *args);
    if (!args)
        return ctx_fail(e->kernel->ctx, GDR_ENOMEM, "out of memory");
    gdr_tensor extra[EXTRA];
    gdr_launch l = host_launch(p, out, args, extra);
    gdr_status status = p->grad ? gdr_backward(e->kernel, &l) : gdr_forward(e->kernel, &l);
    free(args);
    return status;
}
