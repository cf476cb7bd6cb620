"""`launcher checkpoint list | inspect`: what is in the store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.context import json_option, open_store, print_json, print_table

if TYPE_CHECKING:
    from launcher.checkpoint.manifest import Manifest
    from launcher.store.store import Checkpoint
    from launcher.store.summary import Summary
    from launcher.store.tags import Move

_PROVIDERS = {
    "s3a": "s3",
    "gs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "hf": "huggingface",
    "https": "http",
}
"""A URL's scheme to the provider of `launcher storage create`, where they differ."""
_ON_TERMINAL = 100
"""Checkpoints that a person is shown at a time."""


@click.command("list")
@click.option("--name", "pattern", metavar="GLOB", help="Only names like this: 'ft_*' (* takes slashes too).")
@click.option(
    "--job", metavar="NAME", shell_complete=completing.jobs_of_store, help="Only what jobs of this name wrote."
)
@click.option("--ready", type=click.Choice(["inference", "resume"]), help="Only what can start this.")
@click.option("--since", metavar="TIME", help="Only what was made in the last 90m, 7d …, or since 2026-11-30.")
@click.option(
    "--limit", type=click.IntRange(0), metavar="N", help=f"Only the N newest; 0: all. [{_ON_TERMINAL} on a terminal]"
)
@json_option
@click.pass_context
def list_checkpoints(
    ctx: click.Context,
    pattern: str | None,
    job: str | None,
    ready: str | None,
    since: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Lists the checkpoints of the store, oldest first. `ls` is the same.

    With --json each has what `inspect --json` says of its name, job, format, size, step and readiness.

    \b
    Examples:
      launcher checkpoint list
      launcher checkpoint list --name 'ft_*' --ready inference --limit 10
      launcher checkpoint list --job ft_01 --since 7d --json
    """
    import gc

    from launcher.store import catalog, protection

    gc.disable()  # 100,000 rows are no garbage, and it takes longer to look at them again and again than to make them.
    store = open_store(ctx)
    lines = catalog.refresh(store)
    if limit is None and sys.stdout.isatty() and not as_json:
        limit = _ON_TERMINAL
    tests = list(_tests(pattern, job, ready, since))
    found = lines.summaries(None if tests else limit or None)
    for test in tests:
        found = list(filter(test, found))
    count = len(found) if tests else len(lines.lines)
    found = found[-limit:] if limit else found
    pinned = protection.pinned(store)
    if as_json:
        print_json([_document(each, pinned) for each in found])
        return
    columns = ["NAME", "VERSION", "ID", "STEP", "FORMAT", "SIZE", "CREATED", "PINNED"]
    print_table(columns, _rows(found, pinned), empty="No checkpoint is like that." if tests else "The store is empty.")
    if len(found) < count:
        click.echo(f"These are the newest {len(found)} of {count}: --limit 0 shows all.", err=True)


def _tests(
    pattern: str | None, job: str | None, ready: str | None, since: str | None
) -> Iterable[Callable[[Summary], bool]]:
    if pattern:
        import fnmatch
        import re

        like = re.compile(fnmatch.translate(pattern)).match
        yield lambda each: bool(like(each.name))
    if job:
        yield lambda each: each.job == job
    if ready:
        yield lambda each: each.inference if ready == "inference" else each.resume
    if since:
        first = _moment(since)
        yield lambda each: each.created >= first


def _moment(text: str) -> float:
    """Unix seconds of a date or time (of this machine's zone, where it names none), or of so long ago."""
    import time

    from launcher.errors import UsageError
    from launcher.job import logs

    try:
        return logs.moment(text, time.time())
    except ValueError as error:
        raise UsageError(
            what=f"--since: {text!r} is no time.", hint="Write 90m, 12h or 7d, or a date such as 2026-11-30."
        ) from error


def _rows(found: Collection[Summary], pinned: Collection[str]) -> list[list[str]]:
    import time

    from launcher.text import ago, size

    now = time.time()
    return [
        [
            each.name,
            f"v{each.version}" if each.version else "-",
            each.id,
            "-" if each.step is None else str(each.step),
            each.format,
            size(each.size),
            ago(each.created, now),
            "yes" if each.id in pinned else "",
        ]
        for each in found
    ]


def _document(each: Summary, pinned: Collection[str]) -> dict[str, Any]:
    """Of `as_document`, what the catalog knows."""
    return {
        "kind": "checkpoint",
        "metadata": {
            "name": each.name,
            "id": each.id,
            "version": each.version,
            "created": each.created,
            "pinned": each.id in pinned,
        },
        "spec": {"origin": {"name": each.job} if each.job else None},
        "status": {
            "status": "available",
            "format": each.format,
            "size": each.size,
            "metadata": {"step": each.step, "inferenceReady": each.inference},
            "ready": {"resume": each.resume, "inference": each.inference},
        },
    }


@click.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@json_option
@click.pass_context
def inspect(ctx: click.Context, ref: str, as_json: bool) -> None:
    """Shows a checkpoint's manifest: files, facts, lineage. REF: NAME, NAME@vN, NAME@TAG, UUID or its beginning, job:JOB.

    \b
    Examples:
      launcher checkpoint inspect ft_01
      launcher checkpoint inspect ft_01 --json | jq .status.metadata.evalLoss
      launcher checkpoint inspect ft_01 >/dev/null && echo "it is there"
    """
    from launcher.store import protection, tags

    store = open_store(ctx)
    found = store.resolve(ref)
    document = as_document(found, protection.pinned(store), tags.every(store, found.manifest.name))
    if as_json:
        print_json(document)
        return
    import yaml

    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


def as_document(
    checkpoint: Checkpoint, pinned: Collection[str] | None = None, tags: Iterable[Move] = ()
) -> dict[str, Any]:
    """A checkpoint as JSON and YAML show it: FlexAI's kind, metadata, spec and status, with our manifest's fields
    (docs/checkpoints.md). `pinned`: ids of the pinned ones, where they were asked for; `tags`: of its name, likewise."""
    import msgspec

    manifest, facts = checkpoint.manifest, checkpoint.manifest.facts
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    asked: dict[str, Any] = {}
    if pinned is not None:
        asked = {"pinned": manifest.id in pinned, "tags": [each.tag for each in tags if each.checkpoint == manifest.id]}
    return {
        "kind": "checkpoint",
        "metadata": {
            "name": manifest.name,
            "id": manifest.id,
            "version": checkpoint.version,
            "created": manifest.created,
            **asked,
        },
        "spec": {
            **_source(manifest),
            "origin": plain.get("origin"),
            "lineage": plain.get("lineage", {}),
        },
        "status": {
            "status": "available",
            "format": manifest.format,
            "size": manifest.size,
            "metadata": {
                "name": manifest.origin.path if manifest.origin else manifest.name,
                "node": manifest.origin.node if manifest.origin else None,
                "step": facts.step,
                "trainLoss": facts.train_loss,
                "evalLoss": facts.eval_loss,
                "model": facts.architecture,
                "version": facts.library_version,
                "inferenceReady": manifest.ready.inference,
            },
            "facts": {key: value for key, value in msgspec.structs.asdict(facts).items() if value is not None},
            "ready": msgspec.structs.asdict(manifest.ready),
            "safety": {"findings": manifest.safety, "imports": manifest.imports},
            "files": plain["files"],
        },
    }


def _source(manifest: Manifest) -> dict[str, Any]:
    """Where it was pushed from, in FlexAI's words: local files, or a kind of storage and a path in it."""
    found: dict[str, Any] = {"fromLocalFiles": [], "storageProvider": None, "sourcePath": None}
    for source in () if manifest.origin else manifest.lineage.sources:
        scheme, separator, path = source.partition("://")
        if separator:
            found |= {"storageProvider": _PROVIDERS.get(scheme, scheme), "sourcePath": path}
        else:
            found["fromLocalFiles"].append(source)
    return found
