"""What obstore makes of a server's faults: the facts that `create()` and the transfers are built on.

A new obstore that behaves otherwise fails here first. Real server (SeaweedFS), faults by the proxy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import REGION, S3Server

Store = Callable[..., Any]
RETRIES: dict[str, Any] = {
    "default": {},
    "none": {
        "retry_config": {
            "max_retries": 0,
            "retry_timeout": timedelta(seconds=5),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        }
    },
}
BODY = os.urandom(300_000)


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint, sign=s3_server.sign) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    """One with an object named `read`."""
    name = s3_server.new_bucket()
    assert s3_server.request("PUT", f"/{name}/read", BODY)[0] == 200
    return name


@pytest.fixture
def store(s3_server: S3Server, proxy: FaultProxy, bucket: str) -> Store:
    def make(retries: str) -> Any:
        return S3Store(
            bucket,
            endpoint=proxy.endpoint,
            access_key_id=s3_server.access_key,
            secret_access_key=s3_server.secret_key,
            region=REGION,
            client_options={"allow_http": True, "timeout": timedelta(seconds=1)},
            **RETRIES[retries],
        )

    return make


# what the server does, retries: what obstore raises, requests, what is there afterwards
CREATE = [
    ("ok", "default", None, 1, "ours"),
    ("500-after-landing", "default", "AlreadyExistsError", 2, "ours"),
    ("503-after-landing", "default", "AlreadyExistsError", 2, "ours"),
    ("close-after-landing", "default", "AlreadyExistsError", 2, "ours"),
    ("cut-after-landing", "default", "GenericError", 1, "ours"),
    ("no-answer-after-landing:2", "default", "GenericError", 1, "ours"),
    ("html200-after-landing", "default", "GenericError", 1, "ours"),
    ("409", "default", "AlreadyExistsError", 1, "nothing"),
    ("409-after-landing", "default", "AlreadyExistsError", 1, "ours"),
    ("500", "default", None, 2, "ours"),
    ("503*2", "default", None, 3, "ours"),
    ("429:1", "default", None, 2, "ours"),
    ("close", "default", None, 2, "ours"),
    ("cut", "default", "GenericError", 1, "nothing"),
    ("no-answer:2", "default", "GenericError", 1, "nothing"),
    ("cut-upload@50%", "default", "GenericError", 1, "nothing"),
    ("ok", "none", None, 1, "ours"),
    ("500-after-landing", "none", "GenericError", 1, "ours"),
    ("503-after-landing", "none", "GenericError", 1, "ours"),
    ("close-after-landing", "none", "GenericError", 1, "ours"),
    ("cut-after-landing", "none", "GenericError", 1, "ours"),
    ("no-answer-after-landing:2", "none", "GenericError", 1, "ours"),
    ("html200-after-landing", "none", "GenericError", 1, "ours"),
    ("409", "none", "AlreadyExistsError", 1, "nothing"),
    ("409-after-landing", "none", "AlreadyExistsError", 1, "ours"),
    ("500", "none", "GenericError", 1, "nothing"),
    ("429:1", "none", "GenericError", 1, "nothing"),
    ("close", "none", "GenericError", 1, "nothing"),
    ("cut", "none", "GenericError", 1, "nothing"),
    ("expired", "none", "GenericError", 1, "nothing"),
    ("403", "none", "PermissionDeniedError", 1, "nothing"),
    ("404", "none", "FileNotFoundError", 1, "nothing"),
]


@pytest.mark.parametrize(("fault", "retries", "raised", "requests", "there"), CREATE)
def test_an_exclusive_create(
    s3_server: S3Server,
    proxy: FaultProxy,
    bucket: str,
    store: Store,
    fault: str,
    retries: str,
    raised: str | None,
    requests: int,
    there: str,
) -> None:
    key = f"{fault}-{retries}".translate(str.maketrans("@%:*", "----"))
    rule = proxy.on("PUT", f"/{key}$", fault)
    create = functools.partial(obstore.put, mode="create", use_multipart=False)
    assert raises(lambda: create(store(retries), key, b"ours")) == raised
    assert rule.requests == requests
    status, body = s3_server.request("GET", f"/{bucket}/{key}")
    assert (body.decode() if status == 200 else {404: "nothing"}.get(status)) == there


@pytest.mark.parametrize("retries", RETRIES)
def test_an_exclusive_create_of_what_is_there(
    s3_server: S3Server, proxy: FaultProxy, bucket: str, store: Store, retries: str
) -> None:
    key = f"theirs-{retries}"
    assert s3_server.request("PUT", f"/{bucket}/{key}", b"theirs")[0] == 200
    rule = proxy.on("PUT", "", "ok")
    put = obstore.put
    assert raises(lambda: put(store(retries), key, b"ours", mode="create")) == "AlreadyExistsError"
    assert rule.landed == [412]
    assert s3_server.request("GET", f"/{bucket}/{key}") == (200, b"theirs")


# what the server does: what obstore gives for a whole read and for a range, with its default retries
READ = [
    ("ok", "right", "right"),
    ("503*2", "right", "right"),
    ("cut", "right", "right"),
    ("close", "right", "right"),
    ("no-answer:2", "right", "right"),
    ("short-with-full-length@50%", "right", "right"),
    ("cut-body@50%", "right", "right"),
    ("stall@50%:2", "right", "right"),
    ("expired", "GenericError", "GenericError"),
    ("redirect", "PermissionDeniedError", "PermissionDeniedError"),  # the signature names the first host
    ("html200", "wrong", "GenericError"),
    ("short@50%", "wrong", "wrong"),
    ("flip@10", "wrong", "wrong"),
    ("wrong-range", None, "GenericError"),
    ("200-for-206", None, "GenericError"),
]


@pytest.mark.parametrize(("fault", "whole", "part"), READ)
def test_a_read(proxy: FaultProxy, store: Store, fault: str, whole: str | None, part: str) -> None:
    def read() -> bytes:
        return bytes(obstore.get(store("default"), "read").bytes())

    def read_range() -> bytes:
        return bytes(obstore.get_range(store("default"), "read", start=1000, end=101_000))

    for function, body, expected in ((read, BODY, whole), (read_range, BODY[1000:101_000], part)):
        if expected is not None:
            proxy.script("GET", "/read$", fault)
            try:
                outcome = "right" if function() == body else "wrong"
            except Exception as error:
                outcome = type(error).__name__
            assert outcome == expected
    assert proxy.misfits == []


def raises(function: Callable[[], object]) -> str | None:
    """The name of what the function raises."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return None
