/* Shared by the tests of the front end: specs from text or file, random inputs, and comparing what
 * a spec means (reference_run) with what it was lowered to (kernel_eval). */
#ifndef GDR_TESTS_SPEC_TEST_H
#define GDR_TESTS_SPEC_TEST_H

#include "frontend/frontend.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PORTS = 16 };

typedef struct Spec {
    Arena arena;
    Interner names;
    Diag d;
    SpecFile *file;
} Spec;

static inline const char *messages(Spec *s) {
    Buf b;
    buf_init(&b, &s->arena);
    diag_print_text(&s->d, &b, false);
    return b.text ? b.text : "";
}

/* Parsed and checked; look at d for errors. */
static inline Spec *spec_open_n(const char *name, const char *text, size_t len) {
    Spec *s = calloc(1, sizeof *s);
    assert_non_null(s);
    arena_init(&s->arena, NULL);
    intern_init(&s->names, &s->arena);
    const Source *source = source_from_text(&s->arena, name, text, len);
    diag_init(&s->d, &s->arena, source);
    s->file = spec_parse(&s->arena, &s->names, source, &s->d);
    spec_check(s->file, &s->d);
    return s;
}

static inline Spec *spec_open(const char *text) { return spec_open_n("test.gdr", text, strlen(text)); }

static inline void spec_close(Spec *s) {
    arena_free(&s->arena);
    free(s);
}

/* The file must be right. */
static inline Spec *spec_load(const char *path) {
    Arena a;
    arena_init(&a, NULL);
    const Source *source = source_from_file(&a, path);
    assert_non_null(source);
    Spec *s = spec_open_n(path, source->text, source->len);
    arena_free(&a);
    if (s->d.errors)
        fail_msg("%s", messages(s));
    return s;
}

enum { SPECS_MAX = 64, SPEC_NAME = 64 };

/* Names of all specs of the folder, in order; how many. */
static inline int spec_names(char name[SPECS_MAX][SPEC_NAME]) {
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    int n = (int)files.gl_pathc;
    assert_true(n <= SPECS_MAX);
    for (int i = 0; i < n; i++) {
        const char *base = strrchr(files.gl_pathv[i], '/') + 1;
        size_t len = strlen(base) - strlen(".gdr");
        assert_true(len < SPEC_NAME);
        snprintf(name[i], SPEC_NAME, "%.*s", (int)len, base);
    }
    globfree(&files);
    return n;
}

static inline double random_unit(uint64_t *seed) { /* [0, 1) */
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(*seed >> 11) / (double)(1ull << 53);
}

/* Inside the declared range; near the bound where only one is given. */
static inline double random_input(const Port *p, uint64_t *seed) {
    double u = random_unit(seed);
    if (isfinite(p->lo) && isfinite(p->hi))
        return p->lo + u * (p->hi - p->lo);
    if (isfinite(p->hi))
        return p->hi - 2 * u;
    if (isfinite(p->lo))
        return p->lo + 2 * u;
    return 2 * u - 1;
}

/* Tensors of one sequence for a lowered spec. */
typedef struct Data {
    const Kernel *k;
    EvalArgs args;
    double *in[MAX_PORTS], *out[MAX_PORTS];
    const double *in_const[MAX_PORTS];
    int64_t nstate;
} Data;

static inline Data *data_new(Arena *a, const Kernel *k, int64_t T, uint64_t seed) {
    Data *x = NEW(a, Data);
    x->k = k;
    assert_true(k->in.count <= MAX_PORTS && k->out.count <= MAX_PORTS);
    for (int i = 0; i < k->in.count; i++) {
        int64_t n = shape_elements(k, k->in.at[i].shape) * (k->in.at[i].is_param ? 1 : T);
        x->in_const[i] = x->in[i] = NEW_ARRAY(a, double, n + 1);
        for (int64_t j = 0; j < n; j++)
            x->in[i][j] = random_input(&k->in.at[i], &seed);
    }
    for (int i = 0; i < k->out.count; i++)
        x->out[i] = NEW_ARRAY(a, double, shape_elements(k, k->out.at[i].shape) * T + 1);
    x->nstate = (int64_t)k->axis.at[AXIS_K].size * k->axis.at[AXIS_V].size;
    x->args = (EvalArgs){.T = T, .in = x->in_const, .out = x->out,
                         .state = NEW_ARRAY(a, double, x->nstate)};
    for (int64_t j = 0; j < x->nstate; j++)
        x->args.state[j] = 2 * random_unit(&seed) - 1;
    return x;
}

static inline double difference(const double *a, const double *b, int64_t n) {
    double most = 0, scale = 1;
    for (int64_t i = 0; i < n; i++) {
        assert_true(isfinite(a[i]) && isfinite(b[i]));
        most = fmax(most, fabs(a[i] - b[i]));
        scale = fmax(scale, fabs(a[i]));
    }
    return most / scale;
}

/* The largest difference of outs and final states, relative to the largest element. */
static inline double data_difference(const Data *a, const Data *b) {
    double most = difference(a->args.state, b->args.state, a->nstate);
    for (int i = 0; i < a->k->out.count; i++)
        most = fmax(most, difference(a->out[i], b->out[i],
                                     shape_elements(a->k, a->k->out.at[i].shape) * a->args.T));
    return most;
}

static inline Data *run_reference(Spec *s, const char *variant, const SpecBind *dims,
                                  const Kernel *k, int64_t T, uint64_t seed) {
    Data *x = data_new(&s->arena, k, T, seed);
    if (!reference_run(&s->arena, s->file, variant, dims, &x->args, &s->d))
        fail_msg("%s", messages(s));
    return x;
}

/* Reference against lowered kernel; returns the kernel. */
static inline Kernel *agree(Spec *s, const char *variant, const SpecBind *dims, int64_t T,
                            uint64_t seed) {
    Kernel *k = s->d.errors ? NULL : spec_lower(&s->arena, &s->names, s->file, variant, dims, &s->d);
    if (!k)
        fail_msg("%s", messages(s));
    const char *wrong = kernel_verify(k);
    if (wrong)
        fail_msg("%s: %s", k->name, wrong);
    Data *x = run_reference(s, variant, dims, k, T, seed);
    Data *y = data_new(&s->arena, k, T, seed);
    kernel_eval(k, &s->arena, &y->args);
    double diff = data_difference(x, y);
    if (!(diff <= 1e-12)) {
        Buf b;
        buf_init(&b, &s->arena);
        kernel_print(k, &b);
        fail_msg("reference and kernel differ by %g:\n%s\n%s", diff, s->file->source->text, b.text);
    }
    return k;
}

static inline int count_op(const Kernel *k, Op op) {
    int n = 0;
    for (int i = 0; i < k->inst.count; i++)
        n += inst_at(k, i)->op == op;
    return n;
}

#endif
