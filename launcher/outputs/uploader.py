"""The uploader: a process of its own, of the lowest priority, that stores captures one at a time.

A process, because hashing and sending must take neither the processors nor the disk from the training, nor the
interpreter's lock from the watcher, which has milliseconds. Here is the launcher's end, and what both say; `storing` is
the program. Over the pipes go one JSON object a line: first what the uploader needs to know, then captures one way
and answers the other way; an empty line is the end. Where its input ends without one, the launcher was killed: the uploader then
ends what is left of the job, and itself. Secrets reach it by
the environment and the pipe, never by its command line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from launcher.checkpoint.policy import Policy
from launcher.outputs.capture import Capture
from launcher.settings import Settings

_START = """import os, sys
os.nice(int(sys.argv[1]))
sys.path[:] = sys.argv[2:]
from launcher.outputs.storing import main
main()"""
_END = 5.0
"""Seconds that the process gets to end by itself."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the uploader works for. `job`: the job's id; `bandwidth`: bytes a second, 0 without a cap; `yields`: to the job,
    which runs; `ends_job`: a job ends with its launcher, here by this."""

    settings: Settings
    job: str
    bandwidth: int = 0
    pickles: Policy = "warn"
    yields: bool = True
    ends_job: bool = True


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
    """It could not be stored now. `kind`: of the error; `store`: that is the store's doing, so others would fare no better."""

    reason: str
    kind: str
    store: bool


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
        """The job is over, or about to be: the uploader need not yield any more. To be called again, as one that was just
        started may miss it. (Without a privilege, a process that yields cannot take its nice value back.)"""
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
