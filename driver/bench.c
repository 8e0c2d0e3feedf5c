/* gdrc bench: how fast the kernels of a spec are, and how far from what the machine could do.
 *
 * Times are timing.c's; with gradients of the forward pass, which then saves as it is told, of the backward pass
 * and of one after the other, a training step, whose memory is measured as well. Bytes
 * are those that any implementation must move: inputs once, outputs once, states in and out.
 * Operations are those of the chunk system (or of the token recurrence). The roofline is the larger
 * of bytes over the nominal bandwidth and operations over the nominal matrix rate; on the CPU it is
 * a measured sgemm of a BLAS library on every thread, where one is found.
 */
#include "driver/driver.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REPEAT_TOKENS = 64, SETS_DEFAULT = 4 };

typedef enum { PASS_forward, PASS_backward, PASS_training } Pass; /* training: both */

typedef struct Row {
    BenchShape shape;
    Method method;
    Pass pass;
    int chunk, K, V;
    Sample sample;
    double bytes, flops, roofline;   /* roofline: seconds; 0 unknown */
    double peak_bytes, tensor_bytes; /* training on a GPU, else 0 */
} Row;

typedef struct Bench {
    Driver *d;
    Spec *s;
    const Variant *v;
    gdr_dtype type;
    const char *sgemm_name;
    double sgemm_rate;          /* operations a second and thread; 0 = no library */
    double first_ms, cached_ms; /* spec text to loaded kernel; cached < 0 = no cache */
    VEC(Row) row;
} Bench;

/* figures -------------------------------------------------------------------------------------- */

static double problem_bytes(const Problem *p) {
    double bytes = 0;
    for (int i = 0; i < p->k->in.count; i++)
        bytes += (double)p->in[i].bytes * (p->grad ? 2 : 1); /* gradients are as large */
    for (int i = 0; i < p->k->out.count; i++) {
        const Port *port = &p->k->out.at[i];
        bytes += (double)(p->B * p->T * p->H * shape_elements(p->k, port->shape)) *
                 elem_size(port->elem);
    }
    double state = (double)gdr_dtype_size(p->state_type) * (double)(p->N * p->H) *
                   p->k->axis.at[AXIS_K].size * p->k->axis.at[AXIS_V].size;
    double left = p->each ? (double)p->each : 1;
    return bytes + state * (left + (p->S0.data ? 1 : 0) + (p->grad ? 1 : 0));
}

/* Of a kernel at recurrence level; the half of a gradient that is in front of `rewind` runs twice. */
static double recurrent_flops(const Kernel *k) {
    double KV = (double)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size, flops = 0;
    for (int v = 0; v < k->inst.count; v++) {
        Op op = inst_at(k, v)->op;
        bool product = op == OP_read || op == OP_update || op == OP_reread || op == OP_coread ||
                       op == OP_coupdate || op == OP_decay_a;
        flops *= op == OP_rewind ? 2 : 1;
        flops += product ? 2 * KV : op == OP_decay || op == OP_codecay ? KV : 0;
    }
    return flops;
}

/* Operations a token and head. */
static double token_flops(const Problem *p, const gdr_facts *facts) {
    Kernel *k = kernel_clone(p->k);
    passes_run(k, "normal", NULL);
    if (facts->algo == GDR_ALGO_RECURRENT)
        return recurrent_flops(p->grad ? kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0)) : k);
    Cost cost;
    kernel_set_chunk(k, facts->chunk * (facts->updates > 1 ? facts->updates : 1));
    passes_run_after(k, "normal", "peel", NULL);
    if (p->grad)
        k = kernel_adjoint(k, ~UINT64_C(0), ~UINT64_C(0));
    passes_run_after(k, "collapse", NULL, NULL);
    system_cost(k, &cost);
    return cost.flops;
}

static double roofline(const Bench *b, const Row *r) {
    if (b->d->opt.device == DEVICE_cuda) {
        double bandwidth = cuda_bandwidth(b->d->ctx->cuda),
               rate = cuda_matrix_rate(b->d->ctx->cuda);
        if (b->type == GDR_F32)
            rate /= 2; /* tf32 */
        return bandwidth > 0 && rate > 0 ? fmax(r->bytes / bandwidth, r->flops / rate) : 0;
    }
    Pool *pool = ctx_pool(b->d->ctx);
    return b->sgemm_rate > 0 && pool ? r->flops / (b->sgemm_rate * pool_threads(pool)) : 0;
}

/* one shape ------------------------------------------------------------------------------------ */

/* The kernels; the forward pass saves for a backward pass that works by the same chunks. */
static gdr_status open_engines(Bench *b, Method method, Timing *t) {
    Driver *d = b->d;
    bool grad = d->opt.grad;
    t->forward = (Engine){.method = method,
                          .device = d->opt.device,
                          .chunk = d->opt.chunk,
                          .save = grad ? (gdr_save)d->opt.save : GDR_SAVE_NOTHING,
                          .memory = grad ? MEMORY_pool : MEMORY_default};
    t->backward = t->forward;
    t->backward.method = (Method)d->opt.method;
    gdr_facts first, second;
    gdr_status status = engine_open(d, &t->forward_problem, &t->forward);
    if (status || !grad)
        return status;
    status = engine_open(d, &t->backward_problem, &t->backward);
    if (status)
        return status;
    gdr_kernel_facts(t->forward.kernel, &first);
    gdr_kernel_facts(t->backward.kernel, &second);
    if (first.chunk == second.chunk)
        return GDR_OK;
    engine_close(&t->forward);
    t->forward.save = GDR_SAVE_NOTHING;
    return engine_open(d, &t->forward_problem, &t->forward);
}

static void fill_row(const Bench *b, const Problem *p, const Engine *e, Row *r) {
    gdr_facts facts;
    gdr_kernel_facts(e->kernel, &facts);
    r->method = facts.algo == GDR_ALGO_CHUNK ? METHOD_chunk : METHOD_recurrent;
    r->chunk = facts.chunk;
    r->K = (int)facts.K;
    r->V = (int)facts.V;
    r->bytes += problem_bytes(p);
    r->flops += token_flops(p, &facts) * (double)(p->B * p->T * p->H);
    r->roofline = roofline(b, r);
}

static gdr_status bench_pass(Bench *b, const BenchShape *shape, Timing *t, Pass pass) {
    Row r = {.shape = *shape, .pass = pass};
    bool forward = pass != PASS_backward, backward = pass != PASS_forward;
    gdr_status status = timing_measure(t, forward, backward, &r.sample);
    if (status)
        return status;
    if (forward)
        fill_row(b, &t->forward_problem, &t->forward, &r);
    if (backward)
        fill_row(b, &t->backward_problem, &t->backward, &r);
    if (pass == PASS_training) {
        r.peak_bytes = t->peak_bytes;
        r.tensor_bytes = t->tensor_bytes;
    }
    VEC_PUSH(&b->d->arena, &b->row, r);
    return GDR_OK;
}

static gdr_status bench_problem(Bench *b, const BenchShape *shape, const Problem *p, Method method,
                                Arena *arena) {
    Driver *d = b->d;
    Timing t = {.d = d,
                .arena = arena,
                .forward_problem = *p,
                .backward_problem = *p,
                .sets = d->opt.input_sets ? d->opt.input_sets : SETS_DEFAULT};
    t.forward_problem.grad = false;
    gdr_status status = open_engines(b, method, &t);
    if (!status)
        status = timing_open(&t);
    for (Pass pass = PASS_forward; !status && pass <= (p->grad ? PASS_training : PASS_forward);
         pass++)
        status = bench_pass(b, shape, &t, pass);
    timing_close(&t);
    engine_close(&t.backward);
    engine_close(&t.forward);
    return status;
}

/* Whether states come from a pool and go back to it. */
static bool from_pool(const Bench *b) {
    return b->d->opt.step;
}

/* A decoding step: from a pool, else from S0 to S. */
static bool is_step(const Bench *b, const BenchShape *shape) {
    return from_pool(b) || (!b->d->opt.grad && shape->T == 1);
}

static gdr_status bench_shape(Bench *b, const BenchShape *shape) {
    Arena arena;
    Problem p;
    Kernel *defaults = spec_kernel(b->d, b->s, b->v->name, b->d->opt.dim.at, b->d->opt.dim.count);
    if (!defaults)
        return GDR_ESPEC;
    bool step = is_step(b, shape);
    Case c = {.type = b->type,
              .K = defaults->axis.at[AXIS_K].size,
              .V = defaults->axis.at[AXIS_V].size,
              .B = shape->B,
              .T = shape->T,
              .H = shape->H,
              .key_heads = shape->key_heads,
              .repeat = REPEAT_TOKENS,
              .S0 = step,
              .grad = b->d->opt.grad};
    Method method = (Method)b->d->opt.method;
    if (step && method == METHOD_auto)
        method = METHOD_recurrent;
    arena_init(&arena, b->d->arena.oom);
    case_problem(b->d, &arena, b->s, b->v->name, &c, b->d->opt.has_seed ? b->d->opt.seed : 1, 0,
                 NULL, &p);
    if (p.k && from_pool(b)) {
        decode_pool(&arena, &p, b->d->opt.pool);
        if (b->d->opt.keep_all) { /* what follows starts from one of them */
            p.in_place = false;
            p.each = shape->T;
            p.S_slots.data = NULL;
        }
    }
    gdr_status status = p.k ? bench_problem(b, shape, &p, method, &arena) : GDR_ESPEC;
    arena_free(&arena);
    return status;
}

/* Spec text to loaded kernel: without the cache, and again from it. */
static gdr_status bench_compile(Bench *b) {
    Driver *d = b->d;
    CompileInput input = {.source = b->s->source};
    gdr_compile_options o = {
        .size = sizeof o,
        .variant = b->v->name,
        .dims = d->opt.dim.at,
        .ndims = d->opt.dim.count,
        .dtype = b->type,
        .target = d->opt.device == DEVICE_cuda ? "cuda" : "host",
        .algo = d->opt.method == METHOD_recurrent ? GDR_ALGO_RECURRENT : GDR_ALGO_AUTO,
        .pass = d->opt.grad ? GDR_PASS_BACKWARD : GDR_PASS_FORWARD,
        .chunk_rows = d->opt.chunk,
        .opt_level = d->opt.opt_level,
        .state_dtype = d->opt.grad ? GDR_F32 : (gdr_dtype)d->opt.state_type,
        .state_layout = d->opt.grad ? GDR_LAYOUT_KV : (gdr_layout)d->opt.state_layout,
    };
    b->cached_ms = -1;
    for (int round = 0; round < 3; round++) { /* anew; into the cache; from the cache */
        CompileExtra extra = {.no_cache = round == 0, .v_tile = d->opt.v_tile};
        gdr_kernel *k;
        gdr_facts facts;
        double start = seconds_now();
        gdr_status status = compile_input(d->ctx, &input, &o, &extra, &k);
        double ms = 1e3 * (seconds_now() - start);
        if (status)
            return status;
        gdr_kernel_facts(k, &facts);
        if (round == 0)
            b->first_ms = ms;
        else if (facts.from_cache)
            b->cached_ms = ms;
        gdr_kernel_destroy(k);
    }
    return GDR_OK;
}

/* results -------------------------------------------------------------------------------------- */

/* " AMD EPYC", where the kernel says what the processor is. */
static void put_cpu_name(Buf *out) {
    char line[256], *name;
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) != 0 || !(name = strchr(line, ':')))
            continue;
        name[strcspn(name, "\n")] = 0;
        buf_puts(out, name + 1);
        break;
    }
    if (f)
        fclose(f);
}

static void print_machine(const Bench *b, Buf *out) {
    if (b->d->opt.device == DEVICE_cuda) {
        const Cuda *c = b->d->ctx->cuda;
        buf_printf(out, "%s, driver %d.%d, nominal %.2f TB/s, %.0f TFLOP/s", cuda_device_name(c),
                   cuda_driver_version(c) / 1000, cuda_driver_version(c) % 1000 / 10,
                   cuda_bandwidth(c) * 1e-12, cuda_matrix_rate(c) * 1e-12);
        return;
    }
    Pool *pool = ctx_pool(b->d->ctx);
    buf_puts(out, "CPU");
    put_cpu_name(out);
    buf_printf(out, ", %d threads", pool ? pool_threads(pool) : 0);
    if (b->sgemm_rate > 0)
        buf_printf(out, ", sgemm of %s %.1f GFLOP/s a thread", b->sgemm_name, b->sgemm_rate * 1e-9);
}

static const char *row_name(const Row *r) {
    return r->pass == PASS_backward   ? "backward"
           : r->pass == PASS_training ? "training"
           : r->method == METHOD_chunk ? "chunk"
                                       : "recurrent";
}

static void print_row(const Bench *b, const Row *r) {
    char heads[48], share[32] = "-";
    const Sample *s = &r->sample;
    snprintf(heads, sizeof heads, r->shape.key_heads == r->shape.H ? "%lld" : "%lld/%lld",
             (long long)(r->shape.key_heads == r->shape.H ? r->shape.H : r->shape.key_heads),
             (long long)r->shape.H);
    if (r->roofline > 0)
        snprintf(share, sizeof share, "%.1f %%", 100 * r->roofline / s->seconds);
    printf("%5lld %7lld %8s %4dx%-4d %-9s %3d %10.4f %9.4f %9.4f %9.1f %8.3f %9s\n",
           (long long)r->shape.B, (long long)r->shape.T, heads, r->K, r->V, row_name(r), r->chunk,
           1e3 * s->seconds, 1e3 * s->least, 1e3 * s->most, r->bytes / s->seconds * 1e-9,
           r->flops / s->seconds * 1e-12, share);
    if (r->peak_bytes > 0)
        printf("%26s memory of a step: %.3f GB, %.3f of its inputs, outputs and gradients\n", "",
               r->peak_bytes * 1e-9, r->peak_bytes / r->tensor_bytes);
    (void)b;
}

static const char *const save_name[] = {"nothing", "states", "all"};

static void print_table(const Bench *b, const char *machine) {
    const Options *o = &b->d->opt;
    printf("%s, variant %s, %s", b->s->path, b->v->name, gdr_dtype_name(b->type));
    if (o->state_type != GDR_F32 || o->state_layout)
        printf(", states %s %s", gdr_dtype_name((gdr_dtype)o->state_type),
               o->state_layout ? "[V,K]" : "[K,V]");
    if (o->grad && o->device == DEVICE_cuda)
        printf(", the forward pass saves %s", save_name[o->save]);
    printf("\n%s\n", machine);
    printf("spec text to loaded kernel: %.1f ms", b->first_ms);
    if (b->cached_ms >= 0)
        printf(", from the cache %.2f ms", b->cached_ms);
    printf(
        "\n    B       T        H   KxV    algorithm   C  median ms     least      most      GB/s "
        " TFLOP/s  roofline\n");
    for (int i = 0; i < b->row.count; i++)
        print_row(b, &b->row.at[i]);
}

static int write_json(const Bench *b, const char *machine) {
    Buf out;
    char why[512];
    buf_init(&out, &b->d->arena);
    buf_puts(&out, "{\n  \"spec\": ");
    buf_json_string(&out, b->s->path);
    buf_puts(&out, ", \"variant\": ");
    buf_json_string(&out, b->v->name);
    buf_printf(&out, ", \"dtype\": \"%s\", \"state_type\": \"%s\", \"state_layout\": \"%s\"",
               gdr_dtype_name(b->type), gdr_dtype_name((gdr_dtype)b->d->opt.state_type),
               b->d->opt.state_layout ? "vk" : "kv");
    if (b->d->opt.grad && b->d->opt.device == DEVICE_cuda)
        buf_printf(&out, ", \"save\": \"%s\"", save_name[b->d->opt.save]);
    buf_puts(&out, ", \"compiler\": ");
    buf_json_string(&out, gdr_version());
    buf_puts(&out, ",\n  \"machine\": ");
    buf_json_string(&out, machine);
    buf_printf(&out, ",\n  \"compile_ms\": %.4g, \"cached_ms\": ", b->first_ms);
    if (b->cached_ms >= 0)
        buf_printf(&out, "%.4g", b->cached_ms);
    else
        buf_puts(&out, "null");
    buf_puts(&out, ",\n  \"results\": [\n");
    for (int i = 0; i < b->row.count; i++) {
        const Row *r = &b->row.at[i];
        buf_printf(&out,
                   "%s    {\"step\": %s, \"pool\": %s, "
                   "\"B\": %lld, \"T\": %lld, \"H\": %lld, \"key_heads\": %lld, \"K\": %d, "
                   "\"V\": %d, \"algorithm\": \"%s\", \"chunk\": %d, \"median_ms\": %.6g, "
                   "\"least_ms\": %.6g, \"most_ms\": %.6g, \"launches\": %d, \"bytes\": %.0f, "
                   "\"flops\": %.0f, \"roofline_ms\": ",
                   i ? ",\n" : "", is_step(b, &r->shape) ? "true" : "false",
                   from_pool(b) ? "true" : "false",
                   (long long)r->shape.B, (long long)r->shape.T, (long long)r->shape.H,
                   (long long)r->shape.key_heads, r->K, r->V, row_name(r), r->chunk,
                   1e3 * r->sample.seconds, 1e3 * r->sample.least, 1e3 * r->sample.most,
                   r->sample.count, r->bytes, r->flops);
        if (r->roofline > 0)
            buf_printf(&out, "%.6g", 1e3 * r->roofline);
        else
            buf_puts(&out, "null");
        if (r->peak_bytes > 0)
            buf_printf(&out, ", \"peak_bytes\": %.0f, \"tensor_bytes\": %.0f", r->peak_bytes,
                       r->tensor_bytes);
        buf_puts(&out, "}");
    }
    buf_puts(&out, "\n  ]\n}\n");
    if (!file_write_atomic(b->d->opt.json, &(FilePart){out.text, out.len}, 1, why, sizeof why))
        return fail(EXIT_environment, "%s", why);
    return EXIT_done;
}

/* the call ------------------------------------------------------------------------------------- */

static gdr_status bench_all(Bench *b) {
    Driver *d = b->d;
    bool terminal = isatty(STDERR_FILENO);
    gdr_status status = bench_compile(b);
    for (int i = 0; !status && i < d->opt.shape.count; i++) {
        const BenchShape *s = &d->opt.shape.at[i];
        if (terminal)
            fprintf(stderr, "\r[%d/%d] %lld,%lld,%lld ...", i + 1, d->opt.shape.count,
                    (long long)s->B, (long long)s->T, (long long)s->H);
        status = bench_shape(b, s);
        if (terminal)
            fprintf(stderr, "\r%40s\r", "");
    }
    return status;
}

int command_bench(Driver *d) {
    Spec s;
    int exit_status = spec_open(d, d->opt.file.at[0], &s);
    if (exit_status)
        return exit_status;
    bool gpu = d->opt.device == DEVICE_cuda;
    Bench b = {.d = d,
               .s = &s,
               .v = spec_variant(s.file, d->opt.variant, &s.diag),
               .type = d->opt.has_dtype ? d->opt.dtype
                       : gpu            ? GDR_BF16
                                        : GDR_F32};
    if (!b.v) {
        print_diag(d, &s.diag);
        return EXIT_refused;
    }
    if (d->opt.method == METHOD_reference)
        return fail(EXIT_usage, "bench: the reference is not for timing");
    if (d->opt.step && d->opt.grad)
        return fail(EXIT_usage, "bench: a decoding step has no gradient: --step or --grad, not both");
    if (!driver_context(d))
        return EXIT_environment;
    if (gpu && !ctx_cuda(d->ctx))
        return fail_status(d, GDR_ENODEV);
    if (!gpu)
        b.sgemm_rate = sgemm_measure(&b.sgemm_name);
    if (!d->opt.shape.count) {
        BenchShape usual = gpu ? (BenchShape){1, 8192, 96, 96} : (BenchShape){1, 4096, 4, 4};
        VEC_PUSH(&d->arena, &d->opt.shape, usual);
    }
    gdr_status status = bench_all(&b);
    if (status)
        return fail_status(d, status);
    Buf machine;
    buf_init(&machine, &d->arena);
    print_machine(&b, &machine);
    print_table(&b, machine.text);
    return d->opt.json ? write_json(&b, machine.text) : EXIT_done;
}
