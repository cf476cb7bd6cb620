"""`launcher training list` and `inspect`: the jobs of this machine."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any, get_args

import click

from launcher.cli import completing
from launcher.cli.context import current, json_option, print_json, print_table
from launcher.job.states import State

if TYPE_CHECKING:
    from launcher.job.folder import JobFolder
    from launcher.job.record import JobRecord


@click.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(get_args(State)), help="Only these. May be repeated."
)
@click.option("--name", "pattern", metavar="GLOB", help="Only jobs with such a name: 'ft_*'.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the newest N. [all]")
@json_option
@click.pass_context
def list_jobs(
    ctx: click.Context, states: tuple[str, ...], pattern: str | None, limit: int | None, as_json: bool
) -> None:
    """Lists the jobs of this machine, newest last.

    \b
    Examples:
      launcher training list --limit 10
      launcher training list --state "in progress" --state enqueued
      launcher training list --name 'ft_*' --json
    """
    from launcher.job import listing
    from launcher.job.folder import JobFolder
    from launcher.text import ago

    settings, _ = current(ctx)
    rows = listing.every(settings.data_dir, lambda path, record: JobFolder(path).alive(record))
    if pattern is not None:
        rows = [row for row in rows if fnmatch.fnmatchcase(row.name, pattern)]
    if states:
        rows = [row for row in rows if row.state in states]
    rows = rows[-limit:] if limit else rows
    if as_json:
        print_json(rows)
        return
    cells = [
        [row.name, row.kind, row.state, _code(row.exit_code), str(row.checkpoints), ago(row.created)] for row in rows
    ]
    empty = "No job has run here." if not (states or pattern) else "No job is like that."
    print_table(["NAME", "KIND", "STATE", "EXIT", "CHECKPOINTS", "STARTED"], cells, empty=empty)


def _code(code: int | None) -> str:
    return "-" if code is None else str(code)


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@json_option
@click.pass_context
def inspect(ctx: click.Context, name: str, as_json: bool) -> None:
    """Shows all that is known of a job: its state and every change of it, what was asked for, each attempt and its end.

    \b
    Examples:
      launcher training inspect ft_01
      launcher training inspect ft_01 --json
    """
    import msgspec

    from launcher.job.folder import JobFolder

    folder = JobFolder.find(current(ctx)[0].data_dir, name)
    record = folder.read()
    content = _state(folder, record) | msgspec.to_builtins(record) | {"folder": str(folder.path)}
    if as_json:
        print_json(content)
        return
    import yaml

    click.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)


def _state(folder: JobFolder, record: JobRecord) -> dict[str, Any]:
    from launcher.job.record import state

    now = state(record, folder.alive(record))
    if now != "lost":
        return {"state": now, "reason": record.states[-1].reason if record.states else ""}
    reason = (
        f"Its launcher ({folder.holder()}) is gone. `launcher recover {record.name}` stores what it left, "
        f"`launcher {record.spec.kind} retry {record.name}` goes on."
    )
    return {"state": now, "reason": reason}
