"""The input is read-only in fact, on every rung; where nothing holds it, a change is found and said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher

ATTACKS = {
    "create": "touch $IN/new",
    "write": "echo x > $IN/config.json",
    "append": "echo x >> $IN/config.json",
    "truncate": "truncate -s 0 $IN/config.json",
    "remove": "rm -f $IN/config.json",
    "rename over": "cp $IN/config.json /tmp/c$$ && mv /tmp/c$$ $IN/config.json",
    "rename out": "mv $IN/config.json /tmp/out$$",
    "chmod": "chmod 777 $IN && echo x > $IN/config.json",
    "link out and write": "cd $FLEXAI_OUTPUT_CHECKPOINT_DIR && ln $IN/config.json l && chmod u+w l && echo x > l",
    "through the cache": "chmod -R u+w $CACHE && echo x > $(find $CACHE/checkpoints -name config.json | head -1)",
    "remount": "mount -o remount,rw $IN && echo x > $IN/config.json",
    "unmount": "umount -l $IN && echo x > $IN/config.json",
    "swap the parent": "mv $IN $IN.old && mkdir $IN",
}  # fmt: skip


def attack(
    launcher: Launcher, rung: str, text: str, program: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A job that exits with 9 where the attack works, else with 5."""
    return run(launcher, rung, f"({text}) 2>&1 && exit 9; exit 5", program)


def run(launcher: Launcher, rung: str, text: str, program: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    env = launcher.env | {"LAUNCHER_INPUT_GUARD": rung, "CACHE": launcher.env["LAUNCHER_CACHE_DIR"]}
    words = ["training", "run", "attack", "-C", "base", "--", "sh", "-c", f"IN=$LAUNCHER_INPUT_CHECKPOINT; {text}"]
    return subprocess.run(
        [*(program or [PROGRAM]), *words], env=env, cwd="/", capture_output=True, text=True, timeout=60
    )


def content(launcher: Launcher) -> bytes:
    found = list((launcher.home / "cache/checkpoints").glob("*/config.json"))
    assert len(found) == 1
    return found[0].read_bytes()


def python_for_everybody(launcher: Launcher) -> list[str]:
    """`launcher` by an interpreter that another user may execute: this one may lie in a home folder."""
    real = Path(sys.executable).resolve()
    if all(parent.stat().st_mode & 0o001 for parent in real.parents):
        return [PROGRAM]
    version = subprocess.run(["/usr/bin/python3", "-V"], capture_output=True, text=True).stdout.split()[-1]
    assert version.startswith("%d.%d." % sys.version_info[:2]), f"no interpreter for everybody: {version}"
    launcher.env["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    return ["/usr/bin/python3", "-m", "launcher"]


@pytest.mark.parametrize("rung", ["bind", "landlock"])
def test_no_attack_changes_the_input_even_as_root(launcher: Launcher, tiny_model: Path, rung: str) -> None:
    if os.geteuid() != 0 and rung == "bind":
        pytest.skip("the bind rung needs root")
    launcher("checkpoint", "push", "base", "--file", tiny_model)
    before = (tiny_model / "config.json").read_bytes()
    for name, text in ATTACKS.items():
        done = attack(launcher, rung, text)
        assert done.returncode == 5, f"{name} on {rung}: {done.stdout}{done.stderr}"
        assert f"read-only by: {rung}" in done.stderr
        assert content(launcher) == before, name


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user reaches: pytest's own are closed to others, by each of its runs anew."""
    folder = Path(tempfile.mkdtemp(prefix="launcher-test-"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", folder], check=True)
    shutil.rmtree(folder)


def test_no_attack_changes_the_input_of_an_unprivileged_user(public: Path, tiny_model: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    launcher = Launcher(public / "home")
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *python_for_everybody(launcher)]
    shutil.copytree(tiny_model, public / "model")
    for path in (public / "model").iterdir():
        path.chmod(0o644)
    push = [*as_nobody, "checkpoint", "push", "base", "--file", str(public / "model")]
    subprocess.run(push, env=launcher.env, cwd="/", check=True)
    before = (tiny_model / "config.json").read_bytes()
    for rung in ("userns", "landlock"):
        for name, text in ATTACKS.items():
            done = attack(launcher, rung, text, as_nobody)
            assert done.returncode == 5, f"{name} on {rung}: {done.stdout}{done.stderr}"
            assert content(launcher) == before, name


def test_where_nothing_protects_the_input_a_change_is_found(launcher: Launcher, tiny_model: Path) -> None:
    launcher("checkpoint", "push", "base", "--file", tiny_model)
    for text in ("echo x >> $IN/config.json", "touch $IN/new", "rm $IN/config.json"):
        done = run(launcher, "none", f"chmod -R u+w $(readlink -f $IN); {text}")
        assert done.returncode == 65, done.stderr
        assert "changed its input checkpoint 'base'" in done.stderr and "NOTHING keeps" in done.stderr
    # The damaged copy was dropped: the next job gets a whole one.
    assert run(launcher, "none", "grep -q Mistral $IN/config.json").returncode == 0


def test_an_unknown_rung_is_refused(launcher: Launcher, tiny_model: Path) -> None:
    launcher("checkpoint", "push", "base", "--file", tiny_model)
    assert "choose from" in attack(launcher, "magic", "true").stderr
