"""Stores on S3 and its kin, GCS and Azure, through obstore (Rust; threads without the GIL).

Credentials are the usual ones of each cloud: AWS_* variables, instance, container and web-identity roles; an AWS profile
(AWS_PROFILE, SSO) through boto3, which is the extra `launcher[aws]`. AWS_ENDPOINT_URL names another endpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from launcher.errors import AccessDenied, SettingsError, StoreError, StoreUnavailable, StoreUnsupported
from launcher.transfer.digest import Hasher
from launcher.transfer.http import Ranges, Refused
from launcher.transfer.object_store import Entry, Exists, Missing, Moved, OnBytes, Sink
from launcher.transfer.retry import engine_config

SCHEMES = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss", "adl", "azure"})
_SINGLE_PUT = 8 << 20
"""Up to this size a file is one request; above, a multipart upload of parts of this size."""
_PARTS = 4
_LARGEST_COPY = 5 << 30
"""Bytes of the largest object that S3's CopyObject takes."""
_STREAM = 256 << 10
_SIGN_FROM = 1 << 20
"""Bytes from which reading by a signed URL into reused memory takes less CPU than the engine's own bodies (measured:
0.4 against 0.56 s for 512 MiB; below, signing costs more than it saves)."""
_SIGNED = 3600
"""Seconds that a signed URL is good for; it is used for the first half of them."""
_STALLED = 30.0
"""Seconds without a byte after which a body is cut and gone on with."""
_EXPIRED = frozenset({"ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired", "RequestExpired"})


_PROXIES = tuple(each for name in ("http_proxy", "https_proxy", "all_proxy") for each in (name, name.upper()))


class CloudStore:
    """An ObjectStore over a bucket and prefix. `timeout`: seconds one operation is retried."""

    def __init__(self, url: str, *, timeout: float, environ: Mapping[str, str]) -> None:
        import obstore
        from obstore import exceptions, store

        self.url = url.rstrip("/")
        self._obstore = obstore
        self._exceptions = exceptions
        self._urls: dict[str, tuple[str, float]] = {}
        self._can_sign = not any(environ.get(name) for name in _PROXIES)  # The engine knows proxies, `Ranges` does not.
        self._ranges = Ranges(timeout=min(timeout, _STALLED))
        options: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=min(10.0, timeout)),
            "timeout": timedelta(seconds=max(timeout, 1.0)),
        }
        if any(environ.get(name, "").startswith("http://") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
            options["allow_http"] = True
        common: dict[str, Any] = {"client_options": options}
        if self.url.startswith(("s3:", "s3a:")):
            common |= _aws(environ)
        try:
            # Files: the engine goes on where a body was cut. Small objects: every try is ours to count (see `create`).
            self._store = store.from_url(self.url, retry_config=engine_config(timeout), **common)
            self._small = store.from_url(self.url, retry_config=engine_config(timeout) | {"max_retries": 0}, **common)
        except (exceptions.BaseError, ValueError) as error:
            raise SettingsError(what=f"The store URL {url} cannot be used: {_cause(error)}") from error

    def create_once(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._obstore.put(self._small, key, body, mode="create", use_multipart=False)

    def get(self, key: str) -> bytes:
        with self._errors(key):
            return bytes(self._obstore.get(self._small, key).bytes())

    def read(self, key: str, start: int, length: int) -> bytes:
        if length <= 0:
            return b""
        with self._errors(key):
            try:
                return bytes(self._obstore.get_range(self._small, key, start=start, length=length))
            except self._exceptions.BaseError as error:
                if "InvalidRange" in str(error) or "416" in str(error):
                    return b""  # The range begins at or after the end.
                raise

    def put(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._obstore.put(self._small, key, body, use_multipart=False)

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        with self._errors(prefix):
            for page in self._obstore.list(self._small, prefix.rstrip("/") or None, offset=after or None):
                for item in page:
                    yield Entry(item["path"], item["size"], item["last_modified"].timestamp())

    def upload(self, source: str, key: str, on_bytes: OnBytes) -> Moved:
        hasher = Hasher()

        def parts() -> Iterator[bytes]:
            with open(source, "rb", buffering=0) as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
                    on_bytes(len(chunk))
                    yield chunk

        with self._errors(key):
            if os.stat(source).st_size <= _SINGLE_PUT:
                self._obstore.put(self._store, key, b"".join(parts()), use_multipart=False)
            else:
                self._obstore.put(self._store, key, parts(), chunk_size=_SINGLE_PUT, max_concurrency=_PARTS)
        return Moved(hasher.size, hasher.digest, hasher.blocks)

    def stream(self, key: str, start: int, length: int, sink: Sink) -> None:
        if not length:
            return
        url = self._signed(key) if length >= _SIGN_FROM else ""
        if not url:
            with self._errors(key):
                result = self._obstore.get(self._small, key, options={"range": (start, start + length)})
                for chunk in result.stream(min_chunk_size=_STREAM):
                    view = memoryview(chunk)
                    sink(view)
                    length -= len(view)
            if length:
                raise StoreUnavailable(store=self.url, cause=f"{key} ended {length} bytes early")
            return
        try:
            self._ranges.get(url, start, length, sink)
        except Refused as refused:
            self._urls.pop(key, None)  # Credentials expire: the next attempt signs anew.
            if refused.status == 404:
                raise Missing(key) from refused
            if refused.code in _EXPIRED:
                raise StoreUnavailable(store=self.url, cause=str(refused)) from refused
            raise self._refused(key, refused) from refused

    def _signed(self, key: str) -> str:
        """A URL that anyone may read the object by for a while; empty where the cloud or the credentials cannot sign."""
        if not self._can_sign:
            return ""
        url, since = self._urls.get(key, ("", 0.0))
        if not url or time.monotonic() - since > _SIGNED / 2:
            try:
                with self._errors(key):
                    url = self._obstore.sign(self._store, "GET", key, timedelta(seconds=_SIGNED))
            except (StoreError, AccessDenied, ValueError):
                self._can_sign = False
                return ""
            self._urls[key] = url, time.monotonic()
        return url

    def copy(self, source_key: str, target_key: str) -> None:
        with self._errors(source_key):
            if self._obstore.head(self._small, source_key)["size"] > _LARGEST_COPY:
                raise StoreUnsupported(store=self.url, cause=f"{source_key} is larger than one request can copy")
            self._obstore.copy(self._store, source_key, target_key)

    def settle(self, prefix: str) -> None:
        """An object store answers only when the object is durable."""

    def delete(self, keys: Iterable[str]) -> None:
        batch = list(keys)
        for start in range(0, len(batch), 1000):
            with self._errors(batch[start]), contextlib.suppress(Missing, self._exceptions.NotFoundError):
                self._obstore.delete(self._small, batch[start : start + 1000])

    def leftovers(self) -> Iterator[Entry]:
        return iter(())  # Parts of a multipart upload that was cut off have no key, and obstore cannot list them.

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        names = self._exceptions
        try:
            yield
        except names.AlreadyExistsError as error:
            raise Exists(key) from error
        except (names.NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error) or "specified bucket" in str(error):
                raise StoreError(
                    store=self.url, cause="the bucket does not exist", hint="Create it, or check LAUNCHER_STORE."
                ) from error
            raise Missing(key) from error
        except (names.PermissionDeniedError, names.UnauthenticatedError) as error:
            raise self._refused(key, error) from error
        except names.NotSupportedError as error:
            raise StoreUnsupported(store=self.url, cause=_cause(error)) from error
        except names.BaseError as error:
            if re.search(r"status code: 403|AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId", str(error)):
                raise self._refused(key, error) from error
            raise StoreUnavailable(store=self.url, cause=_cause(error)) from error

    def _refused(self, key: str, error: Exception) -> AccessDenied:
        return AccessDenied(
            what=f"{self.url}/{key}",
            cause=_cause(error),
            hint="Check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role).",
        )


def _aws(environ: Mapping[str, str]) -> dict[str, Any]:
    if environ.get("AWS_ACCESS_KEY_ID") or not environ.get("AWS_PROFILE"):
        return {}
    try:
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise SettingsError(
            what="AWS_PROFILE is set, and reading profiles needs the package boto3.",
            hint="pip install 'launcher[aws]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ) from error
    return {"credential_provider": Boto3CredentialProvider(Session())}


def _cause(error: Exception) -> str:
    """The reason in an obstore error, in one line: its text repeats every layer that it went through."""
    text = " ".join(str(error).partition("Debug source")[0].split())
    code = re.search(r"<Code>(.*?)</Code>.*?(?:<Message>(.*?)</Message>|$)", text)
    if code:
        return f"{code[1]}: {code[2]}" if code[2] else code[1]
    text = re.sub(r"^Generic \w+ error: |Error performing list request: ", "", text)
    text = re.sub(r", after \d+ retries, max_retries: \d+, retry_timeout: \w+", "", text)
    return text if len(text) <= 300 else text[:300] + "…"
