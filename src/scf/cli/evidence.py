"""`scf zoo|proof|audit|release|keys`: look at the evidence, check it, release it."""

from datetime import date
from pathlib import Path
from typing import Any

import click

import scf
from scf.cli.common import Context, common_options, emit, json_option, talk
from scf.core.clock import SystemClock
from scf.core.errors import UsageError
from scf.core.units import format_bytes, parse_size_bytes
from scf.signing.verify import PublicKey

VERIFICATION_FAILED = 5

_KEY_OPTION = click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The foundry's public key in PEM (default: the one in this home).",
)


# -- zoo -------------------------------------------------------------------------------------------


@click.group()
def zoo() -> None:
    """Generations: the models that passed the gate, and which of them stands."""


@zoo.command("list")
@json_option
@common_options
def zoo_list(context: Context, as_json: bool) -> None:
    """List the generations; a star marks the champion."""
    registry = _zoo(context)
    generations = registry.generations()
    history = registry.history()
    champion = history[-1].generation if history else None
    if as_json:
        models = [
            {**_generation_json(generation), "champion": generation.name == champion}
            for generation in generations
        ]
        emit({"schema_version": 1, "champion": champion, "models": models})
        return
    if not generations:
        talk("The zoo is empty: no generation was promoted yet.")
    for generation in generations:
        star = "*" if generation.name == champion else " "
        click.echo(
            f"{star} {generation.name}  {generation.promoted_at[:10]}  {generation.run_id}  "
            f"{generation.fossils:>10,} fossils  {generation.num_parameters:>12,} parameters"
        )


@zoo.command("show")
@click.argument("name")
@json_option
@common_options
def zoo_show(context: Context, name: str, as_json: bool) -> None:
    """Show one generation, each of its files verified.

    The model card is MODEL_CARD.md in its folder.
    """
    registry = _zoo(context)
    generation = registry.generation(name)
    generation.verify()
    moves = [move.to_json() for move in registry.history() if move.generation == name]
    if as_json:
        emit({"schema_version": 1, **_generation_json(generation), "history": moves})
        return
    for what, value in _generation_json(generation).items():
        if not isinstance(value, dict):
            click.echo(f"{what:18} {value}")
    click.echo(f"{'files':18} {len(generation.files)}, each as it was promoted")
    for move in moves:
        click.echo(f"{move['action']:18} {move['at']}: {move['reason']}")


@zoo.command("rollback")
@click.argument("name")
@click.option("--reason", required=True, help="Why; kept in the history and the audit log.")
@common_options
def zoo_rollback(context: Context, name: str, reason: str) -> None:
    """Let an earlier generation stand again. Nothing is deleted; the next release tells it."""
    from scf.audit.log import AuditLog
    from scf.signing.keys import load_signer

    # The key is asked for first: a rollback that cannot be logged is not done.
    signer = load_signer(context.key_folder, "foundry")
    log = AuditLog.open(context.drive.folder("zk_proofs", "audit"), context.home, signer)
    registry = _zoo(context)
    before = registry.history()
    generation = registry.rollback(name, reason)
    log.append(
        "zoo.rolled_back",
        generation.name,
        {"previous": before[-1].generation if before else None, "reason": reason.strip()},
        key=f"zoo.rolled_back/{len(before)}/{generation.name}",
    )
    talk(f"{generation.name} stands now.")


# -- proof and audit -------------------------------------------------------------------------------


@click.group()
def proof() -> None:
    """Signed statements about training runs."""


@proof.command("verify")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@_KEY_OPTION
@json_option
@common_options
def proof_verify(context: Context, path: Path, key_file: Path | None, as_json: bool) -> None:
    """Verify a proof record, wherever it lies.

    What holds afterwards: the key signed the statement, and the key's audit log contains it.
    """
    from scf.proofs.verify_proof import verify_record

    verified = verify_record(path, [_key(context, key_file)])
    if as_json:
        emit({"schema_version": 1, **verified.to_json()})
        return
    statement = verified.statement
    click.echo(f"{path.name}: VERIFIED")
    click.echo(f"  run         {statement.run_id}")
    click.echo(f"  checkpoint  {statement.checkpoint_digest}")
    click.echo(
        f"  trained on  {statement.plan.fossils} fossils, Merkle root {statement.plan.merkle_root}"
    )
    click.echo(
        f"  logged      entry {verified.index} of {verified.head.origin}, {verified.logged_at}"
    )
    click.echo(f"  signed by   {verified.key.key_id}")


@click.group()
def audit() -> None:
    """The append-only log of what happened."""


@audit.command("check")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A copy of zk_proofs/audit (default: the one on the drive, against the home's head).",
)
@_KEY_OPTION
@json_option
@common_options
def audit_check(context: Context, folder: Path | None, key_file: Path | None, as_json: bool) -> int:
    """Recompute the whole log: every entry, tile and root, and the signed head."""
    from scf.audit.check import check_log
    from scf.audit.log import AuditLog

    key = _key(context, key_file)
    if folder is None:
        # Opening compares the drive with the head in the home, and finishes what a crash left.
        place = context.drive.folder("zk_proofs", "audit")
        AuditLog.open(place, context.home, public_key=key)
        folder = place.path
    report = check_log(folder, key)
    if as_json:
        emit({"schema_version": 1, **report.to_json()})
    else:
        click.echo(f"{folder}: {'sound' if report.ok else 'DAMAGED'}, {report.size} entries")
        for problem in report.problems:
            click.echo(f"  {problem}")
        for event, count in report.events.items():
            click.echo(f"  {count:8,}  {event}")
        click.echo(f"  root      {report.root}")
    return 0 if report.ok else VERIFICATION_FAILED


@audit.command("prove")
@click.argument("index", type=int)
@common_options
def audit_prove(context: Context, index: int) -> None:
    """Print an entry with the proof that it stands in the log, as JSON."""
    from scf.audit.log import AuditLog

    log = AuditLog.open(context.drive.folder("zk_proofs", "audit"), context.home)
    emit({"schema_version": 1, **log.inclusion_proof(index).to_json()})


# -- release ---------------------------------------------------------------------------------------


@click.group()
def release() -> None:
    """Weekly releases: what a stranger can check."""


@release.command("make")
@click.option(
    "--week",
    metavar="YYYY-MM-DD",
    help="The Monday that names the release (default: of the present week, UTC).",
)
@click.option("--dry-run", is_flag=True, help="Say what would be released; write nothing.")
@click.option(
    "--size-max",
    metavar="SIZE",
    help="What the release may take, such as 8GB (default: a 52nd "
    "of the budget of release_history).",
)
@json_option
@common_options
def release_make(
    context: Context, week: str | None, dry_run: bool, size_max: str | None, as_json: bool
) -> None:
    """Pack the champion of the zoo into release_history/week-YYYY-MM-DD/.

    The release holds the model, its card, notes on the week, the measured numbers with plots, the
    signed statement about the training run, the list of fossils with signed manifests, and a
    verifier that needs nothing but Python. It is written once and chained to the release before.
    In a week without a promotion it names the champion's earlier release instead of its weights.

    \b
    Exit codes: 0 released; 3 the week is released already, or nothing was ever promoted;
    4 emergency lock; 5 something does not verify; 6 disk full or over the cap; 7 drive missing.
    """  # noqa: D301 - click asks for this character
    from scf.control.emergency_lock import EmergencyLock
    from scf.release.weekly import make_release, open_foundry

    monday = _monday(week)
    lock = EmergencyLock(context.home)
    if not dry_run:
        lock.require_clear("the weekly release")
    with open_foundry(
        context.drive,
        context.home,
        code_version=scf.__version__,
        settings=context.config.without_paths(),
        size_max_bytes=parse_size_bytes(size_max) if size_max else None,
    ) as foundry:
        made = make_release(foundry, week=monday, dry_run=dry_run)
    if as_json:
        emit({"schema_version": 1, "dry_run": dry_run, **made.to_json()})
        return
    kind = made.kind.replace("_", " ")
    click.echo(f"{made.name}: {made.generation} ({kind}), {made.fossils:,} fossils")
    click.echo(f"  follows   {made.previous or 'nothing: this is the first'}")
    click.echo(f"  weights   {'in ' + made.carried_by if made.carried_by else 'in it'}")
    click.echo(f"  files     {made.num_files}, {format_bytes(made.size_bytes)}")
    if made.path is None:
        click.echo("  dry run   nothing was written")
    else:
        click.echo(f"  lies at   {made.path}")
        click.echo(f"  check it  scf release verify {made.path}")


@release.command("list")
@json_option
@common_options
def release_list(context: Context, as_json: bool) -> None:
    """List the releases on the drive."""
    from scf.release.weekly import list_releases

    listed = list_releases(context.drive.folder("release_history"))
    if as_json:
        emit({"schema_version": 1, "releases": listed})
        return
    if not listed:
        talk("Nothing was released yet.")
    for about in listed:
        kind = str(about["kind"]).replace("_", " ")
        click.echo(
            f"{about['release']}  {about['generation']}  {kind:12}  {about['fossils']:,} fossils"
        )


@release.command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The foundry's public key in PEM (default: the one in the release, said as unpinned).",
)
@click.option(
    "--deep",
    is_flag=True,
    help="Walk on over the drive: model, run, audit log, plan, shards, every fossil's CID.",
)
@json_option
@common_options
def release_verify(
    context: Context, folder: Path, key_file: Path | None, deep: bool, as_json: bool
) -> int:
    """Check a release: every byte, signature and root. Needs that folder and nothing else.

    It is the same program as verify_release.py inside the release. Exit code 5 if anything does not
    fit; the file is named. With --deep it goes on from the release to the fossils and recomputes
    every digest that the drive holds; what is not there is said to be absent.
    """
    from scf.release.verify_release import verify_release

    if deep:
        return _verify_deep(context, folder, key_file, as_json=as_json)
    # No home, no drive: a stranger's check.
    result = verify_release(folder, key_file.read_bytes() if key_file else None)
    if as_json:
        emit({"schema_version": 1, **result.to_json()})
    else:
        click.echo(result.text(), nl=False)
    return 0 if result.ok else VERIFICATION_FAILED


@release.command("show")
@click.argument("name", metavar="WEEK")
@json_option
@common_options
def release_show(context: Context, name: str, as_json: bool) -> None:
    """Show a release: `week-2026-11-16`, `2026-11-16` or `latest`. Its notes are NOTES.md there."""
    from scf.release.compare import find_release, show

    shown = show(find_release(context.drive.folder("release_history"), name))
    if as_json:
        emit({"schema_version": 1, **shown})
        return
    generation, plan = shown["generation"], shown["plan"]
    carried, previous = shown["carried_by"], shown["previous"]
    rows = [
        ("kind", str(shown["kind"]).replace("_", " ")),
        ("made", shown["made_at"]),
        ("model", f"{generation['name']}, by {generation['run']}"),
        ("weights", f"in {carried['name']}" if carried else "here"),
        ("trained on", f"{plan['fossils']:,} fossils, Merkle root {plan['merkle_root']}"),
        *(("loss", f"{value:.4g}  {what}") for what, value in shown["losses"].items()),
        *(("gate", reason) for reason in shown["gate"]["reasons"] or []),
        ("follows", previous["name"] if previous else "nothing: this is the first"),
        ("files", f"{shown['num_files']}, {format_bytes(shown['size_bytes'])}"),
        ("digest", shown["release_sha256"]),
        ("lies at", shown["path"]),
    ]
    click.echo(shown["name"])
    for what, value in rows:
        click.echo(f"  {what:11} {value}")


@release.command("diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@json_option
@common_options
def release_diff(context: Context, before: str, after: str, as_json: bool) -> None:
    """Show what changed from A to B: model, numbers, fossils, software, settings."""
    from scf.release.compare import diff, find_release

    releases = context.drive.folder("release_history")
    found = diff(find_release(releases, before), find_release(releases, after))
    if as_json:
        emit({"schema_version": 1, **found})
        return
    click.echo(f"{found['before']} -> {found['after']}")
    for section, changes in found["changes"].items():
        click.echo(f"  {section}" + ("" if changes else ": the same"))
        for change in changes:
            click.echo(
                f"    {change['what']:32} {_shown(change['before'])} -> {_shown(change['after'])}"
            )
    fossils = found["fossils"]
    if fossils["in"] is None:
        click.echo("  fossils: a list of them is not on this drive")
    else:
        click.echo(
            f"  fossils: {fossils['in']:,} in, {fossils['out']:,} out, {fossils['kept']:,} kept"
        )


# -- keys ------------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """The public keys of this foundry."""


@keys.command("show")
@json_option
@common_options
def keys_show(context: Context, as_json: bool) -> None:
    """Show the public keys: give `foundry.pub` to whoever is to check your releases."""
    from scf.signing.keys import public_keys

    found = public_keys(context.key_folder)
    rows = {
        role: {
            "key_id": key.key_id,
            "path": str(context.key_folder / f"{role}.pub"),
            "pem": key.to_pem().decode(),
        }
        for role, key in found.items()
    }
    if as_json:
        emit({"schema_version": 1, "keys": rows})
        return
    for role, about in rows.items():
        click.echo(f"{role:8} {about['key_id']}\n{'':8} {about['path']}")


# -- shared ----------------------------------------------------------------------------------------


def _zoo(context: Context) -> Any:
    from scf.zoo.registry import Zoo

    return Zoo.open(context.drive.folder("model_zoo"), clock=SystemClock())


def _generation_json(generation: Any) -> dict[str, Any]:
    value = {key: item for key, item in generation.to_json().items() if key != "schema"}
    return {**value, "path": str(generation.path)}


def _key(context: Context, key_file: Path | None) -> PublicKey:
    from scf.signing.keys import public_keys

    if key_file is not None:
        return PublicKey.from_pem(key_file.read_bytes())
    return public_keys(context.key_folder)["foundry"]


def _verify_deep(context: Context, folder: Path, key_file: Path | None, *, as_json: bool) -> int:
    """Walk from the release to the fossils; hops are told as they are done."""
    from scf.release.deep import ABSENT, DIFFERS, walk
    from scf.signing.keys import public_keys

    trusted = {**public_keys(context.key_folder), "foundry": _key(context, key_file)}
    hops = []
    for hop in walk(folder.resolve(), context.drive.root, trusted):
        hops.append(hop)
        if not as_json:
            click.echo(f"{hop.result:8} {hop.hop:8} {hop.subject}: {hop.detail}")
    ok = bool(hops) and not any(hop.result == DIFFERS for hop in hops)
    digests, absent = sum(hop.digests for hop in hops), sum(hop.result == ABSENT for hop in hops)
    if as_json:
        emit(
            {"schema_version": 1, "ok": ok, "digests": digests, "hops": [h.to_json() for h in hops]}
        )
    else:
        verdict = "VERIFIED, down to the fossils" if ok else "NOT VERIFIED"
        click.echo(
            f"{folder.name}: {verdict}; {digests:,} digests recomputed, {absent} hops absent"
        )
    return 0 if ok else VERIFICATION_FAILED


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _monday(week: str | None) -> date | None:
    if week is None:
        return None
    try:
        return date.fromisoformat(week)
    except ValueError as error:
        raise UsageError(
            f"--week {week!r} is not a date", remedy="Write a Monday as YYYY-MM-DD."
        ) from error
