"""A job that a Python program runs, in a process of its own: the main job's.

That one catches every signal, inherits every orphan below it, and ends what is left of the job when the job is over: none of that
may happen to a program that has children and signals of its own, in a notebook or a thread. `run` is the caller's end, and `main`
the program. One JSON object goes to it on stdin, what to run; back come events, one a line, and at last how it ended. Secrets
reach it by the environment and the pipe, never by its command line.
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

import msgspec

from launcher import settings as configuration
from launcher.errors import LauncherError, UsageError
from launcher.events import Console, Event, OnEvent, Redactor
from launcher.job import spec as specs
from launcher.job.spec import JobSpec
from launcher.result import Result

_START = """import sys
sys.path[:] = sys.argv[2:]
from launcher.job_process import main
main(int(sys.argv[1]))"""


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
    default = msgspec.structs.asdict(JobSpec(name=""))
    given = {key: value for key, value in msgspec.structs.asdict(spec).items() if value != default[key]}
    spec = specs.load(given, environ={})
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
        spec, environ, kept = task.spec, configuration.process_environment(), list[str]()
        try:
            settings, _ = configuration.load({"store": task.store, "log_format": "json"}, environ)
            kept = secrets.values(settings.data_dir, spec.secret_sources(), environ)
            signals.drop(spec.dropped())
            with report.early(settings, environ):
                ended = _Ended(main_job.run(spec, settings, environ, signals, stream=lines))
        except LauncherError as error:
            ended = _Ended(kind=error.kind, text=error.text, hint=error.hint)
        except Exception:
            ended = _Ended(kind=LauncherError.kind, text=f"This is a bug, please report it:\n{traceback.format_exc()}")
        clean = Redactor.of_environment(environ | spec.env, kept).text
        ended = msgspec.structs.replace(ended, text=clean(ended.text), hint=clean(ended.hint))
        lines.write(msgspec.json.encode(ended).decode() + "\n")


def _end_with(caller: int) -> None:
    """Asks this process to stop when the caller's has ended."""
    select.select([caller], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
