"""What this node knows of a local store's files: with this inode, size and these times, a file has the content of its manifest.

A change time (ctime) moves with every write, and no call sets it back (see docs/design.md). So a file that still has the stamp
that it had when its bytes were written here, or read and compared here, was not written to since; reading it again would prove
nothing more about writers. It would about a disk that decays by itself: that is for `checkpoint verify` and `cache verify`.

    <cache>/manifests/<id>.stamps       path to stamp, as JSON; a cache: without it files are read
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import msgspec

from launcher.decoding import decode
from launcher.transfer.local import Stamp


def remember(index: str | None, checkpoint: str, stamps: Mapping[str, Stamp]) -> None:
    """Notes the stamps of a checkpoint's files, by path. Where it cannot, they are read another time."""
    if index and stamps:
        from launcher.job.record import write_atomically  # It brings all of what a job is.

        with contextlib.suppress(OSError):
            os.makedirs(index, exist_ok=True)
            write_atomically(_path(index, checkpoint), msgspec.json.encode(dict(stamps)), durable=False)


def known(index: str | None, checkpoint: str) -> dict[str, Stamp]:
    """The stamps of a checkpoint's files that this node knows, by path."""
    if index:
        with contextlib.suppress(OSError, ValueError), open(_path(index, checkpoint), "rb") as file:
            return decode(file.read(), dict[str, Stamp])
    return {}


def _path(index: str, checkpoint: str) -> str:
    return os.path.join(index, f"{checkpoint}.stamps")
