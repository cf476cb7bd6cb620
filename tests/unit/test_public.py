"""What is promised to stay: names of errors and settings, and the layers' one door."""

from __future__ import annotations

import msgspec

from launcher.errors import tree
from launcher.settings import Settings

KINDS = {
    "internal", "usage", "settings", "not-found",
    "checkpoint-not-found", "job-not-found", "source-not-found", "invalid-data",
    "manifest-invalid", "digest-mismatch", "unsafe-path", "format-broken", "input-changed", "store", "store-unavailable",
    "store-unsupported", "commit-unknown", "collection-incomplete", "local-resource", "no-space", "mount-failed",
    "lock-timeout", "engine-unavailable", "too-few-accelerators", "access-denied", "preempted", "command-not-found",
    "command-not-executable", "object-damaged", "record-damaged", "unsafe-pickle", "archive-refused", "still-running",
    "dataset-not-found", "requirements-failed", "repository-unavailable", "tag-moved", "not-ready", "port-taken",
    "server-silent",
}  # fmt: skip


def test_the_kinds_of_errors_are_only_ever_added_to() -> None:
    kinds = [error.kind for error in tree()]
    assert set(kinds) == KINDS and len(kinds) == len(KINDS)


def test_every_setting_has_a_default() -> None:
    assert all(not field.required for field in msgspec.structs.fields(Settings))
