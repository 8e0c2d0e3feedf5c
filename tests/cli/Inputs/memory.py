"""memory.py GDRC ARGUMENT...: the command under more and more address space, from where it starts at
all to where it succeeds: until then it ends with 3 and says that memory ran out."""
import resource
import subprocess
import sys


def run(command, limit):
    def set_limit():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return subprocess.run(command, preexec_fn=set_limit, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)


limit, failures = 8 << 20, 0
while run([sys.argv[1], "--version"], limit).returncode != 0:
    limit = int(limit * 1.02)
while True:
    done = run(sys.argv[1:], limit)
    if done.returncode == 0:
        break
    failures += 1
    if done.returncode != 3 or "out of memory" not in done.stderr and "no memory" not in done.stderr:
        print("%d MB: %d %s" % (limit >> 20, done.returncode, done.stderr))
        sys.exit(1)
    limit = int(limit * 1.02)
print("%d times without memory, then done" % failures)
