#!/usr/bin/env python3
"""Times other implementations of the same operators: peers.py [--json FILE]

Needs an NVIDIA GPU, PyTorch, Triton and flash-linear-attention (fla) importable. Prints the median
of CUDA events over 30 calls after a warm-up (the first call of each operator compiles and tunes for
minutes; that time is printed too). The shapes are those of bench/gpu.sh.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F


def tensor(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda", dtype=dtype)


def gdn2(B, T, H, D=128):
    from fla.ops.gdn2 import chunk_gdn2
    q, k, v, b, w = (tensor(B, T, H, D) for _ in range(5))
    g = torch.empty(B, T, H, D, device="cuda", dtype=torch.bfloat16).uniform_(-5, -0.1)
    b, w = b.sigmoid(), w.sigmoid()
    return lambda: chunk_gdn2(q, k, v, g, b, w, output_final_state=True, safe_gate=True,
                              use_qk_l2norm_in_kernel=True)


def kda(B, T, H, D=128):
    from fla.ops.kda import chunk_kda
    q, k, v, g = (tensor(B, T, H, D) for _ in range(4))
    beta = tensor(B, T, H)
    A_log, dt_bias = tensor(H, dtype=torch.float32), tensor(H * D, dtype=torch.float32)
    return lambda: chunk_kda(q, k, v, g, beta, A_log=A_log, dt_bias=dt_bias,
                             output_final_state=True, use_qk_l2norm_in_kernel=True,
                             use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True,
                             safe_gate=True, lower_bound=-5.0)


def gated_deltanet(B, T, H, HV, D=128):
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    q, k, v = tensor(B, T, H, D), tensor(B, T, H, D), tensor(B, T, HV, D)
    g = F.logsigmoid(tensor(B, T, HV, dtype=torch.float32))
    beta = tensor(B, T, HV).sigmoid()
    return lambda: chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True,
                                          use_qk_l2norm_in_kernel=True)


def gdn2_step(B, H, D=128):
    from fla.ops.gdn2 import fused_recurrent_gdn2
    q, k, v, b, w = (tensor(B, 1, H, D) for _ in range(5))
    g = -tensor(B, 1, H, D).abs()
    b, w = b.sigmoid(), w.sigmoid()
    state = tensor(B, H, D, D, dtype=torch.float32)
    return lambda: fused_recurrent_gdn2(q, k, v, g, b, w, initial_state=state,
                                        output_final_state=True, use_qk_l2norm_in_kernel=True)


CASES = {
    "gdn2 1x8192x96": lambda: gdn2(1, 8192, 96),
    "kda_raw 1x8192x96": lambda: kda(1, 8192, 96),
    "gated_deltanet 1x8192x16/64": lambda: gated_deltanet(1, 8192, 16, 64),
    "gdn2 step 256x32": lambda: gdn2_step(256, 32),
}


@torch.inference_mode()
def measure(make):
    call = make()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(5):
        call()
    times = []
    for _ in range(30):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times), first


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    results = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": {}}
    for name, make in CASES.items():
        try:
            median, first = measure(make)
        except Exception as e:  # an operator that this version lacks or that refuses the shape
            print(f"{name:32} {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
            continue
        results["cases"][name] = {"ms": median, "first_call_s": first}
        print(f"{name:32} {median:8.3f} ms   first call {first:.1f} s", flush=True)
        torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(results, f, indent=1)


if __name__ == "__main__":
    main()
