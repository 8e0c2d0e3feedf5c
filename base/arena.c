/* Bump allocation by lifetime. An arena is a list of chunks, newest first; a request is served from
 * the newest chunk or opens a new one. Chunks double in size up to CHUNK_MAX, so an arena of n bytes
 * costs O(log n) + n / CHUNK_MAX calls of malloc. Memory is handed out zeroed.
 *
 * Under AddressSanitizer the unused part of a chunk is poisoned, so overruns of arena memory past
 * the last allocation are found as those of malloc would be.
 */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#endif
#ifdef HAVE_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { ALIGN = 16, CHUNK_MIN = 4096, CHUNK_MAX = 1 << 20 };

struct ArenaChunk {
    ArenaChunk *next;
    size_t used, size; /* of the bytes that follow the header */
    char *bytes;
};

static size_t round_up(size_t n) { return (n + ALIGN - 1) & ~(size_t)(ALIGN - 1); }

_Noreturn static void out_of_memory(Arena *a, size_t size) {
    if (a->oom)
        longjmp(*a->oom, 1);
    fprintf(stderr, "gdrc: out of memory (%zu bytes requested)\n", size);
    abort();
}

void arena_init(Arena *a, jmp_buf *oom) { *a = (Arena){.oom = oom}; }

static ArenaChunk *chunk_new(Arena *a, size_t need) {
    size_t size = a->head ? 2 * a->head->size : CHUNK_MIN;
    size_t header = round_up(sizeof(ArenaChunk));
    if (size > CHUNK_MAX)
        size = CHUNK_MAX;
    if (size < need)
        size = need;
    ArenaChunk *c = calloc(1, header + size);
    if (!c)
        out_of_memory(a, need);
    c->size = size;
    c->bytes = (char *)c + header;
    c->next = a->head;
    a->head = c;
    ASAN_POISON_MEMORY_REGION(c->bytes, size);
    return c;
}

void *arena_alloc(Arena *a, size_t size) {
    a->count++;
    if ((a->fail_after && a->count > a->fail_after) || size > SIZE_MAX / 2)
        out_of_memory(a, size);
    size_t need = round_up(size ? size : 1);
    ArenaChunk *c = a->head;
    if (!c || c->size - c->used < need)
        c = chunk_new(a, need);
    void *p = c->bytes + c->used;
    c->used += need;
    ASAN_UNPOISON_MEMORY_REGION(p, size);
    return p;
}

void *arena_array(Arena *a, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        out_of_memory(a, SIZE_MAX);
    return arena_alloc(a, bytes);
}

void *arena_grow(Arena *a, void *old, size_t old_size, size_t new_size) {
    if (old && new_size <= old_size)
        return old;
    void *p = arena_alloc(a, new_size);
    if (old_size)
        memcpy(p, old, old_size);
    return p;
}

char *arena_strndup(Arena *a, const char *s, size_t n) {
    char *copy = arena_alloc(a, n + 1);
    if (n)
        memcpy(copy, s, n);
    return copy;
}

void arena_free(Arena *a) {
    while (a->head) {
        ArenaChunk *c = a->head;
        a->head = c->next;
        ASAN_UNPOISON_MEMORY_REGION(c->bytes, c->size);
        free(c);
    }
}
