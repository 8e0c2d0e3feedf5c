/* Shared by the tests that run forward GPU kernels in the interpreter (tests/simt): a spec compiled entry
 * by entry, tensors that are NaN wherever nothing is written, launches, and the distance from the fp64
 * meaning of the spec by the metric of docs/testing.
 *
 *   GDR_SEED=N     other random inputs
 *   GDR_VERBOSE=1  the errors of everything that ran
 */
#ifndef GDR_TESTS_NVPTX_RUN_H
#define GDR_TESTS_NVPTX_RUN_H

#include "codegen/nvptx/factor.h"
#include "passes/passes.h"
#include "tests/simt/number.h"
#include "tests/simt/simt.h"
#include "tests/unit/spec_test.h"

enum { SEQUENCES_MAX = 6, ENTRIES_MAX = 3 + 3 * SCAN_ROUNDS_MAX };

/* What is compiled, and what is run. */
typedef struct Build {
    const char *spec; /* one of the folder, or what `text` is called */
    int K, V;
    Elem elem;
    Algo algo;
    const char *target;
    const char *text;
} Build;

typedef struct Launch {
    int H, N, T;               /* T tokens each, or */
    int length[SEQUENCES_MAX]; /* packed: their lengths */
    int cu_width;              /* 0 = dense */
    bool start, final;         /* states given, wanted */
    double gate;               /* log-decays; NaN: random in the declared range */
    double resets;             /* that part of the log-decays is -1000 */
    double keys;               /* correlation of one token's k with another's */
    bool steep;                /* log-decays 0 and -30 side by side */
} Launch;

typedef struct World {
    const Build *b;
    Spec *spec;
    SpecBind bind;
    Kernel *token, *code; /* the meaning; what was compiled */
    CgModule module;
    Cg *cg[ENTRIES_MAX];
    Simt *simt[ENTRIES_MAX];
    uint64_t seed;
    /* one launch */
    const Launch *l;
    Arena arena;
    void *in[MAX_PORTS], *out[MAX_PORTS], *s0, *s, *cu, *ws;
    void *past0, *past; /* NULL: not given, not wanted */
    int heads[MAX_PORTS], factor_heads;
    int64_t tokens, slots, stretches, ahead; /* ahead: where in the workspace values made ahead lie */
    double worst;
} World;

static uint64_t first_seed(void) {
    const char *text = getenv("GDR_SEED");
    return text ? strtoull(text, NULL, 10) : 20250101;
}

/* elements ------------------------------------------------------------------------------------- */

static double element_get(const void *p, int64_t i, Elem e) {
    if (e == ELEM_f32)
        return ((const float *)p)[i];
    uint32_t half = ((const uint16_t *)p)[i];
    return number_get(e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16, half);
}

static void element_set(void *p, int64_t i, Elem e, double x) {
    if (e == ELEM_f32)
        ((float *)p)[i] = (float)x;
    else
        ((uint16_t *)p)[i] =
            (uint16_t)number_put(e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16, (float)x);
}

/* compiling ------------------------------------------------------------------------------------ */

static Kernel *lower(World *w) {
    Spec *s = w->spec;
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &w->bind, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : w->b->elem;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = w->b->elem;
    return k;
}

enum { WHICH_past = -1 };

/* One entry in a module of its own, optimised: by `build`, or the scan's entry number `which`. */
static const char *add_entry(World *w, const CgOptions *opt,
                             bool (*build)(Cg *, CgModule *, const char **), const Scan *scan,
                             int which) {
    const char *why = NULL;
    Cg *cg = cg_open(&w->spec->arena, w->code, opt, &why);
    if (!cg)
        return why;
    int n = w->module.entry.count;
    w->cg[n] = cg;
    if (!build && which == WHICH_past)
        scan_build_past(cg, scan, &w->module);
    else if (!build)
        scan_build(cg, scan, false, which, &w->module);
    if ((build && !build(cg, &w->module, &why)) || !cg_optimize(cg, &why))
        return why;
    w->simt[n] = simt_open(&w->spec->arena, cg->mod, w->module.entry.at[n].symbol, &why);
    return w->simt[n] ? NULL : why;
}

static const char *add_chunk_entries(World *w, const CgOptions *opt) {
    System s;
    const char *why = NULL;
    if (!nv_system(&w->spec->arena, w->code, &s, &why))
        return why;
    for (int i = 0; i < scan_entries(w->code, s.scan, false) && !why; i++)
        why = add_entry(w, opt, NULL, s.scan, i);
    if (!why)
        why = add_entry(w, opt, nv_build_factor, NULL, 0);
    if (!why)
        why = add_entry(w, opt, nv_build_chain, NULL, 0);
    return why || !w->code->facts.past ? why : add_entry(w, opt, NULL, s.scan, WHICH_past);
}

static void close_code(World *w) {
    for (int i = 0; i < ENTRIES_MAX; i++)
        if (w->cg[i])
            cg_close(w->cg[i]);
    memset(w->cg, 0, sizeof w->cg);
    w->module = (CgModule){0};
}

/* With the most rows of a chunk that the target takes, as at run time. False when the spec has no
 * chunk form; what has one has code. */
static bool compile(World *w) {
    static const int choice[] = {64, 32, 16};
    const Build *b = w->b;
    CgOptions opt = {.target = b->target, .algo = b->algo, .io = b->elem, .opt_level = 2};
    CgOptions *kept = NEW(&w->spec->arena, CgOptions);
    *kept = opt;
    Kernel *normal = lower(w);
    const char *why = NULL;
    w->token = kernel_clone(normal);
    passes_run(normal, "normal", NULL);
    if (b->algo == ALGO_chunk && !normal->facts.chunkable)
        return false;
    if (b->algo == ALGO_recurrent) {
        w->code = normal;
        w->module.chunk = 1;
        why = add_entry(w, kept, nv_build_recurrent, NULL, 0);
    }
    for (int i = 0; b->algo == ALGO_chunk && i < 3; i++) {
        close_code(w);
        w->code = kernel_clone(normal);
        kernel_set_chunk(w->code, choice[i]);
        passes_run_after(w->code, "normal", NULL, NULL);
        w->module.chunk = choice[i];
        why = add_chunk_entries(w, kept);
        if (!why)
            break;
    }
    if (why)
        fail_msg("%s: %s", b->spec, why);
    return true;
}

/* tensors -------------------------------------------------------------------------------------- */

static int64_t length_of(const Launch *l, int n) {
    return l->cu_width ? l->length[n] : l->T;
}

static int64_t first_of(const Launch *l, int n) {
    int64_t t = 0;
    for (int i = 0; i < n; i++)
        t += length_of(l, i);
    return t;
}

static bool is_log_decay(const Port *p) {
    return p->hi == 0 && !(p->lo > -INFINITY);
}

/* Vectors without a range are short, so that specs without normalisation stay bounded. */
static double draw(World *w, const Port *p) {
    bool log_decay = is_log_decay(p);
    if (log_decay && random_unit(&w->seed) < w->l->resets)
        return -1000;
    if (log_decay && !isnan(w->l->gate))
        return w->l->gate;
    double x = random_input(p, &w->seed);
    bool open = isinf(p->lo) && isinf(p->hi);
    return open && shape_has(p->shape, AXIS_K) ? x * 1.7 / sqrt(w->b->K) : x;
}

/* Memory that kernels see, NaN wherever nothing is written. */
static void *tensor(World *w, int64_t bytes, bool writable) {
    void *p = arena_alloc(&w->arena, (size_t)bytes + 16);
    memset(p, 0xff, (size_t)bytes);
    for (int i = 0; i < w->module.entry.count; i++)
        simt_memory(w->simt[i], p, (size_t)bytes, writable);
    return p;
}

/* Elements of an input that is not of the keys, or with keys alike: a part that all tokens share.
 */
static void fill_input(World *w, int i, int64_t n) {
    const Port *p = &w->token->in.at[i];
    double c = strcmp(p->name, "k") == 0 ? w->l->keys : 0;
    int64_t row = shape_elements(w->token, p->shape) * w->heads[i];
    double *common = NEW_ARRAY(&w->arena, double, row);
    for (int64_t j = 0; j < row && c > 0; j++)
        common[j] = draw(w, p);
    for (int64_t j = 0; j < n; j++) {
        double x = is_log_decay(p) && w->l->steep ? -30 * (double)(j & 1) : draw(w, p);
        element_set(w->in[i], j, p->elem, c > 0 ? sqrt(c) * common[j % row] + sqrt(1 - c) * x : x);
    }
}

static int common_multiple(int a, int b) {
    int x = a;
    while (x % b)
        x += a;
    return x;
}

static void make_inputs(World *w) {
    const Launch *l = w->l;
    const Kernel *k = w->token;
    w->factor_heads = 1;
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        /* Every third input is shared by groups of heads. */
        w->heads[i] = i % 3 == 0 && l->H % 2 == 0 ? l->H / 2 : l->H;
        if (w->b->algo == ALGO_chunk && frame_factor_reads(w->code, i))
            w->factor_heads = common_multiple(w->factor_heads, w->heads[i]);
        int64_t n = shape_elements(k, p->shape) * w->heads[i] * (p->is_param ? 1 : w->tokens);
        w->in[i] = tensor(w, n * elem_size(p->elem), false);
        fill_input(w, i, n);
    }
}

static void make_tensors(World *w) {
    const Launch *l = w->l;
    const Kernel *k = w->token;
    w->tokens = first_of(l, l->N);
    make_inputs(w);
    for (int o = 0; o < k->out.count; o++)
        w->out[o] = tensor(
            w, shape_elements(k, k->out.at[o].shape) * l->H * w->tokens * elem_size(w->b->elem),
            true);
    int64_t states = (int64_t)l->N * l->H * w->b->K * w->b->V;
    w->s0 = tensor(w, 4 * states, false);
    w->s = tensor(w, 4 * states, true);
    for (int64_t j = 0; j < states; j++)
        element_set(w->s0, j, ELEM_f32, l->start ? 2 * random_unit(&w->seed) - 1 : 0);
    w->cu = tensor(w, (l->N + 1) * 8, false);
    for (int n = 0; n <= l->N; n++)
        if (l->cu_width == 8)
            ((int64_t *)w->cu)[n] = first_of(l, n);
        else
            ((int32_t *)w->cu)[n] = (int32_t)first_of(l, n);
    int64_t T = l->cu_width ? w->tokens : l->T;
    w->slots = frame_slots(T, l->N, l->cu_width > 0, w->module.chunk);
    w->stretches = frame_slots(T, l->N, l->cu_width > 0, SCAN_TOKENS);
    int64_t records = w->slots * w->factor_heads * w->module.ws_bytes_per_slot_head + 255;
    w->ahead = records / 256 * 256;
    int64_t rows = w->tokens * l->H * w->module.scan_token_bytes + 255;
    int64_t carry = w->stretches * l->H * w->module.scan_carry_bytes;
    w->ws = tensor(w, records / 256 * 256 + rows / 256 * 256 + carry, true);
}

/* running -------------------------------------------------------------------------------------- */

static int64_t address(const void *p) {
    return (int64_t)(intptr_t)p;
}

static void fill_frame(World *w, int64_t *frame) {
    const Launch *l = w->l;
    const Kernel *k = w->token;
    frame[FRAME_T] = l->cu_width ? w->tokens : l->T;
    frame[FRAME_N] = l->N;
    frame[FRAME_H] = l->H;
    frame[FRAME_HF] = w->factor_heads;
    frame[FRAME_CU] = l->cu_width ? address(w->cu) : 0;
    frame[FRAME_CU_WIDTH] = l->cu_width;
    frame[FRAME_S0] = l->start ? address(w->s0) : 0;
    frame[FRAME_S] = l->final ? address(w->s) : 0;
    frame[FRAME_PAST0] = address(w->past0);
    frame[FRAME_PAST] = address(w->past);
    frame[FRAME_WS] = address(w->ws);
    frame[FRAME_SLOTS] = w->slots;
    frame[frame_segment(k, SEGMENT_SLOTS)] = w->slots;
    frame[frame_segment(k, SEGMENT_AHEAD)] = address(w->ws) + w->ahead;
    for (int i = 0; i < k->in.count; i++) {
        frame[frame_in_ptr(k, i)] = address(w->in[i]);
        frame[frame_in_heads(k, i)] = w->heads[i];
    }
    for (int o = 0; o < k->out.count; o++)
        frame[frame_out_ptr(k, o)] = address(w->out[o]);
}

static const char *described(World *w) {
    const Build *b = w->b;
    const Launch *l = w->l;
    Buf t;
    buf_init(&t, &w->arena);
    buf_printf(&t, "%s %s K=%d V=%d %s %s H=%d", b->spec,
               b->algo == ALGO_chunk ? "chunk" : "recurrent", b->K, b->V, elem_name(b->elem),
               b->target, l->H);
    for (int n = 0; n < l->N; n++)
        buf_printf(&t, "%s%d",
                   n             ? ","
                   : l->cu_width ? " packed "
                                 : " dense ",
                   (int)length_of(l, n));
    buf_printf(&t, "%s%s gate=%g resets=%g keys=%g%s", l->start ? " S0" : "", l->final ? " S" : "",
               l->gate, l->resets, l->keys, l->steep ? " steep" : "");
    return t.text;
}

enum { FRAME_MAX = FRAME_PORTS + 3 * MAX_PORTS + SEGMENT_FIELDS };

/* The entries of the frame's segment, or with `ahead` those in front of all segments. */
static void launch_entries(World *w, const int64_t *frame, bool ahead) {
    int64_t slots = frame[frame_segment(w->token, SEGMENT_SLOTS)];
    int64_t sequences = slots && slots < w->l->N ? slots : w->l->N;
    for (int i = 0; i < w->module.entry.count; i++) {
        const CgEntry *e = &w->module.entry.at[i];
        if ((e->kind == ENTRY_scan || e->kind == ENTRY_carry) != ahead)
            continue;
        int64_t tiles = e->v_tile ? (w->b->V + e->v_tile - 1) / e->v_tile : 1;
        int64_t blocks = e->kind == ENTRY_factor ? slots * w->factor_heads
                         : e->kind == ENTRY_scan ? w->stretches * w->l->H
                                                 : sequences * w->l->H * tiles;
        const char *why = NULL;
        if (!simt_launch(w->simt[i], frame, frame_fields(w->token), blocks, e->threads,
                         e->smem_bytes, &why))
            fail_msg("%s: %s", described(w), why);
    }
}

static void launch(World *w) {
    int64_t frame[FRAME_MAX] = {0};
    fill_frame(w, frame);
    launch_entries(w, frame, true);
    launch_entries(w, frame, false);
}

/* comparing ------------------------------------------------------------------------------------ */

typedef struct Error {
    double diff, ref, most; /* sums of squares; the largest difference */
    int64_t count;
} Error;

static void error_add(Error *e, double want, double got) {
    e->diff += (want - got) * (want - got);
    e->ref += want * want;
    e->count++;
    e->most = fmax(e->most, fabs(want - got));
}

static void error_join(Error *e, const Error *more) {
    e->diff += more->diff;
    e->ref += more->ref;
    e->count += more->count;
    e->most = fmax(e->most, more->most);
}

static double mean(double sum, int64_t count) {
    return count ? sqrt(sum / (double)count) : 0;
}

/* Infinite if anything was not a number; `least`: what the reference counts for at least. */
static double error_ratio(const Error *e, double least) {
    if (!isfinite(e->diff))
        return INFINITY;
    return e->most <= 1e-6 ? 0
                           : mean(e->diff, e->count) / (fmax(mean(e->ref, e->count), least) + 1e-8);
}

/* The tensors of one sequence and head, in fp64, run through the spec. */
static Data *expected(World *w, int n, int head) {
    const Kernel *k = w->token;
    int64_t T = length_of(w->l, n), first = first_of(w->l, n);
    Data *x = data_new(&w->arena, k, T, 1);
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t size = shape_elements(k, p->shape), own = head * w->heads[i] / w->l->H;
        for (int64_t t = 0; t < (p->is_param ? 1 : T); t++)
            for (int64_t j = 0; j < size; j++) {
                int64_t row = (p->is_param ? 0 : first + t) * w->heads[i] + own;
                x->in[i][t * size + j] = element_get(w->in[i], row * size + j, p->elem);
            }
    }
    int64_t state = ((int64_t)n * w->l->H + head) * x->nstate;
    for (int64_t j = 0; j < x->nstate; j++)
        x->args.state[j] = element_get(w->s0, state + j, ELEM_f32);
    if (!reference_run(&w->arena, w->spec->file, NULL, &w->bind, &x->args, &w->spec->d))
        fail_msg("%s", messages(w->spec));
    return x;
}

/* Outs and the state of one sequence and head. */
static void measure(World *w, int n, int head, Error *e) {
    const Launch *l = w->l;
    const Kernel *k = w->token;
    Data *x = expected(w, n, head);
    for (int o = 0; o < k->out.count; o++) {
        int64_t size = shape_elements(k, k->out.at[o].shape);
        for (int64_t i = 0; i < length_of(l, n) * size; i++) {
            int64_t at = ((first_of(l, n) + i / size) * l->H + head) * size + i % size;
            error_add(&e[o], x->out[o][i], element_get(w->out[o], at, w->b->elem));
        }
    }
    int64_t state = ((int64_t)n * l->H + head) * x->nstate;
    for (int64_t j = 0; j < x->nstate && l->final; j++)
        error_add(&e[k->out.count], x->args.state[j], element_get(w->s, state + j, ELEM_f32));
}

static void judge(World *w, int tensor_number, const char *who, double ratio, double limit) {
    const Kernel *k = w->token;
    const char *what = tensor_number < k->out.count ? k->out.at[tensor_number].name : "S";
    if (!(ratio <= limit))
        fail_msg("%s: %s of %s: error %g, may be %g", described(w), what, who, ratio, limit);
    w->worst = fmax(w->worst, ratio);
}

/* Each tensor as a whole, and each sequence and head alone, which may be three times as far away.
 * The outs of a few tokens may come from products that nearly cancel: they are measured by the
 * whole. */
static void compare(World *w) {
    enum { FEW = 16 };
    const Launch *l = w->l;
    int parts = l->N * l->H, tensors = w->token->out.count + 1;
    double limit = l->cu_width ? .006 : .005;
    Error *part = NEW_ARRAY(&w->arena, Error, parts * tensors);
    Error *whole = NEW_ARRAY(&w->arena, Error, tensors);
    for (int i = 0; i < parts; i++) {
        measure(w, i / l->H, i % l->H, &part[i * tensors]);
        for (int o = 0; o < tensors; o++)
            error_join(&whole[o], &part[i * tensors + o]);
    }
    for (int o = 0; o < tensors; o++) {
        judge(w, o, "all", error_ratio(&whole[o], 0), limit);
        for (int i = 0; i < parts; i++) {
            char who[64];
            double size = mean(whole[o].ref, whole[o].count);
            double least = length_of(l, i / l->H) < FEW ? size : 0;
            snprintf(who, sizeof who, "sequence %d, head %d", i / l->H, i % l->H);
            judge(w, o, who, error_ratio(&part[i * tensors + o], least), 3 * limit);
        }
    }
}

static void run_launch(World *w, const Launch *l) {
    w->l = l;
    w->worst = 0;
    arena_init(&w->arena, NULL);
    make_tensors(w);
    launch(w);
    compare(w);
    if (getenv("GDR_VERBOSE"))
        print_message("%-90s %.2g\n", described(w), w->worst);
    for (int i = 0; i < w->module.entry.count; i++)
        simt_forget(w->simt[i]);
    arena_free(&w->arena);
}

static World *world_open(const Build *b) {
    char path[512];
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, b->spec);
    w->b = b;
    w->spec = b->text ? spec_open(b->text) : spec_load(path);
    if (w->spec->d.errors)
        fail_msg("%s", messages(w->spec));
    w->seed = first_seed();
    SpecDim *dim = NEW_ARRAY(&w->spec->arena, SpecDim, 2);
    dim[0] = (SpecDim){intern_z(&w->spec->names, "K"), b->K};
    dim[1] = (SpecDim){intern_z(&w->spec->names, "V"), b->V};
    w->bind = (SpecBind){dim, 2};
    return w;
}

static void world_close(World *w) {
    close_code(w);
    spec_close(w->spec);
    free(w);
}

/* False when there is no such code. */
static inline bool run_build(const Build *b, const Launch *l, int launches) {
    World *w = world_open(b);
    bool has_code = compile(w);
    for (int i = 0; has_code && i < launches; i++)
        run_launch(w, &l[i]);
    world_close(w);
    return has_code;
}

#endif
