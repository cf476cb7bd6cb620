"""What went wrong, as it is told: on stderr for people, or as one JSON object on stdout where JSON was asked for."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence

import click

from launcher import secrets, settings
from launcher.errors import LauncherError, UsageError, of_os
from launcher.events import Redactor
from launcher.text import printable


def show(error: Exception, words: Sequence[str]) -> int:
    """Tells of whatever ended a command, and returns the exit code. Where in the code it came from is told with --verbose, and
    where it is a bug of ours. What cannot be told (nobody reads it, the disk is full) is left: the code says it all the same."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _said(error.format_message(), err=True)
        return UsageError.exit_code
    known = _known(error, separated="--" in words)
    own = words[: words.index("--")] if "--" in words else words
    environ = settings.process_environment()
    clean = _redactor(environ).text
    text, hint = clean(known.text), clean(known.hint)
    detail = {"error": known.kind, "message": text, "hint": hint, "exit_code": known.exit_code}
    if "--json" not in own or not _said(json.dumps(detail), err=False):
        first, *rest = [printable(line) for line in text.splitlines()] or [""]
        lines = [click.style("launcher: error: ", fg="red") + first, *rest]
        lines += [f"  {printable(line)}" for line in hint.splitlines()]
        _said("\n".join(lines), err=True)
    verbose = {"-v", "--verbose"} & set(own) or environ.get("LAUNCHER_VERBOSE", "").lower() in ("1", "true")
    if verbose or type(known) is LauncherError:
        _said(clean("".join(traceback.format_exception(error))), err=True)
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    return known.exit_code


def drop_output() -> None:
    """What could not be written is dropped: Python would try again when it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(text: str, *, err: bool) -> bool:
    try:
        click.echo(text, err=err, color=None if settings.colours(settings.process_environment()) else False)
        (sys.stderr if err else sys.stdout).flush()
    except OSError:
        if not err:
            drop_output()
        return False
    return True


def _redactor(environ: dict[str, str]) -> Redactor:
    kept: list[str] = []
    with contextlib.suppress(LauncherError, OSError):  # The settings may be what is wrong.
        kept = secrets.values(settings.load({}, environ)[0].data_dir)
    return Redactor.of_environment(environ, kept)


def _known(error: Exception, *, separated: bool) -> LauncherError:
    if isinstance(error, LauncherError):
        return error
    if isinstance(error, click.ClickException):
        return _explained(error, separated)
    if isinstance(error, UnicodeEncodeError):
        return UsageError(what=f"{error.object!r} is not UTF-8, and names, notes and whatever else is kept have to be.")
    if isinstance(error, OSError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return of_os(error, "The current folder, which was removed (cd to another one)")
        return of_os(error)
    return LauncherError(what="This is a bug, please report it.")  # It must not look like a job's own code 1.


def _explained(error: click.ClickException, separated: bool) -> UsageError:
    """The error that says what click found, with the nearest valid word and where to read on."""
    ctx = getattr(error, "ctx", None)
    hint = f"`{ctx.command_path if ctx else 'launcher'} --help` shows what it takes, with examples."
    what = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchOption):
        what = f"No such option {error.option_name!r}.{near(error.option_name, _options(ctx))}"
        if not separated and ctx and any(each.name == "words" for each in ctx.command.params):
            hint = f"The job's own options come after --: {ctx.command_path} … -- SCRIPT.py {error.option_name} …"
    elif isinstance(error, click.BadParameter):
        kind = getattr(error.param, "type", None)
        wrong = re.search(r"'(?P<value>.*)' is not ", what)
        if isinstance(kind, click.Choice) and wrong:
            what += near(wrong["value"].rpartition(": '")[2], map(str, kind.choices))
    return UsageError(what=what, hint=hint)


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


def near(word: str, known: Iterable[str]) -> str:
    """The valid word that was meant, as the end of a message; "" where none is like it."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
