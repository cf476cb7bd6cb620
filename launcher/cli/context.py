"""What every command needs: settings, environment, store, and tables for people."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from launcher import secrets, settings
from launcher.errors import UsageError
from launcher.events import Console, Redactor
from launcher.settings import Settings
from launcher.text import printable

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
    found = current(ctx)[0]
    return Console(form=found.log_format, redactor=redactor(ctx), verbose=found.verbose)


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
    """One JSON document on stdout, in UTF-8 whatever the locale."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Aligned columns; on a terminal that is too narrow for them a block for each row. No word is ever cut or broken."""
    if not rows:
        click.echo(empty, err=True)
        return
    text = "".join(map("".join, rows))
    cells = rows if text.isprintable() else [[printable(cell) for cell in row] for row in rows]
    length_of = len if text.isascii() else _width
    lengths = [max(map(length_of, column)) for column in zip(columns, *cells)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    if width and sum(lengths) + 2 * (len(lengths) - 1) > width:
        click.echo("\n".join(part for row in cells for part in _block(columns, row, width)))
        return

    def wide(*row: str) -> str:
        return "  ".join(cell + " " * (length - _width(cell)) for cell, length in zip(row, lengths))

    line = "  ".join(f"{{:<{length}}}" for length in lengths).format if text.isascii() else wide  # One of 100,000.
    click.echo("\n".join([click.style(line(*columns).rstrip(), bold=True), *(line(*row).rstrip() for row in cells)]))


def _width(text: str) -> int:
    """The columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _block(columns: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """A row for a narrow terminal: its first cell, then what else it has, as much on a line as there is room for."""
    lines = [row[0]]
    for column, cell in zip(columns[1:], row[1:]):
        part = f" {column} {cell}"
        if not cell:
            continue
        if len(lines) > 1 and _width(lines[-1] + " " + part) <= width:
            lines[-1] += " " + part
        else:
            lines += textwrap.wrap(part, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines


def seconds_of(flag: str, text: str) -> float:
    """What a flag for a span of time says. Raises UsageError."""
    from launcher.settings import parse_seconds

    try:
        return parse_seconds(text)
    except ValueError as error:
        raise UsageError(what=f"{flag}: {error}.") from error


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
