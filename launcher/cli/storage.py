"""`launcher storage …`: named places elsewhere, with the credentials for them."""

from __future__ import annotations

from typing import Any

import click

from launcher.cli import completing
from launcher.cli.context import current, json_option, print_json, print_table


@click.group("storage")
def group() -> None:
    """Name places that checkpoints come from and go to: S3, GCS, Azure, R2, MinIO, the Hugging Face hub, web servers."""


@group.command()
@click.argument("name")
@click.option(
    "--provider",
    required=True,
    type=click.Choice(["s3", "gcs", "azure", "r2", "minio", "huggingface", "http"]),
    help="What kind of place it is.",
)
@click.option("--bucket", default="", metavar="NAME", help="Bucket, or Azure's container. [the path's first part]")
@click.option("--prefix", default="", metavar="PATH", help="Before every path.")
@click.option("--endpoint", default="", metavar="URL", help="Of the service. [the provider's own]")
@click.option("--region", default="", metavar="NAME", help="S3's region.")
@click.option("--account", default="", metavar="NAME", help="Azure's storage account; R2's account id.")
@click.option(
    "--secret",
    "--hf-token-name",
    "secret",
    default="",
    metavar="NAME",
    shell_complete=completing.secrets,
    help="The secret with credentials.",
)
@click.pass_context
def create(ctx: click.Context, /, **fields: Any) -> None:
    """Names a place. Its secret holds, for S3 and its kin, lines aws_access_key_id=… and aws_secret_access_key=…; for GCS a
    service account's JSON; for Azure an account key or a SAS token; for the hub a token; for http USER:PASSWORD or a token.
    Kept by `launcher secret`, or elsewhere: env:VARIABLE, file:PATH.

    \b
    Examples:
      launcher storage create lab --provider minio --endpoint http://minio:9000 --bucket models --secret lab-keys
      launcher storage create hub --provider huggingface --secret hf-token
      launcher checkpoint push base --storage-provider hub --source-path Qwen/Qwen2.5-7B
    """
    from launcher import storages

    storage = storages.Storage(**fields)
    storages.create(current(ctx)[0].data_dir, storage)
    click.echo(f"Created the storage {storage.name} ({storage.provider}).")


@group.command("list")
@json_option
@click.pass_context
def list_storages(ctx: click.Context, as_json: bool) -> None:
    """Lists the storages.

    \b
    Example:
      launcher storage list
    """
    from launcher import storages

    found = storages.every(current(ctx)[0].data_dir)
    if as_json:
        print_json(found)
        return
    rows = [[each.name, each.provider, each.bucket or "-", each.endpoint or "-", each.secret or "-"] for each in found]
    print_table(["NAME", "PROVIDER", "BUCKET", "ENDPOINT", "SECRET"], rows, empty="No storage is known here.")


@group.command()
@click.argument("name", shell_complete=completing.storages)
@json_option
@click.pass_context
def inspect(ctx: click.Context, name: str, as_json: bool) -> None:
    """Shows a storage; of its credentials only the secret's name.

    \b
    Example:
      launcher storage inspect lab
    """
    import msgspec
    import yaml

    from launcher import storages

    found = storages.load(current(ctx)[0].data_dir, name)
    if as_json:
        print_json(found)
    else:
        click.echo(yaml.safe_dump(msgspec.to_builtins(found), sort_keys=False, allow_unicode=True), nl=False)


@group.command()
@click.argument("name", shell_complete=completing.storages)
@click.pass_context
def delete(ctx: click.Context, name: str) -> None:
    """Forgets a storage; what lies in it, and its secret, stay.

    \b
    Example:
      launcher storage delete lab
    """
    from launcher import storages

    storages.delete(current(ctx)[0].data_dir, name)
    click.echo(f"Deleted the storage {name}.")
