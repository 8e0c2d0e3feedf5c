/* Texts that must read back: every dump of every spec, after every pass, parses to a kernel that
 * verifies and prints the same text; the formatter's output is a spec that formats to itself and
 * means the same.
 *
 *   usage: prop_roundtrip [SPEC...]
 */
#include "frontend/frontend.h"
#include "passes/passes.h"

#include <glob.h>
#include <stdio.h>
#include <string.h>

typedef struct Check {
    const char *spec, *variant;
    int dumps, failures;
} Check;

static void fail(Check *c, const char *where, const char *what, const char *detail) {
    printf("FAIL %s %s, %s: %s%s%s\n", c->spec, c->variant, where, what, detail ? ": " : "",
           detail ? detail : "");
    c->failures++;
}

static const char *messages(Arena *a, const Diag *d) {
    Buf text;
    buf_init(&text, a);
    buf_puts(&text, "");
    diag_print_text(d, &text, false);
    return text.text;
}

static const char *printed(Arena *a, const Kernel *k) {
    Buf text;
    buf_init(&text, a);
    kernel_print(k, &text);
    return text.text;
}

static void on_dump(void *user, const char *pass, const char *text, bool changed) {
    Check *c = user;
    (void)changed;
    c->dumps++;
    Arena arena;
    arena_init(&arena, NULL);
    Interner names;
    intern_init(&names, &arena);
    const Source *source = source_from_text(&arena, pass, text, strlen(text));
    Diag d;
    diag_init(&d, &arena, source);
    const Kernel *k = kernel_parse(&arena, &names, source, &d);
    const char *why;
    if (!k)
        fail(c, pass, "the dump does not parse", messages(&arena, &d));
    else if ((why = kernel_verify(k)))
        fail(c, pass, "the dump parses to an illegal kernel", why);
    else if (strcmp(printed(&arena, k), text) != 0)
        fail(c, pass, "the dump prints differently after parsing", printed(&arena, k));
    arena_free(&arena);
}

static void check_dumps(Check *c, Arena *a, Interner *names, SpecFile *f, const SpecBind *dims,
                        int rows) {
    Diag d;
    diag_init(&d, a, f->source);
    Kernel *k = spec_lower(a, names, f, c->variant, dims, &d);
    if (!k) {
        fail(c, "lower", "refused", messages(a, &d));
        return;
    }
    on_dump(c, "lower", printed(a, k), true);
    const PassWatch watch = {.dump_after = "all", .verify_each = true, .dump = on_dump, .user = c};
    passes_run(k, "normal", &watch);
    kernel_set_chunk(k, rows);
    passes_run(k, NULL, &watch);
}

static SpecFile *parse_text(Arena *a, Interner *names, const char *name, const char *text,
                            Diag *d) {
    const Source *source = source_from_text(a, name, text, strlen(text));
    diag_init(d, a, source);
    SpecFile *f = spec_parse(a, names, source, d);
    return f->syntax_ok && spec_check(f, d) ? f : NULL;
}

static void check_format(Check *c, Arena *a, Interner *names, SpecFile *f) {
    Buf once, twice;
    buf_init(&once, a);
    buf_init(&twice, a);
    spec_format(f, &once);
    Diag d;
    SpecFile *g = once.text ? parse_text(a, names, f->source->name, once.text, &d) : NULL;
    if (!g) {
        fail(c, "format", "the formatted spec is refused",
             once.text ? messages(a, &d) : "it is empty");
        return;
    }
    spec_format(g, &twice);
    if (strcmp(once.text, twice.text) != 0)
        fail(c, "format", "formatting twice differs from once", NULL);
    const Kernel *before = spec_lower(a, names, f, c->variant, NULL, &d);
    const Kernel *after = spec_lower(a, names, g, c->variant, NULL, &d);
    if (!before || !after || strcmp(printed(a, before), printed(a, after)) != 0)
        fail(c, "format", "the formatted spec means something else", NULL);
}

static void check_spec(Check *c) {
    static const SpecDim dim[] = {{"K", 48}, {"V", 20}};
    const SpecBind other = {dim, 2};
    Arena arena;
    arena_init(&arena, NULL);
    Interner names;
    intern_init(&names, &arena);
    const Source *source = source_from_file(&arena, c->spec);
    Diag d;
    diag_init(&d, &arena, source);
    SpecFile *f = source ? spec_parse(&arena, &names, source, &d) : NULL;
    if (!f || !f->syntax_ok || !spec_check(f, &d)) {
        fail(c, "check", "refused", source ? messages(&arena, &d) : "cannot be read");
    } else {
        for (int i = 0; i < f->variant.count; i++) {
            c->variant = f->variant.at[i]->name;
            check_dumps(c, &arena, &names, f, NULL, 64);
            check_dumps(c, &arena, &names, f, &other, 16);
            check_format(c, &arena, &names, f);
        }
    }
    arena_free(&arena);
}

int main(int argc, char **argv) {
    glob_t specs = {0};
    if (argc < 2 && glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &specs) != 0) {
        puts("FAIL: no specs");
        return 1;
    }
    int count = argc < 2 ? (int)specs.gl_pathc : argc - 1, failures = 0, dumps = 0;
    for (int i = 0; i < count; i++) {
        Check c = {.spec = argc < 2 ? specs.gl_pathv[i] : argv[i + 1], .variant = ""};
        check_spec(&c);
        failures += c.failures;
        dumps += c.dumps;
    }
    globfree(&specs);
    printf("%d specs, %d dumps, %d failures\n", count, dumps, failures);
    return failures != 0;
}
