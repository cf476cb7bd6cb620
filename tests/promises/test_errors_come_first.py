"""What is wrong is said before anything long starts: what, to what, what to do next."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import Launcher


def test_an_unknown_checkpoint_lists_the_nearest_names(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("x")
    launcher("checkpoint", "push", "mistral_tiny_base", "--file", tmp_path / "m")
    output = launcher("training", "run", "j", "-C", "mistral_tiny_bsae", "--", "sh", code=66)
    assert "mistral_tiny_bsae" in output and "Nearest names: mistral_tiny_base" in output


def test_every_mistake_is_told_at_once(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("acels: 2\ngrace: soon\n")
    output = launcher("training", "run", "a//b", "--file", tmp_path / "job.yaml", code=64)
    assert "did you mean 'accels'" in output and "'soon' is no duration" in output
    output = launcher("training", "run", "a//b", "--runner", "docker", code=64)
    assert "--image" in output and "no command" in output and "part '' between slashes" in output


def test_flags_win_over_variables_and_those_over_the_file(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("command: sh -c 'echo $WHO; exit 0'\nenv: {WHO: file}\naccels: 3\ngrace: 3s\n")
    launcher.env |= {"LAUNCHER_GRACE": "2s", "LAUNCHER_ACCELS": "2"}
    output = launcher("training", "run", "j", "--file", tmp_path / "job.yaml", "--accels", "1")
    assert "file" in output.splitlines()
    spec = launcher.json("training", "inspect", "j")["spec"]
    assert (spec["accels"], spec["grace"]) == (1, 2.0)


def test_too_few_accelerators_says_both_numbers(launcher: Launcher) -> None:
    output = launcher("entrypoint", "--name", "j", "--accels", "4", "--", "sh", "-c", "exit 0", code=73)
    assert "4 accelerators asked for, 0 found" in output


def test_a_store_that_cannot_be_reached_is_named_quickly(launcher: Launcher) -> None:
    launcher.env |= {
        "LAUNCHER_STORE": "s3://bucket/prefix",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    started = time.monotonic()
    output = launcher("training", "run", "j", "--", "sh", code=69)
    assert "s3://bucket/prefix cannot be reached" in output and "127.0.0.1:9" in output
    assert time.monotonic() - started < 20


def test_an_unreadable_repository_and_an_unknown_revision(launcher: Launcher, tmp_path: Path) -> None:
    output = launcher("training", "run", "j", "-u", f"file://{tmp_path}/nowhere", "--", "train.py", code=66)
    assert "cannot be read" in output
    repository = tmp_path / "code"
    repository.mkdir()
    (repository / "train.sh").write_text("#!/bin/sh\necho from the repository\n")
    (repository / "train.sh").chmod(0o755)
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "code"]):
        subprocess.run([*git, *words], check=True)
    output = launcher("training", "run", "j", "-u", f"file://{repository}", "-b", "mian", "--", "./train.sh", code=66)
    assert "no branch, tag or commit 'mian'" in output and "main" in output
    output = launcher("training", "run", "j", "-u", f"file://{repository}", "-b", "main", "--", "./train.sh")
    assert "from the repository" in output


def test_the_same_name_twice_at_once_is_refused(launcher: Launcher) -> None:
    process = launcher.start("training", "run", "twice", "--", "sh", "-c", "echo ready; sleep 30")
    assert process.stdout
    for line in process.stdout:
        if line.startswith("ready"):
            break
    output = launcher("training", "run", "twice", "--", "sh", "-c", "exit 0", code=64)
    assert "running already" in output
    launcher("training", "stop", "twice")
    process.wait(10)


def test_a_folder_that_is_not_whole_is_not_pushed(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", tiny_model, broken], check=True)
    with open(broken / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    output = launcher("checkpoint", "push", "broken", "--file", broken, code=65)
    assert "model.safetensors" in output and "--force" in output
    assert launcher.json("checkpoint", "list") == []
    launcher("checkpoint", "verify", broken, code=65)


def test_a_full_disk_is_said_before_the_download(launcher: Launcher, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "data.bin").write_bytes(os.urandom(3 << 20))
    launcher("checkpoint", "push", "big", "--file", tmp_path / "m")
    cache = Path(launcher.env["LAUNCHER_CACHE_DIR"]) / "checkpoints"
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    try:
        launcher.env["LAUNCHER_CACHE_DIR"] = str(small)
        output = launcher("training", "run", "j", "-C", "big", "--", "echo", "started", code=73)
        assert "3.0 MiB needed" in output and str(small) in output and "LAUNCHER_CACHE_DIR" in output
        assert "started\n" not in output.split("error", 1)[0]
        assert not list((small / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
    launcher.env["LAUNCHER_CACHE_DIR"] = str(cache.parent)
    launcher("training", "run", "j", "-C", "big", "--", "echo", "started")
