"""The same job in containers of a real engine: by the docker runner, and in an image with the launcher as ENTRYPOINT."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.promises import test_stopping as stopping
from tests.promises.test_main_job import fine_tune_and_continue
from tests.support.cli import ROOT, Launcher
from tests.support.images import BASE

# The first test waits for the base image, which takes minutes to make where it is not there yet.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture
def docker(launcher: Launcher, engine: str) -> Launcher:
    launcher.env["DOCKER_HOST"] = engine
    return launcher


def containers(launcher: Launcher) -> str:
    return run(launcher, "ps", "--all", "--quiet").stdout


def run(launcher: Launcher, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *map(str, words)], env=launcher.env, capture_output=True, text=True, **options)


def until(process: subprocess.Popen[str], text: str) -> str:
    """Reads the live output up to the line that holds `text`."""
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"the output ended without {text!r}")


def test_the_main_job_in_a_container(docker: Launcher, tiny_model: Path) -> None:
    fine_tune_and_continue(docker, tiny_model, "--runner", "docker", "--image", BASE)
    record = docker.json("training", "inspect", "ft_01")
    assert record["attempts"][0]["inputs"][0]["rung"] == "engine"
    output = docker.job("ft_01") / "output-checkpoint"
    assert {path.stat().st_uid for path in [output, *output.rglob("*")]} == {os.geteuid()}
    assert containers(docker) == ""


def test_the_container_is_hardened_and_its_input_read_only(docker: Launcher, tiny_model: Path) -> None:
    docker("checkpoint", "push", "base", "--file", tiny_model)
    words = ("training", "run", "h", "--runner", "docker", "--image", BASE, "-C", "base")
    output = docker(*words, "--", "sh", "-c", "cat /proc/self/status; cat /sys/fs/cgroup/pids/pids.max; id -u")
    status = dict(line.split(":\t") for line in output.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["CapEff"] == status["CapBnd"] == "0000000000000000"
    assert status["Uid"].split()[0] == ("65534" if os.geteuid() == 0 else str(os.geteuid()))
    assert "32768" in output.splitlines()
    writes = "cd /input-checkpoint/base; touch x || rm -f config.json || echo no > config.json"
    for user in ("", "root"):
        flags = ("--user", user) if user else ()
        output = docker(*words, *flags, "--", "sh", "-c", f"({writes}) 2>&1 && exit 9; exit 5", code=5)
        said = [line for line in output.splitlines() if not line.startswith("launcher:")]
        assert "\n".join(said).count("Read-only file system") == 3


def test_the_exit_code_is_the_jobs_and_the_container_is_gone(docker: Launcher) -> None:
    for code in (0, 1, 42, 70, 255):
        docker(
            "training", "run", "c", "--runner", "docker", "--image", BASE, "--", "sh", "-c", f"exit {code}", code=code
        )
    docker("training", "run", "c", "--runner", "docker", "--image", BASE, "--", "sh", "-c", "kill -9 $$", code=137)
    docker("training", "run", "c", "--runner", "docker", "--image", BASE, "--", "no-such-program", code=127)
    assert "no image" in docker(
        "training", "run", "c", "--runner", "docker", "--image", "no/such", "--", "true", code=66
    )
    assert containers(docker) == ""


JOB = (
    "trap 'mkdir $FLEXAI_OUTPUT_CHECKPOINT_DIR/x; echo saved; exit 3' TERM INT; echo ready; while :; do sleep 0.1; done"
)


@pytest.mark.parametrize("how", ["ctrl-c", "docker stop"])
def test_a_stop_is_clean_and_logs_are_live(docker: Launcher, how: str) -> None:
    process = docker.start("training", "run", "s", "--runner", "docker", "--image", BASE, "--", "sh", "-c", JOB)
    until(process, "ready")
    if how == "ctrl-c":
        process.send_signal(signal.SIGINT)
    else:
        assert run(docker, "stop", "--time", "10", containers(docker).strip()).returncode == 0
    until(process, "saved")
    assert process.wait(20) == 3
    assert containers(docker) == ""


def test_no_engine_is_said_before_anything_starts(launcher: Launcher) -> None:
    launcher.env["DOCKER_HOST"] = "unix:///no/such.sock"
    output = launcher("training", "run", "n", "--runner", "docker", "--image", "x", "--", "true", code=73)
    assert "does not answer" in output and "--runner process" in output


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A data folder that container and host share."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=False)


@pytest.mark.parametrize("user", ["0", "1000"])
def test_the_main_job_with_the_launcher_as_entrypoint(
    docker: Launcher, job_image: str, tiny_model: Path, home: Path, user: str
) -> None:
    docker.env |= {"LAUNCHER_STORE": str(home / "store")}
    docker("checkpoint", "push", "mistral_tiny_base", "--file", tiny_model)
    subprocess.run(["chmod", "-R", "a+rwX", home], check=True)
    done = run(
        docker, "run", "--rm", "--user", user, "-v", f"{home}:/shared", "-v", f"{ROOT}/examples:/examples:ro",
        "-e", "LAUNCHER_STORE=/shared/store", "-e", "LAUNCHER_NAME=ft_01", "-e", "LAUNCHER_CHECKPOINT=mistral_tiny_base",
        "-e", "LAUNCHER_ACCELS=2", "-e", "LAUNCHER_DEVICE=cpu", "-e", "HF_HUB_OFFLINE=1", "-e", "HOME=/tmp",
        "-e", "TORCHINDUCTOR_CACHE_DIR=/tmp/inductor", "-e", "USER=job",
        job_image, "/examples/fine_tune.py", "--steps", "4", "--save-steps", "2", "--save-total-limit", "1", timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "read-only by: landlock" in done.stderr  # what an ordinary container leaves
    assert "training /input-checkpoint/mistral_tiny_base from step 0" in done.stdout
    found = docker.json("training", "checkpoints", "ft_01")
    assert [each["metadata"]["name"] for each in found] == ["ft_01/checkpoint-2", "ft_01/checkpoint-4", "ft_01"]
    assert all(docker.json("checkpoint", "verify", each["metadata"]["id"])["whole"] for each in found)


def test_the_entrypoints_input_cannot_be_written_even_by_root(
    docker: Launcher, job_image: str, tiny_model: Path, home: Path
) -> None:
    docker.env |= {"LAUNCHER_STORE": str(home / "store")}
    docker("checkpoint", "push", "base", "--file", tiny_model)
    script = (
        "cd /input-checkpoint/base;"
        " (touch x || rm -f config.json || echo no > config.json || mv /input-checkpoint/base /tmp/) 2>&1"
        " && exit 9; test $(wc -c < config.json) -gt 100 && exit 5"
    )
    done = run(
        docker, "run", "--rm", "-v", f"{home}:/shared", "-e", "LAUNCHER_STORE=/shared/store", "-e", "LAUNCHER_CHECKPOINT=base",
        job_image, "sh", "-c", script, timeout=300,
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    assert done.stdout.count("Permission denied") == 4


def test_the_entrypoint_forwards_the_stop_and_reaps(docker: Launcher, job_image: str) -> None:
    # 50 orphans are left to PID 1; the job then counts zombies.
    orphans = (
        "for i in $(seq 50); do (sh -c 'sleep 0.2 &') & done; sleep 1.5; echo zombies=$(ps -e -o stat= | grep -c Z); "
    )
    process = subprocess.Popen(
        ["docker", "run", "--name", "reaper", job_image, "bash", "-c", orphans + JOB],
        env=docker.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert until(process, "zombies=0\n") == "zombies=0\n"
        until(process, "ready")
        started = time.monotonic()
        assert run(docker, "stop", "--time", "20", "reaper").returncode == 0
        assert time.monotonic() - started < 8
        assert process.wait(10) == 3
        state = json.loads(run(docker, "inspect", "reaper").stdout)[0]["State"]
        assert state["ExitCode"] == 3 and not state["OOMKilled"]
    finally:
        run(docker, "rm", "--force", "reaper")


def test_the_entrypoint_tells_of_the_kernels_kill_for_memory(docker: Launcher, job_image: str, tmp_path: Path) -> None:
    """A limit of the container: the launcher lives on in it and says what happened, also where Kubernetes looks."""
    from tests.promises.test_verdict import failing_script

    said = tmp_path / "termination-log"
    said.write_text("")
    said.chmod(0o666)
    failing_script(tmp_path)
    done = run(
        docker, "run", "--rm", "--memory", "600m", "--memory-swap", "600m", "-v", f"{tmp_path}:/job:ro", "-w", "/job",
        "-v", f"{said}:/dev/termination-log", "-e", "LAUNCHER_DEVICE=cpu", "-e", "LAUNCHER_ACCELS=2", "-e", "HOME=/tmp",
        "--user", "0", job_image, "fail.py", "memory", "1", timeout=240,
    )  # fmt: skip
    assert done.returncode == 137, done.stdout + done.stderr
    words = said.read_text().splitlines()
    assert words[0].startswith(
        "exit code 137 (job, oom, not retryable): The kernel killed the job for memory (1 process; the "
    )
    assert "limit of its cgroup is 600.0 MiB) (rank 1 first)." in words[0] and "LAUNCHER_JOB_ID=" in words[-1]


def test_a_stop_right_after_the_start_is_not_lost(docker: Launcher, job_image: str) -> None:
    """SIGTERM at 0 to 400 ms after the start: each container ends at once, none runs on until the kill."""
    for milliseconds in (0, 20, 50, 100, 200, 300, 400):
        name = f"early-{milliseconds}"
        assert run(docker, "run", "--detach", "--name", name, job_image, "sleep", "60").returncode == 0
        time.sleep(milliseconds / 1000)
        started = time.monotonic()
        run(docker, "stop", "--time", "20", name)
        seconds = time.monotonic() - started
        state = json.loads(run(docker, "inspect", name).stdout)[0]["State"]
        run(docker, "rm", "--force", name)
        assert seconds < 10 and state["ExitCode"] in (75, 143), (milliseconds, seconds, state)


def test_a_stop_reaches_every_rank_in_a_container(docker: Launcher, tmp_path: Path) -> None:
    """Docker runner: the agent in the container tells them, and the stop file is there."""
    script = stopping.ranks(tmp_path, wait=(2, 0))
    tmp_path.chmod(0o755)  # The engine binds it; the container's user reads it.
    words = ("training", "run", "s", "--runner", "docker", "--image", BASE, "--accels", "2", "--grace", "2m")
    process = docker.start(*words, "--work-dir", tmp_path, "--", script.name)
    seen = stopping.until(process, "rank 0 is ready", "rank 1 is ready")
    docker("training", "stop", "s", "--wait", "2m")
    output = seen + stopping.finish(process)
    assert process.returncode == 143, output
    assert output.count("saves: signals ['SIGTERM'], SIGTERM") == 2, output
    assert [each["metadata"]["name"] for each in docker.json("training", "checkpoints", "s")] == ["s/step-7"]
    assert containers(docker) == ""


def test_docker_stop_leaves_the_entrypoint_time_to_save_and_to_store(
    docker: Launcher, job_image: str, tmp_path: Path, home: Path
) -> None:
    """`docker stop -t 60` of two ranks, whose save begins 5 s after the signal."""
    docker.env |= {"LAUNCHER_STORE": str(home / "store")}
    script = stopping.ranks(tmp_path, wait=(5, 0))
    script.chmod(0o644)
    tmp_path.chmod(0o755)
    words = ["--name", "stopped-entrypoint", "-v", f"{home}:/shared", "-v", f"{script}:/job/ranks.py:ro"]
    for variable in ("STORE=/shared/store", "NAME=s", "ACCELS=2", "DEVICE=cpu", "GRACE=60s"):
        words += ["-e", f"LAUNCHER_{variable}"]
    process = subprocess.Popen(
        ["docker", "run", *words, job_image, "/job/ranks.py"],
        env=docker.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        seen = stopping.until(process, "rank 0 is ready", "rank 1 is ready")
        assert run(docker, "stop", "--time", "60", "stopped-entrypoint").returncode == 0
        output = seen + stopping.finish(process)
        state = json.loads(run(docker, "inspect", "stopped-entrypoint").stdout)[0]["State"]
        assert state["ExitCode"] == 143 and not state["OOMKilled"], output
        assert [each["metadata"]["name"] for each in docker.json("training", "checkpoints", "s")] == ["s/step-7"]
    finally:
        run(docker, "rm", "--force", "stopped-entrypoint")
