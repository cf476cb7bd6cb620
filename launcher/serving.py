"""`launcher inference serve`: is the checkpoint ready, which base does an adapter need, and which server is started how.

What comes out is an ordinary job: an inference job's command has placeholders (`model_folder`), and it has to answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from launcher import device as devices
from launcher.checkpoint import formats
from launcher.checkpoint.formats import peft, pretrained
from launcher.checkpoint.manifest import Facts, Manifest, Ready
from launcher.checkpoint.tree import Folder, Tree
from launcher.errors import CheckpointNotFound, LauncherError, LocalResourceError, NotReady, PortTaken, UsageError
from launcher.events import Emit, event
from launcher.inputs import choose
from launcher.inputs.choose import Chosen
from launcher.job.spec import JobSpec
from launcher.runners import docker
from launcher.settings import Settings
from launcher.store import tree as trees
from launcher.store.store import Store
from launcher.transfer.object_store import Missing

Runtime = Literal["transformers", "vllm"]
SERVER = "{server}"
"""The first word of a command that is the default server's; arguments for it follow."""
_FOLDER = "base-model"
"""Where the base lies below the input directory."""
_START = "import os, sys; os.chdir(sys.argv.pop(1)); from transformers.cli.transformers import main; main()"
_NEEDS = ("transformers", "torch", "fastapi", "uvicorn", "openai", "pydantic")
_LACKS = "import importlib.util as u, sys; print(*(each for each in sys.argv[1:] if not u.find_spec(each)))"
_ALONE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Variables that keep the default servers off the network."""
_HINTS = {
    "torch-dcp": "In a job, torch.distributed.checkpoint.format_utils.dcp_to_torch_save makes one file of it.",
    "deepspeed": "In a job, its zero_to_fp32.py makes a model of it.",
}


@dataclass(frozen=True)
class _Look:
    """What is known of an input: its format and what it says, `adapter` whether it is one without its base."""

    chosen: Chosen
    format: str
    facts: Facts
    ready: Ready
    paths: tuple[str, ...]

    @property
    def adapter(self) -> bool:
        return self._beside(peft.CONFIG) and not any(map(self._beside, (*pretrained.SINGLE, *pretrained.INDEXES)))

    @property
    def loadable(self) -> bool:
        """Whether transformers can load it, where it is no adapter."""
        return self._beside(pretrained.CONFIG) and bool(self.facts.architecture)

    def _beside(self, name: str) -> bool:
        return name in self.paths


def runtime_of(text: str, spec: JobSpec) -> Runtime:
    """The server that is meant: a name with vllm in it means that; without one, vllm where it is installed. Raises UsageError."""
    if text in ("", "auto"):
        found = "vllm" in spec.image if spec.runner == "docker" else shutil.which("vllm") is not None
        return "vllm" if found else "transformers"
    if "vllm" in text:
        return "vllm"
    if text != "transformers":
        raise UsageError(
            what=f"--runtime {text}: there are transformers and vllm.",
            hint="For any other server write its command after --, with {checkpoint}, {host} and {port}.",
        )
    return "transformers"


def complete(
    spec: JobSpec, settings: Settings, environ: Mapping[str, str], store: Store, emit: Emit, *, base: str = "",
    runtime: str = "", force: bool = False,
) -> JobSpec:  # fmt: skip
    """The job: with the base of an adapter as second input, the default server's command in place of `SERVER`, and a port.

    `base`: the reference of the base, where it is named; `runtime`: see `runtime_of`; `force`: a command of one's own may serve
    what is not ready. Raises NotReady, UsageError, PortTaken, LocalResourceError, CheckpointNotFound.
    """
    if len(spec.checkpoint) != 1:
        raise UsageError(
            what=f"A server has one checkpoint, and {len(spec.checkpoint)} are given.",
            hint="-C REF, and --base REF for the base model of an adapter.",
        )
    if force and spec.command[0] == SERVER:
        raise UsageError(what="--force is for a server of your own.", hint="Write its command after --.")
    look = _look(spec.checkpoint[0], store, settings, environ, any_format=force)
    if look.adapter and not force:
        found = base or _base(look, store, emit)
        text = found if "://" in found else f"{found}={_FOLDER}"
        beneath = _look(text, store, settings, environ)
        if beneath.adapter or not beneath.loadable:
            raise NotReady(ref=found, cause="it is no model that can be an adapter's base", hint=_NAME_BASE)
        spec = msgspec.structs.replace(spec, checkpoint=(*spec.checkpoint, text))
    elif base:
        raise UsageError(what=f"{spec.checkpoint[0]} is no adapter, so it has no --base.", hint="Leave it out.")
    if spec.command[0] == SERVER:
        kind = runtime_of(runtime, spec)
        if not look.adapter and not look.loadable:
            raise NotReady(
                ref=look.chosen.text,
                cause=f"{kind} loads models with a config.json that names an architecture, and this is {look.format}",
                hint="Write the command of a server for it after --, with {checkpoint}, {host} and {port}.",
            )
        spec = _with_server(spec, kind, environ, adapter=look.adapter)
    elif runtime:
        raise UsageError(what="--runtime chooses the server, and a command is given.", hint="Leave one of them out.")
    elif look.adapter and any("{checkpoint}" in word for word in spec.command):
        if not any(place in word for word in spec.command for place in ("{base}", "{model}")):
            text = f"{look.chosen.text} is an adapter: {{checkpoint}} is it alone, {{model}} with its base"
            emit(event("adapter-alone", text, "warning"))
    if look.chosen.folder and len(spec.checkpoint) == 1:
        # A selection of its files would be copied; the folder itself is just there.
        spec = msgspec.structs.replace(spec, only="all")
    return msgspec.structs.replace(spec, port=_port(spec.host, spec.port))


def _with_server(spec: JobSpec, runtime: Runtime, environ: Mapping[str, str], *, adapter: bool) -> JobSpec:
    """The default server's command in place of its name, and its variables."""
    words: tuple[str, ...]
    if runtime == "vllm":
        words = ("vllm", "serve", "{checkpoint}", "--served-model-name", "{name}")
        if adapter:
            words = ("vllm", "serve", "{base}", "--enable-lora", "--lora-modules", "{name}={checkpoint}")
        words += ("--tensor-parallel-size", str(spec.accels)) if spec.accels > 1 else ()
    else:
        python = docker.PYTHON if spec.runner == "docker" else devices.interpreter(environ)
        if spec.runner != "docker":
            _require(python, environ, *(("peft",) if adapter else ()))
            # Of SIGINT it makes click's Abort, with code 1.
            spec = msgspec.structs.replace(spec, rewrite=spec.rewrite or ("INT:TERM",))
        # Without peft, transformers would serve the base alone, and not say so.
        words = (python, "-c", f"import peft; {_START}" if adapter else _START, "{models}", "serve", "{name}")
    env = {} if "HF_TOKEN" in spec.secret else {key: value for key, value in _ALONE.items() if key not in environ}
    command = (*words, "--host", "{host}", "--port", "{port}", *spec.command[1:])
    return msgspec.structs.replace(spec, command=command, env=env | spec.env)


def _require(python: str, environ: Mapping[str, str], *more: str) -> None:
    """The interpreter has what transformers' server needs. Raises LocalResourceError."""
    done = subprocess.run(
        [python, "-c", _LACKS, *_NEEDS, *more],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode or done.stdout.strip():
        lacks = ", ".join(done.stdout.split()) or f"nothing that starts ({done.stderr.strip()[-200:]})"
        raise LocalResourceError(
            what=f"transformers' server cannot be started with {python}: it lacks {lacks}.",
            hint="pip install 'transformers[serving]' torch"
            + (" peft" if more else "")
            + ", or write another server's command.",
        )


def _look(
    text: str, store: Store, settings: Settings, environ: Mapping[str, str], *, any_format: bool = False
) -> _Look:
    """What an input is. Raises NotReady where nothing can serve it, and what `choose` raises."""
    (chosen,) = choose.choose((text,), store, settings, environ)
    if chosen.manifest:
        files = tuple(file.path for file in chosen.manifest.files)
        look = _Look(chosen, chosen.manifest.format, chosen.manifest.facts, chosen.manifest.ready, files)
    else:
        look = _look_inside(chosen, settings, any_format)
    if not look.ready.inference and not any_format:
        cause = look.ready.inference_reason or f"it is {look.format or 'of no known format'}"
        raise NotReady(ref=text, cause=cause, hint=_HINTS.get(look.format))
    return look


def _look_inside(chosen: Chosen, settings: Settings, any_format: bool) -> _Look:
    tree: Tree
    if chosen.remote and chosen.remote.archive:
        raise NotReady(
            ref=chosen.text, cause="it is an archive, into which nobody can look",
            hint=f"launcher checkpoint push NAME --file {chosen.text}, then -C NAME.",
        )  # fmt: skip
    if chosen.remote:
        place, entries = chosen.remote.place, chosen.remote.entries
        tree = trees.remote_tree(place, entries, settings.store_timeout, settings.transfer_threads, chosen.text)
    else:
        assert chosen.folder
        tree = Folder.scan(chosen.folder)
    judgement = formats.judge(tree)
    format = formats.by_name(judgement.format)
    if any_format and not format:
        return _Look(chosen, "", Facts(), Ready(), tuple(tree.files))
    if not format or not (judgement.whole or any_format):
        cause = judgement.reasons[0] if judgement.reasons else "no format of a checkpoint knows it"
        raise NotReady(ref=chosen.text, cause=cause, hint="`launcher checkpoint verify` says more.")
    return _Look(chosen, judgement.format, format.facts(tree), format.ready(tree), tuple(tree.files))


_NAME_BASE = "Name it: --base REF (a checkpoint, a folder, a URL such as hf://org/model)."


def _base(look: _Look, store: Store, emit: Emit) -> str:
    """The base of an adapter: among what it was made from, else by the name that its configuration has. Raises NotReady."""
    named = look.ready.base or look.facts.base_model or ""
    names = tuple(_candidates(named))
    if look.chosen.manifest:
        models = [
            each for each in _ancestors(look.chosen.manifest, store) if each.ready.inference and not _is_adapter(each)
        ]
        if models:
            found = next((each for each in models if each.name in names), models[0])
            emit(event("base-found", f"Base of {look.chosen.text}, by lineage: {found.name} ({found.id})"))
            return found.id
    for candidate in names:
        if candidate.startswith("/"):
            if not os.path.isfile(os.path.join(candidate, pretrained.CONFIG)):
                continue
        else:
            try:
                if _is_adapter(store.resolve(candidate).manifest):
                    continue
            except (CheckpointNotFound, UsageError):
                continue
        emit(event("base-found", f"Base of {look.chosen.text}, by its configuration: {candidate}"))
        return candidate
    where = f"({named}) is neither in its lineage nor in the store" if named else "is named nowhere"
    raise NotReady(ref=look.chosen.text, cause=f"it is an adapter, and its base model {where}", hint=_NAME_BASE)


def _ancestors(manifest: Manifest, store: Store) -> Iterator[Manifest]:
    """The checkpoints that it was made from, those of its own job first; what is gone is passed over."""
    waiting, seen = list(manifest.lineage.parents), {manifest.id}
    while waiting:
        identifier = waiting.pop(0)
        if identifier in seen:
            continue
        seen.add(identifier)
        with contextlib.suppress(Missing, LauncherError):
            parent = store.manifest(identifier)
            yield parent
            if _is_adapter(parent):
                waiting += parent.lineage.parents


def _is_adapter(manifest: Manifest) -> bool:
    paths = {file.path for file in manifest.files}
    return peft.CONFIG in paths and not paths & {*pretrained.SINGLE, *pretrained.INDEXES}


def _candidates(named: str) -> Iterator[str]:
    """References that the base's name in a configuration may mean: a path of the job that wrote it, or a name."""
    if os.path.isabs(named):
        yield named
        inside = named.partition("/input-checkpoint/")[2]
        yield from filter(None, (inside, os.path.basename(named.rstrip("/"))))
    elif named:
        yield from (each for each in (named, named.rpartition("/")[2]) if "://" not in each)


def _port(host: str, asked: int) -> int:
    """The port, which nobody listens at now; a free one for 0. Raises PortTaken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As servers do: a closed connection takes no port.
        try:
            probe.bind((host, asked))
        except OSError as error:
            hint = (
                None
                if error.errno in (errno.EADDRINUSE, errno.EACCES)
                else "Choose an address of this machine with --host."
            )
            raise PortTaken(host=host, port=asked, cause=(error.strerror or str(error)).lower(), hint=hint) from error
        port: int = probe.getsockname()[1]
    return port
