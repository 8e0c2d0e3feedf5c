#!/usr/bin/env python3
"""Compares two files of tensors: compare.py RESULT REFERENCE [--bound NAME=X]...

For every tensor: ratio = rms(result - reference) / rms(reference), over all of it and for the
worst head, and the largest difference. A tensor passes when the ratio is within its bound (0.005)
and every head's within three times that; NaN or infinity fails. Exit status 1 when one fails.
Needs nothing but Python.
"""
import argparse
import array
import json
import math
import struct
import sys

BOUND = 0.005
HEAD_AXIS = {"S": 1}  # states are [N,H,K,V]; every other tensor is [B,T,H,...]


def widen_bf16(raw):
    bits = array.array("H", raw)
    words = array.array("I", (b << 16 for b in bits))
    return array.array("f", words.tobytes())


def read(path):
    with open(path, "rb") as f:
        data = f.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        low, high = entry["data_offsets"]
        raw, kind = data[8 + length + low:8 + length + high], entry["dtype"]
        if kind == "F32":
            values = array.array("f", raw)
        elif kind == "F64":
            values = array.array("d", raw)
        elif kind == "BF16":
            values = widen_bf16(raw)
        elif kind == "F16":
            values = array.array("f", struct.unpack(f"<{len(raw) // 2}e", raw))
        else:
            continue
        tensors[name] = entry["shape"], values
    return tensors


def heads_of(name, shape):
    """(outer, heads, inner) sizes around the head axis."""
    axis = HEAD_AXIS.get(name, 2)
    if len(shape) <= axis:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1:])


def ratio(squares):
    error, norm, count = squares
    return math.sqrt(error / count) / (math.sqrt(norm / count) + 1e-8) if count else 0.0


def compare(name, shape, x, ref):
    outer, heads, inner = heads_of(name, shape)
    largest, worst, total = 0.0, 0.0, [0.0, 0.0, 0]
    for head in range(heads):
        mine = [0.0, 0.0, 0]
        for block in range(outer):
            start = (block * heads + head) * inner
            a, b = x[start:start + inner], ref[start:start + inner]
            difference = [p - q for p, q in zip(a, b)]
            mine[0] += sum(d * d for d in difference)
            mine[1] += sum(q * q for q in b)
            mine[2] += inner
            largest = max(largest, max(map(abs, difference), default=0.0))
        total = [p + q for p, q in zip(total, mine)]
        worst = max(worst, ratio(mine))
    return ratio(total), worst, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result")
    parser.add_argument("reference")
    parser.add_argument("--bound", action="append", default=[], metavar="NAME=X")
    args = parser.parse_args()
    bounds = {n: float(v) for n, v in (b.split("=") for b in args.bound)}

    result, reference = read(args.result), read(args.reference)
    failed = set(result) ^ set(reference)
    for name in sorted(failed):
        print(f"{name}: only in one of the files")
    print(f"{'tensor':8} {'shape':20} {'ratio':>10} {'worst head':>11} {'max|diff|':>10} {'bound':>7}")
    for name in sorted(set(result) & set(reference)):
        (shape, x), (ref_shape, ref) = result[name], reference[name]
        if shape != ref_shape:
            print(f"{name}: shapes {shape} and {ref_shape}")
            failed.add(name)
            continue
        bound = bounds.get(name, BOUND)
        overall, worst, largest = compare(name, shape, x, ref)
        finite = all(map(math.isfinite, (overall, worst, largest)))
        good = finite and (largest <= 1e-6 or (overall <= bound and worst <= 3 * bound))
        print(f"{name:8} {str(shape):20} {overall:10.2e} {worst:11.2e} {largest:10.2e} {bound:7.3f}"
              f"  {'ok' if good else 'FAIL'}")
        if not good:
            failed.add(name)
    return 1 if failed or not result else 0


if __name__ == "__main__":
    sys.exit(main())
