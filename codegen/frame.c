/* The launch ABI: where each field of a frame is, and how chunks map to workspace slots. */
#include "codegen/codegen.h"

int frame_in_ptr(const Kernel *k, int input) {
    CHECK(input >= 0 && input < k->in.count);
    return FRAME_PORTS + 2 * input;
}

int frame_in_heads(const Kernel *k, int input) {
    return frame_in_ptr(k, input) + 1;
}

int frame_out_ptr(const Kernel *k, int output) {
    CHECK(output >= 0 && output < k->out.count);
    return FRAME_PORTS + 2 * k->in.count + output;
}

int frame_costate(const Kernel *k) {
    return FRAME_PORTS + 2 * k->in.count + k->out.count;
}

int frame_fields(const Kernel *k) {
    return frame_costate(k) + (kernel_is_gradient(k) ? 2 : 0);
}

int64_t frame_slots(int64_t T, int64_t N, bool packed, int64_t C) {
    return packed ? T / C + N : N * ((T + C - 1) / C);
}

/* Elementwise values have no role: both sides compute them from the inputs as they need them. */
bool frame_factor_reads(const Kernel *tile, int input) {
    bool *needed = NEW_ARRAY(tile->arena, bool, tile->inst.count + 1);
    for (int v = 0; v < tile->inst.count; v++)
        if (inst_at(tile, v)->role == ROLE_factor)
            value_mark(tile, v, needed);
    for (int v = 0; v < tile->inst.count; v++) {
        const Inst *i = inst_at(tile, v);
        if (needed[v] && i->op == OP_in && i->index == input)
            return true;
    }
    return false;
}
