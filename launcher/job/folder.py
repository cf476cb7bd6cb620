"""The job folder: where a job's record, events, logs, outputs and captures lie on this machine.

<data>/jobs/<name>/<id>/
  lock            held (flock) by the launcher that runs it and its uploader; the kernel frees it however they end
  record.json     JobRecord
  events.jsonl    every event, appended
  result.json     Outcome of the last attempt
  logs/           job.log (all output as it came), job.times (when it was how long), attempt-N/ (what torchrun keeps of
                  each rank), launcher.log (the launcher's own lines, of a detached job)
  input-checkpoint/  output-checkpoint/  output/
  spool/          captures that are not stored yet
  salvage/        attempt-N/: what would have misled attempt N in the output directory
  unstored        there from before the job starts until everything whole that it wrote is in the store
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from launcher import names
from launcher.decoding import decode
from launcher.errors import (
    AccessDenied,
    JobNotFound,
    LocalResourceError,
    NoSpace,
    RecordDamaged,
    SettingsError,
    UsageError,
)
from launcher.ids import new_id
from launcher.job import listing
from launcher.job.record import JobRecord, write_atomically
from launcher.job.spec import JobSpec

UPLOADER_GRACE = 60.0
"""Seconds that the uploader of a launcher which was killed gets to end. It ends with its input, but yields to everything until
then (measured: 18 s on two cores with a load of 50)."""


class JobFolder:
    """One job's folder. `create` and `take` hold its lock until `close`; `find` only reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._lock: int | None = None
        self._writing = threading.Lock()

    @classmethod
    def create(
        cls, data_dir: str, spec: JobSpec, redacted: JobSpec, identifier: str = ""
    ) -> tuple[JobFolder, JobRecord]:
        """A new job of this name, or the next start of the one with this id, which may be here already.

        UsageError when it, or another job of this name, is running now, or when the id is another job's.
        """
        parent = Path(data_dir, "jobs", names.key(spec.name))
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(parent, error) from error
        folder = cls(parent / (identifier or new_id()))
        with _held(parent.parent / ".lock"):
            for other in _ids(parent):
                if other != folder.id and cls(parent / other).running():
                    raise already_runs(cls(parent / other), spec.name)
            for found in parent.parent.glob(f"*/{folder.id}/record.json") if identifier else ():
                if found.parent.parent != parent:
                    name = found.parent.parent.name.replace("!", "/")
                    raise UsageError(what=f"The id {identifier} is the job {name!r}'s.", hint="Choose another id.")
            try:
                for part in ("logs", "spool"):
                    (folder.path / part).mkdir(parents=True, exist_ok=True)
                taken = folder.take()
            except OSError as error:
                raise _unusable(folder.path, error) from error
        if not taken and not folder.take(UPLOADER_GRACE):
            raise already_runs(folder, spec.name)
        try:
            if (folder.path / "record.json").exists():
                record = folder.read()
                record.spec = redacted
                record.change("pending", "It is started again.")
            else:
                record = JobRecord(id=folder.id, name=spec.name, created=time.time(), spec=redacted)
                record.change("pending", "The checks have passed.")
            (folder.path / "result.json").unlink(
                missing_ok=True
            )  # It is of an attempt that is not the last one any more.
            folder.write(record)
        except OSError as error:
            folder.close()
            raise _unusable(folder.path, error) from error
        return folder, record

    @classmethod
    def find(cls, data_dir: str, name: str) -> JobFolder:
        """The newest job of this name (or the job with this id). Raises JobNotFound."""
        parent = Path(data_dir, "jobs", names.key(name))
        ids = _ids(parent)
        if ids:
            return cls(parent / ids[-1])
        found = listing.every(data_dir)
        for each in found:
            if each.id == name:
                return cls(Path(data_dir, "jobs", names.key(each.name), each.id))
        from launcher.settings import nearest

        near = nearest(name, {each.name for each in found})
        raise JobNotFound(name=name, hint=f"Nearest names: {', '.join(near)}" if near else None)

    def take(self, wait: float = 0.0) -> bool:
        """Tries to become the one process that works on this job. `wait`: seconds that the uploader of a launcher which is
        gone gets to end too."""
        deadline = time.monotonic() + wait
        while True:
            try:
                self._acquire()
            except BlockingIOError:
                if time.monotonic() > deadline or self._launcher_lives():
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
        os.write(fd, f"{os.getpid()} {os.uname().nodename}\n".encode())
        self._lock = fd

    def _launcher_lives(self) -> bool:
        """Whether the launcher that wrote the lock file lives, as far as can be seen from here: another host's counts as
        alive, as who holds the lock there is not known."""
        pid, host = self._holder()
        return host != os.uname().nodename or _lives(pid)

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

    def alive(self, record: JobRecord) -> bool:
        """Whether the launcher that runs the job lives: not its uploader alone, nor who stores what it left. On another host,
        whoever holds the lock counts as that launcher."""
        if not self.running():
            return False
        pid, host = self._holder()
        if host != os.uname().nodename:
            return True
        last = record.attempts[-1] if record.attempts else None
        return _lives(pid) and (last is None or last.outcome is not None or last.pid == pid)

    def owner(self) -> int | None:
        """The process id of the launcher that holds this job, where that is on this host."""
        pid, host = self._holder()
        return pid if self.running() and host == os.uname().nodename else None

    def holder(self) -> str:
        """Who holds this job, in words."""
        pid, host = self._holder()
        return f"process {pid} on {host}" if pid else "another process"

    def _holder(self) -> tuple[int | None, str]:
        """What the lock file says: process id and host (this one, where an older release wrote it)."""
        try:
            pid, _, host = (self.path / "lock").read_text().strip().partition(" ")
            return int(pid), host or os.uname().nodename
        except (OSError, ValueError):
            return None, os.uname().nodename

    def read(self) -> JobRecord:
        """The record as last written. Raises RecordDamaged."""
        path = self.path / "record.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=JobRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            job = self.path.parent.name.replace("!", "/")
            raise RecordDamaged(path=path, job=job, cause=str(error)) from error

    def write(self, record: JobRecord, *, durable: bool = True) -> None:
        """Replaces the record. Not `durable`: it survives a crash of ours, not of the machine. By any thread."""
        with self._writing:
            body = msgspec.json.format(msgspec.json.encode(record), indent=1)
            write_atomically(str(self.path / "record.json"), body, durable=durable)

    def note(self, record: JobRecord) -> None:
        """The same for a change that is only told: a full disk is no reason to end the job."""
        with contextlib.suppress(OSError):
            self.write(record, durable=False)

    def delete(self) -> None:
        """Removes everything of this job from this machine (not from the store)."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()


def given_id(environ: Mapping[str, str]) -> str:
    """The id under which whoever starts the launcher wants its job to start, or to start again ($LAUNCHER_JOB_ID), or nothing.

    A job finds its own id under the same name. Where LAUNCHER_ATTEMPT is set too, this is a launcher inside of a job, whose
    own job is a new one. Raises SettingsError.
    """
    given = environ.get("LAUNCHER_JOB_ID", "")
    if not given or "LAUNCHER_ATTEMPT" in environ:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", given):
        raise SettingsError(
            what=f"LAUNCHER_JOB_ID={given!r} is no job id.",
            hint="It has 1 to 63 letters, digits and . _ - and begins with a letter or digit.",
        )
    return given


def interrupted(data_dir: str, redacted: JobSpec) -> str:
    """The id of the newest job of this name here, where it is the same job (command, inputs, repository) and did not come to
    its end: a container that is started again with the job folder of the one before goes on with it."""
    ids = _ids(Path(data_dir, "jobs", names.key(redacted.name)))
    if not ids:
        return ""
    record = JobFolder(Path(data_dir, "jobs", names.key(redacted.name), ids[-1])).read()
    earlier, outcome = record.spec, record.outcome
    same = all(
        getattr(earlier, field) == getattr(redacted, field)
        for field in ("command", "checkpoint", "repository_url", "repository_revision")
    )
    return ids[-1] if same and (outcome is None or outcome.code or outcome.stopped) else ""


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


class _Birth(msgspec.Struct):
    created: float


def _ids(parent: Path) -> list[str]:
    """The ids of the jobs whose folders lie in `parent`, oldest first."""
    try:
        found = os.listdir(parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    ages = {}
    for name in found:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            try:
                ages[name] = decode((parent / name / "record.json").read_bytes(), _Birth).created
            except ValueError:  # Damaged: whoever reads all of it says so.
                ages[name] = 0.0
    return sorted(ages, key=lambda name: (ages[name], name))


def already_runs(folder: JobFolder, name: str, kind: str = "training") -> UsageError:
    """What a start says where a job of this name runs."""
    return UsageError(
        what=f"A job named {name!r} is running already ({folder.holder()}).",
        hint=f"Choose another name, or stop it: launcher {kind} stop {name}",
    )


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
