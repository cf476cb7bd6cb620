"""A job from its start to its deletion: without a terminal, its states, waiting for it, its end, what it wrote, and the list."""

from __future__ import annotations

import json
import os
import pty
import signal
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import jobs as many
from launcher.job.states import ENDED
from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.entrypoint import until
from tests.support.fault_proxy import FaultProxy
from tests.support.images import BASE
from tests.support.s3_server import S3Server

_STEP = "$FLEXAI_OUTPUT_CHECKPOINT_DIR/step-1"
SAVE = f"mkdir -p {_STEP}; printf '\\2\\0\\0\\0\\0\\0\\0\\0{{}}' > {_STEP}/model.safetensors"


def state(launcher: Launcher, name: str) -> str:
    return str(launcher.json("training", "inspect", name)["state"])


def states(launcher: Launcher, name: str) -> list[str]:
    changes = launcher.json("training", "inspect", name)["states"]
    times = [each["time"] for each in changes]
    assert times == sorted(times) and all(each["reason"] for each in changes)
    return [each["state"] for each in changes]


def test_a_detached_job_outlives_its_terminal(launcher: Launcher, tmp_path: Path) -> None:
    """The terminal is one of its own, whose session is hung up by the kernel once the launcher has returned."""
    go, script = tmp_path / "go", f'echo begun; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo "done"; exit 7'
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        shell = f"{PROGRAM} training run far --detach -- sh -c '{script}'; echo returned $?; cat"
        os.execve("/bin/sh", ["sh", "-c", shell], launcher.env)
    seen = b""
    while b"returned 0" not in seen:
        seen += os.read(terminal, 4096)
    text = seen.decode()
    assert "goes on without this terminal" in text and "launcher training logs far -f" in text
    record = launcher.json("training", "inspect", "far")
    assert record["state"] == "in progress"
    process = record["attempts"][0]["pid"]
    assert os.getsid(process) == process != os.getsid(pid)
    os.close(terminal)  # SIGHUP to the shell and all of its session.
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    go.touch()
    assert "failed, exit code 7" in launcher("training", "wait", "far", "--timeout", "60s", code=7)
    assert launcher("training", "logs", "far") == "begun\ndone\n"
    own = (launcher.job("far") / "logs" / "launcher.log").read_text()
    assert "Exit code 7." in own and "begun" not in own


def test_what_keeps_a_detached_job_from_starting_is_said_before_it_returns(launcher: Launcher, tmp_path: Path) -> None:
    output = launcher("training", "run", "gone", "--detach", "-C", "nowhere", "--", "sh", code=66)
    assert "No checkpoint 'nowhere'" in output and "without this terminal" not in output
    # Not by the checks, but when it is already prepared: something lies where its input goes.
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("x")
    (tmp_path / "in" / "m").mkdir(parents=True)
    (tmp_path / "in" / "m" / "other").touch()
    launcher.env["LAUNCHER_INPUT_DIR"] = str(tmp_path / "in")
    output = launcher("training", "run", "full", "--detach", "-C", tmp_path / "m", "--", "sh", code=73)
    assert "is not empty" in output
    assert states(launcher, "full") == ["pending", "scheduling", "building", "rejected"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_before_a_detached_job_is_up_ctrl_c_ends_it_and_a_closed_terminal_does_not(
    launcher: Launcher, s3_server: S3Server, tmp_path: Path, number: signal.Signals
) -> None:
    proxy = FaultProxy(s3_server.endpoint)
    try:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "data.bin").write_bytes(os.urandom(1 << 20))
        launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p"}
        launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
        launcher.env |= {"AWS_ENDPOINT_URL": proxy.endpoint}
        proxy.script("GET", r"data\.bin", "stall@50%:600")
        process = launcher.start("training", "run", "j", "--detach", "-C", "base", "--", "true")
        proxy.rules[0].wait(1, deadline=60)
        assert state(launcher, "j") == "building"
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        if number == signal.SIGHUP:
            assert process.returncode == -number and state(launcher, "j") == "building"
            launcher("training", "stop", "j")
        else:
            assert process.returncode == 75 and "Stopped by SIGINT before the job started" in output
        assert state(launcher, "j") == "stopped"
    finally:
        proxy.stop()


def test_every_change_of_state_has_its_time_and_reason(launcher: Launcher, tmp_path: Path) -> None:
    script = f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; exit 1; }}"
    launcher("training", "run", "twice", "--max-restarts", "1", "--retry-on", "1", "--", "sh", "-c", script)
    one = ["scheduling", "building", "in progress", "in progress"]
    assert states(launcher, "twice") == [
        "pending",
        *one,
        "enqueued",
        "scheduling",
        "in progress",
        "in progress",
        "succeeded",
    ]
    record = launcher.json("training", "inspect", "twice")
    reasons = {each["state"]: each["reason"] for each in record["states"]}
    assert "Trying again" in reasons["enqueued"] and os.uname().nodename in reasons["scheduling"]
    assert (record["state"], record["reason"]) == ("succeeded", "The job ended well.")


def test_stop_gives_the_grace_and_stop_now_does_not(launcher: Launcher) -> None:
    """Both jobs are deaf to SIGTERM and have ten minutes of grace; what was saved is stored."""
    script = f"trap '' TERM; {SAVE}; echo saved; while :; do sleep 0.1; done"
    launcher("training", "run", "deaf", "--detach", "--grace", "600s", "--", "sh", "-c", script)
    until(lambda: "saved" in launcher("training", "logs", "deaf"))
    output = launcher("training", "stop", "deaf", "--wait", "0.5s", code=75)
    assert "has not ended within 0.5 s: it is stop in progress" in output
    assert state(launcher, "deaf") == "stop in progress"
    began = time.monotonic()
    launcher("training", "stop", "deaf", "--now")
    assert time.monotonic() - began < 30
    assert states(launcher, "deaf")[-4:] == ["stop in progress"] * 3 + ["stopped"]
    assert launcher.result("deaf")["code"] == 137
    assert [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", "deaf")] == ["deaf/step-1"]
    launcher("training", "run", "at-once", "--detach", "--grace", "600s", "--", "sh", "-c", script)
    until(lambda: "saved" in launcher("training", "logs", "at-once"))
    began = time.monotonic()
    launcher("training", "stop", "at-once", "--now")
    assert time.monotonic() - began < 30
    assert [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", "at-once")] == [
        "at-once/step-1"
    ]
    assert "is not running" in launcher("training", "stop", "at-once", "--now")


def test_a_job_whose_launcher_was_killed_is_lost_until_somebody_goes_on(launcher: Launcher, tmp_path: Path) -> None:
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    launcher("training", "run", "cut", "--detach", "--", "sh", "-c", wait)
    os.kill(launcher.json("training", "inspect", "cut")["attempts"][0]["pid"], signal.SIGKILL)
    until(lambda: state(launcher, "cut") == "lost")
    shown = launcher.json("training", "inspect", "cut")
    assert "launcher recover cut" in shown["reason"] and "training retry cut" in shown["reason"]
    assert launcher.json("training", "list")[0]["state"] == "lost"
    assert "Job cut: lost" in launcher("training", "wait", "cut", code=137)
    (tmp_path / "go").touch()
    assert "goes on without this terminal" in launcher("training", "retry", "cut", "--detach")
    launcher("training", "wait", "cut")
    found = states(launcher, "cut")
    assert found[-7:] == ["pending", "failed", "scheduling", "building", "in progress", "in progress", "succeeded"]


def test_wait_has_the_jobs_own_code_or_says_that_it_still_runs(launcher: Launcher, tmp_path: Path) -> None:
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit $0"
    for name, code in (("first", "0"), ("second", "9")):
        launcher("training", "run", name, "--detach", "--", "sh", "-c", wait, code)
    output = launcher("fine-tuning", "wait", "first", "second", "--timeout", "0.2s", code=75)
    assert "Job first has not ended within 0.2 s: it is in progress" in output
    waiting = launcher.start("training", "wait", "first", "second")
    interrupted = launcher.start("training", "wait", "first")
    until(lambda: interrupted.poll() is None and "wait" in Path(f"/proc/{interrupted.pid}/cmdline").read_text())
    (tmp_path / "go").touch()
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 9 and "first: succeeded" in output and "second: failed, exit code 9" in output
    interrupted.communicate(timeout=60)
    assert "'soon' is no duration" in launcher("training", "wait", "first", "--timeout", "soon", code=64)
    assert "Nearest names: first" in launcher("training", "wait", "frist", code=66)


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_other_outputs_are_fetched_as_one_archive(
    launcher: Launcher, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    if place == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        launcher.env |= server.env() | {"LAUNCHER_STORE": f"s3://{server.new_bucket()}/p"}
    script = (
        f"{SAVE}; cd $FLEXAI_OUTPUT_DIR; mkdir -p runs/a; echo plot > runs/a/plot.txt; echo mine > eval.json; "
        "cd $FLEXAI_OUTPUT_CHECKPOINT_DIR; echo theirs > eval.json; echo '{}' > scores.json"
    )
    launcher("training", "run", "wrote", "--", "sh", "-c", script)
    output = launcher("training", "fetch", "wrote", "--destination", tmp_path / "new/results")
    assert "Fetched 4 file(s)" in output
    with zipfile.ZipFile(tmp_path / "new/results/output_0.zip") as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name).decode().strip() for name in archive.namelist()}
    assert found == {
        "output/eval.json": "mine", "output/output-checkpoint/eval.json": "theirs", "output/scores.json": "{}",
        "output/runs/a/plot.txt": "plot",
    }  # fmt: skip
    assert os.listdir(tmp_path / "new/results") == ["output_0.zip"]
    assert launcher.json("training", "fetch", "wrote", "--destination", str(tmp_path))["files"] == 4


def test_the_other_outputs_of_a_running_job_and_of_one_that_has_none(launcher: Launcher, tmp_path: Path) -> None:
    wait = f"echo 1 > $FLEXAI_OUTPUT_DIR/now.txt; echo there; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    launcher("training", "run", "runs", "--detach", "--", "sh", "-c", wait)
    until(lambda: "there" in launcher("training", "logs", "runs"))
    launcher("training", "fetch", "runs", "--destination", tmp_path)
    assert zipfile.ZipFile(tmp_path / "output_0.zip").namelist() == ["output/now.txt"]
    (tmp_path / "go").touch()
    launcher("training", "wait", "runs")
    launcher("training", "run", "none", "--", "true")
    assert "has written nothing but checkpoints" in launcher("training", "fetch", "none", code=66)
    (tmp_path / "file").touch()
    output = launcher("training", "fetch", "runs", "--destination", tmp_path / "file", code=73)
    assert "cannot be written" in output and "--destination" in output


def test_an_entrypoints_other_outputs_are_those_of_its_own_variable(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env |= {
        "LAUNCHER_STORE": str(tmp_path / "store"), "LAUNCHER_DEVICE": "cpu", "FLEXAI_OUTPUT_DIR": str(tmp_path / "out"),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": str(tmp_path / "saved"), "FLEXAI_INPUT_CHECKPOINT_DIR": str(tmp_path / "in"),
    }  # fmt: skip
    launcher("entrypoint", "--name", "inside", "--", "sh", "-c", "echo 1 > $FLEXAI_OUTPUT_DIR/one.txt")
    assert (tmp_path / "out" / "one.txt").exists()
    launcher("training", "fetch", "inside", "--destination", tmp_path)
    assert zipfile.ZipFile(tmp_path / "output_0.zip").namelist() == ["output/one.txt"]
    launcher.env["FLEXAI_OUTPUT_DIR"] = str(tmp_path / "store/store.json")
    output = launcher("entrypoint", "--name", "inside", "--", "true", code=77)
    assert "the folder cannot be made or written" in output


def test_a_detached_container_is_waited_for_stopped_and_fetched_from(
    launcher: Launcher, engine: str, tmp_path: Path
) -> None:
    launcher.env["DOCKER_HOST"] = engine
    words = ("training", "run", "far", "--detach", "--runner", "docker", "--image", BASE, "--work-dir", tmp_path)
    script = "trap '' TERM; echo 1 > /output/one.txt; echo there; while :; do sleep 0.1; done"
    launcher(*words, "--grace", "600s", "--", "sh", "-c", script)
    until(lambda: "there" in launcher("training", "logs", "far"))
    assert "docker exec -it" in launcher("training", "debug-ssh", "far", code=64)
    launcher("training", "stop", "far", "--now")
    assert "far: stopped, exit code 137" in launcher("training", "wait", "far", code=137)
    launcher("training", "fetch", "far", "--destination", tmp_path)
    assert zipfile.ZipFile(tmp_path / "output_0.zip").namelist() == ["output/one.txt"]
    assert {path.stat().st_uid for path in (launcher.job("far") / "output").rglob("*")} == {os.geteuid()}


def test_the_list_by_state_name_and_number(launcher: Launcher) -> None:
    for name, code in (("ft_01", 0), ("ft_02", 3), ("other", 0)):
        launcher("training", "run", name, "--", "sh", "-c", f"exit {code}", code=code)

    def names(*words: str) -> list[str]:
        return [each["name"] for each in launcher.json("training", "list", *words)]

    assert names() == ["ft_01", "ft_02", "other"]
    assert names("--state", "failed") == ["ft_02"]
    assert names("--name", "ft_*", "--limit", "1") == ["ft_02"]
    assert names("--name", "nothing") == []
    row = launcher.json("training", "list", "--state", "failed")[0]
    assert (row["exit_code"], row["attempts"], row["checkpoints"], row["kind"]) == (3, 1, 0, "training")
    assert "Nearest names: ft_02, ft_01" in launcher("training", "inspect", "ft_20", code=66)
    launcher("training", "delete", "ft_02")
    assert names() == ["ft_01", "other"]
    assert "rejected" in launcher("training", "list", "--state", "dead", code=64)


def test_ten_thousand_jobs_are_listed_quickly(tmp_path: Path) -> None:
    """The bar is 0.5 s on a quiet machine (benchmarks/RESULTS.md); here with whatever else runs."""
    many.make(tmp_path, 10_000)
    until(lambda: time.time() - os.stat(tmp_path / "jobs").st_mtime > 2.1)
    cold, _ = many.seconds(tmp_path)
    found = [many.seconds(tmp_path) for _ in range(3)]
    quickest = min(each for each, _ in found)
    print(f"cold {cold:.2f} s, then {quickest:.2f} s")
    assert found[0][1].count("\n") == 10_001 and quickest < 3
    assert json.loads(many.seconds(tmp_path, "--json", "--state", "failed")[1])[999]["state"] in ENDED


FOREIGN: list[tuple[list[str], int, str]] = [
    (["-s", "my-source"], 64, "no sources are registered here"),
    (["-r", "main"], 64, "--repository-revision without --repository-url"),
    (["-r", "main", "-b", "dev"], 64, "differ"),
    (
        ["--runtime", "nvidia-25.06"],
        0,
        "warning: --runtime nvidia-25.06: the job runs in this machine's own environment",
    ),
    (["--runtime", "a", "--image", "b"], 64, "differ"),
    (["--affinity", "cluster=x"], 0, "warning: --affinity cluster=x: there is this machine alone"),
    (["--affinity", "cluster"], 64, "write K=V"),
    (["--detach", "--dry-run"], 64, "exclude each other"),
    (["--json"], 64, "--json is for --dry-run"),
]


@pytest.mark.parametrize(
    ("flags", "code", "text"), FOREIGN, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_flag_that_means_something_else_here_is_never_ignored_silently(
    launcher: Launcher, flags: list[str], code: int, text: str
) -> None:
    assert text in launcher("training", "run", "j", *flags, "--", "true", code=code)


def test_debug_ssh_says_what_there_is_in_its_place(launcher: Launcher) -> None:
    launcher("training", "run", "j", "--", "true")
    output = launcher("training", "debug-ssh", "j", code=64)
    assert "debug-ssh is not offered" in output and "launcher training logs j -f" in output
    assert "debug-ssh" not in launcher("training", "--help")
