/* The fp64 evaluator: every operation against plain C, hand-made chunk systems against the token
 * recurrence (1e-12), padding, memory along time, infinities and NaN. */
#include "ir_test.h"

#include <time.h>

/* running a kernel on random inputs ------------------------------------------------------------ */

enum { MAX_PORTS = 16 };

typedef struct Data {
    int64_t T;
    double *in[MAX_PORTS], *out[MAX_PORTS], *state;
    int64_t in_len[MAX_PORTS], out_len[MAX_PORTS], state_len;
} Data;

/* Inputs named d... or z... are decays in [0, 1], z with zeros among them; the rest is around 0. */
static double random_input(Rng *r, const char *name) {
    double x = rng_unit(r);
    if (name[0] == 'z' && rng_below(r, 10) < 3)
        return 0;
    return name[0] == 'd' || name[0] == 'z' ? exp(-3 * x * x) : 0.4 * 1.7 * x;
}

static Data data_new(World *w, const Kernel *k, int64_t T, uint64_t seed) {
    Data d = {.T = T};
    Rng r = {seed};
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        d.in_len[i] = shape_elements(k, p->shape) * (p->is_param ? 1 : T);
        d.in[i] = NEW_ARRAY(&w->arena, double, d.in_len[i] + 1);
        for (int64_t j = 0; j < d.in_len[i]; j++)
            d.in[i][j] = random_input(&r, p->name);
    }
    for (int i = 0; i < k->out.count; i++) {
        d.out_len[i] = shape_elements(k, k->out.at[i].shape) * T;
        d.out[i] = NEW_ARRAY(&w->arena, double, d.out_len[i] + 1);
    }
    d.state_len = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
    d.state = NEW_ARRAY(&w->arena, double, d.state_len + 1);
    for (int64_t j = 0; j < d.state_len; j++)
        d.state[j] = rng_unit(&r);
    return d;
}

static void run(World *w, const Kernel *k, Data *d) {
    EvalArgs args = {.T = d->T, .in = (const double *const *)d->in, .out = d->out,
                     .state = d->state};
    kernel_eval(k, &w->arena, &args);
}

static void assert_close(const double *a, const double *b, int64_t n, const char *what) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(a[i] - b[i]) <= 1e-12 * (1 + fabs(a[i]))))
            fail_msg("%s[%lld]: %.17g, %.17g", what, (long long)i, a[i], b[i]);
}

/* the chunk system ----------------------------------------------------------------------------- */

#define PORTS                                                                                      \
    " in r0 : f32[K]\n in r1 : f32[K]\n in p0 : f32[K]\n in p1 : f32[K]\n"                         \
    " in c0 : f32[V]\n in c1 : f32[V]\n in q0 : f32[K]\n in q1 : f32[K]\n"                         \
    " in d : f32[K] in [0, 1]\n in z : f32[K] in [0, 1]\n param one : f32[K]\n"                    \
    " out o : f32[V]\n out e : f32[V]\n state S\n"
#define LOADS                                                                                      \
    " %r0 = in r0\n %r1 = in r1\n %p0 = in p0\n %p1 = in p1\n %c0 = in c0\n %c1 = in c1\n"         \
    " %q0 = in q0\n %q1 = in q1\n %d = in d\n %z = in z\n %one = in one\n %0 = const 0\n"          \
    " %1 = const 1\n %zv = mul %c0, %0\n"
/* From the woven operands P, A and E, C (E to be read in minus: X = C - E S), T and outs on. */
#define SOLVE                                                                                      \
    " %I = solve %T\n %S = state\n %Eg = carry %E, %A\n %ES = contract %Eg, %S over K\n"           \
    " %X = sub %C, %ES\n %tl = tail %P, %A\n %Pt = contract %I, %tl over U\n"                      \
    " %PX = contract %Pt, %X over R\n %D = total %A\n %DS = mul %D, %S\n"                          \
    " %next = add %DS, %PX\n next %next\n"
/* Output `o` reads with x at `place`; names must differ, hence the suffix s. */
#define OUT(port, x, place, s)                                                                     \
    " %G" s " = scores " x ", %P, %A place " place "\n %M" s " = contract %G" s ", %I over U\n"    \
    " %Q" s " = carry " x ", %A place " place "\n %QS" s " = contract %Q" s ", %S over K\n"        \
    " %MX" s " = contract %M" s ", %X over R\n %o" s " = add %QS" s ", %MX" s "\n"                 \
    " out " port " = %o" s "\n"

/* The four token programs of the algorithm's check, and their chunk systems by hand. Reads stand
 * right after the previous update; decays between that update and the read are in the row. */
static const struct Case { const char *name; int slots; const char *token, *chunk; } cases[] = {
    {"delta", 1,
     " decay %d\n %y = read %r0\n %n = neg %y\n %u = add %c0, %n\n update %p0, %u\n"
     " %o = read %q0\n out o = %o\n out e = %o\n",
     " %P = weave %p0 onto U\n %A = weave %d onto U fill 1\n %dr = mul %d, %r0\n"
     " %E = weave %dr onto R\n %C = weave %c0 onto R\n %T = scores %E, %P, %A\n" SOLVE
     OUT("o", "%q0", "1", "a") " out e = %oa\n"},
    {"dplr", 2,
     " %y = read %r0\n decay %d\n %a = const 0.7\n %u0 = mul %a, %y\n update %p0, %u0\n"
     " update %p1, %c1\n %o = read %q0\n out o = %o\n out e = %o\n",
     " %P = weave %p0, %p1 onto U\n %A = weave %d, %1 onto U fill 1\n %a = const -0.7\n"
     " %ar = mul %a, %r0\n %E = weave %ar, %0 onto R\n %C = weave %zv, %c1 onto R\n"
     " %T = scores %E, %P, %A\n" SOLVE OUT("o", "%q0", "2", "a") " out e = %oa\n"},
    /* The second update also takes .3 of the first read: y0 = c0 - z0, so C gains .3 c0 and T gains
     * .3 one place below the diagonal, in rows of slot 1. */
    {"product", 2,
     " decay %d\n %y0 = read %r0\n %u0 = sub %c0, %y0\n update %p0, %u0\n %y1 = read %r1\n"
     " %a = const 0.3\n %ay = mul %a, %y0\n %s = sub %c1, %y1\n %u1 = add %s, %ay\n"
     " update %p1, %u1\n %o = read %q0\n out o = %o\n out e = %o\n",
     " %P = weave %p0, %p1 onto U\n %A = weave %d, %1 onto U fill 1\n %dr = mul %d, %r0\n"
     " %E = weave %dr, %r1 onto R\n %a = const 0.3\n %ac = mul %a, %c0\n %cs = add %c1, %ac\n"
     " %C = weave %c0, %cs onto R\n %Ts = scores %E, %P, %A\n"
     " %fifth = const 0.06\n %f = mul %fifth, %one\n %fr = weave %0, %f onto R\n"
     " %ones = weave %one, %one onto U\n %none = weave %0, %0 onto U\n"
     " %Tb = scores %fr, %ones, %none\n %T = add %Ts, %Tb\n" SOLVE
     OUT("o", "%q0", "2", "a") " out e = %oa\n"},
    {"mixed", 1,
     " %e = read %q1\n out e = %e\n decay %z\n %y0 = read %r0\n decay %d\n %y1 = read %r1\n"
     " %a = const -0.5\n %y = add %y0, %y1\n %ay = mul %a, %y\n %u = add %c0, %ay\n"
     " update %p0, %u\n %o = read %q0\n out o = %o\n",
     " %P = weave %p0 onto U\n %zd = mul %z, %d\n %A = weave %zd onto U fill 1\n"
     " %x0 = mul %z, %r0\n %x1 = mul %zd, %r1\n %x = add %x0, %x1\n %a = const 0.5\n"
     " %ax = mul %a, %x\n %E = weave %ax onto R\n %C = weave %c0 onto R\n"
     " %T = scores %E, %P, %A\n" SOLVE OUT("o", "%q0", "1", "a") OUT("e", "%q1", "0", "b")},
};

/* A case's kernel; 0 tokens a chunk = the recurrence. */
static Kernel *case_kernel(World *w, const struct Case *c, int tokens, int keys, int values) {
    char text[8192];
    int rows = tokens * c->slots;
    snprintf(text, sizeof text, "kernel t %s {\n axis C = %d, R = %d, U = %d, K = %d, V = %d\n%s%s%s}\n",
             tokens ? "chunk" : "recurrence", tokens, rows, rows, keys, values, PORTS, LOADS,
             tokens ? c->chunk : c->token);
    return parse_legal(w, text);
}

static void compare_case(const struct Case *c, int64_t T, int tokens) {
    World *w = world_open();
    Kernel *token = case_kernel(w, c, 0, 5, 4), *chunk = case_kernel(w, c, tokens, 5, 4);
    Data a = data_new(w, token, T, 7), b = data_new(w, chunk, T, 7);
    for (int i = 0; i < 5; i++)
        a.in[10][i] = b.in[10][i] = 1;
    run(w, token, &a);
    run(w, chunk, &b);
    assert_close(a.out[0], b.out[0], a.out_len[0], c->name);
    assert_close(a.out[1], b.out[1], a.out_len[1], c->name);
    assert_close(a.state, b.state, a.state_len, c->name);
    world_close(w);
}

static void chunk_systems_equal_the_recurrence(void **state) {
    (void)state;
    static const int64_t length[] = {0, 1, 2, 5, 6, 17};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t l = 0; l < sizeof length / sizeof *length; l++)
            for (int tokens = 1; tokens <= 6; tokens++)
                compare_case(&cases[i], length[l], tokens);
}

/* every operation ------------------------------------------------------------------------------ */

static void elementwise_operations(void **state) {
    (void)state;
    static const double at[] = {-INFINITY, -1000, -2.5, -0.0, 0.0, 0.75, 3, 1000, INFINITY, NAN};
    for (int i = 0; i < 10; i++)
        for (int j = 0; j < 10; j++) {
            double a = at[i], b = at[j];
            bool nan = isnan(a) || isnan(b);
            assert_true(same_double(op_eval(OP_add, a, b), a + b));
            assert_true(same_double(op_eval(OP_sub, a, b), a - b));
            assert_true(same_double(op_eval(OP_mul, a, b), a * b));
            assert_true(same_double(op_eval(OP_div, a, b), a / b));
            assert_true(same_double(op_eval(OP_pow, a, b), pow(a, b)));
            double lo = op_eval(OP_min, a, b), hi = op_eval(OP_max, a, b);
            assert_true(nan ? isnan(lo) && isnan(hi) : lo == fmin(a, b) && hi == fmax(a, b));
        }
    for (int i = 0; i < 10; i++) {
        double a = at[i];
        assert_true(same_double(op_eval(OP_neg, a, 0), -a));
        assert_true(same_double(op_eval(OP_exp, a, 0), exp(a)));
        assert_true(same_double(op_eval(OP_log, a, 0), log(a)));
        assert_true(same_double(op_eval(OP_sqrt, a, 0), sqrt(a)));
        assert_true(same_double(op_eval(OP_rsqrt, a, 0), 1 / sqrt(a)));
        assert_true(same_double(op_eval(OP_tanh, a, 0), tanh(a)));
        assert_true(same_double(op_eval(OP_abs, a, 0), fabs(a)));
        assert_true(same_double(op_eval(OP_cos, a, 0), cos(a)));
        assert_true(same_double(op_eval(OP_sin, a, 0), sin(a)));
    }
    assert_true(op_eval(OP_sigmoid, -1000, 0) == 0 && op_eval(OP_sigmoid, 1000, 0) == 1);
    assert_true(op_eval(OP_sigmoid, -INFINITY, 0) == 0 && op_eval(OP_sigmoid, 0, 0) == 0.5);
    assert_true(op_eval(OP_sigmoid, -700, 0) == exp(-700));
    assert_true(op_eval(OP_softplus, 1000, 0) == 1000 && op_eval(OP_softplus, -1000, 0) == 0);
    assert_true(op_eval(OP_softplus, 0, 0) == log(2) && op_eval(OP_softplus, -40, 0) == exp(-40));
    assert_true(op_eval(OP_relu, -3, 0) == 0 && op_eval(OP_relu, 3, 0) == 3);
    assert_true(op_eval(OP_silu, 2, 0) == 2 / (1 + exp(-2)));
    for (Op op = OP_exp; op <= OP_sin; op++)
        assert_true(isnan(op_eval(op, NAN, 0)));
}

/* Rows of a port, broadcasting, sums and outputs without axis C, with a chunk that is not full. */
static void rows_broadcast_and_sum(void **state) {
    (void)state;
    static const char body[] =
        " in k : f32[n,K]\n in b : f32[]\n in h : f32[n]\n param A : f32[K]\n out o : f32[K]\n"
        " out s : f32[]\n out c : f32[K]\n"
        " %k1 = in k row 1\n %b = in b\n %h = in h row 2\n %A = in A\n %x = mul %b, %k1\n"
        " %y = sub %A, %x\n %z = mul %y, %h\n %s = sum %z over K\n"
        " out o = %z\n out s = %s\n out c = %A\n}\n";
    static const char *const head[] = {
        "kernel t recurrence {\n axis C = 0, R = 0, U = 0, K = 3, V = 2, n = 3\n",
        "kernel t chunk {\n axis C = 4, R = 4, U = 4, K = 3, V = 2, n = 3\n"};
    for (int level = 0; level < 2; level++) {
        World *w = world_open();
        char text[1024];
        snprintf(text, sizeof text, "%s%s", head[level], body);
        Kernel *k = parse_legal(w, text);
        Data d = data_new(w, k, 6, 3);
        run(w, k, &d);
        for (int t = 0; t < 6; t++) {
            double sum = 0;
            for (int i = 0; i < 3; i++) {
                double x = (d.in[3][i] - d.in[1][t] * d.in[0][t * 9 + 3 + i]) * d.in[2][t * 3 + 2];
                assert_true(d.out[0][t * 3 + i] == x);
                assert_true(d.out[2][t * 3 + i] == d.in[3][i]);
                sum += x;
            }
            assert_true(d.out[1][t] == sum);
        }
        world_close(w);
    }
}

/* prev and cumsum carry over chunk borders, also of constants, and start anew with each run. */
static void memory_along_time(void **state) {
    (void)state;
    for (int tokens = 0; tokens <= 4; tokens++) {
        World *w = world_open();
        char text[1024];
        snprintf(text, sizeof text,
                 "kernel t %s {\n axis C = %d, R = %d, U = %d, K = 2, V = 2\n in x : f32[K]\n"
                 " param A : f32[]\n out p : f32[K]\n out c : f32[K]\n out a : f32[]\n out n : f32[]\n"
                 " %%x = in x\n %%A = in A\n %%p = prev %%x\n %%c = cumsum %%x\n"
                 " %%a = prev %%A\n %%n = cumsum %%A\n out p = %%p\n out c = %%c\n out a = %%a\n"
                 " out n = %%n\n}\n",
                 tokens ? "chunk" : "recurrence", tokens, tokens, tokens);
        Kernel *k = parse_legal(w, text);
        Data d = data_new(w, k, 7, 11);
        for (int again = 0; again < 2; again++) {
            double sum[2] = {0, 0}, count = 0;
            run(w, k, &d);
            for (int t = 0; t < 7; t++) {
                for (int i = 0; i < 2; i++) {
                    assert_true(d.out[0][2 * t + i] == (t ? d.in[0][2 * t - 2 + i] : 0));
                    assert_true(d.out[1][2 * t + i] == (sum[i] += d.in[0][2 * t + i]));
                }
                assert_true(d.out[2][t] == (t ? d.in[1][0] : 0));
                assert_true(d.out[3][t] == (count += d.in[1][0]));
            }
        }
        world_close(w);
    }
}

/* State operations on either side: decays over K, over V and by a scalar, reads both ways. */
static void state_operations(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w,
        "kernel t recurrence {\n axis C = 0, R = 0, U = 0, K = 2, V = 3\n"
        " in a : f32[K]\n in b : f32[V]\n in c : f32[]\n out x : f32[V]\n out y : f32[K]\n state S\n"
        " %a = in a\n %b = in b\n %c = in c\n decay %a\n decay %b\n decay %c\n update %a, %b\n"
        " update %a, %c\n %x = read %a\n %y = read %b\n out x = %x\n out y = %y\n}\n");
    Data d = data_new(w, k, 1, 5);
    double S[2][3], x[3] = {0}, y[2] = {0}, *a = d.in[0], *b = d.in[1], c = d.in[2][0];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) {
            S[i][j] = d.state[3 * i + j] * a[i] * b[j] * c + a[i] * b[j] + a[i] * c;
            x[j] += a[i] * S[i][j];
            y[i] += b[j] * S[i][j];
        }
    run(w, k, &d);
    assert_close(x, d.out[0], 3, "S'a");
    assert_close(y, d.out[1], 2, "S b");
    assert_close(&S[0][0], d.state, 6, "S");
    world_close(w);
}

enum { TOKENS = 3, SLOTS = 2, UPDATES = 6, KEYS = 2 };

/* Product of the decays a[m], lo <= m < hi. */
static double product(double a[UPDATES][KEYS], int lo, int hi, int i) {
    double x = 1;
    for (int m = lo; m < hi; m++)
        x *= a[m][i];
    return x;
}

/* sum_u G[l,u] y[u] with G by its definition, for a left row x whose place is p. */
static void apply_scores(const double *x, double y[UPDATES][KEYS], double a[UPDATES][KEYS], int p,
                         double *out) {
    memset(out, 0, KEYS * sizeof *out);
    for (int u = 0; u < p; u++) {
        double g = 0;
        for (int i = 0; i < KEYS; i++)
            g += x[i] * product(a, u + 1, p, i) * y[u][i];
        for (int i = 0; i < KEYS; i++)
            out[i] += g * y[u][i];
    }
}

/* The lattice operations one by one against their definitions, with decays over K, scalar and none;
 * a constant left row stands for every token. Two updates a token, places 1 and 2. */
static void lattice_operations(void **state) {
    (void)state;
    static const char *const decay[] = {"%a", "%s", "none"};
    for (int kind = 0; kind < 3; kind++) {
        World *w = world_open();
        char text[2048];
        const char *a = decay[kind];
        snprintf(text, sizeof text,
                 "kernel t chunk {\n axis C = 3, R = 6, U = 6, K = 2, V = 2\n"
                 " in x : f32[K]\n in y : f32[K]\n in d : f32[K]\n in ds : f32[]\n param p : f32[K]\n"
                 " in v : f32[V]\n out g : f32[K]\n out h : f32[K]\n out c : f32[K]\n state S\n"
                 " %%x = in x\n %%y = in y\n %%d = in d\n %%ds = in ds\n %%p = in p\n %%1 = const 1\n"
                 " %%Y = weave %%y, %%x onto U\n %%a = weave %%d, %%1 onto U fill 1\n"
                 " %%s = weave %%1, %%ds onto U fill 1\n"
                 " %%g = scores %%x, %%Y, %s place 1\n %%gy = contract %%g, %%Y over U\n"
                 " %%h = scores %%p, %%Y, %s place 2\n %%hy = contract %%h, %%Y over U\n"
                 " %%c = carry %%x, %s place 1\n out g = %%gy\n out h = %%hy\n out c = %%c\n"
                 " %%t = tail %%Y, %s\n %%r = rename %%t from U to R\n %%v = in v\n"
                 " %%V = weave %%v, %%v onto R\n %%n = contract %%r, %%V over R\n next %%n\n}\n",
                 a, a, a, a);
        Kernel *k = parse_legal(w, text);
        Data d = data_new(w, k, TOKENS, 9);
        double y[UPDATES][KEYS], m[UPDATES][KEYS], want[KEYS], next[KEYS * 2] = {0};
        for (int u = 0; u < UPDATES; u++)
            for (int i = 0; i < KEYS; i++) {
                int t = u / SLOTS, s = u % SLOTS;
                y[u][i] = d.in[s == 0][t * KEYS + i];
                m[u][i] = kind == 0 && s == 0   ? d.in[2][t * KEYS + i]
                          : kind == 1 && s == 1 ? d.in[3][t]
                                                : 1;
            }
        run(w, k, &d);
        for (int t = 0; t < TOKENS; t++) {
            const double *x = &d.in[0][t * KEYS];
            apply_scores(x, y, m, t * SLOTS + 1, want);
            assert_close(want, &d.out[0][t * KEYS], KEYS, "scores at place 1");
            apply_scores(d.in[4], y, m, t * SLOTS + 2, want);
            assert_close(want, &d.out[1][t * KEYS], KEYS, "scores of a constant at place 2");
            for (int i = 0; i < KEYS; i++)
                want[i] = x[i] * product(m, 0, t * SLOTS + 1, i);
            assert_close(want, &d.out[2][t * KEYS], KEYS, "carry");
        }
        for (int u = 0; u < UPDATES; u++)
            for (int i = 0; i < KEYS; i++)
                for (int j = 0; j < 2; j++)
                    next[2 * i + j] += y[u][i] * product(m, u + 1, UPDATES, i) *
                                       d.in[5][u / SLOTS * 2 + j];
        assert_close(next, d.state, KEYS * 2, "tail");
        world_close(w);
    }
}

static void infinities_and_nan_stay_in_their_rows(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = case_kernel(w, &cases[0], 4, 5, 4);
    Data a = data_new(w, k, 8, 1), b = data_new(w, k, 8, 1);
    b.in[6][5 * 5] = NAN; /* q0 of token 5: its own output alone */
    run(w, k, &a);
    run(w, k, &b);
    for (int t = 0; t < 8; t++)
        for (int j = 0; j < 4; j++)
            assert_true(t == 5 ? isnan(b.out[0][t * 4 + j])
                               : a.out[0][t * 4 + j] == b.out[0][t * 4 + j]);
    world_close(w);
}

/* A weave's fill, not the operand, holds in padded rows: exp(0 + A) would grow the state. */
static void padding_is_neutral(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w,
        "kernel t chunk {\n axis C = 4, R = 4, U = 4, K = 1, V = 1\n in g : f32[]\n param A : f32[]\n"
        " state S\n %g = in g\n %A = in A\n %x = add %g, %A\n %e = exp %x\n"
        " %a = weave %e onto U fill 1\n %D = total %a\n %S = state\n %n = mul %D, %S\n next %n\n}\n");
    Data d = data_new(w, k, 5, 2);
    double want = d.state[0];
    for (int t = 0; t < 5; t++)
        want *= exp(d.in[0][t] + d.in[1][0]);
    run(w, k, &d);
    assert_close(&want, d.state, 1, "S");
    world_close(w);
}

static void no_state_from_the_caller(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w,
        "kernel t recurrence {\n axis C = 0, R = 0, U = 0, K = 2, V = 2\n in k : f32[K]\n"
        " in v : f32[V]\n out o : f32[V]\n state S\n %k = in k\n %v = in v\n update %k, %v\n"
        " %o = read %k\n out o = %o\n}\n");
    Data a = data_new(w, k, 3, 4), b = data_new(w, k, 3, 4);
    memset(a.state, 0, (size_t)a.state_len * sizeof(double));
    b.state = NULL;
    run(w, k, &a);
    run(w, k, &b);
    assert_memory_equal(a.out[0], b.out[0], (size_t)a.out_len[0] * sizeof(double));
    world_close(w);
}

/* The oracle is called thousands of times by the tests of the passes. */
static void is_not_slow(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = case_kernel(w, &cases[0], 64, 64, 64);
    Data d = data_new(w, k, 256, 1);
    clock_t start = clock();
    run(w, k, &d);
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 2);
    assert_true(isfinite(d.out[0][255 * 64]));
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunk_systems_equal_the_recurrence),
        cmocka_unit_test(elementwise_operations),
        cmocka_unit_test(rows_broadcast_and_sum),
        cmocka_unit_test(memory_along_time),
        cmocka_unit_test(state_operations),
        cmocka_unit_test(lattice_operations),
        cmocka_unit_test(infinities_and_nan_stay_in_their_rows),
        cmocka_unit_test(padding_is_neutral),
        cmocka_unit_test(no_state_from_the_caller),
        cmocka_unit_test(is_not_slow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
