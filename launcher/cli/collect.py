"""`launcher collect`: the second half of a job, in a sidecar; or once, by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from launcher.cli.context import current, seconds_of
from launcher.cli.training import only_job_options


@click.command()
@click.argument("folder", metavar="DIR")
@click.option("--watch", is_flag=True, help="Until the job has ended: SIGTERM, or what the next two say.")
@click.option("--until-file", metavar="FILE", help="The job is over when this exists; a number in it is its exit code.")
@click.option("--until-quiet", metavar="TIME", help="The job is over when nothing was written for so long.")
@click.option("--name", metavar="NAME", help="The job's name (LAUNCHER_NAME). [the prepared job's, the host's name]")
@only_job_options(
    "grace", "keep", "settle", "bandwidth", "spool", "when_full", "pickles", "health_port", "heartbeat", "job_file"
)
@click.pass_context
def collect(
    ctx: click.Context,
    /,
    folder: str,
    watch: bool,
    until_file: str | None,
    until_quiet: str | None,
    name: str | None,
    job_file: str | None,
    **flags: Any,
) -> int:
    """Stores the checkpoints of a job that somebody else runs: of DIR, a volume filled by `launcher prepare` or any
    output directory.

    Without --watch: what lies there whole, once. With it: until the job has ended. Exit code 0: everything whole is stored;
    74: something is not, and the same command again goes on. Killed and started again on the same DIR, it stores each
    checkpoint exactly once.

    \b
    Examples:
      launcher collect --watch /volume --grace 120s
      launcher collect --watch /output-checkpoint --name ft_01 --until-file /output-checkpoint/exit-code
      launcher collect results/ --name ft_01
    """
    from launcher import collect as collecting
    from launcher import names, volume
    from launcher.errors import UsageError
    from launcher.job import spec as specs
    from launcher.runners.signals import catching

    if not folder:
        raise UsageError(what="DIR is empty.")
    with catching() as signals:
        settings, environ = current(ctx)
        source = Path(os.path.abspath(folder))
        prepared = volume.job_of(source) if volume.is_prepared(source) else None
        default = prepared.read().name if prepared else names.clean(os.uname().nodename or "job")
        spec = specs.load(
            flags | {"name": name, "runner": "sidecar"}, file=job_file, environ=environ, defaults={"name": default}
        )
        if (until_file or until_quiet) and not watch:
            raise UsageError(what="--until-file and --until-quiet say how long to --watch.")
        quiet = seconds_of("--until-quiet", until_quiet) if until_quiet else 0.0
        until = collecting.Until(file=os.path.abspath(until_file) if until_file else "", quiet=quiet)
        return collecting.collect(spec, settings, environ, signals, source, watch=watch, until=until).code
