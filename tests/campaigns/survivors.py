"""A rank that ignores the stop, one that is paused, one that cannot be killed, torchrun's agent killed: the end is on time.

    python -m tests.campaigns.survivors [--count 20] [--grace 6] [--seed 1] [--kind deaf --kind paused …]

Each round runs two ranks under torchrun that have saved a checkpoint, does something to one of them at a random moment, and
sends SIGTERM to the launcher. Bar: it ends at most 2 s after the grace, the checkpoint is stored, and what outlives SIGKILL is
named with process id and state. The rank that cannot be killed writes to a frozen file system (state D; needs root).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.kills import lives, tree
from tests.support.cli import ROOT, Launcher
from tests.support.filesystems import mounted

KINDS = ("deaf", "paused", "agent", "stuck")
RANK = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import quick_writer
rank, kind, place = int(os.environ["RANK"]), sys.argv[2], sys.argv[3]
if kind == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 0:
    folder = os.path.join(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], "checkpoint-1")
    os.mkdir(folder)
    for name, data in quick_writer.content(1, 1).items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
print(f"rank {rank} pid {os.getpid()}", flush=True)
while True:
    if rank == 1 and kind == "stuck":
        with open(place, "w") as file:
            file.write("x")
    time.sleep(0.01)
"""


@dataclass
class Figures:
    """Of one kind."""

    seconds: list[float] = field(default_factory=list)
    stored: int = 0
    named: int = 0
    """Rounds whose last words name a process that outlived SIGKILL."""
    violations: list[str] = field(default_factory=list)

    def text(self, grace: float) -> str:
        """The table's line."""
        return (
            f"{len(self.seconds)} rounds, grace {grace:g} s: over after {min(self.seconds):.2f} to {max(self.seconds):.2f} s, "
            f"{self.stored} checkpoints stored, survivors named in {self.named}; {len(self.violations)} violations"
        )


def one(home: Path, kind: str, number: int, *, grace: float, seed: int, slack: float, figures: Figures) -> None:
    """One job, one fault, one stop."""
    chance = random.Random(f"{seed}/{kind}/{number}")
    launcher = Launcher(home / f"{kind}-{number}")
    launcher.home.mkdir()
    script = launcher.home / "rank.py"
    script.write_text(RANK)
    with _place(kind) as place:
        process = launcher.start(
            "training", "run", "job", "--accels", "2", "--grace", f"{grace}s", "--settle", "0.1s", "--",
            script, ROOT / "tests" / "campaigns", kind, place / "file",
        )  # fmt: skip
        assert process.stdout
        output, pids = "", {}
        for line in process.stdout:
            output += line
            words = line.split()
            if " pid " in line:
                pids[int(words[-3])] = int(words[-1])
            if len(pids) == 2 and "Stored job/checkpoint-1" in output:
                break
        below = tree(process.pid)
        time.sleep(chance.uniform(0, 0.3))
        sent = time.monotonic()
        if kind == "paused":
            os.kill(pids[1], signal.SIGSTOP)
        if kind == "stuck":
            subprocess.run(["fsfreeze", "--freeze", place], check=True)
        try:
            if kind == "agent":
                os.kill(_parent(pids[0]), signal.SIGKILL)
            process.send_signal(signal.SIGTERM)
            output += process.communicate()[0]
            figures.seconds.append(time.monotonic() - sent)
        finally:
            if kind == "stuck":
                subprocess.run(["fsfreeze", "--unfreeze", place], check=True)
    cause = launcher.result("job")["cause"]
    wrong = []
    if figures.seconds[-1] > grace + slack:
        wrong.append(f"over after {figures.seconds[-1]:.2f} s")
    names = [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", "job")]
    figures.stored += names == ["job/checkpoint-1"]
    if names != ["job/checkpoint-1"]:
        wrong.append(f"stored: {names}")
    named = f"({pids[1]}) in " in cause and "state D" in cause
    figures.named += named
    if named != (kind == "stuck"):
        wrong.append(f"survivors: {cause}")
    deadline = time.monotonic() + 5  # One that was stuck dies when it is let go.
    while (left := [pid for pid in below if lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        wrong.append(f"processes are left: {left}")
    if wrong:
        figures.violations.append(f"{kind} {number}: {'; '.join(wrong)}\n{output}")
    shutil.rmtree(launcher.home)


@contextlib.contextmanager
def _place(kind: str) -> Iterator[Path]:
    """Where rank 1 writes."""
    if kind == "stuck":
        with mounted("ext4", size=16 << 20) as folder:
            yield folder
    else:
        yield Path("/nowhere")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def campaign(kind: str, count: int, *, grace: float, seed: int, slack: float) -> Figures:
    """All rounds of a kind; Ctrl-C ends them, with the figures so far. `slack`: seconds that the launcher may need after the
    grace."""
    figures = Figures()
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="survivors-") as home:
        for number in range(count):
            one(Path(home), kind, number, grace=grace, seed=seed, slack=slack, figures=figures)
    return figures


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--grace", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slack", type=float, default=2.0, help="seconds after the grace")
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be repeated; all of them")
    arguments = parser.parse_args()
    failed = False
    for kind in arguments.kind or KINDS:
        figures = campaign(kind, arguments.count, grace=arguments.grace, seed=arguments.seed, slack=arguments.slack)
        print(f"{kind}: {figures.text(arguments.grace)}", flush=True)
        for line in figures.violations:
            print(" ", line)
        failed |= bool(figures.violations)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
