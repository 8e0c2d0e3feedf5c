/* gdrc compile: kernels ahead of time, for programs that do not carry the compiler.
 *
 *     DIR/NAME.h       the launch frame as a struct, prototypes, sizes and launch rules
 *     DIR/NAME.json    the same for programs: one entry a kernel
 *     DIR/NAME_PASS_TARGET.{ptx,cubin,o,ll,gir}          NAME = variant_dtype
 *
 * Everything is made in memory first; files are written, each whole, only when all went well.
 */
#include "driver/driver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct Emit {
    bool ptx, cubin, llvm, ir, obj, header;
} Emit;
typedef struct OutFile {
    const char *path;
    const void *bytes;
    size_t len;
} OutFile;

typedef struct Aot {
    Driver *d;
    Emit emit;
    char *ptxas;
    VEC(const char *) target;
    VEC(const char *) pass;
    VEC(OutFile) file;
    VEC(gdr_kernel *) kernel; /* closed at the end */
    const char *last_ir;      /* text after the last pass */
} Aot;

/* options -------------------------------------------------------------------------------------- */

/* The items of a comma-separated list. */
static void split(Driver *d, const char *list, const char ***item, int *count) {
    VEC(const char *) v = {0};
    while (*list) {
        size_t n = strcspn(list, ",");
        if (n)
            VEC_PUSH(&d->arena, &v, arena_strndup(&d->arena, list, n));
        list += n + (list[n] == ',');
    }
    *item = v.at;
    *count = v.count;
}

static int read_emit(Aot *a) {
    const char **item;
    int n;
    struct {
        const char *name;
        bool *flag;
    } known[] = {
        {"ptx", &a->emit.ptx}, {"cubin", &a->emit.cubin}, {"llvm", &a->emit.llvm},
        {"ir", &a->emit.ir},   {"obj", &a->emit.obj},     {"header", &a->emit.header},
    };
    if (!a->d->opt.emit) {
        a->emit = (Emit){.ptx = true, .cubin = a->ptxas != NULL, .obj = true, .header = true};
        return EXIT_done;
    }
    split(a->d, a->d->opt.emit, &item, &n);
    for (int i = 0; i < n; i++) {
        size_t k = 0;
        while (k < sizeof known / sizeof *known && strcmp(known[k].name, item[i]))
            k++;
        if (k == sizeof known / sizeof *known)
            return fail(EXIT_usage,
                        "compile: --emit: \"%s\" is none of ptx, cubin, llvm, ir, obj, "
                        "header",
                        item[i]);
        *known[k].flag = true;
    }
    if (a->emit.cubin && !a->ptxas)
        return fail(EXIT_environment, "compile: cubin needs ptxas on PATH");
    return EXIT_done;
}

static int read_lists(Aot *a) {
    const Options *o = &a->d->opt;
    split(a->d, o->targets ? o->targets : "host,sm_90a", &a->target.at, &a->target.count);
    split(a->d, o->passes ? o->passes : "fwd,step", &a->pass.at, &a->pass.count);
    for (int i = 0; i < a->pass.count; i++)
        if (strcmp(a->pass.at[i], "fwd") && strcmp(a->pass.at[i], "bwd") &&
            strcmp(a->pass.at[i], "step"))
            return fail(EXIT_usage, "compile: --passes: \"%s\" is none of fwd, bwd, step",
                        a->pass.at[i]);
    if (!a->target.count || !a->pass.count)
        return fail(EXIT_usage, "compile: an empty list of targets or passes");
    return EXIT_done;
}

static bool on_gpu(const char *target) {
    return strcmp(target, "host") != 0;
}

/* Whether --save has a kernel to be for: only a forward pass on a GPU keeps anything. */
static int check_save(const Aot *a) {
    bool gpu = false, forward = false;
    for (int i = 0; i < a->target.count; i++)
        gpu |= on_gpu(a->target.at[i]);
    for (int i = 0; i < a->pass.count; i++)
        forward |= !strcmp(a->pass.at[i], "fwd");
    if (a->d->opt.save == GDR_SAVE_NOTHING || (gpu && forward))
        return EXIT_done;
    return fail(EXIT_usage, "compile: --save: %s",
                gpu ? "the forward pass by chunks saves, and fwd is not among --passes"
                    : "nothing is saved on the CPU, and no GPU is among --target");
}

/* making --------------------------------------------------------------------------------------- */

static void add_file(Aot *a, const char *base, const char *suffix, const void *bytes, size_t len) {
    Buf path;
    buf_init(&path, &a->d->arena);
    buf_printf(&path, "%s/%s%s", a->d->opt.dir, base, suffix);
    OutFile f = {path.text, bytes, len};
    VEC_PUSH(&a->d->arena, &a->file, f);
}

static void keep_ir(void *user, const char *pass, const char *text, bool changed) {
    Aot *a = user;
    (void)pass;
    (void)changed;
    a->last_ir = arena_strndup(&a->d->arena, text, strlen(text));
}

static void warn_slow(void *user, const char *line) {
    fprintf(stderr, "gdrc: warning: %s: %s\n", (const char *)user, line);
}

static int add_cubin(Aot *a, const char *base, const gdr_kernel *k) {
    void *cubin;
    size_t len;
    char *log, why[512];
    bool ok =
        ptxas_run(a->ptxas, k->rec.module.text, k->rec.target, &cubin, &len, &log, why, sizeof why);
    if (ok) {
        cubin_scan_log(log, warn_slow, (void *)(uintptr_t)base);
        add_file(a, base, ".cubin", memcpy(arena_alloc(&a->d->arena, len), cubin, len), len);
    }
    free(cubin);
    free(log);
    return ok ? EXIT_done : fail(EXIT_environment, "%s: %s", base, why);
}

/* The same kernel as LLVM IR; described by the one that holds the code. */
static gdr_status add_llvm(Aot *a, const CompileInput *input, const gdr_compile_options *o,
                           const CompileExtra *extra, const char *base) {
    gdr_kernel *k;
    gdr_status status = compile_input(a->d->ctx, input, o, extra, &k);
    if (status)
        return status;
    const CgModule *m = &k->rec.module;
    add_file(a, base, ".ll", arena_strndup(&a->d->arena, m->text, m->text_len), m->text_len);
    gdr_kernel_destroy(k);
    return GDR_OK;
}

/* One kernel of one variant: compiled, its files added, itself kept for header and manifest. */
static int make_kernel(Aot *a, const Spec *s, const char *variant, const char *name,
                       const char *target, const char *pass) {
    Driver *d = a->d;
    gdr_dtype type = d->opt.has_dtype ? d->opt.dtype : GDR_F32;
    Buf base, prefix;
    buf_init(&base, &d->arena);
    buf_init(&prefix, &d->arena);
    buf_printf(&prefix, "gdr_%s_%s_", gdr_dtype_name(type), pass);
    buf_printf(&base, "%s_%s_%s", name, pass, target);
    gdr_compile_options o = {
        .size = sizeof o,
        .variant = variant,
        .dims = d->opt.dim.at,
        .ndims = d->opt.dim.count,
        .dtype = type,
        .target = target,
        .algo = strcmp(pass, "step") ? GDR_ALGO_AUTO : GDR_ALGO_RECURRENT,
        .pass = strcmp(pass, "bwd") ? GDR_PASS_FORWARD : GDR_PASS_BACKWARD,
        .chunk_rows = d->opt.chunk,
        .opt_level = d->opt.opt_level,
        .save = strcmp(pass, "fwd") ? GDR_SAVE_NOTHING : (gdr_save)d->opt.save,
    };
    if (o.pass == GDR_PASS_FORWARD) {
        o.state_dtype = (gdr_dtype)d->opt.state_type;
        o.state_layout = (gdr_layout)d->opt.state_layout;
    }
    PassWatch keep = {.dump_after = "all", .dump = keep_ir, .user = a};
    CompileExtra extra = {.watch = a->emit.ir ? &keep : driver_watch(d),
                          .diag = print_diag_callback,
                          .diag_user = d,
                          .no_cache = true,
                          .no_load = true,
                          .v_tile = d->opt.v_tile,
                          .prefix = prefix.text,
                          .cpu = d->opt.cpu,
                          .features = d->opt.cpu ? "" : NULL};
    CompileInput input = {.source = s->source};
    gdr_kernel *k;
    gdr_status status = compile_input(d->ctx, &input, &o, &extra, &k);
    if (status)
        return fail_status(d, status);
    VEC_PUSH(&d->arena, &a->kernel, k);
    const CgModule *m = &k->rec.module;
    bool gpu = on_gpu(k->rec.target);
    if (a->emit.ir && a->last_ir)
        add_file(a, base.text, ".gir", a->last_ir, strlen(a->last_ir));
    if (gpu && a->emit.ptx)
        add_file(a, base.text, ".ptx", m->text, m->text_len);
    if (!gpu && a->emit.obj)
        add_file(a, base.text, ".o", m->object, m->object_len);
    if (a->emit.llvm) {
        extra.want_llvm = true;
        extra.watch = NULL;
        status = add_llvm(a, &input, &o, &extra, base.text);
        if (status)
            return fail_status(d, status);
    }
    return gpu && a->emit.cubin ? add_cubin(a, base.text, k) : EXIT_done;
}

static void add_manifest(Aot *a, const char *name, int first) {
    Buf text;
    buf_init(&text, &a->d->arena);
    buf_puts(&text, "[\n");
    for (int i = first; i < a->kernel.count; i++) {
        buf_puts(&text, i > first ? ",\n" : "");
        const char *one = a->kernel.at[i]->manifest;
        buf_put(&text, one, strlen(one) - 1);
    }
    buf_puts(&text, "\n]\n");
    add_file(a, name, ".json", text.text, text.len);
}

/* Why what `forward` saves is of no use to `backward`; NULL: it is. */
static const char *why_useless(const Record *forward, const Record *backward) {
    if (backward->algo != ALGO_chunk)
        return "the backward pass goes token by token";
    if (backward->module.chunk != forward->module.chunk)
        return "the backward pass has chunks of another length";
    if (record_saves_all(forward) && backward->module.records != forward->module.records)
        return "chunks of the backward pass hold other values";
    return NULL;
}

/* Says where --save is without effect: it is no reason to leave a spec out of many. */
static void warn_saving(const Aot *a, int first) {
    for (int i = first; i < a->kernel.count; i++) {
        const Record *f = &a->kernel.at[i]->rec;
        if (!f->save || !record_on_gpu(f))
            continue;
        if (!record_save_every(f))
            fprintf(stderr, "gdrc: warning: %s, target %s: no kernel by chunks, nothing is saved\n",
                    f->shell->name, f->target);
        for (int j = first; j < a->kernel.count && record_save_every(f); j++) {
            const Record *b = &a->kernel.at[j]->rec;
            bool pair = b->pass == GDR_PASS_BACKWARD && !strcmp(b->target, f->target);
            const char *why = pair ? why_useless(f, b) : NULL;
            if (why)
                fprintf(stderr, "gdrc: warning: %s, target %s: what is saved is of no use: %s\n",
                        f->shell->name, f->target, why);
        }
    }
}

static int make_variant(Aot *a, const Spec *s, const char *variant) {
    Driver *d = a->d;
    Buf name;
    buf_init(&name, &d->arena);
    buf_printf(&name, "%s_%s", variant, gdr_dtype_name(d->opt.has_dtype ? d->opt.dtype : GDR_F32));
    int first = a->kernel.count;
    for (int t = 0; t < a->target.count; t++)
        for (int p = 0; p < a->pass.count; p++) {
            int status = make_kernel(a, s, variant, name.text, a->target.at[t], a->pass.at[p]);
            if (status)
                return status;
        }
    warn_saving(a, first);
    if (a->emit.header) {
        Buf text;
        buf_init(&text, &d->arena);
        header_print(name.text, a->kernel.at + first, a->kernel.count - first, &text);
        add_file(a, name.text, ".h", text.text, text.len);
    }
    add_manifest(a, name.text, first);
    return EXIT_done;
}

/* the call ------------------------------------------------------------------------------------- */

static int make_all(Aot *a) {
    Driver *d = a->d;
    for (int i = 0; i < d->opt.file.count; i++) {
        Spec s;
        int status = spec_open(d, d->opt.file.at[i], &s);
        if (status)
            return status;
        if (d->opt.variant && !spec_variant(s.file, d->opt.variant, &s.diag)) {
            print_diag(d, &s.diag);
            return EXIT_refused;
        }
        for (int v = 0; v < s.file->variant.count; v++) {
            const char *variant = s.file->variant.at[v]->name;
            if (d->opt.variant && strcmp(variant, d->opt.variant))
                continue;
            status = make_variant(a, &s, variant);
            if (status)
                return status;
        }
    }
    return EXIT_done;
}

static int write_files(Aot *a) {
    char why[512];
    if (mkdir(a->d->opt.dir, 0777) && errno != EEXIST)
        return fail(EXIT_environment, "%s: cannot be made: %s", a->d->opt.dir, strerror(errno));
    for (int i = 0; i < a->file.count; i++) {
        const OutFile *f = &a->file.at[i];
        if (!file_write_atomic(f->path, &(FilePart){f->bytes, f->len}, 1, why, sizeof why))
            return fail(EXIT_environment, "%s", why);
    }
    return EXIT_done;
}

int command_compile(Driver *d) {
    Aot a = {.d = d};
    if (!d->opt.dir)
        return fail(EXIT_usage, "compile: -o DIR is needed; see gdrc compile --help");
    if (!driver_context(d))
        return EXIT_environment;
    a.ptxas = ptxas_find();
    int status = read_emit(&a);
    if (!status)
        status = read_lists(&a);
    if (!status)
        status = check_save(&a);
    if (!status)
        status = make_all(&a);
    if (!status)
        status = write_files(&a);
    for (int i = 0; i < a.kernel.count; i++)
        gdr_kernel_destroy(a.kernel.at[i]);
    free(a.ptxas);
    return status;
}
