/* From a caller's tensors to the launch frame. Everything a caller can get wrong about a launch is
 * found here, before any code runs, and told in one line that names the tensor and both shapes.
 *
 * Sizes: B, T come from the first per-token tensor; H is the widest head count among the inputs and
 * params, every other head count must divide it. The factor role's heads HF are the least number
 * that the head counts of all inputs it reads divide (their widest, when they divide each other).
 */
#include "runtime/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Binder {
    gdr_kernel *kernel;
    const Kernel *k;
    const gdr_launch *launch;
    bool sizes_only;
    const gdr_tensor **in, **out; /* per port */
    BoundLaunch *b;
} Binder;

#define FAIL(bi, ...) ctx_fail((bi)->kernel->ctx, GDR_EINPUT, __VA_ARGS__)
#define TRY(call)                    \
    do {                             \
        gdr_status status_ = (call); \
        if (status_)                 \
            return status_;          \
    } while (0)

/* one tensor ----------------------------------------------------------------------------------- */

enum { SHAPE_TEXT = 200, NDIM_MAX = 8 };

static const char *shape_text(int ndim, const int64_t *shape, char text[SHAPE_TEXT]) {
    size_t at = (size_t)snprintf(text, SHAPE_TEXT, "[");
    for (int i = 0; i < ndim && i < NDIM_MAX; i++)
        at += (size_t)snprintf(text + at, SHAPE_TEXT - at, "%s%lld", i ? "," : "",
                               (long long)shape[i]);
    snprintf(text + at, SHAPE_TEXT - at, ndim > NDIM_MAX ? ",...]" : "]");
    return text;
}

/* "[B,T,heads,128]": what a port's tensor looks like in general. */
static const char *port_text(const Kernel *k, const Port *p, char text[SHAPE_TEXT]) {
    size_t at = (size_t)snprintf(text, SHAPE_TEXT, p->is_param ? "[heads" : "[B,T,heads");
    for (int i = 0; i < p->shape.rank; i++)
        at +=
            (size_t)snprintf(text + at, SHAPE_TEXT - at, ",%d", k->axis.at[p->shape.axis[i]].size);
    snprintf(text + at, SHAPE_TEXT - at, "]");
    return text;
}

/* Checks what does not depend on other tensors. */
static gdr_status check_tensor(const Binder *bi, const char *name, const gdr_tensor *t) {
    char text[SHAPE_TEXT];
    if (t->ndim < 0 || t->ndim > NDIM_MAX || (t->ndim && !t->shape))
        return FAIL(bi, "%s: %d dimensions", name, t->ndim);
    if ((unsigned)t->dtype >= GDR_DTYPE_COUNT)
        return FAIL(bi, "%s: unknown data type %d", name, (int)t->dtype);
    int64_t bytes = (int64_t)gdr_dtype_size(t->dtype);
    bool empty = false;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] < 0)
            return FAIL(bi, "%s: negative size in shape %s", name,
                        shape_text(t->ndim, t->shape, text));
        empty |= t->shape[i] == 0;
    }
    for (int i = 0; i < t->ndim && !empty; i++)
        if (__builtin_mul_overflow(bytes, t->shape[i], &bytes))
            return FAIL(bi, "%s: shape %s overflows 64 bits", name,
                        shape_text(t->ndim, t->shape, text));
    int64_t stride = 1;
    for (int i = t->ndim - 1; t->strides && i >= 0 && !empty; i--) {
        if (t->shape[i] != 1 && t->strides[i] != stride)
            return FAIL(bi, "%s: not dense: dimension %d has stride %lld, need %lld", name, i,
                        (long long)t->strides[i], (long long)stride);
        stride *= t->shape[i];
    }
    bool on_gpu = bi->kernel->rec.target && strcmp(bi->kernel->rec.target, "host") != 0;
    if (t->device != (on_gpu ? GDR_CUDA : GDR_CPU))
        return FAIL(bi, "%s: lies in %s memory, the kernel runs on the %s", name,
                    t->device == GDR_CUDA ? "GPU" : "CPU", on_gpu ? "GPU" : "CPU");
    if (bi->sizes_only || empty)
        return GDR_OK;
    size_t align = on_gpu ? 16 : gdr_dtype_size(t->dtype);
    if (!t->data)
        return FAIL(bi, "%s: no data", name);
    if ((uintptr_t)t->data % align && !(on_gpu && t->ndim <= 1))
        return FAIL(bi, "%s: address %p is not a multiple of %zu bytes", name, t->data, align);
    return GDR_OK;
}

static gdr_status check_dtype(const Binder *bi, const char *name, const gdr_tensor *t,
                              gdr_dtype want) {
    if (t->dtype != want)
        return FAIL(bi, "%s: data type is %s, the kernel takes %s", name, gdr_dtype_name(t->dtype),
                    gdr_dtype_name(want));
    return GDR_OK;
}

/* A tensor against its port: type, rank, the sizes after the heads. */
static gdr_status check_port(const Binder *bi, const Port *p, const gdr_tensor *t) {
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    int lead = p->is_param ? 1 : 3;
    TRY(check_tensor(bi, p->name, t));
    TRY(check_dtype(bi, p->name, t, dtype_of_elem(p->elem)));
    bool ok = t->ndim == lead + p->shape.rank;
    for (int i = 0; ok && i < p->shape.rank; i++)
        ok = t->shape[lead + i] == bi->k->axis.at[p->shape.axis[i]].size;
    if (!ok)
        return FAIL(bi, "%s: shape is %s, need %s", p->name, shape_text(t->ndim, t->shape, have),
                    port_text(bi->k, p, want));
    return GDR_OK;
}

/* all tensors ---------------------------------------------------------------------------------- */

static const gdr_tensor **find_slot(const Binder *bi, const char *name) {
    int i = kernel_find_port(bi->k, name, false);
    if (i >= 0)
        return &bi->in[i];
    i = kernel_find_port(bi->k, name, true);
    return i >= 0 ? &bi->out[i] : NULL;
}

static gdr_status match_names(const Binder *bi) {
    for (int i = 0; i < bi->launch->nargs; i++) {
        const gdr_arg *a = &bi->launch->args[i];
        if (!a->name)
            return FAIL(bi, "argument %d has no name", i);
        const gdr_tensor **slot = find_slot(bi, a->name);
        if (!slot)
            return FAIL(bi, "%s: the variant %s has no such tensor", a->name, bi->k->name);
        if (*slot)
            return FAIL(bi, "%s: given twice", a->name);
        *slot = &a->tensor;
    }
    for (int i = 0; i < bi->k->in.count; i++)
        if (!bi->in[i])
            return FAIL(bi, "%s: missing %s", bi->k->in.at[i].name,
                        bi->k->in.at[i].is_param ? "parameter" : "input");
    for (int i = 0; i < bi->k->out.count; i++)
        if (!bi->out[i])
            return FAIL(bi, "%s: missing output", bi->k->out.at[i].name);
    return GDR_OK;
}

static gdr_status check_tokens(const Binder *bi, const Port *p, const gdr_tensor *t,
                               const char **first) {
    BoundLaunch *b = bi->b;
    if (!*first) {
        *first = p->name;
        b->B = t->shape[0];
        b->T = t->shape[1];
    } else if (t->shape[0] != b->B || t->shape[1] != b->T) {
        return FAIL(bi, "%s: B,T = %lld,%lld but %s has %lld,%lld", p->name, (long long)t->shape[0],
                    (long long)t->shape[1], *first, (long long)b->B, (long long)b->T);
    }
    return GDR_OK;
}

static int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static int64_t heads_of(const Port *p, const gdr_tensor *t) {
    return t->shape[p->is_param ? 0 : 2];
}

static gdr_status check_heads(const Binder *bi) {
    BoundLaunch *b = bi->b;
    const Port *widest = NULL;
    b->H = 0;
    for (int i = 0; i < bi->k->in.count; i++) {
        int64_t h = heads_of(&bi->k->in.at[i], bi->in[i]);
        if (!widest || h > b->H) {
            widest = &bi->k->in.at[i];
            b->H = h;
        }
    }
    if (!widest) /* a spec without inputs: its outputs decide */
        b->H = heads_of(&bi->k->out.at[0], bi->out[0]);
    b->HF = 1;
    for (int i = 0; i < bi->k->in.count; i++) {
        const Port *p = &bi->k->in.at[i];
        int64_t h = heads_of(p, bi->in[i]);
        if (b->H && (h == 0 || b->H % h))
            return FAIL(bi, "%s: %lld heads do not divide the %lld of %s", p->name, (long long)h,
                        (long long)b->H, widest->name);
        if (b->H && bi->kernel->rec.factor_reads[i])
            b->HF *= h / gcd(b->HF, h); /* all divide H, so this does */
    }
    return GDR_OK;
}

static gdr_status check_ports(const Binder *bi) {
    const Kernel *k = bi->k;
    const char *first = NULL;
    for (int i = 0; i < k->in.count; i++) {
        TRY(check_port(bi, &k->in.at[i], bi->in[i]));
        if (!k->in.at[i].is_param)
            TRY(check_tokens(bi, &k->in.at[i], bi->in[i], &first));
    }
    for (int i = 0; i < k->out.count; i++) {
        TRY(check_port(bi, &k->out.at[i], bi->out[i]));
        TRY(check_tokens(bi, &k->out.at[i], bi->out[i], &first));
    }
    TRY(check_heads(bi));
    for (int i = 0; i < k->out.count; i++) {
        int64_t h = heads_of(&k->out.at[i], bi->out[i]);
        if (h != bi->b->H)
            return FAIL(bi, "%s: %lld heads, need %lld", k->out.at[i].name, (long long)h,
                        (long long)bi->b->H);
    }
    return GDR_OK;
}

/* sequences and states ------------------------------------------------------------------------- */

static int64_t offset_at(const gdr_tensor *cu, int64_t i) {
    return cu->dtype == GDR_I64 ? ((const int64_t *)cu->data)[i] : ((const int32_t *)cu->data)[i];
}

static gdr_status check_sequences(const Binder *bi) {
    BoundLaunch *b = bi->b;
    const gdr_tensor *cu = bi->launch->cu_seqlens;
    b->packed = cu != NULL;
    b->N = b->B;
    if (!cu)
        return GDR_OK;
    TRY(check_tensor(bi, "cu_seqlens", cu));
    if (cu->dtype != GDR_I32 && cu->dtype != GDR_I64)
        return FAIL(bi, "cu_seqlens: data type is %s, need i32 or i64", gdr_dtype_name(cu->dtype));
    if (cu->ndim != 1 || cu->shape[0] < 1)
        return FAIL(bi, "cu_seqlens: need a vector of N+1 offsets");
    if (b->B != 1)
        return FAIL(bi, "cu_seqlens: packed sequences need B = 1, the tensors have B = %lld",
                    (long long)b->B);
    b->N = cu->shape[0] - 1;
    if (bi->sizes_only || cu->device != GDR_CPU)
        return GDR_OK;
    int64_t last = offset_at(cu, 0);
    if (last < 0)
        return FAIL(bi, "cu_seqlens: begins with %lld", (long long)last);
    for (int64_t i = 1; i <= b->N; i++) {
        int64_t next = offset_at(cu, i);
        if (next < last)
            return FAIL(bi, "cu_seqlens: decreases from %lld to %lld at entry %lld",
                        (long long)last, (long long)next, (long long)i);
        last = next;
    }
    if (last > b->T)
        return FAIL(bi, "cu_seqlens: ends at %lld, the tensors have %lld tokens", (long long)last,
                    (long long)b->T);
    return GDR_OK;
}

static gdr_status check_state(const Binder *bi, const char *name, const gdr_tensor *t) {
    if (!t)
        return GDR_OK;
    char have[SHAPE_TEXT], want[SHAPE_TEXT];
    const int64_t need[4] = {bi->b->N, bi->b->H, bi->k->axis.at[AXIS_K].size,
                             bi->k->axis.at[AXIS_V].size};
    TRY(check_tensor(bi, name, t));
    TRY(check_dtype(bi, name, t, GDR_F32));
    if (t->ndim != 4 || memcmp(t->shape, need, sizeof need))
        return FAIL(bi, "%s: shape is %s, need %s", name, shape_text(t->ndim, t->shape, have),
                    shape_text(4, need, want));
    return GDR_OK;
}

/* the frame ------------------------------------------------------------------------------------ */

static gdr_status size_workspace(const Binder *bi) {
    BoundLaunch *b = bi->b;
    const Record *r = &bi->kernel->rec;
    b->slots = 0;
    b->workspace = 0;
    if (r->algo != ALGO_chunk)
        return GDR_OK;
    b->slots = frame_slots(b->T, b->N, b->packed, r->module.chunk);
    int64_t bytes;
    if (__builtin_mul_overflow(b->slots, b->HF, &bytes) ||
        __builtin_mul_overflow(bytes, r->module.ws_bytes_per_slot_head, &bytes))
        return FAIL(bi, "the workspace for %lld chunks and %lld heads overflows 64 bits",
                    (long long)b->slots, (long long)b->HF);
    b->workspace = (size_t)bytes;
    return GDR_OK;
}

static int64_t address(const gdr_tensor *t) {
    return t ? (int64_t)(uintptr_t)t->data : 0;
}

static void fill_frame(const Binder *bi) {
    const BoundLaunch *b = bi->b;
    const gdr_launch *l = bi->launch;
    int64_t *f = b->frame;
    f[FRAME_T] = b->T;
    f[FRAME_N] = b->N;
    f[FRAME_H] = b->H;
    f[FRAME_HF] = b->HF;
    f[FRAME_CU] = address(l->cu_seqlens);
    f[FRAME_CU_WIDTH] = l->cu_seqlens && l->cu_seqlens->dtype == GDR_I32 ? 4 : 8;
    f[FRAME_S0] = address(l->S0);
    f[FRAME_S] = address(l->S);
    f[FRAME_WS] = (int64_t)(uintptr_t)l->workspace;
    f[FRAME_SLOTS] = b->slots;
    for (int i = 0; i < bi->k->in.count; i++) {
        f[frame_in_ptr(bi->k, i)] = address(bi->in[i]);
        f[frame_in_heads(bi->k, i)] = heads_of(&bi->k->in.at[i], bi->in[i]);
    }
    for (int i = 0; i < bi->k->out.count; i++)
        f[frame_out_ptr(bi->k, i)] = address(bi->out[i]);
}

static gdr_status bind_all(const Binder *bi) {
    if (bi->launch->size != sizeof *bi->launch)
        return ctx_fail(bi->kernel->ctx, GDR_EUSAGE, "gdr_launch.size is %zu, need %zu",
                        bi->launch->size, sizeof *bi->launch);
    TRY(match_names(bi));
    TRY(check_ports(bi));
    TRY(check_sequences(bi));
    TRY(check_state(bi, "S0", bi->launch->S0));
    TRY(check_state(bi, "S", bi->launch->S));
    TRY(size_workspace(bi));
    fill_frame(bi);
    return GDR_OK;
}

gdr_status launch_bind(gdr_kernel *kernel, const gdr_launch *launch, bool sizes_only,
                       BoundLaunch *out) {
    const Kernel *k = kernel->rec.shell;
    *out = (BoundLaunch){0};
    const gdr_tensor **slots = calloc((size_t)(k->in.count + k->out.count), sizeof *slots);
    out->frame = calloc((size_t)frame_fields(k), sizeof *out->frame);
    gdr_status status;
    if (!slots || !out->frame) {
        status = ctx_fail(kernel->ctx, GDR_ENOMEM, "out of memory");
    } else {
        Binder bi = {.kernel = kernel,
                     .k = k,
                     .launch = launch,
                     .sizes_only = sizes_only,
                     .in = slots,
                     .out = slots + k->in.count,
                     .b = out};
        status = bind_all(&bi);
    }
    free(slots);
    if (status) {
        free(out->frame);
        out->frame = NULL;
    }
    return status;
}
