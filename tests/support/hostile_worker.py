"""A worker that does its job and then harm: to what it gives back, before it is looked at."""

from pathlib import Path

from support.ssh_boxes import QUICK

_SOURCE = f"""
import json, shutil, subprocess, sys
from pathlib import Path
bundle = Path(sys.argv[1])
apart = bundle.parent.parent / "apart"
shutil.copytree(bundle, apart)
(apart / "worker.lock").unlink()
subprocess.run([sys.executable, {QUICK.worker[1]!r}, str(apart)], check=True)
outputs, exit_path = apart / "outputs", apart / "exit.json"
def promise(name, size=1):
    record = json.loads(exit_path.read_text())
    record["outputs"].append({{"path": name, "sha256": "0" * 64, "size_bytes": size}})
    exit_path.write_text(json.dumps(record))
HARM
shutil.rmtree(bundle / "outputs")
outputs.rename(bundle / "outputs")
exit_path.rename(bundle / "exit.json")
"""


def write_hostile(path: Path, harm: str) -> None:
    """Write the worker's program; `harm` is Python that sees `outputs`, `exit_path`, `promise`."""
    path.write_text(_SOURCE.replace("HARM", harm))
