"""`launcher training logs`: what a job prints can be read while it runs, by rank, attempt, time and from its end."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.job import logs
from launcher.job.record import Attempt
from tests.support.cli import PROGRAM, Launcher
from tests.support.watching import eventually

TWO_RANKS = """
import os, pathlib, time
go, rank = pathlib.Path(os.environ["GO"]), os.environ["RANK"]
print(f"first of {rank}", flush=True)
while not (go / "second").exists():
    time.sleep(0.05)
for each in range(50):
    print(f"\\rprogress {each} of {rank}", end="", flush=True)
print(f"\\nlast of {rank}", flush=True)
"""


def following(launcher: Launcher, *words: str) -> subprocess.Popen[str]:
    return launcher.start("training", "logs", "j", "--follow", *words)


def test_several_ranks_are_followed_at_once_to_the_end(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env["GO"] = str(tmp_path)
    (tmp_path / "ranks.py").write_text(TWO_RANKS)
    job = launcher.start("training", "run", "j", "--accels", "3", "--", tmp_path / "ranks.py")
    eventually((launcher.home / "data" / "jobs" / "j").exists, "the job's folder")
    eventually(lambda: any((launcher.home / "data/jobs/j").glob("*/record.json")), "the job's record")
    readers = {ranks: following(launcher, *ranks) for ranks in [("--rank", "0", "--rank", "2"), ("--rank", "1"), ()]}
    eventually(lambda: (launcher.job("j") / "logs/job.log").exists(), "the first output")
    (tmp_path / "second").touch()
    assert job.communicate(timeout=120) and job.returncode == 0
    said = {ranks: reader.communicate(timeout=60)[0] for ranks, reader in readers.items()}
    assert {reader.returncode for reader in readers.values()} == {0}
    two, one, every = (said[ranks] for ranks in readers)
    for rank in ("0", "2"):
        assert f"[rank{rank}]: first of {rank}\n" in two and f"[rank{rank}]: last of {rank}\n" in two
    assert "of 1" not in two
    assert one.count("progress") == 50 and "first of 1\n" in one and one.endswith("last of 1\n") and "[rank" not in one
    # (Python's text mode reads a carriage return as a line's end.)
    assert every == (launcher.job("j") / "logs/job.log").read_text()
    assert launcher("training", "logs", "j", "--rank", "2") == one.replace("of 1", "of 2")
    assert "has no rank 3" in launcher("training", "logs", "j", "--rank", "3", code=66)
    assert launcher("training", "logs", "j", "--rank", "1", "--tail", "1") == "last of 1\n"


def test_following_begins_before_the_first_output_and_ends_with_the_job(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env["GO"] = str(tmp_path)
    wait = "until [ -e $GO/go ]; do sleep 0.05; done; echo one; until [ -e $GO/end ]; do sleep 0.05; done; printf two"
    job = launcher.start("training", "run", "j", "--", "sh", "-c", wait)
    eventually(lambda: any((launcher.home / "data/jobs/j").glob("*/record.json")), "the job's record")
    reader = following(launcher)
    (tmp_path / "go").touch()
    assert reader.stdout
    assert reader.stdout.readline() == "one\n", "while the job still runs"
    assert job.poll() is None
    (tmp_path / "end").touch()
    job.communicate(timeout=60)
    assert reader.communicate(timeout=60)[0] == "two" and reader.returncode == 0


def test_ctrl_c_and_a_closed_pipe_end_it_without_a_word(launcher: Launcher) -> None:
    job = launcher.start("training", "run", "j", "--", "sh", "-c", "echo here; sleep 600")
    try:
        eventually(lambda: any((launcher.home / "data/jobs/j").glob("*/logs/job.log")), "the log")
        reader = following(launcher)
        assert reader.stdout and reader.stdout.readline() == "here\n"
        reader.send_signal(signal.SIGINT)
        assert reader.communicate(timeout=60)[0] == "" and reader.returncode == 130
        line = f"{PROGRAM} training logs j | true"
        done = subprocess.run(["bash", "-c", line], env=launcher.env, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        assert job.poll() is None, "the job goes on"
    finally:
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=60)


def test_the_end_of_a_hundred_megabytes_without_reading_them(launcher: Launcher) -> None:
    launcher("training", "run", "j", "--", "true")
    log = launcher.job("j") / "logs" / "job.log"
    line = b"[rank0]: " + b"x" * 990 + b"\n"
    with open(log, "wb") as file:
        for number in range(100):
            file.write(b"".join(b"%06d %s" % (number * 1000 + each, line) for each in range(1000)))
    size = log.stat().st_size
    assert size > 100_000_000
    trace = ["strace", "-f", "-y", "-e", "trace=read,pread64", PROGRAM]
    done = subprocess.run(
        [*trace, "training", "logs", "j", "--tail", "3"], env=launcher.env, capture_output=True, text=True, timeout=120
    )
    assert [text[:6] for text in done.stdout.splitlines()] == ["099997", "099998", "099999"]
    found = [re.search(r"= (\d+)$", text) for text in done.stderr.splitlines() if "job.log>" in text]
    total = sum(int(each[1]) for each in found if each)
    print(f"read {total} of {size} bytes for --tail 3")
    assert 0 < total < 1 << 20
    with subprocess.Popen([PROGRAM, "training", "logs", "j"], env=launcher.env, stdout=subprocess.PIPE) as whole:
        assert whole.stdout
        count = 0
        while data := whole.stdout.read(1 << 20):
            count += len(data)
    assert count == size
    log.unlink()


def test_the_last_lines_are_what_tail_says(tmp_path: Path) -> None:
    """Random logs, long lines and none at the end among them, against the plain way."""
    random.seed(5)
    log = tmp_path / "job.log"
    for _ in range(25):
        lengths = [
            random.choice([0, 1, 50, 300_000 if random.random() < 0.05 else 5]) for _ in range(random.randrange(80))
        ]
        lines = [b"%d:" % each + bytes(random.choices(b"ab\r", k=each)) + b"\n" for each in lengths]
        if lines and random.random() < 0.5:
            lines[-1] = lines[-1][:-1]
        log.write_bytes(b"".join(lines))
        for count in (0, 1, 2, 7, 1000):
            assert b"".join(logs.read(log, tail=count)) == b"".join(
                lines[len(lines) - count :] if count < len(lines) else lines
            )


def test_only_what_came_since(launcher: Launcher) -> None:
    launcher("training", "run", "j", "--", "sh", "-c", "echo old; sleep 3.5; echo newer")
    log = launcher.job("j") / "logs" / "job.log"
    ended = log.stat().st_mtime
    assert log.read_text() == "old\nnewer\n"
    assert logs.since(log, ended + 60) == 10 and logs.since(log, 0) == 0
    assert logs.since(log, ended - 1) == 4
    assert launcher("training", "logs", "j", "--since", "2h") == "old\nnewer\n"
    assert (
        launcher("training", "logs", "j", "--since", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended - 1)))
        == "newer\n"
    )
    assert "'soon' is no time" in launcher("training", "logs", "j", "--since", "soon", code=64)
    log.with_suffix(".times").unlink()
    assert logs.since(log, ended) == 0, "where nothing is known, all is shown"


def test_one_attempt_of_several(launcher: Launcher, tmp_path: Path) -> None:
    attempts = [Attempt(number=each, host="h", pid=1, started=0, log_start=4 * (each - 1)) for each in (1, 2, 3)]
    (tmp_path / "job.log").write_bytes(b"aaa\nbbb\nccc\nccc\n")
    for number, text in ((1, b"aaa\n"), (2, b"bbb\n"), (3, b"ccc\nccc\n")):
        start, end = logs.span(attempts, number)
        assert b"".join(logs.read(tmp_path / "job.log", start=start, ends=lambda end=end: end)) == text
        last = b"".join(logs.read(tmp_path / "job.log", start=start, ends=lambda end=end: end, tail=1))
        assert last == text[-4:]
    assert b"".join(logs.read(tmp_path / "job.log", start=9, ends=lambda: 4)) == b""
    with pytest.raises(KeyError):
        logs.span(attempts, 4)
    script = 'echo "it is $LAUNCHER_ATTEMPT"; test $LAUNCHER_ATTEMPT = 3 || exit 3'
    launcher("training", "run", "j", "--max-restarts", "5", "--retry-on", "3", "--", "sh", "-c", script)
    for number in ("1", "2", "3"):
        text = launcher("training", "logs", "j", "--attempt", number)
        assert f"it is {number}\n" in text and text.count("it is") == 1
    every = launcher("training", "logs", "j")
    assert [line[-1] for line in every.splitlines() if line.startswith("it is")] == ["1", "2", "3"]
    assert "no attempt 4; there is 1, 2, 3" in launcher("training", "logs", "j", "--attempt", "4", code=66)


def test_following_one_attempt_ends_with_it(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env["GO"] = str(tmp_path)
    script = "echo began; until [ -e $GO/$LAUNCHER_ATTEMPT ]; do sleep 0.05; done; exit 3"
    job = launcher.start(
        "training", "run", "j", "--max-restarts", "1", "--retry-on", "3", "--", "sh", "-c", script
    )  # fmt: skip
    try:
        eventually(lambda: any((launcher.home / "data/jobs/j").glob("*/logs/job.log")), "the log")
        reader = following(launcher, "--attempt", "1")
        assert reader.stdout and reader.stdout.readline() == "began\n"
        (tmp_path / "1").touch()
        assert reader.communicate(timeout=120)[0].count("began") == 0 and reader.returncode == 0
        assert job.poll() is None, "the second attempt runs on"
    finally:
        (tmp_path / "2").touch()
        job.communicate(timeout=120)


def test_a_log_that_grows_is_read_as_it_grows(tmp_path: Path) -> None:
    """Also in the middle of a mark and of a line's end."""
    log = tmp_path / "job.log"
    content = b"[rank0]: a\r[rank1]: b\r\n[rank10]: c\n[rank1]: d\r[rank0]: e\ntorchrun's own\n[rank1]: end"
    script = "import os, sys, time\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
    script += f"for byte in {content!r}:\n    os.write(fd, bytes([byte])); time.sleep(0.002)\n"
    with subprocess.Popen([sys.executable, "-c", script, log]) as writer:
        pieces = list(logs.read(log, ranks=[1], grows=lambda: writer.poll() is None, pause=0.001))
    assert b"".join(pieces) == b"b\r\nd\rend"
    assert pieces.count(b"") > 1 and os.path.exists(log)
