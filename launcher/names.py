"""The names that people give to checkpoints, jobs and datasets."""

from __future__ import annotations

import re
import unicodedata

from launcher.errors import UsageError

LENGTH = 200
_VERSION = re.compile(r"@v[0-9]+$")
_PUNCTUATION = frozenset(" ._-+=@/")


def check(name: str, what: str = "name") -> str:
    """The name in Unicode NFC, or a UsageError that says which rule it breaks.

    A name is 1 to 200 of letters and digits (any script), spaces and `. _ - + = @ /`, without a trailing `@vN`; no part
    between slashes is empty, `.` or `..`, nor begins or ends with a space.
    """
    name = unicodedata.normalize("NFC", name)
    cause = _mistake(name)
    if cause:
        raise UsageError(
            what=f"{name!r} is no {what}: {cause}.",
            hint="Names have letters, digits, spaces and . _ - + = @ / and at most 200 characters.",
        )
    return name


def clean(text: str) -> str:
    """The valid name nearest to `text` (a folder's name, say): other characters become `_`, and a digest of the
    original is appended so that two different texts stay different. A valid name is returned as it is."""
    name = unicodedata.normalize("NFC", text)
    if not _mistake(name):
        return name
    digest = _digest(text)[:8]
    name = "".join(c if c.isalnum() or c in _PUNCTUATION else "_" for c in name)
    parts = [part.strip(" ") for part in name.split("/")]
    name = "/".join("_" if part in ("", ".", "..") else part for part in parts)[: LENGTH - 9]
    return f"{name.rstrip(' /')}-{digest}"


def key(name: str) -> str:
    """The name as one path component of at most 200 bytes, different for different names, readable by people."""
    component = name.replace("/", "!")
    if len(component.encode()) <= LENGTH and not component.startswith("."):
        return component
    head = component.encode()[:150].decode("utf-8", "ignore").lstrip(".")
    return f"{head}~{_digest(name)[:32]}"


def _mistake(name: str) -> str:
    if not name:
        return "it is empty"
    if len(name) > LENGTH:
        return f"it has {len(name)} characters"
    for character in name:
        if not (character.isalnum() or character in _PUNCTUATION or unicodedata.category(character) in ("Mn", "Mc")):
            return f"it contains {character!r}"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"the part {part!r} between slashes is not allowed"
        if part != part.strip(" "):
            return "a part begins or ends with a space"
    if _VERSION.search(name):
        return "it ends like a version (@vN)"
    return ""


def _digest(text: str) -> str:
    import hashlib  # 20 ms, and only unusual names need it

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
