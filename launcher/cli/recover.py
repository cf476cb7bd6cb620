"""`launcher recover`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.context import console, current, json_option, open_store, print_json, redactor

if TYPE_CHECKING:
    from launcher.outputs.recovery import Recovered


@click.command()
@click.argument("name", required=False, shell_complete=completing.jobs)
@click.option("--all", "every", is_flag=True, help="Every job of this machine that left something.")
@json_option
@click.pass_context
def recover(ctx: click.Context, name: str | None, every: bool, as_json: bool) -> int:
    """Stores what a job left whole on this machine and is not in the store yet. Running it again changes nothing.

    NAME is a job's name or id. A job whose folder lies on a shared file system can be recovered from any machine.

    \b
    Examples:
      launcher recover ft_01
      launcher recover --all --json
    """
    from launcher.errors import CollectionIncomplete, UsageError
    from launcher.outputs import recovery
    from launcher.text import size

    if every == bool(name):
        raise UsageError(what="Name one job, or give --all.", hint="launcher training list shows the jobs.")
    settings, store, hidden = current(ctx)[0], open_store(ctx), redactor(ctx)
    if name:
        found = recovery.recover(name, settings, store, console(ctx), hidden)
    else:
        found = recovery.recover_all(settings, store, console(ctx), hidden)
    pending = [(each, capture, cause) for each in found for capture, cause in each.pending]
    if as_json:
        print_json([_document(each) for each in found])
        return CollectionIncomplete.exit_code if pending else 0
    for job in dict.fromkeys(each.job for each in found):
        count = sum(len(each.stored) for each in found if each.job == job)
        click.echo(
            f"Stored {count} checkpoint(s) of job {job}." if count else f"Job {job}: everything whole is stored."
        )
    for each in found:
        if each.running:
            click.echo(f"Job {each.job} ({each.id}) is still running ({each.running}): left alone.")
    if not found:
        click.echo("No job here has left anything.")
    if pending:
        raise CollectionIncomplete(
            count=len(pending),
            job=pending[0][0].job,
            size=size(sum(capture.size for _, capture, _ in pending)),
            cause=pending[0][2],
            where=pending[0][1].root,
        )
    return 0


def _document(recovered: Recovered) -> dict[str, Any]:
    import msgspec

    return {
        "job": recovered.job,
        "id": recovered.id,
        "running": recovered.running,
        "stored": [msgspec.structs.asdict(each) for each in recovered.stored],
        "pending": [
            {"id": capture.id, "name": capture.name, "size": capture.size, "cause": cause}
            for capture, cause in recovered.pending
        ],
    }
