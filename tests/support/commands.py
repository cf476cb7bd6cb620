"""The tree of commands, for what holds for every one of them."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator

import click

from launcher.cli import cli

Path = tuple[str, ...]


def walk(command: click.Command = cli, path: Path = ("launcher",)) -> Iterator[tuple[Path, click.Command]]:
    """Every command and group that is shown, each with the words that lead to it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found and not found.hidden:
                yield from walk(found, (*path, name))


def leaves() -> dict[str, click.Command]:
    """The commands that do something: words that lead to them, to the command."""
    return {" ".join(path): each for path, each in walk() if not isinstance(each, click.Group)}


def examples(command: click.Command) -> list[str]:
    """The command lines in a command's help: indented, in a paragraph that is written line by line (after \\b); they begin
    with `launcher`, or have it after a variable, `&&` or `$(`."""
    paragraphs = [each for each in inspect.cleandoc(command.help or "").split("\n\n") if each.startswith("\b\n")]
    lines = re.findall(r"^ {2,}(\S.*)$", "\n".join(paragraphs), re.M)
    return [line for line in lines if re.match(r"(.*(&& |\$\(|: )|([A-Z_]+=\S+ )+)?launcher ", line)]


def words(line: str) -> list[str]:
    """What the program gets of such a line."""
    line = [part for part in line.split("&& ") if "launcher " in part][-1]
    if "$(" in line:
        line = line.partition("$(")[2].partition(")")[0]
    found = shlex.split(line, comments=True)
    end = next((at for at, word in enumerate(found) if word in ("|", "||") or word[0:1] == ">"), len(found))
    return found[found.index("launcher") + 1 : end]
