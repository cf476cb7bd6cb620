"""`launcher checkpoint delete | pin | unpin | prune | gc | check`: what stays in the store, and is it sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.context import confirm, current, json_option, open_store, print_json, print_table, seconds_of

if TYPE_CHECKING:
    from launcher.store.datasets import Datasets
    from launcher.store.reading import Checkpoint

_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("refs", nargs=-1, required=True, metavar="REF…", shell_complete=completing.checkpoints)
@click.option("--force", is_flag=True, help="Also what is pinned, or what something was made from.")
@_yes
@json_option
@click.pass_context
def delete(ctx: click.Context, refs: tuple[str, ...], force: bool, yes: bool, as_json: bool) -> None:
    """Removes checkpoints from the store. Their version numbers are never given again.

    \b
    Examples:
      launcher checkpoint delete ft_01/checkpoint-500@v1
      launcher checkpoint delete 0199c2f4 job:ft_02 --yes
    """
    from launcher.errors import UsageError
    from launcher.store import catalog, protection, removal
    from launcher.text import size

    store = open_store(ctx)
    found = list({each.manifest.id: each for each in map(store.resolve, refs)}.values())
    doomed = {each.manifest.id for each in found}
    others = [each for each in catalog.refresh(store).summaries() if each.id not in doomed]
    reasons = protection.reasons(store, others)
    held = [f"{each.label}: {', '.join(reasons[each.manifest.id])}" for each in found if each.manifest.id in reasons]
    if held and not force:
        raise UsageError(what="Not deleted. " + "; ".join(held) + ".", hint="Delete all the same with --force.")
    total = size(sum(each.manifest.size for each in found))
    labels = ", ".join(f"{each.label} ({each.manifest.id})" for each in found)
    confirm(f"Delete {labels}, {total}?", yes=yes)
    for each in found:
        removal.delete(store, each)
        if not as_json:
            click.echo(f"Deleted {each.label}.")
    if as_json:
        print_json({"deleted": [_short(each) for each in found]})


@click.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@click.option("--note", default="", metavar="TEXT", help="Why it has to stay.")
@json_option
@click.pass_context
def pin(ctx: click.Context, ref: str, note: str, as_json: bool) -> None:
    """Keeps a checkpoint from every --keep rule, until it is unpinned.

    \b
    Example:
      launcher checkpoint pin ft_01/checkpoint-500 --note "in the paper"
    """
    from launcher.store import protection

    store = open_store(ctx)
    found = store.resolve(ref)
    protection.pin(store, found, note)
    _say(f"Pinned {found.label} ({found.manifest.id}).", {"pinned": _short(found)}, as_json)


@click.command()
@click.argument("ref", shell_complete=completing.checkpoints)
@json_option
@click.pass_context
def unpin(ctx: click.Context, ref: str, as_json: bool) -> None:
    """Lets --keep rules decide about a checkpoint again.

    \b
    Example:
      launcher checkpoint unpin ft_01/checkpoint-500
    """
    from launcher.store import protection

    store = open_store(ctx)
    found = store.resolve(ref)
    protection.unpin(store, found)
    _say(f"Unpinned {found.label} ({found.manifest.id}).", {"unpinned": _short(found)}, as_json)


@click.command()
@click.option(
    "--job",
    required=True,
    metavar="NAME",
    shell_complete=completing.jobs_of_store,
    help="Of all jobs that had this name.",
)
@click.option("--keep", "rules", required=True, metavar="RULES", help="last=N,every=STEPS,best=METRIC:min|max,days=N")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and why the rest stays.")
@_yes
@json_option
@click.pass_context
def prune(ctx: click.Context, job: str, rules: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Deletes what the rules do not keep of a job's checkpoints. A checkpoint stays when any rule keeps it.

    Always kept: the newest, the one that the trainer calls its best, the job's own result (its root checkpoint), what is
    pinned, and what a job was started from or another checkpoint was made from.

    \b
    Examples:
      launcher checkpoint prune --job ft_01 --keep last=3,every=500 --dry-run
      launcher checkpoint prune --job ft_01 --keep best=eval_loss:min,days=30 --yes
    """
    from launcher.errors import UsageError
    from launcher.job import keep
    from launcher.job.folder import JobFolder
    from launcher.store import retention

    try:
        parsed = keep.parse(rules)
    except ValueError as error:
        raise UsageError(what="--keep: " + "; ".join(str(error).splitlines()) + ".") from error
    store = open_store(ctx)
    verdicts = retention.plan(store, job, parsed)
    doomed = [each.checkpoint for each in verdicts if not each.keep]
    if not verdicts:
        JobFolder.find(current(ctx)[0].data_dir, job)  # One that has written nothing yet, or nobody knows it.
    if not as_json:
        rows = [[each.checkpoint.label, each.checkpoint.manifest.id, ", ".join(each.keep) or "-"] for each in verdicts]
        print_table(["NAME", "ID", "KEPT BECAUSE"], rows, empty=f"Job {job} has no checkpoint in the store.")
    if doomed and not dry_run:
        confirm(f"Delete {len(doomed)} of {len(verdicts)} checkpoint(s)?", yes=yes)
        doomed = retention.apply(store, job, parsed)
    if as_json:
        kept = [_short(each.checkpoint) | {"because": list(each.keep)} for each in verdicts if each.keep]
        print_json({"dry_run": dry_run, "deleted": [_short(each) for each in doomed], "kept": kept})
    elif doomed:
        click.echo(f"{'Would delete' if dry_run else 'Deleted'} {len(doomed)} checkpoint(s), {_total(doomed)}.")
    else:
        click.echo("Nothing to delete.")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what is left over.")
@click.option("--older", default="7d", metavar="TIME", help="Only what was left longer ago than any upload takes. [7d]")
@json_option
@click.pass_context
def gc(ctx: click.Context, dry_run: bool, older: str, as_json: bool) -> None:
    """Removes what crashes left, of datasets too: files that were never committed, deletes that were cut off, temporary files.

    Ages are by the store's clock. It may run at any time beside jobs: an upload that it takes for dead starts over.

    \b
    Examples:
      launcher checkpoint gc --dry-run
      launcher checkpoint gc --older 2d
    """
    from launcher.store import gc as collecting
    from launcher.text import ago, size

    seconds = seconds_of("--older", older)
    found = collecting.whole(open_store(ctx), _datasets(ctx), older=seconds, dry_run=dry_run)
    if as_json:
        import msgspec

        plain: dict[str, Any] = msgspec.to_builtins(found)
        print_json({"dry_run": dry_run, "bytes": found.size} | plain)
        return
    if found.removed:
        rows = [[each.kind, each.what, str(each.objects), size(each.size), ago(0, each.age)] for each in found.removed]
        print_table(["LEFT BY", "OF", "OBJECTS", "SIZE", "WRITTEN"], rows, empty="")
    verb = "Would clear" if dry_run else "Cleared"
    click.echo(
        f"{verb} {len(found.removed)} leftover(s), {size(found.size)}." if found.removed else "Nothing is left over."
    )
    if found.young:
        click.echo(f"{len(found.young)} younger than {older} may still be in the making, and stay.")
    for note in found.notes:
        click.echo(f"Not seen: {note}")


@click.command()
@click.option("--read-data", is_flag=True, help="Read every byte and compare digests.")
@json_option
@click.pass_context
def check(ctx: click.Context, read_data: bool, as_json: bool) -> None:
    """Checks the whole store, with its datasets: names every object that is damaged, missing, or not of its checkpoint.
    Exit code 65 then.

    \b
    Examples:
      launcher checkpoint check
      launcher checkpoint check --read-data --json
    """
    from launcher.store import check as checking

    found = checking.whole(open_store(ctx), _datasets(ctx), read_data=read_data)
    if as_json:
        import msgspec

        plain: dict[str, Any] = msgspec.to_builtins(found)
        print_json({"sound": not found.damage} | plain)
    else:
        for each in found.damage:
            click.echo(f"{each.key}: {each.cause}")
        for note in found.notes:
            click.echo(f"note: {note}")
        state = f"{len(found.damage)} object(s) are wrong" if found.damage else "sound"
        datasets = f"{found.datasets} dataset(s), " if found.datasets else ""
        click.echo(f"{found.checkpoints} checkpoint(s), {datasets}{found.files} file(s): {state}.")
    ctx.exit(65 if found.damage else 0)


def _datasets(ctx: click.Context) -> Datasets | None:
    """The store's datasets, if one was ever pushed."""
    from launcher.store.datasets import Datasets

    found = Datasets.open(*current(ctx))
    return found if found.made else None


def _short(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {"id": manifest.id, "name": manifest.name, "version": checkpoint.version, "size": manifest.size}


def _total(checkpoints: list[Checkpoint]) -> str:
    from launcher.text import size

    return size(sum(each.manifest.size for each in checkpoints))


def _say(text: str, document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        click.echo(text)
