"""A stop in the middle of a download ends it at once, and the next job goes on with what had come."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from launcher.transfer.digest import BLOCK
from tests.support.cli import Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_a_download_that_stalls(
    launcher: Launcher, s3_server: S3Server, tmp_path: Path, number: signal.Signals
) -> None:
    """The server sends two blocks and half of the third, then is silent for longer than this test lasts."""
    proxy = FaultProxy(s3_server.endpoint)
    try:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "data.bin").write_bytes(os.urandom(3 * BLOCK))
        launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p"}
        launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
        launcher.env |= {"AWS_ENDPOINT_URL": proxy.endpoint, "LAUNCHER_TRANSFER_THREADS": "1"}
        proxy.script("GET", r"data\.bin", "ok*2 stall@50%:600")
        process = launcher.start("training", "run", "j", "-C", "base", "--", "true")
        proxy.rules[0].wait(3, deadline=60)
        process.send_signal(number)
        late = threading.Timer(60, process.kill)
        late.start()
        output, _ = process.communicate()
        late.cancel()
        assert process.returncode == 75, output
        assert f"Stopped by {number.name} before the job started" in output
        proxy.script("GET", r"data\.bin", "ok")
        launcher("training", "run", "j", "-C", "base", "--", "true")
        again = proxy.rules[0].requests
        print(f"{number.name}: 2 of 3 blocks kept, {again} fetched again")
        assert again == 1
    finally:
        proxy.stop()
