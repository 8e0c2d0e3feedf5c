/* normal: every update affine in at most one read; decide what the spec is (rules R1-R5).
 *
 * needs  a recurrence kernel
 * gives  facts, among them what is remembered and where; when a chunk form exists, updates of the form
 *        p (c + x'S)'  (see token.c)
 *
 *     %r = read %kb                         %rb = mul %beta, %kb
 *     %e = sub %v, %r             ->        %c = mul %beta, %v
 *     %z = mul %beta, %e                    %r = read %rb
 *     update %k, %z                         %z = sub %c, %r
 *                                           update %k, %z
 *
 * An update that looks at several reads gets one read at the earliest place among them. A read r
 * goes back over a decay d as d.r, and over an update S += p z' as itself plus (p'r) z: only
 * products, so decays of 0 stay exact. Where no chunk form exists the kernel is left as it was and
 * the facts say why, in the words of the spec. */
#include "passes/passes.h"

#include <string.h>

/* One read with its coefficient, sign apart; `coef` is a value of the new kernel or ONE. */
enum { ZERO = -1, ONE = -1 };
/* A span says that the spec wrote this very value; values made here have none. */
static const Span derived = {0, 0};

typedef struct Term { int read; bool minus; int coef; } Term;
typedef struct Affine { bool known; int c; VEC(Term) term; } Affine;

/* A read on its way back: row'S at a place, entering the update with a sign. */
typedef struct Row { int place, x; bool minus; } Row;

/* An update of the new kernel: S += p (c +- x'S(place))'. */
typedef struct Event { bool is_decay; int a, p, c, x, place; bool minus; Span span; } Event;
typedef struct Read { int old, x, place; Span span; } Read;

typedef struct Normal {
    const Kernel *old;
    Kernel *new;
    const bool *touches;
    int *map;          /* value of the old kernel -> of the new one, -1 = not yet there */
    int *read_of;      /* value of the old kernel -> index in read */
    Affine *affine;    /* by value of the old kernel */
    VEC(Event) event;
    VEC(Read) read;
    bool key_erase;    /* some update's z reads the state */
    const char *why_not;
    Span where;
} Normal;

static bool refuse(Normal *n, int v, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static bool refuse(Normal *n, int v, const char *fmt, ...) {
    if (n->why_not)
        return false;
    Buf b;
    va_list ap;
    buf_init(&b, n->new->arena);
    va_start(ap, fmt);
    buf_vprintf(&b, fmt, ap);
    va_end(ap);
    n->why_not = b.text;
    n->where = inst_at(n->old, v)->span;
    return false;
}

/* How the spec writes value v, for messages. */
static const char *words(const Normal *n, int v) {
    const Inst *i = inst_at(n->old, v);
    if (i->op == OP_in)
        return n->old->in.at[i->index].name;
    const Source *s = n->old->source;
    if (!s || i->span.hi <= i->span.lo || i->span.hi > s->len)
        return op_info[i->op].name;
    size_t len = i->span.hi - i->span.lo;
    const char *text = s->text + i->span.lo, *line = memchr(text, '\n', len);
    return arena_strndup(n->new->arena, text, line ? (size_t)(line - text) : len);
}

/* The same value in the new kernel; v does not depend on the state. */
static int get(Normal *n, int v) {
    if (n->map[v] >= 0)
        return n->map[v];
    const Inst *i = inst_at(n->old, v);
    int arg[2] = {0};
    CHECK(!n->touches[v] && i->nargs <= 2);
    for (int j = 0; j < i->nargs; j++)
        arg[j] = get(n, i->arg[j]);
    n->map[v] = emit_copy(n->new, i, arg);
    return n->map[v];
}

/* affine forms --------------------------------------------------------------------------------- */

static int times(Normal *n, int coef, int x) {
    if (coef == ONE)
        return x;
    return x == ONE ? coef : emit2(n->new, OP_mul, coef, x, derived);
}

/* +-a + +-b with the sign of the result left outside: value, and *minus. ZERO is absent. */
static int signed_add(Normal *n, int a, bool a_minus, int b, bool b_minus, bool *minus) {
    if (a == ZERO || b == ZERO) {
        *minus = a == ZERO ? b_minus : a_minus;
        return a == ZERO ? b : a;
    }
    if (a_minus == b_minus) {
        *minus = a_minus;
        return emit2(n->new, OP_add, a, b, derived);
    }
    *minus = false;
    return a_minus ? emit2(n->new, OP_sub, b, a, derived) : emit2(n->new, OP_sub, a, b, derived);
}

/* a + (-1)^minus b with ZERO absent. */
static int plain_add(Normal *n, int a, int b, bool minus) {
    bool negative;
    int s = signed_add(n, a, false, b, minus, &negative);
    return negative && s != ZERO ? emit1(n->new, OP_neg, s, derived) : s;
}

static void add_term(Normal *n, Affine *f, Term t) {
    for (int i = 0; i < f->term.count; i++) {
        Term *old = &f->term.at[i];
        if (old->read != t.read)
            continue;
        int a = old->coef == ONE ? emit_const(n->new, 1) : old->coef;
        int b = t.coef == ONE ? emit_const(n->new, 1) : t.coef;
        old->coef = signed_add(n, a, old->minus, b, t.minus, &old->minus);
        return;
    }
    VEC_PUSH(n->new->arena, &f->term, t);
}

static Affine *affine_of(Normal *n, int v);

static bool affine_sum(Normal *n, int v, Affine *f) {
    const Inst *i = inst_at(n->old, v);
    for (int j = 0; j < i->nargs; j++) {
        bool minus = i->op == OP_neg || (i->op == OP_sub && j == 1);
        const Affine *g = affine_of(n, i->arg[j]);
        if (!g)
            return false;
        f->c = plain_add(n, f->c, g->c, minus);
        for (int t = 0; t < g->term.count; t++) {
            Term term = g->term.at[t];
            term.minus ^= minus;
            add_term(n, f, term);
        }
    }
    return true;
}

/* A product or quotient of a form in reads with a factor free of them. */
static bool affine_scaled(Normal *n, int v, Affine *f) {
    const Inst *i = inst_at(n->old, v);
    int side = n->touches[i->arg[0]] ? 0 : 1, factor = i->arg[1 - side];
    if (n->touches[factor])
        return refuse(n, v, "`%s` multiplies two reads of the state, and a chunk form needs "
                      "updates linear in the state", words(n, v));
    if (i->op == OP_div && side == 1)
        return refuse(n, v, "`%s` divides by a read of the state, and a chunk form needs updates "
                      "linear in the state", words(n, v));
    const Affine *g = affine_of(n, i->arg[side]);
    if (!g)
        return false;
    if (inst_at(n->old, factor)->shape.rank)
        return refuse(n, factor, "`%s` scales a read of the state differently for every column of "
                      "%s, so each column would have a triangular system of its own; a chunk form "
                      "needs scalar coefficients on reads (V-dependent ones are free on the write)",
                      words(n, factor), n->old->state_name ? n->old->state_name : "the state");
    int s = ONE;
    bool minus = false;
    const Inst *constant = inst_at(n->old, factor);
    if (constant->op == OP_const && i->op == OP_mul) {
        minus = constant->num < 0;
        if (constant->num != 1 && constant->num != -1)
            s = emit_const(n->new, minus ? -constant->num : constant->num);
    } else {
        s = get(n, factor);
        if (i->op == OP_div)
            s = emit2(n->new, OP_div, emit_const(n->new, 1), s, derived);
    }
    if (g->c != ZERO)
        f->c = times(n, s, g->c);
    if (g->c != ZERO && minus)
        f->c = emit1(n->new, OP_neg, f->c, derived);
    for (int t = 0; t < g->term.count; t++) {
        Term term = g->term.at[t];
        term.minus ^= minus;
        term.coef = times(n, s, term.coef);
        VEC_PUSH(n->new->arena, &f->term, term);
    }
    return true;
}

/* v = c + sum_j +-coef_j read_j, or NULL with the reason noted. */
static Affine *affine_of(Normal *n, int v) {
    Affine *f = &n->affine[v];
    const Inst *i = inst_at(n->old, v);
    bool ok = true;
    if (f->known)
        return f;
    f->c = ZERO;
    if (!n->touches[v])
        f->c = get(n, v);
    else if (i->op == OP_read)
        VEC_PUSH(n->new->arena, &f->term, ((Term){n->read_of[v], false, ONE}));
    else if (i->op == OP_neg || i->op == OP_add || i->op == OP_sub)
        ok = affine_sum(n, v, f);
    else if (i->op == OP_mul || i->op == OP_div)
        ok = affine_scaled(n, v, f);
    else if (i->op == OP_sum)
        ok = refuse(n, v, "`%s` adds up a read of the state over its columns, which ties every "
                    "column to every other; a chunk form treats them alike", words(n, v));
    else if (i->op == OP_turn)
        ok = refuse(n, v, "`%s` turns a read of the state over its columns, which ties every column "
                    "to its neighbour; a chunk form treats them alike", words(n, v));
    else
        ok = refuse(n, v, "`%s` puts a read of the state through the nonlinear function %s, and a "
                    "chunk form needs updates linear in the state", words(n, v),
                    op_info[i->op].name);
    f->known = ok;
    return ok ? f : NULL;
}

/* walking the token ---------------------------------------------------------------------------- */

/* Row `at` one event back. Over an update it splits in two; returns the number of rows. */
static int step_back(Normal *n, Event *u, Row *row, int at, int count) {
    const Event *e = &n->event.at[--row[at].place];
    if (e->is_decay) {
        row[at].x = emit2(n->new, OP_mul, e->a, row[at].x, derived);
        return count;
    }
    int s = emit2(n->new, OP_mul, e->p, row[at].x, derived);
    s = emit_sum(n->new, s, AXIS_K, derived);
    if (e->c != ZERO)
        u->c = plain_add(n, u->c, times(n, s, e->c), row[at].minus);
    if (e->x == ZERO)
        return count;
    row[count] = (Row){e->place, times(n, s, e->x), row[at].minus ^ e->minus};
    return count + 1;
}

/* Move every row back to the earliest place among them and merge them into one. */
static void merge_rows(Normal *n, Event *u, Row *row, int count) {
    for (;;) {
        int last = 0;
        for (int i = 1; i < count; i++)
            last = row[i].place > row[last].place ? i : last;
        for (int i = count - 1; i > last; i--) {
            if (row[i].place != row[last].place)
                continue;
            row[last].x = signed_add(n, row[last].x, row[last].minus, row[i].x, row[i].minus,
                                     &row[last].minus);
            row[i] = row[--count];
        }
        if (count == 1)
            break;
        count = step_back(n, u, row, last, count);
    }
    u->x = row[0].x;
    u->place = row[0].place;
    u->minus = row[0].minus;
}

static bool walk_update(Normal *n, int v) {
    const Inst *i = inst_at(n->old, v);
    if (n->touches[i->arg[0]])
        return refuse(n, i->arg[0], "the write key `%s` depends on the state, and a chunk form "
                      "needs keys made of inputs alone", words(n, i->arg[0]));
    const Affine *f = affine_of(n, i->arg[1]);
    if (!f)
        return false;
    Event u = {.p = get(n, i->arg[0]), .c = f->c, .x = ZERO, .span = i->span};
    /* Rows at different places, each of which can split off one more at every update it passes. */
    int cap = f->term.count + n->event.count + 1, count = 0;
    Row *row = NEW_ARRAY(n->new->arena, Row, cap);
    for (int t = 0; t < f->term.count; t++) {
        Term term = f->term.at[t];
        const Read *r = &n->read.at[term.read];
        row[count++] = (Row){r->place, times(n, term.coef, r->x), term.minus};
    }
    if (count)
        merge_rows(n, &u, row, count);
    VEC_PUSH(n->new->arena, &n->event, u);
    return true;
}

static bool walk_read(Normal *n, int v) {
    const Inst *i = inst_at(n->old, v);
    if (n->touches[i->arg[0]])
        return refuse(n, i->arg[0], "the state is read with `%s`, which itself depends on the "
                      "state; a chunk form needs rows made of inputs alone", words(n, i->arg[0]));
    if (shape_has(inst_at(n->old, i->arg[0])->shape, AXIS_V))
        return refuse(n, v, "`%s` reads the state from its value side; a chunk form reads it from "
                      "the key side only", words(n, v));
    n->read_of[v] = n->read.count;
    VEC_PUSH(n->new->arena, &n->read,
             ((Read){v, get(n, i->arg[0]), n->event.count, i->span}));
    return true;
}

static bool walk_decay(Normal *n, int v) {
    const Inst *i = inst_at(n->old, v);
    if (n->touches[i->arg[0]])
        return refuse(n, i->arg[0], "the decay `%s` depends on the state, and a chunk form needs "
                      "decays made of inputs alone", words(n, i->arg[0]));
    if (shape_has(inst_at(n->old, i->arg[0])->shape, AXIS_V))
        return n->key_erase
                   ? refuse(n, v, "`%s` decays the value side of a state with a key-side erase, so "
                            "each column would have a triangular system of its own",
                            words(n, i->arg[0]))
                   : refuse(n, v, "value-side decay (`%s`) runs by the recurrent algorithm",
                            words(n, i->arg[0]));
    VEC_PUSH(n->new->arena, &n->event,
             ((Event){.is_decay = true, .a = get(n, i->arg[0]), .span = i->span}));
    return true;
}

static bool walk(Normal *n) {
    for (int v = 0; v < n->old->inst.count; v++) {
        const Inst *i = inst_at(n->old, v);
        n->key_erase = n->key_erase || (i->op == OP_update && n->touches[i->arg[1]]);
    }
    for (int v = 0; v < n->old->inst.count; v++) {
        Op op = inst_at(n->old, v)->op;
        if ((op == OP_read && !walk_read(n, v)) || (op == OP_decay && !walk_decay(n, v)) ||
            (op == OP_update && !walk_update(n, v)))
            return false;
    }
    return true;
}

/* No read, of an update or an out, stands between events e and e+1. */
static bool nothing_between(const Normal *n, int e, const bool *in_out) {
    for (int i = e + 1; i < n->event.count; i++) {
        const Event *u = &n->event.at[i];
        if (!u->is_decay && u->x != ZERO && u->place == e + 1)
            return false;
    }
    for (int r = 0; r < n->read.count; r++)
        if (n->read.at[r].place == e + 1 && in_out[n->read.at[r].old])
            return false;
    return true;
}

/* Two commutations that give the chunk system fewer or more regular rows, where no read notices.
 * A decay after the last update goes before it, onto the key: S = D (S + p z') = D S + (D p) z'.
 * A write that an erase after it does not see goes behind that erase, which then stands right after
 * the update that it does see. */
static void order_events(Normal *n, const bool *in_out) {
    int last = n->event.count - 1;
    while (last >= 0 && n->event.at[last].is_decay)
        last--;
    for (; last >= 0 && last + 1 < n->event.count && nothing_between(n, last, in_out); last++) {
        Event update = n->event.at[last], decay = n->event.at[last + 1];
        update.p = emit2(n->new, OP_mul, decay.a, update.p, derived);
        n->event.at[last] = decay;
        n->event.at[last + 1] = update;
    }
    for (int e = n->event.count - 2; e >= 0; e--) {
        for (int i = e; i + 1 < n->event.count; i++) {
            Event write = n->event.at[i], erase = n->event.at[i + 1];
            if (write.is_decay || write.x != ZERO || erase.is_decay || erase.x == ZERO ||
                erase.place > i || !nothing_between(n, i, in_out))
                break;
            n->event.at[i] = erase;
            n->event.at[i + 1] = write;
        }
    }
}

/* the new kernel ------------------------------------------------------------------------------- */

/* The reads that stand at this place: for updates yet to come, and for outs. */
static void place_reads(Normal *n, int place, int *read_value, const bool *in_out) {
    int *of_row = NEW_ARRAY(n->new->arena, int, n->new->inst.count); /* row -> its read + 1 */
    Span *spec = NEW_ARRAY(n->new->arena, Span, n->new->inst.count); /* row -> the spec's read */
    for (int r = 0; r < n->read.count; r++)
        if (n->read.at[r].place == place)
            spec[n->read.at[r].x] = n->read.at[r].span;
    for (int e = place; e < n->event.count; e++) {
        const Event *u = &n->event.at[e];
        if (u->is_decay || u->x == ZERO || u->place != place)
            continue;
        if (!of_row[u->x])
            of_row[u->x] = emit_read(n->new, u->x, spec[u->x]) + 1;
        read_value[e] = of_row[u->x] - 1;
    }
    for (int r = 0; r < n->read.count; r++) {
        const Read *read = &n->read.at[r];
        if (read->place != place || !in_out[read->old])
            continue;
        if (!of_row[read->x])
            of_row[read->x] = emit_read(n->new, read->x, read->span) + 1;
        n->map[read->old] = of_row[read->x] - 1;
    }
}

static void place_event(Normal *n, const Event *e, int read) {
    if (e->is_decay) {
        emit_decay(n->new, e->a, e->span);
        return;
    }
    int z = e->c;
    if (read >= 0 && e->c != ZERO)
        z = emit2(n->new, e->minus ? OP_sub : OP_add, e->c, read, derived);
    else if (read >= 0)
        z = e->minus ? emit1(n->new, OP_neg, read, derived) : read;
    emit_update(n->new, e->p, z, e->span);
}

static void rebuild(Normal *n) {
    const Kernel *old = n->old;
    bool *in_out = NEW_ARRAY(n->new->arena, bool, old->inst.count);
    int *read_value = NEW_ARRAY(n->new->arena, int, n->event.count + 1);
    for (int v = 0; v < old->inst.count; v++)
        if (inst_at(old, v)->op == OP_out)
            value_mark(old, inst_at(old, v)->arg[0], in_out);
    order_events(n, in_out);
    for (int e = 0; e < n->event.count; e++)
        read_value[e] = -1;
    for (int e = 0; e <= n->event.count; e++) {
        place_reads(n, e, read_value, in_out);
        if (e < n->event.count)
            place_event(n, &n->event.at[e], read_value[e]);
    }
    for (int v = 0; v < old->inst.count; v++) {
        const Inst *i = inst_at(old, v);
        if (n->map[v] >= 0 || (!in_out[v] && i->op != OP_out))
            continue;
        int arg[2] = {0};
        for (int j = 0; j < i->nargs; j++)
            arg[j] = n->map[i->arg[j]];
        n->map[v] = emit_copy(n->new, i, arg);
    }
}

/* facts ---------------------------------------------------------------------------------------- */

static DecayClass decay_join(DecayClass d, Shape s) {
    DecayClass e = shape_has(s, AXIS_K) ? DECAY_key : shape_has(s, AXIS_V) ? DECAY_value
                                                                           : DECAY_scalar;
    if (d == DECAY_none || d == DECAY_scalar || d == e)
        return e == DECAY_scalar && d != DECAY_none ? d : e;
    return e == DECAY_scalar ? d : DECAY_mixed;
}

/* What holds of any spec, chunkable or not. */
static void common_facts(Kernel *k, const bool *touches) {
    Facts *f = &k->facts;
    *f = (Facts){.known = true, .decay_constant = true};
    int decays = 0, *passed = NEW_ARRAY(k->arena, int, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        passed[v] = i->op == OP_read ? decays : INT32_MAX; /* the earliest read behind a value */
        for (int j = 0; j < i->nargs; j++)
            passed[v] = passed[i->arg[j]] < passed[v] ? passed[i->arg[j]] : passed[v];
        if (i->op == OP_decay) {
            decays++;
            f->decay = decay_join(f->decay, inst_at(k, i->arg[0])->shape);
            f->decay_constant = f->decay_constant && value_is_constant(k, i->arg[0]);
        } else if (i->op == OP_update) {
            f->slots++;
            f->erases = f->erases || touches[i->arg[0]] || touches[i->arg[1]];
            f->reads_before_decay = f->reads_before_decay || passed[v] < decays;
        }
    }
    f->decay_constant = f->decay_constant && decays > 0;
}

/* What the normal form itself shows. */
static void event_facts(const Normal *n, Facts *f) {
    const int count = n->event.count;
    f->slots = 0;
    f->erases = f->reads_before_decay = false;
    for (int e = 0; e < count; e++) {
        const Event *u = &n->event.at[e];
        if (u->is_decay)
            continue;
        f->slots++;
        f->erases = f->erases || u->x != ZERO;
        for (int i = u->x == ZERO ? e : u->place; i < e; i++)
            f->reads_before_decay = f->reads_before_decay || n->event.at[i].is_decay;
    }
    /* A decay that no update follows gets a null update in `lattice`, to carry it. */
    f->slots += f->slots == 0 || n->event.at[count - 1].is_decay;
}

/* The chunk system takes its axis K from the write keys, or without updates from what decays and
 * reads the state. */
static bool has_key_axis(const Normal *n) {
    bool update = false, other = false, updates = false;
    for (int v = 0; v < n->old->inst.count; v++) {
        const Inst *i = inst_at(n->old, v);
        if (i->op != OP_read && i->op != OP_decay && i->op != OP_update)
            continue;
        bool key = shape_has(inst_at(n->old, i->arg[0])->shape, AXIS_K);
        updates = updates || i->op == OP_update;
        update = update || (key && i->op == OP_update);
        other = other || key;
    }
    return updates ? update : other;
}

static void rewrite(Kernel *k) {
    const int count = k->inst.count;
    Normal n = {.old = k, .new = kernel_like(k), .touches = value_touches_state(k)};
    n.map = NEW_ARRAY(k->arena, int, count);
    n.read_of = NEW_ARRAY(k->arena, int, count);
    n.affine = NEW_ARRAY(k->arena, Affine, count);
    for (int v = 0; v < count; v++)
        n.map[v] = -1;
    common_facts(k, n.touches);
    if (!walk(&n)) {
        k->facts.why_not = n.why_not;
        k->facts.where = n.where;
        return;
    }
    if (!has_key_axis(&n)) {
        k->facts.why_not = "no vector along the key axis ever meets the state, so a chunk form has "
                           "nothing to gain";
        return;
    }
    rebuild(&n);
    event_facts(&n, &k->facts);
    k->facts.chunkable = true;
    k->inst = n.new->inst;
}

void pass_normal(Kernel *k) {
    rewrite(k);
    past_place(k);
}
