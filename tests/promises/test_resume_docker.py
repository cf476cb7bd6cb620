"""The same with containers of a real engine: a killed launcher's container is ended, and the next one goes on."""

from __future__ import annotations

import subprocess

import pytest

from tests.campaigns import steady_writer
from tests.promises.test_resume import SEED, STEPS, journal, losses, names, record, unique, until
from tests.support.cli import Launcher

TRAIN = (
    "--runner", "docker", "--image", "launcher-test-base:latest", "--settle", "0.1s", "--launch", "exec",
    "--", "python3", "-m", "tests.campaigns.steady_writer", str(SEED), str(STEPS),
)  # fmt: skip


@pytest.mark.parametrize("target", ["launcher", "container"])
def test_a_container_goes_on(launcher: Launcher, engine: str, target: str) -> None:
    launcher.env |= {"DOCKER_HOST": engine, "LAUNCHER_JOB_ID": unique("docker")}
    process = launcher.start("training", "run", "life", *TRAIN)
    until(lambda: "whole 3" in journal(launcher), "step 3")
    name = f"launcher-{launcher.env['LAUNCHER_JOB_ID']}"
    if target == "launcher":
        process.kill()
    else:
        subprocess.run(["docker", "kill", name], env=launcher.env, check=True, capture_output=True)
    process.communicate(timeout=120)
    output = launcher("training", "run", "life", *TRAIN)
    assert "goes on from life/checkpoint-" in output
    assert record(launcher)["attempts"][-1]["resumed_step"] >= 3
    assert losses(launcher) == steady_writer.expected(SEED, STEPS)
    # What a container without its launcher rotates away, until the uploader or the next start ends it, nobody collects.
    assert len(names(launcher)) == len(set(names(launcher))) and f"checkpoint-{STEPS}" in names(launcher)
    assert target == "launcher" or len(names(launcher)) == STEPS
    left = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"name={name}"], env=launcher.env, capture_output=True
    )
    assert not left.stdout
