"""Every command in the README's block runs, in its order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.support.cli import ROOT, Launcher


def test_every_command_of_the_readme(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block
    commands = [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]
    assert len(commands) >= 12
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for words in commands:
        assert words[0] == "launcher"
        launcher(*words[1:], cwd=tmp_path, timeout=200)
    assert (tmp_path / "result" / "model.safetensors").exists()
