/* The cache of compiled kernels: hits, every kind of damage, two writers, places that cannot be
 * written; and the records in it. */
#include "runtime/runtime.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];

static int make_dir(void **state) {
    (void)state;
    strcpy(dir, "/tmp/gdr-cache-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    char command[192];
    (void)state;
    snprintf(command, sizeof command, "chmod -R u+w %s && rm -r %s", dir, dir);
    return system(command);
}

static CacheKey key_of(const char *text) {
    CacheHash *h = cache_hash_new();
    cache_hash_text(h, text);
    return cache_hash_end(h);
}

/* The path of the only entry below dir. */
static char *entry(void) {
    static char path[1024];
    DIR *top = opendir(dir);
    path[0] = '\0';
    for (struct dirent *d; (d = readdir(top));) {
        if (d->d_name[0] == '.')
            continue;
        char sub[400];
        snprintf(sub, sizeof sub, "%s/%s", dir, d->d_name);
        DIR *inner = opendir(sub);
        for (struct dirent *e; (e = readdir(inner));)
            if (e->d_name[0] != '.')
                snprintf(path, sizeof path, "%s/%s", sub, e->d_name);
        closedir(inner);
    }
    closedir(top);
    assert_true(path[0]);
    return path;
}

static void keys_differ_where_inputs_do(void **state) {
    (void)state;
    CacheKey a = key_of("a"), b = key_of("b"), again = key_of("a"), none = key_of(NULL),
             empty = key_of("");
    assert_memory_equal(a.byte, again.byte, sizeof a.byte);
    assert_memory_not_equal(a.byte, b.byte, sizeof a.byte);
    assert_memory_not_equal(none.byte, empty.byte, sizeof a.byte);
    CacheHash *x = cache_hash_new(), *y = cache_hash_new(); /* ab|c is not a|bc */
    cache_hash_text(x, "ab");
    cache_hash_text(x, "c");
    cache_hash_text(y, "a");
    cache_hash_text(y, "bc");
    CacheKey kx = cache_hash_end(x), ky = cache_hash_end(y);
    assert_memory_not_equal(kx.byte, ky.byte, sizeof kx.byte);
}

static void damage_of_every_byte_is_found(void **state) {
    (void)state;
    char why[256], payload[] = "the payload";
    size_t len;
    CacheKey key = key_of("x");
    assert_null(cache_read(dir, key, &len));
    assert_true(cache_write(dir, key, payload, sizeof payload, why, sizeof why));
    void *back = cache_read(dir, key, &len);
    assert_int_equal(len, sizeof payload);
    assert_memory_equal(back, payload, sizeof payload);
    free(back);
    struct stat st;
    assert_int_equal(stat(entry(), &st), 0);
    for (off_t i = 0; i < st.st_size; i++) {
        int fd = open(entry(), O_RDWR);
        char c;
        assert_int_equal(pread(fd, &c, 1, i), 1);
        c ^= 16;
        assert_int_equal(pwrite(fd, &c, 1, i), 1);
        assert_null(cache_read(dir, key, &len));
        c ^= 16;
        assert_int_equal(pwrite(fd, &c, 1, i), 1);
        close(fd);
    }
    back = cache_read(dir, key, &len);
    assert_non_null(back);
    free(back);
    for (off_t n = 0; n < st.st_size; n++) {
        assert_int_equal(truncate(entry(), st.st_size - 1 - n), 0);
        assert_null(cache_read(dir, key, &len));
    }
    assert_true(cache_write(dir, key, payload, sizeof payload, why, sizeof why));
    back = cache_read(dir, key, &len);
    assert_non_null(back);
    free(back);
}

static void writers_do_not_disturb_each_other(void **state) {
    (void)state;
    enum { PROCESSES = 6, ROUNDS = 200 };
    static char payload[20000];
    CacheKey key = key_of("shared");
    for (size_t i = 0; i < sizeof payload; i++)
        payload[i] = (char)(i * 7);
    for (int p = 0; p < PROCESSES; p++) {
        if (fork())
            continue;
        int bad = 0;
        for (int i = 0; i < ROUNDS; i++) {
            char why[256];
            size_t len;
            bad |= !cache_write(dir, key, payload, sizeof payload, why, sizeof why);
            void *back = cache_read(dir, key, &len);
            bad |= !back || len != sizeof payload || memcmp(back, payload, len);
            free(back);
        }
        _exit(bad);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;
        wait(&status);
        assert_int_equal(status, 0);
    }
    entry(); /* exactly what lies there is one entry: no temporary file stays */
    char command[128];
    snprintf(command, sizeof command, "test $(find %s -type f | wc -l) = 1", dir);
    assert_int_equal(system(command), 0);
}

static void directory_follows_the_environment(void **state) {
    (void)state;
    setenv("GDR_CACHE_DIR", "/a", 1);
    setenv("XDG_CACHE_HOME", "/b", 1);
    setenv("HOME", "/c", 1);
    char *d = cache_directory(NULL);
    assert_string_equal(d, "/a");
    free(d);
    d = cache_directory("/given");
    assert_string_equal(d, "/given");
    free(d);
    assert_null(cache_directory(""));
    unsetenv("GDR_CACHE_DIR");
    d = cache_directory(NULL);
    assert_string_equal(d, "/b/gdrc");
    free(d);
    setenv("XDG_CACHE_HOME", "relative", 1);
    d = cache_directory(NULL);
    assert_string_equal(d, "/c/.cache/gdrc");
    free(d);
    unsetenv("HOME");
    assert_null(cache_directory(NULL));
}

/* whole kernels -------------------------------------------------------------------------------- */

static const char spec[] = "variant s { dim K = 16, V = 16; in q[K], k[K], v[V]; state S[K, V]\n"
                           "S = S + k * v'; out o[V] = S' * q }";
static int warnings;

static void on_log(void *user, gdr_severity severity, const char *message) {
    (void)user;
    assert_int_equal(severity, GDR_WARNING);
    assert_non_null(strstr(message, "compiled kernels are not kept"));
    warnings++;
}

/* Compiles in a fresh context; whether it came from the cache. */
static int compile_in(const char *where, int64_t V) {
    gdr_context *ctx;
    gdr_kernel *k;
    gdr_facts f;
    gdr_dim dim = {"V", V};
    gdr_context_options o = {.size = sizeof o, .cache_dir = where, .log = on_log};
    gdr_compile_options c = {.size = sizeof c, .dims = &dim, .ndims = 1, .opt_level = 1};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &c, &k), GDR_OK);
        if (i == 0)
            gdr_kernel_facts(k, &f);
        gdr_kernel_destroy(k);
    }
    gdr_context_destroy(ctx);
    return f.from_cache;
}

static void kernels_come_from_the_cache_until_it_is_damaged(void **state) {
    (void)state;
    assert_int_equal(compile_in(dir, 16), 0);
    assert_int_equal(compile_in(dir, 16), 1);
    assert_int_equal(truncate(entry(), 100), 0);
    assert_int_equal(compile_in(dir, 16), 0);
    assert_int_equal(compile_in(dir, 16), 1);
    assert_int_equal(compile_in(dir, 32), 0); /* another size is another kernel */
    assert_int_equal(compile_in("", 16), 0);
    assert_int_equal(warnings, 0);
}

static void unwritable_cache_warns_once(void **state) {
    char below[128];
    (void)state;
    warnings = 0;
    /* A file where a directory must be cannot be written below, even by root. */
    snprintf(below, sizeof below, "%s/file", dir);
    close(open(below, O_CREAT | O_WRONLY, 0600));
    strcat(below, "/cache");
    assert_int_equal(compile_in(below, 16), 0);
    assert_int_equal(warnings, 1);
}

/* A record read from bytes that were cut or changed is refused or whole, never half. */
static void records_survive_any_bytes(void **state) {
    (void)state;
    gdr_context *ctx;
    gdr_kernel *k;
    gdr_context_options o = {.size = sizeof o, .cache_dir = ""};
    gdr_compile_options c = {.size = sizeof c, .opt_level = 1, .algo = GDR_ALGO_RECURRENT};
    assert_int_equal(gdr_context_create(&o, &ctx), GDR_OK);
    assert_int_equal(gdr_compile_string(ctx, "s", spec, sizeof spec - 1, &c, &k), GDR_OK);
    Arena arena;
    Buf bytes;
    Record r;
    arena_init(&arena, NULL);
    k->rec.module.object_len = 16; /* the code's own bytes are not interpreted */
    buf_init(&bytes, &arena);
    record_write(&k->rec, &bytes);
    assert_true(record_read(&arena, bytes.text, bytes.len, &r));
    Buf again;
    buf_init(&again, &arena);
    record_write(&r, &again);
    assert_int_equal(again.len, bytes.len);
    assert_memory_equal(again.text, bytes.text, bytes.len);
    for (size_t n = 0; n < bytes.len; n++) {
        Arena scratch;
        char *exact = malloc(n + 1); /* so that reads past the end are seen */
        memcpy(exact, bytes.text, n);
        arena_init(&scratch, NULL);
        assert_false(record_read(&scratch, exact, n, &r));
        arena_free(&scratch);
        free(exact);
    }
    for (size_t i = 0; i < bytes.len; i++) {
        static const char flip[] = {1, 0x40, (char)0x80, (char)0xff};
        for (size_t f = 0; f < sizeof flip; f++) {
            Arena scratch;
            arena_init(&scratch, NULL);
            bytes.text[i] ^= flip[f];
            if (record_read(&scratch, bytes.text, bytes.len, &r)) {
                Buf text;
                buf_init(&text, &scratch);
                manifest_print(&r, &text);
                assert_true(text.len > 0);
            }
            bytes.text[i] ^= flip[f];
            arena_free(&scratch);
        }
    }
    arena_free(&arena);
    gdr_kernel_destroy(k);
    gdr_context_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_differ_where_inputs_do),
        cmocka_unit_test_setup_teardown(damage_of_every_byte_is_found, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(writers_do_not_disturb_each_other, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(kernels_come_from_the_cache_until_it_is_damaged, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(unwritable_cache_warns_once, make_dir, remove_dir),
        cmocka_unit_test(records_survive_any_bytes),
        cmocka_unit_test(directory_follows_the_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
