"""`scf zoo|proof|audit|release|keys` as an operator and a stranger type them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scf.cli.main import run
from scf.release import verify_release as verifier
from support.foundries import SmallFoundry, SteppingClock
from support.processes import python_env
from support.releases import promote, releasable
from support.runs import measured_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "release" / "weekly_promote.py"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return releasable(tmp_path_factory.mktemp("template") / "foundry").base


@pytest.fixture
def place(template: Path, tmp_path: Path) -> SmallFoundry:
    shutil.copytree(template, tmp_path / "foundry")
    return SmallFoundry(tmp_path / "foundry", SteppingClock())


class Shell:
    """Runs `scf` in this process, on one foundry."""

    def __init__(self, place: SmallFoundry, capsys: pytest.CaptureFixture[str]) -> None:
        self._options = ["--home", str(place.home), "--root", str(place.root)]
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Standard output; the exit code must be `code`."""
        found = run([*arguments, *self._options])
        self.out, self.err = self._capsys.readouterr()
        assert found == code, self.err
        return self.out

    def json(self, *arguments: str, code: int = 0) -> dict:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def scf(place: SmallFoundry, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(place, capsys)


def test_zoo_list(place: SmallFoundry, scf: Shell) -> None:
    listed = scf.json("zoo", "list")

    (model,) = listed["models"]
    assert listed["schema_version"] == 1
    assert (model["generation"], model["kind"], model["champion"]) == ("ebdm_gen0001", "ebdm", True)
    assert model["path"] == str(place.root / "model_zoo" / "ebdm_gen0001")
    assert scf("zoo", "list").startswith("* ebdm_gen0001  2026-11-18  run-000000000001")


def test_zoo_show_verifies_the_files(place: SmallFoundry, scf: Shell) -> None:
    assert scf.json("zoo", "show", "ebdm_gen0001")["history"][0]["action"] == "promoted"
    assert "each as it was promoted" in scf("zoo", "show", "ebdm_gen0001")
    card = place.root / "model_zoo" / "ebdm_gen0001" / "MODEL_CARD.md"
    card.write_text("better")
    scf("zoo", "show", "ebdm_gen0001", code=5)
    assert "MODEL_CARD.md" in scf.err
    scf("zoo", "show", "ebdm_gen0404", code=2)
    assert "There are: ebdm_gen0001" in scf.err


def test_zoo_rollback_is_one_command_and_logged(place: SmallFoundry, scf: Shell) -> None:
    promote(place, measured_run(place, number=2, champion_gain=0.2))

    scf("zoo", "rollback", "ebdm_gen0001", "--reason", "worse at night")

    assert scf.json("zoo", "list")["champion"] == "ebdm_gen0001"
    entry = list(place.log().entries())[-1].entry
    assert (entry.event, entry.subject) == ("zoo.rolled_back", "ebdm_gen0001")
    assert entry.details == {"previous": "ebdm_gen0002", "reason": "worse at night"}
    scf("zoo", "rollback", "ebdm_gen0001", "--reason", "again", code=3)
    scf("zoo", "rollback", "ebdm_gen0001", code=2)


def test_proof_verify(place: SmallFoundry, scf: Shell, tmp_path: Path) -> None:
    record = tmp_path / "copied.json"
    shutil.copy(place.root / "zk_proofs" / "proof-run-000000000001.json", record)

    assert scf.json("proof", "verify", str(record))["run"] == "run-000000000001"
    assert "VERIFIED" in scf("proof", "verify", str(record))
    scf("proof", "verify", str(record), "--key", str(place.home / "keys" / "vault.pub"), code=5)
    record.write_text(record.read_text().replace("run-", "nur-"))
    scf("proof", "verify", str(record), code=5)
    assert "copied.json" in scf.err


def test_audit_check_and_prove(place: SmallFoundry, scf: Shell, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(place.audit_folder.path, copied)

    assert scf.json("audit", "check")["ok"]
    assert "sound, 1 entries" in scf("audit", "check", "--folder", str(copied))
    proved = json.loads(scf("audit", "prove", "0"))
    assert json.loads(proved["entry"])["event"] == "statement.attested"
    scf("audit", "prove", "7", code=2)
    bundle = copied / "tile" / "entries" / "000.p" / "1"
    bundle.write_bytes(bundle.read_bytes().replace(b"run-", b"nur-"))
    damaged = scf.json("audit", "check", "--folder", str(copied), code=5)
    assert not damaged["ok"]


def test_a_rolled_back_drive_fails_the_check(place: SmallFoundry, scf: Shell) -> None:
    old = place.base / "old"
    shutil.copytree(place.audit_folder.path, old)
    place.log().append("e", "later")
    shutil.rmtree(place.audit_folder.path)
    shutil.copytree(old, place.root / "zk_proofs" / "audit")

    scf("audit", "check", code=5)
    assert "rolled back" in scf.err


def test_release_make_list_verify(place: SmallFoundry, scf: Shell) -> None:
    dry = scf.json("release", "make", "--week", "2026-11-16", "--dry-run")
    assert (dry["path"], dry["dry_run"]) == (None, True)

    made = scf.json("release", "make", "--week", "2026-11-16")

    scf("release", "make", "--week", "2026-11-16", code=3)
    assert "released already" in scf.err
    assert [r["release"] for r in scf.json("release", "list")["releases"]] == ["week-2026-11-16"]
    assert "week-2026-11-16  ebdm_gen0001  promotion" in scf("release", "list")
    text = scf("release", "verify", made["path"])
    assert "VERIFIED" in text
    assert "unpinned" in text
    key = str(place.home / "keys" / "foundry.pub")
    assert scf.json("release", "verify", made["path"], "--key", key)["pinned"]
    plan = Path(made["path"]) / "plan.json"
    plan.chmod(0o644)
    plan.write_text("{}")
    failed = scf.json("release", "verify", made["path"], code=5)
    assert failed["problems"][0]["file"] == "plan.json"


@pytest.mark.parametrize("week", ["2026-11-17", "last week"])
def test_a_week_that_is_none_is_refused(scf: Shell, week: str) -> None:
    scf("release", "make", "--week", week, code=2)


def test_nothing_is_released_under_the_emergency_lock(place: SmallFoundry, scf: Shell) -> None:
    (place.home / "EMERGENCY_LOCK").write_text("")

    scf("release", "make", code=4)
    assert list((place.root / "release_history").iterdir()) == []


def test_a_missing_key_is_said(place: SmallFoundry, scf: Shell) -> None:
    (place.home / "keys" / "foundry.key").unlink()

    scf("release", "make", code=1)
    assert "foundry.key" in scf.err
    assert "scf init" in scf.err


def test_keys_show(place: SmallFoundry, scf: Shell) -> None:
    shown = scf.json("keys", "show")["keys"]

    assert shown["foundry"]["key_id"] == place.keys["foundry"].key_id
    assert shown["foundry"]["pem"].startswith("-----BEGIN PUBLIC KEY-----")
    assert place.keys["vault"].key_id in scf("keys", "show")


def _script(place: SmallFoundry, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=python_env(SCF_HOME=str(place.home), SCF_ROOT=str(place.root)),
    )


def test_the_script_releases_once(place: SmallFoundry) -> None:
    """Fresh: 0 and a release. Again: 3, nothing changed. Then its verifier accepts it."""
    first = _script(place, "--week", "2026-11-23")
    again = _script(place, "--week", "2026-11-23")

    assert (first.returncode, again.returncode) == (0, 3), first.stderr
    assert "released already" in again.stderr
    path = place.root / "release_history" / "week-2026-11-23"
    assert verifier.main([str(path)]) == 0
    assert _script(place, "--week", "2026-11-24").returncode == 2


def test_the_scripts_help_would_do_for_a_stranger(place: SmallFoundry) -> None:
    shown = _script(place, "--help").stdout

    for word in ("--week", "Monday", "--dry-run", "Exit codes", "crontab", "--home", "--root"):
        assert word in shown


def test_release_show_diff_and_deep(place: SmallFoundry, scf: Shell) -> None:
    """Two weeks, the second without a promotion: shown, compared, walked down to the fossils."""
    scf("release", "make", "--week", "2026-11-16")
    assert "no promotion" in scf("release", "make", "--week", "2026-11-23")

    shown = scf.json("release", "show", "latest")
    assert (shown["name"], shown["kind"]) == ("week-2026-11-23", "no_promotion")
    assert "weights     in week-2026-11-16" in scf("release", "show", "2026-11-23")
    found = scf.json("release", "diff", "2026-11-16", "2026-11-23")
    assert found["fossils"] == {"in": 0, "out": 0, "kept": 40}
    assert "40 kept" in scf("release", "diff", "2026-11-16", "2026-11-23")
    scf("release", "show", "2020-01-06", code=2)

    folder = str(place.root / "release_history" / "week-2026-11-23")
    deep = scf.json("release", "verify", folder, "--deep")
    assert deep["ok"]
    assert deep["digests"] > 80
    assert "VERIFIED, down to the fossils" in scf("release", "verify", folder, "--deep")
    shard = next((place.root / "fossil_vault" / "shards").glob("*/*.ndjson"))
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes().replace(b"tests", b"tesTs", 1))
    assert "NOT VERIFIED" in scf("release", "verify", folder, "--deep", code=5)


def test_the_cap_of_a_release_can_be_set(place: SmallFoundry, scf: Shell) -> None:
    scf("release", "make", "--size-max", "5 kB", code=6)
    assert "--size-max" in scf.err
    scf("release", "make", "--size-max", "50 MB")
