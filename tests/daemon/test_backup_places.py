"""A backup goes to a machine over ssh, a bucket or a restic repository, and comes back whole.

Real ones: an sshd on loopback with rsync, a server that speaks S3, restic.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scf.core.clock import SystemClock
from scf.core.errors import DoorUnavailable, MissingTool, UsageError
from scf.daemon.backup import save
from scf.daemon.restoring import restore
from scf.daemon.snapshot import BackupDamaged, snapshots
from scf.dispatch.places import (
    FolderPlace,
    Place,
    PlaceFault,
    ResticPlace,
    S3Place,
    SshPlace,
    choose_place,
    open_place,
)
from support.conducting import Works, released_foundry
from support.ssh_boxes import session_sshd, start_sshd

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Works:
    """A foundry with a released generation; read by every test, changed by none."""
    return released_foundry(tmp_path_factory.mktemp("foundry"))


@pytest.fixture
def ssh_config(tmp_path: Path) -> Path:
    """What an operator has in ~/.ssh: the box's key, known in advance, and one's own."""
    box = session_sshd().box(tmp_path / "box")
    (tmp_path / "known").write_text(f"[{box.host}]:{box.port} {box.host_keys[0]}\n")
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host *\n IdentityFile {box.identity}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {tmp_path / 'known'}\n User {box.user}\n"
    )
    return config


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("boto3", reason="the extra [s3] is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import boto3

    speaking = server.ThreadedMotoServer(port=0)
    speaking.start()
    try:
        host, port = speaking.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="scf-copies")
        yield "s3://scf-copies/desk/one"
    finally:
        speaking.stop()


@dataclass
class Where:
    """A place as an operator names it, and what it comes to be."""

    name: str
    kind: type
    options: list[str]
    ssh_config: Path | None = None

    @property
    def place(self) -> Place:
        return choose_place(
            self.name,
            secret=PASSPHRASE,
            ssh_config=self.ssh_config,
            is_plain="--plain" in self.options,
        )


PLAIN = {"folder": FolderPlace, "ssh": SshPlace, "s3": S3Place}


@pytest.fixture(params=["folder", "ssh", "s3", "restic", "plain ssh", "plain s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """Each place as it comes to be where restic is installed, and as it is without."""
    kind = request.param.removeprefix("plain ")
    is_plain = request.param != kind
    if not is_plain and shutil.which("restic") is None:
        pytest.skip("restic is not installed (apt-get install restic)")
    found = Where(str(tmp_path / "copy"), PLAIN[kind] if is_plain else ResticPlace,
                  ["--plain"] if is_plain else [])  # fmt: skip
    if kind == "ssh":
        box = session_sshd().box(tmp_path / "box")
        found.ssh_config = request.getfixturevalue("ssh_config")
        found.name = f"ssh://{box.user}@{box.host}:{box.port}{tmp_path}/copy"
        found.options += ["--ssh-config", str(found.ssh_config)]
    elif kind == "s3":
        found.name = request.getfixturevalue("bucket")
    elif kind == "restic":
        found.name = f"restic:{tmp_path / 'repository'}"
    return found


def test_a_foundry_comes_back_from_there_by_the_commands_of_an_operator(
    made: Works, where: Where, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two backups, of which the second copies nothing twice; then an empty machine goes on."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text(f"{PASSPHRASE}\n")
    options = ["--passphrase-file", str(secret), *where.options]
    assert made.cli("backup", "--to", where.name, "--with-vault", *options) == 0
    place = where.place
    assert isinstance(place, where.kind)
    before = place.names()
    again = save(made.config, place, passphrase=PASSPHRASE, with_vault=True, clock=SystemClock())
    assert again.new_bytes < 50_000  # settings of the daemon that changed, at most
    assert {n for n in place.names() - before if n.startswith("objects/")} <= place.names()
    assert len(snapshots(place.names())) in {1, 2}  # two within one second are one

    works = Works.__new__(Works)
    works.base, works.settings = tmp_path / "new", {}
    restoring = ["restore", "--from", where.name, "--root", str(works.root), *options]
    assert works.cli(*restoring) == 0

    assert [run.to_json() for run in works.runs()] == [run.to_json() for run in made.runs()]
    assert works.generations() == made.generations()
    assert works.cli("audit", "check") == 0
    (release,) = (works.root / "release_history").glob("week-*")
    assert works.cli("release", "verify", str(release)) == 0
    assert works.until_idle() == 0
    assert works.cli(*restoring) == 2


def test_content_that_was_changed_there_is_noticed(
    made: Works, bucket: str, tmp_path: Path
) -> None:
    """Whoever keeps the copies is not trusted with what they say."""
    place = open_place(bucket)
    save(made.config, place, passphrase=PASSPHRASE, with_vault=False, clock=SystemClock())
    name = next(n for n in sorted(place.names()) if n.startswith("objects/"))
    other = tmp_path / "other"
    (other / name).parent.mkdir(parents=True)
    (other / name).write_bytes(b"something else")
    place.put(other, [name])

    with pytest.raises(BackupDamaged, match="not what its name says"):
        restore(place, home=tmp_path / "h", root=tmp_path / "r", passphrase=PASSPHRASE)
    assert not (tmp_path / "h" / "scf.toml").exists()


class Cut:
    """A place whose link is cut in the middle of a transfer, once."""

    folder_here = lies_in = None

    def __init__(self, place: Place) -> None:
        self.place = place
        self.is_cut = False

    def names(self) -> set[str]:
        return self.place.names()

    def put(self, source: Path, names: list[str]) -> None:
        if not self.is_cut:
            self.is_cut = True
            self.place.put(source, names[: len(names) // 2])
            raise DoorUnavailable("cut")
        self.place.put(source, names)

    def get(self, names: list[str], into: Path) -> None:
        self.place.get(names, into)


def test_a_backup_that_was_cut_off_left_no_snapshot_and_is_gone_on_with(
    made: Works, tmp_path: Path
) -> None:
    place = Cut(FolderPlace(tmp_path / "copy"))

    def backup() -> int:
        return save(made.config, place, passphrase=PASSPHRASE, with_vault=True,
                    clock=SystemClock()).new_bytes  # fmt: skip

    with pytest.raises(DoorUnavailable):
        backup()
    half = place.names()
    assert snapshots(half) == []
    assert half
    rest = backup()

    whole = sum((tmp_path / "copy" / n).stat().st_size for n in place.names() - half)
    assert rest <= whole
    restore(place, home=tmp_path / "h", root=tmp_path / "r", passphrase=PASSPHRASE)
    assert not list(made.home.glob(".backup-*"))


@pytest.mark.parametrize(
    "text", ["ssh://host", "ssh://user:secret@host/x", "ssh://host/a/../b", "s3://", "ftp://x/y",
             "ssh://-oProxyCommand=x/y", "restic:--help"],
)  # fmt: skip
def test_what_names_no_place_is_refused(text: str) -> None:
    if text.startswith("restic") and shutil.which("restic") is None:
        pytest.skip("restic is not installed")
    with pytest.raises(UsageError):
        open_place(text)


def test_a_machine_that_does_not_answer_or_is_another_is_said(
    ssh_config: Path, tmp_path: Path
) -> None:
    """Nobody is trusted on first use, and nobody is asked a question."""
    box = session_sshd().box(tmp_path / "box")
    nobody = open_place(f"ssh://{box.host}:1{tmp_path}", ssh_config=ssh_config)
    with pytest.raises(DoorUnavailable, match="cannot be reached"):
        nobody.names()
    (tmp_path / "known").write_text("")
    stranger = open_place(f"ssh://{box.host}:{box.port}{tmp_path}", ssh_config=ssh_config)
    with pytest.raises(DoorUnavailable, match="Host key verification failed"):
        stranger.names()


def test_a_bucket_that_is_not_there_is_said(bucket: str) -> None:
    with pytest.raises(PlaceFault, match="NoSuchBucket"):
        S3Place.of("s3://no-such-bucket/x").names()


def test_another_password_opens_no_restic_repository(tmp_path: Path) -> None:
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed (apt-get install restic)")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x").write_text("x")
    ResticPlace(str(tmp_path / "r"), PASSPHRASE).put(tmp_path / "source", ["x"])
    with pytest.raises(PlaceFault):
        ResticPlace(str(tmp_path / "r"), "another one altogether").names()


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.setitem(sys.modules, "boto3", None)
    for text, tool in (("restic:x", "restic"), ("s3://bucket/x", "boto3")):
        with pytest.raises(MissingTool, match=tool):
            open_place(text)


def test_a_path_with_a_colon_is_a_folder(tmp_path: Path) -> None:
    assert open_place(str(tmp_path / "a:b")) == FolderPlace(tmp_path / "a:b")
    assert isinstance(open_place("ssh://u@h:22/srv/x"), SshPlace)


def test_what_was_begun_is_gone_on_with(made: Works, tmp_path: Path) -> None:
    """Files of ours stay files of ours, with restic installed; and looking makes no repository."""
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed (apt-get install restic)")
    target = str(tmp_path / "copy")
    assert choose_place(target, secret=PASSPHRASE).names() == set()
    assert not (tmp_path / "copy").exists()
    save(made.config, FolderPlace(tmp_path / "copy"), passphrase=PASSPHRASE, with_vault=False,
         clock=SystemClock())  # fmt: skip

    assert choose_place(target, secret=PASSPHRASE) == FolderPlace(tmp_path / "copy")


def test_an_ssh_server_without_sftp_gets_files_of_ours(ssh_config: Path, tmp_path: Path) -> None:
    """restic goes there by sftp alone; rsync needs no more than a shell."""
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed (apt-get install restic)")
    server = start_sshd(tmp_path / "sshd", has_sftp=False)
    try:
        box = server.box(tmp_path / "box")
        (tmp_path / "known").write_text(f"[{box.host}]:{box.port} {box.host_keys[0]}\n")
        text = ssh_config.read_text()
        identity = next(line for line in text.splitlines() if "IdentityFile" in line)
        ssh_config.write_text(text.replace(identity, f" IdentityFile {box.identity}"))
        where = f"ssh://{box.user}@{box.host}:{box.port}{tmp_path}/copy"
        place = choose_place(where, secret=PASSPHRASE, ssh_config=ssh_config)
    finally:
        server.stop()

    assert isinstance(place, SshPlace)


def test_without_restic_a_folder_holds_files_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    assert choose_place(str(tmp_path), secret=PASSPHRASE) == FolderPlace(tmp_path)


def test_a_repository_inside_the_foundry_is_refused(made: Works) -> None:
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed (apt-get install restic)")
    with pytest.raises(UsageError, match="one drive is one failure"):
        save(made.config, choose_place(str(made.root / "copy"), secret=PASSPHRASE),
             passphrase=PASSPHRASE, with_vault=False, clock=SystemClock())  # fmt: skip
