"""Gated DeltaNet-2 on real activations, every algorithm against the fp64 reference:
real_input.py GDRC ROOT WORK DEVICE."""
import os
import subprocess
import sys

gdrc, root, work, device = sys.argv[1:]
os.makedirs(work, exist_ok=True)
spec = os.path.join(root, "specs/gdn2.gdr")
data = os.path.join(root, "tests/data/minilm_gdn2.safetensors")


def run(name, *arguments):
    out = os.path.join(work, name + ".safetensors")
    subprocess.run([gdrc, "run", spec, "--in", data, "--out", out, *arguments], check=True)
    return out


reference = run("reference", "--algo", "reference", "--dtype", "f32")
for algo in ("chunk", "recurrent"):
    result = run(algo, "--algo", algo, "--device", device)
    print(algo, flush=True)
    subprocess.run([sys.executable, os.path.join(root, "scripts/compare.py"), result, reference],
                   check=True)
