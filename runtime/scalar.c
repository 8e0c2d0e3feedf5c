/* Numbers of every tensor type, to and from double. */
#include "runtime/runtime.h"

#include <math.h>
#include <string.h>

static float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static double half_get(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double x = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent     ? ldexp(1024 + fraction, exponent - 25)
                              : ldexp(fraction, -24);
    return h & 0x8000 ? -x : x;
}

/* Rounds to nearest, ties to even. */
static uint16_t half_put(double x) {
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    double a = fabs(x);
    if (isnan(x))
        return 0x7e00;
    if (a >= 65520)
        return sign | 0x7c00;
    int exponent = 0;
    frexp(a, &exponent);      /* a = f * 2^exponent, f in [0.5, 1) */
    int unit = exponent - 11; /* weight of the last bit kept */
    if (a == 0 || unit < -24)
        unit = -24;
    double n = nearbyint(ldexp(a, -unit)); /* at most 2^11 */
    if (unit == -24)
        return sign | (uint16_t)n; /* subnormal, or the first normal */
    return (uint16_t)(sign + ((unit + 24) << 10) + (int)n);
}

static uint16_t bfloat_put(double x) {
    uint32_t bits = bits_of_float((float)x);
    if (isnan(x))
        return 0x7fc0;
    bits += 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(bits >> 16);
}

double scalar_get(gdr_dtype type, const void *data, int64_t i) {
    switch (type) {
    case GDR_F32: return ((const float *)data)[i];
    case GDR_BF16: return float_of_bits((uint32_t)((const uint16_t *)data)[i] << 16);
    case GDR_F16: return half_get(((const uint16_t *)data)[i]);
    case GDR_F64: return ((const double *)data)[i];
    case GDR_I32: return ((const int32_t *)data)[i];
    case GDR_I64: return (double)((const int64_t *)data)[i];
    case GDR_DTYPE_COUNT: break;
    }
    BUG("data type %d", (int)type);
}

void scalar_put(gdr_dtype type, void *data, int64_t i, double x) {
    switch (type) {
    case GDR_F32: ((float *)data)[i] = (float)x; return;
    case GDR_BF16: ((uint16_t *)data)[i] = bfloat_put(x); return;
    case GDR_F16: ((uint16_t *)data)[i] = half_put(x); return;
    case GDR_F64: ((double *)data)[i] = x; return;
    case GDR_I32: ((int32_t *)data)[i] = (int32_t)x; return;
    case GDR_I64: ((int64_t *)data)[i] = (int64_t)x; return;
    case GDR_DTYPE_COUNT: break;
    }
    BUG("data type %d", (int)type);
}
