/* chunk: the token recurrence becomes the chunk system, one lowering for every spec.
 *
 * needs  the lattice form (lattice.c) and the sizes of the axes C, R, U (kernel_set_chunk)
 * gives  a chunk-level kernel. An update  p (c - e'S)'  of slot s is equation and unknown t*slots+s:
 *
 *     p[U,K] e[R,K] c[R,V] a[U,K]   weave of the slots' values, a missing decay being 1
 *     T = scores(e, p, a)    A = solve T = (I + T)^-1      E = carry(e, a)    X = c - E S
 *     Kt = tail(p, a)        P = A' Kt                     D = total a        next = D S + P' X
 *     each read q of an out, at its place:   Aq = scores(q, p, a)    M = Aq A    Qg = carry(q, a)
 *                                            O = Qg S + M X
 *
 * (The unknowns themselves would be A X; folding A into P and M leaves two products on the serial
 * chain.) Slots without a read have e = 0, so a spec without erase has T = 0 and A = I, which
 * `collapse` removes. A slot that reads the state before earlier updates of its token has its rows
 * of T and E made at that place, and T and E are woven from the slots' matrices. */
#include "passes/passes.h"

#include <string.h>

typedef struct Chunk {
    const Kernel *old;
    Kernel *new;
    int *map;      /* token value -> chunk value, [C,...] or constant */
    int p, a, A, X, state;
} Chunk;

static const Span nowhere = {0, 0};

/* A token value, elementwise and free of the state, on axis C. */
static void lift(Chunk *c, int v) {
    Inst i = *inst_at(c->old, v);
    int arg[2] = {0};
    CHECK(i.nargs <= 2);
    for (int j = 0; j < i.nargs; j++)
        arg[j] = c->map[i.arg[j]];
    i.arg = arg;
    c->map[v] = emit(c->new, i);
}

static int weave(Chunk *c, const int *slot, int count, int axis, double past) {
    return emit(c->new, (Inst){.op = OP_weave, .nargs = count, .arg = (int *)slot, .axis = axis,
                               .num = past});
}

static int scores(Chunk *c, int x, int place) {
    return emit(c->new, (Inst){.op = OP_scores, .nargs = 3, .arg = (int[]){x, c->p, c->a},
                               .place = place});
}

static int carry(Chunk *c, int x, int place) {
    return emit(c->new, (Inst){.op = OP_carry, .nargs = 2, .arg = (int[]){x, c->a},
                               .place = place});
}

static int contract(Chunk *c, int x, int y, int axis) {
    return emit(c->new, (Inst){.op = OP_contract, .nargs = 2, .arg = (int[]){x, y}, .axis = axis});
}

/* What an update needs of its slot, on axis C: S += p (c - e'S)' with S seen after `place` updates. */
typedef struct Slot { int p, e, c, a, place; } Slot;

static Slot *slots_of(Chunk *c, const Token *t) {
    Slot *slot = NEW_ARRAY(c->new->arena, Slot, t->updates);
    int one = emit_const(c->new, 1), zero = emit_const(c->new, 0), s = 0, decay = one;
    for (int i = 0; i < t->event.count; i++) {
        const TokenEvent *u = &t->event.at[i];
        if (u->op == OP_decay) {
            CHECK(decay == one);
            decay = c->map[u->a];
            continue;
        }
        Slot now = {.p = c->map[u->p], .c = u->c >= 0 ? c->map[u->c] : zero, .a = decay, .place = s};
        if (u->read < 0) {
            now.e = emit2(c->new, OP_mul, zero, now.p, nowhere);
        } else {
            const Inst *read = inst_at(c->old, u->read);
            int x = c->map[read->arg[0]];
            now.e = u->minus ? x : emit1(c->new, OP_neg, x, nowhere);
            now.place = 0;
            for (int before = 0; before < u->place; before++)
                now.place += t->event.at[before].op == OP_update;
        }
        slot[s++] = now;
        decay = one;
    }
    CHECK(s == t->updates && decay == one);
    return slot;
}

static int weave_field(Chunk *c, const Slot *slot, int count, size_t field, int axis, double past) {
    int *arg = NEW_ARRAY(c->new->arena, int, count);
    for (int s = 0; s < count; s++)
        memcpy(&arg[s], (const char *)&slot[s] + field, sizeof *arg);
    return weave(c, arg, count, axis, past);
}

/* T and E. Regular rows stand right after the update before theirs: axis R itself. */
static void lower_rows(Chunk *c, const Slot *slot, int count, int *T, int *E) {
    bool regular = true;
    for (int s = 0; s < count; s++)
        regular = regular && slot[s].place == s;
    if (regular) {
        int e = weave_field(c, slot, count, offsetof(Slot, e), AXIS_R, 0);
        *T = scores(c, e, 0);
        *E = carry(c, e, 0);
        return;
    }
    int *rows = NEW_ARRAY(c->new->arena, int, 2 * count), *carried = rows + count;
    for (int s = 0; s < count; s++) {
        rows[s] = scores(c, slot[s].e, slot[s].place);
        carried[s] = carry(c, slot[s].e, slot[s].place);
    }
    *T = weave(c, rows, count, AXIS_R, 0);
    *E = weave(c, carried, count, AXIS_R, 0);
}

/* Every read that an out looks at, and the outs. */
static void lower_outs(Chunk *c, const Token *t) {
    const Kernel *old = c->old;
    int place = 0, r = 0;
    for (int v = 0; v < old->inst.count; v++) {
        const Inst *i = inst_at(old, v);
        place += i->op == OP_update;
        if (i->op != OP_read)
            continue;
        if (!t->read.at[r++].by_out)
            continue;
        int q = c->map[i->arg[0]];
        int Aq = scores(c, q, place), Qg = carry(c, q, place);
        int M = contract(c, Aq, c->A, AXIS_U);
        int before = contract(c, Qg, c->state, AXIS_K);
        int inside = contract(c, M, c->X, AXIS_R);
        c->map[v] = emit2(c->new, OP_add, before, inside, i->span);
    }
    bool *used = NEW_ARRAY(old->arena, bool, old->inst.count);
    for (int o = 0; o < t->out.count; o++)
        value_mark(old, inst_at(old, t->out.at[o])->arg[0], used);
    for (int v = 0; v < old->inst.count; v++)
        if ((used[v] && c->map[v] < 0) || inst_at(old, v)->op == OP_out)
            lift(c, v);
}

void pass_chunk(Kernel *k) {
    Token t;
    if (!token_read(k, &t) || t.updates == 0)
        BUG("%s: chunk needs the lattice form", k->name);
    if (k->axis.at[AXIS_C].size == 0)
        kernel_set_chunk(k, 64);
    Chunk c = {.old = k, .new = kernel_like(k), .map = NEW_ARRAY(k->arena, int, k->inst.count)};
    c.new->level = LEVEL_chunk;
    bool *touches = value_touches_state(k);
    for (int v = 0; v < k->inst.count; v++) {
        c.map[v] = -1;
        if (!touches[v] && op_gives_value(inst_at(k, v)->op))
            lift(&c, v);
    }
    const Slot *slot = slots_of(&c, &t);
    int T, E;
    c.p = weave_field(&c, slot, t.updates, offsetof(Slot, p), AXIS_U, 0);
    c.a = weave_field(&c, slot, t.updates, offsetof(Slot, a), AXIS_U, 1);
    int z = weave_field(&c, slot, t.updates, offsetof(Slot, c), AXIS_R, 0);
    lower_rows(&c, slot, t.updates, &T, &E);
    c.A = emit1(c.new, OP_solve, T, nowhere);
    int Kt = emit(c.new, (Inst){.op = OP_tail, .nargs = 2, .arg = (int[]){c.p, c.a}});
    int P = contract(&c, c.A, Kt, AXIS_U);
    int D = emit1(c.new, OP_total, c.a, nowhere);
    c.state = emit(c.new, (Inst){.op = OP_state});
    c.X = emit2(c.new, OP_sub, z, contract(&c, E, c.state, AXIS_K), nowhere);
    lower_outs(&c, &t);
    int kept = emit2(c.new, OP_mul, D, c.state, nowhere);
    int written = contract(&c, P, c.X, AXIS_R);
    emit1(c.new, OP_next, emit2(c.new, OP_add, kept, written, nowhere), nowhere);
    k->level = LEVEL_chunk;
    k->inst = c.new->inst;
}
