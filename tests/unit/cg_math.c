/* Elementwise operations as machine code, against the C library in double precision.
 *
 * One host module holds a function per operation and vector width, run over a grid of arguments,
 * special values included. For the GPU targets the same operations must select and print as PTX:
 * an unsupported intrinsic would end the process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "codegen/codegen.h"
#include "runtime/runtime.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16 };

static double softplus_ref(double x) {
    return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}

static double sigmoid_ref(double x) {
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

static double reference(Op op, double a, double b) {
    switch ((int)op) {
    case OP_neg: return -a;
    case OP_add: return a + b;
    case OP_sub: return a - b;
    case OP_mul: return a * b;
    case OP_div: return a / b;
    case OP_pow: return pow(a, b);
    case OP_min: return isnan(a) || isnan(b) ? NAN : fmin(a, b);
    case OP_max: return isnan(a) || isnan(b) ? NAN : fmax(a, b);
    case OP_exp: return exp(a);
    case OP_log: return log(a);
    case OP_sqrt: return sqrt(a);
    case OP_rsqrt: return 1 / sqrt(a);
    case OP_sigmoid: return sigmoid_ref(a);
    case OP_softplus: return softplus_ref(a);
    case OP_tanh: return tanh(a);
    case OP_silu: return a * sigmoid_ref(a);
    case OP_relu: return a < 0 ? 0 : a;
    case OP_less: return isnan(a) || isnan(b) ? NAN : a < b;
    case OP_abs: return fabs(a);
    case OP_cos: return cos(a);
    case OP_sin: return sin(a);
    default: fail_msg("no reference for %s", op_info[op].name);
    }
    return 0;
}

static Cg *open_target(Arena *arena, const char *target, CgOptions *opt) {
    const char *why = NULL;
    *opt = (CgOptions){.target = target, .opt_level = 2};
    Cg *cg = cg_open(arena, NULL, opt, &why);
    if (!cg)
        fail_msg("%s: %s", target, why);
    return cg;
}

/* void name(frame = a, first = b, last = out): out[i] = op(a[i], b[i]) for `lanes` elements. */
static void build_op(Cg *cg, Op op, int lanes, const char *name) {
    Ty param[4] = {cg->ptr, cg->i64, cg->i64, cg->ptr};
    cg->fn = LLVMAddFunction(cg->mod, name, LLVMFunctionType(cg->voidt, param, 4, false));
    LLVMPositionBuilderAtEnd(cg->b, cg_block(cg, "entry"));
    Ty t = lanes > 1 ? LLVMVectorType(cg->f32, (unsigned)lanes) : cg->f32;
    Val pb = LLVMBuildIntToPtr(cg->b, LLVMGetParam(cg->fn, 1), cg->ptr, "");
    Val a = cg_load(cg, t, LLVMGetParam(cg->fn, 0), 4);
    Val b = op_info[op].nargs == 2 ? cg_load(cg, t, pb, 4) : NULL;
    cg_store(cg, cg_pointwise(cg, op, a, b), LLVMGetParam(cg->fn, 3), 4);
    LLVMBuildRetVoid(cg->b);
}

static void op_symbol(Op op, int lanes, char *name, size_t size) {
    snprintf(name, size, "op_%s_%d", op_info[op].name, lanes);
}

static HostCode *build_host(Arena *arena) {
    CgOptions opt;
    const char *why = NULL;
    char text[256];
    Cg *cg = open_target(arena, "host", &opt);
    for (int op = 0; op < OP_count; op++)
        for (int lanes = 1; lanes <= LANES && op_info[op].class == CLASS_PURE; lanes *= LANES) {
            op_symbol((Op)op, lanes, text, sizeof text);
            build_op(cg, (Op)op, lanes, text);
        }
    CgModule module = {0};
    if (!cg_optimize(cg, &why) || !cg_emit(cg, &module, &why))
        fail_msg("%s", why);
    cg_close(cg);
    HostCode *code = hostjit_load(module.object, module.object_len, text, sizeof text);
    if (!code)
        fail_msg("%s", text);
    return code;
}

/* Distance in units of the last place of the expected float; denormal results may be zero. */
static double error_ulp(float got, double want) {
    float w = (float)want;
    if (isnan(want))
        return isnan(got) ? 0 : 1e9;
    if (isinf(w) || isinf(got))
        return got == w ? 0 : 1e9;
    if (fabs(want) < 1.2e-38)
        return fabs(got - want) < 1.2e-38 ? 0 : 1e9;
    int e;
    frexp(want, &e);
    return fabs(got - want) / ldexp(1.0, e - 24);
}

typedef struct Limit {
    Op op;
    double lo, hi, ulp;
} Limit;

static const Limit unary_limit[] = {
    {OP_neg, -10, 10, 0},        {OP_exp, -120, 120, 2},     {OP_log, 1e-6, 100, 3},
    {OP_sqrt, 0, 1e6, 0.51},     {OP_rsqrt, 1e-6, 1e6, 1.6}, {OP_sigmoid, -110, 110, 3},
    {OP_softplus, -110, 110, 3}, {OP_tanh, -12, 12, 3},      {OP_silu, -80, 110, 4},
    {OP_relu, -10, 10, 0},       {OP_abs, -10, 10, 0},       {OP_cos, -1.5, 1.5, 2},
    {OP_sin, -3, 3, 2},
};
static const float special[] = {0.0f,     -0.0f,  1.0f,    -1.0f, INFINITY, -INFINITY,
                                NAN,      1e-30f, -1e-30f, 3e38f, -3e38f,   1000.0f,
                                -1000.0f, 100.0f, -100.0f, 0.5f};
_Static_assert(sizeof special / sizeof special[0] == LANES, "one vector of special values");

static void call(HostCode *code, Op op, int lanes, const float *a, const float *b, float *out) {
    char name[64];
    op_symbol(op, lanes, name, sizeof name);
    HostEntry *f = hostjit_symbol(code, name);
    assert_non_null(f);
    f((const int64_t *)(const void *)a, (int64_t)(intptr_t)b, 0, out);
}

static void check(HostCode *code, Op op, const float *a, const float *b, double ulp) {
    float out[LANES], one;
    call(code, op, LANES, a, b, out);
    for (int i = 0; i < LANES; i++) {
        call(code, op, 1, a + i, b + i, &one);
        assert_true(memcmp(&one, out + i, sizeof one) == 0 || (isnan(one) && isnan(out[i])));
        double want = reference(op, a[i], b[i]), e = error_ulp(out[i], want);
        if (e > ulp)
            fail_msg("%s(%.9g, %.9g) = %.9g, expected %.9g: %.2f ulp", op_info[op].name, a[i], b[i],
                     out[i], want, e);
    }
}

static void test_unary(void **state) {
    HostCode *code = *state;
    for (size_t n = 0; n < sizeof unary_limit / sizeof unary_limit[0]; n++) {
        const Limit *l = &unary_limit[n];
        for (int step = 0; step < 4000; step++) {
            float a[LANES];
            for (int i = 0; i < LANES; i++)
                a[i] = (float)(l->lo + (l->hi - l->lo) * (step * LANES + i) / (4000.0 * LANES));
            check(code, l->op, a, a, l->ulp);
        }
        float small[LANES];
        for (int i = 0; i < LANES; i++)
            small[i] = (float)((i % 2 && l->lo < 0 ? -1 : 1) * pow(10.0, -2.0 * i));
        check(code, l->op, small, small, l->ulp);
    }
}

static void test_special_values(void **state) {
    for (size_t n = 0; n < sizeof unary_limit / sizeof unary_limit[0]; n++) {
        Op op = unary_limit[n].op;
        float a[LANES];
        memcpy(a, special, sizeof a);
        for (int i = 0; i < LANES; i++)
            if ((op == OP_sin || op == OP_cos) && fabsf(a[i]) > 1e30f && !isinf(a[i]))
                a[i] = 0.25f; /* no float near there has a meaningful sine */
        check(*state, op, a, a, 4);
    }
}

static void test_large_angles(void **state) {
    for (int step = 0; step < 2000; step++) {
        float a[LANES], s[LANES], c[LANES];
        for (int i = 0; i < LANES; i++)
            a[i] = (float)((step * LANES + i - 16000) * 6.21875);
        call(*state, OP_sin, LANES, a, a, s);
        call(*state, OP_cos, LANES, a, a, c);
        for (int i = 0; i < LANES; i++) {
            assert_true(fabs(s[i] - sin(a[i])) < 1e-6);
            assert_true(fabs(c[i] - cos(a[i])) < 1e-6);
        }
    }
}

static void test_binary(void **state) {
    static const Op op[] = {OP_add, OP_sub, OP_mul, OP_div, OP_min, OP_max, OP_less, OP_pow};
    for (size_t n = 0; n < sizeof op / sizeof op[0]; n++) {
        for (int shift = 0; shift < LANES; shift++) {
            float b[LANES];
            for (int i = 0; i < LANES; i++)
                b[i] = special[(i + shift) % LANES];
            check(*state, op[n], special, b, 1);
        }
        srand(7);
        for (int step = 0; step < 4000; step++) {
            float a[LANES], b[LANES];
            for (int i = 0; i < LANES; i++) {
                a[i] = (float)exp(rand() / (double)RAND_MAX * 20 - 10);
                b[i] = (float)(rand() / (double)RAND_MAX * 12 - 6);
                if (step % 4 == 0) {
                    a[i] = -a[i];
                    b[i] = rintf(b[i]);
                }
            }
            check(*state, op[n], a, b, 1);
        }
    }
}

/* 16-bit conversions --------------------------------------------------------------------------- */

/* For a CPU without half-precision instructions the conversions are integer code. */
static HostCode *build_convert(Arena *arena, Elem e, const char *cpu) {
    const char *why = NULL;
    char text[256];
    CgOptions opt = {.target = "host", .cpu = cpu, .opt_level = 2};
    Cg *cg = cg_open(arena, NULL, &opt, &why);
    assert_non_null(cg);
    Ty param[4] = {cg->ptr, cg->i64, cg->i64, cg->ptr};
    Ty t = LLVMVectorType(cg_elem_type(cg, e), LANES), f = LLVMVectorType(cg->f32, LANES);
    for (int narrow = 0; narrow < 2; narrow++) {
        cg->fn = LLVMAddFunction(cg->mod, narrow ? "narrow" : "widen",
                                 LLVMFunctionType(cg->voidt, param, 4, false));
        LLVMPositionBuilderAtEnd(cg->b, cg_block(cg, "entry"));
        Val x = cg_load(cg, narrow ? f : t, LLVMGetParam(cg->fn, 0), 2);
        x = narrow ? cg_from_f32(cg, x, e) : cg_to_f32(cg, x);
        cg_store(cg, x, LLVMGetParam(cg->fn, 3), 2);
        LLVMBuildRetVoid(cg->b);
    }
    CgModule module = {0};
    if (!cg_optimize(cg, &why) || !cg_emit(cg, &module, &why))
        fail_msg("%s", why);
    cg_close(cg);
    HostCode *code = hostjit_load(module.object, module.object_len, text, sizeof text);
    if (!code)
        fail_msg("%s", text);
    return code;
}

static double narrow_value(Elem e, uint16_t bits) {
    int mantissa = e == ELEM_bf16 ? 7 : 10, bias = e == ELEM_bf16 ? 127 : 15;
    int top = e == ELEM_bf16 ? 255 : 31;
    int exponent = (bits & 0x7fff) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
    double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == top)
        return fraction ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - mantissa);
    return sign * ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
}

/* Every 16-bit pattern widens exactly and comes back; points between two neighbours round to the
 * nearer one, ties to the even one. */
static void check_convert(HostCode *code, Elem e) {
    HostEntry *widen = hostjit_symbol(code, "widen"), *narrow = hostjit_symbol(code, "narrow");
    for (int base = 0; base < 0x10000; base += LANES) {
        uint16_t in[LANES], back[LANES];
        float wide[LANES], mid[LANES], above[LANES];
        for (int i = 0; i < LANES; i++)
            in[i] = (uint16_t)(base + i);
        widen((const int64_t *)(const void *)in, 0, 0, wide);
        for (int i = 0; i < LANES; i++) {
            double want = narrow_value(e, in[i]), next = narrow_value(e, (uint16_t)(in[i] + 1));
            assert_true(isnan(want) ? isnan(wide[i]) : wide[i] == (float)want);
            mid[i] = isfinite(next) ? (float)((want + next) / 2) : wide[i];
            above[i] = isfinite(next) ? nextafterf(mid[i], (float)next) : wide[i];
        }
        narrow((const int64_t *)(const void *)wide, 0, 0, back);
        for (int i = 0; i < LANES; i++)
            assert_true(back[i] == in[i] || isnan(wide[i]));
        for (int i = 0; i < LANES; i++)
            assert_true(!isnan(wide[i]) || isnan(narrow_value(e, back[i])));
        narrow((const int64_t *)(const void *)mid, 0, 0, back);
        for (int i = 0; i < LANES; i++)
            if (isfinite(mid[i]) && mid[i] != wide[i])
                assert_int_equal(back[i], in[i] + (in[i] & 1));
        narrow((const int64_t *)(const void *)above, 0, 0, back);
        for (int i = 0; i < LANES; i++)
            if (isfinite(above[i]) && above[i] != wide[i])
                assert_int_equal(back[i], in[i] + 1);
    }
    float big[LANES] = {65519.0f, 65520.0f, 1e30f, 3.4e38f, INFINITY, NAN};
    uint16_t out[LANES];
    narrow((const int64_t *)(const void *)big, 0, 0, out);
    for (int i = 0; i < 6 && e == ELEM_f16; i++)
        assert_int_equal(i == 5 ? out[i] > 0x7c00 : out[i], i == 5 ? 1 : i == 0 ? 0x7bff : 0x7c00);
}

static void test_convert(void **state) {
    (void)state;
    static const char *cpu[] = {NULL, "x86-64"};
    for (int n = 0; n < 2; n++)
        for (Elem e = ELEM_bf16; e <= ELEM_f16; e++) {
#ifndef __x86_64__
            if (cpu[n])
                continue;
#endif
            Arena arena;
            arena_init(&arena, NULL);
            HostCode *code = build_convert(&arena, e, cpu[n]);
            check_convert(code, e);
            hostjit_free(code);
            arena_free(&arena);
        }
}

/* GPU ------------------------------------------------------------------------------------------ */

static void test_ptx(void **state) {
    (void)state;
    static const char *target[] = {"sm_80", "sm_90a"};
    for (int n = 0; n < 2; n++) {
        Arena arena;
        arena_init(&arena, NULL);
        CgOptions opt;
        const char *why = NULL;
        char name[64];
        Cg *cg = open_target(&arena, target[n], &opt);
        for (int op = 0; op < OP_count; op++)
            for (int lanes = 1; lanes <= 4 && op_info[op].class == CLASS_PURE; lanes *= 4) {
                op_symbol((Op)op, lanes, name, sizeof name);
                build_op(cg, (Op)op, lanes, name);
            }
        CgModule module = {0};
        if (!cg_optimize(cg, &why) || !cg_emit(cg, &module, &why))
            fail_msg("%s", why);
        assert_non_null(strstr(module.text, "ex2.approx.ftz.f32"));
        assert_non_null(strstr(module.text, n ? ".target sm_90a" : ".target sm_80"));
        assert_null(strstr(module.text, "tanh.approx"));
        cg_close(cg);
        arena_free(&arena);
    }
}

static void test_unknown_target(void **state) {
    (void)state;
    Arena arena;
    arena_init(&arena, NULL);
    CgOptions opt = {.target = "sm_10"};
    const char *why = NULL;
    assert_null(cg_open(&arena, NULL, &opt, &why));
    assert_string_equal(why, "unknown target");
    arena_free(&arena);
}

static Arena host_arena;

static int setup(void **state) {
    arena_init(&host_arena, NULL);
    *state = build_host(&host_arena);
    return 0;
}

static int teardown(void **state) {
    hostjit_free(*state);
    arena_free(&host_arena);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unary),          cmocka_unit_test(test_special_values),
        cmocka_unit_test(test_large_angles),   cmocka_unit_test(test_binary),
        cmocka_unit_test(test_convert),        cmocka_unit_test(test_ptx),
        cmocka_unit_test(test_unknown_target),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
