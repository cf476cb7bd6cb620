"""`--detach`: what the terminal is told when the job is up."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from launcher.events import Emit, Event

if TYPE_CHECKING:
    from launcher.detach import Background
    from launcher.job.folder import JobFolder
    from launcher.job.spec import JobSpec


def until_up(background: Background | None, spec: JobSpec, kind: str = "job-started") -> Callable[[JobFolder], Emit]:
    """For `main_job.run`: makes what waits for the start of the command (another `kind` of event, where that is said), and lets
    the terminal go then, with how to follow it."""

    def watching(folder: JobFolder) -> Emit:
        def watch(event: Event) -> None:
            if background and event.kind == kind:
                job, group = shlex.quote(spec.name), f"launcher {spec.kind}"
                lines = [
                    f"Job {spec.name} ({folder.id}) goes on without this terminal, as process {os.getpid()}.",
                    f"  {group} logs {job} -f",
                    f"  {group} wait {job}",
                    f"  {group} stop {job}",
                ]
                background.up(folder.path / "logs" / "launcher.log", "\n".join(lines))

        return watch

    return watching
