/* Values made ahead of the GPU's chunk kernels (codegen/nvptx/scan.h): which a spec needs, and that the
 * kernels which make and read them compute what the spec means, in sequences of all lengths. */
#include "tests/unit/nvptx_run.h"

#define STATE " state S[K, V]\n S = exp(g) * S + "

/* What is made ahead: values, those in memory, rounds. */
typedef struct Ahead {
    const char *name, *text;
    int values, stored, rounds, entries;
} Ahead;

static const Ahead specs[] = {
    /* Nothing. */
    {"plain",
     "variant plain { dim K = 4, V = 4\n in q[K], k[K], v[V], g <= 0\n" STATE
     "l2norm(k) * v'\n out o[V] = S' * q }",
     0, 0, 0, 0},
    /* A sum of a sum, and what it goes into, of this token and of the one before. */
    {"nested",
     "variant nested { dim K = 4, V = 4\n in q[K], k[K], v[V], g <= 0, b\n"
     " let s = cumsum(b)\n let c = cumsum(cos(s) * k)\n" STATE
     "prev(l2norm(k)) .* c * v'\n out o[V] = sin(s) * (S' * (q .* prev(c))) }",
     5, 5, 3, 7},
    /* Both sides of the state. */
    {"values",
     "variant values { dim K = 4, V = 4\n in q[K], k[K], v[V], z[V], g <= 0\n"
     " let u = cumsum(0.1 * v)\n let w = prev(u) + z\n" STATE
     "dot(v, z) * k * (turn(z) + prev(prev(z .* v)))'\n"
     " out o[V] = S' * q + prev(w) .* u }",
     4, 4, 2, 4},
    /* What feeds another value stays in registers; sums of params. */
    {"divided",
     "variant divided { dim K = 4, V = 4\n in q[K], k[K], v[V], g <= 0\n param a[V]\n"
     " let z = cumsum(sigmoid(k))\n" STATE
     "k * v'\n out o[V] = (S' * q) * dot(a, a) / (dot(sigmoid(q), z) + 1) }",
     2, 1, 1, 3},
    /* A decay that is a running sum's; the norm of an earlier token. */
    {"erasing",
     "variant erasing { dim K = 4, V = 4\n in q[K], k[K], v[V], b in [0, 1]\n"
     " let n = l2norm(k)\n let a = sigmoid(cumsum(b))\n state S[K, V]\n"
     " S = (I - b * n * n') * (a * S) + prev(n) * (prev(b) * v)'\n out o[V] = S' * q }",
     4, 3, 1, 3},
};
enum { SPECS = sizeof specs / sizeof specs[0] };

static const Launch launches[] = {
    {.H = 2, .N = 1, .T = 130, .start = true, .final = true, .gate = NAN},
    {.H = 2, .N = 5, .length = {1, 0, 33, 64, 2}, .cu_width = 8, .final = true, .gate = NAN},
    {.H = 1, .N = 2, .T = 32, .start = true, .gate = -.1},
    {.H = 3, .N = 3, .length = {0, 97, 1}, .cu_width = 4, .start = true, .final = true, .gate = -.1},
};

static const Elem elems[] = {ELEM_f32, ELEM_bf16};
static const char *const targets[] = {"sm_80", "sm_90a"};

static const Scan *plan_of(const char *text, Kernel **kernel, Spec **spec) {
    Spec *s = *spec = spec_open(text);
    SpecBind bind = {NULL, 0};
    System system;
    const char *why = NULL;
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &bind, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, 16);
    passes_run_after(k, "normal", NULL, NULL);
    if (!nv_system(&s->arena, k, &system, &why))
        fail_msg("%s", why);
    *kernel = k;
    return system.scan;
}

static void test_plans(void **state) {
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        Kernel *k;
        Spec *spec;
        const Scan *scan = plan_of(specs[i].text, &k, &spec);
        int stored = 0;
        for (int j = 0; j < scan->count; j++)
            stored += scan->value[j].stored;
        int entries = scan_entries(k, scan, false);
        if (scan->count != specs[i].values || stored != specs[i].stored ||
            scan->rounds != specs[i].rounds || entries != specs[i].entries)
            fail_msg("%s: %d values, %d stored, %d rounds, %d entries", specs[i].name, scan->count,
                     stored, scan->rounds, entries);
        spec_close(spec);
    }
}

/* Rows of no value lie on another's, and each begins where its accesses are aligned. */
static void test_places(void **state) {
    (void)state;
    for (int i = 0; i < SPECS; i++) {
        Kernel *k;
        Spec *spec;
        const Scan *scan = plan_of(specs[i].text, &k, &spec);
        int64_t bytes = 0;
        for (int j = 0; j < scan->count; j++) {
            const ScanValue *m = &scan->value[j];
            int64_t row = m->axis < 0 ? 4 : 4 * (int64_t)k->axis.at[m->axis].size;
            if (!m->stored)
                continue;
            assert_int_equal(m->rows_at % (row & -row), 0);
            assert_true(m->rows_at + row <= scan->token_bytes);
            bytes += row;
            for (int n = 0; n < j; n++)
                assert_true(!scan->value[n].stored || scan->value[n].rows_at != m->rows_at);
        }
        assert_int_equal(bytes, scan->token_bytes);
        spec_close(spec);
    }
}

static void test_values(void **state) {
    (void)state;
    static const struct { int K, V; } size[] = {{32, 32}, {36, 20}, {64, 96}};
    for (int i = 0; i < SPECS; i++)
        for (int n = 0; n < 2; n++) {
            int s = (i + n) % 3;
            Build b = {specs[i].name, size[s].K, size[s].V,      elems[n],
                       ALGO_chunk,    targets[(i + n) % 2], specs[i].text};
            assert_true(run_build(&b, launches, sizeof launches / sizeof launches[0]));
        }
}

/* A sequence of many stretches: the sums of stretches take more than one step, and an angle that has
 * turned many times is still exact. */
static void test_long(void **state) {
    (void)state;
    static const char text[] = "variant turning { dim K = 4, V = 4\n in q[K], k[K], v[V], w[K]\n"
                               " let phi = cumsum(3 + tanh(w))\n state S[K, V]\n"
                               " S = 0.5 * S + k .* cos(phi) * v'\n"
                               " out o[V] = S' * (q .* cos(phi) + turn(q) .* sin(phi)) }";
    static const Launch l = {.H = 1, .N = 1, .T = 32 * 16 * 8 + 77, .final = true, .gate = NAN};
    Build b = {"turning", 4, 4, ELEM_f32, ALGO_chunk, "sm_80", text};
    assert_true(run_build(&b, &l, 1));
}

/* What tokens from `from` on hold changes nothing before them, bit for bit. (Not so what is
 * no number: matrix products take it times 0.) */
static void expect_causal(World *w, int64_t from) {
    const Kernel *k = w->token;
    int64_t row = shape_elements(k, k->out.at[0].shape) * w->l->H * elem_size(w->b->elem);
    void *before = arena_alloc(&w->arena, (size_t)(from * row));
    launch(w);
    memcpy(before, w->out[0], (size_t)(from * row));
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t row_elements = shape_elements(k, p->shape) * w->heads[i];
        for (int64_t j = from * row_elements; !p->is_param && j < w->tokens * row_elements; j++)
            element_set(w->in[i], j, p->elem, draw(w, p));
    }
    memset(w->out[0], 0, (size_t)(w->tokens * row));
    launch(w);
    assert_memory_equal(before, w->out[0], (size_t)(from * row));
}

static void test_causal(void **state) {
    (void)state;
    static const Launch l = {.H = 1, .N = 1, .T = 170, .start = true, .gate = -.1};
    static const int64_t from[] = {1, 33, 64, 169};
    for (int i = 1; i < SPECS; i++) {
        Build b = {specs[i].name, 32, 32, ELEM_f32, ALGO_chunk, targets[i % 2], specs[i].text};
        World *w = world_open(&b);
        assert_true(compile(w));
        w->l = &l;
        for (size_t n = 0; n < sizeof from / sizeof from[0]; n++) {
            arena_init(&w->arena, NULL);
            make_tensors(w);
            expect_causal(w, from[n]);
            for (int e = 0; e < w->module.entry.count; e++)
                simt_forget(w->simt[e]);
            arena_free(&w->arena);
        }
        world_close(w);
    }
}

/* One sequence in three launches, the state and what is remembered in place, gives what one launch gives:
 * wherever it is divided, and where a launch has no tokens. */
static void test_continued(void **state) {
    (void)state;
    enum { T = 150, PARTS = 3 };
    static const int cut[][PARTS + 1] = {
        {0, 1, 2, T}, {0, 64, 96, T}, {0, 33, 33, T}, {0, 0, 131, T}, {0, 2, T - 1, T}};
    static const Launch whole = {
        .H = 2, .N = 1, .length = {T}, .cu_width = 8, .start = true, .final = true, .gate = NAN};
    for (int i = 0; i < SPECS * 5; i++) {
        int s = i % SPECS, c = i / SPECS;
        Build b = {specs[s].name, s % 2 ? 36 : 32, s % 2 ? 20 : 32, elems[i % 2], ALGO_chunk,
                   targets[c % 2], specs[s].text};
        World *w = world_open(&b);
        assert_true(compile(w));
        if (!w->code->facts.past) {
            world_close(w);
            continue;
        }
        w->l = &whole;
        arena_init(&w->arena, NULL);
        make_tensors(w);
        int64_t states = (int64_t)whole.H * b.K * b.V * 4, past = (int64_t)whole.H * w->code->facts.past;
        void *s0 = w->s0;
        memcpy(w->s, s0, (size_t)states);
        w->past = tensor(w, past * 4, true);
        w->s0 = w->s;
        for (int n = 0; n < PARTS; n++) {
            memcpy(w->cu, (int64_t[]){cut[c][n], cut[c][n + 1]}, 16);
            w->past0 = n ? w->past : NULL;
            launch(w);
            for (int64_t j = 0; j < past; j++)
                assert_true(isfinite(((float *)w->past)[j]));
        }
        w->s0 = s0;
        compare(w);
        for (int e = 0; e < w->module.entry.count; e++)
            simt_forget(w->simt[e]);
        arena_free(&w->arena);
        world_close(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_causal),
        cmocka_unit_test(test_continued),
    };
    print_message("GDR_SEED=%llu\n", (unsigned long long)first_seed());
    return cmocka_run_group_tests(tests, NULL, NULL);
}
