"""What a user whom nobody has entered lacks: OpenShift runs containers as an arbitrary uid, `docker run --user` as any."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

_HOME = "/tmp"
_NAME = "job"


def lacking(environ: Mapping[str, str]) -> dict[str, str]:
    """HOME where the one in the environment cannot be written (Docker sets `/` for an unknown uid), and a user name where
    there is none: getpass.getuser() fails without, and torch's compiler asks it for its cache folder."""
    found = {}
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = ""
        if not any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
            found |= {"USER": _NAME, "LOGNAME": _NAME}
    if not os.access(environ.get("HOME") or home, os.W_OK | os.X_OK) and os.access(_HOME, os.W_OK | os.X_OK):
        found["HOME"] = _HOME
    return found
