"""`scf ingest` and `scf fossil`, as a person or a script uses them."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.cli.main import run
from scf.daemon.setup import FoundryPlaces
from scf.storage.partitions import Drive
from support.fossils import fossil, fossil_line, write_fossils


@pytest.fixture
def scf(foundry: FoundryPlaces, capsys: pytest.CaptureFixture[str]):
    """Runs a command in the foundry; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        places = ["--home", str(foundry.home), "--root", str(foundry.root)]
        code = run([*map(str, arguments), *places])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_ingest_prints_one_json_line_a_path(scf, tmp_path: Path) -> None:
    first = write_fossils(tmp_path / "a.ndjson", range(3))
    second = write_fossils(tmp_path / "b.ndjson", range(2, 5))

    code, out, _ = scf("ingest", first, second, "--json")

    reports = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(r["origin"], r["read"], r["accepted"], r["duplicates"]) for r in reports] == [
        ("a.ndjson", 3, 3, 0),
        ("b.ndjson", 3, 2, 1),
    ]


def test_ingest_says_what_was_refused_and_where_to_look(scf, tmp_path: Path) -> None:
    path = tmp_path / "a.ndjson"
    path.write_bytes(fossil_line(0) + b"{\n")

    code, out, _ = scf("ingest", path)

    assert code == 0
    assert "2 read = 1 accepted + 0 duplicates + 1 quarantined" in out
    assert "1 refused: json" in out
    assert "fossil_vault/quarantine/a.ndjson-" in out


def test_ingest_keeps_the_budget_of_the_vault(scf, foundry: FoundryPlaces, tmp_path: Path) -> None:
    """Exit code 6, the numbers and the remedy; no shard, no manifest, no journal."""
    path = write_fossils(tmp_path / "a.ndjson", range(30))
    Drive.open(foundry.root).set_budgets({"fossil_vault": 9000})

    code, _, err = scf("ingest", path)

    assert code == 6
    assert "fossil_vault holds" in err
    assert "scf budget set fossil_vault SIZE" in err
    assert [p for p in (foundry.root / "fossil_vault").rglob("*") if p.is_file()] == []

    Drive.open(foundry.root).set_budgets({"fossil_vault": 10**6})
    code, out, _ = scf("ingest", path)
    assert code == 0
    assert "30 accepted" in out


def test_records_above_the_limit_of_the_settings_are_refused(
    scf, foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """`[vault] record_max_bytes`; the command line goes before it."""
    path = tmp_path / "large.npz"
    np.savez(path, x=np.ones((2, 20_000)))
    settings = foundry.home / "scf.toml"
    text = settings.read_text()
    settings.write_text(text.replace("[vault]", "[vault]\nrecord_max_bytes = 100000", 1))

    _, out, _ = scf("ingest", path, "--dry-run")
    assert "2 refused: size" in out
    _, out, _ = scf("ingest", path, "--dry-run", "--record-max", "1 MB")
    assert "2 accepted" in out


def test_a_rehearsal_writes_nothing(scf, foundry: FoundryPlaces, tmp_path: Path) -> None:
    code, out, err = scf("ingest", write_fossils(tmp_path / "a.ndjson", range(3)), "--dry-run")

    assert code == 0
    assert "3 accepted" in out
    assert "nothing was written" in err
    assert list((foundry.root / "fossil_vault").rglob("*.ndjson")) == []


def test_what_cannot_be_meant_has_an_exit_code_and_a_sentence(scf, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert scf("ingest", tmp_path / "absent")[0] == 1
    assert scf("ingest", tmp_path / "empty")[0] == 3
    code, _, err = scf("ingest", tmp_path / "empty", "--reader", "fits")
    assert code == 2
    assert "Known readers: " in err


def test_a_missing_root_is_said_in_a_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "home").mkdir()
    code = run(
        ["ingest", str(tmp_path), "--home", str(tmp_path / "home"), "--root", str(tmp_path / "no")]
    )

    assert code == 7
    assert "no readable marker" in capsys.readouterr().err


def test_show_gives_the_fossil_itself(scf, tmp_path: Path) -> None:
    scf("ingest", write_fossils(tmp_path / "a.ndjson", range(3)))

    code, out, _ = scf("fossil", "show", fossil(1).cid, "--json")
    assert code == 0
    assert json.loads(out) == fossil(1).obj
    _, out, _ = scf("fossil", "show", fossil(1).cid)
    assert "field       x" in out
    assert "0.25 to 1.001" in out


def test_trace_leads_to_the_origin_and_verifies_the_way(
    scf, foundry: FoundryPlaces, tmp_path: Path
) -> None:
    scf("ingest", write_fossils(tmp_path / "a.ndjson", range(5)))

    code, out, _ = scf("fossil", "trace", fossil(2).cid, "--json")
    trace = json.loads(out)
    assert code == 0
    assert trace["provenance"]["origin"] == "pendulum.csv"
    assert trace["line"] == 3
    assert trace["used_by"] == []
    assert len(trace["inclusion"]) == 3
    assert "Merkle path verified" in scf("fossil", "trace", fossil(2).cid)[1]

    shard = foundry.root / "fossil_vault" / trace["shard"]["path"]
    shard.write_bytes(shard.read_bytes().replace(b'"index":4', b'"index":7'))
    code, _, err = scf("fossil", "trace", fossil(2).cid)
    assert code == 1
    assert "digest" in err


def test_a_fossil_that_is_not_there_is_an_error(scf) -> None:
    assert scf("fossil", "show", fossil(9).cid)[0] == 1
    code, _, err = scf("fossil", "validate", "nonsense")
    assert code == 1
    assert "neither a file nor a CID" in err


def test_validate_judges_files_and_cids(scf, tmp_path: Path) -> None:
    good = write_fossils(tmp_path / "a.ndjson", range(3))
    bad = tmp_path / "b.ndjson"
    fail = {"name": "lab", "version": "1", "verdict": "FAIL"}
    bad.write_bytes(fossil_line(0, verifier=fail) + fossil_line(1, cid=fossil(7).cid))
    scf("ingest", good)

    assert scf("fossil", "validate", good, fossil(1).cid)[:2] == (0, "4 passed, 0 refused\n")
    code, out, _ = scf("fossil", "validate", bad, "--json")
    assert code == 1
    assert {entry["kind"] for entry in json.loads(out)["refused"]} == {"verdict", "cid"}


def test_retracting_names_what_was_made_from_the_fossil(
    scf, foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """A run planned before holds it; one planned after does not; the audit log tells why."""
    from scf.core.clock import SystemClock
    from scf.fertilization.batch_plan import make_plan
    from scf.runs.store import RunStore
    from support.vaults import open_vault

    cid = fossil(3).cid
    scf("ingest", write_fossils(tmp_path / "a.ndjson", range(150)))
    with open_vault(foundry) as vault:
        plan = make_plan(vault, seed=0)
    store = RunStore.open(foundry.home, SystemClock())
    run_made, _ = store.add_run({"plan_id": plan.plan_id}, plan.to_json(), facts={})
    store.close()

    code, out, _ = scf("fossil", "retract", cid, "--reason", "iced over", "--json")

    told = json.loads(out)
    assert code == 0
    assert (told["cid"], told["reason"]) == (cid, "iced over")
    assert [(use["kind"], use["name"]) for use in told["tainted"]] == [("run", run_made.run_id)]
    code, out, _ = scf("fossil", "retract", "--list", "--json")
    assert [row["cid"] for row in json.loads(out)["retracted"]] == [cid]
    code, out, _ = scf("fossil", "trace", cid, "--json")
    assert json.loads(out)["retracted"]["reason"] == "iced over"
    with open_vault(foundry) as vault:
        assert make_plan(vault, seed=0).excluded == (cid,)


def test_retracting_needs_a_fossil_and_a_reason(scf, tmp_path: Path) -> None:
    scf("ingest", write_fossils(tmp_path / "a.ndjson", range(3)))

    assert scf("fossil", "retract", fossil(0).cid)[0] == 2
    assert scf("fossil", "retract")[0] == 2
    assert scf("fossil", "retract", fossil(9).cid, "--reason", "gone")[0] == 1


def test_export_writes_the_vault_without_what_was_retracted(scf, tmp_path: Path) -> None:
    import numpy as np

    source = write_fossils(tmp_path / "a.ndjson", range(10))
    scf("ingest", source)
    scf("fossil", "retract", fossil(4).cid, "--reason", "wrong")

    code, out, _ = scf("fossil", "export", tmp_path / "out.npz", "--format", "npz", "--json")

    assert code == 0
    assert json.loads(out)["exported"][0]["fossils"] == 9
    with np.load(tmp_path / "out.npz") as archive:
        assert fossil(4).cid not in archive["_cid"]
    code, out, _ = scf(
        "fossil", "export", tmp_path / "b.npz", "--format", "npz", "--source", source
    )
    assert "10 fossils" in out
