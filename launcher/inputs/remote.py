"""Checkpoints that are not in the store: folders, files and archives behind any URL, pinned to what they were when asked.

s3:// gs:// az://   a folder, one file, an archive; every other fsspec protocol, too
http(s)://          a folder's listing, one file, an archive
hf://ORG/MODEL@REV  a hub repository at one commit; the files that a PyTorch job needs
storage:NAME/PATH   the same in a storage, with its credentials
/path/x.tar.zst     an archive here
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from launcher import storages
from launcher.checkpoint import paths
from launcher.checkpoint.manifest import File
from launcher.errors import DigestMismatch, LauncherError, SourceNotFound, UsageError
from launcher.inputs import archives
from launcher.inputs.selection import Selection, needed
from launcher.settings import Settings
from launcher.transfer import addresses, bulk, hub
from launcher.transfer.cloud import SCHEMES
from launcher.transfer.digest import Hasher, chunks
from launcher.transfer.generic import check_url
from launcher.transfer.http import shown
from launcher.transfer.local import LocalStore
from launcher.transfer.object_store import Entry, Missing, Moved, OnBytes, Readable
from launcher.transfer.places import open_place
from launcher.transfer.retry import call
from launcher.transfer.web import Web

_TRIES = 3
_ARCHIVE, _UNPACKED = ".launcher-archive", ".launcher-unpacked"


@dataclass(frozen=True)
class Remote:
    """A checkpoint somewhere else as it is now: `url` says where, pinned and without credentials; the same `identity` means
    the same bytes, as far as the place can tell."""

    url: str
    name: str
    place: Readable
    entries: tuple[Entry, ...]
    """What is downloaded: the files, or one archive that is unpacked (`archive`: its name)."""
    identity: str
    selection: Selection
    timeout: float
    archive: str = ""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(entry.size for entry in self.entries)

    def as_it_is(self) -> Remote:
        """The same, with an archive as the file that it is."""
        if not self.archive:
            return self
        return dataclasses.replace(self, archive="", identity=f"{self.identity}\nas a file")

    def download(self, folder: Path, *, threads: int, on_bytes: OnBytes) -> tuple[File, ...]:
        """Brings the files below `folder`, verified by whatever digests the place has: a file with another one is downloaded
        anew, twice at most.

        Raises SourceNotFound, DigestMismatch, ArchiveRefused, UnsafePath, NoSpace, StoreError, OSError.
        """
        try:
            if self.archive:
                return self._unpack(folder, threads, on_bytes)
            for _ in range(_TRIES):
                files = self._bring({entry: folder / entry.key for entry in self.entries}, threads, on_bytes)
                wrong = self._wrong(folder)
                if not wrong:
                    return tuple(msgspec.structs.replace(file, sha256=self.sha256.get(file.path, "")) for file in files)
                for entry in wrong:
                    (folder / entry.key).unlink()
                on_bytes(-self.size)
        except Missing as error:
            raise SourceNotFound(source=self.url, cause=f"{error} was removed meanwhile") from error
        raise DigestMismatch(
            path=wrong[0].key,
            what="the files at",
            id=self.url,
            cause=f"{_TRIES} times it came with another digest than the hub says",
            hint="Run the same command again later: only this file is downloaded anew.",
        )

    def _bring(self, targets: Mapping[Entry, Path], threads: int, on_bytes: OnBytes) -> tuple[File, ...]:
        for parent in {target.parent for target in targets.values()}:
            parent.mkdir(parents=True, exist_ok=True)
        moved: dict[Entry, Moved] = {}
        for entry, target in targets.items():
            if _is_whole(target, entry.size):  # By an attempt that was cut off later.
                moved[entry] = _moved(target)
                on_bytes(entry.size)
            elif isinstance(self.place, Web) and self.place.sequential(entry):
                moved[entry] = self.place.whole(entry, str(target), on_bytes)
        parallel = [entry for entry in targets if entry not in moved]
        wanted = [bulk.Wanted(entry.key, entry.size, str(targets[entry])) for entry in parallel]
        came = bulk.download(self.place, wanted, threads=threads, timeout=self.timeout, on_bytes=on_bytes)
        moved |= dict(zip(parallel, came))
        return tuple(
            File(entry.key, moved[entry].size, moved[entry].digest, blocks=moved[entry].blocks) for entry in targets
        )

    def _unpack(self, folder: Path, threads: int, on_bytes: OnBytes) -> tuple[File, ...]:
        (entry,) = self.entries
        packed, unpacked = folder / _ARCHIVE, folder / _UNPACKED
        _clear(folder, keep=_ARCHIVE)  # An unpacking that was cut off begins anew.
        if isinstance(self.place, LocalStore):
            packed = Path(self.place.root) / entry.key
        else:
            self._bring({entry: packed}, threads, on_bytes)
        unpacked.mkdir()
        try:
            files = archives.unpack(str(packed), unpacked, self.selection.takes, name=self.archive)
            if not files:
                raise SourceNotFound(source=self.url, cause="no file of it is taken")
        except LauncherError:
            _clear(folder)  # Nobody will go on with it: the space is given back.
            raise
        (folder / _ARCHIVE).unlink(missing_ok=True)
        for child in list(unpacked.iterdir()):
            child.rename(folder / child.name)
        unpacked.rmdir()
        return files

    def _wrong(self, folder: Path) -> list[Entry]:
        """The files whose digest is not the one that the hub names."""
        if not isinstance(self.place, hub.HubRepository):
            return []
        digests = self.place.digests

        def right(entry: Entry) -> bool:
            digest = digests.get(entry.key, "")
            return not digest or hub.matches(folder / entry.key, entry.size, digest)

        with ThreadPoolExecutor(4) as pool:
            return [entry for entry, same in zip(self.entries, pool.map(right, self.entries)) if not same]

    @property
    def sha256(self) -> dict[str, str]:
        """Path to SHA-256 in hex, where the place names it."""
        found = self.place.digests if isinstance(self.place, hub.HubRepository) else {}
        return {path: digest.removeprefix("sha256:") for path, digest in found.items() if digest.startswith("sha256:")}


def _clear(folder: Path, *, keep: str = "") -> None:
    for child in list(folder.iterdir()):
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != keep:
            child.unlink()


def _moved(path: Path) -> Moved:
    hasher = Hasher()
    with open(path, "rb", buffering=0) as file:
        for chunk in chunks(file.fileno()):
            hasher.update(chunk)
    return Moved(hasher.size, hasher.digest, hasher.blocks)


def _is_whole(path: Path, size: int) -> bool:
    """Whether an earlier attempt brought the whole file: it was made read-only when its last byte was durable."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size and not status.st_mode & 0o222


def find(url: str, selection: Selection, settings: Settings, environ: Mapping[str, str]) -> Remote:
    """What is at a URL or at storage:NAME/PATH. Raises SourceNotFound, UsageError, UnsafePath, AccessDenied, StoreError."""
    if url.startswith("storage:"):
        name, _, path = url.removeprefix("storage:").partition("/")
        storage = storages.load(settings.data_dir, name)

        def opened(path: str) -> Readable:
            return storages.open_source(storage, path, settings, environ)

        return _find(url, path, opened, selection, settings.store_timeout)
    scheme = check_url(url)
    if scheme in SCHEMES:

        def opened(path: str) -> Readable:
            return open_place(path, timeout=settings.store_timeout, environ=environ)

    elif scheme in ("http", "https"):

        def opened(path: str) -> Readable:
            return Web(path, timeout=settings.store_timeout, environ=environ)

    elif scheme == "hf":

        def opened(path: str) -> Readable:
            return hub.HubRepository(path, timeout=settings.store_timeout, environ=environ)

    else:
        addresses.check(urllib.parse.urlsplit(url).hostname or "")

        def opened(path: str) -> Readable:
            return open_place(path, timeout=settings.store_timeout, environ=environ)

    return _find(url, url, opened, selection, settings.store_timeout)


def _find(url: str, path: str, opened: Callable[[str], Readable], selection: Selection, timeout: float) -> Remote:
    try:
        place = opened(path)
        if isinstance(place, hub.HubRepository):
            place.open()
            entries = tuple(place.list(""))
            if not selection.include:
                wanted = needed(entry.key for entry in entries)
                entries = tuple(entry for entry in entries if entry.key in wanted)
            return _folder(place.url, place.url, place, entries, selection, timeout)
        if isinstance(place, Web):
            return _web(url, place, selection, timeout)
        name = path.rstrip("/").rpartition("/")[2]
        entries = () if archives.is_archive(name) else call(lambda: tuple(place.list("")), timeout)
        if entries:
            return _folder(shown(url), place.url, place, entries, selection, timeout)
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent.endswith("/"):  # else it was a bucket
            entries = call(lambda: _single(opened(parent), name), timeout)
        if entries:
            return _folder(shown(url), place.url, opened(parent), entries, selection, timeout, archive=name)
    except Missing:
        pass
    raise SourceNotFound(source=shown(url), cause="nothing is there")


def _web(url: str, place: Web, selection: Selection, timeout: float) -> Remote:
    probe = place.probe()
    name = urllib.parse.unquote(urllib.parse.urlsplit(place.url).path.rpartition("/")[2])
    if archives.is_archive(name) or (name and not probe.page):
        entry = place.only(name, probe)
        remote = _folder(place.url, place.url, place, (entry,), selection, timeout, archive=name)
    elif urllib.parse.urlsplit(probe.url).path.endswith("/"):
        remote = _folder(place.url, place.url, place, tuple(place.list("")), selection, timeout)
    else:
        raise SourceNotFound(
            source=place.url, cause="the server answers with an HTML page, not with a file or a folder's listing"
        )
    versions = "\n".join(place.version(entry.key) for entry in remote.entries)
    return dataclasses.replace(remote, identity=f"{remote.identity}\n{versions}")


def _single(folder: Readable, name: str) -> tuple[Entry, ...]:
    """One object, found by listing its folder from just before it; empty where it is not there."""
    for entry in folder.list("", after=name[:-1]):
        if entry.key >= name:
            return (entry,) if entry.key == name else ()
    return ()


def of_path(path: str, selection: Selection, timeout: float) -> Remote:
    """An archive on this machine, or a folder of which a selection is taken."""
    place = LocalStore(path if os.path.isdir(path) else os.path.dirname(path))
    if os.path.isdir(path):
        return _folder(path, path, place, tuple(place.list("")), selection, timeout)
    status = os.stat(path)
    name = os.path.basename(path)
    entry = Entry(name, status.st_size, status.st_mtime_ns / 1e9)
    return _folder(path, f"{path}\n{status.st_ino}", place, (entry,), selection, timeout, archive=name)


def _folder(
    url: str,
    where: str,
    place: Readable,
    entries: Iterable[Entry],
    selection: Selection,
    timeout: float,
    *,
    archive: str = "",
) -> Remote:
    last = urllib.parse.unquote(url.rstrip("/").rpartition("/")[2])
    if archive and archives.is_archive(archive):
        taken = tuple(entries)
        name = archives.stem(last)
    else:
        archive = ""
        taken = tuple(entry for entry in entries if selection.takes(entry.key))
        name = urllib.parse.unquote(url).rpartition("@")[0].rpartition("/")[2] if url.startswith("hf://") else last
        if not taken:
            raise SourceNotFound(source=url, cause="no file of it is taken" if selection else "nothing is there")
        paths.check_all(entry.key for entry in taken)
    listing = [f"{entry.key}\t{entry.size}\t{entry.modified}" for entry in taken]
    # For an archive, what is taken of it decides what is in the entry; otherwise the listing says it already.
    identity = "\n".join([where, *listing, *([selection.text] if archive and selection else [])])
    return Remote(url, name, place, taken, identity, selection, timeout, archive)


def of_text(text: str, selection: Selection, settings: Settings, environ: Mapping[str, str]) -> Remote | None:
    """What a person's text names, where it is not simply a local folder or file: then None."""
    if text.startswith("storage:") or ("://" in text and not text.startswith("file://")):
        return find(text, selection, settings, environ)
    path = os.path.abspath(os.path.expanduser(local_path(text)))
    if archives.is_archive(path) and os.path.isfile(path):
        return of_path(path, selection, settings.store_timeout)
    return None


def local_path(text: str) -> str:
    """The path of a file:// URL; any other text as it is. Raises UsageError where it names another host."""
    if not text.startswith("file://"):
        return text
    parts = urllib.parse.urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(what=f"{text} names a file of another machine.", hint="Write file:///PATH.")
    return urllib.parse.unquote(parts.path)
