/* A forward pass that saves all, on the interpreter: its records are those of the gradient's own factor and
 * chain, bit for bit, and gradients that begin with reverse on them are those that began with the inputs.
 *
 *   GDR_SPEC=NAME  this spec alone
 */
#include "tests/unit/grad_run.h"


enum { SCANS = 2 * SCAN_ROUNDS_MAX };

/* The forward pass of the same tensors. */
typedef struct Forward {
    Kernel *k;
    CgModule module;
    CgOptions opt;
    Cg *cg[SCANS + 2];
    Simt *simt[SCANS + 2];
} Forward;

static Kernel *forward_kernel(const GradRun *r) {
    Kernel *k = kernel_clone(r->token);
    passes_run(k, "normal", NULL);
    kernel_set_chunk(k, r->c->rows);
    passes_run_after(k, "normal", NULL, NULL);
    assert_int_equal(k->axis.at[AXIS_C].size, r->module.chunk);
    return k;
}

/* records -------------------------------------------------------------------------------------- */

static bool records_agree(const GradCase *c) {
    GradRun r;
    Gradient g;
    System s;
    const char *why = NULL;
    if (!grad_open(&r, c))
        return false;
    bool has = nv_gradient(&r.spec->arena, r.code, &g, &why);
    if (has) {
        Kernel *k = forward_kernel(&r);
        CgOptions opt = {.save_all = true};
        if (!nv_system_of(&r.spec->arena, k, &opt, &s, &why))
            fail_msg("%s: a gradient and no forward pass: %s", c->spec, why);
        assert_int_equal(s.families, g.s.families);
        assert_int_equal(s.ws_bytes, g.s.ws_bytes);
        if (nv_record_number(k, &s) != nv_record_number(r.code, &g.s))
            fail_msg("%s %dx%d: other records", c->spec, c->K, c->V);
    }
    grad_close(&r);
    return has;
}

static void every_spec_has_one_record(void **state) {
    (void)state;
    static const struct { int K, V, rows; } sizes[] = {{128, 128, 64}, {40, 24, 16}, {64, 100, 32}};
    char name[SPECS_MAX][SPEC_NAME];
    int done = 0, tried = 0, count = spec_names(name);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 6; j++) {
            const char *spec = name[i];
            GradCase c = {.spec = spec, .K = sizes[j % 3].K, .V = sizes[j % 3].V, .rows = sizes[j % 3].rows,
                          .elem = j % 2 ? ELEM_f32 : ELEM_bf16, .target = "sm_90a", .H = 1, .N = 1, .T = 1};
            if (!grad_spec_wanted(spec))
                continue;
            tried++;
            done += records_agree(&c);
        }
    assert_true(tried < 12 || done >= tried * 3 / 4);
}

/* the forward pass ----------------------------------------------------------------------------- */

static void forward_add(Forward *f, const GradRun *r, GradBuild *build, const Scan *scan, int which) {
    Arena *arena = &r->spec->arena;
    const char *why = NULL;
    int n = f->module.entry.count;
    Cg *cg = f->cg[n] = cg_open(arena, f->k, &f->opt, &why);
    assert_non_null(cg);
    if (scan)
        scan_build(cg, scan, false, which, &f->module);
    else if (!build(cg, &f->module, &why))
        fail_msg("%s: %s", r->c->spec, why);
    if (!cg_optimize(cg, &why))
        fail_msg("%s: %s", r->c->spec, why);
    f->simt[n] = simt_open(arena, cg->mod, f->module.entry.at[n].symbol, &why);
    if (!f->simt[n])
        fail_msg("%s: %s", r->c->spec, why);
}

static void forward_open(Forward *f, const GradRun *r) {
    const GradCase *c = r->c;
    const char *why = NULL;
    System s;
    *f = (Forward){.k = forward_kernel(r),
                   .opt = {.target = c->target, .algo = ALGO_chunk, .io = c->elem, .opt_level = 2,
                           .v_tile = c->v_tile, .save_all = true}};
    assert_true(nv_system_of(&r->spec->arena, f->k, &f->opt, &s, &why));
    for (int i = 0; i < scan_entries(f->k, s.scan, false); i++)
        forward_add(f, r, NULL, s.scan, i);
    forward_add(f, r, nv_build_factor, NULL, 0);
    forward_add(f, r, nv_build_chain, NULL, 0);
    assert_true(f->module.records == r->module.records);
}

static void forward_close(Forward *f) {
    for (int i = 0; i < f->module.entry.count; i++)
        cg_close(f->cg[i]);
}

static int64_t forward_memory(Forward *f, GradRun *r, const void *have, int64_t bytes) {
    void *p = have ? (void *)(uintptr_t)have : grad_memory(r, bytes, true);
    for (int i = 0; i < f->module.entry.count; i++)
        simt_memory(f->simt[i], p, (size_t)bytes, !have);
    return grad_address(p);
}

static void forward_tensors(Forward *f, GradRun *r, int64_t *frame) {
    const GradCase *c = r->c;
    const Kernel *k = f->k;
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t rows = p->is_param ? 1 : r->tokens;
        int64_t bytes = shape_elements(k, p->shape) * elem_size(p->elem) * rows * r->heads[i];
        frame[frame_in_ptr(k, i)] = forward_memory(f, r, r->in[i], bytes);
        frame[frame_in_heads(k, i)] = r->heads[i];
    }
    for (int o = 0; o < k->out.count; o++)
        frame[frame_out_ptr(k, o)] =
            forward_memory(f, r, NULL, shape_elements(k, k->out.at[o].shape) * 4 * r->tokens * c->H);
    forward_memory(f, r, r->s0, (int64_t)4 * c->N * c->H * c->K * c->V);
    forward_memory(f, r, r->cu, (c->N + 1) * 8);
    int64_t ahead = r->tokens * c->H * f->module.scan_token_bytes + 256 +
                    grad_stretches(r) * c->H * f->module.scan_carry_bytes + 256;
    frame[frame_segment(k, SEGMENT_AHEAD)] = forward_memory(f, r, NULL, ahead);
    frame[frame_segment(k, SEGMENT_SLOTS)] = r->slots;
}

/* Into `records`. */
static void forward_run(Forward *f, GradRun *r, void *records) {
    const GradCase *c = r->c;
    int64_t frame[GRAD_FRAME] = {0};
    grad_frame(r, frame, 0);
    for (int i = FRAME_PORTS; i < GRAD_FRAME; i++)
        frame[i] = 0;
    forward_tensors(f, r, frame);
    frame[FRAME_SAVED] = grad_address(records);
    for (int i = 0; i < f->module.entry.count; i++)
        simt_memory(f->simt[i], records, (size_t)(r->slots * c->H * r->module.ws_bytes_per_slot_head), true);
    for (int i = 0; i < f->module.entry.count; i++) {
        const CgEntry *e = &f->module.entry.at[i];
        const char *why = NULL;
        int64_t wide = e->v_tile > 0 ? (c->V + e->v_tile - 1) / e->v_tile : 1;
        int64_t blocks = e->kind == ENTRY_factor ? r->slots : e->kind == ENTRY_scan ? grad_stretches(r) : c->N * wide;
        if (!simt_launch(f->simt[i], frame, frame_fields(f->k), blocks * c->H, e->threads,
                         e->smem_bytes, &why))
            fail_msg("%s: %s: %s", grad_described(r), e->symbol, why);
    }
}

/* the gradient --------------------------------------------------------------------------------- */

static bool gradient_open(GradRun *r, const GradCase *c) {
    static GradBuild *const build[] = {nv_build_factor, nv_build_chain, nv_build_reverse, nv_build_grad};
    if (!grad_open(r, c))
        return false;
    const char *why = grad_add_scans(r, false);
    for (size_t i = 0; !why && i < sizeof build / sizeof build[0]; i++)
        why = grad_add(r, build[i]);
    why = why ? why : grad_add_scans(r, true);
    why = why ? why : grad_add(r, nv_build_sums);
    if (why)
        grad_close(r);
    else
        grad_tensors(r);
    return !why;
}

static int64_t tiles(const GradRun *r, EntryKind kind) {
    const CgEntry *e = grad_entry(r, kind);
    return r->c->N * r->c->H * ((r->c->V + e->v_tile - 1) / e->v_tile);
}

/* From the inputs, or from the records that are there. */
static void gradient_run(GradRun *r, bool from_inputs) {
    int64_t frame[GRAD_FRAME] = {0};
    grad_frame(r, frame, 0);
    grad_launch_scans(r, frame, false);
    if (from_inputs) {
        grad_launch(r, ENTRY_factor, frame, r->slots * r->c->H);
        grad_launch(r, ENTRY_chain, frame, tiles(r, ENTRY_chain));
    }
    grad_launch(r, ENTRY_reverse, frame, tiles(r, ENTRY_reverse));
    grad_launch(r, ENTRY_grad, frame, r->blocks);
    grad_launch_scans(r, frame, true);
    grad_launch(r, ENTRY_sums, frame, 3);
}

/* All of the gradient, as one text of bytes. */
static void *gradients(GradRun *r, size_t *bytes) {
    size_t states = r->c->start ? (size_t)(4 * r->c->N * r->c->H * r->c->K * r->c->V) : 0;
    *bytes = states;
    for (int o = 0; o < r->code->out.count; o++)
        *bytes += grad_out_bytes(r, o);
    char *all = arena_alloc(&r->arena, *bytes + 1), *at = all + states;
    memcpy(all, r->ds0, states);
    for (int o = 0; o < r->code->out.count; at += grad_out_bytes(r, o++))
        memcpy(at, grad_out(r, o), grad_out_bytes(r, o));
    return all;
}

/* False when there is no such gradient. */
static bool saved_is_as_good(const GradCase *c) {
    GradRun r;
    Forward f;
    size_t bytes;
    if (!gradient_open(&r, c))
        return false;
    forward_open(&f, &r);
    gradient_run(&r, true);
    const void *want = gradients(&r, &bytes);
    memset(r.ws, 0xff, (size_t)(r.slots * c->H * r.module.ws_bytes_per_slot_head));
    forward_run(&f, &r, r.ws);
    for (int again = 0; again < 2; again++) {
        gradient_run(&r, false);
        if (memcmp(gradients(&r, &bytes), want, bytes) != 0)
            fail_msg("%s: other gradients from what was saved", grad_described(&r));
    }
    forward_close(&f);
    grad_close(&r);
    return true;
}

static const GradCase usual = {.K = 32, .V = 32, .rows = 32, .target = "sm_90a", .elem = ELEM_bf16,
                               .H = 2, .N = 2, .T = 75, .start = true, .final = true, .blocks = 3};

static void gradients_of_saved_records(void **state) {
    (void)state;
    static const char *const spec[] = {"gdn2", "gated_deltanet_raw", "linear_attention", "rwkv7",
                                       "gated_deltaproduct", "comba_raw", "mamba3_siso"};
    static const struct { int K, V, rows; } sizes[] = {{32, 32, 32}, {64, 64, 64}, {40, 24, 16}};
    for (size_t i = 0; i < sizeof spec / sizeof *spec; i++)
        for (int j = 0; j < 2; j++) {
            GradCase c = usual;
            c.spec = spec[i];
            c.K = sizes[i % 3].K, c.V = sizes[i % 3].V, c.rows = sizes[i % 3].rows;
            c.target = (i + (size_t)j) % 2 ? "sm_80" : "sm_90a";
            c.elem = i % 3 == 1 ? ELEM_f32 : ELEM_bf16;
            if (j) {
                c.N = 5, c.cu_width = 8;
                memcpy(c.length, (int[]){5, 0, 70, 1, 32}, sizeof(int[5]));
            }
            if (grad_spec_wanted(c.spec))
                assert_true(saved_is_as_good(&c));
        }
}

/* Several V tiles fill a record, as in the sizes that models have. */
static void tiles_fill_one_record(void **state) {
    (void)state;
    static const char *const spec[] = {"gdn2", "gated_deltanet"};
    for (int i = 0; i < 2; i++) {
        GradCase c = usual;
        c.spec = spec[i], c.K = c.V = 128, c.rows = 64, c.H = c.N = 1, c.T = 130;
        c.v_tile = i ? 48 : 64;
        if (grad_spec_wanted(c.spec))
            assert_true(saved_is_as_good(&c));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_spec_has_one_record),
        cmocka_unit_test(gradients_of_saved_records),
        cmocka_unit_test(tiles_fill_one_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
