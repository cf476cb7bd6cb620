"""Nothing was collected: did the job save its checkpoints somewhere else?

Looks through the folder where the command ran for what the formats say is whole and the job wrote, within bounds: this is a
hint for a person, not a part of collecting.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator

from launcher.checkpoint import formats
from launcher.checkpoint.tree import Folder
from launcher.events import Event, event
from launcher.text import printable, size

DEPTH = 6
"""Folders below the one that is searched."""
ENTRIES = 50_000
"""Files and folders that are looked at."""
SECONDS = 3.0
_SHOWN = 3
_IGNORED = frozenset({".git", ".venv", "venv", "node_modules", "site-packages", "__pycache__", ".cache", "wandb"})


def look(work_dir: str, job: str, *, since: float, ignore: tuple[str, ...] = ()) -> Event | None:
    """What to tell the person, or None where nothing was found. `since`: Unix time of the job's start; `ignore`: folders that
    are ours. Never raises for what it cannot read."""
    found = list(checkpoints(work_dir, since=since, ignore=ignore))
    if not found:
        return None
    lines = [
        f"Nothing was saved in $FLEXAI_OUTPUT_CHECKPOINT_DIR, but this looks like {_count(len(found))} of the job:"
    ]
    for path, format, total in found[:_SHOWN]:
        lines.append(f"  {printable(path)} ({format}, {size(total)})")
    if len(found) > _SHOWN:
        lines.append(f"  … {len(found) - _SHOWN} more")
    newest = found[0][0]
    lines.append(f"Store it: launcher checkpoint push {shlex.quote(job)} --file {shlex.quote(printable(newest))}")
    lines.append(f"Next time: save there, or run with --watch {shlex.quote(printable(os.path.dirname(newest)))}")
    return event("found-elsewhere", "\n".join(lines), "warning", paths=[printable(path) for path, _, _ in found[:20]])


def checkpoints(root: str, *, since: float, ignore: tuple[str, ...] = ()) -> list[tuple[str, str, int]]:
    """Whole checkpoints below a folder that were written after `since`: (path, format, bytes), the newest first."""
    deadline = time.monotonic() + SECONDS
    skip = {os.path.realpath(each) for each in ignore}
    found: list[tuple[float, str, str, int]] = []
    inside: tuple[str, ...] = ()
    for folder, files in _folders(root, skip, deadline):
        if folder.startswith(inside):
            continue  # Part of a checkpoint that was found.
        newest = max((status.st_mtime for status in files.values()), default=0.0)
        if newest < since:
            continue
        tree = Folder(folder, {name: status.st_size for name, status in sorted(files.items())})
        try:
            format = formats.recognise(tree)
            if format and format.name not in _SINGLE:
                if formats.judge(Folder.scan(folder)).whole:
                    found.append((newest, folder, format.name, sum(tree.files.values())))
                    inside = (*inside, f"{folder}/")
                continue
            for name, status in files.items():
                single = formats.part(tree, [name])
                if status.st_mtime < since or not formats.holds_tensors(single, name):
                    continue
                judgement = formats.judge(single)
                if judgement.whole:
                    found.append((status.st_mtime, f"{folder}/{name}", judgement.format, status.st_size))
        except OSError:
            continue
    return [(path, format, total) for _, path, format, total in sorted(found, reverse=True)]


_SINGLE = frozenset({"safetensors", "torch-save"})
"""Formats of files, and of folders only because such files are in them."""


def _folders(root: str, skip: set[str], deadline: float) -> Iterator[tuple[str, dict[str, os.stat_result]]]:
    """Every folder with its regular files, parents first, on one file system, within the bounds."""
    left = ENTRIES
    pending = [(os.path.realpath(root), 0)]
    try:
        device = os.stat(pending[0][0]).st_dev
    except OSError:
        return
    while pending and left > 0 and time.monotonic() < deadline:
        folder, depth = pending.pop()
        if folder in skip:
            continue
        files: dict[str, os.stat_result] = {}
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError:
            continue
        for entry in entries[:left]:
            left -= 1
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                files[entry.name] = status
            elif stat.S_ISDIR(status.st_mode) and depth < DEPTH and status.st_dev == device:
                if entry.name not in _IGNORED:
                    pending.append((entry.path, depth + 1))
        yield folder, files


def _count(number: int) -> str:
    return "a checkpoint" if number == 1 else f"{number} checkpoints"
