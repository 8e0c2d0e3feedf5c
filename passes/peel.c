/* peel: the scalar factors of a row multiply first, so that its vectors are scaled once.
 *
 * needs  a chunk-level kernel
 * gives  the same with fewer products of vectors, unused values dropped
 *
 *     %ks = mul %kn, %strength               %s = mul %alpha, %strength
 *     %e = mul %alpha, %ks            ->     %e = mul %s, %kn
 *
 * A product is taken apart down to factors that something else uses too, or that are normalised
 * vectors x * rsqrt(sum(x * x) + c), which range analysis knows to lie in [-1, 1]. Matrix operands
 * are evaluated an element at a time, a scalar once a row: that is the gain. */
#include "passes/passes.h"

enum { FACTORS = 16 };

typedef struct Peel {
    const Kernel *old;
    Kernel *new;
    const int *uses;
    int *map;
    int factor[FACTORS];   /* of the product at hand: values of the old kernel */
    int count;
    int products;          /* of vectors, as the old kernel has them */
} Peel;

static bool is_vector(const Kernel *k, int v) {
    return shape_features(inst_at(k, v)->shape).rank > 0;
}

static bool is_normalised(const Kernel *k, const Inst *i) {
    return inst_at(k, i->arg[0])->op == OP_rsqrt || inst_at(k, i->arg[1])->op == OP_rsqrt;
}

/* The factors of v, which stands inside the product; false when there are too many. */
static bool take_apart(Peel *p, int v, bool outermost) {
    const Inst *i = inst_at(p->old, v);
    bool inner = i->op == OP_mul && !is_normalised(p->old, i) && (outermost || p->uses[v] == 1);
    if (inner) {
        p->products += is_vector(p->old, v);
        return take_apart(p, i->arg[0], false) && take_apart(p, i->arg[1], false);
    }
    if (p->count == FACTORS)
        return false;
    p->factor[p->count++] = v;
    return true;
}

static int product(Peel *p, bool vectors) {
    int all = -1;
    for (int f = 0; f < p->count; f++) {
        if (is_vector(p->old, p->factor[f]) != vectors)
            continue;
        int v = p->map[p->factor[f]];
        all = all < 0 ? v : emit2(p->new, OP_mul, all, v, (Span){0, 0});
    }
    return all;
}

/* The product at v with its scalars first, or -1 when that saves nothing. */
static int scalars_first(Peel *p, int v) {
    const Inst *i = inst_at(p->old, v);
    if (i->op != OP_mul || !is_vector(p->old, v) || is_normalised(p->old, i))
        return -1;
    int vectors = 0;
    p->count = p->products = 0;
    if (!take_apart(p, v, true))
        return -1;
    for (int f = 0; f < p->count; f++)
        vectors += is_vector(p->old, p->factor[f]);
    bool scaled = vectors < p->count;
    if (vectors - 1 + scaled >= p->products)
        return -1;
    int s = product(p, false), x = product(p, true);
    return emit2(p->new, OP_mul, s, x, i->span);
}

void pass_peel(Kernel *k) {
    int *uses = NEW_ARRAY(k->arena, int, k->inst.count);
    for (int v = 0; v < k->inst.count; v++)
        for (int j = 0; j < inst_at(k, v)->nargs; j++)
            if (inst_at(k, v)->arg[j] >= 0)
                uses[inst_at(k, v)->arg[j]]++;
    Peel p = {.old = k, .new = kernel_like(k), .uses = uses,
              .map = NEW_ARRAY(k->arena, int, k->inst.count)};
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        p.map[v] = scalars_first(&p, v);
        if (p.map[v] >= 0)
            continue;
        int *arg = NEW_ARRAY(k->arena, int, i->nargs + 1);
        for (int j = 0; j < i->nargs; j++)
            arg[j] = i->arg[j] < 0 ? -1 : p.map[i->arg[j]];
        p.map[v] = emit_copy(p.new, i, arg);
    }
    k->inst = p.new->inst;
    kernel_simplify(k);
}
