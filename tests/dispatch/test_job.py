"""Specs and exit records say the same after a round trip, and refuse what would do harm."""

import pytest

from scf.core.errors import InputError
from scf.dispatch.job import ExitReason, JobExit, JobInput, JobSpec

SPEC = JobSpec(
    job_id="run-0123456789ab-train-1",
    kind="train_ebdm",
    deadline_s=60.0,
    config={"seed": 1},
    inputs=(
        JobInput("plan.json", "inputs/plan.json", "0" * 64),
        JobInput("checkpoint", "/drive/model_zoo/ebdm_gen0001/checkpoint"),
    ),
    vault="/drive/fossil_vault",
)


def test_a_spec_survives_a_round_trip() -> None:
    assert JobSpec.from_json(SPEC.to_json()) == SPEC


def test_an_exit_record_survives_a_round_trip() -> None:
    record = JobExit(
        ExitReason.TIMED_OUT,
        "deadline",
        0,
        "2026-11-23T06:00:00Z",
        "2026-11-23T07:00:00Z",
        ({"path": "outputs/a", "sha256": "0" * 64, "size_bytes": 3},),
        {"cpu_s": 1.5},
    )

    assert JobExit.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "scf.job/2"}, "schema"),
        ({"job_id": "../x"}, "job id"),
        ({"job_id": ""}, "job id"),
        ({"kind": "a b"}, "kind"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": "nan"}, "deadline_s"),
        ({"inputs": [{"name": "a", "path": "outputs/a"}]}, "not inside inputs"),
        ({"inputs": [{"name": "a", "path": "inputs/../../a"}]}, "not inside inputs"),
        ({"inputs": [{"name": "a", "path": "inputs/a", "sha256": "x"}]}, "not a SHA-256"),
        ({"inputs": [{"name": "../a", "path": "inputs/a"}]}, "not a name"),
        ({"inputs": 3}, "TypeError"),
    ],
)
def test_an_ill_formed_spec_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        JobSpec.from_json(SPEC.to_json() | change)
