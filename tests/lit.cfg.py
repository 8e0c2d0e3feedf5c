# lit's rules for the golden tests. A test is a .gdr, .gir or .test file with RUN lines:
#
#     # RUN: %gdrc explain %s | FileCheck %s
#
#   %gdrc       the command               %specs   the folder of specs
#   FileCheck   LLVM 22's                 %data    tests/data
#   %gir        runs passes on IR text (tests/tools/gir.c)
#   not         turns the exit status     %python  the interpreter
#   split-file  sections of one file      %ptxas   the PTX assembler (REQUIRES: ptxas)
#
# Features: ptxas; gpu (an NVIDIA driver answers); host-x86_64 or host-aarch64; asan.
# Each test runs in its own temporary folder: %t names a file there.
import os
import platform
import subprocess

import lit.formats

config.name = "gdrc"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".gdr", ".gir", ".test"]
config.excludes = ["Inputs", "data", "fuzz", "gpu", "prop", "unit", "tree"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = os.path.join(config.gdr_build, "tests")

config.substitutions += [
    ("%gdrc", config.gdrc),
    ("%gir", config.gir),
    ("%specs", os.path.join(config.gdr_source, "specs")),
    ("%data", os.path.join(config.test_source_root, "data")),
    ("%python", config.python),
    ("%ptxas", config.ptxas or "ptxas"),
    (r"\bFileCheck(-22)?\b", config.filecheck),
    (r"(?<![-\w])not(-22)?(?=\s)", config.lit_not),
    (r"\bsplit-file(-22)?\b", config.split_file),
]

# Nothing is read from or written to the user's cache.
config.environment["GDR_CACHE_DIR"] = os.path.join(config.test_exec_root, "cache")
for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "CUDA_VISIBLE_DEVICES"):
    if name in os.environ:
        config.environment[name] = os.environ[name]

if config.ptxas and not config.ptxas.endswith("-NOTFOUND"):
    config.available_features.add("ptxas")
config.available_features.add("host-" + platform.machine())
if config.sanitize:
    config.available_features.add("asan")


def gpu_answers():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if gpu_answers():
    config.available_features.add("gpu")
