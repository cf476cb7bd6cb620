"""A server's state is what it answers: ready, silent when it answers no more, and ready again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launcher.events import Event
from launcher.job.record import Server
from launcher.runners import answering
from launcher.runners.answering import Answering
from launcher.runners.running import Exit
from tests.support.watching import eventually
from tests.support.web_server import listener


class Job:
    """A running job that does nothing."""

    fd, rung, guarantee = -1, "", ""
    ended: Exit | None = None

    def poll(self) -> Exit | None:
        return self.ended

    def signal(self, number: int) -> None:
        self.ended = Exit(128 + number, number)

    def members(self) -> list[int]:
        return []

    def cpu_seconds(self) -> float | None:
        return 0.0

    def waiting(self) -> list[str]:
        return []

    def kill(self) -> None: ...

    def close(self) -> list[str]:
        return []


class Pages(BaseHTTPRequestHandler):
    """/health as the server's `status` says, and a list of two models."""

    def do_GET(self) -> None:
        status = self.server.status if self.path == "/health" else 200  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "base"}, {"id": "adapter"}]}' if self.path == "/v1/models" else b"")

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    for name in ("_OFTEN", "_AGAIN", "_SELDOM"):
        monkeypatch.setattr(answering, name, 0.01)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.status = 503  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def watched(port: int, job: Job, *, timeout: float = 60, any_page: bool = False) -> tuple[Answering, Server, list[str]]:
    url = f"http://127.0.0.1:{port}"
    server, said = Server(url=url, health=f"{url}/health"), list[str]()

    def emit(event: Event) -> None:
        said.append(event.text)

    def changed() -> None:
        said.append(server.state)

    running = Answering(job, server, timeout=timeout, grace=1, any_page=any_page, emit=emit, changed=changed)
    return running, server, said


def test_ready_silent_and_ready_again(http: ThreadingHTTPServer) -> None:
    job = Job()
    running, server, said = watched(http.server_port, job)
    for _ in range(20):
        assert running.poll() is None and server.state == "starting"
    assert running.trouble
    for status, state in ((200, "ready"), (500, "silent"), (204, "ready")):
        http.status = status  # type: ignore[attr-defined]
        eventually(lambda state=state: running.poll() is None and server.state == state, state)
    assert (server.model, running.trouble) == ("adapter", "")
    job.ended = Exit(0)
    assert running.poll() == Exit(0)
    assert [each for each in said if "/health" not in each] == ["ready", "silent", "ready", "ended"]
    assert "does not answer any more: it answers with status 500" in "".join(said)


def test_a_page_that_is_not_there_is_an_answer_where_nobody_named_it(http: ThreadingHTTPServer) -> None:
    http.status = 404  # type: ignore[attr-defined]
    lenient, found, _ = watched(http.server_port, Job(), any_page=True)
    eventually(lambda: lenient.poll() is None and found.state == "ready", "ready")
    job = Job()
    strict, found, _ = watched(http.server_port, job, timeout=0.1)
    ended = eventually(strict.poll, "it is ended")
    assert ended.code == 143 and "it answers with status 404" in ended.stalled
    assert found.state == "ended" and strict.trouble


def test_what_is_no_http_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_OFTEN", 0.01)
    with listener(lambda connection: connection.sendall(b"220 mail\r\n\r\n")) as port:
        running, server, _ = watched(port, Job(), timeout=0.3)
        assert eventually(running.poll, "it is ended").stalled
        assert server.answered is None and server.model == ""
