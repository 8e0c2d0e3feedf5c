/* Recurrence kernels for tests of the passes, built without the front end: a few named ones and
 * random ones, and data to run them on. */
#ifndef GDR_TESTS_RECURRENCES_H
#define GDR_TESTS_RECURRENCES_H

#include "passes/passes.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* splitmix64: small, seedable, the same everywhere. */
typedef struct Rng { uint64_t s; } Rng;

static inline uint64_t rng_next(Rng *r) {
    uint64_t z = (r->s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline int rng_below(Rng *r, int n) { return (int)(rng_next(r) % (uint64_t)n); }
static inline double rng_unit(Rng *r) { return (double)(rng_next(r) >> 11) * 0x1p-53; }
static inline double rng_normal(Rng *r) {
    return sqrt(-2 * log(rng_unit(r) + 1e-300)) * cos(6.283185307179586 * rng_unit(r));
}

/* Builder: one kernel, its ports added on the way. Shapes are written "", "K", "V". */
typedef struct Build { Kernel *k; int ports; } Build;

static inline Build build_new(Arena *a, Interner *names, const char *name, int K, int V) {
    Build b = {.k = kernel_new(a, names, name)};
    b.k->axis.at[AXIS_K].size = K;
    b.k->axis.at[AXIS_V].size = V;
    b.k->state_name = intern_z(names, "S");
    return b;
}

static inline Shape build_shape(const char *axes) {
    Shape s = shape_scalar();
    for (; *axes; axes++)
        s = shape_with(s, *axes == 'K' ? AXIS_K : AXIS_V);
    return s;
}

static inline int build_port(Build *b, const char *name, const char *axes, bool is_param) {
    Port p = {.name = intern_z(b->k->names, name), .shape = build_shape(axes), .is_param = is_param,
              .lo = -INFINITY, .hi = INFINITY};
    VEC_PUSH(b->k->arena, &b->k->in, p);
    return emit_in(b->k, b->k->in.count - 1, -1, (Span){0, 0});
}
static inline int build_in(Build *b, const char *name, const char *axes) {
    return build_port(b, name, axes, false);
}
/* A fresh input with a name of its own; names that start with g are log-decays (see data_fill). */
static inline int build_fresh(Build *b, char kind, const char *axes, bool is_param) {
    char name[16];
    snprintf(name, sizeof name, "%c%d", kind, b->ports++);
    return build_port(b, name, axes, is_param);
}

static inline void build_out(Build *b, const char *name, int v) {
    Port p = {.name = intern_z(b->k->names, name), .shape = inst_at(b->k, v)->shape,
              .lo = -INFINITY, .hi = INFINITY};
    VEC_PUSH(b->k->arena, &b->k->out, p);
    emit_out(b->k, b->k->out.count - 1, v, (Span){0, 0});
}

#define AT ((Span){0, 0})
static inline int mul_(Build *b, int x, int y) { return emit2(b->k, OP_mul, x, y, AT); }
static inline int add_(Build *b, int x, int y) { return emit2(b->k, OP_add, x, y, AT); }
static inline int sub_(Build *b, int x, int y) { return emit2(b->k, OP_sub, x, y, AT); }
static inline int exp_(Build *b, int x) { return emit1(b->k, OP_exp, x, AT); }
static inline int read_(Build *b, int x) { return emit_read(b->k, x, AT); }
static inline void decay_(Build *b, int x) { emit_decay(b->k, x, AT); }
static inline void update_(Build *b, int p, int z) { emit_update(b->k, p, z, AT); }
static inline int l2norm_(Build *b, int x) {
    int square = emit_sum(b->k, mul_(b, x, x), AXIS_K, AT);
    return mul_(b, x, emit1(b->k, OP_rsqrt, add_(b, square, emit_const(b->k, 1e-6)), AT));
}

/* gdn2, kda, gated_deltanet, deltanet, gla, retnet, linear, dplr, deltaproduct; NULL past the end. */
static inline Kernel *named_kernel(Arena *a, Interner *names, int which, int K, int V) {
    static const char *const name[] = {"gdn2", "kda", "gated_deltanet", "deltanet", "gla", "retnet",
                                       "linear", "dplr", "deltaproduct"};
    if (which >= (int)(sizeof name / sizeof *name))
        return NULL;
    Build b = build_new(a, names, name[which], K, V);
    const char *n = name[which];
    bool gdn2 = !strcmp(n, "gdn2"), kda = !strcmp(n, "kda"), delta = !strcmp(n, "deltanet");
    bool gla = !strcmp(n, "gla"), retnet = !strcmp(n, "retnet"), dplr = !strcmp(n, "dplr");
    bool linear = !strcmp(n, "linear"), product = !strcmp(n, "deltaproduct");
    int q = mul_(&b, l2norm_(&b, build_in(&b, "q", "K")), emit_const(b.k, pow(K, -0.5)));
    int key = l2norm_(&b, build_in(&b, "k", "K")), v = build_in(&b, "v", "V");
    int before = dplr ? read_(&b, build_in(&b, "alpha", "K")) : -1;
    if (retnet)
        decay_(&b, exp_(&b, build_port(&b, "g", "", true)));
    else if (!delta && !linear)
        decay_(&b, exp_(&b, build_in(&b, "g", gdn2 || kda || gla || dplr ? "K" : "")));
    if (gla || retnet || linear) {
        update_(&b, key, v);
    } else if (dplr) {
        update_(&b, build_in(&b, "beta", "K"), before);
        update_(&b, key, v);
    } else if (gdn2) {
        int r = read_(&b, mul_(&b, build_in(&b, "b", "K"), key));
        update_(&b, key, sub_(&b, mul_(&b, build_in(&b, "w", "V"), v), r));
    } else {
        int beta = emit1(b.k, OP_sigmoid, build_in(&b, "b", ""), AT);
        update_(&b, key, mul_(&b, beta, sub_(&b, v, read_(&b, key))));
    }
    if (product) {
        int key2 = l2norm_(&b, build_in(&b, "k2", "K")), beta = build_in(&b, "b2", "");
        update_(&b, key2, mul_(&b, beta, sub_(&b, build_in(&b, "v2", "V"), read_(&b, key2))));
    }
    build_out(&b, "o", read_(&b, q));
    return b.k;
}

/* An input as it is, or as it was a token before, its pairs turned, or an angle that grows with time. */
static inline int random_value(Build *b, Rng *r, char kind, const char *axes) {
    int x = build_fresh(b, kind, axes, rng_below(r, 6) == 0);
    int axis = axes[0] == 'K' ? AXIS_K : AXIS_V;
    switch (rng_below(r, 8)) {
    case 0: return emit1(b->k, OP_prev, x, AT);
    case 1: return emit1(b->k, OP_cos, emit1(b->k, OP_cumsum, x, AT), AT);
    case 3: return b->k->axis.at[axis].size % 2 ? x : emit_turn(b->k, x, axis, AT);
    case 2: return mul_(b, emit1(b->k, OP_sigmoid, build_fresh(b, 's', "", false), AT), x);
    default: return x;
    }
}

/* Any ordered list of decays, reads, updates and outs that has a chunk form. */
static inline Kernel *random_kernel(Arena *a, Interner *names, Rng *r) {
    Build b = build_new(a, names, "random", 1 + rng_below(r, 7), 1 + rng_below(r, 7));
    int read[16], reads = 0, events = rng_below(r, 8), outs = 0;
    bool scalar_only = rng_below(r, 3) == 0;
    for (int e = 0; e < events; e++) {
        int what = rng_below(r, 4);
        if (what == 0) {
            const char *axes = !scalar_only && rng_below(r, 2) ? "K" : "";
            decay_(&b, exp_(&b, build_fresh(&b, 'g', axes, rng_below(r, 4) == 0)));
        } else if (what == 1) {
            read[reads++] = read_(&b, random_value(&b, r, 'r', "K"));
        } else if (what == 2) {
            int z = random_value(&b, r, 'c', "V");
            if (reads && rng_below(r, 6) == 0)
                z = read[rng_below(r, reads)];
            for (int j = 0; j < reads; j++) {
                int coef = rng_below(r, 2) ? build_fresh(&b, 'a', "", false)
                                           : emit_const(b.k, rng_below(r, 2) ? -1 : 0.5);
                if (rng_below(r, 3) == 0)
                    z = add_(&b, z, mul_(&b, coef, read[j]));
                else if (rng_below(r, 3) == 0)
                    z = mul_(&b, coef, sub_(&b, z, read[j]));
                else if (rng_below(r, 6) == 0)
                    z = emit2(b.k, OP_div, emit1(b.k, OP_neg, z, AT), emit_const(b.k, 1.5), AT);
            }
            update_(&b, random_value(&b, r, 'k', "K"), z);
        } else if (reads && outs < 3) {
            char name[16];
            snprintf(name, sizeof name, "o%d", outs++);
            int o = emit1(b.k, OP_silu, read[rng_below(r, reads)], AT);
            build_out(&b, name, add_(&b, mul_(&b, o, build_fresh(&b, 'w', "V", false)),
                                     read[rng_below(r, reads)]));
        }
    }
    build_out(&b, "o", read_(&b, random_value(&b, r, 'q', "K")));
    return b.k;
}

/* Inputs, outputs and a state for T tokens. Log-decays (names with g) follow a regime: 0 zero,
 * 1 -1e-6, 2 U(-5,-.1), 3 -20, 4 mostly mild with resets of -1000, 5 anything of these. */
typedef struct Data { EvalArgs args; double *state0; int64_t *out_size; } Data;

static inline double log_decay(Rng *r, int regime) {
    switch (regime == 5 ? rng_below(r, 5) : regime) {
    case 0: return 0;
    case 1: return -1e-6;
    case 2: return -0.1 - 4.9 * rng_unit(r);
    case 3: return -20;
    default: return rng_below(r, 5) == 0 ? -1000 : -0.3 * rng_unit(r);
    }
}

static inline Data data_fill(Arena *a, const Kernel *k, Rng *r, int64_t T, int regime) {
    Data d = {.args.T = T};
    const double **in = NEW_ARRAY(a, const double *, k->in.count + 1);
    double **out = NEW_ARRAY(a, double *, k->out.count + 1);
    d.out_size = NEW_ARRAY(a, int64_t, k->out.count + 1);
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t n = shape_elements(k, p->shape) * (p->is_param ? 1 : T);
        double *x = NEW_ARRAY(a, double, n + 1);
        bool bounded = isfinite(p->lo) && isfinite(p->hi);
        for (int64_t j = 0; j < n; j++)
            x[j] = bounded ? p->lo + (p->hi - p->lo) * rng_unit(r)
                 : p->name[0] == 'g' ? log_decay(r, regime) : 0.5 * rng_normal(r);
        in[i] = x;
    }
    for (int o = 0; o < k->out.count; o++) {
        d.out_size[o] = shape_elements(k, k->out.at[o].shape) * T;
        out[o] = NEW_ARRAY(a, double, d.out_size[o] + 1);
    }
    int64_t n = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
    d.state0 = NEW_ARRAY(a, double, n);
    for (int64_t j = 0; j < n; j++)
        d.state0[j] = rng_normal(r);
    d.args.in = in;
    d.args.out = out;
    d.args.state = NEW_ARRAY(a, double, n);
    return d;
}

/* Run from the initial state; the outputs in order, then the final state, as one list. */
static inline double *data_run(Arena *a, const Kernel *k, Data *d, int64_t *count) {
    int64_t n = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size, total = n, at = 0;
    for (int o = 0; o < k->out.count; o++)
        total += d->out_size[o];
    double *all = NEW_ARRAY(a, double, total);
    memcpy(d->args.state, d->state0, (size_t)n * sizeof(double));
    kernel_eval(k, a, &d->args);
    for (int o = 0; o < k->out.count; at += d->out_size[o++])
        memcpy(all + at, d->args.out[o], (size_t)d->out_size[o] * sizeof(double));
    memcpy(all + at, d->args.state, (size_t)n * sizeof(double));
    *count = total;
    return all;
}

#endif
