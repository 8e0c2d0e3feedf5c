/* A chunk on the lattice for the test of the grad kernel's pull phase (nvptx_pull.c), in fp64: its
 * rows, keys and decays by the spec's own expressions, random states, X and dX; the cotangents by
 * their definition, term by term; and the record that the kernels before it would have left. */
#ifndef GDR_TESTS_PULL_CHUNK_H
#define GDR_TESTS_PULL_CHUNK_H

#include "tests/unit/grad_run.h"

enum { ROWS_MAX = 64, AXIS_MAX = 256 };

typedef struct Case {
    int K, V;
    Elem elem;
    int rows, T, H;
    double gate;     /* log-decays; NaN: random in the declared range */
    double resets;   /* that part of the log-decays is -1000 */
    bool steep;      /* log-decays 0 and -30 side by side */
    double upstream; /* magnitude of what comes from above */
    double zeros;    /* that part of the tokens has keys and rows of zeros */
} Case;

typedef struct World {
    const Case *c;
    const char *name;
    Spec *spec;
    Arena arena;
    Kernel *k;
    Gradient g;
    const System *s;
    Cg *cg;
    CgModule module;
    Simt *simt;
    uint64_t seed;
    void *in[MAX_PORTS];
    int inputs;     /* of the forward kernel; the others are cotangents */
    double **value; /* [instruction], of one head: [token][elements] */
    int slots;
    unsigned char *records;
    float *scratch;
    Grad plan;         /* where what lies in the scratch */
} World;

/* A chunk on the lattice, and what is expected of it. */
typedef struct Chunk {
    int start, live; /* first token; rows of tokens that are there */
    double x[MAX_FAMILIES][ROWS_MAX][AXIS_MAX], left[MAX_FAMILIES][ROWS_MAX][AXIS_MAX];
    double p[ROWS_MAX][AXIS_MAX], a[ROWS_MAX][AXIS_MAX];
    double S[AXIS_MAX][AXIS_MAX], dS[AXIS_MAX][AXIS_MAX]; /* [v][k] */
    double X[ROWS_MAX][AXIS_MAX], zt[ROWS_MAX][AXIS_MAX], A[ROWS_MAX][ROWS_MAX];
    double dx[MAX_FAMILIES][ROWS_MAX][AXIS_MAX], dp[ROWS_MAX][AXIS_MAX], da[ROWS_MAX][AXIS_MAX];
} Chunk;

static inline double draw(World *w) {
    return 2 * random_unit(&w->seed) - 1;
}

/* values --------------------------------------------------------------------------------------- */

static inline int axis_of(const Kernel *k, int v) {
    Shape s = inst_at(k, v)->shape;
    return shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
}

static inline int size_of(const Kernel *k, int v) {
    int axis = axis_of(k, v);
    return axis < 0 ? 1 : k->axis.at[axis].size;
}

static inline double at(const World *w, int v, int t, int e) {
    int n = size_of(w->k, v);
    return t < 0 ? 0 : w->value[v][t * n + (n > 1 ? e : 0)];
}

static inline double input_at(const World *w, const Inst *i, int head, int t, int n, int e) {
    const Port *p = &w->k->in.at[i->index];
    int64_t size = shape_elements(w->k, p->shape), row = i->row > 0 ? i->row : 0;
    int64_t first = p->is_param ? head : (int64_t)t * w->c->H + head;
    return grad_get(w->in[i->index], first * size + row * n + e, p->elem);
}

static inline double element_of(const World *w, int v, int head, int t, int e) {
    const Inst *i = inst_at(w->k, v);
    if (i->op == OP_const)
        return i->num;
    if (i->op == OP_in)
        return input_at(w, i, head, t, size_of(w->k, v), e);
    if (i->op == OP_prev)
        return at(w, i->arg[0], t - 1, e);
    if (i->op == OP_turn)
        return e % 2 ? at(w, i->arg[0], t, e - 1) : -at(w, i->arg[0], t, e + 1);
    if (i->op == OP_sum) {
        double sum = 0;
        for (int j = 0; j < size_of(w->k, i->arg[0]); j++)
            sum += at(w, i->arg[0], t, j);
        return sum;
    }
    return op_eval(i->op, at(w, i->arg[0], t, e), i->nargs > 1 ? at(w, i->arg[1], t, e) : 0);
}

/* All elementwise values that rows, keys, decays and left rows are made of. */
static inline void chunk_values(World *w, int head) {
    const Kernel *k = w->k;
    bool *needed = NEW_ARRAY(&w->arena, bool, k->inst.count);
    value_mark(k, w->s->p, needed);
    if (w->s->a >= 0)
        value_mark(k, w->s->a, needed);
    for (int f = 0; f < w->s->families; f++) {
        value_mark(k, w->s->family[f].x, needed);
        if (f >= w->s->erase)
            value_mark(k, w->g.family[f].left, needed);
    }
    w->value = NEW_ARRAY(&w->arena, double *, k->inst.count);
    for (int v = 0; v < k->inst.count; v++) {
        if (!needed[v] || inst_at(k, v)->op == OP_weave)
            continue;
        int n = size_of(k, v);
        w->value[v] = NEW_ARRAY(&w->arena, double, w->c->T *n);
        for (int j = 0; j < w->c->T * n; j++)
            w->value[v][j] = element_of(w, v, head, j / n, j % n);
    }
}

/* Element e of lattice row l of the chunk at token `start`. */
static inline double lattice(const World *w, int v, int position, int start, int l, int e,
                             double fill) {
    const Inst *i = inst_at(w->k, v);
    int slots = w->s->slots, t = l / slots;
    if (t >= w->s->chunk || start + t >= w->c->T)
        return fill;
    if (i->op == OP_weave)
        return at(w, i->arg[l % slots], start + t, e);
    return l % slots == position ? at(w, v, start + t, e) : fill;
}

/* chunks --------------------------------------------------------------------------------------- */

static inline bool chunk_erases(const World *w, int f) {
    return w->s->erase && f == 0;
}

/* Does row l of a family see the decay, or update, at m? */
static inline bool sees(const World *w, int f, int l, int m) {
    return f < w->s->families && w->s->family[f].inclusive ? m <= l : m < l;
}

/* Products of decays between update u (-1: the start) and row l (rows: the end) of family f. */
static inline double between(const World *w, const Chunk *c, int f, int l, int u, int k) {
    double x = 1;
    for (int m = u + 1; m < w->s->rows && (l == w->s->rows || sees(w, f, l, m)); m++)
        x *= c->a[m][k];
    return x;
}

static inline void solve(const World *w, Chunk *c) {
    int n = w->s->rows;
    for (int l = 0; l < n; l++)
        for (int u = 0; u < n; u++)
            c->A[l][u] = l == u;
    for (int l = 0; l < n && w->s->erase; l++)
        for (int u = 0; u < l; u++) {
            double T = 0;
            for (int k = 0; k < w->s->K; k++)
                T += c->x[0][l][k] * c->p[u][k] * between(w, c, 0, l, u, k);
            for (int j = 0; j <= u; j++)
                c->A[l][j] -= T * c->A[u][j];
        }
    for (int l = 0; l < n; l++)
        for (int v = 0; v < w->s->V; v++)
            for (int u = 0; u <= l; u++)
                c->zt[l][v] += c->A[l][u] * c->X[u][v];
}

static inline void chunk_make(World *w, Chunk *c, int start) {
    const System *s = w->s;
    double up = w->c->upstream;
    c->start = start;
    for (int l = 0; l < s->rows; l++) {
        bool live = l / s->slots < s->chunk && start + l / s->slots < w->c->T;
        c->live += live;
        for (int k = 0; k < s->K; k++) {
            c->p[l][k] = lattice(w, s->p, -1, start, l, k, 0);
            c->a[l][k] = s->a < 0 ? 1 : lattice(w, s->a, -1, start, l, k, 1);
            for (int f = 0; f < s->families; f++)
                c->x[f][l][k] = lattice(w, s->family[f].x, s->family[f].position, start, l, k, 0);
        }
        for (int v = 0; v < s->V; v++) {
            c->X[l][v] = live ? draw(w) : 0;
            for (int f = 0; f < s->families; f++) {
                if (chunk_erases(w, f))
                    c->left[f][l][v] = live ? draw(w) * up : 0;
                else
                    c->left[f][l][v] =
                        lattice(w, w->g.family[f].left, s->family[f].position, start, l, v, 0);
            }
        }
    }
    for (int v = 0; v < s->V; v++)
        for (int k = 0; k < s->K; k++) {
            c->S[v][k] = draw(w) * (v % 3 ? 1 : .1);
            c->dS[v][k] = draw(w) * up;
        }
    solve(w, c);
}

/* what is expected ----------------------------------------------------------------------------- */

/* A pair of row l (rows: the end) and update u (-1: the start) with `term` = G x p at channel k. */
static inline void add_pair(const World *w, Chunk *c, int f, int l, int u, int k, double term) {
    for (int m = u + 1; m < w->s->rows && (l == w->s->rows || sees(w, f, l, m)); m++) {
        double lam = 1;
        for (int j = u + 1; j < w->s->rows && (l == w->s->rows || sees(w, f, l, j)); j++)
            lam *= j == m && !w->g.a_log ? 1 : c->a[j][k];
        c->da[m][k] += term * lam;
    }
}

static inline double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static inline void expect_family(const World *w, Chunk *c, int f) {
    const System *s = w->s;
    double sign = w->g.family[f].minus ? -1 : 1;
    for (int l = 0; l < s->rows; l++) {
        for (int u = 0; u < s->rows && sees(w, f, l, u); u++) {
            double dG = dot(c->left[f][l], c->zt[u], s->V);
            for (int k = 0; k < s->K; k++) {
                double lam = between(w, c, f, l, u, k), x = c->x[f][l][k], p = c->p[u][k];
                c->dx[f][l][k] += dG * lam * p;
                c->dp[u][k] += sign * dG * lam * x;
                add_pair(w, c, f, l, u, k, sign * dG * x * p);
            }
        }
        for (int k = 0; k < s->K; k++) {
            double dW = 0;
            for (int v = 0; v < s->V; v++)
                dW += c->left[f][l][v] * c->S[v][k];
            c->dx[f][l][k] += dW * between(w, c, f, l, -1, k);
            add_pair(w, c, f, l, -1, k, sign * dW * c->x[f][l][k]);
        }
    }
}

static inline void chunk_expect(const World *w, Chunk *c) {
    const System *s = w->s;
    for (int f = 0; f < s->families; f++)
        expect_family(w, c, f);
    for (int k = 0; k < s->K; k++) {
        double dD = 0;
        for (int v = 0; v < s->V; v++)
            dD += c->S[v][k] * c->dS[v][k];
        add_pair(w, c, s->families, s->rows, -1, k, dD);
        for (int u = 0; u < s->rows; u++) {
            double dKt = 0;
            for (int v = 0; v < s->V; v++)
                dKt += c->zt[u][v] * c->dS[v][k];
            c->dp[u][k] += dKt * between(w, c, s->families, s->rows, u, k);
            add_pair(w, c, s->families, s->rows, u, k, dKt * c->p[u][k]);
        }
    }
}

/* records -------------------------------------------------------------------------------------- */

static inline double power_below(double x) {
    return x > 0 ? ldexp(1, ilogb(x)) : 0x1p-126;
}

static inline void put_f32(unsigned char *r, int64_t base, int i, double x) {
    ((float *)(r + base))[i] = (float)x;
}

/* Element (row, column) of a matrix at `base`: nv_place, on this machine. */
static inline void put_f16(unsigned char *r, int64_t base, int rows, int columns, int row,
                           int column, double x) {
    int width = nv_block_columns(columns) / 8, log = width == 8 ? 3 : width == 4 ? 2 : 1;
    int unit = column / 8, turned = ((unit & (width - 1)) ^ (row >> (3 - log) & (width - 1)));
    int place = (row << log) + turned + (unit >> log) * rows * width;
    ((uint16_t *)(r + base))[place * 8 + column % 8] = (uint16_t)f16_of_float((float)x);
}

typedef double Column(const Chunk *c, int row, int v);
static inline double state_at(const Chunk *c, int k, int v) {
    return c->S[v][k];
}
static inline double costate_at(const Chunk *c, int k, int v) {
    return c->dS[v][k];
}
static inline double x_at(const Chunk *c, int l, int v) {
    return c->X[l][v];
}
static inline double dx_at(const Chunk *c, int l, int v) {
    return c->left[0][l][v];
}

/* A matrix whose columns of V have units, of any size that f16 allows; `turned`: V is its rows. */
static inline void put_matrix(const World *w, const Chunk *c, unsigned char *r, int64_t base,
                              int64_t units, bool turned, Column *get) {
    const System *s = w->s;
    int n = turned ? s->K : s->rows, padded = turned ? s->kp : s->rows;
    for (int v = 0; v < s->vp; v++) {
        double most = 0;
        for (int i = 0; i < n && v < s->V; i++)
            most = fmax(most, fabs(get(c, i, v)));
        double unit = power_below(most) * (v % 3 == 0 ? 0x1p-5 : v % 3 == 1 ? 0x1p-11 : .5);
        put_f32(r, units, v, unit);
        for (int i = 0; i < padded; i++) {
            double x = i < n && v < s->V ? get(c, i, v) / unit : 0;
            if (turned)
                put_f16(r, base, s->vp, s->kp, v, grad_state_channel(i), x);
            else
                put_f16(r, base, s->rows, s->vp, i, v, x);
        }
    }
}

static inline double row_scale_of(const double *x, int count) {
    double most = 0x1p-14;
    for (int k = 0; k < count; k++)
        most = fmax(most, fabs(x[k]));
    return power_below(most);
}

static inline double row_scale(const World *w, const double *x) {
    return row_scale_of(x, w->s->K);
}

/* Where an out family's row is kept: on its token's last position. */
static inline int stored_row(const World *w, int f, int l) {
    int slots = w->s->slots, t = l / slots;
    if (chunk_erases(w, f) || t >= w->s->chunk)
        return l;
    return t * slots + (l % slots + slots - 1 - w->s->family[f].position) % slots;
}

static inline void put_inverse(const World *w, const Chunk *c, unsigned char *r,
                               const double *keys) {
    const System *s = w->s;
    double most = 0, scale = 1;
    for (int i = 0; i < s->rows * s->rows; i++)
        most = fmax(most, fabs(c->A[i / s->rows][i % s->rows] * keys[i / s->rows]));
    while (most / scale > 64)
        scale *= 2;
    put_f32(r, s->ws_scale, 0, s->grows ? 1 : scale);
    for (int l = 0; l < s->rows; l++) {
        if (s->grows) {
            scale = row_scale_of(c->A[l], s->rows) * keys[l];
            put_f32(r, s->ws_a_rows, l, scale);
        }
        for (int u = 0; u < s->rows; u++)
            put_f16(r, s->ws_a, s->rows, s->rows, l, u, c->A[l][u] * keys[l] / scale);
    }
}

static inline void put_sums(const World *w, const Chunk *c, unsigned char *r) {
    const System *s = w->s;
    for (int i = 0; i < s->sums; i++)
        for (int l = 0; l < s->rows; l++) {
            int t = l / s->slots;
            bool live = t < s->chunk && c->start + t < w->c->T;
            put_f32(r, s->ws_sums, i * s->rows + l, live ? at(w, s->sum[i], c->start + t, 0) : 0);
        }
}

static inline void chunk_record(World *w, const Chunk *c, unsigned char *r) {
    const System *s = w->s;
    double keys[ROWS_MAX];
    for (int l = 0; l < s->rows; l++) {
        keys[l] = s->p_scaled ? row_scale(w, c->p[l]) : 1;
        if (s->p_scaled)
            put_f32(r, s->ws_keys, l, keys[l]);
        for (int f = 0; f < s->families; f++) {
            const Family *fam = &s->family[f];
            double scale = fam->unbounded ? row_scale(w, c->x[f][l]) : 1;
            if (fam->scaled)
                put_f32(r, fam->ws_rows, stored_row(w, f, l),
                        fam->corrected ? scale * 1.002 : scale);
        }
    }
    put_sums(w, c, r);
    if (s->erase)
        put_inverse(w, c, r, keys);
    put_matrix(w, c, r, s->ws_s, s->ws_unit_s, true, state_at);
    put_matrix(w, c, r, s->ws_ds, s->ws_unit_ds, true, costate_at);
    put_matrix(w, c, r, s->ws_x, s->ws_unit_x, false, x_at);
    if (s->erase)
        put_matrix(w, c, r, s->ws_dx, s->ws_unit_dx, false, dx_at);
    else
        for (int v = 0; v < s->vp; v++)
            put_f32(r, s->ws_unit_dx, v, 1);
}

#endif
