"""The command line: a door, no logic. Commands are imported when they are used, so that --help and completion are quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from launcher import __version__
from launcher.errors import LauncherError

if TYPE_CHECKING:
    from launcher.events import Redactor

_GROUPS = {
    "training": ("launcher.cli.training", "group", "Start training jobs and look at them."),
    "fine-tuning": ("launcher.cli.training", "fine_tuning", "The same, labelled as fine-tuning."),
    "inference": ("launcher.cli.inference", "group", "Serve a checkpoint, and look at what is served."),
    "checkpoint": ("launcher.cli.checkpoint", "group", "Push, list, inspect, fetch and verify checkpoints."),
    "dataset": ("launcher.cli.dataset", "group", "Push, list, inspect, fetch and verify datasets."),
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
@click.pass_context
def cli(ctx: click.Context, store: str | None, log_format: str | None) -> None:
    """Starts a training, fine-tuning or inference job from a checkpoint, and brings every checkpoint it writes back."""
    ctx.obj = {"store": store, "log_format": log_format}


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: runs the command line and exits with a code that means something (launcher help exit-codes)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(words, prog_name="launcher", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        code = 130
    except KeyboardInterrupt:
        code = 130
    except click.ClickException as error:
        error.show()
        code = 64
    except LauncherError as error:
        _show(error, words)
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `launcher … | head`: no traceback at exit
        code = 141
    except Exception:  # A bug of ours must not look like a job's own code 1.
        import traceback

        click.echo(_redactor().text(f"launcher: this is a bug, please report it:\n{traceback.format_exc()}"), err=True)
        code = LauncherError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _show(error: LauncherError, words: list[str]) -> None:
    clean = _redactor().text
    text, hint = clean(error.text), clean(error.hint)
    if "--json" in words:
        import json

        detail = {"error": error.kind, "message": text, "hint": hint, "exit_code": error.exit_code}
        click.echo(json.dumps(detail))
        return
    click.echo(click.style("launcher: error: ", fg="red") + text, err=True)
    if hint:
        click.echo(f"  {hint}", err=True)


def _redactor() -> Redactor:
    from launcher import secrets, settings
    from launcher.events import Redactor

    environ = settings.process_environment()
    try:
        kept = secrets.values(settings.load({}, environ)[0].data_dir)
    except LauncherError:  # The settings are what is wrong.
        kept = []
    return Redactor.of_environment(environ, kept)
