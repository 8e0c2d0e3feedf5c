/* The pull phase of the grad kernel (codegen/nvptx/grad_pull*.c) on this machine (tests/simt),
 * alone: from records made here, of random states, X and dX, to the cotangents of the lattice's
 * rows, keys and decays, against their definition in fp64, term by term.
 *
 *   GDR_SPEC=NAME  this spec alone         GDR_VERBOSE=1  the errors of everything that ran */
#include "tests/unit/pull_chunk.h"


/* compiling ------------------------------------------------------------------------------------ */

static Kernel *gradient_of(World *w) {
    SpecDim dim[] = {{intern_z(&w->spec->names, "K"), w->c->K},
                     {intern_z(&w->spec->names, "V"), w->c->V}};
    SpecBind bind = {dim, 2};
    Kernel *k =
        spec_lower(&w->spec->arena, &w->spec->names, w->spec->file, NULL, &bind, &w->spec->d);
    if (!k)
        fail_msg("%s", messages(w->spec));
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : w->c->elem;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = w->c->elem;
    passes_run(k, "normal", NULL);
    if (!k->facts.chunkable)
        return NULL;
    w->inputs = k->in.count;
    kernel_set_chunk(k, w->c->rows);
    passes_run_after(k, "normal", "peel", NULL);
    k = kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0));
    passes_run_after(k, "collapse", NULL, NULL);
    return k;
}

/* False where there is no chunk form, or none that the GPU kernels hold; or where other kernels
 * have to run first, those of values made ahead. */
static bool compile(World *w) {
    static const GradPhase phase[] = {{grad_pull_plan, grad_pull}};
    const char *why = NULL;
    w->k = gradient_of(w);
    if (!w->k || !nv_gradient(w->k->arena, w->k, &w->g, &why) || w->g.s.scan->count > 0)
        return false;
    w->s = &w->g.s;
    CgOptions *opt = NEW(&w->spec->arena, CgOptions);
    *opt = (CgOptions){.target = "sm_90a", .algo = ALGO_chunk, .io = w->c->elem, .opt_level = 2};
    w->cg = cg_open(&w->spec->arena, w->k, opt, &why);
    if (!w->cg || !grad_build(w->cg, &w->module, ENTRY_grad, phase, 1, &why) ||
        !cg_optimize(w->cg, &why))
        fail_msg("%s: %s", w->name, why);
    w->plan = (Grad){.cg = w->cg, .k = w->k, .g = &w->g};
    grad_plan_scratch(&w->plan);
    w->simt = simt_open(&w->spec->arena, w->cg->mod, w->module.entry.at[0].symbol, &why);
    if (!w->simt)
        fail_msg("%s: %s", w->name, why);
    return true;
}

/* tensors -------------------------------------------------------------------------------------- */

static bool is_log_decay(const Port *p) {
    return p->hi == 0 && !(p->lo > -INFINITY);
}

static double draw_input(World *w, int input, int64_t i) {
    const Case *c = w->c;
    const Port *p = &w->k->in.at[input];
    if (input >= w->inputs) /* a cotangent */
        return draw(w) * c->upstream;
    if (is_log_decay(p) && random_unit(&w->seed) < c->resets)
        return -1000;
    if (is_log_decay(p) && (c->steep || !isnan(c->gate)))
        return c->steep ? -30 * (double)(i & 1) : c->gate;
    double x = random_input(p, &w->seed);
    bool open = isinf(p->lo) && isinf(p->hi);
    return open && shape_has(p->shape, AXIS_K) ? x * 1.7 / sqrt(c->K) : x;
}

static void *memory(World *w, int64_t bytes, bool writable) {
    void *p = arena_alloc(&w->arena, (size_t)bytes + 16);
    memset(p, 0xff, (size_t)bytes);
    simt_memory(w->simt, p, (size_t)bytes, writable);
    return p;
}

static void make_inputs(World *w) {
    for (int i = 0; i < w->k->in.count; i++) {
        const Port *p = &w->k->in.at[i];
        int64_t size = shape_elements(w->k, p->shape), rows = p->is_param ? 1 : w->c->T;
        w->in[i] = memory(w, size * rows * w->c->H * elem_size(p->elem), false);
        for (int64_t t = 0; t < rows; t++) {
            bool zero = !p->is_param && shape_has(p->shape, AXIS_K) && !is_log_decay(p) &&
                        random_unit(&w->seed) < w->c->zeros;
            for (int64_t j = 0; j < size * w->c->H; j++)
                grad_set(w->in[i], t * size * w->c->H + j, p->elem, zero ? 0 : draw_input(w, i, j));
        }
    }
}

/* running -------------------------------------------------------------------------------------- */

static int64_t address(const void *p) {
    return (int64_t)(intptr_t)p;
}

static void launch(World *w) {
    int64_t frame[256] = {0};
    const Kernel *k = w->k;
    const CgEntry *e = &w->module.entry.at[0];
    const char *why = NULL;
    assert_true(frame_fields(k) <= 256);
    frame[FRAME_T] = w->c->T;
    frame[FRAME_N] = 1;
    frame[FRAME_H] = frame[FRAME_HF] = w->c->H;
    frame[FRAME_WS] = address(w->records);
    frame[FRAME_SLOTS] = w->slots;
    frame[frame_gradient(k, GRAD_SLOTS)] = w->slots;
    frame[frame_gradient(k, GRAD_SCRATCH)] = address(w->scratch);
    frame[frame_gradient(k, GRAD_GROUP)] = 1;
    for (int i = 0; i < k->in.count; i++) {
        frame[frame_in_ptr(k, i)] = address(w->in[i]);
        frame[frame_in_heads(k, i)] = w->c->H;
    }
    if (!simt_launch(w->simt, frame, frame_fields(k), w->slots * w->c->H, e->threads, e->smem_bytes,
                     &why))
        fail_msg("%s: %s", w->name, why);
}

/* comparing ------------------------------------------------------------------------------------ */

typedef struct Error {
    double diff, ref;
} Error;

static void compare(Error *e, double want, double got) {
    e->diff += (want - got) * (want - got);
    e->ref += want * want;
}

static const char *described(World *w) {
    const Case *c = w->c;
    Buf b;
    buf_init(&b, &w->arena);
    buf_printf(&b, "%s K=%d V=%d %s rows=%d T=%d gate=%g resets=%g%s upstream=%g zeros=%g", w->name,
               c->K, c->V, elem_name(c->elem), w->s->rows, c->T, c->gate, c->resets,
               c->steep ? " steep" : "", c->upstream, c->zeros);
    return b.text;
}

static double judge(World *w, const char *what, const Error *e, double limit) {
    double ratio = isfinite(e->diff) ? sqrt(e->diff) / (sqrt(e->ref) + 1e-30) : INFINITY;
    if (e->ref == 0)
        ratio = sqrt(e->diff) / w->c->upstream;
    if (!(ratio <= limit))
        fail_msg("%s: %s: error %g, may be %g", described(w), what, ratio, limit);
    return ratio;
}

/* Element k of a row of K in the scratch. */
static double result(World *w, int task, int64_t base, int row, int k) {
    const char *at = (const char *)w->scratch + task * w->plan.scratch_bytes + base;
    return grad_get(at, row * w->s->kp + k, w->plan.scratch_elem);
}

/* The sum of dx over families of one root, which stands at the first. */
static double expected_dx(const World *w, const Chunk *c, int f, int l, int k) {
    double sum = 0;
    for (int i = f; i < w->s->families; i++)
        if (w->g.family[i].root == w->g.family[f].root)
            sum += c->dx[i][l][k];
    return sum;
}

static void measure(World *w, Chunk *c, int task, Error *e) {
    const System *s = w->s;
    for (int l = 0; l < c->live; l++) {
        double sum = 0;
        for (int k = 0; k < s->K; k++) {
            for (int f = 0; f < s->families; f++)
                compare(&e[f], expected_dx(w, c, f, l, k),
                        result(w, task, w->plan.scratch_dx[f], l, k));
            compare(&e[MAX_FAMILIES], c->dp[l][k], result(w, task, w->plan.scratch_dp, l, k));
            sum += c->da[l][k];
            if (w->g.a_root >= 0 && s->a_key)
                compare(&e[MAX_FAMILIES + 1], c->da[l][k],
                        result(w, task, w->plan.scratch_da, l, k));
        }
        if (w->g.a_root >= 0 && !s->a_key) {
            const char *at = (const char *)w->scratch + task * w->plan.scratch_bytes;
            compare(&e[MAX_FAMILIES + 1], sum, ((const float *)(at + w->plan.scratch_da))[l]);
        }
    }
}

static void run(World *w) {
    int tasks = w->slots * w->c->H;
    Error e[MAX_FAMILIES + 2] = {{0}};
    Chunk *chunk = calloc((size_t)tasks, sizeof *chunk);
    assert_non_null(chunk);
    w->records = memory(w, tasks * w->s->ws_bytes, false);
    w->scratch = memory(w, tasks * w->module.entry.at[0].scratch_bytes, true);
    for (int i = 0; i < tasks; i++) {
        if (i < w->c->H || w->c->H > 1)
            chunk_values(w, i % w->c->H);
        chunk_make(w, &chunk[i], i / w->c->H * w->s->chunk);
        chunk_record(w, &chunk[i], w->records + i * w->s->ws_bytes);
        chunk_expect(w, &chunk[i]);
    }
    launch(w);
    for (int i = 0; i < tasks; i++)
        measure(w, &chunk[i], i, e);
    double worst = 0, gates = 0;
    for (int f = 0; f < w->s->families; f++)
        worst = fmax(worst, judge(w, chunk_erases(w, f) ? "erase rows" : "rows", &e[f], 2.5e-3));
    worst = fmax(worst, judge(w, "keys", &e[MAX_FAMILIES], 2.5e-3));
    if (w->g.a_root >= 0)
        gates = judge(w, "decays", &e[MAX_FAMILIES + 1], 5e-3);
    if (getenv("GDR_VERBOSE"))
        print_message("%-100s %.2g %.2g\n", described(w), worst, gates);
    free(chunk);
}

static bool run_case(const char *name, const Case *c) {
    char path[512];
    const char *only = getenv("GDR_SPEC");
    if (only && strcmp(only, name) != 0)
        return false;
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, name);
    *w = (World){.c = c, .name = name, .spec = spec_load(path), .seed = 7};
    arena_init(&w->arena, NULL);
    bool ran = compile(w);
    if (ran) {
        w->slots = (c->T + w->s->chunk - 1) / w->s->chunk;
        make_inputs(w);
        run(w);
    }
    if (w->cg)
        cg_close(w->cg);
    arena_free(&w->arena);
    spec_close(w->spec);
    free(w);
    return ran;
}

/* cases ---------------------------------------------------------------------------------------- */

static const Case cases[] = {
    {64, 64, ELEM_bf16, 64, 50, 1, NAN, 0, false, 1, 0},
    {40, 24, ELEM_f32, 32, 45, 1, NAN, .05, false, 1e-6, 0},
    {32, 100, ELEM_bf16, 64, 60, 1, -.01, 0, false, 1e5, 0},
    {48, 48, ELEM_f16, 16, 33, 2, NAN, 0, true, 1, .2},
};
enum { CASES = sizeof cases / sizeof cases[0] };

/* Two cases a spec, by turns; all of them with GDR_ALL. */
static bool chosen(size_t spec, int number) {
    return getenv("GDR_ALL") || getenv("GDR_SPEC") || (spec + (size_t)number) % 2 == 0;
}

static void test_specs(void **state) {
    (void)state;
    char name[SPECS_MAX][SPEC_NAME];
    int ran = 0, count = spec_names(name);
    for (int i = 0; i < count; i++)
        for (int c = 0; c < CASES; c++)
            ran += chosen((size_t)i, c) && run_case(name[i], &cases[c]);
    assert_true(getenv("GDR_SPEC") || ran > 20);
}

/* As large as it gets, with every number of warps, and what overflows a careless number. */
static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        Case c;
    } run[] = {
        {"gdn2", {128, 128, ELEM_bf16, 64, 64, 1, NAN, .02, false, 1, 0}},
        {"gdn2", {256, 40, ELEM_f32, 16, 20, 1, NAN, 0, false, 1, 0}},
        {"gated_deltanet", {64, 256, ELEM_bf16, 64, 70, 1, NAN, .02, false, 1, 0}},
        {"kda", {33, 17, ELEM_f32, 32, 64, 1, -.001, 0, false, 1e-20, .1}},
        {"gla", {96, 72, ELEM_bf16, 64, 64, 1, 0, 0, false, 1e10, .1}},
        {"simple_gla", {31, 48, ELEM_f16, 64, 64, 1, NAN, 0, true, 1e-3, 0}},
    };
    for (size_t i = 0; i < sizeof run / sizeof run[0]; i++)
        if (!getenv("GDR_SPEC"))
            assert_true(run_case(run[i].spec, &run[i].c));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_specs), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
