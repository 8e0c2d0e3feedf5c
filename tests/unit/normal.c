/* The pass `normal`: what it decides of a recurrence, how it rewrites updates, why it refuses. */
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

static Build start(void **state, int K, int V) {
    Fixture *f = *state;
    return build_new(&f->arena, &f->names, "test", K, V);
}

static Kernel *named(void **state, int which) {
    Fixture *f = *state;
    Kernel *k = named_kernel(&f->arena, &f->names, which, 4, 3);
    pass_fold(k);
    pass_normal(k);
    assert_null(kernel_verify(k));
    return k;
}

/* The nth instruction with this operation, or -1. */
static int find(const Kernel *k, Op op, int nth) {
    for (int v = 0; v < k->inst.count; v++)
        if (inst_at(k, v)->op == op && nth-- == 0)
            return v;
    return -1;
}

static bool is_input(const Kernel *k, int v, const char *name) {
    const Inst *i = inst_at(k, v);
    return i->op == OP_in && !strcmp(k->in.at[i->index].name, name);
}

/* v is the product of two inputs, in either order. */
static bool is_product(const Kernel *k, int v, const char *a, const char *b) {
    const Inst *i = inst_at(k, v);
    return i->op == OP_mul && ((is_input(k, i->arg[0], a) && is_input(k, i->arg[1], b)) ||
                               (is_input(k, i->arg[0], b) && is_input(k, i->arg[1], a)));
}

static void assert_refused(Kernel *k, const char *part) {
    int before = k->inst.count;
    pass_normal(k);
    assert_true(k->facts.known);
    assert_false(k->facts.chunkable);
    assert_non_null(k->facts.why_not);
    if (!strstr(k->facts.why_not, part))
        fail_msg("\"%s\" is not in: %s", part, k->facts.why_not);
    assert_int_equal(k->inst.count, before);
    assert_null(kernel_verify(k));
}

/* facts ---------------------------------------------------------------------------------------- */

enum { GDN2, KDA, GATED_DELTANET, DELTANET, GLA, RETNET, LINEAR, DPLR, DELTAPRODUCT };

static void test_facts_of_named(void **state) {
    static const struct { int which; DecayClass decay; bool constant, erases, early; int slots; } want[] = {
        {GDN2, DECAY_key, false, true, false, 1},
        {KDA, DECAY_key, false, true, false, 1},
        {GATED_DELTANET, DECAY_scalar, false, true, false, 1},
        {DELTANET, DECAY_none, false, true, false, 1},
        {GLA, DECAY_key, false, false, false, 1},
        {RETNET, DECAY_scalar, true, false, false, 1},
        {LINEAR, DECAY_none, false, false, false, 1},
        {DPLR, DECAY_key, false, true, true, 2},
        {DELTAPRODUCT, DECAY_scalar, false, true, false, 2},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const Facts f = named(state, want[i].which)->facts;
        assert_true(f.known && f.chunkable);
        assert_int_equal(f.decay, want[i].decay);
        assert_int_equal(f.decay_constant, want[i].constant);
        assert_int_equal(f.erases, want[i].erases);
        assert_int_equal(f.reads_before_decay, want[i].early);
        assert_int_equal(f.slots, want[i].slots);
    }
}

static void test_scalar_decays_on_both_sides_are_key(void **state) {
    Build b = start(state, 2, 2);
    decay_(&b, exp_(&b, build_in(&b, "g", "")));
    decay_(&b, exp_(&b, build_in(&b, "h", "K")));
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    pass_normal(b.k);
    assert_int_equal(b.k->facts.decay, DECAY_key);
    assert_true(b.k->facts.chunkable);
}

/* rewriting ------------------------------------------------------------------------------------ */

/* beta (v - S'k) becomes beta v - S'(beta k). */
static void test_coefficient_moves_into_the_row(void **state) {
    Build b = start(state, 2, 2);
    int beta = build_in(&b, "beta", ""), v = build_in(&b, "v", "V"), key = build_in(&b, "k", "K");
    update_(&b, key, mul_(&b, beta, sub_(&b, v, read_(&b, key))));
    pass_normal(b.k);
    int read = find(b.k, OP_read, 0), update = find(b.k, OP_update, 0);
    assert_true(is_product(b.k, inst_at(b.k, read)->arg[0], "beta", "k"));
    const Inst *z = inst_at(b.k, inst_at(b.k, update)->arg[1]);
    assert_int_equal(z->op, OP_sub);
    assert_true(is_product(b.k, z->arg[0], "beta", "v"));
    assert_int_equal(z->arg[1], read);
    assert_int_equal(find(b.k, OP_read, 1), -1);
}

/* An out that looks at the same read shares it. */
static void test_one_read_for_update_and_out(void **state) {
    Build b = start(state, 2, 2);
    int key = build_in(&b, "k", "K"), r = read_(&b, key);
    update_(&b, key, sub_(&b, build_in(&b, "v", "V"), r));
    build_out(&b, "o", r);
    pass_normal(b.k);
    assert_int_equal(find(b.k, OP_read, 1), -1);
    assert_int_equal(inst_at(b.k, find(b.k, OP_out, 0))->arg[0], find(b.k, OP_read, 0));
}

/* z = c + S'a + (d.S)'b has one read, before the decay, with the row a + d.b. */
static void test_reads_merge_at_the_earliest(void **state) {
    Build b = start(state, 2, 2);
    int r1 = read_(&b, build_in(&b, "a", "K"));
    decay_(&b, build_in(&b, "d", "K"));
    int r2 = read_(&b, build_in(&b, "b", "K"));
    update_(&b, build_in(&b, "k", "K"), add_(&b, add_(&b, build_in(&b, "c", "V"), r1), r2));
    pass_normal(b.k);
    int read = find(b.k, OP_read, 0);
    assert_int_equal(find(b.k, OP_read, 1), -1);
    assert_true(read < find(b.k, OP_decay, 0));
    const Inst *row = inst_at(b.k, inst_at(b.k, read)->arg[0]);
    assert_int_equal(row->op, OP_add);
    int first = is_input(b.k, row->arg[0], "a") ? 0 : 1;
    assert_true(is_input(b.k, row->arg[first], "a"));
    assert_true(is_product(b.k, row->arg[1 - first], "d", "b"));
    assert_true(b.k->facts.reads_before_decay);
}

/* S = d (S + k v') needs no update of its own for the decay unless something reads in between. */
static void test_last_decay_goes_onto_the_key(void **state) {
    for (int between = 0; between < 2; between++) {
        Build b = start(state, 2, 2);
        update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
        int r = between ? read_(&b, build_in(&b, "q", "K")) : -1;
        decay_(&b, build_in(&b, "d", "K"));
        build_out(&b, "o", between ? r : read_(&b, build_in(&b, "q", "K")));
        pass_normal(b.k);
        assert_int_equal(b.k->facts.slots, 1 + between);
        bool decay_first = find(b.k, OP_decay, 0) < find(b.k, OP_update, 0);
        assert_int_equal(decay_first, !between);
        if (!between) {
            int p = inst_at(b.k, find(b.k, OP_update, 0))->arg[0];
            assert_true(is_product(b.k, p, "d", "k"));
        }
    }
}

/* S + k v' + b (S'a)' as two updates: the one that reads the old state comes first. */
static void test_erase_goes_before_a_write_it_does_not_see(void **state) {
    Build b = start(state, 2, 2);
    int r = read_(&b, build_in(&b, "a", "K"));
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    update_(&b, build_in(&b, "b", "K"), r);
    pass_normal(b.k);
    assert_true(is_input(b.k, inst_at(b.k, find(b.k, OP_update, 0))->arg[0], "b"));
    assert_true(is_input(b.k, inst_at(b.k, find(b.k, OP_update, 1))->arg[0], "k"));
}

/* Not when an out reads the state in between. */
static void test_no_reorder_over_an_out(void **state) {
    Build b = start(state, 2, 2);
    int r = read_(&b, build_in(&b, "a", "K"));
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    build_out(&b, "o", read_(&b, build_in(&b, "q", "K")));
    update_(&b, build_in(&b, "b", "K"), r);
    pass_normal(b.k);
    assert_true(is_input(b.k, inst_at(b.k, find(b.k, OP_update, 0))->arg[0], "k"));
}

/* refusals ------------------------------------------------------------------------------------- */

static void test_value_coefficient(void **state) {
    static const char text[] = "S = S + k * (beta .* (v - S' * k))'";
    Fixture *f = *state;
    Build b = start(state, 2, 2);
    b.k->source = source_from_text(&f->arena, "x.gdr", text, strlen(text));
    int beta = build_in(&b, "beta", "V"), key = build_in(&b, "k", "K");
    uint32_t at = (uint32_t)(strstr(text, "beta") - text);
    b.k->inst.at[beta].span = (Span){at, at + 4};
    update_(&b, key, mul_(&b, beta, sub_(&b, build_in(&b, "v", "V"), read_(&b, key))));
    assert_refused(b.k, "`beta` scales a read of the state differently for every column of S");
    assert_int_equal(b.k->facts.where.lo, at);
    assert_int_equal(b.k->facts.where.hi, at + 4);
}

/* The same coefficient on the write alone is free. */
static void test_value_coefficient_on_the_write(void **state) {
    Build b = start(state, 2, 2);
    int key = build_in(&b, "k", "K");
    int write = mul_(&b, build_in(&b, "w", "V"), build_in(&b, "v", "V"));
    update_(&b, key, sub_(&b, write, read_(&b, key)));
    pass_normal(b.k);
    assert_true(b.k->facts.chunkable);
}

static void test_nonlinear_read(void **state) {
    Build b = start(state, 2, 2);
    int key = build_in(&b, "k", "K");
    update_(&b, key, emit1(b.k, OP_tanh, read_(&b, key), AT));
    assert_refused(b.k, "nonlinear function tanh");
}

static void test_product_and_quotient_of_reads(void **state) {
    Build b = start(state, 2, 2);
    int key = build_in(&b, "k", "K"), r = read_(&b, key);
    update_(&b, key, mul_(&b, r, r));
    assert_refused(b.k, "multiplies two reads");
    b = start(state, 2, 2);
    key = build_in(&b, "k", "K");
    update_(&b, key, emit2(b.k, OP_div, build_in(&b, "v", "V"), read_(&b, key), AT));
    assert_refused(b.k, "divides by a read");
}

static void test_sum_of_a_read(void **state) {
    Build b = start(state, 2, 2);
    int key = build_in(&b, "k", "K"), s = emit_sum(b.k, read_(&b, key), AXIS_V, AT);
    update_(&b, key, mul_(&b, s, build_in(&b, "v", "V")));
    assert_refused(b.k, "over its columns");
}

static void test_value_decay(void **state) {
    Build b = start(state, 2, 2);
    int key = build_in(&b, "k", "K");
    decay_(&b, build_in(&b, "d", "V"));
    update_(&b, key, build_in(&b, "v", "V"));
    assert_refused(b.k, "value-side decay (`d`) runs by the recurrent algorithm");
    assert_int_equal(b.k->facts.decay, DECAY_value);
    b = start(state, 2, 2);
    key = build_in(&b, "k", "K");
    decay_(&b, build_in(&b, "d", "V"));
    update_(&b, key, sub_(&b, build_in(&b, "v", "V"), read_(&b, key)));
    assert_refused(b.k, "`d` decays the value side of a state with a key-side erase");
    b = start(state, 2, 2);
    decay_(&b, build_in(&b, "d", "V"));
    decay_(&b, build_in(&b, "g", "K"));
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    assert_refused(b.k, "value-side decay");
    assert_int_equal(b.k->facts.decay, DECAY_mixed);
}

static void test_state_in_keys_rows_and_decays(void **state) {
    Build b = start(state, 2, 2); /* Oja: the key is k - S v */
    int v = build_in(&b, "v", "V"), r = read_(&b, v);
    update_(&b, sub_(&b, build_in(&b, "k", "K"), r), v);
    assert_refused(b.k, "from its value side");
    b = start(state, 2, 2);
    int s = emit_sum(b.k, read_(&b, build_in(&b, "a", "K")), AXIS_V, AT);
    decay_(&b, s);
    update_(&b, build_in(&b, "k", "K"), build_in(&b, "v", "V"));
    assert_refused(b.k, "depends on the state");
    b = start(state, 2, 2);
    s = emit_sum(b.k, read_(&b, build_in(&b, "a", "K")), AXIS_V, AT);
    build_out(&b, "o", read_(&b, mul_(&b, s, build_in(&b, "q", "K"))));
    assert_refused(b.k, "which itself depends on the state");
    b = start(state, 2, 2);
    s = emit_sum(b.k, read_(&b, build_in(&b, "a", "K")), AXIS_V, AT);
    update_(&b, mul_(&b, s, build_in(&b, "k", "K")), build_in(&b, "v", "V"));
    assert_refused(b.k, "the write key");
}

static void test_no_key_axis(void **state) {
    Build b = start(state, 2, 2);
    decay_(&b, build_in(&b, "d", ""));
    assert_refused(b.k, "no vector along the key axis");
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_facts_of_named),
        TEST(test_scalar_decays_on_both_sides_are_key),
        TEST(test_coefficient_moves_into_the_row),
        TEST(test_one_read_for_update_and_out),
        TEST(test_reads_merge_at_the_earliest),
        TEST(test_last_decay_goes_onto_the_key),
        TEST(test_erase_goes_before_a_write_it_does_not_see),
        TEST(test_no_reorder_over_an_out),
        TEST(test_value_coefficient),
        TEST(test_value_coefficient_on_the_write),
        TEST(test_nonlinear_read),
        TEST(test_product_and_quotient_of_reads),
        TEST(test_sum_of_a_read),
        TEST(test_value_decay),
        TEST(test_state_in_keys_rows_and_decays),
        TEST(test_no_key_axis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
