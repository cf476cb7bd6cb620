"""A collected checkpoint is served: a chat's answer over HTTP is the one that the training had in memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.watching import eventually
from tests.support.web_server import listener

TEMPLATE = """{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
FILES = ("python", "-m", "http.server", "{port}", "--bind", "{host}", "--directory", "{checkpoint}")
"""A server that is quick to start: it serves the checkpoint's files, and has no /health."""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Launcher, dict[str, str]]:
    """A launcher whose store has `base` and what a job made of it, and what each of them answers."""
    home = tmp_path_factory.mktemp("served")
    launcher = Launcher(home)
    shutil.copytree(tiny_model, home / "model")
    (home / "model" / "chat_template.jinja").write_text(TEMPLATE)
    launcher("checkpoint", "push", "base", "--file", home / "model")
    script = ROOT / "tests/libraries/tuned.py"
    words = ("training", "run", "tune", "-C", "base", "--settle", "0.5s", "--launch", "exec")
    output = launcher(*words, "--", "python", script, timeout=240)
    line = next(line for line in output.splitlines() if line.startswith("answers "))
    answers: dict[str, str] = json.loads(line.removeprefix("answers "))
    assert len(set(answers.values())) == 3
    return launcher, answers


@pytest.fixture
def served(tuned: tuple[Launcher, dict[str, str]]) -> Iterator[Launcher]:
    """That launcher; a server that a test left is stopped."""
    launcher, _ = tuned
    yield launcher
    for each in launcher.json("inference", "list"):
        if each["state"] == "in progress":
            launcher("inference", "stop", each["name"])


def get(url: str, body: Any = None) -> Any:
    """What a URL answers, as JSON where it is."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith("{") else text


def chat(url: str, model: str) -> str:
    """The answer to the chat of tuned.py."""
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    answer: str = get(f"{url}/v1/chat/completions", body)["choices"][0]["message"]["content"]
    return answer


def until(process: subprocess.Popen[str], text: str) -> str:
    """Reads the live output up to the line that holds `text`; all that was read."""
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the output ended without {text!r}:\n{seen}")


@contextmanager
def counting_proxy() -> Iterator[tuple[str, list[str]]]:
    """The URL of a proxy that takes note of every request, and answers none."""
    seen: list[str] = []
    with listener(lambda connection: seen.append(connection.recv(200).decode(errors="replace"))) as port:
        yield f"http://127.0.0.1:{port}", seen


def test_a_collected_model_answers_a_chat_without_any_network(
    served: Launcher, tuned: tuple[Launcher, dict[str, str]]
) -> None:
    with counting_proxy() as (proxy, asked):
        env = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "https_proxy": proxy, "HF_HOME": str(served.home / "hub")}
        quiet = Launcher(served.home, **env)
        quiet.env.pop("HF_HUB_OFFLINE")
        process = quiet.start("inference", "serve", "full", "-C", "tune/full")
        said = until(process, "Stop it:")
        server = quiet.json("inference", "inspect", "full")["attempts"][0]["server"]
        assert server["state"] == "ready" and server["model"] == "full" and server["chat"]
        assert f"answers at {server['url']}, model full" in said and "/v1/chat/completions" in said
        assert server["url"].startswith("http://127.0.0.1:")
        assert chat(server["url"], "full") == tuned[1]["full"]
        assert served("inference", "wait", "full").strip() == server["url"]
        (row,) = [each for each in served.json("inference", "list") if each["name"] == "full"]
        assert (row["state"], row["server"]["state"], row["checkpoint"]) == ("in progress", "ready", "tune/full")
        process.send_signal(signal.SIGINT)  # Ctrl-C
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 143 and "Stopped by SIGINT" in rest and "It ended in time" in rest
    assert asked == []
    record = served.json("inference", "inspect", "full")
    assert record["state"] == "stopped" and record["attempts"][0]["server"]["state"] == "ended"
    assert "chat/completions" in served("inference", "logs", "full")
    with pytest.raises(OSError):
        get(f"{server['url']}/health")


def test_a_collected_adapter_is_served_with_its_base_found_by_lineage(
    served: Launcher, tuned: tuple[Launcher, dict[str, str]]
) -> None:
    said = served("inference", "serve", "adapter", "-C", "tune/adapter", "--detach")
    assert "Base of tune/adapter, by lineage: base" in said
    url = served("inference", "wait", "adapter").strip()
    assert chat(url, "adapter") == tuned[1]["adapter"]
    record = served.json("inference", "inspect", "adapter")
    assert record["state"] == "in progress"
    references = [each["reference"] for each in record["attempts"][0]["inputs"]]
    assert references == ["tune/adapter", served.json("checkpoint", "inspect", "base")["metadata"]["id"]]
    assert "has stopped" in served("inference", "stop", "adapter")
    assert served.json("inference", "inspect", "adapter")["state"] == "stopped"


def test_what_is_not_ready_says_why(served: Launcher, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    served("checkpoint", "fetch", "tune/adapter", "--destination", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "nobody/has-this"}))
    served("checkpoint", "push", "orphan", "--file", adapter)
    (tmp_path / "half").mkdir()
    shutil.copy(served.home / "model" / "config.json", tmp_path / "half")
    for reference, cause in (
        ("orphan", "its base model (nobody/has-this) is neither in its lineage nor in the store"),
        (adapter, "its base model (nobody/has-this) is neither in its lineage nor in the store"),
        ("tune/sharded", "torch.distributed.checkpoint needs its script, or a conversion"),
        ("tune/optimizer", "is not ready for inference"),
        (tmp_path / "half", "no weights are there"),
    ):
        said = served("inference", "serve", "no", "-C", reference, code=65)
        assert cause in said and "Traceback" not in said, said
        assert len(said.strip().splitlines()) >= 2, said  # what to do next
    assert "--base REF" in served("inference", "serve", "no", "-C", "orphan", code=65)
    with_base = ("inference", "serve", "no", "-C", "orphan", "--base")
    assert "can be an adapter's base" in served(*with_base, "tune/adapter", code=65)
    assert "No checkpoint 'nothing'" in served(*with_base, "nothing", code=66)
    assert not list((served.home / "data" / "jobs").glob("no"))


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 64, "one checkpoint, and 0 are given"),
        (("-C", "nothing"), 66, "No checkpoint 'nothing'"),
        (("-C", "base", "--port", "70000"), 64, "--port"),
        (("-C", "base", "--port", "x"), 64, "not a valid integer"),
        (("-C", "base", "--host", "not an address"), 64, "--host: 'not an address' is no address"),
        (("-C", "base", "--host", "203.0.113.7"), 73, "Choose an address of this machine with --host"),
        (("-C", "base", "--host", "nowhere.invalid"), 73, "Choose an address of this machine with --host"),
        (("-C", "base", "--health", "health"), 64, "--health: 'health' is no path; write /health"),
        (("-C", "base", "--ready-timeout", "soon"), 64, "'soon' is no duration"),
        (("-C", "base", "--runtime", "magic"), 64, "--runtime magic: there are transformers and vllm"),
        (("-C", "base", "--runtime", "vllm", "--", "sh"), 64, "a command is given"),
        (("-C", "base", "--runtime", "vllm"), 127, "vllm: not found"),
        (("-C", "base", "--base", "base"), 64, "base is no adapter, so it has no --base"),
        (("-C", "base", "--force"), 64, "--force is for a server of your own"),
        (("-C", "base", "--", "no-such-server"), 127, "no-such-server: not found"),
        (("-C", "base", "--secret", "K=nobody", "--", "sh"), 66, "nobody"),
        (("-C", "base", "--runner", "docker"), 64, "--image"),
        (("-C", "base", "--", "sh", "-c", "exit 0"), 73, "never answered"),
        (("-C", "base", "--", "sh", "-c", "echo the last line; exit 3"), 3, "its last line: the last line"),
        (("-C", "base", "--", "python", "-c", "raise OSError('no luck')"), 1, "OSError: no luck"),
    ],
)
def test_a_server_that_cannot_be_is_an_error(served: Launcher, words: tuple[str, ...], code: int, text: str) -> None:
    # What a job of its own says is also shown before the terminal is given back.
    for detached in ((), ("--detach",)) if code in (1, 3, 73) else ((),):
        said = served("inference", "serve", "wrong", *detached, *words, code=code)
        assert text in said
        assert "this is a bug" not in said


def test_a_port_that_is_taken_is_said_before_anything_starts(served: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = served("inference", "serve", "taken", "-C", "base", "--port", str(port), code=73)
        assert f"127.0.0.1:{port} cannot be had: address already in use" in said and "--port" in said
    assert not list((served.home / "data" / "jobs").glob("taken"))


def test_a_server_of_somebody_else_at_the_port_is_no_answer(served: Launcher) -> None:
    """Two are started for one port, at which nobody listens yet: the second must not take the first for its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    script = 'until [ -e "$0" ]; do sleep 0.05; done; exec "$@"'
    names = ("one", "two")
    gates = [served.home / f"gate-{name}" for name in names]
    both = [
        served.start("inference", "serve", name, "-C", "base", "--port", port, "--", "sh", "-c", script, gate, *FILES)
        for name, gate in zip(names, gates)
    ]
    for process in both:
        until(process, "runs:")
    gates[0].touch()
    until(both[0], "answers at")
    gates[1].touch()
    said, _ = both[1].communicate(timeout=60)
    assert both[1].returncode == 1 and "Address already in use" in said and "answers at" not in said
    served("inference", "stop", "one")
    both[0].communicate(timeout=60)


def test_the_base_of_a_folders_adapter_is_found_by_its_configuration(served: Launcher, tmp_path: Path) -> None:
    served("checkpoint", "fetch", "tune/adapter", "--destination", tmp_path / "adapter")
    words = ("inference", "serve", "local", "-C", tmp_path / "adapter", "--detach", "--", *FILES)
    said = served(*words)
    assert "by its configuration: base" in said and "{checkpoint} is it alone" in said
    (attempt,) = served.json("inference", "inspect", "local")["attempts"]
    assert [each["checkpoint"] is None for each in attempt["inputs"]] == [True, False]
    assert "adapter_config.json" in get(attempt["server"]["url"] + "/")


def test_any_command_gets_its_places_and_a_free_port(served: Launcher) -> None:
    said = served("inference", "serve", "files", "-C", "tune/full", "--detach", "--", *FILES)
    assert "Job files answers at" in said and "inference logs files -f" in said
    url = served("inference", "wait", "files").strip()
    assert get(f"{url}/config.json")["architectures"] == ["MistralForCausalLM"]
    assert "config.json" in get(url + "/") and "optimizer" not in get(url + "/")
    record = served.json("inference", "inspect", "files")
    assert record["spec"]["kind"] == "inference" and record["spec"]["only"] == "inference"
    assert os.getsid(record["attempts"][0]["pid"]) == record["attempts"][0]["pid"]  # a session of its own
    again = served("inference", "serve", "files", "-C", "tune/full", "--", *FILES, code=64)
    assert "is running already" in again
    served("inference", "stop", "files")
    assert "does not run" in served("inference", "wait", "files", code=73)
    assert "is no server" in served("inference", "wait", "tune", code=64)


def test_a_server_reads_its_variables_and_its_secret(served: Launcher) -> None:
    subprocess.run([PROGRAM, "secret", "create", "hub"], input="hf_canary_1234", env=served.env, text=True, check=True)
    script = 'test "${#HF_TOKEN}" = 14 || exit 9; test -f "$LAUNCHER_MODEL/config.json" || exit 8; '
    script += 'exec python -m http.server "$LAUNCHER_SERVER_PORT" --bind "$LAUNCHER_SERVER_HOST"'
    words = ("inference", "serve", "vars", "-C", "tune/adapter", "--detach", "--hf-token-secret", "hub")
    said = served(*words, "--", "sh", "-c", script)
    command = Path(f"/proc/{served.json('inference', 'inspect', 'vars')['attempts'][0]['pid']}/cmdline").read_text()
    served("inference", "stop", "vars")
    places = [path.read_bytes() for path in served.job("vars").rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(places) > 4
    assert not any(b"hf_canary_1234" in each for each in [*places, said.encode(), command.encode()])


@pytest.mark.parametrize("by", ["stop", "ctrl-c"])
def test_a_stop_while_it_starts(served: Launcher, by: str) -> None:
    process = served.start("inference", "serve", "slow", "-C", "base", "--", "sh", "-c", "echo loading; exec sleep 600")
    until(process, "loading")
    server = eventually(lambda: served.json("inference", "list")[-1]["server"], "the record says so")
    assert server["state"] == "starting" and server["answered"] is None
    if by == "stop":
        served("inference", "stop", "slow")
    else:
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (143 if by == "stop" else 130), said
    assert "Stopped by" in said and "never answered" not in said
    assert served.json("inference", "inspect", "slow")["state"] == "stopped"


def test_a_server_that_never_answers_is_ended(served: Launcher) -> None:
    words = ("inference", "serve", "mute", "-C", "base", "--ready-timeout", "1s", "--health", "/alive")
    said = served(*words, "--", "sleep", "600", code=143)
    assert "did not answer at http://127.0.0.1:" in said and "/alive for 1.00 s" in said
    assert served.result("mute")["failure"] == "hang"
    # A page that is not there is an answer only where nobody named it.
    said = served(*words, "--", *FILES, code=143)
    assert "it answers with status 404" in said


def test_vllm_is_started_where_it_is_installed(served: Launcher, tmp_path: Path) -> None:
    """With a program of that name in place of the real one, which needs an accelerator: what it is asked for."""
    program = tmp_path / "vllm"
    program.write_text(
        '#!/bin/sh\necho "$@" >"$SEEN"\nfor word; do [ "$before" = --port ] && port=$word; before=$word; done\n'
        'exec python -m http.server "$port" --bind 127.0.0.1\n'
    )
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{served.env['PATH']}", "SEEN": str(tmp_path / "seen")}
    launcher = Launcher(served.home, **env)
    launcher("inference", "serve", "v", "-C", "tune/full", "--detach", "--", "--max-model-len", "64")
    seen = (tmp_path / "seen").read_text().split()
    inputs = served.json("inference", "inspect", "v")["attempts"][0]["inputs"]
    assert seen[:4] == ["serve", inputs[0]["path"], "--served-model-name", "v"]
    assert seen[4:6] == ["--host", "127.0.0.1"] and seen[-2:] == ["--max-model-len", "64"]
    served("inference", "stop", "v")
    launcher("inference", "serve", "v", "-C", "tune/adapter", "--runtime", "pytorch-28-vllm-0110-nvidia", "--detach")
    seen = (tmp_path / "seen").read_text().split()
    inputs = served.json("inference", "inspect", "v")["attempts"][0]["inputs"]
    adapter, base = (each["path"] for each in inputs)
    assert seen[:5] == ["serve", base, "--enable-lora", "--lora-modules", f"v={adapter}"]
    served("inference", "stop", "v")


def test_a_server_is_started_again_when_it_dies(served: Launcher, tmp_path: Path) -> None:
    script = f'test -e {tmp_path}/once && exec "$@"; touch {tmp_path}/once; kill -9 $$'
    words = ("inference", "serve", "again", "-C", "base", "--max-restarts", "1", "--detach")
    served(*words, "--", "sh", "-c", script, "sh", *FILES)
    record = served.json("inference", "inspect", "again")
    assert [each["server"]["state"] for each in record["attempts"]] == ["ended", "ready"]
    process = next(int(each) for each in os.listdir("/proc") if each.isdigit() and _is_server(each, record["id"]))
    os.kill(process, signal.SIGKILL)
    eventually(lambda: served.json("inference", "inspect", "again")["state"] == "failed", "it has failed")


def _is_server(pid: str, job: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"http.server" in command and job.encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
