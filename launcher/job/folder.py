"""The job folder: where a job's record, events, logs, outputs and captures lie on this machine.

<data>/jobs/<name>/<id>/
  lock            held (flock) by the launcher that runs it and its uploader; the kernel frees it however they end
  record.json     JobRecord
  events.jsonl    every event, appended
  result.json     Outcome of the last attempt
  logs/           job.log (all output as it came), job.times (when it was how long); what torchrun keeps of each rank
  input-checkpoint/  output-checkpoint/  output/
  spool/          captures that are not stored yet
  unstored        there from before the job starts until everything whole that it wrote is in the store
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from launcher import names
from launcher.errors import AccessDenied, JobNotFound, LocalResourceError, NoSpace, UsageError
from launcher.ids import is_id, new_id
from launcher.job.record import JobRecord, write_atomically
from launcher.job.spec import JobSpec


class JobFolder:
    """One job's folder. `create` and `take` hold its lock until `close`; `find` only reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._lock: int | None = None

    @classmethod
    def create(cls, data_dir: str, spec: JobSpec, redacted: JobSpec) -> tuple[JobFolder, JobRecord]:
        """A new job of this name. UsageError when a job of this name is running here now."""
        parent = Path(data_dir, "jobs", names.key(spec.name))
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(parent, error) from error
        with _held(parent.parent / ".lock"):
            for other in _ids(parent):
                if cls(parent / other).running():
                    raise UsageError(
                        what=f"A job named {spec.name!r} is running already.",
                        hint=f"Choose another name, or stop it: launcher training stop {spec.name}",
                    )
            folder = cls(parent / new_id())
            try:
                folder.path.mkdir()
                folder._acquire()
                for part in ("logs", "spool"):
                    (folder.path / part).mkdir()
                record = JobRecord(id=folder.id, name=spec.name, created=time.time(), spec=redacted)
                folder.write(record)
            except OSError as error:
                raise _unusable(folder.path, error) from error
        return folder, record

    @classmethod
    def find(cls, data_dir: str, name: str) -> JobFolder:
        """The newest job of this name (or the job with this id). Raises JobNotFound."""
        parent = Path(data_dir, "jobs", names.key(name))
        ids = _ids(parent)
        if ids:
            return cls(parent / ids[-1])
        if is_id(name):
            for folder in every(data_dir):
                if folder.id == name:
                    return folder
        known = {folder.path.parent.name.replace("!", "/") for folder in every(data_dir)}
        from launcher.settings import nearest

        near = nearest(name, known)
        raise JobNotFound(name=name, hint=f"Nearest names: {', '.join(near)}" if near else None)

    def take(self, wait: float = 0.0) -> bool:
        """Tries to become the one process that works on this job. `wait`: seconds that the uploader of a launcher which is
        gone gets to end too."""
        deadline = time.monotonic() + wait
        while True:
            try:
                self._acquire()
            except BlockingIOError:
                if time.monotonic() > deadline or _lives(self.owner()):
                    return False
                time.sleep(0.02)
            else:
                return True

    def _acquire(self) -> None:
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._lock = fd

    @property
    def lock(self) -> int:
        """The descriptor that holds the lock, for a child that works on this job too."""
        assert self._lock is not None
        return self._lock

    @property
    def owes(self) -> bool:
        """Whether something whole may not be in the store yet."""
        return os.path.exists(self.path / "unstored")

    def owe(self) -> None:
        """The job begins to write: from now on, whoever finds this folder without a launcher has something to store."""
        (self.path / "unstored").touch()

    def settle(self) -> None:
        """Everything whole is in the store."""
        (self.path / "unstored").unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def running(self) -> bool:
        """Whether a live launcher holds this job."""
        try:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def owner(self) -> int | None:
        """The process id of the launcher that holds this job."""
        if not self.running():
            return None
        try:
            return int((self.path / "lock").read_text())
        except ValueError:
            return None

    def read(self) -> JobRecord:
        """The record as last written."""
        return msgspec.json.decode((self.path / "record.json").read_bytes(), type=JobRecord)

    def write(self, record: JobRecord, *, durable: bool = True) -> None:
        """Replaces the record. Not `durable`: it survives a crash of ours, not of the machine."""
        body = msgspec.json.format(msgspec.json.encode(record), indent=1)
        write_atomically(str(self.path / "record.json"), body, durable=durable)

    def delete(self) -> None:
        """Removes everything of this job from this machine (not from the store)."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def of_name(data_dir: str, name: str) -> Iterator[JobFolder]:
    """The folders of the jobs of this name, oldest first."""
    parent = Path(data_dir, "jobs", names.key(name))
    for identifier in _ids(parent):
        yield JobFolder(parent / identifier)


def every(data_dir: str) -> Iterator[JobFolder]:
    """Every job folder of this machine, by name, oldest first within a name."""
    root = Path(data_dir, "jobs")
    with contextlib.suppress(FileNotFoundError):
        for parent in sorted(root.iterdir()):
            for identifier in _ids(parent):
                yield JobFolder(parent / identifier)


def _lives(pid: int | None) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _ids(parent: Path) -> list[str]:
    try:
        found = os.listdir(parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in found if is_id(name) and os.path.exists(parent / name / "record.json"))


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # Held for milliseconds by whoever has it, and freed by the kernel.
        yield
    finally:
        os.close(fd)


def _unusable(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(what="the job folder", path=path, need="some", free="0 B", setting="LAUNCHER_DATA_DIR")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AccessDenied(
            what=str(path), cause=error.strerror, hint="Choose a folder that you may write with LAUNCHER_DATA_DIR."
        )
    return LocalResourceError(what=f"The job folder {path} cannot be used: {error.strerror}.")
