"""`launcher checkpoint tag | untag | tags`: labels that move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.context import json_option, open_store, print_json, print_table

if TYPE_CHECKING:
    from launcher.store.tags import Move


@click.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@click.argument("tag")
@json_option
@click.pass_context
def tag(ctx: click.Context, ref: str, tag: str, as_json: bool) -> None:
    """Points NAME@TAG to a checkpoint of that name, wherever it pointed before. Retention keeps what a tag points to.

    Of two who move a tag at the same time one wins, and the other is told (exit code 75). Where it pointed is kept:
    `launcher checkpoint tags NAME --history`.

    \b
    Examples:
      launcher checkpoint tag ft_01@v3 production
      launcher checkpoint tag job:ft_02 candidate
      launcher training run ft_03 -C ft_01@production -- train.py
    """
    from launcher.store import tags

    store = open_store(ctx)
    moved, before = tags.move(store, store.resolve(ref), tag)
    if as_json:
        print_json({"tagged": _document(moved), "before": _document(before) if before else None})
    elif before and before.checkpoint == moved.checkpoint:
        click.echo(f"{moved.label} is at {_place(moved)} already.")
    else:
        was = f" (before: {_place(before)})" if before else ""
        click.echo(f"{moved.label} is at {_place(moved)} now{was}.")


@click.command()
@click.argument("label", metavar="NAME@TAG", shell_complete=completing.checkpoints)
@json_option
@click.pass_context
def untag(ctx: click.Context, label: str, as_json: bool) -> None:
    """Takes a tag away. Where it pointed is kept in its history.

    \b
    Example:
      launcher checkpoint untag ft_01@production
    """
    from launcher.errors import UsageError
    from launcher.store import tags

    found = tags.split(label)
    if not found:
        raise UsageError(what=f"{label!r} is no NAME@TAG.", hint="`launcher checkpoint tags` lists them.")
    before = tags.remove(open_store(ctx), *found)
    if as_json:
        print_json({"untagged": _document(before)})
    else:
        click.echo(f"Took {before.label} away; it was at {_place(before)}.")


@click.command("tags")
@click.argument("name", required=False, shell_complete=completing.checkpoints)
@click.option("--history", is_flag=True, help="Every place that they had, the newest last.")
@json_option
@click.pass_context
def list_tags(ctx: click.Context, name: str | None, history: bool, as_json: bool) -> None:
    """Lists the tags, or those of one name, and where each points.

    \b
    Examples:
      launcher checkpoint tags
      launcher checkpoint tags ft_01 --history --json
    """
    from launcher.store import tags
    from launcher.text import ago

    found = tags.every(open_store(ctx), name, history=history)
    if as_json:
        print_json([_document(each) for each in found])
        return
    rows = [
        [each.label, f"v{each.version}" if each.version else "-", each.checkpoint or "-", ago(each.moved)]
        for each in found
    ]
    print_table(["TAG", "VERSION", "ID", "MOVED"], rows, empty="There is no tag.")


def _place(move: Move) -> str:
    return f"v{move.version} ({move.checkpoint})" if move.checkpoint else "nothing"


def _document(move: Move) -> dict[str, Any]:
    return {
        "name": move.name,
        "tag": move.tag,
        "number": move.number,
        "id": move.checkpoint or None,
        "version": move.version,
        "moved": move.moved,
    }
