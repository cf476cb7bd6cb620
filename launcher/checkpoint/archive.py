"""The directory of a zip archive (torch.save, numpy.savez), read strictly and with bounds.

The standard library's `zipfile` accepts archives with a prefix, a comment or a directory anywhere near the end, and refuses
some that torch's own reader loads (wrong checksums, odd flags). What a writer left must be exactly: entries from the first
byte on, then the directory, then the end record as the file's last bytes (APPNOTE.TXT 4.3; zip64 from 4 GiB on).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from launcher.checkpoint.tree import Tree

ENTRY = b"PK\x03\x04"
DIRECTORY_LIMIT = 64 << 20
"""Bytes of a directory that are read: some 800,000 tensors."""
STORED, DEFLATED = 0, 8
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
LOCAL_HEADER = 30


@dataclass(frozen=True)
class Entry:
    """One entry: `offset` of its local header, `size` in the file, `length` when unpacked, all in bytes."""

    name: str
    offset: int
    size: int
    length: int
    method: int
    flags: int


def directory(tree: Tree, path: str) -> list[Entry]:
    """The entries of a whole archive. Raises ValueError with the reason why it is not whole, or OSError."""
    size = tree.files[path]
    if size == 0:
        raise ValueError(f"{path} is empty")
    if tree.read(path, 0, 4) != ENTRY:
        raise ValueError(f"{path} does not begin like a zip archive")
    count, length, offset, position = _end(tree, path, size)
    if offset + length != position:
        raise ValueError(
            f"{path} holds {abs(position - offset - length)} bytes that its zip directory does not explain"
        )
    if length > DIRECTORY_LIMIT:
        raise ValueError(f"{path} claims a zip directory of {length} bytes")
    entries = _entries(path, tree.read(path, offset, length))
    if len(entries) != count or not entries:
        raise ValueError(f"{path} has {len(entries)} of {count} zip entries")
    for entry in entries:
        if entry.offset + LOCAL_HEADER + entry.size > offset:
            raise ValueError(f"{path} lacks bytes of its entry {entry.name[:80]!r}")
    return entries


def place(tree: Tree, path: str, entry: Entry) -> int:
    """Where an entry's bytes begin. Raises ValueError where its own header is not what the directory says."""
    head = tree.read(path, entry.offset, LOCAL_HEADER)
    if len(head) < LOCAL_HEADER or head[:4] != ENTRY:
        raise ValueError(f"{path} has no entry where its directory says ({entry.name[:80]!r})")
    name_length, extra_length = struct.unpack_from("<2H", head, 26)
    start = entry.offset + LOCAL_HEADER
    if tree.read(path, start, name_length) != entry.name.encode("utf-8", "surrogateescape"):
        raise ValueError(f"{path} names its entry {entry.name[:80]!r} in two ways")
    if entry.flags & 1:
        raise ValueError(f"{path} has an encrypted entry {entry.name[:80]!r}")
    return start + int(name_length) + int(extra_length)


def content(tree: Tree, path: str, entry: Entry, limit: int) -> bytes:
    """An entry's bytes, at most `limit` of them. Raises ValueError where it cannot be had."""
    data = tree.read(path, place(tree, path, entry), min(entry.size, limit))
    if entry.method == STORED:
        return data
    if entry.method != DEFLATED:
        raise ValueError(f"{path} packs {entry.name[:80]!r} in an unknown way ({entry.method})")
    try:
        return zlib.decompressobj(-15).decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"{path} cannot be unpacked at {entry.name[:80]!r} ({error})") from None


def _end(tree: Tree, path: str, size: int) -> tuple[int, int, int, int]:
    """(entries, directory's length, its offset, position of the end record)."""
    position = size - _END.size
    tail = tree.read(path, max(position, 0), _END.size)
    if position < 0 or len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        raise ValueError(f"{path} has no zip directory at its end")
    _, _, _, _, count, length, offset, comment = _END.unpack(tail)
    if comment:
        raise ValueError(f"{path} has no zip directory at its end")
    locator = tree.read(path, position - _LOCATOR.size, _LOCATOR.size) if position >= _LOCATOR.size else b""
    if locator[:4] == b"PK\x06\x07":
        _, _, at, _ = _LOCATOR.unpack(locator)
        record = tree.read(path, at, _END64.size) if at < size else b""
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06":
            raise ValueError(f"{path} has no zip directory at its end")
        _, own, *_, count, length, offset = _END64.unpack(record)
        if at + 12 + own != position - _LOCATOR.size:
            raise ValueError(f"{path} holds bytes that its zip directory does not explain")
        return count, length, offset, at
    return count, length, offset, position


def _entries(path: str, data: bytes) -> list[Entry]:
    entries, position = [], 0
    while position + _CENTRAL.size <= len(data):
        (magic, _, _, flags, method, _, _, _, packed, length, names, extras, comments, _, _, _, offset) = (
            _CENTRAL.unpack_from(data, position)
        )
        if magic != b"PK\x01\x02":
            raise ValueError(f"{path} has an unreadable zip directory")
        position += _CENTRAL.size
        name = data[position : position + names].decode("utf-8", "surrogateescape")
        extra = data[position + names : position + names + extras]
        if 0xFFFFFFFF in (packed, length, offset):
            packed, length, offset = _wide(path, extra, packed, length, offset)
        entries.append(Entry(name, offset, packed, length, method, flags))
        position += names + extras + comments
    if position != len(data):
        raise ValueError(f"{path} has an unreadable zip directory")
    return entries


def _wide(path: str, extra: bytes, packed: int, length: int, offset: int) -> tuple[int, int, int]:
    """Sizes beyond 4 GiB stand in the extra field 1, only those that do not fit, in this order."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            try:
                values = list(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
                length = values.pop(0) if length == 0xFFFFFFFF else length
                packed = values.pop(0) if packed == 0xFFFFFFFF else packed
                offset = values.pop(0) if offset == 0xFFFFFFFF else offset
            except (IndexError, struct.error):
                break
            return packed, length, offset
        position += 4 + size
    raise ValueError(f"{path} has an unreadable zip directory")
