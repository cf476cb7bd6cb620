"""The image with the launcher in it, for tests: built by images/build once for each state of the sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from typing import Any

from tests.support.cli import ROOT
from tests.support.docker_engine import HOME

BASE = "launcher-test-base:latest"
_TIME = "1800000000"
"""Of everything in the images, whichever commit is being worked on: the same sources give the same layers."""
_SOURCES = ("launcher", "images", "pyproject.toml")


def build(address: str, *words: str) -> str:
    """Runs images/build and returns what it prints last."""
    env = os.environ | {"DOCKER_HOST": address, "SOURCE_DATE_EPOCH": _TIME}
    done = subprocess.run([ROOT / "images/build", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def job_image(address: str) -> str:
    """The tag of the base image with the launcher as its entrypoint. Whoever asks first builds it; others wait."""
    tag = f"launcher-test:{_digest()}"
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "job_image.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if docker(address, "image", "inspect", tag).returncode != 0:
            build(address, "--base", BASE, "--device", "cpu", "--tag", tag)
    return tag


def base_image(address: str) -> None:
    """The engine has the base image from now on; where it is not kept here yet, that takes minutes."""
    env = os.environ | {"DOCKER_HOST": address}
    made = subprocess.run([ROOT / "tests/support/base_image"], env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def docker(address: str, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The docker command line."""
    env = os.environ | {"DOCKER_HOST": address}
    return subprocess.run(["docker", *map(str, words)], env=env, capture_output=True, text=True, **options)


def layers(address: str, tag: str) -> str:
    """The digests of an image's layers."""
    return docker(address, "image", "inspect", "--format", '{{join .RootFS.Layers " "}}', tag).stdout.strip()


def _digest() -> str:
    found = hashlib.sha256()
    for source in _SOURCES:
        path = ROOT / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]
