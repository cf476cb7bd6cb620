"""Whatever the container may not do, the entrypoint does its job: the input is there and read-only, the checkpoint is
collected, and the exit code is the job's. The containers of the table run side by side."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cli import ROOT, Launcher
from tests.support.commits import tiny_checkpoint

# The first test waits for the images, which take minutes to make where they are not there yet.
pytestmark = pytest.mark.timeout(1500)

UNKNOWN = "1234567"
"""An OpenShift uid: no entry in passwd, no home folder; its group is 0."""
READ_ONLY = ("--read-only", "--tmpfs", "/tmp")
HARDENED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
FLAGS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "root": ("--user", "0"),
    "uid 1000": ("--user", "1000"),
    "arbitrary uid": ("--user", f"{UNKNOWN}:0"),
    "read-only": READ_ONLY,
    "no capabilities": ("--cap-drop", "ALL"),
    "no new privileges": ("--security-opt", "no-new-privileges"),
    "pids limit": ("--pids-limit", "200"),
    "init": ("--init",),
    "no shared memory": ("--shm-size", "1m"),
    "root without capabilities": ("--user", "0", *HARDENED),
    "all at once": ("--user", f"{UNKNOWN}:0", *READ_ONLY, *HARDENED, "--pids-limit", "200", "--init", "--shm-size", "1m"),
}  # fmt: skip
JOB = """
cd "$LAUNCHER_INPUT_CHECKPOINT" && test -s model.safetensors || exit 90
(touch x || rm -f config.json || echo no > config.json || mv "$LAUNCHER_INPUT_CHECKPOINT" /tmp/) 2>/dev/null && exit 91
test "$(wc -c < config.json)" -gt 9 || exit 92
python3 -c 'import getpass, pathlib; getpass.getuser(); (pathlib.Path.home() / "x").write_text("a home")' || exit 93
mkdir "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-1" && cp -r . "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-1/" || exit 94
exit 7
"""


@dataclass(frozen=True)
class Ended:
    """A container, and what it left in its store."""

    code: int
    output: str
    checkpoints: list[str]
    owners: set[int]
    """Of every folder and, but for the job's record, every file."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter: pytest's own is for one."""
    folder = Path("/tmp", f"launcher-flags-{uuid.uuid4().hex[:8]}")
    folder.mkdir(mode=0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=False)
    shutil.rmtree(folder)


@pytest.fixture
def store(place: Path) -> Path:
    """A store with one input, for copies of it."""
    launcher = Launcher(place / "host", LAUNCHER_STORE=str(place / "store"))
    launcher("checkpoint", "push", "base", "--file", tiny_checkpoint(place / "model"))
    return place / "store"


def run(
    address: str, image: str, flags: tuple[str, ...], store: Path, *command: str, owner: int | None = None, **env: str
) -> Ended:
    """One container with a store of its own, as a folder of the host; `owner` of it: else everybody may write there."""
    own = store.with_name(f"store-{uuid.uuid4().hex[:8]}")
    shutil.copytree(store, own)
    subprocess.run(["chmod", "-R", "a+rwX", own], check=True)
    output, data = own.with_name(f"{own.name}-output"), own.with_name(f"{own.name}-data")
    for each in (output, data):
        each.mkdir()
        each.chmod(0o777)
    if owner is not None:
        subprocess.run(["chown", "-R", str(owner), own, output, data], check=True)
        flags = (*flags, "--volume", f"{data}:/var/lib/launcher")
    variables = {"LAUNCHER_STORE": "/store", "LAUNCHER_NAME": "job", "LAUNCHER_CHECKPOINT": "base"} | env
    given = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    done = images.docker(
        address, "run", "--rm", "--network", "none", *flags, *given, "--volume", f"{own}:/store",
        "--volume", f"{output}:/output-checkpoint", "--volume", f"{ROOT}/examples:/examples:ro", image, *command, timeout=600,
    )  # fmt: skip
    found = Launcher(store.parent / "host", LAUNCHER_STORE=str(own)).json("checkpoint", "list")
    names = sorted(each["metadata"]["name"] for each in found if each["metadata"]["name"] != "base")
    folders = {each.lstat().st_uid for top in (own, output, data) for each in (top, *top.rglob("*")) if each.is_dir()}
    files = {each.lstat().st_uid for top in (own, output) for each in top.rglob("*")}
    return Ended(done.returncode, done.stdout + done.stderr, names, folders | files)


def test_every_flag(engine: str, job_image: str, store: Path) -> None:
    by_hand = (*FLAGS["all at once"], "--entrypoint", "/opt/launcher/bin/launcher")
    with ThreadPoolExecutor(4) as pool:
        futures = {
            name: pool.submit(run, engine, job_image, flags, store, "sh", "-c", JOB) for name, flags in FLAGS.items()
        }
        futures["all, process runner"] = pool.submit(
            run, engine, job_image, by_hand, store, "training", "run", "job", "--", "sh", "-c", JOB,
            LAUNCHER_OUTPUT_DIR="/output-checkpoint",
        )  # fmt: skip
        results = {name: future.result() for name, future in futures.items()}
    for name, ended in results.items():
        guard = next((line.rpartition(" ")[2] for line in ended.output.splitlines() if "read-only by:" in line), "?")
        print(f"{name:28} exit code {ended.code}, read-only by {guard}, stored {ended.checkpoints}")
    wrong = {
        name: ended for name, ended in results.items() if (ended.code, ended.checkpoints) != (7, ["job/checkpoint-1"])
    }
    assert not wrong, "\n\n".join(
        f"{name}: {ended.code} {ended.checkpoints}\n{ended.output}" for name, ended in wrong.items()
    )


def test_a_training_with_every_flag(engine: str, job_image: str, place: Path, tiny_model: Path) -> None:
    launcher = Launcher(place / "host", LAUNCHER_STORE=str(place / "store"))
    launcher("checkpoint", "push", "base", "--file", tiny_model)
    ended = run(
        engine, job_image, FLAGS["all at once"], place / "store", "/examples/fine_tune.py", "--steps", "2",
        "--save-steps", "2", HF_HUB_OFFLINE="1", LAUNCHER_ACCELS="2",
    )  # fmt: skip
    assert ended.code == 0, ended.output
    assert ended.checkpoints == ["job", "job/checkpoint-2"], ended.output


def test_what_root_writes_belongs_to_the_owner_of_the_mounted_folders(engine: str, job_image: str, store: Path) -> None:
    ended = run(engine, job_image, ("--user", "0"), store, "sh", "-c", JOB, owner=4321)
    assert (ended.code, ended.checkpoints) == (7, ["job/checkpoint-1"]), ended.output
    assert ended.owners == {4321}
