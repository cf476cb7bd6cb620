"""What is wrong with a command line, in the launcher's own words: click finds it, this says it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

import click

from launcher.errors import UsageError


def explained(error: click.ClickException) -> UsageError:
    """The error that says what click found, with the nearest valid word and where to read on."""
    ctx = getattr(error, "ctx", None)
    hint = f"`{ctx.command_path if ctx else 'launcher'} --help` shows what it takes, with examples."
    what = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchOption):
        near = _near(error.option_name, _options(ctx))
        what = f"No such option {error.option_name!r}.{near}"
        if not near and ctx and any(each.name == "words" for each in ctx.command.params):
            hint = f"The job's own options come after --: {ctx.command_path} … -- SCRIPT.py {error.option_name} …"
    elif isinstance(error, click.BadParameter):
        kind = getattr(error.param, "type", None)
        wrong = re.search(r"'(?P<value>.*)' is not ", what)
        if isinstance(kind, click.Choice) and wrong:
            what += _near(wrong["value"].rpartition(": '")[2], map(str, kind.choices))
    return UsageError(what=what, hint=hint)


def words_before_command(words: Sequence[str]) -> list[str]:
    """The launcher's own words: those before the job's command."""
    return list(words[: words.index("--")] if "--" in words else words)


class JobCommand(click.Command):
    """A command that takes a job's command as `words`, after --."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        separated = "--" in args
        rest = super().parse_args(ctx, args)
        words = ctx.params.get("words")
        if words and not separated and not ctx.resilient_parsing:
            raise UsageError(
                what=f"-- is missing before the job's command ({words[0]} …).",
                hint=f"Else its options would be taken for the launcher's: {ctx.command_path} … -- {words[0]} …",
            )
        return rest


def _options(ctx: click.Context | None) -> list[str]:
    found = []
    while ctx:
        found += [name for each in ctx.command.params for name in (*each.opts, *each.secondary_opts) if name[0] == "-"]
        ctx = ctx.parent
    return found


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
