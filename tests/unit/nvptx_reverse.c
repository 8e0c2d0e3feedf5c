/* The GPU's factor, chain and reverse kernels of gradients on the interpreter: what they leave in
 * every chunk's record (S, X, A, dS, dX) and where states go, against the gradient kernel evaluated
 * plainly in fp64, a chunk at a time.
 *
 *   GDR_SPEC=NAME  this spec alone
 *   GDR_VERBOSE=1  the errors of everything that ran
 */
#include "tests/unit/grad_run.h"


/* What is compared. */
enum { OF_s, OF_x, OF_zt, OF_ds, OF_dx, OF_ds0, TENSORS };
static const char *const tensor_name[TENSORS] = {"S", "X", "A X", "dS", "dX", "dS0"};

enum { SLOTS_MAX = 4, SEGMENTS_MAX = 16, OUTS_MAX = MAX_PORTS + 3 * SLOTS_MAX };

typedef struct Walk {
    GradRun r;
    Gradient g;
    Kernel *plain;             /* the gradient kernel, with X, Zt and dX among its outs */
    int row_out[3][SLOTS_MAX]; /* which: of each update of a token */
    float *state[SEGMENTS_MAX + 1], *costate[SEGMENTS_MAX + 1]; /* at segments' borders */
    GradError error[TENSORS];
    bool wild; /* columns of V are of very different sizes: each is measured alone */
    double worst_column;
} Walk;

/* the plain kernel ----------------------------------------------------------------------------- */

static void add_rows(Walk *w, int which, int v, int axis) {
    Kernel *k = w->plain;
    for (int place = 0; place < w->g.s.slots; place++) {
        Buf name;
        buf_init(&name, k->arena);
        buf_printf(&name, "row_%d_%d", which, place);
        Port p = {.name = name.text,
                  .shape = shape_of(1, (int[]){AXIS_V}),
                  .lo = -INFINITY,
                  .hi = INFINITY};
        w->row_out[which][place] = k->out.count;
        VEC_PUSH(k->arena, &k->out, p);
        int rows = emit(
            k, (Inst){.op = OP_slot, .nargs = 1, .arg = (int[]){v}, .axis = axis, .place = place});
        emit_out(k, w->row_out[which][place], rows, (Span){0});
        k->inst.at[rows].role = k->inst.at[rows + 1].role = ROLE_grad;
    }
}

static void make_plain(Walk *w) {
    const Gradient *g = &w->g;
    w->plain = kernel_clone(w->r.code);
    assert_true(g->s.slots <= SLOTS_MAX && w->plain->out.count <= MAX_PORTS);
    add_rows(w, 0, g->X, AXIS_R);
    add_rows(w, 1, g->zt, g->s.erase ? AXIS_U : AXIS_R);
    add_rows(w, 2, g->dX, AXIS_R);
}

/* One sequence and head in fp64. */
typedef struct Plain {
    Walk *w;
    Arena arena;
    int n, head;
    int64_t T, chunks, nstate;
    double *in[MAX_PORTS], *out[OUTS_MAX];
    double *state, *costate; /* [chunks + 1]: at the chunks' borders */
} Plain;

static void read_inputs(Plain *p) {
    const GradRun *r = &p->w->r;
    for (int i = 0; i < r->code->in.count; i++) {
        const Port *port = &r->code->in.at[i];
        int64_t size = shape_elements(r->code, port->shape), rows = port->is_param ? 1 : p->T;
        int64_t own = p->head * r->heads[i] / r->c->H,
                first = port->is_param ? 0 : grad_first(r->c, p->n);
        p->in[i] = NEW_ARRAY(&p->arena, double, rows *size + 1);
        for (int64_t j = 0; j < rows * size; j++)
            p->in[i][j] = grad_get(
                r->in[i], ((first + j / size) * r->heads[i] + own) * size + j % size, port->elem);
    }
}

/* One chunk from its state and costate: `out` and both are replaced. */
static void eval_chunk(Plain *p, const Kernel *k, int64_t chunk, double *state, double *costate) {
    int64_t C = p->w->r.module.chunk, first = chunk * C;
    const double *in[MAX_PORTS];
    for (int i = 0; i < k->in.count; i++) {
        const Port *port = &k->in.at[i];
        in[i] = p->in[i] + (port->is_param ? 0 : first * shape_elements(k, port->shape));
    }
    EvalArgs args = {.T = p->T - first < C ? p->T - first : C,
                     .in = in,
                     .out = p->out,
                     .state = state,
                     .costate = costate};
    kernel_eval(k, &p->arena, &args);
}

static void copy_state(Plain *p, double *to, const double *from) {
    memcpy(to, from, (size_t)p->nstate * sizeof *to);
}

static void plain_open(Plain *p, Walk *w, int n, int head) {
    GradRun *r = &w->r;
    *p = (Plain){.w = w, .n = n, .head = head, .T = grad_length(r->c, n)};
    arena_init(&p->arena, NULL);
    p->nstate = (int64_t)r->c->K * r->c->V;
    p->chunks = (p->T + r->module.chunk - 1) / r->module.chunk;
    read_inputs(p);
    int64_t widest = 1;
    for (int o = 0; o < w->plain->out.count + r->token->out.count; o++) {
        const Kernel *k = o < w->plain->out.count ? w->plain : r->token;
        const Port *port = &k->out.at[k == w->plain ? o : o - w->plain->out.count];
        int64_t size = shape_elements(k, port->shape);
        widest = size > widest ? size : widest;
    }
    for (int o = 0; o < OUTS_MAX; o++)
        p->out[o] = NEW_ARRAY(&p->arena, double, widest * r->module.chunk);
    p->state = NEW_ARRAY(&p->arena, double, (p->chunks + 1) * p->nstate);
    p->costate = NEW_ARRAY(&p->arena, double, (p->chunks + 1) * p->nstate);
    int64_t at = ((int64_t)n * r->c->H + head) * p->nstate;
    for (int64_t j = 0; j < p->nstate; j++) {
        p->state[j] = ((float *)r->s0)[at + j];
        p->costate[p->chunks * p->nstate + j] = ((float *)r->ds)[at + j];
    }
    for (int64_t c = 0; c < p->chunks; c++) {
        double *next = p->state + (c + 1) * p->nstate;
        copy_state(p, next, next - p->nstate);
        eval_chunk(p, r->token, c, next, NULL);
    }
}

/* comparing ------------------------------------------------------------------------------------ */

/* Element of a record's f16 matrix: nv_place, in numbers. */
static double matrix_element(const char *at, int rows, int columns, int64_t row, int64_t column) {
    int width = nv_block_columns(columns) / 8, log = width == 8 ? 3 : width == 4 ? 2 : 1;
    int64_t unit = column / 8, turned = (unit % width) ^ (row >> (3 - log) & (width - 1));
    int64_t place = (unit / width * rows * width + row * width + turned) * 8 + column % 8;
    return grad_get(at, place, ELEM_f16);
}

static double unit_of(const char *record, int64_t units, int64_t v) {
    double x = ((const float *)(record + units))[v];
    int exponent;
    assert_true(isfinite(x) && frexp(x, &exponent) == 0.5);
    return x;
}

static const char *record_of(const Walk *w, int64_t slot, int head) {
    const GradRun *r = &w->r;
    return (const char *)r->ws +
           (slot % r->segment * r->c->H + head) * r->module.ws_bytes_per_slot_head;
}

/* `e` is what one column of one matrix is off. */
static void add_column(Walk *w, int of, const GradError *e) {
    GradError *all = &w->error[of];
    all->diff += e->diff;
    all->ref += e->ref;
    all->most = fmax(all->most, e->most);
    all->count += e->count;
    if (w->wild && e->count && e->diff > 0)
        w->worst_column = fmax(w->worst_column, sqrt(e->diff / e->ref));
}

/* A state's matrix, with zeros where K and V have no channel. */
static void compare_state(Plain *p, int of, const char *record, int64_t at, int64_t units,
                          const double *want) {
    const System *s = &p->w->g.s;
    for (int v = 0; v < s->vp; v++) {
        GradError e = {0};
        for (int i = 0; i < s->kp; i++) {
            double got = matrix_element(record + at, s->vp, s->kp, v, grad_state_channel(i)) *
                         unit_of(record, units, v);
            if (v >= s->V || i >= s->K)
                assert_true(got == 0);
            else
                grad_error_add(&e, want[(int64_t)i * s->V + v], got);
        }
        add_column(p->w, of, &e);
    }
}

static double plain_row(const Plain *p, int which, int row, int v) {
    const System *s = &p->w->g.s;
    return p->out[p->w->row_out[which][row % s->slots]][(int64_t)(row / s->slots) * s->V + v];
}

/* Rows of V columns likewise; `which` of the plain kernel's. */
static void compare_rows(Plain *p, int of, int which, const char *record, int64_t at, int64_t units,
                         int64_t tokens) {
    const System *s = &p->w->g.s;
    for (int v = 0; v < s->vp; v++) {
        GradError e = {0};
        for (int row = 0; row < s->rows; row++) {
            double got =
                matrix_element(record + at, s->rows, s->vp, row, v) * unit_of(record, units, v);
            if (row >= tokens * s->slots || v >= s->V)
                assert_true(got == 0);
            else
                grad_error_add(&e, plain_row(p, which, row, v), got);
        }
        add_column(p->w, of, &e);
    }
}

/* A, by the product with the record's own X. */
static void compare_inverse(Plain *p, const char *record, int64_t tokens) {
    const System *s = &p->w->g.s;
    if (!s->erase || s->p_scaled)
        return;
    double scale = *(const float *)(record + s->ws_scale);
    for (int u = 0; u < tokens * s->slots; u++)
        for (int v = 0; v < s->V; v++) {
            double sum = 0;
            for (int l = 0; l < s->rows; l++)
                sum += scale * matrix_element(record + s->ws_a, s->rows, s->rows, u, l) *
                       matrix_element(record + s->ws_x, s->rows, s->vp, l, v) *
                       unit_of(record, s->ws_unit_x, v);
            grad_error_add(&p->w->error[OF_zt], plain_row(p, 1, u, v), sum);
        }
}

/* Chunk c; the costate behind it is known, and becomes that before it. */
static void compare_chunk(Plain *p, int64_t c, const char *record) {
    Walk *w = p->w;
    const System *s = &w->g.s;
    int64_t C = w->r.module.chunk, tokens = p->T - c * C < C ? p->T - c * C : C;
    double *behind = p->costate + (c + 1) * p->nstate, *before = behind - p->nstate;
    double *state = NEW_ARRAY(&p->arena, double, p->nstate);
    copy_state(p, state, p->state + c * p->nstate);
    copy_state(p, before, behind);
    eval_chunk(p, w->plain, c, state, before);
    if (!record)
        return;
    compare_state(p, OF_s, record, s->ws_s, s->ws_unit_s, p->state + c * p->nstate);
    compare_state(p, OF_ds, record, s->ws_ds, s->ws_unit_ds, behind);
    compare_rows(p, OF_x, 0, record, s->ws_x, s->ws_unit_x, tokens);
    compare_rows(p, OF_dx, 2, record, s->ws_dx, s->ws_unit_dx, tokens);
    compare_inverse(p, record, tokens);
}

/* What segment `slot` .. has left in the records; in the first segment, in dS0 too. */
static void compare_segment(Walk *w, int64_t slot) {
    GradRun *r = &w->r;
    for (int n = 0; n < r->c->N; n++)
        for (int head = 0; head < r->c->H; head++) {
            Plain p;
            plain_open(&p, w, n, head);
            for (int64_t c = p.chunks - 1; c >= 0; c--) {
                int64_t at = grad_first_slot(r, n) + c;
                bool here = at >= slot && at < slot + r->segment;
                compare_chunk(&p, c, here ? record_of(w, at, head) : NULL);
            }
            int64_t at = ((int64_t)n * r->c->H + head) * p.nstate;
            for (int64_t j = 0; j < p.nstate && r->c->start && slot == 0; j++)
                grad_error_add(&w->error[OF_ds0], p.costate[j], ((float *)r->ds0)[at + j]);
            arena_free(&p.arena);
        }
}

/* running -------------------------------------------------------------------------------------- */

static int64_t tiles(const Walk *w, EntryKind kind) {
    int v_tile = grad_entry(&w->r, kind)->v_tile;
    return (w->r.c->V + v_tile - 1) / v_tile;
}

/* Factor and chain of the segment that begins with `slot`; reverse too. */
static void run_segment(Walk *w, int64_t slot, bool backwards) {
    GradRun *r = &w->r;
    const Kernel *k = r->code;
    int64_t frame[GRAD_FRAME] = {0}, number = slot / r->segment,
            slots = r->slots - slot < r->segment ? r->slots - slot : r->segment,
            blocks = (slots < r->c->N ? slots : r->c->N) * r->c->H;
    grad_frame(r, frame, slot);
    frame[frame_gradient(k, GRAD_STATE_IN)] = grad_address(w->state[number]);
    frame[frame_gradient(k, GRAD_STATE_OUT)] = backwards ? 0 : grad_address(w->state[number + 1]);
    frame[frame_gradient(k, GRAD_COSTATE_IN)] = grad_address(w->costate[number + 1]);
    frame[frame_gradient(k, GRAD_COSTATE_OUT)] = grad_address(w->costate[number]);
    int64_t bytes = r->segment * r->c->H * r->module.ws_bytes_per_slot_head;
    memset(r->ws, 0xff, (size_t)bytes);
    grad_launch(r, ENTRY_factor, frame, frame[frame_gradient(k, GRAD_SLOTS)] * r->c->H);
    grad_launch(r, ENTRY_chain, frame, blocks * tiles(w, ENTRY_chain));
    if (backwards)
        grad_launch(r, ENTRY_reverse, frame, blocks * tiles(w, ENTRY_reverse));
}

/* What rounding of operands to f16 and of records does to the root of the mean square. */
static const double limit = 1e-3;

static void judge(Walk *w) {
    double most = w->wild ? 3 * limit : limit;
    for (int of = 0; of < TENSORS; of++) {
        double e = grad_error(&w->error[of]);
        if (getenv("GDR_VERBOSE"))
            print_message("%s: %s: %.2g\n", grad_described(&w->r), tensor_name[of], e);
        if (!(e <= most))
            fail_msg("%s: %s off by %g", grad_described(&w->r), tensor_name[of], e);
    }
    if (getenv("GDR_VERBOSE") && w->wild)
        print_message("%s: worst column %.2g\n", grad_described(&w->r), w->worst_column);
    if (!(w->worst_column <= 8 * limit))
        fail_msg("%s: a column off by %g", grad_described(&w->r), w->worst_column);
}

/* Sizes of the upstream gradients' columns from 2^-40 to 2^40, for `do` and dS apart by up to 2^20;
 * nothing comes from the middle third of the tokens. */
static void make_wild(Walk *w) {
    GradRun *r = &w->r;
    int64_t V = r->c->V, rows = (int64_t)r->c->N * r->c->H * r->c->K;
    for (int64_t v = 0; v < V; v++) {
        double size = ldexp(1, (int)(80 * random_unit(&r->seed)) - 40);
        double other = ldexp(size, (int)(40 * random_unit(&r->seed)) - 20);
        for (int i = r->token->in.count; i < r->code->in.count; i++)
            for (int64_t n = 0; n < r->tokens * r->heads[i]; n++) {
                bool silent = n / r->heads[i] / (r->tokens / 3) == 1;
                ((float *)r->in[i])[n * V + v] *= silent ? 0 : (float)size;
            }
        for (int64_t n = 0; n < rows; n++)
            ((float *)r->ds)[n * V + v] *= (float)other;
    }
}

static void run_all(Walk *w) {
    GradRun *r = &w->r;
    grad_tensors(r);
    if (w->wild)
        make_wild(w);
    make_plain(w);
    int64_t segments = (r->slots + r->segment - 1) / r->segment;
    int64_t bytes = (int64_t)r->c->H * (r->c->K + 1) * r->c->V * 4; /* and units */
    assert_true(segments <= SEGMENTS_MAX);
    for (int64_t i = 0; i <= segments; i++) {
        w->state[i] = grad_memory(r, bytes, true);
        w->costate[i] = grad_memory(r, bytes, true);
    }
    for (int64_t i = 0; i < segments - 1; i++)
        run_segment(w, i * r->segment, false);
    for (int64_t i = segments - 1; i >= 0; i--) {
        run_segment(w, i * r->segment, true);
        compare_segment(w, i * r->segment);
    }
    judge(w);
}

/* Chunks are evaluated one by one, which is right where tokens meet through the state alone. */
static bool has_memory(const Kernel *k) {
    return count_op(k, OP_prev) + count_op(k, OP_cumsum) > 0;
}

static bool run_walk(const GradCase *c, bool wild) {
    Walk *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->wild = wild;
    if (!grad_spec_wanted(c->spec)) {
        free(w);
        return true;
    }
    bool done = grad_open(&w->r, c);
    if (done) {
        const char *why = NULL;
        done = !has_memory(w->r.token) && nv_gradient(&w->r.arena, w->r.code, &w->g, &why);
        why = done ? grad_add(&w->r, nv_build_factor) : why;
        why = why || !done ? why : grad_add(&w->r, nv_build_chain);
        why = why || !done ? why : grad_add(&w->r, nv_build_reverse);
        done = done && !why;
        if (done)
            run_all(w);
        else if (getenv("GDR_VERBOSE"))
            print_message("%s: %s\n", c->spec, why ? why : "remembers earlier tokens");
        grad_close(&w->r);
    }
    free(w);
    return done;
}

/* False when there is no such kernel. */
static bool run_case(const GradCase *c) {
    return run_walk(c, false);
}

/* cases ---------------------------------------------------------------------------------------- */

static const GradCase usual = {.K = 32,
                               .V = 32,
                               .rows = 32,
                               .target = "sm_90a",
                               .H = 2,
                               .N = 1,
                               .T = 70,
                               .start = true,
                               .final = true};

/* Sizes that divide nothing among them, both schedules, all types. */
static void test_specs(void **state) {
    (void)state;
    static const struct {
        int K, V, rows;
    } sizes[] = {
        {32, 32, 16}, {64, 64, 64}, {40, 24, 32}, {32, 100, 32}, {100, 64, 16},
    };
    static const char *const target[] = {"sm_90a", "sm_80"};
    char name[SPECS_MAX][SPEC_NAME];
    int done = 0, tried = 0, count = spec_names(name);
    for (int i = 0; i < 2 * count; i++) {
        const char *spec = name[i / 2];
        GradCase c = usual;
        int size = (i / 2 + i % 2 * 2) % 5;
        c.spec = spec, c.elem = (Elem)(i / 2 % 3), c.target = target[i % 2];
        c.K = sizes[size].K, c.V = sizes[size].V, c.rows = sizes[size].rows;
        c.start = i % 3 != 1, c.final = i % 4 != 1;
        tried++;
        done += run_case(&c);
    }
    assert_true(done >= tried * 7 / 10);
}

static const char *const few[] = {"gdn2",  "gated_deltaproduct", "gla",
                                  "rwkv7", "linear_attention",   "deltanet"};
enum { FEW = sizeof few / sizeof few[0] };

/* Sequences of no tokens, of one, of whole chunks; as many blocks with nothing to do. */
static void test_packed(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++) {
        GradCase c = usual;
        c.spec = few[f], c.N = 5, c.cu_width = f % 2 ? 4 : 8, c.elem = (Elem)(f % 3);
        c.target = f % 2 ? "sm_80" : "sm_90a";
        memcpy(c.length, (int[]){5, 0, 67, 1, 32}, sizeof(int[5]));
        assert_true(run_case(&c));
    }
}

/* A segment begins and ends within sequences, between them, and where one has no chunks. */
static void test_segments(void **state) {
    (void)state;
    for (int f = 0; f < 2 * FEW; f++) {
        GradCase c = usual;
        c.spec = few[f % FEW], c.elem = (Elem)(f % 3), c.segment = 2, c.rows = 16;
        c.target = f % 2 ? "sm_80" : "sm_90a";
        if (f < FEW) {
            c.T = f % 2 ? 70 : 35, c.N = f % 2 ? 1 : 3;
        } else {
            c.N = 5, c.cu_width = 8;
            memcpy(c.length, (int[]){70, 0, 3, 33, 0}, sizeof(int[5]));
        }
        assert_true(run_case(&c));
    }
}

/* Nothing is known of the past behind a reset, nothing of the future before it. */
static void test_resets(void **state) {
    (void)state;
    static const char *const spec[] = {"gdn2", "kda", "gated_deltanet", "gla", "rwkv7"};
    for (int f = 0; f < 10; f++) {
        GradCase c = usual;
        c.spec = spec[f / 2], c.elem = (Elem)(f % 3), c.resets = f % 3 ? .1 : 1;
        c.target = f % 2 ? "sm_80" : "sm_90a";
        c.start = c.final = f % 4 < 2;
        assert_true(run_case(&c));
    }
}

/* The tiles that launches choose between. */
static void test_tiles(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int K, V, v_tile;
    } tile[] = {
        {"gdn2", 128, 128, 0}, {"gdn2", 128, 128, 64}, {"gated_deltanet", 64, 200, 64},
        {"kda", 256, 64, 0},   {"gla", 48, 144, 32},
    };
    for (size_t i = 0; i < sizeof tile / sizeof tile[0]; i++) {
        GradCase c = usual;
        c.spec = tile[i].spec, c.K = tile[i].K, c.V = tile[i].V, c.v_tile = tile[i].v_tile;
        c.elem = ELEM_bf16, c.rows = c.K > 128 ? 16 : 64, c.H = 1;
        assert_true(run_case(&c));
    }
}

static void test_ranges(void **state) {
    (void)state;
    for (int f = 0; f < 2 * FEW; f++) {
        GradCase c = usual;
        c.spec = few[f / 2], c.T = 150, c.elem = ELEM_f32, c.target = f % 2 ? "sm_80" : "sm_90a";
        c.final = f % 3 > 0, c.gate = -.02;
        assert_true(run_walk(&c, true));
    }
}

/* Records so large that a third of them takes no block's place: walks that are shorter than the stages, and that
 * come back to the first stage twice; token scalars among what is staged. */
static void test_three_stages(void **state) {
    (void)state;
    static const char scaled[] = "variant scaled {\n dim K = 128, V = 64\n"
                                 " in q[K], k[K], v[V], h\n state S[K, V]\n S = S + k * v'\n"
                                 " out o[V] = (S' * q) * (1 + sigmoid(h))\n}\n";
    for (int i = 0; i < 2; i++) {
        GradCase c = usual;
        c.spec = i ? "scaled" : "gated_deltanet", c.text = i ? scaled : NULL;
        c.K = 128, c.V = 64, c.rows = 64, c.elem = ELEM_bf16, c.H = 1, c.N = 3, c.cu_width = 8;
        memcpy(c.length, (int[]){70, 5, 64 * 6 + 2}, sizeof(int[3]));
        assert_true(run_case(&c));
    }
}

/* Outs that are more than a read: dO is then an expression of inputs along V, of tokens and of
 * params; two reads at different places of a token with two updates; the state's cotangent is no
 * input. */
static void test_outs(void **state) {
    (void)state;
    static const char gated[] =
        "variant gated {\n dim K = 64, V = 64\n"
        " in q[K], k[K], v[V], g[V], h\n param c[V]\n state S[K, V]\n"
        " S = S + k * v'\n"
        " out o[V] = (S' * q) .* sigmoid(g) .* exp(c) * (1 + sigmoid(h))\n}\n";
    static const char two[] = "variant two {\n dim K = 64, V = 64\n"
                              " in q[K], k[K], v[V], r[K], p[K], u[V]\n state S[K, V]\n"
                              " S = S + k * (v - S' * k)'\n let early = S' * r\n"
                              " S = S + p * u'\n out o[V] = S' * q + early .* v\n}\n";
    static const char squared[] = "variant squared {\n dim K = 64, V = 64\n"
                                  " in q[K], k[K], v[V]\n state S[K, V]\n S = S + k * v'\n"
                                  " out o[V] = (S' * q) .* (S' * q)\n}\n";
    static const char normed[] = "variant normed {\n dim K = 64, V = 64\n"
                                 " in q[K], k[K], v[V]\n state S[K, V]\n S = S + k * v'\n"
                                 " let y = S' * q\n out o[V] = y * rsqrt(dot(y, y) + 1e-6)\n}\n";
    for (int i = 0; i < 12; i++) {
        GradCase c = usual;
        c.spec = i < 6 ? "gated" : "two", c.text = i < 6 ? gated : two, c.elem = (Elem)(i % 3);
        c.target = i / 3 % 2 ? "sm_80" : "sm_90a", c.V = i % 2 ? 24 : 64;
        assert_true(run_case(&c));
    }
    GradCase c = usual;
    c.spec = "squared", c.text = squared;
    assert_true(!grad_spec_wanted(c.spec) || !run_case(&c));
    c.spec = "normed", c.text = normed;
    assert_true(!grad_spec_wanted(c.spec) || !run_case(&c));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs),    cmocka_unit_test(test_packed),
        cmocka_unit_test(test_segments), cmocka_unit_test(test_resets),
        cmocka_unit_test(test_tiles),    cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_outs),     cmocka_unit_test(test_three_stages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
