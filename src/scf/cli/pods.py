"""`scf pods|reaper|doctor`: rented machines, their end, and whether all that is needed is there."""

from typing import Any

import click

from scf.cli.common import Context, common_options, emit, json_option, talk
from scf.core.clock import SystemClock
from scf.core.errors import ScfError


@click.group(invoke_without_command=True)
@json_option
@common_options
def pods(context: Context, as_json: bool) -> None:
    """List this home's rented machines: cost, age, lease, and the caps on money."""
    current = click.get_current_context()
    if current.invoked_subcommand is not None:
        return
    from scf.daemon.pods import pods as listed
    from scf.daemon.pods import pods_text

    found = listed(context.config, SystemClock())
    if as_json:
        emit(found)
    else:
        click.echo(pods_text(found))


@pods.command("smoke")
@click.option(
    "--max-usd", type=float, required=True, help="Price times lease of the pod stays below this."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=10.0),
    default=1800.0,
    show_default=True,
    help="Seconds from the order until the job has ended.",
)
@click.option(
    "--job-seconds", "job_s", type=float, default=60.0, show_default=True, help="The job's length."
)
@json_option
@common_options
def pods_smoke(
    context: Context, max_usd: float, timeout_s: float, job_s: float, as_json: bool
) -> None:
    """Rent the cheapest fitting pod, run a one-minute job, give it back; say what was learnt.

    Exit code 8 when the provider or the pod fails. However it ends, also by Ctrl-C, the pod is told
    to end and is waited for until it is gone.
    """
    from scf.daemon.smoke import SmokeReport, smoke

    report = SmokeReport()
    try:
        smoke(
            context.config,
            SystemClock(),
            max_usd=max_usd,
            timeout_s=timeout_s,
            job_s=job_s,
            # For people as it goes; for programs the whole at the end.
            talk=talk if as_json else click.echo,
            report=report,
        )
    except ScfError as error:
        if as_json:
            emit({**report.to_json(), "error": str(error)})
        raise
    if as_json:
        emit(report.to_json())


@click.group()
def reaper() -> None:
    """End rented machines that outlive their lease, whatever became of the daemon."""


@reaper.command("run")
@click.option("--once", is_flag=True, help="One look, then return.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=15.0),
    default=60.0,
    show_default=True,
    help="Seconds between looks.",
)
@json_option
@common_options
def reaper_run(context: Context, once: bool, every_s: float, as_json: bool) -> None:
    """Look at the provider's list and the leases; end what nobody needs.

    It needs neither the drive nor the daemon. Pods of other homes and of other people are left
    alone. Under the emergency lock it ends every pod of this home.
    """
    from scf.daemon.reaper import Reaper, run_reaper

    if not once:
        run_reaper(context.config, every_s=every_s, talk=talk)
        return
    found = Reaper(context.config, SystemClock())
    try:
        look = found.look()
    finally:
        found.close()
    if as_json:
        emit(look.to_json())
        return
    for stray in look.ended:
        click.echo(f"{stray.lot.lot_id}  {stray.lot.name}  told to end: {stray.why}")
    click.echo(f"{look.alive} pods of this home, {len(look.ended)} told to end")


@click.command()
@click.option("--offline", is_flag=True, help="Ask nobody outside this machine.")
@json_option
@common_options
def doctor(context: Context, offline: bool, as_json: bool) -> int:
    """Look whether all that is needed is there; each line ok, warn or fail, with the remedy.

    Exit code 0 when nothing fails, 1 otherwise. Changes nothing, spends nothing, shows no secret.
    """
    from scf.daemon.doctor import examine

    findings = examine(context.config, offline=offline)
    failed = any(finding.verdict == "fail" for finding in findings)
    if as_json:
        rows: list[dict[str, Any]] = [finding.to_json() for finding in findings]
        emit({"schema_version": 1, "findings": rows, "ok": not failed})
        return int(failed)
    for finding in findings:
        click.echo(f"{finding.verdict:4}  {finding.what:18} {finding.detail}")
        if finding.remedy and finding.verdict != "ok":
            click.echo(f"      {'':18} {finding.remedy}")
    return int(failed)
