/* A gradient token by token, ahead of time: the header that `gdrc compile` writes, compiled and called, plans
 * and queues what the runtime does. The GPU only notes (cuda_stub.h). */
#include "tests/unit/header_run.h"

enum { K = 16, V = 8, PORTS = 11 };

/* Decay and erase along V: no chunk form. */
static const char spec[] = "variant s { dim K = 16, V = 8; in q[K], k[K], v[V]; in g[V] <= 0\n"
                           "param A\nstate S[K, V]\nS = S * diag(exp(A * g))\n"
                           "S = S + (k - S * v) * v'\nout o[V] = S' * q\n}\n";

/* The header's functions under names that do not depend on the spec. */
static const char wrapper[] =
    "#include \"s.h\"\n"
    "#define LABEL(what) s_sm_90a_##what\n"
    "int64_t fields(void) { return sizeof(s_bwd_frame) / sizeof(int64_t); }\n"
    "int64_t plan(s_bwd_frame *f, int64_t processors, int64_t piece) {\n"
    "    return LABEL(prepare)(f, processors, piece).bytes;\n"
    "}\n"
    "int run(s_bwd_frame *f, int64_t processors, LABEL(launch) *launch, LABEL(zero) *zero, void *user) {\n"
    "    LABEL(plan) p = LABEL(prepare)(f, processors, 0);\n"
    "    return LABEL(run)(f, &p, launch, zero, user);\n"
    "}\n";

typedef struct Header {
    void *library;
    int64_t (*fields)(void);
    int64_t (*plan)(int64_t *frame, int64_t processors, int64_t piece);
    int (*run)(int64_t *frame, int64_t processors, LaunchFn *launch, ZeroFn *zero, void *user);
} Header;

static Header functions(void *library) {
    Header h = {.library = library};
    *(void **)&h.fields = dlsym(library, "fields");
    *(void **)&h.plan = dlsym(library, "plan");
    *(void **)&h.run = dlsym(library, "run");
    return h;
}

static int fail_launch(void *user, const char *symbol, int64_t blocks, int threads, int shared,
                       const int64_t *frame) {
    note_launch(user, symbol, blocks, threads, shared, frame);
    return 7;
}

/* calls ------------------------------------------------------------------------------------------ */

typedef struct Size {
    bool packed;
    int64_t N, T, H, keys; /* q and k have `keys` heads */
    int given;             /* so many arguments: the last gradients are not wanted */
} Size;

static void check(gdr_kernel *kernel, const Header *h, const Size *s) {
    static const char *const name[PORTS] = {"q",  "k",  "v",  "g",  "A", "do",
                                            "dq", "dk", "dv", "dg", "dA"};
    const int64_t base = 0x10000000, workspace = 0x40000000;
    int64_t shape[PORTS][4], states[4] = {s->N, s->H, K, V}, ncu[1] = {s->N + 1};
    gdr_arg arg[PORTS];
    for (int i = 0; i < PORTS; i++) {
        int of = i > 5 ? i - 6 : i;
        bool key = of < 2, param = of == 4;
        int64_t heads = key ? s->keys : s->H;
        memcpy(shape[i], (int64_t[]){param ? heads : s->packed ? 1 : s->N, s->T, heads, key ? K : V},
               sizeof shape[i]);
        arg[i] = (gdr_arg){name[i], {(void *)(uintptr_t)(base * (i + 1)), GDR_CUDA,
                                     param ? GDR_F32 : GDR_BF16, param ? 1 : 4, shape[i], NULL}};
    }
    gdr_tensor dS0 = {(void *)(uintptr_t)(base * 20), GDR_CUDA, GDR_F32, 4, states, NULL};
    gdr_tensor cu = {(void *)(uintptr_t)(base * 21), GDR_CUDA, GDR_I32, 1, ncu, NULL};
    gdr_launch l = {.size = sizeof l, .args = arg, .nargs = s->given, .dS0 = &dS0,
                    .cu_seqlens = s->packed ? &cu : NULL, .stream = &stub,
                    .workspace = (void *)(uintptr_t)workspace};
    assert_int_equal(gdr_workspace_size(kernel, &l, &l.workspace_bytes), GDR_OK);
    stub.launches = 0;
    assert_int_equal(gdr_backward(kernel, &l), GDR_OK);

    const Kernel *k = kernel->rec.shell;
    int64_t frame[FIELDS_MAX] = {0};
    memcpy(frame, stub.launch[stub.launches - 1].frame, (size_t)frame_gradient(k, 0) * sizeof *frame);
    frame[FRAME_SLOTS] = frame[FRAME_HF] = -1;
    for (int o = 0; o < k->out.count; o++)
        frame[frame_out_ptr(k, o)] = 6 + o < s->given ? base * (7 + o) : 0;
    Notes notes = {0}, failed = {0};
    assert_int_equal(h->plan(frame, PROCESSORS, 0), l.workspace_bytes);
    assert_int_equal(h->plan(frame, PROCESSORS, 1), l.workspace_bytes); /* there are no pieces */
    assert_int_equal(h->run(frame, PROCESSORS, note_launch, note_zero, &notes), 0);
    same_queue(kernel, &notes);
    assert_int_equal(h->run(frame, PROCESSORS, fail_launch, note_zero, &failed), 7);
    assert_int_equal(failed.count, s->packed && s->given == PORTS ? 2 : 1);
    frame[FRAME_T] = 0;
    notes.count = 0;
    assert_int_equal(h->run(frame, PROCESSORS, note_launch, note_zero, &notes), 0);
    assert_int_equal(notes.count, 0);
}

static void the_header_queues_what_the_runtime_does(void **state) {
    (void)state;
    static const Size size[] = {{false, 2, 70, 4, 2, PORTS}, {false, 1, 1, 1, 1, PORTS},
                                  {true, 3, 131, 4, 4, PORTS}, {true, 5, 64, 6, 2, PORTS},
                                  {false, 2, 70, 4, 4, PORTS - 1}, {false, 3, 65, 4, 1, PORTS - 3}};
    gdr_context *ctx = open_stub("");
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o, .pass = GDR_PASS_BACKWARD, .dtype = GDR_BF16,
                             .target = "cuda", .opt_level = 1};
    CompileInput input = {.name = "s", .text = spec, .length = sizeof spec - 1};
    assert_int_equal(compile_input(ctx, &input, &o, &(CompileExtra){0}, &k), GDR_OK);
    assert_int_equal(k->rec.algo, ALGO_recurrent);
    stub.fields = record_frame_fields(&k->rec);
    assert_true(stub.fields <= FIELDS_MAX);
    Header h = functions(header_open(&k, 1, wrapper));
    assert_int_equal(h.fields(), stub.fields);
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        check(k, &h, &size[i]);
    dlclose(h.library);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_header_queues_what_the_runtime_does, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
