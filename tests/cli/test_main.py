"""The command's face: quick, honest exit codes, no traceback for a person's mistake."""

import subprocess
import sys

import pytest

from scf.cli import main as cli_main
from support.processes import python_env

HEAVY = ("torch", "matplotlib", "pandas", "pvlib", "pyarrow", "scipy")


def run(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "scf", *arguments],
        capture_output=True, text=True, env=python_env(), timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_command_and_the_exit_codes() -> None:
    code, out, _ = run("--help")

    assert code == 0
    assert all(f"\n  {name} " in out for name in cli_main.COMMANDS)
    assert "4 emergency lock" in out


def test_a_typo_is_a_usage_error_with_a_hint() -> None:
    code, _, err = run("statsu")

    assert code == 2
    assert "Did you mean `scf status`?" in err


@pytest.mark.parametrize("name", cli_main.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.run([name, "--help"]) == 0
    assert "Usage: scf" in capsys.readouterr().out


def test_no_command_line_module_imports_anything_heavy() -> None:
    script = (
        "import sys, importlib\n"
        "from scf.cli import main\n"
        "for module, _, _ in main.COMMANDS.values(): importlib.import_module(f'scf.cli.{module}')\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=python_env(),
        timeout=300,
    )

    assert done.stdout.strip() == "[]"


def test_our_errors_end_in_a_sentence_and_their_exit_code(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scf.toml").write_text("[nonsense]\n")

    assert cli_main.run(["config", "show", "--home", str(tmp_path)]) == 2
    assert "no setting 'nonsense'" in capsys.readouterr().err


def test_init_makes_a_foundry_and_prints_json(tmp_path, capsys) -> None:
    places = ["--home", str(tmp_path / "home"), "--root", str(tmp_path / "root")]

    assert cli_main.run(["init", "--json", *places]) == 0
    assert '"is_new": true' in capsys.readouterr().out
    assert (tmp_path / "root" / "fossil_vault").is_dir()


@pytest.mark.parametrize(
    "command", [["ingest", "x.ndjson"], ["train", "--fossils", "x.ndjson", "--out", "model"]]
)
def test_the_emergency_lock_stops_what_starts_something(
    tmp_path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    places = ["--home", str(tmp_path / "home"), "--root", str(tmp_path / "root")]
    cli_main.run(["init", *places])
    cli_main.run(["lock", "--reason", "a test", *places])

    assert cli_main.run([*command, *places]) == 4
    assert "scf unlock" in capsys.readouterr().err
