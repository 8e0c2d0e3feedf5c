/* Kernel -> text. The text is the .gir language that parse.c reads back to an equal kernel (spans
 * aside); the grammar stands at the top of parse.c.
 *
 * The first five axes are written by position in the `axis` line. Elsewhere an axis is written by
 * its name, or as @number when an earlier axis has the same name. */
#include "ir/ir.h"

#include <math.h>

const char *level_name(Level l) {
    static const char *const name[] = {"recurrence", "chunk", "tile"};
    return name[l];
}

const char *elem_name(Elem e) {
    static const char *const name[] = {"f32", "bf16", "f16", "f64"};
    return name[e];
}

int elem_size(Elem e) {
    return e == ELEM_f64 ? 8 : e == ELEM_f32 ? 4 : 2;
}

const char *role_name(Role r) {
    static const char *const name[] = {"none", "factor", "chain", "reverse", "grad"};
    return name[r];
}

const char *decay_name(DecayClass d) {
    static const char *const name[] = {"none", "scalar", "key", "value", "mixed"};
    return name[d];
}

static void print_axis(const Kernel *k, int axis, Buf *out) {
    int first = 0;
    while (first < axis && k->axis.at[first].name != k->axis.at[axis].name)
        first++;
    if (first == axis)
        buf_puts(out, k->axis.at[axis].name);
    else
        buf_printf(out, "@%d", axis);
}

void shape_print(const Kernel *k, Shape s, Buf *out) {
    buf_puts(out, "[");
    for (int i = 0; i < s.rank; i++) {
        if (i)
            buf_puts(out, ",");
        print_axis(k, s.axis[i], out);
    }
    buf_puts(out, "]");
}

static void print_range(double lo, double hi, Buf *out) {
    if (lo == -INFINITY && hi == INFINITY)
        return;
    if (lo == -INFINITY) {
        buf_puts(out, " <= ");
        buf_number(out, hi);
    } else if (hi == INFINITY) {
        buf_puts(out, " >= ");
        buf_number(out, lo);
    } else {
        buf_puts(out, " in [");
        buf_number(out, lo);
        buf_puts(out, ", ");
        buf_number(out, hi);
        buf_puts(out, "]");
    }
}

static void print_port(const Kernel *k, const char *kind, const Port *p, Buf *out) {
    buf_printf(out, "  %s %s : %s", kind, p->name, elem_name(p->elem));
    shape_print(k, p->shape, out);
    print_range(p->lo, p->hi, out);
    buf_puts(out, "\n");
}

static void print_facts(const Facts *f, Buf *out) {
    if (!f->known)
        return;
    buf_printf(out, "  facts decay=%s", decay_name(f->decay));
    if (f->decay_constant)
        buf_puts(out, " constant");
    if (f->erases)
        buf_puts(out, " erases");
    if (f->reads_before_decay)
        buf_puts(out, " early_read");
    if (f->chunkable)
        buf_puts(out, " chunkable");
    buf_printf(out, " slots=%d", f->slots);
    if (f->past)
        buf_printf(out, " past=%d", f->past);
    if (f->why_not) {
        buf_puts(out, " why=");
        buf_json_string(out, f->why_not);
    }
    buf_puts(out, "\n");
}

static void print_header(const Kernel *k, Buf *out) {
    buf_printf(out, "kernel %s %s {\n  axis", k->name, level_name(k->level));
    for (int i = 0; i < k->axis.count; i++)
        buf_printf(out, "%s %s = %d", i ? "," : "", k->axis.at[i].name, k->axis.at[i].size);
    buf_puts(out, "\n");
    for (int i = 0; i < k->in.count; i++)
        print_port(k, k->in.at[i].is_param ? "param" : "in", &k->in.at[i], out);
    for (int i = 0; i < k->out.count; i++)
        print_port(k, k->out.at[i].is_param ? "out param" : "out", &k->out.at[i], out);
    if (k->state_name)
        buf_printf(out, "  state %s\n", k->state_name);
    print_facts(&k->facts, out);
}

static void print_args(const Inst *in, Buf *out) {
    for (int i = 0; i < in->nargs; i++) {
        buf_puts(out, i ? ", " : " ");
        if (in->arg[i] < 0)
            buf_puts(out, "none");
        else
            buf_printf(out, "%%%d", in->arg[i]);
    }
}

/* The fields that belong to the operation, after its operands. */
static void print_fields(const Kernel *k, const Inst *in, Buf *out) {
    switch (in->op) {
    case OP_sum: case OP_turn: case OP_contract: buf_puts(out, " over "); break;
    case OP_weave: buf_puts(out, " onto "); break;
    case OP_rename:
        buf_puts(out, " from ");
        print_axis(k, in->index, out);
        buf_puts(out, " to ");
        break;
    case OP_reread: case OP_coread:
        buf_puts(out, " over ");
        print_axis(k, in->axis, out);
        if (in->place)
            buf_printf(out, " place %d", in->place);
        return;
    case OP_slot:
        buf_puts(out, " from ");
        print_axis(k, in->axis, out);
        buf_printf(out, " place %d", in->place);
        return;
    case OP_prev: case OP_cumsum:
        if (k->facts.past)
            buf_printf(out, " past %d", in->index);
        return;
    case OP_scores: case OP_carry: case OP_scores_x: case OP_scores_y: case OP_scores_a:
    case OP_carry_a: case OP_tail_a: case OP_total_a: case OP_decay_a:
        if (in->place)
            buf_printf(out, " place %d", in->place);
        if (in->index)
            buf_puts(out, " log");
        return;
    default: return;
    }
    print_axis(k, in->axis, out);
    if (in->op == OP_weave && in->num != 0) {
        buf_puts(out, " fill ");
        buf_number(out, in->num);
    }
}

static void print_inst(const Kernel *k, int v, Buf *out) {
    const Inst *in = inst_at(k, v);
    buf_puts(out, "  ");
    if (in->role)
        buf_printf(out, "%s ", role_name(in->role));
    if (in->keep)
        buf_puts(out, "keep ");
    if (in->elem)
        buf_printf(out, "%s ", elem_name(in->elem));
    if (op_gives_value(in->op))
        buf_printf(out, "%%%d = ", v);
    buf_puts(out, op_info[in->op].name);
    switch (in->op) {
    case OP_const:
        buf_puts(out, " ");
        buf_number(out, in->num);
        break;
    case OP_in:
        buf_printf(out, " %s", k->in.at[in->index].name);
        if (in->row >= 0)
            buf_printf(out, " row %d", in->row);
        break;
    case OP_out:
        buf_printf(out, " %s", k->out.at[in->index].name);
        if (in->row > 0)
            buf_printf(out, " row %d", in->row);
        buf_puts(out, " =");
        break;
    default: break;
    }
    print_args(in, out);
    print_fields(k, in, out);
    if (op_gives_value(in->op) && (in->op != OP_const || in->shape.rank)) {
        buf_puts(out, " : ");
        shape_print(k, in->shape, out);
    }
    buf_puts(out, "\n");
}

void kernel_print(const Kernel *k, Buf *out) {
    print_header(k, out);
    for (int v = 0; v < k->inst.count; v++)
        print_inst(k, v, out);
    buf_puts(out, "}\n");
}
