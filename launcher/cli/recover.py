"""`launcher recover`."""

from __future__ import annotations

import click

from launcher.cli.context import current, open_store


@click.command()
@click.argument("name")
@click.pass_context
def recover(ctx: click.Context, name: str) -> None:
    """Stores what a job left whole on this machine and is not in the store yet. Running it again changes nothing."""
    from launcher.errors import CollectionIncomplete, UsageError
    from launcher.events import Console
    from launcher.job.folder import JobFolder
    from launcher.outputs import recovery
    from launcher.outputs.watcher import Subject
    from launcher.text import size

    settings, _ = current(ctx)
    folder = JobFolder.find(settings.data_dir, name)
    if not folder.take():
        raise UsageError(what=f"Job {name} is still running.", hint=f"launcher training stop {name}")
    try:
        record = folder.read()
        output = settings.output_dir or str(folder.path / "output-checkpoint")
        spool = folder.path / "spool"
        attempt = record.attempts[-1]
        subject = Subject(
            job=record.name,
            attempt=attempt.number,
            parents=tuple(each.checkpoint for each in attempt.inputs if each.checkpoint),
            command=record.spec.command,
        )
        stored, pending = recovery.recover(
            open_store(ctx),
            spool,
            output,
            folder.id,
            subject,
            committed=set(record.checkpoints),
            threads=settings.transfer_threads,
            pickles=record.spec.pickles,
            emit=Console(),
        )
        record.checkpoints += [each.manifest.id for each in stored]
        folder.write(record)
    finally:
        folder.close()
    click.echo(
        f"Stored {len(stored)} checkpoint(s) of job {name}." if stored else f"Job {name}: everything whole is stored."
    )
    if pending:
        raise CollectionIncomplete(
            count=len(pending),
            job=name,
            size=size(sum(capture.size for capture, _ in pending)),
            cause=pending[0][1],
            where=spool,
        )
