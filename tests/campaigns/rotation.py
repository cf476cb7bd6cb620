"""Rotation cannot lose a checkpoint: a Trainer that saves every step and keeps one, many times.

    python -m tests.campaigns.rotation [--runs 50] [--steps 20] [--processes 1] [--busy-disk]

Counts the checkpoints that the Trainer wrote, those that were collected, and those that were reported as missed with their
reason. A checkpoint that is neither is a broken promise: the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.cli import ROOT, Launcher


def one(launcher: Launcher, run: int, steps: int, processes: int) -> tuple[int, list[str], list[str]]:
    """(collected, reported as missed, silently lost) of one run."""
    name = f"run-{run}"
    launcher(
        "training", "run", name, "-C", "base", "--accels", str(processes), "--", "examples/fine_tune.py",
        "--steps", str(steps), "--save-steps", "1", "--save-total-limit", "1", timeout=300,
    )  # fmt: skip
    found = {each["metadata"]["name"] for each in launcher.json("training", "checkpoints", name)}
    record = json.loads((launcher.job(name) / "record.json").read_text())
    reported = {each["name"]: each["reason"] for each in record["skipped"]}
    wanted = [f"{name}/checkpoint-{step}" for step in range(1, steps + 1)] + [name]
    missed = [f"{each}: {reported[each]}" for each in wanted if each not in found and each in reported]
    lost = [each for each in wanted if each not in found and each not in reported]
    return sum(each in found for each in wanted), missed, lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--busy-disk", action="store_true", help="write and sync 64 MB again and again beside it")
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    launcher = Launcher(home)
    started = time.monotonic()
    busy = None
    if arguments.busy_disk:
        writer = f"while :; do dd if=/dev/zero of={home}/busy bs=1M count=64 conv=fsync 2>/dev/null; done"
        busy = subprocess.Popen(["sh", "-c", writer], start_new_session=True)
    total, missed, lost = 0, [], []
    try:
        subprocess.run(
            [sys.executable, ROOT / "examples/make_tiny_model.py", home / "model"], check=True, capture_output=True
        )
        launcher("checkpoint", "push", "base", "--file", home / "model")
        for run in range(arguments.runs):
            collected, reported, silent = one(launcher, run, arguments.steps, arguments.processes)
            total, missed, lost = total + collected, missed + reported, lost + silent
    finally:
        if busy:
            os.killpg(busy.pid, signal.SIGKILL)
            busy.wait()
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    load = ", busy disk" if busy else ""
    written = arguments.runs * (arguments.steps + 1)
    print(
        f"{arguments.runs} runs, {arguments.processes} process(es){load}: {written} checkpoints written, {total} collected, "
        f"{len(missed)} reported as missed, {len(lost)} lost without a word ({time.monotonic() - started:.0f} s)"
    )
    for line in [*missed, *lost]:
        print(" ", line)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
