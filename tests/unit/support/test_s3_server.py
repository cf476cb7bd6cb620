"""The S3 server of the tests: quick, private, shared, and gone with its last user however that one ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.s3_server import S3Server, serve
from tests.support.shared_s3 import shared

ROOT = Path(__file__).parents[3]
USER = """
import sys
from pathlib import Path
from tests.support.shared_s3 import shared
with shared(Path(sys.argv[1])) as server:
    print(server.pid, server.new_bucket(), flush=True)
    sys.stdin.read()
"""


def user(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Another process that uses the shared server until its input ends. -> it, the server's pid"""
    command = [sys.executable, "-c", USER, str(folder)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[0])


def ends(pid: int) -> Callable[[float], bool]:
    """Watches a process that lives now. -> whether it has ended, within some seconds"""
    watched = os.pidfd_open(pid)
    return lambda seconds: bool(select.select([watched], [], [], seconds)[0])


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate(timeout=10)


def test_a_bucket_is_new_and_holds_what_is_put(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    assert bucket != s3_server.new_bucket()
    assert s3_server.request("PUT", f"/{bucket}/a%20b", b"body")[0] == 200
    assert s3_server.request("GET", f"/{bucket}/a%20b") == (200, b"body")


def test_wrong_keys_and_missing_buckets_are_refused(s3_server: S3Server) -> None:
    stranger = S3Server(s3_server.endpoint, s3_server.access_key, "wrong", 0)
    assert stranger.request("GET", "/some-bucket/x")[0] == 403
    status, body = s3_server.request("PUT", "/no-such-bucket/x", b"")
    assert (status, b"NoSuchBucket" in body) == (404, True)


def test_everything_listens_on_loopback_only(s3_server: S3Server) -> None:
    sockets = {os.readlink(each) for each in Path(f"/proc/{s3_server.pid}/fd").iterdir() if each.is_symlink()}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{s3_server.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1].split(":")[0])
    assert len(listening) >= 8
    assert set(listening) == {"0100007F"}


def test_two_servers_run_side_by_side(tmp_path: Path, s3_server: S3Server) -> None:
    with serve(tmp_path / "second") as second:
        assert second.endpoint != s3_server.endpoint
        bucket = second.new_bucket()
        assert s3_server.request("GET", f"/{bucket}/")[0] == 404
    assert not (tmp_path / "second" / "data").exists()


def test_users_share_one_server_and_the_last_ends_it(tmp_path: Path) -> None:
    first, pid = user(tmp_path)
    gone = ends(pid)
    second, same = user(tmp_path)
    assert same == pid
    end(first)  # the one that started it
    with shared(tmp_path) as server:
        assert server.pid == pid
        end(second)
        assert server.new_bucket()
    assert gone(10)
    with shared(tmp_path) as server:
        assert server.pid != pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_user_leaves_no_server(tmp_path: Path, number: int) -> None:
    process, pid = user(tmp_path)
    gone = ends(pid)
    end(process, number)
    assert gone(10)


def test_a_killed_keeper_leaves_no_server(tmp_path: Path) -> None:
    process, pid = user(tmp_path)
    gone = ends(pid)
    keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"tests.support.shared_s3" in Path(f"/proc/{keeper}/cmdline").read_bytes()
    os.kill(keeper, signal.SIGKILL)
    assert gone(10)
    with shared(tmp_path) as server:  # who comes next starts another
        assert server.pid != pid
    end(process)
