/* The pass `lattice`: where reads, decays and updates stand in a token afterwards. */
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

/* The state operations in order: r read, d decay, u update. */
static void assert_order(Kernel *k, const char *want) {
    char got[32] = "";
    size_t n = 0;
    pass_normal(k);
    pass_lattice(k);
    assert_null(kernel_verify(k));
    for (int v = 0; v < k->inst.count && n < sizeof got - 1; v++) {
        Op op = inst_at(k, v)->op;
        if (op == OP_read || op == OP_decay || op == OP_update)
            got[n++] = op == OP_read ? 'r' : op == OP_decay ? 'd' : 'u';
    }
    assert_string_equal(got, want);
}

static void test_named(void **state) {
    static const char *const want[] = {"rdur", "rdur", "rdur", "rur", "dur", "dur", "ur", "rduur",
                                       "rdurur"};
    Fixture *f = *state;
    for (int i = 0; i < (int)(sizeof want / sizeof *want); i++)
        assert_order(named_kernel(&f->arena, &f->names, i, 4, 3), want[i]);
    assert_null(named_kernel(&f->arena, &f->names, sizeof want / sizeof *want, 4, 3));
}

/* decay a, read x, decay b, read y, update: both rows see the decays they passed, decays multiply. */
static void test_decays_fold_into_rows(void **state) {
    Fixture *f = *state;
    Build b = build_new(&f->arena, &f->names, "test", 2, 2);
    decay_(&b, build_in(&b, "a", "K"));
    int x = read_(&b, build_in(&b, "x", "K"));
    decay_(&b, build_in(&b, "b", ""));
    int y = read_(&b, build_in(&b, "y", "K"));
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    build_out(&b, "ox", x);
    build_out(&b, "oy", y);
    assert_order(b.k, "rrdu");
    const Inst *row_x = NULL, *row_y = NULL, *decay = NULL;
    for (int v = 0; v < b.k->inst.count; v++) {
        const Inst *i = inst_at(b.k, v);
        if (i->op == OP_read)
            *(row_x ? &row_y : &row_x) = inst_at(b.k, i->arg[0]);
        if (i->op == OP_decay)
            decay = inst_at(b.k, i->arg[0]);
    }
    assert_int_equal(row_x->op, OP_mul);  /* a . x */
    assert_int_equal(inst_at(b.k, row_x->arg[0])->op, OP_in);
    assert_int_equal(row_y->op, OP_mul);  /* (a b) . y */
    assert_int_equal(inst_at(b.k, row_y->arg[0])->op, OP_mul);
    assert_int_equal(decay->op, OP_mul);  /* a b */
}

/* A decay that cannot go onto the last key gets an update that changes nothing. */
static void test_null_update(void **state) {
    Fixture *f = *state;
    Build b = build_new(&f->arena, &f->names, "test", 2, 2);
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    build_out(&b, "o", read_(&b, build_in(&b, "q", "K")));
    decay_(&b, build_in(&b, "d", ""));
    assert_order(b.k, "urdu");
    assert_int_equal(b.k->facts.slots, 2);
    const Inst *last = inst_at(b.k, b.k->inst.count - 1);
    assert_int_equal(last->op, OP_update);
    assert_true(shape_has(inst_at(b.k, last->arg[0])->shape, AXIS_K));
}

/* No update at all: still one, to hang the decay on. */
static void test_token_without_updates(void **state) {
    Fixture *f = *state;
    Build b = build_new(&f->arena, &f->names, "test", 2, 2);
    decay_(&b, build_in(&b, "d", "K"));
    build_out(&b, "o", read_(&b, build_in(&b, "q", "K")));
    assert_order(b.k, "rdu");
    assert_int_equal(b.k->facts.slots, 1);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_named),
        TEST(test_decays_fold_into_rows),
        TEST(test_null_update),
        TEST(test_token_without_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
