"""The pages that are made from the code are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from launcher.cli import cli
from tests.support import commands, docs
from tests.support.cli import ROOT

WRITTEN = [ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {docs.COMMANDS})]
_BLOCK = re.compile(r"^```sh\n(.*?)^```$|((?:^    .*\n)+)", re.M | re.S)
_LINE = re.compile(r"\s*((?:[A-Z_]+=\S+ )*launcher .*)")


@pytest.mark.parametrize("path", docs.PAGES, ids=lambda path: path.name)
def test_the_generated_pages_are_current(path: Path) -> None:
    assert path.read_text() == docs.PAGES[path](), "run: python -m tests.support.docs"


def test_every_command_line_of_the_documentation_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in commands.leaves().values():
        monkeypatch.setattr(each, "callback", lambda **values: None)
    lines = []
    for page in WRITTEN:
        blocks = [block for match in _BLOCK.findall(page.read_text()) for block in match]
        whole = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        lines += [(page.name, match[1]) for line in whole if "…" not in line and (match := _LINE.fullmatch(line))]
    for page, line in lines:
        try:
            cli.main(commands.words(line), prog_name="launcher", standalone_mode=False)
        except click.BadParameter as error:
            assert "does not exist" in error.message, f"{page}: {line}: {error.message}"  # A file of the reader's.
        except click.UsageError as error:
            raise AssertionError(f"{page}: {line}: {error.message}") from error
    assert len(lines) >= 45


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.name)
def test_every_command_that_a_page_names_is_there(page: Path) -> None:
    paths = {" ".join(path) for path, _ in commands.walk()}
    groups = {" ".join(path) for path, each in commands.walk() if isinstance(each, click.Group)}
    for words in re.findall(r"`launcher ((?:[a-z][a-z-]* ?)+)", page.read_text()):
        known = ["launcher"]
        for word in words.split():
            if " ".join(known) in groups:
                assert " ".join([*known, word]) in paths, f"there is no `launcher {words}`"
                known.append(word)
