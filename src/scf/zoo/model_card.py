"""The model card: what a generation is, for somebody who has never heard of it.

Markdown with a machine-readable head (YAML, as model hubs read it). Every number comes from the
signed statement or from the checkpoint; nothing is rounded away that decides something.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from scf.core.identity import sha256_hex
from scf.core.units import format_bytes
from scf.proofs.statement import Statement
from scf.proofs.verify_proof import VerifiedStatement
from scf.verification.verify_checkpoint import CheckpointFacts


def model_card(
    name: str, record: VerifiedStatement, checkpoint: CheckpointFacts, *, promoted_at: str
) -> str:
    """The text of MODEL_CARD.md for generation `name`."""
    statement = record.statement
    sections = [
        _head(name, statement),
        _what(name, statement, checkpoint, promoted_at),
        _fields(checkpoint.config),
        _results(statement),
        _use(name),
        _limits(statement),
        _evidence(record, checkpoint),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def results_table(statement: Statement) -> str:
    """Held-out losses side by side: the model, the Gaussians, the champion before it."""
    report = statement.report
    rows = [
        ("this model", report.dsm_loss),
        ("Gaussian with the full covariance", report.gaussian),
        ("independent Gaussians (the baseline)", report.baseline),
        ("champion before it", report.champion),
    ]
    lines = ["| held-out loss (lower is better) | mean | 95 % interval |", "| --- | --- | --- |"]
    for who, loss in rows:
        if loss is not None:
            interval = f"{loss.ci95[0]:.4g} to {loss.ci95[1]:.4g}" if loss.ci95 else "not measured"
            lines.append(f"| {who} | {loss.mean:.4g} | {interval} |")
    return "\n".join(lines)


def plot_lines(names: Iterable[str], folder: str = "plots") -> str:
    """Markdown for the pictures."""
    return "\n".join(f"![{name.rpartition('.')[0]}]({folder}/{name})" for name in names)


def gate_sentence(statement: Statement) -> str:
    """Why the gate let it pass."""
    return "; ".join(str(reason) for reason in statement.gate.get("reasons", []))


def _head(name: str, statement: Statement) -> str:
    report = statement.report
    metrics = [("held_out_dsm_loss", report.dsm_loss.mean if report.dsm_loss else None)]
    metrics.append(("baseline_dsm_loss", report.baseline.mean))
    metrics += [
        (f"auroc_{corruption}", value) for corruption, value in sorted(report.auroc.items())
    ]
    lines = [
        "---",
        "library_name: scf",
        "tags: [energy-based-model, diffusion, physics, anomaly-detection]",
        "model-index:",
        f"- name: {name}",
        "  results:",
        "  - task: {type: density-estimation}",
        f"    dataset: {{name: plan {statement.plan.plan_id[:16]}, type: scf.plan/1}}",
        "    metrics:",
        *(f"    - {{type: {kind}, value: {value!r}}}" for kind, value in metrics),
        "---",
    ]
    return "\n".join(lines)


def _what(name: str, statement: Statement, checkpoint: CheckpointFacts, promoted_at: str) -> str:
    origin = (
        f"It began with the weights of {statement.parent.generation}."
        if statement.parent
        else "It was trained from nothing; it has no parent."
    )
    return (
        f"# {name}\n\n"
        f"An energy-based diffusion model (EBDM) with {checkpoint.num_parameters:,} parameters, "
        f"made from {statement.plan.fossils:,} physics records (fossils), some of them held out to "
        f"measure it, and promoted on {promoted_at[:10]}. Given a record it returns an energy in "
        "nats: low for records like those it was trained on, high for records that break what "
        f"these have in common. It also samples new records. {origin}"
    )


def _fields(config: Mapping[str, Any]) -> str:
    layout = config.get("layout")
    layout = layout if isinstance(layout, Mapping) else config
    rows = []
    for part, role in (("modelled", "modelled"), ("fields", "modelled"), ("given", "given")):
        fields = layout.get(part)
        for field in fields if isinstance(fields, list) else []:
            if isinstance(field, Mapping) and "name" in field:
                shape = "×".join(map(str, field.get("shape") or [])) or "one number"
                rows.append(f"| {field['name']} | {field.get('unit') or '-'} | {shape} | {role} |")
    if not rows:
        return ""
    return "## What a record is\n\n| field | unit | shape | role |\n| --- | --- | --- | --- |\n" + (
        "\n".join(rows)
    )


def _results(statement: Statement) -> str:
    report = statement.report
    on_what = (
        f"On {report.fossils:,} held-out fossils from {report.families:,} families (a family is "
        "held out as a whole, so that neighbours do not leak). The loss is that of denoising score "
        "matching, weighted so that every noise level counts alike."
    )
    parts = [
        "## What was measured",
        on_what,
        results_table(statement),
        f"The gate: {gate_sentence(statement)}.",
    ]
    if report.auroc:
        parts.append(
            "How well the energy tells real records from the same records corrupted (AUROC: 0.5 is "
            "chance, 1 is always):\n\n| corruption | AUROC |\n| --- | --- |\n"
            + "\n".join(f"| {name} | {value:.3f} |" for name, value in sorted(report.auroc.items()))
        )
    if report.physics:
        parts.append(
            "Physics that records obey, as mean residuals:\n\n"
            "| constraint | real | sampled | tolerance | kept |\n| --- | --- | --- | --- | --- |\n"
            + "\n".join(
                f"| {name} | {_number(check.real, check.unit)} | "
                f"{_number(check.sampled, check.unit)} | {_number(check.tolerance, check.unit)} | "
                f"{'yes' if check.is_kept else 'no'} |"
                for name, check in sorted(report.physics.items())
            )
        )
    if report.files:
        parts.append(plot_lines(report.files))
    return "\n\n".join(parts)


def _use(name: str) -> str:
    return (
        "## How to use it\n\n```\n"
        "scf score MODEL records.ndjson            # one energy a record\n"
        "scf sample MODEL --num 16 --out new.npz   # sixteen new records\n```\n\n"
        f"MODEL is the folder `{name}` of a zoo, or `model` of a release."
    )


def _limits(statement: Statement) -> str:
    report = statement.report
    return (
        "## Limits\n\n"
        "* Energies compare records of the kind above. For another kind, source or season than the "
        "training data they say that it is unlike them, not that it is wrong.\n"
        f"* The measured numbers rest on {report.families:,} independent families; their intervals "
        "say how far they can be trusted.\n"
        "* Fossils may contain modelled values beside measured ones; their provenance says which."
    )


def _evidence(record: VerifiedStatement, checkpoint: CheckpointFacts) -> str:
    statement = record.statement
    rows = [
        ("run", statement.run_id),
        ("checkpoint", f"`{checkpoint.digest}` ({format_bytes(checkpoint.size_bytes)})"),
        ("plan", f"`{statement.plan.plan_id}` ({statement.plan.fossils:,} fossils)"),
        ("fossils' Merkle root", f"`{statement.plan.merkle_root}`"),
        ("statement", f"`{sha256_hex(record.payload)}`"),
        ("signed by", f"`{record.key.key_id}`"),
        ("logged", f"entry {record.index} of {record.head.origin}, {record.logged_at}"),
        ("code", ", ".join(f"{name} {version}" for name, version in statement.code.items())),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return (
        "## Evidence\n\n| what | which |\n| --- | --- |\n"
        f"{table}\n\n`scf proof verify` checks the signed statement: statement.json in a zoo, "
        "proof.json in a release."
    )


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.4g} {unit}".strip()
