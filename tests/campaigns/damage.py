"""Damage in a store: every flipped bit, and every object that is dropped, cut, exchanged or added, is named by `check`.

    python -m tests.campaigns.damage [--flips 1000] [--others 200] [--seed 1]

Beside `check --read-data`, readers fetch every version after each damage: they get the bytes that were stored, or an error.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from launcher.errors import LauncherError
from launcher.store.check import check
from tests.support.commits import commit, fetched, open_store

KINDS = ("checkpoints", "manifests", "names")


def make(root: Path, chance: random.Random) -> dict[str, dict[str, bytes]]:
    """A store of three names with two versions each; returns label to path to bytes."""
    store = open_store(str(root))
    made = {}
    for name in ("base", "j", "j/checkpoint-1"):
        for _ in range(2):
            content = {path: chance.randbytes(chance.randint(1, 300)) for path in ("a.bin", "d/b.bin", "c")}
            made[commit(store, name, content, job="j" if name != "base" else "").label] = content
    return made


def damage(root: Path, what: str, chance: random.Random) -> tuple[str, set[str]]:
    """Does one damage; returns what it was and the keys of which check must name one."""
    kind = chance.choice(KINDS)
    paths = sorted(path for path in (root / kind).rglob("*") if path.is_file())
    path = chance.choice(paths)
    key = str(path.relative_to(root))
    path.chmod(0o644)
    data = path.read_bytes()
    if what == "flip":
        position = chance.randrange(len(data) * 8)
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
    elif what == "drop":
        path.unlink()
        # A dropped name is seen by the gap it leaves, or by the manifest that nothing names any more.
        return f"drop {key}", {key, key.rpartition("/")[0] + "/"}
    elif what == "truncate":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif what == "exchange":
        other = chance.choice([each for each in paths if each != path and each.read_bytes() != data])
        other.chmod(0o644)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return f"exchange {key}", {key}
    else:
        added = path.with_name("added.json" if kind != "checkpoints" else "added")
        added.write_bytes(data)
        return f"add {added.relative_to(root)}", {str(added.relative_to(root))}
    return f"{what} {key}", {key}


def wrong_bytes(root: Path, made: dict[str, dict[str, bytes]]) -> list[str]:
    """Labels for which a reader got other bytes than were stored."""
    store, wrong = open_store(str(root)), []
    for label, content in made.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                got = fetched(store, label, folder)
            except LauncherError:
                continue
            if got != content:
                wrong.append(label)
    return wrong


def campaign(flips: int, others: int, seed: int) -> tuple[str, bool]:
    """The table of figures, and whether everything was named and no wrong byte was read."""
    chance = random.Random(seed)
    done, named, bad = Counter[str](), Counter[str](), []
    todo = ["flip"] * flips + [("drop", "truncate", "exchange", "add")[number % 4] for number in range(others)]
    with tempfile.TemporaryDirectory() as base:
        made = make(Path(base, "sound"), chance)
        assert not check(open_store(f"{base}/sound"), read_data=True).damage
        for what in todo:
            root = Path(base, "damaged")
            shutil.copytree(Path(base, "sound"), root)
            did, keys = damage(root, what, chance)
            found = check(open_store(str(root)), read_data=True)
            done[what] += 1
            if any(each.key in keys for each in found.damage):
                named[what] += 1
            else:
                bad.append(f"{did}: not named; {found.damage}")
            bad += [f"{did}: wrong bytes of {label}" for label in wrong_bytes(root, made)]
            for parent, _, names in os.walk(root):
                for name in names:
                    os.chmod(os.path.join(parent, name), 0o644)
            shutil.rmtree(root)
    counts = ", ".join(f"{what} {named[what]}/{done[what]}" for what in done)
    wrong = sum("wrong bytes" in each for each in bad)
    return "\n  ".join([f"named by check: {counts}; {wrong} wrong bytes read", *bad[:20]]), not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    text, well = campaign(arguments.flips, arguments.others, arguments.seed)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
