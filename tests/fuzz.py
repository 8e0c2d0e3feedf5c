"""Runs one libFuzzer target for a while: fuzz.py TARGET SECONDS CORPUS SOURCE_ROOT.

New inputs go to a folder of this build; CORPUS (committed, may be absent) and, for readers of
specs, specs/ are the seeds. A crash leaves its input beside the target and fails."""
import os
import subprocess
import sys

target, seconds = sys.argv[1:3]
corpus, root = map(os.path.abspath, sys.argv[3:])
if not os.path.exists(target):
    print("not built (no clang with libFuzzer)")
    sys.exit(77)
name = os.path.basename(target)
found = target + ".found"
os.makedirs(found, exist_ok=True)
seeds = [d for d in (corpus, os.path.join(root, "specs") if "spec" in name else "")
         if os.path.isdir(d)]
limits = ["-max_total_time=" + seconds, "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536",
          "-print_final_stats=1", "-artifact_prefix=" + target + ".crash-"]
sys.exit(subprocess.run([target, *limits, found, *seeds], cwd=os.path.dirname(target)).returncode)
