"""What a person types to choose a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from launcher import names
from launcher.errors import UsageError
from launcher.ids import is_id, is_id_prefix

_VERSION = re.compile(r"(?P<name>.+)@v(?P<version>[0-9]{1,8})")

Kind = Literal["name", "id", "job", "url", "path"]


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `value` is the name, id, URL, path, or (for job) JOB or JOB/FOLDER: a job's name may hold slashes,
    so the store decides where it ends. `prefix`: the text may also be the beginning of an id."""

    text: str
    kind: Kind
    value: str
    version: int | None = None
    prefix: bool = False

    @property
    def mount_name(self) -> str:
        """The folder's name below the input directory: what was typed, without a version, a job's prefix or a URL."""
        if self.kind in ("url", "path"):
            last = self.value.rstrip("/").rpartition("/")[2].partition("@")[0]
            return names.clean(last or "checkpoint")
        return self.value


def parse(text: str, what: str = "checkpoint") -> Reference:
    """The reference in `text`: a URL (has `://`, or is storage:NAME/PATH), a path (begins with `/`, `./`, `../` or `~`),
    `job:NAME`, an id, `name@vN`, or a name. `what` it is said to be in errors. Raises UsageError."""
    if "://" in text or text.startswith("storage:"):
        return Reference(text, "url", text)
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return Reference(text, "path", text)
    if text.startswith("job:"):
        value = text.removeprefix("job:")
        if not value:
            raise UsageError(what="job: needs the name of a job, as in job:ft_01 or job:ft_01/checkpoint-500.")
        match = _VERSION.fullmatch(value)
        if match:
            return Reference(text, "job", names.check(match["name"]), int(match["version"]))
        return Reference(text, "job", names.check(value))
    if is_id(text.lower()):
        return Reference(text, "id", text.lower())
    match = _VERSION.fullmatch(text)
    if match:
        return Reference(text, "name", names.check(match["name"], f"{what} name"), int(match["version"]))
    return Reference(text, "name", names.check(text, f"{what} name"), prefix=is_id_prefix(text.lower()))
