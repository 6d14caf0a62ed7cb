"""`scf zoo`: generations, which of them stands, what taints them, and how to go back."""

from typing import TYPE_CHECKING, Any

import click

from scf.cli.common import Context, common_options, emit, json_option, talk
from scf.core.clock import SystemClock
from scf.core.errors import NothingToDo, UsageError
from scf.zoo.taint import keep, learned_from, propose, read_taints

if TYPE_CHECKING:
    from scf.audit.log import AuditLog
    from scf.zoo.registry import Zoo


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
    taints = read_taints(registry.folder)
    tainted = learned_from(generations, taints)
    proposal = propose(registry, taints)
    if as_json:
        models = [
            {
                **_generation_json(generation),
                "champion": generation.name == champion,
                "tainted_through": tainted.get(generation.name),
                "taints": [t.to_json() for t in taints if t.generation == generation.name],
            }
            for generation in generations
        ]
        emit(
            {
                "schema_version": 1,
                "champion": champion,
                "proposal": proposal and proposal.to_json(),
                "models": models,
            }
        )
        return
    if not generations:
        talk("The zoo is empty: no generation was promoted yet.")
    for generation in generations:
        star = "*" if generation.name == champion else " "
        click.echo(
            f"{star} {generation.name}  {generation.promoted_at[:10]}  {generation.run_id}  "
            f"{generation.fossils:>10,} fossils  {generation.num_parameters:>12,} parameters"
            + ("  TAINTED" if generation.name in tainted else "")
        )
    if proposal is not None:
        click.echo(f"! {proposal.sentence()}")


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
    for taint in read_taints(registry.folder):
        if taint.generation == name:
            fossil = f" fossil {taint.cid} ({taint.split})" if taint.cid else ""
            click.echo(
                f"{'kept' if not taint.cid else 'taken back':18} {taint.at}:{fossil} {taint.reason}"
            )


@zoo.command("rollback")
@click.argument("name", required=False)
@click.option("--proposed", is_flag=True, help="Accept the rollback that `scf zoo list` proposes.")
@click.option("--reason", help="Why; kept in the history and the audit log. A proposal brings one.")
@common_options
def zoo_rollback(context: Context, name: str | None, proposed: bool, reason: str | None) -> None:
    """Let an earlier generation stand again. Nothing is deleted; the next release tells it."""
    if (name is None) != proposed:
        raise UsageError(
            "name a generation, or accept what is proposed",
            remedy='Say `scf zoo rollback NAME --reason "..."` or `scf zoo rollback --proposed`.',
        )
    log, registry = _log(context), _zoo(context)
    if name is None:
        proposal = propose(registry, read_taints(registry.folder))
        if proposal is None:
            raise NothingToDo("no rollback is proposed")
        if proposal.target is None:
            raise NothingToDo(proposal.sentence())
        name, reason = proposal.target, reason or proposal.sentence().partition(":")[0]
    if not reason:
        raise UsageError("a rollback needs a reason", remedy='Say --reason "...".')
    before = registry.history()
    generation = registry.rollback(name, reason)
    log.append(
        "zoo.rolled_back",
        generation.name,
        {"previous": before[-1].generation if before else None, "reason": reason.strip()},
        key=f"zoo.rolled_back/{len(before)}/{generation.name}",
    )
    talk(f"{generation.name} stands now.")


@zoo.command("keep")
@click.option("--reason", required=True, help="Why; kept in the zoo and the audit log.")
@common_options
def zoo_keep(context: Context, reason: str) -> None:
    """Keep the champion although fossils that it learned from were taken back."""
    log = _log(context)
    kept = keep(_zoo(context), reason, SystemClock())
    log.append("zoo.kept", kept.generation, {"reason": kept.reason}, key=f"zoo.kept/{kept.at}")
    talk(f"{kept.generation} stays; no rollback is proposed any more.")


def _log(context: Context) -> "AuditLog":
    """The audit log, for writing. Asked for first: what cannot be logged is not done."""
    from scf.audit.log import AuditLog
    from scf.signing.keys import load_signer

    signer = load_signer(context.key_folder, "foundry")
    return AuditLog.open(context.drive.folder("zk_proofs", "audit"), context.home, signer)


def _zoo(context: Context) -> "Zoo":
    from scf.zoo.registry import Zoo

    return Zoo.open(context.drive.folder("model_zoo"), clock=SystemClock())


def _generation_json(generation: Any) -> dict[str, Any]:
    value = {key: item for key, item in generation.to_json().items() if key != "schema"}
    return {**value, "path": str(generation.path)}
