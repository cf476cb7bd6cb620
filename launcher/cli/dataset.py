"""`launcher dataset …`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.context import confirm, console, current, json_option, print_json, print_table

if TYPE_CHECKING:
    from launcher.store.datasets import Datasets
    from launcher.store.journal import Push
    from launcher.store.reading import Checkpoint


@click.group("dataset")
def group() -> None:
    """Push, list, inspect, fetch, verify and delete datasets."""


@group.command()
@click.argument("name")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="SRC[=DEST]",
    help="A file, a folder (its content is taken) or a URL, and its place in the dataset. May be repeated.",
)
@click.option("--storage-provider", "storage", metavar="STORAGE", help="Take it from this storage …")
@click.option("--source-path", metavar="PATH", help="… at this path; on the hub the dataset's repository.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these files of each source. May be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files. May be repeated.")
@json_option
@click.pass_context
def push(
    ctx: click.Context,
    name: str,
    files: tuple[str, ...],
    storage: str | None,
    source_path: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Stores a dataset. The same name again makes its next version, unless nothing has changed.

    Files are stored as they are: an archive stays one, and a link is not followed.

    \b
    Examples:
      launcher dataset push medical --file ./data
      launcher dataset push medical --file train.jsonl --file more/eval.jsonl=eval/first.jsonl --file images=images
      launcher dataset push medical --file s3://bucket/medical --exclude '*.tmp'
      launcher dataset push medical --file hf://datasets/FreedomIntelligence/medical-o1-reasoning-SFT@main
      launcher dataset push medical --storage-provider hub --source-path FreedomIntelligence/medical-o1-reasoning-SFT
    """
    from launcher import dataset
    from launcher.errors import UsageError
    from launcher.inputs.cache import NodeCache
    from launcher.inputs.selection import Selection
    from launcher.store import datasets
    from launcher.text import size

    datasets.check_name(name)
    if "" in files:
        raise UsageError(what="--file is empty.")
    if bool(files) == bool(source_path) or bool(storage) != bool(source_path):
        raise UsageError(
            what="Say once where the data is: --file SRC[=DEST], which may be repeated,"
            " or --storage-provider STORAGE --source-path PATH."
        )
    settings, environ = current(ctx)
    selection, emit = Selection(include, exclude), console(ctx)
    texts = [f"storage:{storage}/{source_path}"] if storage else files
    sources = [dataset.source(each, selection, settings, environ) for each in texts]
    cache = NodeCache.open(settings, emit)
    store = _open(ctx)
    pushed = dataset.push_dataset(store, name, sources, selection, cache, settings, emit)
    completing.learn(store)
    if as_json:
        print_json(_document(pushed) | {"repeated": pushed.repeated})
        return
    did = "Unchanged, and not stored again:" if pushed.repeated else "Pushed"
    count = len(pushed.manifest.files)
    click.echo(f"{did} {pushed.label} ({pushed.manifest.id}): {count} file(s), {size(pushed.manifest.size)}")


@group.command("list")
@json_option
@click.pass_context
def list_datasets(ctx: click.Context, as_json: bool) -> None:
    """Lists every version of every dataset, oldest first, and what this machine is pushing (uploading, or syncing from
    elsewhere) or has begun and not finished (error).

    \b
    Example:
      launcher dataset list
    """
    from launcher.text import ago, size

    store = _open(ctx)
    found = store.checkpoints()
    completing.learn(store, new=True)
    unfinished = _unfinished(ctx, store, found)
    if as_json:
        print_json([*(_document(each) for each in found), *unfinished])
        return
    rows = [
        [
            each.manifest.name,
            f"v{each.version}" if each.version else "-",
            each.manifest.id,
            str(len(each.manifest.files)),
            size(each.manifest.size),
            "available",
            ago(each.manifest.created),
        ]
        for each in found
    ]
    for push in unfinished:
        name, status = push["metadata"]["name"], push["status"]["status"]
        rows.append([name, "-", push["metadata"]["id"], "-", "-", status, "-"])
    print_table(["NAME", "VERSION", "ID", "FILES", "SIZE", "STATUS", "CREATED"], rows, empty="There is no dataset yet.")


@group.command()
@click.argument("ref", shell_complete=completing.datasets)
@json_option
@click.pass_context
def inspect(ctx: click.Context, ref: str, as_json: bool) -> None:
    """Shows a dataset: its files, size and digest. REF: NAME, NAME@vN, UUID or its beginning.

    \b
    Examples:
      launcher dataset inspect medical
      launcher dataset inspect medical@v2 --json
    """
    import msgspec

    from launcher.errors import DatasetNotFound

    store = _open(ctx)
    try:
        found = store.resolve(ref)
    except DatasetNotFound:
        pushes = [each for each in _unfinished(ctx, store, ()) if ref in each["metadata"].values()]
        if not pushes:
            raise
        document = pushes[-1]
    else:
        document = _document(found)
        document["status"]["files"] = msgspec.to_builtins(found.manifest.files)
    if as_json:
        print_json(document)
        return
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # 10,000 files in a tenth of the time.
    click.echo(yaml.dump(document, Dumper=dumper, sort_keys=False, allow_unicode=True), nl=False)


@group.command()
@click.argument("ref", shell_complete=completing.datasets)
@click.option("--destination", metavar="DIR", help="A new or empty folder. [./<name>]")
@click.pass_context
def fetch(ctx: click.Context, ref: str, destination: str | None) -> None:
    """Copies a dataset to a folder, verified by digest.

    \b
    Example:
      launcher dataset fetch medical@v2 --destination ./data
    """
    from launcher import push as pushing

    threads = current(ctx)[0].transfer_threads
    target, found = pushing.fetch(_open(ctx), ref, destination, threads=threads, emit=console(ctx))
    click.echo(f"Fetched {found.label} to {target}")


@group.command()
@click.argument("ref", shell_complete=completing.datasets)
@click.option("--read-data", is_flag=True, help="Read every byte and compare digests.")
@json_option
@click.pass_context
def verify(ctx: click.Context, ref: str, read_data: bool, as_json: bool) -> None:
    """Says whether the store still has all of a dataset: exit code 0 whole, 65 not.

    \b
    Example:
      launcher dataset verify medical --read-data
    """
    from launcher.store import layout
    from launcher.store import tree as trees
    from launcher.text import printable

    store = _open(ctx)
    found = store.resolve(ref)
    prefix = layout.files(found.manifest.id)
    sizes = {entry.key: entry.size for entry in store.listing(prefix)}
    wrong = trees.damage(store, found.manifest, sizes, read_data=read_data)
    reasons = [f"{key.removeprefix(prefix)}: {cause}" for key, cause in wrong.items()]
    if as_json:
        print_json({"name": found.label, "id": found.manifest.id, "whole": not reasons, "reasons": reasons})
    else:
        click.echo(f"{found.label}: {'broken' if reasons else 'whole'} ({len(found.manifest.files)} file(s))")
        for reason in reasons:
            click.echo(f"  {printable(reason)}")
    ctx.exit(65 if reasons else 0)


@group.command()
@click.argument("refs", nargs=-1, required=True, metavar="REF…", shell_complete=completing.datasets)
@click.option("--force", is_flag=True, help="Also what a job was started with.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def delete(ctx: click.Context, refs: tuple[str, ...], force: bool, yes: bool, as_json: bool) -> None:
    """Removes versions of datasets from the store: NAME alone is its newest one, or, where it has none, what a push that was
    cut off has sent. Their numbers are never given again.

    \b
    Examples:
      launcher dataset delete medical@v1
      launcher dataset delete medical --force --yes
    """
    from launcher.errors import DatasetNotFound, UsageError
    from launcher.store import journal, protection, removal
    from launcher.text import size

    store = _open(ctx)
    found: dict[str, Checkpoint] = {}
    pushes: list[Push] = []
    for ref in refs:
        try:
            resolved = store.resolve(ref)
            found[resolved.manifest.id] = resolved
        except DatasetNotFound:
            mine = journal.unfinished(store, current(ctx)[0].data_dir)
            pushes += (cut_off := [each for each in mine if ref == each.words[0] and not each.live])
            if not cut_off:
                raise
    reasons = protection.reasons(store, ())
    held = [
        f"{each.label} was given to {len(jobs)} job(s)"
        for identifier, each in found.items()
        if (jobs := reasons.get(identifier))
    ]
    if held and not force:
        raise UsageError(what=f"Not deleted: {', '.join(held)}.", hint="Delete all the same with --force.")
    labels = [f"{each.label} ({identifier})" for identifier, each in found.items()]
    labels += [f"the unfinished push of {each.words[0]} ({each.id})" for each in pushes]
    confirm(f"Delete {', '.join(labels)}, {size(sum(each.manifest.size for each in found.values()))}?", yes=yes)
    for each in found.values():
        removal.delete(store, each)
    for push in pushes:
        journal.discard(store, push)
    if as_json:
        deleted = [_document(each)["metadata"] for each in found.values()]
        print_json({"deleted": [*deleted, *({"name": each.words[0], "id": each.id} for each in pushes)]})
        return
    for label in labels:
        click.echo(f"Deleted {label}.")


def _open(ctx: click.Context) -> Datasets:
    from launcher.store.datasets import Datasets

    return Datasets.open(*current(ctx))


def _unfinished(ctx: click.Context, store: Datasets, stored: Iterable[Checkpoint]) -> list[dict[str, Any]]:
    """The pushes of this machine that are not over, as documents; of those that were cut off, not what a newer version of the
    same name has made good."""
    from launcher.store import journal

    newest: dict[str, str] = {}
    for each in stored:
        newest[each.manifest.name] = max(each.manifest.id, newest.get(each.manifest.name, ""))
    documents = []
    for push in journal.unfinished(store, current(ctx)[0].data_dir):
        name, *sources, _ = push.words
        if not push.live and newest.get(name, "") >= push.id:
            continue
        status: dict[str, Any] = {"status": "uploading" if all(map(os.path.isabs, sources)) else "syncing"}
        if not push.live:
            status = {"status": "error", "cause": "The push was cut off; the same push again goes on."}
        documents.append(
            {"kind": "dataset", "metadata": {"name": name, "id": push.id, "version": None},
             "spec": {"sources": sources}, "status": status}
        )  # fmt: skip
    return documents


def _document(found: Checkpoint) -> dict[str, Any]:
    """A dataset as JSON and YAML show it: FlexAI's kind, metadata, spec and status."""
    from launcher.store import datasets

    manifest = found.manifest
    return {
        "kind": "dataset",
        "metadata": {
            "name": manifest.name,
            "id": manifest.id,
            "version": found.version,
            "created": manifest.created,
        },
        "spec": {"sources": list(manifest.lineage.sources)},
        "status": {
            "status": "available",
            "size": manifest.size,
            "file_count": len(manifest.files),
            "digest": datasets.content(manifest),
        },
    }
