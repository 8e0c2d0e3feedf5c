#!/usr/bin/env python3
"""plot.py on made-up results: drawings are XML, hold every curve and every point at its place, and
--check tells a drawing of other numbers. The results that are committed are checked too."""
import glob
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 40


def plot(*arguments):
    return subprocess.run([sys.executable, os.path.join(HERE, "plot.py"), *arguments],
                          capture_output=True, text=True)


def result(measure):
    def point(step):
        values = {"loss": 8.0 * 0.5**(step / 10),
                  "accuracy": step / STEPS, "by_load": {"4": 1.0, "8": 0.5, "16": 0.25}}
        return {"step": step, "train_loss": 7.0 * 0.5**(step / 10), **values}
    return {"task": "made up", "measure": measure, "unit": "units", "machine": "a <machine>",
            "gdr": "gdrc", "commit": "none", "command": "a & b",
            "runs": [{"mixer": mixer, "parameters": 12345, "tokens_per_second": 1.0, "seconds": 2.0,
                      "peak_bytes": None, "curve": [point(s) for s in range(10, STEPS + 1, 10)]}
                     for mixer in ("gdn2", "kda")]}


def lines_of(svg):
    tree = ElementTree.parse(svg).getroot()
    return [[tuple(map(float, pair.split(","))) for pair in e.get("points").split()]
            for e in tree.iter("{http://www.w3.org/2000/svg}polyline")]


def main():
    failed = []

    def check(name, good):
        print(f"{name}: {'ok' if good else 'FAILED'}")
        if not good:
            failed.append(name)

    with tempfile.TemporaryDirectory() as folder:
        for measure in ("loss", "accuracy"):
            path = os.path.join(folder, measure + ".json")
            svg = path[:-len("json")] + "svg"
            made = result(measure)
            with open(path, "w", encoding="utf-8") as f:
                json.dump(made, f)
            check(f"{measure}, drawn", plot(path).returncode == 0)
            curves = lines_of(svg)
            check(f"{measure}, a curve for each", len(curves) == 4)
            across = [x for x, _ in curves[0]]
            spacing = {round(b - a, 1) for a, b in zip(across, across[1:])}
            check(f"{measure}, even steps", len(across) == 4 and len(spacing) == 1)
            heights = [y for _, y in curves[0]]
            order = sorted(heights, reverse=measure == "accuracy")
            check(f"{measure}, up is more", heights == order and len(set(heights)) > 1)
            check(f"{measure}, the same", plot("--check", path).returncode == 0)
            made["runs"][0]["curve"][-1][measure] *= 0.9
            with open(path, "w", encoding="utf-8") as f:
                json.dump(made, f)
            check(f"{measure}, not the same", plot("--check", path).returncode == 1)
            table = plot("--table", path).stdout
            check(f"{measure}, table", table.count("\n") == 4 and "12345" in table)
    committed = sorted(glob.glob(os.path.join(HERE, "results", "*.json")))
    if committed:
        done = plot("--check", *committed)
        print(done.stdout + done.stderr, end="")
        check("committed drawings", done.returncode == 0)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
