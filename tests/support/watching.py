"""A watcher as the main job has it, without the store: what it captures is kept in a list."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher.checkpoint.judgement import Judgement
from launcher.events import Event
from launcher.outputs import capture as captures
from launcher.outputs.capture import Capture
from launcher.outputs.filesystem import RUNGS, Rung
from launcher.outputs.watcher import Subject, Watcher
from launcher.transfer.digest import of_bytes
from tests.campaigns import quick_writer


class Watching:
    """Watches `output` from construction to `finish`, with a spool beside it (or elsewhere)."""

    def __init__(
        self,
        output: Path,
        *,
        spool: Path | None = None,
        settle: float = 0.2,
        rungs: Sequence[Rung] = RUNGS,
        also: Sequence[str] = (),
        world_size: int | None = None,
        on_capture: Callable[[Capture], None] = lambda capture: None,
    ) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.spool = spool or output.with_name(f"{output.name}-spool")
        self.spool.mkdir(parents=True, exist_ok=True)
        self.captured: list[Capture] = []
        self.times: list[float] = []
        """time.monotonic() of each capture."""
        self.events: list[Event] = []
        self._on_capture = on_capture
        self.watcher = Watcher(
            str(output),
            self.spool,
            Subject("job"),
            world_size=world_size,
            settle=settle,
            on_capture=self._take,
            emit=self.events.append,
            also=also,
            rungs=rungs,
        )
        self.watcher.start()

    def _take(self, capture: Capture) -> None:
        self.times.append(time.monotonic())
        self.captured.append(capture)
        self._on_capture(capture)

    def finish(self, *, well: bool = True) -> list[tuple[str, Judgement]]:
        """The job is over: what is salvage."""
        return self.watcher.finish(unknown_counts=well)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.captured]

    @property
    def reported(self) -> dict[str, str]:
        return dict(self.watcher.reported)

    def wait(self, *found: str, seconds: float = 60) -> None:
        """Until checkpoints of these names were captured."""
        eventually(lambda: set(found) <= set(self.names), f"{found} among {self.names}", seconds)


def eventually(what: Callable[[], Any], text: str, seconds: float = 60) -> Any:
    """The first true answer, within a generous time."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"not within {seconds} s: {text}"
        time.sleep(0.01)
    return answer


def read(capture: Capture, *, pace: Callable[[int], None] | None = None) -> dict[str, bytes] | None:
    """The captured files as an uploader reads them, or None where one is no longer what was captured. `pace` is called with
    the bytes of each piece."""
    content = {}
    size = 16384 if pace else 1 << 20
    for path in capture.files:
        try:
            fd = capture.open(path)
        except FileNotFoundError:
            return None
        try:
            data = b""
            while piece := os.pread(fd, size, len(data)):
                data += piece
                if pace:
                    pace(len(piece))
            if not capture.unchanged(path, os.fstat(fd)):
                return None
        finally:
            os.close(fd)
        content[path] = data
    return content


def save_trainer(folder: Path, seed: int, step: int, *, pause: float = 0.0, names: Sequence[str] = ()) -> None:
    """Writes a Trainer checkpoint file by file in the Trainer's order; `names`: only these of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in quick_writer.content(seed, step).items():
        if not names or name in names:
            (folder / name).write_bytes(data)
            time.sleep(pause)


def digest(content: dict[str, bytes]) -> str:
    """Of all files of a state."""
    return of_bytes(b"\0".join(content[name] for name in sorted(content)))


def state_of(content: dict[str, bytes], seed: int, steps: Sequence[int], files: Callable[..., Any]) -> int | None:
    """The step whose files (by `files(seed, step)`) these are, or None: they are of no single one."""
    wanted = digest(content)
    return next((step for step in steps if digest(files(seed, step)) == wanted), None)


def forget(watching: Watching, capture: Capture) -> None:
    """As if it were stored."""
    captures.discard(capture.id, watching.spool)


class SlowUploads:
    """Reads captures one after the other at so many bytes a second, as an uploader does that must yield; what it could read
    to the end unchanged counts as committed.

    Use `put` as Watching's `on_capture`; `watching` is set before the first.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.watching: Watching | None = None
        self.committed: list[tuple[Capture, dict[str, bytes]]] = []
        self.superseded: list[Capture] = []
        self._queue: queue.SimpleQueue[Capture | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, capture: Capture) -> None:
        self._queue.put(capture)

    def drain(self) -> None:
        """Waits until everything that was put is through."""
        self._queue.put(None)
        self._thread.join(600)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        # The launcher's uploader is a process of its own. This is a thread, which must not be taken off the processor by
        # others while it holds the interpreter's lock that the watcher needs.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        while capture := self._queue.get():
            content = read(capture, pace=self._pace)
            assert self.watching
            forget(self.watching, capture)
            if content is not None:
                self.committed.append((capture, content))
                continue
            self.superseded.append(capture)
            self.watching.watcher.again(capture.path)

    def _pace(self, count: int) -> None:
        time.sleep(count / self.rate)
