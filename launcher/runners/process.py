"""The process runner: the job's processes on this machine, under the guard that mounts its input."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from launcher.errors import CommandNotExecutable, CommandNotFound, MountFailed
from launcher.inputs import kernel
from launcher.inputs.protection import Protection, program
from launcher.job.logs import Times
from launcher.runners import stall
from launcher.runners.output import Pump, RankLogs
from launcher.runners.running import Exit

LEFTOVER_GRACE = 5.0
"""Seconds that processes get which outlive the job's main process, between SIGTERM and SIGKILL."""


class Process:
    """A job as a process tree. The launcher is the tree's subreaper, so that orphans come back to it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        work_dir: str,
        protection: Protection,
        log: Path,
        ranks: int = 1,
        rank_logs: Path | None = None,
        spared: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """Starts it. `ranks` above 1: torchrun keeps their output in files beside the log. `spared`: the children of the
        launcher that are not the job's (the uploader, servers of lazy inputs).

        Raises CommandNotFound, CommandNotExecutable, MountFailed.
        """
        become_subreaper()
        self._spared = spared
        self._grace = LEFTOVER_GRACE
        report_reader, report_writer = os.pipe()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._times = Times(log)
        out_reader, out_writer = os.pipe()
        err_reader, err_writer = os.pipe()
        self._fds = [out_reader, err_reader, self._log]
        try:
            self._process = subprocess.Popen(
                [*program(protection.plan(report_writer)), *command],
                env=dict(env),
                cwd=work_dir,
                stdout=out_writer,
                stderr=err_writer,
                pass_fds=[report_writer, *protection.lazy.values()],
                start_new_session=True,
            )
        finally:
            for fd in (report_writer, out_writer, err_writer):
                os.close(fd)
        self.pid = self._process.pid
        self._exit: Exit | None = None
        self._pumps = [
            Pump(out_reader, sys.stdout.fileno(), self._log, self._times),
            Pump(err_reader, sys.stderr.fileno(), self._log, self._times),
        ]
        self._ranks = (
            RankLogs(rank_logs or log.parent, ranks, sys.stdout.fileno(), sys.stderr.fileno(), self._log, self._times)
            if ranks > 1
            else None
        )
        self.fd = os.pidfd_open(self.pid)
        with os.fdopen(report_reader, "rb") as file:
            self.rung, self.guarantee = self._read_report(file.read(), command)

    def _read_report(self, text: bytes, command: Sequence[str]) -> tuple[str, str]:
        reports = [json.loads(line) for line in text.splitlines() if line]
        error = next((report["error"] for report in reports if "error" in report), None)
        failed = next((report for report in reports if "exec" in report), None)
        if not reports or error:
            self._process.wait()
            self.close()
            raise MountFailed(path="the input directory", cause=error or "the guard ended without a report")
        if failed:
            self._process.wait()
            self.close()
            if self._process.returncode == 127:
                raise CommandNotFound(command=command[0])
            raise CommandNotExecutable(command=command[0], cause=failed["exec"])
        refused = [f"{rung} was not to be had: {cause}" for rung, cause in reports[0]["refused"].items()]
        return reports[0]["rung"], "; ".join([*reports[0]["notes"], *refused])

    def poll(self) -> Exit | None:
        if self._exit is None:
            code = self._process.poll()
            reap(self.pid if code is None else None, *self._spared())
            if code is not None:
                self._exit = Exit(code) if code >= 0 else Exit(128 - code, -code)
        return self._exit

    def signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def members(self) -> list[int]:
        return descendants(self._spared())

    def cpu_seconds(self) -> float | None:
        return stall.cpu_seconds(self.members())

    def waiting(self) -> list[str]:
        return stall.waiting(self.members())

    def kill(self) -> None:
        self._grace = 0.0
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> list[str]:
        left = [f"{name(pid)} ({pid})" for pid in self.members()]
        end_tree(self._grace, self._spared)
        if self._fds:
            for pump in self._pumps:
                pump.join(2.0)
            if self._ranks:
                self._ranks.finish(10.0)
            for fd in (*self._fds, self.fd):
                with contextlib.suppress(OSError):
                    os.close(fd)
            self._fds = []
            self._times.close()
        return left


def become_subreaper() -> None:
    """Orphans below this process become its children (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    kernel.prctl(36, 1)


def reap(*keep: int | None) -> None:
    """Collects dead children, up to the first of `keep`, for which somebody else waits."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in keep:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.si_pid, os.WNOHANG)


def end_tree(grace: float, spared: Callable[[], Collection[int]] = tuple) -> None:
    """Ends every process below this one but the spared (see `_end`)."""
    _end(lambda: descendants(spared()), grace)


def end_job(job: str, grace: float) -> list[str]:
    """Ends what is left of a job whose launcher is gone (see `_end`), by the LAUNCHER_JOB_ID that its processes inherited,
    with LAUNCHER_ATTEMPT: whoever starts the launcher under an id of his own has only the first.

    Returns what that was, in words. (The kernel ends the job's own process with its launcher, but not what that started.)
    """
    mark = f"LAUNCHER_JOB_ID={job}".encode()

    def living() -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                    inherited = file.read().split(b"\0")
                    if mark in inherited and any(each.startswith(b"LAUNCHER_ATTEMPT=") for each in inherited):
                        found.append(int(entry))
        return found

    words = [f"{name(pid)} ({pid})" for pid in living()]
    _end(living, grace)
    return words


def _end(living: Callable[[], list[int]], grace: float) -> None:
    """SIGTERM to each of them, and SIGKILL after `grace` seconds. Returns when none is left, or 2 s after the SIGKILL (a
    process in an uninterruptible wait cannot be waited for)."""
    deadline = time.monotonic() + grace
    sent: set[int] = set()
    while pids := living():
        late = time.monotonic() > deadline
        for pid in pids:
            if pid not in sent or late:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
                sent.add(pid)
        reap()
        if time.monotonic() > deadline + 2:
            return
        time.sleep(0.005)
    reap()


def descendants(spared: Collection[int] = ()) -> list[int]:
    """Process ids below this process that are not zombies, from /proc; without the spared children and what is below them."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                parents[int(entry)] = int(fields[1]), fields[0]
    me = os.getpid()
    for pid in spared:
        parents.pop(pid, None)
    found = []
    for pid in parents:
        ancestor, depth = pid, 0
        while ancestor in parents and depth < 10_000:
            ancestor = parents[ancestor][0]
            depth += 1
            if ancestor == me:
                if parents[pid][1] not in "ZX":
                    found.append(pid)
                break
    return found


def name(pid: int) -> str:
    """The command name of a process."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"
