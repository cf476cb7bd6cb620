"""The packages that a job's code asks for: a requirements file becomes an environment, shared by all jobs that ask for the same.

It lies in the node cache, whole by one rename and read-only, under a digest of all that decides what is in it: the file and
those that it includes (-r, -c), and the interpreter with its packages, or the image. What has no version in the file is what
it was when the environment was made. A file that names paths of the repository (`-e .`, `./wheels/x.whl`) makes an environment of
the job's own.

It is made by the interpreter that runs the job (`runners/installer.py`): with the docker runner in a container of the job's
image, with the same limits and the folder of the code read-only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LocalResourceError, NotFoundError, RepositoryUnavailable, RequirementsFailed, UsageError
from launcher.events import Emit, event, secret_name
from launcher.inputs import programs
from launcher.inputs.cache import NodeCache
from launcher.inputs.entries import Lease, remove
from launcher.inputs.programs import Done, Stop
from launcher.job.spec import JobSpec
from launcher.runners import docker
from launcher.runners import handover as handovers
from launcher.runners.handover import Handover
from launcher.text import duration

_DEFAULT = "requirements.txt"
_LARGEST = 1 << 20
"""Bytes of a requirements file."""
_SILENCE = 3600.0
"""Seconds: pip says nothing while it downloads a large file, and has time limits of its own."""
_INSTALLER = os.path.join(os.path.dirname(os.path.abspath(docker.__file__)), "installer.py")
_PROGRAM = "/run/launcher/installer.py"
_PIP = "/run/launcher/pip"
_INCLUDE = re.compile(r"(?:-[rc]|--requirement|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(?P<path>\S.*)")
_PATHS = re.compile(r"-e\b|--editable\b|[./~]|file:|[^\s#@]+\s*@\s*(file:|[./])|[^:\s]+\.(whl|zip|tar\.gz|tgz)(\s|$)")
_HASH = re.compile(r"(^|\s)--hash[=\s]")
_AWAY = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Read timed out|Connection(Reset|Refused|Aborted)|connection (reset|refused)|"
    r"name resolution|Name or service not known|error sending request|dns error|timed out|IncompleteRead|"
    r"(HTTP error|status code:?|server error) ?\(?5\d\d|\b5\d\d Server Error", re.I,
)  # fmt: skip


@dataclass(frozen=True)
class Requirements:
    """A requirements file and all that it includes: `texts` by path relative to where the job runs, the file itself first."""

    path: str
    texts: Mapping[str, str]
    hashes: bool
    """Whether one has a hash; then all must have one, as pip takes it."""
    local: bool
    """Whether it names paths, so that what it comes to is not told by the file."""


@dataclass(frozen=True)
class Environment:
    """Where a job's packages are."""

    folder: str
    """On this machine."""
    lease: Lease | None
    """None: it is only known where it would be."""
    inside: str
    """As the job sees it."""

    @property
    def python(self) -> str:
        """Its interpreter, as the job sees it."""
        return f"{self.inside}/bin/python"

    def variables(self, path: str) -> dict[str, str]:
        """For the job, whose PATH would be `path`."""
        return {"VIRTUAL_ENV": self.inside, "PATH": f"{self.inside}/bin:{path}"}


def find(spec: JobSpec, work_dir: str) -> Requirements | None:
    """What the job asks for: the file that it names, or a repository's requirements.txt where there is one; None for nothing.

    Raises NotFoundError, UsageError for a file that lies elsewhere or is none.
    """
    asked = spec.requirements_path or (_DEFAULT if spec.repository_url else "")
    if not asked:
        return None
    if not spec.requirements_path and not os.path.lexists(os.path.join(work_dir, asked)):
        return None
    texts: dict[str, str] = {}
    waiting = [(os.path.normpath(asked), "")]
    while waiting:
        path, included = waiting.pop()
        if path not in texts:
            texts[path] = _read(path, work_dir, included)
            waiting += [(each, path) for each in _included(path, texts[path])]
    lines = [line for text in texts.values() for line in _lines(text)]
    if not any(not line.startswith("-") or line.startswith(("-e", "--editable")) for line in lines):
        return None
    return Requirements(
        asked, texts, any(_HASH.search(line) for line in lines), any(_PATHS.match(line) for line in lines)
    )


def _read(path: str, work_dir: str, included: str) -> str:
    whole = os.path.realpath(os.path.join(work_dir, path))
    said = f"The requirements file {path}{f' (included by {included})' if included else ''}"
    if not whole.startswith(os.path.realpath(work_dir) + os.sep):
        raise UsageError(what=f"{said} is not below {work_dir}, where the job runs.")
    if not os.path.lexists(whole):
        there = [
            str(each.relative_to(work_dir))
            for depth in ("", "*/")
            for each in Path(work_dir).glob(f"{depth}*require*.txt")
        ]
        hint = f"There is: {', '.join(sorted(there)[:5])}" if there else "Its path is relative to where the job runs."
        raise NotFoundError(what=f"{said} is not in {work_dir}.", hint=hint)
    if not os.path.isfile(whole):
        raise UsageError(what=f"{said} is no file.")
    try:
        with open(whole, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(what=f"{said} cannot be read: {error.strerror}.") from error
    if len(data) > _LARGEST:
        raise UsageError(what=f"{said} is larger than 1 MiB.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(what=f"{said} is no text in UTF-8.") from error


def _included(path: str, text: str) -> list[str]:
    """What a file includes, as paths from where the job runs. What is elsewhere (a URL) is the installer's to fetch."""
    found = [match["path"].strip() for line in _lines(text) if (match := _INCLUDE.match(line))]
    return [os.path.normpath(os.path.join(os.path.dirname(path), each)) for each in found if "://" not in each]


def _lines(text: str) -> list[str]:
    """As pip reads them: continued lines joined, comments and empty lines gone."""
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def provide(
    spec: JobSpec,
    python: str,
    client: Any,
    needed: Requirements,
    *,
    environ: Mapping[str, str],
    secrets: Mapping[str, str],
    work_dir: str,
    job: Path,
    cache: NodeCache,
    timeout: float,
    emit: Emit,
    stop: Stop,
    trial: bool = False,
) -> Environment:
    """The environment, made now where no job has asked for it before. `environ`: what the installer finds beside the job's own
    variables; `job`: the job's folder. Waits for another launcher that makes it. `trial`: where it would be; none is made.

    Raises RequirementsFailed, RepositoryUnavailable, LocalResourceError, EngineUnavailable, and what `stop` raises.
    """
    started, fresh = time.monotonic(), False
    lines = list[str]()
    told = programs.Told(f"Installing {needed.path}", emit)

    def on_line(line: str) -> None:
        lines.append(line)
        told(line)

    work: _Here | _InContainer
    plan = {"requirements": needed.path, "hashes": needed.hashes, "pip": ""}
    if spec.runner == "docker":
        image, _ = docker.image(client, spec.image)
        base: dict[str, Any] = {"image": image}
        name = spec.image
        work = _InContainer(spec, client, plan, secrets, work_dir, job, stop, on_line)
    else:
        env = {**environ, **spec.env, **secrets}
        base = json.loads(_run([python, "-I", _INSTALLER, "{}"], env, None, stop, on_line).output)
        name = f"{base['python']} at {python}"
        work = _Here(python, plan, env, work_dir, stop, on_line)

    def make(partial: Path, place: Path) -> None:
        nonlocal fresh
        fresh = True
        emit(event("requirements-installing", f"Installing the packages of {needed.path} for {name}"))

        def once() -> Done:
            lines.clear()
            remove(partial)  # What a crash left is not gone on with: nothing says which of it is whole.
            partial.mkdir()
            return _checked(work(partial, place), needed.path)

        made = json.loads(programs.patiently(once, timeout, stop).output)
        count, seconds = len(made["installed"]), time.monotonic() - started
        text = f"Installed {count} package(s) of {needed.path} by {made['installer']} in {duration(seconds)}"
        emit(event("requirements-installed", text, seconds=round(seconds, 3), **made))

    identity = json.dumps(["1", base, dict(needed.texts), str(job) if needed.local else ""], sort_keys=True)
    inside = docker.ENVIRONMENT if spec.runner == "docker" else ""
    if trial:
        folder = cache.environment(identity)
        return Environment(str(folder), None, inside or str(folder))
    try:
        folder, lease = cache.fetch_environment(identity, needed.path, name, make, lambda count: stop())
    except RequirementsFailed:
        emit(event("requirements-failed", "\n".join(lines[-15:]), "error"))
        raise
    if not fresh:
        emit(event("requirements-ready", f"The packages of {needed.path} are here from before"))
    return Environment(str(folder), lease, inside or str(folder))


@dataclass(frozen=True)
class _Here:
    """Makes it on this machine."""

    python: str
    plan: Mapping[str, Any]
    env: Mapping[str, str]
    work_dir: str
    stop: Stop
    on_line: Callable[[str], None]

    def __call__(self, partial: Path, place: Path) -> Done:
        plan = {**self.plan, "folder": str(partial), "place": str(place)}
        with tempfile.TemporaryDirectory(prefix="launcher-pip-") as lent:
            if pip := _own_pip():
                os.symlink(pip, os.path.join(lent, "pip"))
                plan["pip"] = lent
            return _run(
                [self.python, "-I", _INSTALLER, json.dumps(plan)], self.env, self.work_dir, self.stop, self.on_line
            )


@dataclass(frozen=True)
class _InContainer:
    """Makes it in a container of the job's image, as the caller, or nobody where the caller is root: what a job may run is what
    may run here (packages without a wheel run code of theirs)."""

    spec: JobSpec
    client: Any
    plan: Mapping[str, Any]
    secrets: Mapping[str, str]
    work_dir: str
    job: Path
    stop: Stop
    on_line: Callable[[str], None]

    def __call__(self, partial: Path, place: Path) -> Done:
        user, _, _ = docker.user_of("")
        owner = docker.owner("")
        os.chown(partial, *owner)
        hidden = dict(self.secrets) | {name: value for name, value in self.spec.env.items() if secret_name(name)}
        handover = Handover(self.job / "secrets-installer", hidden, owner) if hidden else None
        pip = _own_pip()
        mounts = [
            (str(partial), docker.ENVIRONMENT, False),
            (self.work_dir, docker.WORK, True),
            (_INSTALLER, _PROGRAM, True),
            *([(pip, f"{_PIP}/pip", True)] if pip else []),
            *([(handover.source, handovers.INSIDE, False)] if handover else []),
        ]
        plan = {**self.plan, "folder": docker.ENVIRONMENT, "place": docker.ENVIRONMENT, "pip": _PIP if pip else ""}
        request = docker.hardened(
            image=self.spec.image,
            name=f"launcher-{partial.name}",
            command=[docker.PYTHON, "-I", _PROGRAM, json.dumps(plan)],
            env={"HOME": "/tmp", "PIP_NO_CACHE_DIR": "1"}
            | {name: value for name, value in self.spec.env.items() if name not in hidden},
            binds=[
                {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}
                for source, target, read_only in mounts
            ],
            user=user,
            network=self.spec.network,
            secrets=handover is not None,
        )
        try:
            if handover:
                handover.give()
            return docker.run_once(self.client, request, stop=self.stop, on_line=self.on_line)
        finally:
            if handover:
                handover.take_back()


def _run(words: list[str], env: Mapping[str, str], cwd: str | None, stop: Stop, on_line: Callable[[str], None]) -> Done:
    try:
        return programs.run(words, env=env, cwd=cwd, stop=stop, silence=_SILENCE, on_line=on_line)
    except OSError as error:
        raise LocalResourceError(what=f"The interpreter {words[0]} cannot be started: {error.strerror}.") from error
    except programs.Silent as error:
        raise LocalResourceError(what=f"The installer hangs: it said nothing for {duration(_SILENCE)}.") from error


def _checked(done: Done, path: str) -> Done:
    if done.code == 0:
        return done
    said = "\n".join(done.said)
    errors = [line.strip() for line in done.said if re.match(r"\s*(ERROR|error|cause|×|╰─▶)", line)]
    first = (errors or list(done.said[-1:]) or [f"the installer ended with {done.code}"])[0]
    cause = re.sub(r"^(ERROR|error|×):?\s*", "", first).rstrip(".")
    if errors[1:]:
        cause += f" ({errors[-1]})"
    if "No space left on device" in said:
        raise LocalResourceError(
            what=f"No space to install the packages of {path}.",
            hint="Free some, or choose another LAUNCHER_CACHE_DIR or TMPDIR.",
        )
    if _AWAY.search(said):
        raise RepositoryUnavailable(what=f"The packages of {path} cannot be fetched", cause=cause)
    raise RequirementsFailed(
        path=path, cause=cause, hint="What the installer said is above, and in the job's events.jsonl."
    )


def _own_pip() -> str:
    """The folder of the launcher's own pip, "" where it has none: lent to an interpreter without one."""
    found = importlib.util.find_spec("pip")
    return next(iter(found.submodule_search_locations or ()), "") if found else ""
