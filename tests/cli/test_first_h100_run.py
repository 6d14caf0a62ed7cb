"""The page `first-h100-run.md`, typed line by line against the double of the provider.

Its two long commands, the smoke test and the run, have tests of their own (`test_pods.py`,
`tests/daemon/test_cloud_end_to_end.py`); `docker` and `keyring` lines are not scf's.
"""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from fakes.runpod.server import FakeRunpod
from scf.cli.main import run as scf_command
from scf.config import load_config
from scf.daemon.setup import initialise
from support.fossils import write_fossils

PAGE = Path(__file__).parents[2] / "docs" / "operations" / "first-h100-run.md"
KEY = "rpa_CANARY0123456789abcdef"
ELSEWHERE = ("scf pods smoke", "scf daemon run")


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("scf ")]


def settings() -> str:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return block.replace("sha256:...", "sha256:" + "0" * 64)


def test_every_command_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    initialise(home, tmp_path / "root")
    write_fossils(tmp_path / "my_records" / "a.ndjson", range(100))
    monkeypatch.setenv("SCF_HOME", str(home))
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    ran = [line for line in commands() if not line.startswith(ELSEWHERE)]
    assert len(ran) >= 12
    with FakeRunpod(key=KEY) as provider:
        monkeypatch.setenv("SCF_RUNPOD_REST", provider.rest)
        monkeypatch.setenv("SCF_RUNPOD_GRAPHQL", provider.graphql)
        (home / "scf.toml").write_text(f'root = "{tmp_path / "root"}"\n{settings()}')
        for line in ran:
            code = scf_command(shlex.split(line)[1:])
            told = capsys.readouterr()
            # No daemon runs here to take a limit in at once: it is kept for the next.
            assert code == 0, f"{line}: {code}: {told.out} {told.err}"
            assert KEY not in told.out + told.err
    assert provider.count("create") == 0


def test_the_settings_of_the_page_are_settings(tmp_path: Path) -> None:
    tomllib.loads(settings())
    (tmp_path / "scf.toml").write_text(settings())
    config = load_config(tmp_path, environment={})

    assert config.doors.order == ("runpod", "local")
    # What the page promises of the run's price: P x (deadline + ready + return + 300 s).
    lease_s = config.runpod.ready_s + config.daemon.job_deadline_s + config.runpod.return_s
    promised = 2.69 * (lease_s + 300) / 3600
    assert promised <= config.runpod.max_usd_per_job
    assert sys.version_info >= (3, 11)
    assert f"{promised:.1f} USD is promised" in PAGE.read_text()
