"""A push by hand that was cut off goes on: what the store has is not sent again, and nothing that is committed is touched."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.transfer.digest import BLOCK
from launcher.transfer.places import open_place
from tests.contract.test_uploads import arrived
from tests.support.cli import PROGRAM, Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server
from tests.support.watching import eventually

SMALL = {f"part/{number}.bin": os.urandom(20_000) for number in range(6)}


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def far(launcher: Launcher, s3_server: S3Server, proxy: FaultProxy) -> Launcher:
    """The command line with its store behind the proxy."""
    url = f"s3://{s3_server.new_bucket()}/p"
    launcher.env |= s3_server.env() | {"AWS_ENDPOINT_URL": proxy.endpoint, "LAUNCHER_STORE": url}
    return launcher


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for path, data in SMALL.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


def journals(launcher: Launcher) -> list[Path]:
    return sorted((launcher.home / "data" / "pushes").glob("*"))


def sent(proxy: FaultProxy) -> list[str]:
    """The files' keys, below the checkpoint's id, of the requests that brought them since the rules were cleared."""
    targets = [target for method, target in proxy.passed if method == "PUT" and "/checkpoints/" in target]
    return [target.split("/checkpoints/")[1].partition("/")[2] for target in targets]


def test_after_a_kill_only_what_is_missing_is_sent(
    far: Launcher, proxy: FaultProxy, model: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    (model / "large.bin").write_bytes(os.urandom(2 * BLOCK + 7))
    stuck = proxy.script("PUT", "partNumber=2&", "no-answer:600*")
    process = far.start("checkpoint", "push", "base", "--file", model)
    try:
        stuck.wait(1, deadline=120)
        eventually(
            lambda: [each.read_bytes().count(b"\n") for each in journals(far)] == [1 + len(SMALL)], "the small ones"
        )
        place = open_place(far.env["LAUNCHER_STORE"], timeout=60, environ=os.environ)
        eventually(lambda: sorted(arrived(place)) == [1, 3], "its other parts")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    proxy.rules.clear()
    proxy.passed.clear()
    output = far("checkpoint", "push", "base", "--file", model)
    print(f"sent again: {sent(proxy)} of {len(SMALL)} small files and 3 parts")
    assert f"Going on with a push that was cut off: {len(SMALL)} of {len(SMALL) + 1} files are in the store" in output
    assert [each.partition("&")[0] for each in sent(proxy)] == ["large.bin?partNumber=2"]
    assert "Pushed base@v1" in output and journals(far) == []
    far("checkpoint", "verify", "base", "--read-data")
    eventually(
        lambda: far("checkpoint", "gc", "--older", "0s") == "Nothing is left over.\n", "nothing is, also not too young"
    )


def test_what_was_changed_is_sent_again_and_what_is_gone_is_removed(
    far: Launcher, proxy: FaultProxy, model: Path
) -> None:
    (model / "z.bin").write_bytes(b"z" * 1000)
    proxy.script("PUT", r"z\.bin", "403*")
    far("checkpoint", "push", "base", "--file", model, code=77)
    proxy.rules.clear()
    proxy.passed.clear()
    (model / "part/1.bin").write_bytes(b"other")
    (model / "part/2.bin").unlink()
    os.utime(model / "part/3.bin")
    far("checkpoint", "push", "base", "--file", model)
    assert sorted(sent(proxy)) == ["part/1.bin", "part/3.bin", "z.bin"]
    far("checkpoint", "verify", "base", "--read-data")
    found = far.json("checkpoint", "inspect", "base")
    stored = {each["path"] for each in found["status"]["files"]}
    assert "part/2.bin" not in stored and len(stored) == len(SMALL)
    assert "part/2.bin" not in far("checkpoint", "check")


def test_what_gc_took_for_dead_is_pushed_under_another_id(far: Launcher, proxy: FaultProxy, model: Path) -> None:
    (model / "z.bin").write_bytes(b"z" * 1000)
    proxy.script("PUT", r"z\.bin", "403*")
    far("checkpoint", "push", "base", "--file", model, code=77)
    proxy.rules.clear()
    proxy.passed.clear()
    before = json.loads(journals(far)[0].read_bytes().split(b"\n")[0])["id"]
    eventually(lambda: before in far("checkpoint", "gc", "--older", "0s"), "it is older than a second")
    output = far("checkpoint", "push", "base", "--file", model)
    assert "Going on" not in output and len(sent(proxy)) == len(SMALL) + 1
    assert far.json("checkpoint", "inspect", "base")["metadata"]["id"] != before
    far("checkpoint", "verify", "base", "--read-data")


def test_a_journal_that_outlived_its_commit_touches_nothing(launcher: Launcher, model: Path) -> None:
    """Killed between the commit and the end of the journal (at its unlink): the same again is the same version, and another
    state a new one."""
    push = ("checkpoint", "push", "base", "--file", str(model))
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=unlink,unlinkat", "-e"]
    trace += ["inject=unlink,unlinkat:signal=KILL:when=1", "-P"]
    launcher(*push)  # To know the journal's name, which is the same for the same push.
    name = _name_of_journal(launcher, push)
    (model / "part/0.bin").write_bytes(b"second")
    killed = subprocess.run([*trace, str(name), PROGRAM, *push], env=launcher.env, capture_output=True, timeout=120)
    assert killed.returncode in (137, -9) and journals(launcher) == [name]
    assert [each["metadata"]["version"] for each in launcher.json("checkpoint", "list")] == [1, 2]
    assert "Unchanged" in launcher(*push) and journals(launcher) == []
    (model / "part/0.bin").write_bytes(b"third")
    subprocess.run([*trace, str(name), PROGRAM, *push], env=launcher.env, capture_output=True, timeout=120)
    (model / "part/0.bin").write_bytes(b"fourth")
    assert "Pushed base@v4" in launcher(*push)
    launcher("checkpoint", "check", "--read-data")


def _name_of_journal(launcher: Launcher, push: tuple[str, ...]) -> Path:
    """Seen while a push is held at its first file."""
    folder = launcher.home / "data" / "pushes"
    trace = ["strace", "-f", "-qq", "-e", "trace=openat", PROGRAM, *push]
    done = subprocess.run(trace, env=launcher.env, capture_output=True, text=True, timeout=120)
    names = {line.split('"')[1] for line in done.stderr.splitlines() if f'"{folder}/' in line}
    assert len(names) == 1
    return Path(names.pop())


def test_while_another_process_pushes_the_same_this_one_goes_alone(launcher: Launcher, model: Path) -> None:
    push = ("checkpoint", "push", "base", "--file", str(model))
    name = _name_of_journal(launcher, push)
    name.write_bytes(b"another's")
    with open(name, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (model / "part/0.bin").write_bytes(b"second")
        assert "Pushed base@v2" in launcher(*push)
    assert name.read_bytes() == b"another's"
    (model / "part/0.bin").write_bytes(b"third")
    assert "Pushed base@v3" in launcher(*push), "what is damaged is not used"
    assert journals(launcher) == []
    launcher.env["LAUNCHER_STORE"] = str(model.parent / "store")
    (launcher.home / "data" / "pushes").rmdir()
    (launcher.home / "data" / "pushes").write_text("no folder")
    assert "Pushed base@v1" in launcher(*push), "nor is a journal needed"
