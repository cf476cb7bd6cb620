"""Which files belong together: a file's path says which checkpoint it is a part of, whatever is in it.

Every folder directly in a watched folder is one checkpoint (rule 1 of the output directory), with two refinements. A folder
that is named like a checkpoint (`checkpoint-500`, `global_step10`, `epoch=3-step=8`, `best`) below one that is not is a
checkpoint of its own, so that accelerate's `checkpoints/checkpoint_0`, a trial's `run-x/checkpoint-5` and a Trainer's own
`exp1/` beside its `exp1/checkpoint-500/` are told apart. Below a folder named like a checkpoint everything is a part of it:
DeepSpeed's `checkpoint-5/global_step5`, Orbax's `100/default`, FSDP's `checkpoint-5/optimizer_0`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from launcher.checkpoint import formats
from launcher.outputs.capture import Identity, identity_of
from launcher.outputs.filesystem import SPOOL

ROOT = "."
_NAMED = re.compile(
    r"(?:.*[-_.])?(?:checkpoint|ckpt|chkpt|global_step|step|iter|iteration|epoch)s?[-_=]?\d+(?:[-_.=].*)?"
    r"|best|last|latest|(?:best|last|latest|final)[-_](?:model|checkpoint|ckpt)|checkpoint[-_](?:best|last|latest|final)",
    re.IGNORECASE,
)


_TEXT = (".json", ".jsonl", ".txt", ".log", ".csv", ".md", ".yaml", ".yml", ".py", ".html", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Seen:
    """What a look at a folder saw, in a few bytes however many files it has: two that are equal saw the same files."""

    count: int = 0
    digest: int = 0
    newest: int = 0
    """The latest mtime, in nanoseconds."""

    def plus(self, path: str, identity: Identity) -> Seen:
        return Seen(self.count + 1, self.digest ^ hash((path, identity)), max(self.newest, identity[1]))


@dataclass
class Candidate:
    """A folder that may become a checkpoint, or (`path` ROOT) the files directly in a watched folder."""

    root: str
    """The watched folder."""
    path: str
    """Relative to it."""
    changed: float
    """Monotonic time of the last sign of a writer."""
    seen: Seen = Seen()
    """Its files at the last look."""
    captured: dict[str, Identity] | None = None
    """Its files at the last capture."""
    flats: dict[str, Identity] = field(default_factory=dict)
    """ROOT: the flat files that were captured, each as a checkpoint of its own."""
    lost: bool = False
    """The last capture turned out to be no checkpoint: capture again, whatever is the same."""
    dirty: bool = False
    """Something happened since the last look."""
    patient: bool = False
    """Some of its files were written again and some were not: it needs a longer quiet."""
    leaving: bool = False
    """A file of it was deleted: rotation is removing it."""
    missed: bool = False
    """It was gone again before it could be watched."""
    promising: bool = False
    """It held tensors or a library's last file at some moment: its loss must be reported."""
    rewritten: bool = False
    """It was written again after it had been captured."""

    @property
    def folder(self) -> str:
        return self.root if self.path == ROOT else os.path.join(self.root, self.path)


def of_file(path: str) -> str | None:
    """The candidate that a file belongs to, by its path below the watched folder. None: a temporary folder's, or ours."""
    *folders, _ = path.split("/")
    if not folders:
        return ROOT
    if folders[0] == SPOOL:
        return None
    for depth, name in enumerate(folders, start=1):
        if formats.is_temporary(name):
            return None
        if is_named(folders, depth):
            return "/".join(folders[:depth])
    return folders[0]


def is_named(folders: list[str], depth: int) -> bool:
    """Whether the folder at this depth (from 1) is named like a checkpoint. A bare number (Orbax) counts at depth 1 and 2:
    further down it is a layer or an array's chunk."""
    name = folders[depth - 1]
    return _NAMED.fullmatch(name) is not None or (depth <= 2 and name.isascii() and name.isdigit())


def walk(
    root: str, path: str = "", *, unreadable: Callable[[str, OSError], None] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Every file, link and special file below a folder of a watched folder, by its path below the latter.

    Links are not followed. What vanishes meanwhile is left out. `unreadable` is told of folders that cannot be read; without
    it, OSError is raised.
    """
    pending = [path]
    while pending:
        parent = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(root, parent)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if unreadable is None:
                raise
            unreadable(parent, error)
            continue
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            try:
                if not entry.is_dir(follow_symlinks=False):
                    yield name, entry.stat(follow_symlinks=False)
                elif name != SPOOL:
                    pending.append(name)
            except FileNotFoundError:
                continue


def files(candidate: Candidate) -> dict[str, Identity]:
    """The candidate's regular files and their identities, by path below its folder. Raises OSError."""
    return dict(sorted(_regular(candidate)))


def glance(candidate: Candidate) -> Seen:
    """What is there now, without keeping it. Raises OSError."""
    seen = Seen()
    for path, identity in _regular(candidate):
        seen = seen.plus(path, identity)
    return seen


def may_hold_tensors(paths: Iterable[str]) -> bool:
    """False where every file is surely something else by its suffix: nothing has to be opened then."""
    return not all(path.endswith(_TEXT) for path in paths)


def _regular(candidate: Candidate) -> Iterator[tuple[str, Identity]]:
    if candidate.path == ROOT:
        for entry in os.scandir(candidate.root):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield entry.name, identity_of(status)
        return
    cut = len(candidate.path) + 1
    for path, status in walk(candidate.root, candidate.path):
        if stat.S_ISREG(status.st_mode) and of_file(path) == candidate.path:
            yield path[cut:], identity_of(status)
