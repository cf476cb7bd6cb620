"""Mount targets and cache entries swapped with links while they are used: refused, and nothing outside is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from launcher.inputs.protection import Protection, program

ROUNDS = 8
_SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
one, other = sys.argv[1].encode(), sys.argv[2].encode()
print("swapping", flush=True)
parent = os.getppid()
while os.getppid() == parent:
    libc.renameat2(-100, one, -100, other, 2)  # RENAME_EXCHANGE
"""
JOB = (
    "grep -q outside /proc/self/mountinfo && exit 9; "  # a mount in the folder that a link led to
    "test -e ../outside/base/config.json && exit 8; "
    "exit 0"
)


@pytest.mark.parametrize(
    ("rung", "what"),
    [
        ("bind", "the target"),
        ("bind", "the folder above it"),
        ("bind", "the source"),
        ("none", "the target"),
        ("none", "the source"),
    ],
)
def test_what_is_swapped_with_a_link_is_refused(tmp_path: Path, rung: str, what: str) -> None:
    """A slice of T27: another process exchanges the folder and a link to a folder outside, as fast as it can."""
    if os.geteuid() != 0 and rung == "bind":
        pytest.skip("the bind rung needs root")
    root = Path(os.path.realpath(tmp_path))
    outside = root / "outside"
    (outside / "base").mkdir(parents=True)
    (outside / "base" / "secret").write_text("of another user")
    source, target = root / "cache" / "base", root / "jobs" / "input" / "base"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    target.mkdir(parents=True)
    swapped = {"the target": target, "the folder above it": target.parent, "the source": source}[what]
    leads_to = outside if what == "the folder above it" else outside / "base"
    (root / "link").symlink_to(leads_to)
    protection = Protection(
        rungs=(rung,), inputs=(str(target.parent),), mounts=((str(source), str(target)),), hide=(str(source.parent),)
    )
    swapper = subprocess.Popen(
        [sys.executable, "-c", _SWAP, str(swapped), str(root / "link")], stdout=subprocess.PIPE, text=True
    )
    ended: Counter[int] = Counter()
    try:
        assert swapper.stdout and swapper.stdout.readline() == "swapping\n"
        for _ in range(ROUNDS):
            reader, writer = os.pipe()
            done = subprocess.run(
                [*program(protection.plan(writer)), "sh", "-c", JOB], pass_fds=[writer], cwd=root / "cache",
                capture_output=True, timeout=60,
            )  # fmt: skip
            os.close(writer)
            os.close(reader)
            ended[done.returncode] += 1
            swapper.send_signal(signal.SIGSTOP)
            os.waitpid(swapper.pid, os.WUNTRACED)  # until it has stopped
            for path in (target, root / "link"):
                if path.is_symlink() and os.readlink(path) == str(source):  # without a mount, a link stands for it
                    path.unlink()
                    path.mkdir()
            swapper.send_signal(signal.SIGCONT)
    finally:
        swapper.kill()
        swapper.communicate()
    print(f"{rung}, {what} swapped: {ROUNDS} rounds, {ended[0]} mounted, {ended[73]} refused, 0 outside")
    assert ended[0] + ended[73] == ROUNDS, ended
    assert [path.name for path in outside.rglob("*")] == ["base", "secret"]
