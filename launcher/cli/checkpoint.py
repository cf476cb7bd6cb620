"""`launcher checkpoint …`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli.context import current, json_option, open_store, print_json, print_table

if TYPE_CHECKING:
    from launcher.checkpoint.safety import Policy
    from launcher.store.store import Checkpoint

_PICKLES = "What to do where loading its pickles may run code that no known library writes."


@click.group("checkpoint")
def group() -> None:
    """Push, list, inspect, fetch and verify checkpoints."""


@group.command()
@click.argument("name")
@click.option(
    "--file", "path", required=True, metavar="PATH", help="A folder (its content becomes the checkpoint) or one file."
)
@click.option("--force", is_flag=True, help="Push also what is not whole.")
@click.option(
    "--pickles", type=click.Choice(["allow", "warn", "deny"]), default="warn", show_default=True, help=_PICKLES
)
@json_option
@click.pass_context
def push(ctx: click.Context, name: str, path: str, force: bool, pickles: Policy, as_json: bool) -> None:
    """Stores a folder or file as a checkpoint. The same name again makes its next version.

    \b
    Examples:
      launcher checkpoint push mistral_tiny_base --file ./model
      cd model && launcher checkpoint push mistral_tiny_base --file ./
    """
    from launcher import push as pushing
    from launcher.events import Console

    settings, _ = current(ctx)
    pushed = pushing.push(
        open_store(ctx), name, path, threads=settings.transfer_threads, force=force, emit=Console(), pickles=pickles
    )
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
        timeout=settings.store_timeout,
        threads=settings.transfer_threads,
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
            "safety": {"findings": manifest.safety, "imports": manifest.imports},
            "files": plain["files"],
        },
    }
