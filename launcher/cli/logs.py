"""`launcher training logs`: a job's output, also while it runs."""

from __future__ import annotations

import sys
import time

import click

from launcher.cli import completing
from launcher.cli.context import current


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.option("-f", "--follow", is_flag=True, help="Stay until the job ends.")
@click.option("--rank", "ranks", type=int, multiple=True, help="Only the output of this rank. May be repeated.")
@click.option("--attempt", type=int, metavar="N", help="Only the output of this attempt. [all, one after the other]")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of what is there.")
@click.option("--since", metavar="TIME", help="Only what came in the last 10m, or after 2026-01-31T12:00.")
@click.pass_context
def logs(
    ctx: click.Context,
    name: str,
    follow: bool,
    ranks: tuple[int, ...],
    attempt: int | None,
    tail: int | None,
    since: str | None,
) -> int:
    """Prints a job's output, as it came; also while it runs.

    \b
    Examples:
      launcher training logs ft_01 --follow --tail 20
      launcher training logs ft_01 --rank 0 --rank 3 --since 10m
      launcher training logs ft_01 --attempt 2
    """
    from launcher.errors import NotFoundError, UsageError
    from launcher.job import logs as reading
    from launcher.job.folder import JobFolder

    folder = JobFolder.find(current(ctx)[0].data_dir, name)
    record = folder.read()
    log = folder.path / "logs" / "job.log"
    count = record.spec.accels
    for rank in ranks:
        if not 0 <= rank < count:
            raise NotFoundError(what=f"Job {name} has no rank {rank}: it has {count}, the first is 0.")
    start = 0
    if attempt is not None:
        try:
            start, _ = reading.span(record.attempts, attempt)
        except KeyError:
            known = ", ".join(str(each.number) for each in record.attempts) or "none yet"
            raise NotFoundError(what=f"Job {name} has no attempt {attempt}; there is {known}.") from None
    if since is not None:
        try:
            start = max(start, reading.since(log, reading.moment(since, time.time())))
        except ValueError as error:
            raise UsageError(what=f"--since: {error}.") from error

    def grows() -> bool:
        return follow and folder.running()

    def ends() -> int | None:
        return None if attempt is None else reading.span(folder.read().attempts, attempt)[1]

    pieces = reading.read(
        log,
        start=start,
        ends=ends,
        ranks=frozenset(ranks) if count > 1 else (),
        tail=tail,
        grows=grows,
    )
    out = sys.stdout.buffer
    try:
        for piece in pieces:
            if piece:
                out.write(piece)
            else:
                out.flush()
    except KeyboardInterrupt:  # The usual end of --follow.
        return 130
    finally:
        out.flush()
    return 0
