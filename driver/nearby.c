/* Gradients of a problem next to the given one: how much the reference itself depends on what a kernel
 * rounds.
 *
 *   keys, values, states and upstream gradients
 *              f16 operands sooner or later, off by up to 2^-11. Each is moved once, for all that is made of
 *              it, and terms that cancel whatever the inputs are still do.
 *   S where it is read
 *              an f16 operand there and f32 as it goes on. So `S' fq / (fq' z)` of normalised linear attention,
 *              whose first token is v for any fq, has as dq what rounding leaves of two equal terms.
 *   what products with S give back to rows and keys
 *              from f16 operands, or where all gradients have 16 bits, kept as bf16 for the rest of the
 *              way, off by up to 2^-9 (codegen/nvptx/grad.c)
 *
 * Gates, decays and params stay f32, and are not moved.
 */
#include "driver/driver.h"

#define F16_ROUNDING 0x1p-11
#define BF16_ROUNDING 0x1p-9

static Tensor moved(Arena *a, const Tensor *t, uint64_t key) {
    if (!t->data)
        return *t;
    Tensor m = tensor_convert(a, t, GDR_F64);
    double *x = m.data;
    for (int64_t i = 0; i < tensor_count(&m); i++)
        x[i] += F16_ROUNDING * x[i] * reference_offset(key, (uint64_t)i);
    return m;
}

static bool all_are_narrow(const Kernel *k) {
    for (int i = 0; i < k->in.count; i++)
        if (!k->in.at[i].is_param && elem_size(k->in.at[i].elem) > 2)
            return false;
    return true;
}

gdr_status nearby_references(Driver *d, const Problem *p, Arena *arena, Outcome near[NEARBY]) {
    const Kernel *k = p->k;
    int inputs = k->in.count, outs = k->out.count;
    double back = all_are_narrow(k) ? BF16_ROUNDING : F16_ROUNDING;
    gdr_status status = GDR_OK;
    for (int n = 0; n < NEARBY && !status; n++) {
        Problem q = *p;
        uint64_t key = (uint64_t)(n * (inputs + outs + 3));
        q.in = NEW_ARRAY(arena, Tensor, inputs + 1);
        q.dout = NEW_ARRAY(arena, Tensor, outs + 1);
        for (int i = 0; i < inputs; i++, key++)
            q.in[i] = input_is_vector(k, i) ? moved(arena, &p->in[i], key) : p->in[i];
        for (int o = 0; o < outs; o++, key++)
            q.dout[o] = moved(arena, &p->dout[o], key);
        q.S0 = moved(arena, &p->S0, key++);
        q.dS = moved(arena, &p->dS, key++);
        q.rounded = (Roundings){F16_ROUNDING, back, key};
        near[n] = outcome_new(arena, p, true);
        status = run_reference(d, &q, &near[n]);
    }
    return status;
}
