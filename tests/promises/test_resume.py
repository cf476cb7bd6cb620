"""A job that is interrupted goes on from its newest whole checkpoint, wherever it is started again, and ends as if nothing had
happened."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import steady_writer
from tests.campaigns.kills import lives, tree
from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.s3_server import S3Server

STEPS = 8
SEED = 5
TRAIN = ("--settle", "0.1s", "--launch", "exec", "--", "python", "-m", "tests.campaigns.steady_writer", str(SEED))
PATIENCE = 120.0


@pytest.fixture
def job(launcher: Launcher) -> Launcher:
    """A launcher whose job has an id of its own, on this machine too: what a killed launcher left is found by it."""
    launcher.env["LAUNCHER_JOB_ID"] = unique("cluster")
    return launcher


def unique(prefix: str) -> str:
    """A job id that no other test on this machine has."""
    return f"{prefix}-{secrets.token_hex(6)}"


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE:.0f} s: {what}")


def journal(launcher: Launcher, name: str = "life") -> list[str]:
    """What the training wrote down."""
    found = list((launcher.home / "data/jobs" / name).glob(f"*/output-checkpoint/{steady_writer.JOURNAL}"))
    return found[0].read_text().splitlines() if found else []


def start(launcher: Launcher, *words: str, steps: int = STEPS) -> subprocess.Popen[str]:
    return launcher.start("training", "run", "life", *words, *TRAIN, str(steps))


def finish(launcher: Launcher, *words: str, steps: int = STEPS, code: int = 0) -> str:
    return launcher("training", "run", "life", *words, *TRAIN, str(steps), code=code)


def interrupt(launcher: Launcher, after: int, *words: str) -> None:
    """Starts the job, and kills its launcher once a step's checkpoint is whole."""
    process = start(launcher, *words)
    until(lambda: f"whole {after}" in journal(launcher), f"step {after}")
    below = tree(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not any(map(lives, below)), "the end of the job's processes")


def record(launcher: Launcher, name: str = "life") -> Any:
    return launcher.json("training", "inspect", name)


def events(launcher: Launcher, kind: str, name: str = "life") -> list[dict[str, Any]]:
    lines = (launcher.job_folder(name) / "events.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["kind"] == kind]


def losses(launcher: Launcher, name: str = "life", steps: int = STEPS) -> list[float]:
    """The losses in the stored checkpoint of the last step."""
    found = launcher.json("checkpoint", "inspect", f"{name}/checkpoint-{steps}")["metadata"]["id"]
    state = launcher.home / "data/store/checkpoints" / found / "trainer_state.json"
    return [each["loss"] for each in json.loads(state.read_text())["log_history"]]


def told(launcher: Launcher, name: str = "life") -> str:
    """What is stored, in words, for the message of a failure."""
    found = launcher.json("training", "checkpoints", name)
    lines = [
        f"{each['metadata']['name']} {each['status']['format']} of attempt {each['spec']['origin'].get('attempt', 1)}"
        for each in found
    ]
    return "lost or doubled: " + ", ".join(lines)


def names(launcher: Launcher, name: str = "life") -> list[str]:
    return [each["metadata"]["name"].rpartition("/")[2] for each in launcher.json("training", "checkpoints", name)]


def test_a_job_started_again_under_its_id_goes_on_from_what_lies_there(job: Launcher) -> None:
    interrupt(job, 3)
    output = finish(job)
    assert "goes on from life/checkpoint-" in output and "as it lies there" in output
    first, second = record(job)["attempts"]
    assert (first["number"], second["number"]) == (1, 2)
    assert first["outcome"]["kind"] == "lost" and second["resumed_step"] >= 3
    assert f"from {second['resumed_step']}" in journal(job)
    assert losses(job) == steady_writer.expected(SEED, STEPS)
    assert sorted(names(job)) == sorted(f"checkpoint-{step}" for step in range(1, STEPS + 1)), told(job)
    assert [each["facts"]["attempt"] for each in events(job, "resumed")] == [2]
    assert (job.job_folder("life") / "logs/attempt-2").is_dir()
    print(f"went on from step {second['resumed_step']} of {STEPS}; {len(names(job))} checkpoints, each once")


def test_on_another_machine_the_store_alone_knows_the_job(job: Launcher) -> None:
    interrupt(job, 4)
    job("recover", "life")
    shutil.rmtree(job.home / "data/jobs")
    output = finish(job)
    assert "from the store on this machine" in output
    attempts = record(job)["attempts"]
    assert attempts[-1]["number"] == 2 and attempts[-1]["resumed_step"] >= 4
    assert losses(job) == steady_writer.expected(SEED, STEPS)
    assert sorted(names(job)) == sorted(f"checkpoint-{step}" for step in range(1, STEPS + 1)), told(job)


def test_from_a_remote_store_it_is_downloaded_once_and_then_taken_from_the_cache(
    job: Launcher, s3_server: S3Server
) -> None:
    job.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/store"}
    interrupt(job, 3)
    job("recover", "life")
    for _ in range(2):
        shutil.rmtree(job.home / "data/jobs")
        process = start(job)
        until(lambda: any(line.startswith("from") for line in journal(job)), "the start")
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        assert "from the node cache" in output
        assert int(journal(job)[0].split()[1]) >= 3
        until(lambda: "cannot" not in job("recover", "life"), "recovery")
    entries = job.json("cache", "list")
    print(f"{len(entries)} entries in the cache after two starts on empty machines")
    assert len({each["id"] for each in entries}) == len(entries) >= 1


def test_torn_and_misleading_folders_are_moved_aside_and_never_deleted(job: Launcher) -> None:
    interrupt(job, 3)
    output = job.job_folder("life") / "output-checkpoint"
    torn = output / "checkpoint-90"
    torn.mkdir()
    (torn / "config.json").write_text("{}")
    (torn / "model.safetensors").write_bytes(b"half")
    (output / "checkpoint-91").mkdir()
    (output / "runs").mkdir()
    (output / "runs/events.txt").write_text("tensorboard")
    text = finish(job)
    assert "Moved aside: checkpoint-90" in text and "Moved aside: checkpoint-91" in text
    aside = job.job_folder("life") / "salvage/attempt-2"
    assert {"checkpoint-90", "checkpoint-91"} <= {each.name for each in aside.iterdir()}
    assert (aside / "checkpoint-90/model.safetensors").read_bytes() == b"half"
    assert (output / "runs/events.txt").exists()
    assert losses(job) == steady_writer.expected(SEED, STEPS)


def test_a_changed_copy_on_disk_is_not_gone_on_from(job: Launcher) -> None:
    """The file of the newest checkpoint was written again after it had been stored: what was stored is restored."""
    finish(job, steps=3)
    newest = job.job_folder("life") / "output-checkpoint/checkpoint-3"
    before = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(bytes(len(before)))
    text = finish(job)
    assert "from the store on this machine" in text
    assert losses(job) == steady_writer.expected(SEED, STEPS)
    assert (job.job_folder("life") / "salvage/attempt-2/checkpoint-3/optimizer.pt").read_bytes() == bytes(len(before))


FAILING = """
import os, sys
sys.argv[0] = "steady_writer"
from tests.campaigns import steady_writer as writer
last = writer.last_checkpoint(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
step = int(last.rpartition("-")[2]) if last else 0
if str(step) in os.environ["FAIL_FROM"].split(","):
    print("fails from", step, flush=True)
    sys.exit(3)
writer.main()
"""


def failing(job: Launcher, steps: str, *words: str, code: int = 0) -> str:
    job.env["FAIL_FROM"] = steps
    return job(
        "training", "run", "life", "--settle", "0.1s", "--retry-on", "3", *words, "--launch", "exec",
        "--", "python", "-c", FAILING, str(SEED), str(STEPS), code=code,
    )  # fmt: skip


def resumed_steps(job: Launcher) -> list[int | None]:
    return [each.get("resumed_step") for each in record(job)["attempts"]]


def test_two_failures_from_one_checkpoint_and_the_one_before_it_is_taken(job: Launcher) -> None:
    finish(job, steps=4)
    failing(job, "4", "--max-restarts", "1", code=3)
    text = failing(job, "4")
    print("went on from", resumed_steps(job))
    assert resumed_steps(job) == [None, 4, 4, 3]
    assert "Moved aside: checkpoint-4" in text, "the library would have taken it"
    assert "passed over" in text
    assert losses(job) == steady_writer.expected(SEED, STEPS)
    assert events(job, "attempt-ended")[0]["facts"]["code"] == 3


def test_it_never_goes_back_for_ever(job: Launcher) -> None:
    finish(job, steps=4)
    for _ in range(8):
        failing(job, "1,2,3,4", code=3)
    print("went on from", resumed_steps(job))
    assert resumed_steps(job) == [None, 4, 4, 3, 3, 2, 2, 4, 4]


def test_from_its_only_checkpoint_it_fails_twice_and_begins_anew(job: Launcher) -> None:
    finish(job, steps=1)
    for _ in range(2):
        failing(job, "1", code=3)
    text = failing(job, "1")
    assert resumed_steps(job) == [None, 1, 1, None]
    assert "begins at the beginning" in text
    assert losses(job) == steady_writer.expected(SEED, STEPS)


def test_a_killed_rank_is_a_new_attempt_of_the_same_launcher(launcher: Launcher) -> None:
    process = start(launcher, "--max-restarts", "2")
    until(lambda: "whole 3" in journal(launcher), "step 3")
    victim = next(pid for pid in tree(process.pid) if b"steady_writer" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(victim, signal.SIGKILL)
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output
    attempts = record(launcher)["attempts"]
    assert len(attempts) == 2 and attempts[0]["outcome"]["signal"] == "SIGKILL" and attempts[1]["resumed_step"] >= 3
    assert len({each["pid"] for each in attempts}) == 1, "one launcher"
    assert losses(launcher) == steady_writer.expected(SEED, STEPS)
    assert "launcher: attempt 2" in launcher("training", "logs", "life")


def test_a_stop_between_two_attempts_ends_the_job_at_once(launcher: Launcher) -> None:
    words = ("--max-restarts", "5", "--retry-on", "7", "--launch", "exec", "--", "sh", "-c", "exit 7")
    process = launcher.start("training", "run", "life", *words)
    lines = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        if "attempt 4" in line:  # The pauses are long enough now.
            break
    while "Trying again" not in lines[-1]:
        lines.append(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    lines.append(process.communicate(timeout=PATIENCE)[0])
    result = launcher.result("life")
    assert process.returncode == 7 and result["stopped"] and result["code"] == 7, "".join(lines)
    assert len(record(launcher)["attempts"]) == 4
    assert "before attempt 5" in result["cause"]


def test_never_and_a_reference_and_the_same_name(launcher: Launcher) -> None:
    finish(launcher, steps=3)
    finish(launcher, "--resume", "same-job", steps=5)
    assert launcher.json("training", "inspect", "life")["attempts"][0]["resumed_step"] == 3
    found = launcher.json("checkpoint", "inspect", "life/checkpoint-5")
    origin = launcher.json("checkpoint", "inspect", "life/checkpoint-3@v1")["metadata"]["id"]
    assert origin in found["spec"]["lineage"]["parents"], "it was made from another job's"
    words = ("training", "run", "other", "--resume", "life/checkpoint-3@v1", *TRAIN, "4")
    assert "goes on from life/checkpoint-3" in launcher(*words)
    assert losses(launcher, "other", 4) == steady_writer.expected(SEED, 4)
    assert names(launcher, "other") == ["checkpoint-4"], "what was restored is not collected again"
    launcher("training", "run", "other", "--resume", "nothing", *TRAIN, "4", code=66)
    launcher.env["LAUNCHER_JOB_ID"] = unique("alone")
    finish(launcher, steps=2)
    finish(launcher, "--resume", "never", steps=2)
    assert "resumed" not in json.dumps([each.get("resumed") for each in record(launcher)["attempts"]]).replace('""', "")


def test_only_one_launcher_has_a_job(job: Launcher) -> None:
    process = start(job, steps=100_000)
    until(lambda: journal(job), "the start")
    output = finish(job, code=64)
    assert "running already" in output and f"process {process.pid} on {os.uname().nodename}" in output
    process.kill()
    process.communicate()


def test_retry_by_hand_asks_for_what_was_not_recorded(launcher: Launcher) -> None:
    launcher.env["API_TOKEN"] = "canary-0123456789"
    launcher.env["FAIL_FROM"] = "0"
    launcher(
        "training", "run", "life", "-E", "API_TOKEN", "-E", "FAIL_FROM", "--settle", "0.1s", "--launch", "exec",
        "--", "python", "-c", FAILING, str(SEED), str(STEPS), code=3,
    )  # fmt: skip
    text = launcher("training", "retry", "life", cwd=launcher.home, code=64)
    assert "the variable API_TOKEN" in text and "canary" not in text
    launcher("training", "retry", "life", "-E", "API_TOKEN", "-E", "FAIL_FROM=", cwd=launcher.home)
    assert [each["number"] for each in record(launcher)["attempts"]] == [1, 2]
    assert losses(launcher) == steady_writer.expected(SEED, STEPS)
    assert not [
        path for path in (launcher.home / "data").rglob("*") if path.is_file() and b"canary-01" in path.read_bytes()
    ]


def test_recover_all_with_events_also_where_the_job_folders_were_moved(launcher: Launcher) -> None:
    """Two jobs cut off, their folders brought to another place as to another machine: everything whole is stored, once."""
    identifiers = {each: unique(each) for each in ("one", "two")}
    for identifier in identifiers:
        launcher.env["LAUNCHER_JOB_ID"] = identifiers[identifier]
        process = launcher.start("training", "run", f"life-{identifier}", "--bandwidth", "40KB/s", *TRAIN, str(STEPS))
        until(lambda: "whole 4" in journal(launcher, f"life-{identifier}"), "step 4")  # noqa: B023
        process.kill()
        process.communicate()
    data = launcher.home / "data"
    until(lambda: not any(_held(each) for each in data.glob("jobs/*/*/lock")), "the end of both uploaders")
    (launcher.home / "elsewhere").mkdir()
    (data / "jobs").rename(launcher.home / "elsewhere/jobs")
    launcher.env |= {"LAUNCHER_DATA_DIR": str(launcher.home / "elsewhere"), "LAUNCHER_STORE": str(data / "store")}
    found = {each["job"]: each for each in launcher.json("recover", "--all")}
    stored = {job: sorted(each["name"] for each in found[job]["stored"]) for job in found}
    print("stored by recover --all:", {job: len(each) for job, each in stored.items()})
    for identifier in ("one", "two"):
        name = f"life-{identifier}"
        assert len(names(launcher, name)) == len(set(names(launcher, name))) and "checkpoint-4" in names(launcher, name)
        lines = (launcher.home / f"elsewhere/jobs/{name}/{identifiers[identifier]}/events.jsonl").read_text()
        assert lines.count('"checkpoint-committed"') >= len(stored[name])
    assert launcher.json("recover", "--all") == []
    assert "everything whole is stored" in launcher("recover", "life-one")


def _held(lock: Path) -> bool:
    return subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode != 0


def test_a_container_started_again_with_its_job_folder_goes_on(launcher: Launcher) -> None:
    """Nobody gave an id: the same command in the same job folder, which had not come to its end."""
    launcher.env |= {
        "LAUNCHER_DEVICE": "cpu",
        "LAUNCHER_NAME": "life",
        "LAUNCHER_OUTPUT_DIR": str(launcher.home / "output"),
    }
    launcher.env["LAUNCHER_INPUT_DIR"] = str(launcher.home / "input")
    words = ("entrypoint", *TRAIN, str(STEPS))
    process = launcher.start(*words)
    path = launcher.home / "output" / steady_writer.JOURNAL
    until(lambda: path.exists() and "whole 3" in path.read_text().splitlines(), "step 3")
    process.kill()
    process.communicate()
    assert "goes on from" in launcher(*words)
    assert [each["number"] for each in record(launcher)["attempts"]] == [1, 2]
    assert losses(launcher) == steady_writer.expected(SEED, STEPS)
    launcher(*words)
    assert [each["number"] for each in record(launcher)["attempts"]] == [1], "it had come to its end: a new job"


def test_two_starts_under_one_id_at_the_same_time_are_one(job: Launcher) -> None:
    results: list[int] = []

    def run() -> None:
        words = [PROGRAM, "training", "run", "life", *TRAIN, str(STEPS)]
        results.append(subprocess.run(words, env=job.env, cwd=ROOT, capture_output=True, timeout=PATIENCE).returncode)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("exit codes", sorted(results))
    assert 0 in results and set(results) <= {0, 64}
    assert losses(job) == steady_writer.expected(SEED, STEPS)
