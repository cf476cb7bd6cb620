"""`launcher checkpoint …`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing, keeping, lineage, listing, tags
from launcher.cli.context import Group, current, json_option, open_store, print_json, seconds_of
from launcher.cli.listing import as_document

if TYPE_CHECKING:
    from launcher.checkpoint.policy import Policy

_PICKLES = "What to do where loading its pickles may run code that no known library writes."


@click.group("checkpoint", cls=Group, aliases={"ls": "list", "pull": "fetch"})
def group() -> None:
    """Push, list, inspect, fetch, export, compare, keep and delete checkpoints."""


for _command in (keeping.delete, keeping.pin, keeping.unpin, keeping.prune, keeping.gc, keeping.check):
    group.add_command(_command)
for _command in (listing.list_checkpoints, listing.inspect, tags.tag, tags.untag, tags.list_tags):
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
@click.argument("name", shell_complete=completing.checkpoints)
@click.option("--file", "path", metavar="SOURCE", help="A folder (its content is taken), a file, an archive, or a URL.")
@click.option(
    "--storage-provider",
    "storage",
    metavar="STORAGE",
    shell_complete=completing.storages,
    help="Take it from this storage …",
)
@click.option("--source-path", metavar="PATH", help="… at this path; on the hub the repository.")
@click.option("--force", is_flag=True, help="Push also what is not whole.")
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="REF",
    shell_complete=completing.checkpoints,
    help="What it was made from. May be repeated.",
)
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
    from launcher.inputs.selection import Selection

    settings, environ = current(ctx)
    source = path or source_path
    if not source or (path and source_path) or (storage and not source_path):
        raise UsageError(
            what="Say once where the checkpoint is: --file SOURCE, or --storage-provider STORAGE --source-path PATH."
        )
    store = open_store(ctx)
    pushed = pushing.push_source(
        store, name, f"storage:{storage}/{source}" if storage else source, settings, environ,
        selection=Selection(include, exclude, only), force=force, emit=console(ctx),
        parents=[store.resolve(each).manifest.id for each in parents], pickles=pickles,
    )  # fmt: skip
    completing.learn(store)
    if as_json:
        print_json(as_document(pushed) | {"repeated": pushed.repeated})
        return
    from launcher.text import size

    did = "Unchanged, and not stored again:" if pushed.repeated else "Pushed"
    click.echo(f"{did} {pushed.label} ({pushed.manifest.id}): {size(pushed.manifest.size)}, {pushed.manifest.format}")


@group.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@click.option("--destination", metavar="DIR", help="A new or empty folder. [./<name>]")
@click.pass_context
def fetch(ctx: click.Context, ref: str, destination: str | None) -> None:
    """Copies a checkpoint to a folder, verified by digest. `pull` is the same.

    \b
    Examples:
      launcher checkpoint fetch ft_01
      launcher checkpoint fetch job:ft_01/checkpoint-500 --destination ./result
    """
    from launcher import push as pushing
    from launcher.cli.context import console

    threads = current(ctx)[0].transfer_threads
    target, found = pushing.fetch(open_store(ctx), ref, destination, threads=threads, emit=console(ctx))
    click.echo(f"Fetched {found.label} to {target}")


@group.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@click.option("--keep", default="1d", show_default=True, metavar="TIME", help="So long it stays, whatever needs room.")
@selection_options
@json_option
@click.pass_context
def path(
    ctx: click.Context,
    ref: str,
    keep: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    only: Any,
    as_json: bool,
) -> None:
    """Prints the folder that holds a checkpoint on this machine, whole and verified; brings it there if need be.

    REF is what `training run --checkpoint` takes: also a URL, an archive or a folder. The folder is read-only and shared with
    jobs. It stays for --keep after each call; then it goes like any other when room is needed.

    \b
    Examples:
      python -c 'import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1])' \\
          "$(launcher checkpoint path ft_01@production --only inference)"
      vllm serve "$(launcher checkpoint path hf://Qwen/Qwen2.5-7B --keep 30d)"
    """
    import time

    from launcher.cli.context import console
    from launcher.inputs import choose
    from launcher.inputs.cache import NodeCache
    from launcher.inputs.selection import Selection

    until = time.time() + seconds_of("--keep", keep)
    settings, environ = current(ctx)
    store, emit = open_store(ctx), console(ctx)
    cache = NodeCache.open(settings, emit)
    provided = choose.bring(ref, store, settings, environ, cache, emit, selection=Selection(include, exclude, only))
    if provided.lease:
        cache.keep(provided.path, until)
        provided.lease.release()
    if as_json:
        identifier = provided.chosen.manifest.id if provided.chosen.manifest else None
        print_json({"path": provided.path, "id": identifier, "kept_until": until if provided.lease else None})
    else:
        click.echo(provided.path)


@group.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@click.option(
    "--storage-provider",
    "storage",
    metavar="STORAGE",
    shell_complete=completing.storages,
    help="Write it to this storage …",
)
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
@click.argument("target", metavar="PATH_OR_REF", shell_complete=completing.checkpoints)
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
