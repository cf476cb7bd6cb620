"""A job that fails because it writes into its read-only input is told of the remedy, once; others are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.inputs import refused
from tests.support.cli import Launcher

INPUT = "/data/in/base"


@pytest.mark.parametrize(
    "line",
    [
        f"OSError: [Errno 30] Read-only file system: '{INPUT}/model.lock'",
        f"PermissionError: [Errno 13] Permission denied: '{INPUT}'",
        f"touch: cannot touch '{INPUT}/x': Read-only file system",
        "touch: cannot touch 'x': Read-only file system",
        "safetensors_rust.SafetensorError: I/O error: Read-only file system (os error 30)",
        'thread panicked: Os { code: 30, kind: ReadOnlyFilesystem, message: "Read-only file system" }',
        f"[rank3]: PermissionError: [Errno 13] Permission denied: '{INPUT}/tokenizer.json'",
        f"mv: cannot move '/tmp/a' to '{INPUT}/a': Operation not permitted",
        f"fopen({INPUT}/cache.bin): EACCES",
    ],
)
def test_a_line_that_tells_of_it(line: str, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text(f"before\n{line}\nTraceback, and the end\n")
    hint = refused.look(log, 0, [INPUT])
    assert hint and "--input-writable" in hint.text and line[:60] in hint.text
    assert refused.look(log, log.stat().st_size, [INPUT]) is None, "it is an earlier attempt's"


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 30] Read-only file system: '/root/.cache/huggingface'",
        "PermissionError: [Errno 13] Permission denied: '/data/in/based/x'",
        "Permission denied",
        "PermissionError: [Errno 13] Permission denied: 'relative'",
        "OSError: [Errno 28] No space left on device: '/data/in/base/x'",
        "loading /data/in/base in 30 s",
        "Error number 1300: /data/in/base",
    ],
)
def test_a_line_that_tells_of_something_else(line: str, tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text(f"{line}\n")
    assert refused.look(tmp_path / "job.log", 0, [INPUT]) is None


def test_little_is_read_of_a_long_log(tmp_path: Path) -> None:
    with open(tmp_path / "job.log", "wb") as file:
        file.write(f"touch: {INPUT}/x: Read-only file system\n".encode())
        file.truncate(1 << 33)
    assert refused.look(tmp_path / "job.log", 0, [INPUT]) is None
    assert refused.look(tmp_path / "none.log", 0, [INPUT]) is None


def test_a_real_job_under_every_guard(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    launcher("checkpoint", "push", "base", "--file", tmp_path / "m")
    write = "python3 -c \"import os; open(os.environ['LAUNCHER_INPUT_CHECKPOINT'] + '/x.lock', 'w')\""
    job = ("training", "run", "j", "-C", "base")
    guards = ["landlock", *(["bind"] if os.geteuid() == 0 else [])]
    for guard in guards:
        launcher.env["LAUNCHER_INPUT_GUARD"] = guard
        output = launcher(*job, "--", "sh", "-c", write, code=1)
        print(next(line for line in output.splitlines() if "tried to write" in line))
        assert output.count("--input-writable") == 1 and "x.lock" in output
        assert "--input-writable" not in launcher(*job, "--", "sh", "-c", f"{write}; exit 0")
        assert "--input-writable" not in launcher(*job, "--", "sh", "-c", "exit 1", code=1)
