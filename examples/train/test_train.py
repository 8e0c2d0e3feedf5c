#!/usr/bin/env python3
"""The layer over PyTorch, on the CPU and on the GPU if there is one: gradients of every mixer's
spec against PyTorch's own through the recurrence written out, and train.py learning something in a
few steps. What takes long, compiling kernels and training, goes on side by side. Exit status 77
without PyTorch."""
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("PyTorch is not installed")
    sys.exit(77)

import gdr
from gdr_torch import Recurrence
from model import MIXERS, Model, parameters_of

HERE = os.path.dirname(os.path.abspath(__file__))
B, T, H = 2, 70, 2  # more tokens than one chunk
# Device, type, K and V, relative error allowed.
CASES = [("cpu", torch.float32, 16, 1e-5), ("cpu", torch.bfloat16, 16, 2e-2)]
if torch.cuda.is_available():
    CASES += [("cuda", torch.float32, 64, 1e-2), ("cuda", torch.bfloat16, 64, 2e-2),
              ("cuda", torch.bfloat16, 128, 2e-2)]
failed = []


def check(name, good, detail=""):
    print(f"{name}: {'ok' if good else 'FAILED'} {detail}")
    if not good:
        failed.append(name)


def by_hand(q, k, v, g, A_log, dt_bias, b=None, w=None, beta=None):
    """S = (I - k (erase .* k)') decay S + k (write .* v)';  o = S' q."""
    K = k.shape[-1]
    q, k = F.normalize(q, dim=-1) * K**-0.5, F.normalize(k, dim=-1)
    rate = -torch.exp(A_log)
    if g.dim() == 4:
        decay = torch.exp(rate[..., None] * F.softplus(g + dt_bias))
    else:
        decay = torch.exp(rate * F.softplus(g + dt_bias))[..., None].expand_as(k)
    if beta is not None:
        b = w = beta[..., None].expand_as(k)
    erase, v = torch.sigmoid(b) * k, torch.sigmoid(w) * v
    S, outputs = q.new_zeros(B, H, K, K), []
    for t in range(T):
        S = decay[:, t, :, :, None] * S
        change = v[:, t, :, None] - erase[:, t, :, None] @ S
        S = S + k[:, t, :, :, None] @ change
        outputs.append((q[:, t, :, None] @ S)[:, :, 0])
    return torch.stack(outputs, dim=1)


def error(have, want):
    return ((have.double() - want).norm() / want.norm()).item()


def sum_error(have, terms):
    """Of a sum over tokens: relative to it, or where its terms cancel to what as many terms of their
    size give that do not."""
    want = terms.sum((0, 1))
    return ((have.double() - want).norm() / max(want.norm(), terms.norm())).item()


def compiled(context, mixer, device, dtype, K, _limit):
    spec = os.path.join(gdr.ROOT, "specs", MIXERS[mixer][0] + ".gdr")
    return Recurrence(context, spec, {"K": K, "V": K}, dtype, device)


def gradients(op, mixer, device, dtype, K, limit):
    gates = MIXERS[mixer][1]
    what = f"{mixer}, {device}, {str(dtype)[6:]}, {K}"
    shape = {"A_log": (H,), "dt_bias": (H, K) if gates["g"] else (H,)}
    params = tuple(shape)
    for name in op.inputs:
        shape.setdefault(name, (B, T, H, K) if gates.get(name, True) else (B, T, H))
    # Not dense, so that what the kernel sees is a copy; v asks for no gradient.
    x = {name: torch.randn(*s, 2, device=device, dtype=torch.float32 if name in params else dtype)
         [..., 0].requires_grad_(name != "v") for name, s in shape.items()}
    exact = {name: t.detach().double() for name, t in x.items()}
    for name in params:  # a value of its own for every token: the terms of its gradient
        exact[name] = exact[name].expand(B, T, *shape[name]).clone()
    for name, t in exact.items():
        t.requires_grad_(name != "v")
    o, want = op(**x), by_hand(**exact)
    check(f"{what}, output", error(o, want) < limit, f"{error(o, want):.1e}")
    upstream = torch.randn_like(o)
    o.backward(upstream)
    want.backward(upstream.double())
    check(f"{what}, no gradient of v", x["v"].grad is None)
    for name, t in x.items():
        if name in params:
            e = sum_error(t.grad, exact[name].grad)
            check(f"{what}, gradient of {name}", e < limit, f"{e:.1e}")
        elif name != "v":
            e = error(t.grad, exact[name].grad)
            check(f"{what}, gradient of {name}", e < limit, f"{e:.1e}")
    try:
        op(**{**x, "v": x["v"][:1]})
        check(f"{what}, wrong shape", False)
    except gdr.Error as e:
        check(f"{what}, wrong shape", e.status == "EINPUT", str(e))


def same_size():
    size = {mixer: parameters_of(Model(mixer, None, 256, 64, 2, 2, 32)) for mixer in MIXERS}
    largest, least = max(size.values()), min(size.values())
    check("models are of one size", largest - least < 0.02 * largest, str(size))


class Training:
    """train.py with small models, in a process of its own that starts at once."""

    def __init__(self, task, *options):
        self.folder = tempfile.TemporaryDirectory()
        self.out = os.path.join(self.folder.name, "out.json")
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "train.py"), task, "--out", self.out, "--steps",
             "30", "--every", "10", "--batch", "8", "--lr", "1e-2", "--width", "32", "--layers",
             "1", "--heads", "1", "--head-dim", "16", *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.what = f"{task}, {options[options.index('--device') + 1]}"

    def learns(self):
        print(self.process.communicate()[0], end="")
        check(f"{self.what}, runs", self.process.returncode == 0)
        if self.process.returncode == 0:
            with open(self.out, encoding="utf-8") as f:
                self.check_runs(json.load(f)["runs"])
        self.folder.cleanup()

    def check_runs(self, runs):
        check(f"{self.what}, all mixers", [r["mixer"] for r in runs] == list(MIXERS))
        for r in runs:
            first, last = r["curve"][0], r["curve"][-1]
            check(f"{self.what}, {r['mixer']} learns",
                  last["train_loss"] < 0.99 * first["train_loss"])
            check(f"{self.what}, {r['mixer']} steps",
                  [p["step"] for p in r["curve"]] == [10, 20, 30])


def trainings():
    text = ("text", "--tokens", "64", "--text", os.path.join(gdr.ROOT, "docs"),
            "--text", os.path.join(gdr.ROOT, "README.md"), "--device")
    yield Training(*text, "cpu")
    yield Training("recall", "--tokens", "24", "--dtype", "bf16", "--device", "cpu")
    if torch.cuda.is_available():
        yield Training(*text, "cuda")


def main():
    torch.manual_seed(3)
    torch.set_num_threads(1)  # models this small
    running = list(trainings())
    context = gdr.Context()
    cases = [(mixer, *case) for mixer in MIXERS for case in CASES]
    with ThreadPoolExecutor() as pool:
        ops = list(pool.map(lambda case: compiled(context, *case), cases))
    for op, case in zip(ops, cases):
        gradients(op, *case)
    same_size()
    for training in running:
        training.learns()
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
