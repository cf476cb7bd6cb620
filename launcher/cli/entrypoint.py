"""`launcher entrypoint`: PID 1 of an image."""

from __future__ import annotations

import os
from typing import Any

import click

from launcher.cli.context import current, leave
from launcher.cli.training import job_options
from launcher.errors import UsageError


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
    LAUNCHER_STORE, LAUNCHER_DEVICE=cpu, LAUNCHER_GRACE, LAUNCHER_SECRET (HF_TOKEN=file:/run/secrets/hf, …). A container without
    accelerator fails unless the device is cpu.

    Where nothing asks for input or collection, and always with LAUNCHER_STORE=none, it is a plain init, as small as one:
    docs/entrypoint.md has the rule.

    \b
    In a Dockerfile:
      ENTRYPOINT ["env", "--block-signal=TERM,INT,HUP", "launcher", "entrypoint", "--"]
      CMD ["train.py", "--epochs", "3"]
    By hand, as a plain init:
      launcher entrypoint --rewrite TERM:INT -- sh -c 'my-server & exec my-training'
    """
    from launcher import main_job, names, report
    from launcher.job import spec as specs
    from launcher.runners.signals import catching

    with catching() as signals:
        settings, environ = current(ctx)
        with report.early(settings, environ):
            spec = specs.load(
                specs.typed(flags, environ) | {"name": name, "runner": "entrypoint", "command": words},
                file=job_file,
                environ=environ,
                defaults={"name": names.clean(os.uname().nodename or "job")},
            )
            if "none" in (environ.get("LAUNCHER_STORE"), ctx.find_root().obj["store"]):
                raise UsageError(
                    what="Without a store (none), the command runs under a plain init, which takes --grace, --rewrite and"
                    " --single-child, and a command after --; no inputs and no secrets.",
                    hint="Example: LAUNCHER_STORE=none launcher entrypoint --rewrite TERM:INT -- my-program",
                )
            signals.drop(spec.dropped())
            leave(main_job.run(spec, settings, environ, signals).code)
