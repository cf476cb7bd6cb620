"""Faults of the network between us and a real S3 server (T7, T8, a first slice of T10)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import CommitUnknown
from launcher.store.store import Store
from launcher.transfer.object_store import ObjectStore, Ours, create
from launcher.transfer.places import open_place
from tests.support.cli import Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_server.endpoint)
    yield proxy
    proxy.stop()


@pytest.fixture
def place(s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in (s3_server.env() | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
        monkeypatch.setenv(name, value)
    return open_place(f"s3://{s3_server.new_bucket()}/store", timeout=3, environ=os.environ)


@pytest.mark.parametrize(
    "fault", ["500-after", "close-after", "cut-after", "409", "500", "close", "cut", "html200-after"]
)
def test_a_create_knows_the_truth_after_every_fault(place: ObjectStore, proxy: FaultProxy, fault: str) -> None:
    """20 times each: the object is ours, is there once, and nobody is told that somebody else has it."""
    for number in range(20):
        proxy.script("PUT", f"key-{number}", fault)
        assert create(place, f"key-{number}", b"mine", timeout=20).__class__ is Ours
        assert proxy.rules[0].seen[0] == fault
        assert place.get(f"key-{number}") == b"mine"


def test_an_answer_that_never_comes_is_settled_by_reading(place: ObjectStore, proxy: FaultProxy) -> None:
    proxy.script("PUT", "late", "no-answer-after:8")
    assert create(place, "late", b"mine", timeout=20).__class__ is Ours


def test_what_can_be_neither_proven_nor_refuted_is_said(place: ObjectStore, proxy: FaultProxy) -> None:
    proxy.script("GET", "lost", "500*")
    proxy.on("PUT", "lost", "500-after*")
    with pytest.raises(CommitUnknown, match="not known"):
        create(place, "lost", b"mine", timeout=2)


@pytest.mark.parametrize("path", ["manifests", "names"])
@pytest.mark.parametrize("fault", ["500-after", "cut-after", "409"])
def test_no_version_is_doubled_or_left_out(
    launcher: Launcher, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path, path: str, fault: str
) -> None:
    """10 pushes, each with its commit answered wrongly: versions 1 to 10, one checkpoint each."""
    launcher.env |= s3_server.env() | {
        "AWS_ENDPOINT_URL": proxy.endpoint,
        "LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p",
    }
    (tmp_path / "m").mkdir()
    for number in range(10):
        (tmp_path / "m" / "notes.txt").write_text(str(number))
        proxy.script("PUT", f"/{path}/", fault)
        launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
        assert proxy.rules[0].seen[0] == fault
    found = launcher.json("checkpoint", "list")
    assert [each["metadata"]["version"] for each in found] == list(range(1, 11))
    assert len({each["metadata"]["id"] for each in found}) == 10


@pytest.mark.parametrize(
    "fault", ["500*3", "cut*2", "cut-body", "flip", "cut-body*2", "short@50%", "html200", "short-with-full-length"]
)
def test_no_wrong_byte_reaches_a_job(
    launcher: Launcher, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    launcher.env |= s3_server.env() | {
        "AWS_ENDPOINT_URL": proxy.endpoint,
        "LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p",
    }
    data = os.urandom(3_000_000)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "data.bin").write_bytes(data)
    launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
    proxy.script("GET", r"data\.bin", fault)
    launcher("checkpoint", "fetch", "base", "--destination", tmp_path / "got")
    assert proxy.rules[0].seen[0] == fault.partition("*")[0]
    assert (tmp_path / "got" / "data.bin").read_bytes() == data


def test_damage_that_stays_is_refused_and_named(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "data.bin").write_bytes(os.urandom(1000))
    launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
    stored = next((launcher.home / "data/store/checkpoints").glob("*/data.bin"))
    stored.chmod(0o644)
    with open(stored, "r+b") as file:
        file.write(b"?")
    output = launcher("training", "run", "j", "-C", "base", "--", "true", code=65)
    assert "data.bin" in output and "damaged" in output
    assert "data.bin" in launcher("checkpoint", "verify", "base", "--read-data", code=65)


def test_a_checkpoint_between_its_manifest_and_its_name_gets_its_version(tmp_path: Path) -> None:
    """The crash between the two: committing the same id again names it, once."""
    from launcher.checkpoint.manifest import SCHEMA, Manifest
    from launcher.store.upload import upload_files
    from launcher.transfer.local import LocalStore

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("x")
    store = Store(LocalStore(str(tmp_path / "store")), timeout=5)
    from launcher.ids import new_id

    identifier = new_id()
    files = upload_files(store, identifier, str(tmp_path / "m"), ["a"], threads=1, on_bytes=lambda count: None)
    manifest = Manifest(
        schema=SCHEMA, id=identifier, name="n", created=1.0, writer="t", format="unknown", files=files, size=1
    )
    assert store.commit(manifest).version == 1
    os.unlink(tmp_path / "store/names/n/v00000001.json")
    assert store.commit(manifest).version == 1
    assert store.commit(manifest).version == 1
    assert [each.version for each in store.checkpoints()] == [1]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_versions_of_many_writers_are_gapless(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A slice of tests/campaigns/versions.py: 4 processes × 10 commits to one name."""
    from tests.campaigns.versions import campaign

    url = str(tmp_path / "store")
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.new_bucket()}/store"
    assert "versions 1 to 40, each once" in campaign(url, 4, 10)
