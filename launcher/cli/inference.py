"""`launcher inference …`: serve checkpoints and look at what is served."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from launcher.cli import completing
from launcher.cli.background import until_up
from launcher.cli.context import current, json_option, leave, print_json, print_table, seconds_of
from launcher.cli.ending import stop
from launcher.cli.jobs import inspect
from launcher.cli.logs import logs
from launcher.cli.retry import retry
from launcher.cli.training import delete, only_job_options

_WORDS = "-- [COMMAND… | ARGUMENTS]"
_OPTIONS = (
    "include", "exclude", "input_mode", "accels", "env", "secret", "secret_file", "no_mask", "device", "work_dir",
    "grace", "time_limit", "max_restarts", "retry_on", "no_retry_on", "pickles", "job_file",
)  # fmt: skip


@click.command()
@click.argument("name")
@click.option(
    "-C",
    "--checkpoint",
    metavar="REF",
    shell_complete=completing.checkpoints,
    help="What to serve: NAME, NAME@vN, UUID, job:JOB, URL or path; REF=FOLDER.",
)
@click.option(
    "--base",
    default="",
    metavar="REF",
    shell_complete=completing.checkpoints,
    help="The base model of an adapter. [by its lineage and configuration]",
)
@click.option(
    "--runtime",
    default="",
    metavar="SERVER",
    help="transformers or vllm. [vllm where it is installed, else transformers]",
)
@click.option("--port", type=int, metavar="P", help="Where it is reached. [a free port]")
@click.option("--host", metavar="ADDRESS", help="At which address; 0.0.0.0 for everybody. [127.0.0.1]")
@click.option("--health", metavar="PATH", help="Path that answers with 2xx when it is ready. [/health]")
@click.option("--ready-timeout", metavar="TIME", help="End it where it does not answer within so long. [30m]")
@click.option(
    "--hf-token-secret",
    metavar="NAME",
    shell_complete=completing.secrets,
    help="The secret with a Hugging Face token; it may use the network then.",
)
@click.option("--affinity", metavar="K=V", help="Of FlexAI's clusters; there is one machine here, so it is only said.")
@click.option("--force", is_flag=True, help="A command of your own gets the checkpoint though it is not ready.")
@click.option("--detach", is_flag=True, help="Come back when it answers; it goes on without the terminal.")
@only_job_options(*_OPTIONS)
@click.option("--runner", type=click.Choice(["process", "docker"]), help="[process]")
@click.option("--image", metavar="IMAGE", help="Docker runner: the image, with the server in it.")
@click.option("--user", metavar="USER[:GROUP]", help="Docker runner: who it is. [you; nobody where you are root]")
@click.option("--network", metavar="NAME", help="Docker runner: the engine's network.")
@click.option("--shm-size", metavar="SIZE", help="Docker runner: size of /dev/shm. [half of the memory]")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar=_WORDS)
@click.pass_context
def serve(
    ctx: click.Context, /, name: str, words: tuple[str, ...], checkpoint: str | None, base: str, runtime: str,
    hf_token_secret: str | None, affinity: str | None, force: bool, detach: bool, job_file: str | None, **flags: Any,
) -> int:  # fmt: skip
    """Serves a checkpoint, says when it answers and how to call it, and stays until it ends (Ctrl-C stops it).

    Without a command it is transformers' own server, or vLLM's; what follows -- and begins with a dash are arguments for it.
    Any other command may have {checkpoint}, {base}, {model} (an adapter and its base in one folder), {name}, {host} and {port}
    in it, or read LAUNCHER_INPUT_CHECKPOINT, LAUNCHER_BASE_CHECKPOINT, LAUNCHER_MODEL, LAUNCHER_SERVER_HOST and _PORT.

    \b
    Examples:
      launcher inference serve chat -C ft_01 --port 8000
      launcher inference serve chat -C lora_01/checkpoint-500 --base mistral --detach
      launcher inference serve chat -C ft_01 -- --device cpu --dtype bfloat16
      launcher inference serve gguf -C small -- llama-server -m {checkpoint}/model.gguf --host {host} --port {port}
      launcher inference serve chat -C ft_01 --runner docker --image vllm/vllm-openai --accels 2
    """
    from launcher import detach as detaching  # Before anything that has threads.

    background = detaching.detach() if detach else None
    from launcher import main_job, report, serving
    from launcher.cli.context import console, open_store
    from launcher.events import event
    from launcher.job import spec as specs
    from launcher.runners.signals import catching

    command = words if words and not words[0].startswith("-") else (serving.SERVER, *words)
    with catching() as signals:
        settings, environ = current(ctx)
        with report.early(settings, environ):
            flags = specs.typed(flags, environ)
            if hf_token_secret:
                flags["secret"]["HF_TOKEN"] = hf_token_secret
            own = {"name": name, "kind": "inference", "checkpoint": (checkpoint,) if checkpoint else ()}
            given = {"command": command} if words else {}
            spec = specs.load(
                flags | own | given,
                file=job_file,
                environ=environ,
                defaults={"command": command, "launch": "exec", "only": "inference"},
            )
            emit = console(ctx)
            if affinity:
                emit(
                    event(
                        "affinity", f"--affinity {affinity}: there is one machine here, and it runs on that", "warning"
                    )
                )
            spec = serving.complete(
                spec, settings, environ, open_store(ctx), emit, base=base, runtime=runtime, force=force
            )

            signals.drop(spec.dropped())
            leave(main_job.run(spec, settings, environ, signals, also=until_up(background, spec, "server-ready")).code)


@click.command("list")
@json_option
@click.pass_context
def list_servers(ctx: click.Context, as_json: bool) -> None:
    """Lists what was served on this machine, newest last.

    \b
    Example:
      launcher inference list
    """
    from launcher import names
    from launcher.job import listing
    from launcher.job.folder import JobFolder
    from launcher.text import ago

    settings, _ = current(ctx)
    rows = listing.every(settings.data_dir, lambda path, record: JobFolder(path).alive(record))
    found = []
    for row in rows:
        if row.kind == "inference":
            record = JobFolder(Path(settings.data_dir, "jobs", names.key(row.name), row.id)).read()
            found.append((record, row.state, _server(record)))
    if as_json:
        print_json(
            [
                {
                    "id": record.id,
                    "name": record.name,
                    "state": now,
                    "checkpoint": record.spec.checkpoint[0],
                    "server": server,
                    "created": record.created,
                }
                for record, now, server in found
            ]
        )
        return
    cells = [
        [
            record.name, now, server.state if server and now == "in progress" else "-", server.url if server else "-",
            record.spec.checkpoint[0], ago(record.created),
        ]
        for record, now, server in found
    ]  # fmt: skip
    columns = ["NAME", "STATE", "SERVER", "ADDRESS", "CHECKPOINT", "STARTED"]
    print_table(columns, cells, empty="Nothing was served here.")


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.option("--timeout", default="30m", metavar="TIME", help="How long to wait. [30m]")
@json_option
@click.pass_context
def wait(ctx: click.Context, name: str, timeout: str, as_json: bool) -> None:
    """Waits until a server answers, and prints its address. Fails where it ends before that.

    \b
    Example:
      curl "$(launcher inference wait chat)/v1/models"
    """
    from launcher.errors import ServerSilent, UsageError
    from launcher.job.folder import JobFolder
    from launcher.text import duration

    seconds = seconds_of("--timeout", timeout)
    folder = JobFolder.find(current(ctx)[0].data_dir, name)
    deadline = time.monotonic() + seconds
    while True:
        record = folder.read()
        if record.spec.kind != "inference":
            raise UsageError(what=f"Job {name} is no server: its kind is {record.spec.kind}.")
        server = _server(record)
        if not folder.alive(record):
            cause = record.outcome.cause if record.outcome else "Its launcher was killed, or its machine was lost."
            raise ServerSilent(job=name, cause=f"it does not run. {cause.rstrip('.')}")
        if server and server.state == "ready":
            break
        if time.monotonic() > deadline:
            raise ServerSilent(job=name, cause=f"it does not answer yet, after {duration(seconds)}")
        time.sleep(0.1)
    if as_json:
        print_json(server)
    else:
        click.echo(server.url)


def _server(record: Any) -> Any:
    return record.attempts[-1].server if record.attempts else None


group = click.Group("inference", help="Serve a checkpoint, and look at what is served.")
for _command in (serve, list_servers, inspect, logs, wait, stop, retry, delete):
    group.add_command(_command)
