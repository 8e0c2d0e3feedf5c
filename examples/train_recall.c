/* Training without a framework: one gated delta-rule layer learns to recall. Forward and backward
 * run on the first GPU where there is one, else on the CPU; tables, loss and Adam are plain loops.
 *
 *     24 tokens write:  k = K[key], v = V[value], beta = 1     a key's last value counts
 *      8 tokens ask:    q = Q[key],               beta = 0     softmax(head o) should say the value
 *
 * Keys, queries and values are rows of tables that begin at random: the layer answers once its keys
 * have turned away from each other and its queries towards their keys.
 */
#include "gdr.h"
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char spec[] = "variant recall {\n"
                           "    dim K = 32, V = 32\n"
                           "    in q[K], k[K], v[V]\n"
                           "    in g <= 0\n"
                           "    in beta in [0, 1]\n"
                           "    let kn = l2norm(k)\n"
                           "    state S[K, V]\n"
                           "    S = (I - beta * kn * kn') * exp(g) * S + beta * kn * v'\n"
                           "    out o[V] = S' * l2norm(q)\n"
                           "}\n";

enum { B = 32, WRITES = 24, ASKED = 8, T = WRITES + ASKED, WIDTH = 32, KEYS = 16, VALUES = 16 };
enum { STEPS = 100, REPORT = 10 };

/* Tensors of both kernels: [B,T,1,WIDTH], the two gates [B,T,1]. */
enum { Q, KEY, VALUE, G, BETA, OUT, DOUT, DQ, DKEY, DVALUE, TENSORS };
static const char *const name[TENSORS] = {"q", "k", "v", "g", "beta", "o", "do", "dq", "dk", "dv"};

static size_t count_of(int tensor) {
    return (size_t)B * T * (tensor == G || tensor == BETA ? 1 : WIDTH);
}

/* the layer ------------------------------------------------------------------------------------ */

typedef struct Layer {
    gdr_context *ctx;
    gdr_kernel *forward, *backward;
    const Gpu *gpu; /* NULL: on the CPU */
    float *data[TENSORS];
    uint64_t there[TENSORS]; /* the same in GPU memory */
} Layer;

static void on_message(void *user, const gdr_diagnostic *d) {
    (void)user;
    fprintf(stderr, "%s:%d:%d: %s\n", d->file, d->line, d->column, d->message);
}

static gdr_status layer_compile(Layer *l) {
    gdr_context_options context = {.size = sizeof context, .diag = on_message};
    gdr_compile_options options = {.size = sizeof options, .target = l->gpu ? "cuda" : "host"};
    gdr_status status = gdr_context_create(&context, &l->ctx);
    if (!status)
        status = gdr_compile_string(l->ctx, "recall", spec, strlen(spec), &options, &l->forward);
    options.pass = GDR_PASS_BACKWARD;
    options.gradients = (const char *const[]){"q", "k", "v"};
    options.ngradients = 3;
    if (!status)
        status = gdr_compile_string(l->ctx, "recall", spec, strlen(spec), &options, &l->backward);
    return status;
}

static int layer_memory(Layer *l) {
    for (int i = 0; i < TENSORS; i++) {
        l->data[i] = calloc(count_of(i), sizeof(float));
        if (!l->data[i] || (l->gpu && l->gpu->mem_alloc(&l->there[i], count_of(i) * sizeof(float))))
            return 0;
    }
    return 1;
}

static void layer_free(Layer *l) {
    gdr_kernel_destroy(l->forward);
    gdr_kernel_destroy(l->backward);
    gdr_context_destroy(l->ctx);
    for (int i = 0; i < TENSORS; i++) {
        free(l->data[i]);
        if (l->gpu)
            l->gpu->mem_free(l->there[i]);
    }
}

/* Copies tensors `first` to `last` to the GPU, or from it; 1 when they are where they should be. */
static int move(const Layer *l, int first, int last, int up) {
    for (int i = first; l->gpu && i <= last; i++) {
        size_t bytes = count_of(i) * sizeof(float);
        if (up ? l->gpu->upload(l->there[i], l->data[i], bytes)
               : l->gpu->download(l->data[i], l->there[i], bytes))
            return 0;
    }
    return 1;
}

/* Inputs and tensors `first` to `last`, through one of the kernels. */
static gdr_status launch(Layer *l, gdr_status call(gdr_kernel *, const gdr_launch *),
                         gdr_kernel *kernel, int first, int last) {
    static const int64_t shape[] = {B, T, 1, WIDTH};
    gdr_arg arg[TENSORS];
    int n = 0;
    for (int i = 0; i <= last; i = i == BETA ? first : i + 1) {
        gdr_tensor *t = &arg[n].tensor;
        *t = (gdr_tensor){.dtype = GDR_F32, .ndim = i == G || i == BETA ? 3 : 4, .shape = shape};
        t->device = l->gpu ? GDR_CUDA : GDR_CPU;
        t->data = l->gpu ? (void *)(uintptr_t)l->there[i] : l->data[i];
        arg[n++].name = name[i];
    }
    gdr_launch launch = {.size = sizeof launch, .args = arg, .nargs = n};
    return call(kernel, &launch);
}

static gdr_status layer_forward(Layer *l) {
    if (!move(l, Q, BETA, 1))
        return GDR_EDRIVER;
    gdr_status status = launch(l, gdr_forward, l->forward, OUT, OUT);
    return status || move(l, OUT, OUT, 0) ? status : GDR_EDRIVER;
}

static gdr_status layer_backward(Layer *l) {
    if (!move(l, DOUT, DOUT, 1))
        return GDR_EDRIVER;
    gdr_status status = launch(l, gdr_backward, l->backward, DOUT, DVALUE);
    return status || move(l, DQ, DVALUE, 0) ? status : GDR_EDRIVER;
}

/* tables --------------------------------------------------------------------------------------- */

enum { ROWS = KEYS > VALUES ? KEYS : VALUES };

typedef struct Table {
    float weight[ROWS][WIDTH], gradient[ROWS][WIDTH];
    float mean[ROWS][WIDTH], square[ROWS][WIDTH]; /* Adam's */
} Table;

typedef struct Model {
    Table query, key, value, head;
    unsigned random;
} Model;

static double uniform(Model *m) {
    m->random = m->random * 1664525u + 1013904223u;
    return (m->random >> 8) / 16777216.0;
}

static int below(Model *m, int n) {
    return (int)(uniform(m) * n);
}

static void model_init(Model *m) {
    Table *table[] = {&m->query, &m->key, &m->value, &m->head};
    memset(m, 0, sizeof *m);
    m->random = 1;
    for (int i = 0; i < 4; i++)
        for (int row = 0; row < ROWS; row++)
            for (int j = 0; j < WIDTH; j++)
                table[i]->weight[row][j] = (float)(uniform(m) - 0.5);
}

/* One step of Adam for a row; `step` counts from 1. */
static void row_step(float *weight, const float *gradient, float *mean, float *square, int step) {
    const double rate = 0.01, b1 = 0.9, b2 = 0.99;
    double to1 = 1 - pow(b1, step), to2 = 1 - pow(b2, step);
    for (int i = 0; i < WIDTH; i++) {
        double g = gradient[i];
        mean[i] = (float)(b1 * mean[i] + (1 - b1) * g);
        square[i] = (float)(b2 * square[i] + (1 - b2) * g * g);
        weight[i] -= (float)(rate * (mean[i] / to1) / (sqrt(square[i] / to2) + 1e-8));
    }
}

static void table_step(Table *t, int step) {
    for (int row = 0; row < ROWS; row++)
        row_step(t->weight[row], t->gradient[row], t->mean[row], t->square[row], step);
    memset(t->gradient, 0, sizeof t->gradient);
}

static void add(float *to, const float *from) {
    for (int i = 0; i < WIDTH; i++)
        to[i] += from[i];
}

/* one step ------------------------------------------------------------------------------------- */

typedef struct Batch {
    int key[B][T], value[B][T]; /* of an asking token: the right answer */
} Batch;

static void make_batch(Model *m, Batch *batch) {
    for (int b = 0; b < B; b++) {
        int last[KEYS];
        for (int t = 0; t < WRITES; t++) {
            batch->key[b][t] = below(m, KEYS);
            batch->value[b][t] = last[batch->key[b][t]] = below(m, VALUES);
        }
        for (int t = WRITES; t < T; t++) {
            batch->key[b][t] = batch->key[b][below(m, WRITES)]; /* one that was written */
            batch->value[b][t] = last[batch->key[b][t]];
        }
    }
}

static void embed(const Model *m, const Batch *batch, Layer *l) {
    for (int row = 0; row < B * T; row++) {
        int b = row / T, t = row % T, key = batch->key[b][t];
        size_t at = (size_t)row * WIDTH, bytes = WIDTH * sizeof(float);
        memcpy(l->data[Q] + at, m->query.weight[key], bytes);
        memcpy(l->data[KEY] + at, m->key.weight[key], bytes);
        memcpy(l->data[VALUE] + at, m->value.weight[batch->value[b][t]], bytes);
        l->data[G][row] = -0.01f;
        l->data[BETA][row] = t < WRITES;
    }
}

typedef struct Score {
    double loss; /* nats an answer */
    double right;
} Score;

/* One answer: adds to the score, the head's gradient and that of o. */
static void answer(Model *m, const float *o, int want, float *dout, Score *score) {
    double logit[VALUES], most = -INFINITY, sum = 0;
    int best = 0;
    for (int i = 0; i < VALUES; i++) {
        logit[i] = 0;
        for (int j = 0; j < WIDTH; j++)
            logit[i] += m->head.weight[i][j] * o[j];
        if (logit[i] > most) {
            most = logit[i];
            best = i;
        }
    }
    for (int i = 0; i < VALUES; i++)
        sum += exp(logit[i] - most);
    score->loss += (most + log(sum) - logit[want]) / (B * ASKED);
    score->right += (best == want) / (double)(B * ASKED);
    for (int i = 0; i < VALUES; i++) {
        double d = (exp(logit[i] - most) / sum - (i == want)) / (B * ASKED);
        for (int j = 0; j < WIDTH; j++) {
            m->head.gradient[i][j] += (float)(d * o[j]);
            dout[j] += (float)(d * m->head.weight[i][j]);
        }
    }
}

static Score answers(Model *m, const Batch *batch, Layer *l) {
    Score score = {0, 0};
    memset(l->data[DOUT], 0, count_of(DOUT) * sizeof(float));
    for (int row = 0; row < B * T; row++) {
        size_t at = (size_t)row * WIDTH;
        if (row % T >= WRITES)
            answer(m, l->data[OUT] + at, batch->value[row / T][row % T], l->data[DOUT] + at,
                   &score);
    }
    return score;
}

static void collect(Model *m, const Batch *batch, const Layer *l) {
    for (int row = 0; row < B * T; row++) {
        size_t at = (size_t)row * WIDTH;
        int key = batch->key[row / T][row % T], value = batch->value[row / T][row % T];
        add(m->query.gradient[key], l->data[DQ] + at);
        add(m->key.gradient[key], l->data[DKEY] + at);
        add(m->value.gradient[value], l->data[DVALUE] + at);
    }
}

static gdr_status train(Model *m, Layer *l, Score *score) {
    Batch batch;
    for (int step = 1; step <= STEPS; step++) {
        make_batch(m, &batch); /* never seen before: the score is of new sequences */
        embed(m, &batch, l);
        gdr_status status = layer_forward(l);
        if (status)
            return status;
        *score = answers(m, &batch, l);
        if ((status = layer_backward(l)))
            return status;
        collect(m, &batch, l);
        Table *table[] = {&m->query, &m->key, &m->value, &m->head};
        for (int i = 0; i < 4; i++)
            table_step(table[i], step);
        if (step == 1 || step % REPORT == 0)
            printf("step %3d: loss %.3f, %.0f %% of the answers right\n", step, score->loss,
                   100 * score->right);
    }
    return GDR_OK;
}

int main(void) {
    Gpu gpu;
    Layer layer = {.gpu = gpu_open(&gpu) ? &gpu : NULL};
    Model *model = malloc(sizeof *model);
    Score score = {0, 0};
    if (!model || !layer_memory(&layer)) {
        fprintf(stderr, "out of memory\n");
        return 3;
    }
    model_init(model);
    gdr_status status = layer_compile(&layer);
    if (!status)
        status = train(model, &layer, &score);
    if (status)
        fprintf(stderr, "%s: %s\n", gdr_strstatus(status), gdr_last_error(layer.ctx));
    layer_free(&layer);
    free(model);
    return status ? gdr_exit_status(status) : !(score.right > 0.95);
}
