#!/usr/bin/env python3
"""Writes the table of measured figures into README.md from bench/results/*.json.

Files with "results" are what `gdrc bench --json` wrote; peers_*.json hold other implementations'
times on the same cases (bench/peers.py takes them). With --check nothing is written: exit status 1
when the README is not up to date.
"""
import glob
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGIN, END = "<!-- figures: bench/table.py -->\n", "<!-- end of figures -->"


def load():
    runs, peers = [], []
    for path in sorted(glob.glob(os.path.join(ROOT, "bench", "results", "*.json"))):
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
        if "results" in data:
            runs.append(data)
        elif "cases" in data:
            peers.append(data)
    return runs, peers


def is_gradient(r):
    """Whether it is a row of a backward pass, or of a forward pass and then that."""
    return r["algorithm"] in ("backward", "training")


def trains(run):
    """Whether it is a run of both passes."""
    return any(r["algorithm"] == "training" for r in run["results"])


def case_key(run, r):
    """The case as other implementations know it."""
    step = "_step" if r["T"] == 1 or r.get("step") else f"_{r['algorithm']}" if is_gradient(r) else \
        "_saving" if trains(run) else ""
    keys = f" ({r['key_heads']} key heads)" if r["key_heads"] != r["H"] else ""
    return f"{run['variant']}{step} {r['B']}x{r['T']}x{r['H']}{keys}"


def case_name(run, r):
    """The same with how it was run."""
    state = run.get("state_type", "f32"), run.get("state_layout", "kv")
    how = []
    if "step" in case_key(run, r):
        how += [f"{state[0]} states"] if state[0] != "f32" else []
        how += ["[V,K]"] if state[1] == "vk" else []
        how += ["from a pool"] if r.get("pool") else []
    elif run.get("save", "states") != "states" and (is_gradient(r) or "_saving" in case_key(run, r)):
        how.append(f"saving {run['save']}")
    return case_key(run, r) + (f", {' '.join(how)}" if how else "")


def machine_of(run):
    """The machine's name, without what was measured on the side."""
    return run["machine"].split(", sgemm")[0]


def number(x):
    return f"{x:.3f}" if x < 10 else f"{x:.1f}"


def row(run, r, peers, names, memory):
    key = case_key(run, r)
    cells = [case_name(run, r), run["dtype"], f"{r['K']}x{r['V']}", r["algorithm"], number(r["median_ms"]),
             f"{r['bytes'] / r['median_ms'] / 1e6:.0f}",
             f"{100 * r['roofline_ms'] / r['median_ms']:.0f} %"]
    if memory:
        cells.append(f"{r['peak_bytes'] / r['tensor_bytes']:.2f}" if "peak_bytes" in r else "")
    for other in names:
        times = [p["cases"][key][other] for p in peers if other in p["cases"].get(key, {})]
        cells.append(number(min(times)) if times else "")
    return "| " + " | ".join(cells) + " |"


def table(runs, peers):
    machines = sorted(dict.fromkeys(machine_of(run) for run in runs),
                      key=lambda m: m.startswith("CPU"))
    text = ""
    for machine in machines:
        here = [(run, r) for run in runs if machine_of(run) == machine for r in run["results"]]
        known = [p for p in peers if any(case_key(run, r) in p["cases"] for run, r in here)
                 and not machine.startswith("CPU")]
        names = sorted({n for p in known for run, r in here
                        for n in p["cases"].get(case_key(run, r), {})})
        text += f"**{machine}**, milliseconds (case: variant, batch x tokens x heads)\n\n"
        memory = any("peak_bytes" in r for _, r in here)
        heads = ["case", "type", "K x V", "algorithm", "gdrc", "GB/s", "of the roofline",
                 *(["memory"] if memory else []), *names]
        text += "| " + " | ".join(heads) + " |\n|" + "---|" * len(heads) + "\n"
        text += "".join(row(run, r, known, names, memory) + "\n" for run, r in here)
        if memory:
            text += "\nTraining: a forward pass that saves states (or all that the backward pass " \
                    "works on), the backward pass, and both; memory of a step (what the GPU has " \
                    "less of) over its inputs, outputs and gradients.\n"
        load = [f"{run['variant']}{' and its gradient' if trains(run) else ''} "
                f"{run['compile_ms']:.0f} / {run['cached_ms']:.1f} ms"
                for run in runs if machine_of(run) == machine and "compile_ms" in run]
        if load:
            text += "\nSpec text to loaded kernel, first time / from the cache: " + \
                    ", ".join(dict.fromkeys(load)) + ".\n"
        for p in known:
            text += f"\nOthers: {p['machine']}; {p['how']}.\n"
        text += "\n"
    return text or "No results in JSON are committed yet.\n"


def main():
    path = os.path.join(ROOT, "README.md")
    with open(path, encoding="utf-8") as f:
        readme = f.read()
    before, rest = readme.split(BEGIN)
    old, after = rest.split(END)
    new = table(*load())
    if "--check" in sys.argv[1:]:
        print("up to date" if old == new else "README.md is not what bench/table.py writes")
        return old != new
    with open(path, "w", encoding="utf-8") as f:
        f.write(before + BEGIN + new + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
