"""Secrets in what a job prints: found in a stream of bytes as it passes, and shown as `[secret NAME]`.

A secret is also known in the forms that programs print it in: escaped (JSON, Python's repr, a shell's trace), URL-encoded, and in
base64, whatever stands before it there. Standard library only until there is something to mask.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

SHORTEST = 8
"""Bytes. What is shorter is found in too much that is none, and so is not masked."""
NOT_MASKED = "a job's output is not masked of it"
_LONG = 16 << 10
"""Bytes. What is longer is looked for as it is only: twelve forms of a megabyte would take seconds to prepare."""
PATIENCE = 0.1
"""Seconds that what may be the beginning of a secret is held back without more output."""
_BLOCK = 1 << 20


def forms(value: bytes) -> set[bytes]:
    """The ways to print a secret of at least `SHORTEST` bytes."""
    import base64
    import json
    import urllib.parse

    found = {value}
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode()
        escaped = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
        found |= {each.encode() for each in escaped | {text.replace("'", "'\\''")}}
    for quoted in (urllib.parse.quote(value, ""), urllib.parse.quote(value), urllib.parse.quote_plus(value)):
        found |= {quoted.encode(), re.sub("%..", lambda code: code[0].lower(), quoted).encode()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        found.add(encode(value))
        for before in range(3):  # Of the first and the last digit, only those that are all of the secret's bits.
            found.add(encode(bytes(before) + value)[-(-before * 8 // 6) : (before + len(value)) * 8 // 6])
    return found


class Parts(NamedTuple):
    """What must not be shown of one secret; bytes that are no UTF-8 as surrogates."""

    whole: list[str]
    """All of it, and the secret values of a credential file: in every form."""
    lines: list[str]
    """Those of what has several: as they are, since they are printed one by one, but not encoded so."""


class Mask:
    """The secrets of one job. Finds them by one pass of ahocorasick_rs, leftmost first and the longest there."""

    def __init__(self, secrets: Mapping[str, Parts]) -> None:
        """`secrets`: by the name that is shown. What is too short of them is passed over."""
        from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

        shown: dict[bytes, bytes] = {}
        for name, parts in sorted(secrets.items()):
            whole, lines = ({each.encode("utf-8", "surrogateescape") for each in part} for part in parts)
            every = whole | lines
            every |= {form for each in whole if SHORTEST <= len(each) <= _LONG for form in forms(each)}
            shown |= dict.fromkeys(
                {each for each in every if len(each) >= SHORTEST} - shown.keys(), f"[secret {name}]".encode()
            )
        self.shown = list(shown.values())
        small = sum(map(len, shown)) <= 4 * _LONG
        # Its own choice for few needles, however long, takes a KiB of memory for each of their bytes.
        how = None if small else Implementation.ContiguousNFA
        self.find = BytesAhoCorasick(list(shown), MatchKind.LeftmostLongest, how).find_matches_as_indexes
        self._longest = max(map(len, shown), default=0)
        self._headed: dict[bytes, list[bytes]] = {}
        for each in shown:
            self._headed.setdefault(each[:SHORTEST], []).append(each)
        self._heads = list(self._headed)
        pieces = (each[at : at + SHORTEST] for each in shown for at in range(len(each) - SHORTEST + 1))
        self._pieces = frozenset(pieces) if small else None
        """What a beginning of a secret can end in: nearly no end of any data is there, so that is all there is to look at."""
        self._find_heads = BytesAhoCorasick(self._heads).find_matches_as_indexes
        self._starts = {head[:length] for head in self._heads for length in range(1, SHORTEST)}

    def beginnings(self, data: bytes) -> Iterator[int]:
        """Where the beginning of a secret stands that `data` cuts off, from left to right."""
        if self._pieces is None or data[-SHORTEST:] in self._pieces:
            start = max(0, len(data) - self._longest + 1)
            for head, at, _ in self._find_heads(data[start:], overlapping=True):
                rest = data[start + at :]
                if any(each.startswith(rest) and each != rest for each in self._headed[self._heads[head]]):
                    yield start + at
        for length in range(min(SHORTEST - 1, len(data)), 0, -1):
            if data[-length:] in self._starts:
                yield len(data) - length

    def whole(self, data: bytes) -> bytes:
        """All of `data` masked."""
        stream = Masker(self)
        return stream.feed(data) + stream.flush()

    def scrub(self, path: Path, start: int = 0) -> None:
        """Overwrites the secrets in a regular file by asterisks, from byte `start` on; its length, and so what has been read
        of it, stays. A link, or what is not ours to write, is left as it is."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                stream = Masker(self, overwriting(fd, start))
                while data := os.pread(fd, _BLOCK, start):
                    stream.feed(data)
                    start += len(data)
                stream.flush()
        finally:
            os.close(fd)


class Masker:
    """One stream. What it gives, put together, is what `Mask.whole` gives of the whole, however the stream was cut: a possible
    beginning of a secret at the end is held back until more has come, or `flush` says that none comes."""

    def __init__(self, mask: Mask, found: Callable[[int, int], None] | None = None) -> None:
        """`found` is called with each secret's first byte in the stream and the one behind its last."""
        self._mask, self._found = mask, found
        self._passed = 0
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """What of the stream can be passed on now."""
        data = self.held + data if self.held else data
        return self._take(data, list(self._mask.beginnings(data)))

    def flush(self) -> bytes:
        """What is held back, as nothing comes for now."""
        return self._take(self.held, []) if self.held else b""

    def _take(self, data: bytes, beginnings: list[int]) -> bytes:
        """A secret that ends before one may have begun is one; of two at the same place, the longer may be the other one."""
        pieces, done = [], 0
        for index, start, end in self._mask.find(data):
            if any(done <= each <= start for each in beginnings):
                break
            pieces += [data[done:start], self._mask.shown[index]]
            done = end
            if self._found:
                self._found(self._passed + start, self._passed + end)
        keep = next((each for each in beginnings if each >= done), len(data))
        self.held = data[keep:]
        self._passed += keep
        if not pieces:
            return data[:keep] if self.held else data
        return b"".join([*pieces, data[done:keep]])


def overwriting(fd: int, start: int = 0) -> Callable[[int, int], None]:
    """For a Masker of what a file holds from `start` on: puts asterisks in the place of each secret."""

    def found(first: int, end: int) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(fd, b"*" * (end - first), start + first)

    return found
