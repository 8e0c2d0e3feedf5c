/* What a sequence and head remembers besides its state: the last token's values under prev, and running
 * sums; f32, one after the other.
 *
 *     prev(x)      x              cumsum(x)      the sum so far, which prev(cumsum(x)) shares
 *
 * Where each stands is decided once, from the recurrence in normal form, and said on every prev and
 * cumsum: so kernels by chunks and token by token agree, whatever later passes drop, merge or move. What
 * one of them has dropped no result of it depends on. */
#include "ir/ir.h"

#include <string.h>

static bool remembers(const Inst *i) {
    return i->op == OP_prev || i->op == OP_cumsum;
}

int past_value(const Kernel *k, int v) {
    const Inst *i = inst_at(k, v);
    return i->op == OP_prev ? i->arg[0] : i->op == OP_cumsum ? v : -1;
}

static int floats_of(const Kernel *k, int v) {
    return (int)shape_elements(k, shape_features(inst_at(k, v)->shape));
}

void past_place(Kernel *k) {
    int *place = NEW_ARRAY(k->arena, int, k->inst.count + 1);
    memset(place, -1, (size_t)k->inst.count * sizeof *place);
    for (int v = 0; v < k->inst.count; v++)
        if (remembers(inst_at(k, v)))
            place[past_value(k, v)] = 0;
    k->facts.past = 0;
    for (int v = 0; v < k->inst.count; v++) {
        if (place[v] < 0)
            continue;
        place[v] = k->facts.past;
        k->facts.past += floats_of(k, v);
    }
    for (int v = 0; v < k->inst.count; v++)
        if (remembers(inst_at(k, v)))
            k->inst.at[v].index = place[past_value(k, v)];
}

/* The one with the lowest place that is not before `at`; -1: none. */
static int next_from(const Kernel *k, int at) {
    int next = -1;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (remembers(i) && i->index >= at && (next < 0 || i->index < inst_at(k, next)->index))
            next = v;
    }
    return next;
}

Past *past_list(const Kernel *k, int *count) {
    Past *list = NEW_ARRAY(k->arena, Past, 2 * k->inst.count + 1);
    int n = 0, at = 0;
    while (at < k->facts.past) {
        int v = next_from(k, at), place = v < 0 ? k->facts.past : inst_at(k, v)->index;
        if (place > at)
            list[n++] = (Past){.value = -1, .at = at, .floats = place - at};
        if (v >= 0)
            list[n++] = (Past){.value = past_value(k, v), .at = place, .floats = floats_of(k, v)};
        at = place + (v < 0 ? 0 : floats_of(k, v));
    }
    *count = n;
    return list;
}
