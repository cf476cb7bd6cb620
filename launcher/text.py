"""How figures are written for people."""

from __future__ import annotations

import time


def size(count: float) -> str:
    """Bytes as people read them: `512 B`, `1.4 MiB`, `13.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as people read them: `0.35 s`, `12 s`, `4 min 10 s`, `3 h 20 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ago(then: float, now: float | None = None) -> str:
    """A Unix time relative to now: `just now`, `5 minutes ago`, `3 days ago`."""
    elapsed = (time.time() if now is None else now) - then
    if elapsed < 10:
        return "just now"
    for unit, length, limit in (("second", 1, 60), ("minute", 60, 3600), ("hour", 3600, 86400), ("day", 86400, None)):
        if limit is None or elapsed < limit:
            count = int(elapsed // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    raise AssertionError


def printable(text: str) -> str:
    """Text for a terminal: control characters and undecodable bytes escaped, so that a name cannot write on it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
