"""The system calls that Python has no function for, and paths that nobody can swap while they are used.

Standard library only: the guard program runs without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 38, 47
_MOUNT_SETATTR, _AT_EMPTY_PATH, _AT_RECURSIVE = 442, 0x1000, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4


def check(result: int, what: str) -> int:
    """The result of a system call. Raises OSError with its errno where it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> None:
    """prctl(2). Raises OSError."""
    check(libc.prctl(option, *[*arguments, 0, 0, 0, 0][:4]), "prctl")


def mount(source: str, target: str, flags: int, kind: str | None = None, data: str | None = None) -> None:
    """mount(2). Raises OSError."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    check(libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {kind or target}")


def open_folder(path: str) -> int:
    """A descriptor (O_PATH) of a folder, by its canonical path: a link in any part of it is refused, because the path had
    none when it was chosen. Raises OSError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open("/", flags)
    for part in path.split("/"):
        if part:
            try:
                inner = os.open(part, flags, dir_fd=fd)
            except OSError as error:
                raise OSError(error.errno, f"{path}: {part} is no folder, or was swapped: {error.strerror}") from error
            finally:
                os.close(fd)
            fd = inner
    return fd


def bind(source: str, target: str) -> None:
    """Mounts a folder over another one, both by descriptors: neither can be swapped between the check and the mount."""
    source_fd, target_fd = open_folder(source), -1
    try:
        target_fd = open_folder(target)
        mount(f"/proc/self/fd/{source_fd}", f"/proc/self/fd/{target_fd}", MS_BIND | MS_REC)
    finally:
        for fd in (source_fd, target_fd):
            if fd >= 0:
                os.close(fd)


def read_only(target: str) -> None:
    """Sets ro,nosuid,nodev on a mount and everything below it, leaving its other flags as they are. Raises OSError."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    fd = open_folder(target)
    try:
        result = libc.syscall(
            _MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
        )
        if result < 0:  # kernels before 5.12
            mount("none", f"/proc/self/fd/{fd}", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        if not os.statvfs(fd).f_flag & os.ST_RDONLY:
            raise OSError(0, f"{target} is still writable after the mount")
    finally:
        os.close(fd)


def fuse(target: str) -> int:
    """Mounts a read-only FUSE file system over a folder, and returns the descriptor over which the kernel asks: whoever answers
    must do so before anything but this mount is done with it. Raises OSError."""
    fd, target_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC), -1
    try:
        target_fd = open_folder(target)
        owner = f"user_id={os.geteuid()},group_id={os.getegid()}"
        data = f"fd={fd},rootmode=40000,{owner},allow_other,default_permissions"
        mount(
            "launcher", f"/proc/self/fd/{target_fd}", MS_RDONLY | MS_NOSUID | MS_NODEV, kind="fuse.launcher", data=data
        )
    except BaseException:
        os.close(fd)
        raise
    finally:
        if target_fd >= 0:
            os.close(target_fd)
    return fd


def overlay(lower: str, changes: str, target: str, *, unprivileged: bool) -> None:
    """Mounts a copy-on-write view of `lower` over `target`: what is written lies in `changes`, a folder with `upper` and
    `work`. By descriptors. Raises OSError where the kernel or the file system of `changes` cannot."""
    fds = []
    try:
        for path in (lower, f"{changes}/upper", f"{changes}/work", target):
            fds.append(open_folder(path))
        at = [f"/proc/self/fd/{fd}" for fd in fds]
        data = f"lowerdir={at[0]},upperdir={at[1]},workdir={at[2]}" + (",userxattr" if unprivileged else "")
        mount("overlay", at[3], MS_NOSUID | MS_NODEV, "overlay", data)
    finally:
        for fd in fds:
            os.close(fd)
