"""A web server of files on loopback, as a test needs it: with or without ranges, with listings, redirects, a password.

with web_server(folder) as server:
    url = f"{server.url}/model/"
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import html
import http.server
import os
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Answer = Callable[["Handler"], bool]
"""Takes over a request: True where it has answered."""


class WebServer(http.server.ThreadingHTTPServer):
    """`requests`: (path, Range header, Authorization header) of each. `ranges`: whether it can. `password`: USER:PASSWORD
    that it asks for. `redirects`: path to location. `listing`: links added to every listing. `answer`: see `Answer`;
    `forward`: the same, before anything else, to change the request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, str, str]] = []
        self.ranges = True
        self.password = ""
        self.redirects: dict[str, str] = {}
        self.listing: list[str] = []
        self.answer: Answer = lambda handler: False
        self.forward: Answer = lambda handler: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes in the middle is no error here."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the server keeps `requests`."""

    def do_GET(self) -> None:
        server = self.server
        server.forward(self)
        given = self.headers.get("Authorization", "")
        server.requests.append((self.path, self.headers.get("Range", ""), given))
        path = urllib.parse.unquote(self.path.partition("?")[0])
        wanted = f"Basic {base64.b64encode(server.password.encode()).decode()}"
        if server.password and given != wanted:
            return self.send(401, b"who are you?")
        if server.answer(self):
            return None
        if path in server.redirects:
            return self.send(302, b"", {"Location": server.redirects[path]})
        target = (server.folder / path.lstrip("/")).resolve()
        if not target.is_relative_to(server.folder.resolve()) or not target.exists():
            return self.send(404, b"nothing")
        if target.is_dir():
            if not path.endswith("/"):
                return self.send(301, b"", {"Location": self.path + "/"})
            return self.send(200, self.page(target), {"Content-Type": "text/html; charset=utf-8"})
        return self.file(target)

    def page(self, folder: Path) -> bytes:
        """As nginx writes it: with a link to the parent, and here and there one to somewhere else."""
        names = sorted(f"{item.name}/" if item.is_dir() else item.name for item in folder.iterdir())
        links = ["../", "?C=N;O=D", "https://nginx.org/", *self.server.listing, *map(urllib.parse.quote, names)]
        return "".join(f'<a href="{html.escape(link)}">x</a>\n' for link in links).encode()

    def file(self, target: Path) -> None:
        status = target.stat()
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        if self.headers.get("If-Match", tag) != tag:
            return self.send(412, b"it is another one now")
        headers = {
            "ETag": tag,
            "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
            "Content-Type": "application/octet-stream",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked or not self.server.ranges:
            return self.send(200, target.read_bytes(), headers)
        start, end = int(asked[1]), min(int(asked[2]), status.st_size - 1)
        if start >= status.st_size:
            return self.send(416, b"", headers | {"Content-Range": f"bytes */{status.st_size}"})
        with open(target, "rb") as file:
            body = os.pread(file.fileno(), end - start + 1, start)
        return self.send(206, body, headers | {"Content-Range": f"bytes {start}-{end}/{status.st_size}"})

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """An answer with its length."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


S = TypeVar("S", bound=http.server.HTTPServer)


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
    """The server answers while the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    """A server of a folder, while the block runs."""
    with running(WebServer(folder)) as server:
        yield server


@contextlib.contextmanager
def listener(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """The port of what is no HTTP server: `answer` gets every connection, one after the other, while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=take, daemon=True).start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
