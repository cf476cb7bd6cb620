"""What a server's command is told: placeholders and the folder of its model."""

from __future__ import annotations

import inspect
from pathlib import Path

from launcher import model_folder
from launcher.inputs.choose import Chosen, Provided
from launcher.runners import docker


def provided(folder: Path, *names: str) -> Provided:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"{folder.name} {name}")
    return Provided(Chosen(folder.name, (folder.name,), folder=str(folder)), str(folder))


def test_an_adapter_lies_over_its_base(tmp_path: Path) -> None:
    adapter = provided(tmp_path / "adapter", "adapter_config.json", "tokenizer.json")
    base = provided(tmp_path / "base", "config.json", "tokenizer.json", "model.safetensors")
    for _ in range(2):  # The job is started again.
        model_folder.make(tmp_path / "models", "a/b", [adapter, base], [adapter.path, base.path])
    found = {each.name: each.read_text() for each in (tmp_path / "models" / "a" / "b").iterdir()}
    assert found == {
        "adapter_config.json": "adapter adapter_config.json",
        "tokenizer.json": "adapter tokenizer.json",
        "config.json": "base config.json",
        "model.safetensors": "base model.safetensors",
    }


def test_only_placeholders_are_replaced() -> None:
    env = model_folder.variables("a/b", "/models", ["/in/x", "/in/base"], "127.0.0.1", 8000)
    words = (
        "{checkpoint}/f",
        "--base={base}",
        "{model}",
        "{models}",
        "{name}",
        "{host}:{port}",
        '{"json": {}}',
        "{other}",
    )
    assert model_folder.expand(words, "a/b", env) == (
        "/in/x/f", "--base=/in/base", "/models/a/b", "/models/", "a/b", "127.0.0.1:8000", '{"json": {}}', "{other}",
    )  # fmt: skip
    alone = model_folder.variables("n", "/models", ["/in/x"], "::1", 1)
    assert model_folder.expand(("{base}",), "n", alone) == ("{base}",)


def test_a_chat_template_is_found_in_either_place(tmp_path: Path) -> None:
    none = provided(tmp_path / "none", "config.json")
    assert not model_folder.has_chat_template([none])
    (tmp_path / "none" / "tokenizer_config.json").write_text("[")
    assert not model_folder.has_chat_template([none])
    (tmp_path / "none" / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    assert model_folder.has_chat_template([none])
    assert model_folder.has_chat_template([provided(tmp_path / "file", "chat_template.jinja")])


def test_a_container_publishes_its_port_on_the_address_that_was_asked_for() -> None:
    def request(**more: object) -> dict[str, object]:
        needed = [
            name for name, each in inspect.signature(docker.plan).parameters.items() if each.default is each.empty
        ]
        words = dict.fromkeys(needed, "x") | {"command": (), "env": {}, "inputs": (), "writable": (), "network": ""}
        words |= {"shm_size": 1, "gpus": 0}
        return docker.plan(**(words | more))  # type: ignore[arg-type]

    assert "ports" not in request()
    asked = request(publish=("127.0.0.1", 8000), models="/m")
    assert asked["ports"] == {"8000/tcp": ("127.0.0.1", 8000)}
    assert {"Type": "bind", "Source": "/m", "Target": "/run/launcher/models", "ReadOnly": True} in asked["mounts"]  # type: ignore[operator]
    assert "ports" not in request(publish=("127.0.0.1", 8000), network="host")
