"""What to run, put together from flags, LAUNCHER_* variables and a job file."""

from __future__ import annotations

import itertools
import os
import re
import signal
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from launcher import names, settings
from launcher.errors import LauncherError, UsageError
from launcher.job import keep as rules
from launcher.job import restarts
from launcher.job import rewrite as rewriting
from launcher.settings import Bytes, Mistakes, Rate, Seconds, Share

Kind = Literal["training", "fine-tuning", "inference"]
Device = Literal["auto", "cpu", "cuda", "rocm"]
RunnerName = Literal["process", "docker", "entrypoint", "sidecar"]


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. Every field is a flag (`--work-dir`), a variable (`LAUNCHER_WORK_DIR`) and a key of the job file."""

    name: str
    """The job's name; its checkpoints are named after it."""
    kind: Kind = "training"
    """training and fine-tuning: a label; inference: a server, which has to answer."""
    command: tuple[str, ...] = ()
    """The user's command as typed: `script.py args…`, `-m module args…`, or any program."""
    checkpoint: tuple[str, ...] = ()
    """Input checkpoints: REF, or REF=FOLDER to choose the folder's name below the input directory."""
    dataset: tuple[str, ...] = ()
    """Datasets: NAME, NAME@vN or an id; NAME=MOUNT chooses the folder's name below the datasets' directory (/input)."""
    include: tuple[str, ...] = ()
    """Of the input checkpoints, only files that match one of these globs: *.json, tokenizer/*. Default: all."""
    exclude: tuple[str, ...] = ()
    """Of the input checkpoints, no file that matches one of these globs."""
    only: Literal["all", "inference"] = "all"
    """inference: of the input checkpoints, not what only a training that goes on needs (optimizer, scheduler, random state)."""
    input_mode: Literal["eager", "lazy"] = "eager"
    """lazy: the job starts at once, and stored input checkpoints arrive while it reads them (FUSE)."""
    input_writable: bool = False
    """Lets the job write into a view of its input; the input stays as it is, and the changes are dropped after the job."""
    accels: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    """Accelerators on each node, and so processes that torchrun starts there."""
    nodes: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    """Nodes; more than one needs a scheduler, which this release does not have."""
    device: Device = "auto"
    """auto, cpu, cuda or rocm. auto falls back to the CPU where a person starts the job, and fails in an entrypoint."""
    launch: Literal["auto", "torchrun", "exec"] = "auto"
    """auto: Python scripts and modules by torchrun, anything else as it is."""
    runner: RunnerName = "process"
    """process: on this machine; docker: in a container of the local engine; entrypoint and sidecar: said by those commands."""
    image: str = ""
    """Docker runner: the image; it needs the job's libraries, not the launcher."""
    user: str = ""
    """Docker runner: USER[:GROUP] of the job. Default: the caller, or nobody where the caller is root."""
    network: str = ""
    """Docker runner: the engine's network. Default: the engine's own default."""
    shm_size: Bytes = 0
    """Docker runner: size of /dev/shm. Default: half of the machine's memory."""
    env: dict[str, str] = {}
    """Variables of the job."""
    secret: dict[str, str] = {}
    """Variables of the job whose values are secrets: variable to the name of a kept one (`launcher secret`), env:VARIABLE or
    file:PATH."""
    secret_file: dict[str, str] = {}
    """Variables of the job whose values are paths of files with a secret each, which are gone after the attempt."""
    no_mask: bool = False
    """What the job prints is passed on and kept as it is, its secrets too."""
    work_dir: str = ""
    """Where the command runs. Default: the current folder, or the repository."""
    repository_url: str = ""
    """The code's git repository, by https, ssh or a path, fetched into the job folder."""
    repository_revision: str = ""
    """Branch, tag or commit of it, also the beginning of a commit's id. Default: the repository's own default branch."""
    repository_token_secret: str = ""
    """The secret (`launcher secret`) with the token that the repository's server asks for."""
    requirements_path: str = ""
    """A requirements file below where the command runs: its packages are installed, into an environment that jobs share.
    Default: requirements.txt of the repository, where there is one; nothing of a folder of this machine."""
    watch: tuple[str, ...] = ()
    """Further folders whose checkpoints are collected, named JOB/FOLDER/…; relative to where the command runs."""
    resume: str = "auto"
    """Where the job goes on. auto: a job that is started again, from its newest whole checkpoint that can be; never; same-job:
    also a new job, from the one of this name before it; or any checkpoint: REF."""
    grace: Seconds = 30.0
    """From a stop request to the end of all: the job's, of storing what it saved, and the launcher's own."""
    time_limit: Seconds = 0.0
    """How long the launcher may take in all: it asks the job to stop when only the grace is left. Default: no limit."""
    stop_signal: tuple[Literal["USR1", "USR2", "QUIT"], ...] = ()
    """Signals that ask for a stop beside TERM, INT and HUP, such as Slurm's early one (--signal=B:USR1@120)."""
    max_restarts: Annotated[int, msgspec.Meta(ge=0, le=10000)] = 0
    """How often a failed job is started again from its last good checkpoint, if its failure is one that is retried."""
    retry_on: str = ""
    """Exit codes and classes of failure that are retried, whatever the default: 1,134,64-78,oom."""
    no_retry_on: str = ""
    """Exit codes and classes of failure that are not retried, whatever the default: 42,hang."""
    stall_timeout: Seconds = 0.0
    """A job that for so long prints nothing, writes no file and uses no processor hangs, and is ended. Default: never."""
    single_child: bool = False
    """Signals reach the command's own process alone, not its whole process group."""
    rewrite: tuple[str, ...] = ()
    """Signals that reach the command as other ones: FROM:TO by names or numbers; TO 0 drops it."""
    keep: str = ""
    """Which of the job's checkpoints stay in the store: last=3,every=500,best=eval_loss:min,days=30. Default: all."""
    settle: Seconds = 2.0
    """How long files must be quiet before a checkpoint that nothing proves whole counts as written."""
    bandwidth: Rate = 0
    """The most that checkpoints are sent with to the store, such as 20MB/s. Default: no cap."""
    spool: Share = "30%"
    """What captured checkpoints may hold on this machine until they are stored: a size, or a share of the free space."""
    when_full: Literal["keep-all", "newest"] = "keep-all"
    """When they would hold more: keep-all says so and keeps every one; newest drops the oldest that waits, by name."""
    pickles: Literal["allow", "warn", "deny"] = "warn"
    """What to do about a checkpoint, input or collected, whose pickles may run code that no known library writes."""
    health_port: str = ""
    """Serves /healthz, /readyz and /metrics at [HOST:]PORT. HOST: 127.0.0.1; for `entrypoint` and `collect` 0.0.0.0."""
    heartbeat: str = ""
    """A file that is written every two seconds while the launcher is well: what the job has come to, as JSON."""
    host: str = "127.0.0.1"
    """Inference: the address of this machine at which the server is reached; 0.0.0.0 for everybody."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """Inference: its port. Default: a free one."""
    health: str = ""
    """Inference: the path that answers with 2xx or 3xx when the server is ready. Default: /health, which need not exist there."""
    ready_timeout: Seconds = 1800.0
    """Inference: a server that has not answered for so long after its start is ended."""

    def secret_sources(self) -> tuple[str, ...]:
        """Where its secrets come from: names of kept ones, env:VARIABLE, file:PATH."""
        return (*self.secret.values(), *self.secret_file.values(), self.repository_token_secret)

    def rewrites(self) -> dict[int, int]:
        """`rewrite` parsed, as numbers. Raises ValueError, which `load` has done before."""
        return rewriting.parse(self.rewrite)

    def dropped(self) -> list[int]:
        """The signals that `rewrite` drops."""
        return [source for source, target in self.rewrites().items() if not target]

    def keep_rules(self) -> rules.Keep | None:
        """`keep` parsed; None where all checkpoints stay. Raises ValueError, which `load` has done before."""
        return rules.parse(self.keep) if self.keep else None

    def stop_signals(self) -> tuple[int, ...]:
        """The numbers of `stop_signal`."""
        return tuple(signal.Signals[f"SIG{each}"] for each in self.stop_signal)

    def health_address(self) -> tuple[str, int] | None:
        """`health_port` as host and port; None where nothing is served. Raises ValueError, which `load` has done before.

        A container's probes come from outside of it, so an entrypoint and a sidecar listen on every address; nobody else does.
        """
        if not self.health_port:
            return None
        host, _, port = self.health_port.rpartition(":")
        if not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
            raise ValueError(f"{self.health_port!r} is no address; write 9400, 0.0.0.0:9400 or [::]:9400")
        return host.strip("[]") or ("0.0.0.0" if self.runner in ("entrypoint", "sidecar") else "127.0.0.1"), int(port)


RESUME = frozenset({"auto", "never", "same-job"})
"""The values of `resume` that are no reference."""
LISTS = frozenset({"checkpoint", "command", "dataset", "include", "exclude", "rewrite", "watch", "stop_signal"})


def load(
    flags: Mapping[str, Any],
    *,
    file: str | None = None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> JobSpec:
    """The job spec: flags win over LAUNCHER_* variables, those over the job file, that over `defaults`.

    Raises UsageError that lists every mistake of every layer.
    """
    fields = [field.name for field in msgspec.structs.fields(JobSpec)]
    plain = [name for name in fields if name not in {"command", "env", "kind", "secret", "secret_file"}]
    given = {key: value for key, value in flags.items() if value not in (None, (), {})}
    mistakes = [f"--{key.replace('_', '-')} is empty" for key, value in given.items() if value == "" and key != "name"]
    layers: list[tuple[str, Mapping[str, Any]]] = [("--{key}", given)]
    variables: dict[str, Any] = dict(settings.environment("LAUNCHER_", plain, environ))
    for key in variables.keys() & (LISTS - {"command"}):
        variables[key] = _parts(variables[key])
    for key, text in settings.environment("LAUNCHER_", ("secret", "secret_file"), environ).items():
        variables[key] = parse_secrets(_parts(text), f"LAUNCHER_{key.upper()}")
    layers.append(("LAUNCHER_{KEY}", variables))
    if file:
        try:
            layers.append((f"{file}: {{key}}", _from_file(settings.read_yaml(Path(file)))))
        except ValueError as error:
            mistakes.append(str(error))
    layers.append(("default {key}", defaults or {}))
    try:
        spec, _ = settings.layered(JobSpec, layers)
    except Mistakes as error:
        mistakes += error.lines
    else:
        mistakes += _check(spec)
        try:
            msgspec.json.encode(spec)  # As its record will be.
        except UnicodeEncodeError as error:
            mistakes.append(f"{error.object!r} is not UTF-8, and a job's record holds nothing else")
    if mistakes:
        raise UsageError(
            what="\n".join(mistakes)
            if len(mistakes) == 1
            else f"{len(mistakes)} mistakes:\n  " + "\n  ".join(mistakes),
            hint="`launcher training run --help` shows the flags, with examples.",
        )
    url = spec.repository_url
    if url and "://" not in url and os.path.isdir(os.path.expanduser(url)):
        url = os.path.abspath(os.path.expanduser(url))  # It is looked for again from another folder.
    return msgspec.structs.replace(spec, name=names.check(spec.name, "job name"), repository_url=url)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _from_file(content: dict[str, Any]) -> dict[str, Any]:
    content = {key.replace("-", "_"): value for key, value in content.items()}
    for key in LISTS & content.keys():
        if isinstance(content[key], str):
            import shlex

            try:
                content[key] = shlex.split(content[key]) if key == "command" else [content[key]]
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
    if isinstance(content.get("env"), dict):
        content["env"] = {key: str(value) for key, value in content["env"].items()}
    return content


def _check(spec: JobSpec) -> list[str]:
    mistakes = []
    try:
        names.check(spec.name, "job name")
    except LauncherError as error:
        mistakes.append(f"{error.text} {error.hint}")
    if not spec.command and spec.runner != "sidecar":
        mistakes.append("no command: write it after --, as in `-- script.py --epochs 3`")
    if spec.nodes > 1:
        mistakes.append(f"--nodes {spec.nodes}: more than one needs a scheduler, which this release does not have")
    if spec.runner == "docker" and not spec.image:
        mistakes.append("--runner docker needs --image IMAGE (one that has the job's libraries)")
    if spec.repository_revision and not spec.repository_url:
        mistakes.append("--repository-revision without --repository-url")
    if spec.repository_token_secret and not spec.repository_url:
        mistakes.append("--repository-token-secret without --repository-url")
    if spec.repository_url and spec.work_dir:
        mistakes.append("--work-dir and --repository-url exclude each other")
    try:
        spec.keep_rules()
    except ValueError as error:
        mistakes += [f"--keep: {line}" for line in str(error).splitlines()]
    try:
        spec.rewrites()
    except ValueError as error:
        mistakes.append(f"--rewrite: {error}")
    if (spec.rewrite or spec.single_child) and spec.runner == "docker":
        mistakes.append("--rewrite and --single-child are not for --runner docker: the engine passes signals on")
    mistakes += restarts.mistakes(spec.retry_on, spec.no_retry_on)
    if 0 < spec.time_limit <= spec.grace:
        mistakes.append(f"--time-limit {spec.time_limit:g}s is used up by --grace {spec.grace:g}s: it must be longer")
    try:
        spec.health_address()
    except ValueError as error:
        mistakes.append(f"--health-port: {error}")
    if spec.health and not re.fullmatch(r"/[!-~]*", spec.health):
        mistakes.append(f"--health: {spec.health!r} is no path; write /health")
    if not re.fullmatch(r"[0-9A-Za-z.:-]+", spec.host):
        mistakes.append(f"--host: {spec.host!r} is no address; write 127.0.0.1 or 0.0.0.0")
    if spec.watch and spec.runner == "docker":
        mistakes.append(
            "--watch is not for --runner docker: only what lies in the output directory leaves the container"
        )
    if spec.input_mode == "lazy" and spec.runner in ("docker", "sidecar"):
        mistakes.append("--input-mode lazy is not for a container that is given folders: they must be there")
    if spec.input_mode == "lazy" and spec.input_writable:
        mistakes.append("--input-mode lazy and --input-writable exclude each other")
    folders = [os.path.basename(os.path.abspath(each)) for each in spec.watch]
    for each in sorted({each for each in folders if folders.count(each) > 1}):
        mistakes.append(f"--watch: two folders are called {each!r}, and checkpoints are named after them")
    given = {"--env": spec.env, "--secret": spec.secret, "--secret-file": spec.secret_file}
    for flag, keys in given.items():
        for key in keys:
            if not key or "=" in key or "\0" in key:
                mistakes.append(f"{flag}: {key!r} is no name of a variable")
            elif flag == "--secret-file" and not re.fullmatch(r"\w+", key):
                mistakes.append(f"{flag}: the file is named after it, and {key!r} has more than letters, digits and _")
            elif spec.runner == "docker" and flag == "--secret" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                mistakes.append(f"--secret: the image's shell sets it, and {key!r} is no name of a variable for that")
    for one, other in itertools.combinations(given, 2):
        mistakes += [f"{one} and {other} both set {key}" for key in sorted(given[one].keys() & given[other].keys())]
    return mistakes


def typed(flags: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """A command's flags as `load` takes them. Raises UsageError."""
    return flags | {
        "env": parse_env(flags["env"], environ),
        "secret": parse_secrets(flags["secret"]),
        "secret_file": parse_secrets(flags["secret_file"], "--secret-file"),
    }


def parse_env(pairs: typing.Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`K=V` pairs, and `K` alone for the caller's own value, as docker does. Raises UsageError."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals and key not in environ:
            raise UsageError(what=f"--env {key}: the variable is not set here; write --env {key}=VALUE.")
        result[key] = value if equals else environ[key]
    return result


def parse_secrets(pairs: typing.Iterable[str], flag: str = "--secret") -> dict[str, str]:
    """`VARIABLE=NAME` pairs, and `NAME` alone for a variable of the same name. Raises UsageError."""
    result = {}
    for pair in pairs:
        variable, equals, name = pair.partition("=")
        result[variable] = name if equals else variable
        if not result[variable]:
            raise UsageError(what=f"{flag} {pair}: write VARIABLE=NAME, with env:… or file:… for a name.")
    return result
