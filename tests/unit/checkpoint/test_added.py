"""Formats of other packages, by real installed distributions: one that works, one that raises, one that does not load."""

from __future__ import annotations

from pathlib import Path

from tests.support.cli import Launcher

MODULE = """
from launcher.checkpoint.judgement import Context, Judgement, judged
from launcher.checkpoint.manifest import Facts, Ready


class Tiny:
    name = "tiny-format"
    completes = ("tiny.done",)

    def recognises(self, tree):
        return "tiny.data" in tree.files

    def judge(self, tree, context):
        missing = [] if "tiny.done" in tree.files else ["tiny.done is not there"]
        return judged(self.name, missing, context, proven=True)

    def facts(self, tree):
        return Facts(step=int(tree.read("tiny.data", 0, 10)), library="tiny")

    def ready(self, tree):
        return Ready(resume=True)

    def claims(self, tree):
        return frozenset(tree.files)


class Raises(Tiny):
    name = "raising-format"

    def recognises(self, tree):
        raise ZeroDivisionError("a bug of theirs")
"""


def test_a_distribution_adds_a_format_and_broken_ones_break_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "tiny_format-1.0.dist-info").mkdir(parents=True)
    (site / "tiny_format.py").write_text(MODULE)
    (site / "tiny_format-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: tiny-format\nVersion: 1.0\n")
    (site / "tiny_format-1.0.dist-info/entry_points.txt").write_text(
        "[launcher.formats]\na-missing = nowhere_to_be_found:Format\nb-raises = tiny_format:Raises\nc-tiny = tiny_format:Tiny\n"
    )
    launcher = Launcher(tmp_path / "home", PYTHONPATH=str(site))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "tiny.data").write_text("42")
    said = launcher("checkpoint", "verify", folder, code=65)
    assert "tiny.done is not there" in said
    assert said.count("cannot be loaded") == 1 and said.count("a bug of theirs") == 1
    (folder / "tiny.done").touch()
    found = launcher.json("checkpoint", "verify", str(folder))
    assert (found["format"], found["whole"], found["facts"]["step"]) == ("tiny-format", True, 42)
    launcher("checkpoint", "push", "mine", "--file", folder)
    assert launcher.json("checkpoint", "inspect", "mine")["status"]["facts"]["step"] == 42
    assert Launcher(tmp_path / "other").json("checkpoint", "list") == []
