"""`launcher training …`: start jobs and look at them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launcher.cli import completing
from launcher.cli.background import until_up
from launcher.cli.context import current, json_option, leave, open_store, print_json, print_table, redactor
from launcher.cli.ending import stop, wait
from launcher.cli.fetching import fetch
from launcher.cli.flexai import debug_ssh, foreign_options, translated
from launcher.cli.jobs import inspect, list_jobs
from launcher.cli.logs import logs
from launcher.cli.mistakes import JobCommand
from launcher.cli.plan import show_plan
from launcher.cli.retry import retry
from launcher.errors import UsageError

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec

F = TypeVar("F", bound=Callable[..., Any])

_REF = "Input: NAME, NAME@vN, UUID, job:JOB, URL or path; REF=FOLDER names its folder. May be repeated."
_DATASET = "Dataset, at $FLEXAI_INPUT_DIR/NAME: NAME, NAME@vN, UUID; NAME=MOUNT names its folder. May be repeated."
_OPTIONS = [
    click.option(
        "-C",
        "--checkpoint",
        "checkpoint",
        multiple=True,
        metavar="REF",
        shell_complete=completing.checkpoints,
        help=_REF,
    ),
    click.option(
        "-D",
        "--dataset",
        "dataset",
        multiple=True,
        metavar="NAME[=MOUNT]",
        shell_complete=completing.datasets,
        help=_DATASET,
    ),
    click.option("--include", multiple=True, metavar="GLOB", help="Of the inputs, only these files. May be repeated."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Of the inputs, not these files. May be repeated."),
    click.option("--only", type=click.Choice(["all", "inference"]), help="inference: no optimizer, scheduler, … [all]"),
    click.option(
        "--input-mode", type=click.Choice(["eager", "lazy"]), help="lazy: start at once, fetch what is read. [eager]"
    ),
    click.option(
        "--input-writable", is_flag=True, default=None, help="The job may write into a view of its input, for its time."
    ),
    click.option("-a", "--accels", type=int, metavar="N", help="Accelerators, and processes that torchrun starts. [1]"),
    click.option("-n", "--nodes", type=int, metavar="N", help="Nodes. [1]"),
    click.option("-u", "--repository-url", metavar="URL", help="Take the code from this git repository."),
    click.option(
        "-b", "--repository-revision", metavar="REV", help="Branch, tag or commit of it. [its default branch]"
    ),
    click.option("--repository-token-secret", metavar="NAME", help="Secret with the token that its server asks for."),
    click.option(
        "--requirements-path", metavar="FILE", help="Packages for the job. [the repository's requirements.txt, if any]"
    ),
    click.option("-E", "--env", multiple=True, metavar="K=V", help="Variable for the job; K alone passes yours on."),
    click.option(
        "-S",
        "--secret",
        multiple=True,
        metavar="K=NAME",
        shell_complete=completing.secrets,
        help="Variable with a secret: a kept one (launcher secret), env:VARIABLE or file:PATH.",
    ),
    click.option(
        "--secret-file",
        multiple=True,
        metavar="K=NAME",
        shell_complete=completing.secrets,
        help="Variable with the path of a file with the secret.",
    ),
    click.option(
        "--no-mask", is_flag=True, default=None, help="Print and keep secrets in the job's output as they are."
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "rocm"]), help="[auto]"),
    click.option("--launch", type=click.Choice(["auto", "torchrun", "exec"]), help="[auto: .py and -m by torchrun]"),
    click.option("--work-dir", metavar="DIR", help="Where the command runs. [the current folder]"),
    click.option(
        "--watch", multiple=True, metavar="DIR", help="Collect checkpoints from here as well. May be repeated."
    ),
    click.option("--resume", metavar="HOW", help="auto, never, same-job, or a checkpoint to go on from. [auto]"),
    click.option("--grace", metavar="TIME", help="From a stop request to the end of all, such as 90s. [30s]"),
    click.option("--time-limit", metavar="TIME", help="Stop so that all is over by then, such as 8h. [none]"),
    click.option(
        "--stop-signal",
        multiple=True,
        type=click.Choice(["USR1", "USR2", "QUIT"]),
        help="Asks for a stop too. May be repeated.",
    ),
    click.option("--max-restarts", type=int, metavar="N", help="Start it again after a failure, at most so often. [0]"),
    click.option("--retry-on", metavar="LIST", help="Retry these exit codes and classes: 1,134,oom. [by class]"),
    click.option("--no-retry-on", metavar="LIST", help="Don't retry these exit codes and classes: 42,hang."),
    click.option("--stall-timeout", metavar="TIME", help="End it when it does nothing for so long. [never]"),
    click.option(
        "--single-child", is_flag=True, default=None, help="Signals reach the command alone, not its process group."
    ),
    click.option(
        "--rewrite", multiple=True, metavar="FROM:TO", help="Signal that arrives as another one; TO 0 drops it."
    ),
    click.option("--keep", metavar="RULES", help="Keep only last=N,every=STEPS,best=METRIC:min|max,days=N. [all]"),
    click.option("--settle", metavar="TIME", help="Quiet time that proves files written. [2s]"),
    click.option("--bandwidth", metavar="SIZE/S", help="The most to send checkpoints with, such as 20MB/s. [no cap]"),
    click.option(
        "--spool",
        metavar="SIZE",
        help="What checkpoints may hold here until stored: 20GiB, or a share of what is free. [30%]",
    ),
    click.option("--when-full", type=click.Choice(["keep-all", "newest"]), help="Beyond --spool. [keep-all]"),
    click.option(
        "--pickles", type=click.Choice(["allow", "warn", "deny"]), help="Checkpoints whose pickles may run code. [warn]"
    ),
    click.option("--health-port", metavar="[HOST:]PORT", help="Serve /healthz, /readyz and /metrics here."),
    click.option("--heartbeat", metavar="FILE", help="Write this file every 2 s while the launcher is well."),
    click.option(
        "--file", "job_file", metavar="FILE", help="A YAML job file; flags and LAUNCHER_* variables win over it."
    ),
]


def job_options(command: Any) -> Any:
    """The flags that every way of starting a job has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def only_job_options(*names: str) -> Callable[[F], F]:
    """Of these flags, those that one half of a job has, by the names of their parameters."""

    def decorate(command: F) -> F:
        own = len(getattr(command, "__click_params__", ()))
        params = job_options(command).__click_params__
        params[own:] = [each for each in params[own:] if each.name in names]
        return command

    return decorate


def _spec(
    ctx: click.Context,
    kind: str,
    name: str,
    words: tuple[str, ...],
    job_file: str | None,
    save_file: str | None,
    flags: dict[str, Any],
    environ: dict[str, str],
) -> JobSpec:
    from launcher.job import spec as specs

    given = specs.typed(flags, environ) | {"name": name, "kind": kind, "command": words}
    spec = specs.load(given, file=job_file, environ=environ)
    if save_file:
        from launcher.job.saving import save

        save(spec, save_file, redactor(ctx))
    return spec


def _run(ctx: click.Context, asked: Callable[[dict[str, str]], JobSpec], *, detached: bool) -> int:
    from launcher.detach import detach

    background = detach() if detached else None

    from launcher import main_job, report
    from launcher.runners.signals import catching

    with catching() as signals:
        settings, environ = current(ctx)
        with report.early(settings, environ):
            spec = asked(environ)
            signals.drop(spec.dropped())
            leave(main_job.run(spec, settings, environ, signals, also=until_up(background, spec)).code)


def _run_command(kind: str) -> click.Command:
    @click.command("run", cls=JobCommand)
    @click.argument("name")
    @job_options
    @click.option("--runner", type=click.Choice(["process", "docker"]), help="[process]")
    @click.option(
        "--image", metavar="IMAGE", help="Docker runner: the image; it needs the job's libraries, not launcher."
    )
    @click.option(
        "--user", metavar="USER[:GROUP]", help="Docker runner: who the job is. [you; nobody where you are root]"
    )
    @click.option("--network", metavar="NAME", help="Docker runner: the engine's network.")
    @click.option("--shm-size", metavar="SIZE", help="Docker runner: size of /dev/shm. [half of the memory]")
    @click.option("-d", "--detach", is_flag=True, help="Return when the job runs; it goes on without the terminal.")
    @click.option("--dry-run", is_flag=True, help="Check everything and show the plan; start and write nothing.")
    @click.option("--json", "as_json", is_flag=True, help="Print the plan of --dry-run as JSON.")
    @click.option("--save-file", metavar="FILE", help="Write the job file that --file reads, then go on.")
    @foreign_options
    @click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- SCRIPT.py [ARGS…]")
    @click.pass_context
    def run(
        ctx: click.Context,
        /,
        name: str,
        words: tuple[str, ...],
        job_file: str | None,
        detach: bool,
        dry_run: bool,
        as_json: bool,
        save_file: str | None,
        **flags: Any,
    ) -> int:
        """Starts a job and stays until its last checkpoint is stored. The exit code is the job's own.

        The job finds its input below $FLEXAI_INPUT_CHECKPOINT_DIR (read-only) and writes to
        $FLEXAI_OUTPUT_CHECKPOINT_DIR; every sub-directory there becomes a checkpoint.

        \b
        Examples:
          launcher training run ft_01 -C mistral_tiny_base --accels 2 -- train.py --epochs 3
          launcher training run ft_02 -C job:ft_01/checkpoint-500 -- train.py
          launcher training run ft_03 -C base -D medical -D code@v2=extra -- train.py   # $FLEXAI_INPUT_DIR/medical
          launcher training run eval -C ft_01@v2=model -- -m lm_eval --model hf
          launcher training run dry --runner docker --image my/image -C base -- train.py
          launcher training run ft_03 -C mistral_tiny_base --detach -- train.py
          launcher training run ft_04 -C mistral_tiny_base --dry-run --save-file job.yaml -- train.py
          launcher training run from-file --file job.yaml
          launcher training run ft_03 -u https://git.example.org/team/code -b v1.2 -C base -- train.py
        """
        if as_json and not dry_run:
            raise UsageError(
                what="--json is for --dry-run: a job's output is its own.", hint="Add --dry-run, or leave it out."
            )
        if detach and dry_run:
            raise UsageError(what="--detach and --dry-run exclude each other.", hint="Leave one out.")
        asked = functools.partial(_spec, ctx, kind, name, words, job_file, save_file, translated(ctx, flags))
        if dry_run:
            settings, environ = current(ctx)
            show_plan(ctx, asked(environ), settings, environ, as_json=as_json)
            return 0
        return _run(ctx, asked, detached=detach)

    return run


def _group(name: str, kind: str, text: str) -> click.Group:
    group = click.Group(name, help=text)
    group.add_command(_run_command(kind))
    for command in (list_jobs, inspect, logs, wait, stop, retry, checkpoints, fetch, delete, debug_ssh):
        group.add_command(command)
    return group


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.option("--all", "every", is_flag=True, help="Of all jobs that had this name, not only the newest.")
@json_option
@click.pass_context
def checkpoints(ctx: click.Context, name: str, every: bool, as_json: bool) -> None:
    """Lists the checkpoints that a job wrote, also while it runs.

    \b
    Example:
      launcher training checkpoints ft_01
    """
    from launcher.errors import JobNotFound
    from launcher.job.folder import JobFolder

    store = open_store(ctx)
    found = store.of_job(name)
    if not found:
        try:
            JobFolder.find(current(ctx)[0].data_dir, name)
        except JobNotFound as error:
            raise error from None
    newest = next((each.manifest.origin.job for each in reversed(found) if each.manifest.origin), "")
    if not every:
        found = [each for each in found if each.manifest.origin and each.manifest.origin.job == newest]
    if as_json:
        from launcher.cli.listing import as_document

        print_json([as_document(each) for each in found])
        return
    from launcher.text import ago

    rows = []
    for each in found:
        manifest, facts = each.manifest, each.manifest.facts
        rows.append(
            [
                manifest.id,
                each.label if (each.version or 1) > 1 else manifest.name,
                str(manifest.origin.node if manifest.origin else 0),
                "-" if facts.step is None else str(facts.step),
                "-" if facts.train_loss is None else f"{facts.train_loss:.4f}",
                "-" if facts.eval_loss is None else f"{facts.eval_loss:.4f}",
                facts.architecture or manifest.format,
                facts.library_version or "-",
                "yes" if manifest.ready.inference else "no",
                ago(manifest.created),
            ]
        )
    columns = [
        "ID",
        "NAME",
        "NODE",
        "STEP",
        "TRAIN LOSS",
        "EVAL LOSS",
        "MODEL",
        "VERSION",
        "INFERENCE READY",
        "TIMESTAMP",
    ]
    print_table(columns, rows, empty=f"Job {name} has written no checkpoint.")


@click.command()
@click.argument("name", shell_complete=completing.jobs)
@click.pass_context
def delete(ctx: click.Context, name: str) -> None:
    """Removes a job's folder (logs, outputs) from this machine. Its checkpoints stay in the store.

    \b
    Example:
      launcher training delete ft_01
    """
    from launcher.job.folder import JobFolder

    folder = JobFolder.find(current(ctx)[0].data_dir, name)
    if folder.running():
        raise UsageError(what=f"Job {name} is running.", hint=f"launcher training stop {name}")
    if folder.owes or any((folder.path / "spool").glob("*/capture.json")):
        raise UsageError(
            what=f"Job {name} has checkpoints that are not stored yet.",
            hint=f"Store them first: launcher recover {name}",
        )
    folder.delete()
    click.echo(f"Removed job {name} ({folder.id}).")


group = _group("training", "training", "Start training jobs and look at them.")
fine_tuning = _group("fine-tuning", "fine-tuning", "Start fine-tuning jobs and look at them.")
