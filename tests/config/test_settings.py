"""Settings: defaults that work, errors that name the file, the value and the known keys."""

from pathlib import Path

import pytest

from scf.config import load_config
from scf.config.settings import config_text
from scf.core.errors import UsageError


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    config = load_config(tmp_path, environment={})

    assert config.root is None
    assert config.daemon.gear == "STANDARD"


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / "scf.toml").write_text('root = "/from/file"\n')

    assert load_config(tmp_path, environment={}).root == Path("/from/file")
    env = {"SCF_ROOT": "/from/env"}
    assert load_config(tmp_path, environment=env).root == Path("/from/env")
    assert load_config(tmp_path, root=Path("/given"), environment=env).root == Path("/given")


def test_what_init_writes_is_all_defaults(tmp_path: Path) -> None:
    text = config_text(tmp_path / 'odd "name"')
    (tmp_path / "scf.toml").write_text(text)
    as_written = load_config(tmp_path, environment={})
    # The commented lines, switched on, are still the defaults.
    switched_on = "\n".join(
        line[2:] if line.startswith("# ") and " = " in line else line for line in text.splitlines()
    )
    (tmp_path / "scf.toml").write_text(switched_on)

    assert load_config(tmp_path, environment={}) == as_written
    assert as_written.root == tmp_path / 'odd "name"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "cannot be read as TOML"),
        ("[trainnig]\n", "no setting 'trainnig'"),
        ("[training]\nmax_second = 3\n", "no setting 'max_second'"),
        ('[training]\nmax_seconds = "long"\n', "must be of type float"),
        ("[training]\nmax_seconds = -1\n", "must be more than 0"),
        ('[daemon]\ngear = "LUDICROUS"\n', "STANDARD"),
        ("training = 3\n", "must be a table"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "scf.toml").write_text(text)

    with pytest.raises(UsageError, match=message) as caught:
        load_config(tmp_path, environment={})
    assert str(tmp_path / "scf.toml") in str(caught.value)


def test_what_a_release_shows_names_no_host_account_or_path(tmp_path: Path) -> None:
    """Sections are private until they are named public."""
    (tmp_path / "scf.toml").write_text(
        'root = "/the/drive"\n[ssh]\nhost = "box.example"\nhost_keys = ["ssh-ed25519 AAAA"]\n[release]\npush = ["s3://bucket/x"]\n'
    )
    shown = load_config(tmp_path, environment={}).public()

    assert set(shown) == {"vault", "training", "daemon", "gate", "start", "run", "tune"}
    for private in ("box.example", "bucket", "/the/drive", str(tmp_path)):
        assert private not in repr(shown)
