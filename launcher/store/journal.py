"""What a push by hand has sent so far: one that was cut off goes on under the same id, and finished files are not sent again.

One file for each push that is going on or was cut off, below the data folder, named by what is pushed, under which name and to
which store. Its first line has the checkpoint's id, each further line a file that is in the store: what it was when it was
sent, and its entry for the manifest. It is only appended to, a line by one write, and removed when the checkpoint is committed,
so a crash at any point leaves a prefix of it that is true. (Parts of large files are the server's to know: `transfer.multipart`.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from launcher.checkpoint.manifest import File
from launcher.decoding import decode
from launcher.ids import is_id, new_id
from launcher.store import layout, removal
from launcher.store.reading import Reader
from launcher.store.store import Store
from launcher.transfer.digest import of_bytes


class _Head(msgspec.Struct, frozen=True):
    """`words`: which push it is. (Journals of older releases do not say it.)"""

    id: str
    store: str = ""
    words: tuple[str, ...] = ()


class _Sent(msgspec.Struct, frozen=True):
    identity: tuple[int, int, int, int]
    file: File


class Journal:
    """`with Journal(store, folder, words) as journal: journal.begin(paths) … journal.finish()`; `id` is the checkpoint's.

    `words` say which push this is. While another process is at the same one, or where `folder` is empty or cannot be written,
    this one goes on without a file, under an id of its own. `note` from any thread.
    """

    def __init__(self, store: Store, folder: str, words: tuple[str, ...]) -> None:
        self.id = new_id()
        self._store = store
        self._words = words
        self._sent: dict[str, _Sent] = {}
        self._fd = -1
        key = of_bytes("\0".join((store.url, *words)).encode("utf-8", "surrogateescape"))
        self._path = Path(folder, "pushes", key.rpartition(":")[2][:32]) if folder else None

    def __enter__(self) -> Journal:
        if not self._path:
            return self
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return self
        with contextlib.suppress(OSError):  # Somebody else's, or a file system without locks.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                self._fd = fd
                return self
        os.close(fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def begin(self, paths: Collection[str]) -> list[File]:
        """Before the first file: takes an earlier try up where there was one, and returns what of it is in the store.

        An id that was committed (before a crash that left this journal), aborted or deleted is not used again: nobody writes
        below a checkpoint that exists. What the earlier try sent and is not pushed any more is removed. Raises StoreError.
        """
        if self._fd < 0:
            return []
        earlier = self._read()
        if not earlier or any(self._store.exists(key(earlier)) for key in (layout.manifest, layout.tombstone)):
            self.restart()
            return []
        self.id, prefix = earlier, layout.files(earlier)
        there = {entry.key.removeprefix(prefix): entry.size for entry in self._store.listing(prefix)}
        removal.remove(self._store, [prefix + path for path in there.keys() - set(paths)])
        self._sent = {path: each for path, each in self._sent.items() if there.get(path) == each.file.size}
        return [each.file for each in self._sent.values()]

    def _read(self) -> str:
        """The id that the file tells, or nothing where it is new or damaged; and what was sent."""
        assert self._path
        lines = self._path.read_bytes().split(b"\n")
        try:
            head = decode(lines[0], _Head).id
            sent = [decode(line, _Sent) for line in lines[1:-1]]  # What has no line end was not written whole.
        except (ValueError, RecursionError):
            return ""
        self._sent = {each.file.path: each for each in sent}
        return head if is_id(head) else ""

    def kept(self, path: str, status: os.stat_result) -> File | None:
        """The entry of a file that was sent and has not been touched since."""
        sent = self._sent.get(path)
        return sent.file if sent and sent.identity == _identity(status) else None

    def note(self, file: File, status: os.stat_result) -> None:
        """This file is in the store, as it was by `status` before and after."""
        self._append(_Sent(_identity(status), file))

    def restart(self) -> None:
        """Another id, and nothing of it sent: gc took the push for dead, or what is written here is of no use."""
        self.id, self._sent = new_id(), {}
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            self._append(_Head(self.id, self._store.url, self._words))

    def _append(self, line: _Head | _Sent) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # A full disk: the push goes on, and could not be gone on with.
                os.write(self._fd, msgspec.json.encode(line) + b"\n")

    def finish(self) -> None:
        """The checkpoint is committed."""
        if self._path and self._fd >= 0:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Push:
    """A push that was begun on this machine and is not over. `live`: a process is at it; else it was cut off."""

    path: Path
    id: str
    words: tuple[str, ...]
    live: bool


def unfinished(store: Reader, folder: str) -> list[Push]:
    """The pushes to a store that are not over, in the order of their ids; those of another user are not seen."""
    found = []
    for path in Path(folder, "pushes").glob("*"):
        try:
            with open(path, "rb") as file:
                head = decode(file.readline(), _Head)
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    live = False
                except BlockingIOError:
                    live = True
        except (OSError, ValueError):
            continue
        if head.store == store.url and head.words:
            found.append(Push(path, head.id, head.words, live))
    return sorted(found, key=lambda each: each.id)


def discard(store: Reader, push: Push) -> bool:
    """Forgets a push that was cut off, and removes what it sent. False where a process is at it again. Raises StoreError."""
    with open(push.path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not store.exists(layout.manifest(push.id)):  # Else it was cut off after its commit.
            removal.remove(store, [entry.key for entry in store.listing(layout.files(push.id))])
        push.path.unlink(missing_ok=True)
    return True


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Changes with every write to the file: nobody can set the last one back."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
