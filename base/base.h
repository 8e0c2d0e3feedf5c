/* base: what every other folder stands on, and nothing that knows about recurrences.
 *
 *   arena.c   bump allocation by lifetime          intern.c  one pointer per distinct string
 *   buf.c     growable text                        source.c  a file's text, offset -> line:column
 *   diag.c    messages about the user's text       bug.c     our own mistakes
 *
 * Three kinds of error, never mixed: the user's text is wrong (diag_*), the environment cannot do it
 * (gdr_status in runtime/gdr.h; arena exhaustion unwinds to the API entry), or gdrc is wrong (BUG).
 */
#ifndef GDR_BASE_H
#define GDR_BASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* arena.c -------------------------------------------------------------------------------------- */

/* Memory with one lifetime: allocated piece by piece, freed together. All memory is zeroed and
 * 16-byte aligned. When memory runs out, control unwinds to `oom` if it is set (the API entry sets
 * it), otherwise the process aborts. */
typedef struct ArenaChunk ArenaChunk;
typedef struct Arena {
    ArenaChunk *head;
    jmp_buf *oom;       /* where to unwind when memory runs out; may be NULL */
    int64_t fail_after; /* test hook: allocation number after which every request fails; 0 = never */
    int64_t count;      /* allocations so far */
} Arena;

void arena_init(Arena *a, jmp_buf *oom);
void *arena_alloc(Arena *a, size_t size);                     /* never NULL */
void *arena_array(Arena *a, size_t count, size_t size);       /* checks count * size for overflow */
void *arena_grow(Arena *a, void *old, size_t old_size, size_t new_size);
char *arena_strndup(Arena *a, const char *s, size_t n);
void arena_free(Arena *a);                                    /* everything at once; reusable after */

#define NEW(a, T) ((T *)arena_alloc((a), sizeof(T)))
#define NEW_ARRAY(a, T, n) ((T *)arena_array((a), (size_t)(n), sizeof(T)))

/* A growable array in an arena: struct { T *at; int count, cap; }. VEC_PUSH evaluates `item` once. */
#define VEC(T) struct { T *at; int count, cap; }
#define VEC_PUSH(arena, v, item)                                                                   \
    do {                                                                                           \
        if ((v)->count == (v)->cap) {                                                              \
            int new_cap_ = (v)->cap ? 2 * (v)->cap : 8;                                            \
            (v)->at = arena_grow((arena), (v)->at, (size_t)(v)->cap * sizeof *(v)->at,             \
                                 (size_t)new_cap_ * sizeof *(v)->at);                              \
            (v)->cap = new_cap_;                                                                   \
        }                                                                                          \
        (v)->at[(v)->count++] = (item);                                                            \
    } while (0)

/* intern.c ------------------------------------------------------------------------------------- */

/* Equal strings interned in one table are the same pointer, so names compare with ==. */
typedef struct Interner {
    Arena *arena;
    const char **slot; /* open addressing, power-of-two size */
    int used, size;
} Interner;

void intern_init(Interner *t, Arena *arena);
const char *intern(Interner *t, const char *s, size_t len);
const char *intern_z(Interner *t, const char *s);

/* buf.c ---------------------------------------------------------------------------------------- */

/* Text that grows; always NUL-terminated once written to. */
typedef struct Buf {
    Arena *arena;
    char *text;
    size_t len, cap;
} Buf;

void buf_init(Buf *b, Arena *arena);
void buf_put(Buf *b, const char *s, size_t n);
void buf_puts(Buf *b, const char *s);
void buf_printf(Buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(Buf *b, const char *fmt, va_list ap);
void buf_json_string(Buf *b, const char *s); /* quoted and escaped */
void buf_number(Buf *b, double x);           /* shortest text that reads back to the same double */

/* source.c ------------------------------------------------------------------------------------- */

/* Byte offsets into one Source: [lo, hi). Lines and columns exist only when printed. */
typedef struct Span { uint32_t lo, hi; } Span;

typedef struct Source {
    const char *name;    /* as shown in messages */
    const char *text;    /* NUL-terminated */
    size_t len;
    uint32_t *line;      /* offset of each line's first byte */
    int nlines;
} Source;

Source *source_from_text(Arena *a, const char *name, const char *text, size_t len);
/* NULL with errno set when the file cannot be read; files above 1 MiB are refused with EFBIG. */
Source *source_from_file(Arena *a, const char *path);
/* One-based line and column (in bytes) of an offset. */
void source_locate(const Source *s, uint32_t offset, int *line, int *column);
Span span_join(Span a, Span b);

/* diag.c --------------------------------------------------------------------------------------- */

typedef enum { DIAG_error, DIAG_warning } DiagKind;

typedef struct DiagNote { Span span; bool has_span; const char *text; } DiagNote;
typedef struct DiagItem {
    DiagKind kind;
    Span span;
    const char *text;
    VEC(DiagNote) note;
} DiagItem;

/* The messages of one run over one source. Nothing is printed until asked. After DIAG_LIMIT errors
 * further ones are counted, not kept. Repeats of the same text at the same span are dropped. */
#define DIAG_LIMIT 20
typedef struct Diag {
    Arena *arena;
    const Source *source;
    VEC(DiagItem) item;
    int errors, warnings;
    bool dropped;        /* the last message was a repeat or over the limit: so are its notes */
} Diag;

void diag_init(Diag *d, Arena *arena, const Source *source);
void diag_error(Diag *d, Span span, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void diag_warning(Diag *d, Span span, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Attach to the message reported last; without a span the note is a line of help. */
void diag_note(Diag *d, Span span, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void diag_help(Diag *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* `file:line:col: error: ...`, the line, carets; in order of position. */
void diag_print_text(const Diag *d, Buf *out, bool color);
/* One JSON array of {file,line,column,end_line,end_column,severity,message,notes}. */
void diag_print_json(const Diag *d, Buf *out);
/* The closest candidate to `name` within a small edit distance, or NULL: "did you mean". */
const char *diag_closest(const char *name, const char *const *candidate, int count);

/* bug.c ---------------------------------------------------------------------------------------- */

/* Our own mistake: says where, asks for a report, aborts. Never for user or environment errors. */
_Noreturn void bug_at(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#define BUG(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(cond) ((cond) ? (void)0 : bug_at(__FILE__, __LINE__, "check failed: %s", #cond))

#endif
