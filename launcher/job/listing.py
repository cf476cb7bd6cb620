"""Every job of this machine in one line each, quick with ten thousand of them.

<data>/jobs/.list holds what was read from the records of jobs that have ended, with the times and sizes by which it is known to
be true still: two stat(2) a job instead of a directory, a file and a parse. It is made by whoever lists, and can be deleted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from launcher.decoding import decode
from launcher.job.record import JobRecord, state, write_atomically
from launcher.job.states import ENDED, State

_SETTLED = 2 * 10**9
"""Nanoseconds: what changed so shortly before it was read may change once more at the same time by the file system's clock."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows of a job: times in Unix seconds."""

    name: str
    id: str
    kind: str
    state: State
    exit_code: int | None
    """None: it has not ended."""
    attempts: int
    checkpoints: int
    """How many it committed."""
    created: float
    changed: float
    """When it came into its state."""
    runner: str


class _Job(msgspec.Struct, frozen=True, array_like=True):
    stamp: tuple[int, int, int]
    """Change time (ns), inode and size of its record."""
    row: Row


class _Name(msgspec.Struct, frozen=True, array_like=True):
    changed: int
    """Of the folder of all jobs of this name: modification time, ns."""
    jobs: dict[str, _Job | None]
    """By id; None where its record has to be read."""


class _Known(msgspec.Struct, frozen=True, array_like=True):
    release: str
    names: dict[str, _Name]


_FORM = "1"


def every(data_dir: str, alive: Callable[[Path, JobRecord], bool] | None = None) -> list[Row]:
    """The jobs of this machine, oldest first. `alive`: whether the launcher of a job that has not ended lives, by its folder and
    record; without it, none is taken to live."""
    root = Path(data_dir, "jobs")
    known = _read(root)
    names: dict[str, _Name] = {}
    rows: list[Row] = []
    now = time.time_ns()
    prefix = f"{root}{os.sep}"
    try:
        found = os.listdir(root)
    except FileNotFoundError:
        return []
    for key in found:
        if key.startswith("."):
            continue
        parent = prefix + key
        try:
            modified = os.stat(parent).st_mtime_ns
            before = known.get(key)
            ids = before.jobs if before and before.changed == modified else dict.fromkeys(os.listdir(parent))
        except (FileNotFoundError, NotADirectoryError):
            continue
        jobs: dict[str, _Job | None] = {}
        for identifier in ids:
            job = before.jobs.get(identifier) if before else None
            path = f"{parent}{os.sep}{identifier}{os.sep}record.json"
            jobs[identifier] = None
            try:
                status = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            stamp = (status.st_ctime_ns, status.st_ino, status.st_size)
            if job and job.stamp == stamp:
                rows.append(job.row)
                jobs[identifier] = job
                continue
            with contextlib.suppress(OSError, ValueError):
                record = decode(Path(path).read_bytes(), JobRecord)
                row = _row(record, alive is not None and alive(Path(parent, identifier), record))
                rows.append(row)
                if row.state in ENDED and now - status.st_ctime_ns > _SETTLED:
                    jobs[identifier] = _Job(stamp, row)
        if now - modified > _SETTLED:
            names[key] = (
                before if before and before.jobs == jobs and before.changed == modified else _Name(modified, jobs)
            )
    if names != known:
        _write(root, names)
    return sorted(rows, key=lambda each: (each.created, each.id))


def _row(record: JobRecord, alive: bool) -> Row:
    outcome = record.outcome
    now = state(record, alive)
    return Row(
        name=record.name,
        id=record.id,
        kind=record.spec.kind,
        state=now,
        exit_code=outcome.code if outcome and now in ENDED else None,
        attempts=len(record.attempts),
        checkpoints=len(record.checkpoints),
        created=record.created,
        changed=record.states[-1].time if record.states else record.created,
        runner=record.spec.runner,
    )


def _read(root: Path) -> dict[str, _Name]:
    try:
        found = msgspec.msgpack.decode((root / ".list").read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return found.names if found.release == _FORM else {}


def _write(root: Path, names: dict[str, _Name]) -> None:
    with contextlib.suppress(
        OSError
    ):  # A folder of somebody else's, a full disk: then the next list is as slow as this one.
        write_atomically(str(root / ".list"), msgspec.msgpack.encode(_Known(_FORM, names)), durable=False)
