/* Shared by the tests of the GPU's gradient kernels: a spec's gradient kernel compiled entry by entry
 * for the interpreter (tests/simt), its tensors, and launches segment by segment.
 *
 * Tensors are NaN wherever nothing is written. Every third input is shared by several heads; its gradient
 * goes through parts and the sums entry, as do those of params, unless the grad kernel takes all of these
 * heads as one group. */
#ifndef GDR_TESTS_GRAD_RUN_H
#define GDR_TESTS_GRAD_RUN_H

#include "codegen/nvptx/gradient.h"
#include "passes/passes.h"
#include "tests/simt/number.h"
#include "tests/simt/simt.h"
#include "tests/unit/spec_test.h"

enum { GRAD_SEQUENCES = 6, GRAD_ENTRIES = 24, GRAD_FRAME = FRAME_PORTS + 6 * MAX_PORTS + 64 };

typedef struct GradCase {
    const char *spec, *text;   /* the text, or the spec of that name */
    int K, V, rows;            /* of a chunk, at most */
    Elem elem;
    const char *target;
    int H, N, T;               /* T tokens each, or */
    int length[GRAD_SEQUENCES];/* packed: their lengths */
    int cu_width;              /* 0: dense */
    bool start, final;         /* states given and gradients of final ones */
    int segment;               /* chunk slots of a launch; 0: all */
    int blocks;                /* of the grad and sums entries; 0: one a task */
    double gate;               /* log-decays; 0: random in the declared range */
    double resets;             /* that part of the log-decays is -1000 */
    bool growth;               /* vectors along K without a range take turns at two directions under which
                                  the state grows by more than half a token, and nothing decays */
    int unwanted;              /* bit o: gradient o has no address */
    int v_tile;                /* V columns of a block; 0: the target's choice */
    bool by_token;             /* the gradient of the recurrence, not of its chunk form */
    int share;                 /* heads that share every third input; 0: two */
    int group;                 /* of them, that a block of the grad entry takes together; 0: one */
} GradCase;

typedef struct GradRun {
    const GradCase *c;
    Spec *spec;
    SpecDim dim[2];
    SpecBind bind;
    Kernel *token, *code;      /* the recurrence; its gradient at tile level */
    CgModule module;
    Cg *cg[GRAD_ENTRIES];
    Simt *simt[GRAD_ENTRIES];
    uint64_t seed;
    Arena arena;
    void *in[MAX_PORTS], *part[MAX_PORTS], *sum[MAX_PORTS]; /* part: the output where nothing is summed */
    int heads[MAX_PORTS];      /* of inputs, and of their gradients */
    void *s0, *ds, *ds0, *cu, *ws, *scratch, *ahead, *hand[4];
    int64_t tokens, slots, segment, blocks;
} GradRun;

/* elements ------------------------------------------------------------------------------------- */

static inline NumberKind grad_kind(Elem e) { return e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16; }

static inline double grad_get(const void *p, int64_t i, Elem e) {
    return e == ELEM_f32 ? ((const float *)p)[i]
                         : number_get(grad_kind(e), ((const uint16_t *)p)[i]);
}

static inline void grad_set(void *p, int64_t i, Elem e, double x) {
    if (e == ELEM_f32)
        ((float *)p)[i] = (float)x;
    else
        ((uint16_t *)p)[i] = (uint16_t)number_put(grad_kind(e), (float)x);
}

/* compiling ------------------------------------------------------------------------------------ */

/* False when the spec has no chunk form. */
static inline bool grad_open(GradRun *r, const GradCase *c) {
    char path[512];
    *r = (GradRun){.c = c, .seed = 20250101};
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, c->spec ? c->spec : "");
    Spec *s = r->spec = c->text ? spec_open(c->text) : spec_load(path);
    if (s->d.errors)
        fail_msg("%s", messages(s));
    r->dim[0] = (SpecDim){"K", c->K};
    r->dim[1] = (SpecDim){"V", c->V};
    r->bind = (SpecBind){r->dim, 2};
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &r->bind, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : c->elem;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = c->elem;
    r->token = kernel_clone(k);
    passes_run(k, "normal", NULL);
    arena_init(&r->arena, NULL);
    if (c->by_token) {
        r->code = kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0));
        return true;
    }
    if (!k->facts.chunkable) {
        arena_free(&r->arena);
        spec_close(s);
        return false;
    }
    kernel_set_chunk(k, c->rows);
    passes_run_after(k, "normal", "peel", NULL);
    r->code = kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0));
    passes_run_after(r->code, "collapse", NULL, NULL);
    r->module.chunk = r->code->axis.at[AXIS_C].size;
    return true;
}

typedef bool GradBuild(Cg *, CgModule *, const char **);

/* One entry in an LLVM module of its own, optimised as it would be; NULL or why not. With `scan` it is
 * number `which` of those, before the others or behind the grad entry. */
static inline const char *grad_add_entry(GradRun *r, GradBuild *build, const Scan *scan, bool back,
                                         int which) {
    const char *why = NULL;
    CgOptions *opt = NEW(&r->spec->arena, CgOptions);
    *opt = (CgOptions){.target = r->c->target, .algo = r->c->by_token ? ALGO_recurrent : ALGO_chunk, .io = r->c->elem,
                       .opt_level = 2, .v_tile = r->c->v_tile};
    Cg *cg = cg_open(&r->spec->arena, r->code, opt, &why);
    if (!cg)
        return why;
    int n = r->module.entry.count;
    assert_true(n < GRAD_ENTRIES);
    r->cg[n] = cg;
    if (scan)
        scan_build(cg, scan, back, which, &r->module);
    else if (!build(cg, &r->module, &why))
        return why;
    if (!cg_optimize(cg, &why))
        return why;
    r->simt[n] = simt_open(&r->spec->arena, cg->mod, r->module.entry.at[n].symbol, &why);
    return r->simt[n] ? NULL : why;
}

static inline const char *grad_add(GradRun *r, GradBuild *build) {
    return grad_add_entry(r, build, NULL, false, 0);
}

/* What makes values ahead; with `back`, what goes back from the sequences' ends. */
static inline const char *grad_add_scans(GradRun *r, bool back) {
    Gradient g;
    const char *why = NULL;
    if (!nv_gradient(&r->spec->arena, r->code, &g, &why))
        return why;
    for (int i = 0; !why && i < scan_entries(r->code, g.s.scan, back); i++)
        why = grad_add_entry(r, NULL, g.s.scan, back, i);
    return !why && back && g.s.scan->late ? grad_add(r, nv_build_late) : why;
}

static inline void grad_close(GradRun *r) {
    for (int i = 0; i < GRAD_ENTRIES; i++)
        if (r->cg[i])
            cg_close(r->cg[i]);
    arena_free(&r->arena);
    spec_close(r->spec);
}

/* tensors -------------------------------------------------------------------------------------- */

static inline int64_t grad_length(const GradCase *c, int n) {
    return c->cu_width ? c->length[n] : c->T;
}

static inline int64_t grad_first(const GradCase *c, int n) {
    int64_t t = 0;
    for (int i = 0; i < n; i++)
        t += grad_length(c, i);
    return t;
}

/* The first chunk slot of sequence n. */
static inline int64_t grad_first_slot(const GradRun *r, int n) {
    int64_t C = r->module.chunk;
    return r->c->cu_width ? grad_first(r->c, n) / C + n : n * ((r->c->T + C - 1) / C);
}

static inline void *grad_memory(GradRun *r, int64_t bytes, bool writable) {
    char *p = arena_alloc(&r->arena, (size_t)bytes + 1040);
    p += (1024 - (uintptr_t)p % 1024) % 1024;
    memset(p, 0xff, (size_t)bytes);
    for (int i = 0; i < r->module.entry.count; i++)
        simt_memory(r->simt[i], p, (size_t)bytes, writable);
    return p;
}

/* Vectors without a range are short, so that specs without normalisation stay bounded. */
static inline double grad_draw(GradRun *r, const Port *p) {
    bool log_decay = p->hi == 0 && !(p->lo > -INFINITY);
    if (log_decay && random_unit(&r->seed) < r->c->resets)
        return -1000;
    if (log_decay && r->c->gate != 0)
        return r->c->gate;
    double x = random_input(p, &r->seed);
    bool open = isinf(p->lo) && isinf(p->hi);
    return open && shape_has(p->shape, AXIS_K) ? x * 1.7 / sqrt(r->c->K) : x;
}

/* Element e of a vector along K at token t. */
static inline double grad_growing(int64_t t, int64_t e) {
    static const double pair[2] = {0.9128709291752769, -0.408248290463863};
    return e < 2 ? pair[(t + e) % 2] : 0;
}

static inline void grad_inputs(GradRun *r) {
    const GradCase *c = r->c;
    const Kernel *k = r->code;
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int share = c->share ? c->share : 2;
        r->heads[i] = i % 3 == 0 && i < r->token->in.count && c->H % share == 0 ? c->H / share : c->H;
        int64_t n = shape_elements(k, p->shape) * r->heads[i] * (p->is_param ? 1 : r->tokens);
        r->in[i] = grad_memory(r, n * elem_size(p->elem), false);
        bool grows = c->growth && isinf(p->lo) && isinf(p->hi) && shape_has(p->shape, AXIS_K);
        for (int64_t j = 0; j < n; j++)
            grad_set(r->in[i], j, p->elem, grows ? grad_growing(j / c->K / r->heads[i], j % c->K)
                                                 : grad_draw(r, p));
    }
}

/* Heads of gradient o as the grad entry leaves it. */
static inline int grad_out_heads(const GradRun *r, int o) {
    int group = r->c->group ? r->c->group : 1;
    return r->code->out.at[o].is_param || r->heads[o] == r->c->H ? r->c->H : r->c->H / group;
}

static inline bool grad_summed(const GradRun *r, int o) {
    return r->code->out.at[o].is_param || r->heads[o] != grad_out_heads(r, o);
}

static inline bool grad_wanted(const GradRun *r, int o) { return !(r->c->unwanted >> o & 1); }

/* Parts of params are zero where a slot has no chunk. */
static inline void grad_outputs(GradRun *r) {
    const Kernel *k = r->code;
    assert_int_equal(k->out.count, r->token->in.count);
    for (int o = 0; o < k->out.count; o++) {
        const Port *p = &k->out.at[o];
        int64_t size = shape_elements(k, p->shape) * elem_size(p->elem);
        int64_t rows = p->is_param ? r->slots : r->tokens;
        r->part[o] = grad_memory(r, size * r->c->H * rows, true);
        if (p->is_param)
            memset(r->part[o], 0, (size_t)(size * r->c->H * rows));
        r->sum[o] = grad_memory(r, size * r->heads[o] * (p->is_param ? 1 : rows), true);
    }
}

static inline void grad_states(GradRun *r) {
    const GradCase *c = r->c;
    int64_t states = (int64_t)c->N * c->H * c->K * c->V;
    r->s0 = grad_memory(r, 4 * states, false);
    r->ds = grad_memory(r, 4 * states, false);
    r->ds0 = grad_memory(r, 4 * states, true);
    for (int i = 0; i < 4; i++)
        r->hand[i] = grad_memory(r, 4 * (states / c->N + (int64_t)c->H * c->V), true);
    for (int64_t j = 0; j < states; j++) {
        ((float *)r->s0)[j] = c->start ? (float)(2 * random_unit(&r->seed) - 1) : 0;
        ((float *)r->ds)[j] = c->final ? (float)(2 * random_unit(&r->seed) - 1) : 0;
    }
}

static inline const CgEntry *grad_entry(const GradRun *r, EntryKind kind) {
    for (int i = 0; i < r->module.entry.count; i++)
        if (r->module.entry.at[i].kind == kind)
            return &r->module.entry.at[i];
    return NULL;
}

static inline int64_t grad_stretches(const GradRun *r) {
    const GradCase *c = r->c;
    return frame_slots(c->cu_width ? r->tokens : c->T, c->N, c->cu_width > 0, SCAN_TOKENS);
}

static inline void grad_tensors(GradRun *r) {
    const GradCase *c = r->c;
    r->tokens = grad_first(c, c->N);
    r->slots = frame_slots(c->cu_width ? r->tokens : c->T, c->N, c->cu_width > 0, r->module.chunk);
    r->segment = c->segment && !grad_entry(r, ENTRY_late) ? c->segment : r->slots;
    r->blocks = c->blocks ? c->blocks : r->segment * c->H;
    grad_inputs(r);
    grad_outputs(r);
    grad_states(r);
    r->cu = grad_memory(r, (c->N + 1) * 8, false);
    for (int n = 0; n <= c->N; n++)
        if (c->cu_width == 8)
            ((int64_t *)r->cu)[n] = grad_first(c, n);
        else
            ((int32_t *)r->cu)[n] = (int32_t)grad_first(c, n);
    r->ws = grad_memory(r, r->segment * c->H * r->module.ws_bytes_per_slot_head, true);
    int64_t rows = r->tokens * c->H * r->module.scan_token_bytes + 255;
    int64_t carry = grad_stretches(r) * c->H * r->module.scan_carry_bytes;
    r->ahead = grad_memory(r, rows / 256 * 256 + carry, true);
    const CgEntry *grad = grad_entry(r, ENTRY_grad);
    r->scratch = grad_memory(r, r->blocks * (grad ? grad->scratch_bytes : 0), true);
}

/* launching ------------------------------------------------------------------------------------ */

static inline int64_t grad_address(const void *p) { return (int64_t)(intptr_t)p; }

static inline void grad_frame(GradRun *r, int64_t *f, int64_t slot) {
    const GradCase *c = r->c;
    const Kernel *k = r->code;
    assert_true(frame_fields(k) <= GRAD_FRAME);
    f[FRAME_T] = c->cu_width ? r->tokens : c->T;
    f[FRAME_N] = c->N;
    f[FRAME_H] = f[FRAME_HF] = c->H;
    f[FRAME_CU] = c->cu_width ? grad_address(r->cu) : 0;
    f[FRAME_CU_WIDTH] = c->cu_width;
    f[FRAME_S0] = c->start ? grad_address(r->s0) : 0;
    f[FRAME_WS] = grad_address(r->ws);
    f[FRAME_SLOTS] = r->slots;
    for (int i = 0; i < k->in.count; i++) {
        f[frame_in_ptr(k, i)] = grad_address(r->in[i]);
        f[frame_in_heads(k, i)] = r->heads[i];
    }
    for (int o = 0; o < k->out.count; o++) {
        f[frame_out_ptr(k, o)] = grad_wanted(r, o) ? grad_address(r->part[o]) : 0;
        f[frame_sum(k, o)] = grad_wanted(r, o) && grad_summed(r, o) ? grad_address(r->sum[o]) : 0;
        f[frame_sum_heads(k, o)] = r->heads[o];
        f[frame_out_heads(k, o)] = grad_out_heads(r, o);
    }
    f[frame_costate(k)] = c->final ? grad_address(r->ds) : 0;
    f[frame_costate(k) + 1] = c->start ? grad_address(r->ds0) : 0;
    f[frame_gradient(k, GRAD_SLOT)] = slot;
    f[frame_gradient(k, GRAD_SLOTS)] = slot + r->segment < r->slots ? r->segment : r->slots - slot;
    f[frame_gradient(k, GRAD_SCRATCH)] = grad_address(r->scratch);
    f[frame_gradient(k, GRAD_AHEAD)] = grad_address(r->ahead);
    f[frame_gradient(k, GRAD_GROUP)] = c->group ? c->group : 1;
}

static inline const char *grad_described(GradRun *r) {
    const GradCase *c = r->c;
    Buf t;
    buf_init(&t, &r->arena);
    buf_printf(&t, "%s K=%d V=%d rows=%d %s %s H=%d segment=%d", c->text ? c->text : c->spec, c->K,
               c->V, c->rows, elem_name(c->elem), c->target, c->H, (int)r->segment);
    if (c->group)
        buf_printf(&t, " %d of %d heads together", c->group, c->share ? c->share : 2);
    for (int n = 0; n < c->N; n++)
        buf_printf(&t, "%s%d", n ? "," : c->cu_width ? " packed " : " dense ",
                   (int)grad_length(c, n));
    buf_printf(&t, "%s%s", c->start ? " S0" : "", c->final ? " dS" : "");
    return t.text;
}

static inline void grad_launch_entry(GradRun *r, const CgEntry *e, const int64_t *frame, int64_t blocks) {
    const char *why = NULL;
    assert_non_null(e);
    if (!simt_launch(r->simt[e - r->module.entry.at], frame, frame_fields(r->code), blocks,
                     e->threads, e->smem_bytes, &why))
        fail_msg("%s: %s: %s", grad_described(r), e->symbol, why);
}

static inline void grad_launch(GradRun *r, EntryKind kind, const int64_t *frame, int64_t blocks) {
    grad_launch_entry(r, grad_entry(r, kind), frame, blocks);
}

/* The scans before the factor entry, or those behind the grad entry and what they are for. */
static inline void grad_launch_scans(GradRun *r, const int64_t *frame, bool back) {
    const CgEntry *first = r->module.entry.at, *end = first + r->module.entry.count;
    const CgEntry *grad = grad_entry(r, ENTRY_grad);
    for (const CgEntry *e = first; e < end; e++) {
        bool scan = e->kind == ENTRY_scan, carry = e->kind == ENTRY_carry;
        if ((scan || carry) && (e > grad) == back)
            grad_launch_entry(r, e, frame, (scan ? grad_stretches(r) : r->c->N) * r->c->H);
    }
    if (back && grad_entry(r, ENTRY_late))
        grad_launch(r, ENTRY_late, frame, r->blocks);
}

/* comparing ------------------------------------------------------------------------------------ */

typedef struct GradError { double diff, ref, most; int64_t count; } GradError;

static inline void grad_error_add(GradError *e, double want, double got) {
    e->diff += (want - got) * (want - got);
    e->ref += want * want;
    e->most = fmax(e->most, fabs(want - got));
    e->count++;
}

/* Of root mean squares; infinite if anything was not a number. */
static inline double grad_error(const GradError *e) {
    if (!isfinite(e->diff))
        return INFINITY;
    return e->most <= 1e-6 || !e->count ? 0 : sqrt(e->diff / (e->ref + 1e-30));
}

static inline bool grad_spec_wanted(const char *spec) {
    const char *only = getenv("GDR_SPEC");
    return !only || strcmp(only, spec) == 0;
}

/* Bytes of gradient o, where it ends up. */
static inline size_t grad_out_bytes(const GradRun *r, int o) {
    const Port *p = &r->code->out.at[o];
    int64_t rows = p->is_param ? 1 : r->tokens;
    return (size_t)(shape_elements(r->code, p->shape) * elem_size(p->elem) * rows * r->heads[o]);
}

/* Where it is. */
static inline const void *grad_out(const GradRun *r, int o) {
    return grad_summed(r, o) ? r->sum[o] : r->part[o];
}

#endif
