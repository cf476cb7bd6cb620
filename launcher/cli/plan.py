"""`--dry-run`: the plan of a job, for people and for programs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from launcher.cli.context import console, print_json
from launcher.text import printable, size

if TYPE_CHECKING:
    from launcher.job.spec import JobSpec
    from launcher.plan import Plan
    from launcher.settings import Settings


def show_plan(ctx: click.Context, spec: JobSpec, settings: Settings, environ: dict[str, str], *, as_json: bool) -> None:
    """Prints what the job would be. Raises what its start would raise."""
    from launcher import plan as plans

    found = plans.plan(spec, settings, environ, console(ctx))
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        click.echo(printable(line))


def _lines(plan: Plan) -> list[str]:
    lines = [
        f"Job {plan.name} ({plan.kind}), runner {plan.runner}, device {plan.device}; nothing was started or written.",
        f"Command  {shlex.join(plan.command)}",
        f"  in     {plan.work_dir}" + (f" (image {plan.image})" if plan.image else ""),
    ]
    if plan.repository:
        lines.append(f"Code     {plan.repository}, commit {plan.commit}")
    if plan.packages:
        lines.append(f"Packages {plan.packages}, {'here already' if plan.packages_here else 'to be installed'}")
    for each in plan.inputs:
        label = {"checkpoint": "Input   ", "dataset": "Dataset ", "resume": "Resume  "}[each.kind]
        whole = f", {size(each.size)}" if each.size else ""
        how = f"to fetch: {size(each.fetch)} at most" if each.fetch else "here already"
        lines.append(f"{label} {each.reference} from {each.source}{whole}; {how}")
    if plan.guard:
        lines.append(f"  guard  {plan.guard}")
    for mount in plan.mounts:
        lines.append(f"Mount    {mount.source} at {mount.target}, {'read-only' if mount.read_only else 'writable'}")
    lines.append(f"Output   {plan.output}, collected into {plan.store}")
    lines.append(f"  other  {plan.others}")
    lines += [f"Env      {key}={value}" for key, value in plan.env.items()]
    lines += [f"Secret   {key} from {name}" for key, name in plan.secrets.items()]
    if plan.inherits:
        lines.append(f"  and    {plan.inherits} variables of this process")
    for disk in plan.disk:
        need = f"{size(disk.need)} needed, " if disk.need else ""
        lines.append(f"Disk     {disk.path} ({disk.use}): {need}{size(disk.free)} free")
    lines += [f"Not known before the start: {each}" for each in plan.unchecked]
    return lines
