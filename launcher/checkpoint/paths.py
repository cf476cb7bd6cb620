"""Paths inside a checkpoint: relative, normalised, and storable everywhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from launcher.errors import UnsafePath

LENGTH = 1024
"""Bytes; S3 allows keys of 1,024 bytes in all, and our prefix takes some of that only there."""


def check(path: str) -> str:
    """The path itself, or UnsafePath with the rule that it breaks."""
    cause = ""
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        length, cause = 0, "it is not valid UTF-8"
    if not path:
        cause = "it is empty"
    elif path.startswith("/") or path[1:2] == ":":
        cause = "it is absolute"
    elif "\\" in path:
        cause = "it contains a backslash"
    elif any(part in ("", ".", "..") for part in path.split("/")):
        cause = "a part is empty, . or .."
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        cause = cause or "it contains a control character"
    elif length > LENGTH:
        cause = f"it has {length} bytes"
    elif any(len(part.encode()) > 255 for part in path.split("/")):
        cause = "a part is longer than 255 bytes"
    if cause:
        raise UnsafePath(path=path, cause=cause)
    return path


def check_all(paths: Iterable[str]) -> None:
    """Every path is safe, none is another's twin by case or normal form, and no file is also a folder."""
    seen: dict[str, str] = {}
    folders: set[str] = set()
    for path in paths:
        check(path)
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            raise UnsafePath(path=path, cause=f"it is the same as {seen[folded]!r} where case does not count")
        seen[folded] = path
        parts = folded.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    for folder in folders & seen.keys():
        raise UnsafePath(path=seen[folder], cause="it is a file and a folder at once")
