"""The command line: a door, no logic. Commands are imported when they are used, so that --help and completion are quick."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from launcher import __version__
from launcher.errors import LauncherError, UsageError, of_os

if TYPE_CHECKING:
    from launcher.events import Redactor

_GROUPS = {
    "training": ("launcher.cli.training", "group", "Start training jobs and look at them."),
    "fine-tuning": ("launcher.cli.training", "fine_tuning", "The same, labelled as fine-tuning."),
    "checkpoint": ("launcher.cli.checkpoint", "group", "Push, list, inspect, fetch and verify checkpoints."),
    "cache": ("launcher.cli.cache", "group", "List, prune and verify the checkpoints kept on this machine."),
    "storage": ("launcher.cli.storage", "group", "Name places elsewhere that checkpoints come from and go to."),
    "secret": ("launcher.cli.secret", "group", "Keep the credentials for them."),
    "entrypoint": ("launcher.cli.entrypoint", "entrypoint", "Run a command as a container's ENTRYPOINT."),
    "prepare": ("launcher.cli.prepare", "prepare", "Fill a volume for a container without the launcher."),
    "collect": ("launcher.cli.collect", "collect", "Store what a job writes that somebody else runs."),
    "recover": ("launcher.cli.recover", "recover", "Store what a crashed or cut-off job left whole on disk."),
    "doctor": ("launcher.cli.doctor", "doctor", "Check this machine and the store, and say what to do."),
    "config": ("launcher.cli.config", "group", "Show the settings in force and where each came from."),
    "help": ("launcher.cli.config", "help_topics", "Read about exit codes and errors."),
    "completion": ("launcher.cli.config", "completion", "Print the shell completion script."),
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are called or completed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _GROUPS:
            return None
        module, name, _ = _GROUPS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _GROUPS:
            import difflib

            near = difflib.get_close_matches(args[0], _GROUPS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _GROUPS.items()])


@click.command(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example:  launcher training run ft_01 --checkpoint mistral_tiny_base --accels 2 -- examples/fine_tune.py",
)
@click.version_option(__version__, "--version", prog_name="launcher")
@click.option("--store", metavar="URL", help="Where checkpoints live (variable LAUNCHER_STORE).")
@click.option(
    "--log-format", type=click.Choice(["auto", "plain", "json"]), help="How launcher's own lines look on stderr."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more, and with an error where in the code it came from.")
@click.pass_context
def cli(ctx: click.Context, store: str | None, log_format: str | None, verbose: bool) -> None:
    """Starts a training, fine-tuning or inference job from a checkpoint, and brings every checkpoint it writes back."""
    ctx.obj = {"store": store, "log_format": log_format, "verbose": verbose}


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: runs the command line and exits with a code that means something (launcher help exit-codes)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name that the terminal cannot show is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(words))


def _run(words: list[str]) -> int:
    try:
        code = cli.main(words, prog_name="launcher", standalone_mode=False, color=_colour())
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        return 130
    except KeyboardInterrupt:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.ClickException as error:
        from launcher.cli.mistakes import explained

        return _show(explained(error), words)
    except LauncherError as error:
        return _show(error, words)
    except BrokenPipeError:
        _drop_output()  # `launcher … | head`: no traceback at exit
        return 141
    except OSError as error:
        return _show(of_os(error, _missing_folder()), words)
    except Exception as error:  # A bug of ours must not look like a job's own code 1.
        return _show(LauncherError(what=f"This is a bug, please report it:\n{_trace(error)}"), words)


def _show(error: LauncherError, words: list[str]) -> int:
    """Prints an error: one JSON object where JSON was asked for; where in the code it came from only to who asks for that."""
    from launcher import settings
    from launcher.cli.mistakes import words_before_command
    from launcher.text import printable

    clean = _redactor().text
    text, hint = clean(error.text), clean(error.hint)
    own = words_before_command(words)
    trace = ""
    asked = settings.process_environment().get("LAUNCHER_VERBOSE", "").lower() in ("1", "true")
    if error.__traceback__ and (asked or {"-v", "--verbose"} & set(own)):
        trace = clean(_trace(error))
    with contextlib.suppress(OSError):  # Nobody can be told; the code says it all the same.
        if "--json" in own:
            import json

            detail = {"error": error.kind, "message": text, "hint": hint, "exit_code": error.exit_code}
            click.echo(json.dumps(detail))
            sys.stdout.flush()
        else:
            first, *rest = [printable(line) for line in text.splitlines()] or [""]
            lines = [click.style("launcher: error: ", fg="red") + first, *rest]
            lines += [f"  {printable(line)}" for line in hint.splitlines()]
            click.echo("\n".join(lines), err=True, color=_colour())
        if trace:
            click.echo(trace, err=True)
        return error.exit_code
    _drop_output()
    return error.exit_code


def _trace(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _colour() -> bool | None:
    """click's own rule, colours on a terminal; never where nobody wants them."""
    from launcher import settings

    return None if settings.colours(settings.process_environment()) else False


def _missing_folder() -> str:
    """What a failed call was about, where it is the current folder that was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "The current folder, which was removed (cd to another one)"
    return ""


def _drop_output() -> None:
    """What could not be written is dropped: Python would try again when it ends, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _redactor() -> Redactor:
    from launcher import secrets, settings
    from launcher.events import Redactor

    environ = settings.process_environment()
    try:
        kept = secrets.values(settings.load({}, environ)[0].data_dir)
    except (LauncherError, OSError):  # The settings are what is wrong.
        kept = []
    return Redactor.of_environment(environ, kept)
