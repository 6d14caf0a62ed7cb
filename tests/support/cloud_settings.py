"""`scf.toml` of a foundry whose provider is the double, and whose pods are processes here."""

import json
import sys
from pathlib import Path
from typing import Any

from fakes.runpod.server import FakeRunpod

IMAGE = f"worker@sha256:{'0' * 64}"


def runpod_section(provider: FakeRunpod, **changes: Any) -> str:
    """[runpod], with `changes` to what is usual in tests."""
    given = {
        "image": IMAGE,
        "gpus": ["NVIDIA RTX A4000"],
        # A pod of the double is an sshd of this machine: its login, its Python, a folder of its own.
        "user": "",
        "python": sys.executable,
        "root": "workspace",
        "look_s": 0.2,
        "visible_s": 2.0,
        "rest": provider.rest,
        "graphql": provider.graphql,
    }
    # JSON's strings, numbers and lists are TOML's, too.
    lines = [f"{name} = {json.dumps(value)}" for name, value in (given | changes).items()]
    return "\n".join(["[runpod]", *lines, ""])


def write_settings(
    home: Path, root: Path, provider: FakeRunpod, *, more: str = "", **changes: Any
) -> None:
    """The home's settings: `more` sections, and [runpod] with `changes`."""
    text = f"root = {json.dumps(str(root))}\n{more}\n{runpod_section(provider, **changes)}"
    (home / "scf.toml").write_text(text)
