"""What the guard program is asked for: which folders the job gets where, and what it must not change."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.inputs import guard

RUNGS = ("bind", "userns", "landlock", "permissions", "none")
PREVENTING = ("bind", "userns")
"""The rungs on which the job cannot even change a mode or a time."""


@dataclass(frozen=True)
class Protection:
    """See `guard` for the fields; `rungs`, `inputs`, `hide` and `mounts` are in the order in which they are taken."""

    rungs: tuple[str, ...]
    inputs: tuple[str, ...]
    mounts: tuple[tuple[str, str], ...] = ()
    views: Mapping[str, str] = field(default_factory=dict)
    hide: tuple[str, ...] = ()
    caches: tuple[tuple[str, str, str], ...] = ()
    lazy: Mapping[str, int] = field(default_factory=dict)

    def plan(self, report: int) -> str:
        """The guard's argument; `report` is the descriptor that it answers on."""
        return json.dumps(asdict(self) | {"report": report})


@dataclass(frozen=True)
class Possible:
    """What this machine lets this user do: the first rung that holds ("" for none), and why it has no overlayfs."""

    rung: str
    no_overlay: str


def program(plan: str) -> list[str]:
    """The guard program's command line, up to the job's own."""
    return [sys.executable, "-I", "-S", guard.__file__, plan]


def probe(rungs: tuple[str, ...], folder: Path) -> Possible:
    """Tries it, with changes of a view in `folder`, in a process of its own: some 30 ms."""
    from launcher.inputs.entries import remove

    scratch = tempfile.mkdtemp(prefix=".probe-", dir=folder)
    try:
        plan = json.dumps({"probe": scratch, "rungs": list(rungs)})
        done = subprocess.run(program(plan), capture_output=True, timeout=60, check=True)
    finally:
        remove(Path(scratch))
    found = json.loads(done.stdout)
    return Possible(found["rung"], found["overlay"])


def library_caches(env: Mapping[str, str], cache: Path) -> tuple[tuple[str, str, str], ...]:
    """(variable, the library's default, a folder of this user's in the node cache) of every cache that libraries write
    beside the model or in the home folder, unless the job's environment names it.

    Sources: the documentation of huggingface_hub, datasets, triton, torch and matplotlib. The hub's models and token stay where
    they are when HF_HOME moves: what an image or the user brings must be found.
    """
    home = env.get("HOME") or os.path.expanduser("~")
    caches = env.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    config = env.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    hugging = env.get("HF_HOME") or os.path.join(caches, "huggingface")
    user = env.get("LOGNAME") or env.get("USER") or str(os.geteuid())
    defaults = {
        "HF_HOME": hugging,
        "HF_DATASETS_CACHE": os.path.join(hugging, "datasets"),
        "TRITON_CACHE_DIR": os.path.join(env.get("TRITON_HOME") or home, ".triton", "cache"),
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(env.get("TMPDIR") or "/tmp", f"torchinductor_{user}"),
        "MPLCONFIGDIR": os.path.join(config, "matplotlib"),
    }
    places = {
        "HF_HOME": "huggingface",
        "HF_DATASETS_CACHE": "huggingface/datasets",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
        "MPLCONFIGDIR": "matplotlib",
    }
    folder = cache / "libraries" / str(os.geteuid())
    with contextlib.suppress(OSError):  # Before the job: Landlock lets it make nothing beside the entries.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tuple(
        (name, os.path.abspath(default), str(folder / places[name]))
        for name, default in defaults.items()
        if name not in env
    )
