/* The host's machine code against the fp64 meaning of the same recurrence: every spec, both
 * algorithms, element types, head groups, packed and dense batches, chunks and dims that do not
 * divide anything. */
#include "tests/unit/host_run.h"

#include <dirent.h>

static void each_spec(void (*run)(const char *spec)) {
    DIR *d = opendir(GDR_SPECS_DIR);
    assert_non_null(d);
    int count = 0;
    for (struct dirent *e; (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        char spec[256];
        if (n < 5 || n >= sizeof spec || strcmp(e->d_name + n - 4, ".gdr") != 0)
            continue;
        snprintf(spec, sizeof spec, "%.*s", (int)n - 4, e->d_name);
        if (wanted(spec)) {
            run(spec);
            count++;
        }
    }
    closedir(d);
    assert_true(count > 0);
}

static void spec_recurrent(const char *spec) {
    Case c = usual;
    c.spec = spec;
    c.algo = ALGO_recurrent;
    c.T = 40;
    run_case(&c);
}

static bool has_chunk_form(const char *spec) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s.gdr", GDR_SPECS_DIR, spec);
    Spec *s = spec_load(path);
    Kernel *k = spec_lower(&s->arena, &s->names, s->file, NULL, NULL, &s->d);
    assert_non_null(k);
    passes_run(k, "lattice", NULL);
    bool found = k->facts.chunkable;
    spec_close(s);
    return found;
}

static void spec_chunk(const char *spec) {
    if (!has_chunk_form(spec))
        return;
    Case c = usual;
    c.spec = spec;
    c.algo = ALGO_chunk;
    run_case(&c);
}

static void test_specs_recurrent(void **state) {
    (void)state;
    each_spec(spec_recurrent);
}

static void test_specs_chunk(void **state) {
    (void)state;
    each_spec(spec_chunk);
}

/* Dims that no vector divides, K != V. */
static void test_dims(void **state) {
    (void)state;
    static const int dims[][2] = {{1, 1}, {7, 130}, {60, 100}, {100, 17}, {128, 64}, {33, 256}};
    for (int f = 0; f < FAMILIES; f++)
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
            for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++) {
                Case c = usual;
                c.spec = families[f], c.K = dims[d][0], c.V = dims[d][1], c.algo = algo;
                c.T = 70, c.H = 1;
                if (wanted(c.spec))
                    run_case(&c);
            }
}

static void test_chunks(void **state) {
    (void)state;
    static const int rows[] = {1, 2, 15, 16, 17, 32, 64, 96, 128};
    for (int f = 0; f < FAMILIES; f++)
        for (size_t n = 0; n < sizeof rows / sizeof rows[0]; n++) {
            Case c = usual;
            c.spec = families[f], c.algo = ALGO_chunk, c.rows = rows[n], c.T = 129, c.H = 1;
            if (wanted(c.spec))
                run_case(&c);
        }
}

static void test_packed(void **state) {
    (void)state;
    static const int length[] = {0, 1, 64, 0, 63, 65, 2, 130, 0};
    for (int f = 0; f < FAMILIES; f++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++)
            for (int width = 4; width <= 8; width += 4) {
                Case c = usual;
                c.spec = families[f], c.algo = algo, c.length = length, c.N = 9;
                c.cu_width = width, c.start = width == 8, c.final = true, c.K = 20, c.V = 24;
                if (wanted(c.spec))
                    run_case(&c);
            }
}

static void test_types(void **state) {
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++)
            for (Elem e = ELEM_bf16; e <= ELEM_f16; e++) {
                Case c = usual;
                c.spec = families[f], c.algo = algo, c.elem = e, c.K = 36, c.V = 40, c.T = 90;
                c.N = 2, c.start = e == ELEM_f16, c.final = e == ELEM_bf16;
                if (wanted(c.spec))
                    run_case(&c);
            }
}

static void test_gates(void **state) {
    (void)state;
    static const double gate[] = {0, -1e-6, -0.5, -20, -1000};
    for (int f = 0; f < 3; f++)
        for (size_t n = 0; n < 2 * sizeof gate / sizeof gate[0]; n++) {
            Case c = usual;
            c.spec = families[f], c.algo = ALGO_chunk, c.T = 200, c.H = 1;
            c.gate = gate[n / 2], c.resets = n % 2;
            if (wanted(c.spec))
                run_case(&c);
        }
}

/* What no spec of the collection has. */
static const char *const texts[] = {
    /* looks along time, over chunks */
    "variant t {\n dim K = 8, V = 8\n in q[K], k[K], v[V], g <= 0\n state S[K, V]\n"
    " let c = cumsum(g)\n S = exp(g) * S\n S = S + k * v'\n S = S + prev(k) * prev(v)'\n"
    " out o[V] = S' * (q * cos(c))\n out p[K] = prev(q) + cumsum(k)\n out s = c\n }\n",
    /* an output gate, a skip, two outs before and after the update */
    "variant t {\n dim K = 8, V = 8\n in q[K], k[K], v[V], g[K] <= 0, z[V]\n param D, dt[V]\n"
    " state S[K, V]\n let kn = l2norm(k)\n out before[V] = S' * q\n"
    " S = diag(exp(g)) * S\n let r = S' * kn\n S = S + kn * (v - r)'\n"
    " out o[V] = silu(z) .* (S' * q + D * v) + dt\n }\n",
    /* outputs that are normalised, summed, constant or no vector at all; a constant decay */
    "variant t {\n dim K = 8, V = 8, n = 2\n in q[K], k[K], v[V], m[n, K]\n param A, B[K]\n"
    " state S[K, V]\n"
    " S = exp(-softplus(A)) * S + k * v'\n let y = S' * q\n let z = S' * m[1]\n"
    " out o[V] = l2norm(y)\n out energy = sum(y .* y) + dot(q, prev(k))\n out c[K] = B .^ 2\n"
    " out d[V] = y - z + 2 * v\n out e[V] = y .* z - tanh(z)\n }\n",
    /* turns of either axis, of reads, params, values along time, of a vector of another dim */
    "variant t {\n dim K = 8, V = 8, n = 2\n in q[K], k[K], v[V], g <= 0, m[n]\n param B[K]\n"
    " state S[K, V]\n let p = cumsum(k)\n S = exp(g) * S + turn(k) * turn(v)'\n"
    " let y = S' * (q .* cos(p) + turn(q) .* sin(p))\n out o[V] = y + turn(y .* v)\n"
    " out e[K] = turn(B) + turn(prev(q) + turn(k))\n out s = sum(turn(k)) + turn(m)[0]\n }\n",
};

static void test_texts(void **state) {
    (void)state;
    for (size_t n = 0; n < sizeof texts / sizeof texts[0]; n++)
        for (Algo algo = ALGO_chunk; algo <= ALGO_recurrent; algo++)
            for (int rows = 12; rows <= 64; rows += 52) {
                Case c = usual;
                c.text = texts[n], c.algo = algo, c.rows = rows, c.N = 2;
                run_case(&c);
            }
}

/* Decays and reads along V, a state read by K and by V: no chunk form, sweeps of every kind. */
static const char *const recurrent_texts[] = {
    "variant t {\n dim K = 8, V = 8\n in q[V], k[K], v[V], g[V] <= 0, beta in [0, 1]\n"
    " state S[K, V]\n let vn = l2norm(v)\n S = S * diag(exp(g))\n let y = S * vn\n"
    " S = S + beta * (k - y) * vn'\n out o[K] = S * q\n }\n",
    "variant t {\n dim K = 8, V = 8\n in q[K], k[K], v[V], g[V] <= 0\n state S[K, V]\n"
    " S = S * diag(exp(g)) + k * v'\n out o[V] = S' * q\n }\n",
};

static void test_recurrent_only(void **state) {
    (void)state;
    for (size_t n = 0; n < sizeof recurrent_texts / sizeof recurrent_texts[0]; n++)
        for (int V = 12; V <= 130; V += 59) {
            Case c = usual;
            c.text = recurrent_texts[n], c.algo = ALGO_recurrent, c.V = V, c.T = 30;
            run_case(&c);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs_recurrent),
        cmocka_unit_test(test_specs_chunk),
        cmocka_unit_test(test_dims),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_recurrent_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
