"""The keys of a store.

store.json                          schema of the store; created once, exclusively
checkpoints/<id>/<path>             the files as the job wrote them: any tool can read them from here
manifests/<id>.json                 the commit point, created last and exclusively
names/<key>/v00000001.json          {checkpoint id}; exclusive creation hands out version numbers
deleted/<id>.json                   tombstones
pins/<id>.json                      a person wants to keep it
uses/<id>/<job id>.json             a job was started from it
tags/<key>/<tag>/v00000001.json     where a tag of a name points; the highest number is the current one
catalog/changes/<time>/<change>     one empty object for each commit and delete; its key says what (see `catalog`)
catalog/segments/<time>.<id>.zst    what is in the store, as of a moment
clock/<id>                          written and removed at once: what time the store has
jobs/<id>/…                         record.json, events.jsonl, logs/, outputs/
"""

from __future__ import annotations

import re

from launcher import names

STORE = "store.json"
FILES = "checkpoints/"
MANIFESTS = "manifests/"
NAMES = "names/"
TOMBSTONES = "deleted/"
PINS = "pins/"
USES = "uses/"
TAGS = "tags/"
CHANGES = "catalog/changes/"
SEGMENTS = "catalog/segments/"
CLOCK = "clock/"
_VERSION = re.compile(r"v([0-9]{8})\.json")


def files(checkpoint: str) -> str:
    """The prefix of a checkpoint's files."""
    return f"{FILES}{checkpoint}/"


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
    """The key that says, for ever, that a checkpoint was deleted."""
    return f"{TOMBSTONES}{checkpoint}.json"


def pin(checkpoint: str) -> str:
    """The key that keeps a checkpoint from retention."""
    return f"{PINS}{checkpoint}.json"


def use(checkpoint: str, job: str) -> str:
    """The key that says that a job was started from a checkpoint."""
    return f"{USES}{checkpoint}/{job}.json"


def tags(name: str) -> str:
    """The prefix of a name's tags."""
    return f"{TAGS}{names.key(name)}/"


def tag(name: str, tag: str) -> str:
    """The prefix of where a tag pointed."""
    return f"{tags(name)}{tag}/"


def tag_move(name: str, tag: str, number: int) -> str:
    """The key that says where a tag points since it was moved for the `number`-th time."""
    return f"{tags(name)}{tag}/v{number:08d}.json"


def change(event: str, checkpoint: str) -> str:
    """How the key of a change begins: `event` is an id of its own, and says when; a folder is for some three days."""
    return f"{before_change(event)}.{checkpoint.replace('-', '')}"


def before_change(event: str) -> str:
    """A key before those of all changes from an event on."""
    digits = event.replace("-", "")
    return f"{CHANGES}{digits[:5]}/{digits}"


def segment(until: float, identifier: str) -> str:
    """The key of the lines of a moment (Unix seconds), so that the newest is the last."""
    return f"{SEGMENTS}{int(until):012d}.{identifier}.zst"


def identifier(key: str) -> str:
    """The id in a key of manifests/, deleted/ or pins/ (the last part) or of checkpoints/ or uses/ (the second)."""
    parts = key.split("/")
    return parts[1].removesuffix(".json") if len(parts) > 1 else ""


def job(identifier: str) -> str:
    """The prefix of what is kept of a job."""
    return f"jobs/{identifier}/"


def outputs(identifier: str) -> str:
    """The prefix of what a job wrote that is no checkpoint."""
    return f"{job(identifier)}outputs/"
