/* The pull phase of the grad kernel (codegen/nvptx/grad_pull*.c) on this machine (tests/simt), alone: from
 * records made here, of random states, X and dX, to the cotangents of the lattice's rows, keys and
 * decays, against their definition in fp64, term by term.
 *
 *   GDR_SPEC=NAME  this spec alone         GDR_VERBOSE=1  the errors of everything that ran
 */
#include "codegen/nvptx/gradient.h"
#include "passes/passes.h"
#include "tests/simt/number.h"
#include "tests/simt/simt.h"
#include "tests/unit/spec_test.h"

#include <glob.h>

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
    double **value;   /* [instruction], of one head: [token][elements] */
    int slots;
    unsigned char *records;
    float *scratch;
    int64_t at_dx[MAX_FAMILIES], at_dp, at_da; /* bytes into a scratch */
} World;

/* A chunk on the lattice, and what is expected of it. */
typedef struct Chunk {
    int live;                                     /* rows of tokens that are there */
    double x[MAX_FAMILIES][ROWS_MAX][AXIS_MAX], left[MAX_FAMILIES][ROWS_MAX][AXIS_MAX];
    double p[ROWS_MAX][AXIS_MAX], a[ROWS_MAX][AXIS_MAX];
    double S[AXIS_MAX][AXIS_MAX], dS[AXIS_MAX][AXIS_MAX]; /* [v][k] */
    double X[ROWS_MAX][AXIS_MAX], zt[ROWS_MAX][AXIS_MAX], A[ROWS_MAX][ROWS_MAX];
    double dx[MAX_FAMILIES][ROWS_MAX][AXIS_MAX], dp[ROWS_MAX][AXIS_MAX], da[ROWS_MAX][AXIS_MAX];
} Chunk;

static double draw(World *w) { return 2 * random_unit(&w->seed) - 1; }

/* compiling ------------------------------------------------------------------------------------ */

/* The one phase; where it is told to leave its results is noted on the way. */
static int64_t places[MAX_FAMILIES + 2];

static bool plan_phase(Grad *g, int *sh_bytes, const char **why) {
    memcpy(places, g->scratch_dx, sizeof g->scratch_dx);
    places[MAX_FAMILIES] = g->scratch_dp;
    places[MAX_FAMILIES + 1] = g->scratch_da;
    return grad_pull_plan(g, sh_bytes, why);
}

static Kernel *gradient_of(World *w) {
    SpecDim dim[] = {{intern_z(&w->spec->names, "K"), w->c->K},
                     {intern_z(&w->spec->names, "V"), w->c->V}};
    SpecBind bind = {dim, 2};
    Kernel *k = spec_lower(&w->spec->arena, &w->spec->names, w->spec->file, NULL, &bind, &w->spec->d);
    if (!k)
        fail_msg("%s", messages(w->spec));
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : w->c->elem;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = w->c->elem;
    passes_run(k, "normal", NULL);
    if (!k->facts.chunkable)
        return NULL;
    kernel_set_chunk(k, w->c->rows);
    passes_run_after(k, "normal", "peel", NULL);
    k = kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0));
    passes_run_after(k, "collapse", NULL, NULL);
    return k;
}

/* False where there is no chunk form, or none that the GPU kernels hold; or where other kernels have to
 * run first, those of values made ahead. */
static bool compile(World *w) {
    static const GradPhase phase[] = {{plan_phase, grad_pull}};
    const char *why = NULL;
    w->k = gradient_of(w);
    if (!w->k || !nv_gradient(w->k->arena, w->k, &w->g, &why) || w->g.s.scan->count > 0)
        return false;
    w->s = &w->g.s;
    CgOptions *opt = NEW(&w->spec->arena, CgOptions);
    *opt = (CgOptions){.target = "sm_90a", .algo = ALGO_chunk, .io = w->c->elem, .opt_level = 2};
    w->cg = cg_open(&w->spec->arena, w->k, opt, &why);
    if (!w->cg || !grad_build(w->cg, &w->module, phase, 1, &why) || !cg_optimize(w->cg, &why))
        fail_msg("%s: %s", w->name, why);
    memcpy(w->at_dx, places, sizeof w->at_dx);
    w->at_dp = places[MAX_FAMILIES];
    w->at_da = places[MAX_FAMILIES + 1];
    w->simt = simt_open(&w->spec->arena, w->cg->mod, w->module.entry.at[0].symbol, &why);
    if (!w->simt)
        fail_msg("%s: %s", w->name, why);
    return true;
}

/* tensors -------------------------------------------------------------------------------------- */

static double element_get(const void *p, int64_t i, Elem e) {
    if (e == ELEM_f32)
        return ((const float *)p)[i];
    return number_get(e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16, ((const uint16_t *)p)[i]);
}

static void element_set(void *p, int64_t i, Elem e, double x) {
    if (e == ELEM_f32)
        ((float *)p)[i] = (float)x;
    else
        ((uint16_t *)p)[i] =
            (uint16_t)number_put(e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16, (float)x);
}

static bool is_log_decay(const Port *p) { return p->hi == 0 && !(p->lo > -INFINITY); }

static bool is_upstream(const Port *p) {
    return p->name[0] == 'd' && (strcmp(p->name, "do") == 0 || strcmp(p->name, "dy") == 0);
}

static double draw_input(World *w, const Port *p, int64_t i) {
    const Case *c = w->c;
    if (is_upstream(p))
        return draw(w) * c->upstream;
    if (is_log_decay(p) && random_unit(&w->seed) < c->resets)
        return -1000;
    if (is_log_decay(p) && (c->steep || !isnan(c->gate)))
        return c->steep ? -30 * (double)(i & 1) : c->gate;
    double x = random_input(p, &w->seed);
    bool open = isinf(p->lo) && isinf(p->hi);
    return open && shape_has(p->shape, AXIS_K) ? x * 1.7 / sqrt(c->K) : x;
}

static void *memory(World *w, int64_t bytes, bool writable) {
    void *p = arena_alloc(&w->arena, (size_t)bytes + 16);
    memset(p, 0xff, (size_t)bytes);
    simt_memory(w->simt, p, (size_t)bytes, writable);
    return p;
}

static void make_inputs(World *w) {
    for (int i = 0; i < w->k->in.count; i++) {
        const Port *p = &w->k->in.at[i];
        int64_t size = shape_elements(w->k, p->shape), rows = p->is_param ? 1 : w->c->T;
        w->in[i] = memory(w, size * rows * w->c->H * elem_size(p->elem), false);
        for (int64_t t = 0; t < rows; t++) {
            bool zero = !p->is_param && shape_has(p->shape, AXIS_K) && !is_log_decay(p) &&
                        random_unit(&w->seed) < w->c->zeros;
            for (int64_t j = 0; j < size * w->c->H; j++)
                element_set(w->in[i], t * size * w->c->H + j, p->elem,
                            zero ? 0 : draw_input(w, p, j));
        }
    }
}

/* values --------------------------------------------------------------------------------------- */

static int axis_of(const Kernel *k, int v) {
    Shape s = inst_at(k, v)->shape;
    return shape_has(s, AXIS_K) ? AXIS_K : shape_has(s, AXIS_V) ? AXIS_V : -1;
}

static int size_of(const Kernel *k, int v) {
    int axis = axis_of(k, v);
    return axis < 0 ? 1 : k->axis.at[axis].size;
}

static double at(const World *w, int v, int t, int e) {
    int n = size_of(w->k, v);
    return t < 0 ? 0 : w->value[v][t * n + (n > 1 ? e : 0)];
}

static double input_at(const World *w, const Inst *i, int head, int t, int n, int e) {
    const Port *p = &w->k->in.at[i->index];
    int64_t size = shape_elements(w->k, p->shape), row = i->row > 0 ? i->row : 0;
    int64_t first = p->is_param ? head : (int64_t)t * w->c->H + head;
    return element_get(w->in[i->index], first * size + row * n + e, p->elem);
}

static double element_of(const World *w, int v, int head, int t, int e) {
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
static void evaluate(World *w, int head) {
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
        w->value[v] = NEW_ARRAY(&w->arena, double, w->c->T * n);
        for (int j = 0; j < w->c->T * n; j++)
            w->value[v][j] = element_of(w, v, head, j / n, j % n);
    }
}

/* Element e of lattice row l of the chunk at token `start`. */
static double lattice(const World *w, int v, int position, int start, int l, int e, double fill) {
    const Inst *i = inst_at(w->k, v);
    int slots = w->s->slots, t = l / slots;
    if (t >= w->s->chunk || start + t >= w->c->T)
        return fill;
    if (i->op == OP_weave)
        return at(w, i->arg[l % slots], start + t, e);
    return l % slots == position ? at(w, v, start + t, e) : fill;
}

/* chunks --------------------------------------------------------------------------------------- */

static bool erases(const World *w, int f) { return w->s->erase && f == 0; }

/* Does row l of a family see the decay, or update, at m? */
static bool sees(const World *w, int f, int l, int m) {
    return f < w->s->families && w->s->family[f].inclusive ? m <= l : m < l;
}

/* Products of decays between update u (-1: the start) and row l (rows: the end) of family f. */
static double between(const World *w, const Chunk *c, int f, int l, int u, int k) {
    double x = 1;
    for (int m = u + 1; m < w->s->rows && (l == w->s->rows || sees(w, f, l, m)); m++)
        x *= c->a[m][k];
    return x;
}

static void solve(const World *w, Chunk *c) {
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

static void make_chunk(World *w, Chunk *c, int start) {
    const System *s = w->s;
    double up = w->c->upstream;
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
                if (erases(w, f))
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
static void add_pair(const World *w, Chunk *c, int f, int l, int u, int k, double term) {
    for (int m = u + 1; m < w->s->rows && (l == w->s->rows || sees(w, f, l, m)); m++) {
        double lam = 1;
        for (int j = u + 1; j < w->s->rows && (l == w->s->rows || sees(w, f, l, j)); j++)
            lam *= j == m && !w->g.a_log ? 1 : c->a[j][k];
        c->da[m][k] += term * lam;
    }
}

static double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static void expect_family(const World *w, Chunk *c, int f) {
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

static void expect(const World *w, Chunk *c) {
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

static double power_below(double x) { return x > 0 ? ldexp(1, ilogb(x)) : 0x1p-126; }

static void put_f32(unsigned char *r, int64_t base, int i, double x) {
    ((float *)(r + base))[i] = (float)x;
}

/* Element (row, column) of a matrix at `base`: nv_place, on this machine. */
static void put_f16(unsigned char *r, int64_t base, int rows, int columns, int row, int column,
                    double x) {
    int width = nv_block_columns(columns) / 8, log = width == 8 ? 3 : width == 4 ? 2 : 1;
    int unit = column / 8, turned = ((unit & (width - 1)) ^ (row >> (3 - log) & (width - 1)));
    int place = (row << log) + turned + (unit >> log) * rows * width;
    ((uint16_t *)(r + base))[place * 8 + column % 8] = (uint16_t)f16_of_float((float)x);
}

typedef double Column(const Chunk *c, int row, int v);
static double state_at(const Chunk *c, int k, int v) { return c->S[v][k]; }
static double costate_at(const Chunk *c, int k, int v) { return c->dS[v][k]; }
static double x_at(const Chunk *c, int l, int v) { return c->X[l][v]; }
static double dx_at(const Chunk *c, int l, int v) { return c->left[0][l][v]; }

/* A matrix whose columns of V have units, of any size that f16 allows; `turned`: V is its rows. */
static void put_matrix(const World *w, const Chunk *c, unsigned char *r, int64_t base, int64_t units,
                       bool turned, Column *get) {
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

static double row_scale(const World *w, const double *x) {
    double most = 0x1p-14;
    for (int k = 0; k < w->s->K; k++)
        most = fmax(most, fabs(x[k]));
    return power_below(most);
}

/* Where an out family's row is kept: on its token's last position. */
static int stored_row(const World *w, int f, int l) {
    int slots = w->s->slots, t = l / slots;
    if (erases(w, f) || t >= w->s->chunk)
        return l;
    return t * slots + (l % slots + slots - 1 - w->s->family[f].position) % slots;
}

static void put_inverse(const World *w, const Chunk *c, unsigned char *r, const double *keys) {
    const System *s = w->s;
    double most = 0, scale = 1;
    for (int i = 0; i < s->rows * s->rows; i++)
        most = fmax(most, fabs(c->A[i / s->rows][i % s->rows] * keys[i / s->rows]));
    while (most / scale > 64)
        scale *= 2;
    put_f32(r, s->ws_scale, 0, scale);
    for (int l = 0; l < s->rows; l++)
        for (int u = 0; u < s->rows; u++)
            put_f16(r, s->ws_a, s->rows, s->rows, l, u, c->A[l][u] * keys[l] / scale);
}

static void put_record(World *w, const Chunk *c, unsigned char *r) {
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
                put_f32(r, fam->ws_rows, stored_row(w, f, l), fam->corrected ? scale * 1.002 : scale);
        }
    }
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

/* running -------------------------------------------------------------------------------------- */

static int64_t address(const void *p) { return (int64_t)(intptr_t)p; }

static void launch(World *w) {
    int64_t frame[256] = {0};
    const Kernel *k = w->k;
    const CgEntry *e = &w->module.entry.at[0];
    const char *why = NULL;
    assert_true(frame_fields(k) <= 256);
    frame[FRAME_T] = w->c->T;
    frame[FRAME_N] = 1;
    frame[FRAME_H] = frame[FRAME_HF] = w->c->H;
    frame[FRAME_WS] = address(w->records);
    frame[FRAME_SLOTS] = w->slots;
    frame[frame_gradient(k, GRAD_SLOTS)] = w->slots;
    frame[frame_gradient(k, GRAD_SCRATCH)] = address(w->scratch);
    for (int i = 0; i < k->in.count; i++) {
        frame[frame_in_ptr(k, i)] = address(w->in[i]);
        frame[frame_in_heads(k, i)] = w->c->H;
    }
    if (!simt_launch(w->simt, frame, frame_fields(k), w->slots * w->c->H, e->threads, e->smem_bytes,
                     &why))
        fail_msg("%s: %s", w->name, why);
}

/* comparing ------------------------------------------------------------------------------------ */

typedef struct Error { double diff, ref; } Error;

static void compare(Error *e, double want, double got) {
    e->diff += (want - got) * (want - got);
    e->ref += want * want;
}

static const char *described(World *w) {
    const Case *c = w->c;
    Buf b;
    buf_init(&b, &w->arena);
    buf_printf(&b, "%s K=%d V=%d %s rows=%d T=%d gate=%g resets=%g%s upstream=%g zeros=%g", w->name, c->K,
               c->V, elem_name(c->elem), w->s->rows, c->T, c->gate, c->resets,
               c->steep ? " steep" : "", c->upstream, c->zeros);
    return b.text;
}

static double judge(World *w, const char *what, const Error *e, double limit) {
    double ratio = isfinite(e->diff) ? sqrt(e->diff) / (sqrt(e->ref) + 1e-30) : INFINITY;
    if (e->ref == 0)
        ratio = sqrt(e->diff) / w->c->upstream;
    if (!(ratio <= limit))
        fail_msg("%s: %s: error %g, may be %g", described(w), what, ratio, limit);
    return ratio;
}

static float result(World *w, int task, int64_t base, int row, int k) {
    const char *at = (const char *)w->scratch + task * w->module.entry.at[0].scratch_bytes + base;
    return ((const float *)at)[row * w->s->kp + k];
}

/* The sum of dx over families of one root, which stands at the first. */
static double expected_dx(const World *w, const Chunk *c, int f, int l, int k) {
    double sum = 0;
    for (int i = f; i < w->s->families; i++)
        if (w->g.family[i].root == w->g.family[f].root)
            sum += c->dx[i][l][k];
    return sum;
}

static void measure(World *w, Chunk *c, int task, Error *e) {
    const System *s = w->s;
    for (int l = 0; l < c->live; l++) {
        double sum = 0;
        for (int k = 0; k < s->K; k++) {
            for (int f = 0; f < s->families; f++)
                compare(&e[f], expected_dx(w, c, f, l, k), result(w, task, w->at_dx[f], l, k));
            compare(&e[MAX_FAMILIES], c->dp[l][k], result(w, task, w->at_dp, l, k));
            sum += c->da[l][k];
            if (w->g.a_root >= 0 && s->a_key)
                compare(&e[MAX_FAMILIES + 1], c->da[l][k], result(w, task, w->at_da, l, k));
        }
        if (w->g.a_root >= 0 && !s->a_key) {
            const char *at = (const char *)w->scratch + task * w->module.entry.at[0].scratch_bytes;
            compare(&e[MAX_FAMILIES + 1], sum, ((const float *)(at + w->at_da))[l]);
        }
    }
}

static void run(World *w) {
    int tasks = w->slots * w->c->H;
    Error e[MAX_FAMILIES + 2] = {{0}};
    Chunk *chunk = calloc((size_t)tasks, sizeof *chunk);
    assert_non_null(chunk);
    w->records = memory(w, tasks * w->s->ws_bytes, false);
    w->scratch = memory(w, tasks * w->module.entry.at[0].scratch_bytes, true);
    for (int i = 0; i < tasks; i++) {
        if (i < w->c->H || w->c->H > 1)
            evaluate(w, i % w->c->H);
        make_chunk(w, &chunk[i], i / w->c->H * w->s->chunk);
        put_record(w, &chunk[i], w->records + i * w->s->ws_bytes);
        expect(w, &chunk[i]);
    }
    launch(w);
    for (int i = 0; i < tasks; i++)
        measure(w, &chunk[i], i, e);
    double worst = 0, gates = 0;
    for (int f = 0; f < w->s->families; f++)
        worst = fmax(worst, judge(w, erases(w, f) ? "erase rows" : "rows", &e[f], 2.5e-3));
    worst = fmax(worst, judge(w, "keys", &e[MAX_FAMILIES], 2.5e-3));
    if (w->g.a_root >= 0)
        gates = judge(w, "decays", &e[MAX_FAMILIES + 1], 5e-3);
    if (getenv("GDR_VERBOSE"))
        print_message("%-100s %.2g %.2g\n", described(w), worst, gates);
    free(chunk);
}

static bool run_case(const char *name, const Case *c) {
    char path[512];
    const char *only = getenv("GDR_SPEC");
    if (only && strcmp(only, name) != 0)
        return false;
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, name);
    *w = (World){.c = c, .name = name, .spec = spec_load(path), .seed = 7};
    arena_init(&w->arena, NULL);
    bool ran = compile(w);
    if (ran) {
        w->slots = (c->T + w->s->chunk - 1) / w->s->chunk;
        make_inputs(w);
        run(w);
    }
    if (w->cg)
        cg_close(w->cg);
    arena_free(&w->arena);
    spec_close(w->spec);
    free(w);
    return ran;
}

/* cases ---------------------------------------------------------------------------------------- */

static const Case cases[] = {
    {64, 64, ELEM_bf16, 64, 50, 1, NAN, 0, false, 1, 0},
    {40, 24, ELEM_f32, 32, 45, 1, NAN, .05, false, 1e-6, 0},
    {32, 100, ELEM_bf16, 64, 60, 1, -.01, 0, false, 1e5, 0},
    {48, 48, ELEM_f16, 16, 33, 2, NAN, 0, true, 1, .2},
};
enum { CASES = sizeof cases / sizeof cases[0] };

/* Two cases a spec, by turns; all of them with GDR_ALL. */
static bool chosen(size_t spec, int number) {
    return getenv("GDR_ALL") || getenv("GDR_SPEC") || (spec + (size_t)number) % 2 == 0;
}

static void test_specs(void **state) {
    (void)state;
    glob_t files;
    int ran = 0;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        char name[64];
        const char *base = strrchr(files.gl_pathv[i], '/') + 1;
        snprintf(name, sizeof name, "%.*s", (int)(strchr(base, '.') - base), base);
        for (int c = 0; c < CASES; c++)
            ran += chosen(i, c) && run_case(name, &cases[c]);
    }
    globfree(&files);
    assert_true(getenv("GDR_SPEC") || ran > 20);
}

/* As large as it gets, with every number of warps, and what overflows a careless number. */
static void test_sizes(void **state) {
    (void)state;
    static const struct { const char *spec; Case c; } run[] = {
        {"gdn2", {128, 128, ELEM_bf16, 64, 64, 1, NAN, .02, false, 1, 0}},
        {"gdn2", {256, 40, ELEM_f32, 16, 20, 1, NAN, 0, false, 1, 0}},
        {"gated_deltanet", {64, 256, ELEM_bf16, 64, 70, 1, NAN, .02, false, 1, 0}},
        {"kda", {33, 17, ELEM_f32, 32, 64, 1, -.001, 0, false, 1e-20, .1}},
        {"gla", {96, 72, ELEM_bf16, 64, 64, 1, 0, 0, false, 1e10, .1}},
        {"simple_gla", {31, 48, ELEM_f16, 64, 64, 1, NAN, 0, true, 1e-3, 0}},
    };
    for (size_t i = 0; i < sizeof run / sizeof run[0]; i++)
        if (!getenv("GDR_SPEC"))
            assert_true(run_case(run[i].spec, &run[i].c));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_specs), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
