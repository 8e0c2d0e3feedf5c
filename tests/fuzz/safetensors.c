/* Any bytes as a tensor file: it is refused with a reason, or every byte it promises is there and
 * each tensor is found by its name. */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void touch(const Tensor *t) {
    volatile char sum = 0;
    CHECK((size_t)tensor_elements(t->ndim, t->shape, gdr_dtype_size(t->dtype)) *
              gdr_dtype_size(t->dtype) ==
          t->bytes);
    for (size_t i = 0; i < t->bytes; i++)
        sum = (char)(sum + ((const char *)t->data)[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Arena arena;
    TensorFile f;
    char why[256] = "";
    char *exact = malloc(size + 1);
    arena_init(&arena, NULL);
    memcpy(exact, data, size);
    bool ok = tensors_parse(&arena, exact, size, &f, why, sizeof why);
    CHECK(ok || why[0]);
    for (int i = 0; ok && i < f.tensor.count; i++) {
        touch(&f.tensor.at[i]);
        CHECK(tensors_find(&f, f.tensor.at[i].name) == &f.tensor.at[i]);
    }
    arena_free(&arena);
    free(exact);
    return 0;
}
