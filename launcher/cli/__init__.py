"""The command line: a door, no logic. Commands are imported when they are used, so that --help and completion are quick."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

import click

from launcher import __version__

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

_FOREIGN = {
    "auth": "Nobody signs in: storages have secrets (launcher secret, launcher storage), clouds their usual credentials.",
    "code-registry": "A job names its repository: training run … --repository-url URL [--repository-token-secret NAME].",
    "source": "A job names its repository: training run … --repository-url URL --repository-revision REV.",
}
"""FlexAI's groups of commands that have no counterpart, and what to do instead."""
_CLOSED = 141
"""The exit code where nobody reads the output any more (`launcher … | head`): 128 + SIGPIPE, as other programs have."""


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
            if args[0] in _FOREIGN:
                from launcher.errors import UsageError

                raise UsageError(what=f"There is no {args[0]!r} here.", hint=_FOREIGN[args[0]])
            from launcher.cli.mistakes import near

            ctx.fail(f"No such command {args[0]!r}.{near(args[0], _GROUPS)}")
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
    from launcher import settings  # Not before: --help and completion need none of it.

    if not settings.colours(settings.process_environment()):
        ctx.color = False
    ctx.obj = {"store": store, "log_format": log_format, "verbose": verbose}


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: runs the command line and exits with a code that means something (launcher help exit-codes)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name that the terminal cannot show is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(words: list[str]) -> int:
    output = sys.stdout
    try:
        code = cli.main(words, prog_name="launcher", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        return 130
    except KeyboardInterrupt:
        return 130
    except SystemExit:
        if sys.stdout is output:
            raise
        return _CLOSED  # click noticed, and put a stream there that does not complain; its code, 1, could be a job's.
    except BrokenPipeError:
        from launcher.cli.mistakes import drop_output

        drop_output()
        return _CLOSED
    except Exception as error:
        from launcher.cli.mistakes import show

        return show(error, words)
