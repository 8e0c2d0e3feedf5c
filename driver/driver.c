/* What all calls share: messages and exit statuses, the library's context, watching the passes. */
#include "driver/driver.h"

#include <stdio.h>

/* messages ------------------------------------------------------------------------------------- */

int fail(int exit_status, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fputs("gdrc: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return exit_status;
}

int fail_status(Driver *d, gdr_status status) {
    /* A spec's errors have been printed with their places. */
    return status == GDR_ESPEC ? EXIT_refused
                               : fail(gdr_exit_status(status), "%s", gdr_last_error(d->ctx));
}

void put(const Buf *text) {
    if (text->len)
        fwrite(text->text, 1, text->len, stdout);
}

static void on_log(void *user, gdr_severity severity, const char *message) {
    (void)user;
    fflush(stdout);
    fprintf(stderr, "gdrc: %s%s\n", severity == GDR_WARNING ? "warning: " : "", message);
}

gdr_context *driver_context(Driver *d) {
    if (d->ctx)
        return d->ctx;
    gdr_context_options o = {
        .size = sizeof o,
        .cache_dir = d->opt.no_cache ? "" : d->opt.cache_dir,
        .threads = d->opt.threads,
        .log = on_log,
    };
    gdr_status status = gdr_context_create(&o, &d->ctx);
    if (status)
        fail(gdr_exit_status(status), "%s", gdr_strstatus(status));
    return d->ctx;
}

/* watching the passes -------------------------------------------------------------------------- */

static void on_dump(void *user, const char *pass, const char *text, bool changed) {
    (void)user;
    printf("# after %s%s\n%s\n", pass, changed ? "" : " (unchanged)", text);
}

static void on_time(void *user, const char *pass, double seconds) {
    (void)user;
    fprintf(stderr, "%-10s %9.3f ms\n", pass, 1e3 * seconds);
}

const PassWatch *driver_watch(Driver *d) {
    const Options *o = &d->opt;
    if (!o->dump_after && !o->time_passes && !o->verify_each)
        return NULL;
    d->watch = (PassWatch){.dump_after = o->dump_after,
                           .time_passes = o->time_passes,
                           .verify_each = o->verify_each,
                           .dump = on_dump,
                           .time = on_time};
    return &d->watch;
}
