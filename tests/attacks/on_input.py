"""Ways to change an input checkpoint, as a job: `python on_input.py [NAME…]` tries them and prints {name: what happened} as JSON.

"done" means that the call which changes something was carried out; anything else says what refused it. Standard library
only, so that it runs as any user and in any container. Reads LAUNCHER_INPUT_CHECKPOINT, FLEXAI_OUTPUT_CHECKPOINT_DIR and
CACHE (the node cache).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
INPUT = os.environ.get("LAUNCHER_INPUT_CHECKPOINT", "")
IN = os.path.realpath(INPUT)
OUT = os.environ.get("FLEXAI_OUTPUT_CHECKPOINT_DIR", "")
CACHE = os.environ.get("CACHE", "")
INHERITED = [name for name in os.listdir("/proc/self/fd") if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}")]
FILE, FOLDER = f"{IN}/config.json", f"{IN}/sub"
TEXT = b"changed"


class Refused(Exception):
    """Something other than an error number."""


def call(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def mount(source: str, target: str, flags: int, kind: str = "") -> None:
    call(libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), None))


def renameat2(source: str, target: str, flags: int) -> None:
    call(libc.renameat2(-100, source.encode(), -100, target.encode(), flags))


def own(name: str) -> str:
    """A file of the job's, on the output's file system."""
    path = f"{OUT}/.{name}-{os.getpid()}"
    with open(path, "wb") as file:
        file.write(TEXT)
    return path


def write(path: str = FILE, flags: int = os.O_WRONLY) -> None:
    fd = os.open(path, flags)
    os.write(fd, TEXT)


def mapped() -> None:
    fd = os.open(FILE, os.O_RDWR)
    with mmap.mmap(fd, 0) as view:
        view[0:1] = b"X"


def mapped_read_only() -> None:
    fd = os.open(FILE, os.O_RDONLY)
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        view[0:1] = b"X"


def reopened() -> None:
    fd = os.open(FILE, os.O_RDONLY)
    write(f"/proc/self/fd/{fd}")


def opened_by_path_descriptor() -> None:
    fd = os.open(FILE, os.O_PATH)
    write(f"/proc/self/fd/{fd}")


def punched() -> None:
    fd = os.open(FILE, os.O_RDWR)
    call(libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)))


def unnamed() -> None:
    fd = os.open(OUT, os.O_TMPFILE | os.O_WRONLY)
    os.link(f"/proc/self/fd/{fd}", f"{IN}/new", follow_symlinks=True)


def linked_out() -> None:
    path = f"{OUT}/.link-{os.getpid()}"
    os.link(FILE, path)
    os.chmod(path, 0o666)
    write(path)


def through_the_cache() -> None:
    for parent, _, names in os.walk(f"{CACHE}/checkpoints"):
        for name in names:
            path = os.path.join(parent, name)
            os.chmod(path, 0o666)
            write(path)
            return
    raise Refused("not found")


def by_handle() -> None:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    at = ctypes.c_int()
    call(libc.name_to_handle_at(-100, FILE.encode(), handle, ctypes.byref(at), 0))
    fd = call(libc.open_by_handle_at(os.open("/", os.O_RDONLY), handle, os.O_RDWR))
    os.write(fd, TEXT)


def ancestors() -> list[int]:
    """The processes above, PID 1 last."""
    found, pid = [], os.getppid()
    while pid > 0:
        found.append(pid)
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found


def each_ancestor(action: Callable[[int], None]) -> None:
    """Does it to the first process above, outside of the job, to which it can be done."""
    cause: OSError | None = None
    for pid in ancestors():
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"on_input" in file.read() and os.readlink("/proc/self/ns/mnt") == link(f"/proc/{pid}/ns/mnt"):
                continue  # of the job itself, where its mounts and restrictions hold too
        try:
            return action(pid)
        except OSError as error:
            cause = error
    raise cause or Refused("no process above")


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def in_their_root(pid: int) -> None:
    paths = [
        FILE,
        *(os.path.join(parent, "config.json") for parent, _, names in os.walk(f"{CACHE}/checkpoints") if names),
    ]
    cause: OSError | None = None
    for path in paths:
        try:
            return write(f"/proc/{pid}/root{path}")
        except OSError as error:
            cause = error
    raise cause or Refused("no path")


def in_their_namespace(pid: int) -> None:
    call(libc.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0))
    through_the_cache()


def traced(pid: int) -> None:
    call(int(libc.ptrace(16, pid, None, None)))
    libc.ptrace(17, pid, None, None)


def remounted() -> None:
    mount("none", IN, 32 | 4096)
    write()


def unmounted() -> None:
    call(libc.umount2(IN.encode(), 2))
    write()


def in_a_namespace_of_its_own() -> None:
    uid = os.getuid()
    call(libc.unshare(0x10000000 | 0x00020000))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    for action in (remounted, unmounted, through_the_cache):
        try:
            return action()
        except (OSError, Refused) as error:
            cause = error
    raise cause


def swapped(path: str) -> None:
    os.rename(path, f"{path}.old")
    os.mkdir(path)


def flagged() -> None:
    fd = os.open(FILE, os.O_RDONLY)
    flags = bytearray(8)
    fcntl.ioctl(fd, 0x80086601, flags)
    fcntl.ioctl(fd, 0x40086602, struct.pack("=q", struct.unpack("=q", flags)[0] ^ 0x40))  # FS_NODUMP_FL


def inherited() -> None:
    if not INHERITED:
        raise Refused("0, 1 and 2 only")


def bound() -> None:
    os.chdir(IN)
    socket.socket(socket.AF_UNIX).bind("socket")


ATTACKS: dict[str, Callable[[], object]] = {
    "create": lambda: write(f"{IN}/new", os.O_WRONLY | os.O_CREAT),
    "create below": lambda: write(f"{FOLDER}/new", os.O_WRONLY | os.O_CREAT),
    "make a folder": lambda: os.mkdir(f"{IN}/folder"),
    "make a link": lambda: os.symlink("/etc/passwd", f"{IN}/link"),
    "make a FIFO": lambda: os.mkfifo(f"{IN}/fifo"),
    "make a device": lambda: os.mknod(f"{IN}/device", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "make a socket": bound,
    "link in": lambda: os.link(own("in"), f"{IN}/new"),
    "link in an unnamed file": unnamed,
    "rename in": lambda: os.rename(own("moved"), f"{IN}/new"),
    "write": write,
    "append": lambda: write(FILE, os.O_WRONLY | os.O_APPEND),
    "open and truncate": lambda: os.open(FILE, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda: os.truncate(FILE, 0),
    "map and write": mapped,
    "map what is read-only": mapped_read_only,
    "reopen": reopened,
    "reopen a path descriptor": opened_by_path_descriptor,
    "punch a hole": punched,
    "rename over": lambda: os.rename(own("over"), FILE),
    "rename out": lambda: os.rename(FILE, f"{OUT}/.out"),
    "rename inside": lambda: os.rename(FILE, f"{IN}/renamed"),
    "exchange": lambda: renameat2(own("exchanged"), FILE, 2),
    "remove": lambda: os.unlink(FILE),
    "remove below": lambda: os.unlink(f"{FOLDER}/data.txt"),
    "link out and write": linked_out,
    "through the cache": through_the_cache,
    "by file handle": by_handle,
    "in another process's root": lambda: each_ancestor(in_their_root),
    "in another process's namespace": lambda: each_ancestor(in_their_namespace),
    "trace another process": lambda: each_ancestor(traced),
    "remount": remounted,
    "unmount": unmounted,
    "mount over": lambda: mount("tmpfs", FOLDER, 0, "tmpfs"),
    "in a namespace of its own": in_a_namespace_of_its_own,
    "swap the input": lambda: swapped(IN),
    "swap the parent": lambda: swapped(os.path.dirname(INPUT)),
    "an inherited descriptor": inherited,
}
METADATA: dict[str, Callable[[], object]] = {
    "change the mode": lambda: os.chmod(FILE, 0o777),
    "change a folder's mode": lambda: os.chmod(FOLDER, 0o777),
    "change the owner": lambda: os.chown(FILE, os.getuid(), os.getgid()),
    "set an attribute": lambda: os.setxattr(FILE, "user.changed", b"yes"),
    "set the times": lambda: os.utime(FILE, (1, 1)),
    "set a flag": flagged,
}
ALL = ATTACKS | METADATA
AFTER_A_NEW_MODE = {
    "link out and write",
    "through the cache",
    "in another process's namespace",
    "in a namespace of its own",
}
"""Of ATTACKS: those that first give themselves the permission."""


def attempt(name: str) -> str:
    """Tries one in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ALL[name]()
            text = "done"
        except (OSError, ValueError, Refused) as error:
            text = getattr(error, "strerror", None) or str(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return text or "ended without a word"


if __name__ == "__main__":
    signal.alarm(60)
    print(json.dumps({name: attempt(name) for name in sys.argv[1:] or ALL}))
