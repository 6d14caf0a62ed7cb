"""NOTES.md and VERIFY.md: the week for somebody who was away, and how to check it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scf.core.units import format_bytes
from scf.release.contents import Contents
from scf.zoo.model_card import gate_sentence, plot_lines, results_table
from scf.zoo.registry import ROLLED_BACK

INCIDENTS_MAX = 20


@dataclass(frozen=True)
class Incident:
    """A run that was rejected, failed or quarantined, as the audit log tells it."""

    at: str
    subject: str
    state: str
    reason: str


def release_notes(
    contents: Contents,
    *,
    name: str,
    made_at: str,
    previous: Mapping[str, Any] | None,
    events: Mapping[str, int],
    incidents: Sequence[Incident],
    absent: Mapping[str, str],
    code_version: str,
) -> str:
    """The text of NOTES.md.

    Args:
        contents: What is released.
        name: `week-YYYY-MM-DD`.
        made_at: When, RFC 3339.
        previous: RELEASE.json of the release before, None for the first.
        events: How often each kind of event was logged since then.
        incidents: Runs that came to nothing since then.
        absent: What this release does not contain, with the reason.
        code_version: Of the scf that makes the release.
    """
    sections = [
        f"# {name}",
        _summary(contents, previous),
        _model(contents, previous),
        _data(contents, previous),
        _happened(contents, events, incidents, previous),
        "## Not in this release\n\n" + "\n".join(f"* {k}: {v}." for k, v in sorted(absent.items())),
        f"Made {made_at} by scf {code_version}. How to check every claim above: VERIFY.md.",
    ]
    return "\n\n".join(sections) + "\n"


def is_promotion(contents: Contents, previous: Mapping[str, Any] | None) -> bool:
    """Whether the model is another one than in the release before."""
    if previous is None:
        return True
    return bool(previous["generation"]["name"] != contents.generation.name)


def _summary(contents: Contents, previous: Mapping[str, Any] | None) -> str:
    generation, report = contents.generation, contents.record.statement.report
    if previous is None:
        first = f"The first release. {generation.name} is the model of this week."
    elif not is_promotion(contents, previous):
        return (
            f"No promotion: nothing that was trained this week was shown to be better, so "
            f"{generation.name} of {previous['name']} stands. Its numbers are repeated below."
        )
    elif any(move.action == ROLLED_BACK for move in contents.fresh_moves[-1:]):
        return (
            f"Rolled back: {generation.name} stands again in place of "
            f"{previous['generation']['name']}. Reason: {contents.fresh_moves[-1].reason}."
        )
    else:
        first = f"{generation.name} replaces {previous['generation']['name']}."
    assert report.dsm_loss is not None
    opponent = report.champion or report.baseline
    against = "the champion before it" if report.champion else "a Gaussian baseline"
    return (
        f"{first} On {report.fossils:,} held-out fossils its loss is {report.dsm_loss.mean:.4g}, "
        f"against {opponent.mean:.4g} for {against} (lower is better)."
    )


def _model(contents: Contents, previous: Mapping[str, Any] | None) -> str:
    statement, generation = contents.record.statement, contents.generation
    report = statement.report
    parent = generation.parent or "none, trained from nothing"
    weights = [n for n in contents.files if n.startswith("model/") and n.endswith(".safetensors")]
    size_bytes = sum(
        len(source) if isinstance(source, bytes) else source.stat().st_size
        for source in (contents.files[name] for name in weights)
    )
    rows = [
        ("model", generation.name),
        ("parameters", f"{generation.num_parameters:,} ({format_bytes(size_bytes)} of weights)"),
        ("began with", parent),
        ("run", generation.run_id),
        ("promoted", generation.promoted_at),
        ("before it", previous["generation"]["name"] if previous else "nothing"),
    ]
    parts = [
        "## The model",
        "| | |\n| --- | --- |\n" + "\n".join(f"| {what} | {value} |" for what, value in rows),
        results_table(statement),
        f"Why it was promoted: {gate_sentence(statement)}.",
    ]
    if report.auroc:
        told = ", ".join(f"{name} {value:.3f}" for name, value in sorted(report.auroc.items()))
        parts.append(f"Corrupted records told from real ones (AUROC, 0.5 is chance): {told}.")
    broken = [name for name, check in sorted(report.physics.items()) if not check.is_kept]
    if report.physics:
        kept = f"do not keep {', '.join(broken)}" if broken else "keep every constraint"
        checked = ", ".join(sorted(report.physics))
        parts.append(
            f"Physics: samples {kept} that was checked ({checked}); residuals are in MODEL_CARD.md."
        )
    if report.files:
        parts.append(plot_lines(report.files))
    return "\n\n".join(parts)


def _data(contents: Contents, previous: Mapping[str, Any] | None) -> str:
    plan = contents.plan
    change = ""
    if previous is not None:
        difference = plan.fossils - int(previous["plan"]["fossils"])
        change = f" ({difference:+,} since {previous['name']})"
    lines = [
        f"| {origin.name} | {origin.fossils:,} | {origin.fresh:,} |" for origin in contents.origins
    ]
    excluded = f"; {len(plan.excluded):,} excluded" if plan.excluded else ""
    return (
        "## The data\n\n"
        f"{plan.fossils:,} fossils{change}, of which {contents.num_held_out:,} were held out by "
        f"whole families and never trained on{excluded}. Their Merkle root is "
        f"`{plan.merkle_root}`; evidence/fossils.txt lists every one.\n\n"
        "| origin | fossils | fresh |\n| --- | --- | --- |\n" + "\n".join(lines)
    )


def _happened(
    contents: Contents,
    events: Mapping[str, int],
    incidents: Sequence[Incident],
    previous: Mapping[str, Any] | None,
) -> str:
    since = f"since {previous['name']}" if previous else "so far"
    lines = [f"| {event} | {count} |" for event, count in sorted(events.items())]
    parts = [
        "## What happened",
        f"Entries of the audit log {since}:\n\n| event | times |\n| --- | --- |\n"
        + "\n".join(lines),
    ]
    moves = [
        f"* {move.at[:16]}Z: {move.action.replace('_', ' ')} to {move.generation}: {move.reason}"
        for move in contents.fresh_moves
    ]
    if moves:
        parts.append("The champion's pointer moved:\n\n" + "\n".join(moves))
    if incidents:
        shown = [
            f"* {incident.at[:16]}Z: {incident.subject} was {incident.state}: {incident.reason}"
            for incident in incidents[-INCIDENTS_MAX:]
        ]
        left_out = len(incidents) - len(shown)
        if left_out:
            shown.insert(0, f"* {left_out} earlier ones: `scf runs`")
        parts.append("Runs that came to nothing:\n\n" + "\n".join(shown))
    return "\n\n".join(parts)


def verify_text(name: str, key_id: str) -> str:
    """The text of VERIFY.md."""
    return f"""# How to check {name}

You need Python 3.9 or later and this folder; no network, no installation, no scf.

```
python -I verify_release.py . --key foundry.pub
```

`foundry.pub` is the foundry's public key. Get it from somewhere you trust, not from this folder.
Its id, the SHA-256 of its 32 raw bytes, should be

    {key_id}

Without `--key` the verifier uses keys/foundry.pub: that shows that nothing here was changed, not
who made it. Whoever distrusts the verifier in this folder takes it from the source of scf
(src/scf/release/verify_release.py), or writes another one: docs/formats/release.md says how.

What a success means: the foundry's key signed RELEASE.json; every file is the one that was signed,
none is missing, none was added; the statement about the training run is about these weights and
stands in the foundry's audit log; every shard of the plan has a signed manifest; the list of
fossils leads to the Merkle root that the statement names. If the release before this one lies
beside it, it is the one that this one follows.

`sha256sum -c SHA256SUMS` checks the files alone (all but RELEASE.json, its signature and the sums).
"""
