"""The job's output: passed through live, byte by byte as it came, and kept in a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.job.logs import Times

_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)")
_LONG = 1 << 20
"""Bytes after which what never ends in a line is passed on in pieces."""
_PATIENCE = 100
"""Milliseconds that another stream waits for the rest of a line, once for each: a program that is not given a processor now
may be in the middle of it."""


def _poll(*sources: int) -> select.poll:
    """Says what of them has something to read."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return poll


def write_all(data: bytes, sinks: list[int]) -> None:
    """Writes to every descriptor. One whose reader is gone is taken out of the list; one that has no space now loses this
    piece and is tried again with the next."""
    for sink in list(sinks):
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(sink, view) :]
            except BlockingIOError:  # Whoever shares our stdout has made it non-blocking.
                select.select([], [sink], [])
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    sinks.remove(sink)
                break


def wide_pipe() -> tuple[int, int]:
    """A pipe of 1 MiB where the kernel grants it, else of its default, 64 KiB: between two busy processes it carries twice as
    much (measured), because each of them waits a tenth as often."""
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    return reader, writer


class Pump:
    """Copies streams of the job, each to one of ours and all to the log, in a thread, until their last writers close them.

    A line is not torn by a piece of another stream: one that a stream has begun goes on as long as more of it is there
    (Python without a buffer writes a line and its end one after the other, and what it logs to stderr next comes after both).
    A terminal that goes away, or a full disk, never stops the job: what cannot be written is dropped there and only there.
    """

    def __init__(self, targets: Mapping[int, int], log: int, times: Times) -> None:
        self._sinks, self._times = {source: [target, log] for source, target in targets.items()}, times
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        alone = {source: _poll(source) for source in self._sinks}
        every = _poll(*self._sinks)
        unfinished, length, last = -1, 0, -1
        while self._sinks:
            ready = [source for source, _ in every.poll()]
            goes_on = unfinished in self._sinks and length < _LONG and bool(alone[unfinished].poll(_PATIENCE))
            source = unfinished if goes_on else next((each for each in ready if each != last), ready[0])
            try:
                data = os.read(source, 1 << 16)
            except OSError:
                data = b""
            if not data:
                every.unregister(source)
                del self._sinks[source]
                continue
            self._times.note()
            write_all(data, self._sinks[source])
            length = length + len(data) if goes_on else len(data)
            rest = data[data.rfind(b"\n") + 1 :]
            unfinished, last = (source if rest and b"\r" not in rest else -1), source  # A return: a progress bar.

    def join(self, timeout: float) -> bool:
        """Waits for the end of the streams; False when somebody still holds one open."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


class RankLogs:
    """Follows the log files that torchrun keeps for each rank, and passes them on line by line, marked `[rank0]: `.

    Own code in place of torchrun's `--tee`, which costs a no-op job 0.4 s and loses carriage returns. A line is passed on
    when it ends (in a newline or a carriage return); what never ends is passed on by `finish`.
    """

    _TICK = 0.05
    _LOOK = 1.0

    def __init__(self, folder: Path, ranks: int, out: int, err: int, log: int, times: Times) -> None:
        self._folder, self._ranks, self._log, self._times = folder, ranks, log, times
        self._targets = {"stdout.log": out, "stderr.log": err}
        self._files: dict[Path, _Followed] = {}
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank-logs", daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> None:
        """After the job: passes on what is left."""
        self._finished.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        look = 0.0
        while True:
            last = self._finished.wait(self._TICK)
            now = time.monotonic()
            if last or now >= look:
                self._find()
                look = now + (self._LOOK if len(self._files) >= 2 * self._ranks else 0)
            for followed in self._files.values():
                while followed.read(last):
                    pass
            if last:
                for followed in self._files.values():
                    os.close(followed.fd)
                return

    def _find(self) -> None:
        for path in sorted(self._folder.glob("*/attempt_*/*/std*.log")):
            if path not in self._files and path.name in self._targets:
                # A container can write there: neither a link, at any level, nor a pipe is a log of a rank.
                plain = os.path.join(os.path.realpath(self._folder), path.relative_to(self._folder))
                if os.path.realpath(path) != plain or not path.is_file():
                    continue
                try:
                    fd = os.open(plain, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError:
                    continue
                mark = f"[rank{path.parent.name}]: ".encode()
                self._files[path] = _Followed(fd, mark, [self._targets[path.name], self._log], self._times)


class _Followed:
    """One rank's stream: reads what is new, and writes whole lines."""

    def __init__(self, fd: int, mark: bytes, sinks: list[int], times: Times) -> None:
        self.fd, self._mark, self._sinks, self._times = fd, mark, sinks, times
        self._rest = b""

    def read(self, last: bool) -> bool:
        """Passes on one piece; False when there is no more for now."""
        data = os.read(self.fd, 1 << 16)
        text = self._rest + data
        # A return at the very end may be the first half of a line's end.
        cut = max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1
        lines, self._rest = _LINE.findall(text[:cut]), text[cut:]
        if self._rest.endswith(b"\r") and not data:  # It was no half: a progress bar.
            lines, self._rest = [self._rest], b""
        elif self._rest and (len(self._rest) > _LONG or (last and not data)):
            lines.append(self._rest + b"\n")
            self._rest = b""
        if lines:
            self._times.note()
            write_all(b"".join(self._mark + line for line in lines), self._sinks)
        return bool(data)
