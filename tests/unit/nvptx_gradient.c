/* The gradient system as the GPU's kernels see it (codegen/nvptx/gradient.c): recognised in every spec
 * that has a chunk form, with every cotangent accounted for. */
#include "codegen/nvptx/gradient.h"
#include "passes/passes.h"
#include "tests/unit/spec_test.h"

#include <glob.h>

static Kernel *lower(Spec *s) {
    SpecBind bind = {0};
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &bind, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    return k;
}

/* NULL where there is no chunk form. */
static Kernel *gradient_of(Spec *s, int rows) {
    Kernel *k = lower(s);
    passes_run(k, "normal", NULL);
    if (!k->facts.chunkable)
        return NULL;
    kernel_set_chunk(k, rows);
    passes_run_after(k, "normal", "peel", NULL);
    k = kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0));
    passes_run_after(k, "collapse", NULL, NULL);
    return k;
}

/* Every operation that takes a cotangent back through the lattice is a root or a zero. */
static void check_terms(const Kernel *k, const Gradient *g) {
    static const Op lattice[] = {OP_scores_x, OP_scores_y, OP_scores_a, OP_carry_a,
                                 OP_tail_a,   OP_total_a};
    for (int v = 0; v < k->inst.count; v++)
        for (size_t i = 0; i < sizeof lattice / sizeof *lattice; i++) {
            bool known = g->zero[v] || v == g->p_root || v == g->a_root;
            for (int f = 0; f < g->s.families; f++)
                known = known || v == g->family[f].root;
            if (inst_at(k, v)->op == lattice[i] && !known)
                fail_msg("%s: %%%d belongs to no sum", k->name, v);
        }
}

static void check_record(const System *s) {
    assert_true(s->ws_copied <= s->ws_reversed && s->ws_reversed < s->ws_bytes);
    assert_int_equal(s->ws_copied % 16, 0);
    assert_int_equal(s->ws_reversed % 16, 0);
    for (int f = 0; f < s->families; f++) {
        bool erase = s->erase && f == 0;
        assert_true(s->family[f].ws_w + s->rows * s->kp * 2 <= (erase ? s->ws_copied : s->ws_reversed));
    }
    assert_true(s->ws_unit_dx + s->vp * 4 <= s->ws_bytes);
}

static void check_spec(const char *path) {
    Spec *s = spec_load(path);
    Kernel *k = gradient_of(s, 64);
    Gradient g;
    const char *why = NULL;
    if (k) {
        if (!nv_gradient(k->arena, k, &g, &why))
            fail_msg("%s: %s", path, why);
        assert_int_equal(g.s.families, count_op(k, OP_scores));
        assert_int_equal(g.a_root >= 0, g.s.a >= 0);
        assert_true(g.p_root >= 0 && g.dkt >= 0);
        for (int f = 0; f < g.s.families; f++)
            assert_true(g.family[f].root >= 0 && g.family[f].dg >= 0 && g.family[f].left >= 0);
        check_terms(k, &g);
        check_record(&g.s);
    }
    spec_close(s);
}

static void every_spec(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++)
        check_spec(files.gl_pathv[i]);
    assert_true(files.gl_pathc > 20);
    globfree(&files);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_spec)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
