/* The tensor file reader against files that lie in every number, and the writer. */
#include "runtime/runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static Arena arena;

static int fresh(void **state) {
    (void)state;
    arena_free(&arena);
    return 0;
}

/* header + `data` bytes as a file in memory; the header's length is what it is unless `claim` >= 0.
 */
static bool parse(const char *header, size_t data, long long claim, TensorFile *f, char why[512]) {
    size_t n = strlen(header), len = 8 + n + data;
    uint64_t length = claim >= 0 ? (uint64_t)claim : n;
    char *bytes = malloc(len); /* exact, so that reads past the end are seen */
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, n);
    memset(bytes + 8 + n, 1, data);
    strcpy(why, "");
    bool ok = tensors_parse(&arena, bytes, len, f, why, 512);
    for (int i = 0; ok && i < f->tensor.count; i++) { /* every byte promised is there */
        volatile char sum = 0;
        for (size_t j = 0; j < f->tensor.at[i].bytes; j++)
            sum = (char)(sum + ((char *)f->tensor.at[i].data)[j]);
        f->tensor.at[i].data = NULL;
    }
    free(bytes);
    return ok;
}

static void good_files_are_read(void **state) {
    (void)state;
    TensorFile f;
    char why[512];
    assert_true(parse("{}", 0, -1, &f, why));
    assert_int_equal(f.tensor.count, 0);
    assert_true(
        parse(" {\"__metadata__\": {\"a\": \"b\", \"c\": \"\"}, \"q\" : {\"dtype\":\"F32\", "
              "\"shape\": [2, 3], \"data_offsets\": [0, 24]},\n \"n\\u00e9\\n\": {\"shape\":[], "
              "\"data_offsets\":[24,32],\"dtype\":\"I64\"}, \"u\": {\"dtype\": \"U8\", \"shape\": "
              "[1], \"data_offsets\": [32, 33]}}   ",
              33, -1, &f, why));
    assert_int_equal(f.tensor.count, 2);
    assert_int_equal(f.other.count, 1);
    assert_string_equal(f.other.at[0], "u (U8)");
    const Tensor *q = tensors_find(&f, "q");
    assert_int_equal(q->ndim, 2);
    assert_int_equal(q->shape[1], 3);
    assert_int_equal(q->dtype, GDR_F32);
    assert_non_null(tensors_find(&f, "n\xc3\xa9\n"));
    assert_null(tensors_find(&f, "v"));
    assert_true(parse("{\"e\":{\"dtype\":\"BF16\",\"shape\":[0,9223372036854775807],"
                      "\"data_offsets\":[0,0]}}",
                      0, -1, &f, why));
}

static void lies_are_refused(void **state) {
    (void)state;
#define T(dtype, shape, lo, hi) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" lo "," hi "]}"
    const struct {
        const char *header;
        size_t data;
        long long claim;
        const char *text;
    } c[] = {
        {"{}", 0, 3, "truncated: the header is longer than the file"},
        {"{}", 0, 1LL << 62, "not a safetensors file"},
        {"", 0, 0, "damaged header: no '{'"},
        {"[]", 0, -1, "no '{'"},
        {"{", 0, -1, "no '\"'"},
        {"{} x", 0, -1, "text after its end"},
        {"{\"a\"}", 0, -1, "no ':'"},
        {"{\"a\":1}", 0, -1, "no '{'"},
        {"{\"a\":{}}", 0, -1, "no '\"'"},
        {"{\"a\":" T("F32", "[1]", "0", "4") ",}", 4, -1, "no '\"'"},
        {"{\"a\":" T("F32", "[1]", "0", "4") "\"b\":" T("F32", "[1]", "4", "8") "}", 8, -1,
         "no '}'"},
        {"{\"a\":" T("F32", "[2]", "0", "4") "}", 8, -1, "shape and data_offsets disagree"},
        {"{\"a\":" T("F32", "[1]", "0", "8") "}", 8, -1, "shape and data_offsets disagree"},
        {"{\"a\":" T("F32", "[1]", "4", "8") "}", 4, -1, "lie outside the file"},
        {"{\"a\":" T("F32", "[1]", "4", "0") "}", 8, -1, "lie outside the file"},
        {"{\"a\":" T("F32", "[1]", "0", "99999999999999999999") "}", 4, -1, "beyond 64 bits"},
        {"{\"a\":" T("F32", "[-1]", "0", "4") "}", 4, -1, "no number"},
        {"{\"a\":" T("F32", "[1.5]", "0", "4") "}", 4, -1, "no ']'"},
        {"{\"a\":" T("F32", "[4611686018427387904,4]", "0", "4") "}", 4, -1, "overflows 64 bits"},
        {"{\"a\":" T("F64", "[2305843009213693952]", "0", "4") "}", 4, -1, "overflows 64 bits"},
        {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", 4, -1, "more than 8 dimensions"},
        {"{\"a\":" T("F32", "[1]", "0", "4") ",\"a\":" T("F32", "[1]", "4", "8") "}", 8, -1,
         "tensor a appears twice"},
        {"{\"a\":" T("F32", "[2]", "0", "8") ",\"b\":" T("F32", "[1]", "4", "8") "}", 8, -1,
         "tensor b overlaps another"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, -1, "data_offsets is missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1]}}", 4, -1, "two shapes"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 4, -1, "two dtypes"},
        {"{\"a\":{\"data_offsets\":[0,4],\"data_offsets\":[0,4]}}", 4, -1, "two data_offsets"},
        {"{\"a\":{\"deep\":{\"er\":[[[[1]]]]}}}", 0, -1, "unknown field deep"},
        {"{\"a\":[[[[[[[[[[[[[[[[", 0, -1, "no '{'"},
        {"{\"__metadata__\":{\"a\":{}}}", 0, -1, "no '\"'"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, -1, "two __metadata__"},
        {"{\"a\\u0000b\":{}}", 0, -1, "a character that names cannot have"},
        {"{\"a\\ud800\":{}}", 0, -1, "a character that names cannot have"},
        {"{\"a\\u12", 0, -1, "escape"},
        {"{\"a\\u12zz\":{}}", 0, -1, "escape"},
        {"{\"a\\x\":{}}", 0, -1, "escape"},
        {"{\"a\\", 0, -1, "escape"},
        {"{\"a\n\":{}}", 0, -1, "control character"},
        {"{\"a", 0, -1, "no '\"'"},
    };
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        TensorFile f;
        char why[512];
        bool ok = parse(c[i].header, c[i].data, c[i].claim, &f, why);
        if (ok || !strstr(why, c[i].text))
            fail_msg("%s: %s where \"%s\" was expected", c[i].header, ok ? "read" : why, c[i].text);
    }
    TensorFile f;
    char why[512], few[7] = {0};
    assert_false(tensors_parse(&arena, few, sizeof few, &f, why, sizeof why));
    assert_string_equal(why, "truncated: no header");
}

/* A prefix of a good file is never read as one. */
static void cut_files_are_refused(void **state) {
    (void)state;
    char good[256], why[512];
    const char *header =
        "{\"a\":" T("BF16", "[3]", "0", "6") ",\"b\":" T("F32", "[1]", "6", "10") "}";
    uint64_t n = strlen(header);
    memcpy(good, &n, 8);
    memcpy(good + 8, header, n);
    memset(good + 8 + n, 0, 10);
    for (size_t len = 0; len < 8 + n + 10; len++) {
        TensorFile f;
        char *cut = malloc(len + 1);
        memcpy(cut, good, len);
        assert_false(tensors_parse(&arena, cut, len, &f, why, sizeof why));
        free(cut);
    }
    TensorFile f;
    assert_true(tensors_parse(&arena, good, 8 + n + 10, &f, why, sizeof why));
    assert_int_equal((uintptr_t)tensors_find(&f, "b")->data % 4, 0); /* unaligned in the file */
}

static void files_go_out_and_come_back(void **state) {
    (void)state;
    char path[64] = "/tmp/gdr-tensors-XXXXXX", why[512] = "";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    float a[6] = {1, 2, 3, 4, 5, 6};
    uint16_t b[1] = {7};
    Tensor t[] = {
        {.name = "quote\"d", .dtype = GDR_F32, .ndim = 2, .shape = {2, 3}, .data = a, .bytes = 24},
        {.name = "b", .dtype = GDR_BF16, .ndim = 1, .shape = {1}, .data = b, .bytes = 2},
        {.name = "none", .dtype = GDR_F16, .ndim = 1, .shape = {0}, .data = b, .bytes = 0},
    };
    assert_true(tensors_write(&arena, path, t, 3, why, sizeof why));
    TensorFile f;
    assert_true(tensors_open(&arena, path, &f, why, sizeof why));
    assert_memory_equal(tensors_find(&f, "quote\"d")->data, a, sizeof a);
    assert_int_equal(*(uint16_t *)tensors_find(&f, "b")->data, 7);
    assert_int_equal(tensors_find(&f, "none")->bytes, 0);
    tensors_close(&f);
    unlink(path);
    assert_false(tensors_open(&arena, path, &f, why, sizeof why));
    assert_non_null(strstr(why, "cannot be read: No such file"));
    assert_false(tensors_open(&arena, "/tmp", &f, why, sizeof why));
    assert_non_null(strstr(why, "not a regular file"));
    assert_false(tensors_write(&arena, "/nowhere/x", t, 3, why, sizeof why));
    assert_string_equal(why, "/nowhere/x: cannot be written: No such file or directory");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(good_files_are_read, fresh),
        cmocka_unit_test_teardown(lies_are_refused, fresh),
        cmocka_unit_test_teardown(cut_files_are_refused, fresh),
        cmocka_unit_test_teardown(files_go_out_and_come_back, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
