#!/usr/bin/env python3
"""Trains the same small model with different mixers, through kernels that gdrc compiles.

    train.py text   [--device cuda]    next byte of a real text
    train.py recall [--device cuda]    multi-query associative recall

Every few steps it prints what it measured since: the loss in training, loss or accuracy on data
held out, tokens a second of training. When a model is done it writes all of that, with the machine,
commit and command, as JSON; plot.py draws it. Weights and their sums are f32; products and the mixers'
inputs are bf16 on a GPU, f32 on a CPU, unless --dtype says otherwise.
"""
import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time

import torch

import gdr
from gdr_torch import Recurrence
from model import MIXERS, Model, parameters_of
from tasks import TASKS, loss_of

DEFAULTS = {
    "text": {"steps": 500, "batch": 32, "tokens": 1024, "width": 256, "layers": 6, "heads": 2,
             "head_dim": 128, "lr": 2e-3},
    "recall": {"steps": 3000, "batch": 128, "tokens": 384, "width": 128, "layers": 2, "heads": 2,
               "head_dim": 64, "lr": 3e-3},
}
DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16}
DECAY, CLIP, WARMUP = 0.1, 1.0, 0.05


def learning_rate(step, steps, peak):
    """Up in a straight line over the first steps, then down along a cosine to a tenth."""
    warmup = max(1, round(WARMUP * steps))
    if step <= warmup:
        return peak * step / warmup
    part = (step - warmup) / max(1, steps - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * part))


class Trainer:
    """One model in training; steps() is timed, measure() is not."""

    def __init__(self, args, mixer, context):
        self.args, self.device = args, torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        torch.manual_seed(args.seed)
        spec = os.path.join(gdr.ROOT, "specs", MIXERS[mixer][0] + ".gdr")
        recurrence = Recurrence(context, spec, {"K": args.head_dim, "V": args.head_dim},
                                DTYPE[args.dtype], self.device)
        self.task = TASKS[args.task](args, self.device)
        self.model = Model(mixer, recurrence, self.task.vocabulary, args.width, args.layers,
                           args.heads, args.head_dim).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.groups(DECAY), lr=args.lr, betas=(0.9, 0.95),
                                           fused=self.on_gpu)
        self.step = 0

    def logits(self, tokens):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.dtype == "bf16"):
            return self.model(tokens)

    def one_step(self):
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.args.steps, self.args.lr)
        tokens, targets = self.task.batch()
        loss = loss_of(self.logits(tokens), targets)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.detach(), tokens.numel()

    def steps(self, count):
        """Mean loss and tokens a second of that many steps."""
        start, tokens, total = self.now(), 0, 0.0
        for _ in range(count):
            loss, n = self.one_step()
            total, tokens = total + loss, tokens + n
        return float(total) / count * self.task.scale, tokens / (self.now() - start)

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.no_grad()
    def measure(self):
        return self.task.evaluate(self.logits)


def run(args, mixer, context):
    """Trains one model; what it measured."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(args, mixer, context)
    recurrence, task = trainer.model.blocks[0].mixer.recurrence, trainer.task
    facts = recurrence.forward_kernel.facts
    size = parameters_of(trainer.model)
    print(f"{mixer}: {facts.name} on {facts.target}, {facts.algo}, {size} parameters, "
          + ", ".join(f"{k} {v}" for k, v in task.facts.items()), flush=True)
    start, curve = time.perf_counter(), []
    while trainer.step < args.steps:
        loss, speed = trainer.steps(min(args.every, args.steps - trainer.step))
        if not math.isfinite(loss):
            raise SystemExit(f"{mixer}: the loss is {loss} at step {trainer.step}")
        point = {"step": trainer.step, "train_loss": loss, **trainer.measure(),
                 "tokens_per_second": speed}
        curve.append(point)
        print(f"{mixer:15} step {trainer.step:5}  train loss {loss:.4f}  held out "
              f"{task.measure} {point[task.measure]:.4f}  {speed:9.0f} tokens/s", flush=True)
    # The first interval loads kernels and fills caches.
    speeds = [p["tokens_per_second"] for p in curve[1:] or curve]
    return {"mixer": mixer, "spec": facts.name, "target": facts.target, "algorithm": facts.algo,
            "parameters": size, "data": task.facts, "curve": curve,
            "tokens_per_second": statistics.median(speeds),
            "seconds": time.perf_counter() - start,
            "peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None}


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True,
                              cwd=gdr.ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine(args):
    if args.device == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        return f"{torch.cuda.get_device_name()}, driver {driver.splitlines()[0] if driver else '?'}"
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def commit():
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    return output_of("git", "rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")


def rounded(x):
    """Six digits are more than was measured."""
    if isinstance(x, float):
        return float(f"{x:.6g}")
    if isinstance(x, dict):
        return {str(k): rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


def write(path, result):
    """All of it or, when interrupted, what was there before."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8") as f:
        json.dump(rounded(result), f, indent=1)
        f.write("\n")
    os.replace(path + ".part", path)


def asked(words):
    """The command line but for what changes no result."""
    kept, words = [], iter(words)
    for word in words:
        if word in ("--out", "--commit"):
            next(words, None)
        elif not word.startswith(("--out=", "--commit=")):
            kept.append(word)
    return kept


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPE, help="of products and of the mixers' inputs")
    parser.add_argument("--mixers", default=",".join(MIXERS), help="of " + ", ".join(MIXERS))
    parser.add_argument("--text", action="append", metavar="PATH",
                        help="files or folders of text; by default this repository and the "
                        "licences in /usr/share/common-licenses")
    for name in ("steps", "batch", "tokens", "width", "layers", "heads", "head-dim"):
        parser.add_argument("--" + name, type=int)
    parser.add_argument("--lr", type=float, help="the highest learning rate")
    parser.add_argument("--every", type=int, default=50, help="steps between two measurements")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commit", help="of the source, where git cannot tell")
    parser.add_argument("--out", metavar="JSON", help="write what was measured")
    args = parser.parse_args()
    for name, value in DEFAULTS[args.task].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "f32")
    args.mixers = args.mixers.split(",")
    unknown = [m for m in args.mixers if m not in MIXERS]
    if unknown:
        parser.error(f"no mixer {unknown[0]}: there are {', '.join(MIXERS)}")
    return args


def main():
    args = arguments()
    context = gdr.Context(threads=torch.get_num_threads())
    task = TASKS[args.task]
    result = {
        "task": args.task, "measure": task.measure, "unit": task.unit,
        "machine": machine(args), "gdr": context.lib.gdr_version().decode(),
        "torch": torch.__version__, "commit": args.commit or commit() or "unknown",
        "command": shlex.join(["examples/train/train.py", *asked(sys.argv[1:])]),
        "options": {k: v for k, v in vars(args).items() if k not in ("out", "commit", "mixers")},
        "runs": [],
    }
    print(result["machine"], result["gdr"], "torch " + result["torch"], sep=", ", flush=True)
    for mixer in args.mixers:
        result["runs"].append(run(args, mixer, context))
        if args.out:
            write(args.out, result)
    for r in result["runs"]:
        print(f"{r['mixer']:15} {r['parameters']:9} parameters  {task.measure} "
              f"{r['curve'][-1][task.measure]:.4f} {task.unit}  "
              f"{r['tokens_per_second']:9.0f} tokens/s")


if __name__ == "__main__":
    main()
