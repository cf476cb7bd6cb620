"""kill -9 at random moments: nothing broken is committed, nothing whole is lost, nothing is stored twice.

    python -m tests.campaigns.kills [--count 200] [--seed 1] [--store local|s3] [--writer quick|trainer]

Each round runs a job that writes checkpoints with rotation, and kills at a random moment of its life the launcher, its
uploader (several times), or all of its processes at once; sometimes `launcher recover` too, while it works. Then it recovers
and compares the store, every byte read, with what the job had written down as whole. A second recover must change nothing.
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.checkpoint import formats
from launcher.checkpoint.tree import Folder
from launcher.store import layout
from launcher.store.store import Checkpoint, Store
from launcher.transfer.digest import of_bytes
from launcher.transfer.places import open_place
from tests.campaigns import quick_writer
from tests.support.cli import ROOT, Launcher
from tests.support.s3_server import serve

TARGETS = ("launcher", "uploader", "all")


@dataclass
class Figures:
    """What was counted, and every violation in words."""

    rounds: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    """Rounds that came to their end."""
    too_early: int = 0
    recovers_killed: int = 0
    stored: int = 0
    by_recover: int = 0
    whole: int = 0
    named: int = 0
    """Rotated away before the watcher saw them, and said so by the launcher (`calls` only)."""
    longest_survivor: float = 0.0
    """Seconds from the launcher's death to the end of the last of its processes."""
    violations: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Counts another's rounds too."""
        self.rounds += other.rounds
        self.killed += other.killed
        for name in ("too_early", "recovers_killed", "stored", "by_recover", "whole", "named"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.violations += other.violations

    def text(self) -> str:
        """The table's line."""
        rounds = ", ".join(f"{self.rounds[each]} {each} ({self.killed[each]} killed)" for each in TARGETS)
        return (
            f"{self.compared} rounds: {rounds}, {self.too_early} before there was a job; "
            f"{self.recovers_killed} recovers killed; "
            f"{self.whole} checkpoints known whole, {self.stored} stored ({self.by_recover} by recover), every byte read; "
            f"last process gone {self.longest_survivor:.2f} s after its launcher; {len(self.violations)} violations"
        )


def tree(pid: int) -> list[int]:
    """Every living process below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry))
    found, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def uploaders(pid: int) -> list[int]:
    """The uploader among the children of a launcher."""
    found = []
    for child in tree(pid):
        with contextlib.suppress(OSError):
            if b"launcher.outputs.storing" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def damage(store: Store, checkpoint: Checkpoint) -> list[str]:
    """Why what is stored is no whole checkpoint: every byte is read, and the files are judged."""
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        for file in checkpoint.manifest.files:
            data = store.place.get(layout.files(checkpoint.manifest.id) + file.path)
            if (len(data), of_bytes(data)) != (file.size, file.digest):
                reasons.append(f"{file.path} is not what the manifest says")
            path = Path(folder, file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        judgement = formats.judge(Folder.scan(folder))
    return reasons if judgement.whole else [*reasons, *judgement.reasons]


class Round:
    """One job, one kill, one comparison."""

    def __init__(self, launcher: Launcher, store: Store, number: int, seed: int, figures: Figures, writer: str) -> None:
        self._launcher, self._store, self._figures = launcher, store, figures
        self._chance = random.Random(f"{seed}/{number}")
        self._seed = self._chance.randrange(1 << 30)
        self._name = f"job-{number}"
        self._journal = launcher.home / f"{self._name}.journal"
        self._writer = writer

    def run(self) -> None:
        target = self._chance.choice(TARGETS)
        self._figures.rounds[target] += 1
        killed = self._run_and_kill(target)
        self._figures.killed[target] += killed
        if not list((self._launcher.home / "data" / "jobs" / self._name).glob("0*/record.json")):
            self._figures.too_early += 1  # Killed before there was a job.
            return
        on_disk = self._whole_on_disk()
        before = self._found()
        if self._chance.random() < 0.3:
            process = self._launcher.start("recover", self._name)
            time.sleep(self._chance.uniform(0.1, 0.8))
            self._figures.recovers_killed += process.poll() is None
            process.kill()
            process.communicate()
        self._launcher("recover", self._name)
        found = self._found()
        self._figures.by_recover += len(found) - len(before)
        self._compare(found, on_disk)
        again = self._launcher("recover", self._name)
        if "everything whole is stored" not in again or self._found() != found:
            self._violation(f"the second recover changed something: {again}")

    def _run_and_kill(self, target: str) -> bool:
        chance = self._chance
        words: list[str | Path] = ["training", "run", self._name, "--settle", "0.2s"]
        if chance.random() < 0.5:
            words += ["--bandwidth", "4MB/s"]
        if self._writer == "trainer":
            words += ["-C", "base", "--accels", "1", "--", "examples/fine_tune.py", "--steps", "12", "--save-steps", "1",
                      "--save-total-limit", "2"]  # fmt: skip
        else:
            script = str(ROOT / "tests/campaigns/quick_writer.py")
            words += ["--launch", "exec", "--", "python", script, str(self._seed), self._journal]
        moment = chance.uniform(0.0, 3.5 if self._writer == "quick" else 14.0)
        with open(self._launcher.home / "output", "w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *map(str, words)],
                env=self._launcher.env, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        if target == "uploader":
            return self._kill_uploaders(process)
        below = tree(process.pid)
        living = process.poll() is None
        _kill([process.pid, *(below if target == "all" else [])])
        process.wait()
        started = time.monotonic()
        while any(lives(pid) for pid in below):
            if time.monotonic() - started > 60:
                self._violation(f"processes live 60 s after their launcher: {[pid for pid in below if lives(pid)]}")
                _kill(below)
                break
            time.sleep(0.01)
        if living:
            self._figures.longest_survivor = max(self._figures.longest_survivor, time.monotonic() - started)
        return living

    def _kill_uploaders(self, process: subprocess.Popen[bytes]) -> bool:
        """Up to three times. The job then has to end well all the same."""
        killed = 0
        while process.poll() is None and killed < 3:
            found = uploaders(process.pid)
            if found:
                time.sleep(self._chance.uniform(0, 0.4))
                _kill(found)
                killed += 1
            time.sleep(0.02)
        code = process.wait(120)
        if code != 0:
            self._violation(f"exit code {code} after the uploader was killed: {self._output()}")
        return killed > 0

    def _whole_on_disk(self) -> set[str]:
        """What lies whole in the output directory: the Trainer keeps no journal."""
        output = self._launcher.job(self._name) / "output-checkpoint"
        folders = [each for each in (output.iterdir() if output.is_dir() else ()) if each.is_dir()]
        return {
            f"{self._name}/{each.name}"
            for each in folders
            if each.name != ".launcher" and formats.judge(Folder.scan(str(each))).whole
        }

    def _compare(self, found: dict[tuple[str, int], Checkpoint], on_disk: set[str]) -> None:
        self._figures.stored += len(found)
        for (name, version), checkpoint in found.items():
            if reasons := damage(self._store, checkpoint):
                self._violation(f"{name}@v{version} is broken: {reasons}")
        contents = Counter((name, self._files(each)) for (name, _), each in found.items())
        self._figures.violations += [
            f"{name} is stored {count} times" for (name, _), count in contents.items() if count > 1
        ]
        names = {name for name, _ in found}
        if self._writer == "trainer":
            self._figures.whole += len(on_disk)
            self._figures.violations += [f"{name} was whole and is lost" for name in sorted(on_disk - names)]
            return
        stored = {(name, files) for name, files in contents}
        states: dict[str, list[frozenset[tuple[str, str]]]] = {}
        for name, step, lasting in self._journaled():
            self._figures.whole += 1
            full = self._name if name == quick_writer.ROOT else f"{self._name}/{name}"
            make = quick_writer.root_content if name == quick_writer.ROOT else quick_writer.content
            files = frozenset((path, of_bytes(data)) for path, data in make(self._seed, step).items())
            states.setdefault(full, []).append(files)
            # A folder stays until it is captured; of the root, which is rewritten in place, the last state must be there.
            if (name != quick_writer.ROOT or lasting) and (full, files) not in stored:
                self._violation(f"{full} of step {step} was whole and is lost: {self._output()}")
        for name, files in stored:
            if name in states and files not in states[name] and name != self._name:
                self._violation(f"{name} holds what the job never wrote as a whole")

    def _journaled(self) -> Iterator[tuple[str, int, bool]]:
        """(name, step, whether nothing was done to it afterwards) of what became whole."""
        lines = [line.split() for line in self._journal.read_text().splitlines()] if self._journal.exists() else []
        gone = {(name, step) for word, name, step in lines if word == "going"}
        for word, name, step in lines:
            if word == "whole":
                yield name, int(step), (name, step) not in gone

    def _found(self) -> dict[tuple[str, int], Checkpoint]:
        return {(each.manifest.name, each.version or 0): each for each in self._store.of_job(self._name)}

    @staticmethod
    def _files(checkpoint: Checkpoint) -> frozenset[tuple[str, str]]:
        return frozenset((file.path, file.digest) for file in checkpoint.manifest.files)

    def _output(self) -> str:
        return (self._launcher.home / "output").read_text()[-3000:]

    def _violation(self, text: str) -> None:
        self._figures.violations.append(f"{self._name}: {text}")


def campaign(count: int, seed: int, *, store: str = "local", writer: str = "quick") -> Figures:
    """Runs the rounds. `store`: local, or s3 (a server of its own). Ctrl-C ends it, with the figures so far."""
    home = Path(tempfile.mkdtemp(prefix="launcher-kills-"))
    figures = Figures()
    try:
        with contextlib.ExitStack() as stack:
            launcher = Launcher(home, LAUNCHER_STORE_TIMEOUT="20s")
            url = str(home / "data" / "store")
            if store == "s3":
                server = stack.enter_context(serve(home / "s3"))
                url = f"s3://{server.new_bucket()}/store"
                launcher.env |= server.env() | {"LAUNCHER_STORE": url}
                os.environ |= server.env()  # The engine reads credentials there.
            place = open_place(url, timeout=20, environ=launcher.env)
            if writer == "trainer":
                model = [sys.executable, ROOT / "examples/make_tiny_model.py", home / "model"]
                subprocess.run(model, check=True, capture_output=True)
                launcher("checkpoint", "push", "base", "--file", home / "model")
            with contextlib.suppress(KeyboardInterrupt):
                for number in range(count):
                    Round(launcher, Store(place, timeout=20), number, seed, figures, writer).run()
                    figures.compared += 1
                    shutil.rmtree(home / "data" / "jobs", ignore_errors=True)
    finally:
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--writer", choices=("quick", "trainer"), default="quick")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # In the background a shell has it ignored.
    started = time.monotonic()
    figures = campaign(arguments.count, arguments.seed, store=arguments.store, writer=arguments.writer)
    print(f"{arguments.store} store, {arguments.writer} writer: {figures.text()} ({time.monotonic() - started:.0f} s)")
    for line in figures.violations:
        print(" ", line)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
