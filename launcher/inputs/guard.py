"""Puts the input checkpoints where the job expects them, read-only, then becomes the job.

Run as a program by the launcher, `python -I -S guard.py PLAN COMMAND…`, so it imports nothing but the standard library and
nothing of ours. PLAN is JSON:

    rungs   ways to try, in order: bind, userns, landlock, permissions, none
    mounts  [[source, target], …]: existing folders; each target is an empty folder in the input directory
    hide    folders that hold the same bytes under another path (the node cache): read-only too
    report  a file descriptor that takes one JSON object: rung, refused {rung: why}, notes, error

The first rung that holds is reported; the descriptor is closed by the exec. A process of its own, because a mount
namespace, a user namespace, Landlock and dropped capabilities are for the job and never for the launcher.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_EMPTY_PATH, _AT_RECURSIVE = 442, 0x1000, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_RULE_PATH_BENEATH, _LANDLOCK_VERSION = 1, 1
# WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR … MAKE_SYM (ABI 1), REFER (2), TRUNCATE (3)
_LANDLOCK_WRITE = 1 << 1 | 0b1111111110000
_LANDLOCK_REFER, _LANDLOCK_TRUNCATE = 1 << 13, 1 << 14
_FILE_RIGHTS = 1 << 1 | _LANDLOCK_TRUNCATE
# With these, root could undo a mount or reach the bytes around it: DAC_READ_SEARCH, SYS_MODULE, SYS_RAWIO, SYS_PTRACE,
# SYS_ADMIN, SYS_BOOT, MKNOD.
_DROPPED = (2, 16, 17, 19, 21, 22, 27)

Mounts = list[list[str]]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _mount(source: str, target: str, flags: int) -> None:
    _check(_libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None), f"mount {target}")


def _read_only(target: str) -> None:
    """Sets ro,nosuid,nodev on a mount and everything below it, leaving its other flags as they are."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        result = _libc.syscall(
            _MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
        )
        if result < 0:
            _mount("none", target, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)  # kernels before 5.12
    finally:
        os.close(fd)
    if not os.statvfs(target).f_flag & os.ST_RDONLY:
        raise OSError(0, f"{target} is still writable after the mount")


def _bind_all(mounts: Mounts, hide: list[str]) -> None:
    _mount("none", "/", MS_REC | MS_PRIVATE)
    for source, target in [*mounts, *([path, path] for path in hide)]:
        # By descriptors that never follow a link: neither end can be swapped between the check and the mount.
        source_fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        target_fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _mount(f"/proc/self/fd/{source_fd}", f"/proc/self/fd/{target_fd}", MS_BIND | MS_REC)
        finally:
            os.close(source_fd)
            os.close(target_fd)
        _read_only(target)


def bind(mounts: Mounts, hide: list[str]) -> list[str]:
    """Bind mounts in a mount namespace of the job's own. Needs CAP_SYS_ADMIN."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _bind_all(mounts, hide)
    for capability in _DROPPED:
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
    _libc.prctl(_PR_CAP_AMBIENT, 4, 0, 0, 0)
    return ["the job has no CAP_SYS_ADMIN and no CAP_SYS_PTRACE"] if os.geteuid() == 0 else []


def userns(mounts: Mounts, hide: list[str]) -> list[str]:
    """The same in a user namespace, in which the caller keeps his own uid. Needs no privilege."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        raise OSError(0, "the job would be root in its namespace and could undo the mount")
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _bind_all(mounts, hide)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    return ["the job cannot gain privileges (sudo, setuid programs)"]


def landlock(mounts: Mounts, hide: list[str]) -> list[str]:
    """Landlock: the job may write everywhere but below the inputs. No privilege, holds for root too.

    Landlock only grants, so every entry beside the path to a protected folder is granted; a folder that is an ancestor of
    one cannot be granted itself, and the job cannot make new entries directly in it.
    """
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    _check(version, "landlock")
    handled = _LANDLOCK_WRITE | (_LANDLOCK_REFER if version >= 2 else 0) | (_LANDLOCK_TRUNCATE if version >= 3 else 0)
    if version < 3:
        raise OSError(0, f"Landlock ABI {version} cannot forbid truncation")
    _link(mounts)
    protected = {os.path.realpath(path) for path in [*(source for source, _ in mounts), *hide]}
    protected |= {os.path.dirname(os.path.abspath(target)) for _, target in mounts}
    attribute = struct.pack("=Q", handled)
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attribute, ctypes.c_size_t(8), 0), "landlock")
    closed = []
    pending = ["/"]
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
            if any(each.startswith(f"{path}/") for each in protected):
                pending.append(path)
                continue
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                rights = handled if os.path.isdir(path) else handled & _FILE_RIGHTS
                rule = struct.pack("=Qi", rights, fd)
                _check(
                    _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0), f"landlock {path}"
                )
            except OSError:
                pass  # A link or a vanished entry: what is not granted stays closed.
            finally:
                os.close(fd)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)
    return [f"the job cannot gain privileges, mount, or make new entries directly in: {' '.join(sorted(closed))}"]


def permissions(mounts: Mounts, hide: list[str]) -> list[str]:
    """Only the missing write permission of the files; the owner could give it back, root need not."""
    if os.geteuid() == 0:
        raise OSError(0, "permissions do not hold for root")
    _link(mounts)
    return ["the input is verified after the job"]


def none(mounts: Mounts, hide: list[str]) -> list[str]:
    """Nothing but the check after the job."""
    _link(mounts)
    return ["NOTHING keeps the job from changing its input; it is verified after the job"]


def _link(mounts: Mounts) -> None:
    for source, target in mounts:
        if os.path.realpath(target) != os.path.realpath(source):
            os.rmdir(target)
            os.symlink(source, target)


RUNGS = {"bind": bind, "userns": userns, "landlock": landlock, "permissions": permissions, "none": none}


def _protect(plan: dict[str, object]) -> dict[str, object]:
    mounts: Mounts = plan["mounts"]  # type: ignore[assignment]
    hide: list[str] = plan["hide"]  # type: ignore[assignment]
    rungs: list[str] = plan["rungs"]  # type: ignore[assignment]
    refused: dict[str, str] = {}
    if not mounts:
        return {"rung": "", "refused": {}, "notes": []}
    for rung in rungs:
        # Tried in a child first: a rung that fails halfway must leave no trace in this process.
        if rung in ("bind", "userns") and not _possible(rung, refused):
            continue
        try:
            return {"rung": rung, "refused": refused, "notes": RUNGS[rung](mounts, hide)}
        except OSError as error:
            refused[rung] = error.strerror or str(error)
            if rung in ("bind", "userns"):
                return {"error": f"{rung}: {refused[rung]}", "refused": refused}
    return {
        "error": "no rung holds: " + "; ".join(f"{rung}: {why}" for rung, why in refused.items()),
        "refused": refused,
    }


def _possible(rung: str, refused: dict[str, str]) -> bool:
    if rung == "userns" and os.geteuid() == 0:
        refused[rung] = "the job would be root in its namespace and could undo the mount"
        return False
    flags = CLONE_NEWNS | (CLONE_NEWUSER if rung == "userns" else 0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _check(_libc.unshare(flags), "unshare")
            _mount("none", "/", MS_REC | MS_PRIVATE)
        except OSError as error:
            os.write(writer, (error.strerror or "refused").encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        cause = file.read().decode()
    os.waitpid(child, 0)
    if cause:
        refused[rung] = cause
    return not cause


def main(arguments: list[str]) -> int:
    """Protects, reports, executes. Returns only when the command cannot be executed: 126 or 127."""
    plan = json.loads(arguments[0])
    report_fd: int = plan["report"]
    os.set_inheritable(report_fd, False)
    result = _protect(plan)
    if "error" in result:
        os.write(report_fd, json.dumps(result).encode())
        return 73
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGIO,
    ):  # Ignored by us, and what is ignored stays so over an exec.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.write(report_fd, json.dumps(result).encode() + b"\n")
    command = arguments[1:]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(report_fd, json.dumps({"exec": error.strerror, "errno": error.errno}).encode())
        return 127 if isinstance(error, (FileNotFoundError, NotADirectoryError)) else 126


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
