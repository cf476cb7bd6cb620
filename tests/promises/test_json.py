"""What is listed or shown is printed as JSON too, and as docs/json.md describes it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from launcher.cli import cli
from tests.support.cli import Launcher
from tests.support.documents import DOCUMENTS, Error
from tests.support.warm import Warm

SHOWING = {
    "list",
    "show",
    "inspect",
    "checkpoints",
    "log",
    "diff",
    "check",
    "verify",
    "doctor",
    "prune",
    "gc",
    "recover",
}
"""Commands of these names list or show."""
HEADER = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'


def _commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        found = group.get_command(ctx, name)
        assert found
        if isinstance(found, click.Group):
            yield from _commands(found, f"{path}{name} ")
        else:
            yield f"{path}{name}", found


def test_every_document_is_described_and_every_command_that_shows_has_one() -> None:
    with_json = {path: command for path, command in _commands(cli) if any("--json" in p.opts for p in command.params)}
    described = {id(with_json[path]) for path in DOCUMENTS} | {id(with_json["fine-tuning run"])}
    assert not [path for path, command in with_json.items() if id(command) not in described]
    assert not [path for path, _ in _commands(cli) if path.split()[-1] in SHOWING and path not in with_json]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each command prints, of a store and a machine with one of everything."""
    folder = tmp_path_factory.mktemp("json")
    env = Launcher(folder / "home").env
    (folder / "m").mkdir()
    (folder / "m/config.json").write_text('{"architectures": ["Tiny"]}')
    (folder / "m/model.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + b"ab")
    shutil.copytree(folder / "m", folder / "n")
    (folder / "n/extra.json").write_text("{}")
    write = 'echo x > "$FLEXAI_OUTPUT_DIR/x"; for n in 1 2; do mkdir "$0/step-$n"; cp m/* "$0/step-$n"; done'
    found: dict[str, list[Any]] = {}
    with Warm(folder) as run:

        def ask(line: str, *rest: str, stdin: str = "", code: int = 0) -> None:
            answer = run([*line.split(), "--json", *rest], env, folder, stdin=stdin)
            assert answer.code == code, (line, answer)
            command = next(path for path in sorted(DOCUMENTS, reverse=True) if line.startswith(path))
            found.setdefault(command, []).append(json.loads(answer.out))

        def do(*words: str, stdin: str = "") -> None:
            answer = run(words, env, folder, stdin=stdin)
            assert answer.code == 0, (words, answer)

        ask("checkpoint push base --file m")
        ask("checkpoint push base --file m")
        ask("checkpoint push base --file n --parent base")
        ask("dataset push words --file m")
        ask("dataset push words --file n")
        ask("dataset delete words@v1 --yes")
        do("secret", "create", "token", stdin="hidden-value")
        do("storage", "create", "lab", "--provider", "s3", "--secret", "token")
        job = (
            "--settle",
            "0.1s",
            "--",
            "sh",
            "-c",
            f'set -- "$FLEXAI_OUTPUT_CHECKPOINT_DIR"; {write.replace("$0", "$1")}',
        )
        do("training", "run", "ft", "-C", "base", "-D", "words", *job)
        server = ("--", sys.executable, "-m", "http.server", "--bind", "{host}", "{port}")
        do("inference", "serve", "chat", "-C", "base", "--force", "--health", "/", "--detach", *server)
        ask("training run plan --dry-run -C base", "--", "true")
        ask("checkpoint delete ft/step-1 --yes")
        for line in (
            "training list", "training inspect ft", "training fetch ft", "inference list",
            "inference inspect chat", "inference wait chat", "checkpoint tag base good", "checkpoint tags",
            "checkpoint untag base@good", "checkpoint path base", "training checkpoints ft",
            "checkpoint list", "checkpoint inspect base",
            "checkpoint verify base", "checkpoint verify m", "checkpoint log ft/step-2", "checkpoint diff base base@v1",
            "checkpoint pin base", "checkpoint unpin base", "checkpoint prune --job ft --keep last=1 --dry-run",
            "dataset list", "dataset inspect words", "dataset verify words",
            "checkpoint gc --dry-run", "checkpoint check", "cache list", "cache prune --all --dry-run", "cache verify",
            "storage list", "storage inspect lab", "secret list", "recover ft", "recover --all", "config show", "doctor",
        ):  # fmt: skip
            ask(line)
        do("inference", "stop", "chat")
    return found


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_document_is_as_it_is_described(command: str, printed: dict[str, list[Any]]) -> None:
    for document in printed[command]:
        msgspec.convert(document, DOCUMENTS[command])
    print(f"{command}: {len(printed[command])} document(s), {len(json.dumps(printed[command]))} characters")


def test_an_error_is_as_it_is_described(launcher: Launcher) -> None:
    output = launcher("checkpoint", "inspect", "nothing", "--json", code=66)
    found = msgspec.json.decode(output, type=Error)
    assert (found.error, found.exit_code) == ("checkpoint-not-found", 66) and "nothing" in found.message and found.hint


def test_no_secret_is_in_any_document(printed: dict[str, list[Any]]) -> None:
    assert "hidden-value" not in json.dumps(printed)


def test_a_job_may_have_json_of_its_own(launcher: Launcher, tmp_path: Path) -> None:
    output = launcher("training", "run", "a//b", "--", "true", "--json", code=64)
    assert output.startswith("launcher: error: ")
