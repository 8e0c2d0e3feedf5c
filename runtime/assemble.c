/* PTX -> cubins, every kernel of a module at the same time: assembling takes longer than all else,
 * and kernels do not depend on each other. By the driver's linker, else by ptxas where it is found.
 */
#include "runtime/runtime.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One kernel on its way. What comes back from malloc stays here until the job is freed, since the
 * arena may run out before it has been copied. */
typedef struct Assembly {
    Job *job;
    const char *ptx;
    pthread_t thread;
    bool started, ok;
    void *cubin;
    size_t len;
    char *log;
    CudaError e;
} Assembly;

static void by_ptxas(Assembly *a) {
    char arch[32];
    char *ptxas = ptxas_find();
    if (!ptxas)
        return; /* what the driver said stands */
    int cc = cuda_compute_capability(a->job->cuda);
    free(a->log);
    snprintf(arch, sizeof arch, "sm_%d%s", cc, strchr(a->job->target + 3, 'a') ? "a" : "");
    a->ok =
        ptxas_run(ptxas, a->ptx, arch, &a->cubin, &a->len, &a->log, a->e.text, sizeof a->e.text);
    free(ptxas);
}

static void *assemble_one(void *user) {
    Assembly *a = user;
    a->ok = cuda_link(a->job->cuda, a->ptx, &a->cubin, &a->len, &a->log, &a->e);
    if (!a->ok && !a->e.no_memory)
        by_ptxas(a);
    return NULL;
}

static void keep_warning(void *user, const char *line) {
    Job *job = user;
    VEC_PUSH(&job->arena, &job->warning, arena_strndup(&job->arena, line, strlen(line)));
}

/* All at once; the calling thread does the last, and those that got no thread. */
static void assemble_all(Assembly *a, int n) {
    for (int i = 0; i < n - 1; i++)
        a[i].started = pthread_create(&a[i].thread, NULL, assemble_one, &a[i]) == 0;
    for (int i = 0; i < n; i++)
        if (!a[i].started)
            assemble_one(&a[i]);
    for (int i = 0; i < n - 1; i++)
        if (a[i].started)
            pthread_join(a[i].thread, NULL);
}

gdr_status job_assemble(Job *job, Record *r) {
    int n = r->module.entry.count;
    Assembly *a = job->assembly = calloc((size_t)n, sizeof *a);
    if (!a)
        return ctx_fail(job->ctx, GDR_ENOMEM, "out of memory");
    job->assemblies = n;
    for (int i = 0; i < n; i++) {
        const char *symbol = r->module.entry.at[i].symbol;
        a[i].job = job;
        a[i].ptx = ptx_only(&job->arena, r->module.text, symbol);
        if (!a[i].ptx)
            BUG("no kernel %s in the PTX", symbol);
    }
    assemble_all(a, n);
    for (int i = 0; i < n; i++) {
        if (!a[i].ok)
            return ctx_fail(job->ctx, a[i].e.no_memory ? GDR_ENOMEM : GDR_EDRIVER, "%s",
                            a[i].e.text);
        Image image = {memcpy(arena_alloc(&job->arena, a[i].len), a[i].cubin, a[i].len), a[i].len};
        VEC_PUSH(&job->arena, &r->cubin, image);
        cubin_scan_log(a[i].log, keep_warning, job);
    }
    r->warning.at = job->warning.at;
    r->warning.count = job->warning.count;
    r->module.text = NULL; /* the cubins are what is kept */
    r->module.text_len = 0;
    return GDR_OK;
}

void job_free(Job *job) {
    for (int i = 0; i < job->assemblies; i++) {
        free(job->assembly[i].cubin);
        free(job->assembly[i].log);
    }
    free(job->assembly);
    arena_free(&job->arena);
    free(job);
}
