"""The verdict tells the truth: code, rank, class and traceback of the rank that failed first, whoever ran it (T20)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher

SCRIPT = """
import os, signal, sys, time
how, who = sys.argv[1], int(sys.argv[2])
def step():
    if how == "exit 42": sys.exit(42)
    if how == "signal 11": os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exception": raise ValueError("no such batch \\U0001f389")
    if how == "memory": bytearray(1 << 30)
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
CASES += [("entrypoint", how, 2, 1) for how in ENDS]


@pytest.fixture
def limited() -> Iterator[list[str]]:
    """Words before a command that limit its memory to 512 MiB, by a cgroup of the test's own."""
    name = f"launcher-test-{uuid.uuid4().hex[:8]}"
    one, two = Path("/sys/fs/cgroup/memory", name), Path("/sys/fs/cgroup", name)
    folder, limit = (one, "memory.limit_in_bytes") if one.parent.is_dir() else (two, "memory.max")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}; test_docker_oom shows the same with a container's limit")
    try:
        try:
            (folder / limit).write_text(str(512 << 20))
            with contextlib.suppress(OSError):  # There is none without swap accounting.
                (folder / "memory.swap.max").write_text("0")
        except OSError as error:
            pytest.skip(f"the cgroup {folder} takes no memory limit: {error}")
        yield ["sh", "-c", f'echo 0 >{folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        folder.rmdir()


def test_the_first_failing_rank_is_named_with_its_code_class_and_traceback(
    tmp_path: Path, limited: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every end × which rank × 1 and 2 processes, and the entrypoint; those by memory one after the other in a cgroup."""
    script = tmp_path / "fail.py"
    script.write_text(SCRIPT)

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

    by_memory = [case for case in CASES if case[1] == "memory"]
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(one, case) for case in CASES if case not in by_memory]
        rows = [one(case) for case in by_memory] + [each.result() for each in others]
    with capsys.disabled():
        print(f"\n{len(rows)} of {len(CASES)} verdicts right")
        for mode, how, ranks, who, code, cause in rows:
            print(f"  {mode:10} {how:10} rank {who} of {ranks}: {code:3}  {cause}")
