/* roles: what needs no state goes to the factor role, the rest to the chain.
 *
 * needs  a chunk-level kernel
 * gives  the tile level: role, keep, elem of every value
 *
 *     factor   chunk operations free of the state and of the axis V: parallel over chunks
 *     chain    what looks at the state or at V, and the outs: serial over chunks
 *     none     elementwise values of inputs, reductions, time: recomputed wherever they are wanted
 *     keep     values that a later role uses: they cross through the workspace
 *
 *     E = carry(e, a)        factor, keep        X = c - E S     chain
 *     T = scores(e, p, a)    factor              kb = b .* k     none
 *
 * In a gradient kernel the chain is what `next` needs, and two more roles follow:
 *
 *     reverse  what else `conext` needs, serial over the chunks backwards: dX = M' dO + P dS', ...
 *     grad     the gradients, parallel over chunks: they take S, dS', X, dX as kept values
 */
#include "passes/passes.h"

/* `v` does the work of a matrix operation, itself or by an operand. */
static bool works(const Kernel *k, const Inst *i) {
    bool yes = op_info[i->op].class == CLASS_CHUNK && !(value_is_cheap(i) && kernel_is_gradient(k));
    for (int j = 0; j < i->nargs; j++)
        yes = yes || (i->arg[j] >= 0 && inst_at(k, i->arg[j])->role != ROLE_none);
    return yes;
}

static Role role_of(const Kernel *k, const Inst *i, bool touches) {
    if (touches || i->op == OP_out || i->op == OP_next)
        return ROLE_chain;
    if (!works(k, i))
        return ROLE_none;
    return shape_has(i->shape, AXIS_V) ? ROLE_chain : ROLE_factor;
}

/* What `op` needs; all of it false when there is no such operation. */
static bool *needed_by(const Kernel *k, Op op) {
    bool *mark = NEW_ARRAY(k->arena, bool, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == op)
            value_mark(k, v, mark);
    return mark;
}

static void gradient_roles(Kernel *k, const bool *touches) {
    const bool *forward = needed_by(k, OP_next), *reverse = needed_by(k, OP_conext);
    for (int v = 0; v < k->inst.count; v++) {
        Inst *i = &k->inst.at[v];
        bool chained = touches[v] || shape_has(i->shape, AXIS_V);
        if (i->op == OP_state)
            i->role = ROLE_chain;
        else if (i->op == OP_costate)
            i->role = ROLE_reverse;
        else if (i->op == OP_out)
            i->role = ROLE_grad;
        else if (!touches[v] && !works(k, i))
            i->role = ROLE_none;
        else if (!forward[v] && !reverse[v])
            i->role = ROLE_grad;
        else
            i->role = !chained ? ROLE_factor : forward[v] ? ROLE_chain : ROLE_reverse;
    }
}

/* Values that a later role takes from an earlier one. */
static void mark_kept(Kernel *k) {
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        for (int j = 0; i->role > ROLE_factor && j < i->nargs; j++) {
            Inst *arg = i->arg[j] < 0 ? NULL : &k->inst.at[i->arg[j]];
            if (arg && arg->role != ROLE_none && arg->role < i->role)
                arg->keep = true;
        }
    }
}

void pass_roles(Kernel *k) {
    const bool *touches = value_touches_state(k);
    for (int v = 0; v < k->inst.count; v++) {
        Inst *i = &k->inst.at[v];
        i->elem = ELEM_f32;
        i->keep = false;
        i->role = ROLE_none;
    }
    if (kernel_is_gradient(k))
        gradient_roles(k, touches);
    else
        for (int v = 0; v < k->inst.count; v++)
            k->inst.at[v].role = role_of(k, inst_at(k, v), touches[v]);
    mark_kept(k);
    k->level = LEVEL_tile;
}
