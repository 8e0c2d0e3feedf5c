/* The number formats of GPU kernels as the hardware has them: 16-bit floats rounded to nearest
 * even, tf32. A register is 64 bits wide and holds the bits of its value, with zeros above. */
#ifndef GDR_TESTS_SIMT_NUMBER_H
#define GDR_TESTS_SIMT_NUMBER_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef enum NumberKind { NUMBER_int, NUMBER_f16, NUMBER_bf16, NUMBER_f32 } NumberKind;

static inline float float_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t bits_of_float(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* Shifted into place the exponent is 112 too small, which a product mends, subnormals included. */
static inline float float_of_f16(uint32_t h) {
    uint32_t u = bits_of_float(float_of_bits((h & 0x7fff) << 13) * 0x1p112f);
    if ((h & 0x7c00) == 0x7c00)
        u |= 0x7f800000;
    return float_of_bits(u | (h & 0x8000) << 16);
}

static inline uint32_t f16_of_float(float f) {
    uint32_t u = bits_of_float(f), sign = u >> 16 & 0x8000;
    float size = fabsf(f);
    if (isnan(f))
        return 0x7fff;
    if (size >= 65520)
        return sign | 0x7c00;
    if (size < 0x1p-14f) /* next to a half, the unit in the last place is 2^-24: f16's smallest */
        return sign | (bits_of_float(size + 0.5f) - bits_of_float(0.5f));
    u = bits_of_float(size);
    u += 0xfff + (u >> 13 & 1);
    return sign | ((u >> 13) - (112u << 10));
}

static inline float float_of_bf16(uint32_t h) {
    return float_of_bits(h << 16);
}

static inline uint32_t bf16_of_float(float f) {
    uint32_t u = bits_of_float(f);
    if (isnan(f))
        return 0x7fff;
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static inline float number_get(NumberKind kind, uint64_t x) {
    switch (kind) {
    case NUMBER_f16: return float_of_f16((uint32_t)x);
    case NUMBER_bf16: return float_of_bf16((uint32_t)x);
    default: return float_of_bits((uint32_t)x);
    }
}

static inline uint64_t number_put(NumberKind kind, float f) {
    switch (kind) {
    case NUMBER_f16: return f16_of_float(f);
    case NUMBER_bf16: return bf16_of_float(f);
    default: return bits_of_float(f);
    }
}

/* What tensor cores see of a tf32 operand. */
static inline float float_of_tf32(uint64_t x) {
    return float_of_bits((uint32_t)x & ~0x1fffu);
}

/* Rounded to nearest, ties away from zero. */
static inline uint32_t tf32_of_float(float f) {
    uint32_t u = bits_of_float(f);
    return isfinite(f) ? (u + 0x1000) & ~0x1fffu : u;
}

/* Numbers too small for a full mantissa count as zeros where an instruction says ftz. */
static inline float flushed(float f) {
    return fabsf(f) < 0x1p-126f ? copysignf(0, f) : f;
}

static inline int64_t sign_extended(uint64_t x, int bits) {
    return (int64_t)(x << (64 - bits)) >> (64 - bits);
}

static inline uint64_t mask_of_bits(int bits) {
    return bits >= 64 ? ~0ull : (1ull << bits) - 1;
}

#endif
