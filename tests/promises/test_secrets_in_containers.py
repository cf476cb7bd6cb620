"""A secret reaches a container's job as its variable, and nothing else: the engine never knows it (T31)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.promises.test_docker import BASE, docker, run
from tests.promises.test_storages import keep
from tests.support.cli import Launcher

__all__ = ["docker"]
pytestmark = pytest.mark.timeout(1500)  # The first test waits for the base image.

KEPT = "canary-kept & 'quoted' $HOME `id`\n second line \\n ends\twith spaces  "
GIVEN = "canary-given-by-env-0123"
JOB = """
import hashlib, os, pathlib, sys, time
for name in ("WANDB_API_KEY", "HF_TOKEN", "PLAIN"):
    print(name, hashlib.sha256(os.environ[name].encode()).hexdigest(), flush=True)
print("left", sorted(each.name for each in pathlib.Path("/run/launcher/secrets/values").iterdir()), flush=True)
print("shell", [name for name in ("file", "value") if name in os.environ], flush=True)
while not pathlib.Path("/output-checkpoint/go").exists():
    time.sleep(0.05)
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def code() -> Iterator[Path]:
    """A folder with the job's script that any user can read."""
    with tempfile.TemporaryDirectory(prefix="launcher-test-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        (path / "job.py").write_text(JOB)
        yield path


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("", "job.py"),
        ("root", "sh -c 'exec python3 job.py'"),
        ("12345:23456", "sh -c 'exec python3 job.py'"),
    ],
)
def test_the_job_has_it_and_nobody_else(docker: Launcher, code: Path, user: str, command: str) -> None:
    keep(docker, "wandb", KEPT)
    docker.env["HF_TOKEN"] = GIVEN
    words = ["training", "run", "j", "--runner", "docker", "--image", BASE, "--work-dir", str(code)]
    words += ["-S", "WANDB_API_KEY=wandb", "-E", "HF_TOKEN", "-E", "PLAIN=seen", *(["--user", user] if user else [])]
    process = docker.start(*words, "--", *shlex.split(command))
    said: list[str] = []
    try:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if line.startswith("shell"):
                break
        folder = docker.job("j")
        name = f"launcher-{folder.name}"
        shown = run(docker, "inspect", name).stdout
        shown += run(docker, "top", name, "-eo", "args").stdout + run(docker, "logs", name).stdout
        pids = [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]
        for path in pids:
            try:
                shown += path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
        (folder / "output-checkpoint" / "go").touch()
        said.append(process.stdout.read())
        assert process.wait(120) == 0, "".join(said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    lines = "".join(said).splitlines()
    assert f"WANDB_API_KEY {digest(KEPT)}" in lines and f"HF_TOKEN {digest(GIVEN)}" in lines
    assert f"PLAIN {digest('seen')}" in lines and '"PLAIN=seen"' in shown
    assert "left []" in lines and "shell []" in lines
    kept = [
        path
        for path in docker.home.rglob("*")
        if path.is_file() and "secrets" not in path.relative_to(docker.home).parts
    ]
    everything = shown + "".join(said) + "".join(path.read_text(errors="replace") for path in kept)
    for secret in (KEPT, GIVEN):
        for form in (
            secret,
            base64.b64encode(secret.encode()).decode(),
            urllib.parse.quote(secret),
            json.dumps(secret)[1:-1],
        ):
            assert form not in everything, form
    assert "canary" not in everything
    assert not (folder / "secrets").exists()


def test_a_job_that_was_never_started_leaves_none(docker: Launcher, tmp_path: Path) -> None:
    keep(docker, "wandb", KEPT)
    words = ["training", "run", "j", "--runner", "docker", "--image", BASE, "-S", "WANDB_API_KEY=wandb"]
    docker(*words, "--network", "no-such-network", "--", "true", code=73)
    assert not (docker.job("j") / "secrets").exists()
    assert "no name of a variable" in docker(*words, "-S", "a-b=wandb", "--", "true", code=64)
    docker(*words, "--", "no-such-program", code=127)
    again = 'test -n "$WANDB_API_KEY" || exit 9; test "$LAUNCHER_ATTEMPT" = 2 || exit 3'
    docker(*words, "--max-restarts", "1", "--retry-on", "3", "--", "sh", "-c", again)
