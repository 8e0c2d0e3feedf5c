/* Around one LLVM module: opening it for a target, optimising it, and turning it into PTX, LLVM IR
 * or an object file. Everything LLVM allocates hangs off a Cg and goes with cg_close.
 *
 * The optimisation pipeline is short on purpose: kernels arrive with their vectors, tiles and
 * unrolling decided, so the loop vectoriser, the unroller and the inliner of the default pipelines
 * would cost most of the compile time and change nothing.
 */
#include "codegen/codegen.h"
#include <llvm-c/Analysis.h>
#include <llvm-c/Error.h>
#include <llvm-c/Target.h>
#include <llvm-c/Transforms/PassBuilder.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* LLVM's registry of targets belongs to the process; filling it is not thread-safe. */
static pthread_once_t targets_registered = PTHREAD_ONCE_INIT;

static void register_targets(void) {
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
    LLVMInitializeNVPTXTargetInfo();
    LLVMInitializeNVPTXTarget();
    LLVMInitializeNVPTXTargetMC();
    LLVMInitializeNVPTXAsmPrinter();
}

/* Keeps the first error. Called from inside LLVM: it must not touch the arena, which may unwind. */
static void on_diagnostic(LLVMDiagnosticInfoRef info, void *user) {
    Cg *cg = user;
    if (LLVMGetDiagInfoSeverity(info) != LLVMDSError || cg->error[0])
        return;
    char *text = LLVMGetDiagInfoDescription(info);
    snprintf(cg->error, sizeof cg->error, "%s", text);
    LLVMDisposeMessage(text);
}

/* Records an LLVM message as the reason of a failure and frees it. */
static bool fail(Cg *cg, char *message, const char **why) {
    snprintf(cg->error, sizeof cg->error, "%s", message);
    LLVMDisposeMessage(message);
    *why = cg->error;
    return false;
}

/* opening -------------------------------------------------------------------------------------- */

/* What a named x86 CPU is known to have. LLVM knows too but does not say through this interface,
 * and the emitters decide by it. A name that is not here gets vectors that any x86-64 runs. */
#define AVX2 "+avx2,+fma,+f16c,+bmi2"
#define AVX512 AVX2 ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
static const struct {
    const char *name, *features;
} cpu_list[] = {
    {"x86-64-v3", AVX2},        {"haswell", AVX2},          {"broadwell", AVX2},
    {"skylake", AVX2},          {"alderlake", AVX2},        {"raptorlake", AVX2},
    {"arrowlake", AVX2},        {"lunarlake", AVX2},        {"znver1", AVX2},
    {"znver2", AVX2},           {"znver3", AVX2},           {"x86-64-v4", AVX512},
    {"skylake-avx512", AVX512}, {"cascadelake", AVX512},    {"cooperlake", AVX512},
    {"icelake-client", AVX512}, {"icelake-server", AVX512}, {"tigerlake", AVX512},
    {"rocketlake", AVX512},     {"sapphirerapids", AVX512}, {"emeraldrapids", AVX512},
    {"graniterapids", AVX512},  {"znver4", AVX512},         {"znver5", AVX512},
};

/* The features of a named CPU and those asked for besides, as an LLVM message; NULL when that is
 * beyond all measure. */
static char *named_features(const char *cpu, const char *more) {
    const char *known = "";
    for (size_t i = 0; i < sizeof cpu_list / sizeof cpu_list[0]; i++)
        if (strcmp(cpu_list[i].name, cpu) == 0)
            known = cpu_list[i].features;
    char text[4096];
    if (!more || !more[0] || !known[0])
        return LLVMCreateMessage(known[0] ? known : more ? more : "");
    size_t size = (size_t)snprintf(text, sizeof text, "%s,%s", known, more);
    return size < sizeof text ? LLVMCreateMessage(text) : NULL;
}

static bool make_machine(Cg *cg, const char **why) {
    static const LLVMCodeGenOptLevel level[4] = {LLVMCodeGenLevelNone, LLVMCodeGenLevelLess,
                                                 LLVMCodeGenLevelDefault,
                                                 LLVMCodeGenLevelAggressive};
    bool gpu = cg->target->gpu, native = !gpu && !cg->opt->cpu;
    const char *cpu = gpu ? cg->target->name : cg->opt->cpu;
    const char *features = gpu ? cg->target->features : cg->opt->features;
    cg->triple = gpu ? LLVMCreateMessage("nvptx64-nvidia-cuda") : LLVMGetDefaultTargetTriple();
    cg->cpu = native ? LLVMGetHostCPUName() : LLVMCreateMessage(cpu);
    cg->features = native && !features ? LLVMGetHostCPUFeatures()
                   : gpu || native     ? LLVMCreateMessage(features)
                                       : named_features(cpu, features);
    if (!cg->features) {
        *why = "too many CPU features";
        return false;
    }
    LLVMTargetRef target = NULL;
    char *error = NULL;
    if (LLVMGetTargetFromTriple(cg->triple, &target, &error))
        return fail(cg, error, why);
    int n = cg->opt->opt_level;
    if (n < 0 || n > 3)
        n = n < 0 ? 0 : 3;
    cg->tm = LLVMCreateTargetMachine(target, cg->triple, cg->cpu, cg->features, level[n],
                                     gpu ? LLVMRelocDefault : LLVMRelocPIC, LLVMCodeModelDefault);
    if (!cg->tm)
        *why = "LLVM cannot make code for this target";
    return cg->tm != NULL;
}

static void make_types(Cg *cg) {
    cg->i1 = LLVMInt1TypeInContext(cg->ctx);
    cg->i8 = LLVMInt8TypeInContext(cg->ctx);
    cg->i16 = LLVMInt16TypeInContext(cg->ctx);
    cg->i32 = LLVMInt32TypeInContext(cg->ctx);
    cg->i64 = LLVMInt64TypeInContext(cg->ctx);
    cg->f16 = LLVMHalfTypeInContext(cg->ctx);
    cg->bf16 = LLVMBFloatTypeInContext(cg->ctx);
    cg->f32 = LLVMFloatTypeInContext(cg->ctx);
    cg->f64 = LLVMDoubleTypeInContext(cg->ctx);
    cg->voidt = LLVMVoidTypeInContext(cg->ctx);
    cg->ptr = LLVMPointerTypeInContext(cg->ctx, 0);
    cg->ptr_global = LLVMPointerTypeInContext(cg->ctx, 1);
    cg->ptr_shared = LLVMPointerTypeInContext(cg->ctx, 3);
}

Cg *cg_open(Arena *arena, const Kernel *k, const CgOptions *opt, const char **why) {
    const Target *target = target_find(opt->target);
    if (!target) {
        *why = "unknown target";
        return NULL;
    }
    pthread_once(&targets_registered, register_targets);
    Cg *cg = NEW(arena, Cg);
    *cg = (Cg){.arena = arena, .k = k, .opt = opt, .target = target};
    if (!make_machine(cg, why)) {
        cg_close(cg);
        return NULL;
    }
    cg->ctx = LLVMContextCreate();
    LLVMContextSetDiagnosticHandler(cg->ctx, on_diagnostic, cg);
    cg->mod = LLVMModuleCreateWithNameInContext(k && k->name ? k->name : "gdr", cg->ctx);
    cg->b = LLVMCreateBuilderInContext(cg->ctx);
    LLVMSetTarget(cg->mod, cg->triple);
    LLVMTargetDataRef layout = LLVMCreateTargetDataLayout(cg->tm);
    LLVMSetModuleDataLayout(cg->mod, layout);
    LLVMDisposeTargetData(layout);
    make_types(cg);
    return cg;
}

void cg_close(Cg *cg) {
    if (cg->b)
        LLVMDisposeBuilder(cg->b);
    if (cg->mod)
        LLVMDisposeModule(cg->mod);
    if (cg->tm)
        LLVMDisposeTargetMachine(cg->tm);
    if (cg->ctx)
        LLVMContextDispose(cg->ctx);
    if (cg->text)
        LLVMDisposeMemoryBuffer(cg->text);
    if (cg->object)
        LLVMDisposeMemoryBuffer(cg->object);
    LLVMDisposeMessage(cg->triple);
    LLVMDisposeMessage(cg->cpu);
    LLVMDisposeMessage(cg->features);
}

/* optimising ----------------------------------------------------------------------------------- */

/* Loops are rotated so that what does not change can move out of them, and their counters become
 * plain ones; the second round cleans up what that uncovered. No gvn: it takes as long as all the
 * rest and finds nothing more. Sums in one order save registers in token-by-token kernels; in chunk
 * kernels they move away from where they are used, which costs registers that GPUs do not have. */
#define USUAL(sums)                                                                \
    "function(sroa,early-cse<memssa>,instcombine<no-verify-fixpoint>,simplifycfg," \
    "loop-mssa(loop-rotate,licm)," sums "loop(indvars),early-cse<memssa>,"         \
    "instcombine<no-verify-fixpoint>,loop-mssa(licm),simplifycfg,adce)"
static const char pipeline_quick[] = "function(sroa,early-cse)";
static const char pipeline_chunk[] = USUAL("");
static const char pipeline_recurrent[] = USUAL("reassociate,");

static const char *pipeline(const CgOptions *opt) {
    if (opt->opt_level >= 3)
        return "default<O3>";
    if (opt->opt_level <= 0)
        return pipeline_quick;
    return opt->algo == ALGO_chunk ? pipeline_chunk : pipeline_recurrent;
}

bool cg_optimize(Cg *cg, const char **why) {
    char *error = NULL;
    if (LLVMVerifyModule(cg->mod, LLVMReturnStatusAction, &error))
        BUG("malformed LLVM module for %s: %s", cg->target->name, error);
    LLVMDisposeMessage(error);
    if (cg->opt->sizes_only)
        return true;
    LLVMPassBuilderOptionsRef options = LLVMCreatePassBuilderOptions();
    LLVMPassBuilderOptionsSetLoopUnrolling(options, cg->opt->opt_level >= 3);
    LLVMErrorRef failed = LLVMRunPasses(cg->mod, pipeline(cg->opt), cg->tm, options);
    LLVMDisposePassBuilderOptions(options);
    if (failed) {
        char *text = LLVMGetErrorMessage(failed);
        snprintf(cg->error, sizeof cg->error, "%s", text);
        LLVMDisposeErrorMessage(text);
    }
    *why = cg->error;
    return !cg->error[0];
}

/* emitting ------------------------------------------------------------------------------------- */

/* A buffer, copied into the arena. The buffer belongs to the Cg until
 * the copy is made, so that running out of memory does not lose it. */
static char *take(Cg *cg, LLVMMemoryBufferRef *buffer, size_t *size) {
    if (!*buffer)
        return NULL;
    *size = LLVMGetBufferSize(*buffer);
    char *copy = arena_strndup(cg->arena, LLVMGetBufferStart(*buffer), *size);
    LLVMDisposeMemoryBuffer(*buffer);
    *buffer = NULL;
    return copy;
}

void cg_take(Cg *cg, CgModule *out) {
    out->target = cg->target->name;
    out->text = take(cg, &cg->text, &out->text_len);
    out->object = take(cg, &cg->object, &out->object_len);
}

static bool emit_file(Cg *cg, LLVMCodeGenFileType kind, LLVMMemoryBufferRef *out,
                      const char **why) {
    char *error = NULL;
    if (LLVMTargetMachineEmitToMemoryBuffer(cg->tm, cg->mod, kind, &error, out))
        return fail(cg, error, why);
    *why = cg->error;
    return !cg->error[0];
}

bool cg_translate(Cg *cg, const char **why) {
    static const char no_code[] = "\n.visible .entry ";
    bool gpu = cg->target->gpu;
    if (cg->opt->sizes_only) {
        cg->text = LLVMCreateMemoryBufferWithMemoryRangeCopy(no_code, sizeof no_code - 1, "");
        return true;
    }
    if (cg->opt->want_llvm) {
        char *text = LLVMPrintModuleToString(cg->mod);
        cg->text = LLVMCreateMemoryBufferWithMemoryRangeCopy(text, strlen(text), "");
        LLVMDisposeMessage(text);
    } else if (gpu && !emit_file(cg, LLVMAssemblyFile, &cg->text, why)) {
        return false;
    }
    return gpu || emit_file(cg, LLVMObjectFile, &cg->object, why);
}

bool cg_emit(Cg *cg, CgModule *out, const char **why) {
    if (!cg_translate(cg, why))
        return false;
    cg_take(cg, out);
    return true;
}
