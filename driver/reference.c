/* A problem by the fp64 reference: one sequence and one head at a time, on all threads.
 *
 * Gradients of single heads are summed afterwards where heads share an input or belong to a param,
 * in the order of sequences and heads. */
#include "driver/driver.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

typedef struct ReferenceJob {
    const Problem *p;
    Outcome *o;
    Tensor *part; /* backward, per input: every head's gradient, f64 [B,T,H,...] or [N,H,...] */
    SpecBind bind;
    atomic_int_fast64_t next;
    atomic_bool no_memory, refused;
} ReferenceJob;

/* Rows begin .. begin+rows-1 of head h of a [.., heads, elements] tensor. */
static double *gather(Arena *a, const Tensor *t, int64_t begin, int64_t rows, int64_t heads,
                      int64_t head, int64_t elements) {
    double *x = NEW_ARRAY(a, double, rows *elements);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t e = 0; e < elements; e++)
            x[r * elements + e] =
                scalar_get(t->dtype, t->data, ((begin + r) * heads + head) * elements + e);
    return x;
}

/* The same of an f64 tensor, back. */
static void scatter(Tensor *t, int64_t begin, int64_t rows, int64_t heads, int64_t head,
                    int64_t elements, const double *x) {
    for (int64_t r = 0; r < rows; r++)
        memcpy((double *)t->data + ((begin + r) * heads + head) * elements, x + r * elements,
               (size_t)elements * sizeof *x);
}

static int64_t state_elements(const Problem *p) {
    return (int64_t)p->k->axis.at[AXIS_K].size * p->k->axis.at[AXIS_V].size;
}

/* Inputs as one sequence and one head see them. */
static const double **gather_inputs(const Problem *p, Arena *a, int64_t n, int64_t h) {
    const Kernel *k = p->k;
    int64_t begin, length;
    problem_sequence(p, n, &begin, &length);
    const double **in = NEW_ARRAY(a, const double *, k->in.count + 1);
    for (int i = 0; i < k->in.count; i++) {
        bool param = k->in.at[i].is_param;
        int64_t heads = p->in[i].shape[param ? 0 : 2];
        in[i] = gather(a, &p->in[i], param ? 0 : begin, param ? 1 : length, heads, h * heads / p->H,
                       shape_elements(k, k->in.at[i].shape));
    }
    return in;
}

/* [rows,columns] to [columns,rows], where states are [V,K] in memory. */
static double *turned(const Problem *p, Arena *a, double *x, int64_t rows, int64_t columns) {
    if (p->state_layout == GDR_LAYOUT_KV)
        return x;
    double *y = NEW_ARRAY(a, double, rows *columns);
    for (int64_t i = 0; i < rows * columns; i++)
        y[i % columns * rows + i / columns] = x[i];
    return y;
}

static double *gather_state(const Problem *p, const Tensor *S, Arena *a, int64_t n, int64_t h) {
    if (!S->data)
        return NEW_ARRAY(a, double, state_elements(p));
    double *x = gather(a, S, n, 1, p->H, h, state_elements(p));
    return turned(p, a, x, p->k->axis.at[AXIS_V].size, p->k->axis.at[AXIS_K].size);
}

/* Which state sequence n has in a pool; negative: it is skipped. */
static int64_t slot_of(const Tensor *slots, int64_t n) {
    return slots->data ? (int64_t)scalar_get(slots->dtype, slots->data, n) : n;
}

static void gradient_task(ReferenceJob *job, Arena *a, int64_t n, int64_t h) {
    const Problem *p = job->p;
    const Kernel *k = p->k;
    int64_t begin, length;
    problem_sequence(p, n, &begin, &length);
    const double **dout = NEW_ARRAY(a, const double *, k->out.count + 1);
    double **din = NEW_ARRAY(a, double *, k->in.count + 1);
    for (int i = 0; i < k->out.count; i++)
        if (p->dout[i].data)
            dout[i] = gather(a, &p->dout[i], begin, length, p->H, h,
                             shape_elements(k, k->out.at[i].shape));
    for (int i = 0; i < k->in.count; i++)
        din[i] = NEW_ARRAY(a, double, (length + 1) * shape_elements(k, k->in.at[i].shape));
    double *dS = gather_state(p, &p->dS, a, n, h);
    ReferenceGrad args = {.T = length,
                          .in = gather_inputs(p, a, n, h),
                          .dout = dout,
                          .din = din,
                          .state = gather_state(p, &p->S0, a, n, h),
                          .dstate = dS,
                          .rounded = p->rounded};
    args.rounded.key ^= (uint64_t)(n * p->H + h + 1) << 32;
    Diag diag;
    diag_init(&diag, a, p->spec->source);
    if (!reference_gradient(a, p->spec->file, p->variant, &job->bind, &args, &diag)) {
        atomic_store(&job->refused, true);
        return;
    }
    for (int i = 0; i < k->in.count; i++) {
        bool param = k->in.at[i].is_param;
        scatter(&job->part[i], param ? n : begin, param ? 1 : length, p->H, h,
                shape_elements(k, k->in.at[i].shape), din[i]);
    }
    scatter(&job->o->S, n, 1, p->H, h, state_elements(p), dS);
}

static void reference_task(ReferenceJob *job, Arena *a, int64_t n, int64_t h) {
    const Problem *p = job->p;
    const Kernel *k = p->k;
    int64_t begin, length, first = slot_of(&p->S0_slots, n), last = slot_of(&p->S_slots, n);
    if (first < 0 || last < 0)
        return;
    problem_sequence(p, n, &begin, &length);
    const double **in = gather_inputs(p, a, n, h);
    double **out = NEW_ARRAY(a, double *, k->out.count + 1);
    for (int i = 0; i < k->out.count; i++)
        out[i] = NEW_ARRAY(a, double, length *shape_elements(k, k->out.at[i].shape));
    double *S = gather_state(p, &p->S0, a, first, h);
    EvalArgs args = {.T = length, .in = in, .out = out, .state = S};
    Diag diag;
    diag_init(&diag, a, p->spec->source);
    if (!reference_run(a, p->spec->file, p->variant, &job->bind, &args, &diag)) {
        atomic_store(&job->refused, true);
        return;
    }
    for (int i = 0; i < k->out.count; i++)
        scatter(&job->o->out[i], begin, length, p->H, h, shape_elements(k, k->out.at[i].shape),
                out[i]);
    S = turned(p, a, S, k->axis.at[AXIS_K].size, k->axis.at[AXIS_V].size);
    scatter(&job->o->S, last, 1, p->H, h, state_elements(p), S);
}

static void *reference_thread(void *user) {
    ReferenceJob *job = user;
    Arena arena;
    jmp_buf oom;
    arena_init(&arena, &oom);
    if (setjmp(oom)) {
        atomic_store(&job->no_memory, true);
    } else {
        for (;;) {
            int64_t i = atomic_fetch_add(&job->next, 1);
            if (i >= job->p->N * job->p->H)
                break;
            (job->p->grad ? gradient_task : reference_task)(job, &arena, i / job->p->H,
                                                            i % job->p->H);
            arena_free(&arena);
        }
    }
    arena_free(&arena);
    return NULL;
}

/* sums of gradients ---------------------------------------------------------------------------- */

static void make_parts(Driver *d, ReferenceJob *job) {
    const Problem *p = job->p;
    job->part = NEW_ARRAY(&d->arena, Tensor, p->k->in.count + 1);
    for (int i = 0; p->grad && i < p->k->in.count; i++) {
        const Tensor *t = &job->o->out[i];
        bool param = p->k->in.at[i].is_param;
        int64_t shape[TENSOR_NDIM_MAX] = {param ? p->N : p->B * p->T, p->H,
                                          shape_elements(p->k, p->k->in.at[i].shape)};
        job->part[i] = *t;
        if (param || t->shape[2] != p->H)
            job->part[i] = tensor_new(&d->arena, t->name, GDR_F64, 3, shape);
    }
}

/* Rows [from, from+rows) of `to`, each the sum of `of` rows of `part` and of the heads in a group.
 */
static void sum_rows(const Problem *p, const Tensor *part, Tensor *to, int64_t heads,
                     int64_t elements, int64_t from, int64_t rows, int64_t of) {
    const double *x = part->data;
    double *y = to->data;
    int64_t group = heads ? p->H / heads : 0;
    for (int64_t i = from * heads * elements; i < (from + rows) * heads * elements; i++) {
        int64_t row = i / elements / heads, head = i / elements % heads, e = i % elements;
        double sum = 0;
        for (int64_t r = row * of; r < (row + 1) * of; r++)
            for (int64_t h = head * group; h < (head + 1) * group; h++)
                sum += x[(r * p->H + h) * elements + e];
        y[i] = sum;
    }
}

static void sum_parts(const ReferenceJob *job) {
    const Problem *p = job->p;
    int64_t begin = 0, end = p->B * p->T, length;
    if (p->cu.data) {
        begin = (int64_t)scalar_get(p->cu.dtype, p->cu.data, 0);
        end = (int64_t)scalar_get(p->cu.dtype, p->cu.data, p->N);
    }
    length = end - begin;
    for (int i = 0; p->grad && i < p->k->in.count; i++) {
        Tensor *to = &job->o->out[i];
        bool param = p->k->in.at[i].is_param;
        if (job->part[i].data != to->data)
            sum_rows(p, &job->part[i], to, to->shape[param ? 0 : 2],
                     shape_elements(p->k, p->k->in.at[i].shape), param ? 0 : begin,
                     param ? 1 : length, param ? p->N : 1);
    }
}

gdr_status run_reference(Driver *d, const Problem *p, Outcome *o) {
    ReferenceJob job = {.p = p, .o = o};
    if (p->each || p->S0_accepted.data || p->S_accepted.data || p->past0.data ||
        p->S0_slots.ndim > 1 || p->S_slots.ndim > 1)
        return ctx_fail(d->ctx, GDR_EUNSUPPORTED,
                        "the reference has no states after single tokens and no past");
    make_parts(d, &job);
    SpecDim *dim = NEW_ARRAY(&d->arena, SpecDim, p->ndims + 1);
    for (int i = 0; i < p->ndims; i++)
        dim[i] = (SpecDim){intern_z(&p->spec->names, p->dims[i].name), p->dims[i].size};
    job.bind = (SpecBind){dim, p->ndims};
    enum { THREADS_MAX = 64 };
    pthread_t thread[THREADS_MAX];
    long n = d->opt.threads ? d->opt.threads : sysconf(_SC_NPROCESSORS_ONLN);
    int started = 0;
    while (started < n - 1 && started < THREADS_MAX &&
           !pthread_create(&thread[started], NULL, reference_thread, &job))
        started++;
    reference_thread(&job);
    for (int i = 0; i < started; i++)
        pthread_join(thread[i], NULL);
    if (atomic_load(&job.no_memory))
        return ctx_fail(d->ctx, GDR_ENOMEM, "out of memory");
    if (atomic_load(&job.refused))
        return ctx_fail(d->ctx, GDR_EINPUT, "%s: the sizes cannot be bound", p->spec->path);
    sum_parts(&job);
    return GDR_OK;
}
