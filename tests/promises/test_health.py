"""A job seen from outside while it runs: probes, metrics and the heartbeat file say what is true, also when a part hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.health import Health
from launcher.job.spec import JobSpec
from launcher.outputs.collector import Collector
from launcher.outputs.spool import Spool
from launcher.outputs.uploader import Task, Uploader
from launcher.probes import Probes
from launcher.runners.signals import Signals
from launcher.settings import Settings
from tests.support.cli import Launcher
from tests.support.watching import Watching, eventually, save_trainer

JOB = """
eval "$FIRST"
wait_for() { until [ -e "$GO/$1" ]; do sleep 0.05; done; }
echo started; wait_for save; cp -r "$GO/model" "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-7"; wait_for end
"""


def get(url: str) -> tuple[int, str]:
    """The status and the text of a page. Not as often as one could ask: the job and its uploader need the processors."""
    time.sleep(0.1)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(url: str) -> dict[str, float]:
    """Sample name, with its label's value after a colon, to its value; in the text format's own grammar."""
    families = text_string_to_metric_families(get(f"{url}/metrics")[1])
    return {
        ":".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def stored(found: dict[str, float]) -> bool:
    """Whether the one checkpoint of the job is, and nothing waits any more."""
    return found["launcher_checkpoints_stored_total"] == 1 and found["launcher_checkpoints_pending"] == 0


@contextmanager
def running(launcher: Launcher, folder: Path, *flags: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A job that waits for files in `folder` before it saves and ends; and the address of its probes."""
    launcher.env["GO"] = str(folder)
    save_trainer(folder / "model", 1, 7)
    flags = ("--health-port", "0", "--settle", "0.2s", *flags)
    process = launcher.start("training", "run", "watched", *flags, "--", "sh", "-c", JOB)
    try:
        assert process.stdout
        line = next(line for line in process.stdout if "Health at" in line)
        next(line for line in process.stdout if line == "started\n")
        yield process, line.split("Health at ")[1].split("/healthz")[0]
        for each in ("save", "end"):
            (folder / each).touch()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def uploader(launcher: subprocess.Popen[str]) -> int:
    """The process id of its uploader, once there is one."""

    def found() -> int:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rpartition(")")[2].split()[1])
                command = (path.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == launcher.pid and b"launcher.outputs.storing" in command:
                return int(path.parent.name)
        return 0

    return int(eventually(found, "the uploader starts"))


def test_probes_metrics_and_heartbeat_of_a_running_job(launcher: Launcher, tmp_path: Path) -> None:
    heartbeat = tmp_path / "heartbeat.json"
    with running(launcher, tmp_path, "--heartbeat", heartbeat) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        assert get(f"{url}/healthz") == (200, "ok\n")
        eventually(lambda: get(f"{url}/readyz") == (200, "ok\n"), "the job runs")
        before = metrics(url)
        (tmp_path / "save").touch()
        after = eventually(lambda: stored(m := metrics(url)) and m, "it is stored", 180)
        changed = {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}
        print(changed)
        assert before["launcher_phase:run"] == 1 and before["launcher_phase:prepare"] == 0
        assert {before[f"launcher_part_up:{part}"] for part in ("watcher", "collector", "supervisor")} == {1}
        assert before["launcher_checkpoints_captured_total"] == 0 and before["launcher_attempt"] == 1
        assert "launcher_last_stored_timestamp_seconds" not in before, "unknown is left out"
        assert after["launcher_checkpoints_captured_total"] == 1
        written = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
        assert after["launcher_step_seen"] == after["launcher_step_stored"] == 7
        assert after["launcher_upload_bytes_total"] == written and after["launcher_upload_seconds_total"] > 0
        assert abs(after["launcher_last_stored_timestamp_seconds"] - time.time()) < 300
        assert after["process_resident_memory_bytes"] > 0
        page = get(f"{url}/metrics")[1]
        assert "watched" not in page and str(tmp_path) not in page, "no label has a value without bound"
        said = json.loads(eventually(lambda: heartbeat.exists() and heartbeat.read_text(), "the heartbeat"))
        assert said["phase"] in ("prepare", "run") and said["pid"] == process.pid
        first = heartbeat.stat().st_mtime_ns
        eventually(lambda: heartbeat.stat().st_mtime_ns > first, "it beats")
        assert get(f"{url}/nothing")[0] == 404
    said = json.loads(heartbeat.read_text())
    assert (said["phase"], said["step_stored"], said["pending_bytes"]) == ("ended", 7, 0)


def test_a_stop_and_its_deadline_are_seen(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env["FIRST"] = "trap : TERM"  # It does not end by the stop, so that somebody can look at it.
    with running(launcher, tmp_path, "--grace", "500s") as (process, url):
        assert metrics(url)["launcher_stop_requested"] == 0
        process.send_signal(signal.SIGTERM)
        found = eventually(lambda: (m := metrics(url))["launcher_stop_requested"] == 1 and m, "the stop is seen", 180)
        found = eventually(lambda: "launcher_stop_deadline_timestamp_seconds" in (m := metrics(url)) and m, "deadline")
        assert 0 < found["launcher_stop_deadline_timestamp_seconds"] - time.time() <= 500


def test_a_hung_uploader_shows_and_so_does_its_recovery(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env["LAUNCHER_STORE_TIMEOUT"] = "1s"
    heartbeat = tmp_path / "heartbeat.json"
    with running(launcher, tmp_path, "--heartbeat", heartbeat) as (process, url):
        pid = uploader(process)
        os.kill(pid, signal.SIGSTOP)
        assert get(f"{url}/healthz")[0] == 200, "an uploader that has nothing to do is not ill"
        (tmp_path / "save").touch()
        _, text = eventually(lambda: (page := get(f"{url}/healthz"))[0] == 503 and page, "it is seen", 180)
        print(text)
        assert f"the uploader (process {pid}) has done nothing for" in text
        assert get(f"{url}/readyz")[0] == 503
        found = metrics(url)
        assert found["launcher_part_up:collector"] == 0 and found["launcher_part_up:watcher"] == 1
        assert found["launcher_checkpoints_pending"] == 1 and found["launcher_checkpoints_pending_bytes"] > 0
        written = heartbeat.stat().st_mtime_ns
        time.sleep(2.5)
        assert heartbeat.stat().st_mtime_ns == written, "nothing beats while it is not well"
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: get(f"{url}/healthz")[0] == 200, "it is well again", 180)
        eventually(lambda: stored(metrics(url)), "it is stored", 180)
    events = [json.loads(line)["kind"] for line in (launcher.job("watched") / "events.jsonl").read_text().splitlines()]
    # (More than once on a machine so busy that for five seconds the uploader, which is nice, does not get a hundredth of one.)
    assert events.count("health-lost") == events.count("health-back") >= 1


def test_what_was_fetched_counts_and_what_the_cache_had_does_not(launcher: Launcher, tmp_path: Path) -> None:
    save_trainer(tmp_path / "base", 1, 7)
    launcher("checkpoint", "push", "base", "--file", tmp_path / "base")
    total = sum(path.stat().st_size for path in (tmp_path / "base").iterdir())
    for expected in (total, 0):
        with running(launcher, tmp_path, "-C", "base") as (_, url):
            assert metrics(url)["launcher_download_bytes_total"] == expected
        for each in ("save", "end"):
            (tmp_path / each).unlink()


def test_a_sidecar_is_seen_as_well(launcher: Launcher, tmp_path: Path) -> None:
    save_trainer(tmp_path / "model", 1, 7)
    output = tmp_path / "output"
    output.mkdir()
    words = ("--name", "side", "--until-file", tmp_path / "over", "--health-port", "127.0.0.1:0", "--settle", "0.2s")
    process = launcher.start("collect", "--watch", output, *words)
    try:
        assert process.stdout
        line = next(line for line in process.stdout if "Health at" in line)
        url = line.split("Health at ")[1].split("/healthz")[0]
        eventually(lambda: get(f"{url}/readyz") == (200, "ok\n"), "it watches", 180)
        subprocess.run(["cp", "-r", tmp_path / "model", output / "checkpoint-7"], check=True)
        found = eventually(lambda: stored(m := metrics(url)) and m, "it is stored", 180)
        assert found["launcher_step_stored"] == 7 and found["launcher_phase:run"] == 1
        (tmp_path / "over").write_text("0")
        process.communicate(timeout=120)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_it_takes_one_thread_and_nothing_where_nobody_asked(launcher: Launcher, tmp_path: Path) -> None:
    with running(launcher, tmp_path) as (process, _):
        task = Path(f"/proc/{process.pid}/task")
        uploader(process)
        names = sorted((path / "comm").read_text().strip() for path in task.iterdir())
        with_it = len(names)
    for each in ("save", "end"):
        (tmp_path / each).unlink()
    process = launcher.start("training", "run", "plain", "--", "sh", "-c", JOB)
    try:
        uploader(process)
        without = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        sockets = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    finally:
        (tmp_path / "save").touch()
        (tmp_path / "end").touch()
        process.communicate(timeout=60)
    print(f"threads with probes: {with_it}, without: {without}")
    assert with_it - without == 1
    assert not [each for each in sockets if each.startswith("socket:")]


def test_clients_that_say_nothing_keep_nobody_from_an_answer(launcher: Launcher, tmp_path: Path) -> None:
    with running(launcher, tmp_path) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(100)]
        idle[1].sendall(b"GET /healthz HTT")
        idle[2].sendall(b"\x16\x03\x01\x02\x00\r\n\r\n")
        idle[3].sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert get(f"{url}/healthz") == (200, "ok\n")
        for each in idle:
            each.close()
        assert get(f"{url}/healthz") == (200, "ok\n")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200") and b"openmetrics-text" in answer and answer.endswith(b"\r\n\r\n")


def test_a_port_that_cannot_be_had_is_said_before_the_job(launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        output = launcher("training", "run", "j", "--health-port", port, "--", "sh", "-c", "echo started", code=73)
        assert f"127.0.0.1:{port} cannot be listened on" in output and "started\n" not in output
    output = launcher("training", "run", "j", "--health-port", "here", "--", "true", code=64)
    assert "'here' is no address" in output


def test_a_heartbeat_that_cannot_be_written_is_a_warning(launcher: Launcher, tmp_path: Path) -> None:
    output = launcher("training", "run", "j", "--heartbeat", tmp_path / "no" / "file", "--", "echo", "it ran")
    assert "it ran" in output and output.count("heartbeat file") == 1


@pytest.mark.parametrize(
    ("text", "runner", "address"),
    [
        ("9400", "process", ("127.0.0.1", 9400)),
        ("9400", "entrypoint", ("0.0.0.0", 9400)),
        ("10.0.0.1:80", "process", ("10.0.0.1", 80)),
        ("[::]:9400", "entrypoint", ("::", 9400)),
        ("0", "sidecar", ("0.0.0.0", 0)),
        ("", "entrypoint", None),
    ],
)
def test_who_may_ask(text: str, runner: str, address: tuple[str, int] | None) -> None:
    assert JobSpec(name="j", health_port=text, runner=runner).health_address() == address  # type: ignore[arg-type]


def test_every_part_that_is_gone_is_named(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "output")
    (tmp_path / "spool").mkdir()
    collector = Collector(
        Uploader(Task(settings=Settings(), job="j"), log=tmp_path / "log"),
        Spool(tmp_path / "spool"),
        emit=watching.events.append,
        on_changed=lambda path: None,
        on_committed=lambda stored: None,
    )
    reader, writer = os.pipe()
    health = Health(Signals(reader), patience=5)
    assert health.trouble == "" and "phase prepare" in health.ready
    health.watch(watching.watcher, collector)
    assert health.trouble == "" and health.ready == ""
    health._signals.taken -= 64
    assert health.trouble == ""
    health._signals.taken -= 2
    assert "the supervisor has not looked at the job for 1 min" in health.trouble
    health._signals.taken = time.monotonic()
    watching.watcher.beat -= 1000
    assert "the watcher has not looked" in health.trouble
    watching.finish()
    assert "the watcher has ended" in health.trouble
    health.phase = "collect"
    assert health.trouble == ""
    collector.drain(60)
    assert health.trouble == ""
    for fd in (reader, writer):
        os.close(fd)


def test_a_page_that_fails_is_the_clients_answer_and_no_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    events: list[str] = []
    health = Health(Signals(reader), patience=5, emit=lambda event: events.append(event.facts.get("url", "")))
    with Probes(health, ("127.0.0.1", 0), ""):
        health.phase = "gone"  # type: ignore[assignment]
        health.record = "no record"  # type: ignore[assignment]
        assert get(f"{events[0]}/metrics")[0] == 500
        assert get(f"{events[0]}/healthz")[0] == 200
    for fd in (reader, writer):
        os.close(fd)
