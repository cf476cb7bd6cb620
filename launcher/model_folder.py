"""What a server is told: the model's folder, its checkpoint, where to listen; as variables, and as placeholders in its command.

The model's folder holds links to the checkpoint's files. For an adapter it holds its base's files and then its own, which
transformers loads as one model (and applies the adapter) where peft is installed. It is called like the job, in a folder of
its own, so that a server that runs there names the model like that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.inputs.choose import Provided

HOST, PORT = "LAUNCHER_SERVER_HOST", "LAUNCHER_SERVER_PORT"
CHECKPOINT, BASE, MODEL = "LAUNCHER_INPUT_CHECKPOINT", "LAUNCHER_BASE_CHECKPOINT", "LAUNCHER_MODEL"
_PLACEHOLDERS = {"{checkpoint}": CHECKPOINT, "{base}": BASE, "{model}": MODEL, "{host}": HOST, "{port}": PORT}
NAME, MODELS = "{name}", "{models}"
"""The job's name, which is the model's below the folder MODELS."""
_TEMPLATE = "chat_template.jinja"
_TOKENIZER = "tokenizer_config.json"


def make(root: Path, name: str, provided: Sequence[Provided], targets: Sequence[str]) -> None:
    """Makes `<root>/<name>` with links. `provided`: the checkpoint, and for an adapter its base; `targets`: where the server
    finds each of them."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    links: dict[str, str] = {}
    for each, target in reversed(list(zip(provided, targets))):
        links |= {entry: os.path.join(target, entry) for entry in _entries(each)}
    for entry, target in links.items():
        (folder / entry).unlink(missing_ok=True)
        (folder / entry).symlink_to(target)


def variables(name: str, models: str, targets: Sequence[str], host: str, port: int) -> dict[str, str]:
    """The server's variables; `models` is the folder made, as the server sees it."""
    found = {CHECKPOINT: targets[0], MODEL: os.path.join(models, name), HOST: host, PORT: str(port)}
    return found | ({BASE: targets[1]} if len(targets) > 1 else {})


def expand(command: Sequence[str], name: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """The command with its placeholders replaced; other braces stay as they are."""
    values = {key: env[variable] for key, variable in _PLACEHOLDERS.items() if variable in env}
    values |= {NAME: name, MODELS: env[MODEL].removesuffix(name)}
    words = []
    for word in command:
        for key, value in values.items():
            word = word.replace(key, value)
        words.append(word)
    return tuple(words)


def has_chat_template(provided: Sequence[Provided]) -> bool:
    """Whether one of them says how a chat becomes a prompt; without that, servers only complete a text."""
    for each in provided:
        if _TEMPLATE in _entries(each):
            return True
        try:
            content = json.loads(Path(each.path, _TOKENIZER).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("chat_template"):
            return True
    return False


def _entries(provided: Provided) -> set[str]:
    """What lies directly in it, also where it only arrives while it is read."""
    if provided.chosen.manifest:
        return {file.path.partition("/")[0] for file in provided.chosen.manifest.files}
    return set(os.listdir(provided.path))
