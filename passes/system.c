/* system: the chunk system of a tile kernel, named and counted for `gdrc explain`.
 *
 * Names are algorithm.md's: T, A, E, X, M, P, D, and per out Aq and Q; Z stands for what updates
 * write apart from reads, p, e, a for the rows of keys, erase rows and decays. */
#include "passes/passes.h"

#include <string.h>

/* The part a value plays as an operand of the lattice operations. */
static bool is_decay_operand(const Kernel *k, int v) {
    for (int u = v + 1; u < k->inst.count; u++) {
        const Inst *i = inst_at(k, u);
        int at = i->op == OP_scores ? 2 : i->op == OP_carry || i->op == OP_tail ? 1
               : i->op == OP_total ? 0 : -1;
        if (at >= 0 && at < i->nargs && i->arg[at] == v)
            return true;
    }
    return false;
}

static bool feeds(const Kernel *k, int v, Op op, int axis) {
    for (int u = v + 1; u < k->inst.count; u++) {
        const Inst *i = inst_at(k, u);
        for (int j = 0; j < i->nargs; j++)
            if (i->op == op && i->arg[j] == v && (axis < 0 || i->axis == axis))
                return true;
    }
    return false;
}

/* NULL: no matrix of its own, written out where it is used. */
static const char *matrix_name(const Kernel *k, int v) {
    const Inst *i = inst_at(k, v);
    bool rows = shape_has(i->shape, AXIS_R), values = shape_has(i->shape, AXIS_V);
    bool keys = shape_has(i->shape, AXIS_K), unknowns = shape_has(i->shape, AXIS_U);
    switch (i->op) {
    case OP_weave:
        if (unknowns && !rows)
            return is_decay_operand(k, v) ? "a" : "p";
        return unknowns ? "T" : values ? "Z" : feeds(k, v, OP_contract, AXIS_K) ? "E" : "e";
    case OP_scores:
        return rows ? "T" : feeds(k, v, OP_weave, -1) ? NULL : "Aq";
    case OP_solve: return "A";
    case OP_carry:
        return rows ? "E" : feeds(k, v, OP_weave, -1) ? NULL : "Q";
    case OP_tail: return "Kt";
    case OP_total: return "D";
    case OP_rename: case OP_contract:
        if (i->op == OP_contract && i->axis != AXIS_U)
            return NULL;
        return shape_has(i->shape, AXIS_C) ? "M" : keys ? "P" : NULL;
    case OP_sub: case OP_add: case OP_neg: return rows && values ? "X" : NULL;
    default: return NULL;
    }
}

/* The name itself, or name_2, name_3, ... where ports or other matrices have it. */
static const char *numbered(const Kernel *k, const Names *n, const char *name) {
    int same = kernel_find_port(k, name, false) >= 0 || kernel_find_port(k, name, true) >= 0;
    for (int v = 0; v < k->inst.count; v++) {
        size_t len = strlen(name);
        const char *other = n->name[v];
        same += other && !strncmp(other, name, len) && (!other[len] || other[len] == '_');
    }
    if (!same)
        return name;
    Buf b;
    buf_init(&b, k->arena);
    buf_printf(&b, "%s_%d", name, same + 1);
    return b.text;
}

static void add_row(SystemTable *t, const Kernel *k, const char *name, int v, const char *text) {
    Buf b;
    buf_init(&b, k->arena);
    if (v >= 0)
        shape_print(k, inst_at(k, v)->shape, &b);
    VEC_PUSH(k->arena, &t->row, ((SystemRow){name, v >= 0 ? b.text : "", text}));
}

static const char *definition(Names *n, int v) {
    Buf b;
    buf_init(&b, n->k->arena);
    names_define(n, v, &b);
    return b.text;
}

/* Multiply-adds, full matrices; the inverse of an n x n triangle takes n^3/3. Cotangents of decays
 * count as elementwise work. */
static double operations(const Kernel *k, const Inst *i) {
    double rows = k->axis.at[AXIS_R].size, n = (double)shape_elements(k, i->shape);
    const Shape none = shape_scalar();
    Shape a = i->nargs > 0 ? inst_at(k, i->arg[0])->shape : none;
    Shape b = i->nargs > 1 ? inst_at(k, i->arg[1])->shape : none;
    switch (i->op) {
    case OP_solve: return rows * rows * rows / 3;
    case OP_contract: return n * k->axis.at[i->axis].size;
    case OP_scores:
        return n * k->axis.at[shape_union(shape_features(a), shape_features(b)).axis[0]].size;
    case OP_scores_x: return n * k->axis.at[AXIS_U].size;
    case OP_scores_y: return n * k->axis.at[shape_has(a, AXIS_R) ? AXIS_R : AXIS_C].size;
    default: return 0;
    }
}

double system_flops(const Kernel *k, Role role) {
    double flops = 0;
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->role == role)
            flops += 2 * operations(k, inst_at(k, v));
    return flops / k->axis.at[AXIS_C].size;
}

int save_every(int64_t K, int64_t V, int64_t chunk) {
    int64_t each = (K + V) * chunk;
    return (int)((16 * K * V + each - 1) / each);
}

void system_cost(const Kernel *k, Cost *c) {
    const double tera = 1e12;
    *c = (Cost){.chunk = k->axis.at[AXIS_C].size};
    for (int v = 0; v < k->inst.count; v++)
        c->flops += 2 * operations(k, inst_at(k, v)) / c->chunk;
    for (int i = 0; i < k->in.count; i++)
        if (!k->in.at[i].is_param)
            c->bytes += 2 * (double)shape_elements(k, k->in.at[i].shape);
    for (int o = 0; o < k->out.count; o++)
        if (!k->out.at[o].is_param)
            c->bytes += 2 * (double)shape_elements(k, k->out.at[o].shape);
    c->ms_memory = 1e3 * 1e6 * c->bytes / (COST_TERABYTES * tera);
    c->ms_compute = 1e3 * 1e6 * c->flops / (COST_TERAFLOPS * tera);
}

void system_describe(const Kernel *tile, SystemTable *t) {
    const Kernel *k = tile;
    *t = (SystemTable){0};
    Names n = names_new(k);
    const bool *touches = value_touches_state(k);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        const char *name = matrix_name(k, v);
        if (i->op == OP_out) {
            add_row(t, k, k->out.at[i->index].name, i->arg[0],
                    definition(&n, i->arg[0]));
        } else if (i->op == OP_next) {
            add_row(t, k, "next", i->arg[0], definition(&n, i->arg[0]));
        } else if (name) {
            name = numbered(k, &n, name);
            add_row(t, k, name, v, definition(&n, v));
            n.name[v] = name;
        } else if (n.name[v] && touches[v]) {
            add_row(t, k, n.name[v], v, definition(&n, v));
        }
    }
    system_cost(k, &t->cost);
}
