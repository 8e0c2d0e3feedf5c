/* Where the values that cross from the factor kernel to the chain kernel lie.
 *
 * Every matrix is stored on the lattice of the chunk's equations: axes R, U and C all have R rows,
 * and the row of token t of a read with place p is t*slots + p - 1 (t*slots when p = 0). Rows and
 * columns are padded to multiples of 16, the tile of the matrix instructions.
 *
 *   [R|U|C, K|V]       R x K        [K|V]      one row
 *   [R|U|C, R|U|C]     R x R        [R|U|C]    one row of R        []   one element
 */
#include "codegen/nvptx/nvptx.h"

#define TILE 16
#define VALUE_ALIGN 256

static int64_t round_up(int64_t x, int64_t unit)
{
    return (x + unit - 1) / unit * unit;
}

/* Lattice points along an axis: the time axes are all as long as R. */
static int64_t extent(const Kernel *k, int axis)
{
    bool is_time = axis == AXIS_C || axis == AXIS_R || axis == AXIS_U;
    return k->axis.at[is_time ? AXIS_R : axis].size;
}

static WsEntry place_value(const Kernel *k, int v)
{
    const Inst *i = inst_at(k, v);
    Shape s = i->shape;
    CHECK(s.rank <= 2);
    int64_t cols = s.rank > 0 ? extent(k, s.axis[s.rank - 1]) : 1;
    int64_t rows = s.rank > 1 ? round_up(extent(k, s.axis[0]), TILE) : 1;
    int64_t stride = round_up(cols, TILE);
    int64_t bytes = round_up(rows * stride * elem_size(i->elem), VALUE_ALIGN);
    return (WsEntry){.value = v, .rows = rows, .cols = cols, .stride = stride, .bytes = bytes};
}

WsLayout nv_workspace(Arena *arena, const Kernel *tile)
{
    WsLayout layout = {0};
    for (int v = 0; v < tile->inst.count; v++) {
        if (!inst_at(tile, v)->keep)
            continue;
        WsEntry e = place_value(tile, v);
        layout.bytes_per_slot_head += e.bytes;
        VEC_PUSH(arena, &layout.entry, e);
    }
    return layout;
}
