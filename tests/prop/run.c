/* Properties that every spec's compiled kernels have exactly, whatever the algorithm: outputs are
 * compared bit for bit. Runs on the CPU through the public API.
 *
 *   usage: prop_run [PROPERTY]     GDR_SEED=n replays; the seed is printed
 */
#include "tests/support/case.h"

#include <glob.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 2 };

static bool finite_outputs(const Case *c) {
    for (int p = 0; p < c->nports; p++) {
        if (c->port[p].kind != GDR_OUTPUT)
            continue;
        for (int n = 0; n < c->N; n++)
            for (int64_t i = 0; i < c->length[n] * case_row_size(c, p); i++)
                if (!isfinite(c->data[p][case_row(c, n) * case_row_size(c, p) + i]))
                    return false;
    }
    for (int64_t i = 0; i < c->N * case_state_size(c); i++)
        if (!isfinite(c->S[i]))
            return false;
    return true;
}

/* Sets token t of sequence n, in every per-token input, to `value` in the given head (-1: all). */
static void set_inputs(Case *c, int n, int64_t from, int64_t to, int head, float value) {
    for (int p = 0; p < c->nports; p++) {
        if (c->port[p].kind != GDR_INPUT)
            continue;
        for (int64_t t = from; t < to; t++) {
            for (int64_t h = 0; h < c->H; h++) {
                float *x =
                    c->data[p] + (case_row(c, n) + t) * case_row_size(c, p) + h * c->width[p];
                for (int64_t i = 0; i < c->width[p] && (head < 0 || h == head); i++)
                    x[i] = value;
            }
        }
    }
}

/* Tokens from t on do not change outputs before t. */
static const char *causality(gdr_kernel *k, uint64_t seed) {
    static const int64_t cut[] = {1, 16, 63, 64, 65, 100};
    const char *wrong = NULL;
    int64_t length = 130;
    int label = 0;
    Case *a = case_new(k, HEADS, 1, &length, &label, false, 0, seed);
    if (case_run(a) != GDR_OK || !finite_outputs(a))
        wrong = "the run failed or gave no finite numbers";
    for (size_t i = 0; i < sizeof cut / sizeof *cut && !wrong; i++) {
        Case *b = case_new(k, HEADS, 1, &length, &label, false, 0, seed);
        set_inputs(b, 0, cut[i], length, -1, 0.0f);
        if (case_run(b) != GDR_OK || !case_same(a, 0, b, 0, cut[i]))
            wrong = "an output changed before the first changed token";
        else if (case_same(a, 0, b, 0, length))
            wrong = "no output changed after the first changed token";
        case_free(b);
    }
    case_free(a);
    return wrong;
}

/* The same call twice gives the same bits. */
static const char *repeatability(gdr_kernel *k, uint64_t seed) {
    int64_t length[3] = {127, 127, 127};
    int label[3] = {0, 1, 2};
    Case *a = case_new(k, HEADS, 3, length, label, false, 0, seed);
    Case *b = case_new(k, HEADS, 3, length, label, false, 0, seed);
    const char *wrong = NULL;
    if (case_run(a) != GDR_OK || case_run(b) != GDR_OK)
        wrong = "the run failed";
    for (int n = 0; n < 3 && !wrong; n++)
        if (!case_same(a, n, b, n, -1))
            wrong = "two equal calls differ";
    case_free(a);
    case_free(b);
    return wrong;
}

/* A sequence's result depends neither on its place in the batch nor on its neighbours. */
static const char *position(gdr_kernel *k, uint64_t seed) {
    int64_t length[3] = {97, 97, 97};
    int label[3] = {0, 1, 2}, turned[3] = {5, 0, 1};
    Case *a = case_new(k, HEADS, 3, length, label, false, 0, seed);
    Case *b = case_new(k, HEADS, 3, length, turned, false, 0, seed);
    const char *wrong = NULL;
    if (case_run(a) != GDR_OK || case_run(b) != GDR_OK)
        wrong = "the run failed";
    else if (!case_same(a, 0, b, 1, -1) || !case_same(a, 1, b, 2, -1))
        wrong = "a sequence's result depends on its place in the batch";
    case_free(a);
    case_free(b);
    return wrong;
}

/* Packed sequences equal the same sequences alone; empty ones hand their state through. */
static const char *packing(gdr_kernel *k, uint64_t seed) {
    int64_t length[] = {0, 1, 65, 17, 0, 130, 64, 0};
    int label[] = {0, 1, 2, 3, 4, 5, 6, 7};
    enum { N = sizeof length / sizeof *length };
    Case *all = case_new(k, HEADS, N, length, label, true, 0, seed);
    const char *wrong = case_run(all) != GDR_OK ? "the packed run failed" : NULL;
    int64_t size = case_state_size(all);
    for (int n = 0; n < N && !wrong; n++) {
        if (length[n] == 0) {
            if (memcmp(all->S + n * size, all->S0 + n * size, (size_t)size * sizeof(float)) != 0)
                wrong = "an empty sequence changed its state";
            continue;
        }
        Case *one = case_new(k, HEADS, 1, &length[n], &label[n], false, 0, seed);
        if (case_run(one) != GDR_OK)
            wrong = "a dense run failed";
        else if (!case_same(all, n, one, 0, -1))
            wrong = "a packed sequence differs from the same sequence alone";
        case_free(one);
    }
    case_free(all);
    return wrong;
}

/* Rows past the last sequence are not written. */
static const char *spare_rows(gdr_kernel *k, uint64_t seed) {
    int64_t length[2] = {33, 70};
    int label[2] = {0, 1};
    const int64_t spare = 9;
    Case *c = case_new(k, HEADS, 2, length, label, true, spare, seed);
    const char *wrong = NULL;
    for (int p = 0; p < c->nports; p++)
        if (c->port[p].kind == GDR_OUTPUT)
            for (int64_t i = 0; i < c->T * case_row_size(c, p); i++)
                c->data[p][i] = 1e30f;
    if (case_run(c) != GDR_OK)
        wrong = "the run failed";
    for (int p = 0; p < c->nports && !wrong; p++) {
        if (c->port[p].kind != GDR_OUTPUT)
            continue;
        int64_t end = case_row(c, 2) * case_row_size(c, p);
        for (int64_t i = 0; i < c->T * case_row_size(c, p); i++)
            if ((c->data[p][i] == 1e30f) != (i >= end))
                wrong =
                    i >= end ? "a row past the last sequence was written" : "a row was not written";
    }
    case_free(c);
    return wrong;
}

/* A NaN stays in its sequence and head. */
static const char *containment(gdr_kernel *k, uint64_t seed) {
    int64_t length[3] = {66, 66, 66};
    int label[3] = {0, 1, 2};
    Case *a = case_new(k, HEADS, 3, length, label, false, 0, seed);
    Case *b = case_new(k, HEADS, 3, length, label, false, 0, seed);
    const char *wrong = NULL;
    set_inputs(b, 1, 20, 21, 0, NAN);
    if (case_run(a) != GDR_OK || case_run(b) != GDR_OK)
        wrong = "the run failed";
    else if (!case_same(a, 0, b, 0, -1) || !case_same(a, 2, b, 2, -1))
        wrong = "a NaN reached another sequence";
    int64_t half = case_state_size(a) / HEADS;
    const float *state = b->S + 2 * half;
    if (!wrong && memcmp(a->S + 3 * half, b->S + 3 * half, (size_t)half * sizeof(float)) != 0)
        wrong = "a NaN reached another head";
    bool found = false;
    for (int64_t i = 0; i < half; i++)
        found = found || isnan(state[i]);
    if (!wrong && !found)
        wrong = "a NaN was lost";
    case_free(a);
    case_free(b);
    return wrong;
}

typedef struct Property {
    const char *name;
    const char *(*check)(gdr_kernel *k, uint64_t seed); /* NULL: holds; else what is wrong */
} Property;

static const Property property[] = {
    {"causality", causality}, {"repeatability", repeatability}, {"position", position},
    {"packing", packing},     {"spare_rows", spare_rows},       {"containment", containment},
};
enum { PROPERTIES = sizeof property / sizeof *property };

static int check_kernel(gdr_kernel *k, const char *spec, const char *algo, const char *only,
                        uint64_t seed) {
    int failures = 0;
    for (int i = 0; i < PROPERTIES; i++) {
        if (only && strcmp(only, property[i].name) != 0)
            continue;
        const char *wrong = property[i].check(k, seed);
        if (wrong)
            printf("FAIL %s %s %s: %s\n", spec, algo, property[i].name, wrong);
        failures += wrong != NULL;
    }
    return failures;
}

static int check_spec(gdr_context *ctx, const char *path, const char *only, uint64_t seed) {
    static const struct {
        gdr_algo algo;
        const char *name;
    } kind[] = {{GDR_ALGO_AUTO, "auto"}, {GDR_ALGO_RECURRENT, "recurrent"}};
    /* Sizes that fill no vector register evenly. */
    const gdr_dim dims[] = {{"K", 36}, {"V", 20}};
    int failures = 0;
    for (int i = 0; i < 2; i++) {
        gdr_compile_options options = {
            .size = sizeof options, .dims = dims, .ndims = 2, .algo = kind[i].algo};
        gdr_kernel *kernel;
        if (gdr_compile_file(ctx, path, &options, &kernel) != GDR_OK) {
            printf("FAIL %s %s: %s\n", path, kind[i].name, gdr_last_error(ctx));
            failures++;
            continue;
        }
        failures += check_kernel(kernel, path, kind[i].name, only, seed);
        gdr_kernel_destroy(kernel);
    }
    return failures;
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : NULL;
    const char *given = getenv("GDR_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 20260117;
    printf("seed %llu\n", (unsigned long long)seed);

    glob_t specs;
    gdr_context *ctx;
    gdr_context_options options = {.size = sizeof options, .cache_dir = ""};
    if (glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &specs) != 0 ||
        gdr_context_create(&options, &ctx) != GDR_OK) {
        puts("FAIL: no specs or no context");
        return 1;
    }
    int failures = 0;
    for (size_t i = 0; i < specs.gl_pathc; i++)
        failures += check_spec(ctx, specs.gl_pathv[i], only, seed);
    printf("%zu specs, %d failures\n", specs.gl_pathc, failures);
    gdr_context_destroy(ctx);
    globfree(&specs);
    return failures != 0;
}
