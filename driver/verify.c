/* gdrc verify: every algorithm a spec has, on the device asked for, against the fp64 reference;
 * with
 * --grad its backward pass against the reference's gradient.
 *
 *     case list -> inputs rounded to their type -> reference once -> each algorithm -> distances
 *
 * One line a case and algorithm; at the end what must hold bit for bit. Kernels are kept while the
 * type and sizes stay the same. A failing line says how to run it alone.
 */
#include "driver/driver.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ENGINES_MAX = 128 };

/* Kernels compiled so far. */
typedef struct Open {
    gdr_dtype type;
    int K, V;
    Engine engine;
} Open;

typedef struct Verify {
    Driver *d;
    Spec *s;
    const char *variant;
    VEC(Open) open;
    int lines, failures, conditioned;
    double worst; /* ratio over threshold */
    Buf json;
} Verify;

static const char *method_name(Method m) {
    static const char *const name[] = {"auto", "chunk", "recurrent", "reference"};
    return name[m];
}

/* The kernel for a problem, from those that are open or compiled now. */
static gdr_status find_engine(Verify *v, const Case *c, const Problem *p, Method m, Engine **e) {
    for (int i = 0; i < v->open.count; i++) {
        Open *o = &v->open.at[i];
        if (o->type == c->type && o->K == c->K && o->V == c->V && o->engine.method == m) {
            *e = &o->engine;
            return GDR_OK;
        }
    }
    Open fresh = {
        c->type, c->K, c->V, {.method = m, .device = v->d->opt.device, .chunk = v->d->opt.chunk}};
    gdr_status status = engine_open(v->d, p, &fresh.engine);
    if (status)
        return status;
    VEC_PUSH(&v->d->arena, &v->open, fresh);
    *e = &v->open.at[v->open.count - 1].engine;
    return GDR_OK;
}

static void close_engines(Verify *v) {
    for (int i = 0; i < v->open.count; i++)
        engine_close(&v->open.at[i].engine);
    v->open.count = 0;
}

/* one case ------------------------------------------------------------------------------------- */

/* `!`: over its threshold; `~`: within it only by what its reference says of itself (measure.c). */
static void put_distance(const char *name, const Distance *x, bool ok, bool near, Buf *line) {
    if (x->finite)
        buf_printf(line, "  %s %.1e%s", name, x->whole, !ok ? "!" : near ? "~" : "");
    else
        buf_printf(line, "  %s NaN or Inf!", name);
}

static void put_json(Verify *v, int number, const Case *c, Method m, const char *tensor,
                     const Distance *x, bool ok) {
    if (!v->d->opt.json)
        return;
    buf_printf(&v->json,
               "%s  {\"case\": %d, \"dtype\": \"%s\", \"K\": %d, \"V\": %d, "
               "\"algorithm\": \"%s\", \"tensor\": ",
               v->json.len ? ",\n" : "", number, gdr_dtype_name(c->type), c->K, c->V,
               method_name(m));
    buf_json_string(&v->json, tensor);
    buf_printf(&v->json, ", \"finite\": %s", x->finite ? "true" : "false");
    if (x->finite)
        buf_printf(&v->json,
                   ", \"ratio\": %.6g, \"worst_head\": %.6g, \"worst_sequence\": %.6g, "
                   "\"max_abs\": %.6g",
                   x->whole, x->head, x->sequence, x->max_abs);
    buf_printf(&v->json, ", \"pass\": %s}", ok ? "true" : "false");
}

/* Gradients of gates, decays and params pass through more roundings than those of keys and values.
 * Result -1 is the state. */
static double threshold_of(const Case *c, const Problem *p, int result) {
    if (!p->grad)
        return c->sequences ? 0.006 : 0.005;
    return result < 0 || input_is_vector(p->k, result) ? 0.008 : 0.02;
}

/* Judges one tensor; true when within the threshold. `near`: only nearby references could tell. */
static bool judge(Verify *v, int number, const Case *c, Method m, const char *name,
                  double threshold, const Distance *x, bool near, Buf *line) {
    bool ok = distance_ok(x, threshold);
    if (x->finite && x->max_abs > 1e-6 && !x->moves)
        v->worst = fmax(v->worst, x->whole / threshold);
    v->conditioned += ok && near;
    put_distance(name, x, ok, near, line);
    put_json(v, number, c, m, name, x, ok);
    return ok;
}

/* A case, its reference, and what that is nearby: made for the first gradient by f16 operands, those of a
 * GPU's chunk kernels, that is over its threshold. */
typedef struct Judged {
    int number;
    const Case *c;
    const Problem *p;
    const Outcome *ref;
    Outcome near[NEARBY];
    bool has_near;
    Arena *arena;
} Judged;

static gdr_status look_nearby(Verify *v, Judged *j) {
    if (j->has_near)
        return GDR_OK;
    j->has_near = true;
    return nearby_references(v->d, j->p, j->arena, j->near);
}

/* Result i, or the state behind them. */
static Distance distance_of(const Judged *j, const Outcome *o, int i, bool near) {
    const Problem *p = j->p;
    bool state = i == problem_results(p);
    const Tensor *nearby[NEARBY], *ref = state ? &j->ref->S : &j->ref->out[i];
    const Tensor *x = state ? &o->S : &o->out[i];
    for (int n = 0; near && n < NEARBY; n++)
        nearby[n] = state ? &j->near[n].S : &j->near[n].out[i];
    if (state)
        return measure_state(p, ref, near ? nearby : NULL, x);
    return problem_result(p, i)->is_param ? measure_param(ref, near ? nearby : NULL, x)
                                          : measure_out(p, ref, near ? nearby : NULL, x);
}

static gdr_status judge_all(Verify *v, Judged *j, Method m, const Outcome *o, Buf *line, bool *ok) {
    const Problem *p = j->p;
    int results = problem_results(p);
    bool f16 = p->grad && v->d->opt.device == DEVICE_cuda && m == METHOD_chunk;
    *ok = true;
    for (int i = 0; i <= results; i++) {
        bool state = i == results;
        double threshold = threshold_of(j->c, p, state ? -1 : i);
        const char *name = !state     ? problem_result_name(p, i)
                           : p->grad ? "dS0"
                                     : p->k->state_name ? p->k->state_name : "S";
        Distance x = distance_of(j, o, i, false);
        bool near = f16 && x.finite && !distance_ok(&x, threshold);
        if (near) {
            gdr_status status = look_nearby(v, j);
            if (status)
                return status;
            x = distance_of(j, o, i, true);
        }
        *ok &= judge(v, j->number, j->c, m, name, threshold, &x, near, line);
        if (!state && !problem_result(p, i)->is_param && !spare_rows_untouched(p, &o->out[i])) {
            buf_puts(line, "  wrote past the last sequence!");
            *ok = false;
        }
    }
    return GDR_OK;
}

static bool chunkable(const Problem *p) {
    Kernel *probe = kernel_clone(p->k);
    passes_run(probe, "normal", NULL);
    return probe->facts.chunkable;
}

static void print_failure(const Verify *v, int number) {
    const Options *o = &v->d->opt;
    printf("     again: gdrc verify %s --variant %s --device %s --seed %llu --case %d%s%s\n",
           v->s->path, v->variant, o->device == DEVICE_cuda ? "cuda" : "cpu",
           (unsigned long long)o->seed, number, o->full ? " --full" : "", o->grad ? " --grad" : "");
}

static void print_limit(const Verify *v, int number, const Case *c, Method m, Arena *arena) {
    Buf line;
    buf_init(&line, arena);
    buf_printf(&line, "%3d  ", number);
    case_print(c, &line);
    printf("%s %-9s  not done: %s\n", line.text, method_name(m), gdr_last_error(v->d->ctx));
}

static gdr_status verify_case(Verify *v, int number, const Case *c, Arena *arena) {
    Problem p;
    Outcome ref, o;
    Engine reference = {.method = METHOD_reference};
    case_problem(v->d, arena, v->s, v->variant, c, v->d->opt.seed + 7919 * (uint64_t)number, 0,
                 NULL, &p);
    if (!p.k)
        return GDR_ESPEC;
    gdr_status status = engine_run(v->d, &p, &reference, arena, &ref);
    Judged judged = {.number = number, .c = c, .p = &p, .ref = &ref, .arena = arena};
    for (int m = METHOD_chunk; !status && m <= METHOD_recurrent; m++) {
        Engine *e;
        if (m == METHOD_chunk && !chunkable(&p))
            continue;
        status = find_engine(v, c, &p, (Method)m, &e);
        if (status == GDR_ELIMIT) { /* a target need not hold every size; say so and go on */
            print_limit(v, number, c, (Method)m, arena);
            status = GDR_OK;
            continue;
        }
        if (!status)
            status = engine_run(v->d, &p, e, arena, &o);
        if (status)
            break;
        Buf line;
        buf_init(&line, arena);
        buf_printf(&line, "%3d  ", number);
        case_print(c, &line);
        buf_printf(&line, " %-9s", method_name((Method)m));
        bool ok;
        status = judge_all(v, &judged, (Method)m, &o, &line, &ok);
        if (status)
            break;
        printf("%s%s\n", line.text, ok ? "" : "  FAILED");
        fflush(stdout);
        v->lines++;
        if (!ok) {
            v->failures++;
            print_failure(v, number);
        }
    }
    return status;
}

/* properties ----------------------------------------------------------------------------------- */

static gdr_status verify_decoding(Verify *v, const Case *c, Method m, Engine *e) {
    const char *broken;
    gdr_status status = decode_check(v->d, v->s, v->variant, c, e, &broken);
    if (status)
        return status;
    printf("decoding: slots, tokens, accepted, continued: %s %dx%d %s: %s%s\n",
           gdr_dtype_name(c->type), c->K, c->V, method_name(m), broken ? "FAILED: " : "hold",
           broken ? broken : "");
    v->lines++;
    v->failures += broken != NULL;
    return GDR_OK;
}

static gdr_status verify_properties(Verify *v) {
    /* Sizes that the list of cases has, so that kernels are there. */
    static const Case kind[2][2] = {
        {{.type = GDR_F32, .K = 64, .V = 64, .H = 2, .key_heads = 2},
         {.type = GDR_BF16, .K = 128, .V = 128, .H = 2, .key_heads = 2}},
        {{.type = GDR_F32, .K = 32, .V = 48, .H = 4, .key_heads = 2},
         {.type = GDR_BF16, .K = 64, .V = 64, .H = 2, .key_heads = 2}},
    };
    for (size_t i = 0; i < 2; i++) {
        Problem p;
        Case c = kind[v->d->opt.grad][i];
        if (v->d->opt.has_dtype)
            c.type = v->d->opt.dtype;
        c.B = c.T = 1;
        c.grad = v->d->opt.grad;
        case_problem(v->d, &v->d->arena, v->s, v->variant, &c, 1, 0, NULL, &p);
        if (!p.k)
            return GDR_ESPEC;
        for (int m = METHOD_chunk; m <= METHOD_recurrent; m++) {
            Engine *e;
            const char *broken = NULL;
            if (m == METHOD_chunk && !chunkable(&p))
                continue;
            gdr_status status = find_engine(v, &c, &p, (Method)m, &e);
            if (status == GDR_ELIMIT) {
                printf("bitwise: %s %dx%d %s: not done: %s\n", gdr_dtype_name(c.type), c.K, c.V,
                       method_name((Method)m), gdr_last_error(v->d->ctx));
                continue;
            }
            if (!status)
                status = property_check(v->d, v->s, v->variant, &c, e, &broken);
            if (status)
                return status;
            bool gpu = v->d->opt.device == DEVICE_cuda;
            printf("bitwise: %scausality, place, neighbours, repeat%s%s: %s %dx%d %s: %s%s\n",
                   c.grad ? "anti" : "", gpu ? ", pieces" : "",
                   gpu && c.grad ? ", saved states, all saved" : "",
                   gdr_dtype_name(c.type), c.K, c.V, method_name((Method)m),
                   broken ? "FAILED: " : "hold", broken ? broken : "");
            v->lines++;
            v->failures += broken != NULL;
            if (!c.grad)
                status = verify_decoding(v, &c, (Method)m, e);
            if (status)
                return status;
        }
    }
    return GDR_OK;
}

/* the call ------------------------------------------------------------------------------------- */

static gdr_status verify_all(Verify *v) {
    const Case *list;
    const Options *o = &v->d->opt;
    int only = o->case_number,
        n = o->grad ? case_list_grad(v->d, o->full, &list) : case_list(v->d, o->full, &list);
    gdr_status status = GDR_OK;
    printf("%s, variant %s, %s, seed %llu\n", v->s->path, v->variant,
           v->d->opt.device == DEVICE_cuda ? cuda_device_name(v->d->ctx->cuda) : "CPU",
           (unsigned long long)v->d->opt.seed);
    printf("  #  type KxV     BxT      H    gate    keys     unit    S0  %salgorithm  "
           "distance from the reference\n",
           o->grad ? "from  " : "");
    for (int i = 0; i < n && !status; i++) {
        if (only && i + 1 != only)
            continue;
        Arena arena;
        arena_init(&arena, v->d->arena.oom);
        status = verify_case(v, i + 1, &list[i], &arena);
        arena_free(&arena);
    }
    if (!status && !only)
        status = verify_properties(v);
    return status;
}

static int verify_variant(Driver *d, Spec *s, const char *variant, Buf *json) {
    Verify v = {.d = d, .s = s, .variant = variant};
    buf_init(&v.json, &d->arena);
    gdr_status status = verify_all(&v);
    close_engines(&v);
    if (v.json.len) {
        buf_puts(json, json->len ? ",\n" : "");
        buf_put(json, v.json.text, v.json.len);
    }
    if (status)
        return fail_status(d, status);
    printf("%s: %d checks, %d failed; the worst is at %.0f %% of its threshold", variant, v.lines,
           v.failures, 100 * v.worst);
    if (v.conditioned)
        printf("; %d tensors marked ~: over it, but so is the reference a rounding away", v.conditioned);
    printf("\n\n");
    return v.failures ? EXIT_refused : EXIT_done;
}

static int verify_file(Driver *d, const char *path, Buf *json) {
    Spec s;
    int status = spec_open(d, path, &s);
    if (status)
        return status;
    if (d->opt.variant && !spec_variant(s.file, d->opt.variant, &s.diag)) {
        print_diag(d, &s.diag);
        return EXIT_refused;
    }
    for (int i = 0; i < s.file->variant.count; i++) {
        const char *name = s.file->variant.at[i]->name;
        if (d->opt.variant && strcmp(name, d->opt.variant))
            continue;
        int one = verify_variant(d, &s, name, json);
        if (one > status)
            status = one;
    }
    return status;
}

int command_verify(Driver *d) {
    if (!driver_context(d))
        return EXIT_environment;
    if (d->opt.device == DEVICE_cuda && !ctx_cuda(d->ctx))
        return fail_status(d, GDR_ENODEV);
    if (!d->opt.has_seed)
        d->opt.seed = 1;
    Buf json;
    buf_init(&json, &d->arena);
    int status = EXIT_done;
    for (int i = 0; i < d->opt.file.count; i++) {
        int one = verify_file(d, d->opt.file.at[i], &json);
        if (one > status)
            status = one;
    }
    if (d->opt.json) {
        char why[512];
        const FilePart part[] = {{"[\n", 2}, {json.text, json.len}, {"\n]\n", 3}};
        if (!file_write_atomic(d->opt.json, part, 3, why, sizeof why))
            return fail(EXIT_environment, "%s", why);
    }
    return status;
}
