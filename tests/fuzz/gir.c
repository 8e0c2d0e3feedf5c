/* Any bytes as IR text: refused with a message, or a kernel that prints, parses back to the same text
 * and, where the verifier accepts it, survives simplification. */
#include "ir/ir.h"
#include "passes/passes.h"

#include <string.h>

static const char *printed(Arena *a, const Kernel *k)
{
    Buf text;
    buf_init(&text, a);
    kernel_print(k, &text);
    return text.text;
}

static Kernel *parsed(Arena *a, Interner *names, const char *text, size_t len, Diag *d)
{
    const Source *source = source_from_text(a, "fuzz.gir", text, len);
    diag_init(d, a, source);
    return kernel_parse(a, names, source, d);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    Arena arena;
    arena_init(&arena, NULL);
    Interner names;
    intern_init(&names, &arena);
    Diag d, again;
    Kernel *k = parsed(&arena, &names, (const char *)bytes, len, &d);
    if (!k) {
        CHECK(d.errors > 0);
        Buf text;
        buf_init(&text, &arena);
        diag_print_text(&d, &text, false);
    } else if (!kernel_verify(k)) {
        const char *text = printed(&arena, k);
        const Kernel *back = parsed(&arena, &names, text, strlen(text), &again);
        CHECK(back && strcmp(printed(&arena, back), text) == 0);
        kernel_simplify(k);
        CHECK(!kernel_verify(k));
    }
    arena_free(&arena);
    return 0;
}
