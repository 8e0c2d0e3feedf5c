/* explain: what the compiler makes of a spec, for people (text, markdown) and programs (JSON).
 *
 * A report is gathered once and written three ways:
 *     token    the normal form, one line an operation, in the spec's own names
 *     where    the definitions of the names used there
 *     facts    decay, reads, erase, gates, rows, ranges, what collapses, whether a chunk form exists
 *     system   the matrices of the chunk system (system.c), its FLOPs, bytes and roofline
 *     backward what the gradient keeps and makes again, and its cost */
#include "passes/passes.h"

#include <math.h>
#include <string.h>

typedef struct Pair { const char *key, *text; } Pair;
typedef struct Report {
    Arena *arena;
    const Kernel *k;
    VEC(const char *) token;
    VEC(Pair) where;
    VEC(Pair) fact;
    VEC(const char *) tied;
    VEC(const char *) collapse;
    const char *reason_at;   /* file:line:column, the line and carets; NULL when chunkable */
    int line, column;
    bool has_system;
    SystemTable system;
    VEC(Pair) backward;
    Cost backward_cost;
    const Footprints *need;
} Report;

static const char *format(Report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static const char *format(Report *r, const char *fmt, ...) {
    Buf b;
    va_list ap;
    buf_init(&b, r->arena);
    va_start(ap, fmt);
    buf_vprintf(&b, fmt, ap);
    va_end(ap);
    return b.text;
}

static void add_fact(Report *r, const char *key, const char *text) {
    VEC_PUSH(r->arena, &r->fact, ((Pair){key, text}));
}

static const char *expression(Report *r, Names *n, int v, bool as_factor) {
    Buf b;
    buf_init(&b, r->arena);
    names_print(n, v, as_factor, &b);
    return b.text;
}

/* the token ------------------------------------------------------------------------------------ */

static const char *state_name(const Kernel *k) {
    return k->state_name ? k->state_name : "S";
}

static const char *update_text(Report *r, Names *n, const Inst *i) {
    const char *S = state_name(r->k), *p = expression(r, n, i->arg[0], true);
    const Inst *z = inst_at(r->k, i->arg[1]);
    bool minus = z->op == OP_neg && !n->name[i->arg[1]];
    return format(r, "%s = %s %c %s * %s'", S, S, minus ? '-' : '+', p,
                  expression(r, n, minus ? z->arg[0] : i->arg[1], true));
}

static const char *decay_text(Report *r, Names *n, const Inst *i) {
    const char *S = state_name(r->k);
    Shape s = inst_at(r->k, i->arg[0])->shape;
    if (shape_has(s, AXIS_K))
        return format(r, "%s = diag(%s) * %s", S, expression(r, n, i->arg[0], false), S);
    if (shape_has(s, AXIS_V))
        return format(r, "%s = %s * diag(%s)", S, S, expression(r, n, i->arg[0], false));
    return format(r, "%s = %s * %s", S, expression(r, n, i->arg[0], true), S);
}

/* A read gets a line of its own when an update uses it, or more than one value does, or the state
 * changes after it; else it is written out where it is used. */
static bool read_is_inline(const Kernel *k, int read) {
    int uses = 0;
    for (int v = read + 1; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_decay || i->op == OP_update)
            return false;
        for (int j = 0; j < i->nargs; j++)
            uses += i->arg[j] == read;
    }
    return uses == 1;
}

static void describe_token(Report *r, Names *n) {
    int reads = 0;
    for (int v = 0; v < r->k->inst.count; v++) {
        const Inst *i = inst_at(r->k, v);
        const char *line = NULL;
        if (i->op == OP_read && !read_is_inline(r->k, v)) {
            reads++;
            if (!n->name[v])
                n->name[v] = format(r, "r%d", reads);
            Buf b;
            buf_init(&b, r->arena);
            names_define(n, v, &b);
            line = format(r, "%s = %s", n->name[v], b.text);
        } else if (i->op == OP_read) {
            n->name[v] = NULL;
        } else if (i->op == OP_decay) {
            line = decay_text(r, n, i);
        } else if (i->op == OP_update) {
            line = update_text(r, n, i);
        } else if (i->op == OP_out) {
            line = format(r, "%s = %s", r->k->out.at[i->index].name,
                          expression(r, n, i->arg[0], false));
        }
        if (line)
            VEC_PUSH(r->arena, &r->token, line);
    }
}

/* Definitions of the names printed so far, and of those that they use. */
static void describe_names(Report *r, Names *n) {
    const char **text = NEW_ARRAY(r->arena, const char *, r->k->inst.count);
    for (int v = r->k->inst.count - 1; v >= 0; v--) {
        if (!n->used[v] || inst_at(r->k, v)->op == OP_read)
            continue;
        Buf b;
        buf_init(&b, r->arena);
        names_define(n, v, &b);
        text[v] = b.text;
    }
    for (int v = 0; v < r->k->inst.count; v++)
        if (text[v])
            VEC_PUSH(r->arena, &r->where, ((Pair){n->name[v], text[v]}));
}

/* facts ---------------------------------------------------------------------------------------- */

static const char *number(Report *r, double x) {
    Buf b;
    buf_init(&b, r->arena);
    if (isinf(x))
        buf_puts(&b, x < 0 ? "-inf" : "inf");
    else
        buf_printf(&b, "%.4g", x);
    return b.text;
}

/* Bounds of all decay factors of a token, one by one. */
static Range decay_range(const Kernel *k) {
    Range all = {INFINITY, -INFINITY};
    for (int v = 0; v < k->inst.count; v++) {
        if (inst_at(k, v)->op != OP_decay)
            continue;
        Range one = value_range(k, inst_at(k, v)->arg[0]);
        all.lo = fmin(all.lo, one.lo);
        all.hi = fmax(all.hi, one.hi);
    }
    return all;
}

static void describe_decay(Report *r) {
    static const char *const text[] = {
        [DECAY_none] = "none", [DECAY_scalar] = "scalar: one factor a token",
        [DECAY_key] = "key side: a factor for every key channel",
        [DECAY_value] = "value side: a factor for every value channel",
        [DECAY_mixed] = "key side and value side",
    };
    const Facts *f = &r->k->facts;
    add_fact(r, "decay", format(r, "%s%s", text[f->decay],
                                f->decay_constant ? ", the same for every token" : ""));
    if (f->decay == DECAY_none)
        return;
    Range d = decay_range(r->k);
    /* A block of 16 tokens scaled from one anchor needs the inverse of 15 factors in f32. */
    double bits = d.lo > 0 ? -15 * log2(d.lo) : INFINITY;
    const char *within = format(r, "factors within [%s, %s]", number(r, d.lo), number(r, d.hi));
    if (d.hi > 1)
        add_fact(r, "range", format(r, "%s: growth is not ruled out by the declared ranges", within));
    else if (bits <= 126 && f->decay == DECAY_key)
        add_fact(r, "range", format(r, "%s: 15 in a row stay above 2^-%.0f, so f32 allows blocks of "
                                    "16 tokens scaled from one anchor", within, ceil(bits)));
    else
        add_fact(r, "range", format(r, "%s: products of factors are exact, resets to 0 included",
                                    within));
}

/* Per input: whether any of these values depends on it. */
static void mark_inputs(const Kernel *k, int v, bool *input) {
    bool *mark = NEW_ARRAY(k->arena, bool, k->inst.count);
    value_mark(k, v, mark);
    for (int u = 0; u <= v; u++)
        if (mark[u] && inst_at(k, u)->op == OP_in)
            input[inst_at(k, u)->index] = true;
}

static void describe_erase(Report *r, Names *n) {
    const Kernel *k = r->k;
    Token t;
    if (!k->facts.erases) {
        add_fact(r, "erase", "none: no update reads the state");
        return;
    }
    add_fact(r, "reads", k->facts.reads_before_decay
             ? "an update reads the state before a decay of its token" : "after the decay");
    if (!k->facts.chunkable || !token_read(k, &t))
        return;
    bool *erase = NEW_ARRAY(r->arena, bool, k->in.count), *key = NEW_ARRAY(r->arena, bool, k->in.count);
    bool *write = NEW_ARRAY(r->arena, bool, k->in.count);
    Buf rows;
    buf_init(&rows, r->arena);
    for (int e = 0; e < t.event.count; e++) {
        const TokenEvent *u = &t.event.at[e];
        if (u->op != OP_update)
            continue;
        mark_inputs(k, u->p, key);
        if (u->c >= 0)
            mark_inputs(k, u->c, write);
        if (u->read < 0)
            continue;
        int x = inst_at(k, u->read)->arg[0];
        mark_inputs(k, x, erase);
        buf_printf(&rows, "%s%c %s * %s' * %s", rows.len ? ", " : "", u->minus ? '-' : '+',
                   expression(r, n, u->p, true), expression(r, n, x, true), state_name(k));
    }
    add_fact(r, "erase", rows.text);
    Buf own;
    buf_init(&own, r->arena);
    for (int i = 0; i < k->in.count; i++) {
        if (!erase[i] || key[i])
            continue;
        if (write[i])
            VEC_PUSH(r->arena, &r->tied, k->in.at[i].name);
        else
            buf_printf(&own, "%s%s", own.len ? ", " : "", k->in.at[i].name);
    }
    for (int i = 0; i < r->tied.count; i++)
        add_fact(r, "gates", format(r, "%s is tied: the same input in erase and write",
                                    r->tied.at[i]));
    if (own.len)
        add_fact(r, "gates", format(r, "%s in the erase alone", own.text));
}

static void describe_collapse(Report *r) {
    const Facts *f = &r->k->facts;
    if (!f->erases)
        VEC_PUSH(r->arena, &r->collapse, "no erase: T = 0, A = I, no solve, X = Z");
    if (f->decay == DECAY_none)
        VEC_PUSH(r->arena, &r->collapse, "no decay: no carried factors, D = 1");
    if (f->decay == DECAY_scalar)
        VEC_PUSH(r->arena, &r->collapse, "scalar decay: a C x C matrix of factors, no work per channel");
    for (int i = 0; i < r->collapse.count; i++)
        add_fact(r, "collapses", r->collapse.at[i]);
}

/* file:line:column, the line of the source, carets under the term. */
static void locate_reason(Report *r) {
    const Kernel *k = r->k;
    Span w = k->facts.where;
    if (!k->source || w.hi <= w.lo)
        return;
    source_locate(k->source, w.lo, &r->line, &r->column);
    const char *line = k->source->text + k->source->line[r->line - 1];
    int len = (int)strcspn(line, "\r\n"), carets = (int)(w.hi - w.lo);
    if (carets > len - r->column + 1)
        carets = len - r->column + 1;
    Buf b;
    buf_init(&b, r->arena);
    buf_printf(&b, "%s:%d:%d\n%.*s\n", k->source->name, r->line, r->column, len, line);
    for (int i = 0; i < r->column - 1; i++)
        buf_puts(&b, line[i] == '\t' ? "\t" : " ");
    for (int i = 0; i < carets; i++)
        buf_puts(&b, "^");
    r->reason_at = b.text;
}

static void add_backward(Report *r, const char *key, const char *text) {
    VEC_PUSH(r->arena, &r->backward, ((Pair){key, text}));
}

static double a_token(const Footprint *need) {
    return need->chunk ? (double)need->bytes / need->chunk : 0;
}

static double saved_a_token(const Footprint *need) {
    return need->save_every ? (double)need->saved_bytes / need->save_every / need->chunk : 0;
}

static const char *bytes(Report *r, double x) {
    return x < 1000 ? number(r, x) : format(r, "%.0f", x);
}

/* Where only states are kept. */
static const char *states_text(Report *r, const Footprint *need) {
    const char *S = state_name(r->k);
    if (!need->any)
        return format(r, "no kernel: %s", need->why_not);
    if (!need->by_chunks)
        return format(r, "%s once in %d tokens: %s bytes (f32) a token and head%s%s", S, need->chunk,
                      bytes(r, a_token(need)), need->why_not ? "; not by chunks: " : "",
                      need->why_not ? need->why_not : "");
    return format(r, "%s%s at the start of every chunk: %lld bytes (f32) a chunk and head, %s a token", S,
                  r->k->facts.past ? " and the past" : "", (long long)need->bytes, bytes(r, a_token(need)));
}

static const char *ahead_text(Report *r, const Footprint *need) {
    return need->ahead > 0 ? format(r, "; values ahead of the chunks: %s a token", bytes(r, need->ahead))
                           : "";
}

static void describe_gpu(Report *r, const Footprint *need) {
    if (!need->by_chunks) {
        add_backward(r, "on a GPU", states_text(r, need));
        return;
    }
    const char *each = bytes(r, a_token(need));
    add_backward(r, "on a GPU",
                 format(r, "%lld bytes a chunk of %d tokens and head, %s a token, of some chunks at a time%s",
                        (long long)need->bytes, need->chunk, each, ahead_text(r, need)));
    add_backward(r, "may save",
                 format(r, "there %s once in %d chunks, %s bytes (f32) a token and head: then no state is "
                        "made twice", state_name(r->k), need->save_every, number(r, saved_a_token(need))));
    add_backward(r, "or all",
                 format(r, "that the GPU keeps of all chunks, %s bytes a token and head: then nothing is "
                        "made again", each));
}

/* The backward pass starts from inputs and upstream gradients alone, or from what is saved as well. */
static void describe_backward(Report *r, const Kernel *grad) {
    const Cost *c = &r->backward_cost;
    const char *S = state_name(r->k);
    Buf again;
    buf_init(&again, r->arena);
    for (int i = 0; i < r->system.row.count; i++) {
        const SystemRow *row = &r->system.row.at[i];
        if (kernel_find_port(r->k, row->name, true) < 0 && strcmp(row->name, "next"))
            buf_printf(&again, "%s%s", again.len ? ", " : "", row->name);
    }
    system_cost(grad, &r->backward_cost);
    add_backward(r, "keeps", "nothing of the forward pass: it starts from the inputs again");
    add_backward(r, "workspace", states_text(r, &r->need->cpu));
    describe_gpu(r, &r->need->gpu);
    add_backward(r, "recomputes", format(r, "forwards what the states need, backwards all: %s",
                                         again.text));
    add_backward(r, "cost",
                 format(r, "%.0f FLOP and %.0f bytes (bf16) a token and head: %.0f for the matrices and "
                        "states, %.0f for d%s, %.0f for the rest", c->flops, c->bytes,
                        system_flops(grad, ROLE_factor) + system_flops(grad, ROLE_chain),
                        system_flops(grad, ROLE_reverse), S, system_flops(grad, ROLE_grad)));
}

static void describe(Report *r, const Kernel *normal, const Kernel *tile, const Kernel *grad,
                     const Footprints *need) {
    *r = (Report){.arena = normal->arena, .k = normal, .need = need};
    Names n = names_new(normal);
    describe_token(r, &n);
    describe_decay(r);
    describe_erase(r, &n);
    const Facts *f = &normal->facts;
    if (f->chunkable) {
        add_fact(r, "rows", format(r, "%d update%s a token", f->slots, f->slots > 1 ? "s" : ""));
        describe_collapse(r);
        add_fact(r, "algorithms", "chunk, recurrent");
    } else {
        add_fact(r, "algorithms", "recurrent");
        add_fact(r, "gradient", "of the recurrence: every token forwards twice, backwards once");
        add_fact(r, "workspace", states_text(r, &need->cpu));
        add_fact(r, "on a GPU", states_text(r, &need->gpu));
        locate_reason(r);
    }
    describe_names(r, &n);
    r->has_system = tile && tile->level != LEVEL_recurrence;
    if (r->has_system)
        system_describe(tile, &r->system);
    if (r->has_system && grad)
        describe_backward(r, grad);
}

/* text ----------------------------------------------------------------------------------------- */

static const char *const legend[] = {
    "rows(..)            one row an update, in time order",
    "lower(x * y', a)    x_l' a_(u+1) .. a_(l-1) y_u for the updates u before row l, else 0",
    "from_start, to_end  rows times the decays since the chunk's start, until its end",
};
enum { LEGEND = sizeof legend / sizeof *legend };

static const char *title(Report *r) {
    const Axis *axis = r->k->axis.at;
    return format(r, "%s: state %s[%s = %d, %s = %d]", r->k->name, state_name(r->k),
                  axis[AXIS_K].name, axis[AXIS_K].size, axis[AXIS_V].name, axis[AXIS_V].size);
}

static const char *cost_text(Report *r) {
    const Cost *c = &r->system.cost;
    bool memory = c->ms_memory >= c->ms_compute;
    const Footprint *need = &r->need->forward;
    const char *kept = !need->by_chunks
        ? format(r, need->any ? "a GPU has kernels for the recurrence alone: %s" : "no kernel for a GPU: %s",
                 need->why_not)
        : format(r, "a GPU's kernels keep %lld bytes a chunk of %d tokens and head for each other, of some "
                    "or all chunks at a time%s", (long long)need->bytes, need->chunk, ahead_text(r, need));
    return format(r, "%.0f FLOP and %.0f bytes (bf16) a token and head with %d tokens a chunk; "
                  "10^6 of them take %.3f ms on an H100 (%s; memory %.3f, compute %.3f); %s",
                  c->flops, c->bytes, c->chunk, memory ? c->ms_memory : c->ms_compute,
                  memory ? "memory-bound" : "compute-bound", c->ms_memory, c->ms_compute, kept);
}

static void write_text(Report *r, Buf *out) {
    buf_printf(out, "%s\n\ntoken\n", title(r));
    for (int i = 0; i < r->token.count; i++)
        buf_printf(out, "    %s\n", r->token.at[i]);
    for (int i = 0; i < r->where.count; i++)
        buf_printf(out, "%s    %s = %s\n", i ? "" : "where\n", r->where.at[i].key,
                   r->where.at[i].text);
    buf_puts(out, "\n");
    for (int i = 0; i < r->fact.count; i++)
        buf_printf(out, "%-12s %s\n", r->fact.at[i].key, r->fact.at[i].text);
    if (!r->k->facts.chunkable) {
        buf_printf(out, "%-12s %s\n", "no chunk form", r->k->facts.why_not);
        if (r->reason_at)
            buf_printf(out, "%s\n", r->reason_at);
    }
    if (!r->has_system)
        return;
    buf_puts(out, "\nchunk system\n");
    for (int i = 0; i < r->system.row.count; i++) {
        const SystemRow *s = &r->system.row.at[i];
        buf_printf(out, "    %-5s %-7s = %s\n", s->name, s->shape, s->text);
    }
    for (int i = 0; i < LEGEND; i++)
        buf_printf(out, "%s    %s\n", i ? "" : "where\n", legend[i]);
    buf_printf(out, "\n%-12s %s\n", "cost", cost_text(r));
    for (int i = 0; i < r->backward.count; i++)
        buf_printf(out, "%s    %-10s %s\n", i ? "" : "\nbackward\n", r->backward.at[i].key,
                   r->backward.at[i].text);
}

/* markdown ------------------------------------------------------------------------------------- */

static void write_markdown(Report *r, Buf *out) {
    buf_printf(out, "## %s\n\n```\n", title(r));
    for (int i = 0; i < r->token.count; i++)
        buf_printf(out, "%s\n", r->token.at[i]);
    for (int i = 0; i < r->where.count; i++)
        buf_printf(out, "%s%s = %s\n", i ? "" : "where\n", r->where.at[i].key, r->where.at[i].text);
    buf_puts(out, "```\n\n");
    for (int i = 0; i < r->fact.count; i++)
        buf_printf(out, "- **%s**: %s\n", r->fact.at[i].key, r->fact.at[i].text);
    if (!r->k->facts.chunkable) {
        buf_printf(out, "- **no chunk form**: %s\n", r->k->facts.why_not);
        if (r->reason_at)
            buf_printf(out, "\n```\n%s\n```\n", r->reason_at);
    }
    if (!r->has_system)
        return;
    buf_puts(out, "\n| matrix | axes | definition |\n|---|---|---|\n");
    for (int i = 0; i < r->system.row.count; i++) {
        const SystemRow *s = &r->system.row.at[i];
        buf_printf(out, "| `%s` | %s | `%s` |\n", s->name, s->shape, s->text);
    }
    buf_puts(out, "\n```\n");
    for (int i = 0; i < LEGEND; i++)
        buf_printf(out, "%s\n", legend[i]);
    buf_printf(out, "```\n\n%s\n", cost_text(r));
    for (int i = 0; i < r->backward.count; i++)
        buf_printf(out, "%s- **%s**: %s\n", i ? "" : "\nBackward pass:\n\n", r->backward.at[i].key,
                   r->backward.at[i].text);
}

/* JSON ----------------------------------------------------------------------------------------- */

static void json_field(Buf *out, const char *key, const char *text) {
    buf_printf(out, ",\n  \"%s\": ", key);
    buf_json_string(out, text);
}

static void json_list(Buf *out, const char *key, const char *const *text, int count) {
    buf_printf(out, ",\n  \"%s\": [", key);
    for (int i = 0; i < count; i++) {
        buf_puts(out, i ? ", " : "");
        buf_json_string(out, text[i]);
    }
    buf_puts(out, "]");
}

static void json_pairs(Buf *out, const char *key, const Pair *p, int count) {
    buf_printf(out, ",\n  \"%s\": [", key);
    for (int i = 0; i < count; i++) {
        buf_puts(out, i ? ", {\"name\": " : "{\"name\": ");
        buf_json_string(out, p[i].key);
        buf_puts(out, ", \"text\": ");
        buf_json_string(out, p[i].text);
        buf_puts(out, "}");
    }
    buf_puts(out, "]");
}

static void json_system(Report *r, Buf *out) {
    buf_puts(out, ",\n  \"system\": [");
    for (int i = 0; i < r->system.row.count; i++) {
        const SystemRow *s = &r->system.row.at[i];
        buf_puts(out, i ? ",\n    {\"name\": " : "\n    {\"name\": ");
        buf_json_string(out, s->name);
        buf_puts(out, ", \"axes\": ");
        buf_json_string(out, s->shape);
        buf_puts(out, ", \"text\": ");
        buf_json_string(out, s->text);
        buf_puts(out, "}");
    }
    const Cost *c = &r->system.cost;
    buf_printf(out, "\n  ],\n  \"cost\": {\"chunk\": %d, \"flops\": %.0f, \"bytes\": %.0f, "
               "\"ms_memory\": %.6g, \"ms_compute\": %.6g, \"kept_bytes_a_chunk\": %lld, "
               "\"kept_chunk\": %d}", c->chunk, c->flops, c->bytes, c->ms_memory, c->ms_compute,
               (long long)r->need->forward.bytes, r->need->forward.chunk);
}

static void write_json(Report *r, Buf *out) {
    const Kernel *k = r->k;
    const Facts *f = &k->facts;
    buf_puts(out, "{\n  \"variant\": ");
    buf_json_string(out, k->name);
    json_field(out, "state", state_name(k));
    buf_printf(out, ",\n  \"dims\": {\"K\": %d, \"V\": %d}", k->axis.at[AXIS_K].size,
               k->axis.at[AXIS_V].size);
    json_list(out, "token", r->token.at, r->token.count);
    json_pairs(out, "where", r->where.at, r->where.count);
    json_field(out, "decay", decay_name(f->decay));
    buf_printf(out, ",\n  \"decay_constant\": %s,\n  \"erases\": %s,\n  \"reads_before_decay\": %s,\n"
               "  \"updates\": %d,\n  \"chunkable\": %s", f->decay_constant ? "true" : "false",
               f->erases ? "true" : "false", f->reads_before_decay ? "true" : "false", f->slots,
               f->chunkable ? "true" : "false");
    json_list(out, "tied", r->tied.at, r->tied.count);
    json_list(out, "collapses", r->collapse.at, r->collapse.count);
    json_pairs(out, "facts", r->fact.at, r->fact.count);
    if (!f->chunkable) {
        json_field(out, "why_not", f->why_not);
        if (r->reason_at) {
            json_field(out, "file", k->source->name);
            buf_printf(out, ",\n  \"line\": %d,\n  \"column\": %d", r->line, r->column);
        }
    }
    if (r->has_system)
        json_system(r, out);
    if (r->backward.count) {
        const Cost *c = &r->backward_cost;
        const Footprint *gpu = &r->need->gpu, *cpu = &r->need->cpu;
        json_pairs(out, "backward", r->backward.at, r->backward.count);
        buf_printf(out, ",\n  \"backward_cost\": {\"chunk\": %d, \"flops\": %.0f, \"bytes\": %.0f, "
                   "\"workspace_bytes_a_chunk\": %lld, \"record_bytes_a_chunk\": %lld, "
                   "\"record_chunk\": %d, \"saved_bytes_a_token\": %.6g}", c->chunk, c->flops, c->bytes,
                   (long long)cpu->bytes, (long long)gpu->bytes, gpu->chunk, saved_a_token(gpu));
    }
    buf_puts(out, "\n}\n");
}

void explain(const Kernel *normal, const Kernel *tile, const Kernel *grad, const Footprints *need,
             ExplainFormat f, Buf *out) {
    Report r;
    describe(&r, normal, tile, grad, need);
    switch (f) {
    case EXPLAIN_text: write_text(&r, out); break;
    case EXPLAIN_markdown: write_markdown(&r, out); break;
    case EXPLAIN_json: write_json(&r, out); break;
    }
}
