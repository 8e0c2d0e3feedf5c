"""Makes and compares tensor files for the tests of the command.

    tensors.py make FILE NAME:DTYPE:SHAPE[:VALUES] ...    SHAPE 1x3x2; VALUES a,b,c or rand or nan@I
    tensors.py show FILE                                  one line a tensor
    tensors.py same FILE FILE [RELATIVE-ERROR]            every tensor of both
    tensors.py number FILE NAME INDEX                     one element
    tensors.py part FILE NAME FILE NAME FROM TO [ERROR]   whether these elements are equal
"""
import json
import math
import random
import struct
import sys

SIZE = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I32": 4, "I64": 8, "U8": 1}
CODE = {"F32": "f", "F16": "e", "F64": "d", "I32": "i", "I64": "q", "U8": "B"}


def encode(dtype, x):
    if dtype == "BF16":
        return struct.pack("<f", x)[2:]
    return struct.pack("<" + CODE[dtype], int(x) if dtype[0] in "IU" else x)


def decode(dtype, raw):
    if dtype == "BF16":
        return struct.unpack("<f", b"\0\0" + raw)[0]
    return struct.unpack("<" + CODE[dtype], raw)[0]


def make(path, specs):
    header, data = {}, b""
    for spec in specs:
        name, dtype, shape, values = (spec.split(":") + ["rand"])[:4]
        sizes = [int(n) for n in shape.split("x") if n]
        count = math.prod(sizes)
        source = random.Random(name)
        if values.startswith("rand") or values.startswith("nan@"):
            numbers = [source.uniform(-1, 1) for _ in range(count)]
            if name in ("g",):
                numbers = [-abs(x) for x in numbers]
            if name in ("b", "beta"):
                numbers = [abs(x) for x in numbers]
            if values.startswith("nan@"):
                numbers[int(values[4:])] = math.nan
        else:
            numbers = [float(x) for x in values.split(",")]
        raw = b"".join(encode(dtype, x) for x in numbers)
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def load(path):
    with open(path, "rb") as f:
        raw = f.read()
    (n,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + n]), raw[8 + n:]
    out = {}
    for name, t in header.items():
        lo, hi = t["data_offsets"]
        size = SIZE[t["dtype"]]
        out[name] = (t, [decode(t["dtype"], data[i:i + size]) for i in range(lo, hi, size)])
    return out


def same(a, b, limit):
    a, b = load(a), load(b)
    assert a.keys() == b.keys(), (a.keys(), b.keys())
    for name in a:
        x, y = a[name][1], b[name][1]
        assert a[name][0]["shape"] == b[name][0]["shape"], name
        assert not any(math.isnan(v) for v in x + y), name
        off = math.sqrt(sum((p - q) ** 2 for p, q in zip(x, y)))
        size = math.sqrt(sum(q * q for q in y))
        assert off <= limit * (size + 1e-8), "%s: %g" % (name, off / (size + 1e-8))


def part(a, b, limit):
    off = math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b)))
    return off <= limit * math.sqrt(sum(q * q for q in b))


command, args = sys.argv[1], sys.argv[2:]
if command == "make":
    make(args[0], args[1:])
elif command == "show":
    for name, (t, _) in load(args[0]).items():
        print(name, t["dtype"], t["shape"])
elif command == "same":
    same(args[0], args[1], float(args[2]) if len(args) > 2 else 0)
elif command == "number":
    print(load(args[0])[args[1]][1][int(args[2])])
elif command == "part":
    x, y = (load(args[i])[args[i + 1]][1][int(args[4]):int(args[5])] for i in (0, 2))
    print("equal" if part(x, y, float(args[6]) if len(args) > 6 else 0) else "different")
