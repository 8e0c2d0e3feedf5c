/* From a spec to a loaded kernel, through the cache.
 *
 *     options checked -> target resolved -> key -> cache entry?  yes: record_read -> load
 *                                                   no:  job_build -> record_write -> entry -> load
 *
 * A fresh record goes through the same bytes as a cached one, so both ways load identically. Memory
 * that runs out anywhere in between unwinds to compile_input, which frees everything.
 */
#include "runtime/runtime.h"

#include <errno.h>
#include <llvm-c/Core.h>
#include <llvm-c/TargetMachine.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* options -------------------------------------------------------------------------------------- */

const char *target_for_gpu(int cc) {
    const char *best = NULL;
    int best_cc = 0;
    for (int i = 0; i < target_count; i++) {
        char *suffix;
        if (!target_list[i].gpu)
            continue;
        int t = (int)strtol(target_list[i].name + 3, &suffix, 10);
        bool exact = *suffix == 'a'; /* such code runs on this generation alone */
        if ((exact ? t == cc : t <= cc) && (t > best_cc || (t == best_cc && exact))) {
            best = target_list[i].name;
            best_cc = t;
        }
    }
    return best;
}

static gdr_status unknown_target(Job *job, const char *name) {
    char list[256] = "host, cuda";
    for (int i = 0; i < target_count; i++)
        if (target_list[i].gpu)
            snprintf(list + strlen(list), sizeof list - strlen(list), ", %s", target_list[i].name);
    return ctx_fail(job->ctx, GDR_EUSAGE, "unknown target %s; known: %s", name, list);
}

/* Whether code for `target` runs on a device of compute capability `cc`. */
static bool target_runs_on(const char *target, int cc) {
    char *suffix;
    int t = (int)strtol(target + 3, &suffix, 10);
    return *suffix == 'a' ? t == cc : t <= cc;
}

static gdr_status resolve_target(Job *job) {
    const char *name = job->opt.target ? job->opt.target : "host";
    bool device_chooses = strcmp(name, "cuda") == 0;
    const Target *t = device_chooses ? NULL : target_find(name);
    if (!device_chooses && !t)
        return unknown_target(job, name);
    if (t && !t->gpu) {
        job->target = t->name;
        return GDR_OK;
    }
    if (device_chooses || !job->extra.no_load) {
        Cuda *cuda = ctx_cuda(job->ctx);
        if (!cuda)
            return GDR_ENODEV;
        int cc = cuda_compute_capability(cuda);
        job->target = device_chooses ? target_for_gpu(cc) : t->name;
        if (!job->target || !target_runs_on(job->target, cc))
            return ctx_fail(job->ctx, GDR_ENODEV, "%s (compute capability %d.%d) cannot run %s",
                            cuda_device_name(cuda), cc / 10, cc % 10,
                            job->target ? job->target : "any target of gdrc");
        if (!job->extra.no_load)
            job->cuda = cuda;
    } else {
        job->target = t->name;
    }
    return GDR_OK;
}

static gdr_status check_pass(Job *job) {
    gdr_compile_options *o = &job->opt;
    if ((unsigned)o->pass > GDR_PASS_BACKWARD)
        return ctx_fail(job->ctx, GDR_EUSAGE, "unknown pass %d", (int)o->pass);
    if (o->nupstream < 0 || o->ngradients < 0)
        return ctx_fail(job->ctx, GDR_EUSAGE, "a negative count in gdr_compile_options");
    if (o->pass == GDR_PASS_FORWARD && (o->upstream || o->gradients))
        return ctx_fail(job->ctx, GDR_EUSAGE, "a forward pass has no gradients");
    if ((unsigned)o->save > GDR_SAVE_ALL)
        return ctx_fail(job->ctx, GDR_EUSAGE, "save %d: there is no such choice", (int)o->save);
    if (o->pass == GDR_PASS_BACKWARD && o->save)
        return ctx_fail(job->ctx, GDR_EUSAGE, "a backward pass saves nothing");
    return GDR_OK;
}

static gdr_status check_states(Job *job) {
    const gdr_compile_options *o = &job->opt;
    Elem e;
    if (!elem_of_dtype(o->state_dtype, &e) || e == ELEM_f64)
        return ctx_fail(job->ctx, GDR_EUSAGE, "%s is not a type of states",
                        gdr_dtype_name(o->state_dtype));
    if ((unsigned)o->state_layout > GDR_LAYOUT_VK)
        return ctx_fail(job->ctx, GDR_EUSAGE, "unknown layout %d of states", (int)o->state_layout);
    if (o->pass == GDR_PASS_BACKWARD && (e != ELEM_f32 || o->state_layout))
        return ctx_fail(job->ctx, GDR_EUSAGE, "the states of a backward pass are f32 [K,V]");
    return GDR_OK;
}

static gdr_status check_options(Job *job, const gdr_compile_options *o) {
    if (o && o->size != sizeof *o)
        return ctx_fail(job->ctx, GDR_EUSAGE, "gdr_compile_options.size is %zu, need %zu", o->size,
                        sizeof *o);
    if (o)
        job->opt = *o;
    if (job->opt.opt_level < 0 || job->opt.opt_level > 3)
        return ctx_fail(job->ctx, GDR_EUSAGE, "opt_level %d: need 1, 2 or 3", job->opt.opt_level);
    if (job->opt.chunk_rows < 0 || job->opt.chunk_rows > 256)
        return ctx_fail(job->ctx, GDR_EUSAGE, "a chunk has 1 to 256 rows, not %d",
                        job->opt.chunk_rows);
    if ((unsigned)job->opt.algo > GDR_ALGO_RECURRENT)
        return ctx_fail(job->ctx, GDR_EUSAGE, "unknown algorithm %d", (int)job->opt.algo);
    if (job->opt.ndims < 0 || job->opt.ntypes < 0)
        return ctx_fail(job->ctx, GDR_EUSAGE, "a negative count in gdr_compile_options");
    for (int i = 0; i < job->opt.ndims; i++)
        if (!job->opt.dims[i].name)
            return ctx_fail(job->ctx, GDR_EUSAGE, "dims[%d] has no name", i);
    gdr_status status = check_pass(job);
    if (!status)
        status = check_states(job);
    if (!status)
        status = resolve_target(job);
    /* GPU code gains nothing measurable from the third level, which costs most of the time. */
    if (!status && !job->opt.opt_level)
        job->opt.opt_level = target_find(job->target)->gpu ? 2 : 3;
    return status;
}

/* the key -------------------------------------------------------------------------------------- */

static void hash_machine(const Job *job, CacheHash *h) {
    if (strcmp(job->target, "host") == 0) {
        char *cpu = job->extra.cpu ? NULL : LLVMGetHostCPUName();
        char *features = job->extra.features ? NULL : LLVMGetHostCPUFeatures();
        cache_hash_text(h, cpu ? cpu : job->extra.cpu);
        cache_hash_text(h, features ? features : job->extra.features);
        LLVMDisposeMessage(cpu);
        LLVMDisposeMessage(features);
    } else if (job->cuda) {
        cache_hash_int(h, cuda_compute_capability(job->cuda));
        cache_hash_int(h, cuda_driver_version(job->cuda));
    }
}

static void hash_names(CacheHash *h, const char *const *name, int n) {
    cache_hash_int(h, name ? n : -1);
    for (int i = 0; name && i < n; i++)
        cache_hash_text(h, name[i]);
}

static CacheKey make_key(Job *job) {
    CacheHash *h = cache_hash_new();
    if (!h)
        longjmp(*job->arena.oom, 1);
    const gdr_compile_options *o = &job->opt;
    unsigned major, minor, patch;
    LLVMGetVersion(&major, &minor, &patch);
    cache_hash_build(h);
    cache_hash_int(h, major * 1000000 + minor * 1000 + patch);
    cache_hash_bytes(h, job->source->text, job->source->len);
    cache_hash_text(h, o->variant);
    cache_hash_int(h, o->ndims);
    for (int i = 0; i < o->ndims; i++) {
        cache_hash_text(h, o->dims[i].name);
        cache_hash_int(h, o->dims[i].size);
    }
    cache_hash_int(h, o->dtype);
    cache_hash_int(h, o->ntypes);
    for (int i = 0; i < o->ntypes; i++) {
        cache_hash_text(h, o->types[i].name);
        cache_hash_int(h, o->types[i].dtype);
    }
    cache_hash_int(h, o->pass);
    cache_hash_int(h, o->save);
    hash_names(h, o->upstream, o->nupstream);
    hash_names(h, o->gradients, o->ngradients);
    cache_hash_int(h, o->algo);
    cache_hash_int(h, o->chunk_rows);
    cache_hash_int(h, o->opt_level);
    cache_hash_int(h, o->state_dtype);
    cache_hash_int(h, o->state_layout);
    cache_hash_text(h, job->extra.prefix);
    cache_hash_int(h, job->extra.want_llvm);
    cache_hash_int(h, job->extra.v_tile);
    cache_hash_int(h, job->cuda != NULL);
    cache_hash_text(h, job->target);
    hash_machine(job, h);
    return cache_hash_end(h);
}

/* loading -------------------------------------------------------------------------------------- */

static gdr_status load_host(Job *job) {
    gdr_kernel *kernel = job->kernel;
    const CgModule *m = &kernel->rec.module;
    char why[512] = "";
    if (m->entry.count < 1 || !m->object)
        return ctx_fail(job->ctx, GDR_EUNSUPPORTED, "no host code was made");
    kernel->host = hostjit_load(m->object, m->object_len, why, sizeof why);
    if (kernel->host)
        kernel->host_entry = hostjit_symbol(kernel->host, m->entry.at[0].symbol);
    if (!kernel->host_entry)
        return ctx_fail(job->ctx, GDR_EUNSUPPORTED, "host code cannot be loaded: %s",
                        why[0] ? why : m->entry.at[0].symbol);
    return GDR_OK;
}

static gdr_status load_gpu(Job *job) {
    gdr_kernel *kernel = job->kernel;
    const Record *r = &kernel->rec;
    int n = r->module.entry.count;
    CudaError e = {.text = "a cached kernel lacks code"};
    kernel->cuda_function = NEW_ARRAY(&kernel->arena, void *, n + 1);
    kernel->cuda_module = NEW_ARRAY(&kernel->arena, CudaModule *, n + 1);
    bool ok = r->cubin.count == n;
    for (int i = 0; ok && i < n; i++) {
        const CgEntry *entry = &r->module.entry.at[i];
        kernel->cuda_module[i] = cuda_module_load(job->cuda, r->cubin.at[i].bytes, &e);
        if (kernel->cuda_module[i])
            kernel->cuda_function[i] = cuda_function(job->cuda, kernel->cuda_module[i],
                                                     entry->symbol, entry->smem_bytes, &e);
        ok = kernel->cuda_function[i] != NULL;
    }
    if (!ok)
        return ctx_fail(job->ctx, e.no_memory ? GDR_ENOMEM : GDR_EDRIVER, "%s", e.text);
    for (int i = 0; i < r->warning.count; i++)
        ctx_log(job->ctx, GDR_WARNING, "%s on %s: %s", r->shell->name, r->target, r->warning.at[i]);
    return GDR_OK;
}

/* Frees what loading made, so that a kernel can be loaded again or destroyed. */
static void unload(gdr_kernel *kernel) {
    hostjit_free(kernel->host);
    for (int i = 0; kernel->cuda_module && i < kernel->rec.module.entry.count; i++)
        cuda_module_free(kernel->ctx->cuda, kernel->cuda_module[i]);
    kernel->host = NULL;
    kernel->host_entry = NULL;
    kernel->cuda_module = NULL;
    arena_free(&kernel->arena);
}

/* Record bytes -> a kernel ready to launch. */
static gdr_status load(Job *job, const void *bytes, size_t len) {
    gdr_kernel *kernel = job->kernel;
    if (!record_read(&kernel->arena, bytes, len, &kernel->rec))
        return ctx_fail(job->ctx, GDR_EUNSUPPORTED, "a cached kernel cannot be read");
    Buf text;
    buf_init(&text, &kernel->arena);
    manifest_print(&kernel->rec, &text);
    kernel->manifest = text.text;
    if (job->extra.no_load)
        return GDR_OK;
    return job->cuda ? load_gpu(job) : load_host(job);
}

/* the way through ------------------------------------------------------------------------------ */

static gdr_status open_source(Job *job) {
    const CompileInput *in = job->input;
    if (in->source) {
        job->source = in->source;
    } else if (in->path) {
        job->source = source_from_file(&job->arena, in->path);
        if (!job->source)
            return ctx_fail(job->ctx, GDR_EINPUT, "%s: cannot be read: %s", in->path,
                            errno == EFBIG ? "larger than 1 MiB" : strerror(errno));
    } else {
        if (in->length > 1 << 20)
            return ctx_fail(job->ctx, GDR_EINPUT, "%s: larger than 1 MiB", in->name);
        job->source =
            source_from_text(&job->arena, in->name ? in->name : "spec", in->text, in->length);
    }
    return GDR_OK;
}

static void store(Job *job, CacheKey key, const Buf *bytes) {
    gdr_context *ctx = job->ctx;
    char why[512];
    if (cache_write(ctx->cache_dir, key, bytes->text, bytes->len, why, sizeof why))
        return;
    pthread_mutex_lock(ctx->lock);
    bool first = !ctx->cache_warned;
    ctx->cache_warned = true;
    pthread_mutex_unlock(ctx->lock);
    if (first)
        ctx_log(ctx, GDR_WARNING, "compiled kernels are not kept: %s", why);
}

static bool load_cached(Job *job, CacheKey key) {
    size_t len;
    void *bytes = cache_read(job->ctx->cache_dir, key, &len);
    if (!bytes)
        return false;
    /* The record's texts are copies, so the entry's bytes may go before the kernel does. */
    void *copy = memcpy(arena_alloc(&job->arena, len), bytes, len);
    free(bytes);
    if (load(job, copy, len) == GDR_OK)
        return true;
    unload(job->kernel);
    return false;
}

static gdr_status compile(Job *job) {
    gdr_status status = open_source(job);
    if (status)
        return status;
    bool cached = job->ctx->cache_dir && !job->extra.watch && !job->extra.no_cache;
    CacheKey key = make_key(job);
    if (cached && load_cached(job, key)) {
        job->kernel->from_cache = true;
        return GDR_OK;
    }
    Record r;
    Buf bytes;
    status = job_build(job, &r);
    if (status)
        return status;
    buf_init(&bytes, &job->arena);
    record_write(&r, &bytes);
    if (cached)
        store(job, key, &bytes);
    return load(job, bytes.text, bytes.len);
}

gdr_status compile_input(gdr_context *ctx, const CompileInput *input,
                         const gdr_compile_options *options, const CompileExtra *extra,
                         gdr_kernel **out) {
    *out = NULL;
    Job *job = calloc(1, sizeof *job);
    gdr_kernel *kernel = calloc(1, sizeof *kernel);
    jmp_buf oom;
    if (!job || !kernel) {
        free(job);
        free(kernel);
        return ctx_fail(ctx, GDR_ENOMEM, "out of memory");
    }
    job->ctx = kernel->ctx = ctx;
    job->input = input;
    job->kernel = kernel;
    if (extra)
        job->extra = *extra;
    arena_init(&job->arena, &oom);
    arena_init(&kernel->arena, &oom);
    job->arena.fail_after = job->extra.fail_after;
    gdr_status status;
    if (setjmp(oom)) {
        status = ctx_fail(ctx, GDR_ENOMEM, "out of memory");
    } else {
        status = check_options(job, options);
        if (!status)
            status = compile(job);
    }
    kernel->arena.oom = NULL;
    job_free(job);
    if (status) {
        unload(kernel);
        free(kernel);
    } else {
        *out = kernel;
    }
    return status;
}

gdr_status gdr_compile_string(gdr_context *ctx, const char *name, const char *text, size_t length,
                              const gdr_compile_options *options, gdr_kernel **kernel) {
    CompileInput input = {.name = name, .text = text, .length = length};
    return compile_input(ctx, &input, options, NULL, kernel);
}

gdr_status gdr_compile_file(gdr_context *ctx, const char *path, const gdr_compile_options *options,
                            gdr_kernel **kernel) {
    CompileInput input = {.path = path};
    return compile_input(ctx, &input, options, NULL, kernel);
}

void gdr_kernel_destroy(gdr_kernel *kernel) {
    if (!kernel)
        return;
    unload(kernel);
    free(kernel);
}
