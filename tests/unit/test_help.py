"""What holds for the help of every command, found by walking the tree of commands."""

from __future__ import annotations

import re
from collections import defaultdict

import click
import pytest

from launcher.cli import cli
from tests.support import commands

LEAVES = commands.leaves()
SHOWING = {
    "list",
    "inspect",
    "show",
    "checkpoints",
    "log",
    "diff",
    "verify",
    "check",
    "doctor",
    "prune",
    "gc",
    "status",
}
"""The last words of commands that list or show something: programs want it too."""
EVERYWHERE = {"NAME", "NAME@TAG", "REF"}
"""Arguments that mean the same in every command: a name of the noun before it, a reference to a checkpoint."""
MEANINGS = {
    "--destination": "fetch copies into a folder, export to any place (FlexAI's word is for the folder)",
    "--file": "of a job a YAML file, of a push the content (both FlexAI's)",
    "--keep": "of a job which checkpoints, of a path how long",
    "--limit": "of a list how many, of the cache how large",
    "--name": "of a job its name, of a list a pattern of names",
    "--runtime": "of a training FlexAI's image, of a server the program (both FlexAI's)",
    "--secret": "of a job K=NAME, of a storage the secret that it needs (both FlexAI's)",
    "--watch": "of a job further folders, of collect how long",
}
"""Options that take another kind of value in another command, and why."""


@pytest.mark.parametrize("path", LEAVES)
def test_a_command_says_what_it_does_with_an_example(path: str) -> None:
    command = LEAVES[path]
    text = command.help or ""
    assert re.match(r"[A-Z].+\.", text.strip().partition("\n\n")[0].replace("\n", " ")), (
        "its help begins with a sentence"
    )
    same = [other.removeprefix("launcher ") for other, each in LEAVES.items() if each.help == command.help]
    examples = commands.examples(command)
    assert any(f" {words}" in line for words in same for line in examples), "it has no example"


@pytest.mark.parametrize("path", LEAVES)
def test_every_example_is_a_command_line(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in LEAVES.values():
        monkeypatch.setattr(each, "callback", lambda **values: None)
    for line in commands.examples(LEAVES[path]):
        try:
            cli.main(commands.words(line), prog_name="launcher", standalone_mode=False)
        except click.BadParameter as error:
            assert "does not exist" in error.message, f"{line}: {error.message}"  # A file of the reader's.


@pytest.mark.parametrize("path", LEAVES)
def test_every_parameter_is_explained(path: str) -> None:
    command = LEAVES[path]
    for each in command.params:
        if isinstance(each, click.Option):
            assert each.help, f"{each.opts[0]} has no help"
        else:
            word = re.sub(r"\W+$|^\W+", "", each.make_metavar(click.Context(command)).removeprefix("-- "))
            known = word in EVERYWHERE or "ARG" in word or isinstance(each.type, click.Choice)
            assert known or word in (command.help or ""), f"{word} is not explained"


@pytest.mark.parametrize("path", [path for path in LEAVES if path.rpartition(" ")[2] in SHOWING])
def test_what_lists_or_shows_does_it_as_json_too(path: str) -> None:
    (option,) = [each for each in LEAVES[path].params if "--json" in each.opts]
    assert isinstance(option, click.Option) and option.is_flag and option.help == "Print JSON."


def test_an_option_means_the_same_in_every_command() -> None:
    kinds, letters = defaultdict(set), defaultdict(set)
    for command in LEAVES.values():
        for each in command.params:
            for name in each.opts if isinstance(each, click.Option) else ():
                kinds[name].add((each.metavar, repr(each.type), each.is_flag))
                if not name.startswith("--"):
                    letters[name].add(next(long for long in each.opts if long.startswith("--")))
    several = {name for name, found in kinds.items() if len(found) > 1}
    assert several == MEANINGS.keys(), {name: kinds[name] for name in several ^ MEANINGS.keys()}
    assert not {letter: found for letter, found in letters.items() if len(found) > 1}
    assert len(kinds) >= 70
