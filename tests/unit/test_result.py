"""The verdict as a document: bounded, valid, whole at every moment."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import msgspec
import pytest

from launcher import result
from launcher.job.last_words import last_words
from launcher.result import Result
from tests.support.cli import ROOT

BASE = Result(
    code=1, origin="job", cause="The job raised ValueError.", failure="exception", next="launcher training retry j"
)


@pytest.mark.parametrize("text", ["", "x", "\U0001f389" * 250_000, "é" * 3000, "\udcff" * 3000, "a\n" * 500_000])
def test_the_termination_message_is_at_most_4096_bytes_of_utf8(text: str) -> None:
    """T25: after a traceback of a megabyte of emoji, and whatever else a job says; code, cause and command come first."""
    for facts in (
        {"traceback": text},
        {"cause": text},
        {"hint": text},
        dict.fromkeys(("traceback", "cause", "hint", "next"), text),
    ):
        data = result.message(msgspec.structs.replace(BASE, **facts))
        assert len(data) <= 4096 and data.decode().startswith("exit code 1 (job, exception, not retryable): ")
    data = result.message(msgspec.structs.replace(BASE, traceback=text))
    assert b"next: launcher training retry j" in data


def test_a_megabyte_of_emoji_leaves_its_end() -> None:
    trace = (
        'Traceback (most recent call last):\n  File "train.py", line 1, in <module>\nValueError: '
        + "\U0001f389" * 250_000
    )
    message = result.message(msgspec.structs.replace(BASE, traceback=last_words(trace).traceback)).decode()
    assert len(message.encode()) > 3900 and message.endswith("\U0001f389…")


def test_a_reader_never_finds_half_a_termination_message(tmp_path: Path) -> None:
    """It is a mount of its own in Kubernetes, so nothing can be renamed onto it; here in a mount namespace of the test's."""
    if os.geteuid() != 0:
        pytest.skip("only root can put a file at /dev/termination-log")
    said = tmp_path / f"said-{uuid.uuid4().hex}"
    said.write_bytes(b"older and much longer " * 100)
    code = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
        "os.unshare(os.CLONE_NEWNS) if hasattr(os, 'unshare') else libc.unshare(0x20000)\n"
        "libc.mount(None, b'/', None, 0x44000, None); libc.mount(b'tmpfs', b'/dev', b'tmpfs', 0, None)\n"
        "open('/dev/termination-log', 'w').close(); libc.mount(sys.argv[1].encode(), b'/dev/termination-log', None, 4096, None)\n"
        "from launcher.result import Result, write\n"
        "write(Result(code=3, origin='job', cause='Short.'), sys.argv[1] + '.json')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, said], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said.read_text() == "exit code 3 (job, not retryable): Short."
    assert msgspec.json.decode(Path(f"{said}.json").read_bytes(), type=Result).code == 3


def test_the_copies_are_written_where_one_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        result.write(BASE, str(tmp_path / "file/result.json"), "", str(tmp_path / "two/result.json"))
    assert msgspec.json.decode((tmp_path / "two/result.json").read_bytes(), type=Result) == BASE
