"""Repositories of the Hugging Face hub, at one commit, as places to read from.

huggingface_hub says which files a revision has (the extra `launcher[hub]`); their bytes come by the same verified, parallel
ranges as everything else. Every file's own digest is known there and checked: SHA-256 of large files, git's of small ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import AccessDenied, SettingsError, SourceNotFound, StoreUnavailable, UsageError
from launcher.transfer.digest import CHUNK
from launcher.transfer.http import Ranges, Refused
from launcher.transfer.object_store import Entry, Sink
from launcher.transfer.retry import call
from launcher.transfer.web import failure

_FIRST_CONTACT = 15.0
_KINDS = {"datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class Address:
    """`hf://ORG/NAME[@REVISION][/FOLDER]`, and `hf://datasets/…`: a repository, a revision and a folder in it."""

    kind: str
    repository: str
    revision: str
    folder: str


def parse(url: str) -> Address:
    """The parts of an hf:// URL. Raises UsageError."""
    parts = url.partition("://")[2].strip("/").split("/")
    kind = _KINDS.get(parts[0], "model")
    parts = parts[1:] if parts[0] in _KINDS else parts
    at = next((index for index, part in enumerate(parts[:2]) if "@" in part), min(len(parts), 2) - 1)
    last, _, revision = parts[at].partition("@")
    repository = "/".join([*parts[:at], last])
    if not all([*parts, last]):
        raise UsageError(what=f"{url} names no repository.", hint="Write hf://ORG/MODEL or hf://ORG/MODEL@REVISION.")
    return Address(kind, repository, revision.replace("%2F", "/"), "/".join(parts[at + 1 :]))


class HubRepository:
    """A readable place (see `Readable`): one commit of a repository. `digests`: key to `sha256:…` or `git:…`.

    `token`: sent to the hub itself only. Nothing is contacted yet.
    """

    def __init__(self, url: str, *, timeout: float, environ: Mapping[str, str], token: str = "") -> None:
        self._address = parse(url)
        self._url = url
        self._timeout = timeout
        self._token = token or environ.get("HF_TOKEN", "")
        self._endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or None
        self._ranges = Ranges(timeout=min(timeout, 30.0), environ=environ)
        self._entries: tuple[Entry, ...] = ()
        self.digests: dict[str, str] = {}
        self.url = url

    def open(self) -> None:
        """Asks the hub for the commit and its files: `url` names the commit from now on.

        Raises SourceNotFound, AccessDenied, StoreUnavailable, SettingsError (huggingface_hub is missing).
        """
        info = call(self._info, min(self._timeout, _FIRST_CONTACT))
        self._commit = str(info.sha)
        address = self._address
        kind = f"{address.kind}s/" if address.kind != "model" else ""
        folder = f"/{address.folder}" if address.folder else ""
        self.url = f"hf://{kind}{address.repository}@{self._commit}{folder}"
        prefix = f"{address.folder}/" if address.folder else ""
        entries = []
        for file in info.siblings or ():
            if file.rfilename.startswith(prefix) and file.size is not None:
                key = file.rfilename[len(prefix) :]
                entries.append(Entry(key, file.size, 0.0))
                if file.lfs:
                    self.digests[key] = f"sha256:{file.lfs.sha256}"
                elif file.blob_id:
                    self.digests[key] = f"git:{file.blob_id}"
        self._entries = tuple(sorted(entries, key=lambda entry: entry.key))

    def _info(self) -> Any:
        try:
            import huggingface_hub as hub
            from huggingface_hub import errors
        except ImportError as error:
            raise SettingsError(
                what="hf:// URLs need the package huggingface_hub.", hint="pip install 'launcher[hub]'"
            ) from error
        address = self._address
        api = hub.HfApi(endpoint=self._endpoint, token=self._token or None, library_name="launcher")
        if not self._token:
            self._token = hub.get_token() or ""
        try:
            return api.repo_info(
                address.repository,
                revision=address.revision or None,
                repo_type=address.kind,
                files_metadata=True,
                timeout=_FIRST_CONTACT,
            )
        except errors.GatedRepoError as error:
            raise AccessDenied(
                what=self._url,
                cause="its owner grants access one by one",
                hint="Accept its terms on its page, and set HF_TOKEN, or a storage with --secret.",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise SourceNotFound(source=self._url, cause=f"it has no revision {address.revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise SourceNotFound(
                source=self._url,
                cause="there is no such repository, or it is private",
                hint="For a private one set HF_TOKEN, or name a storage with --secret.",
            ) from error
        except errors.OfflineModeIsEnabled as error:
            raise SourceNotFound(
                source=self._url, cause="HF_HUB_OFFLINE forbids asking the hub", hint="Unset it, or push a folder."
            ) from error
        except errors.HFValidationError as error:
            raise UsageError(what=f"{self._url}: {error}") from error
        except Exception as error:  # The library passes on its HTTP client's own exceptions, which changed with it.
            raise StoreUnavailable(store=self._url, cause=" ".join(str(error).split())[:300]) from error

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        yield from (entry for entry in self._entries if entry.key.startswith(prefix) and entry.key > after)

    def read(self, key: str, start: int, length: int) -> bytes:
        data = bytearray()
        size = next(entry.size for entry in self._entries if entry.key == key)
        self.stream(key, start, max(0, min(length, size - start)), data.extend)
        return bytes(data)

    def stream(self, key: str, start: int, length: int, sink: Sink) -> None:
        if not length:
            return
        from huggingface_hub import hf_hub_url

        address = self._address
        url = hf_hub_url(
            address.repository,
            key,
            subfolder=address.folder or None,
            repo_type=address.kind,
            revision=self._commit,
            endpoint=self._endpoint,
        )
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            self._ranges.get(url, start, length, sink, headers)
        except Refused as refused:
            raise failure(url, refused.status, refused.text) from refused


def matches(path: str | os.PathLike[str], size: int, digest: str) -> bool:
    """Whether a file's content has a digest as the hub gives it: reads every byte."""
    kind, _, value = digest.partition(":")
    state = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest() == value
