/* gdrc: which call, its help, the version. */
#include "driver/driver.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void list_passes(void) {
    for (int i = 0; i < pass_count; i++)
        printf("%-10s %-10s -> %-10s %s\n", pass_info[i].name, level_name(pass_info[i].from),
               level_name(pass_info[i].to), pass_info[i].doc);
}

/* help and version ----------------------------------------------------------------------------- */

static void print_help(void) {
    puts("usage: gdrc CALL [ARGUMENT...]\n"
         "Compiles a page of equations (a recurrence over tokens) into kernels for CPUs and "
         "GPUs.\n");
    for (int i = 0; i < command_count; i++)
        printf("  gdrc %-8s %-26s %s\n", command_list[i].name, command_list[i].operands,
               command_list[i].doc);
    puts("\n  gdrc CALL --help    options of a call, with an example\n"
         "  gdrc --version      versions of gdrc, LLVM and the GPU driver\n\n"
         "exit status: 0 done; 1 the input was refused or a check failed; 2 usage;\n"
         "             3 the environment cannot do it (no GPU, no memory, no ptxas)\n\n"
         "example: gdrc verify specs/gdn2.gdr");
}

static void print_version(void) {
    int driver = cuda_probe_version();
    puts(gdr_version());
    if (driver)
        printf("CUDA driver %d.%d\n", driver / 1000, driver % 1000 / 10);
    else
        puts("no CUDA driver");
}

static int unknown_call(const char *name) {
    const char *known[16];
    for (int i = 0; i < command_count; i++)
        known[i] = command_list[i].name;
    const char *close = diag_closest(name, known, command_count);
    return close ? fail(EXIT_usage, "unknown call %s, did you mean %s", name, close)
                 : fail(EXIT_usage, "unknown call %s; see gdrc --help", name);
}

static const Command *find_command(const char *name) {
    for (int i = 0; i < command_count; i++)
        if (!strcmp(command_list[i].name, name))
            return &command_list[i];
    return NULL;
}

static int run_command(Driver *d, const Command *c, int argc, char **argv) {
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

/* LLVM aborts when memory runs out. Then, and only then, is there no room for a few megabytes. */
static void on_abort(int signal_number) {
    static const char message[] = "gdrc: out of memory\n";
    (void)signal_number;
    if (mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
        MAP_FAILED) {
        ssize_t ignored = write(STDERR_FILENO, message, sizeof message - 1);
        (void)ignored;
        _Exit(EXIT_environment);
    }
}

int main(int argc, char **argv) {
    signal(SIGABRT, on_abort);
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
        if (setjmp(oom)) {
            /* What the calls held is anywhere between whole and half made: leave it to the system.
             */
            fail(EXIT_environment, "out of memory");
            _Exit(EXIT_environment);
        }
        status = run_command(&driver, c, argc - 2, argv + 2);
        gdr_context_destroy(driver.ctx);
        arena_free(&driver.arena);
    }
    if (fflush(stdout) || ferror(stdout))
        return fail(EXIT_environment, "cannot write to standard output: %s", strerror(errno));
    return status;
}
