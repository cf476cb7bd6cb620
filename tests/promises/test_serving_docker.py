"""A server in a container of a real engine: reached at this machine's own address alone, and gone when it is stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.promises.test_serving import get
from tests.support.cli import Launcher
from tests.support.images import BASE

# The first test waits for the base image, which takes minutes to make where it is not there yet.
pytestmark = pytest.mark.timeout(1500)


def test_a_server_in_a_container_is_published_on_loopback(launcher: Launcher, engine: str, tmp_path: Path) -> None:
    launcher.env["DOCKER_HOST"] = engine
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["TinyForCausalLM"], "model_type": "tiny"}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "model" / "model.safetensors").chmod(0o600)  # As peft and transformers leave them.
    launcher("checkpoint", "push", "base", "--file", tmp_path / "model")
    words = ("inference", "serve", "boxed", "-C", "base", "--runner", "docker", "--image", BASE, "--detach", "--")
    launcher(*words, "python3", "-m", "http.server", "{port}", "--bind", "{host}", "--directory", "{model}")
    url = launcher("inference", "wait", "boxed").strip()
    assert url.startswith("http://127.0.0.1:")
    assert get(f"{url}/config.json") == {"architectures": ["TinyForCausalLM"], "model_type": "tiny"}
    assert get(f"{url}/model.safetensors").endswith("{}")
    docker = shutil.which("docker") or "docker"
    name = f"launcher-{launcher.job('boxed').name}"
    shown = subprocess.run([docker, "inspect", name], env=launcher.env, capture_output=True, text=True, check=True)
    ports = json.loads(shown.stdout)[0]["HostConfig"]["PortBindings"]
    port = url.rpartition(":")[2]
    assert ports == {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": port}]}
    launcher("inference", "stop", "boxed")
    left = subprocess.run([docker, "ps", "--all", "--quiet"], env=launcher.env, capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (0, "")
    with pytest.raises(OSError):
        get(f"{url}/config.json")
    (attempt,) = launcher.json("inference", "inspect", "boxed")["attempts"]
    assert attempt["inputs"][0]["rung"] == "engine" and attempt["server"]["state"] == "ended"
