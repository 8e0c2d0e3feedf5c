/* Host code at its edges: other machines' instruction sets, every optimisation level, large states,
 * properties that hold bit for bit, limits, and memory that runs out. */
#include "tests/unit/host_run.h"

#include <pthread.h>

/* Other vector lengths, and code for machines without fma or half-precision instructions. */
static void test_machines(void **state) {
    (void)state;
#ifdef __x86_64__
    static const char *const cpu[] = {"x86-64", "nehalem", "haswell"};
    for (int f = 0; f < FAMILIES; f++)
        for (size_t n = 0; n < sizeof cpu / sizeof cpu[0]; n++)
            for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
                Case c = usual;
                c.spec = families[f], c.cpu = cpu[n], c.algo = algo, c.K = 37, c.V = 42, c.T = 90;
                c.elem = (Elem)((f + n) % 3), c.H = 1;
                if (wanted(c.spec))
                    run_case(&c);
            }
#else
    skip();
#endif
}

static void test_levels(void **state) {
    (void)state;
    for (int level = 0; level <= 3; level++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
            Case c = usual;
            c.spec = "gdn2", c.opt_level = level, c.algo = algo, c.H = 1;
            run_case(&c);
        }
}

static void test_large(void **state) {
    (void)state;
    for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
        Case c = usual;
        c.spec = "gdn2", c.algo = algo, c.K = 512, c.V = 500, c.H = 1, c.T = 80;
        run_case(&c);
    }
}

/* properties that hold exactly ----------------------------------------------------------------- */

/* Sets every input of token rows from..to-1 at the last of its heads. */
static void overwrite(Run *r, int64_t from, int64_t to, double value) {
    const Kernel *k = r->token;
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t size = shape_elements(k, p->shape);
        for (int64_t t = from; t < to && !p->is_param; t++)
            for (int64_t j = 0; j < size; j++)
                element_set(r->in[i].at, ((t + 1) * r->heads[i] - 1) * size + j, p->elem,
                            isnan(value) ? NAN : draw(r, p));
    }
}

/* Whether output 0 is the same as before at rows from..to-1, of all heads or without those that
 * share inputs with the last one. */
static bool same_rows(const Run *r, const char *before, int64_t from, int64_t to, bool last) {
    const Case *c = r->c;
    size_t head =
        (size_t)shape_elements(r->token, r->token->out.at[0].shape) * (size_t)elem_size(c->elem);
    for (int64_t t = from; t < to; t++)
        for (int h = 0; h < (last ? c->H : c->H - 2); h++) {
            size_t at = ((size_t)t * (size_t)c->H + (size_t)h) * head;
            if (memcmp(r->out[0].at + at, before + at, head) != 0)
                return false;
        }
    return true;
}

static void test_exact_properties(void **state) {
    (void)state;
    static const int length[] = {70, 133, 70};
    for (int f = 0; f < FAMILIES; f++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
            Case c = usual;
            c.spec = families[f], c.algo = algo, c.length = length, c.N = 3, c.H = 4;
            c.cu_width = 8, c.start = false;
            if (!wanted(c.spec))
                continue;
            Run r;
            open_run(&r, &c);
            launch(&r);
            char *before = malloc(r.out[0].size);
            assert_non_null(before);
            memcpy(before, r.out[0].at, r.out[0].size);
            launch(&r); /* the same again */
            assert_true(same_rows(&r, before, 0, r.tokens, true));
            overwrite(&r, 70 + 77, 70 + 133, 0); /* the future, and another sequence's past */
            launch(&r);
            assert_true(same_rows(&r, before, 0, 70 + 77, true));
            assert_true(same_rows(&r, before, 70 + 133, r.tokens, true));
            assert_false(same_rows(&r, before, 70 + 77, 70 + 133, true));
            assert_true(same_rows(&r, before, 70 + 77, 70 + 133, false)); /* other heads */
            overwrite(&r, 70 + 100, 70 + 101, NAN);
            launch(&r);
            assert_true(same_rows(&r, before, 0, 70 + 64, true));
            assert_true(same_rows(&r, before, 70 + 133, r.tokens, true));
            assert_true(same_rows(&r, before, 70, 70 + 133, false));
            free(before);
            close_run(&r);
        }
}

/* limits and memory ---------------------------------------------------------------------------- */

/* Code for a kernel with one input of this shape must be refused with these words. */
static void check_refused(Shape shape, Inst inst, const char *words) {
    Arena a;
    Interner names;
    arena_init(&a, NULL);
    intern_init(&names, &a);
    Kernel *k = kernel_new(&a, &names, "refused");
    k->axis.at[AXIS_C].size = k->axis.at[AXIS_R].size = k->axis.at[AXIS_U].size = 16;
    k->axis.at[AXIS_K].size = k->axis.at[AXIS_V].size = 8;
    VEC_PUSH(&a, &k->in, ((Port){.name = intern_z(&names, "m"), .shape = shape}));
    k->level = LEVEL_tile;
    int arg = emit_in(k, 0, -1, (Span){0, 0});
    inst.nargs = 1;
    inst.arg = &arg;
    emit(k, inst);
    const CgOptions opt = {.target = "host", .algo = ALGO_chunk};
    const char *why = NULL;
    assert_null(codegen_host(&a, k, &opt, &why));
    assert_non_null(strstr(why, words));
    arena_free(&a);
}

static void test_refusals(void **state) {
    (void)state;
    Shape matrix = shape_of(2, (int[]){AXIS_K, AXIS_V});
    check_refused(matrix, (Inst){.op = OP_sum, .axis = AXIS_K}, "three axes");
}

static void test_cpu_names(void **state) {
    (void)state;
#ifdef __x86_64__
    static const struct {
        const char *cpu, *features, *vector;
    } name[] = {
        {"znver4", NULL, "<16 x float>"},    {"haswell", "", "<8 x float>"},
        {"x86-64", NULL, "<4 x float>"},     {"x86-64", "+avx2,+fma", "<8 x float>"},
        {"haswell", "-f16c", "<8 x float>"},
    };
    Case c = usual;
    c.spec = "gla", c.algo = ALGO_recurrent;
    Run r;
    open_run(&r, &c);
    for (size_t n = 0; n < sizeof name / sizeof name[0]; n++) {
        const CgOptions opt = {.target = "host",
                               .cpu = name[n].cpu,
                               .features = name[n].features,
                               .algo = ALGO_recurrent,
                               .opt_level = 1,
                               .want_llvm = true};
        const char *why = NULL;
        CgModule *m = codegen_host(&r.spec->arena, r.token, &opt, &why);
        if (!m)
            fail_msg("%s: %s", name[n].cpu, why);
        assert_non_null(strstr(m->text, name[n].vector));
    }
    char *many = test_malloc(8192);
    memset(many, '+', 8191);
    many[8191] = 0;
    const CgOptions opt = {
        .target = "host", .cpu = "haswell", .features = many, .algo = ALGO_recurrent};
    const char *why = NULL;
    assert_null(codegen_host(&r.spec->arena, r.token, &opt, &why));
    assert_string_equal(why, "too many CPU features");
    test_free(many);
    close_run(&r);
#else
    skip();
#endif
}

/* Compilers, loaders and kernels share nothing: several threads may do it all at once. */
static void *compile_and_run(void *user) {
    for (int n = 0; n < 3; n++)
        run_case(user);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    enum { THREADS = 4 };
    pthread_t thread[THREADS];
    Case c[THREADS];
    for (int n = 0; n < THREADS; n++) {
        c[n] = usual;
        c[n].spec = families[n], c[n].algo = n % 2 ? ALGO_recurrent : ALGO_chunk;
        assert_int_equal(pthread_create(&thread[n], NULL, compile_and_run, &c[n]), 0);
    }
    for (int n = 0; n < THREADS; n++)
        assert_int_equal(pthread_join(thread[n], NULL), 0);
}

/* Memory that runs out anywhere unwinds to the caller. */
static void test_out_of_memory(void **state) {
    (void)state;
    Case c = usual;
    c.text = "variant t {\n dim K = 8, V = 8\n in k[K], v[V]\n state S[K, V]\n S = S + k * v'\n"
             " out o[V] = S' * k\n }\n";
    c.algo = ALGO_recurrent;
    Run r;
    open_run(&r, &c);
    const CgOptions opt = {.target = "host", .algo = ALGO_recurrent, .opt_level = 1};
    volatile int failures = 0; /* setjmp */
    volatile bool done = false;
    for (volatile int64_t n = 1; !done; n += n / 2 + 1) {
        Arena a;
        jmp_buf oom;
        arena_init(&a, &oom);
        a.fail_after = n;
        if (setjmp(oom)) {
            failures++;
        } else {
            const char *why = NULL;
            assert_non_null(codegen_host(&a, r.token, &opt, &why));
            done = true;
        }
        arena_free(&a);
    }
    assert_true(failures > 3);
    close_run(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_machines),  cmocka_unit_test(test_levels),
        cmocka_unit_test(test_large),     cmocka_unit_test(test_exact_properties),
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_cpu_names), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
