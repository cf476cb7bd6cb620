"""All that happened to a job: attempts, inputs, outcome. Written whole by one rename, so that a reader sees one state."""

from __future__ import annotations

import os
import time
from typing import Any, Literal

import msgspec

from launcher.job import states
from launcher.job.failure import Failure
from launcher.job.spec import JobSpec
from launcher.job.states import Change, State

Origin = Literal["job", "launcher", "platform"]
ServerState = Literal["starting", "ready", "silent", "ended"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended. `origin` says whose the code is: 64–78 can be a job's own."""

    code: int
    """The exit code: the first failing rank's, 128+n where signal n ended it; or the launcher's own."""
    origin: Origin
    """Whose the code is: the job's, or the launcher's."""
    cause: str
    """What happened, for people."""
    failure: Failure = ""
    """The class of the failure: oom, rendezvous, hang, exception, exit, signal, stopped, launcher; empty: it did not fail."""
    kind: str = "exit"
    """exit, signal, or the `kind` of the launcher's error."""
    signal: str | None = None
    """The signal that ended the job, or that asked it to stop."""
    rank: int | None = None
    """The rank that failed first."""
    node: str = ""
    """The host that it ran on."""
    traceback: str = ""
    """What its output ended with: a Python traceback, or the stack of a crash; at most some 16,000 characters."""
    retryable: bool = False
    """Whether starting it again can help, by its class and --retry-on, --no-retry-on."""
    stopped: bool = False
    """A stop was asked for (a signal, `training stop`)."""
    last_step_seen: int | None = None
    """The last step of which something was written."""
    last_step_committed: int | None = None
    """The last step whose checkpoint is in the store."""
    bytes_not_stored: int = 0
    """Of whole checkpoints, which `launcher recover` stores."""
    hint: str = ""
    """What to do about it, for people."""
    next: str = ""
    """The command to go on with; empty where there is nothing to go on with."""


class InputRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One input checkpoint as the job saw it."""

    reference: str
    checkpoint: str | None
    """Id in the store; None for a path or URL."""
    path: str
    rung: str
    """What makes it read-only: bind, userns, landlock, permissions, none, engine; empty until the job has started."""
    size: int = 0
    writable: bool = False
    """The job had a view of its own that it could change; the input itself was read-only all the same."""
    lazy: bool = False
    """It arrived while the job read it."""
    problem: str = ""
    """Why a read of a lazy input failed."""


class Server(msgspec.Struct, kw_only=True):
    """What an inference job serves, and whether it answers."""

    url: str
    health: str
    """The URL that is asked whether it answers."""
    state: ServerState = "starting"
    """silent: it answered, and does not any more."""
    since: float = 0.0
    """Unix seconds: when it came to be so."""
    answered: float | None = None
    """Unix seconds: when it answered first."""
    model: str = ""
    """The model's name in requests, where the server has OpenAI's interface."""
    chat: bool = False
    """The checkpoint says how a chat becomes a prompt."""


class DatasetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One dataset as the job saw it; `digest` of its content, `path` and `rung` as of an input."""

    reference: str
    name: str
    version: int | None
    id: str
    digest: str
    path: str
    rung: str
    size: int = 0
    writable: bool = False


class Attempt(msgspec.Struct, kw_only=True):
    """One execution of a job."""

    number: int
    host: str
    pid: int
    started: float
    ended: float | None = None
    inputs: list[InputRecord] = []
    datasets: list[DatasetRecord] = []
    guarantee: str = ""
    """In words: what keeps the input from being changed."""
    device: str = ""
    phases: dict[str, float] = {}
    """Seconds each phase took."""
    command_ended: float | None = None
    """When the command itself had ended, in Unix seconds; what it wrote is stored after that."""
    output: str = ""
    """The output directory on this machine."""
    watch: list[str] = []
    """Further folders that are watched."""
    log_start: int = 0
    """Where its output begins in the job's log: bytes."""
    world_size: int | None = None
    """Processes that write, where known."""
    resumed: str = ""
    """Id of the checkpoint that it went on from; empty where it began at the beginning, or on its own."""
    resumed_path: str = ""
    """Where that lay, below the output directory."""
    resumed_step: int | None = None
    bytes_sent: int = 0
    """Of checkpoints, to the store."""
    bytes_saved: int = 0
    """Of checkpoints: what the store had already, from the one before."""
    server: Server | None = None
    """Of an inference job."""
    outcome: Outcome | None = None


class JobRecord(msgspec.Struct, kw_only=True):
    """A job on this machine; the same object is stored with its logs when it ends."""

    id: str
    name: str
    created: float
    spec: JobSpec
    attempts: list[Attempt] = []
    checkpoints: list[str] = []
    """Ids of what was committed, oldest first, each once."""
    skipped: list[dict[str, Any]] = []
    """What was seen and not collected: name and reason."""
    source: dict[str, str] = {}
    """Where the code came from: repository, revision as asked for, commit, and a digest of what was not committed (`changes`)."""
    states: list[Change] = []
    """Every change of the job's state, oldest first; empty in a record of an older release."""

    @property
    def outcome(self) -> Outcome | None:
        return self.attempts[-1].outcome if self.attempts else None

    def change(self, state: State, reason: str) -> None:
        """The job comes into a state now, or the reason for the one that it is in is another one. `folder.write` keeps it."""
        if not self.states or (self.states[-1].state, self.states[-1].reason) != (state, reason):
            self.states.append(Change(state=state, time=time.time(), reason=reason))


def state(record: JobRecord, alive: bool) -> State:
    """The job's state. `alive`: its launcher lives (`JobFolder.alive`); where it does not and the job has not ended, the job is
    `lost`."""
    known: State = states.at_end(record.outcome) if record.outcome else "in progress"
    if record.states:
        known = record.states[-1].state
    return known if alive or known in states.ENDED else "lost"


def write_atomically(path: str, data: bytes, *, durable: bool = True) -> None:
    """Puts `data` at `path` so that a reader, also after a crash, finds the old content or the new one.

    Survives a crash of the process at any point, and where `durable` of the machine too: the temporary file is synced
    before the rename makes it visible, which can take some hundred milliseconds on a busy disk.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
