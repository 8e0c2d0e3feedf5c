/* Blocks: every warp runs until it waits for others, then they go on together. */
#include "tests/simt/code.h"

#include <stdio.h>
#include <stdlib.h>

void simt_fail(Thread *t, const Code *c, const char *fmt, ...) {
    Simt *s = t->s;
    Buf b;
    va_list ap;
    buf_init(&b, s->arena);
    buf_printf(&b, "%s, block %lld, thread %d: ", s->symbol, (long long)s->block, t->id);
    va_start(ap, fmt);
    buf_vprintf(&b, fmt, ap);
    va_end(ap);
    char *text = LLVMPrintValueToString(c->from);
    buf_printf(&b, ", in%s", text);
    LLVMDisposeMessage(text);
    s->why = b.text;
    longjmp(s->failed, 1);
}

void simt_memory(Simt *s, const void *at, size_t size, bool writable) {
    VEC_PUSH(s->arena, &s->memory, ((Memory){(uintptr_t)at, size, writable}));
}

void simt_forget(Simt *s) {
    s->memory.count = s->own_memory;
}

/* warps ---------------------------------------------------------------------------------------- */

/* Until the thread needs others, waits, or ends. */
static void run_thread(Thread *t) {
    t->blocked = false;
    while (t->pc->run && !t->done && !t->blocked) {
        const Code *c = t->pc++;
        c->run(t, c);
    }
}

static void step_over(Warp *w) {
    for (int l = 0; l < WARP; l++)
        w->thread[l]->pc++;
}

/* True when all threads of the warp are at one place, or have all ended. */
static bool gathered(Warp *w) {
    Thread *first = w->thread[0];
    bool blocked = false;
    for (int l = 0; l < WARP; l++)
        blocked |= w->thread[l]->blocked;
    if (blocked)
        return false;
    for (int l = 1; l < WARP; l++) {
        Thread *t = w->thread[l];
        if (t->done != first->done)
            simt_fail(t->done ? first : t, t->done ? first->pc : t->pc,
                      "a part of the warp has ended");
        if (t->pc != first->pc)
            simt_fail(first, first->pc, "a part of the warp (thread %d) is elsewhere", t->id);
    }
    return true;
}

/* Runs a warp until all of it waits for other warps; true if anything was done. */
static bool run_warp(Warp *w) {
    bool moved = false;
    for (;;) {
        for (int l = 0; l < WARP; l++) {
            const Code *before = w->thread[l]->pc;
            run_thread(w->thread[l]);
            moved |= w->thread[l]->pc != before;
        }
        if (!gathered(w) || w->thread[0]->done)
            return moved;
        const Code *c = w->thread[0]->pc;
        if (c->scope != SCOPE_warp) {
            w->waiting_for = c->scope;
            return moved;
        }
        c->together(w, c);
        step_over(w);
        moved = true;
    }
}

/* blocks --------------------------------------------------------------------------------------- */

static bool ended(const Warp *w) {
    return w->thread[0]->done;
}

/* Groups of four warps at one product; true if there was one. */
static bool release_groups(Simt *s) {
    bool any = false;
    for (int i = 0; i + 3 < s->warps; i += 4) {
        Warp *w = &s->warp[i];
        const Code *c = w->thread[0]->pc;
        bool all = true;
        for (int j = 0; j < 4; j++)
            all &= !ended(&w[j]) && w[j].waiting_for == SCOPE_group && w[j].thread[0]->pc == c;
        if (!all)
            continue;
        c->together(w, c);
        for (int j = 0; j < 4; j++) {
            step_over(&w[j]);
            w[j].waiting_for = SCOPE_thread;
        }
        any = true;
    }
    return any;
}

/* The barrier, if every warp is there. */
static bool release_block(Simt *s) {
    for (int i = 0; i < s->warps; i++)
        if (ended(&s->warp[i]) || s->warp[i].waiting_for != SCOPE_block)
            return false;
    for (int i = 0; i < s->warps; i++) {
        Warp *w = &s->warp[i];
        const Code *c = w->thread[0]->pc;
        c->together(w, c);
        step_over(w);
        w->waiting_for = SCOPE_thread;
    }
    s->time++;
    return true;
}

static void run_block(Simt *s) {
    for (;;) {
        bool moved = false, left = false;
        Warp *stuck = NULL;
        for (int i = 0; i < s->warps; i++) {
            if (s->warp[i].waiting_for == SCOPE_thread && !ended(&s->warp[i]))
                moved |= run_warp(&s->warp[i]);
            if (!ended(&s->warp[i])) {
                left = true;
                stuck = &s->warp[i];
            }
        }
        if (!left)
            return;
        moved |= release_groups(s);
        moved |= release_block(s);
        if (!moved)
            simt_fail(stuck->thread[0], stuck->thread[0]->pc, "waits for ever");
    }
}

/* launches ------------------------------------------------------------------------------------- */

static void make_threads(Simt *s) {
    if (s->threads > s->thread_room) {
        s->thread = NEW_ARRAY(s->arena, Thread, s->threads);
        s->warp = NEW_ARRAY(s->arena, Warp, s->threads / WARP);
        for (int i = 0; i < s->threads; i++) {
            Thread *t = &s->thread[i];
            *t = (Thread){.s = s, .id = i, .warp = &s->warp[i / WARP]};
            t->reg = NEW_ARRAY(s->arena, uint64_t, s->registers);
            t->warp->s = s;
            t->warp->thread[i % WARP] = t;
            for (int j = 0; j < s->constant.count; j++)
                t->reg[s->constant.at[j]] = s->constant_value.at[j];
        }
        s->phi = NEW_ARRAY(s->arena, uint64_t, s->phis_max + 1);
        s->thread_room = s->threads;
    }
    if (s->shared_bytes > s->shared_room || !s->shared) {
        s->shared = arena_alloc(s->arena, (size_t)s->shared_bytes + 16);
        s->granule = NEW_ARRAY(s->arena, Granule, s->shared_bytes / GRANULE + 1);
        s->shared_room = s->shared_bytes;
    }
}

static void begin_block(Simt *s, const int64_t *frame) {
    s->time = 1;
    s->arrivals = 0;
    memory_forget(s, s->shared_bytes);
    for (int i = 0; i < s->warps; i++) {
        s->warp[i].time = 1;
        s->warp[i].waiting_for = SCOPE_thread;
        s->warp[i].product.count = 0;
    }
    for (int i = 0; i < s->threads; i++) {
        Thread *t = &s->thread[i];
        t->pc = s->code.at;
        t->done = t->blocked = false;
        t->copy.count = t->groups = 0;
        t->reg[s->frame_register] = (uint64_t)(uintptr_t)frame;
    }
}

bool simt_launch(Simt *s, const int64_t *frame, int fields, int64_t blocks, int threads,
                 int shared_bytes, const char **why) {
    CHECK(threads > 0 && threads % WARP == 0);
    int memory = s->memory.count;
    s->threads = threads;
    s->warps = threads / WARP;
    s->shared_bytes = shared_bytes;
    simt_memory(s, frame, (size_t)fields * 8, false);
    make_threads(s);
    if (setjmp(s->failed)) {
        s->memory.count = memory;
        *why = s->why;
        return false;
    }
    s->blocks = blocks;
    for (int64_t b = 0; b < blocks; b++) {
        s->block = b;
        begin_block(s, frame);
        run_block(s);
    }
    s->memory.count = memory;
    return true;
}
