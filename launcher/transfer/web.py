"""Files of a web server: one file, or a folder as nginx, Apache and Python's http.server list it.

A listing is trusted with nothing: only links into the folder itself, on the same server, are followed, and there are limits
on pages, files, depth and bytes. Where a file's entity tag or time is known, every range is asked for on the condition that
they are still the same, so that two states of a file are never mixed.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import html.parser
import http.client
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.errors import AccessDenied, SourceNotFound, StoreError, StoreUnavailable
from launcher.transfer.digest import CHUNK, Hasher
from launcher.transfer.http import Connections, Ranges, Refused, broken, retry_after, shown
from launcher.transfer.object_store import Entry, Missing, Moved, OnBytes, Sink
from launcher.transfer.retry import call

_REDIRECTS = 5
_PAGES, _FILES, _DEPTH, _PAGE = 2_000, 50_000, 32, 16 << 20
"""The most that a listing may have: folders, files, folders in one another, bytes of one page."""
_PROBES = 16
_FIRST_CONTACT = 15.0
"""Seconds after which a server that was never reached counts as wrong, not as slow."""
_STALLED = 30.0
"""Seconds without a byte after which a request is cut."""


@dataclass(frozen=True)
class Probe:
    """What a server says of a URL: `url` after redirects, `size` in bytes (None: it does not say), whether it can send
    `ranges`, whether it is an HTML `page`, `modified` in Unix seconds, and `version`: the headers of a request that must
    fail when the file has been replaced."""

    url: str
    size: int | None
    ranges: bool
    page: bool
    modified: float
    version: tuple[tuple[str, str], ...] = ()


class Web:
    """A readable place below a URL (see `Readable`). `headers` go to the URL's own server only.

    `file`: the URL is one file, whose key is its name; else it is a folder with a listing.
    """

    def __init__(
        self, url: str, *, timeout: float, environ: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> None:
        self.url = shown(url)
        parts = urllib.parse.urlsplit(url)
        credentials, at, netloc = parts.netloc.rpartition("@")
        self._base = urllib.parse.urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
        self._timeout = timeout
        self._reached = False
        self._headers = dict(headers or {})
        if at:
            self._headers |= basic(urllib.parse.unquote(credentials))
        self._connections = Connections(timeout=min(timeout, _STALLED), environ=environ)
        self._ranges = Ranges(timeout=min(timeout, _STALLED), environ=environ)
        self._probes: dict[str, Probe] = {}

    def probe(self, url: str = "") -> Probe:
        """Asks for one byte, as signed URLs allow GET only. Raises Missing, AccessDenied, StoreError, StoreUnavailable."""
        patience = self._timeout if self._reached else min(self._timeout, _FIRST_CONTACT)
        found = call(lambda: self._probe(url or self._base), patience)
        self._reached = True
        return found

    def _probe(self, url: str) -> Probe:
        with self._open(url, {"Range": "bytes=0-0"}) as (response, final):
            headers, ranges = response.headers, response.status == 206
            total = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", "").strip())
            if total:
                size: int | None = int(total[1])
            else:
                size = None if ranges else response.length
            modified = email.utils.parsedate_tz(headers.get("Last-Modified", ""))
            version: tuple[tuple[str, str], ...] = ()
            if headers.get("ETag", "").startswith('"'):
                version = (("If-Match", headers["ETag"]),)
            elif headers.get("Last-Modified"):
                version = (("If-Unmodified-Since", headers["Last-Modified"]),)
            return Probe(
                final,
                size,
                ranges or size == 0,
                headers.get_content_type() == "text/html",
                float(email.utils.mktime_tz(modified)) if modified else 0.0,
                version,
            )

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Every file of the folder. Raises SourceNotFound where there is no listing, or it goes beyond the limits."""
        from concurrent.futures import ThreadPoolExecutor

        urls = {key: url for key, url in self._crawl().items() if key.startswith(prefix) and key > after}
        with ThreadPoolExecutor(_PROBES) as pool:
            for key, probe in zip(urls, pool.map(self.probe, urls.values())):
                yield self._entry(key, probe, urls[key])

    def only(self, key: str, probe: Probe) -> Entry:
        """The URL as one file, which `probe` told of, under this key."""
        return self._entry(key, probe, self._base)

    def version(self, key: str) -> str:
        """What tells this state of a listed file from another one, as far as the server says."""
        return repr(self._probes[key].version)

    def _entry(self, key: str, probe: Probe, url: str) -> Entry:
        if probe.size is None:
            raise SourceNotFound(source=shown(url), cause="the server does not say how large the file is")
        self._probes[key] = Probe(url, probe.size, probe.ranges, probe.page, probe.modified, probe.version)
        return Entry(key, probe.size, probe.modified)

    def _crawl(self) -> dict[str, str]:
        found: dict[str, str] = {}
        pending = [("", self._base)]
        for _ in range(_PAGES):
            if not pending:
                return dict(sorted(found.items()))
            prefix, url = pending.pop()
            for name, link in call(lambda url=url: self._page(url), self._timeout).items():  # type: ignore[misc]
                if name.endswith("/"):
                    pending.append((prefix + name, link))
                else:
                    found[prefix + name] = link
            if len(found) > _FILES or prefix.count("/") > _DEPTH:
                break
        raise SourceNotFound(
            source=self.url,
            cause=f"its listing has more than {_FILES} files or {_PAGES} folders, or is deeper than {_DEPTH}",
            hint="Give the URL of the checkpoint's own folder.",
        )

    def _page(self, url: str) -> dict[str, str]:
        """Name (a folder's ends with a slash) to URL, of one page."""
        with self._open(url, {}) as (response, final):
            if response.headers.get_content_type() != "text/html":
                raise SourceNotFound(source=shown(url), cause="it is no listing of a folder")
            with broken(url):
                body = response.read(_PAGE + 1)
        if len(body) > _PAGE:
            raise SourceNotFound(source=shown(url), cause=f"its listing is larger than {_PAGE >> 20} MiB")
        links = _Links()
        links.feed(body.decode("utf-8", "replace"))
        base = urllib.parse.urlsplit(final)
        folder = base.path.rpartition("/")[0] + "/"
        result = {}
        for href in links.found:
            with contextlib.suppress(ValueError):
                link = urllib.parse.urlsplit(urllib.parse.urljoin(final, href))
                head, slash, deeper = link.path.removeprefix(folder).partition("/")
                inside = link[:2] == base[:2] and link.path.startswith(folder) and head and not deeper
                if inside and not link.query and not link.fragment:
                    result[urllib.parse.unquote(head, errors="surrogateescape") + slash] = urllib.parse.urlunsplit(link)
        return result

    def stream(self, key: str, start: int, length: int, sink: Sink) -> None:
        if not length:
            return
        probe = self._probes[key]
        try:
            self._ranges.get(probe.url, start, length, sink, self._headers | dict(probe.version))
        except Refused as refused:
            raise failure(probe.url, refused.status, refused.text) from refused

    def read(self, key: str, start: int, length: int) -> bytes:
        probe = self._probes[key]
        data = bytearray()
        length = max(0, min(length, (probe.size or 0) - start))
        if probe.ranges:
            self.stream(key, start, length, data.extend)
            return bytes(data)
        with self._open(probe.url, {}) as (response, _), broken(self.url):
            while start and (skipped := len(response.read(min(CHUNK, start)))):
                start -= skipped
            return response.read(length)

    def sequential(self, entry: Entry) -> bool:
        """Whether a file can only be had from its beginning to its end: `whole` then, not `stream`."""
        return not self._probes[entry.key].ranges

    def whole(self, entry: Entry, destination: str, on_bytes: OnBytes) -> Moved:
        """One file by one request, from its beginning at every attempt, synced and read-only."""

        def attempt() -> Moved:
            hasher = Hasher()
            try:
                with self._open(self._probes[entry.key].url, {}) as (response, _), open(destination, "wb") as file:
                    while hasher.size <= entry.size:
                        with broken(self.url):
                            chunk = response.read(min(CHUNK, entry.size - hasher.size + 1))
                        if not chunk:
                            break
                        file.write(chunk)
                        hasher.update(chunk)
                        on_bytes(len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
                    os.fchmod(file.fileno(), 0o444)
            finally:
                if hasher.size != entry.size:
                    on_bytes(-hasher.size)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(destination)
            if hasher.size != entry.size:
                raise StoreUnavailable(
                    store=self.url, cause=f"{entry.key} came with {hasher.size} of {entry.size} bytes"
                )
            return Moved(hasher.size, hasher.digest, hasher.blocks)

        return call(attempt, self._timeout)

    @contextlib.contextmanager
    def _open(self, url: str, headers: Mapping[str, str]) -> Iterator[tuple[http.client.HTTPResponse, str]]:
        """The answer to a GET and the URL that gave it; its body is not read beyond what the block reads."""
        own = urllib.parse.urlsplit(self._base)[:2]
        for _ in range(_REDIRECTS + 1):
            given = {"Accept-Encoding": "identity"} | (self._headers if urllib.parse.urlsplit(url)[:2] == own else {})
            with self._connections.ask("GET", url, given | dict(headers)) as response:
                location = response.headers["Location"]
                if response.status in (200, 206, 416):
                    yield response, url
                    return
                if response.status not in (301, 302, 303, 307, 308) or not location:
                    raise failure(url, response.status, response.reason, retry_after(response.headers))
                try:
                    url = urllib.parse.urljoin(url, location)
                except ValueError as error:
                    raise StoreError(store=self.url, cause=f"it redirects to nowhere ({error})") from error
        raise StoreError(store=self.url, cause=f"it redirects more than {_REDIRECTS} times")


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def failure(url: str, status: int, text: str, wait: float = 0.0) -> Exception:
    """The exception that an HTTP answer means. `wait`: seconds that it asks for before the next try."""
    if status in (404, 410):
        return Missing(shown(url))
    if status in (401, 403, 407):
        return AccessDenied(
            what=shown(url),
            cause=f"{status} {text}",
            hint="Name credentials with `launcher storage create … --secret NAME`, or give a signed URL.",
        )
    if status == 412:
        return StoreError(store=shown(url), cause="the file was replaced while it was being read; start again")
    if status == 429 or status >= 500:
        return StoreUnavailable(store=shown(url), cause=f"{status} {text}", retry_after=wait)
    return StoreError(store=shown(url), cause=f"{status} {text}")


def basic(credentials: str) -> dict[str, str]:
    """The header that carries `USER:PASSWORD`."""
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}
