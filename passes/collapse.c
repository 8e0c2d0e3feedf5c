/* collapse: what a spec does not have vanishes from its chunk system.
 *
 * needs  a chunk-level kernel
 * gives  the same without absent terms: unused values dropped, equal ones merged
 *
 *     no erase   e = 0: T = 0, A = I       M = rename Aq    P = rename Kt    X = c
 *     no decay   a = 1: scores(e, p)       E = e    Kt = p    Qg = q    next = S + P' X
 *
 * Nothing is said of specs here: facts "is zero", "is one", "is the identity" spread from constants
 * through the operations, and each operation drops what they make idle. A value keeps its shape. */
#include "passes/passes.h"

typedef enum { KNOWN_nothing, KNOWN_zero, KNOWN_one, KNOWN_identity } Known;

typedef struct Collapse {
    Kernel *new;
    Known *known; /* by value of the old kernel */
    int *map;     /* value of the old kernel -> of the new one with the same shape */
} Collapse;

static bool has_shape(const Collapse *c, int v, Shape s) {
    return shape_equal(inst_at(c->new, v)->shape, s);
}

static Known known_weave(const Collapse *c, const Inst *i) {
    Known all = i->num == 0 ? KNOWN_zero : i->num == 1 ? KNOWN_one : KNOWN_nothing;
    for (int j = 0; j < i->nargs; j++)
        if (c->known[i->arg[j]] != all)
            return KNOWN_nothing;
    return all;
}

static Known known(const Collapse *c, const Inst *i) {
    Known a = i->nargs > 0 && i->arg[0] >= 0 ? c->known[i->arg[0]] : KNOWN_nothing;
    Known b = i->nargs > 1 && i->arg[1] >= 0 ? c->known[i->arg[1]] : KNOWN_nothing;
    bool any_zero = a == KNOWN_zero || b == KNOWN_zero;
    switch (i->op) {
    case OP_const:
        return i->num == 0 ? KNOWN_zero : i->num == 1 ? KNOWN_one : KNOWN_nothing;
    case OP_weave:
        return known_weave(c, i);
    case OP_mul:
        return any_zero ? KNOWN_zero : a == KNOWN_one && b == KNOWN_one ? KNOWN_one : KNOWN_nothing;
    case OP_scores: case OP_contract:
        return any_zero ? KNOWN_zero : KNOWN_nothing;
    case OP_add: case OP_sub:
        return a == KNOWN_zero && b == KNOWN_zero ? KNOWN_zero : KNOWN_nothing;
    case OP_neg: case OP_tail: case OP_carry: case OP_sum:
        return a == KNOWN_zero ? KNOWN_zero : KNOWN_nothing;
    case OP_rename:
        return a == KNOWN_identity ? KNOWN_nothing : a;
    case OP_total:
        return a == KNOWN_one ? KNOWN_one : KNOWN_nothing;
    case OP_solve:
        return a == KNOWN_zero ? KNOWN_identity : KNOWN_nothing;
    default:
        return KNOWN_nothing;
    }
}

/* The operand that the result equals, or -1. */
static int idle(const Collapse *c, const Inst *i) {
    if (i->nargs < 2 || i->arg[1] < 0)
        return -1;
    Known a = c->known[i->arg[0]], b = c->known[i->arg[1]];
    Known unit = i->op == OP_mul ? KNOWN_one : KNOWN_zero;
    if ((i->op == OP_mul || i->op == OP_add) && a == unit)
        return i->arg[1];
    if ((i->op == OP_mul || i->op == OP_add || i->op == OP_sub) && b == unit)
        return i->arg[0];
    if ((i->op == OP_carry || i->op == OP_tail) && b == KNOWN_one)
        return i->arg[0];
    return -1;
}

/* A contraction with the identity over axis U or R only renames it to the other. */
static int with_identity(Collapse *c, const Inst *i) {
    for (int j = 0; j < 2; j++) {
        if (c->known[i->arg[j]] != KNOWN_identity)
            continue;
        return emit(c->new, (Inst){.op = OP_rename, .nargs = 1,
                                   .arg = (int[]){c->map[i->arg[1 - j]]}, .index = i->axis,
                                   .axis = i->axis == AXIS_U ? AXIS_R : AXIS_U, .span = i->span});
    }
    return -1;
}

/* Constant operands of a weave need no vector of their own as long as another one has it. */
static void plain_operands(Collapse *c, const Inst *i, int *arg) {
    for (int j = 0; j < i->nargs; j++) {
        Known known_arg = c->known[i->arg[j]];
        if (known_arg != KNOWN_zero && known_arg != KNOWN_one)
            continue;
        int old = arg[j];
        Shape s;
        arg[j] = emit_const(c->new, known_arg == KNOWN_one);
        Inst trial = *i;
        trial.arg = arg;
        if (inst_shape(c->new, &trial, &s) || !shape_equal(s, i->shape))
            arg[j] = old;
    }
}

static int rewrite(Collapse *c, const Inst *i) {
    int same = idle(c, i);
    if (same >= 0 && has_shape(c, c->map[same], i->shape))
        return c->map[same];
    if (i->op == OP_contract) {
        int renamed = with_identity(c, i);
        if (renamed >= 0)
            return renamed;
    }
    int *arg = NEW_ARRAY(c->new->arena, int, i->nargs + 1);
    for (int j = 0; j < i->nargs; j++)
        arg[j] = i->arg[j] < 0 ? -1 : c->map[i->arg[j]];
    if (i->op == OP_weave)
        plain_operands(c, i, arg);
    bool decayed = i->op == OP_scores || i->op == OP_carry || i->op == OP_tail;
    int decay = i->nargs - 1;
    if (decayed && i->arg[decay] >= 0 && c->known[i->arg[decay]] == KNOWN_one &&
        !shape_features(inst_at(c->new, arg[decay])->shape).rank)
        arg[decay] = -1;
    if (i->op == OP_sub && c->known[i->arg[0]] == KNOWN_zero && has_shape(c, arg[1], i->shape))
        return emit1(c->new, OP_neg, arg[1], i->span);
    return emit_copy(c->new, i, arg);
}

void pass_collapse(Kernel *k) {
    Collapse c = {.new = kernel_like(k), .known = NEW_ARRAY(k->arena, Known, k->inst.count),
                  .map = NEW_ARRAY(k->arena, int, k->inst.count)};
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        c.known[v] = known(&c, i);
        c.map[v] = rewrite(&c, i);
    }
    k->inst = c.new->inst;
    kernel_simplify(k);
}
