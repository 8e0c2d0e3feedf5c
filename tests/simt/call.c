/* Which handler a call has: intrinsics by name, inline assembly by how its text begins. */
#include "tests/simt/code.h"

#include <stdlib.h>

typedef struct Known {
    const char *begin;
    Run *run;
    Together *together;
    Scope scope;
    NumberKind kind; /* of what is not seen in the operands' types: packed pairs, results */
} Known;

/* Longer names stand before those they begin with. */
static const Known intrinsics[] = {
    {.begin = "llvm.nvvm.read.ptx.sreg.tid.x", .run = run_tid},
    {.begin = "llvm.nvvm.read.ptx.sreg.ctaid.x", .run = run_ctaid},
    {.begin = "llvm.nvvm.read.ptx.sreg.nctaid.x", .run = run_nctaid},
    {.begin = "llvm.smin.", .run = run_smin},
    {.begin = "llvm.smax.", .run = run_smax},
    {.begin = "llvm.umin.", .run = run_umin},
    {.begin = "llvm.umax.", .run = run_umax},
    {.begin = "llvm.usub.sat.", .run = run_usub_sat},
    {.begin = "llvm.ctpop.", .run = run_ctpop},
    {.begin = "llvm.fma.", .run = run_fma},
    {.begin = "llvm.fmuladd.", .run = run_fma},
    {.begin = "llvm.fabs.", .run = run_fabs},
    {.begin = "llvm.sqrt.", .run = run_sqrt},
    {.begin = "llvm.copysign.", .run = run_copysign},
    {.begin = "llvm.trunc.", .run = run_truncate},
    {.begin = "llvm.maxnum.", .run = run_maxnum},
    {.begin = "llvm.minnum.", .run = run_minnum},
    {.begin = "llvm.maximum.", .run = run_maximum},
    {.begin = "llvm.minimum.", .run = run_minimum},
    {.begin = "llvm.nvvm.ex2.approx.", .run = run_ex2},
    {.begin = "llvm.nvvm.rcp.approx.", .run = run_rcp},
    {.begin = "llvm.nvvm.rsqrt.approx.", .run = run_rsqrt},
    {.begin = "llvm.nvvm.sqrt.", .run = run_sqrt},
    {.begin = "llvm.nvvm.ff2bf16x2.rn", .run = run_pack, .kind = NUMBER_bf16},
    {.begin = "llvm.nvvm.ff2f16x2.rn", .run = run_pack, .kind = NUMBER_f16},
    {.begin = "llvm.nvvm.f2tf32.rna", .run = run_tf32},
    {.begin = "llvm.nvvm.cp.async.cg.shared.global.16.s", .run = run_cp_async_some},
    {.begin = "llvm.nvvm.cp.async.cg.shared.global.16", .run = run_cp_async},
    {.begin = "llvm.nvvm.discard.global.L2", .run = run_discard},
    {.begin = "llvm.nvvm.cp.async.commit.group", .run = run_cp_commit},
    {.begin = "llvm.nvvm.cp.async.wait.group", .run = run_cp_wait},
    {.begin = "llvm.nvvm.barrier.cta.sync.aligned.all",
     .together = warp_barrier,
     .scope = SCOPE_block},
    {.begin = "llvm.nvvm.bar.warp.sync", .together = warp_sync, .scope = SCOPE_warp},
    {.begin = "llvm.nvvm.shfl.sync.bfly.", .together = warp_shuffle_xor, .scope = SCOPE_warp},
    {.begin = "llvm.nvvm.shfl.sync.idx.", .together = warp_shuffle_from, .scope = SCOPE_warp},
    {.begin = "llvm.nvvm.vote.ballot.sync", .together = warp_ballot, .scope = SCOPE_warp},
    {.begin = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.trans.b16",
     .together = warp_ldmatrix_trans,
     .scope = SCOPE_warp},
    {.begin = "llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4.b16",
     .together = warp_ldmatrix,
     .scope = SCOPE_warp},
    {.begin = "llvm.nvvm.mma.m16n8k16.row.col.bf16",
     .together = warp_mma,
     .scope = SCOPE_warp,
     .kind = NUMBER_bf16},
    {.begin = "llvm.nvvm.mma.m16n8k16.row.col.f32.f32",
     .together = warp_mma,
     .scope = SCOPE_warp,
     .kind = NUMBER_f16},
    {.begin = "llvm.nvvm.mma.m16n8k8.row.col.tf32", .together = warp_mma_tf32, .scope = SCOPE_warp},
};

static const Known assembly[] = {
    {.begin = "movmatrix.sync.aligned.m8n8.trans.b16 ",
     .together = warp_movmatrix,
     .scope = SCOPE_warp},
    {.begin = "ld.global.", .run = run_load},
    {.begin = "st.global.cs.v4.b32 [$4], {$0, $1, $2, $3};", .run = run_store_words},
    {.begin = "{\n.reg .b64 d;\nwgmma.fence.sync.aligned;\n",
     .together = group_product,
     .scope = SCOPE_group},
    {.begin = "wgmma.wait_group.sync.aligned ", .together = group_wait, .scope = SCOPE_group},
    {.begin = "mbarrier.init.shared::cta.b64 [$0], 1;", .run = run_arrival_init},
    {.begin = "{\n.reg .pred done;\nwait_${:uid}:\nmbarrier.try_wait.parity.",
     .run = run_arrival_wait},
    {.begin = "{\n.reg .b64 state;\n.reg .pred go;\nsetp.ne.b32 go, $4, 0;\n"
              "@go mbarrier.arrive.expect_tx.",
     .run = run_copy_bulk},
    {.begin = "{\n.reg .pred go;\nsetp.ne.b32 go, $3, 0;\n"
              "@go cp.async.cg.shared.global [$0], [$1], 16, $2;",
     .run = run_cp_async_if},
    {.begin = "", .run = run_tied}, /* an empty text: only the order matters */
};

static const Known *find(const Known *table, size_t n, const char *text, size_t len) {
    for (size_t i = 0; i < n; i++) {
        size_t m = strlen(table[i].begin);
        if (m ? len >= m && strncmp(text, table[i].begin, m) == 0 : len == 0)
            return &table[i];
    }
    return NULL;
}

/* What the text says and the operands do not; false when it is not what the handler expects. */
static bool decode_text(Arena *arena, const char *text, Code *c) {
    c->space = 1;
    c->element_bytes = c->run == run_load && strstr(text, ".b16 ") ? 2 : 4;
    c->align = c->run == run_store_words ? 16 : c->element_bytes * c->lanes;
    if (c->together == group_wait)
        c->number = strtol(strrchr(text, ' '), NULL, 10);
    if (c->together == group_product)
        return decode_product(arena, text, c);
    return (c->run != run_tied && c->together != group_wait) || c->nargs == c->lanes;
}

bool decode_call(Arena *arena, LLVMValueRef call, Code *c) {
    LLVMValueRef f = LLVMGetCalledValue(call);
    bool assembled = LLVMIsAInlineAsm(f) != NULL;
    const Known *k;
    const char *text;
    size_t len;
    if (assembled) {
        text = LLVMGetInlineAsmAsmString(f, &len);
        k = find(assembly, sizeof assembly / sizeof assembly[0], text, len);
    } else {
        text = LLVMGetValueName2(f, &len);
        k = find(intrinsics, sizeof intrinsics / sizeof intrinsics[0], text, len);
    }
    if (!k)
        return false;
    c->run = k->run;
    c->together = k->together;
    c->scope = k->scope;
    if (k->kind) {
        c->kind = k->kind;
        c->number = (int64_t)k->kind;
    }
    return !assembled || decode_text(arena, text, c);
}
