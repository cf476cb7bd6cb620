"""`--input-mode lazy`: the job starts before its input is there, reads exactly the pushed bytes, and leaves nothing mounted."""

from __future__ import annotations

import ctypes.util
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.checkpoint.manifest import File
from launcher.inputs.lazy_blocks import order
from launcher.transfer.digest import BLOCK
from tests.promises.test_input_read_only import USERS, public, python_for_everybody
from tests.promises.test_input_read_only import rig as rig_of
from tests.support.cli import Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server

__all__ = ["public"]
DEADLINE = 120.0
REQUIRE_ALL = os.environ.get("LAUNCHER_TEST_REQUIRE_ALL") == "1"


def can_mount() -> str:
    """Why no FUSE file system can be tried here; empty where one can."""
    if os.geteuid() != 0:
        return "only root may mount"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}: a matter of this kernel or container, not of a package"
    if (importlib.util.find_spec("mfusepy") and ctypes.util.find_library("fuse3")) or REQUIRE_ALL:
        return ""
    return "mfusepy (the extra `test`) or libfuse3 (tests/support/install) is missing"


pytestmark = pytest.mark.skipif(bool(can_mount()), reason=can_mount())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of two blocks each, and what lies around them."""
    folder = tmp_path_factory.mktemp("lazy") / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral"}) + "\n")
    (folder / "sub" / "empty").write_text("")
    (folder / "sub" / "data.txt").write_text("data")
    random = np.random.default_rng(1)
    for shard in range(2):
        save_file({f"w{shard}": random.integers(0, 256, 24 << 20, np.uint8)}, folder / f"model-{shard}.safetensors")
    return folder


@pytest.fixture(scope="module")
def pushed(s3_server: S3Server, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a store that has the model as `base`."""
    env = s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p"}
    launcher = Launcher(tmp_path_factory.mktemp("push"), **env)
    launcher("checkpoint", "push", "base", "--force", "--file", model)
    return env


class Rig:
    """A launcher of a test's own, whose requests pass a proxy."""

    def __init__(self, folder: Path, env: dict[str, str], proxy: FaultProxy) -> None:
        self.launcher = Launcher(folder / "home", **env | {"AWS_ENDPOINT_URL": proxy.endpoint})
        self.proxy = proxy
        self.jobs: list[Job] = []

    def words(self, name: str, script: str, *more: str) -> list[str]:
        return ["training", "run", name, "-C", "base", "--input-mode", "lazy", *more, "--", "sh", "-c", script]

    def run(self, name: str, script: str, *more: str, code: int = 0) -> str:
        return self.launcher(*self.words(name, script, *more), code=code, timeout=DEADLINE)

    def start(self, name: str, script: str) -> Job:
        self.jobs.append(Job(self.launcher.start(*self.words(name, script))))
        return self.jobs[-1]

    def data_requests(self) -> int:
        """Requests for files of the checkpoint that no rule met."""
        return sum(method == "GET" and "/checkpoints/" in target for method, target in self.proxy.passed)


class Job:
    """A launcher that runs, and what it has printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line

    def until(self, text: str) -> None:
        """Waits for the job's own line `text`, or one of the launcher's with it (but not for the command itself)."""

        def came() -> bool:
            own = (line for line in self.output.splitlines() if " runs: " not in line)
            return any(line == text or (line.startswith("launcher") and text in line) for line in own)

        eventually(lambda: came() or self.process.poll() is not None, lambda: self.output)
        self._reader.join(0 if self.process.poll() is None else 10)
        assert came(), self.output

    def end(self) -> int:
        code = self.process.wait(DEADLINE)
        self._reader.join(10)
        return code

    def servers(self) -> list[int]:
        """The processes that serve its input."""
        return processes(lambda pid, line: "lazy_serving" in line and parent(pid) == self.process.pid)


def eventually(condition: Callable[[], bool], explain: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


def processes(takes: Callable[[int, str], bool]) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if takes(int(entry), Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()):
                    found.append(int(entry))
            except OSError:
                pass
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def rig(tmp_path: Path, pushed: dict[str, str]) -> Iterator[Rig]:
    with FaultProxy(pushed["AWS_ENDPOINT_URL"]) as proxy:
        it = Rig(tmp_path, pushed, proxy)
        yield it
        for job in it.jobs:  # Of a test that failed.
            if job.process.poll() is None:
                job.process.terminate()
                job.end()
    mounts = Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in mounts, "a mount is left"


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


READ = """
import hashlib, json, mmap, os, pathlib, sys
from safetensors import safe_open
root = pathlib.Path(os.environ["LAUNCHER_INPUT_CHECKPOINT"])
for path in (root / "new", root / "config.json"):
    try:
        open(path, "w")
    except OSError as error:
        print("write:", error.strerror)
with safe_open(root / "model-1.safetensors", "np") as file:
    print("tensor:", hashlib.sha256(file.get_tensor("w1").tobytes()).hexdigest())
with open(root / "model-0.safetensors", "rb") as file:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        view.madvise(mmap.MADV_RANDOM)
        print("last:", view[-1])
found = {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}
print("sums:", json.dumps(found))
print("open:", sorted(os.listdir("/proc/self/fd")))
"""


def test_the_job_reads_the_pushed_bytes_and_the_next_one_finds_them_in_the_cache(rig: Rig, model: Path) -> None:
    program = rig.launcher.home.parent / "read.py"
    program.write_text(READ)
    said = rig.run("first", f"{sys.executable} {program}")
    lines = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line and "launcher" not in line)
    assert json.loads(lines["sums"]) == sums(model)
    tensor = np.random.default_rng(1)
    tensor.integers(0, 256, 24 << 20, np.uint8)
    assert lines["tensor"] == hashlib.sha256(tensor.integers(0, 256, 24 << 20, np.uint8).tobytes()).hexdigest()
    assert int(lines["last"]) == (model / "model-0.safetensors").read_bytes()[-1]
    assert said.count("write: Read-only file system") == 2, said
    assert lines["open"] == "['0', '1', '2', '3']"  # 3 is the folder that is listed
    assert "arrives while it is read" in said and "read-only by: bind" in said
    fetched = rig.data_requests()
    again = rig.run("second", "cat $LAUNCHER_INPUT_CHECKPOINT/*.safetensors | wc -c")
    whole = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert str(whole) in again.split() and "arrives" not in again
    assert "whole" in rig.launcher("cache", "verify")
    print(f"{len(sums(model))} files the same, {fetched} requests; the second job: {rig.data_requests() - fetched}")
    assert rig.data_requests() == fetched


def test_the_job_works_before_its_input_is_there_and_a_second_job_joins_the_download(rig: Rig, model: Path) -> None:
    """The store has no answer for the second shard, until both jobs have said what they have seen."""
    refused = rig.proxy.on("GET", r"model-1", "503*")
    go = rig.launcher.home.parent / "go"
    read = "cd $LAUNCHER_INPUT_CHECKPOINT; ls | wc -l; cat config.json model-0.safetensors | wc -c; echo working; "
    first = rig.start("first", f"{read} while ! test -e {go}; do sleep 0.1; done; sha256sum model-1.safetensors")
    first.until("working")
    assert str((model / "model-0.safetensors").stat().st_size + (model / "config.json").stat().st_size) in first.output
    assert "all of it is here" not in first.output
    entries = rig.launcher.home / "cache" / "checkpoints"
    assert not list(entries.iterdir())
    second = rig.start("second", "sha256sum $LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors")
    second.until("Another launcher is downloading")
    print(f"at work while {refused.requests} requests for the second shard were refused")
    rig.proxy.rules.clear()
    go.touch()
    digest = sums(model)["model-1.safetensors"]
    for job in (second, first):
        assert job.end() == 0, job.output
        assert digest in job.output
    assert len(list(entries.iterdir())) == 1
    assert rig.launcher.job("second") and "arrives" not in second.output


def test_what_arrived_is_kept_when_the_job_ends_first(rig: Rig, model: Path) -> None:
    rig.proxy.on("GET", r"model-1", "503*")
    rig.run("first", "cat $LAUNCHER_INPUT_CHECKPOINT/model-0.safetensors > /dev/null")
    rig.proxy.rules.clear()
    rig.proxy.passed.clear()
    rig.run("second", "cat $LAUNCHER_INPUT_CHECKPOINT/*.safetensors > /dev/null", "--input-mode", "eager")
    print(f"the next job made {rig.data_requests()} requests for the 4 blocks and 3 small files")
    assert 2 <= rig.data_requests() <= 2 + 3  # the second shard, and at most the small files once more


def test_readers_that_wait_hold_up_nobody_else(rig: Rig, model: Path) -> None:
    """More of them than the kernel leaves requests in flight where nobody asks for more (12)."""
    rig.proxy.on("GET", r"model-1", "503*")
    many = "for mib in $(seq 0 23); do dd if=model-1.safetensors bs=1M count=1 skip=$mib of=/dev/null & done"
    said = rig.run("j", f"cd $LAUNCHER_INPUT_CHECKPOINT; {many}; sleep 1; sha256sum model-0.safetensors")
    assert sums(model)["model-0.safetensors"] in said


COMPARE = """
import mmap, os, random, sys
root, model, wrong = os.environ["LAUNCHER_INPUT_CHECKPOINT"], sys.argv[1], 0

for seed in range(8):
    if not os.fork():
        choose = random.Random(seed)
        for _ in range(100):
            name = f"model-{choose.randrange(2)}.safetensors"
            with open(f"{root}/{name}", "rb") as ours, open(f"{model}/{name}", "rb") as source:
                size = os.fstat(source.fileno()).st_size
                start = choose.randrange(size)
                length = min(choose.randrange(1 << choose.randrange(8, 21)) + 1, size - start)
                if seed % 2:
                    with mmap.mmap(ours.fileno(), 0, prot=mmap.PROT_READ) as view:
                        found = view[start:start + length]
                else:
                    found = os.pread(ours.fileno(), length, start)
                wrong += found != os.pread(source.fileno(), length, start)
        os._exit(min(wrong, 255))
print("wrong:", sum(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)))
"""


def test_many_readers_through_a_bad_network_get_the_right_bytes(rig: Rig, model: Path) -> None:
    faults = "cut-body@30% flip@1000 503 short-with-full-length@50% flip@70% wrong-range stall@50%:1 200-for-206"
    met = rig.proxy.on("GET", r"model-", faults)
    program = rig.launcher.home.parent / "compare.py"
    program.write_text(COMPARE)
    said = rig.run("j", f"{sys.executable} {program} {model}")
    print(f"8 readers, 800 reads, {len(met.script)} of {len(faults.split())} faults left: {said.count('wrong: 0')}")
    assert "wrong: 0" in said.splitlines() and not met.script, said


def test_another_attempt_reads_the_same_input(rig: Rig, model: Path) -> None:
    script = "sha256sum $LAUNCHER_INPUT_CHECKPOINT/model-$((2 - LAUNCHER_ATTEMPT)).safetensors; exit $((2 - LAUNCHER_ATTEMPT))"
    said = rig.run("j", script, "--max-restarts", "1", "--retry-on", "1")
    assert all(digest in said for path, digest in sums(model).items() if path.startswith("model")), said
    attempts = json.loads((rig.launcher.job("j") / "record.json").read_text())["attempts"]
    assert [each["inputs"][0]["lazy"] for each in attempts] == [True, True]


def test_wrong_bytes_are_never_served(rig: Rig, model: Path) -> None:
    """One byte of the second shard is wrong at every attempt."""
    rig.proxy.on("GET", r"model-1", "flip@1000*")
    said = rig.run(
        "first", "cd $LAUNCHER_INPUT_CHECKPOINT; sha256sum model-0.safetensors; cat model-1.safetensors > /dev/null",
        code=1,
    )  # fmt: skip
    assert sums(model)["model-0.safetensors"] in said
    assert "model-1.safetensors: Input/output error" in said
    assert "Input base could not be read whole: model-1.safetensors" in said and "BLAKE3" in said
    (attempt,) = json.loads((rig.launcher.job("first") / "record.json").read_text())["attempts"]
    assert "BLAKE3" in attempt["inputs"][0]["problem"]
    assert not list((rig.launcher.home / "cache" / "checkpoints").iterdir())
    rig.proxy.rules.clear()
    said = rig.run("second", "sha256sum $LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors")
    assert sums(model)["model-1.safetensors"] in said


def test_a_store_that_fails_is_tried_again_before_a_read_fails(rig: Rig, model: Path) -> None:
    rig.proxy.on("GET", r"model-1", "503*2 cut-body@30% short-with-full-length@50% ok")
    said = rig.run("first", "sha256sum $LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors")
    assert sums(model)["model-1.safetensors"] in said
    rig.launcher.env |= {"LAUNCHER_STORE_TIMEOUT": "1s", "LAUNCHER_CACHE_DIR": str(rig.launcher.home / "other")}
    rig.proxy.script("GET", r"model-1", "503*")
    said = rig.run("second", "cat $LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors", code=1)
    assert "Input/output error" in said and "Input base could not be read whole: model-1.safetensors: " in said
    assert "503" in said


@pytest.mark.parametrize("how", ["read", "mmap"])
def test_a_job_that_waits_for_the_store_can_be_stopped(rig: Rig, how: str) -> None:
    rig.proxy.on("GET", r"model-1", "503*")
    path = "$LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors"
    program = rig.launcher.home.parent / "map.py"
    program.write_text(
        "import mmap, sys\nfile = open(sys.argv[1], 'rb')\nview = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "view.madvise(mmap.MADV_RANDOM)\nprint('waits', flush=True)\nview[20 << 20]"
    )
    rig.launcher.env |= {"LAUNCHER_STORE_TIMEOUT": "600s", "LAUNCHER_GRACE": "1s"}
    job = rig.start("j", f"exec {sys.executable} {program} {path}" if how == "mmap" else f"echo waits; exec cat {path}")
    job.until("waits")
    (server,) = job.servers()
    time.sleep(0.3)
    job.process.send_signal(signal.SIGTERM)
    assert job.end() in (143, 137), job.output
    assert not alive(server)


def test_a_killed_server_fails_the_reads_and_is_reported(rig: Rig) -> None:
    rig.proxy.on("GET", r"model-1", "503*")
    job = rig.start(
        "j", "cd $LAUNCHER_INPUT_CHECKPOINT; cat config.json; echo waits; cat model-1.safetensors >/dev/null"
    )
    job.until("waits")
    (server,) = job.servers()
    os.kill(server, signal.SIGKILL)
    assert job.end() == 1, job.output
    assert "the server of the lazy input ended before the job" in job.output
    assert "Input base could not be read" in job.output


@pytest.mark.parametrize("script", ["cat $LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors", "exec sleep 600"])
def test_a_killed_launcher_leaves_no_mount_and_no_process(rig: Rig, model: Path, script: str) -> None:
    rig.proxy.on("GET", r"model-1", "503*")
    job = rig.start("j", f"cat $LAUNCHER_INPUT_CHECKPOINT/config.json; echo started; {script}")
    job.until("started")
    (server,) = job.servers()
    tree = [server, *processes(lambda pid, line: parent(pid) == job.process.pid)]
    job.process.kill()
    job.end()
    eventually(lambda: not any(map(alive, tree)), lambda: [pid for pid in tree if alive(pid)])
    print(f"launcher killed: server and {len(set(tree)) - 1} other children gone, nothing mounted")
    assert str(rig.launcher.home) not in Path("/proc/self/mounts").read_text()
    rig.proxy.rules.clear()
    assert sums(model)["model-1.safetensors"] in rig.run(
        "j", "sha256sum $LAUNCHER_INPUT_CHECKPOINT/model-1.safetensors"
    )


def test_no_attack_changes_a_lazy_input(public: Path, s3_server: S3Server) -> None:
    """The table of attacks that every rung meets."""
    it = rig_of(public, "root")
    it.launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/p"}
    assert it.run("checkpoint", "push", "base", "--file", str(it.model)).returncode == 0
    it.launcher.env["LAUNCHER_INPUT_MODE"] = "lazy"
    done, results = it.attack("bind")
    print(f"{len(results)} attacks: {json.dumps(results)}")
    assert [name for name, result in results.items() if result == "done"] == []
    assert done.returncode == 0 and "arrives while it is read" in done.stderr, done.stderr
    expected = {str(path.relative_to(it.model)): path.read_bytes() for path in it.model.rglob("*") if path.is_file()}
    assert it.cached() == expected


def test_what_lazy_cannot_do_is_said_before_anything_is_fetched(rig: Rig, model: Path) -> None:
    assert "exclude each other" in rig.run("a", "true", "--input-writable", code=64)
    assert "not for a container" in rig.run("a", "true", "--runner", "docker", "--image", "x", code=64)
    rig.launcher.env["LAUNCHER_INPUT_GUARD"] = "landlock"
    assert "here only landlock holds" in rig.run("a", "true", code=73)
    rig.launcher.env["LAUNCHER_INPUT_GUARD"] = "auto"
    assert rig.data_requests() == 0
    words = ["training", "run", "b", "--input-mode", "lazy", "--include", "config.json", "-C", f"{model}=m"]
    assert "fetched whole before the job" in rig.launcher(*words, "--", "true")


def test_an_ordinary_user_needs_no_setuid_program(public: Path, pushed: dict[str, str], model: Path) -> None:
    """As on most machines, everybody may open /dev/fuse here, in a mount namespace of the test's own."""
    launcher = Launcher(public / "home", **pushed)
    os.mknod(public / "fuse", 0o20666, os.makedev(10, 229))
    (public / "fuse").chmod(0o666)
    script = f'mount --make-rprivate / && mount --bind {public}/fuse /dev/fuse && exec "$@"'
    launcher.env["LAUNCHER_INPUT_GUARD"] = "userns"
    look = "id -u; sha256sum model-0.safetensors; touch new; chmod u+w config.json; grep -c launcher.*fuse /proc/mounts"
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", script, "sh", *USERS["an ordinary user"], python_for_everybody(launcher)),
            *("-m", "launcher", "training", "run", "j", "-C", "base", "--input-mode", "lazy", "--launch", "exec", "--"),
            *("sh", "-c", f"cd $LAUNCHER_INPUT_CHECKPOINT; {look}"),
        ],
        env=launcher.env, cwd="/", capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[0] == "65534" and sums(model)["model-0.safetensors"] in done.stdout
    assert done.stdout.split()[-1] == "1" and done.stderr.count("Read-only file system") == 2, done.stderr
    assert "read-only by: userns" in done.stderr


def test_small_files_and_headers_come_first_and_the_optimizer_last() -> None:
    def file(path: str, blocks: float) -> File:
        return File(path, int(blocks * BLOCK), "")

    files = [
        file("optimizer.pt", 2), file("model-2.safetensors", 2), file("model-1.safetensors", 2), file("config.json", 0.1),
        file("pytorch_model.bin", 2.5), file("tokenizer.json", 0.5), file("empty", 0),
    ]  # fmt: skip
    assert order(files) == [
        ("empty", 0), ("config.json", 0), ("tokenizer.json", 0),
        ("model-1.safetensors", 0), ("model-2.safetensors", 0), ("pytorch_model.bin", 2),
        ("model-1.safetensors", 1), ("model-2.safetensors", 1), ("pytorch_model.bin", 0), ("pytorch_model.bin", 1),
        ("optimizer.pt", 0), ("optimizer.pt", 1),
    ]  # fmt: skip
