/* peel: the scalar factors of a row multiply first, so that its vectors are scaled once; those of a sum
 * multiply what it gives.
 *
 * needs  a chunk-level kernel
 * gives  the same with fewer products of vectors, unused values dropped
 *
 *     %ks = mul %kn, %strength               %s = mul %alpha, %strength
 *     %e = mul %alpha, %ks            ->     %e = mul %s, %kn
 *
 *     %kn = mul %k, %r                       %xy = mul %k, %x
 *     %xy = mul %kn, %x                      %t = sum %xy over K
 *     %y = sum %xy over K             ->     %y = mul %r, %t
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

/* x * rsqrt(y) where y is made of x. */
static bool is_normalised(const Kernel *k, const Inst *i) {
    for (int side = 0; side < 2; side++) {
        const Inst *root = inst_at(k, i->arg[side]);
        if (root->op != OP_rsqrt)
            continue;
        bool *made_of = NEW_ARRAY(k->arena, bool, k->inst.count);
        value_mark(k, root->arg[0], made_of);
        if (made_of[i->arg[1 - side]])
            return true;
    }
    return false;
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

/* v without its factors that lack `axis`, which are added to p->factor[]. Products that something else uses
 * too are not made twice. */
static int without_scalars(Peel *p, int v, int axis) {
    const Inst *i = inst_at(p->old, v);
    if (i->op != OP_mul || p->count == FACTORS)
        return p->map[v];
    for (int side = 0; side < 2; side++) {
        if (!shape_has(inst_at(p->old, i->arg[side])->shape, axis)) {
            p->factor[p->count++] = i->arg[side];
            return without_scalars(p, i->arg[1 - side], axis);
        }
    }
    if (p->uses[v] > 1)
        return p->map[v];
    int before = p->count, x = without_scalars(p, i->arg[0], axis);
    int y = without_scalars(p, i->arg[1], axis);
    return p->count > before ? emit2(p->new, OP_mul, x, y, i->span) : p->map[v];
}

/* The sum at v with scalars behind it, or -1 where it has none. `matrix`: the chunk system takes it. */
static int scalars_last(Peel *p, int v, bool matrix) {
    const Inst *i = inst_at(p->old, v);
    if (i->op != OP_sum || matrix || p->uses[i->arg[0]] > 1)
        return -1;
    p->count = 0;
    int x = without_scalars(p, i->arg[0], i->axis);
    if (p->count == 0)
        return -1;
    int arg[] = {x}, sum = emit_copy(p->new, i, arg);
    for (int f = 0; f < p->count; f++)
        sum = emit2(p->new, OP_mul, p->map[p->factor[f]], sum, i->span);
    return sum;
}

/* How many operations use each value, and whether one of them belongs to the chunk system. */
static void count_uses(const Kernel *k, int *uses, bool *matrix) {
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        for (int j = 0; j < i->nargs; j++) {
            if (i->arg[j] < 0)
                continue;
            uses[i->arg[j]]++;
            matrix[i->arg[j]] = matrix[i->arg[j]] || op_info[i->op].class == CLASS_CHUNK;
        }
    }
}

/* The kernel with every value that has another form in that one. */
static void rewrite(Kernel *k, bool sums) {
    int n = k->inst.count, *uses = NEW_ARRAY(k->arena, int, n);
    bool *matrix = NEW_ARRAY(k->arena, bool, n);
    count_uses(k, uses, matrix);
    Peel p = {.old = k, .new = kernel_like(k), .uses = uses, .map = NEW_ARRAY(k->arena, int, n)};
    for (int v = 0; v < n; v++) {
        const Inst *i = inst_at(k, v);
        p.map[v] = sums ? scalars_last(&p, v, matrix[v]) : scalars_first(&p, v);
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

void pass_peel(Kernel *k) {
    rewrite(k, true);
    rewrite(k, false);
}
