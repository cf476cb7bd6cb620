"""What is promised to stay: names of errors and settings, and the layers' one door."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import launcher
from launcher import api
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


PUBLIC = [
    "Checkpoint", "Event", "JobSpec", "LauncherError", "Result", "Store", "__version__", "checkpoint_path", "fetch_checkpoint",
    "open_store", "push_checkpoint", "run",
]  # fmt: skip


def test_the_python_api_is_what_is_listed() -> None:
    assert launcher.__all__ == PUBLIC
    assert set(api.__all__) == set(PUBLIC) - {"__version__"}
    for name in PUBLIC:
        assert getattr(launcher, name) is not None and name in dir(launcher)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        launcher.runn  # type: ignore[attr-defined]  # noqa: B018
    assert not {each.name for each in pkgutil.iter_modules(launcher.__path__)} & set(
        PUBLIC
    )  # A module would replace it.
    assert Path(launcher.__path__[0], "py.typed").exists()


def test_importing_the_launcher_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import launcher; print(*set(sys.modules) - before)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["launcher"]
