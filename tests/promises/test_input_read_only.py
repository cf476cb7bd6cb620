"""The input is read-only in fact, on every rung; what no rung can prevent is found and said.

`tests/attacks/on_input.py` is the table of attacks. Each rung meets all of it, as root and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.on_input import AFTER_A_NEW_MODE, ALL, METADATA
from tests.support.cli import ROOT, Launcher

PROGRAM_OF_ATTACKS = ROOT / "tests" / "attacks" / "on_input.py"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user reaches: pytest's own are closed to others, by each of its runs anew."""
    folder = Path(tempfile.mkdtemp(prefix="launcher-test-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    shutil.rmtree(folder)


class Rig:
    """A launcher with a checkpoint `base`, as a user: `words` come before the command line."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.launcher = Launcher(folder / "home")
        self.python = [*words, python_for_everybody(self.launcher)] if words else [sys.executable]
        self.launcher.env["CACHE"] = self.launcher.env["LAUNCHER_CACHE_DIR"]
        model = folder / "model"
        (model / "sub").mkdir(parents=True)
        (model / "config.json").write_text(json.dumps({"model_type": "mistral"}) * 100)
        (model / "sub" / "data.txt").write_text("data")
        for path in (model, model / "sub"):
            path.chmod(0o755)
        shutil.copy(PROGRAM_OF_ATTACKS, folder / "on_input.py")
        self.program = str(folder / "on_input.py")
        self.model = model
        assert self.run("checkpoint", "push", "base", "--file", str(model)).returncode == 0

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.python, "-m", "launcher", *words],
            env=self.launcher.env,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )

    def attack(self, rung: str, *names: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
        """A job that tries the attacks, and what came of each."""
        self.launcher.env["LAUNCHER_INPUT_GUARD"] = rung
        command = ["/usr/bin/python3", "-I", "-S", self.program, *names]
        done = self.run("training", "run", "attack", "-C", "base", "--launch", "exec", "--", *command)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stdout + done.stderr
        return done, json.loads(lines[0])

    def cached(self) -> dict[str, bytes]:
        """The content of every file of the cache's entry."""
        (entry,) = (self.launcher.home / "cache" / "checkpoints").iterdir()
        return {str(path.relative_to(entry)): path.read_bytes() for path in entry.rglob("*") if path.is_file()}


def python_for_everybody(launcher: Launcher) -> str:
    """An interpreter that another user may execute and that finds the launcher: this one may lie in a home folder."""
    if all(parent.stat().st_mode & 0o001 for name in (sys.executable, ROOT) for parent in Path(name).resolve().parents):
        return sys.executable
    version = subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True).stdout.split()[-1]
    assert version.startswith("%d.%d." % sys.version_info[:2]), f"no interpreter for everybody: {version}"
    launcher.env["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    return "/usr/bin/python3"


USERS = {
    "root": [],
    "root without CAP_SYS_ADMIN": ["setpriv", "--bounding-set=-sys_admin,-sys_ptrace", "--inh-caps=-all"],
    "an ordinary user": ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
}


def rig(folder: Path, user: str) -> Rig:
    if os.geteuid() != 0 and user != "root":
        pytest.skip("becoming another user needs root")
    return Rig(folder, USERS[user])


@pytest.mark.parametrize(
    ("user", "rung"),
    [
        ("root", "bind"),
        ("root", "landlock"),
        ("root without CAP_SYS_ADMIN", "landlock"),
        ("an ordinary user", "userns"),
        ("an ordinary user", "landlock"),
    ],
)
def test_no_attack_changes_the_input(public: Path, user: str, rung: str) -> None:
    if rung == "bind" and os.geteuid() != 0:
        pytest.skip("the bind rung needs root")
    it = rig(public, user)
    apart = {*METADATA, *AFTER_A_NEW_MODE} if rung == "landlock" else set()
    done, results = it.attack(rung, *(name for name in ALL if name not in apart))
    print(f"{user}, {rung}: {len(results)} attacks, 0 successes: {json.dumps(results)}")
    assert [name for name, result in results.items() if result == "done"] == []
    assert done.returncode == 0 and f"read-only by: {rung}" in done.stderr, done.stderr
    expected = {str(path.relative_to(it.model)): path.read_bytes() for path in it.model.rglob("*") if path.is_file()}
    assert it.cached() == expected


NO_CHANGE = {
    "trace another process",  # what it could do next is other attacks
    "swap the parent",  # the job's own folder of links; the input is elsewhere
    "mount over",  # without a namespace, a mount of this machine
}


@pytest.mark.parametrize(
    ("user", "rung", "at_least"),
    [
        ("root", "landlock", 5),
        ("an ordinary user", "landlock", 5),
        ("an ordinary user", "permissions", 9),
        ("root", "none", 30),
    ],
)
def test_what_a_rung_does_not_prevent_is_found(public: Path, user: str, rung: str, at_least: int) -> None:
    """Modes, owners and times are no business of Landlock; below it, nothing holds."""
    it = rig(public, user)
    names = [*METADATA, *AFTER_A_NEW_MODE] if rung == "landlock" else [name for name in ALL if name not in NO_CHANGE]
    done = subprocess.run(
        [*it.python, "-m", "tests.attacks.after_the_job", rung, str(it.launcher.home / "data" / "store"), *names],
        env=it.launcher.env | {"TMPDIR": str(public)}, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    changed = [name for name, (result, _) in results.items() if result == "done"]
    print(f"{user}, {rung}: {len(names)} attacks, {len(changed)} done and found, {len(names) - len(changed)} refused")
    assert len(changed) >= at_least
    assert [name for name in changed if not results[name][1]] == []
    if rung == "landlock":
        assert [name for name in changed if name not in METADATA] == []


def test_a_changed_input_fails_the_job_and_is_fetched_anew(public: Path) -> None:
    it = rig(public, "root")
    for name in ("append", "change the mode"):
        done, results = it.attack("none", name)
        assert results == {name: "done"}
        assert done.returncode == 65, done.stderr
        assert "changed its input checkpoint 'base'" in done.stderr and "NOTHING keeps" in done.stderr
    assert it.attack("none", "an inherited descriptor")[0].returncode == 0


def test_the_job_inherits_no_descriptor_but_0_1_2(public: Path) -> None:
    it = rig(public, "root")
    reader, writer = os.pipe()
    with open(it.model / "config.json", "r+b") as file:
        command = ["training", "run", "fds", "-C", "base", "--", "sh", "-c", "ls /proc/self/fd"]
        done = subprocess.run(
            [*it.python, "-m", "launcher", *command], env=it.launcher.env, pass_fds=[file.fileno(), reader, writer],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    os.close(reader)
    os.close(writer)
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


def test_an_unknown_rung_is_refused(launcher: Launcher) -> None:
    launcher.env["LAUNCHER_INPUT_GUARD"] = "magic"
    assert "choose from" in launcher("training", "run", "x", "--", "true", code=64)


def test_the_report_says_which_rungs_were_not_to_be_had(public: Path) -> None:
    it = rig(public, "root without CAP_SYS_ADMIN")
    it.launcher.env["LAUNCHER_INPUT_GUARD"] = "auto"
    done = it.run("training", "run", "x", "-C", "base", "--", "true")
    assert "read-only by: landlock" in done.stderr
    assert "bind was not to be had: unshare: Operation not permitted" in done.stderr
