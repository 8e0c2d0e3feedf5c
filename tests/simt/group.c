/* What Hopper adds: products of four warps that read one operand from shared memory, bulk copies
 * into shared memory, and the barriers that open when a copy has arrived.
 *
 * A product is computed when it is issued. What it reads must still be the same when it is waited
 * for, and must have come by bulk copies: what threads write it would see after a fence only, which
 * no kernel has. A bulk copy arrives when the first thread waits for it, not before.
 */
#include "tests/simt/code.h"

#include <stdio.h>
#include <stdlib.h>

/* products ------------------------------------------------------------------------------------- */

/* Of a product's Code: kind (bf16, f16), predicate (whether it adds to what there is), number (the
 * columns), table: the steps, whether B is contracted along its rows, then the steps' offsets. */
enum { TABLE_STEPS, TABLE_ROWS, TABLE_OFFSETS };

/* Element (n, k) of the 16-deep operand that a descriptor names: rows of 128, 64 or 32 bytes in
 * eights, a stride from one eight to the next, 16-byte units exchanged by address bits 7 and up. */
static uint64_t element_address(uint64_t descriptor, bool along_rows, int n, int k) {
    uint64_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    uint64_t stride = (descriptor >> 32 & 0x3fff) << 4, at;
    int log = 4 - (int)(descriptor >> 62), row = 16 << log, wide = row / 2;
    if (along_rows)
        at = start + (uint64_t)(n % wide * 2 + k % 8 * row) + (uint64_t)(n / wide) * leading +
             (uint64_t)(k / 8) * stride;
    else
        at = start + (uint64_t)(n % 8 * row + k * 2) + (uint64_t)(n / 8) * stride;
    return at ^ ((at >> 7 & ((1u << log) - 1)) << 4);
}

static uint16_t fetch(Warp *w, const Code *c, uint64_t descriptor, int step, int n, int k) {
    uint64_t at = element_address(descriptor + (uint64_t)c->table[TABLE_OFFSETS + step],
                                  c->table[TABLE_ROWS], n, k);
    uint16_t x;
    memcpy(&x, memory_shared_product(w->thread[0], c, at), 2);
    return x;
}

/* A number that is another one as soon as anything that the product reads is. */
static uint64_t digest(Warp *w, const Code *c, uint64_t descriptor) {
    uint64_t sum = 0;
    for (int s = 0; s < c->table[TABLE_STEPS]; s++)
        for (int n = 0; n < c->number; n++)
            for (int k = 0; k < 16; k++)
                sum = (sum ^ fetch(w, c, descriptor, s, n, k)) * 0x100000001b3u;
    return sum;
}

static const uint64_t *operand(const Warp *w, int lane, const Code *c, int i) {
    return w->thread[lane]->reg + c->arg[i];
}

/* One step of one warp's 16 rows. */
static void step_rows(Warp *w, const Code *c, int step, float b[16][256], float acc[16][256]) {
    float a[16][16];
    for (int l = 0; l < WARP; l++)
        for (int j = 0; j < 8; j++) {
            uint32_t pair = (uint32_t)*operand(w, l, c, 4 * step + j / 2) >> j % 2 * 16;
            a[l / 4 + j / 2 % 2 * 8][l % 4 * 2 + j / 4 * 8 + j % 2] =
                number_get(c->kind, pair & 0xffff);
        }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < c->number; column++)
                acc[row][column] += a[row][k] * b[k][column];
}

/* Registers of lane l for columns 8i .. 8i+7: rows l/4 and l/4 + 8, columns 2(l%4) and one more. */
static float *element_of(float acc[16][256], int lane, int i) {
    return &acc[lane / 4 + i % 4 / 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
}

void group_product(Warp *w, const Code *c) {
    static const float zero = 0;
    int steps = (int)c->table[TABLE_STEPS], count = (int)c->number / 2;
    float b[16][256], acc[4][16][256];
    uint64_t descriptor = *operand(w, 0, c, 4 * steps);
    if (c->early)
        simt_fail(w->thread[0], c, "the result is used without a wait");
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < WARP; l++)
            for (int j = 0; j < count; j++)
                *element_of(acc[i], l, j) =
                    c->predicate ? float_of_bits((uint32_t)*operand(&w[i], l, c, 4 * steps + 1 + j))
                                 : zero;
    for (int s = 0; s < steps; s++) {
        for (int n = 0; n < c->number; n++)
            for (int k = 0; k < 16; k++)
                b[k][n] = number_get(c->kind, fetch(w, c, descriptor, s, n, k));
        for (int i = 0; i < 4; i++)
            step_rows(&w[i], c, s, b, acc[i]);
    }
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < WARP; l++)
            for (int j = 0; j < count; j++)
                w[i].thread[l]->reg[c->dst + j] = bits_of_float(*element_of(acc[i], l, j));
    Product p = {c, descriptor, digest(w, c, descriptor)};
    VEC_PUSH(w->s->arena, &w->product, p);
}

/* number: products that may go on. The results are the operands. */
void group_wait(Warp *w, const Code *c) {
    int over = w->product.count - (int)c->number;
    for (int i = 0; i < over; i++) {
        Product *p = &w->product.at[i];
        if (digest(w, p->code, p->descriptor) != p->digest)
            simt_fail(w->thread[0], p->code, "the operand in shared memory was overwritten");
    }
    for (int i = over; over > 0 && i < w->product.count; i++)
        w->product.at[i - over] = w->product.at[i];
    w->product.count -= over > 0 ? over : 0;
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < WARP; l++)
            run_tied(w[i].thread[l], c);
}

/* Whether something else than a wait or a further product has a product's result; through
 * extractions and phis, of which `depth` may follow one another. */
static bool used_early(LLVMValueRef v, int depth) {
    for (LLVMUseRef u = LLVMGetFirstUse(v); u && depth; u = LLVMGetNextUse(u)) {
        LLVMValueRef user = LLVMGetUser(u);
        LLVMOpcode opcode = LLVMGetInstructionOpcode(user);
        bool passes = opcode == LLVMExtractValue || opcode == LLVMPHI;
        size_t len;
        LLVMValueRef f = opcode == LLVMCall ? LLVMGetCalledValue(user) : NULL;
        const char *text = f && LLVMIsAInlineAsm(f) ? LLVMGetInlineAsmAsmString(f, &len) : "";
        if (passes ? used_early(user, depth - 1) : !strstr(text, "wgmma."))
            return true;
    }
    return false;
}

/* The statement is nv_wgmma's: what is not said by its operands is read from its text. */
bool decode_product(Arena *arena, const char *text, Code *c) {
    const char *shape = strstr(text, ".m64n");
    int steps = (c->nargs - 1 - c->lanes) / 4;
    if (!shape || steps < 1 || c->nargs != 4 * steps + 1 + c->lanes || c->lanes > 128)
        return false;
    c->number = strtol(shape + 5, NULL, 10);
    c->kind = strstr(shape, "k16.f32.bf16.bf16 ") ? NUMBER_bf16
              : strstr(shape, "k16.f32.f16.f16 ") ? NUMBER_f16
                                                  : NUMBER_int;
    int64_t *table = NEW_ARRAY(arena, int64_t, TABLE_OFFSETS + steps);
    table[TABLE_STEPS] = steps;
    for (int s = 0; s < steps; s++) {
        int offset, add, rows;
        const char *at = strstr(text, "add.s64 d, $");
        const char *flags = at ? strstr(at, ", d, ") : NULL;
        if (!flags || sscanf(at, "add.s64 d, $%*d, %d;", &offset) != 1 ||
            sscanf(flags, ", d, %d, 1, 1, %d;", &add, &rows) != 2)
            return false;
        table[TABLE_OFFSETS + s] = offset;
        table[TABLE_ROWS] = rows;
        if (s == 0)
            c->predicate = add;
        text = flags;
    }
    c->table = table;
    c->early = used_early(c->from, 4);
    return c->kind != NUMBER_int && c->number == 2 * c->lanes;
}

/* copies --------------------------------------------------------------------------------------- */

/* Whoever uses a barrier must know that it was initialised. */
static Arrival *find_arrival(Thread *t, const Code *c, uint64_t at) {
    memory_shared(t, c, at, 8, 8, NULL);
    for (int i = 0; i < t->s->arrivals; i++)
        if (t->s->arrival[i].at == at)
            return &t->s->arrival[i];
    simt_fail(t, c, "no barrier at shared %llu", (unsigned long long)(at - SHARED_BASE));
}

void run_arrival_init(Thread *t, const Code *c) {
    Simt *s = t->s;
    uint64_t at = t->reg[c->arg[0]];
    memory_shared(t, c, at, 8, 8, memory_unknown);
    if (s->arrivals == ARRIVALS_MAX)
        simt_fail(t, c, "more than %d barriers", ARRIVALS_MAX);
    s->arrival[s->arrivals++] = (Arrival){.at = at};
}

void run_copy_bulk(Thread *t, const Code *c) {
    if (!t->reg[c->arg[4]])
        return;
    int bytes = (int)t->reg[c->arg[2]];
    Arrival *a = find_arrival(t, c, t->reg[c->arg[3]]);
    if (a->announced)
        simt_fail(t, c, "a copy before the last one was waited for");
    a->announced = true;
    a->copy = (Copy){.src = (const void *)(uintptr_t)t->reg[c->arg[1]],
                     .dst = t->reg[c->arg[0]],
                     .bytes = bytes,
                     .size = bytes};
    memory_copy_begin(t, c, &a->copy);
}

void run_arrival_wait(Thread *t, const Code *c) {
    Arrival *a = find_arrival(t, c, t->reg[c->arg[0]]);
    if ((a->phase & 1) != (int)t->reg[c->arg[1]])
        return;
    if (!a->announced) {
        t->blocked = true;
        t->pc = c;
        return;
    }
    memory_copy_end(t, &a->copy, false);
    a->announced = false;
    a->phase++;
}
