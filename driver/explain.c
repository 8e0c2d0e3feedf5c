/* gdrc explain: what the compiler makes of a spec. */
#include "driver/driver.h"

#include <string.h>

enum { EXPLAIN_ROWS = 64 }; /* equations of the chunk system that is shown */

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
    explain(normal, tile, grad, format[d->opt.format], out);
    return EXIT_done;
}

int command_explain(Driver *d) {
    Spec s;
    int status = spec_open(d, d->opt.file.at[0], &s);
    if (status)
        return status;
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
