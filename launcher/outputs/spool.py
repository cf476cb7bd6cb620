"""How much of this machine's disk captures may hold until they are stored, and what gives way beyond it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from launcher.outputs.capture import Capture
from launcher.settings import parse_share

_ROOT = "."


class Spool:
    """A job's spool and its limit. A capture counts with its size: hard links cost nothing at first, and everything once the
    job rotates the originals away."""

    def __init__(self, path: Path, limit: str = "100%", when_full: Literal["keep-all", "newest"] = "keep-all") -> None:
        """`limit`: a size, or a share of what is free in the file system with what the captures hold."""
        self.path = path
        self.when_full = when_full
        self._limit = parse_share(limit)
        self._level = 1

    def limit(self, held: int) -> int:
        """Bytes that captures may hold, where they hold `held` now."""
        if isinstance(self._limit, int):
            return self._limit
        status = os.statvfs(self.path)
        return int(self._limit * (status.f_bavail * status.f_frsize + held))

    def excess(self, waiting: Sequence[Capture], held: int) -> list[Capture]:
        """Those of `waiting` (oldest first) that give way for the others, where all together hold `held` bytes.

        None with keep-all; else the oldest, but never the newest and never the root's own, which is the job's result.
        """
        result: list[Capture] = []
        if self.when_full == "newest":
            limit = self.limit(held)
            for capture in waiting[:-1]:
                if held <= limit:
                    break
                if capture.path != _ROOT:
                    result.append(capture)
                    held -= capture.size
        return result

    def rises(self, held: int) -> bool:
        """Whether `held` is above the limit and that has not been said yet: once, and again each time it has doubled."""
        if held <= self._level * self.limit(held):
            return False
        while held > self._level * self.limit(held):
            self._level *= 2
        return True
