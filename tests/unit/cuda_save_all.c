/* GDR_SAVE_ALL, queued to a driver that only notes (cuda_stub.h): where the records of a forward pass go,
 * and that a backward pass begins with reverse on them. */
#include "tests/unit/cuda_backward.h"

static const int64_t SAVED = 0x4000000000;

static gdr_kernel *compiled(gdr_context *ctx, gdr_pass pass, gdr_dtype type) {
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o,
                             .pass = pass,
                             .dtype = type,
                             .opt_level = 1,
                             .target = "cuda",
                             .save = pass == GDR_PASS_FORWARD ? GDR_SAVE_ALL : GDR_SAVE_NOTHING};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_OK);
    return k;
}

static void queue(gdr_kernel *k, const gdr_launch *l) {
    stub.fields = record_frame_fields(&k->rec);
    stub.launches = 0;
    if (k->rec.pass == GDR_PASS_FORWARD ? gdr_forward(k, l) : gdr_backward(k, l))
        fail_msg("%s", gdr_last_error(k->ctx));
}

/* The kernels' names in order, and in every frame the records' place. */
static void queued(const char *const *name, int names, int records, int64_t at) {
    int n = 0;
    for (int i = 0; i < stub.launches; i++) {
        if (!stub.launch[i].name)
            continue;
        assert_true(n < names);
        assert_non_null(strstr(stub.launch[i].name, name[n++]));
        assert_int_equal(stub.launch[i].frame[records], at);
        assert_int_equal(stub.launch[i].frame[FRAME_HF], 4);
    }
    assert_int_equal(n, names);
}

static void what_was_saved_is_worked_on(void **state) {
    (void)state;
    static const char *const making[] = {"factor", "chain"};
    static const char *const using[] = {"reverse", "grad", "sums"};
    static const char *const all[] = {"factor", "reverse", "chain", "grad", "sums"};
    gdr_context *ctx = open_stub("");
    gdr_kernel *f = compiled(ctx, GDR_PASS_FORWARD, GDR_BF16);
    gdr_kernel *k = compiled(ctx, GDR_PASS_BACKWARD, GDR_BF16);
    assert_true(f->rec.module.records && f->rec.module.records == k->rec.module.records);
    assert_int_equal(f->rec.module.ws_bytes_per_slot_head, k->rec.module.ws_bytes_per_slot_head);
    Call call[] = {dense(2, 300, 4, 2), packed(3, 700, 4, 2)};
    for (int i = 0; i < 2; i++) {
        Call *c = &call[i];
        gdr_arg arg[PORTS];
        size_t bytes, wanted, without, with;
        call_init(c);
        gdr_launch l = forward_launch(c, arg);
        int64_t slots = frame_slots(c->T, c->N, c->packed, f->rec.module.chunk);
        size_t records = (size_t)(slots * 4 * f->rec.module.ws_bytes_per_slot_head);
        assert_int_equal(gdr_saved_size(f, &l, &bytes), GDR_OK);
        assert_int_equal(bytes, records);
        assert_int_equal(gdr_workspace_size(f, &l, &wanted), GDR_OK);
        assert_true(wanted >= records);
        queue(f, &l); /* nobody wants them: they are in the workspace */
        queued(making, 2, FRAME_SAVED, stub.launch[0].frame[FRAME_WS]);
        c->saved = (gdr_saved){(void *)(uintptr_t)SAVED, bytes, 0, 0};
        l.saved = c->launch.saved = &c->saved;
        assert_int_equal(gdr_workspace_size(f, &l, &wanted), GDR_OK);
        assert_int_equal(wanted, 0);
        c->launch.saved = NULL;
        assert_int_equal(gdr_workspace_size(k, &c->launch, &without), GDR_OK);
        queue(k, &c->launch);
        queued(all, 5, FRAME_WS, stub.launch[stub.launches - 1].frame[FRAME_WS]);
        c->launch.saved = &c->saved;
        queue(f, &l);
        queued(making, 2, FRAME_SAVED, SAVED);
        assert_int_equal(c->saved.chunk, f->rec.module.chunk);
        assert_true(c->saved.records == k->rec.module.records);
        queue(k, &c->launch);
        queued(using, 3, FRAME_WS, SAVED);
        assert_int_equal(gdr_workspace_size(k, &c->launch, &with), GDR_OK);
        assert_int_equal(with, without - records);
        c->saved.bytes--;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_EINPUT);
        assert_non_null(strstr(gdr_last_error(ctx), "saved: "));
        assert_int_equal(gdr_forward(f, &l), GDR_EINPUT);
    }
    gdr_kernel_destroy(f);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* f32 inputs make other records: erase rows that are corrected. */
static void other_records_are_refused(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *f = compiled(ctx, GDR_PASS_FORWARD, GDR_F32);
    gdr_kernel *k = compiled(ctx, GDR_PASS_BACKWARD, GDR_BF16);
    assert_true(f->rec.module.records != k->rec.module.records);
    Call c = dense(1, 300, 4, 4);
    call_init(&c);
    c.saved = (gdr_saved){(void *)(uintptr_t)SAVED, SIZE_MAX, k->rec.module.chunk, f->rec.module.records};
    c.launch.saved = &c.saved;
    assert_int_equal(gdr_backward(k, &c.launch), GDR_EINPUT);
    assert_non_null(strstr(gdr_last_error(ctx), "saved: all of a forward pass whose chunks hold other"));
    gdr_kernel_destroy(f);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static uint64_t records_for(gdr_context *ctx, gdr_pass pass, const char *const *upstream) {
    static const char two[] = "variant t { dim K = 64, V = 96; in q[K], r[K], k[K], v[V]; in g <= 0\n"
                              "state S[K, V]\nS = exp(g) * S\nS = S + k * (v - S' * k)'\n"
                              "out o[V] = S' * q\nout p[V] = S' * r\n}\n";
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o,
                             .pass = pass,
                             .dtype = GDR_BF16,
                             .opt_level = 1,
                             .target = "sm_90a",
                             .upstream = upstream,
                             .nupstream = upstream ? 1 : 0,
                             .save = pass == GDR_PASS_FORWARD ? GDR_SAVE_ALL : GDR_SAVE_NOTHING};
    CompileInput input = {.name = "t", .text = two, .length = sizeof two - 1};
    CompileExtra extra = {.no_load = true};
    assert_int_equal(compile_input(ctx, &input, &o, &extra, &k), GDR_OK);
    uint64_t records = k->rec.module.records;
    gdr_kernel_destroy(k);
    return records;
}

/* Which out a read belongs to is part of the number, though the places are the same. */
static void gradients_of_some_outs_have_other_records(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    uint64_t both = records_for(ctx, GDR_PASS_FORWARD, NULL);
    uint64_t first = records_for(ctx, GDR_PASS_BACKWARD, (const char *const[]){"o"});
    uint64_t second = records_for(ctx, GDR_PASS_BACKWARD, (const char *const[]){"p"});
    assert_true(both && both == records_for(ctx, GDR_PASS_BACKWARD, NULL));
    assert_true(first && second && first != both && second != both && first != second);
    gdr_context_destroy(ctx);
}

/* With little room for sums pieces are shorter: each at its own records, costates handed on. */
static void pieces_have_their_records(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    k->rec.module.records = 7;
    stub.fields = record_frame_fields(&k->rec);
    Call c = dense(1, 64 * 100, 4, 2);
    call_init(&c);
    c.saved = (gdr_saved){(void *)(uintptr_t)SAVED, 100 * 4 * RECORD, CHUNK, 7};
    c.launch.saved = &c.saved;
    size_t least, most;
    assert_int_equal(gdr_workspace_least(k, &c.launch, &least), GDR_OK);
    assert_int_equal(gdr_workspace_size(k, &c.launch, &most), GDR_OK);
    c.launch.workspace = (void *)(uintptr_t)0x100000;
    c.launch.workspace_bytes = least + (most - least) / 3;
    queue(k, &c.launch);
    int64_t end = 100, costate = 0;
    int pieces = 0;
    for (int i = 0; i < stub.launches; i++) {
        const StubLaunch *l = &stub.launch[i];
        if (!l->name)
            continue;
        int64_t first = field(k, l, GRAD_SLOT);
        assert_true(strcmp(l->name, "factor") != 0 && strcmp(l->name, "chain") != 0);
        assert_int_equal(l->frame[FRAME_WS], SAVED + first * 4 * RECORD);
        assert_int_equal(field(k, l, GRAD_STATE_IN), 0);
        assert_int_equal(field(k, l, GRAD_COSTATE_IN), costate);
        assert_int_equal(field(k, l, GRAD_COSTATE_OUT) != 0, first > 0);
        assert_int_equal(first + field(k, l, GRAD_SLOTS), end);
        if (strcmp(l->name, "sums") == 0) {
            costate = field(k, l, GRAD_COSTATE_OUT);
            end = first;
            pieces++;
        }
    }
    assert_int_equal(end, 0);
    assert_true(pieces > 1);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Scratch is as large for short pieces: it is no reason to have them. */
static void scratch_cuts_nothing(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    k->rec.module.records = 7;
    for (int i = 0; i < k->rec.module.entry.count; i++)
        if (k->rec.module.entry.at[i].kind == ENTRY_grad)
            k->rec.module.entry.at[i].scratch_bytes = 1 << 20;
    Call c = dense(1, 64 * 300, 4, 4);
    call_init(&c);
    c.saved = (gdr_saved){(void *)(uintptr_t)SAVED, 300 * 4 * RECORD, CHUNK, 7};
    c.launch.saved = &c.saved;
    queue(k, &c.launch);
    queued((const char *const[]){"reverse", "grad", "sums"}, 3, FRAME_WS, SAVED);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(what_was_saved_is_worked_on, fresh),
        cmocka_unit_test_setup(other_records_are_refused, fresh),
        cmocka_unit_test_setup(gradients_of_some_outs_have_other_records, fresh),
        cmocka_unit_test_setup(pieces_have_their_records, fresh),
        cmocka_unit_test_setup(scratch_cuts_nothing, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
