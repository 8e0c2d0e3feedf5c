/* Backward passes: a checked frame becomes work for the CPU threads or kernel launches.
 *
 *     CPU     entry(frame, tasks 0 .. N*H-1) over the context's threads, then the sums of gradient.c
 *     GPU     group by group from the last one, pieces as workspace.c has cut them:
 *
 *                 once        scan, carry        what is made ahead of all chunks
 *                 forwards    factor, chain      where a sequence goes on behind a piece and nothing
 *                                                was saved: the states at the borders
 *                 backwards   factor; chain, and beside it on a stream of its own reverse; grad, sums;
 *                             between the last two, for gradients that wait for those of later tokens:
 *                             scan, carry, late
 *
 *     GPU, token by token: recurrent_grad, sums
 *
 * Where the forward pass saved all there are no passes forwards, and those backwards begin with reverse.
 * The state at a border comes from the pass forwards or from what the forward pass saved; where it did, the
 * chain may walk from every saved state on, all of these walks at once. Costates swing
 * between two places, one read while the other is written. Nothing waits and nothing is read back, so
 * a CUDA graph can capture it all.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

/* Upstream gradients that are not given read a token of zeros. */
static void point_at_zeros(const Record *r, const BoundLaunch *b) {
    for (int i = r->inputs; i < r->shell->in.count; i++)
        if (!b->tensor[i])
            b->frame[frame_in_ptr(r->shell, i)] = b->frame[FRAME_WS] + (int64_t)b->zeros;
}

/* CPU ------------------------------------------------------------------------------------------ */

static gdr_status backward_on(gdr_kernel *kernel, BoundLaunch *b, char *workspace) {
    const Record *r = &kernel->rec;
    const Kernel *k = r->shell;
    b->frame[FRAME_WS] = (int64_t)(uintptr_t)workspace;
    point_at_zeros(r, b);
    for (int i = 0; i < k->out.count; i++)
        if (b->partial[i] != SIZE_MAX)
            b->frame[frame_out_ptr(k, i)] = (int64_t)(uintptr_t)(workspace + b->partial[i]);
    if (b->zeros_bytes)
        memset(workspace + b->zeros, 0, b->zeros_bytes);
    gdr_status status = run_tasks(kernel, b);
    Pool *pool = status ? NULL : ctx_pool(kernel->ctx);
    if (status || !pool)
        return status ? status : GDR_ENOMEM;
    return gradient_sum(pool, r, b, workspace) ? GDR_OK
                                               : ctx_fail(kernel->ctx, GDR_ENOMEM, "out of memory");
}

static gdr_status backward_cpu(gdr_kernel *kernel, const gdr_launch *launch, BoundLaunch *b) {
    gdr_context *ctx = kernel->ctx;
    if (launch->workspace) {
        gdr_status status = check_workspace(ctx, launch, b, HOST_ALIGN);
        return status ? status : backward_on(kernel, b, launch->workspace);
    }
    char *own = b->workspace ? aligned_alloc(HOST_ALIGN, b->workspace) : NULL;
    if (b->workspace && !own)
        return ctx_fail(ctx, GDR_ENOMEM, "no memory for %zu bytes of workspace", b->workspace);
    gdr_status status = backward_on(kernel, b, own);
    free(own);
    return status;
}

/* GPU: one entry ------------------------------------------------------------------------------- */

typedef struct Queue {
    gdr_kernel *kernel;
    const BoundLaunch *b;
    void *stream;
    int64_t ws;    /* the workspace */
    Segment at;    /* the piece at work */
    Side *side;    /* a stream for reverse, or NULL */
    int chain;     /* backwards: its chain entry */
    int64_t every; /* and GRAD_SAVE_EVERY, from choose_chain */
} Queue;

static void set_field(const Queue *q, int field, int64_t x) {
    q->b->frame[frame_gradient(q->kernel->rec.shell, field)] = x;
}

/* Sequences that a piece has tokens of, as far as they can be known here. */
static int64_t sequences_at(const Queue *q) {
    const BoundLaunch *b = q->b;
    int64_t each = b->packed ? 0 : b->slots / (b->N ? b->N : 1);
    if (each)
        return (q->at.first + q->at.slots - 1) / each - q->at.first / each + 1;
    return b->slots ? (b->N * q->at.slots + b->slots - 1) / b->slots : b->N;
}

static int64_t divide_up(int64_t x, int64_t y) {
    return x / y + (x % y != 0);
}

/* The most sequences that `every` slots in a row, from a multiple of it on, have a part of. */
static int64_t sequences_in(const BoundLaunch *b, int64_t every) {
    int64_t each = b->packed ? 1 : b->slots / b->N;
    bool even = every % each == 0 || each % every == 0;
    int64_t most = even ? divide_up(every, each) : (every + each - 2) / each + 1;
    return most < b->N ? most : b->N;
}

/* Threads may have all 255 registers. */
int record_blocks_at_once(const Record *r, const CgEntry *e) {
    enum { THREADS = 256, SHARED_BESIDE = 1024 };
    const Target *t = target_find(r->target);
    int by_threads = THREADS / e->threads;
    int by_shared = (t->smem_limit + SHARED_BESIDE) / (e->smem_bytes + SHARED_BESIDE);
    int least = by_threads < by_shared ? by_threads : by_shared;
    return least > 0 ? least : 1;
}

/* Chunks of the longest walk of a piece, as far as is known here. */
static int64_t walk_chunks(const Queue *q) {
    return divide_up(q->at.slots, sequences_at(q));
}

/* Of a chain that walks over each interval of `every` slots. */
static int64_t interval_blocks(const Queue *q, const CgEntry *e, int64_t every) {
    int64_t first = q->at.first / every, last = (q->at.first + q->at.slots - 1) / every;
    return (last - first + 1) * sequences_in(q->b, every) * q->b->H * entry_tiles(q->kernel, e);
}

/* How long a chain takes with walks of so many slots (0: end to end) at the same time. Of a chunk's time on one
 * multiprocessor half is latency, which blocks that it holds at once spend together, when there are as many
 * columns as that; a walk begins as long as a chunk takes. */
static int64_t chain_time(const Queue *q, const CgEntry *e, int64_t every) {
    enum { COLUMNS_OF_LATENCY = 64 };
    const BoundLaunch *b = q->b;
    int64_t walks = sequences_at(q), chunks = walk_chunks(q);
    if (every && every < chunks) { /* they end where sequences do and where states were saved */
        bool same = !b->packed && b->slots / b->N % every == 0;
        walks = divide_up(q->at.slots, every) + (same ? 0 : walks - 1);
        chunks = every;
    }
    int64_t processors = b->processors > 0 ? b->processors : 1;
    int64_t blocks = divide_up(walks * b->H * entry_tiles(q->kernel, e), processors);
    int64_t turns = divide_up(blocks, record_blocks_at_once(&q->kernel->rec, e));
    return (chunks + 1) * (turns * COLUMNS_OF_LATENCY + blocks * e->v_tile);
}

/* The chain of a piece backwards: its entry, and whether it walks from every saved state on. Of two that take
 * the same time the one with narrower tiles, whose blocks find a place beside those of reverse. */
static void choose_chain(Queue *q) {
    const BoundLaunch *b = q->b;
    const CgModule *m = &q->kernel->rec.module;
    int64_t least = INT64_MAX, may = b->saved && !b->all ? b->save_every : 0;
    q->chain = -1;
    for (int i = 0; i < m->entry.count; i++) {
        const CgEntry *e = &m->entry.at[i];
        if (e->kind != ENTRY_chain)
            continue;
        int64_t whole = chain_time(q, e, 0), parts = whole;
        if (may && interval_blocks(q, e, may) <= GRID_MAX)
            parts = chain_time(q, e, may);
        if (whole > least && parts > least)
            continue;
        q->chain = i;
        q->every = parts < whole ? may : 0;
        least = parts < whole ? parts : whole;
    }
}

static int entry_for(const Queue *q, EntryKind kind) {
    const CgModule *m = &q->kernel->rec.module;
    if (kind == ENTRY_chain && q->chain >= 0)
        return q->chain;
    if (kind == ENTRY_chain || kind == ENTRY_reverse)
        return choose_entry(q->kernel, kind, sequences_at(q) * q->b->H);
    for (int i = 0; i < m->entry.count; i++)
        if (m->entry.at[i].kind == kind)
            return i;
    return -1;
}

static int64_t blocks_of(const Queue *q, const CgEntry *e) {
    const BoundLaunch *b = q->b;
    int64_t tasks = q->at.slots * b->H, groups = tasks / b->group;
    if (e->kind == ENTRY_factor)
        return tasks;
    if (e->kind == ENTRY_scan)
        return frame_slots(b->T, b->N, b->packed, SCAN_TOKENS) * b->H;
    if (e->kind == ENTRY_grad)
        return groups < b->grad_blocks ? groups : b->grad_blocks;
    if (e->kind == ENTRY_late)
        return groups < (int64_t)b->processors * e->per_sm ? groups : (int64_t)b->processors * e->per_sm;
    if (e->kind == ENTRY_sums)
        return (int64_t)b->processors * e->per_sm;
    if (e->kind == ENTRY_chain && q->every)
        return interval_blocks(q, e, q->every);
    if ((e->kind == ENTRY_chain || e->kind == ENTRY_reverse) && q->at.slots && q->at.slots < b->N)
        return tasks * entry_tiles(q->kernel, e);
    return b->N * b->H * entry_tiles(q->kernel, e);
}

static gdr_status queue_number(const Queue *q, int i) {
    gdr_kernel *kernel = q->kernel;
    CudaError e;
    if (i < 0)
        BUG("the kernels of %s lack an entry", kernel->rec.shell->name);
    const CgEntry *entry = &kernel->rec.module.entry.at[i];
    if (!cuda_launch(kernel->ctx->cuda, kernel->cuda_function[i], blocks_of(q, entry),
                     entry->threads, entry->smem_bytes, q->stream, q->b->frame,
                     record_frame_fields(&kernel->rec), &e))
        return driver_failed(kernel->ctx, &e);
    return GDR_OK;
}

static gdr_status queue_entry(const Queue *q, EntryKind kind) {
    return queue_number(q, entry_for(q, kind));
}

/* What is made ahead of the factor entry, or behind the grad entry: in the order of the list. */
static gdr_status queue_scans(const Queue *q, bool back) {
    const CgModule *m = &q->kernel->rec.module;
    int grad = entry_for(q, ENTRY_grad);
    gdr_status status = GDR_OK;
    for (int i = back ? grad + 1 : 0; !status && i < (back ? m->entry.count : grad); i++) {
        EntryKind kind = m->entry.at[i].kind;
        if (kind == ENTRY_scan || kind == ENTRY_carry || kind == ENTRY_late)
            status = queue_number(q, i);
    }
    return status;
}

/* GPU: a piece --------------------------------------------------------------------------------- */

/* Of what crosses a border: all heads of one sequence. */
static int64_t all_heads(const Queue *q) {
    return q->b->H * border_bytes(&q->kernel->rec);
}

/* Where the state at the end of piece i of its group is, or goes. */
static int64_t border_state(const Queue *q, int64_t i) {
    const BoundLaunch *b = q->b;
    if (!b->seg.use_saved)
        return q->ws + (int64_t)b->states + i * all_heads(q);
    int64_t slot = (i + 1) * b->seg.piece;
    return b->frame[FRAME_SAVED] + (slot / b->save_every - 1) * all_heads(q);
}

static int64_t border_costate(const Queue *q, int64_t i) {
    return q->ws + (int64_t)q->b->costates + i % 2 * all_heads(q);
}

/* Parts of a piece's rows lie where the first of them is row 0. */
static void point_at_parts(const Queue *q) {
    const BoundLaunch *b = q->b;
    const Kernel *k = q->kernel->rec.shell;
    for (int i = 0; i < k->out.count; i++) {
        const Port *p = &k->out.at[i];
        if (b->partial[i] == SIZE_MAX)
            continue;
        int64_t heads = gradient_heads(&q->kernel->rec, b, i);
        int64_t row = heads * shape_elements(k, p->shape) * elem_size(p->elem);
        b->frame[frame_out_ptr(k, i)] = q->ws + (int64_t)b->partial[i] -
                                        (p->is_param ? 0 : q->at.row * row);
    }
}

/* Where the forward pass has left the piece's records. */
static int64_t saved_records(const Queue *q) {
    int64_t bytes = q->kernel->rec.module.ws_bytes_per_slot_head;
    return q->b->frame[FRAME_SAVED] + q->at.first * q->b->H * bytes;
}

static void go_to(Queue *q, int64_t group, int64_t piece) {
    segment_at(&q->kernel->rec, q->b, group * q->b->seg.pieces + piece, &q->at);
    set_field(q, GRAD_SLOT, q->at.first);
    set_field(q, GRAD_SLOTS, q->at.slots);
    bool state = q->b->seg.crossed && piece > 0 && !q->b->all;
    set_field(q, GRAD_STATE_IN, state ? border_state(q, piece - 1) : 0);
    set_field(q, GRAD_STATE_OUT, 0);
    set_field(q, GRAD_SAVE_EVERY, 0);
    q->chain = -1;
    q->every = 0;
    if (q->b->all)
        q->b->frame[FRAME_WS] = saved_records(q);
    point_at_parts(q);
}

static gdr_status queue_forwards(Queue *q, int64_t group, int64_t piece) {
    go_to(q, group, piece);
    set_field(q, GRAD_STATE_OUT, border_state(q, piece));
    gdr_status status = queue_entry(q, ENTRY_factor);
    return status ? status : queue_entry(q, ENTRY_chain);
}

static bool has_sums(const Queue *q) {
    for (int i = 0; i < q->kernel->rec.shell->out.count; i++)
        if (q->b->partial[i] != SIZE_MAX)
            return true;
    return false;
}

/* What runs beside the chain, and the chain. Reverse takes longer, so it comes first. */
static gdr_status queue_beside(Queue *q) {
    Queue beside = *q;
    beside.stream = side_stream(q->side);
    gdr_status status = queue_entry(&beside, ENTRY_reverse);
    return status ? status : queue_entry(q, ENTRY_chain);
}

/* States and costates need nothing of each other. To fork and join takes as long as a few chunks do. */
static gdr_status queue_walks(Queue *q) {
    enum { CHUNKS_OF_A_FORK = 4 };
    Cuda *cuda = q->kernel->ctx->cuda;
    CudaError e;
    if (!q->side || walk_chunks(q) < CHUNKS_OF_A_FORK) {
        gdr_status status = queue_entry(q, ENTRY_reverse);
        return status || q->b->all ? status : queue_entry(q, ENTRY_chain);
    }
    if (!side_fork(cuda, q->side, q->stream, &e))
        return driver_failed(q->kernel->ctx, &e);
    gdr_status status = queue_beside(q);
    if (!side_join(cuda, q->side, q->stream, &e) && !status)
        status = driver_failed(q->kernel->ctx, &e);
    return status;
}

static gdr_status queue_backwards(Queue *q, int64_t group, int64_t piece) {
    const Segments *s = &q->b->seg;
    go_to(q, group, piece);
    choose_chain(q);
    set_field(q, GRAD_SAVE_EVERY, q->every);
    bool in = s->crossed && piece + 1 < s->pieces, out = s->crossed && piece > 0;
    set_field(q, GRAD_COSTATE_IN, in ? border_costate(q, piece + 1) : 0);
    set_field(q, GRAD_COSTATE_OUT, out ? border_costate(q, piece) : 0);
    gdr_status status = q->b->all ? GDR_OK : queue_entry(q, ENTRY_factor);
    if (!status)
        status = queue_walks(q);
    if (!status)
        status = queue_entry(q, ENTRY_grad);
    if (!status)
        status = queue_scans(q, true);
    return status || !has_sums(q) ? status : queue_entry(q, ENTRY_sums);
}

/* GPU: the whole pass -------------------------------------------------------------------------- */

static gdr_status queue_zeros(const Queue *q, int64_t at, int64_t bytes) {
    CudaError e;
    if (cuda_zero_async(q->kernel->ctx->cuda, (uint64_t)at, (size_t)bytes, q->stream, &e))
        return GDR_OK;
    return driver_failed(q->kernel->ctx, &e);
}

/* Heads of what kernels leave; where the sums go; parts of chunks that are not there count as zeros. */
static gdr_status prepare_sums(const Queue *q) {
    const BoundLaunch *b = q->b;
    const Kernel *k = q->kernel->rec.shell;
    gdr_status status = GDR_OK;
    for (int i = 0; !status && i < k->out.count; i++) {
        const Port *p = &k->out.at[i];
        const gdr_tensor *t = b->tensor[k->in.count + i];
        b->frame[frame_out_heads(k, i)] = gradient_heads(&q->kernel->rec, b, i);
        if (b->partial[i] == SIZE_MAX)
            continue;
        b->frame[frame_sum(k, i)] = (int64_t)(uintptr_t)t->data;
        b->frame[frame_sum_heads(k, i)] = t->shape[p->is_param ? 0 : 2];
        if (p->is_param && b->packed)
            status = queue_zeros(q, q->ws + (int64_t)b->partial[i],
                                 b->slots * b->H * shape_elements(k, p->shape) * 4);
    }
    return status;
}

/* No token at all: the final state is the initial one, and no param has a gradient. */
static gdr_status queue_empty(const Queue *q) {
    const BoundLaunch *b = q->b;
    const Kernel *k = q->kernel->rec.shell;
    int64_t dS = b->frame[frame_costate(k)], dS0 = b->frame[frame_costate(k) + 1];
    const Axis *axis = k->axis.at;
    int64_t bytes = 4 * b->N * b->H * axis[AXIS_K].size * axis[AXIS_V].size;
    gdr_status status = GDR_OK;
    CudaError e;
    for (int i = 0; !status && i < k->out.count; i++) {
        const gdr_tensor *t = b->tensor[k->in.count + i];
        if (t && k->out.at[i].is_param)
            status = queue_zeros(q, (int64_t)(uintptr_t)t->data,
                                 t->shape[0] * shape_elements(k, k->out.at[i].shape) * 4);
    }
    if (status || !dS0 || dS0 == dS)
        return status;
    if (!dS)
        return queue_zeros(q, dS0, bytes);
    if (cuda_copy_async(q->kernel->ctx->cuda, (uint64_t)dS0, (uint64_t)dS, (size_t)bytes, q->stream,
                        &e))
        return GDR_OK;
    return driver_failed(q->kernel->ctx, &e);
}

/* The gradient of the recurrence: one piece, one kernel and the sums. */
static gdr_status queue_tokens(Queue *q) {
    go_to(q, 0, 0);
    gdr_status status = queue_entry(q, ENTRY_recurrent_grad);
    return status || !has_sums(q) ? status : queue_entry(q, ENTRY_sums);
}

static gdr_status queue_group(Queue *q, int64_t group) {
    const Segments *s = &q->b->seg;
    gdr_status status = GDR_OK;
    if (q->kernel->rec.algo != ALGO_chunk)
        return queue_tokens(q);
    for (int64_t i = 0; !status && s->crossed && !s->use_saved && i + 1 < s->pieces; i++)
        status = queue_forwards(q, group, i);
    for (int64_t i = s->pieces - 1; !status && i >= 0; i--)
        status = queue_backwards(q, group, i);
    return status;
}

static gdr_status queue_segments(gdr_kernel *kernel, const BoundLaunch *b, void *stream) {
    Queue q = {.kernel = kernel, .b = b, .stream = stream, .ws = b->frame[FRAME_WS]};
    int64_t ws = q.ws;
    point_at_zeros(&kernel->rec, b);
    set_field(&q, GRAD_SCRATCH, ws + (int64_t)b->scratch);
    set_field(&q, GRAD_AHEAD, ws + (int64_t)b->ahead);
    set_field(&q, GRAD_GROUP, b->group);
    gdr_status status = queue_zeros(&q, ws + (int64_t)b->zeros, (int64_t)b->zeros_bytes);
    if (!status)
        status = prepare_sums(&q);
    if (!status)
        status = queue_scans(&q, false);
    if (!status && kernel->rec.algo == ALGO_chunk && !b->all)
        q.side = side_take(kernel->ctx, stream);
    for (int64_t group = b->seg.count / b->seg.pieces - 1; !status && group >= 0; group--)
        status = queue_group(&q, group);
    side_give(kernel->ctx, q.side);
    return status;
}

static gdr_status queue_nothing(gdr_kernel *kernel, const BoundLaunch *b, void *stream) {
    Queue q = {.kernel = kernel, .b = b, .stream = stream};
    return queue_empty(&q);
}

/* Whether every grid is one that a launch can have. */
static bool grids_fit(const gdr_kernel *kernel, const BoundLaunch *b) {
    const CgModule *m = &kernel->rec.module;
    int64_t blocks, stretches = frame_slots(b->T, b->N, b->packed, SCAN_TOKENS);
    bool ok = !__builtin_mul_overflow(stretches, b->H, &blocks) && blocks <= GRID_MAX;
    ok = ok && !__builtin_mul_overflow(b->seg.piece, b->H, &blocks) && blocks <= GRID_MAX;
    for (int i = 0; ok && i < m->entry.count; i++)
        ok = !__builtin_mul_overflow(b->N, b->H, &blocks) &&
             !__builtin_mul_overflow(blocks, entry_tiles(kernel, &m->entry.at[i]), &blocks) &&
             blocks <= GRID_MAX;
    return ok;
}

static gdr_status backward_gpu(gdr_kernel *kernel, const gdr_launch *launch, BoundLaunch *b) {
    bool empty = b->T == 0 || b->N == 0 || b->H == 0;
    if (empty)
        b->workspace = 0;
    else if (!grids_fit(kernel, b))
        return ctx_fail(kernel->ctx, GDR_ELIMIT,
                        "too many sequences, heads or chunks for one launch");
    return queue_with_workspace(kernel, launch, b, empty ? queue_nothing : queue_segments);
}

gdr_status gdr_backward(gdr_kernel *kernel, const gdr_launch *launch) {
    BoundLaunch b;
    if (kernel->rec.pass != GDR_PASS_BACKWARD)
        return ctx_fail(kernel->ctx, GDR_EUSAGE, "%s was compiled for the forward pass",
                        kernel->rec.shell->name);
    gdr_status status = launch_bind(kernel, launch, BIND_launch, &b);
    if (status)
        return status;
    status = record_on_gpu(&kernel->rec) ? backward_gpu(kernel, launch, &b)
                                         : backward_cpu(kernel, launch, &b);
    launch_free(&b);
    return status;
}
