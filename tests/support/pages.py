"""Runs the examples of a page of docs/, in their order, as its reader would.

A block with a title (```python title="train.py") is a file; a block of `console` is typed at a shell: lines that begin with `$`
are commands, which must succeed, and the others are lines of their output, in this order, where `…` stands for anything. Blocks
of `sh`, and those without a language, are not run.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.cli import ROOT, Launcher

_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)


def examples(page: str) -> list[tuple[str, str, str]]:
    """The blocks of a page: (language, title, text)."""
    return [(each[1], each[2] or "", each[3]) for each in _BLOCK.finditer((ROOT / "docs" / page).read_text())]


def pages() -> list[str]:
    """The pages that have something to be run."""
    found = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    return [page for page in found if any(language == "console" for language, _, _ in examples(page))]


def run(page: str, launcher: Launcher, folder: Path) -> int:
    """Runs a page's examples in a folder, and returns how many commands they were."""
    commands = 0
    for language, title, text in examples(page):
        if title:
            (folder / title).write_text(text)
        elif language == "console":
            commands += _console(text, launcher, folder)
    return commands


def _console(text: str, launcher: Launcher, folder: Path) -> int:
    parts = re.split(r"^\$ ", text, flags=re.M)[1:]
    for part in parts:
        command, _, expected = part.partition("\n")
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            launcher.env[name] = value
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            env=launcher.env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}"
        at = {True: 0, False: 0}  # The launcher's own lines and the job's come in their order, but not each other's.
        for line in filter(None, expected.splitlines()):
            own = line.startswith("launcher: ")
            pattern = r"\s+".join(re.escape(word).replace("…", ".*?") for word in line.split())
            found = re.compile(pattern).search(done.stdout, at[own])
            assert found, f"{command}: {line!r} is not in its output, or not there:\n{done.stdout}"
            at[own] = found.end()
    return len(parts)
