/* Forward passes: a checked frame becomes work for the CPU threads or kernel launches.
 *
 *     CPU                 entry(frame, tasks 0 .. N*H-1) over the context's threads
 *     GPU, chunk          what makes values ahead; then for one piece of the chunks after another, as
 *                         workspace.c has cut them: factor, a block for each chunk slot and head, and one
 *                         of the chain entries, a block for each sequence, head and V tile; at last
 *                         what remembers the last token, where that is wanted
 *     GPU, recurrent      recurrent <<<N*H*vtiles>>>
 *
 * A GPU launch only queues: the workspace is the caller's or stream-ordered memory that is given
 * back behind the kernels, so nothing waits and a CUDA graph can capture it all.
 */
#include "runtime/runtime.h"

#include <stdlib.h>
#include <string.h>

gdr_status driver_failed(gdr_context *ctx, const CudaError *e) {
    return ctx_fail(ctx, e->no_memory ? GDR_ENOMEM : GDR_EDRIVER, "%s", e->text);
}

bool record_on_gpu(const Record *r) {
    const Target *t = r->target ? target_find(r->target) : NULL;
    return t && t->gpu;
}

int64_t entry_tiles(const gdr_kernel *kernel, const CgEntry *e) {
    int64_t V = kernel->rec.shell->axis.at[AXIS_V].size;
    return e->v_tile > 0 ? (V + e->v_tile - 1) / e->v_tile : 1;
}

/* The one that ends first, if blocks take turns on the multiprocessors: a block's time is half
 * latency, half the work of its columns when they are as many as that. */
int choose_entry(const gdr_kernel *kernel, EntryKind kind, int64_t sequences_heads) {
    enum { COLUMNS_OF_LATENCY = 64 };
    const CgModule *m = &kernel->rec.module;
    int choice = -1, processors = cuda_multiprocessors(kernel->ctx->cuda);
    int64_t least = INT64_MAX;
    for (int i = 0; i < m->entry.count; i++) {
        const CgEntry *e = &m->entry.at[i];
        if (e->kind != kind)
            continue;
        int64_t blocks = sequences_heads * entry_tiles(kernel, e);
        int64_t turns = (blocks + processors - 1) / (processors > 0 ? processors : 1);
        int64_t time = turns * (COLUMNS_OF_LATENCY + e->v_tile);
        if (time < least) {
            least = time;
            choice = i;
        }
    }
    return choice;
}

/* a forward pass on a GPU ---------------------------------------------------------------------- */

/* One piece of it: chunks `chunk` and so on of every sequence where pieces are windows, else slots. */
typedef struct Piece {
    int64_t slot, slots, chunk, chunks;
    int64_t sequences; /* that have slots there, as far as is known here */
} Piece;

static Piece piece_at(const Record *r, const BoundLaunch *b, int64_t i) {
    const Segments *s = &b->seg;
    int64_t each = b->packed || !b->slots ? 0 : chunks_a_sequence(r, b);
    Piece p = {.slot = i * s->piece, .slots = s->piece, .sequences = b->N};
    if (s->window) {
        p.slot = 0;
        p.chunk = i * s->window;
        p.chunks = each - p.chunk < s->window ? each - p.chunk : s->window;
        p.slots = b->N * p.chunks;
        return p;
    }
    if (b->slots - p.slot < p.slots)
        p.slots = b->slots - p.slot;
    if (each)
        p.sequences = (p.slot + p.slots - 1) / each - p.slot / each + 1;
    else if (p.slots && p.slots < b->N)
        p.sequences = p.slots;
    return p;
}

/* Blocks of one entry's grid; -1 when the sizes exceed what a grid can be. */
static int64_t grid_of(const gdr_kernel *kernel, const CgEntry *e, const BoundLaunch *b,
                       const Piece *p) {
    int64_t blocks, stretches = frame_slots(b->T, b->N, b->packed, SCAN_TOKENS);
    bool over = e->kind == ENTRY_factor ? __builtin_mul_overflow(p->slots, b->HF, &blocks)
                : e->kind == ENTRY_scan
                    ? __builtin_mul_overflow(stretches, b->H, &blocks)
                    : __builtin_mul_overflow(p->sequences, b->H, &blocks) ||
                          __builtin_mul_overflow(blocks, entry_tiles(kernel, e), &blocks);
    return over || blocks > GRID_MAX ? -1 : blocks;
}

static void set_field(const gdr_kernel *kernel, const BoundLaunch *b, int field, int64_t x) {
    b->frame[frame_segment(kernel->rec.shell, field)] = x;
}

/* The frame at piece number i. States swing between two places; those of windows stay where they are. */
static void go_to(const gdr_kernel *kernel, const BoundLaunch *b, int64_t i, const Piece *p) {
    const Segments *s = &b->seg;
    int64_t at = b->frame[FRAME_WS] + (int64_t)b->states;
    int64_t swing = s->window ? 0 : b->H * border_bytes(&kernel->rec);
    set_field(kernel, b, SEGMENT_SLOT, p->slot);
    set_field(kernel, b, SEGMENT_SLOTS, p->slots);
    set_field(kernel, b, SEGMENT_CHUNK, p->chunk);
    set_field(kernel, b, SEGMENT_CHUNKS, p->chunks);
    set_field(kernel, b, SEGMENT_STATE_IN, s->crossed && i > 0 ? at + (i - 1) % 2 * swing : 0);
    set_field(kernel, b, SEGMENT_STATE_OUT, s->crossed && i + 1 < s->count ? at + i % 2 * swing : 0);
}

static gdr_status queue_number(gdr_kernel *kernel, const BoundLaunch *b, int i, const Piece *p,
                               void *stream) {
    const CgEntry *e = &kernel->rec.module.entry.at[i];
    CudaError error;
    if (cuda_launch(kernel->ctx->cuda, kernel->cuda_function[i], grid_of(kernel, e, b, p), e->threads,
                    e->smem_bytes, stream, b->frame, record_frame_fields(&kernel->rec), &error))
        return GDR_OK;
    return driver_failed(kernel->ctx, &error);
}

/* Which entries: those before all pieces, those of one, those behind all. */
typedef enum { PHASE_ahead, PHASE_piece, PHASE_behind } Phase;

static Phase phase_of(EntryKind kind) {
    return kind == ENTRY_scan || kind == ENTRY_carry ? PHASE_ahead
           : kind == ENTRY_past                      ? PHASE_behind
                                                     : PHASE_piece;
}

static gdr_status queue_entries(gdr_kernel *kernel, const BoundLaunch *b, const Piece *p, Phase phase,
                                void *stream) {
    const CgModule *m = &kernel->rec.module;
    int chain = choose_entry(kernel, ENTRY_chain, p->sequences * b->H);
    gdr_status status = GDR_OK;
    for (int i = 0; !status && i < m->entry.count; i++) {
        EntryKind kind = m->entry.at[i].kind;
        if (phase_of(kind) == phase && (kind != ENTRY_chain || i == chain))
            status = queue_number(kernel, b, i, p, stream);
    }
    return status;
}

/* Where all is to be saved records have a place of their own, at the workspace's start if nobody wants
 * them. */
static gdr_status queue_kernels(gdr_kernel *kernel, const BoundLaunch *b, void *stream) {
    Piece all = {.slots = b->slots, .sequences = b->N};
    if (b->all && !b->saved)
        b->frame[FRAME_SAVED] = b->frame[FRAME_WS];
    set_field(kernel, b, SEGMENT_AHEAD, b->frame[FRAME_WS] + (int64_t)b->ahead);
    gdr_status status = queue_entries(kernel, b, &all, PHASE_ahead, stream);
    for (int64_t i = 0; !status && i < b->seg.count; i++) {
        Piece p = piece_at(&kernel->rec, b, i);
        go_to(kernel, b, i, &p);
        status = queue_entries(kernel, b, &p, PHASE_piece, stream);
    }
    bool remembers = b->frame[FRAME_PAST] != 0;
    return status || !remembers ? status : queue_entries(kernel, b, &all, PHASE_behind, stream);
}

gdr_status check_workspace(gdr_context *ctx, const gdr_launch *launch, const BoundLaunch *b,
                           int align) {
    if (launch->workspace_bytes < b->workspace)
        return ctx_fail(ctx, GDR_EINPUT, "the workspace has %zu bytes, need %zu",
                        launch->workspace_bytes, b->workspace);
    if ((uintptr_t)launch->workspace % (unsigned)align)
        return ctx_fail(ctx, GDR_EINPUT, "the workspace is not aligned to %d bytes", align);
    return GDR_OK;
}

gdr_status queue_with_workspace(gdr_kernel *kernel, const gdr_launch *launch, BoundLaunch *b,
                                QueueFn *queue) {
    gdr_context *ctx = kernel->ctx;
    CudaError e;
    if (!kernel->cuda_module)
        return ctx_fail(ctx, GDR_EUNSUPPORTED, "the kernel was compiled without being loaded");
    if (!b->workspace || launch->workspace) {
        gdr_status status = launch->workspace ? check_workspace(ctx, launch, b, 256) : GDR_OK;
        return status ? status : queue(kernel, b, launch->stream);
    }
    uint64_t ws;
    if (!cuda_alloc_async(ctx->cuda, b->workspace, launch->stream, &ws, &e))
        return driver_failed(ctx, &e);
    b->frame[FRAME_WS] = (int64_t)ws;
    gdr_status status = queue(kernel, b, launch->stream);
    if (!cuda_free_async(ctx->cuda, ws, launch->stream, &e) && !status)
        status = driver_failed(ctx, &e);
    return status;
}

static gdr_status forward_gpu(gdr_kernel *kernel, const gdr_launch *launch, BoundLaunch *b) {
    Piece longest = piece_at(&kernel->rec, b, 0);
    for (int i = 0; i < kernel->rec.module.entry.count; i++)
        if (grid_of(kernel, &kernel->rec.module.entry.at[i], b, &longest) < 0)
            return ctx_fail(kernel->ctx, GDR_ELIMIT,
                            "too many sequences, heads or chunks for one launch");
    return queue_with_workspace(kernel, launch, b, queue_kernels);
}

gdr_status run_tasks(gdr_kernel *kernel, const BoundLaunch *b) {
    int64_t tasks;
    if (__builtin_mul_overflow(b->N, b->H, &tasks))
        return ctx_fail(kernel->ctx, GDR_EINPUT, "N * H overflows 64 bits");
    if (tasks == 0)
        return GDR_OK;
    if (!kernel->host_entry)
        return ctx_fail(kernel->ctx, GDR_EUNSUPPORTED,
                        "the kernel was compiled without being loaded");
    Pool *pool = ctx_pool(kernel->ctx);
    if (!pool)
        return GDR_ENOMEM;
    int64_t scratch = kernel->rec.module.entry.at[0].scratch_bytes;
    if (!pool_run(pool, kernel->host_entry, b->frame, tasks, scratch))
        return ctx_fail(kernel->ctx, GDR_ENOMEM, "no memory for %lld bytes of scratch a thread",
                        (long long)scratch);
    return GDR_OK;
}

gdr_status gdr_forward(gdr_kernel *kernel, const gdr_launch *launch) {
    BoundLaunch b;
    if (kernel->rec.pass != GDR_PASS_FORWARD)
        return ctx_fail(kernel->ctx, GDR_EUSAGE, "%s was compiled for the backward pass",
                        kernel->rec.shell->name);
    gdr_status status = launch_bind(kernel, launch, BIND_launch, &b);
    if (status)
        return status;
    status = record_on_gpu(&kernel->rec) ? forward_gpu(kernel, launch, &b) : run_tasks(kernel, &b);
    if (!status && launch->saved) {
        launch->saved->chunk = b.saved ? kernel->rec.module.chunk : 0;
        launch->saved->records = b.saved && b.all ? kernel->rec.module.records : 0;
    }
    launch_free(&b);
    return status;
}

static gdr_status workspace_of(gdr_kernel *kernel, const gdr_launch *launch, BindFor what,
                               size_t *bytes) {
    BoundLaunch b;
    *bytes = 0;
    gdr_status status = launch_bind(kernel, launch, what, &b);
    if (!status)
        *bytes = b.workspace;
    launch_free(&b);
    return status;
}

gdr_status gdr_workspace_size(gdr_kernel *kernel, const gdr_launch *launch, size_t *bytes) {
    return workspace_of(kernel, launch, BIND_default, bytes);
}

gdr_status gdr_workspace_least(gdr_kernel *kernel, const gdr_launch *launch, size_t *bytes) {
    return workspace_of(kernel, launch, BIND_least, bytes);
}

gdr_status gdr_saved_size(gdr_kernel *kernel, const gdr_launch *launch, size_t *bytes) {
    BoundLaunch b;
    *bytes = 0;
    gdr_status status = launch_bind(kernel, launch, BIND_default, &b);
    if (!status)
        *bytes = b.saved_bytes;
    launch_free(&b);
    return status;
}
