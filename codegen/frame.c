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

int frame_segment(const Kernel *k, int field) {
    bool gradient = kernel_is_gradient(k);
    CHECK(field >= 0 && field < (gradient ? SEGMENT_SHARED : SEGMENT_FIELDS));
    return gradient ? frame_gradient(k, field) : frame_costate(k) + field;
}

int frame_gradient(const Kernel *k, int field) {
    CHECK(field >= 0 && field < GRAD_FIELDS);
    return frame_costate(k) + 2 + field;
}

int frame_sum(const Kernel *k, int output) {
    return frame_costate(k) + 2 + GRAD_FIELDS + 3 * output;
}

int frame_sum_heads(const Kernel *k, int output) {
    return frame_sum(k, output) + 1;
}

int frame_out_heads(const Kernel *k, int output) {
    return frame_sum(k, output) + 2;
}

int frame_fields(const Kernel *k) {
    return kernel_is_gradient(k) ? frame_sum(k, k->out.count)
                                 : frame_segment(k, 0) + SEGMENT_FIELDS;
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
