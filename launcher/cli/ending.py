"""`launcher training stop` and `wait`: a running job's end."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from launcher.cli import completing
from launcher.cli.context import current, seconds_of

if TYPE_CHECKING:
    from launcher.job.folder import JobFolder
    from launcher.job.states import Change

_LOOK = 0.05
_LOST = 137
"""The exit code of a job whose launcher is gone, as its record says it too once it is started again."""


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.option("--now", is_flag=True, help="Kill the command at once; what it has saved is stored still.")
@click.option("--wait", default="60s", metavar="TIME", help="How long to wait for its end. [60s]")
@click.pass_context
def stop(ctx: click.Context, name: str, now: bool, wait: str) -> None:
    """Asks a running job to stop: it gets its grace time, and its checkpoints are stored.

    \b
    Examples:
      launcher training stop ft_01
      launcher training stop ft_01 --now
      launcher training stop ft_01 --wait 10m
    """
    from launcher.errors import StillRunning, UsageError
    from launcher.job.folder import JobFolder

    seconds = seconds_of("--wait", wait)
    folder = JobFolder.find(current(ctx)[0].data_dir, name)
    pid = folder.owner()
    if pid is None and folder.running():
        raise UsageError(what=f"Job {name} is run by {folder.holder()}.", hint="Stop it there.")
    if pid is None:
        click.echo(f"Job {name} is not running.", err=True)
        return
    deadline = time.monotonic() + seconds
    if now:
        _kill(folder, pid, deadline)
    else:
        _tell(pid)
    if not _until(lambda: not folder.running(), deadline):
        raise StillRunning(
            name=name, seconds=seconds, state="stop in progress", hint="It still has grace, or is storing checkpoints."
        )
    click.echo(f"Job {name} has stopped.")


def _tell(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # It ended meanwhile.


def _kill(folder: JobFolder, pid: int, deadline: float) -> None:
    """The launcher kills the command when it is told again; once the command has ended, it is not: that would give up storing."""
    told = False
    while folder.running() and time.monotonic() < deadline:
        record = folder.read()
        known = record.states[-1:]
        stopping = told or (bool(known) and known[0].state == "stop in progress")
        if stopping and record.attempts and record.attempts[-1].command_ended:
            return
        _tell(pid)
        if stopping:
            return
        told = True
        _until(functools.partial(_changed, folder, known), deadline)


def _changed(folder: JobFolder, known: list[Change]) -> bool:
    return not folder.running() or folder.read().states[-1:] != known


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=completing.jobs)
@click.option("--timeout", metavar="TIME", help="How long to wait for all of them, such as 2h. [without end]")
@click.pass_context
def wait(ctx: click.Context, names: tuple[str, ...], timeout: str | None) -> int:
    """Waits until jobs have ended. The exit code is the job's own; of several, the first that is not 0, in this order.

    A job whose launcher is gone has ended: 137. After the timeout: 75.

    \b
    Examples:
      launcher training wait ft_01 && launcher checkpoint fetch ft_01
      launcher training wait ft_01 ft_02 --timeout 2h
    """
    from launcher.errors import StillRunning
    from launcher.job.folder import JobFolder
    from launcher.job.record import state

    settings, _ = current(ctx)
    seconds = seconds_of("--timeout", timeout) if timeout is not None else None
    deadline = time.monotonic() + seconds if seconds is not None else float("inf")
    folders = [JobFolder.find(settings.data_dir, name) for name in names]
    first = 0
    for name, folder in zip(names, folders):
        ended = _until(functools.partial(_over, folder), deadline)
        record = folder.read()
        now = state(record, not ended)
        if not ended:
            raise StillRunning(name=name, seconds=seconds, state=now)
        code = _LOST if now == "lost" or record.outcome is None else record.outcome.code
        click.echo(f"Job {name}: {now}, exit code {code}.", err=True)
        first = first or code
    return first


def _over(folder: JobFolder) -> bool:
    return not folder.alive(folder.read())


def _until(found: Callable[[], bool], deadline: float) -> bool:
    """Waits for something, and returns whether it came in time."""
    pause = _LOOK
    while not found():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 1.2, 0.5)
    return True
