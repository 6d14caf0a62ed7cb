"""`scf daemon|gear|pause|resume|stop|lock|unlock|status|runs|run`: the operator's commands."""

import time
from typing import Any

import click

from scf.cli.common import Context, common_options, emit, json_option, talk
from scf.control.budget import check_limit
from scf.control.control_file import AUTO_GEAR, GEAR_FLOORS_S, STOP_MODES, ControlFile
from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import SystemClock
from scf.core.errors import NothingToDo, OperatorError, UsageError

# How long a command waits for a running daemon's answer.
ACK_WAIT_S = 10.0
WATCH_EVERY_S = 2.0


@click.group()
def daemon() -> None:
    """Run the conductor."""


@daemon.command("run")
@click.option("--once", is_flag=True, help="One tick, then return.")
@click.option("--until-idle", is_flag=True, help="Return once nothing is left to do.")
@click.option(
    "--gear",
    type=click.Choice(tuple(GEAR_FLOORS_S), case_sensitive=False),
    help="Polling floor for this run, in place of the operator's.",
)
@common_options
def daemon_run(context: Context, once: bool, until_idle: bool, gear: str | None) -> None:
    """Ingest what was dropped in, train, verify, prove, promote and release; until told to stop.

    One daemon works on a home and on a drive. A daemon that was killed is started again with the
    same command: jobs go on without it and are found again. Ctrl-C asks jobs to save their state.
    """
    from scf.daemon.scf_daemon import run_daemon

    if once and until_idle:
        raise UsageError("--once and --until-idle exclude each other")
    run_daemon(context.config, once=once, until_idle=until_idle, gear=gear, talk=talk)


@daemon.command("plan")
@json_option
@common_options
def daemon_plan(context: Context, as_json: bool) -> None:
    """What the conductor would do now, and why; does nothing.

    `>` marks what the next tick would do, `.` what it waits with.
    """
    from scf.daemon.foresight import foresee

    found = foresee(context.config, SystemClock())
    if as_json:
        emit({"schema_version": 1, "intentions": [intention.to_json() for intention in found]})
        return
    for intention in found:
        mark = ">" if intention.now else "."
        click.echo(f"{mark} {intention.what:8} {intention.subject}: {intention.why}")


@daemon.command("rebuild-state")
@json_option
@common_options
def daemon_rebuild_state(context: Context, as_json: bool) -> None:
    """Make runs.db again from the audit log, the zoo and the job bundles.

    For a database that is damaged or lost. The old file is set aside. What only the database knew
    is gone: which dropped files were ingested (they are read again, and known by their CIDs), and
    how often a run was tried.
    """
    from scf.daemon.rebuild import rebuild_state

    found = rebuild_state(context.config, SystemClock())
    if as_json:
        emit({"schema_version": 1, **found.to_json()})
        return
    counts = ", ".join(f"{n} {state}" for state, n in sorted(found.runs.items())) or "none"
    click.echo(f"runs {counts}; {found.transitions} transitions, {found.attempts} attempts")
    for run_id in found.without_plan:
        click.echo(f"{run_id}: its plan was not found; `scf run show` cannot list its fossils")
    for run_id in found.left_out:
        click.echo(f"{run_id}: its plan was not found; it is planned again")
    if found.set_aside:
        talk(f"The old database is {found.set_aside}.")


@click.command()
@click.argument(
    "name", type=click.Choice((*GEAR_FLOORS_S, AUTO_GEAR), case_sensitive=False), metavar="GEAR"
)
@common_options
def gear(context: Context, name: str) -> None:
    """Shift the conductor's gear: how often it looks.

    STANDARD 5 s, ACCELERATED 1 s, HYPER 0.1 s, SINGULARITY 0.05 s; AUTO shifts by what waits, until
    a gear is named again. Safety checks do not depend on it.
    """
    _ask(context, "SHIFT_GEAR", {"gear": name})


@click.command()
@common_options
def pause(context: Context) -> None:
    """Start nothing new until `scf resume`; running jobs go on."""
    _ask(context, "PAUSE", {})


@click.command()
@common_options
def resume(context: Context) -> None:
    """Go on after `scf pause`."""
    _ask(context, "RESUME", {})


@click.command()
@click.option(
    "--mode",
    type=click.Choice(STOP_MODES),
    default="drain",
    show_default=True,
    help="drain: let running jobs end. now: ask them to save their state and end.",
)
@common_options
def stop(context: Context, mode: str) -> None:
    """Ask the running conductor to stop."""
    from scf.daemon.heartbeat import is_running

    if not is_running(context.home):
        raise NothingToDo(f"no daemon is running for {context.home}")
    _ask(context, "STOP", {"mode": mode})


@click.command("run-now")
@common_options
def run_now(context: Context) -> None:
    """Start a run on what the vault holds now, however little of it is fresh.

    A run on just the same fossils, settings and parent is never made twice.
    """
    _ask(context, "RUN_NOW", {})


@click.command()
@click.argument("run_id", metavar="RUN")
@common_options
def cancel(context: Context, run_id: str) -> None:
    """End a run: its job may save its state, and no other try is made."""
    with _store(context) as store:
        if store is None:
            raise UsageError(f"no run {run_id!r}", remedy="`scf runs` lists them.")
        store.run(run_id)
    _ask(context, "CANCEL", {"run": run_id})


@click.group(invoke_without_command=True)
@common_options
def budget(context: Context) -> None:
    """Show the limits (room per partition with its forecast, money, what is kept), or set one."""
    if click.get_current_context().invoked_subcommand is None:
        _show_budget(context, as_json=False)


@budget.command("show")
@json_option
@common_options
def budget_show(context: Context, as_json: bool) -> None:
    """Every limit, what is used of it, and until when it will do."""
    _show_budget(context, as_json=as_json)


def _show_budget(context: Context, *, as_json: bool) -> None:
    from scf.daemon.standing import limits, limits_text

    found = limits(context.config, SystemClock())
    if as_json:
        emit(found)
    else:
        click.echo(limits_text(found))


@budget.command("set")
@click.argument("name")
@click.argument("limit")
@common_options
def budget_set(context: Context, name: str, limit: str) -> None:
    """Set a limit, such as `fossil_vault "1.2 TB"` or `usd_month 40`; kept until set again."""
    check_limit(name, limit)
    _ask(context, "SET_BUDGET", {"budget": name, "limit": limit})


@click.command()
@click.option("--reason", default="", help="For whoever finds the lock.")
@common_options
def lock(context: Context, reason: str) -> None:
    """Emergency stop: end jobs, start nothing, spend nothing, publish nothing.

    Works without the daemon, the drive or a readable configuration: it makes one file. Running jobs
    end within a fraction of a second, even if the daemon hangs.
    """
    emergency_lock = EmergencyLock(context.home)
    if emergency_lock.set(reason or "scf lock", now=SystemClock().now()):
        talk(f"Locked: {emergency_lock.path}")
    else:
        talk(f"It was locked already: {emergency_lock.path}")


@click.command()
@click.option("--reason", required=True, help="Why it is safe again; entered in the audit log.")
@common_options
def unlock(context: Context, reason: str) -> None:
    """Release the emergency lock, with a reason."""
    from scf.audit.log import AuditLog
    from scf.signing.keys import load_signer

    emergency_lock = EmergencyLock(context.home, token=context.config.token)
    if not reason.strip():
        raise UsageError("a reason is needed", remedy='Say why: `scf unlock --reason "..."`.')
    if (pulled := emergency_lock.token_fault()) is not None:
        raise OperatorError(f"not unlocked: {pulled}", remedy="Plug it in, then unlock.")
    if not emergency_lock.is_set:
        raise NothingToDo(f"{emergency_lock.path} is not set")
    # First the entry, then the release: a release that nobody can trace does not happen.
    audit = AuditLog.open(
        context.drive.folder("zk_proofs", "audit"),
        context.home,
        load_signer(context.key_folder, "foundry"),
    )
    details = {"reason": reason.strip(), "lock": emergency_lock.reason()}
    index = audit.append("emergency.unlocked", str(context.home), details)
    emergency_lock.release()
    talk(f"Unlocked; entry {index} of the audit log says why.")


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every 2 seconds until Ctrl-C.")
@json_option
@common_options
def status(context: Context, watch: bool, as_json: bool) -> None:
    """Where the foundry stands: state, gear, lock, generation, release, and the chain between."""
    from scf.daemon.standing import standing, standing_text

    while True:
        found = standing(context.config)
        if as_json:
            emit(found)
        else:
            click.echo(standing_text(found))
        if not watch:
            return
        time.sleep(WATCH_EVERY_S)
        if not as_json:
            click.clear()


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@common_options
def runs(context: Context, limit: int, as_json: bool) -> None:
    """List runs, oldest first: state, tries and reason; and why the next one is held back."""
    from scf.daemon.heartbeat import read_state

    with _store(context) as store:
        found = store.runs(limit=limit) if store is not None else []
    held = read_state(context.config.home).get("held")
    if as_json:
        emit({"schema_version": 1, "runs": [run.to_json() for run in found], "held": held})
        return
    if held is not None:
        talk(f"The next run is held back: {held['reason']}.")
    if not found:
        talk("No runs yet. `scf ingest PATH`, then `scf daemon run`.")
    for run in found:
        tries = f" ({run.tries} failed tries)" if run.tries else ""
        click.echo(f"{run.run_id}  {run.state:11} {run.updated_at[:19]}  {run.reason}{tries}")


@click.group("run")
def run_group() -> None:
    """Show one run."""


@run_group.command("show")
@click.argument("run_id", metavar="RUN")
@click.option("--fossils", is_flag=True, help="List the CIDs of its plan with their split.")
@json_option
@common_options
def run_show(context: Context, run_id: str, fossils: bool, as_json: bool) -> None:
    """One run: every transition with its reason, every attempt with its receipt."""
    with _store(context) as store:
        if store is None:
            raise UsageError(f"no run {run_id!r}", remedy="`scf runs` lists them.")
        run = store.run(run_id)
        transitions = store.transitions(run_id)
        attempts = store.attempts(run_id)
        plan = store.plan(run_id)
    if fossils:
        if not plan:
            raise NothingToDo(
                f"{run_id} has no plan: {run.state}: {run.reason}",
                remedy="A plan is made when a run leaves DISCOVERED.",
            )
        _show_fossils(context, plan, as_json=as_json)
        return
    if as_json:
        emit(
            {
                "schema_version": 1,
                **run.to_json(),
                "plan": plan,
                "transitions": [transition.to_json() for transition in transitions],
                "attempts": [attempt.to_json() for attempt in attempts],
            }
        )
        return
    click.echo(f"{run.run_id}  {run.state}  {run.reason}")
    for name in ("plan_id", "merkle_root", "fossils", "generation", "release", "proof"):
        if run.facts.get(name) is not None:
            click.echo(f"  {name:12} {run.facts[name]}")
    for transition in transitions:
        index = "-" if transition.audit_index is None else str(transition.audit_index)
        line = f"{transition.at[:19]}  {transition.to_state:11} {transition.reason}"
        click.echo(f"  {line}  [audit {index}]")
    for attempt in attempts:
        end = attempt.exit_reason or "open"
        click.echo(f"  attempt {attempt.attempt_id}  door {attempt.door}  {end}")


run = run_group


def _show_fossils(context: Context, plan: dict[str, Any], *, as_json: bool) -> None:
    from scf.fertilization.batch_plan import BatchPlan, plan_fossils

    vault_root = context.drive.root / "fossil_vault"
    rows = plan_fossils(BatchPlan.from_json(plan), vault_root)
    if as_json:
        emit(
            {
                "schema_version": 1,
                "fossils": [
                    {"cid": row.cid, "family": row.family, "split": row.split} for row in rows
                ],
            }
        )
        return
    for row in rows:
        click.echo(f"{row.cid}  {row.split:8}  {row.family}")


def _store(context: Context) -> Any:
    """The store in a `with` block; None inside it where there is no database yet."""
    from scf.daemon.standing import reading_store

    return reading_store(context.home)


def _ask(context: Context, name: str, arguments: dict[str, str]) -> None:
    """Write a command, and wait for the answer where a daemon is there to give one."""
    from scf.daemon.heartbeat import is_running

    if not context.home.is_dir():
        raise OperatorError(f"{context.home}: no home here", remedy="Run `scf init` first.")
    control = ControlFile(context.home)
    command_id = control.put(name, arguments, now=SystemClock().now())
    if not is_running(context.home):
        talk("Written. No daemon is running; the next one will read it.")
        return
    deadline = time.monotonic() + ACK_WAIT_S
    while time.monotonic() < deadline:
        ack = control.acks().get(command_id)
        if ack is not None:
            if ack.status != "done":
                raise OperatorError(f"{name}: {ack.message}")
            talk(ack.message)
            return
        time.sleep(0.05)
    talk(f"Written as {command_id}. The daemon has not answered within {ACK_WAIT_S:g} s.")


__all__ = [
    "budget", "cancel", "daemon", "gear", "lock", "pause", "resume", "run", "run_now", "runs",
    "status", "stop", "unlock",
]  # fmt: skip
