"""`launcher checkpoint verify`: any folder, file, stored checkpoint or URL; exit code 0 whole, 65 not; headers only."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoint import formats, safety
from launcher.store.tree import RemoteTree
from launcher.transfer.object_store import ObjectStore
from launcher.transfer.places import open_place
from tests.campaigns import layouts
from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.s3_server import S3Server


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    layouts.write(folder)
    return folder


def verified(launcher: Launcher, target: str, code: int) -> Any:
    done = subprocess.run(
        [PROGRAM, "checkpoint", "verify", target, "--json"],
        env=launcher.env, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_folder_and_a_file(launcher: Launcher, written: Path, tmp_path: Path) -> None:
    found = verified(launcher, str(written / "trainer"), 0)
    assert {"format", "whole", "reasons", "facts", "safety"} <= found.keys()
    assert (found["format"], found["whole"], found["reasons"]) == ("transformers-trainer", True, [])
    assert found["facts"]["step"] == 10 and found["ready"]["resume"]
    assert found["safety"]["findings"] == [] and "collections.OrderedDict" in found["safety"]["imports"]
    assert verified(launcher, str(written / "gguf/tiny.gguf"), 0)["format"] == "gguf"
    shutil.copytree(written / "trainer", tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = verified(launcher, str(tmp_path / "cut"), 65)
    assert not found["whole"] and "its header promises" in found["reasons"][0]
    said = launcher("checkpoint", "verify", tmp_path / "cut", code=65)
    assert "broken (transformers-trainer)" in said and "its header promises" in said
    launcher("checkpoint", "verify", tmp_path / "nothing", code=66)


def test_a_stored_checkpoint(launcher: Launcher, written: Path) -> None:
    launcher("checkpoint", "push", "adapter", "--file", written / "trainer-adapter")
    found = verified(launcher, "adapter", 0)
    assert found["whole"] and found["facts"]["base_model"] == "tiny/base" and found["ready"]["base"] == "tiny/base"
    store = launcher.home / "data/store"
    victim = next(path for path in store.rglob("optimizer.pt"))
    victim.chmod(0o600)
    data = victim.read_bytes()
    victim.write_bytes(data[:-5])
    assert "optimizer.pt: it has" in verified(launcher, "adapter", 65)["reasons"][0]
    victim.write_bytes(data[:-5] + b"00000")
    assert verified(launcher, "adapter", 65)["reasons"]
    victim.unlink()
    assert verified(launcher, "adapter", 65)["reasons"] == ["optimizer.pt: it is missing"]


class _Counting:
    """A place that counts the bytes that are read from it."""

    def __init__(self, place: ObjectStore) -> None:
        self._place = place
        self.bytes = self.requests = 0

    def read(self, key: str, start: int, length: int) -> bytes:
        data = self._place.read(key, start, length)
        self.bytes += len(data)
        self.requests += 1
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)


def test_a_url_by_its_headers_only(
    launcher: Launcher, written: Path, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy
    from safetensors.numpy import save_file

    source = tmp_path / "source"
    shutil.copytree(written / "trainer", source)
    save_file({f"layer.{index}": numpy.zeros(2 << 20, "float32") for index in range(4)}, source / "model.safetensors")
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{s3_server.new_bucket()}/some/model"
    place = open_place(url, timeout=60, environ=s3_server.env())
    for path in source.iterdir():
        place.upload(str(path), path.name, lambda count: None)
    launcher.env |= s3_server.env()
    found = verified(launcher, url, 0)
    assert found["format"] == "transformers-trainer" and found["facts"]["parameters"] == 4 * (2 << 20)

    counting = _Counting(place)
    tree = RemoteTree(counting, "", {entry.key: entry.size for entry in place.list("")}, 60)  # type: ignore[arg-type]
    tree.read_heads(8)
    assert formats.judge(tree).whole and not safety.look(tree).findings
    size = sum(tree.files.values())
    print(f"{size:,} bytes at the URL: {counting.bytes:,} read in {counting.requests} requests")
    assert counting.bytes < size / 50

    assert verified(launcher, f"{url}/model.safetensors", 0)["format"] == "safetensors"
    place.upload(str(source / "config.json"), "model.safetensors", lambda count: None)
    assert not verified(launcher, url, 65)["whole"]
    launcher("checkpoint", "verify", url + "/nothing", code=66)
