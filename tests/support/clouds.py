"""The other clouds for tests: Azurite (Microsoft's own Azure emulator), and Google's XML API in front of our S3 server.

Azurite needs Node and is not on a fresh CI machine: `npm install --prefix .cache/azurite azurite`, and its tests run.
No emulator of GCS on PyPI has the XML API that obstore speaks with its conditions (fake-gcs-server refuses its writes). Google's
XML API is S3's with other names of headers, so `gcs` gives an S3 server these names: the requests, answers and errors of the
client are real, the semantics of `x-goog-if-generation-match: 0` are those of If-None-Match.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import http.server
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

from launcher.transfer.sigv4 import Keys, encoded, signed
from tests.support.cli import ROOT
from tests.support.s3_server import REGION, S3Server

_AZURITE = ROOT / ".cache" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's only account, as its documentation names it."""


def azurite_installed() -> bool:
    """Whether Azurite is here: its tests are collected only then."""
    return shutil.which("node") is not None and _AZURITE.exists()


@contextlib.contextmanager
def azure() -> Iterator[tuple[str, dict[str, Any]]]:
    """A container of a running Azurite: its URL, and the options of a place there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    command = ["node", str(_AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    try:
        _make_container(endpoint, "tests")
        yield "az://tests", {"account_name": _ACCOUNT, "account_key": _KEY, "endpoint": endpoint}
    finally:
        process.kill()
        process.wait()


def _make_container(endpoint: str, name: str) -> None:
    date, version = formatdate(usegmt=True), "2021-12-02"
    text = (
        f"PUT{12 * chr(10)}x-ms-date:{date}\nx-ms-version:{version}\n/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    )
    signature = base64.b64encode(hmac.digest(base64.b64decode(_KEY), text.encode(), "sha256")).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Authorization": f"SharedKey {_ACCOUNT}:{signature}",
        "Content-Length": "0",
    }
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=10).close()
            return
        time.sleep(0.1)
    raise AssertionError("Azurite did not answer for 60 s")


@contextlib.contextmanager
def gcs(server: S3Server) -> Iterator[tuple[str, dict[str, Any]]]:
    """A bucket behind Google's names: its URL, and the options of a place there."""

    class Front(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # obstore encodes the slashes of a key, which S3 signs as they are.
            path, _, query = self.path.partition("?")
            path = urllib.parse.quote(urllib.parse.unquote(path), safe="/-_.~")
            headers = {}
            for name, value in self.headers.items():
                name = name.lower()
                if name == "x-goog-if-generation-match":
                    assert value == "0", "only creation is conditional"
                    headers["if-none-match"] = "*"
                elif name == "x-goog-copy-source":
                    headers["x-amz-copy-source"] = urllib.parse.unquote(value)
                elif name in ("range", "content-type", "content-length"):
                    headers[name] = value
            arguments = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            host, keys = urllib.parse.urlsplit(server.endpoint).netloc, Keys(server.access_key, server.secret_key)
            headers = signed(self.command, host, path, arguments, headers, keys=keys, region=REGION)
            target = f"{path}?{encoded(arguments)}" if arguments else path
            with contextlib.closing(http.client.HTTPConnection(headers["host"], timeout=60)) as connection:
                connection.request(self.command, target, body or None, headers=headers)
                came = connection.getresponse()
                content = came.read()
            self.send_response(came.status)
            for name, value in came.headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = came.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing is logged."""

    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Front)
    front.daemon_threads = True
    threading.Thread(target=front.serve_forever, daemon=True).start()
    try:
        key = {"gcs_base_url": f"http://127.0.0.1:{front.server_port}", "disable_oauth": True}
        key |= {"client_email": "", "private_key": "", "private_key_id": ""}
        options = {"service_account_key": json.dumps(key), "client_options": {"allow_http": True}}
        yield f"gs://{server.new_bucket()}", options
    finally:
        front.shutdown()
        front.server_close()
