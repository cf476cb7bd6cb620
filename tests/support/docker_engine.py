"""A real Docker engine for tests: one that answers already, or else a dockerd of this checkout's own.

    with docker_engine() as address: ...

Any number of processes (pytest-xdist's workers, another run in the same checkout) may hold it at once: the first starts it
and the last stops it. The kernel keeps the count: each holder has a shared flock on one file, and who can get it exclusively
was the last, so a killed holder is not counted for ever. Where the last one is killed, the engine runs on, and the next
holder takes it over and stops it.

From a shell: `python -m tests.support.docker_engine COMMAND…` runs a command with DOCKER_HOST set.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.errors import DockerException

HOME = Path(__file__).resolve().parents[2] / ".cache" / "docker"
"""Images and locks: kept between runs, so that an image is built once."""
RUN = Path("/run/launcher-tests") / hashlib.sha256(os.fsencode(HOME)).hexdigest()[:12]
"""Sockets, not below HOME: the kernel limits a socket's path to 107 bytes, and a checkout may lie deep."""
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
_HELP = """usage: python -m tests.support.docker_engine COMMAND [ARGUMENT…]

  python -m tests.support.docker_engine tests/support/base_image
  python -m tests.support.docker_engine docker run --rm launcher-test-base:latest python3 --version
  python -m tests.support.docker_engine bash      # a shell beside the engine; leaving it stops the engine"""


class EngineMissingError(Exception):
    """No engine answers and none can be started here; the text says why."""


@contextlib.contextmanager
def docker_engine(*, deadline: float = 60.0) -> Iterator[str]:
    """The address (a value for DOCKER_HOST) of an engine that answers, for the time of the block.

    `deadline`: seconds that a start and a stop may take. Raises EngineMissingError; TimeoutError if ours does not stop.
    """
    given = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if _answers(given):
        yield given
        return
    _require_parts()
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "engine.users", "w") as users:
        with _turn():
            address = _start(deadline)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield address
        finally:
            with _turn():
                fcntl.flock(users, fcntl.LOCK_UN)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _stop(deadline)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """One process at a time starts, stops, or counts itself."""
    with open(HOME / "engine.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _answers(address: str) -> bool:
    try:
        client = docker.DockerClient(base_url=address, timeout=10)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):  # requests' exceptions are OSErrors
        return False
    finally:
        client.close()


def _require_parts() -> None:
    if os.geteuid() != 0:
        raise EngineMissingError("no Docker engine answers, and only root can start one")
    missing = [name for name in ("dockerd", "containerd", "iptables") if not shutil.which(name, path=_PATH)]
    if missing:
        raise EngineMissingError(f"no Docker engine answers, and to start one there is no {', '.join(missing)}")


def _start(deadline: float) -> str:
    """Starts our dockerd unless it runs; returns when it answers."""
    socket, log = RUN / "docker.sock", HOME / "dockerd.log"
    address = f"unix://{socket}"
    process = None
    if not _pid():
        _clear()
        RUN.mkdir(mode=0o700, parents=True)
        words = [f"--host={address}", f"--pidfile={RUN / 'pid'}"]
        words += [f"--data-root={HOME / 'data'}", f"--exec-root={RUN / 'exec'}"]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                ["dockerd", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PATH": _PATH},
                start_new_session=True,  # Ctrl-C is for the tests; they stop the engine after their containers.
            )
    end = time.monotonic() + deadline
    while not _answers(address):
        if (process and process.poll() is not None) or time.monotonic() > end:
            if process:
                process.kill()
            last = log.read_text(errors="replace").splitlines()[-5:]
            raise EngineMissingError("dockerd does not answer:\n" + "\n".join(last))
        time.sleep(0.1)
    return address


def _stop(deadline: float) -> None:
    """Stops our dockerd, and with it its containers."""
    pid = _pid()
    if pid:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + deadline
    while _pid():
        if time.monotonic() > end:
            raise TimeoutError(f"dockerd (process {pid}) does not stop; see {HOME / 'dockerd.log'}")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
    _clear()


def _clear() -> None:
    """Removes what a dockerd of ours that does not run any more has left: the next would wait for its dead containerd."""
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([each for each in mounts if each.startswith((f"{RUN}/", f"{HOME / 'data'}"))]):
        subprocess.run(["umount", mount], check=False)
    shutil.rmtree(RUN, ignore_errors=True)


def _pid() -> int:
    """Our dockerd's process id, 0 if it does not run: the number's owner must have our folder among its arguments."""
    try:
        pid = int((RUN / "pid").read_text())
        return pid if os.fsencode(f"--pidfile={RUN}/") in Path(f"/proc/{pid}/cmdline").read_bytes() else 0
    except (OSError, ValueError):
        return 0


def main(words: list[str]) -> int:
    """Runs a command with DOCKER_HOST set, and returns its exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0 if words else 64
    try:
        with docker_engine() as address:
            return subprocess.run(words, env=os.environ | {"DOCKER_HOST": address}, check=False).returncode
    except EngineMissingError as error:
        print(error, file=sys.stderr)
        return 69


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
