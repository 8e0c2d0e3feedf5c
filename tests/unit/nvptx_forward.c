/* Forward passes in segments (codegen.h), on the interpreter: with a cut at any place, in ranges of slots or
 * in windows of all sequences, outs and states have the bits of a pass that is not cut. A segment's records
 * have no more memory than it needs, and what is in none of them was never written.
 *
 *   GDR_SPEC=NAME  this spec alone
 */
#include "tests/unit/nvptx_run.h"

typedef struct Result {
    unsigned char *out[MAX_PORTS], *s;
} Result;

/* Of one launch: what is behind a segment's border. */
typedef struct Cuts {
    World *w;
    void *state[2];
    int64_t frame[FRAME_MAX];
} Cuts;

static int64_t out_bytes(const World *w, int o) {
    const Kernel *k = w->token;
    return shape_elements(k, k->out.at[o].shape) * w->l->H * w->tokens * elem_size(w->b->elem);
}

static int64_t state_bytes(const World *w) {
    return (int64_t)4 * w->l->N * w->l->H * w->b->K * w->b->V;
}

static unsigned char *copied(World *w, const void *p, int64_t bytes) {
    unsigned char *x = arena_alloc(&w->arena, (size_t)bytes + 1);
    memcpy(x, p, (size_t)bytes);
    return x;
}

static Result result_of(World *w) {
    Result r;
    for (int o = 0; o < w->token->out.count; o++)
        r.out[o] = copied(w, w->out[o], out_bytes(w, o));
    r.s = copied(w, w->s, state_bytes(w));
    return r;
}

static void forget_results(World *w) {
    for (int o = 0; o < w->token->out.count; o++)
        memset(w->out[o], 0xff, (size_t)out_bytes(w, o));
    memset(w->s, 0xff, (size_t)state_bytes(w));
}

static void same(World *w, const Result *r, const char *cut, int64_t a, int64_t b) {
    for (int o = 0; o < w->token->out.count; o++)
        if (memcmp(r->out[o], w->out[o], (size_t)out_bytes(w, o)) != 0)
            fail_msg("%s: %s %lld %lld: %s is another", described(w), cut, (long long)a, (long long)b,
                     w->token->out.at[o].name);
    if (memcmp(r->s, w->s, (size_t)state_bytes(w)) != 0)
        fail_msg("%s: %s %lld %lld: S is another", described(w), cut, (long long)a, (long long)b);
}

static Cuts cuts_open(World *w) {
    Cuts c = {.w = w};
    int64_t border = (int64_t)4 * w->l->H * (w->b->K + 1) * w->b->V;
    for (int i = 0; i < 2; i++)
        c.state[i] = tensor(w, border * w->l->N, true);
    fill_frame(w, c.frame);
    launch_entries(w, c.frame, true);
    return c;
}

static void set(Cuts *c, int field, int64_t x) {
    c->frame[frame_segment(c->w->token, field)] = x;
}

/* One segment, with records of its own. */
static void segment(Cuts *c, int64_t slot, int64_t slots, const void *in, const void *out) {
    World *w = c->w;
    int64_t records = slots * w->factor_heads * w->module.ws_bytes_per_slot_head;
    c->frame[FRAME_WS] = address(tensor(w, records, true));
    set(c, SEGMENT_SLOT, slot);
    set(c, SEGMENT_SLOTS, slots);
    set(c, SEGMENT_STATE_IN, address(in));
    set(c, SEGMENT_STATE_OUT, address(out));
    launch_entries(w, c->frame, false);
}

/* Ranges: `first` slots, then `piece` at a time. */
static void in_ranges(Cuts *c, int64_t first, int64_t piece) {
    World *w = c->w;
    int64_t i = 0, slots = first < w->slots ? first : w->slots;
    for (int64_t slot = 0; slot < w->slots; slot += slots, i++) {
        if (slot)
            slots = w->slots - slot < piece ? w->slots - slot : piece;
        segment(c, slot, slots, slot ? c->state[(i + 1) % 2] : NULL,
                slot + slots < w->slots ? c->state[i % 2] : NULL);
    }
}

/* Windows of so many chunks; states stay where they are. */
static void in_windows(Cuts *c, int64_t chunks) {
    World *w = c->w;
    int64_t each = w->slots / w->l->N;
    for (int64_t first = 0; first < each; first += chunks) {
        int64_t have = each - first < chunks ? each - first : chunks;
        set(c, SEGMENT_CHUNK, first);
        set(c, SEGMENT_CHUNKS, have);
        segment(c, 0, w->l->N * have, first ? c->state[0] : NULL,
                first + have < each ? c->state[0] : NULL);
    }
    set(c, SEGMENT_CHUNK, 0);
    set(c, SEGMENT_CHUNKS, 0);
}

static void cut_launch(World *w, const Launch *l) {
    w->l = l;
    arena_init(&w->arena, NULL);
    make_tensors(w);
    launch(w);
    compare(w);
    Result whole = result_of(w);
    Cuts c = cuts_open(w);
    for (int64_t first = 1; first <= w->slots; first++) {
        forget_results(w);
        in_ranges(&c, first, w->slots);
        same(w, &whole, "ranges of", first, w->slots - first);
    }
    for (int64_t piece = 1; piece <= 2; piece++) {
        forget_results(w);
        in_ranges(&c, piece, piece);
        same(w, &whole, "ranges of", piece, piece);
    }
    for (int64_t chunks = 1; !l->cu_width && chunks * l->N <= w->slots; chunks++) {
        forget_results(w);
        in_windows(&c, chunks);
        same(w, &whole, "windows of", chunks, chunks);
    }
    for (int i = 0; i < w->module.entry.count; i++)
        simt_forget(w->simt[i]);
    arena_free(&w->arena);
}

static void cut_build(const Build *b, const Launch *l, int launches) {
    const char *only = getenv("GDR_SPEC");
    if (only && strcmp(only, b->spec) != 0)
        return;
    World *w = world_open(b);
    assert_true(compile(w));
    for (int i = 0; i < launches; i++)
        cut_launch(w, &l[i]);
    world_close(w);
}

/* tests ---------------------------------------------------------------------------------------- */

/* The schedules of old and new GPUs; decays of a channel, of a head and none; several reads, updates and
 * outs; values that look at earlier tokens; running sums. */
static const Build build[] = {
    {"gdn2", 32, 64, ELEM_bf16, ALGO_chunk, "sm_90a", NULL},
    {"gdn2", 40, 24, ELEM_f32, ALGO_chunk, "sm_80", NULL},
    {"gated_deltanet", 64, 100, ELEM_f16, ALGO_chunk, "sm_90a", NULL},
    {"linear_attention", 32, 32, ELEM_bf16, ALGO_chunk, "sm_80", NULL},
    {"mamba3_siso", 32, 32, ELEM_bf16, ALGO_chunk, "sm_90a", NULL},
    {"gated_deltaproduct", 32, 32, ELEM_bf16, ALGO_chunk, "sm_80", NULL},
};
enum { BUILDS = sizeof build / sizeof build[0] };

static void cuts_change_no_bit(void **state) {
    (void)state;
    static const Launch dense[] = {
        {.H = 2, .N = 1, .T = 250, .start = true, .final = true, .gate = -.05},
        {.H = 1, .N = 3, .T = 130, .start = true, .final = true, .gate = NAN, .resets = .05},
        {.H = 2, .N = 4, .T = 9, .final = true, .gate = NAN},
    };
    for (int i = 0; i < BUILDS; i++)
        cut_build(&build[i], dense, sizeof dense / sizeof dense[0]);
}

static void cuts_of_packs_change_no_bit(void **state) {
    (void)state;
    static const Launch packed[] = {
        {.H = 2, .N = 5, .length = {5, 0, 160, 1, 70}, .cu_width = 8, .start = true, .final = true,
         .gate = -.05},
        {.H = 1, .N = 4, .length = {0, 64, 0, 129}, .cu_width = 4, .start = true, .final = true,
         .gate = NAN},
    };
    for (int i = 0; i < BUILDS; i++)
        cut_build(&build[i], packed, sizeof packed / sizeof packed[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cuts_change_no_bit),
        cmocka_unit_test(cuts_of_packs_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
