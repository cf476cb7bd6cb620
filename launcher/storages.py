"""Storages: named places elsewhere that checkpoints come from and go to, each with the credentials for it.

    <data folder>/storages/<name>.json    what a person said; the credentials are in the secret that it names

A storage's credentials are used for it alone: the ones of the environment are not mixed in, and where it names no secret the
environment's own are used as always.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from launcher import names, secrets
from launcher.errors import NotFoundError, SettingsError, UsageError
from launcher.ids import new_id
from launcher.settings import Settings, nearest
from launcher.transfer.hub import HubRepository
from launcher.transfer.object_store import ObjectStore, Readable
from launcher.transfer.places import open_place
from launcher.transfer.web import Web, basic

Provider = Literal["s3", "gcs", "azure", "r2", "minio", "huggingface", "http"]
_SCHEMES = {"s3": "s3", "r2": "s3", "minio": "s3", "gcs": "gs", "azure": "az"}


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """A place elsewhere. `bucket`: of S3 and its kin, GCS; Azure's container; empty where a path begins with it."""

    name: str
    provider: Provider
    bucket: str = ""
    prefix: str = ""
    """Before every path, without slashes at its ends."""
    endpoint: str = ""
    """URL of the service. Default: the provider's own; minio and http have none."""
    region: str = ""
    account: str = ""
    """Azure's storage account; R2's account id, from which its endpoint follows."""
    secret: str = ""
    """The secret that holds the credentials: the name of a kept one, env:VARIABLE or file:PATH."""

    @property
    def writable(self) -> bool:
        return self.provider in _SCHEMES


def create(data_dir: str, storage: Storage) -> None:
    """Keeps a storage's description. Raises UsageError where it exists or lacks what its provider needs."""
    names.check(storage.name, "storage name")
    needs = {"minio": "endpoint", "http": "endpoint", "azure": "account"}.get(storage.provider, "")
    if needs and not getattr(storage, needs):
        raise UsageError(what=f"--provider {storage.provider} needs --{needs}.")
    if storage.provider == "r2" and not (storage.endpoint or storage.account):
        raise UsageError(what="--provider r2 needs --account (or --endpoint).")
    if storage.endpoint and not storage.endpoint.startswith(("http://", "https://")):
        raise UsageError(what=f"--endpoint {storage.endpoint}: write it with http:// or https://.")
    if storage.secret:
        secrets.read(data_dir, storage.secret)
    path = _path(data_dir, storage.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{new_id()}")
    try:
        temporary.write_bytes(msgspec.json.encode(storage))
        os.link(temporary, path)
    except FileExistsError as error:
        raise UsageError(
            what=f"The storage {storage.name!r} exists.", hint=f"launcher storage delete {storage.name}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load(data_dir: str, name: str) -> Storage:
    """A storage. Raises NotFoundError, SettingsError (its file is damaged)."""
    path = _path(data_dir, name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Storage)
    except FileNotFoundError as error:
        near = nearest(name, (each.name for each in every(data_dir)))
        raise NotFoundError(
            what=f"No storage {name!r} is known here.",
            hint=f"Nearest names: {', '.join(near)}" if near else "`launcher storage create` makes one.",
        ) from error
    except msgspec.DecodeError as error:
        raise SettingsError(
            what=f"{path} is damaged: {error}.", hint="Remove it and create the storage anew."
        ) from error


def every(data_dir: str) -> list[Storage]:
    """All storages by name; damaged ones are left out."""
    found = []
    for path in sorted((Path(data_dir) / "storages").glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Storage))
        except (msgspec.DecodeError, FileNotFoundError):
            continue
    return found


def delete(data_dir: str, name: str) -> None:
    """Forgets a storage; what lies in it, and its secret, stay. Raises NotFoundError."""
    load(data_dir, name)
    _path(data_dir, name).unlink(missing_ok=True)


def open_source(storage: Storage, path: str, settings: Settings, environ: Mapping[str, str]) -> Readable:
    """The place at a path of the storage, to read from. Nothing is contacted yet."""
    inside = _inside(storage, path)
    secret = secrets.read(settings.data_dir, storage.secret, environ) if storage.secret else ""
    if storage.provider == "huggingface":
        environ = dict(environ) | ({"HF_ENDPOINT": storage.endpoint} if storage.endpoint else {})
        return HubRepository(f"hf://{inside}", timeout=settings.store_timeout, environ=environ, token=secret)
    if storage.provider == "http":
        headers = basic(secret) if ":" in secret else {"Authorization": f"Bearer {secret}"} if secret else {}
        url = f"{storage.endpoint.rstrip('/')}/{inside}" + ("/" if path.endswith("/") else "")
        return Web(url, timeout=settings.store_timeout, environ=environ, headers=headers)
    return open_target(storage, path, settings, environ)


def open_target(storage: Storage, path: str, settings: Settings, environ: Mapping[str, str]) -> ObjectStore:
    """The place at a path of the storage, to write to as well. Raises UsageError where it can only be read from."""
    if not storage.writable:
        raise UsageError(
            what=f"The storage {storage.name!r} ({storage.provider}) can only be read from.",
            hint="Export to a storage of provider s3, gcs, azure, r2 or minio.",
        )
    secret = secrets.read(settings.data_dir, storage.secret, environ) if storage.secret else ""
    url = f"{_SCHEMES[storage.provider]}://{_inside(storage, path)}"
    options = _options(storage, secret)
    return open_place(url, timeout=settings.store_timeout, environ=environ, options=options)


def _inside(storage: Storage, path: str) -> str:
    """The whole path: bucket, prefix, path."""
    parts = [part.strip("/") for part in (storage.bucket, storage.prefix, path)]
    inside = "/".join(part for part in parts if part)
    if not inside:
        raise UsageError(what=f"A path in the storage {storage.name!r} is needed, beginning with its bucket.")
    return inside


def _options(storage: Storage, secret: str) -> dict[str, Any]:
    """What the engine is told besides the URL."""
    options: dict[str, Any] = {}
    endpoint = storage.endpoint
    if storage.provider == "r2" and not endpoint:
        endpoint = f"https://{storage.account}.r2.cloudflarestorage.com"
    if endpoint:
        options["endpoint"] = endpoint
    if storage.provider in ("s3", "r2", "minio"):
        region = storage.region or {"r2": "auto", "minio": "us-east-1"}.get(storage.provider, "")
        if region:
            options["region"] = region
        if secret:
            credential = _aws(storage, secret)
            options["credential_provider"] = lambda: credential
    elif storage.provider == "azure":
        options["account_name"] = storage.account
        if secret:
            signed = "sig=" in secret
            options["sas_key" if signed else "account_key"] = secret.lstrip("?") if signed else secret
    elif secret:
        options["service_account_key"] = secret
    return options


def _aws(storage: Storage, secret: str) -> dict[str, Any]:
    found = {key.removeprefix("aws_"): value for key, value in secrets.fields(secret).items()}
    try:
        return {
            "access_key_id": found["access_key_id"],
            "secret_access_key": found["secret_access_key"],
            "token": found.get("session_token"),
            "expires_at": None,
        }
    except KeyError as error:
        raise SettingsError(
            what=f"The secret {storage.secret!r} of storage {storage.name!r} lacks {str(error).strip(chr(39))}.",
            hint="It is a file with the lines aws_access_key_id=… and aws_secret_access_key=….",
        ) from error


def _path(data_dir: str, name: str) -> Path:
    return Path(data_dir) / "storages" / f"{names.key(name)}.json"
