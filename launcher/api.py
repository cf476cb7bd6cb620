"""The Python API: what `launcher/__init__.py` lists. It raises the command line's errors (`launcher.errors`), prints nothing
unless it is asked to, and never ends the caller's process.

A job runs in a process of its own, the main job's. That one catches every signal, inherits every orphan below it, and ends what
is left of the job when the job is over: none of that may happen to a program that has children and signals of its own, in a
notebook or a thread. Here is the caller's end, and `main` is the program. One JSON object goes to it on stdin, what to run; back
come events, one a line, and at last how it ended. Secrets reach it by the environment and the pipe, never by its command line.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from launcher import settings as configuration
from launcher.checkpoint.policy import Policy
from launcher.errors import LauncherError, UsageError
from launcher.events import Caller, Console, Event, Redactor
from launcher.inputs.selection import Selection
from launcher.job import spec as specs
from launcher.job.spec import JobSpec
from launcher.result import Result
from launcher.settings import Settings
from launcher.store.store import Checkpoint, Store

if TYPE_CHECKING:
    from launcher.inputs.cache import Held

__all__ = [
    "Checkpoint", "Event", "JobSpec", "LauncherError", "Result", "Store", "checkpoint_path", "fetch_checkpoint", "open_store",
    "push_checkpoint", "run",
]  # fmt: skip

OnEvent = Callable[[Event], object]
"""What is told of what happens, also from other threads than the caller's (but by `run` in the caller's)."""

_START = """import sys
sys.path[:] = sys.argv[2:]
from launcher.api import main
main(int(sys.argv[1]))"""
_held: dict[Path, Held] = {}
"""Keeps what `checkpoint_path` returned in the node cache, until this process ends."""


class _Task(msgspec.Struct, frozen=True):
    """What the process is to run. `parent`: the process that waits for it."""

    spec: JobSpec
    store: str | None
    parent: int


class _Ended(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """How it ended: with a result, or with the error of this kind before the job had begun."""

    result: Result | None = None
    kind: str = ""
    text: str = ""
    hint: str = ""


def run(spec: JobSpec, *, store: str | None = None, on_event: OnEvent | None = None, echo: bool = False) -> Result:
    """Runs a job to its end, stores what it wrote, and returns how it ended: `code` is the job's own exit code.

    It is `launcher training run` in the current folder, with this process's environment and the settings of `launcher config
    show`; `store` wins over the store of these. `LAUNCHER_*` variables that stand for a job's flags do not count: the spec says
    all.

    `on_event` is called, in the caller's thread, with everything that the launcher tells of. `echo` passes the job's output on to
    this process's stdout and stderr, and prints the events; without it, the output is in the job's log alone (`launcher training
    logs NAME`). The job's stdin is empty.

    What keeps the job from starting is raised as a LauncherError; once it has begun, the result tells of it (`origin`, `kind`,
    `cause`). Ctrl-C (KeyboardInterrupt) asks the job to stop as on the command line, and so does an exception of `on_event`: it
    has `grace` seconds to save, and the launcher to store; then the exception goes on. A second Ctrl-C ends it at once. The job
    also ends, in its grace, when this process dies. May be called in any thread, and several times at once.
    """
    spec = specs.load(msgspec.structs.asdict(spec), environ={})
    if spec.runner not in ("process", "docker"):
        raise UsageError(what=f"runner {spec.runner!r} is for the command of that name; choose process or docker.")
    process, said = _start(_Task(spec, store, os.getpid()), echo=echo)
    console = Console()
    ended: _Ended | None = None
    try:
        while line := said.get():
            if line.startswith(b'{"type":'):
                ended = msgspec.json.decode(line, type=_Ended)
                continue
            event = msgspec.json.decode(line, type=Event)
            if echo:
                console(event)
            if on_event:
                on_event(event)
    except BaseException as error:
        _stop(process, said, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
        raise
    code = process.wait()
    if ended and ended.result:
        return ended.result
    if ended:
        raise LauncherError.again(ended.kind, ended.text, ended.hint)
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    raise LauncherError(
        what=f"The process that ran job {spec.name} was ended {how} before it could tell how the job ended.",
        hint=f"What the job left whole is stored by: launcher recover {spec.name}",
    )


def _start(task: _Task, *, echo: bool) -> tuple[subprocess.Popen[bytes], queue.SimpleQueue[bytes]]:
    """The process, and the lines that it says; an empty one is their end."""
    reader, writer = os.pipe()
    output = None if echo else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, str(writer), *sys.path],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C at the terminal is for the caller, who passes it on once.
            pass_fds=[writer],
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    said = queue.SimpleQueue[bytes]()

    def read() -> None:
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                said.put(line)
        said.put(b"")

    threading.Thread(target=read, name="launcher-events", daemon=True).start()
    assert process.stdin
    try:
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        process.stdin.close()  # The job finds nothing on its stdin.
    except BrokenPipeError:
        pass  # It has ended, and `run` says how.
    return process, said


def _stop(process: subprocess.Popen[bytes], said: queue.SimpleQueue[bytes], number: int) -> None:
    """Asks for the job's end and waits for it; a Ctrl-C meanwhile asks again, which ends it at once."""
    while True:
        process.send_signal(number)
        try:
            while said.get():
                pass
            process.wait()
            return
        except KeyboardInterrupt:
            number = signal.SIGINT


def main(fd: int) -> None:
    """The process of one job: reads what to run from stdin, writes events and how it ended to `fd`."""
    from launcher import main_job, report, secrets
    from launcher.runners.signals import catching

    os.set_inheritable(fd, False)
    with catching() as signals, os.fdopen(fd, "w") as lines:
        task = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Task)
        caller = os.pidfd_open(task.parent)
        if os.getppid() != task.parent:
            return  # It has gone already, and this may be another process's number.
        # Not by PR_SET_PDEATHSIG, which tells of the death of a thread: of several, each one's.
        threading.Thread(target=_end_with, args=[caller], daemon=True).start()
        environ, kept = configuration.process_environment(), list[str]()
        try:
            settings, _ = configuration.load({"store": task.store, "log_format": "json"}, environ)
            kept = secrets.values(settings.data_dir)
            signals.drop(task.spec.dropped())
            with report.early(settings, environ):
                ended = _Ended(main_job.run(task.spec, settings, environ, signals, stream=lines))
        except LauncherError as error:
            ended = _Ended(kind=error.kind, text=error.text, hint=error.hint)
        except Exception:
            ended = _Ended(kind=LauncherError.kind, text=f"This is a bug, please report it:\n{traceback.format_exc()}")
        clean = Redactor.of_environment(environ | task.spec.env, kept).text
        ended = msgspec.structs.replace(ended, text=clean(ended.text), hint=clean(ended.hint))
        lines.write(msgspec.json.encode(ended).decode() + "\n")


def _end_with(caller: int) -> None:
    """Asks this process to stop when the caller's has ended."""
    select.select([caller], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def open_store(url: str | None = None) -> Store:
    """A store: a folder, `s3://…`, `gs://…`, `az://…`; by default that of `launcher config show`. Nothing is contacted yet.

    `checkpoints()` lists it, `of_job(NAME)` what the jobs of a name wrote, `resolve(REF)` finds one.
    Raises SettingsError, UsageError.
    """
    return Store.open(*_settings(url))


def checkpoint_path(
    ref: str,
    *,
    store: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: Literal["all", "inference"] = "all",
    pickles: Policy = "warn",
    on_event: OnEvent | None = None,
) -> Path:
    """The folder of a checkpoint on this machine, whole and verified: `from_pretrained(launcher.checkpoint_path("ft_01"))`.

    `ref` is what `-C` takes: a name, `name@vN`, an id, `job:NAME`, a URL. It comes once, into the node cache, where every job of
    this machine finds it too, and stays there until this process ends. It is shared: nothing may be written into it. A path is
    returned as it is. `include` and `exclude` are globs of the files to take; `only="inference"` leaves out optimizers and the
    like; `pickles="deny"` refuses what may run code when it is loaded.

    Raises CheckpointNotFound, SourceNotFound, DigestMismatch, UnsafePickle, StoreError, NoSpace.
    """
    from launcher.checkpoint import policy
    from launcher.inputs import choose
    from launcher.inputs.cache import NodeCache
    from launcher.progress import Progress

    settings, environ = _settings(store)
    emit = Caller(on_event)
    place = Store.open(settings, environ)
    selection = Selection(tuple(include), tuple(exclude), only)
    (chosen,) = choose.choose((ref,), place, settings, environ, selection)
    found = choose.findings(chosen, place, settings)
    policy.refuse(found, pickles, ref)
    policy.warn(found, pickles, ref, emit)
    with Progress(f"Fetching {ref}", chosen.size, emit) as progress:
        provided = choose.provide(chosen, place, NodeCache.open(settings, emit), progress)
    if provided.lease and _held.setdefault(Path(provided.path), provided.lease) is not provided.lease:
        provided.lease.release()
    found = choose.findings_inside(provided)
    policy.refuse(found, pickles, ref)
    policy.warn(found, pickles, ref, emit)
    return Path(provided.path)


def fetch_checkpoint(
    ref: str, destination: str | os.PathLike[str], *, store: str | None = None, on_event: OnEvent | None = None
) -> Path:
    """Copies a stored checkpoint into a new or empty folder, every file verified, and returns the folder. It is the caller's.

    Raises CheckpointNotFound, DigestMismatch, StoreError, UsageError (there are other files), AccessDenied, LocalResourceError.
    """
    from launcher import push as pushing

    settings, environ = _settings(store)
    threads, emit = settings.transfer_threads, Caller(on_event)
    path, _ = pushing.fetch(Store.open(settings, environ), ref, os.fspath(destination), threads=threads, emit=emit)
    return Path(path)


def push_checkpoint(
    name: str,
    source: str | os.PathLike[str],
    *,
    store: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: Literal["all", "inference"] = "all",
    parents: Iterable[str] = (),
    pickles: Policy = "warn",
    force: bool = False,
    on_event: OnEvent | None = None,
) -> Checkpoint:
    """Stores a folder's content, a file, an archive or what is at a URL as the next version of `name`.

    What is the same as its newest version is not stored again (`repeated`). `parents`: references of what it was made from.
    `force`: also what is not whole.

    Raises SourceNotFound, FormatBroken (not whole), UnsafePickle, UnsafePath, StoreError, UsageError (no name).
    """
    from launcher import push as pushing

    settings, environ = _settings(store)
    place, emit = Store.open(settings, environ), Caller(on_event)
    return pushing.push_source(
        place, name, os.fspath(source), settings, environ, selection=Selection(tuple(include), tuple(exclude), only),
        parents=[place.resolve(each).manifest.id for each in parents], pickles=pickles, force=force, emit=emit,
    )  # fmt: skip


def _settings(store: str | None) -> tuple[Settings, dict[str, str]]:
    environ = configuration.process_environment()
    return configuration.load({"store": store}, environ)[0], environ
