"""`launcher training fetch`: a job's other outputs."""

from __future__ import annotations

import click

from launcher.cli import completing
from launcher.cli.context import console, current, json_option, open_store, print_json


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.option("--destination", metavar="DIR", help="Where output_0.zip goes. [the current folder]")
@json_option
@click.pass_context
def fetch(ctx: click.Context, name: str, destination: str | None, as_json: bool) -> None:
    """Fetches what a job wrote that is no checkpoint, as output_0.zip; the paths in it begin with output/.

    That is what lies below $FLEXAI_OUTPUT_DIR, and what of $FLEXAI_OUTPUT_CHECKPOINT_DIR is no part of a checkpoint. For
    checkpoints: launcher checkpoint fetch.

    \b
    Examples:
      launcher training fetch ft_01
      launcher training fetch ft_01 --destination results
    """
    from launcher import collected
    from launcher.job.folder import JobFolder
    from launcher.text import size

    settings, _ = current(ctx)
    folder = JobFolder.find(settings.data_dir, name)
    found = collected.fetch(open_store(ctx), folder, destination, threads=settings.transfer_threads, emit=console(ctx))
    if as_json:
        print_json({"path": str(found.path), "files": found.files, "size": found.size})
        return
    click.echo(f"Fetched {found.files} file(s) of job {name} ({size(found.size)}) to {found.path}")
