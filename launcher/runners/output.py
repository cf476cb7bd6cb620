"""The job's output: passed through live, byte by byte as it came but for its secrets, and kept in a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import select
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.job.logs import Times
from launcher.masking import PATIENCE, Mask, Masker, overwriting

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


class _Flow:
    """Where one stream goes. What may be the beginning of a secret waits for more, or until it is `due`."""

    def __init__(self, sinks: list[int], times: Times, mask: Mask | None) -> None:
        self._sinks, self._times, self._masker = sinks, times, Masker(mask) if mask else None
        self.due = math.inf

    def write(self, data: bytes) -> None:
        if self._masker:
            data = self._masker.feed(data)
            self.due = time.monotonic() + PATIENCE if self._masker.held else math.inf
        self._write(data)

    def flush(self) -> None:
        if self._masker:
            self._write(self._masker.flush())
            self.due = math.inf

    def _write(self, data: bytes) -> None:
        if data:
            self._times.note()
            write_all(data, self._sinks)


class Pump:
    """Copies streams of the job, each to one of ours and all to the log, in a thread, until their last writers close them.

    A line is not torn by a piece of another stream: one that a stream has begun goes on as long as more of it is there
    (Python without a buffer writes a line and its end one after the other, and what it logs to stderr next comes after both).
    A terminal that goes away, or a full disk, never stops the job: what cannot be written is dropped there and only there.
    `mask` takes the job's secrets out of both.
    """

    def __init__(self, targets: Mapping[int, int], log: int, times: Times, mask: Mask | None = None) -> None:
        self._flows = {source: _Flow([target, log], times, mask) for source, target in targets.items()}
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        alone = {source: _poll(source) for source in self._flows}
        every = _poll(*self._flows)
        unfinished, length, last = -1, 0, -1
        while self._flows:
            ready = [source for source, _ in every.poll(self._patience())]
            for flow in self._flows.values():
                if flow.due <= time.monotonic():
                    flow.flush()
            if not ready:
                continue
            goes_on = unfinished in self._flows and length < _LONG and bool(alone[unfinished].poll(_PATIENCE))
            source = unfinished if goes_on else next((each for each in ready if each != last), ready[0])
            try:
                data = os.read(source, 1 << 16)
            except OSError:
                data = b""
            if not data:
                every.unregister(source)
                self._flows.pop(source).flush()
                continue
            self._flows[source].write(data)
            length = length + len(data) if goes_on else len(data)
            rest = data[data.rfind(b"\n") + 1 :]
            unfinished, last = (source if rest and b"\r" not in rest else -1), source  # A return: a progress bar.

    def _patience(self) -> float | None:
        """Milliseconds until something is due; None where nothing is."""
        due = min(flow.due for flow in self._flows.values())
        return None if due == math.inf else max(0.0, due - time.monotonic()) * 1000

    def join(self, timeout: float) -> bool:
        """Waits for the end of the streams; False when somebody still holds one open."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


class RankLogs:
    """Follows the log files that torchrun keeps for each rank, and passes them on line by line, marked `[rank0]: `.

    Own code in place of torchrun's `--tee`, which costs a no-op job 0.4 s and loses carriage returns. A line is passed on
    when it ends (in a newline or a carriage return); what never ends is passed on by `finish`. With a `mask`, the secrets
    are overwritten in the files too, as soon as they have been read.
    """

    _TICK = 0.05
    _LOOK = 1.0

    def __init__(
        self, folder: Path, ranks: int, out: int, err: int, log: int, times: Times, mask: Mask | None = None
    ) -> None:
        self._folder, self._ranks, self._log, self._times, self._mask = folder, ranks, log, times, mask
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
                for how in (os.O_RDWR, os.O_RDONLY) if self._mask else (os.O_RDONLY,):
                    with contextlib.suppress(OSError):
                        fd = os.open(plain, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                        mark = f"[rank{path.parent.name}]: ".encode()
                        sinks = [self._targets[path.name], self._log]
                        self._files[path] = _Followed(fd, mark, sinks, self._times, self._mask)
                        break


class _Followed:
    """One rank's stream: reads what is new, and writes whole lines."""

    def __init__(self, fd: int, mark: bytes, sinks: list[int], times: Times, mask: Mask | None) -> None:
        self.fd, self._mark, self._sinks, self._times = fd, mark, sinks, times
        self._masker = Masker(mask, overwriting(fd)) if mask else None
        self._rest, self._came = b"", 0.0

    def read(self, last: bool) -> bool:
        """Passes on one piece; False when there is no more for now."""
        data = os.read(self.fd, 1 << 16)
        text = self._rest + (self._masked(data, last) if self._masker else data)
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

    def _masked(self, data: bytes, last: bool) -> bytes:
        assert self._masker
        now = time.monotonic()
        if data:
            self._came = now
            return self._masker.feed(data)
        return self._masker.flush() if last or now >= self._came + PATIENCE else b""


def clean(mask: Mask, log: Path, start: int, folder: Path) -> None:
    """After a job's end: takes out what is left of secrets in its log, from byte `start` on, and in what torchrun kept. That is
    what came so slowly that it was passed on in pieces, and tracebacks that ranks wrote to files."""
    mask.scrub(log, start)
    for parent, _, files in os.walk(folder):
        for name in files:
            mask.scrub(Path(parent, name))
