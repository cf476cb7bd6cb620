"""The uploader: a process of its own, of the lowest priority, that stores captures one at a time.

A process, because hashing and sending must take neither the processors nor the disk from the training, nor the
interpreter's lock from the watcher, which has milliseconds. Both ends of it are in this file: `Uploader` is the launcher's,
`main` is the program. Over the pipes go one JSON object a line: first what the uploader needs to know, then captures one way
and answers the other way; an empty line is the end. Where its input ends without one, the launcher was killed: the uploader then
ends what is left of the job, and itself. Secrets reach it by
the environment and the pipe, never by its command line.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import msgspec

from launcher import __version__
from launcher import settings as configuration
from launcher.checkpoint import formats, safety
from launcher.checkpoint.manifest import SCHEMA, Facts, Lineage, Manifest, Origin, Ready
from launcher.checkpoint.safety import Policy
from launcher.errors import LauncherError, UnsafePickle
from launcher.ids import new_id
from launcher.outputs.capture import Capture
from launcher.runners.process import LEFTOVER_GRACE, end_job
from launcher.settings import Settings
from launcher.store.store import Aborted, Checkpoint, Store
from launcher.store.upload import Changed, Earlier, upload_files
from launcher.transfer.throttle import Throttle

_START = """import os, sys
os.nice(int(sys.argv[1]))
sys.path[:] = sys.argv[2:]
from launcher.outputs.uploader import main
main()"""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_IDLE = 3 << 13
_END = 5.0
"""Seconds that the process gets to end by itself."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the uploader works for. `job`: the job's id; `bandwidth`: bytes a second, 0 without a cap; `yields`: to the job,
    which runs."""

    settings: Settings
    job: str
    bandwidth: int = 0
    pickles: Policy = "warn"
    yields: bool = True


class Stored(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A capture is in the store. `repeated`: as the version that was there already, because nothing is different."""

    id: str
    name: str
    version: int | None
    step: int | None
    size: int
    sent: int
    """Bytes that went to the store."""
    saved: int
    """Bytes that were there already, and were copied there."""
    seconds: float
    repeated: bool = False
    findings: tuple[str, ...] = ()
    """What its pickles hold that is not known to be harmless."""

    @property
    def label(self) -> str:
        """name@vN."""
        return f"{self.name}@v{self.version}" if self.version else self.name


class Superseded(msgspec.Struct, frozen=True, tag=True):
    """The captured files are others now, or gone: there is nothing to store any more."""

    reason: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It will not be stored, as the job's policy says."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It could not be stored now. `kind`: of the error; `retryable`: the store did not answer, which may pass."""

    reason: str
    kind: str
    retryable: bool


Answer = Stored | Superseded | Refused | Failed


class Ended(Exception):
    """The uploader ended before it had answered: `str()` says how."""


class Uploader:
    """The launcher's end. Started by `start` or the first `store`, and again by the next `store` after it had ended."""

    def __init__(self, task: Task, *, log: Path, keep: tuple[int, ...] = ()) -> None:
        """`log` takes what its libraries print. `keep`: descriptors that live as long as it does (the job's lock: nobody
        recovers a job while its uploader still works)."""
        self._task = task
        self._log = log
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Has it ready for the first capture."""
        with contextlib.suppress(OSError):
            self._process = self._process or self._start()

    def store(self, capture: Capture) -> Answer:
        """Stores one capture and waits for the answer. Raises Ended."""
        try:
            process = self._process or self._start()
            assert process.stdin and process.stdout
            process.stdin.write(msgspec.json.encode(capture) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError as error:
            line, cause = b"", error.strerror
        else:
            cause = "it ended"
        if not line.endswith(b"\n"):
            raise Ended(self.close() or cause)
        answer: Answer = msgspec.json.decode(line, type=Answer)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            # A session of its own: what the terminal sends to the launcher is the launcher's to decide.
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, "19" if self._task.yields else "0", *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                pass_fds=self._keep,
            )
        assert process.stdin
        process.stdin.write(msgspec.json.encode(self._task) + b"\n")
        process.stdin.flush()
        return process

    def hurry(self) -> None:
        """The job is over: the uploader need not yield any more. To be called again, as one that was just started may miss
        it. (Without a privilege, a process that yields cannot take its nice value back.)"""
        self._task = msgspec.structs.replace(self._task, yields=False)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/autogroup").write_text("0")
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{self.pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)

    def kill(self) -> None:
        """Ends it at once, from any thread: a `store` that waits raises Ended."""
        if self._process:
            self._process.kill()

    def close(self) -> str:
        """Ends it, and says how it ended where that was by a signal. Idempotent."""
        process = self._process
        if not process:
            return ""
        assert process.stdin and process.stdout
        with contextlib.suppress(OSError):
            process.stdin.write(b"\n")
            process.stdin.close()
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END)
        code = process.returncode
        process.stdout.close()
        self._process = None
        return f"it was ended by {signal.Signals(-code).name}" if code and code < 0 else ""


def store_capture(
    store: Store, capture: Capture, job: str, *, threads: int, throttle: Throttle, earlier: Earlier, pickles: Policy
) -> Checkpoint:
    """Uploads and commits one capture. Idempotent: its id is the checkpoint's, so a second time only finishes the first.

    Raises Changed (the files are others now), FileNotFoundError (they are gone), UnsafePickle, LauncherError.
    """
    tree = capture.tree()
    found = safety.look(tree)
    if found.findings:
        _prove_unchanged(capture)  # Else what was found may be of another file.
    safety.refuse(found.findings, pickles, capture.name)
    format = formats.by_name(capture.format)
    identifier = capture.id
    while True:
        files = upload_files(
            store,
            identifier,
            capture.root,
            capture.files,
            threads=threads,
            on_bytes=throttle.take,
            opened=capture.open,
            unchanged=capture.unchanged,
            earlier=earlier,
        )
        manifest = Manifest(
            schema=SCHEMA,
            id=identifier,
            name=capture.name,
            created=capture.captured,
            writer=__version__,
            format=capture.format,
            files=files,
            size=sum(file.size for file in files),
            facts=format.facts(tree) if format else Facts(),
            ready=format.ready(tree) if format else Ready(),
            origin=Origin(job, capture.job, capture.path, capture.node, capture.attempt),
            lineage=Lineage(capture.parents, capture.sources, capture.repository, capture.commit, capture.command),
            safety=found.findings,
            imports=found.imports,
        )
        try:
            checkpoint = store.commit(manifest)
        except Aborted:
            identifier = new_id()  # gc took us for dead and removed the files: everything again under another id.
            continue
        earlier.remember(checkpoint.manifest)
        return checkpoint


def _prove_unchanged(capture: Capture) -> None:
    for path in capture.files:
        fd = capture.open(path)
        try:
            if not capture.unchanged(path, os.fstat(fd)):
                raise Changed(path)
        finally:
            os.close(fd)


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Answers captures until its input ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # They are the launcher's to handle; this process ends with its input.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # What a library prints is no answer.
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    if task.yields:
        yield_to_the_job()
    captures: queue.SimpleQueue[Capture] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, captures, task.job), daemon=True).start()
    store = Store.open(task.settings, configuration.process_environment())
    throttle, earlier = Throttle(task.bandwidth), Earlier()
    while True:
        answer = _answer(store, captures.get(), task, throttle, earlier)
        answers.write(msgspec.json.encode(answer) + b"\n")


def _read(lines: IO[bytes], captures: queue.SimpleQueue[Capture], job: str) -> None:
    for line in lines:
        if line == b"\n":
            os._exit(0)  # An upload that nobody waits for any more ends here.
        captures.put(msgspec.json.decode(line, type=Capture))
    end_job(job, LEFTOVER_GRACE)
    os._exit(1)


def _answer(store: Store, capture: Capture, task: Task, throttle: Throttle, earlier: Earlier) -> Answer:
    started, saved = time.monotonic(), earlier.saved
    try:
        checkpoint = store_capture(
            store,
            capture,
            task.job,
            threads=task.settings.transfer_threads,
            throttle=throttle,
            earlier=earlier,
            pickles=task.pickles,
        )
    except UnsafePickle as error:
        return Refused(error.text)
    except (Changed, FileNotFoundError) as error:
        path = os.path.basename(str(error.args[-1])) or "a file"
        return Superseded(f"{path} was written again before it was stored")
    except LauncherError as error:
        return Failed(error.text, error.kind, error.retryable)
    except OSError as error:
        return Failed(f"{error.filename or 'a file'}: {error.strerror}", "local-resource", False)
    manifest = checkpoint.manifest
    saved = earlier.saved - saved
    return Stored(
        id=manifest.id,
        name=manifest.name,
        version=checkpoint.version,
        step=manifest.facts.step,
        size=manifest.size,
        sent=capture.size - saved,
        saved=saved,
        seconds=round(time.monotonic() - started, 3),
        repeated=checkpoint.repeated,
        findings=manifest.safety or () if task.pickles == "warn" else (),
    )


def yield_to_the_job() -> None:
    """The lowest priority of processor and disk, for this thread and every one that it starts. (It is nice already.)

    Where the kernel groups processes by session (sched_autogroup, sched(7)), a nice value counts within the session only,
    and the group has one of its own.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    if call := _IOPRIO_SET.get(os.uname().machine):
        import ctypes

        ctypes.CDLL(None).syscall(call, 1, 0, _IOPRIO_IDLE)  # ioprio_set(IOPRIO_WHO_PROCESS, this thread, …)
