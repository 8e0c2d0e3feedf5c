/* Object file -> callable code in this process, through LLVM's ORC. Each object has its own JIT, so
 * that freeing one kernel frees its code and nothing else, and equal symbols do not meet. */
#include "runtime/runtime.h"
#include <llvm-c/Error.h>
#include <llvm-c/LLJIT.h>
#include <llvm-c/Orc.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct HostCode {
    LLVMOrcLLJITRef jit;
};

/* LLVM's registry of targets belongs to the process; filling it is not thread-safe. */
static pthread_once_t target_registered = PTHREAD_ONCE_INIT;

static void register_target(void) {
    LLVMInitializeNativeTarget();
    LLVMInitializeNativeAsmPrinter();
}

/* True when there is an error; consumes it. */
static bool failed(LLVMErrorRef error, char *why, size_t why_size) {
    if (!error)
        return false;
    char *text = LLVMGetErrorMessage(error);
    snprintf(why, why_size, "%s", text);
    LLVMDisposeErrorMessage(text);
    return true;
}

/* Symbols that code may call besides its own: memcpy and the like, from this process. */
static bool allow_process_symbols(HostCode *code, char *why, size_t why_size) {
    LLVMOrcDefinitionGeneratorRef process = NULL;
    char prefix = LLVMOrcLLJITGetGlobalPrefix(code->jit);
    if (failed(LLVMOrcCreateDynamicLibrarySearchGeneratorForProcess(&process, prefix, NULL, NULL),
               why, why_size))
        return false;
    LLVMOrcJITDylibAddGenerator(LLVMOrcLLJITGetMainJITDylib(code->jit), process);
    return true;
}

static bool load(HostCode *code, const void *object, size_t len, char *why, size_t why_size) {
    if (failed(LLVMOrcCreateLLJIT(&code->jit, NULL), why, why_size))
        return false;
    if (!allow_process_symbols(code, why, why_size))
        return false;
    LLVMMemoryBufferRef copy = LLVMCreateMemoryBufferWithMemoryRangeCopy(object, len, "kernel.o");
    LLVMOrcJITDylibRef main_library = LLVMOrcLLJITGetMainJITDylib(code->jit);
    return !failed(LLVMOrcLLJITAddObjectFile(code->jit, main_library, copy), why, why_size);
}

HostCode *hostjit_load(const void *object, size_t len, char *why, size_t why_size) {
    pthread_once(&target_registered, register_target);
    HostCode *code = calloc(1, sizeof *code);
    if (!code) {
        snprintf(why, why_size, "out of memory");
        return NULL;
    }
    if (!load(code, object, len, why, why_size)) {
        hostjit_free(code);
        return NULL;
    }
    return code;
}

HostEntry *hostjit_symbol(HostCode *code, const char *name) {
    LLVMOrcExecutorAddress address = 0;
    LLVMErrorRef error = LLVMOrcLLJITLookup(code->jit, &address, name);
    if (error) {
        LLVMConsumeError(error);
        return NULL;
    }
    return (HostEntry *)(uintptr_t)address;
}

void hostjit_free(HostCode *code) {
    if (!code)
        return;
    if (code->jit)
        LLVMConsumeError(LLVMOrcDisposeLLJIT(code->jit));
    free(code);
}
