"""The job's output arrives whole and as it came, whatever happens to those who read it."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.job.logs import Times
from launcher.runners.output import Pump, RankLogs, write_all
from tests.support.entrypoint import until


def followed(folder: Path, *pieces: bytes) -> bytes:
    """What comes out for the pieces that a rank writes one after the other."""
    log = folder / "run" / "attempt_0" / "0"
    log.mkdir(parents=True)
    out = os.open(folder / "out", os.O_RDWR | os.O_CREAT)
    null = os.open(os.devnull, os.O_WRONLY)
    with open(log / "stdout.log", "wb", buffering=0) as file:
        (folder / "job.log").touch()
        times = Times(folder / "job.log")
        logs = RankLogs(folder, 1, out, out, null, times)
        for piece in pieces:
            file.write(piece)
            time.sleep(0.15)
        logs.finish(60)
    times.close()
    os.close(out)
    os.close(null)
    return (folder / "out").read_bytes()


def test_lines_of_ranks_are_marked_and_progress_bars_stay(tmp_path: Path) -> None:
    text = followed(tmp_path, b"one\ntwo\r\nthree", b" more\n", b"\r 1%\r 2%", b"\r100%\nend")
    lines = [b"one\n", b"two\r\n", b"three more\n", b"\r", b" 1%\r", b" 2%\r", b"100%\n", b"end\n"]
    assert text == b"".join(b"[rank0]: " + line for line in lines)


def test_a_line_that_never_ends_does_not_pile_up(tmp_path: Path) -> None:
    text = followed(tmp_path, b"x" * (20 << 20))
    assert text.count(b"x") == 20 << 20 and text.count(b"[rank0]: ") < 25


def test_a_reader_that_goes_away_stops_neither_the_job_nor_the_log(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    source, job = os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    times = Times(tmp_path / "log")
    pump = Pump({source: writer}, log, times)
    os.close(reader)
    for _ in range(100):
        os.write(job, b"line\n" * 1000)
    os.close(job)
    assert pump.join(60)
    assert (tmp_path / "log").stat().st_size == 500_000
    times.close()
    for fd in (source, writer, log):
        os.close(fd)


def test_what_is_logged_to_stderr_tears_no_line_of_stdout(tmp_path: Path) -> None:
    lines = 20_000
    script = (
        f"import sys; a, b = sys.stdout, sys.stderr\nfor number in range({lines}):\n"
        " print('step', number, file=a, flush=True); print('[INFO]', number, file=b, flush=True)"
    )
    (out, out_writer), (err, err_writer) = os.pipe(), os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null, times = os.open(os.devnull, os.O_WRONLY), Times(tmp_path / "log")
    pump = Pump({out: null, err: null}, log, times)
    subprocess.run([sys.executable, "-u", "-c", script], stdout=out_writer, stderr=err_writer, check=True)
    for fd in (out_writer, err_writer):
        os.close(fd)
    assert pump.join(60)
    times.close()
    found = (tmp_path / "log").read_text().splitlines()
    assert len(found) == 2 * lines
    assert {line for line in found if not line.startswith(("step ", "[INFO] "))} == set()
    for fd in (out, err, log, null):
        os.close(fd)


def test_a_line_that_goes_on_and_on_does_not_keep_the_other_stream_waiting(tmp_path: Path) -> None:
    (out, out_writer), (err, err_writer) = os.pipe(), os.pipe()
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null, times = os.open(os.devnull, os.O_WRONLY), Times(tmp_path / "log")
    flood = subprocess.Popen(["sh", "-c", "exec tr '\\0' x < /dev/zero"], stdout=out_writer)
    pump = Pump({out: null, err: null}, log, times)
    time.sleep(0.1)
    os.write(err_writer, b"the other\n")
    until(lambda: not select.select([err], [], [], 0)[0])
    flood.kill()
    flood.wait()
    for fd in (out_writer, err_writer):
        os.close(fd)
    assert pump.join(60)
    assert b"xthe other\n" in (tmp_path / "log").read_bytes()
    times.close()
    for fd in (out, err, log, null):
        os.close(fd)


def test_a_stdout_that_somebody_made_non_blocking_loses_nothing() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, fcntl.fcntl(writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    data = os.urandom(2 << 20)
    sinks = [writer]
    thread = threading.Thread(target=write_all, args=(data, sinks))
    thread.start()
    came = b""
    while len(came) < len(data):
        came += os.read(reader, 1 << 16)
    thread.join()
    assert came == data and sinks == [writer]
    os.close(reader)
    os.close(writer)


def test_a_full_disk_costs_what_does_not_fit_and_nothing_later(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    script = (
        'mount -t tmpfs -o size=1m none . && exec "$0" -c \''
        'import os; from launcher.runners.output import write_all; f = os.open("log", os.O_WRONLY | os.O_CREAT);'
        'sinks = [f]; write_all(b"x" * (2 << 20), sinks); os.ftruncate(f, 0); os.lseek(f, 0, 0);'
        'write_all(b"after", sinks); print(open("log").read())\''
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, sys.executable], cwd=tmp_path, capture_output=True)
    assert done.stdout == b"after\n", done.stderr
