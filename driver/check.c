/* gdrc check and gdrc fmt: what needs the front end alone. */
#include "driver/driver.h"

#include <string.h>

/* Every variant of one file, with the sizes asked for. */
static int check_file(Driver *d, const char *path) {
    Spec s;
    int status = spec_open(d, path, &s);
    if (status)
        return status;
    for (int i = 0; i < s.file->variant.count; i++)
        if (!spec_kernel(d, &s, s.file->variant.at[i]->name, d->opt.dim.at, d->opt.dim.count))
            status = EXIT_refused;
    return status;
}

int command_check(Driver *d) {
    int status = EXIT_done;
    for (int i = 0; i < d->opt.file.count; i++) {
        int one = check_file(d, d->opt.file.at[i]);
        if (one > status)
            status = one;
    }
    return status;
}

static int format_file(Driver *d, const char *path) {
    Spec s = {.path = path};
    s.source = source_from_file(&d->arena, path);
    if (!s.source)
        return spec_open(d, path, &s); /* says why it cannot be read */
    intern_init(&s.names, &d->arena);
    diag_init(&s.diag, &d->arena, s.source);
    s.file = spec_parse(&d->arena, &s.names, s.source, &s.diag);
    if (!s.file->syntax_ok) {
        print_diag(d, &s.diag);
        return EXIT_refused;
    }
    Buf text;
    buf_init(&text, &d->arena);
    spec_format(s.file, &text);
    bool same = text.len == s.source->len && !memcmp(text.text, s.source->text, text.len);
    if (d->opt.check_only)
        return same ? EXIT_done : fail(EXIT_refused, "%s: not in canonical form", path);
    if (!d->opt.in_place) {
        put(&text);
    } else if (!same) {
        char why[512];
        if (!file_write_atomic(path, &(FilePart){text.text, text.len}, 1, why, sizeof why))
            return fail(EXIT_environment, "%s", why);
    }
    return EXIT_done;
}

int command_fmt(Driver *d) {
    int status = EXIT_done;
    for (int i = 0; i < d->opt.file.count; i++) {
        int one = format_file(d, d->opt.file.at[i]);
        if (one > status)
            status = one;
    }
    return status;
}
