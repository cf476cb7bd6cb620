"""Requests over kept connections, and byte ranges into one reused buffer: the fastest way to read large objects from Python
that was measured.

Against bodies that arrive as new objects it saves the page faults of fresh memory, which cost more than the copying. URLs and
headers are signed by who holds the credentials; here nothing is known of them.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping

from launcher.errors import StoreUnavailable
from launcher.transfer import addresses
from launcher.transfer.object_store import Sink

_BUFFER = 192 << 10
"""Bytes of a read, and of the write that follows. Measured for 2 GiB on ext4: 0.95 s of kernel time with 128 or 192 KiB, 1.1 with
64, 1.5 with 256 and up to 5 with 512, as the page cache then asks for larger pieces of memory."""
_REDIRECTS = 3
_LONGEST_WAIT = 60.0
"""Seconds of a Retry-After that are honoured."""
_PASSING = frozenset(
    {
        "BadDigest",
        "ExpiredPresignRequest",
        "ExpiredToken",
        "IncompleteBody",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "TokenRefreshRequired",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
"""Codes of S3 that come with 400 or 403, and go away with a new body or a new signature."""

Body = Callable[[], Iterable[memoryview]]
"""Gives the pieces of a request's body, from the start each time it is called."""


class Refused(Exception):
    """An answer that is neither what was asked for nor worth the same request again: `status`, and `code` from the body."""

    def __init__(self, status: int, code: str, text: str) -> None:
        self.status, self.code, self.text = status, code, text
        super().__init__(f"{code or status}: {text}")


class Connections:
    """Kept connections, lent to one request at a time.

    `timeout`: seconds without a byte after which one is cut. `answer`: seconds from a request's last byte to the answer's
    first, where a server may need longer, as to store what it was sent. `environ`: whose proxies are used; without it none.
    """

    def __init__(self, *, timeout: float, answer: float = 0.0, environ: Mapping[str, str] | None = None) -> None:
        self._environ = environ or {}
        self._timeout = timeout
        self._answer = max(timeout, answer)
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    @contextlib.contextmanager
    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | bytes = b""
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, whatever its status. A body of pieces needs its Content-Length among the headers.

        Raises StoreUnavailable where no answer came. The connection is kept where the block read the whole answer.
        """
        parts = urllib.parse.urlsplit(url)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        place = (parts.scheme, parts.netloc)
        connection = self._take(place)
        keep = False
        try:
            with broken(url):
                try:
                    reused = connection.sock is not None
                    response = self._send(connection, method, target, headers, body)
                except (http.client.RemoteDisconnected, ConnectionError):
                    if not reused:
                        raise
                    connection.close()  # The server had closed the kept connection meanwhile.
                    response = self._send(connection, method, target, headers, body)
            yield response
            keep = response.isclosed() or response.length == 0
            response.close()
        finally:
            if keep:
                with self._lock:
                    self._idle.setdefault(place, []).append(connection)
            else:
                connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | bytes,
    ) -> http.client.HTTPResponse:
        connection.request(method, target, body if isinstance(body, bytes) else iter(body()), headers=dict(headers))
        sock = connection.sock
        sock.settimeout(self._answer)
        response = connection.getresponse()
        sock.settimeout(self._timeout)
        return response

    def _take(self, place: tuple[str, str]) -> http.client.HTTPConnection:
        with self._lock:
            if idle := self._idle.get(place):
                return idle.pop()
            if place[0] == "https":
                self._tls = self._tls or ssl.create_default_context()
            proxy = addresses.proxy(*place, self._environ)
            return addresses.connection(*place, timeout=self._timeout, tls=self._tls, proxy=proxy)


@contextlib.contextmanager
def broken(url: str) -> Iterator[None]:
    """Turns what a connection raises into StoreUnavailable."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise StoreUnavailable(store=shown(url), cause=str(error) or type(error).__name__) from error


def check(response: http.client.HTTPResponse, url: str) -> None:
    """Raises StoreUnavailable for an answer that says to try again, Refused for any other without success."""
    if response.status < 300:
        return
    with broken(url):
        text = response.read(65536).decode("utf-8", "replace")
    code = re.search(r"<Code>(.*?)</Code>", text)
    name = code[1] if code else ""
    message = re.search(r"<Message>(.*?)</Message>", text)
    if response.status in (408, 429) or (response.status >= 500 and response.status != 501) or name in _PASSING:
        raise StoreUnavailable(
            store=shown(url),
            cause=f"{response.status} {name or response.reason}",
            retry_after=retry_after(response.headers),
        )
    raise Refused(response.status, name, message[1] if message else response.reason)


class Ranges:
    """GET requests for byte ranges. `timeout`, `environ`: see `Connections`."""

    def __init__(self, *, timeout: float, environ: Mapping[str, str] | None = None) -> None:
        self._connections = Connections(timeout=timeout, environ=environ)
        self._local = threading.local()

    def get(self, url: str, start: int, length: int, sink: Sink, headers: Mapping[str, str] | None = None) -> None:
        """Passes `length` (> 0) bytes from `start` to `sink`, in order. `headers` go to the URL's own server only, not to
        one that it redirects to.

        Raises Refused for an answer without them, StoreUnavailable for what may go better a second time: then `sink` has
        had the first so many bytes, and the caller goes on behind them. What `sink` raises goes through.
        """
        own = urllib.parse.urlsplit(url)[:2]
        for _ in range(_REDIRECTS + 1):
            same = urllib.parse.urlsplit(url)[:2] == own
            location = self._get(url, start, length, sink, (headers or {}) if same else {})
            if location is None:
                return
            url = urllib.parse.urljoin(url, location)
        raise StoreUnavailable(store=shown(url), cause="it redirects in a circle")

    def _get(self, url: str, start: int, length: int, sink: Sink, headers: Mapping[str, str]) -> str | None:
        asked = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
        with self._connections.ask("GET", url, asked | dict(headers)) as response:
            if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
                return str(response.headers["Location"])
            check(response, url)
            _check_range(response, start, length, url)
            view = self._buffer()
            left = length
            while left:
                with broken(url):
                    count = response.readinto(view[: min(left, _BUFFER)])
                if not count:
                    raise StoreUnavailable(store=shown(url), cause=f"the answer ended {left} bytes early")
                sink(view[:count])
                left -= count
        return None

    def _buffer(self) -> memoryview:
        try:
            return self._local.buffer  # type: ignore[no-any-return]
        except AttributeError:
            self._local.buffer = memoryview(bytearray(_BUFFER))
            return self._buffer()


def _check_range(response: http.client.HTTPResponse, start: int, length: int, url: str) -> None:
    if response.status == 206:
        given = re.fullmatch(r"bytes (\d+)-(\d+)/(?:\d+|\*)", response.headers.get("Content-Range", "").strip())
        if given and (int(given[1]), int(given[2])) == (start, start + length - 1):
            return
        raise StoreUnavailable(
            store=shown(url), cause=f"it answered with other bytes ({response.headers.get('Content-Range')})"
        )
    if start or response.length != length:
        raise StoreUnavailable(store=shown(url), cause="it answered with more than the range that was asked for")


def retry_after(headers: http.client.HTTPMessage) -> float:
    """Seconds that an answer asks to wait, at most 60; 0 where it asks for none.

    A number of seconds, or a date (RFC 9110, 10.2.3): that counts from the answer's own Date, as no clock need be right.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(float(text), _LONGEST_WAIT)
    until, now = (email.utils.parsedate_tz(each) for each in (text, headers.get("Date", "")))
    if not until:
        return 0.0
    seconds = email.utils.mktime_tz(until) - (email.utils.mktime_tz(now) if now else time.time())
    return float(min(max(seconds, 0), _LONGEST_WAIT))


def shown(url: str) -> str:
    """A URL without what may be secret in it: user, password, query. Any other text as it is."""
    if "://" not in url:
        return url
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
