/* What a gradient's condition excuses (driver/nearby.c): a kernel that rounds as a GPU's do, where a gradient
 * is the rest of two equal terms, and no wrong gradient where it is not. */
#include "driver/driver.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#define WIDE_THRESHOLD 0.02 /* verify.c's, of gates and of keys */
#define THRESHOLD 0.008

typedef struct World {
    Driver d;
    Spec spec;
    Problem p;
    Outcome ref, near[NEARBY];
} World;

/* Case `number` of the spec's gradients as `gdrc verify --grad --dtype` counts them. */
static World *world_new(const char *path, gdr_dtype type, int number) {
    static const Engine reference = {.method = METHOD_reference};
    World *w = calloc(1, sizeof *w);
    const Case *list;
    assert_non_null(w);
    arena_init(&w->d.arena, NULL);
    w->d.opt = (Options){.grad = true, .has_dtype = true, .dtype = type, .threads = 1};
    assert_int_equal(gdr_context_create(NULL, &w->d.ctx), GDR_OK);
    assert_int_equal(spec_open(&w->d, path, &w->spec), 0);
    assert_true(number <= case_list_grad(&w->d, false, &list));
    case_problem(&w->d, &w->d.arena, &w->spec, w->spec.file->variant.at[0]->name, &list[number - 1],
                 1 + 7919 * (uint64_t)number, 0, NULL, &w->p);
    assert_non_null(w->p.k);
    assert_int_equal(engine_run(&w->d, &w->p, &reference, &w->d.arena, &w->ref), GDR_OK);
    assert_int_equal(nearby_references(&w->d, &w->p, &w->d.arena, w->near), GDR_OK);
    return w;
}

static void world_free(World *w) {
    gdr_context_destroy(w->d.ctx);
    arena_free(&w->d.arena);
    free(w);
}

/* Whether x passes as gradient i, by itself or with what is known of the reference. */
static bool passes(const World *w, int i, const double *x, double threshold, bool near) {
    const Tensor *list[NEARBY], *ref = &w->ref.out[i];
    Tensor have = *ref;
    have.data = (void *)x;
    for (int n = 0; n < NEARBY; n++)
        list[n] = &w->near[n].out[i];
    Distance d = problem_result(&w->p, i)->is_param
                     ? measure_param(ref, near ? list : NULL, &have)
                     : measure_out(&w->p, ref, near ? list : NULL, &have);
    return distance_ok(&d, threshold);
}

/* a kernel that rounds --------------------------------------------------------------------------- */

static double rounded(gdr_dtype type, double x) {
    float to[1];
    scalar_put(type, to, 0, x);
    return scalar_get(type, to, 0);
}

static double feature(double x) { return x > 0 ? x + 1 : exp(x); }

/* dq of one head of normalised linear attention: f16 what is read of S, `kept` what that gives back. */
static void round_as_kernels_do(const Problem *p, int head, gdr_dtype kept, double *dq) {
    int64_t K = p->k->axis.at[AXIS_K].size, V = p->k->axis.at[AXIS_V].size, H = p->H;
    const Tensor *q = &p->in[0], *k = &p->in[1], *v = &p->in[2], *dO = &p->dout[0];
    double *S = calloc((size_t)(K * V), sizeof *S), *z = calloc((size_t)K, sizeof *z);
    assert_true(S && z);
    for (int64_t i = 0; i < K * V && p->S0.data; i++)
        S[i] = scalar_get(p->S0.dtype, p->S0.data, head * K * V + i);
    for (int64_t t = 0; t < p->T; t++) {
        int64_t keys = (t * H + head) * K, values = (t * H + head) * V;
        double divisor = 1e-6, along = 0;
        for (int64_t i = 0; i < K; i++) {
            double fk = feature(scalar_get(k->dtype, k->data, keys + i));
            z[i] += fk;
            divisor += z[i] * feature(scalar_get(q->dtype, q->data, keys + i));
            for (int64_t j = 0; j < V; j++)
                S[i * V + j] += fk * scalar_get(v->dtype, v->data, values + j);
        }
        for (int pass = 0; pass < 2; pass++) /* first o'dO, along */
            for (int64_t i = 0; i < K; i++) {
                double row = 0, x = scalar_get(q->dtype, q->data, keys + i);
                for (int64_t j = 0; j < V; j++)
                    row += rounded(GDR_F16, S[i * V + j]) *
                           scalar_get(dO->dtype, dO->data, values + j) / divisor;
                if (pass == 0)
                    along += row * feature(x);
                else
                    dq[keys + i] = (rounded(kept, row) - along / divisor * z[i]) * (x > 0 ? 1 : exp(x));
            }
    }
    free(S);
    free(z);
}

/* The first token's dq is 0 but for the divisor's 1e-6; with all keys alike it is what S0 leaves of much
 * larger terms. */
static void equal_terms_leave_a_rounding(void **state) {
    (void)state;
    static const struct { int number; gdr_dtype type; } of[] = {
        {6, GDR_F32}, {6, GDR_BF16}, {17, GDR_BF16}, {17, GDR_F16}, {21, GDR_BF16},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        World *w = world_new(GDR_SPECS_DIR "/normalised_linear_attention.gdr", of[i].type,
                             of[i].number);
        int64_t n = tensor_count(&w->ref.out[0]);
        double *dq = NEW_ARRAY(&w->d.arena, double, n);
        assert_string_equal(problem_result_name(&w->p, 0), "dq");
        for (int h = 0; h < w->p.H; h++)
            round_as_kernels_do(&w->p, h, of[i].type == GDR_F32 ? GDR_F32 : GDR_BF16, dq);
        assert_false(passes(w, 0, dq, WIDE_THRESHOLD, false));
        assert_true(passes(w, 0, dq, WIDE_THRESHOLD, true));
        for (int64_t j = 0; j < n; j++)
            dq[j] *= 100; /* the terms themselves, more or less */
        assert_false(passes(w, 0, dq, WIDE_THRESHOLD, true));
        world_free(w);
    }
}

/* a kernel that is wrong ------------------------------------------------------------------------- */

/* Head 0 of every gradient is off by four times its threshold. */
static void a_wrong_head_is_never_excused(void **state) {
    (void)state;
    static const struct { const char *path; gdr_dtype type; int number; } of[] = {
        {GDR_SPECS_DIR "/gdn2.gdr", GDR_F32, 2},
        {GDR_SPECS_DIR "/gdn2.gdr", GDR_BF16, 12},
        {GDR_SPECS_DIR "/kda_bounded.gdr", GDR_BF16, 11},
        {GDR_SPECS_DIR "/normalised_linear_attention.gdr", GDR_BF16, 11},
        {GDR_SPECS_DIR "/gated_deltaproduct.gdr", GDR_F16, 14},
    };
    for (size_t c = 0; c < sizeof of / sizeof *of; c++) {
        World *w = world_new(of[c].path, of[c].type, of[c].number);
        for (int i = 0; i < problem_results(&w->p); i++) {
            const Tensor *ref = &w->ref.out[i];
            bool param = problem_result(&w->p, i)->is_param;
            double threshold = input_is_vector(w->p.k, i) ? THRESHOLD : WIDE_THRESHOLD;
            int64_t n = tensor_count(ref), heads = ref->shape[param ? 0 : 2], elements = 1;
            for (int a = param ? 1 : 3; a < ref->ndim; a++)
                elements *= ref->shape[a];
            double *x = NEW_ARRAY(&w->d.arena, double, n);
            for (int64_t j = 0; j < n; j++)
                x[j] = ((const double *)ref->data)[j];
            assert_true(passes(w, i, x, threshold, false));
            for (int64_t j = 0; j < n; j++)
                x[j] *= j / elements % heads ? 1 : 1 + 4 * threshold;
            if (passes(w, i, x, threshold, true))
                fail_msg("%s case %d: %s", of[c].path, of[c].number, problem_result_name(&w->p, i));
        }
        world_free(w);
    }
}

/* Two of the references are not moved alike, and a second call moves them as the first. */
static void moves_are_replayed(void **state) {
    (void)state;
    World *w = world_new(GDR_SPECS_DIR "/gdn2.gdr", GDR_F32, 7);
    Outcome again[NEARBY];
    assert_int_equal(nearby_references(&w->d, &w->p, &w->d.arena, again), GDR_OK);
    for (int i = 0; i < problem_results(&w->p); i++) {
        size_t bytes = w->ref.out[i].bytes;
        for (int n = 0; n < NEARBY; n++)
            assert_memory_equal(w->near[n].out[i].data, again[n].out[i].data, bytes);
        assert_memory_not_equal(w->near[0].out[i].data, w->near[1].out[i].data, bytes);
        assert_memory_not_equal(w->near[0].out[i].data, w->ref.out[i].data, bytes);
    }
    world_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_terms_leave_a_rounding),
        cmocka_unit_test(a_wrong_head_is_never_excused),
        cmocka_unit_test(moves_are_replayed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
