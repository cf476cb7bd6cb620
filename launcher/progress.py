"""Progress of transfers: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from launcher.events import Caller, Emit, event
from launcher.settings import process_environment, redraws
from launcher.text import duration, size

_FIRST, _EACH = 3.0, 10.0
"""Seconds before the first plain line and between two."""
_LARGE = 64 << 20
"""Bytes from which a file is followed on its own."""


class _File:
    """The bytes of one file."""

    def __init__(self, name: str, size: int, whole: Callable[[int], None]) -> None:
        self.name, self.size, self.done = name, size, 0
        self.began = 0.0
        self._whole = whole

    def __call__(self, count: int) -> None:
        self.began = self.began or time.monotonic()
        self.done += count  # From several threads, and only shown: a lost addition is no harm.
        self._whole(count)

    def rate(self, now: float) -> float:
        """Bytes a second; 0 before it began and when it has ended."""
        return self.done / (now - self.began) if 0 < self.done < self.size and now > self.began else 0.0


class Progress:
    """`with Progress(what, total bytes, emit) as progress: … progress(count)`, from any thread; `progress.file(name, size)` is
    called in its place for the bytes of one file.

    `stop` is called by each `add`, and raises to end what is going on.
    """

    def __init__(self, what: str, total: int, emit: Emit, stop: Callable[[], None] = lambda: None) -> None:
        self._what, self._total, self._emit, self._stop = what, total, emit, stop
        self.done = 0
        """Bytes moved so far."""
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self._files = list[_File]()
        self.seconds = 0.0

    def __enter__(self) -> Progress:
        self._terminal = sys.stderr.isatty() and redraws(process_environment()) and not isinstance(self._emit, Caller)
        self._started = time.monotonic()
        self._next = self._started + _FIRST
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar:
            self._bar.stop()

    def file(self, name: str, size: int) -> Callable[[int], None]:
        """What to call for a file's bytes; a large one can be named as the slowest."""
        if size < _LARGE:
            return self
        with self._lock:
            self._files.append(_File(name, size, self))
            return self._files[-1]

    def _slowest(self, now: float) -> str:
        """Which of several large files on their way needs longest, and how long."""
        going = [(each, each.rate(now)) for each in self._files if each.rate(now)]
        if len(self._files) < 2 or not going:
            return ""
        file, rate = max(going, key=lambda each: (each[0].size - each[0].done) / each[1])
        return f"; slowest: {file.name}, {size(rate)}/s, {duration((file.size - file.done) / rate)} left"

    def __call__(self, count: int) -> None:
        """`count` more bytes were moved."""
        self._stop()
        with self._lock:
            self.done += count
            now = time.monotonic()
            if self._terminal:
                if self._bar is None and now - self._started > 0.3 and self._total:
                    self._show_bar()
                if self._bar:
                    self._bar.update(self._task, completed=self.done, slowest=self._slowest(now).removeprefix("; "))
            elif now >= self._next and self._total:
                self._next = now + _EACH
                rate = self.done / (now - self._started)
                left = duration((self._total - self.done) / rate) if rate else "?"
                self._emit(
                    event(
                        "progress",
                        f"{self._what}: {size(self.done)} of {size(self._total)}, {size(rate)}/s, {left} left"
                        f"{self._slowest(now)}",
                        done=self.done,
                        total=self._total,
                    )
                )

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[slowest]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._what, total=self._total, slowest="")
        self._bar.start()
