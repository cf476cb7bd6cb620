"""Whatever is wrong with what the launcher is given: an exit code that means it, the cause, a remedy; never a traceback."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bad_input import CASES, Case
from tests.support.cli import Launcher
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
    (world / "m/config.json").write_text('{"a": 1}')
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
    script = "mkdir $FLEXAI_OUTPUT_CHECKPOINT_DIR/step-1; cp m/* $FLEXAI_OUTPUT_CHECKPOINT_DIR/step-1"
    for words, stdin in (
        (("checkpoint", "push", "base", "--file", "m"), ""),
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
    failed = []
    for case in CASES[kind]:
        answer = _ask(case, run, home, world)
        if wrong := _wrong(case, answer, world):
            failed.append(f"{case.env or ''} {case.line[:200]}: {wrong}\n[{answer.code}] {answer.text[-1500:]}")
    print(f"{kind}: {len(CASES[kind])} cases")
    assert not failed, f"{len(failed)} of {len(CASES[kind])}:\n\n" + "\n".join(failed)
