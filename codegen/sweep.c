/* Which operations on the state share a pass over it. */
#include "codegen/sweep.h"

static bool belongs(Op op, bool back) {
    if (!back)
        return op == OP_decay || op == OP_read || op == OP_update;
    return op == OP_codecay || op == OP_coupdate || op == OP_coread || op == OP_reread ||
           op == OP_decay_a;
}

/* Whether operation v can join the sweep: no operand needs a result of it. */
static bool joins(Arena *arena, const Kernel *k, const Sweep *s, int v, int most_ops, int most_sums) {
    const Inst *i = inst_at(k, v);
    int sums = inst_sums_rows(i);
    for (int n = 0; n < s->count; n++)
        sums += inst_sums_rows(inst_at(k, s->op[n]));
    if (s->count == most_ops || sums > most_sums)
        return false;
    bool *needs = NEW_ARRAY(arena, bool, k->inst.count);
    for (int j = 0; j < i->nargs; j++)
        value_mark(k, i->arg[j], needs);
    for (int n = 0; n < s->count; n++)
        if (needs[s->op[n]])
            return false;
    return true;
}

static Sweep sweep_new(Arena *arena, const Kernel *k, bool back, int most_ops) {
    Sweep s = {.back = back, .op = NEW_ARRAY(arena, int, most_ops)};
    s.event = NEW_ARRAY(arena, int, k->inst.count + 1);
    s.wanted = NEW_ARRAY(arena, bool, k->inst.count + 1);
    int n = 0;
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_decay || inst_at(k, v)->op == OP_update)
            s.event[n++] = v;
    return s;
}

static void add(const Kernel *k, Sweep *s, int v) {
    const Inst *i = inst_at(k, v);
    s->op[s->count++] = v;
    s->writes |= !op_gives_value(i->op);
    s->state |= !s->back || op_looks_back(i->op);
    s->costate |= s->back && i->op != OP_reread;
    if (op_looks_back(i->op)) {
        s->wanted[i->place] = true;
        s->places = i->place > s->places ? i->place : s->places;
    }
}

Sweep *sweeps_of(Arena *arena, const Kernel *k, bool back, int most_ops, int most_sums, int *count) {
    Sweep *all = NEW_ARRAY(arena, Sweep, k->inst.count + 1);
    int n = 0;
    for (int v = 0; v < k->inst.count; v++) {
        if (!belongs(inst_at(k, v)->op, back))
            continue;
        if (n == 0 || !joins(arena, k, &all[n - 1], v, most_ops, most_sums))
            all[n++] = sweep_new(arena, k, back, most_ops);
        add(k, &all[n - 1], v);
    }
    *count = n;
    return all;
}
