"""What the shell offers after TAB: names of checkpoints, datasets, jobs, secrets and storages, from what lies on this machine.

No store is asked: checkpoints are those of the catalog's copy that the last command left here. Whatever goes wrong, nothing is
offered: an error would be written into the line that somebody is typing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from launcher.settings import Settings
    from launcher.store.reading import Reader

_MOST = 1000
"""Words that a shell is given."""
_NAME = 41
"""Where in a line of the catalog the name begins."""

BASH = """\
%(complete_func)s() {
    # Bash takes : and = for the ends of words, which names hold: the line is taken as it was typed, and what bash thinks is an
    # earlier word is cut off the answers.
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" current="${COMP_WORDS[COMP_CWORD]}" words full known='' type value
    IFS=$' \\t' read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    full="${words[-1]}"
    [[ $current == *[!:=]* ]] || current=''
    [[ $full == *"$current" ]] && known="${full%%"$current"}"
    while IFS=',' read -r type value; do
        case $type in
            dir) COMPREPLY=(); compopt -o dirnames ;;
            file) COMPREPLY=(); compopt -o default ;;
            plain) printf -v value '%%q' "${value#"$known"}"; COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="$line" COMP_CWORD=$((${#words[@]} - 1)) %(complete_var)s=bash_complete "$1")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
"""Click's own function for bash gives it the words as bash divides them."""


def learn(store: Reader, *, new: bool = False) -> None:
    """Brings this machine's copy of the catalog to now, where it has one (or a `new` one): what was just pushed is offered. It is
    no matter where that fails."""
    from launcher.errors import LauncherError
    from launcher.store import catalog

    with contextlib.suppress(LauncherError):
        if new or catalog.is_kept(store):
            catalog.refresh(store)


def checkpoints(ctx: click.Context, param: click.Parameter, incomplete: str) -> Sequence[str | CompletionItem]:
    """References: names, NAME@vN after an `@`, job:JOB, paths."""
    if incomplete.startswith(("/", "./", "../", "~")):
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]
    return _items(ctx, incomplete, lambda settings: _references(settings, incomplete))


def datasets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Datasets of the store, and NAME@vN after an `@`."""
    return _items(ctx, incomplete, lambda settings: _names(_lines(settings, "/datasets"), incomplete))


def jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Jobs of this machine."""
    return _items(ctx, incomplete, _jobs)


def jobs_of_store(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Jobs of this machine, and those that wrote what is in the store."""
    return _items(ctx, incomplete, lambda settings: [*_jobs(settings), *_writers(settings)])


def secrets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Secrets; of K=NAME the part after the first `=`."""
    before = incomplete[: incomplete.find("=") + 1]
    return _items(ctx, incomplete, lambda settings: [before + each for each in _files(settings, "secrets")])


def storages(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Storages."""
    return _items(
        ctx, incomplete, lambda settings: [each.removesuffix(".json") for each in _files(settings, "storages")]
    )


def _items(ctx: click.Context, incomplete: str, words: Callable[[Settings], Iterable[str]]) -> list[str]:
    from launcher import settings

    with contextlib.suppress(Exception):
        found, _ = settings.load({"store": ctx.find_root().params.get("store")})
        return sorted({each for each in words(found) if each.startswith(incomplete)})[:_MOST]
    return []


def _references(settings: Settings, incomplete: str) -> list[str]:
    if "job:".startswith(incomplete[:4]) and len(incomplete) >= 3:
        return [f"job:{each}" for each in [*_jobs(settings), *_writers(settings)]]
    return _names(_lines(settings), incomplete)


def _names(lines: Iterable[bytes], incomplete: str) -> list[str]:
    name, at, _ = incomplete.rpartition("@")
    begin = (name if at else incomplete).encode()
    found = [line for line in lines if line.startswith(begin, _NAME)]
    words = {line[_NAME : line.index(b'"', _NAME)].decode() for line in found}
    if at and name in words:
        exactly = begin + b'",'
        numbers = [line[_NAME + len(exactly) :] for line in found if line.startswith(exactly, _NAME)]
        words |= {f"{name}@v{number.partition(b',')[0].decode()}" for number in numbers}
    return list(words)


def _writers(settings: Settings) -> list[str]:
    found = {line[line.rfind(b'"', 0, -2) + 1 : -2] for line in _lines(settings)}
    return [each.decode() for each in found if each]


def _lines(settings: Settings, below: str = "") -> list[bytes]:
    """Of the catalog of the store, or of the one `below` it: `["<id>","<name>",<version>,…,"<job>"]` each."""
    from launcher.store import catalog
    from launcher.transfer.places import canonical

    return catalog.kept(settings.cache_dir, canonical(settings.store.rstrip("/") + below)).splitlines()


def _jobs(settings: Settings) -> list[str]:
    return _files(settings, "jobs")


def _files(settings: Settings, folder: str) -> list[str]:
    try:
        found = os.listdir(os.path.join(settings.data_dir, folder))
    except FileNotFoundError:
        return []
    return [each.replace("!", "/") for each in found if not each.startswith(".")]
