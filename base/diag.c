/* Messages about the user's text: collected, then printed in order of position, as text with the
 * line and carets
 *
 *     gdn2.gdr:9:12: error: unknown name 'kk'
 *         let r = S' * kk
 *                      ^~
 *     help: did you mean 'kn'?
 *
 * or as JSON. A message that repeats an earlier one (same text, same span) is dropped together with
 * its notes; after DIAG_LIMIT errors the rest are only counted.
 */
#include "base/base.h"

#include <string.h>

enum { LINE_MAX_SHOWN = 160, CLOSEST_MAX_LEN = 64 };

void diag_init(Diag *d, Arena *arena, const Source *source) {
    *d = (Diag){.arena = arena, .source = source};
}

static bool same_item(const DiagItem *a, const DiagItem *b) {
    return a->span.lo == b->span.lo && a->span.hi == b->span.hi && !strcmp(a->text, b->text);
}

static char *format_text(Arena *a, const char *fmt, va_list ap) {
    Buf b;
    buf_init(&b, a);
    buf_vprintf(&b, fmt, ap);
    return b.text;
}

static void report(Diag *d, DiagKind kind, Span span, const char *fmt, va_list ap) {
    int *seen = kind == DIAG_error ? &d->errors : &d->warnings;
    d->dropped = true;
    if (*seen >= DIAG_LIMIT) {
        ++*seen;
        return;
    }
    DiagItem item = {.kind = kind, .span = span, .text = format_text(d->arena, fmt, ap)};
    for (int i = 0; i < d->item.count; i++)
        if (same_item(&d->item.at[i], &item))
            return;
    d->dropped = false;
    ++*seen;
    VEC_PUSH(d->arena, &d->item, item);
}

void diag_error(Diag *d, Span span, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    report(d, DIAG_error, span, fmt, ap);
    va_end(ap);
}

void diag_warning(Diag *d, Span span, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    report(d, DIAG_warning, span, fmt, ap);
    va_end(ap);
}

static void attach(Diag *d, DiagNote note) {
    if (d->dropped || !d->item.count)
        return;
    DiagItem *last = &d->item.at[d->item.count - 1];
    VEC_PUSH(d->arena, &last->note, note);
}

void diag_note(Diag *d, Span span, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    attach(d, (DiagNote){.span = span, .has_span = true, .text = format_text(d->arena, fmt, ap)});
    va_end(ap);
}

void diag_help(Diag *d, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    attach(d, (DiagNote){.text = format_text(d->arena, fmt, ap)});
    va_end(ap);
}

/* printing ------------------------------------------------------------------------------------- */

/* Indices of the items by position; equal positions keep the order of reporting. */
static int *sorted(const Diag *d, Arena *a) {
    int *order = NEW_ARRAY(a, int, d->item.count + 1);
    for (int i = 0; i < d->item.count; i++) {
        int j = i;
        while (j > 0 && d->item.at[order[j - 1]].span.lo > d->item.at[i].span.lo) {
            order[j] = order[j - 1];
            j--;
        }
        order[j] = i;
    }
    return order;
}

static bool is_continuation(unsigned char c) { return (c & 0xC0) == 0x80; }

/* One byte of the shown line: control characters would move the cursor, so they become '?'. */
static void put_shown(Buf *out, char c) {
    unsigned char u = (unsigned char)c;
    buf_put(out, u == '\t' ? " " : u < 0x20 || u == 0x7F ? "?" : &c, 1);
}

/* The line that holds span.lo and carets under the part of the span in it. A long line is shown
 * from shortly before the span. Columns are counted in code points, so the carets line up. */
static void print_excerpt(const Diag *d, Buf *out, Span span, bool color) {
    const Source *s = d->source;
    int line, column;
    source_locate(s, span.lo, &line, &column);
    uint32_t begin = s->line[line - 1];
    uint32_t end = line < s->nlines ? s->line[line] - 1 : (uint32_t)s->len;
    uint32_t lo = begin + (uint32_t)column - 1;
    if (lo - begin > LINE_MAX_SHOWN / 2)
        begin = lo - LINE_MAX_SHOWN / 2;
    if (end - begin > LINE_MAX_SHOWN)
        end = begin + LINE_MAX_SHOWN;
    while (begin < lo && is_continuation((unsigned char)s->text[begin]))
        begin++;
    while (end > lo && is_continuation((unsigned char)s->text[end]))
        end--;
    uint32_t hi = span.hi > end ? end : span.hi;
    buf_puts(out, "    ");
    for (uint32_t i = begin; i < end; i++)
        put_shown(out, s->text[i]);
    buf_puts(out, "\n    ");
    for (uint32_t i = begin; i < lo; i++)
        if (!is_continuation((unsigned char)s->text[i]))
            buf_puts(out, " ");
    buf_puts(out, color ? "\033[1;32m^" : "^");
    for (uint32_t i = lo + 1; i < hi; i++)
        if (!is_continuation((unsigned char)s->text[i]))
            buf_puts(out, "~");
    buf_puts(out, color ? "\033[0m\n" : "\n");
}

static void print_place(const Diag *d, Buf *out, Span span) {
    int line, column;
    source_locate(d->source, span.lo, &line, &column);
    buf_printf(out, "%s:%d:%d: ", d->source->name, line, column);
}

static void print_item(const Diag *d, Buf *out, const DiagItem *item, bool color) {
    bool error = item->kind == DIAG_error;
    const char *tint = !color ? "" : error ? "\033[1;31m" : "\033[1;35m";
    const char *plain = color ? "\033[0m" : "";
    if (d->source)
        print_place(d, out, item->span);
    buf_printf(out, "%s%s:%s %s\n", tint, error ? "error" : "warning", plain, item->text);
    if (d->source)
        print_excerpt(d, out, item->span, color);
    for (int i = 0; i < item->note.count; i++) {
        const DiagNote *note = &item->note.at[i];
        if (note->has_span && d->source) {
            print_place(d, out, note->span);
            buf_printf(out, "note: %s\n", note->text);
            print_excerpt(d, out, note->span, color);
        } else {
            buf_printf(out, "help: %s\n", note->text);
        }
    }
}

void diag_print_text(const Diag *d, Buf *out, bool color) {
    const int *order = sorted(d, out->arena);
    for (int i = 0; i < d->item.count; i++)
        print_item(d, out, &d->item.at[order[i]], color);
    if (d->errors > DIAG_LIMIT)
        buf_printf(out, "%d more errors not shown\n", d->errors - DIAG_LIMIT);
}

static void json_place(const Diag *d, Buf *out, Span span) {
    int line = 0, column = 0, end_line = 0, end_column = 0;
    if (d->source) {
        source_locate(d->source, span.lo, &line, &column);
        source_locate(d->source, span.hi, &end_line, &end_column);
    }
    buf_puts(out, "\"file\":");
    buf_json_string(out, d->source ? d->source->name : "");
    buf_printf(out, ",\"line\":%d,\"column\":%d,\"end_line\":%d,\"end_column\":%d", line, column,
               end_line, end_column);
}

void diag_print_json(const Diag *d, Buf *out) {
    const int *order = sorted(d, out->arena);
    buf_puts(out, "[");
    for (int i = 0; i < d->item.count; i++) {
        const DiagItem *item = &d->item.at[order[i]];
        buf_puts(out, i ? ",\n {" : "{");
        json_place(d, out, item->span);
        buf_printf(out, ",\"severity\":\"%s\",\"message\":",
                   item->kind == DIAG_error ? "error" : "warning");
        buf_json_string(out, item->text);
        buf_puts(out, ",\"notes\":[");
        for (int j = 0; j < item->note.count; j++) {
            const DiagNote *note = &item->note.at[j];
            buf_puts(out, j ? ",{" : "{");
            if (note->has_span) {
                json_place(d, out, note->span);
                buf_puts(out, ",");
            }
            buf_puts(out, "\"message\":");
            buf_json_string(out, note->text);
            buf_puts(out, "}");
        }
        buf_puts(out, "]}");
    }
    buf_puts(out, "]\n");
}

/* suggestions ---------------------------------------------------------------------------------- */

/* Edit distance with transpositions of neighbours; both at most CLOSEST_MAX_LEN long. */
static int edit_distance(const char *a, int na, const char *b, int nb) {
    int row[3][CLOSEST_MAX_LEN + 1];
    for (int j = 0; j <= nb; j++)
        row[0][j] = j;
    for (int i = 1; i <= na; i++) {
        int *now = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best)
                best = up[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                up2[j - 2] + 1 < best)
                best = up2[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[na % 3][nb];
}

const char *diag_closest(const char *name, const char *const *candidate, int count) {
    size_t len = strlen(name);
    if (!len || len > CLOSEST_MAX_LEN)
        return NULL;
    /* A third of the name may differ, at least one letter, and never all of it. */
    int limit = len < 3 ? 1 : (int)len / 3;
    const char *best = NULL;
    for (int i = 0; i < count; i++) {
        size_t n = strlen(candidate[i]);
        if (!n || n > CLOSEST_MAX_LEN)
            continue;
        int dist = edit_distance(name, (int)len, candidate[i], (int)n);
        if (dist <= limit && dist < (int)(len > n ? len : n)) {
            if (dist == 0)
                return candidate[i];
            limit = dist - 1;
            best = candidate[i];
        }
    }
    return best;
}
