/* token: a recurrence kernel in normal form, read back into lists.
 *
 * A token is an ordered list of events (decays and updates) with reads between them. The place of a
 * read is the number of events before it. `normal` writes this form, `lattice`, `chunk` and
 * `explain` read it:
 *
 *     place 0    %r = read %x          event 0    decay %a
 *     place 1    %y = read %q          event 1    update %p, c - %r
 */
#include "passes/passes.h"

/* z as c, read, -read, c + read or c - read. False when z is none of these. */
static bool split_affine(const Kernel *k, int z, const bool *touches, TokenEvent *e) {
    const Inst *i = inst_at(k, z);
    e->c = e->read = -1;
    e->minus = false;
    if (!touches[z]) {
        e->c = z;
        return true;
    }
    int read = z;
    if (i->op == OP_neg || i->op == OP_sub) {
        e->minus = true;
        read = i->arg[i->nargs - 1];
        e->c = i->op == OP_sub ? i->arg[0] : -1;
    } else if (i->op == OP_add) {
        int first = touches[i->arg[0]] ? 0 : 1;
        read = i->arg[first];
        e->c = i->arg[1 - first];
    }
    if (inst_at(k, read)->op != OP_read || (e->c >= 0 && touches[e->c]))
        return false;
    e->read = read;
    return true;
}

bool token_read(const Kernel *k, Token *t) {
    *t = (Token){0};
    bool *touches = value_touches_state(k);
    int *read_of = NEW_ARRAY(k->arena, int, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_read) {
            read_of[v] = t->read.count;
            VEC_PUSH(k->arena, &t->read,
                     ((TokenRead){.inst = v, .x = i->arg[0], .place = t->event.count}));
        } else if (i->op == OP_decay) {
            VEC_PUSH(k->arena, &t->event,
                     ((TokenEvent){.op = OP_decay, .inst = v, .a = i->arg[0], .p = -1, .c = -1,
                                   .read = -1}));
        } else if (i->op == OP_update) {
            TokenEvent e = {.op = OP_update, .inst = v, .a = -1, .p = i->arg[0]};
            if (touches[e.p] || !split_affine(k, i->arg[1], touches, &e))
                return false;
            if (e.read >= 0)
                e.place = t->read.at[read_of[e.read]].place;
            VEC_PUSH(k->arena, &t->event, e);
            t->updates++;
        } else if (i->op == OP_out) {
            VEC_PUSH(k->arena, &t->out, v);
        }
    }
    /* Which reads an out looks at: those it reaches without passing through an update. */
    bool *used = NEW_ARRAY(k->arena, bool, k->inst.count);
    for (int o = 0; o < t->out.count; o++)
        value_mark(k, inst_at(k, t->out.at[o])->arg[0], used);
    for (int r = 0; r < t->read.count; r++)
        t->read.at[r].by_out = used[t->read.at[r].inst];
    return true;
}

bool *value_touches_state(const Kernel *k) {
    bool *touches = NEW_ARRAY(k->arena, bool, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        touches[v] = i->op == OP_read || i->op == OP_state || i->op == OP_costate ||
                     i->op == OP_reread || i->op == OP_coread || i->op == OP_decay_a;
        for (int j = 0; j < i->nargs; j++)
            touches[v] = touches[v] || (i->arg[j] >= 0 && touches[i->arg[j]]);
    }
    return touches;
}
