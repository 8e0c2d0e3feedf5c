"""exits.py STATUS COMMAND...: runs the command; fails unless it ends with that exit status and, when
that is not 0, says something about it in one line on standard error."""
import subprocess
import sys

want, command = int(sys.argv[1]), sys.argv[2:]
done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
sys.stdout.write(done.stdout)
sys.stdout.write(done.stderr)
if done.returncode != want:
    print("exit status %d, not %d" % (done.returncode, want))
    sys.exit(1)
if want and not done.stderr.strip():
    print("no message on standard error")
    sys.exit(1)
