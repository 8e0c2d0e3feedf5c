/* Random launches of any compiled spec: see case.h.
 *
 * Values respect the declared ranges. Open ranges get small vectors (norm below one), so that no
 * recurrence grows without bound over the few hundred tokens of a test.
 */
#include "tests/support/case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

double uniform(uint64_t seed, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uint64_t x = mix(seed + 0x9e3779b97f4a7c15u);
    x = mix(x + a);
    x = mix(x ^ (b * 0x9e3779b97f4a7c15u));
    x = mix(x + c);
    x = mix(x ^ (d * 0xd1b54a32d192ed03u));
    return (double)(x >> 11) * 0x1p-53;
}

static float value_in(const gdr_port *p, int64_t width, double u) {
    bool low = isfinite(p->lo), high = isfinite(p->hi);
    if (low && high)
        return (float)(p->lo + (p->hi - p->lo) * u);
    if (high)
        return (float)(p->hi - 5 * u * u);
    if (low)
        return (float)(p->lo + u);
    return (float)((2 * u - 1) / sqrt((double)width));
}

static bool is_input(const Case *c, int p) {
    return c->port[p].kind == GDR_INPUT;
}

int64_t case_row_size(const Case *c, int p) {
    return c->H * c->width[p];
}

int64_t case_state_size(const Case *c) {
    return c->H * c->K * c->V;
}

int64_t case_row(const Case *c, int n) {
    return c->packed ? c->cu[n] : n * c->T;
}

static int64_t rows(const Case *c) {
    return c->packed ? c->T : c->T * c->N;
}

static void fill_port(Case *c, int p, uint64_t seed) {
    const gdr_port *port = &c->port[p];
    int64_t size = case_row_size(c, p);
    if (port->kind == GDR_PARAM) {
        for (int64_t e = 0; e < size; e++)
            c->data[p][e] = value_in(port, 1, uniform(seed, (uint64_t)p, 1u << 20, 0, (uint64_t)e));
        return;
    }
    for (int n = 0; n < c->N; n++) {
        for (int64_t t = 0; t < c->length[n]; t++) {
            float *row = c->data[p] + (case_row(c, n) + t) * size;
            for (int64_t e = 0; e < size; e++)
                row[e] = value_in(
                    port, c->width[p],
                    uniform(seed, (uint64_t)p, (uint64_t)c->label[n], (uint64_t)t, (uint64_t)e));
        }
    }
}

static void fill_states(Case *c, uint64_t seed) {
    int64_t size = case_state_size(c);
    for (int n = 0; n < c->N; n++)
        for (int64_t e = 0; e < size; e++)
            c->S0[n * size + e] =
                (float)(uniform(seed, 1u << 21, (uint64_t)c->label[n], 0, (uint64_t)e) - 0.5);
}

static float *floats(int64_t n) {
    float *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    if (!p)
        abort();
    return p;
}

Case *case_new(gdr_kernel *kernel, int64_t H, int N, const int64_t *length, const int *label,
               bool packed, int64_t spare, uint64_t seed) {
    Case *c = calloc(1, sizeof *c);
    if (!c || N > MAX_SEQUENCES || gdr_kernel_ports(kernel) > MAX_PORTS)
        abort();
    gdr_facts facts;
    gdr_kernel_facts(kernel, &facts);
    c->kernel = kernel;
    c->H = H;
    c->K = facts.K;
    c->V = facts.V;
    c->N = N;
    c->packed = packed;
    for (int n = 0; n < N; n++) {
        c->length[n] = length[n];
        c->label[n] = label[n];
        c->cu[n + 1] = c->cu[n] + length[n];
    }
    c->T = packed ? c->cu[N] + spare : length[0];
    c->nports = gdr_kernel_ports(kernel);
    for (int p = 0; p < c->nports; p++) {
        if (gdr_kernel_port(kernel, p, &c->port[p]) != GDR_OK)
            abort();
        c->width[p] = 1;
        for (int i = 0; i < c->port[p].ndim; i++)
            c->width[p] *= c->port[p].shape[i];
        c->data[p] = floats(case_row_size(c, p) * (c->port[p].kind == GDR_PARAM ? 1 : rows(c)));
        if (c->port[p].kind != GDR_OUTPUT)
            fill_port(c, p, seed);
    }
    c->S0 = floats(N * case_state_size(c));
    c->S = floats(N * case_state_size(c));
    fill_states(c, seed);
    return c;
}

void case_free(Case *c) {
    for (int p = 0; p < c->nports; p++)
        free(c->data[p]);
    free(c->S0);
    free(c->S);
    free(c);
}

gdr_status case_run(Case *c) {
    gdr_arg arg[MAX_PORTS];
    int64_t shape[MAX_PORTS][6];
    for (int p = 0; p < c->nports; p++) {
        const gdr_port *port = &c->port[p];
        int d = 0;
        if (port->kind != GDR_PARAM) {
            shape[p][d++] = c->packed ? 1 : c->N;
            shape[p][d++] = c->T;
        }
        shape[p][d++] = c->H;
        for (int i = 0; i < port->ndim; i++)
            shape[p][d++] = port->shape[i];
        arg[p] = (gdr_arg){port->name, {c->data[p], GDR_CPU, GDR_F32, d, shape[p], NULL}};
    }
    int64_t state_shape[4] = {c->N, c->H, c->K, c->V};
    int64_t cu_shape[1] = {c->N + 1};
    gdr_tensor S0 = {c->S0, GDR_CPU, GDR_F32, 4, state_shape, NULL};
    gdr_tensor S = {c->S, GDR_CPU, GDR_F32, 4, state_shape, NULL};
    gdr_tensor cu = {c->cu, GDR_CPU, GDR_I64, 1, cu_shape, NULL};
    gdr_launch launch = {.size = sizeof launch,
                         .args = arg,
                         .nargs = c->nports,
                         .cu_seqlens = c->packed ? &cu : NULL,
                         .S0 = &S0,
                         .S = &S};
    return gdr_forward(c->kernel, &launch);
}

bool case_same(const Case *a, int n, const Case *b, int m, int64_t tokens) {
    int64_t count = tokens >= 0 ? tokens : a->length[n];
    for (int p = 0; p < a->nports; p++) {
        if (is_input(a, p) || a->port[p].kind == GDR_PARAM)
            continue;
        int64_t size = case_row_size(a, p);
        if (memcmp(a->data[p] + case_row(a, n) * size, b->data[p] + case_row(b, m) * size,
                   (size_t)(count * size) * sizeof(float)) != 0)
            return false;
    }
    int64_t size = case_state_size(a);
    return tokens >= 0 ||
           memcmp(a->S + n * size, b->S + m * size, (size_t)size * sizeof(float)) == 0;
}
