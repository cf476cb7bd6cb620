"""`launcher prepare`: the first half of a job, in an init container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from launcher.cli.context import current
from launcher.cli.training import only_job_options


@click.command()
@click.option("--into", required=True, metavar="DIR", help="The volume that the job's own container shares.")
@click.option("--name", metavar="NAME", help="The job's name (LAUNCHER_NAME). [the host's name]")
@only_job_options("checkpoint", "dataset", "include", "exclude", "only", "pickles", "resume", "job_file")
@click.pass_context
def prepare(ctx: click.Context, /, into: str, name: str | None, job_file: str | None, **flags: Any) -> None:
    """Fills a volume with a job's inputs, for a container whose image knows nothing of the launcher.

    It then holds input-checkpoint/NAME (to be mounted read-only at /input-checkpoint), input/DATASET (read-only at /input),
    output-checkpoint (any user may write; to be mounted at /output-checkpoint) and launcher.env (variables for that
    container). `launcher collect --watch` beside the job stores what it writes. docs/sidecar.md has the whole arrangement for
    Kubernetes and Docker.

    \b
    Examples:
      launcher prepare --into /volume --name ft_01 -C mistral_tiny_base
      launcher prepare --into /volume --name ft_01 -C mistral_tiny_base -D medical=train
      launcher prepare --into /volume -C hf://org/model@main=model --only inference
    """
    from launcher import names, volume
    from launcher.errors import UsageError
    from launcher.job import spec as specs
    from launcher.runners.signals import catching

    if not into:
        raise UsageError(what="--into is empty.")
    with catching() as signals:
        settings, environ = current(ctx)
        spec = specs.load(
            flags | {"name": name, "runner": "sidecar"},
            file=job_file,
            environ=environ,
            defaults={"name": names.clean(os.uname().nodename or "job")},
        )
        shared = settings.cache_dir if environ.get("LAUNCHER_CACHE_DIR") else ""
        volume.fill(spec, settings, environ, signals, Path(os.path.abspath(into)), cache=shared)
