"""A job as the file from which it can be started again: the other way round of `spec.load`."""

from __future__ import annotations

import msgspec

from launcher.errors import UsageError
from launcher.events import Redactor, secret_name
from launcher.job.record import write_atomically
from launcher.job.spec import JobSpec


def save(spec: JobSpec, path: str, redactor: Redactor) -> None:
    """Writes the job file from which `load` makes the same job: what differs from the defaults; secrets by their names only.

    Raises UsageError where a value of the job is a secret itself, or the file cannot be written.
    """
    import yaml

    plain = msgspec.to_builtins(spec)
    defaults = msgspec.to_builtins(JobSpec(name=""))
    content = {key: value for key, value in plain.items() if value != defaults[key]}
    if hidden := _hidden(content, redactor):
        raise UsageError(
            what=f"--save-file {path}: a job file holds no secret, and there is one in {', '.join(hidden)}.",
            hint="Keep it by `launcher secret create NAME`, and give it by --secret VARIABLE=NAME.",
        )
    named = {
        key.replace("_", "-"): list(value) if isinstance(value, tuple) else value for key, value in content.items()
    }
    text = yaml.safe_dump(named, sort_keys=False, allow_unicode=True)
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UsageError(
            what=f"--save-file {path}: {error.strerror}.", hint="Choose a file that you may write."
        ) from error


def _hidden(content: dict[str, object], redactor: Redactor) -> list[str]:
    """Where a secret would be written, in words."""
    found = []
    for key, value in content.items():
        if key == "env" and isinstance(value, dict):
            secret = [name for name, text in value.items() if secret_name(name) or redactor.text(text) != text]
            found += [f"--env {name}" for name in secret]
        elif key == "command" and isinstance(value, (list, tuple)):
            found += ["the command"] if redactor.command(value) != list(value) else []
        elif redactor.value(value) != (list(value) if isinstance(value, tuple) else value):
            found.append(f"--{key.replace('_', '-')}")
    return found
