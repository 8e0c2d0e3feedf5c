/* Phase 2 of the GPU's grad kernel alone, and the sums entry, on the interpreter: cotangents of rows,
 * keys, decays and of the updates are the test's, and every gradient is compared with the same kernel
 * evaluated plainly in fp64.
 *
 *   GDR_SPEC=NAME  this spec alone
 *   GDR_VERBOSE=1  the errors of everything that ran
 */
#include "tests/unit/grad_run.h"

/* The scratch, filled here, serves one task after another. */
static bool plan_tokens(Grad *g, int *sh_bytes, const char **why) {
    bool ok = grad_token_plan(g, sh_bytes, why);
    g->scratch_is_done = false;
    return ok;
}

static bool build_tokens(Cg *cg, CgModule *out, const char **why) {
    const GradPhase phase[] = {{grad_read_plan, grad_read}, {plan_tokens, grad_tokens}};
    return grad_build(cg, out, ENTRY_grad, phase, 2, why);
}

/* the kernel, plainly -------------------------------------------------------------------------- */

/* One head of one sequence. */
typedef struct Plain {
    GradRun *r;
    const Kernel *k;
    const Gradient *g;
    Grad plan;                /* where what lies in the scratch */
    int n, head;
    double **want;            /* by gradient: sums over the heads of a group so far, as parts lie */
    double **memo;            /* [value * T + token] */
    int64_t T;
    Arena arena;
} Plain;

static int64_t count_of(const Plain *p, int v) {
    return shape_elements(p->k, shape_features(inst_at(p->k, v)->shape));
}

static const double *plain(Plain *p, int v, int64_t t);

static int64_t task_of(const Plain *p, int64_t t) {
    int64_t slot = grad_first_slot(p->r, p->n) + t / p->r->module.chunk;
    return slot % p->r->segment * p->r->c->H + p->head;
}

/* The record's f16 matrix element: nv_place, in numbers. */
static int64_t matrix_place(int rows, int columns, int64_t row, int64_t column) {
    int width = nv_block_columns(columns) / 8, log = width == 8 ? 3 : width == 4 ? 2 : 1;
    int64_t unit = column / 8, turned = unit % width ^ (row >> (3 - log) & (width - 1));
    return (unit / width * rows * width + row * width + turned) * 8 + column % 8;
}

static bool in_memory(const Plain *p, int v) {
    bool found = v == p->g->dX || v == p->g->p_root || v == p->g->a_root;
    for (int f = 0; f < p->g->s.families; f++)
        found = found || p->g->family[f].root == v || p->g->family[f].read == v;
    return found;
}

static double matrix_element(const char *matrix, int rows, int columns, int64_t row, int64_t column) {
    return grad_get(matrix, matrix_place(rows, columns, row, column), ELEM_f16);
}

/* What out family f reads at a token's last lattice row. */
static double read_element(const Plain *p, int f, const char *record, int64_t row, int64_t v) {
    const System *s = &p->g->s;
    const Family *fam = &s->family[f];
    double state = 0, chunk = 0;
    for (int k = 0; k < s->kp; k++)
        state += matrix_element(record + fam->ws_w, s->rows, s->kp, row, k) *
                 matrix_element(record + s->ws_s, s->vp, s->kp, v, grad_state_channel(k));
    for (int u = 0; u < s->rows; u++) {
        int64_t keys = s->grows ? s->ws_columns : s->p_scaled && !s->erase ? s->ws_keys : -1;
        double key = keys >= 0 ? ((const float *)(record + keys))[u] : 1;
        chunk += matrix_element(record + fam->ws_m, s->rows, s->rows, row, u) * key *
                 matrix_element(record + s->ws_x, s->rows, s->vp, u, v);
    }
    double scale = s->has_scale ? *(const float *)(record + s->ws_scale) : 1;
    double factor = fam->scaled ? ((const float *)(record + fam->ws_rows))[row] : 1;
    return factor * (state * ((const float *)(record + s->ws_unit_s))[v] +
                     scale * chunk * ((const float *)(record + s->ws_unit_x))[v]);
}

static double memory_element(const Plain *p, int v, int64_t t, int place, int64_t j) {
    const System *s = &p->g->s;
    const GradRun *r = p->r;
    int64_t row = t % r->module.chunk * s->slots + place, task = task_of(p, t);
    const char *record = (const char *)r->ws + task * s->ws_bytes;
    int64_t block = task / (r->c->group ? r->c->group : 1) % r->blocks;
    const char *scratch = (const char *)r->scratch + block * p->plan.scratch_bytes;
    if (v == p->g->dX)
        return grad_get(record + s->ws_dx, matrix_place(s->rows, s->vp, row, j), ELEM_f16) *
               ((const float *)(record + s->ws_unit_dx))[j];
    for (int f = 0; f < s->families; f++)
        if (p->g->family[f].read == v)
            return read_element(p, f, record, row, j);
    int64_t at = p->plan.scratch_dp, columns = s->kp;
    if (v == p->g->a_root) {
        at = p->plan.scratch_da;
        columns = s->a_key ? s->kp : 1;
    }
    for (int f = 0; f < s->families; f++)
        if (p->g->family[f].root == v)
            at = p->plan.scratch_dx[f];
    return grad_get(scratch + at, row * columns + j, columns > 1 ? p->plan.scratch_elem : ELEM_f32);
}

static double lattice(Plain *p, int v, int64_t t, int place, int64_t j) {
    const Inst *i = inst_at(p->k, v);
    j = count_of(p, v) > 1 ? j : 0;
    if (p->g->zero[v])
        return 0;
    if (in_memory(p, v))
        return memory_element(p, v, t, place, j);
    if (i->op == OP_rename)
        return lattice(p, i->arg[0], t, place, j);
    if (i->op == OP_weave)
        return plain(p, i->arg[place], t)[count_of(p, i->arg[place]) > 1 ? j : 0];
    assert_int_equal(op_info[i->op].class, CLASS_PURE);
    double b = i->nargs > 1 ? lattice(p, i->arg[1], t, place, j) : 0;
    return op_eval(i->op, lattice(p, i->arg[0], t, place, j), b);
}

static double input_element(const Plain *p, const Inst *i, int64_t t, int64_t j) {
    const GradRun *r = p->r;
    const Port *port = &p->k->in.at[i->index];
    int heads = r->heads[i->index], own = p->head * heads / r->c->H;
    int64_t size = shape_elements(p->k, port->shape);
    int64_t row = port->is_param ? own : (grad_first(r->c, p->n) + t) * heads + own;
    int64_t width = shape_elements(p->k, shape_features(i->shape));
    return grad_get(r->in[i->index], row * size + (i->row > 0 ? i->row * width : 0) + j, port->elem);
}

static double operand(Plain *p, int v, int64_t t, int64_t j) {
    const double *x = plain(p, v, t);
    return x[count_of(p, v) > 1 ? j : 0];
}

/* The chunk of token t: its tokens. */
static double over_chunk(Plain *p, const Inst *i, int64_t t, int64_t j) {
    int64_t C = p->r->module.chunk, first = t / C * C;
    double sum = 0;
    for (int64_t u = first; u < first + C && u < p->T; u++)
        sum += operand(p, i->arg[0], u, j) * (i->nargs > 1 ? operand(p, i->arg[1], u, j) : 1);
    return sum;
}

static double dot(Plain *p, const Inst *i, int64_t t) {
    double sum = 0;
    for (int64_t j = 0; j < count_of(p, i->arg[0]); j++)
        sum += operand(p, i->arg[0], t, j) * operand(p, i->arg[1], t, j);
    return sum;
}

static int family_place(const Plain *p, int v) {
    for (int f = 0; f < p->g->s.families; f++)
        if (p->g->family[f].read == v)
            return p->g->s.slots - 1;
    for (int f = 0; f < p->g->s.families; f++)
        if (p->g->family[f].root == v)
            return p->g->s.family[f].position > 0 ? p->g->s.family[f].position : 0;
    return 0;
}

static double element(Plain *p, int v, int64_t t, int64_t j) {
    const Inst *i = inst_at(p->k, v);
    if (p->g->zero[v])
        return 0;
    if (in_memory(p, v))
        return memory_element(p, v, t, family_place(p, v), j);
    switch ((int)i->op) {
    case OP_const: return i->num;
    case OP_in: return input_element(p, i, t, j);
    case OP_slot: return lattice(p, i->arg[0], t, i->place, j);
    case OP_prev: return t ? operand(p, i->arg[0], t - 1, j) : 0;
    case OP_after: return t + 1 < p->T ? operand(p, i->arg[0], t + 1, j) : 0;
    case OP_cumsum: return operand(p, i->arg[0], t, j) + (t ? operand(p, v, t - 1, j) : 0);
    case OP_cumsum_back:
        return operand(p, i->arg[0], t, j) + (t + 1 < p->T ? operand(p, v, t + 1, j) : 0);
    case OP_turn: return j % 2 ? operand(p, i->arg[0], t, j - 1) : -operand(p, i->arg[0], t, j + 1);
    case OP_contract: return i->axis == AXIS_C ? over_chunk(p, i, t, j) : dot(p, i, t);
    case OP_sum: break;
    default:
        assert_int_equal(op_info[i->op].class, CLASS_PURE);
        return op_eval(i->op, operand(p, i->arg[0], t, j),
                       i->nargs > 1 ? operand(p, i->arg[1], t, j) : 0);
    }
    if (i->axis == AXIS_C)
        return over_chunk(p, i, t, j);
    double sum = 0;
    for (int64_t m = 0; m < count_of(p, i->arg[0]); m++)
        sum += operand(p, i->arg[0], t, m);
    return sum;
}

static const double *plain(Plain *p, int v, int64_t t) {
    double **memo = &p->memo[v * p->T + t];
    if (*memo)
        return *memo;
    double *x = NEW_ARRAY(&p->arena, double, count_of(p, v));
    for (int64_t j = 0; j < count_of(p, v); j++)
        x[j] = element(p, v, t, j);
    return *memo = x;
}

/* filling -------------------------------------------------------------------------------------- */

static void fill_matrix(GradRun *r, char *matrix, int64_t elements) {
    for (int64_t j = 0; j < elements; j++)
        grad_set(matrix, j, ELEM_f16, 2 * random_unit(&r->seed) - 1);
}

static void fill_powers(char *at, int n) {
    for (int j = 0; j < n; j++)
        ((float *)at)[j] = j % 2 ? 0.5f : 2;
}

/* What the outs' reads are made of, where they are wanted. */
static void fill_reads(GradRun *r, const Gradient *g, char *record) {
    const System *s = &g->s;
    for (int f = 0; f < s->families; f++) {
        const Family *fam = &s->family[f];
        if (g->family[f].read < 0)
            continue;
        fill_matrix(r, record + fam->ws_w, (int64_t)s->rows * s->kp);
        fill_matrix(r, record + fam->ws_m, (int64_t)s->rows * s->rows);
        fill_matrix(r, record + s->ws_s, (int64_t)s->vp * s->kp);
        fill_matrix(r, record + s->ws_x, (int64_t)s->rows * s->vp);
        fill_powers(record + s->ws_unit_s, s->vp);
        fill_powers(record + s->ws_unit_x, s->vp);
        if (s->has_scale)
            fill_powers(record + s->ws_scale, 1);
        if (s->p_scaled && !s->erase)
            fill_powers(record + s->ws_keys, s->rows);
        if (s->grows)
            fill_powers(record + s->ws_columns, s->rows);
        if (fam->scaled)
            fill_powers(record + fam->ws_rows, s->rows);
    }
}

/* The scratch whole, of records what is read, nothing else. A word of the scratch is as good a number when
 * it is read as one f32 as it is as two bf16. */
static void fill(GradRun *r, const Gradient *g, int64_t scratch_bytes) {
    const System *s = &g->s;
    for (int64_t j = 0; j < r->blocks * scratch_bytes / 2; j++)
        ((uint16_t *)r->scratch)[j] =
            (uint16_t)number_put(NUMBER_bf16, (float)(2 * random_unit(&r->seed) - 1));
    for (int64_t task = 0; task < r->segment * r->c->H; task++) {
        char *record = (char *)r->ws + task * s->ws_bytes;
        fill_matrix(r, record + s->ws_dx, (int64_t)s->rows * s->vp);
        fill_powers(record + s->ws_unit_dx, s->vp);
        fill_reads(r, g, record);
    }
}

/* comparing ------------------------------------------------------------------------------------ */

/* Element j of gradient o at row `row` of `heads` heads, as given by the port's instructions. */
static double wanted_element(Plain *p, int o, int64_t t, int64_t j) {
    const Port *port = &p->k->out.at[o];
    Shape s = port->shape;
    bool by_rows = s.rank && s.axis[0] >= AXIS_user;
    int64_t width = shape_elements(p->k, by_rows ? shape_without(s, s.axis[0]) : s);
    for (int v = 0; v < p->k->inst.count; v++) {
        const Inst *i = inst_at(p->k, v);
        if (i->op == OP_out && i->index == o && (!by_rows || i->row == j / width))
            return operand(p, i->arg[0], t, j % width);
    }
    fail_msg("no out");
    return 0;
}

static double limit_of(Elem e) { return e == ELEM_f32 ? 1e-5 : e == ELEM_bf16 ? 4e-3 : 6e-4; }

/* Row `row` of the parts of o is token t's (params: its chunk's). A group's last head sees whether the
 * sum is there. */
static void check_row(Plain *p, int o, int64_t row, int64_t t, GradError *e) {
    const Port *port = &p->k->out.at[o];
    int heads = grad_out_heads(p->r, o), group = p->r->c->H / heads;
    int64_t size = shape_elements(p->k, port->shape), first = (row * heads + p->head / group) * size;
    for (int64_t j = first; j < first + size; j++) {
        p->want[o][j] += wanted_element(p, o, t, j - first);
        if ((p->head + 1) % group == 0)
            grad_error_add(e, p->want[o][j], grad_get(p->r->part[o], j, port->elem));
    }
}

static void check_sequence(Plain *p, GradError *e) {
    const GradRun *r = p->r;
    for (int o = 0; o < p->k->out.count; o++) {
        if (!grad_wanted(r, o))
            continue;
        bool param = p->k->out.at[o].is_param;
        int64_t step = param ? r->module.chunk : 1;
        for (int64_t t = 0; t < p->T; t += step)
            check_row(p, o, param ? grad_first_slot(r, p->n) + t / step : grad_first(r->c, p->n) + t,
                      t, &e[o]);
    }
}

/* Sums of the parts as they are in memory. */
static double check_sums(GradRun *r, int o) {
    const Port *port = &r->code->out.at[o];
    int heads = grad_out_heads(r, o);
    int64_t size = shape_elements(r->code, port->shape), group = heads / r->heads[o];
    int64_t rows = port->is_param ? 1 : r->tokens, parts = port->is_param ? r->slots : 1;
    GradError e = {0};
    for (int64_t row = 0; row < rows * r->heads[o]; row++)
        for (int64_t j = 0; j < size; j++) {
            double want = 0;
            for (int64_t n = 0; n < parts; n++)
                for (int64_t h = row * group; h < (row + 1) * group; h++)
                    want += grad_get(r->part[o], (n * heads + h) * size + j, port->elem);
            grad_error_add(&e, want, grad_get(r->sum[o], row * size + j, port->elem));
        }
    return grad_error(&e);
}

static void judge(GradRun *r, int o, const char *what, double error) {
    const Port *port = &r->code->out.at[o];
    if (getenv("GDR_VERBOSE"))
        print_message("%s: %s of %s: %g\n", grad_described(r), what, port->name, error);
    if (!(error <= limit_of(port->elem)))
        fail_msg("%s: %s of %s off by %g", grad_described(r), what, port->name, error);
}

/* One head of one sequence; its arena is to be freed. */
static Plain plain_open(GradRun *r, const Gradient *g, const Grad *plan, int n, int head) {
    Plain p = {.r = r, .k = r->code, .g = g, .plan = *plan, .n = n, .head = head, .T = grad_length(r->c, n)};
    arena_init(&p.arena, NULL);
    p.memo = NEW_ARRAY(&p.arena, double *, p.k->inst.count * p.T + 1);
    return p;
}

/* The sums of a segment's rows, which are what they are: a late kernel makes them of the inputs. */
static void put_sums(GradRun *r, const Gradient *g, const Grad *plan, int64_t segment) {
    const System *s = &g->s;
    for (int n = 0; n < r->c->N; n++)
        for (int head = 0; head < r->c->H; head++) {
            Plain p = plain_open(r, g, plan, n, head);
            for (int64_t t = 0; t < p.T; t++) {
                int64_t slot = grad_first_slot(r, n) + t / r->module.chunk;
                int64_t row = t % r->module.chunk * s->slots;
                float *sums = (float *)((char *)r->ws + task_of(&p, t) * s->ws_bytes + s->ws_sums);
                bool here = slot >= segment && slot < segment + r->segment;
                for (int i = 0; i < s->sums && here; i++)
                    for (int place = 0; place < s->slots; place++)
                        sums[i * s->rows + row + place] = (float)plain(&p, s->sum[i], t)[0];
            }
            arena_free(&p.arena);
        }
}

static void compare(GradRun *r, const Gradient *g, const Grad *plan) {
    GradError e[MAX_PORTS] = {0};
    double *want[MAX_PORTS];
    for (int o = 0; o < r->code->out.count; o++) {
        const Port *port = &r->code->out.at[o];
        int64_t rows = (port->is_param ? r->slots : r->tokens) * grad_out_heads(r, o);
        want[o] = NEW_ARRAY(&r->arena, double, rows * shape_elements(r->code, port->shape) + 1);
    }
    for (int n = 0; n < r->c->N; n++)
        for (int head = 0; head < r->c->H; head++) {
            Plain p = plain_open(r, g, plan, n, head);
            p.want = want;
            check_sequence(&p, e);
            arena_free(&p.arena);
        }
    for (int o = 0; o < r->code->out.count; o++) {
        if (grad_wanted(r, o))
            judge(r, o, "parts", grad_error(&e[o]));
        if (grad_wanted(r, o) && grad_summed(r, o))
            judge(r, o, "sum", check_sums(r, o));
    }
}

/* False when there is no such kernel. */
static bool run_case(const GradCase *c) {
    GradRun r;
    Gradient g;
    const char *why = NULL;
    if (!grad_open(&r, c))
        return false;
    why = grad_add_scans(&r, false);
    why = why ? why : grad_add(&r, build_tokens);
    why = why ? why : grad_add_scans(&r, true);
    why = why ? why : grad_add(&r, nv_build_sums);
    if (!why) {
        assert_true(nv_gradient(&r.arena, r.code, &g, &why));
        Grad plan = {.g = &g, .k = r.code};
        grad_plan_scratch(&plan);
        r.module.ws_bytes_per_slot_head = g.s.ws_bytes;
        grad_tensors(&r);
        fill(&r, &g, plan.scratch_bytes);
        for (int64_t slot = (r.slots - 1) / r.segment * r.segment; slot >= 0; slot -= r.segment) {
            int64_t frame[GRAD_FRAME] = {0};
            grad_frame(&r, frame, slot);
            put_sums(&r, &g, &plan, slot);
            grad_launch_scans(&r, frame, false);
            grad_launch(&r, ENTRY_grad, frame, r.blocks);
            grad_launch_scans(&r, frame, true);
            grad_launch(&r, ENTRY_sums, frame, 3);
        }
        compare(&r, &g, &plan);
    } else if (getenv("GDR_VERBOSE")) {
        print_message("%s: %s\n", grad_described(&r), why);
    }
    grad_close(&r);
    return !why;
}

/* cases ---------------------------------------------------------------------------------------- */

static const GradCase usual = {.K = 32, .V = 32, .rows = 16, .target = "sm_90a", .H = 2, .N = 2, .T = 21};

static void test_specs(void **state) {
    (void)state;
    static const struct { int K, V, rows; } sizes[] = {
        {32, 32, 16}, {64, 32, 32}, {20, 12, 16}, {16, 100, 32}, {100, 8, 64},
    };
    char name[SPECS_MAX][SPEC_NAME];
    int done = 0, tried = 0;
    int count = spec_names(name);
    for (int i = 0; i < count; i++) {
        const char *spec = name[i];
        GradCase c = usual;
        c.spec = spec;
        c.elem = (Elem)(i % 3);
        c.K = sizes[i % 5].K, c.V = sizes[i % 5].V, c.rows = sizes[i % 5].rows;
        tried += grad_spec_wanted(spec);
        done += grad_spec_wanted(spec) && run_case(&c);
    }
    assert_true(done >= tried - 1);
}

static const char *const few[] = {"gdn2", "rwkv7", "comba_raw", "gated_deltaproduct"};
enum { FEW = sizeof few / sizeof few[0] };

static void test_packed(void **state) {
    (void)state;
    for (int f = 0; f < FEW; f++) {
        GradCase c = usual;
        c.spec = few[f], c.N = 5, c.cu_width = f % 2 ? 4 : 8, c.elem = ELEM_bf16;
        c.segment = 2, c.blocks = 3;
        memcpy(c.length, (int[]){5, 0, 35, 1, 16}, sizeof(int[5]));
        if (grad_spec_wanted(c.spec))
            assert_true(run_case(&c));
    }
}

/* Gradients that need what the outs read; rows and tables; outs of several places. */
static void test_texts(void **state) {
    (void)state;
    static const char *const body[] = {
        "S = exp(c) * S + p * v'\n out o[V] = (S' * q) .* silu(w) / (1 + dot(q, p)^2)",
        "S = diag(exp(g)) * S - x * qn * (qn' * S) + p * v'\n out o[V] = tanh(S' * q + A * w)",
        "S = exp(c) * S\n for j in n { S = S + kn[j] * (W[j] .* v)' }\n"
        "out o[V] = (S' * q) .* w\n out y[V] = sigmoid(S' * (B .* p))",
    };
    for (size_t i = 0; i < sizeof body / sizeof *body; i++) {
        char text[1000];
        snprintf(text, sizeof text,
                 "variant t { dim K = 3, V = 2, n = 2\n in p[K], q[K], v[V], w[V]\n"
                 "in g[K] <= 0, c <= 0, x in [0, 1], kn[n, K]\n param A, B[K], W[n, V]\n"
                 "let qn = l2norm(q)\n state S[K, V]\n%s\n}", body[i]);
        GradCase c = usual;
        c.text = text, c.K = 40, c.V = 24, c.rows = i ? 16 : 32, c.elem = i ? ELEM_f32 : ELEM_bf16;
        assert_true(getenv("GDR_SPEC") || run_case(&c));
    }
}

static void test_sizes(void **state) {
    (void)state;
    static const struct { int K, V, rows; Elem e; } sizes[] = {
        {128, 128, 64, ELEM_bf16}, {256, 40, 32, ELEM_f16}, {7, 33, 16, ELEM_f32}, {136, 2, 16, ELEM_bf16},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        GradCase c = usual;
        c.spec = few[i], c.K = sizes[i].K, c.V = sizes[i].V, c.rows = sizes[i].rows;
        c.elem = sizes[i].e, c.N = 1, c.unwanted = 5, c.target = i % 2 ? "sm_80" : "sm_90a";
        if (grad_spec_wanted(c.spec))
            assert_true(run_case(&c));
    }
}

/* Groups of all heads that share an input, and of some; rows that wait in shared memory or are read where
 * they lie; scalars; gradients that wait for later tokens; fewer blocks than groups. */
static void test_groups(void **state) {
    (void)state;
    static const struct {
        const char *spec;
        int K, V, rows, H, share, group;
        Elem e;
    } some[] = {
        {"gated_deltanet", 64, 64, 32, 2, 2, 2, ELEM_bf16}, {"gdn2", 32, 32, 16, 4, 4, 2, ELEM_bf16},
        {"mamba2", 32, 16, 16, 6, 3, 3, ELEM_f32},          {"kda_raw", 40, 24, 16, 4, 4, 4, ELEM_f16},
        {"mamba3_siso", 32, 32, 16, 4, 2, 2, ELEM_f32},         {"rwkv7", 20, 12, 16, 8, 4, 2, ELEM_bf16},
    };
    for (size_t i = 0; i < sizeof some / sizeof *some; i++)
        for (int packed = 0; packed < 2; packed++) {
            GradCase c = usual;
            c.spec = some[i].spec, c.K = some[i].K, c.V = some[i].V, c.rows = some[i].rows;
            c.H = some[i].H, c.share = some[i].share, c.group = some[i].group, c.elem = some[i].e;
            c.blocks = 3, c.unwanted = i == 1 ? 1 : 0;
            if (packed) {
                c.N = 5, c.cu_width = 8, c.segment = 2;
                memcpy(c.length, (int[]){5, 0, 35, 1, 16}, sizeof(int[5]));
            }
            if (grad_spec_wanted(c.spec))
                assert_true(run_case(&c));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
