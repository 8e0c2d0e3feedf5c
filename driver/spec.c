/* Opening specs, and printing what is wrong with them. */
#include "driver/driver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void print_diag(Driver *d, const Diag *diag) {
    Buf text;
    buf_init(&text, &d->arena);
    if (d->opt.diag_format == 1)
        diag_print_json(diag, &text);
    else
        diag_print_text(diag, &text, isatty(STDERR_FILENO));
    fflush(stdout);
    if (text.len)
        fwrite(text.text, 1, text.len, stderr);
}

/* Of a compilation: the warnings about the text were printed by spec_open. */
void print_diag_callback(void *driver, const Diag *diag) {
    if (!diag->errors)
        return;
    Diag errors;
    diag_init(&errors, &((Driver *)driver)->arena, diag->source);
    for (int i = 0; i < diag->item.count; i++)
        if (diag->item.at[i].kind == DIAG_error)
            VEC_PUSH(errors.arena, &errors.item, diag->item.at[i]);
    errors.errors = diag->errors;
    print_diag(driver, &errors);
}

int spec_open(Driver *d, const char *path, Spec *s) {
    *s = (Spec){.path = path};
    s->source = source_from_file(&d->arena, path);
    if (!s->source)
        return fail(EXIT_refused, "%s: cannot be read: %s", path,
                    errno == EFBIG ? "larger than 1 MiB" : strerror(errno));
    intern_init(&s->names, &d->arena);
    diag_init(&s->diag, &d->arena, s->source);
    s->file = spec_parse(&d->arena, &s->names, s->source, &s->diag);
    bool ok = !s->diag.errors && spec_check(s->file, &s->diag);
    if (s->diag.errors || s->diag.warnings || d->opt.diag_format == 1)
        print_diag(d, &s->diag);
    return ok ? EXIT_done : EXIT_refused;
}

Kernel *spec_kernel(Driver *d, Spec *s, const char *variant, const gdr_dim *dims, int ndims) {
    Diag diag;
    diag_init(&diag, &d->arena, s->source);
    SpecDim *dim = NEW_ARRAY(&d->arena, SpecDim, ndims + 1);
    for (int i = 0; i < ndims; i++)
        dim[i] = (SpecDim){intern_z(&s->names, dims[i].name), dims[i].size};
    SpecBind bind = {dim, ndims};
    Kernel *k = spec_lower(&d->arena, &s->names, s->file, variant, &bind, &diag);
    if (diag.errors)
        print_diag(d, &diag);
    return k;
}
