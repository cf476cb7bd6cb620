"""Whatever is wrong with what the launcher is given: an exit code that means it, the cause, a remedy; never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from launcher.cli import cli
from tests.support.bad_input import CASES, FULL, Case
from tests.support.cli import PROGRAM, Launcher
from tests.support.warm import Answer, Warm, fresh

YAML = {
    "unknown.yaml": "acels: 2\n",
    "types.yaml": "accels: [1, 2]\ngrace: soon\ndevice: cda\nsingle_child: perhaps\nenv: A=1\ncheckpoint: {a: 1}\n",
    "alias.yaml": "env: &a {A: b}\nsecret: *a\n",
    "syntax.yaml": "accels: 2\n  grace: [3s\n",
    "list.yaml": "- a\n- b\n",
    "large.yaml": "env:\n" + "".join(f"  VARIABLE_{n}: {'x' * 100}\n" for n in range(90_000)),
    "deep.yaml": "env: " + "[" * 5000 + "\n",
    "binary.yaml": "accels: \x00\x01\n",
    "python.yaml": "env: !!python/object/apply:os.system ['true']\n",
    "quote.yaml": "command: sh -c 'echo\n",
    "nothing.yaml": "",
    "unreadable.yaml": "accels: 1\n",
}


@pytest.fixture(scope="module")
def home() -> Iterator[Launcher]:
    """The command line, in a folder that another user may look into too."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as name:
        Path(name).chmod(0o755)
        yield Launcher(Path(name) / "home")


@pytest.fixture(scope="module")
def run(home: Launcher) -> Iterator[Warm]:
    with Warm(home.home.parent) as warm:
        yield warm


@pytest.fixture(scope="module")
def world(home: Launcher, run: Warm) -> Path:
    """One of everything, and everything that can be broken."""
    world = home.home.parent / "w"
    for folder in ("m", "empty", "closed", "links", "yaml", "config", "torn", "stores"):
        (world / folder).mkdir(parents=True)
    (world / "m/config.json").write_text('{"architectures": ["Tiny"]}')
    header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    (world / "m/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    (world / "torn/model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (world / "links/config.json").symlink_to("/etc/passwd")
    (world / "broken.tar").write_bytes(b"no archive" * 200)
    (world / "broken.zip").write_bytes(b"PK\3\4" + b"x" * 200)
    with tarfile.open(world / "whole.tar", "w") as archive:
        archive.add(world / "m/config.json", "config.json")
    (world / "interpreter.sh").write_text("#!/no/such/interpreter\n")
    (world / "interpreter.sh").chmod(0o755)
    for name, text in YAML.items():
        (world / "yaml" / name).write_text(text)
    (world / "yaml/unreadable.yaml").chmod(0o600)
    (world / "config/unknown.yaml").write_text("stor: x\n")
    (world / "config/type.yaml").write_text("store_timeout: soon\n")
    step = "$FLEXAI_OUTPUT_CHECKPOINT_DIR/step-1"
    script = f"echo x > $FLEXAI_OUTPUT_DIR/x; mkdir {step}; cp m/* {step}"
    for words, stdin in (
        (("checkpoint", "push", "base", "--file", "m"), ""),
        (("checkpoint", "push", "deleted", "--file", "m", "--parent", "base"), ""),
        (("checkpoint", "delete", "deleted", "--yes"), ""),
        (("dataset", "push", "words", "--file", "m"), ""),
        (("secret", "create", "hf-token"), "hidden-value"),
        (("storage", "create", "lab", "--provider", "s3", "--secret", "hf-token"), ""),
        (("training", "run", "ft_01", "--settle", "0.1s", "--", "sh", "-c", script), ""),
    ):
        answer = run(words, home.env, world, stdin=stdin)
        assert answer.code == 0, answer
    _damaged(home.home / "data", world)
    (world / "closed").chmod(0o700)
    return world


def _damaged(data: Path, world: Path) -> None:
    """Copies of the store and of the data folder, each with its damage."""
    stores = world / "stores"
    (stores / "is-a-file").write_text("")
    (manifest,) = (
        each.name for each in (data / "store/manifests").iterdir() if json.loads(each.read_text())["name"] == "base"
    )

    def damage(name: str, key: str, change: str) -> None:
        shutil.copytree(data / "store", stores / name)
        path = stores / name / key
        text = path.read_text()
        path.unlink()  # Files of the store may be linked into the cache.
        if change:
            path.write_text(eval(change, {"text": text, "json": json}) if "text" in change else change)

    files = f"checkpoints/{manifest.removesuffix('.json')}"
    damage("newer", "store.json", '{"schema": 99, "writer": "7.0"}')
    damage("no-json", "store.json", "{")
    damage("empty-json", "store.json", "[]")
    damage("manifest", f"manifests/{manifest}", "text[:40]")
    damage("manifest-paths", f"manifests/{manifest}", "text.replace('config.json', '../x.json')")
    damage("manifest-newer", f"manifests/{manifest}", "text.replace('\"schema\":1', '\"schema\":99')")
    damage("version", "names/base/v00000001.json", "{}")
    damage("bytes", f"{files}/config.json", "text.upper()")
    damage("missing", f"{files}/config.json", "")
    shutil.copytree(data / "jobs", world / "damaged/jobs")
    (record,) = (world / "damaged/jobs/ft_01").glob("*/record.json")
    record.write_text(record.read_text()[:100])
    (world / "damaged/storages").mkdir()
    (world / "damaged/storages/lab.json").write_text("{")


def _ask(case: Case, run: Warm, home: Launcher, world: Path) -> Answer:
    def at(text: str) -> str:
        return text.replace("{w}", str(world))

    env = {key: value for key, value in home.env.items() if value is not None} | {"LAUNCHER_STORE_TIMEOUT": "0.5"}
    env |= {key: at(value) for key, value in case.env.items()}
    how = fresh if case.fresh else run
    return how(case.words(world), env, Path(at(case.cwd)), stdin=case.stdin, uid=case.uid)


def _wrong(case: Case, answer: Answer, world: Path) -> str:
    """What is wrong with an answer, or nothing."""
    said = answer.text
    if answer.code != case.code:
        return f"exit code {answer.code}, not {case.code}"
    if "Traceback" in said or "is a bug" in said:
        return "a traceback"
    for words in (case.cause, case.remedy):
        if words.replace("{w}", str(world)) not in said:
            return f"{words!r} is not said"
    if any(not (each.isprintable() or each in "\n\t") for each in said):
        return "control characters"
    return ""


@pytest.mark.parametrize("kind", CASES)
def test_bad_input_is_answered(kind: str, run: Warm, home: Launcher, world: Path) -> None:
    _all(CASES[kind], run, home, world)
    print(f"{kind}: {len(CASES[kind])} cases")


def _all(cases: Sequence[Case], run: Warm, home: Launcher, world: Path) -> None:
    failed = []
    for case in cases:
        answer = _ask(case, run, home, world)
        if wrong := _wrong(case, answer, world):
            failed.append(f"{case.env or ''} {case.line[:200]}: {wrong}\n[{answer.code}] {answer.text[-1500:]}")
    assert not failed, f"{len(failed)} of {len(cases)}:\n\n" + "\n".join(failed)


def test_a_full_disk(run: Warm, home: Launcher, world: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    full = world / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", full], check=True)
    try:
        with contextlib.suppress(OSError):
            (full / "filler").write_bytes(b"x" * (1 << 20))
        _all(FULL, run, home, world)
    finally:
        subprocess.run(["umount", full], check=True)


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words; a command that several groups share comes once for each."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    ctx = click.Context(command)
    for name in command.list_commands(ctx):
        found = command.get_command(ctx, name)
        assert found
        yield from _leaves(found, (*path, name))


def test_no_command_is_left_out_and_each_answers_in_json_too(run: Warm, home: Launcher, world: Path) -> None:
    typed = {tuple(case.words(world))[:length] for cases in CASES.values() for case in cases for length in (1, 2, 3)}
    count, covered = 0, set()
    for path, command in _leaves(cli):
        answer = run([*path, "--nonsense"], home.env, world)
        assert not _wrong(Case("", 64, "No such option '--nonsense'", "--"), answer, world), (path, answer)
        count += 1
        if any("--json" in each.opts for each in command.params):
            answer = run([*path, "--json", "--nonsense"], home.env, world)
            document = json.loads(answer.out)
            assert (document["error"], document["exit_code"], answer.code) == ("usage", 64, 64), (path, answer)
            assert document["message"] and document["hint"] and not answer.err
            count += 1
        if path in typed:
            covered.add(id(command))
    left = [" ".join(path) for path, command in _leaves(cli) if id(command) not in covered]
    assert not left, f"no case in tests/support/bad_input.py: {left}"
    total = sum(map(len, CASES.values())) + len(FULL)
    print(f"{total} cases of the table, {count} of the commands' options, {len(CIRCUMSTANCES)} of the process")
    assert total >= 150


CIRCUMSTANCES = {
    "stdin closed": ("<&-", "training run c -- cat", 0, ""),
    "stdout closed": (">&-", "checkpoint list", 0, ""),
    "stdout closed, a job": (">&-", "training run c -- echo hello", 0, "ended well"),
    "stderr closed": ("2>&-", "training run c -- echo hello", 0, "hello"),
    "all closed": ("<&- >&- 2>&-", "training run c -- echo hello", 0, ""),
    "all closed, an error": ("<&- >&- 2>&-", "training rnu c", 64, ""),
    "stdout full": (">/dev/full", "checkpoint list --json", 73, "No space left on device"),
    "stdout full, help": (">/dev/full", "--help", 73, "No space left on device"),
    "stderr full": ("2>/dev/full", "training rnu c", 64, ""),
    "stdout nobody's": ("| true", "checkpoint list", 141, ""),
    "stdout nobody's, help": ("| true", "--help", 141, ""),
    "stdout nobody's, a job": ("| true", "training run c -- echo hello", 0, "ended well"),
    "stderr nobody's": ("2>&1 >/dev/null | true", "training rnu c", 64, ""),
    "current folder gone": ("cd", "training run c -- true", 73, "cd to another one"),
    "current folder gone, a relative path": ("cd", "checkpoint push a --file m", 73, "cd to another one"),
    "current folder gone, no need of it": ("cd", "checkpoint list", 0, "base"),
    "no locale": ("LC_ALL=xx_XX", "checkpoint inspect bäse", 66, "No checkpoint 'b"),
    "an ASCII terminal": ("PYTHONIOENCODING=ascii", "checkpoint inspect bäse", 66, "No checkpoint 'b"),
    "TERM=dumb": ("TERM=dumb", "checkpoint inspect bsae", 66, "Nearest names: base"),
    "no TERM": ("TERM=", "checkpoint inspect bsae", 66, "Nearest names: base"),
    "no HOME": ("HOME=", "checkpoint inspect bsae", 66, "Nearest names: base"),
    "HOME is a file": (
        "HOME=/etc/passwd LAUNCHER_DATA_DIR= LAUNCHER_CACHE_DIR=",
        "training inspect x",
        66,
        "No job 'x'",
    ),
    "no PATH": ("PATH=", "training run c -- no-such-program", 127, "not found"),
    "no torch": ("VIRTUAL_ENV=$PWD/venv", "training run c -- train.py", 1, "--launch exec"),
}


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_the_process_may_be_odd(name: str, home: Launcher, world: Path) -> None:
    how, line, code, said = CIRCUMSTANCES[name]
    (world / "train.py").write_text("print('trains')\n")
    if "venv" in how:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", world / "venv"], check=True)
    before = "mkdir gone && cd gone && rmdir ../gone;" if how == "cd" else ""
    variables = f"export {how};" if re.match("[A-Z]", how) else ""
    after = "" if before or variables else how
    script = f"set -o pipefail; {before} {variables} {shlex.quote(PROGRAM)} {line} {after}"
    done = subprocess.run(
        ["bash", "-c", script], env=home.env, cwd=world, capture_output=True, stdin=subprocess.DEVNULL
    )
    text = (done.stdout + done.stderr).decode()
    assert (done.returncode, "Traceback" in text, "Exception ignored" in text) == (code, False, False), text
    assert said in text, text


@pytest.mark.parametrize("body", [b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", b"rubbish\r\n\r\n", b""])
def test_an_engine_that_refuses(body: bytes, run: Warm, home: Launcher, world: Path) -> None:
    class Refuse(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(body)

    with socketserver.TCPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"DOCKER_HOST": f"tcp://127.0.0.1:{server.server_address[1]}"}
        case = Case("training run j --runner docker --image i -- true", 73, "The Docker engine", "DOCKER_HOST", env)
        _all([case], run, home, world)
        server.shutdown()
