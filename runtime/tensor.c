/* One tensor of a launch by itself: rank, sizes, strides, memory, type. */
#include "runtime/runtime.h"

#include <stdio.h>
#include <string.h>

enum { NDIM_MAX = 8, GPU_ALIGN = 16 };

#define FAIL(kernel, ...) ctx_fail((kernel)->ctx, GDR_EINPUT, __VA_ARGS__)

const char *shape_text(int ndim, const int64_t *shape, char text[SHAPE_TEXT]) {
    size_t at = (size_t)snprintf(text, SHAPE_TEXT, "[");
    for (int i = 0; i < ndim && i < NDIM_MAX; i++)
        at += (size_t)snprintf(text + at, SHAPE_TEXT - at, "%s%lld", i ? "," : "",
                               (long long)shape[i]);
    snprintf(text + at, SHAPE_TEXT - at, ndim > NDIM_MAX ? ",...]" : "]");
    return text;
}

/* Sizes are not negative and their bytes have 64 bits; *empty: one of them is 0. */
static gdr_status check_sizes(const gdr_kernel *k, const char *name, const gdr_tensor *t,
                              bool *empty) {
    char text[SHAPE_TEXT];
    int64_t bytes = (int64_t)gdr_dtype_size(t->dtype);
    *empty = false;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] < 0)
            return FAIL(k, "%s: negative size in shape %s", name,
                        shape_text(t->ndim, t->shape, text));
        *empty |= t->shape[i] == 0;
    }
    for (int i = 0; i < t->ndim && !*empty; i++)
        if (__builtin_mul_overflow(bytes, t->shape[i], &bytes))
            return FAIL(k, "%s: shape %s overflows 64 bits", name,
                        shape_text(t->ndim, t->shape, text));
    return GDR_OK;
}

static gdr_status check_strides(const gdr_kernel *k, const char *name, const gdr_tensor *t,
                                bool apart, bool on_gpu) {
    int64_t stride = 1, bytes;
    for (int i = t->ndim - 1; i >= 0; i--) {
        int64_t have = t->strides[i];
        bool spaced = apart && i == 0 && have > stride;
        if (t->shape[i] != 1 && have != stride && !spaced)
            return FAIL(k, "%s: not dense: dimension %d has stride %lld, need %lld", name, i,
                        (long long)have, (long long)stride);
        bytes = have;
        if (spaced && (__builtin_mul_overflow(bytes, gdr_dtype_size(t->dtype), &bytes) ||
                       __builtin_mul_overflow(bytes, t->shape[0], &have)))
            return FAIL(k, "%s: stride %lld overflows 64 bits", name, (long long)t->strides[0]);
        if (spaced && on_gpu && bytes % GPU_ALIGN)
            return FAIL(k, "%s: stride %lld is no multiple of %d bytes", name,
                        (long long)t->strides[0], GPU_ALIGN);
        stride *= t->shape[i];
    }
    return GDR_OK;
}

gdr_status tensor_check(const gdr_kernel *k, const char *name, const gdr_tensor *t, bool look,
                        bool apart) {
    if (t->ndim < 0 || t->ndim > NDIM_MAX || (t->ndim && !t->shape))
        return FAIL(k, "%s: %d dimensions", name, t->ndim);
    if ((unsigned)t->dtype >= GDR_DTYPE_COUNT)
        return FAIL(k, "%s: unknown data type %d", name, (int)t->dtype);
    bool empty, on_gpu = k->rec.target && strcmp(k->rec.target, "host") != 0;
    gdr_status status = check_sizes(k, name, t, &empty);
    if (!status && t->strides && !empty)
        status = check_strides(k, name, t, apart, on_gpu);
    if (status)
        return status;
    if (t->device != (on_gpu ? GDR_CUDA : GDR_CPU))
        return FAIL(k, "%s: lies in %s memory, the kernel runs on the %s", name,
                    t->device == GDR_CUDA ? "GPU" : "CPU", on_gpu ? "GPU" : "CPU");
    if (!look || empty)
        return GDR_OK;
    bool integers = t->dtype == GDR_I32 || t->dtype == GDR_I64; /* read one by one */
    size_t align = on_gpu && !integers ? GPU_ALIGN : gdr_dtype_size(t->dtype);
    if (!t->data)
        return FAIL(k, "%s: no data", name);
    if ((uintptr_t)t->data % align && !(on_gpu && t->ndim <= 1))
        return FAIL(k, "%s: address %p is not a multiple of %zu bytes", name, t->data, align);
    return GDR_OK;
}

gdr_status tensor_check_type(const gdr_kernel *k, const char *name, const gdr_tensor *t,
                             gdr_dtype want) {
    if (t->dtype != want)
        return FAIL(k, "%s: data type is %s, the kernel takes %s", name, gdr_dtype_name(t->dtype),
                    gdr_dtype_name(want));
    return GDR_OK;
}

int64_t tensor_integer(const gdr_tensor *t, int64_t i) {
    return t->dtype == GDR_I64 ? ((const int64_t *)t->data)[i] : ((const int32_t *)t->data)[i];
}
