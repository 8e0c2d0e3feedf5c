/* gdrc: which call, its help, the version; what all calls share. */
#include "driver/driver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* messages ------------------------------------------------------------------------------------- */

int fail(int exit_status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fflush(stdout);
    fputs("gdrc: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return exit_status;
}

int fail_status(Driver *d, gdr_status status)
{
    /* A spec's errors have been printed with their places. */
    return status == GDR_ESPEC ? EXIT_refused
                               : fail(gdr_exit_status(status), "%s", gdr_last_error(d->ctx));
}

void put(const Buf *text)
{
    if (text->len)
        fwrite(text->text, 1, text->len, stdout);
}

static void on_log(void *user, gdr_severity severity, const char *message)
{
    (void)user;
    fflush(stdout);
    fprintf(stderr, "gdrc: %s%s\n", severity == GDR_WARNING ? "warning: " : "", message);
}

gdr_context *driver_context(Driver *d)
{
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

static void on_dump(void *user, const char *pass, const char *text, bool changed)
{
    (void)user;
    printf("# after %s%s\n%s\n", pass, changed ? "" : " (unchanged)", text);
}

static void on_time(void *user, const char *pass, double seconds)
{
    (void)user;
    fprintf(stderr, "%-10s %9.3f ms\n", pass, 1e3 * seconds);
}

const PassWatch *driver_watch(Driver *d)
{
    const Options *o = &d->opt;
    if (!o->dump_after && !o->time_passes && !o->verify_each)
        return NULL;
    d->watch = (PassWatch){ .dump_after = o->dump_after, .time_passes = o->time_passes,
                            .verify_each = o->verify_each, .dump = on_dump, .time = on_time };
    return &d->watch;
}

static void list_passes(void)
{
    for (int i = 0; i < pass_count; i++)
        printf("%-10s %-10s -> %-10s %s\n", pass_info[i].name, level_name(pass_info[i].from),
               level_name(pass_info[i].to), pass_info[i].doc);
}

/* help and version ----------------------------------------------------------------------------- */

static void print_help(void)
{
    puts("usage: gdrc CALL [ARGUMENT...]\n"
         "Compiles a page of equations (a recurrence over tokens) into kernels for CPUs and GPUs.\n");
    for (int i = 0; i < command_count; i++)
        printf("  gdrc %-8s %-26s %s\n", command_list[i].name, command_list[i].operands,
               command_list[i].doc);
    puts("\n  gdrc CALL --help    options of a call, with an example\n"
         "  gdrc --version      versions of gdrc, LLVM and the GPU driver\n\n"
         "exit status: 0 done; 1 the input was refused or a check failed; 2 usage;\n"
         "             3 the environment cannot do it (no GPU, no memory, no ptxas)\n\n"
         "example: gdrc verify specs/gdn2.gdr");
}

static void print_version(void)
{
    int driver = cuda_probe_version();
    puts(gdr_version());
    if (driver)
        printf("CUDA driver %d.%d\n", driver / 1000, driver % 1000 / 10);
    else
        puts("no CUDA driver");
}

static int unknown_call(const char *name)
{
    const char *known[16];
    for (int i = 0; i < command_count; i++)
        known[i] = command_list[i].name;
    const char *close = diag_closest(name, known, command_count);
    return close ? fail(EXIT_usage, "unknown call %s, did you mean %s", name, close)
                 : fail(EXIT_usage, "unknown call %s; see gdrc --help", name);
}

static const Command *find_command(const char *name)
{
    for (int i = 0; i < command_count; i++)
        if (!strcmp(command_list[i].name, name))
            return &command_list[i];
    return NULL;
}

static int run_command(Driver *d, const Command *c, int argc, char **argv)
{
    int status = options_parse(d, c, argc, argv);
    if (status)
        return status;
    if (d->opt.help) {
        Buf text;
        buf_init(&text, &d->arena);
        options_help(c, &text);
        put(&text);
        return EXIT_done;
    }
    if (d->opt.list_passes) {
        list_passes();
        return EXIT_done;
    }
    return c->run(d);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return fail(EXIT_usage, "no call given; see gdrc --help");
    const char *name = argv[1];
    const Command *c = find_command(name);
    int status = EXIT_done;
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        print_help();
    } else if (!strcmp(name, "--version")) {
        print_version();
    } else if (!c) {
        return unknown_call(name);
    } else {
        static Driver driver; /* zero, and not on the stack that longjmp unwinds */
        jmp_buf oom;
        arena_init(&driver.arena, &oom);
        status = setjmp(oom) ? fail(EXIT_environment, "out of memory")
                             : run_command(&driver, c, argc - 2, argv + 2);
        gdr_context_destroy(driver.ctx);
        arena_free(&driver.arena);
    }
    if (fflush(stdout) || ferror(stdout))
        return fail(EXIT_environment, "cannot write to standard output: %s", strerror(errno));
    return status;
}
