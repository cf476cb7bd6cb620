"""The contract of every place that can hold a store, and the one exclusive create.

Implementations: `local` (file systems), `cloud` (S3, GCS, Azure through obstore), `generic` (any fsspec protocol that can
create exclusively). Keys are relative paths with `/`; a key never begins or ends with a slash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from launcher.errors import CommitUnknown, StoreError, StoreUnavailable
from launcher.transfer.retry import policy

MEMORY = 256 << 20
"""Bytes of a process that uploads, where nothing else is said."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes just moved, from any thread, often; negative where they have to be moved again. By waiting
in it, a caller slows the transfer down; by raising, he ends it."""


def for_file(on_bytes: OnBytes, name: str, size: int) -> OnBytes:
    """Who is told of one file's bytes: what `on_bytes` has for it (a method `file` of name and size in bytes), or itself."""
    make: Callable[[str, int], OnBytes] | None = getattr(on_bytes, "file", None)
    return make(name, size) if make else on_bytes


Sink = Callable[[memoryview], None]
"""Takes the next bytes of an object; their memory is used again after the call."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing: size in bytes, modified in Unix seconds by the store's own clock."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True)
class Moved:
    """A file that was uploaded or downloaded whole: size in bytes, digest of exactly the bytes that were moved, and the
    digests of its blocks where it has several (see `digest`)."""

    size: int
    digest: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfinished:
    """An upload that was begun and not finished: no reader sees it, and what arrived of it takes space. `began`: Unix
    seconds by the store's own clock."""

    key: str
    id: str
    began: float


class Missing(Exception):
    """The object does not exist. Internal: callers turn it into an error that names what they looked for."""


class Exists(Exception):
    """The store said that the object exists already (which can also be our own, see `create`)."""


class Readable(Protocol):
    """What a place must offer that checkpoints are only read from. Every method may be called from several threads.

    All raise StoreUnavailable (retryable), StoreError or AccessDenied; a missing object is `Missing`.
    """

    url: str

    def read(self, key: str, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`; shorter only at the object's end."""

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Every object whose key begins with `prefix` (ending in a slash, or empty), in key order, after `after`."""

    def stream(self, key: str, start: int, length: int, sink: Sink) -> None:
        """Passes `length` bytes from `start` to `sink`, in order, in pieces whose memory is used again after the call.

        One attempt: where it raises StoreUnavailable, `sink` has had the first so many bytes. `bulk.download` goes on
        behind them, verifies, and is what to use for files."""


class ObjectStore(Readable, Protocol):
    """What a store's place must offer besides, under the same rules."""

    def create_once(self, key: str, body: bytes) -> None:
        """One attempt, never retried inside, to create an object that must not exist: raises Exists, or any StoreError
        when it cannot tell. Returns only when the object is durably there and is ours. Use `create` instead."""

    def get(self, key: str) -> bytes:
        """A whole (small) object."""

    def put(self, key: str, body: bytes) -> None:
        """Writes a small object, replacing what was there: for records and caches only."""

    def upload(self, source: str, key: str, on_bytes: OnBytes) -> Moved:
        """Stores a local file; the digest is of the bytes sent."""

    def copy(self, source_key: str, target_key: str) -> None:
        """Makes an object from another one inside the place, replacing what was there: its bytes do not pass through here.

        Raises Missing where there is no such source, StoreUnsupported where the place cannot copy this object."""

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """The uploads below `prefix` that were begun and not finished. Raises StoreUnsupported where the place keeps them and
        cannot list them."""

    def abort(self, upload: Unfinished) -> None:
        """Removes what arrived of an upload; one that is gone already is no error. Its writer, if it lives, begins anew."""

    def settle(self, prefix: str) -> None:
        """Makes durable everything uploaded below `prefix`. Called before whatever refers to it is created."""

    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; one that is missing already is no error."""

    def leftovers(self) -> Iterator[Entry]:
        """Temporary objects of this engine that a crash left, or a writer has just now; `list` leaves them out, and
        `delete` takes their keys."""


@dataclass(frozen=True)
class Ours:
    """The object is there and its body is the one we wanted. `fresh`: by this call for sure, not by an earlier one."""

    fresh: bool


@dataclass(frozen=True)
class Theirs:
    """The object is there with another body: someone else was first."""

    body: bytes


def create(store: ObjectStore, key: str, body: bytes, *, timeout: float) -> Ours | Theirs:
    """Creates an object that must not exist yet, and knows the truth about it afterwards.

    An answer of "exists" means ours, theirs or nobody's: an answer can be lost after the object landed, and S3's 409 comes
    with nothing written. So every doubt is settled by reading the key back: same body is ours, another is theirs, absent is
    tried again. Bodies must carry an id of their writer. Raises CommitUnknown when the store cannot be read either within
    `timeout` seconds; then nothing may be cleaned up.
    """

    def attempt() -> Ours | Theirs:
        failure: Exception | None = None
        try:
            store.create_once(key, body)
            return Ours(fresh=True)
        except (Exists, StoreUnavailable) as error:
            failure = error
        try:
            found = store.get(key)
        except Missing as missing:
            raise StoreUnavailable(store=store.url, cause=f"{key} was refused and is absent") from (failure or missing)
        return Ours(fresh=False) if found == body else Theirs(found)

    try:
        for trial in policy(timeout):
            with trial:
                return attempt()
    except StoreUnavailable as error:
        raise CommitUnknown(key=key, store=store.url, cause=error.facts["cause"]) from error
    raise StoreError(store=store.url, cause="no attempt was made")  # policy() always yields at least once
