"""`scf ingest`, `scf fossil`: take records in, look at them, take them back, hand them on."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scf.cli.common import Context, common_options, emit, json_option
from scf.core.errors import InputError, NothingToDo, UsageError

if TYPE_CHECKING:
    from scf.audit.log import AuditLog
    from scf.dispatch.ray_machines import RayMachines
    from scf.fertilization.batch_plan import BatchPlan
    from scf.fertilization.primordial_soup import IngestProgress
    from scf.fertilization.taint import Use
    from scf.vault.fossil import Fossil
    from scf.vault.index import Location
    from scf.vault.journal import Vault
    from scf.zoo.taint import Proposal


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--reader", help="Name of the reader; by default it is found by content.")
@click.option("--window", type=click.IntRange(1), metavar="STEPS", help="Time steps in a fossil.")
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Steps from the beginning of a fossil to that of the next; by default the window.",
)
@click.option(
    "--field", "fields", multiple=True, metavar="NAME", help="A field to read; again for more."
)
@click.option(
    "--mask-field",
    "mask_fields",
    multiple=True,
    metavar="NAME",
    help="A field that may have gaps (NaN over land): they become 0, and the given field"
    " NAME.valid tells where there is a value. Elsewhere a gap refuses the record.",
)
@click.option(
    "--patch", metavar="64x64", help="Cut the last space axes of each field into patches."
)
@click.option(
    "--record-max",
    metavar="SIZE",
    help="Refuse records with more numbers than this (default: record_max_bytes of scf.toml, 128"
    " MiB; each takes up to seven times its size in memory).",
)
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Read on the machines of this Ray cluster (HOST:PORT, or auto); this machine is one of"
    " them, and alone writes to the vault.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what is understood, then read and judge everything, and write nothing.",
)
@json_option
@common_options
def ingest(
    context: Context,
    paths: tuple[Path, ...],
    reader: str | None,
    window: int | None,
    stride: int | None,
    fields: tuple[str, ...],
    mask_fields: tuple[str, ...],
    patch: str | None,
    record_max: str | None,
    ray_address: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take files and folders in as fossils.

    The reader is found by content: The Well, PDEBench and other HDF5, NetCDF, Zarr, Parquet,
    MATLAB, npz, pickles of arrays, CSV, TMY2 and TMY3, and NDJSON of fossils as they are (.zst and
    .gz too); see docs/readers.md. Records that cannot be used go to quarantine with file, line and
    reason; the rest goes on. What the vault has already is counted as a duplicate; an ingest that
    was interrupted goes on where it stopped. With --json, one line a PATH.
    """
    from scf.cli import ingest_talk
    from scf.core.units import parse_size_bytes
    from scf.fertilization.primordial_soup import PrimordialSoupIngestor

    context.require_clear("ingest")
    settings = context.config.vault
    options = ingest_talk.read_options(window, stride, fields, mask_fields, patch)
    show = ingest_talk.progress_teller()

    def watch(progress: "IngestProgress") -> None:
        # A long ingest stops at the lock too; what was committed before stays.
        context.require_clear("the rest of the ingest")
        show(progress)

    num_read = 0
    with contextlib.ExitStack() as stack:
        machines = stack.enter_context(_cluster(ray_address)) if ray_address else None
        vault = stack.enter_context(_open_vault(context, to_write=not dry_run))
        ingestor = PrimordialSoupIngestor(
            vault,
            progress=watch,
            line_max_bytes=settings.line_max_bytes,
            record_max_bytes=(
                parse_size_bytes(record_max) if record_max else settings.record_max_bytes
            ),
            shard_bytes=settings.shard_bytes,
            home=context.home,
            machines=machines,
        )
        for path in paths:
            about: dict[str, Any] = {}
            if dry_run:
                understood = ingestor.understand(path, reader=reader, options=options)
                if as_json:
                    about = {"understood": [item.to_json() for item in understood]}
                else:
                    ingest_talk.say_understood(understood)
            report = ingestor.ingest(path, reader=reader, options=options, dry_run=dry_run)
            num_read += report.read
            if as_json:
                click.echo(json.dumps({**report.to_json(), **about}, sort_keys=True))
            else:
                ingest_talk.say_report(report, is_rehearsal=dry_run)
    if num_read == 0:
        raise NothingToDo("no records there that a reader knows")


@click.group()
def fossil() -> None:
    """Validate, show, trace, retract or export fossils."""


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
        retraction = vault.retracted().get(cid)
    uses = _uses(context, trace.location)
    used_by = [
        {"generation": use.name, "split": use.split} for use in uses if use.kind == "generation"
    ]
    if as_json:
        told = asdict(retraction) if retraction is not None else None
        emit({**trace.to_json(), "used_by": used_by, "retracted": told})
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
    if retraction is not None:
        click.echo(f"retracted   {retraction.retracted_at}: {retraction.reason}")


@fossil.command("retract")
@click.argument("cid", required=False)
@click.option("--reason", help="Why; kept with the retraction, signed, and in the audit log.")
@click.option("--list", "only_list", is_flag=True, help="List what was retracted, change nothing.")
@json_option
@common_options
def fossil_retract(
    context: Context, cid: str | None, reason: str | None, only_list: bool, as_json: bool
) -> None:
    """Take one fossil back: it leaves every later plan.

    It stays in its shard, whose digest is signed. Runs, generations and releases that used it are
    listed as tainted; nothing of them is changed. There is no way back: ingest a corrected record.
    """
    from scf.audit.log import AuditLog
    from scf.signing.keys import load_signer

    if only_list:
        _list_retractions(context, as_json=as_json)
        return
    if cid is None or not (reason or "").strip():
        raise UsageError(
            "a CID and a reason are needed", remedy='Say: `scf fossil retract CID --reason "..."`.'
        )
    # The keys are asked for first: a retraction that cannot be signed or logged is not made.
    signer = load_signer(context.key_folder, "foundry")
    audit = AuditLog.open(context.drive.folder("zk_proofs", "audit"), context.home, signer)
    with _open_vault(context, to_write=True) as vault:
        retraction = vault.retract(cid, str(reason))
        location = vault.locate(cid)
        proposal = _mark_zoo(context, vault, audit)
    assert location is not None
    tainted = [use.to_json() for use in _uses(context, location)]
    details = {"reason": retraction.reason, "retracted_at": retraction.retracted_at}
    audit.append("fossil.retracted", cid, details, key=f"fossil.retracted/{cid}")
    if as_json:
        rollback = proposal and proposal.to_json()
        emit({"cid": cid, **details, "tainted": tainted, "proposal": rollback})
        return
    click.echo(f"retracted   {cid}: {retraction.reason}")
    for use in tainted:
        click.echo(f"tainted     {use['kind']} {use['name']} ({use['split']})")
    if not tainted:
        click.echo("tainted     nothing was made from it")
    if proposal is not None:
        click.echo(f"proposed    {proposal.sentence()}")


@fossil.command("export")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["webdataset", "parquet", "npz", "pkl", "mds"]),
    help="What to write.",
)
@click.option(
    "--source",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="NDJSON file or folder to take fossils from (default: the vault, without retracted ones).",
)
@json_option
@common_options
def fossil_export(
    context: Context, path: Path, form: str, sources: tuple[Path, ...], as_json: bool
) -> None:
    """Write fossils to PATH for other tools: webdataset, parquet, npz, pkl or mds."""
    from scf.fertilization.export import export_fossils
    from scf.fertilization.fossil_batcher import read_records
    from scf.vault.shard import read_shard

    def of_vault() -> "Iterator[Fossil]":
        with _open_vault(context, to_write=False) as vault:
            gone = vault.retracted()
            for entry in vault.entries():
                shard = read_shard(vault.folder.path / entry.path, verify_cid=False)
                yield from (fossil for fossil in shard if fossil.cid not in gone)

    exported = export_fossils(lambda: read_records(sources) if sources else of_vault(), path, form)
    if as_json:
        emit({"exported": [{"path": str(e.path), "fossils": e.fossils} for e in exported]})
        return
    for one in exported:
        click.echo(f"{one.path}: {one.fossils:,} fossils")


def _mark_zoo(context: Context, vault: "Vault", audit: "AuditLog") -> "Proposal | None":
    """Note which generations are tainted now, and log the rollback that this suggests."""
    from scf.core.clock import SystemClock
    from scf.zoo.registry import Zoo
    from scf.zoo.taint import mark_tainted, propose, read_taints

    zoo = Zoo.open(context.drive.folder("model_zoo"))
    mark_tainted(zoo, vault, SystemClock(), audit=audit)
    return propose(zoo, read_taints(zoo.folder))


def _cluster(address: str) -> "RayMachines":
    from scf.dispatch.ray_machines import RayMachines

    return RayMachines(address)


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


def _uses(context: Context, location: "Location") -> "list[Use]":
    """Runs, generations and releases whose plan holds the fossil."""
    from scf.fertilization.taint import uses_of

    return list(uses_of(location, _plans(context)))


def _plans(context: Context) -> "Iterator[tuple[str, str, BatchPlan]]":
    """Every plan that something was made from: (kind, name, plan)."""
    from scf.daemon.standing import reading_store
    from scf.fertilization.batch_plan import BatchPlan, read_plan
    from scf.fertilization.taint import GENERATION, RELEASE, RUN
    from scf.zoo.registry import Zoo

    with reading_store(context.home) as store:
        for run in store.runs() if store is not None else []:
            assert store is not None
            # A run that was just noted has no plan yet, nor has it used anything.
            if made := store.plan(run.run_id):
                yield RUN, run.run_id, BatchPlan.from_json(made)
    for generation in Zoo.open(context.drive.folder("model_zoo")).generations():
        yield GENERATION, generation.name, read_plan(generation.path / "plan.json")
    for plan in sorted((context.drive.root / "release_history").glob("week-*/plan.json")):
        yield RELEASE, plan.parent.name, read_plan(plan)


def _list_retractions(context: Context, *, as_json: bool) -> None:
    with _open_vault(context, to_write=False) as vault:
        retractions = vault.retracted()
        located = {cid: vault.locate(cid) for cid in retractions}
    rows = []
    for cid, one in retractions.items():
        location = located[cid]
        tainted = [] if location is None else [u.to_json() for u in _uses(context, location)]
        rows.append({**asdict(one), "tainted": tainted})
    if as_json:
        emit({"retracted": rows})
        return
    for row in rows:
        click.echo(f"{row['cid']}  {row['retracted_at']}  {row['reason']}")
        for use in row["tainted"]:
            click.echo(f"  tainted  {use['kind']} {use['name']} ({use['split']})")
    if not rows:
        click.echo("nothing was retracted")


def _ordinal(one: "Fossil") -> str:
    index = one.provenance.index
    return "unnumbered" if index is None else f"{index:,}"
