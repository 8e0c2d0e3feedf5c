/* The states of GPU kernels: one launch frame, run by the interpreter of GPU code (tests/simt) and
 * by the CPU's recurrent kernel, on copies of the same memory. Pools, indices that name no state,
 * gaps between states, several tokens, what is remembered; every type and layout of states.
 *
 * What the CPU does not write, the GPU may not write: both memories hold the same NaN there. */
#include "codegen/nvptx/factor.h"
#include "passes/passes.h"
#include "runtime/runtime.h"
#include "tests/simt/number.h"
#include "tests/simt/simt.h"
#include "tests/unit/spec_test.h"

static const char delta[] =
    "variant delta {\n dim K = 16, V = 16\n in q[K], k[K], v[V]\n in g[K] <= 0\n state S[K, V]\n"
    " S = diag(exp(g)) * S\n S = S + k * (v - S' * k)'\n out o[V] = S' * q\n}\n";

static const char past[] =
    "variant past {\n dim K = 16, V = 16\n in q[K], k[K], v[V]\n in g[K] <= 0\n state S[K, V]\n"
    " let a = cumsum(g)\n let s = cumsum(sum(k))\n"
    " S = 0.5 * S + prev(k) * prev(v)' + prev(prev(k)) * v' + cos(a) .* k * (v * sin(s))'\n"
    " out o[V] = S' * q\n}\n";

enum {
    H = 2,
    N = 4,
    T_STEP = 3,   /* tokens of a step, */
    T_CHUNK = 21, /* and of a sequence by chunks */
    POOL = 7,
    GAP = 64 /* bytes */,
    ENTRIES = 3 + 3 * SCAN_ROUNDS_MAX
};

typedef enum {
    MODE_plain,    /* states of sequences, with gaps between them */
    MODE_pool,     /* one pool in place; a sequence is skipped, another one's slot is out of it */
    MODE_drafts,   /* a slot for every token; where to start by counts, good and bad */
    MODE_each,     /* [N,T,...]: states after every token */
    MODE_accepted, /* after some tokens, too many, less than none */
    MODE_packed,   /* packed sequences, from zero into a pool */
    MODES
} Mode;

typedef struct Build {
    const char *text;
    int K, V;
    Elem state;
    bool vk;
    Algo algo;
    const char *target;
    int v_tile; /* V columns of a block; 0: the target's choice */
} Build;

/* One side's memory: everything a frame points to. */
enum { PORTS_MAX = 8 };
typedef struct Memory {
    char *in[PORTS_MAX], *out, *S0, *S, *past0, *past, *index[4], *cu, *ws;
    size_t in_bytes[PORTS_MAX], out_bytes, S_bytes, past_bytes;
} Memory;

typedef struct World {
    const Build *b;
    int T;
    Spec *spec;
    Kernel *token, *code;
    CgModule module; /* the GPU's */
    Cg *cg[ENTRIES];
    Simt *simt[ENTRIES];
    CgModule *host_module;
    HostCode *host;
    Arena arena;
    Mode mode;
    Memory gpu, cpu;
    int64_t slots, stretches, ahead; /* bytes before what is made ahead */
} World;

/* compiling ------------------------------------------------------------------------------------ */

static Kernel *lower(World *w) {
    Spec *s = w->spec;
    SpecDim dim[] = {{intern_z(&s->names, "K"), w->b->K}, {intern_z(&s->names, "V"), w->b->V}};
    SpecBind bind = {dim, 2};
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, &bind, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    passes_run(k, "normal", NULL);
    return k;
}

/* By `build`, or the scan's entry number `which`, the one behind its last the one that
 * remembers. */
static void add_entry(World *w, bool (*build)(Cg *, CgModule *, const char **), const Scan *scan,
                      int which) {
    const char *why = NULL;
    CgOptions *opt = NEW(&w->spec->arena, CgOptions);
    *opt = (CgOptions){.target = w->b->target,
                       .algo = w->b->algo,
                       .state = w->b->state,
                       .state_vk = w->b->vk,
                       .v_tile = w->b->v_tile,
                       .opt_level = 2};
    int n = w->module.entry.count;
    w->cg[n] = cg_open(&w->spec->arena, w->code, opt, &why);
    if (!w->cg[n] || (build && !build(w->cg[n], &w->module, &why)))
        fail_msg("%s", why);
    if (!build && which < scan_entries(w->code, scan, false))
        scan_build(w->cg[n], scan, false, which, &w->module);
    else if (!build)
        scan_build_past(w->cg[n], scan, &w->module);
    if (!cg_optimize(w->cg[n], &why))
        fail_msg("%s", why);
    w->simt[n] = simt_open(&w->spec->arena, w->cg[n]->mod, w->module.entry.at[n].symbol, &why);
    if (!w->simt[n])
        fail_msg("%s", why);
}

static void compile(World *w) {
    const Build *b = w->b;
    const char *why = NULL;
    char text[256];
    w->T = b->algo == ALGO_chunk ? T_CHUNK : T_STEP;
    w->token = lower(w);
    w->code = lower(w);
    if (b->algo == ALGO_chunk) {
        kernel_set_chunk(w->code, 16);
        passes_run_after(w->code, "normal", NULL, NULL);
        System system;
        if (!nv_system(&w->spec->arena, w->code, &system, &why))
            fail_msg("%s", why);
        int ahead = scan_entries(w->code, system.scan, false);
        for (int i = 0; i < ahead; i++)
            add_entry(w, NULL, system.scan, i);
        add_entry(w, nv_build_factor, NULL, 0);
        add_entry(w, nv_build_chain, NULL, 0);
        if (w->code->facts.past)
            add_entry(w, NULL, system.scan, ahead);
    } else {
        add_entry(w, nv_build_recurrent, NULL, 0);
        w->module.chunk = 1;
    }
    CgOptions opt = {.target = "host",
                     .algo = ALGO_recurrent,
                     .state = b->state,
                     .state_vk = b->vk,
                     .opt_level = 2};
    w->host_module = codegen_host(&w->spec->arena, w->token, &opt, &why);
    if (!w->host_module)
        fail_msg("%s", why);
    w->host = hostjit_load(w->host_module->object, w->host_module->object_len, text, sizeof text);
    if (!w->host)
        fail_msg("%s", text);
}

/* memory --------------------------------------------------------------------------------------- */

static int64_t state_bytes(const World *w) {
    return (int64_t)H * w->b->K * w->b->V * elem_size(w->b->state);
}

static int64_t stride(const World *w) {
    return state_bytes(w) + (w->mode == MODE_plain || w->mode == MODE_pool ? GAP : 0);
}

/* The same contents on both sides; NaN when there are none. */
static void give(World *w, char **gpu, char **cpu, size_t bytes, const void *from, bool writable) {
    char **side[2] = {gpu, cpu};
    for (int i = 0; i < 2; i++) {
        *side[i] = arena_alloc(&w->arena, bytes + 16);
        memset(*side[i], 0xff, bytes);
        if (from)
            memcpy(*side[i], from, bytes);
    }
    for (int i = 0; i < w->module.entry.count; i++)
        simt_memory(w->simt[i], *gpu, bytes, writable);
}

static void put_number(char *p, int64_t i, Elem e, double x) {
    if (e == ELEM_f32)
        ((float *)p)[i] = (float)x;
    else
        ((uint16_t *)p)[i] =
            (uint16_t)number_put(e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16, (float)x);
}

static double number_at(const char *p, int64_t i, Elem e) {
    return e == ELEM_f32
               ? ((const float *)p)[i]
               : number_get(e == ELEM_bf16 ? NUMBER_bf16 : NUMBER_f16, ((const uint16_t *)p)[i]);
}

static void give_inputs(World *w, uint64_t *seed) {
    const Kernel *k = w->token;
    for (int i = 0; i < k->in.count; i++) {
        int64_t n = shape_elements(k, k->in.at[i].shape) * H * N * w->T;
        float *x = NEW_ARRAY(&w->arena, float, n);
        for (int64_t j = 0; j < n; j++)
            x[j] = (float)((2 * random_unit(seed) - 1) / sqrt(w->b->K));
        for (int64_t j = 0; j < n && k->in.at[i].hi <= 0; j++)
            x[j] = -fabsf(x[j]);
        w->cpu.in_bytes[i] = (size_t)(4 * n);
        give(w, &w->gpu.in[i], &w->cpu.in[i], (size_t)(4 * n), x, false);
    }
    w->cpu.out_bytes = (size_t)(4 * w->b->V * H * N * w->T);
    give(w, &w->gpu.out, &w->cpu.out, w->cpu.out_bytes, NULL, true);
}

/* Enough states for every mode; numbers where states are, NaN in the gaps. */
static void give_states(World *w, uint64_t *seed) {
    enum { STATES = N * T_STEP > POOL ? N * T_STEP : POOL };
    size_t bytes = (size_t)(stride(w) * STATES);
    char *x = arena_alloc(&w->arena, bytes);
    memset(x, 0xff, bytes);
    for (int64_t i = 0; i < STATES; i++)
        for (int64_t j = 0; j < H * w->b->K * w->b->V; j++)
            put_number(x + i * stride(w), j, w->b->state, random_unit(seed) - .5);
    w->cpu.S_bytes = bytes;
    give(w, &w->gpu.S0, &w->cpu.S0, bytes, x, true);
    give(w, &w->gpu.S, &w->cpu.S, bytes, NULL, true);
    int64_t n = (int64_t)STATES * H * w->token->facts.past;
    float *p = NEW_ARRAY(&w->arena, float, n + 1);
    for (int64_t j = 0; j < n; j++)
        p[j] = (float)(random_unit(seed) - .5);
    w->cpu.past_bytes = (size_t)(4 * n);
    give(w, &w->gpu.past0, &w->cpu.past0, w->cpu.past_bytes, p, true);
    give(w, &w->gpu.past, &w->cpu.past, w->cpu.past_bytes, NULL, true);
}

/* The indices of a mode: slots of S0, counts of S0, slots of S, counts of S. */
static void give_indices(World *w) {
    static const int64_t pool[N] = {5, -1, 2, POOL}, counts[N] = {0, 2, 99, -5},
                         drafts[N * T_STEP] = {6, 1, 3, 2, 5, -1, 0, 4, POOL + 3, -1, -1, -1},
                         taken[N] = {3, 1, 2, 1}, bad[N] = {2, 0, 4, 1}, to[N] = {4, 0, -7, 1};
    const int64_t *from[4] = {NULL};
    int width = w->mode == MODE_drafts || w->mode == MODE_accepted ? 4 : 8;
    if (w->mode == MODE_pool)
        from[0] = pool;
    if (w->mode == MODE_drafts) {
        from[0] = drafts;
        from[1] = w->b->vk ? bad : taken;
    }
    if (w->mode == MODE_accepted)
        from[3] = counts;
    if (w->mode == MODE_packed)
        from[2] = to;
    for (int i = 0; i < 4; i++) {
        int n = from[i] == drafts ? N * T_STEP : N;
        char *x = arena_alloc(&w->arena, 8 * (size_t)n);
        for (int j = 0; from[i] && j < n; j++) {
            int32_t narrow = (int32_t)from[i][j];
            memcpy(x + j * width, width == 4 ? (const void *)&narrow : &from[i][j], (size_t)width);
        }
        if (from[i])
            give(w, &w->gpu.index[i], &w->cpu.index[i], (size_t)(n * width), x, false);
        else
            w->gpu.index[i] = w->cpu.index[i] = NULL;
    }
    static const int64_t cu[2][N + 1] = {{0, 3, 3, 4, 9}, {0, 17, 17, 18, 66}};
    give(w, &w->gpu.cu, &w->cpu.cu, sizeof cu[0], cu[w->b->algo == ALGO_chunk], false);
}

static int64_t address(const void *p) {
    return (int64_t)(intptr_t)p;
}

static void fill_frame(const World *w, const Memory *m, int64_t *f) {
    bool by_chunks = w->b->algo == ALGO_chunk;
    bool packed = w->mode == MODE_packed, in_place = w->mode == MODE_pool || w->mode == MODE_drafts;
    const Kernel *k = w->token;
    f[FRAME_T] = packed ? N * w->T : w->T;
    f[FRAME_N] = N;
    f[FRAME_H] = f[FRAME_HF] = H;
    f[FRAME_CU] = packed ? address(m->cu) : 0;
    f[FRAME_CU_WIDTH] = 8;
    f[FRAME_S0] = packed ? 0 : address(m->S0);
    f[FRAME_S] = address(in_place ? m->S0 : m->S);
    f[FRAME_S0_STRIDE] = f[FRAME_S_STRIDE] = stride(w) == state_bytes(w) ? 0 : stride(w);
    f[FRAME_S0_SLOTS] = address(m->index[0]);
    f[FRAME_S0_COLUMNS] = w->mode == MODE_drafts ? w->T : 1;
    f[FRAME_S0_POOL] = f[FRAME_S_POOL] = POOL;
    f[FRAME_S0_ACCEPTED] = address(m->index[1]);
    f[FRAME_S_SLOTS] = address(in_place ? m->index[0] : m->index[2]);
    f[FRAME_S_ACCEPTED] = address(m->index[3]);
    f[FRAME_S_EACH] = w->mode == MODE_drafts || w->mode == MODE_each ? w->T : 0;
    f[FRAME_INDEX_WIDTH] = w->mode == MODE_drafts || w->mode == MODE_accepted ? 4 : 8;
    if (k->facts.past) {
        f[FRAME_PAST0] = packed && !by_chunks ? 0 : address(m->past0);
        f[FRAME_PAST] = address(in_place ? m->past0 : m->past);
    }
    f[FRAME_WS] = address(w->gpu.ws);
    f[FRAME_SLOTS] = w->slots;
    f[frame_segment(k, SEGMENT_SLOTS)] = w->slots;
    f[frame_segment(k, SEGMENT_AHEAD)] = address(w->gpu.ws) + w->ahead;
    for (int i = 0; i < k->in.count; i++) {
        f[frame_in_ptr(k, i)] = address(m->in[i]);
        f[frame_in_heads(k, i)] = H;
    }
    f[frame_out_ptr(k, 0)] = address(m->out);
}

/* running and comparing ------------------------------------------------------------------------ */

enum { FRAME_MAX = FRAME_PORTS + 3 * PORTS_MAX + SEGMENT_FIELDS };

static void launch(World *w, const int64_t *frame, int sequences) {
    for (int i = 0; i < w->module.entry.count; i++) {
        const CgEntry *e = &w->module.entry.at[i];
        int tiles = e->v_tile ? (w->b->V + e->v_tile - 1) / e->v_tile : 1;
        const char *why = NULL;
        if (!simt_launch(w->simt[i], frame, frame_fields(w->token),
                         e->kind == ENTRY_factor ? w->slots * H
                         : e->kind == ENTRY_scan ? w->stretches * H
                                                 : sequences * H * tiles,
                         e->threads,
                         e->smem_bytes, &why))
            fail_msg("mode %d: %s", (int)w->mode, why);
    }
}

static void run_gpu(World *w) {
    int64_t frame[FRAME_MAX] = {0};
    fill_frame(w, &w->gpu, frame);
    launch(w, frame, N);
}

static void run_cpu(World *w) {
    int64_t frame[FRAME_MAX] = {0};
    const CgEntry *e = &w->host_module->entry.at[0];
    fill_frame(w, &w->cpu, frame);
    HostEntry *f = hostjit_symbol(w->host, e->symbol);
    void *scratch = aligned_alloc(64, (size_t)(e->scratch_bytes + 63) / 64 * 64);
    assert_non_null(scratch);
    f(frame, 0, N * H, scratch);
    free(scratch);
}

/* How far two memories are apart, by the metric of all results; NaN of one is NaN of the other. */
static void compare(const World *w, const char *what, const char *gpu, const char *cpu,
                    size_t bytes, Elem e, double limit) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < (int64_t)bytes / elem_size(e); i++) {
        double a = number_at(gpu, i, e), b = number_at(cpu, i, e);
        if (isnan(a) != isnan(b))
            fail_msg("mode %d, %s: element %d is %g, on the CPU %g", (int)w->mode, what, (int)i, a,
                     b);
        difference += isnan(a) ? 0 : (a - b) * (a - b);
        size += isnan(b) ? 0 : b * b;
    }
    if (!(sqrt(difference) <= limit * sqrt(size)))
        fail_msg("mode %d, %s: %g of %g", (int)w->mode, what, sqrt(difference), sqrt(size));
}

/* The first sequence's tokens in launches of `piece` tokens, from S to S: what the first bytes of
 * outputs, states and past are in the end. */
static void *run_pieces(World *w, int piece) {
    size_t state = (size_t)stride(w), record = (size_t)(4 * H * w->token->facts.past);
    memcpy(w->gpu.S, w->gpu.S0, state);
    memcpy(w->gpu.past, w->gpu.past0, record);
    for (int64_t t = 0; t < w->T; t += piece) {
        int64_t frame[FRAME_MAX] = {0}, cu[2] = {t, t + piece < w->T ? t + piece : w->T};
        memcpy(w->gpu.cu, cu, sizeof cu);
        fill_frame(w, &w->gpu, frame);
        frame[FRAME_N] = 1;
        frame[FRAME_S0] = frame[FRAME_S];
        frame[FRAME_S_SLOTS] = 0;
        frame[FRAME_PAST0] = frame[FRAME_PAST];
        launch(w, frame, 1);
    }
    size_t out = (size_t)(4 * w->b->V * H * w->T);
    char *all = arena_alloc(&w->arena, out + state + record);
    memcpy(all, w->gpu.out, out);
    memcpy(all + out, w->gpu.S, state);
    memcpy(all + out + state, w->gpu.past, record);
    for (size_t i = 0; i < out / 4; i++)
        if (isnan(((float *)w->gpu.out)[i]))
            fail_msg("output %d of pieces of %d was not written", (int)i, piece);
    memset(w->gpu.out, 0xff, out);
    return all;
}

static void run_mode(World *w, Mode mode) {
    uint64_t seed = 3 + (uint64_t)mode;
    double unit = w->b->state == ELEM_f32 ? 1e-5 : w->b->state == ELEM_bf16 ? 4e-3 : 5e-4;
    double limit = w->b->algo == ALGO_chunk ? 5e-3 : 1e-5;
    w->mode = mode;
    arena_init(&w->arena, NULL);
    give_inputs(w, &seed);
    give_states(w, &seed);
    give_indices(w);
    char *unused;
    bool packed = mode == MODE_packed;
    int64_t all = (int64_t)N * w->T, tokens = packed ? all : w->T;
    w->slots = frame_slots(tokens, N, packed, w->module.chunk);
    w->stretches = frame_slots(tokens, N, packed, SCAN_TOKENS);
    w->ahead = (w->slots * H * w->module.ws_bytes_per_slot_head + 255) / 256 * 256;
    int64_t rows = all * H * w->module.scan_token_bytes + 255;
    size_t ws = (size_t)(w->ahead + rows / 256 * 256 +
                         w->stretches * H * w->module.scan_carry_bytes);
    give(w, &w->gpu.ws, &unused, ws, NULL, true);
    run_gpu(w);
    run_cpu(w);
    compare(w, "o", w->gpu.out, w->cpu.out, w->cpu.out_bytes, ELEM_f32, limit);
    compare(w, "S0", w->gpu.S0, w->cpu.S0, w->cpu.S_bytes, w->b->state, fmax(limit, unit));
    compare(w, "S", w->gpu.S, w->cpu.S, w->cpu.S_bytes, w->b->state, fmax(limit, unit));
    compare(w, "past0", w->gpu.past0, w->cpu.past0, w->cpu.past_bytes, ELEM_f32, 1e-6);
    compare(w, "past", w->gpu.past, w->cpu.past, w->cpu.past_bytes, ELEM_f32, 1e-6);
    for (int i = 0; i < w->module.entry.count; i++)
        simt_forget(w->simt[i]);
    arena_free(&w->arena);
}

static World *open_build(const Build *b) {
    World *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->b = b;
    w->spec = spec_open(b->text);
    compile(w);
    return w;
}

static void close_build(World *w) {
    for (int i = 0; i < ENTRIES; i++)
        if (w->cg[i])
            cg_close(w->cg[i]);
    hostjit_free(w->host);
    spec_close(w->spec);
    free(w);
}

static void run_build(const Build *b) {
    World *w = open_build(b);
    for (Mode m = MODE_plain; m < MODES; m++)
        if (b->algo == ALGO_recurrent || m == MODE_plain || m == MODE_pool || m == MODE_packed)
            run_mode(w, m);
    close_build(w);
}

static const Elem types[] = {ELEM_f32, ELEM_bf16, ELEM_f16};

/* Sizes whose rows are read in accesses of 16 bytes, of 8, and element by element. */
static void test_recurrent(void **state) {
    (void)state;
    static const struct { int K, V; } size[] = {{40, 24}, {20, 12}, {9, 7}, {64, 40}};
    for (int i = 0; i < 24; i++) {
        Build b = {i % 2 ? past : delta,
                   size[i / 6].K,
                   size[i / 6].V,
                   types[i % 3],
                   i / 3 % 2,
                   ALGO_recurrent,
                   i % 4 < 2 ? "sm_80" : "sm_90a",
                   0};
        run_build(&b);
    }
}

/* Narrow tiles: one block each, or where something is remembered one block's turns. */
static void test_tiles(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        Build b = {i % 2 ? past : delta, 64, 72, types[i % 3], i / 2, ALGO_recurrent, "sm_90a", 16};
        run_build(&b);
    }
}

/* A launch makes what its tokens' inputs alone make in batches of four, or less where a block has
 * fewer warps: wherever its tokens are divided into launches, every bit is the same. */
static void test_pieces(void **state) {
    (void)state;
    enum { TOKENS = 11 };
    for (int i = 0; i < 4; i++) {
        Build b = {i % 2 ? past : delta, 64, 128, ELEM_f32, i / 2, ALGO_recurrent, "sm_90a", i / 2 ? 32 : 0};
        World *w = open_build(&b);
        uint64_t seed = 7;
        w->T = TOKENS;
        w->mode = MODE_packed;
        arena_init(&w->arena, NULL);
        give_inputs(w, &seed);
        give_states(w, &seed);
        give_indices(w);
        size_t bytes = (size_t)(4 * b.V * H * TOKENS + stride(w) + 4 * H * w->token->facts.past);
        const void *whole = run_pieces(w, TOKENS);
        for (int piece = 1; piece < TOKENS; piece += piece < 5 ? 1 : 3)
            assert_memory_equal(run_pieces(w, piece), whole, bytes);
        simt_forget(w->simt[0]);
        arena_free(&w->arena);
        close_build(w);
    }
}

static void test_chunks(void **state) {
    (void)state;
    for (int i = 0; i < 12; i++) {
        Build b = {i / 6 ? past : delta,
                   i % 2 ? 64 : 40,
                   i % 2 ? 64 : 24,
                   types[i % 3],
                   i / 3 % 2,
                   ALGO_chunk,
                   i % 2 ? "sm_90a" : "sm_80",
                   0};
        run_build(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recurrent),
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
