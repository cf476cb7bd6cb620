"""The only reader of the environment and of configuration files.

Values come from layers, the first that has one wins: flags, environment, job file, user file, defaults. Every mistake in
every layer is found before anything is reported, each with its origin and the nearest name that would have been right.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from launcher.errors import LauncherError, SettingsError

Seconds = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "seconds"})]
"""A duration: a number of seconds, or text such as 90s, 5m, 2h, 1d."""

Bytes = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "bytes"})]
"""A size: a number of bytes, or text such as 512MiB, 2GiB, 1TB."""

Rate = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "bytes a second"})]
"""A rate: a number of bytes a second, or text such as 20MB/s, 1GiB/s."""

Share = Annotated[str, msgspec.Meta(extra={"unit": "share"})]
"""A size such as 20GiB, or a share of a file system such as 30%; kept as text, see `parse_share`."""

_SECONDS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGTP", start=1)
    for suffix, base in (("", 1024), ("iB", 1024), ("B", 1000))
}

_DIGITS = 15
"""More than these are a mistake: 10 GB in bytes has 11, and a float says no more."""


def parse_seconds(text: str) -> float:
    """`90s`, `1.5h`, `20` to seconds; ValueError says what would be right."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text)
    if not match or match[2] not in _SECONDS or len(match[1]) > _DIGITS:
        raise ValueError(f"{text!r} is no duration; write 90s, 5m, 2h or a number of seconds")
    return float(match[1]) * _SECONDS[match[2]]


def parse_bytes(text: str) -> int:
    """`2GiB`, `500MB`, `1024` to bytes; K, M, G alone are binary. ValueError says what would be right."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    units = {unit.lower(): size for unit, size in _BYTES.items()}
    if not match or match[2].lower() not in units or len(match[1]) > _DIGITS:
        raise ValueError(f"{text!r} is no size; write 512MiB, 2GiB or a number of bytes")
    return int(float(match[1]) * units[match[2].lower()])


def parse_share(text: str) -> int | float:
    """`30%` to the share 0.3 (a float), `20GiB` to bytes (an int). ValueError says what would be right."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if not match:
        return parse_bytes(text)
    if not 0 < float(match[1]) <= 100:
        raise ValueError(f"{text!r} is no share; write 1% to 100%, or a size such as 20GiB")
    return float(match[1]) / 100


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for this machine and user, whatever the job."""

    store: str = ""
    """Root URL of the store (file, s3, gs, az …). Default: `store` under the data folder."""
    data_dir: str = ""
    """Where job folders and the default store lie. Default: /var/lib/launcher where that is there and may be written, else the
    user's data folder, else one in /tmp."""
    cache_dir: str = ""
    """The node cache, shared by all jobs of this machine. Default: /var/cache/launcher where that is there and may be written,
    else the user's cache folder, else one in /tmp."""
    cache_limit: Share = "50%"
    """What the node cache may take: a size, or a share of its file system. What running jobs use stays, even above it."""
    input_dir: str = ""
    """Where the job finds its input checkpoints. Default: /input-checkpoint in a container, else in the job folder."""
    dataset_dir: str = ""
    """Where the job finds its datasets. Default: /input in a container, else in the job folder."""
    output_dir: str = ""
    """Where the job writes. Default: /output-checkpoint in a container, else in the job folder."""
    input_guard: str = "auto"
    """Ways to protect the input, in order, or auto: bind, userns, landlock, permissions, none."""
    capture: str = "auto"
    """Ways to take checkpoints out of the job's reach, in order, or auto: reflink, link, held."""
    store_timeout: Seconds = 60.0
    """How long one request to the store is tried again before it counts as failed."""
    drain_timeout: Seconds = 3600.0
    """How long the launcher stores what the job left, after the job has ended."""
    transfer_threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    """Requests in flight at the same time, at most: how many they are finds itself."""
    transfer_memory: Bytes = 256 << 20
    """What the process may take, about, while it uploads: it bounds the parts of large files that are in flight."""
    result_file: str = ""
    """Where a copy of each job's result.json goes, for a scheduler or script that waits for it."""
    log_format: typing.Literal["auto", "plain", "json"] = "auto"
    """What the launcher itself prints on stderr. auto: plain, with colours on a terminal, unless NO_COLOR or TERM=dumb is set."""
    verbose: bool = False
    """Says more: what is seen and captured, and with an error where in the code it came from."""


Origins = dict[str, str]
T = TypeVar("T", bound=msgspec.Struct)


class Mistakes(Exception):
    """What `layered` found wrong: one line each."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


def layered(kind: type[T], layers: Iterable[tuple[str, Mapping[str, Any]]], *, text: bool = False) -> tuple[T, Origins]:
    """Builds a `kind` from layers of (origin, values), the first layer that has a value wins.

    Returns the struct and, for every field that was given, the origin that won. Raises Mistakes with one line for each
    wrong value and each unknown key of any layer.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    origins: Origins = {}
    mistakes: list[str] = []
    for origin, layer in layers:
        for key, value in layer.items():
            where = origin.replace("{KEY}", key.upper()).replace("{key}", key.replace("_", "-"))
            name = key.replace("-", "_")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                mistakes.append(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
                continue
            try:
                converted = _convert(value, hints[name])
            except msgspec.ValidationError as error:
                mistakes.append(f"{where}: {_in_words(value, hints[name], error)}")
                continue
            except ValueError as error:
                mistakes.append(f"{where}: {error}")
                continue
            if name not in origins:
                values[name], origins[name] = converted, where
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            mistakes.append(f"{field.name} is missing")
    if mistakes:
        raise Mistakes(mistakes)
    return kind(**values), origins


def _convert(value: Any, hint: Any) -> Any:
    for meta in getattr(hint, "__metadata__", ()):
        unit = (getattr(meta, "extra", None) or {}).get("unit")
        if unit == "share":
            parse_share(str(value))
        elif unit and isinstance(value, str):
            value = parse_seconds(value) if unit == "seconds" else parse_bytes(_amount(value, unit))
    return msgspec.convert(value, hint, strict=not isinstance(value, str))


def _in_words(value: Any, hint: Any, error: msgspec.ValidationError) -> str:
    """What is wrong with a value, and what would be right."""
    limits = {key: found for meta in getattr(hint, "__metadata__", ()) for key in ("ge", "le")
              if (found := getattr(meta, key)) is not None}  # fmt: skip
    plain = typing.get_args(hint)[0] if limits else hint
    if plain in (int, float):
        low, high = limits.get("ge"), limits.get("le")
        span = f"from {low} to {high}" if high is not None else "" if low is None else f"of at least {low}"
        return f"{value!r} is no {'whole ' if plain is int else ''}number {span}".rstrip()
    if plain is bool:
        return f"{value!r} is neither true nor false"
    parts = [plain, *typing.get_args(plain)]
    known = [str(each) for part in parts if typing.get_origin(part) is typing.Literal for each in typing.get_args(part)]
    if known:
        wrong = [each for each in (value if isinstance(value, (list, tuple)) else [value]) if str(each) not in known]
        near = nearest(str(wrong[0]), known, 1) if wrong else []
        tail = f"; did you mean {near[0]!r}?" if near else ""
        return f"{', '.join(map(repr, wrong))} is not one of {', '.join(known)}{tail}"
    kind = {"str": "a text", "dict": "a mapping of keys to values", "tuple": "a list"}.get(
        getattr(typing.get_origin(plain) or plain, "__name__", ""), ""
    )
    return f"{value!r} is not {kind}" if kind else str(error)


def _amount(text: str, unit: str) -> str:
    return text.strip().removesuffix("/s") if unit == "bytes a second" else text


def environment(prefix: str, names: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables `<prefix><NAME>` that are set and not empty, by lower-case name, for the names asked for."""
    source = os.environ if environ is None else environ
    found = {name: source.get(prefix + name.upper(), "") for name in names}
    return {name: value for name, value in found.items() if value}


def process_environment() -> dict[str, str]:
    """A copy of this process's environment: what the job inherits."""
    return dict(os.environ)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file of at most 1 MiB. Aliases are refused (they can make a small file huge).

    Raises ValueError with the reason in one line.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read((1 << 20) + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if len(data) > 1 << 20:
        raise ValueError(f"{path}: larger than 1 MiB")
    try:
        for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{path}: aliases (*{event.anchor}) are not read")
        content = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: " + " ".join(str(error).split())) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: a mapping of keys to values is expected")
    return content


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> tuple[Settings, Origins]:
    """The settings in force and where each came from. Raises SettingsError."""
    env = os.environ if environ is None else environ
    names = [field.name for field in msgspec.structs.fields(Settings)]
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if flags:
        given = {key: value for key, value in flags.items() if value not in (None, False)}
        layers.append(("--{key}", given))
        if empty := [f"--{key.replace('_', '-')} is empty" for key, value in given.items() if value == ""]:
            raise SettingsError(what="; ".join(empty) + ".", hint="Leave it out where the default is meant.")
    layers.append(("LAUNCHER_{KEY}", environment("LAUNCHER_", names, env)))
    path = config_file(env)
    try:
        if env.get("LAUNCHER_CONFIG") or os.path.lexists(path):
            layers.append((f"{path}: {{key}}", read_yaml(path)))
        settings, origins = layered(Settings, layers)
    except Mistakes as error:
        raise SettingsError(what="; ".join(error.lines) + ".", hint="docs/settings.md lists every setting.") from error
    except ValueError as error:
        raise SettingsError(what=str(error)) from error
    return resolve_defaults(settings, env), origins


def config_file(env: Mapping[str, str]) -> Path:
    """The user's configuration file: $LAUNCHER_CONFIG, else config.yaml in the user's configuration folder."""
    named = env.get("LAUNCHER_CONFIG")
    return (
        Path(named) if named else _user_folder(env, "XDG_CONFIG_HOME", ".config", "Library/Preferences") / "config.yaml"
    )


def resolve_defaults(settings: Settings, env: Mapping[str, str]) -> Settings:
    """Fills in the folders that were not named, and makes paths absolute."""
    data = settings.data_dir or _usable(
        "/var/lib/launcher", _user_folder(env, "XDG_DATA_HOME", ".local/share", "Library/Application Support"), env
    )
    cache = settings.cache_dir or _usable(
        "/var/cache/launcher", _user_folder(env, "XDG_CACHE_HOME", ".cache", "Library/Caches"), env
    )
    store = settings.store or os.path.join(data, "store")
    return msgspec.structs.replace(
        settings,
        data_dir=os.path.abspath(os.path.expanduser(data)),
        cache_dir=os.path.abspath(os.path.expanduser(cache)),
        store=store if "://" in store else os.path.abspath(os.path.expanduser(store)),
        log_format=settings.log_format if settings.log_format != "auto" or colours(env) else "plain",
    )


def colours(env: Mapping[str, str]) -> bool:
    """Whether a terminal may be written on in colours: NO_COLOR (no-color.org) and TERM=dumb say no."""
    return not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def redraws(env: Mapping[str, str]) -> bool:
    """Whether a line of a terminal may be written again, as progress bars do: not where TERM=dumb, and not where CI is set, as
    the output is then read as a log."""
    return env.get("TERM") != "dumb" and not env.get("CI")


def _user_folder(env: Mapping[str, str], variable: str, linux: str, mac: str) -> Path:
    home = Path(env.get("HOME") or _home())
    base = env.get(variable)
    if base and os.path.isabs(base):
        return Path(base) / "launcher"
    return home / (mac if sys.platform == "darwin" else linux) / "launcher"


def _home() -> str:
    """The home folder of this user in the user database; of one who is not there, none that exists."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/nonexistent"


def _usable(machine: str, user: Path, env: Mapping[str, str]) -> str:
    """The machine's folder where there is one that this user may write, as in our images; else the user's; else, where there
    is no home folder to write (an arbitrary uid, a read-only root file system), one of his own in the temporary folder."""
    if os.access(machine, os.W_OK | os.X_OK):
        return machine
    there = existing(user)
    temporary = Path(env.get("TMPDIR") or "/tmp", f"launcher-{os.getuid()}")
    if os.access(there, os.W_OK | os.X_OK) or not _own(temporary):
        return str(user)
    return str(temporary / user.parent.name / user.name)


def existing(path: Path) -> Path:
    """An absolute path, or what of it is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _own(folder: Path) -> bool:
    """Whether a folder in /tmp is this user's, or can be."""
    try:
        status = folder.lstat()
    except OSError:
        return os.access(folder.parent, os.W_OK | os.X_OK)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


__all__ = [
    "Bytes",
    "LauncherError",
    "Mistakes",
    "Origins",
    "Rate",
    "Seconds",
    "Settings",
    "Share",
    "colours",
    "config_file",
    "environment",
    "layered",
    "load",
    "nearest",
    "parse_bytes",
    "parse_seconds",
    "parse_share",
    "process_environment",
    "read_yaml",
    "redraws",
    "resolve_defaults",
]
