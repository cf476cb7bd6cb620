"""Byte ranges over HTTP(S) into one reused buffer: the fastest way to read large objects from Python that was measured.

Against bodies that arrive as new objects it saves the page faults of fresh memory, which cost more than the copying. The
URLs are signed by the library that holds the credentials; here nothing is known of them.
"""

from __future__ import annotations

import http.client
import re
import ssl
import threading
import urllib.parse
from collections.abc import Mapping

from launcher.errors import StoreUnavailable
from launcher.transfer import addresses
from launcher.transfer.object_store import Sink

_BUFFER = 256 << 10
_REDIRECTS = 3


class Refused(Exception):
    """An answer that is neither the bytes nor worth the same request again: `status`, and `code` from the body."""

    def __init__(self, status: int, code: str, text: str) -> None:
        self.status, self.code, self.text = status, code, text
        super().__init__(f"{code or status}: {text}")


class Ranges:
    """GET requests over kept connections, one for each thread and host. `timeout`: seconds without a byte."""

    def __init__(self, *, timeout: float) -> None:
        self._timeout = timeout
        self._local = threading.local()
        self._tls: ssl.SSLContext | None = None

    def get(self, url: str, start: int, length: int, sink: Sink, headers: Mapping[str, str] | None = None) -> None:
        """Passes `length` (> 0) bytes from `start` to `sink`, in order. `headers` go to the URL's own server only, not to
        one that it redirects to.

        Raises Refused for an answer without them, StoreUnavailable for what may go better a second time: then `sink` has
        had the first so many bytes, and the caller goes on behind them.
        """
        own = urllib.parse.urlsplit(url)[:2]
        for _ in range(_REDIRECTS + 1):
            same = urllib.parse.urlsplit(url)[:2] == own
            location = self._get(url, start, length, sink, (headers or {}) if same else {})
            if location is None:
                return
            url = urllib.parse.urljoin(url, location)
        raise StoreUnavailable(store=_shown(url), cause="it redirects in a circle")

    def _get(self, url: str, start: int, length: int, sink: Sink, headers: Mapping[str, str]) -> str | None:
        parts = urllib.parse.urlsplit(url)
        key = (parts.scheme, parts.netloc)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection, reused = self._connection(key)
        keep = False
        try:
            try:
                response = self._ask(connection, target, start, length, headers)
            except (http.client.RemoteDisconnected, ConnectionError):
                if not reused:
                    raise
                connection.close()  # The server had closed the kept connection meanwhile.
                response = self._ask(connection, target, start, length, headers)
            if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
                return str(response.headers["Location"])
            self._check(response, start, length, url)
            left = length
            view: memoryview = self._local.buffer
            while left:
                count = response.readinto(view[: min(left, _BUFFER)])
                if not count:
                    raise StoreUnavailable(store=_shown(url), cause=f"the answer ended {left} bytes early")
                sink(view[:count])
                left -= count
            keep = response.isclosed() or response.length == 0
            if keep:
                response.close()
        except (OSError, http.client.HTTPException) as error:
            raise StoreUnavailable(store=_shown(url), cause=str(error) or type(error).__name__) from error
        finally:
            if not keep:
                connection.close()
        return None

    def _ask(
        self, connection: http.client.HTTPConnection, target: str, start: int, length: int, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        asked = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=asked | dict(headers))
        return connection.getresponse()

    def _check(self, response: http.client.HTTPResponse, start: int, length: int, url: str) -> None:
        if response.status == 206:
            given = re.fullmatch(r"bytes (\d+)-(\d+)/(?:\d+|\*)", response.headers.get("Content-Range", "").strip())
            if given and (int(given[1]), int(given[2])) == (start, start + length - 1):
                return
            raise StoreUnavailable(
                store=_shown(url), cause=f"it answered with other bytes ({response.headers.get('Content-Range')})"
            )
        if response.status == 200 and start == 0 and response.length == length:
            return
        if response.status == 200:
            raise StoreUnavailable(store=_shown(url), cause="it answered with more than the range that was asked for")
        text = response.read(4096).decode("utf-8", "replace")
        code = re.search(r"<Code>(.*?)</Code>", text)
        message = re.search(r"<Message>(.*?)</Message>", text)
        if response.status == 429 or response.status >= 500:
            raise StoreUnavailable(
                store=_shown(url),
                cause=f"{response.status} {code[1] if code else response.reason}",
                retry_after=_seconds(response.headers.get("Retry-After", "")),
            )
        raise Refused(response.status, code[1] if code else "", message[1] if message else response.reason)

    def _connection(self, key: tuple[str, str]) -> tuple[http.client.HTTPConnection, bool]:
        kept: dict[tuple[str, str], http.client.HTTPConnection]
        try:
            kept = self._local.connections
        except AttributeError:
            kept = self._local.connections = {}
            self._local.buffer = memoryview(bytearray(_BUFFER))
        if key in kept:
            return kept[key], kept[key].sock is not None
        if key[0] == "https":
            self._tls = self._tls or ssl.create_default_context()
        kept[key] = addresses.connection(*key, timeout=self._timeout, tls=self._tls)
        return kept[key], False


def _seconds(text: str) -> float:
    return min(float(text), 60.0) if text.isdigit() else 0.0


def _shown(url: str) -> str:
    """The URL without its query, which holds the signature."""
    return url.partition("?")[0]
