/* A made-up backward kernel, calls of it, and the judge of what it queued: see cuda_backward.c. */
#ifndef TESTS_CUDA_BACKWARD_H
#define TESTS_CUDA_BACKWARD_H

#include "tests/unit/cuda_stub.h"

enum { K = 64, V = 96, CHUNK = 64, RECORD = 6400, SCRATCH = 2048, PER_SM = 2, SMS = 132 };
enum { STATE = K * V * 4, BORDER = (K + 1) * V * 4 };

static const char spec[] = "variant s { dim K = 64, V = 96; in q[K], k[K], v[V]; in g <= 0\n"
                           "param A\nstate S[K, V]\nS = exp(A * g) * S\n"
                           "S = S + k * (v - S' * k)'\nout o[V] = S' * q\n}\n";

static inline void add_entry(gdr_kernel *k, EntryKind kind, const char *name, int v_tile) {
    CgEntry e = {.kind = kind, .symbol = name, .threads = 128, .v_tile = v_tile};
    if (kind == ENTRY_grad || kind == ENTRY_sums)
        e.per_sm = PER_SM;
    if (kind == ENTRY_grad)
        e.scratch_bytes = SCRATCH;
    k->cuda_function[k->rec.module.entry.count] = (void *)(uintptr_t)name;
    VEC_PUSH(&k->arena, &k->rec.module.entry, e);
}

/* A kernel of the spec with entries of our own. */
static inline gdr_kernel *made_up(gdr_context *ctx, gdr_pass pass) {
    enum { ENTRIES = 8 };
    gdr_kernel *k;
    gdr_compile_options o = {.size = sizeof o, .pass = pass, .dtype = GDR_BF16, .opt_level = 1};
    CompileInput input = {.name = "s", .text = spec, .length = sizeof spec - 1};
    CompileExtra extra = {.no_load = true};
    assert_int_equal(compile_input(ctx, &input, &o, &extra, &k), GDR_OK);
    k->rec.target = "sm_90a";
    k->rec.module.chunk = CHUNK;
    k->rec.module.ws_bytes_per_slot_head = RECORD;
    k->rec.module.entry.count = 0;
    k->cuda_function = NEW_ARRAY(&k->arena, void *, ENTRIES);
    k->cuda_module = NEW_ARRAY(&k->arena, CudaModule *, ENTRIES);
    add_entry(k, ENTRY_factor, "factor", 0);
    add_entry(k, ENTRY_chain, "chain", 128);
    add_entry(k, ENTRY_chain, "chain", 64);
    if (pass == GDR_PASS_BACKWARD) {
        add_entry(k, ENTRY_reverse, "reverse", 128);
        add_entry(k, ENTRY_reverse, "reverse", 64);
        add_entry(k, ENTRY_grad, "grad", 0);
        add_entry(k, ENTRY_sums, "sums", 0);
    } else {
        k->rec.save = GDR_SAVE_STATES;
    }
    stub.fields = record_frame_fields(&k->rec);
    assert_true(stub.fields <= FIELDS_MAX);
    return k;
}

/* One launch: everything, with HK heads of q and k and H of the rest. */
enum { Q, KEY, VALUE, G, A, DO, DQ, DKEY, DVALUE, DG, DA, PORTS };
typedef struct Call {
    int64_t B, T, N, H, HK;
    bool packed;
    int64_t shape[PORTS][4], state_shape[4], cu_shape[1];
    gdr_arg arg[PORTS];
    gdr_tensor S0, dS, dS0, cu;
    gdr_saved saved;
    gdr_launch launch;
} Call;

static const int64_t TENSOR = 0x10000000;

static void call_init(Call *c) {
    static const char *const name[PORTS] = {"q",  "k",  "v",  "g",  "A", "do",
                                            "dq", "dk", "dv", "dg", "dA"};
    int64_t B = c->B, T = c->T;
    for (int i = 0; i < PORTS; i++) {
        bool key = i == Q || i == KEY || i == DQ || i == DKEY, param = i == A || i == DA;
        bool scalar = i == G || i == DG;
        int64_t heads = key ? c->HK : c->H;
        int64_t shape[4] = {param ? heads : B, T, heads, key ? K : V};
        memcpy(c->shape[i], shape, sizeof shape);
        c->arg[i] = (gdr_arg){name[i],
                              {(void *)(uintptr_t)(TENSOR * (i + 1)), GDR_CUDA,
                               param ? GDR_F32 : GDR_BF16, param ? 1 : scalar ? 3 : 4, c->shape[i],
                               NULL}};
    }
    memcpy(c->state_shape, (int64_t[]){c->N, c->H, K, V}, sizeof c->state_shape);
    c->cu_shape[0] = c->N + 1;
    gdr_tensor state = {NULL, GDR_CUDA, GDR_F32, 4, c->state_shape, NULL};
    c->S0 = c->dS = c->dS0 = state;
    c->S0.data = (void *)(uintptr_t)(TENSOR * 20);
    c->dS.data = (void *)(uintptr_t)(TENSOR * 21);
    c->dS0.data = (void *)(uintptr_t)(TENSOR * 22);
    c->cu = (gdr_tensor){(void *)(uintptr_t)(TENSOR * 23), GDR_CUDA, GDR_I64, 1, c->cu_shape, NULL};
    c->launch = (gdr_launch){.size = sizeof c->launch,
                             .args = c->arg,
                             .nargs = PORTS,
                             .cu_seqlens = c->packed ? &c->cu : NULL,
                             .S0 = &c->S0,
                             .dS = &c->dS,
                             .dS0 = &c->dS0,
                             .stream = &stub};
}

static Call dense(int64_t B, int64_t T, int64_t H, int64_t HK) {
    return (Call){.B = B, .T = T, .N = B, .H = H, .HK = HK};
}

static Call packed(int64_t N, int64_t T, int64_t H, int64_t HK) {
    return (Call){.B = 1, .T = T, .N = N, .H = H, .HK = HK, .packed = true};
}

static inline void leave_out(Call *c, int port) {
    c->arg[port] = c->arg[--c->launch.nargs];
}

/* what was queued ------------------------------------------------------------------------------- */

typedef struct Region {
    const char *what;
    int64_t at, end;
} Region;

typedef struct Summary {
    int forwards, backwards;
    int intervals; /* pieces whose chain starts from every saved state */
    int beside;    /* and whose reverse kernel is beside it */
    int64_t longest;
} Summary;

/* Everything that kernels of one piece may write or read of the workspace. */
typedef struct Check {
    const gdr_kernel *k;
    const Call *c;
    int64_t ws, ws_bytes, slots;
    Region region[32];
    int regions;
} Check;

static int64_t field(const gdr_kernel *k, const StubLaunch *l, int which) {
    return l->frame[frame_gradient(k->rec.shell, which)];
}

static void add_region(Check *x, const char *what, int64_t at, int64_t bytes) {
    if (!at || !bytes)
        return;
    assert_true(x->regions < 32);
    x->region[x->regions++] = (Region){what, at, at + bytes};
}

static void regions_are_apart(const Check *x) {
    for (int i = 0; i < x->regions; i++) {
        const Region *a = &x->region[i];
        if (a->at < x->ws || a->end > x->ws + x->ws_bytes)
            fail_msg("%s: %llx..%llx outside of %llx..%llx", a->what, (long long)a->at,
                     (long long)a->end, (long long)x->ws, (long long)(x->ws + x->ws_bytes));
        for (int j = 0; j < i; j++)
            if (a->at < x->region[j].end && x->region[j].at < a->end)
                fail_msg("%s lies on %s", a->what, x->region[j].what);
    }
}

/* Rows of the tokens that slots first .. first+count-1 can have, whatever the sequences are. */
static void rows_of(const Check *x, int64_t first, int64_t count, int64_t *lo, int64_t *hi) {
    const Call *c = x->c;
    if (c->packed) {
        /* slot j of sequence n: rows from C * (j - n) + r on, 0 <= r < C, 0 <= n < N */
        *lo = CHUNK * (first - c->N + 1);
        *hi = CHUNK * (first + count - 1) + CHUNK - 1 + CHUNK;
        *lo = *lo < 0 ? 0 : *lo;
        *hi = *hi > c->T ? c->T : *hi;
        return;
    }
    int64_t each = (c->T + CHUNK - 1) / CHUNK;
    *lo = INT64_MAX;
    *hi = 0;
    for (int64_t j = first; j < first + count; j++) {
        int64_t begin = j / each * c->T + j % each * CHUNK, end = begin + CHUNK;
        int64_t last = (j / each + 1) * c->T;
        *lo = begin < *lo ? begin : *lo;
        *hi = (end < last ? end : last) > *hi ? (end < last ? end : last) : *hi;
    }
}

static void check_memory(Check *x, const StubLaunch *l) {
    const gdr_kernel *k = x->k;
    const Kernel *shell = k->rec.shell;
    const Call *c = x->c;
    int64_t slots = field(k, l, GRAD_SLOTS), lo, hi, state = c->H * BORDER;
    rows_of(x, field(k, l, GRAD_SLOT), slots, &lo, &hi);
    x->regions = 0;
    add_region(x, "records", l->frame[FRAME_WS], slots * c->H * RECORD);
    bool grad = !strcmp(l->name, "grad");
    add_region(x, "scratch", field(k, l, GRAD_SCRATCH), grad ? l->grid * SCRATCH : 0);
    if (!c->launch.saved)
        add_region(x, "state in", field(k, l, GRAD_STATE_IN), state);
    add_region(x, "state out", field(k, l, GRAD_STATE_OUT), state);
    if (strcmp(l->name, "factor") != 0 && strcmp(l->name, "chain") != 0) {
        add_region(x, "costate in", field(k, l, GRAD_COSTATE_IN), state);
        add_region(x, "costate out", field(k, l, GRAD_COSTATE_OUT), state);
    }
    for (int i = k->rec.inputs; i < shell->in.count; i++)
        if (!l->frame[frame_in_heads(shell, i)])
            add_region(x, "zeros", l->frame[frame_in_ptr(shell, i)], V * 2);
    for (int i = 0; i < shell->out.count; i++) {
        const Port *p = &shell->out.at[i];
        int of = kernel_find_port(shell, k->rec.of[shell->in.count + i], false);
        int64_t own = l->frame[frame_in_heads(shell, of)], heads = l->frame[frame_out_heads(shell, i)];
        bool shared = !p->is_param && own != c->H;
        assert_int_equal(heads, shared ? c->H / field(k, l, GRAD_GROUP) : c->H);
        int64_t row = heads * shape_elements(shell, p->shape) * elem_size(p->elem);
        int64_t at = l->frame[frame_out_ptr(shell, i)];
        if (!l->frame[frame_sum(shell, i)]) {
            assert_true(!at || (heads == own && !p->is_param));
            continue;
        }
        add_region(x, p->name, p->is_param ? at : at + lo * row,
                   p->is_param ? x->slots * row : (hi - lo) * row);
        assert_true(p->is_param || heads != own);
        assert_int_equal(l->frame[frame_sum_heads(shell, i)], own);
    }
    regions_are_apart(x);
}

/* Blocks of a chain that walks over every interval between saved states: as many sequences as any of them can
 * have a part of, at least. */
static void check_intervals(const Check *x, const StubLaunch *l) {
    const Call *c = x->c;
    int64_t every = field(x->k, l, GRAD_SAVE_EVERY), slot = field(x->k, l, GRAD_SLOT);
    int64_t last = slot + field(x->k, l, GRAD_SLOTS) - 1, each = (c->T + CHUNK - 1) / CHUNK, most = 0;
    assert_int_equal(every, save_every(K, V, CHUNK));
    assert_int_equal(l->frame[FRAME_SAVED], (uintptr_t)c->saved.data);
    int64_t intervals = last / every - slot / every + 1;
    for (int64_t i = slot / every; i <= last / every; i++) {
        int64_t begin = i * every < slot ? slot : i * every;
        int64_t end = (i + 1) * every - 1 > last ? last : (i + 1) * every - 1;
        int64_t sequences = c->packed ? end - begin + 1 : end / each - begin / each + 1;
        most = sequences > most ? sequences : most;
    }
    int64_t have = l->grid / (intervals * c->H);
    assert_int_equal(l->grid % (intervals * c->H), 0);
    assert_true(have >= (most < c->N ? most : c->N) && have <= 2 * c->N);
}

static void check_grid(const Check *x, const StubLaunch *l) {
    int64_t tasks = field(x->k, l, GRAD_SLOTS) * x->c->H, chains = x->c->N * x->c->H;
    int64_t groups = tasks / field(x->k, l, GRAD_GROUP);
    if (tasks && tasks < chains)
        chains = tasks; /* every sequence has a slot */
    if (!strcmp(l->name, "factor"))
        assert_int_equal(l->grid, tasks);
    else if (!strcmp(l->name, "grad"))
        assert_int_equal(l->grid, groups < SMS * PER_SM ? groups : SMS * PER_SM);
    else if (!strcmp(l->name, "sums"))
        assert_int_equal(l->grid, SMS * PER_SM);
    else if (!strcmp(l->name, "chain") && field(x->k, l, GRAD_SAVE_EVERY))
        check_intervals(x, l);
    else
        assert_true(l->grid == chains || l->grid == chains * 2);
    assert_true(l->stream == &stub || !strcmp(l->name, "reverse"));
}

/* Each kernel waits for all those before it, but the chain for no reverse kernel of its piece, whose first
 * launch is number `piece`. As those before did so, a piece and more is enough. */
static void check_order(int number, int piece) {
    enum { ENOUGH = 12 };
    const StubLaunch *l = &stub.launch[number];
    for (int i = number < ENOUGH ? 0 : number - ENOUGH; i < number; i++) {
        const StubLaunch *before = &stub.launch[i];
        bool apart = before->stream != l->stream && i >= piece && !strcmp(l->name, "chain");
        assert_int_equal(ends_before(before, l), !apart);
    }
}

static bool crosses(const Check *x, int64_t border) {
    return x->c->packed || border % ((x->c->T + CHUNK - 1) / CHUNK) != 0;
}

/* The launches of one piece, from launch i on; the number of the one behind. */
static int check_backwards(Check *x, int i, int64_t end, int64_t costate, bool sums, Summary *s) {
    static const char *const order[] = {"factor", "reverse", "chain", "grad", "sums"};
    const gdr_kernel *k = x->k;
    const StubLaunch *l = &stub.launch[i];
    int64_t first = field(k, l, GRAD_SLOT), slots = field(k, l, GRAD_SLOTS);
    assert_int_equal(first + slots, end);
    for (int j = 0; j < 4 + sums; j++, i++) {
        l = &stub.launch[i];
        assert_true(i < stub.launches && l->name);
        assert_string_equal(l->name, order[j]);
        assert_int_equal(field(k, l, GRAD_SLOT), first);
        assert_int_equal(field(k, l, GRAD_SLOTS), slots);
        assert_int_equal(field(k, l, GRAD_STATE_OUT), 0);
        s->beside += l->stream != &stub;
        s->intervals += !strcmp(l->name, "chain") && field(k, l, GRAD_SAVE_EVERY);
        check_grid(x, l);
        check_memory(x, l);
        check_order(i, i - j);
    }
    if (first > 0 && crosses(x, first)) {
        assert_true(field(k, l, GRAD_STATE_IN) && field(k, l, GRAD_COSTATE_OUT));
        assert_true(field(k, l, GRAD_COSTATE_OUT) != field(k, l, GRAD_COSTATE_IN));
    }
    if (end < x->slots && crosses(x, end))
        assert_int_equal(field(k, l, GRAD_COSTATE_IN), costate);
    return i;
}

/* All launches: pieces forwards leave states that pieces backwards then start from; these cover all
 * slots, from the last to the first. */
static inline Summary check_queue(const gdr_kernel *k, const Call *c, int64_t ws, int64_t ws_bytes,
                           bool sums) {
    Check x = {.k = k, .c = c, .ws = ws, .ws_bytes = ws_bytes};
    Summary s = {0};
    x.slots = frame_slots(c->T, c->N, c->packed, CHUNK);
    static int64_t state_before[1 << 16]; /* by slot: where the state in front of it was left */
    memset(state_before, 0, sizeof state_before);
    assert_true(x.slots < 1 << 16);
    int64_t end = x.slots, costate = 0;
    int i = 0;
    while (i < stub.launches && !stub.launch[i].name) { /* zeros */
        const StubLaunch *l = &stub.launch[i++];
        assert_true((int64_t)l->dst >= ws && (int64_t)(l->dst + l->bytes) <= ws + ws_bytes);
    }
    while (i < stub.launches) {
        const StubLaunch *l = &stub.launch[i];
        int64_t first = field(k, l, GRAD_SLOT), slots = field(k, l, GRAD_SLOTS);
        int64_t out = field(k, l, GRAD_STATE_OUT), in = field(k, l, GRAD_STATE_IN);
        assert_true(slots > 0 && first >= 0 && first + slots <= x.slots);
        s.longest = slots > s.longest ? slots : s.longest;
        if (first > 0 && crosses(&x, first)) {
            int64_t saved = (int64_t)(uintptr_t)c->saved.data;
            int64_t every = save_every(K, V, CHUNK);
            assert_true(c->launch.saved
                            ? first % every == 0 && in == saved + (first / every - 1) * c->H * BORDER
                            : in == state_before[first]);
            assert_true(in != 0);
        }
        if (!out) {
            i = check_backwards(&x, i, end, costate, sums, &s);
            end = first;
            costate = field(k, l, GRAD_COSTATE_OUT);
            s.backwards++;
            continue;
        }
        assert_null(c->launch.saved);
        for (int j = 0; j < 2; j++, i++) {
            l = &stub.launch[i];
            assert_string_equal(l->name, j ? "chain" : "factor");
            assert_int_equal(field(k, l, GRAD_STATE_OUT), out);
            assert_int_equal(field(k, l, GRAD_SAVE_EVERY), 0);
            check_grid(&x, l);
            check_memory(&x, l);
        }
        state_before[first + slots] = out;
        s.forwards++;
    }
    assert_int_equal(end, 0);
    return s;
}

/* The forward pass of the same tensors. */
static inline gdr_launch forward_launch(const Call *c, gdr_arg arg[PORTS]) {
    gdr_launch l = c->launch;
    memcpy(arg, c->arg, PORTS * sizeof *arg);
    arg[DO].name = "o";
    l.args = arg;
    l.nargs = DO + 1;
    l.dS = l.dS0 = NULL;
    return l;
}

#endif
