/* gdrc run: a spec, or its gradients, on the tensors of a file, the results into another.
 *
 * The tensors bind the spec's sizes and, unless --dtype says otherwise, the types: every input
 * keeps its own, outputs take the first input's. Tensors that the spec does not name are refused,
 * so that a misspelt one is not silently missing. */
#include "driver/driver.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* sizes ---------------------------------------------------------------------------------------- */

typedef VEC(gdr_dim) Dims;

static int bind_dim(Driver *d, Dims *dims, const char *name, int64_t size, const char *tensor) {
    for (int i = 0; i < dims->count; i++) {
        if (strcmp(dims->at[i].name, name))
            continue;
        if (dims->at[i].size == size)
            return EXIT_done;
        return fail(EXIT_refused, "%s: %s = %lld here, but %lld before (another tensor or --dim)",
                    tensor, name, (long long)size, (long long)dims->at[i].size);
    }
    gdr_dim dim = {name, size};
    VEC_PUSH(&d->arena, dims, dim);
    return EXIT_done;
}

/* The dims of one declaration from its tensor's trailing sizes. */
static int bind_decl(Driver *d, Dims *dims, const Decl *decl, const TensorFile *f) {
    const Tensor *t = tensors_find(f, decl->name);
    int lead = decl->kind == DECL_param ? 1 : 3;
    if (!t)
        return fail(EXIT_refused, "%s: no tensor %s", d->opt.in, decl->name);
    if (t->ndim != lead + decl->ndims)
        return fail(EXIT_refused, "%s: tensor %s has %d dimensions, need %d ([%s%s])", d->opt.in,
                    decl->name, t->ndim, lead + decl->ndims, lead == 1 ? "heads" : "B,T,heads",
                    decl->ndims ? ",..." : "");
    for (int i = 0; i < decl->ndims; i++) {
        int status = bind_dim(d, dims, decl->dim_name[i], t->shape[lead + i], decl->name);
        if (status)
            return status;
    }
    return EXIT_done;
}

static int bind_dims(Driver *d, const Variant *v, const TensorFile *f, Dims *dims) {
    for (int i = 0; i < d->opt.dim.count; i++)
        VEC_PUSH(&d->arena, dims, d->opt.dim.at[i]);
    for (int i = 0; i < v->decl.count; i++) {
        const Decl *decl = v->decl.at[i];
        if (decl->kind != DECL_in && decl->kind != DECL_param)
            continue;
        int status = bind_decl(d, dims, decl, f);
        if (status)
            return status;
    }
    return EXIT_done;
}

/* tensors -------------------------------------------------------------------------------------- */

/* What a forward pass may have beside S0, by its names in gdr_launch. */
static const struct {
    const char *name;
    size_t offset; /* in Problem */
} decode_tensor[] = {
    {"S0_slots", offsetof(Problem, S0_slots)}, {"S0_accepted", offsetof(Problem, S0_accepted)},
    {"S_slots", offsetof(Problem, S_slots)},   {"S_accepted", offsetof(Problem, S_accepted)},
    {"past0", offsetof(Problem, past0)},
};

/* Whether the file may hold a tensor of this name. */
static bool is_known(const Problem *p, const char *name) {
    for (int i = 0; p->grad && i < p->k->out.count; i++)
        if (!strcmp(p->dname[i], name))
            return true;
    for (size_t i = 0; !p->grad && i < sizeof decode_tensor / sizeof *decode_tensor; i++)
        if (!strcmp(decode_tensor[i].name, name))
            return true;
    return kernel_find_port(p->k, name, false) >= 0 || !strcmp(name, "S0") ||
           !strcmp(name, "cu_seqlens") || (p->grad && !strcmp(name, "dS"));
}

static int refuse_extra(Driver *d, const Problem *p, const TensorFile *f) {
    if (f->other.count)
        return fail(EXIT_refused, "%s: tensor %s is of a type that gdrc does not read", d->opt.in,
                    f->other.at[0]);
    for (int i = 0; i < f->tensor.count; i++) {
        const char *name = f->tensor.at[i].name;
        if (!is_known(p, name))
            return fail(EXIT_refused, "%s: %s has no input called %s", d->opt.in, p->k->name, name);
    }
    return EXIT_done;
}

static bool is_float(gdr_dtype type) {
    return type != GDR_I32 && type != GDR_I64;
}

/* Input i in the type that the kernel takes. */
static int take_input(Driver *d, Problem *p, int i, const TensorFile *f) {
    Port *port = &p->k->in.at[i];
    const Tensor *t = tensors_find(f, port->name);
    if (!is_float(t->dtype))
        return fail(EXIT_refused, "%s: tensor %s is %s, need a floating type", d->opt.in, t->name,
                    gdr_dtype_name(t->dtype));
    gdr_dtype type = port->is_param        ? GDR_F32
                     : d->opt.has_dtype    ? d->opt.dtype
                     : t->dtype == GDR_F64 ? GDR_F32
                                           : t->dtype;
    p->in[i] = tensor_convert(&d->arena, t, type);
    elem_of_dtype(type, &port->elem);
    return EXIT_done;
}

/* Gradients of outputs, in the type of the outputs, and of the final state. */
static int take_upstream(Driver *d, Problem *p, const TensorFile *f) {
    const Tensor *dS = tensors_find(f, "dS");
    bool any = dS != NULL;
    p->dout = NEW_ARRAY(&d->arena, Tensor, p->k->out.count + 1);
    for (int i = 0; i < p->k->out.count; i++) {
        const Tensor *t = tensors_find(f, p->dname[i]);
        if (!t)
            continue;
        any = true;
        if (!is_float(t->dtype))
            return fail(EXIT_refused, "%s: tensor %s is %s, need a floating type", d->opt.in,
                        t->name, gdr_dtype_name(t->dtype));
        p->dout[i] = tensor_convert(&d->arena, t, dtype_of_elem(p->k->out.at[i].elem));
    }
    if (dS)
        p->dS = *dS;
    return any ? EXIT_done
               : fail(EXIT_refused, "%s: no gradient to start from: neither %s nor dS", d->opt.in,
                      p->k->out.count ? p->dname[0] : "one of an output");
}

/* With slots S0 is a pool, and S that pool as it is afterwards. */
static int take_states(Driver *d, Problem *p, const TensorFile *f) {
    const Tensor *S0 = tensors_find(f, "S0");
    for (size_t i = 0; i < sizeof decode_tensor / sizeof *decode_tensor; i++) {
        const Tensor *t = tensors_find(f, decode_tensor[i].name);
        if (t && !p->grad)
            *(Tensor *)((char *)p + decode_tensor[i].offset) = *t;
    }
    if (S0)
        p->S0 = S0->dtype == GDR_F32 ? tensor_convert(&d->arena, S0, p->state_type) : *S0;
    if (!p->S0_slots.data && !p->S_slots.data)
        return EXIT_done;
    if (!S0 || !p->S0_slots.data)
        return fail(EXIT_refused, "%s: no tensor %s, which %s needs", d->opt.in,
                    S0 ? "S0_slots" : "S0", p->S_slots.data ? "S_slots" : "S0_slots");
    if (!p->S_slots.data)
        p->S_slots = p->S0_slots;
    p->in_place = true;
    return EXIT_done;
}

static int take_tensors(Driver *d, Problem *p, const TensorFile *f) {
    int status = refuse_extra(d, p, f);
    Elem io = ELEM_f32;
    p->in = NEW_ARRAY(&d->arena, Tensor, p->k->in.count + 1);
    for (int i = p->k->in.count - 1; !status && i >= 0; i--) {
        status = take_input(d, p, i, f);
        if (!p->k->in.at[i].is_param)
            io = p->k->in.at[i].elem; /* the first declared one stays */
    }
    for (int i = 0; i < p->k->out.count; i++)
        p->k->out.at[i].elem = io;
    if (!status && p->grad)
        status = take_upstream(d, p, f);
    const Tensor *cu = tensors_find(f, "cu_seqlens");
    if (cu)
        p->cu = *cu;
    return status ? status : take_states(d, p, f);
}

static int check_ranges(Driver *d, const Problem *p) {
    for (int i = 0; i < p->k->in.count; i++) {
        const Port *port = &p->k->in.at[i];
        const Tensor *t = &p->in[i];
        for (int64_t j = 0, n = tensor_count(t); j < n; j++) {
            double x = scalar_get(t->dtype, t->data, j);
            if (x < port->lo || x > port->hi)
                return fail(EXIT_refused,
                            "%s: %s has %g at element %lld, outside its declared "
                            "range [%g, %g]",
                            d->opt.in, port->name, x, (long long)j, port->lo, port->hi);
        }
    }
    return EXIT_done;
}

/* the call ------------------------------------------------------------------------------------- */

static int write_outcome(Driver *d, const Problem *p, const Outcome *o) {
    int n = problem_results(p);
    Tensor *t = NEW_ARRAY(&d->arena, Tensor, n + 2);
    char why[512];
    for (int i = 0; i < n; i++)
        t[i] = tensor_convert(&d->arena, &o->out[i], dtype_of_elem(problem_result(p, i)->elem));
    t[n++] = tensor_convert(&d->arena, &o->S, p->state_type);
    if (o->past.data)
        t[n++] = o->past;
    if (!tensors_write(&d->arena, d->opt.out, t, n, why, sizeof why))
        return fail(EXIT_environment, "%s", why);
    return EXIT_done;
}

static int compute(Driver *d, Problem *p) {
    Engine e = {.method = d->opt.method,
                .device = d->opt.device,
                .chunk = d->opt.chunk,
                .only_given = true};
    Outcome o;
    problem_sizes(d, p);
    gdr_facts facts = {.past = 0};
    gdr_status status = engine_open(d, p, &e);
    if (!status && e.kernel)
        gdr_kernel_facts(e.kernel, &facts);
    p->past = p->grad ? 0 : facts.past;
    if (!status)
        status = engine_run(d, p, &e, &d->arena, &o);
    engine_close(&e);
    return status ? fail_status(d, status) : write_outcome(d, p, &o);
}

static int run_on(Driver *d, Spec *s, const Variant *v, const TensorFile *f) {
    Dims dims = {0};
    int status = bind_dims(d, v, f, &dims);
    if (status)
        return status;
    Problem p = {.spec = s, .variant = v->name, .dims = dims.at, .ndims = dims.count};
    p.k = spec_kernel(d, s, v->name, dims.at, dims.count);
    if (!p.k)
        return EXIT_refused;
    if (!d->opt.grad) {
        p.state_type = (gdr_dtype)d->opt.state_type;
        p.state_layout = (gdr_layout)d->opt.state_layout;
    } else {
        p.grad = true;
        p.dname = NEW_ARRAY(&d->arena, const char *, p.k->in.count + p.k->out.count + 1);
        gradient_names(p.k, p.dname);
    }
    status = take_tensors(d, &p, f);
    if (!status && d->opt.check_ranges)
        status = check_ranges(d, &p);
    return status ? status : compute(d, &p);
}

int command_run(Driver *d) {
    if (!d->opt.in || !d->opt.out)
        return fail(EXIT_usage, "run: --in and --out are needed; see gdrc run --help");
    Spec s;
    int status = spec_open(d, d->opt.file.at[0], &s);
    if (status)
        return status;
    const Variant *v = spec_variant(s.file, d->opt.variant, &s.diag);
    if (!v) {
        print_diag(d, &s.diag);
        return EXIT_refused;
    }
    if (!driver_context(d))
        return EXIT_environment;
    TensorFile f;
    char why[512];
    if (!tensors_open(&d->arena, d->opt.in, &f, why, sizeof why))
        return fail(EXIT_refused, "%s", why);
    status = run_on(d, &s, v, &f);
    tensors_close(&f);
    return status;
}
