/* The pass runner: order, levels, where it stops, what its watcher is told. */
#include "ir_test.h"
#include "passes/passes.h"

#define PORTS                                                                                      \
    "kernel t recurrence {\n axis C = 0, R = 0, U = 0, K = 3, V = 2\n"                             \
    " in k : f32[K]\n in v : f32[V]\n in g : f32[K] <= 0\n in b : f32[V]\n out o : f32[V]\n"       \
    " state S\n %k = in k\n %v = in v\n %g = in g\n %b = in b\n"
static const char delta_rule[] =
    PORTS " %d = exp %g\n decay %d\n %y = read %k\n %z = sub %v, %y\n update %k, %z\n"
          " %o = read %k\n out o = %o\n}\n";
/* A coefficient over V on a read: no chunk form. */
static const char per_column[] =
    PORTS " %y = read %k\n %by = mul %b, %y\n %z = sub %v, %by\n update %k, %z\n"
          " %o = read %k\n out o = %o\n}\n";

typedef struct Log {
    World *w;
    VEC(const char *) dumped;
    VEC(const char *) timed;
    bool changed[64];
} Log;

/* Every dump must read back and be legal. */
static void on_dump(void *user, const char *pass, const char *text, bool changed) {
    Log *log = user;
    assert_string_equal(printed(log->w, parse_legal(log->w, text)), text);
    assert_in_range(log->dumped.count, 0, 63);
    log->changed[log->dumped.count] = changed;
    VEC_PUSH(&log->w->arena, &log->dumped, pass);
}

static void on_time(void *user, const char *pass, double seconds) {
    Log *log = user;
    assert_true(seconds >= 0 && seconds < 10);
    VEC_PUSH(&log->w->arena, &log->timed, pass);
}

static PassWatch watch(Log *log, const char *dump_after) {
    return (PassWatch){.dump_after = dump_after, .time_passes = true, .verify_each = true,
                       .dump = on_dump, .time = on_time, .user = log};
}

static void table_is_in_order(void **state) {
    (void)state;
    assert_int_equal(pass_info[0].from, LEVEL_recurrence);
    assert_int_equal(pass_info[pass_count - 1].to, LEVEL_tile);
    for (int i = 0; i < pass_count; i++) {
        assert_int_equal(pass_find(pass_info[i].name), i);
        assert_true(pass_info[i].doc[0] != 0);
        if (i > 0)
            assert_int_equal(pass_info[i].from, pass_info[i - 1].to);
    }
    assert_int_equal(pass_find("all"), -1);
}

static void chunk_sizes(void **state) {
    (void)state;
    static const struct { int slots, rows, tokens; } at[] = {
        {1, 64, 64}, {1, 1, 1}, {2, 64, 32}, {3, 64, 21}, {4, 2, 1}, {64, 64, 1}};
    World *w = world_open();
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "t"));
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        k->facts.slots = at[i].slots;
        kernel_set_chunk(k, at[i].rows);
        assert_int_equal(k->axis.at[AXIS_C].size, at[i].tokens);
        assert_int_equal(k->axis.at[AXIS_R].size, at[i].tokens * at[i].slots);
        assert_int_equal(k->axis.at[AXIS_U].size, at[i].tokens * at[i].slots);
    }
    world_close(w);
}

static void runs_to_the_tile_level(void **state) {
    (void)state;
    World *w = world_open();
    Log log = {.w = w};
    PassWatch all = watch(&log, "all");
    Kernel *k = parse_legal(w, delta_rule);
    passes_run(k, "normal", &all);
    assert_int_equal(k->level, LEVEL_recurrence);
    assert_int_equal(log.dumped.count, pass_find("normal") + 1);
    kernel_set_chunk(k, 16);
    passes_run_after(k, "normal", NULL, &all);
    assert_int_equal(k->level, LEVEL_tile);
    assert_int_equal(log.dumped.count, pass_count);
    assert_int_equal(log.timed.count, pass_count);
    for (int i = 0; i < pass_count; i++) {
        assert_string_equal(log.dumped.at[i], pass_info[i].name);
        assert_string_equal(log.timed.at[i], pass_info[i].name);
    }
    assert_true(log.changed[pass_find("chunk")]);
    world_close(w);
}

static void says_when_nothing_changed(void **state) {
    (void)state;
    World *w = world_open();
    Log log = {.w = w};
    PassWatch fold = watch(&log, "fold");
    Kernel *k = parse_legal(w, PORTS " %1 = const 1\n %o = mul %v, %1\n out o = %o\n}\n");
    passes_run(k, "fold", &fold);
    passes_run(k, "fold", &fold);
    assert_int_equal(log.dumped.count, 2);
    assert_true(log.changed[0]);
    assert_false(log.changed[1]);
    passes_run(k, "normal", &fold); /* dumps after fold alone */
    assert_int_equal(log.dumped.count, 3);
    world_close(w);
}

static void stops_where_no_chunk_form_exists(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse_legal(w, per_column);
    passes_run(k, NULL, NULL);
    assert_int_equal(k->level, LEVEL_recurrence);
    assert_true(k->facts.known && !k->facts.chunkable);
    assert_non_null(k->facts.why_not);
    assert_null(kernel_verify(k));
    world_close(w);
}

/* A kernel read at a later level goes on from there. */
static void continues_from_a_later_level(void **state) {
    (void)state;
    World *w = world_open();
    Log log = {.w = w};
    PassWatch all = watch(&log, "all");
    Kernel *k = parse_legal(w, delta_rule);
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, 16);
    passes_run_after(k, "normal", "chunk", NULL);
    Kernel *back = parse_legal(w, printed(w, k));
    passes_run(k, NULL, NULL);
    passes_run(back, NULL, &all);
    assert_string_equal(log.dumped.at[0], pass_info[pass_find("chunk") + 1].name);
    assert_string_equal(printed(w, back), printed(w, k));
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_is_in_order),
        cmocka_unit_test(chunk_sizes),
        cmocka_unit_test(runs_to_the_tile_level),
        cmocka_unit_test(says_when_nothing_changed),
        cmocka_unit_test(stops_where_no_chunk_form_exists),
        cmocka_unit_test(continues_from_a_later_level),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
