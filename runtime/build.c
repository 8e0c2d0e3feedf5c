/* Spec text -> record: the front end, the passes and the code generator in their order.
 *
 *     parse, check, lower        messages about the spec go to the caller
 *     passes up to `normal`      facts: is there a chunk form?
 *     recurrent: codegen         chunk: choose the chunk, remaining passes, codegen
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

/* code ----------------------------------------------------------------------------------------- */

static CgModule *generate(Job *job, const Kernel *k, Algo algo, const char **why) {
    Elem io = ELEM_f32;
    elem_of_dtype(job->opt.dtype, &io);
    CgOptions cg = {
        .target = job->target,
        .cpu = job->extra.cpu,
        .features = job->extra.features,
        .algo = algo,
        .io = io,
        .opt_level = job->opt.opt_level,
        .want_llvm = job->extra.want_llvm,
        .prefix = job->extra.prefix,
    };
    *why = NULL;
    return target_find(job->target)->gpu ? codegen_nvptx(&job->arena, k, &cg, why)
                                         : codegen_host(&job->arena, k, &cg, why);
}

/* The chunk form with `rows` equations; NULL with *why when the target cannot take it. */
static CgModule *generate_chunk(Job *job, const Kernel *normal, int rows, Kernel **tile,
                                const char **why) {
    Kernel *k = kernel_clone(normal);
    kernel_set_chunk(k, rows);
    passes_run_after(k, "normal", NULL, job->extra.watch);
    CHECK(k->level == LEVEL_tile);
    *tile = k;
    return generate(job, k, ALGO_chunk, why);
}

static gdr_status generate_any_chunk(Job *job, const Kernel *normal, Kernel **tile, CgModule **m) {
    static const int choice[] = {64, 32, 16};
    const char *why = NULL;
    if (job->opt.chunk_rows)
        *m = generate_chunk(job, normal, job->opt.chunk_rows, tile, &why);
    for (int i = 0; !job->opt.chunk_rows && i < 3 && !(*m); i++)
        *m = generate_chunk(job, normal, choice[i], tile, &why);
    if (*m)
        return GDR_OK;
    return ctx_fail(job->ctx, GDR_ELIMIT, "%s, target %s: %s", normal->name, job->target,
                    why ? why : "no code");
}

gdr_status job_build(Job *job, Record *out) {
    Kernel *k = NULL;
    CgModule *m = NULL;
    gdr_status status = lower(job, &k);
    if (!status)
        status = set_types(job, k);
    if (status)
        return status;
    passes_run(k, "normal", job->extra.watch);
    if (job->opt.algo == GDR_ALGO_CHUNK && !k->facts.chunkable)
        return no_chunk_form(job, k);
    Algo algo =
        k->facts.chunkable && job->opt.algo != GDR_ALGO_RECURRENT ? ALGO_chunk : ALGO_recurrent;
    if (algo == ALGO_chunk) {
        Kernel *tile = NULL;
        status = generate_any_chunk(job, k, &tile, &m);
        if (!status)
            k = tile;
        else if (status == GDR_ELIMIT && job->opt.algo == GDR_ALGO_AUTO)
            algo = ALGO_recurrent; /* more than the target's chunk kernels hold */
    }
    if (algo == ALGO_recurrent) {
        const char *why;
        m = generate(job, k, algo, &why);
        status = m ? GDR_OK
                   : ctx_fail(job->ctx, GDR_ELIMIT, "%s, target %s: %s", k->name, job->target,
                              why ? why : "no code");
    }
    if (status)
        return status;
    *out = (Record){.shell = k, .module = *m, .algo = algo, .target = job->target};
    out->factor_reads = NEW_ARRAY(&job->arena, bool, k->in.count + 1);
    for (int i = 0; i < k->in.count; i++)
        out->factor_reads[i] = k->level == LEVEL_tile && frame_factor_reads(k, i);
    if (job->cuda)
        status = job_assemble(job, out);
    return status;
}
