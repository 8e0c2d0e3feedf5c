/* roles: what needs no state goes to the factor role, the rest to the chain.
 *
 * needs  a chunk-level kernel
 * gives  the tile level: role, keep, elem of every value
 *
 *     factor   chunk operations free of the state and of the axis V: parallel over chunks
 *     chain    what looks at the state or at V, and the outs: serial over chunks
 *     none     elementwise values of inputs, reductions, time: recomputed wherever they are wanted
 *     keep     factor values that the chain uses: they cross through the workspace
 *
 *     E = carry(e, a)        factor, keep        X = c - E S     chain
 *     T = scores(e, p, a)    factor              kb = b .* k     none
 */
#include "passes/passes.h"

static Role role_of(const Kernel *k, const Inst *i, bool touches) {
    if (touches || i->op == OP_out || i->op == OP_next)
        return ROLE_chain;
    bool works = op_info[i->op].class == CLASS_CHUNK;
    for (int j = 0; j < i->nargs; j++)
        works = works || (i->arg[j] >= 0 && inst_at(k, i->arg[j])->role != ROLE_none);
    if (!works)
        return ROLE_none;
    return shape_has(i->shape, AXIS_V) ? ROLE_chain : ROLE_factor;
}

void pass_roles(Kernel *k) {
    const bool *touches = value_touches_state(k);
    for (int v = 0; v < k->inst.count; v++) {
        Inst *i = &k->inst.at[v];
        i->role = role_of(k, i, touches[v]);
        i->elem = ELEM_f32;
        i->keep = false;
        for (int j = 0; i->role == ROLE_chain && j < i->nargs; j++) {
            Inst *arg = i->arg[j] < 0 ? NULL : &k->inst.at[i->arg[j]];
            if (arg && arg->role == ROLE_factor)
                arg->keep = true;
        }
    }
    k->level = LEVEL_tile;
}

void tile_set_operands(Kernel *k, Elem operand) {
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        for (int j = 0; i->op == OP_contract && j < i->nargs; j++) {
            Inst *arg = &k->inst.at[i->arg[j]];
            if (arg->keep)
                arg->elem = operand;
        }
    }
}
