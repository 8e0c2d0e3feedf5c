/* The verifier: good kernels of the three levels pass; every way to break one is named. Most broken
 * kernels are made by replacing a line of a good one; what text cannot say is broken in memory. */
#include "ir_test.h"

static const char recurrence[] =
    "kernel t recurrence {\n  axis C = 0, R = 0, U = 0, K = 3, V = 2, n = 2\n"
    "  in k : bf16[K]\n  in v : bf16[V]\n  in kk : bf16[n,K]\n  param A : f32[K]\n"
    "  out o : bf16[V]\n  out b : f32[]\n  state S\n"
    "  %0 = in k : [K]\n  %1 = in v : [V]\n  %2 = in kk row 1 : [K]\n  %3 = in A : [K]\n"
    "  %4 = exp %3 : [K]\n  decay %4\n  %6 = read %0 : [V]\n  %7 = sub %1, %6 : [V]\n"
    "  update %2, %7\n  %9 = sum %0 over K : []\n  out o = %6\n  out b = %9\n}\n";

static const char chunk[] =
    "kernel t chunk {\n  axis C = 2, R = 4, U = 4, K = 3, V = 2\n"
    "  in k : bf16[K]\n  in v : bf16[V]\n  in a : f32[]\n  out o : bf16[V]\n  state S\n"
    "  facts decay=scalar chunkable slots=2\n"
    "  %0 = in k : [C,K]\n  %1 = in v : [C,V]\n  %2 = in a : [C]\n"
    "  %3 = weave %0, %0 onto U : [U,K]\n  %4 = weave %0, %0 onto R : [R,K]\n"
    "  %5 = weave %2, %2 onto U fill 1 : [U]\n  %6 = scores %4, %3, %5 : [R,U]\n"
    "  %7 = solve %6 : [R,U]\n  %8 = scores %0, %3, %5 place 1 : [C,U]\n"
    "  %9 = contract %8, %7 over U : [C,R]\n  %10 = weave %1, %1 onto R : [R,V]\n"
    "  %11 = contract %9, %10 over R : [C,V]\n  out o = %11\n  %13 = tail %3, %5 : [U,K]\n"
    "  %14 = rename %13 from U to R : [R,K]\n  %15 = contract %14, %10 over R : [K,V]\n"
    "  %16 = state : [K,V]\n  %17 = total %5 : []\n  %18 = mul %17, %16 : [K,V]\n"
    "  %19 = add %18, %15 : [K,V]\n  %20 = carry %4, %5 : [R,K]\n  next %19\n}\n";

static const char tile[] =
    "kernel t tile {\n  axis C = 2, R = 2, U = 2, K = 3, V = 2\n"
    "  in k : bf16[K]\n  in v : bf16[V]\n  out o : bf16[V]\n  state S\n"
    "  %0 = in k : [C,K]\n  %1 = in v : [C,V]\n  %2 = weave %0 onto U : [U,K]\n"
    "  %3 = weave %0 onto R : [R,K]\n  factor keep bf16 %4 = scores %3, %2 : [R,U]\n"
    "  factor keep f16 %5 = solve %4 : [R,U]\n  factor %6 = carry %3, none : [R,K]\n"
    "  factor keep bf16 %7 = contract %6, %5 over R : [U,K]\n  chain %8 = state : [K,V]\n"
    "  chain %9 = contract %0, %8 over K : [C,V]\n  %10 = weave %1 onto U : [U,V]\n"
    "  chain %11 = contract %7, %10 over U : [K,V]\n  chain %12 = sub %8, %11 : [K,V]\n"
    "  chain out o = %9\n  chain next %12\n}\n";

static void good_kernels_pass(void **state) {
    (void)state;
    World *w = world_open();
    parse_legal(w, recurrence);
    parse_legal(w, chunk);
    parse_legal(w, tile);
    world_close(w);
}

typedef struct Edit { const char *from, *to, *why; } Edit;

/* `text` with its first `from` replaced. */
static char *edited(World *w, const char *text, const Edit *e) {
    const char *at = strstr(text, e->from);
    if (!at)
        fail_msg("no '%s' to replace", e->from);
    Buf b;
    buf_init(&b, &w->arena);
    buf_put(&b, text, (size_t)(at - text));
    buf_puts(&b, e->to);
    buf_puts(&b, at + strlen(e->from));
    return b.text;
}

static void check_edits(const char *text, const Edit *edit, size_t n) {
    for (size_t i = 0; i < n; i++) {
        World *w = world_open();
        const char *why = kernel_verify(parse(w, edited(w, text, &edit[i])));
        if (!why || !strstr(why, edit[i].why))
            fail_msg("'%s' -> '%s' says: %s\nwanted: %s", edit[i].from, edit[i].to,
                     why ? why : "fine", edit[i].why);
        world_close(w);
    }
}

#define CHECK_EDITS(text, list) check_edits(text, list, sizeof(list) / sizeof *(list))

static void broken_recurrences(void **state) {
    (void)state;
    static const Edit edits[] = {
        {"K = 3, V", "K = 0, V", "axis K has no size"},
        {"in v : bf16[V]", "in v : bf16[C]", "v: an axis that does not belong here"},
        {"param A : f32", "param A : bf16", "A: params are f32"},
        {"%0 = in k : [K]", "%0 = in k : [V]", "%0 in: its shape is [K]"},
        {"%0 = in k : [K]", "%0 = in k : [C,K]", "%0 in: its shape is [K]"},
        {"%2 = in kk row 1 : [K]", "%2 = in kk row 2 : [K]", "row beyond the input's first axis"},
        {"%2 = in kk row 1 : [K]", "%2 = in kk", "no other axes than C, R, U, K, V"},
        {"%4 = exp %3 : [K]", "%4 = exp %3, %0 : [K]", "%4 exp: wrong number of operands"},
        {"%4 = exp %3 : [K]", "%4 = exp : [K]", "%4 exp: wrong number of operands"},
        {"%4 = exp %3 : [K]", "%4 = exp none : [K]", "%4 exp: an operand that is not there"},
        {"%4 = exp %3 : [K]", "%4 = total %3 : []", "%4 total: not legal at this level"},
        {"%4 = exp %3 : [K]", "%4 = state : [K,V]", "%4 state: not legal at this level"},
        {"%4 = exp %3 : [K]", "factor %4 = exp %3 : [K]", "belong to the tile level"},
        {"%4 = exp %3 : [K]", "keep %4 = exp %3 : [K]", "belong to the tile level"},
        {"%4 = exp %3 : [K]", "bf16 %4 = exp %3 : [K]", "belong to the tile level"},
        {"%7 = sub %1, %6 : [V]", "%7 = sub %1, %0 : [K,V]", "do not broadcast"},
        {"%6 = read %0 : [V]", "%9a = sum %0 over K : []\n  %6 = read %9a : [V]", "a read takes a vector"},
        {"update %2, %7", "update %7, %2", "an update takes [K] and [V]"},
        {"%9 = sum %0 over K : []", "%9 = sum %0 over V : []", "an operand lacks the axis"},
        {"out o = %6", "out o = %0", "the operand's axes are not the output's"},
        {"out o = %6", "out o = %6\n  out o = %6", "the output is given twice"},
        {"  out o = %6\n", "", "output o is not given"},
        {"  state S\n", "", "the state is used but not declared"},
    };
    CHECK_EDITS(recurrence, edits);
}

static void broken_chunk_systems(void **state) {
    (void)state;
    static const Edit edits[] = {
        {"C = 2", "C = 3", "not C, C*slots, C*slots"},
        {"C = 2", "C = 0", "not C, C*slots, C*slots"},
        {"U = 4", "U = 2", "not C, C*slots, C*slots"},
        {"slots=2", "slots=1", "is not C = 2 by slots = 1"},
        {"next %19", "%p = prev %0 past 1 : [C,K]\n  next %19", "a place outside of what is remembered"},
        {"%0 = in k : [C,K]", "%0 = in k : [K]", "%0 in: its shape is [C,K]"},
        {"%3 = weave %0, %0 onto U : [U,K]", "%3 = weave %0 onto U : [U,K]", "one operand per update"},
        {"%3 = weave %0, %0 onto U : [U,K]", "%3 = weave %0, %0, %0 onto U : [U,K]", "one operand per update"},
        {"%3 = weave %0, %0 onto U : [U,K]", "%3 = weave %0, %1 onto U : [U,K]", "more than one feature axis"},
        {"%3 = weave %0, %0 onto U : [U,K]", "%3 = weave %0, %0 onto C : [C,K]", "onto axis R or U only"},
        {"%10 = weave %1, %1 onto R : [R,V]", "%10 = weave %4, %1 onto R : [R,V]", "another axis than C"},
        {"%6 = scores %4, %3, %5 : [R,U]", "%6 = scores %4, %4, %5 : [R,U]", "y must stand on axis U"},
        {"%6 = scores %4, %3, %5 : [R,U]", "%6 = scores %3, %3, %5 : [R,U]", "x must stand on axis C or R"},
        {"%6 = scores %4, %3, %5 : [R,U]", "%6 = scores %4, %3, %2 : [R,U]", "decays must stand on axis U"},
        {"%6 = scores %4, %3, %5 : [R,U]", "%6 = scores %4, %5, %5 : [R,U]\n  %66 = scores %2, %5, %5 : [C,U]", "x and y must share one axis"},
        {"%6 = scores %4, %3, %5 : [R,U]", "%6 = scores %4, %3, %5 place 1 : [R,U]", "a place that is not there"},
        {"%8 = scores %0, %3, %5 place 1", "%8 = scores %0, %3, %5 place 3", "a place that is not there"},
        {"%7 = solve %6 : [R,U]", "%7 = solve %3 : [R,U]", "T has axes R, U"},
        {"contract %8, %7 over U : [C,R]", "contract %8, %7 over R : [C,R]", "an operand lacks the axis"},
        {"%13 = tail %3, %5 : [U,K]", "%13 = tail %4, %5 : [R,K]", "y must stand on axis U"},
        {"%14 = rename %13 from U to R : [R,K]", "%14 = rename %13 from R to U : [U,K]", "lacks the axis"},
        {"%14 = rename %13 from U to R : [R,K]", "%14 = rename %13 from U to C : [C,K]", "differ in size"},
        {"%14 = rename %13 from U to R : [R,K]", "%14 = rename %13 from U to K : [K]", "there already"},
        {"%17 = total %5 : []", "%17 = total %2 : []", "decays must stand on axis U"},
        {"%20 = carry %4, %5 : [R,K]", "%20 = prev %4 : [R,K]", "axis C, not R or U"},
        {"%20 = carry %4, %5 : [R,K]", "%20 = read %0 : [R,K]", "not legal at this level"},
        {"next %19", "next %17", "the next state has axes K, V"},
        {"next %19", "next %19\n  next %19", "a second next state"},
        {"  next %19\n", "", "no next state"},
        {"out o = %11", "out o = %10", "the operand's axes are not the output's"},
    };
    CHECK_EDITS(chunk, edits);
}

static void broken_roles(void **state) {
    (void)state;
    static const Edit edits[] = {
        {"factor keep bf16 %4 =", "%4 =", "%4 scores: needs a role"},
        {"chain %9 =", "%9 =", "%9 contract: needs a role"},
        {"chain %9 =", "factor %9 =", "a factor value depends on the state"},
        {"chain %12 =", "factor %12 =", "a factor value depends on the state"},
        {"chain %8 =", "factor %8 =", "a factor value depends on the state"},
        {"chain %8 =", "%8 =", "needs a role"},
        {"chain next", "factor next", "a factor value depends on the state"},
        {"factor keep bf16 %7", "factor bf16 %7", "%7 contract: the chain needs it but it is not kept"},
        {"chain out o", "chain keep out o", "only factor values are kept"},
        {"chain %9 =", "chain keep %9 =", "only factor values are kept"},
        {"%0 = in k", "keep %0 = in k", "only factor values are kept"},
        {"%2 = weave", "chain %2 = weave", "a factor value depends on the state or the chain"},
        {"%10 = weave %1 onto U : [U,V]", "factor %10a = carry %1, none : [C,V]\n"
         "  %10b = neg %10a : [C,V]\n  factor %10 = weave %10b onto U : [U,V]",
         "carry: the chain needs it but it is not kept"},
    };
    CHECK_EDITS(tile, edits);
}

/* Cheap values may be given to the factor role without being kept, and kept ones stop the search. */
static void cheap_values_cross_freely(void **state) {
    (void)state;
    static const Edit good[] = {
        {"%10 = weave %1 onto U : [U,V]", "factor %10 = weave %1 onto U : [U,V]", ""},
        {"%10 = weave %1 onto U : [U,V]", "factor %10a = carry %1, none : [C,V]\n"
         "  factor keep %10 = weave %10a onto U : [U,V]", ""},
        {"%1 = in v : [C,V]", "factor %1 = in v : [C,V]", ""},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        World *w = world_open();
        parse_legal(w, edited(w, tile, &good[i]));
        world_close(w);
    }
}

static void expect_broken(const Kernel *k, const char *wanted) {
    const char *why = kernel_verify(k);
    if (!why || !strstr(why, wanted))
        fail_msg("says: %s\nwanted: %s", why ? why : "fine", wanted);
}

static void broken_in_memory(void **state) {
    (void)state;
    World *w = world_open();
    Kernel *k = parse(w, recurrence);
    k->inst.at[4].arg[0] = 4;
    expect_broken(k, "%4 exp: an operand that stands later");
    k->inst.at[4].arg[0] = 9;
    expect_broken(k, "%4 exp: an operand that stands later");
    k->inst.at[4].arg[0] = -2;
    expect_broken(k, "%4 exp: an operand that is not there");
    k->inst.at[4].arg[0] = 3;
    k->inst.at[7].arg[1] = 5;
    expect_broken(k, "%7 sub: an operand that gives no value");
    k = parse(w, recurrence);
    k->inst.at[0].index = 4;
    expect_broken(k, "%0 in: no such input");
    k = parse(w, recurrence);
    k->inst.at[10].index = -1;
    expect_broken(k, "%10 out: no such output");
    k = parse(w, recurrence);
    k->inst.at[3].op = OP_count;
    expect_broken(k, "%3 ?: unknown operation");
    k = parse(w, recurrence);
    k->in.at[1].name = k->in.at[0].name;
    expect_broken(k, "k: declared twice");
    k = parse(w, recurrence);
    k->axis.count = 3;
    expect_broken(k, "the five fixed axes are missing");
    k = parse(w, tile);
    k->inst.at[2].elem = (Elem)17;
    expect_broken(k, "unknown role or element type");
    world_close(w);
}

static void random_kernels_pass_until_shuffled(void **state) {
    (void)state;
    int caught = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        World *w = world_open();
        Rng r = {seed};
        Kernel *k = random_kernel(w, &r, seed % 2 ? LEVEL_chunk : LEVEL_recurrence, 40);
        int a = rng_below(&r, k->inst.count), b = rng_below(&r, k->inst.count);
        Inst t = k->inst.at[a];
        k->inst.at[a] = k->inst.at[b];
        k->inst.at[b] = t;
        caught += kernel_verify(k) != NULL; /* whatever it says, it must not read astray */
        world_close(w);
    }
    assert_in_range(caught, 60, 200);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_kernels_pass),
        cmocka_unit_test(broken_recurrences),
        cmocka_unit_test(broken_chunk_systems),
        cmocka_unit_test(broken_roles),
        cmocka_unit_test(cheap_values_cross_freely),
        cmocka_unit_test(broken_in_memory),
        cmocka_unit_test(random_kernels_pass_until_shuffled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
