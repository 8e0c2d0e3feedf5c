/* The command's tensors on a GPU that does nothing (cuda_stub.h): what goes there, what a backward pass
 * shares with its forward pass, what comes back, and that all of it is given back. */
#include "driver/driver.h"
#include "tests/unit/cuda_stub.h"

enum { K = 32, V = 48, H = 4, KEYS = 2, B = 2, T = 90 };

typedef struct World {
    Driver d;
    Spec spec;
    Problem p, first;
    Engine forward, backward;
} World;

static World *world_new(void) {
    World *w = calloc(1, sizeof *w);
    arena_init(&w->d.arena, NULL);
    w->d.ctx = open_stub("");
    assert_int_equal(spec_open(&w->d, GDR_SPECS_DIR "/gated_deltanet_raw.gdr", &w->spec), 0);
    Case c = {.type = GDR_BF16, .K = K, .V = V, .B = B, .T = T, .H = H, .key_heads = KEYS,
              .S0 = true, .grad = true};
    case_problem(&w->d, &w->d.arena, &w->spec, "gated_deltanet_raw", &c, 1, 0, NULL, &w->p);
    assert_non_null(w->p.k);
    w->first = w->p;
    w->first.grad = false;
    w->d.opt.opt_level = 1;
    w->forward = (Engine){.method = METHOD_chunk, .device = DEVICE_cuda, .save = GDR_SAVE_STATES};
    w->backward = (Engine){.method = METHOD_chunk, .device = DEVICE_cuda};
    if (engine_open(&w->d, &w->first, &w->forward) || engine_open(&w->d, &w->p, &w->backward))
        fail_msg("%s", gdr_last_error(w->d.ctx));
    return w;
}

static void world_free(World *w) {
    engine_close(&w->forward);
    engine_close(&w->backward);
    gdr_context_destroy(w->d.ctx);
    arena_free(&w->d.arena);
    free(w);
    assert_int_equal(stub.allocs, 0);
}

static size_t bytes_of(const Tensor *t) {
    return (size_t)tensor_count(t) * gdr_dtype_size(t->dtype);
}

static void a_backward_pass_shares_its_inputs(void **state) {
    (void)state;
    World *w = world_new();
    DeviceSet fs, bs;
    Outcome outputs = outcome_new(&w->d.arena, &w->first, false);
    Outcome gradients = outcome_new(&w->d.arena, &w->p, false);
    assert_int_equal(device_set_open(&w->d, &w->first, &w->forward, &outputs, NULL, &fs, &w->d.arena),
                     GDR_OK);
    assert_int_equal(device_set_open(&w->d, &w->p, &w->backward, &gradients, &fs, &bs, &w->d.arena),
                     GDR_OK);
    size_t in = bytes_of(&w->p.S0), out = 0, back = bytes_of(&w->p.dS) + bytes_of(&gradients.S);
    for (int i = 0; i < w->p.k->in.count; i++) {
        in += bytes_of(&w->p.in[i]);
        back += bytes_of(&gradients.out[i]);
    }
    for (int i = 0; i < w->p.k->out.count; i++) {
        out += bytes_of(&outputs.out[i]);
        back += bytes_of(&w->p.dout[i]);
    }
    assert_int_equal(fs.tensor_bytes, in + out + bytes_of(&outputs.S));
    assert_int_equal(bs.tensor_bytes, back);
    const gdr_tensor *q = NULL, *again = NULL;
    for (int i = 0; i < fs.launch.nargs; i++)
        q = strcmp(fs.arg[i].name, "q") ? q : &fs.arg[i].tensor;
    for (int i = 0; i < bs.launch.nargs; i++)
        again = strcmp(bs.arg[i].name, "q") ? again : &bs.arg[i].tensor;
    assert_ptr_equal(q->data, again->data);
    assert_memory_equal(q->data, w->p.in[kernel_find_port(w->p.k, "q", false)].data,
                        (size_t)B * T * KEYS * K * 2);
    assert_ptr_equal(fs.launch.saved, bs.launch.saved);
    assert_true(bs.launch.workspace_bytes > 0);
    device_set_close(&w->d, &bs);
    device_set_close(&w->d, &fs);
    world_free(w);
}

/* Nothing is computed, so the poison comes back. */
static void a_training_step_brings_gradients_back(void **state) {
    (void)state;
    World *w = world_new();
    Outcome o;
    stub.fields = record_frame_fields(&w->forward.kernel->rec); /* the shorter one */
    assert_int_equal(device_run_training(&w->d, &w->p, &w->forward, &w->backward, &w->d.arena, &o),
                     GDR_OK);
    static const char *const order[] = {"factor", "chain", "factor", "reverse", "chain", "grad",
                                        "sums"};
    int at = 0;
    for (int i = 0; i < stub.launches; i++)
        if (stub.launch[i].name)
            assert_non_null(strstr(stub.launch[i].name, order[at++]));
    assert_int_equal(at, 7);
    for (int i = 0; i < w->p.k->in.count; i++)
        for (size_t j = 0; j < bytes_of(&o.out[i]); j++)
            assert_int_equal(((unsigned char *)o.out[i].data)[j], 0xff);
    static const char *const call[] = {"cuMemAlloc", "cuLaunchKernel", "cuCtxSynchronize"};
    for (int i = 0; i < 3; i++) {
        stub.fail_name = call[i];
        stub.fail_call = i ? LAUNCH_FAILED : OOM;
        stub.allocs = 0;
        assert_int_equal(
            device_run_training(&w->d, &w->p, &w->forward, &w->backward, &w->d.arena, &o),
            i ? GDR_EDRIVER : GDR_ENOMEM);
        assert_int_equal(stub.allocs, 0);
    }
    stub.fail_name = NULL;
    stub.allocs = 0;
    world_free(w);
}

static void steps_are_timed_and_given_back(void **state) {
    (void)state;
    World *w = world_new();
    Timing t = {.d = &w->d,
                .arena = &w->d.arena,
                .forward_problem = w->first,
                .backward_problem = w->p,
                .forward = w->forward,
                .backward = w->backward,
                .sets = 2};
    Sample s;
    stub.fields = record_frame_fields(&w->forward.kernel->rec);
    t.forward.memory = t.backward.memory = MEMORY_pool;
    assert_int_equal(timing_open(&t), GDR_OK);
    assert_true(t.tensor_bytes > 0);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(timing_measure(&t, i & 1, i & 2, &s), GDR_OK);
        assert_true(s.count > 0 && s.least <= s.seconds && s.seconds <= s.most);
    }
    assert_int_equal(stub.pool_allocs, stub.pool_frees);
    timing_close(&t);
    world_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_backward_pass_shares_its_inputs, fresh),
        cmocka_unit_test_setup(a_training_step_brings_gradients_back, fresh),
        cmocka_unit_test_setup(steps_are_timed_and_given_back, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
