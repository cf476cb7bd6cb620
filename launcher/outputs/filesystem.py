"""What a file system can do for a capture, asked of the file system itself and not of its name.

Reflink (FICLONE: XFS, Btrfs, bcachefs …) gives a copy that shares blocks until one side is written. A hard link shares the
inode: safe from deletion, not from a writer who rewrites in place. Where neither works (FAT, most FUSE and object-store
mounts, other file systems than the spool's), descriptors are held.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.reflink import make_reflink

Rung = Literal["reflink", "link", "held"]
RUNGS: tuple[Rung, ...] = ("reflink", "link", "held")
SPOOL = ".launcher"
"""A folder of this name in a watched folder is ours: captures lie there where the spool is on another file system."""
_NETWORK = {
    0x6969: "NFS", 0x0BD00BD0: "Lustre", 0x65735546: "FUSE", 0x01021997: "9p", 0xFF534D42: "CIFS", 0xFE534D42: "SMB",
    0x517B: "SMB", 0x00C36400: "CephFS", 0x47504653: "GPFS", 0x19830326: "BeeGFS", 0x5346414F: "AFS", 0x7461636F: "OCFS2",
    0x01161970: "GFS2", 0x786F4256: "vboxsf",
}  # fmt: skip
"""Magic numbers of statfs(2), of linux/magic.h and the file systems' own sources: others may write there unseen by us."""


@dataclass(frozen=True)
class Place:
    """How a watched folder's checkpoints are captured, and in which folder of its own file system they then lie."""

    rung: Rung
    folder: Path


def network(path: str) -> str | None:
    """The name of the network file system that a folder lies on, or None: inotify sees only this machine's writers."""
    buffer = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        return None
    return _NETWORK.get(ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF)


def probe(root: str, spool: Path, rungs: Sequence[Rung] = RUNGS) -> Place:
    """The first rung that works between a watched folder and the spool, or a folder of ours inside the former.

    Tries it with a file of its own in `root`, which is gone when this returns; so call it before the job writes.
    """
    inside = Path(root, SPOOL)
    for rung in rungs:
        for folder in (spool, inside):
            if rung != "held" and _works(rung, root, folder):
                return Place(rung, folder)
    return Place("held", spool)


def _works(rung: Rung, root: str, folder: Path) -> bool:
    made, there = Path(root, f".launcher-{os.getpid()}"), folder / f".launcher-{os.getpid()}"
    own = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made.write_bytes(b"probe")
        if rung == "link":
            os.link(made, there)
        else:
            with open(made, "rb") as source, open(there, "xb") as target:
                make_reflink(source.fileno(), target.fileno())
        return True
    except OSError:
        return False
    finally:
        for path in (made, there):
            with contextlib.suppress(OSError):
                path.unlink()
        if own:
            with contextlib.suppress(OSError):
                folder.rmdir()
