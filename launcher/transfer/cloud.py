"""Stores on S3 and its kin, GCS and Azure, through obstore (Rust; threads without the GIL).

Credentials are the usual ones of each cloud: AWS_* variables, instance, container and web-identity roles; an AWS profile
(AWS_PROFILE, SSO) through boto3, which is the extra `launcher[aws]`. AWS_ENDPOINT_URL names another endpoint.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from launcher.errors import AccessDenied, SettingsError, StoreError, StoreUnavailable, StoreUnsupported
from launcher.transfer import multipart
from launcher.transfer.digest import Hasher
from launcher.transfer.http import Ranges, Refused
from launcher.transfer.multipart import Memory
from launcher.transfer.object_store import MEMORY, Entry, Exists, Missing, Moved, OnBytes, Sink, Unfinished
from launcher.transfer.retry import call, engine_config
from launcher.transfer.s3 import Uploads
from launcher.transfer.sigv4 import Keys

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
_OWN_FROM = 1 << 20
"""Bytes from which our own requests take less CPU than the engine's (measured: 0.54 against 0.68 s for 512 MiB, but 0.67
against 0.43 s for 1,000 files of 64 KiB)."""
_STALLED = 30.0
_OTHER_MEMORY = 64 << 20
"""Bytes that the process takes besides the parts it uploads."""
_NO_BUCKET = "the bucket does not exist"
_CREATE_IT = "Create it, or check LAUNCHER_STORE."
_ENGINE_ONLY = ("AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_REQUEST_PAYER")
"""Variables whose meaning only the engine knows: with one of them, it uploads."""
_CREDENTIALS = {
    "s3:": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE",
    "s3a": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE",
    "gs:": "GOOGLE_SERVICE_ACCOUNT",
}
_PROXIES = tuple(each for name in ("http_proxy", "https_proxy", "all_proxy") for each in (name, name.upper()))


class CloudStore:
    """An ObjectStore over a bucket and prefix. `timeout`: seconds one operation is retried. `memory`: bytes of the process
    while it uploads, about. `stalled`: seconds without a byte after which a connection is cut and gone on with. `options`: what
    obstore is told besides (endpoint, region, credential_provider …), which wins over the environment."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        environ: Mapping[str, str],
        memory: int = MEMORY,
        stalled: float = _STALLED,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        import obstore
        from obstore import exceptions, store

        self.url = url.rstrip("/")
        self._obstore = obstore
        self._exceptions = exceptions
        self._urls: dict[str, tuple[str, float]] = {}
        self._can_sign = not any(environ.get(name) for name in _PROXIES)  # The engine knows proxies, `Ranges` does not.
        self._timeout = timeout
        self._stalled = min(timeout, stalled)
        self._ranges = Ranges(timeout=self._stalled)
        self._memory = Memory(memory - _OTHER_MEMORY)
        client: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=min(10.0, timeout)),
            "timeout": timedelta(seconds=max(timeout, 1.0)),
        }
        given = dict(options or {})
        endpoints = [environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")]
        if any(endpoint.startswith("http://") for endpoint in [*endpoints, given.get("endpoint", "")]):
            client["allow_http"] = True
        common: dict[str, Any] = {"client_options": client} | given
        self._is_s3 = self.url.startswith(("s3:", "s3a:"))
        if self._is_s3 and "credential_provider" not in given:
            common |= _aws(environ)
        self._common, self._from_url = common, store.from_url
        self._summed = self._is_s3
        """Whether small objects go with their SHA-256."""
        try:
            # Every try is ours to count (see `create`).
            self._small = self._engine(checksum_algorithm="sha256") if self._is_s3 else self._plain
        except (exceptions.BaseError, ValueError) as error:
            raise SettingsError(what=f"The store URL {url} cannot be used: {_cause(error)}") from error
        self._keys = _keys(common, environ) if self._is_s3 else None
        self._uploads: Uploads | None = None

    def _engine(self, *, retries: bool = False, **options: Any) -> Any:
        """An engine; each takes some 6 ms of CPU to make, so they are made when they are needed."""
        config = engine_config(self._timeout) | ({} if retries else {"max_retries": 0})
        return self._from_url(self.url, retry_config=config, **self._common, **options)

    @functools.cached_property
    def _plain(self) -> Any:
        """For servers without checksums."""
        return self._engine()

    @functools.cached_property
    def _going_on(self) -> Any:
        """For files: the engine itself tries again, and goes on where a body was cut."""
        return self._engine(retries=True)

    def create_once(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._put(key, body, mode="create")

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
                if re.search(r'InvalidRange|416|CONTENT_RANGE header: "bytes .*/0"', str(error)):
                    return b""  # The range begins at or after the end.
                raise

    def put(self, key: str, body: bytes) -> None:
        with self._errors(key):
            self._put(key, body)

    def _put(self, key: str, body: bytes, **options: Any) -> None:
        """One request, with its SHA-256 for the server to check, unless it is one that knows no checksums."""
        try:
            self._obstore.put(self._small, key, body, use_multipart=False, **options)
        except self._exceptions.BaseError as error:
            if not self._summed or "NotImplemented" not in str(error):
                raise
            self._summed = False
            self._small = self._plain
            self._obstore.put(self._small, key, body, use_multipart=False, **options)

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        with self._errors(prefix):
            for page in self._obstore.list(self._small, prefix.rstrip("/") or None, offset=after or None):
                for item in page:
                    if after and item["path"] <= after:
                        continue  # Azure begins at the first key where the server is older than the parameter.
                    yield Entry(item["path"], item["size"], item["last_modified"].timestamp())

    def upload(self, source: str, key: str, on_bytes: OnBytes) -> Moved:
        size = os.stat(source).st_size
        uploads = self._own_uploads() if size >= _OWN_FROM else None
        if uploads:
            try:
                return multipart.upload(uploads, self._memory, source, size, key, on_bytes)
            except Refused as refused:
                raise self._failure(key, refused) from refused
        hasher = Hasher()

        def parts() -> Iterator[bytes]:
            with open(source, "rb", buffering=0) as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
                    on_bytes(len(chunk))
                    yield chunk

        def once() -> None:
            try:
                with self._errors(key):
                    self._put(key, body)
            except StoreUnavailable as error:
                self._memory.lanes.failed(error)
                raise

        with self._memory.room(min(size, _SINGLE_PUT * (_PARTS + 1))):
            if size <= _SINGLE_PUT:
                body = b"".join(parts())
                call(once, self._timeout)
            else:
                with self._errors(key):
                    self._obstore.put(self._going_on, key, parts(), chunk_size=_SINGLE_PUT, max_concurrency=_PARTS)
        return Moved(hasher.size, hasher.digest, hasher.blocks)

    def _own_uploads(self) -> Uploads | None:
        """Uploads by our own requests; None where only the engine has the credentials (GCS, Azure, roles)."""
        if self._uploads is None and self._keys and (url := self._signed("a")):
            # The engine's signed URL says how it addresses the bucket, and the region.
            parts = urllib.parse.urlsplit(url)
            prefix = "".join(f"{each}/" for each in self.url.partition("://")[2].split("/")[1:] if each)
            path = "/".join(parts.path.split("/")[: -1 - prefix.count("/")])
            region = urllib.parse.parse_qs(parts.query)["X-Amz-Credential"][0].split("/")[2]
            bucket = f"{parts.scheme}://{parts.netloc}{path}"
            self._uploads = Uploads(
                bucket,
                prefix,
                region,
                self._keys,
                timeout=self._timeout,
                stalled=self._stalled,
                failed=self._memory.lanes.failed,
            )
        return self._uploads

    def unfinished(self, prefix: str) -> Iterator[Unfinished]:
        uploads = self._own_uploads()
        if uploads is None and (self._is_s3 or self.url.startswith("gs:")):  # Azure drops its own after a week.
            raise StoreUnsupported(store=self.url, cause="only its own engine has the credentials")
        try:
            yield from uploads.unfinished(prefix) if uploads else ()
        except Refused as refused:
            raise self._failure(prefix, refused) from refused

    def abort(self, upload: Unfinished) -> None:
        uploads = self._own_uploads()
        try:
            if uploads:
                uploads.abort(upload)
        except Refused as refused:
            raise self._failure(upload.key, refused) from refused

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
        except (Refused, StoreUnavailable) as error:
            self._urls.pop(key, None)  # Credentials may have expired: the next attempt signs anew.
            if isinstance(error, Refused):
                raise self._failure(key, error) from error
            raise

    def _signed(self, key: str) -> str:
        """A URL that anyone may read the object by for a while; empty where the cloud or the credentials cannot sign."""
        if not self._can_sign:
            return ""
        url, since = self._urls.get(key, ("", 0.0))
        if not url or time.monotonic() - since > _SIGNED / 2:
            try:
                with self._errors(key):
                    url = self._obstore.sign(self._small, "GET", key, timedelta(seconds=_SIGNED))
            except (StoreError, AccessDenied, ValueError):
                self._can_sign = False
                return ""
            self._urls[key] = url, time.monotonic()
        return url

    def copy(self, source_key: str, target_key: str) -> None:
        with self._errors(source_key):
            if self._obstore.head(self._small, source_key)["size"] > _LARGEST_COPY:
                raise StoreUnsupported(store=self.url, cause=f"{source_key} is larger than one request can copy")
            self._obstore.copy(self._going_on, source_key, target_key)

    def settle(self, prefix: str) -> None:
        """An object store answers only when the object is durable."""

    def delete(self, keys: Iterable[str]) -> None:
        batch = list(keys)
        for start in range(0, len(batch), 1000):
            self._delete(batch[start : start + 1000])

    def _delete(self, keys: Sequence[str]) -> None:
        try:
            with self._errors(keys[0]):
                self._obstore.delete(self._small, keys)
        except Missing:
            if len(keys) > 1:  # Where one of them is missing, GCS and Azure may leave others.
                for key in keys:
                    self._delete([key])

    def leftovers(self) -> Iterator[Entry]:
        return iter(())  # Parts of an upload that was cut off are no objects: see `unfinished`.

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        names = self._exceptions
        try:
            yield
        except names.AlreadyExistsError as error:
            raise Exists(key) from error
        except (names.NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error) or "specified bucket" in str(error):
                raise StoreError(store=self.url, cause=_NO_BUCKET, hint=_CREATE_IT) from error
            raise Missing(key) from error
        except (names.PermissionDeniedError, names.UnauthenticatedError) as error:
            raise self._refused(key, error) from error
        except names.NotSupportedError as error:
            raise StoreUnsupported(store=self.url, cause=_cause(error)) from error
        except names.BaseError as error:
            if re.search(r"status code: 403|AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId", str(error)):
                raise self._refused(key, error) from error
            raise StoreUnavailable(store=self.url, cause=_cause(error)) from error

    def _failure(self, key: str, refused: Refused) -> Exception:
        """The exception that an answer to one of our own requests means."""
        if refused.code == "NoSuchBucket":
            return StoreError(store=self.url, cause=_NO_BUCKET, hint=_CREATE_IT)
        if refused.status == 404:
            return Missing(key)
        if refused.status in (401, 403):
            return self._refused(key, refused)
        return StoreError(store=self.url, cause=f"{key}: {refused}")

    def _refused(self, key: str, error: Exception) -> AccessDenied:
        return AccessDenied(
            what=f"{self.url}/{key}",
            cause=_cause(error),
            hint=f"Check the credentials ({_CREDENTIALS.get(self.url[:3], 'AZURE_STORAGE_ACCOUNT_KEY')}, or the role).",
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


def _keys(common: Mapping[str, Any], environ: Mapping[str, str]) -> Callable[[], Keys] | None:
    """Where the credentials of the moment come from; None where only the engine knows them."""
    if any(environ.get(name) for name in _ENGINE_ONLY):
        return None
    if provider := common.get("credential_provider"):

        def provided() -> Keys:
            given = provider()
            return Keys(given["access_key_id"], given["secret_access_key"], given.get("token") or "")

        return provided
    access, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
    keys = Keys(access, secret, environ.get("AWS_SESSION_TOKEN", ""))
    return (lambda: keys) if access and secret else None


def _cause(error: Exception) -> str:
    """The reason in an obstore error, in one line: its text repeats every layer that it went through."""
    text = " ".join(str(error).partition("Debug source")[0].split())
    code = re.search(r"<Code>(.*?)</Code>.*?(?:<Message>(.*?)</Message>|$)", text)
    if code:
        return f"{code[1]}: {code[2]}" if code[2] else code[1]
    text = re.sub(r"^Generic \w+ error: |Error performing list request: ", "", text)
    text = re.sub(r", after \d+ retries, max_retries: \d+, retry_timeout: \w+", "", text)
    return text if len(text) <= 300 else text[:300] + "…"
