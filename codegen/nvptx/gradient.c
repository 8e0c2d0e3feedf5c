/* Recognising the gradient system in a tile-level gradient kernel: the forward chunk system that it
 * contains, and for each of its families what the adjoint has made of it.
 *
 *     cotangents of scores and carried rows     contract(left, Zt), contract(left, S)
 *     of keys at the chunk's end                contract(dS', Zt)
 *     of rows, keys, decays                     sums of +-carry, scores_x; tail, scores_y; their _a
 *
 * Such a sum is computed as one. In the kernel it stands as its terms, scattered through a tree of
 * additions; we give it at its first term, and the others count as zero. That is right when all of them
 * end in the same sum, each used once, which is checked.
 */
#include "codegen/nvptx/gradient.h"

static bool fail(const char **why, const char *text) {
    *why = text;
    return false;
}

/* The value contract(a, b) over `axis`, its operands in either order and by whatever name of their
 * axes; -1: none. */
static int find_contract(const Kernel *k, int a, int b, int axis) {
    for (int v = 0; v < k->inst.count && a >= 0 && b >= 0; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op != OP_contract || (axis >= 0 && i->axis != axis))
            continue;
        int x = nv_strip(k, i->arg[0]), y = nv_strip(k, i->arg[1]);
        if ((x == a && y == b) || (x == b && y == a))
            return v;
    }
    return -1;
}

/* The value op(x, ...) at `place`; -1: none. */
static int find_of(const Kernel *k, Op op, int x, int place) {
    for (int v = 0; v < k->inst.count && x >= 0; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == op && nv_strip(k, i->arg[0]) == x && (place < 0 || i->place == place))
            return v;
    }
    return -1;
}

/* the forward system ----------------------------------------------------------------------------- */

static int carried_row(const Kernel *k, int x, int place, bool erase) {
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_carry && i->arg[0] == x && (erase || i->place == place))
            return v;
    }
    return x;
}

static int find_mix(const Kernel *k, int scores, int solve) {
    int m = solve >= 0 ? find_contract(k, scores, solve, AXIS_U) : -1;
    return m >= 0 ? m : scores;
}

static bool add_family(const Kernel *k, System *s, int scores, int solve, const char **why) {
    const Inst *i = inst_at(k, scores);
    bool erase = solve >= 0 && nv_strip(k, inst_at(k, solve)->arg[0]) == scores;
    if (s->families == MAX_FAMILIES)
        return fail(why, "more reads in the outs than the GPU kernels hold");
    s->family[erase ? 0 : s->families++] = (Family){
        .x = i->arg[0], .scores = scores, .carried = carried_row(k, i->arg[0], i->place, erase),
        .read = -1, .mix = erase ? -1 : find_mix(k, scores, solve), .mixed = -1,
        .inclusive = !erase && i->place > 0,
        .position = erase ? -1 : i->place > 0 ? i->place - 1 : 0};
    if (s->p >= 0 && (s->p != i->arg[1] || s->a != i->arg[2]))
        return fail(why, "rows of several systems in one gradient");
    s->p = i->arg[1];
    s->a = i->arg[2];
    return true;
}

static bool forward_system(const Kernel *k, System *s, const char **why) {
    int solve = nv_find_op(k, OP_solve);
    s->erase = solve >= 0;
    s->families = s->erase;
    s->p = s->a = -1;
    if (solve >= 0 && inst_at(k, nv_strip(k, inst_at(k, solve)->arg[0]))->op != OP_scores)
        return fail(why, "an update reads the state before earlier updates of its token, and the "
                         "GPU chunk kernels hold rows in time order");
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_scores && !add_family(k, s, v, solve, why))
            return false;
    if (s->p < 0)
        return fail(why, "no out reads the state");
    s->a_key = s->a >= 0 && shape_has(inst_at(k, s->a)->shape, AXIS_K);
    bool *of_next = NEW_ARRAY(k->arena, bool, k->inst.count);
    value_mark(k, nv_find_op(k, OP_next), of_next);
    s->X = -1;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        bool writes = i->op == OP_contract && i->axis != AXIS_K && i->axis != AXIS_V;
        if (!of_next[v] || !writes || !shape_has(i->shape, AXIS_K) || !shape_has(i->shape, AXIS_V))
            continue;
        for (int j = 0; j < 2; j++)
            if (shape_has(inst_at(k, i->arg[j])->shape, AXIS_V))
                s->X = nv_strip(k, i->arg[j]);
    }
    return s->X >= 0 || fail(why, "the update writes nothing");
}

/* sums of cotangents ----------------------------------------------------------------------------- */

static int only_user(const Kernel *k, int v) {
    int user = -1;
    for (int u = 0; u < k->inst.count; u++)
        for (int j = 0; j < inst_at(k, u)->nargs; j++)
            if (inst_at(k, u)->arg[j] == v) {
                if (user >= 0)
                    return -1;
                user = u;
            }
    return user;
}

/* The sum that term v ends in, and whether it is subtracted there. */
static int top_of(const Kernel *k, int v, bool *minus) {
    *minus = false;
    for (;;) {
        int u = only_user(k, v);
        const Inst *i = u < 0 ? NULL : inst_at(k, u);
        if (!i || (i->op != OP_add && i->op != OP_sub && i->op != OP_neg))
            return v;
        if (i->op == OP_neg || (i->op == OP_sub && i->arg[1] == v))
            *minus = !*minus;
        v = u;
    }
}

/* Adds term v to the sum that is given at `root`. */
static bool join(const Kernel *k, Gradient *g, int *root, int v, bool *minus, const char **why) {
    bool here, first;
    if (v < 0)
        return true;
    if (*root < 0)
        *root = v;
    else
        g->zero[v] = true;
    if (top_of(k, v, &here) != top_of(k, *root, &first))
        return fail(why, "terms of one gradient are used apart");
    *minus = here != first;
    return true;
}

/* family f --------------------------------------------------------------------------------------- */

static bool find_left(const Kernel *k, Gradient *g, int f, const char **why) {
    const Family *fam = &g->s.family[f];
    GradFamily *gf = &g->family[f];
    bool erase = g->s.erase && f == 0;
    gf->left = gf->dw = gf->dg = gf->root = -1;
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        if (i->op == OP_scores_y && i->arg[1] == fam->x &&
            (erase || i->place == inst_at(k, fam->scores)->place))
            gf->dg = nv_strip(k, i->arg[0]);
    }
    if (gf->dg < 0 || inst_at(k, gf->dg)->op != OP_contract)
        return fail(why, "the cotangent of the scores is no product");
    const Inst *i = inst_at(k, gf->dg);
    int x = nv_strip(k, i->arg[0]), y = nv_strip(k, i->arg[1]);
    if (i->axis != AXIS_V || (x != g->zt && y != g->zt))
        return fail(why, "the cotangent of the scores is no product with the unknowns");
    gf->left = x == g->zt ? y : x;
    gf->dw = find_contract(k, gf->left, nv_find_op(k, OP_state), AXIS_V);
    return !erase || gf->left == g->dX || fail(why, "the system has cotangents besides dX");
}

static bool find_terms(const Kernel *k, Gradient *g, int f, const char **why) {
    const Family *fam = &g->s.family[f];
    GradFamily *gf = &g->family[f];
    bool decays = g->s.a >= 0, minus[3] = {false, false, false};
    int place = g->s.erase && f == 0 ? -1 : inst_at(k, fam->scores)->place;
    int carry = decays ? find_of(k, OP_carry, gf->dw, place) : gf->dw, carry_a = -1;
    int scores_x = find_of(k, OP_scores_x, gf->dg, place);
    int scores_y = find_of(k, OP_scores_y, gf->dg, place);
    int scores_a = find_of(k, OP_scores_a, gf->dg, place);
    for (int v = 0; v < k->inst.count && gf->dw >= 0; v++) {
        bool *needs = NEW_ARRAY(k->arena, bool, k->inst.count);
        if (inst_at(k, v)->op != OP_carry_a)
            continue;
        value_mark(k, v, needs);
        carry_a = needs[gf->dw] ? v : carry_a;
    }
    int terms_a[2] = {carry_a, scores_a};
    if (!join(k, g, &gf->root, carry, &minus[0], why) ||
        !join(k, g, &gf->root, scores_x, &minus[1], why))
        return false;
    if (minus[0] != minus[1])
        return fail(why, "terms of one gradient have two signs");
    if (!join(k, g, &g->p_root, scores_y, &gf->minus, why))
        return false;
    for (int j = 0; j < 2; j++) {
        if (!join(k, g, &g->a_root, terms_a[j], &minus[2], why))
            return false;
        if (terms_a[j] >= 0 && minus[2] != gf->minus)
            return fail(why, "terms of one gradient have two signs");
        g->a_log = g->a_log || (terms_a[j] >= 0 && inst_at(k, terms_a[j])->index == 1);
    }
    return true;
}

/* The keys' and decays' terms that belong to no family: first, so that the sums are given at them. */
static bool find_ends(const Kernel *k, Gradient *g, const char **why) {
    bool minus = false;
    int costate = nv_find_op(k, OP_costate), tail_a = nv_find_op(k, OP_tail_a);
    int total_a = nv_find_op(k, OP_total_a);
    g->dkt = find_contract(k, costate, g->zt, AXIS_V);
    int tail = g->s.a >= 0 ? find_of(k, OP_tail, g->dkt, -1) : -1;
    g->p_root = tail;
    for (int v = 0; v < k->inst.count && tail < 0 && g->dkt >= 0; v++)
        if (nv_strip(k, v) == g->dkt && shape_has(inst_at(k, v)->shape, AXIS_U))
            g->p_root = v;
    g->a_root = tail_a;
    g->dd = total_a < 0 ? -1 : inst_at(k, total_a)->arg[0];
    if (!join(k, g, &g->a_root, total_a == g->a_root ? -1 : total_a, &minus, why))
        return false;
    int of_a = tail_a >= 0 ? tail_a : total_a;
    g->a_log = of_a >= 0 && inst_at(k, of_a)->index == 1;
    return g->a_root < 0 || total_a < 0 || !minus || fail(why, "terms of one gradient have two signs");
}

/* dX: what its uses call it. Nothing erased: the sum of contract(dS', P) and contract(dO_f, M_f). */
static int find_dx(const Kernel *k, const Gradient *g) {
    int costate = nv_find_op(k, OP_costate), v = -1, best = -1;
    for (int i = 0; i < k->inst.count; i++) {
        const Inst *in = inst_at(k, i);
        if (in->op == OP_contract && in->axis == AXIS_K &&
            (nv_strip(k, in->arg[0]) == costate || nv_strip(k, in->arg[1]) == costate))
            v = i;
    }
    for (int f = g->s.erase; v < 0 && f < g->s.families; f++)
        for (int i = 0; i < k->inst.count; i++) {
            const Inst *in = inst_at(k, i);
            if (in->op == OP_contract && in->axis == AXIS_C && shape_has(in->shape, AXIS_R))
                v = i;
        }
    for (int u = v; u >= 0;) { /* up the sum, as far as its terms are of this kind */
        best = u;
        u = only_user(k, u);
        if (u < 0 || inst_at(k, u)->op != OP_add)
            break;
        for (int j = 0; j < 2; j++) {
            const Inst *term = inst_at(k, inst_at(k, u)->arg[j]);
            bool product = term->op == OP_contract && shape_has(term->shape, AXIS_R);
            if (inst_at(k, u)->arg[j] != best && !product)
                return best;
        }
    }
    return best;
}

/* The outs' reads, as far as gradients need them; each is used in one sum with its mixed part. */
static bool find_reads(const Kernel *k, Gradient *g, const char **why) {
    bool *needed = NEW_ARRAY(k->arena, bool, k->inst.count);
    int state = nv_find_op(k, OP_state);
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_out)
            value_mark(k, v, needed);
    for (int f = 0; f < g->s.families; f++) {
        GradFamily *gf = &g->family[f];
        const Family *fam = &g->s.family[f];
        bool erase = g->s.erase && f == 0;
        gf->read = erase ? -1 : find_contract(k, nv_strip(k, fam->carried), state, AXIS_K);
        gf->mixed = erase ? -1 : find_contract(k, nv_strip(k, fam->mix), g->X, -1);
        if (gf->read < 0 || !needed[gf->read]) {
            gf->read = gf->mixed = -1;
            continue;
        }
        int sum = only_user(k, gf->read);
        if (gf->mixed < 0 || sum < 0 || sum != only_user(k, gf->mixed) ||
            inst_at(k, sum)->op != OP_add)
            return fail(why, "an out's reads of the state and of its chunk are used apart");
        g->zero[gf->mixed] = true;
    }
    return true;
}

bool nv_gradient(Arena *arena, const Kernel *k, Gradient *g, const char **why) {
    CHECK(k->level == LEVEL_tile && kernel_is_gradient(k));
    *g = (Gradient){.zero = NEW_ARRAY(arena, bool, k->inst.count), .p_root = -1, .a_root = -1};
    if (!nv_system_sizes(arena, k, &g->s, why) || !forward_system(k, &g->s, why))
        return false;
    nv_system_scales(k, &g->s);
    int solve = nv_find_op(k, OP_solve);
    if (g->s.erase) {
        Family *erase = &g->s.family[0];
        erase->read = find_contract(k, erase->carried, nv_find_op(k, OP_state), AXIS_K);
    }
    g->X = g->s.X;
    g->dX = find_dx(k, g);
    g->zt = g->s.erase ? find_contract(k, solve, g->X, AXIS_R) : g->X;
    if (g->dX < 0 || g->zt < 0)
        return fail(why, "no gradient reaches the update");
    if (!find_ends(k, g, why))
        return false;
    for (int f = 0; f < g->s.families; f++)
        if (!find_left(k, g, f, why) || !find_terms(k, g, f, why))
            return false;
    if (!find_reads(k, g, why))
        return false;
    nv_system_place(&g->s);
    g->s.scan = scan_plan(k, &g->s, g);
    if (!nv_record_sums(k, &g->s, why))
        return false;
    if (g->s.scan->rounds > SCAN_ROUNDS_MAX)
        return fail(why, "running sums of running sums, more than four deep, have no GPU chunk gradient");
    if (g->a_root >= 0 && !g->a_log && g->s.a_key) {
        Range r = value_range(k, g->s.a);
        if (!(r.lo > 0))
            return fail(why, "a decay vector that may be 0 and is no exponential has no GPU chunk gradient");
    }
    return true;
}

bool nv_system_of(Arena *arena, const Kernel *k, const CgOptions *opt, System *s, const char **why) {
    Gradient g;
    if (kernel_is_gradient(k)) {
        bool ok = nv_gradient(arena, k, &g, why);
        if (ok)
            *s = g.s;
        return ok;
    }
    if (!nv_system(arena, k, s, why))
        return false;
    return (!opt->save_all && opt->save_every == 0) || nv_system_keep(k, s, opt->save_all, why);
}
