"""AWS Signature Version 4 over request headers, for the S3 requests that the engine cannot make (multipart uploads by part).

The rule is Amazon's: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, whose own example is a test here.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

UNSIGNED = "UNSIGNED-PAYLOAD"
"""In place of the body's SHA-256: the body is covered by a checksum header, which is signed."""


@dataclass(frozen=True)
class Keys:
    """Credentials as they are now; `token` only for temporary ones."""

    access: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)


def signed(
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    *,
    keys: Keys,
    region: str,
    payload: str = UNSIGNED,
    now: float | None = None,
) -> dict[str, str]:
    """The headers of a request with its authorization. `path` is encoded already, `query` is not; `now`: Unix seconds."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() if now is None else now))
    given = {name.lower(): value for name, value in headers.items()}
    given |= {"host": host, "x-amz-content-sha256": payload, "x-amz-date": stamp}
    if keys.token:
        given["x-amz-security-token"] = keys.token
    names = ";".join(sorted(given))
    lines = [method, path, encoded(query), *(f"{name}:{given[name].strip()}" for name in sorted(given)), "", names]
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    request = hashlib.sha256("\n".join([*lines, payload]).encode()).hexdigest()
    key = f"AWS4{keys.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{request}".encode(), "sha256").hex()
    given["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return given


def encoded(query: Mapping[str, str]) -> str:
    """A query in the form that is signed and sent."""
    return "&".join(f"{_quote(name)}={_quote(value)}" for name, value in sorted(query.items()))


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")
