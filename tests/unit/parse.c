/* Reading specs: trees, formatting of every spec, and input that is no spec at all. */
#include "tests/unit/spec_test.h"

#include <glob.h>

static const char *formatted(Spec *s) {
    Buf b;
    buf_init(&b, &s->arena);
    spec_format(s->file, &b);
    return b.text ? b.text : "";
}

/* Every spec is in canonical form. */
static void canonical_specs(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(GDR_SPECS_DIR "/*.gdr", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        Spec *s = spec_load(files.gl_pathv[i]);
        assert_string_equal(s->file->source->text, formatted(s));
        spec_close(s);
    }
    globfree(&files);
}

/* Fully parenthesised. */
static void put_tree(Buf *b, const Expr *e) {
    static const char *const name[] = {
        [EXPR_index] = "at", [EXPR_neg] = "neg",  [EXPR_transpose] = "t", [EXPR_add] = "+",
        [EXPR_sub] = "-",    [EXPR_mul] = "*",    [EXPR_emul] = ".*",     [EXPR_div] = "/",
        [EXPR_ediv] = "./",  [EXPR_pow] = "^",    [EXPR_epow] = ".^",     [EXPR_call] = "call",
    };
    if (e->kind == EXPR_number)
        buf_number(b, e->number);
    else if (e->kind == EXPR_name)
        buf_puts(b, e->name);
    else
        buf_printf(b, "(%s", e->kind == EXPR_call ? e->name : name[e->kind]);
    for (int i = 0; i < e->nargs; i++) {
        buf_puts(b, " ");
        put_tree(b, e->arg[i]);
    }
    if (e->kind != EXPR_number && e->kind != EXPR_name)
        buf_puts(b, ")");
}

static void precedence(void **state) {
    (void)state;
    static const char *const test[][2] = {
        {"a + b * c - d", "(- (+ a (* b c)) d)"},
        {"a * b .* c / d ./ e", "(./ (/ (.* (* a b) c) d) e)"},
        {"-a^2", "(neg (^ a 2))"},
        {"-a * b", "(* (neg a) b)"},
        {"K^-0.5 * a", "(* (^ K (neg 0.5)) a)"},
        {"a^b.^c", "(^ a (.^ b c))"},
        {"a - b - c", "(- (- a b) c)"},
        {"a'^2'", "(^ (t a) (t 2))"},
        {"k[j]' * S", "(* (t (at k j)) S)"},
        {"k[j + 1][0]", "(at (at k (+ j 1)) 0)"},
        {"- - a'", "(neg (neg (t a)))"},
        {"f(a, -b) (", ""},
        {"min(a, -b)'", "(t (min a (neg b)))"},
        {"2.*x.^2./y", "(./ (.* 2 (.^ x 2)) y)"},
        {"(a +\n b)\n", "(+ a b)"},
        {"a *\n # comment\n\n b", "(* a b)"},
        {"1e3 + .5 - 2.5E-1", "(- (+ 1000 0.5) 0.25)"},
    };
    for (size_t i = 0; i < sizeof test / sizeof *test; i++) {
        char text[200];
        snprintf(text, sizeof text, "variant t { let x = %s }", test[i][0]);
        Spec *s = spec_open(text);
        Buf b;
        buf_init(&b, &s->arena);
        if (*test[i][1]) {
            assert_true(s->file->syntax_ok);
            put_tree(&b, s->file->variant.at[0]->stmt.at[0]->decl.at[0]->value);
            assert_string_equal(b.text, test[i][1]);
        } else {
            assert_false(s->file->syntax_ok);
        }
        spec_close(s);
    }
}

/* Errors are reported, nothing else happens. */
static void refused(const char *text, size_t len, const char *message) {
    Spec *s = spec_open_n("bad.gdr", text, len);
    assert_true(s->d.errors > 0);
    assert_false(s->file->checked);
    if (!strstr(messages(s), message))
        fail_msg("expected '%s', got:\n%s", message, messages(s));
    spec_close(s);
}

static void malformed(void **state) {
    (void)state;
    static const char *const test[][2] = {
        {"", "there is no variant"},
        {"\n\n# only a comment\n", "there is no variant"},
        {"variant", "unexpected end of line"},
        {"variant t", "unexpected end of line"},
        {"variant t {", "'}' is missing"},
        {"variant t { for j in n {", "'}' is missing"},
        {"variant t { for j in n { }", "'}' is missing"},
        {"variant t { } }", "unexpected '}'"},
        {"}", "unexpected '}'"},
        {"variant t { let x = ((((", "unexpected"},
        {"variant t { let x = 1)))) }", "unexpected ')'"},
        {"variant t { let x = ' }", "unexpected '''"},
        {"variant t { let x = 1e999 }", "out of range"},
        {"variant t { let x = 3.3.3.3 }", "unexpected"},
        {"variant t { state S[a, b, c, d] }", "too many axes"},
        {"\xff\xfe\x00v", "not part of the language"},
        {"variant t { let \xc3 = 1 }", "not part of the language"},
        {"variant in { }", "unexpected 'in'"},
        {"let", "a statement outside a variant"},
        {"variant t { dim dim }", "unexpected 'dim'"},
        {"variant t { ;;;; } variant t { }", "a second variant"},
    };
    for (size_t i = 0; i < sizeof test / sizeof *test; i++)
        refused(test[i][0], strlen(test[i][0]), test[i][1]);
    refused("variant t { let x = 1\0 }", 24, "not part of the language");
    refused("\0\0\0\0", 4, "not part of the language");
}

static char *repeated(const char *head, const char *unit, int n, const char *tail) {
    size_t len = strlen(head) + strlen(unit) * (size_t)n + strlen(tail);
    char *text = malloc(len + 1), *p = text;
    assert_non_null(text);
    p = stpcpy(p, head);
    for (int i = 0; i < n; i++)
        p = stpcpy(p, unit);
    stpcpy(p, tail);
    return text;
}

/* Deep and long input ends in a message, never in the machine's stack. */
static void deep(void **state) {
    (void)state;
    static const struct { const char *head, *unit, *tail, *message; } test[] = {
        {"variant t { let x = ", "(", "1", "nest more than"},
        {"variant t { let x = ", "-", "1 }", "nests too deeply"},
        {"variant t { let x = ", "2^", "1 }", "nests too deeply"},
        {"variant t { let x = 1", "'", " }", "too long"},
        {"variant t { let x = 1", " + 1", " }", "too long"},
        {"variant t { let x = ", "sum(", "1 }", "nest more than"},
        {"variant t { let x = y", "[0]", " }", "too long"},
        {"variant t { ", "for j in n { ", "", "nests too deeply"},
        {"", "variant ", "", "unexpected 'variant'"},
        {"variant t { ", "}", "", "unexpected '}'"},
        {"", "{", "", "unexpected '{'"},
        {"variant t { in x[", "a,", "b] }", "too many axes"},
        {"variant t { let x = 1", "1", " }", "number too long"},
    };
    for (size_t i = 0; i < sizeof test / sizeof *test; i++) {
        char *text = repeated(test[i].head, test[i].unit, 20000, test[i].tail);
        refused(text, strlen(text), test[i].message);
        free(text);
    }
    /* Long but flat is fine. */
    char *text = repeated("variant t { dim K = 2, V = 2; in k[K]; state S[K, V]; out o[V] = S' * k;",
                          "S = 2 * S;\n", 5000, "}");
    Spec *s = spec_open(text);
    assert_int_equal(s->d.errors, 0);
    assert_non_null(spec_lower(&s->arena, &s->names, s->file, NULL, NULL, &s->d));
    spec_close(s);
    free(text);
    text = repeated("variant t { dim K = 2, V = 2; in k[K]; state S[K, V]; out o[V] = S' * k;",
                    "S = 2 * S;\n", 60000, "}");
    s = spec_open(text);
    assert_int_equal(s->d.errors, 0);
    assert_null(spec_lower(&s->arena, &s->names, s->file, NULL, NULL, &s->d));
    assert_non_null(strstr(messages(s), "too large"));
    spec_close(s);
    free(text);
}

static void garbage(void **state) {
    (void)state;
    size_t len = 1 << 20;
    char *text = malloc(len + 1);
    assert_non_null(text);
    uint64_t seed = 7;
    static const char token[] = "variant { } ( ) [ ] ' in out let for S = + - * .* ; # \n k 1 , <= ";
    for (int kind = 0; kind < 3; kind++) {
        for (size_t i = 0; i < len; i++)
            text[i] = kind == 0   ? (char)(random_unit(&seed) * 256)
                      : kind == 1 ? (char)(32 + random_unit(&seed) * 95)
                                  : token[(size_t)(random_unit(&seed) * (sizeof token - 1))];
        Spec *s = spec_open_n("garbage.gdr", text, len);
        assert_true(s->d.errors > 0);
        assert_true(strlen(messages(s)) < 100000);
        spec_close(s);
    }
    free(text);
}

/* Running out of memory anywhere unwinds to the caller, and everything is freed. */
static void out_of_memory(void **state) {
    (void)state;
    Arena file;
    arena_init(&file, NULL);
    const Source *source = source_from_file(&file, GDR_SPECS_DIR "/gdn2.gdr");
    assert_non_null(source);
    volatile bool done = false;
    volatile int64_t limit = 0;
    while (!done) {
        Arena a;
        jmp_buf oom;
        arena_init(&a, &oom);
        a.fail_after = ++limit;
        if (!setjmp(oom)) {
            Interner names;
            Diag d;
            intern_init(&names, &a);
            diag_init(&d, &a, source);
            SpecFile *f = spec_parse(&a, &names, source, &d);
            done = spec_check(f, &d) && spec_lower(&a, &names, f, NULL, NULL, &d);
        }
        arena_free(&a);
    }
    assert_true(limit > 100);
    arena_free(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(canonical_specs), cmocka_unit_test(precedence),
        cmocka_unit_test(malformed),       cmocka_unit_test(deep),
        cmocka_unit_test(garbage),         cmocka_unit_test(out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
