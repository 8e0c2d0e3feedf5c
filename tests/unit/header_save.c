/* Training ahead of time: what the header of a forward kernel saves and how that of a backward kernel uses it
 * are what the runtime does, launch by launch and field by field. The GPU only notes (cuda_stub.h). */
#include "tests/unit/header_run.h"

#include "tests/unit/cuda_backward.h"

/* The header's functions under names that do not depend on the spec. */
static const char wrapper[] =
    "#include \"s.h\"\n"
    "#define F(what) f_s_factor_sm_90a_##what\n"
    "#define B(what) b_s_sm_90a_##what\n"
    "int64_t forward_prepare(s_frame *f, int64_t piece) { return F(prepare)(f, piece); }\n"
    "int forward_segment(s_frame *f, int64_t piece, int64_t i) { return F(segment)(f, piece, i); }\n"
    "int64_t factor_blocks(const s_frame *f) { return F(blocks)(f); }\n"
    "int64_t plan(s_bwd_frame *f, int64_t processors, int64_t piece, const s_saved *s, const char **why) {\n"
    "    B(plan) p = s ? B(prepare_saved)(f, processors, piece, s) : B(prepare)(f, processors, piece);\n"
    "    *why = p.refused;\n"
    "    return p.bytes;\n"
    "}\n"
    "int run(s_bwd_frame *f, int64_t processors, int64_t piece, const s_saved *s, B(launch) *launch,\n"
    "        B(zero) *zero, B(side) *side, void *user) {\n"
    "    B(plan) p = B(prepare_saved)(f, processors, piece, s);\n"
    "    return side ? B(run_beside)(f, &p, launch, zero, side, user) : B(run)(f, &p, launch, zero, user);\n"
    "}\n"
    "#ifdef SAVES\n"
    "s_saved forward_saved(const s_frame *f) { return F(saved)(f); }\n"
    "#endif\n";

typedef struct Saved {
    int64_t data, bytes, chunk;
    uint64_t records;
} Saved;
typedef int SideFn(void *user, int to);

typedef struct Header {
    void *library;
    Saved (*forward_saved)(const int64_t *f);
    int64_t (*forward_prepare)(int64_t *f, int64_t piece);
    int (*forward_segment)(int64_t *f, int64_t piece, int64_t i);
    int64_t (*factor_blocks)(const int64_t *f);
    int64_t (*plan)(int64_t *f, int64_t processors, int64_t piece, const Saved *s, const char **why);
    int (*run)(int64_t *f, int64_t processors, int64_t piece, const Saved *s, LaunchFn *launch, ZeroFn *zero,
               SideFn *side, void *user);
} Header;

static Header functions(gdr_kernel *const *k, bool saves) {
    char text[4096];
    snprintf(text, sizeof text, "%s%s", saves ? "#define SAVES\n" : "", wrapper);
    Header h = {.library = header_open(k, 2, text)};
    *(void **)&h.forward_saved = dlsym(h.library, "forward_saved");
    *(void **)&h.forward_prepare = dlsym(h.library, "forward_prepare");
    *(void **)&h.forward_segment = dlsym(h.library, "forward_segment");
    *(void **)&h.factor_blocks = dlsym(h.library, "factor_blocks");
    *(void **)&h.plan = dlsym(h.library, "plan");
    *(void **)&h.run = dlsym(h.library, "run");
    return h;
}

static int note_side(void *user, int to) {
    Notes *n = user;
    for (int i = 0; i < STREAMS_MAX && to; i++) {
        int *first = &n->clock[0].done[i], *second = &n->clock[1].done[i];
        *(to == 1 ? second : first) = *first > *second ? *first : *second;
    }
    n->lane = to == 1;
    return 0;
}

/* With values made ahead of the chunks, and gradients that wait for those of later tokens: one piece. */
static const char ahead[] = "variant s { dim K = 64, V = 96; in q[K], k[K], v[V]; in g <= 0\n"
                            "param A\nstate S[K, V]\nS = exp(A * g) * S\n"
                            "S = S + prev(k) * v'\nout o[V] = S' * (q * cumsum(g))\n}\n";

static gdr_kernel *compiled(gdr_context *ctx, const char *text, gdr_pass pass, gdr_dtype type, gdr_save save) {
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o, .pass = pass, .dtype = type, .opt_level = 1,
                             .target = "cuda", .save = save};
    CompileInput input = {.name = "s", .text = text, .length = strlen(text)};
    CompileExtra extra = {.prefix = pass == GDR_PASS_FORWARD ? "f_" : "b_"};
    assert_int_equal(compile_input(ctx, &input, &o, &extra, &k), GDR_OK);
    assert_true(record_frame_fields(&k->rec) <= FIELDS_MAX);
    return k;
}

/* forward -------------------------------------------------------------------------------------- */

static const int64_t WORKSPACE = 0x8000000000, SAVED = 0x4000000000;

static int made_ahead(const gdr_kernel *k) {
    return record_entries(&k->rec, ENTRY_scan) + record_entries(&k->rec, ENTRY_carry);
}

/* What the caller of the header's functions has set. What is made ahead gets the frame before there is a
 * piece in it. */
static void begin(const gdr_kernel *k, int64_t *frame) {
    memcpy(frame, stub.launch[stub.launches - 1].frame, FIELDS_MAX * sizeof *frame);
    for (int f = k->rec.pass == GDR_PASS_FORWARD ? frame_segment(k->rec.shell, 0)
                                                 : frame_gradient(k->rec.shell, 0);
         f < record_frame_fields(&k->rec); f++)
        frame[f] = made_ahead(k) ? 0 : -1;
    frame[FRAME_WS] = WORKSPACE;
    frame[FRAME_SLOTS] = frame[FRAME_HF] = -1;
}

/* All chunks at a time: the runtime's frame and grid of the factor kernel. With fewer the header has ranges
 * where the runtime may have windows; that these save the same is the kernels' property. */
static void check_forward(gdr_kernel *k, const Header *h, Call *c, Saved *saved) {
    gdr_arg arg[PORTS];
    gdr_launch l = forward_launch(c, arg);
    int64_t frame[FIELDS_MAX] = {0};
    size_t bytes;
    l.workspace = (void *)(uintptr_t)WORKSPACE;
    l.workspace_bytes = (size_t)1 << 40;
    assert_int_equal(gdr_saved_size(k, &l, &bytes), GDR_OK);
    c->saved = (gdr_saved){(void *)(uintptr_t)SAVED, bytes, 0, 0};
    l.saved = k->rec.save ? &c->saved : NULL;
    stub.fields = record_frame_fields(&k->rec);
    stub.launches = 0;
    assert_int_equal(gdr_forward(k, &l), GDR_OK);
    int first = made_ahead(k), count = first + 2;
    assert_int_equal(stub.launches, count);
    begin(k, frame);
    *saved = (Saved){0};
    if (k->rec.save) {
        *saved = h->forward_saved(frame);
        assert_int_equal(saved->bytes, bytes);
        assert_int_equal(saved->chunk, c->saved.chunk);
        assert_true(saved->records == c->saved.records);
        saved->data = SAVED;
    }
    int64_t need = h->forward_prepare(frame, 0);
    assert_true(need >= 0);
    l.workspace_bytes = ((size_t)need + 255) / 256 * 256;
    stub.launches = 0;
    assert_int_equal(gdr_forward(k, &l), GDR_OK);
    assert_int_equal(stub.launches, count); /* no less: then there are pieces */
    if (need && (l.workspace_bytes -= 256, gdr_forward(k, &l) == GDR_OK))
        assert_true(stub.launches > 2 * count);
    stub.launches = count;
    assert_true(h->forward_segment(frame, 0, 0) && !h->forward_segment(frame, 0, 1));
    assert_true(h->forward_segment(frame, 0, 0));
    assert_int_equal(h->factor_blocks(frame), stub.launch[first].grid);
    for (int i = first; i < stub.launches; i++)
        assert_memory_equal(frame, stub.launch[i].frame, (size_t)stub.fields * sizeof *frame);
    if (!k->rec.save)
        return;
    frame[FRAME_SAVED] = SAVED + 16;
    assert_int_equal(h->forward_prepare(frame, 0), -1);
    frame[FRAME_SAVED] = SAVED;
    frame[FRAME_PAST0] = 256;
    assert_int_equal(h->forward_prepare(frame, 0), -1);
    frame[FRAME_SAVED] = frame[FRAME_PAST0] = 0;
    assert_int_equal(h->forward_prepare(frame, 0) < 0, k->rec.save == GDR_SAVE_ALL);
}

/* backward ------------------------------------------------------------------------------------- */

/* Slots of a whole piece: those of the one that begins at slot 0. */
static int64_t piece_of(const gdr_kernel *k) {
    int64_t piece = 0;
    for (int i = 0; i < stub.launches; i++)
        if (stub.launch[i].name && field(k, &stub.launch[i], GRAD_SLOT) == 0)
            piece = field(k, &stub.launch[i], GRAD_SLOTS);
    return piece;
}

typedef struct Seen {
    int beside, intervals, borders, forwards;
} Seen;

static void look(const gdr_kernel *k, Seen *seen) {
    for (int i = 0; i < stub.launches; i++) {
        const StubLaunch *l = &stub.launch[i];
        if (!l->name)
            continue;
        seen->beside += l->stream != &stub;
        seen->intervals += field(k, l, GRAD_SAVE_EVERY) != 0;
        seen->borders += field(k, l, GRAD_STATE_IN) != 0 || field(k, l, GRAD_COSTATE_IN) != 0;
        seen->forwards += field(k, l, GRAD_STATE_OUT) != 0;
    }
}

static void check_backward(gdr_kernel *k, const Header *h, Call *c, const Saved *saved, size_t workspace,
                           Seen *seen) {
    static Notes notes, single;
    int64_t frame[FIELDS_MAX] = {0};
    const Kernel *shell = k->rec.shell;
    const char *why;
    c->launch.saved = saved->chunk ? &c->saved : NULL;
    c->launch.workspace = (void *)(uintptr_t)WORKSPACE;
    c->launch.workspace_bytes = workspace;
    stub.fields = record_frame_fields(&k->rec);
    stub.launches = 0;
    if (gdr_backward(k, &c->launch))
        fail_msg("%s", gdr_last_error(k->ctx));
    begin(k, frame);
    for (int o = 0; o < shell->out.count; o++)
        frame[frame_out_ptr(shell, o)] = (int64_t)(uintptr_t)c->arg[DO + 1 + o].tensor.data;
    frame[FRAME_SAVED] = -1;
    int64_t piece = piece_of(k), given[FIELDS_MAX];
    const Saved *use = saved->chunk ? saved : NULL;
    memcpy(given, frame, sizeof given);
    assert_true(h->plan(frame, PROCESSORS, piece, use, &why) <= (int64_t)workspace);
    assert_null(why);
    notes = single = (Notes){0};
    assert_int_equal(h->run(frame, PROCESSORS, piece, use, note_launch, note_zero, note_side, &notes), 0);
    same_queue(k, &notes);
    assert_int_equal(notes.lane, 0);
    look(k, seen);
    assert_int_equal(h->run(given, PROCESSORS, piece, use, note_launch, note_zero, NULL, &single), 0);
    assert_int_equal(single.count, notes.count);
    for (int i = 0; i < notes.count; i++) {
        assert_true(!notes.at[i].name || !strcmp(notes.at[i].name, single.at[i].name));
        assert_memory_equal(notes.at[i].frame, single.at[i].frame, sizeof single.at[i].frame);
    }
}

/* Every amount of memory from the least to all that is of use. */
static void check_sizes(gdr_kernel *k, const Header *h, Call *c, const Saved *saved, Seen *seen) {
    enum { STEPS = 4 };
    size_t least, all;
    c->launch.saved = saved->chunk ? &c->saved : NULL;
    c->launch.workspace = NULL;
    assert_int_equal(gdr_workspace_least(k, &c->launch, &least), GDR_OK);
    int64_t slots = frame_slots(c->T, c->N, c->packed, k->rec.module.chunk);
    all = least + (size_t)(slots * c->H * k->rec.module.ws_bytes_per_slot_head);
    for (size_t i = 0; i <= STEPS; i++)
        check_backward(k, h, c, saved, least + (all - least) * i / STEPS, seen);
}

static void check_choice(const char *text, gdr_save save, Seen *seen) {
    gdr_context *ctx = open_stub("");
    gdr_kernel *k[2] = {compiled(ctx, text, GDR_PASS_FORWARD, GDR_BF16, save),
                        compiled(ctx, text, GDR_PASS_BACKWARD, GDR_BF16, GDR_SAVE_NOTHING)};
    assert_int_equal(made_ahead(k[0]) > 0, text == ahead);
    assert_int_equal(record_entries(&k[1]->rec, ENTRY_late) > 0, text == ahead);
    Header h = functions(k, save != GDR_SAVE_NOTHING);
    Call call[] = {dense(2, 300, 4, 2),  dense(1, 64 * 30 + 5, 4, 4), packed(3, 1500, 4, 2),
                   dense(5, 64, 2, 2),   dense(3, 64 * 18, 2, 1),     dense(1, 1, 1, 1),
                   dense(4, 64 * 16, 3, 3), dense(2, 64 * 50, 40, 20),  dense(1, 64 * 40, 90, 90),
                   packed(2, 64 * 70, 16, 16), dense(3, 64 * 37, 70, 10), dense(7, 64 * 33, 10, 10)};
    for (size_t i = 0; i < sizeof call / sizeof *call; i++) {
        Saved saved;
        call_init(&call[i]);
        check_forward(k[0], &h, &call[i], &saved);
        check_sizes(k[1], &h, &call[i], &saved, seen);
    }
    dlclose(h.library);
    gdr_kernel_destroy(k[0]);
    gdr_kernel_destroy(k[1]);
    gdr_context_destroy(ctx);
}

static void where_nothing_is_saved(void **state) {
    (void)state;
    Seen seen = {0};
    check_choice(spec, GDR_SAVE_NOTHING, &seen);
    assert_true(seen.forwards && seen.beside && seen.borders && !seen.intervals);
}

static void where_states_are_saved(void **state) {
    (void)state;
    Seen seen = {0};
    check_choice(spec, GDR_SAVE_STATES, &seen);
    assert_true(seen.beside && seen.borders && seen.intervals);
}

static void where_all_is_saved(void **state) {
    (void)state;
    Seen seen = {0};
    check_choice(spec, GDR_SAVE_ALL, &seen);
    assert_true(!seen.beside && seen.borders && !seen.intervals && !seen.forwards);
}

static void what_is_made_ahead(void **state) {
    (void)state;
    for (gdr_save save = GDR_SAVE_NOTHING; save <= GDR_SAVE_ALL; save++) {
        Seen seen = {0};
        check_choice(ahead, save, &seen);
        assert_true(!seen.borders && !seen.forwards);
    }
}

/* What the runtime refuses is refused: nothing is queued. */
static void refused(const Header *h, const int64_t *given, Saved s, const char *text) {
    static Notes notes;
    int64_t frame[FIELDS_MAX];
    const char *why;
    notes = (Notes){0};
    memcpy(frame, given, sizeof frame);
    h->plan(frame, PROCESSORS, 0, &s, &why);
    assert_int_equal(why != NULL, text != NULL);
    assert_true(!text || strstr(why, text));
    assert_int_equal(h->run(frame, PROCESSORS, 0, &s, note_launch, note_zero, note_side, &notes),
                     text ? -1 : 0);
    assert_int_equal(notes.count == 0, text != NULL);
}

static void others_records_are_refused(void **state) {
    (void)state;
    gdr_context *ctx = open_stub("");
    gdr_kernel *k[2] = {compiled(ctx, spec, GDR_PASS_FORWARD, GDR_BF16, GDR_SAVE_ALL),
                        compiled(ctx, spec, GDR_PASS_BACKWARD, GDR_BF16, GDR_SAVE_NOTHING)};
    gdr_kernel *other = compiled(ctx, spec, GDR_PASS_FORWARD, GDR_F32, GDR_SAVE_ALL);
    Header h = functions(k, true);
    Call c = dense(2, 300, 4, 4);
    Saved s;
    int64_t frame[FIELDS_MAX] = {0};
    call_init(&c);
    check_forward(k[0], &h, &c, &s);
    stub.fields = record_frame_fields(&k[1]->rec);
    stub.launches = 0;
    assert_int_equal(gdr_backward(k[1], &c.launch), GDR_OK);
    begin(k[1], frame);
    refused(&h, frame, s, NULL);
    refused(&h, frame, (Saved){SAVED, s.bytes, s.chunk, other->rec.module.records}, "other values");
    refused(&h, frame, (Saved){SAVED, s.bytes, s.chunk / 2, s.records}, "another length");
    refused(&h, frame, (Saved){SAVED, s.bytes - 1, s.chunk, s.records}, "too few bytes");
    refused(&h, frame, (Saved){SAVED + 128, s.bytes, s.chunk, s.records}, "multiple of 256");
    refused(&h, frame, (Saved){0, s.bytes, s.chunk, s.records}, "multiple of 256");
    refused(&h, frame, (Saved){0, 0, 0, 0}, NULL);
    dlclose(h.library);
    gdr_kernel_destroy(k[0]);
    gdr_kernel_destroy(k[1]);
    gdr_kernel_destroy(other);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(where_nothing_is_saved, fresh),
        cmocka_unit_test_setup(where_states_are_saved, fresh),
        cmocka_unit_test_setup(where_all_is_saved, fresh),
        cmocka_unit_test_setup(what_is_made_ahead, fresh),
        cmocka_unit_test_setup(others_records_are_refused, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
