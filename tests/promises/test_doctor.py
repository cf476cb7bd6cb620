"""`launcher doctor` tries what a job will need, and names what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.cli import Launcher
from tests.support.s3_server import S3Server

CHECKS = {"data folder", "node cache", "store", "input", "accelerators", "torch", "engine", "programs", "secrets"}


def examined(launcher: Launcher, code: int = 0) -> dict[str, dict[str, Any]]:
    """The findings by check."""
    found = json.loads(launcher("doctor", "--json", code=code))
    return {each["check"]: each for each in found}


def test_a_machine_that_works_has_no_problem_and_nothing_is_left_behind(launcher: Launcher) -> None:
    found = examined(launcher)
    assert set(found) == CHECKS
    assert not [each for each in found.values() if each["state"] == "problem"]
    assert "creates exclusively" in found["store"]["found"] and found["torch"]["state"] == "ok"
    left = [path.name for path in launcher.home.rglob("*") if path.is_file() and "libraries" not in path.parts]
    assert left == ["store.json"], left


def test_a_real_s3_store_is_tried(launcher: Launcher, s3_server: S3Server) -> None:
    url = f"s3://{s3_server.new_bucket()}/team"
    launcher.env |= s3_server.env() | {"LAUNCHER_STORE": url}
    found = examined(launcher)["store"]
    assert found["state"] == "ok" and found["found"].startswith(url), found


def test_what_is_wrong_is_a_problem_with_its_remedy_and_the_other_checks_go_on(launcher: Launcher) -> None:
    store = launcher.home / "data" / "store"
    store.mkdir(parents=True)
    (store / "store.json").write_text('{"schema": 99, "writer": "7.0"}')
    launcher.env["VALUE"] = "hidden-value"
    secrets = launcher.home / "data" / "secrets"
    secrets.mkdir()
    Path(secrets, "token").write_text("hidden-value")
    Path(secrets, "token").chmod(0o644)
    found = examined(launcher, code=78)
    assert set(found) == CHECKS
    assert found["store"]["state"] == "problem" and "7.0" in found["store"]["todo"]
    assert found["secrets"]["state"] == "problem" and "chmod 600" in found["secrets"]["todo"]
    assert "hidden-value" not in json.dumps(found)


def test_people_get_lines_with_the_remedy_below(launcher: Launcher) -> None:
    launcher.env["DOCKER_HOST"] = "tcp://127.0.0.1:9"
    text = launcher("doctor")
    line = next(line for line in text.splitlines() if "engine" in line)
    assert line.startswith("warning") and "--runner docker" in text
