"""A job's log as it is read: all of it or one attempt's, all ranks or some, from its end or from a moment, and on while it grows.

One file holds the output of all attempts as it came (`logs/job.log`); where a job has several ranks, each of their lines is
marked there. Beside it lies `job.times`: at most once a second, how long the log was at that time.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path

from launcher.job.record import Attempt
from launcher.settings import parse_seconds

_ENTRY = struct.Struct("<dQ")
"""Unix seconds, and bytes of the log."""
_EACH = 1.0
"""Seconds between two entries, at least: what lies between two was written within so many after the first."""
_BLOCK = 1 << 16
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_PIECE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
"""What carries a rank's mark: a progress bar's states as well as lines."""
_MARK = re.compile(rb"\[rank(\d+)\]: ")


class Times:
    """Notes when the log was how long. `note` is called before something is written to it, by any thread."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._fd = os.open(log.with_suffix(".times"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._next = 0.0

    def note(self) -> None:
        """Costs a look at the clock, and two system calls once a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EACH
        try:
            os.write(self._fd, _ENTRY.pack(time.time(), os.stat(self._log).st_size))
        except OSError:
            pass  # A full disk: what the log loses then is more than a time.

    def close(self) -> None:
        """From now on, nothing is noted."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def moment(text: str, now: float) -> float:
    """`10m` (before `now`), or a date with a time as ISO 8601 writes it, to Unix seconds. ValueError says what would be
    right."""
    try:
        return now - parse_seconds(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time; write 10m, 2h or 2026-01-31T12:00") from None


def span(attempts: Collection[Attempt], number: int) -> tuple[int, int | None]:
    """Where the output of an attempt begins in the log, and where it ends: None at the log's end. Raises KeyError."""
    starts = {each.number: each.log_start for each in attempts}
    later = [start for other, start in starts.items() if other > number]
    return starts[number], min(later, default=None)


def since(log: Path, when: float) -> int:
    """Where the line begins in which the log's output after `when` begins, to about a second."""
    try:
        data = log.with_suffix(".times").read_bytes()
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        whole = len(data) // _ENTRY.size * _ENTRY.size
        entries = _ENTRY.iter_unpack(data[:whole])
        offset: int = next((length for at, length in entries if at + _EACH >= when), os.fstat(fd).st_size)
        whole_line = not offset or os.pread(fd, 1, offset - 1) == b"\n"
        return offset if whole_line else _back(fd, 0, offset, 1, lambda piece: piece)
    finally:
        os.close(fd)


def read(
    log: Path,
    *,
    start: int = 0,
    ends: Callable[[], int | None] = lambda: None,
    ranks: Collection[int] = (),
    tail: int | None = None,
    grows: Callable[[], bool] = lambda: False,
    pause: float = 0.1,
) -> Iterator[bytes]:
    """The log from `start`, in pieces, as it came. It need not be there yet. `ends`: where to end, once that is known.

    `ranks`: only their lines; the mark of a single one is left out. `tail`: of what is there, only the last lines. `grows`:
    whether more may come; it is asked every `pause` seconds, and an empty piece says that all of what is there was given.
    """
    keep = _of_ranks(ranks)
    fd = None
    rest = b""
    while True:
        more, end = grows(), ends()
        if fd is None:
            try:
                fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if not more:
                    return
        if fd is not None:
            if tail is not None:
                size = os.fstat(fd).st_size
                start, tail = _back(fd, start, min(end or size, size), tail, keep), None
            while data := os.pread(fd, _BLOCK if end is None else min(_BLOCK, max(end - start, 0)), start):
                start += len(data)
                if not ranks:
                    yield data
                    continue
                pieces = _PIECE.findall(rest + data)
                # A carriage return at the end may be the first half of a line's end.
                rest = pieces.pop() if not pieces[-1].endswith(b"\n") else b""
                yield b"".join(keep(piece) for piece in pieces)
        if not more or (end is not None and start >= end):
            break
        yield b""
        time.sleep(pause)
    if rest:
        yield keep(rest)
    if fd is not None:
        os.close(fd)


def _of_ranks(ranks: Collection[int]) -> Callable[[bytes], bytes]:
    """A function that gives of a piece of the log what is to be shown of it."""

    def keep(piece: bytes) -> bytes:
        if not ranks:
            return piece
        mark = _MARK.match(piece)
        if not mark or int(mark[1]) not in ranks:
            return b""
        return piece[mark.end() :] if len(ranks) == 1 else piece

    return keep


def _back(fd: int, start: int, end: int, count: int, keep: Callable[[bytes], bytes]) -> int:
    """Where the last `count` lines before `end` begin that are kept; only as much is read as it takes."""
    block, left = _BLOCK, count
    while end > start and left:
        begin = max(start, end - block)
        data = _pread(fd, begin, end)
        if begin > start:
            cut = data.find(b"\n") + 1
            if cut in (0, len(data)):  # A line that is longer than this.
                block *= 2
                continue
            begin, data = begin + cut, data[cut:]
        place = end
        for line in reversed(_LINE.findall(data)):
            place -= len(line)
            left -= any(keep(piece) for piece in _PIECE.findall(line))
            if not left:
                return place
        end = begin
    return end if not left else start


def _pread(fd: int, begin: int, end: int) -> bytes:
    pieces = []
    while begin < end and (data := os.pread(fd, end - begin, begin)):
        pieces.append(data)
        begin += len(data)
    return b"".join(pieces)
