"""`launcher cache …`: the checkpoints and environments that this machine keeps for its jobs."""

from __future__ import annotations

import click

from launcher.cli.context import current, json_option, print_json, print_table


@click.group("cache")
def group() -> None:
    """List, prune and verify the node cache: downloaded checkpoints and installed packages, shared by this machine's jobs."""


@group.command("list")
@json_option
@click.pass_context
def list_entries(ctx: click.Context, as_json: bool) -> None:
    """Lists what is in the cache, the least recently used first: that goes first when room is needed.

    \b
    Example:
      launcher cache list
    """
    from launcher.inputs.cache import NodeCache
    from launcher.text import ago, size

    found = NodeCache.open(current(ctx)[0]).entries()
    if as_json:
        print_json([_document(each) for each in found])
        return
    rows = [
        [
            each.about.name,
            each.about.kind,
            each.id,
            size(each.about.size),
            str(len(each.about.files)),
            ago(each.used),
            "yes" if each.held else "kept" if each.kept else "no",
        ]
        for each in found
    ]
    print_table(["NAME", "KIND", "ID", "SIZE", "FILES", "USED", "IN USE"], rows, empty="The cache is empty.")


@group.command()
@click.option("--limit", metavar="SIZE|SHARE", help="Down to this size, or share of the file system. [the setting]")
@click.option("--all", "everything", is_flag=True, help="Everything that no running job uses.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@click.pass_context
def prune(ctx: click.Context, limit: str | None, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Removes the least recently used entries until the cache is under its limit; never what a running job uses.

    \b
    Examples:
      launcher cache prune --limit 200GiB
      launcher cache prune --all --dry-run
    """
    from launcher.errors import UsageError
    from launcher.inputs.cache import NodeCache
    from launcher.settings import parse_share
    from launcher.text import size

    settings, _ = current(ctx)
    try:
        wanted = 0 if everything else parse_share(limit or settings.cache_limit)
    except ValueError as error:
        raise UsageError(what=f"--limit: {error}.") from error
    gone = NodeCache.open(settings).prune(wanted, dry_run=dry_run, kept=everything)
    if as_json:
        print_json([_document(each) for each in gone])
        return
    for each in gone:
        click.echo(f"{each.about.name} ({each.id}): {size(each.about.size)}")
    total = size(sum(each.about.size for each in gone))
    environments = sum(each.about.kind == "environment" for each in gone)
    what = f"{len(gone) - environments} checkpoint(s)" + (f" and {environments} environment(s)" if environments else "")
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {what}, {total}.")


@group.command()
@json_option
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Reads every byte of the cache; an entry that is not what was downloaded is removed. Exit code 65 if one was.

    \b
    Example:
      launcher cache verify
    """
    from launcher.inputs.cache import NodeCache

    cache = NodeCache.open(current(ctx)[0])
    found = [(each, cache.damage(each)) for each in cache.entries()]
    for each, reasons in found:
        if reasons:
            cache.drop(each.id)
    if as_json:
        print_json([_document(each) | {"damage": reasons} for each, reasons in found])
    else:
        for each, reasons in found:
            click.echo(f"{each.about.name} ({each.id}): {'; '.join(reasons) + ': removed' if reasons else 'whole'}")
    ctx.exit(65 if any(reasons for _, reasons in found) else 0)


def _document(cached: object) -> dict[str, object]:
    from launcher.inputs.entries import Cached

    assert isinstance(cached, Cached)
    return {
        "id": cached.id,
        "kind": cached.about.kind,
        "name": cached.about.name,
        "source": cached.about.source,
        "size": cached.about.size,
        "files": len(cached.about.files),
        "used": cached.used,
        "held": cached.held,
        "kept_until": cached.kept,
    }
