/* Gradients on the GPU in pieces, on the interpreter: any number of chunks at a time gives the same bits,
 * and what a forward pass saves is what the pieces before would have left.
 *
 *   GDR_SPEC=NAME  this spec alone
 */
#include "tests/unit/grad_run.h"

/* pieces --------------------------------------------------------------------------------------- */

static int64_t tiles(const GradRun *r, EntryKind kind) {
    const CgEntry *e = grad_entry(r, kind);
    return r->c->N * r->c->H * ((r->c->V + e->v_tile - 1) / e->v_tile);
}

static void factor_and_chain(GradRun *r, const int64_t *frame) {
    int64_t slots = frame[frame_gradient(r->code, GRAD_SLOTS)];
    grad_launch(r, ENTRY_factor, frame, slots * r->c->H);
    grad_launch(r, ENTRY_chain, frame, tiles(r, ENTRY_chain));
}

static int64_t border_floats(const GradCase *c) {
    return (int64_t)c->H * (c->K + 1) * c->V;
}

/* All pieces forwards; the states behind them, each of border_floats. */
static void **run_forwards(GradRun *r) {
    int64_t count = (r->slots + r->segment - 1) / r->segment;
    void **state = NEW_ARRAY(&r->arena, void *, count + 1);
    for (int64_t i = 0; i <= count; i++)
        state[i] = grad_memory(r, 4 * border_floats(r->c), true);
    for (int64_t i = 0; i < count; i++) {
        int64_t frame[GRAD_FRAME] = {0};
        grad_frame(r, frame, i * r->segment);
        frame[frame_gradient(r->code, GRAD_STATE_IN)] = i ? grad_address(state[i]) : 0;
        frame[frame_gradient(r->code, GRAD_STATE_OUT)] = grad_address(state[i + 1]);
        factor_and_chain(r, frame);
    }
    return state;
}

/* The chain's blocks over intervals of `every` slots. */
static int64_t interval_tiles(const GradRun *r, const int64_t *frame, int64_t every) {
    int64_t first = frame[frame_gradient(r->code, GRAD_SLOT)];
    int64_t last = first + frame[frame_gradient(r->code, GRAD_SLOTS)] - 1;
    int64_t N = r->c->N, sequences = every < N ? every : N;
    return (last / every - first / every + 1) * sequences * tiles(r, ENTRY_chain) / N;
}

/* With `saved` the chain starts at each of these states, once in `every` slots; and it comes after reverse. */
static void run_backwards_from(GradRun *r, void **state, const float *saved, int64_t every) {
    int64_t count = (r->slots + r->segment - 1) / r->segment;
    for (int64_t i = count - 1; i >= 0; i--) {
        int64_t frame[GRAD_FRAME] = {0};
        grad_frame(r, frame, i * r->segment);
        frame[frame_gradient(r->code, GRAD_STATE_IN)] = i ? grad_address(state[i]) : 0;
        frame[frame_gradient(r->code, GRAD_COSTATE_IN)] = grad_address(r->hand[(i + 1) % 2]);
        frame[frame_gradient(r->code, GRAD_COSTATE_OUT)] = grad_address(r->hand[i % 2]);
        if (!saved)
            factor_and_chain(r, frame);
        else
            grad_launch(r, ENTRY_factor, frame, frame[frame_gradient(r->code, GRAD_SLOTS)] * r->c->H);
        grad_launch(r, ENTRY_reverse, frame, tiles(r, ENTRY_reverse));
        frame[FRAME_SAVED] = grad_address(saved);
        frame[frame_gradient(r->code, GRAD_SAVE_EVERY)] = every;
        if (saved)
            grad_launch(r, ENTRY_chain, frame, interval_tiles(r, frame, every));
        grad_launch(r, ENTRY_grad, frame, r->blocks);
        grad_launch(r, ENTRY_sums, frame, 2);
    }
}

static void run_backwards(GradRun *r, void **state) {
    run_backwards_from(r, state, NULL, 0);
}

static void open_run(GradRun *r, const GradCase *c) {
    static bool (*const build[])(Cg *, CgModule *, const char **) = {
        nv_build_factor, nv_build_chain, nv_build_reverse, nv_build_grad, nv_build_sums};
    assert_true(grad_open(r, c));
    for (size_t i = 0; i < sizeof build / sizeof build[0]; i++) {
        const char *why = grad_add(r, build[i]);
        if (why)
            fail_msg("%s: %s", c->spec, why);
    }
    grad_tensors(r);
}

static void gradients_are_the_same(const GradRun *a, GradRun *b) {
    const GradCase *c = a->c;
    for (int o = 0; o < a->code->out.count; o++)
        if (memcmp(grad_out(a, o), grad_out(b, o), grad_out_bytes(a, o)) != 0)
            fail_msg("%s: %s is another", grad_described(b), a->code->out.at[o].name);
    assert_memory_equal(a->ds0, b->ds0, (size_t)(4 * c->N * c->H * c->K * c->V));
}

/* c->segment slots at a time against all at once. */
static void same_in_pieces(const GradCase *c) {
    GradCase all = *c;
    GradRun a, b;
    all.segment = 0;
    open_run(&a, &all);
    open_run(&b, c);
    run_backwards(&a, NULL);
    run_backwards(&b, run_forwards(&b));
    gradients_are_the_same(&a, &b);
    grad_close(&a);
    grad_close(&b);
}

static const GradCase usual = {.K = 32, .V = 64, .rows = 16, .target = "sm_90a", .elem = ELEM_bf16,
                               .H = 2, .N = 2, .T = 75, .start = true, .final = true, .blocks = 3};
static const char *const few[] = {"gdn2", "gated_deltanet_raw", "linear_attention", "rwkv7", "iplr"};
enum { FEW = sizeof few / sizeof few[0] };

static void pieces_change_no_bit(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++)
        for (int i = 0; i < 3; i++) {
            GradCase c = usual;
            c.spec = few[f];
            c.segment = 1 + 2 * i;
            c.target = i == 1 ? "sm_80" : "sm_90a";
            c.gate = i == 2 ? -20 : -0.05;
            c.group = 1 + i % 2;
            if (grad_spec_wanted(c.spec))
                same_in_pieces(&c);
        }
}

static void pieces_of_packs_change_no_bit(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++) {
        GradCase c = usual;
        c.spec = few[f];
        c.N = 5, c.cu_width = f % 2 ? 4 : 8, c.segment = 2 + f;
        memcpy(c.length, (int[]){5, 0, 90, 1, 33}, sizeof(int[5]));
        if (grad_spec_wanted(c.spec))
            same_in_pieces(&c);
    }
}

/* Rows of no sequence, in front of the first one and behind the last: what was there stays. */
static void spare_rows_stay(void **state) {
    (void)state;
    GradCase c = usual;
    GradRun r;
    c.spec = "gated_deltanet_raw";
    c.N = 5, c.cu_width = 8, c.segment = 3;
    memcpy(c.length, (int[]){21, 40, 0, 35, 19}, sizeof(int[5]));
    open_run(&r, &c);
    int64_t *cu = r.cu, first = cu[1], last = cu[4];
    cu[0] = first; /* sequences 0 and 4 are empty, their rows nobody's */
    cu[5] = last;
    run_backwards(&r, run_forwards(&r));
    for (int o = 0; o < r.code->out.count; o++) {
        const Port *p = &r.code->out.at[o];
        const unsigned char *at = grad_out(&r, o);
        size_t bytes = grad_out_bytes(&r, o), row = bytes / (size_t)r.tokens;
        for (size_t i = 0; i < bytes && !p->is_param; i++) {
            bool spare = i < (size_t)first * row || i >= (size_t)last * row;
            if (spare && at[i] != 0xff)
                fail_msg("%s: row %zu is written", p->name, i / row);
        }
    }
    grad_close(&r);
}

/* saved states --------------------------------------------------------------------------------- */

enum { EVERY = 2 };

/* The forward pass of the same tensors. */
typedef struct Forward {
    Kernel *k;
    CgModule module;
    Cg *cg[2];
    Simt *simt[2];
} Forward;

static void forward_open(Forward *f, const GradRun *r, int v_tile) {
    static bool (*const build[])(Cg *, CgModule *, const char **) = {nv_build_factor, nv_build_chain};
    const GradCase *c = r->c;
    const char *why = NULL;
    Spec *s = r->spec;
    *f = (Forward){.k = kernel_clone(r->token)};
    passes_run(f->k, "normal", NULL);
    kernel_set_chunk(f->k, c->rows);
    passes_run_after(f->k, "normal", NULL, NULL);
    assert_int_equal(f->k->axis.at[AXIS_C].size, r->module.chunk);
    for (int i = 0; i < 2; i++) {
        CgOptions *opt = NEW(&s->arena, CgOptions);
        *opt = (CgOptions){.target = c->target, .algo = ALGO_chunk, .io = c->elem, .opt_level = 2,
                           .v_tile = v_tile, .save_every = EVERY};
        f->cg[i] = cg_open(&s->arena, f->k, opt, &why);
        if (!f->cg[i] || !build[i](f->cg[i], &f->module, &why) || !cg_optimize(f->cg[i], &why))
            fail_msg("%s: %s", c->spec, why);
        f->simt[i] = simt_open(&s->arena, f->cg[i]->mod, f->module.entry.at[i].symbol, &why);
        assert_non_null(f->simt[i]);
    }
}

static void *forward_memory(Forward *f, GradRun *r, const void *have, int64_t bytes) {
    void *p = have ? (void *)(uintptr_t)have : grad_memory(r, bytes, true);
    for (int i = 0; i < 2; i++)
        simt_memory(f->simt[i], p, (size_t)bytes, !have);
    return p;
}

/* What it saves. */
static float *forward_run(Forward *f, GradRun *r) {
    const GradCase *c = r->c;
    const Kernel *k = f->k;
    int64_t frame[GRAD_FRAME] = {0}, states = (r->slots - 1) / EVERY;
    grad_frame(r, frame, 0);
    for (int i = FRAME_PORTS; i < GRAD_FRAME; i++)
        frame[i] = 0;
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t rows = p->is_param ? 1 : r->tokens;
        int64_t bytes = shape_elements(k, p->shape) * elem_size(p->elem) * rows * r->heads[i];
        frame[frame_in_ptr(k, i)] = grad_address(forward_memory(f, r, r->in[i], bytes));
        frame[frame_in_heads(k, i)] = r->heads[i];
    }
    for (int o = 0; o < k->out.count; o++)
        frame[frame_out_ptr(k, o)] = grad_address(forward_memory(
            f, r, NULL, shape_elements(k, k->out.at[o].shape) * 4 * r->tokens * c->H));
    forward_memory(f, r, r->s0, (int64_t)4 * c->N * c->H * c->K * c->V);
    forward_memory(f, r, r->cu, (c->N + 1) * 8);
    float *saved = forward_memory(f, r, NULL, 4 * states * border_floats(c) + 4);
    frame[FRAME_WS] = grad_address(
        forward_memory(f, r, NULL, r->slots * c->H * f->module.ws_bytes_per_slot_head));
    frame[FRAME_SAVED] = grad_address(saved);
    frame[frame_segment(k, SEGMENT_SLOTS)] = r->slots;
    for (int i = 0; i < 2; i++) {
        const CgEntry *e = &f->module.entry.at[i];
        const char *why = NULL;
        int64_t wide = i ? (c->V + e->v_tile - 1) / e->v_tile : 1;
        if (!simt_launch(f->simt[i], frame, frame_fields(k), (i ? c->N : r->slots) * c->H * wide,
                         e->threads, e->smem_bytes, &why))
            fail_msg("%s: %s: %s", grad_described(r), e->symbol, why);
    }
    return saved;
}

/* Whether a sequence goes on from the slot before to this one. */
static bool crossed(const GradRun *r, int64_t slot) {
    for (int n = 0; n < r->c->N; n++) {
        int64_t first = grad_first_slot(r, n);
        int64_t chunks = (grad_length(r->c, n) + r->module.chunk - 1) / r->module.chunk;
        if (slot > first && slot < first + chunks)
            return true;
    }
    return false;
}

static void saved_as_left(const GradCase *c) {
    GradRun r;
    Forward f;
    int compared = 0;
    open_run(&r, c);
    forward_open(&f, &r, 0);
    void **left = run_forwards(&r);
    float *saved = forward_run(&f, &r);
    size_t units = (size_t)c->H * (size_t)c->V, floats = (size_t)border_floats(c);
    for (int64_t i = 1; i * EVERY < r.slots; i++) {
        const float *have = saved + (i - 1) * (int64_t)floats;
        if (!crossed(&r, i * EVERY))
            continue;
        compared++;
        assert_memory_equal(have, left[i], 4 * (floats - units));
        assert_memory_equal(have + floats - units, (float *)left[i] + floats - units, 4 * units);
    }
    assert_true(compared > 0);
    for (int i = 0; i < 2; i++)
        cg_close(f.cg[i]);
    grad_close(&r);
}

static void saved_states_are_those_of_the_pieces(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++)
        for (int i = 0; i < 3; i++) {
            GradCase c = usual;
            c.spec = few[f];
            c.H = 1; /* so that all inputs have as many heads */
            c.segment = EVERY;
            c.target = i == 1 ? "sm_80" : "sm_90a";
            if (i == 2) {
                c.N = 5, c.cu_width = 8;
                memcpy(c.length, (int[]){5, 0, 90, 1, 33}, sizeof(int[5]));
            }
            if (grad_spec_wanted(c.spec))
                saved_as_left(&c);
        }
}

/* The chain walks from each saved state on, all of these walks at the same time. */
static void same_in_intervals(const GradCase *c) {
    GradCase all = *c;
    GradRun a, b;
    Forward f;
    all.segment = 0;
    open_run(&a, &all);
    run_backwards(&a, NULL);
    open_run(&b, c);
    forward_open(&f, &b, 0);
    const float *saved = forward_run(&f, &b);
    run_backwards_from(&b, run_forwards(&b), saved, EVERY);
    gradients_are_the_same(&a, &b);
    for (int i = 0; i < 2; i++)
        cg_close(f.cg[i]);
    grad_close(&a);
    grad_close(&b);
}

static void intervals_change_no_bit(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++)
        for (int i = 0; i < 4; i++) {
            GradCase c = usual;
            c.spec = few[f];
            c.segment = (int[]){0, 2 * EVERY, 2 * EVERY + 1, EVERY + 1}[i];
            c.target = i == 1 ? "sm_80" : "sm_90a";
            c.gate = -.05;
            if (i >= 2) {
                c.N = 5, c.cu_width = 8;
                memcpy(c.length, (int[]){5, 0, 90, 1, 33}, sizeof(int[5]));
            }
            if (grad_spec_wanted(c.spec))
                same_in_intervals(&c);
        }
}

static double worst_difference(const GradRun *a, const GradRun *b) {
    double worst = 0;
    for (int o = 0; o < a->code->out.count; o++) {
        GradError e = {0};
        Elem elem = a->code->out.at[o].elem;
        for (size_t j = 0; j < grad_out_bytes(a, o) / (size_t)elem_size(elem); j++)
            grad_error_add(&e, grad_get(grad_out(a, o), (int64_t)j, elem),
                           grad_get(grad_out(b, o), (int64_t)j, elem));
        worst = fmax(worst, grad_error(&e));
    }
    return worst;
}

/* States by warps, from which a gradient by warpgroups goes on, and the other way round. */
static void schedules_understand_each_other(void **state) {
    (void)state;
    enum { WARPS = 16, WARPGROUPS = 64 };
    for (int i = 0; i < 2; i++) {
        GradCase c = usual;
        GradRun r, all;
        Forward f;
        c.spec = "gdn2", c.H = 1, c.N = 1, c.elem = ELEM_f16, c.gate = -.05;
        c.v_tile = i ? WARPS : WARPGROUPS;
        open_run(&all, &c);
        run_backwards(&all, NULL);
        c.segment = EVERY;
        open_run(&r, &c);
        forward_open(&f, &r, i ? WARPGROUPS : WARPS);
        const float *saved = forward_run(&f, &r);
        void **start = NEW_ARRAY(&r.arena, void *, r.slots + 1);
        for (int64_t at = 1; at * EVERY < r.slots; at++) {
            start[at] = grad_memory(&r, 4 * border_floats(&c), true);
            memcpy(start[at], saved + (at - 1) * border_floats(&c), 4 * (size_t)border_floats(&c));
        }
        run_backwards(&r, start);
        double off = worst_difference(&all, &r);
        if (!(off < 2e-3))
            fail_msg("%s: off by %g", i ? "by warps" : "by warpgroups", off);
        for (int j = 0; j < 2; j++)
            cg_close(f.cg[j]);
        grad_close(&r);
        grad_close(&all);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_change_no_bit),
        cmocka_unit_test(pieces_of_packs_change_no_bit),
        cmocka_unit_test(spare_rows_stay),
        cmocka_unit_test(saved_states_are_those_of_the_pieces),
        cmocka_unit_test(intervals_change_no_bit),
        cmocka_unit_test(schedules_understand_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
