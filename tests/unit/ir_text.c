/* The .gir language: what is printed reads back to the same kernel, at every level; text that is no
 * kernel is refused with the place and the reason. */
#include "ir_test.h"

/* print -> parse gives an equal kernel, whose print is the same text. */
static void check_round_trip(World *w, const Kernel *k) {
    const char *text = printed(w, k);
    Kernel *back = parse(w, text);
    assert_same_kernel(k, back);
    assert_string_equal(text, printed(w, back));
}

static void round_trip_of_random_kernels(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        World *w = world_open();
        Rng r = {seed};
        Kernel *k = random_kernel(w, &r, seed % 3 ? LEVEL_chunk : LEVEL_recurrence,
                                  10 + rng_below(&r, 60));
        if (seed % 3 == 2)
            k->level = LEVEL_tile;
        for (int v = 0; k->level == LEVEL_tile && v < k->inst.count; v++) {
            k->inst.at[v].role = (Role)rng_below(&r, 3);
            k->inst.at[v].keep = rng_below(&r, 2);
            k->inst.at[v].elem = (Elem)rng_below(&r, 4);
        }
        if (rng_below(&r, 2))
            k->facts = (Facts){.known = true, .decay = (DecayClass)rng_below(&r, 5),
                               .decay_constant = rng_below(&r, 2), .erases = rng_below(&r, 2),
                               .reads_before_decay = rng_below(&r, 2),
                               .chunkable = rng_below(&r, 2), .slots = rng_below(&r, 100),
                               .why_not = rng_below(&r, 2) ? "a \"b\"\\ \t\r\n\001 \xc3\xa9" : NULL};
        if (rng_below(&r, 4) == 0)
            k->state_name = NULL;
        check_round_trip(w, k);
        world_close(w);
    }
}

static void numbers_keep_every_bit(void **state) {
    (void)state;
    static const double special[] = {0.0, -0.0, 1e15, 1e16, -123456789, 0.1, 5e-324, 1.7976931348623157e308,
                                     2.2250738585072014e-308, INFINITY, -INFINITY, NAN, 1.0 / 3};
    World *w = world_open();
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "n"));
    Rng r = {1};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        emit_const(k, special[i]);
    for (int i = 0; i < 500; i++) {
        uint64_t bits = rng_next(&r);
        double x;
        memcpy(&x, &bits, sizeof x);
        emit_const(k, x);
    }
    check_round_trip(w, k);
    world_close(w);
}

static void ranges_of_every_form(void **state) {
    (void)state;
    static const double bound[] = {-INFINITY, -5, 0, 0.25, INFINITY};
    World *w = world_open();
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "n"));
    for (int i = 0; i < 25; i++) {
        char name[16];
        snprintf(name, sizeof name, "x%d", i);
        Port p = {.name = intern_z(&w->names, name), .lo = bound[i / 5], .hi = bound[i % 5]};
        VEC_PUSH(k->arena, &k->in, p);
    }
    check_round_trip(w, k);
    world_close(w);
}

/* A spec may call a dim C, or name the state's dims anything: axes are told apart by number. */
static void axes_with_equal_names(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = kernel_new(&w->arena, &w->names, intern_z(&w->names, "n"));
    k->axis.at[AXIS_K] = (Axis){intern_z(&w->names, "R"), 4};
    k->axis.at[AXIS_V] = (Axis){intern_z(&w->names, "K"), 4};
    int user = kernel_axis(k, intern_z(&w->names, "C"), 2);
    assert_int_equal(user, AXIS_user);
    Port p = {.name = intern_z(&w->names, "x"), .lo = -INFINITY, .hi = INFINITY,
              .shape = {2, {(int8_t)user, AXIS_K}}};
    VEC_PUSH(k->arena, &k->in, p);
    emit_in(k, 0, 1, (Span){0, 0});
    check_round_trip(w, k);
    assert_non_null(strstr(printed(w, k), "in x : f32[@5,@3]"));
    world_close(w);
}

/* Hand-written text: names for values, no shapes, comments, odd spacing; and how it is printed. */
static void hand_written_text(void **state) {
    (void)state;
    static const char text[] =
        "; a comment\n\nkernel tiny chunk{ # another\n"
        "axis C=2,R=4,U=4,K=3,V=2,n=2\n"
        "  in k:bf16[n,K]\n in v : f16[V] in [-1,1]\nin g : f32[] <= 0\n param A : f32[K]\n"
        "  out o : bf16[V]\n state S\n"
        "  facts decay=scalar slots=2 chunkable erases early_read constant\n"
        "  %k0 = in k row 0\n %k1 = in k row 1\n  %y = weave %k0, %k1 onto U\n"
        "  %e = exp %gg\n"
        "}\n";
    World *w = world_open();
    const char *why;
    assert_null(try_parse(w, text, &why));
    assert_non_null(strstr(why, "t:15:12: error: no value %gg before here"));

    char fixed[1024];
    snprintf(fixed, sizeof fixed, "%s", text);
    memcpy(strstr(fixed, "%e = exp %gg"), "%e = exp %k0", 12);
    Kernel *k = parse(w, fixed);
    assert_string_equal(printed(w, k),
        "kernel tiny chunk {\n"
        "  axis C = 2, R = 4, U = 4, K = 3, V = 2, n = 2\n"
        "  in k : bf16[n,K]\n  in v : f16[V] in [-1, 1]\n  in g : f32[] <= 0\n"
        "  param A : f32[K]\n  out o : bf16[V]\n  state S\n"
        "  facts decay=scalar constant erases early_read chunkable slots=2\n"
        "  %0 = in k row 0 : [C,K]\n  %1 = in k row 1 : [C,K]\n"
        "  %2 = weave %0, %1 onto U : [U,K]\n  %3 = exp %0 : [C,K]\n}\n");
    world_close(w);
}

static void every_field_of_the_chunk_system(void **state) {
    (void)state;
    static const char text[] =
        "kernel t tile {\n"
        "  axis C = 2, R = 4, U = 4, K = 3, V = 2\n"
        "  in q : bf16[K]\n  out o : bf16[K]\n  state S\n"
        "  factor keep bf16 %0 = in q : [C,K]\n"
        "  factor %1 = weave %0, %0 onto U fill 1 : [U,K]\n"
        "  factor keep f16 %2 = scores %0, %1, %1 place 2 : [C,U]\n"
        "  factor %3 = scores %0, %1 place 1 : [C,U]\n"
        "  factor %4 = scores %0, %1, none : [C,U]\n"
        "  f16 %5 = carry %0, %1 place 2 : [C,K]\n"
        "  %6 = tail %1, %1 : [U,K]\n"
        "  %7 = total %1 : [K]\n"
        "  %8 = rename %1 from U to R : [R,K]\n"
        "  %9 = scores %8, %1, %1 : [R,U]\n"
        "  %10 = solve %9 : [R,U]\n"
        "  %11 = contract %2, %10 over U : [C,R]\n"
        "  chain %12 = state : [K,V]\n"
        "  %13 = sum %0 over K : [C]\n"
        "  chain out o = %0\n"
        "  chain next %12\n"
        "}\n";
    World *w = world_open();
    Kernel *k = parse(w, text);
    assert_string_equal(printed(w, k), text);
    assert_int_equal(inst_at(k, 2)->place, 2);
    assert_int_equal(inst_at(k, 4)->arg[2], -1);
    assert_int_equal(inst_at(k, 8)->index, AXIS_U);
    assert_true(inst_at(k, 1)->num == 1);
    world_close(w);
}

#define HEAD "kernel t chunk {\n axis C = 2, R = 2, U = 2, K = 3, V = 2\n in q : f32[K]\n out o : f32[K]\n"

static void refuses_bad_text(void **state) {
    (void)state;
    static const struct { const char *text, *why; } bad[] = {
        {"", "t:1:1: error: expected kernel"},
        {"kernel", "expected the kernel's name"},
        {"kernel t", "expected a level"},
        {"kernel t fast {\n}", "t:1:10: error: expected a level: recurrence, chunk, tile"},
        {"kernel t chunk {\n", "expected '}'"},
        {"kernel t chunk {\n}\nkernel", "t:3:1: error: expected the end of the text"},
        {"kernel t chunk {\n axis C = -1\n}", "t:2:11: error: expected a whole number from 0"},
        {"kernel t chunk {\n axis C = 1.5\n}", "expected a whole number"},
        {"kernel t chunk {\n axis C = 99999999999\n}", "expected a whole number"},
        {"kernel t chunk {\n axis C = 0x10\n}", "expected a decimal number"},
        {"kernel t chunk {\n axis C = 1e\n}", "expected a number"},
        {"kernel t chunk {\n in q f32[K]\n}", "t:2:7: error: expected ':'"},
        {"kernel t chunk {\n in q : i8[K]\n}", "expected an element type"},
        {"kernel t chunk {\n in q : f32[Q]\n}", "t:2:13: error: unknown axis 'Q'"},
        {"kernel t chunk {\n in q : f32[@9]\n}", "expected a whole number from 0 to 4"},
        {"kernel t chunk {\n in q : f32[K,K]\n}", "each once"},
        {"kernel t chunk {\n in q : f32[K,V,C,R]\n}", "at most 3 axes"},
        {"kernel t chunk {\n in q : f32[K] in [0\n}", "expected ','"},
        {"kernel t chunk {\n facts slow\n}", "expected a fact"},
        {"kernel t chunk {\n facts decay=fast\n}", "expected a decay class"},
        {"kernel t chunk {\n facts why=\"a\n}", "expected a quoted text"},
        {"kernel t chunk {\n facts why=\"a\\\"\n}", "expected a quoted text"},
        {"kernel t chunk {\n facts why=\"\\x\"\n}", "escapes of JSON"},
        {"kernel t chunk {\n facts why=\"\\u00\"\n}", "escapes of JSON"},
        {HEAD " in q : f32[K]\n}", "t:5:5: error: 'q' is declared twice"},
        {HEAD " %a = in r\n}", "unknown input 'r'"},
        {HEAD " %a = in q\n out p = %a\n}", "unknown output 'p'"},
        {HEAD " %a = in q\n %a = in q\n}", "t:6:2: error: %a is there already"},
        {HEAD " %a = in q\n %b = frobnicate %a\n}", "t:6:7: error: expected an operation"},
        {HEAD " in r row 0\n}", "t:5:7: error: expected ':'"},
        {HEAD " neg %a\n}", "the value of neg needs a name"},
        {HEAD " %a = in q\n %b = next %a\n}", "next gives no value"},
        {HEAD " %a = in q\n %b = add %a\n}", "add: wrong number of operands"},
        {HEAD " %a = in q\n %b = neg none\n}", "neg: an operand that is not there"},
        {HEAD " %a = in q\n %b = sum %a\n}", "expected over"},
        {HEAD " %a = in q\n %b = sum %a over V\n}", "sum: an operand lacks the axis"},
        {HEAD " %a = in q\n %b = neg %a extra\n}", "t:6:14: error: expected the end of the line"},
        {HEAD " %a = in q\n %b = neg %c\n}", "no value %c before here"},
        {HEAD " % = in q\n}", "expected an operation"},
        {HEAD " \001\n}", "expected an operation"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        World *w = world_open();
        const char *why;
        if (try_parse(w, bad[i].text, &why) || !strstr(why, bad[i].why))
            fail_msg("case %zu: %s\nsays: %s\nwanted: %s", i, bad[i].text, why, bad[i].why);
        world_close(w);
    }
}

/* One mistake a line is reported for each line. */
static void reports_several_errors(void **state) {
    (void)state;
    World *w = world_open();
    const char *why;
    assert_null(try_parse(w, HEAD " %a = in r\n %b = frob %a\n %c = in q\n out z = %c\n}", &why));
    assert_non_null(strstr(why, "t:5:10: error: unknown input 'r'"));
    assert_non_null(strstr(why, "t:6:7: error: expected an operation"));
    assert_non_null(strstr(why, "t:8:6: error: unknown output 'z'"));
    world_close(w);
}

static void refuses_text_after_a_nul(void **state) {
    (void)state;
    World *w = world_open();
    static const char text[] = "kernel t chunk {\n}\n\0kernel";
    Diag d;
    const Source *s = source_from_text(&w->arena, "t", text, sizeof text - 1);
    diag_init(&d, &w->arena, s);
    assert_null(kernel_parse(&w->arena, &w->names, s, &d));
    assert_int_equal(d.errors, 1);
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip_of_random_kernels),
        cmocka_unit_test(numbers_keep_every_bit),
        cmocka_unit_test(ranges_of_every_form),
        cmocka_unit_test(axes_with_equal_names),
        cmocka_unit_test(hand_written_text),
        cmocka_unit_test(every_field_of_the_chunk_system),
        cmocka_unit_test(refuses_bad_text),
        cmocka_unit_test(reports_several_errors),
        cmocka_unit_test(refuses_text_after_a_nul),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
