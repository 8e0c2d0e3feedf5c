/* Spec text -> record: the front end, the passes and the code generator in their order.
 *
 *     parse, check, lower        messages about the spec go to the caller
 *     passes up to `normal`      facts: is there a chunk form?
 *     recurrent: codegen         chunk: choose the chunk, remaining passes, codegen
 *     backward: the adjoint of the chunk form, or of the recurrence where there is none
 *     GPU, when it is to run here: PTX -> cubins (assemble.c)
 *
 * The chunk's size: as many equations as asked for, else the most that the target takes of 64,
 * 32, 16.
 */
#include "runtime/runtime.h"

#include "frontend/frontend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* messages ------------------------------------------------------------------------------------- */

static void report_span(Job *job, gdr_severity severity, const Source *s, Span span, bool has_span,
                        const char *text) {
    gdr_diagnostic d = {.severity = severity, .file = s->name, .message = text};
    if (has_span) {
        source_locate(s, span.lo, &d.line, &d.column);
        source_locate(s, span.hi, &d.end_line, &d.end_column);
    }
    job->ctx->diag(job->ctx->user, &d);
}

static void report(Job *job, const Diag *d) {
    if (job->extra.diag) {
        job->extra.diag(job->extra.diag_user, d);
        return;
    }
    for (int i = 0; job->ctx->diag && i < d->item.count; i++) {
        const DiagItem *item = &d->item.at[i];
        report_span(job, item->kind == DIAG_error ? GDR_ERROR : GDR_WARNING, d->source, item->span,
                    true, item->text);
        for (int n = 0; n < item->note.count; n++)
            report_span(job, GDR_NOTE, d->source, item->note.at[n].span, item->note.at[n].has_span,
                        item->note.at[n].text);
    }
}

/* The first error becomes the context's last error. */
static gdr_status spec_failed(Job *job, const Diag *d) {
    report(job, d);
    for (int i = 0; i < d->item.count; i++) {
        const DiagItem *item = &d->item.at[i];
        if (item->kind != DIAG_error)
            continue;
        int line, column;
        source_locate(d->source, item->span.lo, &line, &column);
        return ctx_fail(job->ctx, GDR_ESPEC, "%s:%d:%d: %s", d->source->name, line, column,
                        item->text);
    }
    return ctx_fail(job->ctx, GDR_ESPEC, "%s: the spec has errors", d->source->name);
}

/* front end ------------------------------------------------------------------------------------ */

static gdr_status lower(Job *job, Kernel **out) {
    Arena *a = &job->arena;
    Interner *names = NEW(a, Interner);
    intern_init(names, a);
    Diag d;
    diag_init(&d, a, job->source);
    SpecDim *dims = NEW_ARRAY(a, SpecDim, job->opt.ndims + 1);
    for (int i = 0; i < job->opt.ndims; i++) {
        const gdr_dim *dim = &job->opt.dims[i];
        dims[i] = (SpecDim){.name = intern_z(names, dim->name), .size = dim->size};
    }
    SpecBind bind = {.dim = dims, .count = job->opt.ndims};
    SpecFile *file = spec_parse(a, names, job->source, &d);
    Kernel *k = NULL;
    if (!d.errors && spec_check(file, &d))
        k = spec_lower(a, names, file, job->opt.variant, &bind, &d);
    if (!k)
        return spec_failed(job, &d);
    if (d.warnings)
        report(job, &d);
    *out = k;
    return GDR_OK;
}

/* The caller's data types onto the ports. */
static gdr_status set_types(Job *job, Kernel *k) {
    Elem io;
    if (!elem_of_dtype(job->opt.dtype, &io) || io == ELEM_f64)
        return ctx_fail(job->ctx, GDR_EUSAGE, "%s is not a type of inputs and outputs",
                        gdr_dtype_name(job->opt.dtype));
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : io;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = io;
    for (int i = 0; i < job->opt.ntypes; i++) {
        const gdr_port_dtype *t = &job->opt.types[i];
        int port = t->name ? kernel_find_port(k, t->name, false) : -1;
        if (port < 0)
            return ctx_fail(job->ctx, GDR_EUSAGE, "%s has no input called %s", k->name,
                            t->name ? t->name : "(null)");
        if (k->in.at[port].is_param ? t->dtype != GDR_F32
                                    : !elem_of_dtype(t->dtype, &io) || io == ELEM_f64)
            return ctx_fail(job->ctx, GDR_EUSAGE, "%s cannot be %s", t->name,
                            gdr_dtype_name(t->dtype));
        if (!k->in.at[port].is_param)
            k->in.at[port].elem = io;
    }
    return GDR_OK;
}

static gdr_status no_chunk_form(Job *job, const Kernel *k) {
    int line, column;
    source_locate(job->source, k->facts.where.lo, &line, &column);
    return ctx_fail(job->ctx, GDR_ELIMIT, "%s:%d:%d: %s has no chunk form: %s", job->source->name,
                    line, column, k->name, k->facts.why_not ? k->facts.why_not : "unknown");
}

/* gradients ------------------------------------------------------------------------------------ */

/* One bit for each port that is named; all without names. */
static gdr_status mark_ports(Job *job, const Kernel *k, bool outputs, const char *const *name,
                             int n, uint64_t *mark) {
    *mark = name ? 0 : ~UINT64_C(0);
    for (int i = 0; name && i < n; i++) {
        int port = name[i] ? kernel_find_port(k, name[i], outputs) : -1;
        if (port < 0)
            return ctx_fail(job->ctx, GDR_EUSAGE, "%s has no %s called %s", k->name,
                            outputs ? "output" : "input or parameter",
                            name[i] ? name[i] : "(null)");
        *mark |= UINT64_C(1) << port;
    }
    return GDR_OK;
}

static gdr_status mark_gradients(Job *job, const Kernel *k) {
    const gdr_compile_options *o = &job->opt;
    if (k->in.count > GRADIENT_PORTS || k->out.count > GRADIENT_PORTS)
        return ctx_fail(job->ctx, GDR_ELIMIT,
                        "%s has %d inputs and %d outputs; with gradients there "
                        "may be %d of each",
                        k->name, k->in.count, k->out.count, GRADIENT_PORTS);
    gdr_status status = mark_ports(job, k, true, o->upstream, o->nupstream, &job->upstream);
    return status ? status
                  : mark_ports(job, k, false, o->gradients, o->ngradients, &job->gradients);
}

/* The gradient kernel of a forward one, its ports named as callers know them. */
static Kernel *make_gradient(const Job *job, const Kernel *forward, const char ***of) {
    Kernel *k = kernel_adjoint(forward, job->upstream, job->gradients);
    int nin = forward->in.count, nout = forward->out.count, in = nin, out = 0;
    const char **name = NEW_ARRAY(forward->arena, const char *, nin + nout);
    gradient_names(forward, name);
    *of = NEW_ARRAY(forward->arena, const char *, k->in.count + k->out.count + 1);
    for (int v = 0; v < forward->inst.count; v++) {
        const Inst *i = inst_at(forward, v);
        if (i->op != OP_out || !(job->upstream >> i->index & 1))
            continue;
        (*of)[in] = forward->out.at[i->index].name;
        k->in.at[in++].name = name[i->index];
    }
    for (int p = 0; p < nin; p++) {
        if (!(job->gradients >> p & 1))
            continue;
        (*of)[k->in.count + out] = forward->in.at[p].name;
        k->out.at[out++].name = name[nout + p];
    }
    CHECK(in == k->in.count && out == k->out.count);
    k->name = forward->name;
    return k;
}

/* code ----------------------------------------------------------------------------------------- */

static bool saves(const Job *job, Algo algo, gdr_save what) {
    return job->opt.pass == GDR_PASS_FORWARD && job->opt.save == what && algo == ALGO_chunk &&
           target_find(job->target)->gpu;
}

static CgModule *generate(Job *job, const Kernel *k, Algo algo, const char **why) {
    Elem io = ELEM_f32, state = ELEM_f32;
    elem_of_dtype(job->opt.dtype, &io);
    elem_of_dtype(job->opt.state_dtype, &state);
    CgOptions cg = {
        .target = job->target,
        .cpu = job->extra.cpu,
        .features = job->extra.features,
        .algo = algo,
        .io = io,
        .state = state,
        .state_vk = job->opt.state_layout == GDR_LAYOUT_VK,
        .v_tile = algo == ALGO_chunk ? job->extra.v_tile : 0,
        .opt_level = job->opt.opt_level,
        .save_every = saves(job, algo, GDR_SAVE_STATES)
                          ? save_every(k->axis.at[AXIS_K].size, k->axis.at[AXIS_V].size,
                                       k->axis.at[AXIS_C].size)
                          : 0,
        .save_all = saves(job, algo, GDR_SAVE_ALL),
        .want_llvm = job->extra.want_llvm,
        .sizes_only = job->extra.sizes_only,
        .prefix = job->extra.prefix,
    };
    *why = NULL;
    return target_find(job->target)->gpu ? codegen_nvptx(&job->arena, k, &cg, why)
                                         : codegen_host(&job->arena, k, &cg, why);
}

/* The chunk form with `rows` equations; NULL with *why when the target cannot take it. */
static CgModule *generate_chunk(Job *job, const Kernel *normal, int rows, Record *r,
                                const char **why) {
    Kernel *k = kernel_clone(normal);
    kernel_set_chunk(k, rows);
    if (job->opt.pass == GDR_PASS_BACKWARD) {
        passes_run_after(k, "normal", "peel", job->extra.watch);
        k = make_gradient(job, k, &r->of);
        passes_run_after(k, "collapse", NULL, job->extra.watch);
    } else {
        passes_run_after(k, "normal", NULL, job->extra.watch);
    }
    CHECK(k->level == LEVEL_tile);
    r->shell = k;
    return generate(job, k, ALGO_chunk, why);
}

static gdr_status generate_any_chunk(Job *job, const Kernel *normal, Record *r) {
    static const int choice[] = {64, 32, 16};
    const char *why = NULL;
    CgModule *m = NULL;
    if (job->opt.chunk_rows)
        m = generate_chunk(job, normal, job->opt.chunk_rows, r, &why);
    for (int i = 0; !job->opt.chunk_rows && i < 3 && !m; i++)
        m = generate_chunk(job, normal, choice[i], r, &why);
    if (m) {
        r->module = *m;
        return GDR_OK;
    }
    return ctx_fail(job->ctx, GDR_ELIMIT, "%s, target %s: %s", normal->name, job->target,
                    why ? why : "no code");
}

static gdr_status generate_recurrent(Job *job, Kernel *k, Record *r) {
    const char *why;
    if (job->opt.pass == GDR_PASS_BACKWARD)
        k = make_gradient(job, k, &r->of);
    CgModule *m = generate(job, k, ALGO_recurrent, &why);
    if (!m)
        return ctx_fail(job->ctx, GDR_ELIMIT, "%s, target %s: %s", k->name, job->target,
                        why ? why : "no code");
    r->shell = k;
    r->module = *m;
    return GDR_OK;
}

static gdr_status generate_any(Job *job, Kernel *k, Record *r) {
    gdr_status status = GDR_OK;
    if (job->opt.algo == GDR_ALGO_CHUNK && !k->facts.chunkable)
        return no_chunk_form(job, k);
    if (k->facts.chunkable && job->opt.algo != GDR_ALGO_RECURRENT) {
        r->algo = ALGO_chunk;
        status = generate_any_chunk(job, k, r);
        /* Otherwise more than the target's chunk kernels hold. */
        if (status != GDR_ELIMIT || job->opt.algo != GDR_ALGO_AUTO)
            return status;
    }
    r->algo = ALGO_recurrent;
    return generate_recurrent(job, k, r);
}

gdr_status job_build(Job *job, Record *out) {
    Kernel *k = NULL;
    gdr_status status = lower(job, &k);
    if (!status)
        status = set_types(job, k);
    if (!status && job->opt.pass == GDR_PASS_BACKWARD)
        status = mark_gradients(job, k);
    if (status)
        return status;
    int inputs = k->in.count;
    passes_run(k, "normal", job->extra.watch);
    *out = (Record){
        .target = job->target, .pass = job->opt.pass, .save = job->opt.save, .inputs = inputs};
    elem_of_dtype(job->opt.state_dtype, &out->state);
    out->state_vk = job->opt.state_layout == GDR_LAYOUT_VK;
    status = generate_any(job, k, out);
    if (status)
        return status;
    k = out->shell;
    if (!out->of)
        out->of = NEW_ARRAY(&job->arena, const char *, k->in.count + k->out.count + 1);
    out->factor_reads = NEW_ARRAY(&job->arena, bool, k->in.count + 1);
    for (int i = 0; i < k->in.count; i++)
        out->factor_reads[i] = k->level == LEVEL_tile && frame_factor_reads(k, i);
    if (job->cuda)
        status = job_assemble(job, out);
    return status;
}
