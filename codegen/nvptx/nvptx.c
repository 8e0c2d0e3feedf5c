/* One machine instruction, one function: what the NVIDIA kernels are made of.
 *
 * Everything works from sm_80 on. Instructions that move data between the lanes of a warp, or wait
 * for them, are convergent: LLVM must not make them depend on more or less control flow than the
 * source has. Intrinsics carry that property; inline assembly gets it at the call.
 */
#include "codegen/nvptx/nvptx.h"

#include <stdio.h>
#include <string.h>

/* kernels -------------------------------------------------------------------------------------- */

static void add_enum_attribute(Cg *cg, LLVMAttributeIndex at, const char *name, uint64_t x) {
    unsigned id = LLVMGetEnumAttributeKindForName(name, strlen(name));
    CHECK(id != 0);
    LLVMAddAttributeAtIndex(cg->fn, at, LLVMCreateEnumAttribute(cg->ctx, id, x));
}

static void add_text_attribute(Cg *cg, LLVMAttributeIndex at, const char *name, const char *text) {
    LLVMAttributeRef a = LLVMCreateStringAttribute(cg->ctx, name, (unsigned)strlen(name), text,
                                                   (unsigned)strlen(text));
    LLVMAddAttributeAtIndex(cg->fn, at, a);
}

static void add_number_attribute(Cg *cg, const char *name, int x) {
    char text[16];
    snprintf(text, sizeof text, "%d", x);
    add_text_attribute(cg, LLVMAttributeFunctionIndex, name, text);
}

/* The frame is passed by value in constant parameter space and never copied to local memory. */
void nv_kernel_open(Cg *cg, const char *symbol, int threads, int min_blocks_per_sm) {
    Ty param = cg->ptr;
    cg->fn = LLVMAddFunction(cg->mod, symbol, LLVMFunctionType(cg->voidt, &param, 1, 0));
    LLVMSetFunctionCallConv(cg->fn, LLVMPTXKernelCallConv);

    Ty record = LLVMArrayType2(cg->i64, (uint64_t)frame_fields(cg->k));
    unsigned byval = LLVMGetEnumAttributeKindForName("byval", 5);
    LLVMAddAttributeAtIndex(cg->fn, 1, LLVMCreateTypeAttribute(cg->ctx, byval, record));
    add_enum_attribute(cg, 1, "align", 8);
    add_enum_attribute(cg, 1, "noundef", 0);
    add_text_attribute(cg, 1, "nvvm.grid_constant", "");
    add_enum_attribute(cg, LLVMAttributeFunctionIndex, "nounwind", 0);
    add_number_attribute(cg, "nvvm.reqntid", threads);
    if (min_blocks_per_sm > 0)
        add_number_attribute(cg, "nvvm.minctasm", min_blocks_per_sm);

    cg->frame = LLVMGetParam(cg->fn, 0);
    LLVMPositionBuilderAtEnd(cg->b, LLVMAppendBasicBlockInContext(cg->ctx, cg->fn, "entry"));
}

void nv_kernel_close(Cg *cg) {
    LLVMBuildRetVoid(cg->b);
}

/* threads -------------------------------------------------------------------------------------- */

Val nv_tid(Cg *cg) {
    return cg->tid ? cg->tid : cg_intrinsic(cg, "llvm.nvvm.read.ptx.sreg.tid.x", NULL, 0, NULL, 0);
}

Val nv_block(Cg *cg) {
    return cg_intrinsic(cg, "llvm.nvvm.read.ptx.sreg.ctaid.x", NULL, 0, NULL, 0);
}

Val nv_anew(Cg *cg, Val x) {
    Ty t = LLVMTypeOf(x);
    return cg_asm(cg, t, "", t == cg->i64 ? "=l,0" : "=r,0", true, &x, 1);
}

void nv_barrier(Cg *cg) {
    Val id = cg_int(cg, 0);
    cg_intrinsic(cg, "llvm.nvvm.barrier.cta.sync.aligned.all", NULL, 0, &id, 1);
}

static Val all_lanes(Cg *cg) {
    return cg_int(cg, -1);
}

void nv_warp_sync(Cg *cg) {
    Val mask = all_lanes(cg);
    cg_intrinsic(cg, "llvm.nvvm.bar.warp.sync", NULL, 0, &mask, 1);
}

static Val shuffle(Cg *cg, const char *name_f32, const char *name_i32, Val x, Val lane, int kept) {
    bool is_float = LLVMTypeOf(x) == cg->f32;
    CHECK(is_float || LLVMTypeOf(x) == cg->i32);
    Val arg[4] = {all_lanes(cg), x, lane, cg_int(cg, kept << 8 | 31)};
    return cg_intrinsic(cg, is_float ? name_f32 : name_i32, NULL, 0, arg, 4);
}

Val nv_shuffle_xor(Cg *cg, Val x, int lane_mask) {
    return shuffle(cg, "llvm.nvvm.shfl.sync.bfly.f32", "llvm.nvvm.shfl.sync.bfly.i32", x,
                   cg_int(cg, lane_mask), 0);
}

Val nv_shuffle_from(Cg *cg, Val x, Val lane) {
    return shuffle(cg, "llvm.nvvm.shfl.sync.idx.f32", "llvm.nvvm.shfl.sync.idx.i32", x, lane, 0);
}

Val nv_shuffle_beside(Cg *cg, Val x, int lane, int kept) {
    return shuffle(cg, "llvm.nvvm.shfl.sync.idx.f32", "llvm.nvvm.shfl.sync.idx.i32", x,
                   cg_int(cg, lane), kept);
}

Val nv_ballot(Cg *cg, Val condition) {
    Val arg[2] = {all_lanes(cg), condition};
    return cg_intrinsic(cg, "llvm.nvvm.vote.ballot.sync", NULL, 0, arg, 2);
}

/* memory --------------------------------------------------------------------------------------- */

/* One symbol for all kernels of a module: each launch sizes its own. */
Val nv_shared(Cg *cg, int64_t byte_offset) {
    Val base = LLVMGetNamedGlobal(cg->mod, "shared");
    if (!base) {
        base = LLVMAddGlobalInAddressSpace(cg->mod, LLVMArrayType2(cg->i8, 0), "shared", 3);
        LLVMSetLinkage(base, LLVMExternalLinkage);
        LLVMSetAlignment(base, 1024);
    }
    return byte_offset ? cg_gep8(cg, base, cg_int(cg, byte_offset)) : base;
}

Val nv_global(Cg *cg, int frame_field) {
    return LLVMBuildIntToPtr(cg->b, cg_frame_field(cg, frame_field), cg->ptr_global, "");
}

void nv_copy_async(Cg *cg, Val dst, Val src, Val bytes) {
    Val arg[3] = {dst, src, bytes};
    if (LLVMIsAConstantInt(bytes) && LLVMConstIntGetZExtValue(bytes) == 16)
        cg_intrinsic(cg, "llvm.nvvm.cp.async.cg.shared.global.16", NULL, 0, arg, 2);
    else
        cg_intrinsic(cg, "llvm.nvvm.cp.async.cg.shared.global.16.s", NULL, 0, arg, 3);
}

void nv_discard_line(Cg *cg, Val p) {
    Val arg[2] = {p, cg_int64(cg, 128)};
    cg_intrinsic(cg, "llvm.nvvm.discard.global.L2", NULL, 0, arg, 2);
}

void nv_copy_commit(Cg *cg) {
    cg_intrinsic(cg, "llvm.nvvm.cp.async.commit.group", NULL, 0, NULL, 0);
}

void nv_copy_wait(Cg *cg, int groups_in_flight) {
    Val n = cg_int(cg, groups_in_flight);
    cg_intrinsic(cg, "llvm.nvvm.cp.async.wait.group", NULL, 0, &n, 1);
}

/* matrices ------------------------------------------------------------------------------------- */

void nv_ldmatrix4(Cg *cg, Val p, bool trans, Val out[4]) {
    const char *name = trans ? "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16"
                             : "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16";
    Ty overload = cg->ptr_shared;
    Val r = cg_intrinsic(cg, name, &overload, 1, &p, 1);
    for (int j = 0; j < 4; j++)
        out[j] = LLVMBuildExtractValue(cg->b, r, (unsigned)j, "");
}

static void make_convergent(Cg *cg, Val call) {
    unsigned id = LLVMGetEnumAttributeKindForName("convergent", 10);
    LLVMAddCallSiteAttribute(call, LLVMAttributeFunctionIndex,
                             LLVMCreateEnumAttribute(cg->ctx, id, 0));
}

/* Whole-warp register transpose; pure, so it may move, but not into or out of divergent code. */
Val nv_movmatrix(Cg *cg, Val x) {
    Val call = cg_asm(cg, cg->i32, "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "=r,r", false,
                      &x, 1);
    make_convergent(cg, call);
    return call;
}

static void mma(Cg *cg, const char *name, Val acc[4], Val *operand, int noperands) {
    for (int i = 0; i < 4; i++)
        operand[noperands + i] = acc[i];
    Val r = cg_intrinsic(cg, name, NULL, 0, operand, noperands + 4);
    for (int i = 0; i < 4; i++)
        acc[i] = LLVMBuildExtractValue(cg->b, r, (unsigned)i, "");
}

void nv_mma(Cg *cg, Elem e, Val acc[4], const Val a[4], const Val b[2]) {
    CHECK(e == ELEM_bf16 || e == ELEM_f16);
    Val operand[10] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    if (e == ELEM_bf16) {
        mma(cg, "llvm.nvvm.mma.m16n8k16.row.col.bf16", acc, operand, 6);
        return;
    }
    Ty pair = LLVMVectorType(cg->f16, 2);
    for (int i = 0; i < 6; i++)
        operand[i] = LLVMBuildBitCast(cg->b, operand[i], pair, "");
    mma(cg, "llvm.nvvm.mma.m16n8k16.row.col.f32.f32", acc, operand, 6);
}

void nv_mma_tf32(Cg *cg, Val acc[4], const Val a[4], const Val b[2]) {
    Val operand[10] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    mma(cg, "llvm.nvvm.mma.m16n8k8.row.col.tf32", acc, operand, 6);
}

Val nv_tf32(Cg *cg, Val f32) {
    return cg_intrinsic(cg, "llvm.nvvm.f2tf32.rna", NULL, 0, &f32, 1);
}

/* pairs of 2-byte elements --------------------------------------------------------------------- */

Val nv_pack(Cg *cg, Elem e, Val lo, Val hi) {
    CHECK(e == ELEM_bf16 || e == ELEM_f16);
    Val arg[2] = {hi, lo};
    const char *name = e == ELEM_bf16 ? "llvm.nvvm.ff2bf16x2.rn" : "llvm.nvvm.ff2f16x2.rn";
    return LLVMBuildBitCast(cg->b, cg_intrinsic(cg, name, NULL, 0, arg, 2), cg->i32, "");
}

/* A bf16 is the upper half of the f32 it stands for. */
void nv_unpack(Cg *cg, Elem e, Val pair, Val out[2]) {
    CHECK(e == ELEM_bf16 || e == ELEM_f16);
    if (e == ELEM_bf16) {
        Val upper = cg_and(cg, pair, cg_int(cg, -65536));
        out[0] = LLVMBuildBitCast(cg->b, cg_shl(cg, pair, 16), cg->f32, "");
        out[1] = LLVMBuildBitCast(cg->b, upper, cg->f32, "");
        return;
    }
    Val halves = LLVMBuildBitCast(cg->b, pair, LLVMVectorType(cg->f16, 2), "");
    for (int i = 0; i < 2; i++) {
        Val half = LLVMBuildExtractElement(cg->b, halves, cg_int(cg, i), "");
        out[i] = LLVMBuildFPExt(cg->b, half, cg->f32, "");
    }
}

/* powers of two -------------------------------------------------------------------------------- */

#define EXPONENT_ONE 0x00800000 /* 1 in the exponent field */

Val nv_power_below(Cg *cg, Val f32) {
    Val bits = LLVMBuildBitCast(cg->b, f32, cg->i32, "");
    bits = cg_and(cg, bits, cg_int(cg, 0x7f800000));
    Val least = cg_int(cg, EXPONENT_ONE), most = cg_int(cg, 253 * EXPONENT_ONE);
    bits = cg_select(cg, cg_cmp(cg, LLVMIntSLT, bits, least), least, bits);
    bits = cg_select(cg, cg_cmp(cg, LLVMIntSGT, bits, most), most, bits);
    return LLVMBuildBitCast(cg->b, bits, cg->f32, "");
}

Val nv_power_inverse(Cg *cg, Val power) {
    Val bits = LLVMBuildBitCast(cg->b, power, cg->i32, "");
    bits = cg_sub(cg, cg_int(cg, 254 * EXPONENT_ONE), bits);
    return LLVMBuildBitCast(cg->b, bits, cg->f32, "");
}

/* arithmetic ----------------------------------------------------------------------------------- */

Val nv_exp_decay(Cg *cg, Val x) {
    Val h = cg_fmul(cg, x, cg_float(cg, 1.4426950408889634));
    return cg_intrinsic(cg, "llvm.nvvm.ex2.approx.ftz", &cg->f32, 1, &h, 1);
}

Val nv_mul_pair(Cg *cg, Elem e, Val a, Val b) {
    Ty pair = LLVMVectorType(cg_elem_type(cg, e), 2);
    a = LLVMBuildBitCast(cg->b, a, pair, "");
    b = LLVMBuildBitCast(cg->b, b, pair, "");
    return LLVMBuildBitCast(cg->b, LLVMBuildFMul(cg->b, a, b, ""), cg->i32, "");
}

Val nv_larger(Cg *cg, Val a, Val b) {
    Val arg[2] = {a, b};
    return cg_intrinsic(cg, "llvm.maxnum", &cg->f32, 1, arg, 2);
}

Val nv_magnitude(Cg *cg, Val f32) {
    return cg_intrinsic(cg, "llvm.fabs", &cg->f32, 1, &f32, 1);
}
