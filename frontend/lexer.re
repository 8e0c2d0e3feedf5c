/* The lexer: bytes to tokens with spans.
 *
 * A statement ends with SEP, which stands for a newline or `;`. A newline does not count inside
 * parentheses or brackets, after an operator or comma, or on an empty line. A parenthesis that is
 * never closed must not swallow the rest of the file, so a newline before something that can only
 * begin a statement counts always. SEP is also put before `}` and the end of the file.
 */
#include "frontend/syntax.h"

#include "frontend/parser.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static Span span_of(const Parser *p, const char *lo, const char *hi) {
    return (Span){(uint32_t)(lo - p->begin), (uint32_t)(hi - p->begin)};
}

/* strtod reads the decimal point of the caller's locale. */
static double read_number(Parser *p, const char *lo, const char *hi) {
    char text[64];
    size_t len = (size_t)(hi - lo);
    if (len >= sizeof text) {
        diag_error(p->diag, span_of(p, lo, hi), "number too long");
        return 1;
    }
    memcpy(text, lo, len);
    text[len] = 0;
    char *point = strchr(text, '.');
    if (point)
        *point = localeconv()->decimal_point[0];
    double x = strtod(text, NULL);
    if (isinf(x)) {
        diag_error(p->diag, span_of(p, lo, hi), "number out of range");
        return 1;
    }
    return x;
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* Does the text begin with `word`, then `=` or, for keywords, anything but a letter? */
static bool begins_statement(const Parser *p, const char *s) {
    static const char *const keyword[] = {"variant", "dim", "const", "in",    "param",
                                          "let",     "out", "for",   "state", NULL};
    const char *end = s;
    while (end < p->limit && is_name_char(*end))
        end++;
    size_t len = (size_t)(end - s);
    if (!len)
        return s < p->limit && *s == '}';
    for (int i = 0; keyword[i]; i++)
        if (strlen(keyword[i]) == len && !memcmp(s, keyword[i], len))
            return true;
    while (end < p->limit && *end == ' ')
        end++;
    return p->limit - end >= 2 && end[0] == '=' && end[1] != '=';
}

/* Called after a newline inside parentheses. */
static bool must_end_line(const Parser *p) {
    const char *s = p->cursor;
    while (s < p->limit) {
        if (*s == ' ' || *s == '\t' || *s == '\r' || *s == '\n') {
            s++;
        } else if (*s == '#') {
            while (s < p->limit && *s != '\n')
                s++;
        } else {
            break;
        }
    }
    return begins_statement(p, s);
}

/* May a line end after this token? */
static bool ends_line(int token) {
    switch (token) {
    case TOK_IDENT: case TOK_NUMBER: case ')': case ']': case '}': case '\'': case '{':
    case TOK_DIM: case TOK_CONST: case TOK_IN: case TOK_PARAM: case TOK_LET: case TOK_STATE:
    case TOK_OUT: case TOK_FOR: case TOK_VARIANT:
        return true;
    default:
        return false;
    }
}

static int token(Parser *p, int t, const char *lo, Span *span) {
    *span = span_of(p, lo, p->cursor);
    p->last = t;
    return t;
}

static int separator(Parser *p, const char *lo, Span *span) {
    p->nest = 0;
    return token(p, TOK_SEP, lo, span);
}

static int open_nest(Parser *p, int t, const char *lo, Span *span) {
    if (++p->nest > NEST_MAX && !p->too_deep) {
        p->too_deep = true;
        diag_error(p->diag, span_of(p, lo, p->cursor), "parentheses nest more than %d deep",
                   NEST_MAX);
    }
    return token(p, t, lo, span);
}

static int close_nest(Parser *p, int t, const char *lo, Span *span) {
    if (p->nest > 0)
        p->nest--;
    return token(p, t, lo, span);
}

static void comment(Parser *p, const char *lo) {
    const char *hi = p->cursor;
    while (hi > lo && (hi[-1] == ' ' || hi[-1] == '\t' || hi[-1] == '\r'))
        hi--;
    VEC_PUSH(p->file->arena, &p->file->comment, span_of(p, lo, hi));
}

static bool is_stray(char c) {
    return (c & 0x80) || (c && strchr("!$%&?\\|~`\"", c));
}

/* Bytes that are no part of the language: one message for the whole run. */
static void stray(Parser *p, const char *lo) {
    int shown = (int)(p->cursor - lo);
    for (int i = 0; i < shown; i++)
        if (lo[i] == 0)
            shown = 0;
    if (shown > 0 && shown <= 16)
        diag_error(p->diag, span_of(p, lo, p->cursor), "'%.*s' is not part of the language", shown,
                   lo);
    else
        diag_error(p->diag, span_of(p, lo, p->cursor), "these bytes are not part of the language");
}

/* A spelling of other languages: say ours and go on with it. */
static void instead(Parser *p, const char *lo, const char *ours) {
    diag_error(p->diag, span_of(p, lo, p->cursor), "write '%s'", ours);
}

int spec_lex(Parser *p, SPEC_YYSTYPE *value, Span *span) {
    const char *lo, *marker;
    if (p->too_deep || p->diag->errors > 10 * DIAG_LIMIT) {
        lo = p->cursor = p->limit;
        return token(p, TOK_END, lo, span);
    }
again:
    lo = p->cursor;
    /*!re2c
        re2c:define:YYCTYPE = "unsigned char";
        re2c:define:YYCURSOR = p->cursor;
        re2c:define:YYMARKER = marker;
        re2c:yyfill:enable = 0;

        digit = [0-9];
        exponent = [eE] [+-]? digit+;
        number = (digit+ ("." digit+)? | "." digit+) exponent?;
        ident = [A-Za-z_] [A-Za-z0-9_]*;
        known = [\x00\t\n\r #A-Za-z0-9_.,;:=<>+*/^'(){}[\]@-];

        [ \t\r]+        { goto again; }
        "#" [^\n\x00]*  { comment(p, lo); goto again; }
        "\n"            {
            bool counts = p->nest ? must_end_line(p) : ends_line(p->last);
            if (!counts)
                goto again;
            return separator(p, lo, span);
        }
        ";"             { return separator(p, lo, span); }

        "variant"       { return token(p, TOK_VARIANT, lo, span); }
        "dim"           { return token(p, TOK_DIM, lo, span); }
        "const"         { return token(p, TOK_CONST, lo, span); }
        "in"            { return token(p, TOK_IN, lo, span); }
        "param"         { return token(p, TOK_PARAM, lo, span); }
        "let"           { return token(p, TOK_LET, lo, span); }
        "state"         { return token(p, TOK_STATE, lo, span); }
        "out"           { return token(p, TOK_OUT, lo, span); }
        "for"           { return token(p, TOK_FOR, lo, span); }
        ident           {
            value->TOK_IDENT = intern(p->file->names, lo, (size_t)(p->cursor - lo));
            return token(p, TOK_IDENT, lo, span);
        }
        number          {
            value->TOK_NUMBER = read_number(p, lo, p->cursor);
            return token(p, TOK_NUMBER, lo, span);
        }
        number [A-Za-z_] [A-Za-z0-9_]* {
            diag_error(p->diag, span_of(p, lo, p->cursor), "a name cannot begin with a digit");
            value->TOK_NUMBER = 1;
            return token(p, TOK_NUMBER, lo, span);
        }

        ".*"            { return token(p, TOK_EMUL, lo, span); }
        "./"            { return token(p, TOK_EDIV, lo, span); }
        ".^"            { return token(p, TOK_EPOW, lo, span); }
        "<="            { return token(p, TOK_LE, lo, span); }
        ">="            { return token(p, TOK_GE, lo, span); }
        [+*/]"="        { return token(p, TOK_OPEQ, lo, span); }
        "-="            { return token(p, TOK_OPEQ, lo, span); }
        "**"            { instead(p, lo, "^"); return token(p, '^', lo, span); }
        "=="            { instead(p, lo, "="); return token(p, '=', lo, span); }
        "@"             { instead(p, lo, "*"); return token(p, '*', lo, span); }
        "//" [^\n\x00]* {
            diag_error(p->diag, span_of(p, lo, lo + 2), "a comment begins with '#'");
            goto again;
        }
        "(" | "["       { return open_nest(p, *lo, lo, span); }
        ")" | "]"       { return close_nest(p, *lo, lo, span); }
        "{"             {
            p->nest = 0;
            p->braces++;
            return token(p, '{', lo, span);
        }
        "}"             {
            if (p->last != TOK_SEP) {
                p->cursor = lo;
                return separator(p, lo, span);
            }
            if (p->braces > p->open.count) { /* of a block whose header was not understood */
                p->braces--;
                goto again;
            }
            p->braces -= p->braces > 0;
            return token(p, '}', lo, span);
        }
        [-+*/^'=,<>]    { return token(p, *lo, lo, span); }
        "\x00"          {
            if (lo < p->limit) {
                stray(p, lo);
                goto again;
            }
            p->cursor = lo;
            if (p->last != TOK_SEP)
                return separator(p, lo, span);
            return token(p, TOK_END, lo, span);
        }
        [.:]            { stray(p, lo); goto again; }
        [^] \ known     {
            while (p->cursor < p->limit && is_stray(*p->cursor))
                p->cursor++;
            stray(p, lo);
            goto again;
        }
    */
}
