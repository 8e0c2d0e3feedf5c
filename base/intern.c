/* String interning: open addressing with linear probing over a power-of-two table, at most half
 * full. Strings live in the arena, NUL-terminated; two equal strings are one pointer. */
#include "base/base.h"

#include <string.h>

enum { FIRST_SIZE = 64 };

static uint64_t hash_bytes(const char *s, size_t len) {
    uint64_t h = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)s[i]) * 1099511628211u;
    return h;
}

void intern_init(Interner *t, Arena *arena) { *t = (Interner){.arena = arena}; }

/* The slot that holds the string, or the empty slot where it belongs. */
static const char **find_slot(Interner *t, const char *s, size_t len) {
    unsigned mask = (unsigned)t->size - 1;
    for (unsigned i = (unsigned)hash_bytes(s, len) & mask;; i = (i + 1) & mask) {
        const char **slot = &t->slot[i];
        if (!*slot || (!strncmp(*slot, s, len) && !(*slot)[len]))
            return slot;
    }
}

static void grow(Interner *t) {
    const char **old = t->slot;
    int old_size = t->size;
    t->size = old_size ? 2 * old_size : FIRST_SIZE;
    t->slot = NEW_ARRAY(t->arena, const char *, t->size);
    for (int i = 0; i < old_size; i++)
        if (old[i])
            *find_slot(t, old[i], strlen(old[i])) = old[i];
}

const char *intern(Interner *t, const char *s, size_t len) {
    const char *nul = len ? memchr(s, 0, len) : NULL;
    if (nul) /* names end at the first NUL, here as everywhere in C */
        len = (size_t)(nul - s);
    if (2 * (t->used + 1) > t->size)
        grow(t);
    const char **slot = find_slot(t, s, len);
    if (!*slot) {
        *slot = arena_strndup(t->arena, s, len);
        t->used++;
    }
    return *slot;
}

const char *intern_z(Interner *t, const char *s) { return intern(t, s, strlen(s)); }
