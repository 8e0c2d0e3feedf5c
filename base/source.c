/* A source text and its line map. Everything else works with byte offsets. */
#include "base/base.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { SOURCE_MAX = 1 << 20 };

Source *source_from_text(Arena *a, const char *name, const char *text, size_t len) {
    Source *s = NEW(a, Source);
    VEC(uint32_t) line = {0};
    CHECK(len < UINT32_MAX);
    s->name = arena_strndup(a, name, strlen(name));
    s->text = arena_strndup(a, text, len);
    s->len = len;
    VEC_PUSH(a, &line, 0);
    for (size_t i = 0; i < len; i++)
        if (text[i] == '\n')
            VEC_PUSH(a, &line, (uint32_t)i + 1);
    s->line = line.at;
    s->nlines = line.count;
    return s;
}

Source *source_from_file(Arena *a, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    char *text = arena_alloc(a, SOURCE_MAX + 1);
    errno = 0;
    size_t len = fread(text, 1, SOURCE_MAX + 1, f);
    int failed = ferror(f) ? (errno ? errno : EIO) : len > SOURCE_MAX ? EFBIG : 0;
    fclose(f);
    if (failed) {
        errno = failed;
        return NULL;
    }
    return source_from_text(a, path, text, len);
}

void source_locate(const Source *s, uint32_t offset, int *line, int *column) {
    int lo = 0, hi = s->nlines;
    if (offset > s->len)
        offset = (uint32_t)s->len;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (s->line[mid] <= offset)
            lo = mid;
        else
            hi = mid;
    }
    *line = lo + 1;
    *column = (int)(offset - s->line[lo]) + 1;
}

Span span_join(Span a, Span b) {
    return (Span){a.lo < b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi};
}
