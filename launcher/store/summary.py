"""A checkpoint in one line, as the catalog has it, and the keys that tell of commits and deletes (see `catalog`)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import msgspec

from launcher.checkpoint.manifest import Manifest
from launcher.ids import dashed, is_id
from launcher.store import layout
from launcher.transfer.object_store import Entry

_LONGEST_KEY = 255
"""Bytes of a file's name."""


class Summary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A checkpoint in one line: `created` in Unix seconds by its writer's clock, `size` in bytes; `ready`: 1 resume, 2 inference;
    `parents`: ids of what it was made from; `job`: the name of the job that wrote it, empty if it was pushed."""

    id: str
    name: str
    version: int | None
    created: float
    size: int
    format: str
    step: int | None
    ready: int
    parents: tuple[str, ...]
    job: str

    @property
    def label(self) -> str:
        """name@vN."""
        return f"{self.name}@v{self.version}" if self.version else self.name

    @property
    def resume(self) -> bool:
        return bool(self.ready & 1)

    @property
    def inference(self) -> bool:
        return bool(self.ready & 2)


class _Fact(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a change's key says of a commit besides the id. `parents`: 16 bytes each; `job`: the length of the name's beginning
    that it is, or a text."""

    name: str
    version: int | None
    created: float
    size: int
    format: str
    step: int | None
    ready: int
    parents: bytes
    job: int | str


def of_manifest(manifest: Manifest, version: int | None) -> Summary:
    """The line of a checkpoint."""
    ready = manifest.ready.resume + 2 * manifest.ready.inference
    job = manifest.origin.name if manifest.origin else ""
    return Summary(
        manifest.id,
        manifest.name,
        version,
        manifest.created,
        manifest.size,
        manifest.format,
        manifest.facts.step,
        ready,
        tuple(parent for parent in manifest.lineage.parents if is_id(parent)),
        job,
    )


def encode(found: Summary) -> bytes:
    return msgspec.json.encode(found)


def decode(line: bytes) -> Summary:
    return _SUMMARY.decode(line)


def decode_all(lines: Iterable[bytes]) -> list[Summary]:
    """The checkpoints of many lines."""
    return _SUMMARY.decode_lines(b"\n".join(lines))


def change(found: Summary, event: str) -> str:
    """The key that tells of a commit (`event`: a new id); without facts where they are too long for a key."""
    key = f"{layout.change(event, found.id)}.+"
    fact = msgspec.msgpack.encode(_fact(found))
    facts = base64.urlsafe_b64encode(fact).rstrip(b"=").decode()
    return key + facts if len(key.rpartition("/")[2]) + len(facts) <= _LONGEST_KEY else key


def read_changes(entries: Iterable[Entry]) -> tuple[dict[str, Summary | None], set[str]]:
    """What changes say: ids of commits, with what is known of them, and ids of deletes."""
    there: dict[str, Summary | None] = {}
    gone: set[str] = set()
    for entry in entries:
        _, identifier, what = [*entry.key.rpartition("/")[2].split(".", 2), "", ""][:3]
        identifier = dashed(identifier)
        if what == "-":
            gone.add(identifier)
        elif what.startswith("+"):
            there[identifier] = _summary(identifier, what[1:]) or there.get(identifier)
    return there, gone


def told(entry: Entry) -> float:
    """When a change was made by its writer's clock, in Unix seconds."""
    try:
        return int(entry.key.rpartition("/")[2][:12], 16) / 1000
    except ValueError:
        return 0.0


def _fact(found: Summary) -> _Fact:
    job = len(found.job) if found.name.startswith(found.job) else found.job
    parents = bytes.fromhex("".join(found.parents).replace("-", ""))
    return _Fact(
        found.name, found.version, found.created, found.size, found.format, found.step, found.ready, parents, job
    )


def _summary(identifier: str, facts: str) -> Summary | None:
    """A key's facts; None where it has none, or they are damaged: then the manifest is asked."""
    try:
        fact = _FACTS.decode(base64.urlsafe_b64decode(facts + "=" * (-len(facts) % 4)))
    except (ValueError, binascii.Error):
        return None
    if not (fact.name + fact.format).isprintable():
        return None
    job = fact.job if isinstance(fact.job, str) else fact.name[: fact.job]
    digits = fact.parents.hex()
    parents = tuple([dashed(digits[start : start + 32]) for start in range(0, len(digits), 32)])
    return Summary(
        identifier, fact.name, fact.version, fact.created, fact.size, fact.format, fact.step, fact.ready, parents, job
    )


_FACTS = msgspec.msgpack.Decoder(_Fact)
_SUMMARY = msgspec.json.Decoder(Summary)
