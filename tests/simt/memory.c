/* Loads, stores and asynchronous copies. Global memory is what simt_memory registered; shared
 * memory is the launch's, with a record of the last accesses to every two bytes of it. */
#include "tests/simt/code.h"

/* global --------------------------------------------------------------------------------------- */

static bool inside(const Memory *m, uint64_t address, int size) {
    return address >= m->at && address - m->at <= m->size &&
           (uint64_t)size <= m->size - (address - m->at);
}

void *memory_global(Thread *t, const Code *c, uint64_t address, int size, bool write) {
    Simt *s = t->s;
    int i = c->hit;
    if (i >= s->memory.count || !inside(&s->memory.at[i], address, size))
        for (i = 0; i < s->memory.count && !inside(&s->memory.at[i], address, size);)
            i++;
    if (i == s->memory.count)
        simt_fail(t, c, "%d bytes at %llx, outside of all memory", size,
                  (unsigned long long)address);
    if (write && !s->memory.at[i].writable)
        simt_fail(t, c, "write to memory that is only read");
    ((Code *)(uintptr_t)c)->hit = i;
    return (void *)(uintptr_t)address;
}

/* shared --------------------------------------------------------------------------------------- */

static int warp_of(int thread) {
    return thread / WARP;
}

/* Did thread `other` do something at these times that `t` cannot know to be over? */
static bool concurrent(const Thread *t, int other, uint32_t time, uint32_t warp_time) {
    if (time != t->s->time || other == t->id)
        return false;
    return warp_of(other) != warp_of(t->id) || warp_time == t->warp->time;
}

static void note_read(Thread *t, const Code *c, Granule *g, uint64_t address) {
    bool agreed = g->agreed && warp_of(g->writer) == warp_of(t->id);
    if (!agreed && concurrent(t, g->writer, g->written, g->written_warp))
        simt_fail(t, c, "shared %llu was written by thread %d, no barrier since",
                  (unsigned long long)(address - SHARED_BASE), g->writer);
    bool same_time = g->read == t->s->time, same_warp = warp_of(g->reader) == warp_of(t->id);
    g->reader_warps = same_time && (g->reader_warps || !same_warp);
    g->readers = same_time && same_warp && g->read_warp == t->warp->time &&
                 (g->readers || g->reader != t->id);
    g->read = t->s->time;
    g->read_warp = t->warp->time;
    g->reader = (int16_t)t->id;
}

/* `same`: what is written is there already, as when all lanes of a warp store one sum. */
static void note_write(Thread *t, const Code *c, Granule *g, uint64_t address, bool same) {
    int where = (int)(address - SHARED_BASE);
    bool second = concurrent(t, g->writer, g->written, g->written_warp);
    if (second && !(same && warp_of(g->writer) == warp_of(t->id)))
        simt_fail(t, c, "shared %d was written by thread %d, no barrier since", where, g->writer);
    bool others =
        g->read == t->s->time && (g->reader_warps || (g->readers && g->read_warp == t->warp->time));
    if (others || concurrent(t, g->reader, g->read, g->read_warp))
        simt_fail(t, c, "shared %d was read by thread %d, no barrier since", where, g->reader);
    g->agreed = second;
    g->written = t->s->time;
    g->written_warp = t->warp->time;
    g->writer = (int16_t)t->id;
}

const char memory_unknown[1] = {0};

/* Whether the two bytes of granule i are what `data`, written at `at`, makes them. */
static bool is_there(const Simt *s, uint64_t at, int size, const void *data, uint64_t i) {
    uint64_t lo = i * GRANULE < at ? at : i * GRANULE;
    uint64_t hi = at + (uint64_t)size < (i + 1) * GRANULE ? at + (uint64_t)size : (i + 1) * GRANULE;
    return data != memory_unknown &&
           memcmp(s->shared + lo, (const char *)data + (lo - at), hi - lo) == 0;
}

void *memory_shared(Thread *t, const Code *c, uint64_t address, int size, int align,
                    const void *data) {
    Simt *s = t->s;
    uint64_t at = address - SHARED_BASE;
    if (at > (uint64_t)s->shared_bytes || (uint64_t)size > (uint64_t)s->shared_bytes - at)
        simt_fail(t, c, "%d bytes at shared %lld of %d", size, (long long)at, s->shared_bytes);
    if (at % (uint64_t)align)
        simt_fail(t, c, "shared %llu is not a multiple of %d", (unsigned long long)at, align);
    for (uint64_t i = at / GRANULE; i <= (at + (uint64_t)size - 1) / GRANULE; i++) {
        if (s->granule[i].in_flight)
            simt_fail(t, c, "shared %llu: a copy is under way", (unsigned long long)at);
        if (data)
            note_write(t, c, &s->granule[i], address, is_there(s, at, size, data, i));
        else
            note_read(t, c, &s->granule[i], address);
    }
    return s->shared + at;
}

const void *memory_shared_product(Thread *t, const Code *c, uint64_t address) {
    Simt *s = t->s;
    uint64_t at = address - SHARED_BASE;
    if (at > (uint64_t)s->shared_bytes - 2 || at % 2)
        simt_fail(t, c, "a product reads shared %lld of %d", (long long)at, s->shared_bytes);
    Granule *g = &s->granule[at / GRANULE];
    if (g->in_flight)
        simt_fail(t, c, "shared %llu: a copy is under way", (unsigned long long)at);
    if (g->written)
        simt_fail(t, c, "shared %llu was written by thread %d, not by a bulk copy",
                  (unsigned long long)at, g->writer);
    g->reader_warps = true;
    g->read = s->time;
    return s->shared + at;
}

void memory_forget(Simt *s, int bytes) {
    memset(s->shared, 0xff, (size_t)bytes);
    memset(s->granule, 0, sizeof *s->granule * (size_t)(bytes / GRANULE + 1));
}

/* loads and stores ----------------------------------------------------------------------------- */

static void *access(Thread *t, const Code *c, uint64_t address, int size, const void *data) {
    if (c->space == 3)
        return memory_shared(t, c, address, size, c->align, data);
    if (address % (uint64_t)c->align)
        simt_fail(t, c, "address %llx is not a multiple of %d", (unsigned long long)address,
                  c->align);
    return memory_global(t, c, address, size, data != NULL);
}

static uint64_t get_element(const char *p, int bytes) {
    uint64_t x = 0;
    switch (bytes) {
    case 1: memcpy(&x, p, 1); break;
    case 2: memcpy(&x, p, 2); break;
    case 4: memcpy(&x, p, 4); break;
    default: memcpy(&x, p, 8); break;
    }
    return x;
}

static void put_element(char *p, int bytes, uint64_t x) {
    switch (bytes) {
    case 1: memcpy(p, &x, 1); break;
    case 2: memcpy(p, &x, 2); break;
    case 4: memcpy(p, &x, 4); break;
    default: memcpy(p, &x, 8); break;
    }
}

void run_load(Thread *t, const Code *c) {
    int bytes = c->element_bytes;
    const char *p = access(t, c, t->reg[c->arg[0]], bytes * c->lanes, NULL);
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = get_element(p + i * bytes, bytes);
}

/* number: elements. */
void run_store(Thread *t, const Code *c) {
    char data[256];
    int bytes = c->element_bytes, size = bytes * (int)c->number;
    for (int i = 0; i < c->number; i++)
        put_element(data + i * bytes, bytes, t->reg[c->arg[0] + i]);
    memcpy(access(t, c, t->reg[c->arg[1]], size, data), data, (size_t)size);
}

/* Assembly: its words, then the address. */
void run_store_words(Thread *t, const Code *c) {
    char data[16];
    int words = c->nargs - 1;
    for (int i = 0; i < words; i++)
        put_element(data + 4 * i, 4, t->reg[c->arg[i]]);
    memcpy(access(t, c, t->reg[c->arg[words]], 4 * words, data), data, (size_t)(4 * words));
}

/* What the bytes are from now on nobody may rely on. */
void run_discard(Thread *t, const Code *c) {
    uint64_t at = t->reg[c->arg[0]], bytes = t->reg[c->arg[1]];
    if (bytes != 128 || at % bytes)
        simt_fail(t, c, "discard of %llu bytes at %llx", (unsigned long long)bytes, (unsigned long long)at);
    memset(memory_global(t, c, at, (int)bytes, true), 0xff, bytes);
}

/* asynchronous copies -------------------------------------------------------------------------- */

static void mark(Simt *s, const Copy *copy, bool in_flight) {
    uint64_t at = copy->dst - SHARED_BASE;
    for (int i = 0; i < copy->size; i += GRANULE)
        s->granule[(at + (uint64_t)i) / GRANULE].in_flight = in_flight;
}

void memory_copy_begin(Thread *t, const Code *c, const Copy *copy) {
    if (copy->bytes)
        memory_global(t, c, (uint64_t)(uintptr_t)copy->src, copy->bytes, false);
    if (copy->bytes && (uintptr_t)copy->src % 16)
        simt_fail(t, c, "copy from %p, not a multiple of 16", copy->src);
    memory_shared(t, c, copy->dst, copy->size, 16, memory_unknown);
    mark(t->s, copy, true);
}

void memory_copy_end(Thread *t, const Copy *copy, bool own) {
    Simt *s = t->s;
    uint64_t at = copy->dst - SHARED_BASE;
    mark(s, copy, false);
    memcpy(s->shared + at, copy->src, (size_t)copy->bytes);
    memset(s->shared + at + copy->bytes, 0, (size_t)(copy->size - copy->bytes));
    for (int i = 0; i < copy->size; i += GRANULE) {
        Granule *g = &s->granule[(at + (uint64_t)i) / GRANULE];
        g->written = own ? s->time : 0;
        g->written_warp = t->warp->time;
        g->writer = (int16_t)t->id;
    }
}

static void copy_16(Thread *t, const Code *c, uint64_t dst, uint64_t src, uint64_t bytes) {
    if (bytes > 16)
        simt_fail(t, c, "%llu bytes of 16", (unsigned long long)bytes);
    Copy copy = {(const void *)(uintptr_t)src, dst, (int)bytes, 16, t->groups};
    memory_copy_begin(t, c, &copy);
    VEC_PUSH(t->s->arena, &t->copy, copy);
}

void run_cp_async(Thread *t, const Code *c) {
    copy_16(t, c, t->reg[c->arg[0]], t->reg[c->arg[1]], 16);
}

void run_cp_async_some(Thread *t, const Code *c) {
    copy_16(t, c, t->reg[c->arg[0]], t->reg[c->arg[1]], t->reg[c->arg[2]]);
}

void run_cp_async_if(Thread *t, const Code *c) {
    if (t->reg[c->arg[3]])
        run_cp_async_some(t, c);
}

void run_cp_commit(Thread *t, const Code *c) {
    (void)c;
    t->groups++;
}

/* What belongs to the newest groups, as many as operand 0 says, goes on. */
void run_cp_wait(Thread *t, const Code *c) {
    int done = t->groups - (int)t->reg[c->arg[0]], kept = 0;
    for (int i = 0; i < t->copy.count; i++)
        if (t->copy.at[i].group < done)
            memory_copy_end(t, &t->copy.at[i], true);
        else
            t->copy.at[kept++] = t->copy.at[i];
    t->copy.count = kept;
}
