"""The process runner: the job's processes on this machine, under the guard that mounts its input."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from launcher.errors import CommandNotExecutable, CommandNotFound, MountFailed
from launcher.inputs.protection import Protection, program
from launcher.job.logs import Times
from launcher.masking import Mask
from launcher.runners import stall
from launcher.runners.cgroup import Cgroup
from launcher.runners.handover import Handed
from launcher.runners.output import Pump, RankLogs, clean, wide_pipe
from launcher.runners.running import Exit
from launcher.runners.signals import SUSPENDING
from launcher.runners.tree import Tree, become_subreaper


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
        rank_logs: Path,
        ranks: int = 1,
        grace: float = 30.0,
        single_child: bool = False,
        rewrite: Mapping[int, int] | None = None,
        spared: Callable[[], Collection[int]] = tuple,
        secrets: Handed | None = None,
        mask: Mask | None = None,
    ) -> None:
        """Starts it. `ranks` above 1: torchrun keeps their output in files in `rank_logs`. `secrets` are there while it runs;
        `mask` takes them out of its output. For the others see `Tree`.

        Raises CommandNotFound, CommandNotExecutable, MountFailed, LocalResourceError.
        """
        self._secrets = secrets
        if secrets:
            secrets.give()
        become_subreaper()
        report_reader, report_writer = os.pipe()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._clean = functools.partial(clean, mask, log, os.fstat(self._log).st_size, rank_logs) if mask else None
        self._times = Times(log)
        out_reader, out_writer = wide_pipe()
        err_reader, err_writer = wide_pipe()
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
        except BaseException:
            if secrets:
                secrets.take_back()
            raise
        finally:
            for fd in (report_writer, out_writer, err_writer):
                os.close(fd)
        self._cgroup = Cgroup.around(self._process.pid)
        self._tree = Tree(
            self._process.pid,
            self._process.poll,
            grace=grace,
            single_child=single_child,
            rewrite=rewrite,
            spared=spared,
        )
        self._exit: Exit | None = None
        self._lingers = False
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        self._pump = Pump({out_reader: out, err_reader: err}, self._log, self._times, mask)
        self._ranks = RankLogs(rank_logs, ranks, out, err, self._log, self._times, mask) if ranks > 1 else None
        self.fd = os.pidfd_open(self._process.pid)
        # Job control: what stops a launcher that runs a job stops the job first.
        self._handlers = {each: signal.signal(each, lambda number, frame: self.signal(number)) for each in SUSPENDING}
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
            code = self._tree.poll()
            if code is not None:
                number = -self._process.returncode
                self._exit = Exit(code, number if number > 0 else None)
            elif self._tree.code is not None and not self._lingers:
                # From now on SIGCHLD and time tell when to look: a pidfd of what has ended is readable for ever.
                self._lingers = True
                quiet = os.eventfd(0, os.EFD_CLOEXEC)
                os.dup2(quiet, self.fd, inheritable=False)
                os.close(quiet)
        return self._exit

    def signal(self, number: int) -> None:
        self._tree.signal(number)

    def kill(self) -> None:
        if self._cgroup:
            self._cgroup.kill()
        self._tree.kill()

    def members(self) -> list[int]:
        return self._tree.members()

    def cpu_seconds(self) -> float | None:
        return stall.cpu_seconds(self.members())

    def waiting(self) -> list[str]:
        return stall.waiting(self.members())

    def close(self) -> list[str]:
        if self._fds:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._pump.join(0.1 if self.members() else 2.0)  # What outlived SIGKILL never closes its output.
            if self._ranks:
                self._ranks.finish(10.0)
            if self._clean:
                self._clean()
            if self._secrets:
                self._secrets.take_back()
            for fd in (*self._fds, self.fd):
                with contextlib.suppress(OSError):
                    os.close(fd)
            self._fds = []
            self._times.close()
            if self._cgroup:
                self._cgroup.close()
        return self._tree.left
