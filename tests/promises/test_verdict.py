"""The verdict tells the truth: code, rank, class and traceback of the rank that failed first, whoever ran it (T20)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import ends
from tests.support.cli import PROGRAM, ROOT, Launcher

SCRIPT = """
import os, signal, sys, time
how, who = sys.argv[1], int(sys.argv[2])
def limited():
    for path in ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"):
        if os.path.exists(path):
            text = open(path).read().strip()
            return text.isdigit() and int(text) < 1 << 40
def step():
    if how == "exit 42": sys.exit(42)
    if how == "signal 11": os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exception": raise ValueError("no such batch \\U0001f389")
    if how == "memory":
        while len(sys.argv) > 3 and not limited(): time.sleep(0.1)
        bytearray(1 << 30)
if int(os.environ["RANK"]) == who:
    step()
time.sleep(300)
"""
ENDS = {  # how it ends: code, class, what the traceback holds
    "exit 42": (42, "exit", ""),
    "signal 11": (139, "signal", "in step"),
    "exception": (1, "exception", "ValueError: no such batch \U0001f389"),
    "memory": (137, "oom", ""),
}
CASES = [("training", how, ranks, who) for how in ENDS for ranks, who in ((1, 0), (2, 0), (2, 1))]
CASES += [("entrypoint", how, 2, 1) for how in ("exception", "memory")]


@pytest.fixture
def limited() -> Iterator[list[str]]:
    """Words before a command that limit its memory to 512 MiB, by a cgroup of the test's own; none where none can be made."""
    name = f"launcher-test-{uuid.uuid4().hex[:8]}"
    one, two = Path("/sys/fs/cgroup/memory", name), Path("/sys/fs/cgroup", name)
    folder, limit = (one, "memory.limit_in_bytes") if one.parent.is_dir() else (two, "memory.max")
    try:
        folder.mkdir()
    except OSError:
        yield []
        return
    try:
        (folder / limit).write_text(str(512 << 20))
        with contextlib.suppress(OSError):  # There is none without swap accounting.
            (folder / "memory.swap.max").write_text("0")
        yield ["sh", "-c", f'echo 0 >{folder}/cgroup.procs && exec "$@"', "sh"]
    except OSError:  # The controller is not given to it.
        yield []
    finally:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # Until the last of its processes is gone.
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def failing_script(folder: Path) -> Path:
    """fail.py HOW RANK [WAIT]: the rank ends so; with WAIT, memory runs out only when a limit is there."""
    path = folder / "fail.py"
    path.write_text(SCRIPT)
    return path


def check(result: Any, how: str, who: int, node: str) -> None:
    """That a result.json tells the truth about a job that ended so."""
    code, failure, trace = ENDS[how]
    assert (result["code"], result["failure"], result["origin"]) == (code, failure, "job"), (how, result)
    assert (result["rank"], result["node"]) == (who, node) and trace in result["traceback"], (how, result)
    assert result["retryable"] is (failure != "oom"), (how, result)


def test_the_first_failing_rank_is_named_with_its_code_class_and_traceback(
    tmp_path: Path, limited: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every end × which rank × 1 and 2 processes, and the entrypoint; those by memory one after the other in a cgroup, or left to
    the tests with containers where none can be made."""
    script = failing_script(tmp_path)
    cases = [case for case in CASES if limited or case[1] != "memory"]

    def one(case: tuple[str, str, int, int]) -> tuple[Any, ...]:
        mode, how, ranks, who = case
        launcher = Launcher(tmp_path / f"{mode}-{how}-{ranks}-{who}".replace(" ", "-"))
        words = ["training", "run", "t"] if mode == "training" else ["entrypoint", "--name", "t"]
        words += ["--device", "cpu", "--accels", str(ranks), "--", str(script), how, str(who)]
        before = limited if how == "memory" else []
        done = subprocess.run(
            [*before, PROGRAM, *words], env=launcher.env, cwd=ROOT, capture_output=True, text=True, timeout=240
        )
        result = launcher.result("t")
        code, failure, trace = ENDS[how]
        assert (done.returncode, result["code"], result["failure"]) == (code, code, failure), (
            case,
            result,
            done.stderr,
        )
        assert (result["rank"], result["node"], result["origin"]) == (who, os.uname().nodename, "job"), (case, result)
        assert trace in result["traceback"], (case, result)
        return mode, how, ranks, who, done.returncode, result["cause"]

    by_memory = [case for case in cases if case[1] == "memory"]
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(one, case) for case in cases if case not in by_memory]
        rows = [one(case) for case in by_memory] + [each.result() for each in others]
    with capsys.disabled():
        print(f"\n{len(rows)} of {len(CASES)} verdicts right" + ("" if limited else " (no cgroup can be made here)"))
        for mode, how, ranks, who, code, cause in rows:
            print(f"  {mode:10} {how:10} rank {who} of {ranks}: {code:3}  {cause}")


def test_ranks_that_lose_a_peer_are_not_named_first(launcher: Launcher, tmp_path: Path) -> None:
    """Both ranks end with an error of their own, and the one that only lost the other is there first: what it says tells."""
    script = tmp_path / "lost.py"
    script.write_text(
        "import os, sys, time\n"
        "other = sys.argv[1] + '/raised'\n"
        "if os.environ['RANK'] == '0':\n"
        "    while not os.path.exists(other): time.sleep(0.01)\n"
        "    raise RuntimeError('[/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer')\n"
        "def hook(*error):\n"
        "    sys.__excepthook__(*error); sys.stderr.flush(); open(other, 'w'); time.sleep(300)\n"  # As slow as NCCL's end.
        "sys.excepthook = hook\n"
        "raise ValueError('mine')\n"
    )
    launcher("training", "run", "lost", "--accels", "2", "--", script, tmp_path, code=1)
    result = launcher.result("lost")
    assert (result["rank"], result["failure"], result["code"]) == (1, "exception", 1) and "mine" in result["cause"]


def test_a_killed_agent_is_told_from_a_rank(launcher: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "kill.py"
    script.write_text("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n")
    launcher("training", "run", "agent", "--accels", "1", "--", script, code=137)
    result = launcher.result("agent")
    assert (result["rank"], result["failure"]) == (None, "signal") and "torchrun's agent" in result["cause"]


def test_a_job_that_stands_still_is_described_and_ended(launcher: Launcher) -> None:
    """It prints, then writes files, then computes, each for longer than the time-out, before it stands still."""
    words = "for i in 1 2 3 4 5; do echo $i; sleep 1; done; for i in 1 2 3 4 5; do echo >$OUT/file; sleep 1; done; "
    words = f"OUT=$FLEXAI_OUTPUT_CHECKPOINT_DIR; {words} timeout 5 sh -c 'while :; do :; done'; touch $OUT/done; exec sleep 321"
    launcher("training", "run", "still", "--stall-timeout", "4s", "--", "sh", "-c", words, code=143)
    result = launcher.result("still")
    assert (result["failure"], result["signal"], result["stopped"]) == ("hang", "SIGTERM", False)
    assert "no output, no file, no processor time (sleep (" in result["cause"]
    assert (launcher.job("still") / "output-checkpoint/done").exists()


@pytest.mark.parametrize(
    ("script", "flags", "attempts", "code"),
    [
        ("exit 42", "", 2, 42),  # The job's own mistake comes again at the same step: once more, and no further.
        ("exit 42", "--no-retry-on 42", 1, 42),
        ("exit 42", "--no-retry-on exit --retry-on 42", 4, 42),
        ("kill -11 $$", "", 4, 139),
        ("echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to'; exit 1", "", 1, 1),
        ("test $LAUNCHER_ATTEMPT = 3 || exit 7", "--retry-on 7", 3, 0),
    ],
)
def test_what_is_retried_by_class_and_by_code(
    launcher: Launcher, script: str, flags: str, attempts: int, code: int
) -> None:
    launcher("training", "run", "again", "--max-restarts", "3", *flags.split(), "--", "sh", "-c", script, code=code)
    assert launcher.result("again")["attempt"] == attempts


def test_a_job_that_stands_still_and_ignores_it_is_killed(launcher: Launcher) -> None:
    words = ["--stall-timeout", "1s", "--grace", "1s", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
    launcher("training", "run", "deaf", *words, code=137)
    assert launcher.result("deaf")["failure"] == "hang"


def test_the_result_is_where_it_was_asked_for(launcher: Launcher, tmp_path: Path) -> None:
    """Also where the launcher failed before the job had a folder; `inspect` shows the same."""
    launcher.env["LAUNCHER_RESULT_FILE"] = str(tmp_path / "results/mine.json")
    launcher("training", "run", "asked", "--", "sh", "-c", "exit 42", code=42)
    copy = json.loads(Path(launcher.env["LAUNCHER_RESULT_FILE"]).read_bytes())
    assert copy == launcher.result("asked")
    assert (copy["job"], copy["attempt"], copy["code"], copy["retryable"]) == ("asked", 1, 42, True)
    assert copy["next"] == "launcher training retry asked"
    shown = launcher.json("training", "inspect", "asked")["attempts"][-1]["outcome"]
    assert shown == {key: copy[key] for key in shown}
    launcher("training", "run", "asked", "-C", "no-such-checkpoint", "--", "sh", "-c", "exit 0", code=66)
    copy = json.loads(Path(launcher.env["LAUNCHER_RESULT_FILE"]).read_bytes())
    assert (copy["code"], copy["origin"], copy["failure"], copy["kind"]) == (
        66,
        "launcher",
        "launcher",
        "checkpoint-not-found",
    )


def test_secrets_do_not_get_into_the_verdict_by_a_traceback(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env |= {"MY_API_KEY": "canary-4711-canary", "LAUNCHER_RESULT_FILE": str(tmp_path / "result.json")}
    script = tmp_path / "leak.py"
    script.write_text("import os\nraise ValueError('key ' + os.environ['MY_API_KEY'])\n")
    launcher("training", "run", "leak", "--", sys.executable, script, code=1)
    assert "key ***" in launcher.result("leak")["traceback"]
    folder = launcher.job("leak")
    for path in (folder / "result.json", folder / "record.json", folder / "events.jsonl", tmp_path / "result.json"):
        assert "canary" not in path.read_text()


def test_exit_codes_and_signals_by_chance_are_exact() -> None:
    """A slice of `python -m tests.campaigns.ends`."""
    assert not ends.main(["--count", "1", "--seed", "7", "--how", "torchrun"]).violations
    assert not ends.main(["--count", "6", "--seed", "8", "--how", "exec"]).violations
