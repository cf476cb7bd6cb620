"""Save every step, keep one, upload at 1 MB/s: no broken commit, and every checkpoint that was whole is collected or named.

    python -m tests.campaigns.races [--count 200] [--steps 20] [--seed 1] [--pace 1] [--kind tmp|ext4|xfs|tmpfs]

The writer is a process of its own that writes a Trainer's files in the Trainer's order, `--pace` milliseconds apart (1: a
checkpoint each 10 ms, as fast as a Trainer was measured; 0: as fast as the disk), and then deletes the one before. It writes
down which became whole. What an upload read to its end unchanged must be one state, byte by byte.
`--kind tmpfs` holds descriptors, `xfs` reflinks, `ext4` and the default (the temporary folder) link.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from launcher.outputs.filesystem import RUNGS, Rung
from tests.campaigns import quick_writer
from tests.support.cli import ROOT
from tests.support.filesystems import mounted
from tests.support.watching import SlowUploads, Watching, state_of

RATE = 1_000_000


def files(seed: int, step: int) -> dict[str, bytes]:
    """A small checkpoint, in the order in which a Trainer writes it."""
    chance = random.Random(f"{seed}/{step}")
    model = chance.randbytes(chance.randrange(2_000, 20_000))
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(model)], "data_offsets": [0, len(model)]}}).encode()
    torch = quick_writer.torch_file
    return {
        "config.json": json.dumps({"architectures": ["Quick"], "model_type": "quick", "step": step}).encode(),
        "model.safetensors": struct.pack("<Q", len(header)) + header + model,
        "training_args.bin": torch("training_args", {"step": step}),
        "optimizer.pt": torch("optimizer", {"state": chance.randbytes(len(model))}),
        "scheduler.pt": torch("scheduler", {"last_epoch": step}),
        "rng_state.pth": torch("rng_state", {"python": chance.randbytes(500)}),
        "trainer_state.json": json.dumps({"global_step": step, "epoch": step / 10, "log_history": []}).encode(),
    }


def write(output: str, journal: str, seed: int, steps: int, pace: float) -> None:
    """The writer."""
    contents = [files(seed, step) for step in range(steps + 1)]
    with open(journal, "a", buffering=1) as whole:
        for step in range(1, steps + 1):
            folder = f"{output}/checkpoint-{step}"
            os.mkdir(folder)
            for name, data in contents[step].items():
                with open(f"{folder}/{name}", "wb") as file:
                    file.write(data)
                time.sleep(pace)
            whole.write(f"{step}\n")
            if step > 1:
                shutil.rmtree(f"{output}/checkpoint-{step - 1}")


@contextlib.contextmanager
def place(kind: str) -> Iterator[tuple[Path, tuple[Rung, ...]]]:
    """A folder on a file system of this kind, and the ways to capture that are tried there."""
    if kind == "tmp":
        folder = Path(tempfile.mkdtemp(prefix="launcher-campaign-"))
        try:
            yield folder, RUNGS
        finally:
            shutil.rmtree(folder)
        return
    with mounted(kind) as folder:
        yield folder, ("held",) if kind == "tmpfs" else RUNGS


def run(folder: Path, rungs: tuple[Rung, ...], seed: int, steps: int, pace: float, figures: Counter[str]) -> list[str]:
    """One run; returns the violations."""
    folder.mkdir()
    output, journal = folder / "output", folder / "journal"
    uploads = SlowUploads(RATE)
    watching = uploads.watching = Watching(output, rungs=rungs, on_capture=uploads.put)
    words = ["--write", output, "--journal", journal, "--seed", seed, "--steps", steps, "--pace", pace]
    command = [sys.executable, "-m", "tests.campaigns.races", *map(str, words)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=600)
    watching.finish()
    uploads.drain()
    whole = [int(line) for line in journal.read_text().split()]
    stored: Counter[str] = Counter()
    violations = []
    for capture, content in uploads.committed:
        stored[capture.name] += 1
        if state_of(content, seed, [int(capture.name.rpartition("-")[2])], files) is None:
            violations.append(f"seed {seed}: {capture.name} was committed broken")
    for step in whole:
        name = f"job/checkpoint-{step}"
        figures["whole"] += 1
        figures["collected"] += stored[name] > 0
        figures["twice"] += stored[name] > 1
        if not stored[name] and name in watching.reported:
            figures["named"] += 1
            figures[f"named: {watching.reported[name]}"] += 1
        elif not stored[name]:
            violations.append(f"seed {seed}: {name} is lost without a word")
    figures["superseded"] += len(uploads.superseded)
    shutil.rmtree(folder)
    return violations


def campaign(count: int, *, seed: int, steps: int, pace: float, kind: str) -> tuple[Counter[str], list[str]]:
    """`count` runs on one file system: the figures, and the violations."""
    figures: Counter[str] = Counter()
    violations: list[str] = []
    with place(kind) as (folder, rungs):
        for number in range(count):
            violations += run(folder / f"run-{number}", rungs, seed + number, steps, pace, figures)
    return figures, violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=1.0, help="milliseconds between two files")
    parser.add_argument("--kind", default="tmp", choices=["tmp", "ext4", "xfs", "tmpfs"])
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--journal", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.journal, arguments.seed, arguments.steps, arguments.pace / 1000)
        return 0
    started = time.monotonic()
    sys.setswitchinterval(0.0005)  # As the main job does.
    figures, violations = campaign(
        arguments.count, seed=arguments.seed, steps=arguments.steps, pace=arguments.pace, kind=arguments.kind
    )
    reasons = [f"{value} × {key[7:]}" for key, value in figures.items() if key.startswith("named: ")]
    print(
        f"{arguments.kind}, pace {arguments.pace} ms: {arguments.count} runs, {figures['whole']} whole, "
        f"{figures['collected']} collected ({figures['twice']} twice), {figures['named']} named as not collected "
        f"({'; '.join(reasons)}), "
        f"{figures['superseded']} uploads given up, {len(violations)} violations ({time.monotonic() - started:.0f} s)"
    )
    for each in violations:
        print(" ", each)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
