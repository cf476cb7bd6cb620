"""What every command needs: settings, environment, store, and tables for people."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from launcher import secrets, settings
from launcher.errors import UsageError
from launcher.events import Console, Redactor
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.store.store import Store


class Group(click.Group):
    """A group some of whose commands have another name too."""

    def __init__(self, *words: Any, aliases: Mapping[str, str], **options: Any) -> None:
        super().__init__(*words, **options)
        self._aliases = aliases

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self._aliases.get(cmd_name, cmd_name))


def current(ctx: click.Context) -> tuple[Settings, dict[str, str]]:
    """The settings in force (the main command's flags included) and the environment."""
    environ = settings.process_environment()
    found, _ = settings.load(ctx.find_root().obj, environ)
    return found, environ


def open_store(ctx: click.Context) -> Store:
    """The store of the settings."""
    from launcher.store.store import Store  # 15 ms, and completion has no use for it.

    return Store.open(*current(ctx))


def console(ctx: click.Context) -> Console:
    """Where a command says what it does, without any secret."""
    return Console(form=current(ctx)[0].log_format, redactor=redactor(ctx))


def redactor(ctx: click.Context) -> Redactor:
    """What takes secrets out of everything that is printed or written."""
    found, environ = current(ctx)
    return Redactor.of_environment(environ, secrets.values(found.data_dir))


def leave(code: int) -> NoReturn:
    """Ends the process with the job's code, and at once: a signal that comes while Python takes itself down would change it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something is destroyed. Raises click.Abort for no, and UsageError where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(what=f"{question} Nobody can answer here.", hint="Add --yes if it is what you mean.")
    click.confirm(question, abort=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """A table on a terminal; aligned plain columns without lines, nothing cut, where the output is piped."""
    if not rows:
        click.echo(empty, err=True)
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    lines = [columns, *rows]
    form = "  ".join(f"{{:<{max(map(len, cells))}}}" for cells in zip(*lines)).format
    click.echo("\n".join([form(*line).rstrip() for line in lines]))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
