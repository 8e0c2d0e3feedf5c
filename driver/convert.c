/* Tensors in memory: making, converting, poisoning. */
#include "driver/driver.h"

#include <string.h>

Tensor tensor_new(Arena *a, const char *name, gdr_dtype type, int ndim, const int64_t *shape) {
    Tensor t = {.name = name, .dtype = type, .ndim = ndim};
    for (int i = 0; i < ndim; i++)
        t.shape[i] = shape[i];
    int64_t n = tensor_elements(ndim, shape, gdr_dtype_size(type));
    t.bytes = n < 0 ? SIZE_MAX : (size_t)n * gdr_dtype_size(type); /* SIZE_MAX: out of memory */
    t.data = arena_alloc(a, t.bytes);
    return t;
}

int64_t tensor_count(const Tensor *t) {
    return (int64_t)(t->bytes / gdr_dtype_size(t->dtype));
}

Tensor tensor_convert(Arena *a, const Tensor *t, gdr_dtype type) {
    if (t->dtype == type)
        return *t;
    Tensor c = tensor_new(a, t->name, type, t->ndim, t->shape);
    int64_t n = tensor_count(t);
    for (int64_t i = 0; i < n; i++)
        scalar_put(type, c.data, i, scalar_get(t->dtype, t->data, i));
    return c;
}

void tensor_poison(Tensor *t) {
    memset(t->data, 0xff, t->bytes); /* all ones is a NaN in each floating type */
}
