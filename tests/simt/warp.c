/* What the 32 threads of a warp do together. Fragments of matrices are laid over the lanes as PTX
 * says: with g = lane / 4 and t = lane % 4, a register of an 8 x 8 matrix of 2-byte elements holds
 * row g, columns 2t and 2t+1. */
#include "tests/simt/code.h"

static uint64_t *operand(Warp *w, int lane, const Code *c, int i) {
    return w->thread[lane]->reg + c->arg[i];
}

static uint64_t *result(Warp *w, int lane, const Code *c) {
    return w->thread[lane]->reg + c->dst;
}

static void need_all_lanes(Warp *w, const Code *c) {
    for (int l = 0; l < WARP; l++)
        if ((uint32_t)*operand(w, l, c, 0) != 0xffffffff)
            simt_fail(w->thread[l], c, "a mask that is not of the whole warp");
}

/* synchronising, exchanging -------------------------------------------------------------------- */

void warp_sync(Warp *w, const Code *c) {
    need_all_lanes(w, c);
    w->time++;
}

/* Its threads have arrived; the block does the rest. */
void warp_barrier(Warp *w, const Code *c) {
    (void)c;
    w->time++;
}

/* Bits 8 up of the last operand say which bits of its own number a lane keeps; below, the highest
 * lane. */
static void shuffle(Warp *w, const Code *c, bool from) {
    uint64_t x[WARP];
    need_all_lanes(w, c);
    for (int l = 0; l < WARP; l++)
        x[l] = *operand(w, l, c, 1);
    for (int l = 0; l < WARP; l++) {
        uint64_t lane = *operand(w, l, c, 2), end = *operand(w, l, c, 3), own = (uint64_t)l;
        if (end % 256 != WARP - 1 || (end >> 8 && !from))
            simt_fail(w->thread[l], c, "a shuffle inside a part of the warp");
        uint64_t kept = end >> 8;
        *result(w, l, c) = x[(from ? (own & kept) | (lane & ~kept) : own ^ lane) % WARP];
    }
}

void warp_shuffle_xor(Warp *w, const Code *c) {
    shuffle(w, c, false);
}

void warp_shuffle_from(Warp *w, const Code *c) {
    shuffle(w, c, true);
}

void warp_ballot(Warp *w, const Code *c) {
    uint64_t votes = 0;
    need_all_lanes(w, c);
    for (int l = 0; l < WARP; l++)
        votes |= *operand(w, l, c, 1) << l;
    for (int l = 0; l < WARP; l++)
        *result(w, l, c) = votes;
}

/* 8 x 8 matrices ------------------------------------------------------------------------------- */

/* Four matrices; lane l has the address of row l % 8 of matrix l / 8. */
static void ldmatrix(Warp *w, const Code *c, bool trans) {
    uint16_t m[4][8][8];
    for (int l = 0; l < WARP; l++) {
        Thread *t = w->thread[l];
        memcpy(m[l / 8][l % 8], memory_shared(t, c, *operand(w, l, c, 0), 16, 16, NULL), 16);
    }
    for (int l = 0; l < WARP; l++)
        for (int j = 0; j < 4; j++) {
            int g = l / 4, u = l % 4 * 2;
            uint32_t lo = trans ? m[j][u][g] : m[j][g][u];
            uint32_t hi = trans ? m[j][u + 1][g] : m[j][g][u + 1];
            result(w, l, c)[j] = lo | hi << 16;
        }
}

void warp_ldmatrix(Warp *w, const Code *c) {
    ldmatrix(w, c, false);
}

void warp_ldmatrix_trans(Warp *w, const Code *c) {
    ldmatrix(w, c, true);
}

void warp_movmatrix(Warp *w, const Code *c) {
    uint64_t m[8][8];
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < 2; i++)
            m[l / 4][l % 4 * 2 + i] = *operand(w, l, c, 0) >> 16 * i & 0xffff;
    for (int l = 0; l < WARP; l++)
        *result(w, l, c) = m[l % 4 * 2][l / 4] | m[l % 4 * 2 + 1][l / 4] << 16;
}

/* products ------------------------------------------------------------------------------------- */

/* Element i of a pair, which is one register of 32 bits (bf16) or two of 16 (f16). */
static float of_pair(const uint64_t *pair, const Code *c, int i) {
    return c->kind == NUMBER_f16 ? float_of_f16((uint32_t)pair[i])
                                 : float_of_bf16((uint32_t)(pair[0] >> 16 * i & 0xffff));
}

/* acc += a b, the accumulator's pairs of columns in lanes of registers operand `first`.. */
static void multiply(Warp *w, const Code *c, int depth, float a[16][16], float b[16][8],
                     int first) {
    float acc[16][8];
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < 4; i++)
            acc[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] =
                float_of_bits((uint32_t)*operand(w, l, c, first + i));
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < depth; k++)
            for (int column = 0; column < 8; column++)
                acc[row][column] += a[row][k] * b[k][column];
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < 4; i++)
            result(w, l, c)[i] = bits_of_float(acc[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
}

/* 16 x 16 by 16 x 8, f16 or bf16. */
void warp_mma(Warp *w, const Code *c) {
    float a[16][16], b[16][8];
    for (int l = 0; l < WARP; l++) {
        int g = l / 4, u = l % 4 * 2;
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < 4; j++)
                a[g + j % 2 * 8][u + j / 2 * 8 + i] = of_pair(operand(w, l, c, j), c, i);
            for (int j = 0; j < 2; j++)
                b[u + j * 8 + i][g] = of_pair(operand(w, l, c, 4 + j), c, i);
        }
    }
    multiply(w, c, 16, a, b, 6);
}

/* 16 x 8 by 8 x 8, tf32. */
void warp_mma_tf32(Warp *w, const Code *c) {
    float a[16][16], b[16][8];
    for (int l = 0; l < WARP; l++) {
        int g = l / 4, u = l % 4;
        for (int j = 0; j < 4; j++)
            a[g + j % 2 * 8][u + j / 2 * 4] = float_of_tf32(*operand(w, l, c, j));
        for (int j = 0; j < 2; j++)
            b[u + j * 4][g] = float_of_tf32(*operand(w, l, c, 4 + j));
    }
    multiply(w, c, 8, a, b, 6);
}
