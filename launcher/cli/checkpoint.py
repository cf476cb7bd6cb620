"""`launcher checkpoint …`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import keeping, lineage
from launcher.cli.context import current, json_option, open_store, print_json, print_table

if TYPE_CHECKING:
    from launcher.checkpoint.policy import Policy
    from launcher.store.store import Checkpoint

_PICKLES = "What to do where loading its pickles may run code that no known library writes."


@click.group("checkpoint")
def group() -> None:
    """Push, list, inspect, fetch, export, compare, keep and delete checkpoints."""


for _command in (keeping.delete, keeping.pin, keeping.unpin, keeping.prune, keeping.gc, keeping.check):
    group.add_command(_command)
for _command in (lineage.log, lineage.diff):
    group.add_command(_command)


_SELECTION = [
    click.option("--include", multiple=True, metavar="GLOB", help="Only these files. May be repeated."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files. May be repeated."),
    click.option(
        "--only",
        type=click.Choice(["all", "inference"]),
        default="all",
        help="inference: no optimizer, scheduler, … [all]",
    ),
]


def selection_options(command: Any) -> Any:
    """The flags that choose files of a checkpoint."""
    for option in reversed(_SELECTION):
        command = option(command)
    return command


@group.command()
@click.argument("name")
@click.option("--file", "path", metavar="SOURCE", help="A folder (its content is taken), a file, an archive, or a URL.")
@click.option("--storage-provider", "storage", metavar="STORAGE", help="Take it from this storage …")
@click.option("--source-path", metavar="PATH", help="… at this path; on the hub the repository.")
@click.option("--force", is_flag=True, help="Push also what is not whole.")
@click.option("--parent", "parents", multiple=True, metavar="REF", help="What it was made from. May be repeated.")
@click.option(
    "--pickles", type=click.Choice(["allow", "warn", "deny"]), default="warn", show_default=True, help=_PICKLES
)
@selection_options
@json_option
@click.pass_context
def push(
    ctx: click.Context,
    name: str,
    path: str | None,
    storage: str | None,
    source_path: str | None,
    force: bool,
    parents: tuple[str, ...],
    pickles: Policy,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    only: Any,
    as_json: bool,
) -> None:
    """Stores a checkpoint. The same name again makes its next version, unless nothing has changed.

    \b
    Examples:
      launcher checkpoint push mistral_tiny_base --file ./model
      cd model && launcher checkpoint push mistral_tiny_base --file ./
      launcher checkpoint push merged --file ./merged --parent mistral_tiny_base --parent job:ft_01
      launcher checkpoint push base --file s3://bucket/models/base
      launcher checkpoint push qwen --file hf://Qwen/Qwen2.5-7B@main
      launcher checkpoint push base --file https://example.org/base.tar.zst --only inference
      launcher checkpoint push qwen --storage-provider hub --source-path Qwen/Qwen2.5-7B
    """
    from launcher import push as pushing
    from launcher.cli.context import console
    from launcher.errors import UsageError
    from launcher.inputs import remote
    from launcher.inputs.cache import NodeCache
    from launcher.inputs.selection import Selection

    settings, environ = current(ctx)
    source = path or source_path
    if not source or (path and source_path) or (storage and not source_path):
        raise UsageError(
            what="Say once where the checkpoint is: --file SOURCE, or --storage-provider STORAGE --source-path PATH."
        )
    selection = Selection(include, exclude, only)
    found = remote.of_text(f"storage:{storage}/{source}" if storage else source, selection, settings, environ)
    store, emit = open_store(ctx), console(ctx)
    how: dict[str, Any] = {
        "threads": settings.transfer_threads,
        "force": force,
        "emit": emit,
        "parents": [store.resolve(each).manifest.id for each in parents],
        "pickles": pickles,
        "data_dir": settings.data_dir,
    }
    if found:
        pushed = pushing.push_remote(store, name, found, NodeCache.open(settings, emit), **how)
    else:
        pushed = pushing.push(store, name, remote.local_path(source), selection=selection, **how)
    if as_json:
        print_json(as_document(pushed) | {"repeated": pushed.repeated})
        return
    from launcher.text import size

    did = "Unchanged, and not stored again:" if pushed.repeated else "Pushed"
    click.echo(f"{did} {pushed.label} ({pushed.manifest.id}): {size(pushed.manifest.size)}, {pushed.manifest.format}")


@group.command("list")
@json_option
@click.pass_context
def list_checkpoints(ctx: click.Context, as_json: bool) -> None:
    """Lists every checkpoint of the store, oldest first."""
    from launcher.store import protection
    from launcher.text import ago, size

    store = open_store(ctx)
    found, pinned = store.checkpoints(), protection.pinned(store)
    if as_json:
        print_json([as_document(each, pinned) for each in found])
        return
    rows = [
        [
            each.manifest.name,
            f"v{each.version}" if each.version else "-",
            each.manifest.id,
            "-" if each.manifest.facts.step is None else str(each.manifest.facts.step),
            each.manifest.format,
            size(each.manifest.size),
            ago(each.manifest.created),
            "yes" if each.manifest.id in pinned else "",
        ]
        for each in found
    ]
    print_table(
        ["NAME", "VERSION", "ID", "STEP", "FORMAT", "SIZE", "CREATED", "PINNED"],
        rows,
        empty=f"The store {store.url} is empty.",
    )


@group.command()
@click.argument("ref")
@json_option
@click.pass_context
def inspect(ctx: click.Context, ref: str, as_json: bool) -> None:
    """Shows a checkpoint's manifest: files, facts, lineage. REF: NAME, NAME@vN, UUID or its beginning, job:JOB."""
    from launcher.store import protection

    store = open_store(ctx)
    document = as_document(store.resolve(ref), protection.pinned(store))
    if as_json:
        print_json(document)
        return
    import yaml

    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


@group.command()
@click.argument("ref")
@click.option("--destination", metavar="DIR", help="A new or empty folder. [./<name>]")
@click.pass_context
def fetch(ctx: click.Context, ref: str, destination: str | None) -> None:
    """Copies a checkpoint to a folder, verified by digest."""
    from launcher import push as pushing
    from launcher.cli.context import console

    threads = current(ctx)[0].transfer_threads
    target, found = pushing.fetch(open_store(ctx), ref, destination, threads=threads, emit=console(ctx))
    click.echo(f"Fetched {found.label} to {target}")


@group.command()
@click.argument("ref")
@click.option("--storage-provider", "storage", metavar="STORAGE", help="Write it to this storage …")
@click.option("--destination-path", metavar="PATH", help="… at this path.")
@click.option("--destination", metavar="URL", help="Or to a URL (s3://, gs://, az://) or a folder.")
@selection_options
@click.pass_context
def export(
    ctx: click.Context,
    ref: str,
    storage: str | None,
    destination_path: str | None,
    destination: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    only: Any,
) -> None:
    """Copies a checkpoint to a place elsewhere, as the plain files that it is made of.

    \b
    Examples:
      launcher checkpoint export ft_01@v2 --storage-provider lab --destination-path my-bucket/checkpoints/ft_01/
      launcher checkpoint export ft_01 --destination s3://my-bucket/ft_01 --only inference
    """
    from launcher import export as exporting
    from launcher.cli.context import console
    from launcher.errors import UsageError
    from launcher.inputs.selection import Selection
    from launcher.text import size

    settings, environ = current(ctx)
    if bool(storage and destination_path) == bool(destination) or bool(storage) != bool(destination_path):
        raise UsageError(what="Say where to: --storage-provider STORAGE --destination-path PATH, or --destination URL.")
    text = destination or f"storage:{storage}/{destination_path}"
    place = exporting.target(text, settings, environ)
    selection = Selection(include, exclude, only)
    found, sent = exporting.export(open_store(ctx), ref, place, settings, selection=selection, emit=console(ctx))
    click.echo(f"Exported {found.label} to {place.url}: {size(sent)}")


@group.command()
@click.argument("target", metavar="PATH_OR_REF")
@click.option("--read-data", is_flag=True, help="Of a stored checkpoint, read every byte and compare digests.")
@json_option
@click.pass_context
def verify(ctx: click.Context, target: str, read_data: bool, as_json: bool) -> None:
    """Says whether a checkpoint is whole, and why not: exit code 0 whole, 65 not.

    PATH_OR_REF is a folder, a file, a stored checkpoint (NAME, NAME@vN, UUID, job:JOB) or a URL, of which only headers are
    read. It also shows what the files say about themselves, and which names loading their pickles would import: a finding is
    one that no known library writes. No finding does not mean that it is safe.

    \b
    Examples:
      launcher checkpoint verify ./output/checkpoint-500
      launcher checkpoint verify ft_01 --read-data
      launcher checkpoint verify s3://models/mistral-7b --json
    """
    from launcher import verify as verifying

    settings, environ = current(ctx)
    found = verifying.verify(
        target,
        lambda: open_store(ctx),
        read_data=read_data,
        settings=settings,
        environ=environ,
    )
    if as_json:
        print_json(found)
    else:
        from launcher.text import printable

        click.echo(f"{printable(target)}: {found['verdict']} ({found['format']})")
        for reason in found["reasons"]:
            click.echo(f"  {printable(reason)}")
        for key, value in found["facts"].items():
            click.echo(f"  {key}: {printable(str(value))}")
        for finding in found["safety"]["findings"]:
            click.echo(f"  unsafe to load: {printable(finding)}")
    ctx.exit(0 if found["whole"] else 65)


def as_document(checkpoint: Checkpoint, pinned: Collection[str] | None = None) -> dict[str, Any]:
    """A checkpoint as JSON and YAML show it: FlexAI's kind, metadata, spec and status, with our manifest's fields.
    `pinned`: ids of the pinned ones, where they were asked for."""
    import msgspec

    manifest = checkpoint.manifest
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    facts = msgspec.structs.asdict(manifest.facts)
    return {
        "kind": "checkpoint",
        "metadata": {
            "name": manifest.name,
            "id": manifest.id,
            "version": checkpoint.version,
            "created": manifest.created,
            **({} if pinned is None else {"pinned": manifest.id in pinned}),
        },
        "spec": {"origin": plain.get("origin"), "lineage": plain.get("lineage", {})},
        "status": {
            "status": "available",
            "format": manifest.format,
            "size": manifest.size,
            "facts": {key: value for key, value in facts.items() if value is not None},
            "ready": msgspec.structs.asdict(manifest.ready),
            "safety": {"findings": manifest.safety, "imports": manifest.imports},
            "files": plain["files"],
        },
    }
