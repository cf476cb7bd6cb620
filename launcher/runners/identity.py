"""What a user whom nobody has entered lacks: OpenShift runs containers as an arbitrary uid, `docker run --user` as any."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

_TEMPORARY = "/tmp"
_NAME = "job"


def lacking(
    environ: Mapping[str, str], inputs: Collection[Path], scratch: Path, closed: Callable[[], bool]
) -> dict[str, str]:
    """HOME where the one in the environment cannot be written (Docker sets `/` for an unknown uid), and a user name where
    there is none: getpass.getuser() fails without, and torch's compiler asks it for its cache folder.

    TMPDIR where an input directory lies in the temporary folder, as the only one that can be written (a read-only root file
    system), and `closed` says that nobody can make entries directly in the folders above it (Landlock): then `scratch` is made
    for that.
    """
    found = {}
    temporary = environ.get("TMPDIR") or _TEMPORARY
    if any(Path(temporary) in each.parents for each in inputs) and closed():
        scratch.mkdir(mode=0o700, exist_ok=True)
        found["TMPDIR"] = temporary = str(scratch)
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = ""
        if not any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
            found |= {"USER": _NAME, "LOGNAME": _NAME}
    if not _writable(environ.get("HOME") or home) and _writable(temporary):
        found["HOME"] = temporary
    return found


def _writable(folder: str) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
