"""--dry-run: the plan is the job that would be started, everything is checked, and nothing is started or written."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import settings as configuration
from launcher.errors import NoSpace
from launcher.inputs.cache import NodeCache
from launcher.plan import _disk
from tests.support.cli import Launcher
from tests.support.images import BASE
from tests.support.s3_server import S3Server

NONE = "userns" if os.geteuid() == 0 else "bind"
"""A rung that does not hold for whoever runs the tests."""


def everything(folder: Path) -> dict[str, Any]:
    """Every path below a folder, with what changes when it is written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def plan(launcher: Launcher, *words: str) -> Any:
    """The plan; asserts that nothing was written, not even below /tmp."""
    launcher.home.mkdir(exist_ok=True)
    scratch = launcher.home.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    launcher.env["TMPDIR"] = str(scratch)
    before = everything(launcher.home)
    try:
        done = launcher("training", "run", *words[:1], "--dry-run", "--json", *words[1:])
    finally:
        del launcher.env["TMPDIR"]
    assert everything(launcher.home) == before and not any(scratch.iterdir())
    return json.loads(done[done.index("{\n") :])


def small(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("a checkpoint for tests. ")
    (folder / "data.bin").write_bytes(b"x" * 5000)
    return folder


@pytest.mark.parametrize(
    "command", [("sh", "-c", "env > $FLEXAI_OUTPUT_DIR/env; pwd"), ("examples/guide/torch_save_flat.py",)]
)
def test_the_plan_is_the_job_that_is_started(launcher: Launcher, tmp_path: Path, command: tuple[str, ...]) -> None:
    launcher("checkpoint", "push", "base", "--file", small(tmp_path / "m"))
    words = ("j", "-C", "base=model", "-E", "GREETING=hello", "--", *command)
    found = plan(launcher, *words)
    launcher("training", "run", *words)
    job = launcher.job("j")
    real = json.loads(json.dumps(found).replace("/j/ID", f"/j/{job.name}").replace('"ID"', f'"{job.name}"'))
    attempt = launcher.json("training", "inspect", "j")["attempts"][0]
    (mount,) = real["mounts"]
    assert (mount["target"], mount["read_only"]) == (attempt["inputs"][0]["path"], True)
    assert real["guard"] == attempt["inputs"][0]["rung"] and real["output"] == attempt["output"]
    assert real["device"] == attempt["device"]
    assert found["inputs"][0]["checkpoint"] == attempt["inputs"][0]["checkpoint"]
    if command[0] == "sh":
        given = dict(line.split("=", 1) for line in (job / "output/env").read_text().splitlines() if "=" in line)
        assert {key: given.get(key) for key in real["env"]} == real["env"]
        assert real["env"]["GREETING"] == "hello" and real["inherits"] > 5
    else:
        assert real["command"][1].endswith("agent.py") and real["command"][-1] == command[0]
    assert "nothing was started or written" in launcher("training", "run", words[0], "--dry-run", *words[1:])


def test_secrets_are_shown_by_name_alone(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a-very-secret-value")
    launcher("secret", "create", "hf", "--from-file", tmp_path / "secret")
    found = plan(
        launcher,
        "j",
        "-S",
        "HF=hf",
        "--secret-file",
        "KEY=hf",
        "-E",
        "MY_TOKEN=another-secret-1",
        "-E",
        "PLAIN=a-very-secret-value",
        "--",
        "true",
    )
    assert found["secrets"] == {"HF": "hf", "KEY": "hf"}
    assert [found["env"][key] for key in ("HF", "MY_TOKEN", "PLAIN")] == ["***"] * 3
    assert "secret-value" not in json.dumps(found) and "another-secret" not in json.dumps(found)


def test_what_would_come_from_where_and_what_is_here(launcher: Launcher, tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{bucket}/p"}
    launcher("checkpoint", "push", "base", "--file", small(tmp_path / "m"))
    words = ("j", "-C", "base", "-C", str(tmp_path / "m"), "--", "true")
    stored, folder = plan(launcher, *words)["inputs"]
    assert (stored["size"], stored["fetch"], stored["source"]) == (5024, 5024, f"s3://{bucket}/p")
    assert (folder["fetch"], folder["source"]) == (0, str(tmp_path / "m"))
    disk = plan(launcher, *words)["disk"]
    assert disk[0]["need"] == 5024 and disk[0]["free"] > 0 and disk[0]["path"] == launcher.env["LAUNCHER_CACHE_DIR"]
    launcher("training", "run", *words)
    assert [each["fetch"] for each in plan(launcher, *words)["inputs"]] == [0, 0]
    assert plan(launcher, *words)["disk"][0]["need"] == 0


def test_datasets_and_packages_are_in_the_plan(launcher: Launcher, tmp_path: Path) -> None:
    launcher("dataset", "push", "medical", "--file", small(tmp_path / "d"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "needs.txt").write_text("no-such-package-anywhere==1.0\n")
    words = ("-D", "medical=train", "--work-dir", str(tmp_path / "code"), "--requirements-path", "needs.txt")
    found = plan(launcher, "j", *words, "--", "no-such-command")
    (dataset,) = found["inputs"]
    assert (dataset["kind"], dataset["reference"], dataset["fetch"]) == ("dataset", "medical=train", 5024)
    (mount,) = found["mounts"]
    assert mount["target"].endswith("/j/ID/input/train") and mount["read_only"]
    assert found["packages"].startswith(launcher.env["LAUNCHER_CACHE_DIR"]) and not found["packages_here"]
    assert found["env"]["VIRTUAL_ENV"] == found["packages"]
    assert "Whether the packages can be installed" in found["unchecked"][0]
    output = launcher("training", "run", "j", "--dry-run", "-D", "medicla", "--", "true", code=66)
    assert "Nearest names: medical" in output


def test_the_plan_of_a_repository(launcher: Launcher, tmp_path: Path) -> None:
    import subprocess

    repository = tmp_path / "code"
    repository.mkdir()
    (repository / "train.sh").write_text("#!/bin/sh\n")
    (repository / "train.sh").chmod(0o755)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    found = plan(launcher, "j", "-u", f"file://{repository}", "--", "./train.sh")
    assert found["commit"] == head and found["work_dir"].endswith("/j/ID/source")
    output = launcher("training", "run", "j", "--dry-run", "-u", f"file://{repository}", "--", "./other.sh", code=127)
    assert "other.sh: not found" in output


@pytest.mark.timeout(1500)  # The base image may have to be made.
def test_the_plan_of_a_container_is_what_the_engine_is_asked_for(
    launcher: Launcher, engine: str, tmp_path: Path
) -> None:
    launcher.env["DOCKER_HOST"] = engine
    launcher("checkpoint", "push", "base", "--file", small(tmp_path / "m"))
    found = plan(
        launcher, "j", "--runner", "docker", "--image", BASE, "-C", "base", "-E", "API_KEY=hidden-value-1", "--", "true"
    )
    mounts = {each["target"]: each for each in found["mounts"]}
    assert mounts["/input-checkpoint/base"]["read_only"] and not mounts["/output-checkpoint"]["read_only"]
    assert {"/output", "/workspace", "/run/launcher/logs"} <= mounts.keys()
    assert found["image"] == BASE and found["guard"] == "engine" and found["env"]["API_KEY"] == "***"
    assert found["env"]["FLEXAI_OUTPUT_DIR"] == "/output" and "PATH" not in found["env"]
    output = launcher(
        "training", "run", "j", "--dry-run", "--runner", "docker", "--image", "no/such", "--", "true", code=66
    )
    assert "has no image 'no/such'" in output


def wrong(launcher: Launcher, tmp_path: Path) -> list[tuple[tuple[str, ...], dict[str, str], int, str]]:
    """Flags, variables, exit code, text."""
    (tmp_path / "file").touch()
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    launcher.env["TAKEN"] = "kept open"
    wrong.taken = taken  # type: ignore[attr-defined]
    port = str(taken.getsockname()[1])
    return [
        (("-C", "nowhere", "--", "true"), {}, 66, "No checkpoint 'nowhere'"),
        (("-S", "A=nothing", "--", "true"), {}, 66, "No secret 'nothing'"),
        (("--", "no-such-program"), {}, 127, "not found"),
        (("--work-dir", str(tmp_path / "no"), "--", "true"), {}, 64, "there is no such folder"),
        (("--health-port", port, "--", "true"), {}, 73, f"--health-port {port} cannot be had"),
        (("--device", "cuda", "--accels", "4", "--", "train.py"), {}, 73, "4 accelerators asked for, 0 found"),
        (("--", "true"), {"LAUNCHER_DATA_DIR": str(tmp_path / "file/data")}, 73, "cannot be made"),
        (("--", "true"), {"LAUNCHER_CACHE_DIR": str(tmp_path / "file")}, 73, "is no folder"),
        (("--input-mode", "lazy", "--", "true"), {"LAUNCHER_INPUT_GUARD": "none"}, 73, "--input-mode lazy needs"),
        (
            ("-C", str(small(tmp_path / "m")), "--", "true"),
            {"LAUNCHER_INPUT_GUARD": NONE},
            73,
            f"no rung holds of {NONE}",
        ),
        (("--input-mode", "lazy", "--input-writable", "--", "true"), {}, 64, "exclude each other"),
    ]


def test_the_plan_raises_what_the_start_would(launcher: Launcher, tmp_path: Path) -> None:
    launcher.home.mkdir()
    before = everything(launcher.home)
    for flags, variables, code, text in wrong(launcher, tmp_path):
        kept, launcher.env = launcher.env, launcher.env | variables
        output = launcher("training", "run", "j", "--dry-run", *flags, code=code)
        launcher.env = kept
        assert text in output and "Traceback" not in output, output
    assert everything(launcher.home) == before


def test_a_plan_beside_a_running_job_of_that_name(launcher: Launcher, tmp_path: Path) -> None:
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    launcher("training", "run", "busy", "--detach", "--", "sh", "-c", wait)
    output = launcher("training", "run", "busy", "--dry-run", "--", "true", code=64)
    assert "is running already" in output
    (tmp_path / "go").touch()
    launcher("training", "wait", "busy")
    plan(launcher, "busy", "--", "true")


def test_inputs_that_could_never_fit_are_refused(tmp_path: Path) -> None:
    settings, _ = configuration.load({"data_dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}, {})
    with pytest.raises(NoSpace, match="No space for the inputs"):
        _disk(settings, NodeCache.open(settings), 1 << 60)
    assert not (tmp_path / "cache").exists()


def test_a_saved_job_file_makes_the_same_job(launcher: Launcher, tmp_path: Path) -> None:
    launcher("checkpoint", "push", "base", "--file", small(tmp_path / "m"))
    (tmp_path / "secret").write_text("a-very-secret-value")
    launcher("secret", "create", "hf", "--from-file", tmp_path / "secret")
    file = tmp_path / "job.yaml"
    script = 'test "$GREETING" = \'no: [way]\' && test -n "$HF" && test -d $LAUNCHER_INPUT_CHECKPOINT'
    words = (
        "-C",
        "base",
        "-E",
        "GREETING=no: [way]",
        "-S",
        "HF=hf",
        "--grace",
        "1m",
        "--settle",
        "0s",
        "--keep",
        "last=2",
    )
    launcher("training", "run", "first", *words, "--save-file", file, "--", "sh", "-c", script)
    content = yaml.safe_load(file.read_text())
    assert content["secret"] == {"HF": "hf"} and "a-very-secret-value" not in file.read_text()
    assert content["settle"] == 0 and "accels" not in content
    launcher("training", "run", "second", "--file", file)
    first, second = (launcher.json("training", "inspect", name)["spec"] for name in ("first", "second"))
    assert first | {"name": "second"} == second
    output = launcher(
        "training", "run", "j", "-E", "API_TOKEN=abcdef123", "--save-file", tmp_path / "x", "--", "true", code=64
    )
    assert "a job file holds no secret" in output and "--env API_TOKEN" in output
    output = launcher("training", "run", "j", "--save-file", tmp_path / "no/x.yaml", "--dry-run", "--", "true", code=64)
    assert "No such file or directory" in output and not (tmp_path / "x").exists()
