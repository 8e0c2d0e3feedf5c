/* CPU threads that share the tasks of one launch.
 *
 * A launch's tasks are independent (sequence, head) pairs. Workers and the calling thread take runs
 * of them from one atomic counter until none is left. Launches from several threads take turns: the
 * machine is fully used by one. Scratch memory is kept a thread and grows before a launch begins,
 * so nothing can fail in the middle.
 */
#define _GNU_SOURCE
#include "runtime/runtime.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

typedef struct Worker {
    Pool *pool;
    pthread_t thread;
    void *scratch;
} Worker;

struct Pool {
    int threads;          /* the caller's included */
    Worker *worker;       /* [0] is whichever thread calls */
    pthread_mutex_t turn; /* held by the launch that runs */
    pthread_mutex_t lock; /* guards the fields below */
    pthread_cond_t start, done;
    uint64_t generation; /* launches so far */
    int busy;            /* workers still in this launch */
    bool quit;
    size_t scratch_bytes; /* each worker has this much */
    HostEntry *entry;     /* the launch that runs */
    const int64_t *frame;
    int64_t tasks, run;
    atomic_int_fast64_t next;
};

static void work(Pool *p, void *scratch) {
    for (;;) {
        int64_t first = atomic_fetch_add(&p->next, p->run);
        if (first >= p->tasks)
            return;
        int64_t last = first + p->run < p->tasks ? first + p->run : p->tasks;
        p->entry(p->frame, first, last, scratch);
    }
}

static void *worker_main(void *arg) {
    Worker *w = arg;
    Pool *p = w->pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->quit && p->generation == seen)
            pthread_cond_wait(&p->start, &p->lock);
        if (p->quit)
            break;
        seen = p->generation;
        pthread_mutex_unlock(&p->lock);
        work(p, w->scratch);
        pthread_mutex_lock(&p->lock);
        if (--p->busy == 0)
            pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static int usable_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

Pool *pool_new(int threads) {
    if (threads <= 0)
        threads = usable_cpus();
    Pool *p = calloc(1, sizeof *p);
    Worker *w = calloc((size_t)threads, sizeof *w);
    if (!p || !w) {
        free(p);
        free(w);
        return NULL;
    }
    p->worker = w;
    p->threads = 1;
    pthread_mutex_init(&p->turn, NULL);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    w[0].pool = p;
    /* A system that refuses more threads still computes, with those it gave. */
    for (int i = 1; i < threads; i++) {
        w[i].pool = p;
        if (pthread_create(&w[i].thread, NULL, worker_main, &w[i]))
            break;
        p->threads++;
    }
    return p;
}

void pool_free(Pool *p) {
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i < p->threads; i++)
        pthread_join(p->worker[i].thread, NULL);
    for (int i = 0; i < p->threads; i++)
        free(p->worker[i].scratch);
    pthread_cond_destroy(&p->start);
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->lock);
    pthread_mutex_destroy(&p->turn);
    free(p->worker);
    free(p);
}

int pool_threads(const Pool *p) {
    return p->threads;
}

/* Only called while no worker runs. */
static bool grow_scratch(Pool *p, size_t bytes) {
    if (bytes <= p->scratch_bytes)
        return true;
    p->scratch_bytes = 0;
    for (int i = 0; i < p->threads; i++) {
        free(p->worker[i].scratch);
        p->worker[i].scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!p->worker[i].scratch)
            return false;
    }
    p->scratch_bytes = bytes;
    return true;
}

bool pool_run(Pool *p, HostEntry *entry, const int64_t *frame, int64_t tasks,
              int64_t scratch_bytes) {
    pthread_mutex_lock(&p->turn);
    bool ok = grow_scratch(p, scratch_bytes > 0 ? (size_t)scratch_bytes : 64);
    if (ok) {
        int64_t run = tasks / (8 * (int64_t)p->threads);
        pthread_mutex_lock(&p->lock);
        p->entry = entry;
        p->frame = frame;
        p->tasks = tasks;
        p->run = run > 1 ? run : 1;
        atomic_store(&p->next, 0);
        p->busy = p->threads - 1;
        p->generation++;
        pthread_cond_broadcast(&p->start);
        pthread_mutex_unlock(&p->lock);
        work(p, p->worker[0].scratch);
        pthread_mutex_lock(&p->lock);
        while (p->busy)
            pthread_cond_wait(&p->done, &p->lock);
        pthread_mutex_unlock(&p->lock);
    }
    pthread_mutex_unlock(&p->turn);
    return ok;
}
