"""A release reaches GitHub whole and once, whatever goes wrong on the way."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.foundries import SmallFoundry, SteppingClock
from support.github_double import REPOSITORY, TOKEN, GitHubDouble, running
from support.processes import python_env
from support.releases import releasable

SCRIPTS = Path(__file__).parents[2] / "scripts" / "release"
NAME = "week-2026-11-16"
ASSETS = ["NOTES.md", "RELEASE.dsse.json", "RELEASE.json", "verify_release.py", f"{NAME}.tar.gz"]


@pytest.fixture(scope="module")
def foundry(tmp_path_factory: pytest.TempPathFactory) -> SmallFoundry:
    return releasable(tmp_path_factory.mktemp("foundry") / "foundry")


def run(script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments],
        capture_output=True, text=True, check=False, timeout=300, env=python_env(**env),
    )  # fmt: skip


def overseer(foundry: SmallFoundry, out: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run(
        "overseer.py", str(out), SCF_HOME=str(foundry.home), SCF_ROOT=str(foundry.root), **env
    )


@pytest.fixture(scope="module")
def packed(foundry: SmallFoundry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that the overseer hands over."""
    out = tmp_path_factory.mktemp("packed")
    told = out / "output"
    done = overseer(foundry, out, SCF_WEEK="2026-11-16", GITHUB_OUTPUT=str(told))
    assert done.returncode == 0, done.stderr
    assert told.read_text() == f"release={NAME}\n"
    return out / f"{NAME}.tar.gz"


@pytest.fixture
def upload(packed: Path, foundry: SmallFoundry, tmp_path: Path) -> Path:
    """What the hosted job will upload, verified."""
    key = str(foundry.home / "keys" / "foundry.pub")
    done = run(
        "publish_github.py", "verify", str(packed), str(tmp_path / "up"), SCF_FOUNDRY_KEY=key
    )
    assert done.returncode == 0, done.stderr
    assert "VERIFIED" in done.stdout
    return tmp_path / "up"


@pytest.fixture
def github() -> Iterator[GitHubDouble]:
    with running() as double:
        yield double


def publish(github: GitHubDouble, upload: Path, **env: str) -> subprocess.CompletedProcess[str]:
    known = {
        "GITHUB_API_URL": github.url, "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_TOKEN": TOKEN,
        "GITHUB_SHA": "c" * 40,
    }  # fmt: skip
    return run("publish_github.py", "publish", str(upload), **(known | env))


# -- on the overseer ---------------------------------------------------------------------------------


def test_a_week_that_is_released_already_is_packed_the_same(
    foundry: SmallFoundry, packed: Path, tmp_path: Path
) -> None:
    done = overseer(foundry, tmp_path, SCF_WEEK="2026-11-16", GITHUB_OUTPUT=str(tmp_path / "told"))

    assert done.returncode == 0
    assert (tmp_path / packed.name).read_bytes() == packed.read_bytes()
    assert (tmp_path / "told").read_text() == f"release={NAME}\n"


def test_a_dry_run_publishes_nothing(foundry: SmallFoundry, tmp_path: Path) -> None:
    told = tmp_path / "told"
    done = overseer(
        foundry, tmp_path, SCF_WEEK="2027-01-04", SCF_DRY_RUN="true", GITHUB_OUTPUT=str(told)
    )

    assert done.returncode == 0
    assert told.read_text() == "release=\n"
    assert not (foundry.root / "release_history" / "week-2027-01-04").exists()


def test_a_locked_foundry_ends_the_workflow(foundry: SmallFoundry, tmp_path: Path) -> None:
    copy = SmallFoundry(tmp_path / "foundry", SteppingClock())
    shutil.copytree(foundry.base, copy.base)
    (copy.home / "EMERGENCY_LOCK").write_text("")

    assert overseer(copy, tmp_path / "out", SCF_WEEK="2027-01-04").returncode == 4
    assert overseer(copy, tmp_path / "out", SCF_WEEK="$(id)").returncode == 2


# -- verifying ---------------------------------------------------------------------------------------


def test_the_hosted_job_pins_the_key(packed: Path, foundry: SmallFoundry, tmp_path: Path) -> None:
    """No key, no publishing; another foundry's key, none either."""
    done = run("publish_github.py", "verify", str(packed), str(tmp_path / "up"),
               SCF_FOUNDRY_KEY=str(tmp_path / "absent.pub"))  # fmt: skip
    assert (done.returncode, "commit the foundry's public key" in done.stderr) == (2, True)
    key = str(foundry.home / "keys" / "vault.pub")
    done = run(
        "publish_github.py", "verify", str(packed), str(tmp_path / "up"), SCF_FOUNDRY_KEY=key
    )
    assert done.returncode == 5
    assert not (tmp_path / "up").exists()


def test_a_damaged_archive_is_not_published(
    packed: Path, foundry: SmallFoundry, tmp_path: Path
) -> None:
    key = str(foundry.home / "keys" / "foundry.pub")
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path, filter="data")
    notes = tmp_path / NAME / "NOTES.md"
    notes.chmod(0o644)
    notes.write_text("better")
    archive = tmp_path / f"{NAME}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / NAME, NAME)

    done = run(
        "publish_github.py", "verify", str(archive), str(tmp_path / "up"), SCF_FOUNDRY_KEY=key
    )

    assert done.returncode == 5
    assert "NOTES.md" in done.stdout
    archive.write_bytes(packed.read_bytes()[:1000])
    done = run(
        "publish_github.py", "verify", str(archive), str(tmp_path / "up"), SCF_FOUNDRY_KEY=key
    )
    assert done.returncode == 5


# -- publishing --------------------------------------------------------------------------------------


def test_it_is_drafted_uploaded_compared_and_published_last(
    github: GitHubDouble, upload: Path
) -> None:
    done = publish(github, upload)

    assert (done.returncode, done.stdout) == (0, f"published {NAME}\n"), done.stderr
    assert github.published() == {NAME: ASSETS}
    (release,) = github.releases.values()
    assert release["body"] == (upload / "NOTES.md").read_text()
    assert release["target_commitish"] == "c" * 40
    assert github.log[-2:] == ["GET assets", "PATCH release"]


def test_twice_is_once(github: GitHubDouble, upload: Path) -> None:
    publish(github, upload)

    again = publish(github, upload)

    assert (again.returncode, "published already" in again.stderr) == (3, True)
    assert len(github.releases) == 1


def test_another_release_under_the_tag_is_left_alone(github: GitHubDouble, upload: Path) -> None:
    publish(github, upload)
    about = json.loads((upload / "RELEASE.json").read_text())
    (upload / "RELEASE.json").write_text(json.dumps(about | {"made_at": "2026-11-17T00:00:00Z"}))

    done = publish(github, upload)

    assert (done.returncode, "another RELEASE.json" in done.stderr) == (5, True)
    assert github.published() == {NAME: ASSETS}


def test_a_burnt_tag_is_followed_by_the_next(github: GitHubDouble, upload: Path) -> None:
    github.burnt = {NAME, f"{NAME}.2"}

    done = publish(github, upload)

    assert done.stdout == f"published {NAME}.3\n"
    assert github.published() == {f"{NAME}.3": ASSETS}
    assert len(github.releases) == 1, "the drafts of burnt tags are gone"
    assert publish(github, upload).returncode == 3


def test_a_draft_of_an_interrupted_upload_is_made_again(github: GitHubDouble, upload: Path) -> None:
    _, draft = github.answer(
        "POST", f"/repos/{REPOSITORY}/releases",
        json.dumps({"tag_name": NAME, "name": NAME, "draft": True}).encode(), f"Bearer {TOKEN}",
    )  # fmt: skip
    draft["assets"].append({"id": 99, "name": "RELEASE.json", "size": 3, "digest": "sha256:half"})

    assert publish(github, upload).returncode == 0
    assert github.published() == {NAME: ASSETS}
    assert len(github.releases) == 1


@pytest.mark.parametrize("call", ["POST RELEASE.json", f"POST {NAME}.tar.gz", "PATCH release"])
def test_an_answer_that_is_lost_makes_nothing_twice(
    github: GitHubDouble, upload: Path, call: str
) -> None:
    """The upload arrived, or the release was published, and nobody was told."""
    github.cut = [call]

    done = publish(github, upload)

    assert done.returncode == 0, done.stderr
    assert github.published() == {NAME: ASSETS}


def test_an_asset_that_arrives_otherwise_is_not_published(
    github: GitHubDouble, upload: Path
) -> None:
    github.spoil = {"RELEASE.json"}

    done = publish(github, upload)

    assert (done.returncode, "RELEASE.json" in done.stderr) == (5, True)
    assert github.releases == {}, "nothing half-released is left"


def test_a_refusal_leaves_nothing_and_says_why(github: GitHubDouble, upload: Path) -> None:
    assert publish(github, upload, GITHUB_TOKEN="wrong").returncode == 8
    github.refuse = {"PATCH release": 403}
    done = publish(github, upload)
    assert (done.returncode, "GitHub answered 403" in done.stderr) == (8, True)
    assert github.releases == {}
    assert publish(github, upload).returncode == 0


def test_arguments_and_environment_that_are_missing(tmp_path: Path) -> None:
    assert run("publish_github.py").returncode == 2
    assert run("overseer.py").returncode == 2
    done = run("publish_github.py", "publish", str(tmp_path))
    assert (done.returncode, "GITHUB_REPOSITORY" in done.stderr) == (2, True)
