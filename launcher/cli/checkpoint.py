"""`launcher checkpoint …`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli.context import current, json_option, open_store, print_json, print_table

if TYPE_CHECKING:
    from launcher.store.store import Checkpoint


@click.group("checkpoint")
def group() -> None:
    """Push, list, inspect, fetch, export and verify checkpoints."""


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
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    only: Any,
    as_json: bool,
) -> None:
    """Stores a checkpoint. The same name again makes its next version.

    \b
    Examples:
      launcher checkpoint push mistral_tiny_base --file ./model
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
    threads = settings.transfer_threads
    if found:
        cache = NodeCache.open(settings, emit)
        pushed = pushing.push_remote(store, name, found, cache, threads=threads, force=force, emit=emit)
    else:
        source = remote.local_path(source)
        pushed = pushing.push(store, name, source, threads=threads, force=force, emit=emit, selection=selection)
    if as_json:
        print_json(as_document(pushed))
    else:
        from launcher.text import size

        click.echo(
            f"Pushed {pushed.label} ({pushed.manifest.id}): {size(pushed.manifest.size)}, {pushed.manifest.format}"
        )


@group.command("list")
@json_option
@click.pass_context
def list_checkpoints(ctx: click.Context, as_json: bool) -> None:
    """Lists every checkpoint of the store, oldest first."""
    from launcher.text import ago, size

    found = open_store(ctx).checkpoints()
    if as_json:
        print_json([as_document(each) for each in found])
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
        ]
        for each in found
    ]
    print_table(["NAME", "VERSION", "ID", "STEP", "FORMAT", "SIZE", "CREATED"], rows, empty="The store is empty.")


@group.command()
@click.argument("ref")
@json_option
@click.pass_context
def inspect(ctx: click.Context, ref: str, as_json: bool) -> None:
    """Shows a checkpoint's manifest: files, facts, lineage. REF: NAME, NAME@vN, UUID or its beginning, job:JOB."""
    document = as_document(open_store(ctx).resolve(ref))
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
    from launcher.events import Console

    settings, _ = current(ctx)
    target, found = pushing.fetch(open_store(ctx), ref, destination, threads=settings.transfer_threads, emit=Console())
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
    """Says whether a folder or a stored checkpoint is whole, and why not: exit code 0 whole, 65 not."""
    from launcher import push as pushing

    found = pushing.verify(target, lambda: open_store(ctx), read_data=read_data)
    if as_json:
        print_json(found)
    else:
        click.echo(f"{target}: {found['verdict']} ({found['format']})")
        for reason in found["reasons"]:
            click.echo(f"  {reason}")
    ctx.exit(0 if found["whole"] else 65)


@group.command()
@click.argument("ref")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, ref: str, yes: bool) -> None:
    """Removes one checkpoint from the store. Its version number is never given again."""
    from launcher.text import size

    store = open_store(ctx)
    found = store.resolve(ref)
    if not yes:
        click.confirm(f"Delete {found.label} ({found.manifest.id}, {size(found.manifest.size)})?", abort=True)
    store.delete(found)
    click.echo(f"Deleted {found.label}.")


def as_document(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON and YAML show it: FlexAI's kind, metadata, spec and status, with our manifest's fields."""
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
        },
        "spec": {"origin": plain.get("origin"), "lineage": plain.get("lineage", {})},
        "status": {
            "status": "available",
            "format": manifest.format,
            "size": manifest.size,
            "facts": {key: value for key, value in facts.items() if value is not None},
            "ready": msgspec.structs.asdict(manifest.ready),
            "files": plain["files"],
        },
    }
