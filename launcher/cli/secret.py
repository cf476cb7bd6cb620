"""`launcher secret …`: tokens, keys and credential files, kept for this user only."""

from __future__ import annotations

import click

from launcher.cli import completing
from launcher.cli.context import current, json_option, print_json


@click.group("secret")
def group() -> None:
    """Keep tokens, keys and credential files for storages and jobs. No command shows one."""


@group.command()
@click.argument("name")
@click.option(
    "--file", "--from-file", "from_file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
    help="A whole file.",
)  # fmt: skip
@click.option("--from-env", metavar="VARIABLE", help="The value of a variable.")
@click.option("--replace", is_flag=True, help="Also where it exists.")
@click.pass_context
def create(ctx: click.Context, name: str, from_file: str | None, from_env: str | None, replace: bool) -> None:
    """Keeps a secret: from a file, a variable, standard input, or typed twice without being shown.

    \b
    Examples:
      launcher secret create hf-token --from-env HF_TOKEN
      launcher secret create s3-keys --file ~/.aws/credentials
      pass show wandb | launcher secret create wandb
    """
    import sys
    from pathlib import Path

    from launcher import secrets
    from launcher.errors import UsageError
    from launcher.masking import NOT_MASKED, SHORTEST

    settings, environ = current(ctx)
    if from_file and from_env:
        raise UsageError(what="--file and --from-env exclude each other.")
    if from_file:
        value = Path(from_file).read_bytes()
    elif from_env:
        if not environ.get(from_env):
            raise UsageError(what=f"--from-env {from_env}: the variable is not set here.")
        value = environ[from_env].encode()
    elif sys.stdin.isatty():
        value = str(click.prompt("Value", hide_input=True, confirmation_prompt=True)).encode()
    else:
        value = sys.stdin.buffer.read(secrets.LARGEST + 1)
    secrets.create(settings.data_dir, name, value, replace=replace)
    click.echo(f"Kept the secret {name}.")
    if len(value.strip()) < SHORTEST:
        click.echo(f"launcher: warning: it is shorter than {SHORTEST} bytes: {NOT_MASKED}", err=True)


@group.command("list")
@json_option
@click.pass_context
def list_secrets(ctx: click.Context, as_json: bool) -> None:
    """Lists the names of the secrets.

    \b
    Example:
      launcher secret list
    """
    from launcher import secrets

    found = secrets.every(current(ctx)[0].data_dir)
    if as_json:
        print_json([{"name": name} for name in found])
        return
    for name in found:
        click.echo(name)


@group.command()
@click.argument("name", shell_complete=completing.secrets)
@click.pass_context
def delete(ctx: click.Context, name: str) -> None:
    """Removes a secret.

    \b
    Example:
      launcher secret delete wandb
    """
    from launcher import secrets

    secrets.delete(current(ctx)[0].data_dir, name)
    click.echo(f"Deleted the secret {name}.")
