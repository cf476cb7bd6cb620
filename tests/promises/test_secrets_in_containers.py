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
FILED = "canary-in-a-file\n'of two lines'\n"
JOB = """
import base64, hashlib, os, pathlib, sys, time
for name in ("WANDB_API_KEY", "HF_TOKEN", "PLAIN"):
    print(name, hashlib.sha256(os.environ[name].encode()).hexdigest(), flush=True)
print("left", sorted(each.name for each in pathlib.Path("/run/launcher/secrets/values").iterdir()), flush=True)
print("files", os.listdir("/run/launcher/secrets/files"), os.listdir("/run/launcher/files"), flush=True)
file = pathlib.Path(os.environ["KEY"])
print("file", file, oct(file.stat().st_mode), file.stat().st_uid == os.getuid(), hashlib.sha256(file.read_bytes()).hexdigest())
print("memory", [line.split()[2] for line in open("/proc/mounts") if line.split()[1] == str(file.parent)])
print("core", [line.split()[4:6] for line in open("/proc/self/limits") if "core" in line])
kept = os.environ["WANDB_API_KEY"]
print("print", kept.strip(), base64.b64encode(kept.strip().encode()).decode(), file=sys.stderr, flush=True)
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
    docker.env |= {"HF_TOKEN": GIVEN, "KEY_BYTES": FILED}
    words = ["training", "run", "j", "--runner", "docker", "--image", BASE, "--work-dir", str(code)]
    words += [
        "-S",
        "WANDB_API_KEY=wandb",
        "-E",
        "HF_TOKEN",
        "-E",
        "PLAIN=seen",
        "--secret-file",
        "KEY=env:KEY_BYTES",
        *(["--user", user] if user else []),
    ]
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
        logs = run(docker, "logs", name)
        shown += run(docker, "top", name, "-eo", "args").stdout + logs.stdout + logs.stderr
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
    assert "files [] ['KEY']" in lines and "memory ['tmpfs']" in lines and "core [['1', '1']]" in lines
    assert f"file /run/launcher/files/KEY 0o100400 True {digest(FILED)}" in lines
    assert "print [secret wandb] [secret wandb]" in lines
    assert "left []" in lines and "shell []" in lines
    kept = [
        path
        for path in docker.home.rglob("*")
        if path.is_file() and "secrets" not in path.relative_to(docker.home).parts
    ]
    everything = shown + "".join(said) + "".join(path.read_text(errors="replace") for path in kept)
    for secret in (KEPT, GIVEN, FILED):
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
