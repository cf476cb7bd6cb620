"""`launcher training retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli import completing
from launcher.cli.context import current, leave

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.job.spec import JobSpec

_HIDDEN = "***"


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.option(
    "-E", "--env", multiple=True, metavar="K=V", help="A variable that the record does not have, or another value."
)
@click.option("--resume", metavar="HOW", help="auto, never, or a checkpoint to go on from. [as it was]")
@click.option("-d", "--detach", is_flag=True, help="Return when the job runs; it goes on without the terminal.")
@click.pass_context
def retry(ctx: click.Context, name: str, env: tuple[str, ...], resume: str | None, detach: bool) -> int:
    """Starts a job again: the next attempt of the same job, from its newest checkpoint, with all that was recorded of it.

    Secrets given by name (--secret) are read again. Values that were hidden when the job was recorded have to be given again.

    \b
    Examples:
      launcher training retry ft_01
      launcher training retry ft_01 --resume never
      launcher training retry ft_01 --env HF_TOKEN
    """
    from launcher.detach import detach as go_on

    background = go_on() if detach else None

    import msgspec

    from launcher import main_job
    from launcher.cli.background import until_up
    from launcher.errors import UsageError
    from launcher.job import spec as specs
    from launcher.job.folder import JobFolder
    from launcher.runners.signals import catching

    with catching() as signals:
        settings, environ = current(ctx)
        folder = JobFolder.find(settings.data_dir, name)
        record = folder.read()
        spec = msgspec.structs.replace(record.spec, env=record.spec.env | specs.parse_env(env, environ))
        if resume:
            spec = msgspec.structs.replace(spec, resume=resume)
        if spec.runner not in ("process", "docker"):
            raise UsageError(
                what=f"Job {record.name} was not started by `training run`.", hint="Start its container again."
            )
        if hidden := list(_hidden(spec)):
            raise UsageError(
                what=f"Secrets are not recorded, so these have to be given again: {', '.join(hidden)}.",
                hint=f"Variables by --env NAME=VALUE; else LAUNCHER_JOB_ID={folder.id} launcher training run {record.name} … "
                "is the same with everything typed again.",
            )
        environ = {key: value for key, value in environ.items() if key != "LAUNCHER_ATTEMPT"}
        environ["LAUNCHER_JOB_ID"] = folder.id
        leave(main_job.run(spec, settings, environ, signals, also=until_up(background, spec)).code)


def _hidden(spec: JobSpec) -> Iterator[str]:
    """What of a recorded job is not what was typed, in words."""
    yield from (f"the variable {key}" for key, value in spec.env.items() if _HIDDEN in value)
    yield from (f"-C {each}" for each in spec.checkpoint if _HIDDEN in each)
    for flag, text in (("--repository-url", spec.repository_url), ("--resume", spec.resume)):
        if _HIDDEN in text:
            yield f"{flag} {text}"
    if any(_HIDDEN in word for word in spec.command):
        yield f"the command ({' '.join(spec.command)})"
