"""The same flat file and the same root checkpoint, rewritten in place again and again during uploads: never two states mixed.

    python -m tests.campaigns.rewrites [--count 1000] [--seed 1] [--kind ext4|xfs|tmpfs] [--settle 0.1]

The writer is a process of its own: it truncates and rewrites file by file, with pauses between two files of a save that are
up to half as long again as quiet needs, and longer ones between saves. Uploads run at 1 MB/s meanwhile. What an upload read
to its end unchanged must be one state, byte by byte. (A writer that the machine stopped between two files for as long as the
watcher's patience cannot be told from one that is done: such a mix is counted as excused, at most one for each such
stop.) `ext4` copies and links, `xfs` reflinks, `tmpfs` copies and holds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from launcher.outputs.filesystem import Rung
from tests.campaigns import quick_writer, races
from tests.support.cli import ROOT
from tests.support.watching import SlowUploads, Watching, digest

FLAT = "last.ckpt"


def root_files(seed: int, step: int) -> dict[str, bytes]:
    """The root's own checkpoint after a save."""
    content = races.files(seed, step)
    return {name: content[name] for name in ("config.json", "model.safetensors", "training_args.bin")}


def flat_file(seed: int, step: int) -> dict[str, bytes]:
    """The flat file after a save: always as large, so that its size tells nothing."""
    return {FLAT: quick_writer.torch_file("last", {"state": random.Random(f"flat/{seed}/{step}").randbytes(30_000)})}


def write(output: str, seed: int, count: int, settle: float) -> None:
    """The writer. Half of what it writes goes out in two pieces."""
    chance = random.Random(seed)

    def put(content: dict[str, bytes]) -> None:
        for name, data in content.items():
            cut = chance.choice([len(data), chance.randrange(len(data))])
            with open(os.path.join(output, name), "wb", buffering=0) as file:
                file.write(data[:cut])
                if cut < len(data):
                    time.sleep(chance.choice([0, 0.001, 0.005]))
                    file.write(data[cut:])
            closed = time.monotonic()
            time.sleep(chance.choice([0, 0, 0, settle / 4, settle * 0.75]))
            if time.monotonic() - closed > settle * 4:
                print("stood still", flush=True)

    for step in range(1, count + 1):
        put(flat_file(seed, step))
        put(root_files(seed, step))
        time.sleep(chance.choice([0, 0, settle / 2, settle * 2, settle * 4]))


def campaign(count: int, *, seed: int, kind: str, settle: float) -> tuple[Counter[str], list[str]]:
    """Rewrites both `count` times on one file system: the figures, and the violations."""
    with races.place(kind) as (folder, rungs):
        return _run(folder, rungs, seed, count, settle)


def _run(folder: Path, rungs: tuple[Rung, ...], seed: int, count: int, settle: float) -> tuple[Counter[str], list[str]]:
    uploads = SlowUploads(races.RATE)
    watching = uploads.watching = Watching(
        folder / "output", spool=folder / "spool", rungs=rungs, settle=settle, on_capture=uploads.put
    )
    words = ["--write", watching.output, "--count", count, "--seed", seed, "--settle", settle]
    command = [sys.executable, "-m", "tests.campaigns.rewrites", *map(str, words)]
    done = subprocess.run(command, check=True, cwd=ROOT, timeout=3000, stdout=subprocess.PIPE, text=True)
    watching.finish()
    uploads.drain()
    figures: Counter[str] = Counter(f"by {capture.how}" for capture in watching.captured)
    violations = []
    wanted = {digest(files(seed, step)): step for files in (root_files, flat_file) for step in range(1, count + 1)}
    states: dict[str, set[int]] = {"job": set(), f"job/{FLAT}": set()}
    for capture, content in uploads.committed:
        state = wanted.get(digest(content))
        if state is None and capture.name == "job" and figures["excused"] < done.stdout.count("stood still"):
            figures["excused"] += 1
        elif state is None:
            violations.append(f"{capture.name} ({capture.how}) mixes states")
        else:
            states[capture.name].add(state)
    figures["committed"], figures["given up"] = len(uploads.committed), len(uploads.superseded)
    figures["states of the root"], figures["states of the file"] = len(states["job"]), len(states[f"job/{FLAT}"])
    for name, found in states.items():
        if count not in found:
            violations.append(f"the last state of {name} is not there")
    shutil.rmtree(watching.output)
    return figures, violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="ext4", choices=["tmp", "ext4", "xfs", "tmpfs"])
    parser.add_argument(
        "--settle", type=float, default=0.1, help="seconds; the writer must not be stopped for five times as long"
    )
    parser.add_argument("--write", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.seed, arguments.count, arguments.settle)
        return 0
    started = time.monotonic()
    figures, violations = campaign(arguments.count, seed=arguments.seed, kind=arguments.kind, settle=arguments.settle)
    found = ", ".join(f"{value} {name}" for name, value in figures.items())
    seconds = time.monotonic() - started
    print(
        f"{arguments.kind}: {arguments.count} rewrites of each: {found}; {len(violations)} violations ({seconds:.0f} s)"
    )
    for each in violations:
        print(" ", each)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
