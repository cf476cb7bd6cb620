"""What watching costs: from the writer's last byte to "captured", memory with 100,000 files, processor when nothing happens.

    python -m benchmarks.watching [--checkpoints 300] [--files 100000] [--idle 30]

The writer is a process of its own: it writes the files of a Trainer checkpoint, takes the time when the last one is closed,
keeps one checkpoint, and pauses 30 ms. The clock is the machine's (CLOCK_MONOTONIC), one for both processes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.campaigns import races
from tests.support.cli import ROOT, Launcher
from tests.support.watching import Watching, forget

WRITE = """
import os, shutil, sys, time
from tests.campaigns.races import files
for step in range(int(sys.argv[2])):
    folder = f"{sys.argv[1]}/checkpoint-{step}"
    content = files(1, step)
    os.mkdir(folder)
    for name, data in content.items():
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)
    print(time.monotonic(), flush=True)
    time.sleep(0.03)
    if step:
        shutil.rmtree(f"{sys.argv[1]}/checkpoint-{step - 1}")
"""
MANY = """
import os, sys, time
out = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
count = int(sys.argv[1])
for number in range(count):
    if number % 100 == 0:
        os.makedirs(f"{out}/records/part-{number // 100:05}")
    with open(f"{out}/records/part-{number // 100:05}/record-{number:07}.json", "w") as file:
        file.write("{}")
print("written", flush=True)
time.sleep(3600)
"""


def latency(kind: str, count: int) -> str:
    """Milliseconds from the last close to the capture written down, on one kind of file system."""
    with races.place(kind) as (folder, rungs):
        watching = Watching(folder / "output", spool=folder / "spool", rungs=rungs, settle=60)
        command = [sys.executable, "-c", WRITE, str(watching.output), str(count)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        watching.finish()
        closed = [float(line) for line in done.stdout.split()]
        captured = {capture.name: at for capture, at in zip(watching.captured, watching.times)}
        delays = [
            (captured[f"job/checkpoint-{step}"] - at) * 1e3
            for step, at in enumerate(closed)
            if f"job/checkpoint-{step}" in captured
        ]
        how = watching.captured[0].how
        for capture in watching.captured:
            forget(watching, capture)
        shutil.rmtree(watching.output)
    delays.sort()
    return (
        f"{kind:6} {how:8} captured {len(delays)} of {count}: median {statistics.median(delays):.2f} ms, "
        f"p99 {delays[int(len(delays) * 0.99)]:.2f} ms, max {delays[-1]:.2f} ms"
    )


def at_rest(count: int, idle: float) -> str:
    """The launcher's memory beside a job that wrote many files, and its processor time while nothing happens."""
    home = Path(tempfile.mkdtemp(prefix="launcher-benchmark-"))
    process = Launcher(home).start(
        "training", "run", "many", "--launch", "exec", "--", "python", "-c", MANY, str(count)
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if line.strip() == "written":
                break
        time.sleep(30)  # Quiet, looked at, and scanned.
        before = _processor(process.pid)
        time.sleep(idle)
        share = (_processor(process.pid) - before) / idle
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak, now = (int(status.partition(f"{key}:")[2].split()[0]) / 1000 for key in ("VmHWM", "VmRSS"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)
        shutil.rmtree(home)
    return f"{count} files: launcher {now:.0f} MB, peak {peak:.0f} MB; {share * 100:.2f} % of a core over {idle:.0f} s of nothing"


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=300)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--idle", type=float, default=30)
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)  # As the main job does.
    for kind in ("ext4", "xfs", "tmpfs"):
        print(latency(kind, arguments.checkpoints))
    print(at_rest(arguments.files, arguments.idle))
    print(at_rest(1, arguments.idle))


if __name__ == "__main__":
    main()
