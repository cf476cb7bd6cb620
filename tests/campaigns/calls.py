"""kill -9 at the N-th file or socket call of a job's life, by strace: what random moments would hardly meet.

    python -m tests.campaigns.calls [--count 300] [--seed 1] [--workers 8]

Each round runs a job that writes checkpoints with rotation, and has strace kill whichever process (launcher, uploader, job) makes
the N-th call of one kind, N spread over what an undisturbed run makes. Then the job is recovered and compared as in
`tests.campaigns.kills`: nothing broken, nothing whole lost, nothing twice, and a second recover changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.store.store import Store
from launcher.transfer.places import open_place
from tests.campaigns.kills import Figures, Round, lives, tree
from tests.support.cli import ROOT, Launcher

CALLS = ("write", "pwrite64", "fsync", "rename", "linkat", "unlink", "mkdir", "openat", "flock", "ftruncate", "sendto")
_TRACE = ("strace", "-f", "-q", "--seccomp-bpf")
_STEPS = "4"
_LOST = re.compile(r"\S+/(checkpoint-\d+) of step \d+ was whole and is lost")
Calls = list[tuple[str, int]]
"""For each thread and kind of call: which, and how often."""
_LINE = re.compile(r"(\d+) +(\w+)\(")


class CallRound(Round):
    """A round whose kill is at a call."""

    def __init__(self, launcher: Launcher, store: Store, number: int, seed: int, figures: Figures, calls: Calls):
        super().__init__(launcher, store, number, seed, figures, "quick")
        self._calls = calls

    def _run_and_kill(self, target: str) -> bool:
        call, most = self._chance.choice(self._calls)
        number = self._chance.randint(1, most)
        inject = f"inject={call}:signal=KILL:when={number}"
        trace = self._launcher.home / f"{self._name}.trace"
        with open(self._launcher.home / f"{self._name}.log", "w") as output:
            process = subprocess.Popen(
                [*_TRACE, "-o", str(trace), "-e", f"trace={call}", "-e", inject, *job(self._name, self._seed, self._journal)],
                env=self._launcher.env, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        below: set[int] = set()
        with contextlib.suppress(subprocess.TimeoutExpired):
            while process.poll() is None:
                below |= set(tree(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        deadline = time.monotonic() + 60
        while any(lives(pid) for pid in below) and time.monotonic() < deadline:
            time.sleep(0.05)
        return "killed by SIGKILL" in trace.read_text(errors="replace")

    def _violation(self, text: str) -> None:
        """What rotation removed before a watcher that strace slows down could see it, and is named, is no loss by the kill."""
        if (match := _LOST.match(text)) and f"Not collected: {match[1]}:" in self._output():
            self._figures.named += 1
            return
        super()._violation(text)

    def _output(self) -> str:
        return (self._launcher.home / f"{self._name}.log").read_text()[-3000:]


def job(name: str, seed: int, journal: Path) -> list[str]:
    """The job of a round."""
    return [
        sys.executable, "-m", "launcher", "training", "run", name, "--settle", "0.2s", "--launch", "exec", "--",
        sys.executable, str(ROOT / "tests/campaigns/quick_writer.py"), str(seed), str(journal), _STEPS,
    ]  # fmt: skip


def count_calls(launcher: Launcher) -> Calls:
    """How often each thread of an undisturbed run makes each call."""
    log = launcher.home / "calls"
    words = [
        *_TRACE,
        "-o",
        str(log),
        "-e",
        f"trace={','.join(CALLS)}",
        *job("count", 1, launcher.home / "count.journal"),
    ]
    subprocess.run(words, env=launcher.env, cwd=ROOT, check=True, capture_output=True)
    with open(log, errors="replace") as lines:
        found = Counter(match.groups() for match in map(_LINE.match, lines) if match)
    return sorted((call, number) for (_, call), number in found.items() if call in CALLS)


def campaign(count: int, seed: int, *, workers: int = 2) -> tuple[Figures, Calls]:
    """Runs the rounds; Ctrl-C ends it early. Returns the figures, and the calls over which the rounds were spread."""
    home = Path(tempfile.mkdtemp(prefix="launcher-calls-"))
    figures, lock, ended = Figures(), threading.Lock(), threading.Event()
    try:
        launcher = Launcher(home, LAUNCHER_STORE_TIMEOUT="60s")
        place = open_place(str(home / "data" / "store"), timeout=60, environ=launcher.env)
        Store(place, timeout=60).prepare()
        calls = count_calls(launcher)

        def one(number: int) -> None:
            if ended.is_set():
                return
            own = Figures()
            CallRound(launcher, Store(place, timeout=60), number, seed, own, calls).run()
            with lock:
                figures.add(own)
                figures.compared += 1

        with ThreadPoolExecutor(workers) as pool:
            rounds = pool.map(one, range(count))
            try:
                list(rounds)
            except KeyboardInterrupt:
                ended.set()
    finally:
        subprocess.run(["chmod", "-R", "u+w", home], check=False)
        shutil.rmtree(home, ignore_errors=True)
    return figures, calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    figures, calls = campaign(arguments.count, arguments.seed, workers=arguments.workers)
    print(f"spread over {sum(number for _, number in calls)} calls that the threads of an undisturbed run make")
    killed = sum(figures.killed.values())
    print(
        f"{figures.compared} rounds, {killed} ended by it, {figures.too_early} before there was a job; "
        f"{figures.recovers_killed} recovers killed; {figures.whole} checkpoints known whole, {figures.stored} stored "
        f"({figures.by_recover} by recover), every byte read, {figures.named} missed and named; "
        f"{len(figures.violations)} violations ({time.monotonic() - started:.0f} s)"
    )
    for line in figures.violations:
        print(" ", line)
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
