"""A job as seen from outside: /healthz, /readyz and /metrics on a port, and a heartbeat file, by one thread.

The thread waits for all clients at once, so that one that sends nothing keeps no other from its answer; only what it
answers for is asked of the parts, between two of its waits.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from launcher.errors import LocalResourceError
from launcher.events import Emit, event
from launcher.job.record import write_atomically

if TYPE_CHECKING:
    from prometheus_client import Metric

TICK = 2.0
"""Seconds between two looks at the parts, and two heartbeats."""
_CLIENT = 5.0
"""Seconds that a client gets to send its request and take its answer."""
_CLIENTS = 64
_REQUEST = 8192
_STATES = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Error", 503: "Unavailable"}
_TEXT = "text/plain; charset=utf-8"


class Seen(Protocol):
    """What is looked at, from the thread of the probes: `launcher.health`."""

    emit: Emit

    @property
    def trouble(self) -> str:
        """Why the launcher is not well, or nothing."""

    @property
    def ready(self) -> str:
        """Why the job does not run, or nothing."""

    def beat(self) -> dict[str, Any]:
        """The heartbeat's content."""

    def collect(self) -> Iterable[Metric]:
        """The metrics."""


@dataclass
class _Client:
    socket: socket.socket
    until: float
    """Monotonic."""
    request: bytes = b""
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


class Probes:
    """`with Probes(health, address, heartbeat): …` answers until the end of the block.

    `address`: host and port, 0 for one that is free; `heartbeat`: the file's path. Raises LocalResourceError where the port
    cannot be had. The heartbeat is written every `TICK` seconds while the launcher is well, and once more at the end: a file
    that is older than a few of them says that it is not.
    """

    def __init__(self, health: Seen, address: tuple[str, int] | None, heartbeat: str) -> None:
        self._health = health
        self._heartbeat = heartbeat
        self._said = ""
        self._unwritable = False
        self._listener = _listen(address) if address else None
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._clients: dict[socket.socket, _Client] = {}
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def __enter__(self) -> Probes:
        if self._listener:
            host, port = self._listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            text = f"Health at {url}/healthz, /readyz and /metrics"
            self._health.emit(event("health-served", text, url=url))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._waker, b"x")
        self._thread.join()
        self._beat()
        for each in (self._listener, *self._clients):
            if each:
                each.close()
        os.close(self._wake)
        os.close(self._waker)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            if self._listener:
                selector.register(self._listener, selectors.EVENT_READ)
            due = 0.0
            while True:
                now = time.monotonic()
                if now >= due:
                    due = now + TICK
                    if not self._trouble():
                        self._beat()
                for client in [each for each in self._clients.values() if each.until <= now]:
                    self._close(client, selector)
                for key, _ in selector.select(max(due - time.monotonic(), 0)):
                    if key.fileobj == self._wake:
                        return
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._clients:
                        self._serve(self._clients[key.fileobj], selector)

    def _trouble(self) -> str:
        """What is wrong. Health that is lost or comes back is an event."""
        trouble = self._health.trouble
        if bool(trouble) != bool(self._said):
            if trouble:
                self._health.emit(event("health-lost", f"The launcher is not well: {trouble}", "error"))
            else:
                self._health.emit(event("health-back", "The launcher is well again"))
            self._said = trouble
        return trouble

    def _beat(self) -> None:
        if not self._heartbeat:
            return
        try:
            write_atomically(self._heartbeat, msgspec.json.encode(self._health.beat()) + b"\n", durable=False)
            self._unwritable = False
        except OSError as error:
            if not self._unwritable:
                text = f"The heartbeat file {self._heartbeat} cannot be written: {error.strerror}"
                self._health.emit(event("heartbeat-failed", text, "warning"))
            self._unwritable = True

    def _accept(self, selector: selectors.BaseSelector) -> None:
        assert self._listener
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._clients) >= _CLIENTS:
            self._close(next(iter(self._clients.values())), selector)
        self._clients[connection] = _Client(connection, time.monotonic() + _CLIENT)
        selector.register(connection, selectors.EVENT_READ)

    def _serve(self, client: _Client, selector: selectors.BaseSelector) -> None:
        try:
            if not client.answer:
                piece = client.socket.recv(_REQUEST)
                client.request += piece
                if piece and b"\r\n\r\n" not in client.request and len(client.request) < _REQUEST:
                    return
                client.answer = memoryview(self._answer(client.request) if piece else b"")
                selector.modify(client.socket, selectors.EVENT_WRITE)
            if client.answer:
                client.answer = client.answer[client.socket.send(client.answer) :]
        except BlockingIOError:
            return
        except OSError:
            client.answer = memoryview(b"")
        if not client.answer:
            self._close(client, selector)

    def _close(self, client: _Client, selector: selectors.BaseSelector) -> None:
        selector.unregister(client.socket)
        del self._clients[client.socket]
        client.socket.close()

    def _answer(self, request: bytes) -> bytes:
        lines = request.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3:
            status, body, kind = 400, b"not a request\n", _TEXT
        elif words[0] not in ("GET", "HEAD"):
            status, body, kind = 405, b"GET and HEAD only\n", _TEXT
        else:
            accept = next((line[7:].strip() for line in lines[1:] if line.lower().startswith("accept:")), "")
            try:
                status, body, kind = self._page(words[1].partition("?")[0], accept)
            except Exception as error:  # The thread must live: a page that cannot be made is that client's answer.
                status, body, kind = 500, f"{type(error).__name__}: {error}\n".encode(), _TEXT
        head = f"HTTP/1.1 {status} {_STATES[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        head += "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if words[0] == "HEAD" else body)

    def _page(self, path: str, accept: str) -> tuple[int, bytes, str]:
        if path == "/metrics":
            return 200, *self._measured(accept)
        if path == "/healthz":
            trouble = self._trouble()
        elif path == "/readyz":
            trouble = self._trouble() or self._health.ready
        else:
            return 404, b"/healthz, /readyz, /metrics\n", _TEXT
        return (503, f"{trouble}\n".encode(), _TEXT) if trouble else (200, b"ok\n", _TEXT)

    def _measured(self, accept: str) -> tuple[bytes, str]:
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry()
        registry.register(self._health)
        ProcessCollector(registry=registry)
        encode, kind = choose_encoder(accept)
        return encode(registry), kind


def _listen(address: tuple[str, int]) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        listener = socket.create_server(address, family=family, backlog=_CLIENTS)
    except OSError as error:
        raise LocalResourceError(
            what=f"The health port {address[0]}:{address[1]} cannot be listened on: {error.strerror or error}.",
            hint="Choose another with --health-port, or 0 for any that is free.",
        ) from error
    listener.setblocking(False)
    return listener
