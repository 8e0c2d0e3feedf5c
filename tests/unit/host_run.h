/* Shared by the tests of host code: a spec compiled for this machine, tensors for it, a launch, and
 * the comparison with the fp64 meaning of the recurrence. Tensors end at a page that may not be
 * touched, so a read or write past an end stops the test; whatever nothing is written to is NaN. */
#ifndef GDR_TESTS_HOST_RUN_H
#define GDR_TESTS_HOST_RUN_H

#include "codegen/codegen.h"
#include "passes/passes.h"
#include "runtime/runtime.h"
#include "tests/unit/spec_test.h"

#include <fenv.h>
#include <sys/mman.h>
#include <unistd.h>

/* memory with an end --------------------------------------------------------------------------- */

typedef struct Guarded {
    char *map, *at;
    size_t map_size, size;
} Guarded;

static inline Guarded guarded_new(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (size + page - 1) / page * page;
    Guarded g = {.map_size = body + 2 * page, .size = size};
    g.map = mmap(NULL, g.map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(g.map != MAP_FAILED);
    if (body)
        assert_int_equal(mprotect(g.map + page, body, PROT_READ | PROT_WRITE), 0);
    g.at = g.map + page + body - size;
    memset(g.map + page, 0xff, body); /* NaN wherever nothing is written */
    return g;
}

static inline void guarded_free(Guarded *g) {
    munmap(g->map, g->map_size);
}

/* elements ------------------------------------------------------------------------------------- */

static inline double element_get(const void *p, int64_t i, Elem e) {
    uint32_t bits;
    float f;
    switch ((int)e) {
    case ELEM_f32: memcpy(&f, (const char *)p + 4 * i, 4); return f;
    case ELEM_bf16:
        bits = (uint32_t)((const uint16_t *)p)[i] << 16;
        memcpy(&f, &bits, 4);
        return f;
    default: return (double)((const _Float16 *)p)[i];
    }
}

/* Rounded by the compiler's own conversions, or by dropping bits: any rounding will do here. */
static inline void element_set(void *p, int64_t i, Elem e, double x) {
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (e == ELEM_f32)
        memcpy((char *)p + 4 * i, &f, 4);
    else if (e == ELEM_bf16)
        ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
    else
        ((_Float16 *)p)[i] = (_Float16)f;
}

/* one run -------------------------------------------------------------------------------------- */

typedef struct Case {
    const char *spec, *text; /* a file of specs/, or text */
    int K, V;
    Algo algo;
    Elem elem;
    int rows; /* of a chunk */
    int H;
    int N, T; /* dense: N sequences of T; packed: N lengths in `length` */
    const int *length;
    int cu_width;
    bool start, final; /* states given, wanted */
    double gate;       /* log-decays; NaN: random in the declared range */
    bool resets;       /* some log-decays are -1000 */
    const char *cpu;   /* NULL = this machine's */
    int opt_level;
} Case;

typedef struct Run {
    const Case *c;
    Spec *spec;
    Kernel *token; /* the meaning */
    HostCode *code;
    CgModule *module;
    Guarded in[MAX_PORTS], out[MAX_PORTS], s0, s, cu;
    int heads[MAX_PORTS];
    int64_t tokens; /* rows of the tensors */
    uint64_t seed;
} Run;

static inline int64_t length_of(const Case *c, int n) {
    return c->length ? c->length[n] : c->T;
}

static inline int64_t first_of(const Case *c, int n) {
    int64_t t = 0;
    for (int i = 0; i < n; i++)
        t += length_of(c, i);
    return t;
}

static inline void compile(Run *r) {
    const Case *c = r->c;
    const SpecDim dim[] = {{intern_z(&r->spec->names, "K"), c->K},
                           {intern_z(&r->spec->names, "V"), c->V}};
    const SpecBind bind = {dim, 2};
    Spec *s = r->spec;
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &bind, &s->d);
    if (!k)
        fail_msg("%s", messages(r->spec));
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : c->elem;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = c->elem;
    r->token = kernel_clone(k);
    if (c->algo == ALGO_chunk) {
        passes_run(k, "lattice", NULL);
        if (!k->facts.chunkable)
            fail_msg("%s has no chunk form: %s", k->name, k->facts.why_not);
        kernel_set_chunk(k, c->rows);
        passes_run_after(k, "lattice", NULL, NULL);
        assert_int_equal(k->level, LEVEL_tile);
    }
    const CgOptions opt = {
        .target = "host", .cpu = c->cpu, .algo = c->algo, .io = c->elem, .opt_level = c->opt_level};
    const char *why = NULL;
    char text[256];
    r->module = codegen_host(&r->spec->arena, k, &opt, &why);
    if (!r->module)
        fail_msg("%s: %s", k->name, why);
    r->code = hostjit_load(r->module->object, r->module->object_len, text, sizeof text);
    if (!r->code)
        fail_msg("%s", text);
}

/* Vectors without a range are short, so that specs without normalisation stay bounded. */
static inline double draw(Run *r, const Port *p) {
    bool log_decay = p->hi == 0 && !(p->lo > -INFINITY);
    if (log_decay && r->c->resets && random_unit(&r->seed) < 0.1)
        return -1000;
    if (log_decay && !isnan(r->c->gate))
        return r->c->gate;
    double x = random_input(p, &r->seed);
    bool open = isinf(p->lo) && isinf(p->hi);
    return open && shape_has(p->shape, AXIS_K) ? x * 1.7 / sqrt(r->c->K) : x;
}

static inline void make_tensors(Run *r) {
    const Case *c = r->c;
    const Kernel *k = r->token;
    r->tokens = first_of(c, c->N);
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        /* Every third input is shared by groups of heads. */
        r->heads[i] = i % 3 == 0 && c->H % 2 == 0 ? c->H / 2 : c->H;
        int64_t n = shape_elements(k, p->shape) * r->heads[i] * (p->is_param ? 1 : r->tokens);
        r->in[i] = guarded_new((size_t)(n * elem_size(p->elem)));
        for (int64_t j = 0; j < n; j++)
            element_set(r->in[i].at, j, p->elem, draw(r, p));
    }
    for (int o = 0; o < k->out.count; o++) {
        int64_t n = shape_elements(k, k->out.at[o].shape) * c->H * r->tokens;
        r->out[o] = guarded_new((size_t)(n * elem_size(c->elem)));
    }
    int64_t states = (int64_t)c->N * c->H * c->K * c->V;
    r->s0 = guarded_new((size_t)(4 * states));
    r->s = guarded_new((size_t)(4 * states));
    for (int64_t j = 0; j < states; j++)
        element_set(r->s0.at, j, ELEM_f32, c->start ? 2 * random_unit(&r->seed) - 1 : 0);
    r->cu = guarded_new((size_t)((c->N + 1) * c->cu_width));
    for (int n = 0; n <= c->N && c->cu_width; n++) {
        int64_t wide = first_of(c, n);
        int32_t narrow = (int32_t)wide;
        memcpy(r->cu.at + n * c->cu_width, c->cu_width == 8 ? (void *)&wide : (void *)&narrow,
               (size_t)c->cu_width);
    }
}

static inline void launch(Run *r) {
    const Case *c = r->c;
    const Kernel *k = r->token;
    int64_t frame[FRAME_PORTS + 3 * MAX_PORTS] = {0};
    frame[FRAME_T] = c->length ? r->tokens : c->T;
    frame[FRAME_N] = c->N;
    frame[FRAME_H] = c->H;
    frame[FRAME_CU] = c->length ? (int64_t)(intptr_t)r->cu.at : 0;
    frame[FRAME_CU_WIDTH] = c->cu_width;
    frame[FRAME_S0] = c->start ? (int64_t)(intptr_t)r->s0.at : 0;
    frame[FRAME_S] = c->final ? (int64_t)(intptr_t)r->s.at : 0;
    for (int i = 0; i < k->in.count; i++) {
        frame[frame_in_ptr(k, i)] = (int64_t)(intptr_t)r->in[i].at;
        frame[frame_in_heads(k, i)] = r->heads[i];
    }
    for (int o = 0; o < k->out.count; o++)
        frame[frame_out_ptr(k, o)] = (int64_t)(intptr_t)r->out[o].at;
    const CgEntry *e = &r->module->entry.at[0];
    assert_int_equal(e->kind, ENTRY_host);
    HostEntry *f = hostjit_symbol(r->code, e->symbol);
    assert_non_null(f);
    /* Scratch holds NaN before and is guarded as well. */
    Guarded scratch = guarded_new((size_t)((e->scratch_bytes + 63) / 64 * 64));
    fenv_t before, after;
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    feclearexcept(FE_ALL_EXCEPT);
    fegetenv(&before);
    f(frame, 0, 1, scratch.at);
    f(frame, 1, (int64_t)c->N * c->H, scratch.at);
    feclearexcept(FE_ALL_EXCEPT);
    fegetenv(&after); /* the caller's rounding and treatment of denormals */
    assert_memory_equal(&before, &after, sizeof before);
    guarded_free(&scratch);
}

typedef struct Error {
    double diff, ref, most;
} Error;

static inline void add_error(Error *e, double want, double got) {
    if (!isfinite(got))
        fail_msg("got %g for %g", got, want);
    e->diff += (want - got) * (want - got);
    e->ref += want * want;
    e->most = fmax(e->most, fabs(want - got));
}

static inline double error_ratio(const Error *e) {
    return e->most <= 1e-6 ? 0 : sqrt(e->diff) / (sqrt(e->ref) + 1e-8);
}

/* One sequence and head in fp64 against what was computed. */
static inline double compare(Run *r, int n, int head) {
    const Case *c = r->c;
    const Kernel *k = r->token;
    int64_t T = length_of(c, n), first = first_of(c, n);
    Arena a;
    arena_init(&a, NULL);
    Data *x = data_new(&a, k, T, 1);
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t size = shape_elements(k, p->shape), own = head * r->heads[i] / c->H;
        for (int64_t t = 0; t < (p->is_param ? 1 : T); t++)
            for (int64_t j = 0; j < size; j++) {
                int64_t row = (p->is_param ? 0 : first + t) * r->heads[i] + own;
                x->in[i][t * size + j] = element_get(r->in[i].at, row * size + j, p->elem);
            }
    }
    int64_t state = ((int64_t)n * c->H + head) * c->K * c->V;
    for (int64_t j = 0; j < x->nstate; j++)
        x->args.state[j] = element_get(r->s0.at, state + j, ELEM_f32);
    kernel_eval(k, &a, &x->args);
    double worst = 0;
    for (int o = 0; o < k->out.count; o++) {
        Error e = {0};
        int64_t size = shape_elements(k, k->out.at[o].shape);
        for (int64_t t = 0; t < T; t++)
            for (int64_t j = 0; j < size; j++) {
                int64_t at = ((first + t) * c->H + head) * size + j;
                add_error(&e, x->out[o][t * size + j], element_get(r->out[o].at, at, c->elem));
            }
        worst = fmax(worst, error_ratio(&e));
    }
    Error e = {0};
    for (int64_t j = 0; j < x->nstate && c->final; j++)
        add_error(&e, x->args.state[j], element_get(r->s.at, state + j, ELEM_f32));
    arena_free(&a);
    return fmax(worst, error_ratio(&e));
}

static inline void open_run(Run *r, const Case *c) {
    char path[512];
    *r = (Run){.c = c, .seed = 12345};
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, c->spec ? c->spec : "");
    r->spec = c->text ? spec_open(c->text) : spec_load(path);
    if (r->spec->d.errors)
        fail_msg("%s", messages(r->spec));
    compile(r);
    make_tensors(r);
}

static inline void close_run(Run *r) {
    for (int i = 0; i < MAX_PORTS; i++) {
        if (r->in[i].map)
            guarded_free(&r->in[i]);
        if (r->out[i].map)
            guarded_free(&r->out[i]);
    }
    guarded_free(&r->s0);
    guarded_free(&r->s);
    guarded_free(&r->cu);
    hostjit_free(r->code);
    spec_close(r->spec);
}

static inline void run_case(const Case *c) {
    static const double limit[] = {[ELEM_f32] = 1e-5, [ELEM_bf16] = 3e-3, [ELEM_f16] = 5e-4};
    Run r;
    open_run(&r, c);
    launch(&r);
    for (int n = 0; n < c->N; n++)
        for (int head = 0; head < c->H; head++) {
            double e = compare(&r, n, head);
            if (!(e <= limit[c->elem]))
                fail_msg("%s K=%d V=%d %s %s rows=%d, sequence %d of %d tokens, head %d: error %g",
                         c->text ? c->text : c->spec, c->K, c->V,
                         c->algo == ALGO_chunk ? "chunk" : "recurrent", elem_name(c->elem), c->rows,
                         n, (int)length_of(c, n), head, e);
        }
    close_run(&r);
}

/* cases ---------------------------------------------------------------------------------------- */

static const Case usual = {.K = 32,
                           .V = 48,
                           .rows = 64,
                           .H = 2,
                           .N = 1,
                           .T = 150,
                           .start = true,
                           .final = true,
                           .gate = NAN,
                           .opt_level = 2};

static inline bool wanted(const char *spec) {
    const char *only = getenv("GDR_SPEC");
    return !only || strcmp(only, spec) == 0;
}

static const char *const families[] = {
    "gdn2", "gated_deltanet", "gla", "deltanet", "gated_deltaproduct", "rwkv7", "retnet"};
enum { FAMILIES = sizeof families / sizeof families[0] };

#endif
