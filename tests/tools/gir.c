/* Reads a kernel in text form, runs passes on it, prints it: what the golden tests of the IR and of
 * single passes run.
 *
 *   gir [--passes=NAME,...] [--rows=N] FILE.gir
 *
 * The kernel is verified at the start and after every pass. `adjoint` is a name too: from then on it is
 * the gradient kernel of all outputs and inputs. `--rows` sets the chunk size (at most N
 * equations) before the first pass that leaves the recurrence level. Exit 1: the text is no kernel
 * or not a legal one; 2: usage. */
#include "passes/passes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Tool {
    Arena arena;
    Interner names;
    const char *file, *passes;
    int rows;
} Tool;

static int usage(void) {
    fputs("usage: gir [--passes=NAME,...] [--rows=N] FILE.gir\n", stderr);
    return 2;
}

static Kernel *read_kernel(Tool *t) {
    const Source *s = source_from_file(&t->arena, t->file);
    if (!s) {
        perror(t->file);
        return NULL;
    }
    Diag d;
    Buf text;
    diag_init(&d, &t->arena, s);
    Kernel *k = kernel_parse(&t->arena, &t->names, s, &d);
    buf_init(&text, &t->arena);
    buf_puts(&text, "");
    diag_print_text(&d, &text, false);
    fputs(text.text, stderr);
    return k;
}

static bool is_legal(const Kernel *k, const char *where) {
    const char *why = kernel_verify(k);
    if (why)
        fprintf(stderr, "%s: %s\n", where, why);
    return !why;
}

/* `fold` runs at every level, the others where passes.def says. */
static int run_pass(Tool *t, Kernel **kernel, const char *name) {
    Kernel *k = *kernel;
    if (!strcmp(name, "adjoint") && k->level != LEVEL_tile && !kernel_is_gradient(k)) {
        *kernel = kernel_adjoint(k, ~0ull, ~0ull);
        return is_legal(*kernel, name) ? 0 : 1;
    }
    int i = pass_find(name);
    if (i < 0 || (k->level != pass_info[i].from && strcmp(name, "fold"))) {
        fprintf(stderr, "no pass %s at level %s\n", name, level_name(k->level));
        return 2;
    }
    if (pass_info[i].from != pass_info[i].to && t->rows && k->level == LEVEL_recurrence)
        kernel_set_chunk(k, t->rows);
    pass_info[i].run(k);
    return is_legal(k, name) ? 0 : 1;
}

static int run(Tool *t) {
    Kernel *k = read_kernel(t);
    if (!k || !is_legal(k, t->file))
        return 1;
    const char *passes = t->passes ? t->passes : "";
    char *rest = arena_strndup(&t->arena, passes, strlen(passes));
    for (const char *name; (name = strtok_r(rest, ",", &rest));) {
        int status = run_pass(t, &k, name);
        if (status)
            return status;
    }
    Buf text;
    buf_init(&text, &t->arena);
    kernel_print(k, &text);
    fputs(text.text, stdout);
    return 0;
}

int main(int argc, char **argv) {
    Tool t = {0};
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--passes=", 9))
            t.passes = argv[i] + 9;
        else if (!strncmp(argv[i], "--rows=", 7))
            t.rows = atoi(argv[i] + 7);
        else if (argv[i][0] == '-' || t.file)
            return usage();
        else
            t.file = argv[i];
    if (!t.file)
        return usage();
    arena_init(&t.arena, NULL);
    intern_init(&t.names, &t.arena);
    int status = run(&t);
    arena_free(&t.arena);
    return status;
}
