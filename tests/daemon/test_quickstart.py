"""The main job, as a user runs it: real records in, a release out that a stranger can check."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core import merkle
from support.processes import python_env

pytest.importorskip("torch", reason="extra [train]")
pytest.importorskip("pvlib", reason="extra [demo]")

# Enough for the gate (closure of samples 7 of at most 15 W/m2), and half a minute on one core.
SETTINGS = "[training]\nmax_steps = 700\nmax_seconds = 200.0\n"


def scf(base: Path, *arguments: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
    env = python_env(
        SCF_HOME=str(base / "home"),
        SCF_ROOT=str(base / "root"),
        XDG_CONFIG_HOME=str(base / "config"),
    )
    return subprocess.run(
        [sys.executable, "-m", "scf", *arguments],
        capture_output=True, text=True, env=env, timeout=timeout, cwd=base,
    )  # fmt: skip


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `home` and `root` in which the quickstart has run once."""
    base = tmp_path_factory.mktemp("quickstart")
    (base / "home").mkdir()
    (base / "home" / "scf.toml").write_text(SETTINGS)
    done = scf(base, "quickstart", timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (base / "said").write_text(done.stdout)
    return base


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.torch
class TestQuickstart:
    """One real turn of the loop, looked at from several sides."""

    def test_every_day_is_accepted_and_the_report_says_what_was_measured(
        self, turned: Path
    ) -> None:
        report = json.loads((turned / "home/quickstart/report.json").read_text())

        assert report["ingest"] == {
            "read": 1095,
            "accepted": 1095,
            "duplicates": 0,
            "quarantined": 0,
        }
        assert (turned / "home/quickstart/report.png").stat().st_size > 50_000
        assert "One whole turn of the loop" in (turned / "said").read_text()

    def test_the_energy_tells_days_that_break_closure(self, turned: Path) -> None:
        """One radiation channel shuffled in time: AUROC at least 0.9, each channel and at random."""
        report = json.loads((turned / "home/quickstart/report.json").read_text())
        auroc = report["metrics"]["auroc"]

        for channel in ("ghi", "dni", "dhi", "one_radiation_channel"):
            assert auroc[f"{channel}_shuffled"] >= 0.9

    def test_status_shows_the_chain_from_the_release_to_the_fossils(self, turned: Path) -> None:
        status = json.loads(scf(turned, "status", "--json").stdout)
        chain = status["chain"]

        assert status["generation"] == chain["generation"] == "ebdm_gen0001"
        assert status["release"] == chain["release"]
        assert status["plan"]["fossils"] == 1095
        assert status["plan"]["merkle_root"] == chain["merkle_root"]
        release = turned / "root/release_history" / chain["release"]
        stated = json.loads((release / "RELEASE.json").read_text())
        assert chain["checkpoint_digest"] in json.dumps(stated)

    def test_the_listed_fossils_lead_to_the_merkle_root(self, turned: Path) -> None:
        chain = json.loads(scf(turned, "status", "--json").stdout)["chain"]
        listed = scf(turned, "run", "show", chain["run"], "--fossils").stdout.splitlines()
        cids = sorted(line.split()[0] for line in listed)

        assert len(cids) == 1095
        assert merkle.root(cid.encode() for cid in cids).hex() == chain["merkle_root"]

    def test_a_copied_release_verifies_alone_and_one_flipped_byte_is_named(
        self, turned: Path, tmp_path: Path
    ) -> None:
        (release,) = (turned / "root/release_history").glob("week-*")
        copy = tmp_path / release.name
        shutil.copytree(release, copy)
        key = turned / "home/keys/foundry.pub"
        command = [sys.executable, "-I", "verify_release.py", ".", "--key", str(key)]

        good = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
        assert good.returncode == 0, good.stdout + good.stderr

        weights = copy / "model" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[len(data) // 2] ^= 1
        weights.chmod(0o644)
        weights.write_bytes(data)
        bad = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
        assert bad.returncode == 5
        assert "model/model.safetensors" in bad.stdout + bad.stderr

    def test_a_second_run_finds_nothing_new(self, turned: Path) -> None:
        again = scf(turned, "quickstart", timeout=120)

        assert again.returncode == 3
        assert "nothing new" in again.stderr
