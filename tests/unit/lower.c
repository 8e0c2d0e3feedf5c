/* Lowering: the kernel of every spec, and of every way to write an update, does in fp64 what the
 * reference says; and it is as short as it should be. */
#include "tests/unit/spec_test.h"

#include <glob.h>

static const SpecBind small = {(const SpecDim[]){{"K", 6}, {"V", 7}}, 2}; /* K in pairs, for turn */
static const SpecBind wide = {(const SpecDim[]){{"K", 4}, {"V", 1}}, 2};

static void every_spec(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    assert_true(files.gl_pathc >= 14);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        Spec *s = spec_load(files.gl_pathv[i]);
        assert_int_equal(s->d.warnings, 0);
        for (int v = 0; v < s->file->variant.count; v++) {
            const char *name = s->file->variant.at[v]->name;
            agree(s, name, &small, 12, 1);
            agree(s, name, &wide, 3, 2);
            agree(s, name, &small, 0, 3);
        }
        spec_close(s);
    }
    globfree(&files);
}

/* A variant around statements that use p, q, r, s, x [K], v, w, y [V], a, c scalars. */
static Spec *with_update(const char *statements) {
    char text[2000];
    int n = snprintf(text, sizeof text,
                     "variant t { dim K = 5, V = 7, n = 3\n in p[K], q[K], r[K], s[K], x[K]\n"
                     "in v[V], w[V], y[V], a, c\n in kn[n, K], vn[n, V], bn[n]\n param A, B[K]\n"
                     "state S[K, V]\n%s\n out o[V] = S' * q }", statements);
    assert_true(n < (int)sizeof text);
    return spec_open(text);
}

/* The statements mean the same lowered or not; `decays`, `reads` (the out's included) and `updates`
 * are how many it takes, -1 where that does not matter. */
typedef struct Form { const char *statements; int decays, reads, updates; } Form;

static const Form form[] = {
    {"S = S", 0, 1, 0},
    {"S = 2 * S", 1, 1, 0},
    {"S = -S", 1, 1, 0},
    {"S = S + S", 1, 1, 0},
    {"S = S / (1 + a^2)", 1, 1, 0},
    {"S = S - S + p * v'", 1, 1, 1},
    {"S = p * v'", 1, 1, 1},
    {"S = (v * p')'", 1, 1, 1},
    {"S = (v * p' + S')'", 0, 1, 1},
    {"S = diag(p) * S", 1, 1, 0},
    {"S = S * diag(v)", 1, 1, 0},
    {"S = diag(p) * S * diag(v)", 2, 1, 0},
    {"S = diag(p) * S + diag(q) * S", 1, 1, 0},
    {"S = a * S + S * diag(v)", 1, 1, 0},
    {"S = a * S * diag(v) + c * S * diag(y)", 1, 1, 0},
    {"S = a * S + diag(p) * S - c * S", 1, 1, 0},
    {"S = diag(p) * S * diag(v) + diag(q) * S * diag(v)", 2, 1, 0},
    {"S = diag(p) * S * diag(v) + diag(p) * S * diag(w)", 2, 1, 0},
    {"S = (diag(p) + a * I) * S", 1, 1, 0},
    {"S = S * (2 * I - diag(v))", 1, 1, 0},
    /* delta rules */
    {"S = (I - p * r') * S + p * v'", 0, 2, 1},
    {"S = S - p * r' * S + p * v'", 0, 2, 1},
    {"S = S - p * (r' * S) + p * v'", 0, 2, 1},
    {"S = S - p * (S' * r)' + p * v'", 0, 2, 1},
    {"S = S + p * (v - S' * r)'", 0, 2, 1},
    {"S = (I - p * r') * diag(x) * S + p * v'", 1, 2, 1},
    {"S = (I - p * r') * (diag(x) * S) + p * v'", 1, 2, 1},
    {"S = diag(x) * S - p * r' * diag(x) * S + p * v'", 1, 2, 1},
    {"S = diag(x) * S - p * (r' * (diag(x) * S)) + p * v'", 1, 2, 1},
    {"S = a * S - a * c * p * p' * S + c * p * v'", 1, 2, 1},
    {"S = (I - c * p * p') * a * S + c * p * v'", 1, 2, 1},
    {"S = diag(x) * S + q * (r' * S) + p * v'", 1, 2, 2},
    {"S = (diag(x) + q * r') * S + p * v'", 1, 2, 2},
    {"S = (I - p * p') * (I - r * r') * S", 0, 3, 2},
    {"S = (I - p * p' - r * r') * S", 0, 3, 2},
    {"S = (I - 2 * p * p')' * S", 0, 2, 1},
    {"S = diag(x) * (I - p * r') * S", 1, 2, 1},
    {"S = ((I - p * r') * diag(x) - q * s' * diag(x)) * S", 1, 3, 2},
    {"S = (diag(x) * (S + p * v')) * 0.5", -1, -1, 1},
    {"S = (I - q * r') * (S + p * v') + s * w'", -1, -1, -1},
    {"let M = I - p * r'; S = M * M * S", 0, 3, 2},
    {"let M = p * r'; S = S - M' * S", 0, 2, 1},
    {"let M = diag(x) - p * r'; S = M' * S", 1, 2, 1},
    /* the value side */
    {"S = S * (I - v * w')", 0, 2, 1},
    {"S = S * diag(y) * (I - v * w') + p * v'", 1, 2, 2},
    {"S = S + (p - S * v) * v'", 0, 2, 1},
    {"S = (I - p * r') * S * (I - v * w')", 0, 3, 2},
    {"S = p * r' * S * v * w'", 1, 2, 1},
    {"S = S + (p * r') * S * (v * w')", 0, 2, 1},
    {"S = (diag(x) - p * r') * S * (diag(y) - v * w') + S * diag(y)", 2, 3, -1},
    {"S = S + (p * v') * (w * r') * S", 0, 2, 1},
    {"S = S + p * (v' * (w * r')) * S", 0, 2, 1},
    {"S = S * (v * r') * (p * w')", 1, 2, 1},
    /* order and versions of reads */
    {"let r1 = S' * p; S = diag(x) * S; let r2 = S' * p; S = S + q * (r1 - r2)'", 1, 3, 1},
    {"let r1 = S' * p; let r2 = S' * p; S = S + q * (r1 + r2)'", 0, 2, 1},
    {"S = S + q * silu(S' * p)'", 0, 2, 1},
    {"S = S + q * ((S' * p) .* (S' * r))'", 0, 3, 1},
    {"S = S + q * (S' * (p .* (S * v)))'", 0, 3, 1},
    {"S = S + q * v' + q * w'; S = S + p * v' + r * v'", 0, 1, 2},
    {"S = S + (-a * q) * v' - q * (c * w)'", 0, 1, 1},
    /* vectors over other dims, loops, time */
    {"for j in n { S = S + kn[j] * (bn[j] * vn[j])' }", 0, 1, 3},
    {"for j in n { for i in n { S = (1 + bn[i]) * S } ; S = S + kn[n - 1 - j] * v' }", 9, 1, 3},
    {"let b2 = sigmoid(bn) .* bn[0]; S = sum(b2) * S + b2[1] * kn[2] * v'", 1, 1, 1},
    {"S = (bn' * bn) * S + dot(bn, bn) * p * v' + max(bn, 0)[2] * p * v'", 1, 1, 1},
    {"S = S + prev(p) * prev(v)' + cumsum(a) * q * v'", 0, 1, 2},
    {"for j in n { S = prev(bn)[j] * S + prev(kn[j]) * v' }", 3, 1, 3},
    {"let two = 2; for j in n { let m = j + two; S = (m / 10) * S }", 3, 1, 0},
    {"S = exp(A) * S + (B .* l2norm(p)) * l2norm(-v)'", 1, 1, 1},
    {"let row = p' .* r'; S = S + row' * (row * S)", 0, 2, 1},
    {"S = (p' * S * v) * p * v' + S", 0, 2, 1},
};

static void every_form(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof form / sizeof *form; i++) {
        const Form *f = &form[i];
        Spec *s = with_update(f->statements);
        if (s->d.errors)
            fail_msg("%s\n%s", f->statements, messages(s));
        const Kernel *k = agree(s, NULL, NULL, 4, i + 1);
        int decays = count_op(k, OP_decay), reads = count_op(k, OP_read);
        int updates = count_op(k, OP_update);
        if ((f->decays >= 0 && decays != f->decays) || (f->reads >= 0 && reads != f->reads) ||
            (f->updates >= 0 && updates != f->updates))
            fail_msg("%s: %d decays, %d reads, %d updates", f->statements, decays, reads, updates);
        spec_close(s);
    }
}

/* A random matrix expression of the given shape: 0 [K,V], 1 [K,K], 2 [V,V]. `state` allows S. */
static void random_expr(char *out, size_t size, int shape, bool with_state, int depth,
                        uint64_t *seed) {
    static const char *const key[] = {"p", "q", "r", "s", "x"}, *const value[] = {"v", "w", "y"};
    char a[4000], b[4000];
    const char *p = key[(int)(random_unit(seed) * 5)], *q = key[(int)(random_unit(seed) * 5)];
    const char *v = value[(int)(random_unit(seed) * 3)], *w = value[(int)(random_unit(seed) * 3)];
    int pick = (int)(random_unit(seed) * (depth ? 8 : 2));
    if (pick < 2) {
        if (shape == 0)
            snprintf(out, size, with_state ? "S" : "(%s * %s')", p, v);
        else if (shape == 1)
            snprintf(out, size, pick ? "diag(%s)" : "(%s * %s')", p, q);
        else
            snprintf(out, size, pick ? "diag(%s)" : "(%s * %s')", v, w);
        return;
    }
    int left = pick < 5 ? shape : shape == 2 ? 2 : 1, right = pick < 5 ? shape : shape == 1 ? 1 : 2;
    bool state_left = with_state, state_right = with_state && random_unit(seed) < 0.7;
    if (pick >= 5 && shape == 0) { /* square * X or X * square */
        if (pick == 5)
            left = 0, state_right = false;
        else
            right = 0, state_left = false, state_right = with_state;
    }
    random_expr(a, sizeof a, left, state_left, depth - 1, seed);
    random_expr(b, sizeof b, right, state_right, depth - 1, seed);
    snprintf(out, size, pick == 2 ? "(%s + %s)" : pick == 3 ? "(%s - %s)" : pick == 4 ?
             "(a * %s - %s / 2)" : "%s * %s", a, b);
}

/* Random algebra: whatever is accepted must be right. */
static void random_forms(void **state) {
    (void)state;
    int accepted = 0;
    for (uint64_t i = 1; i <= 400; i++) {
        uint64_t seed = i * 7919;
        char e[4000], text[8000];
        random_expr(e, sizeof e, 0, true, 3, &seed);
        if (strlen(e) > 600)
            continue;
        snprintf(text, sizeof text, "S = %s + p * v'", e);
        Spec *s = with_update(text);
        if (s->d.errors)
            fail_msg("%s\n%s", text, messages(s));
        if (spec_lower(&s->arena, &s->names, s->file, NULL, NULL, &s->d)) {
            agree(s, NULL, NULL, 2, i);
            accepted++;
        } else {
            assert_non_null(strstr(messages(s), "do not combine into one decay"));
        }
        spec_close(s);
    }
    assert_true(accepted > 100);
}

/* The two ways of writing gdn2 give the same kernel. */
static void one_line_and_stepwise(void **state) {
    (void)state;
    static const char *const way[] = {
        "S = (I - r * (q .* r)') * diag(exp(x)) * S + r * (w .* v)'",
        "S = diag(exp(x)) * S; let e = S' * (q .* r); S = S + r * (w .* v - e)'",
        "S = diag(exp(x)) * S; S = S + r * (w .* v - S' * (q .* r))'",
    };
    const char *first = NULL;
    char *keep = NULL;
    for (int i = 0; i < 3; i++) {
        Spec *s = with_update(way[i]);
        const Kernel *k = agree(s, NULL, NULL, 6, 9);
        Buf b;
        int ops[3] = {count_op(k, OP_decay), count_op(k, OP_read), count_op(k, OP_update)};
        buf_init(&b, &s->arena);
        for (int j = 0; j < k->inst.count; j++)
            if (op_info[inst_at(k, j)->op].class == CLASS_STATE)
                buf_printf(&b, "%s ", op_info[inst_at(k, j)->op].name);
        assert_int_equal(ops[0] + ops[1] + ops[2], 4);
        if (!first)
            first = keep = strdup(b.text);
        assert_string_equal(first, b.text);
        spec_close(s);
    }
    free(keep);
}

/* Products that grow by powers when multiplied out are refused, not tried. */
static void too_large(void **state) {
    (void)state;
    static const struct { const char *first, *next, *last, *message; } test[] = {
        {"let M0 = I - p * r'", "let M%d = M%d * M%d", "S = M%d * S", "expression is too large"},
        {"let M0 = p * v'", "let M%d = M%d + M%d", "S = S + M%d", "more than 1000 products"},
        {"let M0 = I", "let M%d = (I - p * r') * M%d + (I - r * q') * 1", "S = M%d * S",
         "more than 1000 products"},
    };
    for (size_t i = 0; i < sizeof test / sizeof *test; i++) {
        char text[1900], *at = text;
        int n = i == 1 ? 12 : 20;
        at += sprintf(at, "%s\n", test[i].first);
        for (int j = 1; j <= n; j++) {
            at += sprintf(at, test[i].next, j, j - 1, j - 1);
            *at++ = '\n';
        }
        sprintf(at, test[i].last, n);
        Spec *s = with_update(text);
        if (!s->d.errors)
            assert_null(spec_lower(&s->arena, &s->names, s->file, NULL, NULL, &s->d));
        if (!strstr(messages(s), test[i].message))
            fail_msg("%s", messages(s));
        spec_close(s);
    }
}

static void sizes(void **state) {
    (void)state;
    static const struct { SpecDim dim; const char *message; } bad[] = {
        {{"K", 0}, "dim K = 0 is not a whole number from 1 to 4096"},
        {{"K", -3}, "dim K = -3"},
        {{"V", 4097}, "dim V = 4097"},
        {{"V", INT64_MAX}, "dim V = 9.22337e+18"},
        {{"n", 65}, "dim n = 65 is not a whole number from 1 to 64"},
        {{"k", 8}, "has no dim 'k'"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Spec *s = with_update("for j in n { S = bn[j] * S + kn[j] * vn[j]' }");
        SpecBind bind = {&bad[i].dim, 1};
        assert_int_equal(s->d.errors, 0);
        assert_null(spec_lower(&s->arena, &s->names, s->file, NULL, &bind, &s->d));
        if (!strstr(messages(s), bad[i].message))
            fail_msg("%s", messages(s));
        spec_close(s);
    }
    Spec *s = with_update("S = S + kn[2] * v'");
    SpecBind two = {(const SpecDim[]){{"n", 2}}, 1};
    assert_null(spec_lower(&s->arena, &s->names, s->file, NULL, &two, &s->d));
    assert_non_null(strstr(messages(s), "index 2 is not a whole number from 0 to 1"));
    assert_null(spec_lower(&s->arena, &s->names, s->file, "other", NULL, &s->d));
    assert_non_null(strstr(messages(s), "there is no variant 'other'"));
    spec_close(s);
}

/* Ports carry names, shapes and ranges; the state's axes the names of its dims. */
static void ports(void **state) {
    (void)state;
    Spec *s = spec_open("variant t { dim N = 3, P = 4, m = 2; const top = 2\n"
                        "in x[N] <= 0, y[m, P] in [0, top] >= 1, z; param A[N] >= -1\n"
                        "state H[N, P]\n H = H + (A .* x) * y[1]'\n"
                        "out o[P] = H' * x + y[0]; out e = z + sum(H * y[1]) }");
    const Kernel *k = agree(s, NULL, NULL, 3, 4);
    assert_string_equal(k->axis.at[AXIS_K].name, "N");
    assert_string_equal(k->axis.at[AXIS_V].name, "P");
    assert_string_equal(k->state_name, "H");
    assert_int_equal(k->in.count, 4);
    assert_int_equal(k->out.count, 2);
    assert_true(k->in.at[0].hi == 0 && k->in.at[0].lo == -INFINITY);
    assert_true(k->in.at[1].hi == 2 && k->in.at[1].lo == 1);
    assert_true(k->in.at[3].is_param && !k->in.at[2].is_param && k->in.at[3].lo == -1);
    assert_int_equal(shape_elements(k, k->in.at[1].shape), 8);
    assert_int_equal(k->out.at[1].shape.rank, 0);
    spec_close(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spec),   cmocka_unit_test(every_form),
        cmocka_unit_test(random_forms), cmocka_unit_test(one_line_and_stepwise),
        cmocka_unit_test(too_large),    cmocka_unit_test(sizes),        cmocka_unit_test(ports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
