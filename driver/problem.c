/* One pass over tensors in memory, forward or backward, computed in any of the ways gdrc has: by
 * the fp64 reference, or by a compiled kernel on the CPU or the GPU (device.c). Whatever the way, the
 * tensors go through the same checks of the library first. */
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

int problem_args(const Problem *p) {
    return 2 * p->k->in.count + p->k->out.count + 1;
}

gdr_launch problem_launch(const Problem *p, const Outcome *o, gdr_arg *args,
                          gdr_tensor extra[PROBLEM_EXTRA]) {
    int n = 0;
    for (int i = 0; i < problem_results(p); i++)
        args[n++] =
            (gdr_arg){problem_result_name(p, i), describe(&o->out[i], GDR_CPU, o->out[i].data)};
    for (int i = 0; i < p->k->in.count; i++)
        args[n++] = (gdr_arg){p->k->in.at[i].name, describe(&p->in[i], GDR_CPU, p->in[i].data)};
    for (int i = 0; p->grad && i < p->k->out.count; i++)
        if (p->dout[i].data)
            args[n++] = (gdr_arg){p->dname[i], describe(&p->dout[i], GDR_CPU, p->dout[i].data)};
    const Tensor *tensor[PROBLEM_EXTRA] = {
        &p->cu,          &p->S0,      &o->S,          &p->dS,    &p->S0_slots,
        &p->S0_accepted, &p->S_slots, &p->S_accepted, &p->past0, &o->past};
    const gdr_tensor *at[PROBLEM_EXTRA];
    for (int i = 0; i < PROBLEM_EXTRA; i++) {
        bool unused = (i == EXTRA_dS && !p->grad) ||
                      (p->in_place && (i == EXTRA_S0 || i == EXTRA_past0));
        extra[i] = describe(tensor[i], GDR_CPU, unused ? NULL : tensor[i]->data);
        at[i] = extra[i].data ? &extra[i] : NULL;
    }
    return (gdr_launch){
        .size = sizeof(gdr_launch),
        .args = args,
        .nargs = n,
        .cu_seqlens = at[EXTRA_cu],
        .S0 = at[p->in_place ? EXTRA_S : EXTRA_S0],
        .S = p->grad ? NULL : at[EXTRA_S],
        .dS = p->grad ? at[EXTRA_dS] : NULL,
        .dS0 = p->grad ? at[EXTRA_S] : NULL,
        .S0_slots = at[EXTRA_S0_slots],
        .S0_accepted = at[EXTRA_S0_accepted],
        .S_slots = at[EXTRA_S_slots],
        .S_accepted = at[EXTRA_S_accepted],
        .past0 = at[p->in_place ? EXTRA_past : EXTRA_past0],
        .past = at[EXTRA_past],
    };
}

/* What bind.c needs to know of the problem's kernel, without compiling it. */
static void describe_record(Driver *d, const Problem *p, Record *r) {
    Kernel *k = kernel_like(p->k);
    *r = (Record){.shell = k, .target = "host", .algo = ALGO_recurrent, .inputs = k->in.count};
    r->module.past = p->past;
    elem_of_dtype(p->state_type, &r->state);
    r->state_vk = p->state_layout == GDR_LAYOUT_VK;
    r->of = NEW_ARRAY(&d->arena, const char *, problem_args(p));
    r->factor_reads = NEW_ARRAY(&d->arena, bool, problem_args(p));
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
    gdr_tensor extra[PROBLEM_EXTRA];
    gdr_arg *args = NEW_ARRAY(&d->arena, gdr_arg, problem_args(p));
    BoundLaunch b;
    gdr_kernel shell = {.ctx = d->ctx};
    describe_record(d, p, &shell.rec);
    gdr_launch l = problem_launch(p, o, args, extra);
    for (int i = 0; i < problem_results(p); i++) /* the reference's are f64: not what is checked */
        args[i].tensor.dtype = dtype_of_elem(problem_result(p, i)->elem);
    extra[EXTRA_S].dtype = p->state_type;
    gdr_status status = launch_bind(&shell, &l, BIND_launch, &b);
    launch_free(&b);
    return status;
}

/* states --------------------------------------------------------------------------------------- */

static void start_as(Arena *a, Tensor *t, const Tensor *from) {
    Tensor c = tensor_convert(a, from, t->dtype);
    memcpy(t->data, c.data, t->bytes);
}

static void outcome_states(Arena *a, const Problem *p, bool reference, Outcome *o) {
    int64_t K = p->k->axis.at[AXIS_K].size, V = p->k->axis.at[AXIS_V].size;
    bool vk = p->state_layout == GDR_LAYOUT_VK;
    int64_t state[5], past[4];
    int n = 0;
    state[n++] = past[0] = p->in_place ? p->S0.shape[0] : p->N;
    if (p->each)
        state[n++] = past[1] = p->each;
    past[n] = state[n] = p->H;
    past[n + 1] = p->past;
    state[n + 1] = vk ? V : K;
    state[n + 2] = vk ? K : V;
    o->S = tensor_new(a, p->grad ? "dS0" : "S", reference ? GDR_F64 : p->state_type, n + 3, state);
    tensor_poison(&o->S);
    if (p->in_place)
        start_as(a, &o->S, &p->S0);
    if (!p->past)
        return;
    o->past = tensor_new(a, "past", GDR_F32, n + 2, past);
    if (!p->in_place)
        tensor_poison(&o->past);
    else if (p->past0.data)
        start_as(a, &o->past, &p->past0);
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
    outcome_states(a, p, reference, &o);
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
        .state_dtype = p->grad ? GDR_F32 : p->state_type,
        .state_layout = p->grad ? GDR_LAYOUT_KV : p->state_layout,
        .save = p->grad ? GDR_SAVE_NOTHING : e->save,
    };
}

gdr_status engine_open(Driver *d, const Problem *p, Engine *e) {
    e->kernel = NULL;
    if (e->method == METHOD_reference)
        return GDR_OK;
    gdr_compile_options o = problem_options(d, p, e);
    CompileInput input = {.source = p->spec->source};
    CompileExtra extra = {.watch = driver_watch(d),
                          .diag = print_diag_callback,
                          .diag_user = d,
                          .v_tile = d->opt.v_tile};
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
        return device_run(d, p, e, arena, out);
    return engine_relaunch(p, e, out);
}

gdr_status engine_relaunch(const Problem *p, const Engine *e, Outcome *out) {
    gdr_arg *args = calloc((size_t)problem_args(p), sizeof *args);
    if (!args)
        return ctx_fail(e->kernel->ctx, GDR_ENOMEM, "out of memory");
    gdr_tensor extra[PROBLEM_EXTRA];
    gdr_launch l = problem_launch(p, out, args, extra);
    gdr_status status = p->grad ? gdr_backward(e->kernel, &l) : gdr_forward(e->kernel, &l);
    free(args);
    return status;
}
