"""`launcher config`, `help` and `completion`."""

from __future__ import annotations

import shutil

import click

from launcher.cli.context import json_option, print_json, print_table

_BEFORE = "The exit code is the job's own (128+n where signal n ended it). launcher's own failures:"
_AFTER = (
    "64-78 can be a job's own code too: `origin` in the job's result.json tells whose it is. It also has the class of a"
    " failure, the rank that failed first and its traceback; `launcher training inspect NAME` shows them. 130: Ctrl-C; 141:"
    " nobody read the output any more."
)


@click.group("config")
def group() -> None:
    """Show the settings in force and where each came from."""


@group.command()
@json_option
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Lists every setting, its value, and where it came from: a flag, a variable, a file, or the default.

    \b
    Example:
      launcher config show
    """
    import msgspec

    from launcher import settings

    found, origins = settings.load(ctx.find_root().obj)
    values = msgspec.to_builtins(found)
    if as_json:
        print_json({key: {"value": value, "origin": origins.get(key, "default")} for key, value in values.items()})
        return
    rows = [[key, str(value), origins.get(key, "default"), f"LAUNCHER_{key.upper()}"] for key, value in values.items()]
    print_table(["SETTING", "VALUE", "ORIGIN", "VARIABLE"], rows, empty="")


@click.command("help")
@click.argument("topic", type=click.Choice(["exit-codes"]))
def help_topics(topic: str) -> None:
    """Explains a topic: exit-codes.

    \b
    Example:
      launcher help exit-codes
    """
    from launcher.errors import tree

    rows = [
        [str(error.exit_code), error.kind, "yes" if error.retryable else "no", _first(error.__doc__)]
        for error in tree()
    ]
    width = shutil.get_terminal_size().columns
    click.echo(click.wrap_text(_BEFORE, width) + "\n")
    print_table(["CODE", "KIND", "RETRY", "MEANING"], sorted(rows, key=lambda row: (int(row[0]), row[1])), empty="")
    click.echo("\n" + click.wrap_text(_AFTER, width))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Prints the completion script of a shell. It offers commands, flags, and the names of what is known here, without asking
    any store: checkpoints are those of the last `checkpoint list`.

    \b
    Examples:
      eval "$(launcher completion bash)"                   in ~/.bashrc; for zsh likewise, in ~/.zshrc after compinit
      launcher completion fish > ~/.config/fish/completions/launcher.fish
    """
    from click.shell_completion import get_completion_class

    from launcher.cli import cli, completing

    found = get_completion_class(shell)
    assert found
    maker = found(cli, {}, "launcher", "_LAUNCHER_COMPLETE")
    click.echo(completing.BASH % maker.source_vars() if shell == "bash" else maker.source())


def _first(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".")
