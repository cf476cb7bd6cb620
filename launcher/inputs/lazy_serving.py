"""The server of a lazy input, a process of its own: fetches a checkpoint into the node cache, and answers a FUSE file system
meanwhile.

It has the cache's entry like any download: exclusively until the last block is there and the folder has its name, shared until
it ends. When the launcher's end of the control socket is closed it fetches nothing more, and reads of what is not there fail, so
that nobody waits for it; it ends when nothing is mounted any more.

Names, sizes and modes come from the manifest; the kernel may keep them, and what was read, for as long as it likes: nothing of
a checkpoint ever changes. A read waits for its blocks, which are verified before a byte of them is given out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import resource
import socket
import stat
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mfusepy
import msgspec

from launcher.checkpoint.manifest import Manifest
from launcher.errors import LauncherError
from launcher.events import Event
from launcher.inputs.cache import NodeCache
from launcher.inputs.lazy import Answer, Failed, Serving, Task, Unreadable, Waiting, Whole
from launcher.inputs.lazy_blocks import Blocks, Stopped
from launcher.settings import process_environment
from launcher.store import layout
from launcher.store.store import Store
from launcher.transfer.object_store import OnBytes

_FOREVER = 86400
"""Seconds that the kernel may keep names and attributes before it asks again."""
_READERS = 256
"""Requests that are answered at the same time: most of them wait for the store."""


def main(control: int) -> None:
    """Serves the task on stdin. `control`: the socket over which mounts come."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # Every large file is open until its last block has come.
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    server = _Server(task)
    threading.Thread(target=server.fetch, name="fetch", daemon=True).start()
    tree = server.ready.get()
    if tree:
        _say(Serving())
        serving = []
        with socket.socket(fileno=control) as mounts:
            while fds := socket.recv_fds(mounts, 1, 1)[1]:  # One for each attempt of the job.
                serving.append(threading.Thread(target=_serve, args=(tree, fds[0]), name="mount", daemon=True))
                serving[-1].start()
        tree.blocks.stop()
        for mount in serving:
            mount.join()
    os._exit(0)  # Downloads may wait for the network; what they had not finished proves nothing.


def _say(answer: Answer) -> None:
    with contextlib.suppress(OSError):  # The launcher is gone; the job is about to be.
        os.write(sys.stdout.fileno(), msgspec.json.encode(answer) + b"\n")


class _Server:
    """The cache's side of it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.ready: queue.SimpleQueue[_Tree | None] = queue.SimpleQueue()
        """The tree to serve, or None where there is nothing to serve."""
        self._since: float | None = None

    def fetch(self) -> None:
        """Brings the cache's entry, whoever does it, and keeps it from eviction until this process ends."""
        settings = self._task.settings
        try:
            store = Store.open(settings, process_environment())
            cache = NodeCache.open(settings, _tell)
            self._lease = cache.fetch(
                store, self._task.manifest, lambda count: None, part=self._task.part, bring=self._bring
            )
            _say(Whole(None if self._since is None else time.monotonic() - self._since))
        except LauncherError as error:
            _say(Failed(error.text.rstrip("."), error.hint))
        except Stopped:
            return
        self.ready.put(None)

    def _bring(self, store: Store, manifest: Manifest, folder: Path, *, threads: int, on_bytes: OnBytes) -> None:
        self._since = time.monotonic()
        for parent in {(folder / file.path).parent for file in manifest.files}:
            parent.mkdir(parents=True, exist_ok=True)
        blocks = Blocks(
            store.place,
            layout.files(manifest.id),
            manifest.files,
            folder,
            threads=threads,
            timeout=store.timeout,
            unreadable=lambda path, cause: _say(Unreadable(path, cause)),
        )
        self.ready.put(_Tree(manifest, folder, blocks))
        blocks.run()


def _tell(what: Event) -> None:
    if what.kind == "cache-waiting":
        _say(Waiting(what.text))


def _serve(tree: _Tree, fd: int) -> None:
    """Answers for one mount, until it is gone."""
    mfusepy.FUSE(
        tree,
        f"/dev/fd/{fd}",
        foreground=True,
        kernel_cache=True,
        attr_timeout=_FOREVER,
        entry_timeout=_FOREVER,
        negative_timeout=_FOREVER,
        max_threads=_READERS,
    )


class _Tree(mfusepy.Operations):  # type: ignore[misc]
    """The files of a manifest, read-only."""

    use_ns = True

    def __init__(self, manifest: Manifest, folder: Path, blocks: Blocks) -> None:
        self.blocks = blocks
        # Open, as it gets another name when everything is there.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._children: dict[str, list[str]] = {"/": [".", ".."]}
        self._attributes: dict[str, dict[str, int]] = {"/": _attributes(stat.S_IFDIR | 0o555, 0, manifest.created)}
        self._total = manifest.size
        for file in manifest.files:
            self._add(f"/{file.path}", _attributes(stat.S_IFREG | 0o444, file.size, file.mtime or manifest.created))

    def _add(self, path: str, attributes: dict[str, int]) -> None:
        parent, _, name = path.rpartition("/")
        if (parent or "/") not in self._children:
            self._children[parent] = [".", ".."]
            self._add(parent, self._attributes["/"])
        self._children[parent or "/"].append(name)
        self._attributes[path] = attributes

    def init_with_config(self, connection: Any, config: Any) -> None:
        """By default the kernel has 12 requests of readers in flight, so that as many that wait held up all others."""
        connection.max_background = _READERS

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        try:
            return self._attributes[path]
        except KeyError:
            raise OSError(errno.ENOENT, path) from None

    def readdir(self, path: str, fh: int) -> list[str]:
        return self._children[path]

    def open(self, path: str, flags: int) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        length = min(size, self._attributes[path]["st_size"] - offset)
        if length <= 0:
            return b""
        self.blocks.need(path[1:], offset, length, _interrupted)
        fd = os.open(path[1:], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def statfs(self, path: str) -> Mapping[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": -(-self._total // 4096), "f_namemax": 255}


def _attributes(mode: int, size: int, changed: float) -> dict[str, int]:
    time_ns = int(changed * 1e9)
    return {
        "st_mode": mode,
        "st_nlink": 2 if stat.S_ISDIR(mode) else 1,
        "st_size": size,
        "st_blocks": -(-size // 512),
        "st_uid": os.geteuid(),
        "st_gid": os.getegid(),
        "st_atime": time_ns,
        "st_mtime": time_ns,
        "st_ctime": time_ns,
    }


def _interrupted() -> bool:
    """Whether the process that this thread answers got a signal: one that is to be killed need not wait for the store."""
    return bool(mfusepy._libfuse.fuse_interrupted())  # fuse.h; the binding has no function for it.
