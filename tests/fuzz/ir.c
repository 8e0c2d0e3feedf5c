/* Any bytes as .gir text. What parses must print to text that parses to the same text; what the
 * verifier then accepts must survive folding, and evaluation where that is cheap. */
#include "passes/passes.h"

#include <stdlib.h>
#include <string.h>

enum { TOKENS = 3, MAX_AXIS = 12, MAX_INSTS = 200 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static Kernel *parse(Arena *a, Interner *names, const char *text, size_t len) {
    const Source *s = source_from_text(a, "fuzz", text, len);
    Diag d;
    Buf shown;
    diag_init(&d, a, s);
    Kernel *k = kernel_parse(a, names, s, &d);
    CHECK((k == NULL) == (d.errors > 0));
    buf_init(&shown, a);
    diag_print_text(&d, &shown, false);
    return k;
}

static const char *print(Arena *a, const Kernel *k) {
    Buf b;
    buf_init(&b, a);
    kernel_print(k, &b);
    return b.text;
}

static bool is_small(const Kernel *k) {
    for (int i = 0; i < k->axis.count; i++)
        if (k->axis.at[i].size > MAX_AXIS)
            return false;
    return k->inst.count <= MAX_INSTS;
}

static double **ports(Arena *a, const Kernel *k, const Port *p, int n) {
    double **at = NEW_ARRAY(a, double *, n + 1);
    for (int i = 0; i < n; i++)
        at[i] = NEW_ARRAY(a, double, TOKENS * shape_elements(k, p[i].shape));
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Arena a;
    Interner names;
    arena_init(&a, NULL);
    intern_init(&names, &a);
    Kernel *k = parse(&a, &names, (const char *)data, size);
    if (k) {
        const char *text = print(&a, k);
        Kernel *back = parse(&a, &names, text, strlen(text));
        CHECK(back && !strcmp(text, print(&a, back)));
    }
    if (k && !kernel_verify(k)) {
        kernel_simplify(k);
        CHECK(!kernel_verify(k));
        if (is_small(k)) {
            EvalArgs args = {.T = TOKENS,
                             .in = (const double *const *)ports(&a, k, k->in.at, k->in.count),
                             .out = ports(&a, k, k->out.at, k->out.count)};
            kernel_eval(k, &a, &args);
        }
    }
    arena_free(&a);
    return 0;
}
