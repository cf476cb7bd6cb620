"""Fixtures of every test: the command line as a user runs it, a tiny model, and the real parts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cli import ROOT, Launcher
from tests.support.docker_engine import EngineMissingError, docker_engine
from tests.support.shared_s3 import s3_server

__all__ = ["s3_server"]

# A shell without job control starts what it puts into the background with these ignored (POSIX, "Asynchronous Lists"), and
# whoever inherits that cannot be interrupted: the tests' programs start as anywhere else.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)
REQUIRE_ALL = os.environ.get("LAUNCHER_TEST_REQUIRE_ALL") == "1"


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """The command line with a store, cache and data folder of its own."""
    return Launcher(tmp_path / "home")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def tiny_model(shared: Path) -> Path:
    """A folder with a tiny Mistral and its tokenizer, made once."""
    folder = shared / "tiny-model"
    with open(shared / "tiny-model.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = shared / "tiny-model.part"
            subprocess.run(
                [sys.executable, ROOT / "examples/make_tiny_model.py", made], check=True, capture_output=True
            )
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """The address of a real Docker engine that has the base image."""
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(docker_engine())
        except EngineMissingError as error:
            if REQUIRE_ALL:
                pytest.fail(str(error))
            pytest.skip(str(error))
        images.base_image(address)
        yield address


@pytest.fixture(scope="session")
def job_image(engine: str) -> str:
    """The tag of an image with the launcher as its entrypoint, at that engine."""
    return images.job_image(engine)
