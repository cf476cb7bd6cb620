"""What the launcher adds to bare torchrun: a no-op script on two processes, warm cache, interleaved.

    python -m benchmarks.overhead [--rounds 20]

Prints medians and the median of the differences, round by round; also `launcher --help` and the memory of the launcher
beside a running job.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.cli import PROGRAM, ROOT, Launcher


def seconds(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def memory(launcher: Launcher) -> float:
    """Peak resident MB of the launcher process itself beside a job that runs for three seconds."""
    process = launcher.start("training", "run", "idle", "-C", "base", "--", "sleep", "3")
    time.sleep(2.5)
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.wait()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        launcher = Launcher(home)
        noop = home / "noop.py"
        noop.write_text("")
        (home / "model").mkdir()
        (home / "model" / "notes.txt").write_text("a checkpoint")
        launcher("checkpoint", "push", "base", "--file", home / "model")
        env = launcher.env | {"OMP_NUM_THREADS": "1"}
        bare = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", str(noop)]
        ours = [PROGRAM, "training", "run", "noop", "-C", "base", "--accels", "2", "--", str(noop)]
        for command in (bare, ours):
            seconds(command, env)
        pairs = [(seconds(bare, env), seconds(ours, env)) for _ in range(rounds)]
        differences = sorted(b - a for a, b in pairs)
        print(f"bare torchrun      median {statistics.median(a for a, _ in pairs):.3f} s")
        print(f"launcher           median {statistics.median(b for _, b in pairs):.3f} s")
        print(
            f"difference         median {statistics.median(differences):.3f} s"
            f"  (min {differences[0]:.3f}, max {differences[-1]:.3f}, {rounds} rounds)"
        )
        times = [seconds([PROGRAM, "--help"], env) for _ in range(rounds)]
        print(f"launcher --help    median {statistics.median(times):.3f} s")
        print(f"memory beside a job {memory(launcher):.0f} MB")
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)


if __name__ == "__main__":
    os.environ.pop("LAUNCHER_STORE", None)
    main()
