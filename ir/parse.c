/* Text -> kernel: the .gir language, which print.c writes.
 *
 *   file   = "kernel" name level "{" newline { line newline } "}"
 *   line   = "axis" name "=" size { "," name "=" size }         the first five are C, R, U, K, V
 *          | ("in" | "param" | "out" | "out" "param") name ":" elem shape [range]
 *          | "state" name
 *          | "facts" { word | word "=" word }
 *          | [role] ["keep"] [elem] [%value "="] op fields [":" shape]
 *   range  = "<=" number | ">=" number | "in" "[" number "," number "]"
 *   shape  = "[" [axis { "," axis }] "]"                        axis = name | "@" number
 *   fields = "const" number | "in" port ["row" number] | "out" port ["row" number] "=" %value
 *          | op operands ["over" axis | "onto" axis ["fill" number] | "from" axis ["to" axis]]
 *            ["place" number] ["log"] ["past" number]           operand = %value | "none"
 *
 * Values may have any name after %; a value without a shape gets the inferred one. Comments run from
 * `;` or `#` to the end of the line. After an error the rest of the line is skipped. Whether the
 * kernel is legal is the verifier's question. */
#include "ir/ir.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef enum { TOK_end, TOK_newline, TOK_name, TOK_value, TOK_number, TOK_string, TOK_punct } Tok;

enum { SIZE_MAX_AXIS = 1 << 24 };

typedef struct Parser {
    Kernel *k;
    Diag *d;
    const Source *src;
    uint32_t pos;
    Tok tok;
    Span span;                 /* of the token */
    char punct;                /* TOK_punct; '<' and '>' stand for <= and >= */
    const char *name;          /* TOK_name, TOK_value (without %): interned */
    VEC(const char *) value;   /* name of each value; NULL for operations without */
} Parser;

/* tokens --------------------------------------------------------------------------------------- */

static bool is_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static uint32_t skip_blank(const char *s, uint32_t at) {
    while (s[at] == ' ' || s[at] == '\t' || s[at] == '\r')
        at++;
    if (s[at] == ';' || s[at] == '#')
        while (s[at] && s[at] != '\n')
            at++;
    return at;
}

/* A number's end: digits, point, exponent with its sign, or inf, nan. */
static uint32_t number_end(const char *s, uint32_t at) {
    at += s[at] == '-';
    while (is_name(s[at]) || s[at] == '.' ||
           ((s[at] == '-' || s[at] == '+') && (s[at - 1] == 'e' || s[at - 1] == 'E')))
        at++;
    return at;
}

static uint32_t string_end(const char *s, uint32_t at) {
    for (at++; s[at] && s[at] != '\n' && s[at] != '"'; at++)
        if (s[at] == '\\' && s[at + 1] && s[at + 1] != '\n')
            at++;
    return at + (s[at] == '"');
}

static void next_token(Parser *p) {
    const char *s = p->src->text;
    uint32_t lo = skip_blank(s, p->pos), hi = lo + 1;
    char c = s[lo];
    if (c == 0) {
        p->tok = TOK_end;
        hi = lo;
    } else if (c == '\n') {
        p->tok = TOK_newline;
    } else if (is_digit(c) || c == '-' || c == '.') {
        p->tok = TOK_number;
        hi = number_end(s, lo);
    } else if (is_name(c) || (c == '%' && is_name(s[hi]))) {
        p->tok = c == '%' ? TOK_value : TOK_name;
        while (is_name(s[hi]))
            hi++;
        uint32_t from = lo + (c == '%');
        p->name = intern(p->k->names, s + from, hi - from);
    } else if (c == '"') {
        p->tok = TOK_string;
        hi = string_end(s, lo);
    } else {
        p->tok = TOK_punct;
        p->punct = c;
        hi += (c == '<' || c == '>') && s[hi] == '=';
    }
    p->span = (Span){lo, hi};
    p->pos = hi;
}

static bool fail(Parser *p, const char *what) {
    diag_error(p->d, p->span, "expected %s", what);
    return false;
}

static bool take(Parser *p, char punct) {
    if (p->tok != TOK_punct || p->punct != punct)
        return false;
    next_token(p);
    return true;
}

static bool expect(Parser *p, char punct) {
    return take(p, punct) || fail(p, (char[]){'\'', punct, '\'', 0});
}

static bool at_word(const Parser *p, const char *word) {
    return p->tok == TOK_name && strcmp(p->name, word) == 0;
}

static bool take_word(Parser *p, const char *word) {
    if (!at_word(p, word))
        return false;
    next_token(p);
    return true;
}

static bool expect_word(Parser *p, const char *word) {
    return take_word(p, word) || fail(p, word);
}

static bool name(Parser *p, const char *what, const char **out) {
    if (p->tok != TOK_name)
        return fail(p, what);
    *out = p->name;
    next_token(p);
    return true;
}

/* strtod in the C locale whatever the caller's is; decimal only. */
static bool number(Parser *p, double *out) {
    const char *s = p->src->text + p->span.lo, *point = localeconv()->decimal_point;
    size_t n = p->span.hi - p->span.lo;
    if (p->tok == TOK_name ? !at_word(p, "inf") && !at_word(p, "nan") : p->tok != TOK_number)
        return fail(p, "a number");
    if (memchr(s, 'x', n) || memchr(s, 'X', n))
        return fail(p, "a decimal number");
    Buf text;
    buf_init(&text, p->k->arena);
    for (size_t i = 0; i < n; i++)
        if (s[i] == '.')
            buf_puts(&text, point);
        else
            buf_put(&text, s + i, 1);
    char *end;
    *out = strtod(text.text, &end);
    if (end == text.text || *end)
        return fail(p, "a number");
    next_token(p);
    return true;
}

static bool integer(Parser *p, int max, int *out) {
    Span span = p->span;
    double x;
    if (!number(p, &x))
        return false;
    if (!(x >= 0 && x <= max && x == floor(x))) {
        diag_error(p->d, span, "expected a whole number from 0 to %d", max);
        return false;
    }
    *out = (int)x;
    return true;
}

/* One character of a quoted string and where the next begins; -1 when the escape is unknown. */
static int unescape(const char *s, uint32_t *at) {
    char c = s[(*at)++];
    if (c != '\\')
        return (unsigned char)c;
    c = s[(*at)++];
    switch (c) {
    case 'n': return '\n';
    case 't': return '\t';
    case 'r': return '\r';
    case '"': case '\\': return c;
    case 'u': {
        int x = 0;
        for (int i = 0; i < 4; i++) {
            c = s[(*at)++];
            if (!is_digit(c) && !(c >= 'a' && c <= 'f'))
                return -1;
            x = 16 * x + (is_digit(c) ? c - '0' : c - 'a' + 10);
        }
        return x > 0 && x < 0x80 ? x : -1;
    }
    default: return -1;
    }
}

static bool string(Parser *p, const char **out) {
    const char *s = p->src->text;
    uint32_t at = p->span.lo + 1, end = p->span.hi - 1;
    if (p->tok != TOK_string || end < at || s[end] != '"')
        return fail(p, "a quoted text");
    Buf text;
    buf_init(&text, p->k->arena);
    buf_put(&text, "", 0);
    while (at < end) {
        int c = unescape(s, &at);
        if (c < 0)
            return fail(p, "a quoted text with the escapes of JSON");
        buf_put(&text, &(char){(char)c}, 1);
    }
    if (at != end) /* the last quote was an escaped one */
        return fail(p, "a quoted text");
    *out = text.text;
    next_token(p);
    return true;
}

/* parts of lines ------------------------------------------------------------------------------- */

/* Which of `count` names stands here; -1 without a message. */
static int one_of(Parser *p, const char *(*name_of)(int), int count) {
    for (int i = 0; i < count; i++)
        if (take_word(p, name_of(i)))
            return i;
    return -1;
}
static const char *level_of(int i) { return level_name((Level)i); }
static const char *elem_of(int i) { return elem_name((Elem)i); }
static const char *decay_of(int i) { return decay_name((DecayClass)i); }

static bool axis(Parser *p, int *out) {
    if (take(p, '@'))
        return integer(p, p->k->axis.count - 1, out);
    if (p->tok != TOK_name)
        return fail(p, "an axis");
    for (int i = 0; i < p->k->axis.count; i++)
        if (p->k->axis.at[i].name == p->name) {
            *out = i;
            next_token(p);
            return true;
        }
    diag_error(p->d, p->span, "unknown axis '%s'", p->name);
    return false;
}

/* Axes in the order written: ports keep the order of memory. */
static bool shape(Parser *p, Shape *out) {
    *out = shape_scalar();
    if (!expect(p, '['))
        return false;
    if (take(p, ']'))
        return true;
    do {
        int a;
        Span span = p->span;
        if (!axis(p, &a))
            return false;
        if (out->rank == 3 || shape_has(*out, a)) {
            diag_error(p->d, span, "a shape has at most 3 axes, each once");
            return false;
        }
        out->axis[out->rank++] = (int8_t)a;
    } while (take(p, ','));
    return expect(p, ']');
}

static bool range(Parser *p, Port *port) {
    if (take(p, '<'))
        return number(p, &port->hi);
    if (take(p, '>'))
        return number(p, &port->lo);
    if (take_word(p, "in"))
        return expect(p, '[') && number(p, &port->lo) && expect(p, ',') && number(p, &port->hi) &&
               expect(p, ']');
    return true;
}

static bool port_line(Parser *p, bool output, bool is_param) {
    Port port = {.is_param = is_param, .lo = -INFINITY, .hi = INFINITY};
    Span span = p->span;
    if (!name(p, "a port's name", &port.name))
        return false;
    if (kernel_find_port(p->k, port.name, output) >= 0) {
        diag_error(p->d, span, "'%s' is declared twice", port.name);
        return false;
    }
    if (!expect(p, ':'))
        return false;
    int e = one_of(p, elem_of, ELEM_f64 + 1);
    if (e < 0)
        return fail(p, "an element type: f32, bf16, f16, f64");
    port.elem = (Elem)e;
    if (!shape(p, &port.shape) || !range(p, &port))
        return false;
    if (output)
        VEC_PUSH(p->k->arena, &p->k->out, port);
    else
        VEC_PUSH(p->k->arena, &p->k->in, port);
    return true;
}

static bool axis_line(Parser *p) {
    int n = 0;
    do {
        Axis a;
        Span span = p->span;
        if (!name(p, "an axis", &a.name) || !expect(p, '=') || !integer(p, SIZE_MAX_AXIS, &a.size))
            return false;
        if (n == INT8_MAX) {
            diag_error(p->d, span, "too many axes");
            return false;
        }
        if (n < p->k->axis.count)
            p->k->axis.at[n] = a;
        else
            VEC_PUSH(p->k->arena, &p->k->axis, a);
        n++;
    } while (take(p, ','));
    return true;
}

static bool facts_line(Parser *p) {
    Facts *f = &p->k->facts;
    f->known = true;
    while (p->tok == TOK_name) {
        if (take_word(p, "constant")) {
            f->decay_constant = true;
        } else if (take_word(p, "erases")) {
            f->erases = true;
        } else if (take_word(p, "early_read")) {
            f->reads_before_decay = true;
        } else if (take_word(p, "chunkable")) {
            f->chunkable = true;
        } else if (take_word(p, "slots")) {
            if (!expect(p, '=') || !integer(p, SIZE_MAX_AXIS, &f->slots))
                return false;
        } else if (take_word(p, "past")) {
            if (!expect(p, '=') || !integer(p, SIZE_MAX_AXIS, &f->past))
                return false;
        } else if (take_word(p, "why")) {
            if (!expect(p, '=') || !string(p, &f->why_not))
                return false;
        } else if (take_word(p, "decay")) {
            int c = expect(p, '=') ? one_of(p, decay_of, DECAY_mixed + 1) : -1;
            if (c < 0)
                return fail(p, "a decay class: none, scalar, key, value, mixed");
            f->decay = (DecayClass)c;
        } else {
            return fail(p, "a fact: decay, constant, erases, early_read, chunkable, slots, past, why");
        }
    }
    return true;
}

/* instructions --------------------------------------------------------------------------------- */

/* The value called `name`. A printed kernel calls value n `n`, so that is tried first. */
static int find_value(const Parser *p, const char *wanted) {
    long n = is_digit(wanted[0]) ? strtol(wanted, NULL, 10) : -1;
    if (n >= 0 && n < p->value.count && p->value.at[n] == wanted)
        return (int)n;
    for (int i = 0; i < p->value.count; i++)
        if (p->value.at[i] == wanted)
            return i;
    return -1;
}

static bool operands(Parser *p, Inst *in) {
    VEC(int) arg = {0};
    if (p->tok != TOK_value && !at_word(p, "none"))
        return true;
    do {
        int v = -1;
        if (p->tok == TOK_value) {
            v = find_value(p, p->name);
            if (v < 0) {
                diag_error(p->d, p->span, "no value %%%s before here", p->name);
                return false;
            }
        } else if (!at_word(p, "none")) {
            return fail(p, "an operand");
        }
        next_token(p);
        VEC_PUSH(p->k->arena, &arg, v);
    } while (take(p, ','));
    in->arg = arg.at;
    in->nargs = arg.count;
    return true;
}

static bool port_name(Parser *p, Inst *in, bool output) {
    if (p->tok != TOK_name)
        return fail(p, output ? "an output" : "an input");
    in->index = kernel_find_port(p->k, p->name, output);
    if (in->index < 0) {
        diag_error(p->d, p->span, "unknown %s '%s'", output ? "output" : "input", p->name);
        return false;
    }
    next_token(p);
    return true;
}

static bool place(Parser *p, Inst *in) {
    return !take_word(p, "place") || integer(p, SIZE_MAX_AXIS, &in->place);
}

static bool fields(Parser *p, Inst *in) {
    switch (in->op) {
    case OP_const: return number(p, &in->num);
    case OP_in:
        in->row = -1;
        return port_name(p, in, false) && (!take_word(p, "row") || integer(p, SIZE_MAX_AXIS, &in->row));
    case OP_out:
        return port_name(p, in, true) &&
               (!take_word(p, "row") || integer(p, SIZE_MAX_AXIS, &in->row)) && expect(p, '=') &&
               operands(p, in);
    case OP_sum: case OP_turn: case OP_contract:
        return operands(p, in) && expect_word(p, "over") && axis(p, &in->axis);
    case OP_weave:
        return operands(p, in) && expect_word(p, "onto") && axis(p, &in->axis) &&
               (!take_word(p, "fill") || number(p, &in->num));
    case OP_rename:
        return operands(p, in) && expect_word(p, "from") && axis(p, &in->index) &&
               expect_word(p, "to") && axis(p, &in->axis);
    case OP_slot:
        return operands(p, in) && expect_word(p, "from") && axis(p, &in->axis) &&
               expect_word(p, "place") && integer(p, SIZE_MAX_AXIS, &in->place);
    case OP_scores: case OP_carry: case OP_scores_x: case OP_scores_y: case OP_decay_a:
        return operands(p, in) && place(p, in);
    case OP_reread: case OP_coread:
        return operands(p, in) && expect_word(p, "over") && axis(p, &in->axis) && place(p, in);
    case OP_scores_a: case OP_carry_a: case OP_tail_a: case OP_total_a:
        if (!operands(p, in) || !place(p, in))
            return false;
        in->index = take_word(p, "log");
        return true;
    case OP_prev: case OP_cumsum:
        return operands(p, in) && (!take_word(p, "past") || integer(p, SIZE_MAX_AXIS, &in->index));
    default: return operands(p, in);
    }
}

static void prefix(Parser *p, Inst *in) {
    in->role = ROLE_none;
    for (int r = ROLE_factor; r <= ROLE_grad && !in->role; r++)
        if (take_word(p, role_name((Role)r)))
            in->role = (Role)r;
    in->keep = take_word(p, "keep");
    int e = one_of(p, elem_of, ELEM_f64 + 1);
    in->elem = e < 0 ? ELEM_f32 : (Elem)e;
}

static bool op_name(Parser *p, Op *op) {
    for (int i = 0; i < OP_count; i++)
        if (take_word(p, op_info[i].name)) {
            *op = (Op)i;
            return true;
        }
    return fail(p, "an operation");
}

static bool inst_line(Parser *p) {
    Inst in = {0};
    const char *result = NULL;
    prefix(p, &in);
    if (p->tok == TOK_value) {
        result = p->name;
        if (find_value(p, result) >= 0) {
            diag_error(p->d, p->span, "%%%s is there already", result);
            return false;
        }
        next_token(p);
        if (!expect(p, '='))
            return false;
    }
    Span span = p->span;
    if (!op_name(p, &in.op))
        return false;
    if (op_gives_value(in.op) != (result != NULL)) {
        diag_error(p->d, span, result ? "%s gives no value" : "the value of %s needs a name",
                   op_info[in.op].name);
        return false;
    }
    if (!fields(p, &in))
        return false;
    if (result && take(p, ':')) {
        if (!shape(p, &in.shape))
            return false;
    } else if (result) {
        const char *why = inst_shape(p->k, &in, &in.shape);
        if (why) {
            diag_error(p->d, span, "%s: %s", op_info[in.op].name, why);
            return false;
        }
    }
    emit_copy(p->k, &in, in.arg);
    VEC_PUSH(p->k->arena, &p->value, result);
    return true;
}

/* lines ---------------------------------------------------------------------------------------- */

/* `in` begins a port's declaration at the start of a line: an operation there has a result. */
static bool line(Parser *p) {
    if (take_word(p, "axis"))
        return axis_line(p);
    if (take_word(p, "in"))
        return port_line(p, false, false);
    if (take_word(p, "param"))
        return port_line(p, false, true);
    if (take_word(p, "state"))
        return name(p, "the state's name", &p->k->state_name);
    if (take_word(p, "facts"))
        return facts_line(p);
    if (at_word(p, "out")) {
        /* `out [param] o : ...` declares, `out o [row n] = %v` is an operation. */
        Parser ahead = *p;
        next_token(&ahead);
        bool is_param = at_word(&ahead, "param");
        next_token(&ahead);
        is_param = is_param && ahead.tok == TOK_name && !at_word(&ahead, "row");
        if (is_param || (ahead.tok == TOK_punct && ahead.punct == ':')) {
            next_token(p);
            if (is_param)
                next_token(p);
            return port_line(p, true, is_param);
        }
    }
    return inst_line(p);
}

static void skip_line(Parser *p) {
    while (p->tok != TOK_newline && p->tok != TOK_end)
        next_token(p);
}

static void skip_newlines(Parser *p) {
    while (p->tok == TOK_newline)
        next_token(p);
}

static bool header(Parser *p) {
    skip_newlines(p);
    if (!expect_word(p, "kernel") || !name(p, "the kernel's name", &p->k->name))
        return false;
    int level = one_of(p, level_of, LEVEL_tile + 1);
    if (level < 0)
        return fail(p, "a level: recurrence, chunk, tile");
    p->k->level = (Level)level;
    return expect(p, '{');
}

Kernel *kernel_parse(Arena *arena, Interner *names, const Source *text, Diag *d) {
    int before = d->errors;
    Parser p = {.k = kernel_new(arena, names, ""), .d = d, .src = text};
    next_token(&p);
    if (!header(&p))
        return NULL;
    for (skip_newlines(&p); !take(&p, '}'); skip_newlines(&p)) {
        if (p.tok == TOK_end) {
            fail(&p, "'}'");
            break;
        }
        if (line(&p) && p.tok != TOK_newline && !(p.tok == TOK_punct && p.punct == '}'))
            fail(&p, "the end of the line");
        if (p.tok != TOK_punct || p.punct != '}')
            skip_line(&p);
    }
    skip_newlines(&p);
    if (p.tok != TOK_end || p.span.lo != text->len)
        fail(&p, "the end of the text");
    return d->errors == before ? p.k : NULL;
}
