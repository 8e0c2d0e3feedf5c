"""Rules about the source tree: tree.py RULE ROOT, with RULE one of

  layers  a folder includes only itself and the folders below it; LLVM's headers stay in codegen/
          and runtime/, CUDA's out of all
  paths   no file names a place on somebody's machine
  size    a source file has fewer than 600 lines
  docs    every file that README.md and docs/ name in backticks or link to exists
"""
import os
import re
import subprocess
import sys

LAYERS = {
    "base": [],
    "ir": ["base"],
    "frontend": ["base", "ir"],
    "passes": ["base", "ir"],
    "codegen": ["base", "ir", "passes"],
    "runtime": ["base", "ir", "frontend", "passes", "codegen"],
    "driver": ["base", "ir", "frontend", "passes", "codegen", "runtime"],
}
LLVM_FOLDERS = {"codegen", "runtime"}
SOURCE = (".c", ".h", ".def", ".re", ".y")
MAX_LINES = 600


def tracked(root):
    """Files under version control, or every file outside build folders when there is no git."""
    git = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True)
    if git.returncode == 0 and git.stdout:
        return [p for p in git.stdout.decode().split("\0") if p and os.path.isfile(f"{root}/{p}")]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [d for d in folders if not d.startswith(("build", "."))]
        found += [os.path.relpath(os.path.join(folder, f), root) for f in files]
    return found


def text_of(root, path):
    with open(os.path.join(root, path), "rb") as f:
        data = f.read()
    return None if b"\0" in data else data.decode("utf-8", "replace")


def layers(root):
    wrong = []
    for path in tracked(root):
        folder = path.split("/")[0]
        if folder not in LAYERS or not path.endswith(SOURCE):
            continue
        for number, line in enumerate(text_of(root, path).split("\n"), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
            if not match:
                continue
            header = match.group(2)
            top = header.split("/")[0]
            where = f"{path}:{number}: {folder}/ includes {header}"
            if match.group(1) == '"' and top != folder and top not in LAYERS[folder]:
                wrong.append(where)
            if top in ("llvm-c", "llvm") and folder not in LLVM_FOLDERS:
                wrong.append(where + ": LLVM belongs to codegen/ and runtime/")
            if top in ("cuda.h", "cuda_runtime.h"):
                wrong.append(where + ": the driver API is declared in runtime/ and loaded at run time")
    return wrong


def paths(root):
    places = re.compile(r"(?<![\w.$}~])/(?:home/\w|root/|work/|Users/|tmp/build|mnt/\w)")
    wrong = []
    for path in tracked(root):
        text = text_of(root, path)
        if text is None or path == "tests/tree/tree.py":
            continue
        for number, line in enumerate(text.split("\n"), 1):
            if places.search(line):
                wrong.append(f"{path}:{number}: {line.strip()[:100]}")
    return wrong


def size(root):
    wrong, total = [], 0
    for path in tracked(root):
        if not path.endswith(SOURCE + (".py", ".cmake", ".gdr")):
            continue
        lines = text_of(root, path).count("\n")
        total += lines
        if lines >= MAX_LINES:
            wrong.append(f"{path}: {lines} lines, {MAX_LINES - 1} allowed")
    print(f"{total} lines of source")
    return wrong


def docs(root):
    folders = sorted(d for d in os.listdir(root) if os.path.isdir(os.path.join(root, d)))
    name = re.compile(r"(?<![\w/-])(?:\./)?((?:%s)/[\w./-]*[\w/])" % "|".join(map(re.escape, folders)))
    wrong = []
    for path in tracked(root):
        if not path.endswith(".md"):
            continue
        for number, line in enumerate(text_of(root, path).split("\n"), 1):
            quoted = re.findall(r"`([^`]+)`", line)
            linked = re.findall(r"\]\(([^)#:]+)\)", line)
            for text in quoted:
                for found in name.findall(" " + text if text.startswith("/") else text):
                    if found.startswith("build/") or re.search(r"NAME|FOLDER|X\b", text):
                        continue
                    if not os.path.exists(os.path.join(root, found)):
                        wrong.append(f"{path}:{number}: no file {found}")
            for target in linked:
                if not os.path.exists(os.path.join(root, os.path.dirname(path), target)):
                    wrong.append(f"{path}:{number}: no file {target}")
    return wrong


def main():
    rule, root = sys.argv[1:]
    wrong = {"layers": layers, "paths": paths, "size": size, "docs": docs}[rule](root)
    print("\n".join(wrong) if wrong else f"{rule}: nothing to object to")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
