/* Gradients around a backward pass: what they are called, and what is left to do when the kernel is
 * done.
 *
 * A kernel gives the gradient of every head of every sequence, or of groups of heads (codegen.h). Where
 * heads share an input those are summed, and for a param over the sequences as well:
 *
 *     dk[b,t,i] = sum of part[b,t,h] over the heads h that use head i
 *     dA[i]     = sum of part[n,h] over all sequences n and those heads
 *
 * Sums run in the order of n and h, in double, each element by one thread: the number of threads
 * changes nothing.
 */
#include "runtime/runtime.h"

#include <string.h>

/* names ---------------------------------------------------------------------------------------- */

static bool name_taken(const Kernel *k, const char *const *name, int n, const char *text) {
    static const char *const reserved[] = {"S0", "S", "dS", "dS0", "cu_seqlens"};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
        if (!strcmp(reserved[i], text))
            return true;
    for (int i = 0; i < n; i++)
        if (!strcmp(name[i], text))
            return true;
    return kernel_find_port(k, text, false) >= 0 || kernel_find_port(k, text, true) >= 0;
}

void gradient_names(const Kernel *k, const char **name) {
    int nout = k->out.count, n = nout + k->in.count;
    for (int i = 0; i < n; i++) {
        Buf b;
        buf_init(&b, k->arena);
        buf_printf(&b, "d%s", i < nout ? k->out.at[i].name : k->in.at[i - nout].name);
        while (name_taken(k, name, i, b.text)) {
            const char *shorter = arena_strndup(k->arena, b.text, b.len);
            b.len = 0;
            buf_printf(&b, "d%s", shorter);
        }
        name[i] = b.text;
    }
}

/* groups --------------------------------------------------------------------------------------- */

/* Blocks of the grad kernel that the GPU holds; 0 where there is no such kernel. */
static int64_t blocks_at_once(const Record *r, const BoundLaunch *b) {
    for (int i = 0; i < r->module.entry.count; i++)
        if (r->module.entry.at[i].kind == ENTRY_grad)
            return (int64_t)b->processors * r->module.entry.at[i].per_sm;
    return 0;
}

/* Whether groups of n heads divide those that share an input, whichever. */
static bool divides_all(const Record *r, const BoundLaunch *b, int64_t n) {
    for (int i = 0; i < r->inputs; i++) {
        int64_t heads = r->shell->in.at[i].is_param ? b->H : b->tensor[i]->shape[2];
        if (heads != b->H && b->H / heads % n)
            return false;
    }
    return true;
}

/* The shape of the launch decides alone, and of its gradients no more than whether any is shared: so no
 * bit of them depends on workspaces, or on which others are wanted. */
int64_t gradient_group(const Record *r, const BoundLaunch *b) {
    const Kernel *k = r->shell;
    int64_t blocks = blocks_at_once(r, b), n = blocks ? b->H : 1, tasks;
    bool wanted = false, endless = __builtin_mul_overflow(b->slots, b->H, &tasks);
    for (int i = 0; i < r->inputs; i++) {
        int64_t heads = k->in.at[i].is_param ? b->H : b->tensor[i]->shape[2];
        int64_t most = elem_size(k->in.at[i].elem) < 4 ? GROUP_16_BIT : b->H / heads;
        if (heads != b->H && n > most)
            n = most;
    }
    for (int i = 0; i < k->out.count; i++) {
        const gdr_tensor *t = b->tensor[k->in.count + i];
        wanted |= t && !k->out.at[i].is_param && t->shape[2] != b->H;
    }
    while (wanted && n > 1 &&
           (!divides_all(r, b, n) || (!endless && tasks / n < TASKS_A_BLOCK * blocks)))
        n--;
    return wanted ? n : 1;
}

int64_t gradient_heads(const Record *r, const BoundLaunch *b, int out) {
    const gdr_tensor *t = b->tensor[r->shell->in.count + out];
    bool shared = t && !r->shell->out.at[out].is_param && t->shape[2] != b->H;
    return shared ? b->H / b->group : b->H;
}

/* sums ----------------------------------------------------------------------------------------- */

bool gradient_is_partial(const Record *r, const BoundLaunch *b, int out) {
    const Kernel *k = r->shell;
    const gdr_tensor *t = b->tensor[k->in.count + out];
    bool param = k->out.at[out].is_param;
    /* GPU: params have a part for each chunk. */
    bool one = !param || (b->N == 1 && !record_on_gpu(r));
    return t && (t->shape[param ? 0 : 2] != gradient_heads(r, b, out) || !one);
}

/* One tensor's sums, as the pool hands them to its threads: task = token, or head of a param. */
enum {
    SUM_FROM,
    SUM_TO,
    SUM_TYPE,
    SUM_ELEMENTS,
    SUM_HEADS,
    SUM_GROUP,
    SUM_N,
    SUM_FIRST,
    SUM_FIELDS
};

static void sum_tokens(const int64_t *f, int64_t first, int64_t last, void *scratch) {
    const void *from = (const void *)(uintptr_t)f[SUM_FROM];
    void *to = (void *)(uintptr_t)f[SUM_TO];
    int64_t elements = f[SUM_ELEMENTS], group = f[SUM_GROUP];
    (void)scratch;
    for (int64_t row = (f[SUM_FIRST] + first) * f[SUM_HEADS];
         row < (f[SUM_FIRST] + last) * f[SUM_HEADS]; row++)
        for (int64_t e = 0; e < elements; e++) {
            double sum = 0;
            for (int64_t h = row * group; h < (row + 1) * group; h++)
                sum += scalar_get((gdr_dtype)f[SUM_TYPE], from, h * elements + e);
            scalar_put((gdr_dtype)f[SUM_TYPE], to, row * elements + e, sum);
        }
}

static void sum_params(const int64_t *f, int64_t first, int64_t last, void *scratch) {
    const float *from = (const float *)(uintptr_t)f[SUM_FROM];
    float *to = (float *)(uintptr_t)f[SUM_TO];
    int64_t elements = f[SUM_ELEMENTS], group = f[SUM_GROUP], H = f[SUM_HEADS] * group;
    (void)scratch;
    for (int64_t head = first; head < last; head++)
        for (int64_t e = 0; e < elements; e++) {
            double sum = 0;
            for (int64_t n = 0; n < f[SUM_N]; n++)
                for (int64_t h = head * group; h < (head + 1) * group; h++)
                    sum += from[(n * H + h) * elements + e];
            to[head * elements + e] = (float)sum;
        }
}

bool gradient_sum(Pool *pool, const Record *r, const BoundLaunch *b, const void *workspace) {
    const Kernel *k = r->shell;
    for (int i = 0; i < k->out.count; i++) {
        if (!gradient_is_partial(r, b, i))
            continue;
        const Port *port = &k->out.at[i];
        const gdr_tensor *t = b->tensor[k->in.count + i];
        int64_t heads = t->shape[port->is_param ? 0 : 2];
        const int64_t f[SUM_FIELDS] = {
            [SUM_FROM] = (int64_t)(uintptr_t)((const char *)workspace + b->partial[i]),
            [SUM_TO] = (int64_t)(uintptr_t)t->data,
            [SUM_TYPE] = t->dtype,
            [SUM_ELEMENTS] = shape_elements(k, port->shape),
            [SUM_HEADS] = heads,
            [SUM_GROUP] = heads ? b->H / heads : 0,
            [SUM_N] = b->N,
            [SUM_FIRST] = b->first_row,
        };
        if (!pool_run(pool, port->is_param ? sum_params : sum_tokens, f,
                      port->is_param ? heads : b->rows, 0))
            return false;
    }
    return true;
}
