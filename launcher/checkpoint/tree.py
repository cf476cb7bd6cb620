"""A checkpoint's files as a format sees them: names, sizes and ranges of bytes, wherever they are."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

JSON_LIMIT = 64 << 20
"""Bytes of a JSON file that is read: a tokenizer.json of 17 MB exists, an index of 10,000 shards is smaller."""


class Tree(Protocol):
    """Files below one folder: relative path to size in bytes."""

    @property
    def files(self) -> Mapping[str, int]: ...

    def read(self, path: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`. Raises OSError when the file cannot be read (any more)."""


class Folder:
    """A Tree over a local folder, listed once. Symbolic links and special files are not part of it (see `others`)."""

    def __init__(self, root: str, files: Mapping[str, int], others: tuple[str, ...] = ()) -> None:
        self.root = root
        self.files = files
        self.others = others

    @classmethod
    def scan(cls, root: str, *, ignore: Callable[[str], bool] = lambda path: False) -> Folder:
        """Lists the folder. Entries that vanish meanwhile are left out; `ignore` is asked with relative paths."""
        files: dict[str, int] = {}
        others: list[str] = []
        pending = [""]
        while pending:
            prefix = pending.pop()
            try:
                entries = list(os.scandir(os.path.join(root, prefix)))
            except FileNotFoundError:
                continue
            for entry in entries:
                path = f"{prefix}{entry.name}"
                if ignore(path):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{path}/")
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    files[path] = status.st_size
                else:
                    others.append(path)
        return cls(root, dict(sorted(files.items())), tuple(sorted(others)))

    @classmethod
    def single(cls, path: str) -> Folder:
        """One file as a tree of its own."""
        return cls(os.path.dirname(path), {os.path.basename(path): os.stat(path).st_size})

    def read(self, path: str, start: int, length: int) -> bytes:
        fd = os.open(os.path.join(self.root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.pread(fd, length, start)
        finally:
            os.close(fd)


class _Part:
    """Some files of another tree, each under a path without `prefix`."""

    def __init__(self, tree: Tree, prefix: str, files: dict[str, int]) -> None:
        self._tree, self._prefix = tree, prefix
        self.files = files

    def read(self, path: str, start: int, length: int) -> bytes:
        return self._tree.read(self._prefix + path, start, length)


def part(tree: Tree, paths: Iterable[str]) -> Tree:
    """Some files of a tree."""
    return _Part(tree, "", {path: tree.files[path] for path in sorted(paths)})


def below(tree: Tree, prefix: str) -> Tree:
    """The files below one folder of a tree; `prefix` ends with a slash."""
    files = {path[len(prefix) :]: size for path, size in tree.files.items() if path.startswith(prefix)}
    return _Part(tree, prefix, files)


def folders(tree: Tree) -> list[str]:
    """The names of the folders directly below, sorted."""
    return sorted({path.partition("/")[0] for path in tree.files if "/" in path})


def read_json(tree: Tree, path: str) -> Any:
    """The JSON value in a file. Raises ValueError (not JSON, or too large) or OSError."""
    if tree.files[path] > JSON_LIMIT:
        raise ValueError(f"{path} is larger than {JSON_LIMIT >> 20} MiB")
    try:
        return json.loads(tree.read(path, 0, JSON_LIMIT))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def read_object(tree: Tree, path: str) -> dict[str, Any]:
    """The JSON object in a file, or {} where the file is absent, is no object, or cannot be read."""
    if path not in tree.files:
        return {}
    try:
        value = read_json(tree, path)
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def text_of(value: object, longest: int = 500) -> str | None:
    """A text of a file's metadata, such that it can be stored; None where it is no text, or empty."""
    if not isinstance(value, str) or not value:
        return None
    return value[:longest].encode("utf-8", "replace").decode()
