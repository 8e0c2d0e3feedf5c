"""The specs shown in the documents are specs: snippets.py GDRC ROOT runs `gdrc check` on each."""
import glob
import os
import re
import subprocess
import sys
import tempfile

gdrc, root = sys.argv[1:]
failures = count = 0
for path in [os.path.join(root, "README.md"), *glob.glob(os.path.join(root, "docs", "*.md"))]:
    with open(path, encoding="utf-8") as f:
        blocks = re.findall(r"^```(?:gdr)?\n(.*?)^```", f.read(), flags=re.S | re.M)
    for block in blocks:
        if not re.search(r"^variant \w+ \{", block, flags=re.M):
            continue
        count += 1
        with tempfile.NamedTemporaryFile("w", suffix=".gdr") as spec:
            spec.write(block)
            spec.flush()
            done = subprocess.run([gdrc, "check", spec.name], capture_output=True, text=True)
        if done.returncode != 0:
            failures += 1
            print(f"{path}:\n{done.stdout}{done.stderr}")
print(f"{count} specs in documents, {failures} refused")
sys.exit(1 if failures or not count else 0)
