"""Landlock: the job may write everywhere but below its input. Needs no privilege, and holds for root too.

Landlock only grants, so every entry beside the path to a protected folder is granted; a folder that is an ancestor of one
cannot be granted itself, and the job cannot make new entries directly in it. It has no say over modes, owners, times and
extended attributes (Linux 6.18, ABI 7): those are compared after the job.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from launcher.inputs.kernel import PR_SET_NO_NEW_PRIVS, check, libc, prctl

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _VERSION = 1, 1
# WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR … MAKE_SYM (ABI 1), REFER (2), TRUNCATE (3)
_WRITE = 1 << 1 | 0b1111111110000
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FILE_RIGHTS = 1 << 1 | _TRUNCATE


def version() -> int:
    """The kernel's Landlock ABI. Raises OSError where there is none, or one that cannot forbid truncation (before 3)."""
    found = check(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION), "landlock")
    if found < 3:
        raise OSError(0, f"Landlock ABI {found} cannot forbid truncation")
    return found


def restrict(protected: Iterable[str]) -> list[str]:
    """Takes from this process, for ever, the right to change anything below the folders `protected` (canonical paths).

    Returns the folders above them, in which no new entry can be made. Raises OSError.
    """
    version()
    handled = _WRITE | _REFER | _TRUNCATE
    ruleset = check(libc.syscall(_CREATE_RULESET, struct.pack("=Q", handled), ctypes.c_size_t(8), 0), "landlock")
    protected = frozenset(protected)
    above = {parent for path in protected for parent in _parents(path)}
    closed, pending = [], ["/"]
    while pending:
        folder = pending.pop()
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        closed.append(folder)
        for entry in entries:
            path = os.path.join(folder, entry)
            # A link is granted where it points to, if at all: following it here could grant a protected folder's ancestor.
            if path in protected or os.path.islink(path):
                continue
            if path in above:
                pending.append(path)
            else:
                _grant(ruleset, path, handled)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)
    return sorted(closed)


def _grant(ruleset: int, path: str, handled: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # It vanished: what is not granted stays closed.
    try:
        rights = handled if stat.S_ISDIR(os.fstat(fd).st_mode) else handled & _FILE_RIGHTS
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found
