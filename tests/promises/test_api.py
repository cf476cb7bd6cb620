"""The Python API does what the command line does, and behaves like a library: it prints nothing, ends nobody, and leaves the
caller's children, signals and threads alone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import launcher
from launcher import errors
from tests.support.cli import Launcher
from tests.support.entrypoint import until

SAVING = """
mkdir "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-1"
cp "$LAUNCHER_INPUT_CHECKPOINT"/* "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-1"
echo saved; echo '{"step": 1}' > "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-1/more.json"
"""
STOPPED = f"""
save() {{ {SAVING} }}
trap "save; exit 0" INT TERM
echo started
while true; do sleep 0.1; done
"""
PROGRAM = """
import sys, launcher
spec = launcher.JobSpec(name="ft", command=("sh", "-c", sys.argv[1]), checkpoint=("base",), grace=20)
launcher.run(spec, on_event=lambda event: print(event.kind, flush=True))
"""


@pytest.fixture
def home(launcher_home: Launcher, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """The settings of the command line, for this process, and a checkpoint called base."""
    for key in [key for key in os.environ if key.startswith(("LAUNCHER_", "FLEXAI_"))]:
        monkeypatch.delenv(key)
    for key, value in launcher_home.env.items():
        monkeypatch.setenv(key, value)
    return launcher_home


@pytest.fixture
def launcher_home(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path / "home")


@pytest.fixture
def base(home: Launcher, tiny_model: Path) -> launcher.Checkpoint:
    return launcher.push_checkpoint("base", tiny_model)


def spec(script: str, **more: object) -> launcher.JobSpec:
    return launcher.JobSpec(**{"name": "ft", "command": ("sh", "-c", script), "checkpoint": ("base",)} | more)  # type: ignore[arg-type]


def test_a_job_from_a_checkpoint_to_its_own_without_a_word(
    base: launcher.Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[launcher.Event] = []
    result = launcher.run(spec(SAVING), on_event=seen.append)
    assert (result.code, result.origin, result.job, result.attempt, result.checkpoints) == (0, "job", "ft", 1, 1)
    kinds = [each.kind for each in seen]
    assert {"input-ready", "job-started", "checkpoint-committed", "job-ended"} <= set(kinds), kinds
    (found,) = launcher.open_store().of_job("ft")
    assert found.manifest.lineage.parents == (base.manifest.id,) and found.manifest.origin
    assert found.manifest.origin.job == result.id
    path = launcher.checkpoint_path("job:ft")
    assert (path / "more.json").read_text() == '{"step": 1}\n'
    copy = launcher.fetch_checkpoint("ft/checkpoint-1", tmp_path / "copy")
    assert {each.name for each in copy.iterdir()} == {each.name for each in path.iterdir()}
    assert launcher.push_checkpoint("mine", copy, parents=["base"]).label == "mine@v1"
    assert launcher.push_checkpoint("mine", copy, parents=["base"]).repeated
    assert capfd.readouterr() == ("", "")


def test_echo_prints_what_the_command_line_prints(base: launcher.Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    launcher.run(spec("echo out; echo err >&2"), echo=True)
    out, err = capfd.readouterr()
    assert out == "out\n" and "err\n" in err and "launcher: Job ft" in err


def test_what_a_job_ends_with_is_returned_and_what_keeps_it_from_starting_is_raised(
    base: launcher.Checkpoint, home: Launcher
) -> None:
    failed = launcher.run(spec("exit 7"))
    assert (failed.code, failed.origin, failed.failure) == (7, "job", "exit")
    with pytest.raises(errors.CommandNotFound, match="no-such-program: not found"):
        launcher.run(spec("", command=("no-such-program",)))
    with pytest.raises(errors.CheckpointNotFound) as unknown:
        launcher.run(spec("true", checkpoint=("bass",)))
    assert "'bass'" in unknown.value.text and unknown.value.hint == "Nearest names: base"
    assert unknown.value.exit_code == 66
    with pytest.raises(errors.UsageError, match="no command"):
        launcher.run(spec("", command=()))
    with pytest.raises(errors.UsageError, match="2 mistakes"):
        launcher.run(spec("true", keep="first=1", time_limit=1.0))
    with pytest.raises(errors.UsageError, match="runner 'entrypoint'"):
        launcher.run(spec("true", runner="entrypoint"))
    with pytest.raises(errors.CheckpointNotFound):
        launcher.checkpoint_path("bass")
    with pytest.raises(errors.SourceNotFound):
        launcher.push_checkpoint("new", "no-such-folder")
    assert [each["name"] for each in home.json("training", "list")] == ["ft"]


def test_the_job_is_the_specs_and_not_the_variables(
    base: launcher.Checkpoint, home: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAUNCHER_CHECKPOINT", "no-such-checkpoint")
    monkeypatch.setenv("LAUNCHER_DEVICE", "cuda")
    monkeypatch.chdir(tmp_path)
    script = f'test "$PWD" = {tmp_path} && test "$MINE" = 1 && ! read line && {SAVING}'
    result = launcher.run(spec(script, env={"MINE": "1"}))
    assert result.code == 0, result.cause
    other = tmp_path / "other"
    launcher.push_checkpoint("base", launcher.checkpoint_path("base"), store=str(other))
    assert launcher.run(spec(SAVING, env={"MINE": "1"}), store=str(other)).checkpoints == 1
    assert [each.label for each in launcher.open_store(str(other)).of_job("ft")] == ["ft/checkpoint-1@v1"]


def test_an_exception_of_the_callers_stops_the_job_in_its_grace(base: launcher.Checkpoint, home: Launcher) -> None:
    def raising(event: launcher.Event) -> None:
        if event.kind == "job-started":
            until(lambda: "started" in (home.job("ft") / "logs/job.log").read_text())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launcher.run(spec(STOPPED, grace=20), on_event=raising)
    result = home.result("ft")
    assert result["stopped"] and result["checkpoints"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda each: each.name)
def test_the_job_ends_with_the_program_and_what_it_saves_is_stored(
    base: launcher.Checkpoint, home: Launcher, number: signal.Signals
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: any((home.home / "data/jobs").glob("ft/0*/logs/job.log")), seconds=30)
    until(lambda: "started" in (home.job("ft") / "logs/job.log").read_text(), seconds=30)
    program.send_signal(number)
    _, err = program.communicate(timeout=40)
    assert program.returncode == -number and ("KeyboardInterrupt" in err) == (number == signal.SIGINT)
    until(lambda: (home.job("ft") / "result.json").exists(), seconds=30)
    result = home.result("ft")
    assert result["stopped"] and result["checkpoints"] == 1


def test_a_second_interrupt_ends_the_job_at_once(base: launcher.Checkpoint, home: Launcher) -> None:
    deaf = "trap '' INT TERM; echo started; while true; do sleep 0.1; done"
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, deaf], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until(lambda: any((home.home / "data/jobs").glob("ft/0*/logs/job.log")))
    until(lambda: "started" in (home.job("ft") / "logs/job.log").read_text())
    program.send_signal(signal.SIGINT)
    until(lambda: (home.job("ft") / "logs/stop.json").exists())
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=15)  # The grace is 20 s.
    assert program.returncode == -signal.SIGINT and b"KeyboardInterrupt" in err
    result = home.result("ft")
    assert result["stopped"] and "It was killed" in result["cause"]


def test_the_callers_children_and_signals_are_left_alone_in_any_thread(
    base: launcher.Checkpoint, home: Launcher
) -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mine = subprocess.Popen(["sleep", "60"])
    results: dict[str, launcher.Result] = {}
    threads = [
        threading.Thread(target=lambda name=name: results.update({name: launcher.run(spec(SAVING, name=name))}))  # type: ignore[misc]
        for name in ("one", "two")
    ]
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert {name: (each.code, each.checkpoints) for name, each in results.items()} == {"one": (0, 1), "two": (0, 1)}
        assert mine.poll() is None
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    finally:
        mine.kill()
        mine.wait()


def test_a_path_stays_in_the_cache_while_the_program_lives(
    base: launcher.Checkpoint, home: Launcher, tmp_path: Path
) -> None:
    store = tmp_path / "elsewhere"  # A copy, where the store's own files cannot be linked.
    launcher.push_checkpoint("base", launcher.checkpoint_path("base"), store=str(store))
    path = launcher.checkpoint_path("base", store=str(store), only="inference")
    open_files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert launcher.checkpoint_path("base", store=str(store), only="inference") == path
    assert len(os.listdir("/proc/self/fd")) == open_files
    home("cache", "prune", "--limit", "0")
    assert (path / "config.json").exists()
    assert not os.access(path / "config.json", os.W_OK) or os.geteuid() == 0


def test_a_secret_is_in_no_event_command_line_or_record(base: launcher.Checkpoint, home: Launcher) -> None:
    canary = "canary-5f1e3c0b9a"
    seen: list[str] = []

    def look(event: launcher.Event) -> None:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.exists()]
        seen.extend([repr(event), *map(repr, lines)])

    result = launcher.run(spec(f"echo $API_TOKEN; {SAVING}", env={"API_TOKEN": canary}), on_event=look)
    assert result.code == 0 and len(seen) > 20
    assert not [each for each in seen if canary in each]
    assert canary not in (home.job("ft") / "record.json").read_text()


@pytest.mark.parametrize("kind", list(errors.tree()), ids=lambda kind: kind.kind)
def test_an_error_can_be_pickled_and_stays_what_it_is(kind: type[errors.LauncherError]) -> None:
    error = kind.__new__(kind)
    error.facts, error.text, error.hint = {}, "what happened", "what to do"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == "what happened\nwhat to do" and again.exit_code == kind.exit_code
