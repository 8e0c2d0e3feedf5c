/* Text that grows in an arena. */
#include "base/base.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(Buf *b, Arena *arena) { *b = (Buf){.arena = arena}; }

/* Room for n more bytes and the NUL. */
static void reserve(Buf *b, size_t n) {
    if (b->cap - b->len > n)
        return;
    size_t cap = b->cap ? b->cap : 64;
    while (cap - b->len <= n)
        cap *= 2;
    b->text = arena_grow(b->arena, b->text, b->cap ? b->len + 1 : 0, cap);
    b->cap = cap;
}

void buf_put(Buf *b, const char *s, size_t n) {
    reserve(b, n);
    if (n)
        memcpy(b->text + b->len, s, n);
    b->len += n;
    b->text[b->len] = 0;
}

void buf_puts(Buf *b, const char *s) { buf_put(b, s, strlen(s)); }

void buf_vprintf(Buf *b, const char *fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    CHECK(n >= 0);
    reserve(b, (size_t)n);
    vsnprintf(b->text + b->len, (size_t)n + 1, fmt, again);
    va_end(again);
    b->len += (size_t)n;
}

void buf_printf(Buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    buf_vprintf(b, fmt, ap);
    va_end(ap);
}

void buf_json_string(Buf *b, const char *s) {
    buf_puts(b, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        switch (c) {
        case '"': buf_puts(b, "\\\""); break;
        case '\\': buf_puts(b, "\\\\"); break;
        case '\n': buf_puts(b, "\\n"); break;
        case '\t': buf_puts(b, "\\t"); break;
        case '\r': buf_puts(b, "\\r"); break;
        default:
            if (c < 0x20)
                buf_printf(b, "\\u%04x", c);
            else
                buf_put(b, s, 1);
        }
    }
    buf_puts(b, "\"");
}

void buf_number(Buf *b, double x) {
    char text[40];
    if (isnan(x)) {
        buf_puts(b, "nan");
        return;
    }
    if (isinf(x)) {
        buf_puts(b, x < 0 ? "-inf" : "inf");
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    /* Integers in full: 100 rather than 1e+02. */
    if (strchr(text, 'e') && x == floor(x) && fabs(x) < 1e15)
        snprintf(text, sizeof text, "%.0f", x);
    /* A caller's locale may write the decimal point otherwise; our texts never do. */
    const char *point = localeconv()->decimal_point;
    char *at = *point && strcmp(point, ".") ? strstr(text, point) : NULL;
    if (at) {
        *at = '.';
        memmove(at + 1, at + strlen(point), strlen(at + strlen(point)) + 1);
    }
    buf_puts(b, text);
}
