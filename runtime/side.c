/* Streams beside the caller's, for kernels that need not wait for each other. A launch takes one of
 * the context's while it queues, forks it from the caller's stream and joins it again:
 *
 *     caller's stream   ... factor ── chain ────┬─ grad ...
 *     side                     └──── reverse ───┘
 *
 * Nothing waits but streams for events, so all of it may be captured in a graph. Whoever captures
 * has the side in it until the capture ends, long after the launch has given it back: then it only
 * suits launches of the same capture, and others take another one. Where there is none to be had
 * all goes on one stream.
 */
#include "runtime/runtime.h"

#include <pthread.h>
#include <stdlib.h>

struct Side {
    Side *next;
    void *stream, *event;
    bool busy; /* some thread is queueing on it */
};

static void side_free(Cuda *cuda, Side *s) {
    if (s->event)
        cuda_event_close(cuda, s->event);
    if (s->stream)
        cuda_stream_close(cuda, s->stream);
    free(s);
}

static Side *side_new(Cuda *cuda) {
    CudaError e;
    Side *s = calloc(1, sizeof *s);
    if (!s || (cuda_stream_open(cuda, &s->stream, &e) && cuda_event_open(cuda, &s->event, &e)))
        return s;
    side_free(cuda, s);
    return NULL;
}

static bool suits(Cuda *cuda, const Side *s, uint64_t capture) {
    CudaError e;
    uint64_t own;
    return !s->busy && cuda_stream_capture(cuda, s->stream, &own, &e) && (!own || own == capture);
}

Side *side_take(gdr_context *ctx, void *stream) {
    CudaError e;
    uint64_t capture;
    if (!cuda_stream_capture(ctx->cuda, stream, &capture, &e))
        return NULL;
    pthread_mutex_lock(ctx->lock);
    Side *s = ctx->sides;
    while (s && !suits(ctx->cuda, s, capture))
        s = s->next;
    if (!s && (s = side_new(ctx->cuda))) {
        s->next = ctx->sides;
        ctx->sides = s;
    }
    if (s)
        s->busy = true;
    pthread_mutex_unlock(ctx->lock);
    return s;
}

void side_give(gdr_context *ctx, Side *s) {
    if (!s)
        return;
    pthread_mutex_lock(ctx->lock);
    s->busy = false;
    pthread_mutex_unlock(ctx->lock);
}

void *side_stream(const Side *s) {
    return s->stream;
}

bool side_fork(Cuda *cuda, Side *s, void *stream, CudaError *e) {
    return cuda_wait(cuda, s->event, stream, s->stream, e);
}

bool side_join(Cuda *cuda, Side *s, void *stream, CudaError *e) {
    return cuda_wait(cuda, s->event, s->stream, stream, e);
}

void sides_free(gdr_context *ctx) {
    while (ctx->sides) {
        Side *next = ctx->sides->next;
        side_free(ctx->cuda, ctx->sides);
        ctx->sides = next;
    }
}
