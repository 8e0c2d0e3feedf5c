/* Which cases gdrc verify runs: the lengths, sizes, gates and keys on which such kernels fail.
 *
 * The short list touches every value of every kind once or twice and takes seconds; the full one
 * crosses them. A case's number is its place in the list, so it can be run again alone.
 */
#include "driver/driver.h"

#include <stdio.h>

typedef struct List {
    Driver *d;
    VEC(Case) at;
} List;

static void push(List *l, Case c) {
    const Options *o = &l->d->opt;
    if (o->has_dtype)
        c.type = o->dtype;
    c.grad = o->grad;
    if (!c.key_heads)
        c.key_heads = c.H;
    VEC_PUSH(&l->d->arena, &l->at, c);
}

/* The base case that the lists vary: f32, small, dense. */
static Case base(int64_t T) {
    return (Case){.type = GDR_F32, .K = 64, .V = 64, .B = 1, .T = T, .H = 2, .S0 = true};
}

static Case packed(gdr_dtype type, int K, int V) {
    return (Case){.type = type,
                  .K = K,
                  .V = V,
                  .B = 1,
                  .H = 2,
                  .S0 = true,
                  .sequences = 9,
                  .length = {0, 1, 63, 0, 64, 65, 2, 130, 0},
                  .spare = 3};
}

/* Each size once, in turn in each type. */
static void short_sizes(List *l) {
    static const struct {
        int K, V;
    } size[] = {
        {32, 32}, {96, 96}, {100, 100}, {64, 128}, {128, 64}, {256, 256},
    };
    static const gdr_dtype type[] = {GDR_F32, GDR_BF16, GDR_F16};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        push(l, (Case){.type = type[i % 3],
                       .K = size[i].K,
                       .V = size[i].V,
                       .B = 1,
                       .T = 140,
                       .H = 2,
                       .S0 = i % 2 == 0});
    push(l, (Case){.type = GDR_BF16, .K = 128, .V = 128, .B = 1, .T = 1030, .H = 2});
}

static void short_list(List *l) {
    static const int64_t length[] = {1, 2, 15, 16, 17, 63, 64, 65, 127};
    static const Gate gate[] = {GATE_zero, GATE_tiny, GATE_strong, GATE_resets, GATE_mixed};
    static const Keys keys[] = {KEYS_close9, KEYS_close99, KEYS_same, KEYS_onehot};
    Case c = base(200);
    c.B = 2;
    push(l, c);
    c.S0 = false;
    c.H = 4;
    c.key_heads = 2;
    push(l, c);
    for (size_t i = 0; i < sizeof length / sizeof *length; i++)
        push(l, base(length[i]));
    for (size_t i = 0; i < sizeof gate / sizeof *gate; i++) {
        c = base(150);
        c.gate = gate[i];
        c.unit = i % 2 ? UNIT_high : UNIT_uniform;
        push(l, c);
    }
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        c = base(150);
        c.keys = keys[i];
        c.unit = i % 2 ? UNIT_uniform : UNIT_high;
        push(l, c);
    }
    c = base(150);
    c.unit = UNIT_low;
    push(l, c);
    c = base(48);
    c.keys = KEYS_growth;
    push(l, c);
    push(l, packed(GDR_F32, 64, 64));
    push(l, packed(GDR_BF16, 128, 128));
    push(l, (Case){.type = GDR_BF16,
                   .K = 128,
                   .V = 128,
                   .B = 1,
                   .T = 300,
                   .H = 4,
                   .key_heads = 2,
                   .S0 = true});
    push(l, (Case){.type = GDR_BF16,
                   .K = 128,
                   .V = 128,
                   .B = 1,
                   .T = 300,
                   .H = 2,
                   .gate = GATE_resets,
                   .keys = KEYS_close9});
    short_sizes(l);
    push(l, (Case){.type = GDR_F16, .K = 60, .V = 32, .B = 1, .T = 130, .H = 2, .S0 = true});
    push(l,
         (Case){.type = GDR_F16, .K = 32, .V = 100, .B = 1, .T = 130, .H = 2, .gate = GATE_mixed});
}

static void full_sizes(List *l) {
    static const struct {
        int K, V;
    } size[] = {
        {32, 32},   {60, 60},  {96, 96},  {100, 100}, {128, 128},
        {256, 256}, {64, 128}, {128, 64}, {100, 36},  {16, 256},
    };
    static const gdr_dtype type[] = {GDR_F32, GDR_BF16, GDR_F16};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (size_t t = 0; t < 3; t++) {
            push(l, (Case){.type = type[t],
                           .K = size[i].K,
                           .V = size[i].V,
                           .B = 2,
                           .T = 257,
                           .H = 4,
                           .key_heads = 2,
                           .S0 = true});
            push(l, packed(type[t], size[i].K, size[i].V));
        }
}

static void full_patterns(List *l) {
    for (int type = 0; type < 2; type++)
        for (int gate = GATE_uniform; gate <= GATE_mixed; gate++)
            for (int keys = KEYS_random; keys <= KEYS_growth; keys++)
                for (int unit = UNIT_uniform; unit <= UNIT_high; unit++) {
                    bool grows = keys == KEYS_growth;
                    if (grows && (gate || unit))
                        continue; /* the growth pair brings its own gates */
                    push(l, (Case){.type = type ? GDR_BF16 : GDR_F32,
                                   .K = type ? 128 : 64,
                                   .V = type ? 128 : 64,
                                   .B = 1,
                                   .T = grows ? 64 : 190,
                                   .H = 2,
                                   .gate = (Gate)gate,
                                   .keys = (Keys)keys,
                                   .unit = (Unit)unit,
                                   .S0 = unit == UNIT_uniform});
                }
}

static void full_lengths(List *l) {
    static const int64_t length[] = {1, 2, 15, 16, 17, 63, 64, 65, 127, 4096, 8192};
    for (size_t i = 0; i < sizeof length / sizeof *length; i++)
        for (int gate = GATE_uniform; gate <= GATE_mixed; gate += GATE_resets)
            push(l, (Case){.type = GDR_BF16,
                           .K = 128,
                           .V = 128,
                           .B = 1,
                           .T = length[i],
                           .H = 2,
                           .gate = (Gate)gate,
                           .S0 = true});
}

/* Gradients: the reference takes ten times as long, so smaller cases that vary more at once. */
static void short_grad(List *l) {
    static const Gate gate[] = {GATE_zero, GATE_tiny, GATE_strong, GATE_resets, GATE_mixed};
    static const Keys keys[] = {KEYS_close9, KEYS_close99, KEYS_same, KEYS_onehot, KEYS_growth};
    static const int64_t length[] = {1, 2, 16, 17, 63, 64, 65};
    const Case small = {.type = GDR_F32, .K = 32, .V = 48, .B = 1, .T = 70, .H = 2, .S0 = true};
    Case c = small;
    c.B = 2;
    c.T = 130;
    push(l, c);
    c.S0 = false;
    c.B = 1;
    c.H = 4;
    c.key_heads = 2;
    for (Upstream u = UPSTREAM_all; u <= UPSTREAM_state; u++) {
        c.upstream = u;
        push(l, c);
    }
    for (size_t i = 0; i < sizeof length / sizeof *length; i++) {
        c = small;
        c.T = length[i];
        c.S0 = i % 2;
        push(l, c);
    }
    for (size_t i = 0; i < sizeof gate / sizeof *gate; i++) {
        c = small;
        c.gate = gate[i];
        c.unit = i % 2 ? UNIT_high : UNIT_uniform;
        push(l, c);
        c = small;
        c.keys = keys[i];
        c.unit = i == 4 ? UNIT_uniform : i % 2 ? UNIT_low : UNIT_high;
        c.T = keys[i] == KEYS_growth ? 48 : 70;
        push(l, c);
    }
    push(l, packed(GDR_F32, 32, 48));
    c = packed(GDR_BF16, 64, 64);
    c.H = 4;
    c.key_heads = 2;
    push(l, c);
    c = (Case){.type = GDR_BF16, .K = 64, .V = 64, .B = 1, .T = 100, .H = 2};
    push(l, c);
    c.gate = GATE_resets;
    push(l, c);
    push(l, (Case){.type = GDR_F16, .K = 60, .V = 100, .B = 1, .T = 90, .H = 1, .S0 = true});
}

static void full_grad(List *l) {
    static const struct {
        int K, V;
    } size[] = {{64, 64}, {96, 96}, {100, 36}, {128, 128}, {64, 128}, {128, 64}, {16, 256}};
    static const gdr_dtype type[] = {GDR_F32, GDR_BF16, GDR_F16};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (size_t t = 0; t < 3; t++) {
            int K = size[i].K, V = size[i].V;
            push(l, (Case){.type = type[t],
                           .K = K,
                           .V = V,
                           .B = 2,
                           .T = 200,
                           .H = 4,
                           .key_heads = 2,
                           .S0 = true});
            push(l, packed(type[t], K, V));
        }
    for (int gate = GATE_uniform; gate <= GATE_mixed; gate++)
        for (int keys = KEYS_random; keys < KEYS_growth; keys++)
            for (int unit = UNIT_uniform; unit <= UNIT_high; unit++)
                push(l, (Case){.type = keys % 2 ? GDR_BF16 : GDR_F32,
                               .K = 64,
                               .V = 64,
                               .B = 1,
                               .T = 140,
                               .H = 2,
                               .gate = (Gate)gate,
                               .keys = (Keys)keys,
                               .unit = (Unit)unit,
                               .S0 = unit == UNIT_uniform});
    for (int64_t T = 1; T <= 4096; T *= 4)
        push(l,
             (Case){
                 .type = GDR_BF16, .K = 64, .V = 64, .B = 1, .T = T - (T > 1), .H = 2, .S0 = true});
}

int case_list_grad(Driver *d, bool full, const Case **list) {
    List l = {.d = d};
    short_grad(&l);
    if (full)
        full_grad(&l);
    *list = l.at.at;
    return l.at.count;
}

int case_list(Driver *d, bool full, const Case **list) {
    List l = {.d = d};
    short_list(&l);
    if (full) {
        full_sizes(&l);
        full_patterns(&l);
        full_lengths(&l);
    }
    *list = l.at.at;
    return l.at.count;
}

void case_print(const Case *c, Buf *out) {
    static const char *const gate[] = {"uniform", "zero", "tiny", "strong", "resets", "mixed"};
    static const char *const keys[] = {"random", "close.9", "close.99", "same", "onehot", "growth"};
    static const char *const unit[] = {"uniform", "low", "high"};
    static const char *const from[] = {"all", "outs", "first", "state"};
    char size[32], batch[32], heads[32];
    int64_t T = c->T;
    for (int i = 0; i < c->sequences; i++)
        T += c->length[i];
    snprintf(size, sizeof size, "%dx%d", c->K, c->V);
    if (c->sequences)
        snprintf(batch, sizeof batch, "%d packed", c->sequences);
    else
        snprintf(batch, sizeof batch, "%lldx%lld", (long long)c->B, (long long)T);
    if (c->key_heads != c->H)
        snprintf(heads, sizeof heads, "%lld/%lld", (long long)c->key_heads, (long long)c->H);
    else
        snprintf(heads, sizeof heads, "%lld", (long long)c->H);
    buf_printf(out, "%-4s %-7s %-8s %-4s %-7s %-8s %-7s %-3s", gdr_dtype_name(c->type), size, batch,
               heads, gate[c->gate], keys[c->keys], unit[c->unit], c->S0 ? "yes" : "no");
    if (c->grad)
        buf_printf(out, " %-5s", from[c->upstream]);
}
