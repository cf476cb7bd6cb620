"""Before a job goes on: what lies in its output directory and would mislead it is moved aside, never deleted.

A library that looks for the newest checkpoint by its folder's number takes what a killed writer left half-written, and a job
that is to go on from an older checkpoint would find the newer one. Both go to the job folder's `salvage/attempt-N/`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint import formats
from launcher.checkpoint.judgement import Context, Judgement
from launcher.checkpoint.tree import Folder
from launcher.outputs import candidates
from launcher.outputs.filesystem import SPOOL

_NUMBER = re.compile(r"(?P<stem>.*?)(?P<number>\d+)\D*")


@dataclass(frozen=True)
class Aside:
    """What was moved: from where in the watched folder, to where, and why."""

    path: str
    place: str
    reason: str


def put_aside(
    root: str,
    folder: Path,
    *,
    chosen: str | None,
    since: float,
    world_size: int | None,
    resumable: Callable[[str, Folder], bool | None],
    spared: Collection[str] = (),
    everything: bool = False,
) -> list[Aside]:
    """Moves what would mislead the job out of a watched folder, to `folder`.

    `chosen`: the path in it of what the job goes on from; empty: that is in another folder; None: it begins at its beginning.
    Moved is what is not whole, and of the rest what is newer than `chosen`, or for a beginning what no job can go on from (or
    `everything`). Left is what no file of which was written
    after `since` (Unix seconds: it is not this job's), what no format knows, and what is `spared` (real paths: a capture needs
    it). `resumable` tells of a format and its files whether a job can go on from them. Raises OSError.
    """
    moved = []
    for path in _checkpoints(root):
        place = os.path.join(root, path)
        newest = _newest(place)
        if path == chosen or newest < since or os.path.realpath(place) in spared:
            continue
        reason = _misleading(root, path, place, newest, chosen, world_size, resumable)
        if not reason and everything:
            reason = "the job begins at its beginning"
        if reason:
            moved.append(Aside(path, _move(place, root, path, folder), reason))
    return moved


def clear(root: str, path: str, folder: Path) -> list[Aside]:
    """Moves one path out of the way, if it is there. Raises OSError."""
    place = os.path.join(root, path)
    if not os.path.lexists(place):
        return []
    return [Aside(path, _move(place, root, path, folder), "it is not what was stored")]


def _misleading(
    root: str,
    path: str,
    place: str,
    newest: float,
    chosen: str | None,
    world_size: int | None,
    resumable: Callable[[str, Folder], bool | None],
) -> str:
    """Why a path would mislead a job that goes on from `chosen`, or nothing."""
    tree = Folder.scan(place) if os.path.isdir(place) else Folder.single(place)
    judgement = formats.judge(tree, Context(world_size=world_size, final=True))
    later = bool(chosen) and _later(root, path, newest, chosen or "")
    if judgement.verdict == "unknown":
        if any(formats.holds_tensors(tree, each) for each in tree.files):
            return ""
        folders = path.split("/")
        return "it is not finished" if os.path.isdir(place) and candidates.is_named(folders, len(folders)) else ""
    if not judgement.whole:
        return _because(judgement)
    if chosen is None:
        return "nothing can go on from it" if resumable(judgement.format, tree) is False else ""
    return "it is newer than what the job goes on from" if later else ""


def _because(judgement: Judgement) -> str:
    return judgement.reasons[0] if judgement.reasons else "it is not whole"


def _later(root: str, path: str, newest: float, chosen: str) -> bool:
    """Whether a path is newer than the chosen one: by the number in a name of the same form, else by time."""
    one, other = _NUMBER.fullmatch(path), _NUMBER.fullmatch(chosen)
    if one and other and one["stem"] == other["stem"]:
        return int(one["number"]) > int(other["number"])
    return newest > _newest(os.path.join(root, chosen))


def _checkpoints(root: str) -> list[str]:
    """The paths below a watched folder that are checkpoints of their own: folders, empty ones too, and flat files. A folder that
    holds others (accelerate's `checkpoints`) stays: who moves it takes them along."""
    found = list(_candidates(root))
    return [path for path in found if not any(other.startswith(f"{path}/") for other in found)]


def _candidates(root: str) -> Iterator[str]:
    for parent, folders, files in os.walk(root):
        inside = os.path.relpath(parent, root)
        if inside == ".":
            folders[:] = sorted(each for each in folders if each != SPOOL)
            for name in sorted(files):
                if not formats.is_temporary(name) and os.path.isfile(os.path.join(root, name)):
                    tree = Folder.single(os.path.join(root, name))
                    if formats.holds_tensors(tree, name):
                        yield name
        elif candidates.of_file(f"{inside}/_") == inside:
            yield inside


def _newest(place: str) -> float:
    """When the newest file below (or, where there is none, the folder itself) was written, in Unix seconds."""
    times = [os.lstat(place).st_mtime] if not os.path.isdir(place) else []
    for parent, _, files in os.walk(place):
        times += [os.lstat(os.path.join(parent, name)).st_mtime for name in files]
    return max(times, default=os.lstat(place).st_mtime if os.path.lexists(place) else 0.0)


def _move(place: str, root: str, path: str, folder: Path) -> str:
    """Renames it into `folder`, or where that is on another file system into the watched folder's own hidden one."""
    for parent in (folder, Path(root, SPOOL, folder.parent.name, folder.name)):
        target = parent / path
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while os.path.lexists(target):
            number += 1
            target = parent / f"{path}.{number}"
        try:
            os.rename(place, target)
            return str(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
    raise OSError(errno.EXDEV, "no place on the same file system", place)
