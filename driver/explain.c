/* gdrc explain: what the compiler makes of a spec. */
#include "driver/driver.h"

#include <string.h>

enum { EXPLAIN_ROWS = 64 }; /* equations of the chunk system that is shown */
#define EXPLAIN_GPU "sm_90a" /* whose memory is told of */

/* Its last error, kept. */
static const char *reason(Driver *d) {
    const char *why = gdr_last_error(d->ctx);
    return arena_strndup(&d->arena, why, strlen(why));
}

/* What the kernels of a target need, by compiling all of them but the code. */
static Footprint footprint(Driver *d, const Kernel *normal, const char *target, gdr_pass pass) {
    gdr_compile_options o = {
        .size = sizeof o,
        .variant = normal->name,
        .dims = d->opt.dim.at,
        .ndims = d->opt.dim.count,
        .dtype = GDR_BF16,
        .target = target,
        .pass = pass,
        .algo = normal->facts.chunkable ? GDR_ALGO_CHUNK : GDR_ALGO_RECURRENT,
        .save = pass == GDR_PASS_FORWARD ? GDR_SAVE_STATES : GDR_SAVE_NOTHING,
    };
    CompileExtra extra = {.diag = print_diag_callback,
                          .diag_user = d,
                          .no_cache = true,
                          .no_load = true,
                          .sizes_only = true};
    CompileInput input = {.source = normal->source};
    gdr_kernel *k;
    Footprint f = {0};
    if (compile_input(d->ctx, &input, &o, &extra, &k)) {
        f.why_not = reason(d);
        o.algo = GDR_ALGO_RECURRENT;
        if (compile_input(d->ctx, &input, &o, &extra, &k)) {
            f.why_not = reason(d);
            return f;
        }
    }
    const Record *r = &k->rec;
    f.any = true;
    f.by_chunks = r->algo == ALGO_chunk;
    f.chunk = r->module.chunk;
    f.bytes = r->module.ws_bytes_per_slot_head;
    f.ahead = (double)r->module.scan_token_bytes + (double)r->module.scan_carry_bytes / SCAN_TOKENS;
    f.save_every = record_save_every(r);
    f.saved_bytes = border_bytes(r);
    gdr_kernel_destroy(k);
    return f;
}

static int explain_variant(Driver *d, Spec *s, const char *variant, Buf *out) {
    Kernel *normal = spec_kernel(d, s, variant, d->opt.dim.at, d->opt.dim.count);
    if (!normal)
        return EXIT_refused;
    const PassWatch *watch = driver_watch(d);
    passes_run(normal, "normal", watch);
    Kernel *tile = NULL, *grad = NULL;
    if (normal->facts.chunkable) {
        tile = kernel_clone(normal);
        kernel_set_chunk(tile, EXPLAIN_ROWS);
        passes_run_after(tile, "normal", "peel", watch);
        if (tile->in.count <= GRADIENT_PORTS && tile->out.count <= GRADIENT_PORTS) {
            grad = kernel_adjoint(tile, ~UINT64_C(0), ~UINT64_C(0));
            passes_run_after(grad, "collapse", NULL, NULL);
        }
        passes_run_after(tile, "peel", NULL, watch);
    }
    static const ExplainFormat format[] = {
        [FORMAT_text] = EXPLAIN_text,
        [FORMAT_markdown] = EXPLAIN_markdown,
        [FORMAT_json] = EXPLAIN_json,
    };
    Footprints need = {
        .forward = footprint(d, normal, EXPLAIN_GPU, GDR_PASS_FORWARD),
        .gpu = footprint(d, normal, EXPLAIN_GPU, GDR_PASS_BACKWARD),
        .cpu = footprint(d, normal, "host", GDR_PASS_BACKWARD),
    };
    explain(normal, tile, grad, &need, format[d->opt.format], out);
    return EXIT_done;
}

int command_explain(Driver *d) {
    Spec s;
    int status = spec_open(d, d->opt.file.at[0], &s);
    if (status)
        return status;
    if (!driver_context(d))
        return EXIT_environment;
    const Variant *v = NULL;
    if (d->opt.variant && !(v = spec_variant(s.file, d->opt.variant, &s.diag))) {
        print_diag(d, &s.diag);
        return EXIT_refused;
    }
    for (int i = 0; !status && i < s.file->variant.count; i++) {
        Buf out;
        if (v && v != s.file->variant.at[i])
            continue;
        buf_init(&out, &d->arena);
        status = explain_variant(d, &s, s.file->variant.at[i]->name, &out);
        put(&out);
    }
    return status;
}
