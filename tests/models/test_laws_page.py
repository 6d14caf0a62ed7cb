"""The page on laws runs as it stands."""

import re
from pathlib import Path

from scf.models.physics import forget

PAGE = Path(__file__).parents[2] / "docs" / "laws.md"


def test_every_block_of_the_page_runs() -> None:
    """Blocks share their names, in order; the law is registered, learned with, and kept better."""
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    try:
        for number, block in enumerate(blocks):
            exec(compile(block, f"laws.md, block {number}", "exec"), names)  # the page itself
    finally:
        forget("advection")
