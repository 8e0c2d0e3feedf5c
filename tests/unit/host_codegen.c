/* The host's machine code against the fp64 meaning of the same recurrence: every spec, both
 * algorithms, element types, head groups, packed and dense batches, chunks and dims that do not
 * divide anything. Tensors end at a page that may not be touched, so a read or write past an end
 * stops the test. */
#include "codegen/codegen.h"
#include "passes/passes.h"
#include "runtime/runtime.h"
#include "tests/unit/spec_test.h"

#include <dirent.h>
#include <sys/mman.h>
#include <unistd.h>

/* memory with an end ----------------------------------------------------------------------------- */

typedef struct Guarded { char *map, *at; size_t map_size, size; } Guarded;

static Guarded guarded_new(size_t size)
{
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

static void guarded_free(Guarded *g) { munmap(g->map, g->map_size); }

/* elements ----------------------------------------------------------------------------------------- */

static double element_get(const void *p, int64_t i, Elem e)
{
    uint32_t bits;
    float f;
    switch ((int)e) {
    case ELEM_f32:
        memcpy(&f, (const char *)p + 4 * i, 4);
        return f;
    case ELEM_bf16:
        bits = (uint32_t)((const uint16_t *)p)[i] << 16;
        memcpy(&f, &bits, 4);
        return f;
    default:
        return (double)((const _Float16 *)p)[i];
    }
}

/* Rounded by the compiler's own conversions, or by dropping bits: any rounding will do here. */
static void element_set(void *p, int64_t i, Elem e, double x)
{
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

/* one run ------------------------------------------------------------------------------------------ */

typedef struct Case {
    const char *spec, *text;    /* a file of specs/, or text */
    int K, V;
    Algo algo;
    Elem elem;
    int rows;                   /* of a chunk */
    int H;
    int N, T;                   /* dense: N sequences of T; packed: N lengths in `length` */
    const int *length;
    int cu_width;
    bool start, final;          /* states given, wanted */
    double gate;                /* log-decays; NaN: random in the declared range */
    bool resets;                /* some log-decays are -1000 */
    const char *cpu;            /* NULL = this machine's */
    int opt_level;
} Case;

typedef struct Run {
    const Case *c;
    Spec *spec;
    Kernel *token;              /* the meaning */
    HostCode *code;
    CgModule *module;
    Guarded in[MAX_PORTS], out[MAX_PORTS], s0, s, cu;
    int heads[MAX_PORTS];
    int64_t tokens;             /* rows of the tensors */
    uint64_t seed;
} Run;

static int64_t length_of(const Case *c, int n) { return c->length ? c->length[n] : c->T; }

static int64_t first_of(const Case *c, int n)
{
    int64_t t = 0;
    for (int i = 0; i < n; i++)
        t += length_of(c, i);
    return t;
}

static void compile(Run *r)
{
    const Case *c = r->c;
    const SpecDim dim[] = {{intern_z(&r->spec->names, "K"), c->K},
                           {intern_z(&r->spec->names, "V"), c->V}};
    const SpecBind bind = {dim, 2};
    Kernel *k = spec_lower(&r->spec->arena, &r->spec->names, r->spec->file, NULL, &bind, &r->spec->d);
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
    const CgOptions opt = {.target = "host", .cpu = c->cpu, .algo = c->algo, .io = c->elem,
                           .opt_level = c->opt_level};
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
static double draw(Run *r, const Port *p)
{
    bool log_decay = p->hi == 0 && !(p->lo > -INFINITY);
    if (log_decay && r->c->resets && random_unit(&r->seed) < 0.1)
        return -1000;
    if (log_decay && !isnan(r->c->gate))
        return r->c->gate;
    double x = random_input(p, &r->seed);
    bool open = isinf(p->lo) && isinf(p->hi);
    return open && shape_has(p->shape, AXIS_K) ? x * 1.7 / sqrt(r->c->K) : x;
}

static void make_tensors(Run *r)
{
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

static void launch(Run *r)
{
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
    f(frame, 0, 1, scratch.at);
    f(frame, 1, (int64_t)c->N * c->H, scratch.at);
    guarded_free(&scratch);
}

typedef struct Error { double diff, ref, most; } Error;

static void add_error(Error *e, double want, double got)
{
    if (!isfinite(got))
        fail_msg("got %g for %g", got, want);
    e->diff += (want - got) * (want - got);
    e->ref += want * want;
    e->most = fmax(e->most, fabs(want - got));
}

static double error_ratio(const Error *e)
{
    return e->most <= 1e-6 ? 0 : sqrt(e->diff) / (sqrt(e->ref) + 1e-8);
}

/* One sequence and head in fp64 against what was computed. */
static double compare(Run *r, int n, int head)
{
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
            for (int64_t j = 0; j < size; j++)
                add_error(&e, x->out[o][t * size + j],
                          element_get(r->out[o].at, ((first + t) * c->H + head) * size + j, c->elem));
        worst = fmax(worst, error_ratio(&e));
    }
    Error e = {0};
    for (int64_t j = 0; j < x->nstate && c->final; j++)
        add_error(&e, x->args.state[j], element_get(r->s.at, state + j, ELEM_f32));
    arena_free(&a);
    return fmax(worst, error_ratio(&e));
}

static void open_run(Run *r, const Case *c)
{
    char path[512];
    *r = (Run){.c = c, .seed = 12345};
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, c->spec ? c->spec : "");
    r->spec = c->text ? spec_open(c->text) : spec_load(path);
    if (r->spec->d.errors)
        fail_msg("%s", messages(r->spec));
    compile(r);
    make_tensors(r);
}

static void close_run(Run *r)
{
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

static void run_case(const Case *c)
{
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

/* cases -------------------------------------------------------------------------------------------- */

static const Case usual = {.K = 32, .V = 48, .rows = 64, .H = 2, .N = 1, .T = 150, .start = true,
                           .final = true, .gate = NAN, .opt_level = 2};

static bool wanted(const char *spec)
{
    const char *only = getenv("GDR_SPEC");
    return !only || strcmp(only, spec) == 0;
}

static void each_spec(void (*run)(const char *spec))
{
    DIR *d = opendir(GDR_SPECS_DIR);
    assert_non_null(d);
    int count = 0;
    for (struct dirent *e; (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        char spec[256];
        if (n < 5 || n >= sizeof spec || strcmp(e->d_name + n - 4, ".gdr") != 0)
            continue;
        snprintf(spec, sizeof spec, "%.*s", (int)n - 4, e->d_name);
        if (wanted(spec)) {
            run(spec);
            count++;
        }
    }
    closedir(d);
    assert_true(count > 0);
}

static void spec_recurrent(const char *spec)
{
    Case c = usual;
    c.spec = spec;
    c.algo = ALGO_recurrent;
    c.T = 40;
    run_case(&c);
}

static void spec_chunk(const char *spec)
{
    Case c = usual;
    c.spec = spec;
    c.algo = ALGO_chunk;
    run_case(&c);
}

static void test_specs_recurrent(void **state)
{
    (void)state;
    each_spec(spec_recurrent);
}

static void test_specs_chunk(void **state)
{
    (void)state;
    each_spec(spec_chunk);
}

static const char *const families[] = {"gdn2", "gated_deltanet", "gla", "deltanet",
                                       "gated_deltaproduct", "rwkv7", "retnet"};
enum { FAMILIES = sizeof families / sizeof families[0] };

/* Dims that no vector divides, K != V. */
static void test_dims(void **state)
{
    (void)state;
    static const int dims[][2] = {{1, 1}, {7, 130}, {60, 100}, {100, 17}, {128, 64}, {33, 256}};
    for (int f = 0; f < FAMILIES; f++)
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
            for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
                Case c = usual;
                c.spec = families[f], c.K = dims[d][0], c.V = dims[d][1], c.algo = algo;
                c.T = 70, c.H = 1;
                if (wanted(c.spec))
                    run_case(&c);
            }
}

static void test_chunks(void **state)
{
    (void)state;
    static const int rows[] = {1, 2, 15, 16, 17, 32, 64, 96, 128};
    for (int f = 0; f < FAMILIES; f++)
        for (size_t n = 0; n < sizeof rows / sizeof rows[0]; n++) {
            Case c = usual;
            c.spec = families[f], c.algo = ALGO_chunk, c.rows = rows[n], c.T = 129, c.H = 1;
            if (wanted(c.spec))
                run_case(&c);
        }
}

static void test_packed(void **state)
{
    (void)state;
    static const int length[] = {0, 1, 64, 0, 63, 65, 2, 130, 0};
    for (int f = 0; f < FAMILIES; f++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++)
            for (int width = 4; width <= 8; width += 4) {
                Case c = usual;
                c.spec = families[f], c.algo = algo, c.length = length, c.N = 9;
                c.cu_width = width, c.start = width == 8, c.final = true, c.K = 20, c.V = 24;
                if (wanted(c.spec))
                    run_case(&c);
            }
}

static void test_types(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++)
            for (Elem e = ELEM_bf16; e <= ELEM_f16; e++) {
                Case c = usual;
                c.spec = families[f], c.algo = algo, c.elem = e, c.K = 36, c.V = 40, c.T = 90;
                c.N = 2, c.start = e == ELEM_f16, c.final = e == ELEM_bf16;
                if (wanted(c.spec))
                    run_case(&c);
            }
}

static void test_gates(void **state)
{
    (void)state;
    static const double gate[] = {0, -1e-6, -0.5, -20, -1000};
    for (int f = 0; f < 3; f++)
        for (size_t n = 0; n < 2 * sizeof gate / sizeof gate[0]; n++) {
            Case c = usual;
            c.spec = families[f], c.algo = ALGO_chunk, c.T = 200, c.H = 1;
            c.gate = gate[n / 2], c.resets = n % 2;
            if (wanted(c.spec))
                run_case(&c);
        }
}

/* Other vector lengths, and code for machines without fma or half-precision instructions. */
static void test_machines(void **state)
{
    (void)state;
#ifdef __x86_64__
    static const char *const cpu[] = {"x86-64", "x86-64-v2", "x86-64-v3"};
    for (int f = 0; f < FAMILIES; f++)
        for (size_t n = 0; n < sizeof cpu / sizeof cpu[0]; n++)
            for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
                Case c = usual;
                c.spec = families[f], c.cpu = cpu[n], c.algo = algo, c.K = 37, c.V = 42, c.T = 90;
                c.elem = (Elem)((f + n) % 3), c.H = 1;
                if (wanted(c.spec))
                    run_case(&c);
            }
#else
    skip();
#endif
}

static void test_levels(void **state)
{
    (void)state;
    for (int level = 0; level <= 3; level++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
            Case c = usual;
            c.spec = "gdn2", c.opt_level = level, c.algo = algo, c.H = 1;
            run_case(&c);
        }
}

static void test_large(void **state)
{
    (void)state;
    for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
        Case c = usual;
        c.spec = "gdn2", c.algo = algo, c.K = 512, c.V = 500, c.H = 1, c.T = 80;
        run_case(&c);
    }
}

/* What no spec of the collection has. */
static const char *const texts[] = {
    /* looks along time, over chunks */
    "variant t {\n dim K = 8, V = 8\n in q[K], k[K], v[V], g <= 0\n state S[K, V]\n"
    " let c = cumsum(g)\n S = exp(g) * S\n S = S + k * v'\n S = S + prev(k) * prev(v)'\n"
    " out o[V] = S' * (q * cos(c))\n out p[K] = prev(q) + cumsum(k)\n out s = c\n }\n",
    /* an output gate, a skip, two outs before and after the update */
    "variant t {\n dim K = 8, V = 8\n in q[K], k[K], v[V], g[K] <= 0, z[V]\n param D, dt[V]\n"
    " state S[K, V]\n let kn = l2norm(k)\n out before[V] = S' * q\n"
    " S = diag(exp(g)) * S\n let r = S' * kn\n S = S + kn * (v - r)'\n"
    " out o[V] = silu(z) .* (S' * q + D * v) + dt\n }\n",
};

static void test_texts(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof texts / sizeof texts[0]; n++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++)
            for (int rows = 12; rows <= 64; rows += 52) {
                Case c = usual;
                c.text = texts[n], c.algo = algo, c.rows = rows, c.N = 2;
                run_case(&c);
            }
}

/* Decays and reads along V, a state read by K and by V: no chunk form, sweeps of every kind. */
static const char *const recurrent_texts[] = {
    "variant t {\n dim K = 8, V = 8\n in q[V], k[K], v[V], g[V] <= 0, beta in [0, 1]\n"
    " state S[K, V]\n let vn = l2norm(v)\n S = S * diag(exp(g))\n let y = S * vn\n"
    " S = S + beta * (k - y) * vn'\n out o[K] = S * q\n }\n",
    "variant t {\n dim K = 8, V = 8\n in q[K], k[K], v[V], g[V] <= 0\n state S[K, V]\n"
    " S = S * diag(exp(g)) + k * v'\n out o[V] = S' * q\n }\n",
};

static void test_recurrent_only(void **state)
{
    (void)state;
    for (size_t n = 0; n < sizeof recurrent_texts / sizeof recurrent_texts[0]; n++)
        for (int V = 12; V <= 130; V += 59) {
            Case c = usual;
            c.text = recurrent_texts[n], c.algo = ALGO_recurrent, c.V = V, c.T = 30;
            run_case(&c);
        }
}

/* properties that hold exactly ------------------------------------------------------------------- */

/* Sets every input of token rows from..to-1 at the last of its heads. */
static void overwrite(Run *r, int64_t from, int64_t to, double value)
{
    const Kernel *k = r->token;
    for (int i = 0; i < k->in.count; i++) {
        const Port *p = &k->in.at[i];
        int64_t size = shape_elements(k, p->shape);
        for (int64_t t = from; t < to && !p->is_param; t++)
            for (int64_t j = 0; j < size; j++)
                element_set(r->in[i].at, ((t + 1) * r->heads[i] - 1) * size + j, p->elem,
                            isnan(value) ? NAN : draw(r, p));
    }
}

/* Whether output 0 is the same as before at rows from..to-1, of all heads or without those that
 * share inputs with the last one. */
static bool same_rows(const Run *r, const char *before, int64_t from, int64_t to, bool last)
{
    const Case *c = r->c;
    size_t head = (size_t)shape_elements(r->token, r->token->out.at[0].shape) *
                  (size_t)elem_size(c->elem);
    for (int64_t t = from; t < to; t++)
        for (int h = 0; h < (last ? c->H : c->H - 2); h++) {
            size_t at = ((size_t)t * (size_t)c->H + (size_t)h) * head;
            if (memcmp(r->out[0].at + at, before + at, head) != 0)
                return false;
        }
    return true;
}

static void test_exact_properties(void **state)
{
    (void)state;
    static const int length[] = {70, 133, 70};
    for (int f = 0; f < FAMILIES; f++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
            Case c = usual;
            c.spec = families[f], c.algo = algo, c.length = length, c.N = 3, c.H = 4;
            c.cu_width = 8, c.start = false;
            if (!wanted(c.spec))
                continue;
            Run r;
            open_run(&r, &c);
            launch(&r);
            char *before = malloc(r.out[0].size);
            assert_non_null(before);
            memcpy(before, r.out[0].at, r.out[0].size);
            launch(&r); /* the same again */
            assert_true(same_rows(&r, before, 0, r.tokens, true));
            overwrite(&r, 70 + 77, 70 + 133, 0); /* the future, and another sequence's past */
            launch(&r);
            assert_true(same_rows(&r, before, 0, 70 + 77, true));
            assert_true(same_rows(&r, before, 70 + 133, r.tokens, true));
            assert_false(same_rows(&r, before, 70 + 77, 70 + 133, true));
            assert_true(same_rows(&r, before, 70 + 77, 70 + 133, false)); /* other heads */
            overwrite(&r, 70 + 100, 70 + 101, NAN);
            launch(&r);
            assert_true(same_rows(&r, before, 0, 70 + 64, true));
            assert_true(same_rows(&r, before, 70 + 133, r.tokens, true));
            assert_true(same_rows(&r, before, 70, 70 + 133, false));
            free(before);
            close_run(&r);
        }
}

/* limits and memory -------------------------------------------------------------------------------- */

static void test_three_axes(void **state)
{
    (void)state;
    Arena a;
    Interner names;
    arena_init(&a, NULL);
    intern_init(&names, &a);
    Kernel *k = kernel_new(&a, &names, "three");
    k->axis.at[AXIS_C].size = k->axis.at[AXIS_R].size = k->axis.at[AXIS_U].size = 16;
    k->axis.at[AXIS_K].size = k->axis.at[AXIS_V].size = 8;
    Shape matrix = shape_of(2, (int[]){AXIS_K, AXIS_V});
    VEC_PUSH(&a, &k->in, ((Port){.name = intern_z(&names, "m"), .shape = matrix}));
    k->level = LEVEL_tile;
    emit_sum(k, emit_in(k, 0, -1, (Span){0, 0}), AXIS_K, (Span){0, 0});
    const CgOptions opt = {.target = "host", .algo = ALGO_chunk};
    const char *why = NULL;
    assert_null(codegen_host(&a, k, &opt, &why));
    assert_non_null(strstr(why, "three axes"));
    arena_free(&a);
}

/* Memory that runs out anywhere unwinds to the caller. */
static void test_out_of_memory(void **state)
{
    (void)state;
    Case c = usual;
    c.text = "variant t {\n dim K = 8, V = 8\n in k[K], v[V]\n state S[K, V]\n S = S + k * v'\n"
             " out o[V] = S' * k\n }\n";
    c.algo = ALGO_recurrent;
    Run r;
    open_run(&r, &c);
    const CgOptions opt = {.target = "host", .algo = ALGO_recurrent, .opt_level = 1};
    volatile int failures = 0; /* setjmp */
    volatile bool done = false;
    for (volatile int64_t n = 1; !done; n += n / 2 + 1) {
        Arena a;
        jmp_buf oom;
        arena_init(&a, &oom);
        a.fail_after = n;
        if (setjmp(oom)) {
            failures++;
        } else {
            const char *why = NULL;
            assert_non_null(codegen_host(&a, r.token, &opt, &why));
            done = true;
        }
        arena_free(&a);
    }
    assert_true(failures > 3);
    close_run(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs_recurrent), cmocka_unit_test(test_specs_chunk),
        cmocka_unit_test(test_dims),            cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_packed),          cmocka_unit_test(test_types),
        cmocka_unit_test(test_gates),           cmocka_unit_test(test_texts),
        cmocka_unit_test(test_recurrent_only),  cmocka_unit_test(test_machines),
        cmocka_unit_test(test_levels),          cmocka_unit_test(test_large),
        cmocka_unit_test(test_exact_properties), cmocka_unit_test(test_three_axes),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
