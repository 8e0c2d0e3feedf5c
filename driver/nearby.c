/* Gradients of a problem next to the given one: how much the reference itself depends on what a kernel
 * rounds.
 *
 * Keys, values, states and upstream gradients become f16 operands on their way through a kernel, each off by
 * up to 2^-11 of itself. Gates, decays and params stay f32, and are not moved.
 */
#include "driver/driver.h"

/* Uniform in [-1, 1]: tensor `key`, element `index`. */
static double offset(uint64_t key, uint64_t index) {
    uint64_t x = (key + 1) * 0x9e3779b97f4a7c15 + index * 0xd1342543de82ef95;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93;
    return (double)((x ^ x >> 32) >> 11) * 0x1p-52 - 1;
}

static Tensor moved(Arena *a, const Tensor *t, uint64_t key) {
    if (!t->data)
        return *t;
    Tensor m = tensor_convert(a, t, GDR_F64);
    double *x = m.data;
    for (int64_t i = 0; i < tensor_count(&m); i++)
        x[i] += 0x1p-11 * x[i] * offset(key, (uint64_t)i);
    return m;
}

gdr_status nearby_references(Driver *d, const Problem *p, Arena *arena, Outcome near[NEARBY]) {
    const Kernel *k = p->k;
    int inputs = k->in.count, outs = k->out.count;
    gdr_status status = GDR_OK;
    for (int n = 0; n < NEARBY && !status; n++) {
        Problem q = *p;
        uint64_t key = (uint64_t)(n * (inputs + outs + 2));
        q.in = NEW_ARRAY(arena, Tensor, inputs + 1);
        q.dout = NEW_ARRAY(arena, Tensor, outs + 1);
        for (int i = 0; i < inputs; i++, key++)
            q.in[i] = input_is_vector(k, i) ? moved(arena, &p->in[i], key) : p->in[i];
        for (int o = 0; o < outs; o++, key++)
            q.dout[o] = moved(arena, &p->dout[o], key);
        q.S0 = moved(arena, &p->S0, key++);
        q.dS = moved(arena, &p->dS, key);
        near[n] = outcome_new(arena, p, true);
        status = run_reference(d, &q, &near[n]);
    }
    return status;
}
