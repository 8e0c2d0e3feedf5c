/* libFuzzer target for the spec reader: whatever the bytes, parsing, checking, formatting, lowering
 * and running end in a result or in messages. What is accepted must keep its promises: the
 * formatted text is a fixed point and is accepted too, and the kernel is well formed. */
#include "frontend/frontend.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void print_messages(const Diag *d, Arena *a) {
    Buf b;
    buf_init(&b, a);
    diag_print_text(d, &b, true);
    diag_print_json(d, &b);
}

/* Canonical text reads back and prints as itself. */
static void check_format(const SpecFile *f, Arena *a) {
    Buf once, twice;
    Interner names;
    Diag d;
    buf_init(&once, a);
    buf_init(&twice, a);
    spec_format(f, &once);
    const Source *source = source_from_text(a, "formatted", once.text ? once.text : "", once.len);
    intern_init(&names, a);
    diag_init(&d, a, source);
    const SpecFile *again = spec_parse(a, &names, source, &d);
    CHECK(again->syntax_ok);
    spec_format(again, &twice);
    CHECK(once.len == twice.len && !memcmp(once.text, twice.text, once.len));
}

/* Lower, and run two tokens of ones through the reference, if that is little work. */
static void check_variant(SpecFile *f, const Variant *v, Arena *a, Diag *d) {
    Kernel *k = spec_lower(a, f->names, f, v->name, NULL, d);
    if (!k)
        return;
    CHECK(!kernel_verify(k));
    int64_t elements = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
    if (elements * k->inst.count > 100000 || f->source->len > 2000)
        return;
    EvalArgs args = {.T = 2, .state = NEW_ARRAY(a, double, elements)};
    const double **in = NEW_ARRAY(a, const double *, k->in.count);
    double **out = NEW_ARRAY(a, double *, k->out.count);
    for (int i = 0; i < k->in.count; i++) {
        int64_t n = 2 * shape_elements(k, k->in.at[i].shape);
        double *x = NEW_ARRAY(a, double, n);
        for (int64_t j = 0; j < n; j++)
            x[j] = 1;
        in[i] = x;
    }
    for (int i = 0; i < k->out.count; i++)
        out[i] = NEW_ARRAY(a, double, 2 * shape_elements(k, k->out.at[i].shape));
    args.in = in;
    args.out = out;
    CHECK(reference_run(a, f, v->name, NULL, &args, d));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Arena a;
    Interner names;
    Diag d;
    if (size > 1 << 16)
        return -1;
    arena_init(&a, NULL);
    intern_init(&names, &a);
    const Source *source = source_from_text(&a, "input", (const char *)data, size);
    diag_init(&d, &a, source);
    SpecFile *f = spec_parse(&a, &names, source, &d);
    CHECK(f->syntax_ok == !d.errors);
    if (f->syntax_ok)
        check_format(f, &a);
    if (spec_check(f, &d))
        for (int i = 0; i < f->variant.count; i++)
            check_variant(f, f->variant.at[i], &a, &d);
    print_messages(&d, &a);
    arena_free(&a);
    return 0;
}
