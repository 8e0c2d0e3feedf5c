/* Random inputs for any spec, in the ranges that models have.
 *
 * What an input is follows from its declaration and its use:
 *     range with upper end <= 0     a log-decay: the gate patterns
 *     other finite range            a gate: uniform, all low, all high
 *     goes through exp, sigmoid, .. a raw gate: normal, or far out on either side
 *     [..,K] otherwise              a key: unit length, the key patterns
 *     [..,V] otherwise              a value: normal, halved
 * Numbers are hashes of (seed, tensor, sequence, token, head, element): replayable, and the same
 * for a sequence wherever it lies in a batch.
 */
#include "driver/driver.h"

#include <math.h>
#include <string.h>

/* hashing -------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* Uniform in (0, 1). */
static double uniform(uint64_t key, uint64_t index) {
    return ((double)(mix(key ^ mix(index)) >> 11) + 0.5) * 0x1p-53;
}

static double normal(uint64_t key, uint64_t index) {
    double r = sqrt(-2 * log(uniform(key, 2 * index)));
    return r * cos(6.283185307179586 * uniform(key, 2 * index + 1));
}

/* what an input is ----------------------------------------------------------------------------- */

typedef enum {
    ROLE_decay,
    ROLE_gate,
    ROLE_raw_decay,
    ROLE_raw_gate,
    ROLE_key,
    ROLE_value,
    ROLE_plain,
    ROLE_log_param,
    ROLE_plain_param
} InputRole;

/* Whether some use of the input goes through a function that takes any number to a bounded one. */
static bool is_squashed(const Kernel *k, int port) {
    bool found = false;
    Arena scratch;
    arena_init(&scratch, k->arena->oom);
    bool *from = NEW_ARRAY(&scratch, bool, k->inst.count + 1);
    for (int v = 0; v < k->inst.count && !found; v++) {
        const Inst *i = inst_at(k, v);
        from[v] = i->op == OP_in && i->index == port;
        OpClass class = op_info[i->op].class;
        bool elementwise = class == CLASS_PURE || class == CLASS_TIME;
        for (int a = 0; a < i->nargs; a++)
            if (elementwise && i->arg[a] >= 0 && from[i->arg[a]]) {
                from[v] = true;
                found = i->op == OP_exp || i->op == OP_sigmoid || i->op == OP_softplus ||
                        i->op == OP_tanh;
            }
    }
    arena_free(&scratch);
    return found;
}

static InputRole role_of(const Kernel *k, int port) {
    const Port *p = &k->in.at[port];
    if (p->is_param && isinf(p->lo) && isinf(p->hi))
        return strstr(p->name, "log") ? ROLE_log_param : ROLE_plain_param;
    if (p->hi <= 0)
        return ROLE_decay;
    if (isfinite(p->lo))
        return ROLE_gate;
    if (is_squashed(k, port))
        return p->name[0] == 'b' || p->name[0] == 'w' ? ROLE_raw_gate : ROLE_raw_decay;
    if (shape_has(p->shape, AXIS_K))
        return ROLE_key;
    return shape_has(p->shape, AXIS_V) ? ROLE_value : ROLE_plain;
}

bool input_is_vector(const Kernel *k, int port) {
    InputRole role = role_of(k, port);
    return role == ROLE_key || role == ROLE_value;
}

/* one vector ----------------------------------------------------------------------------------- */

typedef struct Draw {
    const Case *c;
    const Port *port;
    InputRole role;
    uint64_t key;   /* seed and tensor */
    uint64_t place; /* sequence, token, head, row of a table */
    int64_t t, head;
    int n; /* elements */
} Draw;

static double draw_decay(const Draw *w, int e) {
    uint64_t at = w->place + (uint64_t)e;
    double x = 0;
    switch (w->c->gate) {
    case GATE_uniform: x = -0.1 - 4.9 * uniform(w->key, at); break;
    case GATE_zero: x = 0; break;
    case GATE_tiny: x = -1e-6; break;
    case GATE_strong: x = -20; break;
    case GATE_resets: /* whole tokens forget everything */
        x = uniform(w->key ^ 1, w->place) < 0.1 ? -1000 : -0.1 * uniform(w->key, at);
        break;
    case GATE_mixed: x = e % 2 ? -30 : 0; break;
    }
    if (w->c->keys == KEYS_growth)
        x = 0;
    return x < w->port->lo ? w->port->lo : x > w->port->hi ? w->port->hi : x;
}

/* The pair of algorithm.md 6.3: alternating keys and erase gates under which I - k (b.k)' grows. */
static const double growth_key[2][2] = {{0.9128709291752769, -0.408248290463863},
                                        {0.408248290463863, -0.9128709291752769}};
static const double growth_gate[2][2] = {{0, 1}, {1, 0}};

static double draw_gate(const Draw *w, int e) {
    double lo = w->port->lo, hi = isfinite(w->port->hi) ? w->port->hi : lo + 1;
    if (w->c->keys == KEYS_growth && w->n > 1)
        return e < 2 ? lo + (hi - lo) * growth_gate[w->t % 2][e] : lo;
    switch (w->c->unit) {
    case UNIT_uniform: return lo + (hi - lo) * uniform(w->key, w->place + (uint64_t)e);
    case UNIT_low: return lo;
    case UNIT_high: return hi;
    }
    BUG("gate pattern %d", (int)w->c->unit);
}

static double draw_raw(const Draw *w, int e, bool decay) {
    double x = normal(w->key, w->place + (uint64_t)e);
    if (!decay)
        return w->c->unit == UNIT_uniform ? x : w->c->unit == UNIT_low ? -30 : 30;
    switch (w->c->gate) {
    case GATE_uniform: return x;
    case GATE_zero: return -30;
    case GATE_tiny: return -12;
    case GATE_strong: return 20;
    case GATE_resets: return uniform(w->key ^ 1, w->place) < 0.1 ? 60 : x - 3;
    case GATE_mixed: return e % 2 ? 20 : -30;
    }
    BUG("gate pattern %d", (int)w->c->gate);
}

static void draw_key(const Draw *w, double *x) {
    static const double share[] = {
        [KEYS_random] = 0, [KEYS_close9] = 0.9, [KEYS_close99] = 0.99, [KEYS_same] = 1};
    double sum = 0;
    if (w->c->keys == KEYS_growth && w->n > 1) {
        for (int e = 0; e < w->n; e++)
            x[e] = e < 2 ? growth_key[w->t % 2][e] : 0;
        return;
    }
    if (w->c->keys == KEYS_onehot || w->c->keys == KEYS_growth) {
        for (int e = 0; e < w->n; e++)
            x[e] = e == (w->t * 7 + w->head) % w->n;
        return;
    }
    double common = share[w->c->keys]; /* of the variance; one direction a tensor and head */
    for (int e = 0; e < w->n; e++) {
        x[e] = sqrt(common) * normal(w->key ^ 2, (uint64_t)(w->head * 1024 + e)) +
               sqrt(1 - common) * normal(w->key, w->place + (uint64_t)e);
        sum += x[e] * x[e];
    }
    for (int e = 0; e < w->n; e++)
        x[e] /= sqrt(sum) + 1e-30;
}

static void draw(const Draw *w, double *x) {
    if (w->role == ROLE_key) {
        draw_key(w, x);
        return;
    }
    for (int e = 0; e < w->n; e++) {
        uint64_t at = w->place + (uint64_t)e;
        switch (w->role) {
        case ROLE_decay: x[e] = draw_decay(w, e); break;
        case ROLE_gate: x[e] = draw_gate(w, e); break;
        case ROLE_raw_decay: x[e] = draw_raw(w, e, true); break;
        case ROLE_raw_gate: x[e] = draw_raw(w, e, false); break;
        case ROLE_value: x[e] = 0.5 * normal(w->key, at); break;
        case ROLE_plain: x[e] = uniform(w->key, at); break;
        case ROLE_log_param: x[e] = log(1 + 15 * uniform(w->key, at)); break;
        case ROLE_plain_param: x[e] = normal(w->key, at); break;
        case ROLE_key: break;
        }
    }
}

/* whole tensors -------------------------------------------------------------------------------- */

typedef struct Filler {
    const Case *c;
    Problem *p;
    uint64_t seed;
    int rotate;
    const Change *change;
} Filler;

static bool is_changed(const Change *c, bool upstream, int64_t sequence, int64_t t) {
    return c && c->any && c->upstream == upstream && c->sequence == sequence &&
           (upstream ? t < c->from : t >= c->from);
}

/* Where a case repeats its rows: row i of a sequence is that of a token that was filled before. */
static bool repeat_row(const Filler *f, Tensor *t, int64_t begin, int64_t i) {
    if (!f->c->repeat || i < f->c->repeat)
        return false;
    size_t row_bytes = t->bytes / (size_t)(t->shape[0] * t->shape[1]);
    char *row0 = (char *)t->data + (size_t)begin * row_bytes;
    memcpy(row0 + (size_t)i * row_bytes, row0 + (size_t)(i % f->c->repeat) * row_bytes, row_bytes);
    return true;
}

/* Fills rows [begin, begin+length) of a per-token tensor as sequence number `label`. */
static void fill_rows(const Filler *f, int port, Tensor *t, int64_t begin, int64_t length,
                      int64_t label) {
    const Kernel *k = f->p->k;
    const Port *p = &k->in.at[port];
    int64_t heads = t->shape[2], elements = shape_elements(k, p->shape);
    int n = t->ndim > 3 ? (int)t->shape[t->ndim - 1] : 1;
    double x[DIM_MAX];
    Draw w = {.c = f->c, .port = p, .role = role_of(k, port), .n = n};
    for (int64_t i = 0; i < length; i++) {
        if (repeat_row(f, t, begin, i))
            continue;
        bool changed = is_changed(f->change, false, label, i);
        w.key = mix(f->seed + 1000003 * (uint64_t)port + (changed ? 77 : 0));
        w.t = i;
        for (int64_t h = 0; h < heads; h++)
            for (int64_t row = 0; row < elements / n; row++) {
                w.head = h;
                w.place = mix((uint64_t)label << 40 ^ (uint64_t)i << 16 ^ (uint64_t)h) +
                          (uint64_t)(row * n);
                draw(&w, x);
                for (int e = 0; e < n; e++)
                    scalar_put(t->dtype, t->data,
                               ((begin + i) * heads + h) * elements + row * n + e, x[e]);
            }
    }
}

static void fill_param(const Filler *f, int port, Tensor *t) {
    const Port *p = &f->p->k->in.at[port];
    Draw w = {.c = f->c,
              .port = p,
              .role = role_of(f->p->k, port),
              .key = mix(f->seed + 1000003 * (uint64_t)port)};
    double x[DIM_MAX];
    int64_t heads = t->shape[0];
    w.n = (int)(tensor_count(t) / heads);
    for (int64_t h = 0; h < heads; h++) {
        w.head = h;
        w.place = mix((uint64_t)h);
        draw(&w, x);
        for (int e = 0; e < w.n; e++)
            scalar_put(t->dtype, t->data, h * w.n + e, x[e]);
    }
}

static void fill_input(const Filler *f, Arena *arena, int port) {
    Problem *p = f->p;
    const Kernel *k = p->k;
    const Port *io = &k->in.at[port];
    InputRole role = role_of(k, port);
    int64_t heads = role == ROLE_key ? f->c->key_heads : f->c->H;
    int64_t shape[TENSOR_NDIM_MAX] = {p->B, p->T, heads};
    int lead = 3;
    if (io->is_param) {
        shape[0] = f->c->H;
        lead = 1;
    }
    for (int j = 0; j < io->shape.rank; j++)
        shape[lead + j] = k->axis.at[io->shape.axis[j]].size;
    Tensor *t = &p->in[port];
    *t = tensor_new(arena, io->name, dtype_of_elem(io->elem), lead + io->shape.rank, shape);
    if (io->is_param) {
        fill_param(f, port, t);
        return;
    }
    tensor_poison(t); /* rows that belong to no sequence must not be used */
    for (int64_t n = 0; n < p->N; n++) {
        int64_t begin, length;
        problem_sequence(p, n, &begin, &length);
        fill_rows(f, port, t, begin, length, (n + f->rotate) % p->N);
    }
}

static Tensor fill_state(const Filler *f, Arena *arena, const char *name, uint64_t key) {
    Problem *p = f->p;
    int64_t K = p->k->axis.at[AXIS_K].size, V = p->k->axis.at[AXIS_V].size;
    bool vk = p->state_layout == GDR_LAYOUT_VK;
    const int64_t shape[4] = {p->N, p->H, vk ? V : K, vk ? K : V};
    Tensor t = tensor_new(arena, name, p->state_type, 4, shape);
    int64_t n = tensor_count(&t), one = p->N ? n / p->N : 0, filled = f->c->repeat ? one : n;
    for (int64_t i = 0; i < filled; i++) { /* element i of [N,H,K,V] */
        int64_t label = (i / one + f->rotate) % p->N, at = i;
        if (vk)
            at = i / (K * V) * (K * V) + i % V * K + i / V % K;
        scalar_put(t.dtype, t.data, at,
                   0.5 * normal(mix(f->seed ^ key), (uint64_t)(label * one + i % one)));
    }
    /* Where tokens are repeated, so are states. */
    size_t bytes = p->N ? t.bytes / (size_t)p->N : 0;
    for (int64_t sequence = 1; filled < n && sequence < p->N; sequence++)
        memcpy((char *)t.data + (size_t)sequence * bytes, t.data, bytes);
    return t;
}

/* gradients from outside ----------------------------------------------------------------------- */

/* As fill_rows. */
static void fill_upstream_rows(const Filler *f, int out, Tensor *t, int64_t begin, int64_t length,
                               int64_t label) {
    int64_t heads = t->shape[2], elements = shape_elements(f->p->k, f->p->k->out.at[out].shape);
    for (int64_t i = 0; i < length; i++) {
        if (repeat_row(f, t, begin, i))
            continue;
        uint64_t key = mix(f->seed + 999983 * (uint64_t)(out + 1) +
                           (is_changed(f->change, true, label, i) ? 77 : 0));
        for (int64_t e = 0; e < heads * elements; e++) {
            uint64_t head = (uint64_t)(e / elements);
            uint64_t place = mix((uint64_t)label << 40 ^ (uint64_t)i << 16 ^ head);
            scalar_put(t->dtype, t->data, (begin + i) * heads * elements + e,
                       normal(key, place + (uint64_t)(e % elements)));
        }
    }
}

static void fill_upstream(const Filler *f, Arena *arena, int out) {
    Problem *p = f->p;
    const Port *port = &p->k->out.at[out];
    int64_t shape[TENSOR_NDIM_MAX] = {p->B, p->T, p->H};
    for (int j = 0; j < port->shape.rank; j++)
        shape[3 + j] = p->k->axis.at[port->shape.axis[j]].size;
    Tensor *t = &p->dout[out];
    *t = tensor_new(arena, p->dname[out], dtype_of_elem(port->elem), 3 + port->shape.rank, shape);
    tensor_poison(t);
    for (int64_t n = 0; n < p->N; n++) {
        int64_t begin, length;
        problem_sequence(p, n, &begin, &length);
        fill_upstream_rows(f, out, t, begin, length, (n + f->rotate) % p->N);
    }
}

static void fill_gradients(const Filler *f, Arena *arena) {
    Problem *p = f->p;
    Upstream u = f->c->upstream;
    p->grad = true;
    p->dname = NEW_ARRAY(arena, const char *, p->k->in.count + p->k->out.count + 1);
    p->dout = NEW_ARRAY(arena, Tensor, p->k->out.count + 1);
    gradient_names(p->k, p->dname);
    for (int o = 0; o < p->k->out.count && u != UPSTREAM_state; o++)
        if (o == 0 || u != UPSTREAM_first)
            fill_upstream(f, arena, o);
    if (u == UPSTREAM_all || u == UPSTREAM_state)
        p->dS = fill_state(f, arena, "dS", 0x64);
}

/* sizes ---------------------------------------------------------------------------------------- */

static void set_types(Kernel *k, gdr_dtype type) {
    Elem io = ELEM_f32;
    elem_of_dtype(type, &io);
    for (int i = 0; i < k->in.count; i++)
        k->in.at[i].elem = k->in.at[i].is_param ? ELEM_f32 : io;
    for (int i = 0; i < k->out.count; i++)
        k->out.at[i].elem = io;
}

/* The spec's names for the state's two sizes, set to the case's. */
static void bind_state_dims(Driver *d, Arena *arena, const Variant *v, const Case *c, Problem *p) {
    gdr_dim *dims = NEW_ARRAY(arena, gdr_dim, 2 + d->opt.dim.count);
    int n = 0;
    dims[n++] = (gdr_dim){v->state->dim_name[0], c->K};
    if (strcmp(v->state->dim_name[0], v->state->dim_name[1]))
        dims[n++] = (gdr_dim){v->state->dim_name[1], c->V};
    for (int i = 0; i < d->opt.dim.count; i++) {
        const gdr_dim *given = &d->opt.dim.at[i];
        bool replaces = false;
        for (int j = 0; j < n; j++)
            if (!strcmp(dims[j].name, given->name)) {
                dims[j].size = given->size;
                replaces = true;
            }
        if (!replaces)
            dims[n++] = *given;
    }
    p->dims = dims;
    p->ndims = n;
}

static void set_packed(Arena *arena, const Case *c, Problem *p, int rotate) {
    int64_t shape[1] = {c->sequences + 1}, at = 0;
    p->cu = tensor_new(arena, "cu_seqlens", GDR_I64, 1, shape);
    for (int n = 0; n < c->sequences; n++) {
        at += c->length[(n + rotate) % c->sequences];
        ((int64_t *)p->cu.data)[n + 1] = at;
    }
    p->B = 1;
    p->T = at + c->spare;
    p->N = c->sequences;
}

void case_problem(Driver *d, Arena *arena, Spec *s, const char *variant, const Case *c,
                  uint64_t seed, int rotate, const Change *change, Problem *p) {
    *p = (Problem){.spec = s, .variant = variant};
    if (!c->grad) {
        p->state_type = (gdr_dtype)d->opt.state_type;
        p->state_layout = (gdr_layout)d->opt.state_layout;
    }
    const Variant *v = spec_variant(s->file, variant, &s->diag);
    bind_state_dims(d, arena, v, c, p);
    p->k = spec_kernel(d, s, variant, p->dims, p->ndims);
    if (!p->k)
        return;
    set_types(p->k, c->type);
    p->B = p->N = c->B;
    p->T = c->T;
    p->H = c->H;
    if (c->sequences)
        set_packed(arena, c, p, rotate);
    Filler f = {.c = c, .p = p, .seed = mix(seed), .rotate = rotate, .change = change};
    p->in = NEW_ARRAY(arena, Tensor, p->k->in.count + 1);
    bool wide = false;
    for (int i = 0; i < p->k->in.count; i++) {
        fill_input(&f, arena, i);
        wide |= p->in[i].shape[p->k->in.at[i].is_param ? 0 : 2] == c->H;
    }
    if (!wide) /* only keys: their head count is the widest */
        p->H = c->key_heads;
    if (c->S0)
        p->S0 = fill_state(&f, arena, "S0", 0x53);
    if (c->grad)
        fill_gradients(&f, arena);
}
