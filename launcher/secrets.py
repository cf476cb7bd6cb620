"""Secrets: tokens, keys and whole credential files, kept in the data folder for their owner's eyes only.

    <data folder>/secrets/<name>      0600, in a folder with 0700

They are given to what needs them and never shown: no command prints one, and `values` is what everything written is
cleaned of. Where a secret is named, it may also lie elsewhere: `env:VARIABLE` of this process, `file:PATH`, as Docker and
Kubernetes mount them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher import names, settings
from launcher.errors import AccessDenied, LauncherError, NotFoundError, UsageError
from launcher.events import Emit, event
from launcher.ids import new_id
from launcher.masking import NOT_MASKED, SHORTEST, Mask, Parts
from launcher.settings import nearest

LARGEST = 1 << 20
_AS_FILE = "A job can have it as a file: --secret-file VARIABLE=NAME."
_SECRET = re.compile(r"secret|token|passw|key|signature", re.I)


@dataclass(frozen=True)
class Given:
    """The secrets of one job. `variables`: by variable. `files`: by variable, what the file holds whose path is its value.
    `mask`: what takes them out of the job's output."""

    variables: dict[str, str] = field(default_factory=dict, repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    mask: Mask | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return bool(self.variables or self.files)


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


def read(data_dir: str, source: str, environ: Mapping[str, str] | None = None) -> str:
    """A secret's text, without the line end that an editor or echo left. `environ`: by default, this process's.

    Raises NotFoundError, AccessDenied, UsageError.
    """
    try:
        text = read_bytes(data_dir, source, environ).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(what=f"The secret {source!r} is not text.", hint=_AS_FILE) from error
    if "\0" in text:
        raise UsageError(what=f"The secret {source!r} has a zero byte, which no variable can have.", hint=_AS_FILE)
    return text


def read_bytes(data_dir: str, source: str, environ: Mapping[str, str] | None = None) -> bytes:
    """A secret as it was kept, or as it is in the variable (`env:VARIABLE`) or file (`file:PATH`) that `source` names.

    Raises NotFoundError, AccessDenied, UsageError (a file that is none, is empty or is larger than 1 MiB).
    """
    kind, colon, place = source.partition(":")
    if not colon:
        path = _path(data_dir, source)
        if not os.path.lexists(path):
            raise _unknown(data_dir, source)
        return _read(path, source, private=True)
    if kind == "env":
        value = (settings.process_environment() if environ is None else environ).get(place, "")
        if not value:
            raise NotFoundError(what=f"The secret {source}: the variable {place!r} is not set here.")
        return value.encode("utf-8", "surrogateescape")
    if kind == "file":
        return _read(Path(place).expanduser(), source, private=False)
    raise UsageError(
        what=f"{source!r} names no secret.", hint="Write the name of a kept one, env:VARIABLE or file:PATH."
    )


def given(
    data_dir: str,
    variables: Mapping[str, str],
    files: Mapping[str, str],
    environ: Mapping[str, str],
    emit: Emit,
    *,
    mask: bool,
) -> Given:
    """Reads a job's secrets: both mappings are of variables to sources. Warns of those that are too short to be masked. Raises as
    `read` and `read_bytes`."""
    texts = {key: read(data_dir, source, environ) for key, source in variables.items()}
    contents = {key: read_bytes(data_dir, source, environ) for key, source in files.items()}
    found = {variables[key]: text for key, text in texts.items()}
    found |= {files[key]: value.decode("utf-8", "surrogateescape") for key, value in contents.items()}
    if not mask or not found:
        return Given(texts, contents)
    for name, text in sorted(found.items()):
        if len(text.strip().encode("utf-8", "surrogateescape")) < SHORTEST:
            said = f"The secret {name} is shorter than {SHORTEST} bytes: {NOT_MASKED}"
            emit(event("secret-not-masked", said, "warning", secret=name))
    return Given(texts, contents, Mask({name: parts(text) for name, text in found.items()}))


def _read(path: Path, source: str, *, private: bool) -> bytes:
    """`private`: kept by us, and so for no one else to read; who mounts a file decides that for himself."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(what=f"The secret {source}: {path} is no file.")
            if private and mode & 0o077:
                raise AccessDenied(
                    what=str(path), cause="others may read this secret", hint=f"chmod 600 {path}, or create it anew."
                )
            value = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise NotFoundError(what=f"The secret {source}: there is no file {path}.") from error
    except PermissionError as error:
        raise AccessDenied(what=str(path), cause=error.strerror) from error
    except OSError as error:
        raise UsageError(what=f"The secret {source}: {path} cannot be read: {error.strerror}.") from error
    if not value.strip() or len(value) > LARGEST:
        raise UsageError(what=f"The secret {source} has no content, or more than 1 MiB.")
    return value


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


def values(data_dir: str, given: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> list[str]:
    """Every text that must not be shown, of the secrets that are kept and of the sources `given`. What cannot be read is left
    out: then this process does not know it either."""
    found = []
    for source in (*_readable(data_dir), *(each for each in given if ":" in each)):
        with contextlib.suppress(LauncherError, UnicodeDecodeError):
            found += [value for part in parts(read_bytes(data_dir, source, environ).decode()) for value in part]
    return found


def parts(text: str) -> Parts:
    """What must not be shown of a secret."""
    named = fields(text)
    secret = [value.strip() for key, value in named.items() if _SECRET.search(key)] if named else [text.strip()]
    lines = [line.strip() for value in secret for line in value.splitlines() if not line.startswith("-----")]
    return Parts([text.strip(), *secret], lines)


def fields(text: str) -> Mapping[str, str]:
    """The fields of a credential file by lower-case name: lines of `KEY=VALUE` (as in ~/.aws/credentials or an env file),
    or a JSON object. Empty for any other text; what base64 ends with is no value."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, dict):
        return {str(key).lower(): value for key, value in content.items() if isinstance(value, str)}
    result = {}
    for line in text.splitlines():
        key, equals, value = line.removeprefix("export ").partition("=")
        if equals and value.strip("= ") and key.strip().replace("_", "").isalnum():
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
