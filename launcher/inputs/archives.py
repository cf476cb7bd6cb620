"""Checkpoints that come as an archive: tar, tar.gz, tar.zst, zip.

An archive is hostile until it has been read: only regular files come out of it, under paths that `checkpoint.paths` accepts,
created anew below the folder. One link, device, encrypted or doubled member refuses all of it, as a checkpoint without one of
its files would be broken anyway. Members, their headers, and the bytes that come out are bounded before they are written.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from launcher.checkpoint import paths
from launcher.checkpoint.manifest import File
from launcher.errors import ArchiveRefused, NoSpace, UnsafePath
from launcher.text import size as as_size
from launcher.transfer.digest import CHUNK, Hasher

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".zip")
_MEMBERS = 100_000
_HEADER = 64 << 10
"""Bytes of a name or an extended header: paths have 1,024 at most."""
_DIRECTORY = 64 << 20
"""Bytes of a zip's central directory, which is read into memory."""
_RATIO, _ALWAYS = 200, 64 << 20
"""What comes out may be this many times what went in, or this many bytes. Weights compress to a half at best."""
_WINDOW = 128 << 20
"""Bytes of memory that a zstd archive may ask for: what `zstd --long` writes by default."""
_RESERVE = 64 << 20
"""Bytes of the disk that are left free."""


_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError, OverflowError,
    NotImplementedError, ValueError, RuntimeError,
)  # fmt: skip


class _Refused(Exception):
    """What a member has that none of a checkpoint has."""


@dataclass(frozen=True)
class _Member:
    path: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Whether a file's name is that of an archive that is unpacked."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """The name without the archive's suffix."""
    suffix = max((each for each in SUFFIXES if name.lower().endswith(each)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


def unpack(archive: str, folder: Path, takes: Callable[[str], bool], *, name: str = "") -> tuple[File, ...]:
    """Unpacks the members that `takes` wants into an empty folder; where all lie in one folder, that one's content.

    `name` tells the kind, where the file is called otherwise. Files are synced and read-only. Raises UnsafePath,
    ArchiveRefused, NoSpace, OSError; then the folder holds what came before.
    """
    name = os.path.basename(name or archive)
    packed = os.path.getsize(archive)
    room = shutil.disk_usage(folder).free - _RESERVE
    seen: set[str] = set()
    files: list[File] = []
    total = taken = 0
    try:
        with open(archive, "rb") as file:
            for member in _zip(file) if name.lower().endswith(".zip") else _tar(file, name.lower()):
                paths.check(member.path)
                total += member.size
                if len(seen) >= _MEMBERS:
                    raise _Refused(f"it has more than {_MEMBERS} members")
                if member.path in seen:
                    raise _Refused(f"it has {member.path!r} twice")
                if total > max(_RATIO * packed, _ALWAYS):
                    raise _Refused(f"{as_size(packed)} would become {as_size(total)} or more")
                seen.add(member.path)
                if takes(member.path):
                    taken += member.size
                    if taken > room:
                        raise NoSpace(
                            what=name,
                            path=folder,
                            need=as_size(taken),
                            free=as_size(room),
                            setting="LAUNCHER_CACHE_DIR",
                        )
                    files.append(_write(member, folder))
        paths.check_all(seen)
    except _Refused as error:
        raise ArchiveRefused(source=name, cause=str(error)) from error
    except _DAMAGE as error:
        raise ArchiveRefused(source=name, cause=f"it is damaged ({str(error) or type(error).__name__})") from error
    return _lifted(folder, tuple(files), seen)


def _write(member: _Member, folder: Path) -> File:
    target = folder / member.path
    hasher = Hasher()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise UnsafePath(path=member.path, cause="another member is at its place") from error
    with open(fd, "wb") as file, member.open() as source:
        while hasher.size < member.size and (chunk := source.read(min(CHUNK, member.size - hasher.size))):
            file.write(chunk)
            hasher.update(chunk)
        if hasher.size < member.size or source.read(1):
            raise _Refused(f"{member.path!r} is not as long as it says")
        file.flush()
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    return File(member.path, hasher.size, hasher.digest, blocks=hasher.blocks)


def _lifted(folder: Path, files: tuple[File, ...], every: set[str]) -> tuple[File, ...]:
    """Without the one folder in which all members lie, where there is one."""
    tops = {path.partition("/")[0] for path in every}
    if len(tops) != 1 or not all("/" in path for path in every):
        return files
    (top,) = tops
    if not (folder / top).is_dir():
        return files
    lifted = folder / ".launcher-lifted"
    (folder / top).rename(lifted)
    for child in list(lifted.iterdir()):
        child.rename(folder / child.name)
    lifted.rmdir()
    return tuple(File(file.path[len(top) + 1 :], file.size, file.digest, blocks=file.blocks) for file in files)


def _tar(file: IO[bytes], name: str) -> Iterator[_Member]:
    bounded = _Counted(file)
    if name.endswith("gz"):
        bounded = _Counted(gzip.open(file))
    elif name.endswith("zst"):
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        bounded = _Counted(decompressor.stream_reader(file, read_across_frames=True), zstandard.ZstdError)
    longer: dict[str, str] = {}
    while block := bounded.read(tarfile.BLOCKSIZE):
        if block == b"\0" * tarfile.BLOCKSIZE:
            return
        head = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if head.size < 0:
            raise _Refused(f"{head.name!r} has a negative size")
        padded = -(-head.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if head.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            if head.size > _HEADER:
                raise _Refused(f"it has a header of {head.size} bytes")
            body = bounded.read(padded)[: head.size]
            if head.type == tarfile.GNUTYPE_LONGNAME:
                longer["path"] = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif head.type != tarfile.GNUTYPE_LONGLINK:
                records = _pax(body)
                if any(key.startswith("GNU.sparse") for key in records):
                    raise _Refused("it has a sparse member")
                if head.type == tarfile.XHDTYPE:
                    longer |= records
                elif records.keys() & {"path", "size"}:
                    raise _Refused("its global header renames members")
            continue
        path = longer.get("path", head.name)
        size = int(longer.get("size", head.size))
        longer = {}
        if head.type == tarfile.DIRTYPE or (head.type in tarfile.REGULAR_TYPES and path.endswith("/")):
            continue
        if head.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise _Refused(f"{path!r} is a link, a device or no regular file")
        if size < 0:
            raise _Refused(f"{path!r} has a negative size")
        end = bounded.position + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        part = _Part(bounded, size)
        yield _Member(path.removeprefix("./"), size, lambda part=part: part)  # type: ignore[misc]
        bounded.skip(end)
    raise EOFError("it ends in the middle")


def _pax(body: bytes) -> dict[str, str]:
    """The records of an extended header: each is `LENGTH KEY=VALUE\\n`."""
    records = {}
    while body:
        length = int(body[: body.index(b" ")])
        if not 4 < length <= len(body):
            raise ValueError("an extended header has a wrong length")
        key, _, value = body[body.index(b" ") + 1 : length - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        body = body[length:]
    return records


class _Counted:
    """A stream that knows its position, and gives exactly what is asked for, nothing at its end, or EOFError.

    `damage`: the stream's own exception for bytes that it cannot read.
    """

    def __init__(self, stream: Any, damage: type[Exception] = ValueError) -> None:
        self._stream, self._damage = stream, damage
        self.position = 0

    def read(self, count: int) -> bytes:
        parts = []
        try:
            while count and (part := self._stream.read(count)):
                parts.append(part)
                count -= len(part)
                self.position += len(part)
        except self._damage as error:
            raise ValueError(str(error)) from error
        if count and parts:
            raise EOFError("it ends in the middle")
        return b"".join(parts)

    def skip(self, end: int) -> None:
        while self.position < end:
            if not self.read(min(CHUNK, end - self.position)):
                raise EOFError("it ends in the middle")


class _Part(io.RawIOBase):
    """The bytes of one member."""

    def __init__(self, stream: _Counted, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, count: int = -1) -> bytes:
        data = self._stream.read(min(count, self._left) if count >= 0 else self._left)
        self._left -= len(data)
        return data


def _zip(file: IO[bytes]) -> Iterator[_Member]:
    if _directory_size(file) > _DIRECTORY:
        raise _Refused(f"its directory is larger than {_DIRECTORY >> 20} MiB")
    with zipfile.ZipFile(file) as archive:
        end = -1
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.header_offset < end:
                raise _Refused(f"{info.filename!r} lies inside another member")
            end = info.header_offset + info.compress_size
            if "\0" in info.orig_filename:
                raise _Refused(f"{info.orig_filename!r} has a NUL in its name")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _Refused(f"{info.filename!r} is packed by method {info.compress_type}")
            if info.flag_bits & 1:
                raise _Refused(f"{info.filename!r} is encrypted")
            if info.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                raise _Refused(f"{info.filename!r} is a link, a device or no regular file")
            yield _Member(
                info.filename.removeprefix("./"),
                info.file_size,
                lambda info=info: archive.open(info),  # type: ignore[misc]
            )


def _directory_size(file: IO[bytes]) -> int:
    """What the end of a zip says of its central directory: it is in memory before anything else can be asked."""
    size = os.fstat(file.fileno()).st_size
    tail = os.pread(file.fileno(), 1 << 17, max(0, size - (1 << 17)))
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise zipfile.BadZipFile("it has no directory")
    (directory,) = struct.unpack_from("<I", tail, at + 12)
    large = tail.rfind(b"PK\6\6", 0, at)
    if directory == 0xFFFFFFFF and large >= 0:
        (directory,) = struct.unpack_from("<Q", tail, large + 40)
    return int(directory)
