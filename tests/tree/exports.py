"""The library exports what its header declares and nothing else: exports.py NM LIBRARY HEADER."""
import re
import subprocess
import sys

nm, library, header = sys.argv[1:]
listing = subprocess.run([nm, "-D", "--defined-only", library], check=True, capture_output=True,
                         text=True).stdout
exported = {line.split()[-1].split("@")[0] for line in listing.splitlines() if line.strip()}
with open(header, encoding="utf-8") as f:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", f.read(), flags=re.S)
declared = set(re.findall(r"\b(gdr_\w+)\s*\([^;{]*?\)\s*(?:__attribute__[^;]*)?;", text))
declared -= set(re.findall(r"\(\s*\*\s*(gdr_\w+)\s*\)", text))  # types of callbacks

wrong = [f"exported but not in the header: {name}" for name in sorted(exported - declared)]
wrong += [f"in the header but not exported: {name}" for name in sorted(declared - exported)]
if not declared:
    wrong.append("no function found in " + header)
print("\n".join(wrong) if wrong else f"{len(declared)} functions")
sys.exit(1 if wrong else 0)
