"""An init under pressure: orphans and child signals by the thousand, while a job runs (T24).

    python -m tests.campaigns.orphans --count 10000 --storms 1000

One `launcher entrypoint` as PID 1 for each kind (plain, main job): its command makes orphans by double forks, two in three of
which end at once. Then a storm: `storms` commands of which each ends while twenty children end. Prints zombies left after a
second, growth of memory, and ends that were missed. Exits with 1 on any violation.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.cli import Launcher
from tests.support.entrypoint import entrypoint, environment

MAKE = """
import os, sys, time
sys.stdin.readline()
count, seconds = int(sys.argv[1]), float(sys.argv[2])
start = time.monotonic()
for each in range(count):
    if os.fork() == 0:
        if os.fork() == 0:
            if each % 3 == 0:
                time.sleep(0.05)
        os._exit(0)
    os.wait()
    ahead = seconds * each / count - (time.monotonic() - start)
    if ahead > 0.01:
        time.sleep(ahead)
print(f"{time.monotonic() - start:.1f}", flush=True)
sys.stdin.readline()
sys.exit(7)
"""
STORM = """
import os, sys
from launcher import init
from launcher.runners import signals
missed = 0
for each in range(int(sys.argv[1])):
    if (pid := os.fork()) == 0:
        signals.hold()
        script = "i=0; while [ $i -lt 20 ]; do : & i=$((i+1)); done; exit %d" % (each % 256)
        os._exit(init.run(init.Request(["sh", "-c", script], grace=5, single_child=False, rewrite={}), os.environ))
    missed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != each % 256
print(missed)
"""


def memory(pid: int) -> int:
    """Resident kilobytes."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def zombies(pid: int) -> int:
    """Dead children that nobody has reaped."""
    count = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += fields[0] == "Z" and int(fields[1]) == pid
    return count


def orphans(kind: str, count: int, seconds: float, megabytes: float = 5) -> bool:
    """Whether a run kept the bars: 0 zombies after a second (60 on a loaded machine), growth of memory, the command's code."""
    with tempfile.TemporaryDirectory() as home:
        plain = kind == "plain"
        words = [] if plain else ["--name", "orphans"]
        env = environment() if plain else Launcher(Path(home)).env
        command = [sys.executable, "-I", "-S", "-c", MAKE, str(count), str(seconds)]
        with entrypoint(*words, "--", *command, place="PID 1", env=env) as it:
            assert it.process.stdin
            time.sleep(3)
            before = memory(it.pid)
            it.process.stdin.write(b"\n")
            it.process.stdin.flush()
            took = it.line(seconds * 20 + 60)
            ended = time.monotonic()
            while (left := zombies(it.pid)) and time.monotonic() < ended + 60:
                time.sleep(0.05)
            waited, grown = time.monotonic() - ended, memory(it.pid) - before
            it.process.stdin.close()
            code = it.wait()
    print(
        f"{kind}: {count} orphans in {took} s, {left} zombies {waited:.2f} s later, memory {grown / 1000:+.1f} MB, code {code}"
    )
    return left == 0 and grown <= megabytes * 1000 and code == 7


def storm(count: int) -> bool:
    """Whether no end was missed of commands that end while their children do."""
    done = subprocess.run([sys.executable, "-c", STORM, str(count)], capture_output=True, text=True)
    print(f"storms: {count}, {done.stdout.strip()} ends missed{done.stderr}")
    return done.stdout.strip() == "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which the orphans are made, at the soonest")
    parser.add_argument("--storms", type=int, default=1000)
    given = parser.parse_args()
    kept = [orphans(kind, given.count, given.seconds) for kind in ("plain", "main job")]
    sys.exit(not all([*kept, storm(given.storms)]))


if __name__ == "__main__":
    main()
