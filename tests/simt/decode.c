/* From an LLVM function to code: every value gets its registers when it is first met, every
 * instruction that does something becomes one Code, in the order of the basic blocks. */
#include "tests/simt/code.h"

#include <llvm-c/Target.h>
#include <stdio.h>

typedef struct Decoder {
    Simt *s;
    Arena *arena;
    LLVMTargetDataRef layout;
    LLVMBasicBlockRef *block;
    int *start; /* of each block: its first code */
    int blocks;
    LLVMValueRef *key; /* open addressing: value -> first register */
    int *slot, used, size;
    jmp_buf failed;
    const char *why;
} Decoder;

/* errors --------------------------------------------------------------------------------------- */

_Noreturn static void refuse(Decoder *d, const char *what, LLVMValueRef v) {
    Buf b;
    buf_init(&b, d->arena);
    char *text = LLVMPrintValueToString(v);
    buf_printf(&b, "%s: %s", what, text);
    LLVMDisposeMessage(text);
    d->why = b.text;
    longjmp(d->failed, 1);
}

/* types ---------------------------------------------------------------------------------------- */

static int lanes_of(LLVMTypeRef t) {
    int n = 0;
    switch (LLVMGetTypeKind(t)) {
    case LLVMVoidTypeKind: return 0;
    case LLVMVectorTypeKind: return (int)LLVMGetVectorSize(t);
    case LLVMStructTypeKind:
        for (unsigned i = 0; i < LLVMCountStructElementTypes(t); i++)
            n += lanes_of(LLVMStructGetTypeAtIndex(t, i));
        return n;
    default: return 1;
    }
}

static LLVMTypeRef element_of(LLVMTypeRef t) {
    switch (LLVMGetTypeKind(t)) {
    case LLVMVectorTypeKind: return LLVMGetElementType(t);
    case LLVMStructTypeKind: return element_of(LLVMStructGetTypeAtIndex(t, 0));
    default: return t;
    }
}

static int bits_of(LLVMTypeRef t) {
    LLVMTypeRef e = element_of(t);
    switch (LLVMGetTypeKind(e)) {
    case LLVMIntegerTypeKind: return (int)LLVMGetIntTypeWidth(e);
    case LLVMHalfTypeKind:
    case LLVMBFloatTypeKind: return 16;
    case LLVMFloatTypeKind: return 32;
    case LLVMPointerTypeKind: return 64;
    default: return 0; /* what is not interpreted; instructions refuse it */
    }
}

static NumberKind kind_of(LLVMTypeRef t) {
    switch (LLVMGetTypeKind(element_of(t))) {
    case LLVMHalfTypeKind: return NUMBER_f16;
    case LLVMBFloatTypeKind: return NUMBER_bf16;
    case LLVMFloatTypeKind: return NUMBER_f32;
    default: return NUMBER_int;
    }
}

/* getelementptr: bytes known now, and what indices count, for instructions and constants alike. */
static int64_t known_offset(Decoder *d, LLVMValueRef gep, int64_t *scale) {
    LLVMTypeRef t = LLVMGetGEPSourceElementType(gep);
    int64_t bytes = 0;
    for (int i = 1; i < LLVMGetNumOperands(gep); i++) {
        LLVMValueRef index = LLVMGetOperand(gep, (unsigned)i);
        bool field = i > 1 && LLVMGetTypeKind(t) == LLVMStructTypeKind;
        int64_t unit = 0;
        if (field) {
            unsigned n = (unsigned)LLVMConstIntGetZExtValue(index);
            bytes += (int64_t)LLVMOffsetOfElement(d->layout, t, n);
            t = LLVMStructGetTypeAtIndex(t, n);
        } else {
            t = i > 1 ? LLVMGetElementType(t) : t;
            unit = (int64_t)LLVMABISizeOfType(d->layout, t);
            if (LLVMIsAConstantInt(index)) {
                bytes += LLVMConstIntGetSExtValue(index) * unit;
                unit = 0;
            }
        }
        scale[2 * i] = unit;
        scale[2 * i + 1] = bits_of(LLVMTypeOf(index));
    }
    return bytes;
}

/* constants ------------------------------------------------------------------------------------ */

/* Zeros are all that kernels keep in global memory; shared memory is where SHARED_BASE says. */
static uint64_t address_of_global(Decoder *d, LLVMValueRef v) {
    LLVMTypeRef t = LLVMGlobalGetValueType(v);
    if (LLVMGetPointerAddressSpace(LLVMTypeOf(v)) == 3)
        return SHARED_BASE;
    LLVMValueRef content = LLVMGetInitializer(v);
    if (!content || !LLVMIsNull(content))
        refuse(d, "a global that is not zero", v);
    size_t size = (size_t)LLVMABISizeOfType(d->layout, t);
    void *p = arena_alloc(d->arena, size);
    simt_memory(d->s, p, size, false);
    return (uint64_t)(uintptr_t)p;
}

static uint64_t constant_bits(Decoder *d, LLVMValueRef v);

static uint64_t expression_bits(Decoder *d, LLVMValueRef v) {
    LLVMValueRef first = LLVMGetOperand(v, 0);
    int64_t scale[16];
    switch (LLVMGetConstOpcode(v)) {
    case LLVMGetElementPtr:
        if (LLVMGetNumOperands(v) <= 8)
            return constant_bits(d, first) + (uint64_t)known_offset(d, v, scale);
        break;
    case LLVMPtrToInt:
    case LLVMIntToPtr:
    case LLVMAddrSpaceCast: return constant_bits(d, first) & mask_of_bits(bits_of(LLVMTypeOf(v)));
    default: break;
    }
    refuse(d, "a constant expression", v);
}

static uint64_t constant_bits(Decoder *d, LLVMValueRef v) {
    LLVMTypeRef t = LLVMTypeOf(v);
    LLVMBool loses;
    if (LLVMIsUndef(v))
        return mask_of_bits(bits_of(t)); /* a NaN, if it is a float */
    if (LLVMIsNull(v))
        return 0;
    if (LLVMIsAConstantInt(v))
        return LLVMConstIntGetZExtValue(v);
    if (LLVMIsAConstantFP(v) && kind_of(t) != NUMBER_int)
        return number_put(kind_of(t), (float)LLVMConstRealGetDouble(v, &loses));
    if (LLVMIsAGlobalVariable(v))
        return address_of_global(d, v);
    if (LLVMIsAConstantExpr(v))
        return expression_bits(d, v);
    refuse(d, "a constant", v);
}

static void set_constant(Simt *s, int slot, uint64_t x) {
    VEC_PUSH(s->arena, &s->constant, slot);
    VEC_PUSH(s->arena, &s->constant_value, x);
}

static void write_constant(Decoder *d, LLVMValueRef v, int slot) {
    LLVMTypeRef t = LLVMTypeOf(v);
    if (LLVMGetTypeKind(t) != LLVMVectorTypeKind && LLVMGetTypeKind(t) != LLVMStructTypeKind) {
        set_constant(d->s, slot, constant_bits(d, v));
        return;
    }
    int n = LLVMGetTypeKind(t) == LLVMVectorTypeKind ? lanes_of(t)
                                                     : (int)LLVMCountStructElementTypes(t);
    for (int i = 0; i < n; i++) {
        LLVMValueRef e = LLVMGetAggregateElement(v, (unsigned)i);
        write_constant(d, e, slot);
        slot += lanes_of(LLVMTypeOf(e));
    }
}

/* registers ------------------------------------------------------------------------------------ */

static int place_of(const Decoder *d, LLVMValueRef v) {
    int i = (int)(((uintptr_t)v >> 4) * 2654435761u % (unsigned)d->size);
    while (d->key[i] && d->key[i] != v)
        i = (i + 1) % d->size;
    return i;
}

static void remember(Decoder *d, LLVMValueRef v, int slot) {
    if (2 * d->used >= d->size) {
        LLVMValueRef *key = d->key;
        int *old = d->slot, n = d->size;
        d->size = 2 * n;
        d->key = NEW_ARRAY(d->arena, LLVMValueRef, d->size);
        d->slot = NEW_ARRAY(d->arena, int, d->size);
        for (int i = 0; i < n; i++)
            if (key[i]) {
                int at = place_of(d, key[i]);
                d->key[at] = key[i];
                d->slot[at] = old[i];
            }
    }
    int at = place_of(d, v);
    d->key[at] = v;
    d->slot[at] = slot;
    d->used++;
}

static bool same_layout(LLVMValueRef v, LLVMValueRef from) {
    LLVMTypeRef t = LLVMTypeOf(v), f = LLVMTypeOf(from);
    return lanes_of(t) == lanes_of(f) && bits_of(t) == bits_of(f);
}

/* Registers of an operand that v is, or -1. An extraction's are the operand's, moved by *offset. */
static LLVMValueRef alias_of(LLVMValueRef v, int *offset) {
    *offset = 0;
    if (!LLVMIsAInstruction(v) || !LLVMGetNumOperands(v))
        return NULL;
    LLVMValueRef from = LLVMGetOperand(v, 0);
    LLVMTypeRef t = LLVMTypeOf(from);
    switch (LLVMGetInstructionOpcode(v)) {
    case LLVMZExt:
    case LLVMFreeze:
    case LLVMAddrSpaceCast: return from;
    case LLVMBitCast:
    case LLVMIntToPtr:
    case LLVMPtrToInt: return same_layout(v, from) ? from : NULL;
    case LLVMExtractElement:
        if (!LLVMIsAConstantInt(LLVMGetOperand(v, 1)))
            return NULL;
        *offset = (int)LLVMConstIntGetZExtValue(LLVMGetOperand(v, 1));
        return from;
    case LLVMExtractValue:
        if (LLVMGetNumIndices(v) != 1)
            return NULL;
        for (unsigned i = 0; i < *LLVMGetIndices(v); i++)
            *offset += lanes_of(LLVMStructGetTypeAtIndex(t, i));
        return from;
    default: return NULL;
    }
}

static int slot_of(Decoder *d, LLVMValueRef v) {
    int at = place_of(d, v), offset;
    if (d->key[at])
        return d->slot[at];
    LLVMValueRef from = alias_of(v, &offset);
    int slot = from ? slot_of(d, from) + offset : d->s->registers;
    if (!from)
        d->s->registers += lanes_of(LLVMTypeOf(v));
    remember(d, v, slot);
    if (LLVMIsAConstant(v))
        write_constant(d, v, slot);
    return slot;
}

/* branches ------------------------------------------------------------------------------------- */

static int number_of(const Decoder *d, LLVMBasicBlockRef b) {
    int i = 0;
    while (d->block[i] != b)
        i++;
    return i;
}

static LLVMValueRef incoming(LLVMValueRef phi, LLVMBasicBlockRef from) {
    unsigned i = 0;
    while (LLVMGetIncomingBlock(phi, i) != from)
        i++;
    return LLVMGetIncomingValue(phi, i);
}

static void make_edge(Decoder *d, Edge *e, LLVMBasicBlockRef from, LLVMBasicBlockRef to) {
    VEC(int) dst = {0}, src = {0};
    for (LLVMValueRef i = LLVMGetFirstInstruction(to); i && LLVMIsAPHINode(i);
         i = LLVMGetNextInstruction(i)) {
        int a = slot_of(d, i), b = slot_of(d, incoming(i, from));
        for (int j = 0; j < lanes_of(LLVMTypeOf(i)); j++) {
            VEC_PUSH(d->arena, &dst, a + j);
            VEC_PUSH(d->arena, &src, b + j);
        }
    }
    *e = (Edge){.block = number_of(d, to), .count = dst.count, .dst = dst.at, .src = src.at};
    if (dst.count > d->s->phis_max)
        d->s->phis_max = dst.count;
}

static void decode_branch(Decoder *d, LLVMValueRef v, Code *c) {
    int n = (int)LLVMGetNumSuccessors(v);
    c->edge = NEW_ARRAY(d->arena, Edge, n);
    for (int i = 0; i < n; i++)
        make_edge(d, &c->edge[i], LLVMGetInstructionParent(v), LLVMGetSuccessor(v, (unsigned)i));
    c->run = n == 2 ? run_condbr : run_br;
}

/* instructions --------------------------------------------------------------------------------- */

static const struct {
    LLVMOpcode opcode;
    Run *run;
} plain[] = {
    {LLVMAdd, run_add},
    {LLVMSub, run_sub},
    {LLVMMul, run_mul},
    {LLVMUDiv, run_udiv},
    {LLVMURem, run_urem},
    {LLVMSDiv, run_sdiv},
    {LLVMSRem, run_srem},
    {LLVMAnd, run_and},
    {LLVMOr, run_or},
    {LLVMXor, run_xor},
    {LLVMShl, run_shl},
    {LLVMLShr, run_lshr},
    {LLVMAShr, run_ashr},
    {LLVMFAdd, run_fadd},
    {LLVMFSub, run_fsub},
    {LLVMFMul, run_fmul},
    {LLVMFDiv, run_fdiv},
    {LLVMFNeg, run_fneg},
    {LLVMTrunc, run_trunc},
    {LLVMSExt, run_sext},
    {LLVMPtrToInt, run_trunc},
    {LLVMICmp, run_icmp},
    {LLVMFCmp, run_fcmp},
    {LLVMSelect, run_select},
    {LLVMBitCast, run_bitcast},
    {LLVMFPExt, run_fconvert},
    {LLVMFPTrunc, run_fconvert},
    {LLVMSIToFP, run_sitofp},
    {LLVMUIToFP, run_uitofp},
    {LLVMFPToSI, run_fptosi},
    {LLVMFPToUI, run_fptoui},
    {LLVMInsertElement, run_insert},
    {LLVMInsertValue, run_insert},
    {LLVMShuffleVector, run_shuffle},
    {LLVMExtractElement, run_extract},
    {LLVMGetElementPtr, run_gep},
    {LLVMLoad, run_load},
    {LLVMStore, run_store},
    {LLVMRet, run_ret},
    {LLVMIntToPtr, run_copy},
};

static void decode_access(Decoder *d, LLVMValueRef v, Code *c, LLVMValueRef p, LLVMTypeRef t) {
    c->space = (int)LLVMGetPointerAddressSpace(LLVMTypeOf(p));
    c->align = (int)LLVMGetAlignment(v);
    c->element_bytes = bits_of(t) / 8;
    c->number = lanes_of(t);
    if (c->element_bytes * lanes_of(t) != (int)LLVMStoreSizeOfType(d->layout, t))
        refuse(d, "a type in memory", v);
}

static void decode_shuffle(Decoder *d, LLVMValueRef v, Code *c) {
    int64_t *table = NEW_ARRAY(d->arena, int64_t, c->lanes);
    for (int i = 0; i < c->lanes; i++) {
        int m = LLVMGetMaskValue(v, (unsigned)i);
        table[i] = m == LLVMGetUndefMaskElem() ? -1 : m;
    }
    c->table = table;
    c->number = lanes_of(LLVMTypeOf(LLVMGetOperand(v, 0)));
}

static void decode_insert(Decoder *d, LLVMValueRef v, Code *c) {
    c->predicate = lanes_of(LLVMTypeOf(LLVMGetOperand(v, 1)));
    if (LLVMGetInstructionOpcode(v) == LLVMInsertElement) {
        LLVMValueRef at = LLVMGetOperand(v, 2);
        c->number = LLVMIsAConstantInt(at) ? (int64_t)LLVMConstIntGetZExtValue(at) : -1;
        return;
    }
    if (LLVMGetNumIndices(v) != 1)
        refuse(d, "an insertion", v);
    for (unsigned i = 0; i < *LLVMGetIndices(v); i++)
        c->number += lanes_of(LLVMStructGetTypeAtIndex(LLVMTypeOf(v), i));
}

/* What of an instruction is neither operands nor types. */
static void decode_rest(Decoder *d, LLVMValueRef v, Code *c) {
    LLVMTypeRef first = c->nargs ? LLVMTypeOf(LLVMGetOperand(v, 0)) : NULL;
    int64_t *table;
    switch (LLVMGetInstructionOpcode(v)) {
    case LLVMICmp: c->predicate = (int)LLVMGetICmpPredicate(v); break;
    case LLVMFCmp: c->predicate = (int)LLVMGetFCmpPredicate(v); break;
    case LLVMSelect:
    case LLVMBitCast:
    case LLVMExtractElement: c->number = lanes_of(first); break;
    case LLVMFPExt:
    case LLVMFPTrunc:
    case LLVMSIToFP:
    case LLVMUIToFP: c->number = (int64_t)kind_of(LLVMTypeOf(v)); break;
    case LLVMInsertElement:
    case LLVMInsertValue: decode_insert(d, v, c); break;
    case LLVMShuffleVector: decode_shuffle(d, v, c); break;
    case LLVMGetElementPtr:
        table = NEW_ARRAY(d->arena, int64_t, 2 * c->nargs);
        c->number = known_offset(d, v, table);
        c->table = table;
        break;
    case LLVMLoad: decode_access(d, v, c, LLVMGetOperand(v, 0), LLVMTypeOf(v)); break;
    case LLVMStore: decode_access(d, v, c, LLVMGetOperand(v, 1), first); break;
    default: break;
    }
}

static void decode_types(Decoder *d, LLVMValueRef v, Code *c, int nargs) {
    LLVMTypeRef t = LLVMTypeOf(v);
    c->from = v;
    c->lanes = lanes_of(t);
    c->bits = c->lanes ? bits_of(t) : 0;
    c->mask = mask_of_bits(c->bits);
    c->dst = c->lanes ? slot_of(d, v) : 0;
    c->nargs = nargs;
    if (c->lanes && !c->bits)
        refuse(d, "a type", v);
    if (nargs) {
        LLVMTypeRef first = LLVMTypeOf(LLVMGetOperand(v, 0));
        if (LLVMGetTypeKind(first) != LLVMLabelTypeKind) {
            c->kind = kind_of(first);
            c->from_bits = bits_of(first);
        }
    }
    int *arg = NEW_ARRAY(d->arena, int, nargs + 1);
    for (int i = 0; i < nargs; i++)
        arg[i] = slot_of(d, LLVMGetOperand(v, (unsigned)i));
    c->arg = arg;
}

static void decode_one(Decoder *d, LLVMValueRef v) {
    int offset;
    LLVMOpcode opcode = LLVMGetInstructionOpcode(v);
    if (opcode == LLVMPHI || alias_of(v, &offset))
        return;
    Code c = {.hit = 0};
    bool call = opcode == LLVMCall, branch = opcode == LLVMBr;
    int conditions = branch ? (int)LLVMIsConditional(v) : 0;
    decode_types(d, v, &c,
                 call     ? (int)LLVMGetNumArgOperands(v)
                 : branch ? conditions
                          : LLVMGetNumOperands(v));
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++)
        if (plain[i].opcode == opcode)
            c.run = plain[i].run;
    if (branch)
        decode_branch(d, v, &c);
    else if (call ? !decode_call(d->arena, v, &c) : !c.run)
        refuse(d, "not interpreted", v);
    if (!call)
        decode_rest(d, v, &c);
    VEC_PUSH(d->arena, &d->s->code, c);
}

static void decode_function(Decoder *d, LLVMValueRef f) {
    d->blocks = (int)LLVMCountBasicBlocks(f);
    d->block = NEW_ARRAY(d->arena, LLVMBasicBlockRef, d->blocks);
    d->start = NEW_ARRAY(d->arena, int, d->blocks);
    LLVMGetBasicBlocks(f, d->block);
    d->s->frame_register = slot_of(d, LLVMGetParam(f, 0));
    for (int b = 0; b < d->blocks; b++) {
        d->start[b] = d->s->code.count;
        for (LLVMValueRef i = LLVMGetFirstInstruction(d->block[b]); i;
             i = LLVMGetNextInstruction(i))
            decode_one(d, i);
    }
    for (int i = 0; i < d->s->code.count; i++) {
        Code *c = &d->s->code.at[i];
        for (int e = 0; c->edge && e < (c->run == run_condbr ? 2 : 1); e++)
            c->edge[e].target = &d->s->code.at[d->start[c->edge[e].block]];
    }
}

Simt *simt_open(Arena *arena, LLVMModuleRef mod, const char *symbol, const char **why) {
    Simt *s = NEW(arena, Simt);
    *s = (Simt){.arena = arena, .symbol = symbol};
    Decoder *d = NEW(arena, Decoder);
    *d = (Decoder){.s = s, .arena = arena, .layout = LLVMGetModuleDataLayout(mod), .size = 1024};
    d->key = NEW_ARRAY(arena, LLVMValueRef, d->size);
    d->slot = NEW_ARRAY(arena, int, d->size);
    LLVMValueRef f = LLVMGetNamedFunction(mod, symbol);
    if (!f || LLVMIsDeclaration(f)) {
        *why = "no such function";
        return NULL;
    }
    if (setjmp(d->failed)) {
        *why = d->why;
        return NULL;
    }
    decode_function(d, f);
    s->own_memory = s->memory.count;
    return s;
}
