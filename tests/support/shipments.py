"""A folder that looks like a release, for publishing: who publishes does not verify again."""

import hashlib
import json
from pathlib import Path

NAME = "week-2026-11-16"


def small_release(base: Path, *, big_bytes: int = 0) -> Path:
    """Some files with their RELEASE.json; `big_bytes` makes the weights that long."""
    folder = base / NAME
    contents = {
        "MODEL_CARD.md": b"---\nlicense: apache-2.0\n---\n# a model\n",
        "NOTES.md": b"# week\n",
        "model/model.safetensors": bytes(range(256)) * max(4, big_bytes // 256),
        "plots/losses.svg": b"<svg/>",
        "verify_release.py": b"print('fine')\n",
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for name, data in contents.items()
    }
    about = {"schema": "scf.release/1", "name": NAME, "files": files}
    (folder / "RELEASE.json").write_text(json.dumps(about))
    (folder / "RELEASE.dsse.json").write_text("{}")
    return folder
