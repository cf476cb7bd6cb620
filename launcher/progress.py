"""Progress of transfers: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from launcher.events import Emit, event
from launcher.text import duration, size

_FIRST, _EACH = 3.0, 10.0
"""Seconds before the first plain line and between two."""


class Progress:
    """`with Progress(what, total bytes, emit) as progress: … progress.add(count)`; `add` from any thread.

    `stop` is called by each `add`, and raises to end what is going on.
    """

    def __init__(self, what: str, total: int, emit: Emit, stop: Callable[[], None] = lambda: None) -> None:
        self._what, self._total, self._emit, self._stop = what, total, emit, stop
        self.done = 0
        """Bytes moved so far."""
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None
        self.seconds = 0.0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._next = self._started + _FIRST
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._started
        if self._bar:
            self._bar.stop()

    def add(self, count: int) -> None:
        """`count` more bytes were moved."""
        self._stop()
        with self._lock:
            self.done += count
            now = time.monotonic()
            if sys.stderr.isatty():
                if self._bar is None and now - self._started > 0.3 and self._total:
                    self._show_bar()
                if self._bar:
                    self._bar.update(self._task, completed=self.done)
            elif now >= self._next and self._total:
                self._next = now + _EACH
                rate = self.done / (now - self._started)
                left = duration((self._total - self.done) / rate) if rate else "?"
                self._emit(
                    event(
                        "progress",
                        f"{self._what}: {size(self.done)} of {size(self._total)}, {size(rate)}/s, {left} left",
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
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.start()
