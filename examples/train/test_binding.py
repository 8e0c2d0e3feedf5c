#!/usr/bin/env python3
"""The binding against plain Python, on the CPU and without PyTorch: a forward pass against the
recurrence written out, a backward pass against differences of it, and errors as the library words
them. Prints one line a check; exit status 1 if one fails.
"""
import array
import ctypes
import gc
import math
import random
import sys
import tempfile

import gdr

SPEC = """variant delta {
    dim K = 8, V = 8
    in q[K], k[K], v[V]
    in g <= 0
    in beta
    param scale[V]
    state S[K, V]
    S = exp(g) * S
    let r = S' * k
    S = S + k * (beta * (v - r))'
    out o[V] = scale .* (S' * q)
}
"""
B, T, H, K = 2, 5, 2, 8
SHAPE = {"q": (B, T, H, K), "k": (B, T, H, K), "v": (B, T, H, K), "g": (B, T, H),
         "beta": (B, T, H), "scale": (H, K)}
OUT = (B, T, H, K)
STATE = (B, H, K, K)
failures = 0


def check(name, good, detail=""):
    global failures
    failures += not good
    print(f"{name}: {'ok' if good else 'FAILED'} {detail}")


def floats(values):
    return array.array("f", values)


def zeros(shape):
    return floats([0] * math.prod(shape))


def tensor(values, shape):
    return gdr.Tensor(values.buffer_info()[0], shape, "f32")


def recurrence(x, S0):
    """Outputs and final states, in double precision, as the spec says."""
    o, final = [0.0] * math.prod(OUT), [0.0] * math.prod(STATE)
    for b in range(B):
        for h in range(H):
            at = (b * H + h) * K * K
            S = [list(S0[at + i * K:at + (i + 1) * K]) for i in range(K)]
            for t in range(T):
                row = (b * T + t) * H + h
                q, k, v = (x[n][row * K:(row + 1) * K] for n in "qkv")
                decay, beta = math.exp(x["g"][row]), x["beta"][row]
                S = [[decay * s for s in line] for line in S]
                for j in range(K):
                    read = sum(S[i][j] * k[i] for i in range(K))
                    for i in range(K):
                        S[i][j] += k[i] * beta * (v[j] - read)
                    o[row * K + j] = x["scale"][h * K + j] * sum(S[i][j] * q[i] for i in range(K))
            final[at:at + K * K] = [s for line in S for s in line]
    return o, final


def problem(seed=7):
    r = random.Random(seed)
    x = {n: floats(r.uniform(-0.6, 0.6) for _ in range(math.prod(s))) for n, s in SHAPE.items()}
    x["g"] = floats(-abs(g) for g in x["g"])
    return x, floats(r.uniform(-1, 1) for _ in range(math.prod(STATE)))


def error(have, want):
    off = math.sqrt(sum((a - b)**2 for a, b in zip(have, want, strict=True)))
    return off / math.sqrt(sum(b * b for b in want))


def tensors(x):
    return {n: tensor(x[n], s) for n, s in SHAPE.items()}


def forward(kernel):
    x, S0 = problem()
    o, S = zeros(OUT), zeros(STATE)
    args = {**tensors(x), "o": tensor(o, OUT)}
    gc.collect()
    kernel.forward(args, S0=tensor(S0, STATE), S=tensor(S, STATE))
    want = recurrence(x, S0)
    check("forward, output", error(o, want[0]) < 1e-5, f"{error(o, want[0]):.1e}")
    check("forward, final state", error(S, want[1]) < 1e-5, f"{error(S, want[1]):.1e}")


def difference(loss, values, eps=1e-4):
    """The gradient of loss() by central differences, in double precision."""
    slope = []
    for i, middle in enumerate(list(values)):
        values[i] = middle + eps
        above = loss()
        values[i] = middle - eps
        slope.append((above - loss()) / (2 * eps))
        values[i] = middle
    return slope


def backward(kernel):
    x, S0 = problem()
    r = random.Random(8)
    do = floats(r.uniform(-1, 1) for _ in range(math.prod(OUT)))
    dS = floats(r.uniform(-1, 1) for _ in range(math.prod(STATE)))
    wanted = ("k", "beta", "scale")  # some of them: the others are not named
    gradient = {n: zeros(SHAPE[n]) for n in wanted}
    dS0 = zeros(STATE)
    args = {**tensors(x), "do": tensor(do, OUT),
            **{"d" + n: tensor(gradient[n], SHAPE[n]) for n in wanted}}
    states = {"S0": tensor(S0, STATE), "dS": tensor(dS, STATE), "dS0": tensor(dS0, STATE)}
    size = kernel.workspace_size(args, **states)
    check("workspace, least", 0 < kernel.workspace_least(args, **states) <= size, str(size))
    check("nothing saved on a CPU", kernel.saved_size(args, **states) == 0)
    memory = ctypes.create_string_buffer(size + 64)
    address = (ctypes.addressof(memory) + 63) // 64 * 64
    kernel.backward(args, workspace=(address, size), **states)

    precise = {n: list(values) for n, values in x.items()}
    start = list(S0)

    def loss():
        o, S = recurrence(precise, start)
        return sum(a * b for a, b in zip(o, do)) + sum(a * b for a, b in zip(S, dS))

    for name, have in {**gradient, "S0": dS0}.items():
        want = difference(loss, start if name == "S0" else precise[name])
        check(f"backward, {name}", error(have, want) < 1e-4, f"{error(have, want):.1e}")


def refused(name, status, text, call):
    try:
        call()
        check(name, False, "not refused")
    except gdr.Error as e:
        check(name, e.status == status and text in str(e), f"{e.status}: {e}")


def errors(context, kernel):
    x, _ = problem()
    o = zeros(OUT)
    args = {**tensors(x), "o": tensor(o, OUT)}
    refused("a spec with an error", "ESPEC", "wrong.gdr:2:",
            lambda: context.compile_string("variant v {\n    in q[K]\n}\n", name="wrong.gdr"))
    refused("a tensor that is missing", "EINPUT", "o: missing output",
            lambda: kernel.forward(tensors(x)))
    refused("a tensor of another shape", "EINPUT", "need [B,T,heads,8]",
            lambda: kernel.forward({**args, "v": tensor(x["v"], (B, T, H * K))}))
    refused("a tensor elsewhere", "EINPUT", "GPU memory",
            lambda: kernel.forward({**args, "v": args["v"]._replace(device="cuda")}))
    refused("the other pass", "EUSAGE", "", lambda: kernel.backward(args))
    refused("a target that is not there", "EUSAGE", "sm_1",
            lambda: context.compile_string(SPEC, target="sm_1"))
    try:
        context.compile_string(SPEC, dtyp="f32")
        check("an option that is not there", False, "not refused")
    except TypeError as e:
        check("an option that is not there", "dtyp" in str(e), str(e))


def facts(kernel):
    check("facts", (kernel.facts.name, kernel.facts.target, kernel.facts.pass_,
                    kernel.facts.K) == ("delta", "host", "backward", K), str(kernel.facts))
    ports = {p.name: p for p in kernel.ports}
    check("ports", ports["dk"].of == "k" and ports["dscale"].kind == "param_gradient"
          and ports["g"].hi == 0 and ports["do"].shape == (K,), " ".join(ports))


def main():
    with tempfile.TemporaryDirectory() as cache:
        context = gdr.Context(cache_dir=cache, threads=2)
        kernel = context.compile_string(SPEC, name="delta", dims={"K": K, "V": K}, algo="chunk")
        back = context.compile_string(SPEC, name="delta", pass_="backward")
        forward(kernel)
        facts(back)
        backward(back)
        errors(context, kernel)
        again = context.compile_string(SPEC, name="delta", pass_="backward")
        check("the cache", again.facts.from_cache and not back.facts.from_cache)
        types = context.compile_string(SPEC, types={"g": "bf16"}, dtype="f16",
                                       gradients=["q"], upstream=["o"], pass_="backward")
        check("options", types.names("gradient", "param_gradient") == ["dq"]
              and {p.name: p.dtype for p in types.ports}["g"] == "bf16")
    return failures != 0


if __name__ == "__main__":
    sys.exit(main())
