"""Output fits the terminal it is for, is plain where nobody wants more, and a name is a whole word wherever it is printed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.warm import Warm

LONG = "a-rather-long-name-of-a-checkpoint/that-nobody-wants-to-see-cut/checkpoint-123456"
NAMES = [LONG, "base", "模型"]
TABLES = ["checkpoint list", "storage list", "training list", "config show", "cache list", "help exit-codes"]


def on_terminal(command: list[str], env: dict[str, str], width: int = 80, **more: str) -> str:
    """What a command writes on a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {key: value for key, value in env.items() if key not in ("NO_COLOR", "CI", "COLUMNS", "LINES")}
    kept |= {"TERM": "xterm"} | more
    process = subprocess.Popen(command, env=kept, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: whoever wrote has ended
            break
        if not part:
            break
        found += part
    process.wait()
    os.close(ours)
    return found.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """A store with long and wide names, and one of everything else."""
    folder = tmp_path_factory.mktemp("terminals")
    launcher = Launcher(folder / "home")
    (folder / "m").mkdir()
    (folder / "m/config.json").write_text("{}")
    with Warm(folder) as run:
        for words in (
            *(["checkpoint", "push", name, "--file", "m"] for name in NAMES),
            ["storage", "create", LONG, "--provider", "minio", "--endpoint", "http://minio.example.invalid:9000"],
            ["training", "run", "ft", "-C", "base", "--", "true"],
        ):
            assert run(words, launcher.env, folder).code == 0
    return launcher


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(re.sub(r"\x1b\[[0-9;]*m", "", text))


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_tables_fit_and_no_word_is_cut(home: Launcher, width: int) -> None:
    for command in TABLES if width in (40, 120) else TABLES[:1]:
        output = on_terminal([PROGRAM, *command.split()], home.env, width)
        wide = [line for line in output.splitlines() if _width(line) > width and " " in line.strip()]
        assert not wide, f"{command}: {wide}"
        for name in NAMES if command == "checkpoint list" else []:
            assert re.search(rf"(^|\s){re.escape(name)}($|\s)", output, re.M), output


def test_a_name_is_a_whole_word_where_scripts_grep_it(home: Launcher) -> None:
    output = home("checkpoint", "list")
    for name in NAMES:
        subprocess.run(["grep", "-qw", "--", name], input=output.encode(), check=True)
    assert (
        len({line.index(" v1 ") for line in output.splitlines()[1:] if line.isascii()}) == 1
    )  # The columns are aligned.
    assert "\x1b" not in output


def test_an_empty_list_is_no_failure(launcher: Launcher) -> None:
    for command in ("checkpoint list", "training list", "storage list", "secret list", "cache list"):
        launcher(*command.split())
        assert launcher.json(*command.split()) == []


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False), ({"CI": "1"}, True)],
)
def test_colours_are_for_terminals_that_want_them(home: Launcher, env: dict[str, str], coloured: bool) -> None:
    commands = [["checkpoint", "list"], ["checkpoint", "inspect", "nothing"], ["training", "run", "x", "--", "false"]]
    for words in commands if "NO_COLOR" in env else commands[1:2]:
        output = on_terminal([PROGRAM, *words], home.env, 200, **env)
        assert ("\x1b" in output) == coloured, (words, output)


@pytest.mark.parametrize(("env", "bar"), [({}, True), ({"CI": "1"}, False), ({"TERM": "dumb"}, False)])
def test_progress_is_drawn_again_only_where_somebody_looks(home: Launcher, env: dict[str, str], bar: bool) -> None:
    script = (
        "import time; from launcher.progress import Progress; from launcher.events import Console\n"
        "with Progress('Fetching', 100, Console()) as progress:\n"
        "    progress(1); time.sleep(0.4); progress(50); time.sleep(0.1); progress(49)\n"
    )
    output = on_terminal([sys.executable, "-c", script], home.env, **env)
    assert ("\x1b" in output or "\r" in output) == bar, output


def test_verbose_says_more_and_where_an_error_came_from(home: Launcher, tmp_path: Path) -> None:
    quiet = home("training", "run", "v", "--", "true")
    talking = home("-v", "training", "run", "v", "--", "true")
    assert "are captured by" in talking and "are captured by" not in quiet
    assert "are captured by" in Launcher(tmp_path, LAUNCHER_VERBOSE="1")("training", "run", "v", "--", "true")
    assert "Traceback" in home("-v", "training", "inspect", "nothing", code=66)
    assert "Traceback" not in home("training", "inspect", "nothing", code=66)


def test_the_version(home: Launcher) -> None:
    from launcher import __version__

    assert home("--version").split() == ["launcher,", "version", __version__]
