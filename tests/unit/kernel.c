/* Building kernels: shape algebra, inferred shapes, copies, questions about values, and that illegal
 * instructions are our bug. */
#include "ir_test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const Span nowhere = {0, 0};

static void shapes_are_sorted_sets(void **state) {
    (void)state;
    Shape kv = shape_of(2, (int[]){AXIS_V, AXIS_K}), c = shape_of(1, (int[]){AXIS_C});
    assert_int_equal(kv.rank, 2);
    assert_int_equal(kv.axis[0], AXIS_K);
    assert_int_equal(kv.axis[1], AXIS_V);
    Shape all = shape_union(kv, c);
    assert_true(shape_equal(all, shape_of(3, (int[]){AXIS_K, AXIS_V, AXIS_C})));
    assert_true(shape_equal(shape_union(c, kv), all));
    assert_true(shape_equal(shape_union(all, kv), all));
    assert_true(shape_equal(shape_without(all, AXIS_K), shape_of(2, (int[]){AXIS_C, AXIS_V})));
    assert_true(shape_equal(shape_without(all, AXIS_U), all));
    assert_true(shape_equal(shape_with(all, AXIS_K), all));
    assert_true(shape_has(all, AXIS_C) && !shape_has(all, AXIS_R));
    assert_true(shape_equal(shape_lattice(all), c));
    assert_true(shape_equal(shape_features(all), kv));
    assert_false(shape_equal(c, kv) || shape_equal(c, shape_scalar()));
}

/* K = 3, V = 2, C = 4, two updates a token; one port of each kind. */
static Kernel *sample(World *w, Level level) {
    static const struct { const char *name; bool param; int rank, axis[2]; } port[] = {
        {"k", false, 1, {AXIS_K}}, {"v", false, 1, {AXIS_V}}, {"s", false, 0, {0}},
        {"kk", false, 2, {AXIS_user, AXIS_K}}, {"A", true, 1, {AXIS_K}}, {"h", false, 1, {AXIS_user}}};
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "t"));
    int size[AXIS_user] = {4, 8, 8, 3, 2};
    for (int i = 0; i < AXIS_user; i++)
        k->axis.at[i].size = size[i];
    k->level = level;
    assert_int_equal(kernel_axis(k, "n", 5), AXIS_user);
    for (int i = 0; i < 6; i++) {
        Port p = {.name = port[i].name, .is_param = port[i].param,
                  .shape = {(int8_t)port[i].rank, {(int8_t)port[i].axis[0], (int8_t)port[i].axis[1]}}};
        VEC_PUSH(k->arena, &k->in, p);
    }
    VEC_PUSH(k->arena, &k->out, ((Port){.name = "o", .shape = shape_of(1, (int[]){AXIS_V})}));
    return k;
}

static void axes_and_ports_by_name(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = sample(w, LEVEL_recurrence);
    assert_int_equal(kernel_axis(k, "n", 9), AXIS_user);
    assert_int_equal(k->axis.at[AXIS_user].size, 5);
    assert_int_equal(kernel_axis(k, "K", 0), AXIS_K);
    assert_int_equal(kernel_axis(k, "C", 7), AXIS_user + 1); /* a dim of the spec, not the lattice */
    assert_int_equal(kernel_find_port(k, "kk", false), 3);
    assert_int_equal(kernel_find_port(k, "o", true), 0);
    assert_int_equal(kernel_find_port(k, "o", false), -1);
    assert_true(shape_elements(k, shape_of(2, (int[]){AXIS_K, AXIS_V})) == 6);
    assert_true(shape_elements(k, shape_scalar()) == 1);
    world_close(w);
}

static void expect_shape(World *w, const Kernel *k, int v, const char *wanted) {
    Buf b;
    buf_init(&b, &w->arena);
    shape_print(k, inst_at(k, v)->shape, &b);
    assert_string_equal(b.text, wanted);
}

static void shapes_at_recurrence_level(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = sample(w, LEVEL_recurrence);
    int key = emit_in(k, 0, -1, nowhere), value = emit_in(k, 1, -1, nowhere);
    int scalar = emit_in(k, 2, -1, nowhere), row = emit_in(k, 3, 4, nowhere);
    expect_shape(w, k, key, "[K]");
    expect_shape(w, k, scalar, "[]");
    expect_shape(w, k, row, "[K]");
    expect_shape(w, k, emit_in(k, 5, 2, nowhere), "[]");
    expect_shape(w, k, emit2(k, OP_mul, scalar, key, nowhere), "[K]");
    expect_shape(w, k, emit2(k, OP_add, key, row, nowhere), "[K]");
    expect_shape(w, k, emit_sum(k, key, AXIS_K, nowhere), "[]");
    expect_shape(w, k, emit1(k, OP_prev, key, nowhere), "[K]");
    expect_shape(w, k, emit_read(k, key, nowhere), "[V]");
    expect_shape(w, k, emit_read(k, value, nowhere), "[K]");
    expect_shape(w, k, emit_const(k, 2), "[]");
    int n = k->inst.count;
    emit_decay(k, scalar, nowhere);
    emit_update(k, key, value, nowhere);
    emit_out(k, 0, value, nowhere);
    assert_int_equal(k->inst.count, n + 3);
    world_close(w);
}

static int woven(Kernel *k, int a, int b, int axis) {
    return emit(k, (Inst){.op = OP_weave, .nargs = 2, .arg = (int[]){a, b}, .axis = axis});
}

static int emit3(Kernel *k, Op op, int nargs, int x, int y, int a) {
    return emit(k, (Inst){.op = op, .nargs = nargs, .arg = (int[]){x, y, a}});
}

static int contracted(Kernel *k, int a, int b, int axis) {
    return emit(k, (Inst){.op = OP_contract, .nargs = 2, .arg = (int[]){a, b}, .axis = axis});
}

static void shapes_at_chunk_level(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = sample(w, LEVEL_chunk);
    int key = emit_in(k, 0, -1, nowhere), value = emit_in(k, 1, -1, nowhere);
    int scalar = emit_in(k, 2, -1, nowhere), param = emit_in(k, 4, -1, nowhere);
    int one = emit_const(k, 1);
    expect_shape(w, k, key, "[C,K]");
    expect_shape(w, k, param, "[K]");
    expect_shape(w, k, emit2(k, OP_mul, scalar, param, nowhere), "[C,K]");
    expect_shape(w, k, emit1(k, OP_cumsum, param, nowhere), "[C,K]");
    expect_shape(w, k, emit1(k, OP_prev, one, nowhere), "[C]");
    int y = woven(k, key, param, AXIS_U), x = woven(k, one, key, AXIS_R);
    int d = woven(k, scalar, one, AXIS_U), z = woven(k, value, value, AXIS_R);
    expect_shape(w, k, y, "[U,K]");
    expect_shape(w, k, x, "[R,K]");
    expect_shape(w, k, d, "[U]");
    int t = emit3(k, OP_scores, 3, x, y, d), a = emit1(k, OP_solve, t, nowhere);
    expect_shape(w, k, t, "[R,U]");
    expect_shape(w, k, a, "[R,U]");
    int q = emit3(k, OP_scores, 2, key, y, -1), constant = emit3(k, OP_scores, 3, param, y, -1);
    expect_shape(w, k, q, "[C,U]");
    expect_shape(w, k, constant, "[C,U]");
    expect_shape(w, k, contracted(k, q, a, AXIS_U), "[C,R]");
    expect_shape(w, k, contracted(k, x, z, AXIS_R), "[K,V]");
    expect_shape(w, k, emit3(k, OP_carry, 2, param, d, -1), "[C,K]");
    expect_shape(w, k, emit3(k, OP_carry, 2, scalar, y, -1), "[C,K]");
    expect_shape(w, k, emit3(k, OP_tail, 2, y, d, -1), "[U,K]");
    expect_shape(w, k, emit3(k, OP_tail, 1, d, -1, -1), "[U]");
    expect_shape(w, k, emit1(k, OP_total, d, nowhere), "[]");
    expect_shape(w, k, emit1(k, OP_total, y, nowhere), "[K]");
    expect_shape(w, k, emit(k, (Inst){.op = OP_rename, .nargs = 1, .arg = &y, .index = AXIS_U,
                                      .axis = AXIS_R}), "[R,K]");
    expect_shape(w, k, emit(k, (Inst){.op = OP_state}), "[K,V]");
    world_close(w);
}

/* Operands are copied: the caller's array may change or go. */
static void copies_are_independent(void **state) {
    (void)state;
    World *w = world_open();
    Rng r = {4};
    Kernel *k = random_kernel(w, &r, LEVEL_chunk, 40);
    k->facts = (Facts){.known = true, .slots = 2};
    Kernel *like = kernel_like(k), *clone = kernel_clone(k);
    assert_int_equal(like->inst.count, 0);
    assert_int_equal(like->level, k->level);
    assert_int_equal(like->out.count, k->out.count);
    assert_same_kernel(k, clone);
    const char *before = printed(w, k);
    for (int v = 0; v < clone->inst.count; v++)
        for (int i = 0; i < clone->inst.at[v].nargs; i++)
            clone->inst.at[v].arg[i] = 0;
    clone->axis.at[AXIS_C].size = 77;
    clone->in.at[0].lo = -3;
    clone->facts.slots = 1;
    emit_const(clone, 1);
    assert_string_equal(before, printed(w, k));
    int arg[2] = {0, 0}, model = emit2(k, OP_add, 0, 0, nowhere);
    int copy = emit_copy(k, inst_at(k, model), arg);
    arg[0] = 99;
    assert_int_equal(inst_at(k, copy)->arg[0], 0);
    world_close(w);
}

static void marks_and_constants(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w,
        "kernel t recurrence {\n axis C = 0, R = 0, U = 0, K = 3, V = 2\n in k : f32[K]\n"
        " param A : f32[K]\n out o : f32[V]\n state S\n"
        " %0 = in k\n %1 = in A\n %2 = const 2\n %3 = pow %1, %2\n %4 = sum %3 over K\n"
        " %5 = mul %4, %0\n %6 = prev %4\n %7 = read %3\n out o = %7\n}\n");
    static const bool constant[] = {false, true, true, true, true, false, false, false};
    static const bool needed[] = {true, true, true, true, true, true, false, false};
    bool mark[9] = {false};
    for (int v = 0; v < 8; v++)
        assert_int_equal(value_is_constant(k, v), constant[v]);
    value_mark(k, 5, mark);
    for (int v = 0; v < 8; v++)
        assert_int_equal(mark[v], needed[v]);
    assert_true(op_commutes(OP_add) && op_commutes(OP_mul) && !op_commutes(OP_max) && !op_commutes(OP_sub));
    world_close(w);
}

static void table_is_whole(void **state) {
    (void)state;
    for (int op = 0; op < OP_count; op++) {
        assert_true(op_info[op].name[0] && op_info[op].doc[0]);
        assert_true(op_info[op].levels != 0 && op_info[op].nargs <= 4);
        for (int other = 0; other < op; other++)
            assert_string_not_equal(op_info[op].name, op_info[other].name);
    }
}

/* The table in the documentation has a line for each operation, in the words of ops.def. */
static void table_is_documented(void **state) {
    (void)state;
    World *w = world_open();
    const Source *doc = source_from_file(&w->arena, GDR_TESTS_DIR "/../docs/ir.md");
    assert_non_null(doc);
    for (int op = 0; op < OP_count; op++) {
        Buf row;
        buf_init(&row, &w->arena);
        for (const char *c = op_info[op].doc; *c; c++)
            buf_printf(&row, "%s%c", *c == '|' ? "\\" : "", *c);
        char name[40];
        snprintf(name, sizeof name, "\n| `%s` |", op_info[op].name);
        const char *at = strstr(doc->text, name), *text = at ? strstr(at, row.text) : NULL;
        if (!text || memchr(at + 1, '\n', (size_t)(text - at - 1)))
            fail_msg("docs/ir.md does not say: %s: %s", op_info[op].name, op_info[op].doc);
    }
    world_close(w);
}

/* Whether `f` ends the process as a bug does. */
static bool aborts(void (*f)(Kernel *), Kernel *k) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        assert_non_null(freopen("/dev/null", "w", stderr));
        signal(SIGABRT, SIG_DFL);
        f(k);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void add_key_to_value(Kernel *k) { emit2(k, OP_add, 0, 1, nowhere); }
static void sum_absent_axis(Kernel *k) { emit_sum(k, 0, AXIS_V, nowhere); }
static void operand_from_nowhere(Kernel *k) { emit1(k, OP_neg, 99, nowhere); }
static void state_too_early(Kernel *k) { emit(k, (Inst){.op = OP_state}); }
static void legal(Kernel *k) { emit1(k, OP_neg, 0, nowhere); }

static void illegal_instructions_are_bugs(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = sample(w, LEVEL_recurrence);
    emit_in(k, 0, -1, nowhere);
    emit_in(k, 1, -1, nowhere);
    assert_true(aborts(add_key_to_value, k));
    assert_true(aborts(sum_absent_axis, k));
    assert_true(aborts(operand_from_nowhere, k));
    assert_true(aborts(state_too_early, k));
    assert_false(aborts(legal, k));
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_sorted_sets),
        cmocka_unit_test(axes_and_ports_by_name),
        cmocka_unit_test(shapes_at_recurrence_level),
        cmocka_unit_test(shapes_at_chunk_level),
        cmocka_unit_test(copies_are_independent),
        cmocka_unit_test(marks_and_constants),
        cmocka_unit_test(table_is_whole),
        cmocka_unit_test(table_is_documented),
        cmocka_unit_test(illegal_instructions_are_bugs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
