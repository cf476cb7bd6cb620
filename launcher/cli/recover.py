"""`launcher recover`."""

from __future__ import annotations

import click

from launcher.cli.context import current, open_store


@click.command()
@click.argument("name")
@click.pass_context
def recover(ctx: click.Context, name: str) -> None:
    """Stores what a job left whole on this machine and is not in the store yet. Running it again changes nothing."""
    from launcher.errors import CollectionIncomplete
    from launcher.events import Console
    from launcher.outputs import recovery
    from launcher.text import size

    stored, pending = recovery.recover(name, current(ctx)[0], open_store(ctx), Console())
    click.echo(
        f"Stored {len(stored)} checkpoint(s) of job {name}." if stored else f"Job {name}: everything whole is stored."
    )
    if pending:
        raise CollectionIncomplete(
            count=len(pending),
            job=name,
            size=size(sum(capture.size for capture, _ in pending)),
            cause=pending[0][1],
            where=pending[0][0].root,
        )
