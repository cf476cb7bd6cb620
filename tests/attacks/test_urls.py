"""No URL, listing or redirect leads to a metadata service, another protocol, another server's files or a local file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import AccessDenied, LauncherError, SourceNotFound, StoreError, UsageError
from launcher.inputs import remote
from launcher.inputs.cache import NodeCache
from launcher.inputs.selection import Selection
from launcher.settings import Settings
from launcher.transfer import web as webs
from tests.support.cli import Launcher
from tests.support.web_server import Handler, WebServer, web_server

METADATA = [
    "169.254.169.254", "169.254.170.2", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
    "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]", "[fe80::1]", "[fd00:ec2::254]",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "0", "[::]", "224.0.0.1", "[ff02::1]",
]  # fmt: skip
CHAINS = [
    "simplecache::s3://bucket/x", "filecache::file:///etc/passwd", "blockcache::http://127.0.0.1/x",
    "zip://passwd::file:///etc/passwd.zip", "tar://x::file:///etc", "s3://bucket::file:///etc/passwd",
    "http://127.0.0.1/x::file:///etc/passwd", "reference://x", "dir://etc", "local:///etc/passwd", "libarchive://x",
]  # fmt: skip

connected: list[Any] = []


def _audit(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "socket.connect" and isinstance(arguments[1], tuple):
        connected.append(arguments[1][0])


sys.addaudithook(_audit)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path / "data"), store_timeout=5)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "web" / "model").mkdir(parents=True)
    (tmp_path / "web" / "model" / "a.bin").write_bytes(b"a" * 1000)
    (tmp_path / "web" / "secret").write_bytes(b"secret")
    with web_server(tmp_path / "web") as server:
        connected.clear()
        yield server
    assert set(connected) <= {"127.0.0.1"}, "no packet went anywhere else"


def find(url: str, settings: Settings) -> remote.Remote:
    return remote.find(url, Selection(), settings, {})


@pytest.mark.parametrize("host", METADATA)
def test_metadata_addresses_are_refused_before_any_packet(host: str, web: WebServer, settings: Settings) -> None:
    for url in (
        f"http://{host}/latest/meta-data/",
        f"https://{host}/x.tar",
        f"http://me:pw@{host}:80/x",
        f"ftp://{host}/x",
    ):
        with pytest.raises(AccessDenied, match="metadata address"):
            find(url, settings)
    assert connected == []


@pytest.mark.parametrize("host", METADATA)
def test_redirects_to_them_are_refused_too(host: str, web: WebServer, settings: Settings, tmp_path: Path) -> None:
    web.redirects = {"/model/b.bin": f"http://{host}/latest/meta-data/iam"}
    with pytest.raises(AccessDenied, match="metadata address"):
        find(f"{web.url}/model/b.bin", settings)
    found = find(f"{web.url}/model/a.bin", settings)
    web.redirects = {"/model/a.bin": f"https://{host}/x"}  # It was harmless when it was looked at.
    with pytest.raises(AccessDenied, match="metadata address"):
        NodeCache(str(tmp_path / "cache")).fetch_remote(found, lambda count: None)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:6379/_x", "data:,x"]
)
def test_redirects_to_other_protocols_are_refused(location: str, web: WebServer, settings: Settings) -> None:
    web.redirects = {"/model/b.bin": location}
    with pytest.raises(AccessDenied, match="another protocol"):
        find(f"{web.url}/model/b.bin", settings)


def test_a_circle_of_redirects_ends(web: WebServer, settings: Settings) -> None:
    web.redirects = {"/x.bin": "/y.bin", "/y.bin": "/x.bin"}
    with pytest.raises(StoreError, match="redirects more than 5 times"):
        find(f"{web.url}/x.bin", settings)


FOREIGN = [
    "http://169.254.169.254/x.bin", "http://localhost:1/x.bin", "//example.invalid/x.bin", "/secret", "../secret", "../",
    "./", "#x", "?C=S;O=A", "a.bin?download=1", "file:///etc/passwd", "javascript:alert(1)", "mailto:a@b", "../../etc/",
    "sub/../../secret", "http://[", "/model/../secret", "%2e%2e/secret", "a/b/c.bin", "",
]  # fmt: skip


def test_a_listings_links_to_elsewhere_are_not_followed(web: WebServer, settings: Settings, tmp_path: Path) -> None:
    web.listing = FOREIGN
    found = find(f"{web.url}/model/", settings)
    assert [entry.key for entry in found.entries] == ["a.bin"]
    assert {path for path, _, _ in web.requests} == {"/model/", "/model/a.bin"}
    print(f"{len(FOREIGN)} links to elsewhere: 0 followed")


@pytest.mark.parametrize(
    "link", ["..%2fsecret", "%2e%2e%2fsecret", "x%00y", "a%5cb", "\\\\server\\share", "%ff.bin", "x%0ay", "A.bin"]
)
def test_a_listings_hostile_names_are_refused(link: str, web: WebServer, settings: Settings) -> None:
    web.listing = [link]
    web.answer = lambda handler: anything(handler, link)
    with pytest.raises(LauncherError) as raised:
        find(f"{web.url}/model/", settings)
    assert raised.value.exit_code in (65, 66)


def anything(handler: Handler, link: str) -> bool:
    """The hostile server answers for its hostile name, too."""
    if link.rpartition("\\")[2] not in handler.path:
        return False
    handler.send(206, b"x", {"Content-Range": "bytes 0-0/1"})
    return True


def test_a_listing_without_end_ends(web: WebServer, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def deeper(handler: Handler) -> bool:
        handler.send(200, b'<a href="deeper/">x</a>', {"Content-Type": "text/html"})
        return True

    web.answer = deeper
    with pytest.raises(SourceNotFound, match="deeper than 32"):
        find(f"{web.url}/model/", settings)
    assert len(web.requests) < 50
    monkeypatch.setattr(webs, "_FILES", 100)
    many = "".join(f'<a href="{number}.bin">x</a>' for number in range(101)).encode()
    web.answer = lambda handler: handler.send(200, many, {"Content-Type": "text/html"}) is None
    with pytest.raises(SourceNotFound, match="more than 100 files"):
        find(f"{web.url}/model/", settings)
    monkeypatch.setattr(webs, "_PAGE", 1000)
    with pytest.raises(SourceNotFound, match="larger than"):
        find(f"{web.url}/model/", settings)


@pytest.mark.parametrize("url", CHAINS)
def test_chains_and_wrapping_protocols_are_refused(url: str, settings: Settings) -> None:
    connected.clear()
    with pytest.raises(UsageError, match="chained and wrapping"):
        find(url, settings)
    assert connected == []


def test_the_command_line_says_so_with_its_codes(launcher: Launcher, tmp_path: Path) -> None:
    job = ("--", "true")
    assert "metadata address" in launcher("training", "run", "j", "-C", "http://169.254.169.254/x/", *job, code=77)
    assert "chained" in launcher("training", "run", "j", "-C", "zip://x::file:///etc/passwd", *job, code=64)
    job_file = tmp_path / "job.yaml"
    job_file.write_text("checkpoint: ['http://169.254.169.254/x/']\ncommand: 'true'\n")
    assert "metadata address" in launcher("training", "run", "j", "--file", job_file, code=77)
    assert not os.path.exists(launcher.home / "cache" / "checkpoints")
