"""An HTTP/1.1 proxy in front of a server, that misbehaves by a script which one can read.

Its words are in fault_script. For example:

    with FaultProxy(server.endpoint, sign=server.sign) as proxy:
        rule = proxy.on("PUT", r"/manifests/", "ok 503*2 500-after-landing")
        ...  # against proxy.endpoint
        assert rule.seen == ["ok", "503", "503", "500-after-landing"]
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.support.fault_script import ALTERED, OK, STATUSES, Fault, Rule, parse

_S3_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    501: "NotImplemented",
    503: "SlowDown",
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
Headers = list[tuple[str, str]]
Sign = Callable[[str, str], Mapping[str, str]]
"""(method, target) -> headers that authorize the request at the server."""


@dataclass
class _Answer:
    status: int
    headers: Headers
    body: bytes

    def get(self, name: str) -> str | None:
        return next((value for each, value in self.headers if each.lower() == name), None)


class FaultProxy:
    """Runs from construction to `stop` (or the end of a `with`), in a thread, on loopback.

    `upstream`: the server's URL. The client's Host header, which is signed, goes through unchanged.
    `sign`: only `200-for-206` needs it, where the range is part of what the client signed.
    """

    def __init__(self, upstream: str, *, sign: Sign | None = None, deadline: float = 60) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.rules: list[Rule] = []
        self.passed: list[tuple[str, str]] = []
        """(method, target) of the requests that matched no rule."""
        self.misfits: list[str] = []
        """Words that could not be done to the answer they met (a flip in an empty body): all passed."""
        self._sign, self._deadline = sign, deadline
        self._pool = concurrent.futures.ThreadPoolExecutor(64, "fault-proxy")
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self._server = self._loop.run_until_complete(starting)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="fault-proxy")
        self._thread.start()

    def on(self, method: str, target: str, script: str) -> Rule:
        """Adds a rule: what it says happens to requests that match it and no rule before it."""
        rule = Rule(method, re.compile(target), parse(script))
        self.rules.append(rule)
        return rule

    def script(self, method: str, target: str, script: str) -> Rule:
        """The same, instead of all rules until now."""
        self.rules.clear()
        return self.on(method, target, script)

    def stop(self) -> None:
        """Cuts every connection and ends the thread. May be called again."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    async def _end(self) -> None:
        self._server.close()
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            # Python 3.11's wait_for can swallow a cancellation that comes just as its result does: ask again.
            await asyncio.wait(tasks, timeout=0.5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await asyncio.wait_for(self._exchange(reader, writer), 10 * self._deadline):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, http.client.HTTPException):
            pass  # The client or the server is gone: so is the connection.
        except asyncio.CancelledError:
            pass  # stop()
        finally:
            self._tasks.discard(task)
            _reset(writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. -> whether the connection goes on"""
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = [(name, value.strip()) for name, _, value in (each.partition(":") for each in lines)]
        rule = next((each for each in self.rules if each.matches(method, target)), None)
        fault = rule.take() if rule else OK
        if rule is None:
            self.passed.append((method, target))
        request = {name.lower(): value for name, value in headers}
        if request.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault.name == "cut-upload":
            await reader.readexactly(fault.place(int(request.get("content-length", 0))))
            return False
        body = await _read_body(reader, request)
        if fault.name == "flip-upload" and body:
            at = min(fault.place(len(body)), len(body) - 1)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        answer = None
        if fault.landing or fault.name in ALTERED or fault.name in ("ok", "flip-upload"):
            whole = fault.name == "200-for-206"
            forward = functools.partial(self._forward, method, target, headers, body, whole=whole)
            answer = await self._loop.run_in_executor(self._pool, forward)
            if rule:
                rule.landed.append(answer.status)
        if fault.name == "no-answer":
            await asyncio.sleep(fault.number)
        if fault.name == "close":
            return await _close(writer)
        if fault.name in ("cut", "no-answer"):
            return False
        if answer is None or fault.landing:
            answer = _instead(fault, f"http://{self.upstream}{target}")
        return await self._send(writer, fault, answer, method == "HEAD")

    def _forward(self, method: str, target: str, headers: Headers, body: bytes, *, whole: bool) -> _Answer:
        sent = [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]
        if whole:
            signed = self._sign(method, target) if self._sign else {}
            drop = {"range", *(("authorization", "host") if signed else ())}
            drop |= {name for name, _ in sent if signed and name.lower().startswith("x-amz-")}
            sent = [each for each in sent if each[0].lower() not in drop] + list(signed.items())
        connection = http.client.HTTPConnection(self.upstream, timeout=self._deadline)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in sent:
                connection.putheader(name, value)
            if body or method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            length = [("Content-Length", answer.headers["Content-Length"] or "0")] if method == "HEAD" else []
            kept = [each for each in answer.getheaders() if each[0].lower() not in _HOP_BY_HOP]
            return _Answer(answer.status, kept + length, answer.read())

    async def _send(self, writer: asyncio.StreamWriter, fault: Fault, answer: _Answer, head: bool) -> bool:
        """-> whether the connection goes on"""
        body, size = answer.body, len(answer.body)
        at = fault.place(size)
        if fault.name in ALTERED and not _applies(fault, answer, at):
            self.misfits.append(fault.word)
            fault = OK
        if fault.name == "short":
            body = body[:at]
        if fault.name == "flip":
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if fault.name == "wrong-range":
            body = body[1:] + b"\0"
            answer.headers = [(name, _next_range(name, value)) for name, value in answer.headers]
        headers = [f"HTTP/1.1 {answer.status} {STATUSES.get(answer.status, 'Unknown')}"]
        headers += [f"{name}: {value}" for name, value in answer.headers]
        if not head and answer.status not in (204, 304):
            headers.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join([*headers, "", ""]).encode("latin-1"))
        if head:
            body = b""
        if fault.name in ("cut-body", "short-with-full-length"):
            writer.write(body[:at])
            await writer.drain()
            return await _close(writer) if fault.name == "short-with-full-length" else False
        if fault.name == "stall":
            writer.write(body[:at])
            await writer.drain()
            await asyncio.sleep(fault.number)
            body = body[at:]
        step = max(1, int(fault.number / 10)) if fault.name == "slow" else size or 1
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
            await writer.drain()
            if fault.name == "slow":
                await asyncio.sleep(step / fault.number)
        await writer.drain()
        return True


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass  # trailers
    return body


def _instead(fault: Fault, there: str) -> _Answer:
    if fault.name == "html200":
        page = b"<!DOCTYPE html><html><body>Sign in to the network</body></html>"
        return _Answer(200, [("Content-Type", "text/html")], page)
    if fault.name == "redirect":
        return _Answer(307, [("Location", there)], b"")
    status, code = (400, "ExpiredToken") if fault.name == "expired" else (int(fault.name), "")
    code = code or _S3_CODES.get(status, "InternalError")
    headers = [("Content-Type", "application/xml")]
    if fault.number:
        headers.append(("Retry-After", f"{fault.number:g}"))
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>fault</Message></Error>'
    return _Answer(status, headers, text.encode())


def _applies(fault: Fault, answer: _Answer, at: int) -> bool:
    if fault.name == "wrong-range":
        return answer.status == 206 and answer.get("content-range") is not None
    if fault.name == "200-for-206":
        return answer.status == 200
    return 0 <= at < len(answer.body)


def _next_range(name: str, value: str) -> str:
    if name.lower() != "content-range":
        return value
    return re.sub(r"(\d+)-(\d+)", lambda found: f"{int(found[1]) + 1}-{int(found[2]) + 1}", value, count=1)


async def _close(writer: asyncio.StreamWriter) -> bool:
    writer.close()
    await writer.wait_closed()
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a reset, not an orderly end: what was written and not yet sent is lost."""
    if not writer.is_closing():
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
