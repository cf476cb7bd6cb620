"""A proxy in front of an S3 server that misbehaves on request, driven by a script that one can read.

A script is words for the requests that match, in order: `ok`, `500`, `409` (answered, nothing forwarded), `500-after`,
`cut-after`, `silent-after` (forwarded and carried out, then an error, a cut connection, or no answer), `cut` (nothing
forwarded), `cut-body` (half of the answer's body), `flip` (one bit of the body wrong). `word*3` repeats. After the script,
and for requests that do not match, everything passes.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CONFLICT = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ConditionalRequestConflict</Code>'
    b"<Message>conflicting conditional operation</Message></Error>"
)
_INTERNAL = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code><Message>try again</Message></Error>'
)


class FaultProxy:
    """Started by the constructor, on loopback; `script` sets what goes wrong from now on."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self._words: list[str] = []
        self._rule = ("", re.compile(""))
        self._lock = threading.Lock()
        self.seen: list[tuple[str, str, str]] = []
        """(method, path, what was done) of every request that matched."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def handle_any(self) -> None:
                proxy._serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # Cut connections are what this is for.

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def script(self, method: str, path: str, words: str) -> None:
        """From now on, requests of `method` whose path matches the regular expression get the words, one each."""
        expanded: list[str] = []
        for word in words.split():
            name, _, count = word.partition("*")
            expanded += [name] * int(count or 1)
        with self._lock:
            self._words, self._rule, self.seen = expanded, (method, re.compile(path)), []

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _next(self, method: str, path: str) -> str:
        with self._lock:
            if method != self._rule[0] or not self._rule[1].search(path):
                return "ok"
            word = self._words.pop(0) if self._words else "ok"
            self.seen.append((method, path, word))
            return word

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        word = self._next(handler.command, handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if word == "409":
            return self._answer(handler, 409, _CONFLICT)
        if word == "500":
            return self._answer(handler, 500, _INTERNAL)
        if word == "cut":
            return self._cut(handler)
        upstream = http.client.HTTPConnection(self.upstream, timeout=60)
        upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():  # Host included: it is signed.
            upstream.putheader(name, value)
        upstream.endheaders(body)
        response = upstream.getresponse()
        data = response.read()
        if word == "500-after":
            return self._answer(handler, 500, _INTERNAL)
        if word == "cut-after":
            return self._cut(handler)
        if word == "silent-after":
            threading.Event().wait(8)  # longer than the client's patience in the tests
            return self._cut(handler)
        handler.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                handler.send_header(name, value)
        length = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        if word == "cut-body":
            handler.wfile.write(data[: len(data) // 2])
            return self._cut(handler)
        if word == "flip" and data:
            data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
        if handler.command != "HEAD":
            handler.wfile.write(data)
        return None

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/xml")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _cut(self, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
