"""Every word of a fault script, against a plain HTTP server of the standard library."""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPConnection as Client
from http.client import HTTPResponse, IncompleteRead
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.fault_proxy import FaultProxy

BODY = bytes(range(200)) * 5


class Plain(ThreadingHTTPServer):
    """Answers GET with BODY or its range, keeps what is PUT."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), PlainHandler)
        self.stored: dict[str, bytes] = {}
        self.hosts: list[str] = []


class PlainHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Plain

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])
        asked = self.headers["Range"]
        first, last = map(int, asked[6:].split("-")) if asked else (0, len(BODY) - 1)
        body = BODY[first : last + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(BODY)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.stored[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def plain() -> Iterator[Plain]:
    server = Plain()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def proxy(plain: Plain) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{plain.server_address[1]}", deadline=10) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[Client]:
    connection = Client(urllib.parse.urlsplit(proxy.endpoint).netloc, timeout=5)
    yield connection
    connection.close()


def get(client: Client, **headers: str) -> HTTPResponse:
    client.request("GET", "/a/b?c=d", headers=headers)
    return client.getresponse()


def test_without_a_rule_everything_passes(client: Client, proxy: FaultProxy, plain: Plain) -> None:
    assert get(client, Host="signed.example").read() == BODY
    client.request("PUT", "/x", BODY)
    assert client.getresponse().read() == b""
    client.request("HEAD", "/a")
    answer = client.getresponse()
    assert (answer.headers["Content-Length"], answer.read()) == (str(len(BODY)), b"")
    client.request("PUT", "/chunked", iter([b"one ", b"two"]), encode_chunked=True)
    client.getresponse().read()
    assert plain.stored == {"/x": BODY, "/chunked": b"one two"}
    assert plain.hosts[0] == "signed.example"
    assert proxy.passed == [("GET", "/a/b?c=d"), ("PUT", "/x"), ("HEAD", "/a"), ("PUT", "/chunked")]


def test_a_script_is_used_up_in_order(client: Client, proxy: FaultProxy) -> None:
    rule = proxy.on("GET", r"^/a/.*c=d$", "ok 503*2 404")
    other = proxy.on("PUT", "", "500*")
    answers = []
    for _ in range(5):
        answer = get(client)
        answer.read()
        answers.append(answer.status)
    assert answers == [200, 503, 503, 404, 200]
    assert rule.seen == ["ok", "503", "503", "404", "ok"]
    assert rule.landed == [200, 200]
    assert (rule.requests, other.requests, proxy.passed) == (5, 0, [])
    rule.wait(5, deadline=0)
    with pytest.raises(TimeoutError, match="5 of 6"):
        rule.wait(6, deadline=0)


@pytest.mark.parametrize(
    ("word", "status", "text"),
    [
        ("503", 503, b"<Code>SlowDown</Code>"),
        ("500", 500, b"<Code>InternalError</Code>"),
        ("409", 409, b"<Code>ConditionalRequestConflict</Code>"),
        ("403", 403, b"<Code>AccessDenied</Code>"),
        ("expired", 400, b"<Code>ExpiredToken</Code>"),
        ("html200", 200, b"<!DOCTYPE html>"),
        ("redirect", 307, b""),
    ],
)
@pytest.mark.parametrize("landing", [False, True])
def test_an_answer_instead(
    client: Client,
    proxy: FaultProxy,
    plain: Plain,
    word: str,
    status: int,
    text: bytes,
    landing: bool,
) -> None:
    rule = proxy.on("PUT", "", word + "-after-landing" * landing)
    client.request("PUT", "/x", b"body")
    answer = client.getresponse()
    assert answer.status == status
    assert text in answer.read()
    assert plain.stored == ({"/x": b"body"} if landing else {})
    assert rule.landed == ([200] if landing else [])


def test_too_many_requests_says_when_to_come_back(client: Client, proxy: FaultProxy) -> None:
    proxy.on("GET", "", "429:1")
    assert get(client).headers["Retry-After"] == "1"


LOST = ["cut", "close", "no-answer:0.1", "cut-upload@50%"]
LOST += ["cut-after-landing", "close-after-landing", "no-answer-after-landing:0.1"]


@pytest.mark.parametrize("word", LOST)
def test_a_lost_answer(client: Client, proxy: FaultProxy, plain: Plain, word: str) -> None:
    proxy.on("PUT", "", word)
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        client.request("PUT", "/x", bytes(10_000_000))
        client.getresponse()
    assert time.monotonic() - started >= (0.1 if "no-answer" in word else 0)
    assert list(plain.stored) == ["/x"] * ("landing" in word)


@pytest.mark.parametrize(("word", "size"), [("@70%", 700), ("@10", 10), ("", 500)])
def test_a_body_that_ends_early(client: Client, proxy: FaultProxy, word: str, size: int) -> None:
    proxy.on("GET", "", f"short{word} short-with-full-length{word} cut-body{word}")
    assert get(client).read() == BODY[:size]
    with pytest.raises(IncompleteRead) as raised:
        get(client).read()
    assert raised.value.partial == BODY[:size]
    client.close()
    answer = get(client)
    assert answer.headers["Content-Length"] == str(len(BODY))
    with pytest.raises((ConnectionResetError, IncompleteRead)):
        answer.read()


def test_a_wrong_bit(client: Client, proxy: FaultProxy) -> None:
    proxy.on("GET", "", "flip@123 flip@999")
    for place in (123, 999):
        got = get(client).read()
        assert [number for number in range(len(BODY)) if got[number] != BODY[number]] == [place]
        assert got[place] == BODY[place] ^ 1


def test_a_fault_that_does_not_fit_is_told(client: Client, proxy: FaultProxy) -> None:
    proxy.on("GET", "", "flip@1000 wrong-range cut-body@2000")
    for _ in range(3):
        assert get(client).read() == BODY
    assert proxy.misfits == ["flip@1000", "wrong-range", "cut-body@2000"]


def test_a_stall_and_a_slow_body(client: Client, proxy: FaultProxy) -> None:
    proxy.on("GET", "", "stall@10%:0.3 slow:5000")
    for least in (0.3, 0.2):
        answer = get(client)
        assert answer.read(10) == BODY[:10]  # what comes before the fault comes at once
        started = time.monotonic()
        assert answer.read() == BODY[10:]
        assert time.monotonic() - started >= least - 0.1


def test_wrong_ranges(client: Client, proxy: FaultProxy) -> None:
    proxy.on("GET", "", "wrong-range 200-for-206 ok")
    answer = get(client, Range="bytes=5-9")
    assert (answer.status, answer.headers["Content-Range"]) == (206, "bytes 6-10/1000")
    assert answer.read() == BODY[6:10] + b"\0"
    answer = get(client, Range="bytes=5-9")
    assert (answer.status, answer.read()) == (200, BODY)
    answer = get(client, Range="bytes=5-9")
    assert (answer.status, answer.read()) == (206, BODY[5:10])


def test_the_client_that_waits_for_a_continue_gets_it(client: Client, plain: Plain) -> None:
    client.putrequest("PUT", "/x")
    client.putheader("Content-Length", "4")
    client.putheader("Expect", "100-continue")
    client.endheaders()
    client.sock.settimeout(5)
    assert client.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"body")
    assert client.getresponse().status == 200
    assert plain.stored == {"/x": b"body"}


@pytest.mark.parametrize("word", ["okk", "999", "cut-body-after-landing", "stall", "flip@", "503*x", "slow"])
def test_a_word_that_does_not_exist_is_refused(proxy: FaultProxy, word: str) -> None:
    with pytest.raises(ValueError, match=r"word|number"):
        proxy.on("GET", "", f"ok {word}")


def test_stop_does_not_wait_for_a_fault(client: Client, proxy: FaultProxy) -> None:
    rule = proxy.on("GET", "", "no-answer:1000")
    client.request("GET", "/")
    rule.wait(1, deadline=5)
    started = time.monotonic()
    proxy.stop()
    assert time.monotonic() - started < 5
    with pytest.raises(ConnectionError):
        client.getresponse()
