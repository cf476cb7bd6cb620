"""Puts the input checkpoints where the job expects them, read-only, then becomes the job.

Run as a program by the launcher, `python -I -S guard.py PLAN COMMAND…`, so it imports nothing but the standard library and
its two neighbours that do the same. PLAN is JSON, with canonical paths, all of existing folders:

    rungs   ways to try, in order: bind, userns, landlock, permissions, none
    inputs  the input directories, read-only themselves
    mounts  [[source, target], …]: each target is an empty folder in an input directory
    views   {target: changes}: inputs that the job may write. `changes` is a folder with `upper` and `work`, for a
            copy-on-write view by overlayfs (bind and userns only), or empty: the source is the job's own copy
    lazy    {target: descriptor}: inputs that a server answers for (see `lazy`). A FUSE file system is mounted at the target,
            and its descriptor passed over this socket (bind and userns only)
    hide    other folders that are read-only too: the same bytes under another path (the node cache), the job's packages
    caches  [[variable, default, replacement], …]: set to the replacement where the job cannot write the default
    report  a file descriptor that takes one JSON object: rung, refused {rung: why}, notes, error

The first rung that holds is reported; the descriptor is closed by the exec. A process of its own, because a mount
namespace, a user namespace, Landlock and dropped capabilities are for the job and never for the launcher.

`probe` instead of the rest of PLAN, with `rungs`: which rung would hold, and why overlayfs would not work with changes in
the folder `probe`, an empty one that the caller removes; the answer is one JSON object on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from launcher.inputs import kernel
from launcher.inputs import landlock as landlocked
from launcher.inputs.kernel import check, libc, prctl

# With these, root could undo a mount or reach the bytes around it: DAC_READ_SEARCH, SYS_MODULE, SYS_RAWIO, SYS_PTRACE,
# SYS_ADMIN, SYS_BOOT, MKNOD.
_DROPPED = (2, 16, 17, 19, 21, 22, 27)
_COPIED_UP = 1 << 20
"""Bytes up to which a view's file is made writable for an ordinary user at once, which copies it."""

Plan = dict[str, Any]


def _enter(rung: str) -> None:
    """Into a mount namespace of one's own; as an ordinary user by a user namespace in which he keeps his uid."""
    if rung == "bind":
        check(libc.unshare(kernel.CLONE_NEWNS), "unshare")
    else:
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            raise OSError(0, "the job would be root in its namespace and could undo the mount")
        check(libc.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS), "unshare")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    kernel.mount("none", "/", kernel.MS_REC | kernel.MS_PRIVATE)


def _bind_all(plan: Plan, *, unprivileged: bool) -> None:
    # The input directories first: as mounts they can be neither renamed nor filled, and the inputs are mounted upon them.
    for path in [*plan["hide"], *plan["inputs"]]:
        kernel.bind(path, path)
        kernel.read_only(path)
    for source, target in plan["mounts"]:
        changes = plan["views"].get(target)
        if target in plan["lazy"]:
            _mount_lazily(target, plan["lazy"][target])
        elif changes:
            kernel.overlay(source, changes, target, unprivileged=unprivileged)
            _open_view(target, files=unprivileged)
        else:
            kernel.bind(source, target)
            if changes is None:
                kernel.read_only(target)


def _mount_lazily(target: str, control: int) -> None:
    """As soon as the server has the descriptor it answers; when the last process of the namespace is gone, it is told so."""
    import socket

    with socket.socket(fileno=control) as server:
        fd = kernel.fuse(target)
        socket.send_fds(server, [b"m"], [fd])
        os.close(fd)  # From here on the server alone has it: if it dies, reads fail instead of waiting.
    kernel.read_only(target)


def _open_view(folder: str, *, files: bool) -> None:
    """Write permission in a view: every folder, and `files` that are cheap to copy. Others an ordinary user replaces, or
    makes writable himself, which copies them; root needs no permission."""
    for parent, _, names in os.walk(folder):
        os.chmod(parent, 0o755)
        for path in [os.path.join(parent, name) for name in names if files]:
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size <= _COPIED_UP:
                os.chmod(path, status.st_mode | 0o200)


def bind(plan: Plan) -> list[str]:
    """Bind mounts in a mount namespace of the job's own. Needs CAP_SYS_ADMIN."""
    _enter("bind")
    _bind_all(plan, unprivileged=False)
    for capability in _DROPPED:
        prctl(kernel.PR_CAPBSET_DROP, capability)
    libc.prctl(kernel.PR_CAP_AMBIENT, 4, 0, 0, 0)
    return ["the job has no CAP_SYS_ADMIN and no CAP_SYS_PTRACE"] if os.geteuid() == 0 else []


def userns(plan: Plan) -> list[str]:
    """The same in a user namespace, in which the caller keeps his own uid. Needs no privilege."""
    _enter("userns")
    _bind_all(plan, unprivileged=True)
    prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    return ["the job cannot gain privileges (sudo, setuid programs)"]


def landlock(plan: Plan) -> list[str]:
    """Landlock, see there."""
    landlocked.version()
    _link(plan)
    protected = {source for source, target in plan["mounts"] if target not in plan["views"]}
    closed = landlocked.restrict({*protected, *plan["hide"], *plan["inputs"]})
    return [
        f"the job cannot gain privileges, mount, or make new entries directly in: {' '.join(closed)}",
        "modes, owners and times of the input's files are compared after the job",
    ]


def _not_root() -> None:
    if os.geteuid() == 0:
        raise OSError(0, "permissions do not hold for root")


def permissions(plan: Plan) -> list[str]:
    """Only the missing write permission of the files; the owner could give it back, root need not."""
    _not_root()
    _link(plan)
    return ["the input is verified after the job"]


def none(plan: Plan) -> list[str]:
    """Nothing but the check after the job."""
    _link(plan)
    return ["NOTHING keeps the job from changing its input; it is verified after the job"]


def _link(plan: Plan) -> None:
    """A link at each target, made in the very folder that was chosen, whatever is swapped meanwhile."""
    for source, target in plan["mounts"]:
        os.close(kernel.open_folder(source))
        folder = kernel.open_folder(os.path.dirname(target))
        try:
            name = os.path.basename(target)
            os.rmdir(name, dir_fd=folder)
            os.symlink(source, name, dir_fd=folder)
        finally:
            os.close(folder)


RUNGS = {"bind": bind, "userns": userns, "landlock": landlock, "permissions": permissions, "none": none}


def _protect(plan: Plan) -> dict[str, Any]:
    refused: dict[str, str] = {}
    if not plan["mounts"] and not plan["hide"]:
        return {"rung": "", "refused": {}, "notes": []}
    for rung in plan["rungs"]:
        # Tried in a child first: a rung that fails halfway must leave no trace in this process.
        if rung in ("bind", "userns") and (cause := _trial(lambda rung=rung: _enter(rung))):  # type: ignore[misc]
            refused[rung] = cause
            continue
        try:
            return {"rung": rung, "refused": refused, "notes": RUNGS[rung](plan)}
        except OSError as error:
            refused[rung] = error.strerror or str(error)
            if rung in ("bind", "userns"):
                return {"error": f"{rung}: {refused[rung]}", "refused": refused}
    why = "; ".join(f"{rung}: {why}" for rung, why in refused.items())
    return {"error": f"no rung holds: {why}", "refused": refused}


def _trial(action: Callable[[], object]) -> str:
    """Why an action fails in a child process; empty where it does not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except OSError as error:
            os.write(writer, (error.strerror or str(error)).encode())
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        cause = file.read().decode()
    _, status = os.waitpid(child, 0)
    return cause or ("refused" if status else "")


def _probe(plan: Plan) -> dict[str, str]:
    """The first rung that would hold, and why overlayfs would not (empty: it would)."""
    for rung in plan["rungs"]:
        if rung not in ("bind", "userns"):
            needed = {"landlock": landlocked.version, "permissions": _not_root}
            if rung in needed and _trial(needed[rung]):
                continue
            return {"rung": rung, "overlay": f"the rung {rung} cannot mount"}
        if _trial(lambda rung=rung: _enter(rung)):  # type: ignore[misc]
            continue

        def overlay(rung: str = rung, scratch: str = plan["probe"]) -> None:
            _enter(rung)
            for part in ("upper", "work", "lower", "view"):
                os.mkdir(f"{scratch}/{part}")
            kernel.overlay(f"{scratch}/lower", scratch, f"{scratch}/view", unprivileged=rung == "userns")

        return {"rung": rung, "overlay": _trial(overlay)}
    return {"rung": "", "overlay": "no rung holds"}


def _set_caches(caches: list[list[str]]) -> list[str]:
    """Points a library to another cache folder where the job cannot write its default. Tried, not asked: neither the
    permission bits nor access(2) know of Landlock."""
    moved = []
    for variable, default, replacement in caches:
        folder = default
        while not os.path.isdir(folder) and folder != "/":
            folder = os.path.dirname(folder)
        try:
            os.mkdir(probe := os.path.join(folder, f".launcher-{os.getpid()}"))
            os.rmdir(probe)
        except OSError:
            try:
                os.makedirs(replacement, mode=0o700, exist_ok=True)
            except OSError:
                continue
            os.environ[variable] = replacement
            moved.append(variable)
            if variable == "HF_HOME":
                _keep_hub(default)
    return [f"in the node cache, as the job cannot write the default: {', '.join(moved)}"] if moved else []


def _keep_hub(default: str) -> None:
    """Models and the token that lie in an HF_HOME without write permission (an image's) are still found."""
    for variable, path in (("HF_HUB_CACHE", f"{default}/hub"), ("HF_TOKEN_PATH", f"{default}/token")):
        if os.path.exists(path):
            os.environ.setdefault(variable, path)


def main(arguments: list[str]) -> int:
    """Protects, reports, executes. Returns only when the command cannot be executed: 126 or 127."""
    plan = json.loads(arguments[0])
    if "probe" in plan:
        print(json.dumps(_probe(plan)))
        return 0
    report_fd: int = plan["report"]
    os.set_inheritable(report_fd, False)
    result = _protect(plan)
    if "error" in result:
        os.write(report_fd, json.dumps(result).encode())
        return 73
    result["notes"] += _set_caches(plan["caches"])
    libc.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # What is ignored stays so over an exec, and Python ignores these.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGIO):
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
