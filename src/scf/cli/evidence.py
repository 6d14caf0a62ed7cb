"""`scf proof|audit|keys`: look at the evidence and check it."""

from pathlib import Path

import click

from scf.cli.common import Context, common_options, emit, json_option
from scf.core.errors import OperatorError, UsageError
from scf.signing.verify import PublicKey

VERIFICATION_FAILED = 5

_KEY_OPTION = click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The foundry's public key in PEM (default: the one in this home).",
)


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

    verified = verify_record(path, [foundry_key(context, key_file)])
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

    key = foundry_key(context, key_file)
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


# -- keys ------------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """The keys of this foundry: show the public halves, replace one."""


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
            "replaced": [old.key_id for old in key.predecessors],
        }
        for role, key in found.items()
    }
    if as_json:
        emit({"schema_version": 1, "keys": rows})
        return
    for role, about in rows.items():
        click.echo(f"{role:8} {about['key_id']}\n{'':8} {about['path']}")
        for old in about["replaced"]:
            click.echo(f"{'':8} replaced {old}")


@keys.command("rotate")
@click.argument("role", type=click.Choice(["foundry", "vault"]))
@click.option("--reason", required=True, help="Why; it stands in the rotation and the audit log.")
@common_options
def keys_rotate(context: Context, role: str, reason: str) -> None:
    """Replace a key by a new one, in a statement that the old one signs.

    What the old key signed stays good. Releases carry the statement, so that who trusts the old key
    can follow it to the new one; tell people the new `foundry.pub` all the same, and commit it as
    .github/foundry.pub. The old private key is gone afterwards. After a theft this is not enough:
    whoever has the old key could sign such a statement, too.
    """
    from scf.audit.log import AuditLog
    from scf.core.clock import SystemClock, utc_text
    from scf.daemon.heartbeat import is_running
    from scf.signing.keys import load_signer, rotate_key

    context.require_clear("key rotation")
    if is_running(context.home):
        raise OperatorError(
            "the daemon runs, and holds the key that is to be replaced",
            remedy="Stop it first (`scf stop`), then start it again.",
        )
    if not reason.strip():
        raise UsageError("a rotation needs a reason")
    audit = context.drive.folder("zk_proofs", "audit")
    old = load_signer(context.key_folder, role).public_key
    new = rotate_key(
        context.key_folder, role, reason=reason.strip(), at=utc_text(SystemClock().now())
    )
    log = AuditLog.open(audit, context.home, load_signer(context.key_folder, "foundry"))
    about = {"role": role, "old": old.key_id, "new": new.key_id, "reason": reason.strip()}
    log.append("key.rotated", role, about, key=f"key.rotated/{new.key_id}")
    click.echo(f"{role:8} {new.key_id}\n{'':8} replaces {old.key_id}")


# -- shared ----------------------------------------------------------------------------------------


def foundry_key(context: Context, key_file: Path | None) -> PublicKey:
    """The foundry's public key: the one that was given, else the one in this home."""
    from scf.signing.keys import public_keys

    if key_file is not None:
        return PublicKey.from_pem(key_file.read_bytes())
    return public_keys(context.key_folder)["foundry"]
