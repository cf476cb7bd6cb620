"""A real S3 server for tests: SeaweedFS, on loopback ports of its own, gone with the process that started it."""

from __future__ import annotations

import ctypes
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

KEYS = ("test-access-key", "test-secret-key")


def _free_ports() -> dict[str, int]:
    """Ports for master, volume, filer and S3; weed uses each + 10000 for gRPC too, so both must be free."""
    found: dict[str, int] = {}
    for port in range(12000 + random.randrange(9000), 30000):
        try:
            for each in (port, port + 10000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        found[("master", "volume", "filer", "s3")[len(found)]] = port
        if len(found) == 4:
            return found
    raise RuntimeError("no free ports")


class Ended(Exception):
    """The server ended while it was starting."""


class S3Server:
    """Started by the constructor, which returns when it answers."""

    def __init__(self, folder: Path, *, deadline: float = 60) -> None:
        self._count = 0
        for attempt in range(4):
            try:
                self._start(folder / str(attempt), deadline)
                return
            except Ended:  # Another server of another worker was quicker to take one of the ports.
                continue
        raise RuntimeError(f"the S3 server does not start; see {folder}")

    def _start(self, folder: Path, deadline: float) -> None:
        ports = _free_ports()
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEYS[0], "secretKey": KEYS[1]}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._log = open(folder / "log", "wb")
        options = [f"-{name}.port={port}" for name, port in ports.items()]
        self._process = subprocess.Popen(
            [
                _weed(), "server", f"-dir={folder / 'data'}", "-master.telemetry=false", "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}", "-volume.max=60",
                "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0", *options,
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),
        )  # fmt: skip
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"
        end = time.monotonic() + deadline
        while True:
            try:
                self._make_bucket()
                return
            except Exception as error:  # whatever the client raises while the server is starting
                if self._process.poll() is not None:
                    self.stop()
                    raise Ended from error
                if time.monotonic() > end:
                    self.stop()
                    raise
                time.sleep(0.2)

    def env(self) -> dict[str, str]:
        """The usual variables of AWS."""
        return {
            "AWS_ACCESS_KEY_ID": KEYS[0],
            "AWS_SECRET_ACCESS_KEY": KEYS[1],
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def new_prefix(self) -> str:
        """`bucket/prefix`, unused so far. One bucket serves all: each new one would claim volumes of the server's."""
        self._count += 1
        return f"bucket/{self._count}"

    def _make_bucket(self) -> None:
        """Makes the bucket, and proves by a write that the server is there."""
        import boto3
        from botocore.config import Config

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEYS[0],
            aws_secret_access_key=KEYS[1],
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=20, retries={"max_attempts": 1}),
        )
        if "bucket" not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="probe", Body=b"probe")
        client.delete_object(Bucket="bucket", Key="probe")

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


def _weed() -> str:
    return str(Path(sys.executable).with_name("weed"))
