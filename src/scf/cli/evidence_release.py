"""`scf release`: pack the week, look at releases, check them."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import scf
from scf.cli.common import Context, common_options, emit, json_option, talk
from scf.cli.evidence import VERIFICATION_FAILED, foundry_key
from scf.core.errors import UsageError
from scf.core.units import format_bytes, parse_size_bytes
from scf.dispatch.outlets.registry import KINDS
from scf.release.push import require_published

if TYPE_CHECKING:
    from scf.release.push import Pushed
    from scf.release.weekly import ReleaseResult


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
@click.option("--publish", is_flag=True, help="Then publish it where [release] push says.")
@click.option(
    "--push",
    "push_to",
    multiple=True,
    metavar="ADDRESS",
    help=f"Then publish it here: {', '.join(KINDS)}.",
)
@json_option
@common_options
def release_make(
    context: Context,
    week: str | None,
    dry_run: bool,
    size_max: str | None,
    publish: bool,
    push_to: tuple[str, ...],
    as_json: bool,
) -> None:
    """Pack the champion of the zoo into release_history/week-YYYY-MM-DD/.

    The release holds the model, its card, notes on the week, the measured numbers with plots, the
    signed statement about the training run, the list of fossils with signed manifests, and a
    verifier that needs nothing but Python. It is written once and chained to the release before.
    In a week without a promotion it names the champion's earlier release instead of its weights.
    With --publish or --push it is published, also if it was made before.

    \b
    Exit codes: 0 released; 3 the week is released already, or nothing was ever promoted;
    4 emergency lock; 5 something does not verify; 6 disk full or over the cap; 7 drive missing;
    8 released, but not published everywhere.
    """  # noqa: D301 - click asks for this character
    from scf.control.emergency_lock import EmergencyLock
    from scf.release.foundry import open_foundry
    from scf.release.weekly import AlreadyReleased, make_release

    monday = _monday(week)
    addresses = _addresses(context, push_to) if publish or push_to else ()
    if not dry_run:
        EmergencyLock(context.home).require_clear("the weekly release")
    cap = parse_size_bytes(size_max) if size_max else context.config.release.size_max_bytes
    made = None
    with open_foundry(
        context.drive,
        context.home,
        code_version=scf.__version__,
        settings=context.config.public(),
        size_max_bytes=cap,
    ) as foundry:
        try:
            made = make_release(foundry, week=monday, dry_run=dry_run)
            path = made.path
        except AlreadyReleased as already:
            if not addresses or dry_run:
                raise
            path = already.path
    results = _push(context, path, addresses, as_json=as_json) if path and addresses else []
    if as_json:
        about = made.to_json() if made else {"release": path and path.name, "path": str(path)}
        pushed = [result.to_json() for result in results]
        emit({"schema_version": 1, "dry_run": dry_run, **about, "pushed": pushed})
    elif made is not None:
        _show_made(made)
    if path is not None and addresses:
        require_published(results, path.name)


def _show_made(made: "ReleaseResult") -> None:
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


@release.command("push")
@click.argument("name", metavar="WEEK", default="latest")
@click.option(
    "--to",
    "push_to",
    multiple=True,
    metavar="ADDRESS",
    help=f"Where: {', '.join(KINDS)} (default: [release] push).",
)
@json_option
@common_options
def release_push(context: Context, name: str, push_to: tuple[str, ...], as_json: bool) -> None:
    """Publish a release: `week-2026-11-16`, `2026-11-16` or `latest`. Whole, once, resumable.

    It is verified first. An upload that was interrupted shows nobody anything; run the command
    again and it goes on. Credentials come from the environment or the tools' own files, never from
    the command line: docs/operations/publish.md.

    \b
    Exit codes: 0 published; 3 it was published everywhere already; 4 emergency lock;
    5 it does not verify; 8 an outlet did not take it.
    """  # noqa: D301 - click asks for this character
    from scf.release.compare import find_release

    addresses = _addresses(context, push_to)
    path = find_release(context.drive.folder("release_history"), name).path
    results = _push(context, path, addresses, as_json=as_json)
    if as_json:
        pushed = [result.to_json() for result in results]
        emit({"schema_version": 1, "release": path.name, "pushed": pushed})
    require_published(results, path.name)


def _addresses(context: Context, push_to: tuple[str, ...]) -> tuple[str, ...]:
    """Where to publish. Raises UsageError where nobody said."""
    addresses = push_to or context.config.release.push
    if not addresses:
        raise UsageError(
            "nobody said where to publish",
            remedy="Name an address (`scf release push --help`), or write [release] push = "
            '["folder:/srv/releases"] in scf.toml.',
        )
    return addresses


def _push(
    context: Context, path: Path, addresses: tuple[str, ...], *, as_json: bool
) -> "list[Pushed]":
    """Publish, telling people how it goes."""
    from scf.audit.log import AuditLog
    from scf.control.emergency_lock import EmergencyLock
    from scf.dispatch.outlets.registry import open_outlet
    from scf.release.push import push
    from scf.signing.keys import load_signer

    EmergencyLock(context.home).require_clear("publishing")
    outlets = [open_outlet(address, talk=talk) for address in addresses]
    signer = load_signer(context.key_folder, "foundry")
    audit = AuditLog.open(context.drive.folder("zk_proofs", "audit"), context.home, signer)
    results = push(path, outlets, key=signer.public_key, audit=audit)
    for result in results:
        sent = f", {format_bytes(result.sent_bytes)} sent" if result.sent_bytes else ""
        kept = f", {format_bytes(result.kept_bytes)} were there" if result.kept_bytes else ""
        line = f"{result.address}: {result.result}{sent}{kept}: {result.detail}"
        talk(line) if as_json else click.echo(line)
    return results


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


def _verify_deep(context: Context, folder: Path, key_file: Path | None, *, as_json: bool) -> int:
    """Walk from the release to the fossils; hops are told as they are done."""
    from scf.release.deep import ABSENT, DIFFERS, walk
    from scf.signing.keys import public_keys

    trusted = {**public_keys(context.key_folder), "foundry": foundry_key(context, key_file)}
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
