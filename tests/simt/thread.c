/* What one thread does without the others. */
#include "tests/simt/code.h"

/* integers ------------------------------------------------------------------------------------- */

#define INTEGER(name, value)                                             \
    void run_##name(Thread *t, const Code *c) {                          \
        const uint64_t *x = t->reg + c->arg[0], *y = t->reg + c->arg[1]; \
        uint64_t *d = t->reg + c->dst;                                   \
        int bits = c->bits;                                              \
        (void)bits;                                                      \
        for (int i = 0; i < c->lanes; i++) {                             \
            uint64_t a = x[i], b = y[i];                                 \
            d[i] = (uint64_t)(value)&c->mask;                            \
        }                                                                \
    }
#define SIGNED(x) sign_extended(x, bits)

INTEGER(add, a + b)
INTEGER(sub, a - b)
INTEGER(mul, a *b)
INTEGER(and, a &b)
INTEGER(or, a | b)
INTEGER(xor, a ^ b)
INTEGER(shl, b < (uint64_t)bits ? a << b : ~0ull)
INTEGER(lshr, b < (uint64_t)bits ? a >> b : ~0ull)
INTEGER(ashr, SIGNED(a) >> (b < (uint64_t)bits ? b : (uint64_t)bits - 1))
INTEGER(smin, SIGNED(a) < SIGNED(b) ? a : b)
INTEGER(smax, SIGNED(a) > SIGNED(b) ? a : b)
INTEGER(umin, a < b ? a : b)
INTEGER(umax, a > b ? a : b)
INTEGER(usub_sat, a > b ? a - b : 0)

#define DIVISION(name, value) \
    INTEGER(name, b ? (uint64_t)(value) : (simt_fail(t, c, "division by zero"), 0ull))
DIVISION(udiv, a / b)
DIVISION(urem, a % b)
DIVISION(sdiv, SIGNED(a) / SIGNED(b))
DIVISION(srem, SIGNED(a) % SIGNED(b))

void run_ctpop(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = (uint64_t)__builtin_popcountll(t->reg[c->arg[0] + i]);
}

static bool compare(const Code *c, uint64_t a, uint64_t b) {
    int64_t m = sign_extended(a, c->from_bits), n = sign_extended(b, c->from_bits);
    switch (c->predicate) {
    case LLVMIntEQ: return a == b;
    case LLVMIntNE: return a != b;
    case LLVMIntUGT: return a > b;
    case LLVMIntUGE: return a >= b;
    case LLVMIntULT: return a < b;
    case LLVMIntULE: return a <= b;
    case LLVMIntSGT: return m > n;
    case LLVMIntSGE: return m >= n;
    case LLVMIntSLT: return m < n;
    default: return m <= n;
    }
}

void run_icmp(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = compare(c, t->reg[c->arg[0] + i], t->reg[c->arg[1] + i]);
}

/* number: elements of the condition. */
void run_select(Thread *t, const Code *c) {
    const uint64_t *yes = t->reg + c->arg[0];
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = t->reg[c->arg[yes[c->number > 1 ? i : 0] ? 1 : 2] + i];
}

/* moving bits ---------------------------------------------------------------------------------- */

void run_copy(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = t->reg[c->arg[0] + i];
}

/* The i-th result is the i-th operand. */
void run_tied(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = t->reg[c->arg[i]];
}

void run_trunc(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = t->reg[c->arg[0] + i] & c->mask;
}

void run_sext(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = (uint64_t)sign_extended(t->reg[c->arg[0] + i], c->from_bits) & c->mask;
}

/* Elements of one size to elements of another, the first in the lowest bits. */
void run_bitcast(Thread *t, const Code *c) {
    const uint64_t *x = t->reg + c->arg[0];
    uint64_t *d = t->reg + c->dst;
    if (c->from_bits >= c->bits) {
        int parts = c->from_bits / c->bits;
        for (int i = 0; i < c->lanes; i++)
            d[i] = x[i / parts] >> i % parts * c->bits & c->mask;
        return;
    }
    int parts = c->bits / c->from_bits;
    for (int i = 0; i < c->lanes; i++) {
        uint64_t whole = 0;
        for (int j = 0; j < parts; j++)
            whole |= x[i * parts + j] << j * c->from_bits;
        d[i] = whole;
    }
}

/* number: the first element replaced, or -1: operand 2 says. predicate: how many are. */
void run_insert(Thread *t, const Code *c) {
    uint64_t at = c->number >= 0 ? (uint64_t)c->number : t->reg[c->arg[2]];
    if (at >= (uint64_t)c->lanes)
        simt_fail(t, c, "element %llu of %d", (unsigned long long)at, c->lanes);
    run_copy(t, c);
    for (int i = 0; i < c->predicate; i++)
        t->reg[c->dst + (int)at + i] = t->reg[c->arg[1] + i];
}

/* number: elements of the vector. */
void run_extract(Thread *t, const Code *c) {
    uint64_t at = t->reg[c->arg[1]];
    if (at >= (uint64_t)c->number)
        simt_fail(t, c, "element %llu of %d", (unsigned long long)at, (int)c->number);
    t->reg[c->dst] = t->reg[c->arg[0] + (int)at];
}

/* number: elements of each operand; table: which to take, -1 = none. */
void run_shuffle(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++) {
        int64_t at = c->table[i], n = c->number;
        t->reg[c->dst + i] = at < 0   ? c->mask
                             : at < n ? t->reg[c->arg[0] + at]
                                      : t->reg[c->arg[1] + at - n];
    }
}

/* number: bytes known; table: those an index counts, in front of its bits. */
void run_gep(Thread *t, const Code *c) {
    uint64_t at = t->reg[c->arg[0]] + (uint64_t)c->number;
    for (int i = 1; i < c->nargs; i++)
        at += (uint64_t)(sign_extended(t->reg[c->arg[i]], (int)c->table[2 * i + 1]) *
                         c->table[2 * i]);
    t->reg[c->dst] = at;
}

/* floats --------------------------------------------------------------------------------------- */

/* f32, the usual kind, has loops of its own. */
#define FLOATS(get, put, value)                            \
    for (int i = 0; i < c->lanes; i++) {                   \
        float a = get(x[i]), b = get(y[i]), e = get(z[i]); \
        (void)b;                                           \
        (void)e;                                           \
        d[i] = put(value);                                 \
    }
#define GET32(u) float_of_bits((uint32_t)(u))
#define GET(u) number_get(c->kind, u)
#define PUT(f) number_put(c->kind, f)
#define FLOAT(name, second, third, value)                                     \
    void run_##name(Thread *t, const Code *c) {                               \
        const uint64_t *x = t->reg + c->arg[0], *y = t->reg + c->arg[second]; \
        const uint64_t *z = t->reg + c->arg[third];                           \
        uint64_t *d = t->reg + c->dst;                                        \
        if (c->kind == NUMBER_f32) {                                          \
            FLOATS(GET32, bits_of_float, value)                               \
        } else {                                                              \
            FLOATS(GET, PUT, value)                                           \
        }                                                                     \
    }
#define FLOAT1(name, value) FLOAT(name, 0, 0, value)
#define FLOAT2(name, value) FLOAT(name, 1, 1, value)
#define FLOAT3(name, value) FLOAT(name, 1, 2, value)

FLOAT2(fadd, a + b)
FLOAT2(fsub, a - b)
FLOAT2(fmul, a *b)
FLOAT2(fdiv, a / b)
FLOAT2(maxnum, fmaxf(a, b))
FLOAT2(minnum, fminf(a, b))
FLOAT2(maximum, isnan(a) || isnan(b) ? NAN : fmaxf(a, b))
FLOAT2(minimum, isnan(a) || isnan(b) ? NAN : fminf(a, b))
FLOAT3(fma, fmaf(a, b, e))
FLOAT2(copysign, copysignf(a, b))
FLOAT1(truncate, truncf(a))
FLOAT1(sqrt, sqrtf(a))
FLOAT1(ex2, flushed(exp2f(flushed(a))))
FLOAT1(rcp, flushed(1 / flushed(a)))
FLOAT1(rsqrt, (float)(1 / sqrt((double)flushed(a))))

/* On bits, as these leave those of a NaN alone. */
void run_fneg(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = t->reg[c->arg[0] + i] ^ (1ull << (c->bits - 1));
}

void run_fabs(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = t->reg[c->arg[0] + i] & (c->mask >> 1);
}

/* A predicate has a bit for each outcome that makes it true. */
void run_fcmp(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++) {
        float a = number_get(c->kind, t->reg[c->arg[0] + i]);
        float b = number_get(c->kind, t->reg[c->arg[1] + i]);
        int outcome = isnan(a) || isnan(b) ? 8 : a < b ? 4 : a > b ? 2 : 1;
        t->reg[c->dst + i] = (c->predicate & outcome) != 0;
    }
}

static NumberKind kind_of_bits(const Code *c) {
    return (NumberKind)c->number;
}

/* number: the kind of the result. */
void run_fconvert(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] =
            number_put(kind_of_bits(c), number_get(c->kind, t->reg[c->arg[0] + i]));
}

void run_sitofp(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] =
            number_put(kind_of_bits(c), (float)sign_extended(t->reg[c->arg[0] + i], c->from_bits));
}

void run_uitofp(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++)
        t->reg[c->dst + i] = number_put(kind_of_bits(c), (float)t->reg[c->arg[0] + i]);
}

void run_fptosi(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++) {
        float a = number_get(c->kind, t->reg[c->arg[0] + i]);
        t->reg[c->dst + i] = fabsf(a) < 0x1p63f ? (uint64_t)(int64_t)a & c->mask : c->mask;
    }
}

void run_fptoui(Thread *t, const Code *c) {
    for (int i = 0; i < c->lanes; i++) {
        float a = number_get(c->kind, t->reg[c->arg[0] + i]);
        t->reg[c->dst + i] = a >= 0 && a < 0x1p63f ? (uint64_t)a & c->mask : c->mask;
    }
}

/* Two f32, the upper one first, to a pair; number: the kind of its elements. */
void run_pack(Thread *t, const Code *c) {
    uint64_t upper = t->reg[c->arg[0]], lower = t->reg[c->arg[1]];
    t->reg[c->dst] = number_put(kind_of_bits(c), number_get(NUMBER_f32, lower));
    t->reg[c->dst + 1] = number_put(kind_of_bits(c), number_get(NUMBER_f32, upper));
}

void run_tf32(Thread *t, const Code *c) {
    t->reg[c->dst] = tf32_of_float(number_get(NUMBER_f32, t->reg[c->arg[0]]));
}

/* place and control ---------------------------------------------------------------------------- */

void run_tid(Thread *t, const Code *c) {
    t->reg[c->dst] = (uint64_t)t->id;
}

void run_ctaid(Thread *t, const Code *c) {
    t->reg[c->dst] = (uint64_t)t->s->block;
}

void run_nctaid(Thread *t, const Code *c) {
    t->reg[c->dst] = (uint64_t)t->s->blocks;
}

static void take(Thread *t, const Edge *e) {
    uint64_t *phi = t->s->phi;
    for (int i = 0; i < e->count; i++)
        phi[i] = t->reg[e->src[i]];
    for (int i = 0; i < e->count; i++)
        t->reg[e->dst[i]] = phi[i];
    t->pc = e->target;
}

void run_br(Thread *t, const Code *c) {
    take(t, &c->edge[0]);
}

void run_condbr(Thread *t, const Code *c) {
    take(t, &c->edge[t->reg[c->arg[0]] ? 0 : 1]);
}

void run_ret(Thread *t, const Code *c) {
    t->pc = c;
    t->done = true;
}
