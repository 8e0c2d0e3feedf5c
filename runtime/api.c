/* The public functions of gdr.h that are not compilation or launching: status texts, contexts, the
 * last error of each thread, inspection. */
#include "runtime/runtime.h"

#include <llvm-c/Core.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* status --------------------------------------------------------------------------------------- */

const char *gdr_strstatus(gdr_status status) {
    switch (status) {
#define GDR_X(name, exit_status, text) \
    case GDR_##name: return text;
        GDR_STATUS_LIST(GDR_X)
#undef GDR_X
    case GDR_STATUS_COUNT: break;
    }
    return "unknown status";
}

int gdr_exit_status(gdr_status status) {
    switch (status) {
#define GDR_X(name, exit_status, text) \
    case GDR_##name: return exit_status;
        GDR_STATUS_LIST(GDR_X)
#undef GDR_X
    case GDR_STATUS_COUNT: break;
    }
    return 3;
}

const char *gdr_version(void) {
    return "gdrc " GDR_VERSION ", LLVM " GDR_TEXT(LLVM_VERSION_MAJOR) "." GDR_TEXT(
        LLVM_VERSION_MINOR) "." GDR_TEXT(LLVM_VERSION_PATCH);
}

/* data types ----------------------------------------------------------------------------------- */

const char *gdr_dtype_name(gdr_dtype type) {
    switch (type) {
    case GDR_F32: return "f32";
    case GDR_BF16: return "bf16";
    case GDR_F16: return "f16";
    case GDR_F64: return "f64";
    case GDR_I32: return "i32";
    case GDR_I64: return "i64";
    case GDR_DTYPE_COUNT: break;
    }
    return "unknown type";
}

size_t gdr_dtype_size(gdr_dtype type) {
    switch (type) {
    case GDR_F32:
    case GDR_I32: return 4;
    case GDR_BF16:
    case GDR_F16: return 2;
    case GDR_F64:
    case GDR_I64: return 8;
    case GDR_DTYPE_COUNT: break;
    }
    return 0;
}

gdr_dtype dtype_of_elem(Elem e) {
    switch (e) {
    case ELEM_f32: return GDR_F32;
    case ELEM_bf16: return GDR_BF16;
    case ELEM_f16: return GDR_F16;
    case ELEM_f64: return GDR_F64;
    }
    BUG("element type %d", (int)e);
}

bool elem_of_dtype(gdr_dtype type, Elem *e) {
    switch (type) {
    case GDR_F32: *e = ELEM_f32; return true;
    case GDR_BF16: *e = ELEM_bf16; return true;
    case GDR_F16: *e = ELEM_f16; return true;
    case GDR_F64: *e = ELEM_f64; return true;
    case GDR_I32:
    case GDR_I64:
    case GDR_DTYPE_COUNT: break;
    }
    return false;
}

/* errors --------------------------------------------------------------------------------------- */

/* One thread's last error. Entries stay until the context ends: their number is that of the
 * threads that ever failed. */
struct ThreadError {
    ThreadError *next;
    pthread_t thread;
    char text[1024];
};

static ThreadError *thread_error(gdr_context *ctx, bool make) {
    pthread_mutex_lock(ctx->lock);
    ThreadError *e = ctx->errors;
    while (e && !pthread_equal(e->thread, pthread_self()))
        e = e->next;
    if (!e && make && (e = calloc(1, sizeof *e))) {
        e->thread = pthread_self();
        e->next = ctx->errors;
        ctx->errors = e;
    }
    pthread_mutex_unlock(ctx->lock);
    return e;
}

gdr_status ctx_fail(gdr_context *ctx, gdr_status status, const char *fmt, ...) {
    ThreadError *e = thread_error(ctx, true);
    if (e) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(e->text, sizeof e->text, fmt, ap);
        va_end(ap);
    }
    return status;
}

void ctx_log(gdr_context *ctx, gdr_severity severity, const char *fmt, ...) {
    if (!ctx->log)
        return;
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    ctx->log(ctx->user, severity, text);
}

const char *gdr_last_error(gdr_context *ctx) {
    if (!ctx)
        return "no context";
    ThreadError *e = thread_error(ctx, false);
    return e ? e->text : "no error";
}

/* contexts ------------------------------------------------------------------------------------- */

gdr_status gdr_context_create(const gdr_context_options *options, gdr_context **out) {
    *out = NULL;
    if (options && options->size != sizeof *options)
        return GDR_EUSAGE;
    gdr_context *ctx = calloc(1, sizeof *ctx);
    pthread_mutex_t *lock = malloc(sizeof *lock);
    if (!ctx || !lock || pthread_mutex_init(lock, NULL)) {
        free(ctx);
        free(lock);
        return GDR_ENOMEM;
    }
    ctx->lock = lock;
    if (options) {
        ctx->threads = options->threads;
        ctx->device = options->device;
        ctx->diag = options->diag;
        ctx->log = options->log;
        ctx->user = options->user;
    }
    ctx->cache_dir = cache_directory(options ? options->cache_dir : NULL);
    *out = ctx;
    return GDR_OK;
}

void gdr_context_destroy(gdr_context *ctx) {
    if (!ctx)
        return;
    pool_free(ctx->pool);
    sides_free(ctx);
    cuda_close(ctx->cuda);
    while (ctx->errors) {
        ThreadError *next = ctx->errors->next;
        free(ctx->errors);
        ctx->errors = next;
    }
    pthread_mutex_destroy(ctx->lock);
    free(ctx->lock);
    free(ctx->cache_dir);
    free(ctx);
}

Cuda *ctx_cuda(gdr_context *ctx) {
    char why[512] = "";
    pthread_mutex_lock(ctx->lock);
    if (!ctx->cuda)
        ctx->cuda = cuda_open(ctx->device, why, sizeof why);
    Cuda *cuda = ctx->cuda;
    pthread_mutex_unlock(ctx->lock);
    if (!cuda)
        ctx_fail(ctx, GDR_ENODEV, "%s", why);
    return cuda;
}

Pool *ctx_pool(gdr_context *ctx) {
    pthread_mutex_lock(ctx->lock);
    if (!ctx->pool)
        ctx->pool = pool_new(ctx->threads);
    Pool *pool = ctx->pool;
    pthread_mutex_unlock(ctx->lock);
    if (!pool)
        ctx_fail(ctx, GDR_ENOMEM, "no memory for the CPU threads");
    return pool;
}

/* inspection ----------------------------------------------------------------------------------- */

int gdr_kernel_ports(const gdr_kernel *kernel) {
    return kernel->rec.shell->in.count + kernel->rec.shell->out.count;
}

static gdr_port_kind kind_of(const Record *r, int index) {
    const Kernel *k = r->shell;
    bool output = index >= k->in.count;
    bool param = output ? k->out.at[index - k->in.count].is_param : k->in.at[index].is_param;
    if (output && r->pass == GDR_PASS_BACKWARD)
        return param ? GDR_PARAM_GRADIENT : GDR_GRADIENT;
    if (output)
        return GDR_OUTPUT;
    return index >= r->inputs ? GDR_UPSTREAM : param ? GDR_PARAM : GDR_INPUT;
}

gdr_status gdr_kernel_port(const gdr_kernel *kernel, int index, gdr_port *port) {
    const Kernel *k = kernel->rec.shell;
    if (index < 0 || index >= k->in.count + k->out.count)
        return ctx_fail(kernel->ctx, GDR_EUSAGE, "no port %d: the kernel has %d", index,
                        k->in.count + k->out.count);
    bool output = index >= k->in.count;
    const Port *p = output ? &k->out.at[index - k->in.count] : &k->in.at[index];
    *port = (gdr_port){
        .name = p->name,
        .of = kernel->rec.of[index],
        .kind = kind_of(&kernel->rec, index),
        .dtype = dtype_of_elem(p->elem),
        .ndim = p->shape.rank,
        .lo = output ? -INFINITY : p->lo,
        .hi = output ? INFINITY : p->hi,
    };
    for (int i = 0; i < p->shape.rank; i++)
        port->shape[i] = k->axis.at[p->shape.axis[i]].size;
    return GDR_OK;
}

void gdr_kernel_facts(const gdr_kernel *kernel, gdr_facts *facts) {
    const Record *r = &kernel->rec;
    const Kernel *k = r->shell;
    *facts = (gdr_facts){
        .name = k->name,
        .target = r->target,
        .pass = r->pass,
        .algo = r->algo == ALGO_chunk ? GDR_ALGO_CHUNK : GDR_ALGO_RECURRENT,
        .K = k->axis.at[AXIS_K].size,
        .V = k->axis.at[AXIS_V].size,
        .chunk = r->algo == ALGO_chunk ? r->module.chunk : 0,
        .updates = k->facts.slots,
        .decay = decay_name(k->facts.decay),
        .chunkable = k->facts.chunkable,
        .why_not = k->facts.chunkable ? NULL : k->facts.why_not,
        .state_dtype = dtype_of_elem(r->state),
        .state_layout = r->state_vk ? GDR_LAYOUT_VK : GDR_LAYOUT_KV,
        .past = r->module.past,
        .from_cache = kernel->from_cache,
    };
}

const char *gdr_kernel_symbol(const gdr_kernel *kernel, int index) {
    const CgModule *m = &kernel->rec.module;
    return index >= 0 && index < m->entry.count ? m->entry.at[index].symbol : NULL;
}

const char *gdr_kernel_manifest(const gdr_kernel *kernel) {
    return kernel->manifest;
}
