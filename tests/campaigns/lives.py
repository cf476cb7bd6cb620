"""kill -9 at random moments of a job's whole life, and a start under the same id after each: as if nothing had happened.

    python -m tests.campaigns.lives [--count 300] [--seed 1] [--workers 8] [--writer steady|trainer] [--runner process|docker]

A life is one job that is killed up to four times (its launcher, torchrun's agent, a rank, the uploader, all of its processes,
or its container) and started again with the same LAUNCHER_JOB_ID until it ends by itself; --count is the number of kills. At
the end its losses are those of a run that nobody interrupted, bit by bit; each start went on from the newest checkpoint that
was whole; every checkpoint that was whole is in the store, once; 2 s after a kill no process of it was alive.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.store.store import Store
from launcher.transfer.places import open_place
from tests.campaigns import steady_writer
from tests.campaigns.kills import damage, lives, tree, uploaders
from tests.support.cli import PROGRAM, ROOT, Launcher

TARGETS = ("launcher", "rank", "uploader", "all", "agent", "container")
STEPS = {"steady": 12, "trainer": 6}
_MOST = 40
"""Starts after which a life counts as one that never ends."""


@dataclass
class Figures:
    """What was counted, and every violation in words."""

    lives: int = 0
    starts: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    anew: int = 0
    put_aside: int = 0
    whole: int = 0
    stored: int = 0
    steps: int = 0
    repeated: int = 0
    """Steps that were computed more than once."""
    longest_survivor: float = 0.0
    """Seconds from a kill of the launcher to the end of the last of the job's processes."""
    longest_uploader: float = 0.0
    """The same for its uploader, which yields to everything (nice 19)."""
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def text(self) -> str:
        """The table's line."""
        kills = ", ".join(f"{count} {target}" for target, count in sorted(self.kills.items()))
        return (
            f"{self.lives} lives, {self.starts} starts, {self.kills.total()} kills ({kills}); {self.resumed} starts went on "
            f"from a checkpoint, {self.anew} began anew, {self.put_aside} torn folders were put aside; {self.whole} checkpoints "
            f"known whole, {self.stored} stored, every byte read; {self.repeated} of {self.steps} steps computed again; "
            f"last process of a job gone {self.longest_survivor:.2f} s after its launcher, last uploader "
            f"{self.longest_uploader:.2f} s; {len(self.violations)} violations"
        )


@dataclass(frozen=True)
class Setting:
    """What all lives share."""

    launcher: Launcher
    store: Store
    seed: int
    writer: str
    runner: str
    expected: list[float]
    """The trainer's losses without an interruption; the steady writer's are computed for each life."""
    figures: Figures


class Life:
    """One job, from its first start to its own end."""

    def __init__(self, setting: Setting, number: int) -> None:
        self._setting = setting
        self._chance = random.Random(f"{setting.seed}/{number}")
        self._name = f"life-{number}"
        self._id = f"{setting.launcher.home.name}-{number}"
        self._seed = self._chance.randrange(1 << 30)
        self._steps = STEPS[setting.writer]
        self._log = setting.launcher.home / f"{self._name}.log"
        self._folder = setting.launcher.home / "data" / "jobs" / self._name / self._id

    def run(self) -> None:
        kills = self._chance.randint(1, 4)
        for start in range(_MOST):
            process = self._start()
            with self._setting.figures.lock:
                self._setting.figures.starts += 1
            if start < kills:
                self._kill(process)
            code = process.wait(600)
            if code == 0:
                break
            if start >= kills + 3:  # Nobody interrupts it any more, so it has to end.
                self._violation(f"exit code {code} without a kill")
                break
        else:
            self._violation(f"it did not end within {_MOST} starts")
        with self._setting.figures.lock:
            self._setting.figures.lives += 1
        self._compare()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["training", "run", self._name, "--settle", "0.2s", "--runner", self._setting.runner]
        if self._setting.runner == "docker":
            words += ["--image", "launcher-test-base:latest"]
        if self._setting.writer == "steady":
            script = ["-m", "tests.campaigns.steady_writer", str(self._seed), str(self._steps)]
            words += ["--launch", "exec", "--", "python3" if self._setting.runner == "docker" else "python", *script]
        else:
            words += [
                "--env",
                "OMP_NUM_THREADS=1",
                "--",
                "tests/libraries/resume_trainer.py",
                "--steps",
                str(self._steps),
            ]
        with open(self._log, "ab") as output:
            return subprocess.Popen(
                [PROGRAM, *words], env=self._setting.launcher.env | {"LAUNCHER_JOB_ID": self._id}, cwd=ROOT,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kills something of it at some moment. What is not there (yet) is not killed."""
        chance, figures = self._chance, self._setting.figures
        targets = ["launcher", "rank", "uploader", "all"]
        targets += ["agent"] if self._setting.writer == "trainer" else []
        target = chance.choice(["container", "launcher"] if self._setting.runner == "docker" else targets)
        if (
            chance.random() < 0.8
        ):  # Once the job runs; else at any time from the first moment, which is a restoring one too.
            began = self._starts()
            while self._starts() == began and process.poll() is None:
                time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.0, 2.5 if self._setting.writer == "steady" else 12.0))
        if process.poll() is not None:
            return
        below = tree(process.pid)
        of_uploader = set(uploaders(process.pid))
        job = [pid for pid in below if pid not in of_uploader]
        if target == "container":
            done = subprocess.run(
                ["docker", "kill", f"launcher-{self._id}"], env=self._setting.launcher.env, capture_output=True
            )
            killed = done.returncode == 0
        else:
            victims = {
                "launcher": [process.pid], "all": [process.pid, *below], "uploader": sorted(of_uploader),
                "rank": job[-1:], "agent": job[:1],
            }[target]  # fmt: skip
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = bool(victims)
        started = time.monotonic()
        if killed:
            with figures.lock:
                figures.kills[target] += 1
        if target in ("launcher", "all"):
            process.wait()
            gone = self._wait_for(job, started)
            gone_too = self._wait_for(below, started)
            with figures.lock:
                figures.longest_survivor = max(figures.longest_survivor, gone)
                figures.longest_uploader = max(figures.longest_uploader, gone_too)
            if left := [pid for pid in below if lives(pid)]:
                self._violation(f"processes live 60 s after their launcher: {left}")

    @staticmethod
    def _wait_for(pids: list[int], started: float) -> float:
        """Seconds from `started` until none of them lives; 60 at most."""
        while any(lives(pid) for pid in pids) and time.monotonic() < started + 60:
            time.sleep(0.01)
        return time.monotonic() - started

    def _starts(self) -> int:
        """How often the training began, by its journal."""
        try:
            return (self._folder / "output-checkpoint" / steady_writer.JOURNAL).read_text().count("from")
        except FileNotFoundError:
            return 0

    # ── what became of it ────────────────────────────────────────────────────────────────────────────────────────

    def _compare(self) -> None:
        figures = self._setting.figures
        found = [each.manifest for each in self._setting.store.of_job(self._name)]
        checkpoints = [each for each in self._setting.store.of_job(self._name) if each.manifest.origin]
        for each in checkpoints:
            if reasons := damage(self._setting.store, each):
                self._violation(f"{each.label} is broken: {reasons}")
        contents = Counter((each.name, frozenset((file.path, file.digest) for file in each.files)) for each in found)
        for (name, _), count in contents.items():
            if count > 1:
                self._violation(f"{name} is stored {count} times")
        losses = self._losses(found)
        expected = self._setting.expected or steady_writer.expected(self._seed, self._steps)
        if losses != expected:
            self._violation(f"its losses are {losses}, not {expected}")
        record = json.loads((self._folder / "record.json").read_bytes())
        resumed = [each for each in record["attempts"] if each.get("resumed")]
        events = [json.loads(line) for line in (self._folder / "events.jsonl").read_text().splitlines()]
        with figures.lock:
            figures.stored += len(found)
            figures.resumed += len(resumed)
            figures.anew += len(record["attempts"]) - len(resumed)
            figures.put_aside += sum(each["kind"] == "put-aside" for each in events)
        self._compare_with_journal({each.facts.step for each in found if each.origin and each.origin.path != "."})

    def _losses(self, found: list[Any]) -> list[float]:
        """Those that the last checkpoint has in its log."""
        last = [each for each in found if each.facts.step == self._steps and each.name != self._name]
        if not last:
            return []
        body = self._setting.store.place.get(f"checkpoints/{last[-1].id}/trainer_state.json")
        return [each["loss"] for each in json.loads(body)["log_history"] if "loss" in each]

    def _compare_with_journal(self, stored: set[int | None]) -> None:
        """Every checkpoint that was whole is stored, and every start went on from the newest."""
        figures, newest, whole, computed = self._setting.figures, 0, set(), 0
        for line in (self._folder / "output-checkpoint" / steady_writer.JOURNAL).read_text().splitlines():
            word, step = line.split()[0], int(line.split()[1])
            if word == "whole":
                whole.add(step)
                newest, computed = max(newest, step), computed + 1
            elif word == "from" and step not in (newest, newest + 1):
                # One more than was written down: killed between its last byte and the line that says so.
                self._violation(f"a start went on from step {step}, and step {newest} was whole")
        lost = (
            whole - stored if self._setting.runner == "process" else set()
        )  # A container outlives its launcher a while.
        for step in sorted(lost):
            self._violation(f"step {step} was whole and is not stored")
        with figures.lock:
            figures.whole += len(whole)
            figures.steps += computed
            figures.repeated += computed - len(whole)

    def _violation(self, text: str) -> None:
        with self._setting.figures.lock:
            self._setting.figures.violations.append(f"{self._name}: {text}\n{self._log.read_text()[-6000:]}")


def campaign(
    count: int, seed: int, *, workers: int = 2, writer: str = "steady", runner: str = "process", engine: str = ""
) -> Figures:
    """Lives until `count` kills were done, and a few more. Ctrl-C ends it, with the figures so far."""
    home = Path(tempfile.mkdtemp(prefix="launcher-lives-"))
    figures = Figures()
    try:
        launcher = Launcher(home, LAUNCHER_STORE_TIMEOUT="60s", **({"DOCKER_HOST": engine} if engine else {}))
        store = Store(open_place(str(home / "data" / "store"), timeout=60, environ=launcher.env), timeout=60)
        store.prepare()
        expected = _uninterrupted(launcher) if writer == "trainer" else []
        setting = Setting(launcher, store, seed, writer, runner, expected, figures)
        numbers = itertools.count()

        def work(_: int) -> None:
            while figures.kills.total() < count:
                with figures.lock:
                    number = next(numbers)
                _live(setting, number)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    finally:
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    return figures


def _live(setting: Setting, number: int) -> None:
    life = Life(setting, number)
    try:
        life.run()
    except Exception as error:
        life._violation(f"{type(error).__name__}: {error}")


def _uninterrupted(launcher: Launcher) -> list[float]:
    """The Trainer's losses, run without a launcher."""
    output = launcher.home / "alone"
    output.mkdir()
    words = [sys.executable, "tests/libraries/resume_trainer.py", "--steps", str(STEPS["trainer"])]
    env = launcher.env | {
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": str(output),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(words, env=env, cwd=ROOT, check=True, capture_output=True)
    state = json.loads((output / f"checkpoint-{STEPS['trainer']}" / "trainer_state.json").read_bytes())
    return [each["loss"] for each in state["log_history"] if "loss" in each]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--writer", choices=("steady", "trainer"), default="steady")
    parser.add_argument("--runner", choices=("process", "docker"), default="process")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # In the background a shell has it ignored.
    started = time.monotonic()
    options = {"workers": arguments.workers, "writer": arguments.writer, "runner": arguments.runner}
    if arguments.runner == "docker":
        from tests.support import images
        from tests.support.docker_engine import docker_engine

        with docker_engine() as engine:
            images.base_image(engine)
            figures = campaign(arguments.count, arguments.seed, engine=engine, **options)
    else:
        figures = campaign(arguments.count, arguments.seed, **options)
    took = time.monotonic() - started
    print(f"{arguments.runner} runner, {arguments.writer} writer: {figures.text()} ({took:.0f} s)")
    for line in figures.violations:
        print(" ", line)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
