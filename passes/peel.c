/* peel: row scalars move out of matrix operands. */
#include "passes/passes.h"

void pass_peel(Kernel *k) {
    (void)k;
}
