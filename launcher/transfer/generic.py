"""Stores on any other fsspec protocol that can create an object only if it is absent, and the reading of any URL."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from launcher.errors import AccessDenied, StoreError, StoreUnavailable, StoreUnsupported, UsageError
from launcher.ids import new_id
from launcher.settings import nearest
from launcher.transfer.digest import CHUNK, Hasher
from launcher.transfer.object_store import Entry, Exists, Missing, Moved, OnBytes, Sink, Unfinished

REFUSED = frozenset(
    {
        "simplecache", "filecache", "blockcache", "cached", "reference", "zip", "tar", "libarchive", "local", "dir", "generic",
        "asynclocal", "data",
    }
)  # fmt: skip
"""fsspec protocols that wrap another URL or reach local files by another name: never taken from a person's text."""

_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]+\]")


def check_url(url: str) -> str:
    """The URL's scheme, or UsageError: chained URLs (`a::b`) and wrapping protocols are refused."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "hf" and not rest.strip("/"):
        raise UsageError(what=f"{url} names no place.", hint=f"Write {scheme}://, then host or bucket, then path.")
    if "::" in _IPV6.sub("", url) or not separator or scheme in REFUSED:
        raise UsageError(
            what=f"{url} cannot be used: chained and wrapping URLs are not followed.",
            hint="Give the plain URL of the folder.",
        )
    try:
        _ = urllib.parse.urlsplit(url).port  # Parsed when it is asked for.
    except ValueError as error:
        raise UsageError(what=f"{url} cannot be used: {error}.", hint="Check how it is written.") from error
    return scheme


class GenericStore:
    """An ObjectStore over an fsspec file system. As a store it must pass `prove_exclusive` once."""

    def __init__(self, url: str) -> None:
        import fsspec

        check_url(url)
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise StoreError(store=url, cause=str(error)) from error
        except ValueError as error:
            near = nearest(url.partition("://")[0], ("s3", "gs", "az", "hf", "http", "https", "file", "sftp"), 1)
            raise UsageError(
                what=f"{url} cannot be used: {error}.",
                hint=f"Did you mean {near[0]}://?" if near else "Write a path, s3://, gs://, az://, hf:// or https://.",
            ) from error

    def prove_exclusive(self) -> None:
        """Creates one probe twice: raises StoreUnsupported unless the second time is refused."""
        key = f".probe-{new_id()}"
        self.create_once(key, b"probe")
        try:
            self.create_once(key, b"probe")
        except Exists:
            self.delete([key])
            return
        self.delete([key])
        raise StoreUnsupported(store=self.url, cause="it overwrote an object that it was asked to create")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def create_once(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._fs.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
            self._fs.pipe_file(self._path(key), body, mode="create")

    def get(self, key: str) -> bytes:
        with self._errors(key):
            return bytes(self._fs.cat_file(self._path(key)))

    def read(self, key: str, start: int, length: int) -> bytes:
        with self._errors(key):
            return bytes(self._fs.cat_file(self._path(key), start=start, end=start + length))

    def put(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._fs.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
            self._fs.pipe_file(self._path(key), body)

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        with self._errors(prefix):
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(self._path(prefix).rstrip("/"), detail=True)
            except FileNotFoundError:
                return
        for path, info in sorted(found.items()):
            key = path[len(self._root) :].lstrip("/") if path.startswith(self._root) else path
            if key > after:
                yield Entry(key, int(info.get("size") or 0), _modified(info))

    def upload(self, source: str, key: str, on_bytes: OnBytes) -> Moved:
        hasher = Hasher()
        with self._errors(key), open(source, "rb", buffering=0) as file:
            self._fs.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
            with self._fs.open(self._path(key), "wb") as target:
                while chunk := file.read(CHUNK):
                    target.write(chunk)
                    hasher.update(chunk)
                    on_bytes(len(chunk))
        return Moved(hasher.size, hasher.digest, hasher.blocks)

    def stream(self, key: str, start: int, length: int, sink: Sink) -> None:
        end = start + length
        while start < end:
            with self._errors(key):  # Not around the sink: its errors are not the store's.
                data = self._fs.cat_file(self._path(key), start=start, end=min(start + CHUNK, end))
            if not data:
                raise StoreUnavailable(store=self.url, cause=f"{key} ended at {start}, before {end}")
            sink(memoryview(data))
            start += len(data)

    def copy(self, source_key: str, target_key: str) -> None:
        with self._errors(source_key):
            self._fs.makedirs(os.path.dirname(self._path(target_key)), exist_ok=True)
            self._fs.cp_file(self._path(source_key), self._path(target_key))

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """fsspec cannot list them."""
        return iter(())

    def abort(self, upload: Unfinished) -> None:
        """There is none."""

    def settle(self, prefix: str) -> None:
        """fsspec has no notion of durability: what the protocol promises is what there is."""

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with contextlib.suppress(Missing), self._errors(key):
                self._fs.rm_file(self._path(key))

    def leftovers(self) -> Iterator[Entry]:
        return (entry for entry in self.list("") if entry.key.startswith(".probe-"))

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise Exists(key) from error
        except FileNotFoundError as error:
            raise Missing(key) from error
        except PermissionError as error:
            raise AccessDenied(what=f"{self.url}/{key}", cause=str(error)) from error
        except NotImplementedError as error:
            raise StoreUnsupported(store=self.url, cause=f"its protocol cannot do this ({error})") from error
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(store=self.url, cause=str(error) or type(error).__name__) from error


def _modified(info: dict[str, Any]) -> float:
    for name in ("mtime", "LastModified", "last_modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0
