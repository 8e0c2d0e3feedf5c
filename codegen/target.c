/* The targets gdrc knows. PTX versions are the oldest that have what the target's kernels use, so
 * that drivers from CUDA 12 on take them. */
#include "codegen/codegen.h"
#include <string.h>

#define KIB 1024

const Target target_list[] = {
    {.name = "host"},
    {.name = "sm_80", .gpu = true, .features = "+ptx80", .smem_limit = 163 * KIB},
    {.name = "sm_86", .gpu = true, .features = "+ptx80", .smem_limit = 99 * KIB},
    {.name = "sm_89", .gpu = true, .features = "+ptx80", .smem_limit = 99 * KIB},
    {.name = "sm_90", .gpu = true, .features = "+ptx80", .smem_limit = 227 * KIB},
    {.name = "sm_90a", .gpu = true, .features = "+ptx88", .smem_limit = 227 * KIB,
     .wgmma = true},
};
const int target_count = sizeof target_list / sizeof target_list[0];

const Target *target_find(const char *name) {
    for (int i = 0; i < target_count; i++)
        if (strcmp(target_list[i].name, name) == 0)
            return &target_list[i];
    return NULL;
}
