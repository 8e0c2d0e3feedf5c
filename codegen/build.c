/* A small builder layer over the LLVM C API: what the emitters of every target say all the time.
 *
 * Control flow needs no phi nodes: mutable locals are allocas in the entry block, which SROA turns
 * into SSA form. Floating-point operations carry the `contract` flag alone: a multiply feeding an
 * add may become one fma; nothing is reassociated, and NaN, infinities and signed zeros keep their
 * meaning.
 */
#include "codegen/codegen.h"
#include <llvm-c/DebugInfo.h>
#include <string.h>

static Val const_like(Val like, uint64_t x) {
    Ty t = LLVMTypeOf(like);
    if (LLVMGetTypeKind(t) != LLVMVectorTypeKind)
        return LLVMConstInt(t, x, false);
    Val lane[64];
    unsigned n = LLVMGetVectorSize(t);
    CHECK(n <= 64);
    for (unsigned i = 0; i < n; i++)
        lane[i] = LLVMConstInt(LLVMGetElementType(t), x, false);
    return LLVMConstVector(lane, n);
}

static unsigned md_kind(Cg *cg, const char *name) {
    return LLVMGetMDKindIDInContext(cg->ctx, name, (unsigned)strlen(name));
}

static Val contract(Val v) {
    if (LLVMIsAInstruction(v) && LLVMCanValueUseFastMathFlags(v))
        LLVMSetFastMathFlags(v, LLVMFastMathAllowContract);
    return v;
}

/* values --------------------------------------------------------------------------------------- */

Val cg_int(Cg *cg, int64_t x) {
    return LLVMConstInt(cg->i32, (uint64_t)x, true);
}

Val cg_int64(Cg *cg, int64_t x) {
    return LLVMConstInt(cg->i64, (uint64_t)x, true);
}

Val cg_float(Cg *cg, double x) {
    return LLVMConstReal(cg->f32, x);
}

Val cg_splat(Cg *cg, Val x, int n) {
    CHECK(n >= 1 && n <= 64);
    if (LLVMIsConstant(x)) {
        Val lane[64];
        for (int i = 0; i < n; i++)
            lane[i] = x;
        return LLVMConstVector(lane, (unsigned)n);
    }
    Val none = LLVMGetPoison(LLVMVectorType(LLVMTypeOf(x), (unsigned)n));
    Val first = LLVMBuildInsertElement(cg->b, none, x, cg_int(cg, 0), "");
    Val zeros = LLVMConstNull(LLVMVectorType(cg->i32, (unsigned)n));
    return LLVMBuildShuffleVector(cg->b, first, none, zeros, "");
}

Val cg_add(Cg *cg, Val a, Val b) {
    return LLVMBuildAdd(cg->b, a, b, "");
}

Val cg_sub(Cg *cg, Val a, Val b) {
    return LLVMBuildSub(cg->b, a, b, "");
}

Val cg_mul(Cg *cg, Val a, Val b) {
    return LLVMBuildMul(cg->b, a, b, "");
}

Val cg_udiv(Cg *cg, Val a, Val b) {
    return LLVMBuildUDiv(cg->b, a, b, "");
}

Val cg_urem(Cg *cg, Val a, Val b) {
    return LLVMBuildURem(cg->b, a, b, "");
}

Val cg_and(Cg *cg, Val a, Val b) {
    return LLVMBuildAnd(cg->b, a, b, "");
}

Val cg_or(Cg *cg, Val a, Val b) {
    return LLVMBuildOr(cg->b, a, b, "");
}

Val cg_xor(Cg *cg, Val a, Val b) {
    return LLVMBuildXor(cg->b, a, b, "");
}

Val cg_shl(Cg *cg, Val a, int n) {
    return LLVMBuildShl(cg->b, a, const_like(a, (uint64_t)n), "");
}

Val cg_shr(Cg *cg, Val a, int n) {
    return LLVMBuildLShr(cg->b, a, const_like(a, (uint64_t)n), "");
}

Val cg_cmp(Cg *cg, LLVMIntPredicate p, Val a, Val b) {
    return LLVMBuildICmp(cg->b, p, a, b, "");
}

Val cg_select(Cg *cg, Val c, Val a, Val b) {
    return LLVMBuildSelect(cg->b, c, a, b, "");
}

Val cg_fadd(Cg *cg, Val a, Val b) {
    return contract(LLVMBuildFAdd(cg->b, a, b, ""));
}

Val cg_fsub(Cg *cg, Val a, Val b) {
    return contract(LLVMBuildFSub(cg->b, a, b, ""));
}

Val cg_fmul(Cg *cg, Val a, Val b) {
    return contract(LLVMBuildFMul(cg->b, a, b, ""));
}

Val cg_fdiv(Cg *cg, Val a, Val b) {
    return contract(LLVMBuildFDiv(cg->b, a, b, ""));
}

/* GPUs always have the instruction; a CPU without one must not call libm for every element. */
Val cg_fma(Cg *cg, Val a, Val b, Val c) {
    Ty t = LLVMTypeOf(a);
    Val arg[3] = {a, b, c};
    return cg_intrinsic(cg, cg->target->gpu ? "llvm.fma" : "llvm.fmuladd", &t, 1, arg, 3);
}

Val cg_zext64(Cg *cg, Val a) {
    return LLVMTypeOf(a) == cg->i64 ? a : LLVMBuildZExt(cg->b, a, cg->i64, "");
}

Val cg_trunc32(Cg *cg, Val a) {
    return LLVMTypeOf(a) == cg->i32 ? a : LLVMBuildTrunc(cg->b, a, cg->i32, "");
}

Val cg_extract(Cg *cg, Val a, int i) {
    if (LLVMGetTypeKind(LLVMTypeOf(a)) == LLVMVectorTypeKind)
        return LLVMBuildExtractElement(cg->b, a, cg_int(cg, i), "");
    return LLVMBuildExtractValue(cg->b, a, (unsigned)i, "");
}

Val cg_insert(Cg *cg, Val vector, Val x, int i) {
    return LLVMBuildInsertElement(cg->b, vector, x, cg_int(cg, i), "");
}

/* memory --------------------------------------------------------------------------------------- */

/* x = *rest + what is returned, as far as sums and multiples show it within `depth` steps. */
static int64_t split_constant(Cg *cg, Val x, int depth, Val *rest) {
    *rest = x;
    if (LLVMIsAConstantInt(x)) {
        *rest = LLVMConstNull(LLVMTypeOf(x));
        return LLVMConstIntGetSExtValue(x);
    }
    LLVMOpcode op = LLVMIsAInstruction(x) ? LLVMGetInstructionOpcode(x) : LLVMRet;
    if (depth == 0 || (op != LLVMAdd && op != LLVMShl && op != LLVMMul))
        return 0;
    Val a = LLVMGetOperand(x, 0), b = LLVMGetOperand(x, 1), rest_a, rest_b;
    if (op != LLVMAdd && !LLVMIsAConstantInt(b))
        return 0;
    int64_t from_a = split_constant(cg, a, depth - 1, &rest_a);
    if (op == LLVMAdd) {
        int64_t all = from_a + split_constant(cg, b, depth - 1, &rest_b);
        if (rest_a != a || rest_b != b)
            *rest = cg_add(cg, rest_a, rest_b);
        return all;
    }
    if (rest_a == a)
        return 0;
    int64_t k = LLVMConstIntGetSExtValue(b);
    *rest = op == LLVMShl ? cg_shl(cg, rest_a, (int)k) : cg_mul(cg, rest_a, b);
    return from_a * (op == LLVMShl ? (int64_t)1 << k : k);
}

/* GPU code addresses many elements at constant distances. With the constants last, what they have
 * in common is seen to be the same, and the constants go into the instructions. An offset fits its
 * type, so it may be added in two steps. */
Val cg_gep8(Cg *cg, Val p, Val bytes) {
    Val rest;
    int64_t constant = cg->target->gpu ? split_constant(cg, bytes, 8, &rest) : 0;
    if (!constant || LLVMIsAConstantInt(bytes))
        return LLVMBuildInBoundsGEP2(cg->b, cg->i8, p, &bytes, 1, "");
    Val last = LLVMConstInt(LLVMTypeOf(bytes), (uint64_t)constant, true);
    p = LLVMBuildGEP2(cg->b, cg->i8, p, &rest, 1, "");
    return LLVMBuildGEP2(cg->b, cg->i8, p, &last, 1, "");
}

Val cg_load(Cg *cg, Ty t, Val p, int align) {
    Val v = LLVMBuildLoad2(cg->b, t, p, "");
    LLVMSetAlignment(v, (unsigned)align);
    return v;
}

Val cg_load_invariant(Cg *cg, Ty t, Val p, int align) {
    Val v = cg_load(cg, t, p, align);
    LLVMMetadataRef none = LLVMMDNodeInContext2(cg->ctx, NULL, 0);
    LLVMSetMetadata(v, md_kind(cg, "invariant.load"), LLVMMetadataAsValue(cg->ctx, none));
    return v;
}

void cg_store(Cg *cg, Val x, Val p, int align) {
    LLVMSetAlignment(LLVMBuildStore(cg->b, x, p), (unsigned)align);
}

Val cg_frame_field(Cg *cg, int field) {
    Val p = cg_gep8(cg, cg->frame, cg_int64(cg, 8 * (int64_t)field));
    return cg_load_invariant(cg, cg->i64, p, 8);
}

/* calls ---------------------------------------------------------------------------------------- */

static void call_attribute(Cg *cg, Val call, const char *name) {
    unsigned kind = LLVMGetEnumAttributeKindForName(name, strlen(name));
    LLVMAddCallSiteAttribute(call, LLVMAttributeFunctionIndex,
                             LLVMCreateEnumAttribute(cg->ctx, kind, 0));
}

Val cg_intrinsic(Cg *cg, const char *name, const Ty *overload, int noverload, Val *arg, int narg) {
    unsigned id = LLVMLookupIntrinsicID(name, strlen(name));
    if (!id)
        BUG("this LLVM has no intrinsic %s", name);
    Ty none = NULL;
    Val f = LLVMGetIntrinsicDeclaration(cg->mod, id, noverload ? (Ty *)(uintptr_t)overload : &none,
                                        (size_t)noverload);
    return contract(LLVMBuildCall2(cg->b, LLVMGlobalGetValueType(f), f, arg, (unsigned)narg, ""));
}

/* On a GPU inline assembly is convergent: it may synchronise a warp (mma, shuffles, barriers). */
Val cg_asm(Cg *cg, Ty ret, const char *text, const char *constraints, bool side_effect, Val *arg,
           int narg) {
    Ty type[256];
    CHECK(narg <= 256);
    for (int i = 0; i < narg; i++)
        type[i] = LLVMTypeOf(arg[i]);
    Ty fn = LLVMFunctionType(ret, type, (unsigned)narg, false);
    Val ia = LLVMGetInlineAsm(fn, text, strlen(text), constraints, strlen(constraints), side_effect,
                              false, LLVMInlineAsmDialectATT, false);
    Val call = LLVMBuildCall2(cg->b, fn, ia, arg, (unsigned)narg, "");
    call_attribute(cg, call, "nounwind");
    if (cg->target->gpu)
        call_attribute(cg, call, "convergent");
    return call;
}

/* variables and control flow ------------------------------------------------------------------- */

LLVMBasicBlockRef cg_block(Cg *cg, const char *name) {
    return LLVMAppendBasicBlockInContext(cg->ctx, cg->fn, name);
}

Var cg_var(Cg *cg, Ty t, Val init) {
    LLVMBasicBlockRef here = LLVMGetInsertBlock(cg->b), entry = LLVMGetEntryBasicBlock(cg->fn);
    Val first = LLVMGetFirstInstruction(entry);
    if (first)
        LLVMPositionBuilderBefore(cg->b, first);
    else
        LLVMPositionBuilderAtEnd(cg->b, entry);
    Var v = {LLVMBuildAlloca(cg->b, t, ""), t};
    LLVMPositionBuilderAtEnd(cg->b, here);
    if (init)
        cg_set(cg, v, init);
    return v;
}

Val cg_get(Cg *cg, Var v) {
    return LLVMBuildLoad2(cg->b, v.t, v.p, "");
}

void cg_set(Cg *cg, Var v, Val x) {
    LLVMBuildStore(cg->b, x, v.p);
}

/* The latch's !llvm.loop node: distinct because its first operand is the node itself. */
static void forbid_unrolling(Cg *cg, Val latch) {
    static const char text[] = "llvm.loop.unroll.disable";
    LLVMMetadataRef string = LLVMMDStringInContext2(cg->ctx, text, sizeof text - 1);
    LLVMMetadataRef disable = LLVMMDNodeInContext2(cg->ctx, &string, 1);
    LLVMMetadataRef self = LLVMTemporaryMDNode(cg->ctx, NULL, 0);
    LLVMMetadataRef operand[2] = {self, disable};
    LLVMMetadataRef loop = LLVMMDNodeInContext2(cg->ctx, operand, 2);
    LLVMMetadataReplaceAllUsesWith(self, loop);
    LLVMSetMetadata(latch, md_kind(cg, "llvm.loop"), LLVMMetadataAsValue(cg->ctx, loop));
}

Loop cg_for(Cg *cg, Val lo, Val hi, int64_t step, bool unroll) {
    Loop l = {0};
    Ty t = LLVMTypeOf(lo);
    CHECK(t == LLVMTypeOf(hi) && step > 0);
    l.unroll = unroll;
    l.step = LLVMConstInt(t, (uint64_t)step, true);
    l.var = cg_var(cg, t, lo);
    l.head = cg_block(cg, "for");
    LLVMBasicBlockRef body = cg_block(cg, "body");
    l.exit = cg_block(cg, "endfor");
    LLVMBuildBr(cg->b, l.head);
    LLVMPositionBuilderAtEnd(cg->b, l.head);
    l.i = cg_get(cg, l.var);
    LLVMBuildCondBr(cg->b, cg_cmp(cg, LLVMIntSLT, l.i, hi), body, l.exit);
    LLVMPositionBuilderAtEnd(cg->b, body);
    return l;
}

void cg_end_for(Cg *cg, Loop *l) {
    cg_set(cg, l->var, LLVMBuildNSWAdd(cg->b, l->i, l->step, ""));
    Val latch = LLVMBuildBr(cg->b, l->head);
    if (!l->unroll)
        forbid_unrolling(cg, latch);
    LLVMMoveBasicBlockAfter(l->exit, LLVMGetInsertBlock(cg->b));
    LLVMPositionBuilderAtEnd(cg->b, l->exit);
}

If cg_if(Cg *cg, Val cond) {
    If f = {0};
    LLVMBasicBlockRef then = cg_block(cg, "then");
    f.otherwise = cg_block(cg, "else");
    f.end = cg_block(cg, "endif");
    LLVMBuildCondBr(cg->b, cond, then, f.otherwise);
    LLVMPositionBuilderAtEnd(cg->b, then);
    return f;
}

void cg_else(Cg *cg, If *f) {
    CHECK(!f->has_else);
    f->has_else = true;
    LLVMBuildBr(cg->b, f->end);
    LLVMMoveBasicBlockAfter(f->otherwise, LLVMGetInsertBlock(cg->b));
    LLVMPositionBuilderAtEnd(cg->b, f->otherwise);
}

void cg_end_if(Cg *cg, If *f) {
    if (!f->has_else)
        cg_else(cg, f);
    LLVMBuildBr(cg->b, f->end);
    LLVMMoveBasicBlockAfter(f->end, LLVMGetInsertBlock(cg->b));
    LLVMPositionBuilderAtEnd(cg->b, f->end);
}
