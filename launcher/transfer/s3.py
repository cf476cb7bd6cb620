"""The requests of S3's multipart uploads, which the engine does not offer one by one.

Servers differ in what they check (see docs/transfer.md): CRC-32 (x-amz-checksum-crc32) is checked by AWS, SeaweedFS and MinIO;
where a server does not know it, Content-MD5, which all check, takes its place.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import http.client
import re
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from launcher.errors import StoreUnavailable
from launcher.transfer.http import Body, Connections, Refused, broken, check
from launcher.transfer.object_store import Unfinished
from launcher.transfer.retry import call
from launcher.transfer.sigv4 import UNSIGNED, Keys, encoded, signed

_CRC32 = "x-amz-checksum-crc32"
_TRIES = 5
"""How often the list of an upload's parts is sent at most, where the server refuses it."""


class Gone(Exception):
    """The server does not know the upload: it was aborted, or finished already."""


@dataclass(frozen=True)
class Part:
    """A part that the server has: its ETag, its CRC-32 in base64 where the server told it, bytes."""

    etag: str
    crc32: str
    size: int

    def holds(self, data: memoryview) -> bool:
        """Whether these are its bytes: by MD5 (the ETag, unless the bucket encrypts with keys of its own), or CRC-32."""
        if self.size != len(data):
            return False
        return self.crc32 == crc32(data) or self.etag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


class Uploads:
    """Multipart uploads below one bucket's prefix; every method may be called from several threads.

    `bucket`: its URL without a slash at the end. `keys`: the credentials of the moment, asked for at every request.
    `timeout`: seconds that one request is tried again. `stalled`: seconds without a byte after which one is cut. `failed` is
    told of each answer that says to try again.
    Raises Refused and StoreUnavailable, and Gone where an upload is named.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        region: str,
        keys: Callable[[], Keys],
        *,
        timeout: float,
        stalled: float,
        failed: Callable[[StoreUnavailable], None] = lambda error: None,
    ) -> None:
        self._bucket, self._prefix, self._region = bucket, prefix, region
        self._failed = failed
        self._keys = keys
        self._timeout = timeout
        self._connections = Connections(timeout=stalled, answer=timeout)
        self._crc32 = True
        """Whether the server knows CRC-32, as far as it was asked."""

    def begin(self, key: str) -> str:
        """Begins an upload and returns its id."""
        headers = {"x-amz-checksum-algorithm": "CRC32"} if self._crc32 else {}
        try:
            return _field(self._call("POST", key, {"uploads": ""}, headers), "UploadId")
        except Refused as refused:
            if refused.status not in (400, 501) or not self._crc32:
                raise
            self._crc32 = False
            return self.begin(key)

    def put(self, key: str, upload: str, number: int, data: memoryview, body: Body) -> Part:
        """Sends a part, whose bytes are `data` and `body` in pieces, until the server has it."""
        return self._put(key, {"partNumber": str(number), "uploadId": upload}, data, body)

    def put_whole(self, key: str, data: memoryview, body: Body) -> None:
        """Stores an object by one request."""
        self._put(key, {}, data, body)

    def known(self, part: Part, data: memoryview) -> Part:
        """A part of an earlier try, which holds `data`, as `finish` needs it: listings leave out its CRC-32."""
        return Part(part.etag, crc32(data) if self._crc32 else "", part.size)

    def _put(self, key: str, query: Mapping[str, str], data: memoryview, body: Body) -> Part:
        try:
            return self._put_summed(key, query, data, body, self._crc32)
        except Refused as refused:
            if refused.status not in (400, 501) or not self._crc32:
                raise
            part = self._put_summed(key, query, data, body, False)
            self._crc32 = False
            return part

    def _put_summed(self, key: str, query: Mapping[str, str], data: memoryview, body: Body, with_crc32: bool) -> Part:
        summed = crc32(data) if with_crc32 else ""
        md5 = "" if summed else base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        headers = {"content-length": str(len(data))} | ({_CRC32: summed} if summed else {"content-md5": md5})

        def attempt() -> Part:
            with self._ask("PUT", key, query, headers, body) as response:
                _text(response, self._bucket)
                if not response.headers["ETag"]:
                    raise StoreUnavailable(store=self._url(key), cause="the answer names no ETag: it is not from S3")
                return Part(response.headers["ETag"], summed, len(data))

        return call(attempt, self._timeout)

    def finish(self, key: str, upload: str, parts: Sequence[Part]) -> None:
        """Makes the object of all its parts, in order."""
        entries = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(part.etag)}</ETag>"
            + (f"<ChecksumCRC32>{part.crc32}</ChecksumCRC32>" if part.crc32 and self._crc32 else "")
            + "</Part>"
            for number, part in enumerate(parts, 1)
        )
        body = f"<CompleteMultipartUpload>{entries}</CompleteMultipartUpload>".encode()

        size = sum(part.size for part in parts)
        left = _TRIES

        def attempt() -> None:
            nonlocal left
            left -= 1
            try:
                with self._ask("POST", key, {"uploadId": upload}, {}, body) as response:
                    text = _text(response, self._bucket)
                if "<CompleteMultipartUploadResult" not in text:  # S3 may say 200, and in the body that it failed.
                    raise StoreUnavailable(store=self._url(key), cause=_field(text, "Code") or "no result")
            except (Gone, Refused) as refused:
                if self._size(key) == size:
                    return  # By an attempt before, whose answer was lost, or by another process.
                # The list of parts was damaged on its way, or an attempt before is at work on the server still.
                if isinstance(refused, Refused) and refused.status == 400 and left > 0:
                    raise StoreUnavailable(store=self._url(key), cause=str(refused)) from refused
                raise
            made = re.search(r"-(\d+)\W*$", _field(text, "ETag"))
            if made and int(made[1]) != len(parts):
                raise Gone(f"the server made the object of {made[1]} of {len(parts)} parts")

        call(attempt, self._timeout)

    def parts(self, key: str, upload: str) -> dict[int, Part]:
        """What the server has of an upload, by number from 1."""
        found: dict[int, Part] = {}
        more: dict[str, str] = {}
        while True:
            text = self._call("GET", key, {"uploadId": upload} | more)
            for each in _elements(text, "Part"):
                part = Part(_field(each, "ETag"), _field(each, "ChecksumCRC32"), int(_field(each, "Size")))
                found[int(_field(each, "PartNumber"))] = part
            if _field(text, "IsTruncated") != "true":
                return found
            more = {"part-number-marker": _field(text, "NextPartNumberMarker")}

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        """The uploads of keys that begin with `prefix` which were begun and not finished yet, in key order."""
        more: dict[str, str] = {}
        while True:
            text = self._call("GET", None, {"uploads": "", "prefix": self._prefix + prefix} | more)
            for each in _elements(text, "Upload"):
                began = datetime.fromisoformat(_field(each, "Initiated").replace("Z", "+00:00")).timestamp()
                yield Unfinished(_field(each, "Key")[len(self._prefix) :], _field(each, "UploadId"), began)
            if _field(text, "IsTruncated") != "true":
                return
            more = {
                "key-marker": _field(text, "NextKeyMarker"),
                "upload-id-marker": _field(text, "NextUploadIdMarker"),
            }

    def abort(self, upload: Unfinished) -> None:
        """Removes an upload and its parts; one that is gone already is no error."""
        with contextlib.suppress(Gone):
            self._call("DELETE", upload.key, {"uploadId": upload.id})

    def _size(self, key: str) -> int:
        """Bytes of an object; -1 where there is none."""

        def attempt() -> int:
            try:
                with self._ask("HEAD", key, {}, {}, b"") as response:
                    return int(response.headers["Content-Length"])
            except Refused as refused:
                if refused.status == 404:
                    return -1
                raise

        return call(attempt, self._timeout)

    def _call(
        self, method: str, key: str | None, query: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> str:
        """The answer's text; tried again until there is one."""

        def attempt() -> str:
            with self._ask(method, key, query, headers or {}, b"") as response:
                return _text(response, self._bucket)

        return call(attempt, self._timeout)

    @contextlib.contextmanager
    def _ask(
        self, method: str, key: str | None, query: Mapping[str, str], headers: Mapping[str, str], body: Body | bytes
    ) -> Iterator[http.client.HTTPResponse]:
        """The successful answer to one request for an object, or (key None) for the bucket."""
        url = self._bucket if key is None else self._url(key)
        parts = urllib.parse.urlsplit(url)
        given = signed(
            method,
            parts.netloc,
            parts.path or "/",
            query,
            headers,
            keys=self._keys(),
            region=self._region,
            payload=hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else UNSIGNED,
        )
        if query:
            url = f"{url}?{encoded(query)}"
        with self._connections.ask(method, url, given, body) as response:
            try:
                check(response, url)
            except StoreUnavailable as error:
                self._failed(error)
                raise
            except Refused as refused:
                if refused.code == "NoSuchUpload":
                    raise Gone(refused.text) from refused
                raise
            yield response

    def _url(self, key: str) -> str:
        return f"{self._bucket}/{urllib.parse.quote(self._prefix + key, safe='/-_.~')}"


def crc32(data: memoryview) -> str:
    """As S3 writes it: four bytes, the highest first, in base64."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _text(response: http.client.HTTPResponse, url: str) -> str:
    with broken(url):
        return response.read().decode("utf-8", "replace")


def _elements(text: str, name: str) -> list[str]:
    return re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)


def _field(text: str, name: str) -> str:
    """The text of the first element of this name; empty where there is none."""
    return html.unescape(next(iter(_elements(text, name)), ""))
