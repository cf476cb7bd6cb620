"""The few answers of the Hugging Face hub that huggingface_hub asks for, on loopback: a repository at one commit.

Large files are redirected to a storage of another origin, as the real hub does; it must never see the token.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.web_server import Handler, WebServer, web_server

COMMIT = "5f0b1a2c3d4e5f60718293a4b5c6d7e8f9a0b1c2"
_LARGE = 1000


@dataclass
class Hub:
    """`url` is HF_ENDPOINT. Every repository ORG/NAME is a folder below `folder`, a dataset's below its
    `datasets`. `token`: what it asks for."""

    url: str
    folder: Path
    api: WebServer
    storage: WebServer
    token: str = ""
    storage_url: str = ""
    """Where large files are redirected to, if not to `storage`."""
    wrong: set[str] = field(default_factory=set)
    """Files whose SHA-256 the hub gives wrongly."""

    def answer(self, handler: Handler) -> bool:
        path = urllib.parse.unquote(handler.path.partition("?")[0])
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            handler.send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return True
        parts = path.strip("/").split("/")
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            below = "datasets/" if parts[1] == "datasets" else ""
            self._info(handler, below + "/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main")
            return True
        below = ["datasets"] if parts[0] == "datasets" else []
        parts = parts[len(below) :]
        if len(parts) > 4 and parts[2:4] == ["resolve", COMMIT]:
            inside = "/".join([*below, *parts[:2], *parts[4:]])
            if (self.folder / inside).stat().st_size >= _LARGE:
                handler.send(
                    302,
                    b"",
                    {"Location": f"{self.storage_url or self.storage.url}/{urllib.parse.quote(inside)}?sig=abc"},
                )
            else:
                handler.file(self.folder / inside)
            return True
        return False

    def _info(self, handler: Handler, repository: str, revision: str) -> None:
        folder = self.folder / repository
        if not folder.is_dir():
            handler.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if revision not in ("main", "v1", COMMIT):
            handler.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [self._sibling(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        body = {"_id": "1", "id": repository, "modelId": repository, "sha": COMMIT, "private": False, "gated": False,
                "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}  # fmt: skip
        handler.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _sibling(self, folder: Path, path: Path) -> dict[str, object]:
        data = path.read_bytes()
        name = str(path.relative_to(folder))
        found: dict[str, object] = {"rfilename": name, "size": len(data)}
        if len(data) >= _LARGE:
            digest = hashlib.sha256(b"?" + data if name in self.wrong else data).hexdigest()
            found["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            found["blobId"] = "0" * 40
        else:
            found["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return found


@contextlib.contextmanager
def hub_server(folder: Path) -> Iterator[Hub]:
    """A hub with the repositories in a folder, while the block runs."""
    with web_server(folder) as api, web_server(folder) as storage:
        hub = Hub(api.url, folder, api, storage)
        api.answer = hub.answer
        yield hub
