"""The page that is shown to people in a notebook runs as it stands."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"


def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch) -> None:
    """Blocks share their names, in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) > 5
    for number, block in enumerate(blocks):
        exec(compile(block, f"notebook.md, block {number}", "exec"), names)  # the page itself
    assert (tmp_path / "ring-model" / "digests.json").is_file()
