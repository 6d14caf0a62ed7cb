"""Training and measuring in miniature: real files of the right form, without torch.

`tiny_jobs.py train|measure|...` are the programs; as a worker (`worker.py` beside it) they stand in
for the kinds `train_ebdm` and `measure`. What they do wrong is said by `SCF_TINY`, a JSON object:
{"train_sleep_s", "train_until" (a file), "train_exit", "train_error", "child", "gain", "champion_gain", "measure_exit"}.
"""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def train(options: argparse.Namespace) -> int:
    from support.checkpoints import write_checkpoint

    todo = json.loads(os.environ.get("SCF_TINY", "{}"))
    plan = json.loads(Path("inputs/plan.json").read_text())
    with Path("outputs/tries").open("a") as file:
        file.write("one\n")
    with Path("progress.ndjson").open("a") as notes:
        for step in (1, 2):
            note = {"event": "step", "step": step, "max_steps": 2, "steps_per_s": 10.0, "loss": 0.5}
            notes.write(json.dumps(note) + "\n")
    if todo.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(240)"])
        Path("outputs/child.pid").write_text(str(child.pid))
    time.sleep(todo.get("train_sleep_s", 0.0))
    while "train_until" in todo and not Path(todo["train_until"]).exists():
        time.sleep(0.02)
    if todo.get("full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if todo.get("train_error"):
        with Path("progress.ndjson").open("a") as notes:
            notes.write(json.dumps({"event": "error", "error": todo["train_error"]}) + "\n")
        return 1
    if todo.get("train_exit"):
        sys.stderr.write("tiny training failed as it was told to\n")
        return int(todo["train_exit"])
    write_checkpoint(Path("outputs/checkpoint"), seed=plan["fossils"])
    return 0


def measure(options: argparse.Namespace) -> int:
    from scf.core.canonical import canonical_json
    from scf.core.identity import sha256_hex
    from scf.verification.verify_checkpoint import verify_checkpoint
    from support.reports import report_json
    from support.runs import PNG

    todo = json.loads(os.environ.get("SCF_TINY", "{}"))
    if todo.get("measure_exit"):
        return int(todo["measure_exit"])
    plan = json.loads(Path("inputs/plan.json").read_text())
    value = report_json(
        checkpoint_digest=verify_checkpoint(Path(options.checkpoint)).digest,
        plan_id=sha256_hex(canonical_json(plan)),
        gain=todo.get("gain", 0.2),
        champion_gain=todo.get("champion_gain", 0.4) if options.champion else None,
        seed=plan["fossils"],
    )
    if options.scratch:
        verify_checkpoint(Path(options.scratch))
        value["scratch"] = {"dsm_loss": value["baseline_dsm_loss"]}
    folder = Path("outputs/report")
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(value))
    for name in value["files"]:
        (folder / name).write_bytes(PNG)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("--checkpoint")
    parser.add_argument("--champion")
    parser.add_argument("--scratch")
    given = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see tiny_worker.py
    sys.exit(train(given) if given.what == "train" else measure(given))
