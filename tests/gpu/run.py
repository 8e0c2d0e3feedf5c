"""Runs a command that needs a GPU: run.py COMMAND ARGUMENT...

Exit status 77 (skipped) where there is no NVIDIA GPU; where there is one, "the environment cannot do
it" is a failure like any other."""
import glob
import subprocess
import sys

if not glob.glob("/dev/nvidia[0-9]*") and not glob.glob("/dev/dxg"):
    print("no NVIDIA GPU on this machine")
    sys.exit(77)
sys.exit(subprocess.run(sys.argv[1:]).returncode)
