"""A store in a folder: local disks and shared POSIX file systems.

Durable, which an object store library's local engine is not (obstore's makes no fsync): what `create_once` announced is
there after a power cut. Order: temporary file, fsync it, link it to its name (exclusive), fsync the folder. A crash before
the link leaves a `.tmp` that nobody reads; after it, the object is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from launcher.errors import AccessDenied, NoSpace, StoreError, of_os
from launcher.ids import new_id
from launcher.reflink import make_reflink
from launcher.transfer.digest import CHUNK, Hasher, chunks
from launcher.transfer.object_store import Entry, Exists, Missing, Moved, OnBytes, Sink, Unfinished

T = TypeVar("T")
Stamp = tuple[int, int, int, int]
"""Inode, bytes, modification and change time in ns: a file that keeps them keeps its content, for every write moves the last."""
_TEMPORARY = ".tmp-"
_TRIALS = 20
"""Times that a write is begun again because a delete beside it removed the folder, which had become empty."""


class LocalStore:
    """An ObjectStore over a folder, which is made when first written to."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.url = self.root
        self.stamps: dict[str, Stamp] = {}
        """Key to the stamp of each file that was uploaded, right after its last byte was durable; for who commits to take."""

    def _path(self, key: str) -> str:
        return os.path.join(self.root, key)

    def create_once(self, key: str, body: bytes) -> None:
        self._write(key, body, exclusive=True)

    def put(self, key: str, body: bytes) -> None:
        self._write(key, body, exclusive=False)

    def _write(self, key: str, body: bytes, *, exclusive: bool) -> None:
        with self._errors(key):
            self._in_its_folder(key, lambda path: self._write_once(path, key, body, exclusive=exclusive))

    def _in_its_folder(self, key: str, write: Callable[[str], T]) -> T:
        """Calls `write` with the key's path when its folder is there; again where the folder was deleted meanwhile, when
        it was empty (or gc took the temporary file)."""
        path = self._path(key)
        trial = 0
        while True:
            self._make_folder(os.path.dirname(path))
            try:
                return write(path)
            except FileNotFoundError:
                trial += 1
                if trial == _TRIALS:
                    raise

    def _write_once(self, path: str, key: str, body: bytes, *, exclusive: bool) -> None:
        temporary = os.path.join(os.path.dirname(path), _TEMPORARY + new_id())
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                _hand_over(temporary)
                _write_all(fd, memoryview(body))
                os.fsync(fd)
            finally:
                os.close(fd)
            if exclusive:
                try:
                    os.link(temporary, path)
                except FileExistsError as error:
                    raise Exists(key) from error
            else:
                os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(os.path.dirname(path))

    def get(self, key: str) -> bytes:
        with self._errors(key), open(self._path(key), "rb") as file:
            return file.read()

    def read(self, key: str, start: int, length: int) -> bytes:
        with self._errors(key), open(self._path(key), "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, start)

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        with self._errors(prefix):
            yield from self._list(prefix.rstrip("/"), after)

    def _list(self, folder: str, after: str) -> Iterator[Entry]:
        try:
            with os.scandir(self._path(folder) if folder else self.root) as found:
                items = [
                    (f"{folder}/{item.name}" if folder else item.name, item.is_dir(follow_symlinks=False), item)
                    for item in found
                    if not item.name.startswith(_TEMPORARY)
                ]
        except FileNotFoundError:
            return
        except NotADirectoryError:
            if os.path.isdir(self.root):
                return
            raise
        for key, is_folder, item in sorted(items, key=lambda each: each[0] + ("/" if each[1] else "")):
            if is_folder:
                if f"{key}/" > after or after.startswith(f"{key}/"):  # Else nothing in it comes after.
                    yield from self._list(key, after)
            elif key > after:
                with contextlib.suppress(FileNotFoundError):
                    status = item.stat(follow_symlinks=False)
                    yield Entry(key, status.st_size, status.st_mtime)

    def upload(self, source: str, key: str, on_bytes: OnBytes) -> Moved:
        with self._errors(key), open(source, "rb", buffering=0) as file:
            moved, self.stamps[key] = self._in_its_folder(key, lambda path: _copy(file.fileno(), path, on_bytes))
            return moved

    def stream(self, key: str, start: int, length: int, sink: Sink) -> None:
        with self._errors(key):
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        try:
            buffer = memoryview(bytearray(min(length, CHUNK)))
            end = start + length
            while start < end:
                with self._errors(key):  # Not around the sink: its errors are not the store's.
                    count = os.preadv(fd, [buffer[: min(len(buffer), end - start)]], start)
                if not count:
                    raise StoreError(store=self.url, cause=f"{key} ends at {start}, before {end}")
                sink(buffer[:count])
                start += count
        finally:
            os.close(fd)

    def copy(self, source_key: str, target_key: str) -> None:
        with self._errors(source_key), open(self._path(source_key), "rb", buffering=0) as file:
            self._in_its_folder(target_key, lambda path: _clone(file.fileno(), path))

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """A file is written at its place, and belongs to no checkpoint until it is whole."""
        return iter(())

    def abort(self, upload: Unfinished) -> None:
        """There is none."""

    def settle(self, prefix: str) -> None:
        with self._errors(prefix):
            for folder, _, _ in os.walk(self._path(prefix)):
                _sync_folder(folder)
            _sync_folder(os.path.dirname(self._path(prefix.rstrip("/"))))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._errors(key):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(key))
                folder = os.path.dirname(self._path(key))
                while len(folder) > len(self.root):
                    try:
                        os.rmdir(folder)
                    except OSError:
                        break
                    folder = os.path.dirname(folder)

    def _make_folder(self, folder: str) -> None:
        for trial in range(_TRIALS):
            try:
                self._make_missing(folder)
                return
            except FileNotFoundError as error:  # A folder above was deleted meanwhile, when it was empty.
                if trial == _TRIALS - 1:  # Or none can be made there, as in /proc.
                    raise of_os(error, folder) from error

    def _make_missing(self, folder: str) -> None:
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(each)
                _hand_over(each)
            _sync_folder(os.path.dirname(each))

    def leftovers(self) -> Iterator[Entry]:
        with self._errors(""):
            for folder, _, names in os.walk(self.root):
                for name in names:
                    path = os.path.join(folder, name)
                    with contextlib.suppress(FileNotFoundError):
                        if name.startswith(_TEMPORARY):
                            status = os.lstat(path)
                            yield Entry(os.path.relpath(path, self.root), status.st_size, status.st_mtime)

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise Missing(key) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    what=key, path=self.root, need="more", free=_free(self.root), setting="LAUNCHER_STORE"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise AccessDenied(
                    what=f"{self.root}/{key}",
                    cause=error.strerror,
                    hint="Check the folder's owner, or set LAUNCHER_STORE.",
                ) from error
            raise StoreError(store=self.url, cause=f"{key}: {error.strerror}") from error


def stamp(status: os.stat_result) -> Stamp:
    """The stamp of a file in some state."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _copy(source: int, destination: str, on_bytes: OnBytes) -> tuple[Moved, Stamp]:
    hasher = Hasher()
    with _new_file(destination) as fd:
        for chunk in chunks(source):
            _write_all(fd, chunk)
            hasher.update(chunk)
            on_bytes(len(chunk))
        found = _finish(fd)
    return Moved(hasher.size, hasher.digest, hasher.blocks), found


def _clone(source: int, destination: str) -> None:
    """By a reflink where the file system can (no byte is written), else inside the kernel. Never by a hard link: then damage
    to one checkpoint would be damage to both."""
    with _new_file(destination) as fd:
        try:
            make_reflink(source, fd)
        except OSError:
            size = os.fstat(source).st_size
            while (done := os.lseek(fd, 0, os.SEEK_CUR)) < size:
                if not os.copy_file_range(source, fd, size - done):
                    raise
        _finish(fd)


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    """A file to write."""
    # A file left by a crash in the middle of a copy is ours alone (ids are never reused): write it anew.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _hand_over(path)
        yield fd
    finally:
        os.close(fd)


def _finish(fd: int) -> Stamp:
    """Makes a file read-only and durable."""
    os.fchmod(fd, 0o444)
    os.fsync(fd)
    return stamp(os.fstat(fd))


def _hand_over(path: str) -> None:
    """What root makes belongs to the owner of the folder that it is in: a user whose folder was mounted into root's container
    can remove it."""
    if os.geteuid() == 0 and (owner := os.stat(os.path.dirname(path))).st_uid:
        with contextlib.suppress(PermissionError):  # A root without CAP_CHOWN.
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _write_all(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _free(path: str) -> str:
    from launcher.text import size

    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return size(status.f_bavail * status.f_frsize)
