"""One drive is one failure: what cannot be made again is copied, and comes back whole."""

import json
import shutil
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.core.errors import UsageError
from scf.daemon.backup import save
from scf.daemon.restoring import restore
from scf.daemon.snapshot import BackupDamaged, snapshots
from scf.dispatch.places import FolderPlace
from scf.runs.state import State
from support.conducting import Works, released_foundry

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Works:
    """A foundry with a released generation; read by every test, changed by none."""
    return released_foundry(tmp_path_factory.mktemp("foundry"))


def saved(works: Works, target: Path, *, with_vault: bool = True) -> str:
    return save(
        works.config,
        FolderPlace(target),
        passphrase=PASSPHRASE,
        with_vault=with_vault,
        clock=SystemClock(),
    ).snapshot


def restored(target: Path, base: Path) -> Works:
    restore(FolderPlace(target), home=base / "home", root=base / "root", passphrase=PASSPHRASE)
    works = Works.__new__(Works)
    works.base, works.settings = base, {}
    return works


def test_no_secret_of_this_machine_is_saved(made: Works, tmp_path: Path) -> None:
    """The provider's key, a token, and the keys for pods: given or made anew on another machine."""
    secrets = [made.home / name for name in
               ("runpod.key", "ray.token", "runpod/identity", "runpod/run-1/host_key")]  # fmt: skip
    for path in secrets:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("CANARY")
    try:
        saved(made, tmp_path / "backup")
    finally:
        for path in secrets:
            path.unlink()

    files = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"CANARY" in path.read_bytes()] == []
    names = " ".join(path.read_text() for path in (tmp_path / "backup/snapshots").iterdir())
    assert '"home/scf.toml"' in names
    assert [path.name for path in secrets if f"home/{path.relative_to(made.home)}" in names] == []


def test_an_empty_machine_becomes_the_foundry_and_goes_on(made: Works, tmp_path: Path) -> None:
    """Runs, generation, release, log and keys are back; fresh fossils make the next generation."""
    saved(made, tmp_path / "copy")
    works = restored(tmp_path / "copy", tmp_path / "new")

    assert [run.to_json() for run in works.runs()] == [run.to_json() for run in made.runs()]
    assert works.generations() == made.generations()
    assert works.config.root == works.root
    for role in ("foundry", "vault"):
        key = works.home / "keys" / f"{role}.key"
        assert key.read_bytes() == (made.home / "keys" / f"{role}.key").read_bytes()
        assert key.stat().st_mode & 0o777 == 0o600
    assert works.cli("audit", "check") == 0
    (release,) = (works.root / "release_history").glob("week-*")
    assert works.cli("release", "verify", str(release)) == 0
    assert works.until_idle() == 0
    assert len(works.runs()) == 1
    works.drop("b.ndjson", range(120, 240))
    works.until_idle()
    assert works.runs()[-1].state is State.PROMOTED
    assert works.runs()[-1].facts["parent"]["generation"] == "ebdm_gen0001"


def test_without_the_vault_everything_else_comes_back(made: Works, tmp_path: Path) -> None:
    saved(made, tmp_path / "copy", with_vault=False)
    works = restored(tmp_path / "copy", tmp_path / "new")

    assert not list((works.root / "fossil_vault").rglob("*.ndjson"))
    assert works.until_idle() == 0
    works.drop("a.ndjson", range(120))
    works.until_idle()
    assert works.runs()[0].state is State.RELEASED


def test_a_second_backup_copies_only_what_is_new(made: Works, tmp_path: Path) -> None:
    first = save(
        made.config,
        FolderPlace(tmp_path),
        passphrase=PASSPHRASE,
        with_vault=True,
        clock=SystemClock(),
    )
    second = save(
        made.config,
        FolderPlace(tmp_path),
        passphrase=PASSPHRASE,
        with_vault=True,
        clock=SystemClock(),
    )

    assert first.new_bytes > 10_000
    assert second.new_bytes == 0
    assert second.files == first.files


def test_no_key_is_readable_in_a_backup(made: Works, tmp_path: Path) -> None:
    """Neither the private keys nor anything of them lies there in the open."""
    saved(made, tmp_path)
    pem = (made.home / "keys" / "foundry.key").read_bytes()
    secret = pem.splitlines()[1]

    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert secret not in data
            assert pem.hex().encode() not in data


def test_another_passphrase_opens_nothing(made: Works, tmp_path: Path) -> None:
    saved(made, tmp_path / "copy")
    with pytest.raises(BackupDamaged, match="another passphrase"):
        restore(FolderPlace(tmp_path / "copy"), home=tmp_path / "h", root=tmp_path / "r",
                passphrase="incorrect horse battery")  # fmt: skip
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("what", ["row", "content", "missing", "uuid", "escape", "rubbish"])
def test_a_changed_backup_is_refused_and_makes_no_foundry(
    made: Works, tmp_path: Path, what: str
) -> None:
    """A changed line, changed content, a missing file, a name that leads out: all are noticed."""
    name = saved(made, tmp_path / "copy")
    path = tmp_path / "copy" / "snapshots" / f"{name}.json"
    manifest = json.loads(path.read_text())
    row = next(r for r in manifest["files"] if r["path"].endswith("entry.json"))
    content = tmp_path / "copy" / "objects" / row["sha256"][:2] / row["sha256"]
    if what == "row":
        row["sha256"] = "0" * 64
    elif what == "content":
        content.write_bytes(b"x" + content.read_bytes()[1:])
    elif what == "missing":
        content.unlink()
    elif what == "uuid":
        manifest["drive_uuid"] = "0"
    elif what == "escape":
        row["path"] = "root/../../escaped"
    path.write_text("{" if what == "rubbish" else json.dumps(manifest))

    with pytest.raises(BackupDamaged):
        restored(tmp_path / "copy", tmp_path / "new")

    assert not (tmp_path / "new" / "home" / "scf.toml").exists()
    assert not (tmp_path / "new" / "root" / ".scf-root.json").exists()
    assert not (tmp_path / "escaped").exists()


def test_a_restore_that_was_cut_off_is_done_again(made: Works, tmp_path: Path) -> None:
    """What is there is kept, what was torn is written again."""
    saved(made, tmp_path / "copy")
    done = restored(tmp_path / "copy", tmp_path / "new")
    (done.home / "scf.toml").unlink()
    (done.root / ".scf-root.json").unlink()
    (done.home / "runs.db").write_bytes(b"torn")

    assert restored(tmp_path / "copy", tmp_path / "new").runs()


def test_a_foundry_is_never_overwritten(made: Works, tmp_path: Path) -> None:
    saved(made, tmp_path / "copy")
    works = Works(tmp_path / "other")
    for home, root in [(works.home, tmp_path / "r"), (tmp_path / "h", works.root)]:
        with pytest.raises(UsageError, match="holds a foundry already"):
            restore(FolderPlace(tmp_path / "copy"), home=home, root=root, passphrase=PASSPHRASE)
    with pytest.raises(UsageError, match="apart"):
        restore(
            FolderPlace(tmp_path / "copy"),
            home=tmp_path / "x",
            root=tmp_path / "x",
            passphrase=PASSPHRASE,
        )
    with pytest.raises(UsageError, match="no snapshot"):
        restore(FolderPlace(tmp_path / "copy"), home=tmp_path / "h", root=tmp_path / "r",
                passphrase=PASSPHRASE, snapshot="20200101T000000Z")  # fmt: skip


def test_a_backup_into_the_foundry_itself_is_refused(made: Works) -> None:
    for place in (made.root / "copy", made.home / "copy"):
        with pytest.raises(UsageError, match="one drive is one failure"):
            saved(made, place)
    with pytest.raises(UsageError, match="at least 12"):
        save(made.config, FolderPlace(made.base / "c"), passphrase="short", with_vault=False,
             clock=SystemClock())  # fmt: skip


def test_the_commands(
    made: Works, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The passphrase comes from a file that others may not read, never from the command line."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    secret = tmp_path / "passphrase"
    secret.write_text(f"{PASSPHRASE}\nnot this line\n")
    target = str(tmp_path / "copy")
    secret.chmod(0o644)
    assert made.cli("backup", "--to", target, "--passphrase-file", str(secret)) == 2
    secret.chmod(0o600)
    assert made.cli("backup", "--to", target, "--plain", "--passphrase-file", str(secret)) == 0
    assert len(snapshots(FolderPlace(tmp_path / "copy").names())) == 1
    new = Works.__new__(Works)
    new.base, new.settings = tmp_path / "new", {}
    arguments = ["restore", "--from", target, "--root", str(new.root), "--passphrase-file",
                 str(secret), "--json"]  # fmt: skip
    capsys.readouterr()
    assert new.cli(*arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["audit_entries"] > 5
    assert new.cli("status") == 0
    assert new.cli(*arguments) == 2
    shutil.rmtree(new.base)
