/* Backward passes on a GPU, queued to a driver that only notes (cuda_stub.h): what is launched, in which
 * order, on which piece of the chunks, and that nothing of what kernels may touch lies outside the
 * workspace or on top of something else. The kernels are made up: only their descriptions count. */
#include "tests/unit/cuda_backward.h"

/* tests ---------------------------------------------------------------------------------------- */

static double bytes_of(const Call *c) {
    double bytes = 3.0 * (double)(c->N * c->H) * STATE; /* S0, dS, dS0 */
    bytes += (double)(c->B * c->T) * (double)(c->HK * K * 2 * 4 + c->H * (V * 2 * 4 + 2 * 2));
    return bytes + 4.0 * 2 * (double)c->H;
}

static Summary run(gdr_kernel *k, Call *c, bool sums) {
    int64_t ws = c->launch.workspace ? (int64_t)(uintptr_t)c->launch.workspace : 0x100000;
    stub.launches = 0;
    if (gdr_backward(k, &c->launch))
        fail_msg("%s", gdr_last_error(k->ctx));
    return check_queue(k, c, ws,
                       (int64_t)(c->launch.workspace ? c->launch.workspace_bytes : stub.pool_bytes),
                       sums);
}

static void everything_fits_at_once(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    static const struct {
        bool packed;
        int64_t N, T, H, HK;
    } size[] = {{false, 1, 1, 1, 1}, {false, 2, 65, 4, 2},  {true, 5, 130, 4, 4},
                {true, 3, 1, 2, 2},  {false, 4, 64, 33, 11}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        Call c = size[i].packed ? packed(size[i].N, size[i].T, size[i].H, size[i].HK)
                                : dense(size[i].N, size[i].T, size[i].H, size[i].HK);
        call_init(&c);
        Summary s = run(k, &c, true);
        assert_int_equal(s.forwards, 0);
        assert_int_equal(s.backwards, 1);
        assert_int_equal(s.beside, 0); /* too little to be worth it */
        size_t bytes;
        assert_int_equal(gdr_workspace_size(k, &c.launch, &bytes), GDR_OK);
        assert_int_equal(bytes, stub.pool_bytes);
    }
    assert_int_equal(stub.pool_allocs, stub.pool_frees);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Large launches stay within the budget, but for what keeps the GPU busy. */
static void workspaces_stay_within_the_budget(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    k->rec.module.ws_bytes_per_slot_head = 64 * 1600; /* as much as all tensors of a chunk */
    static const struct {
        bool packed;
        int64_t N, T, H, HK;
    } size[] = {{false, 1, 65536, 32, 32}, {false, 1, 32768, 32, 16}, {false, 8, 4096, 32, 32},
                {false, 2, 30001, 32, 32}, {true, 9, 65536, 32, 32},  {true, 40, 40000, 32, 8}};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        Call c = size[i].packed ? packed(size[i].N, size[i].T, size[i].H, size[i].HK)
                                : dense(size[i].N, size[i].T, size[i].H, size[i].HK);
        call_init(&c);
        size_t bytes, least;
        assert_int_equal(gdr_workspace_size(k, &c.launch, &bytes), GDR_OK);
        assert_int_equal(gdr_workspace_least(k, &c.launch, &least), GDR_OK);
        assert_true((double)bytes <= 0.30 * bytes_of(&c));
        assert_true((double)bytes >= 0.15 * bytes_of(&c)); /* and it is used */
        assert_true(least <= bytes);
        assert_int_equal(gdr_backward(k, &c.launch), GDR_OK);
        assert_int_equal(stub.pool_bytes, bytes);
        stub.launches = 0;
    }
    Call small = dense(1, 4096, 2, 2); /* fewer records than the GPU has room for: all at once */
    call_init(&small);
    size_t bytes;
    assert_int_equal(gdr_workspace_size(k, &small.launch, &bytes), GDR_OK);
    assert_true((double)bytes > 0.30 * bytes_of(&small));
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Any workspace from the least on is used as it is; less is refused. */
static void the_callers_workspace_decides(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    Call list[] = {dense(1, 6000, 3, 3), dense(3, 2000, 2, 1), packed(7, 5000, 2, 2),
                   dense(9, 100, 2, 2), packed(1, 900, 4, 2)};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        Call *c = &list[i];
        size_t least, most = 0;
        call_init(c);
        assert_int_equal(gdr_workspace_least(k, &c->launch, &least), GDR_OK);
        c->launch.workspace = (void *)(uintptr_t)0x40000;
        c->launch.workspace_bytes = least - 1;
        stub.launches = 0;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_EINPUT);
        assert_non_null(strstr(gdr_last_error(ctx), "need"));
        assert_int_equal(stub.launches, 0);
        int pieces = INT32_MAX;
        for (size_t bytes = least; pieces > 1; bytes += bytes / 7 + 256) {
            c->launch.workspace_bytes = most = bytes;
            Summary s = run(k, c, true);
            assert_true(s.backwards <= pieces || !c->packed);
            pieces = s.backwards;
        }
        assert_true(most < (size_t)1 << 30);
        c->launch.workspace = (void *)(uintptr_t)0x40010;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_EINPUT);
        assert_non_null(strstr(gdr_last_error(ctx), "not aligned to 256 bytes"));
    }
    assert_int_equal(stub.pool_allocs, 0);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Pieces of whole sequences need no pass forwards, nor do those that begin at saved states. */
static void states_at_borders_are_made_only_where_needed(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD), *forward = made_up(ctx, GDR_PASS_FORWARD);
    stub.fields = record_frame_fields(&k->rec);
    Call whole = dense(8, 640, 4, 4), long_one = dense(1, 64 * 100, 4, 4),
         two = dense(2, 64 * 90, 4, 4), many = packed(5, 64 * 100, 4, 4);
    call_init(&whole);
    whole.launch.workspace = (void *)(uintptr_t)0x40000;
    whole.launch.workspace_bytes = 36 * 4 * (RECORD + SCRATCH) + 4096; /* of 80 slots */
    Summary s = run(k, &whole, true);
    assert_true(s.forwards == 0 && s.backwards == 3 && s.longest == 30);
    Call *cut[] = {&long_one, &two, &many};
    for (int i = 0; i < 3; i++) {
        Call *c = cut[i];
        size_t least, saved, again;
        call_init(c);
        c->launch.workspace = (void *)(uintptr_t)0x40000;
        c->launch.workspace_bytes = 40 * 4 * (RECORD + SCRATCH) + 600000;
        s = run(k, c, true);
        assert_true(s.forwards >= 1 && s.backwards > s.forwards);
        c->launch.saved = &c->saved;
        assert_int_equal(gdr_saved_size(k, &c->launch, &saved), GDR_OK);
        int64_t slots = frame_slots(c->T, c->N, c->packed, CHUNK);
        assert_int_equal(saved, (slots - 1) / save_every(K, V, CHUNK) * 4 * BORDER);
        assert_int_equal(gdr_workspace_least(k, &c->launch, &least), GDR_OK);
        assert_true(least <= c->launch.workspace_bytes);
        c->saved = (gdr_saved){(void *)(uintptr_t)0x4000000000, saved, CHUNK, 0};
        s = run(k, c, true);
        assert_true(s.forwards == 0 && s.backwards > 1);
        c->saved.bytes--;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_EINPUT);
        assert_non_null(strstr(gdr_last_error(ctx), "saved: "));
        c->saved = (gdr_saved){(void *)(uintptr_t)0x4000000000, saved, CHUNK / 2, 0};
        assert_int_equal(gdr_backward(k, &c->launch), GDR_EINPUT);
        assert_non_null(strstr(gdr_last_error(ctx), "chunks of 32 tokens"));
        c->saved.chunk = 0; /* the forward pass saved nothing */
        c->launch.saved = &c->saved;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_OK);
        stub.launches = 0;
        gdr_launch l = c->launch;
        gdr_arg arg[PORTS];
        memcpy(arg, c->arg, sizeof arg);
        arg[DO].name = "o";
        l.args = arg;
        l.nargs = DO + 1;
        l.dS = l.dS0 = NULL;
        assert_int_equal(gdr_saved_size(forward, &l, &again), GDR_OK);
        assert_int_equal(again, saved);
        c->saved = (gdr_saved){(void *)(uintptr_t)0x4000000000, saved, 0, 0};
        stub.fields = record_frame_fields(&forward->rec);
        l.workspace = NULL;
        assert_int_equal(gdr_forward(forward, &l), GDR_OK);
        assert_int_equal(c->saved.chunk, CHUNK);
        assert_int_equal(stub.launch[1].frame[FRAME_SAVED], 0x4000000000);
        stub.fields = record_frame_fields(&k->rec);
    }
    gdr_kernel_destroy(forward);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Saved states let the chain walk over intervals side by side, where the GPU has room for it. */
static void chains_start_at_saved_states(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    struct {
        Call call;
        bool intervals;
    } list[] = {{dense(1, 64 * 100, 4, 4), true},     {dense(3, 64 * 33, 4, 4), true},
                {dense(2, 64 * 47 + 5, 4, 4), true},  {packed(5, 64 * 100, 4, 4), true},
                {dense(2, 64 * 40, 32, 32), true},    {dense(1, 64 * 100, 512, 512), false},
                {packed(40, 64 * 60, 2, 2), false},   {dense(40, 64 * 12, 2, 2), false},
                {dense(9, 64 * 3, 4, 4), false}};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        Call *c = &list[i].call;
        size_t saved;
        call_init(c);
        c->launch.saved = &c->saved;
        assert_int_equal(gdr_saved_size(k, &c->launch, &saved), GDR_OK);
        c->saved = (gdr_saved){(void *)(uintptr_t)0x4000000000, saved, CHUNK, 0};
        Summary s = run(k, c, true);
        assert_int_equal(s.forwards, 0);
        assert_int_equal(s.intervals, list[i].intervals ? s.backwards : 0);
    }
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void gradients_that_nobody_shares_need_no_sum(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    const Kernel *shell = k->rec.shell;
    Call c = dense(2, 200, 4, 4);
    call_init(&c);
    leave_out(&c, DA);
    run(k, &c, false);
    int dq = kernel_find_port(shell, "dq", true);
    assert_int_equal(stub.launch[0].frame[frame_out_ptr(shell, dq)], TENSOR * (DQ + 1));
    c = dense(2, 200, 4, 2);
    call_init(&c);
    leave_out(&c, DO);
    run(k, &c, true);
    const StubLaunch *l = &stub.launch[stub.launches - 1];
    assert_int_equal(l->frame[frame_sum(shell, dq)], TENSOR * (DQ + 1));
    assert_int_equal(l->frame[frame_sum_heads(shell, dq)], 2);
    assert_int_equal(l->frame[frame_sum(shell, kernel_find_port(shell, "dv", true))], 0);
    assert_null(stub.launch[0].name); /* the zeros in place of do */
    assert_int_equal(stub.launch[0].bytes, V * 2);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

/* Heads that share q and k are taken together where that leaves work for all blocks, whatever the workspace:
 * all of them, then their sums go to the tensors; or as many as divide them and 16 bits bear. */
static void heads_that_share_are_taken_together(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    const Kernel *shell = k->rec.shell;
    static const struct {
        bool packed;
        int64_t N, T, H, HK, group;
        bool sums;
    } some[] = {
        {false, 1, 32768, 32, 16, 2, false}, {false, 1, 32768, 32, 32, 1, false}, {false, 1, 4096, 32, 16, 1, true},
        {true, 3, 32768, 32, 8, 4, false},   {false, 1, 32768, 32, 2, 4, true},   {false, 4, 16384, 6, 1, 3, true},
        {false, 1, 6336, 33, 11, 3, false},  {false, 1, 6080, 33, 11, 1, true},
    };
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        for (int least = 0; least < 2; least++) {
            Call c = some[i].packed ? packed(some[i].N, some[i].T, some[i].H, some[i].HK)
                                    : dense(some[i].N, some[i].T, some[i].H, some[i].HK);
            call_init(&c);
            leave_out(&c, DA); /* which is summed in any case */
            if (least) {
                c.launch.workspace = (void *)(uintptr_t)0x40000;
                assert_int_equal(gdr_workspace_least(k, &c.launch, &c.launch.workspace_bytes), GDR_OK);
            }
            run(k, &c, some[i].sums);
            const StubLaunch *l = &stub.launch[stub.launches - 1];
            assert_int_equal(field(k, l, GRAD_GROUP), some[i].group);
            int dq = kernel_find_port(shell, "dq", true);
            assert_int_equal(l->frame[frame_out_ptr(shell, dq)] == TENSOR * (DQ + 1), !some[i].sums);
        }
    Call c = dense(1, 32768, 32, 16); /* nothing shared is wanted */
    call_init(&c);
    leave_out(&c, DA);
    leave_out(&c, DKEY);
    leave_out(&c, DQ);
    run(k, &c, false);
    assert_int_equal(field(k, &stub.launch[stub.launches - 1], GRAD_GROUP), 1);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void no_tokens_launch_nothing(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    Call list[] = {dense(2, 0, 4, 2), packed(3, 0, 4, 4), packed(0, 64, 2, 2), dense(0, 9, 2, 2)};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        Call *c = &list[i];
        call_init(c);
        stub.launches = 0;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_OK);
        assert_int_equal(stub.launches, c->N ? 2 : 1);
        assert_int_equal(stub.launch[0].dst, TENSOR * (DA + 1));
        assert_int_equal(stub.launch[0].bytes, c->H * 4);
        if (!c->N)
            continue;
        assert_int_equal(stub.launch[1].src, (uintptr_t)c->dS.data);
        assert_int_equal(stub.launch[1].dst, (uintptr_t)c->dS0.data);
        assert_int_equal(stub.launch[1].bytes, c->N * c->H * STATE);
        c->launch.dS = NULL;
        stub.launches = 0;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_OK);
        assert_int_equal(stub.launch[1].src, 0);
        assert_int_equal(stub.launch[1].dst, (uintptr_t)c->dS0.data);
        c->launch.dS = &c->dS0; /* in place */
        stub.launches = 0;
        assert_int_equal(gdr_backward(k, &c->launch), GDR_OK);
        assert_int_equal(stub.launches, 1);
    }
    assert_int_equal(stub.pool_allocs, 0);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void failures_lose_nothing(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    Call c = packed(2, 700, 4, 2);
    call_init(&c);
    leave_out(&c, DO);
    static const char *const call[] = {"cuLaunchKernel", "cuMemsetD8Async", "cuEventRecord",
                                       "cuStreamWaitEvent", "cuMemAllocFromPoolAsync"};
    for (int i = 0; i < 5; i++) {
        stub.fail_name = call[i];
        stub.fail_call = i < 4 ? LAUNCH_FAILED : OOM;
        stub.launches = 0;
        assert_int_equal(gdr_backward(k, &c.launch), i < 4 ? GDR_EDRIVER : GDR_ENOMEM);
        assert_non_null(strstr(gdr_last_error(ctx), "stub failure"));
    }
    assert_int_equal(stub.pool_frees, stub.pool_allocs - 1);
    stub.fail_name = NULL;
    Call large = dense(INT64_C(1) << 20, 1, INT64_C(1) << 10, INT64_C(1) << 10);
    call_init(&large);
    assert_int_equal(gdr_backward(k, &large.launch), GDR_ELIMIT);
    large = dense(1, INT64_C(1) << 50, 1, 1);
    call_init(&large);
    leave_out(&large, DA); /* whose parts alone would need 2^44 floats */
    size_t bytes;
    assert_int_equal(gdr_workspace_least(k, &large.launch, &bytes), GDR_OK);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

static void streams_beside_go_from_launch_to_launch(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
    Call c = dense(2, 200, 4, 2);
    call_init(&c);
    assert_int_equal(run(k, &c, true).beside, 1);
    assert_int_equal(run(k, &c, true).beside, 1);
    assert_int_equal(stub.streams, 1);
    assert_int_equal(stub.events, 1);
    void *mine = stub.launch[0].stream; /* of whoever launches */
    Side *first = side_take(ctx, mine), *second = side_take(ctx, mine);
    assert_true(first && second && first != second); /* by two threads */
    assert_int_equal(stub.streams, 2);
    side_give(ctx, second);
    assert_ptr_equal(side_take(ctx, mine), second);
    side_give(ctx, first);
    side_give(ctx, second);
    int captured = lane_of(side_stream(first)), free_one = lane_of(side_stream(second));
    stub.capture[captured] = 7; /* of a graph that is not ready yet */
    assert_ptr_equal(side_take(ctx, mine), second);
    stub.capture[free_one] = 8;
    Side *third = side_take(ctx, mine);
    assert_true(third && third != first && third != second);
    side_give(ctx, third);
    side_give(ctx, second);
    stub.capture[lane_of(mine)] = 7;
    stub.capture[lane_of(side_stream(third))] = 9;
    assert_ptr_equal(side_take(ctx, mine), first);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
    assert_int_equal(stub.streams, 0);
    assert_int_equal(stub.events, 0);
}

/* Then all goes on the caller's, and is as good. */
static void no_stream_beside_is_no_failure(void **state) {
    (void)state;
    static const char *const call[] = {"cuStreamGetCaptureInfo", "cuStreamCreateWithPriority",
                                       "cuEventCreate"};
    for (int i = 0; i < 3; i++) {
        fresh(NULL);
        gdr_context *ctx = open_stub("");
        gdr_kernel *k = made_up(ctx, GDR_PASS_BACKWARD);
        Call c = dense(2, 200, 4, 2);
        call_init(&c);
        stub.fail_name = call[i];
        stub.fail_call = LAUNCH_FAILED;
        assert_int_equal(gdr_backward(k, &c.launch), GDR_OK);
        int kernels = 0;
        for (int j = 0; j < stub.launches; j++) {
            assert_ptr_equal(stub.launch[j].stream, &stub);
            kernels += stub.launch[j].name != NULL;
        }
        assert_int_equal(kernels, 5);
        gdr_kernel_destroy(k);
        gdr_context_destroy(ctx);
        assert_int_equal(stub.streams, 0);
        assert_int_equal(stub.events, 0);
    }
}

/* The compiler's own kernels of the spec, as the others were. */
static void compiled_kernels_are_queued(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k, *forward;
    gdr_compile_options o = {.size = sizeof o,
                             .pass = GDR_PASS_BACKWARD,
                             .dtype = GDR_BF16,
                             .opt_level = 1,
                             .target = "cuda"};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_OK);
    stub.fields = record_frame_fields(&k->rec);
    Call c = packed(3, 700, 4, 2);
    call_init(&c);
    assert_int_equal(gdr_backward(k, &c.launch), GDR_OK);
    static const char *const order[] = {"factor", "reverse", "chain", "grad", "sums"};
    int at = 0;
    for (int i = 0; i < stub.launches; i++) {
        if (!stub.launch[i].name)
            continue;
        assert_true(at < 5);
        assert_non_null(strstr(stub.launch[i].name, order[at++]));
        assert_true(stub.launch[i].grid > 0 && stub.launch[i].block >= 32);
    }
    assert_int_equal(at, 5);
    gdr_kernel_destroy(k);
    o.pass = GDR_PASS_FORWARD;
    o.save = GDR_SAVE_STATES;
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &forward), GDR_OK);
    assert_non_null(strstr(gdr_kernel_manifest(forward), "\"pass\": \"forward\""));
    assert_int_equal(record_save_every(&forward->rec), save_every(K, V, forward->rec.module.chunk));
    gdr_kernel_destroy(forward);
    gdr_context_destroy(ctx);
}

/* Token by token: a block a sequence and head, its scratch its own; then the sums. */
static void recurrences_are_one_kernel(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o,
                             .pass = GDR_PASS_BACKWARD,
                             .algo = GDR_ALGO_RECURRENT,
                             .dtype = GDR_BF16,
                             .opt_level = 1,
                             .target = "cuda"};
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &o, &k), GDR_OK);
    stub.fields = record_frame_fields(&k->rec);
    stub.launches = 0;
    Call c = packed(3, 700, 4, 2);
    call_init(&c);
    assert_int_equal(gdr_backward(k, &c.launch), GDR_OK);
    static const char *const order[] = {"recurrent_grad", "sums"};
    const CgEntry *e = &k->rec.module.entry.at[0];
    int at = 0, field = frame_gradient(k->rec.shell, GRAD_SCRATCH);
    for (int i = 0; i < stub.launches; i++) {
        const StubLaunch *l = &stub.launch[i];
        if (!l->name)
            continue;
        assert_true(at < 2);
        assert_non_null(strstr(l->name, order[at++]));
        int64_t ws = l->frame[FRAME_WS], scratch = l->frame[field];
        assert_int_equal(l->frame[FRAME_SLOTS], frame_slots(700, 3, true, k->rec.module.chunk));
        assert_int_equal(l->frame[frame_gradient(k->rec.shell, GRAD_SLOTS)], l->frame[FRAME_SLOTS]);
        int64_t starts = l->frame[FRAME_SLOTS] * 4 * k->rec.module.ws_bytes_per_slot_head;
        assert_true(scratch >= ws + starts);
        assert_true(scratch + 12 * e->scratch_bytes <= ws + (int64_t)stub.pool_bytes);
        assert_true(at > 1 || l->grid == 12);
    }
    assert_int_equal(at, 2);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(everything_fits_at_once, fresh),
        cmocka_unit_test_setup(workspaces_stay_within_the_budget, fresh),
        cmocka_unit_test_setup(the_callers_workspace_decides, fresh),
        cmocka_unit_test_setup(states_at_borders_are_made_only_where_needed, fresh),
        cmocka_unit_test_setup(chains_start_at_saved_states, fresh),
        cmocka_unit_test_setup(gradients_that_nobody_shares_need_no_sum, fresh),
        cmocka_unit_test_setup(heads_that_share_are_taken_together, fresh),
        cmocka_unit_test_setup(no_tokens_launch_nothing, fresh),
        cmocka_unit_test_setup(failures_lose_nothing, fresh),
        cmocka_unit_test_setup(streams_beside_go_from_launch_to_launch, fresh),
        cmocka_unit_test_setup(no_stream_beside_is_no_failure, fresh),
        cmocka_unit_test_setup(compiled_kernels_are_queued, fresh),
        cmocka_unit_test_setup(recurrences_are_one_kernel, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
