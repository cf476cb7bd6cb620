"""A server that has to answer: asked over HTTP from its start on, given up when it does not come to answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from launcher.events import Emit, event
from launcher.job.record import Server, ServerState
from launcher.runners.ending import Ending
from launcher.runners.running import Exit, Running
from launcher.text import duration

_OFTEN, _AGAIN, _SELDOM = 0.2, 1.0, 15.0
"""Seconds between two questions: until it answers, after an answer that did not come, and while it answers."""
_PATIENCE = 5.0
"""Seconds that one answer may take."""
_MISSED = 3
"""So many times in a row without an answer, and a server that answered is silent: one that computes may be late once."""


class Answering(Ending):
    """A running server which is told to stop where it does not answer within `timeout` seconds, and killed `grace` seconds
    later. Else the same as `running`; one that falls silent later is not ended, only said to be.

    `server` is kept up to date, and `changed` called after each change, by whoever calls `poll`. `any_page`: an answer that says
    that there is no such page (4xx) is one too.
    """

    def __init__(
        self, running: Running, server: Server, *, timeout: float, grace: float, any_page: bool, emit: Emit,
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(running, grace)
        self._server, self._timeout, self._any_page = server, timeout, any_page
        self._emit, self._changed = emit, changed
        self._since = time.monotonic()
        self._over = threading.Event()
        self._missed, self._reason, self._model = 0, "nothing listens there yet", ""
        self._answers = False
        threading.Thread(target=self._ask, name="answering", daemon=True).start()

    @property
    def trouble(self) -> str:
        """In words, that it never answered; empty where it did."""
        return "" if self._server.answered else f"never answered at {self._server.health}: {self._reason}"

    def poll(self) -> Exit | None:
        ended = super().poll()
        if ended is not None:
            self._over.set()
            if self._server.state != "ended":
                self._note("ended")
        return ended

    def look(self, now: float) -> None:
        server = self._server
        if self._answers and server.state != "ready" and self._is_ours():
            server.model = self._model
            self._note("ready")
        elif server.state == "ready" and self._missed >= _MISSED:
            text = f"{server.health} does not answer any more: {self._reason}"
            self._emit(event("server-silent", text, "warning"))
            self._note("silent")
        elif server.state == "starting" and now - self._since > self._timeout:
            words = f"it did not answer at {server.health} for {duration(self._timeout)} ({self._reason})"
            self._emit(event("server-silent", f"The server is ended: {words}", "warning"))
            self.give_up(words)

    def _is_ours(self) -> bool:
        """Whether it is the job that listens there: two that are started at the same time for one port both find it free."""
        found = _listeners(urlsplit(self._server.url).port or 80)
        ours = _is_held(found, self._running.members()) if found else True
        if not ours:
            self._reason = "another process listens there"
        return ours

    def _note(self, state: ServerState) -> None:
        self._server.state, self._server.since = state, time.time()
        if state == "ready" and self._server.answered is None:
            self._server.answered = self._server.since
        self._changed()

    def _ask(self) -> None:
        url = urlsplit(self._server.health)
        while True:
            try:
                status, _ = _get(url.hostname or "", url.port or 80, url.path or "/")
                well = 200 <= status < (500 if self._any_page else 400)
                reason = "" if well else f"it answers with status {status}"
            except (OSError, http.client.HTTPException) as error:
                well, reason = False, str(error) or type(error).__name__
            if well and not self._answers:
                self._model = _model(url.hostname or "", url.port or 80)
            self._missed = 0 if well else self._missed + 1
            self._reason = reason or self._reason
            self._answers = well or (self._answers and self._missed < _MISSED)
            if self._over.wait(_OFTEN if not self._answers else _AGAIN if self._missed else _SELDOM):
                return


def _listeners(port: int) -> set[str]:
    """The sockets that listen at a port on this machine, as /proc/PID/fd names them; empty where that cannot be seen."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            for fields in map(str.split, file):
                if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                    found.add(f"socket:[{fields[9]}]")
    return found


def _is_held(sockets: set[str], pids: Sequence[int]) -> bool:
    """Whether one of these processes has one of the sockets; also where that cannot be known, as of a container."""
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in sockets:
                        return True
        except FileNotFoundError:
            continue
        except PermissionError:
            return True
    return not pids


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    finally:
        connection.close()


def _model(host: str, port: int) -> str:
    """The last of the models that a server with OpenAI's interface offers (vLLM has adapters after their base); else empty."""
    try:
        status, body = _get(host, port, "/v1/models")
        models = json.loads(body)["data"] if status == 200 else []
        return str(models[-1]["id"]) if models else ""
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""
