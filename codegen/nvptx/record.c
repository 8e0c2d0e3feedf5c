/* What is where in a record with a trail, as a number: a forward pass that saves all and a backward pass
 * that uses what was saved are compiled apart, and with other lists of outs and gradients.
 *
 * It covers the sizes, every place, and which value each row, key and decay is: the expression behind it,
 * by operations, ports and constants, since two outs of one form would else be taken for each other.
 */
#include "codegen/nvptx/factor.h"

static const uint64_t start = 0xcbf29ce484222325;

/* FNV-1a, byte by byte. */
static void mix(uint64_t *h, uint64_t x) {
    for (int i = 0; i < 64; i += 8)
        *h = (*h ^ (x >> i & 0xff)) * 0x100000001b3;
}

/* Values up to v come before it, so its operands' numbers are there. */
static uint64_t *expressions(const Kernel *k) {
    uint64_t *number = NEW_ARRAY(k->arena, uint64_t, k->inst.count + 1);
    for (int v = 0; v < k->inst.count; v++) {
        const Inst *i = inst_at(k, v);
        uint64_t h = start, bits;
        memcpy(&bits, &i->num, sizeof bits);
        mix(&h, i->op);
        mix(&h, bits);
        mix(&h, (uint64_t)i->index);
        mix(&h, (uint64_t)i->row);
        mix(&h, (uint64_t)i->axis);
        for (int j = 0; j < i->nargs; j++)
            mix(&h, i->arg[j] < 0 ? 0 : number[i->arg[j]]);
        number[v] = h;
    }
    return number;
}

/* Sums over K that v is made of at its own token. */
static void mark_sums(const Kernel *k, const System *s, int v, bool *sum) {
    bool *needed = NEW_ARRAY(k->arena, bool, k->inst.count);
    scan_mark(k, s->scan, SCAN_ALL, v, needed);
    for (int u = 0; u < k->inst.count; u++)
        sum[u] = sum[u] || (needed[u] && inst_at(k, u)->op == OP_sum && inst_at(k, u)->axis == AXIS_K &&
                            !scan_stored(s->scan, u));
}

/* They stand in the order of their numbers, which is the same in every kernel that has these expressions. */
static void add_sum(System *s, const uint64_t *number, int v) {
    int at = s->sums++;
    for (; at > 0 && number[s->sum[at - 1]] > number[v]; at--)
        s->sum[at] = s->sum[at - 1];
    s->sum[at] = v;
}

bool nv_record_sums(const Kernel *k, System *s, const char **why) {
    const uint64_t *number = expressions(k);
    bool *sum = NEW_ARRAY(k->arena, bool, k->inst.count);
    for (int f = 0; f < s->families; f++)
        mark_sums(k, s, s->family[f].x, sum);
    mark_sums(k, s, s->p, sum);
    if (s->a >= 0)
        mark_sums(k, s, s->a, sum);
    for (int v = 0; v < k->inst.count; v++) {
        if (sum[v] && s->sums == MAX_SUMS) {
            *why = "rows, keys and decays are made of more sums than the GPU kernels hold";
            return false;
        }
        if (sum[v])
            add_sum(s, number, v);
    }
    s->ws_sums = s->ws_bytes;
    if (s->trail)
        s->ws_bytes += ((int64_t)s->sums * s->rows * 4 + 1023) / 1024 * 1024;
    return true;
}

uint64_t nv_record_number(const Kernel *k, const System *s) {
    const uint64_t *number = expressions(k);
    const int64_t size[] = {s->slots, s->chunk, s->rows, s->K, s->V, s->kp, s->vp, s->erase, s->split,
                            s->p_scaled, s->has_scale, s->a_key, s->families};
    const int64_t place[] = {s->ws_p, s->ws_d, s->ws_scale, s->ws_keys, s->ws_copied, s->ws_reversed,
                             s->ws_a, s->ws_s, s->ws_ds, s->ws_x, s->ws_dx, s->ws_unit_s,
                             s->ws_unit_ds, s->ws_unit_x, s->ws_unit_dx, s->ws_columns,
                             s->ws_a_rows, s->ws_sums, s->ws_bytes};
    uint64_t h = start;
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        mix(&h, (uint64_t)size[i]);
    for (size_t i = 0; i < sizeof place / sizeof *place; i++)
        mix(&h, (uint64_t)place[i]);
    for (int f = 0; f < s->families; f++) {
        const Family *fam = &s->family[f];
        mix(&h, number[fam->x]);
        mix(&h, (uint64_t)fam->position);
        mix(&h, fam->inclusive | fam->unbounded << 1 | fam->corrected << 2 | fam->scaled << 3);
        mix(&h, (uint64_t)fam->ws_w);
        mix(&h, (uint64_t)fam->ws_m);
        mix(&h, (uint64_t)fam->ws_rows);
    }
    for (int i = 0; i < s->sums; i++)
        mix(&h, number[s->sum[i]]);
    mix(&h, number[s->p]);
    mix(&h, s->a < 0 ? 0 : number[s->a]);
    return h ? h : 1;
}
