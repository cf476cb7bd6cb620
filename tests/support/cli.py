"""The command line as a user runs it: another process, an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(sys.executable).with_name("launcher"))


class Launcher:
    """Runs `launcher …` with data, cache and store below `home`."""

    def __init__(self, home: Path, **env: str) -> None:
        self.home = home
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LAUNCHER_", "FLEXAI_", "AWS_"))}
        self.env = kept | {
            "LAUNCHER_DATA_DIR": str(home / "data"),
            "LAUNCHER_CACHE_DIR": str(home / "cache"),
            "LAUNCHER_CONFIG": os.devnull,
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.env |= env

    def __call__(self, *words: str | Path, code: int = 0, cwd: Path = ROOT, timeout: float = 120) -> str:
        """Runs a command to its end, asserts its exit code, and returns stdout and stderr together."""
        done = subprocess.run(
            [PROGRAM, *map(str, words)],
            env=self.env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == code, f"exit code {done.returncode}, expected {code}:\n{done.stdout}"
        return done.stdout

    def json(self, *words: str) -> Any:
        """The JSON that a read command prints."""
        done = subprocess.run(
            [PROGRAM, *words, "--json"], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def start(self, *words: str | Path, cwd: Path = ROOT) -> subprocess.Popen[str]:
        """Starts a command and returns the process; its output can be read line by line."""
        return subprocess.Popen(
            [PROGRAM, *map(str, words)],
            env=self.env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def job(self, name: str) -> Path:
        """The newest job folder of a name."""
        return max((self.home / "data" / "jobs" / name).glob("0*"))

    def job_folder(self, name: str) -> Path:
        """The only job folder of a name, whatever its id."""
        (folder,) = (each.parent for each in (self.home / "data" / "jobs" / name).glob("*/record.json"))
        return folder

    def result(self, name: str) -> Any:
        """result.json of the newest job of a name."""
        return json.loads((self.job(name) / "result.json").read_text())
