"""What was captured is stored beside the job: by a process that yields to it, is replaced when it dies, sends nothing twice,
keeps within its bandwidth and its spool, and never outlives the launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import kills
from tests.support.cli import ROOT, Launcher
from tests.support.s3_server import S3Server

# Folders of one safetensors file, without torch: `save(name, bytes)`. `wait_for(path)`: until the test says go on.
JOB = """
import json, os, struct, time
out = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]
def save(name, **files):
    os.makedirs(f"{out}/{name}", exist_ok=True)
    for stem, data in files.items():
        header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
        with open(f"{out}/{name}/{stem}.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header + data)
    print("saved", name, flush=True)
def wait_for(path):
    end = time.monotonic() + 120
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.02)
"""


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, launcher: Launcher) -> Launcher:
    """A launcher with a store in a folder, and one with a store on a real S3 server."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        launcher.env |= server.env() | {"LAUNCHER_STORE": f"s3://{server.new_bucket()}/store"}
    return launcher


def words(name: str, script: str, *flags: str) -> list[str]:
    return ["training", "run", name, "--settle", "0.1s", "--launch", "exec", *flags, "--", "python", "-c", JOB + script]


def eventually(what: Callable[[], Any], seconds: float = 90) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def events(launcher: Launcher, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (launcher.job(name) / "events.jsonl").read_text().splitlines()]


def names(launcher: Launcher, name: str) -> list[str]:
    if not (launcher.home / "data/jobs" / name).is_dir():
        return []
    return [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", name)]


def test_the_uploader_yields_to_the_job_and_never_outlives_its_launcher(any_store: Launcher, tmp_path: Path) -> None:
    launcher = any_store
    process = launcher.start(*words("low", f"save('a', model=b'x' * 100000)\nwait_for({str(tmp_path / 'go')!r})"))
    try:
        (pid,) = eventually(lambda: kills.uploaders(process.pid))
        folder = Path(f"/proc/{pid}")
        eventually(lambda: names(launcher, "low"))
        nice = {int(task.read_text().rpartition(")")[2].split()[16]) for task in folder.glob("task/*/stat")}
        disk = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        memory = sum(_proportional(each) for each in (process.pid, pid))
        print(f"uploader: nice {nice}, disk {disk}; launcher and uploader together {memory:.0f} MB")
        assert nice == {19} and disk == "idle"
        assert memory <= 80
        assert b"AWS_" not in (folder / "cmdline").read_bytes() and b"s3://" not in (folder / "cmdline").read_bytes()
    finally:
        process.kill()
        process.communicate()
    eventually(lambda: not kills.lives(pid))


def _proportional(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0]) / 1000


def test_the_end_of_the_job_does_not_end_the_uploader(launcher: Launcher) -> None:
    """What the job leaves behind is ended, and the uploader, a child of the launcher too, is not of the job."""
    output = launcher(
        *words("end", "for n in range(3): save(f'c{n}', model=os.urandom(1000000))", "--bandwidth", "2MB/s")
    )
    assert "left processes behind" not in output
    assert names(launcher, "end") == ["end/c0", "end/c1", "end/c2"]
    assert "uploader-ended" not in {each["kind"] for each in events(launcher, "end")}


def test_an_uploader_that_is_killed_is_replaced_and_nothing_is_lost_or_doubled(any_store: Launcher) -> None:
    launcher = any_store
    script = "for n in range(4): save(f'c{n}', model=os.urandom(1500000)); time.sleep(0.3)"
    process = launcher.start(*words("replaced", script, "--bandwidth", "2MB/s"))
    killed: set[int] = set()
    while process.poll() is None and len(killed) < 3:
        for pid in set(kills.uploaders(process.pid)) - killed:
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    ended = [each for each in events(launcher, "replaced") if each["kind"] == "uploader-ended"]
    found = names(launcher, "replaced")
    print(f"{len(killed)} uploaders killed, {len(ended)} replaced, {len(found)} of 4 checkpoints stored")
    assert found == [f"replaced/c{n}" for n in range(4)]
    assert "SIGKILL" in ended[0]["text"]
    assert all(launcher.json("checkpoint", "verify", each, "--read-data")["whole"] for each in found)
    assert not any((launcher.job("replaced") / "spool").iterdir())


def test_an_uploader_that_always_fails_loses_nothing(launcher: Launcher, tmp_path: Path) -> None:
    """After a bounded number of starts the capture waits for `launcher recover`."""
    process = launcher.start(*words("fails", f"wait_for({str(tmp_path / 'go')!r})\nsave('a', model=b'x' * 30000000)",
                                    "--bandwidth", "1MB/s"))  # fmt: skip
    (tmp_path / "go").touch()
    while process.poll() is None:
        for pid in kills.uploaders(process.pid):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 74 and "launcher recover fails" in output, output
    starts = sum(each["kind"] == "uploader-ended" for each in events(launcher, "fails"))
    print(f"{starts} starts, then put aside")
    assert starts == 6  # Three, and three more at the end.
    assert "Stored 1 checkpoint" in launcher("recover", "fails")


def test_files_that_the_last_checkpoint_had_are_copied_inside_the_store(any_store: Launcher) -> None:
    launcher = any_store
    script = """frozen = os.urandom(12000000)
for n in range(3):
    save(f'c{n}', base=frozen, adapter=os.urandom(200000))
    time.sleep(0.5)
"""
    output = launcher(*words("frozen", script))
    attempt = launcher.json("training", "inspect", "frozen")["attempts"][0]
    sent, saved = attempt["bytes_sent"], attempt["bytes_saved"]
    print(f"3 checkpoints of 12.2 MB, 12 MB of them the same: {sent / 1e6:.1f} MB sent, {saved / 1e6:.1f} MB saved")
    assert saved > 2 * 12_000_000 and sent < 13_000_000
    assert "were in the store already" in output
    for name in ("frozen/c0", "frozen/c1", "frozen/c2"):
        assert launcher.json("checkpoint", "verify", name, "--read-data")["whole"]
    launcher("checkpoint", "delete", "frozen/c0", "--yes")  # What was copied from it has a life of its own.
    assert launcher.json("checkpoint", "verify", "frozen/c1", "--read-data")["whole"]


def test_the_bandwidth_is_kept(any_store: Launcher) -> None:
    output = any_store(
        *words("slow", "save('a', one=os.urandom(10000000), two=os.urandom(10000000))", "--bandwidth", "4MB/s")
    )
    (done,) = [each for each in events(any_store, "slow") if each["kind"] == "checkpoint-committed"]
    print(f"20 MB at 4 MB/s: {done['facts']['seconds']:.1f} s")
    assert done["facts"]["seconds"] >= 5.0, output


@pytest.mark.parametrize("policy", ["keep-all", "newest"])
def test_captures_that_pile_up_are_kept_or_dropped_by_name(launcher: Launcher, policy: str) -> None:
    """Six checkpoints of 200 kB, a store that takes 120 kB/s, room for 500 kB."""
    script = "for n in range(6): save(f'c{n}', model=os.urandom(200000)); time.sleep(0.3)"
    flags = ["--bandwidth", "120kB/s", "--spool", "500kB", "--when-full", policy]
    output = launcher(*words("piled", script, *flags))
    found = set(names(launcher, "piled"))
    record = launcher.json("training", "inspect", "piled")
    skipped = {each["name"]: each["reason"] for each in record["skipped"]}
    print(f"{policy}: {len(found)} stored, {len(skipped)} skipped by name")
    assert found | skipped.keys() == {f"piled/c{n}" for n in range(6)} and not found & skipped.keys()
    assert {"piled/c0", "piled/c5"} <= found  # What was being uploaded, and the newest.
    if policy == "keep-all":
        assert not skipped and "more than --spool allows" in output
    else:
        assert skipped and all("--when-full newest" in reason for reason in skipped.values())
        assert all(f"Not collected: {name}" in output for name in skipped)
    assert not any((launcher.job("piled") / "spool").iterdir())


def test_a_store_that_comes_back_gets_everything_in_order(launcher: Launcher, tmp_path: Path) -> None:
    """The root's own checkpoint, written again while the store was away, is the newest version afterwards."""
    launcher.env["LAUNCHER_STORE_TIMEOUT"] = "1s"
    store, aside = launcher.home / "data/store", launcher.home / "aside"
    back = tmp_path / "back"
    script = f"""
save('same', model=b'1' * 1000)
wait_for({str(tmp_path / "away")!r})
save('same', model=b'2' * 1000)
time.sleep(1)
save('same', model=b'3' * 1000)
save('other', model=b'4' * 1000)
wait_for({str(back)!r})
"""
    process = launcher.start(*words("order", script))
    eventually(lambda: names(launcher, "order"))
    store.rename(aside)
    store.write_text("in the way")
    (tmp_path / "away").touch()
    eventually(lambda: "checkpoint-pending" in {each["kind"] for each in events(launcher, "order")})
    store.unlink()
    aside.rename(store)
    back.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    newest = launcher.json("checkpoint", "inspect", "order/same")
    launcher("checkpoint", "fetch", "order/same", "--destination", tmp_path / "got")
    assert (tmp_path / "got" / "model.safetensors").read_bytes().endswith(b"3" * 1000), newest
    assert "order/other" in names(launcher, "order")


def test_the_next_start_finishes_what_a_killed_launcher_left_and_can_begin_with_it(launcher: Launcher) -> None:
    script = "for n in range(3): save(f'c{n}', model=os.urandom(1000000))\nprint('all', flush=True); time.sleep(60)"
    process = launcher.start(*words("again", script, "--bandwidth", "100KB/s"))
    assert process.stdout
    for line in process.stdout:
        if line.strip() == "all":
            break
    process.kill()
    process.communicate()
    assert not names(launcher, "again")
    output = launcher(
        *words("again", "print(os.listdir(os.environ['FLEXAI_INPUT_CHECKPOINT_DIR']))", "-C", "again/c2=model")
    )
    assert "was cut off: storing what it left" in output and "['model']" in output
    found = [each["metadata"]["name"] for each in launcher.json("training", "checkpoints", "again", "--all")]
    print(f"{len(found)} of 3 checkpoints of the killed launcher stored by the next start")
    assert found == ["again/c0", "again/c1", "again/c2"]
    assert "cut off" not in launcher(*words("again", "pass"))


@pytest.mark.parametrize("captured", [True, False])
def test_what_a_job_started_does_not_go_on_without_the_launcher(launcher: Launcher, captured: bool) -> None:
    """The kernel ends the job's own process, here a shell, with its launcher; what that started is ended by the uploader,
    or, where there was nothing to upload yet, by whoever recovers the job."""
    script = ("save('a', model=b'x' * 1000)" if captured else "print('saved a')") + "\ntime.sleep(600)"
    process = launcher.start(
        "training", "run", "orphan", "--settle", "0.1s", "--launch", "exec", "--",
        "sh", "-c", 'python -uc "$0"; true', JOB + script,
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.strip() == "saved a":
            break
    if captured:
        eventually(lambda: names(launcher, "orphan"))
    below = [pid for pid in kills.tree(process.pid) if pid not in kills.uploaders(process.pid)]
    process.kill()
    process.wait()
    if captured:
        eventually(lambda: not any(kills.lives(pid) for pid in below))
        assert "ended" not in launcher("recover", "orphan")
    else:
        eventually(lambda: sum(kills.lives(pid) for pid in below) == 1)
        assert "went on without its launcher: ended python" in launcher("recover", "orphan")
        eventually(lambda: not any(kills.lives(pid) for pid in below))
    process.communicate()


def test_what_the_terminal_sends_does_not_reach_the_uploader(launcher: Launcher) -> None:
    """Ctrl-C goes to every process of the terminal's group: the checkpoint is stored all the same."""
    script = "save('a', model=os.urandom(3000000))\ntime.sleep(60)"
    process = subprocess.Popen(
        [*_program(), *words("ctrl-c", script, "--bandwidth", "2MB/s")],
        env=launcher.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    eventually(lambda: kills.uploaders(process.pid))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (1, 130) and "Stored ctrl-c/a" in output, output


def _program() -> list[str]:
    from tests.support.cli import PROGRAM

    return [PROGRAM]


@pytest.mark.parametrize("store", ["local", "s3"])
def test_kill_9_loses_nothing(store: str, request: pytest.FixtureRequest) -> None:
    """A slice of tests/campaigns/kills.py."""
    if store == "s3":
        request.getfixturevalue("s3_server")  # Skips, or fails, where there is none.
    figures = kills.campaign(*((3, 2) if store == "local" else (1, 10)), store=store)
    print(figures.text())
    assert not figures.violations
