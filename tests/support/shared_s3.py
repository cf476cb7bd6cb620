"""One S3 server for all workers of a test run, started by the first that needs it, ended with the last.

Who uses the server holds a shared lock on its `users` file; a keeper process, the server's parent, waits for
the exclusive lock, which it gets when nobody is left, then ends the server. The kernel drops the locks of a
killed worker, and ends the server of a killed keeper (PR_SET_PDEATHSIG): no counter that could be wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.s3_server import PartMissing, S3Server, ServerFailed, find_weed, serve

_ROOT = Path(__file__).parents[2]
_LONGEST_RUN = 6 * 3600
"""Seconds after which a keeper ends whoever still holds the lock."""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (SeaweedFS), the same one in every worker of the run."""
    try:
        find_weed()
    except PartMissing as error:
        if os.environ.get("LAUNCHER_TEST_REQUIRE_ALL") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    base = tmp_path_factory.getbasetemp()
    with shared(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) as server:
        yield server


@contextlib.contextmanager
def shared(folder: Path, *, deadline: float = 60) -> Iterator[S3Server]:
    """The server of everybody who names this folder. Raises ServerFailed if there is none in `deadline` s."""
    end = time.monotonic() + deadline
    with contextlib.ExitStack() as held:
        with open(folder / "s3.lock", "a") as lock:
            _lock(lock, fcntl.LOCK_EX, end)
            server = _join(folder, held) or _start(folder, held, end)
        yield server


def _join(folder: Path, held: contextlib.ExitStack) -> S3Server | None:
    """The newest server, if it lives; our lock on its users is then in `held`."""
    for home in _homes(folder)[-1:]:
        with contextlib.ExitStack() as ours:
            users = ours.enter_context(open(home / "users", "a"))
            try:
                fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
                server = S3Server(**json.loads((home / "server.json").read_text()))
                address = urllib.parse.urlsplit(server.endpoint)
                socket.create_connection((address.hostname or "", address.port or 0), timeout=5).close()
            except (OSError, ValueError):  # ending (its keeper has the lock), never ready, or dead
                return None
            held.push(ours.pop_all())
            return server
    return None


def _start(folder: Path, held: contextlib.ExitStack, end: float) -> S3Server:
    home = folder / f"s3-{len(_homes(folder)):03d}"
    home.mkdir()
    users = held.enter_context(open(home / "users", "a"))
    fcntl.flock(users, fcntl.LOCK_SH)  # before there is a keeper that could find nobody
    left = max(1.0, end - time.monotonic())
    with open(home / "keeper.log", "wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "tests.support.shared_s3", str(home), str(left)],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the workers; the keeper follows when they are gone
        )
    assert keeper.stdout is not None
    with keeper.stdout as answer:
        # The keeper's own deadline is `end`; it then says why in its log.
        told, _, _ = select.select([answer], [], [], left + 5)
        line = os.read(answer.fileno(), select.PIPE_BUF) if told else b""
    threading.Thread(target=keeper.wait, daemon=True).start()  # reaps it, if it ends before us
    if not line:
        keeper.kill()
        raise ServerFailed(f"no S3 server: {(home / 'keeper.log').read_text(errors='replace')[-2000:]}")
    return S3Server(**json.loads(line))


def keep(home: Path, deadline: float) -> None:
    """The keeper's life: serve, tell where, wait until nobody uses the server."""
    signal.alarm(_LONGEST_RUN)
    with serve(home, deadline=deadline) as server:
        text = json.dumps(dataclasses.asdict(server))
        (home / "server.json.part").write_text(text)
        (home / "server.json.part").rename(home / "server.json")
        os.write(sys.stdout.fileno(), text.encode())  # one write: the reader closes after the first
        with open(home / "users", "a") as users:
            fcntl.flock(users, fcntl.LOCK_EX)  # the alarm is its deadline


def _homes(folder: Path) -> list[Path]:
    return sorted(folder.glob("s3-[0-9][0-9][0-9]"))


def _lock(file: IO[str], kind: int, end: float) -> None:
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ServerFailed(f"another worker has held {file.name} for too long") from None
        threading.Event().wait(0.02)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), float(sys.argv[2]))
