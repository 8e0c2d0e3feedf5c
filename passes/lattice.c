/* lattice: one decay right before each update, every read right after the update before it.
 *
 * needs  the normal form
 * gives  tokens of  [reads] [decay] update  [reads] [decay] update ... [reads]
 *
 *     decay %a                               %ax = mul %a, %x
 *     %r = read %x                           %r = read %ax
 *     decay %b                   ->          %ab = mul %a, %b
 *     %z = sub %c, %r                        %z = sub %c, %r
 *     update %p, %z                          decay %ab
 *                                            update %p, %z
 *
 * A read moves back over decays (they fold into its row), a decay forward over reads; both are
 * products. A decay that no update follows, or a token without updates, gets a null update. */
#include "passes/passes.h"

typedef struct Lattice {
    Kernel *new;
    int *map;
    int pending;       /* product of the decays since the last update, -1 = none */
    int key_vector;    /* some value along K, -1 = none met */
    Span pending_span;
} Lattice;

static int decayed(Lattice *l, int x) {
    return l->pending < 0 ? x : emit2(l->new, OP_mul, l->pending, x, (Span){0, 0});
}

static void flush(Lattice *l) {
    if (l->pending >= 0)
        emit_decay(l->new, l->pending, l->pending_span);
    l->pending = -1;
}

static void note_key_vector(Lattice *l, int v) {
    if (shape_has(inst_at(l->new, v)->shape, AXIS_K))
        l->key_vector = v;
}

/* An update that changes nothing. Its key keeps the axis K where the token has a vector along it:
 * the chunk system takes shapes from its operands. */
static void null_update(Lattice *l) {
    int zero = emit_const(l->new, 0), p = zero;
    if (l->key_vector >= 0)
        p = emit2(l->new, OP_mul, zero, l->key_vector, l->pending_span);
    flush(l);
    emit_update(l->new, p, zero, l->pending_span);
}

void pass_lattice(Kernel *k) {
    Lattice l = {.new = kernel_like(k), .map = NEW_ARRAY(k->arena, int, k->inst.count),
                 .pending = -1, .key_vector = -1};
    int updates = 0;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        int arg[2] = {0};
        CHECK(i->nargs <= 2);
        for (int j = 0; j < i->nargs; j++)
            arg[j] = l.map[i->arg[j]];
        if (i->op == OP_read) {
            note_key_vector(&l, arg[0]);
            l.map[v] = emit_read(l.new, decayed(&l, arg[0]), i->span);
        } else if (i->op == OP_decay) {
            note_key_vector(&l, arg[0]);
            l.pending = decayed(&l, arg[0]);
            l.pending_span = i->span;
        } else {
            if (i->op == OP_update) {
                note_key_vector(&l, arg[0]);
                flush(&l);
            }
            l.map[v] = emit_copy(l.new, i, arg);
            updates += i->op == OP_update;
        }
    }
    if (l.pending >= 0 || updates == 0) {
        null_update(&l);
        updates++;
    }
    k->facts.slots = updates;
    k->inst = l.new->inst;
}
