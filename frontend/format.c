#include "frontend/frontend.h"
void spec_format(const SpecFile *f, Buf *out) { (void)f; (void)out; }
