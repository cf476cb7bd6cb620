"""The job failed: was it because it wrote into its read-only input?

Some libraries write locks, indexes and caches beside the model. What they print then does not say that there is a remedy. This
is a hint for a person, read from the end of the job's own output.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from launcher.events import Event, event
from launcher.text import printable

_TAIL = 256 << 10
"""Bytes of the output's end that are read."""
_READ_ONLY = re.compile(r"read-?only file ?system|\berrno 30\b|\bos error 30\b|\bEROFS\b", re.I)
_DENIED = re.compile(r"permission denied|\b(errno|os error) 13\b|\bEACCES\b|operation not permitted", re.I)
_PATH = re.compile(r"(?<![\w.-])/[^\s\"'`:;,()\[\]{}<>]+")
_SHOWN = 300


def look(log: Path, start: int, inputs: Collection[str]) -> Event | None:
    """What to tell the person, or None. `start`: where the attempt's output begins in the log; `inputs`: the folders at which
    the job found its inputs.

    A line counts that tells of a file system which is read-only, or of a permission that is missing, and names a path of an
    input; for the former it also counts if it names no path at all.
    """
    for line in reversed(_end(log, start).splitlines()):
        read_only = _READ_ONLY.search(line)
        if not read_only and not _DENIED.search(line):
            continue
        paths = [path for path in _PATH.findall(line) if path.strip("/")]
        if any(f"{path}/".startswith(f"{each}/") for path in paths for each in inputs) or (read_only and not paths):
            text = f"The job tried to write into its input, which is read-only: {printable(line.strip()[:_SHOWN])}\n"
            text += "Give it a view of its own that it may change: --input-writable. What is to be kept belongs in"
            return event(
                "input-refused", f"{text} $FLEXAI_OUTPUT_CHECKPOINT_DIR.", "warning", line=line.strip()[:_SHOWN]
            )
    return None


def _end(log: Path, start: int) -> str:
    try:
        with open(log, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(start, size - _TAIL))
            return file.read(_TAIL).decode("utf-8", "replace")
    except OSError:
        return ""
