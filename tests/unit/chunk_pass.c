/* The passes `chunk`, `collapse`, `peel` and `roles`: which operations a spec's chunk system is made of. */
#include "tests/prop/recurrences.h"

#include <setjmp.h>
#include <cmocka.h>

typedef struct Fixture { Arena arena; Interner names; } Fixture;

static int setup(void **state) {
    static Fixture f;
    arena_init(&f.arena, NULL);
    intern_init(&f.names, &f.arena);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    arena_free(&((Fixture *)*state)->arena);
    return 0;
}

static Kernel *up_to(Kernel *k, const char *pass) {
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, 8);
    passes_run(k, pass, NULL);
    assert_null(kernel_verify(k));
    return k;
}

static int count(const Kernel *k, Op op) {
    int n = 0;
    for (int v = 0; v < k->inst.count; v++)
        n += inst_at(k, v)->op == op;
    return n;
}

static int find(const Kernel *k, Op op) {
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == op)
            return v;
    return -1;
}

enum { GDN2, KDA, GATED_DELTANET, DELTANET, GLA, RETNET, LINEAR, DPLR, DELTAPRODUCT };

/* The lowering is the same for every spec: only the number of outs shows. */
static void test_one_lowering(void **state) {
    Fixture *f = *state;
    for (int which = GDN2; which <= DELTAPRODUCT; which++) {
        Kernel *k = up_to(named_kernel(&f->arena, &f->names, which, 4, 3), "chunk");
        assert_int_equal(k->level, LEVEL_chunk);
        assert_int_equal(count(k, OP_weave), 4);
        assert_int_equal(count(k, OP_scores), 2);
        assert_int_equal(count(k, OP_carry), 2);
        assert_int_equal(count(k, OP_solve), 1);
        assert_int_equal(count(k, OP_tail), 1);
        assert_int_equal(count(k, OP_total), 1);
        assert_int_equal(count(k, OP_contract), 6);
        assert_int_equal(count(k, OP_next), 1);
    }
}

static void test_what_collapses(void **state) {
    static const struct { int which, scores, solve, carry, tail, total, contract; } want[] = {
        {GDN2, 2, 1, 2, 1, 1, 6}, {KDA, 2, 1, 2, 1, 1, 6},    {GATED_DELTANET, 2, 1, 2, 1, 1, 6},
        {DELTANET, 2, 1, 0, 0, 0, 6}, {GLA, 1, 0, 1, 1, 1, 3}, {RETNET, 1, 0, 1, 1, 1, 3},
        {LINEAR, 1, 0, 0, 0, 0, 3}, {DPLR, 2, 1, 2, 1, 1, 6}, {DELTAPRODUCT, 2, 1, 2, 1, 1, 6},
    };
    Fixture *f = *state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        Kernel *k = up_to(named_kernel(&f->arena, &f->names, want[i].which, 4, 3), "collapse");
        assert_int_equal(count(k, OP_scores), want[i].scores);
        assert_int_equal(count(k, OP_solve), want[i].solve);
        assert_int_equal(count(k, OP_carry), want[i].carry);
        assert_int_equal(count(k, OP_tail), want[i].tail);
        assert_int_equal(count(k, OP_total), want[i].total);
        assert_int_equal(count(k, OP_contract), want[i].contract);
    }
}

/* A constant scalar decay stays one number a row, and needs no value of its own per channel. */
static void test_constant_decay_stays_scalar(void **state) {
    Fixture *f = *state;
    Kernel *k = up_to(named_kernel(&f->arena, &f->names, RETNET, 4, 3), "collapse");
    const Inst *total = inst_at(k, find(k, OP_total));
    const Inst *a = inst_at(k, total->arg[0]);
    assert_int_equal(total->shape.rank, 0);
    assert_int_equal(a->op, OP_weave);
    assert_int_equal(a->shape.rank, 1);
    assert_true(value_is_constant(k, a->arg[0]));
    assert_true(a->num == 1);
}

/* Places count the updates of the token that an out sees. */
static void test_places(void **state) {
    Fixture *f = *state;
    Build b = build_new(&f->arena, &f->names, "test", 2, 2);
    for (int i = 0; i < 3; i++) {
        char name[8] = {'o', (char)('0' + i)};
        build_out(&b, name, read_(&b, build_fresh(&b, 'q', "K", false)));
        if (i < 2)
            update_(&b, build_fresh(&b, 'k', "K", false), build_fresh(&b, 'v', "V", false));
    }
    Kernel *k = up_to(b.k, "collapse");
    int place = 0;
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_scores)
            assert_int_equal(inst_at(k, v)->place, place++);
    assert_int_equal(place, 3);
}

/* Two erases that read the same old state: the second one's rows are made at its own place. */
static void test_simultaneous_erases(void **state) {
    Fixture *f = *state;
    Build b = build_new(&f->arena, &f->names, "test", 3, 2);
    int k1 = build_in(&b, "k1", "K"), k2 = build_in(&b, "k2", "K");
    int r1 = read_(&b, k1), r2 = read_(&b, k2);
    update_(&b, k1, sub_(&b, build_in(&b, "v1", "V"), r1));
    update_(&b, k2, sub_(&b, build_in(&b, "v2", "V"), r2));
    build_out(&b, "o", read_(&b, build_in(&b, "q", "K")));
    Kernel *k = up_to(b.k, "collapse");
    const Inst *T = inst_at(k, inst_at(k, find(k, OP_solve))->arg[0]);
    assert_int_equal(T->op, OP_weave);
    for (int s = 0; s < 2; s++) {
        assert_int_equal(inst_at(k, T->arg[s])->op, OP_scores);
        assert_int_equal(inst_at(k, T->arg[s])->place, 0);
    }
}

/* What crosses from factor to chain is E, Q, M, P and D, no more. */
static void test_roles(void **state) {
    static const struct { int which, kept; } want[] = {
        {GDN2, 5}, {KDA, 5}, {GATED_DELTANET, 5}, {DELTANET, 3}, {GLA, 4}, {DPLR, 5},
    };
    Fixture *f = *state;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        Kernel *k = up_to(named_kernel(&f->arena, &f->names, want[i].which, 4, 3), NULL);
        assert_int_equal(k->level, LEVEL_tile);
        int kept = 0;
        for (int v = 0; v < k->inst.count; v++) {
            const Inst *in = inst_at(k, v);
            kept += in->keep;
            assert_true(!in->keep || in->role == ROLE_factor);
            assert_true(in->elem == ELEM_f32);
            if (in->op == OP_state || in->op == OP_next || in->op == OP_out)
                assert_int_equal(in->role, ROLE_chain);
            if (in->op == OP_scores || in->op == OP_solve)
                assert_int_equal(in->role, ROLE_factor);
            if (op_info[in->op].class == CLASS_DATA)
                assert_int_equal(in->role, ROLE_none);
        }
        assert_int_equal(kept, want[i].kept);
    }
}

/* alpha (strength k): the scalars are multiplied first; a shared or normalised vector stays whole. */
static void test_scalars_first(void **state) {
    Fixture *f = *state;
    Build b = build_new(&f->arena, &f->names, "test", 4, 3);
    int key = l2norm_(&b, build_in(&b, "k", "K")), alpha = build_in(&b, "alpha", "");
    int strength = build_in(&b, "strength", ""), scale = emit_const(b.k, 0.5);
    int row = mul_(&b, alpha, mul_(&b, mul_(&b, strength, key), scale));
    update_(&b, key, sub_(&b, build_in(&b, "v", "V"), read_(&b, row)));
    build_out(&b, "o", read_(&b, build_in(&b, "q", "K")));
    Kernel *k = up_to(b.k, "peel");
    const Inst *e = NULL;
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == OP_weave && shape_has(inst_at(k, v)->shape, AXIS_R) &&
            shape_has(inst_at(k, v)->shape, AXIS_K))
            e = inst_at(k, inst_at(k, v)->arg[0]);
    assert_non_null(e);
    assert_int_equal(e->op, OP_mul);
    int vector = shape_has(inst_at(k, e->arg[0])->shape, AXIS_K) ? 0 : 1;
    const Inst *s = inst_at(k, e->arg[1 - vector]), *x = inst_at(k, e->arg[vector]);
    assert_false(shape_has(s->shape, AXIS_K));
    assert_true(shape_has(x->shape, AXIS_K) && x->op == OP_mul);
    assert_true(inst_at(k, x->arg[0])->op == OP_rsqrt || inst_at(k, x->arg[1])->op == OP_rsqrt);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_one_lowering),
        TEST(test_what_collapses),
        TEST(test_constant_decay_stays_scalar),
        TEST(test_places),
        TEST(test_simultaneous_erases),
        TEST(test_scalars_first),
        TEST(test_roles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
