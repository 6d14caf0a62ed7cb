"""Documents that are wrong are defects: links resolve, commands exist, pages are where code says."""

import re
import shlex
from pathlib import Path

import pytest

from scf.cli import main as cli_main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]

    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_code_blocks_exist(page: Path) -> None:
    """Every `scf ...` line in a shell block names a command, and every option it uses is real."""
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["scf"] and len(words) > 1:
                _check_command(words[1:])


def _check_command(words: list[str]) -> None:
    import click

    command: click.Command = cli_main.root_command
    while isinstance(command, click.Group) and words:
        context = click.Context(command)
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    used = {word.partition("=")[0] for word in words if word.startswith("--")}

    assert used <= options, f"{command.name}: unknown {sorted(used - options)}"


def test_paths_named_in_architecture_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    paths = re.findall(r"`((?:src|docs|scripts|docker)/[\w./-]+)`", text)

    assert [path for path in paths if not (ROOT / path).exists()] == []
