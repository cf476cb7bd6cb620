"""A git server on loopback: git's own http-backend behind a small web server, with or without a password.

with git_server(folder) as server:
    url = f"{server.url}/code.git"
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.web_server import running

IDENTITY = ("-c", "user.name=Tester", "-c", "user.email=tester@example.invalid", "-c", "init.defaultBranch=main")


def git(folder: Path, *words: str | Path, **env: str) -> str:
    """A git command in a folder."""
    local = ("-c", "protocol.file.allow=always", "-c", "commit.gpgsign=false")
    command = ["git", "-C", folder, *IDENTITY, *local, *words]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env
    ).stdout.strip()


def commit(folder: Path, files: dict[str, str], message: str = "change") -> str:
    """Writes files in a repository, which is made where there is none, and commits them; the commit's id."""
    if not (folder / ".git").exists():
        folder.mkdir(parents=True, exist_ok=True)
        git(folder, "init", "--quiet")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if text.startswith("#!"):
            path.chmod(0o755)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


class GitServer(http.server.ThreadingHTTPServer):
    """`password`: USER:TOKEN that it asks for. `fail`: so many requests are answered with 503 first. `hold`: while it is clear,
    requests wait, those with a password once it was right; `waiting` is set by the first. `authorized`: how many had it;
    `given`: the Authorization headers that came. `redirect`: where all is sent to."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.password = ""
        self.fail = 0
        self.authorized = 0
        self.given: list[str] = []
        self.redirect = ""
        self.hold = threading.Event()
        self.hold.set()
        self.waiting = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closes in the middle is no error here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: GitServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        server = self.server
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        if given := self.headers.get("Authorization"):
            server.given.append(given)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect + self.path)
            self.end_headers()
            return
        if server.fail > 0:
            server.fail -= 1
            self.send_error(503)
            return
        if server.password:
            wanted = "Basic " + base64.b64encode(server.password.encode()).decode()
            if given != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="code"')
                self.end_headers()
                return
            server.authorized += 1
        if not server.hold.is_set():
            server.waiting.set()
            server.hold.wait(60)
        path, _, query = self.path.partition("?")
        env = os.environ | {
            "GIT_PROJECT_ROOT": str(server.folder), "GIT_HTTP_EXPORT_ALL": "1", "REQUEST_METHOD": self.command,
            "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_ADDR": "127.0.0.1",
        }  # fmt: skip
        # What a server for the public allows: partial clones.
        config = ("-c", "uploadpack.allowFilter=true", "-c", "safe.directory=*")
        done = subprocess.run(["git", *config, "http-backend"], env=env, input=body, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [line.partition(": ") for line in head.decode().split("\r\n")]
        status = next((value for name, _, value in fields if name == "Status"), "200")
        self.send_response(int(status.split()[0]))
        for name, _, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _chunks(self) -> bytes:
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    do_POST = do_GET


@contextlib.contextmanager
def git_server(folder: Path) -> Iterator[GitServer]:
    """A server of the repositories below a folder, while the block runs."""
    with running(GitServer(folder)) as server:
        try:
            yield server
        finally:
            server.hold.set()
