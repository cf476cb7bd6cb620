"""The ladder in a container without any capability: Landlock is the rung, and no attack changes the input.

The image has this machine's shell and nothing else: the container of the entrypoint sees this machine's own programs
read-only, so nothing has to be built.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.on_input import AFTER_A_NEW_MODE, ALL, METADATA
from tests.conftest import REQUIRE_ALL
from tests.promises.test_input_read_only import PROGRAM_OF_ATTACKS, Rig, public, rig
from tests.support.cli import ROOT
from tests.support.docker_engine import EngineMissingError, docker_engine

__all__ = ["public"]

IMAGE = "launcher-test-shell:latest"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Docker engine that has the image."""
    try:
        with docker_engine() as found:
            libraries = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout.split()
            paths = ["/bin/sh", *(word for word in libraries if word.startswith("/"))]
            shell = subprocess.run(["tar", "-chP", *paths], capture_output=True, check=True).stdout
            command = ["docker", "import", "-", IMAGE]
            subprocess.run(
                command, env=os.environ | {"DOCKER_HOST": found}, input=shell, capture_output=True, check=True
            )
            yield found
    except EngineMissingError as error:
        if REQUIRE_ALL:
            pytest.fail(str(error))
        pytest.skip(str(error))


def in_container(it: Rig, address: str, home: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`launcher entrypoint` as PID 1 of a container that may do nothing but what any process may."""
    machine = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc", "/opt") if Path(path).exists()]
    python = {
        str(ROOT),
        sys.prefix,
        sys.base_prefix,
        os.path.realpath(sys.base_prefix),
        *_parents_of_links(sys.executable),
    }
    read_only = sorted(
        {*machine, *(each for each in python if not each.startswith(tuple(f"{top}/" for top in machine)))}
    )
    binds = [word for path in read_only for word in ("--volume", f"{path}:{path}:ro")]
    variables = {
        "LAUNCHER_STORE": str(it.launcher.home / "data" / "store"),
        "LAUNCHER_CACHE_DIR": "/place/cache",
        "LAUNCHER_DATA_DIR": "/place/data",
        "LAUNCHER_CHECKPOINT": "base",
        "LAUNCHER_NAME": "attack",
        "CACHE": "/place/cache",
        "HOME": "/place",
        "PATH": "/usr/bin:/bin",
    } | env
    given = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    return subprocess.run(
        [
            "docker", "run", "--rm", "--cap-drop", "ALL", *binds, "--volume", f"{it.launcher.home}:{it.launcher.home}",
            "--volume", f"{home}:/place", *given, IMAGE,
            sys.executable, "-m", "launcher", "entrypoint", "--", *command,
        ],
        env=os.environ | {"DOCKER_HOST": address}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def _parents_of_links(path: str) -> set[str]:
    """The folders of an interpreter that is a chain of links."""
    found = set()
    while os.path.islink(path):
        path = os.path.join(os.path.dirname(path), os.readlink(path))
        found.add(os.path.dirname(os.path.dirname(os.path.abspath(path))))
    return found


def test_no_attack_changes_the_input_in_a_container_without_capabilities(public: Path, address: str) -> None:
    it = rig(public, "root")
    home = public / "container"
    home.mkdir()
    names = [name for name in ALL if name not in {*METADATA, *AFTER_A_NEW_MODE}]
    done = in_container(it, address, home, "/usr/bin/python3", "-I", "-S", str(PROGRAM_OF_ATTACKS), *names)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stdout + done.stderr
    results = json.loads(lines[0])
    print(f"container, landlock: {len(results)} attacks, 0 successes: {json.dumps(results)}")
    assert done.returncode == 0 and "read-only by: landlock" in done.stderr, done.stderr
    assert "bind was not to be had: unshare: Operation not permitted" in done.stderr
    assert [name for name, result in results.items() if result == "done"] == []


def test_a_view_in_a_container_without_capabilities(public: Path, address: str) -> None:
    it = rig(public, "root")
    home = public / "container"
    home.mkdir()
    text = "cd $LAUNCHER_INPUT_CHECKPOINT && echo x >> config.json && touch new && ls"
    done = in_container(it, address, home, "sh", "-c", text, LAUNCHER_INPUT_WRITABLE="true")
    assert done.returncode == 0 and done.stdout.split() == ["config.json", "new", "sub"], done.stdout + done.stderr
    assert "The job may write into its input: " in done.stderr


def test_the_docker_runner_binds_a_view_that_the_job_may_write(public: Path, address: str) -> None:
    it = rig(public, "root")
    it.launcher.env["DOCKER_HOST"] = address
    words = ["training", "run", "x", "--runner", "docker", "--image", IMAGE, "-C", "base"]
    text = "cd $LAUNCHER_INPUT_CHECKPOINT && echo x >> config.json && echo x > sub/new && echo *"
    done = it.run(*words, "--input-writable", "--", "/bin/sh", "-c", text)
    assert done.returncode == 0 and done.stdout.split() == ["config.json", "sub"], done.stdout + done.stderr
    assert "a view that it may change; the input itself is read-only by: engine" in done.stderr
    assert list((it.launcher.home / "data" / "jobs").glob("x/*/view")) == []
    done = it.run(*words, "--", "/bin/sh", "-c", f"! ({text})")
    assert done.returncode == 0 and "cannot create config.json" in done.stderr, done.stdout + done.stderr
    assert it.cached()["config.json"] == (it.model / "config.json").read_bytes()
