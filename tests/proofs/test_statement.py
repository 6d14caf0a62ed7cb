"""A statement is complete, consistent, and the same bytes for the same run."""

import json
from dataclasses import replace

import pytest

from scf.core.canonical import canonical_json
from scf.proofs.statement import (
    Parent,
    PlanFacts,
    StatementInvalid,
    build_statement,
    parse_statement,
)
from support.foundries import small_foundry
from support.runs import MeasuredRun, fill_vault, measured_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MeasuredRun:
    place = small_foundry(tmp_path_factory.mktemp("foundry"))
    fill_vault(place)
    return measured_run(place, parent=Parent("ebdm_gen0003", "b" * 64))


def test_it_is_an_in_toto_statement(run: MeasuredRun) -> None:
    """Type, subjects and predicate stand where in-toto tools look for them."""
    value = json.loads(run.statement.encode())

    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == "https://scf.dev/training/v1"
    assert {s["name"]: s["digest"]["sha256"] for s in value["subject"]} == run.facts.files
    predicate = value["predicate"]
    assert predicate["run"] == run.run_id
    assert predicate["plan"]["merkle_root"] == run.plan["merkle_root"]
    assert predicate["plan"]["fossils"] == 40
    assert predicate["parent"]["generation"] == "ebdm_gen0003"
    assert predicate["report"]["dsm_loss"]["mean"] == run.report.dsm_loss.mean
    assert predicate["gate"]["promote"] is True


def test_it_is_read_back(run: MeasuredRun) -> None:
    assert parse_statement(run.statement.encode()) == run.statement
    assert run.statement.encode() == run.statement.encode()


def test_nothing_is_stated_about_a_report_on_another_checkpoint(run: MeasuredRun) -> None:
    other = replace(run.report, checkpoint_digest="e" * 64)

    with pytest.raises(StatementInvalid, match="checkpoint eeee"):
        build_statement(
            run_id="run-1",
            checkpoint=run.facts,
            plan=run.plan,
            parent=None,
            report=other,
            decision=run.decision,
            code_version="0.1.0",
        )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("predicateType", "https://slsa.dev/provenance/v1"),
        ("predicate.run", None),
        ("predicate.plan", {}),
        ("predicate.checkpoint_digest", "e" * 64),
        ("predicate.config_sha256", "e" * 64),
        ("predicate.report", {}),
        ("predicate.extra", 1),
        ("subject", []),
    ],
)
def test_a_statement_that_contradicts_itself_is_refused(run, path, value) -> None:
    statement = json.loads(run.statement.encode())
    target = statement
    *above, last = path.split(".")
    for name in above:
        target = target[name]
    target[last] = value

    with pytest.raises(StatementInvalid):
        parse_statement(canonical_json(statement))


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b'{"_type": 1}', b"\xff"])
def test_other_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(StatementInvalid):
        parse_statement(payload)


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"schema": "scf.plan/2", "fossils": 1, "merkle_root": "a" * 64},
        {"schema": "scf.plan/1", "fossils": True, "merkle_root": "a" * 64},
        {"schema": "scf.plan/1", "fossils": 1, "merkle_root": "short"},
    ],
)
def test_what_is_no_plan_is_refused(plan) -> None:
    with pytest.raises(StatementInvalid):
        PlanFacts.of(plan)
