"""Decoders of stored JSON that several threads may use.

msgspec works out a struct's fields at its first use, and two threads that do so at once crash the process (measured with
0.22 on Python 3.11: a segmentation fault in 1 of some 50 listings of a store). So it is done once, under a lock.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_lock = threading.Lock()
_made: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def decode(body: bytes, kind: type[T]) -> T:
    """The `kind` in a JSON document. Raises ValueError (msgspec.DecodeError, UnicodeDecodeError), RecursionError."""
    with _lock:
        if kind not in _made:
            _made[kind] = msgspec.json.Decoder(kind)
        decoder: msgspec.json.Decoder[T] = _made[kind]
    return decoder.decode(body)
