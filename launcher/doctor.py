"""`launcher doctor`: what this machine and its store can do for a job, tried rather than asked, and what to do about the rest.

Every check makes what it needs and removes it again. A finding is a problem where a job would fail by it, and a warning
where it would run with less.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from launcher import secrets
from launcher.device import interpreter
from launcher.errors import LauncherError
from launcher.ids import new_id
from launcher.inputs.entries import Entries
from launcher.inputs.protection import PREVENTING, RUNGS, probe
from launcher.outputs import filesystem
from launcher.runners.accelerators import detect
from launcher.settings import Settings
from launcher.store import layout
from launcher.store.store import Store
from launcher.text import duration, size
from launcher.transfer.object_store import Ours, Theirs, create

State = Literal["ok", "warning", "problem"]
_SKEW = 60.0
"""Seconds between the store's clock and this machine's that are worth a word: signed requests fail at 15 minutes."""
_SMALL = 10 << 30
"""Free bytes below which a folder is worth a word: one 7B checkpoint with its optimizer has ten times as many."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a check found. `todo`: what to do about it, where it is not ok."""

    check: str
    state: State
    found: str
    todo: str = ""


Check = Callable[[Settings, Mapping[str, str]], Finding]


def examine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The findings, one a check, as they come. Raises nothing: a check that breaks is a finding."""
    for name, check in CHECKS.items():
        try:
            found = check(settings, environ)
        except LauncherError as error:
            found = Finding(check=name, state="problem", found=error.text, todo=error.hint)
        except OSError as error:
            found = Finding(check=name, state="problem", found=f"{error.filename or name}: {error.strerror}")
        yield msgspec.structs.replace(found, check=name)


def _finding(state: State, found: str, todo: str = "") -> Finding:
    return Finding(check="", state=state, found=found, todo=todo)


def _data(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Job folders can be made, and checkpoints of the process runner captured there without copying them."""
    folder = Path(settings.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as scratch:
        root, spool = Path(scratch, "output"), Path(scratch, "spool")
        root.mkdir()
        spool.mkdir()
        rung = filesystem.probe(str(root), spool).rung
    how = {"reflink": "reflinks", "link": "hard links", "held": "open descriptors"}[rung]
    return _room(folder, f"checkpoints are captured by {how}", "LAUNCHER_DATA_DIR")


def _cache(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """The node cache can be written, and its locks tell the truth."""
    folder = Path(settings.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not Entries(folder).locks:
        todo = "Jobs that start together each download on their own. Choose a local folder: LAUNCHER_CACHE_DIR."
        return _finding("warning", f"{folder}: flock does not exclude there", todo)
    return _room(folder, "its locks hold", "LAUNCHER_CACHE_DIR")


def _room(folder: Path, words: str, setting: str) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {size(free)} free; {words}"
    return _finding("warning", text, f"Choose a larger disk: {setting}.") if free < _SMALL else _finding("ok", text)


def _store(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Create, create again (refused), read, list and delete, and the store's clock."""
    store = Store.open(settings, environ)
    store.prepare()
    key, ours, other = f"{layout.CLOCK}{new_id()}", new_id().encode(), new_id().encode()
    try:
        first = create(store.place, key, ours, timeout=settings.store_timeout)
        again = create(store.place, key, other, timeout=settings.store_timeout)
        if not isinstance(first, Ours) or not isinstance(again, Theirs):
            todo = "Two writers could overwrite each other's commits: use a store with conditional writes."
            return _finding("problem", f"{store.url} creates an object that is there already", todo)
        if store.place.get(key) != ours:
            return _finding("problem", f"{store.url} returns another body than was written", "Do not use this store.")
        if key not in [entry.key for entry in store.place.list(layout.CLOCK)]:
            todo = "New checkpoints would be found late: use a store whose listings are consistent."
            return _finding("problem", f"{store.url} does not list an object that is there", todo)
    finally:
        with contextlib.suppress(LauncherError):
            store.place.delete([key])
    before = time.time()
    skew = store.now() - (before + time.time()) / 2
    if abs(skew) > _SKEW:
        when = f"{duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} this machine's"
        return _finding("warning", f"{store.url}: its clock is {when}", "Set this machine's clock (NTP).")
    return _finding("ok", f"{store.url}: creates exclusively, reads, lists, deletes; clocks agree")


def _input(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """What would keep a job of the process runner from changing its input."""
    folder = Path(settings.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rung = probe(RUNGS, folder).rung
    if rung in PREVENTING:
        return _finding("ok", f"read-only by {rung}")
    todo = "Allow user namespaces, or use --runner docker. A changed input is found after the job and fails it."
    return _finding("warning", f"read-only by {rung or 'nothing'}", todo)


def _accelerators(settings: Settings, environ: Mapping[str, str]) -> Finding:
    found = detect(environ)
    if found.count:
        return _finding("ok", f"{found.count} × {found.names[0]} ({found.kind})")
    return _finding("warning", f"none: {found.detail}", "Jobs run on the CPU here, with gloo.")


def _torch(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """The torch of the interpreter that jobs get, and whether it is built for the accelerators that are here."""
    python = interpreter(environ)
    code = "import torch; print(torch.__version__, torch.version.cuda or '', torch.version.hip or '', sep='|')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120, env=dict(environ))
    if done.returncode != 0:
        return _finding("warning", f"{python} has no torch", "Activate the environment that your jobs need.")
    version, cuda, hip = done.stdout.strip().splitlines()[-1].split("|")
    built = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    kind = detect(environ).kind
    if (kind == "cuda" and not cuda) or (kind == "rocm" and not hip):
        return _finding("problem", f"torch {version} for {built}", f"Install a torch that is built for {kind}.")
    return _finding("ok", f"torch {version} for {built} ({python})")


def _engine(settings: Settings, environ: Mapping[str, str]) -> Finding:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=10)
        version = client.version()
    except DockerException as error:
        todo = "Only --runner docker needs it: start the engine, or set DOCKER_HOST."
        return _finding("warning", f"no Docker engine answers ({str(error)[:120]})", todo)
    return _finding("ok", f"Docker {version.get('Version', '?')}")


def _programs(settings: Settings, environ: Mapping[str, str]) -> Finding:
    missing = [each for each in ("git",) if not shutil.which(each, path=environ.get("PATH"))]
    if missing:
        return _finding("warning", f"not found: {', '.join(missing)}", "--repository-url needs git: install it.")
    return _finding("ok", "git")


def _secrets(settings: Settings, environ: Mapping[str, str]) -> Finding:
    names = secrets.every(settings.data_dir)
    for name in names:
        secrets.read(settings.data_dir, name)
    return _finding("ok", f"{len(names)} kept, for your eyes only" if names else "none kept")


CHECKS: dict[str, Check] = {
    "data folder": _data,
    "node cache": _cache,
    "store": _store,
    "input": _input,
    "accelerators": _accelerators,
    "torch": _torch,
    "engine": _engine,
    "programs": _programs,
    "secrets": _secrets,
}
