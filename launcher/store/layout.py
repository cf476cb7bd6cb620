"""The keys of a store.

store.json                          schema of the store; created once, exclusively
checkpoints/<id>/<path>             the files as the job wrote them: any tool can read them from here
manifests/<id>.json                 the commit point, created last and exclusively
names/<key>/v00000001.json          {checkpoint id}; exclusive creation hands out version numbers
deleted/<id>.json                   tombstones
jobs/<id>/…                         record.json, events.jsonl, logs/, outputs/
"""

from __future__ import annotations

import re

from launcher import names

STORE = "store.json"
MANIFESTS = "manifests/"
NAMES = "names/"
_VERSION = re.compile(r"v([0-9]{8})\.json")


def files(checkpoint: str) -> str:
    """The prefix of a checkpoint's files."""
    return f"checkpoints/{checkpoint}/"


def manifest(checkpoint: str) -> str:
    """The key whose creation commits a checkpoint."""
    return f"{MANIFESTS}{checkpoint}.json"


def versions(name: str) -> str:
    """The prefix of a name's versions."""
    return f"{NAMES}{names.key(name)}/"


def version(name: str, number: int) -> str:
    """The key that gives a version number of a name to a checkpoint."""
    return f"{versions(name)}v{number:08d}.json"


def version_number(key: str) -> int | None:
    """The number in a version's key; None for another key."""
    match = _VERSION.fullmatch(key.rpartition("/")[2])
    return int(match[1]) if match else None


def tombstone(checkpoint: str) -> str:
    """The key that tells indexes of a removal."""
    return f"deleted/{checkpoint}.json"


def job(identifier: str) -> str:
    """The prefix of what is kept of a job."""
    return f"jobs/{identifier}/"
