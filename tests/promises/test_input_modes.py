"""An input that the job may change: a view whose changes die with the job, by whatever this machine can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.inputs.cache import NodeCache
from launcher.inputs.entries import About
from tests.promises.test_input_read_only import Rig, public, rig
from tests.support.filesystems import mounted

__all__ = ["public"]

WRITE = (
    "set -e; cd $LAUNCHER_INPUT_CHECKPOINT; test -f config.json; echo x > sub/new; echo x > new; rm sub/data.txt;"
    " echo '{}' >> config.json; mv config.json renamed; mkdir sub/cache; chmod 600 renamed; ls -A . sub"
)


def write_into_the_view(it: Rig, rung: str) -> str:
    """Runs a job that changes its input; returns what the launcher said."""
    it.launcher.env["LAUNCHER_INPUT_GUARD"] = rung
    done = it.run("training", "run", "writer", "-C", "base", "--input-writable", "--", "sh", "-c", WRITE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [".:", "new", "renamed", "sub", "sub:", "cache", "new"]
    # The next job gets what was pushed, and nothing of the view is left.
    again = it.run(
        "training", "run", "reader", "-C", "base", "--", "sh", "-c", "find $LAUNCHER_INPUT_CHECKPOINT/ -type f"
    )
    assert sorted(line.rpartition("/base/")[2] for line in again.stdout.split()) == ["config.json", "sub/data.txt"]
    expected = {str(path.relative_to(it.model)): path.read_bytes() for path in it.model.rglob("*") if path.is_file()}
    assert it.cached() == expected
    cache = NodeCache(it.launcher.env["LAUNCHER_CACHE_DIR"])
    assert [cache.damage(entry) for entry in cache.entries()] == [[]]
    assert list((it.launcher.home / "data" / "jobs").glob("writer/*/view")) == []
    return done.stderr


@pytest.mark.parametrize(
    ("user", "rung", "how"),
    [
        ("root", "bind", "a copy-on-write view"),
        ("an ordinary user", "userns", "a copy-on-write view"),
        ("root", "landlock", "a whole copy"),
        ("an ordinary user", "permissions", "a whole copy"),
    ],
)
def test_a_writable_input_is_a_view(public: Path, user: str, rung: str, how: str) -> None:
    said = write_into_the_view(rig(public, user), rung)
    if how not in said and how == "a whole copy":
        how = "reflinks"  # where the tests lie on such a file system
    if how not in said and how == "a copy-on-write view":
        how = "no overlayfs: "  # in a container, whose own file system is an overlay already
    assert how in said, said


def test_without_overlayfs_the_view_is_made_of_reflinks(tmp_path: Path) -> None:
    with mounted("xfs") as disk:
        it = rig(disk, "root")
        assert "reflinks, which take no space" in write_into_the_view(it, "landlock")


def test_a_store_on_the_same_disk_is_not_copied(tmp_path: Path) -> None:
    """By reflinks where the file system has them, on every rung; by hard links else, only where no mode can be changed."""
    for kind, rung, shared, links in (
        ("xfs", "none", True, 1),
        ("ext4", "bind", True, 2),
        ("ext4", "landlock", False, 1),
    ):
        with mounted(kind) as disk:
            it = rig(disk, "root")
            it.launcher.env["LAUNCHER_INPUT_GUARD"] = rung
            look = "stat -c %h $LAUNCHER_INPUT_CHECKPOINT/config.json"
            done = it.run("training", "run", "x", "-C", "base", "--", "sh", "-c", look)
            assert done.stdout.split() == [str(links)], (kind, rung, done.stdout, done.stderr)
            (entry,) = NodeCache(it.launcher.env["LAUNCHER_CACHE_DIR"]).entries()
            assert entry.about.shared is shared, (kind, rung)
            if links == 2:
                done, results = it.attack("bind,landlock")
                assert [name for name, result in results.items() if result == "done"] == []
                store = next((it.launcher.home / "data" / "store" / "checkpoints").iterdir())
                text = f"chmod u+w {store}/config.json || echo x > {store}/config.json"
                done = it.run("training", "run", "x", "-C", "base", "--", "sh", "-c", f"! ({text}) 2>&1")
                assert done.returncode == 0 and done.stdout.count("Read-only file system") == 2, done.stdout
                # A job on another rung never gets the links.
                it.launcher.env["LAUNCHER_INPUT_GUARD"] = "none"
                done = it.run("training", "run", "x", "-C", "base", "--", "sh", "-c", look)
                assert done.stdout.split() == ["1"], done.stderr


def test_damage_in_a_store_on_the_same_disk_is_found(tmp_path: Path) -> None:
    for kind, rung in (("xfs", "none"), ("ext4", "bind")):
        with mounted(kind) as disk:
            it = rig(disk, "root")
            it.launcher.env["LAUNCHER_INPUT_GUARD"] = rung
            store = next((it.launcher.home / "data" / "store" / "checkpoints").iterdir())
            (store / "config.json").chmod(0o644)
            with open(store / "config.json", "r+b") as file:
                file.write(b"X")
            (store / "config.json").chmod(0o444)
            done = it.run("training", "run", "x", "-C", "base", "--", "true")
            assert done.returncode == 65 and "config.json of checkpoint" in done.stderr, done.stderr


def test_a_warm_checkpoint_of_1000_files_and_100_gb_is_mounted_without_a_look_at_its_files(public: Path) -> None:
    """benchmarks/cache.py measures it; here it works, and whatever the machine does meanwhile, it takes no read of 100 GB."""
    it = rig(public, "root")
    cache = NodeCache(it.launcher.env["LAUNCHER_CACHE_DIR"])
    (identifier,) = [each["metadata"]["id"] for each in it.launcher.json("checkpoint", "list")]

    def sparse(partial: Path) -> About:
        for number in range(1000):
            with open(partial / f"{number}", "wb") as file:
                file.truncate(100_000_000)
        return About("base", "made here", ())

    cache._entries.make(identifier, sparse, lambda: None).release()
    it.launcher.env["LAUNCHER_INPUT_GUARD"] = "bind,userns,landlock"
    done = it.run("training", "run", "x", "-C", "base", "--", "sh", "-c", "ls $LAUNCHER_INPUT_CHECKPOINT | wc -l")
    assert done.stdout.split() == ["1000"], done.stderr
    ready = [json.loads(line) for line in (it.launcher.job("x") / "events.jsonl").read_text().splitlines()]
    print([each.get("seconds") for each in ready if each["kind"] == "input-ready"])
