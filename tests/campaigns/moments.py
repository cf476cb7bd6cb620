"""SIGTERM at a random moment of a launcher's whole life: it ends at once, or as soon as the job does; nothing is left or lost.

    python -m tests.campaigns.moments [--count 300] [--seed 1] [--pid1] [--bound 2]

Each round pulls an input of its own from the store, runs a job that writes one checkpoint and ends when it is told to, and stores
that. The signal comes at a random moment, from the start of the process to beyond the end of the life that was measured first;
with --pid1 the launcher is process 1 of a PID namespace, with the signal blocked at first, as our images start it. Then: how long
it took to end, the exit code, and what is left of processes, mounts, locks, leases and partial downloads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from launcher.checkpoint import formats
from launcher.checkpoint.tree import Folder
from tests.campaigns import quick_writer
from tests.campaigns.kills import lives, tree
from tests.support.cli import ROOT, Launcher

JOB = 'trap "exit 7" TERM; cp -r "$SOURCE" "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-1"; sleep 0.5 & wait; exit 0'
CODES = {
    75: "before the job",
    7: "while it ran",
    0: "after it",
    -15: "before it caught signals",
    143: "before it caught signals",
}


@dataclass
class Figures:
    """What was counted, and every violation in words."""

    when: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From the signal to the launcher's end."""
    stored: int = 0
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table's line."""
        seconds = sorted(self.seconds)
        when = ", ".join(f"{count} {word}" for word, count in self.when.items())
        return (
            f"{sum(self.when.values())} moments ({when}); over after "
            f"{statistics.median(seconds):.2f} s in the median, {seconds[len(seconds) * 95 // 100]:.2f} s of 95 %, "
            f"{seconds[-1]:.2f} s at most; {self.stored} checkpoints stored; {len(self.violations)} violations"
        )


class Round:
    """One life and one signal."""

    def __init__(self, launcher: Launcher, number: int, source: Path, *, pid1: bool) -> None:
        self.launcher, self.name = launcher, f"job-{number}"
        launcher.env["SOURCE"] = str(source)
        words = [
            sys.executable, "-m", "launcher", "entrypoint", "--name", self.name, "--grace", "60s", "--settle", "0.1s",
            "--device", "cpu", "-C", "base", "--", "sh", "-c", JOB,
        ]  # fmt: skip
        if pid1:
            blocked = ["env", "--block-signal=TERM,INT,HUP"]
            words = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child", *blocked, *words]
        self._output = open(launcher.home / "output", "w")
        self._pid1 = pid1
        inputs = {"LAUNCHER_INPUT_DIR": str(launcher.home / "in"), "LAUNCHER_OUTPUT_DIR": str(launcher.home / "out")}
        self._process = subprocess.Popen(
            words, env=launcher.env | inputs, cwd=ROOT, stdout=self._output, stderr=self._output, start_new_session=True
        )

    def stop(self, moment: float) -> tuple[int, float]:
        """Sends the signal after so many seconds; returns the exit code and how long the end took."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(moment)
        sent = time.monotonic()
        below = tree(self._process.pid)
        target = self._process.pid
        if self._pid1:
            children = (
                Path(f"/proc/{target}/task/{target}/children").read_text() if self._process.poll() is None else ""
            )
            target = int(children.split()[0]) if children.split() else 0
        if target and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signal.SIGTERM)
        try:
            code = self._process.wait(90)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        seconds = time.monotonic() - sent
        self._output.close()
        while [pid for pid in below if lives(pid)] and time.monotonic() - sent < seconds + 2:
            time.sleep(0.01)
        self.left = [pid for pid in below if lives(pid)]
        return code, seconds

    def output(self) -> str:
        """What it printed."""
        return (self.launcher.home / "output").read_text()


def campaign(count: int, seed: int, *, pid1: bool, bound: float) -> Figures:
    """All rounds, one after the other. `bound`: seconds from the signal to the end."""
    figures, chance = Figures(), random.Random(f"{seed}/{pid1}")
    home = Path(tempfile.mkdtemp(prefix="moments-"))
    try:
        launcher = Launcher(home)
        source, model = home / "source", home / "model"
        for folder, step in ((source, 1), (model, 2)):
            folder.mkdir()
            for name, data in quick_writer.content(seed, step).items():
                (folder / name).write_bytes(data)
        launcher("checkpoint", "push", "base", "--file", model)
        life = max(_life(launcher, source, pid1=pid1) for _ in range(2))
        for number in range(count):
            shutil.rmtree(home / "cache", ignore_errors=True)  # Each has its own download.
            it = Round(launcher, number, source, pid1=pid1)
            code, seconds = it.stop(chance.uniform(0, life * 1.1))
            _look(it, code, seconds, figures, bound)
            if str(home) in Path("/proc/self/mountinfo").read_text():
                figures.violations.append(f"{it.name}: a mount is left")
            launcher("cache", "prune", "--all")
            if left := list((home / "cache" / "checkpoints").rglob("*.safetensors")):
                figures.violations.append(f"{it.name}: something still holds {left}")
    finally:
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    return figures


def _life(launcher: Launcher, source: Path, *, pid1: bool) -> float:
    started = time.monotonic()
    it = Round(launcher, -1, source, pid1=pid1)
    code, _ = it.stop(120)
    assert code == 0, it.output()
    _clear(launcher)
    return time.monotonic() - started


def _look(it: Round, code: int, seconds: float, figures: Figures, bound: float) -> None:
    wrong = []
    figures.when[CODES.get(code, f"exit code {code}")] += 1
    figures.seconds.append(seconds)
    if code not in CODES:
        wrong.append(f"exit code {code}")
    if seconds > bound:
        wrong.append(f"over after {seconds:.2f} s")
    if it.left:
        wrong.append(f"processes are left: {it.left}")
    found = it.launcher.json("training", "checkpoints", it.name) if code in (0, 7) else []
    folder = it.launcher.home / "out" / "checkpoint-1"
    whole = folder.is_dir() and formats.judge(Folder.scan(str(folder))).whole
    figures.stored += len(found)
    if [each["metadata"]["name"] for each in found] != [f"{it.name}/checkpoint-1"] * whole:
        wrong.append(f"the checkpoint is {'' if whole else 'not '}whole, and stored: {found}")
    for folder in (it.launcher.home / "data" / "jobs").glob(f"{it.name}/0*"):
        if any((folder / "spool").iterdir()):
            wrong.append("a capture is left")
        if code != -signal.SIGTERM and not (folder / "result.json").exists():
            wrong.append("no result")
    if wrong:
        figures.violations.append(f"{it.name}: {'; '.join(wrong)}\n{it.output()}")
    _clear(it.launcher)


def _clear(launcher: Launcher) -> None:
    for folder in ("in", "out", "data/jobs"):
        shutil.rmtree(launcher.home / folder, ignore_errors=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid1", action="store_true", help="as process 1 of a PID namespace (root)")
    parser.add_argument("--bound", type=float, default=2.0, help="seconds from the signal to the end")
    arguments = parser.parse_args()
    figures = campaign(arguments.count, arguments.seed, pid1=arguments.pid1, bound=arguments.bound)
    print(f"{'as process 1' if arguments.pid1 else 'as a child'}: {figures.text()}")
    for line in figures.violations:
        print(" ", line)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
