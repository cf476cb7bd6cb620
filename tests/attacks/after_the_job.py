"""What is found after a job that nothing prevented: `python -m tests.attacks.after_the_job RUNG STORE NAME…`.

For each attack: a fresh copy in the node cache, the guard program with this one rung, the attack as its job, and the check
that the launcher makes then. Prints {name: [what happened, what was found]} as JSON. A program, so that it runs as any user.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from launcher.errors import InputChanged
from launcher.inputs import choose
from launcher.inputs.cache import NodeCache
from launcher.inputs.protection import Protection, program
from launcher.settings import Settings
from launcher.store.store import Store
from launcher.transfer.local import LocalStore

SCRIPT = str(Path(__file__).with_name("on_input.py"))


def attacked(rung: str, store: Store, name: str, folder: Path) -> tuple[str, str]:
    cache = NodeCache(str(folder / "cache"))
    (chosen,) = choose.choose(["base"], store, Settings(), {})
    provided = choose.provide(chosen, store, cache, lambda count: None)
    target = folder / "input" / "base"
    target.mkdir(parents=True)
    (folder / "output").mkdir()
    protection = Protection(
        rungs=(rung,),
        inputs=(str(target.parent),),
        mounts=((provided.path, str(target)),),
        hide=tuple(provided.same_bytes),
    )
    env = {
        "LAUNCHER_INPUT_CHECKPOINT": str(target),
        "FLEXAI_OUTPUT_CHECKPOINT_DIR": str(folder / "output"),
        "CACHE": str(cache.folder),
    }
    reader, writer = os.pipe()
    command = [*program(protection.plan(writer)), "/usr/bin/python3", "-I", "-S", SCRIPT, name]
    done = subprocess.run(command, env=env, pass_fds=[writer], capture_output=True, text=True, timeout=60)
    os.close(writer)
    os.close(reader)
    try:
        choose.verify(provided, cache, rung)
        found = ""
    except InputChanged as error:
        found = error.text
    assert provided.lease
    provided.lease.release()
    return json.loads(done.stdout)[name], found


def main(rung: str, root: str, names: list[str]) -> None:
    store = Store(LocalStore(root), timeout=20)
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            results[name] = attacked(rung, store, name, Path(os.path.realpath(folder)))
            subprocess.run(["chmod", "-R", "u+w", folder], check=False)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
