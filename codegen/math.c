/* Elementwise operations on float or <n x float>, and conversions to and from 16-bit types.
 *
 * One set of formulas serves both targets, branch-free; they differ in exp and 1/x alone. Series
 * are Taylor's on reduced arguments, long enough that truncation stays below a quarter ulp:
 *
 *   exp(x)       2^n e^r, |r| <= ln2/2        GPU: ex2.approx and a first-order correction
 *   log(x)       e ln2 + 2 atanh(s),          s = (m-1)/(m+1), m in [0.70, 1.42)
 *   sigmoid(x)   (x < 0 ? t : 1)/(1+t)        t = exp(-|x|), which cannot overflow
 *   softplus(x)  max(x,0) + log1p(t)          log1p(t) = 2 atanh(t/(2+t))
 *   tanh(x)      (1-t^2)/(1+t^2), and a rational function where that cancels
 *   sin, cos     quadrant and remainder of x / (pi/2)
 *   pow(a,b)     exp(b log|a|) in double precision
 *
 * On the GPU the hardware functions flush denormals; adds and multiplies keep them. So functions
 * underflow to 0 below 1e-38, and products of decays underflow gradually.
 */
#include "codegen/codegen.h"
#include <math.h>
#include <string.h>

/* constants and types like a given value ------------------------------------------------------- */

static int lanes(Val x) {
    Ty t = LLVMTypeOf(x);
    return LLVMGetTypeKind(t) == LLVMVectorTypeKind ? (int)LLVMGetVectorSize(t) : 0;
}

static Ty widen(Ty element, int n) {
    return n ? LLVMVectorType(element, (unsigned)n) : element;
}

static Val number(Cg *cg, Val like, double x) {
    Ty t = LLVMTypeOf(like);
    if (!lanes(like))
        return LLVMConstReal(t, x);
    return cg_splat(cg, LLVMConstReal(LLVMGetElementType(t), x), lanes(like));
}

static Val integer(Cg *cg, Val like, int64_t x) {
    Ty t = LLVMTypeOf(like);
    if (!lanes(like))
        return LLVMConstInt(t, (uint64_t)x, true);
    return cg_splat(cg, LLVMConstInt(LLVMGetElementType(t), (uint64_t)x, true), lanes(like));
}

static Val to_bits(Cg *cg, Val x) {
    return LLVMBuildBitCast(cg->b, x, widen(cg->i32, lanes(x)), "");
}

static Val from_bits(Cg *cg, Val x) {
    return LLVMBuildBitCast(cg->b, x, widen(cg->f32, lanes(x)), "");
}

static Val compare(Cg *cg, LLVMRealPredicate p, Val a, Val b) {
    return LLVMBuildFCmp(cg->b, p, a, b, "");
}

static Val unary(Cg *cg, const char *intrinsic, Val a) {
    Ty t = LLVMTypeOf(a);
    return cg_intrinsic(cg, intrinsic, &t, 1, &a, 1);
}

static Val binary(Cg *cg, const char *intrinsic, Val a, Val b) {
    Ty t = LLVMTypeOf(a);
    Val arg[2] = {a, b};
    return cg_intrinsic(cg, intrinsic, &t, 1, arg, 2);
}

/* c[0] + c[1] x + ... + c[n-1] x^(n-1) */
static Val polynomial(Cg *cg, Val x, const double *c, int n) {
    Val y = number(cg, x, c[n - 1]);
    for (int i = n - 2; i >= 0; i--)
        y = cg_fma(cg, y, x, number(cg, x, c[i]));
    return y;
}

/* lo <= x <= hi, NaN kept. */
static Val clamp(Cg *cg, Val x, double lo, double hi) {
    Val l = number(cg, x, lo), h = number(cg, x, hi);
    if (cg->target->gpu && LLVMGetTypeKind(LLVMTypeOf(x)) == LLVMFloatTypeKind)
        return binary(cg, "llvm.maximum", binary(cg, "llvm.minimum", x, h), l);
    x = cg_select(cg, compare(cg, LLVMRealOLT, x, l), l, x);
    return cg_select(cg, compare(cg, LLVMRealOGT, x, h), h, x);
}

static Val gpu_approx(Cg *cg, const char *intrinsic, Val x) {
    return cg_intrinsic(cg, intrinsic, NULL, 0, &x, 1);
}

static Val reciprocal(Cg *cg, Val x) {
    if (cg->target->gpu)
        return gpu_approx(cg, "llvm.nvvm.rcp.approx.ftz.f", x);
    return cg_fdiv(cg, number(cg, x, 1.0), x);
}

static Val quotient(Cg *cg, Val a, Val b) {
    return cg->target->gpu ? cg_fmul(cg, a, reciprocal(cg, b)) : cg_fdiv(cg, a, b);
}

/* exponentials and logarithms ------------------------------------------------------------------ */

static const double inverse_factorial[] = {
    1.0,       1.0,        1.0 / 2,     1.0 / 6,      1.0 / 24,      1.0 / 120,
    1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800,
};

/* Adding 1.5 * 2^23 rounds a small float to the nearest integer and leaves that integer in the low
 * bits: no conversion instruction, and a NaN stays harmless. */
static const double float_rounder = 12582912.0;
static const double ln2_high = 0x1.62e4p-1; /* 15 bits: n * ln2_high is exact */
static const double ln2_low = 0x1.7f7d1cf79abcap-20;

static Val power_of_two(Cg *cg, Val n) {
    return from_bits(cg, cg_shl(cg, cg_add(cg, n, integer(cg, n, 127)), 23));
}

static Val exp_host(Cg *cg, Val x) {
    x = clamp(cg, x, -104.5, 89.5);
    Val rounder = number(cg, x, float_rounder);
    Val t = cg_fma(cg, x, number(cg, x, M_LOG2E), rounder);
    Val n = cg_sub(cg, to_bits(cg, t), to_bits(cg, rounder));
    Val nf = cg_fsub(cg, t, rounder);
    Val r = cg_fma(cg, nf, number(cg, x, -ln2_high), x);
    r = cg_fma(cg, nf, number(cg, x, -ln2_low), r);
    Val y = polynomial(cg, r, inverse_factorial, 8);
    /* 2^n in two factors: n reaches -151 and 129, outside what one float can hold. */
    Val half = LLVMBuildAShr(cg->b, n, integer(cg, n, 1), "");
    y = cg_fmul(cg, y, power_of_two(cg, half));
    return cg_fmul(cg, y, power_of_two(cg, cg_sub(cg, n, half)));
}

/* 2^h (1 + r ln2) with h + r = x log2(e) to twice the precision: rounding of h does not count. */
static Val exp_gpu(Cg *cg, Val x) {
    static const double log2e_high = 0x1.715476p+0;
    x = clamp(cg, x, -128.0, 128.0);
    Val high = number(cg, x, log2e_high);
    Val h = LLVMBuildFMul(cg->b, x, high, ""); /* no contract: it must be the rounded product */
    Val r = cg_fma(cg, x, high, LLVMBuildFNeg(cg->b, h, ""));
    r = cg_fma(cg, x, number(cg, x, M_LOG2E - log2e_high), r);
    Val e = cg_intrinsic(cg, "llvm.nvvm.ex2.approx.ftz", &cg->f32, 1, &h, 1);
    return cg_fmul(cg, e, cg_fma(cg, r, number(cg, x, M_LN2), number(cg, x, 1.0)));
}

static Val exponential(Cg *cg, Val x) {
    return cg->target->gpu ? exp_gpu(cg, x) : exp_host(cg, x);
}

/* 2 atanh(s) = 2s (1 + s^2/3 + s^4/5 + ...), `terms` of them. */
static Val twice_atanh(Cg *cg, Val s, int terms) {
    static const double odd[] = {1.0,     1.0 / 3,  1.0 / 5,  1.0 / 7,
                                 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15};
    Val series = polynomial(cg, cg_fmul(cg, s, s), odd, terms);
    return cg_fmul(cg, cg_fadd(cg, s, s), series);
}

static Val logarithm(Cg *cg, Val x) {
    /* Denormals are scaled up first. */
    Val tiny = compare(cg, LLVMRealOLT, x, number(cg, x, 0x1p-126));
    Val scaled = cg_select(cg, tiny, cg_fmul(cg, x, number(cg, x, 0x1p25)), x);
    Val bits = to_bits(cg, scaled);
    /* Exponent e and mantissa m in [sqrt(1/2), sqrt(2)): bits + (1 - sqrt(1/2)) carries into e. */
    Val shifted = cg_add(cg, bits, integer(cg, bits, 0x3f800000 - 0x3f3504f3));
    Val e = cg_sub(cg, cg_shr(cg, shifted, 23), integer(cg, bits, 127));
    e = cg_sub(cg, e, cg_select(cg, tiny, integer(cg, e, 25), integer(cg, e, 0)));
    Val mantissa = cg_and(cg, shifted, integer(cg, bits, 0x007fffff));
    Val m = from_bits(cg, cg_add(cg, mantissa, integer(cg, bits, 0x3f3504f3)));
    Val ef = LLVMBuildSIToFP(cg->b, e, LLVMTypeOf(x), "");
    Val one = number(cg, x, 1.0);
    Val s = quotient(cg, cg_fsub(cg, m, one), cg_fadd(cg, m, one));
    Val y = cg_fma(cg, ef, number(cg, x, ln2_low), twice_atanh(cg, s, 5));
    y = cg_fma(cg, ef, number(cg, x, ln2_high), y);
    Val zero = number(cg, x, 0.0);
    y = cg_select(cg, compare(cg, LLVMRealOLT, x, number(cg, x, INFINITY)), y, x); /* inf, NaN */
    y = cg_select(cg, compare(cg, LLVMRealOEQ, x, zero), number(cg, x, -INFINITY), y);
    return cg_select(cg, compare(cg, LLVMRealOLT, x, zero), number(cg, x, NAN), y);
}

/* gates ---------------------------------------------------------------------------------------- */

static Val exp_of_minus_abs(Cg *cg, Val x) {
    return exponential(cg, LLVMBuildFNeg(cg->b, unary(cg, "llvm.fabs", x), ""));
}

static Val relu(Cg *cg, Val x) {
    Val zero = number(cg, x, 0.0);
    return cg_select(cg, compare(cg, LLVMRealOLT, x, zero), zero, x);
}

static Val sigmoid(Cg *cg, Val x) {
    Val t = exp_of_minus_abs(cg, x), one = number(cg, x, 1.0);
    Val top = cg_select(cg, compare(cg, LLVMRealOLT, x, number(cg, x, 0.0)), t, one);
    return quotient(cg, top, cg_fadd(cg, one, t));
}

static Val softplus(Cg *cg, Val x) {
    Val t = exp_of_minus_abs(cg, x);
    Val s = quotient(cg, t, cg_fadd(cg, number(cg, x, 2.0), t));
    return cg_fadd(cg, relu(cg, x), twice_atanh(cg, s, 8));
}

static Val hyperbolic_tangent(Cg *cg, Val x) {
    /* |x| < 5/8: the continued fraction x/(1 + x^2/(3 + x^2/(5 + ...))) cut after 9. */
    static const double above[] = {945.0, 105.0, 1.0}, below[] = {945.0, 420.0, 15.0};
    Val a = unary(cg, "llvm.fabs", x), z = cg_fmul(cg, x, x), one = number(cg, x, 1.0);
    Val t = exponential(cg, cg_fmul(cg, a, number(cg, x, -2.0)));
    Val small = compare(cg, LLVMRealOLT, a, number(cg, x, 0.625));
    Val top =
        cg_select(cg, small, cg_fmul(cg, a, polynomial(cg, z, above, 3)), cg_fsub(cg, one, t));
    Val bottom = cg_select(cg, small, polynomial(cg, z, below, 3), cg_fadd(cg, one, t));
    return binary(cg, "llvm.copysign", quotient(cg, top, bottom), x);
}

/* circular functions --------------------------------------------------------------------------- */

static const double pi_half = 0x1.921fb54442d18p+0;

/* x = n pi/2 + r, |r| <= pi/4. On the host through double, good to |x| ~ 1e9; on the GPU pi/2 in
 * three pieces, good to 1e4 and beyond. Larger arguments have no meaning left in a float; the
 * result is then some number in [-1, 1]. */
static Val reduce_quadrant(Cg *cg, Val x, Val *n) {
    if (cg->target->gpu) {
        Val rounder = number(cg, x, float_rounder);
        Val t = cg_fma(cg, x, number(cg, x, 1.0 / pi_half), rounder);
        *n = to_bits(cg, t);
        Val nf = cg_fsub(cg, t, rounder);
        Val r = cg_fma(cg, nf, number(cg, x, -0x1.921fb6p+0), x);
        r = cg_fma(cg, nf, number(cg, x, 0x1.777a5cp-25), r);
        r = cg_fma(cg, nf, number(cg, x, 0x1.ee59dap-50), r);
        return clamp(cg, r, -0.8, 0.8);
    }
    static const double double_rounder = 0x1.8p52;
    Val d = LLVMBuildFPExt(cg->b, x, widen(cg->f64, lanes(x)), "");
    Val rounder = number(cg, d, double_rounder);
    Val t = cg_fma(cg, d, number(cg, d, 1.0 / pi_half), rounder);
    Val low = LLVMBuildBitCast(cg->b, t, widen(cg->i64, lanes(x)), "");
    *n = LLVMBuildTrunc(cg->b, low, widen(cg->i32, lanes(x)), "");
    Val nf = cg_fsub(cg, t, rounder);
    Val r = cg_fma(cg, nf, number(cg, d, -pi_half), d);
    r = cg_fma(cg, nf, number(cg, d, -0x1.1a62633145c07p-54), r);
    r = LLVMBuildFPTrunc(cg->b, r, LLVMTypeOf(x), "");
    return clamp(cg, r, -0.8, 0.8);
}

Val cg_within_turn(Cg *cg, Val x) {
    Val rounder = number(cg, x, float_rounder);
    Val n = cg_fsub(cg, cg_fma(cg, x, number(cg, x, 0.25 / pi_half), rounder), rounder);
    x = cg_fma(cg, n, number(cg, x, -0x1.921fb6p+2), x);
    x = cg_fma(cg, n, number(cg, x, 0x1.777a5cp-23), x);
    return cg_fma(cg, n, number(cg, x, 0x1.ee59dap-48), x);
}

/* sin(x + shift pi/2) */
static Val sine(Cg *cg, Val x, int shift) {
    static const double odd[] = {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880};
    static const double even[] = {1.0, -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800};
    Val n, r = reduce_quadrant(cg, x, &n);
    n = cg_add(cg, n, integer(cg, n, shift));
    Val z = cg_fmul(cg, r, r), none = integer(cg, n, 0);
    Val s = cg_fmul(cg, r, polynomial(cg, z, odd, 5));
    Val c = polynomial(cg, z, even, 6);
    Val swap = cg_cmp(cg, LLVMIntNE, cg_and(cg, n, integer(cg, n, 1)), none);
    Val minus = cg_shl(cg, cg_and(cg, n, integer(cg, n, 2)), 30);
    return from_bits(cg, cg_xor(cg, to_bits(cg, cg_select(cg, swap, c, s)), minus));
}

/* powers --------------------------------------------------------------------------------------- */

/* log of a positive double that was a float, relative error 1e-12. */
static Val log_double(Cg *cg, Val x) {
    static const double odd[] = {1.0, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13};
    Ty wide = widen(cg->i64, lanes(x));
    const int64_t root_half = 0x3fe6a09e667f3bcd, unit = 0x3ff0000000000000;
    Val bits = LLVMBuildBitCast(cg->b, x, wide, "");
    Val shifted = cg_add(cg, bits, integer(cg, bits, unit - root_half));
    Val e = cg_sub(cg, cg_shr(cg, shifted, 52), integer(cg, bits, 1023));
    Val m = cg_and(cg, shifted, integer(cg, bits, 0x000fffffffffffff));
    m = LLVMBuildBitCast(cg->b, cg_add(cg, m, integer(cg, bits, root_half)), LLVMTypeOf(x), "");
    Val one = number(cg, x, 1.0);
    Val s = cg_fdiv(cg, cg_fsub(cg, m, one), cg_fadd(cg, m, one));
    Val y = cg_fmul(cg, cg_fadd(cg, s, s), polynomial(cg, cg_fmul(cg, s, s), odd, 7));
    Val ef = LLVMBuildSIToFP(cg->b, LLVMBuildTrunc(cg->b, e, widen(cg->i32, lanes(x)), ""),
                             LLVMTypeOf(x), "");
    return cg_fma(cg, ef, number(cg, x, M_LN2), y);
}

static Val exp_double(Cg *cg, Val x) {
    x = clamp(cg, x, -300.0, 300.0); /* far outside what a float holds */
    Val rounder = number(cg, x, 0x1.8p52);
    Val t = cg_fma(cg, x, number(cg, x, M_LOG2E), rounder);
    Ty wide = widen(cg->i64, lanes(x));
    Val n = cg_sub(cg, LLVMBuildBitCast(cg->b, t, wide, ""),
                   LLVMBuildBitCast(cg->b, rounder, wide, ""));
    Val r = cg_fma(cg, cg_fsub(cg, t, rounder), number(cg, x, -M_LN2), x);
    Val y = polynomial(cg, r, inverse_factorial, 11);
    Val scale = cg_shl(cg, cg_add(cg, n, integer(cg, n, 1023)), 52);
    return cg_fmul(cg, y, LLVMBuildBitCast(cg->b, scale, LLVMTypeOf(x), ""));
}

static Val power_general(Cg *cg, Val a, Val b) {
    Val zero = number(cg, a, 0.0), one = number(cg, a, 1.0), inf = number(cg, a, INFINITY);
    Val mag = unary(cg, "llvm.fabs", a), size = unary(cg, "llvm.fabs", b);
    Ty wide = widen(cg->f64, lanes(a));
    Val l = log_double(cg, LLVMBuildFPExt(cg->b, mag, wide, ""));
    l = cg_select(cg, compare(cg, LLVMRealOEQ, mag, zero), number(cg, l, -INFINITY), l);
    l = cg_select(cg, compare(cg, LLVMRealOEQ, mag, inf), number(cg, l, INFINITY), l);
    l = cg_select(cg, compare(cg, LLVMRealUNO, mag, mag), number(cg, l, NAN), l);
    Val y = cg_fmul(cg, LLVMBuildFPExt(cg->b, b, wide, ""), l);
    y = LLVMBuildFPTrunc(cg->b, exp_double(cg, y), LLVMTypeOf(a), "");

    Val integral = compare(cg, LLVMRealOEQ, unary(cg, "llvm.trunc", b), b);
    Val half = cg_fmul(cg, b, number(cg, b, 0.5));
    Val odd = cg_and(cg, integral, compare(cg, LLVMRealUNE, unary(cg, "llvm.trunc", half), half));
    y = cg_select(cg, odd, binary(cg, "llvm.copysign", y, a), y);
    Val negative =
        cg_and(cg, compare(cg, LLVMRealOLT, a, zero), compare(cg, LLVMRealUNE, mag, inf));
    Val undefined = LLVMBuildAnd(cg->b, negative, LLVMBuildNot(cg->b, integral, ""), "");
    undefined = cg_and(cg, undefined, compare(cg, LLVMRealUNE, size, inf));
    y = cg_select(cg, undefined, number(cg, a, NAN), y);
    Val unit = cg_or(cg, compare(cg, LLVMRealOEQ, b, zero), compare(cg, LLVMRealOEQ, a, one));
    unit =
        cg_or(cg, unit,
              cg_and(cg, compare(cg, LLVMRealOEQ, mag, one), compare(cg, LLVMRealOEQ, size, inf)));
    return cg_select(cg, unit, one, y);
}

/* The value of a constant or of a vector of one constant. */
static bool constant_value(Val x, double *value) {
    if (lanes(x) && LLVMIsConstant(x)) {
        Val first = LLVMGetAggregateElement(x, 0);
        for (int i = 1; i < lanes(x); i++)
            if (LLVMGetAggregateElement(x, (unsigned)i) != first)
                return false;
        x = first;
    }
    if (!x || !LLVMIsAConstantFP(x))
        return false;
    LLVMBool inexact;
    *value = LLVMConstRealGetDouble(x, &inexact);
    return true;
}

static Val power(Cg *cg, Val a, Val b) {
    double n;
    if (!constant_value(b, &n))
        return power_general(cg, a, b);
    if (n == 1.0)
        return a;
    if (n == 2.0)
        return cg_fmul(cg, a, a);
    if (n == 3.0)
        return cg_fmul(cg, cg_fmul(cg, a, a), a);
    if (n == -1.0)
        return cg_fdiv(cg, number(cg, a, 1.0), a);
    return power_general(cg, a, b);
}

static Val less(Cg *cg, Val a, Val b) {
    Val below = compare(cg, LLVMRealOLT, a, b), unknown = compare(cg, LLVMRealUNO, a, b);
    Val y = cg_select(cg, below, number(cg, a, 1.0), number(cg, a, 0.0));
    return cg_select(cg, unknown, number(cg, a, NAN), y);
}

/* interface ------------------------------------------------------------------------------------ */

static Val reciprocal_root(Cg *cg, Val a) {
    if (cg->target->gpu)
        return gpu_approx(cg, "llvm.nvvm.rsqrt.approx.ftz.f", a);
    return cg_fdiv(cg, number(cg, a, 1.0), unary(cg, "llvm.sqrt", a));
}

static bool is_zero(Val x) {
    return LLVMIsConstant(x) && LLVMIsNull(x);
}

/* LLVM keeps x + 0, which is no -0; here zeros have no sign that matters. */
static Val sum(Cg *cg, Val a, Val b) {
    return is_zero(a) ? b : is_zero(b) ? a : cg_fadd(cg, a, b);
}

static Val pointwise(Cg *cg, Op op, Val a, Val b) {
    switch ((int)op) {
    case OP_neg: return LLVMBuildFNeg(cg->b, a, "");
    case OP_add: return sum(cg, a, b);
    case OP_sub: return cg_fsub(cg, a, b);
    case OP_mul: return cg_fmul(cg, a, b);
    case OP_div: return cg_fdiv(cg, a, b);
    case OP_pow: return power(cg, a, b);
    case OP_min: return binary(cg, "llvm.minimum", a, b);
    case OP_max: return binary(cg, "llvm.maximum", a, b);
    case OP_exp: return exponential(cg, a);
    case OP_log: return logarithm(cg, a);
    case OP_sqrt: return unary(cg, "llvm.sqrt", a);
    case OP_rsqrt: return reciprocal_root(cg, a);
    case OP_sigmoid: return sigmoid(cg, a);
    case OP_softplus: return softplus(cg, a);
    case OP_tanh: return hyperbolic_tangent(cg, a);
    case OP_silu: return cg_fmul(cg, a, sigmoid(cg, a));
    case OP_relu: return relu(cg, a);
    case OP_less: return less(cg, a, b);
    case OP_abs: return unary(cg, "llvm.fabs", a);
    case OP_cos: return sine(cg, a, 1);
    case OP_sin: return sine(cg, a, 0);
    default: BUG("%s is not an elementwise operation", op_info[op].name);
    }
}

/* A GPU has no float vectors: one lane after the other. */
Val cg_pointwise(Cg *cg, Op op, Val a, Val b) {
    int n = lanes(a);
    if (!cg->target->gpu || !n)
        return pointwise(cg, op, a, b);
    Val out = LLVMGetPoison(LLVMTypeOf(a));
    for (int i = 0; i < n; i++) {
        Val y = pointwise(cg, op, cg_extract(cg, a, i), b ? cg_extract(cg, b, i) : NULL);
        out = cg_insert(cg, out, y, i);
    }
    return out;
}

Ty cg_elem_type(Cg *cg, Elem e) {
    switch (e) {
    case ELEM_f32: return cg->f32;
    case ELEM_bf16: return cg->bf16;
    case ELEM_f16: return cg->f16;
    case ELEM_f64: return cg->f64;
    }
    BUG("unknown element type %d", (int)e);
}

/* Whether the target converts half precision by instructions rather than library calls. */
static bool has_half(Cg *cg) {
    return cg->target->gpu || strncmp(cg->triple, "x86_64", 6) != 0 ||
           strstr(cg->features, "+f16c");
}

/* Half to float in integers: fields move and the bias changes; denormals are small whole numbers.
 * No float on the way is denormal, so this works where those are flushed. */
static Val half_to_f32(Cg *cg, Val h) {
    Val wide = LLVMBuildZExt(cg->b, h, widen(cg->i32, lanes(h)), "");
    Val body = cg_and(cg, wide, integer(cg, wide, 0x7fff));
    Val y = cg_add(cg, cg_shl(cg, body, 13), integer(cg, wide, (127 - 15) << 23));
    Val whole = LLVMBuildUIToFP(cg->b, body, widen(cg->f32, lanes(h)), "");
    Val small = to_bits(cg, cg_fmul(cg, whole, number(cg, whole, 0x1p-24)));
    y = cg_select(cg, cg_cmp(cg, LLVMIntULT, body, integer(cg, body, 0x0400)), small, y);
    Val special = cg_cmp(cg, LLVMIntUGE, body, integer(cg, body, 0x7c00));
    y = cg_select(cg, special, cg_or(cg, y, integer(cg, body, 0x7f800000)), y);
    Val sign = cg_shl(cg, cg_and(cg, wide, integer(cg, wide, 0x8000)), 16);
    return from_bits(cg, cg_or(cg, y, sign));
}

static Val f32_to_half(Cg *cg, Val x) {
    Val bits = to_bits(cg, x), mag = cg_and(cg, bits, integer(cg, bits, 0x7fffffff));
    /* Normal: rebias and round on the 13 bits that go. */
    Val odd = cg_and(cg, cg_shr(cg, mag, 13), integer(cg, bits, 1));
    Val normal = cg_add(cg, mag, integer(cg, bits, ((15 - 127) * (1 << 23)) + 0xfff));
    normal = cg_shr(cg, cg_add(cg, normal, odd), 13);
    /* Denormal: adding 1/2 leaves the rounded fraction in the low bits. */
    Val small = to_bits(cg, cg_fadd(cg, from_bits(cg, mag), number(cg, x, 0.5)));
    small = cg_sub(cg, small, integer(cg, bits, 0x3f000000));
    Val is_small = cg_cmp(cg, LLVMIntULT, mag, integer(cg, bits, 0x38800000));
    Val y = cg_select(cg, is_small, small, normal);
    Val big = cg_cmp(cg, LLVMIntUGE, mag, integer(cg, bits, 0x477ff000)); /* rounds to 65536 */
    y = cg_select(cg, big, integer(cg, bits, 0x7c00), y);
    Val nan = cg_cmp(cg, LLVMIntUGT, mag, integer(cg, bits, 0x7f800000));
    y = cg_select(cg, nan, integer(cg, bits, 0x7e00), y);
    y = cg_or(cg, y, cg_and(cg, cg_shr(cg, bits, 16), integer(cg, bits, 0x8000)));
    return LLVMBuildTrunc(cg->b, y, widen(cg->i16, lanes(x)), "");
}

static Val f32_to_bf16(Cg *cg, Val x) {
    Val bits = to_bits(cg, x);
    Val odd = cg_and(cg, cg_shr(cg, bits, 16), integer(cg, bits, 1));
    Val y = cg_add(cg, bits, cg_add(cg, odd, integer(cg, bits, 0x7fff)));
    Val quiet = cg_or(cg, bits, integer(cg, bits, 0x00400000));
    y = cg_select(cg, compare(cg, LLVMRealUNO, x, x), quiet, y);
    return LLVMBuildTrunc(cg->b, cg_shr(cg, y, 16), widen(cg->i16, lanes(x)), "");
}

Val cg_to_f32(Cg *cg, Val x) {
    int n = lanes(x);
    Ty t = LLVMTypeOf(x), element = n ? LLVMGetElementType(t) : t;
    if (element == cg->f32)
        return x;
    if (element == cg->f64)
        return LLVMBuildFPTrunc(cg->b, x, widen(cg->f32, n), "");
    if (element == cg->bf16 && !cg->target->gpu) {
        Val bits = LLVMBuildBitCast(cg->b, x, widen(cg->i16, n), "");
        return from_bits(cg, cg_shl(cg, LLVMBuildZExt(cg->b, bits, widen(cg->i32, n), ""), 16));
    }
    if (element == cg->f16 && !has_half(cg))
        return half_to_f32(cg, LLVMBuildBitCast(cg->b, x, widen(cg->i16, n), ""));
    return LLVMBuildFPExt(cg->b, x, widen(cg->f32, n), "");
}

Val cg_from_f32(Cg *cg, Val x, Elem e) {
    Ty t = widen(cg_elem_type(cg, e), lanes(x));
    if (e == ELEM_f32)
        return x;
    if (e == ELEM_f64)
        return LLVMBuildFPExt(cg->b, x, t, "");
    if (e == ELEM_bf16 && !cg->target->gpu)
        return LLVMBuildBitCast(cg->b, f32_to_bf16(cg, x), t, "");
    if (e == ELEM_f16 && !has_half(cg))
        return LLVMBuildBitCast(cg->b, f32_to_half(cg, x), t, "");
    return LLVMBuildFPTrunc(cg->b, x, t, "");
}
