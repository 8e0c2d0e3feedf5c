/* What Hopper adds: products of a whole warpgroup (4 warps) that read one operand from shared
 * memory, bulk copies into shared memory, and the barriers that count a copy's bytes.
 *
 * wgmma runs beside the threads. Its accumulators must not be touched between issue and wait, which
 * no IR type says; so a product is one assembly statement (fence, all k-steps, commit) whose
 * accumulators are tied in and out, and so is a wait: what follows depends on the wait by data.
 *
 * Descriptor of a B operand, 64 bits, addresses and offsets in 16-byte units:
 *     0-13 start   16-29 leading offset   32-45 stride offset   49-51 0   62-63 swizzle
 * Swizzle is 1, 2, 3 for rows of 128, 64, 32 bytes, the block widths of nv_place, whose XOR is the
 * hardware's as long as the matrix begins at a multiple of 1024 bytes. Eight rows of a block are the
 * unit both layouts are made of, so the stride offset is 8 rows: row bytes / 2 units.
 *     contraction along the columns (K-major): N runs over the rows, in eights, a stride apart.
 *         A k-step of 16 columns never leaves a block: 2 units further in a row, or the next block.
 *         The leading offset is not used.
 *     contraction along the rows (N-major): N runs over the columns, block by block, a leading offset
 *         apart: rows * row bytes. A k-step is 16 rows: twice the stride offset further.
 */
#include "codegen/nvptx/factor.h"

/* products ------------------------------------------------------------------------------------- */

/* 16-byte units in a row of one block. */
static int row_units(const Wgmma *m) { return nv_block_columns(m->columns) / 8; }

static int contracted(const Wgmma *m) { return m->along_rows ? m->rows : m->columns; }

static int width(const Wgmma *m) { return m->along_rows ? m->columns : m->rows; }

Wgmma nv_wgmma_matrix(Cg *cg, Val p, int rows, int columns, bool along_rows) {
    Wgmma m = {.rows = rows, .columns = columns, .along_rows = along_rows};
    int units = row_units(&m);
    uint64_t swizzle = units == 8 ? 1 : units == 4 ? 2 : 3;
    uint64_t stride = (uint64_t)units * 8, leading = along_rows ? (uint64_t)(rows * units) : 1;
    Val start = cg_shr(cg, LLVMBuildPtrToInt(cg->b, p, cg->i32, ""), 4);
    Val rest = cg_int64(cg, (int64_t)(swizzle << 62 | stride << 32 | leading << 16));
    m.descriptor = cg_or(cg, cg_zext64(cg, start), rest);
    return m;
}

/* Units from the matrix's begin to its k-step `step`. */
static int step_offset(const Wgmma *m, int step) {
    int units = row_units(m);
    if (m->along_rows)
        return 16 * step * units;
    int unit = 2 * step;
    return unit / units * m->rows * units + unit % units;
}

static void put_list(Buf *text, int first, int count) {
    for (int i = 0; i < count; i++)
        buf_printf(text, "%s$%d", i ? "," : "{", first + i);
    buf_puts(text, "}");
}

/* "=f" for every accumulator, its operands, then the accumulators tied. */
static void put_constraints(Buf *text, int accumulators, const char *between) {
    for (int i = 0; i < accumulators; i++)
        buf_puts(text, i ? ",=f" : "=f");
    buf_puts(text, between);
    for (int i = 0; i < accumulators; i++)
        buf_printf(text, ",%d", i);
    buf_puts(text, ",~{memory}");
}

/* One statement whose `count` results replace acc[]. */
static void run_tied(Cg *cg, const Buf *text, const Buf *constraints, Val *acc, int count, Val *arg,
                     int nargs) {
    Ty type[128];
    for (int i = 0; i < count; i++)
        type[i] = cg->f32;
    memcpy(arg + nargs, acc, (size_t)count * sizeof *acc);
    Ty result = LLVMStructTypeInContext(cg->ctx, type, (unsigned)count, false);
    Val r = cg_asm(cg, result, text->text, constraints->text, true, arg, nargs + count);
    for (int i = 0; i < count; i++)
        acc[i] = LLVMBuildExtractValue(cg->b, r, (unsigned)i, "");
}

void nv_wgmma(Cg *cg, Elem e, Val *acc, const Val *a, const Wgmma *b, bool accumulate) {
    CHECK(e == ELEM_bf16 || e == ELEM_f16);
    const char *type = e == ELEM_bf16 ? "bf16" : "f16";
    int n = width(b), count = n / 2, steps = contracted(b) / 16, operands = 4 * steps;
    Val arg[256];
    CHECK(n <= 256 && count + operands + 1 <= 256);
    Buf text, constraints;
    buf_init(&text, cg->arena);
    buf_init(&constraints, cg->arena);
    buf_puts(&text, "{\n.reg .b64 d;\nwgmma.fence.sync.aligned;\n");
    for (int step = 0; step < steps; step++) {
        buf_printf(&text, "add.s64 d, $%d, %d;\n", count + operands, step_offset(b, step));
        buf_printf(&text, "wgmma.mma_async.sync.aligned.m64n%dk16.f32.%s.%s ", n, type, type);
        put_list(&text, 0, count);
        buf_puts(&text, ", ");
        put_list(&text, count + 4 * step, 4);
        buf_printf(&text, ", d, %d, 1, 1, %d;\n", accumulate || step > 0, b->along_rows);
    }
    buf_puts(&text, "wgmma.commit_group.sync.aligned;\n}");
    Buf between;
    buf_init(&between, cg->arena);
    for (int i = 0; i < operands; i++)
        buf_puts(&between, ",r");
    buf_puts(&between, ",l");
    put_constraints(&constraints, count, between.text);
    memcpy(arg, a, (size_t)operands * sizeof *a);
    arg[operands] = b->descriptor;
    for (int i = 0; !accumulate && i < count; i++)
        acc[i] = LLVMGetPoison(cg->f32);
    run_tied(cg, &text, &constraints, acc, count, arg, operands + 1);
}

void nv_wgmma_wait(Cg *cg, int groups_in_flight, Val *acc, int count) {
    Val arg[128];
    CHECK(count <= 128);
    Buf text, constraints;
    buf_init(&text, cg->arena);
    buf_init(&constraints, cg->arena);
    buf_printf(&text, "wgmma.wait_group.sync.aligned %d;", groups_in_flight);
    put_constraints(&constraints, count, "");
    run_tied(cg, &text, &constraints, acc, count, arg, 0);
}

void nv_work_out(Cg *cg, Val *x, int count) {
    Val arg[128];
    CHECK(count <= 128);
    Buf text, constraints;
    buf_init(&text, cg->arena);
    buf_init(&constraints, cg->arena);
    buf_puts(&text, "");
    put_constraints(&constraints, count, "");
    run_tied(cg, &text, &constraints, x, count, arg, 0);
}

/* copies --------------------------------------------------------------------------------------- */

static Val shared_address(Cg *cg, Val p) {
    return LLVMBuildPtrToInt(cg->b, p, cg->i32, "");
}

void nv_arrival_init(Cg *cg, Val barrier) {
    Val arg = shared_address(cg, barrier);
    cg_asm(cg, cg->voidt, "mbarrier.init.shared::cta.b64 [$0], 1;\n"
                          "fence.mbarrier_init.release.cluster;", "r,~{memory}", true, &arg, 1);
}

void nv_arrival_wait(Cg *cg, Val barrier, Val parity) {
    Val arg[2] = {shared_address(cg, barrier), parity};
    cg_asm(cg, cg->voidt,
           "{\n.reg .pred done;\nwait_${:uid}:\n"
           "mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1;\n"
           "@!done bra wait_${:uid};\n}",
           "r,r,~{memory}", true, arg, 2);
}

/* Predicated rather than branched around: the assembler loses track of products across branches. */
void nv_copy_bulk_if(Cg *cg, Val condition, Val dst, Val src, int bytes, Val barrier) {
    CHECK(bytes % 16 == 0);
    Val source = LLVMBuildPtrToInt(cg->b, src, cg->i64, "");
    Val arg[5] = {shared_address(cg, dst), source, cg_int(cg, bytes), shared_address(cg, barrier),
                  LLVMBuildZExt(cg->b, condition, cg->i32, "")};
    cg_asm(cg, cg->voidt,
           "{\n.reg .b64 state;\n.reg .pred go;\nsetp.ne.b32 go, $4, 0;\n"
           "@go mbarrier.arrive.expect_tx.shared::cta.b64 state, [$3], $2;\n"
           "@go cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
           "[$0], [$1], $2, [$3];\n}",
           "r,l,r,r,r,~{memory}", true, arg, 5);
}

void nv_copy_async_if(Cg *cg, Val condition, Val dst, Val src, Val bytes) {
    Val source = LLVMBuildPtrToInt(cg->b, src, cg->i64, "");
    Val arg[4] = {shared_address(cg, dst), source, bytes,
                  LLVMBuildZExt(cg->b, condition, cg->i32, "")};
    cg_asm(cg, cg->voidt,
           "{\n.reg .pred go;\nsetp.ne.b32 go, $3, 0;\n"
           "@go cp.async.cg.shared.global [$0], [$1], 16, $2;\n}",
           "r,l,r,r,~{memory}", true, arg, 4);
}
