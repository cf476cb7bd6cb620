"""`launcher doctor`."""

from __future__ import annotations

import click

from launcher.cli.context import current, json_option, print_json


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Checks this machine and the store by trying, and says what to do: exit code 0 without a problem, 78 with one.

    \b
    Examples:
      launcher doctor
      LAUNCHER_STORE=s3://bucket/team launcher doctor --json
    """
    from launcher import doctor as examining

    settings, environ = current(ctx)
    findings = []
    for each in examining.examine(settings, environ):
        findings.append(each)
        if not as_json:
            colour = {"ok": "green", "warning": "yellow", "problem": "red"}[each.state]
            click.echo(f"{click.style(each.state.ljust(7), fg=colour)}  {each.check.ljust(12)}  {each.found}")
            if each.todo:
                click.echo(f"{' ' * 23}{each.todo}")
    if as_json:
        print_json(findings)
    ctx.exit(78 if any(each.state == "problem" for each in findings) else 0)
