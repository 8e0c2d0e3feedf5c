/* The time of launches: the median over many that take turns through several sets of tensors, so that
 * caches hold nothing of the next one; between two device events on a GPU, wall time on a CPU.
 *
 * Of a training step (a forward pass that saves, then the backward pass) also the memory: what the GPU
 * has less of behind one than before its tensors were made, with workspaces from the library's pool. */
#include "driver/driver.h"

#include <stdlib.h>
#include <time.h>

enum { TIMES_MAX = 200, TIMES_MIN = 7 };
static const double seconds_wanted = 0.7; /* of measuring a shape */

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool on_gpu(const Timing *t) {
    return t->forward.device == DEVICE_cuda;
}

static gdr_status launch_set(Timing *t, int i) {
    gdr_status status = GDR_OK;
    if (t->run_forward)
        status = on_gpu(t)
                     ? device_set_launch(&t->forward_problem, &t->forward, &t->forward_set[i])
                     : engine_relaunch(&t->forward_problem, &t->forward, &t->forward_out[i]);
    if (!status && t->run_backward)
        status = on_gpu(t)
                     ? device_set_launch(&t->backward_problem, &t->backward, &t->backward_set[i])
                     : engine_relaunch(&t->backward_problem, &t->backward, &t->backward_out[i]);
    return status;
}

static bool launch_next(void *user) {
    Timing *t = user;
    t->status = launch_set(t, t->turn++ % t->sets);
    return t->status == GDR_OK;
}

static gdr_status time_once(Timing *t, double *seconds) {
    if (!on_gpu(t)) {
        double start = seconds_now();
        launch_next(t);
        *seconds = seconds_now() - start;
        return t->status;
    }
    CudaError e;
    if (cuda_time(t->d->ctx->cuda, launch_next, t, seconds, &e))
        return GDR_OK;
    return t->status ? t->status : ctx_fail(t->d->ctx, GDR_EDRIVER, "%s", e.text);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

gdr_status timing_measure(Timing *t, bool forward, bool backward, Sample *s) {
    double time[TIMES_MAX], total = 0;
    int n = 0;
    t->run_forward = forward;
    t->run_backward = backward;
    for (int i = 0; i < t->sets; i++) { /* every set once, untimed */
        gdr_status status = time_once(t, &time[0]);
        if (status)
            return status;
    }
    while (n < TIMES_MAX && (n < TIMES_MIN || total < seconds_wanted)) {
        gdr_status status = time_once(t, &time[n]);
        if (status)
            return status;
        total += time[n++];
    }
    qsort(time, (size_t)n, sizeof *time, by_value);
    *s = (Sample){n % 2 ? time[n / 2] : (time[n / 2 - 1] + time[n / 2]) / 2, time[0], time[n - 1],
                  n};
    return GDR_OK;
}

/* tensors -------------------------------------------------------------------------------------- */

static gdr_status open_set(Timing *t, int i) {
    if (!t->forward_out[i].out)
        t->forward_out[i] = outcome_new(t->arena, &t->forward_problem, false);
    if (!t->backward_out[i].out && t->backward.kernel)
        t->backward_out[i] = outcome_new(t->arena, &t->backward_problem, false);
    gdr_status status =
        device_set_open(t->d, &t->forward_problem, &t->forward, &t->forward_out[i], NULL,
                        &t->forward_set[i], t->arena);
    if (status || !t->backward.kernel)
        return status;
    return device_set_open(t->d, &t->backward_problem, &t->backward, &t->backward_out[i],
                           &t->forward_set[i], &t->backward_set[i], t->arena);
}

static void close_set(Timing *t, int i) {
    device_set_close(t->d, &t->backward_set[i]);
    device_set_close(t->d, &t->forward_set[i]);
}

static gdr_status run_on_cpu(Timing *t, int i) {
    gdr_status status = engine_run(t->d, &t->forward_problem, &t->forward, t->arena,
                                   &t->forward_out[i]);
    if (status || !t->backward.kernel)
        return status;
    return engine_run(t->d, &t->backward_problem, &t->backward, t->arena, &t->backward_out[i]);
}

static gdr_status memory_left(Timing *t, bool trim, size_t *bytes) {
    Cuda *cuda = t->d->ctx->cuda;
    CudaError e;
    bool ok = trim ? cuda_trim(cuda, &e) : cuda_synchronize(cuda, &e);
    if (ok && cuda_free_memory(cuda, bytes, &e))
        return GDR_OK;
    return ctx_fail(t->d->ctx, GDR_EDRIVER, "%s", e.text);
}

static gdr_status first_step(Timing *t) {
    gdr_status status = open_set(t, 0);
    t->run_forward = true;
    t->run_backward = t->backward.kernel != NULL;
    return status ? status : launch_set(t, 0);
}

/* The first set, and the memory that one step of it takes; the step before that is not looked at, so that
 * what the driver makes room for once does not count. */
static gdr_status first_set(Timing *t) {
    size_t before, after;
    gdr_status status = first_step(t);
    if (!status)
        status = memory_left(t, false, &after);
    close_set(t, 0);
    if (!status)
        status = memory_left(t, true, &before);
    if (!status)
        status = first_step(t);
    if (!status)
        status = memory_left(t, false, &after);
    if (status)
        return status;
    t->peak_bytes = before > after ? (double)(before - after) : 0;
    t->tensor_bytes =
        (double)(t->forward_set[0].tensor_bytes + t->backward_set[0].tensor_bytes);
    return GDR_OK;
}

gdr_status timing_open(Timing *t) {
    gdr_status status = GDR_OK;
    t->forward_out = NEW_ARRAY(t->arena, Outcome, t->sets);
    t->backward_out = NEW_ARRAY(t->arena, Outcome, t->sets);
    t->forward_set = NEW_ARRAY(t->arena, DeviceSet, t->sets);
    t->backward_set = NEW_ARRAY(t->arena, DeviceSet, t->sets);
    for (int i = 0; !status && i < t->sets; i++)
        status = !on_gpu(t) ? run_on_cpu(t, i) : i ? open_set(t, i) : first_set(t);
    return status;
}

void timing_close(Timing *t) {
    for (int i = 0; on_gpu(t) && t->forward_set && i < t->sets; i++)
        close_set(t, i);
}
