"""A job's secrets: where they come from, how the job gets them, and that they are found nowhere else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import secrets as random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import storages
from launcher.storages import Storage
from tests.promises.test_storages import keep
from tests.support.cli import PROGRAM, Launcher

RANK = """
import base64, json, os, pathlib, subprocess, sys, time, urllib.parse
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    token = os.environ["TOKEN"]
    output = pathlib.Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
    (output / "wandb-metadata.json").write_text(json.dumps({"args": sys.argv, "os": sys.platform}))
    print("plain", token, flush=True)
    print("basic", base64.b64encode(f"user:{token}".encode()).decode(), urllib.parse.quote(token), file=sys.stderr)
    print(pathlib.Path(os.environ["KEY_FILE"]).read_text())
    sys.stdout.write(token[:9]); sys.stdout.flush(); time.sleep(0.02); print(token[9:], repr({"t": token}), flush=True)
    subprocess.run(["bash", "-xc", 'x="$TOKEN"; test "$x" = "$TOKEN"'])
    print("printed", flush=True)
    while not (output / "go").exists():
        time.sleep(0.05)
    if os.environ["RANK"] == "1":
        raise ValueError(f"401 for https://user:{token}@example.org/?q={urllib.parse.quote(token, safe='')}")
    time.sleep(60)

main()
"""


def made(text: str) -> str:
    """A secret that nobody else has, with characters that are escaped and encoded."""
    return f"{text}/{random.token_urlsafe(24)}+'&"


def traces(secret: str) -> list[bytes]:
    """What would give it away: the middle of its text, and of each of its base64 forms."""
    inside = secret[len(secret) // 3 : -4]
    encoded = [base64.b64encode(b"x" * before + secret.encode()).decode()[8:-8] for before in range(3)]
    return [each.encode() for each in (inside, *encoded)]


class Search:
    """Looks for secrets, and counts the places."""

    def __init__(self, *wanted: str) -> None:
        self.wanted = [trace for secret in wanted for trace in traces(secret)]
        self.places: dict[str, int] = {}
        self.found: list[str] = []

    def text(self, kind: str, where: str, content: bytes) -> None:
        self.places[kind] = self.places.get(kind, 0) + 1
        self.found += [f"{kind}: {where}: {trace!r}" for trace in self.wanted if trace in content]

    def files(self, kind: str, root: Path, *, since: float = 0.0, spared: Path | None = None) -> None:
        for parent, folders, names in os.walk(root):
            folders[:] = [each for each in folders if Path(parent, each) != spared]
            for name in names:
                path = Path(parent, name)
                try:
                    about = path.lstat()
                    if path.is_file() and not path.is_symlink() and max(about.st_mtime, about.st_ctime) >= since:
                        self.text(kind, str(path), path.read_bytes())
                except OSError:
                    continue

    def processes(self, *, spared: str) -> None:
        """All command lines, and the environments of all processes but the job's, which have `spared` there."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue
            self.text("command lines", str(folder), command)
            if spared.encode() not in environment:
                self.text("environments of others", str(folder), environment)

    def nothing(self) -> None:
        print("searched:", ", ".join(f"{count} {kind}" for kind, count in self.places.items()))
        assert not self.found, self.found


def test_a_canary_through_a_job_that_fails(launcher: Launcher, tmp_path: Path) -> None:
    """Two ranks print it in every form, trace it, and die of an exception with it."""
    token, key = made("canary"), f"-----BEGIN KEY-----\n{made('first')}\n{made('second')}\n-----END KEY-----"
    search = Search(token, *key.splitlines()[1:3])
    started = time.time() - 1
    keep(launcher, "hf", token)
    keep(launcher, "key", key)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "train.py").write_text(RANK)
    words = ("training", "run", "j", "--accels", "2", "-S", "TOKEN=hf", "--secret-file", "KEY_FILE=key")
    process = launcher.start(*words, "--", "train.py", "--lr", "0.1", cwd=tmp_path / "work")
    said: list[str] = []
    try:
        assert process.stdout
        while sum(line.endswith("printed\n") for line in said) < 2:
            said.append(process.stdout.readline())
            assert said[-1], "".join(said)
        folder = launcher.job("j")
        (memory,) = Path("/dev/shm").glob(f"launcher-{folder.name}")
        search.processes(spared=f"LAUNCHER_JOB_ID={folder.name}")
        search.files("files of the running job", folder)
        (folder / "output-checkpoint" / "go").touch()
        said.append(process.stdout.read())
        assert process.wait(120) == 1, "".join(said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    output = "".join(said)
    search.text("terminal", "of the launcher", output.encode())
    for command in (("logs", "j"), ("inspect", "j"), ("list",), ("checkpoints", "j")):
        search.text("commands", str(command), launcher("training", *command).encode())
    search.files("files of launcher", launcher.home, spared=launcher.home / "data" / "secrets")
    search.files("other files of /tmp", Path("/tmp"), since=started, spared=launcher.home)
    search.files("files of /dev/shm", Path("/dev/shm"), since=started)
    search.files("files of the work folder", tmp_path / "work")
    search.nothing()
    assert output.count("plain [secret hf]") == 2 and output.count("'t': \"[secret hf]\"") == 2
    assert output.count("x=[secret hf]") + output.count("x='[secret hf]'") == 2
    assert not memory.exists()
    result = launcher.result("j")
    assert result["rank"] == 1 and "ValueError: 401 for https://***@example.org/?q=***" in result["traceback"]
    assert json.loads((folder / "output-checkpoint" / "wandb-metadata.json").read_text())["args"][1:] == ["--lr", "0.1"]


def test_a_crash_leaves_no_memory_behind(launcher: Launcher, tmp_path: Path) -> None:
    keep(launcher, "hf", made("canary"))
    command = "grep 'Max core' /proc/self/limits; kill -SEGV $$"
    words = ("training", "run", "j", "--work-dir", tmp_path)
    output = launcher(*words, "-S", "TOKEN=hf", "--", "sh", "-c", command, code=139)
    assert re.search(r"Max core file size +1 ", output)
    assert not list(tmp_path.glob("*core*"))
    (own,) = re.findall(r"Max core file size +(\S+) ", Path("/proc/self/limits").read_text())
    assert re.search(rf"Max core file size +{own} ", launcher(*words, "--", "sh", "-c", command, code=139))


@pytest.mark.parametrize("retried", [False, True])
def test_a_file_is_the_jobs_alone_and_gone_after_the_attempt(launcher: Launcher, tmp_path: Path, retried: bool) -> None:
    value = os.urandom(5000)
    (tmp_path / "given").write_bytes(value)
    launcher("secret", "create", "bytes", "--file", tmp_path / "given")
    launcher.env["OWN"] = "from-a-variable"
    words = ["--secret-file", "CREDENTIALS=bytes", "--secret-file", "OTHER=env:OWN"]
    words += ["--max-restarts", "1", "--retry-on", "9"] if retried else []
    ends = "exit $((LAUNCHER_ATTEMPT == 1 ? 9 : 0))" if retried else "exit 0"
    shown = 'stat -c "%a %n" $CREDENTIALS $(dirname $OTHER); sha256sum < $CREDENTIALS; sha256sum < $OTHER'
    output = launcher("training", "run", "j", *words, "--", "bash", "-c", f"{shown}; {ends}")
    folder = f"/dev/shm/launcher-{launcher.job('j').name}"
    digests = [f"{hashlib.sha256(each).hexdigest()}  -" for each in (value, b"from-a-variable")]
    shown = [line for line in output.splitlines() if not line.startswith("launcher: ")]
    assert shown == [f"400 {folder}/CREDENTIALS", f"700 {folder}", *digests] * (2 if retried else 1)
    assert not Path(folder).exists()


def test_a_launcher_that_is_killed_leaves_its_file_until_the_next_start(launcher: Launcher) -> None:
    keep(launcher, "hf", made("canary"))
    process = launcher.start("training", "run", "j", "--secret-file", "F=hf", "--", "sh", "-c", "echo up; sleep 60")
    try:
        assert process.stdout
        assert any(line == "up\n" for line in process.stdout)
        (folder,) = Path("/dev/shm").glob(f"launcher-{launcher.job('j').name}")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
    assert folder.exists()
    launcher("recover", "j")
    assert not folder.exists()


def test_where_they_come_from(launcher: Launcher, tmp_path: Path) -> None:
    """By flags of a job, by variables of a container, by a job file, and again for a retry."""
    kept, owned, mounted = made("kept"), made("owned"), made("mounted")
    keep(launcher, "team/hf", f"{kept}\n")
    launcher.env["OWNED"] = owned
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "token").write_text(f"{mounted}\n")
    (tmp_path / "token").symlink_to("..data/token")  # As Kubernetes mounts it, for all to read.
    expected = [hashlib.sha256(each.encode()).hexdigest() for each in (kept, owned, mounted)]
    command = ["--", "sh", "-c", "for each in A B C; do printenv $each | tr -d '\\n' | sha256sum; done; echo $C"]
    sources = {"A": "team/hf", "B": "env:OWNED", "C": f"file:{tmp_path}/token"}
    flags = [word for pair in sources.items() for word in ("-S", "=".join(pair))]
    (tmp_path / "job.yaml").write_text(json.dumps({"secret": sources}))
    ways: list[tuple[list[str], dict[str, str]]] = [
        (["training", "run", "j", *flags, *command], {}),
        (["training", "run", "j", "--file", str(tmp_path / "job.yaml"), *command], {}),
        (["entrypoint", *command], {"LAUNCHER_SECRET": ", ".join(map("=".join, sources.items()))}),
        (["training", "retry", "j"], {}),
    ]
    for words, variables in ways:
        launcher.env |= variables
        lines = launcher(*words).splitlines()
        assert [line.removesuffix("  -") for line in lines if line.endswith("  -")] == expected, words
        assert f"[secret file:{tmp_path}/token]" in lines
        for name in variables:
            del launcher.env[name]
    record = launcher.json("training", "inspect", "j")
    assert record["spec"]["secret"] == sources
    assert not any(each in json.dumps(record) for each in (kept, owned, mounted))


def test_a_storages_credentials_may_lie_elsewhere(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("aws_access_key_id=a\naws_secret_access_key=b\n")
    words = ("storage", "create", "lab", "--provider", "minio", "--endpoint", "http://127.0.0.1:1")
    assert "there is no file" in launcher(*words, "--secret", f"file:{tmp_path}/none", code=66)
    assert "'KEYS' is not set" in launcher(*words, "--secret", "env:KEYS", code=66)
    launcher(*words, "--secret", f"file:{tmp_path}/keys")
    assert launcher.json("storage", "inspect", "lab")["secret"] == f"file:{tmp_path}/keys"
    keys = (tmp_path / "keys").read_text()
    storage = Storage(name="x", provider="s3", secret="env:KEYS")
    launcher_settings = storages.Settings(data_dir=str(tmp_path), cache_dir=str(tmp_path))
    assert storages.open_target(storage, "bucket/x", launcher_settings, {"KEYS": keys})


def test_output_may_be_left_as_it_is(launcher: Launcher) -> None:
    token = made("canary")
    keep(launcher, "hf", token)
    assert "shorter than 8 bytes" in keep(launcher, "pin", "1234567")
    command = ("--", "sh", "-c", 'echo "<$TOKEN>"; echo "<$PIN>"')
    words = ("training", "run", "j", "-S", "TOKEN=hf", "-S", "PIN=pin")
    output = launcher(*words, *command)
    assert "<[secret hf]>\n<1234567>" in output
    assert "warning: The secret pin is shorter than 8 bytes: a job's output is not masked of it" in output
    assert "secret hf is shorter" not in output
    output = launcher(*words, "--no-mask", *command)
    assert f"<{token}>" in output and "shorter" not in output
    assert f"<{token}>" in launcher("training", "logs", "j")


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    os.mkfifo(tmp_path / "pipe")
    yield tmp_path / "pipe"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-S", "A=nobody"], 66, "No secret 'nobody' is kept here."),
        (["-S", "A=env:NOT_SET"], 66, "the variable 'NOT_SET' is not set here"),
        (["-S", "A=env:"], 66, "the variable '' is not set here"),
        (["-S", "A=file:{}/missing"], 66, "there is no file {}/missing"),
        (["-S", "A=file:{}"], 64, "{} cannot be read: Is a directory"),
        (["-S", "A=file:{}/pipe"], 64, "{}/pipe is no file"),
        (["-S", "A=file:{}/pipe/x"], 64, "Not a directory"),
        (["-S", "A=file:{}/empty"], 64, "no content"),
        (["-S", "A=file:{}/large"], 64, "more than 1 MiB"),
        (["-S", "A=file:{}/zero"], 64, "--secret-file VARIABLE=NAME"),
        (["-S", "A=file:{}/bytes"], 64, "is not text"),
        (["-S", "A=vault:x"], 64, "'vault:x' names no secret"),
        (["-S", "=x"], 64, "'' is no name of a variable"),
        (["-S", "A="], 64, "--secret A=: write VARIABLE=NAME"),
        (["--secret-file", "A="], 64, "--secret-file A=: write VARIABLE=NAME"),
        (["--secret-file", "a/b=x"], 64, "'a/b' has more than letters, digits and _"),
        (["--secret-file", "A=env:NOT_SET"], 66, "the variable 'NOT_SET' is not set here"),
        (["-S", "A=x", "-E", "A=y"], 64, "--env and --secret both set A"),
        (["-S", "A=x", "--secret-file", "A=x"], 64, "--secret and --secret-file both set A"),
    ],
)  # fmt: skip
def test_mistakes(launcher: Launcher, fifo: Path, words: list[str], code: int, said: str) -> None:
    for name, content in {"empty": b"\n", "large": b"x" * 2_000_000, "zero": b"a\0b", "bytes": b"\xff\xfe"}.items():
        (fifo.parent / name).write_bytes(content)
    filled = [word.format(fifo.parent) for word in words]
    output = launcher("training", "run", "j", *filled, "--", "true", code=code)
    assert said.format(fifo.parent) in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["create", "x"], 64, "A secret has 1 byte to 1 MiB; this one has 0 bytes."),
        (["create", "x", "--file", "missing"], 64, "does not exist"),
        (["create", "x", "--file", "/tmp"], 64, "is a directory"),
        (["create", "x", "--from-env", "NOT_SET"], 64, "the variable is not set here"),
        (["create", "x", "--from-env", "A", "--file", "/etc/hostname"], 64, "exclude each other"),
        (["create", "env:x", "--file", "/etc/hostname"], 64, "it contains ':'"),
        (["create", "../x", "--file", "/etc/hostname"], 64, "not allowed"),
        (["create", "there", "--from-env", "HOME"], 64, "--replace"),
        (["delete", "x"], 66, "No secret 'x' is kept here."),
    ],
)
def test_mistakes_with_kept_ones(launcher: Launcher, words: list[str], code: int, said: str) -> None:
    keep(launcher, "there", "already-there")
    assert said in launcher("secret", *words, code=code)
    assert launcher.json("secret", "list") == [{"name": "there"}]
    launcher("secret", "delete", "there")
    assert launcher.json("secret", "list") == []


def test_typed_without_being_shown(launcher: Launcher) -> None:
    """At a terminal it is asked for twice."""
    token = made("typed")
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        [PROGRAM, "secret", "create", "hf"],
        env=launcher.env, stdin=other, stdout=other, stderr=other, start_new_session=True,
    )  # fmt: skip
    os.close(other)
    shown = b""
    for question in (b"Value: ", b"confirmation: "):
        while not shown.endswith(question):
            shown += os.read(terminal, 1000)
        os.write(terminal, f"{token}\n".encode())
    assert process.wait(60) == 0
    shown += os.read(terminal, 1000)
    os.close(terminal)
    assert b"Kept the secret hf." in shown and token.encode() not in shown
    output = launcher("training", "run", "j", "-S", "A=hf", "--", "sh", "-c", 'printf %s "$A" | sha256sum')
    assert hashlib.sha256(token.encode()).hexdigest() in output
