"""The blocks of a checkpoint that is read while it arrives: which come first, and who waits for them.

What a read waits for comes before everything else, with the three blocks behind it; meanwhile the other downloads trickle. In
the background comes all the rest, in an order in which libraries read: small files (configuration, index, tokenizer), the
headers of large ones, the weights by name, at last what only a training that goes on needs.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.checkpoint.manifest import File
from launcher.errors import LauncherError, StoreUnavailable
from launcher.inputs.selection import Selection
from launcher.transfer.bulk import Arriving, Syncing, Wanted
from launcher.transfer.digest import BLOCK
from launcher.transfer.lanes import Lanes
from launcher.transfer.object_store import Missing, Readable

_AHEAD = 3
"""Blocks behind one that is read which are fetched with it: one connection alone seldom fills a link."""
_URGENT = 4
"""Threads that only fetch what is waited for; the others may all be in the middle of a block."""
_TRICKLE = 0.5
"""Seconds that a download which nobody waits for pauses before each 256 KiB while somebody waits for another."""
_HEADER_AT_THE_END = (".bin", ".pt", ".pth", ".ckpt", ".distcp")
"""What torch.save writes: a zip archive, whose directory is its last block."""


class Stopped(Exception):
    """Nothing more is fetched."""


@dataclass(eq=False)
class Unit:
    """A block of 16 MiB, or a whole smaller file."""

    file: Arriving
    index: int
    there: bool = False
    coming: bool = False
    urgent: bool = False
    failures: int = 0
    cause: str = ""
    """Of the last failure, in words."""
    patience: int = -1
    """So many failures are borne by the reader who came last: an attempt that began before him does not count. -1: nobody
    waits."""


@dataclass
class _Queues:
    """Units that are to be fetched; one may be in several, and counts in the first in which it is found."""

    waited_for: deque[Unit] = field(default_factory=deque)
    ahead: deque[Unit] = field(default_factory=deque)
    rest: deque[Unit] = field(default_factory=deque)


class Blocks:
    """Fetches every file below `folder`, and lets readers wait for a part of one. `run` is called once, in a thread.

    `timeout`: seconds that a block is tried again without a byte arriving. One that could not be had is tried again when it is
    read again, and where the store did not answer also after all others. `unreadable(path, cause)` is called, from any thread,
    just before a read fails, and where trying again does not help.
    """

    def __init__(
        self,
        place: Readable,
        prefix: str,
        files: Sequence[File],
        folder: Path,
        *,
        threads: int,
        timeout: float,
        unreadable: Callable[[str, str], None],
    ) -> None:
        self._threads, self._unreadable, self._prefix = threads, unreadable, prefix
        self._lock = threading.Condition()
        self._current = threading.local()
        self._stopped = False
        self._urgent = 0
        self._units: dict[str, list[Unit]] = {}
        lanes, self._syncing = Lanes(threads), Syncing()
        for file in files:
            wanted = Wanted(prefix + file.path, file.size, str(folder / file.path), file.digest, file.blocks)
            arriving = Arriving(place, wanted, timeout, self._came, lanes, self._syncing)
            self._units[file.path] = [Unit(arriving, index) for index in range(arriving.count)]
        self._queues = _Queues(rest=deque(self._units[path][index] for path, index in order(files)))
        self._left = len(self._queues.rest)

    def run(self) -> None:
        """Returns when everything is there, and on the disk. Raises Stopped, OSError."""
        kinds = [False] * self._threads + [True] * _URGENT
        for urgent in kinds:
            threading.Thread(target=self._work, args=(urgent,), name="lazy", daemon=True).start()
        with self._lock:
            self._lock.wait_for(lambda: self._stopped or not self._left)
            if self._left:
                raise Stopped
        self._syncing.end()

    def stop(self) -> None:
        """Ends the downloads. What is there can be read on; reads of anything else fail, also those that wait."""
        with self._lock:
            self._stopped = True
            self._lock.notify_all()

    def need(self, path: str, start: int, length: int, given_up: Callable[[], bool] = lambda: False) -> None:
        """Returns when these bytes of a file are there, verified. Raises OSError: EIO where they cannot be had, EINTR where
        `given_up`, asked every half second, says that nobody waits any more."""
        units = self._units[path]
        first, last = start // BLOCK, max(start + length - 1, start) // BLOCK
        if all(unit.there for unit in units[first : last + 1]):
            return
        with self._lock:
            wanted = [unit for unit in units[first : last + 1] if not unit.there]
            self._hurry(wanted, self._queues.waited_for)
            self._hurry([unit for unit in units[last + 1 : last + 1 + _AHEAD] if not unit.there], self._queues.ahead)
            borne = {unit: unit.failures + unit.coming for unit in wanted}
            for unit in wanted:
                unit.patience = borne[unit]
            while not all(unit.there for unit in wanted):
                failed = next((unit for unit in wanted if unit.failures > borne[unit]), None)
                if failed or self._stopped:
                    raise OSError(errno.EIO, failed.cause if failed else "stopped")
                if given_up():
                    raise OSError(errno.EINTR, "interrupted")
                self._lock.wait(_TRICKLE)

    def _hurry(self, units: list[Unit], queue: deque[Unit]) -> None:
        for unit in units:
            if not unit.urgent:
                unit.urgent = True
                self._urgent += 1
            if not unit.coming:
                queue.append(unit)
        self._lock.notify_all()

    def _work(self, urgent: bool) -> None:
        while unit := self._next(urgent):
            self._current.unit = unit
            try:
                unit.file.fetch(unit.index)
                failure: Exception | None = None
            except Stopped:
                return
            except Exception as error:  # Whatever it is, who waits for the block is told, and the others go on.
                failure = error
            self._done(unit, failure)

    def _next(self, urgent: bool) -> Unit | None:
        """Waits for a unit to fetch; None at the end."""
        queues = self._queues
        mine = (queues.waited_for, queues.ahead) if urgent else (queues.waited_for, queues.ahead, queues.rest)
        with self._lock:
            while self._left and not self._stopped:
                for queue in mine:
                    while queue:
                        unit = queue.popleft()
                        if not unit.there and not unit.coming:
                            unit.coming = True
                            return unit
                self._lock.wait()
        return None

    def _done(self, unit: Unit, failure: Exception | None) -> None:
        with self._lock:
            unit.coming, unit.there = False, failure is None
            if unit.urgent:
                unit.urgent = False
                self._urgent -= 1
            if failure:
                self._failed(unit, failure)
            else:
                self._left -= 1
            self._lock.notify_all()

    def _failed(self, unit: Unit, failure: Exception) -> None:
        unit.failures, unit.cause = unit.failures + 1, _words(failure)
        if unit.failures <= unit.patience:
            self._hurry([unit], self._queues.waited_for)
            return
        passing = isinstance(failure, StoreUnavailable)
        if passing:
            self._queues.rest.append(unit)
        if unit.patience >= 0 or not passing:
            self._unreadable(unit.file.wanted.key.removeprefix(self._prefix), unit.cause)
        unit.patience = -1

    def _came(self, count: int) -> None:
        """An OnBytes: lets the downloads go first that somebody waits for."""
        if self._urgent and not self._current.unit.urgent:
            with self._lock:
                self._lock.wait_for(lambda: self._stopped or not self._urgent or self._current.unit.urgent, _TRICKLE)
        if self._stopped:
            raise Stopped


def _words(error: Exception) -> str:
    if isinstance(error, Missing):
        return "it is missing in the store"
    return error.text if isinstance(error, LauncherError) else str(error)


def order(files: Sequence[File]) -> list[tuple[str, int]]:
    """(path, number of the block) of everything, in the order in which it comes where nobody asks for anything else."""
    goes_on = Selection(only="inference")

    def rank(file: File, index: int, count: int) -> int:
        if count == 1:
            return 0
        header = count - 1 if file.path.endswith(_HEADER_AT_THE_END) else 0
        if not goes_on.takes(file.path):
            return 3
        return 1 if index == header else 2

    every = []
    for file in sorted(files, key=lambda file: file.path):
        count = max(1, -(-file.size // BLOCK))
        every += [
            (rank(file, index, count), file.size if count == 1 else 0, file.path, index) for index in range(count)
        ]
    return [(path, index) for _, _, path, index in sorted(every)]
