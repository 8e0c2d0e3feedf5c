#!/usr/bin/env python3
"""Draws what train.py measured: plot.py RESULT.json... writes RESULT.svg beside each.

    plot.py --check RESULT.json...    whether the drawings are those of the numbers
    plot.py --table RESULT.json...    the last figures of every run, as a table of Markdown

The standard library is enough. The same numbers give the same drawing, byte for byte.
"""
import json
import math
import os
import sys
import textwrap
from html import escape

COLOUR = {"gdn2": "#c0392b", "kda": "#2471a3", "gated_deltanet": "#1e8449"}
WIDTH, HEIGHT = 860, 400  # without the lines below the panels
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 56, 48  # around a panel
GAP = 76  # between two panels


class Panel:
    """Axes over [x0, x1] and [y0, y1], at these places of the drawing."""

    def __init__(self, left, right, x, y):
        self.left, self.right, self.top, self.bottom = left, right, TOP, HEIGHT - BOTTOM
        (self.x0, self.x1), (self.y0, self.y1) = x, y
        self.svg = []

    def place(self, x, y):
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return (self.left + across * (self.right - self.left),
                self.bottom - up * (self.bottom - self.top))

    def axes(self, x_name, y_name, x_ticks, y_ticks):
        for x, text in x_ticks:
            px = self.place(x, self.y0)[0]
            self.svg.append(line(px, self.top, px, self.bottom, "#e6e6e6"))
            self.svg.append(label(px, self.bottom + 18, text, "middle"))
        for y, text in y_ticks:
            py = self.place(self.x0, y)[1]
            self.svg.append(line(self.left, py, self.right, py, "#e6e6e6"))
            self.svg.append(label(self.left - 8, py + 4, text, "end"))
        self.svg.append(line(self.left, self.bottom, self.right, self.bottom, "#333"))
        self.svg.append(line(self.left, self.top, self.left, self.bottom, "#333"))
        self.svg.append(label((self.left + self.right) / 2, self.bottom + 38, x_name, "middle"))
        self.svg.append(label(self.left, self.top - 10, y_name, "start"))

    def curve(self, points, colour, dashed=False, marks=False):
        placed = [self.place(x, min(max(y, self.y0), self.y1)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        dash = ' stroke-dasharray="3 3" stroke-opacity="0.6"' if dashed else ""
        self.svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" '
                        f'stroke-width="1.6"{dash}/>')
        if marks:
            self.svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                         for x, y in placed]


def line(x0, y0, x1, y1, colour, extra=""):
    return (f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
            f'stroke="{colour}"{extra}/>')


def label(x, y, text, anchor, size=12):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
            f"{escape(text)}</text>")


def ticks(low, high, count=6):
    """Round numbers in [low, high], about `count` of them."""
    raw = (high - low) / count
    unit = 10.0**math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(v, f"{v:g}" if abs(v) < 1e4 else f"{v / 1000:g}k") for v in values]


def column(r, name):
    return [(p["step"], p[name]) for p in r["curve"]]


def steps_of(result):
    return 0, max(p["step"] for r in result["runs"] for p in r["curve"])


def draw_loss(result):
    """Text: held-out and training loss over the steps; the first fall is cut off."""
    held_out = sorted(p["loss"] for r in result["runs"] for p in r["curve"])
    train = [p["train_loss"] for r in result["runs"] for p in r["curve"]]
    low = min(held_out[0], *train)
    high = max(held_out[len(held_out) * 9 // 10], low + 0.1)
    panel = Panel(LEFT, WIDTH - RIGHT, steps_of(result),
                  (low - 0.05 * (high - low), high + 0.25 * (high - low)))
    panel.axes("step", f"{result['unit']}: held out, and in training (dashed)",
               ticks(panel.x0, panel.x1, 10), ticks(panel.y0, panel.y1))
    for r in result["runs"]:
        panel.curve(column(r, "train_loss"), COLOUR[r["mixer"]], dashed=True)
        panel.curve(column(r, "loss"), COLOUR[r["mixer"]])
    return panel.svg


def draw_accuracy(result):
    """Recall: accuracy over the steps, and at the end over the number of pairs."""
    middle = (LEFT + WIDTH - RIGHT) / 2
    y = ticks(0, 1, 5)
    over_steps = Panel(LEFT, middle - GAP / 2, steps_of(result), (0, 1))
    over_steps.axes("step", "share of held-out answers right", ticks(0, over_steps.x1, 5), y)
    loads = [int(load) for load in result["runs"][0]["curve"][-1]["by_load"]]
    over_loads = Panel(middle + GAP / 2, WIDTH - RIGHT,
                       (math.log2(loads[0]) - 0.3, math.log2(loads[-1]) + 0.3), (0, 1))
    over_loads.axes("pairs in the sequence", "the same at the end, by the number of pairs",
                    [(math.log2(load), str(load)) for load in loads], y)
    for r in result["runs"]:
        colour, last = COLOUR[r["mixer"]], r["curve"][-1]["by_load"]
        over_steps.curve(column(r, "accuracy"), colour)
        over_loads.curve([(math.log2(int(load)), last[load]) for load in last], colour, marks=True)
    return over_steps.svg + over_loads.svg


def legend(result):
    svg, x = [], LEFT
    for r in result["runs"]:
        text = f"{r['mixer']}, {r['parameters'] / 1e6:.2f} M parameters"
        svg.append(line(x, 20, x + 24, 20, COLOUR[r["mixer"]], ' stroke-width="3"'))
        svg.append(label(x + 30, 24, text, "start"))
        x += 44 + 6.8 * len(text)
    return svg


def source(result):
    """Where and how it was measured, below the panels."""
    text = f"{result['machine']}; {result['gdr']}; commit {result['commit']}"
    return textwrap.wrap(text, 125) + textwrap.wrap(result["command"], 125)


def draw(result):
    body = legend(result) + (draw_loss if result["measure"] == "loss" else draw_accuracy)(result)
    lines = source(result)
    body += [label(LEFT, HEIGHT + 12 + 16 * i, text, "start", 11) for i, text in enumerate(lines)]
    height = HEIGHT + 16 * len(lines) + 8
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" fill="#222">\n'
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(body)
            + "\n</svg>\n")


def table(results):
    rows = ["| task | mixer | parameters | held out | tokens/s | seconds | peak memory, MiB |",
            "|---|---|---|---|---|---|---|"]
    for result in results:
        for r in result["runs"]:
            peak = f"{r['peak_bytes'] / 2**20:.0f}" if r["peak_bytes"] else ""
            rows.append(
                f"| {result['task']} | {r['mixer']} | {r['parameters']} | "
                f"{r['curve'][-1][result['measure']]:.4f} {result['unit']} | "
                f"{r['tokens_per_second']:.0f} | {r['seconds']:.0f} | {peak} |")
    return "\n".join(rows)


def main():
    modes = {a for a in sys.argv[1:] if a.startswith("--")}
    paths = [a for a in sys.argv[1:] if not a.startswith("--")]
    if not modes <= {"--check", "--table"} or not (paths or modes):
        print(__doc__, file=sys.stderr)
        return 2
    results = {}
    for path in paths:
        with open(path, encoding="utf-8") as f:
            results[path] = json.load(f)
    if "--table" in modes:
        print(table(results.values()))
        return 0
    differ = 0
    for path, result in results.items():
        svg = os.path.splitext(path)[0] + ".svg"
        if "--check" not in modes:
            with open(svg, "w", encoding="utf-8") as f:
                f.write(draw(result))
            continue
        with open(svg, encoding="utf-8") as f:
            same = f.read() == draw(result)
        print(f"{os.path.basename(svg)} {'is' if same else 'is not'} the drawing of its numbers")
        differ += not same
    return differ != 0


if __name__ == "__main__":
    sys.exit(main())
