"""A job in an image that knows nothing of the launcher: `launcher prepare` before it and `launcher collect` beside it share a
volume with it, and no process sees another's."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import images
from tests.support.cli import Launcher
from tests.support.commits import tiny_checkpoint

pytestmark = pytest.mark.timeout(1500)  # The first test with an engine waits for the images.

JOB = """
import os, pathlib, shutil, sys, time
source = pathlib.Path(os.environ["LAUNCHER_INPUT_CHECKPOINT"])
output = pathlib.Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
try:
    (source / "config.json").write_text("changed")
    sys.exit(91)
except OSError as error:
    print("input:", error.strerror, flush=True)
for step in (1, 2, 3):
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def place(launcher: Launcher, tmp_path: Path) -> Path:
    """A folder with a pushed checkpoint, `base`."""
    launcher("checkpoint", "push", "base", "--file", tiny_checkpoint(tmp_path / "model"))
    return tmp_path


def names(launcher: Launcher, job: str) -> list[str]:
    found = launcher.json("checkpoint", "list")
    return sorted(each["metadata"]["name"] for each in found if each["metadata"]["name"].startswith(f"{job}/"))


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.3)


def write(output: Path, step: int) -> None:
    """A whole checkpoint, complete by one rename."""
    tiny_checkpoint(output.parent / f"part-{step}").rename(output / f"checkpoint-{step}")


def test_prepare_fills_a_volume(launcher: Launcher, place: Path) -> None:
    volume = place / "volume"
    launcher("prepare", "--into", volume, "--name", "ft", "-C", "base", "-C", "base=again")
    assert sorted(path.name for path in (volume / "input-checkpoint").iterdir()) == ["again", "base"]
    for path in (volume / "input-checkpoint").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o555 if path.is_dir() else 0o444), path
    assert (volume / "output-checkpoint").stat().st_mode & 0o7777 == 0o777
    variables = dict(line.split("=", 1) for line in (volume / "launcher.env").read_text().splitlines())
    assert variables["FLEXAI_INPUT_CHECKPOINT_DIR"] == "/input-checkpoint"
    assert variables["FLEXAI_OUTPUT_CHECKPOINT_DIR"] == "/output-checkpoint"
    assert variables["LAUNCHER_ATTEMPT"] == "1" and "LAUNCHER_INPUT_CHECKPOINT" not in variables
    # The pod is started again on the same volume: the same job, its next attempt.
    launcher("prepare", "--into", volume, "--name", "ft", "-C", "base")
    again = dict(line.split("=", 1) for line in (volume / "launcher.env").read_text().splitlines())
    assert again["LAUNCHER_JOB_ID"] == variables["LAUNCHER_JOB_ID"] and again["LAUNCHER_ATTEMPT"] == "2"
    assert again["LAUNCHER_INPUT_CHECKPOINT"] == "/input-checkpoint/base"
    assert "belongs to the job 'ft'" in launcher("prepare", "--into", volume, "--name", "other", code=64)
    assert "No checkpoint 'nothing'" in launcher("prepare", "--into", place / "v", "-C", "nothing", code=66)


@pytest.mark.parametrize("where", ["the same volume", "another volume"])
def test_the_next_attempt_goes_on_from_the_newest_checkpoint(launcher: Launcher, place: Path, where: str) -> None:
    launcher.env["LAUNCHER_JOB_ID"] = "pod-7"
    volume = place / "volume"
    launcher("prepare", "--into", volume, "--name", "ft", "-C", "base")
    for step in (1, 2):
        write(volume / "output-checkpoint", step)
        (volume / "output-checkpoint" / f"checkpoint-{step}" / "optimizer.json").write_text("{}")
    launcher("collect", volume)
    if where == "another volume":
        volume = place / "other"
    print(launcher("prepare", "--into", volume, "--name", "ft", "-C", "base"))
    variables = dict(line.split("=", 1) for line in (volume / "launcher.env").read_text().splitlines())
    assert variables["LAUNCHER_JOB_ID"] == "pod-7" and variables["LAUNCHER_ATTEMPT"] == "2"
    assert variables["LAUNCHER_RESUME_CHECKPOINT"] == "/output-checkpoint/checkpoint-2"
    restored = volume / "output-checkpoint" / "checkpoint-2"
    assert {path.stat().st_mode & 0o777 for path in restored.iterdir()} == {0o666}
    assert restored.stat().st_mode & 0o777 == 0o777
    launcher("collect", volume)  # which does not store it again
    found = launcher.json("checkpoint", "list")
    assert sorted((each["metadata"]["name"], each["metadata"]["version"]) for each in found) == [
        ("base", 1), ("ft/checkpoint-1", 1), ("ft/checkpoint-2", 1),
    ]  # fmt: skip


def test_collect_once(launcher: Launcher, tmp_path: Path) -> None:
    output = tmp_path / "results"
    output.mkdir()
    write(output, 1)
    write(output, 2)
    (output / "checkpoint-3").mkdir()
    (output / "checkpoint-3" / "model.safetensors").write_bytes(b"\xff" * 20)
    launcher("collect", output, "--name", "ft")
    assert names(launcher, "ft") == ["ft/checkpoint-1", "ft/checkpoint-2"]
    write(output, 4)
    launcher("collect", output, "--name", "ft")
    assert names(launcher, "ft") == ["ft/checkpoint-1", "ft/checkpoint-2", "ft/checkpoint-4"]
    assert [each["metadata"]["version"] for each in launcher.json("checkpoint", "list")] == [1, 1, 1]


def test_a_secret_in_the_job_file_is_in_no_record_of_the_halves(launcher: Launcher, place: Path) -> None:
    """The record goes into the store, and on the volume every container reads it."""
    canary, job_file = "canary-4711-canary", place / "job.yaml"
    job_file.write_text(f"env: {{HF_TOKEN: {canary}}}\n")
    launcher.env["HF_TOKEN"] = canary  # As its name says that it is secret, its value is written nowhere.
    launcher("prepare", "--into", place / "volume", "--name", "kept", "-C", "base", "--file", job_file)
    launcher("collect", place / "volume", "--file", job_file)
    (place / "results").mkdir()
    launcher("collect", place / "results", "--name", "alone", "--file", job_file)
    searched = [
        path for root in (place / "volume", launcher.home / "data") for path in root.rglob("*") if path.is_file()
    ]
    records = [path for path in searched if path.name == "record.json"]
    print(f"{len(searched)} files searched, {len(records)} of them records")
    assert len(records) >= 3 and all("HF_TOKEN" in path.read_text() for path in records)
    assert not [path for path in searched if canary.encode() in path.read_bytes()]


@pytest.mark.parametrize("end", ["SIGTERM", "file", "quiet"])
def test_the_end_of_the_job_is_noticed(launcher: Launcher, place: Path, end: str) -> None:
    volume = place / "volume"
    launcher("prepare", "--into", volume, "--name", "ft", "-C", "base")
    done = place / "done"
    words = {"SIGTERM": [], "file": ["--until-file", str(done)], "quiet": ["--until-quiet", "3s"]}[end]
    write(volume / "output-checkpoint", 5)
    process = launcher.start("collect", "--watch", volume, "--settle", "0.5s", *words)
    if end != "quiet":
        until(lambda: names(launcher, "ft") == ["ft/checkpoint-5"], "the checkpoint is stored while the job runs")
        write(volume / "output-checkpoint", 6)
    if end == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    elif end == "file":
        done.write_text("0\n")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    result = json.loads((volume / "result.json").read_text())
    print(f"{end}: {result['cause']}")
    assert names(launcher, "ft") == ["ft/checkpoint-5", "ft/checkpoint-6"][: 1 if end == "quiet" else 2], output
    assert result["code"] == 0


def test_what_cannot_be_stored_is_said_and_the_same_command_goes_on(launcher: Launcher, place: Path) -> None:
    volume = place / "volume"
    launcher("prepare", "--into", volume, "--name", "ft", "-C", "base")
    store, away = launcher.home / "data" / "store", place / "away"
    process = launcher.start("collect", "--watch", volume, "--settle", "0.5s", "--grace", "5s")
    until(lambda: "collecting" in (_events(volume)), "the collector watches")
    store.rename(away)
    store.write_text("no folder")
    write(volume / "output-checkpoint", 1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 74, output
    assert json.loads((volume / "result.json").read_text())["kind"] == "collection-incomplete"
    store.unlink()
    away.rename(store)
    launcher("collect", volume)
    assert names(launcher, "ft") == ["ft/checkpoint-1"]
    assert json.loads((volume / "result.json").read_text())["code"] == 0


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_collector_goes_on_exactly_once_and_the_job_lives(launcher: Launcher, place: Path, seed: int) -> None:
    volume = place / "volume"
    launcher("prepare", "--into", volume, "--name", "ft", "-C", "base")
    identifier = (volume / "launcher.env").read_text().partition("LAUNCHER_JOB_ID=")[2].split()[0]
    job = subprocess.Popen(["sleep", "600"], env={"LAUNCHER_JOB_ID": identifier, "PATH": "/usr/bin:/bin"})
    try:
        collector = launcher.start("collect", "--watch", volume, "--settle", "0.2s")
        until(lambda: "collecting" in _events(volume), "the collector watches")
        for step in range(4):
            write(volume / "output-checkpoint", step)
            time.sleep(0.05 + 0.2 * seed)
        collector.kill()
        collector.wait()
        write(volume / "output-checkpoint", 4)  # while nobody collects
        collector = launcher.start("collect", "--watch", volume, "--settle", "0.2s")
        until(lambda: len(names(launcher, "ft")) >= 5, "everything is stored")
        collector.send_signal(signal.SIGTERM)
        output, _ = collector.communicate(timeout=120)
        assert collector.returncode == 0, output
        found = [each for each in launcher.json("checkpoint", "list") if each["metadata"]["name"] != "base"]
        assert sorted((each["metadata"]["name"], each["metadata"]["version"]) for each in found) == [
            (f"ft/checkpoint-{step}", 1) for step in range(5)
        ]
        assert job.poll() is None, "the job was ended with its collector"
    finally:
        job.kill()
        job.wait()


def _events(volume: Path) -> list[str]:
    paths = sorted(volume.glob("jobs/*/*/events.jsonl"))
    return [json.loads(line)["kind"] for line in paths[-1].read_text().splitlines()] if paths else []


@pytest.fixture
def volume(engine: str) -> Iterator[str]:
    """A volume of the engine."""
    name = f"launcher-test-{uuid.uuid4().hex[:8]}"
    assert images.docker(engine, "volume", "create", name).returncode == 0
    yield name
    images.docker(engine, "volume", "rm", "--force", name)


@pytest.mark.parametrize("users", [("1000", "1000"), ("0", "4321"), ("1234567:0", "4321")])
def test_an_init_container_an_unmodified_image_and_a_sidecar(
    launcher: Launcher, place: Path, engine: str, job_image: str, volume: str, users: tuple[str, str]
) -> None:
    """As in a pod: three containers, three process id namespaces, one volume, of which the job sees its two folders. `users`:
    of the launcher and of the job."""
    ours, theirs = users
    launcher("collect", _empty(place / "nothing"), "--name", "warm-up")
    subprocess.run(["chmod", "-R", "a+rwX", launcher.home], check=True)
    hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    launcher_words = [
        *(hardened if ours != "0" else []), "--user", ours, "--network", "none", "--volume", f"{volume}:/volume",
        "--volume", f"{launcher.home}/data/store:/store", "--env", "LAUNCHER_STORE=/store",
        "--entrypoint", "/opt/launcher/bin/launcher", job_image,
    ]  # fmt: skip
    done = images.docker(
        engine, "run", "--rm", *launcher_words, "prepare", "--into", "/volume", "--name", "ft", "-C", "base"
    )
    assert done.returncode == 0, done.stderr
    where = images.docker(engine, "volume", "inspect", "--format", "{{.Mountpoint}}", volume).stdout.strip()
    words = [
        "--detach",
        "--name",
        f"{volume}-sidecar",
        *launcher_words,
        "collect",
        "--watch",
        "/volume",
        "--settle",
        "0.5s",
    ]
    try:
        assert images.docker(engine, "run", *words).returncode == 0
        done = images.docker(
            engine, "run", "--rm", "--user", theirs, "--network", "none", "--read-only", "--cap-drop", "ALL",
            "--env-file", f"{where}/launcher.env", "--volume", f"{where}/input-checkpoint:/input-checkpoint:ro",
            "--volume", f"{where}/output-checkpoint:/output-checkpoint", images.BASE, "python3", "-c", JOB, "0.2",
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout == "input: Read-only file system\n", done.stdout + done.stderr
        assert images.docker(engine, "stop", "--time", "60", f"{volume}-sidecar").returncode == 0  # as the kubelet does
        state = images.docker(engine, "inspect", "--format", "{{.State.ExitCode}}", f"{volume}-sidecar").stdout.strip()
        log = images.docker(engine, "logs", f"{volume}-sidecar")
        subprocess.run(["chmod", "-R", "a+rX", launcher.home], check=True)
        print(f"launcher as {ours}, job as {theirs}: exit code {state}, {names(launcher, 'ft')}")
        assert state == "0", log.stderr
        assert names(launcher, "ft") == [f"ft/checkpoint-{step}" for step in (1, 2, 3)], log.stderr
        assert json.loads(Path(where, "result.json").read_text())["kind"] == "collected"
    finally:
        images.docker(engine, "rm", "--force", f"{volume}-sidecar")


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
