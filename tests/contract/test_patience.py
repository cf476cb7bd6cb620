"""A server that asks for patience (Retry-After) gets it: as a number, as a date, and never for longer than a minute."""

from __future__ import annotations

import email.utils
import http.client
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import StoreUnavailable
from launcher.transfer import http as requests
from launcher.transfer.http import Connections, retry_after
from launcher.transfer.retry import call
from tests.support.web_server import Handler, WebServer, web_server

NOON = 1_800_000_000.0


def at(seconds: float) -> str:
    return email.utils.formatdate(seconds, usegmt=True)


def headers(retry: str, date: str) -> http.client.HTTPMessage:
    """As they come from the wire."""
    lines = [f"{name}: {value}\r\n".encode() for name, value in (("Retry-After", retry), ("Date", date)) if value]
    return http.client.parse_headers(io.BytesIO(b"".join([*lines, b"\r\n"])))


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("7", "", 7),
        (" 0 ", "", 0),
        ("600", "", 60),
        (at(NOON + 7), at(NOON), 7),
        ("Friday, 15-Jan-27 08:00:07 GMT", at(NOON), 7),  # RFC 850's form
        ("Fri Jan 15 08:00:07 2027", at(NOON), 7),  # asctime's
        (at(NOON + 3600), at(NOON), 60),
        (at(NOON - 7), at(NOON), 0),
        ("soon", at(NOON), 0),
        ("", at(NOON), 0),
        ("-5", "", 0),
        ("1.5", "", 0),
    ],
)
def test_what_is_asked_for(value: str, date: str, seconds: float) -> None:
    assert retry_after(headers(value, date)) == seconds


def test_a_date_without_a_date_counts_from_our_clock() -> None:
    assert 50 < retry_after(headers(at(time.time() + 58), "")) <= 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "file").write_bytes(b"content")
    with web_server(tmp_path) as web:
        yield web


@pytest.mark.parametrize("status", [429, 503])
def test_the_next_try_comes_when_the_server_said(server: WebServer, status: int) -> None:
    """With a server whose clock is two days ahead."""
    asked: list[float] = []

    def answer(handler: Handler) -> bool:
        asked.append(time.monotonic())
        if len(asked) > 2:
            return False
        ahead = time.time() + 2 * 86400
        handler.send_response_only(status)
        handler.send_header("Date", at(ahead))
        handler.send_header("Retry-After", at(ahead + 2))
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    server.answer = answer
    connections = Connections(timeout=60)

    def get() -> bytes:
        with connections.ask("GET", f"{server.url}/file", {}) as response:
            requests.check(response, server.url)
            return response.read()

    assert call(get, 60) == b"content"
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    print(f"asked for 2 s, waited {waits[0]:.2f} and {waits[1]:.2f} s")
    assert len(asked) == 3 and min(waits) >= 1.0, "a date has whole seconds"


def test_a_web_sources_patience_is_the_same(server: WebServer) -> None:
    from launcher.transfer.web import failure

    error = failure(server.url, 503, "busy", 7.0)
    assert isinstance(error, StoreUnavailable) and error.facts["retry_after"] == 7.0
