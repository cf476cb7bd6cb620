"""A checkpoint comes from wherever it is: web servers, the hub, S3, archives; pinned, verified, and only what is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from launcher.errors import AccessDenied, DigestMismatch, SourceNotFound, StoreError, UnsafePath
from launcher.inputs import remote
from launcher.inputs.cache import NodeCache
from launcher.inputs.remote import Remote
from launcher.inputs.selection import Selection, needed
from launcher.settings import Settings
from launcher.transfer import hub as hubs
from tests.support.cli import Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.hub_server import COMMIT, Hub, hub_server
from tests.support.s3_server import S3Server
from tests.support.web_server import Handler, WebServer, web_server

FILES = {
    "notes.json": b'{"hello": "world"}',
    "weights/model 1.dat": os.urandom(300_000),
    "weights/ö&#?.dat": os.urandom(100_000),
    "optimizer.pt": os.urandom(5000),
    "empty.txt": b"",
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path / "data"), store_timeout=20)


@pytest.fixture
def cache(tmp_path: Path) -> NodeCache:
    return NodeCache(str(tmp_path / "cache"), threads=4)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    write(tmp_path / "web" / "model", FILES)
    with web_server(tmp_path / "web") as server:
        yield server


def fetched(found: Remote, cache: NodeCache) -> dict[str, bytes]:
    path, lease = cache.fetch_remote(found, lambda count: None)
    lease.release()
    return content(path)


# ── web servers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ranges", [True, False], ids=["with ranges", "without ranges"])
def test_a_folder_of_a_web_server_is_its_listing(
    web: WebServer, settings: Settings, cache: NodeCache, ranges: bool
) -> None:
    web.ranges = ranges
    large = {"weights/model 1.dat": os.urandom((16 << 20) + 12345)}  # more than one block
    write(web.folder / "model", large)
    found = remote.find(f"{web.url}/model", Selection(), settings, {})  # without its slash: the server redirects
    assert fetched(found, cache) == FILES | large
    before = len(web.requests)
    again = remote.find(f"{web.url}/model/", Selection(), settings, {})
    assert again.name == "model" and fetched(again, cache) == FILES | large
    sent = [path for path, asked, _ in web.requests[before:] if asked not in ("", "bytes=0-0")]
    print(f"{before} requests the first time; the second time {len(sent)} for bytes of files")


def test_pythons_own_server_is_enough(tmp_path: Path, settings: Settings, cache: NodeCache) -> None:
    write(tmp_path / "plain", FILES)
    command = ["python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", tmp_path / "plain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout
            port = server.stdout.readline().split("port ")[1].split()[0]
            found = remote.find(f"http://127.0.0.1:{port}/", Selection(), settings, {})
            assert fetched(found, cache) == FILES
        finally:
            server.kill()


def test_one_file_and_a_signed_url(web: WebServer, settings: Settings, cache: NodeCache) -> None:
    found = remote.find(f"{web.url}/model/weights/model%201.dat?X-Amz-Signature=abc", Selection(), settings, {})
    assert (found.url, found.name) == (f"{web.url}/model/weights/model%201.dat", "model 1.dat")
    assert fetched(found, cache) == {"model 1.dat": FILES["weights/model 1.dat"]}
    assert all("X-Amz-Signature=abc" in path for path, _, _ in web.requests)


def test_a_file_that_is_replaced_meanwhile_is_never_mixed(web: WebServer, settings: Settings, cache: NodeCache) -> None:
    found = remote.find(f"{web.url}/model/", Selection(), settings, {})
    (web.folder / "model" / "weights" / "model 1.dat").write_bytes(os.urandom(300_000))
    with pytest.raises(StoreError, match="replaced while it was being read"):
        fetched(found, cache)
    assert cache.entries() == []
    changed = remote.find(f"{web.url}/model/", Selection(), settings, {})
    assert changed.identity != found.identity and fetched(changed, cache) == content(web.folder / "model")


def test_a_password_goes_to_its_own_server_only(web: WebServer, settings: Settings, tmp_path: Path) -> None:
    web.password = "me:top-secret"
    with pytest.raises(AccessDenied, match="401"):
        remote.find(f"{web.url}/model/", Selection(), settings, {})
    with web_server(tmp_path / "web") as other:
        web.redirects = {"/elsewhere.dat": f"{other.url}/model/optimizer.pt"}
        url = web.url.replace("://", "://me:top-secret@")
        found = remote.find(f"{url}/elsewhere.dat", Selection(), settings, {})
        assert list(fetched(found, NodeCache(str(tmp_path / "c"))).values()) == [FILES["optimizer.pt"]]
        assert len(other.requests) >= 2 and all(given == "" for _, _, given in other.requests)
    assert "secret" not in found.url + found.name


def test_proxies_are_used_as_the_variables_say(web: WebServer, settings: Settings, cache: NodeCache) -> None:
    def forwarded(handler: Handler) -> bool:
        assert handler.headers["Proxy-Authorization"] == "Basic bWU6cHc="
        handler.path = handler.path.removeprefix("http://models.invalid")
        return False

    environ = {"http_proxy": web.url.replace("://", "://me:pw@"), "no_proxy": "example.org, 127.0.0.1"}
    found = remote.find(f"{web.url}/model/", Selection(), settings, environ)
    assert fetched(found, cache) == FILES and web.requests[0][0] == "/model/"
    web.forward = forwarded
    found = remote.find("http://models.invalid/model/", Selection(), settings, environ)
    assert found.url == "http://models.invalid/model/" and fetched(found, cache) == FILES
    with pytest.raises(AccessDenied, match="metadata address"):
        remote.find("http://169.254.169.254/model/", Selection(), settings, environ)


def test_a_page_is_no_checkpoint(web: WebServer, settings: Settings) -> None:
    def login(handler: object) -> bool:
        handler.send(200, b"<html>log in</html>", {"Content-Type": "text/html"})  # type: ignore[attr-defined]
        return True

    web.answer = login
    with pytest.raises(SourceNotFound, match="HTML page"):
        remote.find(f"{web.url}/model.safetensors", Selection(), settings, {})
    web.answer = lambda handler: False
    with pytest.raises(SourceNotFound, match="nothing is there"):
        remote.find(f"{web.url}/modle/", Selection(), settings, {})


FAULTS = "503 ok 429:0.1 cut-body@70% ok 500 short@30% cut ok*3 stall@50%:0.5 wrong-range close"


def test_a_web_server_with_faults_gives_every_byte_right(web: WebServer, settings: Settings, cache: NodeCache) -> None:
    write(web.folder / "model", {f"many/{number}.dat": os.urandom(1000 + number) for number in range(20)})
    with FaultProxy(web.url) as proxy:
        rule = proxy.on("GET", r"/model/.+", FAULTS)
        found = remote.find(f"{proxy.endpoint}/model/", Selection(), settings, {})
        again = proxy.on("GET", r"/model/.+", FAULTS)
        proxy.rules.remove(rule)
        assert fetched(found, cache) == content(web.folder / "model")
        print(f"{len(rule.seen) + len(again.seen)} requests met a word of the script; 25 files came right")
        assert len(rule.seen) >= 15 and len(again.seen) >= 15


def test_an_archive_that_is_refused_leaves_nothing(web: WebServer, settings: Settings, cache: NodeCache) -> None:
    with zipfile.ZipFile(web.folder / "bad.zip", "w") as file:
        file.writestr("good.dat", os.urandom(100_000))
        file.writestr("../canary", b"bad")
    with pytest.raises(UnsafePath):
        fetched(remote.find(f"{web.url}/bad.zip", Selection(), settings, {}), cache)
    assert cache.entries() == [] and not list(cache.folder.rglob("*.dat"))
    assert sum(path.stat().st_size for path in (cache.folder / "partial").rglob("*") if path.is_file()) == 0


def test_an_unpacking_that_was_killed_begins_anew(tmp_path: Path, settings: Settings, cache: NodeCache) -> None:
    archive = pack(write(tmp_path / "model", FILES), tmp_path / "base.tar", "")
    found = remote.of_path(str(archive), Selection(), settings.store_timeout)
    folder = tmp_path / "partial"
    write(folder, {"weights/model 1.dat": b"half", ".launcher-unpacked/notes.json": b"half", "weights/old": b""})
    found.download(folder, threads=2, on_bytes=lambda count: None)
    assert content(folder) == FILES


# ── archives ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def pack(folder: Path, archive: Path, top: str) -> Path:
    """An archive of a folder's content, below a folder `top` where one is named."""
    name = archive.name
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, os.path.join(top, path.relative_to(folder)))
    else:
        plain = archive.with_name("plain.tar")
        with tarfile.open(plain if name.endswith("zst") else archive, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(folder, arcname=top or ".")
        if name.endswith("zst"):
            archive.write_bytes(zstandard.compress(plain.read_bytes()))
    return archive


@pytest.mark.parametrize("top", ["", "my-model"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.zst", "zip"])
def test_an_archive_is_the_folder_that_was_packed(
    tmp_path: Path, settings: Settings, cache: NodeCache, suffix: str, top: str
) -> None:
    archive = pack(write(tmp_path / "model", FILES), tmp_path / f"base.{suffix}", top)
    found = remote.of_text(str(archive), Selection(), settings, {})
    assert found and found.name == "base" and fetched(found, cache) == FILES
    assert [cached.about.size for cached in cache.entries()] == [sum(map(len, FILES.values()))]
    assert cache.damage(cache.entries()[0]) == []


def test_an_archive_on_a_web_server_becomes_a_checkpoint(launcher: Launcher, tmp_path: Path, web: WebServer) -> None:
    pack(web.folder / "model", web.folder / "base.tar.zst", "base")
    launcher("checkpoint", "push", "base", "--file", f"{web.url}/base.tar.zst?token=abcdefgh", "--only", "inference")
    document = launcher.json("checkpoint", "inspect", "base")
    assert {file["path"] for file in document["status"]["files"]} == FILES.keys() - {"optimizer.pt"}
    assert document["spec"]["lineage"]["sources"] == [f"{web.url}/base.tar.zst"]


def test_a_download_that_was_cut_off_goes_on_with_the_files_that_are_whole(
    web: WebServer, settings: Settings, cache: NodeCache
) -> None:
    class Cut(Exception):
        pass

    total = 0

    def until_half(count: int) -> None:
        nonlocal total
        total += count
        if total > large + 50_000:
            raise Cut

    large = (16 << 20) + 1  # Smaller ones are synced many together, and count as whole only then.
    (web.folder / "model" / "large.dat").write_bytes(os.urandom(large))
    found = remote.find(f"{web.url}/model/", Selection(), settings, {})
    with pytest.raises(Cut):
        NodeCache(str(cache.folder), threads=1).fetch_remote(found, until_half)
    before = len(web.requests)
    assert fetched(found, cache).keys() == FILES.keys() | {"large.dat"}
    asked = [path for path, _, _ in web.requests[before:]]
    print(f"the second attempt asked for {len(asked)} of {len(FILES) + 1} files: {asked}")
    assert asked and not any("large" in path for path in asked), "the largest came first, and is kept"


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LENGTH = (16 << 20) + 99
HEADER = json.dumps({"a": {"dtype": "U8", "shape": [LENGTH], "data_offsets": [0, LENGTH]}}).encode()
REPOSITORY = {
    "config.json": b'{"architectures": ["M"]}',
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + os.urandom(LENGTH),
    "pytorch_model.bin": os.urandom(5000),
    "tf_model.h5": os.urandom(5000),
    "onnx/model.onnx": os.urandom(5000),
    "README.md": b"# model",
    ".gitattributes": b"*.bin lfs",
    "tokenizer/vocab.txt": b"a b c",
}
NEEDED = {"config.json", "model.safetensors", "tokenizer/vocab.txt"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write(tmp_path / "hub" / "org" / "model", REPOSITORY)
    with hub_server(tmp_path / "hub") as server:
        yield server


def environment(hub: Hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url}


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_a_hub_repository_is_pinned_to_its_commit_and_only_what_is_needed_comes(
    hub: Hub, settings: Settings, cache: NodeCache, revision: str
) -> None:
    found = remote.find(f"hf://org/model{revision}", Selection(), settings, environment(hub))
    assert (found.url, found.name) == (f"hf://org/model@{COMMIT}", "model")
    assert fetched(found, cache) == {path: REPOSITORY[path] for path in NEEDED}


def test_what_is_asked_for_by_name_comes_and_folders_are_checkpoints_too(
    hub: Hub, settings: Settings, cache: NodeCache
) -> None:
    found = remote.find("hf://org/model", Selection(include=("*.onnx", "*.md")), settings, environment(hub))
    assert fetched(found, cache).keys() == {"onnx/model.onnx", "README.md"}
    found = remote.find("hf://org/model@v1/tokenizer", Selection(), settings, environment(hub))
    assert fetched(found, cache) == {"vocab.txt": b"a b c"}
    assert found.url == f"hf://org/model@{COMMIT}/tokenizer"


def test_the_hubs_own_digests_are_checked(hub: Hub, settings: Settings, cache: NodeCache) -> None:
    hub.wrong = {"model.safetensors"}
    found = remote.find("hf://org/model", Selection(), settings, environment(hub))
    with pytest.raises(DigestMismatch, match=r"model\.safetensors.*3 times"):
        fetched(found, cache)
    assert cache.entries() == []
    assert isinstance(found.place, hubs.HubRepository)
    assert {digest.partition(":")[0] for digest in found.place.digests.values()} == {"sha256", "git"}


def test_a_wrong_byte_from_the_hubs_storage_is_fetched_again(hub: Hub, settings: Settings, cache: NodeCache) -> None:
    with FaultProxy(hub.storage.url) as proxy:
        rule = proxy.on("GET", r"/org/model/model\.safetensors", "flip@5 503 ok cut-body@10%")
        hub.storage_url = proxy.endpoint
        found = remote.find("hf://org/model", Selection(), settings, environment(hub))
        assert fetched(found, cache) == {path: REPOSITORY[path] for path in NEEDED}
        assert rule.seen[:4] == ["flip@5", "503", "ok", "cut-body@10%"]


def test_the_hubs_token_never_reaches_the_storage_that_it_redirects_to(
    hub: Hub, settings: Settings, cache: NodeCache
) -> None:
    hub.token = "hf_verysecret"
    with pytest.raises(SourceNotFound, match="no such repository, or it is private"):
        remote.find("hf://org/model", Selection(), settings, environment(hub) | {"HF_TOKEN": "hf_wrong"})
    found = remote.find("hf://org/model", Selection(), settings, environment(hub) | {"HF_TOKEN": hub.token})
    assert fetched(found, cache).keys() == NEEDED
    assert len(hub.storage.requests) >= 2 and all(given == "" for _, _, given in hub.storage.requests)


def test_what_the_hub_does_not_have_is_said(hub: Hub, settings: Settings) -> None:
    for url, cause in (("hf://org/nothing", "no such repository"), ("hf://org/model@v9", "no revision 'v9'")):
        with pytest.raises(SourceNotFound, match=cause):
            remote.find(url, Selection(), settings, environment(hub))


def test_needed_keeps_what_nothing_else_replaces() -> None:
    assert needed(["config.json", "pytorch_model.bin", "tf_model.h5"]) == {"config.json", "pytorch_model.bin"}
    assert needed(["config.json", "tf_model.h5", "README.md"]) == {"config.json", "tf_model.h5"}
    assert needed(["unet/a.safetensors", "vae/pytorch_model.bin"]) == {"unet/a.safetensors", "vae/pytorch_model.bin"}


def test_a_job_starts_from_the_hub_and_its_checkpoints_say_so(launcher: Launcher, hub: Hub) -> None:
    launcher.env |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    job = 'cat "$LAUNCHER_INPUT_CHECKPOINT/config.json"; cp -r "$LAUNCHER_INPUT_CHECKPOINT" "$FLEXAI_OUTPUT_CHECKPOINT_DIR/c"'
    output = launcher("training", "run", "job", "-C", "hf://org/model@main", "--", "sh", "-c", job)
    assert '"architectures"' in output
    (stored,) = launcher.json("training", "checkpoints", "job")
    assert "whole (transformers-pretrained)" in launcher("checkpoint", "verify", "hf://org/model")
    launcher("checkpoint", "push", "m", "--file", "hf://org/model")
    files = {file["path"]: file for file in launcher.json("checkpoint", "inspect", "m")["status"]["files"]}
    assert files["model.safetensors"]["sha256"] == hashlib.sha256(REPOSITORY["model.safetensors"]).hexdigest()
    assert stored["spec"]["lineage"]["sources"] == [f"hf://org/model@{COMMIT}"]


# ── S3, file:// and selections ───────────────────────────────────────────────────────────────────────────────────────


def test_s3_holds_folders_files_and_archives(
    tmp_path: Path,
    settings: Settings,
    cache: NodeCache,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from launcher.transfer.places import open_place

    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.new_bucket()
    place = open_place(f"s3://{bucket}", timeout=20, environ=os.environ)
    write(tmp_path / "model", FILES)
    for name in FILES:
        place.upload(str(tmp_path / "model" / name), f"a/model/{name}", lambda count: None)
    place.upload(str(pack(tmp_path / "model", tmp_path / "m.tar.gz", "m")), "a/m.tar.gz", lambda count: None)
    base = f"s3://{bucket}/a"

    def find(path: str) -> Remote:
        return remote.find(f"{base}/{path}", Selection(), settings, os.environ)

    assert fetched(find("model"), cache) == FILES
    assert fetched(find("m.tar.gz"), cache) == FILES
    assert fetched(find("model/optimizer.pt"), cache) == {"optimizer.pt": FILES["optimizer.pt"]}
    for missing in ("nothing", "m.tar", "model/optimizer"):
        with pytest.raises(SourceNotFound, match="nothing is there"):
            find(missing)


def test_a_job_gets_what_inference_needs_of_a_stored_checkpoint(launcher: Launcher, tmp_path: Path) -> None:
    launcher("checkpoint", "push", "base", "--file", write(tmp_path / "model", FILES), "--exclude", "empty.txt")
    listing = ("--", "sh", "-c", 'cd "$LAUNCHER_INPUT_CHECKPOINT" && find . -type f | sort')
    output = launcher("training", "run", "j", "-C", "base", "--only", "inference", "--exclude", "*&*", *listing)
    assert (
        "./notes.json\n./weights/model 1.dat\n" in output and "optimizer" not in output and "./weights/ö" not in output
    )
    output = launcher("training", "run", "j", "-C", "base", *listing)
    assert "./optimizer.pt" in output and "empty.txt" not in output
    sizes = sorted(each["files"] for each in launcher.json("cache", "list"))
    assert sizes == [2, 4], "the part and the whole are two entries"
    output = launcher("training", "run", "j", "-C", "base", "--include", "*.txt", *listing, code=66)
    assert "none of its files is taken" in output
    launcher.env |= {"LAUNCHER_INCLUDE": "notes.json, *.pt"}
    local = f"file://{tmp_path}/model"
    output = launcher("training", "run", "j", "-C", local, *listing)
    assert "./notes.json\n./optimizer.pt\n" in output and "weights" not in output


def test_a_file_url_is_the_folder_itself(launcher: Launcher, tmp_path: Path) -> None:
    write(tmp_path / "model", {"config.json": b"{}"})
    output = launcher(
        "training", "run", "j", "-C", f"file://{tmp_path}/model", "--", "sh", "-c", "ls $LAUNCHER_INPUT_CHECKPOINT"
    )
    assert "config.json" in output and launcher.json("cache", "list") == []
    assert "another machine" in launcher("checkpoint", "push", "x", "--file", f"file://host{tmp_path}/model", code=64)


def test_the_same_listing_is_the_same_entry_and_another_one_is_not(web: WebServer, settings: Settings) -> None:
    whole = remote.find(f"{web.url}/model/", Selection(), settings, {})
    part = remote.find(f"{web.url}/model/", Selection(exclude=("*.pt",)), settings, {})
    same = dataclasses.replace(remote.find(f"{web.url}/model/", Selection(), settings, {}), place=whole.place)
    assert same == whole and part.identity != whole.identity and part.size == whole.size - 5000
