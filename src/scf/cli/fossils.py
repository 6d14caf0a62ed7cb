"""`scf ingest`, `scf fossil`: take records in, and look at the ones that are there."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scf.cli.common import Context, common_options, emit, json_option, talk
from scf.core.errors import InputError, NothingToDo

if TYPE_CHECKING:
    from scf.fertilization.batch_plan import BatchPlan
    from scf.fertilization.primordial_soup import IngestProgress, IngestReport
    from scf.vault.fossil import Fossil
    from scf.vault.journal import Vault

_REDRAW_S = 0.2


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--reader", help="Name of the reader; by default it is found by content.")
@click.option("--dry-run", is_flag=True, help="Read and judge everything, write nothing.")
@json_option
@common_options
def ingest(
    context: Context, paths: tuple[Path, ...], reader: str | None, dry_run: bool, as_json: bool
) -> None:
    """Take files and folders in as fossils.

    Readers: tmy2, tmy3, ndjson (fossils as they are; .zst and .gz too), npz, pkl, csv. Records that
    cannot be used go to quarantine with file, line and reason; the rest goes on. What the vault has
    already is counted as a duplicate. With --json, one line a PATH.
    """
    from scf.fertilization.primordial_soup import PrimordialSoupIngestor

    context.require_clear("ingest")
    settings = context.config.vault
    show = _progress_line()

    def watch(progress: "IngestProgress") -> None:
        # A long ingest stops at the lock too; what was committed before stays.
        context.require_clear("the rest of the ingest")
        if show is not None:
            show(progress)

    num_read = 0
    with _open_vault(context, to_write=not dry_run) as vault:
        ingestor = PrimordialSoupIngestor(
            vault,
            progress=watch,
            line_max_bytes=settings.line_max_bytes,
            shard_bytes=settings.shard_bytes,
        )
        for path in paths:
            report = ingestor.ingest(path, reader=reader, dry_run=dry_run)
            num_read += report.read
            if as_json:
                click.echo(json.dumps(report.to_json(), sort_keys=True))
            else:
                _say_report(report, is_rehearsal=dry_run)
    if num_read == 0:
        raise NothingToDo("no records there that a reader knows")


@click.group()
def fossil() -> None:
    """Validate, show or trace fossils."""


@fossil.command("validate")
@click.argument("targets", nargs=-1, required=True)
@json_option
@common_options
def fossil_validate(context: Context, targets: tuple[str, ...], as_json: bool) -> int:
    """Judge fossils anew: each TARGET is a CID in the vault, an NDJSON file or a folder.

    Form, CID, provenance, the fossil's own verdict, and the physics of the fields that we know.
    Exits 1 if any fossil is refused.
    """
    from scf.fertilization.fossil_batcher import read_records
    from scf.fertilization.fossil_validator import FossilValidator
    from scf.fertilization.shard_scan import Refusal

    validator = FossilValidator()
    refused: list[dict[str, Any]] = []
    num_passed = 0

    def note(refusal: Refusal) -> None:
        where = f"{refusal.path}, line {refusal.line}"
        refused.append({"where": where, "kind": refusal.kind, "reason": refusal.reason})

    for target in targets:
        is_path = Path(target).exists()
        fossils = (
            read_records(Path(target), on_refused=note)
            if is_path
            else iter([_fossil_of(context, target)])
        )
        for one in fossils:
            verdict = validator.validate(one)
            if verdict.ok:
                num_passed += 1
            else:
                where = f"{target}, record {one.position + 1}" if is_path else one.cid
                refused.append({"where": where, "kind": verdict.kind, "reason": verdict.reason})
    if as_json:
        emit({"passed": num_passed, "refused": refused})
    else:
        for entry in refused:
            click.echo(f"refused  {entry['where']}: {entry['reason']}")
        click.echo(f"{num_passed:,} passed, {len(refused):,} refused")
    return 1 if refused else 0


@fossil.command("show")
@click.argument("cid")
@json_option
@common_options
def fossil_show(context: Context, cid: str, as_json: bool) -> None:
    """Show one fossil of the vault; with --json, the fossil itself."""
    one = _fossil_of(context, cid)
    if as_json:
        emit(one.obj)
        return
    click.echo(f"cid         {one.cid}")
    click.echo(f"source      {one.source}")
    click.echo(f"observed    {one.observed_at or 'no time stated'}")
    click.echo(f"origin      {one.provenance.origin} (record {_ordinal(one)})")
    click.echo(f"family      {one.family}")
    click.echo(f"verdict     {one.verdict} by {one.verifier['name']}")
    for name, value in one.params.items():
        click.echo(f"param       {name} = {value}")
    arrays = one.arrays()
    for spec in one.specs:
        array = arrays[spec.name]
        numbers = f"{array.min():.6g} to {array.max():.6g}, mean {array.mean():.6g}"
        shape = "x".join(map(str, spec.shape)) or "scalar"
        click.echo(f"field       {spec.name:20} {spec.dtype} {shape:8} {numbers} {spec.unit}")


@fossil.command("trace")
@click.argument("cid")
@json_option
@common_options
def fossil_trace(context: Context, cid: str, as_json: bool) -> None:
    """Follow one fossil to its origin and to the generations that used it.

    Its CID, its shard's digest, the manifest's signature and the Merkle path are verified.
    """
    from scf.fertilization.trace import trace_fossil
    from scf.signing.keys import public_keys

    key = public_keys(context.key_folder)["vault"]
    with _open_vault(context, to_write=False) as vault:
        trace = trace_fossil(vault, cid, key)
    used_by = _used_by(context, cid, trace.location.shard, trace.location.family)
    if as_json:
        emit({**trace.to_json(), "used_by": used_by})
        return
    provenance = trace.fossil.provenance
    click.echo(f"fossil      {cid}: {trace.fossil.verdict}, CID recomputed")
    click.echo(f"origin      {provenance.origin}, record {_ordinal(trace.fossil)}")
    click.echo(f"            sha256 {provenance.origin_sha256}, reader {provenance.reader}")
    for parent in provenance.parents:
        click.echo(f"parent      {parent}")
    click.echo(f"shard       {trace.entry.path}, line {trace.location.line + 1}")
    click.echo(f"            committed {trace.entry.committed_at} out of {trace.entry.origin}")
    click.echo(f"manifest    signed by vault key {trace.signed_by[:16]}; Merkle path verified")
    for use in used_by:
        click.echo(f"used by     {use['generation']} ({use['split']})")
    if not used_by:
        click.echo("used by     no generation yet")


def _open_vault(context: Context, *, to_write: bool) -> "Vault":
    from scf.signing.keys import load_signer
    from scf.vault.journal import Vault

    drive = context.drive
    signer = load_signer(context.key_folder, "vault") if to_write else None
    return Vault.open(drive, context.home, signer)


def _fossil_of(context: Context, cid: str) -> "Fossil":
    from scf.core.identity import cid_digest
    from scf.fertilization.trace import find_fossil

    try:
        cid_digest(cid)
    except InputError as error:
        raise InputError(f"{cid[:80]!r} is neither a file nor a CID") from error
    with _open_vault(context, to_write=False) as vault:
        return find_fossil(vault, cid)


def _used_by(context: Context, cid: str, shard: str, family: str) -> list[dict[str, str]]:
    """The generations whose plan holds this fossil, and on which side of the split."""
    from scf.fertilization.batch_plan import read_plan
    from scf.zoo.registry import Zoo

    def holds(plan: "BatchPlan") -> bool:
        return cid not in plan.excluded and any(s.path == shard for s in plan.shards)

    generations = Zoo.open(context.drive.folder("model_zoo")).generations()
    plans = (
        (generation.name, read_plan(generation.path / "plan.json")) for generation in generations
    )
    return [
        {"generation": name, "split": plan.split_of(family)} for name, plan in plans if holds(plan)
    ]


def _ordinal(one: "Fossil") -> str:
    index = one.provenance.index
    return "unnumbered" if index is None else f"{index:,}"


def _say_report(report: "IngestReport", *, is_rehearsal: bool) -> None:
    reader = f" ({report.reader})" if report.reader else ""
    click.echo(
        f"{report.origin}{reader}: {report.read:,} read = {report.accepted:,} accepted"
        f" + {report.duplicates:,} duplicates + {report.quarantined:,} quarantined"
    )
    for kind, count in report.reasons.most_common():
        click.echo(f"  {count:,} refused: {kind}")
    for path in report.quarantine:
        click.echo(f"  see fossil_vault/{path}")
    if report.skipped:
        shown = ", ".join(report.skipped[:5]) + (", ..." if len(report.skipped) > 5 else "")
        click.echo(f"  {len(report.skipped)} files left alone, no reader knows them: {shown}")
    click.echo(f"  fossils root {report.fossils_root}")
    if is_rehearsal:
        talk("Rehearsal: nothing was written.")


def _progress_line() -> "Any":
    """A line on the terminal that rewrites itself; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None
    started = drawn = time.monotonic()

    def draw(progress: "IngestProgress") -> None:
        nonlocal drawn
        now = time.monotonic()
        is_last = progress.files_done == progress.files_total
        if now - drawn < _REDRAW_S and not is_last:
            return
        drawn = now
        rate = progress.read / max(now - started, 1e-9)
        text = (
            f"\r\x1b[K  {progress.read:,} records, {rate:,.0f}/s, file {progress.files_done + 1}"
            f" of {progress.files_total}: {progress.origin[:40]}"
        )
        click.echo("\r\x1b[K" if is_last else text, nl=False, err=True)

    return draw
