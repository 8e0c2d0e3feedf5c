/* The command line: one table says every option, which calls take it, and how its value is read. */
#include "driver/driver.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHECK_ = 1,
    EXPLAIN = 2,
    COMPILE = 4,
    RUN = 8,
    VERIFY = 16,
    BENCH = 32,
    FMT = 64,
    ALL = 127,
    LOWERING = EXPLAIN | COMPILE | RUN | VERIFY | BENCH, /* runs the passes */
    LAUNCHING = RUN | VERIFY | BENCH
};

const Command command_list[] = {
    {"check", "SPEC...", "parse and check specs", "gdrc check specs/gdn2.gdr", CHECK_, 1, INT_MAX,
     command_check},
    {"explain", "SPEC", "normal form, decay class, chunk system and cost of a spec",
     "gdrc explain specs/gdn2.gdr --format markdown", EXPLAIN, 1, 1, command_explain},
    {"compile", "SPEC... -o DIR", "kernels ahead of time: code, C header, manifest",
     "gdrc compile specs/gdn2.gdr -o out --target sm_90a,host --dtype bf16", COMPILE, 1, INT_MAX,
     command_compile},
    {"run", "SPEC --in FILE --out FILE", "run a spec on tensors named as in it",
     "gdrc run specs/gdn2.gdr --in x.safetensors --out y.safetensors --device cuda", RUN, 1, 1,
     command_run},
    {"verify", "SPEC...", "every algorithm against the fp64 reference on random inputs",
     "gdrc verify specs/kda.gdr --device cpu --seed 7", VERIFY, 1, INT_MAX, command_verify},
    {"bench", "SPEC", "time, bandwidth, arithmetic rate and their share of the roofline",
     "gdrc bench specs/gdn2.gdr --shape 1,8192,96 --device cuda --dtype bf16", BENCH, 1, 1,
     command_bench},
    {"fmt", "SPEC...", "print specs in canonical form", "gdrc fmt --in-place specs/gdn2.gdr", FMT,
     1, INT_MAX, command_fmt},
};
const int command_count = sizeof command_list / sizeof command_list[0];

/* the table ------------------------------------------------------------------------------------ */

typedef enum {
    KIND_flag,
    KIND_text,
    KIND_int,
    KIND_seed,
    KIND_choice,
    KIND_dim,
    KIND_dtype,
    KIND_shape
} Kind;

typedef struct OptionSpec {
    const char *name;
    char letter;
    const char *arg; /* what the help calls its value; choices: "a|b|c" */
    unsigned commands;
    Kind kind;
    size_t offset; /* in Options */
    int min, max;  /* int */
    const char *doc;
} OptionSpec;

#define AT(field) offsetof(Options, field)
static const OptionSpec option_list[] = {
    {"variant", 0, "NAME", LOWERING, KIND_text, AT(variant), 0, 0,
     "the variant, for a file with several"},
    {"dim", 0, "N=SIZE", ALL & ~FMT, KIND_dim, 0, 0, 0, "a size that overrides the spec's default"},
    {"dtype", 0, "f32|bf16|f16", COMPILE | LAUNCHING, KIND_dtype, 0, 0, 0,
     "type of inputs and outputs"},
    {"state-type", 0, "f32|bf16|f16", COMPILE | LAUNCHING, KIND_choice, AT(state_type), 0, 0,
     "type of states in memory (f32); not of backward passes"},
    {"state-layout", 0, "kv|vk", COMPILE | LAUNCHING, KIND_choice, AT(state_layout), 0, 0,
     "layout of states in memory (kv)"},
    {"device", 0, "cpu|cuda", LAUNCHING, KIND_choice, AT(device), 0, 0, "where to run (cpu)"},
    {"algo", 0, "auto|chunk|recurrent|reference", RUN | BENCH, KIND_choice, AT(method), 0, 0,
     "how to compute (auto: chunk where a chunk form exists)"},
    {"chunk", 0, "ROWS", COMPILE | LAUNCHING, KIND_int, AT(chunk), 1, 256,
     "rows of the chunk system (the target's choice)"},
    {"v-tile", 0, "N", COMPILE | LAUNCHING, KIND_int, AT(v_tile), 16, 256,
     "V columns of a block of the GPU's chain and reverse kernels (each launch's choice of two)"},
    {"opt-level", 0, "N", COMPILE | LAUNCHING, KIND_int, AT(opt_level), 1, 3,
     "how hard LLVM tries: 1 to 3 (the target's choice)"},
    {"threads", 0, "N", LAUNCHING, KIND_int, AT(threads), 1, 4096,
     "CPU threads (all that are usable)"},
    {"in", 0, "FILE", RUN, KIND_text, AT(in), 0, 0, "input tensors (safetensors)"},
    {"out", 0, "FILE", RUN, KIND_text, AT(out), 0, 0, "output tensors (safetensors)"},
    {"grad", 0, NULL, LAUNCHING, KIND_flag, AT(grad), 0, 0,
     "the backward pass: gradients of inputs, parameters and the initial state"},
    {"save", 0, "nothing|states|all", BENCH, KIND_choice, AT(save), 0, 0,
     "what the forward pass of a training step keeps for the backward pass, on a GPU (states)"},
    {"save", 0, "nothing|states|all", COMPILE, KIND_choice, AT(save), 0, 0,
     "what forward kernels by chunks on a GPU keep for a backward pass (nothing)"},
    {"check-ranges", 0, NULL, RUN, KIND_flag, AT(check_ranges), 0, 0,
     "refuse inputs outside their declared ranges"},
    {"output", 'o', "DIR", COMPILE, KIND_text, AT(dir), 0, 0, "where the files go"},
    {"target", 0, "LIST", COMPILE, KIND_text, AT(targets), 0, 0,
     "host, sm_80, sm_90a, ... (host,sm_90a)"},
    {"passes", 0, "LIST", COMPILE, KIND_text, AT(passes), 0, 0,
     "fwd: sequences by chunks; step: token by token; bwd: gradients (fwd,step)"},
    {"emit", 0, "LIST", COMPILE, KIND_text, AT(emit), 0, 0,
     "ptx, cubin, llvm, ir, obj, header (ptx, cubin if ptxas is found, obj, header)"},
    {"cpu", 0, "NAME", COMPILE, KIND_text, AT(cpu), 0, 0,
     "host code for this processor, as LLVM names it (the one of this machine)"},
    {"format", 0, "text|markdown|json", EXPLAIN, KIND_choice, AT(format), 0, 0,
     "of the explanation"},
    {"seed", 0, "N", VERIFY | BENCH, KIND_seed, AT(seed), 0, 0, "of the random inputs (1)"},
    {"full", 0, NULL, VERIFY, KIND_flag, AT(full), 0, 0,
     "every length, size, gate and key pattern (minutes)"},
    {"case", 0, "N", VERIFY, KIND_int, AT(case_number), 1, INT_MAX, "only this line of the table"},
    {"shape", 0, "B,T,H[,HK]", BENCH, KIND_shape, 0, 0, 0,
     "batch, tokens, heads, key heads; may be repeated"},
    {"step", 0, NULL, BENCH, KIND_flag, AT(step), 0, 0,
     "a shape's tokens are one decoding step, from and to a pool of states"},
    {"pool", 0, "N", BENCH, KIND_int, AT(pool), 1, INT_MAX,
     "states in a step's pool (as many as sequences)"},
    {"keep", 0, "last|all", BENCH, KIND_choice, AT(keep_all), 0, 0,
     "the states that a step leaves: the last one, or that after every token (last)"},
    {"sets", 0, "N", BENCH, KIND_int, AT(input_sets), 1, 64,
     "input sets used in turn, so that caches stay cold (4)"},
    {"json", 0, "FILE", BENCH | VERIFY, KIND_text, AT(json), 0, 0, "results as JSON"},
    {"in-place", 'i', NULL, FMT, KIND_flag, AT(in_place), 0, 0, "rewrite the files"},
    {"check", 0, NULL, FMT, KIND_flag, AT(check_only), 0, 0,
     "change nothing; exit 1 if a file is not in canonical form"},
    {"cache-dir", 0, "DIR", LAUNCHING, KIND_text, AT(cache_dir), 0, 0,
     "where compiled kernels are kept ($GDR_CACHE_DIR, ~/.cache/gdrc)"},
    {"no-cache", 0, NULL, LAUNCHING, KIND_flag, AT(no_cache), 0, 0, "compile anew, keep nothing"},
    {"diag-format", 0, "text|json", ALL, KIND_choice, AT(diag_format), 0, 0,
     "of messages about specs"},
    {"dump-after", 0, "PASS|all", LOWERING, KIND_text, AT(dump_after), 0, 0,
     "print the kernel after a pass"},
    {"time-passes", 0, NULL, LOWERING, KIND_flag, AT(time_passes), 0, 0, "print each pass's time"},
    {"verify-each", 0, NULL, LOWERING, KIND_flag, AT(verify_each), 0, 0,
     "check the kernel after each pass"},
    {"list-passes", 0, NULL, LOWERING, KIND_flag, AT(list_passes), 0, 0, "print the passes"},
    {"help", 'h', NULL, ALL, KIND_flag, AT(help), 0, 0, "this text"},
};
enum { OPTIONS = sizeof option_list / sizeof option_list[0] };

/* reading values ------------------------------------------------------------------------------- */

static bool read_integer(const char *text, long long min, long long max, long long *x) {
    char *end;
    errno = 0;
    *x = strtoll(text, &end, 10);
    return *text && !*end && !errno && *x >= min && *x <= max;
}

/* The number of `value` among the alternatives of "a|b|c"; -1 if it is none of them. */
static int choice_of(const char *alternatives, const char *value) {
    size_t n = strlen(value);
    for (int i = 0;; i++) {
        size_t len = strcspn(alternatives, "|");
        if (len == n && !memcmp(alternatives, value, n))
            return i;
        if (!alternatives[len])
            return -1;
        alternatives += len + 1;
    }
}

static bool read_dim(Driver *d, const char *value) {
    const char *eq = strchr(value, '=');
    long long size;
    if (!eq || eq == value || !read_integer(eq + 1, 1, INT_MAX, &size))
        return false;
    gdr_dim dim = {arena_strndup(&d->arena, value, (size_t)(eq - value)), size};
    VEC_PUSH(&d->arena, &d->opt.dim, dim);
    return true;
}

static bool read_shape(Driver *d, const char *value) {
    int64_t x[4] = {0};
    int n = 0;
    for (const char *p = value; n < 4;) {
        char *end;
        errno = 0;
        x[n] = strtoll(p, &end, 10);
        if (end == p || errno || x[n] < 1)
            return false;
        n++;
        if (!*end)
            break;
        if (*end != ',' || n == 4)
            return false;
        p = end + 1;
    }
    if (n < 3)
        return false;
    BenchShape s = {x[0], x[1], x[2], n == 4 ? x[3] : x[2]};
    VEC_PUSH(&d->arena, &d->opt.shape, s);
    return true;
}

static bool set_value(Driver *d, const OptionSpec *o, const char *value) {
    char *field = (char *)&d->opt + o->offset;
    long long x = 0;
    switch (o->kind) {
    case KIND_flag: *(bool *)field = true; return true;
    case KIND_text: *(const char **)field = value; return *value != '\0';
    case KIND_int:
        if (!read_integer(value, o->min, o->max, &x))
            return false;
        *(int *)field = (int)x;
        return true;
    case KIND_seed:
        d->opt.has_seed = true;
        if (!read_integer(value, 0, LLONG_MAX, &x))
            return false;
        *(uint64_t *)field = (uint64_t)x;
        return true;
    case KIND_choice: *(int *)field = choice_of(o->arg, value); return *(int *)field >= 0;
    case KIND_dim: return read_dim(d, value);
    case KIND_dtype: {
        static const gdr_dtype type[] = {GDR_F32, GDR_BF16, GDR_F16};
        int i = choice_of(o->arg, value);
        d->opt.has_dtype = true;
        d->opt.dtype = type[i < 0 ? 0 : i];
        return i >= 0;
    }
    case KIND_shape: return read_shape(d, value);
    }
    BUG("option kind %d", (int)o->kind);
}

/* parsing -------------------------------------------------------------------------------------- */

static int usage(const Command *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int usage(const Command *c, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return fail(EXIT_usage, "%s: %s; see gdrc %s --help", c->name, text, c->name);
}

static const OptionSpec *find_option(const Command *c, const char *name, size_t n) {
    for (int i = 0; i < OPTIONS; i++) {
        const OptionSpec *o = &option_list[i];
        bool match = n == 1 ? o->letter && o->letter == *name
                            : strlen(o->name) == n && !memcmp(o->name, name, n);
        if (match && (o->commands & c->bit))
            return o;
    }
    return NULL;
}

static int unknown_option(const Command *c, const char *arg, const char *name, size_t n) {
    const char *known[OPTIONS];
    char given[64];
    int count = 0;
    for (int i = 0; i < OPTIONS; i++)
        if (option_list[i].commands & c->bit)
            known[count++] = option_list[i].name;
    snprintf(given, sizeof given, "%.*s", (int)(n < 60 ? n : 60), name);
    const char *close = diag_closest(given, known, count);
    return close ? usage(c, "unknown option %s, did you mean --%s", arg, close)
                 : usage(c, "unknown option %s", arg);
}

int options_parse(Driver *d, const Command *c, int argc, char **argv) {
    bool only_files = false;
    d->opt.save = c->bit == BENCH ? GDR_SAVE_STATES : GDR_SAVE_NOTHING;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (only_files || arg[0] != '-' || !arg[1]) {
            VEC_PUSH(&d->arena, &d->opt.file, arg);
            continue;
        }
        if (!strcmp(arg, "--")) {
            only_files = true;
            continue;
        }
        bool is_long = arg[1] == '-';
        const char *name = arg + (is_long ? 2 : 1);
        size_t n = is_long ? strcspn(name, "=") : 1;
        const char *value = name[n] ? name + n + (is_long ? 1 : 0) : NULL;
        const OptionSpec *o = is_long && n < 2 ? NULL : find_option(c, name, n);
        if (!o)
            return unknown_option(c, arg, name, n);
        if (!o->arg && value)
            return usage(c, "--%s takes no value", o->name);
        if (o->arg && !value && !(value = i + 1 < argc ? argv[++i] : NULL))
            return usage(c, "--%s needs a value (%s)", o->name, o->arg);
        if (!set_value(d, o, value ? value : ""))
            return usage(c, "--%s: \"%s\" is not of the form %s", o->name, value, o->arg);
    }
    Options *opt = &d->opt;
    if (opt->help || opt->list_passes)
        return 0;
    if (opt->file.count < c->min_files)
        return usage(c, "no spec given");
    if (opt->file.count > c->max_files)
        return usage(c, "more than one spec given");
    if (opt->dump_after && strcmp(opt->dump_after, "all") && pass_find(opt->dump_after) < 0)
        return usage(c, "there is no pass called %s", opt->dump_after);
    return 0;
}

void options_help(const Command *c, Buf *out) {
    buf_printf(out, "usage: gdrc %s %s [OPTION...]\n%s.\n\n", c->name, c->operands, c->doc);
    for (int i = 0; i < OPTIONS; i++) {
        const OptionSpec *o = &option_list[i];
        char left[96];
        if (!(o->commands & c->bit))
            continue;
        snprintf(left, sizeof left, "%s%c%s--%s%s%s", o->letter ? "-" : "  ",
                 o->letter ? o->letter : ' ', o->letter ? ", " : " ", o->name, o->arg ? " " : "",
                 o->arg ? o->arg : "");
        if (strlen(left) > 28)
            buf_printf(out, "  %s\n  %-29s %s\n", left, "", o->doc);
        else
            buf_printf(out, "  %-29s %s\n", left, o->doc);
    }
    buf_printf(out, "\nexample: %s\n", c->example);
}
