"""The docker runner: the job in a container of a real engine, hardened, with its input bound read-only by the engine.

Default hardening: no new privileges, all capabilities dropped, a limit on processes, not root. `plan` is the exact request
(`--dry-run` prints it); `Container` sends it and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import CommandNotExecutable, CommandNotFound, EngineUnavailable, LocalResourceError, NotFoundError
from launcher.inputs import datasets, mentions
from launcher.inputs.programs import Done
from launcher.job.logs import Times
from launcher.masking import Mask
from launcher.runners import handover
from launcher.runners.handover import Handed, Handover
from launcher.runners.output import Pump, RankLogs, clean, wide_pipe, write_all
from launcher.runners.running import Exit
from launcher.text import printable

INPUT = mentions.CONTRACT
DATASETS = datasets.CONTRACT
OUTPUT = "/output-checkpoint"
OTHERS = "/output"
WORK = "/workspace"
AGENT = "/run/launcher/agent.py"
LOGS = "/run/launcher/logs"
MODELS = "/run/launcher/models"
ENVIRONMENT = "/run/launcher/environment"
PYTHON = "python3"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What the engine sets where an image has no PATH."""
_PIDS = 32768
_NOBODY = 65534
_ANSWER, _REMOVAL = 2.0, 60.0
"""Seconds to wait for the engine: for its answer, and for the removal of a container that has ended."""


def user_of(asked: str) -> tuple[str, int | None, int | None]:
    """The container's user as the engine takes it, and the uid and gid where they are numbers.

    Not root unless asked: the caller, and nobody (65534) where the caller is root.
    """
    if asked:
        name, _, group = asked.partition(":")
        group = group or name
        return asked, int(name) if name.isdigit() else None, int(group) if group.isdigit() else None
    uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (_NOBODY, _NOBODY)
    return f"{uid}:{gid}", uid, gid


def owner(asked: str) -> tuple[int, int]:
    """The uid and gid that own what the job may change: -1 keeps the caller's, also where a name is only known inside."""
    _, uid, gid = user_of(asked)
    known = os.geteuid() == 0 and uid is not None
    return (uid, -1 if gid is None else gid) if known and uid is not None else (-1, -1)


def plan(
    *,
    image: str,
    name: str,
    job_id: str,
    command: Sequence[str],
    env: Mapping[str, str],
    work_dir: str,
    inputs: Sequence[tuple[str, str]],
    writable: Collection[str],
    output: str,
    others: str,
    logs: str,
    agent: str,
    user: str,
    network: str,
    shm_size: int,
    gpus: int,
    secrets: Handover | None = None,
    models: str = "",
    publish: tuple[str, int] | None = None,
    environment: str = "",
) -> dict[str, Any]:
    """The arguments of the engine's container creation. `inputs`: (folder on this machine, path in the container), those of
    the paths in `writable` not read-only. `secrets`: how they will be handed over, if any are. `models`: the folder with a
    server's model; `publish`: the address of this machine, and the port there and in the container. `environment`: the folder
    with the job's packages, if it has any of its own."""
    binds: list[dict[str, Any]] = [
        {"Type": "bind", "Source": source, "Target": target, "ReadOnly": target not in writable}
        for source, target in inputs
    ]
    binds.append({"Type": "bind", "Source": output, "Target": OUTPUT, "ReadOnly": False})
    binds.append({"Type": "bind", "Source": others, "Target": OTHERS, "ReadOnly": False})
    binds.append({"Type": "bind", "Source": work_dir, "Target": WORK, "ReadOnly": False})
    binds.append({"Type": "bind", "Source": agent, "Target": AGENT, "ReadOnly": True})
    binds.append({"Type": "bind", "Source": logs, "Target": LOGS, "ReadOnly": False})
    if secrets:
        binds.append({"Type": "bind", "Source": secrets.source, "Target": handover.INSIDE, "ReadOnly": False})
    if models:
        binds.append({"Type": "bind", "Source": models, "Target": MODELS, "ReadOnly": True})
    if environment:
        binds.append({"Type": "bind", "Source": environment, "Target": ENVIRONMENT, "ReadOnly": True})
    request = hardened(
        image=image, name=name, command=command, env=env, binds=binds, user=user, network=network, secrets=bool(secrets)
    )
    request |= {"labels": {"launcher.job": job_id}, "shm_size": shm_size}
    if publish and network != "host":
        request["ports"] = {f"{publish[1]}/tcp": publish}
    if secrets and secrets.files:
        request["tmpfs"] = {handover.FILES: f"size={secrets.memory},mode=1777,nosuid,nodev,noexec"}
    if gpus:
        request["device_requests"] = [{"Driver": "", "Count": gpus, "Capabilities": [["gpu"]]}]
    return request


def hardened(
    *,
    image: str,
    name: str,
    command: Sequence[str],
    env: Mapping[str, str],
    binds: Sequence[dict[str, Any]],
    user: str,
    network: str,
    secrets: bool,
) -> dict[str, Any]:
    """What every container of ours is asked for with. `secrets`: one of the binds holds variables, which are set first."""
    request: dict[str, Any] = {
        "image": image,
        "name": name,
        "command": [*(handover.START if secrets else ()), *command],
        "entrypoint": [],
        "environment": dict(env),
        "working_dir": WORK,
        "user": user,
        "mounts": list(binds),
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": _PIDS,
    }
    if secrets:
        request["ulimits"] = [{"Name": "core", "Soft": 1, "Hard": 1}]  # See `handover.no_core_dumps`.
        request["log_config"] = {"Type": "none"}  # The engine would keep all output as it is.
    return request | ({"network": network} if network else {})


def connect(image: str) -> Any:
    """A client of an engine that answers and has the image. Raises EngineUnavailable, NotFoundError."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException as error:
        raise EngineUnavailable(cause=f"does not answer: {error}") from error
    try:
        client.images.get(image)
    except ImageNotFound as error:
        raise NotFoundError(
            what=f"The Docker engine has no image {image!r}.", hint=f"docker pull {image}, or build it first."
        ) from error
    except DockerException as error:
        raise EngineUnavailable(cause=f"failed: {error}") from error
    return client


def end(job: str) -> None:
    """Removes the container of a job whose launcher is gone, if there is one and the engine answers."""
    import docker
    from docker.errors import DockerException

    with contextlib.suppress(DockerException):
        docker.from_env(timeout=60).containers.get(container_name(job)).remove(force=True, v=True)


def container_name(job: str) -> str:
    """The name of a job's container, by the job's id."""
    return f"launcher-{job}"


def image(client: Any, image: str) -> tuple[str, str]:
    """An image's id, and its PATH. Raises EngineUnavailable."""
    from docker.errors import DockerException

    try:
        found = client.images.get(image)
    except DockerException as error:
        raise EngineUnavailable(cause=f"failed: {error}") from error
    pairs = [each.partition("=") for each in found.attrs["Config"].get("Env") or ()]
    return found.id, next((value for name, _, value in pairs if name == "PATH"), _PATH)


def run_once(client: Any, request: dict[str, Any], *, stop: Callable[[], None], on_line: Callable[[str], None]) -> Done:
    """Runs a container that is no job to its end; what has its name is removed before, and it is removed after. `on_line` gets
    each line of its stderr. Raises EngineUnavailable, LocalResourceError, and what `stop` raises, which ends it."""
    from docker.errors import APIError, DockerException, NotFound

    output, said = bytearray(), bytearray()

    def follow(stream: Any) -> None:
        with contextlib.suppress(Exception):  # The wait below tells how it ended.
            for out, err in stream:
                output.extend(out or b"")
                for line in (err or b"").decode("utf-8", "replace").splitlines():
                    on_line(printable(line))
                said.extend(err or b"")

    container = None
    try:
        with contextlib.suppress(NotFound):
            client.containers.get(request["name"]).remove(force=True, v=True)
        container = client.containers.create(**_arguments(request))
        stream = _attach(container, request)
        thread = threading.Thread(target=follow, args=(stream,), name="output", daemon=True)
        thread.start()
        container.start()
        while thread.is_alive():
            stop()
            thread.join(0.1)
        code = int(container.wait(timeout=60)["StatusCode"])
        lines = [printable(line) for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
        return Done(code, output.decode("utf-8", "replace"), tuple(lines[-200:]))
    except APIError as error:
        raise LocalResourceError(
            what=f"The Docker engine refused the container: {error.explanation or error}"
        ) from error
    except (DockerException, OSError) as error:
        raise EngineUnavailable(cause=f"failed: {error}") from error
    finally:
        if container is not None:
            with contextlib.suppress(DockerException, OSError):
                container.remove(force=True, v=True)


def _arguments(request: dict[str, Any]) -> dict[str, Any]:
    """A request as the engine's library takes it."""
    from docker.types import DeviceRequest, Mount, Ulimit

    mounts = [
        Mount(each["Target"], each["Source"], type="bind", read_only=each["ReadOnly"]) for each in request["mounts"]
    ]
    limits = [Ulimit(**each) for each in request.get("ulimits", ())]
    devices = [
        DeviceRequest(count=each["Count"], capabilities=each["Capabilities"])
        for each in request.get("device_requests", ())
    ]
    return request | {"mounts": mounts, "ulimits": limits, "device_requests": devices}


def _attach(container: Any, request: dict[str, Any]) -> Any:
    """What a container prints, from its start on: pairs of pieces of stdout and stderr."""
    logs = "log_config" not in request  # Else the engine has none to begin with; `docker run` does without too.
    return container.attach(stdout=True, stderr=True, stream=True, logs=logs, demux=True)


class Container:
    """A started container. Its output is followed live; it is removed at the end, whatever the end."""

    rung = "engine"
    guarantee = "the Docker engine binds the input read-only; the job has no capabilities and cannot gain privileges"

    def __init__(
        self,
        client: Any,
        request: dict[str, Any],
        *,
        log: Path,
        rank_logs: Path,
        ranks: int = 1,
        secrets: Handed | None = None,
        mask: Mask | None = None,
    ) -> None:
        """Creates and starts it. `rank_logs`, `secrets` and `mask` as for `Process`.

        Raises CommandNotFound, CommandNotExecutable, EngineUnavailable, LocalResourceError.
        """
        from docker.errors import APIError, DockerException

        arguments = _arguments(request)
        self._secrets = secrets
        if secrets:
            secrets.give()
        self._client = client
        self._container: Any = None
        self._exit: Exit | None = None
        self._killed = False
        self._failure = ""
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._clean = functools.partial(clean, mask, log, os.fstat(self._log).st_size, rank_logs) if mask else None
        self._times = Times(log)
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        self._ranks = RankLogs(rank_logs, ranks, out, err, self._log, self._times, mask) if ranks > 1 else None
        self.fd, self._ended = os.pipe2(os.O_CLOEXEC)
        try:
            self._container = client.containers.create(**arguments)
            stream = _attach(self._container, request)
            self._pipes = [wide_pipe(), wide_pipe()]
            readers = [reader for reader, _ in self._pipes]
            self._pump = Pump(dict(zip(readers, (out, err))), self._log, self._times, mask)
            self._threads = [threading.Thread(target=self._follow, args=(stream,), name="follow", daemon=True)]
            self._threads[0].start()
            self._container.start()
        except APIError as error:
            self.close()
            text = str(error.explanation or error)
            if "executable file not found" in text or ("no such file or directory" in text and "exec" in text):
                raise CommandNotFound(
                    command=request["command"][0], hint=f"It is not in the image {request['image']}."
                ) from error
            if "permission denied" in text and "exec" in text:
                raise CommandNotExecutable(command=request["command"][0], cause=text) from error
            raise LocalResourceError(what=f"The Docker engine refused the container: {text}") from error
        except DockerException as error:
            self.close()
            raise EngineUnavailable(cause=f"failed: {error}") from error
        self._threads.append(threading.Thread(target=self._wait, name="container", daemon=True))
        self._threads[1].start()

    def _follow(self, stream: Any) -> None:
        with contextlib.suppress(Exception):
            for parts in stream:
                for (_, writer), data in zip(self._pipes, parts):
                    if data:
                        write_all(data, [writer])
        for _, writer in self._pipes:
            os.close(writer)

    def _wait(self) -> None:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        while True:
            try:
                code = int(self._container.wait(timeout=3600)["StatusCode"])
                self._container.reload()
                oom = bool(self._container.attrs["State"].get("OOMKilled"))
                # The engine says 128+n for a signal, like a shell.
                self._exit = Exit(code, code - 128 if 128 < code < 128 + 65 else None, oom)
                break
            except RequestException as error:
                if "timed out" in str(error).lower():
                    continue
                self._exit = Exit(137, 9)
                self._failure = f"the engine was lost: {error}"
                break
            except DockerException as error:
                self._exit = Exit(137, 9)
                self._failure = f"the container was lost: {error}"
                break
        os.write(self._ended, b"x")

    def poll(self) -> Exit | None:
        return self._exit

    def signal(self, number: int) -> None:
        self._ask(lambda: self._container.kill(signal=number), _ANSWER)

    def _ask(self, request: Callable[[], None], seconds: float) -> bool:
        """Asks the engine for something, and waits so long for its answer; returns whether it came. An engine that does not
        answer, or a container that cannot be ended, must not keep the launcher beyond its time."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        def run() -> None:
            with contextlib.suppress(DockerException, RequestException):
                request()

        thread = threading.Thread(target=run, name="engine", daemon=True)
        thread.start()
        thread.join(seconds)
        return not thread.is_alive()

    def members(self) -> list[int]:
        return []

    def cpu_seconds(self) -> float | None:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        with contextlib.suppress(DockerException, RequestException, KeyError):
            stats = self._client.api.stats(self._container.id, stream=False, one_shot=True)
            return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9
        return None

    def waiting(self) -> list[str]:
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        with contextlib.suppress(DockerException, RequestException):
            rows = self._container.top(ps_args="-eo pid,stat,wchan:40,comm")["Processes"]
            return [f"{name} ({pid}) in {where}, state {state[0]}" for pid, state, where, name in rows]
        return []

    def kill(self) -> None:
        self._killed = self._killed or self._ask(lambda: self._container.kill(signal=9), _ANSWER)

    def close(self) -> list[str]:
        left = []
        if self._secrets:
            self._secrets.take_back()
        if self._container is not None:
            if len(self._threads) > 1:
                self._threads[0].join(5.0)
                self._pump.join(2.0)
            if self._ranks:
                self._ranks.finish(10.0)
            if self._clean:
                self._clean()
            container, self._container = self._container, None
            if not self._ask(lambda: container.remove(force=True, v=True), _REMOVAL if self._exit else _ANSWER):
                left.append(f"the container {container.name}, which the engine does not end")
            for fd in (self._log, self.fd, self._ended, *(reader for reader, _ in self._pipes)):
                os.close(fd)
            self._times.close()
            if self._failure:
                left.append(self._failure)
        return left
