"""Secrets: tokens, keys and whole credential files, kept in the data folder for their owner's eyes only.

    <data folder>/secrets/<name>      0600, in a folder with 0700

They are given to what needs them and never shown: no command prints one, and `values` is what everything written is
cleaned of.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from launcher import names
from launcher.errors import AccessDenied, NotFoundError, UsageError
from launcher.ids import new_id
from launcher.settings import nearest

LARGEST = 1 << 20
_SECRET = re.compile(r"secret|token|passw|key|signature", re.I)


def create(data_dir: str, name: str, value: bytes, *, replace: bool = False) -> None:
    """Keeps a secret. Raises UsageError where it is empty, larger than 1 MiB, or there already and not to be replaced."""
    names.check(name, "secret name")
    if not value.strip() or len(value) > LARGEST:
        raise UsageError(what=f"A secret has 1 byte to 1 MiB; this one has {len(value)} bytes.")
    path = _path(data_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{new_id()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(value)
            file.flush()
            os.fsync(fd)
        if replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)
    except FileExistsError as error:
        raise UsageError(what=f"The secret {name!r} exists.", hint="Replace it with --replace.") from error
    finally:
        temporary.unlink(missing_ok=True)


def read(data_dir: str, name: str) -> str:
    """A secret's text, without the line end that an editor or echo left. Raises NotFoundError, AccessDenied, UsageError."""
    path = _path(data_dir, name)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise AccessDenied(
                    what=str(path), cause="others may read this secret", hint=f"chmod 600 {path}, or create it anew."
                )
            return file.read(LARGEST).decode().rstrip("\r\n")
    except FileNotFoundError as error:
        raise _unknown(data_dir, name) from error
    except PermissionError as error:
        raise AccessDenied(what=str(path), cause=error.strerror) from error
    except UnicodeDecodeError as error:
        raise UsageError(what=f"The secret {name!r} is not text.") from error


def every(data_dir: str) -> list[str]:
    """The secrets' names, sorted. Raises AccessDenied."""
    folder = Path(data_dir) / "secrets"
    try:
        return sorted(path.name.replace("!", "/") for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        raise AccessDenied(what=str(folder), cause=error.strerror) from error


def delete(data_dir: str, name: str) -> None:
    """Removes a secret. Raises NotFoundError."""
    try:
        _path(data_dir, name).unlink()
    except FileNotFoundError as error:
        raise _unknown(data_dir, name) from error


def values(data_dir: str) -> list[str]:
    """Every text that must not be shown: the secrets, and the values in those that are credential files. What cannot be
    read is left out: then this process does not know it either."""
    found = []
    for name in _readable(data_dir):
        try:
            text = read(data_dir, name)
        except (NotFoundError, AccessDenied, UsageError):
            continue
        named = fields(text)
        found += [text, *(value for key, value in named.items() if _SECRET.search(key))]
        found += [] if named else text.splitlines()
    return [value.strip() for value in found]


def fields(text: str) -> Mapping[str, str]:
    """The fields of a credential file by lower-case name: lines of `KEY=VALUE` (as in ~/.aws/credentials or an env file),
    or a JSON object. Empty for any other text."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict):
        return {str(key).lower(): value for key, value in content.items() if isinstance(value, str)}
    result = {}
    for line in text.splitlines():
        key, equals, value = line.removeprefix("export ").partition("=")
        if equals and key.strip().replace("_", "").isalnum():
            result[key.strip().lower()] = value.strip().strip("\"'")
    return result


def _unknown(data_dir: str, name: str) -> NotFoundError:
    near = nearest(name, _readable(data_dir))
    return NotFoundError(
        what=f"No secret {name!r} is kept here.",
        hint=f"Nearest names: {', '.join(near)}"
        if near
        else "`launcher secret list` shows them, `secret create` adds one.",
    )


def _readable(data_dir: str) -> list[str]:
    try:
        return every(data_dir)
    except AccessDenied:
        return []


def _path(data_dir: str, name: str) -> Path:
    return Path(data_dir) / "secrets" / names.key(name)
