/* The fp64 meaning of the operations along the lattice: rows multiplied with the decays between two
 * places, and the cotangents of that. Products of decays are always taken factor by factor, so they
 * are exact for any decay, zero included. */
#include "ir/eval.h"

#include <string.h>

/* An operand of the lattice operations as a matrix [rows, features]; absent decays are ones. */
typedef struct Rows { const double *at; int64_t step, feature; } Rows;

static Rows rows_of(const Eval *e, const Inst *in, int i, int lattice, int feature) {
    static const double one = 1;
    if (i >= in->nargs || in->arg[i] < 0)
        return (Rows){&one, 0, 0};
    Shape s = arg_shape(e, in, i);
    return (Rows){arg_value(e, in, i), eval_step(e->k, s, lattice),
                  feature < 0 ? 0 : eval_step(e->k, s, feature)};
}

static double row_at(Rows r, int64_t row, int64_t i) {
    return r.at[row * r.step + i * r.feature];
}

static int feature_of(Shape s) {
    Shape f = shape_features(s);
    return f.rank ? f.axis[0] : -1;
}

/* The updates that left row l sees are those before its place. */
static int64_t place_of(const Eval *e, const Inst *in, int left, int64_t l) {
    return left == AXIS_R ? l : l * e->slots + in->place;
}

static void eval_scores(Eval *e, const Inst *in, double *out) {
    int left = in->shape.axis[0];
    int feature = feature_of(shape_union(shape_features(arg_shape(e, in, 0)),
                                         shape_features(arg_shape(e, in, 1))));
    Rows x = rows_of(e, in, 0, left, feature), y = rows_of(e, in, 1, AXIS_U, feature);
    Rows a = rows_of(e, in, 2, AXIS_U, feature);
    int64_t n = axis_size(e->k, feature), nu = axis_size(e->k, AXIS_U);
    double *run = e->run;
    for (int64_t l = 0; l < axis_size(e->k, left); l++, out += nu) {
        memset(out, 0, (size_t)nu * sizeof *out);
        for (int64_t i = 0; i < n; i++)
            run[i] = row_at(x, l, i);
        for (int64_t u = place_of(e, in, left, l) - 1; u >= 0; u--)
            for (int64_t i = 0; i < n; i++) {
                out[u] += run[i] * row_at(y, u, i);
                run[i] *= row_at(a, u, i);
            }
    }
}

/* carry and tail: a row times the decays before its place, or after its update. */
static void eval_scaled(Eval *e, const Inst *in, double *out) {
    int lattice = in->shape.axis[0], feature = feature_of(in->shape);
    Rows x = rows_of(e, in, 0, lattice, feature), a = rows_of(e, in, 1, AXIS_U, feature);
    int64_t n = feature < 0 ? 1 : axis_size(e->k, feature), nu = axis_size(e->k, AXIS_U);
    for (int64_t l = 0; l < axis_size(e->k, lattice); l++) {
        int64_t lo = in->op == OP_tail ? l + 1 : 0;
        int64_t hi = in->op == OP_tail ? nu : place_of(e, in, lattice, l);
        for (int64_t i = 0; i < n; i++) {
            double product = 1;
            for (int64_t m = lo; m < hi; m++)
                product *= row_at(a, m, i);
            *out++ = row_at(x, l, i) * product;
        }
    }
}

static void eval_total(Eval *e, const Inst *in, double *out) {
    Rows a = rows_of(e, in, 0, AXIS_U, feature_of(in->shape));
    int64_t n = shape_elements(e->k, in->shape);
    for (int64_t i = 0; i < n; i++) {
        out[i] = 1;
        for (int64_t m = 0; m < axis_size(e->k, AXIS_U); m++)
            out[i] *= row_at(a, m, i);
    }
}

/* cotangents ----------------------------------------------------------------------------------- */

/* Rows on C or R of tokens that are there. */
static int64_t rows_there(const Eval *e, int left) {
    return left == AXIS_C ? e->tokens : e->tokens * e->slots;
}

/* Of x, [left, feature], or of y, [U, feature]: G times the other with the decays between. */
static void eval_scores_back(Eval *e, const Inst *in, double *out) {
    bool to_x = in->op == OP_scores_x;
    int left = arg_shape(e, in, 0).axis[0], feature = feature_of(in->shape);
    Rows y = rows_of(e, in, 1, to_x ? AXIS_U : left, feature), a = rows_of(e, in, 2, AXIS_U, feature);
    int64_t n = feature < 0 ? 1 : axis_size(e->k, feature), nu = axis_size(e->k, AXIS_U);
    const double *g = arg_value(e, in, 0);
    memset(out, 0, (size_t)shape_elements(e->k, in->shape) * sizeof *out);
    for (int64_t l = 0; l < rows_there(e, left); l++)
        for (int64_t i = 0; i < n; i++) {
            double product = 1;
            for (int64_t u = place_of(e, in, left, l) - 1; u >= 0; u--) {
                int64_t to = to_x ? l : u, from = to_x ? u : l;
                out[to * n + i] += g[l * nu + u] * product * row_at(y, from, i);
                product *= row_at(a, u, i);
            }
        }
}

/* out[m] += w times the decays of [lo, hi) but m; with m for the gradient of the logarithm. */
static void add_each(const Inst *in, Rows a, int64_t i, int64_t lo, int64_t hi, double w,
                     double *out, int64_t step) {
    double after = 1;
    for (int64_t m = hi - 1; m >= lo; m--) {
        double rest = w * after * (in->index ? row_at(a, m, i) : 1);
        for (int64_t j = lo; j < m; j++)
            rest *= row_at(a, j, i);
        out[m * step] += rest;
        after *= row_at(a, m, i);
    }
}

static void eval_scores_a(Eval *e, const Inst *in, double *out) {
    int left = arg_shape(e, in, 0).axis[0];
    int feature = feature_of(shape_union(shape_features(arg_shape(e, in, 1)),
                                         shape_features(arg_shape(e, in, 2))));
    Rows x = rows_of(e, in, 1, left, feature), y = rows_of(e, in, 2, AXIS_U, feature);
    Rows a = rows_of(e, in, 3, AXIS_U, feature);
    int64_t nu = axis_size(e->k, AXIS_U);
    const double *g = arg_value(e, in, 0);
    for (int64_t l = 0; l < rows_there(e, left); l++)
        for (int64_t i = 0; i < axis_size(e->k, feature); i++) {
            int64_t p = place_of(e, in, left, l);
            double after = 1; /* the decays of (m, p) */
            for (int64_t m = p - 1; m > 0; m--) {
                double run = after * (in->index ? row_at(a, m, i) : 1), sum = 0;
                for (int64_t u = m - 1; u >= 0; u--) {
                    sum += g[l * nu + u] * row_at(y, u, i) * run;
                    run *= row_at(a, u, i);
                }
                out[m * a.step + i * a.feature] += row_at(x, l, i) * sum;
                after *= row_at(a, m, i);
            }
        }
}

/* carry_a, tail_a, total_a: w on rows l, scaled by the decays before its place, behind it, or all. */
static void eval_scaled_a(Eval *e, const Inst *in, double *out) {
    int feature = feature_of(in->shape);
    int left = in->op == OP_tail_a ? AXIS_U
               : in->op == OP_carry_a && shape_has(arg_shape(e, in, 0), AXIS_R) ? AXIS_R : AXIS_C;
    Rows w = rows_of(e, in, 0, left, feature), a = rows_of(e, in, 1, AXIS_U, feature);
    int64_t n = feature < 0 ? 1 : axis_size(e->k, feature), nu = axis_size(e->k, AXIS_U);
    int64_t rows = in->op == OP_total_a ? 1 : in->op == OP_tail_a ? nu : rows_there(e, left);
    for (int64_t l = 0; l < rows; l++) {
        int64_t lo = in->op == OP_tail_a ? l + 1 : 0;
        int64_t hi = in->op == OP_carry_a ? place_of(e, in, left, l) : nu;
        for (int64_t i = 0; i < n; i++)
            add_each(in, a, i, lo, hi, row_at(w, l, i), out + i * a.feature, a.step);
    }
}

void eval_lattice(Eval *e, const Inst *in, double *out) {
    switch (in->op) {
    case OP_scores: eval_scores(e, in, out); return;
    case OP_carry: case OP_tail: eval_scaled(e, in, out); return;
    case OP_total: eval_total(e, in, out); return;
    case OP_scores_x: case OP_scores_y: eval_scores_back(e, in, out); return;
    default: break;
    }
    memset(out, 0, (size_t)shape_elements(e->k, in->shape) * sizeof *out);
    if (in->op == OP_scores_a)
        eval_scores_a(e, in, out);
    else
        eval_scaled_a(e, in, out);
}
