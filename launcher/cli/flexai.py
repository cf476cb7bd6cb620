"""What FlexAI's command line has and this machine has not: taken with a clear meaning, or refused with a clear message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from launcher.cli.context import console
from launcher.errors import UsageError
from launcher.events import event

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option(
        "-r", "--source-revision", metavar="REV", help="The same as --repository-revision (FlexAI's of 2024)."
    ),
    click.option("-s", "--source-name", metavar="NAME", help="FlexAI's registered sources: use --repository-url."),
    click.option("--runtime", metavar="NAME", help="FlexAI's images: the --image of the docker runner."),
    click.option("--affinity", metavar="K=V", help="FlexAI's clusters: the job runs on this machine."),
]


def foreign_options(command: F) -> F:
    """FlexAI's flags that have another meaning here, or none."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def translated(ctx: click.Context, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags in this program's words, with a warning for each that changes nothing. Raises UsageError."""
    flags = dict(flags)
    source, revision = flags.pop("source_name"), flags.pop("source_revision")
    runtime, affinity = flags.pop("runtime"), flags.pop("affinity")
    if source:
        raise UsageError(
            what=f"--source-name {source}: no sources are registered here.",
            hint="Name the repository itself: --repository-url URL (-u), and its branch, tag or commit by -b.",
        )
    if revision and flags["repository_revision"] not in (None, revision):
        raise UsageError(
            what=f"--source-revision {revision} and --repository-revision {flags['repository_revision']} differ.",
            hint="They mean the same: leave one out.",
        )
    flags["repository_revision"] = flags["repository_revision"] or revision
    if runtime and flags["image"] not in (None, runtime):
        raise UsageError(
            what=f"--runtime {runtime} and --image {flags['image']} differ.", hint="They mean the same: leave one out."
        )
    if runtime and flags["runner"] == "docker":
        flags["image"] = runtime
    elif runtime:
        text = f"--runtime {runtime}: the job runs in this machine's own environment (--runner docker takes it as the image)"
        console(ctx)(event("runtime-unused", text, "warning"))
    if affinity:
        if "=" not in affinity:
            raise UsageError(what=f"--affinity {affinity}: write K=V, such as cluster=ID.")
        console(ctx)(event("affinity-unused", f"--affinity {affinity}: there is this machine alone", "warning"))
    return flags


@click.command("debug-ssh", hidden=True)
@click.argument("name")
@click.pass_context
def debug_ssh(ctx: click.Context, name: str) -> None:
    """Not offered: the job runs on this machine."""
    from launcher.cli.context import current
    from launcher.job.folder import JobFolder
    from launcher.runners.docker import container_name

    folder = JobFolder.find(current(ctx)[0].data_dir, name)
    record = folder.read()
    group = f"launcher {record.spec.kind}"
    hint = f"Its output: {group} logs {name} -f; its folder and processes: {group} inspect {name}"
    if record.spec.runner == "docker":
        hint = f"A shell in its container: docker exec -it {container_name(folder.id)} sh. {hint}"
    raise UsageError(what="debug-ssh is not offered: the job runs on this machine, where you are already.", hint=hint)
