"""`launcher checkpoint log | diff`: where a checkpoint comes from, and how two differ."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.context import json_option, open_store, print_json

if TYPE_CHECKING:
    from launcher.comparison import Changes
    from launcher.store.lineage import Ancestor


@click.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@json_option
@click.pass_context
def log(ctx: click.Context, ref: str, as_json: bool) -> None:
    """Shows what a checkpoint was made from: its inputs, theirs, and the job, code and command that made each.

    \b
    Examples:
      launcher checkpoint log job:ft_02
      launcher checkpoint log ft_02/checkpoint-500@v1 --json
    """
    from launcher.store import lineage

    store = open_store(ctx)
    found = lineage.trace(store, store.resolve(ref))
    if as_json:
        print_json([_document(each) for each in found])
        return
    nodes = {each.id: each for each in found}
    for line in _tree(found[0], nodes, set()):
        click.echo(line)


def _document(each: Ancestor) -> dict[str, Any]:
    import msgspec

    known: dict[str, Any] = {"id": each.id, "state": each.state, "name": each.name or None, "version": each.version}
    known["parents"] = list(each.parents)
    if each.manifest:
        plain = msgspec.to_builtins(each.manifest)
        known |= {"created": each.manifest.created, "format": each.manifest.format, "size": each.manifest.size}
        known |= {"step": each.manifest.facts.step, "origin": plain.get("origin"), "lineage": plain.get("lineage", {})}
    return known


def _tree(each: Ancestor, nodes: dict[str, Ancestor], shown: set[str], first: str = "", rest: str = "") -> list[str]:
    """A checkpoint's lines, then its parents' below: along one line for one parent, as branches for several."""
    if each.id in shown:
        return [f"{first}{_star()} {each.label}  (above)"]
    shown.add(each.id)
    parents = [nodes[parent] for parent in each.parents]
    lines = [f"{first}{_star()} {_head(each)}"]
    bar = "│" if sys.stdout.isatty() else "|"
    lines += [f"{rest}{bar if parents else ' '}   {text}" for text in _details(each)]
    for position, parent in enumerate(parents):
        if len(parents) == 1:
            lines += _tree(parent, nodes, shown, rest, rest)
            continue
        last = position == len(parents) - 1
        corner, line = ("╰─" if last else "├─", "  " if last else "│ ")
        if not sys.stdout.isatty():
            corner, line = ("`-" if last else "|-", "  " if last else "| ")
        lines += _tree(parent, nodes, shown, f"{rest}{corner}", f"{rest}{line}")
    return lines


def _star() -> str:
    return click.style("*", fg="yellow") if sys.stdout.isatty() else "*"


def _head(each: Ancestor) -> str:
    from launcher.text import ago

    words = [each.label] if each.label == each.id else [each.label, each.id]
    if each.state != "available":
        words.append(f"({each.state})")
    if each.manifest:
        step = each.manifest.facts.step
        words += [f"step {step}"] if step is not None else []
        words.append(ago(each.manifest.created))
    return "  ".join(words)


def _details(each: Ancestor) -> list[str]:
    from launcher.text import printable

    if not each.manifest:
        return []
    origin, lineage = each.manifest.origin, each.manifest.lineage
    lines = []
    if origin:
        lines.append(f"job {origin.name} ({origin.job}), attempt {origin.attempt}, folder {origin.path}")
    if lineage.command:
        lines.append(f"command {printable(' '.join(lineage.command))}")
    if lineage.repository or lineage.commit:
        changed = f" with uncommitted changes ({lineage.changes})" if lineage.changes else ""
        code = printable(lineage.repository or "local repository")
        lines.append(f"code {code} at {lineage.commit or 'no commit'}{changed}")
    lines += [f"dataset {each.label} ({each.id})" for each in lineage.datasets]
    verb = "also from" if origin else "pushed from"
    lines += [f"{verb} {printable(source)}" for source in lineage.sources]
    return lines


@click.command()
@click.argument("first", metavar="A", shell_complete=completing.checkpoints)
@click.argument("second", metavar="B", shell_complete=completing.checkpoints)
@json_option
@click.pass_context
def diff(ctx: click.Context, first: str, second: str, as_json: bool) -> None:
    """Shows how B differs from A: settings, files, tensors (names, dtypes, shapes), facts. Each is a REF or a folder.

    No tensor is read. The exit code is 0, whether they differ or not.

    \b
    Examples:
      launcher checkpoint diff ft_01/checkpoint-500 ft_01/checkpoint-1000
      launcher checkpoint diff mistral_tiny_base ./my-model
    """
    from launcher import comparison
    from launcher.text import size

    found = comparison.compare(first, second, open_store(ctx))
    if as_json:
        import msgspec

        print_json({"same": found.same} | msgspec.to_builtins(found))
        return
    click.echo(f"A {found.first}\nB {found.second}")
    if found.same:
        click.echo(f"The same: {found.files.same} file(s).")
    _section("Settings", found.config, str)
    _section("Files", found.files, size)
    _section("Tensors", found.tensors, lambda value: f"{value[0]} {value[1]}")
    _section("Facts", found.facts, str)
    if found.not_compared:
        click.echo(f"Tensors not compared: {', '.join(found.not_compared[:8])}")


def _section(title: str, changes: Changes, show: Any) -> None:
    from launcher.text import printable

    if not (changes.removed or changes.added or changes.changed):
        return
    click.echo(f"{title}: {len(changes.added)} only in B, {len(changes.removed)} only in A, "
               f"{len(changes.changed)} changed, {changes.same} the same")  # fmt: skip
    for sign, group in (("-", changes.removed), ("+", changes.added)):
        for key, value in sorted(group.items()):
            click.echo(f"  {sign} {printable(key)}: {printable(show(value))}")
    for key, (old, new) in sorted(changes.changed.items()):
        click.echo(f"  ~ {printable(key)}: {printable(show(old))} → {printable(show(new))}")
