"""`launcher entrypoint`: PID 1 of an image."""

from __future__ import annotations

import os
from typing import Any

import click

from launcher.cli.context import current
from launcher.cli.training import job_options


@click.command()
@click.option("--name", metavar="NAME", help="The job's name (LAUNCHER_NAME). [the host's name]")
@job_options
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARGS…]")
@click.pass_context
def entrypoint(
    ctx: click.Context, /, words: tuple[str, ...], name: str | None, job_file: str | None, **flags: Any
) -> int:
    """Runs a command inside a container: provides its input, forwards signals, reaps, stores every checkpoint.

    Everything can be set by variables: LAUNCHER_NAME, LAUNCHER_CHECKPOINT (comma-separated), LAUNCHER_ACCELS,
    LAUNCHER_STORE, LAUNCHER_DEVICE=cpu, LAUNCHER_GRACE. A container without accelerator fails unless the device is cpu.

    \b
    In a Dockerfile:
      ENTRYPOINT ["launcher", "entrypoint", "--"]
      CMD ["train.py", "--epochs", "3"]
    """
    from launcher import main_job, names, report
    from launcher.job import spec as specs
    from launcher.runners.signals import catching

    with catching() as signals:
        settings, environ = current(ctx)
        with report.early(settings, environ):
            flags["env"] = specs.parse_env(flags.pop("env"), environ)
            flags["secret"] = specs.parse_secrets(flags.pop("secret"))
            spec = specs.load(
                flags | {"name": name, "runner": "entrypoint", "command": words},
                file=job_file,
                environ=environ,
                defaults={"name": names.clean(os.uname().nodename or "job")},
            )
            return main_job.run(spec, settings, environ, signals).code
