"""What the models are trained on: text byte by byte, and associative recall.

A task gives batches of (tokens, targets), targets of IGNORE count for nothing, and evaluates a
model on data that training never sees. The same seed gives the same batches to every model.
"""
import hashlib
import math
import os

import torch
import torch.nn.functional as F

from gdr import ROOT

IGNORE = -100
FOLDERS = ("base", "bench", "cmake", "codegen", "docs", "driver", "examples", "frontend", "ir",
           "passes", "runtime", "scripts", "specs", "tests")
NOT_TEXT = (".json", ".safetensors", ".svg")


def loss_of(logits, targets, reduction="mean"):
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE,
                           reduction=reduction)


# text ---------------------------------------------------------------------------------------------

def default_text():
    """This repository and the licences that Debian ships."""
    licences = "/usr/share/common-licenses"
    return [os.path.join(ROOT, folder) for folder in FOLDERS] + [licences] * os.path.isdir(licences)


def text_files(paths):
    """(path below the one given, content) of every text file there, each content once."""
    seen = set()
    for top in paths:
        files = [top]
        if os.path.isdir(top):
            files = []
            for folder, folders, names in os.walk(top):
                folders[:] = sorted(f for f in folders if f not in ("out", "__pycache__"))
                files += [os.path.join(folder, name) for name in sorted(names)]
        for path in files:
            if os.path.islink(path) or path.endswith(NOT_TEXT):
                continue
            with open(path, "rb") as f:
                data = f.read()
            if data and b"\0" not in data and data not in seen:
                seen.add(data)
                yield os.path.relpath(path, os.path.dirname(top)), data


class Text:
    """One file in 8, chosen by its name's hash, is for validation."""

    measure, unit = "loss", "bits per byte"
    vocabulary = 256
    scale = 1 / math.log(2)  # of the loss

    def __init__(self, args, device):
        parts = {False: [], True: []}
        for name, data in text_files(args.text or default_text()):
            parts[hashlib.sha256(name.encode()).digest()[0] % 8 == 0].append(data)
        text = {valid: b"\n".join(data) for valid, data in parts.items()}
        self.tokens, self.batch_size, self.device = args.tokens, args.batch, device
        if min(map(len, text.values())) <= self.tokens:
            raise SystemExit("there is less text than one sequence: give more with --text")
        self.facts = {"train_bytes": len(text[False]), "valid_bytes": len(text[True]),
                      "files": len(parts[False]) + len(parts[True]),
                      "sha256": hashlib.sha256(text[False] + text[True]).hexdigest()}
        self.train, self.valid = (torch.frombuffer(bytearray(text[v]), dtype=torch.uint8)
                                  .to(device) for v in (False, True))
        self.random = torch.Generator().manual_seed(args.seed)

    def windows(self, data, starts):
        index = starts[:, None] + torch.arange(self.tokens + 1)
        rows = data[index.to(self.device)].long()
        return rows[:, :-1], rows[:, 1:]

    def batch(self):
        starts = torch.randint(len(self.train) - self.tokens, (self.batch_size,),
                               generator=self.random)
        return self.windows(self.train, starts)

    def evaluate(self, logits_of):
        """Of 4 batches spread over the validation text, or of all of it."""
        most = (len(self.valid) - 1) // self.tokens
        count = min(4 * self.batch_size, most)
        starts = torch.arange(count) * (len(self.valid) - self.tokens) // max(count, 1)
        total = 0.0
        for part in starts.split(self.batch_size):
            tokens, targets = self.windows(self.valid, part)
            total += loss_of(logits_of(tokens), targets, "sum").item()
        return {"loss": total / (count * self.tokens) * self.scale}


# recall -------------------------------------------------------------------------------------------

class Recall:
    """Multi-query associative recall, where some keys get a second value.

        key value key value ... filler ... key key key
                                            |   |   +-- to be answered with its latest value

    A sequence of load n has n pairs; one in 4 gives a key of the others another value, at a place
    that is random like theirs. Every key is asked for once, in random order. Loads are halves of
    the largest, tokens / 3, all of them in every batch.
    """

    measure, unit = "accuracy", "of the answers right"
    scale = 1.0
    KEYS = VALUES = 256
    vocabulary = 1 + KEYS + VALUES  # 0 is the filler

    def __init__(self, args, device):
        largest = args.tokens // 3
        self.loads = [largest >> i for i in range(4) if largest >> i >= 4][::-1]
        if not self.loads or largest > self.KEYS:
            raise SystemExit(f"recall needs from 12 to {3 * self.KEYS} tokens")
        self.tokens, self.batch_size, self.device = args.tokens, args.batch, device
        self.random = torch.Generator(device).manual_seed(args.seed)
        self.facts = {"keys": self.KEYS, "values": self.VALUES, "loads": self.loads}
        held_out = torch.Generator(device).manual_seed(args.seed + 1)
        self.valid = [self.sequences(load, self.batch_size, held_out) for load in self.loads]

    def sequences(self, load, count, random):
        def shuffled(n):
            return torch.rand(count, n, generator=random, device=self.device).argsort(dim=1)

        distinct = load - load // 4
        keys = shuffled(self.KEYS)[:, :distinct]
        again = shuffled(distinct)[:, :load // 4]
        written = torch.cat([keys, keys.gather(1, again)], dim=1).gather(1, shuffled(load))
        values = torch.randint(self.VALUES, (count, load), generator=random, device=self.device)
        # The place of each key's last pair.
        place = torch.arange(1, load + 1, device=self.device)
        last = ((keys[:, :, None] == written[:, None]) * place).amax(dim=2) - 1
        tokens = torch.zeros(count, self.tokens, dtype=torch.long, device=self.device)
        targets = torch.full_like(tokens, IGNORE)
        tokens[:, 0:2 * load:2] = 1 + written
        tokens[:, 1:2 * load:2] = 1 + self.KEYS + values
        tokens[:, -distinct:] = 1 + keys
        targets[:, -distinct:] = 1 + self.KEYS + values.gather(1, last)
        return tokens, targets

    def batch(self):
        share = max(self.batch_size // len(self.loads), 1)
        parts = [self.sequences(load, share, self.random) for load in self.loads]
        return tuple(torch.cat(part) for part in zip(*parts))

    def evaluate(self, logits_of):
        by_load = {}
        for load, (tokens, targets) in zip(self.loads, self.valid):
            right = logits_of(tokens).argmax(dim=-1) == targets
            by_load[load] = (right.sum() / (targets != IGNORE).sum()).item()
        return {"accuracy": sum(by_load.values()) / len(by_load), "by_load": by_load}


TASKS = {"text": Text, "recall": Recall}
