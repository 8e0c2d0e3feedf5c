/* Forward passes on a GPU, queued to a driver that only notes (cuda_stub.h): in which pieces, with which
 * states handed on, and that nothing of what kernels may touch lies outside the workspace or on top of
 * something else. The kernels are made up: only their descriptions count. */
#include "tests/unit/cuda_backward.h"

enum { AHEAD = 48 }; /* bytes made ahead, a token and head */

static const int64_t SAVED = 0x4000000000, GIVEN = 0x2000000000;

typedef struct Forward {
    gdr_kernel *k;
    Call *c;
    gdr_launch launch;
} Forward;

static Forward forward_of(gdr_kernel *k, Call *c, bool saves) {
    Forward f = {.k = k, .c = c};
    call_init(c);
    c->arg[DO].name = "o";
    f.launch = c->launch;
    f.launch.nargs = DO + 1;
    f.launch.dS = f.launch.dS0 = NULL;
    if (saves) {
        c->saved = (gdr_saved){(void *)(uintptr_t)SAVED, SIZE_MAX, 0, 0};
        f.launch.saved = &c->saved;
    }
    return f;
}

static int64_t seg(const gdr_kernel *k, const StubLaunch *l, int field) {
    return l->frame[frame_segment(k->rec.shell, field)];
}

static void check_places(const Forward *f, const StubLaunch *l, int64_t ws, int64_t bytes) {
    const Call *c = f->c;
    Check x = {.k = f->k, .c = c, .ws = ws, .ws_bytes = bytes};
    int64_t state = c->H * BORDER * (seg(f->k, l, SEGMENT_CHUNKS) ? c->N : 1);
    int64_t in = seg(f->k, l, SEGMENT_STATE_IN), out = seg(f->k, l, SEGMENT_STATE_OUT);
    add_region(&x, "records", l->frame[FRAME_WS], seg(f->k, l, SEGMENT_SLOTS) * c->H * RECORD);
    add_region(&x, "ahead", seg(f->k, l, SEGMENT_AHEAD), c->B * c->T * c->H * AHEAD);
    add_region(&x, "state in", in, state);
    if (out != in || !seg(f->k, l, SEGMENT_CHUNKS))
        add_region(&x, "state out", out, state);
    regions_are_apart(&x);
}

typedef struct Pieces {
    int count;
    bool windows, handed; /* whether states crossed borders */
} Pieces;

/* All slots, in order, by a factor and a chain each; what a piece leaves the next one takes. */
static Pieces check_pieces(const Forward *f, int64_t ws, int64_t bytes) {
    const gdr_kernel *k = f->k;
    const Call *c = f->c;
    int64_t slots = frame_slots(c->T, c->N, c->packed, CHUNK), each = slots / c->N, done = 0, state = 0;
    Pieces p = {0};
    for (int i = 0; i < stub.launches; i += 2, p.count++) {
        const StubLaunch *factor = &stub.launch[i], *chain = &stub.launch[i + 1];
        int64_t count = seg(k, factor, SEGMENT_SLOTS), chunks = seg(k, factor, SEGMENT_CHUNKS);
        assert_string_equal(factor->name, "factor");
        assert_string_equal(chain->name, "chain");
        assert_memory_equal(factor->frame, chain->frame, 8 * (size_t)stub.fields);
        assert_int_equal(factor->grid, count * c->H);
        assert_true(i == 0 || p.windows == (chunks > 0));
        p.windows = chunks > 0;
        assert_int_equal(seg(k, factor, SEGMENT_SLOT), p.windows ? 0 : done);
        if (p.windows) {
            assert_false(c->packed);
            assert_int_equal(seg(k, factor, SEGMENT_CHUNK) * c->N, done);
            assert_int_equal(count, chunks * c->N);
        }
        done += count;
        bool crossed = p.windows || c->packed || done % each != 0;
        assert_int_equal(seg(k, factor, SEGMENT_STATE_IN), state);
        state = seg(k, factor, SEGMENT_STATE_OUT);
        assert_true(done < slots || !state);
        assert_true(state || done == slots || !crossed);
        p.handed |= state != 0;
        check_places(f, factor, ws, bytes);
    }
    assert_int_equal(done, slots);
    return p;
}

static Pieces queue(Forward *f) {
    stub.launches = 0;
    if (gdr_forward(f->k, &f->launch))
        fail_msg("%s", gdr_last_error(f->k->ctx));
    bool given = f->launch.workspace;
    return check_pieces(f, given ? GIVEN : 0x100000,
                        (int64_t)(given ? f->launch.workspace_bytes : stub.pool_bytes));
}

static size_t planned(Forward *f) {
    size_t bytes;
    assert_int_equal(gdr_workspace_size(f->k, &f->launch, &bytes), GDR_OK);
    return bytes;
}

static size_t least_of(Forward *f) {
    size_t bytes;
    assert_int_equal(gdr_workspace_least(f->k, &f->launch, &bytes), GDR_OK);
    return bytes;
}

static gdr_kernel *forward_kernel(gdr_context *ctx) {
    gdr_kernel *k = made_up(ctx, GDR_PASS_FORWARD);
    k->rec.module.scan_token_bytes = AHEAD;
    return k;
}

/* Of inputs, outputs and their gradients. */
static double bytes_of(const Call *c) {
    double bytes = 2.0 * (double)(c->N * c->H) * STATE;
    bytes += (double)(c->B * c->T) * (double)(c->HK * K * 2 * 4 + c->H * (V * 2 * 4 + 2 * 2));
    return bytes + 4.0 * 2 * (double)c->H;
}

/* tests ---------------------------------------------------------------------------------------- */

static void nothing_is_cut_without_need(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = forward_kernel(ctx);
    Call list[] = {dense(1, 65536, 32, 16), dense(8, 4096, 16, 16), packed(9, 65536, 8, 8),
                   dense(2, 1, 1, 1), packed(3, 2, 2, 2)};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        Forward f = forward_of(k, &list[i], false);
        assert_int_equal(queue(&f).count, 1);
        assert_int_equal(planned(&f), stub.pool_bytes);
    }
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* A pass that saves states, with more records than memory for them. */
static void training_stays_within_the_budget(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = forward_kernel(ctx);
    static const struct {
        bool packed;
        int64_t N, T, H, HK;
        bool windows, handed;
    } size[] = {{false, 1, 65536, 32, 16, true, true},   {false, 8, 16384, 16, 16, true, true},
                {false, 64, 1024, 16, 16, false, false}, {true, 9, 65536, 32, 32, false, true},
                {true, 40, 40000, 32, 8, false, true}};
    k->rec.module.ws_bytes_per_slot_head = RECORD * 10;
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        Call c = size[i].packed ? packed(size[i].N, size[i].T, size[i].H, size[i].HK)
                                : dense(size[i].N, size[i].T, size[i].H, size[i].HK);
        Forward f = forward_of(k, &c, true);
        stub.launches = 0;
        assert_int_equal(gdr_forward(k, &f.launch), GDR_OK);
        assert_int_equal(planned(&f), stub.pool_bytes);
        assert_true((double)stub.pool_bytes < .32 * bytes_of(&c));
        assert_true((double)stub.pool_bytes > .2 * bytes_of(&c)); /* and it is used */
        const StubLaunch *l = &stub.launch[0];
        assert_true(stub.launches > 2);
        assert_int_equal(seg(k, l, SEGMENT_CHUNKS) != 0, size[i].windows);
        assert_int_equal(seg(k, l, SEGMENT_STATE_OUT) != 0, size[i].handed);
    }
    Call small = dense(1, 4096, 2, 2); /* fewer records than the GPU has room for: all at once */
    Forward f = forward_of(k, &small, true);
    assert_true((double)planned(&f) > .5 * bytes_of(&small));
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* What the forward pass gives back is enough for the backward pass: a pool needs no more than that. */
static void the_backward_pass_fits_in_its_place(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *forward = forward_kernel(ctx), *backward = made_up(ctx, GDR_PASS_BACKWARD);
    Call list[] = {dense(1, 65536, 32, 16), dense(8, 16384, 16, 16), dense(3, 20000, 32, 32),
                   dense(64, 1024, 16, 16), packed(9, 65536, 32, 32)};
    for (int records = 1; records <= 16; records *= 2)
        for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
            Call c = list[i];
            size_t bytes;
            forward->rec.module.ws_bytes_per_slot_head = RECORD * records;
            backward->rec.module.ws_bytes_per_slot_head = RECORD * records * 2;
            Forward f = forward_of(forward, &list[i], true);
            call_init(&c);
            c.saved = (gdr_saved){(void *)(uintptr_t)SAVED, SIZE_MAX, 0, 0};
            c.launch.saved = &c.saved;
            assert_int_equal(gdr_workspace_size(backward, &c.launch, &bytes), GDR_OK);
            assert_true(bytes > 0 && bytes <= planned(&f));
        }
    gdr_kernel_destroy(forward);
    gdr_kernel_destroy(backward);
    gdr_context_destroy(ctx);
}

/* Any workspace from the least on is used as it is; less is refused. */
static void the_callers_workspace_decides(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = forward_kernel(ctx);
    Call list[] = {dense(1, 6000, 3, 3), dense(3, 2000, 2, 1), packed(7, 5000, 2, 2), dense(9, 100, 2, 2),
                   packed(1, 900, 4, 2), dense(300, 70, 2, 2), dense(2, 64, 2, 2)};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        for (int saves = 0; saves < 2; saves++) {
            Forward f = forward_of(k, &list[i], saves);
            size_t least = least_of(&f), all;
            f.launch.saved = NULL;
            all = planned(&f);
            f.launch.saved = saves ? &list[i].saved : NULL;
            f.launch.workspace = (void *)(uintptr_t)GIVEN;
            f.launch.workspace_bytes = least - 1;
            stub.launches = 0;
            assert_int_equal(gdr_forward(k, &f.launch), GDR_EINPUT);
            assert_non_null(strstr(gdr_last_error(ctx), "need"));
            assert_int_equal(stub.launches, 0);
            assert_true(least <= all);
            for (size_t bytes = least; bytes < all; bytes += bytes / 7 + 256) {
                f.launch.workspace_bytes = bytes;
                assert_true(queue(&f).count > 1);
            }
            f.launch.workspace_bytes = all;
            assert_int_equal(queue(&f).count, 1);
        }
    assert_int_equal(stub.pool_allocs, 0);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Chains stay side by side: windows of sequences that would else come one behind the other. */
static void sequences_stay_side_by_side(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = forward_kernel(ctx);
    Call c = dense(4, 64 * 50, 2, 2);
    Forward f = forward_of(k, &c, false);
    f.launch.workspace = (void *)(uintptr_t)GIVEN;
    f.launch.workspace_bytes = planned(&f) * 4 / 5;
    Pieces p = queue(&f);
    assert_true(p.windows && p.handed && p.count == 2);
    f.launch.workspace_bytes = least_of(&f);
    p = queue(&f);
    assert_false(p.windows); /* a window has a chunk of every sequence at least */
    Call many = dense(300, 640, 2, 2);
    Forward g = forward_of(k, &many, false);
    g.launch.workspace = (void *)(uintptr_t)GIVEN;
    g.launch.workspace_bytes = planned(&g) * 4 / 5;
    p = queue(&g);
    assert_true(!p.windows && !p.handed && p.count == 2);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(nothing_is_cut_without_need, fresh),
        cmocka_unit_test_setup(training_stays_within_the_budget, fresh),
        cmocka_unit_test_setup(the_backward_pass_fits_in_its_place, fresh),
        cmocka_unit_test_setup(the_callers_workspace_decides, fresh),
        cmocka_unit_test_setup(sequences_stay_side_by_side, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
