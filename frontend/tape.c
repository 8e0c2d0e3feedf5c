/* The tape of the reference's gradient: values forwards, gradients backwards. See tape.h. */
#include "frontend/tape.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 1 << 15 }; /* doubles */

static double *push_zero(Tape *t, size_t n) {
    while (t->top < t->block.count && t->block.at[t->top].size - t->block.at[t->top].used < n)
        t->top++;
    if (t->top == t->block.count) {
        size_t size = n > BLOCK ? n : BLOCK;
        VEC_PUSH(t->arena, &t->block, ((TapeBlock){NEW_ARRAY(t->arena, double, size), 0, size}));
    }
    TapeBlock *b = &t->block.at[t->top];
    double *p = b->at + b->used;
    b->used += n;
    memset(p, 0, n * sizeof *p);
    return p;
}

void tape_clear(Tape *t) {
    for (int i = 0; i < t->block.count; i++)
        t->block.at[i].used = 0;
    t->top = 0;
    t->node.count = 0;
}

static int append(Tape *t, Node n, size_t rows, size_t cols) {
    n.rows = rows;
    n.cols = cols;
    n.x = push_zero(t, rows * cols);
    n.g = push_zero(t, rows * cols);
    VEC_PUSH(t->arena, &t->node, n);
    return t->node.count - 1;
}

/* values --------------------------------------------------------------------------------------- */

static double operate(ExprKind op, double x, double y) {
    switch (op) {
    case EXPR_neg: return -x;
    case EXPR_add: return x + y;
    case EXPR_sub: return x - y;
    case EXPR_mul: case EXPR_emul: return x * y;
    case EXPR_div: case EXPR_ediv: return x / y;
    case EXPR_pow: case EXPR_epow: return pow(x, y);
    default: BUG("not an operator");
    }
}

int tape_leaf(Tape *t, const double *x, size_t rows, size_t cols) {
    int n = append(t, (Node){.kind = NODE_leaf}, rows, cols);
    if (x)
        memcpy(tape_at(t, n)->x, x, rows * cols * sizeof *x);
    return n;
}

int tape_number(Tape *t, double x) { return tape_leaf(t, &x, 1, 1); }

/* An elementwise node: shaped like its larger operand. */
static int elementwise(Tape *t, Node n) {
    const Node *a = tape_at(t, n.a), *b = n.b < 0 ? a : tape_at(t, n.b);
    size_t na = a->rows * a->cols, nb = b->rows * b->cols;
    CHECK(na == nb || na == 1 || nb == 1);
    int out = append(t, n, na < nb ? b->rows : a->rows, na < nb ? b->cols : a->cols);
    const double *x = tape_at(t, n.a)->x, *y = tape_at(t, n.b < 0 ? n.a : n.b)->x;
    double *z = tape_at(t, out)->x;
    for (size_t i = 0; i < tape_size(t, out); i++) {
        double u = x[na == 1 ? 0 : i], w = y[nb == 1 ? 0 : i];
        z[i] = n.kind == NODE_map ? fn_apply(n.fn, u, w) : operate(n.op, u, w);
    }
    return out;
}

int tape_map(Tape *t, Function fn, int a, int b) {
    return elementwise(t, (Node){.kind = NODE_map, .fn = fn, .a = a, .b = b});
}

int tape_operator(Tape *t, ExprKind op, int a, int b) {
    return elementwise(t, (Node){.kind = NODE_operator, .op = op, .a = a, .b = b});
}

int tape_sum(Tape *t, int a) {
    int out = append(t, (Node){.kind = NODE_sum, .a = a}, 1, 1);
    for (size_t i = 0; i < tape_size(t, a); i++)
        *tape_at(t, out)->x += tape_at(t, a)->x[i];
    return out;
}

/* z[m,n] += x y, with x:[m,k], or [k,m] when transposed */
static void multiply(bool transposed, const double *x, const double *y, size_t m, size_t k, size_t n,
                     double *z) {
    for (size_t i = 0; i < m; i++)
        for (size_t l = 0; l < k; l++) {
            double c = transposed ? x[l * m + i] : x[i * k + l];
            for (size_t j = 0; j < n; j++)
                z[i * n + j] += c * y[l * n + j];
        }
}

int tape_product(Tape *t, bool transposed, int a, int b) {
    Node x = *tape_at(t, a), y = *tape_at(t, b);
    size_t m = transposed ? x.cols : x.rows, k = transposed ? x.rows : x.cols;
    CHECK(k == y.rows);
    int out = append(t, (Node){.kind = NODE_product, .a = a, .b = b, .transposed = transposed}, m,
                     y.cols);
    multiply(transposed, x.x, y.x, m, k, y.cols, tape_at(t, out)->x);
    return out;
}

int tape_outer(Tape *t, int a, int b) {
    size_t m = tape_size(t, a), n = tape_size(t, b);
    int out = append(t, (Node){.kind = NODE_outer, .a = a, .b = b}, m, n);
    multiply(false, tape_at(t, a)->x, tape_at(t, b)->x, m, 1, n, tape_at(t, out)->x);
    return out;
}

int tape_rows(Tape *t, int a, int b) {
    Node d = *tape_at(t, a), y = *tape_at(t, b);
    CHECK(d.rows * d.cols == y.rows);
    int out = append(t, (Node){.kind = NODE_rows, .a = a, .b = b}, y.rows, y.cols);
    for (size_t i = 0; i < y.rows * y.cols; i++)
        tape_at(t, out)->x[i] = d.x[i / y.cols] * y.x[i];
    return out;
}

/* y += x' */
static void add_transposed(const double *x, size_t rows, size_t cols, double *y) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            y[j * rows + i] += x[i * cols + j];
}

int tape_transpose(Tape *t, int a) {
    Node x = *tape_at(t, a);
    int out = append(t, (Node){.kind = NODE_transpose, .a = a}, x.cols, x.rows);
    add_transposed(x.x, x.rows, x.cols, tape_at(t, out)->x);
    return out;
}

int tape_pick(Tape *t, int a, size_t offset, size_t n) {
    CHECK(offset + n <= tape_size(t, a));
    int out = append(t, (Node){.kind = NODE_pick, .a = a, .offset = offset}, n, 1);
    memcpy(tape_at(t, out)->x, tape_at(t, a)->x + offset, n * sizeof(double));
    return out;
}

int tape_turn(Tape *t, int a) {
    Node x = *tape_at(t, a);
    int out = append(t, (Node){.kind = NODE_turn, .a = a}, x.rows, x.cols);
    for (size_t i = 0; i < tape_size(t, out); i++)
        tape_at(t, out)->x[i] = i % 2 ? x.x[i - 1] : -x.x[i + 1];
    return out;
}

int tape_back(Tape *t, int a, int b) {
    Node x = *tape_at(t, a);
    CHECK(tape_size(t, b) == x.rows * x.cols);
    int out = append(t, (Node){.kind = NODE_back, .a = a, .b = b}, x.rows, x.cols);
    memcpy(tape_at(t, out)->x, x.x, x.rows * x.cols * sizeof(double));
    return out;
}

/* gradients ------------------------------------------------------------------------------------ */

static double logistic(double x) { return fn_apply(FN_sigmoid, x, 0); }

/* The derivatives of fn at (x, y) where its value is z. Kinks: 0 for abs and relu, the first operand
 * of equal ones. */
static void derivative_of_map(Function fn, double x, double y, double z, double *dx, double *dy) {
    double s;
    switch (fn) {
    case FN_exp: *dx = z; break;
    case FN_log: *dx = 1 / x; break;
    case FN_sqrt: *dx = 0.5 / z; break;
    case FN_rsqrt: *dx = -0.5 * z / x; break;
    case FN_sigmoid: *dx = z * logistic(-x); break;
    case FN_softplus: *dx = logistic(x); break;
    case FN_tanh: *dx = (1 - z) * (1 + z); break;
    case FN_silu:
        s = logistic(x);
        *dx = s * (1 + x * logistic(-x));
        break;
    case FN_relu: *dx = x > 0; break;
    case FN_abs: *dx = (x > 0) - (x < 0); break;
    case FN_cos: *dx = -sin(x); break;
    case FN_sin: *dx = cos(x); break;
    case FN_min: *dx = !(y < x); *dy = y < x; break;
    case FN_max: *dx = !(y > x); *dy = y > x; break;
    default: BUG("%s has no derivative", fn_info[fn].name);
    }
}

static void derivative_of_operator(ExprKind op, double x, double y, double z, double *dx,
                                   double *dy) {
    switch (op) {
    case EXPR_neg: *dx = -1; break;
    case EXPR_add: *dx = 1; *dy = 1; break;
    case EXPR_sub: *dx = 1; *dy = -1; break;
    case EXPR_mul: case EXPR_emul: *dx = y; *dy = x; break;
    case EXPR_div: case EXPR_ediv: *dx = 1 / y; *dy = -z / y; break;
    case EXPR_pow: case EXPR_epow:
        *dx = y == 0 ? 0 : y * pow(x, y - 1);
        *dy = z == 0 ? 0 : z * log(x);
        break;
    default: BUG("not an operator");
    }
}

static void back_elementwise(Tape *t, const Node *n) {
    Node *a = tape_at(t, n->a), *b = n->b < 0 ? NULL : tape_at(t, n->b);
    size_t na = a->rows * a->cols, nb = b ? b->rows * b->cols : 1;
    for (size_t i = 0; i < n->rows * n->cols; i++) {
        size_t ia = na == 1 ? 0 : i, ib = nb == 1 ? 0 : i;
        double x = a->x[ia], y = b ? b->x[ib] : 0, dx = 0, dy = 0;
        if (n->kind == NODE_map)
            derivative_of_map(n->fn, x, y, n->x[i], &dx, &dy);
        else
            derivative_of_operator(n->op, x, y, n->x[i], &dx, &dy);
        a->g[ia] += dx * n->g[i];
        if (b)
            b->g[ib] += dy * n->g[i];
    }
}

/* z = x y, or x' y */
static void back_product(Tape *t, const Node *n) {
    Node *a = tape_at(t, n->a), *b = tape_at(t, n->b);
    size_t m = n->rows, k = b->rows, cols = n->cols;
    multiply(!n->transposed, a->x, n->g, k, m, cols, b->g);
    for (size_t i = 0; i < m; i++)
        for (size_t l = 0; l < k; l++) {
            double s = 0;
            for (size_t j = 0; j < cols; j++)
                s += n->g[i * cols + j] * b->x[l * cols + j];
            a->g[n->transposed ? l * m + i : i * k + l] += s;
        }
}

static void back_outer(Tape *t, const Node *n) {
    Node *a = tape_at(t, n->a), *b = tape_at(t, n->b);
    for (size_t i = 0; i < n->rows; i++)
        for (size_t j = 0; j < n->cols; j++) {
            a->g[i] += n->g[i * n->cols + j] * b->x[j];
            b->g[j] += n->g[i * n->cols + j] * a->x[i];
        }
}

static void back_rows(Tape *t, const Node *n) {
    Node *a = tape_at(t, n->a), *b = tape_at(t, n->b);
    for (size_t i = 0; i < n->rows * n->cols; i++) {
        a->g[i / n->cols] += n->g[i] * b->x[i];
        b->g[i] += n->g[i] * a->x[i / n->cols];
    }
}

void tape_backward(Tape *t) {
    for (int i = t->node.count - 1; i >= 0; i--) {
        const Node *n = tape_at(t, i);
        Node *a = tape_at(t, n->a);
        switch (n->kind) {
        case NODE_leaf: break;
        case NODE_map: case NODE_operator: back_elementwise(t, n); break;
        case NODE_sum:
            for (size_t j = 0; j < a->rows * a->cols; j++)
                a->g[j] += *n->g;
            break;
        case NODE_product: back_product(t, n); break;
        case NODE_outer: back_outer(t, n); break;
        case NODE_rows: back_rows(t, n); break;
        case NODE_transpose: add_transposed(n->g, n->rows, n->cols, a->g); break;
        case NODE_turn:
            for (size_t j = 0; j < n->rows * n->cols; j++)
                a->g[j] += j % 2 ? -n->g[j - 1] : n->g[j + 1];
            break;
        case NODE_back:
            for (size_t j = 0; j < n->rows * n->cols; j++)
                a->g[j] += tape_at(t, n->b)->x[j] * n->g[j];
            break;
        case NODE_pick:
            for (size_t j = 0; j < n->rows; j++)
                a->g[n->offset + j] += n->g[j];
            break;
        }
    }
}
