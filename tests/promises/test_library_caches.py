"""Libraries that write beside the model or into the home folder keep working: their caches lie where the job can write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises.test_input_read_only import Rig, public, rig
from tests.support.cli import Launcher

__all__ = ["public"]

NAMES = ("HF_HOME", "HF_DATASETS_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
SHOW = f"import json, os; print(json.dumps({{name: os.environ.get(name) for name in {NAMES + ('HF_HUB_CACHE',)}}}))"


def shown(it: Rig, **env: str) -> dict[str, str]:
    """The variables as a job with an input sees them."""
    kept = {key: value for key, value in it.launcher.env.items() if key not in (*NAMES, "XDG_CACHE_HOME", "TMPDIR")}
    it.launcher.env = kept | env
    done = it.run("training", "run", "x", "-C", "base", "--launch", "exec", "--", "/usr/bin/python3", "-c", SHOW)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return {name: value for name, value in found.items() if value}


def test_nothing_is_set_where_the_defaults_can_be_written(public: Path) -> None:
    it = rig(public, "root")
    (public / "own").mkdir()
    it.launcher.env["LAUNCHER_INPUT_GUARD"] = "bind" if os.geteuid() == 0 else "userns"
    assert shown(it, HOME=str(public / "own"), TMPDIR=str(public / "own")) == {}


def test_a_home_that_cannot_be_written_gets_the_users_folder_in_the_node_cache(public: Path) -> None:
    it = rig(public, "an ordinary user")
    home = public / "closed"
    (home / ".cache" / "huggingface" / "hub").mkdir(parents=True)
    for path in (home / ".cache" / "huggingface" / "hub", home / ".cache" / "huggingface", home / ".cache", home):
        path.chmod(0o555)
    own = it.launcher.home / "cache" / "libraries" / "65534"
    found = shown(it, HOME=str(home), TMPDIR=str(home))
    assert found == {
        "HF_HOME": f"{own}/huggingface",
        "HF_HUB_CACHE": f"{home}/.cache/huggingface/hub",  # what the image or the user brought is still found
        "HF_DATASETS_CACHE": f"{own}/huggingface/datasets",
        "TRITON_CACHE_DIR": f"{own}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{own}/torchinductor",
        "MPLCONFIGDIR": f"{own}/matplotlib",
    }
    assert own.stat().st_mode & 0o777 == 0o700 and own.stat().st_uid == 65534
    # What the user names is his.
    found = shown(it, HOME=str(home), TMPDIR="/tmp", HF_HOME="/nowhere", TRITON_CACHE_DIR="/none", MPLCONFIGDIR="/no")
    assert (found["HF_HOME"], found["TRITON_CACHE_DIR"], found["MPLCONFIGDIR"]) == ("/nowhere", "/none", "/no")
    assert found["HF_DATASETS_CACHE"] == f"{own}/huggingface/datasets"


USE = """
import os, sys, torch, transformers
from torch._inductor.runtime import cache_dir_utils
# A model with code of its own: transformers copies the code to its modules' cache before it imports it.
model = transformers.AutoModelForCausalLM.from_pretrained(os.environ["LAUNCHER_INPUT_CHECKPOINT"], trust_remote_code=True)
print("modules", sys.modules[type(model).__module__].__file__)
print("inductor", cache_dir_utils.cache_dir())
open(os.path.join(cache_dir_utils.cache_dir(), "kernel"), "w").close()
"""


def test_transformers_and_torch_work_from_a_home_that_cannot_be_written(public: Path, tiny_model: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a read-only mount needs root")
    model = public / "custom"
    subprocess.run(["cp", "-r", tiny_model, model], check=True)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_own.py").write_text(
        "from transformers import MistralForCausalLM\n\n\nclass Own(MistralForCausalLM):\n    pass\n"
    )
    launcher = Launcher(public / "other", HOME=str(public / "home-ro"), LAUNCHER_INPUT_GUARD="bind")
    for name in NAMES:
        launcher.env.pop(name, None)
    launcher.env["TMPDIR"] = str(public / "home-ro")
    (public / "home-ro").mkdir()
    launcher("checkpoint", "push", "custom", "--file", model)
    subprocess.run(["mount", "--bind", "-o", "ro", public / "home-ro", public / "home-ro"], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", public / "home-ro"], check=True)
        words = ["training", "run", "x", "-C", "custom", "--launch", "exec", "--", sys.executable, "-c", USE]
        output = launcher(*words, timeout=280)
    finally:
        subprocess.run(["umount", public / "home-ro"], check=True)
    said = dict(line.split(" ", 1) for line in output.splitlines() if line.startswith(("modules ", "inductor ")))
    own = f"{public}/other/cache/libraries/0"
    assert said["modules"].startswith(f"{own}/huggingface/modules") and said["inductor"] == f"{own}/torchinductor"
