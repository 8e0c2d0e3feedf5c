/* From a caller's tensors to the launch frame. Everything a caller can get wrong about a launch is
 * found here, before any code runs, and told in one line that names the tensor and both shapes.
 *
 * Single tensors are checked in tensor.c, states and their pools in states.c.
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
    BindFor what;
    const Record *r;
    bool backward;
    const gdr_tensor **in, **out; /* per port; in[] from r->inputs on: upstream gradients */
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

/* "[B,T,heads,128]": what a port's tensor looks like in general. */
static const char *port_text(const Kernel *k, const Port *p, char text[SHAPE_TEXT]) {
    size_t at = (size_t)snprintf(text, SHAPE_TEXT, p->is_param ? "[heads" : "[B,T,heads");
    for (int i = 0; i < p->shape.rank; i++)
        at +=
            (size_t)snprintf(text + at, SHAPE_TEXT - at, ",%d", k->axis.at[p->shape.axis[i]].size);
    snprintf(text + at, SHAPE_TEXT - at, "]");
    return text;
}

static gdr_status check_tensor(const Binder *bi, const char *name, const gdr_tensor *t) {
    return tensor_check(bi->kernel, name, t, bi->what == BIND_launch, false);
}

static gdr_status check_dtype(const Binder *bi, const char *name, const gdr_tensor *t,
                              gdr_dtype want) {
    return tensor_check_type(bi->kernel, name, t, want);
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
            return FAIL(bi, "%s: %s%s has no such tensor", a->name,
                        bi->backward ? "the backward pass of the variant " : "the variant ",
                        bi->k->name);
        if (*slot)
            return FAIL(bi, "%s: given twice", a->name);
        *slot = &a->tensor;
    }
    for (int i = 0; i < bi->r->inputs; i++)
        if (!bi->in[i])
            return FAIL(bi, "%s: missing %s", bi->k->in.at[i].name,
                        bi->k->in.at[i].is_param ? "parameter" : "input");
    for (int i = 0; i < bi->k->out.count && !bi->backward; i++)
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
    for (int i = 0; i < bi->r->inputs; i++) {
        int64_t h = heads_of(&bi->k->in.at[i], bi->in[i]);
        if (!widest || h > b->H) {
            widest = &bi->k->in.at[i];
            b->H = h;
        }
    }
    for (int i = bi->r->inputs; !widest && i < bi->k->in.count; i++)
        b->H = bi->in[i] ? heads_of(&bi->k->in.at[i], bi->in[i]) : b->H;
    if (!widest && !bi->backward) /* a spec without inputs: its outputs decide */
        b->H = heads_of(&bi->k->out.at[0], bi->out[0]);
    b->HF = 1;
    for (int i = 0; i < bi->r->inputs; i++) {
        const Port *p = &bi->k->in.at[i];
        int64_t h = heads_of(p, bi->in[i]);
        if (b->H && (h == 0 || b->H % h))
            return FAIL(bi, "%s: %lld heads do not divide the %lld of %s", p->name, (long long)h,
                        (long long)b->H, widest->name);
        if (b->H && bi->kernel->rec.factor_reads[i])
            b->HF *= h / gcd(b->HF, h); /* all divide H, so this does */
    }
    if (bi->backward || record_saves_all(bi->r))
        b->HF = b->H; /* a record for each head: gradients are each head's own */
    return GDR_OK;
}

static gdr_status check_all_heads(const Binder *bi, const Port *p, const gdr_tensor *t) {
    if (heads_of(p, t) == bi->b->H)
        return GDR_OK;
    return FAIL(bi, "%s: %lld heads, need %lld", p->name, (long long)heads_of(p, t),
                (long long)bi->b->H);
}

/* A gradient has the heads of its input or param. */
static gdr_status check_gradient_heads(const Binder *bi, int out) {
    const Port *p = &bi->k->out.at[out];
    const char *name = bi->r->of[bi->k->in.count + out];
    int of = kernel_find_port(bi->k, name, false);
    int64_t have = heads_of(p, bi->out[out]), want = heads_of(&bi->k->in.at[of], bi->in[of]);
    if (have == want)
        return GDR_OK;
    return FAIL(bi, "%s: %lld heads, need %lld, those of %s", p->name, (long long)have,
                (long long)want, name);
}

static gdr_status check_ports(const Binder *bi) {
    const Kernel *k = bi->k;
    const char *first = NULL;
    for (int i = 0; i < k->in.count + k->out.count; i++) {
        const Port *p = i < k->in.count ? &k->in.at[i] : &k->out.at[i - k->in.count];
        const gdr_tensor *t = bi->in[i]; /* out[] lies behind in[] */
        if (!t)
            continue;
        TRY(check_port(bi, p, t));
        if (!p->is_param)
            TRY(check_tokens(bi, p, t, &first));
    }
    TRY(check_heads(bi));
    for (int i = bi->r->inputs; i < k->in.count; i++)
        if (bi->in[i])
            TRY(check_all_heads(bi, &k->in.at[i], bi->in[i]));
    for (int i = 0; i < k->out.count; i++)
        if (bi->out[i])
            TRY(bi->backward ? check_gradient_heads(bi, i)
                             : check_all_heads(bi, &k->out.at[i], bi->out[i]));
    return GDR_OK;
}

/* sequences and states ------------------------------------------------------------------------- */

static gdr_status check_sequences(const Binder *bi) {
    BoundLaunch *b = bi->b;
    const gdr_tensor *cu = bi->launch->cu_seqlens;
    b->packed = cu != NULL;
    b->N = b->B;
    b->first_row = 0;
    if (__builtin_mul_overflow(b->B, b->T, &b->rows))
        return FAIL(bi, "B * T overflows 64 bits");
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
    if (bi->what != BIND_launch || cu->device != GDR_CPU)
        return GDR_OK;
    int64_t last = tensor_integer(cu, 0);
    if (last < 0)
        return FAIL(bi, "cu_seqlens: begins with %lld", (long long)last);
    for (int64_t i = 1; i <= b->N; i++) {
        int64_t next = tensor_integer(cu, i);
        if (next < last)
            return FAIL(bi, "cu_seqlens: decreases from %lld to %lld at entry %lld",
                        (long long)last, (long long)next, (long long)i);
        last = next;
    }
    if (last > b->T)
        return FAIL(bi, "cu_seqlens: ends at %lld, the tensors have %lld tokens", (long long)last,
                    (long long)b->T);
    b->first_row = tensor_integer(cu, 0);
    b->rows = last - b->first_row;
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

/* Whether this launch saves, or has what was saved. A backward pass needs chunks as long as those of
 * the forward pass: else its slots are others; and of records that it does not make itself the same. */
static gdr_status check_saved(const Binder *bi) {
    const gdr_saved *s = bi->launch->saved;
    int chunk = bi->r->module.chunk;
    bool fits = record_save_every(bi->r) > 0;
    bi->b->saved = s && fits;
    bi->b->all = record_saves_all(bi->r);
    if (!s || !fits)
        return !s || bi->backward || bi->r->save
                   ? GDR_OK
                   : ctx_fail(bi->kernel->ctx, GDR_EUSAGE, "%s was compiled to save nothing",
                              bi->k->name);
    if (!bi->backward || (bi->what != BIND_launch && !s->chunk))
        return GDR_OK;
    if (s->chunk && s->chunk != chunk)
        return FAIL(bi, "saved: by a forward pass with chunks of %d tokens, this kernel's have %d",
                    s->chunk, chunk);
    if (s->chunk && s->records && s->records != bi->r->module.records)
        return FAIL(bi, "saved: all of a forward pass whose chunks hold other values than this kernel "
                        "works on; both must be compiled with the same sizes and types, and this one for "
                        "gradients of all outputs");
    bi->b->saved = s->chunk > 0;
    bi->b->all = bi->b->saved && s->records;
    return GDR_OK;
}

static gdr_status check_saved_bytes(const Binder *bi) {
    const gdr_saved *s = bi->launch->saved;
    const BoundLaunch *b = bi->b;
    if (!b->saved || bi->what != BIND_launch || !b->saved_bytes)
        return GDR_OK;
    if (s->bytes < b->saved_bytes)
        return FAIL(bi, "saved: %zu bytes, need %zu", s->bytes, b->saved_bytes);
    if (!s->data || (uintptr_t)s->data % 256)
        return FAIL(bi, "saved: address %p is not a multiple of 256 bytes", s->data);
    return GDR_OK;
}

/* the frame ------------------------------------------------------------------------------------ */

static gdr_status size_workspace(const Binder *bi) {
    BoundLaunch *b = bi->b;
    const Cuda *cuda = bi->kernel->ctx->cuda;
    b->processors = record_on_gpu(bi->r) && cuda ? cuda_multiprocessors(cuda) : 0;
    if (workspace_plan(bi->r, b, bi->launch, bi->what))
        return GDR_OK;
    return FAIL(bi, "the workspace for %lld tokens of %lld sequences and %lld heads overflows 64 bits",
                (long long)b->T, (long long)b->N, (long long)b->H);
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
    states_fill_frame(l, f);
    f[FRAME_WS] = (int64_t)(uintptr_t)l->workspace;
    f[FRAME_SLOTS] = b->slots;
    f[FRAME_SAVED] = b->saved ? (int64_t)(uintptr_t)l->saved->data : 0;
    for (int i = 0; i < bi->k->in.count; i++) {
        f[frame_in_ptr(bi->k, i)] = address(bi->in[i]);
        f[frame_in_heads(bi->k, i)] = bi->in[i] ? heads_of(&bi->k->in.at[i], bi->in[i]) : 0;
    }
    for (int i = 0; i < bi->k->out.count; i++)
        f[frame_out_ptr(bi->k, i)] = address(bi->out[i]);
    if (bi->backward) {
        f[frame_costate(bi->k)] = address(l->dS);
        f[frame_costate(bi->k) + 1] = address(l->dS0);
    }
}

static gdr_status bind_all(const Binder *bi) {
    if (bi->launch->size != sizeof *bi->launch)
        return ctx_fail(bi->kernel->ctx, GDR_EUSAGE, "gdr_launch.size is %zu, need %zu",
                        bi->launch->size, sizeof *bi->launch);
    TRY(match_names(bi));
    TRY(check_ports(bi));
    TRY(check_sequences(bi));
    TRY(states_check(bi->kernel, bi->launch, bi->what == BIND_launch, bi->b));
    if (bi->backward && bi->launch->S)
        return FAIL(bi, "S: a backward pass does not give the final state");
    if (!bi->backward && (bi->launch->dS || bi->launch->dS0))
        return FAIL(bi, "%s: a forward pass has no gradients", bi->launch->dS ? "dS" : "dS0");
    TRY(check_state(bi, "dS", bi->launch->dS));
    TRY(check_state(bi, "dS0", bi->launch->dS0));
    TRY(check_saved(bi));
    TRY(size_workspace(bi));
    fill_frame(bi);
    return check_saved_bytes(bi);
}

gdr_status launch_bind(gdr_kernel *kernel, const gdr_launch *launch, BindFor what,
                       BoundLaunch *out) {
    const Record *r = &kernel->rec;
    const Kernel *k = r->shell;
    *out = (BoundLaunch){
        .tensor = calloc((size_t)(k->in.count + k->out.count + 1), sizeof *out->tensor),
        .partial = calloc((size_t)k->out.count + 1, sizeof *out->partial),
        .frame = calloc((size_t)record_frame_fields(r), sizeof *out->frame),
    };
    gdr_status status;
    if (!out->tensor || !out->partial || !out->frame) {
        status = ctx_fail(kernel->ctx, GDR_ENOMEM, "out of memory");
    } else {
        Binder bi = {.kernel = kernel,
                     .k = k,
                     .launch = launch,
                     .what = what,
                     .r = r,
                     .backward = r->pass == GDR_PASS_BACKWARD,
                     .in = out->tensor,
                     .out = out->tensor + k->in.count,
                     .b = out};
        status = bind_all(&bi);
    }
    if (status)
        launch_free(out);
    return status;
}

void launch_free(BoundLaunch *b) {
    free(b->frame);
    free(b->tensor);
    free(b->partial);
    *b = (BoundLaunch){0};
}
