"""Which engine serves a URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from launcher.transfer.object_store import MEMORY, ObjectStore


def canonical(url: str) -> str:
    """The `url` that the engine for a path or URL has, without an engine."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        return url.rstrip("/")
    return os.path.abspath(rest if separator else os.path.expanduser(url))


def open_place(
    url: str,
    *,
    timeout: float,
    environ: Mapping[str, str],
    memory: int = MEMORY,
    options: Mapping[str, Any] | None = None,
) -> ObjectStore:
    """The engine for a path or URL, not contacted yet. `timeout`: seconds one operation is retried. `memory`: bytes of the
    process while it uploads, about (clouds only: the others take a buffer of 1 MiB for each file in flight). `options`: a
    cloud's endpoint, region and credentials, instead of the environment's."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        from launcher.transfer.local import LocalStore

        return LocalStore(os.path.expanduser(url))
    if scheme == "file":
        from launcher.transfer.local import LocalStore

        return LocalStore(rest if rest.startswith("/") else rest.partition("/")[1] + rest.partition("/")[2])
    from launcher.transfer.cloud import SCHEMES, CloudStore

    if scheme in SCHEMES:
        return CloudStore(url, timeout=timeout, environ=environ, memory=memory, options=options)
    from launcher.transfer.generic import GenericStore

    return GenericStore(url)
