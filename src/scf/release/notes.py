"""NOTES.md and VERIFY.md: the week for somebody who was away, and how to check it."""

from collections.abc import Mapping, Sequence
from typing import Any

from scf.core.units import format_bytes
from scf.release.contents import NOT_RELEASED, Contents
from scf.release.costs import costs_text
from scf.release.improvement import improvement_text
from scf.release.week import NO_PROMOTION, ROLLBACK, Outcome
from scf.zoo.model_card import gate_sentence, plot_lines, results_table

INCIDENTS_MAX = 20
_ROLES = {
    "train": "learned from a fossil that was taken back",
    "held_out": "was measured on a fossil that was taken back",
    "kept": "kept by the operator all the same",
}


def release_notes(
    contents: Contents,
    *,
    name: str,
    made_at: str,
    previous: Mapping[str, Any] | None,
    absent: Mapping[str, str],
    code_version: str,
) -> str:
    """The text of NOTES.md.

    Args:
        contents: What is released.
        name: `week-YYYY-MM-DD`.
        made_at: When, RFC 3339.
        previous: RELEASE.json of the release before, None for the first.
        absent: What this release does not contain, with the reason.
        code_version: Of the scf that makes the release.
    """
    sections = [
        f"# {name}",
        _summary(contents, previous),
        _taken_back(contents),
        improvement_text(contents.steps, contents.generation.name),
        _model(contents, previous),
        _choice(contents),
        _data(contents, previous),
        costs_text(contents.week.costs),
        _happened(contents, previous),
        "## Not in this release\n\n" + "\n".join(f"* {k}: {v}." for k, v in sorted(absent.items())),
        f"Made {made_at} by scf {code_version}. How to check every claim above: VERIFY.md.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(contents: Contents, previous: Mapping[str, Any] | None) -> str:
    generation, report = contents.generation, contents.record.statement.report
    week, carrier = contents.week, contents.carrier
    where = f" Its weights are in {carrier.name}, named by digest." if carrier else ""
    if previous is None:
        first = f"The first release. {generation.name} is the model of this week."
    elif week.kind == NO_PROMOTION:
        return f"No promotion: {_why_not(week.outcomes)}, so {generation.name} stands.{where}"
    elif week.kind == ROLLBACK:
        reason = week.moves[-1].reason if week.moves else "none is on record"
        return (
            f"Rolled back: {generation.name} stands again in place of "
            f"{previous['generation']['name']}. Reason: {reason}.{where}"
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


def _taken_back(contents: Contents) -> str:
    """Fossils that the model rests on and that were taken back since; "" where there are none."""
    tainted = contents.taints
    if not tainted.taints:
        return ""
    lines = [
        f"* {taint.generation}, {_ROLES[taint.split]}: {taint.reason}"
        + (f" (`{taint.cid}`)" if taint.cid else "")
        for taint in tainted.taints[:INCIDENTS_MAX]
    ]
    more = len(tainted.taints) - INCIDENTS_MAX
    if more > 0:
        lines.append(f"* and {more:,} more: metrics.json lists them")
    head = "## Taken back\n\n"
    if tainted.proposal is not None:
        head += f"**{tainted.proposal.sentence()}.**\n\n"
    return head + "\n".join(lines)


def _why_not(outcomes: Sequence[Outcome]) -> str:
    """Why a week has no promotion, in words that claim no more than is known."""
    rejected = [outcome for outcome in outcomes if outcome.state == "rejected"]
    others = len(outcomes) - len(rejected)
    if not outcomes:
        return "no run came to the gate this week"
    parts = []
    if rejected:
        was = "run was" if len(rejected) == 1 else "runs were"
        parts.append(f"{len(rejected)} {was} measured or checked, and rejected")
    if others:
        parts.append(f"{others} failed or {'was' if others == 1 else 'were'} quarantined")
    return " and ".join(parts)


def _choice(contents: Contents) -> str:
    """Which generations of the week there were, and the runs that were rejected, in numbers."""
    parts = []
    if len(contents.week.promoted) > 1:
        rows = []
        for generation, record in contents.week.promoted:
            loss = record.statement.report.dsm_loss
            stands = "stands" if generation.name == contents.generation.name else "replaced"
            rows.append(f"| {generation.name} | {loss.mean if loss else 0:.4g} | {stands} |")
        parts.append(
            "Promoted this week, each measured on the held-out fossils of its own plan; each had "
            "to beat the one before it, so the last is the best:\n\n"
            "| generation | held-out loss | now |\n| --- | --- | --- |\n" + "\n".join(rows)
        )
    measured = [o for o in contents.week.outcomes if o.gate is not None]
    if measured:
        rows = []
        for outcome in measured[-INCIDENTS_MAX:]:
            comparison = ((outcome.gate or {}).get("trace") or {}).get("comparison") or {}
            against = outcome.measured_against or "the baseline"
            rows.append(
                f"| {outcome.run_id} | {_figure(outcome.dsm_loss)} | {against} | "
                f"{_figure(comparison.get('gain'))} | {_figure(comparison.get('lower_bound'))} | "
                f"{comparison.get('families', 'unknown')} |"
            )
        parts.append(
            "Rejected at the gate (a gain above 0 is better; traces in `gate/`):\n\n"
            "| run | loss | against | gain | sure above | families |\n"
            "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
        )
    return "## What there was to choose from\n\n" + "\n\n".join(parts) if parts else ""


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "unknown"


def _model(contents: Contents, previous: Mapping[str, Any] | None) -> str:
    statement, generation = contents.record.statement, contents.generation
    report = statement.report
    parent = generation.parent or "none, trained from nothing"
    size_bytes = sum(
        path.stat().st_size
        for path in generation.checkpoint.glob("*.safetensors")
        if path.name != NOT_RELEASED
    )
    carrier = contents.carrier
    rows = [
        ("model", generation.name),
        ("parameters", f"{generation.num_parameters:,} ({format_bytes(size_bytes)} of weights)"),
        ("began with", parent),
        ("weights", f"in {carrier.name}" if carrier else "in model/"),
        ("run", generation.run_id),
        ("promoted", generation.promoted_at),
        ("in the release before", previous["generation"]["name"] if previous else "nothing"),
    ]
    parts = [
        "## The model",
        "| | |\n| --- | --- |\n" + "\n".join(f"| {what} | {value} |" for what, value in rows),
        results_table(statement),
        "![held-out losses](plots/losses.svg)",
        f"Why it was promoted: {gate_sentence(statement)}.",
        f"![the gate's decision](gate/{generation.run_id}.svg)",
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
    where = "evidence/fossils.txt"
    if contents.carrier is not None:
        where = f"{where} of {contents.carrier.name}"
    return (
        "## The data\n\n"
        f"{plan.fossils:,} fossils{change}, of which {contents.num_held_out:,} were held out by "
        f"whole families and never trained on{excluded}. Their Merkle root is "
        f"`{plan.merkle_root}`; {where} lists every one.\n\n"
        "| origin | fossils | fresh |\n| --- | --- | --- |\n" + "\n".join(lines)
    )


def _happened(contents: Contents, previous: Mapping[str, Any] | None) -> str:
    week = contents.week
    incidents = week.outcomes
    since = f"since {previous['name']}" if previous else "so far"
    lines = [f"| {event} | {count} |" for event, count in sorted(week.events.items())]
    parts = [
        "## What happened",
        f"Entries of the audit log {since}:\n\n| event | times |\n| --- | --- |\n"
        + "\n".join(lines),
    ]
    moves = [
        f"* {move.at[:16]}Z: {move.action.replace('_', ' ')} to {move.generation}: {move.reason}"
        for move in week.moves
    ]
    if moves:
        parts.append("The champion's pointer moved:\n\n" + "\n".join(moves))
    if incidents:
        shown = [
            f"* {incident.at[:16]}Z: {incident.run_id} was {incident.state}: {incident.reason}"
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

A week in which no new model was promoted carries no weights and no list of fossils: `carried_by` in
RELEASE.json names the earlier release that does, by digest. If that one lies beside this one, it is
compared; verify it too, in the same way. What is here then is still checked: card, metrics, plan,
the signed statement and its place in the audit log.

`sha256sum -c SHA256SUMS` checks the files alone (all but RELEASE.json, its signature and the sums).
"""
